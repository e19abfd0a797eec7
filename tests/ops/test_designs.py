"""Designs: what their masks look like, and that their readouts are the methods they name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from sklearn.linear_model import Ridge

from sane_jax.ops import designs, effects

SHAPE = (28, 28)
KEY = jax.random.key(3)
ALL = [
  designs.Rise(num_masks=40),
  designs.SlidingWindow(grid=(7, 7)),
  designs.Lime(num_masks=60, grid=(4, 4)),
  designs.KernelShap(num_masks=61, grid=(4, 4)),
  designs.Hadamard(num_masks=64, grid=(4, 4)),
]


def all_masks(design, key=KEY, cells=None):
  cells = cells or designs.grid_cells(SHAPE, design.grid)
  indices = jnp.arange(design.num_masks)
  out = jax.vmap(lambda i: designs.mask(design, key, cells, i))(indices)
  return [np.asarray(o, np.float64) for o in out]


def read(design, x, t, y, key=KEY, cells=None):
  cells = cells or designs.grid_cells(SHAPE, design.grid)
  gram, response = (jnp.asarray(x.T @ v, jnp.float32) for v in (t, y))
  return np.asarray(design.readout(cells, gram, response))


@pytest.mark.parametrize("design", ALL, ids=lambda d: type(d).__name__)
def test_masks_are_in_range_and_a_function_of_key_and_index(design):
  masks, _, _ = all_masks(design)
  assert masks.shape == (design.num_masks, *SHAPE)
  assert masks.min() >= 0
  assert masks.max() <= 1 + 1e-6
  cells = designs.grid_cells(SHAPE, design.grid)
  alone = designs.mask(design, KEY, cells, jnp.int32(7))[0]  # not vmapped, not in order
  np.testing.assert_allclose(alone, masks[7], atol=1e-6)
  if not isinstance(design, designs.SlidingWindow):
    other, _, _ = all_masks(design, jax.random.key(4))
    assert np.abs(other - masks).max() > 0.5


def test_rise_masks_are_shifted_bilinear_enlargements():
  """Against the recipe of the RISE paper, written out with loops."""
  design = designs.Rise(num_masks=6, mask_cells=4)
  masks, x, _ = all_masks(design)
  for index in range(6):
    key, *shift_keys = jax.random.split(jax.random.fold_in(KEY, index), 3)
    grid = np.asarray(jax.random.bernoulli(key, 0.5, (4, 4)), float)
    shifts = [int(jax.random.randint(k, (), 0, 7)) for k in shift_keys]
    want = np.zeros(SHAPE)
    for r in range(28):
      for c in range(28):
        y, z = (
          np.clip((p + s + 0.5) * 4 / 35 - 0.5, 0, 3) for p, s in zip((r, c), shifts, strict=True)
        )
        i, j = min(int(y), 2), min(int(z), 2)
        fy, fz = y - i, z - j
        want[r, c] = (grid[i, j] * (1 - fy) + grid[i + 1, j] * fy) * (1 - fz) + (
          grid[i, j + 1] * (1 - fy) + grid[i + 1, j + 1] * fy
        ) * fz
    np.testing.assert_allclose(masks[index], want, atol=1e-6)
    np.testing.assert_allclose(x[index, 1:].reshape(SHAPE), want - 0.5, atol=1e-6)


def test_rise_readout_is_the_coverage_normalised_mean(rng):
  design = designs.Rise(num_masks=40)
  masks, x, t = all_masks(design)
  scores = rng.normal(size=(40, 2))
  want = np.einsum("nhw,nk->hwk", masks, scores) / masks.sum(0)[..., None] - scores.mean(0)
  np.testing.assert_allclose(read(design, x, t, scores), want.reshape(-1, 2), rtol=1e-4, atol=1e-6)


def test_rise_probability_and_coverage():
  masks, _, _ = all_masks(designs.Rise(num_masks=400, probability=0.3))
  assert abs(masks.mean() - 0.3) < 0.02


def test_sliding_window_at_the_papers_size():
  design = designs.SlidingWindow()
  masks, _, _ = all_masks(design, cells=designs.grid_cells((112, 112), design.grid))
  assert design.num_masks == 625
  for index in (0, 30, 312, 624):
    i, j = divmod(index, 25)
    want = np.ones((112 + 16, 112 + 16))
    want[4 * i : 4 * i + 32, 4 * j : 4 * j + 32] = 0  # stride 4 in an image padded by 8
    np.testing.assert_array_equal(masks[index], want[8:-8, 8:-8])
  reference, start, count = design.reference_masks()
  assert (start, count) == (0, 36)
  masks, _, _ = all_masks(reference, cells=designs.grid_cells((112, 112), reference.grid))
  want = np.ones((112, 112))
  want[16:48, 80:112] = 0  # position (1, 5), stride 16
  np.testing.assert_array_equal(masks[1 * 6 + 5], want)


def test_sliding_window_readout_is_the_drop():
  design = designs.SlidingWindow(grid=(7, 7))
  _, x, t = all_masks(design)
  y = np.arange(49.0)[:, None]
  np.testing.assert_allclose(read(design, x, t, y), -y)


def test_lime_is_weighted_ridge(rng):
  """Against scikit-learn, with weights from the paper's formula on the recovered samples."""
  design = designs.Lime(num_masks=60, grid=(4, 4), ridge=0.7, kernel_width=0.3)
  masks, x, t = all_masks(design)
  z = masks[:, ::7, ::7].reshape(60, 16)  # one pixel of each 7 x 7 cell
  assert z[0].all()
  assert 0.4 < z[1:].mean() < 0.6
  cosine = z.sum(1) / (np.linalg.norm(z, axis=1) * 4)
  weights = np.sqrt(np.exp(-((1 - cosine) ** 2) / 0.3**2))
  scores = rng.normal(size=(60, 2))
  want = Ridge(alpha=0.7 * 60 / 1000).fit(z, scores, sample_weight=weights).coef_.T
  np.testing.assert_allclose(read(design, x, t, scores), want, rtol=1e-4, atol=1e-5)


def test_kernel_shap_solves_the_constrained_regression(rng):
  """Against the KKT system in float64; and the values add up."""
  design = designs.KernelShap(num_masks=61, grid=(4, 4))
  masks, x, t = all_masks(design)
  z = masks[:, ::7, ::7].reshape(61, 16)
  assert not z[0].any()
  np.testing.assert_array_equal(z[1::2] + z[2::2], 1)  # paired with complements
  y = rng.normal(size=(61, 2))
  full, empty = 0.0, y[0]
  rest = z[1:]
  kkt = np.zeros((17, 17))
  kkt[:16, :16], kkt[:16, 16], kkt[16, :16] = rest.T @ rest, 1, 1
  want = np.linalg.solve(kkt, np.vstack([rest.T @ (y[1:] - empty), full - empty]))[:16]
  got = read(design, x, t, y)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(got.sum(0), full - empty, atol=1e-5)


def test_kernel_shap_draws_sizes_from_the_shapley_kernel():
  design = designs.KernelShap(num_masks=4001, grid=(3, 3))
  z = all_masks(design, cells=designs.grid_cells((27, 27), (3, 3)))[0][1:, ::9, ::9]
  sizes = z.reshape(4000, 9).sum(1).astype(int)
  p = np.array([1 / (k * (9 - k)) for k in range(1, 9)])
  want = p / p.sum()
  got = np.bincount(sizes, minlength=10)[1:9] / 4000
  np.testing.assert_allclose(got, want, atol=4 * np.sqrt(0.25 / 2000))


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
def test_hadamard_is_balanced_and_orthogonal_in_every_replicate(grid):
  design = designs.Hadamard(num_masks=64, grid=grid)
  assert design.replicate_size == 32
  _, x, _ = all_masks(design, cells=designs.grid_cells((28, 30), grid))
  signs = x[:, 1:]
  for part in (signs[:32], signs[32:]):
    np.testing.assert_array_equal(part.T @ part, 32 * np.eye(grid[0] * grid[1]))
    np.testing.assert_array_equal(part.sum(0), 0)
    np.testing.assert_array_equal(part[::2], -part[1::2])  # fold-over
  assert (signs[:32] != signs[32:]).any()  # replicates are drawn apart


def test_hadamard_effect_is_shown_minus_hidden_and_free_of_pairs(rng):
  design = designs.Hadamard(num_masks=64, grid=(4, 4), smoothing=0.0)
  masks, x, t = all_masks(design)
  z = masks[:, ::7, ::7].reshape(64, 16)
  scores = rng.normal(size=(64, 1))
  want = [scores[z[:, c] == 1].mean() - scores[z[:, c] == 0].mean() for c in range(16)]
  np.testing.assert_allclose(read(design, x, t, scores)[:, 0], want, atol=1e-5)
  # Effects of single cells are exact whatever pairs of cells do together.
  beta, pairs = rng.normal(size=16), rng.normal(size=(16, 16))
  s = 2 * z - 1
  scores = z @ beta + np.einsum("nc,cd,nd->n", s, pairs - np.diag(np.diag(pairs)), s)
  np.testing.assert_allclose(read(design, x, t, scores[:, None])[:, 0], beta, atol=1e-4)


def test_hadamard_smooths_over_neighbours_as_scipy_does(rng):
  plain, smooth = (
    designs.Hadamard(num_masks=64, grid=(3, 5), smoothing=sigma) for sigma in (0.0, 0.7)
  )
  _, x, t = all_masks(plain)
  scores = rng.normal(size=(64, 2))
  effects = read(plain, x, t, scores).reshape(3, 5, 2)
  want = ndimage.gaussian_filter(np.asarray(effects), (0.7, 0.7, 0), mode="nearest")
  np.testing.assert_allclose(read(smooth, x, t, scores).reshape(3, 5, 2), want, atol=1e-5)
  with pytest.raises(ValueError, match="a number of cells"):
    designs.Hadamard(smoothing=-1.0)


def test_superpixels_cover_and_padding_owns_no_pixel(photo):
  cells = designs.superpixel_cells(photo)
  labels, valid = np.asarray(cells.labels), np.asarray(cells.valid)
  assert valid.size % designs.CELL_BUCKET == 0
  np.testing.assert_array_equal(np.unique(labels), np.flatnonzero(valid))
  for design in (designs.Lime(num_masks=200), designs.KernelShap(num_masks=201, grid=None)):
    _, x, t = all_masks(design, cells=cells)
    values = read(design, x, t, np.random.default_rng(0).normal(size=(x.shape[0], 1)), cells=cells)
    assert np.isfinite(values).all()
    np.testing.assert_allclose(values[~valid], 0, atol=1e-6)


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda: designs.Hadamard(num_masks=500), "multiple of 128.*use 512"),
    (lambda: designs.Hadamard(num_masks=0), "use 128"),
    (lambda: designs.KernelShap(num_masks=100), "use 101"),
    (lambda: designs.Rise(num_masks=1), "at least 2"),
    (lambda: designs.Rise(probability=1.0), "probability"),
    (lambda: designs.Lime(kernel_width=0.0), "kernel_width"),
    (lambda: designs.SlidingWindow(window=2.0), "window"),
    (lambda: designs.grid_cells((6, 6), (8, 8)), "does not fit"),
  ],
)
def test_settings_that_cannot_be_say_what_would(make, words):
  with pytest.raises(ValueError, match=words):
    make()


def test_chunks_and_blocks_add_up(rng):
  """Any split of the masks gives the sums of all of them, replicate by replicate."""
  for design in [*ALL, designs.Rise(num_masks=25), designs.Lime(num_masks=23, grid=(4, 4))]:
    cells = designs.grid_cells(SHAPE, design.grid)
    n = design.num_masks
    indices = jnp.arange(n)
    _, x, t = jax.vmap(lambda i, d=design, c=cells: designs.mask(d, KEY, c, i))(indices)
    y = jnp.asarray(rng.normal(size=(n, 2)), jnp.float32)
    nothing = jnp.zeros((1, 1, 3))
    masking = effects.Masking((), cells, nothing, nothing[None], jnp.zeros(2))
    block = [
      0
      if i < design.num_fixed
      else (i - design.num_fixed) // design.replicate_size + (design.num_fixed > 0)
      for i in range(n)
    ]
    add = jax.jit(effects.AddToMoments(design).__call__)
    for chunk in (1, 3, 7, 11, n):
      moments = effects.zero_moments(design, cells, 2)
      for start in range(0, n, chunk):
        part = slice(start, min(start + chunk, n))
        moments = add(masking, moments, y[part], (x[part], t[part]), indices[part])
      assert max(block) + 1 == moments.gram.shape[0]
      for b in range(max(block) + 1):
        member = np.array(block) == b
        want = np.asarray(x)[member].T @ np.asarray(y)[member]
        np.testing.assert_allclose(moments.response[b], want, atol=1e-4)
        want = np.asarray(x)[member].T @ np.asarray(t)[member]
        np.testing.assert_allclose(moments.gram[b], want, atol=1e-4)
