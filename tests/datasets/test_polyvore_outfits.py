"""Polyvore Outfits: a small release with every oddity of the real one, checked by hand."""

import io
import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import shuffle

from sane_jax.datasets import polyvore_outfits, records, sources
from sane_jax.datasets.polyvore_outfits import formats

ROOT = Path(__file__).parents[2]
TYPES = (
  "accessories", "all-body", "bags", "bottoms", "hats", "jewellery", "outerwear", "scarves",
  "shoes", "sunglasses", "tops",
)  # fmt: skip
# 66 pairs, each in one order only, in neither order of the alphabet.
SPACES = [
  pair if n % 3 else pair[::-1]
  for n, pair in enumerate(itertools.combinations_with_replacement(TYPES[::-1], 2))
]
ITEMS = {  # id: semantic category, title, url_name
  "101": ("tops", "Blue  shirt", "blue shirt url"),
  "102": ("bottoms", "", "grey pants"),
  "103": ("shoes", "", ""),
  "104": ("bags", "Tote", ""),
  "105": ("hats", "Cap", "cap"),
  "106": ("jewellery", "Ring", "ring"),  # in no outfit
  "107": ("tops", "No photo", ""),
  "108": ("tops", "Broken photo", ""),
  "110": ("socks", "Of no known type", ""),
  "111": ("scarves", "Alone in its outfit", ""),
  "112": ("sunglasses", "Shades", ""),
  "1003": ("outerwear", "Coat", ""),
}
OUTFITS = {
  "train": {
    "9001": ["101", "102", "103"],
    "9002": ["102", "104", "107"],
    "9003": ["111"],
    "9004": ["108", "105"],
    "9005": ["109", "110", "104", "101"],
  },
  "valid": {"9101": ["112", "1003"]},
  "test": {"9201": ["101", "112", "1003"], "9202": ["104", "103"]},
}
QUESTIONS = {
  "train": [
    (["9001_1", "9001_2"], ["9002_1", "9001_3", "9005_3", "9004_2"]),
    (["9001_1"], ["9001_2", "9002_3", "9005_3", "9004_2"]),  # an answer without a photo
    (["9001_1"], ["9002_1", "9005_3", "9004_2", "9004_2"]),  # no right answer
  ],
  "valid": [],
  "test": [(["9201_3", "9201_1"], ["9201_2", "9202_1", "9202_2", "9202_1"])],
}
COMPATIBILITY = {
  "train": "1 9001_1 9001_2 9001_3\n1 9002_1 9002_2 9002_3\n0 9002_1 9005_3\n"
  "0 9999_1 9001_1\n1 9001_1\n",
  "valid": "1 9101_1 9101_2\n",
  "test": "1 9201_1 9201_2 9201_3\r\n0 9202_2 9201_3\r\n",
}


def photo(item_id):
  buffer = io.BytesIO()
  colour = (int(item_id) * 37 % 256, int(item_id) * 91 % 256, 100)
  mode = "CMYK" if item_id == "103" else "RGB"
  Image.new(mode, (16, 16), (*colour, 0)[: len(mode)]).save(buffer, "JPEG")
  return buffer.getvalue()


def dump(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())


def write_release(folder, *, protocol=3):
  """The files of polyvore_outfits/, with both settings alike."""
  for item_id in ITEMS:
    if item_id != "107":
      data = photo(item_id)
      dump(folder / f"images/{item_id}.jpg", data[:-60] if item_id == "108" else data)
  (folder / "images/notes.txt").write_text("no photo")
  metadata = {
    item_id: {
      "url_name": url, "description": "", "title": title, "semantic_category": category,
      "catgeories": ["Women's Fashion"] if title else "", "related": "", "category_id": "62",
    }
    for item_id, (category, title, url) in ITEMS.items()
  }  # fmt: skip
  metadata["105"]["category_id"] = "2"
  dump(folder / "polyvore_item_metadata.json", metadata)
  dump(folder / "polyvore_outfit_titles.json", {"9001": {"url_name": "look", "title": ""}})
  dump(folder / "categories.csv", b"62,necklace,jewellery \n62,beads,jewellery \n2,undefined,\n")
  dump(folder / "attribute_list.txt", b"cute\ngingham\nlace\n")
  annotations = {i: [] for i in ITEMS if i != "105"} | {"101": [2, 0], "103": [1]}
  dump(
    folder / "polyvore_attributes.json",
    {"attributes": ["cute", "gingham", "lace"], "annotations": annotations},
  )
  dump(folder / "polyvore_pairs_test.txt", b"101 112 1\n104 103 0\n101 999 1\n")
  dump(folder / "polyvore_pairs_valid.txt", b"")
  for setting in polyvore_outfits.SETTINGS:
    dump(folder / setting / "typespaces.p", pickle.dumps(SPACES, protocol))
    dump(folder / setting / "train_hglmm_pca6000.txt", b"a,b,0.1\n")
    for split, outfits in OUTFITS.items():
      outfits = [
        {"items": [{"item_id": i, "index": n} for n, i in enumerate(ids, 1)], "set_id": set_id}
        for set_id, ids in outfits.items()
      ]
      dump(folder / setting / f"{split}.json", outfits)
      questions = [
        {"question": items, "blank_position": 3, "answers": answers}
        for items, answers in QUESTIONS[split]
      ]
      dump(folder / setting / f"fill_in_blank_{split}.json", questions)
      dump(folder / setting / f"compatibility_{split}.txt", COMPATIBILITY[split].encode())


@pytest.fixture
def release(tmp_path):
  write_release(tmp_path / "data/polyvore_outfits")
  return tmp_path / "data/polyvore_outfits"


def load(given, split="train", **options):
  prepared = next(p for p in (given, *given.parents) if p.name == "data").parent / "prepared"
  return polyvore_outfits.load(split, manual_dir=given, prepared_dir=prepared, **options)


def lists(arrays):
  assert all(a.dtype == np.int32 for a in arrays)
  return [a.tolist() for a in arrays]


def plain(collection):
  """All of a collection that == can tell."""
  return json.dumps(collection._replace(images=()), default=lambda a: a.tolist()), [
    bytes(image) for image in collection.images
  ]


# --- what is read ---------------------------------------------------------------------------------


def test_train_split_record_by_record(release):
  train = load(release.parent)
  assert train.name == "polyvore_outfits/nondisjoint/train"
  assert train.ids == ("101", "102", "103", "104", "105")
  assert list(train.images) == [(release / f"images/{i}.jpg").read_bytes() for i in train.ids]
  assert train.type_names == TYPES
  assert [TYPES[t] for t in train.types] == ["tops", "bottoms", "shoes", "bags", "hats"]
  assert train.types.dtype == np.int32
  assert train.titles == ("Blue shirt", "grey pants", "", "Tote", "Cap")
  assert train.group_names == ("9001", "9002", "9005")
  assert lists(train.groups) == [[0, 1, 2], [1, 3], [3, 0]]
  assert train.attribute_names == ("cute", "gingham", "lace")
  assert lists(train.attributes) == [[0, 2], [], [1], [], []]
  assert len(train.questions) == 1
  question = train.questions[0]
  assert (lists(question[:2]), question.right) == ([[0, 1], [1, 2, 3, 4]], 1)
  assert [(c.items.tolist(), c.label) for c in train.compatibility] == [([0, 1, 2], 1), ([1, 3], 0)]
  assert train.pairs == ()
  place = "nondisjoint/train.json"
  meta = "polyvore_item_metadata.json"
  assert sorted(train.left_out) == sorted(
    [
      next(line for line in train.left_out if line.startswith("images/108.jpg: broken")),
      f"images: 1 photos of {place} that are not there (such as 107.jpg)",
      f"{place}: 1 outfits of fewer than two items (such as 9003)",
      f"{place}: 1 outfits of which fewer than two items can be used (such as 9004)",
      f"{meta}: 1 items of {place} without a record (such as 109)",
      f"{meta}: 1 items of {place} whose semantic_category is none of typespaces.p"
      " (such as item 110: 'socks')",
      f"{meta}: 1 items that are in no outfit of nondisjoint (such as 106)",
      "nondisjoint/fill_in_blank_train.json: 1 questions of which an item can't be used"
      " (such as that of 9001_1)",
      f"{release}/nondisjoint/fill_in_blank_train.json: 1 questions without just one answer of"
      " their outfit (such as record 2)",
      "nondisjoint/compatibility_train.txt: 2 lines of which an item can't be used"
      " (such as that of 9002_1)",
      f"{release}/nondisjoint/compatibility_train.txt: 1 lines that are no label and two or more"
      " items (such as line 5)",
      "polyvore_attributes.json: 1 items of train without annotation (such as 105)",
    ]
  )


def test_other_splits_and_settings(release):
  for setting in polyvore_outfits.SETTINGS:
    test = load(release, "test", setting=setting)
    assert test.name == f"polyvore_outfits/{setting}/test"
    assert test.ids == ("101", "103", "104", "112", "1003")
    assert lists(test.groups) == [[0, 3, 4], [2, 1]]
    assert lists(test.questions[0][:2]) == [[4, 0], [3, 2, 1, 2]]
    assert test.questions[0].right == 0
    assert [(c.items.tolist(), c.label) for c in test.compatibility] == [
      ([0, 3, 4], 1),
      ([1, 4], 0),
    ]
    assert test.pairs == ((0, 3, 1), (2, 1, 0))
    assert any("1 pairs of which an item is not in test" in line for line in test.left_out)
    valid = load(release, "valid", setting=setting)
    assert valid.ids == ("112", "1003")
    assert (valid.questions, valid.pairs) == ((), ())
    assert valid.images[1] == test.images[4] == (release / "images/1003.jpg").read_bytes()


def test_conditions_are_positions_in_typespaces_in_either_order(release):
  train = load(release)
  assert train.conditions.shape == (11, 11)
  assert train.num_conditions == 66
  for position, (first, second) in enumerate(SPACES):
    i, j = TYPES.index(first), TYPES.index(second)
    assert train.conditions[i, j] == train.conditions[j, i] == position


def test_plain_tfds_reads_it(release, tmp_path):
  builder = polyvore_outfits.PolyvoreOutfits(config="disjoint", data_dir=tmp_path / "tfds")
  config = tfds.download.DownloadConfig(manual_dir=release.parent)
  builder.download_and_prepare(download_config=config)
  reader: Any
  for reader in (builder, tfds.builder_from_directory(builder.data_dir)):
    assert {k: v.num_examples for k, v in reader.info.splits.items()} == {
      "train": 5, "valid": 2, "test": 5,
    }  # fmt: skip
    assert reader.info.features["semantic_category"].names == list(TYPES)
    examples = list(reader.as_data_source("train"))
    assert [e["item_id"] for e in examples] == [b"101", b"102", b"103", b"104", b"105"]
    assert [list(e["attributes"]) for e in examples] == [[0, 2], [], [1], [], []]
    assert examples[0]["image"].shape == (16, 16, 3)
    assert TYPES[examples[1]["semantic_category"]] == "bottoms"
    assert [e["category"] for e in examples] == [b"necklace"] * 4 + [b"undefined"]
    assert examples[1]["title"] == b"grey pants"
    assert len(reader.as_data_source("train[:2]+test")) == 7
  builder = polyvore_outfits.PolyvoreOutfits(config="disjoint", data_dir=tmp_path / "two")
  config.max_examples_per_split = 2
  builder.download_and_prepare(download_config=config)
  assert builder.info.splits["train"].num_examples == 2


def test_categories():
  read = formats.parse_categories(b"62,necklace,jewellery \r\n62,beads,\n2,undefined,\n", "c.csv")
  assert read == {"62": (("necklace", "beads"), "jewellery"), "2": (("undefined",), "")}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_typespaces_in_any_protocol(protocol):
  assert formats.parse_typespaces(pickle.dumps(SPACES, protocol), "t.p") == SPACES
  python2 = b"(lp0\n(S'bottoms'\np1\nS'tops'\np2\ntp3\na(g2\ng2\ntp4\na."
  assert formats.parse_typespaces(python2, "t.p") == [("bottoms", "tops"), ("tops", "tops")]


def test_typespaces_claim_no_memory():
  giant = b"\x80\x05\x96" + (1 << 30).to_bytes(8, "little") + b"."
  tracemalloc.start()
  with pytest.raises(ValueError, match="refused"):
    formats.parse_typespaces(giant, "t.p")
  assert tracemalloc.get_traced_memory()[1] < 1 << 20
  tracemalloc.stop()


def test_partial_copies_serve(release):
  for item_id in ("102", "112"):
    (release / f"images/{item_id}.jpg").unlink()
  for name in ("polyvore_attributes.json", "categories.csv"):
    (release / name).unlink()
  train, valid = load(release), load(release, "valid")
  assert train.ids == ("101", "103", "104", "105")
  assert lists(train.groups) == [[0, 1], [2, 0]]
  assert train.group_names == ("9001", "9005")
  assert train.attribute_names == ()
  assert lists(train.attributes) == [[], [], [], []]
  assert any("VisionLearningGroup/SANE" in line for line in train.left_out)
  assert any("2 photos of nondisjoint/train.json" in line for line in train.left_out)
  assert (valid.ids, valid.groups, valid.compatibility) == (("1003",), (), ())
  (release / "images/1003.jpg").unlink()
  empty = load(release, "valid")
  assert (empty.ids, list(empty.images), len(load(release).ids)) == ((), [], 4)


# --- folders and archives -------------------------------------------------------------------------


def pack_zip(folder, path, prefix="polyvore_outfits/"):
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for file in sorted(folder.rglob("*"), reverse=True):
      archive.write(file, prefix + str(file.relative_to(folder)))


def pack_tar(folder, path, prefix="./some/polyvore_outfits/"):
  with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
    for file in sorted(folder.rglob("*"), reverse=True):
      archive.add(file, prefix + str(file.relative_to(folder)), recursive=False)


@pytest.mark.parametrize("name", ["polyvore_outfits.zip", "polyvore_outfits.tar.gz", "x/a.tar"])
def test_archives_hold_what_folders_hold(release, tmp_path, name):
  path = tmp_path / "other/data" / name
  path.parent.mkdir(parents=True)
  (pack_zip if path.suffix == ".zip" else pack_tar)(release, path)
  for split in polyvore_outfits.SPLITS:
    want = load(release, split)
    got = load(path if name == "x/a.tar" else path.parent, split)
    order = [got.ids.index(i) for i in want.ids]  # a packed tar is read in its own order
    assert sorted(order) == list(range(len(got.ids)))
    assert [got.images[i] for i in order] == list(want.images)
    assert [[got.ids[i] for i in g] for g in got.groups] == [
      [want.ids[i] for i in g] for g in want.groups
    ]
    assert [got.titles[i] for i in order] == list(want.titles)
    assert [got.attributes[i].tolist() for i in order] == lists(want.attributes)
    for a, b in zip(got.questions, want.questions, strict=True):
      assert [got.ids[i] for i in a.answers] == [want.ids[i] for i in b.answers]
      assert a.right == b.right
    assert len(got.compatibility) == len(want.compatibility)
    assert len(got.left_out) == len(want.left_out)


def test_annotations_may_lie_beside_the_archive(release, tmp_path):
  beside = tmp_path / "other/data"
  beside.mkdir(parents=True)
  for name in ("polyvore_attributes.json", "attribute_list.txt", "polyvore_pairs_test.txt"):
    (release / name).rename(beside / name)
  (release / "categories.csv").rename(beside / "categories.csv")  # it belongs into the folder
  pack_zip(release, beside / "polyvore_outfits.zip")
  for given in (beside, beside / "polyvore_outfits.zip"):
    train = load(given)
    assert lists(train.attributes)[0] == [0, 2]
    assert any(line.startswith("categories.csv: not there") for line in train.left_out)
    assert len(load(given, "test").pairs) == 2


def test_levels_of_the_folder(release, tmp_path):
  want = plain(load(release))
  above = tmp_path / "above"
  above.mkdir()
  release.parent.rename(above / "data")
  release = above / "data/polyvore_outfits"

  def at(folder):
    return plain(polyvore_outfits.load("train", manual_dir=folder, prepared_dir=tmp_path / "p"))

  for folder in (release, release.parent, above, release / "images", release / "nondisjoint"):
    assert [line.replace(str(above), str(tmp_path)) for line in at(folder)[0:1]] == [want[0]]
    assert at(folder)[1] == want[1]
  (above / "data2").mkdir()
  release.rename(above / "data2/polyvore_outfits")
  write_release(release)
  with pytest.raises(ValueError, match=r"may be .*data/polyvore_outfits or .*data2/.*give one"):
    at(above)


def test_dangerous_members_are_not_read(release, tmp_path):
  folder = tmp_path / "other/data"
  folder.mkdir(parents=True)
  path = folder / "polyvore_outfits.zip"
  pack_zip(release, path)
  with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("../../images/105.jpg", "out")
    archive.writestr("/images/106.jpg", "out")
    link = zipfile.ZipInfo("polyvore_outfits/images/107.jpg")
    link.external_attr = 0o120777 << 16
    archive.writestr(link, "/etc/passwd")
    archive.writestr("polyvore_outfits/images/113.jpg", bytes(20 << 20))
  got = load(folder)
  assert plain(got)[1] == plain(load(release))[1]
  refused = [line for line in got.left_out if "so it is not read" in line]
  assert [line.split(": ")[1] for line in refused] == [
    "../../images/105.jpg", "/images/106.jpg", "polyvore_outfits/images/107.jpg",
    "polyvore_outfits/images/113.jpg",
  ]  # fmt: skip
  assert "would inflate" in refused[3]
  assert "a link" in refused[2]

  path.unlink()
  with tarfile.open(folder / "polyvore_outfits.tgz", "w:gz") as archive:
    archive.add(release, "polyvore_outfits")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
      info = tarfile.TarInfo("polyvore_outfits/images/107.jpg")
      info.type, info.linkname = kind, "polyvore_outfits/images/101.jpg"
      archive.addfile(info)
  got = load(folder)
  assert sum("a link, device or sparse file" in line for line in got.left_out) == 3
  assert "107" not in got.ids
  info = tarfile.TarInfo("images/1.jpg")
  info.size = 1 << 40
  with tarfile.open(folder / "polyvore_outfits.tgz", "w:gz") as archive:
    archive.fileobj.write(info.tobuf())  # a terabyte to be, none of it here
  with pytest.raises(ValueError, match=r"polyvore_outfits\.tgz: no whole archive .*inflate"):
    load(folder)


@pytest.mark.parametrize("name", ["polyvore_outfits.zip", "polyvore_outfits.tar.gz"])
def test_archives_cut_short(release, tmp_path, name):
  path = tmp_path / "other/data" / name
  path.parent.mkdir(parents=True)
  (pack_zip if path.suffix == ".zip" else pack_tar)(release, path)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with pytest.raises(ValueError, match=f"{name}: no whole archive .*download it again"):
    load(path.parent)


def test_damaged_member_costs_no_other(release, tmp_path):
  path = tmp_path / "other/data/polyvore_outfits.zip"
  path.parent.mkdir(parents=True)
  with zipfile.ZipFile(path, "w") as archive:  # stored, so that a byte can be changed
    for file in sorted(release.rglob("*")):
      archive.write(file, str(file.relative_to(release.parent)))
  data = path.read_bytes()
  at = data.index(photo("102")) + 100
  path.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
  train = load(path.parent)
  assert train.ids == ("101", "103", "104", "105")
  assert any("images/102.jpg: can't be read (Bad CRC" in line for line in train.left_out)


# --- what is refused ------------------------------------------------------------------------------


class Evil:
  def __init__(self, target):
    self.target = target

  def __reduce__(self):
    return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_malicious_typespaces_run_no_code(release, tmp_path, protocol):
  dump(release / "nondisjoint/typespaces.p", pickle.dumps([Evil(tmp_path / "ran")], protocol))
  with pytest.raises(ValueError, match=r"nondisjoint/typespaces\.p: .*global \w+\.system; no code"):
    load(release)
  assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
  "data",
  [
    b"",
    b"nonsense",
    pickle.dumps(SPACES)[:-9],
    pickle.dumps([]),
    pickle.dumps(SPACES[0]),
    pickle.dumps([("tops", 1)]),
    pickle.dumps([("tops", "tops", "tops")]),
    pickle.dumps([set()]),
    pickle.dumps(bytearray(9)),
    b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".",  # a bytearray of a terabyte
    b"]" * 100_000 + b"a" * 99_999 + b".",
    bytes(2 << 20),
    b"\x80\x02\x82\x01.",  # a code of the registry of extensions
    b"P1\n.",  # a persistent id
  ],
)
def test_typespaces_of_anything_else(data):
  with pytest.raises(ValueError, match=r"^t\.p: no pickled list of pairs .*download it again"):
    formats.parse_typespaces(data, "t.p")


def change(name, edit):
  """Rewrites a JSON file of the release."""

  def apply(folder):
    value = json.loads((folder / name).read_text())
    dump(folder / name, edit(value) or value)

  return apply


def put(name, data):
  return lambda folder: dump(folder / name, data)


def remove(name):
  return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
  ("damage", "says"),
  [
    (
      remove("polyvore_item_metadata.json"),
      r"metadata\.json .*missing; get it from https://github\.com/mvasil/.* put it at .*data\.json",
    ),
    (remove("nondisjoint/typespaces.p"), r"typespaces\.p of Polyvore Outfits is missing"),
    (remove("nondisjoint/valid.json"), r"nondisjoint/valid\.json .*missing"),
    (remove("nondisjoint/fill_in_blank_test.json"), r"fill_in_blank_test\.json .*missing"),
    (
      put("nondisjoint/train.json", b'[{"items": [{"item'),
      r"train\.json: no whole JSON .*line 1 column .*18 bytes",
    ),
    (put("polyvore_item_metadata.json", b"{"), r"metadata\.json: no whole JSON"),
    (put("polyvore_item_metadata.json", b"[1]"), r"metadata\.json: it holds '\[1\]' where"),
    (put("polyvore_item_metadata.json", b"\xff\xfe\x00"), r"metadata\.json: no whole JSON"),
    (put("nondisjoint/train.json", b"[" * 100_000), r"train\.json: no whole JSON"),
    (put("nondisjoint/train.json", b'{"a": 1}'), r"train\.json: it holds .*set_id.*is expected"),
    (put("nondisjoint/train.json", b'[{"set_id": "1"}, 3]'), r"train\.json: it holds .*set_id"),
    (
      put("nondisjoint/fill_in_blank_train.json", b'[{"question": ["1"]}]'),
      r"fill_in_blank_train\.json: it holds .*blank_position",
    ),
    (
      put("nondisjoint/compatibility_train.txt", b"hello world\n"),
      r"compatibility_train\.txt: it holds 'hello world'",
    ),
    (put("categories.csv", b"\n"), r"categories\.csv: no line"),
    (
      change("polyvore_attributes.json", lambda v: v["annotations"].update({"103": [3]})),
      r"attributes\.json: field 'annotations', item 103: \[3\], but there are 3 .*\(0 to 2\); take",
    ),
    (
      change("polyvore_attributes.json", lambda v: v["annotations"].update({"103": [-1]})),
      r"item 103: \[-1\]",
    ),
    (
      change("polyvore_attributes.json", lambda v: v["annotations"].update({"103": "1"})),
      r"item 103: '1' is no list of indices",
    ),
    (
      change("polyvore_attributes.json", lambda v: v["annotations"]),
      r"polyvore_attributes\.json: it holds .*annotations",
    ),
    (
      change("polyvore_attributes.json", lambda v: v["attributes"].reverse()),
      r"attribute_list\.txt:1: not what field 'attributes'",
    ),
    (put("attribute_list.txt", b"cute\ngingham\n"), r"attribute_list\.txt:3: not what"),
    (
      put("nondisjoint/typespaces.p", pickle.dumps(SPACES[:-1])),
      r"typespaces\.p: no space for \('accessories', 'accessories'\)",
    ),
    (
      put("nondisjoint/typespaces.p", pickle.dumps([*SPACES, SPACES[5][::-1]])),
      r"typespaces\.p: the pair .* twice",
    ),
  ],
)
def test_what_is_wrong_is_named(release, damage, says):
  damage(release)
  with pytest.raises(ValueError, match=says):
    load(release)
  assert not list(release.parent.parent.glob("prepared/*/polyvore_outfits/*/1.*"))


def test_records_that_are_wrong_cost_no_other(release):
  broken = [{"items": [{"item_id": "101"}], "set_id": "1"}, 3, {"set_id": "2", "items": []}]
  twice = {"set_id": "9001", "items": [{"item_id": "104", "index": 1}]}
  change("nondisjoint/train.json", lambda v: [*broken, *v, twice])(release)
  change("nondisjoint/fill_in_blank_train.json", lambda v: [{"question": ["x"]}, 1, *v])(release)
  change("polyvore_item_metadata.json", lambda v: v.update({"77": "text"}))(release)
  train = load(release)
  assert lists(train.groups) == [[0, 1, 2], [1, 3], [3, 0]]
  assert len(train.questions) == 1
  left_out = "\n".join(train.left_out)
  assert "1 outfits with a wrong or missing field 'index' (such as record 0)" in left_out
  assert "1 outfits whose set_id an earlier one has (such as 9001)" in left_out
  assert "1 records that are no objects (such as 77)" in left_out
  assert "2 outfits of fewer than two items" in left_out  # 9003 and the one of none


def test_wrong_places_are_explained(release, tmp_path):
  empty = tmp_path / "empty"
  empty.mkdir()
  (empty / "a.txt").write_text("")
  for given, says in [
    (tmp_path / "nowhere", r"nowhere: no such folder\. Put the folder polyvore_outfits/ or its"),
    (empty, r"empty: no Polyvore Outfits in it \(it holds a\.txt\).*https://github\.com/mvasil"),
    (empty / "a.txt", r"a\.txt: a file, but no archive \(\.zip"),
  ]:
    with pytest.raises(ValueError, match=says):
      polyvore_outfits.load("train", manual_dir=given, prepared_dir=tmp_path / "p")
  for options in ({"split": "val"}, {"setting": "both"}):
    with pytest.raises(
      ValueError, match="train, valid, test, setting one of nondisjoint, disjoint"
    ):
      load(release, **options)
  for file in (release / "images").iterdir():
    file.unlink()
  with pytest.raises(ValueError, match=r"none of the photos .* there; get them from https"):
    load(release)
  write_release(release)
  with pytest.raises(OSError, match=r"can't write to .*a\.txt.*--config\.data\.prepared=FOLDER"):
    polyvore_outfits.load("train", manual_dir=release, prepared_dir=empty / "a.txt")


# --- preparing ------------------------------------------------------------------------------------


def test_prepared_once_and_again_when_the_source_changed(release):
  calls = []
  first = plain(load(release, on_progress=lambda *n: calls.append(n)))
  total = 6 + 2 + 5
  assert calls == [(n + 1, total) for n in range(total)]

  def count():
    calls.clear()
    got = plain(load(release, on_progress=lambda *n: calls.append(n)))
    return len(calls), got

  assert count() == (0, first)
  os.utime(release / "nondisjoint/train.json")
  (release / "nondisjoint/train_hglmm_pca6000.txt").write_text("not read")
  assert count() == (0, first)
  change("nondisjoint/train.json", lambda v: v.reverse())(release)
  assert count()[0] == total
  (release / "images/107.jpg").write_bytes(photo("107"))
  changed = count()
  assert changed[0] == total + 1
  assert changed[1] != first
  (release / "images/107.jpg").write_bytes(photo("107") + b"one more")
  assert count()[0] == total + 1
  (release / "images/107.jpg").unlink()
  change("nondisjoint/train.json", lambda v: v.reverse())(release)
  assert count() == (0, first)  # as at first, and that is still there
  for shard in release.parent.parent.glob("prepared/*/*/nondisjoint/*/*train*record*"):
    shard.unlink()
  assert count() == (total, first)


CHILD = """
import os, signal, sys
from sane_jax.datasets import polyvore_outfits
folder, stop = sys.argv[1:]
calls = []
def progress(done, total):
  calls.append(done)
  if done == int(stop):
    os.kill(os.getpid(), signal.SIGKILL)
c = polyvore_outfits.load('test', manual_dir=folder + '/data', prepared_dir=folder + '/prepared',
                          on_progress=progress)
assert 'tensorflow' not in sys.modules
print(len(calls), len(c.ids), hash(tuple(c.images)))
"""


def start(release, stop=0):
  env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}
  command = [sys.executable, "-c", CHILD, str(release.parent.parent), str(stop)]
  return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def test_a_killed_preparation_leaves_nothing_that_counts(release):
  process = start(release, stop=9)
  process.communicate(timeout=60)
  assert process.returncode == -signal.SIGKILL
  prepared = release.parent.parent / "prepared"
  assert len(list(prepared.glob("*/polyvore_outfits/nondisjoint/incomplete.*"))) == 1
  assert not list(prepared.glob("*/polyvore_outfits/nondisjoint/1.*"))
  calls = []
  train = load(release, on_progress=lambda *n: calls.append(n))
  assert len(calls) == 13
  assert train.ids == ("101", "102", "103", "104", "105")
  left = {p.name for p in prepared.glob("*/polyvore_outfits/nondisjoint/*")}
  assert left == {"1.0.0"}


def test_an_interrupted_preparation_cleans_up(release):
  def interrupt(done, total):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    load(release, on_progress=interrupt)
  assert not list(release.parent.parent.glob("prepared/*/polyvore_outfits/nondisjoint/*"))
  assert len(load(release).ids) == 5


def test_of_processes_at_once_one_prepares(release):
  processes = [start(release) for _ in range(3)]
  lines = [p.communicate(timeout=120)[0].split() for p in processes]
  assert [p.returncode for p in processes] == [0, 0, 0]
  assert sorted(int(line[0]) for line in lines) == [0, 0, 13]
  assert len({tuple(line[1:]) for line in lines}) == 1


def test_without_locks_the_first_to_finish_wins(release, monkeypatch):
  """Where the system has no locks, another process may have finished meanwhile."""
  fcntl = pytest.importorskip("fcntl")

  def fail(*_):
    raise OSError("no locks here")

  monkeypatch.setattr(fcntl, "flock", fail)
  inner = []

  def progress(done, total):
    if done == 1 and not inner:
      inner.append(None)
      inner.append(plain(load(release)))

  assert plain(load(release, on_progress=progress)) == inner[1]


def test_splits_larger_than_memory_need_no_tensorflow(release, monkeypatch):
  """TFDS's own writer turns to TensorFlow beyond this size."""
  monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 100)
  monkeypatch.setattr(records, "_SHARD_BYTES", 1000)
  train = load(release)
  assert list(train.images) == [(release / f"images/{i}.jpg").read_bytes() for i in train.ids]
  assert len(list(release.parent.parent.glob("prepared/*/*/*/*/*train*record*"))) == 5


def test_images_from_threads_and_pickles(release):
  images = load(release).images
  want = list(images)
  assert len(set(want)) == 5
  with ThreadPoolExecutor(8) as pool:
    assert list(pool.map(lambda i: images[i % 5], range(400))) == want * 80
  assert list(pickle.loads(pickle.dumps(images))) == want
  assert images[-1] == want[-1]
  assert images[1:4:2] == want[1:4:2]
  assert images[np.int64(2)] == want[2]  # pyright: ignore
  for index in (5, -6):
    with pytest.raises(IndexError):
      images[index]


def test_what_decodes(tmp_path):
  good = photo("101")
  assert records.image_problem(good) == ""
  assert records.image_problem(photo("103")) == ""
  assert records.image_problem(b"") == "an empty file"
  assert records.image_problem(b"%!PS-Adobe-3.0 EPSF-3.0") == "no image of a format known here"
  for mode in ("RGB", "L", "CMYK"):
    noise = np.random.default_rng(0).integers(0, 256, (150, 150, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, "JPEG")
    data = buffer.getvalue()
    assert records.image_problem(data) == ""
    for share in (0.2, 0.5, 0.95):  # the header is whole in all
      cut = records.image_problem(data[: int(share * len(data))])
      assert cut.startswith("broken or cut short")
  header = bytearray(good)
  at = header.index(b"\xff\xc0")
  header[at + 5 : at + 9] = b"\xff\xff\xff\xff"  # 65,535 x 65,535 pixels
  assert records.image_problem(bytes(header))


def test_the_layout_asks_for_no_file_that_is_not_used():
  own = polyvore_outfits.layout("disjoint")
  assert own.kind("disjoint/train.json") == "text"
  for name in ("disjoint/train_hglmm_pca6000.txt", "nondisjoint/train.json", "images/a/b.jpg", "x"):
    assert own.kind(name) == ""
  assert isinstance(own, sources.Layout)
