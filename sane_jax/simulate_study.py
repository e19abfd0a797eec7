"""Job: the user study, simulated without people; and the material to ask people with."""

import csv
import io
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import tqdm
from PIL import Image, ImageDraw, ImageFont

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
_GAP, _LINE, _POINTS = 10, 22, 14  # pixels between pictures, of a caption and of its letters
_README = pathlib.Path("README.md")


def run(config: Any) -> None:
  """Simulates the study on what evaluate left, and exports items to ask people with.

  Writes WORKDIR/study: simulation.json, table.md, table.csv, table.tex and export/ (see
  `export_study`). What the simulation gives is a PROXY: see forward_simulation.
  """
  settings, workdir = config.study, files.at(config.workdir)
  check_settings(
    settings.num_exported, settings.num_subjects, settings.image_size, settings.min_gap
  )
  evaluation = workdir / config.evaluation.folder
  training.read_finished(evaluation, "evaluate")
  test = load.load_split(config.data, workdir, "test")
  arrays = read_material(evaluation / "material.npz", test)
  identity = training.identity(
    test, study=settings, material=training.hash_file(evaluation / "material.npz")
  )
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

  exported = draw_export(
    settings.key + 1, *pairs, count=settings.num_exported, min_gap=items.min_gap
  )
  used, where = np.unique(exported.pairs, return_inverse=True)
  large, rows, _, _ = load_images(_take(arrays, kept[used]), test, settings.image_size)
  exported = exported._replace(pairs=where.reshape(exported.pairs.shape))
  export_study(
    folder / "export", large, exported, key=settings.key, num_subjects=settings.num_subjects,
    image_names=[test.ids[row] for row in rows],
  )  # fmt: skip
  training.finish(
    folder, {"proxy": True, "accuracy": {n: c["accuracy"] for n, c in record["conditions"].items()}}
  )
  print(f"simulate_study: a PROXY, no people were asked: {len(items.answers)} items a condition.")
  for name, condition in CONDITIONS.items():
    value, low, high = (100 * x for x in forward_simulation.accuracy(result, name))
    print(f"  {condition.title}: {value:.1f} % right [{low:.1f}, {high:.1f}]")
  print(f"Open {folder / 'table.md'}; {folder / 'export' / _README} says how to ask people")


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


def check_settings(num_exported: int, num_subjects: int, image_size: int, min_gap: float) -> None:
  """Raises ValueError, naming the field, where a setting is out of its range."""
  for name, value, least in (
    ("num_exported", num_exported, 2),
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


def draw_export(
  key: int,
  queries: np.ndarray,
  references: np.ndarray,
  scores: np.ndarray,
  *,
  count: int,
  min_gap: float,
) -> Items:
  """At most `count` items, as many left as right; arguments as of `draw_items`."""
  least = 2 * forward_simulation.MIN_ITEMS
  items = forward_simulation.draw_items(
    key, queries, references, scores, num_items=max(count, least), min_gap=min_gap
  )
  rng = np.random.default_rng((key, 2))
  sides = [rng.permutation(np.flatnonzero(items.answers == answer)) for answer in (0, 1)]
  half = min(count // 2, *map(len, sides))
  chosen = np.sort(np.concatenate([side[:half] for side in sides]))
  pairs, answers, halves, blocks = (array[chosen] for array in items[:4])
  return Items(pairs, answers, halves, blocks, items.min_gap)


def export_study(
  folder: pathlib.Path,
  material: Material,
  items: Items,
  *,
  key: int,
  num_subjects: int,
  image_names: Sequence[str] = (),
) -> None:
  """Writes what is needed to ask people, and apart from it what they must not see.

  items/ITEM/FILE.png: an item under a condition, all of one size, both names random. items.csv
  lists them. assignments/subject_NN.csv: each subject's own order, every item once, under
  conditions that take turns: over five subjects each item is shown under each. key/answers.csv and
  key/conditions.csv: what is right, and which file is which condition. README.md says how to ask.
  Nothing but key/ depends on the answers or the scores, other than by what the images show.

  Args:
    folder: where to.
    material: explained pairs, images as they are to be shown.
    items: of the material's pairs.
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
  count, kinds = len(items.answers), list(CONDITIONS)
  names = iter(_random_names(rng, count * (1 + len(kinds))))
  item_names = [next(names) for _ in range(count)]
  file_names = [[f"{next(names)}.png" for _ in kinds] for _ in range(count)]

  # In the order of names: times of files say nothing either.
  by_name = np.argsort(item_names)
  listed = []
  with tqdm.tqdm(total=count, desc="items", unit="item", disable=None) as bar:
    for index in by_name:
      shown = dict(zip(file_names[index], kinds, strict=True))
      for file in sorted(shown):
        picture = draw_item(material, items.pairs[index], CONDITIONS[shown[file]])
        path = folder / "items" / item_names[index] / file
        files.write_bytes(path, _png(picture), flush=False)
        listed.append((item_names[index], file))
      bar.update()
  _write_csv(folder / "items.csv", ("item", "file"), listed)

  digits = len(str(num_subjects))
  turn = rng.permutation(count)
  for subject in range(num_subjects):
    lines = [
      (place, item_names[index], file_names[index][(turn[index] + subject) % len(kinds)])
      for place, index in enumerate(rng.permutation(count), 1)
    ]
    path = folder / "assignments" / f"subject_{subject + 1:0{digits}d}.csv"
    _write_csv(path, ("place", "item", "file"), lines)

  called = [tables_lib.csv_text(name) for name in image_names]
  called = called or [str(n) for n in range(len(material.images))]
  answers, conditions = [], []
  for index in by_name:
    ends = []
    for pair in items.pairs[index]:
      ends += [called[material.queries[pair]], called[material.references[pair]]]
    right = "AB"[int(items.answers[index])]
    scores = [f"{material.scores[pair]:.6g}" for pair in items.pairs[index]]
    answers.append((item_names[index], right, *scores, *ends))
    conditions += [
      (item_names[index], file, kind) for file, kind in zip(file_names[index], kinds, strict=True)
    ]
  header = (
    "item", "answer", "score_a", "score_b", "query_a", "reference_a", "query_b", "reference_b",
  )  # fmt: skip
  _write_csv(folder / "key" / "answers.csv", header, answers)
  _write_csv(folder / "key" / "conditions.csv", ("item", "file", "condition"), conditions)
  files.write_bytes(folder / _README, _instructions(count, num_subjects).encode())


def _random_names(rng: np.random.Generator, count: int) -> list[str]:
  names: dict[str, None] = {}
  while len(names) < count:
    names[rng.bytes(6).hex()] = None
  return list(names)


def _write_csv(path: pathlib.Path, header: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(header)
  writer.writerows(lines)
  files.write_bytes(path, out.getvalue().encode("utf-8", "replace"), flush=False)


def _png(picture: Image.Image) -> bytes:
  out = io.BytesIO()
  picture.save(out, "PNG")  # no metadata
  return out.getvalue()


def draw_item(
  material: Material, pairs: Sequence[int] | np.ndarray, condition: Condition
) -> Image.Image:
  """Two pairs side by side as a subject sees them, the same size under every condition.

  Above each pair's two images; below, where the condition shows them, the saliency map over the
  query, and the attribute's name with where the query shows it.

  Args:
    pairs: the left and the right one.
    condition: what else is shown.
  """
  size = material.images.shape[1]
  width = 2 * size + _GAP
  canvas = Image.new(
    "RGB", (2 * width + 5 * _GAP, 2 * size + 2 * _LINE + 3 * _GAP), (255, 255, 255)
  )
  draw = ImageDraw.Draw(canvas)
  font = ImageFont.truetype(
    str(pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), _POINTS
  )
  middle = canvas.width // 2
  draw.line([(middle, _GAP), (middle, canvas.height - _GAP)], fill=(190, 190, 190))
  for number, pair in enumerate(pairs):
    left, top = _GAP + number * (width + 3 * _GAP), _GAP + _LINE
    below = top + size + _GAP
    right = left + size + _GAP
    query = material.images[material.queries[pair]]
    draw.text((left, _GAP), "AB"[number], fill=(0, 0, 0), font=font)
    canvas.paste(Image.fromarray(query), (left, top))
    canvas.paste(Image.fromarray(material.images[material.references[pair]]), (right, top))
    if condition.map:
      painted = report.overlay(report.mute(query), _enlarged(material.saliency[pair], size))
      canvas.paste(Image.fromarray(painted), (left, below))
      draw.text((left, below + size), _fitted("what counts", font, size), (0, 0, 0), font)
    if condition.attribute:
      name = material.attribute_names[material.attributes[condition.attribute][pair]]
      activation = _enlarged(material.activations[condition.attribute][pair], size)
      painted = overlay_activation(report.mute(query), np.maximum(activation, 0))
      canvas.paste(Image.fromarray(painted), (right, below))
      draw.text((right, below + size), _fitted(name, font, size), (0, 0, 0), font)
  return canvas


def _enlarged(map_: np.ndarray, size: int) -> np.ndarray:
  known = np.nan_to_num(np.asarray(map_, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
  return recognition.enlarge(known[None], (size, size))[0]


def _fitted(text: str, font: Any, width: int) -> str:
  """One line that is at most `width` pixels wide; an ellipsis stands for what is cut."""
  text = " ".join(text.split())
  if font.getlength(text) <= width:
    return text
  while text and font.getlength(f"{text}…") > width:
    text = text[:-1]
  return f"{text.rstrip()}…"


def _instructions(count: int, num_subjects: int) -> str:
  kinds = len(CONDITIONS)
  return f"""# Which pair does the model find more alike?

Material to ask people with: {count} items under {kinds} conditions, and lists for {num_subjects}
subjects.

| what | for whom |
| --- | --- |
| `items/ITEM/FILE.png` | to be shown; both names are random |
| `items.csv` | all of them |
| `assignments/subject_NN.csv` | what a subject is shown, in that order |
| `key/` | **nobody who is asked or asks**: what is right, which file is which condition |

Give out everything but `key/`.

1. Tell the subject: *A computer model says how well two images go together. You see two pairs, A
   and B. Say which pair the model gave the higher score. Sometimes a picture below the first image
   shows which of its regions raised the score (warm colours) or lowered it (cool ones), and
   sometimes an attribute that the model may have gone by is named, with where the image shows it
   (green).*
2. Show the files of the subject's list one after the other, each until it is answered.
3. Write a file `responses.csv` with the columns `subject,item,file,answer`, the answer A or B.

Each subject sees each item once. Conditions take turns from item to item and from subject to
subject: of {kinds} subjects in a row, each sees an item under another one. So ask {kinds}, or a
multiple of it.

To evaluate, join `responses.csv` with `key/answers.csv` on the item and with `key/conditions.csv`
on the file. A condition's accuracy is the share of its answers that are right; chance is one half.
Answers of one subject, and to one item, are not independent: draw both anew for an interval.
"""
