"""The explanation index: effect matrices of a whole collection; why any two of its images match.

An image is measured once. After that its map against every other image, the contrast of two
matches, the correspondence of two images and the standard error are products of small matrices that
are on disk: no encoder runs. It stands beside whatever finds the matches: ids in, maps out.
"""

import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from sane_jax.datasets import images as images_lib
from sane_jax.maps import explainer as explainer_lib
from sane_jax.maps import generators, index_arrays, index_build
from sane_jax.maps.explanation import Embedding, Explanation, Photo, ReferenceSide, SaliencyMap
from sane_jax.maps.index_arrays import SHARD
from sane_jax.models import fingerprint as fingerprint_lib
from sane_jax.ops import designs, effects, numerics, statistics

OLD_ERRORS = (
  "this index keeps standard errors in an older form: they are 0.6 to 1.6 times as large as they"
  " should be; build it anew in another folder for better ones"
)


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
    left_out: what could not be read or is no longer there, and why, by id.
    grid: (rows, columns) of the cells.
    settings: of the explainer that measured them.

  Raises:
    ValueError: no index there, a damaged one, or one of another model or design.
  """

  def __init__(
    self, folder: str | os.PathLike[str], explainer: explainer_lib.Explainer | None = None, *,
    cache_bytes: int = 1 << 30,
  ):  # fmt: skip
    self.folder = index_arrays.location(folder)
    manifest = index_arrays.read_manifest(self.folder)
    if manifest is None:
      raise ValueError(
        f"{self.folder} holds no explanation index; build one with"
        " sane_jax.ExplanationIndex.build or --config.job=build_index"
      )
    if explainer is not None:
      index_build.check_same(self.folder, manifest, explainer)
    self.ids: tuple[str, ...] = tuple(manifest["ids"])
    unreadable = index_arrays.read_left_out(self.folder)
    self.left_out: dict[str, str] = manifest["left_out"] | manifest.get("gone", {}) | unreadable
    self.settings: dict[str, Any] = manifest["settings"]
    self.grid: tuple[int, int] = tuple(manifest["grid"])
    self._manifest = manifest
    self._rows = {name: row for row, name in enumerate(self.ids)}
    self._index = index_arrays.open_described(self.folder, manifest, cache_bytes)
    self._positions = {int(row): p for p, row in enumerate(self._index.queries)}
    self._counts = {
      part: index_arrays.read_finished(self._index, part) for part in self._index.finished
    }
    self._whole: dict[str, np.ndarray] = {}
    self._digests: np.ndarray | None = None  # of the photos that were measured [n 32]
    if "photos" in self._index.arrays:
      self._digests = index_arrays.read(self._index, "photos")

  @property
  def fingerprint(self) -> fingerprint_lib.Fingerprint | None:
    """Of the model that measured the images; None of an index from before it was kept."""
    found = self._manifest.get("model")
    return None if found is None else fingerprint_lib.from_json(found)

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
    if row < 0 and isinstance(name, str | os.PathLike):  # another spelling of a path
      row = self._row_of_place.get(index_build.place_of(name), -1)
    if not 0 <= row < len(self.ids):
      some = ", ".join(map(repr, self.ids[:3])) or "none at all"
      raise KeyError(
        f"the index in {self.folder} has no image {name!r}; it has {len(self.ids)}, such as {some}."
        " Add it with sane_jax.ExplanationIndex.build and the same folder"
      )
    if self.ids[row] in self.left_out:
      raise KeyError(f"{self.ids[row]!r} was left out: {self.left_out[self.ids[row]]}")
    if not self._usable[row]:
      raise KeyError(
        f"{self.ids[row]!r} is not measured yet, or its photo changed since: the index was"
        " interrupted; build it again, and it goes on from there"
      )
    return row

  @functools.cached_property
  def _row_of_place(self) -> dict[str, int]:
    """Rows by where their photos are, however that is spelled."""
    return index_build.rows_of(self._manifest)[1]

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
    if self._digests is not None:
      usable &= self._digests.any(axis=1)
    return usable

  def _position(self, name: Any) -> int:
    """Where the effects of an image are."""
    row = self._row(name)
    position = self._positions.get(row, -1)
    if position < 0 or position % SHARD >= self._counts["effects"][position // SHARD]:
      raise KeyError(f"{self.ids[row]!r} has an embedding in this index and no effects")
    if self._digests is not None and "://" not in str(self.folder):
      now = index_arrays.read(self._index, "photos", row)
      if not np.array_equal(now, self._digests[row]):
        raise KeyError(
          f"{self.ids[row]!r} was measured again since the index in {self.folder} was opened, of"
          " another photo; open the index again"
        )
    return position

  def _array(self, part: str = "embeddings") -> np.ndarray:
    """[n t d], read once."""
    if part not in self._index.arrays:
      raise ValueError(
        f"the index in {self.folder} was built with mode 'fixed', so it has no embeddings of masked"
        " references; build one with sane_jax.Explainer(..., mode='both')"
      )
    if part not in self._whole:
      self._whole[part] = index_arrays.read(self._index, part)
    return self._whole[part]

  def _directions(
    self, query: Any, references: Sequence[Any], part: str = "embeddings"
  ) -> tuple[np.ndarray, np.ndarray]:
    """What the query's effects are read against: vectors [r d], and the slots [r] of the effects.

    Args:
      references: ids, positions or `Embedding`s; an `Embedding` is its own direction.
      part: 'embeddings', or 'masked' for those of the references' masked versions.
    """
    slot = self.space_of(query)
    if any(isinstance(r, Embedding) for r in references):  # an index of one space
      each = [
        self._towards(r) if isinstance(r, Embedding) else self._array(part)[self._row(r), slot]
        for r in references
      ]
      return np.stack(each), np.zeros(len(each), int)
    rows = self._all_rows(references)
    return self._array(part)[rows, slot], self._index.types[rows]

  def _slot(self, reference: Any) -> int:
    """Where the effects towards a reference are; the first where none is named."""
    return 0 if reference is None else self.space_of(reference)

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
    vectors, slots = self._directions(query, references)
    return (self._array()[self._row(query), slots] * vectors).sum(axis=1)

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
    return self._usable & (np.linalg.norm(self._array()[:, 0], axis=1) > 0)

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
    part = "embeddings" if mode == "fixed" else "masked"
    vectors, slots = self._directions(query, references, part)
    maps = index_arrays.read_maps_towards(self._index, self._position(query), slots, vectors)
    if self.num_spaces > 1:
      for flat in np.flatnonzero(~maps.any(axis=(1, 2))).tolist():
        self.effect_matrix(query, references[flat])  # says so where that space was not measured
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
    slots = np.array([self._slot(reference)])
    matrix = index_arrays.read_effects(self._index, self._position(query), slots)[0]
    if self.num_spaces > 1 and not matrix.any():  # zeros stand where nothing was measured
      raise KeyError(
        f"{self.ids[self._row(query)]!r} was not measured in the space that it shares with that"
        " reference: this index has, of each image, the spaces of its own matches. Measure it with"
        " sane_jax.Explainer and the model of that condition"
      )
    return matrix

  @numerics.ours()
  def correspondence(self, query: Any, reference: Any) -> np.ndarray:
    """Which region of the query matches which of the reference [c c]; see `Explanation`."""
    matrices = self.effect_matrix(query, reference), self.effect_matrix(reference, query)
    return np.asarray(effects.correspondence(*map(jnp.asarray, matrices)))

  def standard_errors(self, query: Any, references: Sequence[Any]) -> np.ndarray:
    """Standard error [r] of each map's cells: the jackknife's over replicates, pooled over cells.

    It stands for all cells alike; single cells' errors lie between 0.75 and 1.3 times it.

    NaN where the design has a single replicate, whose spread nobody sees.

    Raises:
      ValueError: the index was built without.
    """
    if "spread" not in self._index.arrays:
      raise ValueError(f"the index in {self.folder} was built without standard errors")
    vectors, slots = self._directions(query, references)
    factors = {slot: self._factor(query, slot) for slot in set(slots.tolist())}
    errors = [factors[slot](v) for v, slot in zip(vectors, slots.tolist(), strict=True)]
    return np.asarray(errors, np.float32).reshape(len(slots))

  def error_factor(self, query: Any, reference: Any = None) -> effects.ErrorFactor | None:
    """Gives the standard error of the query's map against any embedding; None without."""
    if "spread" not in self._index.arrays:
      return None
    return self._factor(query, self._slot(reference))

  def _factor(self, query: Any, slot: int) -> effects.ErrorFactor:
    where, rest = (self._position(query), slot), 0.0
    if "rest" in self._index.arrays:
      rest = float(index_arrays.read(self._index, "rest", where))
    columns = index_arrays.read(self._index, "spread", where)
    return effects.ErrorFactor(columns.astype(np.float32), rest)

  def photo(self, name: Any) -> Photo:
    """The image as the model sees it, read again from the path that the index was built of.

    Raises:
      ImageError: it can't be read: it may be gone; or it is another photo than was measured.
      ValueError: the index was built of arrays, or by the job of a data set: no path is known.
    """
    return self.photo_now(name, changed=False)

  def photo_now(self, name: Any, *, changed: bool = True) -> Photo:
    """The same, of what its file shows now.

    Args:
      changed: whether another photo than was measured will do. Its maps in the index are not its.
    """
    source, row = self.file_of(name), self._row(name)
    if source is None:
      sources = self._manifest["sources"]
      raise ValueError(
        f"the index in {self.folder} knows no paths of its images; `maps` gives their maps"
        if sources is None
        else f"{self.ids[row]!r} was given as an array: its picture is not in the index"
      )
    before = None if changed else self.digest_of(name)
    if before is not None and index_build.digest_of_file(source) != before:
      raise images_lib.ImageError(
        f"{source} is another photo than the one that was measured as {self.ids[row]!r}: it was"
        " replaced. Build the index again, and it is measured anew"
      )
    pixels = images_lib.fit_image(
      images_lib.read_image(source), tuple(self.settings["image_size"]), **self._manifest["images"]
    )
    if before is not None and index_build.digest_of_file(source) != before:
      raise images_lib.ImageError(f"{source} changes while it is read; try again")
    return Photo(self.ids[row], pixels, source)

  def file_of(self, name: Any) -> str | None:
    """Where the photo of an image is; None where it was given as an array, or by a data set's job.

    Of the path as it was given, which may be relative, and where that led, the one with the photo.
    """
    row, sources = self._row(name), self._manifest["sources"]
    if sources is None or sources[row] is None:
      return None
    source, place = sources[row], index_build.places_of(self._manifest)[row]
    before = self.digest_of(name)
    if place is None or before is None or index_build.place_of(source) == place:
      return source
    return source if index_build.digest_of_file(source) == before else place

  def digest_of(self, name: Any) -> str | None:
    """SHA-256 of the file that an image was measured from; None where nobody knows it."""
    row, sources = self._row(name), self._manifest["sources"]
    if self._digests is None or sources is None or sources[row] is None:
      return None
    found = self._digests[row]
    return None if np.array_equal(found, index_arrays.UNKNOWN) else found.tobytes().hex()

  def has_changed(self, name: Any) -> bool:
    """Whether the file of an image holds another photo now than the one that was measured.

    False where there is no file, or it is gone: its maps are then of what it was.
    """
    before, source = self.digest_of(name), self.file_of(name)
    if before is None or source is None:
      return False
    now = index_build.digest_of_file(source)
    return now is not None and now != before

  @numerics.ours()
  def explain(self, query: Any, reference: Any) -> Explanation:
    """The pair as an `Explanation`: maps of both sides, correspondence, pages and figures.

    The reference may be an `Embedding`: then there is a map on the query alone.

    The two images are read again, from the paths that the index was built of; the encoder is not.

    Raises:
      KeyError: as `maps`.
      ValueError: the index was built of arrays, or by the job of a data set: no paths are known.
    """
    shown = self.photo(query)
    other = reference if isinstance(reference, Embedding) else self.photo(reference)
    cls = generators.DESIGNS[self.settings["design"]]
    fields = {field.name: self.settings[field.name] for field in dataclasses.fields(cls)}
    design = generators.make_design(self.settings["design"], **fields)
    cells = designs.grid_cells(shown.pixels.shape[:2], self.grid)
    labels = np.asarray(cells.labels)

    old = "spread" in self._index.arrays and "rest" not in self._index.arrays

    def saliency(one: Any, other: Any) -> SaliencyMap:
      values = self.maps(one, [other])[0].ravel()
      error = np.full(values.shape, np.nan, np.float32)
      if "spread" in self._index.arrays:
        error[:] = self.standard_errors(one, [other])[0]
      pixels = [np.asarray(design.upsample(jnp.asarray(v), cells)) for v in (values, error)]
      p = statistics.holm(effects.p_values(values, error, np.inf))
      return SaliencyMap(pixels[0], pixels[1], values, error, p)

    @numerics.ours()
    def reference_side() -> ReferenceSide:
      one, other = self.effect_matrix(query, reference), self.effect_matrix(reference, query)
      matrices = jnp.asarray(one), jnp.asarray(other)
      valid = np.ones(len(one), bool), np.ones(len(other), bool)
      return ReferenceSide(saliency(reference, query), labels, matrices, valid, 0)

    return Explanation(
      query=shown, reference=other, score=float(self.scores(query, [reference])[0]),
      saliency=saliency(query, reference), grid=self.grid, query_cells=labels,
      settings=self.settings, warnings=[OLD_ERRORS] if old else [], passes=0,
      make_reference_side=None if isinstance(reference, Embedding) else reference_side,
    )  # fmt: skip

  # --- building -----------------------------------------------------------------------------------

  @classmethod
  @numerics.ours()
  def build(
    cls, folder: str | os.PathLike[str], explainer: explainer_lib.Explainer,
    images: Sequence[Any] | Mapping[str, Any], *, dtype: str = "float16",
    spread: int | None = None, on_progress: Callable[[int, int], None] | None = None,
    on_change: Callable[[str], Any] = warnings.warn,
  ) -> "ExplanationIndex":  # fmt: skip
    """Measures images: N masked passes each and a whole one; K more in mode 'both'.

    What is there already stays: images with new ids are appended. A photo whose file changed is
    measured again, one that was left out is tried again, one that moved keeps its row under its new
    path, and one whose file is gone is left out for as long. A file is one image, however its path
    is spelled. A build that was killed goes on after its last whole shard of 64, one that Ctrl-C or
    SIGTERM ended after its last image. All devices share an image's masks; processes share the
    shards. An image that can't be read is left out, by name, and costs no other.

    Args:
      folder: a path, or a URL; see `ExplanationIndex`.
      explainer: model, design, fill and key; with mode 'both' the index gives those maps as well.
      images: paths (their text is the id), or images of any kind by id.
      dtype: of the effects: 'float16', or 'int8' at half the size (see `index_arrays.quantize`).
      spread: columns kept for standard errors, 2 d bytes each; 0 for none; by default 32, or as
        many as the index has.
      on_progress: called with (images done, images in all).
      on_change: told what is no longer as it was; a Python warning by default.

    Raises:
      ValueError: no images; one id twice; the folder's index is of another model, design or dtype;
        a design or a model without effect matrices that all images share.
      OSError: the disk is full; what was measured is kept. Or another process writes there.
    """
    index_build.build(
      folder, explainer, images, dtype=dtype, spread=spread, on_progress=on_progress,
      on_change=on_change,
    )  # fmt: skip
    return cls(folder)


def check_same(index: ExplanationIndex, explainer: explainer_lib.Explainer) -> None:
  """Raises ValueError unless an index was made by this model and design; see `ExplanationIndex`."""
  index_build.check_same(index.folder, index._manifest, explainer)
