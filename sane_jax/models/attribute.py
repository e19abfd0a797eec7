"""The attribute model: which attributes an image has, and where.

A 3x3 convolution without bias turns a feature map into one activation map per attribute; an
attribute's score is the mean of its map.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from sane_jax.models.resnet import ResNet, uniform_init


def attribute_scores(maps: Float[Array, "b h w a"]) -> Float[Array, "b a"]:
  """The mean over positions."""
  return maps.mean((1, 2))


def activation_maps(maps: Float[Array, "b h w a"]) -> Float[Array, "b h w a"]:
  """Softmax over positions: each attribute's map is positive and sums to 1."""
  b, h, w, a = maps.shape
  return jax.nn.softmax(maps.reshape(b, h * w, a), axis=1).reshape(maps.shape)


class AttributeModel(nn.Module):
  """Images, or feature maps that another network gave, to activation maps.

  Attributes:
    trunk: gives the feature map; None where the inputs are feature maps already.
    num_attributes: a.
    feature_size: channels of the inputs, where there is no trunk.
    dtype: to compute the convolution in.

  Raises:
    ValueError: neither a trunk nor `feature_size`, or both.
  """

  trunk: ResNet | None
  num_attributes: int
  feature_size: int = 0
  dtype: Any = jnp.float32

  def __post_init__(self) -> None:
    super().__post_init__()
    if (self.trunk is None) != (self.feature_size > 0):
      raise ValueError(
        f"an attribute model has a trunk or takes feature maps of feature_size channels; given"
        f" trunk={'None' if self.trunk is None else 'a network'},"
        f" feature_size={self.feature_size}"
      )

  def setup(self) -> None:
    channels = self.trunk.feature_size if self.trunk is not None else self.feature_size
    self.activation = nn.Conv(
      self.num_attributes, (3, 3), padding=1, use_bias=False, dtype=self.dtype,
      kernel_init=uniform_init(9 * channels),
    )  # fmt: skip

  def __call__(
    self, inputs: Float[Array, "b p q c"], train: bool = False
  ) -> Float[Array, "b h w a"]:
    """Activation maps, float32, neither pooled nor normalised.

    Args:
      inputs: images [b p q 3] in [0, 1], or feature maps [b h w c] where there is no trunk.
      train: normalise by the batch's statistics and move the running ones; see `ResNet`.
    """
    features = inputs if self.trunk is None else self.trunk(inputs, train)
    return self.activation(features).astype(jnp.float32)
