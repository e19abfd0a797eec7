"""The questions: an export of simulate_study without its key, and the plan for each participant.

The server is blind: it knows conditions only as letters.
"""

import csv
import hashlib
import io
import itertools
import json
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image

from sane_jax.ops import streams
from sane_jax.study.server.store import KINDS, Newcomer, Place

DESIGNS = ("within", "between")
_AGAIN = "run --config.job=simulate_study again (it goes on with what is missing)"
_MOST_BYTES = 2 << 30  # of pictures, which are held in memory
_COLUMNS = ("item", "file", "kind", "group", "map", "attribute_a", "attribute_b")


class Picture(NamedTuple):
  """A PNG."""

  data: bytes
  width: int
  height: int


class Shown(NamedTuple):
  """The two pictures of a file, and what is shown with them."""

  pictures: tuple[Picture, Picture]  # A and B
  map: bool
  attributes: tuple[str, str]  # names, '' for none


class Example(NamedTuple):
  """For the instructions: four pictures and the name of an attribute."""

  first: Picture
  second: Picture
  map: Picture
  attribute: Picture
  name: str


class Questions(NamedTuple):
  """An export.

  Attributes:
    items: of each kind, in an order of their own.
    files: item -> group -> file; the group of a check is ''.
    groups: letters of the conditions.
    shown: by file.
    answers: of practice, A or B by item; of nothing else.
    example: for the instructions.
    fingerprint: of all that was read.
  """

  items: Mapping[str, tuple[str, ...]]
  files: Mapping[str, Mapping[str, str]]
  groups: tuple[str, ...]
  shown: Mapping[str, Shown]
  answers: Mapping[str, str]
  example: Example
  fingerprint: str


def read_export(folder: pathlib.Path) -> Questions:
  """Reads and checks all that may be shown. Of key/ it opens the fingerprint alone.

  Raises:
    ValueError: something is missing, damaged, or not of this export; says what to do.
  """
  mark = _read(folder, "fingerprint.json")
  try:
    expected = {name: str(value) for name, value in json.loads(mark).items()}
    wanted = {name: expected[name] for name in ("items", "practice", "pictures")}
  except (ValueError, KeyError, AttributeError) as error:
    raise ValueError(f"{folder / 'fingerprint.json'} is damaged; {_AGAIN}") from error
  key = folder / "key" / "fingerprint.json"
  if key.exists() and key.read_bytes() != mark:
    raise ValueError(
      f"key file mismatch: {key} is not of the same export as {folder / 'fingerprint.json'}. Put"
      " the key there that was written with these items, or move this one away: the study itself"
      " needs none"
    )
  texts = {name: _read(folder, f"{name}.csv") for name in ("items", "practice")}
  for name, text in texts.items():
    if hashlib.sha256(text).hexdigest() != wanted[name]:
      raise ValueError(f"{folder / name}.csv was changed after it was exported; {_AGAIN}")
  rows = _rows(folder / "items.csv", texts["items"])
  practice = csv.DictReader(io.StringIO(texts["practice"].decode("utf-8")))
  answers = {row["item"]: row["answer"] for row in practice}

  items: dict[str, list[str]] = {kind: [] for kind in KINDS}
  of: dict[str, dict[str, str]] = {}
  shown: dict[str, Shown] = {}
  digest, size = hashlib.sha256(), 0
  for row in rows:
    if row["item"] not in of:
      items[row["kind"]].append(row["item"])
    of.setdefault(row["item"], {})[row["group"]] = row["file"]
    pair = []
    for side in "ab":
      picture = _picture(folder, f"items/{row['item']}/{row['file']}_{side}.png")
      digest.update(picture.data)
      size += len(picture.data)
      pair.append(picture)
    if size > _MOST_BYTES:
      raise ValueError(
        f"the pictures of {folder} have more than {_MOST_BYTES >> 30} GB, which are kept in memory;"
        " lower --config.study.num_exported or --config.study.image_size"
      )
    names = (row["attribute_a"], row["attribute_b"])
    shown[row["file"]] = Shown((pair[0], pair[1]), row["map"] == "1", names)
  if digest.hexdigest() != wanted["pictures"]:
    raise ValueError(f"pictures of {folder / 'items'} were changed after the export; {_AGAIN}")
  groups = tuple(sorted({row["group"] for row in rows if row["kind"] == "item"}))
  name = _read(folder, "example/attribute.txt").decode("utf-8").strip()
  pictures = [_picture(folder, f"example/{n}.png") for n in ("first", "second", "map", "attribute")]
  return Questions(
    {kind: tuple(names) for kind, names in items.items()}, of, groups, shown, answers,
    Example(*pictures, name=name), hashlib.sha256(mark).hexdigest()[:16],
  )  # fmt: skip


def _rows(path: pathlib.Path, text: bytes) -> list[dict[str, str]]:
  reader = csv.DictReader(io.StringIO(text.decode("utf-8")))
  rows = list(reader)
  if missing := sorted(set(_COLUMNS) - set(reader.fieldnames or ())):
    raise ValueError(f"{path} has no column {', '.join(missing)}: it is of an older version")
  if not any(row["kind"] == "item" for row in rows):
    raise ValueError(f"{path} has no items")
  return rows


def _read(folder: pathlib.Path, name: str) -> bytes:
  try:
    return (folder / name).read_bytes()
  except OSError as error:
    what = "is missing" if isinstance(error, FileNotFoundError) else f"can't be read ({error})"
    raise ValueError(f"{folder / name} {what}; {_AGAIN}") from error


def _picture(folder: pathlib.Path, name: str) -> Picture:
  data = _read(folder, name)
  try:
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
      return Picture(data, *image.size)
  except OSError as error:
    raise ValueError(f"{folder / name} is no picture ({error}); {_AGAIN}") from error


# --- who is asked what ----------------------------------------------------------------------------


def count_items(questions: Questions, wanted: int | None) -> int:
  """Items for each participant.

  Raises:
    ValueError: there are fewer.
  """
  there = len(questions.items["item"])
  if wanted is None:
    return there
  if not 1 <= wanted <= there:
    raise ValueError(
      f"--config.study.items_per_subject is 1 to {there}, as many as are exported; given {wanted}"
    )
  return wanted


def make_plan(questions: Questions, design: str, count: int, slot: int, subject: int) -> Newcomer:
  """The questions of the participant in a slot.

  Slots form blocks of five, one per condition. `within`: the five see the same items, each under
  another condition, so each block shows each item under each condition (a Latin square).
  `between`: each of the five sees all items under one condition; the order of conditions is
  sampled anew for each block. Where participants see fewer items than there are, the next block
  starts where this one stops. The store assigns slots: the lowest that is free.

  Args:
    design: within or between.
    count: items for each participant.
    slot: from 0.
    subject: seeds the order.
  """
  seed = int(questions.fingerprint, 16)
  groups, size = questions.groups, len(questions.groups)
  block, turn = divmod(slot, size)
  items = streams.rng(seed, streams.SERVER_ITEMS).permutation(questions.items["item"]).tolist()
  if design == "between":
    group = str(streams.rng(seed, streams.SERVER_GROUPS, block).permutation(groups)[turn])
    of, cell = (lambda _: group), group
  else:
    of, cell = (lambda number: groups[(number + turn) % size]), f"turn {turn + 1}"
  numbers = [(block * count + place) % len(items) for place in range(count)]

  rng = streams.rng(seed, streams.SERVER_ORDER, subject)
  asked = [("item", items[n], questions.files[items[n]][of(n)]) for n in rng.permutation(numbers)]
  checks = [
    ("check", str(item), questions.files[item][""])
    for item in rng.permutation(questions.items["check"])
  ]
  for place, check in zip(check_places(seed, count, len(checks)), checks, strict=True):
    asked.insert(place, check)
  practice = [
    ("practice", item, questions.files[item][of(number)])
    for number, item in enumerate(questions.items["practice"])
  ]
  practice = [practice[n] for n in rng.permutation(len(practice))]
  places = [Place(number, *each) for number, each in enumerate([*practice, *asked], 1)]
  return Newcomer(slot, cell, places)


def check_places(seed: int, count: int, checks: int) -> list[int]:
  """Places of the attention checks among `count` items: one in each of `checks` equal parts."""
  edges = np.linspace(0, count + checks, checks + 1).astype(int)
  rng = streams.rng(seed, streams.SERVER_CHECKS)
  return [int(rng.integers(low, high)) for low, high in itertools.pairwise(edges)]
