"""Do the intervals of a study hold what they say? python benchmarks/study_calibration.py [STUDIES]

Simulated studies whose truth is known, for sizes and designs; Markdown on the standard output. Some
40 minutes for 2,000 studies a row on one core.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from sane_jax.study import statistics

GAINS = (0.0, 0.0, 0.05, 0.1, 0.15)


def simulate(
  rng: np.random.Generator, plan: statistics.Plan, num_subjects: int, gains: Sequence[float],
  slopes: tuple[float, float] = (0.0, 0.0),
) -> statistics.Answers:  # fmt: skip
  """A balanced study in which each condition's gain over the baseline is known.

  Args:
    rng: source of all that is drawn: subjects, items, answers.
    plan: baseline, items, deviations, within or between; its conditions are as many as `gains`.
    gains: differences of shares, over all subjects and items there might be; the first is 0.
    slopes: deviations, in logits, of how each subject and each item takes to a condition.
  """
  kinds, items = len(gains), plan.num_items
  sds = (plan.subject_sd, plan.item_sd, *slopes)
  logits = np.array([statistics.logit_of(plan.baseline + g, *sds) for g in gains])
  subject, item = (x.ravel() for x in np.mgrid[:num_subjects, :items])
  turn = rng.permutation(items) if plan.within else np.zeros(items, int)
  condition = (turn[item] + subject) % kinds
  u = plan.subject_sd * rng.normal(size=num_subjects)
  v = plan.item_sd * rng.normal(size=items)
  to_subject = slopes[0] * rng.normal(size=(num_subjects, kinds))[subject, condition]
  to_item = slopes[1] * rng.normal(size=(items, kinds))[item, condition]
  p = special.expit(logits[condition] + u[subject] + v[item] + to_subject + to_item)
  correct = (rng.uniform(size=len(p)) < p).astype(float)
  seconds = np.exp(
    1.5 + 0.5 * rng.normal(size=num_subjects)[subject] + 0.4 * rng.normal(size=len(p))
  )
  names = tuple(map(str, range(kinds)))
  return statistics.Answers(subject, item, condition, correct, seconds, names)


def calibrate(
  seed: int, plan: statistics.Plan, num_subjects: int, gains: Sequence[float], *, studies: int,
  slopes: tuple[float, float] = (0.0, 0.0), fit_mixed: bool = False,
) -> Mapping[str, Any]:  # fmt: skip
  """How often intervals hold what they should, and tests find something, in simulated studies.

  Returns:
    'accuracy', 'difference': share of intervals that hold the truth; 'found': share of differences
    with p ≤ 0.05, by condition; with `fit_mixed` 'mixed': the same of the mixed model.
  """
  rng = np.random.default_rng(seed)
  held = {"accuracy": [], "difference": []}
  found, mixed = np.zeros(len(gains)), np.zeros(len(gains))
  for _ in range(studies):
    answers = simulate(rng, plan, num_subjects, gains, slopes)
    for condition, gain in enumerate(gains):
      estimate = statistics.accuracy(answers, condition)
      held["accuracy"].append(estimate.low <= plan.baseline + gain <= estimate.high)
      if condition:
        estimate = statistics.difference(answers.correct, answers, condition, 0)
        held["difference"].append(estimate.low <= gain <= estimate.high)
        found[condition] += estimate.p <= 0.05
    if fit_mixed:
      for index, effect in enumerate(statistics.mixed_model(answers).effects, 1):
        mixed[index] += effect.p <= 0.05
  out: dict[str, Any] = {name: float(np.mean(values)) for name, values in held.items()}
  out["found"] = (found / studies)[1:].tolist()
  if fit_mixed:
    out["mixed"] = (mixed / studies)[1:].tolist()
  return out


def pigeonhole(answers: statistics.Answers, condition: int, samples: int = 400) -> bool:
  """Whether the percentile interval of subjects and items drawn at once holds a gain of 0."""
  rng = np.random.default_rng(0)
  subjects, items = int(answers.subject.max()) + 1, int(answers.item.max()) + 1
  draw = rng.multinomial
  weights = (
    draw(subjects, np.full(subjects, 1 / subjects), samples)[:, answers.subject]
    * draw(items, np.full(items, 1 / items), samples)[:, answers.item]
  )
  means = []
  for c in (condition, 0):
    w = weights * (answers.condition == c)
    means.append((w @ answers.correct) / np.maximum(w.sum(axis=1), 1))
  low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
  return bool(low <= 0 <= high)


def main() -> None:
  studies = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
  print("| design | subjects | items | accuracies held, % | differences held, % | found where there"
        " is nothing, % | found of 5, 10, 15 points, % |")  # fmt: skip
  print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
  for within in (True, False):
    for subjects, items in ((20, 40), (40, 40), (60, 40), (100, 20)):
      plan = statistics.Plan(within=within, num_items=items)
      r = calibrate(subjects, plan, subjects, GAINS, studies=studies)
      first, *others = (100 * x for x in r["found"])
      name = "within" if within else "between"
      print(
        f"| {name} | {subjects} | {items} | {100 * r['accuracy']:.1f} | {100 * r['difference']:.1f}"
        f" | {first:.1f} | {', '.join(f'{x:.0f}' for x in others)} |",
        flush=True,
      )
  few = max(studies // 5, 50)
  plan = statistics.Plan()
  r = calibrate(7, plan, 40, GAINS, studies=few, fit_mixed=True)
  print(f"\nMixed model, within, 40 subjects, {few} studies: found where there is nothing"
        f" {100 * r['mixed'][0]:.1f} %; of 5, 10, 15 points"
        f" {', '.join(f'{100 * x:.0f}' for x in r['mixed'][1:])} %.")  # fmt: skip
  rng = np.random.default_rng(3)
  held = [pigeonhole(simulate(rng, plan, 40, GAINS), 1) for _ in range(few)]
  print(f"Subjects and items drawn at once, the same studies: {100 * np.mean(held):.1f} % of the"
        " intervals hold no difference where there is none.\n")  # fmt: skip
  print("| design | gain, points | subjects by the calculator | power it says, % | simulated, % |")
  print("| --- | ---: | ---: | ---: | ---: |")
  for within in (True, False):
    for gain in (0.1, 0.05):
      plan = statistics.Plan(within=within, gain=gain)
      count = statistics.num_subjects(plan)
      power = calibrate(11, plan, count, (0, 0, 0, 0, gain), studies=few)["found"][-1]
      print(
        f"| {'within' if within else 'between'} | {100 * gain:g} | {count} |"
        f" {100 * statistics.predicted_power(plan, count):.0f} | {100 * power:.0f} |",
        flush=True,
      )


if __name__ == "__main__":
  main()
