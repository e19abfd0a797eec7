"""The pairs of photos that a config names, and the explainer for them."""

import os
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tqdm

from sane_jax.datasets import photos as photos_lib
from sane_jax.maps.explainer import MODES, Explainer
from sane_jax.maps.generators import make_design, parse_generator
from sane_jax.models import model as model_lib
from sane_jax.ops import fills
from sane_jax.runs import files, processes
from sane_jax.runs.settings import check_choice

Failures = list[tuple[str, str]]


class Task(NamedTuple):
  """A pair to explain: names for people, sources for the reader."""

  names: tuple[str, ...]  # query, reference[, contrast]
  sources: tuple[Any, ...]


def make_explainer(settings: Mapping[str, Any], **overrides: Any) -> Explainer:
  """The model and the design that settings name, those of configs/photos.py."""
  model = model_lib.load_model(settings["model"], image_size=settings["image_size"])
  chosen = {k: settings[k] for k in ("design", "num_masks", "fill", "mode", "chunk_size")}
  chosen |= {"key": settings["seed"], **overrides}
  if settings["grid"] is not None:
    chosen["grid"] = tuple(settings["grid"])
  return Explainer(model, **chosen)


# --- checks, before a model is loaded -------------------------------------------------------------


def check_design(design: str, num_masks: int | None, fill: str | None, **options: Any) -> Any:
  """The design; raises ValueError for a design or a fill that can't be."""
  made = make_design(design, num_masks, **options)
  if fill and not (fill == "median" and design == "learned_mask"):
    fills.check_fill(fill)
  return made


def check_generator(spec: str, fill: str | None = None) -> None:
  """Raises ValueError unless `spec` is a generator such as 'hadamard:num_masks=128'."""
  design, options = parse_generator(spec)
  fill, num_masks = options.pop("fill", fill), options.pop("num_masks", None)
  of_design = {k: v for k, v in options.items() if k not in ("chunk_size", "dtype", "tolerance")}
  check_design(design, num_masks, fill, **of_design)


def check_explaining(settings: Mapping[str, Any]) -> None:
  """Raises ValueError for a design, fill or mode of configs/photos.py that can't be."""
  grid = {} if settings["grid"] is None else {"grid": tuple(settings["grid"])}
  check_design(settings["design"], settings["num_masks"], settings["fill"], **grid)
  check_choice("mode", settings["mode"], MODES)


def check_tasks(settings: Mapping[str, Any]) -> None:
  """Raises ValueError unless settings name photos, a pair, a list of pairs, or nothing."""
  asked = [k for k in ("query", "photos", "pairs_file") if settings[k]]
  if len(asked) > 1:
    raise ValueError(f"give one of query, photos and pairs_file; given {' and '.join(asked)}")
  if bool(settings["query"]) != bool(settings["reference"]):
    raise ValueError("a pair has two photos: give both --config.query and --config.reference")
  if settings["contrast"] and not settings["query"]:
    raise ValueError("contrast goes with query and reference: why the one rather than the other")
  if settings["photos"] and settings["neighbors"] < 1:
    raise ValueError(f"neighbors is how many matches of each photo; given {settings['neighbors']}")


# --- what to explain ------------------------------------------------------------------------------


def list_tasks(settings: Mapping[str, Any], explainer: Explainer, failures: Failures) -> list[Task]:
  """The pairs that a config names; what is wrong with some of them joins the failures."""
  if settings["query"]:
    paths = [
      settings["query"],
      settings["reference"],
      *([settings["contrast"]] if settings["contrast"] else []),
    ]
    return [Task(tuple(photos_lib.tell_apart(paths)), tuple(paths))]
  if settings["photos"]:
    return _neighbor_tasks(settings, explainer, failures)
  if path := settings["pairs_file"]:
    pairs, problems = photos_lib.read_pairs(path, folder=settings["pairs_folder"] or None)
    failures += [(path, problem) for problem in problems]
    paths = [os.fspath(path) for p in pairs for path in (p.query, p.reference)]
    names = photos_lib.tell_apart(paths)
    return [Task((*names[i : i + 2],), (*paths[i : i + 2],)) for i in range(0, len(paths), 2)]
  return [Task((a, b), (x, y)) for a, x, b, y in photos_lib.sample_pairs()]


def list_photos(folder: str | os.PathLike[str]) -> list[pathlib.Path]:
  """The photos in a folder; says on standard error what is passed over."""
  photos, passed_over = photos_lib.find_photos(folder)
  if passed_over and processes.is_first():
    print(files.printable(passed_over), file=sys.stderr)
  return photos


def _neighbor_tasks(
  settings: Mapping[str, Any], explainer: Explainer, failures: Failures
) -> list[Task]:
  """Each photo with its nearest neighbours, by cosine."""
  root = files.at(settings["photos"])
  names, rows = [], []
  paths = list_photos(root)
  for batch in _batches(tqdm.tqdm(paths, unit="photo", desc="embedding", disable=None), 64):
    read = []
    for path in batch:
      try:
        read.append((path, explainer.photo(path)))
      except (ValueError, OSError) as error:
        failures.append((os.fspath(path.relative_to(root)), str(error)))
    if read:
      names += [path for path, _ in read]
      rows.append(explainer.embed([photo for _, photo in read]))
  if len(names) < 2:
    raise ValueError(f"{root} holds {len(names)} readable photos; neighbours need two or more")
  embeddings = np.concatenate(rows)
  scores = embeddings @ embeddings.T
  np.fill_diagonal(scores, -np.inf)
  nearest = np.argsort(-scores, axis=1, kind="stable")[
    :, : min(settings["neighbors"], len(names) - 1)
  ]
  label = [os.fspath(p.relative_to(root)) for p in names]
  return [
    Task((label[i], label[j]), (os.fspath(names[i]), os.fspath(names[j])))
    for i in range(len(names))
    for j in nearest[i]
  ]


def _batches(items: Any, size: int) -> Iterator[list[Any]]:
  batch: list[Any] = []
  for item in items:
    batch.append(item)
    if len(batch) == size:
      yield batch
      batch = []
  if batch:
    yield batch
