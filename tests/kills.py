"""Interrupts all jobs of a small configs/synthetic.py at random moments, many times.

  PYTHONPATH=. python tests/kills.py --kills 100 --signal KILL --log kills.jsonl

Runs the whole pipeline once undisturbed, and then again and again with a signal after a random
time, each start going on where the last was stopped. Whenever a run comes to its end, all it left
is compared with the undisturbed one: figures to 1e-6, parameters and effect matrices bit for bit.
Prints a summary; ends with 1 if anything was torn, lost or wrong.
"""

import argparse
import collections
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

from sane_jax import effect_index
from tests import test_whole_pipeline as pipeline

FIGURES = (
  "similarity/finished.json", "index/finished.json", "attributes/finished.json",
  "concepts/finished.json", "ranking/finished.json", "evaluation/tables.json",
  "explain/explanations.json",
)  # fmt: skip
WHOLE = ("similarity/model.safetensors", "attributes/model.safetensors")


def start(folder):
  return subprocess.Popen(
    pipeline.arguments("synthetic", pipeline.SMALL), cwd=folder, env=pipeline.ENVIRONMENT,
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
  )  # fmt: skip


def stage(folder):
  """The job that has not finished yet."""
  run = folder / "runs/synthetic"
  for job in ("similarity", "index", "attributes", "concepts", "ranking", "evaluation", "explain"):
    if not (run / job / "finished.json").exists():
      return job if run.exists() else "start"
  return "end"


def problems(folder, truth):
  """What is torn, lost or wrong in a finished run."""
  one, two, found = truth / "runs/synthetic", folder / "runs/synthetic", []
  for path in FIGURES:
    try:
      pipeline.assert_close(*(json.loads((f / path).read_text()) for f in (one, two)), path)
    except (AssertionError, OSError, ValueError) as error:
      found.append(f"{path}: {str(error)[:200]}")
  for path in WHOLE:
    if not (two / path).exists() or (one / path).read_bytes() != (two / path).read_bytes():
      found.append(f"{path} differs")
  for name in ("index", "index_valid", "index_test"):
    if not (one / name).exists():
      continue
    indexes = [effect_index.read_index(f / name) for f in (one, two)]
    for part in ("embeddings", "effects"):
      a, b = (getattr(index, part).read().result() for index in indexes)
      if not np.array_equal(a, b):
        found.append(f"{name}: {part} differ")
  lost = {str(p.relative_to(one)) for p in one.rglob("*") if p.is_file()}
  lost -= {str(p.relative_to(two)) for p in two.rglob("*") if p.is_file()}
  # Names that hash the step or the moment may differ; whole folders and reports may not.
  found += [f"{path} is lost" for path in sorted(lost) if "/checkpoints/" not in path]
  for path in two.rglob("*.json"):
    try:
      json.loads(path.read_text())
    except ValueError:
      found.append(f"{path.relative_to(two)} is torn")
  return found


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--kills", type=int, default=100)
  parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--shortest", type=float, default=3.0, help="seconds")
  parser.add_argument("--longest", type=float, default=16.0, help="seconds")
  parser.add_argument("--log", type=pathlib.Path, default=pathlib.Path("kills.jsonl"))
  args = parser.parse_args()
  which = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM}[args.signal]
  moments = np.random.default_rng(args.seed)
  stages, wrong, runs, kills, slowest = collections.Counter(), [], 0, 0, 0.0
  with tempfile.TemporaryDirectory() as name:
    truth, folder = pathlib.Path(name) / "undisturbed", pathlib.Path(name) / "run"
    truth.mkdir()
    out, _ = (child := start(truth)).communicate()
    if child.returncode:
      sys.exit(f"the undisturbed run failed:\n{out}")
    folder.mkdir()
    while kills < args.kills or folder.exists():
      child, moment = start(folder), moments.uniform(args.shortest, args.longest)
      try:
        out, _ = child.communicate(timeout=moment if kills < args.kills else None)
      except subprocess.TimeoutExpired:
        where, sent = stage(folder), time.monotonic()
        child.send_signal(which)
        try:
          out, _ = child.communicate(timeout=60)
        except subprocess.TimeoutExpired:  # workers that outlive it hold its output open
          wrong.append(f"kill {kills + 1} in {where}: not all of its processes ended in a minute")
          sys.exit("\n".join(wrong))
        slowest = max(slowest, time.monotonic() - sent)
        kills += 1
        stages[where] += 1
        if "Traceback" in out:
          wrong.append(f"kill {kills} in {where}: a stack trace: {out[-500:]}")
        with args.log.open("a") as log:
          log.write(json.dumps({"kill": kills, "after": moment, "in": where}) + "\n")
        continue
      runs += 1
      if child.returncode:
        wrong.append(f"run {runs} did not go on: {out[-500:]}")
      else:
        wrong += [f"run {runs}: {text}" for text in problems(folder, truth)]
      shutil.rmtree(folder)
      if kills < args.kills:
        folder.mkdir()
  where = ", ".join(f"{job} {count}" for job, count in stages.most_common())
  print(f"SIG{args.signal}: {kills} in {runs} runs ({where}); slowest to end {slowest:.1f} s")
  print("\n".join(wrong) or "nothing torn, lost or wrong")
  sys.exit(bool(wrong))


if __name__ == "__main__":
  main()
