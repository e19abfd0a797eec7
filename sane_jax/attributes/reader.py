"""A trained attribute model at work: which attributes images have, and where."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sane_jax.datasets import pipeline
from sane_jax.datasets.collection import Collection
from sane_jax.maps import reasons
from sane_jax.models import attribute, efficientnet_lite0, weights
from sane_jax.runs.settings import check_choice
from sane_jax.training import sharding

TRUNKS = ("resnet", "efficientnet_lite0")
MODEL = "model.safetensors"
BATCH = 32  # images a device


class AttributeReader(NamedTuple):
  """A trained attribute model.

  Attributes:
    names: of the attributes [a].
    image_size: pixels a side of what it takes.
    variables: its parameters.
    apply: (variables, images [b s s 3] in [0, 1]) -> activation maps [b h w a], not normalised.
  """

  names: tuple[str, ...]
  image_size: int
  variables: Any
  apply: Callable[[Any, Any], Any]


def read_attribute_model(
  folder: pathlib.Path, collection: Collection | None = None
) -> AttributeReader:
  """The model that train_attributes left in `folder`, of a collection's attributes if one is given.

  Raises:
    ValueError: there is none, or it knows other attributes; says what to run.
  """
  path = folder / MODEL
  if not path.exists():
    raise ValueError(f"there is no attribute model {path}: run --config.job=train_attributes first")
  variables, description = weights.read_model_file(path)
  model = weights.make_attribute_model(description)
  frozen, features, _ = trunk(description["trunk"])

  def apply(variables: Any, images: Any) -> Any:
    trained, before = variables
    return model.apply(trained, features(before, images))

  names = tuple(description["attribute_names"])
  if collection is not None and names != collection.attribute_names:
    raise ValueError(
      f"the model in {folder} knows {len(names)} attributes, {', '.join(names[:3])}, ...;"
      f" {collection.name} has {len(collection.attribute_names)}: train one on it with"
      " --config.job=train_attributes"
    )
  return AttributeReader(names, description["image_size"], (variables, frozen), apply)


def trunk(name: str) -> tuple[Any, Callable[[Any, Any], Any], int]:
  """What comes before the trained part: its frozen parameters, what it does, its channels (0: no).

  Raises:
    ValueError: there is no such trunk.
  """
  if name == "resnet":
    return {}, lambda _, images: images, 0
  check_choice("attributes.trunk", name, TRUNKS)
  apply, params = efficientnet_lite0.load_efficientnet_lite0()
  return params, functools.partial(apply, method="features"), 1280


def activate(
  reader: AttributeReader, images: pipeline.DecodedImages, rows: np.ndarray, num_threads: int = 2,
  *, maps: bool = True,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
  """Confidence [n a], which sums to 1 over attributes, and activation maps [n h w a] float16.

  Maps are softmaxes over positions; [n 0 0 a] where they are not asked for.
  """
  mesh = sharding.batch_mesh()
  variables = sharding.replicate(mesh, reader.variables)

  def both(variables: Any, pixels: Any) -> Any:
    raw = reader.apply(variables, pixels.astype(jnp.float32) / 255)
    confidence = jax.nn.softmax(attribute.attribute_scores(raw))
    each = attribute.activation_maps(raw) if maps else raw[:, :0, :0]
    return confidence, each.astype(jnp.float16)

  function = jax.jit(both, out_shardings=sharding.whole(mesh))
  return sharding.map_images(mesh, function, variables, images, rows, BATCH, num_threads)


def make_predictor(reader: AttributeReader) -> reasons.Predictor:
  """What the model predicts of one image: confidence [a] and activation maps [h w a].

  The image is float [h w 3] in [0, 1] of any size.
  """

  @jax.jit
  def predict(variables: Any, image: Any) -> Any:
    side = reader.image_size
    small = image
    if image.shape[:2] != (side, side):
      small = jnp.clip(jax.image.resize(image, (side, side, 3), "linear"), 0, 1)
    raw = reader.apply(variables, small[None])
    return jax.nn.softmax(attribute.attribute_scores(raw))[0], attribute.activation_maps(raw)[0]

  def run(image: Any) -> tuple[np.ndarray, np.ndarray]:
    return jax.device_get(predict(reader.variables, jnp.asarray(image)))

  return run
