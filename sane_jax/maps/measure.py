"""Measures one image: its masked versions go through the encoder, sums over the masks come out.

The one place where an image is masked and shown to a model: the explainer, the index builder and
the viewer all measure by it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sane_jax.maps import engine as engine_lib
from sane_jax.ops import designs, effects, fills, numerics

# Scores that differ by less than float32's rounding, as a share of their size, do not differ.
FLAT = 1e-6
# Replicates before a tolerance may be reached: of two the error is rough, and stopping where it
# happens to look small would make it too small.
FEWEST = 4

# Raised when the same settings come to give other numbers: jobs keep results by it, and measure
# again what was kept by another.
VERSION = 2

# Streams of random numbers beside the masks': mask i folds i into the key, counted from 0, and so
# meets neither.
NOISE = 2**31  # the map of a design that shows nothing
REFERENCE = np.uint32(2**32 - 1)  # the masks of a reference, where both images are masked


class Measured(NamedTuple):
  """What the masks of one image gave.

  Attributes:
    cells: the regions that the masks switch.
    moments: sums over the masks, a block a replicate; the response [blocks p k] has a column for
      each number of `whole`.
    lost: how many masked images have an embedding of zero norm; their cosine was taken as 0.
    design: the masks that were shown: fewer than asked for where a tolerance was reached sooner.
    strata: between how many fills whole replicates took turns, see `effects.num_strata`.
    reached: with a tolerance, the relative error at the end; else None.
  """

  cells: designs.Cells
  moments: effects.Moments
  lost: int
  design: designs.Design
  strata: int = 1
  reached: float | None = None


@numerics.ours()
def measure(
  engine: engine_lib.Engine,
  design: designs.Design,
  key: jax.Array,
  pixels: Float[np.ndarray, "h w 3"],
  fill: Any,
  whole: Float[np.ndarray, "*k"],
  *,
  tolerance: float | None = None,
  directions: Sequence[Float[np.ndarray, "m d"]] | None = None,
  score: Callable[[np.ndarray, Any], Any] | None = None,
) -> Measured:
  """Shows the model the masked versions of an image and sums what it gives.

  Args:
    engine: runs the model, and counts the passes: one a mask.
    design: its `num_masks` are shown; with a tolerance that is the most.
    key: of the masks.
    pixels: the image, in [0, 1].
    fill: what hides it, as in `fills.fill_images`.
    whole: what the model gives for the unmasked image: a unit embedding [d], one in each of several
      spaces [t d], whose columns then stand side by side, or scores [r].
    tolerance: stops as soon as the relative error is at most this; looked at after each replicate
      (of each fill, where whole replicates take turns), from the fourth on. The relative error of a
      map is the median over its cells of the standard error, divided by the map's largest value.
    directions: one array a map that has to be that precise: references' unit embeddings, averaged
      over their rows. By default the effects on all axes, taken together, are looked at.
    score: (images, features) -> scores [n r], on the host, in place of the embedding.

  Raises:
    ModelError: NaN or infinity.
  """
  cells = designs.design_cells(design, pixels)
  hidden = fills.fill_images(fill, pixels)
  masking = effects.Masking(
    designs.draw(design, key, cells), cells, jnp.asarray(pixels), jnp.asarray(hidden),
    jnp.asarray(np.ravel(whole), jnp.float32),
  )  # fmt: skip
  moments = effects.zero_moments(design, cells, np.size(whole))
  strata = effects.num_strata(design, len(hidden))
  render = effects.RenderMasked(design, effects.fill_turn(design, len(hidden)))
  update = effects.AddToMoments(design)

  def show(moments: effects.Moments, first: int, count: int) -> tuple[effects.Moments, int]:
    return engine_lib.run(engine, render, update, masking, moments, count, first=first, score=score)

  if design.num_masks == 0:
    return Measured(cells, moments, 0, design)
  if tolerance is None:
    return Measured(cells, *show(moments, 0, design.num_masks), design, strata)
  towards = np.eye(np.size(whole), dtype=np.float32)
  if directions is not None:
    towards = np.stack([rows.mean(axis=0) for rows in directions], axis=1)
  fixed, size = design.num_fixed, design.replicate_size
  done, lost, reached = 0, 0, np.inf
  start = fixed + max(FEWEST, 2 * strata) * size
  while done < design.num_masks and not reached <= tolerance:
    count = min(strata * size if done else start, design.num_masks - done)
    moments, more = show(moments, done, count)
    done, lost = done + count, lost + more
    blocks = min(-(-(done - fixed) // size), effects.num_blocks(design) - (fixed > 0))
    reached = _relative_error(
      design, cells, moments, towards, blocks, strata, together=directions is None
    )
  kept = (fixed > 0) + -(-(done - fixed) // size)
  moments = moments._replace(gram=moments.gram[:kept], response=moments.response[:kept])
  stopped = dataclasses.replace(design, num_masks=done)  # pyright: ignore[reportArgumentType]
  return Measured(cells, moments, lost, stopped, strata, reached)


def _relative_error(
  design, cells, moments, towards, blocks: int, strata: int, *, together: bool
) -> float:
  """The largest, over maps, of the median standard error by the largest value."""
  moments = project(moments, towards)
  values = np.asarray(effects.effect_matrix(design, cells, moments))
  left_out = effects.leave_one_out(design, cells, moments, strata, blocks)[:blocks]
  valid = np.asarray(cells.valid)
  errors = np.sqrt(effects.moderated(left_out, valid, strata)[0])[valid]
  values = values[valid]
  if together:  # length over all axes
    errors, values = (np.linalg.norm(x, axis=1, keepdims=True) for x in (errors, values))
  largest = np.abs(values).max(axis=0)
  relative = np.median(errors, axis=0) / np.maximum(largest, FLAT)
  return float(np.where(largest < FLAT, 0, relative).max())


def project(moments: effects.Moments, towards: Float[np.ndarray, "d r"]) -> effects.Moments:
  """The moments of scores against r directions, from those of embeddings."""
  response, sample = (
    jnp.matmul(y, jnp.asarray(towards), precision="highest")
    for y in (moments.response, moments.sample)
  )
  return moments._replace(response=response, sample=sample)


def largest_change(
  design: designs.Design, moments: effects.Moments, towards: Float[np.ndarray, "d r"]
) -> Float[np.ndarray, " r"]:
  """How far the masked versions move the score against each of r directions, at most.

  Of all masks where none is drawn, else of the first 64: which cells' effects may not show, for
  interactions cancel in them.
  """
  y = moments.sample
  if design.num_fixed == design.num_masks > 0:  # a block of one row a mask
    y = moments.response.sum(axis=0)
  return np.abs(np.asarray(project(moments._replace(sample=y), towards).sample)).max(
    axis=0, initial=0
  )


# --- masked references ----------------------------------------------------------------------------


@numerics.ours()
def masked_embeddings(
  engine: engine_lib.Engine, design: Any, key: jax.Array, pixels: np.ndarray, fill: Any, size: int
) -> Float[np.ndarray, "k d"]:
  """Unit embeddings of the K masked versions of a reference, as mode 'both' shows them; d=size."""
  masking, design, first, count = mask_reference(design, key, pixels, fill)
  total, _ = engine_lib.run(
    engine, effects.RenderMasked(design), effects.StoreFrom(first), masking,
    jnp.zeros((count, size)), count, first=first,
  )  # fmt: skip
  return np.asarray(total)


@numerics.ours()
def masked_images(
  design: Any, key: jax.Array, pixels: np.ndarray, fill: Any
) -> Float[np.ndarray, "k h w 3"]:
  """Those K masked versions themselves."""
  masking, design, first, count = mask_reference(design, key, pixels, fill)
  return np.asarray(effects.RenderMasked(design)(masking, first + jnp.arange(count))[0])


def mask_reference(design, key, pixels, fill) -> tuple[effects.Masking, designs.Design, int, int]:
  """What renders them: their own masks, of a key of their own; the first, and how many."""
  design, first, count = design.reference_masks()
  cells = designs.design_cells(design, pixels)
  masking = effects.Masking(
    designs.draw(design, jax.random.fold_in(key, REFERENCE), cells), cells, jnp.asarray(pixels),
    jnp.asarray(fills.fill_images(fill, pixels)), jnp.zeros(0),
  )  # fmt: skip
  return masking, design, first, count
