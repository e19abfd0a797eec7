"""Checkpoints come back whole, on any devices; a run's folder and its log know whose they are."""

import json
import os
import signal

import jax
import numpy as np
import pytest

from sane_jax.runs import folder as run_folder
from sane_jax.training import checkpoints as checkpoints_lib
from sane_jax.training import loop, sharding


def test_due():
  assert [s for s in range(1, 11) if loop.due(s, 4, 10)] == [4, 8, 10]
  assert [s for s in range(1, 4) if loop.due(s, 0, 3)] == [3]


def test_a_folder_of_other_settings_is_refused(tmp_path):
  run_folder.claim_folder(tmp_path / "run", {"a": 1, "b": (1, 2)})
  run_folder.claim_folder(tmp_path / "run", {"a": 1, "b": [1, 2]})  # a tuple is a list in JSON
  with pytest.raises(ValueError, match=r"a is 1 there and 2 here; c is None there and 3 here"):
    run_folder.claim_folder(tmp_path / "run", {"a": 2, "b": (1, 2), "c": 3})
  (tmp_path / "run/settings.json").write_text('{"a": ')
  with pytest.raises(ValueError, match=r"settings.json can't be read"):
    run_folder.claim_folder(tmp_path / "run", {"a": 1})


def test_finished(tmp_path):
  assert not run_folder.is_finished(tmp_path)
  run_folder.finish(tmp_path, {"accuracy": np.float32(0.5)})
  assert run_folder.is_finished(tmp_path)
  assert run_folder.read_json(tmp_path / "finished.json") == {"accuracy": 0.5}


def state_on(mesh, rng):
  tree = {"w": rng.normal(size=(4, 3)).astype(np.float32), "step": np.int32(-1)}
  return sharding.replicate(mesh, tree)


def test_checkpoints_restore_bit_for_bit_on_other_devices(tmp_path, rng):
  two = sharding.batch_mesh()
  one = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), two.axis_names)
  state = state_on(two, rng)
  with_checkpoints = checkpoints_lib.Checkpoints(tmp_path)
  assert with_checkpoints.restore(state) == (0, state, {})
  for step in (3, 5, 7):
    with_checkpoints.save(step, state, {"data": {"next_index": step}, "best": None})
  with_checkpoints.save(7, state, {"data": "a second time"})
  with_checkpoints.close()
  step, restored, meta = checkpoints_lib.Checkpoints(tmp_path).restore(state_on(one, rng))
  assert (step, meta) == (7, {"data": {"next_index": 7}, "best": None})
  jax.tree.map(np.testing.assert_array_equal, state, restored)
  assert restored["w"].sharding.device_set == {jax.devices()[0]}
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["5", "7"]


def test_a_checkpoint_of_another_model(tmp_path, rng):
  mesh = sharding.batch_mesh()
  checkpoints = checkpoints_lib.Checkpoints(tmp_path)
  checkpoints.save(1, state_on(mesh, rng), {})
  checkpoints.close()
  other = sharding.replicate(mesh, {"w": np.zeros((4, 5), np.float32), "step": np.int32(0)})
  with pytest.raises(ValueError, match="another model or damaged"):
    checkpoints_lib.Checkpoints(tmp_path).restore(other)


def test_half_a_save_is_not_seen(tmp_path, rng):
  mesh = sharding.batch_mesh()
  state = state_on(mesh, rng)
  checkpoints = checkpoints_lib.Checkpoints(tmp_path)
  checkpoints.save(1, state, {})
  checkpoints.close()
  (tmp_path / "checkpoints/2.orbax-checkpoint-tmp").mkdir()
  assert checkpoints_lib.Checkpoints(tmp_path).restore(state)[0] == 1


def test_metrics_forget_what_came_after_the_step_gone_back_to(tmp_path):
  writer = loop.MetricWriter(tmp_path, first_step=0)
  for step in (1, 2, 3):
    writer.write_scalars(step, {"loss": np.float32(step)})
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 4, "lo')  # cut short by a kill
  assert [r["step"] for r in loop.read_metrics(tmp_path)] == [1, 2, 3]
  writer = loop.MetricWriter(tmp_path, first_step=2)
  writer.write_scalars(3, {"loss": 9})
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [(r["step"], r["loss"]) for r in rows] == [(1, 1.0), (2, 2.0), (3, 9.0)]


def test_tensorboard_events_can_be_read(tmp_path):
  pytest.importorskip("tensorboardX")
  writer = loop.MetricWriter(tmp_path, first_step=0, tensorboard=True)
  writer.write_scalars(5, {"loss": 0.25})
  writer.close()
  (path,) = (tmp_path / "tensorboard").iterdir()
  assert b"loss" in path.read_bytes()


def test_sigterm_is_heard_and_the_old_handler_comes_back():
  before = signal.getsignal(signal.SIGTERM)
  with loop.termination() as stop:
    assert not stop.is_set()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.wait(5)
  assert signal.getsignal(signal.SIGTERM) is before


def test_a_loss_that_is_no_number_names_its_step():
  loop.check_finite(np.int32(-1), "similarity")
  with pytest.raises(ValueError, match=r"step 17 .*--config\.similarity\.learning_rate"):
    loop.check_finite(np.int32(17), "similarity")


def test_batches_are_put_together_in_order():
  mesh = sharding.batch_mesh()
  out = sharding.shard(mesh, {"x": np.arange(6)})
  np.testing.assert_array_equal(out["x"], np.arange(6))
  assert len(out["x"].addressable_shards) == mesh.size
  with pytest.raises(ValueError, match=r"batches of 5 images, which 2 devices .* 6 would do"):
    sharding.check_batch(mesh, 5, "attributes.batch_size")


def test_what_a_job_took_does_not_change_what_it_found(tmp_path):
  with pytest.raises(ValueError, match=r"run --config\.job=build_index first"):
    run_folder.hash_finished(tmp_path, "build_index")
  hashes = []
  for images, passes in ((3, 50), (3, 20), (4, 50)):
    run_folder.finish(tmp_path, {"images": images, "passes_of_this_run": passes})
    hashes.append(run_folder.hash_finished(tmp_path, "build_index"))
  assert hashes[0] == hashes[1] != hashes[2]


def test_a_run_that_is_older_than_a_setting_goes_on_while_that_is_off(tmp_path):
  run_folder.claim_folder(tmp_path / "run", {"steps": 3})
  run_folder.claim_folder(tmp_path / "run", {"steps": 3, "every_type": False})
  with pytest.raises(ValueError, match="every_type is None there and True here"):
    run_folder.claim_folder(tmp_path / "run", {"steps": 3, "every_type": True})
  with pytest.raises(ValueError, match="steps is 3 there and 4 here"):
    run_folder.claim_folder(tmp_path / "run", {"steps": 4, "every_type": False})
