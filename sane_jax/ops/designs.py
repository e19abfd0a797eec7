"""Mask designs: which masks are shown, and how the map is read off the scores.

A perturbation explanation is a mask design with a linear readout. Mask `i` is a pure function of
`(key, i)`: a few random numbers are drawn, and the mask is made of them. With it come two small
feature vectors, `x_i` [p] and `t_i` [q], and all that is ever kept of the N masked images are the
sums

    gram     G = Σ_i x_i t_iᵀ   [p q]      (of the masks alone)
    response H = Σ_i x_i y_iᵀ   [p k]      (y_i: unit embedding of masked image i, less that of
                                            the whole image; or a score, less the whole's)

from which `readout(G, H)` [c k] is the effect of each cell: linear in H, hence in the y_i.
`y` is relative to the whole image, so every readout has a sign: positive where showing the cell
raises the score.

Shapes: `h w` pixels · `c` cells · `p q` features · `k` what y holds (embedding axes or references).
"""

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from sane_jax.ops import resampling

# Superpixel counts differ between images; padding them to a multiple of this saves compilations.
CELL_BUCKET = 32
REPLICATES = 10
LIME_SAMPLES = 1000  # of the paper's code, by which its ridge goes


class Cells(NamedTuple):
  """The regions of one image that masks switch.

  Attributes:
    labels: the cell of each pixel, in [0, c).
    valid: False for cells that are padding (they own no pixel).
  """

  labels: Int[Array, "h w"]
  valid: Bool[Array, " c"]


@runtime_checkable
class Design(Protocol):
  """What the kernel asks of a design. Implementations are frozen, hashable and hold no arrays.

  Attributes:
    default_fill: what is shown where the mask is 0, unless the caller says otherwise.
    num_masks: N.
    num_fixed: how many leading masks are set rather than drawn; they belong to every replicate.
    replicate_size: how many drawn masks make one replicate for the standard error.
    grid: (rows, columns) of the cells, row-major, or None for superpixels.
  """

  default_fill: ClassVar[str]

  @property
  def num_masks(self) -> int: ...
  @property
  def num_fixed(self) -> int: ...
  @property
  def replicate_size(self) -> int: ...
  @property
  def grid(self) -> tuple[int, int] | None: ...

  def reference_masks(self) -> tuple["Design", int, int]:
    """What masks the reference when both images are masked: a design, its first mask, how many."""
    ...

  def draw(self, key: PRNGKeyArray, cells: Cells, index: Int[Array, ""]) -> Any:
    """What is random in mask `index`: a pytree of small arrays."""
    ...

  def show(
    self, drawn: Any, cells: Cells, index: Int[Array, ""]
  ) -> tuple[Float[Array, "h w"], Float[Array, " p"], Float[Array, " q"]]:
    """Mask `index` (1 keeps the pixel), made of what was drawn, with its features x and t."""
    ...

  def readout(
    self, cells: Cells, gram: Float[Array, "p q"], response: Float[Array, "p k"]
  ) -> Float[Array, "c k"]:
    """Effect of each cell, from the sums over all masks."""
    ...

  def upsample(self, values: Float[Array, " c"], cells: Cells) -> Float[Array, "h w"]:
    """A map over the image's pixels from one value a cell."""
    ...


@functools.partial(jax.jit, static_argnames="design")
def draw(design: Design, key: PRNGKeyArray, cells: Cells) -> Any:
  """What is random in each of the N masks: `design.draw` of all, stacked.

  A program of its own, compiled once for a design: it takes the compiler longer than the rest of
  the kernel, which is compiled anew for each model and size of chunk.
  """
  return jax.vmap(lambda index: design.draw(key, cells, index))(jnp.arange(design.num_masks))


def mask(
  design: Design, key: PRNGKeyArray, cells: Cells, index: Int[Array, ""]
) -> tuple[Float[Array, "h w"], Float[Array, " p"], Float[Array, " q"]]:
  """Mask `index` (1 keeps the pixel) with its features x and t."""
  return design.show(design.draw(key, cells, index), cells, index)


# --- cells ----------------------------------------------------------------------------------------


def grid_cells(shape: tuple[int, int], grid: tuple[int, int]) -> Cells:
  """Rectangular cells that tile an image of `shape` in `grid` (rows, columns), row-major.

  Raises:
    ValueError: more rows or columns than pixels.
  """
  if grid[0] > shape[0] or grid[1] > shape[1]:
    raise ValueError(f"a grid of {grid} cells does not fit an image of {shape} pixels; use fewer")
  rows, columns = (np.arange(n) * g // n for n, g in zip(shape, grid, strict=True))
  labels = rows[:, None] * grid[1] + columns[None, :]
  return Cells(jnp.asarray(labels, jnp.int32), jnp.ones(grid[0] * grid[1], bool))


def superpixel_cells(image: np.ndarray) -> Cells:
  """Quickshift superpixels of an image [h w 3] in [0, 1] as cells, padded to a multiple of 32.

  Kernel size 4, maximal distance 200, ratio 0.2: what the LIME package uses for images.
  """
  from skimage.segmentation import quickshift  # takes a second to import; most designs need none

  labels = quickshift(np.asarray(image, np.float64), kernel_size=4, max_dist=200, ratio=0.2, rng=0)
  labels = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
  count = int(labels.max()) + 1
  padded = -(-count // CELL_BUCKET) * CELL_BUCKET
  return Cells(jnp.asarray(labels, jnp.int32), jnp.arange(padded) < count)


def design_cells(design: Design, image: np.ndarray) -> Cells:
  """The cells that `design` switches on this image [h w 3]."""
  if design.grid is None:
    return superpixel_cells(image)
  return grid_cells(image.shape[:2], design.grid)


def _interpolation(size: int, cells: int) -> np.ndarray:
  """Matrix [size cells] of linear interpolation from cell centres to pixel centres, ends held."""
  return resampling.linear((np.arange(size) + 0.5) * cells / size, cells).astype(np.float32)


def _smooth_upsample(values: Float[Array, " c"], grid: tuple[int, int], cells: Cells):
  """Bilinear interpolation of the grid's values to the pixels."""
  h, w = cells.labels.shape
  up = functools.partial(jnp.matmul, precision="highest")
  return up(up(_interpolation(h, grid[0]), values.reshape(grid)), _interpolation(w, grid[1]).T)


def _permutation(key: PRNGKeyArray, n: int) -> Int[Array, " n"]:
  """A random order of 0 .. n − 1. One sort, where jax.random.permutation takes several."""
  return jnp.argsort(jax.random.uniform(key, (n,)))


def _replicate_size(drawn: int) -> int:
  return max(1, -(-drawn // REPLICATES))


# --- designs --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Rise:
  """Random smooth masks: Petsiuk et al., *RISE*, BMVC 2018 (arXiv 1806.07421).

  A grid of `mask_cells`² Bernoulli(`probability`) cells is enlarged bilinearly and shifted at
  random by less than a cell. With m̄_ic the mean of mask i over map cell c,

      map_c = Σ_i s_i m̄_ic / Σ_i m̄_ic  −  mean_i s_i.

  The first term is the paper's map averaged over cell c; the constant moves no pixel past another
  and makes zero mean "no effect". `grid` is the resolution of the map, not of the masks.
  """

  num_masks: int = 2000
  mask_cells: int = 8
  probability: float = 0.5
  grid: tuple[int, int] = (28, 28)
  num_reference_masks: int = 30
  default_fill: ClassVar[str] = "mean"

  def __post_init__(self):
    _check_count("rise", self.num_masks)
    if not 0 < self.probability < 1 or self.mask_cells < 2:
      raise ValueError(
        f"rise needs 0 < probability < 1 and at least 2 mask cells; given {self.probability} and"
        f" {self.mask_cells}"
      )

  num_fixed = property(lambda self: 0)
  replicate_size = property(lambda self: _replicate_size(self.num_masks))

  def reference_masks(self):
    return self, 0, self.num_reference_masks

  def _step(self, size: int) -> int:
    return -(-size // self.mask_cells)  # pixels a mask cell, rounded up

  def draw(self, key, cells, index):
    pattern_key, *shift_keys = jax.random.split(jax.random.fold_in(key, index), 3)
    on = jax.random.bernoulli(pattern_key, self.probability, (self.mask_cells, self.mask_cells))
    return on, [
      jax.random.randint(shift_key, (), 0, self._step(size))
      for shift_key, size in zip(shift_keys, cells.labels.shape, strict=True)
    ]

  def show(self, drawn, cells, index):
    on, shifts = drawn
    on, n, sides = on.astype(jnp.float32), self.mask_cells, []
    for size, map_cells, shift in zip(cells.labels.shape, self.grid, shifts, strict=True):
      step = self._step(size)  # n + 1 of them cover any shift
      whole = jnp.asarray(_interpolation((n + 1) * step, n))
      side = jax.lax.dynamic_slice_in_dim(whole, shift, size)
      sides.append((side, jnp.asarray(resampling.averaging(size, map_cells)) @ side))
    (rows, row_means), (columns, column_means) = sides
    # The mask is separable in its cells, and so are its means over the map's cells.
    coverage = (row_means @ on @ column_means.T).ravel()
    # Coverage less its expectation: sums stay small, and little is lost when they are subtracted.
    x = jnp.concatenate([jnp.ones(1), coverage - self.probability])
    return rows @ on @ columns.T, x, jnp.ones(1)

  def readout(self, cells, gram, response):
    count, excess = gram[:1], gram[1:]
    shown = excess + self.probability * count  # Σ m̄
    seen = shown > 1e-6  # a cell that no mask ever showed has nothing to say: zero
    return jnp.where(seen, (response[1:] - excess * response[:1] / count) / shown, 0)

  def upsample(self, values, cells):
    return _smooth_upsample(values, self.grid, cells)


@dataclasses.dataclass(frozen=True)
class SlidingWindow:
  """An occluder at every position: Zeiler and Fergus, ECCV 2014 (arXiv 1311.2901).

      map_c = s(whole) − s(occluded at position c)

  which is the paper's 1 − score but for the constant 1 − s(whole), so that an occlusion that
  raises the score is negative. `window` and `padding` are fractions of the side: at 112 pixels
  the defaults are 32 and 8, and 25 positions a side give a stride of 4. A value is drawn at the
  middle of its window, those between bilinearly; the outermost middles are 8 pixels off the edge.
  """

  grid: tuple[int, int] = (25, 25)
  window: float = 32 / 112
  padding: float = 8 / 112
  default_fill: ClassVar[str] = "mean"

  def __post_init__(self):
    if not 0 < self.window < 1 or min(self.grid) < 2:
      raise ValueError(
        "sliding_window needs 0 < window < 1 (a fraction of the side) and at least 2 x 2"
        f" positions; given {self.window} and {self.grid}"
      )

  num_masks = property(lambda self: self.grid[0] * self.grid[1])
  num_fixed = property(lambda self: self.num_masks)  # nothing is drawn: every position is shown
  replicate_size = property(lambda self: 1)

  def reference_masks(self):
    # 6 x 6 positions inside the image: a stride of 16 at 112 pixels.
    return dataclasses.replace(self, grid=(6, 6), padding=0.0), 0, 36

  def draw(self, key, cells, index):
    return ()

  def _windows(self, size: int, count: int) -> tuple[int, np.ndarray]:
    """Width of a window along a side of `size` pixels, and where each of `count` begins."""
    window, padding = max(1, round(self.window * size)), round(self.padding * size)
    starts = np.round(np.linspace(-padding, size + padding - window, count)).astype(int)
    return window, starts

  def show(self, drawn, cells, index):
    hidden = []
    for size, count, position in zip(
      cells.labels.shape, self.grid, (index // self.grid[1], index % self.grid[1]), strict=True
    ):
      window, starts = self._windows(size, count)
      offset = jnp.arange(size) - jnp.asarray(starts)[position]
      hidden.append((offset >= 0) & (offset < window))
    mask = 1.0 - (hidden[0][:, None] & hidden[1][None, :]).astype(jnp.float32)
    x = (jnp.arange(self.num_masks) == index).astype(jnp.float32)
    return mask, x, jnp.ones(1)

  def readout(self, cells, gram, response):
    return -response / jnp.maximum(gram, 1)

  def upsample(self, values, cells):
    sides = []
    for size, count in zip(cells.labels.shape, self.grid, strict=True):
      window, starts = self._windows(size, count)
      at = np.interp(np.arange(size) + 0.5, starts + window / 2, np.arange(count) + 0.5)
      sides.append(resampling.linear(at, count).astype(np.float32))
    up = functools.partial(jnp.matmul, precision="highest")
    return up(up(sides[0], values.reshape(self.grid)), sides[1].T)


@dataclasses.dataclass(frozen=True)
class Lime:
  """Weighted ridge on superpixels: Ribeiro et al., KDD 2016 (arXiv 1602.04938).

  Superpixels are on or off with probability 1/2 (the first sample shows all). With d_i the cosine
  distance of sample i to "all on" and weights w_i = sqrt(exp(−d_i² / kernel_width²)),

      map = argmin_β  Σ_i w_i (s_i − β₀ − z_i·β)² + λ ‖β‖²,   λ = ridge · N / 1000,

  linear in the scores: (Σ w x xᵀ + λ I₊)⁻¹ Σ w x s with x = (1, z). At the paper's 1,000 samples
  λ is `ridge`; with fewer it is less, or the map would shrink with their number.

  With `grid` the cells are a grid's instead of superpixels.
  """

  num_masks: int = 1000
  kernel_width: float = 0.25
  ridge: float = 1.0
  grid: tuple[int, int] | None = None
  num_reference_masks: int = 30
  default_fill: ClassVar[str] = "black"

  def __post_init__(self):
    _check_count("lime", self.num_masks)
    if self.kernel_width <= 0 or self.ridge < 0:
      raise ValueError(
        f"lime needs kernel_width > 0 and ridge >= 0; given {self.kernel_width} and {self.ridge}"
      )

  num_fixed = property(lambda self: 1)
  replicate_size = property(lambda self: _replicate_size(self.num_masks - 1))

  def reference_masks(self):
    return self, 1, self.num_reference_masks

  def draw(self, key, cells, index):
    return jax.random.bernoulli(jax.random.fold_in(key, index), 0.5, cells.valid.shape)

  def show(self, drawn, cells, index):
    z = ((drawn | (index == 0)) & cells.valid).astype(jnp.float32)
    distance = 1 - jnp.sqrt(z.sum() / cells.valid.sum())
    weight = jnp.sqrt(jnp.exp(-((distance / self.kernel_width) ** 2)))
    t = jnp.concatenate([jnp.ones(1), z])
    return z[cells.labels], weight * t, t

  def readout(self, cells, gram, response):
    # Padding cells are never on: a one on their diagonal leaves them at zero.
    penalty = jnp.where(cells.valid, self.ridge * self.num_masks / LIME_SAMPLES, 1.0)
    penalty = jnp.concatenate([jnp.zeros(1), penalty])
    return jnp.linalg.solve(gram + jnp.diag(penalty), response)[1:]

  def upsample(self, values, cells):
    return values[cells.labels]


@dataclasses.dataclass(frozen=True)
class KernelShap:
  """Shapley values by weighted regression: Lundberg and Lee, NeurIPS 2017 (arXiv 1705.07874).

  Subset sizes are drawn from the Shapley kernel, p(k) ∝ 1 / (k (c − k)), and every subset comes
  with its complement (paired sampling: Covert and Lee, AISTATS 2021, arXiv 2012.01536). With
  A = mean z zᵀ and b = mean z (s(z) − s(∅)),

      map = A⁻¹ (b − 1 (1ᵀA⁻¹b − s(all) + s(∅)) / (1ᵀA⁻¹1)),

  so the map sums to s(all) − s(∅). The first mask hides everything. Players are the cells of
  `grid`, or superpixels where it is None.
  """

  num_masks: int = 1001
  grid: tuple[int, int] | None = (8, 8)
  num_reference_masks: int = 30
  default_fill: ClassVar[str] = "mean"

  def __post_init__(self):
    _check_count("kernel_shap", self.num_masks)
    if self.num_masks % 2 == 0:
      raise ValueError(
        "kernel_shap shows one empty mask and then pairs, an odd number of masks; given"
        f" {self.num_masks}: use {self.num_masks + 1}"
      )

  num_fixed = property(lambda self: 1)

  @property
  def replicate_size(self) -> int:
    size = _replicate_size(self.num_masks - 1)
    return size + size % 2  # a pair stays in one replicate

  def reference_masks(self):
    return self, 1, self.num_reference_masks

  def draw(self, key, cells, index):
    size_key, order_key = jax.random.split(jax.random.fold_in(key, (index + 1) // 2))
    players = cells.valid.sum()
    sizes = jnp.arange(1, cells.valid.size)
    kernel = -jnp.log(sizes) - jnp.log(jnp.maximum(players - sizes, 1))
    size = sizes[jax.random.categorical(size_key, jnp.where(sizes < players, kernel, -jnp.inf))]
    order = jnp.where(cells.valid, jax.random.uniform(order_key, cells.valid.shape), jnp.inf)
    chosen = order < jnp.sort(order)[size]
    return jnp.where(index % 2 == 1, chosen, ~chosen) & cells.valid & (index > 0)

  def show(self, drawn, cells, index):
    z = drawn.astype(jnp.float32)
    empty = (index == 0).astype(jnp.float32)
    return z[cells.labels], jnp.concatenate([z, empty[None]]), z

  def readout(self, cells, gram, response):
    gram, response, empty = gram[:-1], response[:-1], response[-1:]
    valid = cells.valid.astype(jnp.float32)[:, None]
    shown = jnp.diag(gram)[:, None]  # z is 0 or 1, so Σ z is the diagonal of Σ z zᵀ
    # Cells never sampled, and padding, get a one on the diagonal and stay at zero.
    gram = gram + jnp.diag(jnp.where(jnp.diag(gram) > 0, 0.0, 1.0))
    solved = jnp.linalg.solve(gram, jnp.concatenate([response - shown * empty, valid], axis=1))
    free, ones = solved[:, :-1], solved[:, -1:]
    excess = free.sum(axis=0) + empty[0]  # s(all) is the zero of y, so s(all) − s(∅) = −y(∅)
    return (free - ones * excess / ones.sum()) * valid

  def upsample(self, values, cells):
    return values[cells.labels]


@dataclasses.dataclass(frozen=True)
class Hadamard:
  """Fold-over Hadamard design: every cell is switched as often with as without every other.

  A replicate is a Sylvester-Hadamard matrix of order n ≥ c (n a power of two) with columns and
  rows permuted and columns' signs flipped at random, each row followed by its complement: 2n
  masks (Plackett and Burman, Biometrika 1946; fold-over: Box and Wilson 1951). The main effects

      map_c = mean of s with cell c shown − mean of s with cell c hidden

  are free of one another and, thanks to the complements, of every interaction of two cells. Cells
  are hard-edged, and the map is constant over a cell. Effects are averaged over neighbours by a
  Gaussian of `smoothing` cells: a cell's own estimate is noisy, and its neighbours know of it.
  """

  num_masks: int = 256
  grid: tuple[int, int] = (8, 8)
  smoothing: float = 0.5
  num_reference_masks: int = 30
  default_fill: ClassVar[str] = "mean+blur"

  def __post_init__(self):
    if self.num_masks < 1 or self.num_masks % self.replicate_size:
      more = self.num_masks + -self.num_masks % self.replicate_size or self.replicate_size
      raise ValueError(
        f"hadamard on {self.grid[0]} x {self.grid[1]} cells takes a multiple of"
        f" {self.replicate_size} masks; given {self.num_masks}: use {more}"
      )
    if not self.smoothing >= 0:
      raise ValueError(f"smoothing is a number of cells, 0 for none; given {self.smoothing}")

  num_fixed = property(lambda self: 0)

  @property
  def order(self) -> int:
    """n, the smallest power of two that is no less than the number of cells."""
    return 1 << (self.grid[0] * self.grid[1] - 1).bit_length()

  @property
  def replicate_size(self) -> int:
    return 2 * self.order

  def reference_masks(self):
    return self, 0, self.num_reference_masks

  def draw(self, key, cells, index):
    n = self.order
    column_key, row_key, sign_key = jax.random.split(jax.random.fold_in(key, index // (2 * n)), 3)
    columns = _permutation(column_key, n)[: cells.valid.size]
    row = _permutation(row_key, n)[(index % (2 * n)) // 2]
    flips = jax.random.bernoulli(sign_key, 0.5, cells.valid.shape)
    # Entry (row, column) of the Sylvester matrix is (-1)^popcount(row & column).
    return (jax.lax.population_count(row & columns) + flips + index) % 2 == 1

  def show(self, drawn, cells, index):
    z = drawn.astype(jnp.float32)
    return z[cells.labels], jnp.concatenate([jnp.ones(1), 2 * z - 1]), jnp.ones(1)

  def readout(self, cells, gram, response):
    effects = 2 * response[1:] / gram[:1]
    if not self.smoothing:
      return effects
    rows, columns = (jnp.asarray(resampling.neighbors(n, self.smoothing)) for n in self.grid)
    table = effects.reshape(*self.grid, -1)
    return jnp.einsum("ri,cj,ijk->rck", rows, columns, table, precision="highest").reshape(
      effects.shape
    )

  def upsample(self, values, cells):
    return values[cells.labels]


@dataclasses.dataclass(frozen=True)
class Random:
  """A map of Gaussian noise, the floor of every comparison. It shows the model nothing."""

  grid: tuple[int, int] = (8, 8)
  num_masks: ClassVar[int] = 0
  num_fixed: ClassVar[int] = 0
  replicate_size: ClassVar[int] = 1
  default_fill: ClassVar[str] = "mean"

  def reference_masks(self):
    return self, 0, 0

  def draw(self, key, cells, index):
    return ()

  def show(self, drawn, cells, index):
    return jnp.ones(cells.labels.shape), jnp.ones(1), jnp.ones(1)

  def readout(self, cells, gram, response):
    return jnp.zeros((cells.valid.size, response.shape[1]))  # the caller draws the noise

  def upsample(self, values, cells):
    return values[cells.labels]


def jackknife_share(design: Design, cells: Cells) -> Float[Array, ""] | float:
  """What the variance of an estimate is, as a share of the jackknife's, in expectation.

  A regression fits its own noise: residuals are too small by a share p / n of unknowns to
  observations, and leaving some out makes up for that twice (MacKinnon and White, J. Econometrics
  1985). So the jackknife is too large by 1 / (1 − p / n): 1.7 times in the standard error of
  KernelSHAP with 201 masks, whose observations are pairs of masks.
  """
  players = cells.valid.sum()
  if isinstance(design, KernelShap):
    return jnp.maximum(1 - (players - 1) / ((design.num_masks - 1) / 2), 0.1)
  if isinstance(design, Lime):
    return jnp.maximum(1 - players / (design.num_masks - 1), 0.1)
  return 1.0


def _check_count(name: str, num_masks: int) -> None:
  if num_masks < 2:
    raise ValueError(f"{name} needs at least 2 masks; given {num_masks}")


DESIGNS = {
  "rise": Rise,
  "sliding_window": SlidingWindow,
  "lime": Lime,
  "kernel_shap": KernelShap,
  "hadamard": Hadamard,
  "random": Random,
}
