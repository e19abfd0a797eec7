"""Pairs of a split, with all that the choice of an attribute rests on, read from what jobs left.

For p pairs and a attributes: the pair's score and saliency map, and four terms an attribute, in
their own units. The confidence is the attribute model's softmax over attributes; the map fit the
cosine of saliency map and activation map; the prior the concept's TCAV score in the pair's space;
the sensitivity the derivative of the pair's own score as the query moves along the concept's
direction v, v·(e(r) − s e(q)).
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sane_jax.attributes import concepts as concepts_lib
from sane_jax.attributes import reader as attribute_reader
from sane_jax.attributes import spaces
from sane_jax.datasets import collection as collection_lib
from sane_jax.datasets import load, pipeline
from sane_jax.datasets.collection import Collection, Pair
from sane_jax.maps import index_arrays
from sane_jax.ops import ranking, resampling
from sane_jax.runs import files
from sane_jax.runs import folder as run_folder


class PairTerms(NamedTuple):
  """The pairs of a split and their terms; see the module's text.

  What an index counts: a *pair* is one of p; a *row* one of the n images of the collection; a
  *position* one of the u rows that are queries, each once; a *slot* one of the t embeddings of an
  image, of which the other image's type says which compares the two; a *space* one of the k in
  which the model compares, by both types.

  Attributes:
    queries: rows.
    references: rows.
    positions: of the queries in `activations`.
    labels: 1 the images match, 0 they do not.
    spaces: that compare the pairs; 0 where concepts are of one space.
    scores: cosines, in [−1, 1].
    saliency: maps of the queries, signed.
    terms: each [p a].
    activations: maps of the queries, float16; each attribute's sums to 1.
    confidence: of all rows.
    embeddings: of all rows, of length 1.
    slots: an image with another is `embeddings[row, slots[other]]`.
    concepts: of all spaces.
    covered: middle share of the images' sides that saliency maps are of.
  """

  queries: np.ndarray  # [p]
  references: np.ndarray  # [p]
  positions: np.ndarray  # [p]
  labels: np.ndarray  # [p]
  spaces: np.ndarray  # [p]
  scores: np.ndarray  # [p]
  saliency: np.ndarray  # [p h w]
  terms: ranking.Terms
  activations: np.ndarray  # [u h2 w2 a]
  confidence: np.ndarray  # [n a]
  embeddings: np.ndarray  # [n t d]
  slots: np.ndarray  # [n]
  concepts: concepts_lib.Concepts
  covered: float = 1.0

  def activation(self, pair: int, attribute: int) -> np.ndarray:
    """Activation map [h2 w2] of a pair's query."""
    return self.activations[self.positions[pair], :, :, attribute].astype(np.float32)

  def embedded(
    self, queries: np.ndarray, references: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Embeddings [m d] of any rows and of any others, in the spaces that compare them."""
    return (
      self.embeddings[queries, self.slots[references]],
      self.embeddings[references, self.slots[queries]],
    )

  def score(self, queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Scores [m] of any rows with any others."""
    return np.einsum("md,md->m", *self.embedded(queries, references))


def index_folder(workdir: Any, split: str) -> pathlib.Path:
  """Where build_index leaves the effects of a split's images."""
  return files.at(workdir) / ("index" if split == "train" else f"index_{split}")


def load_pairs(
  data: Mapping[str, Any], workdir: Any, split: str, *, limit: int, seed: int
) -> tuple[Collection, tuple[Pair, ...]]:
  """A split and its pairs: `limit` that match and as many that do not, if there are so many.

  A data set without a validation split gives pairs of its training images in its place, and says
  so.

  Raises:
    ValueError: there are no pairs.
  """
  collection = load.load_split(data, workdir, split)
  pairs = collection_lib.draw_pairs(collection, limit=limit, seed=seed)
  if split == "valid" and not any(pair.label for pair in pairs):
    print(f"{collection.name} has no pairs that match: pairs of training images stand in for them")
    collection = load.load_split(data, workdir, "train")
    pairs = collection_lib.draw_pairs(collection, limit=limit, seed=seed)
  if not any(pair.label for pair in pairs):
    raise ValueError(
      f"{collection.name} has no two images that match of which one has a known attribute: there is"
      " nothing to explain; add annotations, or groups of two images or more"
    )
  return collection, pairs


def read_terms(
  collection: Collection, pairs: tuple[Pair, ...], workdir: Any, split: str, *,
  attributes: str = "attributes", concepts: str = "concepts", num_threads: int = 2,
) -> PairTerms:  # fmt: skip
  """Terms of the pairs of a split. No pass of the similarity model; two of the attribute model.

  Raises:
    ValueError: the index, the attribute model or the concepts are missing or of other data; says
      what to run.
  """
  folder = index_folder(workdir, split)
  finished = run_folder.read_finished(folder, "build_index")
  check_index(folder, finished, collection)
  index = index_arrays.read_index(folder)
  queries = np.array([p.query for p in pairs])
  references = np.array([p.reference for p in pairs])
  rows = np.unique(queries)
  missing = np.setdiff1d(rows, index.queries)
  if len(missing):
    raise ValueError(
      f"the index in {folder} lacks {len(missing)} of {len(rows)} queries, such as"
      f" {collection.ids[missing[0]]}; remove {folder} and build it again with"
      " --config.job=build_index"
    )
  embeddings = index_arrays.read(index, "embeddings")
  saliency = np.zeros((len(pairs), *index.grid), np.float32)
  for row in rows:
    where = np.flatnonzero(queries == row)
    position = int(np.searchsorted(index.queries, row))
    saliency[where] = index_arrays.read_maps(index, position, references[where], embeddings)

  reader = attribute_reader.read_attribute_model(files.at(workdir) / attributes, collection)
  images = pipeline.DecodedImages(collection, reader.image_size)
  everything = np.arange(len(collection.ids))
  confidence, _ = attribute_reader.activate(reader, images, everything, num_threads, maps=False)
  _, activations = attribute_reader.activate(reader, images, rows, num_threads)
  positions = np.searchsorted(rows, queries)
  covered = finished.get("covered", 1.0)
  fit = fits(saliency, activations, positions, covered)
  known = concepts_lib.read_concepts(
    files.at(workdir) / concepts, collection.attribute_names, collection.name
  )
  compared_in = collection.conditions[collection.types[queries], collection.types[references]]
  if len(known.prior) == 1:
    compared_in = np.zeros_like(compared_in)
  slots = np.asarray(index.types)
  q, r = embeddings[queries, slots[references]], embeddings[references, slots[queries]]
  terms = ranking.Terms(
    confidence[queries], fit, known.prior[compared_in].astype(np.float32),
    sensitivities(known, compared_in, q, r),
  )  # fmt: skip
  labels = np.array([p.label for p in pairs])
  return PairTerms(
    queries, references, positions, labels, compared_in, np.einsum("pd,pd->p", q, r), saliency,
    terms, activations, confidence, embeddings, slots, known, covered,
  )  # fmt: skip


def sensitivities(
  concepts: concepts_lib.Concepts, of: np.ndarray, queries: np.ndarray, references: np.ndarray
) -> np.ndarray:
  """Sensitivities [p a] of pairs compared in spaces `of` [p], whose embeddings [p d] these are."""
  each = zip(of, queries, references, strict=True)
  found = [ranking.sensitivities(concepts.vectors[space], q, r) for space, q, r in each]
  return np.asarray(found, np.float32)


def check_index(folder: pathlib.Path, finished: Mapping[str, Any], collection: Collection) -> None:
  """Raises ValueError where an index is of other images than a collection."""
  if finished["content"] != collection_lib.hash_images(collection):
    raise ValueError(
      f"the index in {folder} is of other images than {collection.name}; remove {folder} and build"
      " it again with --config.job=build_index"
    )


def check_model(workdir: Any, index: Mapping[str, Any], splits: Sequence[str]) -> str:
  """What the run's model is called, see `spaces.identify`; the splits' indexes have to be of it.

  An index that is not there is passed over: whoever reads it says so.

  Args:
    workdir: of the run.
    index: the config's section of that name: `model` and `image_size`.
    splits: whose indexes are used, or rest in what is used.

  Raises:
    ValueError: an index is of another model, or of other weights of the same name.
  """
  source = spaces.model_source(workdir, index["model"])
  name = spaces.identify(workdir, source, index["image_size"])
  ours = (name, index["image_size"])
  for split in splits:
    folder = index_folder(workdir, split)
    if not name or not (folder / "settings.json").exists():
      continue
    settings = run_folder.read_json(folder / "settings.json")
    theirs = (settings.get("index.model", name), settings.get("index.image_size"))
    if theirs != ours:
      told = [f"{name} (image_size {size or 'its own'})" for name, size in (theirs, ours)]
      raise ValueError(
        f"the maps in {folder} are of the model {told[0]}; --config.index names {told[1]}. Name the"
        f" first, or remove {folder} and what rests on it, and build it again with"
        " --config.job=build_index"
      )
  return name


def fits(
  saliency: np.ndarray, activations: np.ndarray, positions: np.ndarray, covered: float = 1.0
) -> np.ndarray:
  """Cosines [p a] of activation maps with the positive part of saliency maps.

  Args:
    saliency: [p h w].
    activations: [u h2 w2 a].
    positions: which of the u maps belongs to each pair [p].
    covered: middle share of the images' sides that the saliency maps are of: the attribute model
      sees the whole middle square, and the explained model may crop it.
  """
  if covered != 1:
    saliency = resampling.resample(saliency, saliency.shape[1:], covered).astype(np.float32)
  fit = jax.jit(jax.vmap(ranking.map_fit))
  out = np.zeros((len(saliency), activations.shape[-1]), np.float32)
  for begin in range(0, len(saliency), 256):  # bounds the memory
    part = slice(begin, min(begin + 256, len(saliency)))
    maps = np.asarray(activations[positions[part]], np.float32)
    out[part] = fit(np.maximum(saliency[part], 0), maps)
  return out
