"""Animals with Attributes 2 (Xian et al., Zero-Shot Learning, PAMI 2018), and its layout."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sane_jax.datasets import records
from sane_jax.datasets.awa2.builder import ITEMS, LAYOUT, SPLITS, Awa2
from sane_jax.datasets.awa2.formats import Predicates, read_predicates
from sane_jax.datasets.collection import Collection, Pair

__all__ = ["SPLITS", "Awa2", "Predicates", "load", "read_predicates"]


def load(
  split: str,
  *,
  manual_dir: str | os.PathLike[str],
  prepared_dir: str | os.PathLike[str],
  split_column: str | None = None,
  attribute_columns: Sequence[str] = (),
  on_progress: records.Progress | None = None,
) -> Collection:
  """One split: rows are photos, groups the classes with two or more.

  The standard splits: 'test' holds the test classes; 'valid' the last 20 photos (in order of their
  names; a quarter where there are fewer than 80) of each training class; 'train' its others. A
  photo's attributes are the binary predicates of its class.

  The first call checks every photo and writes all splits to `prepared_dir`; so does the first one
  after the files changed. Copies with some photos missing serve.

  Args:
    split: 'train', 'valid' or 'test'.
    manual_dir: holds `Animals_with_Attributes2/` or its archives, as published; or is a folder in
      that layout, with classes of your own.
    prepared_dir: any folder that can be written.
    split_column: a column of `items.csv` in that folder with the split of each photo, in place of
      the standard one.
    attribute_columns: columns of it whose values are attributes of single photos, named such as
      'auto_color=green'; an empty value is none.
    on_progress: called with images done and images in all, while preparing.

  Raises:
    ValueError: an argument is none of these, or something is wrong with the files.
    OSError: prepared_dir can't be written.
  """
  if split not in SPLITS:
    raise ValueError(f"split is one of {', '.join(SPLITS)}; given {split!r}")
  if isinstance(attribute_columns, str):
    attribute_columns = (attribute_columns,)

  def make(folder: Path) -> Awa2:
    return Awa2(data_dir=folder)

  directory = records.prepare(make, LAYOUT, manual_dir, prepared_dir, on_progress)
  table = records.read_table(directory, "photos")
  left_out: list[str] = list(table["left_out"])
  splits = table["splits"]
  if split_column is not None:
    splits = _column(table, split_column)
    if (unknown := sum(value not in SPLITS for value in splits)) == len(splits):
      raise ValueError(
        f"{ITEMS}: column {split_column!r} holds {splits[0]!r} and the like; it is to hold"
        f" {', '.join(SPLITS)}"
      )
    if unknown:
      left_out.append(f"{ITEMS}: {unknown:,} photos without a split in column {split_column!r}")
  elif unknown := sum(value not in SPLITS for value in splits):
    left_out.append(f"classes: {unknown:,} photos of classes neither for training nor for testing")
  rows = np.flatnonzero([value == split for value in splits])
  position = {int(row): i for i, row in enumerate(rows)}  # in the collection, by record

  names, attributes = list(table["predicates"]), []
  labels = {name: i for i, name in enumerate(table["classes"])}
  classes = np.array([labels[name.split("/")[1]] for name in table["files"]], np.int32)[rows]
  values = {column: _column(table, column) for column in dict.fromkeys(attribute_columns)}
  index = {}
  for column, cells in values.items():
    for value in sorted(set(cells) - {""}):
      index[column, value] = len(names)
      names.append(f"{column}={value}")
  for row, label in zip(rows, classes, strict=True):
    own = [index[c, cells[row]] for c, cells in values.items() if cells[row]]
    attributes.append([*table["class_attributes"][label], *own])

  groups = {
    name: members
    for label, name in enumerate(table["classes"])
    if len(members := np.flatnonzero(classes == label)) > 1
  }
  pairs = []
  for listed in table["pairs"]:
    if listed["split"] in ("", split):
      found = [
        Pair(position[q], position[r], label)
        for q, r, label in listed["pairs"]
        if q in position and r in position
      ]
      pairs += found
      if lost := len(listed["pairs"]) - len(found):
        left_out.append(f"{listed['file']}: {lost:,} pairs have a photo of another split")
  return Collection(
    name=f"awa2/{split}",
    images=records.Images(directory, dict.fromkeys(table["splits"]), rows),
    ids=tuple(table["ids"][row] for row in rows),
    types=np.zeros(len(rows), np.int32),
    type_names=("photo",),
    conditions=np.zeros((1, 1), np.int32),
    groups=records.rows_of(groups.values()),
    group_names=tuple(groups),
    attribute_names=tuple(names),
    attributes=records.rows_of(attributes),
    titles=("",) * len(rows),
    questions=(),
    compatibility=(),
    pairs=tuple(pairs),
    left_out=tuple(left_out),
  )


def _column(table: dict[str, Any], column: str) -> list[str]:
  """A value for each record.

  Raises:
    ValueError: there is no such column.
  """
  if column not in table["columns"]:
    known = ", ".join(table["columns"]) or f"none: put an {ITEMS} into the folder"
    raise ValueError(f"{ITEMS}: no column {column!r}; there is {known}")
  return table["columns"][column]
