"""Maps at another size: one matrix for each axis, and what is made of two of them."""

import numpy as np
from scipy import ndimage

PAGE_GRID = 14  # cells a side, at most, that a page tells apart


# --- matrices of one axis -------------------------------------------------------------------------


def averaging(size: int, cells: int) -> np.ndarray:
  """Matrix [cells size] that averages the pixels of each of the equal cells of one axis."""
  member = (np.arange(size) * cells // size)[None, :] == np.arange(cells)[:, None]
  return (member / member.sum(axis=1, keepdims=True)).astype(np.float32)


def linear(at: np.ndarray, cells: int) -> np.ndarray:
  """Matrix [n cells] of linear interpolation between the centres of cells, ends held.

  Args:
    at: [n] positions, in cells: 0 is where the first one begins.
    cells: of the axis.
  """
  position = np.clip(at - 0.5, 0, cells - 1)
  low = np.minimum(position.astype(int), max(cells - 2, 0))
  matrix = np.zeros((len(at), cells))
  matrix[np.arange(len(at)), low] = 1 - (position - low)
  if cells > 1:
    matrix[np.arange(len(at)), low + 1] = position - low
  return matrix


def overlaps(new: np.ndarray, old: np.ndarray) -> np.ndarray:
  """Matrix [n m] of the lengths that n cells share with m others; both given by their edges."""
  shared = np.minimum(new[1:, None], old[1:]) - np.maximum(new[:-1, None], old[:-1])
  return np.maximum(shared, 0)


def neighbors(cells: int, sigma: float) -> np.ndarray:
  """Matrix [cells cells] of a Gaussian of `sigma` cells; beyond the ends the last cell goes on."""
  reach = np.arange(-int(4 * sigma + 0.5), int(4 * sigma + 0.5) + 1)
  weights = np.exp(-((reach / sigma) ** 2) / 2)
  matrix = np.zeros((cells, cells), np.float32)
  for cell in range(cells):
    np.add.at(matrix[cell], np.clip(cell + reach, 0, cells - 1), weights / weights.sum())
  return matrix


# --- maps -----------------------------------------------------------------------------------------


def enlarge(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Maps [n h w] at `size`, linear between the centres of their cells, edges held."""
  zoom = (1, size[0] / maps.shape[1], size[1] / maps.shape[2])
  return np.asarray(ndimage.zoom(maps, zoom, order=1, mode="nearest", grid_mode=True))


def resample(maps: np.ndarray, size: tuple[int, int], crop_fraction: float = 1.0) -> np.ndarray:
  """Mean of maps [n i j], even within each of their cells, over the area of each position [n h w].

  What overlaps counts by its share, so that 8 cells on 7 positions are not shifted. Outside of what
  maps cover they are 0.

  Args:
    maps: of the middle of images.
    size: (h, w) over the whole images.
    crop_fraction: middle share of each side that the maps cover, in (0, 1].
  """

  def shares(cells: int, positions: int) -> np.ndarray:
    ends = (1 - crop_fraction) / 2 + crop_fraction * np.arange(cells + 1) / cells
    return positions * overlaps(np.arange(positions + 1) / positions, ends)

  rows, columns = (shares(maps.shape[axis + 1], size[axis]) for axis in (0, 1))
  return np.einsum("hi,nij,wj->nhw", rows, maps, columns, optimize=True)


def page_grid(grid: tuple[int, int]) -> tuple[int, int]:
  """The cells of a grid that a page tells apart: its own, or at most 14 x 14."""
  return min(grid[0], PAGE_GRID), min(grid[1], PAGE_GRID)


def page_pooling(grid: tuple[int, int]) -> np.ndarray:
  """Matrix [page c] by which the cells of `page_grid` average those of the grid, row-major."""
  rows, columns = (averaging(g, p) for g, p in zip(grid, page_grid(grid), strict=True))
  return np.kron(rows, columns)
