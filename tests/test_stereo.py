"""Real photos with a known answer: which part of a stereo pair is which."""

import numpy as np
import pytest
from skimage import data

import sane_jax

CELLS = 8


def true_cells(disparity, shape):
  """For each cell of the left image: (row, column) of its content in the mirrored right one.

  The median over the cell's pixels of where the true disparity puts them, in cells; NaN where no
  disparity is known. Crop and mirror are the test's own: the centre square.
  """
  h, w = shape
  side, left = h, (w - h) // 2
  rows, columns = np.mgrid[:h, :w]
  there = columns - disparity  # column in the right image
  known = np.isfinite(disparity)
  out = np.full((CELLS, CELLS, 2), np.nan)
  cell = ((rows * CELLS) // side, ((columns - left) * CELLS) // side)
  for i in range(CELLS):
    for j in range(CELLS):
      inside = known & (cell[0] == i) & (cell[1] == j)
      if inside.sum() < 50:
        continue
      position = (np.median(there[inside]) - left) / side * CELLS
      out[i, j] = i + 0.5, CELLS - position  # mirrored
  return out


@pytest.mark.parametrize(("num_masks", "least"), [(512, 0.90)])
def test_correspondence_finds_the_other_view(num_masks, least):
  left, right, disparity = data.stereo_motorcycle()
  model = sane_jax.load_model("efficientnet_lite0", image_size=224, crop_fraction=1.0)
  explainer = sane_jax.Explainer(model, design="hadamard", num_masks=num_masks)
  e = explainer.explain(left, right[:, ::-1])
  truth = true_cells(disparity, left.shape[:2])
  best = e.correspondence.argmax(axis=1)
  found = np.stack([best // CELLS, best % CELLS], axis=-1).reshape(CELLS, CELLS, 2) + 0.5
  # Cells whose content is in the other photo at all.
  seen = np.isfinite(truth).all(-1) & (truth[..., 1] > 0) & (truth[..., 1] < CELLS)
  assert seen.sum() > 50
  close = np.abs(found - np.floor(truth) - 0.5).max(-1) <= 1
  assert close[seen].mean() >= least
  # Position alone, without the mirror undone, is wrong.
  own = np.stack(np.mgrid[:CELLS, :CELLS], axis=-1) + 0.5
  assert (np.abs(own - np.floor(truth) - 0.5).max(-1) <= 1)[seen].mean() < 0.4
