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
  assert np.isnan(found.p_value[0, 2:]).all()  # and so neither tested nor counted as tests
  cosines = [abs(found.vectors[0, i] @ axes[i]) for i in range(2)]
  assert min(cosines) > 0.8


def test_labels_that_mean_nothing_have_uniform_p_values():
  """Tested as attributes are, if they were let through the gate."""
  x, _, pairs = matched_by_groups(7)
  rng = np.random.default_rng(7)
  labels = np.zeros((len(x), 200), bool)
  for column in labels.T:
    column[rng.choice(len(x), 40, replace=False)] = True
  found = fit(x, labels, pairs, num_random=200, min_accuracy=0.0)
  # p-values before the correction are not kept, and it can't be undone on the sorted ones.
  raw = raw_p_values(x, labels, pairs)
  assert stats.kstest(raw, "uniform").pvalue > 0.01
  assert (found.pooled_p_value <= 0.05).sum() == 0


def raw_p_values(x, labels, pairs):
  """The same, with the correction for many tests switched off."""
  import unittest.mock

  from sane_jax.ops import statistics

  with unittest.mock.patch.object(statistics, "false_discovery", lambda p: p):
    return fit(x, labels, pairs, num_random=200, min_accuracy=0.0).pooled_p_value


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
  share, chance = found.pooled_tcav[0], found.pooled_rematched[0]
  assert found.prior[2, 0] == pytest.approx((1 + (share - chance) / (1 - chance)) / 2)
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
  assert np.isnan(found.accuracy[0, :3]).all()
  assert np.isfinite(found.accuracy[0, 3:]).all()


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


def matched_by_groups(seed, prevalence=0.5, centred=True, groups=100, size=4, d=24):
  """Groups share attribute 0. Attribute 1 is in the embedding as much, and no group shares it."""
  rng = np.random.default_rng(seed)
  n = groups * size
  labels = np.stack([np.repeat(rng.random(groups) < 0.5, size), rng.random(n) < prevalence], axis=1)
  axes = np.linalg.qr(rng.normal(size=(d, d)))[0]
  x = 0.35 * rng.normal(size=(n, d)) + 1.2 * labels @ axes[:2]
  x = x - x.mean(axis=0) if centred else x + 0.8 * axes[2]
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  i, j = np.meshgrid(np.arange(size), np.arange(size))
  within = np.stack([i[i != j], j[i != j]], axis=1)
  pairs = (size * np.arange(groups)[:, None, None] + within).reshape(-1, 2)
  return x.astype(np.float32), labels, pairs


@pytest.mark.parametrize(("prevalence", "centred"), [(0.5, True), (0.1, True), (0.3, False)])
def test_an_attribute_that_matching_ignores_is_not_found_and_one_it_uses_is(prevalence, centred):
  """Against random sets of images half of the used were, and up to all of the ignored."""
  import unittest.mock

  from sane_jax.ops import statistics

  p_values = []
  with unittest.mock.patch.object(statistics, "false_discovery", lambda p: p):
    for seed in range(40):
      x, labels, pairs = matched_by_groups(seed, prevalence, centred)
      p_values.append(fit(x, labels, pairs, seed=seed).p_value[0])
  used, ignored = np.array(p_values).T
  assert (used <= 0.001).all()
  assert np.isfinite(ignored).all()
  assert (ignored <= 0.05).sum() <= 6  # of 40: 2 are expected, 7 or more in 0.3 % of times
