"""What tune_ranking left on disk, and the attributes of a trained run for the explainer."""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sane_jax.attributes import concepts as concepts_lib
from sane_jax.attributes import reader as attribute_reader
from sane_jax.maps import reasons
from sane_jax.models import model as model_lib
from sane_jax.models import weights
from sane_jax.ops import ranking
from sane_jax.runs import files, npz

# Which terms each comparison uses. The paper's method has the first three.
PAPER = "confidence, map fit, prior"
WHOLE = "all terms"
ABLATIONS: dict[str, tuple[str, ...]] = {
  **{
    name: tuple(map(str, name.split(", ")))
    for name in (
      "confidence", "map fit", "prior", "sensitivity", "confidence, map fit", "confidence, prior",
      "map fit, prior", PAPER, "confidence, sensitivity",
    )
  },
  WHOLE: ranking.TERMS,
}  # fmt: skip


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
  root = files.at(workdir)
  chosen = read_ranking(root / tuned)
  reader = attribute_reader.read_attribute_model(root / attributes)
  check_names(chosen, reader.names)
  known = concepts_lib.read_concepts(root / concepts, reader.names, str(root / attributes))
  space = 0
  if len(known.prior) > 1:
    _, description = weights.read_model_file(root / "similarity" / "model.safetensors")
    space = model_lib.find_condition(description, len(known.prior), condition)
  return reasons.make_ranker(
    reader.names, attribute_reader.make_look(reader), (known.prior[space], known.vectors[space]),
    chosen.phi[WHOLE], chosen.calibration, chosen.thresholds,
  )  # fmt: skip


def check_names(tuned: Ranking, names: Sequence[str]) -> None:
  """Raises ValueError where a ranking was tuned for other attributes than a model knows."""
  if tuple(tuned.names) != tuple(names):
    raise ValueError(
      f"the ranking was tuned for {len(tuned.names)} attributes, {', '.join(tuned.names[:3])}, ...;"
      f" the attribute model knows {len(names)}, {', '.join(names[:3])}, ...: run"
      " --config.job=tune_ranking again, in a folder of its own"
    )
