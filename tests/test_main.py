"""The jobs as a user runs them: from config files, with good input and bad."""

import functools
import json
import os
import pathlib
import re
import runpy
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from sane_jax import main
from sane_jax.jobs import explain
from sane_jax.maps.explanation import Effects, Photo
from sane_jax.ops import effects as effects_lib
from sane_jax.runs import settings

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))

TINY = """
import jax.numpy as jnp
import sane_jax

def make(image_size):
  def embed(params, images):
    b, h, w, _ = images.shape
    cells = images.reshape(b, 4, h // 4, 4, w // 4, 3).mean((2, 4)).reshape(b, -1)
    return jnp.concatenate([jnp.tanh(3 * cells - 1.5), jnp.full((b, 1), 0.5)], axis=1)
  return sane_jax.from_jax(embed, None, image_size=image_size, name="tiny")

def sick(image_size):
  def embed(params, images):
    dark = (images.mean((1, 2, 3)) < 0.1)[:, None]
    return jnp.where(dark, jnp.nan, images.mean((1, 2)))
  return sane_jax.from_jax(embed, None, image_size=image_size, name="sick")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A folder with five photos, and a tiny model that can be imported."""
  (tmp_path / "tiny_model.py").write_text(TINY)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.chdir(tmp_path)
  photos = tmp_path / "photos"
  photos.mkdir()
  rng = np.random.default_rng(0)
  for n in range(5):
    coarse = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8))
    coarse.resize((48, 40), Image.Resampling.BILINEAR).save(photos / f"photo {n}.png")
  return tmp_path


def config(name="photos", **fields):
  out = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]()
  tiny = {"model": "tiny_model:make", "image_size": 32}
  out.update({**tiny, **fields})
  return out


def results(folder):
  return json.loads((folder / "runs/photos/explain/explanations.json").read_text())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_names_a_job_and_itself(path):
  loaded = runpy.run_path(str(path))
  config = loaded["get_config"]()
  assert set(config.jobs if config.job == "all" else [config.job]) <= set(main.JOBS)
  assert f"--config=configs/{path.name}" in loaded["__doc__"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_field_says_what_it_is(path):
  comments = settings.read_comments(path)
  config = runpy.run_path(str(path))["get_config"]()
  assert not [f for f, _ in settings.list_fields(config) if len(comments.get(f, "")) < 4]


def test_a_field_has_one_type_in_all_configs():
  """What a flag means does not depend on the config; sections and values do not share a name."""
  types, sections = {}, set()
  for path in CONFIGS:
    config = runpy.run_path(str(path))["get_config"]()
    for field, value in settings.list_fields(config):
      *names, last = field.split(".")
      sections |= {".".join(names[:n]) for n in range(1, len(names) + 1)}
      holder = functools.reduce(lambda node, name: node[name], names, config)
      kind = type(value) if value is not None else holder.get_type(last)
      types.setdefault(field, {})[kind] = path.stem
  assert not {field: kinds for field, kinds in types.items() if len(kinds) > 1}
  assert not sections & types.keys()
  assert sections & set(main.JOBS) == {"explain_matches", "serve", "study"}  # each its job's own


def test_two_photos(folder, capsys):
  explain.run(config(query="photos/photo 0.png", reference="photos/photo 1.png"))
  out = results(folder)
  (one,) = out["explanations"]
  assert (one["query"], one["reference"]) == ("photo 0.png", "photo 1.png")
  assert one["encoder_passes"] == 2 * 257
  assert 0 <= one["deletion_auc"] <= 100
  assert out["settings"]["design"] == "hadamard"
  png = Image.open(folder / "runs/photos/explain" / one["files"]["figure"])
  assert png.width > 500
  html = (folder / "runs/photos/explain/index.html").read_text()
  assert "photo 0.png" in html
  assert "Open runs/photos/explain/index.html" in capsys.readouterr().out


def test_the_page_says_how_to_do_it_again(folder):
  explain.run(
    config(query="photos/photo 0.png", reference="photos/photo 1.png", grid=(4, 4), num_masks=64)
  )
  first = results(folder)
  html = (folder / "runs/photos/explain/index.html").read_text()
  command = re.search(r"python -m sane_jax\.main [^<\\]*", html).group()
  for part in ("--config.grid='(4,4)'", "--config.num_masks=64", "photo 0.png"):
    assert part in command.replace("&#39;", "'").replace("&#34;", '"')
  explain.run(
    config(query="photos/photo 0.png", reference="photos/photo 1.png", grid=(4, 4), num_masks=64)
  )
  assert results(folder) == first  # found, not measured again: the seconds are the same


def test_a_view_keeps_its_name():
  """Views on disk are found by it: another name would measure every pair of a folder again."""
  settings = {
    "model": "m", "fit": "crop", "num_masks": 64, "grid": [4, 4], "fill": "mean+blur",
    "mode": "fixed", "key": [0, 7],
  }  # fmt: skip
  attributes = ["c" * 64, [0.7, 0.1, 0.0, 0.2]]
  identity = {"settings": settings, "background": "mean", "attributes": attributes}
  name = explain.view_name(identity, ("a.jpg", "b.jpg"), ["a" * 64, "b" * 64])
  assert name == "22cb647b094551a4f1c4a8535009c3db.npz"


def test_the_effects_of_the_images_seen_last_are_kept(monkeypatch):
  measured = []

  class Explainer:
    def effects(self, photo):
      measured.append(photo.name)
      zeros = np.zeros((1, 2, 5), np.float32)  # 40 bytes
      return Effects(
        photo, *[None] * 4, effects_lib.Moments(zeros, zeros, zeros[0]), np.zeros(5), 1
      )

  def ask(names, room):
    measured.clear()
    monkeypatch.setattr(explain, "EFFECTS_BYTES", room)
    effects = explain._cached_effects(Explainer())
    for name in names:
      assert effects(Photo(name, np.zeros((1, 1, 3))), name).photo.name == name
    return "".join(measured)

  assert ask("abcabc", 3 * 80) == "abc"
  assert ask("abcadb", 3 * 80) == "abcdb"  # d takes the room of b, not asked for the longest
  assert ask("ababcb", 10) == "abc"  # two are kept whatever their size


def test_contrast(folder):
  explain.run(
    config(
      query="photos/photo 0.png", reference="photos/photo 1.png", contrast="photos/photo 2.png"
    )
  )
  (one,) = results(folder)["explanations"]
  assert one["contrast"] == "photo 2.png"
  assert -2 <= one["score"] <= 2


def test_folder_finds_nearest_neighbours_and_lists_bad_files(folder):
  (folder / "photos/broken.jpg").write_bytes(b"\xff\xd8\xff not much of a photo")
  (folder / "photos/empty.png").write_bytes(b"")
  explain.run(config(photos="photos", neighbors=2, metrics=False))
  out = results(folder)
  assert len(out["explanations"]) == 10
  assert sorted(f["what"] for f in out["failures"]) == ["broken.jpg", "empty.png"]
  by_query = {}
  for e in out["explanations"]:
    by_query.setdefault(e["query"], []).append(e["score"])
    assert e["query"] != e["reference"]
    assert e["insertion_auc"] is None
  assert all(a >= b for a, b in by_query.values())
  html = (folder / "runs/photos/explain/index.html").read_text()
  assert "broken.jpg" in html


def test_pairs_file_with_bad_lines(folder):
  (folder / "pairs.csv").write_text(
    "query,reference\n"
    '"photos/photo 0.png","photos/photo 1.png"\n'
    '"photos/photo 0.png","photos/missing.png"\n'
    '"photos/photo 2.png","photos/truncated.png"\n'
    '"photos/photo 3.png","photos/photo 1.png"\n'
  )
  whole = (folder / "photos/photo 4.png").read_bytes()
  (folder / "photos/truncated.png").write_bytes(whole[: len(whole) // 2])
  explain.run(config(pairs_file="pairs.csv", metrics=False))
  out = results(folder)
  assert [e["query"] for e in out["explanations"]] == ["photo 0.png", "photo 3.png"]
  assert len(out["failures"]) == 2
  text = json.dumps(out["failures"])
  assert "missing.png" in text
  assert "truncated.png" in text


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"query": "photos/photo 0.png"}, "both --config.query and --config.reference"),
    ({"query": "a", "reference": "b", "photos": "c"}, "one of query, photos and pairs_file"),
    ({"contrast": "x"}, "contrast goes with"),
    ({"photos": "nowhere"}, "nowhere"),
    ({"photos": "photos", "neighbors": 0}, "neighbors"),
    ({"pairs_file": "none.txt"}, "none.txt"),
    ({"query": "no.png", "reference": "no.png"}, "nothing could be explained.*no.png"),
    ({"design": "rize"}, "rize.*hadamard"),
    ({"num_masks": 100}, "multiple of 128"),
    ({"model": "resnet9000"}, "efficientnet_lite0"),
    ({"fill": "pink"}, "pink"),
    ({"background": "pink"}, "pink"),
    ({"mode": "all"}, "fixed or both"),
    ({"image_size": 0}, "positive"),
    ({"workdir": "photos/photo 0.png"}, "--config.workdir=FOLDER"),
  ],
)
def test_wrong_settings_say_what_would_do(folder, fields, words):
  with pytest.raises((ValueError, OSError), match=f"(?s){words}"):
    explain.run(config(**fields))


def test_a_sick_model_costs_only_its_pairs(folder):
  Image.new("RGB", (40, 40), (5, 5, 5)).save(folder / "photos/dark.png")
  explain.run(config(pairs_file=_pairs(folder), model="tiny_model:sick", metrics=False))
  out = results(folder)
  assert len(out["explanations"]) == 1
  assert "NaN" in out["failures"][0]["why"]


def _pairs(folder):
  path = folder / "pairs.csv"
  path.write_text("photos/photo 0.png,photos/photo 1.png\nphotos/dark.png,photos/photo 1.png\n")
  return str(path)


def test_a_long_report_has_pages(folder, monkeypatch):
  monkeypatch.setattr(explain, "PAGE_PAIRS", 2)
  explain.run(config(photos="photos", neighbors=1, metrics=False))
  pages = sorted(p.name for p in (folder / "runs/photos/explain").glob("index*.html"))
  assert pages == ["index-2.html", "index-3.html", "index.html"]
  first = (folder / "runs/photos/explain/index.html").read_text()
  assert 'href="index-2.html"' in first
  assert 'href="index.html"' in (folder / "runs/photos/explain/index-3.html").read_text()


# --- the command ----------------------------------------------------------------------------------


def command(*args, cwd, **kwargs):
  environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{cwd}"}
  return subprocess.run(
    [sys.executable, "-m", "sane_jax.main", *args],
    cwd=cwd, env=environment, capture_output=True, text=True, timeout=200, **kwargs,
  )  # fmt: skip


def start(*args, cwd):
  """The command, left running."""
  environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{cwd}"}
  return subprocess.Popen(
    [sys.executable, "-m", "sane_jax.main", *args],
    cwd=cwd, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip


PHOTOS = f"--config={ROOT / 'configs/photos.py'}"
TINY_MODEL = ["--config.model=tiny_model:make", "--config.image_size=32"]


@pytest.mark.parametrize(
  ("args", "words"),
  [
    ([PHOTOS, "--config.desing=rise"], "desing"),
    ([PHOTOS, "--config.neighbors=many"], "neighbors|many"),
    ([PHOTOS, "--config.job=cook"], "no job 'cook'; there is draw_outfits, .*explain"),
    ([PHOTOS, *TINY_MODEL, "--config.design=rize"], "explain: no design 'rize'"),
    ([PHOTOS, "rise"], "--config.name=value"),
    (["--config=configs/none.py"], "none.py"),
    ([], "--config"),
  ],
)
def test_a_wrong_command_is_a_sentence(folder, args, words):
  done = command(*args, cwd=folder)
  assert done.returncode != 0
  assert re.search(words, done.stdout + done.stderr)
  assert "Traceback" not in done.stderr


@pytest.mark.full
def test_killed_and_started_again_it_goes_on(folder):
  """SIGKILL in the middle; the second run finds what was finished and gives the same numbers."""
  args = [PHOTOS, *TINY_MODEL, "--config.photos=photos", "--config.neighbors=4"]
  args += ["--config.design=rise", "--config.num_masks=400"]
  child = start(*args, cwd=folder)
  kept = folder / "runs/photos/explain/pairs"
  deadline = time.monotonic() + 150
  while time.monotonic() < deadline and len(list(kept.glob("*.npz"))) < 3:
    time.sleep(0.02)
  child.send_signal(signal.SIGKILL)
  child.wait()
  finished = {p.name: p.stat().st_mtime_ns for p in kept.glob("*.npz")}
  assert 3 <= len(finished) < 20
  done = command(*args, cwd=folder)
  assert done.returncode == 0, done.stderr
  assert "20 pairs explained" in done.stdout
  assert all((kept / name).stat().st_mtime_ns == at for name, at in finished.items())
  resumed = results(folder)["explanations"]
  done = command(*args, f"--config.workdir={folder / 'other'}", cwd=folder)
  assert done.returncode == 0, done.stderr
  undisturbed = json.loads((folder / "other/explain/explanations.json").read_text())["explanations"]
  for a, b in zip(resumed, undisturbed, strict=True):
    a.pop("seconds"), b.pop("seconds")
    assert a == b


def test_interrupted_it_says_so_and_writes_what_it_has(folder):
  args = [PHOTOS, *TINY_MODEL, "--config.photos=photos", "--config.neighbors=4"]
  args += ["--config.design=rise", "--config.num_masks=20000", "--config.metrics=False"]
  child = start(*args, cwd=folder)
  kept = folder / "runs/photos/explain/pairs"
  deadline = time.monotonic() + 150
  while time.monotonic() < deadline and len(list(kept.glob("*.npz"))) < 2:
    time.sleep(0.02)
  child.send_signal(signal.SIGINT)
  _, errors = child.communicate(timeout=60)
  assert child.returncode != 0
  assert "goes on from here" in errors
  assert "Traceback" not in errors
  assert len(results(folder)["explanations"]) >= 1


# --- the other jobs -------------------------------------------------------------------------------


def test_an_index_of_a_folder_grows_with_it(folder, capsys):
  import sane_jax
  from sane_jax.jobs import build_index

  (folder / "photos/photo 3.png").write_bytes(b"no picture")
  last = folder / "photos/photo 4.png"
  away = last.rename(folder / "later.png")
  settings = config(photos="photos", design="hadamard", num_masks=128)
  build_index.run(settings)
  printed = capsys.readouterr()
  assert "4 photos" in printed.out
  assert "1 left out" in printed.out
  assert "photo 3.png" in printed.err
  away.rename(last)
  build_index.run(settings)
  assert "5 photos" in capsys.readouterr().out
  index = sane_jax.ExplanationIndex("runs/photos/index")
  assert index.maps("photos/photo 0.png", ["photos/photo 4.png"]).shape == (1, 8, 8)
  assert index.explain("photos/photo 0.png", "photos/photo 4.png").encoder_passes == 0
  with pytest.raises(ValueError, match=r"--config\.photos=FOLDER"):
    build_index.run(config())
  with pytest.raises(ValueError, match="num_masks is 128 there and 256 here"):
    build_index.run(config(photos="photos", design="hadamard", num_masks=256))


def test_evaluation_tabulates_and_resumes(folder):
  from sane_jax.jobs import compare_generators

  (folder / "pairs.csv").write_text(
    "".join(f"photos/photo {i}.png,photos/photo {j}.png\n" for i in range(3) for j in (3, 4))
  )
  settings = config(
    "generators", pairs_file="pairs.csv", max_pairs=6,
    generators=("random", "hadamard:num_masks=32,grid=[4,4]", "learned_mask:num_steps=3,cells=4"),
  )  # fmt: skip
  compare_generators.run(settings)
  out = folder / "runs/generators/generators"
  table = (out / "table.md").read_text()
  assert table.count("| hadamard:num_masks=32,grid=[4,4] |") == 4  # two modes, two backgrounds
  assert table.count("| hadamard:num_masks=32,grid=[4,4], hard cells |") == 4
  assert table.count("| random |") == table.count("| random, hard cells |") == 2
  assert table.count("| learned_mask:num_steps=3,cells=4 |") == 4
  assert "cells=4, hard cells" not in table  # it is smooth
  document = json.loads((out / "results.json").read_text())
  drawn = {(r["generator"], r["mode"], r["background"], r["drawing"]): r for r in document["rows"]}
  smooth, hard = (
    drawn["hadamard:num_masks=32,grid=[4,4]", "fixed", "mean", how] for how in ("smooth", "cells")
  )
  assert smooth["insertion"] != hard["insertion"]
  rows = {key[:3]: row for key, row in drawn.items() if key[3] == "smooth"}
  hadamard = rows["hadamard:num_masks=32,grid=[4,4]", "fixed", "mean"]
  assert len(hadamard["insertion"]) == 6
  assert hadamard["passes"] == 34
  assert rows["hadamard:num_masks=32,grid=[4,4]", "both", "mean"]["passes"] == 64
  difference = [np.subtract(r["insertion"], r["deletion"]).mean() for r in rows.values()]
  assert np.isfinite(difference).all()
  random = rows["random", "fixed", "mean"]
  assert np.mean(hadamard["deletion"]) < np.mean(random["deletion"])
  stamps = {p: p.stat().st_mtime_ns for p in (out / "curves").iterdir()}
  compare_generators.run(settings)
  assert {p: p.stat().st_mtime_ns for p in (out / "curves").iterdir()} == stamps
  assert (out / "table.md").read_text() == table
  assert "to random: insertion" in table
  settings.baseline = "nothing"
  with pytest.raises(ValueError, match=r"baseline is one of.*given 'nothing'"):
    compare_generators.run(settings)
  with pytest.raises(ValueError, match=r"--config\.pairs_file=FILE"):
    compare_generators.run(config("generators"))
  with pytest.raises(ValueError, match="field=value"):
    compare_generators.run(
      config("generators", pairs_file="pairs.csv", generators=("rise:num_masks",))
    )


def test_benchmark_reports_ratios(folder, capsys):
  from sane_jax.jobs import benchmark

  tiny = config("benchmark")
  del tiny["image_size"]
  tiny.update(
    generators=("hadamard:num_masks=128",), images=64, repeats=2, image_sizes=(32,),
    dtypes=("float32", "bfloat16"), device_counts=(1, 2), chunk_sizes=(16,), index_images=70,
  )  # fmt: skip
  benchmark.run(tiny)
  out = folder / "runs/benchmark/benchmark"
  lines = [json.loads(line) for line in (out / "benchmark.jsonl").read_text().splitlines()]
  rows = [line for line in lines if line["part"] == "kernel"]
  # Bare and masked, on one device and two, at two precisions; the host's at its own precision.
  assert len(rows) == 2 * 2 * 2 + 2 * 2
  assert all(r["ratio_to_bare"] == 1 for r in rows if r["case"] == "bare encoder")
  assert all(r["images"] >= 64 and r["images_per_second"] > 0 for r in rows)
  assert all(r["images"] == 129 for r in rows if r["case"] != "bare encoder")
  # 202 images a pair and the reference; 30 steps a pair and both images whole.
  metrics = {(r["case"], r["pairs"]): r["images"] for r in lines if r["part"] == "metrics"}
  assert metrics["insertion and deletion", 1] == 203
  assert metrics["insertion and deletion", 16] == 16 * 203
  assert metrics["learned masks", 1] == 32
  assert metrics["learned masks", 16] == 16 * 32
  assert all(r["peak_megabytes"] > 100 for r in lines)
  passes = {(r["perturbed"], r["references"]): r["passes"] for r in lines if r["part"] == "pairs"}
  assert passes == {("query", 1): 130, ("query", 20): 149, ("both", 1): 160}
  assert [r["count"] for r in lines if r["part"] == "scaling" and r["over"] == "images"] == [
    1, 2, 4, 8,
  ]  # fmt: skip
  assert {r["dtype"]: r["images"] for r in lines if r["part"] == "index"} == {
    "float16": 70, "int8": 70,
  }  # fmt: skip
  assert (out / "scaling.png").stat().st_size > 1000
  printed = capsys.readouterr().out
  assert all(f"## {part}" in printed for part in benchmark.PARTS)
  tiny.parts = ("speed",)
  with pytest.raises(ValueError, match=r"parts is one of kernel, .*speed"):
    benchmark.run(tiny)
