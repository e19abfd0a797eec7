"""Explanations by learned masks: one optimisation for all the pairs that are given together."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from sane_jax.maps import engine as engine_lib
from sane_jax.maps.effects import check_space, embeddings_of
from sane_jax.maps.explanation import Embedding, Explanation, Photo, ReferenceSide, SaliencyMap
from sane_jax.ops import designs, fills, learned_mask

if TYPE_CHECKING:
  from sane_jax.maps.explainer import Explainer


def check(explainer: "Explainer") -> None:
  """Raises ValueError unless the model has gradients and the fill is one."""
  model = explainer.model
  if model.on_host or model.embed is None:
    raise ValueError(
      f"learned_mask follows gradients, which {model.name} on the host can't give; use"
      " design='rise' or 'hadamard', or bring the model in with sane_jax.from_jax"
    )
  if not _is_median(explainer.fill):
    fills.fill_images(explainer.fill, np.zeros((*model.image_size, 3), np.float32))


def explain_many(
  explainer: "Explainer", query: Any, references: Sequence[Any]
) -> list[Explanation]:
  """A mask of its own for each reference."""
  return explain_pairs(explainer, [(query, reference) for reference in references])


def explain_pairs(explainer: "Explainer", pairs: Sequence[tuple[Any, Any]]) -> list[Explanation]:
  """All pairs' masks in one loop; a pair's result does not depend on its company."""
  sides = 2 if explainer.mode == "both" else 1
  photos: list[tuple[Photo, Photo | Embedding]] = []
  for query, reference in pairs:
    if not isinstance(reference, Embedding):
      reference = explainer.photo(reference)
    elif sides == 2:
      raise ValueError(
        "a learned mask of mode 'both' lies over both images, and an embedding is none; use"
        " mode='fixed'"
      )
    photos.append((explainer.photo(query), reference))

  def learn() -> list[Explanation]:
    out: list[Explanation] = []
    size = max(1, explainer.engine.chunk // sides)  # images alive at a time: one a side and a pair
    for begin in range(0, len(photos), size):
      out += _learn(explainer, photos[begin : begin + size])
    return out

  return engine_lib.halving(explainer.engine, learn)


def contrast(explainer: "Explainer", query: Any, a: Any, b: Any) -> Explanation:
  """Raises ValueError: a mask is learned for one score, not for a difference."""
  raise ValueError("contrast needs a design of masks, not learned_mask; use design='hadamard'")


def measure_effects(explainer: "Explainer", image: Any) -> Any:
  """Raises ValueError: a learned mask can't be read against another reference."""
  raise ValueError("a learned mask belongs to one pair: use explain, or another design")


def _is_median(fill: Any) -> bool:
  return isinstance(fill, str) and fill == "median"


def _fill(explainer: "Explainer", photo: Photo) -> np.ndarray:
  """What hides the image [h w 3]."""
  if _is_median(explainer.fill):
    return fills.median_blur(photo.pixels, explainer.design.blur)
  return fills.fill_image(explainer.fill, photo.pixels)


def _learn(
  explainer: "Explainer", photos: Sequence[tuple[Photo, Photo | Embedding]]
) -> list[Explanation]:
  settings, both = explainer.design, explainer.mode == "both"
  model, engine = explainer.model, explainer.engine
  before = engine_lib.spent(engine)
  queries, references = zip(*photos, strict=True)
  targets = embeddings_of(explainer, references)
  wholes = explainer.embed(queries)
  check_space(explainer, wholes[0], [target[None] for target in targets])
  whole_passes = engine_lib.spent(engine) - before
  unsteady = engine_lib.steadiness_note(engine, queries[0].pixels, wholes[0])
  # Of an embedding nothing is shown, and with mode 'fixed' of no reference.
  shown = [r if isinstance(r, Photo) else q for q, r in zip(queries, references, strict=True)]

  def stack(arrays):
    return jnp.asarray(np.stack(arrays))

  problem = learned_mask.Problem(
    jnp.broadcast_to(explainer.key, (len(photos),)),
    stack([p.pixels for p in queries]),
    stack([_fill(explainer, p) for p in queries]),
    stack([p.pixels for p in shown]),
    stack([_fill(explainer, p) for p in shown]),
    stack(targets),
  )
  state = learned_mask.start(settings, len(photos), both=both)
  params, (problem, state) = engine_lib.split(engine, (problem, state), len(photos))
  while int(state.step) < settings.num_steps:
    steps = min(25, settings.num_steps - int(state.step))
    state = learned_mask.optimize(
      model.embed, params, settings, problem, state, jnp.int32(steps), both=both
    )
    engine_lib.add_passes(engine, steps * len(photos) * (1 + both))
    if engine.on_progress is not None:
      engine.on_progress(int(state.step), settings.num_steps)
  masks = np.asarray(state.masks)
  large = np.asarray(learned_mask.enlarge(jnp.asarray(masks), model.image_size))
  grid = (settings.cells, settings.cells)
  labels = np.asarray(designs.grid_cells(model.image_size, grid).labels)

  def saliency(pair: int, side: int) -> SaliencyMap:
    missing = np.full(masks.shape[-2:], np.nan)
    return SaliencyMap(
      1 - large[pair, side], np.full(model.image_size, np.nan),
      1 - masks[pair, side].ravel(), missing.ravel(), missing.ravel(),
    )  # fmt: skip

  def other_side(pair: int) -> Callable[[], ReferenceSide] | None:
    query, reference = photos[pair]
    if not isinstance(reference, Photo):
      return None
    if both:
      return functools.partial(ReferenceSide, saliency(pair, 1), labels, None, None, 0)
    return functools.partial(_reference_side, explainer, query, reference)

  return [
    Explanation(
      query=query,
      reference=reference,
      score=float(wholes[pair] @ targets[pair]),
      saliency=saliency(pair, 0),
      grid=grid,
      query_cells=labels,
      settings=explainer.settings,
      warnings=[
        *([unsteady] if unsteady else []),
        *([] if np.isfinite(masks[pair]).all() else ["the mask holds NaN"]),
      ],
      passes=whole_passes // len(photos) + settings.num_steps * (1 + both),
      make_reference_side=other_side(pair),
      ranker=explainer.ranker,
      key=explainer.key,
      embeddings=(wholes[pair], targets[pair]),
    )
    for pair, (query, reference) in enumerate(photos)
  ]


def _reference_side(explainer: "Explainer", query: Photo, reference: Photo) -> ReferenceSide:
  """The map on the reference: a mask of its own, over it."""
  before = engine_lib.spent(explainer.engine)
  swapped = _learn(explainer, [(reference, query)])[0]
  spent = engine_lib.spent(explainer.engine) - before
  return ReferenceSide(swapped.saliency, swapped.query_cells, None, None, spent)
