"""Whether moving towards an attribute raises the scores of matching pairs: concepts, tested.

Images of types s and t are compared in one space; there, each attribute that enough of them have
gets a direction (`ops.concepts`), fitted on all of them. A direction that does not tell images held
out with it from those without is none, and is not tested: what it would do to scores is unknown.

The TCAV score of the others is the share of matching pairs, **whose query has the attribute**, that
score higher as the query moves along the direction v: v·(r − s q) > 0. It is measured on pairs
whose query v was not fitted on: the images are split in halves, over and over, and each half's
classifiers are tried on pairs with queries of the other. Over all pairs, whatever their query, it
would be the share of queries on the attribute's side: of its prevalence, not of its use.

It is held against the same direction on pairs re-matched at random: images of a type change places,
in all pairs and spaces alike, and a pair keeps its score s. So what v encodes, how frequent it is,
where the mean lies and how pairs hang together are in both; what is not is that the two match. In
each space, and over all together, a score that could be one of the re-matched pairs' (at a false
discovery rate) says nothing. The prior is the space's own score where it is significant, else that
over all spaces where that is, else the neutral 1/2; on the scale on which the re-matched pairs'
score is 1/2.
"""

import functools
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sane_jax.ops import concepts, statistics
from sane_jax.runs import npz

NEUTRAL = 0.5
CHUNK = 64  # classifiers fitted at once, which bounds the memory
ROWS = 128  # images and pairs are padded to a multiple, so that few programs serve all spaces


class Settings(NamedTuple):
  """How concepts are fitted and tested.

  Attributes:
    halves: how often images are split in two.
    num_random: times that pairs are re-matched at random.
    min_images: with and without an attribute, in a space, to fit it there; and queries of matching
      pairs that have it, for a score there.
    min_pairs: matching pairs in a space, to measure scores there.
    min_accuracy: balanced, on images held out, under which a direction is none.
    alpha: false discovery rate.
    l2: penalty of the classifiers.
    steps: of their descent.
  """

  halves: int = 2
  num_random: int = 100
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
    tcav: [k a] share of the matching pairs whose query has the attribute that score higher along
      the direction; NaN also where there is none.
    p_value: [k a] adjusted for all of them.
    images: [k a] with the attribute.
    pooled_tcav: [a] the share over the pairs of all spaces.
    pooled_p_value: [a] adjusted for all of them.
    prior: [k a]; see the module's text.
    rematched: [k a] the mean share of pairs re-matched at random.
    pooled_rematched: [a] likewise over all spaces.
    patterns: [k a d] unit, how embeddings with the attribute differ, see `ops.concepts.patterns`;
      0 where there is no direction.
  """

  vectors: np.ndarray
  accuracy: np.ndarray
  tcav: np.ndarray
  p_value: np.ndarray
  images: np.ndarray
  pooled_tcav: np.ndarray
  pooled_p_value: np.ndarray
  prior: np.ndarray
  rematched: np.ndarray
  pooled_rematched: np.ndarray
  patterns: np.ndarray


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
    seed: of halves and re-matching.
    settings: see `Settings`.
    on_progress: called with (spaces done, spaces in all).
  """
  settings = settings or Settings()
  spaces, a, d = int(conditions.max()) + 1, labels.shape[1], embeddings.shape[2]
  rng = np.random.default_rng(seed)
  halves = rng.permuted(np.tile(np.arange(len(labels)) % 2 == 0, (settings.halves, 1)), axis=1)
  others = _rematched(types, settings.num_random, rng)
  labels = labels & known[:, None]

  vectors, patterns = np.zeros((2, spaces, a, d), np.float32)
  accuracy, scores = np.full((2, spaces, a), np.nan)
  random = np.full((settings.num_random, spaces, a), np.nan)
  images, tried = np.zeros((2, spaces, a), int)
  of_pair = conditions[types[pairs[:, 0]], types[pairs[:, 1]]] if len(pairs) else np.zeros(0, int)
  for space in range(spaces):
    rows, x = _rows(embeddings, types, conditions, space)
    here = pairs[of_pair == space]
    images[space], use = labels[rows].sum(axis=0), known[rows]
    enough = np.minimum(images[space], use.sum() - images[space]) >= settings.min_images
    if len(here) >= settings.min_pairs and enough.any():
      fitted = np.flatnonzero(enough)
      found = _space(x, rows, use, labels[rows][:, fitted].T, here, others, halves, settings)
      accuracy[space, fitted] = found.accuracy
      sure = found.accuracy >= settings.min_accuracy
      vectors[space, fitted[sure]] = found.vectors[sure]
      patterns[space, fitted[sure]] = np.asarray(concepts.patterns(found.vectors[sure], x[use]))
      # Queries, not pairs: those of one query hardly say more than one of them.
      tried[space] = labels[here[:, 0]].sum(axis=0)
      sure &= labels[np.unique(here[:, 0])][:, fitted].sum(axis=0) >= settings.min_images
      scores[space, fitted[sure]] = found.scores[0, sure]
      random[:, space, fitted[sure]] = found.scores[1:, sure]
    on_progress(space + 1, spaces)

  p_value = _p_values(scores, random)
  # Over the spaces in which the attribute has a score.
  weight = tried * np.isfinite(scores)
  pooled, pooled_random = _weighted(scores, weight), _weighted(random, weight)
  pooled_p = _p_values(pooled, pooled_random)
  rematched, pooled_rematched = _mean(random, 0), _mean(pooled_random, 0)
  prior = np.where(pooled_p <= settings.alpha, _neutral_at(pooled_rematched, pooled), NEUTRAL)
  prior = np.where(p_value <= settings.alpha, _neutral_at(rematched, scores), prior)
  return ConceptPrior(
    vectors, accuracy, scores, p_value, images, pooled, pooled_p, prior.astype(np.float32),
    rematched, pooled_rematched, patterns,
  )  # fmt: skip


def _neutral_at(neutral: np.ndarray, scores: np.ndarray) -> np.ndarray:
  """Scores on the scale, of two straight pieces, on which `neutral` is 1/2, 0 is 0 and 1 is 1."""
  below = scores / np.maximum(neutral, 1e-9)
  above = (scores - neutral) / np.maximum(1 - neutral, 1e-9)
  return np.where(scores < neutral, below / 2, (1 + above) / 2)


def _rematched(types: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
  """Which image [r n] of its type takes each one's place in its pairs, r times at random."""
  out = np.tile(np.arange(len(types)), (count, 1))
  for kind in np.unique(types):
    rows = np.flatnonzero(types == kind)
    out[:, rows] = rng.permuted(out[:, rows], axis=1)
  return out


def _p_values(scores: np.ndarray, random: np.ndarray) -> np.ndarray:
  """Adjusted p-values of scores [...] among those of re-matched pairs [r ...]."""
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


def _rows(embeddings, types, conditions, space) -> tuple[np.ndarray, np.ndarray]:
  """Images that are compared in a space, and their embeddings there; an image counts once."""
  rows, parts = [], []
  for s, t in np.argwhere(conditions == space):
    chosen = np.flatnonzero(types == s)
    rows.append(chosen)
    parts.append(embeddings[chosen, t])
  rows, x = np.concatenate(rows), np.concatenate(parts)
  # Where one space serves many types, the same embedding stands in many slots.
  rows, first = np.unique(rows, return_index=True)
  return rows, x[first]


class _Found(NamedTuple):
  """Of m attributes in a space."""

  vectors: np.ndarray  # [m d]
  accuracy: np.ndarray  # [m]
  scores: np.ndarray  # [1 + r m], of the pairs as they are and re-matched


def _space(
  x: np.ndarray, rows: np.ndarray, known: np.ndarray, labels: np.ndarray, pairs: np.ndarray,
  others: np.ndarray, halves: np.ndarray, settings: Settings,
) -> _Found:  # fmt: skip
  """Directions of m attributes, their TCAV scores and accuracies.

  Args:
    x: [n d], of `rows`.
    known: bool [n], which of them have labels.
    labels: bool [m n].
    pairs: [p 2], of all images.
    others: of all images; see `_rematched`.
    halves: of all images; see `fit`.
  """
  n, size = len(x), len(_padded(x))
  every = jnp.asarray(np.pad(known, (0, size - n)))
  whitening, z = _whitened(_padded(x), every)
  place = np.zeros(others.shape[1], int)
  place[rows] = np.arange(n)
  # Queries and references [1 + r p], as they are and re-matched; the last place is spare.
  ends = [place[np.concatenate([side[None], others[:, side]])] for side in pairs.T]
  spare = ((0, 0), (0, -len(pairs) % ROWS))
  ends = [jnp.asarray(np.pad(end, spare, constant_values=size)) for end in ends]
  fit_classifiers = functools.partial(_fit, z, whitening, l2=settings.l2, steps=settings.steps)
  out = []
  for begin in range(0, len(labels), CHUNK):
    block = labels[begin : begin + CHUNK]
    count = len(block)
    with_it = jnp.asarray(np.pad(block, ((0, CHUNK - count), (0, size - n))))
    found = []
    for half in (side for split in halves for side in (split, ~split)):
      fit_on = every & np.pad(half[rows], (0, size - n))
      cavs, right = fit_classifiers(with_it, fit_on, every & ~fit_on)
      found.append(np.concatenate([_tcav(cavs, _padded(x), with_it & ~fit_on, *ends), right[None]]))
    means = _mean(np.stack(found), 0)[:, :count]
    vectors = np.asarray(fit_classifiers(with_it, every, every)[0])[:count]
    out.append((vectors, means[-1], means[:-1].T))
  vectors, accuracy, scores = (np.concatenate(parts) for parts in zip(*out, strict=True))
  return _Found(vectors, accuracy, scores.T)


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
def _tcav(cavs, x, tried, queries, references):
  """TCAV scores [1 + r m] on pairs [1 + r p] of rows of x whose query is tried [m n].

  Pairs 0 are those that match, of which all have the score. NaN without a CAV.
  """
  x = jnp.pad(x, ((0, 1), (0, 0)))  # the spare place
  tried = jnp.pad(tried, ((0, 0), (0, 1)))
  scores = (x[queries[0]] * x[references[0]]).sum(axis=1)
  along = cavs @ x.T

  def share(ends):
    q, r = ends
    return concepts.tcav_scores(along[:, r] - scores * along[:, q], tried[:, q])

  out = jax.lax.map(share, (queries, references))
  return jnp.where((cavs != 0).any(axis=1), out, jnp.nan)


def _padded(x: np.ndarray) -> np.ndarray:
  return np.pad(np.asarray(x, np.float32), ((0, -len(x) % ROWS), (0, 0)))


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
  """Mean over an axis of what is a number; NaN where nothing is."""
  known = np.isfinite(values)
  count = known.sum(axis=axis)
  total = np.where(known, values, 0).sum(axis=axis)
  return np.where(count > 0, total / np.maximum(count, 1), np.nan)


class Concepts(NamedTuple):
  """What fit_concepts left: for each space and attribute the prior, and the concept's direction."""

  prior: np.ndarray  # [k a] in [0, 1], 0.5 where nothing is known
  vectors: np.ndarray  # [k a d] of length 1, or 0 where there is none
  patterns: np.ndarray | None = None  # [k a d] likewise; None of concepts that are older


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
  if "patterns" not in arrays:
    warnings.warn(
      f"the concepts in {folder} were tested by what labels say, not by whether pairs match for"
      " them: their priors are unsure; run --config.job=fit_concepts in another"
      " --config.concepts.folder",
      stacklevel=2,
    )
  return Concepts(prior, np.nan_to_num(arrays["vectors"]), arrays.get("patterns"))
