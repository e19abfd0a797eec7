"""The kernel: masks are rendered, shown to the model and reduced, chunk by chunk, on the device.

Whatever N is, one chunk of masked images exists at a time, and what is kept of them are the sums
of `designs` per replicate. The same streaming loop serves the insertion and deletion curves.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int
from scipy import special

from sane_jax.ops import designs, programs

# A norm under this is no direction: the cosine is then 0 by definition.
SMALLEST_NORM = 1e-12
SAMPLE = 64  # masks whose y is kept itself


class Moments(NamedTuple):
  """Sums over masks, a block a replicate; block 0 holds the masks that are not drawn, if any.

  `sample` is y of the first masks: how far masked versions move the score, which sums don't tell.
  """

  gram: Float[Array, "blocks p q"]
  response: Float[Array, "blocks p k"]
  sample: Float[Array, "s k"]


class Masking(NamedTuple):
  """What renders masked images: what was drawn for the masks, the regions, the image, its fill."""

  drawn: Any  # a row a mask, see `designs.draw`
  cells: designs.Cells
  image: Float[Array, "h w 3"]
  fill: Float[Array, "f h w 3"]  # they take turns, see `fill_turn`
  whole: Float[Array, " k"]  # what the model gives for the whole image, the zero of y


def normalize(embeddings: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
  """Unit vectors e / ‖e‖; zero where ‖e‖ is (near) zero; NaN stays NaN."""
  norm = jnp.linalg.norm(embeddings, axis=-1, keepdims=True)
  return jnp.where(norm < SMALLEST_NORM, 0.0, embeddings / jnp.maximum(norm, SMALLEST_NORM))


def blend(
  mask: Float[Array, "h w"], image: Float[Array, "h w 3"], fill: Float[Array, "h w 3"]
) -> Float[Array, "h w 3"]:
  """mask · image + (1 − mask) · fill, exact where the mask is 0 or 1."""
  return mask[..., None] * image + (1 - mask[..., None]) * fill


class RenderMasked(NamedTuple):
  """Renders masked images of the given mask indices with the masks' features (x, t).

  `turn` masks in a row are behind one fill. It is even: a mask and its complement share a fill, and
  what the fill itself does to the score cancels.
  """

  design: designs.Design
  turn: int = 2

  def __call__(
    self, masking: Masking, indices: Int[Array, " n"]
  ) -> tuple[Float[Array, "n h w 3"], tuple[Float[Array, "n p"], Float[Array, "n q"]]]:
    drawn = jax.tree.map(lambda a: a[indices], masking.drawn)

    def one(drawn, index):
      mask, x, t = self.design.show(drawn, masking.cells, index)
      fill = masking.fill[(index // self.turn) % masking.fill.shape[0]]
      return blend(mask, masking.image, fill), (x, t)

    return jax.vmap(one)(drawn, indices)


def num_strata(design: designs.Design, num_fills: int) -> int:
  """Between how many fills whole replicates take turns: all of them, or 1 where pairs of masks do.

  Within a part of a Hadamard replicate cells are not orthogonal: were its masks dealt out to
  several fills, what the fills differ by in one cell would be noise in the others. So whole
  replicates take turns where there are as many for each fill, two or more: with one there would be
  no spread to see between masks of the same fill.
  """
  rounds, rest = divmod(design.num_masks, num_fills * design.replicate_size)
  whole = isinstance(design, designs.Hadamard) and rest == 0 and rounds >= 2
  return num_fills if whole else 1


def fill_turn(design: designs.Design, num_fills: int) -> int:
  """How many masks in a row are behind one of several fills."""
  return design.replicate_size if num_strata(design, num_fills) > 1 else 2


def num_blocks(design: designs.Design) -> int:
  """Replicates, and one block more for masks that are not drawn."""
  drawn = design.num_masks - design.num_fixed
  return max(1, (design.num_fixed > 0) + -(-drawn // design.replicate_size))


def _block_of(design: designs.Design, index: Any) -> Any:
  """The block that mask `index` is summed in."""
  block = (index - design.num_fixed) // design.replicate_size
  return jnp.where(index < design.num_fixed, 0, block + (design.num_fixed > 0))


def zero_moments(design: designs.Design, cells: designs.Cells, k: int) -> Moments:
  """Sums over no mask at all, for `k` columns of y."""
  _, x, t = jax.eval_shape(
    functools.partial(designs.mask, design), jax.random.key(0), cells, jnp.int32(0)
  )
  blocks, kept = num_blocks(design), min(SAMPLE, design.num_masks)
  return Moments(
    jnp.zeros((blocks, x.shape[0], t.shape[0])), jnp.zeros((blocks, x.shape[0], k)),
    jnp.zeros((kept, k)),
  )  # fmt: skip


class AddToMoments(NamedTuple):
  """Adds the model's outputs for masked images of consecutive indices to the moments."""

  design: designs.Design

  def __call__(
    self,
    masking: Masking,
    moments: Moments,
    outputs: Float[Array, "n k"],
    features: tuple[Float[Array, "n p"], Float[Array, "n q"]],
    indices: Int[Array, " n"],
  ) -> Moments:
    return _add_to_moments(self.design, moments, features, outputs - masking.whole, indices)


def _add_to_moments(design, moments, features, y, indices):
  x, t = features
  n = x.shape[0]
  # A chunk touches few blocks: only a window of them is updated, so a replicate costs nothing.
  if design.num_fixed == 0 and design.replicate_size % n == 0 and design.num_masks % n == 0:
    width = 1  # every chunk of n starts at a multiple of n, hence lies in one block
  else:
    width = (n - 1) // design.replicate_size + 2 + (design.num_fixed > 0)
  width = min(width, moments.gram.shape[0])
  blocks = _block_of(design, indices)
  first = jnp.minimum(blocks[0], moments.gram.shape[0] - width)
  member = (blocks[:, None] - first == jnp.arange(width)).astype(jnp.float32)
  weighted = jnp.einsum("nw,np->wpn", member, x)

  def add(total, values):
    part = jnp.matmul(weighted, values, precision="highest")
    start = (first, 0, 0)
    old = jax.lax.dynamic_slice(total, start, part.shape)
    return jax.lax.dynamic_update_slice(total, old + part, start)

  sample = moments.sample.at[indices].set(y, mode="drop")
  return Moments(add(moments.gram, t), add(moments.response, y), sample)


class StoreFrom(NamedTuple):
  """Keeps the outputs of masks first, first + 1, ... in rows 0, 1, ..."""

  first: int

  def __call__(self, masking, total, outputs, features, indices):
    return jax.lax.dynamic_update_slice(total, outputs, (indices[0] - self.first, 0))


class Reduction(NamedTuple):
  """What the stream carries: the caller's sums, and what was seen of the model."""

  total: Any
  passes: Int[Array, ""]  # images that went through the encoder
  not_finite: Int[Array, ""]  # of them, embeddings with a NaN or an infinity
  without_direction: Int[Array, ""]  # of them, embeddings of zero norm


def start_reduction(total: Any) -> Reduction:
  """A stream's state before its first image."""
  return Reduction(total, *(jnp.zeros((), jnp.int32) for _ in range(3)))


def reduce_outputs(
  update, args, state: Reduction, outputs, features, indices, *, unit: bool
) -> Reduction:
  """State with a chunk's outputs [n k], as the model gave them, checked and handed to `update`.

  Embeddings are normalised first (`unit`), scores are not. A model of several conditions gives
  [n conditions d]: each condition's embedding is normalised by itself, and they enter side by side.
  """
  n = outputs.shape[0]
  finite = jnp.isfinite(outputs).reshape(n, -1).all(axis=-1)
  norms = jnp.ones(n)
  if unit:
    norms = jnp.linalg.norm(outputs, axis=-1).reshape(n, -1).min(axis=-1)
    outputs = normalize(outputs)
  return Reduction(
    update(args, state.total, outputs.reshape(n, -1), features, indices),
    state.passes + n,
    state.not_finite + jnp.sum(~finite),
    state.without_direction + jnp.sum(finite & (norms < SMALLEST_NORM)),
  )


def _stream(
  embed: Callable, params: Any, render: Callable, update: Callable, args: Any, state: Reduction,
  start: Int[Array, ""], num_chunks: Int[Array, ""], *, chunk: int, mesh: Mesh | None = None,
) -> Reduction:  # fmt: skip
  """Renders, embeds and reduces `num_chunks` chunks of `chunk` images from index `start` on.

  Args:
    embed: (params, images [n h w 3]) -> embeddings [n d].
    render: (args, indices [n]) -> (images [n h w 3], features).
    update: (args, total, unit embeddings [n d], features, indices [n]) -> total.
    mesh: devices over whose one axis each chunk is split; `chunk` is a multiple of their number.
  """

  def shard(array):
    if mesh is None:
      return array
    return jax.lax.with_sharding_constraint(
      array, NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    )

  def body(step, state):
    indices = shard(start + step * chunk + jnp.arange(chunk))
    images, features = render(args, indices)
    outputs = embed(params, shard(images))
    return reduce_outputs(update, args, state, outputs, features, indices, unit=True)

  return jax.lax.fori_loop(0, num_chunks, body, state)


stream = programs.jit_for_each(
  _stream, static_argnames=("render", "update", "chunk", "mesh"), donate_argnames="state"
)

# --- from sums to maps ----------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="design")
def effect_matrix(
  design: designs.Design, cells: designs.Cells, moments: Moments
) -> Float[Array, "c k"]:
  """E, the effect of each cell on each axis of y."""
  return design.readout(cells, moments.gram.sum(axis=0), moments.response.sum(axis=0))


@functools.partial(jax.jit, static_argnames=("design", "strata"))
def leave_one_out(
  design: designs.Design, cells: designs.Cells, moments: Moments, strata: int = 1,
  shown: Any = None,
) -> Float[Array, "replicates c k"]:  # fmt: skip
  """E with each replicate left out in turn.

  With several `strata` (see `num_strata`) replicates of the same fill make up for the one that is
  left out, so that the fills keep their equal parts. `shown` is how many replicates were, where not
  all of them.
  """
  first = int(design.num_fixed > 0)
  gram, response = moments.gram.sum(axis=0), moments.response.sum(axis=0)
  own = (moments.gram[first:], moments.response[first:])
  count = own[0].shape[0]
  made_up = own
  if strata > 1:
    each = (count if shown is None else shown) // strata  # replicates of a fill
    mates = (jnp.arange(count)[:, None] - jnp.arange(count)) % strata == 0
    share = (mates - each * jnp.eye(count)) / (each - 1)
    made_up = [-jnp.tensordot(share, a, 1, precision="highest") for a in own]

  def without(g, h):
    return design.readout(cells, gram - g, response - h)

  left_out = jax.vmap(without)(*made_up)
  mean = left_out.mean(axis=0)
  return mean + jnp.sqrt(designs.jackknife_share(design, cells)) * (left_out - mean)


@functools.partial(jax.jit, static_argnames=("design", "strata"))
def effects_by_fill(
  design: designs.Design, cells: designs.Cells, moments: Moments, strata: int
) -> Float[Array, "f c k"]:
  """E of each fill alone, where whole replicates take turns between `strata` fills."""
  grams, responses = (
    a.reshape(-1, strata, *a.shape[1:]).sum(axis=0) for a in (moments.gram, moments.response)
  )
  return jax.vmap(lambda g, h: design.readout(cells, g, h))(grams, responses)


def moderated(
  left_out: Float[Array | np.ndarray, "replicates c k"], valid: np.ndarray, strata: int = 1
) -> tuple[Float[np.ndarray, "c k"], Float[np.ndarray, " k"]]:
  """Variance of E from its leave-one-out values, and its degrees of freedom a column.

      v_c = (B − 1)/B Σ_b (E_(b),c − Ē_c)²

  the jackknife's, has only B − 1 degrees of freedom, so ± one v_c^½ would cover too little. Cells
  tell about one another: with v_c ~ s₀² d₀-prior fitted to all cells of a column (Smyth, Stat.
  Appl. Genet. Mol. Biol. 2004, eq. 6-7), the variance returned is

      (d₀ s₀² + (B − 1) v_c) / (d₀ + B − 1),

  and E_c / its root is Student's t with d₀ + B − 1 degrees of freedom, at most the B − 1 of all
  valid cells together. With several `strata`, replicate b being of stratum b mod strata, v_c is the
  sum of theirs, and B − 1 becomes Welch and Satterthwaite's (Σ v)² / Σ v² (B − 1) with v the mean
  over cells and B the replicates of each stratum: what strata differ by is no draw.

  0 in cells that are not valid. NaN, of 0 degrees of freedom, with fewer than two replicates (of a
  stratum): there is no spread to see.
  """
  values = np.asarray(left_out, np.float64)
  _, cells, k = values.shape
  values = values.reshape(-1, strata, cells, k)
  count, own = len(values), len(values) - 1
  if count < 2:
    return np.full((cells, k), np.nan), np.zeros(k)
  parts = own / count * ((values - values.mean(axis=0)) ** 2).sum(axis=0)[:, valid]
  out, dof = np.zeros((cells, k)), np.zeros(k)
  for column in range(k):
    v = parts[..., column].sum(axis=0)
    means = parts[..., column].mean(axis=1)
    each = own * means.sum() ** 2 / (means**2).sum() if means.any() else float(strata * own)
    prior_dof, prior = _variance_prior(v, each)
    if np.isfinite(prior_dof):
      prior = (prior_dof * prior + each * v) / (prior_dof + each)
    # All cells together know no more than their number of degrees of freedom: limma's bound.
    out[valid, column], dof[column] = prior, min(prior_dof + each, each * max(v.size, 1))
  return out, dof


def joint_error(
  terms: list[tuple[Float[np.ndarray, " c"], float]], count: int
) -> tuple[Float[np.ndarray, " c"], float]:
  """Standard error [c] of a sum of independent terms, each a (standard error, degrees of freedom).

  Errors by Pythagoras; degrees of freedom by Welch and Satterthwaite, of the mean squares, one for
  all `count` cells. Nothing drawn has no error.
  """
  if len(terms) == 1:
    return terms[0]
  squares = [errors**2 for errors, _ in terms]
  means = [s.mean() for s in squares]
  parts = [
    mean**2 / dof
    for mean, (_, dof) in zip(means, terms, strict=True)
    if dof > 0 and np.isfinite(dof)
  ]
  dof = sum(means) ** 2 / sum(parts) if sum(parts) > 0 else np.inf
  return np.sqrt(sum(squares, np.zeros(count))), float(dof)


def p_values(
  values: Float[np.ndarray, " c"], errors: Float[np.ndarray, " c"], dof: float
) -> Float[np.ndarray, " c"]:
  """Two-sided p [c] of no effect, by Student's t; not yet corrected for the number of cells.

  Without an error 0 where there is an effect; NaN where the error is unknown.
  """
  with np.errstate(divide="ignore", invalid="ignore"):
    t = np.abs(values) / errors
  t[values == 0] = 0
  p = 2 * (special.stdtr(dof, -t) if 0 < dof < np.inf else special.ndtr(-t))
  p[~np.isfinite(errors)] = np.nan
  return p


class ErrorFactor(NamedTuple):
  """Of the standard error, pooled over cells, of the map against any direction e [d]:

      SE² = ‖e · columns‖² + rest² ‖e‖².

  Attributes:
    columns: [d k], the directions in which the draw of masks moves maps most.
    rest: of all others, taken to be alike; 0 in indexes from before it was kept apart, whose
      columns were enlarged for it.
  """

  columns: Float[np.ndarray, "d k"]
  rest: float

  def __call__(self, e: Float[np.ndarray, " d"]) -> float:
    return float(np.sqrt(((e @ self.columns) ** 2).sum() + self.rest**2 * (e**2).sum()))


def error_factor(left_out: Float[np.ndarray, "replicates c d"], strata: int, k: int) -> ErrorFactor:
  """The standard error for all directions, from E with each replicate left out in turn.

  With δ_bc the effect of cell c without replicate b, less its mean over b (of its stratum, see
  `moderated`), the jackknife's variance of a map's cell is (B − 1)/B Σ_b (δ_bc · e)². Its mean over
  cells is eᵀ S e. Kept are the k largest eigenvalues of S, and the sum of the others divided by d.
  """
  total, cells, d = left_out.shape
  count = total // strata
  each = np.asarray(left_out).reshape(count, strata, cells, d)
  deltas = (each - each.mean(axis=0)).reshape(-1, d) * np.sqrt((count - 1) / count / cells)
  factor = np.zeros((d, k), np.float32)
  if len(deltas) < d:  # the same eigenvalues from the smaller product
    values, vectors = np.linalg.eigh(deltas @ deltas.T)
    columns = deltas.T @ vectors[:, ::-1][:, :k]
  else:
    values, vectors = np.linalg.eigh(deltas.T @ deltas)
    columns = vectors[:, ::-1][:, :k] * np.sqrt(np.maximum(values[::-1][:k], 0))
  factor[:, : columns.shape[1]] = columns
  return ErrorFactor(factor, float(np.sqrt(np.maximum(values[::-1][k:], 0).sum() / d)))


def reference_groups(
  design: designs.Design, each: Float[np.ndarray, "k c"], num_fills: int = 1
) -> Float[np.ndarray, "groups c"]:
  """Means of each few neighbours of the maps against K masked references, which were drawn.

  The spread of the means by the root of their number is what the draw of the reference's masks adds
  to the error of the map in which both images are perturbed. A group has a pair of each fill: some
  designs draw complements in turn, and fills alternate. Where a design draws without replacement
  the spread is rather too large. Empty where nothing was drawn, or too little to see a spread.
  """
  size = 2 * num_fills if len(each) >= 4 * num_fills else 2
  if len(each) < 4 or design.num_fixed == design.num_masks:
    return np.zeros((0, each.shape[1]), np.float32)
  return each[: len(each) // size * size].reshape(-1, size, each.shape[1]).mean(axis=1)


def _variance_prior(variance: np.ndarray, dof: float) -> tuple[float, float]:
  """(d₀, s₀²) of the scaled inverse-χ² from which the cells' variances come."""
  variance = variance[variance > 0]
  if variance.size < 3:
    return 0.0, 0.0
  logs = np.log(variance) - special.digamma(dof / 2) + np.log(dof / 2)
  excess = logs.var(ddof=1) - special.polygamma(1, dof / 2)
  if excess <= 0:
    return np.inf, float(np.exp(logs.mean()))
  prior_dof = 2 * _inverse_trigamma(excess)
  shift = special.digamma(prior_dof / 2) - np.log(prior_dof / 2)
  return prior_dof, float(np.exp(logs.mean() + shift))


def _inverse_trigamma(y: float) -> float:
  """x with ψ′(x) = y, by Newton's method on 1/ψ′, which is nearly linear."""
  x = 0.5 + 1 / y
  for _ in range(50):
    trigamma = special.polygamma(1, x)
    step = trigamma * (1 - trigamma / y) / special.polygamma(2, x)
    x += step
    if -step / x < 1e-8:
      break
  return float(x)


def correspondence(
  query: Float[Array | np.ndarray, "cq d"], reference: Float[Array | np.ndarray, "cr d"]
) -> Float[Array, "cq cr"]:
  """Which region matches which: cosines of the rows of two effect matrices, centred over cells.

  Centring takes away what all regions of an image share; only then do rows tell places apart. Every
  row has a largest entry, in any two images: see `ops.matches`.
  """

  def unit_rows(e):
    e = e - e.mean(axis=0, keepdims=True)
    return e / jnp.maximum(jnp.linalg.norm(e, axis=1, keepdims=True), SMALLEST_NORM)

  return jnp.matmul(unit_rows(query), unit_rows(reference).T, precision="highest")
