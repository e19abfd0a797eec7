"""Job: the live viewer on explanation indexes, in a browser."""

import logging
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging as absl_logging

from sane_jax.attributes import concepts as concepts_lib
from sane_jax.attributes import pairs as pairs_lib
from sane_jax.attributes import reader as attribute_reader
from sane_jax.attributes import spaces, trained
from sane_jax.attributes import table as attribute_table
from sane_jax.datasets import load
from sane_jax.maps import reasons, tasks
from sane_jax.maps.index import ExplanationIndex
from sane_jax.models import model as model_lib
from sane_jax.runs import files, processes
from sane_jax.runs.settings import check_choice, check_range
from sane_jax.web import server

SETTING = "--config.serve"


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
    from sane_jax.viewer.collection import Collection
    from sane_jax.viewer.measuring import Measuring
  check(config)
  settings = config.serve
  absl_logging.set_verbosity(max(absl_logging.get_verbosity(), absl_logging.WARNING))
  logging.getLogger("sane_jax.web").setLevel(logging.INFO)
  address = server.choose_address(settings.host, settings.port, settings.token, SETTING)
  is_photos = "photos" in config
  read_picture: Callable[[str], np.ndarray] | None = None
  name_of: Callable[[str], str] | None = None
  if is_photos:
    folders = list(settings.indexes) or [files.at(config.workdir) / "index"]
  else:
    folders = list(settings.indexes) or [pairs_lib.index_folder(config.workdir, settings.split)]
  cache = int(settings.cache_gib * (1 << 30)) // len(folders)
  indexes = [ExplanationIndex(folder, cache_bytes=cache) for folder in folders]
  rankers, no_attributes = None, "No attributes: this server was given no table of them."
  if not is_photos:
    read_picture, name_of, rankers, no_attributes = _of_data_set(config)
  collection = Collection(indexes, read_picture=read_picture, name_of=name_of)
  model = measuring = None
  no_uploads = ""
  if not is_photos:
    no_uploads = (
      "Photos are not taken: this is the index of a data set, whose images are measured by its job."
    )
  elif not settings.uploads:
    no_uploads = f"Photos are not taken: this server was started with {SETTING}.uploads=False."
  else:
    model = model_lib.load_model(config.model, image_size=config.image_size)
    try:
      measuring = Measuring(model, collection, chunk_size=config.chunk_size)
    except ValueError as error:
      raise ValueError(
        f"{error}. Or answer from the index alone with {SETTING}.uploads=False"
      ) from error
  if is_photos and config.attributes_file:
    learned = attribute_table.learn_attributes(config, tasks.make_explainer(config), [])
    rankers = _always(learned.ranker)
  options = app_lib.Options(
    title=settings.title, neighbors=settings.neighbors, no_uploads=no_uploads,
    no_attributes=no_attributes, max_upload=int(settings.max_upload_mb * (1 << 20)),
    max_pixels=int(settings.max_megapixels * 1e6),
  )  # fmt: skip
  app = app_lib.make_app(
    collection, model=model, measuring=measuring, rankers=rankers, options=options
  )
  guarded = app_lib.guard_app(
    app, token=address.token, hosts=address.hosts, max_upload=options.max_upload
  )

  def ready(link: str) -> None:
    print(f"serve: {len(collection.keys):,} images of {', '.join(map(str, folders))}", flush=True)
    for view in collection.views.values():
      print(f"  {view.design}, fill {view.fill}: from the index, modes {', '.join(view.modes)}")
    print(f"  {no_uploads or 'Photos are taken and measured here.'}")
    print(f"Open {link}\nCtrl-C ends it.", flush=True)

  server.run(
    guarded, address, SETTING, certificate=settings.certificate,
    certificate_key=settings.certificate_key, on_ready=ready, threads=settings.threads,
  )  # fmt: skip
  print("serve: ended", file=sys.stderr)


def _always(one: reasons.Ranker) -> Callable[[str | None, str | None], reasons.Ranker]:
  return lambda query, reference: one


def _of_data_set(config: Any):
  """How a data set's images are read and called; what ranks a pair's attributes, or why nothing."""
  split, workdir = config.serve.split, files.at(config.workdir)
  collection = load.load_split(config.data, config.workdir, split)
  rows = {name: row for row, name in enumerate(collection.ids)}
  source = config.index.model or str(workdir / "similarity" / "model.safetensors")
  model, _ = spaces.model_in_spaces(source, config.index.image_size, collection)

  def read(name: str) -> np.ndarray:
    return spaces.read_pixels(model, collection, rows[name])

  def call(name: str) -> str:
    """Title, type and id, as far as there are."""
    parts = [collection.titles[rows[name]]]
    if len(collection.type_names) > 1:
      parts.append(collection.type_names[collection.types[rows[name]]])
    return " · ".join(part for part in [*parts, name] if part)

  try:
    tuned = trained.read_ranking(workdir / config.ranking.folder)
    reader = attribute_reader.read_attribute_model(workdir / config.ranking.attributes)
    trained.check_names(tuned, reader.names)
    concepts = concepts_lib.read_concepts(
      workdir / config.ranking.concepts, collection.attribute_names, collection.name
    )
  except ValueError as error:
    return read, call, None, f"No attributes: {error}"
  look = attribute_reader.make_look(reader)

  def rank(query: str | None, reference: str | None) -> reasons.Ranker:
    space = 0
    if len(concepts.prior) > 1 and query is not None and reference is not None:
      kinds = int(collection.types[rows[query]]), int(collection.types[rows[reference]])
      space = int(collection.conditions[kinds])
    return reasons.make_ranker(
      reader.names, look, (concepts.prior[space], concepts.vectors[space]),
      tuned.phi[trained.WHOLE], tuned.calibration, tuned.thresholds,
    )  # fmt: skip

  return read, call, rank, ""
