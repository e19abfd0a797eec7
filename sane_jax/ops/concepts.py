"""Concept activation vectors and TCAV scores, for many concepts at once.

A concept's vector (CAV) is the unit normal of a linear classifier of embeddings with and without
it (Kim et al., Interpretability Beyond Feature Attribution, ICML 2018). The classifier is a
logistic regression in which both classes weigh the same, with an L2 penalty on whitened embeddings:
it does not depend on the scale or the correlations of the axes. All of them share the embeddings,
so a step of all problems is two products of matrices.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float
from scipy import special

MOMENTUM = 0.9


class Whitening(NamedTuple):
  """x -> (x − mean) · matrix has mean 0 and, where the data has any spread, variance 1."""

  mean: Float[Array, " d"]
  matrix: Float[Array, "d d"]


def whiten(
  x: Float[Array, "n d"], use: Bool[Array, " n"] | None = None, *, floor: float = 0.3
) -> Whitening:
  """Whitens rows; axes with less than `floor` of the largest variance are not blown up.

  That keeps directions in which embeddings hardly vary from counting as much as the others, which
  costs most accuracy on images held out where there are more axes than images.

  Args:
    x: rows.
    use: those that count; all by default.
    floor: a share of the largest variance.
  """
  weights = (jnp.ones(len(x)) if use is None else use).astype(x.dtype)
  weights /= weights.sum()
  mean = weights @ x
  centred = x - mean
  values, vectors = jnp.linalg.eigh((weights[:, None] * centred).T @ centred)
  least = floor * jnp.maximum(values[-1], 1e-12)
  return Whitening(mean, vectors / jnp.sqrt(jnp.maximum(values, least)))


def balance(labels: Bool[Array, "m n"], use: Bool[Array, "m n"]) -> Float[Array, "m n"]:
  """Weights [m n] of the rows that are used: those of each class sum to 1/2; 0 for the others."""
  yes, no = labels & use, ~labels & use

  def share(rows: Array) -> Array:
    return rows / jnp.maximum(2 * rows.sum(axis=1, keepdims=True), 1)

  return share(yes) + share(no)


@functools.partial(jax.jit, static_argnames=("l2", "steps"))
def fit_classifiers(
  x: Float[Array, "n d"], labels: Bool[Array, "m n"], weights: Float[Array, "m n"], *,
  l2: float = 0.01, steps: int = 100,
) -> tuple[Float[Array, "m d"], Float[Array, " m"]]:  # fmt: skip
  """m logistic regressions: minimises Σ_i w_i log(1 + exp(∓(x_i·a + b))) + l2/2 ‖a‖².

  Nesterov's gradient descent (optax), each problem's step the inverse of its own curvature bound.

  Args:
    x: whitened rows.
    labels: of each problem.
    weights: of each problem's rows, see `balance`.
    l2: penalty.
    steps: of descent.

  Returns:
    Normals a [m d] and offsets b [m].
  """
  y = labels.astype(x.dtype)
  rows = jnp.concatenate([x, jnp.ones((len(x), 1), x.dtype)], axis=1)
  penalty = l2 * jnp.concatenate([jnp.ones(x.shape[1]), jnp.zeros(1)])

  def power(_: ArrayLike, v: Array) -> Array:  # towards the largest curvature of each problem
    v = (weights * (v @ rows.T)) @ rows
    return v / jnp.maximum(jnp.linalg.norm(v, axis=1, keepdims=True), 1e-12)

  start = jnp.full((len(labels), rows.shape[1]), rows.shape[1] ** -0.5)
  v = jax.lax.fori_loop(0, 12, power, start)
  largest = jnp.linalg.norm((weights * (v @ rows.T)) @ rows, axis=1, keepdims=True)
  curvature = 1.1 * largest / 4 + l2

  optimizer = optax.sgd(1.0, momentum=MOMENTUM, nesterov=True)

  def step(_: ArrayLike, carry: tuple[Array, Any]) -> tuple[Array, Any]:  # weights, optax's state
    a, state = carry
    residual = weights * (jax.nn.sigmoid(a @ rows.T) - y)
    gradient = (residual @ rows + penalty * a) / curvature
    # Momentum sums about 1 / (1 − μ) gradients: a step of that many is a step of one.
    updates, state = optimizer.update(gradient * (1 - MOMENTUM) * 3, state)
    return optax.apply_updates(a, updates), state  # pyright: ignore[reportReturnType]

  a = jnp.zeros_like(start)
  a, _ = jax.lax.fori_loop(0, steps, step, (a, optimizer.init(a)))
  return a[:, :-1], a[:, -1]


def directions(normals: Float[Array, "m d"], whitening: Whitening) -> Float[Array, "m d"]:
  """Unit CAVs in the embedding's own axes; 0 for a normal of 0."""
  out = normals @ whitening.matrix.T
  norms = jnp.linalg.norm(out, axis=1, keepdims=True)
  return jnp.where(norms > 1e-9, out / jnp.maximum(norms, 1e-9), 0)


def patterns(
  vectors: Float[Array | np.ndarray, "m d"], x: Float[Array | np.ndarray, "n d"]
) -> Float[Array, "m d"]:
  """How rows with a concept differ from those without, Σ v / vᵀ Σ v, as unit vectors; 0 for v = 0.

  Σ is the covariance of x. A classifier's normal v is a filter: it also weighs what helps to take
  away what else rows differ in, and need not look like the concept (Haufe et al., NeuroImage 2014).
  """
  centred = x - x.mean(axis=0)
  out = jnp.matmul(vectors @ centred.T, centred, precision="highest") / len(x)
  norms = jnp.linalg.norm(out, axis=1, keepdims=True)  # vᵀ Σ v is not negative
  return jnp.where(norms > 1e-12, out / jnp.maximum(norms, 1e-12), 0)


def balanced_accuracy(
  x: Float[Array, "n d"], labels: Bool[Array, "m n"], use: Bool[Array, "m n"],
  normals: Float[Array, "m d"], offsets: Float[Array, " m"],
) -> Float[Array, " m"]:  # fmt: skip
  """Mean of both classes' share of rows on the right side; NaN without rows of both."""
  right = (normals @ x.T + offsets[:, None] > 0) == labels

  def share(rows: Array) -> Array:
    count = rows.sum(axis=1)
    return jnp.where(count > 0, (right & rows).sum(axis=1) / jnp.maximum(count, 1), jnp.nan)

  return (share(labels & use) + share(~labels & use)) / 2


def tcav_scores(
  values: Float[Array | np.ndarray, "m p"], use: Bool[Array, "m p"]
) -> Float[Array, " m"]:
  """Share of the used pairs with positive sensitivity; a zero counts half. NaN without pairs."""
  positive = (values > 0) + 0.5 * (values == 0)
  count = use.sum(axis=1)
  return jnp.where(count > 0, (positive * use).sum(axis=1) / jnp.maximum(count, 1), jnp.nan)


def random_test(score: float, controls: np.ndarray) -> float:
  """Two-sided p-value of a TCAV score, that it is one more draw from those of re-matched pairs.

  Student's t with n − 1 degrees of freedom of t = (score − mean) / (sd √(1 + 1/n)) for n controls.
  Restarts of one concept share its images and are not independent draws, so they enter as their
  mean, and each control as the mean of as many restarts. Where all controls are alike, the least
  that n of them can tell, 1/(n + 1). NaN with fewer than three controls.
  """
  controls = controls[np.isfinite(controls)]
  if len(controls) < 3 or not np.isfinite(score):
    return float("nan")
  spread = controls.std(ddof=1)
  if spread == 0:
    return 1.0 if score == controls[0] else 1 / (len(controls) + 1)
  t = (score - controls.mean()) / (spread * np.sqrt(1 + 1 / len(controls)))
  return float(2 * special.stdtr(len(controls) - 1, -abs(t)))
