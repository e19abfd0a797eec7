"""Kills the small pipeline at random moments, starts it again, and compares what came out.

  python tests/kills.py FOLDER --kills=100 --signal=KILL --seconds=480
  python tests/kills.py OTHER_FOLDER --lost=4 --left=2

FOLDER/summary_SIGKILL.json counts; the same command goes on with the count where its time was up.
One run after the other is begun in a folder of its own, killed until it ends, and compared with one
that nobody disturbed: files bit for bit, but for those that hold how long something took.
"""

import argparse
import hashlib
import json
import pathlib
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import many

from sane_jax.maps import index_arrays

TAKEN = {"seconds", "images_per_second", "passes_of_this_run"}  # how long, or how much of it here
LIVES = (2.0, 14.0)  # seconds between start and signal
LEAVES = 60  # seconds that a process has after SIGTERM


def torn(run: pathlib.Path) -> list[str]:
  """Files with a name of their own that are not whole."""
  bad = []
  for path in run.rglob("*"):
    if path.name.startswith(".") or "checkpoints" in path.parts or not path.is_file():
      continue
    try:
      if path.suffix == ".json":
        json.loads(path.read_text())
      elif path.suffix == ".npz":
        with np.load(path) as file:
          _ = [file[name] for name in file.files]
      elif path.suffix == ".safetensors":
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
        assert len(data) == 8 + size + max(ends)
      elif path.suffix == ".png":
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
    except (ValueError, OSError, AssertionError, EOFError, zipfile.BadZipFile) as error:
      bad.append(f"{path}: {error}")
  return bad


def kept(run: pathlib.Path) -> dict[str, str]:
  """What is finished and may never go or change, by its hash."""
  names = ("finished.json", "settings.json", "concepts.npz", "ranking.npz")
  paths = [*run.rglob("parts/*.npz"), *run.rglob("pairs/*.npz")]
  paths += [path for name in names for path in run.rglob(name)]
  return {str(p.relative_to(run)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def differences(one: pathlib.Path, two: pathlib.Path) -> list[str]:
  """Where two finished runs differ, but for what they took."""
  out = []
  skipped = {"checkpoints", "prepared"}

  def files(run):
    found = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    return {
      name
      for name in found
      if not skipped & set(pathlib.PurePath(name).parts)
      and not pathlib.PurePath(name).name.startswith(".")
    }

  mine, yours = files(one), files(two)
  out += [f"{name} is in one alone" for name in sorted(mine ^ yours)]
  arrays = {"embeddings", "effects", "finished_embeddings", "finished_effects"}
  for name in sorted(mine & yours):
    a, b = one / name, two / name
    if arrays & set(pathlib.PurePath(name).parts) or a.read_bytes() == b.read_bytes():
      continue
    if a.suffix == ".json":
      if _untimed(json.loads(a.read_text())) != _untimed(json.loads(b.read_text())):
        out.append(name)
    elif a.suffix == ".npz":
      with np.load(a) as x, np.load(b) as y:
        if set(x.files) != set(y.files) or not all(_same(n, x[n], y[n]) for n in x.files):
          out.append(name)
    elif name != "explain/index.html":  # shows seconds; what it is made of was compared
      out.append(name)
  for split in ("index", "index_valid", "index_test"):
    x, y = (index_arrays.read_index(run / split) for run in (one, two))
    for part in ("embeddings", "effects"):
      a, b = (i.arrays[part].read().result() for i in (x, y))
      if not np.array_equal(a, b):
        out.append(f"{split}/{part}")
  return out


def _untimed(value):
  if isinstance(value, dict):
    return {k: _untimed(v) for k, v in value.items() if k not in TAKEN}
  return [_untimed(v) for v in value] if isinstance(value, list) else value


def _same(name, a, b):
  if name == "_text":
    return _untimed(json.loads(a.tobytes())) == _untimed(json.loads(b.tobytes()))
  return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def job_of(printed: str, run: pathlib.Path) -> str:
  """The job that a killed run was at: the first without a result."""
  for folder, job in (
    ("drawn/truth/settings.json", "draw_outfits"), ("similarity", "train_similarity"),
    ("index_test", "build_index"), ("attributes", "train_attributes"),
    ("concepts", "fit_concepts"), ("ranking", "tune_ranking"), ("evaluation", "evaluate"),
  ):  # fmt: skip
    path = run / folder
    if not (path if path.suffix else path / "finished.json").exists():
      return job
  return "explain_matches"


def disturb(
  folder: pathlib.Path, whole: pathlib.Path, kills: int, sign: signal.Signals, *, seconds: float,
  rng: np.random.Generator, summary: dict,
) -> None:  # fmt: skip
  """Goes on until `kills` signals were sent, or time is up; counts in `summary`."""
  until = time.monotonic() + seconds
  while summary["signals"] < kills and time.monotonic() < until:
    here = folder / f"{sign.name}_{summary['runs']}"
    here.mkdir(parents=True, exist_ok=True)
    run = here / "runs/synthetic"
    before = kept(run)
    (child,) = many.start(here, many.SMALL, devices=2)
    try:
      printed = child.communicate(timeout=rng.uniform(*LIVES))[0]
    except subprocess.TimeoutExpired:
      child.send_signal(sign)
      sent = time.monotonic()
      try:
        printed = child.communicate(timeout=LEAVES)[0]
      except subprocess.TimeoutExpired:
        child.kill()
        printed = child.communicate()[0]
        summary["did not leave"] += 1
      taken = time.monotonic() - sent
      summary["longest leave"] = max(summary["longest leave"], round(taken, 1))
      summary["signals"] += 1
      job = job_of(printed, run)
      summary["at"][job] = summary["at"].get(job, 0) + 1
      if child.returncode == 1 and "goes on" in printed:
        summary["tidy"] += 1
      elif child.returncode not in (-sign, 0):
        summary["failed"].append(printed[-2000:])
    else:
      if child.returncode:
        summary["failed"].append(printed[-2000:])
        summary["runs"] += 1
      else:
        summary["runs"] += 1
        summary["differences"] += differences(whole / "runs/synthetic", run)
    summary["torn"] += torn(run)
    after = kept(run)
    summary["lost"] += [name for name, digest in before.items() if after.get(name) != digest]
    (folder / f"summary_{sign.name}.json").write_text(json.dumps(summary, indent=1))


def lose_one(folder: pathlib.Path, count: int, left: int) -> dict:
  """Kills one of `count` processes in training; goes on with `left`; times, and how far apart."""
  fields = (*many.SMALL, f"data.folder={folder / 'drawn'}", f"data.prepared={folder / 'prepared'}",
            "similarity.num_steps=300", "similarity.eval_every_steps=0",
            "similarity.save_every_steps=20", "job=all")  # fmt: skip
  jobs = ("jobs=('draw_outfits','train_similarity')",)
  many.run(folder, (*fields, *jobs, "workdir=still"))
  jobs = ("jobs=('train_similarity',)", "workdir=lost")
  children = many.start(folder, (*fields, *jobs), processes=count)
  while not (folder / "lost/similarity/checkpoints/40").exists():
    time.sleep(0.05)
    assert all(child.poll() is None for child in children)
  children[-1].kill()
  killed = time.monotonic()
  named = ends = 0.0
  for child in children[:-1]:
    for line in child.stdout:
      if f"process {count - 1} vanished" in line:
        named = max(named, time.monotonic() - killed)
        print(line, end="")
    child.wait()
    ends = max(ends, time.monotonic() - killed)
  codes = [child.wait() for child in children]
  began = time.monotonic()
  again = many.start(folder, (*fields, *jobs), processes=left)
  rows, first = folder / "lost/similarity/metrics.jsonl", 0.0
  length = rows.stat().st_size
  while not first and all(child.poll() is None for child in again):
    time.sleep(0.05)
    with rows.open() as file:
      text = file.read()
    if len(text) > length:
      first = time.monotonic() - began
    length = min(length, len(text))
  many.finish(again)
  still, lost = (
    [
      json.loads(line)
      for line in (folder / f / "similarity/metrics.jsonl").read_text().splitlines()
      if "train/loss" in line
    ]
    for f in ("still", "lost")
  )
  same = [abs(a["train/loss"] - b["train/loss"]) for a, b in zip(still, lost, strict=True)]
  return {
    "processes": count, "exit codes": codes, "named after s": round(named, 1),
    "all ended after s": round(ends, 1), "went on with": left,
    "first new line of the log after s": round(first, 1), "steps": len(same),
    "largest difference of losses, first 60 steps": max(same[:30]),
    "largest difference of losses": max(same),
  }  # fmt: skip


def begin() -> dict:
  return {
    "signals": 0, "runs": 0, "tidy": 0, "did not leave": 0, "longest leave": 0.0, "at": {},
    "torn": [], "lost": [], "differences": [], "failed": [],
  }  # fmt: skip


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--kills", type=int, default=100)
  parser.add_argument("--signal", default="KILL", choices=["KILL", "TERM"])
  parser.add_argument("--seconds", type=float, default=480)
  parser.add_argument("--lost", type=int, default=0, help="kill one of so many processes instead")
  parser.add_argument("--left", type=int, default=2, help="and go on with so many")
  options = parser.parse_args()
  options.folder.mkdir(parents=True, exist_ok=True)
  if options.lost:
    print(json.dumps(lose_one(options.folder.absolute(), options.lost, options.left), indent=1))
    return
  folder, sign = options.folder.absolute(), signal.Signals[f"SIG{options.signal}"]
  whole = folder / "whole"
  if not (whole / "done").exists():
    whole.mkdir(parents=True, exist_ok=True)
    many.run(whole, many.SMALL, devices=2)
    (whole / "done").touch()
  path = folder / f"summary_{sign.name}.json"
  summary = json.loads(path.read_text()) if path.exists() else begin()
  rng = np.random.default_rng()
  disturb(folder, whole, options.kills, sign, seconds=options.seconds, rng=rng, summary=summary)
  print(json.dumps({k: v for k, v in summary.items() if k != "failed"}, indent=1))
  for text in summary["failed"]:
    print(text)


if __name__ == "__main__":
  main()
