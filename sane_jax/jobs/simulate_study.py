"""Job: the user study, simulated without people; and the material to ask people with."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tqdm

from sane_jax.datasets import collection as collection_lib
from sane_jax.datasets import load
from sane_jax.datasets.collection import Collection
from sane_jax.datasets.pipeline import DecodedImages
from sane_jax.report import tables
from sane_jax.report.tables import Table, percent
from sane_jax.runs import files, npz, processes
from sane_jax.runs import folder as run_folder
from sane_jax.runs.settings import check_range
from sane_jax.study import export, proxy
from sane_jax.study.proxy import ATTRIBUTES, CONDITIONS, Items, Material, Result

_PER_PAIR = (
  "query_rows", "reference_rows", "scores", "saliency",
  *(f"attribute_{name}" for name in ATTRIBUTES), *(f"activation_{name}" for name in ATTRIBUTES),
)  # fmt: skip
_DECODED = 64  # images at a time between steps of the bar


def check(config: Any) -> None:
  """Raises ValueError for settings that can't be; reads no data and writes nothing."""
  load.check_data(config.data)
  for name, least in (
    ("num_exported", 2), ("num_practice", 0), ("num_checks", 0), ("num_subjects", 1),
    ("image_size", 48), ("num_items", 1), ("exchanges", 1),
  ):  # fmt: skip
    check_range(f"study.{name}", config.study[name], least)
  if not config.study.min_gap > 0:
    raise ValueError(
      "--config.study.min_gap, in standard deviations of the scores, is above 0; given"
      f" {config.study.min_gap}"
    )


def run(config: Any) -> None:
  """Simulates the study on what evaluate left, and exports items to ask people with.

  Writes WORKDIR/study: simulation.json, table.md, table.csv, table.tex and export/ (see
  `export_study`). What the simulation gives is a PROXY: see `study.proxy`.
  """
  check(config)
  settings, workdir = config.study, files.at(config.workdir)
  evaluation = workdir / config.evaluation.folder
  run_folder.read_finished(evaluation, "evaluate")
  test = load.load_split(config.data, workdir, "test")
  arrays = read_material(evaluation / "material.npz", test)
  identity = run_folder.identity(
    collection_lib.fingerprint(test),
    study={"key": settings.seed, **{name: settings[name] for name in export.FIXED}},
    material=run_folder.hash_file(evaluation / "material.npz"),
  )  # fmt: skip
  # What can't be drawn is said before the folder is this run's.
  _draw(settings, arrays["query_rows"], arrays["reference_rows"], arrays["scores"])
  folder = run_folder.claim_folder(workdir / settings.folder, identity)
  if run_folder.up_to_date(folder, "simulate_study") or not processes.is_first():
    return

  small, _, kept, broken = load_images(arrays, test, proxy.PIXELS)
  for line in broken:
    print(f"  left out: {line}")
  pairs = (small.queries, small.references, small.scores)
  items = _draw(settings, *pairs)
  with tqdm.tqdm(desc="students", unit="simulation", disable=None) as bar:

    def show(done: int, total: int) -> None:
      bar.total = total
      bar.update(done - bar.n)

    result = proxy.simulate(
      settings.seed, small, items, exchanges=settings.exchanges, on_progress=show
    )
  tables.write(folder, {"table": make_table(result)}, "table.md")
  record = make_record(result)
  text = json.dumps({**record, "left_out": broken}, indent=1, allow_nan=False) + "\n"
  files.write_bytes(folder / "simulation.json", text.encode())

  questions = export.draw_export(
    settings.seed + 1, *pairs, count=settings.num_exported, min_gap=items.min_gap,
    num_practice=settings.num_practice, num_checks=settings.num_checks,
  )  # fmt: skip
  used = np.unique(questions.pairs())
  large, rows, _, _ = load_images(_take(arrays, kept[used]), test, settings.image_size)
  export.export_study(
    folder / "export", large, questions.renumbered(used), key=settings.seed,
    num_subjects=settings.num_subjects, image_names=[test.ids[row] for row in rows],
  )  # fmt: skip
  run_folder.finish(
    folder, {"proxy": True, "accuracy": {n: c["accuracy"] for n, c in record["conditions"].items()}}
  )
  print(f"simulate_study: a PROXY, no people were asked: {len(items.answers)} items a condition.")
  for name, condition in CONDITIONS.items():
    value, low, high = (100 * x for x in proxy.accuracy(result, name))
    print(f"  {condition.title}: {value:.1f} % right [{low:.1f}, {high:.1f}]")
  print(
    f"Open {folder / 'table.md'}. Ask people: --config.job=study serves {folder / 'export'};"
    f" {export.README} there says how to do without"
  )


def _draw(
  settings: Any, queries: np.ndarray, references: np.ndarray, scores: np.ndarray
) -> Items:  # fmt: skip
  """Items of pairs, their gap in the scores' own unit."""
  finite = scores[np.isfinite(scores)]
  spread = float(finite.std()) if len(finite) else 0.0
  return proxy.draw_items(
    settings.seed, queries, references, scores,
    num_items=settings.num_items, min_gap=settings.min_gap * (spread or 1.0),
  )  # fmt: skip


# --- material -------------------------------------------------------------------------------------


def read_material(path: pathlib.Path, test: Collection) -> dict[str, np.ndarray]:
  """What evaluate wrote for this job.

  Raises:
    ValueError: it is missing, damaged, or of other data; says what to run.
  """
  again = f"remove {path.parent} and run --config.job=evaluate"
  arrays = npz.read_arrays(path)
  if arrays is None:
    what = "can't be read" if path.exists() else "is missing"
    raise ValueError(f"{path} {what}; {again}")
  missing = sorted({*_PER_PAIR, "attribute_names"} - set(arrays))
  if missing:
    raise ValueError(f"{path} has no {', '.join(missing)}; {again}")
  if len({len(arrays[name]) for name in _PER_PAIR}) > 1:
    counts = ", ".join(f"{name} {len(arrays[name])}" for name in _PER_PAIR)
    raise ValueError(f"{path} disagrees on how many pairs there are: {counts}; {again}")
  ends = np.concatenate([arrays["query_rows"], arrays["reference_rows"]])
  names = tuple(map(str, arrays["attribute_names"]))
  if names != test.attribute_names or (
    len(ends) and not 0 <= ends.min() <= ends.max() < len(test.ids)
  ):
    raise ValueError(
      f"{path} is of other data than {test.name}, with {len(test.ids)} images and"
      f" {len(test.attribute_names)} attributes; {again}"
    )
  return arrays


def load_images(
  arrays: Mapping[str, np.ndarray], test: Collection, size: int
) -> tuple[Material, np.ndarray, np.ndarray, list[str]]:
  """The pairs whose images can be read, with images at `size` pixels.

  Returns:
    The material; which row of the split each of its images is [n]; which of the given pairs its
    pairs are; and the images left out, each with the reason.
  """
  rows = np.unique(np.concatenate([arrays["query_rows"], arrays["reference_rows"]]))
  decoded = DecodedImages(test, size, fast=True)
  images = np.zeros((len(rows), size, size, 3), np.uint8)
  valid = np.zeros(len(rows), bool)
  with tqdm.tqdm(total=len(rows), desc="images", unit="image", disable=None) as bar:
    for start in range(0, len(rows), _DECODED):
      part = slice(start, start + _DECODED)
      images[part], valid[part] = decoded.stack(rows[part])
      bar.update(len(rows[part]))
  rows, images = rows[valid], images[valid]
  kept = np.flatnonzero(
    np.isin(arrays["query_rows"], rows) & np.isin(arrays["reference_rows"], rows)
  )
  of = _take(arrays, kept)
  material = Material(
    images=images,
    queries=np.searchsorted(rows, of["query_rows"]),
    references=np.searchsorted(rows, of["reference_rows"]),
    scores=of["scores"],
    saliency=of["saliency"],
    attributes={name: of[f"attribute_{name}"] for name in ATTRIBUTES},
    activations={name: of[f"activation_{name}"] for name in ATTRIBUTES},
    attribute_names=tuple(map(str, of["attribute_names"])),
  )
  return material, rows, kept, [f"{name}: {why}" for name, why in sorted(decoded.broken.items())]


def _take(arrays: Mapping[str, np.ndarray], pairs: np.ndarray) -> dict[str, np.ndarray]:
  taken = {name: arrays[name][pairs] for name in _PER_PAIR}
  return {**taken, "attribute_names": arrays["attribute_names"]}


# --- what came out --------------------------------------------------------------------------------


def make_table(result: Result) -> Table:
  """A row a condition."""
  rows = []
  for name, condition in CONDITIONS.items():
    controlled = name in result.control
    rows.append((
      condition.title,
      percent(*proxy.accuracy(result, name)),
      None if name == "nothing" else percent(*proxy.gain(result, name, "nothing")),
      None if name == "sane" else percent(*proxy.gain(result, "sane", name)),
      percent(*proxy.accuracy(result, name, control=True)) if controlled else None,
      f"{proxy.p_value(result, name):.2f}" if controlled else None,
    ))  # fmt: skip
  rows.append((
    "no image, the warmer map wins", percent(*proxy.balance_accuracy(result)), None,
    percent(*proxy.gain_over_balance(result, "sane")), None, None,
  ))  # fmt: skip
  items = result.items
  return Table(
    title="Forward simulation, a proxy for the user study",
    note=(
      "PROXY: no person was asked. A small fixed student that sees colours, edges and the"
      " explanations says which of two pairs the model scores higher; % of"
      f" {len(items.answers)} items whose scores are at least {items.min_gap:.3g} apart, half of"
      " them left; chance is 50. It learned from items without any of these images. 95 % bootstrap"
      f" intervals over {len(np.unique(items.blocks))} blocks of queries, of the draw of items and"
      " not of what the student learned; comparisons are paired. Exchanged: with explanations of"
      " other pairs; p: that a pair's own are worth no more than those. Last, a control: a signed"
      " map's sum gives part of the score away, without a look at image or place."
    ),
    columns=(
      "shown", "right, % ↑", "more than with nothing", "SANE, more than this", "exchanged, %", "p",
    ),
    rows=tuple(rows),
  )  # fmt: skip


def make_record(result: Result) -> dict[str, Any]:
  """All that came out, for programs: shares, not %."""
  items, conditions = result.items, {}
  for name, condition in CONDITIONS.items():
    each: dict[str, Any] = {
      "shown": condition.title,
      "accuracy": proxy.accuracy(result, name)._asdict(),
      "heeds_maps_and_names": result.weights[name],
      "gain": {
        than: proxy.gain(result, name, than)._asdict() for than in CONDITIONS if than != name
      },
    }
    if name in result.control:
      each["exchanged"] = proxy.accuracy(result, name, control=True)._asdict()
      each["own_gain"] = proxy.own_gain(result, name)._asdict()
      each["p"] = proxy.p_value(result, name)
    conditions[name] = each
  return {
    "proxy": True,
    "note": "a small fixed student answered; no person was asked",
    "items": len(items.answers),
    "blocks": len(np.unique(items.blocks)),
    "min_gap": items.min_gap,
    "left": float(np.mean(items.answers == 0)),
    # Of the maps alone: the pair whose map is warmer.
    "balance": proxy.balance_accuracy(result)._asdict(),
    "map_gain_over_balance": proxy.gain_over_balance(result, "map")._asdict(),
    "conditions": conditions,
  }
