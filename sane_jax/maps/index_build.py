"""Builds an explanation index: measures images, a shard after the other, into what is on disk.

Folders of photos and data sets go through the same `fill_shards`: what is there stays, processes
share the shards, an interruption keeps what was measured, and an image that can't be read is left
out by name.
"""

import collections
import concurrent.futures
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sane_jax.datasets.images import ImageError
from sane_jax.datasets.pipeline import GONE
from sane_jax.maps import engine as engine_lib
from sane_jax.maps import explainer as explainer_lib
from sane_jax.maps import index_arrays, measure
from sane_jax.maps.explanation import Effects, Photo
from sane_jax.maps.index_arrays import EffectIndex
from sane_jax.models.model import ModelError
from sane_jax.ops import effects
from sane_jax.runs import processes

SPREAD = 32  # columns of the standard error's factor
PROBE = 1e-3  # an embedding that moved by more is another model's
READ_AHEAD = 16  # images decoded before they are needed
# What the effects rest on; `mode` and the version of JAX do not change them.
_IGNORED = ("mode", "jax")

Progress = Callable[[int, int], None]  # called with (images done, images in all)


# --- photos ---------------------------------------------------------------------------------------


def build(
  folder: str | os.PathLike[str], explainer: explainer_lib.Explainer,
  images: Sequence[Any] | Mapping[str, Any], *, dtype: str, spread: int | None,
  on_progress: Progress | None = None,
) -> None:  # fmt: skip
  """Measures the images that the index in `folder` lacks; see `ExplanationIndex.build`."""
  location, design = index_arrays.location(folder), explainer.design
  if not explainer.has_effects or design.grid is None or design.num_masks == 0:
    raise ValueError(
      "an index keeps effects on embeddings over cells that all images share: it needs a model"
      " that gives embeddings, and design='hadamard', 'rise', 'kernel_shap' or 'sliding_window';"
      f" given {explainer.settings['design']} and {explainer.model.name}"
    )
  named = _named(images)
  if not named:
    raise ValueError("an index needs at least one image; given none")
  manifest = index_arrays.read_manifest(location)
  if manifest is None:
    manifest = _new_manifest(explainer, dtype, SPREAD if spread is None else spread)
  else:
    check_same(location, manifest, explainer)
    spread = manifest["spread"] if spread is None else manifest["spread"] and spread
    for what, ours in (("dtype", dtype), ("spread", spread)):
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
    index_arrays.write_manifest(location, manifest)
  processes.wait_for_all("the index's manifest: written")
  index = index_arrays.open_described(location, manifest)
  ids = manifest["ids"]
  sources = [named.get(name, path) for name, path in zip(ids, manifest["sources"], strict=True)]

  def read(row: int) -> Photo:
    if sources[row] is None:
      raise ImageError("it was given as an array when the build was interrupted; give it again")
    return explainer.photo(sources[row], ids[row])

  def measure_photo(row: int, photo: Photo) -> dict[str, np.ndarray]:
    measured = explainer.effects(photo)
    out = {"embeddings": measured.whole, "effects": np.asarray(measured.matrix)}
    if manifest["masked"]:
      out["masked"] = explainer.masked_embeddings(photo).mean(axis=0)
    if manifest["spread"]:
      columns, rest = error_factor(measured, manifest["spread"])
      if manifest.get("rest"):
        out["rest"] = np.array(rest, np.float32)
      elif columns.any():  # an older index: the columns stand for the rest as well
        columns = columns * np.sqrt(1 + len(columns) * rest**2 / (columns**2).sum())
      out["spread"] = columns
    return {name: values[None] for name, values in out.items()}

  names = [name for name in index.arrays if name not in ("scales", "effects")]
  fill_shards(
    location, index, [Part((*names, "effects"), np.arange(len(ids)), measure_photo)], ids, read,
    stored=np.array([_path(source) is not None for source in sources]),
    on_progress=on_progress,
  )  # fmt: skip


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


def _new_manifest(explainer: explainer_lib.Explainer, dtype: str, spread: int) -> dict[str, Any]:
  model, design = explainer.model, explainer.design
  replicates = effects.num_blocks(design) - (design.num_fixed > 0)
  return {
    "settings": explainer.settings,
    "images": {
      "fit": model.fit, "crop_fraction": model.crop_fraction, "interpolation": model.interpolation,
    },
    # A single replicate has no spread to keep.
    "probe": _probe(explainer), "grid": list(design.grid), "dtype": dtype,
    "spread": spread if replicates > 1 else 0, "rest": spread > 0 and replicates > 1,
    "masked": explainer.mode == "both", "num_types": 1, "ids": [], "sources": [], "left_out": {},
  }  # fmt: skip


def _probe(explainer: explainer_lib.Explainer) -> list[float]:
  """The model's embedding of a picture that is always the same: other weights move it."""
  h, w = explainer.model.image_size
  y, x = np.mgrid[:h, :w].astype(np.float32)
  waves = [np.sin(6.3 * (a * x / w + b * y / h)) for a, b in ((3, 1), (1, 4), (5, 5))]
  picture = Photo("probe", (0.5 + 0.5 * np.stack(waves, axis=-1)).astype(np.float32))
  return explainer.embed([picture])[0].tolist()


def check_same(
  location: Any, manifest: Mapping[str, Any], explainer: explainer_lib.Explainer
) -> None:
  """Raises ValueError unless an index was made by this model and design."""
  ours = json.loads(json.dumps(explainer.settings))
  differing = [
    f"{name} is {manifest['settings'].get(name)!r} there and {ours.get(name)!r} here"
    for name in sorted({*ours, *manifest["settings"]} - {*_IGNORED})
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


def error_factor(measured: Effects, columns: int) -> effects.ErrorFactor:
  """The standard error, pooled over cells, of an image's map against any reference."""
  left_out = effects.leave_one_out(
    measured.design, measured.cells, measured.moments, measured.strata
  )
  return effects.error_factor(np.asarray(left_out), measured.strata, columns)


# --- data sets ------------------------------------------------------------------------------------


def build_in_spaces(
  folder: Any, engines: Sequence[engine_lib.Engine], design: Any, key: jax.Array, fill: Any, *,
  ids: Sequence[str], types: np.ndarray, references: Mapping[int, np.ndarray],
  read: Callable[[int], np.ndarray], every_type: bool = False,
  on_progress: Progress | None = None,
) -> EffectIndex:  # fmt: skip
  """Measures a data set: one whole pass for each image, N masked ones for each query.

  However many references and spaces a query has, the passes are the same. The caller writes the
  manifest with `index_arrays.describe` when it is whole.

  Args:
    folder: where the arrays are; what is there already stays.
    engines: of the model for images of each type [t]: each gives an embedding in the spaces that
      they share with every type. A single one where there is one space.
    design, key, fill: of the masks, whose cells all images share.
    ids: names of the images [n].
    types: of the images [n], in 0 .. t − 1.
    references: rows that each query is explained against, by its row, ascending. Effects are kept
      in the spaces that it shares with images of their types; zeros stand in the others.
    read: pixels [h w 3] of a row, as the model sees them.
    every_type: whether effects are kept in the spaces of all types.
  """
  queries = np.fromiter(references, int, len(references))
  grey = np.full((1, *engines[0].model.image_size, 3), 0.5, np.float32)
  index = index_arrays.open_index(
    folder, queries=queries, types=types, num_types=len(engines), grid=design.grid,
    embedding_size=engine_lib.embed_images(engines[0], grey).shape[-1],
  )  # fmt: skip

  def embed(row: int, photo: Photo) -> dict[str, np.ndarray]:
    unit = engine_lib.embed_images(engines[types[row]], photo.pixels[None])[0]
    return {"embeddings": unit.reshape(len(engines), -1)}

  def measure_query(row: int, photo: Photo) -> dict[str, np.ndarray]:
    whole = index.embeddings[row].read().result()  # [t d]
    if not whole.any():  # it was left out
      return {}
    measured = measure.measure(engines[types[row]], design, key, photo.pixels, fill, whole)
    matrix = effects.effect_matrix(design, measured.cells, measured.moments)  # [c t·d]
    each = np.asarray(matrix).reshape(len(matrix), *whole.shape).swapaxes(0, 1)
    wanted = np.isin(np.arange(len(engines)), types[references[row]]) | every_type
    return {"effects": np.where(wanted[:, None, None], each, 0)}  # zeros take no room

  parts = [
    Part(("embeddings",), np.arange(len(ids)), embed), Part(("effects",), queries, measure_query)
  ]  # fmt: skip
  fill_shards(
    folder, index, parts, ids, lambda row: Photo(ids[row], read(row)),
    stored=np.ones(len(ids), bool), on_progress=on_progress,
  )  # fmt: skip
  return index


# --- both -----------------------------------------------------------------------------------------


class Part(NamedTuple):
  """Arrays that are measured together, an image after the other.

  Attributes:
    names: of the arrays. The last is written last: what it has, the others have.
    rows: of the collection [m], in the order of the arrays.
    measure: (row, image) -> values [t ...] by name; what it leaves out stays zero.
  """

  names: tuple[str, ...]
  rows: np.ndarray
  measure: Callable[[int, Photo], dict[str, np.ndarray]]


def fill_shards(
  location: Any, index: EffectIndex, parts: Sequence[Part], ids: Sequence[str],
  read: Callable[[int], Photo], *, stored: np.ndarray, on_progress: Progress | None = None,
) -> None:  # fmt: skip
  """Measures what the shards lack, a part after the other; each process shards of its own.

  Args:
    location: of the index.
    parts: on all processes the same; a later one may read what an earlier one wrote.
    ids: names of the images [n].
    read: the image of a row, from several threads.
    stored: bool [n], images that are read from where they could go away: files rather than arrays.

  Raises:
    OSError: the images are gone (see `_read_ahead`), or the disk is full; what was measured is
      kept.
    InterruptedError: a machine of the run is about to be taken away; likewise.
  """
  what = f"index in {location}"
  todo = []
  for part in parts:
    last = part.names[-1]
    missing = processes.agree(index_arrays.missing_shards(index, last), "missing shards")
    mine = missing[jax.process_index() :: processes.count()]
    todo.append((part, missing, {s: index_arrays.missing_rows(index, last, s) for s in mine}))
  total = sum(where.stop - where.start for *_, mine in todo for where in mine.values())
  done = 0
  for part, missing, mine in todo:
    known = index_arrays.read_left_out(location)
    rows = [row for where in mine.values() for row in part.rows[where].tolist()]
    photos = _read_ahead(read, rows, ids, stored)
    for shard in processes.share(missing, what, polls=index_arrays.SHARD):
      where, whole, left_out = mine[shard], 0, {}
      values = {
        name: np.zeros((where.stop - where.start, *index.arrays[name].shape[1:]), np.float32)
        for name in part.names
      }
      try:
        for place, row in enumerate(part.rows[where].tolist()):
          try:
            photo = next(photos)
            if isinstance(photo, Exception):
              raise photo
            for name, found in part.measure(row, photo).items():
              values[name][place] = found
          except (ImageError, ModelError) as error:  # it stays zero, which is no map
            left_out[ids[row]] = str(error)
          whole, done = place + 1, done + 1
          if on_progress is not None:
            on_progress(done, total)
          processes.stop_if_asked(what)
      finally:  # interrupted, what was measured is kept
        if fresh := {name: why for name, why in left_out.items() if name not in known}:
          index_arrays.leave_out(location, shard, fresh)
        for name in part.names if whole else ():
          index_arrays.write_shard(index, name, shard, values[name][:whole], begin=where.start)


def _read_ahead(
  read: Callable[[int], Photo], rows: Sequence[int], ids: Sequence[str], stored: np.ndarray
) -> Iterator[Photo | Exception]:
  """Images, or why they can't be read; decoded in threads a little before they are needed.

  An image is broken if others can be read, and then costs no other. If none of those can that were
  read last (at the start: of some from all over the index, unless it has fewer than `GONE`), it is
  what they are in that is gone, a folder, a disk or a bucket, and an OSError says so.
  """
  last: collections.deque[int] = collections.deque(maxlen=GONE)

  def get(row: int) -> Photo | Exception:
    try:
      return read(row)
    except Exception as error:  # handed over to whoever asks for this image
      return error

  def check(row: int, photo: Photo | Exception) -> Photo | Exception:
    if not stored[row]:
      return photo
    if not isinstance(photo, ImageError):
      last.append(row)
      return photo
    some = np.flatnonzero(stored)
    others = [*reversed(last)] or some[:: max(1, len(some) // GONE)].tolist()
    readable = next((other for other in others if not isinstance(get(other), ImageError)), None)
    if readable is None and (last or len(others) >= GONE):
      return OSError(
        f"{ids[row]} can't be read ({photo}), nor can {len(others)} other images, such as"
        f" {ids[others[0]]}: is what they are in, a folder or a disk, still there? What was"
        " measured is kept; bring it back and run the same again"
      )
    if readable is not None and not last:
      last.append(readable)
    return photo

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    waiting: collections.deque[concurrent.futures.Future[Photo | Exception]] = collections.deque()
    for place, row in enumerate(rows):
      waiting.append(pool.submit(get, row))
      if len(waiting) > READ_AHEAD:
        yield check(rows[place - READ_AHEAD], waiting.popleft().result())
    for row in rows[len(rows) - len(waiting) :]:
      yield check(row, waiting.popleft().result())
