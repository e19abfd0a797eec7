"""Tests of tables: text stays text in every format, and numbers what they were."""

import csv
import io
import json
import math
import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sane_jax.report import tables as tables_lib
from sane_jax.report.tables import Interval, Table, to_csv, to_json, to_latex, to_markdown

NAN = math.nan
# What readers of a table may take for something else, more often than chance would draw it.
TEXT = st.text(
  st.one_of(
    st.sampled_from("\\`*_{}[]|~$#&%<>^\"'-+=.,:;!() \t\n01ab"), st.characters(codec="utf-8")
  )
)
ASCII = st.text(
  st.one_of(st.sampled_from("-',[]*\\{} "), st.characters(min_codepoint=32, max_codepoint=126))
)


def make_table(**changes):
  fields = {
    "title": "Insertion and deletion",
    "note": "12 pairs.",
    "columns": ("ranked by", "passes", "deletion ↑", "more"),
    "rows": (
      ("random", 0, Interval(1.25, 0.4, 2.06), "–"),
      ("map_fit", 2030, Interval(7.96, -6.1, 8.44), Interval(-0.5, -0.75, -0.25, 2)),
      ("all three", None, Interval(8.04, 7.7, 10.1), Interval(0.004, NAN, NAN, 2)),
    ),
    "best": ("", "low", "high", ""),
  }
  return Table(**{**fields, **changes})


def test_markdown():
  assert to_markdown(make_table()) == "\n".join(
    [
      "### Insertion and deletion",
      "",
      "12 pairs.",
      "",
      "| ranked by | passes | deletion ↑ | more |",
      "| --- | ---: | ---: | ---: |",
      "| random | **0** | 1.2 [0.4, 2.1] | – |",
      "| map\\_fit | 2,030 | 8.0 [−6.1, 8.4] | −0.50 [−0.75, −0.25] |",
      "| all three | – | **8.0** [7.7, 10.1] | 0.00 |",
    ]
  ).replace("| 8.0 [−6.1", "| **8.0** [−6.1")  # the same as the best at the digits shown


def test_csv_has_three_columns_an_interval_and_every_digit():
  rows = list(csv.DictReader(io.StringIO(to_csv(make_table()))))
  names = ["ranked by", "passes"]
  names += [f"{name}{end}" for name in ("deletion ↑", "more") for end in ("", " low", " high")]
  assert list(rows[0]) == names
  assert rows[1] == dict(
    zip(names, ["map_fit", "2030", "7.96", "-6.1", "8.44", "-0.5", "-0.75", "-0.25"], strict=True)
  )
  assert [rows[0][name] for name in ("more", "more low", "more high")] == [""] * 3
  assert (rows[2]["passes"], rows[2]["more"], rows[2]["more low"]) == ("", "0.004", "")
  assert to_csv(make_table()).encode().count("−".encode()) == 0


def test_latex():
  assert to_latex(make_table(note="5 % of φ_1")) == "\n".join(
    [
      r"\begin{table}",
      r"\centering",
      r"\caption{Insertion and deletion}",
      r"\begin{tabular}{lrrr}",
      r"\toprule",
      r"ranked by & passes & deletion $\uparrow$ & more \\",
      r"\midrule",
      r"random & \textbf{0} & 1.2 {\tiny {[}0.4, 2.1{]}} & -- \\",
      r"map\_fit & 2,030 & \textbf{8.0} {\tiny {[}$-$6.1, 8.4{]}} &"
      r" $-$0.50 {\tiny {[}$-$0.75, $-$0.25{]}} \\",
      r"all three & -- & \textbf{8.0} {\tiny {[}7.7, 10.1{]}} & 0.00 \\",
      r"\bottomrule",
      r"\end{tabular}",
      "",
      r"\smallskip",
      r"\parbox{\linewidth}{\footnotesize 5 \% of $\varphi$\_1}",
      r"\end{table}",
      "",
    ]
  )


@pytest.mark.parametrize(
  ("cell", "expected"),
  [
    (Interval(-0.04, -0.06, 0.04), ("0.0", "[−0.1, 0.0]")),
    (Interval(1234.5, 1200, 1300, 0), ("1,234", "[1,200, 1,300]")),
    (Interval(NAN, NAN, NAN), ("–", "")),
    (Interval(2.0, 1.0, math.inf), ("2.0", "[1.0, –]")),
    (np.float32(-0.25), ("−0.25", "")),
    (np.int64(-12345), ("−12,345", "")),
    (None, ("–", "")),
    (NAN, ("–", "")),
    ("a\r\n\tb\u202e\x00c", ("a b c", "")),
    ("caf\udce9", ("caf?", "")),
  ],
)
def test_cells_as_people_read_them(cell, expected):
  assert tables_lib.format_cell(cell) == expected


def test_best_is_by_the_values_and_needs_two():
  rows = ((-5, 1.0, 3, NAN), (7, 2.0, None, 2.0), (Interval(6.9, 0, 9), 2.0004, "–", NAN))
  table = Table("", "", tuple("abcd"), rows, ("low", "high", "high", "high"))
  assert tables_lib.best_cells(table) == {(0, 0), (1, 1), (2, 1)}
  assert tables_lib.best_cells(table._replace(best=())) == set()


def test_columns_of_numbers_are_set_to_the_right_whatever_is_unknown():
  rows = (("a", 1, "–", None, "1"), ("b", "", Interval(1.0), "–", 2))
  assert tables_lib.numeric_columns(Table("", "", tuple("abcde"), rows)) == [
    False, True, True, False, False,
  ]  # fmt: skip
  assert to_markdown(Table("", "", ("a",), ())) == "| a |\n| --- |"


@given(TEXT, TEXT)
@example("- a list", "1. another")
@example("+ a list", "> a quotation")
@example("2) a list", "=")
@example("# a heading", "***")
@example("&lt;b> <i>", "a | b \\| c")
def test_markdown_takes_any_text_as_text(text, other):
  markdown_it = pytest.importorskip("markdown_it")
  parser = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
  expected = [tables_lib.one_line(text), tables_lib.one_line(other)]
  table = Table(f"x{text}", f"{text}", (f"x{text}", "b"), ((text, other), (other, text)))
  tokens = parser.parse(to_markdown(table))
  inline = [token for token in tokens if token.type == "inline"]
  for token in inline:
    assert {child.type for child in token.children} <= {"text", "text_special"}, token
  kinds = [token.type for token in tokens if token.type.endswith("_open")]
  assert kinds[0] == "heading_open"
  assert kinds[1] == ("paragraph_open" if expected[0] else "table_open")
  assert set(kinds) <= {
    "heading_open", "paragraph_open", "table_open", "thead_open", "tbody_open",
    "tr_open", "th_open", "td_open",
  }  # fmt: skip
  read = ["".join(child.content for child in token.children).strip() for token in inline]
  assert [" ".join(r.split()) for r in read[-4:]] == [
    " ".join(e.split()) for e in [*expected, *expected[::-1]]
  ]


@given(TEXT.filter(lambda text: text != "–"))
def test_csv_gives_text_back_on_one_line(text):
  table = Table("", "", (f"x{text}", "b"), ((text, "y"),))
  read = list(csv.reader(io.StringIO(to_csv(table), newline="")))
  line = tables_lib.one_line(text)
  mark = "'" if line[:1] in set("=+-@＝＋－＠") else ""
  assert read == [[tables_lib.one_line(f"x{text}"), "b"], [mark + line, "y"]]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1+1", "@SUM(A1)", "\t=1+1", "＝1+1", " =1"])
def test_csv_runs_no_formula(text):
  table = Table("", "", (text, "b"), ((text, "y"), ("n", -1.5)))
  header, row, numbers = csv.reader(io.StringIO(to_csv(table), newline=""))
  assert header[0] == row[0] == "'" + text.strip()
  assert numbers == ["n", "-1.5"]


def read_latex(text):
  """The characters that LaTeX would set, for what `_latex` may use of its language."""
  words = {
    "textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<",
    "textgreater": ">", "textbar": "|", "textasciigrave": "`",
  }  # fmt: skip
  out, at = "", 0
  while at < len(text):
    rest = text[at:]
    if match := re.match(r"\\([&%$#_{}])", rest):
      out += match[1]
    elif match := re.match(r"\\char34\{\}", rest):
      out += '"'
    elif match := re.match(r"\\([a-z]+)\{\}", rest):
      out += words[match[1]]
    elif match := re.match(r"\{([\[\]*])?\}", rest):
      out += match[1] or ""
    elif match := re.match(r"--|''|,,|[\\`\[\]*<>|\"~^&%$#_{}]", rest):
      raise AssertionError(f"{match[0]!r} means something in {text!r}")
    else:
      match = re.match(r".", rest)
      assert match is not None
      out += match[0]
    at += match.end()
  return out


@given(ASCII)
@example("--x, ---, '', ,, {}{")
@example("[a] *")
def test_latex_sets_any_text_as_text(text):
  assert read_latex(tables_lib._latex(text)) == tables_lib.one_line(text)


def test_latex_knows_characters_that_its_fonts_lack():
  assert tables_lib._latex("−1 × φ₁ ≥ “a” – 2 °") == (
    r"$-$1 $\times$ $\varphi$$_1$ $\geq$ ``a'' -- 2 $^\circ$"
  )


def test_json_and_back():
  table = make_table()
  text = json.dumps(to_json(table), allow_nan=False)
  back = tables_lib.from_json(json.loads(text))
  assert repr(back) == repr(table)  # NaN is not equal to itself
  assert to_markdown(back) == to_markdown(table)
  with pytest.raises(ValueError, match="KeyError 'columns'"):
    tables_lib.from_json({"title": "", "note": ""})
  rows = [["x", {"value": 1, "low": 0, "high": "many", "digits": 1}]]
  with pytest.raises(ValueError, match="row 0, 'b': an interval is of numbers"):
    tables_lib.from_json({"title": "t", "note": "", "columns": ["a", "b"], "rows": rows})


def test_numbers_of_numpy_are_numbers():
  row = (np.float32(0.5), np.int64(3), Interval(np.float64(1), np.float32(0.5), np.float32(2)))
  table = Table("", "", tuple("abc"), (row,))
  assert json.loads(json.dumps(to_json(table)))["rows"] == [
    [0.5, 3, {"value": 1.0, "low": 0.5, "high": 2.0, "digits": 1}]
  ]
  assert to_csv(table) == "a,b,c,c low,c high\n0.5,3,1,0.5,2\n"


@pytest.mark.parametrize("write", [to_markdown, to_csv, to_latex, to_json])
@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"columns": ("a", "b"), "best": ()}, "row 0 has 4 cells for 2 columns"),
    ({"columns": (), "rows": (), "best": ()}, "no columns"),
    ({"best": ("high",)}, "best has 1 entries for 4 columns"),
    ({"best": ("", "", "", "up")}, "'high', 'low' or ''; given 'up'"),
    ({"rows": ((1, 2, 3, True),)}, "row 0, 'more': a cell is text, .* given bool"),
    ({"rows": ((1, 2, 3, [4]),)}, "given list"),
    ({"rows": ((1, 2, 3, Interval(2, 3, 1)),)}, r"\[3, 1\] ends before it begins"),
    ({"rows": ((1, 2, 3, Interval(2, 1, 3, -1)),)}, "digits is a whole number"),
  ],
)
def test_tables_that_do_not_fit_are_refused_by_name(write, changes, message):
  with pytest.raises(ValueError, match=message) as caught:
    write(make_table(**changes))
  assert "'Insertion and deletion'" in str(caught.value)
