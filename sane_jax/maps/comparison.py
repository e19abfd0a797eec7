"""Where two models' reasons for one score differ, with error bars.

Scores of two models have no common unit, so each map is divided by its own root mean square; models
see a photo through crops and sizes of their own, so both are read on cells of the photo itself.
"""

import dataclasses
import functools
import os
import pathlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sane_jax import report
from sane_jax.datasets import images as images_lib
from sane_jax.datasets import photos as photos_lib
from sane_jax.maps.explainer import Explainer
from sane_jax.maps.explanation import Effects, Embedding, Explanation, Photo
from sane_jax.models.model import Model
from sane_jax.ops import effects, fills, numerics, resampling, statistics
from sane_jax.runs import files

SIDE = 384  # longer side in pixels of the photo that maps are shown on
SUPERPIXEL_GRID = (8, 8)  # where a model's regions are no grid
# A map whose mean square is by more than this share the draw of masks has no scale of its own.
NOISE = 0.75
ROUNDING = 1e-6  # of a scaled map; float32 knows no less

Frame = tuple[float, float, float, float]  # top, left, bottom, right, in pixels of the photo


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
  """How the maps of two models differ on one query and reference. Made by `compare`.

  With m_k the map of model k over cells of the photo, v_k the mean over cells of its variance over
  the draw of masks, and ⟨·⟩ the mean over cells,

      maps_k = m_k / s_k,   s_k² = ⟨m_k²⟩ − v_k,   difference = maps_0 − maps_1.

  Less v_k, for the draw of masks adds to the mean square of a noisy map, and would make it look
  flatter than another that measures the same.

  Attributes:
    explanations: of the two models, each in its own crop, size and unit.
    data: what the page shows but for the matches, frames as shares of the photos.
    frame: top, left, bottom and right of the common cells in the photo, in its pixels.
    shape, reference_shape: (height, width) of the photos as given; `frames`, `reference_frames`:
      what each model sees of them. None and () for a reference that is two embeddings.

  These of `data` are attributes of the comparison as well:

    names: of the models.
    maps: [2 rows columns], without unit: 1 is the map's root mean square.
    errors: [2 rows columns], standard errors of those, the scale's included.
    difference: [rows columns].
    standard_error: [rows columns], of the difference: by leaving out the same replicate of both
      where both drew the same masks (`paired`), else of the two apart.
    p_values: [rows columns], of no difference, by Student's t, after Holm's correction for the
      number of cells: it holds however cells depend on one another. NaN without an error.
    significant: [rows columns], p at most 0.05: with that chance any cell named is a false one.
    scales: s_k, of each map, in the unit of its model's score.
    rank_correlation: Spearman's, of the two maps over cells.
    reliabilities: r_k, share of each map's variance over cells that is not the draw of masks.
    most_correlation: what two maps of these reliabilities would reach at most, sqrt(r₀ r₁)
      (Spearman 1904), if they drew masks that know nothing of each other; where masks are shared
      (`paired`) the noise agrees as well, and the correlation may be higher.
    paired: whether both models saw the same masks, so that part of the noise is common.
    picture: [H W 3] uint8, the photo.
    pixel_maps: [2 H W], each model's scaled map where it sees the photo, NaN elsewhere.
    warnings: what a reader should know.
  """

  explanations: tuple[Explanation, Explanation]
  data: report.ComparisonView
  frame: Frame
  shape: tuple[int, int]
  frames: tuple[Frame, Frame]
  reference_frames: tuple[Frame, ...]
  reference_shape: tuple[int, int] | None

  def __getattr__(self, name: str) -> Any:
    if name in report.ComparisonView._fields:
      return getattr(self.data, name)
    raise AttributeError(f"a comparison has no {name!r}")

  @property
  def grid(self) -> tuple[int, int]:
    """(rows, columns) of the common cells."""
    return self.data.difference.shape[0], self.data.difference.shape[1]

  @property
  def reference_picture(self) -> np.ndarray | None:
    """[H W 3] uint8, the reference's photo; None for embeddings."""
    return self.data.reference

  @property
  def pixel_difference(self) -> Float[np.ndarray, "h w"]:
    """[H W], NaN where not both models see the photo."""
    return self.data.pixel_maps[0] - self.data.pixel_maps[1]

  @property
  def encoder_passes(self) -> int:
    """Of both models, so far."""
    return sum(e.encoder_passes for e in self.explanations)

  @functools.cached_property
  @numerics.ours()
  def matches(self) -> tuple[report.RegionMatch, ...]:
    """The three regions that raise each model's score most, with their best match in the reference.

    Those of them that match none (see `Explanation.match_threshold`) are left out. Empty where the
    reference is an embedding, or regions are no grid. Costs each model the masked
    passes of the reference, on first use.
    """
    found: list[report.RegionMatch] = []
    if self.reference_shape is None:
      return ()
    for k, (e, frame) in enumerate(zip(self.explanations, self.frames, strict=True)):
      if e.grid is None:
        continue
      other = self.reference_frames[k]
      values, table = np.asarray(e.saliency.cells), e.correspondence
      for cell in np.argsort(-values, kind="stable")[:3].tolist():
        best = int(table[cell].argmax())
        if values[cell] > 0 and table[cell, best] >= e.match_threshold:
          found.append(
            report.RegionMatch(
              k, float(values[cell] / self.data.scales[k]), float(table[cell, best]),
              _shares(_cell_box(cell, e.grid, frame), self.shape),
              _shares(_cell_box(best, e.grid, other), self.reference_shape),
            )
          )  # fmt: skip
    return tuple(found)

  def view(self) -> report.ComparisonView:
    """What the page shows. Computes the matches."""
    matches = self.matches  # costs passes
    return self.data._replace(matches=matches, encoder_passes=self.encoder_passes)

  def to_html(self, path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes the comparison as one self-contained page, and returns its path."""
    path = files.at(path)
    title = f"{' and '.join(self.data.names)}: where do their reasons differ?"
    files.write_bytes(path, report.render_comparisons([self.view()], title=title).encode())
    return path


@numerics.ours()
def compare(
  a: Model | Explainer, b: Model | Explainer, query: Any, reference: Any, **options: Any
) -> Comparison:
  """Where the reasons of two models for matching `query` and `reference` differ.

  Costs each model N masked passes and one a whole image, with mode 'both' K more for the masked
  reference; the page as many again, for matches.

  Args:
    a, b: models; or explainers, which carry design, fill and key of their own. With one design and
      one key both see the same masks, and the difference is measured most sharply.
    query: path, PIL image, uint8 or float array of the whole photo: each model crops it its way.
    reference: likewise; or two `Embedding`s, one of each model's space.
    **options: of `Explainer`, where models are given.

  Raises:
    ValueError: models of scores alone, learned masks, two modes; options beside explainers.
    ImageError: an image can't be read.
  """
  explainers = _explainers(a, b, options)
  if isinstance(query, Effects | Embedding):
    raise ValueError(
      "compare takes the query's photo, which each model sees in its own crop and size; given"
      f" {type(query).__name__}"
    )
  photo, name = _read(query)
  both = [p for p in (query, reference) if isinstance(p, str | os.PathLike)]
  measured, found = [], []
  references, reference_photo, reference_name = _references(reference)
  if len(both) == 2:
    name, reference_name = photos_lib.tell_apart(both)
  frames = [_frame(e.model, photo.shape[:2]) for e in explainers]
  for explainer, other in zip(explainers, references, strict=True):
    of_query = explainer.effects(explainer.photo(photo, name))
    measured.append(of_query)
    if reference_photo is not None:
      other = explainer.photo(reference_photo, reference_name)
    found.append(explainer.explain(of_query, other))
  region = _intersection(frames[0], frames[1], photo.shape)
  grid = _common_grid(measured, frames, region)
  values, left_out = [], []
  for one, e, frame in zip(measured, found, frames, strict=True):
    resample = cell_means(one, frame, region, grid)
    values.append(resample @ np.asarray(e.saliency.cells, np.float64))
    left_out.append([each.astype(np.float64) @ resample.T for each in leave_out(one, e)])
  warnings = [f"{n}: {w}" for n, e in zip("AB", found, strict=True) for w in e.warnings]
  if not any(left_out):
    warnings.append("neither design draws masks: there is no error, and every difference is exact")
  scaled = [
    by_own_scale(v, each, one.strata)
    for v, each, one in zip(values, left_out, measured, strict=True)
  ]
  for part, label in zip(scaled, "AB", strict=True):
    if part.noise > NOISE:
      warnings.append(
        f"{label}: {100 * min(part.noise, 1):.0f} % of the map's mean square is the draw of masks;"
        " its scale is rough, and differences can hardly show: raise num_masks"
      )
  if frames[0] != frames[1]:
    warnings.append(
      "the models see different parts of the photo; they are compared where both see it"
    )
  if measured[0].settings["fill"] != measured[1].settings["fill"]:
    warnings.append("the two hide regions behind different fills: what differs may be of the fills")
  paired = _same_masks(*measured)
  difference = scaled[0].values - scaled[1].values
  difference[np.abs(difference) < ROUNDING] = 0
  error, dof = _difference_error(scaled, paired)
  error[error < ROUNDING] = 0
  p = statistics.holm(effects.p_values(difference, error, dof))
  canvas = _canvas(photo)
  pixel_maps = np.stack(
    [
      _on_canvas(e.saliency_map, frame, photo.shape[:2], canvas.shape[:2]) / part.scale
      for e, frame, part in zip(found, frames, scaled, strict=True)
    ]
  )
  reliabilities = scaled[0].reliability, scaled[1].reliability
  data = report.ComparisonView(
    query_name=found[0].query.name or "query",
    reference_name=found[0].reference.name or "reference",
    names=names_of(*explainers),
    picture=canvas,
    reference=None if reference_photo is None else _canvas(reference_photo),
    pixel_maps=pixel_maps,
    maps=np.stack([part.values.reshape(grid) for part in scaled]),
    errors=np.stack([part.errors.reshape(grid) for part in scaled]),
    difference=difference.reshape(grid),
    standard_error=error.reshape(grid),
    p_values=p.reshape(grid),
    significant=np.nan_to_num(p, nan=1).reshape(grid) <= statistics.SIGNIFICANCE,
    frame=_shares(region, photo.shape),
    scores=(found[0].score, found[1].score),
    scales=(scaled[0].scale, scaled[1].scale),
    rank_correlation=statistics.rank_correlation(*(part.values for part in scaled)),
    most_correlation=float(np.sqrt(reliabilities[0] * reliabilities[1])),
    reliabilities=reliabilities,
    paired=paired,
    matches=(),
    encoder_passes=sum(e.encoder_passes for e in found),
    settings=tuple(dict(e.settings) for e in found),
    warnings=tuple(warnings),
  )
  other = reference_photo
  return Comparison(
    (found[0], found[1]), data, region, (photo.shape[0], photo.shape[1]), (frames[0], frames[1]),
    () if other is None else tuple(_frame(e.model, other.shape) for e in explainers),
    None if other is None else (other.shape[0], other.shape[1]),
  )  # fmt: skip


# --- what is given --------------------------------------------------------------------------------


def _explainers(a: Any, b: Any, options: dict[str, Any]) -> tuple[Explainer, Explainer]:
  out = []
  for label, given in zip("ab", (a, b), strict=True):
    if isinstance(given, Explainer) and options:
      raise ValueError(
        f"{', '.join(options)} are for models; {label} is an explainer, which has its own: give"
        " them to sane_jax.Explainer, or give two models"
      )
    explainer = given if isinstance(given, Explainer) else Explainer(given, **options)
    if not explainer.has_effects:
      raise ValueError(
        "compare reads maps off effects on embeddings, replicate by replicate: it needs models that"
        " give embeddings and a design of masks, such as design='hadamard'; given"
        f" {explainer.settings['design']} and {explainer.model.name}"
      )
    out.append(explainer)
  if out[0].mode != out[1].mode:
    raise ValueError(
      f"one explainer perturbs with mode={out[0].mode!r} and the other with mode={out[1].mode!r}:"
      " their maps answer two questions; give both the same mode"
    )
  return out[0], out[1]


def _read(source: Any) -> tuple[np.ndarray, str]:
  """A photo as it is [h w 3] float32, and its name."""
  if isinstance(source, Photo):
    return source.pixels, source.name
  is_path = isinstance(source, str | os.PathLike)
  name = os.path.basename(os.fspath(source)) if is_path else ""
  return images_lib.read_image(source), name


def _references(reference: Any) -> tuple[tuple[Any, Any], np.ndarray | None, str]:
  """An embedding for each model; or the photo that each is to see in its own way, and its name."""
  if isinstance(reference, Embedding):
    raise ValueError(
      f"{reference.name[:60]!r} is an embedding of one model's space; give two, one of each:"
      " (sane_jax.Embedding(of_a, name), sane_jax.Embedding(of_b, name))"
    )
  if isinstance(reference, tuple) and all(isinstance(r, Embedding) for r in reference):
    if len(reference) != 2:
      raise ValueError(f"give two embeddings, one of each model; given {len(reference)}")
    return (reference[0], reference[1]), None, ""
  if isinstance(reference, Effects):
    raise ValueError("compare takes the reference's photo, and not effects that one model measured")
  return (None, None), *_read(reference)


def names_of(a: Explainer, b: Explainer) -> tuple[str, str]:
  """What to call two models on one page: by their fingerprints, too, where they share a name."""
  one, other = a.model.name, b.model.name
  if one != other:
    return one, other
  marks = [e.fingerprint().short for e in (a, b)]
  if marks[0] == marks[1]:
    return f"{one} (A)", f"{other} (B)"
  return f"{one} (A, {marks[0]})", f"{other} (B, {marks[1]})"


# --- where models look ----------------------------------------------------------------------------


def _frame(model: Model, shape: tuple[int, ...]) -> Frame:
  return images_lib.seen_frame(
    (shape[0], shape[1]), model.image_size, fit=model.fit, crop_fraction=model.crop_fraction
  )


def _intersection(a: Frame, b: Frame, shape: tuple[int, ...]) -> Frame:
  """The part of the photo that both see; both see its middle."""
  top, left = max(a[0], b[0], 0), max(a[1], b[1], 0)
  return top, left, min(a[2], b[2], shape[0]), min(a[3], b[3], shape[1])


def _common_grid(measured: list[Effects], frames: list[Frame], region: Frame) -> tuple[int, int]:
  """Cells no finer than either model's: what one resolves coarsely can't be compared finely."""
  grids = [one.design.grid or SUPERPIXEL_GRID for one in measured]
  out = []
  for axis in range(2):
    share = [(region[axis + 2] - region[axis]) / (f[axis + 2] - f[axis]) for f in frames]
    cells = [g[axis] * s for g, s in zip(grids, share, strict=True)]
    out.append(max(1, int(min(cells) + 1e-6)))
  return out[0], out[1]


def cell_means(one: Effects, frame: Frame, region: Frame, grid: tuple[int, int]) -> np.ndarray:
  """Matrix [g c]: means over the common cells of a map that is constant in each of its own."""
  count = len(np.asarray(one.cells.valid))
  if one.design.grid == grid and np.allclose(frame, region, rtol=0, atol=1e-6):
    return np.eye(count)
  labels = np.asarray(one.cells.labels)

  def shares(axis: int) -> np.ndarray:
    cells = np.linspace(region[axis], region[axis + 2], grid[axis] + 1)
    pixels = np.linspace(frame[axis], frame[axis + 2], labels.shape[axis] + 1)
    inside = resampling.overlaps(cells, pixels)
    return inside / inside.sum(axis=1, keepdims=True)

  rows, columns = shares(0), shares(1)
  out = np.zeros((grid[0] * grid[1], count))
  for place, (r, c) in enumerate(np.ndindex(grid)):
    weights = rows[r][:, None] * columns[c][None]
    out[place] = np.bincount(labels.ravel(), weights=weights.ravel(), minlength=count)
  return out


def _canvas(photo: np.ndarray) -> np.ndarray:
  """The photo [h w 3] at a size to show, in its own shape."""
  h, w = photo.shape[:2]
  scale = SIDE / max(h, w)
  size = max(1, round(h * scale)), max(1, round(w * scale))
  fitted = images_lib.fit_image(photo, size, fit="stretch")
  return np.round(fitted * 255).clip(0, 255).astype(np.uint8)


def _on_canvas(
  saliency: np.ndarray, frame: Frame, shape: tuple[int, ...], size: tuple[int, ...]
) -> np.ndarray:
  """A model's map [h w] over the photo [H W], bilinearly; NaN where the model sees nothing."""

  def axis(i: int) -> np.ndarray:
    at = (np.arange(size[i]) + 0.5) * shape[i] / size[i]
    share = (at - frame[i]) / (frame[i + 2] - frame[i])
    matrix = resampling.linear(share * saliency.shape[i], saliency.shape[i])
    matrix[(share < 0) | (share > 1)] = np.nan
    return matrix

  rows, columns = axis(0), axis(1)
  out = (
    np.nan_to_num(rows) @ np.nan_to_num(np.asarray(saliency, np.float64)) @ np.nan_to_num(columns).T
  )
  out[np.isnan(rows).any(axis=1)] = np.nan
  out[:, np.isnan(columns).any(axis=1)] = np.nan
  return out


def _cell_box(cell: int, grid: tuple[int, int], frame: Frame) -> Frame:
  """The cell's box in pixels of the photo."""
  row, column = divmod(cell, grid[1])
  height, width = (frame[2] - frame[0]) / grid[0], (frame[3] - frame[1]) / grid[1]
  top, left = frame[0] + row * height, frame[1] + column * width
  return top, left, top + height, left + width


def _shares(box: Frame, shape: tuple[int, ...]) -> Frame:
  """A box in pixels as shares of the photo."""
  return box[0] / shape[0], box[1] / shape[1], box[2] / shape[0], box[3] / shape[1]


# --- statistics -----------------------------------------------------------------------------------


class Scaled(NamedTuple):
  """A map by its own scale: [g], and what it is when a part of the draw is left out."""

  values: np.ndarray
  left_out: list[np.ndarray]  # [b g] of each independent draw: the query's masks, the reference's
  strata: list[int]  # of each draw
  errors: np.ndarray
  dof: float
  scale: float
  noise: float  # share of the mean square that is the draw of masks
  reliability: float


def leave_out(one: Effects, e: Explanation) -> list[np.ndarray]:
  """The map's cells [b c] without each replicate of the query's masks in turn; and, where the
  reference was masked too, without each group of its masks. Nothing of what was not drawn."""
  assert e.directions is not None
  out: list[np.ndarray] = []
  if one.design.num_fixed < one.design.num_masks:
    towards = jnp.asarray(e.directions.mean(axis=0))[:, None]
    moments = one.moments._replace(
      response=jnp.matmul(one.moments.response, towards, precision="highest")
    )
    left_out = effects.leave_one_out(one.design, one.cells, moments, one.strata)
    out.append(np.asarray(left_out)[..., 0])
  groups = effects.reference_groups(
    one.design, e.directions @ np.asarray(one.matrix).T, fills.num_fills(one.settings["fill"])
  )
  if len(groups):
    out.append((groups.sum(axis=0) - groups) / (len(groups) - 1))
  return out


def by_own_scale(values: np.ndarray, left_out: list[np.ndarray], strata: int = 1) -> Scaled:
  """m / s with s² = ⟨m²⟩ − v; and the same of each leave-one-out map, whose v is larger by that of
  its own draw / (B − 1). `strata` are the fills between which the query's replicates take turns."""
  fills_of = [strata, 1][: len(left_out)]  # of the query's masks, of the reference's
  spreads = [
    (len(each) // s - 1) * (each - _stratum_means(each, s)).var(axis=0).mean() * s
    if len(each)
    else 0.0
    for each, s in zip(left_out, fills_of, strict=True)
  ]
  variance, total = float(sum(spreads)), float((values**2).mean())
  noise = variance / total if total > 0 else 0.0

  def scale(square: np.ndarray, less: float) -> np.ndarray:
    return np.sqrt(np.maximum(square - less, (1 - NOISE) * square))

  whole = float(scale(np.asarray(total), variance)) or 1.0
  parts = []
  for each, spread, s in zip(left_out, spreads, fills_of, strict=True):
    own = scale((each**2).mean(axis=1), variance + spread / max(len(each) - s, 1))
    parts.append(each / np.where(own > 0, own, 1)[:, None])
  terms = [_error(part, s) for part, s in zip(parts, fills_of, strict=True)]
  errors, dof = effects.joint_error(terms, len(values))
  over = float(values.var())
  return Scaled(
    values / whole, parts, fills_of, errors, dof, whole, noise,
    float(np.clip(1 - variance / over, 0, 1)) if over > 0 else 0.0,
  )  # fmt: skip


def _stratum_means(left_out: np.ndarray, strata: int) -> np.ndarray:
  """Of each row [b g], the mean of those of its stratum."""
  count = len(left_out) // strata
  return np.tile(left_out.reshape(count, strata, -1).mean(axis=0), (count, 1))


def _error(left_out: np.ndarray, strata: int) -> tuple[np.ndarray, float]:
  """Standard error [g] of what was left out in turn [b g], and its degrees of freedom."""
  variance, dof = effects.moderated(left_out[..., None], np.ones(left_out.shape[1], bool), strata)
  return np.sqrt(variance[:, 0]), float(dof[0])


def _same_masks(a: Effects, b: Effects) -> bool:
  """Whether replicate i of the one and of the other are of the same masks."""
  keys = [np.asarray(one.settings["key"]) for one in (a, b)]
  return bool(
    a.design == b.design
    and keys[0].shape == keys[1].shape
    and (keys[0] == keys[1]).all()
    and a.moments.gram.shape == b.moments.gram.shape
    and a.strata == b.strata
  )


def _difference_error(scaled: list[Scaled], paired: bool) -> tuple[np.ndarray, float]:
  """Standard error [g] of the difference, and its degrees of freedom."""
  a, b = scaled
  if paired:
    together = zip(a.left_out, b.left_out, a.strata, strict=True)
    return effects.joint_error([_error(x - y, s) for x, y, s in together], len(a.values))
  terms = [(part.errors, part.dof) for part in scaled if part.left_out]
  return effects.joint_error(terms, len(a.values))
