"""Which attributes matter to a model that was made to care for some: found, and no others."""

import numpy as np
import pytest
from scipy import stats

from sane_jax.attributes import concepts as concepts_lib


def world(n=500, d=24, groups=160, seed=0, spaces=1):
  """Unit embeddings with three planted attributes, and pairs that match by sharing attribute 0.

  Attribute 0 is what images of a pair share, 1 is what they differ in, 2 to 5 mean nothing.
  """
  rng = np.random.default_rng(seed)
  labels = rng.random((n, 6)) < 0.3
  axes = np.linalg.qr(rng.normal(size=(d, d)))[0]
  x = 0.35 * rng.normal(size=(n, d))
  x += 1.2 * labels[:, :1] * axes[0] + 1.2 * labels[:, 1:2] * axes[1] + 0.8 * axes[2]
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  have = np.flatnonzero(labels[:, 0])
  lack = np.flatnonzero(labels[:, 1])
  free = np.flatnonzero(~labels[:, 1] & labels[:, 0])
  both = np.intersect1d(have, lack)
  pairs = [(rng.choice(both), rng.choice(free)) for _ in range(4 * groups)]
  pairs = np.array([p for p in pairs if p[0] != p[1]])
  return x.astype(np.float32), labels, pairs, axes


def fit(x, labels, pairs, seed=0, known=None, **settings):
  n = len(x)
  return concepts_lib.fit(
    x[:, None], np.zeros(n, int), np.zeros((1, 1), int), labels,
    np.ones(n, bool) if known is None else known, pairs, seed=seed,
    settings=concepts_lib.Settings(**settings),
  )  # fmt: skip


def test_what_matters_is_found_with_its_sign_and_nothing_else():
  x, labels, pairs, axes = world()
  found = fit(x, labels, pairs)
  assert found.prior[0, 0] > 0.7  # more of it raises the score
  assert found.prior[0, 1] < 0.3  # more of it lowers it
  assert (found.prior[0, 2:] == concepts_lib.NEUTRAL).sum() >= 3
  assert found.accuracy[0, 0] > 0.8
  assert (found.vectors[0, 2:] == 0).all()  # no better than chance on images held out
  cosines = [abs(found.vectors[0, i] @ axes[i]) for i in range(2)]
  assert min(cosines) > 0.8


def test_random_concepts_have_uniform_p_values():
  """Labels that mean nothing, tested as attributes are."""
  x, _, pairs, _ = world(n=300, groups=60)
  rng = np.random.default_rng(7)
  labels = np.zeros((300, 200), bool)
  for column in labels.T:
    column[rng.choice(300, 32, replace=False)] = True
  found = fit(x, labels, pairs, num_random=60)
  # p-values before the correction are not kept: undo it on the sorted ones is not possible, so
  # compare the scores with the controls' law by the test itself.
  raw = raw_p_values(x, labels, pairs)
  assert stats.kstest(raw, "uniform").pvalue > 0.01
  assert (found.pooled_p_value <= 0.05).sum() == 0


def raw_p_values(x, labels, pairs):
  """The same, with the correction for many tests switched off."""
  import unittest.mock

  from sane_jax.ops import statistics

  with unittest.mock.patch.object(statistics, "false_discovery", lambda p: p):
    return fit(x, labels, pairs, num_random=60).pooled_p_value


def test_the_same_seed_gives_the_same_prior():
  x, labels, pairs, _ = world(n=200, groups=40)
  one, two = fit(x, labels, pairs), fit(x, labels, pairs)
  for a, b in zip(one, two, strict=True):
    np.testing.assert_array_equal(a, b)


def test_spaces_are_fitted_apart_and_pooled():
  """Images of two types: the space of both has enough, that of the second type with itself not."""
  x, labels, pairs, _ = world()
  types = (np.arange(len(x)) % 10 == 0).astype(int)
  conditions = np.array([[0, 1], [1, 2]])
  embeddings = np.stack([x, x], axis=1)
  found = concepts_lib.fit(
    embeddings, types, conditions, labels, np.ones(len(x), bool), pairs, seed=0
  )
  assert np.isfinite(found.tcav[0, 0])
  assert np.isnan(found.tcav[2]).all()
  assert (found.vectors[2] == 0).all()
  assert found.prior[2, 0] == pytest.approx(found.pooled_tcav[0])
  assert found.prior[2, 0] > 0.7
  assert found.images[2, 0] == labels[types == 1, 0].sum()


def test_attributes_that_cannot_be_fitted_are_neutral():
  x, labels, pairs, _ = world(n=200, groups=40)
  labels = labels.copy()
  labels[:, 0], labels[:, 1] = False, True  # none has it, all have it
  labels[:, 2] = False
  labels[3, 2] = True  # one has it
  found = fit(x, labels, pairs)
  assert (found.prior[0, :3] == concepts_lib.NEUTRAL).all()
  assert np.isnan(found.tcav[0, :3]).all()
  assert np.isfinite(found.tcav[0, 3:]).all()


def test_no_pairs_and_unknown_images_are_no_error():
  x, labels, pairs, _ = world(n=200, groups=40)
  found = fit(x, labels, np.zeros((0, 2), int))
  assert (found.prior == concepts_lib.NEUTRAL).all()
  known = np.arange(200) < 120
  dark = labels.copy()
  dark[120:] = True  # must not be looked at
  np.testing.assert_array_equal(
    fit(x, dark, pairs, known=known).images, labels[:120].sum(axis=0)[None]
  )
