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

from sane_jax.ops import designs

# A norm under this is no direction: the cosine is then 0 by definition.
SMALLEST_NORM = 1e-12


class Moments(NamedTuple):
  """Sums over masks, a block a replicate; block 0 holds the masks that are not drawn, if any."""

  gram: Float[Array, "blocks p q"]
  response: Float[Array, "blocks p k"]


class Masking(NamedTuple):
  """What renders masked images: what was drawn for the masks, the regions, the image, its fill."""

  drawn: Any  # a row a mask, see `designs.draw`
  cells: designs.Cells
  image: Float[Array, "h w 3"]
  fill: Float[Array, "f h w 3"]  # masks 2i and 2i + 1 have fill i mod f
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
  """Renders masked images of the given mask indices with the masks' features (x, t)."""

  design: designs.Design

  def __call__(
    self, masking: Masking, indices: Int[Array, " n"]
  ) -> tuple[Float[Array, "n h w 3"], tuple[Float[Array, "n p"], Float[Array, "n q"]]]:
    drawn = jax.tree.map(lambda a: a[indices], masking.drawn)

    def one(drawn, index):
      mask, x, t = self.design.show(drawn, masking.cells, index)
      # A mask and its complement share a fill: what the fill itself does to the score cancels.
      fill = masking.fill[(index // 2) % masking.fill.shape[0]]
      return blend(mask, masking.image, fill), (x, t)

    return jax.vmap(one)(drawn, indices)


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
  blocks = num_blocks(design)
  return Moments(jnp.zeros((blocks, x.shape[0], t.shape[0])), jnp.zeros((blocks, x.shape[0], k)))


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

  return Moments(add(moments.gram, t), add(moments.response, y))


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


@functools.partial(
  jax.jit, static_argnames=("embed", "render", "update", "chunk", "mesh"), donate_argnames="state"
)
def stream(
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


# --- from sums to maps ----------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="design")
def effect_matrix(
  design: designs.Design, cells: designs.Cells, moments: Moments
) -> Float[Array, "c k"]:
  """E, the effect of each cell on each axis of y."""
  return design.readout(cells, moments.gram.sum(axis=0), moments.response.sum(axis=0))


@functools.partial(jax.jit, static_argnames="design")
def leave_one_out(
  design: designs.Design, cells: designs.Cells, moments: Moments
) -> Float[Array, "replicates c k"]:
  """E with each replicate left out in turn."""
  first = int(design.num_fixed > 0)

  def without(gram, response):
    return design.readout(
      cells, moments.gram.sum(axis=0) - gram, moments.response.sum(axis=0) - response
    )

  return jax.vmap(without)(moments.gram[first:], moments.response[first:])


def moderated(
  left_out: Float[Array | np.ndarray, "replicates c k"], valid: np.ndarray
) -> tuple[Float[np.ndarray, "c k"], Float[np.ndarray, " k"]]:
  """Variance of E from its leave-one-out values, and its degrees of freedom a column.

      v_c = (B − 1)/B Σ_b (E_(b),c − Ē_c)²

  the jackknife's, has only B − 1 degrees of freedom, so ± one v_c^½ would cover too little. Cells
  tell about one another: with v_c ~ s₀² d₀-prior fitted to all cells of a column (Smyth, Stat.
  Appl. Genet. Mol. Biol. 2004, eq. 6-7), the variance returned is

      (d₀ s₀² + (B − 1) v_c) / (d₀ + B − 1),

  and E_c / its root is Student's t with d₀ + B − 1 degrees of freedom. 0 in cells that are not
  valid. NaN, of 0 degrees of freedom, with fewer than two replicates: there is no spread to see.
  """
  values = np.asarray(left_out, np.float64)
  count, cells, k = values.shape
  if count < 2:
    return np.full((cells, k), np.nan), np.zeros(k)
  own = count - 1
  variance = own / count * ((values - values.mean(axis=0)) ** 2).sum(axis=0)
  out, dof = np.zeros((cells, k)), np.zeros(k)
  for column in range(k):
    v = variance[valid, column]
    prior_dof, prior = _variance_prior(v, own)
    if np.isfinite(prior_dof):
      prior = (prior_dof * prior + own * v) / (prior_dof + own)
    out[valid, column], dof[column] = prior, prior_dof + own
  return out, dof


def standard_error(
  left_out: Float[Array | np.ndarray, "replicates c k"], valid: np.ndarray
) -> Float[np.ndarray, "c k"]:
  """Root of the `moderated` variance."""
  return np.sqrt(moderated(left_out, valid)[0])


def reference_maps(
  design: designs.Design,
  effects: Float[Array | np.ndarray, "c d"],
  directions: Float[Array | np.ndarray, "k d"],
  num_fills: int = 1,
) -> Float[np.ndarray, "groups c"]:
  """Maps against each few neighbours of K masked references, which were drawn like the masks are.

  Their mean is the map in which both images are perturbed, their spread by the root of their number
  what the draw of the reference's masks adds to its error. A group has a pair of each fill: some
  designs draw complements in turn, and fills alternate. Where a design draws without replacement
  the spread is rather too large. Empty where nothing was drawn, or too little to see a spread.
  """
  size = 2 * num_fills if len(directions) >= 4 * num_fills else 2
  if len(directions) < 4 or design.num_fixed == design.num_masks:
    return np.zeros((0, len(effects)), np.float32)
  each = np.asarray(directions) @ np.asarray(effects).T
  return each[: len(each) // size * size].reshape(-1, size, each.shape[1]).mean(axis=1)


def _variance_prior(variance: np.ndarray, dof: int) -> tuple[float, float]:
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
