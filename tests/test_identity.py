"""Results are of the weights and of the photos that are there now, whatever they are called."""

import dataclasses
import json
import os
import pathlib
import runpy
import shutil
import subprocess
import sys
import threading
import types

import jax
import numpy as np
import pytest
from PIL import Image

import sane_jax
from sane_jax.attributes import pairs as pairs_lib
from sane_jax.attributes import trained
from sane_jax.jobs import compare_generators, compare_models, explain
from sane_jax.maps import index_arrays, measure, reasons
from sane_jax.models import fingerprint
from sane_jax.runs import files
from sane_jax.runs import folder as run_folder
from tests import encoders

SIZE = 32
ROOT = pathlib.Path(__file__).parents[1]


def write_photo(path, seed):
  rng = np.random.default_rng(seed)
  path.parent.mkdir(parents=True, exist_ok=True)
  coarse = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8))
  coarse.resize((SIZE, SIZE), Image.Resampling.BILINEAR).save(path)
  return path


class Trainable:
  """An encoder of NumPy whose weights may be trained in place."""

  def __init__(self, seed=0):
    self.weights = np.random.default_rng(seed).normal(size=(8 * 8 * 3, 8)).astype(np.float32)

  def __call__(self, images):
    pooled = images.reshape(len(images), 8, 4, 8, 4, 3).mean((2, 4)) - 0.5
    return np.tanh(pooled.reshape(len(images), -1) @ self.weights)


def numpy_model(seed=0):
  return sane_jax.from_numpy(Trainable(seed), image_size=SIZE, name="mine")


def jax_model(seed=0):
  return sane_jax.from_jax(
    encoders.nonlinear, encoders.nonlinear_params(seed), image_size=encoders.SIZE, name="mine"
  )


def explainer_of(model, **options):
  return sane_jax.Explainer(model, num_masks=64, grid=(4, 4), **options)


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [numpy_model, jax_model])
def test_a_fingerprint_is_of_what_a_model_does(make, tmp_path):
  one, again, other = (fingerprint.fingerprint(make(seed)) for seed in (0, 0, 1))
  assert fingerprint.same(one, again)
  assert not fingerprint.same(one, other)
  assert fingerprint.same(fingerprint.from_json(json.loads(json.dumps(one.to_json()))), one)
  first, second = (fingerprint.recognise(tmp_path, found) for found in (one, other))
  assert first != second
  # Rounding on other devices moves every number a little: no number of it makes another model.
  for seed in range(20):
    noise = np.random.default_rng(seed).normal(size=one.given.shape).astype(np.float32)
    moved = one._replace(given=one.given + 2e-6 * noise)
    assert fingerprint.recognise(tmp_path, moved) == first
  assert len(list((tmp_path / "models").iterdir())) == 2


def test_parameters_tell_models_apart_that_the_test_pictures_do_not():
  params = encoders.nonlinear_params()
  near = jax.tree.map(np.array, params)
  near["b"][0] += 1e-5
  one, other = (
    fingerprint.fingerprint(dataclasses.replace(jax_model(), params=p)) for p in (params, near)
  )
  assert fingerprint.distance(one.given, other.given) < fingerprint.TOLERANCE
  assert not fingerprint.same(one, other)


def test_a_model_of_scores_has_a_fingerprint():
  def make(seed):
    embed = Trainable(seed)
    return sane_jax.from_score(lambda q, r: embed(q) @ embed(r[None])[0], image_size=SIZE)

  one, again, other = (fingerprint.fingerprint(make(seed)) for seed in (0, 0, 1))
  assert fingerprint.same(one, again)
  assert not fingerprint.same(one, other)


@pytest.mark.parametrize("make", [numpy_model, jax_model])
def test_effects_of_another_model_of_that_name_are_refused(make):
  a, b = np.random.default_rng(0).random((2, SIZE, SIZE, 3), np.float32)
  old, same, new = (explainer_of(make(seed)) for seed in (0, 0, 1))
  kept, other = old.effects(a), new.effects(b)
  assert same.explain(kept, b).score == pytest.approx(old.explain(kept, b).score, abs=1e-6)
  for use in (
    lambda: new.explain(kept, b),
    lambda: new.explain(b, kept),
    lambda: new.explain_many(kept, [b, a]),
    lambda: new.contrast(other, kept, b),
  ):
    with pytest.raises(ValueError, match=r"mine.*mine.*other weights now"):
      use()


def test_effects_of_a_model_that_was_trained_since_are_refused():
  a, b = np.random.default_rng(0).random((2, SIZE, SIZE, 3), np.float32)
  encoder = Trainable()
  x = explainer_of(sane_jax.from_numpy(encoder, image_size=SIZE, name="mine"))
  kept, lazy = x.effects(a), x.explain(a, b)
  assert x.explain(kept, b).score == pytest.approx(lazy.score, abs=1e-6)
  encoder.weights[:] += 0.05
  with pytest.raises(ValueError, match="other weights now"):
    x.explain(kept, b)
  with pytest.raises(ValueError, match="other weights now"):
    _ = lazy.reference_saliency_map


def test_effects_of_a_model_that_is_random_itself_are_taken():
  rng = np.random.default_rng(0)
  encoder = Trainable()
  model = sane_jax.from_numpy(
    lambda x: encoder(x) * rng.choice([0, 2], (len(x), 8)), image_size=SIZE, name="dropout"
  )
  x = explainer_of(model)
  a, b = np.random.default_rng(0).random((2, SIZE, SIZE, 3), np.float32)
  x.explain(x.effects(a), b)


# --- results on disk ------------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path, monkeypatch):
  """A folder with photos and a model of one name, whose weights `retrain` replaces."""
  for n in range(4):
    write_photo(tmp_path / f"{n}.png", n)
  monkeypatch.chdir(tmp_path)
  module = types.ModuleType("identity_models")
  module.make = lambda size: numpy_model(module.seed)
  module.other = lambda size: numpy_model(100)
  module.seed = 0
  monkeypatch.setitem(sys.modules, "identity_models", module)
  return tmp_path, module


def config_of(**fields):
  config = runpy.run_path(str(ROOT / "configs/photos.py"))["get_config"]()
  config.update({
    "model": "identity_models:make", "image_size": SIZE, "num_masks": 64, "grid": (4, 4),
    "metrics": False, "workdir": "out", **fields,
  })  # fmt: skip
  return config


def scores_of(path, section):
  return json.loads(path.read_text())[section]


def test_explain_measures_again_what_other_weights_gave(work, capsys):
  folder, module = work
  config = config_of(query="0.png", reference="1.png")
  path = folder / "out/explain/explanations.json"

  def ask():
    explain.run(config)
    out = capsys.readouterr()
    return scores_of(path, "explanations")[0]["score"], out

  first, _ = ask()
  module.seed = 1
  second, said = ask()
  assert second == pytest.approx(explainer_of(numpy_model(1)).explain("0.png", "1.png").score)
  assert "measured again: the model mine has other weights" in said.err
  module.seed = 0
  third, said = ask()
  assert third == first != second
  assert "explained with 0 encoder passes" in said.out


def test_explain_measures_again_what_maps_of_another_version_gave(work, capsys, monkeypatch):
  config = config_of(query="0.png", reference="1.png")
  said = []
  for version in (1, 1, 2):
    monkeypatch.setattr(measure, "VERSION", version)
    explain.run(config)
    said.append(capsys.readouterr().out)
  assert ["with 0 encoder passes" in text for text in said] == [False, True, False]


def test_explain_measures_again_what_other_photos_gave(work, capsys):
  folder, _ = work
  config = config_of(photos=".", neighbors=1)
  explain.run(config)
  path = folder / "out/explain/explanations.json"
  before = {r["query"]: r for r in scores_of(path, "explanations")}
  write_photo(folder / "2.png", 77)
  capsys.readouterr()
  explain.run(config)
  after = {r["query"]: r for r in scores_of(path, "explanations")}
  assert "photos that changed since the last run here (1): 2.png" in capsys.readouterr().err
  assert after["2.png"]["photos"][0] != before["2.png"]["photos"][0]
  fresh = explainer_of(numpy_model()).explain("2.png", after["2.png"]["sources"][1]).score
  assert after["2.png"]["score"] == pytest.approx(fresh, abs=1e-6)


def test_three_questions_of_two_models_have_three_answers(work):
  folder, module = work
  config = config_of(query="0.png", reference="1.png", other_model="identity_models:other")
  answers = []
  for seed in (0, 1, 100):
    module.seed = seed
    compare_models.run(config)
    found = json.loads((folder / "out/compare_models/comparisons.json").read_text())
    answers.append((tuple(found["comparisons"][0]["scores"]), tuple(found["models"])))
  assert len({scores for scores, _ in answers}) == 3
  one, other = answers[0][1]
  assert one != other
  # Two modules' functions of one name are told apart by where they are.
  assert (one, other) == ("identity_models:make", "identity_models:other")


def test_two_models_of_one_name_are_told_apart_by_what_they_do(work):
  found = sane_jax.compare(numpy_model(0), numpy_model(1), "0.png", "1.png", num_masks=128)
  assert found.names[0].startswith("mine (A, ")
  assert found.names[1].startswith("mine (B, ")
  assert found.names[0][9:] != found.names[1][9:]


def test_generators_are_measured_again_with_other_weights(work):
  folder, module = work
  (folder / "pairs.txt").write_text("0.png 1.png\n2.png 3.png\n")
  config = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "configs/generators.py"))[
    "get_config"
  ]()
  config.update({
    "model": "identity_models:make", "image_size": SIZE, "pairs_file": "pairs.txt",
    "pairs_folder": "", "generators": ("hadamard:num_masks=128",), "modes": ("fixed",),
    "backgrounds": ("grey",), "workdir": "out", "baseline": "",
  })  # fmt: skip
  results = []
  for seed in (0, 1, 0):
    module.seed = seed
    compare_generators.run(config)
    rows = json.loads((folder / "out/generators/results.json").read_text())["rows"]
    results.append(rows[0]["insertion"])
  assert results[0] == results[2] != results[1]


def test_photos_of_one_name_are_told_apart(work):
  folder, _ = work
  for n, place in enumerate(("red", "blue")):
    write_photo(folder / place / "1.png", 10 + n)
  (folder / "pairs.txt").write_text("red/1.png blue/1.png\nblue/1.png red/1.png\n0.png 1.png\n")
  explain.run(config_of(pairs_file="pairs.txt"))
  found = scores_of(folder / "out/explain/explanations.json", "explanations")
  assert [(r["query"], r["reference"]) for r in found] == [
    ("red/1.png", "blue/1.png"), ("blue/1.png", "red/1.png"), ("0.png", "1.png"),
  ]  # fmt: skip
  assert found[0]["sources"] == ["red/1.png", "blue/1.png"]
  e = explainer_of(numpy_model()).explain("red/1.png", "blue/1.png")
  assert (e.query.name, e.reference.name) == ("red/1.png", "blue/1.png")


def test_attributes_of_another_model_are_refused():
  def rank(image, saliency, embeddings):
    raise AssertionError("not reached")

  of = reasons.RankerOf(rank, fingerprint.fingerprint(numpy_model(0)), (SIZE, SIZE))
  explainer_of(numpy_model(0), attributes=of)
  with pytest.raises(ValueError, match=r"attributes are of the model mine.*build_index"):
    explainer_of(numpy_model(1), attributes=of)


# --- runs of a data set ---------------------------------------------------------------------------


def test_what_rests_on_other_weights_is_named(tmp_path):
  index = {"model": "", "image_size": None}
  (tmp_path / "similarity").mkdir()
  (tmp_path / "index").mkdir()
  model = tmp_path / "similarity/model.safetensors"
  model.write_bytes(b"first")
  name = pairs_lib.check_model(tmp_path, index, ["train"])
  settings = {"index.model": name, "index.image_size": None}
  (tmp_path / "index/settings.json").write_text(json.dumps(settings))
  assert pairs_lib.check_model(tmp_path, index, ["train", "test"]) == name
  model.write_bytes(b"retrained")
  with pytest.raises(ValueError, match=r"--config.job=build_index"):
    pairs_lib.check_model(tmp_path, index, ["train"])


def test_a_chain_of_jobs_is_of_one_index(tmp_path):
  for folder, settings in (
    ("index", {"a": 1}), ("concepts", {}), ("attributes", {}), ("ranking", {}),
  ):  # fmt: skip
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "settings.json").write_text(json.dumps(settings))
    (tmp_path / folder / "finished.json").write_text("{}")

  def link():
    index = run_folder.hash_file(tmp_path / "index/settings.json")
    (tmp_path / "concepts/settings.json").write_text(json.dumps({"index": index}))
    concepts, attributes = (
      run_folder.hash_finished(tmp_path / name, "") for name in ("concepts", "attributes")
    )
    chain = {"concepts": concepts, "attributes": attributes}
    (tmp_path / "ranking/settings.json").write_text(json.dumps(chain))

  link()
  trained.check_chain(tmp_path, "concepts", "ranking", "attributes")
  (tmp_path / "index/settings.json").write_text('{"a": 2}')
  with pytest.raises(ValueError, match=r"another index.*--config.job=fit_concepts"):
    trained.check_chain(tmp_path, "concepts")
  link()
  (tmp_path / "attributes/finished.json").write_text('{"best": 2}')
  with pytest.raises(ValueError, match=r"another attributes folder.*--config.job=tune_ranking"):
    trained.check_chain(tmp_path, "concepts", "ranking", "attributes")


# --- indexes of photos ----------------------------------------------------------------------------


def build(folder, photos, told=None, seed=0, **options):
  """An index, and what it said of changes."""
  told = [] if told is None else told
  explainer = explainer_of(numpy_model(seed))
  index = sane_jax.ExplanationIndex.build(
    folder, explainer, photos, on_change=told.append, **options
  )
  return index, explainer, " ".join(told)


def is_fresh(index, photos):
  """Whether the index's maps are those of the photos that are there now."""
  direct = explainer_of(numpy_model())
  for path in photos:
    others = [p for p in photos if p != path][:2]
    for found, other in zip(index.maps(path, others), others, strict=True):
      e = direct.explain(path, other)
      np.testing.assert_allclose(found.ravel(), e.saliency.cells, atol=2e-3)


@pytest.fixture
def photos(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return [write_photo(tmp_path / f"photos/{n}.png", n) for n in range(6)]


PASSES = 64 + 1  # of an image
STEADY = 2  # that tell once whether a model is steady


def test_a_photo_that_was_replaced_is_measured_again(tmp_path, photos):
  build("index", photos)
  stale = sane_jax.ExplanationIndex("index")
  assert not stale.has_changed(photos[2])
  before = photos[2].stat()
  write_photo(photos[2], 50)
  os.utime(photos[2], ns=(before.st_atime_ns, before.st_mtime_ns))
  assert stale.has_changed(photos[2])
  with pytest.raises(sane_jax.ImageError, match=r"another photo.*measured anew"):
    stale.photo(photos[2])  # never a new picture under an old map
  index, explainer, told = build("index", photos)
  assert "(1)" in told
  assert "changed" in told
  assert "2.png" in told
  assert explainer.encoder_passes == PASSES + STEADY
  is_fresh(index, photos)
  assert build("index", photos)[1].encoder_passes == 0
  # What is replaced by no photo at all is no longer a match, and neither is its old map.
  photos[3].write_bytes(photos[3].read_bytes()[:200])
  index, _, told = build("index", photos)
  assert "changed" in told
  assert str(photos[3]) in index.left_out
  assert str(photos[3]) not in index.nearest(photos[0], 10)
  with pytest.raises(KeyError, match="left out"):
    index.maps(photos[3], [photos[0]])


def test_a_photo_that_was_repaired_is_taken_in(photos):
  whole = photos[1].read_bytes()
  photos[1].write_bytes(whole[:300])
  index, _, _ = build("index", photos)
  assert list(index.left_out) == [str(photos[1])]
  photos[1].write_bytes(whole)
  index, explainer, _ = build("index", photos)
  assert not index.left_out
  assert explainer.encoder_passes == PASSES + STEADY
  is_fresh(index, photos)
  assert not sane_jax.ExplanationIndex("index").left_out


def test_a_photo_that_is_gone_is_no_match_and_comes_back(tmp_path, photos):
  build("index", photos)
  whole = photos[4].read_bytes()
  photos[4].unlink()
  rest = [p for p in photos if p != photos[4]]
  index, explainer, told = build("index", rest)
  assert "gone" in told
  assert "4.png" in told
  assert str(photos[4]) in index.left_out
  assert str(photos[4]) not in index.nearest(photos[0], 10)
  assert len(index.nearest(photos[0], 10)) == 4
  photos[4].write_bytes(whole)
  index, explainer, _ = build("index", photos)
  assert explainer.encoder_passes == 0  # nothing of it was thrown away
  is_fresh(index, photos)


def test_a_photo_is_one_however_its_path_is_spelled(tmp_path, photos):
  index, _, _ = build("index", photos)
  (tmp_path / "link").symlink_to(tmp_path / "photos")
  spellings = [
    [f"photos/{p.name}" for p in photos], [f"./photos/../photos/{p.name}" for p in photos],
    [tmp_path / "link" / p.name for p in photos],
  ]  # fmt: skip
  for paths in spellings:
    again, explainer, told = build("index", paths)
    assert again.ids == index.ids
    assert not explainer.encoder_passes
    assert not told
    np.testing.assert_array_equal(again.maps(paths[0], paths[1:]), index.maps(0, range(1, 6)))
  # Two spellings in one call are one photo, too.
  again, _, _ = build("both", [*photos, *spellings[0], photos[0].with_name("link.png")][:-1])
  assert len(again) == len(photos)


def test_one_relative_path_from_two_places_is_two_photos(tmp_path, photos, monkeypatch):
  build(tmp_path / "index", [f"photos/{p.name}" for p in photos])
  other = [write_photo(tmp_path / f"elsewhere/photos/{n}.png", 200 + n) for n in range(3)]
  monkeypatch.chdir(tmp_path / "elsewhere")
  index, _, told = build(tmp_path / "index", [f"photos/{p.name}" for p in other])
  assert len(index) == 9
  assert not told
  assert list(index.ids[6:]) == [str(p) for p in other]
  is_fresh(index, [*photos, *other])
  assert build(tmp_path / "index", [f"photos/{p.name}" for p in other])[1].encoder_passes == 0
  # A project that moved as a whole has its relative paths where it is now.
  (tmp_path / "photos").rename(tmp_path / "elsewhere/more")
  index, explainer, told = build(tmp_path / "index", [f"more/{p.name}" for p in photos])
  assert "moved" in told
  assert not explainer.encoder_passes


def test_a_link_to_another_photo_is_another_photo(tmp_path, photos):
  link = tmp_path / "photos/link.png"
  link.symlink_to(photos[0])
  build("index", [link, photos[2]])
  link.unlink()
  link.symlink_to(photos[1])
  index, _, told = build("index", [link, photos[2]])
  assert "changed" in told
  assert len(index) == 2
  is_fresh(index, [link, photos[2]])


def test_a_folder_that_moved_keeps_its_rows(tmp_path, photos):
  index, _, _ = build("index", photos)
  before = index.maps(0, range(1, 6))
  (tmp_path / "photos").rename(tmp_path / "moved")
  moved = [tmp_path / "moved" / p.name for p in photos]
  index, explainer, told = build("index", moved)
  assert "moved" in told
  assert not explainer.encoder_passes
  assert list(index.ids) == [str(p) for p in moved]
  assert not index.left_out
  np.testing.assert_array_equal(index.maps(moved[0], moved[1:]), before)
  is_fresh(index, moved)


def test_arrays_that_changed_are_measured_again(tmp_path):
  pixels = np.random.default_rng(0).random((3, SIZE, SIZE, 3), np.float32)
  images = dict(zip("abc", pixels, strict=True))
  build(tmp_path, images)
  images["b"] = np.random.default_rng(1).random((SIZE, SIZE, 3), np.float32)
  index, explainer, told = build(tmp_path, images)
  assert explainer.encoder_passes == PASSES + STEADY
  assert "changed" in told
  assert index.scores("a", ["b"])[0] == pytest.approx(
    explainer_of(numpy_model()).explain(images["a"], images["b"]).score, abs=1e-6
  )


def test_an_index_of_other_weights_is_refused(photos):
  build("index", photos)
  with pytest.raises(ValueError, match="other weights"):
    build("index", photos, seed=1)
  with pytest.raises(ValueError, match="other weights"):
    sane_jax.ExplanationIndex("index", explainer_of(numpy_model(1)))


def test_an_index_that_is_open_mixes_no_old_embedding_with_new_effects(photos):
  index, _, _ = build("index", photos)
  index.maps(photos[0], photos[1:])
  write_photo(photos[0], 80)
  build("index", photos)
  with pytest.raises(KeyError, match="open the index again"):
    index.maps(photos[0], photos[1:])


def test_a_run_in_a_work_folder_of_another_is_refused(work):
  folder, _ = work
  command = [
    sys.executable, "-m", "sane_jax.main", f"--config={ROOT / 'configs/photos.py'}",
    "--config.query=0.png", "--config.reference=1.png", "--config.workdir=out",
  ]  # fmt: skip
  with files.one_writer(folder / "out"):
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
  assert ended.returncode == 1
  assert f"out is being written by process {os.getpid()} on" in ended.stderr
  assert not (folder / "out/explain").exists()


def test_what_is_changed_while_it_is_measured_is_measured_the_next_time(photos, monkeypatch):
  """A photo that is replaced between its hash and its pixels."""
  explainer, fit = explainer_of(numpy_model()), sane_jax.Explainer.photo

  def slow(self, source, name=None):
    photo = fit(self, source, name)
    if str(source) == str(photos[5]):
      write_photo(photos[5], 60)
    return photo

  with monkeypatch.context() as patch:
    patch.setattr(sane_jax.Explainer, "photo", slow)
    photos[5].write_bytes(photos[5].read_bytes())
    index = sane_jax.ExplanationIndex.build("index", explainer, photos)
  assert "changes while it is read" in index.left_out[str(photos[5])]
  index, _, _ = build("index", photos)
  is_fresh(index, photos)


def make_old(folder):
  """An index as it was written before there were digests and checksums."""
  manifest = json.loads((folder / "index.json").read_text())
  for name in ("digests", "places", "homes", "gone", "model", "sha256"):
    del manifest[name]
  array = json.loads((folder / "embeddings/zarr.json").read_text())
  shutil.rmtree(folder / "photos")
  shutil.rmtree(folder / "finished_photos")
  (folder / "index.json").write_text(json.dumps(manifest))
  assert "crc32c" in str(array["codecs"][0]["configuration"]["codecs"])


def test_an_index_from_before_there_were_digests_is_checked_by_its_embeddings(tmp_path, photos):
  build("index", photos)
  make_old(tmp_path / "index")
  old = sane_jax.ExplanationIndex("index", explainer_of(numpy_model()))
  is_fresh(old, photos)
  assert not old.has_changed(photos[0])
  write_photo(photos[0], 70)
  index, explainer, told = build("index", photos)
  assert explainer.encoder_passes == PASSES + STEADY + len(photos)  # a pass each to compare
  assert "(1)" in told
  assert "0.png" in told
  is_fresh(index, photos)
  assert build("index", photos)[1].encoder_passes == 0


def test_two_builders_at_once_do_not_mix_their_rows(tmp_path, photos):
  more = [write_photo(tmp_path / f"more/{n}.png", 100 + n) for n in range(6)]
  reached, go_on = threading.Event(), threading.Event()
  first = explainer_of(numpy_model())

  def wait(done, total):
    reached.set()
    assert go_on.wait(60)

  one = threading.Thread(
    target=lambda: sane_jax.ExplanationIndex.build("index", first, photos, on_progress=wait)
  )
  one.start()
  assert reached.wait(60)
  try:
    with pytest.raises(OSError, match=r"being written.*another folder"):
      build("index", more)
    code = (
      "import sys; from sane_jax.runs import files\n"
      "with files.one_writer(sys.argv[1]): print('mine')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "index")]
    other = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"process {os.getpid()} on" in other.stderr
  finally:
    go_on.set()
    one.join()
  # Whoever ended, or was killed, is in nobody's way.
  (tmp_path / "index/.writer").write_text('{"pid": 1, "host": "gone", "since": "long ago"}')
  index, _, _ = build("index", more)
  is_fresh(index, [*photos, *more])
  assert not (tmp_path / "index/.writer").exists()


def answers_of(folder):
  index = sane_jax.ExplanationIndex(folder)
  names = list(index.ids)
  each = [index.maps(name, names) for name in names]
  errors = [index.standard_errors(name, names) for name in names]
  return np.concatenate([*map(np.ravel, each), *map(np.ravel, errors), *index.embeddings(names)])


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_bits_that_flip_are_never_silent(tmp_path, photos, dtype):
  build("index", photos[:4], dtype=dtype)
  right, rng, silent = answers_of("index"), np.random.default_rng(0), []
  paths = sorted(p for p in (tmp_path / "index").rglob("*") if p.is_file())
  for path in paths:
    whole = path.read_bytes()
    for _ in range(3 if path.name == "zarr.json" else 8):
      damaged = bytearray(whole)
      damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
      path.write_bytes(damaged)
      try:
        if not np.array_equal(answers_of("index"), right):
          silent.append(path)
      except (ValueError, KeyError):
        pass
    path.write_bytes(whole)
  assert not silent


def test_a_manifest_that_was_changed_is_refused(tmp_path, photos):
  build("index", photos)
  path = tmp_path / "index/index.json"
  manifest = json.loads(path.read_text())
  ids = manifest["ids"]
  for change in (
    {"ids": [ids[1], ids[0], *ids[2:]]}, {"grid": [2, 8]}, {"sources": ids[::-1]}, {"sha256": ""},
  ):  # fmt: skip
    path.write_text(json.dumps(manifest | change))
    with pytest.raises(ValueError, match="build the index anew"):
      sane_jax.ExplanationIndex("index")
  del manifest["sha256"]
  path.write_text(json.dumps(manifest))
  with pytest.raises(ValueError, match="checksum"):
    sane_jax.ExplanationIndex("index")


def test_embeddings_of_another_length_are_damaged(tmp_path):
  index = index_arrays.open_index(
    tmp_path, queries=np.arange(2), types=np.zeros(2, int), num_types=1, grid=(2, 2),
    embedding_size=4,
  )  # fmt: skip
  for vectors in ([[3, 0, 0, 0], [1, 0, 0, 0]], [[1, 0, 0, 0], [1e38, 0, 0, 0]]):
    index_arrays.write_shard(index, "embeddings", 0, np.array(vectors, np.float32)[:, None])
    with pytest.raises(ValueError, match="another length than 1"):
      index_arrays.read(index, "embeddings")
