"""The files of Polyvore Outfits, each as published, to plain values.

Every function takes a file's bytes and its place, for messages. A file that is wrong as a whole
raises ValueError; single records that are wrong are left out and counted in notes.
"""

import collections
import csv
import io
import pickle
from typing import Any, NamedTuple

import numpy as np

from sane_jax.datasets.sources import parse_json, parse_lines
from sane_jax.runs import files

Token = tuple[str, int]  # set_id and 1-based index of an item in it
_MAX_TYPESPACES = 1 << 20  # bytes; the published file has about 1400


class Item(NamedTuple):
  semantic_category: str  # '' where there is none
  title: str  # the `title`, else the `url_name`
  category_id: str


class Outfit(NamedTuple):
  set_id: str
  items: dict[int, str]  # item ids by the index that tokens name


class BlankQuestion(NamedTuple):
  items: tuple[Token, ...]
  answers: tuple[Token, ...]
  right: int


class Line(NamedTuple):
  """Of a compatibility file."""

  label: int
  items: tuple[Token, ...]


class Category(NamedTuple):
  names: tuple[str, ...]  # most have one
  semantic_category: str  # '' for a few


class Notes:
  """Counts of records that are left out, by file and reason, each with an example."""

  def __init__(self):
    self._counts: collections.Counter[tuple[str, str]] = collections.Counter()
    self._first: dict[tuple[str, str], str] = {}

  def add(self, place: str, reason: str, example: object) -> None:
    self._counts[place, reason] += 1
    self._first.setdefault((place, reason), str(example)[:60])

  def lines(self) -> list[str]:
    return [
      f"{place}: {count:,} {reason} (such as {self._first[place, reason]})"
      for (place, reason), count in self._counts.items()
    ]


# --- items ----------------------------------------------------------------------------------------

_ITEM_FIELDS = ("semantic_category", "title", "url_name", "category_id")


def _trim(record: dict) -> dict:
  """Only the fields that are used: the whole file takes half a gigabyte otherwise."""
  return {f: record[f] for f in _ITEM_FIELDS if f in record} if "url_name" in record else record


def parse_metadata(data: bytes, place: str, notes: Notes) -> dict[str, Item]:
  """polyvore_item_metadata.json: item id -> Item."""
  document = parse_json(data, place, _trim)
  if not isinstance(document, dict):
    raise _shape(place, document, '{"183179503": {"title": ..., "semantic_category": ...}, ...}')
  items = {}
  for item_id, record in document.items():
    if not isinstance(record, dict):
      notes.add(place, "records that are no objects", item_id)
      continue
    text = {field: _text(record.get(field)) for field in _ITEM_FIELDS}
    items[item_id] = Item(
      text["semantic_category"], text["title"] or text["url_name"], text["category_id"]
    )
  return items


def _text(value: Any) -> str:
  """Text fields are often empty, and lists now and then stand as ''."""
  if not isinstance(value, str):
    return ""
  return " ".join(value.encode("utf-8", "replace").decode().split())


def parse_categories(data: bytes, place: str) -> dict[str, Category]:
  """categories.csv: category id -> its fine names and semantic category.

  An id stands on several rows for several names; fields have blanks after them, and the semantic
  category is empty for a few. Of an item's semantic category its own record is the authority.
  """
  categories: dict[str, Category] = {}
  for line in parse_lines(data):  # one by one: a quote left open would swallow the rest
    try:
      fields = [field.strip() for field in next(csv.reader([line]), [])]
    except csv.Error:  # a field beyond any measure
      continue
    if len(fields) < 2 or not fields[0]:
      continue
    known = categories.get(fields[0], Category((), ""))
    semantic = fields[2] if len(fields) > 2 else ""
    names = tuple(dict.fromkeys([*known.names, fields[1]]))
    categories[fields[0]] = Category(names, known.semantic_category or semantic)
  if not categories:
    raise ValueError(f"{place}: no line 'id,name,semantic category' in it; download it again")
  return categories


# --- type spaces ----------------------------------------------------------------------------------

# What a list of pairs of strings is written with, in any protocol, and the two that ask for a
# global, which is then refused by name.
_OPCODES = frozenset(
  getattr(pickle, name)[0]
  for name in (
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "GLOBAL", "STACK_GLOBAL"),
    *("EMPTY_LIST", "LIST", "APPEND", "APPENDS"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE"),
    *("PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET", "MEMOIZE"),
  )
)


class _PlainUnpickler(pickle._Unpickler):
  """Makes lists, tuples and strings; looks nothing up, imports nothing, calls nothing."""

  dispatch = {  # noqa: RUF012
    code: load for code, load in pickle._Unpickler.dispatch.items() if code in _OPCODES
  }

  def find_class(self, module: str, name: str) -> Any:
    raise ValueError(f"it asks for the global {module}.{name}; no code was run")


def parse_typespaces(data: bytes, place: str) -> list[tuple[str, str]]:
  """typespaces.p: the pair of types of each type-specific space, in the order of the spaces.

  A pair stands in one order only.
  """
  try:
    if len(data) > _MAX_TYPESPACES:
      raise ValueError(f"it has {len(data)} bytes")
    spaces = _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    pairs = []
    for space in spaces if isinstance(spaces, list | tuple) else [spaces]:
      match space:
        case (str(first), str(second)):
          pairs.append((first, second))
        case _:
          raise ValueError(f"it holds a {type(space).__name__}, no pair of types")
    if not pairs:
      raise ValueError("it holds no pair of types")
  # A damaged pickle raises nearly anything; an operation that is not allowed, KeyError.
  except Exception as error:
    raise ValueError(
      f"{place}: no pickled list of pairs of types ({type(error).__name__}: {error}), so it is"
      " refused; download it again"
    ) from error
  return pairs


def condition_matrix(
  spaces: list[tuple[str, str]], types: tuple[str, ...], place: str
) -> np.ndarray:
  """The position in `spaces` of each two types, in either order: [t t] int32.

  Raises:
    ValueError: two types have no space, or two.
  """
  positions: dict[frozenset[str], int] = {}
  for position, pair in enumerate(spaces):
    if positions.setdefault(frozenset(pair), position) != position:
      raise ValueError(f"{place}: the pair {pair} stands in it twice; download it again")
  matrix = np.zeros((len(types), len(types)), np.int32)
  for i, first in enumerate(types):
    for j, second in enumerate(types):
      if (position := positions.get(frozenset((first, second)))) is None:
        raise ValueError(f"{place}: no space for {(first, second)}; download it again")
      matrix[i, j] = position
  return matrix


# --- outfits, questions, compatibility ------------------------------------------------------------


def parse_outfits(data: bytes, place: str, notes: Notes) -> list[Outfit]:
  """{train,valid,test}.json."""
  example = '[{"items": [{"item_id": "213343990", "index": 1}, ...], "set_id": "224930161"}, ...]'
  outfits: dict[str, Outfit] = {}
  for number, record in enumerate(records := _records(data, place, example)):
    try:
      items = {int(item["index"]): _id(item["item_id"]) for item in record["items"]}
      set_id = _id(record["set_id"])
      if len(items) != len(record["items"]):
        raise ValueError("(an index stands twice)")
    except (TypeError, KeyError, ValueError, OverflowError) as error:
      notes.add(
        place, f"outfits with a wrong or missing field {str(error)[:100]}", f"record {number}"
      )
      continue
    if set_id in outfits:
      notes.add(place, "outfits whose set_id an earlier one has", set_id)
    else:
      outfits[set_id] = Outfit(set_id, items)
  if records and not outfits:
    raise _shape(place, records[0], example)
  return list(outfits.values())


def _id(value: Any) -> str:
  if not isinstance(value, str | int) or isinstance(value, bool):
    raise ValueError(f"({str(value)[:60]!r} as an id)")
  if not files.is_text(str(value)):
    raise ValueError("(an id that is no text)")
  return str(value)


def parse_token(token: str) -> Token:
  """'224930161_2' -> ('224930161', 2)."""
  set_id, _, index = token.rpartition("_")
  if not set_id or not index.isdecimal():
    raise ValueError(f"({token!r} is no set_id_index)")
  return set_id, int(index)


def parse_questions(data: bytes, place: str, notes: Notes) -> list[BlankQuestion]:
  """fill_in_blank_{split}.json. The right answer is the one of the question's own outfit."""
  example = '[{"question": ["222049137_1", ...], "blank_position": 6, "answers": [...]}, ...]'
  questions = []
  for number, record in enumerate(records := _records(data, place, example)):
    try:
      items, answers = (tuple(map(parse_token, record[f])) for f in ("question", "answers"))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
      notes.add(
        place, f"questions with a wrong or missing field {str(error)[:100]}", f"record {number}"
      )
      continue
    own = {set_id for set_id, _ in items}
    right = [i for i, (set_id, _) in enumerate(answers) if set_id in own]
    if len(own) != 1 or len(right) != 1:
      notes.add(place, "questions without just one answer of their outfit", f"record {number}")
    else:
      questions.append(BlankQuestion(items, answers, right[0]))
  if records and not questions:
    raise _shape(place, records[0], example)
  return questions


def parse_compatibility(data: bytes, place: str, notes: Notes) -> list[Line]:
  """compatibility_{split}.txt."""
  parsed, lines = [], parse_lines(data)
  for number, line in enumerate(lines, start=1):
    label, *tokens = line.split() or [""]
    try:
      if label not in ("0", "1") or len(tokens) < 2:
        raise ValueError
      parsed.append(Line(int(label), tuple(map(parse_token, tokens))))
    except ValueError:
      if line:
        notes.add(place, "lines that are no label and two or more items", f"line {number}")
  if lines and not parsed:
    raise _shape(place, lines[0], "1 224930161_1 224930161_2 ...")
  return parsed


# --- attributes -----------------------------------------------------------------------------------


def parse_attributes(
  data: bytes, place: str, listed: bytes | None, listed_place: str
) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]]]:
  """polyvore_attributes.json: the attributes' names, and each item's indices, ascending.

  Args:
    data: of that file.
    place: its place.
    listed: attribute_list.txt, where it is there; both must agree.
    listed_place: its place.
  """
  document = parse_json(data, place)
  if not isinstance(document, dict) or not isinstance(document.get("annotations"), dict):
    raise _shape(place, document, '{"attributes": [...], "annotations": {"213343990": [3], ...}}')
  lines = None if listed is None else parse_lines(listed)
  names = document.get("attributes", lines)
  if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
    raise ValueError(f"{place}: its field 'attributes' is no list of names; download it again")
  names = [name.strip() for name in names]
  if lines is not None and lines != names:
    same = [a == b for a, b in zip(lines, names, strict=False)]
    line = [*same, False].index(False)
    raise ValueError(
      f"{listed_place}:{line + 1}: not what field 'attributes' of {place} has there; take both"
      " files from one release"
    )
  annotations = {}
  for item_id, indices in document["annotations"].items():
    if not isinstance(indices, list) or not all(type(i) is int for i in indices):
      raise ValueError(
        f"{place}: field 'annotations', item {item_id}: {indices!r:.60} is no list of indices;"
        " download it again"
      )
    if any(not 0 <= i < len(names) for i in indices):
      raise ValueError(
        f"{place}: field 'annotations', item {item_id}: {indices!r:.60}, but there are"
        f" {len(names)} attributes (0 to {len(names) - 1}); take this file and attribute_list.txt"
        " from one release"
      )
    annotations[item_id] = tuple(sorted(set(indices)))
  return tuple(names), annotations


def _records(data: bytes, place: str, example: str) -> list:
  records = parse_json(data, place)
  if not isinstance(records, list):
    raise _shape(place, records, example)
  return records


def _shape(place: str, value: Any, example: str) -> ValueError:
  return ValueError(
    f"{place}: it holds {str(value)[:80]!r} where {example} is expected; download it again"
  )
