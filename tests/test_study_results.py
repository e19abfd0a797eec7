"""The job on simulated people and a real export: what it writes, refuses and keeps back."""

import csv
import io
import json
import pathlib
import re
import sqlite3

import ml_collections
import numpy as np
import pytest
import study_export

from sane_jax.jobs import plan_study, study_results
from sane_jax.study import results as results_lib
from sane_jax.study.proxy import CONDITIONS
from sane_jax.study.results import Key
from sane_jax.study.server import questions as questions_lib
from sane_jax.study.server.store import AnswerRow, Store, SubjectRow
from sane_jax.study.statistics import Plan, Rules

CONSENTED = 1_790_000_000.25
NAMES = list(CONDITIONS)


def people(key, kinds, count, *, seed=0, skill=0.8):
  """Rows of so many subjects; who sees SANE is right more often. `kinds`: item -> kind."""
  rng = np.random.default_rng(seed)
  shown = {}
  for (item, file), condition in key.conditions.items():
    shown.setdefault(item, {})[condition] = file
  subjects = [
    SubjectRow(n, CONSENTED + n, CONSENTED + 900 + n, "within") for n in range(1, count + 1)
  ]
  rows = []
  for row in subjects:
    for place, item in enumerate(kinds, 1):
      condition = NAMES[(place + row.subject) % 5]
      file = shown.get(item, {}).get(condition, "f")
      chance = 1.0 if kinds[item] == "check" else skill if condition == "sane" else 0.6
      right = key.answers[item]
      answer = right if rng.random() < chance else "BA"["AB".index(right)]
      seconds = float(np.exp(1.5 + 0.3 * rng.normal()))
      rows.append(AnswerRow(row.subject, place, kinds[item], item, file, "", answer, seconds))
  return subjects, rows


def make_key(items=20, checks=2):
  """A key, and the kinds of its items."""
  kinds = {f"i{n}": "item" for n in range(items)} | {f"c{n}": "check" for n in range(checks)}
  answers = {item: "AB"[n % 2] for n, item in enumerate(kinds)}
  conditions = {(item, f"{item}-{c}"): c for item in kinds for c in NAMES}
  return Key(answers, conditions), kinds


def analyse(subjects, rows, key, rules=None, num_items=20):
  return results_lib.analyse(subjects, rows, key, rules or Rules(), num_items)


def make_config(workdir, **exclusion):
  rules = {**Rules()._asdict(), **exclusion}
  return ml_collections.ConfigDict(
    {
      "workdir": str(workdir),
      "study": {"folder": "study", "exclusion": rules, "plan": Plan()._asdict()},
    }
  )


def write_database(path, subjects, rows, fingerprint):
  facts = {"fingerprint": fingerprint, "items_per_subject": "20"}
  Store(path, facts).close()
  with sqlite3.connect(path) as db:
    for s in subjects:
      n = s.subject
      db.execute(
        "INSERT INTO subjects (subject, visit, resume, code, design, slot, cell, consented_at,"
        " seen_at, finished_at, comment) VALUES (?, ?, ?, ?, ?, ?, '', ?, ?, ?, ?)",
        (n, f"secretvisit{n}", f"secretlink{n}", f"secretcode{n}", s.design, n, s.consented_at,
         s.consented_at, s.finished_at, "I am Jane Doe"),
      )  # fmt: skip
    for r in rows:
      where = (r.subject, r.place, r.kind, r.item, r.file)
      db.execute(
        "INSERT INTO places (subject, place, kind, item, file) VALUES (?, ?, ?, ?, ?)", where
      )
      db.execute(
        "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*where, r.answer, CONSENTED + 7 * r.place, r.seconds, r.seconds, None),
      )
  db.close()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  """A real export, a real database, and the job run on them."""
  workdir = tmp_path_factory.mktemp("people")
  folder = workdir / "study"
  export = study_export.export(folder / "export", items=20, practice=2, checks=2)
  asked = questions_lib.read_export(export)
  kinds = {item: kind for kind, items in asked.items.items() for item in items}
  key = results_lib.read_key(export / "key")
  subjects, rows = people(key, kinds, 25)
  write_database(folder / "answers.sqlite", subjects, rows, asked.fingerprint)
  study_results.run(make_config(workdir))
  return workdir


def test_the_job_writes_what_it_promises(study):
  folder = study / "study" / "results"
  names = {path.name for path in folder.iterdir()}
  tables = {
    f"{name}{suffix}.{kind}"
    for name in ("accuracy", "differences", "mixed_model", "times")
    for suffix in ("", "_all")
    for kind in ("csv", "tex")
  }
  assert names == tables | {
    "exclusion.csv", "exclusion.tex", "tables.md", "results.json", "figure.png", "figure.pdf",
    "answers.csv", "index.html",
  }  # fmt: skip
  record = json.loads((folder / "results.json").read_text())
  assert record["kept"]["answers"] == 500, "neither practice nor checks count"
  accuracy = record["kept"]["accuracy"]
  assert accuracy["sane"]["low"] < 0.8 < accuracy["sane"]["high"]
  first = record["kept"]["comparisons"][3]
  assert (first["name"], first["than"]) == ("sane", "nothing")
  assert first["holm"] >= first["difference"]["p"]
  assert record["kept"]["mixed_model"]["effects"][3]["odds_ratio"] > 1
  assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
  page = (folder / "index.html").read_text()
  assert "Right answers of people, nobody left out" in page
  assert "pairs explained" not in page, "there are none to speak of"


def test_shares_are_those_of_a_count_by_hand(study):
  """From the database and the key, with nothing of the job's own."""
  folder = study / "study"
  right = {
    line["item"]: line["answer"]
    for line in csv.DictReader((folder / "export/key/answers.csv").open())
  }
  of = {
    (line["item"], line["file"]): line["condition"]
    for line in csv.DictReader((folder / "export/key/conditions.csv").open())
  }
  seen = {name: [] for name in NAMES}
  with sqlite3.connect(folder / "answers.sqlite") as db:
    for item, file, answer in db.execute(
      "SELECT item, file, answer FROM answers WHERE kind = 'item'"
    ):
      seen[of[item, file]].append(answer == right[item])
  db.close()
  record = json.loads((folder / "results" / "results.json").read_text())
  for name in NAMES:
    assert record["all"]["accuracy"][name]["value"] == pytest.approx(np.mean(seen[name]))


def test_published_answers_hold_nothing_personal(study):
  text = (study / "study/results/answers.csv").read_text()
  lines = list(csv.DictReader(io.StringIO(text)))
  assert list(lines[0]) == [
    "subject", "place", "item", "condition", "answer", "correct", "seconds", "kept",
  ]  # fmt: skip
  assert len(lines) == 500
  everything = "".join(
    path.read_bytes().decode("latin-1") for path in (study / "study/results").glob("*.[!p]*")
  )
  for secret in ("secret", "Jane", "17900", "2026-"):
    assert secret not in everything
  assert {int(line["subject"]) for line in lines} == set(range(1, 26))


def test_subjects_get_new_numbers_and_texts_are_no_formulas():
  key, kinds = make_key()
  renamed = {f"={item}": kind for item, kind in kinds.items()}
  key = Key(
    {f"={item}": a for item, a in key.answers.items()},
    {(f"={item}", file): c for (item, file), c in key.conditions.items()},
  )
  subjects, rows = people(key, renamed, 10)
  rows = [row._replace(file=f"{row.item[1:]}-{NAMES[row.place % 5]}") for row in rows]
  findings = analyse(subjects, rows, key)
  published = [results_lib.anonymous_csv(findings, np.random.default_rng(seed)) for seed in (0, 1)]
  assert published[0] != published[1]
  assert all(line.split(",")[2].startswith("'=") for line in published[0].splitlines()[1:])


# --- who is left out ------------------------------------------------------------------------------


def test_each_rule_leaves_out_who_breaks_it():
  key, kinds = make_key()
  subjects, rows = people(key, kinds, 8)
  wrong = {item: "BA"["AB".index(answer)] for item, answer in key.answers.items()}
  changed = []
  for row in rows:
    if row.subject == 1 and row.kind == "check":
      row = row._replace(answer=wrong[row.item])
    if row.subject == 2 and row.kind == "item" and row.place > 9:
      continue
    if row.subject == 3:
      row = row._replace(seconds=0.4)
    if row.subject == 4 and row.kind == "item":
      row = row._replace(answer="A")
    if row.subject == 5 and row.kind == "check" and row.item == "c0":
      row = row._replace(answer=wrong[row.item])
    changed.append(row)
  subjects.append(SubjectRow(99, CONSENTED, None, "within"))
  findings = analyse(subjects, changed, key)
  assert findings.broken == {1: (0,), 2: (1,), 3: (2,), 4: (3,), 99: (1,)}
  assert set(findings.kept.subject) == {5, 6, 7, 8}
  assert len(findings.answers.correct) == 8 * 20 - 11
  found = results_lib.summarise(findings.answers, findings.rules)
  table = results_lib.make_tables(findings, found, found)["exclusion"]
  assert [row[1] for row in table.rows] == [1, 2, 1, 1, 5, 9, 0, 0]


def test_all_left_out_still_gives_tables(tmp_path):
  key, kinds = make_key()
  findings = analyse(*people(key, kinds, 6), key, Rules(min_median_seconds=1e6))
  results_lib.write(tmp_path, findings)
  record = json.loads((tmp_path / "results.json").read_text())
  assert record["kept"]["accuracy"]["sane"]["value"] is None
  assert record["all"]["accuracy"]["sane"]["value"] > 0.4


# --- bad input ------------------------------------------------------------------------------------


def test_the_first_of_two_answers_counts():
  key, kinds = make_key()
  subjects, rows = people(key, kinds, 6)
  again = rows[0]._replace(place=50, answer="BA"["AB".index(rows[0].answer)])
  first, second = (analyse(subjects, r, key) for r in (rows, [again, *rows]))
  assert (first.repeated, second.repeated) == (0, 1)
  np.testing.assert_array_equal(first.answers.correct, second.answers.correct)


def test_answers_of_who_withdrew_are_counted_and_left_out():
  key, kinds = make_key()
  subjects, rows = people(key, kinds, 6)
  findings = analyse(subjects[1:], rows, key)
  assert (findings.orphans, len(findings.answers.correct)) == (22, 100)


@pytest.mark.parametrize("subjects", [0, 3])
def test_an_empty_study_says_what_to_do(subjects):
  key, kinds = make_key()
  who, _ = people(key, kinds, subjects)
  with pytest.raises(ValueError, match=f"{subjects} subjects, and none has answered"):
    analyse(who, [], key)


@pytest.mark.parametrize("kind", ["one subject", "one condition", "all right"])
def test_little_or_lopsided_answers_give_all_files(tmp_path, kind):
  key, kinds = make_key()
  subjects, rows = people(key, kinds, 1 if kind == "one subject" else 8)
  if kind == "one condition":
    rows = [row._replace(file=f"{row.item}-sane") for row in rows]
  if kind == "all right":
    rows = [
      row._replace(answer=key.answers[row.item]) if row.file.endswith("sane") else row
      for row in rows
    ]
  results_lib.write(tmp_path, analyse(subjects, rows, key))
  record = json.loads((tmp_path / "results.json").read_text())
  note, accuracy = record["all"]["mixed_model"]["note"], record["all"]["accuracy"]["sane"]
  if kind == "all right":
    assert "all answers are alike under sane" in note
    assert accuracy["low"] < accuracy["value"] == accuracy["high"] == 1
  else:
    assert "too few" in note
  if kind == "one subject":
    assert accuracy["low"] is None


def test_a_key_of_another_export_is_refused():
  key, kinds = make_key()
  subjects, rows = people(key, kinds, 3)
  other = Key({k: v for k, v in key.answers.items() if k != "i3"}, key.conditions)
  with pytest.raises(ValueError, match=r"the key is of another export: it does not have i3,"):
    analyse(subjects, rows, other)
  other = Key(key.answers, {k: v for k, v in key.conditions.items() if k[0] != "i4"})
  with pytest.raises(ValueError, match="does not have i4/i4-"):
    analyse(subjects, rows, other)


def test_the_job_names_what_is_missing(study, tmp_path):
  with pytest.raises(ValueError, match=r"answers.sqlite is missing; .*--config.job=study"):
    study_results.run(make_config(tmp_path))
  with pytest.raises(ValueError, match=r"exclusion.min_share"):
    study_results.run(make_config(study, min_share=2.0))
  folder = tmp_path / "study"
  folder.mkdir()
  (folder / "answers.sqlite").write_bytes((study / "study/answers.sqlite").read_bytes())
  with pytest.raises(ValueError, match=r"answers.csv is missing; the key lies with"):
    study_results.run(make_config(tmp_path))
  study_export.export(folder / "export", items=20, practice=2, checks=2, key=4)
  with pytest.raises(ValueError, match=r"of another export: .* is not what the server showed"):
    study_results.run(make_config(tmp_path))


@pytest.mark.parametrize("text", ["", "item,answer\n", "item\nx\n", "item,answer\nx,C\n", "\xff"])
def test_a_damaged_key_is_named(tmp_path, text):
  (tmp_path / "answers.csv").write_bytes(text.encode("latin-1"))
  (tmp_path / "conditions.csv").write_text("item,file,condition\nx,f,sane\n")
  with pytest.raises(ValueError, match=re.escape(str(pathlib.Path(tmp_path, "answers.csv")))):
    results_lib.read_key(tmp_path)


def test_the_plan_is_told(capsys):
  plan_study.run(make_config("nowhere"))
  said = capsys.readouterr().out
  assert re.search(r"ask \d+ subjects, 40 items each, 5 conditions, each sees all", said)
  assert "with power 0.8" in said
