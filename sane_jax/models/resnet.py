"""Residual networks with torchvision's numerics, as feature maps for embeddings and attributes."""

import functools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

BlockName = Literal["basic", "bottleneck"]
Stem = Literal["imagenet", "small"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
EXPANSION = {"basic": 1, "bottleneck": 4}  # channels out of a block, per channel inside it

# As torchvision initialises; `weights.init_variables` draws the same without compiling anything.
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_norm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)


def uniform_init(fan_in: int) -> nn.initializers.Initializer:
  """U(−1/√fan_in, 1/√fan_in), torch's default for kernels and biases alike."""

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

  return init


def dense(features: int, fan_in: int, **options: Any) -> nn.Dense:
  """A fully connected layer, initialised as torch does."""
  init = uniform_init(fan_in)
  return nn.Dense(features, kernel_init=init, bias_init=init, **options)


def _conv(features: int, size: int, stride: int, dtype: Any, name: str) -> nn.Conv:
  """Padded by (size − 1) / 2 on each side whatever the stride, unlike 'SAME'."""
  return nn.Conv(
    features, (size, size), stride, (size - 1) // 2, use_bias=False, dtype=dtype,
    kernel_init=conv_init, name=name,
  )  # fmt: skip


def _pointwise(features: int, dtype: Any, name: str) -> nn.Dense:
  """A 1x1 convolution as a product over the last axis: up to twice as fast on a CPU."""
  return nn.Dense(features, use_bias=False, dtype=dtype, kernel_init=conv_init, name=name)


class Block(nn.Module):
  """Residual block [b h w i] -> [b ⌈h/stride⌉ ⌈w/stride⌉ o], o = width · expansion.

  'basic' is 3x3, 3x3; 'bottleneck' 1x1, 3x3, 1x1 with the stride on the 3x3, as torchvision has it
  ("v1.5").
  """

  kind: BlockName
  width: int
  stride: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, "b h w i"], train: bool) -> Float[Array, "b p q o"]:
    norm = functools.partial(_norm, use_running_average=not train, dtype=self.dtype)
    out_channels = self.width * EXPANSION[self.kind]
    if self.kind == "basic":
      y = _conv(self.width, 3, self.stride, self.dtype, "conv1")(x)
      y = nn.relu(norm(name="bn1")(y))
      y = norm(name="bn2")(_conv(self.width, 3, 1, self.dtype, "conv2")(y))
    else:
      y = nn.relu(norm(name="bn1")(_pointwise(self.width, self.dtype, "conv1")(x)))
      y = _conv(self.width, 3, self.stride, self.dtype, "conv2")(y)
      y = nn.relu(norm(name="bn2")(y))
      y = norm(name="bn3")(_pointwise(out_channels, self.dtype, "conv3")(y))
    if self.stride != 1 or x.shape[-1] != out_channels:
      x = _pointwise(out_channels, self.dtype, "downsample_conv")(
        x[:, :: self.stride, :: self.stride]
      )
      x = norm(name="downsample_bn")(x)
    return nn.relu(x + y)


class ResNet(nn.Module):
  """He et al., "Deep Residual Learning for Image Recognition", 2016 (arXiv 1512.03385).

  Images are RGB in [0, 1]; ImageNet's mean and standard deviation are taken out here. Computed in
  `dtype`; parameters and the statistics of batch normalisation are float32 whatever it is. Under
  `jit` these statistics are of the whole batch, also where devices share it.

  Attributes:
    stage_sizes: blocks in each stage; every stage but the first halves the map and doubles the
      channels. (2, 2, 2, 2) is ResNet-18, (2, 2, 2) the trunk of the paper's embedding.
    block: 'basic' or 'bottleneck' (ResNet-50 and deeper).
    width: channels inside the first stage's blocks.
    stem: 'imagenet', a 7x7 convolution of stride 2 and a 3x3 max-pool of stride 2; or 'small' for
      images of some 64 pixels, a 3x3 convolution of stride 2 alone.
    num_classes: outputs of `logits`; 0 for a network without that layer.
    dtype: to compute in; float32 or bfloat16.

  Raises:
    ValueError: no stages, another block or stem, a size under 1.
  """

  stage_sizes: Sequence[int]
  block: BlockName = "basic"
  width: int = 64
  stem: Stem = "imagenet"
  num_classes: int = 0
  dtype: Any = jnp.float32

  def __post_init__(self) -> None:
    super().__post_init__()
    for name, kinds in (("block", BlockName), ("stem", Stem)):
      if (given := getattr(self, name)) not in (choices := get_args(kinds)):
        raise ValueError(f"{name} is {given!r}; choose one of {', '.join(choices)}")
    if not self.stage_sizes or min(*self.stage_sizes, self.width) < 1 or self.num_classes < 0:
      raise ValueError(
        f"stage_sizes {tuple(self.stage_sizes)}, width {self.width}, num_classes"
        f" {self.num_classes}: expected one or more stages of 1 or more blocks, such as (2, 2, 2)"
      )

  @property
  def feature_size(self) -> int:
    """Channels of the last map."""
    return self.width * 2 ** (len(self.stage_sizes) - 1) * EXPANSION[self.block]

  def setup(self) -> None:
    if self.num_classes:
      self.fc = dense(self.num_classes, self.feature_size)

  @nn.compact
  def stages(
    self, images: Float[Array, "b h w 3"], train: bool = False
  ) -> tuple[Float[Array, "b p q c"], ...]:
    """The map after each stage, finest first.

    Raises:
      ValueError: `images` is not [b h w 3] of a floating type.
    """
    floats = jnp.issubdtype(images.dtype, jnp.floating)
    if images.ndim != 4 or images.shape[-1] != 3 or not floats:
      raise ValueError(
        f"images are {images.dtype} {images.shape}; expected floats [b h w 3] in [0, 1]: "
        "divide uint8 images by 255, give a single image as image[None]"
      )
    x = (images - jnp.asarray(IMAGENET_MEAN)) / jnp.asarray(IMAGENET_STD)
    size = 7 if self.stem == "imagenet" else 3
    x = _conv(self.width, size, 2, self.dtype, "conv1")(x.astype(self.dtype))
    x = nn.relu(_norm(use_running_average=not train, dtype=self.dtype, name="bn1")(x))
    if self.stem == "imagenet":
      pads: Any = ((1, 1), (1, 1))  # flax's annotation knows only the names of paddings
      x = nn.max_pool(x, (3, 3), (2, 2), pads)
    maps = []
    for i, count in enumerate(self.stage_sizes):
      for j in range(count):
        stride = 2 if i > 0 and j == 0 else 1
        name = f"layer{i + 1}_{j}"
        x = Block(self.block, self.width * 2**i, stride, self.dtype, name=name)(x, train)
      maps.append(x)
    if self.num_classes and self.is_initializing():
      self.fc(_pool(x))  # so that `init` makes it whatever method is asked for
    return tuple(maps)

  def __call__(
    self, images: Float[Array, "b h w 3"], train: bool = False
  ) -> Float[Array, "b p q c"]:
    """The map after the last stage; ⌈h/8⌉ x ⌈w/8⌉ for 'small' and three stages.

    With `train` the batch's own statistics normalise and the running ones move, which takes
    `mutable=["batch_stats"]` in `apply`.
    """
    return self.stages(images, train)[-1]

  def pooled(self, images: Float[Array, "b h w 3"], train: bool = False) -> Float[Array, "b c"]:
    """The mean over the map's positions, float32."""
    return _pool(self(images, train))

  def logits(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b k"]:
    """Outputs of the last layer `fc`, where the network has one."""
    return self.fc(self.pooled(images))


def _pool(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
  return x.mean((1, 2), dtype=jnp.float32)


ResNet18 = functools.partial(ResNet, (2, 2, 2, 2))
ResNet50 = functools.partial(ResNet, (3, 4, 6, 3), "bottleneck")
