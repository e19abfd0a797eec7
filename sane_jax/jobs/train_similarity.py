"""Job: trains an embedding in which images that match are near each other, by triplets."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sane_jax.datasets import collection as collection_lib
from sane_jax.datasets import load, pipeline
from sane_jax.datasets.collection import Collection
from sane_jax.models import weights
from sane_jax.runs import files, processes
from sane_jax.runs import folder as run_folder
from sane_jax.training import loop, sharding, similarity

MODEL = "model.safetensors"
EVALUATION_BATCH = 64  # images a device


def check(config: Any) -> None:
  """Raises ValueError for settings that can't be; reads no data and writes nothing."""
  load.check_data(config.data)
  similarity.check(config.similarity)


def run(config: Any) -> None:
  """Trains, keeps what is best on the validation split, and measures that on the test split.

  Writes WORKDIR/similarity: model.safetensors, metrics.jsonl, finished.json and checkpoints.
  """
  check(config)
  settings = config.similarity
  mesh = sharding.batch_mesh()
  train, valid, test = (
    load.load_split(config.data, config.workdir, split) for split in ("train", "valid", "test")
  )
  identity = run_folder.identity(
    collection_lib.fingerprint(train), similarity=settings, key=config.seed
  )
  if settings.weights and (path := files.at(settings.weights)).exists():
    identity[f"similarity.weights{run_folder.CONTENT}"] = run_folder.hash_file(path)
  folder = run_folder.claim_folder(files.at(config.workdir) / "similarity", identity)
  if run_folder.up_to_date(folder, "train_similarity"):
    return

  begun = similarity.start(settings, config.seed, train, mesh)

  # The data, and what is measured.
  decoded = {
    c.name: pipeline.DecodedImages(c, settings.image_size, config.cache_gib / 3 * 2**30)
    for c in (train, valid, test)
  }
  batches = similarity.read_batches(
    settings, config.seed, train, decoded[train.name],
    titles=begun.titles, num_threads=config.num_threads,
  )  # fmt: skip
  embed = jax.jit(
    lambda variables, x: begun.model.apply(variables, x.astype(jnp.float32) / 255),
    out_shardings=sharding.whole(mesh),
  )

  def evaluate(collection: Collection, variables: Any) -> dict[str, float]:
    embeddings = sharding.map_images(
      mesh, embed, variables, decoded[collection.name], np.arange(len(collection.ids)),
      EVALUATION_BATCH, config.num_threads,
    )  # fmt: skip
    return similarity.figures(embeddings, _masks(variables, settings.embedding_size), collection)

  best = loop.fit(
    name="similarity", folder=folder, state=begun.state,
    batches=sharding.DeviceBatches(mesh, batches), update=begun.update,
    evaluate=functools.partial(evaluate, valid),
    export=lambda variables, best: loop.write_model(
      folder / MODEL,
      weights.to_bytes(jax.device_get(variables), begun.description | {"best": best}),
    ),
    learning_rate=lambda step: begun.schedule((step - 1) // settings.batches_per_update),
    cadence=loop.Cadence(
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
  run_folder.finish(folder, results)
  if not processes.is_first():
    return
  for name, value in results["test"].items():
    floor = results["test_untrained"][name]
    print(f"train_similarity: test {name} {value:.3f} (untrained {floor:.3f})")


def _masks(variables: Any, size: int) -> np.ndarray:
  """What weighs the axes in each space [k d]; ones where there is one space."""
  masks = variables["params"].get("type_masks")
  return np.ones((1, size), np.float32) if masks is None else np.maximum(np.asarray(masks), 0)
