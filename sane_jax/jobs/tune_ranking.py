"""Job: chooses the weights of the terms by which attributes are ranked, on held-out pairs."""

from typing import Any

import numpy as np
import tqdm

from sane_jax.attributes import effects as attribute_effects
from sane_jax.attributes import pairs as pairs_lib
from sane_jax.attributes import trained
from sane_jax.datasets import collection as collection_lib
from sane_jax.datasets import load
from sane_jax.ops import ranking, statistics
from sane_jax.runs import files, processes
from sane_jax.runs import folder as run_folder
from sane_jax.runs.settings import check_choice, check_range

CALIBRATIONS = ("normal_scores", "none")


def check(config: Any) -> None:
  """Raises ValueError for settings that can't be; reads no data and writes nothing."""
  load.check_data(config.data)
  settings = config.ranking
  check_choice("ranking.calibration", settings.calibration, CALIBRATIONS)
  if settings.phi is not None:
    ranking.check_weights(settings.phi, len(ranking.TERMS))
  check_range("ranking.likely", settings.likely, 0, 1)
  check_range("ranking.steps", settings.steps, 1)
  check_range("ranking.representatives", settings.representatives, 1)


def run(config: Any) -> None:
  """Weights φ that make the attribute named on validation pairs move the score most.

  For each φ of a grid on the simplex, the mean over pairs that match of attribute deletion plus
  insertion (`attribute_effects`) of the attribute ranked first, 0 where no image can stand in. Kept
  is what is nearest to the confidence alone and not told from the best by one standard error, of
  all terms and of some without the others (`trained.ABLATIONS`); the confidence alone, where that
  rule gains no standard error over it in cross-validation over queries.
  Writes WORKDIR/ranking: ranking.npz, finished.json with every φ that was tried.
  """
  check(config)
  settings = config.ranking
  workdir = files.at(config.workdir)
  valid, pairs = pairs_lib.load_pairs(
    config.data, workdir, "valid", limit=config.pairs.num_valid, seed=config.seed
  )
  identity = run_folder.identity(
    collection_lib.fingerprint(valid), ranking=settings, key=config.seed, pairs=len(pairs)
  )
  # Older runs, with the mean of the best, are not this one's.
  identity["ranking.chosen_by"] = "one standard error, towards the confidence alone"
  for name, folder, job in (
    ("index", pairs_lib.index_folder(workdir, "valid"), "build_index"),
    ("attributes", workdir / settings.attributes, "train_attributes"),
    ("concepts", workdir / settings.concepts, "fit_concepts"),
  ):
    identity[name] = run_folder.hash_finished(folder, job)
  pairs_lib.check_model(workdir, config.index, ["train", "valid"])
  trained.check_chain(workdir, settings.concepts)
  folder = run_folder.claim_folder(workdir / settings.folder, identity)
  if run_folder.up_to_date(folder, "tune_ranking"):
    return

  terms = pairs_lib.read_terms(
    valid, pairs, workdir, "valid", attributes=settings.attributes, concepts=settings.concepts,
    num_threads=config.num_threads,
  )  # fmt: skip
  calibration = ranking.RAW
  if settings.calibration == "normal_scores":
    calibration = ranking.calibrate(terms.terms, likely=settings.likely)
  labels = collection_lib.label_matrix(valid)
  known = labels.any(axis=1)
  thresholds = attribute_effects.presence_thresholds(terms.confidence[known], labels[known])
  present = attribute_effects.presence(labels, terms.confidence, thresholds)

  matching = np.flatnonzero(terms.labels == 1)
  scores = ranking.normal_scores(terms.terms.at(matching), calibration)
  grid = ranking.simplex(len(ranking.TERMS), settings.steps)
  named = np.stack([ranking.totals(scores, phi).argmax(axis=1) for phi in grid])
  each = np.zeros((len(grid), len(matching), 2))
  worth = _effects(matching, named, terms, present, valid.types, settings.representatives)
  for index, attributes in enumerate(named):
    each[index] = np.nan_to_num(worth[np.arange(len(matching)), attributes])
  gains, values = each.sum(axis=2), each.mean(axis=1)
  if not np.isfinite(worth).any():
    raise ValueError(
      f"no attribute that is named on {valid.name} has images with and without it among those of"
      " one type: there is nothing to choose phi by. Give more pairs, --config.pairs.num_valid=N"
    )
  if not processes.is_first():
    return
  queries = terms.queries[matching]
  chosen = trained.choose_weights(grid, gains, queries, settings.phi)
  held_out = None
  if settings.phi is None and len(np.unique(queries)) > 1:
    all_terms = [True] * len(ranking.TERMS)
    each_gain = ranking.held_out_gains(np.asarray(grid), gains, all_terms, queries)
    held_out = statistics.mean(each_gain / 2, queries)
  tuned = trained.Ranking(chosen, calibration, thresholds, valid.attribute_names)
  trained.write_ranking(folder, tuned)
  run_folder.finish(
    folder,
    {
      "phi": {name: list(phi) for name, phi in tuned.phi.items()},
      "pairs": len(matching),
      # Over the confidence alone, by cross-validation over queries, in deletion and insertion.
      "held_out_gain": None if held_out is None else held_out._asdict(),
      "grid": [
        {"phi": list(phi), "deletion": value[0], "insertion": value[1]}
        for phi, value in zip(grid, values.tolist(), strict=True)
      ],
    },
  )
  phi = ", ".join(
    f"{name} {weight:.2f}" for name, weight in zip(ranking.TERMS, tuned.weights, strict=True)
  )
  gain = ""
  if held_out is not None:
    value, low, high = (100 * x / abs(terms.scores[matching].mean()) for x in held_out)
    gain = f"; held out {value:+.1f} [{low:.1f}, {high:.1f}] % of the score over confidence alone"
  print(f"tune_ranking: {phi}, on {len(matching)} pairs{gain}; {folder}")


def _effects(
  matching: np.ndarray, named: np.ndarray, terms: pairs_lib.PairTerms, present: np.ndarray,
  kinds: np.ndarray, count: int,
) -> np.ndarray:  # fmt: skip
  """Deletion and insertion [m a 2] of every attribute that some φ names; NaN elsewhere."""
  out = np.full((len(matching), present.shape[1], 2), np.nan)
  bar = tqdm.tqdm(range(len(matching)), desc="ranking", unit="pair", disable=None)
  for position in bar:
    attributes = np.unique(named[:, position])
    pairs = np.full_like(attributes, matching[position])
    out[position, attributes] = np.stack(
      attribute_effects.measure(pairs, attributes, terms, present, kinds, count=count), axis=1
    )
  return out
