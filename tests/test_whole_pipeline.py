"""The command of configs/synthetic.py, small: drawn, read by the real builder, trained, indexed."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SMALL = (
  "outfits.num_outfits=(40,10,12)", "similarity.image_size=32", "similarity.width=8",
  "similarity.groups_per_batch=8", "similarity.num_steps=12", "similarity.warmup_steps=2",
  "similarity.eval_every_steps=6", "similarity.save_every_steps=6", "index.max_queries=20",
  "attributes.image_size=32", "attributes.width=8", "attributes.batch_size=16",
  "attributes.num_epochs=2", "cache_gib=0.1",
)  # fmt: skip


def command(folder, *args, config="synthetic", fields=SMALL):
  done = subprocess.run(
    [sys.executable, "-m", "sane_jax.main", f"--config={ROOT / f'configs/{config}.py'}",
     *(f"--config.{field}" for field in fields), *args],
    cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    timeout=280,
  )  # fmt: skip
  return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp("whole")
  code, out = command(folder)
  assert code == 0, out
  return folder


def test_all_jobs_run_in_order(whole):
  run = whole / "runs/synthetic"
  similarity = json.loads((run / "similarity/finished.json").read_text())
  assert set(similarity["test"]) == {"fill_in_the_blank", "compatibility_auc"}
  index = json.loads((run / "index/finished.json").read_text())
  assert index["queries"] == 20
  attributes = json.loads((run / "attributes/finished.json").read_text())
  assert set(attributes["test"]) == {"mean_average_precision", "pointing_game", "mass_inside"}
  assert all(0 < v < 1 for v in attributes["test_chance"].values())


def test_a_second_run_finds_it_all_done(whole):
  code, out = command(whole)
  assert code == 0, out
  assert out.count("up to date") == 4


def test_what_was_trained_can_be_explained(whole):
  """A trained file is a model as any other, in the space of two types."""
  import sane_jax

  run = whole / "runs/synthetic"
  model = sane_jax.load_model(str(run / "similarity/model.safetensors"), condition="tops,shoes")
  photos = sorted((run / "drawn/polyvore_outfits/images").glob("*.jpg"))[:2]
  e = sane_jax.Explainer(model, design="hadamard", num_masks=128, fill="white").explain(*photos)
  assert -1 <= e.score <= 1
  assert e.saliency_map.shape == (32, 32)


@pytest.mark.parametrize(
  ("config", "fields", "words"),
  [
    ("polyvore", ("data.folder=nowhere",), "fashion-compatibility"),
    ("awa2", ("data.folder=nowhere",), "AwA2"),
    ("polyvore", ("data.name=polyvore",), "no data set 'polyvore'; there is polyvore_outfits"),
    (
      "polyvore",
      ("job=convert_weights", "convert.source=none.pth", "convert.target=x.safetensors"),
      "none.pth",
    ),
    ("polyvore", ("job=explain_all",), "no job 'explain_all'; there is .*all"),
  ],
)
def test_what_is_missing_is_named(tmp_path, config, fields, words):
  import re

  code, out = command(tmp_path, config=config, fields=fields)
  assert code != 0
  assert re.search(words, out.replace("\n", " ")), out
  assert "Traceback" not in out
