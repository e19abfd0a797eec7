"""Job: the user study, simulated without people; and the material to run it with people."""

import csv
import functools
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import tqdm
from PIL import Image, ImageDraw, ImageFont

from sane_jax import checkpoint, files, forward_simulation, recognition, report, training
from sane_jax.datasets import load
from sane_jax.datasets.collection import Collection
from sane_jax.datasets.pipeline import DecodedImages
from sane_jax.forward_simulation import CONDITIONS, Estimate, Items, Material, Result
from sane_jax.report import tables as tables_lib
from sane_jax.report.page import overlay_activation
from sane_jax.report.tables import Interval, Table

_FIELDS = ("query_rows", "reference_rows", "scores", "saliency", "attribute_names")
_GAP, _LINE = 8, 22  # pixels between pictures, and of a caption


def run(config: Any) -> None:
  """Simulates the study on what evaluate left, and exports items to ask people.

  Writes WORKDIR/study: simulation.json, table.md, .csv and .tex, and export/ (`export_study`). What
  the simulation gives is a PROXY: see forward_simulation.
  """
  settings, workdir = config.study, pathlib.Path(config.workdir)
  test = load.load_split(config.data, workdir, "test")
  evaluation = workdir / config.evaluation.folder
  training.read_finished(evaluation, "evaluate")
  material_path = evaluation / "material.npz"
  arrays = read_material(material_path, test)
  identity = training.identity(
    test, study=settings, material=training.hash_file(material_path), seed=settings.key
  )
  folder = training.claim_folder(workdir / settings.folder, identity)
  if training.is_finished(folder):
    print(f"simulate_study: up to date in {folder}")
    return

  seen, broken = _decode(test, arrays, forward_simulation.PIXELS)
  material = material_of(arrays, seen)
  spread = float(np.std(material.scores[np.isfinite(material.scores)])) if len(seen) else 0.0
  rows = arrays["query_rows"], arrays["reference_rows"]
  keep = np.isin(rows[0], list(seen)) & np.isin(rows[1], list(seen))
  items = forward_simulation.draw_items(
    settings.key, material.queries, material.references, material.scores,
    num_items=settings.num_items, min_gap=settings.min_gap * (spread or 1.0),
  )  # fmt: skip
  with tqdm.tqdm(desc="students", unit="simulation", disable=None) as bar:

    def show(done: int, total: int) -> None:
      bar.total = total
      bar.update(done - bar.n)

    result = forward_simulation.simulate(
      settings.key, material, items, exchanges=settings.exchanges, on_progress=show
    )
  table = table_of(result)
  record = record_of(result)

  exported = forward_simulation.draw_items(
    settings.key + 1, material.queries, material.references, material.scores,
    num_items=max(settings.num_exported, 2 * forward_simulation.MIN_ITEMS),
    min_gap=items.min_gap,
  )  # fmt: skip
  exported = _some(exported, settings.num_exported, settings.key)
  large = {name: values[keep] for name, values in arrays.items() if name in _per_pair(arrays)}
  used = np.unique(exported.pairs)
  large = {name: values[used] for name, values in large.items()}
  large["attribute_names"] = arrays["attribute_names"]
  pictures, _ = _decode(test, large, settings.image_size)
  shown = exported._replace(pairs=np.searchsorted(used, exported.pairs))
  ids = {row: test.ids[row] for row in pictures}
  export_study(
    folder / "export", material_of(large, pictures), shown, key=settings.key,
    num_subjects=settings.num_subjects,
    image_ids=[ids[row] for row in sorted(pictures)],
  )  # fmt: skip
