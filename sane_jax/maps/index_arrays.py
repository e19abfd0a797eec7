"""Effect matrices of a whole collection on disk: the map of any pair of its images, without passes.

Image i has one slot a type t: the space in which images of type t are compared with it (one slot
where there is one space). With E [c d] the effect matrix and e [d] the unit embedding in a slot,

    score of (q, r) = e[q, type r] · e[r, type q]
    map of (q, r)   = E[q, type r] e[r, type q]          [c]

Files, all zarr3 in shards of 64 images: `embeddings` [n t d] float32 of all rows; `effects`
[m t c d] of the m queries, float16, or int8 with `scales` [m t c] float16 (a cell's effects are
scale · integer). An index may hold two more: `masked` [n t d] float32, the mean embedding of the
masked image, which takes the place of e[r] where both images are perturbed; and `spread`
[m t d k] float16 with `rest` [m t] float32: the standard error of the map, pooled over cells, is
(‖e[r] · spread‖² + rest²)^½ (see `effects.ErrorFactor`; indexes from before 2026-11-28 have no
rest, and their errors are 0.6 to 1.6 times as large as they should be).

`finished` counts the whole rows of each shard. Rows are written, then counted: whatever interrupts
the writer, nothing half is taken for whole. An index grows by rows at its end.

An index of photos holds `photos` [n 32] uint8, the SHA-256 of what each row was measured from. 0:
it is not measured, or no longer what its file shows; it is written after all else of its row.

Every chunk has its CRC32C, and the manifest a SHA-256 of itself: what was flipped on a disk is an
error, and no map. Indexes made before have neither; of all, embeddings have to be of length 1 and
everything finite.

`index.json` is the manifest: what opens the arrays, the images' ids, and what measured them.
`left_out/` names the images that could not be read.
"""

import hashlib
import json
import math
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from sane_jax.runs import files, npz

SHARD = 64  # images a shard: 6 MB of effects with 11 slots, 64 cells and 64 axes
MANIFEST = "index.json"
LEFT_OUT = "left_out/"
DIGEST = 32  # bytes of a SHA-256
UNKNOWN = np.full(DIGEST, 255, np.uint8)  # of a row that was measured before digests were kept
LENGTH = 1e-3  # how far from 1 the length of an embedding may be
_FIELDS = {  # of the manifest that are always there
  "settings": dict, "probe": list, "grid": list, "dtype": str, "spread": int, "masked": bool,
  "num_types": int, "ids": list, "sources": list | None, "left_out": dict,
}  # fmt: skip


class EffectIndex(NamedTuple):
  """An open index; see the module's text.

  Attributes:
    queries: rows of the collection that have effects [m], ascending.
    types: type of each row of the collection [n].
    grid: (rows, columns) of the cells.
    arrays: open arrays by name, those that this index has.
    finished: by the same names, whole rows of each shard.
  """

  queries: np.ndarray
  types: np.ndarray
  grid: tuple[int, int]
  arrays: dict[str, Any]
  finished: dict[str, Any]

  @property
  def embeddings(self) -> Any:
    return self.arrays["embeddings"]

  @property
  def effects(self) -> Any:
    return self.arrays["effects"]


def open_index(
  folder: str | pathlib.Path, *, queries: np.ndarray, types: np.ndarray, num_types: int,
  grid: tuple[int, int], embedding_size: int, dtype: str = "float16", spread: int = 0,
  rest: bool = False, masked: bool = False, digests: bool = False, cache_bytes: int = 0,
) -> EffectIndex:  # fmt: skip
  """The index in `folder`, made if there is none; longer than it was if there are more rows.

  Args:
    folder: a path, or the URL of a key-value store that tensorstore knows, such as gs://...
    queries, types: as in `EffectIndex`.
    num_types: t.
    grid: (rows, columns) of the cells.
    embedding_size: d.
    dtype: of the effects, 'float16' or 'int8'.
    spread: k, columns of the standard error's factor; none where 0.
    rest: whether what those columns leave is kept as a number.
    masked: whether mean masked embeddings are kept.
    digests: whether those of the photos are.
    cache_bytes: of what was read, kept in memory. 0 where other processes write.

  Raises:
    ValueError: there is one of other shapes; says how to go on.
  """
  if dtype not in ("float16", "int8"):
    raise ValueError(f"an index holds effects as 'float16' or 'int8'; given {dtype!r}")
  n, m, t, d = len(types), len(queries), num_types, embedding_size
  c = math.prod(grid)
  wanted: dict[str, tuple[tuple[int, ...], tuple[int, ...], str]] = {
    "embeddings": ((n, t, d), (SHARD, t, d), "float32"),
    "effects": ((m, t, c, d), (1, 1, c, d), dtype),
  }
  if dtype == "int8":
    wanted["scales"] = ((m, t, c), (1, 1, c), "float16")
  if masked:
    wanted["masked"] = ((n, t, d), (SHARD, t, d), "float32")
  if spread:
    wanted["spread"] = ((m, t, d, spread), (1, 1, d, spread), "float16")
  if rest:
    wanted["rest"] = ((m, t), (SHARD, t), "float32")
  if digests:
    wanted["photos"] = ((n, DIGEST), (SHARD, DIGEST), "uint8")
  # Without a cache each process reads what the others wrote.
  context = ts.Context({"cache_pool": {"total_bytes_limit": cache_bytes}})
  try:
    arrays = {
      name: _open(folder, name, shape, (SHARD, *shape[1:]), chunk, kind, context)
      for name, (shape, chunk, kind) in wanted.items()
    }
    finished = {
      name: _open(
        folder, f"finished_{name}", (num_shards(shape[0]),), (1,), (1,), "uint8", ts.Context()
      )
      for name, (shape, _, _) in wanted.items()
    }
  except ValueError as error:
    raise ValueError(
      f"{folder} holds an index of other shapes or a damaged one ({str(error)[:300]}); remove it"
      " and build it again"
    ) from error
  return EffectIndex(np.asarray(queries), np.asarray(types), grid, arrays, finished)


# --- what is beside the arrays --------------------------------------------------------------------


def location(folder: str | os.PathLike[str]) -> Any:
  """A folder as the functions here take it: a path of this machine, or a URL as it is."""
  text = os.fspath(folder)
  return text if "://" in text else pathlib.Path(text)


def describe(
  folder: Any, index: EffectIndex, *, ids: Sequence[str], settings: Mapping[str, Any],
  left_out: Mapping[str, str],
) -> None:  # fmt: skip
  """Writes the manifest of an index whose arrays are there, such as a data set's.

  Args:
    ids: names of the images [n].
    settings: what the effects rest on.
    left_out: what could not be read, and why, by id.
  """
  _, num_types, size = index.embeddings.shape
  spread = index.arrays["spread"].shape[-1] if "spread" in index.arrays else 0
  manifest = {
    "settings": dict(settings), "probe": [], "embedding_size": size, "grid": list(index.grid),
    "dtype": index.effects.dtype.name, "spread": spread, "masked": "masked" in index.arrays,
    "num_types": num_types, "ids": list(ids), "sources": None, "left_out": dict(left_out),
    "types": index.types.tolist(), "query_rows": index.queries.tolist(),
  }  # fmt: skip
  write_manifest(folder, manifest)


def write_manifest(folder: Any, manifest: Mapping[str, Any]) -> None:
  """Writes what `read_manifest` reads."""
  _write_json(folder, MANIFEST, manifest)


def _write_json(folder: Any, name: str, content: Mapping[str, Any]) -> None:
  """Writes a JSON object with a SHA-256 of itself, which `_read_json` asks for."""
  content = {k: v for k, v in content.items() if k != _CHECKSUM}
  text = json.dumps(content | {_CHECKSUM: _checksum(content)}, default=list)
  with files.naming_store_failures(name):
    _files(folder).write(name, text.encode()).result()


def _checksum(content: Mapping[str, Any]) -> str:
  text = json.dumps(content, default=list, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _check_sum(content: Any, *, needed: bool = False) -> None:
  """Raises ValueError where a JSON object was changed since it was written."""
  found = content.pop(_CHECKSUM, None) if isinstance(content, dict) else None
  if found != _checksum(content) if found is not None or needed else False:
    raise ValueError("its content is not what was written: its checksum is another")


def read_manifest(folder: Any) -> dict[str, Any] | None:
  """What was written beside the arrays, or None.

  Raises:
    ValueError: it is damaged.
  """
  data = _files(folder).read(MANIFEST).result()
  if data.state != "value":
    return None
  try:
    manifest = json.loads(data.value)
    _check_manifest(manifest)
    _check_sum(manifest, needed=bool(manifest.get("digests")))
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{folder}/{MANIFEST} is damaged ({error}); build the index anew") from error
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
    raise ValueError("ids must be unique strings")
  if sources is not None and (
    len(sources) != len(ids) or not all(isinstance(s, str | None) for s in sources)
  ):
    raise ValueError(f"it has {len(ids)} ids and {len(sources)} sources that are texts or nothing")
  for name in ("places", "homes"):
    found = manifest.get(name, sources)
    if sources is not None and (not isinstance(found, list) or len(found) != len(ids)):
      raise ValueError(f"its {name} are not as many as its ids")
  sizes = [*grid, manifest["num_types"], manifest.get("embedding_size", 1)]
  if len(grid) != 2 or not all(type(n) is int and 0 < n < 1 << 20 for n in sizes):
    raise ValueError(f"its sizes are {str(sizes)[:80]}")
  types, rows = manifest.get("types", [0] * len(ids)), manifest.get("query_rows", [])
  for name, values, end in (
    ("types", types, manifest["num_types"]),
    ("query_rows", rows, len(ids)),
  ):
    if not isinstance(values, list) or not all(type(n) is int and 0 <= n < end for n in values):
      raise ValueError(f"its {name} are not numbers from 0 to {end - 1}")
  if len(types) != len(ids):
    raise ValueError(f"it has {len(ids)} ids and {len(types)} types")


def open_described(folder: Any, manifest: Mapping[str, Any], cache_bytes: int = 0) -> EffectIndex:
  """The index that a manifest is of; longer than it was if the manifest has more images."""
  types = manifest.get("types") or [0] * len(manifest["ids"])
  return open_index(
    folder, queries=np.asarray(manifest.get("query_rows", range(len(types))), int),
    types=np.asarray(types, int), num_types=manifest["num_types"], grid=tuple(manifest["grid"]),
    embedding_size=manifest.get("embedding_size") or len(manifest["probe"]),
    dtype=manifest["dtype"], spread=manifest["spread"], rest=bool(manifest.get("rest")),
    masked=manifest["masked"], digests=bool(manifest.get("digests")), cache_bytes=cache_bytes,
  )  # fmt: skip


def read_index(folder: pathlib.Path) -> EffectIndex:
  """The index that was described in `folder`.

  Raises:
    ValueError: there is none, or it is damaged.
  """
  manifest = read_manifest(folder)
  if manifest is not None:
    return open_described(folder, manifest)
  arrays = npz.read_arrays(folder / "index.npz")  # of data sets, before they had a manifest
  if arrays is None:
    raise ValueError(
      f"{folder} holds no index, or a damaged one; build it with --config.job=build_index"
    )
  num_types, embedding_size = arrays["shape"].tolist()
  rows, columns = arrays["grid"].tolist()
  return open_index(
    folder, queries=arrays["queries"], types=arrays["types"], num_types=num_types,
    grid=(rows, columns), embedding_size=embedding_size,
  )  # fmt: skip


def leave_out(
  folder: Any, shard: int, left_out: dict[str, str], repaired: Collection[str] = ()
) -> None:
  """Keeps what could not be read: a file a shard, so that no two processes write the same."""
  name = f"{LEFT_OUT}{shard:07d}.json"
  known = _read_left_out(folder, name)
  now = {k: why for k, why in known.items() if k not in repaired} | left_out
  if now != known:
    _write_json(folder, name, now)


def _read_left_out(folder: Any, name: str) -> dict[str, str]:
  data = _files(folder).read(name).result()
  if data.state != "value":
    return {}
  try:
    known = json.loads(data.value)
    _check_sum(known)
    return dict(known)
  except (ValueError, TypeError) as error:
    raise ValueError(f"{folder}/{name} is damaged ({error}); remove it") from error


def read_left_out(folder: Any) -> dict[str, str]:
  """What `leave_out` kept, of all shards."""
  stored = _files(folder)
  out: dict[str, str] = {}
  for name in sorted(stored.list(ts.KvStore.KeyRange(LEFT_OUT, f"{LEFT_OUT}~")).result()):
    out |= _read_left_out(folder, name.decode(errors="replace"))
  return out


def _files(folder: Any) -> Any:
  return ts.KvStore.open(store(folder)).result()


# --- the arrays -----------------------------------------------------------------------------------


def store(folder: str | pathlib.Path, name: str = "") -> Any:
  """tensorstore's key-value store of a folder on disk, or of a URL."""
  if str(folder).startswith("s3://") and (endpoint := os.environ.get("AWS_ENDPOINT_URL")):
    # A store that is like S3: fsspec looks at this variable, tensorstore does not.
    bucket, _, path = str(folder).removeprefix("s3://").partition("/")
    path = "".join(f"{part}/" for part in (path.rstrip("/"), name) if part)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return {
      "driver": "s3", "bucket": bucket, "path": path, "endpoint": endpoint, "aws_region": region,
    }  # fmt: skip
  if "://" in str(folder):
    return f"{str(folder).rstrip('/')}/{name}".rstrip("/") + "/"
  path = pathlib.Path(folder, name).absolute()
  return {"driver": "file", "path": f"{path}/"}


def _open(folder, name: str, shape, shard, chunk, dtype: str, context: Any) -> Any:
  metadata = {
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shard)}},
    "data_type": dtype,
    "codecs": _codecs(chunk, dtype, [{"name": "crc32c"}]),
    "fill_value": 0,
  }
  spec = {"driver": "zarr3", "kvstore": store(folder, name)}
  try:
    array = ts.open({**spec, "metadata": metadata}, open=True, context=context).result()
  except ValueError as error:
    if "NOT_FOUND" in str(error):
      new = {**spec, "metadata": {**metadata, "shape": list(shape)}}
      return ts.open(new, create=True, open=True, context=context).result()
    if "codecs" not in str(error):
      raise
    before = metadata | {"codecs": _codecs(chunk, dtype, [])}  # made before chunks had checksums
    array = ts.open({**spec, "metadata": before}, open=True, context=context).result()
  if array.shape[1:] != tuple(shape[1:]) or array.shape[0] > shape[0]:
    raise ValueError(f"{name} has the shape {array.shape}, where {tuple(shape)} is expected")
  if array.shape[0] < shape[0]:
    array = array.resize(exclusive_max=list(shape)).result()
  return array


def open_digests(folder: Any, count: int) -> Any:
  """The array `photos` of an index of `count` rows at least, made if there is none."""
  try:
    shape = (count, DIGEST)
    return _open(folder, "photos", shape, (SHARD, DIGEST), (SHARD, DIGEST), "uint8", ts.Context())
  except ValueError as error:
    raise ValueError(f"{_DAMAGED.format('photos')}: {str(error)[:300]}") from error


def _codecs(chunk, dtype: str, checksum: list[Any]) -> list[Any]:
  if dtype == "uint8":
    return [{"name": "bytes"}, *checksum]
  plain = {"name": "bytes", "configuration": {"endian": "little"}}
  inner = [{"name": "bytes"} if dtype == "int8" else plain, {"name": "zstd"}, *checksum]
  return [
    {"name": "sharding_indexed", "configuration": {"chunk_shape": list(chunk), "codecs": inner}}
  ]


def read(index: EffectIndex, name: str, where: Any = ...) -> np.ndarray:
  """What an array of an index holds at `where` (see numpy), checked.

  Raises:
    ValueError: it is damaged: a checksum is another, a number is not finite, or an embedding is of
      another length than 1.
  """
  array = index.arrays[name]
  try:
    values = array.oindex[where].read().result()
  except ValueError as error:
    raise ValueError(f"{_DAMAGED.format(name)}: {str(error)[:300]}") from error
  if values.dtype.kind in "iu":
    return values
  known = np.asarray(values, np.float32)
  if not np.isfinite(known).all():
    raise ValueError(f"{_DAMAGED.format(name)}: it holds NaN or infinity")
  if name == "embeddings":
    lengths = np.linalg.norm(known.astype(np.float64), axis=-1)
    wrong = (np.abs(lengths - 1) > LENGTH) & (lengths != 0)  # 0: it was left out
    if wrong.any():
      raise ValueError(
        f"{_DAMAGED.format(name)}: {int(wrong.sum())} embeddings of another length than 1"
      )
  elif name == "masked" and (np.linalg.norm(known.astype(np.float64), axis=-1) > 1 + LENGTH).any():
    raise ValueError(f"{_DAMAGED.format(name)}: a mean of unit vectors is longer than 1")
  return values


def read_finished(index: EffectIndex, part: str) -> np.ndarray:
  """How many rows [shards] of each shard of a part are whole.

  Raises:
    ValueError: it is damaged.
  """
  try:
    counts = np.asarray(index.finished[part].read().result(), int)
  except ValueError as error:
    raise ValueError(f"{_DAMAGED.format(f'finished_{part}')}: {str(error)[:300]}") from error
  if (counts > SHARD).any():
    raise ValueError(f"{_DAMAGED.format(f'finished_{part}')}: a shard of more than {SHARD} rows")
  return counts


_CHECKSUM = "sha256"
_DAMAGED = (
  "the index is damaged in its array {}: a file of it was changed since it was written. Remove the"
  " index and build it again"
)


def num_shards(count: int) -> int:
  """Shards of `count` images."""
  return -(-count // SHARD)


def missing_shards(index: EffectIndex, part: str) -> list[int]:
  """Shards of `part` ('embeddings', 'effects', ...) that are not whole yet."""
  count = index.arrays[part].shape[0]
  whole = [len(range(count)[shard_slice(s, count)]) for s in range(num_shards(count))]
  return np.flatnonzero(read_finished(index, part) < np.array(whole)).tolist()


def shard_slice(shard: int, count: int) -> slice:
  """The images of a shard, of `count` in all."""
  return slice(shard * SHARD, min((shard + 1) * SHARD, count))


def missing_rows(index: EffectIndex, part: str, shard: int) -> slice:
  """The rows of a shard that are not whole yet: those behind what was there when it grew."""
  where = shard_slice(shard, index.arrays[part].shape[0])
  return slice(where.start + int(index.finished[part][shard].read().result()), where.stop)


def write_shard(
  index: EffectIndex, part: str, shard: int, values: np.ndarray, *, begin: int | None = None
) -> None:
  """Writes the missing rows of a shard, or all of it, and then counts them.

  With `begin`, the first row that is missing, `values` may be fewer than all that are.

  Effects of an index of int8 are rounded here: to scale · integer, the scale of a cell being its
  largest effect / 127.

  Raises:
    ValueError: float16 can't hold the values.
    OSError: the disk is full or can't be written; says that what is there is kept.
  """
  array = index.arrays[part]
  where = shard_slice(shard, array.shape[0])
  if begin is None:
    begin = int(where.stop) - len(values)
  where = slice(begin, begin + len(values))
  with files.naming_store_failures(f"shard {shard} of {part}"):
    if part == "effects" and "scales" in index.arrays:
      values, scales = quantize(values)
      index.arrays["scales"][where].write(scales).result()
    with np.errstate(over="ignore"):
      values = np.asarray(values, array.dtype.numpy_dtype)
    if not np.isfinite(values).all():
      raise ValueError(f"shard {shard} of {part} holds NaN, or effects beyond float16's 65,504")
    array[where].write(values).result()
    count = where.stop - shard * SHARD
    index.finished[part][shard].write(np.uint8(count)).result()


def write_row(index: EffectIndex, row: int, values: Mapping[str, np.ndarray]) -> None:
  """Writes all of a row that is measured again; its photo's digest last.

  Raises:
    ValueError, OSError: as `write_shard`.
  """
  parts = dict(values)
  if "scales" in index.arrays:
    parts["effects"], parts["scales"] = quantize(parts["effects"])
  for name in sorted(parts, key=lambda name: name == "photos"):
    array = index.arrays[name]
    with files.naming_store_failures(f"row {row} of {name}"):
      with np.errstate(over="ignore"):
        new = np.asarray(parts[name], array.dtype.numpy_dtype)
      if not np.isfinite(new).all():
        raise ValueError(f"row {row} of {name} holds NaN, or effects beyond float16's 65,504")
      array[row].write(new).result()


def quantize(effects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Integers [... c d] in [−127, 127] and a scale a cell [... c] float16; their product is E.

  A map's entry E_c · e is then off by at most scale_c ‖e‖₁ / 2, and by scale_c / √12 as a rule.
  """
  scales = (np.abs(effects).max(axis=-1) / 127).astype(np.float16)
  # float16 may have rounded the scale down: then the largest would not fit.
  scales = np.where(scales > 0, np.nextafter(scales, np.float16(np.inf)), scales)
  with np.errstate(divide="ignore", invalid="ignore"):
    integers = np.where(scales[..., None] > 0, effects / scales[..., None].astype(np.float32), 0)
  return np.clip(np.rint(integers), -127, 127).astype(np.int8), scales


def read_effects(index: EffectIndex, position: int, slots: np.ndarray) -> np.ndarray:
  """E [s c d] float32 of the query at `position` in the given slots."""
  # Each slot is a chunk of its own: only what is needed is read.
  effects = read(index, "effects", (position, slots)).astype(np.float32)
  if "scales" in index.arrays:
    scales = read(index, "scales", (position, slots))
    effects *= scales[..., None].astype(np.float32)
  return effects


def read_maps(
  index: EffectIndex, position: int, references: Sequence[int] | np.ndarray, embeddings: np.ndarray
) -> np.ndarray:
  """Maps [r rows columns] of the query at `position` against rows of the collection.

  Args:
    embeddings: all of `index.embeddings` [n t d], read once by the caller; or of `masked`.
  """
  rows = np.asarray(references, int)
  directions = embeddings[rows, index.types[index.queries[position]]]
  return read_maps_towards(index, position, index.types[rows], directions)


def read_maps_towards(
  index: EffectIndex, position: int, slots: np.ndarray, directions: np.ndarray
) -> np.ndarray:
  """Maps [r rows columns]: the effects in each of the slots [r], times its direction [r d]."""
  if not len(slots):
    return np.zeros((0, *index.grid), np.float32)
  if (slots == slots[0]).all():  # one product of matrices
    maps = directions @ read_effects(index, position, slots[:1])[0].T
  else:
    wanted, which = np.unique(slots, return_inverse=True)
    maps = np.einsum("rcd,rd->rc", read_effects(index, position, wanted)[which], directions)
  return maps.reshape(len(slots), *index.grid)
