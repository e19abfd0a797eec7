"""The command of configs/synthetic.py, small: drawn, read by the real builder, trained, indexed."""

import ast
import importlib
import json
import os
import pathlib
import runpy
import subprocess

import many
import numpy as np
import pytest
from many import SMALL
from starlette.testclient import TestClient

from sane_jax.jobs import serve, simulate_study
from sane_jax.maps.index import ExplanationIndex
from sane_jax.training import loop
from sane_jax.viewer.collection import key_of

ROOT = pathlib.Path(__file__).parents[1]
# As in the run that tests share: one device, whose programs are compiled once.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}


def command(folder, *args, config="synthetic", fields=SMALL):
  done = subprocess.run(
    [*many.command(config, fields), *args], cwd=folder, env=ENVIRONMENT, capture_output=True,
    text=True, timeout=many.PATIENCE,
  )  # fmt: skip
  return done.returncode, done.stdout + done.stderr


def test_all_jobs_run_in_order(whole):
  run = whole / "runs/synthetic"
  similarity = json.loads((run / "similarity/finished.json").read_text())
  assert set(similarity["test"]) == {"fill_in_the_blank", "compatibility_auc"}
  index = json.loads((run / "index/finished.json").read_text())
  assert index["queries"] == 20
  attributes = json.loads((run / "attributes/finished.json").read_text())
  assert set(attributes["test"]) == {"mean_average_precision", "pointing_game", "mass_inside"}
  assert all(0 < v < 1 for v in attributes["test_chance"].values())
  concepts = json.loads((run / "concepts/finished.json").read_text())
  assert concepts["fitted"] > 0
  assert "no image has it" in concepts["neutral"].values()
  phi = json.loads((run / "ranking/finished.json").read_text())["phi"]
  assert all(abs(sum(weights) - 1) < 1e-9 for weights in phi.values())


def test_the_tables_are_written_in_three_formats(whole):
  folder = whole / "runs/synthetic/evaluation"
  titles = json.loads((folder / "finished.json").read_text())["tables"]
  assert titles == [
    "Attribute insertion and deletion", "What attribute insertion and deletion could be",
    "Agreement with the true reason",
    "Saliency maps on the true pixels", "Attribute recognition",
    "Saliency insertion and deletion", "Sanity checks",
  ]  # fmt: skip
  for title in titles:
    stem = title.lower().replace(" ", "_")
    for suffix in (".md", ".csv", ".tex"):
      assert (folder / f"{stem}{suffix}").stat().st_size > 100
  sanity = (folder / "sanity_checks.csv").read_text().splitlines()
  same = next(line for line in sanity if line.startswith('"nothing, measured again'))
  assert ",1.0" in same or ",1," in same or "0.99" in same


def test_the_page_explains_pairs_and_goes_on_to_the_tables(whole):
  folder = whole / "runs/synthetic/explain"
  document = json.loads((folder / "explanations.json").read_text())
  assert len(document["explanations"]) == 3
  assert not document["failures"]
  page = (folder / "index.html").read_text()
  for e in document["explanations"]:
    assert len({a["name"] for a in e["attributes"]}) == 10
    totals = [a["total"] for a in e["attributes"]]
    assert totals == sorted(totals, reverse=True)
    for a in e["attributes"]:
      assert abs(sum(a["shares"].values()) - a["total"]) < 1e-5
    assert 0 <= e["unexplained"] <= 1
    assert e["attributes"][0]["name"] in e["sentence"]
    assert f"{e['id']}.png" in {path.name for path in folder.iterdir()}
  assert page.index("Explained by") < page.index("Attribute insertion and deletion")


def served(monkeypatch, *fields):
  """What the job `serve` serves there: a function from a path to what the API answers."""
  apps = []
  monkeypatch.setattr(serve.server, "run", lambda app, *args, **options: apps.append(app))
  serve.run(configured("synthetic", (*SMALL, *fields)))
  client = TestClient(apps[0], base_url="http://127.0.0.1")
  return lambda path: client.get(path).raise_for_status().json()


def test_the_viewer_serves_a_split_and_says_where_there_is_no_map(whole, monkeypatch):
  """An index of the pairs' own spaces has maps of some matches; one of every type, of all."""
  run = whole / "runs/synthetic"
  ours = f"index.model={run / 'similarity/model.safetensors'}"
  code, out = command(
    whole, "--config.workdir=every", f"--config.{ours}", "--config.index.every_type=True",
    "--config.job=build_index",
  )  # fmt: skip
  assert code == 0, out
  few, every = (ExplanationIndex(folder / "index_test") for folder in (run, whole / "every"))
  passes = [
    json.loads((f / "index_test/finished.json").read_text())["passes_of_this_run"]
    for f in (run, whole / "every")
  ]
  assert passes[0] == passes[1]
  monkeypatch.chdir(whole)
  for index, folder in ((few, "runs/synthetic"), (every, "every")):
    ask = served(monkeypatch, f"workdir={folder}", ours)
    assert ask("/api/status")["no_uploads"].endswith("measured by its job.")
    images = ask("/api/images?count=500")["images"]
    parts = [i["name"].split(" · ") for i in images]  # title, type, id
    assert all(len(part) == 3 for part in parts)
    assert ask(f"/api/images?search={parts[0][1].upper()}%20")["total"] == sum(
      part[1] == parts[0][1] for part in parts
    )
    for image, part in zip(images, parts, strict=True):
      image["name"] = part[2]
    assert sorted(i["name"] for i in images) == sorted(index.ids)
    mapped = [i["name"] for i in images if i["mapped"]]
    assert mapped == [name for name in index.ids if index.has_effects(name)]
    assert 0 < len(mapped) < len(images)
    assert mapped == [i["name"] for i in images[: len(mapped)]]  # first
    assert ask("/api/status")["mapped"] == len(mapped)
    assert all(ask("/api/images/random")["mapped"] for _ in range(5))
    other = images[-1]["key"]
    told = ask(f"/api/pair?query={other}&reference={images[0]['key']}")["missing"][0]["why"]
    assert f"measured {len(mapped)} of its {len(images)} images, and not this one" in told
    some = [(q, r) for q in index.ids if index.has_effects(q) for r in index.nearest(q, 4)][:40]
    with_maps = 0
    for query, reference in some:
      found = ask(f"/api/pair?query={key_of(query)}&reference={key_of(reference)}")
      score = index.scores(query, [reference])[0]
      assert found["score"] == pytest.approx(score, abs=1e-6)
      if found["query_map"] is None:
        told = next(m["why"] for m in found["missing"] if m["key"] == key_of(query))
        assert "every_type" in told
      else:
        with_maps += 1
        values = np.reshape(found["query_map"]["values"], index.grid)
        np.testing.assert_allclose(values, index.maps(query, [reference])[0], atol=1e-6)
    assert with_maps == sum(index.has_effects(q, r) for q, r in some)
    assert (with_maps == len(some)) == (index is every)


KILLS = int(os.environ.get("SANE_JAX_KILLS", 1))


@pytest.mark.timeout(300 + 30 * (KILLS - 1))
def test_killed_it_ends_the_same(whole, tmp_path):
  """All jobs in another folder, killed at random moments: the same models to the last bit, and
  the same answers to 1e-6."""
  moments = np.random.default_rng()  # other moments in each run
  kills = 0
  while kills < KILLS:
    child = subprocess.Popen(
      many.command("synthetic", SMALL), cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
      assert child.wait(timeout=moments.uniform(6, 20 if KILLS == 1 else 12)) == 0
      break  # a machine so fast that it is done
    except subprocess.TimeoutExpired:
      child.kill()
      child.wait()
      kills += 1
  assert kills > 0
  code, out = command(tmp_path)
  assert code == 0, out
  one, two = whole / "runs/synthetic", tmp_path / "runs/synthetic"
  for path in (
    "similarity/finished.json", "index/finished.json", "attributes/finished.json",
    "concepts/finished.json", "ranking/finished.json", "evaluation/tables.json",
    "explain/explanations.json",
  ):  # fmt: skip
    assert_close(*(json.loads((folder / path).read_text()) for folder in (one, two)), path)
  for path in ("similarity/model.safetensors", "attributes/model.safetensors"):
    assert (one / path).read_bytes() == (two / path).read_bytes(), path
  for part in ("similarity", "attributes"):
    assert loop.read_metrics(one / part) == loop.read_metrics(two / part)


TAKEN = ("seconds", "images_per_second", "passes_of_this_run")  # what a run took, not what it found


def assert_close(one, two, where):
  """Equal, and numbers to 1e-6."""
  assert type(one) is type(two), where
  if isinstance(one, dict):
    assert one.keys() == two.keys(), where
    for key in one.keys() - TAKEN:
      assert_close(one[key], two[key], f"{where}: {key}")
  elif isinstance(one, list):
    assert len(one) == len(two), where
    for a, b in zip(one, two, strict=True):
      assert_close(a, b, where)
  elif isinstance(one, float):
    assert one == pytest.approx(two, abs=1e-6, nan_ok=True), where
  else:
    assert one == two, where


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    (("job=tune_ranking", "ranking.phi=(0.5,0.6,0,0)"), "phi has 4 weights"),
    (("job=tune_ranking", "ranking.calibration=ranks"), "normal_scores or none"),
    (("job=tune_ranking", "ranking.attributes=none"), "run --config.job=train_attributes first"),
    (("job=evaluate", "ranking.folder=none"), "run --config.job=tune_ranking first"),
    (("job=explain_matches", "ranking.folder=none"), "run --config.job=tune_ranking first"),
    (("job=explain_matches", "explain_matches.num_pairs=0"), "num_pairs is 1 or more"),
    (("job=fit_concepts", "workdir=elsewhere"), "run --config.job=build_index first"),
    (
      ("job=evaluate", "evaluation.folder=e2", "evaluation.layers=('head',)"),
      "no layer 'head'; it has",
    ),
    (("job=tune_ranking", "seed=5"), "holds a run with other settings|other settings"),
  ],
)
def test_what_does_not_fit_is_named(whole, monkeypatch, fields, words):
  monkeypatch.chdir(whole)
  config = configured("synthetic", (*SMALL, *fields))
  with pytest.raises((ValueError, OSError), match=words):
    importlib.import_module(f"sane_jax.jobs.{config.job}").run(config)


def configured(name, fields):
  """A config with fields set as on the command line."""
  config = runpy.run_path(str(ROOT / f"configs/{name}.py"))["get_config"]()
  for field in fields:
    path, _, text = field.partition("=")
    *sections, last = path.split(".")
    holder = config
    for section in sections:
      holder = holder[section]
    try:
      holder[last] = ast.literal_eval(text)
    except (ValueError, SyntaxError):
      holder[last] = text
  return config


def test_the_study_runs_on_the_evaluation(whole, monkeypatch):
  monkeypatch.chdir(whole)
  fields = (
    "study.num_items=48", "study.num_exported=6", "study.num_subjects=4", "study.image_size=64",
    "study.min_gap=0.1", "study.exchanges=3",
  )  # fmt: skip
  try:
    simulate_study.run(configured("synthetic", (*SMALL, *fields)))
  except ValueError as error:  # so few pairs may be too few; then it says so
    assert "pairs" in str(error)  # noqa: PT017


def test_a_second_run_finds_it_all_done(whole):
  code, out = command(whole)
  assert code == 0, out
  assert out.count("up to date") == 9


def test_what_was_trained_can_be_explained(whole):
  """A trained file is a model as any other, in the space of two types."""
  import sane_jax

  run = whole / "runs/synthetic"
  model = sane_jax.load_model(str(run / "similarity/model.safetensors"), condition="tops,shoes")
  photos = sorted((run / "drawn/polyvore_outfits/images").glob("*.jpg"))[:2]
  e = sane_jax.Explainer(model, design="hadamard", num_masks=128, fill="white").explain(*photos)
  assert -1 <= e.score <= 1
  assert e.saliency_map.shape == (32, 32)
  with pytest.raises(ValueError, match="give the explainer some"):
    _ = e.attributes
  attributes = sane_jax.load_attributes(run, condition="tops,shoes")
  explainer = sane_jax.Explainer(model, design="hadamard", num_masks=128, attributes=attributes)
  e = explainer.explain(*photos)
  assert e.attributes[0].total >= e.attributes[1].total
  assert e.attributes[0].map.shape == (32, 32)
  assert e.attribute_margin == pytest.approx(e.attributes[0].total - e.attributes[1].total)
  assert e.attributes[0].name in e.sentence
  assert e.record()["attributes"][0]["name"] == e.attributes[0].name
  with pytest.raises(ValueError, match="tune_ranking first"):
    sane_jax.load_attributes(run / "nowhere")


@pytest.mark.parametrize(
  ("config", "fields", "words"),
  [
    ("polyvore", ("data.folder=nowhere",), "fashion-compatibility"),
    ("awa2", ("data.folder=nowhere",), "AwA2"),
    ("polyvore", ("data.name=polyvore",), "data.name is polyvore_outfits or awa2; given 'polyv"),
    (
      "polyvore",
      ("job=convert_weights", "convert.source=none.pth", "convert.target=x.safetensors"),
      "none.pth",
    ),
  ],
)
def test_what_is_missing_is_named(tmp_path, monkeypatch, config, fields, words):
  """`main` makes a sentence of it: tests/test_main.py."""
  monkeypatch.chdir(tmp_path)
  settings = configured(config, fields)
  job = importlib.import_module(
    f"sane_jax.jobs.{settings.jobs[0] if settings.job == 'all' else settings.job}"
  )
  with pytest.raises((ValueError, OSError), match=words):
    job.run(settings)


def test_attributes_are_discovered_and_explain(whole):
  fields = (*SMALL, "discovery.num_clusters=(2,3,4)", "discovery.folder=found")
  code, out = command(whole, fields=(*fields, "job=discover_attributes"))
  assert code == 0, out
  folder = whole / "runs/synthetic/found"
  clusters = json.loads((folder / "clusters.json").read_text())
  assert 2 <= len(clusters) <= 4
  assert (folder / "clusters.png").stat().st_size > 1000
  others = (
    "data.attributes_from=runs/synthetic/found", "attributes.folder=a2", "concepts.folder=c2",
    "ranking.folder=r2", "ranking.attributes=a2", "ranking.concepts=c2",
    "explain_matches.folder=x2", "attributes.truth=",
    "jobs=('train_attributes','fit_concepts','tune_ranking','explain_matches')",
  )  # fmt: skip
  code, out = command(whole, fields=(*fields, *others))
  assert code == 0, out
  document = json.loads((whole / "runs/synthetic/x2/explanations.json").read_text())
  names = {a["name"] for e in document["explanations"] for a in e["attributes"]}
  assert names == {c["name"] for c in clusters}


def small_awa2(folder):
  """Photos in AwA2's layout: classes are a colour and a corner, predicates tell which."""
  import tiny_data

  rng = np.random.default_rng(0)
  root = folder / "data/Animals_with_Attributes2"
  classes = [f"colour{c}+corner{k}" for c in range(4) for k in range(4)]
  for index, name in enumerate(classes):
    (root / "JPEGImages" / name).mkdir(parents=True)
    for i in range(9):
      photo = root / f"JPEGImages/{name}/{name}_{10001 + i}.jpg"
      photo.write_bytes(tiny_data.picture(index // 4, index % 4, rng))
  matrix = [[*(c == k // 4 for c in range(4)), *(c == k % 4 for c in range(4))] for k in range(16)]
  predicates = [*(f"colour{c}" for c in range(4)), *(f"corner{k}" for k in range(4))]
  for file, names in (("classes.txt", classes), ("predicates.txt", predicates)):
    (root / file).write_text("".join(f"{n:6d}\t{name}\n" for n, name in enumerate(names, 1)))
  lines = [" ".join(str(int(v)) for v in row) for row in matrix]
  (root / "predicate-matrix-binary.txt").write_text("\n".join(lines) + "\n")
  test = [classes[i] for i in (0, 5, 10, 15)]
  (root / "testclasses.txt").write_text("\n".join(test) + "\n")
  train = [name for name in classes if name not in test]
  (root / "trainclasses.txt").write_text("\n".join(train) + "\n")
  return folder


@pytest.mark.full
def test_awa2_from_end_to_end(tmp_path):
  """configs/awa2.py, all jobs, on photos in the data set's own format."""
  small_awa2(tmp_path)
  network = tuple(
    f"{section}.{field}"
    for section in ("similarity", "attributes")
    for field in ("stage_sizes=(1,1,1)", "block=basic", "width=8", "stem=small", "image_size=32")
  )
  fields = (
    *(f for f in SMALL if not f.startswith(("outfits.", "evaluation.layers"))), *network,
    "similarity.groups_per_batch=4", "index.design=hadamard",
    "index.num_masks=128", "num_threads=2", "similarity.learning_rate=2e-3",
  )  # fmt: skip
  code, out = command(tmp_path, config="awa2", fields=fields)
  assert code == 0, out
  run = tmp_path / "runs/awa2"
  titles = json.loads((run / "evaluation/finished.json").read_text())["tables"]
  assert "Attribute insertion and deletion" in titles
  assert "Agreement with the true reason" not in titles  # nobody knows it
  similarity = json.loads((run / "similarity/finished.json").read_text())
  assert set(similarity["test"]) >= {"same_class_auc", "recall_at_1"}
  document = json.loads((run / "explain/explanations.json").read_text())
  assert len(document["explanations"]) == 3
  assert {a["name"] for a in document["explanations"][0]["attributes"]} == {
    *(f"colour{c}" for c in range(4)), *(f"corner{k}" for k in range(4)),
  }  # fmt: skip


@pytest.mark.full
def test_polyvore_from_end_to_end(whole):
  """configs/polyvore.py on the same drawn outfits, which are in its format."""
  network = tuple(
    f"{section}.{field}"
    for section in ("similarity", "attributes")
    for field in ("stage_sizes=(1,1,1)", "block=basic", "width=8", "stem=small", "image_size=32")
  )
  fields = (
    *(f for f in SMALL if not f.startswith("outfits.")), *network, "index.design=hadamard",
    "index.num_masks=128", "num_threads=2", "data.folder=runs/synthetic/drawn",
    "data.prepared=runs/synthetic/prepared",
  )  # fmt: skip
  code, out = command(whole, config="polyvore", fields=fields)
  assert code == 0, out
  assert (whole / "runs/polyvore/explain/index.html").exists()
