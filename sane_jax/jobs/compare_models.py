"""Job: where the reasons of two models differ, on pairs of photos; one page."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm

from sane_jax import report
from sane_jax.datasets import images as images_lib
from sane_jax.datasets import photos as photos_lib
from sane_jax.maps import comparison, export, measure
from sane_jax.maps.explainer import Explainer
from sane_jax.maps.tasks import (
  Failures,
  Task,
  check_explaining,
  check_tasks,
  list_tasks,
  make_explainer,
)
from sane_jax.models import fingerprint
from sane_jax.report import saved as saved_views
from sane_jax.runs import files, processes
from sane_jax.runs import folder as run_folder


def check(config: Any) -> None:
  """Raises ValueError for settings that can't be; reads no data and writes nothing."""
  if not config.other_model:
    raise ValueError(
      "two models are compared: name the second with --config.other_model=MODEL, a name, a file or"
      " module:function as for --config.model"
    )
  if config.contrast:
    raise ValueError("a contrast is of one model; leave it out, or use --config.job=explain")
  check_tasks(config)
  check_explaining(config)


def run(config: Any) -> None:
  """Compares `model` and `other_model` on what the config names.

  A pair that can't be compared is listed, and the others are compared. A finished pair is on disk;
  the same command after an interruption takes it from there. Several processes share the pairs.

  Raises:
    ValueError: no other model, a contrast, or nothing that could be compared.
  """
  check(config)
  started = time.monotonic()
  folder = run_folder.writable_folder(files.at(config.workdir) / "compare_models")
  explainers = _explainers(config)
  models = processes.agree(
    [fingerprint.recognise(folder, e.fingerprint()) for e in explainers], "the models"
  )
  failures: Failures = []
  tasks = list_tasks(config, explainers[0], failures)
  if processes.count() > 1:
    for task in processes.share(tasks, "compare_models"):
      with contextlib.suppress(Exception):  # the first process meets it again, and lists it
        _compared(config, explainers, models, task, folder)
    processes.wait_for_all("compared pairs")
    if not processes.is_first():
      return
  views: list[tuple[Task, report.ComparisonView]] = []
  try:
    for task in tqdm.tqdm(tasks, unit="pair", desc="comparing", disable=None):
      try:
        views.append((task, _compared(config, explainers, models, task, folder)))
      except Exception as error:  # whatever it is, it costs this pair alone
        known = isinstance(error, ValueError | OSError)
        why = str(error) if known else f"{type(error).__name__}: {error}"
        failures.append((" and ".join(task.names), why))
  finally:
    _write_report(explainers, folder, views, failures)
  if not views:
    first = "; ".join(f"{name}: {why}" for name, why in failures[:3])
    raise ValueError(f"nothing could be compared. {first}")
  passes = sum(explainer.encoder_passes for explainer in explainers)
  print(
    f"{len(views)} pairs compared with {passes:,} encoder passes in"
    f" {time.monotonic() - started:.1f} s; {len(failures)} failed.\nOpen {folder / 'index.html'}"
  )
  for name, why in failures[:10]:
    print(files.printable(f"  not compared: {name}: {why}"), file=sys.stderr)


def _explainers(config: Any) -> tuple[Explainer, Explainer]:
  """Both models, with the design, fill and key of the first.

  Where both have one name, such as two files model.safetensors, they are called by as much of their
  paths as tells them apart.
  """
  size = config.image_size if config.other_image_size is None else config.other_image_size
  given = (
    make_explainer(config),
    make_explainer({**config, "model": config.other_model, "image_size": size}),
  )
  if given[0].model.name == given[1].model.name and config.model != config.other_model:
    names = photos_lib.tell_apart([config.model, config.other_model])
    for explainer, name in zip(given, names, strict=True):
      model = dataclasses.replace(explainer.model, name=name.removesuffix(".safetensors"))
      explainer.model = explainer.engine.model = model
  return given


def _compared(
  config: Any,
  explainers: tuple[Explainer, Explainer],
  models: Sequence[str],
  task: Task,
  folder: pathlib.Path,
) -> report.ComparisonView:
  """The pair's view: from disk if it was finished before, else measured and written there."""
  digests = [
    hashlib.sha256(images_lib.read_image(source).tobytes()).hexdigest() for source in task.sources
  ]
  identity = {
    "settings": [explainer.settings for explainer in explainers],
    "version": measure.VERSION,
    "models": list(models),
    "photos": digests,
    "names": list(task.names),
  }
  text = json.dumps(identity, sort_keys=True)
  path = folder / "pairs" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"
  finished = saved_views.load_comparison(path)
  if finished is not None:
    return finished._replace(command=_command(config, task) or finished.command)
  found = comparison.compare(*explainers, task.sources[0], task.sources[1])
  view = found.view()._replace(
    query_name=task.names[0], reference_name=task.names[1], command=_command(config, task)
  )
  saved_views.save_comparison(path, view)
  return view


def _command(config: Any, task: Task) -> str:
  """The shell line that compares the models on this pair alone; none where there are no files."""
  if not all(isinstance(source, str) for source in task.sources):
    return ""
  fields: dict[str, Any] = dict(zip(("query", "reference"), task.sources, strict=True))
  names = (
    "model", "image_size", "other_model", "other_image_size", "design", "num_masks", "grid", "fill",
    "mode", "seed",
  )  # fmt: skip
  return export.shell_line(
    {"job": "compare_models", **fields} | {name: config[name] for name in names}
  )


def _write_report(
  explainers: tuple[Explainer, Explainer], folder: pathlib.Path,
  views: list[tuple[Task, report.ComparisonView]], failures: Failures,
) -> None:  # fmt: skip
  """index.html and comparisons.json."""
  a, b = comparison.names_of(*explainers)
  records = [
    {
      "query": view.query_name,
      "reference": view.reference_name,
      "sources": [source for source in task.sources if isinstance(source, str)],
      "scores": list(view.scores),
      "regions_that_differ": [[int(r), int(c)] for r, c in np.argwhere(view.significant)],
      "rank_correlation": _number(view.rank_correlation),
      "most_correlation": _number(view.most_correlation),
      "encoder_passes": view.encoder_passes,
      "warnings": list(view.warnings),
    }
    for task, view in views
  ]
  document = {
    "models": [a, b],
    "settings": [explainer.settings for explainer in explainers],
    "comparisons": records,
    "failures": [{"what": name, "why": why} for name, why in failures],
  }
  text = json.dumps(document, indent=2, allow_nan=False) + "\n"
  files.write_bytes(folder / "comparisons.json", text.encode())
  html = report.render_comparisons(
    [view for _, view in views], title="Where do two models’ reasons differ?",
    subtitle=f"{a} and {b}", failures=failures,
  )  # fmt: skip
  files.write_bytes(folder / "index.html", html.encode())


def _number(value: float) -> float | None:
  return float(value) if np.isfinite(value) else None
