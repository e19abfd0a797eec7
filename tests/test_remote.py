"""Work, data and indexes in a bucket: the same results as on a disk, to the last bit."""

import io
import json
import os
import pathlib
import shutil
import signal
import sys
import threading
import zipfile

import bucket
import encoders
import jax
import numpy as np
import pytest
import tiny_run
from PIL import Image

import sane_jax
from sane_jax.datasets import images, load, outfits_drawn, photos
from sane_jax.maps.index import ExplanationIndex
from sane_jax.runs import files
from sane_jax.runs import folder as run_folder
from sane_jax.training import checkpoints as checkpoints_lib
from sane_jax.training import loop, sharding

pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")

ROOT = pathlib.Path(__file__).parents[1]
URL = f"s3://{bucket.NAME}"
JOBS = (
  "train_similarity", "build_index", "train_attributes", "fit_concepts", "tune_ranking",
)  # fmt: skip
if os.environ.get("SANE_JAX_BUCKET"):  # minutes
  JOBS += ("explain_matches", "evaluate", "discover_attributes", "simulate_study")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
  with bucket.served(tmp_path_factory.mktemp("cache")) as store:
    yield store


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, store):
  """Where nothing is: a URL that is taken for a path would leave a folder 's3:' here."""
  monkeypatch.chdir(tmp_path)
  yield
  assert not [name for name in os.listdir(tmp_path) if name.startswith("s3")]


@pytest.fixture
def failing(monkeypatch):
  """Makes S3's calls of a name fail half-way: the function is given what to let through."""
  real = s3fs.S3FileSystem._call_s3
  calls = set()

  async def call(self, method, *args, **kwargs):
    if method in calls:
      raise OSError("the connection was reset")
    return await real(self, method, *args, **kwargs)

  monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", call)
  return calls


# --- files ----------------------------------------------------------------------------------------


def test_what_is_a_path_and_what_is_not(tmp_path):
  assert isinstance(files.at(tmp_path), pathlib.Path)
  assert files.at(f"file://{tmp_path}") == tmp_path
  path = files.at(f"{URL}/a/b.txt")
  assert str(path) == f"{URL}/a/b.txt"
  assert str(path.parent / "c.txt") == f"{URL}/a/c.txt"
  assert files.at(path) == path
  with pytest.raises(ValueError, match="s3://BUCKET"):
    files.at("https://example.org/a")


@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_the_same_calls_on_a_disk_and_in_a_bucket(tmp_path, where):
  root = tmp_path / "files" if where == "disk" else files.at(f"{URL}/files")
  files.check_writable(files.make_folder(root))
  for name in ("b.jpg", "a.jpg", "in/c.jpg", ".hidden/d.jpg", "in/note.txt"):
    files.write_bytes(root / name, name.encode())
  assert files.read_bytes(root / "in/c.jpg") == b"in/c.jpg"
  names = sorted((entry.name, entry.is_dir()) for entry in files.scandir(root))
  assert names == [(".hidden", True), ("a.jpg", False), ("b.jpg", False), ("in", True)]
  found = files.find(root, lambda name: name.endswith(".jpg"))
  assert [str(path.relative_to(root)) for path in found] == ["a.jpg", "b.jpg", "in/c.jpg"]
  assert files.size_of(root) == 5 + 5 + 8 + 13 + 11
  one, none = files.read_each([root / "a.jpg", root / "no.jpg"])
  assert one == b"a.jpg"
  assert isinstance(none, FileNotFoundError)
  assert files.local_copy(root / "a.jpg").read_bytes() == b"a.jpg"
  files.write_bytes(root / "a.jpg", b"another")
  assert files.local_copy(root / "a.jpg").read_bytes() == b"another"
  files.remove(root / "a.jpg")
  files.remove(root / "a.jpg")
  assert not (root / "a.jpg").exists()
  with pytest.raises(FileNotFoundError):
    files.read_bytes(root / "a.jpg")
  lines = files.Lines(root / "log", ["one"])
  lines.append("two")
  lines.flush()
  assert files.read_bytes(root / "log") == b"one\ntwo\n"


def test_a_write_that_fails_leaves_what_was_there(failing):
  path = files.at(f"{URL}/torn.json")
  files.write_bytes(path, b"before")
  failing.add("put_object")
  with pytest.raises(OSError, match=r"torn.json could not be written: the connection.*kept.*again"):
    files.write_bytes(path, b"after")
  failing.clear()
  assert files.read_bytes(path) == b"before"


def test_what_is_missing_is_named(monkeypatch):
  with pytest.raises(OSError, match=r"nobody-s/run.*make the bucket nobody-s, or correct its name"):
    run_folder.writable_folder(files.at("s3://nobody-s/run"))
  with pytest.raises(OSError, match=r"make the bucket nobody-s"):
    photos.list_photos("s3://nobody-s/photos")
  with pytest.raises(ValueError, match=r"no such folder"):
    photos.list_photos(f"{URL}/nothing")
  with pytest.raises(images.ImageError, match=r"no such file"):
    images.read_image(f"{URL}/nothing.jpg")
  for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
    monkeypatch.delenv(name)
  monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "none")
  bucket.forget_clients()
  try:
    with pytest.raises(OSError, match=r"AWS_ACCESS_KEY_ID.*aws configure"):
      run_folder.writable_folder(files.at(f"{URL}/run"))
  finally:
    monkeypatch.undo()
    bucket.forget_clients()


def test_a_library_that_is_missing_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "gcsfs", None)
  with pytest.raises(OSError, match=r"pip install 'sane_jax\[gcs\]'"):
    run_folder.writable_folder(files.at("gs://bucket/run"))


# --- checkpoints ----------------------------------------------------------------------------------


def state_of(seed):
  rng = np.random.default_rng(seed)
  tree = {"w": rng.normal(size=(5, 3)).astype(np.float32), "n": np.int32(seed)}
  return sharding.replicate(sharding.batch_mesh(), tree)


def test_checkpoints_are_whole_and_two(store, failing, monkeypatch):
  run = files.at(f"{URL}/checkpoints_alone")
  checkpoints = checkpoints_lib.open_checkpoints(run)
  for step in (1, 2, 3):
    checkpoints.save(step, state_of(step), {"data": step})
  checkpoints.close()
  names = [entry.name for entry in files.scandir(run / "checkpoints")]
  assert sorted(names) == ["000000002.msgpack", "000000003.msgpack"]

  checkpoints = checkpoints_lib.open_checkpoints(run)
  failing.add("put_object")
  checkpoints.save(4, state_of(4), {})
  with pytest.raises(OSError, match="could not be written"):
    checkpoints.close()
  failing.clear()
  again = checkpoints_lib.open_checkpoints(run)
  step, state, meta = again.restore(state_of(0))
  assert (step, meta) == (3, {"data": 3})
  jax.tree.map(np.testing.assert_array_equal, state, state_of(3))
  with pytest.raises(ValueError, match="of another model"):
    again.restore(sharding.replicate(sharding.batch_mesh(), {"other": np.zeros(2)}))

  # A slow bucket: training goes on, and what is saved is the state of then.
  slow, real = threading.Event(), files.write_bytes
  monkeypatch.setattr(files, "write_bytes", lambda *a: (slow.wait(20), real(*a)))
  state = state_of(5)
  again.save(5, state, {})
  jax.tree.map(lambda x: x.delete(), state)
  slow.set()
  again.close()
  step, state, _ = checkpoints_lib.open_checkpoints(run).restore(state_of(0))
  assert step == 5
  jax.tree.map(np.testing.assert_array_equal, state, state_of(5))


def test_a_damaged_checkpoint_is_named():
  run = files.at(f"{URL}/damaged")
  files.write_bytes(run / "checkpoints" / "000000007.msgpack", b"\x81\xa5state")
  with pytest.raises(ValueError, match=r"step 7 .* damaged .*remove"):
    checkpoints_lib.open_checkpoints(run).restore(state_of(0))


# --- whole jobs -----------------------------------------------------------------------------------


def everything(store, folder):
  """Content by name of all files but orbax's and ours of checkpoints, which differ by design."""
  if files.is_remote(folder):
    root = str(folder).removeprefix("s3://")
    content = {name[len(root) + 1 :]: store.cat_file(name) for name in store.find(root)}
  else:
    paths = (path for path in pathlib.Path(folder).rglob("*") if path.is_file())
    content = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
  return {k: v for k, v in content.items() if "/checkpoints/" not in k}


def settled(name, data):
  """Without what tells places and times."""
  if name.endswith(("finished.json", "explanations.json", "settings.json")):
    kept = json.loads(data)
    kept = {k: v for k, v in kept.items() if "seconds" not in k and "passes_of" not in k}
    return json.dumps(kept)
  if name.endswith(".npz"):
    with np.load(io.BytesIO(data)) as arrays:
      return {k: arrays[k].tobytes() for k in arrays.files if k != "_text"}
  return data


def assert_same(ours, theirs):
  assert sorted(ours) == sorted(theirs)
  for name in ours:
    if not name.endswith(".html") and "/pairs/" not in name:  # seconds and commands stand in them
      assert settled(name, ours[name]) == settled(name, theirs[name]), name


@pytest.mark.full
def test_all_of_a_run_is_the_same_in_a_bucket(tmp_path, store, monkeypatch):
  here = tmp_path / "run"
  fields = {
    "similarity__num_steps": 10, "similarity__save_every_steps": 4, "index__num_masks": 128,
    "index__max_queries": 20, "attributes__num_epochs": 1, "concepts__num_random": 5,
    "discovery__num_clusters": (2, 4), "study__num_items": 20, "study__exchanges": 3,
    "evaluation__generators": ("random", "hadamard:num_masks=128"),
    "evaluation__modes": ("fixed",), "evaluation__saliency_pairs": 4,
    "explain_matches__num_pairs": 2,
    "evaluation__sanity_pairs": 3, "explain_matches__num_masks": 128,
  }  # fmt: skip
  tiny_run.run_jobs(tiny_run.tiny_config(here, **fields), *JOBS)
  config = tiny_run.tiny_config(f"{URL}/run", **fields)

  real = loop.MetricWriter.write_scalars

  def stop(writer, step, scalars):  # once
    real(writer, step, scalars)
    if step >= 5 and not stopped:
      stopped.append(step)
      os.kill(os.getpid(), signal.SIGTERM)

  stopped = []
  monkeypatch.setattr(loop.MetricWriter, "write_scalars", stop)
  for job in JOBS:
    if job == "train_similarity":
      with pytest.raises(InterruptedError, match="stopped after step"):
        tiny_run.run_jobs(config, job)
    tiny_run.run_jobs(config, job)
  assert stopped
  assert_same(everything(store, f"{URL}/run"), everything(store, here))
  # And it is found again.
  model = sane_jax.load_model(f"{URL}/run/similarity/model.safetensors", condition="tops,shoes")
  local = sane_jax.load_model(str(here / "similarity/model.safetensors"), condition="tops,shoes")
  assert (model.name, model.image_size) == (local.name, local.image_size)
  assert sane_jax.load_attributes(f"{URL}/run", condition="tops,shoes")


def model():
  return sane_jax.from_jax(
    encoders.nonlinear, encoders.nonlinear_params(), image_size=encoders.SIZE, name="small"
  )


def test_photos_and_their_index(tmp_path, store, rng):
  here = tmp_path / "photos"
  here.mkdir()
  for n in range(4):
    coarse = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8))
    coarse.resize((40, 32), Image.Resampling.BILINEAR).save(here / f"{n}.png")
  (here / "broken.png").write_bytes(b"no picture")
  (here / "pairs.txt").write_text("0 1\n2 3\n")
  (here / "table.csv").write_text("file,red\n0.png,1\n1.png,0\nno.png,1\n")
  store.put(str(here), f"{bucket.NAME}/photos", recursive=True)

  explainer = sane_jax.Explainer(model(), design="hadamard", num_masks=32, grid=(4, 4))
  indexes = [
    ExplanationIndex.build(f"{where}/index", explainer, photos.list_photos(f"{where}/photos"))
    for where in (URL, str(tmp_path))
  ]
  ours, theirs = indexes
  assert ours.ids == tuple(f"{URL}/photos/{pathlib.Path(p).name}" for p in theirs.ids)
  assert list(ours.left_out) == [f"{URL}/photos/broken.png"]
  np.testing.assert_array_equal(ours.maps(0, [1, 2, 3]), theirs.maps(0, [1, 2, 3]))
  one, other = (index.explain(0, 1) for index in indexes)
  np.testing.assert_array_equal(one.saliency_map, other.saliency_map)
  one.save(f"{URL}/saved")
  assert store.find(f"{bucket.NAME}/saved", detail=False)[0].endswith("explanation.json")

  pairs, problems = photos.read_pairs(f"{URL}/photos/pairs.txt")
  assert [str(pair.reference) for pair in pairs] == [f"{URL}/photos/{n}.png" for n in (1, 3)]
  assert not problems
  from sane_jax.attributes import table as attribute_table

  table = attribute_table.read_table(f"{URL}/photos/table.csv")
  assert [path.name for path in table.paths] == ["0.png", "1.png"]
  assert "no.png" in table.problems[0]


@pytest.mark.parametrize("job", ["explain", "build_index", "compare_generators"])
def test_jobs_on_photos(tmp_path, store, rng, monkeypatch, job):
  import importlib
  import runpy

  here = tmp_path / "photos"
  here.mkdir()
  for n in range(3):
    coarse = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8))
    coarse.resize((40, 32), Image.Resampling.BILINEAR).save(here / f"{n}.png")
  (here / "pairs.txt").write_text("0 1\n1 2\n")
  store.put(str(here), f"{bucket.NAME}/{job}/photos", recursive=True)
  (tmp_path / "small.py").write_text(
    f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\nimport encoders, sane_jax\n"
    "def make(image_size):\n  return sane_jax.from_jax(encoders.nonlinear,"
    " encoders.nonlinear_params(), image_size=image_size, name='small')\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  name = "generators" if job == "compare_generators" else "photos"
  made = {}
  for where in (str(tmp_path), f"{URL}/{job}"):
    config = runpy.run_path(str(ROOT / f"configs/{name}.py"))["get_config"]()
    config.update({"workdir": f"{where}/runs", "model": "small:make", "image_size": encoders.SIZE})
    if name == "photos":
      config.update({"photos": f"{where}/photos", "neighbors": 1, "num_masks": 32, "grid": (4, 4)})
    else:
      config.update({"pairs_file": f"{where}/photos/pairs.txt", "modes": ("fixed",)})
      config.update({"generators": ("random", "hadamard:num_masks=128")})
    importlib.import_module(f"sane_jax.jobs.{job}").run(config)
    made[where] = everything(store, f"{where}/runs")
  ours, theirs = (set(content) for content in made.values())
  assert {n.rpartition("/")[2] for n in ours if "/pairs/" not in n} == {
    n.rpartition("/")[2] for n in theirs if "/pairs/" not in n
  }
  for name in ours & theirs:
    if name.endswith((".png", "table.md")) or "/c/" in name:
      assert made[str(tmp_path)][name] == made[f"{URL}/{job}"][name], name


# --- data sets ------------------------------------------------------------------------------------


def collections_equal(ours, theirs):
  assert ours.ids == theirs.ids
  assert list(ours.images) == list(theirs.images)
  assert ours.titles == theirs.titles
  for one, other in zip(ours.groups, theirs.groups, strict=True):
    np.testing.assert_array_equal(one, other)


def data_in(folder, prepared=""):
  return {"name": "polyvore_outfits", "folder": str(folder), "prepared": prepared}


def test_a_data_set_is_drawn_and_prepared_in_a_bucket(tmp_path, store, monkeypatch, failing):
  settings = {"num_outfits": (4, 4, 4), "processes": 1}
  assert outfits_drawn.draw_outfits(tmp_path / "drawn", **settings)
  assert outfits_drawn.draw_outfits(f"{URL}/drawn", **settings)
  assert not outfits_drawn.draw_outfits(f"{URL}/drawn", **settings)
  here, there = everything(store, tmp_path / "drawn"), everything(store, f"{URL}/drawn")
  assert sorted(here) == sorted(there)
  assert all(here[name] == there[name] for name in here if name.endswith((".jpg", ".json")))
  item = next(name for name in here if name.endswith(".npz"))
  item = pathlib.Path(item).stem
  assert outfits_drawn.read_truth(f"{URL}/drawn/truth", item).keys()

  theirs = load.load_split(data_in(tmp_path / "drawn"), tmp_path / "run", "train")
  collections_equal(load.load_split(data_in(f"{URL}/drawn"), f"{URL}/data", "train"), theirs)

  # Another machine finds it prepared, and reads no image of the source.
  shutil.rmtree(files.cache_folder())
  from sane_jax.datasets import sources

  monkeypatch.setattr(sources, "stream", None)
  collections_equal(load.load_split(data_in(f"{URL}/drawn"), f"{URL}/data", "train"), theirs)
  # One on which it lies differently from what was written says so.
  shutil.rmtree(files.cache_folder())
  kept = next(n for n in store.find(f"{bucket.NAME}/data") if "/content/" in n)
  data = store.cat_file(kept)
  store.pipe_file(kept, data[:-1] + bytes([data[-1] ^ 1]))
  with pytest.raises(ValueError, match="is not what was written there; remove"):
    load.load_split(data_in(f"{URL}/drawn"), f"{URL}/data", "train")
  kept = next(n for n in store.find(f"{bucket.NAME}/data") if n.endswith("/files.json"))
  store.pipe_file(kept, store.cat_file(kept).replace(b'{"', b'{"../', 1))
  with pytest.raises(ValueError, match=r"leads out of the folder.*remove"):
    load.load_split(data_in(f"{URL}/drawn"), f"{URL}/data", "train")


def test_an_archive_in_a_bucket_is_copied_once(tmp_path, store):
  outfits_drawn.draw_outfits(tmp_path / "drawn", num_outfits=(4, 4, 4), processes=1)
  packed = tmp_path / "polyvore_outfits.zip"
  with zipfile.ZipFile(packed, "w") as archive:
    for path in sorted((tmp_path / "drawn" / "polyvore_outfits").rglob("*")):
      archive.write(path, path.relative_to(tmp_path / "drawn"))
  store.put_file(
    str(tmp_path / "polyvore_outfits.zip"), f"{bucket.NAME}/zipped/polyvore_outfits.zip"
  )
  theirs = load.load_split(data_in(tmp_path / "drawn"), tmp_path / "run", "test")
  ours = load.load_split(data_in(f"{URL}/zipped"), f"{URL}/zipped_run", "test")
  collections_equal(ours, theirs)
  assert len(list(files.cache_folder().glob("*/polyvore_outfits.zip"))) == 1
