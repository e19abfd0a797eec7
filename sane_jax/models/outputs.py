"""What a model answers: the embeddings among it, and what an exception of its own comes from."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from sane_jax.ops import arrays


class ModelError(ValueError):
  """The model gave what is no embedding and no score: what came, and what was expected."""


class OutOfMemory(ModelError):
  """The model's memory does not hold a batch of `images`; a smaller one may fit."""

  images: int = 0


# --- embeddings among outputs ---------------------------------------------------------------------


def pick(outputs: Any, batch: int, name: str, *, output: str | int | None = None) -> Any:
  """The embeddings [b d] among what a model gave for `batch` images.

  An array is taken as it is. Of a dict, a tuple, a list of arrays or a dataclass, such as
  transformers' ModelOutput, the field that was asked for; or else the only one that is floating,
  [b d]. Axes of one element at the end, as average pooling leaves them, are dropped.

  Args:
    outputs: arrays of any library, traced ones as well.
    name: of the model, for errors.
    output: a field's name, or its place among those that are not None.

  Raises:
    ModelError: no such field; without `output`, none or several that could be the embeddings.
  """
  fields = _fields(outputs)
  if fields is None:
    if output not in (None, 0):
      raise ModelError(f"{name} gives one array and has no output {output!r}; leave output out")
    return _trimmed(outputs)
  given = ", ".join(f"{key!r} {_described(value)}" for key, value in fields.items()) or "nothing"
  what = f"{name} gave {type(outputs).__name__} of {given} for {batch} images"
  if output is not None:
    if output in fields:
      return _trimmed(fields[output])
    if isinstance(output, int) and -len(fields) <= output < len(fields):
      return _trimmed([*fields.values()][output])
    raise ModelError(f"{what}: there is no output {output!r} among them")
  fitting = {
    key: value
    for key, value in ((key, _trimmed(value)) for key, value in fields.items())
    if len(shape := _shape(value)) == 2 and shape[0] == batch and _is_floating(value)
  }
  if len(fitting) == 1:
    return next(iter(fitting.values()))
  if fitting:
    choice = " or ".join(f"output={key!r}" for key in fitting)
    raise ModelError(f"{what}: several have the shape of embeddings, ({batch}, d); give {choice}")
  raise ModelError(
    f"{what}: none has the shape of embeddings, ({batch}, d). Pool or flatten one of them in the"
    " model"
  )


def _fields(outputs: Any) -> dict[Any, Any] | None:
  """What is in a container by name or place, without what is None; None for an array."""
  if isinstance(outputs, Mapping):
    found = dict(outputs)
  elif hasattr(outputs, "_fields"):
    found = dict(zip(outputs._fields, outputs, strict=True))
  elif isinstance(outputs, list | tuple):
    # A list of vectors or numbers is one array; a list of batches is several.
    if not any(value is None or len(_shape(value)) > 1 for value in outputs):
      return None
    found = dict(enumerate(outputs))
  elif dataclasses.is_dataclass(outputs) and not hasattr(outputs, "shape"):
    found = {f.name: getattr(outputs, f.name) for f in dataclasses.fields(outputs)}
  else:
    return None
  return {key: value for key, value in found.items() if value is not None}


def _shape(value: Any) -> tuple[int, ...]:
  shape = getattr(value, "shape", None)
  return tuple(shape) if shape is not None else ()


def _trimmed(value: Any) -> Any:
  """[b d 1 1] as [b d]."""
  shape = _shape(value)
  kept = len(shape)
  while kept > 2 and shape[kept - 1] == 1:
    kept -= 1
  return value.reshape(shape[:kept]) if kept < len(shape) else value


def _is_floating(value: Any) -> bool:
  return "float" in str(getattr(value, "dtype", ""))


def _described(value: Any) -> str:
  shape = getattr(value, "shape", None)
  return str(tuple(shape)) if shape is not None else type(value).__name__


def embeddings_of(outputs: Any, batch: int, name: str, image_size: tuple[int, int]) -> np.ndarray:
  """[b d] float32 of what `pick` gave.

  Raises:
    ModelError: no array, or of another shape.
  """
  return _checked(outputs, (batch, "d"), "embeddings", name, image_size)


def scores_of(outputs: Any, batch: int, name: str, image_size: tuple[int, int]) -> np.ndarray:
  """[b] float32 of what a score function gave.

  Raises:
    ModelError: no array, or of another shape.
  """
  return _checked(outputs, (batch,), "scores", name, image_size)


def _checked(outputs, wanted, what, name, image_size) -> np.ndarray:
  expected = f"{what} of shape {f'({wanted[0]}, d)' if len(wanted) > 1 else f'({wanted[0]},)'}"
  try:
    array = np.asarray(arrays.to_numpy(outputs), np.float32)
  except Exception as error:  # each library its own
    raise ModelError(
      f"{name} gave {type(outputs).__name__}, which is no array ({error}); {expected} are expected"
    ) from error
  if array.shape[:1] != wanted[:1] or array.ndim != len(wanted) or array.size == 0:
    images = (wanted[0], *image_size, 3)
    raise ModelError(wrong_shape(name, expected, array.shape, images))
  return array


def wrong_shape(name: str, expected: str, shape: Any, images: tuple[int, ...]) -> str:
  """What to say of an array [shape] that is not what was expected of a batch of images."""
  if shape is None:
    return f"{name} gave no array for images of shape {images}; {expected} are expected."
  more = ""
  if len(shape) > 2 and shape[0] != images[0] and shape[1] == images[0]:
    more = " It looks like [tokens, batch, d]: take one token, or their mean, in the model."
  elif len(shape) > 2:
    more = " Pool or flatten the features first."
  return (
    f"{name} gave shape {tuple(shape)} for images of shape {images}; {expected} are expected.{more}"
  )


# --- exceptions -----------------------------------------------------------------------------------

_MEMORY = re.compile(
  r"out of memory|RESOURCE_EXHAUSTED|(can.?t|cannot|failed to|unable to) allocate|bad_alloc"
  r"|bad allocation|ALLOC_FAILED",
  re.IGNORECASE,
)
_PRECISION = re.compile(r"\bdtypes?\b|scalar type|data type|type .*should be the same", re.I)
_DEVICE = re.compile(r"same device|device type|on device|different devices", re.IGNORECASE)
_SHAPE = re.compile(r"\bshapes?\b|\bsizes?\b|dimension|channels", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
  """Whether a library ran out of memory, whichever it is."""
  return (
    isinstance(error, MemoryError | OutOfMemory)
    or type(error).__name__ == "OutOfMemoryError"
    or (isinstance(error, RuntimeError) and bool(_MEMORY.search(str(error))))
    or (type(error).__module__.startswith("onnxruntime") and bool(_MEMORY.search(str(error))))
  )


def error_of(
  error: Exception, name: str, images: np.ndarray, image_size: tuple[int, int]
) -> ModelError:
  """A model's own exception with its text, and what would do, by its cause where that is known."""
  text = str(error)[:2000]
  raised = (
    f"{name} raised {type(error).__name__} on images of shape {images.shape}, float32 in [0, 1]:"
    f" {text.rstrip('. ')}. "
  )
  count = len(images)
  if is_out_of_memory(error):
    less = f"give the explainer chunk_size={max(1, count // 2)} or less" if count > 1 else (
      "not even one image fits: free some, or take a smaller image_size or model; chunk_size is 1"
    )  # fmt: skip
    found = OutOfMemory(f"{raised}{count} images at a time do not fit the memory: {less}")
    found.images = count
    return found
  # What a mistake in Python's names or arguments says of shapes is no matter of the images.
  of_arrays = not isinstance(error, AttributeError | LookupError | NameError | ImportError)
  hint = ""
  if of_arrays and _DEVICE.search(text):
    hint = "Images come where the model's parameters are: put all of it on one device"
  elif of_arrays and _PRECISION.search(text):
    hint = (
      "This is a matter of precision (dtype): a torch module is given the type that most of its"
      " parameters have, so give it one type, as by module.float(); other models cast images"
      " themselves"
    )
  elif of_arrays and _SHAPE.search(text):
    hint = f"Is image_size={image_size} what it takes?"
  elif (images == images[:, :1, :1]).all(axis=(1, 2, 3)).any():
    hint = (
      "Some of these images are of one colour alone, as a mask that hides all leaves them: can the"
      " model take such? Where it divides by an image's own deviation, add a small number to that"
    )
  return ModelError(raised + hint if hint else raised.rstrip())
