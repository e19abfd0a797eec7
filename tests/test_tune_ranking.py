"""Which weights are chosen from what they gain on pairs."""

import numpy as np
import pytest

from sane_jax.attributes import trained
from sane_jax.ops import ranking

GRID = np.asarray(ranking.simplex(3, 10))


def test_a_clear_best_is_chosen():
  gains = -10 * np.abs(GRID - [0.6, 0.4, 0.0]).sum(axis=1, keepdims=True) + np.zeros((1, 50))
  phi = ranking.pooled_weights(GRID, gains, [True, True, True])
  assert phi == pytest.approx((0.6, 0.4, 0.0))


def test_terms_that_may_not_weigh_do_not():
  gains = GRID[:, 2:] + np.zeros((1, 50))
  assert ranking.pooled_weights(GRID, gains, [True, False, False]) == (1.0, 0.0, 0.0)
  phi = ranking.pooled_weights(GRID, gains, [True, False, True])
  assert phi == pytest.approx((0.0, 0.0, 1.0))


def test_what_noise_does_not_tell_apart_is_averaged():
  """All φ are as good: the mean lies in the middle, where the best alone lies anywhere."""
  rng = np.random.default_rng(0)
  gains = rng.normal(size=(len(GRID), 200))
  phi = ranking.pooled_weights(GRID, gains, [True, True, True])
  assert sum(phi) == pytest.approx(1)
  alone = GRID[gains.mean(axis=1).argmax()]
  assert np.abs(np.array(phi) - 1 / 3).max() < np.abs(alone - 1 / 3).max()


def test_rankings_are_filed_under_the_names_of_their_terms():
  """Names that files and tables of earlier runs have."""
  assert list(trained.ABLATIONS) == [
    "confidence", "map fit", "prior", "sensitivity", "confidence, map fit", "confidence, prior",
    "map fit, prior", "confidence, map fit, prior", "confidence, sensitivity", "all terms",
  ]  # fmt: skip
  grid = np.asarray(ranking.simplex(4, 2))
  gains = grid[:, 3:] + np.zeros((1, 20))
  chosen = trained.choose_weights(grid, gains)
  assert chosen.keys() == trained.ABLATIONS.keys()
  assert chosen["all terms"] == chosen["sensitivity"] == (0, 0, 0, 1)
  assert chosen["confidence, sensitivity"] == (0, 0, 0, 1)
  assert chosen["map fit"] == (0, 1, 0, 0)
  given = trained.choose_weights(grid, gains, (0.4, 0.3, 0.2, 0.1))
  assert given["all terms"] == (0.4, 0.3, 0.2, 0.1)
  assert given["map fit"] == chosen["map fit"]
