"""The job on planted embeddings: what it finds, what it says of what it can't find, its null."""

import json

import ml_collections
import numpy as np
import pytest
import tiny_data
from scipy import stats

from sane_jax.attributes import concepts as concepts_lib
from sane_jax.attributes import pairs as pairs_lib
from sane_jax.datasets import collection as collection_lib
from sane_jax.datasets import load
from sane_jax.jobs import fit_concepts
from sane_jax.maps import index_arrays
from sane_jax.ops import statistics
from sane_jax.runs import folder as run_folder

NAMES = ("shared", "differing", "noise", "none", "all", "one")
N, D = 400, 16


def planted(num_types=1, seed=0):
  """Embeddings [n t d] and a collection; pairs share attribute 0 and differ in attribute 1."""
  rng = np.random.default_rng(seed)
  labels = rng.random((N, len(NAMES))) < 0.35
  labels[:, 3:] = False, True, False
  labels[7, 5] = True
  axes = np.linalg.qr(rng.normal(size=(D, D)))[0]
  x = 0.3 * rng.normal(size=(N, D)) + 0.8 * axes[2]
  x += 1.2 * labels[:, :1] * axes[0] + 1.2 * labels[:, 1:2] * axes[1]
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  have = np.flatnonzero(labels[:, 0] & labels[:, 1])
  lack = np.flatnonzero(labels[:, 0] & ~labels[:, 1])
  groups = [np.array([rng.choice(have), rng.choice(lack)], np.int32) for _ in range(300)]
  attributes = tuple(np.flatnonzero(row).astype(np.int32) for row in labels)
  types = rng.integers(num_types, size=N).astype(np.int32)
  conditions = np.zeros((num_types, num_types), np.int32)
  upper = np.triu_indices(num_types)
  conditions[upper] = conditions[upper[::-1]] = np.arange(len(upper[0]))
  collection = tiny_data.collection("planted", groups=2)._replace(
    ids=tuple(f"p{i}" for i in range(N)), images=(b"",) * N, titles=("",) * N, types=types,
    type_names=tuple("abc"[:num_types]), conditions=conditions, groups=tuple(groups),
    group_names=tuple(map(str, range(300))), attribute_names=NAMES, attributes=attributes,
  )  # fmt: skip
  return np.repeat(x[:, None], num_types, axis=1).astype(np.float32), collection, axes


def write_index(workdir, embeddings, collection):
  """As build_index leaves it, without effects."""
  folder = pairs_lib.index_folder(workdir, "train")
  n, t, d = embeddings.shape
  index = index_arrays.open_index(
    folder, queries=np.arange(1), types=collection.types if t > 1 else np.zeros(n, np.int32),
    num_types=t, grid=(1, 1), embedding_size=d,
  )  # fmt: skip
  index_arrays.describe(folder, index, ids=collection.ids, settings={}, left_out={})
  index.embeddings[:].write(embeddings).result()
  content = collection_lib.hash_images(collection)
  run_folder.finish(folder, {"fingerprint": "first", "content": content})


def config(workdir, **fields):
  settings = concepts_lib.Settings()._asdict() | {"folder": "concepts"} | fields
  return ml_collections.ConfigDict(
    {
      "workdir": str(workdir), "seed": 0, "data": {}, "concepts": settings,
      "index": {"model": "", "image_size": None},
    }
  )  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
  """Runs the job on a collection whose index lies in tmp_path; what it wrote."""

  def run(collection, **fields):
    monkeypatch.setattr(load, "load_split", lambda *_: collection)
    fit_concepts.run(config(tmp_path, **fields))
    folder = tmp_path / "concepts"
    return np.load(folder / "concepts.npz"), json.loads((folder / "finished.json").read_text())

  return run


@pytest.mark.parametrize("num_types", [1, 2])
def test_planted_attributes_are_found_and_the_rest_is_named(run, tmp_path, num_types):
  embeddings, collection, axes = planted(num_types)
  write_index(tmp_path, embeddings, collection)
  found, finished = run(collection)
  spaces = num_types * (num_types + 1) // 2
  assert found["prior"].shape == (spaces, len(NAMES)) == found["vectors"].shape[:2]
  assert finished["spaces"] == spaces
  assert (found["prior"][:, 0] > 0.7).all()  # more of it raises the score
  assert (found["prior"][:, 1] < 0.3).all()  # of a query that has it the reference lacks it
  assert (found["prior"][:, 2:] == concepts_lib.NEUTRAL).all()
  for axis in range(2):
    assert (found["vectors"][:, axis] @ axes[axis] > 0.9).all()  # towards the attribute
  np.testing.assert_allclose(np.linalg.norm(found["vectors"][:, :2], axis=2), 1, atol=1e-5)
  assert set(finished["neutral"]) == set(NAMES[2:])
  assert "unknown: no direction" in finished["neutral"]["noise"]
  assert np.isnan(found["p_value"][:, 2:]).all()  # and counts in no correction
  assert finished["neutral"]["none"] == "no image has it"
  assert finished["neutral"]["all"] == "every image has it"
  assert "too few: 1 images" in finished["neutral"]["one"]
  table = (tmp_path / "concepts/concepts.md").read_text()
  assert "| shared |" in table
  assert "| none |" not in table
  read = concepts_lib.read_concepts(tmp_path / "concepts", NAMES, "planted")
  np.testing.assert_array_equal(read.prior, found["prior"])
  np.testing.assert_allclose(np.linalg.norm(read.patterns[:, :2], axis=2), 1, atol=1e-5)
  older = {name: found[name] for name in found.files if name != "patterns"}
  np.savez(tmp_path / "concepts/concepts.npz", **older)  # as it was before
  with pytest.warns(UserWarning, match="their priors are unsure; run --config"):
    read = concepts_lib.read_concepts(tmp_path / "concepts", NAMES, "planted")
  assert read.patterns is None


def test_it_is_done_once_and_only_with_the_same_settings(run, tmp_path, capsys):
  embeddings, collection, _ = planted()
  write_index(tmp_path, embeddings, collection)
  run(collection)
  before = (tmp_path / "concepts/concepts.npz").stat().st_mtime_ns
  run(collection)
  assert "up to date" in capsys.readouterr().out
  assert (tmp_path / "concepts/concepts.npz").stat().st_mtime_ns == before
  with pytest.raises(ValueError, match=r"concepts\.alpha is 0\.05 there and 0\.1 here"):
    run(collection, alpha=0.1)


def test_an_index_that_is_missing_or_of_other_images_is_refused(run, tmp_path):
  embeddings, collection, _ = planted()
  with pytest.raises(ValueError, match=r"run --config\.job=build_index first"):
    run(collection)
  write_index(tmp_path, embeddings, collection)
  with pytest.raises(ValueError, match="of other images"):
    run(collection._replace(ids=tuple(f"q{i}" for i in range(N))))


def test_where_nothing_can_be_fitted_all_is_neutral(run, tmp_path, capsys):
  embeddings, collection, _ = planted()
  write_index(tmp_path, embeddings, collection)
  found, finished = run(collection, min_images=N)
  assert (found["prior"] == concepts_lib.NEUTRAL).all()
  assert (found["vectors"] == 0).all()
  assert set(finished["neutral"]) == set(NAMES)
  assert "neutral for all" in capsys.readouterr().out
  concepts_lib.read_concepts(tmp_path / "concepts", NAMES, "planted")


def test_matching_pairs_are_all_of_the_groups_or_a_draw_of_them(monkeypatch):
  _, collection, _ = planted()
  collection = collection._replace(groups=(np.array([4, 2, 9]), np.array([2, 4])))
  every = {(4, 2), (2, 4), (4, 9), (9, 4), (2, 9), (9, 2)}
  pairs = fit_concepts.matching_pairs(collection, 0)
  assert len(pairs) == 6
  assert set(map(tuple, pairs.tolist())) == every
  monkeypatch.setattr(fit_concepts, "MAX_PAIRS", 4)
  drawn = fit_concepts.matching_pairs(collection, 0)
  assert len(set(map(tuple, drawn.tolist())) & every) == 4
  assert fit_concepts.matching_pairs(collection._replace(groups=()), 0).shape == (0, 2)


@pytest.mark.parametrize(
  ("size", "of_one_type"),
  [(76, False), *(pytest.param(n, True, marks=pytest.mark.full) for n in (40, 20))],
)
def test_p_values_of_labels_that_mean_nothing_are_uniform(monkeypatch, size, of_one_type):
  """Labels of many types and of one, in spaces that differ, before the correction for many."""
  monkeypatch.setattr(statistics, "false_discovery", lambda p: p)
  pooled, apart = [], []
  # The attributes of one run share how pairs are re-matched. So that their p-values are next to
  # independent, as the test of uniformity takes them to be, that is done many times.
  for seed in range(4):
    rng = np.random.default_rng(seed)
    n, num_types, d = 600, 4, 16
    types = rng.integers(num_types, size=n)
    conditions = np.array([[0, 1, 2, 3], [1, 4, 5, 6], [2, 5, 7, 8], [3, 6, 8, 9]])
    x = rng.normal(size=(n, d)) * rng.uniform(0.3, 2, d) + rng.normal(size=(num_types, d))[types]
    masks = np.abs(rng.normal(0.9, 0.7, size=(10, d)))
    embeddings = np.stack([x * masks[conditions[types, t]] for t in range(num_types)], axis=1)
    embeddings /= np.linalg.norm(embeddings, axis=2, keepdims=True)
    pairs = rng.integers(n, size=(6000, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    labels = np.zeros((n, 40), bool)
    choice = np.flatnonzero(types == 0) if of_one_type else np.arange(n)
    for column in labels.T:
      column[rng.choice(choice, size, replace=False)] = True
    found = concepts_lib.fit(
      embeddings.astype(np.float32), types, conditions, labels, np.ones(n, bool), pairs, seed=seed,
      settings=concepts_lib.Settings(num_random=100, min_accuracy=0.0),
    )  # fmt: skip
    pooled.append(found.pooled_p_value)
    apart.append(found.p_value[np.isfinite(found.p_value)])
  pooled, apart = np.concatenate(pooled), np.concatenate(apart)
  assert len(pooled) == 160
  assert stats.kstest(pooled, "uniform").pvalue > 0.01
  assert (pooled <= 0.05).mean() <= 0.1
  assert (apart <= 0.05).mean() <= 0.075
  assert (apart <= 0.001).mean() <= 0.005


def test_images_change_places_within_their_type_alone():
  rng = np.random.default_rng(0)
  types = rng.integers(3, size=200)
  others = concepts_lib._rematched(types, 50, rng)
  assert (types[others] == types).all()
  np.testing.assert_array_equal(np.sort(others, axis=1), np.tile(np.arange(200), (50, 1)))
  assert (others == np.arange(200)).mean() < 0.05
