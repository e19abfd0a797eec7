"""Job: the user study, simulated without people; and the material to ask people with."""

import csv
import hashlib
import io
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm
from PIL import Image

from sane_jax import (
  checkpoint,
  files,
  forward_simulation,
  processes,
  recognition,
  report,
  training,
)
from sane_jax.datasets import load
from sane_jax.datasets.collection import Collection
from sane_jax.datasets.pipeline import DecodedImages
from sane_jax.forward_simulation import CONDITIONS, Condition, Estimate, Items, Material, Result
from sane_jax.report import tables as tables_lib
from sane_jax.report.page import overlay_activation
from sane_jax.report.tables import Interval, Table

_ATTRIBUTES = tuple(c.attribute for c in CONDITIONS.values() if c.attribute)
_PER_PAIR = (
  "query_rows", "reference_rows", "scores", "saliency",
  *(f"attribute_{name}" for name in _ATTRIBUTES), *(f"activation_{name}" for name in _ATTRIBUTES),
)  # fmt: skip
_DECODED = 64  # images at a time between steps of the bar
_GAP = 8  # pixels between the images of a pair
_README = pathlib.Path("README.md")
_GROUPS = "VWXYZ"  # stand for the conditions, in an order that only the key tells
# What fixes the items. The settings of the server and of the evaluation may change without them.
_FIXED = (
  "key", "num_items", "min_gap", "exchanges", "num_exported", "num_practice", "num_checks",
  "num_subjects", "image_size",
)  # fmt: skip


def run(config: Any) -> None:
  """Simulates the study on what evaluate left, and exports items to ask people with.

  Writes WORKDIR/study: simulation.json, table.md, table.csv, table.tex and export/ (see
  `export_study`). What the simulation gives is a PROXY: see forward_simulation.
  """
  settings, workdir = config.study, files.at(config.workdir)
  check_settings(
    settings.num_exported, settings.num_practice, settings.num_checks, settings.num_subjects,
    settings.image_size, settings.min_gap,
  )  # fmt: skip
  evaluation = workdir / config.evaluation.folder
  training.read_finished(evaluation, "evaluate")
  test = load.load_split(config.data, workdir, "test")
  arrays = read_material(evaluation / "material.npz", test)
  identity = training.identity(
    test, study={name: settings[name] for name in _FIXED},
    material=training.hash_file(evaluation / "material.npz"),
  )  # fmt: skip
  # What can't be drawn is said before the folder is this run's.
  _draw(settings, arrays["query_rows"], arrays["reference_rows"], arrays["scores"])
  folder = training.claim_folder(workdir / settings.folder, identity)
  if training.up_to_date(folder, "simulate_study") or not processes.is_first():
    return

  small, _, kept, broken = load_images(arrays, test, forward_simulation.PIXELS)
  for line in broken:
    print(f"  left out: {line}")
  pairs = (small.queries, small.references, small.scores)
  items = _draw(settings, *pairs)
  with tqdm.tqdm(desc="students", unit="simulation", disable=None) as bar:

    def show(done: int, total: int) -> None:
      bar.total = total
      bar.update(done - bar.n)

    result = forward_simulation.simulate(
      settings.key, small, items, exchanges=settings.exchanges, on_progress=show
    )
  table = make_table(result)
  for suffix, text in (
    (".md", tables_lib.to_markdown(table) + "\n"),
    (".csv", tables_lib.to_csv(table)),
    (".tex", tables_lib.to_latex(table)),
  ):
    files.write_bytes(folder / f"table{suffix}", text.encode())
  record = make_record(result)
  text = json.dumps({**record, "left_out": broken}, indent=1, allow_nan=False) + "\n"
  files.write_bytes(folder / "simulation.json", text.encode())

  questions = draw_export(
    settings.key + 1, *pairs, count=settings.num_exported, min_gap=items.min_gap,
    num_practice=settings.num_practice, num_checks=settings.num_checks,
  )  # fmt: skip
  used = np.unique(questions.pairs())
  large, rows, _, _ = load_images(_take(arrays, kept[used]), test, settings.image_size)
  export_study(
    folder / "export", large, questions.renumbered(used), key=settings.key,
    num_subjects=settings.num_subjects, image_names=[test.ids[row] for row in rows],
  )  # fmt: skip
  training.finish(
    folder, {"proxy": True, "accuracy": {n: c["accuracy"] for n, c in record["conditions"].items()}}
  )
  print(f"simulate_study: a PROXY, no people were asked: {len(items.answers)} items a condition.")
  for name, condition in CONDITIONS.items():
    value, low, high = (100 * x for x in forward_simulation.accuracy(result, name))
    print(f"  {condition.title}: {value:.1f} % right [{low:.1f}, {high:.1f}]")
  print(
    f"Open {folder / 'table.md'}. Ask people: --config.job=study serves {folder / 'export'};"
    f" {_README} there says how to do without"
  )


def _draw(
  settings: Any, queries: np.ndarray, references: np.ndarray, scores: np.ndarray
) -> Items:  # fmt: skip
  """Items of pairs, their gap in the scores' own unit."""
  finite = scores[np.isfinite(scores)]
  spread = float(finite.std()) if len(finite) else 0.0
  return forward_simulation.draw_items(
    settings.key, queries, references, scores,
    num_items=settings.num_items, min_gap=settings.min_gap * (spread or 1.0),
  )  # fmt: skip


def check_settings(
  num_exported: int, num_practice: int, num_checks: int, num_subjects: int, image_size: int,
  min_gap: float,
) -> None:  # fmt: skip
  """Raises ValueError, naming the field, where a setting is out of its range."""
  for name, value, least in (
    ("num_exported", num_exported, 2),
    ("num_practice", num_practice, 0),
    ("num_checks", num_checks, 0),
    ("num_subjects", num_subjects, 1),
    ("image_size", image_size, 48),
  ):
    if value < least:
      raise ValueError(f"--config.study.{name} is {least} or more; given {value}")
  if not min_gap > 0:
    raise ValueError(
      f"--config.study.min_gap, in standard deviations of the scores, is above 0; given {min_gap}"
    )


# --- material -------------------------------------------------------------------------------------


def read_material(path: pathlib.Path, test: Collection) -> dict[str, np.ndarray]:
  """What evaluate wrote for this job.

  Raises:
    ValueError: it is missing, damaged, or of other data; says what to run.
  """
  again = f"remove {path.parent} and run --config.job=evaluate"
  arrays = checkpoint.read_arrays(path)
  if arrays is None:
    what = "can't be read" if path.exists() else "is missing"
    raise ValueError(f"{path} {what}; {again}")
  missing = sorted({*_PER_PAIR, "attribute_names"} - set(arrays))
  if missing:
    raise ValueError(f"{path} has no {', '.join(missing)}; {again}")
  if len({len(arrays[name]) for name in _PER_PAIR}) > 1:
    counts = ", ".join(f"{name} {len(arrays[name])}" for name in _PER_PAIR)
    raise ValueError(f"{path} disagrees on how many pairs there are: {counts}; {again}")
  ends = np.concatenate([arrays["query_rows"], arrays["reference_rows"]])
  names = tuple(map(str, arrays["attribute_names"]))
  if names != test.attribute_names or (
    len(ends) and not 0 <= ends.min() <= ends.max() < len(test.ids)
  ):
    raise ValueError(
      f"{path} is of other data than {test.name}, with {len(test.ids)} images and"
      f" {len(test.attribute_names)} attributes; {again}"
    )
  return arrays


def load_images(
  arrays: Mapping[str, np.ndarray], test: Collection, size: int
) -> tuple[Material, np.ndarray, np.ndarray, list[str]]:
  """The pairs whose images can be read, with images at `size` pixels.

  Returns:
    The material; which row of the split each of its images is [n]; which of the given pairs its
    pairs are; and the images left out, each with the reason.
  """
  rows = np.unique(np.concatenate([arrays["query_rows"], arrays["reference_rows"]]))
  decoded = DecodedImages(test, size, fast=True)
  images = np.zeros((len(rows), size, size, 3), np.uint8)
  valid = np.zeros(len(rows), bool)
  with tqdm.tqdm(total=len(rows), desc="images", unit="image", disable=None) as bar:
    for start in range(0, len(rows), _DECODED):
      part = slice(start, start + _DECODED)
      images[part], valid[part] = decoded.stack(rows[part])
      bar.update(len(rows[part]))
  rows, images = rows[valid], images[valid]
  kept = np.flatnonzero(
    np.isin(arrays["query_rows"], rows) & np.isin(arrays["reference_rows"], rows)
  )
  of = _take(arrays, kept)
  material = Material(
    images=images,
    queries=np.searchsorted(rows, of["query_rows"]),
    references=np.searchsorted(rows, of["reference_rows"]),
    scores=of["scores"],
    saliency=of["saliency"],
    attributes={name: of[f"attribute_{name}"] for name in _ATTRIBUTES},
    activations={name: of[f"activation_{name}"] for name in _ATTRIBUTES},
    attribute_names=tuple(map(str, of["attribute_names"])),
  )
  return material, rows, kept, [f"{name}: {why}" for name, why in sorted(decoded.broken.items())]


def _take(arrays: Mapping[str, np.ndarray], pairs: np.ndarray) -> dict[str, np.ndarray]:
  taken = {name: arrays[name][pairs] for name in _PER_PAIR}
  return {**taken, "attribute_names": arrays["attribute_names"]}


# --- what came out --------------------------------------------------------------------------------


def _percent(estimate: Estimate) -> Interval:
  return Interval(100 * estimate.value, 100 * estimate.low, 100 * estimate.high)


def make_table(result: Result) -> Table:
  """A row a condition."""
  rows = []
  for name, condition in CONDITIONS.items():
    controlled = name in result.control
    rows.append((
      condition.title,
      _percent(forward_simulation.accuracy(result, name)),
      None if name == "nothing" else _percent(forward_simulation.gain(result, name, "nothing")),
      None if name == "sane" else _percent(forward_simulation.gain(result, "sane", name)),
      _percent(forward_simulation.accuracy(result, name, control=True)) if controlled else None,
      f"{forward_simulation.p_value(result, name):.2f}" if controlled else None,
    ))  # fmt: skip
  items = result.items
  return Table(
    title="Forward simulation, a proxy for the user study",
    note=(
      "PROXY: no person was asked. A small fixed student that sees colours, edges and the"
      " explanations says which of two pairs the model scores higher; % of"
      f" {len(items.answers)} items whose scores are at least {items.min_gap:.3g} apart, half of"
      " them left; chance is 50. It learned from items without any of these images. 95 % bootstrap"
      f" intervals over {len(np.unique(items.blocks))} blocks of queries, of the draw of items and"
      " not of what the student learned; comparisons are paired. Exchanged: with explanations of"
      " other pairs; p: that a pair's own are worth no more than those."
    ),
    columns=(
      "shown", "right, % ↑", "more than with nothing", "SANE, more than this", "exchanged, %", "p",
    ),
    rows=tuple(rows),
  )  # fmt: skip


def make_record(result: Result) -> dict[str, Any]:
  """All that came out, for programs: shares, not %."""
  items, conditions = result.items, {}
  for name, condition in CONDITIONS.items():
    each: dict[str, Any] = {
      "shown": condition.title,
      "accuracy": forward_simulation.accuracy(result, name)._asdict(),
      "heeds_maps_and_names": result.heeds[name],
      "gain": {
        than: forward_simulation.gain(result, name, than)._asdict()
        for than in CONDITIONS
        if than != name
      },
    }
    if name in result.control:
      each["exchanged"] = forward_simulation.accuracy(result, name, control=True)._asdict()
      each["own_gain"] = forward_simulation.own_gain(result, name)._asdict()
      each["p"] = forward_simulation.p_value(result, name)
    conditions[name] = each
  return {
    "proxy": True,
    "note": "a small fixed student answered; no person was asked",
    "items": len(items.answers),
    "blocks": len(np.unique(items.blocks)),
    "min_gap": items.min_gap,
    "left": float(np.mean(items.answers == 0)),
    "conditions": conditions,
  }


# --- the study with people ------------------------------------------------------------------------


class Questions(NamedTuple):
  """What people are asked, of the pairs of a material.

  Attributes:
    items: that count.
    practice: asked before them and answered to the subject; the key's scores are theirs.
    checks: [k 2] the query of the first pair beside itself, against the second pair, which does not
      match: whoever looks knows the answer.
    check_answers: [k] 0 where the image twice is A, 1 where it is B.
    example: a pair that the instructions explain; in none of the others.
  """

  items: Items
  practice: Items
  checks: np.ndarray
  check_answers: np.ndarray
  example: int

  def pairs(self) -> np.ndarray:
    """All that are shown."""
    parts = (self.items.pairs, self.practice.pairs, self.checks)
    return np.concatenate([np.ravel(part) for part in parts] + [np.array([self.example])])

  def renumbered(self, pairs: np.ndarray) -> "Questions":
    """Of the material that has only these pairs, in rising order."""

    def where(numbers: Any) -> np.ndarray:
      return np.searchsorted(pairs, numbers)

    return Questions(
      self.items._replace(pairs=where(self.items.pairs)),
      self.practice._replace(pairs=where(self.practice.pairs)),
      where(self.checks), self.check_answers, int(where(self.example)),
    )  # fmt: skip


def draw_export(
  key: int,
  queries: np.ndarray,
  references: np.ndarray,
  scores: np.ndarray,
  *,
  count: int,
  min_gap: float,
  num_practice: int = 0,
  num_checks: int = 0,
) -> Questions:
  """At most `count` items, as many left as right; the other arguments as of `draw_items`.

  Practice comes first: the items that count are, as far as there are enough, of other images.
  """
  least = 2 * forward_simulation.MIN_ITEMS
  items = forward_simulation.draw_items(
    key, queries, references, scores, num_items=max(count + num_practice + 1, least),
    min_gap=min_gap,
  )  # fmt: skip
  rng = np.random.default_rng((key, 2))
  order = rng.permutation(len(items.answers))
  # One more, for the instructions. Of few items half are left for the study, and an even number.
  extra = order[: min(num_practice + 1, len(order) // 2)]
  used = np.unique([queries[items.pairs[extra]], references[items.pairs[extra]]])
  rest = order[len(extra) :]
  ends = np.concatenate([queries[items.pairs[rest]], references[items.pairs[rest]]], axis=1)
  rest = rest[np.argsort(np.isin(ends, used).any(axis=1), kind="stable")]
  sides = [rest[items.answers[rest] == answer] for answer in (0, 1)]
  half = min(count // 2, *map(len, sides))
  chosen = np.sort(np.concatenate([side[:half] for side in sides]))
  example = int(items.pairs[extra[0]].flat[np.argmax(scores[items.pairs[extra[0]]])])

  # A check's second pair scores low; its first is one whose query is not in the second.
  low = np.argsort(np.where(np.isfinite(scores), scores, np.inf), kind="stable")
  low = rng.permutation(low[: max(len(low) // 4, 1)])
  checks: list[tuple[int, int]] = []
  for pair in low[:num_checks]:
    others = np.flatnonzero((queries != queries[pair]) & (queries != references[pair]))
    if len(others):
      checks.append((int(rng.choice(others)), int(pair)))
  check_answers = rng.permutation(np.arange(len(checks)) % 2)
  return Questions(
    _take_items(items, chosen), _take_items(items, extra[1:]),
    np.array(checks, int).reshape(-1, 2), check_answers, example,
  )  # fmt: skip


def _take_items(items: Items, rows: np.ndarray) -> Items:
  pairs, answers, halves, blocks = (array[rows] for array in items[:4])
  return Items(pairs, answers, halves, blocks, items.min_gap)


class _Question(NamedTuple):
  """A question of any kind, with what the key says of it."""

  kind: str  # item practice check
  name: str
  files: list[str]  # by condition; one for a check, that is shown under none
  pairs: tuple[int, int]
  right: int
  twice: int | None  # which pair shows its query twice


def export_study(
  folder: pathlib.Path,
  material: Material,
  questions: Questions,
  *,
  key: int,
  num_subjects: int,
  image_names: Sequence[str] = (),
) -> None:
  """Writes what is needed to ask people, and apart from it what they must not see.

  items/ITEM/FILE_a.png and FILE_b.png: the two pairs of an item under a condition, names random.
  items.csv lists them: item, file, kind (item, practice, check), group (a letter for the
  condition; files of one letter are of one condition), map (1 where a saliency map is shown),
  attribute_a and attribute_b (the names shown, '' for none). practice.csv: the right answers of
  practice, which subjects are told once they answered. example/: pictures for the instructions.
  assignments/subject_NN.csv: orders for asking without the server, every item once, under
  conditions that take turns: over five subjects each item is shown under each. key/answers.csv and
  key/conditions.csv: what is right, and which file is which condition. fingerprint.json, the same
  in key/: what belongs together. README.md says how to ask.

  Of what counts, nothing but key/ depends on the answers or the scores, other than by what the
  images show.

  Args:
    folder: where to.
    material: explained pairs, images as they are to be shown.
    questions: of the material's pairs.
    key: seed of names, orders and conditions.
    num_subjects: lists to make.
    image_names: [n] what to call the images in the key; their numbers by default.

  Raises:
    ValueError: the material does not fit together.
    OSError: the folder can't be written.
  """
  forward_simulation.check(material)
  folder = checkpoint.writable_folder(folder)
  rng = np.random.default_rng((key, 3))
  names = iter(_random_names(rng, sum(_num_names(questions))))
  asked = _ask(questions, names)
  items = [question for question in asked if question.kind == "item"]
  groups = dict(zip(CONDITIONS, rng.permutation(list(_GROUPS)), strict=True))

  # In the order of names: times of files say nothing either.
  asked = sorted(asked, key=lambda question: question.name)
  listed, pictures = [], hashlib.sha256()
  with tqdm.tqdm(total=len(asked), desc="items", unit="item", disable=None) as bar:
    for question in asked:
      shown = dict(zip(question.files, CONDITIONS, strict=False))
      for file in sorted(shown):
        condition = CONDITIONS[shown[file]]
        for side, pair in enumerate(question.pairs):
          picture = draw_pair(material, pair, condition, twice=side == question.twice)
          data = _png(picture)
          pictures.update(data)
          path = folder / "items" / question.name / f"{file}_{'ab'[side]}.png"
          files.write_bytes(path, data, flush=False)
        group = "" if question.kind == "check" else groups[shown[file]]
        listed.append((
          question.name, file, question.kind, group, int(condition.map),
          *(_attribute(material, pair, condition) for pair in question.pairs),
        ))  # fmt: skip
      bar.update()
  text = _csv(("item", "file", "kind", "group", "map", "attribute_a", "attribute_b"), listed)
  files.write_bytes(folder / "items.csv", text, flush=False)
  practice = _csv(
    ("item", "answer"), [(q.name, "AB"[q.right]) for q in asked if q.kind == "practice"]
  )
  files.write_bytes(folder / "practice.csv", practice, flush=False)
  _draw_example(folder / "example", material, questions.example)

  digits = len(str(num_subjects))
  turn = rng.permutation(len(items))
  for subject in range(num_subjects):
    lines = [
      (place, items[index].name, items[index].files[(turn[index] + subject) % len(CONDITIONS)])
      for place, index in enumerate(rng.permutation(len(items)), 1)
    ]
    path = folder / "assignments" / f"subject_{subject + 1:0{digits}d}.csv"
    files.write_bytes(path, _csv(("place", "item", "file"), lines), flush=False)

  called = [tables_lib.csv_text(name) for name in image_names]
  called = called or [str(n) for n in range(len(material.images))]
  answers, conditions = [], []
  for question in asked:
    ends, scores = [], []
    for side, pair in enumerate(question.pairs):
      twice = side == question.twice
      query = called[material.queries[pair]]
      ends += [query, query if twice else called[material.references[pair]]]
      # The cosine of an image with itself is 1.
      scores.append("1" if twice else f"{material.scores[pair]:.6g}")
    answers.append((question.name, "AB"[question.right], *scores, *ends, question.kind))
    conditions += [
      (question.name, file, kind) for file, kind in zip(question.files, CONDITIONS, strict=False)
    ]
  header = (
    "item", "answer", "score_a", "score_b", "query_a", "reference_a", "query_b", "reference_b",
    "kind",
  )  # fmt: skip
  files.write_bytes(folder / "key" / "answers.csv", _csv(header, answers), flush=False)
  files.write_bytes(
    folder / "key" / "conditions.csv", _csv(("item", "file", "condition"), conditions), flush=False
  )
  files.write_bytes(folder / _README, _instructions(questions, num_subjects).encode())
  # Last: with it the export is whole.
  mark = json.dumps({
    "items": hashlib.sha256(text).hexdigest(),
    "practice": hashlib.sha256(practice).hexdigest(),
    "pictures": pictures.hexdigest(),
  }, indent=1)  # fmt: skip
  for place in (folder / "key", folder):
    files.write_bytes(place / "fingerprint.json", (mark + "\n").encode())


def _num_names(questions: Questions) -> tuple[int, int]:
  """Of questions with a file a condition, and of checks."""
  several = len(questions.items.answers) + len(questions.practice.answers)
  return several * (1 + len(CONDITIONS)), 2 * len(questions.checks)


def _ask(questions: Questions, names: Any) -> list[_Question]:
  """All questions, with names in the order in which they are given."""
  asked = []
  for kind, items in (("item", questions.items), ("practice", questions.practice)):
    own = [next(names) for _ in items.answers]
    files_ = [[next(names) for _ in CONDITIONS] for _ in items.answers]
    for name, each, (a, b), right in zip(own, files_, items.pairs, items.answers, strict=True):
      asked.append(_Question(kind, name, each, (int(a), int(b)), int(right), None))
  for (twice, other), right in zip(questions.checks, questions.check_answers, strict=True):
    pairs = (int(twice), int(other)) if right == 0 else (int(other), int(twice))
    asked.append(_Question("check", next(names), [next(names)], pairs, int(right), int(right)))
  return asked


def _attribute(material: Material, pair: int, condition: Condition) -> str:
  """The name that is shown, or ''."""
  if not condition.attribute:
    return ""
  return tables_lib.csv_text(
    material.attribute_names[material.attributes[condition.attribute][pair]]
  )


def _random_names(rng: np.random.Generator, count: int) -> list[str]:
  names: dict[str, None] = {}
  while len(names) < count:
    names[rng.bytes(6).hex()] = None
  return list(names)


def _csv(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> bytes:
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(header)
  writer.writerows(lines)
  return out.getvalue().encode("utf-8", "replace")


def _png(picture: Image.Image) -> bytes:
  out = io.BytesIO()
  picture.save(out, "PNG")  # no metadata
  return out.getvalue()


def draw_pair(
  material: Material, pair: int, condition: Condition, *, twice: bool = False
) -> Image.Image:
  """A pair as a subject sees it: its two images; below, what the condition shows of the first.

  Below on the left the saliency map, on the right where the image shows the attribute. Nothing is
  written in the picture: names are text beside it. What lies between the images is transparent.

  Args:
    pair: of the material.
    condition: what is shown below.
    twice: the query stands in the place of the reference, too.
  """
  size = material.images.shape[1]
  query = material.images[material.queries[pair]]
  reference = query if twice else material.images[material.references[pair]]
  below = size + _GAP
  canvas = Image.new("RGBA", (size + below, size + (below if condition.map else 0)), (0, 0, 0, 0))
  canvas.paste(Image.fromarray(query), (0, 0))
  canvas.paste(Image.fromarray(reference), (below, 0))
  if condition.map:
    canvas.paste(Image.fromarray(_paint_saliency(material, pair)), (0, below))
  if condition.attribute:
    painted = _paint_activation(material, pair, condition.attribute)
    canvas.paste(Image.fromarray(painted), (below, below))
  return canvas


def _paint_saliency(material: Material, pair: int) -> np.ndarray:
  query = report.mute(material.images[material.queries[pair]])
  return report.overlay(query, _enlarged(material.saliency[pair], len(query)))


def _paint_activation(material: Material, pair: int, way: str) -> np.ndarray:
  query = report.mute(material.images[material.queries[pair]])
  activation = _enlarged(material.activations[way][pair], len(query))
  return overlay_activation(query, np.maximum(activation, 0))


def _draw_example(folder: pathlib.Path, material: Material, pair: int) -> None:
  """What the instructions explain, each picture by itself, and the name of the attribute."""
  for name, picture in (
    ("first", material.images[material.queries[pair]]),
    ("second", material.images[material.references[pair]]),
    ("map", _paint_saliency(material, pair)),
    ("attribute", _paint_activation(material, pair, _ATTRIBUTES[-1])),
  ):
    files.write_bytes(folder / f"{name}.png", _png(Image.fromarray(picture)), flush=False)
  name = _attribute(material, pair, CONDITIONS["sane"])
  files.write_bytes(folder / "attribute.txt", f"{name}\n".encode("utf-8", "replace"), flush=False)


def _enlarged(map_: np.ndarray, size: int) -> np.ndarray:
  known = np.nan_to_num(np.asarray(map_, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
  return recognition.enlarge(known[None], (size, size))[0]


def _instructions(questions: Questions, num_subjects: int) -> str:
  kinds, count = len(CONDITIONS), len(questions.items.answers)
  num_practice = len(questions.practice.answers)
  return f"""# Which pair does the model find more alike?

Material to ask people with: {count} items under {kinds} conditions, {num_practice} for practice,
{len(questions.checks)} checks of attention.

| what | for whom |
| --- | --- |
| `items/ITEM/FILE_a.png`, `FILE_b.png` | to be shown: pair A and pair B; names are random |
| `items.csv` | all of them, with the names of attributes that belong to a picture |
| `practice.csv` | right answers of practice, to be told after each |
| `example/` | for the instructions |
| `assignments/subject_NN.csv` | what a subject is shown, in that order, where no server does it |
| `key/` | **nobody who is asked or asks**: what is right, which file is which condition |
| `fingerprint.json` | the same here and in the key: they belong together |

`--config.job=study` asks people with a web server, which needs nothing of `key/`: keep that
elsewhere until all have answered. `--config.job=study_results` then evaluates.

Without the server, give out everything but `key/`.

1. Tell the subject: *A computer model says how well two images go together. You see two pairs, A
   and B. Say which pair the model gave the higher score. Sometimes a picture below the first image
   shows which of its regions raised the score (warm colours) or lowered it (cool ones), and
   sometimes an attribute that the model may have gone by is named, with where the image shows it
   (green).*
2. Show the two pictures of each file of the subject's list ({num_subjects} lists are there), with
   the names of attributes, each until it is answered.
3. Write a file `responses.csv` with the columns `subject,item,file,answer`, the answer A or B.

Each subject sees each item once. Conditions take turns from item to item and from subject to
subject: of {kinds} subjects in a row, each sees an item under another one. So ask {kinds}, or a
multiple of it.

To evaluate, join answers with `key/answers.csv` on the item and with `key/conditions.csv` on the
file; leave out practice and checks. A condition's accuracy is the share of its answers that are
right; chance is one half. Answers of one subject, and to one item, are not independent: draw both
anew for an interval.
"""
