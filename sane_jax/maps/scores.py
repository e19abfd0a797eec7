"""Explanations of models that give nothing but scores: each reference scores each masked query."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sane_jax.maps import engine as engine_lib
from sane_jax.maps import measure
from sane_jax.maps.effects import saliency_maps
from sane_jax.maps.explanation import (
  Embedding,
  Explanation,
  Photo,
  ReferenceSide,
  SaliencyMap,
)
from sane_jax.models import model as model_lib
from sane_jax.ops import effects, fills

if TYPE_CHECKING:
  from sane_jax.maps.explainer import Explainer


def explain_many(
  explainer: "Explainer", query: Any, references: Sequence[Any]
) -> list[Explanation]:
  """N passes for each reference and one of the whole; (N + 1) K more when both are masked."""
  return _explain(explainer, query, references, contrast=False)


def contrast(explainer: "Explainer", query: Any, a: Any, b: Any) -> Explanation:
  """The difference of the two references' scores."""
  return _explain(explainer, query, [a, b], contrast=True)[0]


def measure_effects(explainer: "Explainer", image: Any) -> Any:
  """Raises ValueError: there are no embeddings to have effects on."""
  engine_lib.require_embeddings(explainer.model, "effects")


def scores(explainer: "Explainer", queries: np.ndarray, reference: np.ndarray) -> np.ndarray:
  """Scores [b] of queries [b h w 3] with one reference; b passes."""
  model, engine = explainer.model, explainer.engine
  parts, done = [], 0

  def some() -> np.ndarray:
    return model_lib.call_on_host(model, queries[done : done + engine.chunk], reference)[:, 0]

  while done < len(queries):
    parts.append(engine_lib.halving(engine, some))
    engine_lib.add_passes(engine, len(parts[-1]))
    done += len(parts[-1])
  found = np.concatenate(parts)
  if not (finite := np.isfinite(found)).all():
    flat = (queries == queries[:, :1, :1]).all(axis=(1, 2, 3))
    why = "check its weights and the range it expects (images come in [0, 1])"
    raise model_lib.ModelError(
      f"{model.name} gave NaN or infinity for {int((~finite).sum())} of {len(found)} images;"
      f" {engine_lib.ONE_COLOUR if flat[~finite].all() else why}"
    )
  return found


def _explain(
  explainer: "Explainer", query: Any, references: Sequence[Any], *, contrast: bool
) -> list[Explanation]:
  if any(isinstance(reference, Embedding) for reference in references):
    engine_lib.require_embeddings(explainer.model, "a reference embedding")
  photo, others = explainer.photo(query), [explainer.photo(r) for r in references]
  engine = explainer.engine
  before = engine_lib.spent(engine)
  whole = np.array([scores(explainer, photo.pixels[None], o.pixels)[0] for o in others])
  unsteady = engine_lib.steadiness_note(engine, photo.pixels, whole[:1], others[0].pixels)
  shown = [_shown(explainer, other) for other in others]

  def score(images, features):
    return np.stack(
      [scores(explainer, images, version) for versions in shown for version in versions], axis=1
    )

  size, zero = len(shown[0]), whole  # a column for each masked version of a reference
  if size > 1:
    zero = score(photo.pixels[None], None)[0]
  measured = _measure(explainer, photo, zero, score)
  spent = engine_lib.spent(engine) - before
  if explainer.mode == "fixed":
    _check_direction(explainer, others, whole, measured.moments.sample)
  towards = np.kron(np.eye(len(others), dtype=np.float32), np.eye(size, dtype=np.float32))
  towards = towards.reshape(len(towards), len(others), size)  # which columns are of a reference
  scales = np.abs(whole)
  if contrast:
    towards = towards[:, :1] - towards[:, 1:]
    whole, scales = whole[:1] - whole[1:], scales.max(keepdims=True)
  maps = _maps(explainer, measured, towards, scales)
  return [
    Explanation(
      query=photo,
      reference=other,
      score=float(value),
      saliency=saliency,
      grid=explainer.design.grid,
      query_cells=np.asarray(measured.cells.labels),
      settings=explainer.settings,
      warnings=[*([unsteady] if unsteady else []), *saliency.notes],
      passes=spent if contrast else spent // len(others),
      make_reference_side=functools.partial(_reference_side, explainer, photo, other),
      contrast=others[1] if contrast else None,
      ranker=explainer.ranker,
      key=explainer.key,
    )
    for other, value, saliency in zip(others, whole, maps, strict=False)
  ]


def _reference_side(explainer: "Explainer", query: Photo, reference: Photo) -> ReferenceSide:
  """The map on the reference: its masked versions come second in the score, one at a time."""
  before = engine_lib.spent(explainer.engine)
  shown = _shown(explainer, query)
  whole = scores(explainer, query.pixels[None], reference.pixels)

  def score(images, features):
    return np.stack([scores(explainer, shown, image) for image in images])

  zero = whole if len(shown) == 1 else score(reference.pixels[None], None)[0]
  measured = _measure(explainer, reference, zero, score)
  towards = np.eye(len(shown), dtype=np.float32)[:, None]
  saliency = _maps(explainer, measured, towards, np.abs(whole))[0]
  labels = np.asarray(measured.cells.labels)
  spent = engine_lib.spent(explainer.engine) - before
  return ReferenceSide(saliency, labels, None, None, spent)


def _check_direction(
  explainer: "Explainer", others: Sequence[Photo], whole: np.ndarray, changes: Any
) -> None:
  """Raises ValueError where scores look like distances: every map's sign would be turned.

  A pass is spent where hiding parts of the query raises its score on average: if the reference is
  then less like itself than like the query and all of its masked versions, less is more.
  """
  for column, (other, score) in enumerate(zip(others, whole, strict=True)):
    masked = score + np.asarray(changes)[:, column]
    if masked.size and masked.mean() > score + measure.FLAT * np.abs(masked).max():
      itself = float(scores(explainer, other.pixels[None], other.pixels)[0])
      if itself <= score and itself < masked.min():
        raise ValueError(
          f"the scores of {explainer.model.name} look like distances: a photo scores"
          f" {itself:.3g} with itself, {score:.3g} with another, and up to {masked.max():.3g} with"
          " masked ones. Higher must mean more alike: give from_score a function that returns the"
          " negative"
        )


def _maps(
  explainer: "Explainer", measured: measure.Measured, towards: np.ndarray, scales: np.ndarray
) -> list[SaliencyMap]:
  """Maps of the columns' means [k r m]: the m masked versions of each of r references."""
  design, cells, moments = measured.design, measured.cells, measured.moments
  matrix, count = (
    np.asarray(effects.effect_matrix(design, cells, moments)),
    fills.num_fills(explainer.fill),
  )
  each = np.moveaxis(towards, 1, 0)  # [r k m]
  groups = [effects.reference_groups(design, (matrix @ rows).T, count) for rows in each]
  moved = np.array([measure.largest_change(design, moments, rows).max() for rows in each])
  return saliency_maps(
    explainer, design, cells, measure.project(moments, towards.mean(axis=2)), measured.strata,
    groups, moved, scales,
  )  # fmt: skip


def _measure(explainer: "Explainer", photo: Photo, whole: np.ndarray, score) -> measure.Measured:
  return measure.measure(
    explainer.engine, explainer.design, explainer.key, photo.pixels, explainer.fill, whole,
    score=score,
  )  # fmt: skip


def _shown(explainer: "Explainer", photo: Photo) -> np.ndarray:
  """An image [1 h w 3]; with mode 'both' its masked versions [k h w 3] in its place."""
  images = np.zeros((0,))
  if explainer.mode == "both":
    images = measure.masked_images(explainer.design, explainer.key, photo.pixels, explainer.fill)
  return images if len(images) else photo.pixels[None]
