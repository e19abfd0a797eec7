"""What the training jobs know of a data set: one split's images, which of them match, and why."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sane_jax.ops import streams


class Question(NamedTuple):
  """Fill in the blank: which of the answers goes with the items of an outfit. Rows of images."""

  items: np.ndarray  # [k] the outfit without the item left out
  answers: np.ndarray  # [m]
  right: int  # index into answers


class Compatibility(NamedTuple):
  """Whether some items make an outfit."""

  items: np.ndarray  # [k] rows of images
  label: int  # 1 they do, 0 they do not


class Pair(NamedTuple):
  """A query and a reference."""

  query: int  # row
  reference: int  # row
  label: int  # 1 they match, 0 they do not


class Collection(NamedTuple):
  """One split of a data set. Images are rows 0 .. n − 1; everything else speaks of rows.

  Polyvore Outfits: rows are items, groups are outfits, types are the 11 semantic categories.
  Animals with Attributes 2: rows are photos, groups are classes, there is one type.
  """

  name: str  # such as 'polyvore_outfits/nondisjoint/train'
  images: Sequence[bytes]  # [n] encoded as on disk; read one at a time, from any thread
  ids: tuple[str, ...]  # [n] item ids, or names such as 'horse_10001'
  types: np.ndarray  # [n] int32, index into type_names
  type_names: tuple[str, ...]  # [t]
  conditions: np.ndarray  # [t t] int32, symmetric: which space compares two types
  groups: tuple[np.ndarray, ...]  # rows (int32, two or more, no row twice) that match one another
  group_names: tuple[str, ...]
  attribute_names: tuple[str, ...]  # [a]
  attributes: tuple[np.ndarray, ...]  # [n] int32 indices, ascending; empty: nothing is known
  titles: tuple[str, ...]  # [n] a line of text, '' where there is none
  questions: tuple[Question, ...]
  compatibility: tuple[Compatibility, ...]
  pairs: tuple[Pair, ...]  # the released lists of query and reference
  left_out: tuple[str, ...]  # 'file: why', of images and records that could not be used

  @property
  def num_conditions(self) -> int:
    return int(self.conditions.max()) + 1


def groups_of(collection: Collection) -> tuple[tuple[int, ...], ...]:
  """The groups that each row is in [n]."""
  member: list[list[int]] = [[] for _ in collection.ids]
  for index, rows in enumerate(collection.groups):
    for row in rows:
      member[row].append(index)
  return tuple(map(tuple, member))


def choose_queries(
  train: Collection, groups: Sequence[Sequence[int]], limit: int | None, seed: int
) -> np.ndarray:
  """Rows that have a match and attributes, ascending; `limit` of them drawn if there are more.

  Where no image has attributes, all count: discover_attributes needs their maps.

  Raises:
    ValueError: there are none.
  """
  rows = np.flatnonzero(np.array(list(map(bool, groups))) & worth_explaining(train))
  if not len(rows):
    raise ValueError(
      f"no image of {train.name} has both an image that matches it and an attribute: there is"
      " nothing to supervise with maps; train without them with --config.attributes.map_weight=0"
    )
  if limit is not None and len(rows) > limit:
    rows = np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))
  return rows


def draw_matches(
  collection: Collection, groups: Sequence[int], row: int, *, limit: int, seed: int
) -> np.ndarray:
  """At most `limit` rows that share one of `row`'s groups: drawn by (seed, row), ascending."""
  shared = [collection.groups[group] for group in groups]
  if not shared:
    return np.zeros(0, np.int32)
  rows = np.setdiff1d(np.concatenate(shared), [row])
  if len(rows) > limit:
    rows = np.sort(streams.rng(seed, row).choice(rows, limit, replace=False))
  return rows.astype(np.int32)


def draw_pairs(collection: Collection, *, limit: int, seed: int) -> tuple[Pair, ...]:
  """At most `limit` pairs that match and as many that do not, drawn by the seed, by query.

  The released list, where the collection has one. Otherwise a pair that matches is two rows of one
  group; its query with another row of the reference's type, and of no group of the query's, does
  not match. Only rows that `worth_explaining` names are queries.
  """
  rng = streams.rng(seed, streams.PAIRS)
  worth = worth_explaining(collection)
  if collection.pairs:
    known = [p for p in collection.pairs if worth[p.query]]
    parts = [[p for p in known if p.label == label] for label in (1, 0)]
    kept = [_some(rng, part, limit) for part in parts]
  else:
    matching = [
      Pair(int(q), int(r), 1)
      for rows in collection.groups
      for q in rows
      if worth[q]
      for r in rows
      if r != q
    ]
    matching = _some(rng, matching, limit)
    member = groups_of(collection)
    others = []
    for pair in matching:
      same = np.flatnonzero(collection.types == collection.types[pair.reference])
      near = [collection.groups[g] for g in member[pair.query]]
      free = np.setdiff1d(same, np.concatenate([[pair.query], *near]))
      if len(free):
        others.append(Pair(pair.query, int(rng.choice(free)), 0))
    kept = [matching, others]
  pairs = [pair for part in kept for pair in part]
  return tuple(sorted(pairs, key=lambda pair: (pair.query, -pair.label, pair.reference)))


def worth_explaining(collection: Collection) -> np.ndarray:
  """Rows with a known attribute, bool [n]: nothing could be said about others.

  All rows where nothing is known of any: attributes can be discovered, by maps of theirs.
  """
  known = np.array([len(a) > 0 for a in collection.attributes], bool)
  return known if known.any() else np.ones(len(collection.ids), bool)


def _some(rng: np.random.Generator, items: list[Pair], limit: int) -> list[Pair]:
  if len(items) <= limit:
    return items
  return [items[i] for i in np.sort(rng.choice(len(items), limit, replace=False))]


def label_matrix(collection: Collection) -> np.ndarray:
  """Which image has which attribute, bool [n a]; a row of False where nothing is known."""
  labels = np.zeros((len(collection.ids), len(collection.attribute_names)), bool)
  for row, attributes in enumerate(collection.attributes):
    labels[row, attributes] = True
  return labels


def fingerprint(collection: Collection) -> dict[str, Any]:
  """What fixes the result of a run on a collection: how large it is and what is in it."""
  return {
    "images": len(collection.ids),
    "groups": len(collection.groups),
    "content": hash_content(collection),
  }


def hash_content(collection: Collection) -> str:
  """Changes with the images' ids, the groups, the titles or the attributes."""
  lists = [[rows.tolist() for rows in part] for part in (collection.groups, collection.attributes)]
  text = repr((collection.ids, collection.titles, lists))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_images(collection: Collection) -> str:
  """Changes with the images' ids and the groups: what maps depend on, whatever is known of them."""
  text = repr((collection.ids, [rows.tolist() for rows in collection.groups]))
  return hashlib.sha256(text.encode()).hexdigest()[:16]
