"""The images served, by key, and what is known of each in each view.

A view is a design and a fill. An index holds one; further ones are measured while the server runs,
and so are uploads. Either way, a map needs the same of an image:

    map of (q, r)             E_q e_r      [c]     both perturbed: E_q m_r
    why a rather than b       E_q (e_a − e_b)
    standard error of a map   ‖e_r F_q‖, pooled over cells
    correspondence            cosines of the rows of E_q and E_r
"""

import hashlib
import os
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cachetools
import numpy as np

from sane_jax.datasets.images import ImageError
from sane_jax.maps import index_build
from sane_jax.maps.generators import SMOOTH
from sane_jax.maps.index import ExplanationIndex
from sane_jax.models import fingerprint
from sane_jax.ops import resampling
from sane_jax.ops.effects import ErrorFactor
from sane_jax.web.guard import Refusal

KEY = 20  # hexadecimal digits of an image's key
UPLOAD = "u-"  # with which keys of uploads begin


class View(NamedTuple):
  """A design and a fill.

  Attributes:
    key: 'design~fill', in links.
    design, fill: as in the explainer's settings.
    stored: the index that holds it; None for one that is measured while the server runs.
    modes: 'fixed', and 'both' where mean masked embeddings are known.
    passes: of the encoder for an image, where it is measured; 0 where it is not known.
    settings: of the explainer.
  """

  key: str
  design: str
  fill: str
  stored: ExplanationIndex | None
  modes: tuple[str, ...]
  passes: int
  settings: dict[str, Any]

  @property
  def smooth(self) -> bool:
    return self.design in SMOOTH


class Measured(NamedTuple):
  """One image in one view.

  Attributes:
    matrix: E [c d].
    embedding: unit embedding [d] of the whole image.
    masked: mean embedding [d] of its masked versions; None where it is not known.
    factor: of the standard error; None where it is not known.
    grid: (rows, columns) of the cells.
    passes: encoder passes that it took while the server ran; 0 from an index.
  """

  matrix: np.ndarray
  embedding: np.ndarray
  masked: np.ndarray | None
  factor: ErrorFactor | None
  grid: tuple[int, int]
  passes: int

  @property
  def nbytes(self) -> int:
    arrays = (
      self.matrix,
      self.embedding,
      self.masked,
      self.factor.columns if self.factor else None,
    )
    return sum(array.nbytes for array in arrays if array is not None)


class Upload(NamedTuple):
  """An uploaded image, as the model sees it."""

  name: str
  pixels: np.ndarray  # [h w 3] float32 in [0, 1]


class Cache:
  """Values, the least recently used dropped; safe to use from several threads.

  Args:
    most_bytes: of all together. The last value put stays, even if it alone is larger.
    size_of: bytes of a value.
  """

  def __init__(self, most_bytes: int, size_of: Callable[[Any], int]):
    # Of a larger value cachetools would raise.
    self._values = cachetools.LRUCache(most_bytes, lambda value: min(size_of(value), most_bytes))
    self._lock = threading.Lock()

  def get(self, key: Any) -> Any:
    with self._lock:
      return self._values.get(key)

  def put(self, key: Any, value: Any) -> None:
    with self._lock:
      self._values[key] = value

  def __len__(self) -> int:
    return len(self._values)


class Collection:
  """Images of one or several indexes, and uploads.

  Args:
    indexes: of the same model and images, each of another design or fill; the first is shown first.
    read_picture: id -> image as the model sees it, [h w 3] uint8 or float32 in [0, 1]; read from
      the paths that the index knows by default.
    name_of: id -> what to call the image, and find it by; the id without its folders by default.
    upload_bytes, measured_bytes: of uploads, and of measurements, that are cached at a time.

  Attributes:
    views: by key, those of the indexes.
    keys: of all images, in order.
    mapped: of those that have maps of their own in the first index; the others are references.

  Raises:
    ValueError: two indexes of one design and fill, or of different models.
  """

  def __init__(
    self, indexes: Sequence[ExplanationIndex], *,
    read_picture: Callable[[str], np.ndarray] | None = None,
    name_of: Callable[[str], str] | None = None, upload_bytes: int = 64 << 20,
    measured_bytes: int = 256 << 20,
  ):  # fmt: skip
    self.indexes = tuple(indexes)
    self.views: dict[str, View] = {}
    for index in self.indexes:
      view = view_of(index)
      if view.key in self.views:
        raise ValueError(
          f"{self.indexes[0].folder} and {index.folder} are both of design {view.design} and fill"
          f" {view.fill}; give one of them"
        )
      _check_same_model(self.indexes[0], index)
      self.views[view.key] = view
    self.first = next(iter(self.views.values()))
    self._read_picture = read_picture or self._read_from_index
    ids = dict.fromkeys(name for index in self.indexes for name in index.ids)
    self.ids = {key_of(name): name for name in ids}
    if len(self.ids) != len(ids):
      raise ValueError("two ids of the collection have the same key")
    self.keys = tuple(self.ids)
    self._key_of_id = {name: key for key, name in self.ids.items()}
    names = map(name_of, ids) if name_of is not None else shorten(tuple(ids))
    self.labels = dict(zip(self.keys, names, strict=True))
    shown = self.indexes[0]
    self.mapped = frozenset(key for key, name in self.ids.items() if shown.has_effects(name))
    self._order = sorted(self.keys, key=lambda key: key not in self.mapped)
    self._folded = {key: self.labels[key].casefold() for key in self._order}
    self.left_out = {n: why for index in self.indexes for n, why in index.left_out.items()}
    self.uploads = Cache(upload_bytes, lambda upload: upload.pixels.nbytes)
    self._measured = Cache(measured_bytes, lambda measured: measured.nbytes)
    self._looked: dict[tuple[str, str], tuple[Any, str]] = {}  # see `state`

  # --- images -------------------------------------------------------------------------------------

  def name_of(self, key: str) -> str:
    """What to call an image.

    Raises:
      Refusal: 404, there is none.
    """
    if key in self.labels:
      return self.labels[key]
    return self.upload(key).name

  def upload(self, key: str) -> Upload:
    """An uploaded image.

    Raises:
      Refusal: 404, there is none, or it is no longer cached.
    """
    found = self.uploads.get(key) if key.startswith(UPLOAD) else None
    if found is None:
      raise Refusal(
        404, "There is no such image here. Photos that were sent are kept in memory alone: until"
        " the server ends, or newer ones take their place."
        if key.startswith(UPLOAD)
        else "There is no such image in this collection.",
      )  # fmt: skip
    return found

  def search(self, text: str) -> list[str]:
    """Keys of the images whose name holds the text, upper or lower case alike.

    Those with maps of their own first, and each in order.
    """
    text = text.casefold().strip()
    return [
      key
      for key, folded in self._folded.items()
      if text in folded and self.ids[key] not in self.left_out
    ]

  def random_key(self) -> str:
    """Of an image that has maps of its own.

    Raises:
      Refusal: 404, none has.
    """
    if not self.mapped:
      raise Refusal(404, "No image is measured yet.")
    return self._order[random.randrange(len(self.mapped))]

  def picture(self, key: str) -> np.ndarray:
    """The image as the model sees it, [h w 3] uint8.

    Raises:
      ImageError: it can't be read.
      Refusal: 404, there is none.
    """
    pixels = self.pixels(key)
    return pixels if pixels.dtype == np.uint8 else np.round(pixels * 255).astype(np.uint8)

  def pixels(self, key: str) -> np.ndarray:
    """As `picture`, in its own dtype: uint8, or float32 in [0, 1].

    Of a photo that was replaced since it was measured, what its file shows now (see `state`).
    """
    if key not in self.ids:
      return self.upload(key).pixels
    if state := self.state(key):
      index = next(i for i in self.indexes if self.ids[key] in i)
      pixels = index.photo_now(self.ids[key]).pixels
      if self.state(key) != state:
        raise ImageError(f"{self.labels[key]} changes while it is read; try again")
      return pixels
    return self._read_picture(self.ids[key])

  # --- photos that are others now -----------------------------------------------------------------

  def state(self, key: str, index: ExplanationIndex | None = None) -> str:
    """'' where an image is what an index measured; else the SHA-256 of what its file holds now.

    What the index has of such an image is not its, and is not shown. Files that are gone, those in
    buckets and images that came without files are taken for what they were. A file is read again
    when its size or its times changed.

    Args:
      index: by default the first that has the image.
    """
    name = self.ids.get(key)
    index = index or next((i for i in self.indexes if name in i), None)
    if name is None or index is None or name not in index:
      return ""
    before, path = index.digest_of(name), index.file_of(name)
    try:
      found = None if before is None or path is None else os.stat(path)
    except (OSError, ValueError):
      return ""
    if found is None or path is None:
      return ""
    signature = (path, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
    where = (key, str(index.folder))
    looked = self._looked.get(where)
    if looked is None or looked[0] != signature:
      now = index_build.digest_of_file(path)
      looked = (signature, "" if now in (None, before) else str(now))
      self._looked[where] = looked
    return looked[1]

  def measured(self, key: str, view: View, state: str | None = None) -> Measured | None:
    """What was measured while the server ran, of an image as it is now, or in another state."""
    state = self.state(key, view.stored) if state is None else state
    return self._measured.get((key, state, view.key))

  def keep(self, key: str, view: View, state: str, measured: Measured) -> None:
    """Keeps what was measured of an image in a state."""
    self._measured.put((key, state, view.key), measured)

  def why_changed(self, key: str) -> str:
    """What is said where a photo was replaced and is not measured."""
    return (
      f"{self.labels[key]} was replaced by another photo since it was measured. Build the index"
      " again, and it is measured anew."
    )

  def _read_from_index(self, name: str) -> np.ndarray:
    index = next(i for i in self.indexes if name in i)
    return index.photo(name).pixels

  # --- what is known of them ----------------------------------------------------------------------

  def side(self, key: str, view: View, other: str) -> Measured | None:
    """What is known of an image, in the space that it shares with another; None where it has to be
    measured first.

    Raises:
      Refusal: 404, there is none; 409, it could not be read, or its index was interrupted.
    """
    if view.stored is not None and key in self.ids and not self.state(key, view.stored):
      return self._from_index(key, view.stored, other)
    if key not in self.ids:
      self.upload(key)
    return self.measured(key, view)

  def _from_index(self, key: str, index: ExplanationIndex, other: str) -> Measured | None:
    name, towards = self._known(index, key), self.ids.get(other)
    if towards is not None:
      towards = self._known(index, other)
    if not index.has_effects(name, towards):
      return None
    space = 0 if towards is None else index.space_of(towards)
    masked = index.masked_embeddings([name], space)[0] if "both" in index.modes else None
    return Measured(
      index.effect_matrix(name, towards), index.embeddings([name], space)[0], masked,
      index.error_factor(name, towards), index.grid, 0,
    )  # fmt: skip

  def embedding(self, key: str, view: View, other: str) -> np.ndarray:
    """The unit embedding [d] of an image, in the space that it shares with another.

    Raises:
      Refusal: as `side`; 409 for an upload, or a photo that was replaced, that is not measured.
    """
    index = view.stored or self.first.stored
    assert index is not None  # the first view is of an index
    state = self.state(key, index)
    if key in self.ids and not state:
      towards = self.ids.get(other)
      space = 0 if towards is None else index.space_of(self._known(index, other))
      return index.embeddings([self._known(index, key)], space)[0]
    if key not in self.ids:
      self.upload(key)
    for each in (view, *self.views.values()):
      if (found := self.measured(key, each, state)) is not None:
        return found.embedding
    if state:
      raise Refusal(409, self.why_changed(key))
    raise Refusal(409, "That photo is not measured yet, or no longer kept; send it again.")

  def known_embedding(self, key: str, view: View, other: str) -> np.ndarray | None:
    """The same; None of a photo that was replaced since and is not measured."""
    try:
      return self.embedding(key, view, other)
    except Refusal:
      if self.state(key, view.stored or self.first.stored):
        return None
      raise

  def masked(self, key: str, view: View, other: str) -> np.ndarray | None:
    """The mean embedding [d] of an image's masked versions; None where it is not known."""
    if view.stored is not None and key in self.ids and not self.state(key, view.stored):
      if "both" not in view.modes:
        return None
      towards = self.ids.get(other)
      space = 0 if towards is None else view.stored.space_of(self._known(view.stored, other))
      return view.stored.masked_embeddings([self._known(view.stored, key)], space)[0]
    found = self.measured(key, view)
    return None if found is None else found.masked

  def nearest(self, key: str, view: View, count: int) -> list[tuple[str, float]]:
    """Keys and scores of the images most like one, itself left out; compares with all of them."""
    index = view.stored or self.first.stored
    assert index is not None
    more = count
    while True:  # those that were replaced are not what was measured
      if key in self.ids and not self.state(key, index):
        name = self._known(index, key)
        names = index.nearest(name, more)
        scores = index.scores(name, names)
      else:
        vector = self.embedding(key, view, key)
        names = index.nearest_to(vector, more)
        scores = index.embeddings(names) @ vector
      found = [(self._key_of_id[n], float(s)) for n, s in zip(names, scores, strict=True)]
      kept = [(k, s) for k, s in found if k != key and not self.state(k, index)]
      if len(kept) >= count or len(names) < more:
        return kept[:count]
      more += 2 * (len(found) - len(kept))

  def _known(self, index: ExplanationIndex, key: str) -> str:
    """The id of an image of an index.

    Raises:
      Refusal: 409, the index has it not, or it is not measured there.
    """
    name = self.ids.get(key)
    if name is None:
      self.upload(key)
      raise Refusal(409, "A photo that was sent is in no index.")
    if why := index.left_out.get(name):
      raise Refusal(409, f"{self.labels[key]} was left out of the index: {why}")
    if name not in index:
      raise Refusal(
        409, f"{self.labels[key]} is not measured with this design and fill: it is not in that"
        " index, or the index was interrupted. Build it again, and it goes on from there.",
      )  # fmt: skip
    return name


def key_of(name: str) -> str:
  """Of an id, of whatever letters: short, the same in all indexes, and no path."""
  return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:KEY]


def shorten(names: Sequence[str]) -> list[str]:
  """Ids for a browser: common parent folders are stripped so that server paths are not exposed."""
  folders = [name.split("/")[:-1] for name in names]
  depth = 0
  for parts in zip(*folders, strict=False):  # as deep as the shallowest
    if len({*parts}) > 1:
      break
    depth += 1
  return ["/".join(name.split("/")[depth:]) for name in names]


def view_of(index: ExplanationIndex) -> View:
  """The design and fill of an index."""
  design, fill = str(index.settings.get("design", "?")), index.settings.get("fill")
  fill = "default" if fill in (None, "") else str(fill)
  passes = index.settings.get("num_masks") or 0
  return View(f"{design}~{fill}", design, fill, index, index.modes, passes, index.settings)


def _check_same_model(one: ExplanationIndex, other: ExplanationIndex) -> None:
  for name in ("model", "image_size", "fit"):
    ours, theirs = one.settings.get(name), other.settings.get(name)
    if ours != theirs:
      raise ValueError(
        f"the indexes {one.folder} and {other.folder} are not of one model: {name} is {ours!r} and"
        f" {theirs!r}; serve them separately"
      )
  first, second = one.fingerprint, other.fingerprint
  if first is not None and second is not None and not fingerprint.same(first, second):
    raise ValueError(
      f"the indexes {one.folder} and {other.folder} are not of one model: {first.name} has other"
      f" weights there ({first.short}, {second.short}); serve them separately"
    )


# --- cells that can be pointed at -----------------------------------------------------------------


def pool_correspondence(
  table: np.ndarray, query: tuple[int, int], reference: tuple[int, int]
) -> np.ndarray:
  """A correspondence [c c] of two grids as one of the cells that a page tells apart."""
  return resampling.page_pooling(query) @ table @ resampling.page_pooling(reference).T
