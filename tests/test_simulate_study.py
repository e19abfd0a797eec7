"""The job on tiny data: what it writes, what it skips, and that nothing shown tells the answers."""

import csv
import hashlib
import io
import json
import pathlib
from unittest import mock

import ml_collections
import numpy as np
import pytest
import study_export
import tiny_data
from PIL import Image

from sane_jax.datasets import collection as collection_lib
from sane_jax.datasets import load
from sane_jax.jobs import simulate_study
from sane_jax.study import export as export_lib
from sane_jax.study.proxy import CONDITIONS

WAYS = ("random", "predicted", "sane")


def make_config(workdir, **fields):
  study = {
    "folder": "study", "seed": 0, "num_items": 120, "min_gap": 0.3, "exchanges": 1,
    "num_exported": 10, "num_practice": 3, "num_checks": 2, "num_subjects": 5, "image_size": 64,
  }  # fmt: skip
  assert not set(fields) - set(study)
  return ml_collections.ConfigDict(
    {
      "workdir": str(workdir),
      "data": {"name": "awa2", "folder": "", "prepared": ""},
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
  titles = [c.title for c in CONDITIONS.values()]
  assert [row["shown"] for row in table] == [*titles, "no image, the warmer map wins"]
  control = float(table[-1]["right, % ↑"])
  assert control == pytest.approx(100 * record["balance"]["value"])
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
  assert sorted(row["kind"] for row in rows) == ["check"] * 2 + ["item"] * 10 + ["practice"] * 3
  for row in rows:
    twice = [row[f"query_{side}"] == row[f"reference_{side}"] for side in "ab"]
    assert sum(twice) == (row["kind"] == "check")
    a, b = (
      1.0 if same else scores[row[f"query_{side}"], row[f"reference_{side}"]]
      for side, same in zip("ab", twice, strict=True)
    )
    assert (float(row["score_a"]), float(row["score_b"])) == pytest.approx((a, b), rel=1e-4)
    assert row["answer"] == ("A" if a > b else "B")
  assert [row["answer"] for row in rows if row["kind"] == "item"].count("A") == 5


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
    mock.patch.object(export_lib, "_png", side_effect=KeyboardInterrupt),
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
    ({"num_practice": -1}, r"--config\.study\.num_practice is 0 or more"),
    ({"num_checks": -1}, r"--config\.study\.num_checks is 0 or more"),
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
def exported(tmp_path):
  """Questions on noise, and a function that exports them with other answers."""
  material = study_export.make_material(41)
  questions = export_lib.Questions(
    items=study_export.make_items(material, np.random.default_rng(0).permutation(24)),
    practice=study_export.make_items(material, range(24, 34)),
    checks=np.arange(34, 40).reshape(-1, 2),
    check_answers=np.array([0, 1, 1]),
    example=40,
  )

  def export(name, material=material, questions=questions, **options):
    options = {"key": 3, "num_subjects": 10, **options}
    export_lib.export_study(tmp_path / name, material, questions, **options)
    return contents(tmp_path / name)

  return material, questions, export


def kinds_of(folder):
  return {row["item"]: row["kind"] for row in rows_of(folder / "items.csv")}


def test_nothing_that_is_shown_depends_on_the_answers(exported):
  material, questions, export = exported
  items = questions.items
  first = export("first")
  second = export(
    "second",
    material._replace(scores=-5 * material.scores),
    questions._replace(
      items=items._replace(answers=1 - items.answers, halves=1 - items.halves, min_gap=7.0)
    ),
    image_names=[f"photo {n}" for n in range(len(material.images))],
  )
  assert [name for name in first if first[name] != second[name]] == ["key/answers.csv"]
  assert set(first) == set(second)
  pictures = [name for name in first if name.startswith("items/")]
  assert len(pictures) == 2 * (12 * 5 + 5 * 5 + 3)


def test_of_the_answers_only_those_of_practice_lie_outside_the_key(exported, tmp_path):
  _, _, export = exported
  export("study")
  folder = tmp_path / "study"
  practice = rows_of(folder / "practice.csv")
  kinds = kinds_of(folder)
  assert {kinds[row["item"]] for row in practice} == {"practice"}
  assert len(practice) == 5
  right = {row["item"]: row["answer"] for row in rows_of(folder / "key" / "answers.csv")}
  assert all(right[row["item"]] == row["answer"] for row in practice)


def test_names_and_orders_are_blind(exported, tmp_path):
  _, _, export = exported
  shown = {n: d for n, d in export("study").items() if not n.startswith("key/")}
  words = {*CONDITIONS, "answer,", "score"} - {"nothing", "map", "random"}
  for name, data in shown.items():
    if name in ("README.md", "practice.csv"):
      continue
    assert not any(word in name for word in set(CONDITIONS) - {"map"})
    if name.endswith(".csv"):
      assert not any(word.encode() in data for word in words | {"random", "nothing"}), name
  names = [name.split("/")[1:] for name in shown if name.startswith("items/")]
  files = {(item, file[:-6]) for item, file in names}
  assert len({file for _, file in files}) == len(files)
  # Whether an item comes first by name says nothing of the order of the pairs that were given.
  order = [row["item"] for row in rows_of(tmp_path / "study" / "key" / "answers.csv")]
  assert order == sorted(order)
  listed = [(row["item"], row["file"]) for row in rows_of(tmp_path / "study" / "items.csv")]
  assert listed == sorted(listed)
  assert sorted(listed) == sorted(files)
  kinds = rows_of(tmp_path / "study" / "key" / "conditions.csv")
  assert sorted((row["item"], row["file"]) for row in kinds) == listed
  places = {kind: [] for kind in CONDITIONS}
  checks = {item for item, kind in kinds_of(tmp_path / "study").items() if kind == "check"}
  files = {item: sorted(f for i, f in listed if i == item) for item, _ in listed}
  for row in kinds:
    if row["item"] not in checks:
      places[row["condition"]].append(files[row["item"]].index(row["file"]))
  assert all(len(set(p)) > 1 for p in places.values())  # no condition has a place of its own


def test_a_letter_stands_for_a_condition(exported, tmp_path):
  _, _, export = exported
  mapped = []
  for key in range(4):
    export(f"study {key}", key=key)
    folder = tmp_path / f"study {key}"
    rows = {row["file"]: row for row in rows_of(folder / "items.csv")}
    letters = {}
    for row in rows_of(folder / "key" / "conditions.csv"):
      given = rows[row["file"]]
      if given["kind"] == "check":
        assert (given["group"], row["condition"]) == ("", "nothing")
      else:
        letters.setdefault(given["group"], set()).add(row["condition"])
      assert given["map"] == str(int(CONDITIONS[row["condition"]].map))
      assert bool(given["attribute_a"]) == bool(CONDITIONS[row["condition"]].attribute)
    assert len(letters) == 5
    assert all(len(conditions) == 1 for conditions in letters.values())
    mapped.append(tuple(next(iter(letters[letter])) for letter in sorted(letters)))
  assert len(set(mapped)) > 1  # the letter itself says nothing


def test_pictures_are_bare(exported, tmp_path):
  """Their size tells what the condition shows, as the picture does, and nothing more."""
  _, _, export = exported
  export("study")
  conditions = {
    row["file"]: CONDITIONS[row["condition"]]
    for row in rows_of(tmp_path / "study" / "key" / "conditions.csv")
  }
  for path in (tmp_path / "study" / "items").rglob("*.png"):
    with Image.open(path) as picture:
      picture.load()
      assert picture.size == (104, 104 if conditions[path.stem[:-2]].map else 48)
      assert picture.mode == "RGBA"
      assert not picture.info
      assert not picture.getexif()


def pictures_of(folder, item, file):
  return [np.asarray(Image.open(folder / "items" / item / f"{file}_{side}.png")) for side in "ab"]


def test_the_key_is_right(exported, tmp_path):
  material, questions, export = exported
  names = [f"photo {n}" for n in range(len(material.images))]
  export("study", image_names=names)
  folder = tmp_path / "study"
  answers = rows_of(folder / "key" / "answers.csv")
  rows = [row for row in answers if row["kind"] == "item"]
  assert len(rows) == 12
  items = questions.items
  by_query = {names[material.queries[pair[0]]]: index for index, pair in enumerate(items.pairs)}
  order = [by_query[row["query_a"]] for row in rows]
  assert sorted(order) == list(range(12))
  assert order != sorted(order)
  for row, index in zip(rows, order, strict=True):
    a, b = items.pairs[index]
    assert row["reference_b"] == names[material.references[b]]
    assert row["answer"] == ("A" if float(row["score_a"]) > float(row["score_b"]) else "B")
    assert float(row["score_a"]) == pytest.approx(material.scores[a], rel=1e-4)
  # The picture of the condition 'nothing' shows the two images where they belong, and no more.
  row, index = rows[0], order[0]
  of = {
    k["condition"]: k["file"]
    for k in rows_of(folder / "key" / "conditions.csv")
    if k["item"] == row["item"]
  }
  shown = {kind: pictures_of(folder, row["item"], file) for kind, file in of.items()}
  size, gap = 48, 8
  for kind, pictures in shown.items():
    for side, pair in enumerate(items.pairs[index]):
      above = pictures[side][:size]
      images = material.images[[material.queries[pair], material.references[pair]]]
      np.testing.assert_array_equal(above[:, :size, :3], images[0])
      np.testing.assert_array_equal(above[:, size + gap :, :3], images[1])
      assert not above[:, size : size + gap, 3].any()
      assert len(pictures[side]) == (2 * size + gap if CONDITIONS[kind].map else size)
      if CONDITIONS[kind].map:
        ink = pictures[side][size + gap :, :, 3].mean(axis=0) > 0
        assert ink[:size].all()
        assert ink[size + gap :].all() == bool(CONDITIONS[kind].attribute)
  assert len({pictures[0].tobytes() for pictures in shown.values()}) >= 4


def test_checks_show_an_image_twice(exported, tmp_path):
  _, _, export = exported
  export("study")
  folder = tmp_path / "study"
  files = {row["item"]: row["file"] for row in rows_of(folder / "key" / "conditions.csv")}
  checks = [r for r in rows_of(folder / "key" / "answers.csv") if r["kind"] == "check"]
  assert sorted(row["answer"] for row in checks) == ["A", "B", "B"]
  for row in checks:
    same = [
      np.array_equal(picture[:, :48], picture[:, 56:])
      for picture in pictures_of(folder, row["item"], files[row["item"]])
    ]
    assert same == [row["answer"] == "A", row["answer"] == "B"]


def test_what_belongs_together_has_one_fingerprint(exported, tmp_path):
  _, _, export = exported
  one, other = export("study"), export("other", key=4)
  assert one["fingerprint.json"] == one["key/fingerprint.json"]
  assert one["fingerprint.json"] != other["fingerprint.json"]
  mark = json.loads(one["fingerprint.json"])
  assert mark["items"] == hashlib.sha256(one["items.csv"]).hexdigest()


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
  assert not set(first) & set(other) & {n for n in first if n.startswith("items/")}


def draw(scores, **options):
  count = len(scores)
  options = {"count": 21, "min_gap": 0.2, **options}
  return export_lib.draw_export(0, np.arange(count), count + np.arange(count), scores, **options)


def test_export_draws_as_many_left_as_right(rng):
  items = draw(rng.normal(size=200)).items
  assert len(items.answers) == 20
  assert items.answers.sum() == 10
  assert len(np.unique(items.pairs)) == 40  # no pair is shown twice
  assert set(items.halves) == {0, 1}


def test_practice_and_the_example_are_of_other_pairs(rng):
  scores = rng.normal(size=300)
  drawn = draw(scores, num_practice=5, num_checks=3)
  assert len(drawn.practice.answers) == 5
  counted, practice = set(drawn.items.pairs.flat), set(drawn.practice.pairs.flat)
  assert not counted & practice
  assert drawn.example not in counted | practice
  higher = scores[drawn.practice.pairs].argmax(axis=1)
  np.testing.assert_array_equal(higher, drawn.practice.answers)
  assert drawn.checks.shape == (3, 2)
  assert scores[drawn.checks[:, 1]].max() <= np.quantile(scores, 0.25)
  assert sorted(drawn.check_answers) == [0, 0, 1]


def test_practice_shows_other_images_where_there_are_enough(rng):
  """Each image is of two pairs; a draw that did not look would meet some of them again."""
  count = 400
  queries = np.arange(count) // 2
  references = count + np.arange(count)
  scores = rng.normal(size=count)
  drawn = export_lib.draw_export(
    0, queries, references, scores, count=20, min_gap=0.2, num_practice=10
  )
  images = [set(queries[part.pairs].flat) for part in (drawn.items, drawn.practice)]
  assert not images[0] & images[1]


def test_pairs_are_found_again_in_a_smaller_material(rng):
  drawn = draw(rng.normal(size=300), num_practice=5, num_checks=3)
  used = np.unique(drawn.pairs())
  again = drawn.renumbered(used)
  np.testing.assert_array_equal(used[again.items.pairs], drawn.items.pairs)
  np.testing.assert_array_equal(used[again.practice.pairs], drawn.practice.pairs)
  np.testing.assert_array_equal(used[again.checks], drawn.checks)
  assert used[again.example] == drawn.example
