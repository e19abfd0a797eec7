"""Job: trains the model that recognises attributes and shows where they are, guided by maps."""

import contextlib
import errno
import functools
import math
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from sane_jax.attributes import pairs as pairs_lib
from sane_jax.attributes import quality
from sane_jax.attributes import reader as attribute_reader
from sane_jax.datasets import collection as collection_lib
from sane_jax.datasets import load, pipeline
from sane_jax.datasets.collection import Collection
from sane_jax.maps import index_arrays
from sane_jax.models import attribute, weights
from sane_jax.ops import losses, resampling
from sane_jax.runs import files, processes
from sane_jax.runs import folder as run_folder
from sane_jax.runs.settings import check_choice, check_range
from sane_jax.training import loop, metrics, sharding

MODEL = attribute_reader.MODEL
EVALUATION_BATCH = 32  # images a device
ARCHITECTURE = ("trunk", "stage_sizes", "block", "width", "stem", "dtype", "image_size")


class Objective(NamedTuple):
  """What the update is compiled for; see the config's fields of these names."""

  map_weight: float
  sharpness: float | None
  flip: bool


class Maps(NamedTuple):
  """Saliency maps of the rows of a collection; one more query, the last, has none."""

  query: np.ndarray  # [n] which query a row is
  values: np.memmap  # [m + 1 k rows columns] float16, on disk
  valid: np.ndarray  # bool [m + 1 k]


def check(config: Any) -> None:
  """Raises ValueError for settings that can't be; reads no data and writes nothing."""
  settings = config.attributes
  load.check_data(config.data)
  check_choice("attributes.trunk", settings.trunk, attribute_reader.TRUNKS)
  weights.make_attribute_model(
    {"kind": "attribute", "attribute_names": (), **{name: settings[name] for name in ARCHITECTURE}}
  )
  sharding.check_batch(sharding.batch_mesh(), settings.batch_size, "attributes.batch_size")
  for name in ("batches_per_update", "num_epochs"):
    check_range(f"attributes.{name}", settings[name], 1)


def run(config: Any) -> None:
  """Trains, keeps what is best on the validation split, and measures that on the test split.

  Writes WORKDIR/attributes: model.safetensors, metrics.jsonl, finished.json and checkpoints.
  """
  check(config)
  settings = config.attributes
  mesh = sharding.batch_mesh()
  train, valid, test = (
    load.load_split(config.data, config.workdir, split) for split in ("train", "valid", "test")
  )
  rows = np.flatnonzero([len(a) > 0 for a in train.attributes])  # no label, nothing to learn
  if len(rows) < settings.batch_size:
    raise ValueError(
      f"{train.name} has {len(rows)} images with attributes, fewer than one batch:"
      f" --config.attributes.batch_size={settings.batch_size}"
    )
  identity = run_folder.identity(
    collection_lib.fingerprint(train), attributes=settings, key=config.seed
  )
  if settings.weights and (path := files.at(settings.weights)).exists():
    identity[f"attributes.weights{run_folder.CONTENT}"] = run_folder.hash_file(path)
  index = files.at(config.workdir) / "index"
  if settings.map_weight > 0:
    identity["index"] = run_folder.read_finished(index, "build_index")["fingerprint"]
    pairs_lib.check_model(config.workdir, config.index, ["train"])
  folder = run_folder.claim_folder(files.at(config.workdir) / settings.folder, identity)
  if run_folder.up_to_date(folder, "train_attributes"):
    return
  maps = read_maps(index, train) if settings.map_weight > 0 else None

  # The model and its optimiser.
  frozen, features, feature_size = attribute_reader.trunk(settings.trunk)
  description = {
    "kind": "attribute",
    **{name: settings[name] for name in ARCHITECTURE},
    "feature_size": feature_size,
    "attribute_names": list(train.attribute_names),
  }
  model = weights.make_attribute_model(description)
  start = weights.init_variables(model, config.seed)
  if settings.weights:
    start, _ = weights.graft_trunk(start, settings.weights)
  steps_per_epoch = len(rows) // settings.batch_size
  schedule = optax.exponential_decay(
    settings.learning_rate, max(1, steps_per_epoch // settings.batches_per_update),
    settings.decay, staircase=True,
  )  # fmt: skip
  optimizer = loop.accumulate(optax.adam(schedule), settings.batches_per_update)
  state = sharding.replicate(
    mesh, loop.start_state(start, optimizer, metrics.means("loss", "label", "map"))
  )
  frozen = sharding.replicate(mesh, frozen)
  objective = Objective(settings.map_weight, settings.sharpness or None, settings.flip)
  compiled = jax.jit(
    functools.partial(_update, model, features, optimizer, objective, config.seed),
    donate_argnames="state", out_shardings=sharding.whole(mesh),
  )  # fmt: skip

  def update(state: Any, batch: Any, step: Any) -> Any:
    return compiled(frozen, state, batch, step)

  # The data, and what is measured.
  decoded = {
    c.name: pipeline.DecodedImages(c, settings.image_size, config.cache_gib / 3 * 2**30)
    for c in (train, valid, test)
  }
  labels = collection_lib.label_matrix(train)

  def extra(chosen: np.ndarray) -> dict[str, np.ndarray]:
    out = {"labels": labels[chosen]}
    if maps is not None:
      query = maps.query[chosen]
      out |= {"maps": maps.values[query], "map_valid": maps.valid[query]}
    return out

  batches = pipeline.image_batches(
    decoded[train.name], rows, batch_size=settings.batch_size, seed=config.seed, extra=extra,
    process=jax.process_index(), processes=jax.process_count(), num_threads=config.num_threads,
  )  # fmt: skip

  def activate(variables: Any, images: jax.Array) -> Any:
    trained, before = variables
    return model.apply(trained, features(before, images.astype(jnp.float32) / 255))

  whole = sharding.whole(mesh)
  score = jax.jit(lambda v, x: attribute.attribute_scores(activate(v, x)), out_shardings=whole)
  locate = jax.jit(lambda v, x: attribute.activation_maps(activate(v, x)), out_shardings=whole)

  def over(function: Any, collection: Collection, rows: np.ndarray, variables: Any) -> Any:
    return sharding.map_images(
      mesh, function, (variables, frozen), decoded[collection.name], rows, EVALUATION_BATCH,
      config.num_threads,
    )  # fmt: skip

  def evaluate(collection: Collection, variables: Any) -> dict[str, float]:
    rows, truth = _known(collection)
    scores = over(score, collection, rows, variables)
    return {"mean_average_precision": quality.mean_average_precision(scores, truth)}

  best = loop.fit(
    name="attributes", folder=folder, state=state,
    batches=sharding.DeviceBatches(mesh, batches), update=update,
    evaluate=functools.partial(evaluate, valid if any(map(len, valid.attributes)) else train),
    export=lambda variables, best: loop.write_model(
      folder / MODEL, weights.to_bytes(jax.device_get(variables), description | {"best": best})
    ),
    learning_rate=lambda step: schedule((step - 1) // settings.batches_per_update),
    cadence=loop.Cadence(
      settings.num_epochs * steps_per_epoch, settings.log_every_steps,
      settings.eval_every_epochs * steps_per_epoch, settings.save_every_epochs * steps_per_epoch,
    ),
    tensorboard=config.tensorboard,
  )  # fmt: skip
  trained = sharding.replicate(mesh, weights.read_model_file(folder / MODEL)[0])
  figures = evaluate(test, trained)
  chance = {"mean_average_precision": quality.chance_precision(_known(test)[1])}
  if settings.truth:
    locate_all = functools.partial(over, locate, test, variables=trained)
    found = localisation(locate_all, test, _known(test)[0], files.at(settings.truth))
    even = found.pop("chance")
    chance |= dict.fromkeys(found, even)
    figures |= found
  broken = {n: processes.merge(d.broken, f"broken images of {n}") for n, d in decoded.items()}
  results = {
    "best": best,
    "test": figures,
    "test_chance": chance,
    "images_that_could_not_be_read": {n: b for n, b in broken.items() if b},
  }
  run_folder.finish(folder, results)
  for name, value in figures.items() if processes.is_first() else ():
    print(f"train_attributes: test {name} {value:.3f} (chance {chance[name]:.3f})")


def _known(collection: Collection) -> tuple[np.ndarray, np.ndarray]:
  """Rows with attributes, and which they have [n a].

  Raises:
    ValueError: there are none.
  """
  rows = np.flatnonzero([len(a) > 0 for a in collection.attributes])
  if not len(rows):
    raise ValueError(
      f"no image of {collection.name} has an attribute: nothing to measure the model by; add"
      " annotations, or photos of more classes"
    )
  return rows, collection_lib.label_matrix(collection)[rows]


def read_maps(folder: pathlib.Path, train: Collection) -> Maps:
  """Saliency maps of the queries of an index, against the matches that it was built for.

  They are products of what the index holds, and each is needed in every epoch: all of them are made
  once, into a file without a name in the folder for temporary files, and batches map what they need
  of it. In memory is one query at a time, and the embeddings.

  Raises:
    ValueError: there is no index, it is not whole, or it is of another collection.
    OSError: the file has no room; says how much it takes, and how to name another folder.
  """
  finished = run_folder.read_finished(folder, "build_index")
  pairs_lib.check_index(folder, finished, train)
  limit, seed, covered = finished["matches"], finished["key"], finished.get("covered", 1.0)
  index = index_arrays.read_index(folder)
  embeddings = index_arrays.read(index, "embeddings")
  groups = collection_lib.groups_of(train)
  count = len(index.queries)
  valid = np.zeros((count + 1, limit), bool)
  query = np.full(len(train.ids), count)
  query[index.queries] = np.arange(count)
  shape = (count + 1, limit, *index.grid)
  size = math.prod(shape) * np.dtype(np.float16).itemsize
  with tempfile.TemporaryFile() as file, _naming_room(size):  # mapped, it outlives its name
    bar = tqdm.tqdm(index.queries, desc="maps", unit="query", disable=None)
    for position, row in enumerate(bar):
      matches = collection_lib.draw_matches(train, groups[row], row, limit=limit, seed=seed)
      maps = index_arrays.read_maps(index, position, matches, embeddings)
      if covered != 1 and len(maps):  # the model that is explained sees less than this one
        maps = resampling.resample(maps, index.grid, covered)
      valid[position, : len(maps)] = (maps != 0).any((1, 2))  # zero: an image could not be read
      padded = np.zeros(shape[1:], np.float16)
      padded[: len(maps)] = maps
      file.write(padded.tobytes())
    file.truncate(size)  # those of no query are zero
    return Maps(query, np.memmap(file, np.float16, "r", shape=shape), valid)


@contextlib.contextmanager
def _naming_room(size: int) -> Iterator[None]:
  """Says of a disk that is full what room it takes, and where that could be."""
  try:
    yield
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
      raise
    raise OSError(
      f"saliency maps take {size / 2**30:.2f} GiB in the folder for temporary files,"
      f" {tempfile.gettempdir()}: {error}. Name another with TMPDIR=FOLDER, or take fewer maps of"
      " a query with --config.index.matches=N and another --config.workdir"
    ) from error


def localisation(
  locate: Callable[[np.ndarray], np.ndarray], collection: Collection, rows: np.ndarray,
  truth: pathlib.Path,
) -> dict[str, float]:  # fmt: skip
  """How well activation maps lie on the true pixels of the attributes that images have.

  Means over attributes (each the mean over its images) of the pointing game and of the mass inside,
  with what an even map gets for both.

  Args:
    locate: rows [b] -> activation maps [b h w a].
    truth: folder of masks, see `outfits_drawn.read_truth`.
  """
  from sane_jax.datasets import outfits_drawn

  each: dict[str, dict[int, list[float]]] = {"pointing_game": {}, "mass_inside": {}, "chance": {}}
  for begin in range(0, len(rows), 256):  # bounds the memory
    part = rows[begin : begin + 256]
    for row, maps in zip(part, locate(part), strict=True):
      masks = outfits_drawn.read_truth(truth, collection.ids[row])
      for a in masks.keys() & set(map(int, collection.attributes[row])):
        mask = quality.middle_square(masks[a])[None]
        large = resampling.enlarge(maps[None, :, :, a], mask.shape[1:])
        each["pointing_game"].setdefault(a, []).append(quality.pointing_game(large, mask)[0])
        each["mass_inside"].setdefault(a, []).append(quality.mass_inside(large, mask)[0])
        each["chance"].setdefault(a, []).append(mask.mean())
  return {
    name: float(np.mean([np.mean(values) for values in lists.values()]))
    for name, lists in each.items()
  }


def _update(model, features, optimizer, objective, seed, frozen, state, batch, step):
  key = jax.random.fold_in(jax.random.key(seed), step)
  images = batch["images"].astype(jnp.float32) / 255
  labels = batch["labels"] & batch["valid"][:, None]
  flipped = jnp.zeros(len(images), bool)
  if objective.flip:
    images, flipped = loop.flip_some(images, key)
  inputs = features(frozen, images)

  def loss_of(params):
    variables = {"params": params, **state["statistics"]}
    activations, changed = model.apply(variables, inputs, train=True, mutable=["batch_stats"])
    scores = attribute.attribute_scores(activations)
    known = labels.any(axis=1)
    label = jnp.sum(jax.vmap(losses.label_loss)(scores, labels)) / jnp.maximum(known.sum(), 1)
    loss, guided = label, jnp.zeros(())
    if "maps" in batch:
      maps = batch["maps"].astype(jnp.float32)
      maps = jnp.where(flipped[:, None, None, None], maps[..., ::-1], maps)
      shape = activations.shape[1:3]
      targets = jax.vmap(
        functools.partial(losses.saliency_target, shape=shape, sharpness=objective.sharpness)
      )(maps)
      each = jax.vmap(losses.map_loss)(activations, targets, batch["map_valid"], labels)
      has_map = known & batch["map_valid"].any(axis=1)
      guided = jnp.sum(each) / jnp.maximum(has_map.sum(), 1)
      loss = label + objective.map_weight * guided
    return loss, (label, guided, changed)

  out, grads = jax.value_and_grad(loss_of, has_aux=True)(state["params"])
  loss, (label, guided, changed) = out
  return loop.next_state(state, grads, changed, optimizer, step, loss=loss, label=label, map=guided)
