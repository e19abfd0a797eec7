"""How good an embedding is: fill in the blank, compatibility, retrieval. Plain arrays."""

from collections.abc import Sequence

import numpy as np

from sane_jax.datasets.collection import Collection


def pair_scores(
  embeddings: np.ndarray, masks: np.ndarray, collection: Collection, a: np.ndarray, b: np.ndarray
) -> np.ndarray:
  """Cosines of rows a [p] with rows b [p], each pair in the space of its types.

  Args:
    embeddings: f(x) [n d].
    masks: [k d], non-negative: in space c the vectors compared are f(x) ⊙ masks[c].
  """
  out = np.empty(len(a), np.float32)
  for begin in range(0, len(a), 65_536):  # bounds the memory
    where = slice(begin, begin + 65_536)
    i, j = a[where], b[where]
    weights = masks[collection.conditions[collection.types[i], collection.types[j]]]
    x, y = embeddings[i] * weights, embeddings[j] * weights
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    out[where] = np.sum(x * y, axis=1) / np.maximum(norms, 1e-12)
  return out


def fill_in_the_blank(
  embeddings: np.ndarray, masks: np.ndarray, collection: Collection
) -> np.ndarray:
  """Share of right answers of each question [q]: 1, 0, or 1/k where k answers tie with the right.

  An answer's score is its mean cosine with the question's items, each in the space of the types.
  """
  a, b, starts = [], [], [0]
  for question in collection.questions:
    a.append(np.repeat(question.answers, len(question.items)))
    b.append(np.tile(question.items, len(question.answers)))
    starts.append(starts[-1] + len(a[-1]))
  if not a:
    return np.zeros(0)
  scores = pair_scores(embeddings, masks, collection, np.concatenate(a), np.concatenate(b))
  out = np.zeros(len(collection.questions))
  for index, question in enumerate(collection.questions):
    each = scores[starts[index] : starts[index + 1]].reshape(len(question.answers), -1).mean(1)
    best = np.isclose(each, each.max(), rtol=0, atol=1e-6)
    out[index] = best[question.right] / best.sum()
  return out


def compatibility_scores(
  embeddings: np.ndarray, masks: np.ndarray, collection: Collection
) -> np.ndarray:
  """Mean cosine over all pairs of items of each outfit to be judged; NaN for fewer than two."""
  a, b, owner = [], [], []
  for index, outfit in enumerate(collection.compatibility):
    i, j = np.triu_indices(len(outfit.items), 1)
    a.append(outfit.items[i])
    b.append(outfit.items[j])
    owner.append(np.full(len(i), index))
  count = len(collection.compatibility)
  if not a:
    return np.zeros(0)
  scores = pair_scores(embeddings, masks, collection, np.concatenate(a), np.concatenate(b))
  where = np.concatenate(owner)
  pairs = np.bincount(where, minlength=count)
  sums = np.bincount(where, scores, count)
  return np.where(pairs > 0, sums / np.maximum(pairs, 1), np.nan)


def roc_auc(scores: np.ndarray, labels: np.ndarray) -> float:
  """Chance that a positive scores above a negative, ties counting half.

  NaN without one of both, or with a score that is NaN.
  """
  from sklearn import metrics  # imported lazily: slow

  labels = np.asarray(labels, bool)
  if labels.all() or not labels.any() or np.isnan(scores).any():
    return float("nan")
  return float(metrics.roc_auc_score(labels, scores))


def compatibility_auc(embeddings: np.ndarray, masks: np.ndarray, collection: Collection) -> float:
  """ROC AUC of `compatibility_scores`."""
  scores = compatibility_scores(embeddings, masks, collection)
  labels = np.array([outfit.label for outfit in collection.compatibility], bool)
  known = np.isfinite(scores)
  return roc_auc(np.round(scores[known], 6), labels[known])  # what differs by rounding is equal


def recall_at_k(
  embeddings: np.ndarray, labels: np.ndarray, ks: Sequence[int] = (1, 5, 10)
) -> dict[int, float]:
  """Share of images with one of their own label among the k nearest others, for each k.

  Images that are alone with their label are left out. Embeddings that are no number find nothing.

  Args:
    embeddings: [n d], any length; neighbours are by cosine.
    labels: [n] integers.
  """
  unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
  labels = np.asarray(labels)
  hits = {k: [] for k in ks}
  most = min(max(ks), len(unit) - 1)
  counts = np.bincount(np.unique(labels, return_inverse=True)[1])
  has_company = counts[np.unique(labels, return_inverse=True)[1]] > 1
  for begin in range(0, len(unit), 1024):
    part = np.arange(begin, min(begin + 1024, len(unit)))
    scores = unit[part] @ unit.T
    scores[np.arange(len(part)), part] = -np.inf
    nearest = np.argsort(-scores, axis=1, kind="stable")[:, :most]
    # NaN sorts after everything, so that else an image would come to be its own neighbour.
    real = np.take_along_axis(scores, nearest, axis=1) > -np.inf
    same = real & (labels[nearest] == labels[part][:, None])
    for k in ks:
      hits[k].append(same[:, :k].any(1)[has_company[part]])
  return {
    k: float(np.concatenate(h).mean()) if has_company.any() else np.nan for k, h in hits.items()
  }


def same_label_auc(embeddings: np.ndarray, labels: np.ndarray) -> float:
  """ROC AUC of the cosine of two images for their having one label, over all pairs."""
  unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
  if len(unit) > 4000:  # 8 million pairs tell it to three digits
    chosen = np.random.default_rng(0).choice(len(unit), 4000, replace=False)
    unit, labels = unit[chosen], np.asarray(labels)[chosen]
  i, j = np.triu_indices(len(unit), 1)
  scores = np.round((unit @ unit.T)[i, j], 6)  # what differs by rounding is equal
  return roc_auc(scores, np.asarray(labels)[i] == np.asarray(labels)[j])
