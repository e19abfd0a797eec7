"""The index gives what the explainer gives, without its encoder, and says what it can't give."""

import json
import os
import pathlib
import resource
import runpy
import shutil
import socket
import subprocess
import sys

import encoders
import numpy as np
import pytest
from PIL import Image

import sane_jax
from sane_jax.maps import index_arrays
from sane_jax.maps.index import ExplanationIndex
from sane_jax.ops import effects as effects_lib

ROOT = pathlib.Path(__file__).parents[1]
DESIGNS = {
  "hadamard": sane_jax.Hadamard(num_masks=128, grid=(4, 4)),
  "rise": sane_jax.Rise(num_masks=60, grid=(7, 7)),
  "kernel_shap": sane_jax.KernelShap(num_masks=201, grid=(4, 4)),
  "sliding_window": sane_jax.SlidingWindow(grid=(5, 5)),
}


def model(seed=0):
  return sane_jax.from_jax(
    encoders.nonlinear, encoders.nonlinear_params(seed), image_size=encoders.SIZE, name="small"
  )


def explainer_of(design="hadamard", seed=0, **options):
  return sane_jax.Explainer(model(seed), design=DESIGNS[design], fill="grey", **options)


@pytest.fixture
def images(photos):
  return {f"photo {n}": photo for n, photo in enumerate(photos)}


@pytest.fixture
def folder(tmp_path, rng):
  """70 photos: two shards."""
  for n in range(70):
    coarse = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8))
    coarse.resize((40, 32), Image.Resampling.BILINEAR).save(tmp_path / f"{n:02d}.png")
  return tmp_path


def paths(folder):
  return sorted(folder.glob("*.png"))


@pytest.mark.parametrize("design", DESIGNS)
def test_maps_are_those_of_the_explainer(tmp_path, images, design):
  explainer = explainer_of(design)
  index = ExplanationIndex.build(tmp_path / "index", explainer, images)
  names = list(images)
  maps = index.maps(names[0], names[1:])
  scores = index.scores(names[0], names[1:])
  before = explainer.encoder_passes
  assert maps.shape == (4, *index.grid)
  for name, found, score in zip(names[1:], maps, scores, strict=True):
    e = explainer.explain(images[names[0]], images[name])
    np.testing.assert_allclose(found.ravel(), e.saliency.cells, atol=rounding(index, names[0]))
    assert score == pytest.approx(e.score, abs=1e-6)
  assert explainer.encoder_passes > before
  contrast = explainer.contrast(*(images[n] for n in names[:3])).saliency.cells
  found = index.contrast(*names[:3]).ravel()
  np.testing.assert_allclose(found, contrast, atol=2 * rounding(index, names[0]))


def rounding(index, name):
  """What float16's 11 bits may move a map by: E · e, |e| = 1."""
  return 2**-11 * np.linalg.norm(index.effect_matrix(name), axis=1).max()


def test_both_images_and_correspondence(tmp_path, images):
  explainer = explainer_of(mode="both")
  index = ExplanationIndex.build(tmp_path, explainer, images)
  e = explainer.explain(images["photo 0"], images["photo 1"])
  (found,) = index.maps("photo 0", ["photo 1"], mode="both")
  np.testing.assert_allclose(found.ravel(), e.saliency.cells, atol=rounding(index, "photo 0"))
  fixed = explainer_of().explain(images["photo 0"], images["photo 1"])
  (found,) = index.maps("photo 0", ["photo 1"])
  np.testing.assert_allclose(found.ravel(), fixed.saliency.cells, atol=1e-3)
  table = index.correspondence("photo 0", "photo 1")
  np.testing.assert_allclose(table, fixed.correspondence, atol=5e-3)
  only = ExplanationIndex.build(tmp_path / "fixed", explainer_of(), images)
  with pytest.raises(ValueError, match="built with mode 'fixed'"):
    only.maps("photo 0", ["photo 1"], mode="both")
  with pytest.raises(ValueError, match="given 'neither'"):
    only.maps("photo 0", ["photo 1"], mode="neither")


@pytest.mark.parametrize("design", ["hadamard", "rise"])
def test_the_standard_error_is_the_jackknife_s_pooled_over_cells(tmp_path, images, design):
  explainer = explainer_of(design)
  index = ExplanationIndex.build(tmp_path / "all", explainer, images, spread=64)
  few = ExplanationIndex.build(tmp_path / "few", explainer, images)
  measured = explainer.effects(images["photo 0"])
  left_out = np.asarray(
    effects_lib.leave_one_out(measured.design, measured.cells, measured.moments)
  )
  for name in ("photo 1", "photo 2"):
    maps = left_out @ explainer.embed([images[name]])[0]  # [b c]
    count = len(maps)
    variance = (count - 1) / count * ((maps - maps.mean(axis=0)) ** 2).sum(axis=0)
    (error,) = index.standard_errors("photo 0", [name])
    assert error == pytest.approx(np.sqrt(variance.mean()), rel=2e-3)
    assert few.standard_errors("photo 0", [name])[0] == pytest.approx(error, rel=0.1)


def test_what_the_columns_leave_out_is_kept_as_a_number(rng):
  """Draws that are alike in all directions are mostly in `rest`; nothing is enlarged."""
  d, cells, count = 400, 30, 8
  left_out = rng.normal(size=(count, cells, d))
  left_out[..., 0] *= 20  # and one direction that stands out
  factor = effects_lib.error_factor(left_out, 1, 4)
  errors = left_out - left_out.mean(axis=0)
  for e in (np.eye(d)[0], rng.normal(size=d), rng.normal(size=d)):
    e /= np.linalg.norm(e)
    want = np.sqrt((count - 1) / count * ((errors @ e) ** 2).sum(axis=0).mean())
    assert factor(e) == pytest.approx(want, rel=0.1)
  every = effects_lib.error_factor(left_out, 1, d)
  assert every.rest == 0
  assert every(e) == pytest.approx(want, rel=1e-3)


def test_an_older_index_opens_says_so_and_grows_in_its_form(folder):
  """Before `rest` there were 8 columns, enlarged to the whole trace."""
  explainer = explainer_of()
  photos = paths(folder)[:4]
  now = ExplanationIndex.build(folder / "now", explainer, photos, spread=8)
  _, manifest = now, json.loads((folder / "now/index.json").read_text())
  old = folder / "old"
  ExplanationIndex.build(old, explainer, photos[:1], spread=8)
  manifest |= {"rest": False, "ids": [], "sources": []}
  for name in (
    "sha256",
    "digests",
    "places",
    "homes",
    "gone",
    "model",
  ):  # what there was not either
    del manifest[name]
  shutil.rmtree(old)
  old.mkdir()
  (old / "index.json").write_text(json.dumps(manifest))
  index = ExplanationIndex.build(old, explainer, photos)
  assert "rest" not in index._index.arrays
  columns = index.error_factor(0).columns
  kept = now.error_factor(0)
  trace = (kept.columns**2).sum() + len(columns) * kept.rest**2
  assert (columns**2).sum() == pytest.approx(trace, rel=1e-2)
  assert any("older form" in w for w in index.explain(0, 1).warnings)
  assert not now.explain(0, 1).warnings


def test_a_single_replicate_has_no_standard_error(tmp_path, images):
  design = sane_jax.Hadamard(num_masks=32, grid=(4, 4))
  explainer = sane_jax.Explainer(model(), design=design)
  index = ExplanationIndex.build(tmp_path, explainer, images)
  with pytest.raises(ValueError, match="without standard errors"):
    index.standard_errors(0, [1])


def test_eight_bits_are_as_far_off_as_they_say(tmp_path, images):
  explainer = explainer_of()
  exact = ExplanationIndex.build(tmp_path / "16", explainer, images)
  small = ExplanationIndex.build(tmp_path / "8", explainer, images, dtype="int8")
  names = list(images)
  one, two = (i.maps(names[0], names[1:]).reshape(4, -1) for i in (exact, small))
  scales = np.abs(exact.effect_matrix(names[0])).max(axis=1) / 127
  vectors = explainer.embed([images[n] for n in names[1:]])
  bound = 0.51 * np.abs(vectors).sum(axis=1)[:, None] * scales
  error = np.abs(one - two)
  assert (error <= bound + 1e-4 * np.abs(one).max()).all()
  assert error.max() > 0


def test_pages_without_the_encoder(folder):
  explainer = explainer_of()
  index = ExplanationIndex.build(folder / "index", explainer, paths(folder)[:5])
  again = ExplanationIndex(folder / "index", explainer)
  passes = explainer.encoder_passes
  one, two = again.ids[:2]
  e = again.explain(one, two)
  direct = explainer_of().explain(one, two)
  np.testing.assert_allclose(e.saliency_map, direct.saliency_map, atol=1e-3)
  np.testing.assert_allclose(e.reference_saliency_map, direct.reference_saliency_map, atol=1e-3)
  np.testing.assert_array_equal(e.query.pixels, direct.query.pixels)
  assert e.encoder_passes == 0
  assert explainer.encoder_passes == passes
  page = e.to_html(folder / "page.html").read_text()
  assert "00.png" in page
  assert (
    index.nearest(one, 3)
    == sorted(again.ids[1:], key=lambda name: -float(index.scores(one, [name])[0]))[:3]
  )
  assert len(index.nearest(one, 99)) == 4


def arrays(index):
  return {name: a.read().result() for name, a in index._index.arrays.items()}


def test_appended_and_interrupted_it_is_the_same(folder):
  photos = paths(folder)
  whole = ExplanationIndex.build(folder / "whole", explainer_of(), photos)

  class Stop(Exception):
    pass

  def stop(done, total):
    if done == 66:
      raise Stop

  explainer = explainer_of()
  with pytest.raises(Stop):
    ExplanationIndex.build(folder / "parts", explainer, photos[:67], on_progress=stop)
  half = ExplanationIndex(folder / "parts")
  half.maps(0, [1, 63])
  half.maps(0, [64, 65])  # half a shard was measured, and kept
  with pytest.raises(KeyError, match=r"not measured yet.*goes on"):
    half.maps(0, [66])
  spent = explainer.encoder_passes
  ExplanationIndex.build(folder / "parts", explainer, photos[:67])
  assert explainer.encoder_passes - spent == 129  # the last photo
  before = ExplanationIndex(folder / "parts").maps(0, range(1, 67))
  parts = ExplanationIndex.build(folder / "parts", explainer, photos)
  assert parts.ids == whole.ids
  for name, array in arrays(whole).items():
    np.testing.assert_array_equal(arrays(parts)[name], array, err_msg=name)
  np.testing.assert_array_equal(parts.maps(0, range(1, 67)), before)
  spent = explainer.encoder_passes
  ExplanationIndex.build(folder / "parts", explainer, photos)
  assert explainer.encoder_passes == spent  # nothing left to do


def test_images_that_can_t_be_read_cost_no_other(folder):
  (folder / "03.png").write_bytes(b"no picture")
  index = ExplanationIndex.build(folder / "index", explainer_of(), paths(folder)[:6])
  assert list(index.left_out) == [str(folder / "03.png")]
  assert np.isfinite(index.maps(0, [1, 2, 4, 5])).all()
  with pytest.raises(KeyError, match=r"03.png.*was left out"):
    index.maps(0, [3])
  assert str(folder / "03.png") not in index.nearest(0, 9)
  with pytest.raises(KeyError, match=r"no image 'nobody'.*it has 6"):
    index.maps("nobody", [0])
  with pytest.raises(KeyError, match="no image 6"):
    index.maps(0, [6])
  assert index.maps(0, []).shape == (0, 4, 4)


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda: explainer_of("rise"), "design is 'hadamard' there and 'rise' here"),
    (lambda: explainer_of(key=1), "key is"),
    (lambda: explainer_of(seed=1), r"other weights.*moved by"),
  ],
)
def test_an_index_of_another_model_or_design_is_named(tmp_path, images, make, words):
  ExplanationIndex.build(tmp_path, explainer_of(), images)
  ExplanationIndex(tmp_path, explainer_of(mode="both"))  # the mode changes no effect
  with pytest.raises(ValueError, match=words):
    ExplanationIndex(tmp_path, make())
  with pytest.raises(ValueError, match=words):
    ExplanationIndex.build(tmp_path, make(), images)


def test_what_does_not_fit_is_named(tmp_path, images, photos):
  with pytest.raises(ValueError, match=r"no explanation index.*build_index"):
    ExplanationIndex(tmp_path / "none")
  with pytest.raises(ValueError, match="at least one image"):
    ExplanationIndex.build(tmp_path / "none", explainer_of(), [])
  with pytest.raises(ValueError, match="an image needs an id"):
    ExplanationIndex.build(tmp_path / "none", explainer_of(), list(photos))
  with pytest.raises(ValueError, match=r"'a.png' is there 2 times"):
    ExplanationIndex.build(tmp_path / "none", explainer_of(), ["a.png", "b.png", "a.png"])
  lime = sane_jax.Explainer(model(), design="lime")
  with pytest.raises(ValueError, match="cells that all images share"):
    ExplanationIndex.build(tmp_path / "none", lime, images)
  with pytest.raises(ValueError, match="float16"):
    ExplanationIndex.build(tmp_path / "none", explainer_of(), images, dtype="float64")
  index = ExplanationIndex.build(tmp_path / "index", explainer_of(), images)
  with pytest.raises(ValueError, match="dtype='float16', and dtype='int8'"):
    ExplanationIndex.build(tmp_path / "index", explainer_of(), images, dtype="int8")
  with pytest.raises(ValueError, match="given as an array"):
    index.explain(0, 1)
  (tmp_path / "index/index.json").write_text("{")
  with pytest.raises(ValueError, match="is damaged"):
    ExplanationIndex(tmp_path / "index")


def test_a_manifest_that_contradicts_itself_is_named(tmp_path, images):
  ExplanationIndex.build(tmp_path, explainer_of(), images)
  manifest = json.loads((tmp_path / "index.json").read_text())
  for change, words in (
    ({"ids": ["a"] * 5}, "ids must be unique strings"),
    ({"ids": [1, 2, 3, 4, 5]}, "ids must be unique strings"),
    ({"sources": []}, "5 ids and 0 sources"),
    ({"types": [0, 0]}, "5 ids and 2 types"),
    ({"types": [0, 0, 0, 0, 1]}, "types are not numbers from 0 to 0"),
    ({"query_rows": [5]}, "query_rows are not numbers from 0 to 4"),
  ):
    (tmp_path / "index.json").write_text(json.dumps(manifest | change))
    with pytest.raises(ValueError, match=f"is damaged.*{words}"):
      ExplanationIndex(tmp_path)


def test_half_a_shard_is_not_taken_for_a_whole_one(folder):
  explainer = explainer_of()
  index = ExplanationIndex.build(folder / "index", explainer, paths(folder))
  maps = index.maps(0, [69])
  index._index.finished["effects"][1].write(np.uint8(0)).result()  # killed before it was counted
  with pytest.raises(KeyError, match="no effects"):
    ExplanationIndex(folder / "index").maps(69, [0])
  again = ExplanationIndex.build(folder / "index", explainer, paths(folder))
  np.testing.assert_array_equal(again.maps(0, [69]), maps)
  assert np.isfinite(again.maps(69, [0])).all()


def test_a_full_disk_keeps_what_was_measured(folder):
  photos = paths(folder)
  explainer = explainer_of()
  ExplanationIndex.build(folder / "index", explainer, photos[:64])
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))
    with pytest.raises(OSError, match=r"could not be written.*kept"):
      ExplanationIndex.build(folder / "index", explainer, photos)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert np.isfinite(ExplanationIndex(folder / "index").maps(0, range(1, 64))).all()
  assert np.isfinite(
    ExplanationIndex.build(folder / "index", explainer, photos).maps(69, [0])
  ).all()


def test_the_url_of_a_key_value_store(folder):
  url = f"file://{folder / 'remote'}/"
  ExplanationIndex.build(url, explainer_of(), paths(folder)[:3])
  index = ExplanationIndex(url, explainer_of())
  assert len(index) == 3
  assert index.maps(0, [1, 2]).shape == (2, 4, 4)


def test_a_data_set_s_index_opens_by_ids(tmp_path, rng):
  queries, types = np.array([1, 4]), np.array([0, 1, 1, 0, 1])
  index = index_arrays.open_index(
    tmp_path, queries=queries, types=types, num_types=2, grid=(2, 2), embedding_size=8
  )
  values = {"embeddings": rng.normal(size=(5, 2, 8)), "effects": rng.normal(size=(2, 2, 4, 8))}
  values["embeddings"] /= np.linalg.norm(values["embeddings"], axis=-1, keepdims=True)
  for part, array in values.items():
    index_arrays.write_shard(index, part, 0, array)
  index_arrays.describe(
    tmp_path, index, ids=["a", "b", "c", "d", "e"], settings={"design": "hadamard"},
    left_out={"c": "broken"},
  )  # fmt: skip
  opened = ExplanationIndex(tmp_path)
  found = opened.maps("e", ["a", "b"]).reshape(2, 4)
  expected = [
    values["effects"][1, 0] @ values["embeddings"][0, 1],
    values["effects"][1, 1] @ values["embeddings"][1, 1],
  ]
  np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2)
  with pytest.raises(KeyError, match="no effects"):
    opened.maps("a", ["e"])
  with pytest.raises(KeyError, match="broken"):
    opened.maps("e", ["c"])
  with pytest.raises(ValueError, match="no paths"):
    opened.explain("e", "b")
  assert json.loads((tmp_path / "index.json").read_text())["types"] == types.tolist()


def test_a_space_that_was_not_measured_is_no_flat_map(tmp_path, rng):
  """A data set's index has, of an image, the spaces of its matches; zeros stand in the others."""
  queries, types = np.array([0]), np.array([0, 0, 1])
  index = index_arrays.open_index(
    tmp_path, queries=queries, types=types, num_types=2, grid=(2, 2), embedding_size=8
  )
  effects = rng.normal(size=(1, 2, 4, 8))
  effects[0, 1] = 0
  embeddings = rng.normal(size=(3, 2, 8))
  embeddings /= np.linalg.norm(embeddings, axis=-1, keepdims=True)
  index_arrays.write_shard(index, "embeddings", 0, embeddings)
  index_arrays.write_shard(index, "effects", 0, effects)
  index_arrays.describe(
    tmp_path, index, ids=["a", "b", "c"], settings={"design": "hadamard"}, left_out={}
  )
  opened = ExplanationIndex(tmp_path)
  assert opened.maps("a", ["b"]).any()
  assert opened.has_effects("a", "b")
  assert opened.has_effects("a")
  assert not opened.has_effects("a", "c")
  for ask in (
    lambda: opened.maps("a", ["b", "c"]), lambda: opened.contrast("a", "b", "c"),
    lambda: opened.effect_matrix("a", "c"),
  ):  # fmt: skip
    with pytest.raises(KeyError, match="not measured in the space"):
      ask()


MODULE = """
import sys
sys.path.insert(0, {tests!r})
import encoders, sane_jax

def make(image_size):
  return sane_jax.from_jax(
    encoders.nonlinear, encoders.nonlinear_params(), image_size=image_size, name="small"
  )
"""


def test_two_processes_build_the_index_of_one(folder):
  """Each writes shards of its own."""
  (folder / "small_model.py").write_text(MODULE.format(tests=str(ROOT / "tests")))
  photos = folder / "photos"
  photos.mkdir()
  for path in paths(folder):
    path.rename(photos / path.name)
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  command = [
    sys.executable, "-m", "sane_jax.main", f"--config={ROOT / 'configs/photos.py'}",
    "--config.photos=photos", "--config.job=build_index", "--config.model=small_model:make",
    "--config.image_size=28", "--config.num_masks=32", "--config.grid=(4,4)",
  ]  # fmt: skip
  path = f"{ROOT}{os.pathsep}{folder}"
  environment = {**os.environ, "PYTHONPATH": path, "JAX_NUM_CPU_DEVICES": "1"}
  together = [
    *command, "--config.workdir=two", f"--coordinator={address}", "--num_processes=2",
  ]  # fmt: skip
  running = [
    subprocess.Popen([*together, f"--process_id={i}"], cwd=folder, env=environment) for i in (0, 1)
  ]
  assert [child.wait(timeout=120) for child in running] == [0, 0]
  done = subprocess.run([*command, "--config.workdir=one"], cwd=folder, env=environment, check=True)
  assert done.returncode == 0
  one, two = (ExplanationIndex(folder / name / "index") for name in ("one", "two"))
  assert len(one) == 70
  assert one.ids == two.ids
  for name, array in arrays(one).items():
    np.testing.assert_allclose(arrays(two)[name], array, atol=1e-5, err_msg=name)


def test_beside_a_vector_index(folder, monkeypatch, capsys):
  """The example: FAISS finds, the index explains."""
  pytest.importorskip("faiss")
  monkeypatch.chdir(folder)
  monkeypatch.setattr(sane_jax, "load_model", lambda *_, **__: model())
  example = runpy.run_path(str(ROOT / "docs/examples/search_and_explain.py"))
  page = example["main"](str(folder), matches=3).read_text()
  printed = capsys.readouterr().out
  index = ExplanationIndex("runs/search/index")
  for name in index.nearest(index.ids[0], 3):
    assert f"{name}: most of it lies in" in printed
    assert pathlib.Path(name).name in page
