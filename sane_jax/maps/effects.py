"""Explanations by effects on embeddings: an image is measured once, and read against anything."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from sane_jax.maps import engine as engine_lib
from sane_jax.maps import measure
from sane_jax.maps.explanation import (
  Effects,
  Embedding,
  Explanation,
  Photo,
  ReferenceSide,
  SaliencyMap,
)
from sane_jax.models import fingerprint
from sane_jax.ops import designs, effects, fills, statistics

if TYPE_CHECKING:
  from sane_jax.maps.explainer import Explainer

# Maps behind two fills that correlate by less have less than half of their variance in common.
ALIKE = 0.7
# A map without a sure cell whose values are less of what masks move the score by may be one in
# which effects cancel.
SMALL = 0.05


def check(explainer: "Explainer") -> None:
  """Raises ValueError unless the fill is one that masks can show; see `fills.fill_images`."""
  fills.fill_images(explainer.fill, np.zeros((*explainer.model.image_size, 3), np.float32))


def explain_many(
  explainer: "Explainer", query: Any, references: Sequence[Any]
) -> list[Explanation]:
  """One pass over the query's masks serves all references."""
  sides = [_side(explainer, reference) for reference in references]
  directions = [side.directions for side in sides]
  measured = measure_effects(explainer, query, directions)
  maps = _read(explainer, measured, directions)
  return [
    _explanation(explainer, measured, side, saliency)
    for side, saliency in zip(sides, maps, strict=True)
  ]


def contrast(explainer: "Explainer", query: Any, a: Any, b: Any) -> Explanation:
  """The query's effects, read against the difference of the two references' embeddings."""
  one, other = _side(explainer, a), _side(explainer, b)
  if one.whole.shape != other.whole.shape:
    raise ValueError(
      f"the two references have {len(one.whole)} and {len(other.whole)} numbers: they are not"
      " embeddings of one space"
    )
  side = dataclasses.replace(
    one,
    directions=one.directions - other.directions,
    whole=one.whole - other.whole,
    passes=one.passes + other.passes,
    notes=tuple(dict.fromkeys([*one.notes, *other.notes])),
  )
  measured = measure_effects(explainer, query, [side.directions])
  saliency = _read(explainer, measured, [side.directions])[0]
  return _explanation(explainer, measured, side, saliency, other.shown)


def measure_effects(
  explainer: "Explainer", image: Any, directions: Sequence[np.ndarray] | None = None
) -> Effects:
  """Effects of an image; with a tolerance, until the maps against `directions` [k d] are precise.

  Without directions, until the effects on every axis are, taken together.
  """
  settings, tolerance = explainer.settings, explainer.tolerance
  if isinstance(image, Effects):
    anyway = {"mode"} if tolerance is None else {"mode", "num_masks"}
    for name, value in settings.items():
      if name not in anyway and image.settings[name] != value:
        raise ValueError(
          f"these effects were measured with {name}={image.settings[name]!r}, and this explainer"
          f" has {name}={value!r}: measure them anew from the image"
        )
    _check_model(explainer, image)
    check_space(explainer, image.whole, directions)
    return image
  photo, before = explainer.photo(image), engine_lib.spent(explainer.engine)
  whole = explainer.embed([photo])[0]
  check_space(explainer, whole, directions)
  unsteady = engine_lib.steadiness_note(explainer.engine, photo.pixels, whole)
  measured = measure.measure(
    explainer.engine, explainer.design, explainer.key, photo.pixels, explainer.fill, whole,
    tolerance=tolerance, directions=directions,
  )  # fmt: skip
  design, notes = measured.design, [unsteady] if unsteady else []
  if tolerance is not None and measured.reached is not None:
    settings["num_masks"] = design.num_masks
    if measured.reached > tolerance:
      notes.append(
        f"the standard error is {measured.reached:.2g} of the map's largest value after"
        f" {design.num_masks} masks, above the tolerance of {tolerance:g}; raise num_masks"
      )
  if measured.lost:
    notes.append(
      f"{measured.lost} of {design.num_masks} masked images have an embedding of zero norm; their"
      " score was taken as 0"
    )
  return Effects(
    photo, design, explainer.key, settings, measured.cells, measured.moments, whole,
    engine_lib.spent(explainer.engine) - before, tuple(notes), measured.strata,
    explainer.engine.name, explainer.digest,
  )  # fmt: skip


def _check_model(explainer: "Explainer", measured: Effects) -> None:
  """Raises ValueError where effects are of other weights than the explainer's model has now.

  A model of JAX is what it was when its explainer was made. Any other has to give the image the
  embedding that it had: one pass.
  """
  if measured.engine == explainer.engine.name and not explainer.model.on_host:
    return
  _check_whole(explainer, measured.photo, measured.whole, measured.digest)


def _check_whole(explainer: "Explainer", photo: Photo, before: np.ndarray, digest: str) -> None:
  """Raises ValueError unless the model still gives an image the embedding [d] that it had."""
  model = explainer.model
  if digest and digest != explainer.digest:
    why = f"the parameters are others ({digest[:8]} there, {explainer.digest[:8]} here)"
  elif moved := _moved(explainer, photo, before, digest):
    why = f"the embedding of {photo.name or 'its image'} moved by {moved:.2g}"
  else:
    return
  raise ValueError(
    f"these effects were measured with a model called {model.name}, and the model {model.name} of"
    f" this explainer has other weights now: {why}. Measure them anew from the image, with"
    " explainer.effects(image)"
  )


def _moved(explainer: "Explainer", photo: Photo, before: np.ndarray, digest: str) -> float:
  """How far an image's embedding [d] is from what it was; 0 where that is rounding."""
  now = explainer.embed([photo])[0]
  moved = fingerprint.distance(before[None], now[None])
  if moved <= (fingerprint.SAME_PARAMETERS if digest else fingerprint.TOLERANCE):
    return 0.0
  if explainer.model.on_host and np.isfinite(moved):  # a model may be random itself
    again = fingerprint.distance(now[None], explainer.embed([photo])[0][None])
    if moved <= fingerprint.NOISE * again:
      return 0.0
  return moved


def masked_embeddings(explainer: "Explainer", photo: Photo, size: int) -> np.ndarray:
  """Unit embeddings [k d] of the K masked versions of a reference; `size` is d."""
  return measure.masked_embeddings(
    explainer.engine, explainer.design, explainer.key, photo.pixels, explainer.fill, size
  )


def check_space(
  explainer: "Explainer", whole: np.ndarray, directions: Sequence[np.ndarray] | None
) -> None:
  """Raises ValueError unless the directions [k d] are of the space of the image's embedding."""
  for rows in directions or ():
    if rows.shape[1] != len(whole):
      raise ValueError(
        f"a reference embedding has {rows.shape[1]} numbers, and the embeddings of"
        f" {explainer.model.name} have {len(whole)}: it is of another model's space. Embed the text"
        " with the other half of the same model"
      )


def embeddings_of(
  explainer: "Explainer", references: Sequence[Photo | Embedding]
) -> list[np.ndarray]:
  """The unit embedding [d] of each; images take a pass each, all of them together."""
  images = [r for r in references if isinstance(r, Photo)]
  embedded = iter(explainer.embed(images) if images else ())
  return [next(embedded) if isinstance(r, Photo) else r.unit for r in references]


# --- maps -----------------------------------------------------------------------------------------


def saliency_maps(
  explainer: "Explainer", design: Any, cells: designs.Cells, moments: effects.Moments, strata: int,
  groups: Sequence[np.ndarray], moved: np.ndarray, scales: np.ndarray,
) -> list[SaliencyMap]:  # fmt: skip
  """One map for each column of the moments' response, by a design that may have stopped early.

  Args:
    strata: between how many fills whole replicates took turns.
    groups: of each column, maps [g c] whose spread joins the error, of `effects.reference_groups`.
    moved: how far the masked versions move the score, at most, of each column.
    scales: what the score's own size is: changes of less than `measure.FLAT` of it are rounding.
  """
  values = np.asarray(effects.effect_matrix(design, cells, moments))
  valid = np.asarray(cells.valid)
  if design.num_masks == 0:  # nothing was shown: the map is noise
    key = jax.random.fold_in(explainer.key, measure.NOISE)
    values = np.asarray(jax.random.normal(key, values.shape))
  terms: list[list[tuple[np.ndarray, float]]] = [[] for _ in groups]
  if design.num_fixed < design.num_masks or not design.num_masks:
    left_out = np.asarray(effects.leave_one_out(design, cells, moments, strata))
    variance, dof = effects.moderated(left_out, valid, strata)
    for column, term in enumerate(terms):
      term.append((np.sqrt(variance[:, column]), float(dof[column])))
  for term, each in zip(terms, groups, strict=True):
    if len(each):  # their spread joins that of the query's masks
      left_out = (each.sum(axis=0) - each) / (len(each) - 1)
      variance, dof = effects.moderated(left_out[..., None], valid)
      term.append((np.sqrt(variance[:, 0]), float(dof[0])))
  by_fill = np.zeros((0, *values.shape))
  if strata > 1:
    by_fill = np.asarray(effects.effects_by_fill(design, cells, moments, strata))
  return [
    _saliency_map(
      explainer, design, cells, values[:, column], *effects.joint_error(term, len(valid)),
      by_fill[..., column], float(moved[column]), float(scales[column]),
    )
    for column, term in enumerate(terms)
  ]  # fmt: skip


def _saliency_map(
  explainer, design, cells, values, errors, dof, by_fill, moved: float, scale: float
) -> SaliencyMap:
  rounding, valid = measure.FLAT * max(scale, moved), np.asarray(cells.valid)
  p = np.full(valid.shape, np.nan)
  small = np.abs(values) <= rounding  # rounding of what may be no effect
  p[valid] = effects.p_values(np.where(small, 0, values)[valid], errors[valid], dof)
  p = statistics.holm(p)
  names = explainer.fill.split("+") if len(by_fill) else []
  notes: list[str] = []
  if small.all() and design.num_masks:
    values, errors, by_fill = (np.zeros_like(a) for a in (values, errors, by_fill))
    p[valid] = 1
    notes.append(_why_flat(explainer, moved, rounding))
  elif (
    np.isfinite(p).any()
    and np.nanmin(p) > statistics.SIGNIFICANCE
    and np.abs(values).max() < SMALL * moved
  ):
    notes.append(
      "no region's effect is more than what other masks might give (5 % for the whole map), though"
      f" masked versions move the score by up to {moved:.2g}: take more masks; or effects cancel"
      f" ({_what_cancels(explainer)})"
    )
  if len(by_fill) and not small.all():
    notes += _fills_differ(names, by_fill, errors[valid], valid)

  def pixels(v):
    return np.asarray(design.upsample(jnp.asarray(v), cells))

  return SaliencyMap(
    pixels(values), pixels(errors), values, errors, p, tuple(zip(names, by_fill, strict=True)),
    tuple(notes),
  )  # fmt: skip


def _why_flat(explainer: "Explainer", moved: float, rounding: float) -> str:
  if moved <= rounding:
    return "hiding any region leaves the score as it is: the map is flat"
  return (
    "no region has an effect of its own here, so the map is flat; but masked versions move the"
    f" score by up to {moved:.2g}: effects cancel ({_what_cancels(explainer)})"
  )


def _what_cancels(explainer: "Explainer") -> str:
  """Where an effect may hide, and what would show it."""
  both, window = explainer.mode == "both", isinstance(explainer.design, designs.SlidingWindow)
  why = [] if window else ["regions that matter together; try design='sliding_window'"]
  why += ["both images are masked; try mode='fixed'"] if both else []
  return "; ".join(why) or "see docs/generators.md"


def _fills_differ(
  names: Sequence[str], by_fill: np.ndarray, errors: np.ndarray, valid: np.ndarray
) -> list[str]:
  """Says so where a map behind one fill has less than half in common with that behind another.

  Correlations over cells, of what is not noise (Spearman 1904): the map is the mean of F fills' and
  has a variance of errors², so that of one fill has F² / F times as much.
  """
  noise = len(names) * float((errors**2).mean())
  maps = by_fill[:, valid]
  found = []
  for a, b in itertools.combinations(range(len(names)), 2):
    own = [max(float(maps[i].var()) - noise, 0) for i in (a, b)]
    if min(own) > noise:  # else it is mostly noise that differs
      together = float(np.cov(maps[a], maps[b], bias=True)[0, 1])
      found.append((together / np.sqrt(own[0] * own[1]), names[a].strip(), names[b].strip()))
  r, a, b = min(found, default=(1.0, "", ""))
  if r >= ALIKE:
    return []
  return [
    f"the fill decides much of this map: those behind {a} and behind {b} correlate by {r:.2f}"
    " (noise taken off), and the standard error knows nothing of it; look at both (maps_by_fill)"
  ]


def _read(explainer: "Explainer", e: Effects, directions: list[np.ndarray]) -> list[SaliencyMap]:
  """Maps of an image against each direction [k d], averaged over its k rows."""
  mean = np.stack([d.mean(axis=0) for d in directions], axis=1)  # [d r]
  matrix, count = np.asarray(e.matrix), fills.num_fills(explainer.fill)
  each = [effects.reference_groups(e.design, rows @ matrix.T, count) for rows in directions]
  moved = [measure.largest_change(e.design, e.moments, rows.T).max() for rows in directions]
  return saliency_maps(
    explainer, e.design, e.cells, measure.project(e.moments, mean), e.strata, each,
    np.array(moved), np.ones(len(directions)),
  )  # fmt: skip


# --- explanations ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Side:
  """A reference as the query's effects are read against it."""

  shown: Photo | Embedding
  whole: np.ndarray
  directions: np.ndarray  # [k d]: the whole's embedding, or those of its masked versions
  effects: Effects | None
  passes: int
  notes: tuple[str, ...] = ()


def _side(explainer: "Explainer", reference: Any, *, ours: bool = False) -> _Side:
  """A reference: its whole embedding, and those that the query's effects are read against.

  Args:
    ours: whether effects are known to be of the model as it is now.
  """
  before, both = engine_lib.spent(explainer.engine), explainer.mode == "both"
  if isinstance(reference, Embedding):
    notes = ("the reference is an embedding, which can't be masked: only the query was",)
    unit = reference.unit
    return _Side(reference, unit, unit[None], None, 0, notes if both else ())
  measured = None
  if isinstance(reference, Effects):
    measured = reference if ours else measure_effects(explainer, reference)
    photo, whole = measured.photo, measured.whole
    before = engine_lib.spent(explainer.engine)  # without what told that they are of this model
  else:
    photo = explainer.photo(reference)
    whole = explainer.embed([photo])[0]
  directions = whole[None]
  if both:
    perturbed = masked_embeddings(explainer, photo, len(whole))
    directions = perturbed if len(perturbed) else directions
  spent = engine_lib.spent(explainer.engine) - before
  passes = spent + (measured.passes if measured is not None else 0)
  return _Side(photo, whole, directions, measured, passes)


def _explanation(
  explainer: "Explainer", measured: Effects, side: _Side, saliency: SaliencyMap,
  rather_than: Photo | Embedding | None = None,
) -> Explanation:  # fmt: skip
  return Explanation(
    query=measured.photo,
    reference=side.shown,
    score=float(measured.whole @ side.whole),
    saliency=saliency,
    grid=explainer.design.grid,
    query_cells=np.asarray(measured.cells.labels),
    settings=measured.settings | {"mode": explainer.mode},
    warnings=[*measured.notes, *side.notes, *saliency.notes],
    passes=measured.passes + side.passes,
    make_reference_side=(
      functools.partial(_reference_side, explainer, measured, side)
      if isinstance(side.shown, Photo)
      else None
    ),
    contrast=rather_than,
    ranker=explainer.ranker,
    key=explainer.key,
    embeddings=(measured.whole, side.whole),
    directions=side.directions,
    effects=measured,
  )


def _reference_side(explainer: "Explainer", measured: Effects, side: _Side) -> ReferenceSide:
  """The map on the reference, whose own effects are read against the query's embedding."""
  before = engine_lib.spent(explainer.engine)
  other = measure_effects(explainer, side.effects or side.shown)
  moved = fingerprint.distance(other.whole[None], side.whole[None])
  if explainer.model.on_host and side.effects is None and moved > fingerprint.TOLERANCE:
    _check_whole(explainer, other.photo, side.whole, "")  # it was trained since
  query = _side(explainer, measured, ours=True)
  saliency = _read(explainer, other, [query.directions])[0]
  labels = np.asarray(other.cells.labels)
  spent = engine_lib.spent(explainer.engine) - before
  if measured.design.num_masks == 0:
    return ReferenceSide(saliency, labels, None, None, spent)
  valid = (np.asarray(measured.cells.valid), np.asarray(other.cells.valid))
  return ReferenceSide(saliency, labels, (measured.matrix, other.matrix), valid, spent)
