"""How good an attribute model is: what it recognises, and where it looks. Plain arrays."""

import numpy as np
from scipy import ndimage


def average_precisions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Average precision of each attribute [a]; NaN for attributes that do not occur.

  AP = Σ_i (R_i − R_{i−1}) P_i over the distinct scores from the highest down: ties count together.

  Args:
    scores: [n a].
    labels: bool [n a].
  """
  out = np.full(scores.shape[1], np.nan)
  for a in range(scores.shape[1]):
    truth = labels[:, a]
    if truth.any():
      order = np.argsort(-scores[:, a], kind="stable")
      last = np.append(np.diff(scores[order, a]) != 0, True)  # of each run of equal scores
      hits = np.cumsum(truth[order])[last]
      precision = hits / (np.flatnonzero(last) + 1)
      out[a] = np.sum(np.diff(hits, prepend=0) * precision) / truth.sum()
  return out


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
  """Mean of `average_precisions` over the attributes that occur."""
  return float(np.nanmean(average_precisions(scores, labels)))


def chance_precision(labels: np.ndarray) -> float:
  """What scores that say nothing reach: the mean frequency of the attributes that occur."""
  frequency = labels.mean(axis=0)
  return float(frequency[frequency > 0].mean())


def enlarge(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Maps [n h w] at `size`, linear between the centres of their cells, edges held."""
  zoom = (1, size[0] / maps.shape[1], size[1] / maps.shape[2])
  return ndimage.zoom(maps, zoom, order=1, mode="nearest", grid_mode=True)


def pointing_game(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
  """Whether the highest point of each map lies on the true pixels [n]; ties count by their share.

  Args:
    maps: [n h w].
    masks: bool [n h w].
  """
  flat = maps.reshape(len(maps), -1)
  top = flat == flat.max(axis=1, keepdims=True)
  return (top & masks.reshape(len(maps), -1)).sum(1) / top.sum(1)


def mass_inside(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
  """Share of each map's positive mass that lies on the true pixels [n]; the even share if none."""
  flat = np.maximum(maps.reshape(len(maps), -1), 0)
  inside = masks.reshape(len(maps), -1)
  total = flat.sum(1)
  return np.where(total > 0, (flat * inside).sum(1) / np.where(total > 0, total, 1), inside.mean(1))
