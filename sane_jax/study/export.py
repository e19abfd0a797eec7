"""The material of a user study: questions, pictures, instructions, and the key to the answers."""

import csv
import hashlib
import io
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm
from PIL import Image

from sane_jax import report
from sane_jax.ops import resampling, streams
from sane_jax.report import tables as tables_lib
from sane_jax.report.page import overlay_activation
from sane_jax.runs import files
from sane_jax.runs import folder as run_folder
from sane_jax.study import proxy
from sane_jax.study.proxy import ATTRIBUTES, CONDITIONS, Condition, Items, Material

_GAP = 8  # pixels between the images of a pair
README = "README.md"
FINGERPRINT = "fingerprint.json"
_GROUPS = "VWXYZ"  # stand for the conditions, in an order that only the key tells
# What fixes the items. The settings of the server and of the evaluation may change without them.
FIXED = (
  "num_items", "min_gap", "exchanges", "num_exported", "num_practice", "num_checks",
  "num_subjects", "image_size",
)  # fmt: skip


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
  least = 2 * proxy.MIN_ITEMS
  items = proxy.draw_items(
    key, queries, references, scores, num_items=max(count + num_practice + 1, least),
    min_gap=min_gap,
  )  # fmt: skip
  rng = streams.rng(key, streams.STUDY_EXPORT)
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


class Question(NamedTuple):
  """A question of any kind, with what the key says of it."""

  kind: str  # item practice check
  name: str
  files: list[str]  # by condition; one for a check, that is shown under none
  pairs: tuple[int, int]
  right: int
  twice: int | None  # which pair shows its query twice

  def shown(self) -> Iterator[tuple[str, str]]:
    """Its files in the order of their names, each with its condition."""
    return iter(sorted(zip(self.files, CONDITIONS, strict=False)))


class Plan(NamedTuple):
  """All that is random in an export.

  Attributes:
    questions: in the order of their names.
    groups: letter of each condition.
    orders: of each subject, the items by name, each with the file that is shown.
  """

  questions: list[Question]
  groups: dict[str, str]
  orders: list[list[tuple[str, str]]]


def plan(questions: Questions, *, key: int, num_subjects: int) -> Plan:
  """Random names, letters and orders. Conditions take turns from item to item and subject to
  subject: over five subjects each item is shown under each."""
  rng = streams.rng(key, streams.STUDY_NAMES)
  several = len(questions.items.answers) + len(questions.practice.answers)
  count = several * (1 + len(CONDITIONS)) + 2 * len(questions.checks)
  asked = _ask(questions, iter(_random_names(rng, count)))
  items = [question for question in asked if question.kind == "item"]
  groups = dict(zip(CONDITIONS, rng.permutation(list(_GROUPS)).tolist(), strict=True))
  turn = rng.permutation(len(items))
  orders = [
    [
      (items[index].name, items[index].files[(turn[index] + subject) % len(CONDITIONS)])
      for index in rng.permutation(len(items))
    ]
    for subject in range(num_subjects)
  ]
  return Plan(sorted(asked, key=lambda question: question.name), groups, orders)


def _ask(questions: Questions, names: Iterator[str]) -> list[Question]:
  """All questions, with names in the order in which they are given."""
  asked = []
  for kind, items in (("item", questions.items), ("practice", questions.practice)):
    own = [next(names) for _ in items.answers]
    files_ = [[next(names) for _ in CONDITIONS] for _ in items.answers]
    for name, each, (a, b), right in zip(own, files_, items.pairs, items.answers, strict=True):
      asked.append(Question(kind, name, each, (int(a), int(b)), int(right), None))
  for (twice, other), right in zip(questions.checks, questions.check_answers, strict=True):
    pairs = (int(twice), int(other)) if right == 0 else (int(other), int(twice))
    asked.append(Question("check", next(names), [next(names)], pairs, int(right), int(right)))
  return asked


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
  assignments/subject_NN.csv: orders for asking without the server, every item once. key/answers.csv
  and key/conditions.csv: what is right, and which file is which condition. fingerprint.json, the
  same in key/: what belongs together. README.md says how to ask.

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
  proxy.check(material)
  folder = run_folder.writable_folder(folder)
  planned = plan(questions, key=key, num_subjects=num_subjects)
  for path, data in files_of(planned, material, questions, image_names):
    # The fingerprint is last: with it the export is whole.
    files.write_bytes(folder / path, data, flush=path.endswith(FINGERPRINT))


def files_of(
  plan: Plan, material: Material, questions: Questions, image_names: Sequence[str] = ()
) -> Iterator[tuple[str, bytes]]:
  """The files of an export, (path, content), as `export_study` describes them.

  Files come in the order of names: their times say nothing either.
  """
  listed, pictures = [], hashlib.sha256()
  for question in tqdm.tqdm(plan.questions, desc="items", unit="item", disable=None):
    for file, name in question.shown():
      condition = CONDITIONS[name]
      for side, pair in zip("ab", question.pairs, strict=True):
        twice = question.twice is not None and side == "ab"[question.twice]
        data = _png(draw_pair(material, pair, condition, twice=twice))
        pictures.update(data)
        yield f"items/{question.name}/{file}_{side}.png", data
      group = "" if question.kind == "check" else plan.groups[name]
      listed.append((
        question.name, file, question.kind, group, int(condition.map),
        *(_attribute(material, pair, condition) for pair in question.pairs),
      ))  # fmt: skip
  items = _csv("item file kind group map attribute_a attribute_b", listed)
  yield "items.csv", items
  told = [(q.name, "AB"[q.right]) for q in plan.questions if q.kind == "practice"]
  practice = _csv("item answer", told)
  yield "practice.csv", practice
  yield from _example(material, questions.example)
  digits = len(str(len(plan.orders)))
  for subject, order in enumerate(plan.orders, 1):
    lines = [(place, *shown) for place, shown in enumerate(order, 1)]
    yield f"assignments/subject_{subject:0{digits}d}.csv", _csv("place item file", lines)
  yield "key/answers.csv", _answers(plan, material, image_names)
  conditions = [
    (q.name, *shown) for q in plan.questions for shown in zip(q.files, CONDITIONS, strict=False)
  ]
  yield "key/conditions.csv", _csv("item file condition", conditions)
  yield README, _instructions(questions, len(plan.orders)).encode()
  mark = {
    "items": hashlib.sha256(items).hexdigest(),
    "practice": hashlib.sha256(practice).hexdigest(),
    "pictures": pictures.hexdigest(),
  }
  for place in ("key/", ""):
    yield place + FINGERPRINT, (json.dumps(mark, indent=1) + "\n").encode()


def _answers(plan: Plan, material: Material, image_names: Sequence[str]) -> bytes:
  """What is right, with the scores and what the images are called."""
  called = [tables_lib.csv_text(name) for name in image_names]
  called = called or [str(n) for n in range(len(material.images))]
  answers = []
  for question in plan.questions:
    ends, scores = [], []
    for side, pair in enumerate(question.pairs):
      twice = side == question.twice
      query = called[material.queries[pair]]
      ends += [query, query if twice else called[material.references[pair]]]
      # The cosine of an image with itself is 1.
      scores.append("1" if twice else f"{material.scores[pair]:.6g}")
    answers.append((question.name, "AB"[question.right], *scores, *ends, question.kind))
  columns = "item answer score_a score_b query_a reference_a query_b reference_b kind"
  return _csv(columns, answers)


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


def _csv(columns: str, lines: Iterable[Sequence[Any]]) -> bytes:
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(columns.split())
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


def _example(material: Material, pair: int) -> Iterator[tuple[str, bytes]]:
  """What the instructions explain, each picture by itself, and the name of the attribute."""
  for name, picture in (
    ("first", material.images[material.queries[pair]]),
    ("second", material.images[material.references[pair]]),
    ("map", _paint_saliency(material, pair)),
    ("attribute", _paint_activation(material, pair, ATTRIBUTES[-1])),
  ):
    yield f"example/{name}.png", _png(Image.fromarray(picture))
  name = _attribute(material, pair, CONDITIONS["sane"])
  yield "example/attribute.txt", f"{name}\n".encode("utf-8", "replace")


def _enlarged(map_: np.ndarray, size: int) -> np.ndarray:
  known = np.nan_to_num(np.asarray(map_, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
  return resampling.enlarge(known[None], (size, size))[0]


def _instructions(questions: Questions, num_subjects: int) -> str:
  template = pathlib.Path(__file__).with_name("export_readme.txt").read_text(encoding="utf-8")
  return template.format(
    num_items=len(questions.items.answers), num_practice=len(questions.practice.answers),
    num_checks=len(questions.checks), num_conditions=len(CONDITIONS), num_subjects=num_subjects,
  )  # fmt: skip
