"""Explainer: a model and a mask design; explanations of pairs come out."""

import dataclasses
import functools
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sane_jax.datasets import images as images_lib
from sane_jax.maps import engine as engine_lib
from sane_jax.maps import measure, reasons
from sane_jax.maps.explanation import (
  Effects,
  Embedding,
  Explanation,
  Photo,
  ReferenceSide,
  SaliencyMap,
)
from sane_jax.models import model as model_lib
from sane_jax.models.model import Model
from sane_jax.ops import designs, fills, learned_mask
from sane_jax.ops import effects as effects_lib

DESIGNS = {**designs.DESIGNS, "learned_mask": learned_mask.LearnedMask}
MODES = ("fixed", "both")

# With a tolerance, at most this many times the design's own number of masks.
MOST = 8


def make_design(design: Any, num_masks: int | None = None, **options: Any) -> Any:
  """The design of that name, or that design, with `num_masks` and other fields set.

  Raises:
    ValueError: unknown name or field, a number of masks that the design can't have.
  """
  made: Any = DESIGNS[design]() if isinstance(design, str) and design in DESIGNS else design
  if type(made) not in DESIGNS.values():
    raise ValueError(
      f"no design {design!r}; there is {', '.join(DESIGNS)}, or an object such as sane_jax.Rise()"
    )
  name, known = _name_of(made), [field.name for field in dataclasses.fields(made)]
  if num_masks is not None:
    options["num_masks"] = num_masks
  for field, value in options.items():
    if field not in known:
      raise ValueError(f"{name} has no {field!r}; it has {', '.join(known)}. Leave {field} out")
    if isinstance(value, list):
      options[field] = tuple(value)
  _check_grid(options.get("grid"))
  try:
    return dataclasses.replace(made, **options)
  except (TypeError, OverflowError) as error:  # a comparison of what can't be compared
    raise ValueError(f"{name} can't have {options}: {error}") from error


def _check_grid(grid: Any) -> None:
  """Raises ValueError unless it is rows and columns, or None."""
  if grid is None:
    return
  two = isinstance(grid, tuple) and len(grid) == 2
  if not two or not all(isinstance(n, int | np.integer) and 1 <= n <= 255 for n in grid):
    raise ValueError(f"grid is rows and columns, each from 1 to 255, as (8, 8); given {grid!r}")


def _name_of(design: Any) -> str:
  return next(name for name, cls in DESIGNS.items() if cls is type(design))


def _stoppable(design: Any, tolerance: float, num_masks: int | None) -> Any:
  """A design that may stop after any of its replicates.

  Raises:
    ValueError: a tolerance out of range, or a design that has no replicates.
  """
  if not tolerance > 0:
    raise ValueError(
      f"tolerance is a share of the map's largest value, such as 0.1; given {tolerance}"
    )
  if not hasattr(design, "replicate_size") or design.num_fixed == design.num_masks:
    raise ValueError(
      f"{_name_of(design)} draws no masks, so it has no standard error to stop by; leave tolerance"
      " out, or take design='hadamard' or 'rise'"
    )
  if num_masks is None:
    design = dataclasses.replace(
      design, num_masks=design.num_fixed + MOST * (design.num_masks - design.num_fixed)
    )
  if design.num_masks < design.num_fixed + 2 * design.replicate_size:
    raise ValueError(
      f"tolerance needs two replicates or more, of {design.replicate_size} masks each; given"
      f" num_masks={design.num_masks}"
    )
  return design


class Explainer:
  """Explains why a similarity model gives two images their score.

  Args:
    model: from `load_model` or one of the `from_...` functions.
    design: name of the generator (`rise`, `sliding_window`, `lime`, `kernel_shap`, `hadamard`,
      `learned_mask`, `random`) or a design object such as `Hadamard(num_masks=256)`.
    num_masks: masked images an image; the design's own number by default.
    fill: what is shown where a mask hides: 'mean', 'black', 'grey', 'white', 'blur', a colour in
      [0, 1], or an image; the design's own by default. Names joined by +, as in 'mean+blur', take
      turns from one pair of masks to the next: the map is then no single fill's.
    key: seed or typed JAX key. All masks are a function of it: the same key, the same answer.
    mode: 'fixed' perturbs the query alone, 'both' the reference as well.
    chunk_size: at most this many masked images exist at once; 'fastest' finds it by trying.
    devices: JAX devices that share each chunk; all local ones by default.
    on_progress: called with (images done, images in all) while a long pass runs.
    attributes: ranks attributes for each explanation, see `load_attributes`.
    tolerance: stops as soon as the map's standard error, median over cells, is at most this share
      of its largest value; looked at after each replicate of the design, from the second on.
      `num_masks` is then the most that is spent, by default 8 times the design's own number;
      `Explanation.settings` says how many it took, and that many give the same map again.
    dtype: precision of the model, such as 'bfloat16' on an accelerator; sums and maps stay float32.
    **options: further fields of the design, such as `grid=(7, 7)`.

  Attributes:
    encoder_passes: images that went through the encoder since the explainer was made.
  """

  def __init__(
    self,
    model: Model,
    *,
    design: Any = "hadamard",
    num_masks: int | None = None,
    fill: Any = None,
    key: Any = 0,
    mode: str = "fixed",
    chunk_size: int | str | None = None,
    devices: Sequence[Any] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    attributes: reasons.Ranker | None = None,
    tolerance: float | None = None,
    dtype: str | None = None,
    **options: Any,
  ):
    if not isinstance(model, Model):
      raise TypeError(
        "the model is made by sane_jax.load_model, from_jax, from_numpy, from_torch, from_onnx or"
        f" from_score; given {type(model).__name__}"
      )
    if mode not in MODES:
      raise ValueError(f"the mode is 'fixed' or 'both'; given {mode!r}")
    self.model = model = model if dtype is None else model_lib.at_precision(model, dtype)
    self.design = make_design(design, num_masks, **options)
    self.tolerance = tolerance
    if tolerance is not None:
      if model.embed is None:
        raise ValueError(
          f"tolerance needs a model that gives embeddings; {model.name} gives nothing but scores"
        )
      self.design = _stoppable(self.design, tolerance, num_masks)
    self.fill = self.design.default_fill if fill is None else fill
    self.mode = mode
    self.ranker = attributes
    self.key = jax.random.key(key) if isinstance(key, int | np.integer) else key
    if not jax.numpy.issubdtype(self.key.dtype, jax.dtypes.prng_key):
      self.key = jax.random.wrap_key_data(self.key)  # from jax.random.PRNGKey
    self.engine = engine_lib.make_engine(model, chunk=chunk_size, devices=devices)
    self.engine.on_progress = on_progress
    if self._learned and (model.on_host or model.embed is None):
      raise ValueError(
        f"learned_mask follows gradients, which {model.name} on the host can't give; use"
        " design='rise' or 'hadamard', or bring the model in with sane_jax.from_jax"
      )
    if not self._learned or not isinstance(self.fill, str) or self.fill != "median":
      fills.fill_images(self.fill, np.zeros((*model.image_size, 3), np.float32))  # raises early

  @property
  def _learned(self) -> bool:
    return isinstance(self.design, learned_mask.LearnedMask)

  @property
  def has_effects(self) -> bool:
    """Whether `effects` of an image can be measured: not for learned masks and scores alone."""
    return not self._learned and not self._scores_only

  @property
  def _scores_only(self) -> bool:
    return self.model.embed is None

  @property
  def encoder_passes(self) -> int:
    return self.engine.passes

  @property
  def settings(self) -> dict[str, Any]:
    """All that fixes the answer, in plain types."""
    options = {"num_masks": self.design.num_masks} if hasattr(self.design, "num_masks") else {}
    options |= dataclasses.asdict(self.design)
    fill = self.fill
    if not isinstance(fill, str):
      array = np.asarray(fill, np.float32)
      digest = hashlib.sha256(array.tobytes()).hexdigest()
      fill = array.tolist() if array.ndim == 1 else f"image with SHA-256 {digest}"
    return {
      "model": self.model.name,
      "image_size": list(self.model.image_size),
      "fit": self.model.fit,
      "design": _name_of(self.design),
      **{k: list(v) if isinstance(v, tuple) else v for k, v in options.items()},
      "fill": fill,
      "mode": self.mode,
      "key": np.asarray(jax.random.key_data(self.key)).tolist(),
      "jax": jax.__version__,
    }

  # --- images -------------------------------------------------------------------------------------

  def photo(self, source: Any, name: str | None = None) -> Photo:
    """An image as the model sees it, from a path, PIL image, uint8 or float array.

    Raises:
      ImageError: it can't be read; says what was given and what would do.
    """
    if isinstance(source, Photo):
      return source
    if name is None:
      is_path = isinstance(source, str | os.PathLike)
      name = os.path.basename(os.fspath(source)) if is_path else ""
    pixels = images_lib.fit_image(
      images_lib.read_image(source),
      self.model.image_size,
      fit=self.model.fit,
      crop_fraction=self.model.crop_fraction,
      interpolation=self.model.interpolation,
    )
    return Photo(name, pixels)

  def embed(self, images: Sequence[Any]) -> np.ndarray:
    """Unit embeddings [n d] of whole images; one encoder pass each."""
    self._needs_embeddings("embed")
    return engine_lib.embed_images(self.engine, np.stack([self.photo(i).pixels for i in images]))

  def _fill(self, photo: Photo) -> np.ndarray:
    """What hides the image [f h w 3]; a learned mask has one fill [h w 3]."""
    if self._learned and isinstance(self.fill, str) and self.fill == "median":
      return fills.median_blur(photo.pixels, self.design.blur)
    if self._learned:
      return fills.fill_image(self.fill, photo.pixels)
    return fills.fill_images(self.fill, photo.pixels)

  def _needs_embeddings(self, what: str) -> None:
    if self._scores_only:
      raise ValueError(
        f"{what} takes embeddings, and {self.model.name} gives nothing but scores; bring the model"
        " in with sane_jax.from_numpy, from_torch, from_onnx or from_jax"
      )

  def _measure(self, photo: Photo, whole: np.ndarray, **options: Any) -> measure.Measured:
    return measure.measure(
      self.engine, self.design, self.key, photo.pixels, self.fill, whole, **options
    )

  # --- effects ------------------------------------------------------------------------------------

  def effects(self, image: Any) -> Effects:
    """What every explanation of this image needs: N masked passes and one whole.

    The result may be given wherever an image is, and then costs no further pass.

    Raises:
      ModelError: NaN or zero-norm embeddings.
    """
    return self._effects(image, None)

  def _effects(self, image: Any, directions: Sequence[np.ndarray] | None) -> Effects:
    """The same; with a tolerance, until the maps against `directions` [k d] are precise enough.

    Without directions, until the effects on every axis are, taken together.
    """
    if isinstance(image, Effects):
      self._check_space(image.whole, directions)
      anyway = {"mode"} if self.tolerance is None else {"mode", "num_masks"}
      for name, value in self.settings.items():
        if name not in anyway and image.settings[name] != value:
          raise ValueError(
            f"these effects were measured with {name}={image.settings[name]!r}, and this explainer"
            f" has {name}={value!r}: measure them anew from the image"
          )
      return image
    self._needs_embeddings("effects")
    if self._learned:
      raise ValueError("a learned mask belongs to one pair: use explain, or another design")
    photo = self.photo(image)
    before = self.encoder_passes
    whole = self.embed([photo])[0]
    self._check_space(whole, directions)
    measured = self._measure(photo, whole, tolerance=self.tolerance, directions=directions)
    design, lost, notes, settings = measured.design, measured.lost, [], self.settings
    if self.tolerance is not None and measured.reached is not None:
      settings["num_masks"] = design.num_masks
      if measured.reached > self.tolerance:
        notes.append(
          f"the standard error is {measured.reached:.2g} of the map's largest value after"
          f" {design.num_masks} masks, above the tolerance of {self.tolerance:g}; raise num_masks"
        )
    if lost:
      notes.append(
        f"{lost} of {design.num_masks} masked images have an embedding of zero norm; their"
        " score was taken as 0"
      )
    return Effects(
      photo, design, self.key, settings, measured.cells, measured.moments, whole,
      self.encoder_passes - before, tuple(notes),
    )  # fmt: skip

  def _check_space(self, whole: np.ndarray, directions: Sequence[np.ndarray] | None) -> None:
    """Raises ValueError unless the directions [k d] are of the space of the image's embedding."""
    for rows in directions or ():
      if rows.shape[1] != len(whole):
        raise ValueError(
          f"a reference embedding has {rows.shape[1]} numbers, and the embeddings of"
          f" {self.model.name} have {len(whole)}: it is of another model's space. Embed the text"
          " with the other half of the same model"
        )

  def _reference_masking(
    self, photo: Photo
  ) -> tuple[effects_lib.Masking, designs.Design, int, int]:
    """What perturbs a reference when both images are perturbed: masks of a key of their own."""
    design, start, count = self.design.reference_masks()
    # Indices fold in from 0 up, so this key meets none of the query's masks.
    key = jax.random.fold_in(self.key, np.uint32(2**32 - 1))
    cells = designs.design_cells(design, photo.pixels)
    empty = jnp.zeros(0)
    masking = effects_lib.Masking(
      key, cells, jnp.asarray(photo.pixels), jnp.asarray(self._fill(photo)), empty
    )
    return masking, design, start, count

  def masked_embeddings(self, image: Any) -> np.ndarray:
    """Unit embeddings [k d] of the K masked versions of a reference, as mode 'both' shows them."""
    photo = self.photo(image)
    return self._perturbed_embeddings(photo, self.embed([photo]).shape[1])

  def _perturbed_embeddings(self, photo: Photo, d: int) -> np.ndarray:
    masking, design, start, count = self._reference_masking(photo)
    total, _ = engine_lib.run(
      self.engine, effects_lib.RenderMasked(design), effects_lib.StoreFrom(start), masking,
      jnp.zeros((count, d)), count, first=start,
    )  # fmt: skip
    return np.asarray(total)

  # --- maps ---------------------------------------------------------------------------------------

  def _read(self, e: Effects, directions: list[np.ndarray]) -> list[SaliencyMap]:
    """Maps of an image against each direction [k d], averaged over its k rows."""
    mean = np.stack([d.mean(axis=0) for d in directions], axis=1)  # [d r]
    moments = measure.project(e.moments, mean)
    out = self._maps(e.cells, moments, e.design)
    for index, rows in enumerate(directions):
      each = effects_lib.reference_maps(self.design, e.matrix, rows, fills.num_fills(self.fill))
      if len(each):  # their spread joins that of the query's masks
        spread = each.var(axis=0, ddof=1) / len(each)
        values = np.sqrt(out[index].cell_errors ** 2 + spread)
        out[index] = self._saliency_map(e.cells, out[index].cells, values)
    return out

  def _maps(
    self, cells: designs.Cells, moments: effects_lib.Moments, design: Any = None
  ) -> list[SaliencyMap]:
    """One map for each column of the moments' response, by a design that may have stopped early."""
    design = design or self.design
    key = jax.random.fold_in(self.key, 2**31)
    values = np.asarray(effects_lib.effect_matrix(design, key, cells, moments))
    exact = design.num_fixed == design.num_masks > 0
    if exact:
      errors = np.zeros_like(values)  # every mask was shown: nothing was sampled
    else:
      left_out = effects_lib.leave_one_out(design, key, cells, moments)
      errors = effects_lib.standard_error(left_out, np.asarray(cells.valid))
    return [self._saliency_map(cells, *pair) for pair in zip(values.T, errors.T, strict=True)]

  def _saliency_map(self, cells, values, errors) -> SaliencyMap:
    notes = ()
    if np.abs(values).max() < measure.FLAT and self.design.num_masks:
      values, errors = np.zeros_like(values), np.zeros_like(errors)
      notes = ("hiding any region leaves the score as it is: the map is flat",)

    def pixels(v):
      return np.asarray(self.design.upsample(jnp.asarray(v), cells))

    return SaliencyMap(pixels(values), pixels(errors), values, errors, notes)

  # --- explanations -------------------------------------------------------------------------------

  def explain(
    self, query: Any, reference: Any = None, *, reference_embedding: Any = None,
    reference_name: str = "",
  ) -> Explanation:  # fmt: skip
    """Why the model gives `query` and `reference` their score.

    Costs N masked passes and one for each whole image; with mode 'both', K more for the masked
    reference. The map on the reference, and the correspondence, cost as much again, when asked
    for.

    Args:
      query: path, PIL image, uint8 array, float array in [0, 1], or `effects` of an image.
      reference: likewise; or an `Embedding`, here and wherever a reference is taken.
      reference_embedding: [d] in the model's space, in place of a reference: that of a text, for a
        model of texts and images. It has no regions: there is no map on it, and mode 'both' masks
        the query alone.
      reference_name: what to call it: the text.

    Raises:
      ImageError: an image can't be read.
      ModelError: the model's output is no embedding or score.
      ValueError: a reference and an embedding, or neither; an embedding of another space.
    """
    if (reference is None) == (reference_embedding is None):
      raise ValueError("explain takes a reference or a reference_embedding, one of the two")
    if reference_embedding is not None:
      reference = Embedding(reference_embedding, reference_name)
    return self.explain_many(query, [reference])[0]

  def explain_many(self, query: Any, references: Sequence[Any]) -> list[Explanation]:
    """Why `query` matches each of `references`: one pass over its masks serves them all.

    Each explanation's `encoder_passes` are those that it rests on, shared ones included;
    `Explainer.encoder_passes` counts what was really spent.
    """
    if not len(references):
      raise ValueError("explain_many needs at least one reference; given none")
    if self._learned:
      return self.explain_pairs([(query, reference) for reference in references])
    if self._scores_only:
      return self._explain_scores(query, references)
    sides = [self._side(reference) for reference in references]
    measured = self._effects(query, [side.directions for side in sides])
    maps = self._read(measured, [side.directions for side in sides])
    return [
      self._explanation(measured, side, saliency)
      for side, saliency in zip(sides, maps, strict=True)
    ]

  def explain_pairs(self, pairs: Sequence[tuple[Any, Any]]) -> list[Explanation]:
    """Explains many pairs; a learned mask learns all of theirs in one loop."""
    if self._learned:
      return self._explain_learned(pairs)
    return [self.explain(query, reference) for query, reference in pairs]

  def contrast(self, query: Any, a: Any, b: Any) -> Explanation:
    """Why `query` matches `a` rather than `b`: the map of s(query, a) − s(query, b).

    `score` is that difference; the explanation's reference is `a` and its contrast `b`.
    """
    if self._learned:
      raise ValueError("contrast needs a design of masks, not learned_mask; use design='hadamard'")
    if self._scores_only:
      return self._explain_scores(query, [a, b], contrast=True)[0]
    one, other = self._side(a), self._side(b)
    if one.whole.shape != other.whole.shape:
      raise ValueError(
        f"the two references have {len(one.whole)} and {len(other.whole)} numbers: they are not"
        " embeddings of one space"
      )
    measured = self._effects(query, [one.directions - other.directions])
    side = dataclasses.replace(
      one,
      directions=one.directions - other.directions,
      whole=one.whole - other.whole,
      passes=one.passes + other.passes,
      notes=tuple(dict.fromkeys([*one.notes, *other.notes])),
    )
    explanation = self._explanation(measured, side, self._read(measured, [side.directions])[0])
    explanation.contrast = other.photo
    return explanation

  def _side(self, reference: Any) -> "_Side":
    """A reference: its whole embedding, and those that the query's effects are read against."""
    before = self.encoder_passes
    if isinstance(reference, Embedding):
      notes = ()
      if self.mode == "both":
        notes = ("the reference is an embedding, which can't be masked: only the query was",)
      return _Side(reference, reference.unit, reference.unit[None], None, 0, notes)
    if isinstance(reference, Effects):
      photo, whole, measured = reference.photo, reference.whole, self.effects(reference)
    else:
      photo, measured = self.photo(reference), None
      whole = self.embed([photo])[0]
    directions = whole[None]
    if self.mode == "both":
      perturbed = self._perturbed_embeddings(photo, len(whole))
      directions = perturbed if len(perturbed) else directions
    passes = self.encoder_passes - before + (measured.passes if measured is not None else 0)
    return _Side(photo, whole, directions, measured, passes)

  def _explanation(self, measured: Effects, side: "_Side", saliency: SaliencyMap) -> Explanation:
    def reference_side() -> ReferenceSide:
      before = self.encoder_passes
      other = side.effects if side.effects is not None else self.effects(side.photo)
      query = self._side(measured)
      saliency = self._read(other, [query.directions])[0]
      labels = np.asarray(other.cells.labels)
      spent = self.encoder_passes - before
      if isinstance(self.design, designs.Random):
        return ReferenceSide(saliency, labels, None, None, spent)
      valid = (np.asarray(measured.cells.valid), np.asarray(other.cells.valid))
      return ReferenceSide(saliency, labels, (measured.matrix, other.matrix), valid, spent)

    has_regions = isinstance(side.photo, Photo)
    return Explanation(
      query=measured.photo,
      reference=side.photo,
      score=float(measured.whole @ side.whole),
      saliency=saliency,
      grid=self.design.grid,
      query_cells=np.asarray(measured.cells.labels),
      settings=measured.settings | {"mode": self.mode},
      warnings=_warn([*measured.notes, *side.notes, *saliency.notes]),
      passes=measured.passes + side.passes,
      make_reference_side=reference_side if has_regions else None,
      ranker=self.ranker,
      embeddings=(measured.whole, side.whole),
      directions=side.directions,
      effects=measured,
    )

  # --- nothing but scores -------------------------------------------------------------------------

  def _explain_scores(
    self, query: Any, references: Sequence[Any], contrast: bool = False
  ) -> list[Explanation]:
    """Every reference scores every masked query: N passes each, N·K when both are masked."""
    if any(isinstance(reference, Embedding) for reference in references):
      self._needs_embeddings("a reference embedding")
    photo, others = self.photo(query), [self.photo(r) for r in references]
    before = self.encoder_passes
    whole = np.array([self.scores(photo.pixels[None], o.pixels)[0] for o in others])
    shown = [self._perturbed_images(o) if self.mode == "both" else o.pixels[None] for o in others]

    def score(images, features):
      return np.stack(
        [np.mean([self.scores(images, r) for r in versions], axis=0) for versions in shown], axis=1
      )

    measured = self._measure(photo, whole, score=score)
    moments, cells = measured.moments, measured.cells
    spent = self.encoder_passes - before
    if contrast:
      moments = moments._replace(response=moments.response[..., :1] - moments.response[..., 1:])
      whole = whole[:1] - whole[1:]
    maps = self._maps(cells, moments)
    explanations = []
    for other, value, saliency in zip(others, whole, maps, strict=False):
      explanations.append(
        Explanation(
          query=photo,
          reference=other,
          score=float(value),
          saliency=saliency,
          grid=self.design.grid,
          query_cells=np.asarray(cells.labels),
          settings=self.settings,
          warnings=_warn(list(saliency.notes)),
          passes=spent if contrast else spent // len(others),
          make_reference_side=functools.partial(self._score_reference_side, photo, other),
          contrast=others[1] if contrast else None,
          ranker=self.ranker,
        )
      )
    return explanations

  def _score_reference_side(self, query: Photo, reference: Photo) -> ReferenceSide:
    """The map on the reference: its masked versions come second in the score, one at a time."""
    before = self.encoder_passes
    shown = self._perturbed_images(query) if self.mode == "both" else query.pixels[None]
    whole = self.scores(query.pixels[None], reference.pixels)

    def score(images, features):
      return np.array([[self.scores(shown, image).mean()] for image in images], np.float32)

    measured = self._measure(reference, whole, score=score)
    saliency = self._maps(measured.cells, measured.moments)[0]
    labels = np.asarray(measured.cells.labels)
    return ReferenceSide(saliency, labels, None, None, self.encoder_passes - before)

  def scores(self, queries: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Scores [b] of queries [b h w 3] with one reference; b passes."""
    scores = model_lib.call_on_host(self.model, queries, reference)[:, 0]
    self.engine.passes += len(queries)
    if not np.isfinite(scores).all():
      raise model_lib.ModelError(
        f"{self.model.name} gave NaN or infinity for {int((~np.isfinite(scores)).sum())} of"
        f" {len(scores)} images; check its weights and the range it expects (images come in [0, 1])"
      )
    return scores

  def _perturbed_images(self, photo: Photo) -> np.ndarray:
    """The K masked versions [k h w 3] of an image."""
    masking, design, start, count = self._reference_masking(photo)
    if count == 0:
      return photo.pixels[None]
    return np.asarray(effects_lib.RenderMasked(design)(masking, start + jnp.arange(count))[0])

  # --- learned masks ------------------------------------------------------------------------------

  def _explain_learned(self, pairs: Sequence[tuple[Any, Any]]) -> list[Explanation]:
    """All pairs' masks in one loop; a pair's result does not depend on its company."""
    sides = 2 if self.mode == "both" else 1
    photos: list[tuple[Photo, Photo | Embedding]] = []
    for query, reference in pairs:
      if not isinstance(reference, Embedding):
        reference = self.photo(reference)
      elif sides == 2:
        raise ValueError(
          "a learned mask of mode 'both' lies over both images, and an embedding is none; use"
          " mode='fixed'"
        )
      photos.append((self.photo(query), reference))

    def learn() -> list[Explanation]:
      out: list[Explanation] = []
      size = max(1, self.engine.chunk // sides)  # images alive at a time: one a side and a pair
      for begin in range(0, len(photos), size):
        out += self._learn(photos[begin : begin + size])
      return out

    return engine_lib.halving(self.engine, learn)

  def _learn(self, photos: list[tuple[Photo, Photo | Embedding]]) -> list[Explanation]:
    settings, both, model = self.design, self.mode == "both", self.model
    before = self.encoder_passes
    queries, references = zip(*photos, strict=True)
    images = [r for r in references if isinstance(r, Photo)]
    embedded = iter(self.embed(images) if images else ())
    towards = [next(embedded) if isinstance(r, Photo) else r.unit for r in references]
    of_queries = self.embed(list(queries))
    self._check_space(of_queries[0], [t[None] for t in towards])
    wholes = [of_queries, np.stack(towards)]
    whole_passes = self.encoder_passes - before
    # Of an embedding nothing is shown, and with mode 'fixed' of no reference.
    shown = [r if isinstance(r, Photo) else q for q, r in zip(queries, references, strict=True)]

    def stack(arrays):
      return jnp.asarray(np.stack(arrays))

    problem = learned_mask.Problem(
      jnp.broadcast_to(self.key, (len(photos),)),
      stack([p.pixels for p in queries]),
      stack([self._fill(p) for p in queries]),
      stack([p.pixels for p in shown]),
      stack([self._fill(p) for p in shown]),
      jnp.asarray(wholes[1]),
    )
    state = learned_mask.start(settings, len(photos), both=both)
    params, (problem, state) = engine_lib.split(self.engine, (problem, state), len(photos))
    while int(state.step) < settings.num_steps:
      steps = min(25, settings.num_steps - int(state.step))
      state = learned_mask.optimize(
        model.embed, params, settings, problem, state, jnp.int32(steps), both=both
      )
      self.engine.passes += steps * len(photos) * (1 + both)
      if self.engine.on_progress is not None:
        self.engine.on_progress(int(state.step), settings.num_steps)
    masks = np.asarray(state.masks)
    large = np.asarray(learned_mask.enlarge(jnp.asarray(masks), model.image_size))
    grid = (settings.cells, settings.cells)
    labels = np.asarray(designs.grid_cells(model.image_size, grid).labels)

    def saliency(pair, side):
      missing = np.full(masks.shape[-2:], np.nan)
      return SaliencyMap(
        1 - large[pair, side], np.full(model.image_size, np.nan),
        1 - masks[pair, side].ravel(), missing.ravel(),
      )  # fmt: skip

    out = []
    for pair, (query, reference) in enumerate(photos):
      other = None
      if isinstance(reference, Photo):
        other = functools.partial(self._learned_reference_side, query, reference, labels)
      explanation = Explanation(
        query=query,
        reference=reference,
        score=float(wholes[0][pair] @ wholes[1][pair]),
        saliency=saliency(pair, 0),
        grid=grid,
        query_cells=labels,
        settings=self.settings,
        warnings=_warn([] if np.isfinite(masks[pair]).all() else ["the mask holds NaN"]),
        passes=whole_passes // len(photos) + settings.num_steps * (1 + both),
        make_reference_side=other,
        ranker=self.ranker,
        embeddings=(wholes[0][pair], wholes[1][pair]),
      )
      if both:
        explanation._reference_side = ReferenceSide(saliency(pair, 1), labels, None, None, 0)
      out.append(explanation)
    return out

  def _learned_reference_side(self, query: Photo, reference: Photo, labels) -> ReferenceSide:
    """The same with the roles exchanged."""
    before = self.encoder_passes
    swapped = self._learn([(reference, query)])[0]
    return ReferenceSide(swapped.saliency, labels, None, None, self.encoder_passes - before)


@dataclasses.dataclass(frozen=True, eq=False)
class _Side:
  """A reference as the query's effects are read against it."""

  photo: Photo | Embedding
  whole: np.ndarray
  directions: np.ndarray  # [k d]: the whole's embedding, or those of its masked versions
  effects: Effects | None
  passes: int
  notes: tuple[str, ...] = ()


def _warn(notes: list[str]) -> list[str]:
  """Says each note as a Python warning too, and returns them."""
  for note in notes:
    warnings.warn(note, stacklevel=4)
  return notes


def parse_generator(spec: str) -> tuple[str, dict[str, Any]]:
  """'hadamard:num_masks=128,smoothing=0.0' as a name and fields."""
  name, _, fields = spec.partition(":")
  options: dict[str, Any] = {}
  for field in filter(None, re.split(r",(?=\w+=)", fields)):  # commas within [4,4] stay
    key, _, value = field.partition("=")
    try:
      options[key] = json.loads(value.replace("True", "true").replace("False", "false"))
    except json.JSONDecodeError:
      if re.fullmatch(r"[a-z_]+(\+[a-z_]+)*", value):  # a name, as in fill=mean+blur
        options[key] = value
        continue
      raise ValueError(
        f"{field!r} in {spec!r} is no field=value; as in rise:num_masks=500"
      ) from None
  return name, options
