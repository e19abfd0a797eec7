"""Job: measures the effect matrices of a collection, from which the map of any pair is read."""

import dataclasses
import hashlib
import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sane_jax.attributes import pairs as pairs_lib
from sane_jax.attributes import spaces
from sane_jax.datasets import collection as collection_lib
from sane_jax.datasets import images as images_lib
from sane_jax.datasets import load, pipeline
from sane_jax.datasets import photos as photos_lib
from sane_jax.datasets.collection import Collection
from sane_jax.maps import engine as engine_lib
from sane_jax.maps import explainer, index_arrays
from sane_jax.maps import index as index_lib
from sane_jax.maps.tasks import check_design, check_explaining, make_explainer
from sane_jax.ops import designs, effects, fills
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
  else:
    _build_splits(config)


def _build_photos(config: Any) -> None:
  """Measures every photo of a folder into WORKDIR/index; new ones are appended to what is there.

  Raises:
    ValueError: see `ExplanationIndex.build`.
  """
  folder = files.at(config.workdir) / "index"
  made = make_explainer(config)
  paths = photos_lib.list_photos(config.photos)
  started = time.monotonic()
  with run_folder.progress("index", 0, len(paths)) as bar:

    def show(done: int, total: int) -> None:
      bar.total = total
      bar.update(done - bar.n)

    index = index_lib.ExplanationIndex.build(
      folder, made, paths, dtype=config.index_dtype, on_progress=show
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


def _build_splits(config: Any) -> None:
  """Measures images that are explained: N masked passes and two whole ones each.

  In the training split those are images with matches, whose maps supervise the attribute model; in
  the others the queries of the pairs that the explanation is tuned and evaluated on. However many
  matches and spaces an image has, the passes are the same. Writes WORKDIR/index, index_valid and
  index_test: the arrays of `maps.index_arrays`, index.npz, finished.json. Killed, it goes on after
  the last shard.
  """
  for split in ("train", "valid", "test"):
    if split == "train":
      collection = load.load_split(config.data, config.workdir, split)
      groups = collection_lib.groups_of(collection)
      queries = choose_queries(collection, groups, config.index.max_queries, config.seed)

      references = {
        int(row): collection_lib.draw_matches(
          collection, groups[row], row, limit=config.index.matches, seed=config.seed
        )
        for row in queries
      }
    else:
      limit = config.pairs[f"num_{split}"]
      collection, pairs = pairs_lib.load_pairs(
        config.data, config.workdir, split, limit=limit, seed=config.seed
      )
      queries = np.unique([pair.query for pair in pairs]).astype(int)
      references = {
        int(row): np.array([pair.reference for pair in some])
        for row, some in itertools.groupby(pairs, key=lambda pair: pair.query)
      }
    _build(config, collection, split, queries, references)


def _build(
  config: Any, collection: Collection, split: str, queries: np.ndarray,
  references: Mapping[int, np.ndarray],
) -> None:  # fmt: skip
  """The index of one split: effects of the queries in the spaces that their references need.

  With `config.index.every_type` in those of all types, from the same passes.
  """
  settings = config.index
  source = settings.model or str(files.at(config.workdir) / "similarity" / "model.safetensors")
  model, params = spaces.model_in_spaces(source, settings.image_size, collection)
  design = explainer.make_design(settings.design, settings.num_masks)
  identity = run_folder.identity(
    collection_lib.fingerprint(collection), index=settings, key=config.seed
  )
  identity |= {"index.model": model.name, "queries": hashlib.sha256(queries.tobytes()).hexdigest()}
  folder = run_folder.claim_folder(pairs_lib.index_folder(config.workdir, split), identity)
  if run_folder.up_to_date(folder, "build_index"):
    return

  types = collection.types if len(params) > 1 else np.zeros_like(collection.types)
  engines = [engine_lib.make_engine(dataclasses.replace(model, params=p)) for p in params]
  key, fill = jax.random.key(config.seed), settings.fill or design.default_fill

  def embed(row: int) -> np.ndarray:
    """[t d]: the image in the spaces that it shares with images of each type."""
    unit = engine_lib.embed_images(
      engines[types[row]], spaces.read_pixels(model, collection, row)[None]
    )[0]
    return unit.reshape(len(params), -1)

  def measure(row: int) -> np.ndarray:
    """[t c d], zero in the slots that no reference needs: they take no room."""
    wanted = np.isin(np.arange(len(params)), types[references[row]]) | settings.every_type
    whole, pixels = embed(row), spaces.read_pixels(model, collection, row)
    each = _effects(engines[types[row]], design, key, pixels, fill, whole)
    return np.where(wanted[:, None, None], each, 0)

  index = index_arrays.open_index(
    folder, queries=queries, types=types, num_types=len(params), grid=design.grid,
    embedding_size=_embedding_size(engines[0], len(params)),
  )  # fmt: skip
  parts = {"embeddings": (np.arange(len(collection.ids)), embed), "effects": (queries, measure)}
  missing = [(part, shard) for part in parts for shard in index_arrays.missing_shards(index, part)]
  missing = [(part, shard) for part, shard in processes.agree(missing, "missing shards")]
  mine = missing[jax.process_index() :: processes.count()]
  total = sum(_length(index_arrays.missing_rows(index, *each)) for each in mine)
  with run_folder.progress(f"index {split}", 0, total) as bar:
    for part, shard in processes.share(missing, f"index {split}", polls=index_arrays.SHARD):
      (rows, function), where = parts[part], index_arrays.missing_rows(index, part, shard)
      values = np.zeros((_length(where), *index.arrays[part].shape[1:]), np.float32)
      whole, failed, broken = 0, [], {}
      try:
        for place, row in enumerate(rows[where]):
          try:
            values[place], failed = function(int(row)), []
          except images_lib.ImageError as error:  # it stays zero, which is no map
            failed.append(collection.ids[row])
            if len(failed) == pipeline.GONE:
              # Those are measured when it is there again.
              whole -= len(failed) - 1
              broken = {name: why for name, why in broken.items() if name not in failed}
              raise OSError(
                f"{len(failed)} images one after the other can't be read, {failed[0]} and the"
                f" following ({error}): is the folder of the data still there? What was measured"
                " before is kept; the same command goes on from there"
              ) from error
            broken[collection.ids[row]] = str(error)
          whole = place + 1
          bar.update()
          processes.stop_if_asked(f"index {split}")
      finally:  # interrupted, what was measured is kept
        if broken and part == "embeddings":  # of all images
          index_lib.leave_out(folder, shard, broken)
        if whole:
          index_arrays.write_shard(index, part, shard, values[:whole], begin=where.start)
  passes = sum(processes.gather(sum(engine.passes for engine in engines), "encoder passes"))
  if not processes.is_first():
    return
  broken = index_lib.read_left_out(folder)
  index_arrays.describe(folder, index)
  index_lib.write_manifest(
    folder, index, ids=collection.ids, settings={**settings, "model": model.name},
    left_out=broken,
  )  # fmt: skip
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


def _length(rows: slice) -> int:
  return rows.stop - rows.start


def choose_queries(
  train: Collection, groups: Sequence[Sequence[int]], limit: int | None, seed: int
) -> np.ndarray:
  """Rows that have a match and attributes, ascending; `limit` of them drawn if there are more.

  Where no image has attributes, all count: discover_attributes needs their maps.

  Raises:
    ValueError: there are none.
  """
  rows = np.flatnonzero(np.array(list(map(bool, groups))) & collection_lib.worth_explaining(train))
  if not len(rows):
    raise ValueError(
      f"no image of {train.name} has both an image that matches it and an attribute: there is"
      " nothing to supervise with maps; train without them with --config.attributes.map_weight=0"
    )
  if limit is not None and len(rows) > limit:
    rows = np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))
  return rows


def _embedding_size(engine: engine_lib.Engine, num_spaces: int) -> int:
  """d, seen on a grey image."""
  grey = np.full((1, *engine.model.image_size, 3), 0.5, np.float32)
  return engine_lib.embed_images(engine, grey).size // num_spaces


def _effects(
  engine: engine_lib.Engine, design: designs.Design, key: Any, pixels: np.ndarray, fill: Any,
  whole: np.ndarray,
) -> np.ndarray:  # fmt: skip
  """Effect matrices [t c d] of an image in t spaces, from N masked passes."""
  cells = designs.design_cells(design, pixels)
  masking = effects.Masking(
    key, cells, jnp.asarray(pixels), jnp.asarray(fills.fill_images(fill, pixels)),
    jnp.asarray(whole.ravel()),
  )  # fmt: skip
  moments, _ = engine_lib.run(
    engine, effects.RenderMasked(design), effects.AddToMoments(design), masking,
    effects.zero_moments(design, cells, whole.size), design.num_masks,
  )  # fmt: skip
  matrix = np.asarray(effects.effect_matrix(design, key, cells, moments))  # [c t·d]
  return matrix.reshape(len(matrix), *whole.shape).swapaxes(0, 1)
