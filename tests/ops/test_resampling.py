"""Matrices of one axis against counting pixels and against NumPy's own interpolation."""

import numpy as np
import pytest

from sane_jax.ops import resampling


@pytest.mark.parametrize(("size", "cells"), [(28, 4), (7, 7), (31, 5), (9, 1)])
def test_averaging_and_linear_by_hand(rng, size, cells):
  values = rng.normal(size=size)
  member = np.arange(size) * cells // size
  want = [values[member == cell].mean() for cell in range(cells)]
  np.testing.assert_allclose(resampling.averaging(size, cells) @ values, want, atol=1e-6)
  at, heights = rng.uniform(-1, cells + 1, size=40), rng.normal(size=cells)
  want = np.interp(at, np.arange(cells) + 0.5, heights)
  np.testing.assert_allclose(resampling.linear(at, cells) @ heights, want, atol=1e-12)


def test_overlaps_are_lengths(rng):
  new, old = np.sort(rng.uniform(0, 10, 6)), np.sort(rng.uniform(2, 8, 9))
  fine = np.linspace(0, 10, 200_001)
  for i, row in enumerate(resampling.overlaps(new, old)):
    inside = (fine >= new[i]) & (fine < new[i + 1])
    for j, length in enumerate(row):
      both = inside & (fine >= old[j]) & (fine < old[j + 1])
      assert length == pytest.approx(10 * both.mean(), abs=1e-3)


def test_neighbors_keep_a_constant():
  matrix = resampling.neighbors(5, 0.7)
  np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-6)
  assert (matrix.argmax(axis=1) == np.arange(5)).all()


def test_a_page_tells_at_most_fourteen_cells_apart(rng):
  assert resampling.page_grid((25, 7)) == (14, 7)
  table = rng.normal(size=(28, 7))
  pooled = resampling.page_pooling((28, 7)) @ table.ravel()
  np.testing.assert_allclose(pooled, table.reshape(14, 2, 7).mean(axis=1).ravel(), atol=1e-6)
