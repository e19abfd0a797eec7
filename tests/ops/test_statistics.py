"""Statistics against other implementations, and cases worked out by hand."""

import numpy as np
import pytest
from scipy import stats

import sane_jax
from sane_jax.ops import statistics


def test_bootstrap_interval_covers_the_mean():
  rng = np.random.default_rng(1)
  covered = 0
  for _ in range(200):
    low, high = sane_jax.bootstrap_interval(rng.normal(1, 2, size=40), samples=500)
    covered += low <= 1 <= high
  assert 0.88 <= covered / 200 <= 0.99
  with pytest.raises(ValueError, match="at least 2"):
    sane_jax.bootstrap_interval(np.array([1.0]))


def test_clusters_are_drawn_together():
  """Of two clusters the mean is one's, the other's, or both's: whole pairs are never parted."""
  low, high = statistics.bootstrap_interval(
    np.array([0.0, 0.0, 1.0, 1.0]), clusters=np.array([7, 7, 3, 3])
  )
  assert (low, high) == (0, 1)
  with pytest.raises(ValueError, match="at least 2 clusters"):
    statistics.bootstrap_interval(np.arange(4.0), clusters=np.zeros(4, int))


def test_holm_by_hand():
  found = statistics.holm(np.array([0.01, 0.04, np.nan, 0.03, 0.005]))
  np.testing.assert_allclose(found, [0.03, 0.06, np.nan, 0.06, 0.02])
  assert statistics.holm(np.zeros(0)).shape == (0,)


def test_holm_is_statsmodels_s():
  multitest = pytest.importorskip("statsmodels.stats.multitest")
  p = np.random.default_rng(0).uniform(size=40) ** 4
  p[11:14] = p[10]  # ties
  want = multitest.multipletests(p, method="holm")[1]
  np.testing.assert_allclose(statistics.holm(p), want, rtol=1e-12)
  p[[3, 7]] = np.nan
  found = statistics.holm(p)
  assert np.isnan(found[[3, 7]]).all()
  want = multitest.multipletests(np.delete(p, [3, 7]), method="holm")[1]
  np.testing.assert_allclose(np.delete(found, [3, 7]), want, rtol=1e-12)


def test_false_discovery_by_hand():
  p = np.array([0.01, np.nan, 0.04, 0.03, 0.5])
  np.testing.assert_allclose(
    statistics.false_discovery(p), [0.04, np.nan, 0.04 * 4 / 3, 0.04 * 4 / 3, 0.5], atol=1e-12
  )
  assert np.isnan(statistics.false_discovery(np.full(3, np.nan))).all()


def test_rank_correlation_is_pearson_s_of_ranks(rng):
  for values in (rng.normal(size=(2, 30)), rng.integers(0, 4, size=(2, 30))):
    want = np.corrcoef(stats.rankdata(values[0]), stats.rankdata(values[1]))[0, 1]
    assert statistics.rank_correlation(*values) == pytest.approx(want, abs=1e-12)
  assert np.isnan(statistics.rank_correlation(np.ones(4), np.arange(4)))
  assert np.isnan(statistics.rank_correlation(np.array([1.0, np.nan, 2.0]), np.arange(3)))
