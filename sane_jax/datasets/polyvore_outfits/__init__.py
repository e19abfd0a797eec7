"""Polyvore Outfits (Vasileva et al., Learning Type-Aware Embeddings, ECCV 2018)."""

import os
from pathlib import Path

import numpy as np

from sane_jax.datasets import records
from sane_jax.datasets.collection import Collection, Compatibility, Pair, Question
from sane_jax.datasets.polyvore_outfits.builder import SETTINGS, SPLITS, PolyvoreOutfits, layout

__all__ = ["SETTINGS", "SPLITS", "PolyvoreOutfits", "load"]


def load(
  split: str,
  *,
  manual_dir: str | os.PathLike[str],
  prepared_dir: str | os.PathLike[str],
  setting: str = "nondisjoint",
  on_progress: records.Progress | None = None,
) -> Collection:
  """One split: rows are the items of its outfits that have a photo, groups the outfits.

  The first call checks every photo and writes all splits to `prepared_dir`; so does the first one
  after the files changed. Copies with some photos missing serve: what needs a missing item is left
  out, and counted in `left_out`.

  Args:
    split: 'train', 'valid' or 'test'.
    manual_dir: holds `polyvore_outfits/` or its archive, as published.
    prepared_dir: any folder that can be written.
    setting: 'nondisjoint'; 'disjoint', where no item is in two splits.
    on_progress: called with images done and images in all, while preparing.

  Raises:
    ValueError: an argument is none of these, or something is wrong with the files.
    OSError: prepared_dir can't be written.
  """
  if split not in SPLITS or setting not in SETTINGS:
    raise ValueError(
      f"split is one of {', '.join(SPLITS)}, setting one of {', '.join(SETTINGS)}; given"
      f" {split!r} and {setting!r}"
    )

  def make(folder: Path) -> PolyvoreOutfits:
    return PolyvoreOutfits(config=setting, data_dir=folder)

  directory = records.prepare(make, layout(setting), manual_dir, prepared_dir, on_progress)
  table = records.read_table(directory, split)
  return Collection(
    name=f"polyvore_outfits/{setting}/{split}",
    images=records.Images(directory, [split]),
    ids=tuple(table["ids"]),
    types=np.array(table["types"], np.int32),
    type_names=tuple(table["type_names"]),
    conditions=np.array(table["conditions"], np.int32),
    groups=records.rows_of(table["groups"]),
    group_names=tuple(table["group_names"]),
    attribute_names=tuple(table["attribute_names"]),
    attributes=records.rows_of(table["attributes"]),
    titles=tuple(table["titles"]),
    questions=tuple(
      Question(np.array(items, np.int32), np.array(answers, np.int32), right)
      for items, answers, right in table["questions"]
    ),
    compatibility=tuple(
      Compatibility(np.array(items, np.int32), label) for items, label in table["compatibility"]
    ),
    pairs=tuple(Pair(*pair) for pair in table["pairs"]),
    left_out=tuple(table["left_out"]),
  )
