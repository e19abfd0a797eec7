"""A similarity model as the explainer sees it: a function and its parameters, or only a callable.

`from_jax` models run inside the jitted kernel. `from_numpy`, `from_torch`, `from_onnx` and
`from_score` models run on the host: masks and sums stay jitted, batches go to and fro.
"""

import dataclasses
import functools
import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sane_jax.runs import files


class ModelError(ValueError):
  """The model gave what is no embedding and no score: what came, and what was expected."""


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


def from_jax(
  embed_fn: Callable[..., Any], params: Any, *, image_size: Any, name: str = "", **fitting: Any
) -> Model:
  """A JAX function and its parameters as a model.

  Args:
    embed_fn: (params, images [b h w 3] float32 in [0, 1]) -> embeddings [b d], traceable by jit
      and, for the learned mask, differentiable.
    params: any pytree of arrays.
    image_size: one side or (height, width).
    name: for reports; the function's name by default.
    **fitting: `fit`, `crop_fraction` and `interpolation`; see `Model`.

  Raises:
    ModelError: the function can't be traced at that size, or gives no [b d] float array.
  """
  name = name or getattr(embed_fn, "__name__", type(embed_fn).__name__)
  size = _size(image_size)
  model = Model(name, size, embed_fn, params, **fitting)
  images = jax.ShapeDtypeStruct((2, *size, 3), np.float32)
  try:
    out = jax.eval_shape(embed_fn, params, images)
  except Exception as error:
    raise ModelError(
      f"{name} could not be traced on images of shape {images.shape}:"
      f" {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}. A function"
      " that needs NumPy arrays is brought in with sane_jax.from_numpy"
    ) from error
  shape = getattr(out, "shape", None)
  if shape is None or len(shape) != 2 or shape[0] != 2:
    raise ModelError(_wrong_output(name, "embeddings of shape (2, d)", shape, images.shape))
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


def from_numpy(
  fn: Callable[[np.ndarray], Any], *, image_size: Any, name: str = "", **fitting: Any
) -> Model:
  """Any Python callable as a model: images [b h w 3] float32 in [0, 1] -> embeddings [b d].

  It is called with batches of at most the explainer's chunk size and must not mind their size.
  """
  name = name or getattr(fn, "__name__", type(fn).__name__)
  return Model(name, _size(image_size), lambda _, x: fn(x), on_host=True, **fitting)


def from_score(
  fn: Callable[[np.ndarray, np.ndarray], Any], *, image_size: Any, name: str = "", **fitting: Any
) -> Model:
  """A model of which nothing but scores is known: (queries [b h w 3], reference [h w 3]) -> [b].

  Maps on query and reference, contrasts and standard errors work; every reference needs its own
  passes, and there is no correspondence, for that takes embeddings.
  """
  name = name or getattr(fn, "__name__", type(fn).__name__)
  return Model(name, _size(image_size), None, score=fn, on_host=True, **fitting)


def from_torch(
  module: Any,
  *,
  image_size: Any,
  mean: Sequence[float] | None = None,
  std: Sequence[float] | None = None,
  device: str | None = None,
  name: str = "",
  **fitting: Any,
) -> Model:
  """A PyTorch module as a model: images [b 3 h w] float32 -> embeddings [b d].

  Args:
    module: put in evaluation mode; run without gradients.
    image_size: one side or (height, width).
    mean: per-channel mean taken from the pixels (in [0, 1]) before they enter; None for none.
    std: per-channel divisor after that. ImageNet's mean is (0.485, 0.456, 0.406), its std (0.229,
      0.224, 0.225).
    device: where the module is put; it stays where it is by default.
  """
  import torch  # an extra: only users of torch models have it

  module = module.eval()
  if device is not None:
    module = module.to(device)
  place = next((p.device for p in module.parameters()), torch.device(device or "cpu"))
  shift = torch.tensor(mean or (0.0, 0.0, 0.0), device=place).view(1, 3, 1, 1)
  scale = torch.tensor(std or (1.0, 1.0, 1.0), device=place).view(1, 3, 1, 1)

  def embed(_, images):
    with torch.inference_mode():
      # NHWC memory seen as NCHW is torch's channels_last, its faster layout: nothing is copied.
      batch = torch.from_numpy(np.require(images, requirements="W")).to(place).permute(0, 3, 1, 2)
      if mean is not None or std is not None:
        batch = (batch - shift) / scale
      return module(batch).float().cpu().numpy()

  name = name or type(module).__name__
  return Model(name, _size(image_size), embed, on_host=True, **fitting)


def from_onnx(
  path: str | os.PathLike[str],
  *,
  image_size: Any = None,
  mean: Sequence[float] | None = None,
  std: Sequence[float] | None = None,
  output: str | None = None,
  name: str = "",
  **fitting: Any,
) -> Model:
  """An ONNX file as a model, run by ONNX Runtime.

  Args:
    path: a model with one image input, [b 3 h w] or [b h w 3], float32.
    image_size: only where the file leaves height and width open.
    mean, std: as for `from_torch`.
    output: name of the output with the embeddings [b d]; the first by default.

  Raises:
    ModelError: unreadable file, more than one input, open size without `image_size`.
  """
  import onnxruntime  # an extra

  path = os.fspath(path)
  try:
    local = os.fspath(files.local_copy(path))
  except (OSError, ValueError) as error:
    raise ModelError(f"no ONNX file at {path!r}: {error}") from error
  if not os.path.isfile(local):
    raise ModelError(f"no ONNX file at {path!r}; give the path of a .onnx file")
  try:
    session = onnxruntime.InferenceSession(local, providers=onnxruntime.get_available_providers())
  except Exception as error:
    raise ModelError(f"ONNX Runtime can't load {path!r}: {error}") from error
  inputs = session.get_inputs()
  if len(inputs) != 1 or len(inputs[0].shape) != 4 or 3 not in (inputs[0].shape[1::2]):
    given = ", ".join(f"{i.name}{i.shape}" for i in inputs)
    raise ModelError(f"{path!r} takes {given}; one input [b 3 h w] or [b h w 3] is expected")
  shape, channels_first = inputs[0].shape, inputs[0].shape[1] == 3
  sides = shape[2:] if channels_first else shape[1:3]
  if image_size is None:
    if not all(isinstance(n, int) for n in sides):
      raise ModelError(f"{path!r} leaves the image size open; give image_size=(height, width)")
    image_size = sides
  outputs = [o.name for o in session.get_outputs()]
  if output is not None and output not in outputs:
    raise ModelError(f"{path!r} has no output {output!r}; it has {', '.join(outputs)}")
  shift = np.asarray(mean or (0, 0, 0), np.float32)
  scale = np.asarray(std or (1, 1, 1), np.float32)
  feed, wanted = inputs[0].name, [output or outputs[0]]
  fixed_batch = shape[0] if isinstance(shape[0], int) else None

  def embed(_, images):
    if mean is not None or std is not None:
      images = (images - shift) / scale
    if channels_first:
      images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if fixed_batch in (None, len(images)):
      return session.run(wanted, {feed: images})[0]
    if fixed_batch != 1:
      raise ModelError(
        f"{path!r} takes batches of {fixed_batch} alone; export it with a dynamic batch axis"
      )
    each = [np.asarray(session.run(wanted, {feed: image[None]})[0]) for image in images]
    return np.concatenate(each)

  name = name or os.path.splitext(os.path.basename(path))[0]
  return Model(name, _size(image_size), embed, on_host=True, **fitting)


def _load_efficientnet_lite0(image_size: int) -> Model:
  from sane_jax.models import efficientnet_lite0

  embed, params = efficientnet_lite0.load_efficientnet_lite0()
  return Model(
    "efficientnet_lite0",
    _size(image_size),
    embed,
    params,
    crop_fraction=image_size / (image_size + 32),
    interpolation="bicubic",
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
    embed = _pooled_features(resnet)
    # As these networks are evaluated: 224 pixels of 256.
    return from_jax(embed, variables, image_size=size, name=name, crop_fraction=size / (size + 32))
  if description["kind"] != "similarity":
    raise ModelError(f"{path} is a model of kind {description['kind']!r}, which compares no images")
  net: Any = weights.make_similarity_model(description)
  mask = None
  if (index := find_condition(description, net.num_conditions, condition)) is not None:
    mask = variables["params"]["type_masks"][index]
    name = f"{name} in space {condition if isinstance(condition, str) else index}"
  # The mask goes with the parameters: another space is not another program.
  params = {"variables": variables, "mask": mask}
  return from_jax(_similarity_embedding(net), params, image_size=size, name=name)


# Cached, so that files of one architecture share a function, and thereby what was compiled for it.
@functools.cache
def _pooled_features(net: Any) -> Callable[..., Any]:
  return lambda params, images: net.apply(params, images, method="pooled")


@functools.cache
def _similarity_embedding(net: Any) -> Callable[..., Any]:
  from sane_jax.models import embedding

  def embed(params, images):
    return embedding.in_condition(net.apply(params["variables"], images), params["mask"])

  return embed


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
    ModelError: the model raised, or returned something of another shape.
  """
  try:
    if reference is None:
      outputs = model.embed(model.params, images.copy())  # pyright: ignore[reportOptionalCall]
    else:
      outputs = model.score(images.copy(), reference.copy())  # pyright: ignore[reportOptionalCall]
  except ModelError:
    raise
  except Exception as error:
    raise ModelError(
      f"{model.name} raised {type(error).__name__} on images of shape {images.shape}, float32 in"
      f" [0, 1]: {error}. Is image_size={model.image_size} what it takes?"
    ) from error
  return _host_outputs(model, outputs, len(images))


def _host_outputs(model: Model, outputs: Any, batch: int) -> np.ndarray:
  scores = model.embed is None
  expected = f"scores of shape ({batch},)" if scores else f"embeddings of shape ({batch}, d)"
  try:
    array = np.asarray(outputs, np.float32)
  except (TypeError, ValueError) as error:
    raise ModelError(
      f"{model.name} gave {type(outputs).__name__}, which is no array; {expected} are expected"
    ) from error
  if array.shape[:1] != (batch,) or array.ndim != (1 if scores else 2) or array.size == 0:
    shape = (batch, *model.image_size, 3)
    raise ModelError(_wrong_output(model.name, expected, array.shape, shape))
  return array[:, None] if scores else array


def _wrong_output(name: str, expected: str, shape: Any, images: tuple[int, ...]) -> str:
  what = f"shape {tuple(shape)}" if shape is not None else "no array"
  more = " Pool or flatten the features first." if shape is not None and len(shape) > 2 else ""
  return f"{name} gave {what} for images of shape {images}; {expected} are expected.{more}"
