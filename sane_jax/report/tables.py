"""Tables of results, for the page, Markdown, CSV and LaTeX.

Whatever a caller gives is text in each of them, never markup. Numbers carry a true minus sign where
people read them, and an ASCII one in CSV.
"""

import csv
import io
import math
import numbers
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from sane_jax.runs import files

_UNKNOWN = "–"
_DIRECTIONS = ("", "high", "low")


class Interval(NamedTuple):
  """A measured value and how sure it is.

  Attributes:
    value: NaN where nothing was measured.
    low: lower end of its interval; NaN where none is known.
    high: upper end.
    digits: decimals to show, of all three.
  """

  value: float
  low: float = math.nan
  high: float = math.nan
  digits: int = 1


# None is shown as a dash.
Cell = str | float | Interval | None


class Table(NamedTuple):
  """A table of results.

  Attributes:
    title: a short line.
    note: what was measured, on what, and which way is better.
    columns: names.
    rows: a cell a column.
    best: for each column "high" or "low" to have its best value set in bold, "" for none; () for
      none at all. What looks the same as the best at the digits shown is bold as well.
  """

  title: str
  note: str
  columns: tuple[str, ...]
  rows: tuple[tuple[Cell, ...], ...]
  best: tuple[str, ...] = ()


def check_table(table: Table) -> None:
  """Raises ValueError, naming the table and the cell, where a table does not fit together."""
  name = f"table {table.title!r}"
  if not all(isinstance(text, str) for text in (table.title, table.note, *table.columns)):
    raise ValueError(f"{name}: title, note and columns are text")
  if not table.columns:
    raise ValueError(f"{name} has no columns")
  if table.best and len(table.best) != len(table.columns):
    raise ValueError(f"{name}: best has {len(table.best)} entries for {len(table.columns)} columns")
  for direction in table.best:
    if direction not in _DIRECTIONS:
      raise ValueError(f"{name}: an entry of best is 'high', 'low' or ''; given {direction!r}")
  for number, row in enumerate(table.rows):
    if len(row) != len(table.columns):
      raise ValueError(
        f"{name}: row {number} has {len(row)} cells for {len(table.columns)} columns"
      )
    for column, cell in zip(table.columns, row, strict=True):
      if isinstance(cell, Interval):
        if not isinstance(cell.digits, numbers.Integral) or cell.digits < 0:
          raise ValueError(
            f"{name}, row {number}, {column!r}: digits is a whole number, 0 or more; given"
            f" {cell.digits!r}"
          )
        if not all(_is_number(value) for value in cell[:3]):
          raise ValueError(
            f"{name}, row {number}, {column!r}: an interval is of numbers; given {cell[:3]!r}"
          )
        if cell.low > cell.high:
          raise ValueError(
            f"{name}, row {number}, {column!r}: the interval [{cell.low}, {cell.high}] ends before"
            " it begins"
          )
      elif not (cell is None or isinstance(cell, str) or _is_number(cell)):
        raise ValueError(
          f"{name}, row {number}, {column!r}: a cell is text, a number, an Interval or None; given"
          f" {type(cell).__name__}"
        )


def percent(share: float, low: float = math.nan, high: float = math.nan) -> Interval:
  """A share with its interval, in per cent."""
  return Interval(100 * share, 100 * low, 100 * high)


def write(folder: pathlib.Path, tables: Mapping[str, Table], together: str = "tables.md") -> None:
  """Writes all tables to one Markdown file, and NAME.csv and NAME.tex of each.

  Raises:
    ValueError: a table does not fit together.
  """
  text = "\n\n".join(map(to_markdown, tables.values())) + "\n"
  files.write_bytes(folder / together, text.encode())
  for name, table in tables.items():
    files.write_bytes(folder / f"{name}.csv", to_csv(table).encode())
    files.write_bytes(folder / f"{name}.tex", to_latex(table).encode())


# --- numbers --------------------------------------------------------------------------------------


def format_number(value: float | None, *, signed: bool = False, digits: int = 3) -> str:
  """A number for reading, with a true minus sign; an en dash where there is none."""
  if value is None or not math.isfinite(value):
    return _UNKNOWN
  if value == 0:
    return "0"
  style = ",.0f" if abs(value) >= 1000 else f".{digits}g"
  return f"{float(value):{'+' if signed else ''}{style}}".replace("-", "−")


def format_fixed(value: float, digits: int) -> str:
  """A number with so many decimals, a true minus sign and no negative zero."""
  if not math.isfinite(value):
    return _UNKNOWN
  text = f"{float(value):,.{digits}f}"
  return text.lstrip("-") if float(text.replace(",", "")) == 0 else text.replace("-", "−")


def format_cell(cell: Cell) -> tuple[str, str]:
  """A cell's text and its interval's, as ("71.2", "[69.8, 72.5]"); "" where there is none."""
  if cell is None:
    return _UNKNOWN, ""
  if isinstance(cell, str):
    return one_line(cell), ""
  if isinstance(cell, Interval):
    bounds = [format_fixed(bound, cell.digits) for bound in (cell.low, cell.high)]
    known = math.isfinite(cell.value) and bounds != [_UNKNOWN] * 2
    return format_fixed(cell.value, cell.digits), f"[{', '.join(bounds)}]" if known else ""
  if isinstance(cell, numbers.Integral):
    return f"{int(cell):,}".replace("-", "−"), ""
  return format_number(float(cell)), ""


def _is_number(cell: Any) -> bool:
  return isinstance(cell, numbers.Real) and not isinstance(cell, bool)


def value_of(cell: Cell) -> float | None:
  """The number in a cell; None where there is none, or none that is finite."""
  if isinstance(cell, Interval):
    cell = cell.value
  if cell is None or isinstance(cell, str) or not math.isfinite(cell):
    return None
  return float(cell)


def numeric_columns(table: Table) -> list[bool]:
  """Which columns hold numbers, and so are set to the right: dashes and gaps do not count."""
  columns = zip(*table.rows, strict=True) if table.rows else [()] * len(table.columns)
  out = []
  for column in columns:
    cells = [cell for cell in column if cell not in (None, "", _UNKNOWN)]
    out.append(bool(cells) and not any(isinstance(cell, str) for cell in cells))
  return out


def best_cells(table: Table) -> set[tuple[int, int]]:
  """(row, column) of the cells to set in bold; none in a column with fewer than two numbers."""
  out: set[tuple[int, int]] = set()
  for column, direction in enumerate(table.best):
    values = {number: value_of(row[column]) for number, row in enumerate(table.rows)}
    known = {number: value for number, value in values.items() if value is not None}
    if not direction or len(known) < 2:
      continue
    pick = max if direction == "high" else min
    best = format_cell(table.rows[pick(known, key=known.__getitem__)][column])[0]
    out |= {
      (number, column) for number in known if format_cell(table.rows[number][column])[0] == best
    }
  return out


# --- Markdown -------------------------------------------------------------------------------------


def to_markdown(table: Table) -> str:
  """A heading, the note and a table in GitHub's Markdown, without a newline at the end.

  Raises:
    ValueError: the table does not fit together.
  """
  check_table(table)
  best, numeric = best_cells(table), numeric_columns(table)
  rows = [[_markdown(column) for column in table.columns]]
  rows.append(["---:" if right else "---" for right in numeric])
  for number, row in enumerate(table.rows):
    cells = []
    for column, cell in enumerate(row):
      value, bounds = format_cell(cell)
      value = _markdown(value) if isinstance(cell, str) else value
      value = f"**{value}**" if (number, column) in best else value
      cells.append(f"{value} {bounds}".strip())
    rows.append(cells)
  blocks = [f"### {_markdown(table.title)}"] if one_line(table.title) else []
  blocks += [_markdown(table.note)] if one_line(table.note) else []
  blocks.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
  return "\n\n".join(blocks)


def _markdown(text: str) -> str:
  """Text that Markdown takes as text: one line, all that could mean something escaped."""
  text = re.sub(r"([\\`*_{}\[\]|~$#])", r"\\\1", one_line(text))
  text = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", re.sub(r"&(?=[#A-Za-z0-9])", "&amp;", text))
  # What makes a list, a quotation or a rule out of a line that begins with it.
  text = re.sub(r"^([-+=>])", r"\\\1", text)
  return re.sub(r"^(\d{1,9})([.)])(?=\s|$)", r"\1\\\2", text)


# --- CSV ------------------------------------------------------------------------------------------


def to_csv(table: Table) -> str:
  """Comma-separated values, a header first: the numbers unrounded, for programs.

  A column with intervals becomes three, as "score", "score low" and "score high". What is not known
  is empty. Text that a spreadsheet would take for a formula has an apostrophe before it.

  Raises:
    ValueError: the table does not fit together.
  """
  check_table(table)
  triple = [
    any(isinstance(row[column], Interval) for row in table.rows)
    for column in range(len(table.columns))
  ]
  header = []
  for name, three in zip(table.columns, triple, strict=True):
    name = csv_text(name)
    header += [name, f"{name} low", f"{name} high"] if three else [name]
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(header)
  for row in table.rows:
    cells = []
    for cell, three in zip(row, triple, strict=True):
      if isinstance(cell, Interval):
        cells += [_plain_number(value) for value in cell[:3]]
      else:
        known = cell not in (None, _UNKNOWN)
        text = csv_text(cell) if isinstance(cell, str) else _plain_number(cell)
        cells.append(text if known else "")
        cells += ["", ""] * three
    writer.writerow(cells)
  return out.getvalue()


def csv_text(text: str) -> str:
  """Text on one line that no spreadsheet runs; it is what it was but for a leading apostrophe."""
  text = one_line(text)
  return f"'{text}" if text.startswith(_FORMULA) else text


_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # some take the wide ones, too


def _plain_number(value: float | None) -> str:
  if value is None or not math.isfinite(value):
    return ""
  return str(int(value)) if isinstance(value, numbers.Integral) else f"{float(value):.10g}"


# --- LaTeX ----------------------------------------------------------------------------------------


def to_latex(table: Table) -> str:
  """A `table` for a paper, with a newline at the end; the preamble needs `booktabs` alone.

  The title is the caption, the note stands under the table, intervals are set tiny. Greek letters,
  arrows and mathematical signs become commands; other characters beyond ASCII stay, in UTF-8.

  Raises:
    ValueError: the table does not fit together.
  """
  check_table(table)
  best, numeric = best_cells(table), numeric_columns(table)
  lines = [
    r"\begin{table}",
    r"\centering",
    rf"\caption{{{_latex(table.title)}}}",
    rf"\begin{{tabular}}{{{''.join('r' if right else 'l' for right in numeric)}}}",
    r"\toprule",
    f"{' & '.join(_latex(column) for column in table.columns)} \\\\",
    r"\midrule",
  ]
  for number, row in enumerate(table.rows):
    cells = []
    for column, cell in enumerate(row):
      value, bounds = map(_latex, format_cell(cell))
      value = rf"\textbf{{{value}}}" if (number, column) in best else value
      cells.append(rf"{value} {{\tiny {bounds}}}" if bounds else value)
    lines.append(f"{' & '.join(cells)} \\\\")
  lines += [r"\bottomrule", r"\end{tabular}"]
  if one_line(table.note):
    lines += ["", r"\smallskip", rf"\parbox{{\linewidth}}{{\footnotesize {_latex(table.note)}}}"]
  return "\n".join([*lines, r"\end{table}", ""])


_MATHEMATICS = {
  "−": "-", "×": r"\times", "·": r"\cdot", "±": r"\pm", "÷": r"\div", "°": r"^\circ",
  "↑": r"\uparrow", "↓": r"\downarrow", "→": r"\rightarrow", "←": r"\leftarrow",
  "≤": r"\leq", "≥": r"\geq", "≠": r"\neq", "≈": r"\approx", "∞": r"\infty", "∈": r"\in",
  "Σ": r"\Sigma", "Δ": r"\Delta", "Γ": r"\Gamma", "Θ": r"\Theta", "Λ": r"\Lambda", "Π": r"\Pi",
  "Φ": r"\Phi", "Ψ": r"\Psi", "Ω": r"\Omega", "α": r"\alpha", "β": r"\beta", "γ": r"\gamma",
  "δ": r"\delta", "ε": r"\varepsilon", "ζ": r"\zeta", "η": r"\eta", "θ": r"\theta", "ι": r"\iota",
  "κ": r"\kappa", "λ": r"\lambda", "μ": r"\mu", "µ": r"\mu", "ν": r"\nu", "ξ": r"\xi", "π": r"\pi",
  "ρ": r"\rho", "σ": r"\sigma", "τ": r"\tau", "υ": r"\upsilon", "φ": r"\varphi", "χ": r"\chi",
  "ψ": r"\psi", "ω": r"\omega",
  **{digit: f"_{i}" for i, digit in enumerate("₀₁₂₃₄₅₆₇₈₉")},
  **{digit: f"^{i}" for i, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
  "⁻": "^-", "‖": r"\|",
}  # fmt: skip
_LATEX: Mapping[str, str] = {
  **{character: f"\\{character}" for character in "&%$#_{}"},
  **{character: f"${command}$" for character, command in _MATHEMATICS.items()},
  "\\": r"\textbackslash{}",
  "~": r"\textasciitilde{}",
  "^": r"\textasciicircum{}",
  "<": r"\textless{}",
  ">": r"\textgreater{}",
  "|": r"\textbar{}",
  '"': r"\char34{}",  # by itself it is a command in some languages
  "`": r"\textasciigrave{}",
  # After the end of a row these two would be read as its arguments.
  "[": "{[}",
  "]": "{]}",
  "*": "{*}",
  "–": "--",
  "—": "---",
  "‘": "`",
  "’": "'",
  "“": "``",
  "”": "''",
  "…": r"\ldots{}",
  "\u00a0": "~",
  # Doubled they are other signs: dashes, quotation marks.
  "-": "-{}",
  "'": "'{}",
  ",": ",{}",
}


def _latex(text: str) -> str:
  """Text that LaTeX sets as text."""
  text = "".join(_LATEX.get(character, character) for character in one_line(text))
  # Braces are needed only between two that would join.
  return re.sub(r"([-',])\{\}(?!\1)", r"\1", text)


# --- JSON -----------------------------------------------------------------------------------------


def to_json(table: Table) -> dict[str, Any]:
  """A table as what JSON can hold; None stands for NaN.

  Raises:
    ValueError: the table does not fit together.
  """
  check_table(table)

  def number(value: float | None) -> float | int | None:
    if isinstance(value, numbers.Integral):
      return int(value)
    return float(value) if value is not None and math.isfinite(value) else None

  def encode(cell: Cell) -> Any:
    if isinstance(cell, Interval):
      low, high = number(cell.low), number(cell.high)
      return {"value": number(cell.value), "low": low, "high": high, "digits": int(cell.digits)}
    return cell if isinstance(cell, str) else number(cell)

  rows = [[encode(cell) for cell in row] for row in table.rows]
  return {**table._asdict(), "columns": list(table.columns), "rows": rows, "best": list(table.best)}


def from_json(document: Mapping[str, Any]) -> Table:
  """The table that `to_json` wrote.

  Raises:
    ValueError: it is no such document.
  """

  def decode(cell: Any) -> Cell:
    if not isinstance(cell, Mapping):
      return cell
    numbers_ = (math.nan if cell[key] is None else cell[key] for key in ("value", "low", "high"))
    return Interval(*numbers_, digits=cell["digits"])

  try:
    table = Table(
      document["title"],
      document["note"],
      tuple(document["columns"]),
      tuple(tuple(decode(cell) for cell in row) for row in document["rows"]),
      tuple(document.get("best", ())),
    )
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f"this is no table that to_json wrote: {type(error).__name__} {error}"
    ) from error
  check_table(table)
  return table


# --- text -----------------------------------------------------------------------------------------


def _writable(text: str) -> str:
  """Text that can be written: names of files may hold bytes that are no characters."""
  return text.encode("utf-8", "replace").decode("utf-8")


# Control characters, ends of lines, and what turns the direction of writing.
_CONTROL = re.compile("[\x00-\x20\x7f-\x9f\u2028-\u202e\u2066-\u2069]+")


def one_line(text: str) -> str:
  """Text on one line, without control characters."""
  return _CONTROL.sub(" ", _writable(text)).strip(" ")
