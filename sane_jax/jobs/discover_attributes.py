"""Job: finds attributes where nobody annotated any, in what saliency maps point at."""

import io
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from sane_jax.attributes import clusters as clusters_lib
from sane_jax.attributes import pairs as pairs_lib
from sane_jax.attributes import quality, spaces
from sane_jax.attributes import reader as attribute_reader
from sane_jax.datasets import collection as collection_lib
from sane_jax.datasets import load, pipeline
from sane_jax.datasets.collection import Collection, Pair
from sane_jax.maps import index_arrays
from sane_jax.models import weights
from sane_jax.models.model import Model
from sane_jax.runs import files, npz, processes
from sane_jax.runs import folder as run_folder
from sane_jax.runs.settings import check_choice, check_range
from sane_jax.training import sharding

TRUNKS = ("similarity", "efficientnet_lite0")
SHOWN, CROP = 8, 96  # regions of each cluster on the sheet, and their side in pixels
AROUND = 0.7  # of the image, at least, is shown with a region
BATCH = 32  # images a device
PART = 1024  # images whose feature maps are held at a time
SPLITS = ("train", "valid", "test")


class Looked(NamedTuple):
  """Images of a split that were measured, and what is seen where their maps point."""

  collection: Collection
  rows: np.ndarray  # [n]
  vectors: np.ndarray  # [n c] unit
  maps: np.ndarray  # [n h w]


def check(config: Any) -> None:
  """Raises ValueError for settings that can't be; reads no data and writes nothing."""
  load.check_data(config.data)
  check_choice("discovery.trunk", config.discovery.trunk, TRUNKS)
  for count in config.discovery.num_clusters or (0,):
    check_range("discovery.num_clusters", count, 2)


def run(config: Any) -> None:
  """Clusters what matters in the images of the index; clusters are attributes for later jobs.

  Writes WORKDIR/discovered: labels.npz (which image has which, and the pairs that the maps are of,
  for --config.data.attributes_from), clusters.json with the nearest regions of each, clusters.png
  that shows them, finished.json with the agreement with annotated attributes where there are any.

  Raises:
    ValueError: the index is missing, of other images, or of another model than the trunk; no map
      says anything; too few images for the numbers of clusters.
  """
  check(config)
  settings, workdir = config.discovery, files.at(config.workdir)
  data = {**config.data, "attributes_from": ""}  # what is found here takes their place
  train = load.load_split(data, workdir, "train")
  identity = run_folder.identity(
    collection_lib.fingerprint(train), discovery=settings, key=config.seed
  )
  for split in SPLITS:
    source = pairs_lib.index_folder(workdir, split)
    identity[source.name] = run_folder.read_finished(source, "build_index")["fingerprint"]
  explained = _explained(config, workdir, train)
  variables, features, size = _trunk(config, workdir)
  folder = run_folder.claim_folder(workdir / settings.folder, identity)
  if run_folder.up_to_date(folder, "discover_attributes"):
    return

  mesh = sharding.batch_mesh()
  function = jax.jit(
    lambda v, x: features(v, x.astype(jnp.float32) / 255), out_shardings=sharding.whole(mesh)
  )
  variables = sharding.replicate(mesh, variables)
  found: dict[str, Looked] = {}
  arrays: dict[str, np.ndarray] = {}
  broken: dict[str, str] = {}
  for split in SPLITS:
    collection, pairs, rows, maps = _maps(config, data, split)
    images = pipeline.DecodedImages(collection, size)

    def look(part: slice, images=images, rows=rows, maps=maps) -> np.ndarray:
      each = sharding.map_images(
        mesh, function, variables, images, rows[part], BATCH, config.num_threads
      )
      weights = maps[part] if settings.weighted else None
      return clusters_lib.pool(each, weights, explained.crop_fraction)

    parts = [look(slice(begin, begin + PART)) for begin in range(0, len(rows), PART)]
    vectors = np.concatenate(parts)
    usable = (np.linalg.norm(vectors, axis=1) > 0) & (maps != 0).any((1, 2))
    found[split] = Looked(collection, rows[usable], vectors[usable], maps[usable])
    broken |= images.broken
    if pairs:  # of training images, where they stand in for a split that has none
      home = "train" if collection.name == train.name else split
      arrays[f"{home}_pairs"] = np.array(pairs, np.int32)
  train, rows, vectors, maps = found["train"]
  if not len(rows):
    raise ValueError(
      f"no map in {pairs_lib.index_folder(workdir, 'train')} says that anything matters: look at"
      " its finished.json for images that could not be read"
    )
  clusters = clusters_lib.find_clusters(vectors, settings.num_clusters, seed=config.seed)
  for split in SPLITS:
    of = found[split]
    stands_in = split != "train" and of.collection.name == train.name
    collection = load.load_split(data, workdir, split) if stands_in else of.collection
    full = np.zeros((len(collection.ids), len(clusters.centers)), bool)
    if not stands_in:
      full[of.rows] = clusters_lib.assign(of.vectors, clusters)
    arrays |= {f"{split}_labels": full, f"{split}_ids": np.array(collection.ids)}
  members = arrays["train_labels"][rows]
  cosines = vectors @ clusters.centers.T
  order = np.argsort(-cosines, axis=0, kind="stable").T
  labels = collection_lib.label_matrix(train)[rows]
  known, agreement = np.asarray(labels.any(axis=1)), None
  if known.any():
    agreement = clusters_lib.agreement(members[known], cosines[known].argmax(axis=1), labels[known])
  names = [f"discovered {c + 1:02d}" for c in range(len(clusters.centers))]
  if not processes.is_first():
    return
  npz.write_arrays(folder / "labels.npz", {**arrays, "names": np.array(names)})
  regions = [
    [(int(i), region(maps[i], explained.crop_fraction)) for i in order[c] if members[i, c]][:SHOWN]
    for c in range(len(names))
  ]
  like = [""] * len(names)
  results: dict[str, Any] = {"silhouettes": {str(k): v for k, v in clusters.silhouettes.items()}}
  if agreement is not None:
    like = [train.attribute_names[a] if a >= 0 else "" for a in agreement.best]
    results["mean_best_f1"] = float(agreement.f1.mean())
    results["mutual_information"] = agreement.information
  document = [
    {
      "name": name,
      "images": int(members[:, c].sum()),
      **({"most_like": like[c], "f1": float(agreement.f1[c])} if agreement is not None else {}),
      "regions": [{"id": train.ids[rows[i]], "box": list(box)} for i, box in regions[c]],
    }
    for c, name in enumerate(names)
  ]
  files.write_bytes(folder / "clusters.json", (json.dumps(document, indent=1) + "\n").encode())
  files.write_bytes(folder / "clusters.png", _sheet(train, rows, regions, names, like, document))
  results["images_that_could_not_be_read"] = broken
  run_folder.finish(folder, {"clusters": len(names), "images": len(rows), **results})
  told = ""
  if agreement is not None:
    told = f"; best F1 with an annotated attribute {agreement.f1.mean():.2f} on average"
  print(
    f"discover_attributes: {len(names)} clusters of {len(rows)} images{told}; look at"
    f" {folder / 'clusters.png'}"
  )


def _explained(config: Any, workdir: pathlib.Path, train: Collection) -> Model:
  """The model that the maps are of.

  Raises:
    ValueError: there is none, or the maps are of another one.
  """
  pairs_lib.check_model(workdir, config.index, SPLITS)
  source = spaces.model_source(workdir, config.index.model)
  model, _ = spaces.model_in_spaces(source, config.index.image_size, train)
  return model


def _trunk(config: Any, workdir: pathlib.Path) -> tuple[Any, Any, int]:
  """Parameters, (parameters, images) -> feature maps, and the side of the images.

  Raises:
    ValueError: the model that the maps are of is none of train_similarity.
  """
  settings = config.discovery
  if settings.trunk == "efficientnet_lite0":
    params, apply, _ = attribute_reader.trunk(settings.trunk)
    return params, apply, settings.image_size or 224
  path = files.at(spaces.model_source(workdir, config.index.model))
  if path.suffix != ".safetensors":
    raise ValueError(
      f"the maps are of {path}, which has no trunk to take features of; take"
      " --config.discovery.trunk=efficientnet_lite0"
    )
  variables, description = weights.read_model_file(path)
  network = weights.make_similarity_model(description)

  def trunk(variables: Any, images: Any) -> Any:
    return network.apply(variables, images, method=lambda module, x: module.trunk(x, False))

  return variables, trunk, settings.image_size or description["image_size"]


def _maps(
  config: Any, data: Mapping[str, Any], split: str
) -> tuple[Collection, tuple[Pair, ...], np.ndarray, np.ndarray]:
  """Images of a split that were measured: the pairs they were measured for, rows, and maps [m h w].

  A map is the mean over the images that match; zero without one. Of training images all matches
  count, and no pairs are named.
  """
  pairs: tuple[Pair, ...] = ()
  if split == "train":
    collection = load.load_split(data, config.workdir, split)
  else:
    collection, pairs = pairs_lib.load_pairs(
      data, config.workdir, split, limit=config.pairs[f"num_{split}"], seed=config.seed
    )
  folder = pairs_lib.index_folder(config.workdir, split)
  built = run_folder.read_finished(folder, "build_index")
  pairs_lib.check_index(folder, built, collection)
  index = index_arrays.read_index(folder)
  embeddings = index_arrays.read(index, "embeddings")
  groups = collection_lib.groups_of(collection)
  of_query: dict[int, list[int]] = {}
  for pair in pairs:
    if pair.label:
      of_query.setdefault(pair.query, []).append(pair.reference)
  maps = np.zeros((len(index.queries), *index.grid), np.float32)
  for position, row in enumerate(map(int, index.queries)):
    if split == "train":
      matches = collection_lib.draw_matches(
        collection, groups[row], row, limit=built["matches"], seed=built["key"]
      )
    else:
      matches = np.array(of_query.get(row, ()), int)
    if len(matches):
      maps[position] = index_arrays.read_maps(index, position, matches, embeddings).mean(axis=0)
  return collection, pairs, np.asarray(index.queries), maps


def region(saliency: np.ndarray, covered: float = 1.0) -> tuple[float, float, float, float]:
  """Box (left, top, right, bottom) around what is above half of a map's maximum, at its peak.

  In [0, 1] of the image's middle square, of whose sides the map covers the middle share `covered`.
  """
  top = saliency >= max(0.5 * saliency.max(), 1e-12)
  peak = np.unravel_index(saliency.argmax(), saliency.shape)
  top = quality.connected(top, peak)
  rows, columns = np.flatnonzero(top.any(axis=1)), np.flatnonzero(top.any(axis=0))
  h, w = saliency.shape
  ends = np.array([columns[0] / w, rows[0] / h, (columns[-1] + 1) / w, (rows[-1] + 1) / h])
  left, top, right, bottom = map(float, (1 - covered) / 2 + covered * ends)
  return left, top, right, bottom


def _sheet(train, rows, regions, names, like, document) -> bytes:
  """A picture: a line a cluster, its nearest regions framed in what is around them."""
  line, left = CROP + 12, 200
  sheet = Image.new("RGB", (left + SHOWN * (CROP + 8) + 8, len(names) * line + 12), "white")
  draw = ImageDraw.Draw(sheet)
  for c, name in enumerate(names):
    y = 8 + c * line
    draw.text((10, y + 22), name, fill=(20, 20, 20), font_size=17)
    draw.text((10, y + 46), f"{document[c]['images']} images", fill=(110, 110, 110), font_size=13)
    if like[c]:
      text = f"most like “{like[c] if len(like[c]) < 20 else like[c][:18] + '…'}”"
      draw.text((10, y + 62), text, fill=(110, 110, 110), font_size=13)
      draw.text((10, y + 78), f"F1 {document[c]['f1']:.2f}", fill=(110, 110, 110), font_size=13)
    for place, (i, box) in enumerate(regions[c]):
      with Image.open(io.BytesIO(train.images[rows[i]])) as file:
        image = file.convert("RGB")
      side = min(image.size)
      corner = np.array([image.width - side, image.height - side]) / 2
      begin, end = corner + side * np.reshape(box, (2, 2))
      around = min(max(1.2 * float((end - begin).max()), AROUND * side), side)
      edge = np.clip((begin + end - around) / 2, 0, np.array(image.size) - around)
      (x, y0), (x1, y1) = edge.tolist(), (edge + around).tolist()
      crop = image.resize((CROP, CROP), Image.Resampling.LANCZOS, box=(x, y0, x1, y1))
      frame = [tuple(np.clip((at - edge) / around, 0, 1) * (CROP - 1)) for at in (begin, end)]
      ImageDraw.Draw(crop).rectangle(frame, outline="white", width=3)
      ImageDraw.Draw(crop).rectangle(frame, outline=(20, 20, 20), width=1)
      sheet.paste(crop, (left + place * (CROP + 8), y))
  buffer = io.BytesIO()
  sheet.save(buffer, "PNG")
  return buffer.getvalue()
