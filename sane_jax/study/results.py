"""What participants answered: joined with the key, filtered by the rules, tabulated and plotted."""

import csv
import io
import json
import math
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sane_jax import report
from sane_jax.report import tables as tables_lib
from sane_jax.report.tables import Interval, Table, percent
from sane_jax.runs import files
from sane_jax.runs import folder as run_folder
from sane_jax.study import statistics
from sane_jax.study.proxy import CONDITIONS
from sane_jax.study.server.store import AnswerRow, SubjectRow
from sane_jax.study.statistics import Answers, Contrast, Estimate, MixedModel, Rules, Subject

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_INK, _MUTED, _ACCENT = "#22201d", "#5d5a54", "#8a3b12"
NAMES = tuple(CONDITIONS)
_BASELINE, _OURS = NAMES.index("nothing"), NAMES.index("sane")
# Each against nothing, and SANE against each other.
_PAIRS = tuple((c, _BASELINE) for c in range(len(NAMES)) if c != _BASELINE) + tuple(
  (_OURS, c) for c in range(len(NAMES)) if c not in (_OURS, _BASELINE)
)


# --- what is read ---------------------------------------------------------------------------------


class Key(NamedTuple):
  """What is right, and what was shown."""

  answers: dict[str, str]  # item -> A B
  conditions: dict[tuple[str, str], str]  # (item, file) -> condition


def read_key(folder: pathlib.Path) -> Key:
  """The key that simulate_study wrote beside its export.

  Raises:
    ValueError: it is missing or damaged; says what to do.
  """
  answers = _read_csv(folder / "answers.csv", ("item", "answer"))
  conditions = _read_csv(folder / "conditions.csv", ("item", "file", "condition"))
  for line in answers:
    if line["answer"] not in ("A", "B"):
      raise ValueError(f"{folder / 'answers.csv'}: answer is A or B; given {line['answer']!r}")
  return Key(
    {line["item"]: line["answer"] for line in answers},
    {(line["item"], line["file"]): line["condition"] for line in conditions},
  )


def check_fingerprint(folder: pathlib.Path, ours: str) -> None:
  """Raises ValueError where the key is not that of the export which the server showed.

  Args:
    folder: of the key.
    ours: as the server noted it; '' where it did not.
  """
  path = folder / "fingerprint.json"
  if not ours or not path.exists():
    return  # the names of the items tell as much
  if run_folder.hash_file(path)[: len(ours)] != ours:
    raise ValueError(
      f"the key is of another export: {path} is not what the server showed; put the export back"
      " that people saw"
    )


def _read_csv(path: pathlib.Path, columns: Sequence[str]) -> list[dict[str, str]]:
  if not path.exists():
    raise ValueError(
      f"{path} is missing; the key lies with the export that people were shown: put its folder"
      " back, or run --config.job=simulate_study if nobody was asked yet"
    )
  try:
    lines = list(csv.DictReader(io.StringIO(files.read_bytes(path).decode())))
  except (UnicodeDecodeError, csv.Error) as error:
    raise ValueError(f"{path} can't be read ({error}); put the export's own back") from error
  if not lines or any(line.get(column) is None for line in lines for column in columns):
    raise ValueError(f"{path} lacks lines, or columns {', '.join(columns)}; put the export's back")
  return lines


class Findings(NamedTuple):
  """A study's answers as numbers, and who is left out.

  Attributes:
    answers: to items, of all subjects; conditions by their order in CONDITIONS.
    sides: [n] A or B, as given.
    places: [n] of each answer in its subject's order.
    items: names; answers.item are indices into them.
    broken: subject -> which of the rules it breaks; the others are kept.
    num_subjects: who consented.
    num_items: that a subject is asked.
    repeated: answers that came after one to the same item, and do not count.
    orphans: answers of nobody who takes part.
  """

  answers: Answers
  sides: np.ndarray
  places: np.ndarray
  items: tuple[str, ...]
  broken: dict[int, tuple[int, ...]]
  num_subjects: int
  num_items: int
  repeated: int
  orphans: int
  rules: Rules

  @property
  def kept(self) -> Answers:
    """Those of subjects who are not left out."""
    return self.answers.take(~np.isin(self.answers.subject, list(self.broken)))

  @property
  def left_out(self) -> dict[str, int]:
    """How many subjects break each of `Rules.words`."""
    return {
      words: sum(index in which for which in self.broken.values())
      for index, words in enumerate(self.rules.words())
    }


def analyse(
  subjects: Sequence[SubjectRow], rows: Sequence[AnswerRow], key: Key, rules: Rules, num_items: int
) -> Findings:
  """Joins answers with the key and applies the rules.

  Args:
    subjects: who consented.
    rows: what they answered; of several to an item the first counts.
    key: of the export that they were shown.
    rules: who is left out.
    num_items: that each is asked.

  Raises:
    ValueError: nobody answered an item; the key is of another export; rules out of range.
  """
  statistics.check_rules(rules)
  known = {row.subject for row in subjects}
  first: dict[tuple[int, str], AnswerRow] = {}
  orphans = 0
  for row in sorted(rows, key=lambda row: (row.subject, row.place)):
    if row.subject not in known:
      orphans += 1
      continue
    first.setdefault((row.subject, row.item), row)
  repeated = len(rows) - orphans - len(first)
  used = [row for row in first.values() if row.kind != "practice"]
  asked = [row for row in used if row.kind == "item"]
  if not asked:
    raise ValueError(
      f"{len(known)} subjects, and none has answered an item yet; ask people with"
      " --config.job=study, or wait"
    )
  strange = sorted({row.item for row in used if row.item not in key.answers})
  strange += sorted(
    {
      f"{row.item}/{row.file}"
      for row in asked
      if row.item in key.answers and key.conditions.get((row.item, row.file)) not in CONDITIONS
    }
  )
  if strange:
    raise ValueError(
      f"the key is of another export: it does not have {', '.join(strange[:3])}"
      f"{f' and {len(strange) - 3} more' if len(strange) > 3 else ''}, which were answered; put"
      " the export back that people were shown"
    )
  for row in used:
    if row.answer not in ("A", "B"):
      raise ValueError(
        f"subject {row.subject}, item {row.item}: an answer is A or B; given {row.answer!r}"
      )
  items = tuple(sorted({row.item for row in asked}))
  number = {item: index for index, item in enumerate(items)}
  answers = Answers(
    subject=np.array([row.subject for row in asked]),
    item=np.array([number[row.item] for row in asked]),
    condition=np.array([NAMES.index(key.conditions[row.item, row.file]) for row in asked]),
    correct=np.array([float(row.answer == key.answers[row.item]) for row in asked]),
    seconds=np.array([row.seconds for row in asked], np.float64),
    names=NAMES,
  )
  sides = np.array([row.answer for row in asked])
  failed = Counter(
    row.subject for row in used if row.kind == "check" and row.answer != key.answers[row.item]
  )
  broken = {}
  for subject in sorted(known):
    own = answers.subject == subject
    share_a = float((sides[own] == "A").mean()) if own.any() else math.nan
    seen = Subject(
      failed[subject],
      own.sum() / num_items,
      float(np.median(answers.seconds[own])) if own.any() else math.nan,
      max(share_a, 1 - share_a),
    )
    if which := statistics.broken_rules(seen, rules):
      broken[subject] = which
  places = np.array([row.place for row in asked])
  return Findings(
    answers, sides, places, items, broken, len(known), num_items, repeated, orphans, rules
  )


# --- what comes out -------------------------------------------------------------------------------


class Summary(NamedTuple):
  """What some answers show, by condition where there are several of a kind."""

  answers: Answers
  accuracy: tuple[Estimate, ...]
  contrasts: tuple[Contrast, ...]
  mixed_model: MixedModel
  median_seconds: tuple[float, ...]
  mean_seconds: tuple[Estimate, ...]  # geometric
  ratios: tuple[Estimate, ...]  # of the geometric mean to that with nothing shown
  out_of_range: int  # times that do not count

  @property
  def counts(self) -> dict[str, int]:
    """How many subjects, items and answers."""
    return {
      "subjects": len(np.unique(self.answers.subject)),
      "items": len(np.unique(self.answers.item)),
      "answers": len(self.answers.correct),
    }

  @property
  def size(self) -> str:
    """The counts in words."""
    return ", ".join(f"{count} {what}" for what, count in self.counts.items())


def summarise(answers: Answers, rules: Rules) -> Summary:
  """Every figure of some answers, each worked out once."""
  present, each = set(answers.condition.tolist()), range(len(NAMES))
  return Summary(
    answers,
    tuple(statistics.accuracy(answers, c) for c in each),
    statistics.contrasts(answers, [pair for pair in _PAIRS if set(pair) <= present]),
    statistics.mixed_model(answers),
    tuple(statistics.median_seconds(answers, c, rules) for c in each),
    tuple(statistics.geometric_seconds(answers, c, rules) for c in each),
    tuple(statistics.time_ratio(answers, c, _BASELINE, rules) for c in each),
    statistics.num_out_of_range(answers, rules),
  )


def _p(p: float) -> str | None:
  if math.isnan(p):
    return None
  return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _interval(estimate: Estimate, digits: int = 1) -> Interval:
  return Interval(estimate.value, estimate.low, estimate.high, digits)


def _percent(estimate: Estimate) -> Interval:
  return percent(estimate.value, estimate.low, estimate.high)


def make_tables(findings: Findings, kept: Summary, everyone: Summary) -> dict[str, Table]:
  """The tables by the names of their files."""
  tables = {}
  for suffix, found, who in (("", kept, "after exclusion"), ("_all", everyone, "nobody left out")):
    tables[f"accuracy{suffix}"] = _accuracy_table(found, who)
    tables[f"differences{suffix}"] = _difference_table(found, who)
    tables[f"mixed_model{suffix}"] = _mixed_table(found.mixed_model, who)
    tables[f"times{suffix}"] = _time_table(found, findings.rules, who)
  tables["exclusion"] = _exclusion_table(findings)
  return tables


def _accuracy_table(found: Summary, who: str) -> Table:
  counts = np.bincount(found.answers.condition, minlength=len(NAMES)).tolist()
  rows = [
    (condition.title, count, _percent(estimate), _p(estimate.p))
    for condition, count, estimate in zip(CONDITIONS.values(), counts, found.accuracy, strict=True)
  ]
  return Table(
    title=f"Right answers of people, {who}",
    note=(
      f"{found.size}. Chance is 50 %. 95 % intervals for drawing subjects and items anew; p of"
      " chance, not corrected."
    ),
    columns=("shown", "answers", "right, % ↑", "p"),
    rows=tuple(rows),
  )


def _difference_table(found: Summary, who: str) -> Table:
  rows = [
    (CONDITIONS[name].title, CONDITIONS[than].title, _percent(gain), _p(gain.p), _p(corrected))
    for name, than, gain, corrected in found.contrasts
  ]
  return Table(
    title=f"Differences between conditions, {who}",
    note=(
      f"{found.size}. Percentage points, with 95 % intervals for drawing subjects and items anew;"
      f" Holm: p corrected for {len(rows)} comparisons."
    ),
    columns=("shown", "against", "more right, points", "p", "p, Holm"),
    rows=tuple(rows),
  )


def _mixed_table(model: MixedModel, who: str) -> Table:
  note = (
    "Logistic, with random intercepts of subjects and items; odds ratios against"
    f" {CONDITIONS[model.baseline].title}, 95 % intervals; points for the average subject and item."
  )
  if math.isfinite(model.subject_sd):
    note += f" Deviations, logits: subjects {model.subject_sd:.2f}, items {model.item_sd:.2f}."
  if model.note:
    note += f" NOT TO BE RELIED ON: {model.note}."
  rows = [
    (
      CONDITIONS[effect.name].title,
      Interval(effect.odds_ratio, effect.low, effect.high, digits=2),
      percent(effect.points),
      _p(effect.p),
    )
    for effect in model.effects
  ]
  return Table(f"Mixed model, {who}", note, ("shown", "odds ratio", "points", "p"), tuple(rows))


def _time_table(found: Summary, rules: Rules, who: str) -> Table:
  rows = []
  for index, condition in enumerate(CONDITIONS.values()):
    ratio = found.ratios[index]
    compared = (None, None) if index == _BASELINE else (_interval(ratio, 2), _p(ratio.p))
    mean = _interval(found.mean_seconds[index])
    rows.append((condition.title, Interval(found.median_seconds[index]), mean, *compared))
  low, high = rules.seconds
  return Table(
    title=f"Seconds to an answer, {who}",
    note=(
      f"{found.size}, of which {found.out_of_range} took less than {low:g} s or more than"
      f" {high:g} s and do not count here. Ratio: of geometric means."
    ),
    columns=("shown", "median, s", "geometric mean, s", "ratio to nothing", "p"),
    rows=tuple(rows),
  )


def _exclusion_table(findings: Findings) -> Table:
  rows = [(f"subjects who {words}", count) for words, count in findings.left_out.items()]
  rows += [
    ("subjects left out by any of these", len(findings.broken)),
    ("subjects who consented", findings.num_subjects),
    ("second answers to an item, not counted", findings.repeated),
    ("answers of nobody who takes part, not counted", findings.orphans),
  ]
  return Table(
    title="Who and what was left out",
    note="The rules were set before; a subject may break several.",
    columns=("what", "how many"),
    rows=tuple(rows),
  )


def make_record(findings: Findings, kept: Summary, everyone: Summary) -> dict[str, Any]:
  """All that came out, for programs: shares, not %; None for what is not known."""

  def plain(value: Any) -> Any:
    if fields := getattr(value, "_fields", ()):
      return {name: plain(part) for name, part in zip(fields, value, strict=True)}
    if isinstance(value, tuple | list):
      return [plain(part) for part in value]
    if isinstance(value, float):
      return value if math.isfinite(value) else None
    return value

  def of(found: Summary) -> dict[str, Any]:
    seconds = zip(found.median_seconds, found.mean_seconds, found.ratios, strict=True)
    kinds = "median", "geometric_mean", "ratio"
    return {
      **found.counts,
      "accuracy": dict(zip(NAMES, plain(found.accuracy), strict=True)),
      "comparisons": plain(found.contrasts),
      "mixed_model": plain(found.mixed_model),
      "seconds": {
        name: dict(zip(kinds, plain(each), strict=True))
        for name, each in zip(NAMES, seconds, strict=True)
      },
    }

  return {
    "rules": plain(findings.rules),
    "left_out": findings.left_out,
    "num_left_out": len(findings.broken),
    "num_subjects": findings.num_subjects,
    "repeated": findings.repeated,
    "orphans": findings.orphans,
    "kept": of(kept),
    "all": of(everyone),
  }


def anonymous_csv(findings: Findings, rng: np.random.Generator) -> str:
  """All answers to items, without personal data: subjects in a random order, no clock times.

  Args:
    rng: of the new numbers. A seed that anybody knows would give them away.
  """
  answers = findings.answers
  old = np.unique(answers.subject)
  new = dict(zip(old.tolist(), (rng.permutation(len(old)) + 1).tolist(), strict=True))
  lines = []
  for index, subject in enumerate(answers.subject.tolist()):
    item, name = findings.items[answers.item[index]], NAMES[answers.condition[index]]
    lines.append((
      new[subject], int(findings.places[index]), tables_lib.csv_text(item), name,
      str(findings.sides[index]), int(answers.correct[index]), f"{answers.seconds[index]:.2f}",
      int(subject not in findings.broken),
    ))  # fmt: skip
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(("subject", "place", "item", "condition", "answer", "correct", "seconds", "kept"))
  writer.writerows(sorted(lines))
  return out.getvalue()


def draw_figure(found: Summary) -> "Figure":
  """Accuracies against chance, and times; with 95 % intervals."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(8.4, 3.0), dpi=150, facecolor="white", layout="constrained")
  FigureCanvasAgg(figure)
  left, right = figure.subplots(1, 2, sharey=True)
  for index, (accuracy, seconds) in enumerate(zip(found.accuracy, found.mean_seconds, strict=True)):
    color = _ACCENT if index == _OURS else _INK
    for axes, estimate, scale in ((left, accuracy, 100), (right, seconds, 1)):
      if not math.isfinite(estimate.value):
        continue
      if math.isfinite(estimate.low):
        ends = [scale * estimate.low, scale * estimate.high]
        axes.plot(ends, [index, index], color=color, linewidth=2, solid_capstyle="butt")
      axes.plot([scale * estimate.value], [index], "o", color=color, markersize=6)
  left.axvline(50, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
  # Away from the first row's mark, whose interval may lie on the line.
  left.annotate(
    "chance", (50, 1), xycoords=("data", "axes fraction"), xytext=(3, 2),
    textcoords="offset points", fontsize=8, color=_MUTED,
  )  # fmt: skip
  left.set_yticks(range(len(NAMES)), [CONDITIONS[name].title for name in NAMES], fontsize=9)
  left.set_ylim(len(NAMES) - 0.5, -0.5)
  left.set_xlabel("right answers, %", fontsize=9, color=_INK)
  right.set_xlabel("seconds to an answer, geometric mean", fontsize=9, color=_INK)
  for axes in (left, right):
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_MUTED)
    axes.tick_params(axis="x", labelsize=8, colors=_MUTED)
    axes.tick_params(axis="y", length=0, labelcolor=_INK)
    axes.grid(axis="x", color="#e4e0d8", linewidth=0.7)
    axes.set_axisbelow(True)
  return figure


def write(folder: pathlib.Path, findings: Findings) -> None:
  """Writes all that `run` promises to a folder; see there."""
  files.make_folder(folder)
  kept = summarise(findings.kept, findings.rules)
  everyone = summarise(findings.answers, findings.rules)
  tables = make_tables(findings, kept, everyone)
  tables_lib.write(folder, tables)
  record = json.dumps(make_record(findings, kept, everyone), indent=1, allow_nan=False) + "\n"
  files.write_bytes(folder / "results.json", record.encode())
  figure = draw_figure(kept)
  for kind in ("png", "pdf"):
    out = io.BytesIO()
    figure.savefig(out, format=kind)
    files.write_bytes(folder / f"figure.{kind}", out.getvalue())
  anonymous = anonymous_csv(findings, np.random.default_rng())
  files.write_bytes(folder / "answers.csv", anonymous.encode("utf-8", "replace"))
  page = report.render_page(
    [], title="Do explanations help people?", subtitle=kept.size,
    tables=list(tables.values()), shows_pairs=False,
  )  # fmt: skip
  files.write_bytes(folder / "index.html", page.encode())
