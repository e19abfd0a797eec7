"""The text files of Animals with Attributes 2, each as published, to plain values.

Every function takes a file's bytes and its place, for messages, and raises ValueError where the
file is wrong.
"""

import csv
import io
import os
from typing import NamedTuple

import numpy as np

from sane_jax.datasets.sources import parse_lines
from sane_jax.runs import files

CLASSES, PREDICATES = "classes.txt", "predicates.txt"
BINARY, CONTINUOUS = "predicate-matrix-binary.txt", "predicate-matrix-continuous.txt"
HOME = "https://cvml.ista.ac.at/AwA2"


class Predicates(NamedTuple):
  """What is known of each class."""

  classes: tuple[str, ...]  # [k]
  predicates: tuple[str, ...]  # [a]
  binary: np.ndarray  # [k a] bool
  continuous: np.ndarray | None  # [k a] float32, 0 to 100, NaN where it is missing


def read_predicates(folder: str | os.PathLike[str]) -> Predicates:
  """The classes' predicates, from a folder in AwA2's layout.

  Raises:
    ValueError: a file is missing or wrong. predicate-matrix-continuous.txt alone may be missing.
  """
  texts: dict[str, bytes] = {}
  for name in (CLASSES, PREDICATES, BINARY, CONTINUOUS):
    path = files.at(folder) / name
    try:
      texts[name] = files.read_bytes(path)
    except OSError as error:
      if name != CONTINUOUS:
        raise ValueError(
          f"{path}: can't be read ({error.strerror}); get it from {HOME} and put it there"
        ) from error
  return parse_predicates(texts, {name: str(files.at(folder) / name) for name in texts})


def parse_predicates(texts: dict[str, bytes], places: dict[str, str]) -> Predicates:
  """The same from the files' contents and places, by name."""
  classes = parse_names(texts[CLASSES], places[CLASSES])
  predicates = parse_names(texts[PREDICATES], places[PREDICATES])
  shape = len(classes), len(predicates)
  binary = parse_matrix(texts[BINARY], places[BINARY], shape)
  if not np.isin(binary, (0, 1)).all():
    row, column = np.argwhere(~np.isin(binary, (0, 1)))[0]
    raise ValueError(
      f"{places[BINARY]}:{row + 1}: {binary[row, column]:g} in column {column + 1}; it holds 0 and"
      f" 1 alone. Download it again from {HOME}"
    )
  continuous = None
  if CONTINUOUS in texts:
    continuous = parse_matrix(texts[CONTINUOUS], places[CONTINUOUS], shape)
    continuous[continuous < 0] = np.nan  # -1.00: nobody was asked
  return Predicates(classes, predicates, binary.astype(bool), continuous)


def parse_names(data: bytes, place: str) -> tuple[str, ...]:
  """Lines such as '     1<tab>antelope', numbered from 1 without a gap."""
  names = []
  for number, line in enumerate(parse_lines(data), start=1):
    index, _, name = line.partition("\t" if "\t" in line else " ")
    if index.strip() != str(number) or not name.strip():
      raise ValueError(
        f"{place}:{number}: {line[:60]!r} where the number {number}, a tab and a name are expected"
      )
    names.append(name.strip())
  if not names or len(set(names)) != len(names):
    raise ValueError(f"{place}: no names in it, or one of them twice; download it again")
  return tuple(names)


def parse_matrix(data: bytes, place: str, shape: tuple[int, int]) -> np.ndarray:
  """A row a class, a column a predicate: float32 of that shape."""
  lines = parse_lines(data)
  if len(lines) != shape[0]:
    raise ValueError(
      f"{place}: {len(lines)} rows, but {CLASSES} names {shape[0]} classes; take both from one"
      " release"
    )
  rows = []
  for number, line in enumerate(lines):
    fields = line.split()
    if len(fields) != shape[1]:
      raise ValueError(
        f"{place}:{number + 1}: {len(fields)} numbers, but {PREDICATES} names {shape[1]}"
        " predicates; take both from one release"
      )
    try:
      rows.append(np.array([float(field) for field in fields], np.float32))
    except ValueError as error:
      raise ValueError(f"{place}:{number + 1}: {error}; download it again") from error
  return np.array(rows, np.float32).reshape(shape)


def parse_class_list(data: bytes, place: str, classes: tuple[str, ...]) -> tuple[str, ...]:
  """trainclasses.txt or testclasses.txt: a class a line."""
  names = tuple(line for line in parse_lines(data) if line)
  for number, name in enumerate(names, start=1):
    if name not in classes:
      raise ValueError(f"{place}:{number}: {name!r} is no class of {CLASSES}; correct the name")
  return names


def parse_items(data: bytes, place: str) -> dict[str, dict[str, str]]:
  """items.csv: what is known of single photos, by column and by the photo's path in the folder.

  The column `file` holds the path, such as 'JPEGImages/hat/hat_10001.jpg'.
  """
  reader = csv.DictReader(io.StringIO("\n".join(parse_lines(data)), newline=""), restval="")
  try:
    columns = [column.strip() for column in reader.fieldnames or ()]
    if "file" not in columns:
      raise ValueError(f"{place}:1: no column 'file' among {', '.join(columns)[:500] or 'none'}")
    reader.fieldnames = columns
    items: dict[str, dict[str, str]] = {column: {} for column in columns if column != "file"}
    for row in reader:
      for column, values in items.items():
        values[row["file"].strip()] = row[column].strip()
  except csv.Error as error:
    raise ValueError(f"{place}: {error}, after line {reader.line_num}") from error
  return items


def split_of(name: str, position: int, count: int, train: set[str], test: set[str]) -> str:
  """The standard split of the `position`-th of a class's `count` photos, in order of their names.

  Photos of test classes are 'test'. Of each training class the last 20 are 'valid', or the last
  quarter where there are fewer than 80; the others are 'train'. Of a class in neither list: ''.
  """
  if name in test:
    return "test"
  if name not in train:
    return ""
  valid = 20 if count >= 80 else count // 4
  return "valid" if position >= count - valid else "train"
