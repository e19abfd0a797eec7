"""The similarity model in training: its start, its batches, its update, and how good it is."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from sane_jax.datasets import pipeline
from sane_jax.datasets.collection import Collection
from sane_jax.models import weights
from sane_jax.ops import losses
from sane_jax.runs.settings import check_choice, check_range
from sane_jax.training import loop, metrics, retrieval, sharding

ARCHITECTURE = (
  "stage_sizes", "block", "width", "stem", "dtype", "embedding_size", "image_size",
)  # fmt: skip


class Objective(NamedTuple):
  """What the update is compiled for; see the config's fields of these names."""

  negatives: str
  margin: float
  mask_l1: float
  embedding_l2: float
  text: float
  flip: bool


class Start(NamedTuple):
  """What a run begins with."""

  description: dict[str, Any]  # of the model, for its file
  model: Any
  variables: Any  # untrained, but for weights that were given
  state: Any  # on the devices
  update: Callable[..., Any]  # (state, batch, step) -> state
  schedule: Callable[[Any], Any]  # update -> learning rate
  titles: bool  # whether batches are to have the words of titles


def check(settings: Mapping[str, Any]) -> None:
  """Raises ValueError for settings that can't be; reads nothing."""
  fields = {name: settings[name] for name in ARCHITECTURE}
  weights.make_similarity_model({"kind": "similarity", **fields})
  check_choice("similarity.negatives", settings["negatives"], losses.NEGATIVES)
  for name in ("num_steps", "batches_per_update", "images_per_group"):
    check_range(f"similarity.{name}", settings[name], 1)
  size = settings["groups_per_batch"] * settings["images_per_group"]
  sharding.check_batch(sharding.batch_mesh(), size, "similarity.groups_per_batch")


def start(settings: Mapping[str, Any], seed: int, train: Collection, mesh: Mesh) -> Start:
  """Model, optimiser and update of a run; `settings` are those of its section."""
  titles = settings["text"] > 0 and any(train.titles)
  description = {
    "kind": "similarity",
    **{name: settings[name] for name in ARCHITECTURE},
    "type_names": list(train.type_names),
    "conditions": train.conditions.tolist(),
    "text_size": pipeline.WORDS if titles else 0,
  }
  model = weights.make_similarity_model(description)
  variables = weights.init_variables(model, seed)
  if settings["weights"]:
    variables, _ = weights.graft_trunk(variables, settings["weights"])
  updates = settings["num_steps"] // settings["batches_per_update"]
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, settings["learning_rate"], min(settings["warmup_steps"], updates - 1), updates
  )
  optimizer = loop.accumulate(optax.adam(schedule), settings["batches_per_update"])
  state = sharding.replicate(
    mesh, loop.start_state(variables, optimizer, metrics.means("loss", "triplet", "in_order"))
  )
  objective = Objective(*(settings[name] for name in Objective._fields))
  update = jax.jit(
    functools.partial(_update, model, optimizer, objective, train.conditions, seed),
    donate_argnums=0, out_shardings=sharding.whole(mesh),
  )  # fmt: skip
  return Start(description, model, variables, state, update, schedule, titles)


def read_batches(
  settings: Mapping[str, Any], seed: int, train: Collection, images: pipeline.DecodedImages, *,
  titles: bool, num_threads: int,
) -> Any:  # fmt: skip
  """This process's part of a run's batches."""
  return pipeline.group_batches(
    train, images, groups_per_batch=settings["groups_per_batch"],
    images_per_group=settings["images_per_group"], seed=seed, titles=titles,
    process=jax.process_index(), processes=jax.process_count(), num_threads=num_threads,
  )  # fmt: skip


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
    images, _ = loop.flip_some(images, flip_key)
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
  return loop.next_state(
    state, grads, changed, optimizer, step,
    loss=loss, triplet=triplets.loss, in_order=triplets.in_order,
  )  # fmt: skip
