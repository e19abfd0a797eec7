"""Builds an explanation index: measures images, a shard after the other, into what is on disk.

Folders of photos and data sets go through the same `fill_shards`: what is there stays, processes
share the shards, an interruption keeps what was measured, and an image that can't be read is left
out by name.
"""

import collections
import concurrent.futures
import contextlib
import hashlib
import json
import os
import warnings
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
from sane_jax.maps.index_arrays import SHARD, UNKNOWN, EffectIndex
from sane_jax.models import fingerprint
from sane_jax.models.model import ModelError
from sane_jax.ops import effects
from sane_jax.runs import files, processes

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
  on_progress: Progress | None = None, on_change: Callable[[str], Any] = warnings.warn,
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
  with files.one_writer(location) if processes.is_first() else contextlib.nullcontext():
    _build(
      location, explainer, named, isinstance(images, Mapping), dtype, spread, on_progress, on_change
    )
    processes.wait_for_all("the index: whole")


def _build(
  location: Any, explainer: explainer_lib.Explainer, named: dict[str, Any], by_id: bool,
  dtype: str, spread: int | None, on_progress: Progress | None, on_change: Callable[[str], Any],
) -> None:  # fmt: skip
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
    if manifest["sources"] is None:
      raise ValueError(f"the index in {location} is a data set's; build it in another folder")
  processes.wait_for_all("the index's manifest: read")
  if processes.is_first():
    for what in _bring_up_to_date(location, manifest, explainer, named, by_id):
      on_change(what)
  processes.wait_for_all("the index's manifest: written")
  manifest = index_arrays.read_manifest(location)
  assert manifest is not None
  index = index_arrays.open_described(location, manifest)
  ids, (row_of, row_at) = manifest["ids"], rows_of(manifest)
  given: dict[int, Any] = {}
  for name, source in named.items():
    path = None if by_id else _path(source)
    row = row_of.get(name) if path is None else row_at.get(place_of(path))
    if row is not None:
      given[row] = source
  sources = [
    given.get(row, _readable(*paths))
    for row, paths in enumerate(zip(manifest["homes"], manifest["places"], strict=True))
  ]
  digests: dict[int, str] = {}  # of what was read last

  def read(row: int) -> Photo:
    source = sources[row]
    if source is None and manifest["sources"][row] is not None:
      raise ImageError(f"its file {manifest['sources'][row]} is gone")
    if source is None:
      raise ImageError("it was given as an array when the build was interrupted; give it again")
    if _path(source) is None:
      photo = explainer.photo(source, ids[row])
      digests[row] = digest_of_pixels(photo)
      return photo
    before = digest_of_file(source)
    photo = explainer.photo(source, ids[row])
    if before is None or digest_of_file(source) != before:
      raise ImageError(f"{source} changes while it is read; build the index again")
    digests[row] = before
    return photo

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
    digest = np.frombuffer(bytes.fromhex(digests[row]), np.uint8)
    return {name: values[None] for name, values in out.items()} | {"photos": digest}

  names = [name for name in index.arrays if name not in ("scales", "effects")]
  part = Part((*names, "effects"), np.arange(len(ids)), measure_photo)
  stored = np.array([_path(source) is not None for source in sources])
  stored &= ~np.isin(ids, [*manifest["gone"]])
  again = np.flatnonzero(
    (np.arange(len(ids)) % index_arrays.SHARD < _finished(index)[np.arange(len(ids)) // SHARD])
    & ~index_arrays.read(index, "photos").any(axis=1)
    & [source is not None for source in sources] & ~np.isin(ids, [*manifest["gone"]])
  )  # fmt: skip
  measure_again(location, index, part, again, ids, read, stored=stored)
  fill_shards(location, index, [part], ids, read, stored=stored, on_progress=on_progress)


def _finished(index: EffectIndex) -> np.ndarray:
  return index_arrays.read_finished(index, "effects")


def _bring_up_to_date(
  location: Any, manifest: dict[str, Any], explainer: explainer_lib.Explainer,
  named: Mapping[str, Any], by_id: bool,
) -> list[str]:  # fmt: skip
  """Writes the manifest of what there is now; what is no longer measured loses its digest.

  Rows keep their places. Returns sentences on what is no longer as it was.
  """
  before = json.dumps(manifest)
  places, sources, ids = list(places_of(manifest)), manifest["sources"], manifest["ids"]
  count, old = len(ids), not manifest.get("digests")
  known = _open_known(location, manifest, explainer)  # digests of the rows that there were [n 32]
  homes: list[str | None] = list(manifest.get("homes") or sources)
  manifest |= {"places": places, "homes": homes, "digests": True, "gone": {}}
  row_of, row_at = rows_of(manifest)
  given: dict[int, Any] = {}
  fresh: dict[str, Any] = {}
  new_places: set[str] = set()
  for name, source in named.items():
    row, place, home = row_of.get(name), None, _home(source)
    if home is not None and not by_id:
      place = place_of(home)
      before = homes[row] if row is not None else None
      if before not in (None, name, home) and files.at(before).exists():
        row, name = row_of.get(home), home  # a relative path from elsewhere: another photo's
      row = row_at.get(place) if row is None else row
      if row is None and place in new_places:
        continue  # one file by two paths
      new_places.add(place)
    if row is None:
      fresh[name] = source
      continue
    given[row] = source
    sources[row], places[row], homes[row] = _path(source), place_of(home) if home else None, home
  # What has no file any more: gone, or moved to where a new one holds the same.
  there = [_readable(*paths) for paths in zip(homes, places, strict=True)]
  missing = [
    row for row in range(count)
    if row not in given and sources[row] is not None and there[row] is None
  ]  # fmt: skip
  moved = {} if by_id or not missing else _find_moved(missing, known, ids, fresh)
  for row, name in moved.items():
    given[row] = source = fresh.pop(name)
    ids[row], sources[row], homes[row] = name, _path(source), _home(source)
    places[row] = place_of(source)
  manifest["gone"] = {
    ids[row]: f"its file {sources[row]} is gone" for row in missing if row not in moved
  }
  # What holds another photo than was measured.
  paths = [given.get(row, there[row]) for row in range(count)]
  now = _digests_of(explainer, paths)
  changed, unknown = [], [row for row in range(count) if (known[row] == UNKNOWN).all()]
  for row, digest in enumerate(now):
    if digest is not None and known[row].any() and row not in unknown:
      if known[row].tobytes().hex() != digest:
        changed.append(row)
    elif digest is None and row in given and known[row].any():
      manifest["gone"][ids[row]] = f"{sources[row]} can't be read"
  if unknown:
    changed += _compare_embeddings(location, manifest, explainer, unknown, paths, now, known)
  manifest["ids"] += fresh
  manifest["sources"] += [_path(source) for source in fresh.values()]
  places += [None if _path(s) is None else place_of(s) for s in fresh.values()]
  homes += [_home(source) for source in fresh.values()]
  manifest["queries"] = len(manifest["ids"])
  known[changed] = 0
  if old or changed:
    _write_digests(location, known)
  if json.dumps(manifest) != before:
    index_arrays.write_manifest(location, manifest)
  told = []
  for rows, what in (
    (changed, "changed since they were measured, and measured again"),
    ([ids.index(name) for name in manifest["gone"]], "gone or unreadable, and left out"),
    (sorted(moved), "moved, and kept"),
  ):
    if rows:
      some = ", ".join(ids[row] for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
      told.append(f"photos of the index in {location} {what} ({len(rows)}): {some}")
  return told


def _open_known(
  location: Any, manifest: Mapping[str, Any], explainer: explainer_lib.Explainer
) -> np.ndarray:
  """Digests [n 32] of the rows of a manifest, 0 where nothing is measured; UNKNOWN of old ones."""
  count = len(manifest["ids"])
  if not count:
    return np.zeros((0, index_arrays.DIGEST), np.uint8)
  if manifest.get("digests"):
    return index_arrays.read(index_arrays.open_described(location, manifest), "photos").copy()
  index = index_arrays.open_described(location, manifest)
  rows = np.arange(count)
  whole = rows % SHARD < index_arrays.read_finished(index, "effects")[rows // SHARD]
  whole &= index_arrays.read(index, "embeddings").any(axis=(1, 2))
  return np.where(whole[:, None], UNKNOWN, np.uint8(0))


def _write_digests(location: Any, digests: np.ndarray) -> None:
  """Writes the digests [n 32] of the rows that there were."""
  array = index_arrays.open_digests(location, len(digests))
  with files.naming_store_failures("photos"):
    array[: len(digests)].write(digests).result()


def _compare_embeddings(
  location: Any, manifest: Mapping[str, Any], explainer: explainer_lib.Explainer,
  rows: Sequence[int], paths: Sequence[Any], now: Sequence[str | None], known: np.ndarray,
) -> list[int]:  # fmt: skip
  """Rows that were measured before digests were kept and are another photo now; a pass each.

  Of the others, `known` gets the digests.
  """
  index = index_arrays.open_described(location, {**manifest, "digests": False})
  before = index_arrays.read(index, "embeddings")[:, 0]
  changed = []
  for row in rows:
    if now[row] is None:
      continue
    try:
      (found,) = explainer.embed([paths[row]])
    except (ImageError, ModelError):
      changed.append(row)
      continue
    if np.linalg.norm(found - before[row]) > PROBE:
      changed.append(row)
    else:
      known[row] = np.frombuffer(bytes.fromhex(now[row] or ""), np.uint8)
  return changed


def _find_moved(
  missing: Sequence[int], known: np.ndarray, ids: Sequence[str], fresh: Mapping[str, Any]
) -> dict[int, str]:
  """Which of the new images are files of rows that are missing, by row: those that hold the same.

  Where several do, one of the same name comes first.
  """
  rows: dict[str, list[int]] = collections.defaultdict(list)
  for row in missing:
    if known[row].any():
      rows[known[row].tobytes().hex()].append(row)
  found: dict[int, str] = {}
  digests = _hash_files([_path(source) for source in fresh.values()])
  for name, digest in zip(fresh, digests, strict=True):
    candidates = rows.get(digest or "", [])
    base = os.path.basename(name)
    candidates.sort(key=lambda row: os.path.basename(ids[row]) != base)
    if candidates:
      found[candidates.pop(0)] = name
  return found


# --- photos by what they hold ---------------------------------------------------------------------


def place_of(path: str | os.PathLike[str]) -> str:
  """Where a path leads: the same for all spellings of it, and through links."""
  return os.fspath(path) if files.is_remote(path) else os.path.realpath(path)


def places_of(manifest: Mapping[str, Any]) -> Sequence[str | None]:
  """Where the photos of an index are; None of those given as arrays."""
  if "places" in manifest:
    return manifest["places"]
  sources = manifest["sources"] or [None] * len(manifest["ids"])
  return [None if source is None else place_of(source) for source in sources]


def rows_of(manifest: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
  """Rows by id, and by where their photos are."""
  places = enumerate(places_of(manifest))
  by_id = {name: row for row, name in enumerate(manifest["ids"])}
  return by_id, {place: row for row, place in places if place is not None}


def _home(source: Any) -> str | None:
  """A photo's path from anywhere; None of an array."""
  path = _path(source)
  return path if path is None or files.is_remote(path) else os.path.abspath(path)


def digest_of_pixels(photo: Photo) -> str:
  """SHA-256 of a photo that came as an array."""
  return hashlib.sha256(np.ascontiguousarray(photo.pixels).tobytes()).hexdigest()


def digest_of_file(path: str | os.PathLike[str]) -> str | None:
  """SHA-256 of a photo's file; None where it can't be read."""
  try:
    return hashlib.sha256(files.read_bytes(path)).hexdigest()
  except (OSError, ValueError):
    return None


def _hash_files(paths: Sequence[str | None]) -> list[str | None]:
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    return [*pool.map(lambda path: None if path is None else digest_of_file(path), paths)]


def _digests_of(explainer: explainer_lib.Explainer, sources: Sequence[Any]) -> list[str | None]:
  """Of what images hold now: files, or arrays that were given again; None of what isn't there."""
  found = _hash_files([None if source is None else _path(source) for source in sources])
  for row, source in enumerate(sources):
    if source is not None and _path(source) is None:
      with contextlib.suppress(ImageError):
        found[row] = digest_of_pixels(explainer.photo(source))
  return found


def _readable(home: str | None, place: str | None) -> str | None:
  """The path by which a photo is there: where it was given, or where that led; None: neither."""
  return next((p for p in (home, place) if p is not None and files.at(p).exists()), None)


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
  found = explainer.fingerprint()
  if not found.given.size or not np.isfinite(found.given[0]).all():  # says what is wrong with it
    explainer.embed([Photo("a test picture", fingerprint.test_pictures(model.image_size)[0])])
  return {
    "settings": explainer.settings,
    "images": {
      "fit": model.fit, "crop_fraction": model.crop_fraction, "interpolation": model.interpolation,
    },
    # A single replicate has no spread to keep.
    "probe": found.given[0].tolist(), "model": found.to_json(), "grid": list(design.grid),
    "dtype": dtype,
    "spread": spread if replicates > 1 else 0, "rest": spread > 0 and replicates > 1,
    "masked": explainer.mode == "both", "num_types": 1, "digests": True,
    "ids": [], "sources": [], "places": [], "homes": [], "left_out": {}, "gone": {},
  }  # fmt: skip


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
    now, moved = explainer.fingerprint(), 0.0
    if "model" in manifest:
      before = fingerprint.from_json(manifest["model"])
      if not fingerprint.same(before, now):
        moved = fingerprint.distance(before.given, now.given)
        if before.digest and now.digest and before.digest != now.digest:
          differing = ["its parameters are others"]
    else:  # of before there were several test pictures
      moved = fingerprint.distance(np.asarray([manifest["probe"]], np.float32), now.given[:1])
      moved = 0.0 if moved < PROBE else moved
    if differing or moved:
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


def measure_again(
  location: Any, index: EffectIndex, part: Part, rows: np.ndarray, ids: Sequence[str],
  read: Callable[[int], Photo], *, stored: np.ndarray,
) -> None:  # fmt: skip
  """Measures rows anew that were there before; the arguments are those of `fill_shards`.

  A row is read by nobody until all of it is written: its digest comes last.
  """
  what = f"index in {location}"
  shards = sorted({*(rows // SHARD).tolist()})
  mine = shards[jax.process_index() :: processes.count()]
  photos = _read_ahead(read, rows[np.isin(rows // SHARD, mine)].tolist(), ids, stored)
  for shard in processes.share(shards, what, polls=SHARD):
    left_out, repaired = {}, []
    try:
      for row in rows[rows // SHARD == shard].tolist():
        try:
          photo = next(photos)
          if isinstance(photo, Exception):
            raise photo
          index_arrays.write_row(index, row, part.measure(row, photo))
          repaired.append(ids[row])
        except (ImageError, ModelError) as error:
          left_out[ids[row]] = str(error)
        processes.stop_if_asked(what)
    finally:
      index_arrays.leave_out(location, shard, left_out, repaired)


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
