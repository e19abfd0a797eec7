"""The launch scripts, against stand-ins that write down what they were asked."""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

import sane_jax

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh") if path.name != "common.sh")
TPU = {"PROJECT": "my project", "ZONE": "us-west4-a", "NAME": "why"}
POD = TPU | {"ACCELERATOR": "v5litepod-16", "RUNTIME": "v2-alpha-tpuv5-lite"}
GKE = {
  "NAME": "why", "IMAGE": "repo.example/why:1", "TPU": "tpu-v5-lite-podslice", "TOPOLOGY": "4x4",
  "HOSTS": "4", "CHIPS": "4", "CLAIM": "runs",
}  # fmt: skip
JOB = ["--config=configs/polyvore.py", "--config.workdir=it's a run", '--config.name=a "b" $c']
RECORD = """#!/usr/bin/env python3
import json, os, sys
with open(os.environ["RECORD"], "a") as file:
  words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
  stdin = sys.stdin.read() if words[:2] == ["kubectl", "apply"] else ""
  file.write(json.dumps([words, stdin]) + "\\n")
if "describe" in sys.argv:
  with open(os.environ["RECORD"]) as file:
    print(os.environ["STATES"].split()[sum("describe" in line for line in file) - 1])
"""


@pytest.fixture
def launch(tmp_path):
  """Runs a script; gives its result and the commands [words, stdin] that it ran."""
  tools = tmp_path / "tools"
  tools.mkdir()
  for name in ("gcloud", "srun", "kubectl"):
    (tools / name).write_text(RECORD)
    (tools / name).chmod(0o755)

  def run(script, *args, cwd=ROOT, **variables):
    record = tmp_path / "record"
    record.unlink(missing_ok=True)
    keep = {name: os.environ[name] for name in ("HOME",) if name in os.environ}
    done = subprocess.run(
      ["bash", str(LAUNCH / script), *args], capture_output=True, text=True, cwd=cwd,
      env={**keep, "PATH": f"{tools}:{os.environ['PATH']}", "RECORD": str(record), **variables},
    )  # fmt: skip
    lines = record.read_text().splitlines() if record.exists() else []
    return done, [json.loads(line) for line in lines]

  return run


@pytest.mark.parametrize("script", SCRIPTS)
def test_missing_variables_are_named(script, launch):
  done, commands = launch(script)
  assert done.returncode == 2
  assert commands == []
  named = {"local.sh": "number of processes", "slurm.sh": "VENV", "gke.sh": "CHIPS"}
  assert named.get(script, "PROJECT ZONE NAME") in done.stderr
  assert len((LAUNCH / script).read_text().splitlines()) < 60


def test_a_queued_resource_is_asked_for_and_waited_for(launch):
  states = "WAITING_FOR_RESOURCES PROVISIONING ACTIVE"
  done, commands = launch("tpu_create.sh", **POD, SPOT="1", STATES=states, EVERY_SECONDS="0")
  assert done.returncode == 0, done.stderr
  where = ["--project=my project", "--zone=us-west4-a"]
  queued = ["gcloud", "compute", "tpus", "queued-resources"]
  asked = [
    "--node-id=why", "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite",
    "--spot",
  ]  # fmt: skip
  describe = [*queued, "describe", "why", *where, "--format=value(state.state)"]
  words = [command for command, _ in commands]
  assert words == [[*queued, "create", "why", *where, *asked], *[describe] * 3]
  done, commands = launch("tpu_create.sh", **POD, STATES="FAILED", GIVE_UP="6h")
  assert done.returncode == 1
  assert "tpu_delete.sh" in done.stderr
  assert commands[0][0][-1] == "--valid-until-duration=6h"
  assert "--spot" not in commands[0][0]


def test_hosts_are_set_up_with_this_commit(launch):
  done, commands = launch("tpu_setup.sh", **TPU, NFS="10.0.0.2:/share")
  assert done.returncode == 0, done.stderr
  (copy, _), (install, _) = commands
  where = ["--project=my project", "--zone=us-west4-a", "--worker=all"]
  assert copy[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "scp"]
  assert copy[6:] == ["why:sane_jax.tar.gz", *where]
  assert install[:9] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "why", *where]
  steps = install[9].removeprefix("--command=")
  assert "mount -t nfs 10.0.0.2:/share runs" in steps
  assert "-e '.[tpu,gcs]'" in steps
  assert subprocess.run(["bash", "-n", "-c", steps]).returncode == 0
  _, commands = launch("tpu_setup.sh", **TPU)
  assert "nfs" not in commands[1][0][9]


@pytest.mark.parametrize("detach", ["", "1"])
def test_a_job_runs_on_all_hosts_with_its_words_as_given(detach, launch):
  done, commands = launch("tpu_run.sh", *JOB, **TPU, DETACH=detach)
  assert done.returncode == 0, done.stderr
  [(words, _)] = commands
  assert words[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "why"]
  assert "--worker=all" in words
  remote = words[-1].removeprefix("--command=")
  assert ("nohup" in remote) == bool(detach)
  start = remote.index("-m sane_jax.main")
  assert shlex.split(remote[start:])[2:5] == JOB  # what a remote shell makes of it
  assert launch("tpu_run.sh", **TPU)[0].returncode == 2


def test_results_are_fetched_and_all_is_deleted(launch, tmp_path):
  done, commands = launch("tpu_fetch.sh", "runs/polyvore", str(tmp_path / "my results"), **TPU)
  assert done.returncode == 0, done.stderr
  assert commands[0][0] == [
    "gcloud", "compute", "tpus", "tpu-vm", "scp", "--recurse", "why:sane_jax/runs/polyvore",
    str(tmp_path / "my results"), "--project=my project", "--zone=us-west4-a", "--worker=0",
  ]  # fmt: skip
  assert (tmp_path / "my results").is_dir()
  _, commands = launch("tpu_delete.sh", **TPU)
  assert commands[0][0] == [
    "gcloud", "compute", "tpus", "queued-resources", "delete", "why", "--project=my project",
    "--zone=us-west4-a", "--force", "--quiet",
  ]  # fmt: skip


def test_slurm_runs_a_process_a_task(launch):
  done, commands = launch("slurm.sh", *JOB, VENV="/home/me/my venv", SLURM_SUBMIT_DIR=str(ROOT))
  assert done.returncode == 0, done.stderr
  assert commands[0][0] == [
    "srun", "--kill-on-bad-exit=1", "/home/me/my venv/bin/python", "-m", "sane_jax.main", *JOB,
  ]  # fmt: skip


def test_the_manifest_is_filled_in(launch):
  done, commands = launch("gke.sh", *JOB, **GKE, SLICES="2")
  assert done.returncode == 0, done.stderr
  [(words, manifest)] = commands
  assert words == ["kubectl", "apply", "-f", "-"]
  document = yaml.safe_load(manifest)
  assert (document["apiVersion"], document["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  [slices] = document["spec"]["replicatedJobs"]
  assert slices["replicas"] == 2
  job = slices["template"]["spec"]
  assert (job["parallelism"], job["completions"], job["completionMode"]) == (4, 4, "Indexed")
  pod = job["template"]["spec"]
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": "4x4",
  }
  [container] = pod["containers"]
  assert container["args"] == JOB
  assert container["image"] == "repo.example/why:1"
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "runs"
  assert "${" not in manifest
  done, commands = launch("gke.sh", *JOB, **GKE | {"IMAGE": "a\nb: c"})
  assert (done.returncode, commands) == (2, [])


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_dry_run_runs_nothing(script, launch):
  args = {"local.sh": ["2", *JOB], "tpu_fetch.sh": ["runs/a b", "here"]}.get(script, JOB)
  done, commands = launch(script, *args, **(GKE | POD), VENV="/venv", DRY_RUN="1", PORT="1")
  assert done.returncode == 0, done.stderr
  assert commands == []
  assert done.stdout.strip()
  assert not (ROOT / "here").exists()
  if script == "local.sh":
    first, second = map(shlex.split, done.stdout.splitlines())
    assert first[:-3] == second[:-3] == ["python", "-m", "sane_jax.main", *JOB]
    assert first[-3:] == ["--coordinator=127.0.0.1:1", "--num_processes=2", "--process_id=0"]
    assert second[-1] == "--process_id=1"


def test_shellcheck_finds_nothing():
  if shutil.which("shellcheck") is None:
    if os.environ.get("CI"):
      pytest.fail("shellcheck is missing: apt-get install shellcheck")
    pytest.skip("needs shellcheck: apt-get install shellcheck")
  scripts = [str(path) for path in LAUNCH.glob("*.sh")]
  done = subprocess.run(["shellcheck", "-x", *scripts], capture_output=True, text=True, cwd=ROOT)
  assert done.returncode == 0, done.stdout


def test_processes_on_this_machine_share_a_job(tmp_path):
  """Two processes build an index of two shards that equals that of one."""
  photos = tmp_path / "photos"
  photos.mkdir()
  rng = np.random.default_rng(0)
  for number in range(66):
    pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photos / f"{number:02}.png")
  maps = []
  for count in (1, 2):
    done = subprocess.run(
      ["bash", str(LAUNCH / "local.sh"), str(count), "--config=configs/photos.py",
       "--config.job=build_index", f"--config.photos={photos}", "--config.image_size=28",
       "--config.model=tests.encoders:small_model", "--config.num_masks=128",
       f"--config.workdir={tmp_path / str(count)}"],
      capture_output=True, text=True, cwd=ROOT, timeout=250,
      env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    index = sane_jax.ExplanationIndex(tmp_path / str(count) / "index")
    assert len(index) == 66
    maps.append(index.maps(65, [0, 64]))
  np.testing.assert_allclose(maps[0], maps[1], atol=1e-3 * np.abs(maps[0]).max())
