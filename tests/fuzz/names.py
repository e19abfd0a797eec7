"""Names that hold markup, in every text of the report: none of it is markup there."""

import csv
import html.parser
import io
import pathlib
import re

import numpy as np
from fuzz import checkpoints, mutate

from sane_jax.report import Interval, PairView, Table, figure_png, render_page, tables
from sane_jax.runs import files

_SCRIPTS = 3  # the page's own, the colours, and one pair's data


class _Counter(html.parser.HTMLParser):
  def __init__(self):
    super().__init__()
    self.tags: dict[str, int] = {}
    self.handlers: list[str] = []

  def handle_starttag(self, tag, attrs):
    self.tags[tag] = self.tags.get(tag, 0) + 1
    self.handlers += [name for name, _ in attrs if name.startswith("on") or name == "srcdoc"]
    self.handlers += [v for n, v in attrs if n in ("href", "src") and "script:" in (v or "")]


def _pair(name) -> PairView:
  pair = checkpoints._view()
  attribute = pair.attributes[0]._replace(name=name(), terms={name(): 0.5}, shares={name(): 1.0})
  return pair._replace(
    query_name=name(), reference_name=name(), settings={name(): name()}, metrics={name(): 1.0},
    command=name(), warnings=[name()], sentence=name(), kind=name(), attributes=[attribute],
  )  # fmt: skip


def _table(name) -> Table:
  rows = ((name(), name(), 1.0), (name(), name(), Interval(-1.0, -2.0, 0.0)))
  return Table(name(), name(), (name(), name(), name()), rows)


def prepare(rng: np.random.Generator, folder: pathlib.Path):
  pair, table = _pair(lambda: mutate.text(rng)), _table(lambda: mutate.text(rng))
  return pair, table, bool(rng.random() < 0.05), [(mutate.text(rng), mutate.text(rng))]


def valid(folder: pathlib.Path):
  return [(_pair(lambda: "a"), _table(lambda: "a"), True, [("a", "b")])]


def page_of(item) -> str:
  pair, table, _, failures = item
  title = pair.query_name
  return render_page([pair], title=title, subtitle=title, failures=failures, tables=[table])


def _tags(item) -> _Counter:
  counter = _Counter()
  counter.feed(page_of(item))
  return counter


def read(item) -> None:
  pair, table, with_figure, _ = item
  counter = _tags(item)
  assert counter.tags["script"] == _SCRIPTS
  assert counter.tags.get("img", 0) <= 8
  assert not counter.handlers, counter.handlers
  for row in csv.reader(io.StringIO(tables.to_csv(table), newline="")):
    for cell in row:
      assert re.fullmatch(r"-?[\d.e+-]+", cell) or not cell.startswith(("=", "+", "-", "@", "＝"))
  tables.to_markdown(table).encode()
  latex = tables.to_latex(table)
  assert not re.search(r"\\(input|write|frac)\b", latex)
  assert not re.search(r"[\x00-\x08\x1b]", files.printable(pair.query_name))
  if with_figure:
    assert figure_png(pair).startswith(b"\x89PNG")
