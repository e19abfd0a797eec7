"""Layers destroyed one after the other, and correlations of maps."""

import numpy as np
import pytest

from sane_jax.maps import sanity_checks

TREE = {
  "params": {
    "dense": {"kernel": np.arange(12.0).reshape(3, 4)},
    "trunk": {"layer1_0": {"w": np.arange(8.0)}, "layer11": {"w": np.arange(9.0)}},
  },
  "batch_stats": {"trunk": {"layer1_0": {"mean": np.arange(7.0)}}},
}


def test_layers_are_destroyed_cumulatively_and_keep_their_values():
  steps = list(sanity_checks.randomized(TREE, ("dense", "trunk/layer1")))
  assert [name for name, _ in steps] == ["dense", "trunk/layer1"]
  first, second = (tree for _, tree in steps)
  kernel = first["params"]["dense"]["kernel"]
  assert sorted(kernel.ravel()) == list(range(12))
  assert (kernel != TREE["params"]["dense"]["kernel"]).any()
  assert (first["params"]["trunk"]["layer1_0"]["w"] == np.arange(8)).all()
  np.testing.assert_array_equal(second["params"]["dense"]["kernel"], kernel)
  assert (second["params"]["trunk"]["layer1_0"]["w"] != np.arange(8)).any()
  assert (second["batch_stats"]["trunk"]["layer1_0"]["mean"] != np.arange(7)).any()
  assert (second["params"]["trunk"]["layer11"]["w"] == np.arange(9)).all()  # another layer


def test_a_layer_that_is_not_there_is_named():
  with pytest.raises(ValueError, match=r"no layer 'head'; it has dense/kernel"):
    list(sanity_checks.randomized(TREE, ("head",)))


def test_correlation_is_of_ranks():
  a = np.random.default_rng(0).normal(size=(3, 4, 4))
  b = np.stack([np.exp(a[0]), -a[1], np.ones((4, 4))])
  np.testing.assert_allclose(sanity_checks.rank_correlations(a, b), [1, -1, 0], atol=1e-12)
