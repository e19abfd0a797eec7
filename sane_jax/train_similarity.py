"""Job: trains an embedding in which images that match are near each other, by triplets."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics as clu_metrics
from flax import struct
from jax.sharding import Mesh

from sane_jax import files, processes, retrieval, sharding, training
from sane_jax.datasets import load, pipeline
from sane_jax.datasets.collection import Collection
from sane_jax.models import weights
from sane_jax.ops import losses

MODEL = "model.safetensors"
EVALUATION_BATCH = 64  # images a device
ARCHITECTURE = (
  "stage_sizes", "block", "width", "stem", "dtype", "embedding_size", "image_size",
)  # fmt: skip


@struct.dataclass
class Metrics(clu_metrics.Collection):
  """Means since the last line of the log."""

  loss: clu_metrics.Average.from_output("loss")  # pyright: ignore[reportInvalidTypeForm]
  triplet: clu_metrics.Average.from_output("triplet")  # pyright: ignore[reportInvalidTypeForm]
  in_order: clu_metrics.Average.from_output("in_order")  # pyright: ignore[reportInvalidTypeForm]


class Objective(NamedTuple):
  """What the update is compiled for; see the config's fields of these names."""

  negatives: str
  margin: float
  mask_l1: float
  embedding_l2: float
  text: float
  flip: bool


def run(config: Any) -> None:
  """Trains, keeps what is best on the validation split, and measures that on the test split.

  Writes WORKDIR/similarity: model.safetensors, metrics.jsonl, finished.json and checkpoints.
  """
  settings = config.similarity
  mesh = sharding.batch_mesh()
  batch_size = settings.groups_per_batch * settings.images_per_group
  sharding.check_batch(mesh, batch_size, "similarity.groups_per_batch")
  train, valid, test = (
    load.load_split(config.data, config.workdir, split) for split in ("train", "valid", "test")
  )
  identity = training.identity(train, similarity=settings, key=config.key)
  folder = training.claim_folder(files.at(config.workdir) / "similarity", identity)
  if training.up_to_date(folder, "train_similarity"):
    return

  begun = start(config, train, mesh)

  # The data, and what is measured.
  decoded = {
    c.name: pipeline.DecodedImages(c, settings.image_size, config.cache_gib / 3 * 2**30)
    for c in (train, valid, test)
  }
  batches = read_batches(config, train, decoded[train.name], titles=begun.titles)
  embed = jax.jit(
    lambda variables, x: begun.model.apply(variables, x.astype(jnp.float32) / 255),
    out_shardings=sharding.whole(mesh),
  )

  def evaluate(collection: Collection, variables: Any) -> dict[str, float]:
    embeddings = sharding.map_images(
      mesh, embed, variables, decoded[collection.name], np.arange(len(collection.ids)),
      EVALUATION_BATCH, config.num_threads,
    )  # fmt: skip
    return figures(embeddings, _masks(variables, settings.embedding_size), collection)

  best = training.fit(
    name="similarity", folder=folder, state=begun.state,
    batches=sharding.DeviceBatches(mesh, batches), update=begun.update,
    evaluate=functools.partial(evaluate, valid),
    export=lambda variables, best: training.write_model(
      folder / MODEL,
      weights.to_bytes(jax.device_get(variables), begun.description | {"best": best}),
    ),
    learning_rate=lambda step: begun.schedule((step - 1) // settings.batches_per_update),
    cadence=training.Cadence(
      settings.num_steps, settings.log_every_steps, settings.eval_every_steps,
      settings.save_every_steps,
    ),
    tensorboard=config.tensorboard,
  )  # fmt: skip
  trained, _ = weights.read_model_file(folder / MODEL)
  broken = {n: processes.merge(d.broken, f"broken images of {n}") for n, d in decoded.items()}
  results = {
    "best": best,
    "test": evaluate(test, sharding.replicate(mesh, trained)),
    "test_untrained": evaluate(test, sharding.replicate(mesh, begun.variables)),
    "images_that_could_not_be_read": {n: b for n, b in broken.items() if b},
  }
  training.finish(folder, results)
  if not processes.is_first():
    return
  for name, value in results["test"].items():
    floor = results["test_untrained"][name]
    print(f"train_similarity: test {name} {value:.3f} (untrained {floor:.3f})")


class Start(NamedTuple):
  """What a run begins with."""

  description: dict[str, Any]  # of the model, for its file
  model: Any
  variables: Any  # untrained, but for weights that were given
  state: Any  # on the devices
  update: Callable[..., Any]  # (state, batch, step) -> state
  schedule: Callable[[Any], Any]  # update -> learning rate
  titles: bool  # whether batches are to have the words of titles


def start(config: Any, train: Collection, mesh: Mesh) -> Start:
  """Model, optimiser and update of a run on these images."""
  settings = config.similarity
  titles = settings.text > 0 and any(train.titles)
  description = {
    "kind": "similarity",
    **{name: settings[name] for name in ARCHITECTURE},
    "type_names": list(train.type_names),
    "conditions": train.conditions.tolist(),
    "text_size": pipeline.WORDS if titles else 0,
  }
  model = weights.make_similarity_model(description)
  variables = weights.init_variables(model, config.key)
  if settings.weights:
    variables, _ = weights.graft_trunk(variables, settings.weights)
  updates = settings.num_steps // settings.batches_per_update
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, settings.learning_rate, min(settings.warmup_steps, updates - 1), updates
  )
  optimizer = training.accumulate(optax.adam(schedule), settings.batches_per_update)
  state = sharding.replicate(mesh, training.start_state(variables, optimizer, Metrics.empty()))
  objective = Objective(*(settings[name] for name in Objective._fields))
  update = jax.jit(
    functools.partial(_update, model, optimizer, objective, train.conditions, config.key),
    donate_argnums=0, out_shardings=sharding.whole(mesh),
  )  # fmt: skip
  return Start(description, model, variables, state, update, schedule, titles)


def read_batches(
  config: Any, train: Collection, images: pipeline.DecodedImages, *, titles: bool
) -> Any:
  """This process's part of the batches of a begun."""
  settings = config.similarity
  return pipeline.group_batches(
    train, images, groups_per_batch=settings.groups_per_batch,
    images_per_group=settings.images_per_group, seed=config.key, titles=titles,
    process=jax.process_index(), processes=jax.process_count(), num_threads=config.num_threads,
  )  # fmt: skip


def _masks(variables: Any, size: int) -> np.ndarray:
  """What weighs the axes in each space [k d]; ones where there is one space."""
  masks = variables["params"].get("type_masks")
  return np.ones((1, size), np.float32) if masks is None else np.maximum(np.asarray(masks), 0)


def figures(embeddings: np.ndarray, masks: np.ndarray, collection: Collection) -> dict[str, float]:
  """Figures of an embedding on a collection, the one that decides first; higher is better.

  Fill-in-the-blank accuracy and compatibility AUC where the collection has such tests; recall@k and
  AUC of same class where groups do not overlap, as classes do not.
  """
  out: dict[str, float] = {}
  if collection.questions:
    out["fill_in_the_blank"] = float(
      retrieval.fill_in_the_blank(embeddings, masks, collection).mean()
    )
  if collection.compatibility:
    out["compatibility_auc"] = retrieval.compatibility_auc(embeddings, masks, collection)
  members = np.concatenate([[], *collection.groups]).astype(int)
  if len(members) and len(np.unique(members)) == len(members) and collection.num_conditions == 1:
    labels = np.repeat(np.arange(len(collection.groups)), [len(g) for g in collection.groups])
    out["same_class_auc"] = retrieval.same_label_auc(embeddings[members], labels)
    for k, value in retrieval.recall_at_k(embeddings[members], labels).items():
      out[f"recall_at_{k}"] = value
  if not out:
    raise ValueError(
      f"{collection.name} has no questions, no compatibility tests and no classes of two or more"
      " images: nothing to choose a model by. Add fill_in_blank_*.json or more photos"
    )
  return out


def _update(model, optimizer, objective, conditions, seed, state, batch, step):
  key = jax.random.fold_in(jax.random.key(seed), step)
  flip_key, negative_key, title_key = jax.random.split(key, 3)
  images = batch["images"].astype(jnp.float32) / 255
  if objective.flip:
    images, _ = training.flip_some(images, flip_key)
  groups = batch["groups"]

  def loss_of(params):
    variables = {"params": params, **state["statistics"]}
    raw, changed = model.apply(variables, images, train=True, mutable=["batch_stats"])
    masks = params.get("type_masks")
    weights_of_axes = jnp.ones((1, raw.shape[1])) if masks is None else jax.nn.relu(masks)
    triplets = losses.triplet_loss(
      negative_key, raw, batch["types"], batch["rows"], groups, weights_of_axes,
      jnp.asarray(conditions), negatives=objective.negatives, margin=objective.margin,
    )  # fmt: skip
    loss = triplets.loss + objective.embedding_l2 * losses.embedding_l2(raw, groups >= 0)
    if masks is not None:
      loss += objective.mask_l1 * losses.mask_l1(masks)
    if "words" in batch:
      titles = model.apply(variables, batch["words"], method="text")
      has_title = batch["words"].any(axis=1)
      loss += objective.text * losses.title_loss(
        title_key, raw, titles, groups, has_title, margin=objective.margin
      )
    return loss, (triplets, changed)

  (loss, (triplets, changed)), grads = jax.value_and_grad(loss_of, has_aux=True)(state["params"])
  return training.next_state(
    state, grads, changed, optimizer, step,
    loss=loss, triplet=triplets.loss, in_order=triplets.in_order,
  )  # fmt: skip
