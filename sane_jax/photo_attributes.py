"""Attributes of photos from a table: a head on ImageNet features, concepts, and a ranking of them.

The head is one logistic regression an attribute on the mean of EfficientNet-Lite0's feature map
[h w 1280]. Its weights at each position are the activation map (Zhou et al., Learning Deep Features
for Discriminative Localization, CVPR 2016): the mean of the map is the logit.
"""

import csv
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import LogisticRegression

from sane_jax import pair_terms, ranker
from sane_jax.models import efficientnet_lite0
from sane_jax.ops import ranking

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
  path = pathlib.Path(path)
  root = pathlib.Path(folder) if folder else path.parent
  try:
    with path.open(newline="", encoding="utf-8-sig") as file:
      rows = list(csv.reader(file))
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise ValueError(
      f"--config.attributes={path} can't be read as a CSV in UTF-8: {error}"
    ) from error
  header = [name.strip() for name in rows[0]] if rows else []
  if FILE not in header:
    raise ValueError(
      f"{path} needs a column {FILE!r} with the photos' names and one column an attribute; it has"
      f" {', '.join(header) or 'none'}"
    )
  twice = sorted({name for name in header if header.count(name) > 1})
  names = tuple(name for name in header if name != FILE)
  if twice or not names or not all(names):
    what = f"the column {twice[0]!r} twice" if twice else "no attribute"
    what = "an attribute without a name" if names and not all(names) and not twice else what
    raise ValueError(f"{path} has {what}; each attribute is one column with a name of its own")
  paths: list[pathlib.Path] = []
  labels: list[list[bool]] = []
  problems: list[str] = []
  for number, row in enumerate(rows[1:], 2):
    if not any(cell.strip() for cell in row):
      continue
    where = f"{path.name}, line {number}"
    if len(row) != len(header):
      problems.append(f"{where}: {len(row)} cells, the header has {len(header)}")
      continue
    cells = {name: cell.strip().lower() for name, cell in zip(header, row, strict=True)}
    file = root / row[header.index(FILE)].strip()
    wrong = [name for name in names if cells[name] not in YES | NO]
    if not file.is_file():
      problems.append(f"{where}: there is no file {file}")
    elif file in paths:
      problems.append(f"{where}: {file.name} has a row already, which counts")
    elif wrong:
      problems.append(f"{where}: {wrong[0]} is {cells[wrong[0]]!r}, neither 1 nor 0")
    else:
      paths.append(file)
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
  mean, std = features.mean(axis=0), features.std(axis=0) + 1e-6
  x = (features - mean) / std
  weights, bias = [], []
  for truth in labels.T:
    model = LogisticRegression(
      C=strength / features.shape[1] * 10, class_weight="balanced", max_iter=1000
    )
    model.fit(x, truth)
    weights.append(model.coef_[0] / std)
    bias.append(model.intercept_[0] - weights[-1] @ mean)
  return Head(np.asarray(weights, np.float32), np.asarray(bias, np.float32))


def learnable(labels: np.ndarray) -> np.ndarray:
  """Attributes with enough images that have them and enough that do not, bool [a]."""
  count = labels.sum(axis=0)
  return (count >= MIN_IMAGES) & (len(labels) - count >= MIN_IMAGES)


def make_look(head: Head) -> Callable[[Any], tuple[np.ndarray, np.ndarray]]:
  """Image [h w 3] in [0, 1] -> confidence [a] in [0, 1] and activation maps [h w a], positive."""
  apply, params = efficientnet_lite0.load_efficientnet_lite0()

  @jax.jit
  def look(params: Any, weights: Any, bias: Any, image: Any) -> Any:
    size = (IMAGE_SIZE, IMAGE_SIZE)
    if image.shape[:2] != size:
      image = jnp.clip(jax.image.resize(image, (*size, 3), "linear"), 0, 1)
    features = apply(params, image[None], method="features")[0]
    each = jnp.einsum("hwc,ac->hwa", features, weights)
    maps = jax.nn.softmax((each / (each.std((0, 1)) + 1e-6)).reshape(-1, each.shape[2]), axis=0)
    return jax.nn.sigmoid(each.mean((0, 1)) + bias), maps.reshape(each.shape)

  def run(image: Any) -> tuple[np.ndarray, np.ndarray]:
    return jax.device_get(look(params, head.weights, head.bias, jnp.asarray(image)))

  return run


def read_features(images: Sequence[np.ndarray]) -> np.ndarray:
  """Mean features [n 1280] of images [h w 3] in [0, 1], each of any size."""
  apply, params = efficientnet_lite0.load_efficientnet_lite0()

  @jax.jit
  def mean(params: Any, image: Any) -> Any:
    return apply(params, image[None], method="features")[0].mean((0, 1))

  size = (IMAGE_SIZE, IMAGE_SIZE, 3)
  return np.stack(
    [mean(params, jax.image.resize(i, size, "linear")) for i in map(jnp.asarray, images)]
  )
