"""Starts a config's command on several processes of several devices each, on this machine."""

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parents[1]
# Sixteen devices on two cores take their time; the gate has no such case.
PATIENCE = 1200 if os.environ.get("SANE_JAX_MATRIX") else 280

# configs/synthetic.py for a minute; batches that 16 devices can share.
SMALL = (
  "outfits.num_outfits=(40,10,12)", "similarity.image_size=32", "similarity.width=8",
  "similarity.groups_per_batch=8", "similarity.images_per_group=4", "similarity.num_steps=12",
  "similarity.warmup_steps=2", "similarity.eval_every_steps=6", "similarity.save_every_steps=6",
  "similarity.log_every_steps=2", "similarity.negatives=random", "index.max_queries=20",
  "attributes.image_size=32", "attributes.width=8", "attributes.batch_size=16",
  "attributes.num_epochs=2", "attributes.log_every_steps=2", "cache_gib=0.1",
  "pairs.num_valid=12", "pairs.num_test=12", "concepts.min_images=3", "concepts.min_pairs=4",
  "concepts.num_random=4", "evaluation.generators=('random','hadamard:num_masks=128')",
  "evaluation.modes=('fixed',)", "evaluation.saliency_pairs=4", "evaluation.sanity_pairs=3",
  "evaluation.layers=('type_masks','trunk/layer3')", "explain_matches.num_pairs=3",
  "explain_matches.num_masks=128",
)  # fmt: skip


def free_port() -> int:
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def command(config: str, fields: Sequence[str]) -> list[str]:
  return [
    sys.executable, "-m", "sane_jax.main", f"--config={ROOT / f'configs/{config}.py'}",
    *(f"--config.{field}" for field in fields),
  ]  # fmt: skip


def start(
  folder: pathlib.Path, fields: Sequence[str], *, config: str = "synthetic", processes: int = 1,
  devices: int = 1, path: Sequence[str] = (),
) -> list[subprocess.Popen]:  # fmt: skip
  """The processes of one run in `folder`; what they print is in their stdout."""
  environment = {
    **os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": os.pathsep.join([str(ROOT), *path]),
  }  # fmt: skip
  together, port = [], free_port()
  if processes > 1:
    together = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}"]
  return [
    subprocess.Popen(
      [*command(config, fields), *together, *([f"--process_id={i}"] if processes > 1 else [])],
      cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    for i in range(processes)
  ]  # fmt: skip


def finish(children: Sequence[subprocess.Popen], timeout: float = PATIENCE) -> list[str]:
  """What they printed; all must have ended well."""
  out = [child.communicate(timeout=timeout)[0] for child in children]
  assert all(child.returncode == 0 for child in children), "\n".join(out)
  return out


def run(folder: pathlib.Path, fields: Sequence[str], **options) -> list[str]:
  return finish(start(folder, fields, **options))
