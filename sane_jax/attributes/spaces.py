"""The similarity model that a run explains, in the spaces of its types; images as it sees them."""

import dataclasses
import io
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sane_jax.datasets import images as images_lib
from sane_jax.datasets.collection import Collection
from sane_jax.maps import engine as engine_lib
from sane_jax.models import fingerprint, weights
from sane_jax.models import model as model_lib
from sane_jax.runs import files, npz
from sane_jax.runs import folder as run_folder

MODEL = "model.npz"  # in the folders of an index and of concepts: what the model does


def model_source(workdir: str | os.PathLike[str], setting: str = "") -> str:
  """What a run explains: the model that a setting names, else the one that train_similarity left.

  Args:
    workdir: of the run.
    setting: a file, or a name for `load_model`.
  """
  return setting or str(files.at(workdir) / "similarity" / "model.safetensors")


def identify(workdir: str | os.PathLike[str], source: str, image_size: int | None) -> str:
  """What a run's results call the model that it explains; another text for other weights.

  A file's name with its hash; a model of ours by its name; and module:function, which may give
  anything, by what it does. '' where the file is gone: results are then of the model that was.
  """
  if source.endswith(".safetensors"):
    path = files.at(source)
    return f"{path.name} {run_folder.hash_file(path)[:16]}" if path.exists() else ""
  if source in model_lib.MODELS:
    return source
  model = model_lib.load_model(source, image_size=image_size)
  found = fingerprint.fingerprint(model)
  return f"{model.name} {fingerprint.recognise(files.at(workdir), found)}"


class Measured(NamedTuple):
  """What the model of a run does in each of its spaces; see `models.fingerprint`.

  Attributes:
    name: of the model.
    image_size: (height, width).
    given: [k 3 d] unit embeddings of the test pictures in each of k spaces.
  """

  name: str
  image_size: tuple[int, int]
  given: np.ndarray


def write_measured(
  folder: pathlib.Path, name: str, engines: Sequence[engine_lib.Engine], conditions: np.ndarray
) -> None:
  """Keeps what a model does in `folder`, by an engine for images of each type."""
  model = engines[0].model
  each = [fingerprint.what_it_gives(e.model, engine_lib.on_one_device(e)) for e in engines]
  given = each[0][None]
  if len(engines) > 1:
    each = [one.reshape(len(one), len(engines), -1) for one in each]
    given = np.zeros((int(conditions.max()) + 1, *each[0][:, 0].shape), np.float32)
    for one, other in np.ndindex(*conditions.shape):
      given[conditions[one, other]] = each[one][:, other]
  arrays = {"given": given, "image_size": np.array(model.image_size)}
  npz.write_arrays(folder / MODEL, arrays | {"name": np.frombuffer(name.encode(), np.uint8)})


def read_measured(folder: pathlib.Path) -> Measured | None:
  """What `write_measured` kept; None in folders from before it did."""
  arrays = npz.read_arrays(folder / MODEL)
  if arrays is None:
    return None
  h, w = arrays["image_size"].tolist()
  return Measured(arrays["name"].tobytes().decode(), (h, w), arrays["given"])


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
