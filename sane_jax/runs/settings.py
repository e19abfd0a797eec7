"""Settings: their checks, where configs lie, old names of fields, what a config says of each."""

import ast
import io
import pathlib
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from typing import Any

PACKAGE = pathlib.Path(__file__).parents[1]

# Old names of fields, which command lines and users' own config files may still use.
RENAMED = {
  "key": "seed",
  "outfits.key": "outfits.seed",
  "study.key": "study.seed",
  "attributes": "attributes_file",  # the path of a table; as a section it keeps its name
  "pairs": "pairs_file",  # likewise
  "explain.folder": "explain_matches.folder",
  "explain.num_pairs": "explain_matches.num_pairs",
  "explain.design": "explain_matches.design",
  "explain.num_masks": "explain_matches.num_masks",
}


# --- checks ---------------------------------------------------------------------------------------


def check_choice(field: str, value: Any, choices: Sequence[str]) -> None:
  """Raises ValueError unless `value` is one of `choices`."""
  if value not in choices:
    range_ = " or ".join(choices) if len(choices) < 3 else f"one of {', '.join(choices)}"
    raise ValueError(f"--config.{field} is {range_}; given {value!r}")


def check_range(field: str, value: float, least: float, most: float = float("inf")) -> None:
  """Raises ValueError unless least ≤ value ≤ most."""
  if not least <= value <= most:
    range_ = f"{least} or more" if most == float("inf") else f"{least} to {most}"
    raise ValueError(f"--config.{field} is {range_}; given {value}")


# --- names ----------------------------------------------------------------------------------------


def rename_flags(argv: Sequence[str]) -> list[str]:
  """The command line with the present names of fields; says on stderr what was renamed."""
  out = []
  for arg in argv:
    flag = re.fullmatch(r"(--?config\.)([\w.]+)(=.*)?", arg, re.DOTALL)
    new = RENAMED.get(flag[2]) if flag else None
    if flag and new:
      print(f"config: {flag[2]} is called {new} now; taken as {flag[1]}{new}", file=sys.stderr)
      arg = f"{flag[1]}{new}{flag[3] or ''}"
    out.append(arg)
  return out


# --- what a config says ---------------------------------------------------------------------------


def find_config(path: str) -> pathlib.Path:
  """A config file: that path, or the one of that name which this package carries.

  Raises:
    ValueError: there is none; names those that there are.
  """
  for home in (pathlib.Path.cwd(), PACKAGE, PACKAGE.parent):  # as it is; installed; in a checkout
    if (found := home / path).is_file():
      return found
  known = sorted(f"configs/{p.name}" for home in (PACKAGE, PACKAGE.parent)
                 for p in (home / "configs").glob("*.py"))  # fmt: skip
  raise ValueError(f"there is no file {path}; give one of {', '.join(known)}, or a file of yours")


def list_fields(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Each field of a mapping of mappings as `section.field`, with its value."""
  for name, value in settings.items():
    if hasattr(value, "items"):
      yield from list_fields(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", value


def read_comments(path: pathlib.Path) -> dict[str, str]:
  """What a config file says of each field; of those that it does not name, the file it inherits."""
  text = path.read_text()
  out: dict[str, str] = {}
  for name in re.findall(r'with_name\("(\w+\.py)"\)', text):
    if (other := path.with_name(name)).is_file():
      out |= read_comments(other)
  return out | parse_comments(text)


def parse_comments(text: str) -> dict[str, str]:
  """Comments of the fields that a config's source sets in `get_config`; '' where there is none."""
  comments = {
    token.start[0]: (token.string.lstrip("# "), token.line.strip().startswith("#"))
    for token in tokenize.generate_tokens(io.StringIO(text).readline)
    if token.type == tokenize.COMMENT
  }
  sections, fields = {"config": ""}, {}
  for node in _statements(text):
    place = next((t for t in node.targets if isinstance(t, ast.Attribute)), None)
    names = [t.id for t in node.targets if isinstance(t, ast.Name)]
    field = _dotted(place or node.value, sections)
    if field is None:
      continue
    sections |= dict.fromkeys(names, field)
    if place is None:  # a section gets a short name
      continue
    if re.search(r"ConfigDict\(\)$|\(\)\.\w+$", ast.unparse(node.value)):
      continue  # a section, new or another config's
    lines = (node.lineno, node.end_lineno)
    beside = [comments[n][0] for n in dict.fromkeys(lines) if n in comments and not comments[n][1]]
    beside = [c for c in beside if not c.startswith("fmt:")]
    above = []
    line = node.lineno - 1
    while line in comments and comments[line][1]:
      above.insert(0, comments[line][0])
      line -= 1
    fields[field] = " ".join(beside or above)
  return fields


def _statements(text: str) -> Iterator[ast.Assign]:
  """The assignments of `get_config`."""
  for node in ast.parse(text).body:
    if isinstance(node, ast.FunctionDef) and node.name == "get_config":
      yield from (each for each in node.body if isinstance(each, ast.Assign))


def _dotted(node: ast.AST, sections: dict[str, str]) -> str | None:
  """`section.field` of an attribute of the config; None of anything else."""
  first, *path = ast.unparse(node).split(".")
  if not isinstance(node, ast.Attribute) or first not in sections:
    return None
  return ".".join(filter(None, [sections[first], *path]))


def first_sentences(folder: pathlib.Path, modules: Sequence[str]) -> dict[str, str]:
  """What each job is for: the first paragraph of its module, which is not imported."""
  out = {}
  for name in modules:
    says = ast.get_docstring(ast.parse((folder / f"{name}.py").read_text())) or ""
    out[name] = says.split("\n\n")[0].replace("\n", " ").removeprefix("Job: ")
  return out
