"""The training jobs: they learn, stop and go on exactly, and refuse what is not theirs."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import many
import tiny_data
import tiny_run

from sane_jax.maps import index_arrays
from sane_jax.models import weights
from sane_jax.training import loop

ALL = tiny_run.TRAIN


def results(folder, job):
  return json.loads((folder / job / "finished.json").read_text())


def test_both_models_learn(trained):
  similarity = results(trained, "similarity")
  assert (
    similarity["test"]["fill_in_the_blank"]
    > 0.9
    > similarity["test_untrained"]["fill_in_the_blank"]
  )
  assert similarity["test"]["compatibility_auc"] > 0.9
  attributes = results(trained, "attributes")
  assert attributes["test"]["mean_average_precision"] > 0.6
  assert 0.2 < attributes["test_chance"]["mean_average_precision"] < 0.3
  steps = [r["step"] for r in loop.read_metrics(trained / "similarity")]
  assert steps == sorted(steps)
  assert steps[-1] == 30  # the last step is evaluated


def test_the_best_is_what_is_kept(trained):
  rows = loop.read_metrics(trained / "similarity")
  values = {r["step"]: v for r in rows if (v := r.get("valid/fill_in_the_blank")) is not None}
  best = results(trained, "similarity")["best"]
  assert best["value"] == max(values.values())
  assert best["step"] == min(s for s, v in values.items() if v == max(values.values()))
  _, description = weights.read_model_file(trained / "similarity/model.safetensors")
  assert description["best"] == best


def test_the_index_holds_the_maps_of_the_trained_model(trained):
  """Against Explainer, which masks the same query for one reference in one space."""
  import sane_jax

  train = tiny_data.collection("train", groups=60, seed=0)
  index = index_arrays.read_index(trained / "index")
  embeddings = index.embeddings.read().result()
  path = trained / "similarity/model.safetensors"
  for position in (0, 17):
    query = int(index.queries[position])
    group = next(g for g in train.groups if query in g)
    reference = int(next(r for r in group if r != query))
    space = int(train.conditions[train.types[query], train.types[reference]])
    model = sane_jax.load_model(str(path), condition=space)
    explainer = sane_jax.Explainer(model, design="hadamard", num_masks=128, fill="white", key=0)
    import io

    from PIL import Image

    photos = [Image.open(io.BytesIO(train.images[r])) for r in (query, reference)]
    e = explainer.explain(*photos)
    (found,) = index_arrays.read_maps(index, position, [reference], embeddings)
    np.testing.assert_allclose(
      found.ravel(), e.saliency.cells, rtol=1e-2, atol=2e-3 * np.abs(e.saliency.cells).max()
    )
    slots = embeddings[query, train.types[reference]], embeddings[reference, train.types[query]]
    assert np.dot(*slots) == pytest.approx(e.score, abs=1e-5)


def test_the_passes_do_not_grow_with_the_matches(trained, tmp_path):
  once = results(trained, "index")
  assert once["passes_of_this_run"] == 70 * 128 + once["images"] + 1
  (tmp_path / "similarity").symlink_to(trained / "similarity")
  tiny_run.run_jobs(tiny_run.tiny_config(tmp_path, index__matches=1), "build_index")
  assert results(tmp_path, "index")["passes_of_this_run"] == once["passes_of_this_run"]


def test_an_unreadable_image_costs_only_its_own_maps(trained, tmp_path, monkeypatch):
  from sane_jax.jobs import train_attributes

  train = tiny_data.collection("train", groups=60, seed=0)
  index = index_arrays.read_index(trained / "index")
  victim = int(index.queries[3])
  images = list(train.images)
  images[victim] = images[victim][:300]
  broken = train._replace(images=tuple(images))
  monkeypatch.setattr(tiny_run, "tiny_split", lambda *_: broken)
  (tmp_path / "similarity").symlink_to(trained / "similarity")
  tiny_run.run_jobs(tiny_run.tiny_config(tmp_path), "build_index")
  assert list(results(tmp_path, "index")["images_that_could_not_be_read"]) == [train.ids[victim]]
  whole, partial = (train_attributes.read_maps(f / "index", train) for f in (trained, tmp_path))
  assert not partial.valid[partial.query[victim]].any()
  group = next(g for g in train.groups if victim in g)
  for row in set(map(int, index.queries)) - {victim}:
    a, b = (m.valid[m.query[row]] for m in (whole, partial))
    assert a.sum() - b.sum() == (1 if row in group else 0)


@pytest.fixture
def large(tmp_path, monkeypatch):
  """An index whose maps take 5 MB, its collection and its effects."""
  from sane_jax.jobs import train_attributes

  train, grid, rng = tiny_data.collection("train", groups=60), (28, 28), np.random.default_rng(0)
  n = len(train.ids)
  index = index_arrays.open_index(
    tmp_path / "index", queries=np.arange(n), types=train.types * 0, num_types=1, grid=grid,
    embedding_size=4,
  )  # fmt: skip
  sizes = {"embeddings": (n, 1, 4), "effects": (n, 1, 28 * 28, 4)}
  for part, shape in sizes.items():
    values = rng.normal(size=shape).astype(np.float32)
    values /= np.linalg.norm(values, axis=-1, keepdims=True)
    for shard in index_arrays.missing_shards(index, part):
      rows = index_arrays.shard_slice(shard, n)
      index_arrays.write_shard(index, part, shard, values[rows])
  built = {"matches": 20, "key": 0}
  monkeypatch.setattr(train_attributes.run_folder, "read_finished", lambda *_: built)
  monkeypatch.setattr(train_attributes.pairs_lib, "check_index", lambda *_: None)
  monkeypatch.setattr(index_arrays, "read_index", lambda _: index)
  return tmp_path / "index", train, index


def test_maps_wait_on_disk_and_are_those_of_the_index(large):
  """Of a collection with a quarter of a million queries they are more than memory holds."""
  import tracemalloc

  from sane_jax.datasets import collection as collection_lib
  from sane_jax.jobs import train_attributes

  folder, train, index = large
  tracemalloc.start()
  try:
    maps = train_attributes.read_maps(folder, train)
    chosen = maps.values[maps.query[np.arange(16)]]
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert isinstance(maps.values, np.memmap)
  assert peak < 0.5 * maps.values.nbytes
  embeddings, groups = index.embeddings.read().result(), collection_lib.groups_of(train)
  for row in range(16):
    matches = collection_lib.draw_matches(train, groups[row], row, limit=20, seed=0)
    expected = index_arrays.read_maps(index, row, matches, embeddings).astype(np.float16)
    np.testing.assert_array_equal(chosen[row, : len(matches)], expected)
    assert not chosen[row, len(matches) :].any()
    assert maps.valid[row].sum() == len(matches)
  assert not maps.values[-1].any()
  assert not maps.valid[-1].any()


def test_a_disk_without_room_for_maps_is_named(large, monkeypatch):
  import errno
  import tempfile

  from sane_jax.jobs import train_attributes

  class Full:
    def __enter__(self):
      return self

    def __exit__(self, *_):
      pass

    def write(self, data):
      raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(tempfile, "TemporaryFile", Full)
  with pytest.raises(OSError, match=r"maps take 0\.00 GiB .*No space left.*TMPDIR=FOLDER"):
    train_attributes.read_maps(*large[:2])


def test_what_is_finished_is_left_alone(trained, capsys):
  stamps = {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.is_file()}
  tiny_run.run_jobs(tiny_run.tiny_config(trained), *ALL)
  assert {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.is_file()} == stamps
  assert capsys.readouterr().out.count("up to date") == 5


def test_other_settings_and_missing_steps_are_named(trained, tmp_path):
  with pytest.raises(ValueError, match=r"similarity.margin is 0.3 there and 0.5 here"):
    tiny_run.run_jobs(tiny_run.tiny_config(trained, similarity__margin=0.5), ALL[0])
  with pytest.raises(ValueError, match=r"--config.job=train_similarity"):
    tiny_run.run_jobs(tiny_run.tiny_config(tmp_path), "build_index")
  with pytest.raises(ValueError, match=r"run --config.job=build_index first"):
    tiny_run.run_jobs(tiny_run.tiny_config(tmp_path), "train_attributes")
  with pytest.raises(ValueError, match="no cells that all images share"):
    tiny_run.run_jobs(tiny_run.tiny_config(trained, index__design="lime"), "build_index")
  with pytest.raises(ValueError, match="fewer than one batch"):
    tiny_run.run_jobs(
      tiny_run.tiny_config(tmp_path, attributes__batch_size=5000, attributes__map_weight=0.0),
      "train_attributes",
    )
  with pytest.raises(ValueError, match="can't share evenly"):
    tiny_run.run_jobs(
      tiny_run.tiny_config(
        tmp_path, similarity__groups_per_batch=1, similarity__images_per_group=3
      ),
      ALL[0],
    )


@pytest.mark.parametrize("job", ["train_similarity", "train_attributes"])
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(tmp_path, job):
  section = job.removeprefix("train_")
  fields = {f"{section}__learning_rate": 1e38, "attributes__map_weight": 0.0}
  with pytest.raises(ValueError, match=rf"loss of step \d+ .*--config\.{section}\.learning_rate"):
    tiny_run.run_jobs(tiny_run.tiny_config(tmp_path, **fields), job)
  assert not (tmp_path / section / "finished.json").exists()


def test_accumulated_gradients_are_those_of_one_batch(tmp_path):
  """Without batch statistics in the way: the optimiser is fed the mean of two gradients."""
  import optax

  params = {"w": np.ones(3, np.float32)}
  optimizer = loop.accumulate(optax.adam(0.1), 2)
  state = optimizer.init(params)
  for grad in (np.array([1.0, 0, 3]), np.array([3.0, 2, 3])):
    changes, state = optimizer.update({"w": grad.astype(np.float32)}, state, params)
    params = optax.apply_updates(params, changes)
  plain = optax.adam(0.1)
  expected, _ = plain.update({"w": np.array([2.0, 1, 3], np.float32)}, plain.init(params), params)
  np.testing.assert_allclose(params["w"], 1 + expected["w"], rtol=1e-6)


def test_without_maps_there_is_no_index_to_read(tmp_path):
  config = tiny_run.tiny_config(tmp_path, attributes__map_weight=0.0, attributes__num_epochs=1)
  tiny_run.run_jobs(config, "train_attributes")
  rows = loop.read_metrics(tmp_path / "attributes")
  assert all(r["train/map"] == 0 for r in rows if "train/map" in r)


def test_classes_in_one_space(tmp_path, monkeypatch):
  """As AwA2: no types, no titles, no outfits; figures are of retrieval."""

  def by_colour(data, workdir, split):
    made = tiny_data.collection(split, groups=60, seed=("train", "valid", "test").index(split))
    colours = np.array([a[0] for a in made.attributes])
    return made._replace(
      types=np.zeros(len(colours), np.int32), type_names=("photo",),
      conditions=np.zeros((1, 1), np.int32), questions=(), compatibility=(),
      titles=("",) * len(colours),
      groups=tuple(np.flatnonzero(colours == c).astype(np.int32) for c in range(4)),
      group_names=("red", "green", "blue", "golden"),
    )  # fmt: skip

  monkeypatch.setattr(tiny_run, "tiny_split", by_colour)
  fields = {"similarity__groups_per_batch": 4, "similarity__images_per_group": 8}
  tiny_run.run_jobs(tiny_run.tiny_config(tmp_path, **fields), *ALL)
  found = results(tmp_path, "similarity")["test"]
  assert list(found) == ["same_class_auc", "recall_at_1", "recall_at_5", "recall_at_10"]
  assert found["same_class_auc"] > 0.9
  variables, _ = weights.read_model_file(tmp_path / "similarity/model.safetensors")
  assert "type_masks" not in variables["params"]
  assert index_arrays.read_index(tmp_path / "index").effects.shape[1] == 1


# --- processes ------------------------------------------------------------------------------------


def finish(*children):
  many.finish(children)


def models(folder):
  return {
    job: (folder / job / "model.safetensors").read_bytes() for job in ("similarity", "attributes")
  }


def logged(folder, job):
  return loop.read_metrics(folder / job)


@pytest.mark.full
def test_killed_at_any_moment_it_comes_to_the_same_end(trained, tmp_path):
  """SIGKILL after ever other times; what is there at the end is bit for bit the undisturbed run's.

  SANE_JAX_KILLS sets how often. A run that comes to its end is followed by another.
  """
  rng = np.random.default_rng(0)
  kills, runs = int(os.environ.get("SANE_JAX_KILLS", "3")), 0
  while kills:
    folder = tmp_path / str(runs)
    child = tiny_run.start(folder, ALL)
    try:
      child.communicate(timeout=rng.uniform(3, 16))
      runs += 1
    except subprocess.TimeoutExpired:
      child.send_signal(signal.SIGKILL)
      child.wait()
      kills -= 1
  for run in range(runs + 1):
    folder = tmp_path / str(run)
    finish(tiny_run.start(folder, ALL))
    same_as(trained, folder)
  print(f"{runs + 1} runs")


def same_as(trained, folder):
  assert models(folder) == models(trained)
  for job in ("similarity", "attributes"):
    assert logged(folder, job) == logged(trained, job)
  ours, theirs = (index_arrays.read_index(f / "index") for f in (folder, trained))
  for part in ("embeddings", "effects"):
    np.testing.assert_array_equal(
      *(getattr(index, part).read().result() for index in (ours, theirs))
    )


def test_sigterm_saves_and_leaves(trained, tmp_path):
  child = tiny_run.start(tmp_path, ["train_similarity"], "similarity.save_every_steps=0")
  deadline = time.monotonic() + 120
  log = tmp_path / "similarity/metrics.jsonl"
  while time.monotonic() < deadline and not (log.exists() and log.stat().st_size):
    time.sleep(0.02)
  child.send_signal(signal.SIGTERM)
  out, _ = child.communicate(timeout=60)
  if child.returncode == 0:
    pytest.skip("it came to its end before the signal")
  assert "goes on from there" in out
  (saved,) = [p.name for p in (tmp_path / "similarity/checkpoints").iterdir()]
  assert 5 <= int(saved) < 30
  finish(tiny_run.start(tmp_path, ["train_similarity"], "similarity.save_every_steps=0"))
  assert models_of(tmp_path, "similarity") == models_of(trained, "similarity")
  assert logged(tmp_path, "similarity") == logged(trained, "similarity")


def models_of(folder, job):
  return (folder / job / "model.safetensors").read_bytes()


@pytest.mark.full
def test_one_device_eight_and_two_processes_have_the_same_losses(tmp_path):
  """Random negatives: which image is hardest can hang on the last bit of a distance."""
  jobs = ("train_similarity", "train_attributes")
  fields = ["similarity.num_steps=12", "attributes.num_epochs=1", "attributes.map_weight=0.0"]
  fields += ['similarity.negatives="random"']
  finish(tiny_run.start(tmp_path / "1x1", jobs, *fields, devices=1))
  finish(tiny_run.start(tmp_path / "1x8", jobs, *fields, devices=8))
  address = f"127.0.0.1:{many.free_port()}"
  finish(
    *(
      tiny_run.start(tmp_path / "2x1", jobs, *fields, f"coordinator={address}", "processes=2",
                     f"process={process}", devices=1)
      for process in (0, 1)
    )
  )  # fmt: skip
  for job in ("similarity", "attributes"):
    one = logged(tmp_path / "1x1", job)
    for other in ("1x8", "2x1"):
      rows = logged(tmp_path / other, job)
      assert [r["step"] for r in rows] == [r["step"] for r in one]
      for a, b in zip(one, rows, strict=True):
        for name in a:
          if name.startswith("train/"):
            assert b[name] == pytest.approx(a[name], abs=1e-5), (job, other, a["step"], name)


@pytest.mark.full
def test_sigterm_on_one_of_two_processes_saves_on_both_and_goes_on_with_one(tmp_path):
  fields = ["similarity.num_steps=250", "similarity.save_every_steps=0"]
  fields += ["similarity.eval_every_steps=0"]
  address = f"127.0.0.1:{many.free_port()}"
  children = [
    tiny_run.start(
      tmp_path / "moved", ["train_similarity"], *fields, f"coordinator={address}", "processes=2",
      f"process={process}", devices=1,
    )
    for process in (0, 1)
  ]  # fmt: skip
  deadline = time.monotonic() + 120
  log = tmp_path / "moved/similarity/metrics.jsonl"
  while time.monotonic() < deadline and not (log.exists() and log.stat().st_size):
    time.sleep(0.02)
  children[1].send_signal(signal.SIGTERM)
  out = [child.communicate(timeout=120)[0] for child in children]
  steps = [re.search(r"stopped after step (\d+); the same command goes on", text) for text in out]
  assert all(steps), "\n".join(out)
  assert steps[0][1] == steps[1][1]
  saved = [path.name for path in (tmp_path / "moved/similarity/checkpoints").iterdir()]
  assert saved == [steps[0][1]]
  finish(tiny_run.start(tmp_path / "moved", ["train_similarity"], *fields, devices=2))
  finish(tiny_run.start(tmp_path / "still", ["train_similarity"], *fields, devices=2))
  still, moved = (logged(tmp_path / name, "similarity") for name in ("still", "moved"))
  assert [r["step"] for r in still] == [r["step"] for r in moved]
  for a, b in zip(still[:20], moved, strict=False):  # later ones drift apart by rounding
    assert b["train/loss"] == pytest.approx(a["train/loss"], abs=1e-4)


@pytest.mark.full
def test_a_run_moves_between_devices(tmp_path):
  """Stopped on one device, gone on with on eight: the same losses as without."""
  fields = ["similarity.num_steps=12", "similarity.save_every_steps=4"]
  fields += ['similarity.negatives="random"']
  finish(tiny_run.start(tmp_path / "still", ["train_similarity"], *fields, devices=1))
  child = tiny_run.start(tmp_path / "moved", ["train_similarity"], *fields, devices=1)
  deadline = time.monotonic() + 120
  while time.monotonic() < deadline and not (tmp_path / "moved/similarity/checkpoints/4").exists():
    time.sleep(0.01)
  child.send_signal(signal.SIGKILL)
  child.communicate()
  finish(tiny_run.start(tmp_path / "moved", ["train_similarity"], *fields, devices=8))
  still, moved = (logged(tmp_path / name, "similarity") for name in ("still", "moved"))
  for a, b in zip(still, moved, strict=True):
    assert b.get("train/loss") == pytest.approx(a.get("train/loss"), abs=1e-4)
