"""Attributes of photos from a table: good tables and bad, and what is learned from them."""

import json

import numpy as np
import pytest
from PIL import Image

import sane_jax
from sane_jax.attributes import table as attribute_table
from sane_jax.jobs import explain


def patch_means(_, images):
  """Colours of 8 x 8 patches. JAX."""
  b = images.shape[0]
  means = images.reshape(b, 8, 8, 8, 8, 3).mean((2, 4)).reshape(b, -1)
  return means - 0.5


NAMES = ("red", "striped")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """24 pictures: a block that is red or blue, with stripes in the lower half or without."""
  folder = tmp_path_factory.mktemp("photos")
  rng = np.random.default_rng(0)
  rows = []
  for n in range(24):
    red, striped = n % 2 == 0, n % 4 < 2
    pixels = np.full((64, 64, 3), 235.0)
    pixels[8:30, 8:56] = (200, 40, 40) if red else (40, 60, 200)
    if striped:
      pixels[36:60:6, 8:56], pixels[39:60:6, 8:56] = 20, 235
    else:
      pixels[36:60, 8:56] = 128
    pixels += rng.normal(0, 6, size=pixels.shape)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"p{n:02d}.png")
    rows.append((f"p{n:02d}.png", int(red), int(striped)))
  return folder, rows


def write(path, header, rows):
  path.write_text("\n".join(",".join(map(str, row)) for row in [header, *rows]) + "\n")
  return path


def test_a_table_is_read_with_its_problems(photos, tmp_path):
  folder, rows = photos
  path = write(
    tmp_path / "t.csv", ("file", *NAMES),
    [*rows, rows[0], ("none.png", 1, 0), ("p01.png", 1), ("p00.png", "maybe", 1), ("", "", "")],
  )  # fmt: skip
  table = attribute_table.read_table(path, folder)
  assert table.names == NAMES
  np.testing.assert_array_equal(table.labels, np.array([row[1:] for row in rows], bool))
  assert len(table.problems) == 4
  assert "line 26: p00.png has a row already" in table.problems[0]
  assert "line 27: there is no file" in table.problems[1]
  assert "line 28: 2 cells, the header has 3" in table.problems[2]


def test_words_and_a_byte_order_mark_are_read(photos, tmp_path):
  folder, _ = photos
  text = "\ufefffile, red ,striped\np00.png,Yes,no\n p01.png,FALSE,x\n"
  (tmp_path / "t.csv").write_text(text, encoding="utf-8")
  table = attribute_table.read_table(tmp_path / "t.csv", folder)
  assert table.names == NAMES
  np.testing.assert_array_equal(table.labels, [[True, False], [False, True]])


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("name,red\np00.png,1\n", "needs a column 'file'.*it has name, red"),
    ("file,red,red\np00.png,1,1\n", "the column 'red' twice"),
    ("file\np00.png\n", "no attribute"),
    ("file,,red\np00.png,1,1\n", "without a name"),
    ("file,red\nnone.png,1\n", "no row of .* can be used: t.csv, line 2: there is no file"),
    ("", "it has none"),
  ],
)
def test_a_table_that_cannot_be_used_says_why(photos, tmp_path, text, words):
  (tmp_path / "t.csv").write_text(text)
  with pytest.raises(ValueError, match=words):
    attribute_table.read_table(tmp_path / "t.csv", photos[0])
  with pytest.raises(ValueError, match="can't be read"):
    attribute_table.read_table(tmp_path / "missing.csv")


def test_the_head_is_scikit_learns_and_its_map_has_the_logit_as_mean():
  rng = np.random.default_rng(1)
  features = rng.normal(size=(80, 30)) * rng.uniform(0.1, 5, 30) + 3
  labels = np.stack([features[:, 3] > 3, features[:, 7] + features[:, 8] > 7], axis=1)
  head = attribute_table.fit_head(features, labels)
  logits = features @ head.weights.T + head.bias
  assert ((logits > 0) == labels).mean() > 0.9
  skills = attribute_table.skills(features, np.concatenate([labels, rng.random((80, 1)) < 0.4], 1))
  assert min(skills[:2]) > 0.7
  assert 0.25 < skills[2] < 0.75


def test_attributes_are_learned_and_explain(photos, tmp_path):
  folder, rows = photos
  path = write(
    tmp_path / "t.csv", ("file", *NAMES, "rare"), [(*row, int(row[0] == "p00.png")) for row in rows]
  )
  table = attribute_table.read_table(path, folder)
  explainer = sane_jax.Explainer(
    sane_jax.from_jax(patch_means, None, image_size=64, name="colours"), design="hadamard",
    num_masks=128, fill="white",
  )  # fmt: skip
  learned = attribute_table.learn(table, explainer, calibration_photos=3)
  assert learned.names == NAMES
  assert "rare: 1 photos have it and 23 do not; 3 of each are needed" in learned.left_out
  assert min(learned.skills) > 0.8
  explainer.ranker = learned.ranker
  e = explainer.explain(folder / "p00.png", folder / "p04.png")
  terms = {a.name: a.terms for a in e.attributes}
  assert terms["red"]["confidence"] > 0.5 < terms["striped"]["confidence"]
  blue = explainer.explain(folder / "p03.png", folder / "p07.png")
  assert {a.name: a.terms for a in blue.attributes}["red"]["confidence"] < 0.5
  top, bottom = (e.attributes[0].map[part].sum() for part in (slice(0, 32), slice(32, 64)))
  names = [a.name for a in e.attributes]
  red = next(a for a in e.attributes if a.name == "red").map
  assert red[:32].sum() > red[32:].sum(), (names, top, bottom)


def test_no_attribute_can_be_learned(photos, tmp_path):
  folder, rows = photos
  path = write(
    tmp_path / "t.csv", ("file", "one"), [(row[0], int(n == 0)) for n, row in enumerate(rows)]
  )
  table = attribute_table.read_table(path, folder)
  explainer = sane_jax.Explainer(
    sane_jax.from_jax(patch_means, None, image_size=64), design="rise", num_masks=10
  )
  with pytest.raises(ValueError, match="no attribute can be learned from 24 photos: one: 1 photos"):
    attribute_table.learn(table, explainer)
  with pytest.raises(ValueError, match="phi has 4 weights"):
    attribute_table.learn(table, explainer, phi=(1.0, 1.0, 0.0, 0.0))


def test_the_job_takes_a_table(photos, tmp_path, monkeypatch, capsys):
  import pathlib
  import runpy

  folder, rows = photos
  monkeypatch.chdir(tmp_path)
  path = write(tmp_path / "t.csv", ("file", *NAMES), [*rows, ("gone.png", 1, 1)])
  root = pathlib.Path(__file__).parents[1]
  config = runpy.run_path(str(root / "configs/photos.py"))["get_config"]()
  config.update(
    query=str(folder / "p00.png"), reference=str(folder / "p04.png"), attributes_file=str(path),
    attributes_folder=str(folder), image_size=64, num_masks=128, metrics=False,
  )  # fmt: skip
  explain.run(config)
  assert "2 attributes learned from 24 photos" in capsys.readouterr().out
  document = json.loads((tmp_path / "runs/photos/explain/explanations.json").read_text())
  (found,) = document["explanations"]
  assert {a["name"] for a in found["attributes"]} == set(NAMES)
  assert found["sentence"]
  assert any("gone.png" in failure["why"] for failure in document["failures"])
  assert "Explained by" in (tmp_path / "runs/photos/explain/index.html").read_text()
