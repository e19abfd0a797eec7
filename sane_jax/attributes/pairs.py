"""Pairs of a split, with all that the choice of an attribute rests on, read from what jobs left.

For p pairs and a attributes: the pair's score and saliency map, and four terms an attribute, in
their own units. The confidence is the attribute model's softmax over attributes; the map fit the
cosine of saliency map and activation map; the prior the concept's TCAV score in the pair's space;
the sensitivity the derivative of the pair's own score as the query moves along the concept's
direction v, v·(e(r) − s e(q)).
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from sane_jax.attributes import concepts as concepts_lib
from sane_jax.attributes import reader as attribute_reader
from sane_jax.datasets import collection as collection_lib
from sane_jax.datasets import load, pipeline
from sane_jax.datasets.collection import Collection, Pair
from sane_jax.maps import index_arrays
from sane_jax.ops import ranking, resampling
from sane_jax.runs import files
from sane_jax.runs import folder as run_folder


class PairTerms(NamedTuple):
  """See the module's text. Rows are of the collection.

  Attributes:
    labels: 1 the images match, 0 they do not.
    conditions: the space that compares the pair.
    terms: in the order of `TERMS`.
    fit_against: cosine of the activation map with what speaks against the match: the saliency map's
      negative part.
    query_rows: the queries, each once; `activations` are theirs.
    row_confidence: of all images of the split.
  """

  queries: np.ndarray  # [p]
  references: np.ndarray  # [p]
  labels: np.ndarray  # [p]
  conditions: np.ndarray  # [p]
  scores: np.ndarray  # [p]
  saliency: np.ndarray  # [p h w] signed
  terms: np.ndarray  # [4 p a]
  fit_against: np.ndarray  # [p a]
  query_rows: np.ndarray  # [u]
  activations: np.ndarray  # [u h2 w2 a] float16, each attribute's sums to 1
  row_confidence: np.ndarray  # [n a]
  embeddings: np.ndarray  # [n t d] unit, by type of the other image
  types: np.ndarray  # [n] which slot of the other's embedding is meant for an image
  covered: float = 1.0  # middle share of the images' sides that saliency maps are of

  def activation(self, pair: int, attribute: int) -> np.ndarray:
    """Activation map [h2 w2] of a pair's query."""
    row = np.searchsorted(self.query_rows, self.queries[pair])
    return self.activations[row, :, :, attribute].astype(np.float32)

  def score(self, queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Scores [m] of any rows with any others."""
    q = self.embeddings[queries, self.types[references]]
    r = self.embeddings[references, self.types[queries]]
    return np.einsum("md,md->m", q, r)


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
  embeddings = index.embeddings.read().result()
  saliency = np.zeros((len(pairs), *index.grid), np.float32)
  for row in rows:
    where = np.flatnonzero(queries == row)
    position = int(np.searchsorted(index.queries, row))
    saliency[where] = index_arrays.read_maps(index, position, references[where], embeddings)

  reader = attribute_reader.read_attribute_model(files.at(workdir) / attributes)
  if reader.names != collection.attribute_names:
    raise ValueError(
      f"the model in {files.at(workdir) / attributes} knows {len(reader.names)} attributes,"
      f" {', '.join(reader.names[:3])}, ...; {collection.name} has"
      f" {len(collection.attribute_names)}: train one on it with --config.job=train_attributes"
    )
  images = pipeline.DecodedImages(collection, reader.image_size)
  everything = np.arange(len(collection.ids))
  confidence, _ = attribute_reader.activate(reader, images, everything, num_threads, maps=False)
  _, activations = attribute_reader.activate(reader, images, rows, num_threads)
  of_row = np.searchsorted(rows, queries)
  covered = finished.get("covered", 1.0)
  fit, against = fits(saliency, activations, of_row, covered)
  conditions = collection.conditions[collection.types[queries], collection.types[references]]
  known = concepts_lib.read_concepts(
    files.at(workdir) / concepts, collection.attribute_names, collection.name
  )
  if len(known.prior) == 1:
    conditions = np.zeros_like(conditions)
  types = np.asarray(index.types)
  q = embeddings[queries, types[references]]
  r = embeddings[references, types[queries]]
  scores = np.einsum("pd,pd->p", q, r)
  sensitivity = np.zeros_like(fit)
  for pair, condition in enumerate(conditions):
    sensitivity[pair] = ranking.sensitivities(known.vectors[condition], q[pair], r[pair])
  terms = np.stack([confidence[queries], fit, known.prior[conditions], sensitivity])
  labels = np.array([p.label for p in pairs])
  return PairTerms(
    queries, references, labels, conditions, scores, saliency, terms.astype(np.float32), against,
    rows, activations, confidence, embeddings, types, covered,
  )  # fmt: skip


def check_index(folder: pathlib.Path, finished: Mapping[str, Any], collection: Collection) -> None:
  """Raises ValueError where an index is of other images than a collection."""
  if finished["content"] != collection_lib.hash_images(collection):
    raise ValueError(
      f"the index in {folder} is of other images than {collection.name}; remove {folder} and build"
      " it again with --config.job=build_index"
    )


def fits(
  saliency: np.ndarray, activations: np.ndarray, of_row: np.ndarray, covered: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
  """Cosines [p a] of activation maps with the positive and the negative part of saliency maps.

  Args:
    saliency: [p h w].
    activations: [u h2 w2 a].
    of_row: which of the u maps belongs to each pair [p].
    covered: middle share of the images' sides that the saliency maps are of: the attribute model
      sees the whole middle square, and the explained model may crop it.
  """
  if covered != 1:
    saliency = resampling.resample(saliency, saliency.shape[1:], covered).astype(np.float32)
  fit = jax.jit(jax.vmap(ranking.map_fit))
  out = np.zeros((2, len(saliency), activations.shape[-1]), np.float32)
  for begin in range(0, len(saliency), 256):  # bounds the memory
    part = slice(begin, min(begin + 256, len(saliency)))
    maps = np.asarray(activations[of_row[part]], np.float32)
    for side, sign in enumerate((1, -1)):
      out[side, part] = fit(np.maximum(sign * saliency[part], 0), maps)
  return out[0], out[1]
