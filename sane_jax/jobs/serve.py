"""Job: the live viewer on explanation indexes, in a browser."""

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging as absl_logging

from sane_jax.attributes import pairs as pairs_lib
from sane_jax.attributes import spaces, trained
from sane_jax.attributes import table as attribute_table
from sane_jax.datasets import load
from sane_jax.maps import reasons, tasks
from sane_jax.maps.index import ExplanationIndex
from sane_jax.models import model as model_lib
from sane_jax.runs import files, processes
from sane_jax.runs.settings import check_choice, check_range
from sane_jax.viewer.collection import Collection
from sane_jax.viewer.measuring import Measuring
from sane_jax.web import server

SETTING = "--config.serve"


class Served(NamedTuple):
  """What a server answers from.

  Attributes:
    collection: the images of the indexes.
    folders: of the indexes.
    rankers: rank the attributes of a pair, given its images' names (None: a photo that was sent).
    no_attributes: why there are none.
    no_uploads: why no photos are taken; empty where they are.
    model: what is explained, where photos are taken.
    measuring: measures them with it.
  """

  collection: Collection
  folders: Sequence[Any]
  rankers: Callable[[str | None, str | None], reasons.Ranker] | None
  no_attributes: str
  no_uploads: str
  model: model_lib.Model | None = None
  measuring: Measuring | None = None


def check(config: Any) -> None:
  """Raises ValueError for settings that can't be; reads no data and writes nothing."""
  settings = config.serve
  for name, least, most in (
    ("neighbors", 1, 200), ("max_upload_mb", 0.01, 1000), ("max_megapixels", 0.01, 1000),
    ("cache_gib", 0, 1 << 20), ("threads", 1, 256),
  ):  # fmt: skip
    check_range(f"serve.{name}", settings[name], least, most)
  for name in ("certificate", "certificate_key"):
    if settings[name] and not files.at(settings[name]).exists():
      raise ValueError(f"{SETTING}.{name}: there is no file {settings[name]}")
  server.choose_address(settings.host, settings.port, settings.token, SETTING)
  if "photos" not in config:
    load.check_data(config.data)
    check_choice("serve.split", settings.split, ("train", "valid", "test"))


def run(config: Any) -> None:
  """Serves the index that build_index left in WORKDIR, or those that the config names.

  Answers come from the index; the model is loaded only to measure photos that visitors send and
  other designs (`config.serve.uploads`). Serves until Ctrl-C or SIGTERM. Of several processes the
  first alone serves.

  Raises:
    ValueError: no index there; one of another model than `config.model`; settings that can't be.
    OSError: the port is in use.
  """
  if not processes.is_first():
    return
  with server.needing_libraries():
    from sane_jax.viewer import app as app_lib
  check(config)
  settings = config.serve
  absl_logging.set_verbosity(max(absl_logging.get_verbosity(), absl_logging.WARNING))
  logging.getLogger("sane_jax.web").setLevel(logging.INFO)
  address = server.choose_address(settings.host, settings.port, settings.token, SETTING)
  # configs/photos.py has a folder of photos, the others a data set.
  served = _photos(config) if "photos" in config else _data_set(config)
  collection = served.collection
  options = app_lib.Options(
    title=settings.title, neighbors=settings.neighbors, no_uploads=served.no_uploads,
    no_attributes=served.no_attributes, max_upload=int(settings.max_upload_mb * (1 << 20)),
    max_pixels=int(settings.max_megapixels * 1e6),
  )  # fmt: skip
  app = app_lib.make_app(
    collection,
    model=served.model,
    measuring=served.measuring,
    rankers=served.rankers,
    options=options,
  )
  guarded = app_lib.guard_app(
    app, token=address.token, hosts=address.hosts, max_upload=options.max_upload
  )

  def ready(link: str) -> None:
    folders = ", ".join(map(str, served.folders))
    print(f"serve: {len(collection.keys):,} images of {folders}", flush=True)
    for view in collection.views.values():
      print(f"  {view.design}, fill {view.fill}: from the index, modes {', '.join(view.modes)}")
    print(f"  {served.no_uploads or 'Photos are taken and measured here.'}")
    print(f"Open {link}\nCtrl-C ends it.", flush=True)

  server.run(
    guarded, address, SETTING, certificate=settings.certificate,
    certificate_key=settings.certificate_key, on_ready=ready, threads=settings.threads,
  )  # fmt: skip
  print("serve: ended", file=sys.stderr)


def _indexes(settings: Any, folders: Sequence[Any]) -> list[ExplanationIndex]:
  """The indexes in folders; they share the room that is kept for answers."""
  cache = int(settings.cache_gib * (1 << 30)) // len(folders)
  return [ExplanationIndex(folder, cache_bytes=cache) for folder in folders]


def _photos(config: Any) -> Served:
  """The index of a folder of photos; the model, where visitors may send their own."""
  settings = config.serve
  folders = list(settings.indexes) or [files.at(config.workdir) / "index"]
  collection = Collection(_indexes(settings, folders))
  model = measuring = None
  no_uploads = f"Photos are not taken: this server was started with {SETTING}.uploads=False."
  if settings.uploads:
    no_uploads = ""
    model = model_lib.load_model(config.model, image_size=config.image_size)
    try:
      measuring = Measuring(model, collection, chunk_size=config.chunk_size)
    except ValueError as error:
      raise ValueError(
        f"{error}. Or answer from the index alone with {SETTING}.uploads=False"
      ) from error
  rankers, no_attributes = None, "No attributes: this server was given no table of them."
  if config.attributes_file:
    learned = attribute_table.learn_attributes(config, tasks.make_explainer(config), [])
    rankers = lambda query, reference: learned.ranker  # noqa: E731
  return Served(collection, folders, rankers, no_attributes, no_uploads, model, measuring)


def _data_set(config: Any) -> Served:
  """The index of a split, with the attributes of its run where there are any."""
  settings, workdir = config.serve, files.at(config.workdir)
  folders = list(settings.indexes) or [pairs_lib.index_folder(workdir, settings.split)]
  indexes = _indexes(settings, folders)
  images = load.load_split(config.data, config.workdir, settings.split)
  rows = {name: row for row, name in enumerate(images.ids)}
  source = spaces.model_source(workdir, config.index.model)
  model, _ = spaces.model_in_spaces(source, config.index.image_size, images)

  def read(name: str) -> np.ndarray:
    return spaces.read_pixels(model, images, rows[name])

  def call(name: str) -> str:
    """Title, type and id, as far as there are."""
    parts = [images.titles[rows[name]]]
    if len(images.type_names) > 1:
      parts.append(images.type_names[images.types[rows[name]]])
    return " · ".join(part for part in [*parts, name] if part)

  known, no_attributes, ranking = None, "", config.ranking
  if not settings.indexes:
    pairs_lib.check_model(workdir, config.index, [settings.split])
  try:
    trained.check_chain(workdir, ranking.concepts, ranking.folder, ranking.attributes)
    known = trained.read_trained(
      workdir, images, attributes=ranking.attributes, concepts=ranking.concepts,
      tuned=ranking.folder,
    )  # fmt: skip
  except ValueError as error:
    no_attributes = f"No attributes: {error}"

  def rank(query: str | None, reference: str | None) -> reasons.Ranker:
    assert known is not None
    if query is None or reference is None:
      return known.ranker(0)
    kinds = int(images.types[rows[query]]), int(images.types[rows[reference]])
    return known.ranker(int(images.conditions[kinds]))

  no_uploads = (
    "Photos are not taken: this is the index of a data set, whose images are measured by its job."
  )
  collection = Collection(indexes, read_picture=read, name_of=call)
  return Served(collection, folders, rank if known else None, no_attributes, no_uploads)
