"""What the site is made of beside its pages: equations, settings, notebooks, files of the root.

MkDocs calls the `on_...` functions (mkdocs.yml, `hooks`). A page may link to a file outside docs/,
so that the link works where the repository is read, too; here such links go to the page made of it.
"""

import ast
import functools
import html
import importlib
import io
import os
import pathlib
import posixpath
import re
import runpy
import tokenize

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
# Files of the root that are pages of the site, and links to others that are.
PAGES = {"CHANGELOG.md": "changelog.md", "launch/README.md": "launch.md"}
CONFIGS = ("photos", "demo", "synthetic", "polyvore", "awa2", "generators", "benchmark")
# What a page fetches by itself when it is opened: nothing from elsewhere.
FETCHED = re.compile(
  r"""<(?:script|img|iframe|source|video|link(?=[^>]*rel="?(?:stylesheet|preload|icon|preconnect)))"""
  r"""[^>]*?(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)"""
)


def on_files(files, config):
  """Adds pages that are made of files outside docs/, and the notebooks with what they gave."""
  for source, page in PAGES.items():
    files.append(File.generated(config, page, content=(ROOT / source).read_text()))
  for path in sorted((ROOT / "docs/notebooks").glob("*.py")):
    text, pictures = run_notebook(path, path.stat().st_mtime_ns)
    files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
    for name, data in pictures.items():
      files.append(File.generated(config, f"notebooks/{name}", content=data))
  return files


def on_page_markdown(markdown, page, config, files):
  here = next((s for s, p in PAGES.items() if p == page.file.src_uri), f"docs/{page.file.src_uri}")
  markdown = re.sub(
    r"(\]\()([^)#:\s]+)((?:#[^)]*)?\))",
    lambda m: m[1] + _target(m[2], here, page.file.src_uri) + m[3],
    markdown,
  )
  markdown = markdown.replace("<!-- jobs -->", jobs_table())
  return markdown.replace("<!-- settings -->", settings_tables())


def _target(link: str, source: str, page: str) -> str:
  """Where a link of a file of the repository leads on the site."""
  path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
  if path in PAGES:
    path = PAGES[path]
  elif (match := re.fullmatch(r"configs/(\w+)\.py", path)) and match[1] in CONFIGS:
    return posixpath.relpath("settings.md", posixpath.dirname(page) or ".") + f"#{match[1]}py"
  elif path.startswith("docs/notebooks/") and path.endswith(".py"):
    path = path.removeprefix("docs/").removesuffix(".py") + ".md"
  elif path.startswith("docs/"):
    path = path.removeprefix("docs/")
  else:
    return link  # MkDocs says that there is no such page
  return posixpath.relpath(path, posixpath.dirname(page) or ".")


def on_page_content(content, page, config, files):
  """Equations as MathML, which browsers show without a script."""

  def block(match):
    return f'<div class="math">{convert(html.unescape(match[1]).strip(), display="block")}</div>'

  content = re.sub(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', block, content, flags=re.S)
  return re.sub(
    r'<span class="arithmatex">\\\((.*?)\\\)</span>',
    lambda m: convert(html.unescape(m[1])),
    content,
    flags=re.S,
  )


def on_post_build(config):
  """Raises if a page would fetch anything from elsewhere."""
  site = pathlib.Path(config["site_dir"])
  found = [
    f"{path.relative_to(site)}: {url}"
    for path in sorted(site.rglob("*.html"))
    for url in FETCHED.findall(path.read_text())
  ] + [
    f"{path.relative_to(site)}: {url}"
    for path in sorted(site.rglob("*.css"))
    for url in re.findall(
      r"""(?:url\(|@import\s+)["']?((?:https?:)?//[^"')\s]+)""", path.read_text()
    )
  ]
  if found:
    raise PluginError("the site is to fetch nothing from elsewhere; it would: " + ", ".join(found))


# --- jobs and settings ----------------------------------------------------------------------------


def jobs_table() -> str:
  """Each job with the first sentence of its module."""
  main = ast.parse((ROOT / "sane_jax/main.py").read_text())
  jobs = next(
    ast.literal_eval(node.value)
    for node in main.body
    if isinstance(node, ast.Assign) and node.targets[0].id == "JOBS"
  )
  rows = ["| job | what it does |", "| --- | --- |"]
  for job in jobs:
    text = ast.get_docstring(ast.parse((ROOT / f"sane_jax/jobs/{job}.py").read_text()))
    first = text.split("\n\n")[0].replace("\n", " ").removeprefix("Job: ")
    rows.append(f"| `{job}` | {_cell(first)} |")
  return "\n".join(rows)


def settings_tables() -> str:
  """All fields of all configs: name, value, and the comment that stands beside it."""
  parts = []
  for name in CONFIGS:
    path = ROOT / f"configs/{name}.py"
    text = path.read_text()
    config = runpy.run_path(str(path))["get_config"]()
    says = ast.get_docstring(ast.parse(text)).split("\n\n")[0].replace("\n", " ")
    rows = ["| field | value | |", "| --- | --- | --- |"]
    for field, comment in config_fields(text):
      value = functools.reduce(lambda node, key: node[key], field.split("."), config)
      if hasattr(value, "items"):
        continue
      shown = "–" if value is None else f"`{value!r}`"
      rows.append(f"| `{field}` | {_cell(shown)} | {_cell(comment)} |")
    rest = {
      "demo": "The other fields are those of [synthetic.py](#syntheticpy).",
      "synthetic": "The other fields are those of [polyvore.py](#polyvorepy).",
      "awa2": "The other fields are those of [polyvore.py](#polyvorepy).",
    }.get(name, "")
    parts.append(f"## {name}.py\n\n{says} {rest}\n\n" + "\n".join(rows))
  return "\n\n".join(parts)


def config_fields(text: str) -> list[tuple[str, str]]:
  """Fields that `get_config` sets, as `section.field`, with their comments.

  Raises:
    ValueError: a field without a comment.
  """
  comments = {
    token.start[0]: (token.string.lstrip("# "), token.line.strip().startswith("#"))
    for token in tokenize.generate_tokens(io.StringIO(text).readline)
    if token.type == tokenize.COMMENT
  }
  body = next(
    node.body
    for node in ast.parse(text).body
    if isinstance(node, ast.FunctionDef) and node.name == "get_config"
  )
  sections, fields = {"config": ""}, []
  for node in body:
    if not isinstance(node, ast.Assign):
      continue
    place = next((t for t in node.targets if isinstance(t, ast.Attribute)), None)
    if place is None:  # index = config.index
      if isinstance(node.value, ast.Attribute):
        sections[node.targets[0].id] = _dotted(node.value, sections)
      continue
    field = _dotted(place, sections)
    for target in node.targets:
      if isinstance(target, ast.Name):
        sections[target.id] = field
    if isinstance(node.value, ast.Call) and ast.unparse(node.value.func).endswith("ConfigDict"):
      continue
    lines = (node.lineno, node.end_lineno)
    beside = [comments[n][0] for n in dict.fromkeys(lines) if n in comments and not comments[n][1]]
    beside = [c for c in beside if not c.startswith("fmt:")]
    above = []
    line = node.lineno - 1
    while line in comments and comments[line][1]:
      above.insert(0, comments[line][0])
      line -= 1
    if not above and not beside:
      raise ValueError(f"the field {field} has no comment")
    fields.append((field, " ".join(above if above and not beside else [*beside])))
  return fields


def _dotted(node: ast.Attribute, sections: dict[str, str]) -> str:
  *path, field = ast.unparse(node).split(".")
  return ".".join(filter(None, [sections[path[0]], *path[1:], field]))


def _cell(text: str) -> str:
  return text.replace("|", "\\|")


# --- notebooks ------------------------------------------------------------------------------------


@functools.cache
def run_notebook(path: pathlib.Path, _changed: int) -> tuple[str, dict[str, bytes]]:
  """A script of cells (`# %%`) as Markdown with what each cell gave, and its pictures.

  Raises:
    nbclient.exceptions.CellExecutionError: a cell fails; the build ends.
  """
  jupytext, nbclient, exporters = (
    importlib.import_module(name) for name in ("jupytext", "nbclient", "nbconvert.exporters")
  )
  notebook = jupytext.read(path)
  notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
  if os.environ.get("SANE_JAX_NOTEBOOKS") != "0":  # 0: cells alone, to see pages sooner
    place = {"metadata": {"path": str(ROOT)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=place).execute()
  exporter = exporters.MarkdownExporter()
  text, resources = exporter.from_notebook_node(
    notebook, {"output_files_dir": "pictures", "unique_key": path.stem}
  )
  return re.sub(r"  # noqa: .*", "", text), resources["outputs"]
