"""Job: measures the effect matrices of a collection, from which the map of any pair is read."""

import dataclasses
import io
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sane_jax import effect_index, explainer, sharding, training
from sane_jax import engine as engine_lib
from sane_jax.datasets import collection as collection_lib
from sane_jax.datasets import images as images_lib
from sane_jax.datasets import load
from sane_jax.datasets.collection import Collection
from sane_jax.models import model as model_lib
from sane_jax.models import weights
from sane_jax.ops import designs, effects, fills


def run(config: Any) -> None:
  """Measures each training image that has matches: N masked passes and two whole ones.

  However many matches and spaces there are, the passes are the same. Writes WORKDIR/index: the
  arrays of `effect_index`, index.npz, finished.json. Killed, it goes on after the last shard.
  """
  settings = config.index
  train = load.load_split(config.data, config.workdir, "train")
  source = settings.model or str(pathlib.Path(config.workdir) / "similarity" / "model.safetensors")
  model, spaces = _model_in_spaces(source, settings.image_size, train)
  design = explainer.make_design(settings.design, settings.num_masks)
  if not isinstance(design, designs.Design) or design.grid is None:
    raise ValueError(
      f"--config.index.design={settings.design} has no cells that all images share; take hadamard,"
      " rise, sliding_window or kernel_shap"
    )
  groups = collection_lib.groups_of(train)
  queries = choose_queries(train, groups, settings.max_queries, config.key)
  identity = training.identity(train, index=settings, key=config.key)
  identity["index.model"] = model.name
  folder = training.claim_folder(pathlib.Path(config.workdir) / "index", identity)
  if training.is_finished(folder):
    print(f"build_index: up to date in {folder}")
    return

  types = train.types if len(spaces) > 1 else np.zeros_like(train.types)
  engines = [engine_lib.make_engine(dataclasses.replace(model, params=p)) for p in spaces]
  key, fill = jax.random.key(config.key), settings.fill or design.default_fill

  def embed(row: int) -> np.ndarray:
    """[t d]: the image in the spaces that it shares with images of each type."""
    unit = engine_lib.embed_images(engines[types[row]], _pixels(model, train, row)[None])[0]
    return unit.reshape(len(spaces), -1)

  def measure(row: int) -> np.ndarray:
    """[t c d], zero in the slots that no match needs: they take no room."""
    matches = collection_lib.draw_matches(
      train, groups[row], row, limit=settings.matches, seed=config.key
    )
    wanted = np.isin(np.arange(len(spaces)), types[matches])
    whole = embed(row)
    each = _effects(engines[types[row]], design, key, _pixels(model, train, row), fill, whole)
    return np.where(wanted[:, None, None], each, 0)

  index = effect_index.open_index(
    folder, queries=queries, types=types, num_types=len(spaces), grid=design.grid,
    embedding_size=_embedding_size(engines[0], len(spaces)),
  )  # fmt: skip
  work = [
    (part, shard, rows[effect_index.shard_slice(shard, len(rows))], function)
    for part, rows, function in (
      ("embeddings", np.arange(len(train.ids)), embed),
      ("effects", queries, measure),
    )
    for shard in effect_index.missing_shards(index, part)
    if shard % jax.process_count() == jax.process_index()  # each process writes shards of its own
  ]
  broken: dict[str, str] = {}
  with training.progress("index", 0, sum(len(rows) for _, _, rows, _ in work)) as bar:
    for part, shard, rows, function in work:
      where = effect_index.shard_slice(shard, getattr(index, part).shape[0])
      values = np.zeros(getattr(index, part)[where].shape, np.float32)
      for position, row in enumerate(rows):
        try:
          values[position] = function(int(row))
        except images_lib.ImageError as error:  # it stays zero, which is no map
          broken[train.ids[row]] = str(error)
        bar.update()
      effect_index.write_shard(index, part, shard, values)
  sharding.wait_for_all("index")
  if jax.process_index() == 0:
    effect_index.describe(folder, index)
  results = {
    "fingerprint": training.hash_file(folder / "settings.json"),
    "content": identity["content"],
    "matches": settings.matches,
    "key": config.key,
    "queries": len(queries),
    "images": len(train.ids),
    "masked_passes_a_query": design.num_masks,
    "passes_of_this_run": sum(engine.passes for engine in engines),
    "images_that_could_not_be_read": broken,
  }
  training.finish(folder, results)
  print(
    f"build_index: {len(queries)} queries with {design.num_masks} masked passes each in {folder}"
  )


def choose_queries(
  train: Collection, groups: Sequence[Sequence[int]], limit: int | None, seed: int
) -> np.ndarray:
  """Rows that have a match and attributes, ascending; `limit` of them drawn if there are more.

  Raises:
    ValueError: there are none.
  """
  rows = np.flatnonzero(
    [bool(g) and len(a) > 0 for g, a in zip(groups, train.attributes, strict=True)]
  )
  if not len(rows):
    raise ValueError(
      f"no image of {train.name} has both an image that matches it and an attribute: there is"
      " nothing to supervise with maps; train without them with --config.attributes.map_weight=0"
    )
  if limit is not None and len(rows) > limit:
    rows = np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))
  return rows


def _pixels(model: model_lib.Model, train: Collection, row: int) -> np.ndarray:
  """The image [h w 3] as the explainer shows it to the model.

  Raises:
    ImageError: it can't be read.
  """
  try:
    image = images_lib.read_image(Image.open(io.BytesIO(train.images[row])))
  except (OSError, RuntimeError) as error:  # RuntimeError: of a damaged record
    raise images_lib.ImageError(f"{train.ids[row]}: {error}") from error
  return images_lib.fit_image(
    image, model.image_size, fit=model.fit, crop_fraction=model.crop_fraction,
    interpolation=model.interpolation,
  )  # fmt: skip


def _model_in_spaces(
  source: str, image_size: int | None, train: Collection
) -> tuple[model_lib.Model, list[Any]]:
  """A model, and its parameters for images of each type.

  A model of train_similarity gives [b t d], a slot a type. Any other has one space: [b d].
  """
  if not source.endswith(".safetensors"):
    model = model_lib.load_model(source, image_size=image_size)
    return model, [model.params]
  if not os.path.exists(source):
    raise ValueError(
      f"there is no model {source}: train one first with --config.job=train_similarity, or name one"
      " with --config.index.model"
    )
  variables, description = weights.read_model_file(source)
  network = weights.make_similarity_model(description)
  spaces = (tuple(train.type_names), train.conditions.tolist())
  theirs = (tuple(description.get("type_names", ())), description.get("conditions"))
  if spaces != theirs:
    raise ValueError(
      f"{source} was trained for the types {', '.join(theirs[0])} in"
      f" {network.num_conditions} spaces; {train.name} has {', '.join(spaces[0])} in"
      f" {train.num_conditions}: train one on it with --config.job=train_similarity"
    )

  def embed(params: Any, images: Any) -> Any:
    return network.apply(params[0], images, params[1], method="all_conditions")

  side = image_size or description["image_size"]
  name = f"{pathlib.Path(source).name} {training.hash_file(pathlib.Path(source))[:16]}"
  model = model_lib.Model(name, (side, side), embed)
  return model, [(variables, conditions) for conditions in train.conditions]


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
    key, cells, jnp.asarray(pixels), jnp.asarray(fills.fill_image(fill, pixels)),
    jnp.asarray(whole.ravel()),
  )  # fmt: skip
  moments, _ = engine_lib.run(
    engine, effects.RenderMasked(design), effects.AddToMoments(design), masking,
    effects.zero_moments(design, cells, whole.size), design.num_masks,
  )  # fmt: skip
  matrix = np.asarray(effects.effect_matrix(design, key, cells, moments))  # [c t·d]
  return matrix.reshape(len(matrix), *whole.shape).swapaxes(0, 1)
