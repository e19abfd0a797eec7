"""Explainer: a model and a mask design; explanations of pairs come out."""

import contextlib
import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from sane_jax.datasets import images as images_lib
from sane_jax.maps import effects, learned, pictures, reasons, scores
from sane_jax.maps import engine as engine_lib
from sane_jax.maps.explanation import Effects, Embedding, Explanation, Photo
from sane_jax.maps.generators import make_design, name_of, stoppable
from sane_jax.models import fingerprint as fingerprint_lib
from sane_jax.models import model as model_lib
from sane_jax.models.model import Model
from sane_jax.ops import arrays, fills, learned_mask, numerics

MODES = ("fixed", "both")


class Method(NamedTuple):
  """How explanations come about; each function takes the explainer first."""

  check: Callable[..., None]  # raises ValueError where model, design and fill don't go together
  explain_many: Callable[..., list[Explanation]]  # query, references
  contrast: Callable[..., Explanation]  # query, a, b
  measure: Callable[..., Effects]  # image
  explain_pairs: Callable[..., list[Explanation]] | None = None  # None: one after the other


EFFECTS = Method(effects.check, effects.explain_many, effects.contrast, effects.measure_effects)
SCORES = Method(effects.check, scores.explain_many, scores.contrast, scores.measure_effects)
LEARNED = Method(
  learned.check, learned.explain_many, learned.contrast, learned.measure_effects,
  learned.explain_pairs,
)  # fmt: skip


class Explainer:
  """Explains why a similarity model gives two images their score.

  Args:
    model: from `load_model` or one of the `from_...` functions.
    design: name of the generator (`rise`, `sliding_window`, `lime`, `kernel_shap`, `hadamard`,
      `learned_mask`, `random`) or a design object such as `Hadamard(num_masks=256)`.
    num_masks: masked images an image; the design's own number by default.
    fill: what is shown where a mask hides: 'mean', 'black', 'grey', 'white', 'blur', a colour in
      [0, 1], or an image (an array, a PIL image, a `pathlib.Path`), which is fitted to the model as
      photos are; the design's own by default. Names joined by +, as in 'mean+blur', take turns: the
      map is their mean. With `hadamard` whole replicates of 128 masks take turns where there are
      two or more for each fill, as with `num_masks=512`, and each fill's own map is there too
      (`Explanation.maps_by_fill`); with fewer, and other designs, pairs of masks do.
    key: seed, typed JAX key, or a key's words. All masks are a function of it: the same key, the
      same answer.
    mode: 'fixed' perturbs the query alone, 'both' the reference as well.
    chunk_size: at most this many masked images exist at once; 'fastest' finds it by trying.
    devices: JAX devices that share each chunk; all local ones by default.
    on_progress: called with (images done, images in all) while a long pass runs.
    attributes: ranks attributes for each explanation, see `load_attributes`.
    tolerance: stops as soon as the map's standard error, median over cells, is at most this share
      of its largest value; looked at after each replicate of the design (of each fill, where whole
      replicates take turns), from the fourth on.
      `num_masks` is then the most that is spent, by default 8 times the design's own number;
      `Explanation.settings` says how many it took, and that many give the same map again.
    dtype: precision of the model, such as 'bfloat16' on an accelerator; sums and maps stay float32.
    **options: further fields of the design, such as `grid=(7, 7)`.

  Attributes:
    encoder_passes: images that went through the encoder since the explainer was made. 2 of them,
      once a model, try whether it gives an image one answer, and are of no explanation.
  """

  @numerics.ours()
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
      count = fills.num_fills(self.design.default_fill if fill is None else fill)
      self.design = stoppable(self.design, tolerance, num_masks, count)
    self.fill = self.design.default_fill if fill is None else self._fill(fill)
    self.mode = mode
    self.ranker = attributes
    self.key = _key(key)
    with numerics.theirs():  # parameters keep their types
      self.engine = engine_lib.make_engine(model, chunk=chunk_size, devices=devices)
    self.engine.on_progress = on_progress
    self._method.check(self)  # what can't be is refused before any mask is spent
    reasons.check_model(attributes, model, engine_lib.on_one_device(self.engine))

  def _fill(self, fill: Any) -> Any:
    """A name as it is; a colour [3] as an array; a picture [h w 3] as the model sees it."""
    if isinstance(fill, str):
      return pictures.find(fill)
    if not isinstance(fill, Photo | Image.Image | os.PathLike):
      fill = arrays.to_numpy(fill)
      if fill.ndim < 2:
        return fill.astype(np.float32)
    return pictures.keep(self.photo(fill).pixels)

  @property
  def _method(self) -> Method:
    if isinstance(self.design, learned_mask.LearnedMask):
      return LEARNED
    return SCORES if self.model.embed is None else EFFECTS

  def __getstate__(self) -> dict[str, Any]:
    """All but what belongs to this process: the devices, and who is shown the progress."""
    return {k: v for k, v in self.__dict__.items() if k != "engine"} | {"chunk": self.engine.chunk}

  def __setstate__(self, state: dict[str, Any]) -> None:
    """Here it runs on all local devices, and has spent no pass."""
    chunk = state.pop("chunk")
    self.__dict__.update(state)
    self.engine = engine_lib.make_engine(self.model, chunk=chunk)
    if not isinstance(self.fill, str) and self.fill.ndim == 3:
      pictures.keep(self.fill)

  @property
  def has_effects(self) -> bool:
    """Whether `effects` of an image can be measured: not for learned masks and scores alone."""
    return self._method is EFFECTS

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
      fill = fill.tolist() if fill.ndim == 1 else pictures.name(fill)
    return {
      "model": self.model.name,
      "image_size": list(self.model.image_size),
      "fit": self.model.fit,
      "design": name_of(self.design),
      **{k: list(v) if isinstance(v, tuple) else v for k, v in options.items()},
      "fill": fill,
      "mode": self.mode,
      "key": np.asarray(jax.random.key_data(self.key)).tolist(),
      "jax": jax.__version__,
    }

  def fingerprint(self) -> fingerprint_lib.Fingerprint:
    """What the model does now, by which it is known again: its name says little.

    Three passes of test pictures, which no explanation counts. A model of JAX is what it was when
    the explainer was made; one on the host may have been trained since, and is looked at each time.
    """
    if self.model.on_host:
      return fingerprint_lib.fingerprint(self.model)
    return self._fixed_fingerprint

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 of the model's parameters; '' of a model on the host, which keeps its own."""
    if self.model.on_host:
      return ""
    return fingerprint_lib.digest_of(engine_lib.on_one_device(self.engine))

  @functools.cached_property
  def _fixed_fingerprint(self) -> fingerprint_lib.Fingerprint:
    return fingerprint_lib.fingerprint(self.model, engine_lib.on_one_device(self.engine))

  # --- images -------------------------------------------------------------------------------------

  def photo(self, source: Any, name: str | None = None) -> Photo:
    """An image as the model sees it, from a path, PIL image, uint8 or float array.

    Raises:
      ImageError: it can't be read; says what was given and what would do.
    """
    if isinstance(source, Photo):
      return source
    path = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    if name is None:
      name = os.path.basename(path) if path is not None else ""
    pixels = images_lib.fit_image(
      images_lib.read_image(source),
      self.model.image_size,
      fit=self.model.fit,
      crop_fraction=self.model.crop_fraction,
      interpolation=self.model.interpolation,
    )
    return Photo(name, pixels, path)

  @numerics.ours()
  def embed(self, images: Sequence[Any]) -> np.ndarray:
    """Unit embeddings [n d] of whole images; one encoder pass each."""
    engine_lib.require_embeddings(self.model, "embed")
    photos = [self.photo(image) for image in images]
    pixels = np.stack([photo.pixels for photo in photos])
    return engine_lib.embed_images(self.engine, pixels, names=[photo.name for photo in photos])

  @numerics.ours()
  def masked_embeddings(self, image: Any) -> np.ndarray:
    """Unit embeddings [k d] of the K masked versions of a reference, as mode 'both' shows them."""
    photo = self.photo(image)
    return effects.masked_embeddings(self, photo, self.embed([photo]).shape[1])

  @numerics.ours()
  def scores(self, queries: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Scores [b] of queries [b h w 3] with one reference, of a model of scores; b passes."""
    return scores.scores(self, queries, reference)

  @contextlib.contextmanager
  def progress(self, show: Callable[[int, int], None]) -> Iterator[None]:
    """Within, `show` is called with (images done, images in all) while a long pass runs.

    What it raises ends the pass.
    """
    before, self.engine.on_progress = self.engine.on_progress, show
    try:
      yield
    finally:
      self.engine.on_progress = before

  # --- effects ------------------------------------------------------------------------------------

  @numerics.ours()
  def effects(self, image: Any) -> Effects:
    """What every explanation of this image needs: N masked passes and one whole.

    The result may be given wherever an image is, and then costs no further pass. It is of this
    model: one with other weights, of whatever name, refuses it.

    Raises:
      ModelError: NaN or zero-norm embeddings.
    """
    return self._method.measure(self, image)

  # --- explanations -------------------------------------------------------------------------------

  @numerics.ours()
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
      ValueError: a reference and an embedding, or neither; an embedding of another space; effects
        that another model, other weights or other settings gave.
    """
    if (reference is None) == (reference_embedding is None):
      raise ValueError("explain takes a reference or a reference_embedding, one of the two")
    if reference_embedding is not None:
      reference = Embedding(reference_embedding, reference_name)
    return _say(self._method.explain_many(self, query, [reference]))[0]

  @numerics.ours()
  def explain_many(self, query: Any, references: Sequence[Any]) -> list[Explanation]:
    """Why `query` matches each of `references`: one pass over its masks serves them all.

    Each explanation's `encoder_passes` are those that it rests on, shared ones included;
    `Explainer.encoder_passes` counts what was really spent.
    """
    if not len(references):
      raise ValueError("explain_many needs at least one reference; given none")
    return _say(self._method.explain_many(self, query, references))

  @numerics.ours()
  def explain_pairs(self, pairs: Sequence[tuple[Any, Any]]) -> list[Explanation]:
    """Explains many pairs; a learned mask learns all of theirs in one loop."""
    if self._method.explain_pairs is None:
      return [
        self._explain_pair(query, reference, f"pair {i} of {len(pairs)}")
        for i, (query, reference) in enumerate(pairs, start=1)
      ]
    return _say(self._method.explain_pairs(self, pairs))

  def _explain_pair(self, query: Any, reference: Any, which: str) -> Explanation:
    try:
      return self.explain(query, reference)
    except ValueError as error:
      error.args = (f"{which}: {error}", *error.args[1:])
      raise

  @numerics.ours()
  def contrast(self, query: Any, a: Any, b: Any) -> Explanation:
    """Why `query` matches `a` rather than `b`: the map of s(query, a) − s(query, b).

    `score` is that difference; the explanation's reference is `a` and its contrast `b`.
    """
    return _say([self._method.contrast(self, query, a, b)])[0]


def _key(key: Any) -> jax.Array:
  """A typed key of a seed, of a key, or of a key's words, as `jax.random.PRNGKey` gives them.

  Raises:
    ValueError: none of these, or several keys.
  """
  what = "key is a seed, one key of jax.random.key, or its words (two of threefry2x32, four of rbg)"
  if jax.numpy.issubdtype(getattr(key, "dtype", np.int32), jax.dtypes.prng_key):
    if key.shape:
      raise ValueError(f"{what}; given {key.shape} keys: take one of them, keys[0]")
    return key
  words = arrays.to_numpy(key)
  if words.dtype.kind not in "iu" or words.ndim > 1:
    raise ValueError(f"{what}; given {key!r}")
  default = jax.random.key(0)
  if not words.ndim:
    return jax.random.key(int(words))
  kinds = {2: "threefry2x32", 4: "rbg"}
  kinds[jax.random.key_data(default).size] = str(jax.random.key_impl(default))
  if words.size not in kinds or words.min() < 0 or words.max() >= 2**32:
    raise ValueError(f"{what}; given {key!r}")
  words = jax.numpy.asarray(words.astype(np.uint32))
  return jax.random.wrap_key_data(words, impl=kinds[words.size])


def _say(explanations: list[Explanation]) -> list[Explanation]:
  """Says each warning as a Python warning too, where the explainer was called."""
  for explanation in explanations:
    for note in explanation.warnings:
      warnings.warn(note, stacklevel=3)
  return explanations
