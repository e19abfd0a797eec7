"""Losses of the similarity model and of the attribute model.

Plummer et al., Why do These Match?, ECCV 2020 (arXiv 1905.10797); the similarity model's are those
of Vasileva et al., Learning Type-Aware Embeddings for Fashion Compatibility, ECCV 2018.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

# Squared lengths are taken as no smaller: the square root has no gradient at 0.
_SMALLEST_SQUARE = 1e-12

# A map whose values differ by less than this share of them is flat: it is rounding that differs.
_FLAT = 1e-5

NEGATIVES = ("random", "hard")


class Triplets(NamedTuple):
  """The triplet loss of a batch."""

  loss: Float[Array, ""]
  in_order: Float[Array, ""]  # share of the triplets whose positive is nearer than the negative
  count: Float[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]


def _distance(cosine: Float[Array, "*b"]) -> Float[Array, "*b"]:
  """‖a − b‖ of unit vectors."""
  return jnp.sqrt(jnp.maximum(2 - 2 * cosine, _SMALLEST_SQUARE))


def _mean(values: Float[Array, "*b"], where: Bool[Array, "*b"]) -> Float[Array, ""]:
  """Mean of the values that count; 0 if none does."""
  return jnp.sum(jnp.where(where, values, 0.0)) / jnp.maximum(where.sum(), 1)


def triplet_loss(
  key: PRNGKeyArray,
  embeddings: Float[Array, "b d"],
  types: Int[Array, " b"],
  rows: Int[Array, " b"],
  groups: Int[Array, " b"],
  masks: Float[Array, "k d"],
  conditions: Int[Array, "t t"],
  *,
  negatives: str = "hard",
  margin: float = 0.3,
) -> Triplets:
  """Mean over triplets of max(0, ‖a − p‖ − ‖a − n‖ + margin), in the space of a's and p's types.

  Each ordered pair (a, p) of different images of one group makes a triplet. Its negative n is an
  image of p's type that is not in a's group: 'hard', the nearest to a in the batch; 'random', any.
  Pairs without such an image make none. In space c an image is the unit vector of
  embedding ⊙ masks[c].

  Args:
    embeddings: f(x), of any length.
    types, rows, groups: type, identity and group of each image; group −1 for rows that are padding.
    masks: non-negative weights of the axes in each space.
    conditions: the space of two types.

  Raises:
    ValueError: other `negatives`.
  """
  if negatives not in NEGATIVES:
    raise ValueError(f"negatives are {' or '.join(NEGATIVES)}; given {negatives!r}")
  # In every space, [k b b]: far cheaper than a mask for each pair of images, [b b d].
  unit = embeddings[None] * masks[:, None]  # [k b d]
  unit *= jax.lax.rsqrt(jnp.maximum(jnp.sum(unit * unit, -1, keepdims=True), _SMALLEST_SQUARE))
  # A shift changes no distance. Without it 2 − 2 cos of images that have come close is all
  # rounding, and its gradient, which is to part them again, is lost.
  unit -= jax.lax.stop_gradient(unit.mean(1, keepdims=True))
  products = jnp.einsum("kid,kjd->kij", unit, unit, precision="highest")
  squares = jnp.sum(unit * unit, -1)
  space = conditions[types[:, None], types[None, :]]
  i, j = jnp.indices(space.shape)
  square = squares[space, i] + squares[space, j] - 2 * products[space, i, j]
  distance = jnp.sqrt(jnp.maximum(square, _SMALLEST_SQUARE))

  there = groups >= 0
  same_row = rows[:, None] == rows[None, :]
  same_group = (groups[:, None] == groups[None, :]) & there[:, None] & there[None, :]
  positive = same_group & ~same_row
  # An image may be in several groups: what is in a's group is no negative under another name.
  in_group = (same_group.astype(jnp.float32) @ same_row.astype(jnp.float32)) > 0
  allowed = there[:, None] & there[None, :] & ~in_group & ~same_row
  of_type = types[:, None] == jnp.arange(conditions.shape[0])[None, :]  # [b t]
  candidates = allowed[:, None, :] & of_type.T[None, :, :]  # [b t b]: of an anchor, by type
  order = jax.lax.stop_gradient(distance)
  if negatives == "random":
    order = jax.random.uniform(key, distance.shape)
  chosen = jnp.argmin(jnp.where(candidates, order[:, None, :], jnp.inf), axis=-1)  # [b t]
  negative = jnp.take_along_axis(chosen, jnp.broadcast_to(types[None, :], space.shape), axis=1)
  exists = jnp.take_along_axis(candidates.any(-1), jnp.broadcast_to(types[None, :], space.shape), 1)
  to_negative = jnp.take_along_axis(distance, negative, axis=1)
  valid = positive & exists
  return Triplets(
    _mean(jax.nn.relu(distance - to_negative + margin), valid),
    _mean((distance < to_negative).astype(jnp.float32), valid),
    valid.sum().astype(jnp.float32),
  )


def title_loss(
  key: PRNGKeyArray,
  images: Float[Array, "b d"],
  titles: Float[Array, "b d"],
  groups: Int[Array, " b"],
  has_title: Bool[Array, " b"],
  *,
  margin: float = 0.3,
) -> Float[Array, ""]:
  """Visual-semantic triplets: an image is nearer to its own title than to one of another group.

  Mean over images with a title of max(0, ‖v − t‖ − ‖v − t'‖ + margin), unit vectors, t' drawn from
  the titles of the batch's other groups.
  """

  def unit(x):
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), _SMALLEST_SQUARE))

  distance = _distance(jnp.matmul(unit(images), unit(titles).T, precision="highest"))
  valid = has_title & (groups >= 0)
  other = valid[None, :] & (groups[:, None] != groups[None, :])
  drawn = jnp.argmax(jnp.where(other, jax.random.uniform(key, distance.shape), -1.0), axis=1)
  to_other = jnp.take_along_axis(distance, drawn[:, None], axis=1)[:, 0]
  hinge = jax.nn.relu(jnp.diagonal(distance) - to_other + margin)
  return _mean(hinge, valid & other.any(1))


def mask_l1(masks: Float[Array, "k d"]) -> Float[Array, ""]:
  """Mean of |mask|."""
  return jnp.mean(jnp.abs(masks))


def embedding_l2(embeddings: Float[Array, "b d"], valid: Bool[Array, " b"]) -> Float[Array, ""]:
  """Mean squared length of the embeddings that count."""
  return _mean(jnp.sum(jnp.square(embeddings), -1), valid)


# --- attributes; one image each ------------------------------------------------------------------


def label_target(labels: Bool[Array, " a"]) -> Float[Array, " a"]:
  """1/k on each of the k true attributes, 0 elsewhere."""
  return labels / jnp.maximum(labels.sum(), 1)


def label_loss(scores: Float[Array, " a"], labels: Bool[Array, " a"]) -> Float[Array, ""]:
  """Mean over attributes of Huber(softmax(scores) − target), δ = 1.

  Both lie in [0, 1], so Huber's is half the square. 0 for an image without a label.
  """
  difference = jax.nn.softmax(scores) - label_target(labels)
  return jnp.where(labels.any(), 0.5 * jnp.mean(jnp.square(difference)), 0.0)


def saliency_target(
  maps: Float[Array, "m p q"], shape: tuple[int, int], *, sharpness: float | None = None
) -> Float[Array, "m h w"]:
  """Saliency maps at `shape`, each a softmax over positions.

  Args:
    sharpness: None takes the maps as they are, as in the paper. The effect of a region on a cosine
      is some hundredths, so that softmax is nearly even; a number standardises each map first and
      multiplies it: (m − mean) / std · sharpness.
  """
  small = jax.image.resize(maps, (maps.shape[0], *shape), "linear")
  if sharpness is not None:
    centred = small - small.mean((1, 2), keepdims=True)
    spread = jnp.sqrt(jnp.mean(jnp.square(centred), (1, 2), keepdims=True))
    varies = spread > _FLAT * jnp.max(jnp.abs(small), (1, 2), keepdims=True)
    small = sharpness * jnp.where(varies, centred / jnp.where(varies, spread, 1.0), 0.0)
  return jax.nn.softmax(small.reshape(len(maps), -1)).reshape(small.shape)


def map_loss(
  activations: Float[Array, "h w a"],
  targets: Float[Array, "m h w"],
  valid: Bool[Array, " m"],
  labels: Bool[Array, " a"],
) -> Float[Array, ""]:
  """Mean over maps m of min over true attributes a of ‖n_a − m‖₂, n_a = softmax of a's activations.

  0 without a map or a label.

  Args:
    activations: neither pooled nor normalised.
    targets: from `saliency_target`.
    valid: which maps are there; the others may hold anything, NaN too.
    labels: the true attributes.
  """
  h, w, a = activations.shape
  n = jax.nn.softmax(activations.reshape(h * w, a), axis=0)
  m = jnp.where(valid[:, None], targets.reshape(-1, h * w), 0.0)
  square = jnp.sum(jnp.square(m[:, :, None] - n[None]), axis=1)  # [m a]
  nearest = jnp.min(jnp.where(labels[None, :], square, jnp.inf), axis=1)
  use = valid & labels.any()
  distance = jnp.sqrt(jnp.maximum(jnp.where(use, nearest, 1.0), _SMALLEST_SQUARE))
  return _mean(distance, use)
