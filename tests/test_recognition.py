"""Figures of an attribute model against scikit-learn and cases worked out by hand."""

import numpy as np
import pytest
from sklearn import metrics

from sane_jax.attributes import quality
from sane_jax.ops import resampling


def test_average_precision_is_scikit_learns(rng):
  labels = rng.uniform(size=(80, 6)) < [0.5, 0.2, 0.05, 0.9, 1.0, 0.0]
  for scores in (rng.normal(size=(80, 6)), rng.integers(0, 4, size=(80, 6)).astype(np.float32)):
    found = quality.average_precisions(scores, labels)
    for a in range(5):
      expected = metrics.average_precision_score(labels[:, a], scores[:, a])
      assert found[a] == pytest.approx(expected), a
    assert np.isnan(found[5])
    assert quality.mean_average_precision(scores, labels) == pytest.approx(found[:5].mean())


def test_chance():
  labels = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]], bool)
  assert quality.chance_precision(labels) == (1 + 0.25) / 2
  constant = np.zeros((4, 3))
  assert quality.mean_average_precision(constant, labels) == (1 + 0.25) / 2


def test_pointing_and_mass_by_hand():
  maps = np.array([[[0.0, 3.0], [1.0, 0.0]], [[2.0, 2.0], [-5.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
  masks = np.array([[[0, 1], [0, 0]], [[1, 0], [1, 0]], [[1, 0], [0, 0]]], bool)
  np.testing.assert_allclose(quality.pointing_game(maps, masks), [1, 0.5, 0.25])
  np.testing.assert_allclose(quality.mass_inside(maps, masks), [0.75, 0.5, 0.25])


def test_what_is_no_number_earns_nothing():
  labels = np.array([[1, 0], [0, 0], [0, 0], [0, 0]], bool)
  nothing = np.full((4, 2), np.nan)
  assert quality.average_precisions(nothing, labels)[0] == 0.25  # the frequency: chance
  last = np.array([[np.nan], [0.0], [1.0], [-np.inf]])
  assert quality.average_precisions(last, labels[:, :1])[0] == 0.25
  maps = np.ones((2, 2, 2))
  maps[0, 0, 0] = np.nan
  masks = np.ones((2, 2, 2), bool)
  for figure in (quality.pointing_game, quality.mass_inside):
    np.testing.assert_array_equal(figure(maps, masks), [np.nan, 1])


@pytest.mark.filterwarnings("error")
def test_without_attributes_there_is_no_figure():
  labels = np.zeros((3, 2), bool)
  assert np.isnan(quality.mean_average_precision(np.zeros((3, 2)), labels))
  assert np.isnan(quality.chance_precision(labels))


def test_enlarging_keeps_places():
  maps = np.zeros((1, 4, 4))
  maps[0, 1, 2] = 1
  large = resampling.enlarge(maps, (40, 40))[0]
  assert large.shape == (40, 40)
  top = np.argwhere(large > 0.99 * large.max())
  np.testing.assert_allclose(top.mean(axis=0), [14.5, 24.5], atol=0.6)
  assert large[:, :10].max() == 0


def test_maps_of_the_middle_are_spread_over_the_whole():
  maps = np.arange(1.0, 5.0).reshape(1, 2, 2)
  np.testing.assert_allclose(resampling.resample(maps, (2, 2)), maps)
  half = resampling.resample(maps, (4, 4), 0.5)[0]
  expected = np.zeros((4, 4))
  expected[1:3, 1:3] = maps[0]
  np.testing.assert_allclose(half, expected)
  # The integral over the image shrinks by the area that is covered.
  odd = resampling.resample(maps, (7, 5), 0.78)
  assert odd.mean() == pytest.approx(maps.mean() * 0.78**2)
