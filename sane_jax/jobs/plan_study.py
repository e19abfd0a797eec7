"""Job: how many people a study has to ask to find a gain."""

from typing import Any

from sane_jax.runs import processes
from sane_jax.study import statistics
from sane_jax.study.statistics import Plan


def check(config: Any) -> None:
  """Raises ValueError for settings that can't be; reads no data and writes nothing."""
  statistics.check_plan(Plan(**config.study.plan))


def run(config: Any) -> None:
  """Prints the number of subjects, and the power of fewer and of more; reads and writes nothing."""
  plan = Plan(**config.study.plan)
  needed = statistics.num_subjects(plan)
  if not processes.is_first():
    return
  kind = "each sees all conditions" if plan.within else "each sees one condition"
  print(
    f"plan_study: ask {needed} subjects, {plan.num_items} items each, {plan.num_conditions}"
    f" conditions, {kind}:"
  )
  print(
    f"  {100 * plan.baseline:g} % right against {100 * (plan.baseline + plan.gain):g} % is found"
    f" with power {statistics.predicted_power(plan, needed):.2f} at level {plan.level:g}"
  )
  step = plan.num_conditions
  for share in (0.5, 0.75, 1.5, 2.0):
    other = max(step, round(share * needed / step) * step)
    print(f"  {other} subjects: {statistics.predicted_power(plan, other):.2f}")
  print(
    "That is one comparison. For all of a table after Holm's correction give"
    " --config.study.plan.level=0.05 divided by their number; for who will be left out ask more."
  )
