"""Any two images have regions that are each other's best match: which of them count."""

import jax.numpy as jnp
import numpy as np
import pytest

from sane_jax.ops import effects, matches

CELLS = 64


@pytest.mark.parametrize("d", [16, 64, 512])
def test_unrelated_effects_have_mutual_best_matches_and_none_that_counts(d):
  """Of 100 pairs with nothing in common at most some five have any region lit."""
  rng = np.random.default_rng(d)
  least = matches.match_threshold(CELLS, CELLS, d)
  mutual, lit = [], []
  for _ in range(100):
    query, reference = jnp.asarray(rng.normal(size=(2, CELLS, d)))
    table = np.asarray(effects.correspondence(query, reference))
    mutual.append(len(matches.mutual_matches(table, -1.0)))
    lit.append((table >= least).any())
  assert np.median(mutual) > CELLS / 5  # all of which were once shown as matches
  assert np.mean(lit) <= 0.1


def test_true_matches_are_found_under_noise():
  rng = np.random.default_rng(0)
  query = rng.normal(size=(CELLS, 256))
  order = rng.permutation(CELLS)
  reference = query[order] + rng.normal(size=query.shape)
  table = np.asarray(effects.correspondence(jnp.asarray(query), jnp.asarray(reference)))
  found = matches.mutual_matches(table, matches.match_threshold(CELLS, CELLS, 256))
  assert len(found) >= 0.95 * CELLS
  assert all(order[j] == i for i, j, _ in found)
  cosines = [cosine for _, _, cosine in found]
  assert cosines == sorted(cosines, reverse=True)
  assert cosines[-1] >= matches.LEAST_MATCH


def test_what_is_no_number_matches_nothing():
  assert matches.mutual_matches(np.full((3, 2), np.nan), 0.35) == []
