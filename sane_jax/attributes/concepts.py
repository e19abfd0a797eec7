"""How much each attribute matters to a similarity model: concepts in its embeddings, tested.

Images of types s and t are compared in one space; there, each attribute that enough of them have
gets a direction (`ops.concepts`), fitted on all of them. Its TCAV score is measured on matching
pairs whose query it was not fitted on: the images are split in halves, over and over, and each
half's classifiers are tried on pairs with queries of the other. The same is done with random sets
that have about as many images of each type as the attribute, in the same spaces. Over all spaces
together, and in each space, a score that could be one of theirs (at a false discovery rate) says
nothing. The prior is the space's own score where it is significant, else that over all spaces where
that is, else the neutral 1/2.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sane_jax.ops import concepts, ranking, statistics
from sane_jax.runs import npz

NEUTRAL = 0.5
CHUNK = 256  # classifiers fitted at once, which bounds the memory
ROWS = 128  # images and pairs are padded to a multiple, so that few programs serve all spaces


class Settings(NamedTuple):
  """How concepts are fitted and tested.

  Attributes:
    halves: how often images are split in two.
    num_random: random concepts for each size, powers of √2.
    min_images: with and without an attribute, in a space, to fit it there.
    min_pairs: matching pairs in a space, to measure scores there.
    min_accuracy: balanced, on images held out, under which a direction is none.
    alpha: false discovery rate.
    l2: penalty of the classifiers.
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
  halves = rng.permuted(np.tile(np.arange(len(labels)) % 2 == 0, (settings.halves, 1)), axis=1)
  sizes, order = _random_concepts(types, labels, known, settings.num_random, rng)

  vectors = np.zeros((spaces, a, d), np.float32)
  accuracy, scores = np.full((2, spaces, a), np.nan)
  random = np.full((settings.num_random, spaces, a), np.nan)
  images, tried = np.zeros((spaces, a), int), np.zeros(spaces)
  of_pair = conditions[types[pairs[:, 0]], types[pairs[:, 1]]] if len(pairs) else np.zeros(0, int)
  for space in range(spaces):
    rows, x = _rows(embeddings, types, conditions, known, space)
    here = pairs[of_pair == space]
    images[space] = labels[rows].sum(axis=0)
    enough = np.minimum(images[space], len(rows) - images[space]) >= settings.min_images
    if len(here) >= settings.min_pairs and enough.any():
      fitted, tried[space] = np.flatnonzero(enough), len(here)
      # Attributes with as many images of each type share their random concepts.
      of_type = sizes[:, fitted][np.unique(types[rows])]
      _, first, shared = np.unique(of_type, axis=1, return_index=True, return_inverse=True)
      sets = _Sets(
        labels[rows][:, fitted].T, order[:, rows], sizes[types[rows]][:, fitted[first]].T
      )
      vectors[space, fitted], every, right = _space(
        x, rows, sets, here, embeddings[here[:, 0], types[here[:, 1]]],
        embeddings[here[:, 1], types[here[:, 0]]], halves, settings,
      )  # fmt: skip
      scores[space, fitted], accuracy[space, fitted] = every[: len(fitted)], right[: len(fitted)]
      controls = every[len(fitted) :].reshape(-1, settings.num_random)
      random[:, space, fitted] = controls[shared.ravel()].T
    on_progress(space + 1, spaces)

  p_value = _p_values(scores, random)
  # Over the spaces in which the attribute has a score, for its random concepts too.
  weight = tried[:, None] * np.isfinite(scores)
  pooled = _weighted(scores, weight)
  pooled_p = _p_values(pooled, _weighted(random, weight))
  vectors[~(accuracy >= settings.min_accuracy)] = 0
  prior = np.where(pooled_p <= settings.alpha, pooled, NEUTRAL)
  prior = np.where(p_value <= settings.alpha, scores, prior)
  return ConceptPrior(
    vectors, accuracy, scores, p_value, images, pooled, pooled_p, prior.astype(np.float32)
  )


def _random_concepts(
  types: np.ndarray, labels: np.ndarray, known: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """What random concepts are made of: concept r of an attribute is `order[r] < sizes[type]`.

  It has about as many images of each type as the attribute. A set spread over all types would not
  do for an attribute of few: its score rests on fewer spaces, and on fewer images in several.

  Returns:
    sizes: [t a], of the smaller class the nearest power of √2.
    order: [r n], a random place of each image among the known ones of its type.
  """
  num_types = int(types.max(initial=0)) + 1
  sizes = np.zeros((num_types, labels.shape[1]), int)
  order = np.full((count, len(types)), len(types))
  for kind in range(num_types):
    rows = np.flatnonzero((types == kind) & known)
    have = labels[rows].sum(axis=0)
    least = np.minimum(have, len(rows) - have)
    power = np.round(2 * np.log2(np.maximum(least, 1))) / 2
    size = np.where(least > 0, np.minimum(np.round(2**power), len(rows) // 2), 0)
    sizes[kind] = np.where(2 * have > len(rows), len(rows) - size, size)
    places = np.tile(np.arange(len(rows)), (count, 1))
    order[:, rows] = rng.permuted(places, axis=1)
  return sizes, order


class _Sets(NamedTuple):
  """Sets of n images: those with each of f attributes, then r random ones for each of k sizes."""

  labels: np.ndarray  # bool [f n]
  order: np.ndarray  # [r n]
  limits: np.ndarray  # [k n]

  def __len__(self) -> int:
    return len(self.labels) + len(self.limits) * len(self.order)

  def block(self, begin: int, end: int) -> np.ndarray:
    """Sets begin .. end − 1, bool [m n]."""
    f = len(self.labels)
    size, draw = np.divmod(np.arange(max(begin, f), end) - f, len(self.order))
    return np.concatenate([self.labels[begin:end], self.order[draw] < self.limits[size]])


def _p_values(scores: np.ndarray, random: np.ndarray) -> np.ndarray:
  """Adjusted p-values of scores [...] among those of random concepts [r ...]."""
  p_values = [
    concepts.random_test(score, controls)
    for score, controls in zip(scores.ravel(), random.reshape(len(random), -1).T, strict=True)
  ]
  return statistics.false_discovery(np.array(p_values)).reshape(scores.shape)


def _weighted(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
  """Means [... a] over spaces [... k a] of what is a number; NaN where nothing is."""
  weight = weight * np.isfinite(values)
  total = weight.sum(axis=-2)
  mean = (np.nan_to_num(values) * weight).sum(axis=-2) / np.where(total > 0, total, 1)
  return np.where(total > 0, mean, np.nan)


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
  x: np.ndarray, rows: np.ndarray, sets: _Sets, pairs: np.ndarray, queries: np.ndarray,
  references: np.ndarray, halves: np.ndarray, settings: Settings,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
  """Directions of the attributes among m sets; TCAV scores and accuracies [m] of all.

  Args:
    x: [n d], of `rows`.
    sets: m sets of them.
    halves: of all images; see `fit`.
  """
  n = len(x)
  every = jnp.asarray(np.arange(len(_padded(x))) < n)
  whitening, z = _whitened(_padded(x), every)
  q, r = _padded(queries), _padded(references)
  fit_classifiers = functools.partial(_fit, z, whitening, l2=settings.l2, steps=settings.steps)
  vectors, scores, accuracy = [], [], []
  for begin in range(0, len(sets), CHUNK):
    block = sets.block(begin, min(begin + CHUNK, len(sets)))
    count = len(block)
    labels = jnp.asarray(np.pad(block, ((0, CHUNK - count), (0, len(z) - n))))
    found = []
    for half in (side for split in halves for side in (split, ~split)):
      fit_on = np.pad(half[rows], (0, len(z) - n))
      cavs, right = fit_classifiers(labels, fit_on, every & ~fit_on)
      tried = np.pad(~half[pairs[:, 0]], (0, len(q) - len(pairs)))
      found.append((_tcav(cavs, q, r, tried), right))
    means = _mean(np.stack([np.asarray(parts).T[:count] for parts in found], axis=-1))
    scores.append(means[:, 0])
    accuracy.append(means[:, 1])
    if begin < len(sets.labels):
      vectors.append(np.asarray(fit_classifiers(labels, every, every)[0]))
  vectors = np.concatenate(vectors)[: len(sets.labels)]
  return vectors, np.concatenate(scores), np.concatenate(accuracy)


@jax.jit
def _whitened(x, use):
  whitening = concepts.whiten(x, use)
  return whitening, (x - whitening.mean) @ whitening.matrix


@functools.partial(jax.jit, static_argnames=("l2", "steps"))
def _fit(z, whitening, labels, use, held_out, *, l2, steps):
  """CAVs [m d] and their accuracies [m]; 0 and NaN where a class is not in use."""
  use, held_out = (jnp.broadcast_to(rows, labels.shape) for rows in (use, held_out))
  both = (labels & use).any(axis=1) & (~labels & use).any(axis=1)
  weights = concepts.balance(labels, use)
  normals, offsets = concepts.fit_classifiers(z, labels, weights, l2=l2, steps=steps)
  right = concepts.balanced_accuracy(z, labels, held_out, normals, offsets)
  cavs = concepts.directions(normals, whitening)
  return jnp.where(both[:, None], cavs, 0), jnp.where(both, right, jnp.nan)


@jax.jit
def _tcav(cavs, queries, references, tried):
  """TCAV scores [m] on the pairs that are tried; NaN without a CAV."""
  values = ranking.sensitivities(cavs, queries, references)
  scores = concepts.tcav_scores(values, jnp.broadcast_to(tried, values.shape))
  return jnp.where((cavs != 0).any(axis=1), scores, jnp.nan)


def _padded(x: np.ndarray) -> np.ndarray:
  return np.pad(np.asarray(x, np.float32), ((0, -len(x) % ROWS), (0, 0)))


def _mean(values: np.ndarray) -> np.ndarray:
  """Mean over the last axis of what is a number; NaN where nothing is."""
  known = np.isfinite(values)
  count = known.sum(axis=-1)
  total = np.where(known, values, 0).sum(axis=-1)
  return np.where(count > 0, total / np.maximum(count, 1), np.nan)


class Concepts(NamedTuple):
  """What fit_concepts left: for each space and attribute the prior, and the concept's direction."""

  prior: np.ndarray  # [k a] in [0, 1], 0.5 where nothing is known
  vectors: np.ndarray  # [k a d] of length 1, or 0 where there is none


def read_concepts(folder: pathlib.Path, names: Sequence[str], whose: str) -> Concepts:
  """The concepts in `folder`.

  Raises:
    ValueError: there are none, or they are not of the attributes `names` of `whose`.
  """
  arrays = npz.read_arrays(folder / "concepts.npz")
  if arrays is None:
    raise ValueError(f"{folder} holds no concepts; run --config.job=fit_concepts first")
  prior = arrays["prior"]
  if prior.shape[1] != len(names):
    raise ValueError(
      f"the concepts in {folder} are of {prior.shape[1]} attributes, {whose} has {len(names)}: fit"
      " them on it with --config.job=fit_concepts, in a folder of their own"
    )
  return Concepts(prior, np.nan_to_num(arrays["vectors"]))
