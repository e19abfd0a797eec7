"""Reads thousands of damaged inputs in one process of limited memory: `python -m fuzz.run`.

Writes what came of them as JSON. The last input lies in the work folder, should the process die.
"""

import argparse
import collections
import faulthandler
import json
import logging
import os
import pathlib
import tempfile
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from fuzz import archives, checkpoints, guard, images, indexes, names, settings, texts

SECONDS = 20.0  # of the processor, an input; four times that on the clock ends all
MEMORY = 3 << 30  # bytes of address space beyond what the libraries take


class Kind(NamedTuple):
  """How many inputs of it there are, of 10,000; whether it may write and import."""

  share: int
  prepare: Callable[[np.random.Generator, pathlib.Path], Any]
  read: Callable[[Any], None]
  valid: Callable[[pathlib.Path], list[Any]]
  acts: bool = False


KINDS = {
  "images": Kind(3800, images.prepare, images.read, images.valid),
  "archives": Kind(1500, archives.prepare, archives.read, archives.valid),
  "torch files": Kind(1200, *checkpoints.KINDS["torch"]),
  "type spaces": Kind(600, *checkpoints.KINDS["typespaces"]),
  "model files": Kind(800, *checkpoints.KINDS["weights"]),
  "arrays": Kind(600, *checkpoints.KINDS["arrays"]),
  "texts": Kind(1800, texts.prepare, texts.read, texts.valid),
  "indexes": Kind(300, indexes.prepare, indexes.read, indexes.valid),
  "names": Kind(400, names.prepare, names.read, names.valid),
  # A job makes its folder and its report, and imports the model that it is told.
  "settings": Kind(100, settings.prepare, settings.read, settings.valid, acts=True),
}  # fmt: skip


def run(count: int, seed: int, out: pathlib.Path, only: list[str]) -> dict[str, Any]:
  """About `count` inputs over all kinds."""
  warnings.simplefilter("ignore")
  logging.disable()
  jax.numpy.zeros(1).block_until_ready()
  watch = guard.Guard(SECONDS)
  report: dict[str, Any] = {}
  with tempfile.TemporaryDirectory() as place:
    folders = {}
    for name, kind in KINDS.items():  # what libraries import on first use
      folders[name] = pathlib.Path(place, name)
      folders[name].mkdir()
      if not only or name in only:
        for item in kind.valid(folders[name]):
          guard_free(kind, item)
        rng = np.random.default_rng((seed, len(name), 1))
        for _ in range(20 if name != "settings" else 2):
          guard_free(kind, kind.prepare(rng, folders[name]))
    guard.limit_memory(MEMORY)
    for number, (name, kind) in enumerate(KINDS.items()):
      if only and name not in only:
        continue
      verdicts: collections.Counter[str] = collections.Counter()
      bad, slowest, largest = [], (0.0, ""), 0
      for turn in range(max(1, kind.share * count // 10_000)):
        rng = np.random.default_rng((seed, number, turn))
        item = kind.prepare(rng, folders[name])
        faulthandler.dump_traceback_later(4 * SECONDS, exit=True)
        seen = watch.watch(lambda kind=kind, item=item: kind.read(item))
        faulthandler.cancel_dump_traceback_later()
        acts = () if kind.acts else seen.acts
        verdicts[seen.verdict] += 1
        if seen.verdict not in ("read", "refused") or acts:
          bad.append({"turn": turn, "verdict": seen.verdict, "what": seen.what, "acts": acts})
        slowest = max(slowest, (seen.seconds, f"{turn} {seen.what[:100]}"))
        largest = max(largest, seen.peak_bytes)
      report[name] = {
        "inputs": sum(verdicts.values()), **verdicts, "bad": bad,
        "slowest": slowest, "peak_bytes": largest,
      }  # fmt: skip
      out.write_text(json.dumps(report, indent=1))
    pwned = [*pathlib.Path(place).rglob("pwned"), *pathlib.Path().glob("pwned")]
  report["pwned"] = [str(path) for path in pwned]
  out.write_text(json.dumps(report, indent=1))
  return report


def guard_free(kind: Kind, item: Any) -> None:
  """Reads without being watched; errors are looked at later."""
  try:
    kind.read(item)
  except Exception:
    return


if __name__ == "__main__":
  parser = argparse.ArgumentParser()
  parser.add_argument("--count", type=int, default=300)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--only", action="append", default=[], choices=[*KINDS])
  given = parser.parse_args()
  faulthandler.enable()
  run(given.count, given.seed, given.out, given.only)
