"""What a user study shows: accuracies, differences, times, a mixed model, and how many to ask.

Answers of one subject are alike, and answers to one item are; both were drawn from more than were
asked. So every interval here lets both vary. With ψ the influence of each answer on a statistic,

    V = S/(S−1) Σ_i (Σ_{n of subject i} ψ_n)² + I/(I−1) Σ_j (Σ_{n of item j} ψ_n)² − Σ_n ψ_n²

is what the bootstraps of subjects, of items and of single answers would give in infinitely many
draws, the third taken off because the first two count it twice (Cameron, Gelbach and Miller, JBES
2011). An interval is t times √V with V² / (V_S² / (S−1) + V_I² / (I−1)) degrees of freedom, V_S and
V_I the first two sums, as Satterthwaite's for a sum of variances, and at least the
1 / (1/(S−1) + 1/(I−1)) that this is where all three sums are one. A bootstrap that draws
subjects and items at once counts the answers' own noise three times (Owen, AOAS 2007), and in a
study most of the noise is that: its intervals come out far too wide. docs/study_statistics.md has
what was measured.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import linalg, optimize, sparse, special, stats

from sane_jax.ops.statistics import holm

CHANCE = 0.5  # two pairs, one of them is right
_EFFECT_SD = 2.0  # of the mixed model's prior on effects, in logits


class Answers(NamedTuple):
  """n answers to items; subjects and items by any numbers, conditions by index into `names`."""

  subject: np.ndarray  # [n]
  item: np.ndarray  # [n]
  condition: np.ndarray  # [n] int
  correct: np.ndarray  # [n] 0 or 1
  seconds: np.ndarray  # [n]
  names: tuple[str, ...]

  def take(self, which: np.ndarray) -> "Answers":
    """Those of a mask or of indices."""
    return Answers(
      self.subject[which], self.item[which], self.condition[which], self.correct[which],
      self.seconds[which], self.names,
    )  # fmt: skip


class Estimate(NamedTuple):
  """A figure with its standard error and 95 % interval; NaN where there is too little to tell."""

  value: float
  error: float
  low: float
  high: float
  p: float  # two-sided, of no difference (of chance, for an accuracy)


class Contrast(NamedTuple):
  """How much more often subjects are right under one condition than under another."""

  name: str
  than: str
  difference: Estimate  # of shares
  holm: float  # p, corrected for the number of comparisons


class Effect(NamedTuple):
  """A condition's effect in the mixed model."""

  name: str
  odds_ratio: float  # against the baseline
  low: float
  high: float
  p: float
  points: float  # the same as a difference of shares, for the average subject and item


class MixedModel(NamedTuple):
  """Logistic regression with crossed random effects.

  Attributes:
    effects: one a condition but the baseline.
    subject_sd, item_sd: of the random intercepts, in logits.
    note: why it can't be relied on; '' where it can.
  """

  baseline: str
  effects: tuple[Effect, ...]
  subject_sd: float
  item_sd: float
  note: str


class Rules(NamedTuple):
  """Who and what does not count; to be settled before anybody is asked.

  Attributes:
    max_failed_checks: a subject who fails more attention checks than this is left out.
    min_share: of the items; who answered fewer is left out.
    min_median_seconds: who is faster on the median item is left out.
    max_same_side: who says A, or B, on more than this share of the items is left out.
    seconds: range of times that count as times; answers outside it keep their answer.
  """

  max_failed_checks: int = 1
  min_share: float = 0.5
  min_median_seconds: float = 1.5
  max_same_side: float = 0.9
  seconds: tuple[float, float] = (0.3, 120.0)

  def words(self) -> tuple[str, ...]:
    """Each rule about subjects as a sentence's end: 'left out were subjects who ...'."""
    return (
      f"failed more than {self.max_failed_checks} attention checks",
      f"answered less than {100 * self.min_share:g} % of their items",
      f"took less than {self.min_median_seconds:g} s for their median item",
      f"gave the same side on more than {100 * self.max_same_side:g} % of their items",
    )


def check_rules(rules: Rules) -> None:
  """Raises ValueError, naming the field, where a rule is out of its range."""
  for name, fine, range_ in (
    ("max_failed_checks", rules.max_failed_checks >= 0, "0 or more"),
    ("min_share", 0 <= rules.min_share <= 1, "from 0 to 1"),
    ("min_median_seconds", rules.min_median_seconds >= 0, "0 or more"),
    ("max_same_side", 0.5 <= rules.max_same_side <= 1, "from 0.5 to 1"),
    ("seconds", len(rules.seconds) == 2 and 0 <= rules.seconds[0] < rules.seconds[1], "low, high"),
  ):
    if not fine:
      given = getattr(rules, name)
      raise ValueError(f"--config.study.exclusion.{name} is {range_}; given {given}")


# --- intervals ------------------------------------------------------------------------------------


def clustered_error(
  influence: np.ndarray, subject: np.ndarray, item: np.ndarray, means: tuple[int, int] = (1, 1)
) -> tuple[float, float]:
  """√V of the module's text, and its degrees of freedom; NaN and 0 for one subject or one item.

  A difference of variances may come out below nothing: then the larger of V_S and V_I stands.

  Args:
    influence: ψ [n], summing to 0 over what a mean is of.
    means: how many means were taken over separate subjects, and over separate items: 2 where no
      subject saw both of two conditions. S−1 is S−2 then, and one a mean is the least.
  """
  parts = []
  for groups in (subject, item):
    sums = np.bincount(np.unique(groups, return_inverse=True)[1], influence)
    parts.append((len(sums), (sums**2).sum()))
  (subjects, by_subject), (items, by_item) = parts
  free = subjects - means[0], items - means[1]
  if min(free) < 1:
    return math.nan, 0.0
  by_subject, by_item = by_subject * subjects / free[0], by_item * items / free[1]
  both = by_subject + by_item - (influence**2).sum()
  both = both if both > 0 else max(by_subject, by_item)
  least = 1 / (1 / free[0] + 1 / free[1])
  spread = by_subject**2 / free[0] + by_item**2 / free[1]
  return math.sqrt(both), max(both**2 / spread, least) if spread > 0 else least


def _influence(values: np.ndarray, which: np.ndarray) -> tuple[float, np.ndarray]:
  """The mean of some values, and how much each of all [n] moves it."""
  mean = float(values[which].mean()) if which.any() else math.nan
  return mean, np.where(which, values - mean, 0.0) / max(int(which.sum()), 1)


def accuracy(answers: Answers, condition: int) -> Estimate:
  """Share of right answers under a condition; the interval is Wilson's for V's worth of answers.

  Where all are right, or none is, nothing varies, and it is that of as many answers as subjects.
  """
  which = answers.condition == condition
  mean, influence = _influence(answers.correct, which)
  subjects = len(np.unique(answers.subject[which]))
  error, freedom = clustered_error(influence[which], answers.subject[which], answers.item[which])
  if not which.any() or not freedom:
    return Estimate(mean, math.nan, math.nan, math.nan, math.nan)
  count = mean * (1 - mean) / error**2 if error > 0 else subjects
  t = float(stats.t.ppf(0.975, freedom))
  middle = (mean + t**2 / (2 * count)) / (1 + t**2 / count)
  half = t / (1 + t**2 / count) * math.sqrt(mean * (1 - mean) / count + t**2 / (4 * count**2))
  # By the spread that there is if it is chance: as Wilson's interval does.
  score = (mean - CHANCE) / math.sqrt(CHANCE * (1 - CHANCE) / count)
  p = float(2 * stats.t.sf(abs(score), freedom))
  return Estimate(mean, error, max(middle - half, 0.0), min(middle + half, 1.0), p)


def difference(values: np.ndarray, answers: Answers, condition: int, than: int) -> Estimate:
  """Mean of values [n] under one condition less that under another."""
  first, second = answers.condition == condition, answers.condition == than
  (a, one), (b, two) = _influence(values, first), _influence(values, second)
  used = first | second
  # Between subjects each condition has its own, and each mean costs one of them.
  means = tuple(
    1 if np.intersect1d(groups[first], groups[second]).size else 2
    for groups in (answers.subject, answers.item)
  )
  error, freedom = clustered_error(
    (one - two)[used], answers.subject[used], answers.item[used], (means[0], means[1])
  )
  if not (first.any() and second.any() and freedom and error > 0):
    return Estimate(a - b, math.nan, math.nan, math.nan, math.nan)
  half = float(stats.t.ppf(0.975, freedom)) * error
  p = float(2 * stats.t.sf(abs(a - b) / error, freedom))
  return Estimate(a - b, error, a - b - half, a - b + half, p)


def contrasts(answers: Answers, pairs: Sequence[tuple[int, int]]) -> tuple[Contrast, ...]:
  """Differences of accuracy, with p also corrected for their number (Holm 1979)."""
  found = [difference(answers.correct, answers, a, b) for a, b in pairs]
  corrected = holm(np.array([estimate.p for estimate in found])).tolist()
  return tuple(
    Contrast(answers.names[a], answers.names[b], estimate, p)
    for (a, b), estimate, p in zip(pairs, found, corrected, strict=True)
  )


def time_ratio(answers: Answers, condition: int, than: int, rules: Rules) -> Estimate:
  """Geometric mean of the times under one condition by that under another; times in range count.

  The standard error is that of the ratio's logarithm.
  """
  kept = answers.take(_timed(answers, rules))
  of_logs = difference(np.log(np.maximum(kept.seconds, 1e-3)), kept, condition, than)
  value, low, high = (math.exp(x) for x in (of_logs.value, of_logs.low, of_logs.high))
  return Estimate(value, of_logs.error, low, high, of_logs.p)


def median_seconds(answers: Answers, condition: int, rules: Rules) -> float:
  """Of the times in range."""
  which = _timed(answers, rules) & (answers.condition == condition)
  return float(np.median(answers.seconds[which])) if which.any() else math.nan


def geometric_seconds(answers: Answers, condition: int, rules: Rules) -> Estimate:
  """Geometric mean of the times in range; the standard error is that of its logarithm."""
  kept = answers.take(_timed(answers, rules))
  which = kept.condition == condition
  mean, influence = _influence(np.log(np.maximum(kept.seconds, 1e-3)), which)
  error, freedom = clustered_error(influence[which], kept.subject[which], kept.item[which])
  half = float(stats.t.ppf(0.975, freedom)) * error if freedom else math.nan
  value, low, high = (math.exp(x) for x in (mean, mean - half, mean + half))
  return Estimate(value, error, low, high, math.nan)


def num_out_of_range(answers: Answers, rules: Rules) -> int:
  """How many times do not count."""
  return int((~_timed(answers, rules)).sum())


def _timed(answers: Answers, rules: Rules) -> np.ndarray:
  return (answers.seconds >= rules.seconds[0]) & (answers.seconds <= rules.seconds[1])


# --- the mixed model ------------------------------------------------------------------------------


def mixed_model(answers: Answers, baseline: int = 0) -> MixedModel:
  """Logistic regression on conditions, with an intercept each for subjects and items.

      logit P(right) = β_0 + β_condition + u_subject + v_item,  u ~ N(0, σ_u²), v ~ N(0, σ_v²)

  σ_u and σ_v maximise the likelihood with β, u and v integrated out by Laplace's approximation,
  under weak priors (N(0, 2²) on β, N(0, 1) on log σ) that keep all finite; β is the mode given
  them, and intervals are ±1.96 of its deviations there. statsmodels' fits were tried and are not
  used: its joint mode lets σ fall to 0, and its variational deviations are too small.
  """
  name = answers.names[baseline]
  present = [c for c in range(len(answers.names)) if (answers.condition == c).any()]
  others = [c for c in present if c != baseline]
  subjects, items = (np.unique(x, return_inverse=True) for x in (answers.subject, answers.item))
  counts = len(subjects[0]), len(items[0])
  if baseline not in present or not others or min(counts) < 3:
    note = (
      f"not fitted: {counts[0]} subjects, {counts[1]} items and {len(present)} conditions are too"
      " few"
    )
    return MixedModel(name, (), math.nan, math.nan, note)
  n, width = len(answers.correct), len(present)
  rows = np.arange(n)
  parts = [np.stack([np.ones(n), *(answers.condition == c for c in others)], axis=1)]
  parts += [
    sparse.csr_matrix((np.ones(n), (rows, which)), shape=(n, int(count)))
    for (_, which), count in zip((subjects, items), counts, strict=True)
  ]
  design = sparse.csr_matrix(sparse.hstack(parts))
  start = np.zeros(width + sum(counts))

  def fit(log_sds: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    nonlocal start
    precision = np.repeat([1 / _EFFECT_SD**2, *np.exp(-2 * log_sds)], [width, *counts])
    value, start, factor = laplace(design, answers.correct, precision, start)
    return value - 0.5 * float(log_sds @ log_sds), start, factor

  try:
    found = optimize.minimize(
      lambda x: -fit(x)[0], np.log([0.5, 0.5]), method="Nelder-Mead", bounds=[(-5, 3)] * 2,
      options={"xatol": 1e-2, "fatol": 1e-3, "maxiter": 300},
    )  # fmt: skip
    _, mode, factor = fit(found.x)
  except (np.linalg.LinAlgError, ArithmeticError) as error:
    return MixedModel(name, (), math.nan, math.nan, f"not fitted: it does not converge ({error})")
  notes = [] if found.success else ["its optimiser did not converge"]
  deviation = np.sqrt(
    np.diag(linalg.cho_solve((factor, True), np.eye(len(mode))[:, :width])[:width])
  )
  single = [
    answers.names[c]
    for c in present
    if len(np.unique(answers.correct[answers.condition == c])) == 1
  ]
  if single:
    notes.append(
      f"all answers are alike under {', '.join(single)}: the prior alone keeps it finite"
    )
  effects = []
  for index, condition in enumerate(others, 1):
    beta, sd = float(mode[index]), float(deviation[index])
    ratio, low, high = (math.exp(min(beta + s * 1.959964 * sd, 700)) for s in (0, -1, 1))
    points = float(special.expit(mode[0] + beta) - special.expit(mode[0]))
    p = float(2 * stats.norm.sf(abs(beta) / sd))
    effects.append(Effect(answers.names[condition], ratio, low, high, p, points))
  spread = np.exp(found.x)
  return MixedModel(name, tuple(effects), float(spread[0]), float(spread[1]), "; ".join(notes))


def laplace(
  design: sparse.csr_matrix, correct: np.ndarray, precision: np.ndarray, start: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
  """log ∫ Π P(right) N(θ; 0, 1/precision) dθ of a logistic regression, by Laplace's approximation.

  Args:
    design: [n k].
    correct: [n] 0 or 1.
    precision: [k] of the coefficients' normal priors.
    start: [k] where the search for the mode begins.

  Returns:
    The logarithm, the mode [k], and the lower Cholesky factor [k k] of the Hessian there.

  Raises:
    ArithmeticError: Newton's method does not get there.
  """

  def height(theta: np.ndarray) -> float:
    eta = design @ theta
    fit = correct @ eta - np.logaddexp(0, eta).sum()
    return float(fit - 0.5 * precision @ theta**2)

  theta, now = start, height(start)
  for _ in range(100):
    p = special.expit(design @ theta)
    weighted = design.multiply((p * (1 - p))[:, None]).tocsr()
    hessian = (design.T @ weighted).toarray() + np.diag(precision)
    factor = linalg.cholesky(hessian, lower=True)
    gradient = design.T @ (correct - p) - precision * theta
    step = linalg.cho_solve((factor, True), gradient)
    if gradient @ step < 1e-8:
      volume = 0.5 * np.log(precision).sum() - np.log(np.diag(factor)).sum()
      return now + float(volume), theta, factor
    scale = 1.0
    while (after := height(theta + scale * step)) < now and scale > 1e-6:
      scale /= 2
    theta, now = theta + scale * step, after
  raise ArithmeticError("Newton's method found no mode in 100 steps")


# --- exclusion ------------------------------------------------------------------------------------


class Subject(NamedTuple):
  """What the rules ask of a subject."""

  failed_checks: int
  share: float  # of the items, answered
  median_seconds: float
  same_side: float  # share of the more frequent side


def broken_rules(subject: Subject, rules: Rules) -> tuple[int, ...]:
  """Which of `Rules.words` leave a subject out."""
  broken = (
    subject.failed_checks > rules.max_failed_checks,
    subject.share < rules.min_share,
    subject.median_seconds < rules.min_median_seconds,
    subject.same_side > rules.max_same_side,
  )
  return tuple(index for index, is_broken in enumerate(broken) if is_broken)


# --- how many to ask ------------------------------------------------------------------------------


class Plan(NamedTuple):
  """A study that is to be.

  Attributes:
    baseline: share of right answers with nothing shown.
    gain: the smallest difference of shares that is not to be missed.
    num_items: that a subject answers.
    num_conditions: among which they are shared.
    within: each subject sees all conditions; else one.
    subject_sd, item_sd: of the intercepts, in logits.
    power: probability of finding the gain.
    level: of the two-sided test.
  """

  baseline: float = 0.6
  gain: float = 0.1
  num_items: int = 40
  num_conditions: int = 5
  within: bool = True
  subject_sd: float = 0.5
  item_sd: float = 0.8
  power: float = 0.8
  level: float = 0.05


def check_plan(plan: Plan) -> None:
  """Raises ValueError, naming the field, where a plan can't be."""
  least = plan.num_conditions if plan.within else 2
  for name, fine, range_ in (
    ("baseline", 0 < plan.baseline < 1, "above 0 and below 1"),
    ("gain", plan.gain != 0 and 0 < plan.baseline + plan.gain < 1, "such that baseline + gain lies"
     " between 0 and 1, and not 0"),
    ("num_conditions", plan.num_conditions >= 2, "2 or more"),
    ("num_items", plan.num_items >= least, f"{least} or more"),
    ("subject_sd", plan.subject_sd >= 0, "0 or more"),
    ("item_sd", plan.item_sd >= 0, "0 or more"),
    ("power", plan.level < plan.power < 1, "above the level and below 1"),
    ("level", 0 < plan.level < 0.5, "above 0 and below 0.5"),
  ):  # fmt: skip
    if not fine:
      raise ValueError(f"--config.study.plan.{name} is {range_}; given {getattr(plan, name)}")


@functools.cache
def _normal_nodes() -> tuple[np.ndarray, np.ndarray]:
  nodes, weights = np.polynomial.hermite_e.hermegauss(31)
  return nodes, weights / weights.sum()


def marginal(logit: float, *sds: float) -> float:
  """P(right) over normal intercepts of those deviations."""
  nodes, weights = _normal_nodes()
  return float(weights @ special.expit(logit + math.hypot(*sds, 0.0) * nodes))


@functools.cache
def logit_of(share: float, *sds: float) -> float:
  """The logit of whose `marginal` the share is."""
  root: Any = optimize.brentq(lambda x: marginal(x, *sds) - share, -40, 40)
  return float(root)


def predicted_power(plan: Plan, num_subjects: int) -> float:
  """Probability that `difference` finds the plan's gain at its level.

  In a balanced study the intercepts of items, and within subjects those of subjects, cancel from a
  difference of two conditions. With n answers a condition,

      Var = Σ_c E[p_c (1 − p_c)] / n,   and between subjects + Σ_c Var_u(E_v[p_c]) / (S / K),

  p_c over subjects u and items v; and t is non-central, its degrees of freedom those of V where
  V_S = V_I = V: 1 / (1/(S−1) + 1/(I−1)), S−2 between subjects.
  """
  nodes, weights = _normal_nodes()
  u, v = plan.subject_sd * nodes[:, None], plan.item_sd * nodes[None]
  shares = (plan.baseline, plan.baseline + plan.gain)
  variance = 0.0
  answers = num_subjects * plan.num_items / plan.num_conditions
  for share in shares:
    p = special.expit(logit_of(share, plan.subject_sd, plan.item_sd) + u + v)
    own = float(weights @ (p * (1 - p)) @ weights)
    variance += own / answers
    if not plan.within:
      of_subject = p @ weights
      spread = float(weights @ of_subject**2 - (weights @ of_subject) ** 2)
      variance += spread / (num_subjects / plan.num_conditions)
  asked = num_subjects if plan.within else 2 * num_subjects // plan.num_conditions
  if asked < (2 if plan.within else 4):
    return 0.0
  freedom = 1 / (1 / (asked - (1 if plan.within else 2)) + 1 / (plan.num_items - 1))
  far = abs(plan.gain) / math.sqrt(variance)
  limit = stats.t.ppf(1 - plan.level / 2, freedom)
  return float(stats.nct.sf(limit, freedom, far) + stats.nct.cdf(-limit, freedom, far))


def num_subjects(plan: Plan, most: int = 100_000) -> int:
  """The fewest subjects, a multiple of the number of conditions, that give the plan its power.

  Raises:
    ValueError: a plan that can't be, or that `most` do not do.
  """
  check_plan(plan)
  step = plan.num_conditions
  low, high = 0, step
  while predicted_power(plan, high) < plan.power:
    low, high = high, 2 * high
    if high > most:
      raise ValueError(
        f"even {high // 2:,} subjects with {plan.num_items} items do not find a gain of"
        f" {100 * plan.gain:g} points with power {plan.power:g}; raise"
        " --config.study.plan.num_items or .gain"
      )
  while high - low > step:
    middle = (low + high) // 2 // step * step
    low, high = (middle, high) if predicted_power(plan, middle) < plan.power else (low, middle)
  return high
