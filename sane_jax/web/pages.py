"""Templates and static files of an application, read once: no path from a client reaches a disk."""

import hashlib
import importlib.resources
import mimetypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2


class Asset(NamedTuple):
  """A static file."""

  data: bytes
  kind: str
  tag: str


class Pages:
  """Renders an application's templates and serves its static files.

  `static(name)` in a template is the address of a file, which changes with its content; so browsers
  may keep it.

  Args:
    folders: packages whose *.html.j2 are templates and whose *.css, *.js, *.svg, *.png are static
      files; the later ones win.
  """

  def __init__(self, folders: Sequence[str]):
    templates: dict[str, str] = {}
    self.assets: dict[str, Asset] = {}
    for package in folders:
      for entry in importlib.resources.files(package).iterdir():
        if entry.name.endswith(".html.j2"):
          templates[entry.name] = entry.read_text(encoding="utf-8")
        elif entry.name.endswith((".css", ".js", ".svg", ".png")):
          data = entry.read_bytes()
          kind = mimetypes.guess_type(entry.name)[0] or "application/octet-stream"
          if kind.startswith("text/"):
            kind += "; charset=utf-8"
          self.assets[entry.name] = Asset(data, kind, hashlib.sha256(data).hexdigest()[:16])
    self._environment = jinja2.Environment(
      loader=jinja2.DictLoader(templates), autoescape=True, undefined=jinja2.StrictUndefined,
      trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    self._environment.globals["static"] = self.address

  def address(self, name: str) -> str:
    """Of a static file."""
    return f"/static/{name}?v={self.assets[name].tag}"

  def render(self, template: str, **values: Any) -> str:
    """The page; everything given is text, never markup."""
    text = self._environment.get_template(template).render(**values)
    return text.encode("utf-8", "replace").decode()  # lone surrogates of file names

  def refusal(self, status: int, title: str, message: str) -> str:
    """What people see where a request is refused; see `guard.Guard`."""
    return self.render("refusal.html.j2", status=status, title=title, message=message)

  def add_static(self, app: Any) -> None:
    """Serves /static/NAME to a FastAPI application."""
    from fastapi import Request, Response

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str, request: Request) -> Response:
      asset = self.assets.get(name)
      if asset is None:
        return Response(status_code=404)
      headers = {"cache-control": "public, max-age=31536000, immutable", "etag": f'"{asset.tag}"'}
      if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
      return Response(asset.data, media_type=asset.kind, headers=headers)
