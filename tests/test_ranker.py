"""One pair's attributes and its sentence, on maps whose answer is known."""

import numpy as np
import pytest

from sane_jax.attributes import trained
from sane_jax.maps import reasons
from sane_jax.ops import ranking

NAMES = ("striped", "collared", "red")


def predict(image):
  """Stripes at the top, a collar at the lower right, red all over; the collar is surest."""
  maps = np.zeros((4, 4, 3), np.float32)
  maps[0, :, 0], maps[2:, 2:, 1], maps[..., 2] = 0.25, 0.25, 1 / 16
  return np.array([0.3, 0.5, 0.2], np.float32), maps


def rank(saliency, phi=(0.0, 1.0, 0.0, 0.0), embeddings=None, vectors=None, thresholds=None):
  vectors = np.zeros((3, 5)) if vectors is None else vectors
  made = reasons.make_ranker(
    NAMES, predict, (np.full(3, 0.5), vectors), phi, ranking.RAW, thresholds
  )
  return made(np.zeros((8, 8, 3), np.float32), saliency, embeddings)


TOP = np.zeros((4, 4))
TOP[0] = 1.0


def test_the_map_decides_by_its_fit():
  found = rank(TOP)
  assert [a.name for a in found.ranked] == ["striped", "red", "collared"]
  assert found.ranked[0].terms["map fit"] == pytest.approx(1)
  assert found.ranked[1].terms["map fit"] == pytest.approx(0.5)
  assert found.margin == pytest.approx(0.5)
  assert found.ranked[0].map.shape == (8, 8)
  for a in found.ranked:
    assert sum(a.shares.values()) == pytest.approx(a.total)


def test_confidence_alone_names_another():
  assert rank(TOP, (1.0, 0.0, 0.0, 0.0)).ranked[0].name == "collared"


def test_sensitivity_is_the_derivative_of_the_score():
  rng = np.random.default_rng(0)
  q, r = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 5)))
  vectors = rng.normal(size=(3, 5))
  found = rank(TOP, (0.0, 0.0, 0.0, 1.0), (q, r), vectors)

  def score(x):
    return x @ r / np.linalg.norm(x)

  for a in found.ranked:
    v = vectors[NAMES.index(a.name)]
    slope = (score(q + 1e-5 * v) - score(q - 1e-5 * v)) / 2e-5
    assert a.terms["sensitivity"] == pytest.approx(slope, abs=1e-6)


def test_terms_are_of_the_map_s_positive_part_and_without_embeddings_insensitive():
  confidence, maps = predict(None)
  signed = TOP.copy()
  signed[2:, 2:] = -1.0
  terms = reasons.terms_of(confidence, maps, signed, np.full(3, 0.5), np.ones((3, 5)), None)
  np.testing.assert_array_equal(terms.confidence, confidence)
  np.testing.assert_allclose(terms.map_fit, [1, 0, 0.5], atol=1e-6)
  np.testing.assert_array_equal(terms.prior, 0.5)
  np.testing.assert_array_equal(terms.sensitivity, 0)


def test_shares_are_the_weighed_terms_and_ties_keep_their_order():
  terms = ranking.Terms(*np.array([[0.1, 0.3, 0.3], [0.2, 0.0, 0.0], [0, 0, 0], [0, 0, 0.0]]))
  order, shares = reasons.rank(terms, (0.5, 0.5, 0, 0), ranking.RAW)
  assert order.tolist() == [0, 1, 2]
  np.testing.assert_allclose(shares, 0.5 * np.stack(terms) * [[1], [1], [0], [0]])
  totals = ranking.totals(ranking.Terms(*(t[None] for t in terms)), (0.5, 0.5, 0, 0))
  np.testing.assert_allclose(shares.sum(axis=0), totals[0])


def test_the_first_may_explain_whatever_it_has_and_others_must_be_had():
  _, maps = predict(None)
  both = maps[..., 0] + maps[..., 1]
  assert reasons.joint(both, maps, None).chosen == (0, 1)
  assert reasons.joint(both, maps, np.array([False, True, True])).chosen == (0, 1)
  assert 1 not in reasons.joint(both, maps, np.array([True, False, True])).chosen


def test_the_opponent_is_likely_and_fits_what_speaks_against():
  _, maps = predict(None)
  signed = TOP.copy()
  signed[2:, 2:] = -0.5
  order = np.arange(3)
  found, share = reasons.opponent(signed, maps, np.array([0.3, 0.5, 0.2]), order)
  assert (found, share) == (1, pytest.approx(1 / 3))
  assert reasons.opponent(TOP, maps, np.zeros(3), order) == (None, 0.0)
  # Many attributes: only those that the query most likely has.
  many = np.concatenate([maps] * 4, axis=-1)
  confidence = np.array([0.9, 0.0, 0.9] * 4)
  found, _ = reasons.opponent(signed, many, confidence, np.arange(12))
  assert found % 3 != 1


def test_what_the_query_lacks_does_not_explain_it_jointly():
  corner = TOP.copy()
  corner[3, 3] = 1.0
  assert {rank(corner).ranked[i].name for i in rank(corner).joint.chosen} == {"striped", "collared"}
  found = rank(corner, thresholds=np.array([0.1, 0.6, 0.9]))
  assert [found.ranked[i].name for i in found.joint.chosen] == ["striped"]
  # The first ranked is what the sentence is about, whatever its confidence.
  found = rank(corner, thresholds=np.ones(3))
  assert [found.ranked[i].name for i in found.joint.chosen] == ["striped"]


def test_the_sentence_says_what_was_measured():
  text = rank(TOP).sentence
  assert text == (
    "These match mainly on “striped” (100 % of what speaks for the match, at the top; of an even"
    " map 25 %)."
  )
  two = TOP.copy()
  two[2:, 2:] = 0.5
  found = rank(two)
  # Of 4 and 2: the squared cosine would be 80 and 20 %.
  np.testing.assert_allclose(found.under, [[2 / 3, 0.25], [1 / 3, 0.25]])
  np.testing.assert_allclose(found.joint.shares, [0.8, 0.2])
  assert "“striped” (67 % of what speaks for the match, at the top; of an" in found.sentence
  assert "then “collared” (33 % more, at the lower right; of an even map 25 %)" in found.sentence


def test_an_attribute_whose_map_is_elsewhere_is_not_talked_up():
  text = rank(TOP, (1.0, 0.0, 0.0, 0.0)).sentence
  assert text.startswith("“collared” is ranked first, though the map lies on it hardly")
  assert "more than an even one would (0 % of" in text
  assert "more of it lies on “striped” (100 % more, at the top" in text


def test_what_an_even_map_has_as_well_explains_nothing():
  """A map that is noise has as much on an attribute as the attribute is large."""
  rng = np.random.default_rng(0)
  noise = rng.random((4, 4))
  found = rank(noise, (1.0, 0.0, 0.0, 0.0))
  assert "match mainly" not in found.sentence
  red = reasons.sentence(
    ["red"], np.ones((4, 4, 1)), noise, (0,), np.array([[1.0, 1.0]]), None, 0.0
  )
  assert red.startswith("“red” is ranked first, though the map lies on it hardly more than")
  share, even = ranking.mass_under(noise, np.ones((4, 4, 1)))
  assert share == pytest.approx(1)
  assert even == pytest.approx(1)


def test_what_lies_on_no_attribute_is_said():
  saliency = TOP.copy()
  saliency[3, 0] = 1.0
  assert "the other 20 % lie on none of these" in rank(saliency, thresholds=np.ones(3)).sentence


def test_what_speaks_against_is_said():
  saliency = TOP.copy()
  saliency[2:, 2:] = -1.0
  found = rank(saliency)
  assert found.against == "collared"
  assert found.against_share == pytest.approx(0.5)
  assert "50 % of the map speaks against the match, most like “collared”" in found.sentence
  assert "against" not in rank(TOP).sentence


def test_a_flat_map_is_not_talked_up():
  assert "no region raises the score" in rank(np.zeros((4, 4))).sentence


@pytest.mark.parametrize(
  ("where", "words"),
  [
    ((slice(0, 1), slice(0, 1)), "at the upper left"),
    ((slice(3, 4), slice(None)), "at the bottom"),
    ((slice(None), slice(0, 1)), "on the left"),
    ((slice(1, 3), slice(1, 3)), "in the middle"),
    ((slice(None), slice(None)), "all over"),
  ],
)
def test_places(where, words):
  weights = np.zeros((4, 4))
  weights[where] = 1
  assert reasons.place(weights) == words


def test_a_ranking_survives_its_file(tmp_path):
  quantiles = np.random.default_rng(0).random((4, 9))
  tuned = trained.Ranking(
    {"all terms": (0.4, 0.3, 0.2, 0.1)}, ranking.Calibration(quantiles),
    np.array([0.1, np.inf]), ("ø", "b"),
  )  # fmt: skip
  trained.write_ranking(tmp_path, tuned)
  again = trained.read_ranking(tmp_path)
  assert again.phi == tuned.phi
  assert again.names == tuned.names
  np.testing.assert_array_equal(again.calibration.quantiles, tuned.calibration.quantiles)
  np.testing.assert_array_equal(again.thresholds, tuned.thresholds)
  with pytest.raises(ValueError, match="tune_ranking first"):
    trained.read_ranking(tmp_path / "none")
  with pytest.raises(ValueError, match="tuned for 2 attributes"):
    trained.check_names(tuned, ("a",))
