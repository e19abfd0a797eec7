"""Writes docs/settings.md: `python docs/make_settings.py`; a test says when it is out of date."""

import ast
import pathlib
import runpy

from sane_jax import main
from sane_jax.runs import settings

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = ("photos", "demo", "synthetic", "polyvore", "awa2", "study", "generators", "benchmark")
INHERITS = {
  "demo": "synthetic", "synthetic": "polyvore", "awa2": "polyvore", "polyvore": "study",
}  # fmt: skip
HEAD = """# Jobs and settings

`python -m sane_jax.main --config=configs/photos.py` runs the job that the config names, here
`explain`; `--config.job=build_index` another one, and `--config.job=build_index,serve` both. Any
field is set by its name, as in `--config.image_size=112`; tuples and strings with blanks want
quotes: `--config.modes='("fixed",)'`. `sane_jax --help --config=configs/photos.py` prints the same
tables.
"""


def page() -> str:
  """Each job with what it does, and all fields of all configs with their defaults."""
  says = settings.first_sentences(ROOT / "sane_jax/jobs", main.JOBS)
  parts = [
    HEAD,
    _table(("job", "what it does"), [(f"`{job}`", text) for job, text in says.items()]),
  ]
  for name in CONFIGS:
    path = ROOT / f"configs/{name}.py"
    text = path.read_text()
    comments = settings.parse_comments(text)
    about = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0].replace("\n", " ")
    if other := INHERITS.get(name):
      about += f" The other fields are those of [{other}.py](#{other}py)."
    values = dict(settings.list_fields(runpy.run_path(str(path))["get_config"]()))
    rows = [
      (f"`{field}`", "–" if values[field] is None else f"`{values[field]!r}`", what)
      for field, what in comments.items()
    ]
    parts.append(f"\n## {name}.py\n\n{about}\n")
    parts.append(_table(("field", "default", "what it is"), rows))
  return "\n".join(parts) + "\n"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
  lines = [head, ("---",) * len(head), *rows]
  return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines)


if __name__ == "__main__":
  (ROOT / "docs/settings.md").write_text(page())
