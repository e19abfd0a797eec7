"""Which attribute explains a match: terms on one scale, weighed; and several that do jointly.

    total(a) = Σ_i φ_i z_i(term_i of a),    φ ≥ 0, Σ φ = 1

The terms of Plummer et al., Why do These Match?, ECCV 2020, are the confidence of a, the cosine of
saliency map and activation map of a, and the TCAV score of a, with z the identity; a fourth, ours,
is how much this very score changes along the concept's direction. As they differ in scale and shape
(most confidences are next to 0, most cosines near 0.7), z here turns each into normal scores:
z = Φ⁻¹(u), u the share of values that lie below, among the attributes that are likely on held-out
pairs (van der Waerden 1952). Each term would be standard normal there, but for ties: the prior, of
which most are the neutral 1/2, has a standard deviation of 0.6 in the demo, so that it weighs less.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy import optimize, special

QUANTILES = 2001  # that a term's distribution is kept as
TERMS = ("confidence", "map fit", "prior", "sensitivity")  # the names of `Terms` in print


class Terms(NamedTuple):
  """What is known of each attribute as the reason for a match, in the terms' own units.

  Arrays of one shape: [a] of a pair, [p a] of several. Taken as one array they are [4 p a].

  Attributes:
    confidence: that the query has it, in [0, 1].
    map_fit: cosine of the saliency map with its activation map, see `map_fit`.
    prior: its TCAV score in the pair's space, in [0, 1].
    sensitivity: of the pair's own score, see `sensitivities`.
  """

  confidence: np.ndarray
  map_fit: np.ndarray
  prior: np.ndarray
  sensitivity: np.ndarray

  def at(self, pairs: np.ndarray) -> "Terms":
    """Those of some of the pairs."""
    return Terms(*(term[pairs] for term in self))


def sensitivities(
  vectors: Float[Array | np.ndarray, "a d"], queries: Float[Array | np.ndarray, "*p d"],
  references: Float[Array | np.ndarray, "*p d"],
) -> Float[Array | np.ndarray, "a *p"]:  # fmt: skip
  """Derivative of the score s = q · r as q moves along each direction v on the sphere: v·(r − s q).

  Args:
    vectors: directions.
    queries: unit embeddings q, of one pair or several.
    references: unit embeddings r.
  """
  scores = (queries * references).sum(axis=-1, keepdims=True)
  return vectors @ (references - scores * queries).T


def map_fit(
  saliency: Float[Array, "h w"], activations: Float[Array, "i j a"]
) -> Float[Array, " a"]:
  """Cosine of a saliency map with each activation map, at the finer grid of the two; 0 for zeros.

  Args:
    saliency: not negative.
    activations: not negative.
  """
  shape = tuple(max(*pair) for pair in zip(saliency.shape, activations.shape[:2], strict=True))
  m = jax.image.resize(saliency, shape, "linear").ravel()
  n = jax.image.resize(activations, (*shape, activations.shape[2]), "linear")
  n = n.reshape(-1, n.shape[-1])
  norms = jnp.linalg.norm(m) * jnp.linalg.norm(n, axis=0)
  return jnp.where(norms > 1e-12, m @ n / jnp.maximum(norms, 1e-12), 0)


class Calibration(NamedTuple):
  """Distribution of each term on held-out pairs: quantiles [k q], ascending; empty: none."""

  quantiles: Float[np.ndarray, "k q"]


RAW = Calibration(np.zeros((0, 0)))  # terms as they are, as in the paper


def calibrate(terms: Terms | Float[np.ndarray, "k p a"], *, likely: float = 0.1) -> Calibration:
  """The calibration that makes terms standard normal over the likely attributes of pairs.

  Args:
    terms: of held-out pairs; the first, the confidence, tells how likely an attribute is.
    likely: share of all (pair, attribute) that counts, by the first term.

  Raises:
    ValueError: no values, or one that is no number.
  """
  flat = np.asarray(terms, np.float64).reshape(len(terms), -1)
  if not flat.size or not np.isfinite(flat).all():
    raise ValueError(
      f"terms are calibrated on pairs with finite values; given {flat.shape[1]} values a term,"
      f" {int((~np.isfinite(flat)).sum())} of them NaN or infinite"
    )
  flat = flat[:, flat[0] >= np.quantile(flat[0], 1 - likely)]
  return Calibration(np.quantile(flat, np.linspace(0, 1, QUANTILES), axis=1).T)


def normal_scores(
  terms: Terms | Float[np.ndarray, "k p a"], calibration: Calibration
) -> Float[np.ndarray, "k p a"]:
  """z of each term. Ties get the middle of their ranks: a term that is constant scores 0.

  Beyond the values seen, the score of a half rank outside: ± 3.48.
  """
  if not len(calibration.quantiles):
    return np.asarray(terms, np.float64)
  out = np.empty(np.shape(terms), np.float64)
  for index, (values, quantiles) in enumerate(zip(terms, calibration.quantiles, strict=True)):
    count = len(quantiles)
    low = np.searchsorted(quantiles, values, "left")
    high = np.searchsorted(quantiles, values, "right")
    # Where a value lies between two quantiles, linear between their ranks.
    before = quantiles[np.clip(low - 1, 0, count - 1)]
    after = quantiles[np.clip(low, 0, count - 1)]
    gap = after - before
    inside = (low == high) & (low > 0) & (low < count) & (gap > 0)
    part = np.where(inside, (values - before) / np.where(gap > 0, gap, 1), 0.5)
    rank = np.where(inside, low - 0.5 + part, (low + high) / 2)
    out[index] = special.ndtri(np.clip(rank / count, 0.5 / count, 1 - 0.5 / count))
  return out


def check_weights(phi: Sequence[float | int], size: int) -> np.ndarray:
  """φ as an array.

  Raises:
    ValueError: it is not on the simplex.
  """
  weights = np.asarray(phi, np.float64)
  if weights.shape != (size,) or not (weights >= 0).all() or abs(weights.sum() - 1) > 1e-6:
    raise ValueError(f"phi has {size} weights, none negative, whose sum is 1; given {tuple(phi)}")
  return weights


def totals(
  terms: Terms | Float[np.ndarray, "k p a"],
  phi: Sequence[float | int],
  calibration: Calibration = RAW,
) -> Float[np.ndarray, "p a"]:
  """Σ φ_i z_i; by default of terms that are on one scale already, see `normal_scores`.

  Raises:
    ValueError: φ is not on the simplex.
  """
  return np.einsum("k,kpa->pa", check_weights(phi, len(terms)), normal_scores(terms, calibration))


def simplex(size: int, steps: int = 10) -> list[tuple[float, ...]]:
  """All weights that are multiples of 1/steps and sum to 1."""
  return [
    tuple(part / steps for part in parts)
    for parts in itertools.product(range(steps + 1), repeat=size)
    if sum(parts) == steps
  ]


def simplest_weights(
  grid: Float[np.ndarray, "g k"], gains: Float[np.ndarray, "g p"], allowed: Sequence[bool],
  clusters: Int[np.ndarray, " p"],
) -> tuple[float, ...]:  # fmt: skip
  """The φ, zero where they must be, nearest to the first term alone that is not clearly worse.

  Than the best on these pairs: its mean gain lies below the best's by no more than the standard
  error of the difference. Of those that weigh the first allowed term most, the one that gains most.
  The best alone is chosen by luck among many that are as good (Breiman et al. 1984, section 3.4.3).

  Args:
    grid: φ to choose from.
    gains: of each on each pair.
    allowed: which terms may weigh [k].
    clusters: pairs that share one, such as a query, are no independent witnesses.
  """
  terms = np.flatnonzero(allowed)
  usable = np.flatnonzero((grid[:, ~np.asarray(allowed)] == 0).all(axis=1))
  mean = gains[usable].mean(axis=1)
  behind = gains[usable[mean.argmax()]] - gains[usable]
  near = np.flatnonzero(behind.mean(axis=1) <= clustered_error(behind, clusters) + 1e-12)
  order = np.lexsort((-mean[near], -grid[usable[near], terms[0]]))
  return tuple(float(weight) for weight in grid[usable[near[order[0]]]])


def clustered_error(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
  """Standard errors [g] of means of values [g p] by clusters [p]; infinite with one cluster."""
  which = np.unique(clusters, return_inverse=True)[1]
  count = int(which.max(initial=0)) + 1
  if count < 2:
    return np.full(len(values), np.inf)
  member = np.eye(count)[which]
  sums = (values - values.mean(axis=1, keepdims=True)) @ member
  return np.sqrt(count / (count - 1) * (sums**2).sum(axis=1)) / values.shape[1]


def held_out_gains(
  grid: Float[np.ndarray, "g k"], gains: Float[np.ndarray, "g p"], allowed: Sequence[bool],
  clusters: Int[np.ndarray, " p"], *, folds: int = 10, seed: int = 0,
) -> Float[np.ndarray, " p"]:  # fmt: skip
  """What `simplest_weights` gain over the first allowed term, on pairs that did not choose them.

  Clusters are dealt into folds; each pair's φ is chosen on the other folds. On the pairs that chose
  it every φ looks better than it is.
  """
  which = np.unique(clusters, return_inverse=True)[1]
  fold = np.random.default_rng(seed).permutation(int(which.max(initial=0)) + 1)[which] % folds
  alone = np.eye(grid.shape[1])[np.flatnonzero(allowed)[0]]
  base = gains[(grid == alone).all(axis=1)][0]
  out = np.zeros(gains.shape[1])
  for held_out in (fold == f for f in np.unique(fold)):
    if held_out.all():
      continue
    phi = simplest_weights(grid, gains[:, ~held_out], allowed, clusters[~held_out])
    chosen = gains[(grid == phi).all(axis=1)][0]
    out[held_out] = (chosen - base)[held_out]
  return out


class Joint(NamedTuple):
  """Attributes whose maps together make a saliency map, in the order in which they were chosen.

  Attributes:
    chosen: indices of attributes.
    weights: of their maps in the sum, not negative, each map of length 1.
    shares: of the map's square length, what the first accounts for and each further one adds; they
      sum to `explained`.
    explained: 1 − ‖m − Σ w n‖² / ‖m‖².
  """

  chosen: tuple[int, ...]
  weights: tuple[float, ...]
  shares: tuple[float, ...]
  explained: float


def explain_jointly(
  saliency: Float[np.ndarray, "h w"], activations: Float[np.ndarray, "h w a"], *,
  most: int = 3, least_gain: float = 0.03, first: int | None = None,
  candidates: np.ndarray | None = None,
) -> Joint:  # fmt: skip
  """The smallest set of attributes whose maps explain a saliency map's positive part.

  Greedy: each step adds the attribute that, with non-negative weights fitted anew to all chosen,
  leaves the least residual; it stops at `most`, or where a step explains less than `least_gain`
  more. The share of the first is its squared cosine with the map.

  Args:
    saliency: its negative part is not explained.
    activations: at the same grid.
    most: attributes.
    least_gain: of the share that is explained, a step.
    first: an attribute to begin with, whatever it explains.
    candidates: indices to choose from; all by default.
  """
  m = np.maximum(np.asarray(saliency, np.float64), 0).ravel()
  length = np.linalg.norm(m)
  maps = np.asarray(activations, np.float64).reshape(m.size, -1)
  norms = np.linalg.norm(maps, axis=0)
  pool = np.arange(maps.shape[1]) if candidates is None else np.asarray(candidates, int)
  pool = [int(a) for a in pool if norms[a] > 0]
  if length == 0 or not pool:
    return Joint((), (), (), 0.0)
  m, maps = m / length, maps / np.where(norms > 0, norms, 1)
  chosen: list[int] = []
  shares: list[float] = []
  weights, left = np.zeros(0), 1.0
  while len(chosen) < min(most, len(pool)):
    tried = []
    for a in [first] if not chosen and first in pool else pool:
      if a not in chosen:
        fitted, residual = optimize.nnls(maps[:, [*chosen, a]], m)
        tried.append((residual**2, a, fitted))
    residual, a, fitted = min(tried, key=lambda entry: entry[0])
    if left - residual < least_gain and (chosen or a != first):
      break
    chosen, weights = [*chosen, a], fitted
    shares, left = [*shares, float(left - residual)], residual
  each = tuple(float(weight * length) for weight in weights)
  return Joint(tuple(chosen), each, tuple(shares), float(1 - left))


def mass_under(
  saliency: Float[np.ndarray, "h w"], activations: Float[np.ndarray, "h w k"]
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
  """The share of a saliency map's positive mass that lies under attributes, and an even map's.

      share = Σ_i m⁺_i max_a w_ai / Σ_i m⁺_i,    w_a = n_a / max_i n_ai

  of the first, and what each further one adds; both sum to at most 1. An even map, which says
  nothing of places, has the mean of w under an attribute: a share means something beyond that. (The
  squared cosine with the map, `Joint.shares`, is no share of it: of one mass of 2 and one of 1 an
  attribute on the first has 80 %; and an even map has 64 % of one that is noise.)

  Args:
    saliency: its positive part counts.
    activations: of k attributes, not negative.

  Returns:
    Shares [k] of the map, and of an even one.
  """
  maps = np.asarray(activations, np.float64).reshape(saliency.size, -1)
  reached = np.maximum.accumulate(maps / np.maximum(maps.max(axis=0, initial=0), 1e-12), axis=1)
  added = np.diff(reached, axis=1, prepend=0)
  m = np.maximum(np.asarray(saliency, np.float64), 0).ravel()
  return m @ added / max(m.sum(), 1e-12), added.mean(axis=0)
