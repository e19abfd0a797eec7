"""Effect matrices of a whole collection on disk: the map of any pair of its images, without passes.

Image i has one slot a type t: the space in which images of type t are compared with it (one slot
where there is one space). With E [c d] the effect matrix and e [d] the unit embedding in a slot,

    score of (q, r) = e[q, type r] · e[r, type q]
    map of (q, r)   = E[q, type r] e[r, type q]          [c]

Files: `embeddings` [n t d] float32 of all rows, `effects` [m t c d] float16 of the m queries, both
zarr3 and sharded; `finished` tells which shards are whole. A shard is written at once, then marked:
whatever interrupts the writer, no half shard is taken for a whole one.
"""

import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from sane_jax import checkpoint

SHARD = 64  # images a shard: 6 MB of effects with 11 slots, 64 cells and 64 axes


class EffectIndex(NamedTuple):
  """An open index; see the module's text.

  Attributes:
    queries: rows of the collection that have effects [m], ascending.
    types: type of each row of the collection [n].
    grid: (rows, columns) of the cells.
  """

  queries: np.ndarray
  types: np.ndarray
  grid: tuple[int, int]
  embeddings: Any
  effects: Any
  finished: dict[str, Any]


def open_index(
  folder: pathlib.Path,
  *,
  queries: np.ndarray,
  types: np.ndarray,
  num_types: int,
  grid: tuple[int, int],
  embedding_size: int,
) -> EffectIndex:
  """The index in `folder`, made if there is none.

  Raises:
    ValueError: there is one of other shapes; says how to go on.
  """
  n, m, t, d = len(types), len(queries), num_types, embedding_size
  c = math.prod(grid)
  try:
    return EffectIndex(
      np.asarray(queries), np.asarray(types), grid,
      _open(folder / "embeddings", (n, t, d), (SHARD, t, d), (SHARD, t, d), "float32"),
      _open(folder / "effects", (m, t, c, d), (SHARD, t, c, d), (1, 1, c, d), "float16"),
      {
        name: _open(folder / f"finished_{name}", (num_shards(rows),), (1,), (1,), "uint8")
        for name, rows in (("embeddings", n), ("effects", m))
      },
    )  # fmt: skip
  except ValueError as error:
    raise ValueError(
      f"{folder} holds an index of other shapes or a damaged one ({str(error)[:300]}); remove it"
      " and build it again"
    ) from error


def describe(folder: pathlib.Path, index: EffectIndex) -> None:
  """Keeps beside the arrays what `read_index` needs to open them."""
  arrays = {"queries": index.queries, "types": index.types, "grid": np.asarray(index.grid)}
  _, num_types, embedding_size = index.embeddings.shape
  checkpoint.write_arrays(
    folder / "index.npz", {**arrays, "shape": np.array([num_types, embedding_size])}
  )


def read_index(folder: pathlib.Path) -> EffectIndex:
  """The index that was described in `folder`.

  Raises:
    ValueError: there is none, or it is damaged.
  """
  arrays = checkpoint.read_arrays(folder / "index.npz")
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


def _open(path: pathlib.Path, shape, shard, chunk, dtype: str) -> Any:
  inner = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd"}]
  codecs: list[Any] = [
    {"name": "sharding_indexed", "configuration": {"chunk_shape": list(chunk), "codecs": inner}}
  ]
  if dtype == "uint8":
    codecs = [{"name": "bytes"}]
  spec = {
    "driver": "zarr3",
    "kvstore": {"driver": "file", "path": str(path.absolute())},
    "metadata": {
      "shape": list(shape),
      "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shard)}},
      "data_type": dtype,
      "codecs": codecs,
      "fill_value": 0,
    },
  }
  # No cache: each process reads what the others wrote.
  context = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
  return ts.open(spec, create=True, open=True, context=context).result()


def num_shards(count: int) -> int:
  """Shards of `count` images."""
  return -(-count // SHARD)


def missing_shards(index: EffectIndex, part: str) -> list[int]:
  """Shards of `part` ('embeddings' or 'effects') that are not whole yet."""
  return np.flatnonzero(index.finished[part].read().result() == 0).tolist()


def shard_slice(shard: int, count: int) -> slice:
  """The images of a shard, of `count` in all."""
  return slice(shard * SHARD, min((shard + 1) * SHARD, count))


def write_shard(index: EffectIndex, part: str, shard: int, values: np.ndarray) -> None:
  """Writes a whole shard and then marks it.

  Raises:
    ValueError: float16 can't hold the values.
  """
  array = getattr(index, part)
  with np.errstate(over="ignore"):
    values = np.asarray(values, array.dtype.numpy_dtype)
  if not np.isfinite(values).all():
    raise ValueError(f"shard {shard} of {part} holds NaN, or effects beyond float16's 65,504")
  array[shard_slice(shard, array.shape[0])].write(values).result()
  index.finished[part][shard].write(np.uint8(1)).result()


def read_maps(
  index: EffectIndex, position: int, references: Sequence[int] | np.ndarray, embeddings: np.ndarray
) -> np.ndarray:
  """Maps [r rows columns] of the query at `position` against rows of the collection.

  Args:
    embeddings: all of `index.embeddings` [n t d], read once by the caller.
  """
  rows = np.asarray(references, int)
  if not len(rows):
    return np.zeros((0, *index.grid), np.float32)
  slots = index.types[rows]
  wanted = np.unique(slots)
  # Each slot is a chunk of its own: only what is needed is read.
  effects = index.effects.oindex[position, wanted].read().result().astype(np.float32)
  directions = embeddings[rows, index.types[index.queries[position]]]
  maps = np.einsum("rcd,rd->rc", effects[np.searchsorted(wanted, slots)], directions)
  return maps.reshape(len(rows), *index.grid)
