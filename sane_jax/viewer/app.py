"""The viewer's application: one page, and the API that it asks."""

import concurrent.futures
import contextlib
import functools
import hashlib
import json
import logging
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Body, Depends, FastAPI, Header, Query, Request, Response
from fastapi import Path as PathPart

from sane_jax.datasets import images as images_lib
from sane_jax.models.model import Model
from sane_jax.report import page as report_page
from sane_jax.viewer import answers
from sane_jax.viewer import pictures as pictures_lib
from sane_jax.viewer.collection import UPLOAD, Collection, Upload, View
from sane_jax.viewer.measuring import Measuring
from sane_jax.web import guard
from sane_jax.web import pages as pages_lib
from sane_jax.web.guard import Limit, Refusal

MOST_NEIGHBORS = 200
PAGE_SIZE = 60  # images per page of the collection
_LOG = logging.getLogger("sane_jax.web")
_ID = r"^[A-Za-z0-9_-]+$"
_IMMUTABLE, _ASKED = "private, max-age=3600", "private, no-cache"
LIMITS = (
  Limit("/api/uploads", 0.2, 6, ("POST",)),
  Limit("/api/measurements", 0.5, 12, ("POST",)),
  Limit("/api/attributes", 5, 30),
  Limit("/", 200, 600),
)


class Options(NamedTuple):
  """Options of a viewer.

  Attributes:
    title: the page's heading.
    neighbors: matches shown for a query.
    no_uploads: why uploads are off; '' where they are on.
    no_attributes: why no attributes are shown; '' where they are.
    max_upload: largest photo, in bytes.
    max_pixels: largest photo, in pixels.
  """

  title: str = "Why do these match?"
  neighbors: int = 24
  no_uploads: str = ""
  no_attributes: str = ""
  max_upload: int = 16 << 20
  max_pixels: int = 24_000_000


class Viewer(NamedTuple):
  """The state that all routes share: `app.state.viewer`.

  Attributes:
    collection, model, measuring, rankers, options: as of `make_app`.
    pages: templates and static files.
    pictures: of the collection, encoded.
    views: by key, those of the indexes and those that are measured on demand.
    fingerprint: changes when an index grows or is another.
    decoding, ranking: held while an upload is decoded, and while attributes are ranked.
  """

  collection: Collection
  model: Model | None
  measuring: Measuring | None
  rankers: answers.Rankers | None
  options: Options
  pages: pages_lib.Pages
  pictures: pictures_lib.Pictures
  views: dict[str, View]
  fingerprint: str
  decoding: threading.Lock
  ranking: threading.Lock


async def _viewer(request: Request) -> Viewer:
  return request.app.state.viewer


Here = Annotated[Viewer, Depends(_viewer)]
Key = Annotated[str, Query(min_length=1, max_length=64, pattern=_ID)]
ViewKey = Annotated[str, Query(max_length=200)]
FormToken = Annotated[str, Header(max_length=200)]
page_routes, image_routes, pair_routes, upload_routes = (APIRouter() for _ in range(4))


def make_app(
  collection: Collection, *, model: Model | None = None, measuring: Measuring | None = None,
  rankers: answers.Rankers | None = None, options: Options = Options(),  # noqa: B008
) -> FastAPI:  # fmt: skip
  """The application; put `guard_app` around it.

  Args:
    collection: the images served.
    model: whose input size uploads are fitted to; given with `measuring`.
    measuring: measures uploads, and other designs; None to answer from the indexes alone.
    rankers: of attributes; None for none.
    options: see `Options`.
  """
  app = FastAPI(
    title="sane_jax viewer", version="1", docs_url=None, redoc_url=None,
    openapi_url="/api/openapi.json", lifespan=_lifespan, separate_input_output_schemas=False,
  )  # fmt: skip
  viewer = app.state.viewer = Viewer(
    collection, model, measuring, rankers, options,
    pages_lib.Pages(["sane_jax.report", "sane_jax.web", "sane_jax.viewer"]),
    pictures_lib.Pictures(collection),
    measuring.views if measuring is not None else dict(collection.views),
    _fingerprint(collection), threading.Lock(), threading.Lock(),
  )  # fmt: skip
  guard.add_handlers(app, viewer.pages.refusal)
  viewer.pages.add_static(app)
  for router in (page_routes, image_routes, pair_routes, upload_routes):
    app.include_router(router)
  # The default count, which the schema shows, is this viewer's.
  app.add_api_route(
    "/api/nearest", functools.partial(nearest, count=options.neighbors), name="nearest",
    description=nearest.__doc__,
  )  # fmt: skip
  return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
  viewer: Viewer = app.state.viewer
  # Embeddings are read while people look at the first page: no answer waits for them.
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    pool.submit(_warm, viewer.collection)
    yield
    if viewer.measuring is not None:
      viewer.measuring.close()


def guard_app(
  app: FastAPI, *, token: str = "", hosts: tuple[str, ...] | None = guard.LOOPBACK,
  max_upload: int = Options().max_upload, limits: tuple[Limit, ...] = LIMITS,
) -> guard.Guard:  # fmt: skip
  """The application behind its guard."""
  looks = pages_lib.Pages(["sane_jax.report", "sane_jax.web"])
  return guard.Guard(
    app, token=token, hosts=hosts, max_body=max_upload, limits=limits,
    render_refusal=looks.refusal,
  )  # fmt: skip


# --- shared by the routes -------------------------------------------------------------------------


def _find_view(viewer: Viewer, key: str) -> View:
  view = viewer.views.get(key) if key else viewer.collection.first
  if view is None:
    raise Refusal(404, "There is no such design and fill here; /api/status lists those there are.")
  return view


def _title(view: View) -> str:
  return f"the design {view.design} and the fill {view.fill}"


def _is_lasting(viewer: Viewer, view: View, *keys: str) -> bool:
  """Whether an answer is a function of the index and the address alone."""
  if view.stored is None or any(key.startswith(UPLOAD) for key in keys):
    return False
  return not any(viewer.collection.state(key, view.stored) for key in keys)


def _answer(
  request: Request, viewer: Viewer, make: Callable[[], Any], *, lasting: bool = False
) -> Response:
  """What `make` returns as JSON. A lasting answer that the browser has is a 304; `make` isn't run.

  Raises:
    Refusal: 409, not in the index; 500, the index is damaged.
  """
  headers = {"cache-control": "no-store"}
  if lasting:
    text = f"{viewer.fingerprint}?{request.url.path}?{request.url.query}"
    tag = f'"{hashlib.sha256(text.encode()).hexdigest()[:24]}"'
    headers = {"cache-control": "private, no-cache", "etag": tag}
    if tag in request.headers.get("if-none-match", ""):
      return Response(status_code=304, headers=headers)
  try:
    data = make()
  except KeyError as error:  # of the index: not measured, left out
    raise Refusal(409, str(error.args[0] if error.args else error)) from error
  except ValueError as error:
    if any(word in str(error).lower() for word in ("data_loss", "zarr", "zstd", "shard")):
      _LOG.error("the index is damaged: %s", error)
      raise Refusal(
        500, "The part of the index that holds this is damaged; the log says where. Remove that"
        " file and build the index again: the rest is kept.",
      ) from error  # fmt: skip
    raise
  text = json.dumps(data, allow_nan=False, separators=(",", ":"))
  return Response(text.encode(), media_type="application/json", headers=headers)


def _describe(viewer: Viewer, key: str) -> dict[str, Any]:
  uploaded = key.startswith(UPLOAD)
  return {
    "key": key, "name": viewer.collection.name_of(key), "missing": viewer.pictures.is_missing(key),
    "uploaded": uploaded, "mapped": key in viewer.collection.mapped or uploaded,
    "version": _version(viewer, key),
  }  # fmt: skip


def _version(viewer: Viewer, key: str) -> str:
  """Of the photo that an image is now: its picture is asked for by it, and is no other's."""
  state = viewer.collection.state(key)
  return hashlib.sha256(f"{viewer.fingerprint} {state}".encode()).hexdigest()[:12]


# --- pages ----------------------------------------------------------------------------------------


@page_routes.get("/", include_in_schema=False)
def home(request: Request, viewer: Here) -> Response:
  text = viewer.pages.render(
    "viewer.html.j2", title=viewer.options.title, form_token=guard.form_token(request),
    colors=report_page.json_block(report_page.lookup_tables()),
    status=report_page.json_block(_status_json(viewer)), attributes=viewer.rankers is not None,
  )  # fmt: skip
  return Response(text, media_type="text/html; charset=utf-8")


def _status_json(viewer: Viewer) -> dict[str, Any]:
  collection, options, measuring = viewer.collection, viewer.options, viewer.measuring
  left_out = len(collection.left_out)
  notices = []
  if left_out:
    some = next(iter(collection.left_out))
    notices.append(
      f"{left_out} image{'s' if left_out > 1 else ''} could not be read when the index was built"
      f" and {'are' if left_out > 1 else 'is'} not shown, such as {some.rpartition('/')[2]}."
    )
  return {
    "images": len(collection.keys) - left_out,
    "left_out": left_out,
    "mapped": len(collection.mapped),
    "page_size": PAGE_SIZE,
    "neighbors": options.neighbors,
    "model": str(collection.first.settings.get("model", "")),
    "view": collection.first.key,
    "views": [
      {
        "key": v.key,
        "design": v.design,
        "fill": v.fill,
        "modes": list(v.modes),
        "held": v.stored is not None,
        "passes": v.passes,
        "settings": {name: str(value) for name, value in v.settings.items()},
      }
      for v in viewer.views.values()
    ],
    "no_uploads": options.no_uploads if measuring is None else "",
    "max_upload": options.max_upload,
    "max_pixels": options.max_pixels,
    "no_attributes": options.no_attributes if viewer.rankers is None else "",
    "upload_passes": measuring.passes(collection.first) if measuring is not None else 0,
    "waiting": measuring.busy() if measuring is not None else 0,
    "notices": notices,
  }


@page_routes.get("/api/status")
def status(request: Request, viewer: Here) -> Response:
  """What is served: how many images, which designs and fills, whether photos are taken."""
  return _answer(request, viewer, lambda: _status_json(viewer))


# --- images of the collection ---------------------------------------------------------------------


@image_routes.get("/api/images")
def images(
  request: Request, viewer: Here, search: Annotated[str, Query(max_length=400)] = "",
  offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
  count: Annotated[int, Query(ge=1, le=500)] = PAGE_SIZE,
) -> Response:  # fmt: skip
  """Images whose name holds `search`: first those that have maps of their own, in order."""
  found = viewer.collection.search(search)
  some = found[offset : offset + count]
  return _answer(
    request, viewer,
    lambda: {
      "total": len(found), "offset": offset, "images": [_describe(viewer, key) for key in some],
    },
  )  # fmt: skip


@image_routes.get("/api/images/random")
def any_image(request: Request, viewer: Here) -> Response:
  """One of the images that have maps of their own, at random."""
  return _answer(request, viewer, lambda: _describe(viewer, viewer.collection.random_key()))


@image_routes.get("/api/images/{key}/picture", response_class=Response)
def picture(
  request: Request, viewer: Here, key: Annotated[str, PathPart(max_length=64, pattern=_ID)],
  thumbnail: bool = False, version: Annotated[str, Query(max_length=64)] = "",
) -> Response:  # fmt: skip
  """An image as the model sees it, or a small one of it: JPEG or PNG, encoded anew.

  With the `version` that an answer gave with the image, it is that photo's and no other's.
  """
  found = viewer.pictures.get(key, thumbnail=thumbnail)
  if version and version != _version(viewer, key):
    name = viewer.collection.name_of(key)
    raise Refusal(410, f"{name} was replaced by another photo. Load the page again.")
  headers = {"cache-control": _IMMUTABLE if version else _ASKED, "etag": f'"{found.tag}"'}
  if headers["etag"] in request.headers.get("if-none-match", ""):
    return Response(status_code=304, headers=headers)
  return Response(found.data, media_type=found.kind, headers=headers)


# --- explanations ---------------------------------------------------------------------------------


def nearest(
  request: Request, viewer: Here, query: Key, view: ViewKey = "", *,
  count: Annotated[int, Query(ge=1, le=MOST_NEIGHBORS)],
) -> Response:  # fmt: skip
  """The images most like the query, best first, among all of the collection."""
  chosen = _find_view(viewer, view)

  def make() -> dict[str, Any]:
    found = viewer.collection.nearest(query, chosen, count)
    return {
      "query": _describe(viewer, query),
      "matches": [
        {**_describe(viewer, key), "score": answers.number(score)} for key, score in found
      ],
      "encoder_passes": 0,
    }

  return _answer(request, viewer, make)  # any of all photos may be another now


@pair_routes.get("/api/pair")
def pair(
  request: Request, viewer: Here, query: Key, reference: Key, view: ViewKey = "",
  mode: Annotated[str, Query(pattern="^(fixed|both)$")] = "fixed",
) -> Response:  # fmt: skip
  """Why two images match: the maps of both sides, and which region matches which.

  `values` are of cells, row by row, signed: above 0 where showing the cell raises the score.
  `codes` is base64 of deflated differences of integers −127 to 127, relative to `limit`; two cells
  match from a cosine of `least` on.
  """
  chosen, collection = _find_view(viewer, view), viewer.collection

  def make() -> dict[str, Any]:
    if mode not in chosen.modes:
      raise Refusal(409, f"With {_title(chosen)} there are no maps of both perturbed.")
    found = answers.explain_pair(collection, query, reference, chosen, mode)
    maps = ((query, found.query_map), (reference, found.reference_map))
    measured = {key: collection.measured(key, chosen) for key, _ in maps}
    shapes = [values.shape if values is not None else (1, 1) for _, values in maps]
    return {
      "query": _describe(viewer, query),
      "reference": _describe(viewer, reference),
      "view": chosen.key,
      "mode": mode,
      "score": answers.number(found.score),
      "query_map": answers.map_json(found.query_map, found.query_error, chosen.smooth),
      "reference_map": answers.map_json(found.reference_map, found.reference_error, chosen.smooth),
      "correspondence": answers.correspondence_json(found.correspondence, *shapes),
      "encoder_passes": 0,
      "measured_passes": {key: one.passes if one else 0 for key, one in measured.items()},
      "missing": [
        _missing(viewer, chosen, key)
        for (key, values), other in zip(maps, (reference, query), strict=True)
        if values is None and collection.side(key, chosen, other) is None
      ],
    }

  return _answer(request, viewer, make, lasting=_is_lasting(viewer, chosen, query, reference))


@pair_routes.get("/api/contrast")
def contrast(
  request: Request, viewer: Here, query: Key, a: Key, b: Key, view: ViewKey = ""
) -> Response:
  """Why the query matches `a` rather than `b`: above 0 where a cell speaks for `a`."""
  chosen, collection = _find_view(viewer, view), viewer.collection

  def make() -> dict[str, Any]:
    scores, values, error = answers.explain_contrast(collection, query, a, b, chosen)
    tables = {}
    for name, key in (("a", a), ("b", b)):
      one, other = collection.side(query, chosen, key), collection.side(key, chosen, query)
      tables[name] = answers.correspondence_json(
        answers.correspond(one, other), one.grid if one else (1, 1), other.grid if other else (1, 1)
      )
    return {
      "query": _describe(viewer, query),
      "a": _describe(viewer, a),
      "b": _describe(viewer, b),
      "view": chosen.key,
      "scores": {"a": answers.number(scores[0]), "b": answers.number(scores[1])},
      "score": answers.number(scores[0] - scores[1]),
      "query_map": answers.map_json(values, error, chosen.smooth),
      "correspondence": tables,
      "encoder_passes": 0,
      "missing": [_missing(viewer, chosen, query)] if values is None else [],
    }

  return _answer(request, viewer, make, lasting=_is_lasting(viewer, chosen, query, a, b))


@pair_routes.get("/api/attributes")
def attributes(
  request: Request, viewer: Here, query: Key, reference: Key, view: ViewKey = ""
) -> Response:
  """Which attributes explain the match, with where the query shows them; and a sentence."""
  chosen, rankers = _find_view(viewer, view), viewer.rankers

  def make() -> dict[str, Any]:
    if rankers is None:
      raise Refusal(404, viewer.options.no_attributes or "No attributes are served here.")
    try:
      with viewer.ranking:
        return answers.rank_attributes(viewer.collection, rankers, query, reference, chosen)
    except images_lib.ImageError as error:
      raise Refusal(
        410, "The query's photo can't be read: its file may be gone. Attributes are seen in it."
      ) from error

  return _answer(request, viewer, make, lasting=_is_lasting(viewer, chosen, query, reference))


def _missing(viewer: Viewer, view: View, key: str) -> dict[str, Any]:
  """Why an image has no map in a view, and what measuring would cost."""
  collection = viewer.collection
  name = collection.name_of(key)
  why, worker = f"{name} is not measured with {_title(view)} yet.", viewer.measuring
  if collection.state(key, view.stored):
    why = collection.why_changed(key)
  elif view.stored is not None and key in collection.ids:
    worker = None
    if view.stored.has_effects(collection.ids[key]):
      why = (
        f"{name} was not measured in the space that it shares with that image: no map. An index"
        " built with --config.index.every_type=True has all."
      )
    elif view.stored is collection.first.stored:
      why = (
        f"No map on {name}: the index measured {len(collection.mapped):,} of its"
        f" {len(collection.keys):,} images, and not this one."
      )
    else:
      why = f"No map on {name}: this index did not measure it."
  passes = worker.passes(view) if worker is not None else 0
  return {"key": key, "why": why, "can_measure": worker is not None, "passes": passes}


# --- uploads, and other designs -------------------------------------------------------------------


def _measuring(viewer: Viewer) -> Measuring:
  if viewer.measuring is None:
    raise Refusal(409, viewer.options.no_uploads or "This server answers from its index alone.")
  return viewer.measuring


@upload_routes.post("/api/uploads")
def upload(
  request: Request, viewer: Here,
  photo: Annotated[bytes, Body(media_type="application/octet-stream")],
  view: ViewKey = "", x_form_token: FormToken = "",
  name: Annotated[str, Query(max_length=400)] = "",
) -> Response:  # fmt: skip
  """Takes a photo (the body: JPEG, PNG, WebP, ...) and measures it; its task is answered."""
  guard.check_form(request, x_form_token)
  worker, chosen, model = _measuring(viewer), _find_view(viewer, view), viewer.model
  assert model is not None
  if worker.busy() > len(worker.views):  # before decoding what can't be taken
    raise Refusal(503, "Too many photos wait; try again in a minute.", {"retry-after": "60"})
  with viewer.decoding:
    try:
      image = pictures_lib.read_upload(photo, viewer.options.max_pixels)
      pixels = images_lib.fit_image(
        image, model.image_size, fit=model.fit, crop_fraction=model.crop_fraction,
        interpolation=model.interpolation,
      )  # fmt: skip
    except images_lib.ImageError as error:
      raise Refusal(422, str(error)) from error
  key = UPLOAD + secrets.token_urlsafe(18)
  shown = name.replace("\\", "/").rpartition("/")[2].strip() or "your photo"
  viewer.collection.uploads.put(key, Upload(shown[:300], pixels))
  return _answer(request, viewer, worker.submit(key, chosen)._asdict)


@upload_routes.post("/api/measurements")
def measure(
  request: Request, viewer: Here, image: Key, view: ViewKey = "", x_form_token: FormToken = ""
) -> Response:
  """Measures an image with another design and fill; its task is answered."""
  guard.check_form(request, x_form_token)
  worker, chosen = _measuring(viewer), _find_view(viewer, view)
  viewer.collection.name_of(image)
  replaced = viewer.collection.state(image, chosen.stored)
  if chosen.stored is not None and image in viewer.collection.ids and not replaced:
    raise Refusal(409, f"The index has {_title(chosen)}: there is nothing to measure.")
  return _answer(request, viewer, worker.submit(image, chosen)._asdict)


@upload_routes.get("/api/tasks/{task}")
def task_status(
  request: Request, viewer: Here, task: Annotated[str, PathPart(max_length=64, pattern=_ID)]
) -> Response:
  """How far a task is: its place while it waits, then encoder passes."""
  return _answer(request, viewer, _measuring(viewer).status(task)._asdict)


@upload_routes.delete("/api/tasks/{task}")
def cancel(
  request: Request, viewer: Here, task: Annotated[str, PathPart(max_length=64, pattern=_ID)],
  x_form_token: FormToken = "",
) -> Response:  # fmt: skip
  """Gives a task up."""
  guard.check_form(request, x_form_token)
  return _answer(request, viewer, _measuring(viewer).cancel(task)._asdict)


# --- the index ------------------------------------------------------------------------------------


def _fingerprint(collection: Collection) -> str:
  """Changes when an index grows or is another."""
  parts = [
    [view.key, view.settings, list(view.stored.ids), sorted(view.stored.left_out)]
    for view in collection.views.values()
    if view.stored is not None
  ]
  text = json.dumps([parts, secrets.token_hex(8)], sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()


def _warm(collection: Collection) -> None:
  """Reads what every answer needs, and compiles what the first would wait for."""
  began = time.monotonic()
  try:
    key = next(key for key in collection.keys if collection.ids[key] in (collection.indexes[0]))
    near = collection.nearest(key, collection.first, 1)
    answers.explain_pair(collection, key, near[0][0] if near else key, collection.first, "fixed")
    _LOG.info("the index is in memory after %.1f s", time.monotonic() - began)
  except Exception as error:  # reported to the first request that needs it
    _LOG.warning("the index could not be read ahead: %s", error)
