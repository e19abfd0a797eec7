"""How much each attribute matters to a similarity model: concepts in its embeddings, tested.

Images of types s and t are compared in one space; there, each attribute that enough of them have
gets a direction (`ops.concepts`), fitted on all of them. Its TCAV score is measured on matching
pairs whose query it was not fitted on: the images are split in halves, over and over, and each
half's separators are tried on pairs with queries of the other. The same is done with random sets of
images of about the attribute's number. Over all spaces together, and in each space, a score that
could be one of theirs (at a false discovery rate) says nothing. The prior is the space's own score
where it is significant, else that over all spaces where that is, else the neutral 1/2.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sane_jax.ops import concepts

NEUTRAL = 0.5
CHUNK = 256  # separators are fitted in multiples of so many
ROWS = 128  # images and pairs are padded to a multiple, so that few programs serve all spaces


class Settings(NamedTuple):
  """How concepts are fitted and tested.

  Attributes:
    halves: how often images are split in two.
    num_random: random concepts for each size, powers of 2.
    min_images: with and without an attribute, in a space, to fit it there.
    min_pairs: matching pairs in a space, to measure scores there.
    min_accuracy: balanced, on images held out, under which a direction is none.
    alpha: false discovery rate.
    l2: penalty of the separators.
    steps: of their descent.
  """

  halves: int = 2
  num_random: int = 30
  min_images: int = 8
  min_pairs: int = 20
  min_accuracy: float = 0.6
  alpha: float = 0.05
  l2: float = 0.01
  steps: int = 40


class ConceptPrior(NamedTuple):
  """For k spaces and a attributes; NaN where nothing was fitted.

  Attributes:
    vectors: [k a d] unit directions, 0 where there is none.
    accuracy: [k a] balanced, on images held out.
    tcav: [k a] share of matching pairs whose score rises along the direction.
    p_value: [k a] adjusted for all of them.
    images: [k a] with the attribute.
    pooled_tcav: [a] the share over the pairs of all spaces.
    pooled_p_value: [a] adjusted for all of them.
    prior: [k a]; see the module's text.
  """

  vectors: np.ndarray
  accuracy: np.ndarray
  tcav: np.ndarray
  p_value: np.ndarray
  images: np.ndarray
  pooled_tcav: np.ndarray
  pooled_p_value: np.ndarray
  prior: np.ndarray


def fit(
  embeddings: np.ndarray, types: np.ndarray, conditions: np.ndarray, labels: np.ndarray,
  known: np.ndarray, pairs: np.ndarray, *, seed: int = 0, settings: Settings | None = None,
  on_progress: Callable[[int, int], None] = lambda done, count: None,
) -> ConceptPrior:  # fmt: skip
  """Fits and tests all concepts in all spaces.

  Args:
    embeddings: [n t d], unit: image i among images of type t.
    types: [n].
    conditions: [t t], which space compares two types.
    labels: bool [n a].
    known: bool [n]; a row that is not known has no labels, which is not the same as none.
    pairs: [p 2] rows of queries and references that match.
    seed: of halves and random concepts.
    settings: see `Settings`.
    on_progress: called with (spaces done, spaces in all).
  """
  settings = settings or Settings()
  spaces, a, d = int(conditions.max()) + 1, labels.shape[1], embeddings.shape[2]
  rng = np.random.default_rng(seed)
  # Random concepts of a size stand for attributes of about that size.
  count = labels[known].sum(axis=0)
  sizes = np.unique(2 ** np.round(np.log2(np.maximum(count, 1))).astype(int))
  sizes = np.minimum(sizes, max(int(known.sum()) - 1, 1))
  of_size = np.abs(np.log2(np.maximum(count, 1))[:, None] - np.log2(sizes)).argmin(axis=1)
  controls = np.zeros((len(sizes), settings.num_random, len(labels)), bool)
  for size, sets in zip(sizes, controls, strict=True):
    for control in sets:
      control[rng.choice(np.flatnonzero(known), size, replace=False)] = True
  every = np.concatenate([labels.T, controls.reshape(-1, len(labels))])  # [m n]
  halves = rng.permuted(np.tile(np.arange(len(labels)) % 2 == 0, (settings.halves, 1)), axis=1)

  vectors = np.zeros((spaces, a, d), np.float32)
  accuracy, scores = np.full((2, spaces, len(every)), np.nan)
  images, tried = np.zeros((spaces, len(every)), int), np.zeros(spaces)
  of_pair = conditions[types[pairs[:, 0]], types[pairs[:, 1]]] if len(pairs) else np.zeros(0, int)
  for space in range(spaces):
    rows, x = _rows(embeddings, types, conditions, known, space)
    here = pairs[of_pair == space]
    images[space] = every[:, rows].sum(axis=1)
    enough = np.minimum(images[space], len(rows) - images[space]) >= settings.min_images
    if len(here) >= settings.min_pairs and enough[:a].any():
      fitted, tried[space] = np.flatnonzero(enough), len(here)
      out = _space(
        x, rows, every[fitted][:, rows], int(enough[:a].sum()), here,
        embeddings[here[:, 0], types[here[:, 1]]], embeddings[here[:, 1], types[here[:, 0]]],
        halves, settings,
      )  # fmt: skip
      vectors[space, fitted[: len(out[0])]], accuracy[space, fitted], scores[space, fitted] = out
    on_progress(space + 1, spaces)

  def controls_of(values: np.ndarray) -> np.ndarray:  # [s r], of each size
    return values[a:].reshape(len(sizes), settings.num_random)

  p_value = np.full((spaces, a), np.nan)
  for space in range(spaces):
    random = controls_of(scores[space])
    for i in np.flatnonzero(np.isfinite(scores[space, :a])):
      p_value[space, i] = concepts.random_test(scores[space, i], random[of_size[i]])
  p_value = concepts.false_discovery(p_value.ravel()).reshape(p_value.shape)
  weight = tried[:, None] * np.isfinite(scores)
  total = weight.sum(axis=0)
  pooled = np.where(total > 0, (np.nan_to_num(scores) * weight).sum(axis=0), np.nan)
  pooled /= np.maximum(total, 1)
  random = controls_of(pooled)
  pooled_p = concepts.false_discovery(
    np.array([concepts.random_test(pooled[i], random[of_size[i]]) for i in range(a)])
  )
  vectors[~(accuracy[:, :a] >= settings.min_accuracy)] = 0
  prior = np.where(pooled_p <= settings.alpha, pooled[:a], NEUTRAL)
  prior = np.where(p_value <= settings.alpha, scores[:, :a], prior)
  return ConceptPrior(
    vectors, accuracy[:, :a], scores[:, :a], p_value, images[:, :a], pooled[:a], pooled_p,
    prior.astype(np.float32),
  )  # fmt: skip


def _rows(embeddings, types, conditions, known, space) -> tuple[np.ndarray, np.ndarray]:
  """Images that are compared in a space, and their embeddings there; an image counts once."""
  rows, parts = [], []
  for s, t in np.argwhere(conditions == space):
    chosen = np.flatnonzero((types == s) & known)
    rows.append(chosen)
    parts.append(embeddings[chosen, t])
  rows, x = np.concatenate(rows), np.concatenate(parts)
  # Where one space serves many types, the same embedding stands in many slots.
  rows, first = np.unique(rows, return_index=True)
  return rows, x[first]


def _space(
  x: np.ndarray, rows: np.ndarray, labels: np.ndarray, attributes: int, pairs: np.ndarray,
  queries: np.ndarray, references: np.ndarray, halves: np.ndarray, settings: Settings,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
  """Directions of the first `attributes` of m concepts; accuracies and TCAV scores [m] of all.

  Args:
    labels: of the space's images [m n].
    halves: of all images; see `fit`.
  """
  n, m = len(x), len(labels)
  whitening = concepts.whiten(jnp.asarray(x))
  z = (np.asarray(x) - np.asarray(whitening.mean)) @ np.asarray(whitening.matrix)
  z = jnp.asarray(_padded(z))
  real = np.arange(len(z)) < n
  every = jnp.asarray(np.pad(labels, ((0, -m % CHUNK), (0, len(z) - n))))
  q, r = _padded(queries), _padded(references)
  scores, accuracy = np.zeros((2, m, 2 * len(halves)))
  for split, half in enumerate(halves):
    for side, use in enumerate((half, ~half)):
      fit_on = np.pad(use[rows], (0, len(z) - n))
      tried = np.pad(~use[pairs[:, 0]], (0, len(q) - len(pairs)))
      out = _try(
        z, every, fit_on, real & ~fit_on, whitening, q, r, tried,
        l2=settings.l2, steps=settings.steps,
      )  # fmt: skip
      for array, found in zip((scores, accuracy), out, strict=True):
        array[:, 2 * split + side] = np.asarray(found)[:m]
  some = every[: attributes + -attributes % CHUNK]
  weights = concepts.balance(some, jnp.broadcast_to(jnp.asarray(real), some.shape))
  normals, _ = concepts.fit_separators(z, some, weights, l2=settings.l2, steps=settings.steps)
  vectors = np.asarray(concepts.directions(normals, whitening))[:attributes]
  return vectors, _mean(accuracy), _mean(scores)


@functools.partial(jax.jit, static_argnames=("l2", "steps"))
def _try(z, labels, use, held_out, whitening, queries, references, tried, *, l2, steps):
  weights = concepts.balance(labels, jnp.broadcast_to(use, labels.shape))
  normals, offsets = concepts.fit_separators(z, labels, weights, l2=l2, steps=steps)
  accuracy = concepts.balanced_accuracy(
    z, labels, jnp.broadcast_to(held_out, labels.shape), normals, offsets
  )
  values = concepts.sensitivities(concepts.directions(normals, whitening), queries, references)
  return concepts.tcav_scores(values, jnp.broadcast_to(tried, values.shape)), accuracy


def _padded(x: np.ndarray) -> np.ndarray:
  return np.pad(np.asarray(x, np.float32), ((0, -len(x) % ROWS), (0, 0)))


def _mean(values: np.ndarray) -> np.ndarray:
  """Mean over the last axis of what is a number; NaN where nothing is."""
  known = np.isfinite(values)
  count = known.sum(axis=-1)
  total = np.where(known, values, 0).sum(axis=-1)
  return np.where(count > 0, total / np.maximum(count, 1), np.nan)
