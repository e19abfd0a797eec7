"""The job on tiny data: what it writes, what it skips, and that nothing shown tells the answers."""

import csv
import io
import json
import pathlib
from unittest import mock

import ml_collections
import numpy as np
import pytest
import tiny_data
from PIL import Image

from sane_jax import forward_simulation, simulate_study
from sane_jax.datasets import collection as collection_lib
from sane_jax.datasets import load
from sane_jax.forward_simulation import CONDITIONS

WAYS = ("random", "predicted", "sane")


def make_config(workdir, **fields):
  study = {
    "folder": "study", "key": 0, "num_items": 120, "min_gap": 0.3, "exchanges": 1,
    "num_exported": 10, "num_subjects": 5, "image_size": 64,
  }  # fmt: skip
  assert not set(fields) - set(study)
  return ml_collections.ConfigDict(
    {
      "workdir": str(workdir),
      "data": {"name": "tiny", "folder": "", "prepared": ""},
      "evaluation": {"folder": "evaluation"},
      "study": {**study, **fields},
    }
  )


def write_material(workdir, test, **fields):
  """What evaluate leaves: scores of how near the colours are, explanations of noise."""
  rng = np.random.default_rng(0)
  pairs = collection_lib.draw_pairs(test, limit=150, seed=0)
  count = len(pairs)
  colour = np.array([attributes[0] for attributes in test.attributes])
  queries, references, labels = np.array(pairs).T
  arrays = {
    "query_rows": queries,
    "reference_rows": references,
    "labels": labels,
    "scores": 1.0 * (colour[queries] == colour[references]) + 0.3 * rng.normal(size=count),
    "saliency": rng.normal(size=(count, 8, 8)).astype(np.float32),
    "attribute_names": np.array(test.attribute_names),
    **{f"attribute_{way}": rng.integers(8, size=count) for way in WAYS},
    **{f"activation_{way}": rng.random((count, 4, 4)).astype(np.float16) for way in WAYS},
  }
  folder = pathlib.Path(workdir) / "evaluation"
  folder.mkdir(exist_ok=True)
  arrays = {k: v for k, v in {**arrays, **fields}.items() if v is not None}
  np.savez(folder / "material.npz", **arrays)
  (folder / "finished.json").write_text("{}")
  return arrays


@pytest.fixture(scope="module")
def test_split():
  return tiny_data.collection("test", groups=90)


def run(config, split):
  with mock.patch.object(load, "load_split", return_value=split):
    simulate_study.run(config)


@pytest.fixture(scope="module")
def study(tmp_path_factory, test_split):
  """A run, one of whose images can't be read."""
  workdir = tmp_path_factory.mktemp("study")
  arrays = write_material(workdir, test_split)
  broken = list(test_split.images)
  broken[arrays["query_rows"][0]] = b"no image"
  split = test_split._replace(images=tuple(broken))
  run(make_config(workdir), split)
  return workdir, split, arrays


def rows_of(path):
  return list(csv.DictReader(io.StringIO(path.read_text())))


# --- the job --------------------------------------------------------------------------------------


def test_results_are_written_and_called_a_proxy(study):
  workdir, split, arrays = study
  folder = workdir / "study"
  record = json.loads((folder / "simulation.json").read_text())
  assert record["proxy"] is True
  assert record["left"] == pytest.approx(0.5, abs=0.01)
  assert list(record["conditions"]) == list(CONDITIONS)
  assert record["min_gap"] == pytest.approx(0.3 * arrays["scores"].std(), rel=0.1)
  nothing = record["conditions"]["nothing"]
  # Colours decide, and everybody sees them.
  assert nothing["accuracy"]["low"] > 0.6
  assert nothing["accuracy"]["low"] <= nothing["accuracy"]["value"] <= nothing["accuracy"]["high"]
  assert set(record["conditions"]["sane"]["gain"]) == set(CONDITIONS) - {"sane"}
  broken = split.ids[arrays["query_rows"][0]]
  assert [line.split(":")[0] for line in record["left_out"]] == [broken]
  for name in ("table.md", "table.tex"):
    text = (folder / name).read_text()
    assert "PROXY" in text
    assert "SANE attribute" in text
  table = rows_of(folder / "table.csv")
  assert [row["shown"] for row in table] == [c.title for c in CONDITIONS.values()]
  assert float(table[0]["right, % ↑"]) == pytest.approx(100 * nothing["accuracy"]["value"])


def test_what_is_exported_is_what_the_split_holds(study):
  """Rows, scores and answers still belong together after all that was left out."""
  workdir, split, arrays = study
  scores = {
    (split.ids[q], split.ids[r]): score
    for q, r, score in zip(
      arrays["query_rows"], arrays["reference_rows"], arrays["scores"], strict=True
    )
  }
  rows = rows_of(workdir / "study" / "export" / "key" / "answers.csv")
  assert len(rows) == 10
  for row in rows:
    a, b = (scores[row[f"query_{side}"], row[f"reference_{side}"]] for side in "ab")
    assert (float(row["score_a"]), float(row["score_b"])) == pytest.approx((a, b), rel=1e-4)
    assert row["answer"] == ("A" if a > b else "B")
  assert [row["answer"] for row in rows].count("A") == 5


def test_pairs_with_an_image_that_can_not_be_read_are_left_out(study):
  _, split, arrays = study
  material, rows, kept, broken = simulate_study.load_images(arrays, split, 32)
  bad = arrays["query_rows"][0]
  touched = (arrays["query_rows"] == bad) | (arrays["reference_rows"] == bad)
  assert touched.any()
  np.testing.assert_array_equal(kept, np.flatnonzero(~touched))
  assert len(broken) == 1
  assert material.images.any(axis=(1, 2, 3)).all()
  assert len(rows) == len(material.images)
  np.testing.assert_array_equal(rows[material.queries], arrays["query_rows"][kept])
  np.testing.assert_array_equal(rows[material.references], arrays["reference_rows"][kept])
  np.testing.assert_array_equal(material.activations["sane"], arrays["activation_sane"][kept])


def test_a_second_run_finds_the_first(study, capsys):
  workdir, split, _ = study
  before = (workdir / "study" / "finished.json").stat().st_mtime_ns
  run(make_config(workdir), split)
  assert "up to date" in capsys.readouterr().out
  assert (workdir / "study" / "finished.json").stat().st_mtime_ns == before
  with pytest.raises(ValueError, match=r"study\.num_items is 120 there and 100 here"):
    run(make_config(workdir, num_items=100), split)


def test_an_interrupted_run_comes_to_the_same(study, tmp_path):
  workdir, split, _ = study
  write_material(tmp_path, split)
  config = make_config(tmp_path)
  with (
    mock.patch.object(simulate_study, "_png", side_effect=KeyboardInterrupt),
    pytest.raises(KeyboardInterrupt),
  ):
    run(config, split)
  assert not (tmp_path / "study" / "finished.json").exists()
  run(config, split)
  assert contents(tmp_path / "study" / "export") == contents(workdir / "study" / "export")
  first, second = (
    json.loads((w / "study" / "simulation.json").read_text()) for w in (workdir, tmp_path)
  )
  assert first["conditions"] == second["conditions"]


def test_a_missing_evaluation_names_the_next_command(tmp_path, test_split):
  with pytest.raises(ValueError, match=r"run --config\.job=evaluate first"):
    run(make_config(tmp_path), test_split)
  (tmp_path / "evaluation").mkdir()
  (tmp_path / "evaluation" / "finished.json").write_text("{}")
  with pytest.raises(ValueError, match=r"npz is missing; remove .* run --config\.job=evaluate"):
    run(make_config(tmp_path), test_split)
  (tmp_path / "evaluation" / "material.npz").write_bytes(b"cut short")
  with pytest.raises(ValueError, match="can't be read; remove"):
    run(make_config(tmp_path), test_split)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"attribute_sane": None}, "has no attribute_sane; remove"),
    ({"scores": np.zeros(3)}, "how many pairs there are: .*scores 3"),
    ({"attribute_names": np.array(["other"])}, "of other data than test"),
    ({"scores": np.zeros(0)}, "how many pairs"),
  ],
)  # fmt: skip
def test_material_that_does_not_do_is_named(tmp_path, test_split, fields, message):
  write_material(tmp_path, test_split, **fields)
  with pytest.raises(ValueError, match=message):
    run(make_config(tmp_path), test_split)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"num_exported": 1}, r"--config\.study\.num_exported is 2 or more; given 1"),
    ({"num_subjects": 0}, r"--config\.study\.num_subjects is 1 or more"),
    ({"image_size": 8}, r"--config\.study\.image_size is 48 or more"),
    ({"min_gap": 0.0}, r"--config\.study\.min_gap.* is above 0"),
    ({"min_gap": 50.0}, r"lower --config\.study\.min_gap"),
    ({"num_items": 2}, r"--config\.study\.num_items is 48 or more"),
  ],
)  # fmt: skip
def test_settings_that_do_not_do_are_named(tmp_path, test_split, fields, message):
  write_material(tmp_path, test_split)
  with pytest.raises(ValueError, match=message):
    run(make_config(tmp_path, **fields), test_split)


def test_too_few_pairs_and_no_gap_name_the_next_command(tmp_path, test_split):
  arrays = write_material(tmp_path, test_split)
  few = {k: v[:20] for k, v in arrays.items() if k != "attribute_names"}
  write_material(tmp_path, test_split, **few)
  with pytest.raises(ValueError, match=r"too few pairs: 20 pairs.*run --config\.job=evaluate"):
    run(make_config(tmp_path), test_split)
  write_material(tmp_path, test_split, scores=np.ones(len(arrays["scores"])))
  with pytest.raises(ValueError, match=r"no two of \d+ pairs have scores"):
    run(make_config(tmp_path), test_split)


# --- the material for people ----------------------------------------------------------------------


def contents(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


@pytest.fixture
def exported(rng, tmp_path):
  """Items of noise, and a function that exports them with other answers."""
  count, size = 24, 48
  material = forward_simulation.Material(
    images=rng.integers(0, 256, (2 * count, size, size, 3)).astype(np.uint8),
    queries=np.arange(count),
    references=count + np.arange(count),
    scores=rng.normal(size=count),
    saliency=rng.normal(size=(count, 8, 8)).astype(np.float32),
    attributes={way: rng.integers(3, size=count) for way in WAYS},
    activations={way: rng.random((count, 4, 4)).astype(np.float16) for way in WAYS},
    attribute_names=("red", "an attribute whose name goes on and on and on", "naïve $x_1$ 青"),
  )
  pairs = rng.permutation(count).reshape(-1, 2)
  answers = (material.scores[pairs[:, 1]] > material.scores[pairs[:, 0]]).astype(int)
  items = forward_simulation.Items(pairs, answers, answers * 0, answers * 0, 0.01)

  def export(name, material=material, items=items, **options):
    options = {"key": 3, "num_subjects": 10, **options}
    simulate_study.export_study(tmp_path / name, material, items, **options)
    return contents(tmp_path / name)

  return material, items, export


def test_nothing_that_is_shown_depends_on_the_answers(exported):
  material, items, export = exported
  first = export("first")
  second = export(
    "second",
    material._replace(scores=-5 * material.scores),
    items._replace(answers=1 - items.answers, halves=1 - items.halves, min_gap=7.0),
    image_names=[f"photo {n}" for n in range(len(material.images))],
  )
  assert [name for name in first if first[name] != second[name]] == ["key/answers.csv"]
  assert set(first) == set(second)
  assert len([name for name in first if name.startswith("items/")]) == 12 * 5


def test_names_and_orders_are_blind(exported, tmp_path):
  _, _, export = exported
  shown = {n: d for n, d in export("study").items() if not n.startswith("key/")}
  words = {*CONDITIONS, "answer,", "score"} - {"nothing", "map", "random"}
  for name, data in shown.items():
    if name == "README.md":
      continue
    assert not any(word in name for word in CONDITIONS)
    if name.endswith(".csv"):
      assert not any(word.encode() in data for word in words | set(CONDITIONS)), name
  names = [name.split("/")[1:] for name in shown if name.startswith("items/")]
  assert len({file for _, file in names}) == len(names)
  # Whether an item comes first by name says nothing of the order of the pairs that were given.
  order = [row["item"] for row in rows_of(tmp_path / "study" / "key" / "answers.csv")]
  assert order == sorted(order)
  listed = [(row["item"], row["file"]) for row in rows_of(tmp_path / "study" / "items.csv")]
  assert listed == sorted(listed)
  assert sorted(listed) == sorted(map(tuple, names))
  kinds = rows_of(tmp_path / "study" / "key" / "conditions.csv")
  places = {kind: [] for kind in CONDITIONS}
  files = {item: sorted(f for i, f in listed if i == item) for item, _ in listed}
  for row in kinds:
    places[row["condition"]].append(files[row["item"]].index(row["file"]))
  assert all(len(set(p)) > 1 for p in places.values())  # no condition has a place of its own


def test_pictures_are_of_one_size_and_bare(exported, tmp_path):
  _, _, export = exported
  export("study")
  sizes = set()
  for path in (tmp_path / "study" / "items").rglob("*.png"):
    with Image.open(path) as picture:
      picture.load()
      sizes.add((picture.size, picture.mode))
      assert not picture.info
      assert not picture.getexif()
  assert len(sizes) == 1


def test_the_key_is_right(exported, tmp_path):
  material, items, export = exported
  names = [f"photo {n}" for n in range(len(material.images))]
  export("study", image_names=names)
  rows = rows_of(tmp_path / "study" / "key" / "answers.csv")
  assert len(rows) == 12
  by_query = {names[material.queries[pair[0]]]: index for index, pair in enumerate(items.pairs)}
  order = [by_query[row["query_a"]] for row in rows]
  assert sorted(order) == list(range(12))
  assert order != sorted(order)
  for row, index in zip(rows, order, strict=True):
    a, b = items.pairs[index]
    assert row["reference_b"] == names[material.references[b]]
    assert row["answer"] == ("A" if float(row["score_a"]) > float(row["score_b"]) else "B")
    assert float(row["score_a"]) == pytest.approx(material.scores[a], rel=1e-4)
  # The picture of the condition 'nothing' shows the four images where they belong, and no more.
  row, index = rows[0], order[0]
  kinds = rows_of(tmp_path / "study" / "key" / "conditions.csv")
  pictures = {
    k["condition"]: np.asarray(Image.open(tmp_path / "study" / "items" / k["item"] / k["file"]))
    for k in kinds
    if k["item"] == row["item"]
  }
  plain = pictures["nothing"]
  left, top, size = 10, 32, 48
  np.testing.assert_array_equal(
    plain[top : top + size, left : left + size],
    material.images[material.queries[items.pairs[index, 0]]],
  )
  start = left + 2 * size + 10 + 3 * 10 + size + 10
  np.testing.assert_array_equal(
    plain[top : top + size, start : start + size],
    material.images[material.references[items.pairs[index, 1]]],
  )
  ink = {name: np.mean(picture[top + size :] < 250) for name, picture in pictures.items()}
  assert ink["nothing"] < 0.02 < ink["map"] < min(ink["random"], ink["sane"])
  assert len({p.tobytes() for p in pictures.values()}) >= 4


def test_subjects_take_turns(exported, tmp_path):
  _, _, export = exported
  export("study")
  kinds = {
    (row["item"], row["file"]): row["condition"]
    for row in rows_of(tmp_path / "study" / "key" / "conditions.csv")
  }
  seen, orders = [], set()
  for path in sorted((tmp_path / "study" / "assignments").glob("*.csv")):
    rows = rows_of(path)
    assert [row["place"] for row in rows] == [str(n) for n in range(1, 13)]
    assert len({row["item"] for row in rows}) == 12
    mine = [kinds[row["item"], row["file"]] for row in rows]
    assert {2, 3} == {mine.count(kind) for kind in CONDITIONS}
    orders.add(tuple(row["item"] for row in rows))
    seen += [(row["item"], kind) for row, kind in zip(rows, mine, strict=True)]
  assert len(orders) == 10
  assert {seen.count(each) for each in set(seen)} == {2}  # ten subjects, five conditions
  assert len(set(seen)) == 12 * 5


def test_the_same_key_makes_the_same_files(exported):
  _, _, export = exported
  first, again, other = export("first"), export("again"), export("other", key=4)
  assert first == again
  assert not set(first) & set(other) - {n for n in first if not n.startswith("items/")}


def test_export_draws_as_many_left_as_right(rng):
  scores = rng.normal(size=200)
  items = simulate_study.draw_export(
    0, np.arange(200), 200 + np.arange(200), scores, count=21, min_gap=0.2
  )
  assert len(items.answers) == 20
  assert items.answers.sum() == 10
  assert len(np.unique(items.pairs)) == 40  # no pair is shown twice
  assert set(items.halves) == {0, 1}


def test_names_are_cut_to_the_width_of_the_picture():
  font = mock.Mock(getlength=len)
  assert simulate_study._fitted("  red \n dress ", font, 20) == "red dress"
  assert simulate_study._fitted("an endless name", font, 8) == "an endl…"
