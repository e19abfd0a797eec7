"""Job: measures the effect matrices of a collection, from which the map of any pair is read."""

import contextlib
import dataclasses
import hashlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from sane_jax.attributes import pairs as pairs_lib
from sane_jax.attributes import spaces
from sane_jax.datasets import collection as collection_lib
from sane_jax.datasets import load
from sane_jax.datasets import photos as photos_lib
from sane_jax.datasets.collection import Collection
from sane_jax.maps import engine as engine_lib
from sane_jax.maps import generators, index_arrays, index_build
from sane_jax.maps.index import ExplanationIndex
from sane_jax.maps.tasks import check_design, check_explaining, list_photos, make_explainer
from sane_jax.ops import designs
from sane_jax.runs import files, processes
from sane_jax.runs import folder as run_folder
from sane_jax.runs.settings import check_choice, check_range


def check(config: Any) -> None:
  """Raises ValueError for settings that can't be; reads no data and writes nothing."""
  if "photos" not in config:
    load.check_data(config.data)
    settings = config.index
    design = check_design(settings.design, settings.num_masks, settings.fill)
    if not isinstance(design, designs.Design) or design.grid is None:
      raise ValueError(
        f"--config.index.design={settings.design} has no cells that all images share; take"
        " hadamard, rise, sliding_window or kernel_shap"
      )
    check_range("index.matches", settings.matches, 1)
    return
  if not config.photos:
    raise ValueError("an index is of a folder: name it with --config.photos=FOLDER")
  check_explaining(config)
  check_choice("index_dtype", config.index_dtype, ("float16", "int8"))


def run(config: Any) -> None:
  """Builds the index of a folder of photos, or those that the jobs of a data set need."""
  check(config)
  if "photos" in config:
    _build_photos(config)
    return
  for split in ("train", "valid", "test"):
    _build_split(config, split)


def _build_photos(config: Any) -> None:
  """Measures every photo of a folder into WORKDIR/index; new ones are appended to what is there.

  A folder without a photo is no fault where there is no index that would then be of other photos.

  Raises:
    ValueError: see `ExplanationIndex.build`.
  """
  folder = files.at(config.workdir) / "index"
  try:
    paths = list_photos(config.photos)
  except photos_lib.NoPhotosError as error:
    if index_arrays.read_manifest(index_arrays.location(folder)) is not None:
      raise
    if processes.is_first():
      _tell(f"nothing to measure: {error}")
    return
  made = make_explainer(config)
  started = time.monotonic()
  with _progress("index") as show:
    index = ExplanationIndex.build(
      folder, made, paths, dtype=config.index_dtype, on_progress=show, on_change=_tell
    )
  seconds = time.monotonic() - started
  size = files.size_of(folder)
  passes = sum(processes.gather(made.encoder_passes, "encoder passes"))
  if not processes.is_first():
    return
  print(
    f"build_index: {len(index)} photos in {folder}, {size / len(index) / 1000:.1f} kB each;"
    f" {passes:,} encoder passes in {seconds:.1f} s; {len(index.left_out)} left out"
  )
  for name, why in list(index.left_out.items())[:10]:
    print(f"  left out: {name}: {why}", file=sys.stderr)


def _tell(what: str) -> None:
  print(files.printable(f"build_index: {what}"), file=sys.stderr)


def _build_split(config: Any, split: str) -> None:
  """Measures a split: N masked passes for each image that is explained, and a whole one for each.

  Those that are explained are, of the training split, images with matches, whose maps supervise the
  attribute model; of the others the queries of the pairs that the explanation is tuned and
  evaluated on. Effects are kept in the spaces that their references need; with
  `config.index.every_type` in those of all types, from the same passes. Writes WORKDIR/index,
  index_valid and index_test: what `maps.index_arrays` describes, and finished.json. Killed, it goes
  on after the last shard.
  """
  collection, references = _queries(config, split)
  queries = np.fromiter(references, int, len(references))
  settings = config.index
  source = spaces.model_source(config.workdir, settings.model)
  model, params = spaces.model_in_spaces(source, settings.image_size, collection)
  design = generators.make_design(settings.design, settings.num_masks)
  identity = run_folder.identity(
    collection_lib.fingerprint(collection), index=settings, key=config.seed
  )
  name = spaces.identify(config.workdir, source, settings.image_size)
  identity |= {"index.model": name, "queries": hashlib.sha256(queries.tobytes()).hexdigest()}
  folder = run_folder.claim_folder(pairs_lib.index_folder(config.workdir, split), identity)
  if run_folder.up_to_date(folder, "build_index"):
    return
  engines = [engine_lib.make_engine(dataclasses.replace(model, params=p)) for p in params]
  with _progress(f"index {split}") as show:
    index = index_build.build_in_spaces(
      folder, engines, design, jax.random.key(config.seed), settings.fill or design.default_fill,
      ids=collection.ids,
      types=collection.types if len(params) > 1 else np.zeros_like(collection.types),
      references=references, read=lambda row: spaces.read_pixels(model, collection, row),
      every_type=settings.every_type, on_progress=show,
    )  # fmt: skip
  passes = sum(processes.gather(sum(engine.passes for engine in engines), "encoder passes"))
  if not processes.is_first():
    return
  spaces.write_measured(folder, name, engines, collection.conditions)
  broken = index_arrays.read_left_out(folder)
  index_arrays.describe(
    folder, index, ids=collection.ids, settings={**settings, "model": name}, left_out=broken
  )
  results = {
    "fingerprint": run_folder.hash_file(folder / "settings.json"),
    "content": collection_lib.hash_images(collection),
    "covered": model.crop_fraction,  # middle share of an image's sides that the model sees
    "matches": settings.matches,
    "key": config.seed,
    "queries": len(queries),
    "images": len(collection.ids),
    "masked_passes_a_query": design.num_masks,
    "passes_of_this_run": passes,
    "images_that_could_not_be_read": broken,
  }
  run_folder.finish(folder, results)
  print(
    f"build_index: {len(queries)} queries with {design.num_masks} masked passes each in {folder}"
  )


def _queries(config: Any, split: str) -> tuple[Collection, dict[int, np.ndarray]]:
  """A split, and the rows that each of its queries is explained against, by the query's row."""
  if split == "train":
    collection = load.load_split(config.data, config.workdir, split)
    groups = collection_lib.groups_of(collection)
    queries = collection_lib.choose_queries(
      collection, groups, config.index.max_queries, config.seed
    )
    return collection, {
      int(row): collection_lib.draw_matches(
        collection, groups[row], row, limit=config.index.matches, seed=config.seed
      )
      for row in queries
    }
  collection, pairs = pairs_lib.load_pairs(
    config.data, config.workdir, split, limit=config.pairs[f"num_{split}"], seed=config.seed
  )
  return collection, {
    int(row): np.array([pair.reference for pair in some])
    for row, some in itertools.groupby(pairs, key=lambda pair: pair.query)
  }


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None]]:
  """A bar, as what is called with (images done, images in all)."""
  with run_folder.progress(name, 0, 0) as bar:

    def show(done: int, total: int) -> None:
      bar.total = total
      bar.update(done - bar.n)

    yield show
