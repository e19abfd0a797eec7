"""Animals with Attributes 2: a small release with its oddities; the real text files."""

import csv
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from sane_jax.datasets import awa2
from sane_jax.datasets.awa2 import formats

DATA = Path(__file__).parents[3] / "shared" / "data"
REAL, CLOTHING = DATA / "awa2", DATA / "clothing"
COUNTS = {"antelope": 80, "grizzly+bear": 79, "mole": 6, "pig": 3, "giant+panda": 2, "rat": 1}
CLASSES = (*COUNTS, "seal")


def photo(n):
  buffer = io.BytesIO()
  Image.new("RGB", (8, 8), (n % 256, n * 7 % 256, 90)).save(buffer, "PNG")
  return buffer.getvalue()


def numbered(names):
  return "".join(f"{n:6d}\t{name}\n" for n, name in enumerate(names, 1))


def write_release(folder):
  folder.mkdir(parents=True)
  n = 0
  for name, count in COUNTS.items():
    (folder / "JPEGImages" / name).mkdir(parents=True)
    for i in range(count):
      (folder / f"JPEGImages/{name}/{name}_{10001 + i}.jpg").write_bytes(photo(n := n + 1))
  (folder / "classes.txt").write_text(numbered(CLASSES))
  (folder / "predicates.txt").write_text(numbered(["black", "has tail", "swims"]))
  (folder / "predicate-matrix-binary.txt").write_text(
    "0 1 0\n1 1 0\n1 0 0\n0 0 0\n1 0 0\n0 1 1\n0 0 1\n"
  )
  (folder / "predicate-matrix-continuous.txt").write_text(
    " -1.00  25.50   0.00\n" + "  1.00 100.00   0.00\n" * 6
  )
  (folder / "trainclasses.txt").write_text("antelope\ngrizzly+bear\nmole\npig\n")
  (folder / "testclasses.txt").write_text("giant+panda\nrat\nseal")
  (folder / "awa_pairs_test.txt").write_text(
    "giant+panda_10001 giant+panda_10002 1\nrat_10001 giant+panda_10002 0\n"
    "seal_10001 rat_10001 0\nmole_10001 rat_10001 0\nthree words here\n"
  )
  (folder.parent / "pairs.txt").write_text("mole_10001.jpg JPEGImages/mole/mole_10003.jpg 1\n")


@pytest.fixture
def release(tmp_path):
  write_release(tmp_path / "data/Animals_with_Attributes2")
  return tmp_path / "data/Animals_with_Attributes2"


@pytest.fixture
def load(tmp_path):
  def load(split, given=tmp_path / "data", **options):
    return awa2.load(split, manual_dir=given, prepared_dir=tmp_path / "prepared", **options)

  return load


def lists(arrays):
  assert all(a.dtype == np.int32 for a in arrays)
  return [a.tolist() for a in arrays]


# --- what is read ---------------------------------------------------------------------------------


def test_standard_splits(release, load):
  calls = []
  train = load("train", on_progress=lambda *n: calls.append(n))
  assert calls == [(n + 1, 171) for n in range(171)]
  valid, test = load("valid"), load("test")
  want = {"antelope": (60, 20), "grizzly+bear": (60, 19), "mole": (5, 1), "pig": (3, 0)}
  names = {"train": [], "valid": []}
  for name, (first, last) in want.items():
    names["train"] += [f"{name}_{10001 + i}" for i in range(first)]
    names["valid"] += [f"{name}_{10001 + first + i}" for i in range(last)]
  for collection, ids in ((train, names["train"]), (valid, names["valid"])):
    assert collection.ids == tuple(ids)
    for row, name in enumerate(ids):
      path = release / "JPEGImages" / name.split("_")[0] / f"{name}.jpg"
      assert collection.images[row] == path.read_bytes()
  assert test.ids == ("giant+panda_10001", "giant+panda_10002", "rat_10001")
  assert len(test.images) == 3
  assert (test.group_names, lists(test.groups)) == (("giant+panda",), [[0, 1]])
  assert train.group_names == ("antelope", "grizzly+bear", "mole", "pig")
  assert valid.group_names == ("antelope", "grizzly+bear")
  assert lists(train.groups)[2:] == [[120, 121, 122, 123, 124], [125, 126, 127]]


def test_test_split_record_by_record(release, load):
  test = load("test")
  assert test.name == "awa2/test"
  assert test.attribute_names == ("black", "has tail", "swims")
  assert lists(test.attributes) == [[0], [0], [1, 2]]
  assert test.types.tolist() == [0, 0, 0]
  assert (test.types.dtype, test.type_names) == (np.int32, ("photo",))
  assert (test.conditions.tolist(), test.num_conditions) == ([[0]], 1)
  assert test.titles == ("", "", "")
  assert (test.questions, test.compatibility) == ((), ())
  assert test.pairs == ((0, 1, 1), (2, 1, 0))
  assert load("train").pairs == ((120, 122, 1),)  # of pairs.txt, which names no split
  assert load("train").attributes[0].tolist() == [1]
  assert load("train").attributes[126].tolist() == []  # pigs have none
  assert test.left_out == (
    "JPEGImages: no photos of 1 classes (seal)",
    "awa_pairs_test.txt: 1 lines are no 'name name label'",
    "awa_pairs_test.txt: 1 of 4 pairs lack a photo",
    "awa_pairs_test.txt: 1 pairs have a photo of another split",
    "pairs.txt: 1 pairs have a photo of another split",
  )


def test_predicates(release):
  known = awa2.read_predicates(release)
  assert known.classes == CLASSES
  assert known.predicates == ("black", "has tail", "swims")
  assert known.binary.dtype == bool
  assert known.binary[[0, 5]].tolist() == [[False, True, False], [False, True, True]]
  assert known.continuous is not None
  np.testing.assert_array_equal(known.continuous[0], np.array([np.nan, 25.5, 0], np.float32))
  (release / formats.CONTINUOUS).unlink()
  assert awa2.read_predicates(release).continuous is None
  (release / formats.BINARY).unlink()
  with pytest.raises(ValueError, match=r"binary\.txt: can't be read .* get it from https://cvml"):
    awa2.read_predicates(release)


def test_plain_tfds_reads_it(release, tmp_path):
  builder = awa2.Awa2(data_dir=tmp_path / "tfds")
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir=release.parent)
  )
  reader: Any = tfds.builder_from_directory(builder.data_dir)
  assert reader.info.features["label"].names == list(CLASSES)
  example = reader.as_data_source("train")[60]
  assert example["name"] == b"grizzly+bear_10001"
  assert example["label"] == 1
  assert list(example["attributes"]) == [0, 1]
  assert example["continuous"].tolist() == [1, 100, 0]
  assert example["image"].shape == (8, 8, 3)
  assert example["image"][0, 0].tolist() == [81, 81 * 7 % 256, 90]
  assert np.isnan(reader.as_data_source("train")[0]["continuous"][0])


def test_damaged_and_foreign_photos_are_counted(release, load):
  folder = release / "JPEGImages"
  whole = (folder / "mole/mole_10002.jpg").read_bytes()
  (folder / "mole/mole_10002.jpg").write_bytes(whole[: len(whole) // 2])
  (folder / "rat/rat_10001.jpg").write_bytes(b"")
  (folder / "unicorn").mkdir()
  (folder / "unicorn/unicorn_1.jpg").write_bytes(whole)
  (folder / "rat/.rat_2.jpg").write_bytes(whole)
  (folder / "rat/rat_2.txt").write_bytes(whole)
  (folder / "pig/pig_4.jpg").mkdir()
  (folder / "pig/pig_5.jpg").symlink_to("nowhere")
  (folder / "giant+panda/UPPER.JPG").write_bytes(whole)
  train, test = load("train"), load("test")
  assert [name for name in train.ids if "mole" in name] == [
    f"mole_{n}" for n in (10001, 10003, 10004, 10005)
  ]
  assert test.ids == ("UPPER", "giant+panda_10001", "giant+panda_10002")
  assert lists(test.groups) == [[0, 1, 2]]
  text = "\n".join(test.left_out)
  assert "JPEGImages/mole/mole_10002.jpg: no image of a format known here" in text
  assert "JPEGImages/rat/rat_10001.jpg: an empty file" in text
  assert "JPEGImages/unicorn: 1 photos, of no class of classes.txt" in text
  assert len(train.ids) + len(load("valid").ids) == 80 + 79 + 5 + 3


def test_photos_of_one_name(release, load):
  for name in ("mole", "rat"):
    (release / f"JPEGImages/{name}/001.jpg").write_bytes(photo(3))
  (release / "pairs_train.txt").write_text("001 mole_10001 1\nmole_10001 mole_10002 1\n")
  train = load("train")
  assert "JPEGImages/mole/001.jpg".removeprefix("JPEGImages/") in train.ids
  assert len(set(train.ids)) == len(train.ids)
  assert "rat/001.jpg" in load("test").ids
  assert (121, 122, 1) in train.pairs  # after mole/001.jpg
  assert "pairs_train.txt: 1 of 2 pairs lack a photo" in train.left_out


# --- items.csv ------------------------------------------------------------------------------------


def write_items(release):
  rows = [["file", "part", "tint"]]
  for n, tint in ((1, "red"), (2, "blue"), (3, ""), (4, "red")):
    rows.append([f"JPEGImages/mole/mole_1000{n}.jpg", "test" if n == 2 else "train", tint])
  rows += [["JPEGImages/rat/rat_10001.jpg", "valid", "blue"], ["JPEGImages/no.jpg", "train", "x"]]
  with open(release / "items.csv", "w", newline="") as file:
    csv.writer(file).writerows(rows)


def test_columns_of_items(release, load):
  write_items(release)
  options = {"split_column": "part", "attribute_columns": ("tint", "part")}
  train, valid, test = (load(split, **options) for split in awa2.SPLITS)
  assert train.ids == ("mole_10001", "mole_10003", "mole_10004")
  assert (valid.ids, test.ids) == (("rat_10001",), ("mole_10002",))
  assert train.images[2] == (release / "JPEGImages/mole/mole_10004.jpg").read_bytes()
  assert valid.images[0] == (release / "JPEGImages/rat/rat_10001.jpg").read_bytes()
  names = ("black", "has tail", "swims", "tint=blue", "tint=red")
  names += ("part=test", "part=train", "part=valid")
  assert train.attribute_names == valid.attribute_names == names
  assert lists(train.attributes) == [[0, 4, 6], [0, 6], [0, 4, 6]]
  assert lists(valid.attributes) == [[1, 2, 3, 7]]
  assert lists(train.groups) == [[0, 1, 2]]
  assert any("166 photos without a split in column 'part'" in line for line in train.left_out)
  # Without the column of splits, the classes' own.
  standard = load("train", attribute_columns="tint")
  assert standard.attributes[120].tolist() == [0, 4]
  assert standard.attributes[0].tolist() == [1]
  for wrong, says in [
    ({"split_column": "split"}, r"items\.csv: no column 'split'; there is part, tint"),
    ({"attribute_columns": ("x",)}, r"items\.csv: no column 'x'"),
    ({"split_column": "tint"}, r"column 'tint' holds '' and the like; it is to hold train, valid"),
  ]:
    with pytest.raises(ValueError, match=says):
      load("train", **wrong)
  (release / "items.csv").write_text("path,split\na,b\n")
  with pytest.raises(ValueError, match=r"items\.csv:1: no column 'file' among path, split"):
    load("train")
  (release / "items.csv").unlink()
  with pytest.raises(ValueError, match=r"no column 'part'; there is none: put an items\.csv"):
    load("train", split_column="part")


def test_classes_in_neither_list_take_a_column_of_splits(release, load):
  write_items(release)
  (release / "trainclasses.txt").write_text("antelope\ngrizzly+bear\n")
  assert load("train", split_column="part").ids == ("mole_10001", "mole_10003", "mole_10004")
  standard = load("train")
  assert standard.group_names == ("antelope", "grizzly+bear")
  assert any("9 photos of classes neither for training nor" in line for line in standard.left_out)


# --- archives, and what is refused ----------------------------------------------------------------


def test_archives_hold_what_folders_hold(release, load, tmp_path):
  """As published: the text files in one, the photos in the other."""
  packed = tmp_path / "packed"
  packed.mkdir()
  with (
    zipfile.ZipFile(packed / "AwA2-base.zip", "w") as base,
    zipfile.ZipFile(packed / "AwA2-data.zip", "w") as data,
  ):
    for file in sorted(release.rglob("*.*")):
      name = f"Animals_with_Attributes2/{file.relative_to(release)}"
      (data if file.suffix == ".jpg" else base).write(file, name)
  (packed / "pairs.txt").write_bytes((release.parent / "pairs.txt").read_bytes())
  for split in awa2.SPLITS:
    want, got = load(split), load(split, packed)
    assert got.ids == want.ids
    assert list(got.images) == list(want.images)
    assert lists(got.groups) == lists(want.groups)
    assert lists(got.attributes) == lists(want.attributes)
    assert (got.pairs, got.left_out) == (want.pairs, want.left_out)
  (packed / "AwA2-base.zip").unlink()
  with pytest.raises(
    ValueError, match=r"classes\.txt of Animals .* missing; get it from https://cv"
  ):
    load("train", packed)


def test_levels_of_the_folder(release, load, tmp_path):
  want = load("test")
  for given in (release, release / "JPEGImages"):
    got = load("test", given)
    assert got.ids == want.ids
    assert got.pairs == want.pairs
  own = tmp_path / "own"  # any name will do, here for the level above too
  own.mkdir()
  release.rename(own / "zoo")
  assert load("test", own).ids == load("test", own / "zoo").ids == want.ids


def put(name, text):
  return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
  ("damage", "says"),
  [
    (
      lambda f: (f / "predicates.txt").unlink(),
      r"predicates\.txt of .* is missing; get it from https://cvml\.ista.* put it at .*tes\.txt",
    ),
    (lambda f: (f / "testclasses.txt").unlink(), r"testclasses\.txt .*missing"),
    (put("classes.txt", "antelope\n"), r"classes\.txt:1: 'antelope' where the number 1, a tab"),
    (put("classes.txt", "1\ta\n3\tb\n"), r"classes\.txt:2: '3\\tb' where the number 2"),
    (put("classes.txt", "1\ta\n2\ta\n"), r"classes\.txt: no names in it, or one of them twice"),
    (put("classes.txt", ""), r"classes\.txt: no names"),
    (put("classes.txt", "1\tantelope\n"), r"binary\.txt: 7 rows, but classes\.txt names 1 classes"),
    (put("predicates.txt", "1\tblack\n"), r"binary\.txt:1: 3 numbers, but predicates\.txt names 1"),
    (put("predicate-matrix-binary.txt", "0 1 0\n" * 6 + "0 2 0\n"), r"binary\.txt:7: 2 in colu"),
    (put("predicate-matrix-binary.txt", "0 1 0\n" * 6 + "0 x 0\n"), r"binary\.txt:7: .*'x'"),
    (put("predicate-matrix-binary.txt", "0 1 0\n" * 6 + "0 0\n"), r"binary\.txt:7: 2 numbers"),
    (put("predicate-matrix-binary.txt", "0 1 0\n" * 6 + "0 nan 0\n"), r"binary\.txt:7: nan in"),
    (put("predicate-matrix-continuous.txt", "0 1 0\n"), r"continuous\.txt: 1 rows"),
    (put("testclasses.txt", "rat\nrats\n"), r"testclasses\.txt:2: 'rats' is no class of classes"),
    (put("testclasses.txt", "rat\nmole\n"), r"mole stands in .*trainclasses\.txt and in .*testcl"),
    (lambda f: (f / "JPEGImages").rename(f / "images"), r"no photo JPEGImages/CLASS/PHOTO\.jpg"),
  ],
)
def test_what_is_wrong_is_named(release, load, damage, says):
  damage(release)
  with pytest.raises(ValueError, match=says):
    load("train")


def test_wrong_arguments(release, load, tmp_path):
  with pytest.raises(ValueError, match="split is one of train, valid, test; given 'val'"):
    load("val")
  with pytest.raises(ValueError, match=r"nowhere: no such folder\. Put the folder Animals_with_"):
    load("train", tmp_path / "nowhere")
  (tmp_path / "empty").mkdir()
  with pytest.raises(
    ValueError, match=r"empty: no Animals with Attributes 2 in it \(it holds noth"
  ):
    load("train", tmp_path / "empty")


# --- the real files -------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the files of AwA2")
def test_real_awa2(load):
  known = awa2.read_predicates(REAL / "Animals_with_Attributes2")
  assert known.binary.shape == (50, 85)
  assert abs(known.binary.mean() - 0.3675) < 5e-5
  assert (known.binary.sum(1).min(), known.binary.sum(1).max()) == (22, 39)
  assert known.continuous is not None
  assert np.argwhere(np.isnan(known.continuous))[:, 0].tolist() == [0] * 4  # antelope
  assert (known.binary != (known.continuous > np.nanmean(known.continuous))).sum() == 2
  train, valid, test = (load(split, REAL) for split in awa2.SPLITS)
  assert len(train.ids) + len(valid.ids) + len(test.ids) == 79
  assert valid.ids == ("chihuahua_90006", "deer_90004", "siamese+cat_90006")
  assert {name.split("_")[0] for name in test.ids} == {
    "chimpanzee", "giant+panda", "leopard", "persian+cat", "pig", "hippopotamus",
    "humpback+whale", "raccoon", "rat", "seal",
  }  # fmt: skip
  names = set(train.ids) | set(test.ids)
  listed = [line.split() for line in (REAL / "awa_pairs.txt").read_text().splitlines()]
  for collection in (train, valid, test):
    own = set(collection.ids)
    want = [(q, r, int(x)) for q, r, x in listed if q in own and r in own]
    assert [(collection.ids[q], collection.ids[r], x) for q, r, x in collection.pairs] == want
    for row, name in enumerate(collection.ids):
      label = known.classes.index(name.split("_")[0])
      assert collection.attributes[row].tolist() == np.flatnonzero(known.binary[label]).tolist()
      path = REAL / "Animals_with_Attributes2/JPEGImages" / name.split("_")[0] / f"{name}.jpg"
      assert collection.images[row] == path.read_bytes()
  assert len(names) == len(train.ids) + len(test.ids)
  assert len(train.pairs) > 60


@pytest.mark.skipif(not CLOTHING.is_dir(), reason="needs the clothing photos")
def test_real_clothing(load):
  with open(CLOTHING / "items.csv", newline="") as file:
    items = {Path(row["file"]).stem: row for row in csv.DictReader(file)}
  options = {"split_column": "split", "attribute_columns": ("auto_color",)}
  known = awa2.read_predicates(CLOTHING)
  for split, count in {"train": 240, "valid": 60, "test": 60}.items():
    collection = load(split, CLOTHING, **options)
    assert len(collection.ids) == count
    assert [len(g) for g in collection.groups] == [count // 10] * 10
    for row, name in enumerate(collection.ids):
      item = items.pop(name)
      assert item["split"] == split
      names = [collection.attribute_names[a] for a in collection.attributes[row]]
      label = known.classes.index(item["class"])
      want = [p for p, b in zip(known.predicates, known.binary[label], strict=True) if b]
      assert names == [*want, f"auto_color={item['auto_color']}"]
      assert collection.images[row] == (CLOTHING / item["file"]).read_bytes()
    assert len(collection.pairs) == (300 if split == "test" else 0)
    for query, reference, label in collection.pairs:
      same = len({collection.ids[i].split("_")[0] for i in (query, reference)}) == 1
      assert same == bool(label)
  assert not items
  standard = load("test", CLOTHING)
  assert standard.group_names == ("longsleeve", "shorts", "skirt")
  assert len(standard.ids) == 108
