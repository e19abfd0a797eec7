"""The explanation index: effect matrices of a whole collection; why any two of its images match.

An image is measured once. After that its map against every other image, the contrast of two
matches, the correspondence of two images and the standard error are products of small matrices that
are on disk: no encoder runs. It stands beside whatever finds the matches: ids in, maps out.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from sane_jax.datasets import images as images_lib
from sane_jax.maps import explainer as explainer_lib
from sane_jax.maps import index_arrays
from sane_jax.maps.explanation import (
  Effects,
  Embedding,
  Explanation,
  Photo,
  ReferenceSide,
  SaliencyMap,
)
from sane_jax.maps.index_arrays import SHARD
from sane_jax.models.model import ModelError
from sane_jax.ops import designs, effects
from sane_jax.runs import files, processes

SPREAD = 8  # columns of the standard error's factor
PROBE = 1e-3  # an embedding that moved by more is another model's
READ_AHEAD = 16  # images decoded before they are needed
MANIFEST = "index.json"
LEFT_OUT = "left_out/"
_FIELDS = {  # of the manifest that are always there
  "settings": dict, "probe": list, "grid": list, "dtype": str, "spread": int, "masked": bool,
  "num_types": int, "ids": list, "sources": list | None, "left_out": dict,
}  # fmt: skip
# What the effects rest on; `mode` and the version of JAX do not change them.
_OF_NO_ACCOUNT = ("mode", "jax")


class ExplanationIndex:
  """Explains pairs of a collection from what was measured of each image.

      index = sane_jax.ExplanationIndex.build("runs/index", explainer, photos)
      maps = index.maps("a.jpg", ["b.jpg", "c.jpg"])     # [2 rows columns], no encoder

  Args:
    folder: where `build`, or the job build_index, left it: a path, or a URL of a key-value store
      that tensorstore knows (gs://, s3://, file://).
    explainer: if given, what made the index must be the same model and design.
    cache_bytes: what was read of the index is kept in memory, up to this much.

  Attributes:
    ids: names of the images, in order.
    left_out: what could not be read, and why, by id.
    grid: (rows, columns) of the cells.
    settings: of the explainer that measured them.

  Raises:
    ValueError: no index there, a damaged one, or one of another model or design.
  """

  def __init__(
    self, folder: str | os.PathLike[str], explainer: explainer_lib.Explainer | None = None, *,
    cache_bytes: int = 1 << 30,
  ):  # fmt: skip
    self.folder = _location(folder)
    manifest = _read_manifest(self.folder)
    if manifest is None:
      raise ValueError(
        f"{self.folder} holds no explanation index; build one with"
        " sane_jax.ExplanationIndex.build or --config.job=build_index"
      )
    if explainer is not None:
      _check_same(self.folder, manifest, explainer)
    self.ids: tuple[str, ...] = tuple(manifest["ids"])
    self.left_out: dict[str, str] = manifest["left_out"] | read_left_out(self.folder)
    self.settings: dict[str, Any] = manifest["settings"]
    self.grid: tuple[int, int] = tuple(manifest["grid"])
    self._manifest = manifest
    self._rows = {name: row for row, name in enumerate(self.ids)}
    self._index = _open(self.folder, manifest, cache_bytes)
    self._positions = {int(row): p for p, row in enumerate(self._index.queries)}
    self._counts = {
      part: np.asarray(counts.read().result(), int) for part, counts in self._index.finished.items()
    }
    self._whole: dict[str, np.ndarray] = {}

  def __len__(self) -> int:
    return len(self.ids)

  def __contains__(self, name: Any) -> bool:
    """Whether an image of that id is there, was readable, and is measured."""
    row = self._rows.get(name, -1)
    return row >= 0 and bool(self._usable[row])

  @property
  def num_spaces(self) -> int:
    """In how many spaces images are compared."""
    return self._manifest["num_types"]

  @property
  def modes(self) -> tuple[str, ...]:
    """Those that `maps` can answer."""
    return ("fixed", "both") if self._manifest["masked"] else ("fixed",)

  def space_of(self, name: Any) -> int:
    """The space in which others are compared with an image; 0 where there is one."""
    return int(self._index.types[self._row(name)])

  def has_effects(self, name: Any, reference: Any = None) -> bool:
    """Whether an image has maps of its own, or only serves as a reference.

    Args:
      reference: asks for the space that they share; an index of several spaces has, of an image,
        those of its matches alone.
    """
    try:
      self._position(name)
      return reference is None or self.effect_matrix(name, reference) is not None
    except KeyError:
      return False

  # --- ids ----------------------------------------------------------------------------------------

  def _row(self, name: Any) -> int:
    """Row of an id, or of a position in `ids`.

    Raises:
      KeyError: no such id, or an image that could not be read or is not measured yet.
    """
    row = int(name) if isinstance(name, int | np.integer) else self._rows.get(str(name), -1)
    if not 0 <= row < len(self.ids):
      some = ", ".join(map(repr, self.ids[:3])) or "none at all"
      raise KeyError(
        f"the index in {self.folder} has no image {name!r}; it has {len(self.ids)}, such as {some}."
        " Add it with sane_jax.ExplanationIndex.build and the same folder"
      )
    if self.ids[row] in self.left_out:
      raise KeyError(f"{self.ids[row]!r} was left out: {self.left_out[self.ids[row]]}")
    if row % SHARD >= self._counts["embeddings"][row // SHARD]:
      raise KeyError(
        f"{self.ids[row]!r} is not measured yet: the index was interrupted; build it again, and it"
        " goes on from there"
      )
    return row

  def _all_rows(self, names: Sequence[Any]) -> np.ndarray:
    """Rows [n] of many ids or positions; raises as `_row` does."""
    if isinstance(names, np.ndarray) and names.dtype.kind in "iu":
      rows = names.astype(int)
    else:
      find = self._rows
      integers = int, np.integer
      rows = np.fromiter(
        (n if isinstance(n, integers) else find.get(n, -1) for n in names), int, len(names)
      )
    usable = (rows >= 0) & (rows < len(self.ids))
    usable[usable] = self._usable[rows[usable]]
    for wrong in np.flatnonzero(~usable).tolist():
      rows[wrong] = self._row(names[wrong])  # says what is wrong; or it was a path
    return rows

  @functools.cached_property
  def _usable(self) -> np.ndarray:
    """Which rows [n] are measured and were readable."""
    shards, places = np.divmod(np.arange(len(self.ids)), SHARD)
    usable = places < self._counts["embeddings"][shards]
    usable[[self._rows[name] for name in self.left_out if name in self._rows]] = False
    return usable

  def _position(self, name: Any) -> int:
    """Where the effects of an image are."""
    row = self._row(name)
    position = self._positions.get(row, -1)
    if position < 0 or position % SHARD >= self._counts["effects"][position // SHARD]:
      raise KeyError(f"{self.ids[row]!r} has an embedding in this index and no effects")
    return position

  def _array(self, part: str = "embeddings") -> np.ndarray:
    """[n t d], read once."""
    if part not in self._index.arrays:
      raise ValueError(
        f"the index in {self.folder} was built with mode 'fixed', so it has no embeddings of masked"
        " references; build one with sane_jax.Explainer(..., mode='both')"
      )
    if part not in self._whole:
      self._whole[part] = self._index.arrays[part].read().result()
    return self._whole[part]

  def _vectors(self, query: Any, references: Sequence[Any], part: str = "embeddings"):
    """Embeddings [r d] of references in the space they share with the query."""
    rows = self._all_rows(references)
    slot = self._index.types[self._row(query)]
    return rows, self._array(part)[rows, slot]

  def _towards(self, reference: Embedding) -> np.ndarray:
    """[d] of a reference that is no image.

    Raises:
      ValueError: it is of another model's space, or the index has several.
    """
    _, num_types, size = self._index.embeddings.shape
    if num_types > 1:
      raise ValueError(
        f"the index in {self.folder} has {num_types} spaces, one a type of image, and an embedding"
        " is of one: explain it with sane_jax.Explainer and a model of that condition"
      )
    if len(reference.unit) != size:
      raise ValueError(
        f"a reference embedding has {len(reference.unit)} numbers, and those of the index in"
        f" {self.folder} have {size}: it is of another model's space"
      )
    return reference.unit

  # --- what is asked ------------------------------------------------------------------------------

  def embeddings(self, names: Sequence[Any], space: int = 0) -> np.ndarray:
    """Unit embeddings [n d] float32, for the index that searches; in one of the model's spaces."""
    return self._array("embeddings")[self._all_rows(names), space]

  def masked_embeddings(self, names: Sequence[Any], space: int = 0) -> np.ndarray:
    """Mean embeddings [n d] of the images' masked versions, as mode 'both' reads maps against.

    Raises:
      ValueError: the index was built with mode 'fixed'.
    """
    return self._array("masked")[self._all_rows(names), space]

  def scores(self, query: Any, references: Sequence[Any]) -> np.ndarray:
    """Cosine similarity of the query with each reference [r]; see `maps` for what they may be."""
    if any(isinstance(r, Embedding) for r in references):
      own = self._array()[self._row(query), 0]
      each = [
        own @ self._towards(r) if isinstance(r, Embedding) else self.scores(query, [r])[0]
        for r in references
      ]
      return np.asarray(each, np.float32)
    rows, vectors = self._vectors(query, references)
    return (self._array()[self._row(query), self._index.types[rows]] * vectors).sum(axis=1)

  def nearest(self, query: Any, count: int) -> list[str]:
    """Ids of the `count` images most like the query, without itself. Compares with all of them."""
    row = self._row(query)
    every = self._array()
    if self.num_spaces == 1:
      scores = every[:, 0] @ every[row, 0]
    else:
      scores = (every[row, self._index.types] * every[:, self._index.types[row]]).sum(axis=1)
    return self._largest(np.where(np.arange(len(scores)) != row, scores, -np.inf), count)

  def nearest_to(self, embedding: np.ndarray, count: int) -> list[str]:
    """The same of a unit embedding [d] that need not be in the index.

    Raises:
      ValueError: the index has several spaces, and an embedding is in one of them.
    """
    if self.num_spaces > 1:
      raise ValueError(f"the index in {self.folder} has {self.num_spaces} spaces; give an id")
    return self._largest(self._array()[:, 0] @ embedding, count)

  def _largest(self, scores: np.ndarray, count: int) -> list[str]:
    """Ids of the `count` largest of the scores [n], of images that were read."""
    scores = np.where(self._known, scores, -np.inf)
    count = min(count, int(np.isfinite(scores).sum()))
    top = np.argpartition(-scores, max(count - 1, 0))[:count]
    return [self.ids[r] for r in top[np.argsort(-scores[top], kind="stable")]]

  @functools.cached_property
  def _known(self) -> np.ndarray:
    """Which rows [n] have an embedding."""
    return np.linalg.norm(self._array()[:, 0], axis=1) > 0

  def maps(self, query: Any, references: Sequence[Any], *, mode: str = "fixed") -> np.ndarray:
    """Saliency maps [r rows columns] of the query against each reference; signed.

    Args:
      query: id, or position in `ids`.
      references: likewise; as many as there are; or `Embedding`s.
      mode: 'fixed' perturbs the query, 'both' the reference as well (an index that was built by an
        explainer of that mode).

    Raises:
      KeyError: an id that is not there, or could not be read; an image that was not measured in the
        space that it shares with a reference.
      ValueError: an unknown mode, or one that the index was not built for.
    """
    if mode not in explainer_lib.MODES:
      raise ValueError(f"the mode is 'fixed' or 'both'; given {mode!r}")
    if any(isinstance(r, Embedding) for r in references):
      each = [
        (self.effect_matrix(query) @ self._towards(r)).reshape(self.grid)
        if isinstance(r, Embedding)
        else self.maps(query, [r], mode=mode)[0]
        for r in references
      ]
      return np.stack(each)
    rows = self._all_rows(references)
    part = "embeddings" if mode == "fixed" else "masked"
    maps = index_arrays.read_maps(self._index, self._position(query), rows, self._array(part))
    if self.num_spaces > 1:
      for row in rows[~maps.any(axis=(1, 2))].tolist():
        self.effect_matrix(query, row)  # says so where that space was not measured
    return maps

  def contrast(self, query: Any, a: Any, b: Any) -> np.ndarray:
    """Why the query matches `a` rather than `b`: the map of s(query, a) − s(query, b)."""
    first, second = self.maps(query, [a, b])
    return first - second

  def effect_matrix(self, query: Any, reference: Any = None) -> np.ndarray:
    """E [c d] of an image, in the space it shares with the reference.

    Raises:
      KeyError: as `maps`.
    """
    slot = 0 if reference is None else int(self._index.types[self._row(reference)])
    position = self._position(query)
    matrix = index_arrays.read_effects(self._index, position, np.array([slot]))[0]
    if self.num_spaces > 1 and not matrix.any():  # zeros stand where nothing was measured
      raise KeyError(
        f"{self.ids[self._row(query)]!r} was not measured in the space that it shares with that"
        " reference: this index has, of each image, the spaces of its own matches. Measure it with"
        " sane_jax.Explainer and the model of that condition"
      )
    return matrix

  def correspondence(self, query: Any, reference: Any) -> np.ndarray:
    """Which region of the query matches which of the reference [c c]; see `Explanation`."""
    matrices = self.effect_matrix(query, reference), self.effect_matrix(reference, query)
    return np.asarray(effects.correspondence(*map(jnp.asarray, matrices)))

  def standard_errors(self, query: Any, references: Sequence[Any]) -> np.ndarray:
    """Standard error [r] of each map's cells: the jackknife's over replicates, pooled over cells.

    NaN where the design has a single replicate, whose spread nobody sees.

    Raises:
      ValueError: the index was built without.
    """
    if "spread" not in self._index.arrays:
      raise ValueError(f"the index in {self.folder} was built without standard errors")
    if any(isinstance(r, Embedding) for r in references):
      vectors = np.stack(
        [
          self._towards(r) if isinstance(r, Embedding) else self._vectors(query, [r])[1][0]
          for r in references
        ]
      )
      rows = np.zeros(len(references), int)  # an index of one space
    else:
      rows, vectors = self._vectors(query, references)
    slots, which = np.unique(self._index.types[rows], return_inverse=True)
    spread = self._index.arrays["spread"].oindex[self._position(query), slots].read().result()
    spread = spread.astype(np.float32)
    errors = [np.linalg.norm(v @ spread[s]) for v, s in zip(vectors, which, strict=True)]
    return np.asarray(errors, np.float32).reshape(len(rows))

  def error_factor(self, query: Any, reference: Any = None) -> np.ndarray | None:
    """F [d k] with ‖e · F‖ the standard error of the query's map against e; None without."""
    if "spread" not in self._index.arrays:
      return None
    slot = 0 if reference is None else int(self._index.types[self._row(reference)])
    position = self._position(query)
    return self._index.arrays["spread"][position, slot].read().result().astype(np.float32)

  def photo(self, name: Any) -> Photo:
    """The image as the model sees it, read again from the path that the index was built of.

    Raises:
      ImageError: it can't be read: it may be gone.
      ValueError: the index was built of arrays, or by the job of a data set: no path is known.
    """
    if self._manifest["sources"] is None:
      raise ValueError(f"the index in {self.folder} knows no paths of its images")
    return self._photo(name)

  def explain(self, query: Any, reference: Any) -> Explanation:
    """The pair as an `Explanation`: maps of both sides, correspondence, pages and figures.

    The reference may be an `Embedding`: then there is a map on the query alone.

    The two images are read again, from the paths that the index was built of; the encoder is not.

    Raises:
      KeyError: as `maps`.
      ValueError: the index was built of arrays, or by the job of a data set: no paths are known.
    """
    design = self._design()
    shown = self._photo(query)
    other = reference if isinstance(reference, Embedding) else self._photo(reference)
    cells = designs.grid_cells(shown.pixels.shape[:2], self.grid)
    labels = np.asarray(cells.labels)

    def saliency(one: Any, other: Any) -> SaliencyMap:
      values = self.maps(one, [other])[0].ravel()
      error = np.full(values.shape, np.nan, np.float32)
      if "spread" in self._index.arrays:
        error[:] = self.standard_errors(one, [other])[0]
      pixels = [np.asarray(design.upsample(jnp.asarray(v), cells)) for v in (values, error)]
      return SaliencyMap(pixels[0], pixels[1], values, error)

    def reference_side() -> ReferenceSide:
      one, other = self.effect_matrix(query, reference), self.effect_matrix(reference, query)
      matrices = jnp.asarray(one), jnp.asarray(other)
      valid = np.ones(len(one), bool), np.ones(len(other), bool)
      return ReferenceSide(saliency(reference, query), labels, matrices, valid, 0)

    return Explanation(
      query=shown, reference=other, score=float(self.scores(query, [reference])[0]),
      saliency=saliency(query, reference), grid=self.grid, query_cells=labels,
      settings=self.settings, warnings=[], passes=0,
      make_reference_side=None if isinstance(reference, Embedding) else reference_side,
    )  # fmt: skip

  def _design(self) -> Any:
    name = self.settings.get("design", "")
    cls = explainer_lib.DESIGNS.get(name)
    if cls is None or self._manifest["sources"] is None:
      raise ValueError(
        f"the index in {self.folder} knows no paths of its images; `maps` gives their maps"
      )
    fields = {field.name: self.settings[field.name] for field in dataclasses.fields(cls)}
    return explainer_lib.make_design(name, **fields)

  def _photo(self, name: Any) -> Photo:
    row = self._row(name)
    source, fit = self._manifest["sources"][row], self._manifest["images"]
    if source is None:
      raise ValueError(f"{self.ids[row]!r} was given as an array: its picture is not in the index")
    pixels = images_lib.fit_image(
      images_lib.read_image(source), tuple(self.settings["image_size"]), **fit
    )
    return Photo(self.ids[row], pixels)

  # --- building -----------------------------------------------------------------------------------

  @classmethod
  def build(
    cls, folder: str | os.PathLike[str], explainer: explainer_lib.Explainer,
    images: Sequence[Any] | Mapping[str, Any], *, dtype: str = "float16", spread: int = SPREAD,
    on_progress: Callable[[int, int], None] | None = None,
  ) -> "ExplanationIndex":  # fmt: skip
    """Measures images: N masked passes each and a whole one; K more in mode 'both'.

    What is there already stays: images with new ids are appended. A build that was killed goes on
    after its last whole shard of 64, one that Ctrl-C or SIGTERM ended after its last image. All
    devices share an image's masks; processes share the shards. An image that can't be read is left
    out, by name, and costs no other.

    Args:
      folder: a path, or a URL; see `ExplanationIndex`.
      explainer: model, design, fill and key; with mode 'both' the index gives those maps as well.
      images: paths (their text is the id), or images of any kind by id.
      dtype: of the effects: 'float16', or 'int8' at half the size (see `index_arrays.quantize`).
      spread: columns kept for standard errors, 2 d bytes each; 0 for none.
      on_progress: called with (images done, images in all).

    Raises:
      ValueError: no images; one id twice; the folder's index is of another model, design or dtype;
        a design or a model without effect matrices that all images share.
      OSError: the disk is full; what was measured is kept.
    """
    location = _location(folder)
    design = explainer.design
    if not explainer.has_effects or design.grid is None or isinstance(design, designs.Random):
      raise ValueError(
        "an index keeps effects on embeddings over cells that all images share: it needs a model"
        " that gives embeddings, and design='hadamard', 'rise', 'kernel_shap' or 'sliding_window';"
        f" given {explainer.settings['design']} and {explainer.model.name}"
      )
    named = _named(images)
    if not named:
      raise ValueError("an index needs at least one image; given none")
    manifest = _read_manifest(location)
    if manifest is None:
      manifest = _new_manifest(explainer, dtype, spread)
    else:
      _check_same(location, manifest, explainer)
      for what, ours in (("dtype", dtype), ("spread", manifest["spread"] and spread)):
        if manifest[what] != ours:
          raise ValueError(
            f"the index in {location} has {what}={manifest[what]!r}, and {what}={ours!r} is asked"
            " for; build it in another folder"
          )
      if explainer.mode == "both" and not manifest["masked"]:
        raise ValueError(
          f"the index in {location} was built with mode 'fixed'; give that, or another folder"
        )
    known = set(manifest["ids"])
    fresh = {name: source for name, source in named.items() if name not in known}
    manifest["ids"] += fresh
    manifest["sources"] += [_path(source) for source in fresh.values()]
    manifest["queries"] = len(manifest["ids"])
    processes.wait_for_all("the index's manifest: read")
    if fresh and processes.is_first():
      _write_manifest(location, manifest)
    processes.wait_for_all("the index's manifest: written")
    index = _open(location, manifest, 0)
    sources = dict(zip(manifest["ids"], manifest["sources"], strict=True)) | named
    _measure_missing(location, index, manifest, explainer, sources, on_progress)
    return cls(folder)


def _named(images: Sequence[Any] | Mapping[str, Any]) -> dict[str, Any]:
  """Images by id.

  Raises:
    ValueError: an id twice, or images without one.
  """
  if isinstance(images, Mapping):
    return {str(name): source for name, source in images.items()}
  wrong = [type(image).__name__ for image in images if _path(image) is None]
  if wrong:
    raise ValueError(
      f"an image needs an id: give paths, or a mapping such as {{'a': image}}; given {wrong[0]}"
    )
  names = [os.fspath(image) for image in images]
  twice = [name for name, count in collections.Counter(names).items() if count > 1]
  if twice:
    raise ValueError(f"ids are given once; {twice[0]!r} is there {names.count(twice[0])} times")
  return dict(zip(names, names, strict=True))


def _path(source: Any) -> str | None:
  return os.fspath(source) if isinstance(source, str | os.PathLike) else None


def _location(folder: str | os.PathLike[str]) -> Any:
  text = os.fspath(folder)
  return text if "://" in text else pathlib.Path(text)


# --- what is beside the arrays --------------------------------------------------------------------


def _new_manifest(explainer: explainer_lib.Explainer, dtype: str, spread: int) -> dict[str, Any]:
  model = explainer.model
  return {
    "settings": explainer.settings,
    "images": {
      "fit": model.fit, "crop_fraction": model.crop_fraction, "interpolation": model.interpolation,
    },
    "probe": _probe(explainer),
    "grid": list(explainer.design.grid),
    "dtype": dtype,
    # A single replicate has no spread to keep.
    "spread": spread if effects.num_blocks(explainer.design) - _fixed(explainer.design) > 1 else 0,
    "masked": explainer.mode == "both",
    "num_types": 1,
    "ids": [],
    "sources": [],
    "left_out": {},
  }  # fmt: skip


def _fixed(design: designs.Design) -> int:
  return int(design.num_fixed > 0)


def _probe(explainer: explainer_lib.Explainer) -> list[float]:
  """The model's embedding of a picture that is always the same: other weights move it."""
  h, w = explainer.model.image_size
  y, x = np.mgrid[:h, :w].astype(np.float32)
  waves = [np.sin(6.3 * (a * x / w + b * y / h)) for a, b in ((3, 1), (1, 4), (5, 5))]
  picture = Photo("probe", (0.5 + 0.5 * np.stack(waves, axis=-1)).astype(np.float32))
  return explainer.embed([picture])[0].tolist()


def _check_same(
  location: Any, manifest: dict[str, Any], explainer: explainer_lib.Explainer
) -> None:
  """Raises ValueError unless an index was made by this model and design."""
  ours = json.loads(json.dumps(explainer.settings))
  differing = [
    f"{name} is {manifest['settings'].get(name)!r} there and {ours.get(name)!r} here"
    for name in sorted({*ours, *manifest["settings"]} - {*_OF_NO_ACCOUNT})
    if manifest["settings"].get(name) != ours.get(name)
  ]
  if not differing:
    theirs, mine = np.asarray(manifest["probe"]), np.asarray(_probe(explainer))
    moved = np.linalg.norm(theirs - mine) if theirs.shape == mine.shape else np.inf
    if not moved < PROBE:
      differing = [
        f"the model has the name of the one that made it ({explainer.model.name}) but other"
        f" weights: its embedding of a test picture moved by {moved:.2g}"
      ]
  if differing:
    raise ValueError(
      f"the index in {location} is of another model or design: {'; '.join(differing)}. Explain with"
      " those, or build an index in another folder"
    )


def _read_manifest(location: Any) -> dict[str, Any] | None:
  """What `_write_manifest` wrote, or None.

  Raises:
    ValueError: it is damaged.
  """
  data = _files(location).read(MANIFEST).result()
  if data.state != "value":
    return None
  try:
    manifest = json.loads(data.value)
    _check_manifest(manifest)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{location}/{MANIFEST} is damaged ({error}); build the index anew") from error
  return manifest


def _check_manifest(manifest: Any) -> None:
  """Raises ValueError, naming the field, unless all is there and of its kind."""
  if not isinstance(manifest, dict):
    raise ValueError("it is no JSON object")
  for name, kinds in _FIELDS.items():
    value = manifest.get(name)
    if name not in manifest or not isinstance(value, kinds) or (value is True and kinds is int):
      raise ValueError(f"its {name} is {str(value)[:40] if name in manifest else 'missing'}")
  ids, sources, grid = (manifest[name] for name in ("ids", "sources", "grid"))
  if not all(isinstance(name, str) for name in ids) or len({*ids}) != len(ids):
    raise ValueError("its ids are not texts that differ")
  if sources is not None and (
    len(sources) != len(ids) or not all(isinstance(s, str | None) for s in sources)
  ):
    raise ValueError(f"it has {len(ids)} ids and {len(sources)} sources that are texts or nothing")
  sizes = [*grid, manifest["num_types"], manifest.get("embedding_size", 1)]
  if len(grid) != 2 or not all(type(n) is int and 0 < n < 1 << 20 for n in sizes):
    raise ValueError(f"its sizes are {str(sizes)[:80]}")


def _write_manifest(location: Any, manifest: dict[str, Any]) -> None:
  with files.naming_store_failures(MANIFEST):
    _files(location).write(MANIFEST, json.dumps(manifest).encode()).result()


def _files(location: Any) -> Any:
  return ts.KvStore.open(index_arrays.store(location)).result()


def _open(location: Any, manifest: dict[str, Any], cache_bytes: int) -> index_arrays.EffectIndex:
  count = len(manifest["ids"])
  rows = manifest.get("query_rows")
  return index_arrays.open_index(
    location, queries=np.arange(count) if rows is None else np.asarray(rows, int),
    types=np.asarray(manifest.get("types") or np.zeros(count, int), int),
    num_types=manifest["num_types"], grid=tuple(manifest["grid"]),
    embedding_size=manifest.get("embedding_size") or len(manifest["probe"]),
    dtype=manifest["dtype"], spread=manifest["spread"], masked=manifest["masked"],
    cache_bytes=cache_bytes,
  )  # fmt: skip


def write_manifest(
  folder: pathlib.Path, index: index_arrays.EffectIndex, *, ids: Sequence[str],
  settings: Mapping[str, Any], left_out: Mapping[str, str], dtype: str = "float16",
) -> None:  # fmt: skip
  """Makes a data set's effect index one that `ExplanationIndex` opens by its images' ids."""
  _, num_types, size = index.embeddings.shape
  manifest = {
    "settings": dict(settings), "probe": [], "embedding_size": size, "grid": list(index.grid),
    "dtype": dtype, "spread": 0, "masked": False, "num_types": num_types, "ids": list(ids),
    "sources": None, "left_out": dict(left_out), "types": index.types.tolist(),
    "query_rows": index.queries.tolist(),
  }  # fmt: skip
  _write_manifest(folder, json.loads(json.dumps(manifest, default=list)))


def check_same(index: ExplanationIndex, explainer: explainer_lib.Explainer) -> None:
  """Raises ValueError unless an index was made by this model and design; see `ExplanationIndex`."""
  _check_same(index.folder, index._manifest, explainer)


# --- measuring ------------------------------------------------------------------------------------


def _measure_missing(
  location: Any, index: index_arrays.EffectIndex, manifest: dict[str, Any],
  explainer: explainer_lib.Explainer, sources: Mapping[str, Any],
  on_progress: Callable[[int, int], None] | None,
) -> None:  # fmt: skip
  """Measures the rows that no shard has yet; each process those of shards of its own."""
  missing = processes.agree(index_arrays.missing_shards(index, "effects"), "missing shards")
  work = {shard: index_arrays.missing_rows(index, "effects", shard) for shard in missing}
  mine = missing[jax.process_index() :: processes.count()]
  ids = manifest["ids"]
  folders = {os.path.dirname(path) for path in map(_path, sources.values()) if path is not None}
  folders = {folder for folder in folders if not _is_gone(folder)}
  rows = [row for shard in mine for row in range(work[shard].start, work[shard].stop)]
  photos = _read_ahead(explainer, [(ids[row], sources[ids[row]]) for row in rows])
  done = 0
  for shard in processes.share(missing, "explanation index", polls=SHARD):
    where, whole, left_out = work[shard], 0, {}
    parts = {
      name: np.zeros((where.stop - where.start, *array.shape[1:]), np.float32)
      for name, array in index.arrays.items()
      if name != "scales"
    }
    try:
      for place, row in enumerate(range(where.start, where.stop)):
        try:
          photo = next(photos)
          if isinstance(photo, Exception):
            raise photo
          for name, values in _measure(explainer, photo, manifest).items():
            parts[name][place, 0] = values
        except (images_lib.ImageError, ModelError) as error:  # it stays zero
          _check_folder(sources[ids[row]], folders)
          left_out[ids[row]] = str(error)
        whole, done = place + 1, done + 1
        if on_progress is not None:
          on_progress(done, len(rows))
        processes.stop_if_asked("explanation index")
    finally:  # interrupted, what was measured is kept
      if left_out:
        leave_out(location, shard, left_out)
      # Effects last: then all is there.
      for name in sorted(parts, key=lambda part: part == "effects") if whole else ():
        index_arrays.write_shard(index, name, shard, parts[name][:whole], begin=where.start)


def _check_folder(source: Any, folders: set[str]) -> None:
  """Raises OSError where the folder of an image that can't be read was there, and is not now."""
  path = _path(source)
  if path is not None and os.path.dirname(path) in folders and _is_gone(os.path.dirname(path)):
    raise OSError(
      f"{os.path.dirname(path) or '.'}, the folder of the photos, is gone. What was measured before"
      " is kept; bring it back and run the same again"
    )


def _is_gone(folder: str) -> bool:
  """Whether there is no such folder, or nothing in it: where a disk was mounted."""
  try:
    return next(files.scandir(folder or "."), None) is None
  except OSError:
    return True


def leave_out(location: Any, shard: int, left_out: dict[str, str]) -> None:
  """Keeps what could not be read: a file a shard, so that no two processes write the same."""
  name = f"{LEFT_OUT}{shard:07d}.json"
  before = _files(location).read(name).result()
  known = json.loads(before.value) if before.state == "value" else {}
  with files.naming_store_failures(name):
    _files(location).write(name, json.dumps(known | left_out).encode()).result()


def read_left_out(location: Any) -> dict[str, str]:
  """What `leave_out` kept, of all shards."""
  files = _files(location)
  names = files.list(ts.KvStore.KeyRange(LEFT_OUT, f"{LEFT_OUT}~")).result()
  out: dict[str, str] = {}
  for name in sorted(names):
    try:
      out |= json.loads(files.read(name).result().value)
    except (ValueError, TypeError) as error:
      raise ValueError(
        f"{location}/{name.decode(errors='replace')} is damaged ({error}); remove it"
      ) from error
  return out


def _read_ahead(
  explainer: explainer_lib.Explainer, named: Sequence[tuple[str, Any]]
) -> Iterator[Photo | Exception]:
  """Images as the model sees them, decoded in threads a little before they are needed."""

  def read(item: tuple[str, Any]) -> Photo | Exception:
    name, source = item
    try:
      if source is None:
        raise images_lib.ImageError(
          "it was given as an array when the build was interrupted; give it again"
        )
      return explainer.photo(source, name)
    except Exception as error:  # handed over to whoever asks for this image
      return error

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    waiting: collections.deque[concurrent.futures.Future[Photo | Exception]] = collections.deque()
    for item in named:
      waiting.append(pool.submit(read, item))
      if len(waiting) > READ_AHEAD:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()


def _measure(
  explainer: explainer_lib.Explainer, photo: Photo, manifest: dict[str, Any]
) -> dict[str, np.ndarray]:
  """The rows of an image: embedding [d], effects [c d], and what else the index keeps."""
  measured = explainer.effects(photo)
  out = {"embeddings": measured.whole, "effects": np.asarray(measured.matrix)}
  if manifest["masked"]:
    out["masked"] = explainer.masked_embeddings(photo).mean(axis=0)
  if manifest["spread"]:
    out["spread"] = spread(measured, manifest["spread"])
  return out


def spread(measured: Effects, columns: int) -> np.ndarray:
  """F [d k] with ‖e · F‖ the standard error, pooled over cells, of the map against e.

  With δ_bc the effect of cell c without replicate b, less its mean over b, the jackknife's variance
  of a map's cell is (B − 1)/B Σ_b (δ_bc · e)². Its mean over cells is eᵀ S e with S = F Fᵀ kept to
  the k largest of its eigenvalues; what the others hold is spread evenly over those.
  """
  left_out = np.asarray(
    effects.leave_one_out(measured.design, measured.key, measured.cells, measured.moments)
  )
  count, cells, d = left_out.shape
  deltas = (left_out - left_out.mean(axis=0)).reshape(-1, d) * np.sqrt((count - 1) / count / cells)
  values, vectors = np.linalg.eigh(deltas.T @ deltas)
  values = np.maximum(values[::-1], 0)
  kept = values[:columns]
  kept = kept * (values.sum() / kept.sum() if kept.sum() > 0 else 1)
  factor = np.zeros((d, columns), np.float32)
  factor[:, : len(kept)] = vectors[:, ::-1][:, :columns] * np.sqrt(kept)
  return factor
