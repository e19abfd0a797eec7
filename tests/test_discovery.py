"""Attributes are discovered on discs: groups share a colour, and corners do not matter."""

import json
import shutil

import numpy as np
import pytest
import tiny_data
import tiny_run
from PIL import Image

from sane_jax.attributes import clusters as clusters_lib
from sane_jax.attributes import pairs as pairs_lib
from sane_jax.datasets import collection as collection_lib
from sane_jax.datasets import load
from sane_jax.jobs import discover_attributes
from sane_jax.maps import index_arrays
from sane_jax.models import weights
from sane_jax.runs import folder as run_folder

NAMES = tiny_data.collection("train", groups=4).attribute_names
COLOURS = set(NAMES[:4])


def small(folder, **fields):
  return tiny_run.tiny_config(folder, discovery__num_clusters=(2, 4, 6), **fields)


@pytest.fixture(scope="module")
def done(trained, tmp_path_factory):
  """A workdir with a similarity model, its index, and what was discovered with and without maps."""
  folder = tmp_path_factory.mktemp("done")
  for name in ("similarity", "index", "index_valid", "index_test"):
    (folder / name).symlink_to(trained / name)
  config = small(folder)
  tiny_run.run_jobs(config, "discover_attributes")
  config.discovery.update(weighted=False, folder="without_maps")
  tiny_run.run_jobs(config, "discover_attributes")
  return folder


@pytest.fixture
def copied(done, tmp_path):
  """A copy of it, to be damaged, where nothing was discovered."""
  ignored = shutil.ignore_patterns("discovered", "without_maps", "checkpoints")
  shutil.copytree(done, tmp_path / "run", ignore=ignored)
  return tmp_path / "run"


def read(folder, name):
  return json.loads((folder / name).read_text())


def split_of(name):
  return tiny_run.tiny_split(None, None, name)


def test_clusters_are_what_makes_images_match(done):
  """Groups share a colour and no corner: clusters of the trained trunk's features are colours."""
  clusters = read(done, "discovered/clusters.json")
  assert {c["most_like"] for c in clusters} == COLOURS
  assert min(c["f1"] for c in clusters) > 0.95
  finished = read(done, "discovered/finished.json")
  assert finished["clusters"] == len(clusters) == 4  # of 2, 4 and 6, by the silhouette
  assert finished["mean_best_f1"] > 0.95
  for split in ("valid", "test"):  # images that the clusters were not made of
    before = split_of(split)
    after = load.replace_attributes(before, done / "discovered", split)
    assert after.attribute_names == tuple(c["name"] for c in clusters)
    likes = [NAMES.index(c["most_like"]) for c in clusters]
    both = zip(before.attributes, after.attributes, strict=True)
    known = [(set(map(int, truth)), found) for truth, found in both if len(found)]
    assert len(known) >= 8
    right = [any(likes[c] in truth for c in found) for truth, found in known]
    assert np.mean(right) > 0.9


def test_regions_lie_where_the_disc_is(done):
  train = split_of("train")
  corners = {id: NAMES[a[1]] for id, a in zip(train.ids, train.attributes, strict=True)}
  hits = []
  for cluster in read(done, "discovered/clusters.json"):
    assert 1 <= len(cluster["regions"]) <= discover_attributes.SHOWN
    for region in cluster["regions"]:
      left, top, right, bottom = region["box"]
      assert 0 <= left < right <= 1
      assert 0 <= top < bottom <= 1
      place = ("n" if top + bottom < 1 else "s") + ("w" if left + right < 1 else "e")
      hits.append(place == corners[region["id"]])
  assert np.mean(hits) > 0.7  # a quarter by chance


def test_maps_decide_what_is_seen(done, tmp_path, monkeypatch):
  """Features that only say where they are: maps pick the disc's corner, without them all is one."""

  def where(config, workdir):
    cells = np.eye(16, dtype=np.float32).reshape(4, 4, 16)
    return {}, lambda _, x: np.zeros((len(x), 1, 1, 1), np.float32) + cells, 32

  monkeypatch.setattr(discover_attributes, "_trunk", where)
  for name in ("similarity", "index", "index_valid", "index_test"):
    (tmp_path / name).symlink_to(done / name)
  config = small(tmp_path)
  config.discovery.num_clusters = (4,)
  tiny_run.run_jobs(config, "discover_attributes")
  clusters = read(tmp_path, "discovered/clusters.json")
  assert sum(c["most_like"] in {"nw", "ne", "sw", "se"} for c in clusters) >= 3
  config.discovery.update(weighted=False, folder="without_maps")
  tiny_run.run_jobs(config, "discover_attributes")
  means = [
    read(tmp_path, f"{name}/finished.json")["mean_best_f1"]
    for name in ("discovered", "without_maps")
  ]
  assert means[0] > means[1] + 0.2


def test_the_pairs_stay_those_that_were_measured(done):
  """A new draw among the images that have a cluster would take pairs that have no maps."""
  for split in ("valid", "test"):
    before = split_of(split)
    drawn = collection_lib.draw_pairs(before, limit=12, seed=0)
    after = load.replace_attributes(before, done / "discovered", split)
    again = collection_lib.draw_pairs(after, limit=12, seed=0)
    assert set(again) <= set(drawn)
    lost = {p.query for p in drawn} - {p.query for p in again}
    assert not any(len(after.attributes[row]) for row in lost)
    index = index_arrays.read_index(pairs_lib.index_folder(done, split))
    embeddings = index.embeddings.read().result()

    def has_map(pair, index=index, embeddings=embeddings):
      position = int(np.searchsorted(index.queries, pair.query))
      return index_arrays.read_maps(index, position, [pair.reference], embeddings).any()

    assert all(map(has_map, again))
    drawn_anew = collection_lib.draw_pairs(after._replace(pairs=()), limit=12, seed=0)
    assert not all(map(has_map, drawn_anew))


def test_training_images_stand_in_for_a_split_without_pairs(tmp_path, done, monkeypatch):
  def split(data, workdir, name):
    made = tiny_data.collection(name, groups=60, seed=("train", "valid", "test").index(name))
    return made if name != "valid" else made._replace(groups=(), group_names=())

  monkeypatch.setattr(tiny_run, "tiny_split", split)
  (tmp_path / "similarity").symlink_to(done / "similarity")
  tiny_run.run_jobs(small(tmp_path, index__max_queries=40), "build_index", "discover_attributes")
  pairs = {}
  for name in ("train", "valid", "test"):
    out = load.replace_attributes(split(None, None, name), tmp_path / "discovered", name)
    assert any(map(len, out.attributes)) == (name != "valid")
    pairs[name] = out.pairs
  stand_in = collection_lib.draw_pairs(split(None, None, "train"), limit=12, seed=0)
  assert pairs["train"] == stand_in
  assert pairs["valid"] == ()
  assert len(pairs["test"]) > 12


def test_the_sheet_shows_each_cluster(done):
  with Image.open(done / "discovered/clusters.png") as sheet:
    pixels = np.asarray(sheet.convert("RGB")).astype(int)
  clusters = read(done, "discovered/clusters.json")
  line = discover_attributes.CROP + 12
  for c, cluster in enumerate(clusters):
    colour = np.array(tiny_data.COLOURS[NAMES.index(cluster["most_like"])])
    crops = pixels[8 + c * line : 8 + c * line + discover_attributes.CROP, 200:]
    near = np.abs(crops - colour).max(axis=2) < 50
    others = [np.abs(crops - np.array(o)).max(axis=2) < 50 for o in tiny_data.COLOURS]
    assert near.sum() == max(o.sum() for o in others) > 1000


def test_what_was_found_is_not_sought_again(done, capsys):
  tiny_run.run_jobs(small(done), "discover_attributes")
  assert "up to date" in capsys.readouterr().out
  config = small(done)
  config.data.attributes_from = "nowhere"  # is of the jobs that come after
  tiny_run.run_jobs(config, "discover_attributes")
  config.discovery.num_clusters = (3,)
  with pytest.raises(ValueError, match=r"other settings: discovery\.num_clusters is \[2, 4, 6\]"):
    tiny_run.run_jobs(config, "discover_attributes")


def test_discovered_attributes_are_not_asked_for_before_there_are_any(tmp_path, monkeypatch):
  """The data's own attributes are read, whatever those of later jobs are to be."""
  asked = []

  def split(data, workdir, name):
    asked.append(data["attributes_from"])
    raise ValueError("enough")

  monkeypatch.setattr(load, "load_split", split)
  config = small(tmp_path)
  config.data.attributes_from = "nowhere"
  with pytest.raises(ValueError, match="enough"):
    discover_attributes.run(config)
  assert asked == [""]


def zero(folder):
  index = index_arrays.read_index(folder / "index")
  for shard in range(index_arrays.num_shards(len(index.queries))):
    where = index_arrays.shard_slice(shard, len(index.queries))
    values = np.zeros(index.effects[where].shape, np.float32)
    index_arrays.write_shard(index, "effects", shard, values)


def other_model(folder):
  path = folder / "similarity/model.safetensors"
  variables, description = weights.read_model_file(path)
  path.write_bytes(weights.to_bytes(variables, description | {"best": {"step": 7}}))


def other_data(folder):
  path = folder / "index/finished.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"content": "of others"}))


@pytest.mark.parametrize(
  ("damage", "words"),
  [
    (zero, "no map in .*index says that anything matters"),
    (other_model, r"are of the model model\.safetensors .*; .*names model.*job=build_index"),
    (other_data, "index is of other images than train; .*job=build_index"),
    (lambda f: (f / "similarity/model.safetensors").unlink(), "no model .*train_similarity"),
    (lambda f: (f / "index_test/finished.json").unlink(), "index_test is not finished; .*index"),
    (lambda f: (f / "index_valid/index.json").write_bytes(b"PK"), r"index\.json is damaged"),
    (lambda f: (f / "index_valid/index.json").unlink(), "no index, or a damaged one"),
  ],
)  # fmt: skip
def test_what_is_wrong_with_the_index_is_named(copied, damage, words):
  damage(copied)
  with pytest.raises(ValueError, match=words):
    tiny_run.run_jobs(small(copied), "discover_attributes")
  assert not run_folder.is_finished(copied / "discovered")


def test_settings_that_can_not_be_are_named(copied):
  config = small(copied)
  config.discovery.trunk = "resnet"
  with pytest.raises(ValueError, match="similarity or efficientnet_lite0; given 'resnet'"):
    tiny_run.run_jobs(config, "discover_attributes")
  config.discovery.trunk = "similarity"
  config.index.image_size = 64
  with pytest.raises(ValueError, match=r"\(image_size its own\); .* \(image_size 64\)"):
    tiny_run.run_jobs(config, "discover_attributes")
  config.index.update(image_size=None, model="efficientnet_lite0")
  with pytest.raises(ValueError, match=r"of the model model\.safetensors .*names efficientnet"):
    tiny_run.run_jobs(config, "discover_attributes")
  config.index.model = ""
  config.discovery.num_clusters = (64, 100)
  with pytest.raises(ValueError, match="70 images can't make 64, 100 clusters"):
    tiny_run.run_jobs(config, "discover_attributes")


def test_an_unreadable_image_costs_only_its_own_clusters(done, tmp_path, monkeypatch):
  train = split_of("train")
  victim = int(index_arrays.read_index(done / "index").queries[5])
  images = list(train.images)
  images[victim] = images[victim][:300]
  real = tiny_run.tiny_split

  def split(data, workdir, name):
    made = real(data, workdir, name)
    return made._replace(images=tuple(images)) if name == "train" else made

  monkeypatch.setattr(tiny_run, "tiny_split", split)
  (tmp_path / "similarity").symlink_to(done / "similarity")
  tiny_run.run_jobs(small(tmp_path), "build_index", "discover_attributes")
  finished = read(tmp_path, "discovered/finished.json")
  assert list(finished["images_that_could_not_be_read"]) == [train.ids[victim]]
  assert finished["images"] == 69
  after = load.replace_attributes(train, tmp_path / "discovered", "train")
  assert not len(after.attributes[victim])


def test_a_damaged_file_of_attributes_is_named(tmp_path):
  for data in (b"", b"PK\x03\x04 cut short", b"text"):
    (tmp_path / "labels.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"holds no attributes that were discovered"):
      load.replace_attributes(split_of("train"), tmp_path, "train")


def test_positions_are_weighed_by_the_area_of_the_cells_on_them():
  """8 cells on 7 positions, against a picture of 56 pixels that holds both."""
  saliency = np.random.default_rng(0).normal(size=(2, 8, 8))
  large = np.maximum(saliency, 0).repeat(7, 1).repeat(7, 2)
  brute = large.reshape(2, 7, 8, 7, 8).mean((2, 4)).reshape(2, 49)
  brute /= np.linalg.norm(brute, axis=1, keepdims=True)
  positions = np.broadcast_to(np.eye(49).reshape(7, 7, 49), (2, 7, 7, 49))
  np.testing.assert_allclose(clusters_lib.pool(positions, saliency), brute, atol=1e-6)


def test_maps_of_a_model_that_crops_lie_in_the_middle():
  """Maps of 4 cells over the middle half of 8 positions are maps of 8 cells that end in zeros."""
  saliency = np.random.default_rng(0).random((3, 4, 4))
  positions = np.broadcast_to(np.eye(64).reshape(8, 8, 64), (3, 8, 8, 64))
  whole = np.pad(saliency, ((0, 0), (2, 2), (2, 2)))
  np.testing.assert_allclose(
    clusters_lib.pool(positions, saliency, 0.5), clusters_lib.pool(positions, whole), atol=1e-6
  )
  spot = np.zeros((4, 4))
  spot[0, 3] = 1
  assert discover_attributes.region(spot, 0.5) == (0.625, 0.25, 0.75, 0.375)
  assert discover_attributes.region(spot) == (0.75, 0.0, 1.0, 0.25)
