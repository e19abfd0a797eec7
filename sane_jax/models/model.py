"""A similarity model as the explainer sees it: a function and its parameters, or only a callable.

`from_jax` models run inside the jitted kernel. `from_numpy`, `from_torch`, `from_onnx` and
`from_score` models run on the host: masks and sums stay jitted, batches go to and fro.
"""

import dataclasses
import functools
import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from sane_jax.models import outputs
from sane_jax.models.outputs import ModelError
from sane_jax.ops import arrays, numerics


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
  """A similarity model. Made by `load_model` and the `from_...` functions.

  Attributes:
    name: for reports.
    image_size: (height, width) in pixels of what the model is given.
    embed: (params, images [b h w 3] float32 in [0, 1]) -> embeddings [b d]; None if the model
      gives nothing but scores. Scores are cosines of embeddings.
    params: parameters of `embed`, any pytree.
    score: (queries [b h w 3], reference [h w 3]) -> scores [b], for score-only models.
    on_host: whether the functions take and give NumPy arrays instead of being traced by JAX.
    fit: how a photo of another shape becomes `image_size`: 'crop', 'stretch' or 'pad'.
    crop_fraction: share of the largest centred window that 'crop' keeps.
    interpolation: of the resizing, 'bilinear' or 'bicubic'.
    steady: whether it is known to give an image the same answer each time, whatever else is in the
      batch; that of other models is tried once.
  """

  name: str
  image_size: tuple[int, int]
  embed: Callable[..., Any] | None
  params: Any = None
  score: Callable[..., Any] | None = None
  on_host: bool = False
  fit: str = "crop"
  crop_fraction: float = 1.0
  interpolation: str = "bilinear"
  steady: bool = False

  def __post_init__(self):
    size = self.image_size
    if len(size) != 2 or any(not isinstance(n, int) or n < 1 for n in size):
      raise ModelError(
        f"image_size is (height, width) in pixels, two positive integers; given {size!r}"
      )


def _size(image_size: Any) -> tuple[int, int]:
  """One side, or (height, width), as a pair."""
  if isinstance(image_size, int | np.integer):
    return int(image_size), int(image_size)
  try:
    return tuple(int(n) for n in image_size)  # pyright: ignore[reportReturnType]
  except (TypeError, ValueError):
    raise ModelError(
      f"image_size is one side or (height, width) in pixels; given {image_size!r}"
    ) from None


@dataclasses.dataclass(frozen=True)
class _Picked:
  """One of several outputs of `embed`. Equal to its like, so that one compilation serves all."""

  embed: Callable[..., Any]
  output: str | int | None
  name: str

  def __call__(self, params: Any, images: Any) -> Any:
    given = self.embed(params, images)
    return outputs.pick(given, images.shape[0], self.name, output=self.output)


def from_jax(
  embed_fn: Callable[..., Any], params: Any, *, image_size: Any, output: str | int | None = None,
  name: str = "", **fitting: Any,
) -> Model:  # fmt: skip
  """A JAX function and its parameters as a model.

  Args:
    embed_fn: (params, images [b h w 3] float32 in [0, 1]) -> embeddings [b d], traceable by jit
      and, for the learned mask, differentiable.
    params: any pytree of arrays.
    image_size: one side or (height, width).
    output: which of several outputs holds the embeddings, by name or place; by default the only one
      that is [b d].
    name: for reports; the function's name by default.
    **fitting: `fit`, `crop_fraction` and `interpolation`; see `Model`.

  Raises:
    ModelError: the function can't be traced at that size, or gives no [b d] float array.
  """
  name = name or getattr(embed_fn, "__name__", type(embed_fn).__name__)
  size = _size(image_size)
  model = Model(name, size, embed_fn, params, **fitting)
  images = jax.ShapeDtypeStruct((2, *size, 3), np.float32)

  def pick(params: Any, images: Any) -> Any:
    nonlocal model
    given = embed_fn(params, images)
    if output is not None or len(getattr(given, "shape", ())) != 2:
      model = dataclasses.replace(model, embed=_Picked(embed_fn, output, name))
    return outputs.pick(given, 2, name, output=output)

  try:
    out = jax.eval_shape(pick, params, images)
  except ModelError:
    raise
  except Exception as error:
    raise ModelError(
      f"{name} could not be traced on images of shape {images.shape}:"
      f" {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}. A function"
      " that needs NumPy arrays is brought in with sane_jax.from_numpy"
    ) from error
  shape = getattr(out, "shape", None)
  if shape is None or len(shape) != 2 or shape[0] != 2:
    expected = "embeddings of shape (2, d)"
    raise ModelError(outputs.wrong_shape(name, expected, shape, images.shape))
  if not jax.numpy.issubdtype(out.dtype, jax.numpy.floating):
    raise ModelError(f"{name} gives {out.dtype} embeddings; floating-point ones are expected")
  return model


@dataclasses.dataclass(frozen=True)
class _Cast:
  """`embed` at another precision. Equal to its like, so that one compilation serves all."""

  embed: Callable[..., Any]
  dtype: str

  def __call__(self, params: Any, images: Any) -> Any:
    return self.embed(params, images.astype(self.dtype)).astype(np.float32)


def at_precision(model: Model, dtype: str) -> Model:
  """The model with parameters and images in `dtype`, such as 'bfloat16'; embeddings are float32.

  Raises:
    ModelError: a model on the host, whose numbers are its own; a type that is not floating-point.
  """
  if model.on_host or model.embed is None:
    raise ModelError(
      f"dtype={dtype!r} is for models that JAX traces; {model.name} runs on the host at a precision"
      " of its own"
    )
  try:
    known = jax.numpy.issubdtype(jax.numpy.dtype(dtype), jax.numpy.floating)
  except TypeError:
    known = False
  if not known:
    raise ModelError(f"dtype is 'float32', 'bfloat16' or 'float16'; given {dtype!r}")
  if dtype == "float32":
    return model

  def cast(leaf: Any) -> Any:
    floating = jax.numpy.issubdtype(jax.numpy.result_type(leaf), jax.numpy.floating)
    return jax.numpy.asarray(leaf, dtype) if floating else leaf

  return dataclasses.replace(
    model, name=f"{model.name}, {dtype}", embed=_Cast(model.embed, dtype),
    params=jax.tree.map(cast, model.params),
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _HostFunction:
  """A callable of images, as a model's `embed`."""

  function: Callable[[np.ndarray], Any]
  output: str | int | None
  name: str

  def __call__(self, _: Any, images: np.ndarray) -> Any:
    return outputs.pick(self.function(images), len(images), self.name, output=self.output)


def from_numpy(
  fn: Callable[[np.ndarray], Any], *, image_size: Any, output: str | int | None = None,
  name: str = "", **fitting: Any,
) -> Model:  # fmt: skip
  """Any Python callable as a model: images [b h w 3] float32 in [0, 1] -> embeddings [b d].

  It is called with batches of at most the explainer's chunk size and must not mind their size. It
  may give an array of any library; of several, `output` names the one, by default the only [b d].
  """
  name = name or getattr(fn, "__name__", type(fn).__name__)
  embed = _HostFunction(fn, output, name)
  return Model(name, _size(image_size), embed, on_host=True, **fitting)


def from_score(
  fn: Callable[[np.ndarray, np.ndarray], Any], *, image_size: Any, name: str = "", **fitting: Any
) -> Model:
  """A model of which nothing but scores is known: (queries [b h w 3], reference [h w 3]) -> [b].

  Higher must mean more alike: of a distance give the negative, or all signs of maps are turned.
  Maps on query and reference, contrasts and standard errors work; every reference needs its own
  passes, and there is no correspondence, for that takes embeddings.
  """
  name = name or getattr(fn, "__name__", type(fn).__name__)
  return Model(name, _size(image_size), None, score=fn, on_host=True, **fitting)


def _statistics(mean: Any, std: Any) -> tuple[np.ndarray, np.ndarray] | None:
  """What is taken from the channels and what they are divided by then, [3] each; None for neither.

  Raises:
    ModelError: other shapes, what is not finite, no positive divisor, statistics of 0..255.
  """
  if mean is None and std is None:
    return None
  pair = []
  for what, given, otherwise in (("mean", mean, 0.0), ("std", std, 1.0)):
    try:
      values = np.ravel(np.asarray(arrays.to_numpy(otherwise if given is None else given), float))
    except Exception as error:  # of whatever was given
      raise ModelError(f"{what} is three numbers or one; given {given!r}: {error}") from error
    if values.size not in (1, 3) or not np.isfinite(values).all():
      raise ModelError(f"{what} is three finite numbers, one a channel, or one; given {given!r}")
    pair.append(np.broadcast_to(values, 3))
  shift, scale = pair
  if shift.max() > 1 or scale.max() > 2:
    # A network of pixels in 0..255 with its mean alone divides by 1, which is 1/255 here.
    if shift.max() > 1 or not shift.any():
      shift = shift / 255
    right = [tuple(round(float(n), 6) for n in values) for values in (shift, scale / 255)]
    raise ModelError(
      f"mean={mean!r} and std={std!r} are of pixels in 0..255, and images come in [0, 1]; give"
      f" mean={right[0]}, std={right[1]}"
    )
  if not (scale > 0).all():
    raise ModelError(f"std divides the channels and is above 0; given {std!r}")
  return shift.astype(np.float32), scale.astype(np.float32)


def from_torch(
  module: Any,
  *,
  image_size: Any,
  mean: Any = None,
  std: Any = None,
  device: Any = None,
  output: str | int | None = None,
  name: str = "",
  **fitting: Any,
) -> Model:
  """A PyTorch module as a model: images [b 3 h w] -> embeddings [b d].

  Args:
    module: a module, scripted, exported or compiled ones as well; or a function that embeds by
      some, such as `model.encode_image`. For each call, and no longer, it is in evaluation mode and
      without gradients. Images come in the precision and on the device of its parameters.
    image_size: one side or (height, width).
    mean: taken from the pixels (in [0, 1]) before they enter: three numbers, one a channel, or one
      for all, in any array; None for none.
    std: likewise, what they are divided by after that. ImageNet's mean is (0.485, 0.456, 0.406),
      its std (0.229, 0.224, 0.225).
    device: where the module is put; it stays where it is by default.
    output: which of several outputs holds the embeddings, by name or place, as 'pooler_output'; by
      default the only one that is [b d].

  Raises:
    ModelError: no module; a mean or std that can't be, or of pixels in 0..255.
  """
  from sane_jax.models import torch_module

  encoder = torch_module.make(
    module, statistics=_statistics(mean, std), device=device, output=output, name=name
  )
  return Model(encoder.name, _size(image_size), encoder, on_host=True, **fitting)


def from_onnx(
  path: str | os.PathLike[str],
  *,
  image_size: Any = None,
  mean: Any = None,
  std: Any = None,
  output: str | None = None,
  channels_first: bool | None = None,
  name: str = "",
  **fitting: Any,
) -> Model:
  """An ONNX file as a model, run by ONNX Runtime.

  Args:
    path: a model with one image input, [b 3 h w] or [b h w 3], of floats, or of uint8 in 0..255.
    image_size: only where the file leaves height and width open.
    mean, std: as for `from_torch`.
    output: name of the output with the embeddings [b d]; by default the first, or the only one that
      the file says to be [b d].
    channels_first: whether the input is [b 3 h w], where the file does not tell.

  Raises:
    ModelError: unreadable file, more than one input, open size without `image_size` or another
      than the file's, an input of another type.
  """
  from sane_jax.models import onnx_file

  path = os.fspath(path)
  size = None if image_size is None else _size(image_size)
  encoder = onnx_file.OnnxEncoder(path, _statistics(mean, std), output, channels_first, size)
  sides = tuple(encoder.sides)
  if size is None:
    if not all(isinstance(n, int) for n in sides):
      raise ModelError(f"{path!r} leaves the image size open; give image_size=(height, width)")
    size = sides
  if any(isinstance(n, int) and n != m for n, m in zip(sides, size, strict=True)):
    raise ModelError(f"{path!r} takes images of {sides}, not of image_size={size}; leave it out")
  name = name or os.path.splitext(os.path.basename(path))[0]
  return Model(name, _size(size), encoder, on_host=True, **fitting)


@dataclasses.dataclass(frozen=True)
class _Own:
  """A function of this library, which is written for JAX as the library has it."""

  function: Callable[..., Any]

  def __call__(self, params: Any, images: Any) -> Any:
    with numerics.ours():
      return self.function(params, images)


def _load_efficientnet_lite0(image_size: int) -> Model:
  from sane_jax.models import efficientnet_lite0

  embed, params = efficientnet_lite0.load_efficientnet_lite0()
  return Model(
    "efficientnet_lite0",
    _size(image_size),
    _Own(embed),
    params,
    crop_fraction=image_size / (image_size + 32),
    interpolation="bicubic",
    steady=True,
  )


MODELS: Mapping[str, Callable[[int], Model]] = {"efficientnet_lite0": _load_efficientnet_lite0}


def load_model(
  name: str, *, image_size: int | None = None, condition: Any = None, **fitting: Any
) -> Model:
  """A model with its weights; nothing is downloaded.

  Args:
    name: 'efficientnet_lite0': EfficientNet-Lite0 with ImageNet weights, 1,280-d pooled features.
      A file that ends in .safetensors: a similarity model that was trained here or converted, or a
      ResNet, whose pooled features are then the embedding. Or 'module:function' for your own: the
      function is called with `image_size` and returns a `Model`.
    image_size: side in pixels; by default what the network was trained at, 224 for
      EfficientNet-Lite0.
    condition: in which space a type-aware model compares: its index, or two types as 'tops,shoes'
      or ('tops', 'shoes'), in either order.
    **fitting: `fit`, `crop_fraction`, `interpolation`; see `Model`.

  Raises:
    ModelError: no such model; a file that is none; a function that can't be imported, or returns
      something else; a condition that the model does not have, or none where it needs one.
  """
  if name.endswith(".safetensors"):
    return dataclasses.replace(_load_file(name, image_size, condition), **fitting)
  if condition is not None:
    raise ModelError(f"{name} has one space; condition={condition!r} is for type-aware models")
  if ":" in name:
    make = _import(name)
  elif name in MODELS:
    make = MODELS[name]
  else:
    raise ModelError(
      f"no model {name!r}; there is {', '.join(MODELS)}. A trained or converted one is named by its"
      " file, FILE.safetensors. Bring your own with sane_jax.from_jax, from_numpy, from_torch,"
      " from_onnx or from_score, here as module:function"
    )
  model = make(224 if image_size is None else image_size)
  if not isinstance(model, Model):
    raise ModelError(
      f"{name} returned {type(model).__name__}; a sane_jax.Model is expected, as sane_jax.from_jax,"
      " from_numpy, from_torch, from_onnx and from_score make it"
    )
  return dataclasses.replace(model, **fitting)


@numerics.ours()
def _load_file(path: str, image_size: int | None, condition: Any) -> Model:
  from sane_jax.models import weights  # flax takes a second to import

  try:
    variables, description = weights.read_model_file(path)
  except FileNotFoundError:
    raise ModelError(f"no model file {path}; train or convert one, or look for its name") from None
  except (OSError, ValueError) as error:
    raise ModelError(str(error)) from error
  size = description.get("image_size", 224) if image_size is None else image_size
  name = os.path.splitext(os.path.basename(path))[0]
  if description["kind"] == "resnet":
    if condition is not None:
      raise ModelError(f"{path} has one space; condition={condition!r} is for type-aware models")
    resnet: Any = weights.make_resnet(description)
    # As these networks are evaluated: 224 pixels of 256.
    return from_jax(
      _own(_PooledFeatures, resnet), variables, image_size=size, name=name,
      crop_fraction=size / (size + 32), steady=True,
    )  # fmt: skip
  if description["kind"] != "similarity":
    raise ModelError(f"{path} is a model of kind {description['kind']!r}, which compares no images")
  net: Any = weights.make_similarity_model(description)
  mask = None
  if (index := find_condition(description, net.num_conditions, condition)) is not None:
    mask = variables["params"]["type_masks"][index]
    name = f"{name} in space {condition if isinstance(condition, str) else index}"
  # The mask goes with the parameters: another space is not another program.
  params = {"variables": variables, "mask": mask}
  embed = _own(_SimilarityEmbedding, net)
  return from_jax(embed, params, image_size=size, name=name, steady=True)


# Files of one architecture share a function, and thereby what was compiled for it.
@functools.lru_cache(32)
def _own(kind: Callable[..., Any], net: Any) -> _Own:
  return _Own(kind(net))


@dataclasses.dataclass(frozen=True)
class _PooledFeatures:
  net: Any

  def __call__(self, params: Any, images: Any) -> Any:
    return self.net.apply(params, images, method="pooled")


@dataclasses.dataclass(frozen=True)
class _SimilarityEmbedding:
  net: Any

  def __call__(self, params: Any, images: Any) -> Any:
    from sane_jax.models import embedding

    return embedding.in_condition(self.net.apply(params["variables"], images), params["mask"])


def find_condition(description: Mapping[str, Any], count: int, condition: Any) -> int | None:
  """Index of one of `count` spaces by index or by two types; None where there is one space.

  Args:
    description: of a model file; `type_names` [t] and `conditions` [t t] are looked at.
    count: how many spaces the model has.
    condition: an index, '3', 'tops,shoes' or ('tops', 'shoes').

  Raises:
    ModelError: no such space, or none given where there are several; lists what there is.
  """
  types = list(description.get("type_names", ()))
  known = f"give condition=INDEX, 0 to {count - 1}"
  if types:
    known += f", or two types, such as condition='{types[0]},{types[-1]}', of {', '.join(types)}"
  if count == 1:
    if condition in (None, 0, "0"):
      return None
    raise ModelError(f"the model has one space; given condition={condition!r}")
  if condition is None:
    raise ModelError(f"a type-aware model compares in one of {count} spaces: {known}")
  if isinstance(condition, str):
    condition = [part.strip() for part in condition.split(",")]
    if len(condition) == 1 and condition[0].isdecimal():
      condition = int(condition[0])
  if isinstance(condition, int | np.integer):
    if 0 <= condition < count:
      return int(condition)
  elif (
    isinstance(condition, list | tuple)
    and len(condition) == 2
    and all(kind in types for kind in condition)
  ):
    first, second = map(types.index, condition)
    return int(description["conditions"][first][second])
  raise ModelError(f"no space {condition!r}: {known}")


def _import(name: str) -> Callable[[int], Model]:
  module, _, function = name.partition(":")
  try:
    return getattr(importlib.import_module(module), function)
  except (ImportError, AttributeError) as error:
    raise ModelError(
      f"no model {name!r}: {error}. It is module:function, the module importable from here"
      " (PYTHONPATH=FOLDER)"
    ) from error


def call_on_host(model: Model, images: np.ndarray, reference: np.ndarray | None = None):
  """Embeddings [b d] of images by a host model, or their scores [b 1] with a reference: float32.

  The model is given copies: what it does to them harms no one.

  Raises:
    OutOfMemory: the model's memory does not hold them.
    ModelError: the model raised, or returned something of another shape.
  """
  try:
    with numerics.theirs():
      if reference is None:
        given = model.embed(model.params, images.copy())  # pyright: ignore[reportOptionalCall]
      else:
        given = model.score(images.copy(), reference.copy())  # pyright: ignore[reportOptionalCall]
  except ModelError:
    raise
  except Exception as error:
    raise outputs.error_of(error, model.name, images, model.image_size) from error
  if reference is not None:
    return outputs.scores_of(given, len(images), model.name, model.image_size)[:, None]
  return outputs.embeddings_of(given, len(images), model.name, model.image_size)
