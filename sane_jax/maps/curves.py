"""Insertion and deletion of explanations, batched over pairs."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from sane_jax.maps import engine as engine_lib
from sane_jax.maps.effects import embeddings_of
from sane_jax.maps.explainer import Explainer
from sane_jax.maps.explanation import Explanation, Photo, SaliencyMap
from sane_jax.maps.generators import SMOOTH
from sane_jax.ops import fills, numerics, resampling
from sane_jax.ops import insertion_deletion as curves_lib
from sane_jax.ops.insertion_deletion import NUM_THRESHOLDS, Curves

DRAWINGS = ("smooth", "cells")  # how maps of hard-edged cells are drawn before they are judged
# Pairs whose images are on the device together; the arrays have this many rows whatever the number
# of pairs, so that one compilation serves all.
GROUP = 32


@numerics.ours()
def insertion_deletion(
  explainer: Explainer,
  explanations: Sequence[Explanation],
  *,
  background: Any = "mean",
  perturb: str = "query",
  drawing: str = "cells",
) -> Curves:
  """Scores while pixels are inserted or deleted in the order of their saliency.

  Thresholds are 0, 0.01, ..., 1 of the pixels by saliency rank. Deletion replaces the most
  salient by the background; insertion starts from the background and shows them. 202 encoder
  passes a pair and perturbed image. `ops.insertion_deletion.areas` gives the AUCs.

  Args:
    explainer: whose model is asked; its encoder passes are counted on.
    explanations: of pairs. A NaN in a map ranks as the least salient.
    background: 'white' (255, the paper's for Polyvore), 'grey' (127, for AwA2), 'mean', 'black',
      'blur', a colour or an image.
    perturb: 'query', 'reference' (by the map on the reference), or 'both' at once.
    drawing: 'cells', maps as they are; 'smooth', those of a grid interpolated between its cells.
      Deletion favours a map whose hard-edged cells are the very sets of pixels that its masks hid:
      drawn smoothly, the same numbers lose 4 to 8 points (docs/generators.md).

  Returns:
    Raw cosine scores, insertion and deletion, [b 101] each.

  Raises:
    ValueError: unknown `perturb`, `drawing` or background; no explanations; pixels of a reference
      that is an embedding.
  """
  if perturb not in ("query", "reference", "both"):
    raise ValueError(f"perturb is 'query', 'reference' or 'both'; given {perturb!r}")
  if drawing not in DRAWINGS:
    raise ValueError(f"drawing is 'smooth' or 'cells'; given {drawing!r}")
  if not len(explanations):
    raise ValueError("insertion_deletion needs at least one explanation; given none")
  if perturb != "query" and any(e.reference.uint8 is None for e in explanations):
    raise ValueError(
      f"an embedding has no pixels to perturb; give perturb='query', not {perturb!r}"
    )
  rows = [
    _curves(explainer, explanations[i : i + GROUP], background, perturb, drawing)
    for i in range(0, len(explanations), GROUP)
  ]
  return Curves(*(np.concatenate(part) for part in zip(*rows, strict=True)))


def _drawn(e: Explanation, of: SaliencyMap, drawing: str) -> np.ndarray:
  """A map [h w] of either side of an explanation as it is to be judged."""
  if drawing == "cells" or e.grid is None or e.settings["design"] in SMOOTH:
    return of.values
  return resampling.enlarge(np.asarray(of.cells).reshape(1, *e.grid), of.values.shape)[0]


def _curves(explainer, explanations, background, perturb, drawing):
  queries = [e.query for e in explanations]
  references = [e.reference for e in explanations]
  query_maps = [_drawn(e, e.saliency, drawing) for e in explanations]
  count = len(explanations)
  if explainer.model.embed is None:
    scores = _score_curves(explainer, explanations, background, perturb, drawing)
  else:
    if perturb != "reference":
      moving = _embeddings(explainer, queries, query_maps, background)
    else:
      moving = explainer.embed(queries)[:, None]
    if perturb == "query":
      still = np.stack(embeddings_of(explainer, references))[:, None]
    else:
      maps = [_drawn(e, e.reference_side.saliency, drawing) for e in explanations]
      still = _embeddings(explainer, references, maps, background)
    scores = (moving * still).sum(axis=-1)
  scores = np.asarray(scores, np.float64).reshape(count, 2, NUM_THRESHOLDS)
  return scores[:, 0], scores[:, 1]


def _perturbed(photos: Sequence[Photo], maps, background) -> curves_lib.Perturbed:
  def stack(arrays):
    arrays = [np.asarray(a) for a in arrays]
    return jnp.asarray(np.stack(arrays + [np.zeros_like(arrays[0])] * (GROUP - len(arrays))))

  return curves_lib.Perturbed(
    stack([p.pixels for p in photos]),
    stack([curves_lib.pixel_ranks(np.nan_to_num(m, nan=-np.inf)) for m in maps]),
    stack([fills.fill_image(background, p.pixels) for p in photos]),
  )


def _embeddings(explainer, photos, maps, background) -> np.ndarray:
  """Unit embeddings [b 2·101 d] of all perturbed images of each photo."""
  perturbed = _perturbed(photos, maps, background)
  count = len(photos) * 2 * NUM_THRESHOLDS
  engine = explainer.engine
  d = (
    explainer.embed(photos[:1]).shape[1] if engine.embedding_size is None else engine.embedding_size
  )
  rows = jnp.zeros((GROUP * 2 * NUM_THRESHOLDS, d))
  total, _ = engine_lib.run(
    engine, curves_lib.RenderThresholds(), curves_lib.StoreOutputs(), perturbed, rows, count
  )
  return np.asarray(total[:count]).reshape(len(photos), 2 * NUM_THRESHOLDS, d)


def _score_curves(explainer, explanations, background, perturb, drawing) -> np.ndarray:
  """The same from a model that gives nothing but scores."""
  out = []
  for e in explanations:
    renders = []
    for photo, wanted, get in (
      (e.query, perturb != "reference", lambda e=e: e.saliency),
      (e.reference, perturb != "query", lambda e=e: e.reference_side.saliency),
    ):
      images = photo.pixels[None]
      if wanted:
        perturbed = _perturbed([photo], [_drawn(e, get(), drawing)], background)
        indices = jnp.arange(2 * NUM_THRESHOLDS)
        images = np.asarray(curves_lib.RenderThresholds()(perturbed, indices)[0])
      renders.append(images)
    queries, references = renders
    if len(references) == 1:
      out.append(explainer.scores(queries, references[0]))
    else:
      queries = np.broadcast_to(queries, references.shape)
      out.append(
        [explainer.scores(q[None], r)[0] for q, r in zip(queries, references, strict=True)]
      )
  return np.asarray(out)
