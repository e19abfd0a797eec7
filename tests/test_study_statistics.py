"""Intervals, tests and plans against closed forms, brute force and studies whose effects are known.

SANE_JAX_STUDY_CALIBRATION=1 simulates 1000 studies a row, for docs/study_statistics.md: minutes.
"""

import itertools
import math
import os

import numpy as np
import pytest
from scipy import sparse, stats

from benchmarks import study_calibration
from sane_jax.study import statistics
from sane_jax.study.statistics import Answers, Plan, Rules, Subject

LONG = os.environ.get("SANE_JAX_STUDY_CALIBRATION") == "1"
STUDIES = 1000 if LONG else 200
GAINS = (0.0, 0.0, 0.05, 0.1, 0.15)
# Subjects, within, deviations of subjects and items, and of how they take to a condition.
SETTINGS = [
  (20, True, (0.5, 0.8), (0.0, 0.0)),
  (40, True, (0.5, 0.8), (0.0, 0.0)),
  (60, True, (0.5, 0.8), (0.0, 0.0)),
  (40, True, (1.0, 1.2), (0.0, 0.0)),
  (40, True, (0.5, 0.8), (0.4, 0.4)),
  (40, False, (0.5, 0.8), (0.0, 0.0)),
  (60, False, (0.5, 0.8), (0.0, 0.0)),
]


def make_answers(subject, item, condition, correct, seconds=None, names=("nothing", "sane")):
  subject, item, condition = (np.asarray(x) for x in (subject, item, condition))
  seconds = np.full(len(subject), 4.0) if seconds is None else np.asarray(seconds, float)
  return Answers(subject, item, condition, np.asarray(correct, float), seconds, names)


def grid(subjects, items, seed=0):
  rng = np.random.default_rng(seed)
  s, i = (x.ravel() for x in np.mgrid[:subjects, :items])
  return make_answers(s, i, (s + i) % 2, rng.random(len(s)) < 0.6)


# --- the variance ---------------------------------------------------------------------------------


def test_two_way_variance_is_that_of_brute_force():
  """ΣΣ ψ_a ψ_b over all pairs of answers that share a subject, or an item, or are one."""
  answers = grid(5, 7).take(np.random.default_rng(1).permutation(35)[:29])
  psi = (answers.correct - answers.correct.mean()) / 29
  by_subject = by_item = both = 0.0
  for a, b in itertools.product(range(29), repeat=2):
    by_subject += psi[a] * psi[b] * (answers.subject[a] == answers.subject[b])
    by_item += psi[a] * psi[b] * (answers.item[a] == answers.item[b])
    both += psi[a] * psi[b] * (a == b)
  subjects, items = len(set(answers.subject)), len(set(answers.item))
  wanted = by_subject * subjects / (subjects - 1) + by_item * items / (items - 1) - both
  error, _ = statistics.clustered_error(psi, answers.subject, answers.item)
  assert error == pytest.approx(math.sqrt(wanted), rel=1e-12)


def test_the_subjects_part_is_the_bootstrap_of_subjects():
  """All S^S draws of 4 subjects, each as likely: their variance is V_S without its correction."""
  psi = np.array([0.3, -0.1, 0.2, -0.4])
  draws = [psi[list(draw)].sum() for draw in itertools.product(range(4), repeat=4)]
  # As many items as subjects, one each: V_S = V_I = Σψ² · 4/3, less Σψ² once.
  error, _ = statistics.clustered_error(psi, np.arange(4), np.arange(4))
  exact = float(np.var(draws))
  assert error**2 == pytest.approx(2 * exact * 4 / 3 - exact, rel=1e-12)


def test_a_mean_of_independent_answers_has_its_textbook_error():
  """Balanced and without effects of subjects or items the error is about √(p(1−p)/n)."""
  errors = []
  for seed in range(40):
    answers = grid(40, 40, seed)
    psi = (answers.correct - answers.correct.mean()) / 1600
    errors.append(statistics.clustered_error(psi, answers.subject, answers.item)[0] ** 2)
  assert math.sqrt(np.mean(errors)) == pytest.approx(math.sqrt(0.24 / 1600), rel=0.08)


def test_between_subjects_is_welch_of_subjects_means_where_items_do_not_vary():
  """With one answer a subject, each to an item of its own, the subject part alone is left."""
  rng = np.random.default_rng(3)
  correct = rng.random(24) < 0.6
  answers = make_answers(np.arange(24), np.arange(24), np.arange(24) % 2, correct)
  found = statistics.difference(answers.correct, answers, 1, 0)
  first, second = (answers.correct[answers.condition == c] for c in (0, 1))
  # V_S = V_I = v·24/22 with v = Σψ²: both less v once.
  v = sum(((x - x.mean()) ** 2).sum() / len(x) ** 2 for x in (first, second))
  assert found.error == pytest.approx(math.sqrt(2 * v * 24 / 22 - v), rel=1e-12)


def test_too_little_gives_no_interval():
  one = make_answers([1, 1, 1], [0, 1, 2], [0, 0, 1], [1, 0, 1])
  assert math.isnan(statistics.accuracy(one, 0).low)
  assert statistics.accuracy(one, 0).value == 0.5
  assert math.isnan(statistics.difference(one.correct, one, 1, 0).p)
  none = one.take(np.zeros(3, bool))
  assert math.isnan(statistics.accuracy(none, 0).value)


def test_all_right_has_wilsons_interval_of_as_many_as_subjects():
  s, i = (x.ravel() for x in np.mgrid[:10, :6])
  answers = make_answers(s, i, 0 * s, np.ones(60))
  found = statistics.accuracy(answers, 0)
  t = stats.t.ppf(0.975, 1 / (1 / 9 + 1 / 5))
  assert found.value == found.high == 1
  assert found.low == pytest.approx(10 / (10 + t**2))


def test_times_out_of_range_do_not_count():
  s, i = (x.ravel() for x in np.mgrid[:4, :4])
  seconds = np.where((s + i) % 2, 8.0, 2.0)
  seconds[0], seconds[5] = 1000.0, 0.01
  answers = make_answers(s, i, (s + i) % 2, s * 0 + 1, seconds)
  rules = Rules()
  assert statistics.num_out_of_range(answers, rules) == 2
  assert statistics.median_seconds(answers, 0, rules) == 2
  assert statistics.geometric_seconds(answers, 1, rules).value == pytest.approx(8)
  assert statistics.time_ratio(answers, 1, 0, rules).value == pytest.approx(4)


# --- rules ----------------------------------------------------------------------------------------


def test_each_rule_is_strict_at_its_limit():
  rules, fine = Rules(), Subject(1, 0.5, 1.5, 0.9)
  assert statistics.broken_rules(fine, rules) == ()
  for index, worse in enumerate(
    (
      fine._replace(failed_checks=2),
      fine._replace(share=0.49),
      fine._replace(median_seconds=1.4),
      fine._replace(same_side=0.91),
    )
  ):
    assert statistics.broken_rules(worse, rules) == (index,)
  assert len(rules.words()) == 4


@pytest.mark.parametrize(
  ("field", "value"),
  [("max_failed_checks", -1), ("min_share", 1.1), ("max_same_side", 0.4), ("seconds", (3, 2))],
)
def test_a_rule_out_of_range_is_named(field, value):
  with pytest.raises(ValueError, match=f"exclusion.{field}"):
    statistics.check_rules(Rules()._replace(**{field: value}))


# --- the mixed model ------------------------------------------------------------------------------


def test_laplace_is_the_integral_where_it_is_nearly_normal():
  """One coefficient of many answers: against quadrature on a fine grid."""
  rng = np.random.default_rng(0)
  correct = (rng.random(400) < 0.7).astype(float)
  value, mode, _ = statistics.laplace(
    sparse.csr_matrix(np.ones((400, 1))), correct, np.array([0.25]), np.zeros(1)
  )
  x = np.linspace(-3, 4, 20001)
  heights = correct.sum() * x - 400 * np.logaddexp(0, x) + stats.norm.logpdf(x, 0, 2)
  assert value == pytest.approx(
    float(np.log(np.exp(heights - heights.max()).sum())) + heights.max() + math.log(x[1] - x[0]),
    abs=2e-3,
  )
  assert mode[0] == pytest.approx(x[heights.argmax()], abs=1e-3)


def test_mixed_model_finds_planted_effects():
  """On a large study, where neither deviation may fall to nothing."""
  plan = Plan(subject_sd=0.6, item_sd=1.0, num_items=100)
  answers = study_calibration.simulate(np.random.default_rng(5), plan, 100, (0, 0, 0.1, 0.2))
  found = statistics.mixed_model(answers)
  assert found.note == ""
  assert found.subject_sd == pytest.approx(0.6, abs=0.12)
  assert found.item_sd == pytest.approx(1.0, abs=0.18)
  sds = (0.6, 1.0)
  for effect, gain in zip(found.effects, (0, 0.1, 0.2), strict=True):
    logit = statistics.logit_of(0.6 + gain, *sds) - statistics.logit_of(0.6, *sds)
    assert effect.low < math.exp(logit) < effect.high
  assert found.effects[2].p < 1e-6


def test_mixed_model_says_where_it_rests_on_the_prior():
  answers = grid(12, 12)
  right = np.where(answers.condition == 1, 1.0, answers.correct)
  found = statistics.mixed_model(answers._replace(correct=right))
  assert "all answers are alike under sane" in found.note
  assert math.isfinite(found.effects[0].odds_ratio)
  few = statistics.mixed_model(answers.take(answers.subject < 2))
  assert few.effects == ()
  assert "too few" in few.note


# --- calibration ----------------------------------------------------------------------------------


def binomial_slack(share, count):
  """Three deviations of a share of so many studies, beyond the 2 % that are allowed."""
  return 0.02 + (0 if LONG else 3 * math.sqrt(share * (1 - share) / count))


@pytest.mark.parametrize("setting", SETTINGS if LONG else SETTINGS[1:6:4], ids=str)
def test_intervals_hold_95_percent_and_no_effect_is_found_in_5(setting):
  subjects, within, sds, slopes = setting
  plan = Plan(within=within, subject_sd=sds[0], item_sd=sds[1])
  found = study_calibration.calibrate(7, plan, subjects, GAINS, studies=STUDIES, slopes=slopes)
  print(setting, found)
  slack = binomial_slack(0.05, STUDIES)
  assert abs(found["accuracy"] - 0.95) <= slack
  assert abs(found["difference"] - 0.95) <= slack
  assert abs(found["found"][0] - 0.05) <= slack


@pytest.mark.skipif(not LONG, reason="SANE_JAX_STUDY_CALIBRATION=1 runs it")
@pytest.mark.parametrize("setting", [(20, True), (40, True), (40, False)], ids=str)
def test_mixed_model_finds_no_effect_in_about_5_percent(setting):
  """Of 4 conditions in 300 studies."""
  subjects, within = setting
  plan = Plan(within=within)
  found = study_calibration.calibrate(3, plan, subjects, (0,) * 5, studies=300, fit_mixed=True)
  print(setting, found["mixed"])
  assert abs(np.mean(found["mixed"]) - 0.05) <= 0.02


def test_a_bootstrap_of_subjects_and_items_at_once_is_far_too_wide():
  """Why the variance has its third term: such intervals hold the truth nearly always."""
  plan, rng, held = Plan(), np.random.default_rng(7), []
  for _ in range(STUDIES // 4):
    answers = study_calibration.simulate(rng, plan, 40, GAINS)
    draws = []
    subjects, items = (rng.multinomial(40, np.full(40, 1 / 40), 200) for _ in range(2))
    for condition in (0, 1):
      which = answers.condition == condition
      shown, right = np.zeros((40, 40)), np.zeros((40, 40))
      shown[answers.subject[which], answers.item[which]] = 1
      right[answers.subject[which], answers.item[which]] = answers.correct[which]
      draws.append(((subjects @ right) * items).sum(1) / ((subjects @ shown) * items).sum(1))
    low, high = np.percentile(draws[1] - draws[0], [2.5, 97.5])
    held.append(low <= 0 <= high)
  assert np.mean(held) > 0.98


@pytest.mark.parametrize("within", [True, False])
def test_predicted_power_is_that_of_simulated_studies(within):
  plan = Plan(within=within)
  subjects = statistics.num_subjects(plan)
  found = study_calibration.calibrate(11, plan, subjects, (0, 0.1, 0, 0, 0), studies=STUDIES)
  predicted = statistics.predicted_power(plan, subjects)
  print(within, subjects, predicted, found["found"][0])
  assert predicted >= plan.power
  assert statistics.predicted_power(plan, subjects - plan.num_conditions) < plan.power
  slack = 0.03 + 3 * math.sqrt(0.16 / STUDIES)
  assert abs(found["found"][0] - predicted) <= slack


@pytest.mark.parametrize(
  ("field", "value"), [("baseline", 1.0), ("gain", 0.0), ("gain", 0.4), ("num_items", 4)]
)
def test_a_plan_that_can_not_be_is_named(field, value):
  with pytest.raises(ValueError, match=r"config.study.plan"):
    statistics.num_subjects(Plan()._replace(**{field: value}))


def test_a_gain_too_small_says_what_to_raise():
  with pytest.raises(ValueError, match="even 81,920 subjects"):
    statistics.num_subjects(Plan(gain=0.0005))
