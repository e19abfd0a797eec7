"""Drawn outfits: the pictures are what the annotations say, and outfits match by their rules."""

import io
import itertools
import json
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats

from sane_jax.datasets import outfits_drawn, polyvore_outfits
from sane_jax.datasets.outfits_drawn import composition, garments, release, wardrobe

COUNTS = (24, 8, 12)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
  folder = tmp_path_factory.mktemp("drawn")
  assert outfits_drawn.draw_outfits(folder, num_outfits=COUNTS, seed=3, processes=1)
  return folder


def files(folder):
  return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def items(count, seed=0):
  rng = np.random.default_rng(seed)
  categories = composition.categories()
  return [composition.draw_item(rng, categories[i % len(categories)], None) for i in range(count)]


def test_the_vocabulary_is_large_and_of_the_real_names():
  names = release.attribute_names()
  assert len(names) == len(set(names)) == 205
  can = {n for kinds in wardrobe.KINDS.values() for kind in kinds
         for slot in wardrobe.options(kind).values() for n in slot if n}  # fmt: skip
  can |= set(wardrobe.COLOURS)
  assert can <= set(names)
  assert len(can) >= 60
  assert set(composition.categories()) == set(release.TYPES)
  marks = {n for style in composition.STYLES.values() for n in style[0]}
  assert marks <= can
  assert {c for style in composition.STYLES.values() for c in style[1]} <= set(wardrobe.COLOURS)


def one_of_each_option():
  """An item for each attribute of each kind; what else it has is random."""
  rng = np.random.default_rng(4)
  for category, kinds in wardrobe.KINDS.items():
    for kind in kinds:
      for slot, names in wardrobe.options(kind).items():
        for name in filter(None, names):
          item = None
          while item is None or item.kind != kind:
            item = composition.draw_item(rng, category, None)
          others = [a for a in item.attributes if a not in names and a not in item.colours]
          two = slot == "pattern" or any(a in wardrobe.options(kind)["pattern"] for a in others)
          colours = ("navy", "orange") if two else ("navy",)
          yield item._replace(attributes=(*colours, *others, name), colours=colours)


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.full)])
def test_every_attribute_has_pixels_on_the_garment(step):
  for item in itertools.islice(one_of_each_option(), 0, None, step):
    pixels, masks = garments.draw(item)
    assert pixels.shape == (300, 300, 3)
    assert pixels.dtype == np.uint8
    assert (pixels[:3] == 255).all()  # white around it
    assert set(masks) == set(item.attributes), item
    shown = (pixels < 250).any(axis=-1)
    near = ndimage.maximum_filter(shown, 13, mode="constant")
    for name, mask in masks.items():
      assert mask.sum() > 25, (item, name)
      assert (mask & near).sum() > 0.85 * mask.sum(), (item, name)


def test_colours_are_true_to_their_names():
  """The median pixel of a colour's mask is nearest to that colour of all."""
  table = np.array(list(wardrobe.COLOURS.values()), float)
  right, wrong = 0, 0
  for item in items(110, seed=1):
    if item.attributes and any(a in item.attributes for a in ("lace", "sequin", "mesh", "crochet")):
      continue  # cloth that white shines through
    pixels, masks = garments.draw(item)
    for colour in item.colours:
      found = np.median(pixels[masks[colour]].astype(float), axis=0)
      nearest = list(wardrobe.COLOURS)[np.argmin(np.linalg.norm(table - found, axis=1))]
      right, wrong = right + (nearest == colour), wrong + (nearest != colour)
  assert right > 0.9 * (right + wrong)


def test_two_colours_do_not_share_a_pixel():
  for item in items(60, seed=2):
    if len(item.colours) == 2:
      _, masks = garments.draw(item)
      assert not (masks[item.colours[0]] & masks[item.colours[1]]).any()


def test_a_picture_is_a_function_of_its_item():
  item = items(12)[7]
  first, again = garments.draw(item), garments.draw(item)
  np.testing.assert_array_equal(first[0], again[0])
  other, _ = garments.draw(item._replace(seed=item.seed + 1))
  assert (other != first[0]).any()


def test_processes_and_interruption_change_no_byte(drawn, tmp_path):
  outfits_drawn.draw_outfits(tmp_path, num_outfits=COUNTS, seed=3, processes=2)
  assert files(tmp_path) == files(drawn)
  for path in list((tmp_path / "polyvore_outfits/images").iterdir())[::2]:
    path.unlink()
  (tmp_path / "truth/settings.json").unlink()  # as if stopped before the end
  assert outfits_drawn.draw_outfits(tmp_path, num_outfits=COUNTS, seed=3, processes=1)
  assert files(tmp_path) == files(drawn)
  assert not outfits_drawn.draw_outfits(tmp_path, num_outfits=COUNTS, seed=3)
  with pytest.raises(ValueError, match="seed 3 there, 4 here"):
    outfits_drawn.draw_outfits(tmp_path, num_outfits=COUNTS, seed=4)


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
  """Whoever reads the output of the job sees its end: nothing of it is left."""
  script = (
    "from sane_jax.datasets import outfits_drawn\n"
    "if __name__ == '__main__':\n"
    "  show = lambda done, total: print('drawn', flush=True)\n"
    f"  outfits_drawn.draw_outfits({str(tmp_path / 'set')!r}, num_outfits=(600, 4, 4), seed=3,"
    " processes=2, on_progress=show)\n"
  )
  (tmp_path / "draw.py").write_text(script)
  root = pathlib.Path(__file__).parents[2]
  child = subprocess.Popen(
    [sys.executable, str(tmp_path / "draw.py")], stdout=subprocess.PIPE, text=True,
    env={**os.environ, "PYTHONPATH": str(root)},
  )  # fmt: skip
  assert child.stdout.readline() == "drawn\n"
  child.kill()
  child.communicate(timeout=30)  # as long as a worker lives its output is open


def test_other_seeds_draw_other_outfits(drawn):
  assert release.compose(COUNTS, 3).items != release.compose(COUNTS, 4).items


@pytest.mark.parametrize(
  "fields",
  [{"num_outfits": (9, 9)}, {"num_outfits": (0, 9, 9)}, {"seed": -1}, {"missing": 1.0}],
)
def test_bad_arguments_are_refused(tmp_path, fields):
  with pytest.raises(ValueError, match="three numbers"):
    outfits_drawn.draw_outfits(tmp_path, **{"num_outfits": COUNTS, **fields})


def test_the_files_have_the_published_format(drawn):
  root = drawn / "polyvore_outfits"
  metadata = json.loads((root / "polyvore_item_metadata.json").read_text())
  record = next(iter(metadata.values()))
  assert list(record) == [
    "url_name", "description", "catgeories", "title", "related", "category_id",
    "semantic_category",
  ]  # fmt: skip
  assert any(r["title"] == "" and r["catgeories"] == "" for r in metadata.values())
  spaces = pickle.loads((root / "nondisjoint/typespaces.p").read_bytes())
  assert len(spaces) == 66
  assert len({frozenset(s) for s in spaces}) == 66
  assert all(isinstance(s, tuple) and len(s) == 2 for s in spaces)
  for setting in ("nondisjoint", "disjoint"):
    seen = {}
    for split in ("train", "valid", "test"):
      outfits = json.loads((root / setting / f"{split}.json").read_text())
      tokens = {}
      for outfit in outfits:
        assert list(outfit) == ["items", "set_id"]
        assert [i["index"] for i in outfit["items"]] == list(range(1, len(outfit["items"]) + 1))
        assert 2 <= len(outfit["items"]) <= 8
        for i in outfit["items"]:
          tokens[f"{outfit['set_id']}_{i['index']}"] = i["item_id"]
          assert (root / "images" / f"{i['item_id']}.jpg").exists()
      lines = (root / setting / f"compatibility_{split}.txt").read_text().splitlines()
      labels = [line.split()[0] for line in lines]
      assert labels == sorted(labels, reverse=True)  # positives first
      assert [line.split()[1].split("_")[0] for line in lines[: len(outfits)]] == [
        o["set_id"] for o in outfits
      ]
      assert all(token in tokens for line in lines for token in line.split()[1:])
      for question in json.loads((root / setting / f"fill_in_blank_{split}.json").read_text()):
        own = question["question"][0].split("_")[0]
        right = [a for a in question["answers"] if a.split("_")[0] == own]
        assert right == [f"{own}_{question['blank_position']}"]
        kinds = {metadata[tokens[a]]["semantic_category"] for a in question["answers"]}
        assert len(kinds) == 1
        assert len({tokens[a] for a in question["answers"]}) == 4
      seen[split] = set(tokens.values())
    if setting == "disjoint":
      assert not seen["train"] & seen["test"]
      assert not seen["train"] & seen["valid"]
    else:
      assert seen["train"] & seen["test"]


@pytest.fixture(scope="module")
def test_split(drawn, tmp_path_factory):
  return polyvore_outfits.load(
    "test", manual_dir=drawn, prepared_dir=tmp_path_factory.mktemp("prepared")
  )


def test_the_real_reader_reads_it_whole(drawn, test_split):
  assert test_split.left_out == ()
  assert len(test_split.groups) == COUNTS[2]
  assert test_split.num_conditions == 66
  assert len(test_split.questions) >= COUNTS[2] / 2  # where there are three of a type to be wrong
  assert len(test_split.pairs) > COUNTS[2]
  with Image.open(io.BytesIO(test_split.images[0])) as image:
    assert (image.size, image.mode, image.format) == ((300, 300), "RGB", "JPEG")
  sizes = [len(test_split.images[i]) for i in range(len(test_split.ids))]
  assert 3000 < np.mean(sizes) < 20_000
  known = [len(a) for a in test_split.attributes]
  full = json.loads((drawn / "truth/attributes.json").read_text())
  assert sum(known) < 0.8 * sum(len(full[i]) for i in test_split.ids)
  for name, found in zip(test_split.ids, test_split.attributes, strict=True):
    assert set(found) <= set(full[name])
    assert set(outfits_drawn.read_truth(drawn / "truth", name)) == set(full[name])


def test_rules_hold_in_outfits_and_seldom_elsewhere():
  made = release.compose((400, 50, 50), 0)
  rng = np.random.default_rng(0)
  outfits = made.outfits["train"]
  obeyed, by_chance = [], []
  for outfit in outfits:
    obeyed.append(all(composition.obeys(made.items[i], outfit.rule) for i in outfit.items))
    others = [outfits[rng.integers(len(outfits))] for _ in outfit.items]
    mixed = [made.items[o.items[rng.integers(len(o.items))]] for o in others]
    by_chance.append(all(composition.obeys(i, outfit.rule) for i in mixed))
  assert all(obeyed)
  assert np.mean(by_chance) < 0.1
  assert {o.rule.kind for o in outfits} == set(composition.RULES)
  worn = [i for o in outfits for i in o.items]
  assert len(set(worn)) < 0.9 * len(worn)  # some items are in several outfits


def test_an_oracle_of_attributes_tells_outfits_from_mixtures():
  """Shared attributes of the items tell outfits from items of other outfits: it can be learned."""
  made = release.compose((300, 50, 50), 1)
  outfits = made.outfits["train"]
  rng = np.random.default_rng(0)

  def shared(indices):
    sets = [set(made.items[i].attributes) for i in indices]
    return np.mean([len(a & b) for k, a in enumerate(sets) for b in sets[k + 1 :]])

  def like(index):
    """A random item of the same category, as in the compatibility tests."""
    category = composition.category_of(made.items[index].kind)
    return rng.choice(by_category[category])

  by_category = {}
  for i, item in enumerate(made.items):
    by_category.setdefault(composition.category_of(item.kind), []).append(i)
  own = [shared(o.items) for o in outfits]
  mixed = [shared([like(i) for i in o.items]) for o in outfits]
  auc = stats.mannwhitneyu(own, mixed).statistic / (len(own) * len(mixed))
  assert auc > 0.85


def test_truth_of_an_unknown_item(drawn):
  with pytest.raises(ValueError, match="no pixel masks of item 7"):
    outfits_drawn.read_truth(drawn / "truth", "7")


def test_pairs_that_do_not_match_are_worn_together_nowhere():
  """Items are worn more than once: not in this outfit is not yet in none."""
  made = release.compose((60, 8, 200), 5)
  outfits = made.outfits["test"]
  worn = [{release.item_id(i) for i in outfit.items} for outfit in outfits]
  lines = [line.split() for line in release._pairs(outfits, np.random.default_rng(0)).splitlines()]
  assert {label for _, _, label in lines} == {"0", "1"}
  for a, b, label in lines:
    assert a != b
    assert any({a, b} <= items for items in worn) == (label == "1")


def test_nothing_but_the_truth_tells_that_or_why(drawn):
  root = drawn / "polyvore_outfits"
  titles = json.loads((root / "polyvore_outfit_titles.json").read_text())
  told = (root / "polyvore_item_metadata.json").read_text() + json.dumps(titles)
  assert "drawn" not in told
  assert not [t for t in titles.values() if set(t["url_name"].split()) & set(composition.RULES)]


def test_garments_lie_inside_the_picture():
  for item in items(330, seed=6):
    pixels, _ = garments.draw(item)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (edge == 255).all(), item


@pytest.mark.parametrize(
  ("kind", "names"),
  [
    ("boot", ("leather", "ankle", "flat", "round")),
    ("boot", ("leather", "kneehigh", "heel", "pointy")),
    ("pump", ("platform", "pointy")),
    ("pump", ("heel", "round")),
    ("sneaker", ("platform",)),
  ],
)
def test_a_garment_is_in_one_piece(kind, names):
  """Soles and heels are under the shoe."""
  for seed in range(12):
    pixels, _ = garments.draw(wardrobe.Item(kind, ("navy", *names), ("navy",), seed))
    labels, count = ndimage.label((pixels < 250).any(axis=-1))
    sizes = np.bincount(labels.ravel())[1:]
    assert count, (kind, names, seed)
    assert sizes.max() > 0.98 * sizes.sum(), (kind, names, seed)


@pytest.mark.parametrize("name", ["ruffled", "peplum"])
def test_hems_hang_on_the_cloth(name):
  for seed in range(12):
    item = wardrobe.Item("tee", ("navy", "shortsleeve", name), ("navy",), seed)
    pixels, masks = garments.draw(item)
    shown = (pixels < 250).any(axis=-1)
    columns = np.flatnonzero(masks[name].sum(axis=0) > 8)
    columns = columns[len(columns) // 5 : -len(columns) // 5]  # they flare at both ends
    tops = masks[name].argmax(axis=0)[columns]
    assert np.mean([shown[top - 4, x] for top, x in zip(tops, columns, strict=True)]) > 0.98
