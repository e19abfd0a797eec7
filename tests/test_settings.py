"""Settings: wrong ones are found before anything runs, and old names of fields are understood."""

import importlib
import pathlib
import runpy
import subprocess
import sys

import ml_collections
import pytest

from sane_jax import main
from sane_jax.runs import settings

ROOT = pathlib.Path(__file__).parents[1]


def load(name):
  return runpy.run_path(str(ROOT / f"configs/{name}.py"))["get_config"]()


def check(job, config):
  importlib.import_module(f"sane_jax.jobs.{job}").check(config)


# A setting of each job that can't be, and what is said of it.
WRONG = {
  "draw_outfits": ("demo", "outfits.num_outfits", (800, 100), "three numbers of 4 or more"),
  "convert_weights": ("polyvore", "convert.source", "", "--config.convert.source=FILE"),
  "train_similarity": ("demo", "similarity.negatives", "easy", "random or hard; given 'easy'"),
  "build_index": ("demo", "index.design", "lime", "no cells that all images share"),
  "train_attributes": ("demo", "attributes.trunk", "vgg", "trunk is resnet or efficientnet_lite0"),
  "discover_attributes": ("demo", "discovery.num_clusters", (1,), "num_clusters is 2 or more"),
  "fit_concepts": ("demo", "concepts.min_accuracy", 60.0, "min_accuracy is 0 to 1"),
  "tune_ranking": ("demo", "ranking.phi", (0.5, 0.6, 0.0, 0.0), "phi has 4 weights"),
  "explain": ("photos", "fill", "pink", "no fill 'pink'"),
  "explain_matches": ("demo", "explain_matches.num_pairs", 0, "num_pairs is 1 or more"),
  "compare_models": ("photos", "other_model", "", "--config.other_model=MODEL"),
  "serve": ("photos", "serve.neighbors", 1000, "serve.neighbors is 1 to 200"),
  "compare_generators": ("generators", "pairs_file", "", "--config.pairs_file=FILE"),
  "evaluate": ("demo", "evaluation.generators", ("rize",), "no design 'rize'"),
  "simulate_study": ("study", "study.num_exported", 1, "num_exported is 2 or more"),
  "study": ("study", "study.closes", "soon", "study.closes is a date"),
  "plan_study": ("study", "study.plan.power", 2.0, "plan.power is"),
  "study_results": ("study", "study.exclusion.min_share", 2.0, "min_share is from 0 to 1"),
  "benchmark": ("benchmark", "parts", ("speed",), "parts is one of kernel"),
  "benchmark_input": ("demo", "benchmark_steps", 0, "benchmark_steps is 1 or more"),
}
FURTHER = (
  ("train_similarity", "demo", "similarity.dtype", "float33", "dtype is 'float33'"),
  ("train_similarity", "demo", "data.name", "deepfashion", "data.name is polyvore_outfits or awa2"),
  ("train_similarity", "demo", "similarity.groups_per_batch", 0, "groups_per_batch"),
  ("train_attributes", "demo", "attributes.dtype", "int8", "dtype is 'int8'"),
  ("train_attributes", "demo", "attributes.block", "wide", "block is 'wide'"),
  ("build_index", "demo", "index.num_masks", 100, "multiple of 128"),
  ("build_index", "demo", "index.fill", "pink", "no fill 'pink'"),
  ("build_index", "photos", "photos", "", "--config.photos=FOLDER"),
  ("tune_ranking", "demo", "ranking.calibration", "ranks", "normal_scores or none"),
  ("evaluate", "demo", "evaluation.modes", ("all",), "modes is fixed or both"),
  ("evaluate", "demo", "evaluation.background", "pink", "no fill 'pink'"),
  ("evaluate", "demo", "evaluation.generators", ("rise:num_masks",), "field=value"),
  ("explain_matches", "demo", "explain_matches.design", "rize", "no design 'rize'"),
  ("explain", "photos", "phi", (1.0, 1.0, 0.0, 0.0), "phi has 4 weights"),
  ("serve", "demo", "serve.split", "all", "split is one of train"),
  ("study", "study", "study.design_of_subjects", "mixed", "within or between"),
)


@pytest.mark.parametrize(
  ("job", "name", "field", "value", "words"),
  [*((job, *rest) for job, rest in WRONG.items()), *FURTHER],
  ids=lambda x: x if isinstance(x, str) and "." not in x and " " not in x else "",
)
def test_a_wrong_setting_is_found_by_check(job, name, field, value, words, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config = load(name)
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=words):
    check(job, config)
  assert not list(tmp_path.iterdir())


def test_each_job_has_a_wrong_setting_here():
  assert set(WRONG) == set(main.JOBS)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_settings_as_they_are_given_pass(path):
  config = load(path.stem)
  jobs = config.jobs if config.job == "all" else [config.job]
  for job in jobs:
    if (job, path.stem) != ("compare_generators", "generators"):  # it asks for a file of pairs
      check(job, config)


def test_a_wrong_setting_of_the_last_job_is_found_before_the_first(tmp_path):
  command = [
    sys.executable, "-m", "sane_jax.main", f"--config={ROOT / 'configs/demo.py'}",
    "--config.explain_matches.num_pairs=0",
  ]  # fmt: skip
  done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=250)
  assert done.returncode != 0
  assert "explain_matches: --config.explain_matches.num_pairs is 1 or more; given 0" in done.stderr
  assert not list(tmp_path.iterdir())


# --- old names ------------------------------------------------------------------------------------


def test_old_names_are_understood_on_the_command_line(capsys):
  given = ["--config.key=3", "--config.attributes=t.csv", "--config.attributes.map_weight=0",
           "--config.pairs", "p.txt", "--config.explain.num_pairs=2", "key=3"]  # fmt: skip
  assert settings.rename_flags(given) == [
    "--config.seed=3", "--config.attributes_file=t.csv", "--config.attributes.map_weight=0",
    "--config.pairs_file", "p.txt", "--config.explain_matches.num_pairs=2", "key=3",
  ]  # fmt: skip
  assert "key is called seed now" in capsys.readouterr().err


def test_old_names_are_understood_in_a_config_of_ones_own(capsys):
  own = load("polyvore")  # as a file does that inherits and changes
  own.key = 5
  main.rename_fields(own)
  assert (own.seed, own.study.seed) == (5, 5)
  assert "key" not in own
  assert own.attributes.map_weight == 5e-3  # a section keeps its name
  old = ml_collections.ConfigDict({"key": 1, "pairs": "p.txt", "explain": {"num_pairs": 3}})
  old.study = {"key": old.get_ref("key")}
  main.rename_fields(old)
  old.seed = 7
  assert old.study.seed == 7
  assert old.pairs_file == "p.txt"
  assert old.explain_matches.num_pairs == 3
  assert "the file sets key" in capsys.readouterr().err


def test_a_config_is_found_where_the_package_carries_it(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert settings.find_config("configs/photos.py").samefile(ROOT / "configs/photos.py")
  (tmp_path / "configs").mkdir()
  own = tmp_path / "configs/photos.py"
  own.write_text("")
  assert settings.find_config("configs/photos.py").samefile(own)
  with pytest.raises(ValueError, match=r"there is no file configs/none\.py; give one of.*demo"):
    settings.find_config("configs/none.py")


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("words", "means"),
  [
    ("explain a b", "--config=configs/photos.py --config.job=explain --config.query=a"
     " --config.reference=b"),
    ("explain a b c --out here", "--config=configs/photos.py --config.job=explain --config.query=a"
     " --config.reference=b --config.contrast=c --config.workdir=here"),
    ("explain --out=here a b --config.design rise",
     "--config=configs/photos.py --config.job=explain"
     " --config.query=a --config.reference=b --config.workdir=here --config.design rise"),
    ("evaluate --config=c.py", "--config.job=evaluate --config=c.py"),
    ("all --config c.py", "--config.job=all --config=c.py"),
    ("--config c.py --config.key 3", "--config=c.py --config.key 3"),
  ],
)  # fmt: skip
def test_commands_are_settings(words, means):
  assert main._expand(["sane_jax", *words.split()]) == ["sane_jax", *means.split()]


def test_folders_that_are_served_have_indexes_of_their_own():
  one, other = (main._expand(["sane_jax", "serve", name]) for name in ("a/photos", "b/photos"))
  assert one[1:4] == [
    "--config=configs/photos.py", "--config.job=build_index,serve", "--config.photos=a/photos",
  ]  # fmt: skip
  assert one[4].startswith("--config.workdir=runs/")
  assert one[4] != other[4]


@pytest.mark.parametrize(
  ("words", "says"),
  [
    ("cook", "no command 'cook'; there is explain PHOTO PHOTO"),
    ("explain a", "explain takes two photos, or three"),
    ("explain a b c d", "explain takes two photos, or three"),
    ("serve", "serve takes one folder"),
    ("evaluate", "evaluate takes a config: sane_jax evaluate --config=configs/X.py"),
  ],
)
def test_a_wrong_command_says_what_would_do(words, says):
  with pytest.raises(ValueError, match=says):
    main._expand(["sane_jax", *words.split()])


def test_help_lists_jobs_and_settings():
  text = main._help(["sane_jax", "--help", "--config=configs/demo.py"])
  assert all(f"\n  {job} " in text for job in main.JOBS)
  assert "--config.workdir='runs/demo'\n      folder of the results" in text
  assert "--config.serve.port=8000\n      port; 0 for one that is free" in text  # of photos.py
