"""Maps at another size."""

import numpy as np
from scipy import ndimage


def enlarge(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Maps [n h w] at `size`, linear between the centres of their cells, edges held."""
  zoom = (1, size[0] / maps.shape[1], size[1] / maps.shape[2])
  return np.asarray(ndimage.zoom(maps, zoom, order=1, mode="nearest", grid_mode=True))


def spread(maps: np.ndarray, size: tuple[int, int], covered: float = 1.0) -> np.ndarray:
  """Mean of maps [n i j], even within each of their cells, over the area of each position [n h w].

  What overlaps counts by its share, so that 8 cells on 7 positions are not shifted. Outside of what
  maps cover they are 0.

  Args:
    maps: of the middle of images.
    size: (h, w) over the whole images.
    covered: middle share of each side that the maps cover, in (0, 1].
  """

  def overlaps(cells: int, positions: int) -> np.ndarray:
    ends = (1 - covered) / 2 + covered * np.arange(cells + 1) / cells
    edges = np.arange(positions + 1)[:, None] / positions
    shared = np.minimum(ends[1:], edges[1:]) - np.maximum(ends[:-1], edges[:-1])
    return positions * np.maximum(shared, 0)

  rows, columns = (overlaps(maps.shape[axis + 1], size[axis]) for axis in (0, 1))
  return np.einsum("hi,nij,wj->nhw", rows, maps, columns, optimize=True)
