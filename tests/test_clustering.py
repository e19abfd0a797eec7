"""Clusters of what saliency maps point at, on features whose truth is known."""

import numpy as np
import pytest

from sane_jax.attributes import clusters as clusters_lib
from sane_jax.datasets import load


def world(n=240, seed=0):
  """Feature maps [n 4 4 9]: one of 3 things at the place of the map, one of 3 others elsewhere."""
  rng = np.random.default_rng(seed)
  shown, around = rng.integers(3, size=n), rng.integers(3, size=n)
  features = 0.1 * rng.random((n, 4, 4, 9))
  saliency = np.zeros((n, 8, 8), np.float32)
  for i in range(n):
    y, x = rng.integers(4, size=2)
    features[i, :, :, 3 + around[i]] += 1
    features[i, y, x, 3 + around[i]] = 0
    features[i, y, x, shown[i]] += 1
    saliency[i, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] = 1
    saliency[i, 0, 0] -= 0.5  # what speaks against does not count
  return features.astype(np.float32), saliency, shown, around


def test_maps_decide_what_is_clustered():
  features, saliency, shown, around = world()
  for maps, truth in ((saliency, shown), (None, around)):
    vectors = clusters_lib.pool(features, maps)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    clusters = clusters_lib.find_clusters(vectors, (2, 3, 5, 8), seed=0)
    assert len(clusters.centers) == 3  # the planted number, by the silhouette
    nearest = (vectors @ clusters.centers.T).argmax(axis=1)
    labels = np.arange(3) == truth[:, None]
    found = clusters_lib.agreement(clusters_lib.assign(vectors, clusters), nearest, labels)
    assert found.information > 0.5
    assert sorted(found.best) == [0, 1, 2]
    assert found.f1.min() > 0.95


def test_pooling_is_a_weighted_mean():
  features, saliency, _, _ = world(n=2)
  weights = np.maximum(saliency, 0).reshape(2, 4, 2, 4, 2).mean((2, 4))
  brute = np.einsum("nhwc,nhw->nc", features, weights)
  brute /= np.linalg.norm(brute, axis=1, keepdims=True)
  np.testing.assert_allclose(clusters_lib.pool(features, saliency), brute, atol=1e-6)
  assert (clusters_lib.pool(features, 0 * saliency) == 0).all()


def test_an_image_without_a_map_belongs_nowhere():
  features, saliency, _, _ = world()
  clusters = clusters_lib.find_clusters(clusters_lib.pool(features, saliency), (3,), seed=0)
  assert not clusters_lib.assign(np.zeros((2, 9)), clusters).any()
  members = clusters_lib.assign(clusters_lib.pool(features, saliency), clusters)
  assert (members.sum(axis=1) >= 1).all()


def test_the_same_seed_finds_the_same():
  vectors = clusters_lib.pool(*world()[:2])
  one, two = (clusters_lib.find_clusters(vectors, (4, 6), seed=1) for _ in range(2))
  np.testing.assert_array_equal(one.centers, two.centers)


def test_too_few_images_are_named():
  with pytest.raises(ValueError, match=r"5 images can't make 8, 16 clusters"):
    clusters_lib.find_clusters(np.eye(5), (8, 16), seed=0)


def test_identical_images_are_no_crash():
  vectors = np.tile(np.eye(4)[:1], (30, 1))
  clusters = clusters_lib.find_clusters(vectors, (2, 3), seed=0)
  assert clusters_lib.assign(vectors, clusters).any(axis=1).all()


def test_discovered_attributes_take_the_place_of_the_others(tmp_path):
  import tiny_data

  collection = tiny_data.collection("t/train", groups=4)
  n = len(collection.ids)
  labels = np.random.default_rng(0).random((n, 3)) < 0.5
  np.savez(
    tmp_path / "labels.npz", names=["a", "b", "c"], train_ids=np.array(collection.ids),
    train_labels=labels, test_ids=np.array(["x"]), test_labels=labels[:1],
  )  # fmt: skip
  out = load.replace_attributes(collection, tmp_path, "train")
  assert out.attribute_names == ("a", "b", "c")
  for row, attributes in zip(labels, out.attributes, strict=True):
    np.testing.assert_array_equal(np.flatnonzero(row), attributes)
  with pytest.raises(ValueError, match="of 1 other images than t/train"):
    load.replace_attributes(collection, tmp_path, "test")
  with pytest.raises(ValueError, match=r"run --config\.job=discover_attributes first"):
    load.replace_attributes(collection, tmp_path / "none", "train")
