"""Tables, lists of pairs and the data sets' text files: encodings, quotes, ragged rows."""

import csv
import io
import json
import pathlib
from typing import NamedTuple

import numpy as np
from fuzz import mutate

from sane_jax.attributes import table as attribute_table
from sane_jax.datasets import photos, records, sources
from sane_jax.datasets.awa2 import formats as awa2
from sane_jax.datasets.polyvore_outfits import formats as polyvore
from sane_jax.report import tables

_FILES = ("a.jpg", "b c.jpg", "d.png")


class Text(NamedTuple):
  kind: str
  path: pathlib.Path


def _photos(folder: pathlib.Path) -> None:
  for name in _FILES:
    (folder / name).touch()


def _encoded(rng: np.random.Generator, text: str) -> bytes:
  text = str(rng.choice(["", "", "\ufeff"])) + text
  text = text.replace("\n", str(rng.choice(["\n", "\n", "\r\n", "\r", "\u2028", "\x85"])))
  return text.encode(
    str(rng.choice(["utf-8", "utf-8", "utf-16", "utf-16-le", "latin-1"])), "replace"
  )


def _rows(rng: np.random.Generator, cells: list[str]) -> str:
  out = io.StringIO()
  quoting = int(rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
  writer = csv.writer(out, delimiter=str(rng.choice([",", ",", "\t", ";", " "])), quoting=quoting)
  for _ in range(rng.integers(1, 8)):
    row = [str(rng.choice(cells)) for _ in range(rng.integers(0, 6))]
    writer.writerow([cell if rng.random() < 0.8 else mutate.text(rng) for cell in row])
  text = out.getvalue()
  if rng.random() < 0.2:
    at = int(rng.integers(len(text) + 1))
    text = text[:at] + str(rng.choice(['"', "\0", "\n", ",,,,", "x" * 200_000])) + text[at:]
  return text


def _value(rng: np.random.Generator, depth: int = 0):
  """Any JSON value."""
  kind = rng.integers(8 if depth < 3 else 6)
  if kind < 2:
    return mutate.text(rng)
  if kind == 2:
    return [None, True, -1, 0, 1e400, float("nan"), 10**30, 1.5][int(rng.integers(8))]
  if kind < 6:
    return int(rng.integers(-2, 5))
  if kind == 6:
    return [_value(rng, depth + 1) for _ in range(rng.integers(0, 4))]
  return {mutate.text(rng): _value(rng, depth + 1) for _ in range(rng.integers(0, 4))}


_JSON = {
  "outfits": [{"items": [{"item_id": "1", "index": 1}, {"item_id": "2", "index": 2}],
  "set_id": "7"}],
  "questions": [{"question": ["7_1", "7_2"], "blank_position": 3, "answers": ["7_3", "8_1"]}],
  "metadata": {"1": {"title": "a", "url_name": "b", "semantic_category": "tops",
  "category_id": "1"}},
  "attributes": {"attributes": ["red", "blue"], "annotations": {"1": [0], "2": [0, 1]}},
  "table": tables.to_json(tables.Table("t", "n", ("a", "b"), (("x", tables.Interval(1, 0, 2)),))),
}  # fmt: skip
_TEXTS = (
  "csv",
  "csv",
  "csv",
  "pairs",
  "pairs",
  "categories",
  "compatibility",
  "items",
  "matrix",
  "classes",
  "lines",
)


def changed(rng: np.random.Generator, value):
  """The document with one value, somewhere, replaced."""
  if isinstance(value, dict) and value and rng.random() < 0.8:
    key = str(rng.choice([*value]))
    return {**value, key: changed(rng, value[key])}
  if isinstance(value, list) and value and rng.random() < 0.8:
    at = int(rng.integers(len(value)))
    return [*value[:at], changed(rng, value[at]), *value[at + 1 :]]
  return _value(rng)


def prepare(rng: np.random.Generator, folder: pathlib.Path) -> Text:
  _photos(folder)
  kind = str(rng.choice([*_TEXTS, *_JSON]))
  path = folder / "text"
  if kind in _JSON:
    document = _JSON[kind]
    for _ in range(rng.integers(1, 3)):
      document = changed(rng, document)
    data = json.dumps(document).encode("utf-8", "replace")
    if rng.random() < 0.05:
      data = b"[" * 100_000
  else:
    header = {
      "csv": "file,red,blue\n",
      "items": "file,colour\n",
      "pairs": "query,reference,label\n",
    }
    cells = [*_FILES, "1", "0", "yes", "7_1", "7_2", "a", "3.5", "-1", "1e400", ""]
    start = header.get(kind, "") if rng.random() < 0.8 else ""
    data = _encoded(rng, start + _rows(rng, cells))
  if rng.random() < 0.3:
    data = mutate.damage(rng, data, [data])
  path.write_bytes(data)
  return Text(kind, path)


def valid(folder: pathlib.Path) -> list[Text]:
  _photos(folder)
  out = []
  (folder / "csv").write_text("file,red\na.jpg,1\n")
  out.append(Text("csv", folder / "csv"))
  for kind, document in _JSON.items():
    (folder / kind).write_text(json.dumps(document))
    out.append(Text(kind, folder / kind))
  return out


def read(text: Text) -> None:
  kind, path = text
  data, notes = path.read_bytes(), polyvore.Notes()
  match kind:
    case "csv":
      attribute_table.read_table(path)
    case "pairs":
      photos.read_pairs(path)
    case "categories":
      polyvore.parse_categories(data, "x")
    case "compatibility":
      polyvore.parse_compatibility(data, "x", notes)
    case "items":
      awa2.parse_items(data, "x")
    case "matrix":
      awa2.parse_matrix(data, "x", (10**6, 10**6))
      awa2.parse_matrix(data, "x", (len(sources.parse_lines(data)), 3))
    case "classes":
      awa2.parse_names(data, "x")
      awa2.parse_class_list(data, "x", ("a",))
    case "lines":
      records.parse_pairs(data)
    case "outfits":
      for outfit in polyvore.parse_outfits(data, "x", notes):
        "".join([outfit.set_id, *outfit.items.values()]).encode()  # they are written
    case "questions":
      polyvore.parse_questions(data, "x", notes)
    case "metadata":
      for item in polyvore.parse_metadata(data, "x", notes).values():
        "".join(item).encode()
    case "attributes":
      polyvore.parse_attributes(data, "x", None, "")
    case "table":
      table = tables.from_json(sources.parse_json(data, "x"))
      tables.to_markdown(table)
      tables.to_csv(table)
      tables.to_latex(table)
  assert sum(map(len, notes.lines())) < 100_000 + 20 * len(data)
