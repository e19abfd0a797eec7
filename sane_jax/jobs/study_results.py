"""Job: what the people of a study answered, in tables and figures."""

import math
from typing import Any

import numpy as np

from sane_jax.runs import files, processes
from sane_jax.study import results as results_lib
from sane_jax.study import statistics
from sane_jax.study.proxy import CONDITIONS
from sane_jax.study.server import store
from sane_jax.study.statistics import Rules


def check(config: Any) -> None:
  """Raises ValueError for settings that can't be; reads no data and writes nothing."""
  statistics.check_rules(Rules(**config.study.exclusion))


def run(config: Any) -> None:
  """Evaluates WORKDIR/study/answers.sqlite with the key of WORKDIR/study/export.

  Writes WORKDIR/study/results anew each time: tables.md, a CSV and a LaTeX file a table,
  results.json, figure.png and figure.pdf, index.html, and answers.csv without personal data.
  """
  settings = config.study
  rules = Rules(**settings.exclusion)
  check(config)
  folder = files.at(config.workdir) / settings.folder
  database = folder / "answers.sqlite"
  subjects, rows = store.read_study(database)
  key = results_lib.read_key(folder / "export" / "key")
  results_lib.check_fingerprint(folder / "export" / "key", store.read_fact(database, "fingerprint"))
  count = store.read_fact(database, "items_per_subject")
  asked = int(count) if count else len({row.item for row in rows if row.kind == "item"})
  findings = results_lib.analyse(subjects, rows, key, rules, max(asked, 1))
  if not processes.is_first():
    return
  results_lib.write(folder / "results", findings)
  kept = findings.kept
  print(
    f"study_results: {len(kept.correct)} answers of {len(np.unique(kept.subject))} subjects;"
    f" {len(findings.broken)} of {findings.num_subjects} subjects left out."
  )
  for index, name in enumerate(results_lib.NAMES):
    value, _, low, high, _ = (100 * x for x in statistics.accuracy(kept, index))
    if math.isfinite(value):
      print(f"  {CONDITIONS[name].title}: {value:.1f} % right [{low:.1f}, {high:.1f}]")
  print(f"Open {folder / 'results' / 'index.html'}")
