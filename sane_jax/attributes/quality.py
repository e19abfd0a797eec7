"""How good an attribute model is: what it recognises, and where it looks. Plain arrays."""

from typing import Any

import numpy as np
from scipy import ndimage


def average_precisions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Average precision of each attribute [a]; NaN for attributes that do not occur.

  AP = Σ_i (R_i − R_{i−1}) P_i over the distinct scores from the highest down: ties count together.

  Args:
    scores: [n a]; those that are no number rank last, together.
    labels: bool [n a].
  """
  from sklearn import metrics  # imported lazily: slow

  scores = np.where(np.isnan(scores), -np.inf, scores)
  out = np.full(scores.shape[1], np.nan)
  for a in np.flatnonzero(labels.any(axis=0)):
    ranks = np.unique(scores[:, a], return_inverse=True)[1]  # scikit-learn refuses infinities
    out[a] = metrics.average_precision_score(labels[:, a], ranks)
  return out


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
  """Mean of `average_precisions` over the attributes that occur; NaN if none does."""
  each = average_precisions(scores, labels)
  return float(np.nanmean(each)) if np.isfinite(each).any() else float("nan")


def chance_precision(labels: np.ndarray) -> float:
  """What scores that say nothing reach: the mean frequency of the attributes that occur.

  NaN if none does.
  """
  occurs = labels.any(axis=0)
  return float(labels[:, occurs].mean()) if occurs.any() else float("nan")


def pointing_game(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
  """Whether the highest point of each map lies on the true pixels [n]; ties count by their share.

  NaN for a map with a NaN in it. An even map gets the share of the pixels that are true.

  Args:
    maps: [n h w].
    masks: bool [n h w].
  """
  flat = maps.reshape(len(maps), -1)
  top = flat == flat.max(axis=1, keepdims=True)  # nowhere, where the maximum is NaN
  count = top.sum(1)
  hits = (top & masks.reshape(len(maps), -1)).sum(1)
  return np.where(count > 0, hits / np.maximum(count, 1), np.nan)


def mass_inside(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
  """Share of each map's positive mass that lies on the true pixels [n].

  The share of the pixels that are true, as for an even map, where nothing is positive. NaN for a
  map with a NaN in it.
  """
  flat = np.maximum(maps.reshape(len(maps), -1), 0)
  inside = masks.reshape(len(maps), -1)
  total = flat.sum(1)
  share = (flat * inside).sum(1) / np.where(total > 0, total, 1)
  return np.where(total == 0, inside.mean(1), share)


def middle_square(mask: np.ndarray) -> np.ndarray:
  """The part of a mask [h w] that a model sees of an image."""
  side = min(mask.shape)
  top, left = ((n - side) // 2 for n in mask.shape)
  return mask[top : top + side, left : left + side]


def connected(mask: np.ndarray, at: Any) -> np.ndarray:
  """The part of a mask [h w] that hangs together, edges or corners, with the place `at`."""
  labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))  # pyright: ignore[reportGeneralTypeIssues]
  return labels == labels[at]
