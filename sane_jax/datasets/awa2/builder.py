"""TFDS builder of Animals with Attributes 2, and of any folder in its layout."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from sane_jax.datasets import records, sources
from sane_jax.datasets.awa2 import formats
from sane_jax.datasets.photos import PHOTO_SUFFIXES

SPLITS = ("train", "valid", "test")
OTHER = "other"  # photos of classes in neither list; a split where there are any
ITEMS = "items.csv"
_LISTS = ("trainclasses.txt", "testclasses.txt")
_TEXTS = {formats.CLASSES, formats.PREDICATES, formats.BINARY, formats.CONTINUOUS, *_LISTS, ITEMS}
_PAIRS = re.compile(r"[^/]*pairs[^/]*\.txt", re.IGNORECASE)
_PHOTO = re.compile(r"JPEGImages/[^/]+/[^/.][^/]*\.[A-Za-z]+")


def _kind(name: str) -> sources.Kind:
  if name in _TEXTS or _PAIRS.fullmatch(name):
    return "text"
  return "image" if _PHOTO.fullmatch(name) and name.lower().endswith(PHOTO_SUFFIXES) else ""


LAYOUT = sources.Layout(
  title="Animals with Attributes 2",
  folder="Animals_with_Attributes2",
  archives=("awa2-data*", "awa2-base*", "animals_with_attributes2*"),
  signs=("JPEGImages", *sorted(_TEXTS - {ITEMS})),
  folders=("JPEGImages", "JPEGImages/*"),
  kind=_kind,
  beside=lambda name: bool(_PAIRS.fullmatch(name)),
  home=formats.HOME,
)


class Awa2(records.OrderedBuilder):
  """Animals with Attributes 2: a record a photo.

  What else there is, lists of pairs and columns of items.csv, is in table_photos.json beside the
  records; `awa2.load` reads it.
  """

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    f"Put the folder Animals_with_Attributes2/ or the archives, from {formats.HOME}, into the"
    " manual directory."
  )

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict(
      {
        "image": tfds.features.Image(shape=(None, None, 3), doc="The file as it was."),
        "name": tfds.features.Text(doc="Such as horse_10001."),
        "label": tfds.features.ClassLabel(doc="Its class."),
        "attributes": tfds.features.Sequence(np.int32, doc="Predicates that its class has."),
        "continuous": tfds.features.Tensor(
          shape=(None,), dtype=np.float32, doc="Of each predicate, 0 to 100; NaN: missing."
        ),
      }
    )
    return tfds.core.DatasetInfo(
      builder=self,
      description="Photos of classes, and a table of what is true of each class.",
      features=features,
      homepage=formats.HOME,
      disable_shuffling=True,
      metadata=records.Tables(),
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
    if self.source is None:
      self.source = sources.open_source(sources.find(dl_manager.manual_dir, LAYOUT), LAYOUT)
    source = self.source
    self._notes: list[str] = list(source.refused)
    texts = sources.read_texts(source, [n for n, e in source.files.items() if e.kind == "text"])
    places = {name: sources.where(source, name) for name in texts}
    for name in (formats.CLASSES, formats.PREDICATES, formats.BINARY, *_LISTS):
      sources.require(source, texts, name)
    self._predicates = formats.parse_predicates(texts, places)
    train, test = (
      set(formats.parse_class_list(texts[name], places[name], self._predicates.classes))
      for name in _LISTS
    )
    if both := sorted(train & test):
      raise ValueError(f"{both[0]} stands in {places[_LISTS[0]]} and in {places[_LISTS[1]]}")
    self._items = formats.parse_items(texts[ITEMS], places[ITEMS]) if ITEMS in texts else {}
    self._pairs = {n: records.parse_pairs(data) for n, data in texts.items() if _PAIRS.fullmatch(n)}
    if formats.CONTINUOUS not in texts:
      self._notes.append(f"{formats.CONTINUOUS}: not there, so there are no continuous predicates")
    self._wanted = self._split_photos(train, test)
    self._done, self._total = 0, sum(map(len, self._wanted.values()))
    if not self._total:
      raise ValueError(
        f"{' and '.join(map(str, source.parts))}: no photo JPEGImages/CLASS/PHOTO.jpg of a class of"
        f" {formats.CLASSES} is there; get them from {formats.HOME}, or give your own"
      )
    self._name_labels("label", self._predicates.classes)
    self.examples_per_shard = records.shard_length(source)
    self._kept: list[tuple[str, str]] = []  # split and path of each record, in order
    return {split: self._generate_examples(split) for split in self._wanted}

  def _split_photos(self, train: set[str], test: set[str]) -> dict[str, list[str]]:
    """Paths of photos by split."""
    assert self.source is not None
    folders: dict[str, list[str]] = {}
    for name, entry in self.source.files.items():
      if entry.kind == "image":
        folders.setdefault(name.split("/")[1], []).append(name)
    wanted: dict[str, list[str]] = {split: [] for split in (*SPLITS, OTHER)}
    for folder, names in sorted(folders.items()):
      if folder not in self._predicates.classes:
        self._notes.append(
          f"JPEGImages/{folder}: {len(names):,} photos, of no class of {formats.CLASSES}"
        )
        continue
      for position, name in enumerate(sorted(names)):
        split = formats.split_of(folder, position, len(names), train, test)
        wanted[split or OTHER].append(name)
    absent = [name for name in self._predicates.classes if name not in folders]
    if absent:
      self._notes.append(f"JPEGImages: no photos of {len(absent)} classes ({', '.join(absent)})")
    if not wanted[OTHER]:
      del wanted[OTHER]
    return wanted

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    known = self._predicates
    for key, read in enumerate(self._checked_images(self._wanted[split])):
      self._done += 1
      if read.problem:
        self._notes.append(f"{read.name}: {read.problem}")
      else:
        folder = read.name.split("/")[1]
        row = known.classes.index(folder)
        self._kept.append((split, read.name))
        continuous = known.continuous[row] if known.continuous is not None else ()
        yield (
          key,
          {
            "image": read.data,
            "name": PurePosixPath(read.name).stem,
            "label": folder,
            "attributes": np.flatnonzero(known.binary[row]).tolist(),
            "continuous": np.array(continuous, np.float32),
          },
        )
      if self.on_progress:
        self.on_progress(self._done, self._total)

  def _tables(self) -> dict[str, Any]:
    known = self._predicates
    rows: dict[str, list[int]] = {}
    for row, (_, name) in enumerate(self._kept):
      rows.setdefault(records.stem(name), []).append(row)
    unique = {stem: found[0] for stem, found in rows.items() if len(found) == 1}
    pairs = []
    for name, (listed, bad) in self._pairs.items():
      found = [(unique[q], unique[r], x) for q, r, x in listed if q in unique and r in unique]
      if bad:
        self._notes.append(f"{name}: {bad:,} lines are no 'name name label'")
      if lost := len(listed) - len(found):
        self._notes.append(f"{name}: {lost:,} of {len(listed):,} pairs lack a photo")
      pairs.append({"file": name, "split": records.split_in_name(name), "pairs": found})
    columns = {
      column: [values.get(name, "") for _, name in self._kept]
      for column, values in self._items.items()
    }
    table = {
      "classes": known.classes,
      "predicates": known.predicates,
      "class_attributes": [np.flatnonzero(row).tolist() for row in known.binary],
      "splits": [split for split, _ in self._kept],
      "files": [name for _, name in self._kept],
      "ids": [
        stem if (stem := records.stem(name)) in unique else name.partition("/")[2]
        for _, name in self._kept
      ],
      "columns": columns,
      "pairs": pairs,
      "left_out": self._notes,
    }
    return {"photos": table}
