"""Job: tests whether moving towards an attribute raises the scores of matching pairs."""

import math
from typing import Any

import numpy as np

from sane_jax.attributes import concepts as concepts_lib
from sane_jax.attributes import pairs as pairs_lib
from sane_jax.attributes import spaces
from sane_jax.datasets import collection as collection_lib
from sane_jax.datasets import load
from sane_jax.maps import index_arrays
from sane_jax.report.tables import Interval, Table, to_markdown
from sane_jax.runs import files, npz, processes
from sane_jax.runs import folder as run_folder
from sane_jax.runs.settings import check_range

MAX_PAIRS = 200_000  # that match, drawn if there are more
SHOWN = 60  # rows of the table


def check(config: Any) -> None:
  """Raises ValueError for settings that can't be; reads no data and writes nothing."""
  load.check_data(config.data)
  for name, least, most in (
    ("halves", 1, math.inf), ("num_random", 2, math.inf), ("min_images", 1, math.inf),
    ("min_pairs", 1, math.inf), ("min_accuracy", 0, 1), ("alpha", 0, 1), ("l2", 0, math.inf),
    ("steps", 1, math.inf),
  ):  # fmt: skip
    check_range(f"concepts.{name}", config.concepts[name], least, most)


def run(config: Any) -> None:
  """A direction and a TCAV score for each attribute in each space; no pass of any model.

  Writes WORKDIR/concepts: concepts.npz, concepts.md, finished.json, which names attributes that
  have the neutral prior, and why.
  """
  settings, workdir = config.concepts, files.at(config.workdir)
  train = load.load_split(config.data, workdir, "train")
  source = pairs_lib.index_folder(workdir, "train")
  built = run_folder.read_finished(source, "build_index")
  pairs_lib.check_index(source, built, train)
  pairs_lib.check_model(workdir, config.index, ["train"])
  identity = run_folder.identity(
    collection_lib.fingerprint(train), concepts=settings, key=config.seed
  )
  identity["index"] = built["fingerprint"]
  # Older runs, held against random sets of images, are not this one's.
  identity["concepts.tested_against"] = "re-matched pairs"
  folder = run_folder.claim_folder(workdir / settings.folder, identity)
  if run_folder.up_to_date(folder, "fit_concepts"):
    return

  index = index_arrays.read_index(source)
  types = np.asarray(index.types)
  conditions = train.conditions if index.embeddings.shape[1] > 1 else np.zeros((1, 1), int)
  labels = collection_lib.label_matrix(train)
  options = {k: settings[k] for k in concepts_lib.Settings._fields}
  with run_folder.progress("concepts", 0, int(conditions.max()) + 1) as bar:
    found = concepts_lib.fit(
      index_arrays.read(index, "embeddings"), types, conditions, labels,
      np.asarray(labels.any(axis=1)),
      matching_pairs(train, config.seed), seed=config.seed,
      settings=concepts_lib.Settings(**options),
      on_progress=lambda done, _: _show(bar, done),
    )  # fmt: skip
  if not processes.is_first():
    return
  npz.write_arrays(folder / "concepts.npz", found._asdict())
  if (model := npz.read_arrays(source / spaces.MODEL)) is not None:  # whose directions they are
    npz.write_arrays(folder / spaces.MODEL, model)
  files.write_bytes(folder / "concepts.md", to_markdown(_table(train, found)).encode())
  neutral = _neutral(train, found, settings)
  run_folder.finish(
    folder,
    {
      "spaces": len(found.prior),
      "fitted": int(np.isfinite(found.tcav).sum()),
      "significant_over_all_spaces": int((found.pooled_p_value <= settings.alpha).sum()),
      "significant_in_a_space": int((found.p_value <= settings.alpha).sum()),
      "directions": int((found.vectors != 0).any(axis=2).sum()),
      "neutral": neutral,
    },
  )
  if len(neutral) == len(train.attribute_names):
    print("fit_concepts: no attribute passes the test: the prior is neutral for all of them")
  print(
    f"fit_concepts: moving towards {len(train.attribute_names) - len(neutral)} of"
    f" {len(train.attribute_names)} attributes moves the scores of matching pairs;"
    f" {folder / 'concepts.md'}"
  )


def _show(bar: Any, done: int) -> None:
  bar.update(done - bar.n)
  processes.stop_if_asked("fit_concepts")


def matching_pairs(train: collection_lib.Collection, seed: int) -> np.ndarray:
  """Rows [p 2] of queries and references of one group, both ways round."""
  parts = []
  for rows in train.groups:
    i, j = np.meshgrid(rows, rows, indexing="ij")
    parts.append(np.stack([i[i != j], j[i != j]], axis=1))
  pairs = np.unique(np.concatenate(parts), axis=0) if parts else np.zeros((0, 2), int)
  if len(pairs) > MAX_PAIRS:
    chosen = np.random.default_rng(seed).choice(len(pairs), MAX_PAIRS, replace=False)
    pairs = pairs[np.sort(chosen)]
  return pairs


def _neutral(train, found: concepts_lib.ConceptPrior, settings: Any) -> dict[str, str]:
  """Attributes whose prior is neutral in every space, and why."""
  out = {}
  total = collection_lib.label_matrix(train).sum(axis=0)
  known = sum(len(a) > 0 for a in train.attributes)
  for a, name in enumerate(train.attribute_names):
    if (found.prior[:, a] != concepts_lib.NEUTRAL).any():
      continue
    if not total[a]:
      out[name] = "no image has it"
    elif total[a] == known:
      out[name] = "every image has it"
    elif np.isfinite(found.accuracy[:, a]).any() and not found.vectors[:, a].any():
      best = np.nanmax(found.accuracy[:, a])
      out[name] = (
        f"unknown: no direction tells held-out images with it from those without; the best does in"
        f" {100 * best:.0f} % (balanced), under {100 * settings.min_accuracy:.0f} %"
      )
    elif not np.isfinite(found.tcav[:, a]).any():
      most = int(found.images[:, a].max())
      out[name] = (
        f"too few: {most} images with it in one space, fewer than {settings.min_images}, or"
        f" fewer than {settings.min_images} without, or {settings.min_pairs} pairs"
      )
    else:
      tried = np.array([found.pooled_p_value[a], *found.p_value[:, a]])
      least = tried[np.isfinite(tried)].min(initial=1.0)
      out[name] = f"its score could be one of re-matched pairs (p {least:.2f} after correction)"
  return out


def _table(train, found: concepts_lib.ConceptPrior) -> Table:
  """The attributes whose score is the surest."""
  known = np.isfinite(found.pooled_p_value)
  order = [a for a in np.argsort(np.where(known, found.pooled_p_value, np.inf)) if known[a]]
  tested = np.where(np.isfinite(found.tcav), found.accuracy, np.nan)
  accuracy = np.nanmean(tested[:, order], axis=0)
  total = collection_lib.label_matrix(train).sum(axis=0)
  spaces = np.isfinite(found.tcav).sum(axis=0)
  rows = [
    (
      train.attribute_names[a], Interval(float(found.pooled_tcav[a]), digits=2),
      Interval(float(found.pooled_rematched[a]), digits=2),
      Interval(float(found.pooled_p_value[a]), digits=4), Interval(float(right), digits=2),
      int(total[a]), int(spaces[a]), int((found.p_value[:, a] <= 0.05).sum()),
    )
    for a, right in zip(order, accuracy, strict=True)
  ]  # fmt: skip
  return Table(
    title="Concepts",
    note=(
      "Of the matching pairs whose query has the attribute, over all spaces, the share whose score"
      " rises as the query moves further towards it; the same of pairs re-matched at random;"
      " p-value of the difference, adjusted for all attributes; balanced accuracy of the"
      " classifiers on images held out; in how many spaces there is a direction, in how many its"
      " score there has p ≤ 0.05 after adjustment. Attributes whose direction does not tell images"
      " held out apart are not tested."
    ),
    columns=(
      "attribute", "TCAV score", "re-matched", "p", "accuracy", "images with it", "spaces",
      "significant there",
    ),
    rows=tuple(rows[:SHOWN]),
  )  # fmt: skip
