"""What the site is made of beside its pages: equations, notebooks, files of the root.

MkDocs calls the `on_...` functions (mkdocs.yml, `hooks`). A page may link to a file outside docs/,
so that the link works where the repository is read, too; here such links go to the page made of it.
"""

import functools
import html
import importlib
import os
import pathlib
import posixpath
import re

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
# Files of the root that are pages of the site, and links to others that are.
PAGES = {"CHANGELOG.md": "changelog.md", "launch/README.md": "launch.md"}
CONFIGS = {path.stem for path in (ROOT / "configs").glob("*.py")}
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
  return re.sub(
    r"(\]\()([^)#:\s]+)((?:#[^)]*)?\))",
    lambda m: m[1] + _target(m[2], here, page.file.src_uri) + m[3],
    markdown,
  )


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
