"""The similarity model: a trunk's pooled features as an embedding, in one space or in several.

A type-aware model (Vasileva et al., "Learning Type-Aware Embeddings for Fashion Compatibility",
ECCV 2018, arXiv 1803.09196) compares a top with shoes in another space than a top with a bag. Space
c weighs the axes of the embedding by a learned mask:

    e(x; c) = f(x) ⊙ relu(mask_c) / ‖f(x) ⊙ relu(mask_c)‖

The trunk is passed once; all spaces come from one f(x).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int

from sane_jax.models.resnet import ResNet, dense

MASK_MEAN, MASK_STD = 0.9, 0.7  # of the masks at the start
# A squared norm under this is no direction: the vector stays as small as it is, and gradients
# stay finite.
_SMALLEST_SQUARE = 1e-12


def in_condition(
  embedding: Float[Array, "*b d"], masks: Float[Array, "*b d"] | None = None
) -> Float[Array, "*b d"]:
  """Unit vectors: the embedding times relu(mask), normalised; without masks normalised alone.

  Args:
    embedding: f(x), any leading axes.
    masks: rows of `type_masks`, of a shape that broadcasts with `embedding`.
  """
  if masks is not None:
    embedding = embedding * nn.relu(masks)
  square = jnp.sum(jnp.square(embedding), -1, keepdims=True)
  return embedding * lax.rsqrt(jnp.maximum(square, _SMALLEST_SQUARE))


def _mask_init(key, shape, dtype=jnp.float32):
  return MASK_MEAN + MASK_STD * jax.random.normal(key, shape, dtype)


class SimilarityModel(nn.Module):
  """Trunk, mean over positions, dense layer; masks where there are several spaces.

  Attributes:
    trunk: gives the feature map.
    size: d, the numbers in an embedding.
    num_conditions: how many spaces; the parameter `type_masks` [num_conditions d] is there when
      more than one.
    text_size: v, hashed words of a title; with it there is a layer `text` for training against
      titles. 0 for none.
  """

  trunk: ResNet
  size: int = 64
  num_conditions: int = 1
  text_size: int = 0

  def setup(self) -> None:
    self.dense = dense(self.size, self.trunk.feature_size)
    if self.num_conditions > 1:
      self.type_masks = self.param("type_masks", _mask_init, (self.num_conditions, self.size))
    if self.text_size:
      self.text_dense = dense(self.size, self.text_size)

  def __call__(self, images: Float[Array, "b h w 3"], train: bool = False) -> Float[Array, "b d"]:
    """f(x), float32 and of any length, for `in_condition`."""
    if self.text_size and self.is_initializing():
      self.text(jnp.zeros((1, self.text_size)))
    return self.dense(self.trunk.pooled(images, train))

  def unit(
    self,
    images: Float[Array, "b h w 3"],
    conditions: Int[Array, "*b"] | int | None = None,
    train: bool = False,
  ) -> Float[Array, "b d"]:
    """Unit embeddings: image i in space conditions[i], or all of them in one space.

    `conditions` is not looked at where there is one space, and None takes f(x) as it is.
    """
    return in_condition(self(images, train), self._masks(conditions))

  def all_conditions(
    self, images: Float[Array, "b h w 3"], conditions: Int[Array, " k"], train: bool = False
  ) -> Float[Array, "b k d"]:
    """Unit embeddings of each image in each of k spaces, from one pass of the trunk."""
    raw = self(images, train)[:, None]
    masks = self._masks(conditions)
    return in_condition(raw, jnp.ones((len(conditions), 1)) if masks is None else masks)

  def text(self, words: Float[Array, "b v"]) -> Float[Array, "b d"]:
    """Embeddings of titles, not normalised, from counts of their hashed words."""
    return self.text_dense(words)

  def _masks(self, conditions: Any) -> Float[Array, "*b d"] | None:
    if self.num_conditions == 1 or conditions is None:
      return None
    return self.type_masks[jnp.asarray(conditions)]
