"""Attributes of photos from a table: a head on ImageNet features, concepts, and a ranking of them.

The head is one logistic regression an attribute on the mean of EfficientNet-Lite0's feature map
[h w 1280]. Its weights at each position are the activation map (Zhou et al., Learning Deep Features
for Discriminative Localization, CVPR 2016): the mean of the map is the logit.
"""

import collections
import csv
import functools
import hashlib
import io
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from sane_jax.attributes import concepts as concepts_lib
from sane_jax.maps import reasons, tasks
from sane_jax.maps.explainer import Explainer
from sane_jax.maps.explanation import Photo, rank
from sane_jax.models import efficientnet_lite0
from sane_jax.ops import ranking
from sane_jax.runs import files, processes

FILE = "file"
IMAGE_SIZE = 224
YES, NO = {"1", "true", "yes", "x"}, {"0", "false", "no", ""}
MIN_IMAGES = 3  # with and without an attribute, to learn it
# Weights of the terms where there are no held-out pairs to choose them by: mostly what the photo
# has, then what this pair's score goes by.
PHI = (0.7, 0.1, 0.0, 0.2)


class AttributeTable(NamedTuple):
  """Which photo has which attribute."""

  paths: tuple[pathlib.Path, ...]  # [n]
  names: tuple[str, ...]  # [a]
  labels: np.ndarray  # bool [n a]
  problems: tuple[str, ...]  # of rows that were left out


def read_table(path: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None):
  """Reads a CSV with a column `file` and one an attribute, of 1 and 0 (or yes and no).

  Args:
    path: of the table.
    folder: where its files are looked up; the table's own by default.

  Returns:
    An AttributeTable. Rows with an unknown file, a second row of a file, or a cell that is neither
    are left out and named in `problems`.

  Raises:
    ValueError: the table can't be read, lacks the column or any attribute, names one twice, or no
      row can be used.
  """
  path = files.at(path)
  root = files.at(folder) if folder else path.parent
  try:
    text = files.read_bytes(path).decode("utf-8-sig")
    lines = io.StringIO(text, newline="")  # its header may have names of several lines
    header = [name.strip() for name in next(csv.reader(lines, strict=True), [])]
  except (OSError, ValueError, csv.Error) as error:
    raise ValueError(
      f"--config.attributes_file={path} can't be read as a CSV in UTF-8: {error}"
    ) from error
  if FILE not in header:
    raise ValueError(
      f"{path} needs a column {FILE!r} with the photos' names and one column an attribute; it has"
      f" {', '.join(header)[:500] or 'none'}"
    )
  twice = sorted(name for name, count in collections.Counter(header).items() if count > 1)
  names = tuple(name for name in header if name != FILE)
  if twice or not names or not all(names):
    what = f"the column {twice[0]!r} twice" if twice else "no attribute"
    what = "an attribute without a name" if names and not all(names) and not twice else what
    raise ValueError(f"{path} has {what}; each attribute is one column with a name of its own")

  @functools.cache  # each folder is listed once
  def names_in(where: pathlib.Path) -> frozenset[str]:
    try:
      return frozenset(entry.name for entry in files.scandir(where) if entry.is_file())
    except (OSError, ValueError):  # ValueError: a null byte in the name
      return frozenset()

  paths: dict[pathlib.Path, None] = {}
  labels: list[list[bool]] = []
  problems: list[str] = []
  first = text[: lines.tell()].count("\n") + 1
  # Line by line: a quote left open would swallow the rest of the table.
  for number, line in enumerate(re.split(r"\r\n|\r|\n", lines.read()), first):
    where = f"{path.name}, line {number}"
    try:
      row = next(csv.reader([line], strict=True), [])
    except csv.Error as error:
      problems.append(f"{where}: {error}")
      continue
    if not any(cell.strip() for cell in row):
      continue
    if len(row) != len(header):
      problems.append(f"{where}: {len(row)} cells, the header has {len(header)}")
      continue
    cells = {name: cell.strip().lower() for name, cell in zip(header, row, strict=True)}
    file = root / row[header.index(FILE)].strip()
    wrong = [name for name in names if cells[name] not in YES | NO]
    if file.name not in names_in(file.parent):
      problems.append(f"{where}: there is no file {str(file)[:300]}")
    elif file in paths:
      problems.append(f"{where}: {file.name} has a row already, which counts")
    elif wrong:
      problems.append(f"{where}: {wrong[0]} is {cells[wrong[0]][:60]!r}, neither 1 nor 0")
    else:
      paths[file] = None
      labels.append([cells[name] in YES for name in names])
  if not paths:
    raise ValueError(f"no row of {path} can be used: {'; '.join(problems[:3]) or 'it is empty'}")
  return AttributeTable(tuple(paths), names, np.array(labels, bool), tuple(problems))


class Head(NamedTuple):
  """A logistic regression an attribute: logits = features · weights + bias."""

  weights: np.ndarray  # [a c]
  bias: np.ndarray  # [a]


def fit_head(features: np.ndarray, labels: np.ndarray, *, strength: float = 1.0) -> Head:
  """Fits each attribute on standardised features, both classes weighing the same.

  Args:
    features: [n c].
    labels: bool [n a], each with both classes.
    strength: C of scikit-learn, the inverse of the L2 penalty; divided by the number of features.
  """
  from sklearn.linear_model import LogisticRegression  # here: its start is slow, and few need it

  mean, std = features.mean(axis=0), features.std(axis=0) + 1e-6
  x = (features - mean) / std
  weights, bias = [], []
  for truth in labels.T:
    model = LogisticRegression(
      C=strength / features.shape[1] * 10, class_weight="balanced", max_iter=1000
    )
    model.fit(x, truth)
    weights.append(np.asarray(model.coef_)[0] / std)
    bias.append(np.asarray(model.intercept_)[0] - weights[-1] @ mean)
  return Head(np.asarray(weights, np.float32), np.asarray(bias, np.float32))


def learnable(labels: np.ndarray) -> np.ndarray:
  """Attributes with enough images that have them and enough that do not, bool [a]."""
  count = labels.sum(axis=0)
  return (count >= MIN_IMAGES) & (len(labels) - count >= MIN_IMAGES)


def make_predictor(head: Head) -> reasons.Predictor:
  """Image [h w 3] in [0, 1] -> confidence [a] in [0, 1] and activation maps [h w a], positive."""
  apply, params = efficientnet_lite0.load_efficientnet_lite0()

  @jax.jit
  def predict(params: Any, weights: Any, bias: Any, image: Any) -> Any:
    size = (IMAGE_SIZE, IMAGE_SIZE)
    if image.shape[:2] != size:
      image = jnp.clip(jax.image.resize(image, (*size, 3), "linear"), 0, 1)
    features = apply(params, image[None], method="features")[0]
    each = jnp.einsum("hwc,ac->hwa", features, weights)
    maps = jax.nn.softmax((each / (each.std((0, 1)) + 1e-6)).reshape(-1, each.shape[2]), axis=0)
    return jax.nn.sigmoid(each.mean((0, 1)) + bias), maps.reshape(each.shape)

  def run(image: Any) -> tuple[np.ndarray, np.ndarray]:
    return jax.device_get(predict(params, head.weights, head.bias, jnp.asarray(image)))

  return run


def read_features(images: Sequence[np.ndarray]) -> np.ndarray:
  """Mean features [n 1280] of images [h w 3] in [0, 1], each of any size."""
  apply, params = efficientnet_lite0.load_efficientnet_lite0()

  @jax.jit
  def mean(params: Any, image: Any) -> Any:
    small = image
    if image.shape[:2] != (IMAGE_SIZE, IMAGE_SIZE):
      small = jnp.clip(jax.image.resize(image, (IMAGE_SIZE, IMAGE_SIZE, 3), "linear"), 0, 1)
    return apply(params, small[None], method="features")[0].mean((0, 1))

  return np.stack([np.asarray(mean(params, jnp.asarray(image))) for image in images])


class Learned(NamedTuple):
  """What was learned from a table.

  Attributes:
    ranker: for `Explainer`.
    names: of the attributes that it knows.
    skills: of each, its head's balanced accuracy on photos held out (chance 0.5); NaN where a class
      is too small to hold any out.
    left_out: attributes and photos that could not be used, and why.
    digest: SHA-256 of the photos and the labels that it was learned from.
  """

  ranker: reasons.Ranker
  names: tuple[str, ...]
  skills: tuple[float, ...]
  left_out: tuple[str, ...]
  digest: str


def learn(
  table: AttributeTable, explainer: Explainer, *, phi: Sequence[float] = PHI,
  calibration_photos: int = 8, seed: int = 0,
  on_progress: Callable[[str], None] = lambda what: None,
) -> Learned:  # fmt: skip
  """Learns a table's attributes: a head, concepts in the explained model's embeddings, a scale.

  Matching pairs, for the concepts' scores, are each photo and its nearest neighbour. The terms are
  put on one scale over some of those pairs, each of which costs one explanation.

  Args:
    table: of photos.
    explainer: of the model that is explained.
    phi: weights of confidence, map fit, prior and sensitivity.
    calibration_photos: how many of those pairs.
    seed: of their draw, and of the concepts' random controls.
    on_progress: told what is being done.

  Raises:
    ValueError: no attribute has enough photos, or phi is off the simplex.
  """
  ranking.check_weights(phi, len(ranking.TERMS))
  on_progress("reading annotated photos")
  photos: list[Photo] = []
  rows: list[int] = []
  left_out = list(table.problems)
  for row, path in enumerate(table.paths):
    try:
      photos.append(explainer.photo(path))
      rows.append(row)
    except (ValueError, OSError) as error:
      left_out.append(f"{path.name}: {error}")
  labels = table.labels[rows]
  usable = learnable(labels) if len(labels) else np.zeros(len(table.names), bool)
  for name, count in zip(table.names, labels.sum(axis=0), strict=True):
    if not usable[table.names.index(name)]:
      left_out.append(
        f"{name}: {count} photos have it and {len(labels) - count} do not; {MIN_IMAGES} of each"
        " are needed"
      )
  if not usable.any():
    raise ValueError(
      f"no attribute can be learned from {len(labels)} photos: {'; '.join(left_out[:5])}"
    )
  names = tuple(name for name, use in zip(table.names, usable, strict=True) if use)
  labels = labels[:, usable]
  digest = hashlib.sha256(json.dumps([names, labels.tolist()]).encode())
  for photo in photos:
    digest.update(photo.pixels.tobytes())
  on_progress("learning attributes")
  features = read_features([photo.pixels for photo in photos])
  predict = make_predictor(fit_head(features, labels))
  prior, vectors = np.full(len(names), concepts_lib.NEUTRAL), np.zeros((len(names), 1))
  patterns = vectors
  neighbors = np.zeros((0, 2), int)
  if explainer.model.embed is not None:
    embeddings = np.concatenate(
      [explainer.embed(photos[i : i + 32]) for i in range(0, len(photos), 32)]
    )
    scores = embeddings @ embeddings.T
    np.fill_diagonal(scores, -np.inf)
    neighbors = np.stack([np.arange(len(photos)), scores.argmax(axis=1)], axis=1)
    found = concepts_lib.fit(
      embeddings[:, None], np.zeros(len(photos), int), np.zeros((1, 1), int), labels,
      np.ones(len(photos), bool), neighbors, seed=seed,
      settings=concepts_lib.Settings(min_images=MIN_IMAGES, min_pairs=10),
    )  # fmt: skip
    prior, vectors, patterns = found.prior[0], found.vectors[0], found.patterns[0]
  plain = reasons.make_ranker(names, predict, (prior, vectors), phi, ranking.RAW)
  calibration = ranking.RAW
  rng = np.random.default_rng(seed)
  chosen = rng.permutation(len(neighbors))[:calibration_photos]
  seen = []
  for number, pair in enumerate(neighbors[chosen], 1):
    on_progress(f"putting terms on one scale {number}/{len(chosen)}")
    explanation = explainer.explain(*(photos[i] for i in pair))
    terms = {a.name: a.terms for a in rank(explanation, plain).ranked}
    seen.append([[terms[name][term] for name in names] for term in ranking.TERMS])
  if len(seen) > 1:
    calibration = ranking.calibrate(np.array(seen).swapaxes(0, 1), likely=0.5)
  ranker = reasons.make_ranker(
    names, predict, (prior, vectors), phi, calibration, np.full(len(names), 0.5), patterns
  )
  of = reasons.RankerOf(ranker, explainer.fingerprint(), explainer.model.image_size)
  return Learned(of, names, tuple(skills(features, labels)), tuple(left_out), digest.hexdigest())


def skills(features: np.ndarray, labels: np.ndarray, folds: int = 3) -> list[float]:
  """Balanced accuracy of each attribute's head on photos held out, by cross-validation."""
  out = []
  for truth in labels.T:
    part = np.empty(len(truth), int)
    for value in (True, False):  # as many of each class in each part
      where = np.flatnonzero(truth == value)
      part[where] = np.arange(len(where)) % folds
    right = np.zeros(len(truth), bool)
    for fold in range(folds):
      train = part != fold
      head = fit_head(features[train], truth[train, None])
      right[~train] = ((features[~train] @ head.weights[0] + head.bias[0]) > 0) == truth[~train]
    out.append(float((right[truth].mean() + right[~truth].mean()) / 2))
  return out


def learn_attributes(
  settings: Mapping[str, Any], explainer: Explainer, failures: tasks.Failures
) -> Learned:
  """The attributes of the table that settings name; says how well each is known."""
  table = read_table(settings["attributes_file"], settings["attributes_folder"] or None)
  phi = PHI if settings["phi"] is None else tuple(settings["phi"])
  with tqdm.tqdm(desc="attributes", bar_format="{desc} {postfix}", disable=None) as bar:
    learned = learn(
      table, explainer, phi=phi, seed=settings["seed"], on_progress=bar.set_postfix_str
    )
  failures += [(settings["attributes_file"], problem) for problem in learned.left_out]
  if not processes.is_first():
    return learned
  print(
    f"{len(learned.names)} attributes learned from {len(table.paths)} photos; balanced accuracy"
  )
  print("on photos held out (chance 50 %):")
  order = np.argsort([-skill for skill in learned.skills], kind="stable")
  told = [f"{learned.names[a]} {100 * learned.skills[a]:.0f} %" for a in order]
  print("  " + ", ".join(told[:20]) + (", ..." if len(told) > 20 else ""))
  return learned
