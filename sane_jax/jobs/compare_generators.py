"""Job: compares saliency generators by insertion and deletion on the same pairs."""

import csv
import hashlib
import io
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
import tqdm

from sane_jax.datasets import photos as photos_lib
from sane_jax.maps import measure
from sane_jax.maps.curves import DRAWINGS, insertion_deletion
from sane_jax.maps.explainer import MODES, Explainer
from sane_jax.maps.explanation import Photo
from sane_jax.maps.generators import SMOOTH, parse_generator
from sane_jax.maps.tasks import check_generator
from sane_jax.models import fingerprint
from sane_jax.models import model as model_lib
from sane_jax.ops import fills
from sane_jax.ops.insertion_deletion import Curves, areas
from sane_jax.ops.statistics import mean
from sane_jax.runs import files, npz, processes
from sane_jax.runs import folder as run_folder
from sane_jax.runs.settings import check_choice

# Pairs between two saves.
GROUP = 16


class Row(NamedTuple):
  """One generator in one mode, seen against one background."""

  generator: str
  mode: str
  background: str
  drawing: str  # of maps of hard-edged cells, see `insertion_deletion`
  passes: float  # a pair, had it no neighbours to share masks with
  insertion: np.ndarray  # AUC × 100 of each pair
  deletion: np.ndarray


def check(config: Any) -> None:
  """Raises ValueError for settings that can't be; reads no data and writes nothing."""
  if not config.pairs_file:
    raise ValueError(
      "give the pairs: --config.pairs_file=FILE, a pair a line: query reference [label]"
    )
  if not (config.generators and config.modes and config.drawings):
    raise ValueError("give at least one generator, one mode and one drawing")
  for spec in config.generators:
    check_generator(spec)
  for mode in config.modes:
    check_choice("modes", mode, MODES)
  for background in config.backgrounds:
    fills.check_fill(background)
  for drawing in config.drawings:
    check_choice("drawings", drawing, DRAWINGS)
  check_choice("baseline", config.baseline or config.generators[0], config.generators)


def run(config: Any) -> None:
  """Explains the pairs with every generator and tabulates insertion and deletion AUC.

  What is finished is on disk, in files named by all that determines their content; a second run
  with the same settings, or more generators, measures only what is not there. By the first process
  alone.
  """
  check(config)
  if not processes.is_first():
    return
  folder = run_folder.writable_folder(files.at(config.workdir) / "generators")
  model = model_lib.load_model(config.model, image_size=config.image_size)
  specs = [parse_generator(spec) for spec in config.generators]
  explainers = {
    (spec, mode): Explainer(model, design=name, mode=mode, key=config.seed, **options)
    for spec, (name, options) in zip(config.generators, specs, strict=True)
    for mode in config.modes
    if name != "random" or mode == "fixed"  # noise is the same whatever is perturbed
  }
  first = next(iter(explainers.values()))
  pairs, problems = _pairs(config, first)
  known_as = fingerprint.recognise(folder, first.fingerprint())
  known: dict[bytes, int] = {}
  queries = np.array([known.setdefault(query.pixels.tobytes(), len(known)) for query, _ in pairs])
  if len(known) < 2:
    raise ValueError(f"{config.pairs_file} gave one readable query; intervals need 2 or more")
  baseline = config.baseline or config.generators[0]
  rows: list[Row] = []
  total = len(pairs) * len(explainers)
  with tqdm.tqdm(total=total, unit="pair", desc="evaluating", disable=None) as bar:
    for (spec, mode), explainer in explainers.items():
      bar.set_postfix_str(f"{spec}, {mode}")
      rows += _measure(config, explainer, known_as, spec, mode, pairs, folder, bar)
      _write(config, folder, rows, queries, baseline, problems)
  print(f"{len(pairs)} pairs, {len(problems)} left out. Open {folder / 'table.md'}")


def _pairs(config: Any, explainer: Explainer) -> tuple[list[tuple[Photo, Photo]], list[str]]:
  """Readable pairs, those of one query together: they share its masks."""
  found, problems = photos_lib.read_pairs(config.pairs_file, folder=config.pairs_folder or None)
  by_query: dict[Any, list[Any]] = {}
  for pair in found:
    by_query.setdefault(pair.query, []).append(pair)
  order = np.random.default_rng(config.seed).permutation(len(by_query))
  queries = list(by_query)
  photos: dict[Any, Photo] = {}
  pairs: list[tuple[Photo, Photo]] = []
  for index in order:
    for pair in by_query[queries[index]]:
      if len(pairs) >= config.max_pairs:
        return pairs, problems
      try:
        for path in (pair.query, pair.reference):
          if path not in photos:
            photos[path] = explainer.photo(path)
        pairs.append((photos[pair.query], photos[pair.reference]))
      except (ValueError, OSError) as error:
        problems.append(str(error))
  if len(pairs) < 2:
    raise ValueError(
      f"{config.pairs_file} gave {len(pairs)} readable pairs; intervals need 2 or more"
    )
  return pairs, problems


def _measure(config, explainer, known_as, spec, mode, pairs, folder, bar) -> list[Row]:
  # What is smooth anyway is judged once.
  drawings = [d for d in config.drawings if d == "smooth" or parse_generator(spec)[0] not in SMOOTH]
  cases = [(b, d) for b in config.backgrounds for d in drawings or ["smooth"]]
  results: dict[tuple[str, str], list[dict[str, np.ndarray]]] = {case: [] for case in cases}
  passes: list[float] = []
  effects: dict[bytes, Any] = {}
  for begin in range(0, len(pairs), GROUP):
    group = pairs[begin : begin + GROUP]
    explanations = None
    for background, drawing in cases:
      what = [explainer.settings, measure.VERSION, known_as, background]
      if drawing == "smooth" and parse_generator(spec)[0] not in SMOOTH:
        what.append(drawing)  # files of maps as they are keep their names
      digest = hashlib.sha256(json.dumps(what).encode())
      for photo in (p for pair in group for p in pair):
        digest.update(photo.pixels.tobytes())
      path = folder / "curves" / f"{digest.hexdigest()[:32]}.npz"
      arrays = npz.read_arrays(path)
      if arrays is None:
        if explanations is None:
          explanations = _explain(explainer, group, effects)
        curves = insertion_deletion(explainer, explanations, background=background, drawing=drawing)
        spent = [e.encoder_passes for e in explanations]
        arrays = {**curves._asdict(), "passes": np.asarray(spent)}
        npz.write_arrays(path, arrays)
      passes += arrays.pop("passes").tolist()
      results[background, drawing].append(areas(Curves(**arrays)))
    bar.update(len(group))
  spent = float(np.mean(passes))
  rows = []
  for (background, drawing), parts in results.items():
    scores = [np.concatenate([a[kind] for a in parts]) for kind in ("insertion", "deletion")]
    rows.append(Row(spec, mode, background, drawing, spent, *scores))
  return rows


def _explain(explainer: Explainer, group, effects):
  if not explainer.has_effects:
    return explainer.explain_pairs(group)
  out = []
  for query, reference in group:
    key = query.pixels.tobytes()
    if key not in effects:
      effects.clear()  # pairs come query by query
      effects[key] = explainer.effects(query)
    out.append(explainer.explain(effects[key], reference))
  return out


# --- the table ------------------------------------------------------------------------------------


def table(rows: list[Row], background: str, baseline: str, queries: np.ndarray) -> str:
  """Markdown table of the rows seen against one background.

  Intervals are of 95 %, over queries with all their pairs. The last three columns are paired
  differences to the generator `baseline` in its first mode, drawn smoothly where it can be.
  """

  def cell(values: np.ndarray) -> str:
    value, low, high = mean(values, queries)
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"

  rows = [row for row in rows if row.background == background]
  floors = [row for row in rows if row.generator == baseline]
  floor = next((row for row in floors if row.drawing == "smooth"), floors[0] if floors else None)
  lines = [
    "| generator | perturbed | passes | insertion ↑ | deletion ↓ | insertion − deletion"
    f" | to {baseline}: insertion | deletion | insertion − deletion |",
    "| --- | --- | ---: | --- | --- | --- | --- | --- | --- |",
  ]
  for row in rows:
    cells = [row.insertion, row.deletion, row.insertion - row.deletion]
    above = ["–"] * 3
    if floor is not None and row is not floor:
      base = [floor.insertion, floor.deletion, floor.insertion - floor.deletion]
      above = [cell(a - b) for a, b in zip(cells, base, strict=True)]
    where = {"fixed": "query", "both": "both"}[row.mode]
    shown = " | ".join([*map(cell, cells), *above])
    hard = ", hard cells" if row.drawing == "cells" else ""
    lines.append(f"| {row.generator}{hard} | {where} | {row.passes:,.0f} | {shown} |")
  return "\n".join(lines)


def _write(
  config: Any,
  folder: pathlib.Path,
  rows: list[Row],
  queries,
  baseline: str,
  problems,
) -> None:
  settings = {k: config[k] for k in ("model", "image_size", "max_pairs")}
  settings["key"] = config.seed
  parts = [
    f"{len(queries)} pairs of {len(np.unique(queries))} queries, {config.model} at"
    f" {config.image_size} pixels. AUC × 100, mean over pairs with its 95 % bootstrap interval over"
    " queries; the last columns are paired. Passes: for one pair alone. Maps of hard-edged cells"
    " are judged drawn smoothly and, in rows that say so, as they are: deletion favours hard"
    " cells.\n"
  ]
  for background in config.backgrounds:
    parts.append(
      f"\nDeleted pixels become: {background}\n\n{table(rows, background, baseline, queries)}\n"
    )
  files.write_bytes(folder / "table.md", "".join(parts).encode())
  out = io.StringIO()
  writer = csv.writer(out)
  writer.writerow(
    ["generator", "mode", "background", "passes", "measure", "mean", "low", "high", "pairs",
     "drawing"]
  )  # fmt: skip
  for row in rows:
    for kind in ("insertion", "deletion"):
      values = getattr(row, kind)
      writer.writerow(
        [row.generator, row.mode, row.background, f"{row.passes:.0f}", kind,
         *(f"{v:.4f}" for v in mean(values, queries)), len(values), row.drawing]
      )  # fmt: skip
  files.write_bytes(folder / "table.csv", out.getvalue().encode())
  document = {
    "settings": settings,
    "left_out": problems,
    "rows": [
      {**row._asdict(), "insertion": row.insertion.tolist(), "deletion": row.deletion.tolist()}
      for row in rows
    ],
  }
  files.write_bytes(folder / "results.json", (json.dumps(document) + "\n").encode())
