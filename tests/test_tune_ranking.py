"""Which weights are chosen from what they gain on pairs."""

import numpy as np
import pytest

from sane_jax.attributes import trained
from sane_jax.ops import ranking

GRID = np.asarray(ranking.simplex(3, 10))


def choose(gains, allowed=(True, True, True)):
  return ranking.simplest_weights(GRID, gains, allowed, np.arange(gains.shape[1]))


def test_a_clear_best_is_chosen():
  gains = -10 * np.abs(GRID - [0.6, 0.4, 0.0]).sum(axis=1, keepdims=True) + np.zeros((1, 50))
  assert choose(gains) == pytest.approx((0.6, 0.4, 0.0))


def test_terms_that_may_not_weigh_do_not():
  gains = GRID[:, 2:] + np.zeros((1, 50))
  assert choose(gains, [True, False, False]) == (1.0, 0.0, 0.0)
  assert choose(gains, [True, False, True]) == pytest.approx((0.0, 0.0, 1.0))


def test_where_noise_alone_tells_phi_apart_the_first_term_weighs_most():
  """The best alone lies anywhere; the mean of what is near, as it was, in the middle."""
  rng = np.random.default_rng(0)
  weights, lucky = [], []
  for _ in range(20):
    gains = rng.normal(size=(len(GRID), 200))
    weights.append(choose(gains)[0])
    lucky.append(GRID[gains.mean(axis=1).argmax()][0])
  assert np.mean(weights) > 0.7
  assert np.mean(lucky) < 0.6


def test_gains_of_the_pairs_that_chose_are_luck_and_held_out_ones_are_not():
  rng = np.random.default_rng(1)
  alone = (GRID == [1, 0, 0]).all(axis=1)
  clusters = np.repeat(np.arange(60), 2)
  seen, held_out = [], []
  for _ in range(40):
    gains = rng.normal(size=(len(GRID), 60)).repeat(2, axis=1)
    seen.append((gains.mean(axis=1) - gains[alone].mean()).max())
    held_out.append(ranking.held_out_gains(GRID, gains, [True] * 3, clusters).mean())
  assert min(seen) > 0
  assert abs(np.mean(held_out)) < 3 * np.std(held_out) / np.sqrt(len(held_out)) + 1e-9
  gains = 5 * GRID[:, 1:2] + rng.normal(size=(1, 120))  # a true gain is seen
  assert ranking.held_out_gains(GRID, gains, [True] * 3, clusters).mean() == pytest.approx(5)


def test_pairs_of_one_query_are_one_witness():
  """Twenty copies of five queries: the best is not told from the first term alone."""
  rng = np.random.default_rng(2)
  few = rng.normal(size=(len(GRID), 5))
  gains, queries = few.repeat(20, axis=1), np.arange(5).repeat(20)
  together = ranking.simplest_weights(GRID, gains, [True] * 3, queries)
  assert together == ranking.simplest_weights(GRID, few, [True] * 3, np.arange(5))
  assert together[0] >= choose(gains)[0]


def test_weights_that_gain_nothing_on_other_pairs_are_not_taken():
  rng = np.random.default_rng(3)
  grid = np.asarray(ranking.simplex(4, 5))
  taken = []
  for _ in range(20):
    noise = rng.normal(size=(len(grid), 100))
    taken.append(trained.choose_weights(grid, noise, np.arange(100))["all terms"])
  assert np.mean([phi == (1, 0, 0, 0) for phi in taken]) > 0.7
  gains = grid[:, 3:] + 0.3 * rng.normal(size=(len(grid), 100))
  assert trained.choose_weights(grid, gains, np.arange(100))["all terms"][3] > 0.7


def test_rankings_are_filed_under_the_names_of_their_terms():
  """Names that files and tables of earlier runs have."""
  assert list(trained.ABLATIONS) == [
    "confidence", "map fit", "prior", "sensitivity", "confidence, map fit", "confidence, prior",
    "map fit, prior", "confidence, map fit, prior", "confidence, sensitivity", "all terms",
  ]  # fmt: skip
  grid = np.asarray(ranking.simplex(4, 2))
  gains = grid[:, 3:] + np.zeros((1, 20))
  chosen = trained.choose_weights(grid, gains, np.arange(20))
  assert chosen.keys() == trained.ABLATIONS.keys()
  assert chosen["all terms"] == chosen["sensitivity"] == (0, 0, 0, 1)
  assert chosen["confidence, sensitivity"] == (0, 0, 0, 1)
  assert chosen["map fit"] == (0, 1, 0, 0)
  given = trained.choose_weights(grid, gains, np.arange(20), (0.4, 0.3, 0.2, 0.1))
  assert given["all terms"] == (0.4, 0.3, 0.2, 0.1)
  assert given["map fit"] == chosen["map fit"]
