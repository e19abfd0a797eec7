"""Terms on one scale, weights on the simplex, and joint explanations, against known answers."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from sane_jax.ops import ranking


def test_fit_is_the_cosine_at_the_finer_grid():
  saliency = np.zeros((4, 4), np.float32)
  saliency[:2, :2] = 1
  activations = np.zeros((4, 4, 3), np.float32)
  activations[:2, :2, 0] = 7  # the same place
  activations[2:, 2:, 1] = 1  # another
  activations[:2, :, 2] = 1  # twice as wide
  fit = np.asarray(ranking.map_fit(jnp.asarray(saliency), jnp.asarray(activations)))
  np.testing.assert_allclose(fit, [1, 0, 1 / np.sqrt(2)], atol=1e-6)
  coarse = jnp.asarray(activations[::2, ::2])  # 2 x 2 against 4 x 4
  assert np.asarray(ranking.map_fit(jnp.asarray(saliency), coarse))[0] > 0.9


def test_a_map_of_zeros_fits_nothing():
  fit = ranking.map_fit(jnp.zeros((3, 3)), jnp.ones((3, 3, 2)))
  np.testing.assert_array_equal(np.asarray(fit), 0)


def test_normal_scores_are_standard_normal_whatever_the_distribution():
  rng = np.random.default_rng(0)
  terms = np.stack([rng.exponential(size=(50, 80)) ** 3, rng.uniform(size=(50, 80)) * 1e-3])
  calibration = ranking.calibrate(terms, likely=1.0)
  for z in ranking.normal_scores(terms, calibration):
    assert stats.kstest(z.ravel(), "norm").statistic < 0.02
  # A monotone change of a term's unit changes nothing.
  other = np.stack([np.log(terms[0] + 1e-12), terms[1] * 1e6])
  ours = ranking.normal_scores(terms, calibration)
  again = ranking.normal_scores(other, ranking.calibrate(other, likely=1.0))
  inner = np.abs(ours) < 2.5  # beyond, a score hangs on few values
  np.testing.assert_allclose(again[inner], ours[inner], atol=0.03)


def test_scores_keep_the_order_of_values_and_ties():
  terms = np.random.default_rng(1).normal(size=(1, 20, 30))
  terms[0, :, 0] = terms[0, 0, 0]
  z = ranking.normal_scores(terms, ranking.calibrate(terms, likely=1.0))[0]
  order = np.argsort(terms[0].ravel(), kind="stable")
  assert (np.diff(z.ravel()[order]) >= 0).all()
  assert np.ptp(z[:, 0]) == 0


def test_a_constant_term_scores_zero():
  terms = np.stack([np.random.default_rng(2).normal(size=(5, 7)), np.full((5, 7), 0.5)])
  z = ranking.normal_scores(terms, ranking.calibrate(terms))
  np.testing.assert_array_equal(z[1], 0)


def test_only_likely_attributes_count_for_the_scale():
  terms = np.random.default_rng(3).normal(size=(2, 100, 100))
  terms[1] = np.where(terms[0] > np.quantile(terms[0], 0.9), terms[1], 1e6)
  z = ranking.normal_scores(terms, ranking.calibrate(terms, likely=0.1))[1]
  likely = terms[0] > np.quantile(terms[0], 0.9)
  assert abs(z[likely].std() - 1) < 0.05
  assert (z[~likely] > 3).all()


def test_what_is_no_number_is_refused():
  with pytest.raises(ValueError, match="1 of them NaN"):
    ranking.calibrate(np.array([[[1.0, np.nan]]]))


@pytest.mark.parametrize("phi", [(0.5, 0.6), (1.2, -0.2), (1.0,), (np.nan, 1.0)])
def test_weights_off_the_simplex_are_refused(phi):
  with pytest.raises(ValueError, match="phi has 2 weights"):
    ranking.check_weights(phi, 2)


def test_totals_without_calibration_are_the_papers():
  terms = np.random.default_rng(4).uniform(size=(3, 4, 5))
  np.testing.assert_allclose(
    ranking.totals(terms, (0.5, 0.3, 0.2), ranking.RAW),
    0.5 * terms[0] + 0.3 * terms[1] + 0.2 * terms[2],
  )


def test_the_grid_of_the_simplex():
  grid = ranking.simplex(3, 4)
  brute = [p for p in itertools.product(np.arange(5) / 4, repeat=3) if abs(sum(p) - 1) < 1e-9]
  assert sorted(grid) == sorted(tuple(map(float, p)) for p in brute)


def planted(seed=0):
  """A saliency map that is 2 of one map, 1 of another, and a little of nothing that is known."""
  rng = np.random.default_rng(seed)
  maps = np.zeros((6, 6, 5))
  maps[:2, :, 0], maps[3:5, :3, 1], maps[:, 5, 2] = 1, 1, 1
  maps[..., 3:] = rng.uniform(size=(6, 6, 2))
  saliency = 2 * maps[..., 0] + maps[..., 1]
  saliency[5, 2] = 0.5
  return saliency, maps


def test_joint_explanation_finds_the_planted_attributes():
  saliency, maps = planted()
  joint = ranking.explain_jointly(saliency, maps)
  assert joint.chosen == (0, 1)
  length = np.sum(saliency**2)
  np.testing.assert_allclose(joint.shares, [4 * 12 / length, 6 / length], atol=1e-9)
  assert joint.explained == pytest.approx(sum(joint.shares))
  assert 1 - joint.explained == pytest.approx(0.25 / length)


def test_each_step_is_the_best_by_brute_force():
  rng = np.random.default_rng(5)
  maps, saliency = rng.uniform(size=(4, 4, 7)), rng.uniform(size=(4, 4))
  joint = ranking.explain_jointly(saliency, maps, most=1)
  left = [optimize.nnls(maps[..., [a]].reshape(16, 1), saliency.ravel())[1] for a in range(7)]
  assert joint.chosen == (int(np.argmin(left)),)
  assert joint.explained == pytest.approx(1 - (min(left) / np.linalg.norm(saliency)) ** 2)


def test_the_part_that_speaks_against_is_not_explained():
  saliency, maps = planted()
  both = saliency - 5.0 * maps[..., 2] * (saliency == 0)
  assert ranking.explain_jointly(both, maps) == ranking.explain_jointly(saliency, maps)


def test_a_first_attribute_can_be_set():
  saliency, maps = planted()
  joint = ranking.explain_jointly(saliency, maps, first=2, most=3)
  assert joint.chosen == (2, 0, 1)
  m = saliency.ravel() / np.linalg.norm(saliency)
  n = maps[..., 2].ravel() / np.linalg.norm(maps[..., 2])
  assert joint.shares[0] == pytest.approx((m @ n) ** 2)  # what it explains alone
  assert sum(joint.shares) == pytest.approx(joint.explained)
  only = ranking.explain_jointly(saliency, maps, first=2, most=1)
  assert only.chosen == (2,)


def test_nothing_to_explain():
  assert ranking.explain_jointly(np.zeros((3, 3)), np.ones((3, 3, 2))).chosen == ()
  assert ranking.explain_jointly(np.ones((3, 3)), np.zeros((3, 3, 2))).explained == 0
