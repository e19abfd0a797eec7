"""Do the intervals of a study hold what they say? python benchmarks/study_calibration.py [STUDIES]

Simulated studies whose truth is known, for sizes and designs; Markdown on the standard output. Some
40 minutes for 2,000 studies a row on one core.
"""

import sys

import numpy as np

from sane_jax.study import statistics

GAINS = (0.0, 0.0, 0.05, 0.1, 0.15)


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
      r = statistics.calibrate(subjects, plan, subjects, GAINS, studies=studies)
      first, *others = (100 * x for x in r["found"])
      name = "within" if within else "between"
      print(
        f"| {name} | {subjects} | {items} | {100 * r['accuracy']:.1f} | {100 * r['difference']:.1f}"
        f" | {first:.1f} | {', '.join(f'{x:.0f}' for x in others)} |",
        flush=True,
      )
  few = max(studies // 5, 50)
  plan = statistics.Plan()
  r = statistics.calibrate(7, plan, 40, GAINS, studies=few, fit_mixed=True)
  print(f"\nMixed model, within, 40 subjects, {few} studies: found where there is nothing"
        f" {100 * r['mixed'][0]:.1f} %; of 5, 10, 15 points"
        f" {', '.join(f'{100 * x:.0f}' for x in r['mixed'][1:])} %.")  # fmt: skip
  rng = np.random.default_rng(3)
  held = [pigeonhole(statistics.simulate(rng, plan, 40, GAINS), 1) for _ in range(few)]
  print(f"Subjects and items drawn at once, the same studies: {100 * np.mean(held):.1f} % of the"
        " intervals hold no difference where there is none.\n")  # fmt: skip
  print("| design | gain, points | subjects by the calculator | power it says, % | simulated, % |")
  print("| --- | ---: | ---: | ---: | ---: |")
  for within in (True, False):
    for gain in (0.1, 0.05):
      plan = statistics.Plan(within=within, gain=gain)
      count = statistics.num_subjects(plan)
      power = statistics.calibrate(11, plan, count, (0, 0, 0, 0, gain), studies=few)["found"][-1]
      print(
        f"| {'within' if within else 'between'} | {100 * gain:g} | {count} |"
        f" {100 * statistics.predicted_power(plan, count):.0f} | {100 * power:.0f} |",
        flush=True,
      )


if __name__ == "__main__":
  main()
