"""TFDS builder of Polyvore Outfits, from the files as published."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from sane_jax.datasets import records, sources
from sane_jax.datasets.polyvore_outfits import formats

SETTINGS = ("nondisjoint", "disjoint")
SPLITS = ("train", "valid", "test")
HOME = "https://github.com/mvasil/fashion-compatibility"
ATTRIBUTES_HOME = "https://github.com/VisionLearningGroup/SANE"

_METADATA, _CATEGORIES = "polyvore_item_metadata.json", "categories.csv"
_ATTRIBUTES, _ATTRIBUTE_LIST = "polyvore_attributes.json", "attribute_list.txt"
_PAIRS = re.compile(r"[^/]*pairs[^/]*\.txt", re.IGNORECASE)


def layout(setting: str) -> sources.Layout:
  """Where the files of a setting are."""
  texts = {_METADATA, _CATEGORIES, _ATTRIBUTES, _ATTRIBUTE_LIST, f"{setting}/typespaces.p"}
  for split in SPLITS:
    texts |= {f"{setting}/{name}" for name in _split_files(split)}

  def kind(name: str) -> sources.Kind:
    if name in texts or _PAIRS.fullmatch(name):
      return "text"
    return "image" if re.fullmatch(r"images/[^/.][^/]*\.jpg", name) else ""

  return sources.Layout(
    title="Polyvore Outfits",
    folder="polyvore_outfits",
    archives=("polyvore_outfits*",),
    signs=(_METADATA, *SETTINGS, "images"),
    folders=("images", setting),
    kind=kind,
    beside=lambda name: name in (_ATTRIBUTES, _ATTRIBUTE_LIST) or bool(_PAIRS.fullmatch(name)),
    home=HOME,
  )


def _split_files(split: str) -> tuple[str, str, str]:
  return f"{split}.json", f"fill_in_blank_{split}.json", f"compatibility_{split}.txt"


class _Split(NamedTuple):
  outfits: list[formats.Outfit]
  questions: list[formats.BlankQuestion]
  compatibility: list[formats.Line]
  notes: formats.Notes


class _Release(NamedTuple):
  """All that the text files of a setting say."""

  items: dict[str, formats.Item]
  categories: dict[str, formats.Category]
  type_names: tuple[str, ...]
  conditions: np.ndarray
  attribute_names: tuple[str, ...]
  annotations: dict[str, tuple[int, ...]] | None
  splits: dict[str, _Split]
  pairs: dict[str, tuple[list[tuple[str, str, int]], int]]  # by file
  general: tuple[str, ...]  # notes that hold for all splits


def _read_release(source: sources.Source, setting: str) -> _Release:
  texts = sources.read_texts(source, [n for n, e in source.files.items() if e.kind == "text"])
  general: list[str] = list(source.refused)
  notes = formats.Notes()

  def need(name: str) -> tuple[bytes, str]:
    return sources.require(source, texts, name), sources.where(source, name)

  items = formats.parse_metadata(*need(_METADATA), notes)
  data, place = need(f"{setting}/typespaces.p")
  spaces = formats.parse_typespaces(data, place)
  type_names = tuple(sorted({name for pair in spaces for name in pair}))
  conditions = formats.condition_matrix(spaces, type_names, place)
  categories: dict[str, formats.Category] = {}
  if _CATEGORIES in texts:
    categories = formats.parse_categories(*need(_CATEGORIES))
  else:
    general.append(f"{_CATEGORIES}: not there, so the records name no fine category; see {HOME}")
  attribute_names, annotations = (), None
  if _ATTRIBUTES in texts:
    listed = _ATTRIBUTE_LIST in texts
    attribute_names, annotations = formats.parse_attributes(
      *need(_ATTRIBUTES), *(need(_ATTRIBUTE_LIST) if listed else (None, _ATTRIBUTE_LIST))
    )
  else:
    general.append(
      f"{_ATTRIBUTES}: not there, so no item has attributes; get it and {_ATTRIBUTE_LIST} from"
      f" {ATTRIBUTES_HOME} and put both into polyvore_outfits/"
    )
  splits = {}
  for split in SPLITS:
    own = formats.Notes()
    outfits, questions, compatibility = (f"{setting}/{name}" for name in _split_files(split))
    splits[split] = _Split(
      formats.parse_outfits(*need(outfits), own),
      formats.parse_questions(*need(questions), own),
      formats.parse_compatibility(*need(compatibility), own),
      own,
    )
  used = {i for s in splits.values() for outfit in s.outfits for i in outfit.items.values()}
  for item_id in items:
    if item_id not in used:
      notes.add(_METADATA, f"items that are in no outfit of {setting}", item_id)
  pairs = {n: records.parse_pairs(data) for n, data in texts.items() if _PAIRS.fullmatch(n)}
  return _Release(
    items, categories, type_names, conditions, attribute_names, annotations, splits, pairs,
    (*general, *notes.lines()),
  )  # fmt: skip


class PolyvoreOutfits(records.OrderedBuilder):
  """Polyvore Outfits: a record an item of a split's outfits, in each of two settings.

  What speaks of several items (outfits, questions, compatibility tests, pairs) is in the files
  table_SPLIT.json beside the records; `polyvore_outfits.load` reads it.
  """

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
  BUILDER_CONFIGS = [  # noqa: RUF012
    tfds.core.BuilderConfig(name="nondisjoint", description="Items may be in several splits."),
    tfds.core.BuilderConfig(name="disjoint", description="No item is in two splits."),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    f"Put the folder polyvore_outfits/ or its archive, from {HOME}, into the manual directory; with"
    f" {_ATTRIBUTES} and {_ATTRIBUTE_LIST} from {ATTRIBUTES_HOME} in it or beside it."
  )

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict(
      {
        "image": tfds.features.Image(shape=(None, None, 3), doc="The file as it was."),
        "item_id": tfds.features.Text(),
        "semantic_category": tfds.features.ClassLabel(doc="Its type."),
        "category": tfds.features.Text(doc="Fine category; empty where it is not known."),
        "title": tfds.features.Text(doc="Title, else the name in its address; may be empty."),
        "attributes": tfds.features.Sequence(np.int32, doc="Indices; empty: nothing is known."),
      }
    )
    return tfds.core.DatasetInfo(
      builder=self,
      description="Outfits that people put together of items of fashion.",
      features=features,
      homepage=HOME,
      disable_shuffling=True,
      metadata=records.Tables(),
    )

  @property
  def _setting(self) -> str:
    assert self.builder_config is not None
    return self.builder_config.name

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
    setting = self._setting
    if self.source is None:
      own = layout(setting)
      self.source = sources.open_source(sources.find(dl_manager.manual_dir, own), own)
    release = _read_release(self.source, setting)
    self._release = release
    self._rows: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
    self._damaged: dict[str, list[str]] = {split: [] for split in SPLITS}
    self._name_labels("semantic_category", release.type_names)
    self.examples_per_shard = records.shard_length(self.source)
    self._wanted = {split: self._usable(split) for split in SPLITS}
    self._done, self._total = 0, sum(map(len, self._wanted.values()))
    if not self._total:
      raise ValueError(
        f"{' and '.join(map(str, self.source.parts))}: none of the photos images/ITEM_ID.jpg of"
        f" the outfits is there; get them from {HOME} and put them into polyvore_outfits/images/"
      )
    return {split: self._generate_examples(split) for split in SPLITS}

  def _usable(self, split: str) -> list[str]:
    """Files of the items in the split's outfits that have a photo and a known type."""
    assert self.source is not None
    outfits, *_, notes = self._release.splits[split]
    wanted, place = {}, f"{self._setting}/{split}.json"
    for outfit in outfits:
      if len(set(outfit.items.values())) < 2:
        notes.add(place, "outfits of fewer than two items", outfit.set_id)
        continue
      wanted |= dict.fromkeys(outfit.items.values())
    files = []
    for item_id in sorted(wanted, key=lambda i: (len(i), i)):
      item = self._release.items.get(item_id)
      if item is None:
        notes.add(_METADATA, f"items of {place} without a record", item_id)
      elif item.semantic_category not in self._release.type_names:
        reason = f"items of {place} whose semantic_category is none of typespaces.p"
        notes.add(_METADATA, reason, f"item {item_id}: {item.semantic_category!r}")
      elif f"images/{item_id}.jpg" not in self.source.files:
        notes.add("images", f"photos of {place} that are not there", f"{item_id}.jpg")
      else:
        files.append(f"images/{item_id}.jpg")
    return files

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    release, rows = self._release, self._rows[split]
    for read in self._checked_images(self._wanted[split]):
      self._done += 1
      item_id = PurePosixPath(read.name).stem
      if read.problem:
        self._damaged[split].append(f"{read.name}: {read.problem}")
      else:
        item = release.items[item_id]
        category = release.categories.get(item.category_id)
        example = {
          "image": read.data,
          "item_id": item_id,
          "semantic_category": item.semantic_category,
          "category": category.names[0] if category else "",
          "title": item.title,
          "attributes": list((release.annotations or {}).get(item_id, ())),
        }
        rows[item_id] = len(rows)
        yield rows[item_id], example
      if self.on_progress:
        self.on_progress(self._done, self._total)

  def _tables(self) -> dict[str, Any]:
    return {split: self._table(split) for split in SPLITS}

  def _table(self, split: str) -> dict[str, Any]:
    """A Collection's fields, of what is left once items without a photo are gone."""
    release, rows = self._release, self._rows[split]
    outfits, questions, lines, notes = release.splits[split]
    files = [f"{self._setting}/{name}" for name in _split_files(split)]
    places = {(o.set_id, index): item for o in outfits for index, item in o.items.items()}

    def resolve(tokens: tuple[formats.Token, ...]) -> list[int]:
      return [rows[places[token]] for token in tokens]

    groups = []
    for outfit in outfits:
      members = [rows[i] for i in dict.fromkeys(outfit.items.values()) if i in rows]
      if len(members) > 1:
        groups.append((outfit.set_id, members))
      elif len(set(outfit.items.values())) > 1:
        notes.add(files[0], "outfits of which fewer than two items can be used", outfit.set_id)
    kept_questions, kept_lines = [], []
    for question in questions:
      try:
        kept = resolve(question.items), resolve(question.answers), question.right
        kept_questions.append(kept)
      except KeyError:
        token = "_".join(map(str, question.items[0]))
        notes.add(files[1], "questions of which an item can't be used", f"that of {token}")
    for line in lines:
      try:
        kept_lines.append((resolve(line.items), line.label))
      except KeyError:
        token = "_".join(map(str, line.items[0]))
        notes.add(files[2], "lines of which an item can't be used", f"that of {token}")
    pairs = []
    for name, (listed, bad) in release.pairs.items():
      if records.split_in_name(name) not in ("", split):
        continue
      for _ in range(bad):
        notes.add(name, "lines that are no 'name name label'", "")
      for query, reference, label in listed:
        if query in rows and reference in rows:
          pairs.append((rows[query], rows[reference], label))
        else:
          notes.add(name, f"pairs of which an item is not in {split}", f"{query} {reference}")
    if (annotations := release.annotations) is not None:
      for item_id in rows:
        if item_id not in annotations:
          notes.add(_ATTRIBUTES, f"items of {split} without annotation", item_id)
    return {
      "ids": list(rows),
      "types": [release.type_names.index(release.items[i].semantic_category) for i in rows],
      "type_names": release.type_names,
      "conditions": release.conditions.tolist(),
      "groups": [members for _, members in groups],
      "group_names": [name for name, _ in groups],
      "attribute_names": release.attribute_names,
      "attributes": [(annotations or {}).get(i, ()) for i in rows],
      "titles": [release.items[i].title for i in rows],
      "questions": kept_questions,
      "compatibility": kept_lines,
      "pairs": pairs,
      "left_out": [*self._damaged[split], *notes.lines(), *release.general],
    }
