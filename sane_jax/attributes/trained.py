"""What tune_ranking left on disk, and the attributes of a trained run for the explainer."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sane_jax.attributes import concepts as concepts_lib
from sane_jax.attributes import reader as attribute_reader
from sane_jax.attributes import spaces as spaces_lib
from sane_jax.datasets.collection import Collection
from sane_jax.maps import reasons
from sane_jax.models import fingerprint, weights
from sane_jax.models import model as model_lib
from sane_jax.ops import ranking
from sane_jax.runs import files, npz
from sane_jax.runs import folder as run_folder

WHOLE = "all terms"
# The terms that each ranking weighs, by its name in tables and files. The paper's has the first
# three.
ABLATIONS: Mapping[str, tuple[str, ...]] = {
  ", ".join(terms): terms
  for terms in (
    ("confidence",), ("map fit",), ("prior",), ("sensitivity",), ("confidence", "map fit"),
    ("confidence", "prior"), ("map fit", "prior"), ("confidence", "map fit", "prior"),
    ("confidence", "sensitivity"),
  )
} | {WHOLE: ranking.TERMS}  # fmt: skip


class Ranking(NamedTuple):
  """What tune_ranking left.

  Attributes:
    phi: weights of the terms, for each of `ABLATIONS`.
    calibration: what puts the terms on one scale.
    thresholds: confidence [a] above which an image counts as having an attribute.
    names: of the attributes.
  """

  phi: dict[str, tuple[float, ...]]
  calibration: ranking.Calibration
  thresholds: np.ndarray
  names: tuple[str, ...]

  @property
  def weights(self) -> tuple[float, ...]:
    """Those of all terms, by which attributes are ranked."""
    return self.phi[WHOLE]


def choose_weights(
  grid: Sequence[Sequence[float]], gains: np.ndarray, clusters: np.ndarray,
  weights: Sequence[float] | None = None,
) -> dict[str, tuple[float, ...]]:  # fmt: skip
  """φ for each of `ABLATIONS`, by what those of a grid gain on pairs.

  Those of `ranking.simplest_weights` where, on pairs that did not choose them, they gain more than
  a standard error over their first term alone; else that.

  Args:
    grid: φ of all terms to choose from [g 4].
    gains: of each on each pair [g p], see `ranking.simplest_weights`.
    clusters: queries of the pairs [p].
    weights: of all terms, where they are not to be chosen.
  """
  points = np.asarray(grid, np.float64)
  chosen: dict[str, tuple[float, ...]] = {}
  for name, used in ABLATIONS.items():
    allowed = [term in used for term in ranking.TERMS]
    held_out = ranking.held_out_gains(points, gains, allowed, clusters)[None]
    phi = tuple(float(weight) for weight in np.eye(len(allowed))[allowed.index(True)])
    if held_out.mean() > ranking.clustered_error(held_out, clusters)[0]:
      phi = ranking.simplest_weights(points, gains, allowed, clusters)
    chosen[name] = phi
  return chosen if weights is None else chosen | {WHOLE: tuple(weights)}


def write_ranking(folder: pathlib.Path, tuned: Ranking) -> None:
  """Keeps a ranking."""
  text = json.dumps({"phi": tuned.phi, "names": tuned.names}).encode()
  npz.write_arrays(
    folder / "ranking.npz",
    {
      "quantiles": tuned.calibration.quantiles,
      "thresholds": tuned.thresholds,
      "text": np.frombuffer(text, np.uint8),
    },
  )


def read_ranking(folder: pathlib.Path) -> Ranking:
  """The ranking in `folder`.

  Raises:
    ValueError: there is none; says what to run.
  """
  arrays = npz.read_arrays(folder / "ranking.npz")
  if arrays is None:
    raise ValueError(f"{folder} holds no ranking; run --config.job=tune_ranking first")
  try:
    text = json.loads(arrays["text"].tobytes())
    phi = {name: tuple(weights) for name, weights in text["phi"].items()}
    calibration = ranking.Calibration(arrays["quantiles"])
    return Ranking(phi, calibration, arrays["thresholds"], tuple(text["names"]))
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f"the ranking in {folder} is damaged ({error}); remove it and run --config.job=tune_ranking"
    ) from error


class Trained(NamedTuple):
  """What ranks a run's attributes, read once for all spaces; see `read_trained`."""

  names: tuple[str, ...]
  predict: reasons.Predictor
  concepts: concepts_lib.Concepts
  tuned: Ranking
  measured: spaces_lib.Measured | None = None  # the model, where the run knows what it does

  def ranker(self, space: int) -> reasons.Ranker:
    """Ranks the attributes of pairs compared in a space; not looked at where there is one alone."""
    space = space if len(self.concepts.prior) > 1 else 0
    prior, vectors, patterns = self.concepts
    ranker = reasons.make_ranker(
      self.names, self.predict, (prior[space], vectors[space]), self.tuned.weights,
      self.tuned.calibration, self.tuned.thresholds, None if patterns is None else patterns[space],
    )  # fmt: skip
    if self.measured is None:
      return ranker
    model = fingerprint.Fingerprint(self.measured.name, "", self.measured.given[space])
    return reasons.RankerOf(ranker, model, self.measured.image_size)


def read_trained(
  workdir: str | os.PathLike[str], collection: Collection | None = None, *,
  attributes: str = "attributes", concepts: str = "concepts", tuned: str = "ranking",
) -> Trained:  # fmt: skip
  """What train_attributes, fit_concepts and tune_ranking left in folders of `workdir`.

  Raises:
    ValueError: something is missing, or of other attributes than the rest or than a collection's,
      if one is given; says which job makes it.
  """
  root = files.at(workdir)
  ranked = read_ranking(root / tuned)
  reader = attribute_reader.read_attribute_model(root / attributes, collection)
  check_names(ranked, reader.names)
  whose = collection.name if collection else str(root / attributes)
  known = concepts_lib.read_concepts(root / concepts, reader.names, whose)
  measured = spaces_lib.read_measured(root / concepts)
  if measured is not None and len(measured.given) != len(known.prior):
    raise ValueError(
      f"the concepts in {root / concepts} are of {len(known.prior)} spaces and their model of"
      f" {len(measured.given)}: remove {root / concepts} and run --config.job=fit_concepts"
    )
  predict = attribute_reader.make_predictor(reader)
  return Trained(reader.names, predict, known, ranked, measured)


def load_attributes(
  workdir: str | os.PathLike[str], *, condition: Any = None, attributes: str = "attributes",
  concepts: str = "concepts", tuned: str = "ranking",
) -> "reasons.Ranker":  # fmt: skip
  """The attributes of a trained run, for `Explainer(model, attributes=...)`.

  Args:
    workdir: where the jobs train_attributes, fit_concepts and tune_ranking left their folders.
    condition: in which space of a type-aware model, as for `load_model`: two types as 'tops,shoes',
      or an index; not looked at where there is one space.
    attributes: folder in `workdir` of the attribute model.
    concepts: folder of the concepts.
    tuned: folder of the ranking.

  Raises:
    ValueError: something is missing, and which job makes it; no such condition.
  """
  known = read_trained(workdir, attributes=attributes, concepts=concepts, tuned=tuned)
  space, spaces = 0, len(known.concepts.prior)
  if spaces > 1:
    _, description = weights.read_model_file(spaces_lib.model_source(workdir))
    space = model_lib.find_condition(description, spaces, condition) or 0
  return known.ranker(space)


def check_chain(
  workdir: str | os.PathLike[str], concepts: str, tuned: str = "", attributes: str = ""
) -> None:
  """Raises ValueError unless concepts are of the index that is there now, and a ranking of both.

  Retrained and run again from the middle, a run would rank by what other weights left. What has no
  settings any more, such as folders that were copied without their index, is taken as it is.

  Args:
    workdir: of the run.
    concepts: the folder in it that fit_concepts left.
    tuned: likewise of tune_ranking; not looked at if empty.
    attributes: the attribute model that it is to be of.
  """
  root = files.at(workdir)

  def check(folder: str, job: str, part: str, now: str, whose: str) -> None:
    path = root / folder / "settings.json"
    if path.exists() and run_folder.read_json(path).get(part, now) != now:
      raise ValueError(
        f"{root / folder} was made of another {whose} than is there now; remove {root / folder} and"
        f" make it again with --config.job={job}"
      )

  index = root / "index" / "settings.json"
  if index.exists():
    check(concepts, "fit_concepts", "index", run_folder.hash_file(index), "index")
  if tuned and run_folder.is_finished(root / concepts):
    now = run_folder.hash_finished(root / concepts, "fit_concepts")
    check(tuned, "tune_ranking", "concepts", now, f"{concepts} folder")
  if tuned and attributes and run_folder.is_finished(root / attributes):
    now = run_folder.hash_finished(root / attributes, "train_attributes")
    check(tuned, "tune_ranking", "attributes", now, f"{attributes} folder")


def check_names(tuned: Ranking, names: Sequence[str]) -> None:
  """Raises ValueError where a ranking was tuned for other attributes than a model knows."""
  if tuple(tuned.names) != tuple(names):
    raise ValueError(
      f"the ranking was tuned for {len(tuned.names)} attributes, {', '.join(tuned.names[:3])}, ...;"
      f" the attribute model knows {len(names)}, {', '.join(names[:3])}, ...: run"
      " --config.job=tune_ranking again, in a folder of its own"
    )
