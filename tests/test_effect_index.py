"""The index gives the maps that were put in, and never takes half a shard for a whole one."""

import numpy as np
import pytest

from sane_jax.maps import index_arrays

N, T, D, GRID = 150, 3, 8, (2, 3)


@pytest.fixture
def made(tmp_path, rng):
  queries = np.sort(rng.choice(N, 70, replace=False))
  types = rng.integers(T, size=N)
  index = open_at(tmp_path, queries, types)
  embeddings = rng.normal(size=(N, T, D)).astype(np.float32)
  effects = rng.normal(size=(70, T, 6, D)).astype(np.float32)
  for part, values in (("embeddings", embeddings), ("effects", effects)):
    for shard in index_arrays.missing_shards(index, part):
      where = index_arrays.shard_slice(shard, len(values))
      index_arrays.write_shard(index, part, shard, values[where])
  return index, embeddings, effects


def open_at(folder, queries, types, grid=GRID):
  return index_arrays.open_index(
    folder, queries=queries, types=types, num_types=T, grid=grid, embedding_size=D
  )


def test_maps_are_products_in_the_slots_of_each_others_types(made):
  index, embeddings, effects = made
  for position in (0, 63, 64, 69):
    query = index.queries[position]
    references = [3, 149, 3, 77, 0]
    maps = index_arrays.read_maps(index, position, references, embeddings)
    for reference, out in zip(references, maps, strict=True):
      expected = sum(
        effects[position, index.types[reference], :, axis]
        * embeddings[reference, index.types[query], axis]
        for axis in range(D)
      )
      np.testing.assert_allclose(out.ravel(), expected, rtol=5e-3, atol=5e-3)  # float16's 11 bits
  assert index_arrays.read_maps(index, 0, [], embeddings).shape == (0, *GRID)


def test_a_shard_counts_once_it_is_marked(made, tmp_path):
  index, embeddings, _ = made
  assert index_arrays.missing_shards(index, "effects") == []
  fresh = open_at(tmp_path / "other", index.queries, index.types)
  assert index_arrays.missing_shards(fresh, "embeddings") == [0, 1, 2]
  # As if killed between the two writes of write_shard.
  where = index_arrays.shard_slice(1, N)
  fresh.embeddings[where].write(embeddings[where]).result()
  assert index_arrays.missing_shards(fresh, "embeddings") == [0, 1, 2]
  index_arrays.write_shard(fresh, "embeddings", 1, embeddings[where])
  again = open_at(tmp_path / "other", index.queries, index.types)
  assert index_arrays.missing_shards(again, "embeddings") == [0, 2]
  np.testing.assert_array_equal(again.embeddings[where].read().result(), embeddings[where])


def test_an_index_is_opened_by_its_manifest(made, tmp_path):
  index, embeddings, _ = made
  with pytest.raises(ValueError, match=r"no index, or a damaged one.*build_index"):
    index_arrays.read_index(tmp_path)
  index_arrays.describe(tmp_path, index, ids=list(map(str, range(N))), settings={}, left_out={})
  same(index_arrays.read_index(tmp_path), index, embeddings)


@pytest.mark.parametrize("both", [False, True])
def test_an_index_from_before_there_was_a_manifest_is_read(made, tmp_path, both):
  """Those of data sets had an index.npz, at first alone, then beside the manifest."""
  index, embeddings, _ = made
  np.savez_compressed(
    tmp_path / "index.npz", queries=index.queries, types=index.types, grid=np.asarray(GRID),
    shape=np.array([T, D]),
  )  # fmt: skip
  if both:
    index_arrays.describe(tmp_path, index, ids=list(map(str, range(N))), settings={}, left_out={})
  same(index_arrays.read_index(tmp_path), index, embeddings)


def same(read, index, embeddings):
  np.testing.assert_array_equal(read.queries, index.queries)
  np.testing.assert_array_equal(read.types, index.types)
  assert read.grid == index.grid
  maps = (index_arrays.read_maps(i, 5, [0, 1, 149], embeddings) for i in (read, index))
  np.testing.assert_array_equal(*maps)


def test_slots_that_are_zero_take_no_room(tmp_path, rng):
  index = open_at(tmp_path, np.arange(64), np.zeros(64, int))
  effects = np.zeros((64, T, 6, D), np.float32)
  effects[:, 0] = rng.normal(size=(64, 6, D))
  index_arrays.write_shard(index, "effects", 0, effects)
  size = sum(p.stat().st_size for p in (tmp_path / "effects").rglob("*") if p.is_file())
  assert size < 2 * 64 * 6 * D * 2


def test_bad_values_and_other_shapes(made, tmp_path):
  index, _, effects = made
  with pytest.raises(ValueError, match="65,504"):
    index_arrays.write_shard(index, "effects", 0, effects[:64] * 1e9)
  with pytest.raises(ValueError, match="remove it and build it again"):
    open_at(tmp_path, index.queries, index.types, grid=(3, 3))


@pytest.mark.parametrize(("dtype", "kilobytes"), [("float16", 10), ("int8", 6)])
def test_an_image_takes_few_bytes(tmp_path, rng, dtype, kilobytes):
  """64 cells and 64 axes, as in the paper, with the standard error's factor."""
  index = index_arrays.open_index(
    tmp_path, queries=np.arange(64), types=np.zeros(64, int), num_types=1, grid=(8, 8),
    embedding_size=64, dtype=dtype, spread=8,
  )  # fmt: skip
  for part, shape in (("embeddings", (64,)), ("effects", (64, 64)), ("spread", (64, 8))):
    index_arrays.write_shard(index, part, 0, rng.normal(size=(64, 1, *shape)).astype(np.float32))
  size = sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())
  assert size / 64 < kilobytes * 1000


def test_it_grows_at_its_end_and_counts_what_is_there(tmp_path, rng):
  values = rng.normal(size=(150, T, D)).astype(np.float32)
  for count in (70, 150):
    types = np.zeros(count, int)
    index = open_at(tmp_path, np.arange(count), types)
    for shard in index_arrays.missing_shards(index, "embeddings"):
      rows = index_arrays.missing_rows(index, "embeddings", shard)
      index_arrays.write_shard(index, "embeddings", shard, values[rows])
  assert index.finished["embeddings"].read().result().tolist() == [64, 64, 22]
  np.testing.assert_array_equal(index.embeddings.read().result(), values)
  with pytest.raises(ValueError, match="remove it and build it again"):
    open_at(tmp_path, np.arange(70), np.zeros(70, int))
