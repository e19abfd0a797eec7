"""Attributes that nobody annotated: clusters of what saliency maps point at.

A query's vector is its feature map, each position weighed by how much the saliency map rises there
above 0, summed and scaled to length 1: what the image shows where it matters to its matches.
k-means (scikit-learn) on those unit vectors gives clusters; k is that of the candidates with the
largest mean silhouette (Rousseeuw 1987), which needs no truth and does not grow with k by itself.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score, silhouette_score

from sane_jax.ops import resampling


class Clusters(NamedTuple):
  """k clusters of unit vectors.

  Attributes:
    centers: [k c] unit.
    nearness: [k] cosine with the center above which a vector belongs to a cluster beside its own:
      the median of the cluster's members.
    silhouettes: of each number of clusters that was tried.
  """

  centers: np.ndarray
  nearness: np.ndarray
  silhouettes: dict[int, float]


def pool(features: np.ndarray, saliency: np.ndarray | None, covered: float = 1.0) -> np.ndarray:
  """Unit vectors [n c] of feature maps [n h w c] weighed by saliency maps [n i j]; 0 for zero maps.

  Without saliency maps every position weighs the same: the baseline that knows of no model.

  Args:
    covered: middle share of each side of the features' image that the maps cover, in (0, 1]: less
      than 1 where the model that they are of crops its images.
  """
  if saliency is None:
    pooled = features.mean((1, 2))
  else:
    weights = resampling.resample(np.maximum(saliency, 0), features.shape[1:3], covered)
    pooled = np.einsum("nhwc,nhw->nc", features, weights)
  norms = np.linalg.norm(pooled, axis=1, keepdims=True)
  return np.where(norms > 1e-12, pooled / np.maximum(norms, 1e-12), 0)


def find_clusters(vectors: np.ndarray, candidates: Sequence[int], *, seed: int) -> Clusters:
  """Clusters of unit vectors [n c].

  Args:
    vectors: of images.
    candidates: numbers of clusters to try, 2 or more each.
    seed: of k-means' starts, and of the 2,000 vectors that silhouettes are taken on.

  Raises:
    ValueError: fewer vectors than the fewest clusters need, or no candidate.
  """
  tried = sorted({int(k) for k in candidates if 2 <= k <= len(vectors) // 3})
  if not tried:
    raise ValueError(
      f"{len(vectors)} images can't make {', '.join(map(str, candidates)) or 'no'} clusters: give"
      " --config.discovery.num_clusters=(k,) with 2 ≤ k ≤ a third of the images, or more images"
    )
  models, silhouettes = {}, {}
  for k in tried:
    models[k] = KMeans(k, n_init=5, random_state=seed).fit(vectors)  # pyright: ignore[reportArgumentType]
    count = len(np.unique(models[k].labels_))
    silhouettes[k] = -1.0
    if 2 <= count < len(vectors):
      silhouettes[k] = float(
        silhouette_score(
          vectors, models[k].labels_, sample_size=min(2000, len(vectors)), random_state=seed
        )
      )
  best = models[max(tried, key=lambda k: silhouettes[k])]
  centers = best.cluster_centers_
  centers = centers / np.maximum(np.linalg.norm(centers, axis=1, keepdims=True), 1e-12)
  cosines = vectors @ centers.T
  own = cosines.argmax(axis=1)
  nearness = np.array(
    [np.median(cosines[own == c, c]) if (own == c).any() else np.inf for c in range(len(centers))]
  )
  return Clusters(centers, nearness, silhouettes)


def assign(vectors: np.ndarray, clusters: Clusters) -> np.ndarray:
  """Which clusters each vector belongs to, bool [n k]: its nearest, and others as near as members.

  None for a vector of zeros.
  """
  cosines = vectors @ clusters.centers.T
  out = cosines >= clusters.nearness
  out[np.arange(len(vectors)), cosines.argmax(axis=1)] = True
  return out & (np.linalg.norm(vectors, axis=1) > 0.5)[:, None]


class Agreement(NamedTuple):
  """How clusters agree with known attributes.

  Attributes:
    best: for each cluster the attribute with the largest F1, -1 without one.
    f1: of those [k].
    information: normalised mutual information of each attribute's presence with the nearest
      cluster, the mean over attributes.
  """

  best: np.ndarray
  f1: np.ndarray
  information: float


def agreement(members: np.ndarray, nearest: np.ndarray, labels: np.ndarray) -> Agreement:
  """Compares clusters with attributes of the same images.

  Args:
    members: bool [n k].
    nearest: [n] the nearest cluster.
    labels: bool [n a].
  """
  both = members.T.astype(float) @ labels
  f1 = 2 * both / np.maximum(members.sum(0)[:, None] + labels.sum(0)[None], 1)
  used = np.flatnonzero(labels.any(axis=0) & ~labels.all(axis=0))
  information = [normalized_mutual_info_score(labels[:, a], nearest) for a in used]
  best = f1.argmax(axis=1) if labels.shape[1] else np.full(members.shape[1], -1)
  values = f1.max(axis=1) if labels.shape[1] else np.zeros(members.shape[1])
  return Agreement(
    np.where(values > 0, best, -1), values, float(np.mean(information)) if len(used) else 0.0
  )
