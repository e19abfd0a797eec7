"""Classifiers, TCAV scores and their test against known answers and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from sane_jax.ops import concepts, ranking


def data(n=400, d=16, m=4, seed=0, noise=3.0):
  """Correlated rows on very different scales, and labels by planted directions."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * 10.0 ** rng.uniform(-1, 1, size=d)
  truth = rng.normal(size=(m, d)) / x.std(0)
  logits = (x - x.mean(0)) @ truth.T
  labels = (logits + noise * rng.logistic(size=logits.shape) > 1).T
  return x.astype(np.float32), labels, truth


def whitened(x):
  w = concepts.whiten(jnp.asarray(x), floor=1e-9)
  return w, (jnp.asarray(x) - w.mean) @ w.matrix


def test_whitening_makes_the_covariance_the_identity():
  x, _, _ = data(d=6)
  _, z = whitened(x)
  np.testing.assert_allclose(np.cov(np.asarray(z).T, bias=True), np.eye(6), atol=2e-3)
  np.testing.assert_allclose(np.asarray(z).mean(0), 0, atol=1e-4)


def test_classes_weigh_the_same():
  rng = np.random.default_rng(0)
  labels, use = rng.random((5, 40)) < 0.4, rng.random((5, 40)) < 0.7
  weights = np.asarray(concepts.balance(jnp.asarray(labels), jnp.asarray(use)))
  np.testing.assert_allclose((weights * labels).sum(1), 0.5, atol=1e-6)
  np.testing.assert_allclose((weights * ~labels).sum(1), 0.5, atol=1e-6)
  assert (weights[~use] == 0).all()


@pytest.mark.parametrize("l2", [0.01, 0.1, 1.0])
def test_classifiers_agree_with_scikit_learn(l2):
  x, labels, _ = data()
  _, z = whitened(x)
  use = jnp.ones(labels.shape, bool).at[:, :50].set(False)
  weights = concepts.balance(jnp.asarray(labels), use)
  normals, offsets = concepts.fit_classifiers(z, jnp.asarray(labels), weights, l2=l2, steps=60)
  for i, truth in enumerate(labels):
    model = LogisticRegression(C=1 / l2, tol=1e-9, max_iter=10_000)
    model.fit(np.asarray(z)[50:], truth[50:], sample_weight=np.asarray(weights[i, 50:]))
    theirs = model.coef_[0]
    ours = np.asarray(normals[i])
    difference = ours / np.linalg.norm(ours) - theirs / np.linalg.norm(theirs)
    assert np.linalg.norm(difference) < 1e-2
    assert np.linalg.norm(ours - theirs) < 0.02 * np.linalg.norm(theirs)
    assert float(offsets[i]) == pytest.approx(model.intercept_[0], abs=0.02)
    right = balanced_accuracy_score(truth[:50], model.predict(np.asarray(z)[:50]))
    mine = concepts.balanced_accuracy(
      z, jnp.asarray(labels), ~use, normals, offsets
    )[i]  # fmt: skip
    assert float(mine) == pytest.approx(right, abs=0.03)


def test_planted_directions_are_found():
  """The normal in the embedding's own axes is the planted one, whatever the axes' scales."""
  x, labels, truth = data(n=20_000, m=3, noise=1.0)
  w, z = whitened(x)
  use = jnp.ones(labels.shape, bool)
  weights = concepts.balance(jnp.asarray(labels), use)
  normals, _ = concepts.fit_classifiers(z, jnp.asarray(labels), weights, l2=1e-3, steps=200)
  found = np.asarray(concepts.directions(normals, w))
  np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
  unit = truth / np.linalg.norm(truth, axis=1, keepdims=True)
  assert (np.sum(found * unit, axis=1) > 0.95).all()


def test_a_problem_does_not_depend_on_its_company():
  x, labels, _ = data(m=6)
  _, z = whitened(x)
  use = jnp.ones(labels.shape, bool)
  weights = concepts.balance(jnp.asarray(labels), use)
  together, _ = concepts.fit_classifiers(z, jnp.asarray(labels), weights)
  alone, _ = concepts.fit_classifiers(z, jnp.asarray(labels[2:3]), weights[2:3])
  np.testing.assert_allclose(together[2:3], alone, atol=1e-5)


def test_one_class_alone_gives_no_direction():
  x, labels, _ = data(m=2)
  w, z = whitened(x)
  labels = np.zeros_like(labels)
  weights = concepts.balance(jnp.asarray(labels), jnp.ones(labels.shape, bool))
  normals, _ = concepts.fit_classifiers(z, jnp.asarray(labels), weights * 0)
  assert (np.asarray(concepts.directions(normals, w)) == 0).all()


def test_a_pattern_is_what_the_concept_does_and_not_what_the_classifier_takes_away():
  """Stripes move u1; the ground's brightness moves u1 and u2, and has to be taken off u1."""
  rng = np.random.default_rng(0)
  stripes, bright = rng.random((2, 600)) < 0.5
  x = 0.2 * rng.normal(size=(600, 8))
  x[:, 0] += 1.0 * stripes + 1.0 * bright
  x[:, 1] += 1.0 * bright
  x = x.astype(np.float32)
  whitening, z = whitened(x)
  labels = stripes[None]
  weights = concepts.balance(jnp.asarray(labels), jnp.ones((1, 600), bool))
  normals, _ = concepts.fit_classifiers(z, jnp.asarray(labels), weights, steps=200)
  v = concepts.directions(normals, whitening)
  pattern = np.asarray(concepts.patterns(v, jnp.asarray(x)))[0]
  # A region that shows bright ground would be said to speak against stripes.
  assert float(v[0, 1]) < -0.3
  assert abs(pattern[1]) < 0.15
  assert pattern[0] > 0.95
  difference = x[stripes].mean(axis=0) - x[~stripes].mean(axis=0)
  assert pattern @ difference / np.linalg.norm(difference) > 0.98
  assert not np.asarray(concepts.patterns(jnp.zeros((2, 8)), jnp.asarray(x))).any()


def test_sensitivity_is_the_derivative_of_the_cosine():
  rng = np.random.default_rng(1)
  unit = lambda v: v / np.linalg.norm(v, axis=-1, keepdims=True)  # noqa: E731
  v, q, r = unit(rng.normal(size=(3, 7))), unit(rng.normal(size=(5, 7))), unit(
    rng.normal(size=(5, 7))
  )  # fmt: skip

  def cosine(q, r):
    return jnp.sum(q * r) / jnp.linalg.norm(q) / jnp.linalg.norm(r)

  ours = ranking.sensitivities(*(jnp.asarray(x, jnp.float32) for x in (v, q, r)))
  for i in range(3):
    for p in range(5):
      slope = jax.grad(cosine)(jnp.asarray(q[p]), jnp.asarray(r[p])) @ v[i]
      assert float(ours[i, p]) == pytest.approx(float(slope), abs=1e-5)


def test_tcav_is_the_share_that_rises():
  values = jnp.asarray([[1.0, -1.0, 2.0, 0.0], [-1.0, -1.0, -1.0, -1.0], [1.0, 1.0, 1.0, 1.0]])
  use = jnp.asarray([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
  scores = np.asarray(concepts.tcav_scores(values, use))
  np.testing.assert_allclose(scores[:2], [2.5 / 4, 0])
  assert np.isnan(scores[2])


def test_p_values_of_one_more_random_draw_are_uniform():
  rng = np.random.default_rng(2)
  draws = rng.normal(0.5, 0.1, size=(3000, 31))
  p = [concepts.random_test(d[0], d[1:]) for d in draws]
  assert stats.kstest(p, "uniform").pvalue > 0.01
  assert concepts.random_test(1.5, draws[0, 1:]) < 1e-6
  assert np.isnan(concepts.random_test(0.5, np.array([0.1, np.nan])))
  assert np.isnan(concepts.random_test(np.nan, draws[0]))


def test_rows_that_are_not_in_use_do_not_count():
  x, _, _ = data(n=200, d=6)
  padded = np.concatenate([x, np.full((56, 6), 1e3, np.float32)])
  use = jnp.arange(256) < 200
  for part, other in zip(
    concepts.whiten(jnp.asarray(x)), concepts.whiten(jnp.asarray(padded), use), strict=True
  ):
    scale = float(jnp.abs(part).max())
    np.testing.assert_allclose(jnp.abs(part), jnp.abs(other), atol=1e-3 * scale)  # up to the sign


def test_jit_changes_nothing():
  x, labels, _ = data(n=100, d=5)
  _, z = whitened(x)
  weights = concepts.balance(jnp.asarray(labels), jnp.ones(labels.shape, bool))
  compiled = concepts.fit_classifiers(z, jnp.asarray(labels), weights, steps=5)
  with jax.disable_jit():
    plain = concepts.fit_classifiers(z, jnp.asarray(labels), weights, steps=5)
  for ours, theirs in zip(compiled, plain, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
