"""Representative images, insertion and deletion, on a gallery whose scores are known."""

import numpy as np
import pytest

from sane_jax.attributes import concepts
from sane_jax.attributes import effects as lib
from sane_jax.attributes.pairs import PairTerms
from sane_jax.ops import ranking

# Attributes of 8 images; the score is a sum of what the attributes are worth.
PRESENT = np.array(
  [[1, 1, 0], [0, 1, 0], [1, 1, 0], [1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 1, 1], [1, 0, 0]], bool
)
WORTH = np.array([0.5, 0.2, 0.0])


def terms(types=None, confidence=None):
  """One pair: query 0, reference 7; the score of x with 7 is what x's attributes are worth."""
  n = len(PRESENT)
  embeddings = np.zeros((n, 1, 9), np.float32)
  embeddings[:, 0, 0] = PRESENT @ WORTH
  embeddings[7, 0] = 0
  embeddings[7, 0, 0] = 1  # what all others are scored against
  confidence = np.full((n, 3), 1 / 3) if confidence is None else confidence
  z = np.zeros
  return PairTerms(
    np.array([0]), np.array([7]), z(1, int), np.ones(1), z(1, int), np.array([0.7]), z((1, 2, 2)),
    ranking.Terms(*z((4, 1, 3))), z((1, 2, 2, 3)), confidence, embeddings, z(n, int),
    concepts.Concepts(z((1, 3)), z((1, 3, 9))),
  )  # fmt: skip


def test_representatives_are_alike_in_all_other_attributes():
  kinds = np.zeros(8, int)
  rows = lib.representatives(
    0, 0, has=False, present=PRESENT, confidence=np.ones((8, 3)), types=kinds, count=2
  )
  assert rows[0] == 1  # as image 0 without attribute 0
  assert set(rows) == {1, 6}
  rows = lib.representatives(
    0, 0, has=True, present=PRESENT, confidence=np.ones((8, 3)), types=kinds, count=1
  )
  assert rows.tolist() == [2]  # its twin, not itself


def test_ties_go_to_the_nearest_confidence_and_types_do_not_mix():
  confidence = np.random.default_rng(0).dirichlet(np.ones(3), 8)
  confidence[6] = confidence[4]
  present = PRESENT.copy()
  present[1] = present[6] = [0, 1, 0]
  confidence[6] = confidence[0]
  kinds = np.zeros(8, int)
  rows = lib.representatives(
    0, 0, has=False, present=present, confidence=confidence, types=kinds, count=1
  )
  assert rows.tolist() == [6]
  kinds[6] = 1
  rows = lib.representatives(
    0, 0, has=False, present=present, confidence=confidence, types=kinds, count=1
  )
  assert rows.tolist() == [1]


def test_effects_are_what_the_attributes_are_worth():
  deletion, insertion = lib.measure(
    np.zeros(3, int), np.arange(3), terms(), PRESENT, np.zeros(8, int), count=1
  )
  # Without 0: image 1 (0.2); with it: image 2 (0.7). Without 1: 3 or 7, which is the reference.
  assert deletion[0] == pytest.approx(0.7 - 0.2)
  assert insertion[0] == pytest.approx(0.7 - 0.2)
  assert deletion[2] == insertion[2] == 0  # the query has it not


def test_what_a_query_lacks_is_no_reason():
  present = PRESENT.copy()
  present[0, 0] = False  # though images with it score higher
  deletion, insertion = lib.measure(
    np.zeros(1, int), np.zeros(1, int), terms(), present, np.zeros(8, int), count=1
  )
  assert deletion[0] == insertion[0] == 0


def test_what_no_image_lacks_has_no_effect():
  present = PRESENT.copy()
  present[:, 0] = True
  deletion, insertion = lib.measure(
    np.zeros(1, int), np.zeros(1, int), terms(), present, np.zeros(8, int)
  )
  assert np.isnan(deletion[0])
  assert np.isnan(insertion[0])


def test_thresholds_are_medians_where_a_model_is_good():
  rng = np.random.default_rng(1)
  labels = rng.uniform(size=(400, 2)) < 0.2
  scores = labels + 0.1 * rng.uniform(size=labels.shape)
  thresholds = lib.presence_thresholds(scores, labels)
  medians = [np.median(scores[labels[:, a], a]) for a in range(2)]
  np.testing.assert_allclose(thresholds, medians)


def test_a_weak_model_calls_nothing_present():
  rng = np.random.default_rng(2)
  labels = rng.uniform(size=(2000, 3)) < 0.05
  labels[:, 2] = False
  scores = rng.uniform(size=labels.shape)
  present = lib.presence(labels, scores, lib.presence_thresholds(scores, labels))
  assert (present & ~labels).sum() < 0.005 * labels.size
  assert (present >= labels).all()
