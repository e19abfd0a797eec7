"""The similarity model that a run explains, in the spaces of its types; images as it sees them."""

import dataclasses
import io
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from sane_jax.datasets import images as images_lib
from sane_jax.datasets.collection import Collection
from sane_jax.models import model as model_lib
from sane_jax.models import weights
from sane_jax.runs import files
from sane_jax.runs import folder as run_folder


def model_source(workdir: str | os.PathLike[str], setting: str = "") -> str:
  """What a run explains: the model that a setting names, else the one that train_similarity left.

  Args:
    workdir: of the run.
    setting: a file, or a name for `load_model`.
  """
  return setting or str(files.at(workdir) / "similarity" / "model.safetensors")


def model_in_spaces(
  source: str, image_size: int | None, collection: Collection
) -> tuple[model_lib.Model, list[Any]]:
  """A model, and its parameters for images of each type.

  A model of train_similarity gives [b t d], a slot a type. Any other has one space: [b d].

  Raises:
    ValueError: there is no such model, or it was trained for other types.
  """
  if not source.endswith(".safetensors"):
    model = model_lib.load_model(source, image_size=image_size)
    return model, [model.params]
  if not files.at(source).exists():
    raise ValueError(
      f"there is no model {source}: train one first with --config.job=train_similarity, or name one"
      " with --config.index.model"
    )
  variables, description = weights.read_model_file(source)
  network = weights.make_similarity_model(description)
  spaces = (tuple(collection.type_names), collection.conditions.tolist())
  theirs = (tuple(description.get("type_names", ())), description.get("conditions"))
  if spaces != theirs:
    raise ValueError(
      f"{source} was trained for the types {', '.join(theirs[0])} in"
      f" {network.num_conditions} spaces; {collection.name} has {', '.join(spaces[0])} in"
      f" {collection.num_conditions}: train one on it with --config.job=train_similarity"
    )

  def embed(params: Any, images: Any) -> Any:
    return network.apply(params[0], images, params[1], method="all_conditions")

  side = image_size or description["image_size"]
  name = f"{files.at(source).name} {run_folder.hash_file(files.at(source))[:16]}"
  model = model_lib.Model(name, (side, side), embed)
  return model, [(variables, conditions) for conditions in collection.conditions]


def model_in_space(
  source: str, image_size: int | None, collection: Collection
) -> Callable[[int, int], model_lib.Model]:
  """The same as a function of the types of query and reference: a model that gives [b d]."""
  model, params = model_in_spaces(source, image_size, collection)
  if params[0] is model.params:  # no model of ours: one space
    return lambda query, reference: model

  def embed(params: Any, images: Any) -> Any:
    variables, condition = params
    return model.embed((variables, condition[None]), images)[:, 0]  # pyright: ignore[reportOptionalCall]

  names = collection.type_names

  def of(query: int, reference: int) -> model_lib.Model:
    variables, _ = params[0]
    condition = np.asarray(collection.conditions[query, reference])
    name = f"{model.name}, {names[query]} and {names[reference]}"
    return dataclasses.replace(model, name=name, embed=embed, params=(variables, condition))

  return of


def read_pixels(model: model_lib.Model, collection: Collection, row: int) -> np.ndarray:
  """The image [h w 3] as the explainer shows it to the model.

  Raises:
    ImageError: it can't be read.
  """
  try:
    image = images_lib.read_image(Image.open(io.BytesIO(collection.images[row])))
  except (OSError, RuntimeError) as error:  # RuntimeError: of a damaged record
    raise images_lib.ImageError(f"{collection.ids[row]}: {error}") from error
  return images_lib.fit_image(
    image, model.image_size, fit=model.fit, crop_fraction=model.crop_fraction,
    interpolation=model.interpolation,
  )  # fmt: skip
