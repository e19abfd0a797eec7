"""Full disks, folders that are gone, clocks that jump: named, nothing torn, and it goes on."""

import errno
import os
import pathlib
import re
import resource

import encoders
import jax
import numpy as np
import pytest
import tiny_data
import tiny_run
from PIL import Image

import sane_jax
from sane_jax.datasets import pipeline
from sane_jax.maps import index_arrays
from sane_jax.maps.index import ExplanationIndex
from sane_jax.runs import files
from sane_jax.runs import folder as run_folder
from sane_jax.training import checkpoints as checkpoints_lib
from sane_jax.training import loop, sharding

PACKAGE = pathlib.Path(__file__).parents[1] / "sane_jax"


@pytest.fixture
def small_disk():
  """Nothing of more than 6 kB can be written, by whichever library."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)

  class Disk:
    def fill(self):
      resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))

    def make_room(self):
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)

  disk = Disk()
  yield disk
  disk.make_room()


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path, rng, small_disk):
  mesh = sharding.batch_mesh()
  states = [
    sharding.replicate(mesh, {"w": rng.normal(size=(400, 300)).astype(np.float32)})
    for _ in range(2)
  ]
  checkpoints = checkpoints_lib.Checkpoints(tmp_path)
  checkpoints.save(1, states[0], {})
  checkpoints.close()
  checkpoints = checkpoints_lib.Checkpoints(tmp_path)

  def save():
    checkpoints.save(2, states[1], {})
    checkpoints.close()

  small_disk.fill()
  with pytest.raises(OSError, match=r"could not be written.*kept"):
    save()
  small_disk.make_room()
  again = checkpoints_lib.Checkpoints(tmp_path)
  step, state, _ = again.restore(states[1])
  assert step == 1
  jax.tree.map(np.testing.assert_array_equal, state, states[0])
  again.save(2, states[1], {})
  again.close()
  assert checkpoints_lib.Checkpoints(tmp_path).restore(states[0])[0] == 2


def test_a_report_that_does_not_fit_leaves_the_one_before(tmp_path, small_disk):
  path = tmp_path / "index.html"
  files.write_bytes(path, b"before")
  small_disk.fill()
  with pytest.raises(OSError, match=r"index.html could not be written: File too large.*kept"):
    files.write_bytes(path, b"x" * 10_000)
  assert path.read_bytes() == b"before"
  assert os.listdir(tmp_path) == ["index.html"]


def test_metrics_on_a_full_disk(tmp_path):
  writer = loop.MetricWriter(tmp_path, first_step=0)
  path = tmp_path / "metrics.jsonl"
  path.unlink()
  path.symlink_to("/dev/full")
  with pytest.raises(OSError, match=r"metrics.jsonl could not be written: No space left.*kept"):
    writer.write_scalars(1, {"loss": 1.0})


def test_a_training_whose_disk_fills_goes_on_to_the_same_end(tmp_path, monkeypatch):
  """The disk is full at the second checkpoint; then there is room again."""
  small = {"similarity__num_steps": 15, "similarity__save_every_steps": 5}
  tiny_run.run_jobs(tiny_run.tiny_config(tmp_path / "whole", **small), "train_similarity")
  save, calls = checkpoints_lib.ocp.CheckpointManager.save, []

  def full(*args, **kwargs):
    calls.append(args)
    if len(calls) == 2:
      raise OSError(errno.ENOSPC, "No space left on device")
    return save(*args, **kwargs)

  monkeypatch.setattr(checkpoints_lib.ocp.CheckpointManager, "save", full)
  config = tiny_run.tiny_config(tmp_path / "full", **small)
  with pytest.raises(OSError, match=r"checkpoints could not be written: No space left.*kept"):
    tiny_run.run_jobs(config, "train_similarity")
  tiny_run.run_jobs(config, "train_similarity")
  one, two = (tmp_path / name / "similarity" for name in ("whole", "full"))
  assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
  assert loop.read_metrics(one) == loop.read_metrics(two)


def test_a_folder_that_can_not_be_written(tmp_path, monkeypatch):
  def read_only(*_, **__):
    raise OSError(errno.EROFS, "Read-only file system")

  monkeypatch.setattr(files.tempfile, "mkstemp", read_only)
  with pytest.raises(OSError, match=r"finished.json could not be written: Read-only.*mend"):
    run_folder.finish(tmp_path, {})


def small_explainer():
  model = sane_jax.from_jax(
    encoders.nonlinear, encoders.nonlinear_params(0), image_size=encoders.SIZE, name="small"
  )
  design = sane_jax.Hadamard(num_masks=32, grid=(4, 4))
  return sane_jax.Explainer(model, design=design, fill="grey")


@pytest.mark.parametrize("how", ["moved", "emptied"])
def test_photos_whose_folder_goes_away_are_not_left_out(tmp_path, rng, how):
  photos, aside = tmp_path / "photos", tmp_path / "aside"
  photos.mkdir()
  for n in range(40):
    coarse = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8))
    coarse.resize((28, 28)).save(photos / f"{n:02d}.png")
  paths = sorted(photos.glob("*.png"))

  def go_away(done, total):
    if done == 3:
      photos.rename(aside)
      if how == "emptied":  # as where a disk was mounted
        photos.mkdir()

  with pytest.raises(
    OSError, match=r"photos/\d\d.png can.t be read.*nor can .* other images.*same again"
  ):
    ExplanationIndex.build(tmp_path / "index", small_explainer(), paths, on_progress=go_away)
  half = ExplanationIndex(tmp_path / "index")
  assert not half.left_out
  if how == "emptied":
    photos.rmdir()
  aside.rename(photos)
  maker = small_explainer()
  index = ExplanationIndex.build(tmp_path / "index", maker, paths)
  assert not index.left_out
  assert maker.encoder_passes < 38 * 33  # what was measured is not measured again
  whole = ExplanationIndex.build(tmp_path / "whole", small_explainer(), paths)
  np.testing.assert_array_equal(index.maps(0, range(40)), whole.maps(0, range(40)))


def test_a_batch_of_which_nothing_can_be_read(rng):
  some = tiny_data.collection("train", groups=8)
  gone = some._replace(images=(b"",) * len(some.images))
  images = pipeline.DecodedImages(gone, 32)
  with pytest.raises(OSError, match=r"none of 8 images can be read.*still there"):
    images.stack(range(8))
  assert not images.stack([0] * 8)[1].any()  # the padding of a last batch is one image


@pytest.mark.parametrize(
  ("count", "broken"), [(40, slice(9, 30)), (40, slice(0, 12)), (7, slice(7))]
)
def test_broken_photos_cost_no_other_however_many_follow_each_other(tmp_path, count, broken):
  rng = np.random.default_rng(0)
  paths = [tmp_path / f"{n:02d}.png" for n in range(count)]
  for path in paths:
    Image.fromarray(rng.integers(0, 255, (28, 28, 3), dtype=np.uint8)).save(path)
  for path in paths[broken]:
    path.write_bytes(b"no picture")
  index = ExplanationIndex.build(tmp_path / "index", small_explainer(), paths)
  assert list(index.left_out) == [str(path) for path in paths[broken]]
  assert sum(str(path) in index for path in paths) == count - len(paths[broken])


def test_photos_of_which_none_can_be_read_are_not_left_out(tmp_path):
  paths = [tmp_path / f"photos/{n:02d}.png" for n in range(8)]
  with pytest.raises(OSError, match=r"00.png can.t be read.*nor can 8 other images"):
    ExplanationIndex.build(tmp_path / "index", small_explainer(), paths)
  assert not ExplanationIndex(tmp_path / "index").left_out


def test_outfits_that_go_away_are_measured_later(trained, tmp_path, monkeypatch):
  """From the first look at an image of the middle on, none can be read for a while."""
  for name in ("whole", "part"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "similarity").symlink_to(trained / "similarity")
  tiny_run.run_jobs(tiny_run.tiny_config(tmp_path / "whole"), "build_index")
  split = tiny_run.tiny_split

  class Gone(tuple):
    gone = False

    def __getitem__(self, row):
      self.gone |= row == 70
      return b"" if self.gone else super().__getitem__(row)

  def gone(*args):
    made = split(*args)
    return made._replace(images=Gone(made.images))

  monkeypatch.setattr(tiny_run, "tiny_split", gone)
  with pytest.raises(OSError, match=r"train_.* can't be read.*nor can \d other images.*kept"):
    tiny_run.run_jobs(tiny_run.tiny_config(tmp_path / "part"), "build_index")
  monkeypatch.setattr(tiny_run, "tiny_split", split)
  tiny_run.run_jobs(tiny_run.tiny_config(tmp_path / "part"), "build_index")
  finished = run_folder.read_json(tmp_path / "part/index/finished.json")
  assert not finished["images_that_could_not_be_read"]
  one, two = (index_arrays.read_index(tmp_path / name / "index") for name in ("whole", "part"))
  for part in ("embeddings", "effects"):
    a, b = (index.arrays[part].read().result() for index in (one, two))
    np.testing.assert_array_equal(a, b)


def test_nothing_reads_the_wall_clock():
  """Durations are of a clock that does not jump.

  But the study's: people come back days later, on another start of the server. The times that it
  reports are the browser's, of such a clock, wherever there are any.
  """
  for path in PACKAGE.rglob("*.py"):
    if path.is_relative_to(PACKAGE / "study/server"):
      continue
    assert not re.search(r"\btime\.time\(|datetime\.(now|today)|\butcnow", path.read_text()), path
