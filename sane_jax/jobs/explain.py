"""Job: explains pairs of photos and writes the report."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cachetools
import jax
import numpy as np
import tqdm

from sane_jax import report
from sane_jax.attributes import table as attribute_table
from sane_jax.maps import export, measure
from sane_jax.maps import tasks as tasks_lib
from sane_jax.maps.curves import insertion_deletion
from sane_jax.maps.explainer import Explainer
from sane_jax.maps.explanation import Effects, Photo
from sane_jax.models import fingerprint
from sane_jax.ops import fills, ranking
from sane_jax.ops.insertion_deletion import areas
from sane_jax.report import saved as saved_views
from sane_jax.runs import files, processes
from sane_jax.runs import folder as run_folder

# Effects of recent images are kept, for the next pair may need them; at most so many bytes.
EFFECTS_BYTES = 1 << 30
PAGE_PAIRS = 200  # a longer report is split into pages


def check(config: Any) -> None:
  """Raises ValueError for settings that can't be; reads no data and writes nothing."""
  tasks_lib.check_tasks(config)
  tasks_lib.check_explaining(config)
  if config.metrics:
    fills.check_fill(config.background)
  if config.phi is not None:
    ranking.check_weights(config.phi, len(ranking.TERMS))


def run(config: Any) -> None:
  """Explains what the config names, one pair after the other; the page is written at the end.

  A pair that can't be explained is listed, and the others are explained. A finished pair is on
  disk; the same command after an interruption takes it from there. Several processes share the
  queries; the first then writes the page of what all of them left on disk.
  """
  check(config)
  started = time.monotonic()
  folder = run_folder.writable_folder(files.at(config.workdir) / "explain")
  explainer = tasks_lib.make_explainer(config)
  failures: tasks_lib.Failures = []
  learned = None
  if config.attributes_file:
    learned = attribute_table.learn_attributes(config, explainer, failures)
    explainer.ranker = learned.ranker
  tasks = tasks_lib.list_tasks(config, explainer, failures)
  model = processes.agree(fingerprint.recognise(folder, explainer.fingerprint()), "the model")
  identity = identify(config, explainer, model, learned)
  made = _Run(config, explainer, _cached_effects(explainer), folder, identity)
  before = _read_report(folder)
  drawn: set[int] = set()  # numbers of the pairs whose figures are there
  elsewhere = 0  # passes of the other processes
  if processes.count() > 1:
    drawn = _explain_share(made, tasks)
    passes = sum(processes.gather(explainer.encoder_passes, "encoder passes"))
    if not processes.is_first():
      return
    elsewhere = passes - explainer.encoder_passes
  done: list[_Done] = []
  bar = tqdm.tqdm(total=len(tasks), unit="pair", desc="explaining", disable=None)
  stages = _Stages(bar)
  try:
    with explainer.progress(stages.show):
      for number, task in enumerate(tasks, 1):
        try:
          view, digests = _explained(made, task, stages)
          if number not in drawn:
            files.write_bytes(folder / f"{_stem(number, task)}.png", report.figure_png(view))
          done.append(_Done(_stem(number, task), task, digests, view))
        except Exception as error:  # whatever it is, it costs this pair alone
          known = isinstance(error, ValueError | OSError)
          why = str(error) if known else f"{type(error).__name__}: {error}"
          failures.append((" and ".join(task.names), why))
        bar.update()
  finally:
    bar.close()
    _write_report(made, done, failures, len(tasks))
  if not done:
    first = "; ".join(f"{name}: {why}" for name, why in failures[:3])
    raise ValueError(f"nothing could be explained. {first}")
  seconds = time.monotonic() - started
  print(
    f"{len(done)} pairs explained with {explainer.encoder_passes + elsewhere:,} encoder passes in"
    f" {seconds:.1f} s; {len(failures)} failed.\nOpen {folder / 'index.html'}"
  )
  for name, why in failures[:10]:
    print(files.printable(f"  not explained: {name}: {why}"), file=sys.stderr)
  for what in _changes(before, made.identity, done):
    print(files.printable(f"  measured again: {what}"), file=sys.stderr)


class _Done(NamedTuple):
  """A pair that is explained."""

  stem: str  # of its files' names
  task: tasks_lib.Task
  digests: list[str]  # of the photos, as the model sees them
  view: report.PairView


class _Run(NamedTuple):
  """What all pairs of a run share."""

  config: Any
  explainer: Explainer
  effects: Callable[[Photo, str], Effects]  # of a photo and its digest
  folder: pathlib.Path
  identity: dict[str, Any]


def _explain_share(made: _Run, tasks: list[tasks_lib.Task]) -> set[int]:
  """Leaves this process's part of the pairs on disk, with figures; a query's pairs stay together.

  Returns:
    The numbers of the pairs that any process left.
  """
  numbered = itertools.groupby(enumerate(tasks, 1), key=lambda item: item[1].names[0])
  queries, drawn = [list(some) for _, some in numbered], []
  mine = queries[jax.process_index() :: processes.count()]
  with tqdm.tqdm(
    total=sum(map(len, mine)), unit="pair", desc="explaining",
    disable=None if processes.is_first() else True,
  ) as bar:  # fmt: skip
    stages = _Stages(bar)
    with made.explainer.progress(stages.show):
      for some in processes.share(queries, "explain"):
        for number, task in some:
          with contextlib.suppress(Exception):  # the first process meets it again, and lists it
            figure = report.figure_png(_explained(made, task, stages)[0])
            files.write_bytes(made.folder / f"{_stem(number, task)}.png", figure)
            drawn.append(number)
          bar.update()
  return {number for part in processes.gather(drawn, "explained") for number in part}


# --- one pair -------------------------------------------------------------------------------------


def _cached_effects(explainer: Explainer) -> Callable[[Photo, str], Effects]:
  """Effects of a photo and its digest; those of the images seen last are kept, two at least."""

  def room(e: Effects) -> int:
    return min(e.moments.response.nbytes + e.moments.gram.nbytes, EFFECTS_BYTES // 2)

  kept: cachetools.LRUCache[str, Effects] = cachetools.LRUCache(EFFECTS_BYTES, room)

  def effects(photo: Photo, digest: str) -> Effects:
    if digest not in kept:
      kept[digest] = explainer.effects(photo)
    return dataclasses.replace(kept[digest], photo=photo)

  return effects


class _Stages:
  """Shows what a long pair is at, and what it has cost."""

  def __init__(self, bar: tqdm.tqdm):
    self._bar, self.name = bar, ""

  def show(self, done: int, count: int) -> None:
    self._bar.set_postfix_str(f"{self.name} {done}/{count}")

  def __call__(self, name: str) -> None:
    self.name = name
    self._bar.set_postfix_str(name)


def identify(
  config: Any, explainer: Explainer, model: str, learned: attribute_table.Learned | None = None
) -> dict[str, Any]:
  """All that fixes the views of a run, but for the pair; its hash names a finished view.

  Args:
    model: what `fingerprint.recognise` calls the model, whose name may be of other weights, too.
    learned: the attributes, where the config has a table of them.
  """
  identity = {
    "settings": explainer.settings,
    "version": measure.VERSION,
    "model": model,
    "background": config.background if config.metrics else None,
  }
  if learned is not None:
    identity["attributes"] = [learned.digest, list(config.phi or attribute_table.PHI)]
  return identity


def view_name(identity: Mapping[str, Any], names: Sequence[str], digests: Sequence[str]) -> str:
  """The file of a pair's view, by the run's identity, the photos' names and their digests."""
  text = json.dumps({**identity, "photos": list(digests), "names": list(names)}, sort_keys=True)
  return f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"


def _explained(
  made: _Run, task: tasks_lib.Task, stages: _Stages
) -> tuple[report.PairView, list[str]]:
  """The pair's view, from disk if it was finished before, else measured; the photos' digests."""
  config, explainer = made.config, made.explainer
  photos = [
    explainer.photo(source, name) for source, name in zip(task.sources, task.names, strict=True)
  ]
  digests = [
    hashlib.sha256(np.ascontiguousarray(photo.pixels).tobytes()).hexdigest() for photo in photos
  ]
  path = made.folder / "pairs" / view_name(made.identity, task.names, digests)
  command = ""
  if all(isinstance(source, str) for source in task.sources):  # files: a shell line finds them
    command = _command(config, task)
  finished = saved_views.load_view(path)
  if finished is not None:
    return finished._replace(command=command or finished.command), digests
  began = time.monotonic()
  stages("masks")
  use = photos
  if explainer.has_effects:
    use = [made.effects(*each) for each in zip(photos, digests, strict=True)]
  explanation = (explainer.contrast if len(photos) == 3 else explainer.explain)(*use)
  metrics = {}
  if config.metrics and explanation.contrast is None:
    stages("insertion and deletion")
    curves = insertion_deletion(explainer, [explanation], background=config.background)
    metrics = {f"{kind} AUC": float(value[0]) for kind, value in areas(curves).items()}
  stages("report")
  view = explanation.view()
  jax.block_until_ready(view.saliency_map)
  seconds = round(time.monotonic() - began, 3)
  view = view._replace(metrics=metrics, seconds=seconds)
  view = view._replace(command=command or view.command)
  saved_views.save_view(path, view)
  return view, digests


def _command(config: Any, task: tasks_lib.Task) -> str:
  """The shell line that explains this pair alone."""
  names = ("model", "image_size", "design", "num_masks", "grid", "fill", "mode", "seed")
  sides = zip(("query", "reference", "contrast"), task.sources, strict=False)
  return export.shell_line({**dict(sides), **{name: config[name] for name in names}})


def _stem(number: int, task: tasks_lib.Task) -> str:
  return f"{number:04d}_{_slug(task.names[0])}_{_slug(task.names[1])}"


def _slug(name: str) -> str:
  """A file name's worth of a photo's name."""
  return re.sub(r"[^A-Za-z0-9-]+", "-", os.path.splitext(name)[0]).strip("-")[-40:] or "photo"


# --- out ------------------------------------------------------------------------------------------


def _read_report(folder: pathlib.Path) -> dict[str, Any]:
  """explanations.json of an earlier run; empty where there is none."""
  try:
    found = json.loads(files.read_bytes(folder / "explanations.json"))
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def _changes(
  before: Mapping[str, Any], identity: Mapping[str, Any], done: Sequence[_Done]
) -> list[str]:
  """What has the name that it had in the report before, and is not what it was."""
  was, now = before.get("settings", {}), identity["settings"]
  if not before.get("model") or was.get("model") != now["model"]:
    return []
  told = []
  if before["model"] != identity["model"]:
    told.append(f"the model {now['model']} has other weights than in the last run here")
  known: dict[str, str] = {}
  for record in before.get("explanations", ()):
    known |= dict(zip(record.get("sources", ()), record.get("photos", ()), strict=False))
  changed: dict[str, None] = {}
  for one in done:
    for name, source, digest in zip(one.task.names, _sources(one.task), one.digests, strict=False):
      if known.get(source, digest) != digest:
        changed[name] = None
  if changed and was.get("image_size") == now["image_size"]:
    some = ", ".join(list(changed)[:10]) + (", ..." if len(changed) > 10 else "")
    told.append(f"photos that changed since the last run here ({len(changed)}): {some}")
  return told


def _sources(task: tasks_lib.Task) -> list[str]:
  """Paths of a pair's photos; none where they are no files."""
  if not all(isinstance(source, str) for source in task.sources):
    return []
  return list(task.sources)


def _write_report(made: _Run, done: Sequence[_Done], failures, count) -> None:
  """index.html (and further pages), explanations.json."""
  views = [(one.stem, one.view) for one in done]
  settings, folder = made.identity["settings"], made.folder
  records = [
    {
      "id": one.stem,
      "query": view.query_name,
      "reference": view.reference_name,
      **({"contrast": view.contrast_name} if view.contrast_name else {}),
      "score": view.score,
      "encoder_passes": view.encoder_passes,
      "seconds": view.seconds,
      "insertion_auc": view.metrics.get("insertion AUC"),
      "deletion_auc": view.metrics.get("deletion AUC"),
      "files": {"figure": f"{one.stem}.png"},
      "sources": _sources(one.task),
      "photos": one.digests,
      "warnings": list(view.warnings),
      **(
        {"sentence": view.sentence, "attributes": export.attribute_records(view.attributes)}
        if view.attributes
        else {}
      ),
    }
    for one in done
    for view in (one.view,)
  ]
  document = {
    "settings": settings,
    "model": made.identity["model"],
    "background": made.identity["background"],
    "pairs": count,
    "explanations": records,
    "failures": [{"what": name, "why": why} for name, why in failures],
  }
  text = json.dumps(document, indent=2, allow_nan=False) + "\n"
  files.write_bytes(folder / "explanations.json", text.encode())
  pages = [views[i : i + PAGE_PAIRS] for i in range(0, len(views), PAGE_PAIRS)] or [[]]
  names = ["index.html", *(f"index-{n}.html" for n in range(2, len(pages) + 1))]
  subtitle = f"{settings['model']}, {settings['image_size'][0]} × {settings['image_size'][1]}"
  subtitle += f" pixels, {settings['design']}, {settings.get('num_masks', 0):,} masks an image"
  for number, (name, page) in enumerate(zip(names, pages, strict=True), 1):
    links = [(f"Page {n}", "" if n == number else f) for n, f in enumerate(names, 1)]
    html = report.render_page(
      [view for _, view in page],
      title="Why do these images match?",
      subtitle=subtitle,
      failures=failures if number == 1 else (),
      pages=links if len(names) > 1 else (),
    )
    files.write_bytes(folder / name, html.encode())
