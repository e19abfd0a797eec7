"""Figures of an embedding against brute force, scikit-learn and cases whose answer is known."""

import numpy as np
import pytest
import tiny_data
from sklearn import metrics

from sane_jax.datasets.collection import Compatibility, Question
from sane_jax.training import retrieval


@pytest.fixture
def data(rng):
  collection = tiny_data.collection("test", groups=30)
  embeddings = rng.normal(size=(len(collection.ids), 7)).astype(np.float32)
  masks = rng.uniform(0, 1, size=(6, 7)).astype(np.float32)
  return collection, embeddings, masks


def cosine(data, i, j):
  collection, embeddings, masks = data
  w = masks[collection.conditions[collection.types[i], collection.types[j]]]
  x, y = embeddings[i] * w, embeddings[j] * w
  return x @ y / np.linalg.norm(x) / np.linalg.norm(y)


def test_fill_in_the_blank_is_brute_force(data):
  collection, embeddings, masks = data
  assert len(collection.questions) > 20
  expected = []
  for question in collection.questions:
    scores = [np.mean([cosine(data, a, i) for i in question.items]) for a in question.answers]
    expected.append(float(np.argmax(scores) == question.right))
  found = retrieval.fill_in_the_blank(embeddings, masks, collection)
  np.testing.assert_array_equal(found, expected)
  assert 0 < found.mean() < 1


def test_a_model_that_says_nothing_scores_chance(data):
  collection, embeddings, masks = data
  same = np.ones_like(embeddings)
  assert retrieval.fill_in_the_blank(same, masks, collection).mean() == 0.25
  assert retrieval.compatibility_auc(same, masks, collection) == 0.5


def test_lengths_alone_do_not_tell_labels(rng):
  """Constant up to length: what rounding leaves of the cosines must not order them."""
  labels = np.repeat(np.arange(30), 10)
  same = rng.uniform(0.5, 2, (300, 1)).astype(np.float32) * rng.normal(size=64).astype(np.float32)
  assert retrieval.same_label_auc(same, labels) == 0.5


def test_embeddings_that_are_no_number_find_nothing(data):
  collection, embeddings, masks = data
  nothing = np.full_like(embeddings, np.nan)
  labels = np.arange(len(nothing)) // 5
  assert set(retrieval.recall_at_k(nothing, labels, (1, 5)).values()) == {0.0}
  assert np.isnan(retrieval.same_label_auc(nothing, labels))
  assert np.isnan(retrieval.compatibility_auc(nothing, masks, collection))


def test_a_model_that_knows_the_colour_scores_full(data):
  collection, _, masks = data
  knowing = np.eye(7, dtype=np.float32)[[a[0] for a in collection.attributes]]
  assert retrieval.fill_in_the_blank(knowing, masks + 0.1, collection).mean() == 1


def test_compatibility_is_brute_force_and_scikit_learns(data):
  collection, embeddings, masks = data
  expected = [
    np.mean([cosine(data, i, j) for k, i in enumerate(o.items) for j in o.items[k + 1 :]])
    for o in collection.compatibility
  ]
  np.testing.assert_allclose(
    retrieval.compatibility_scores(embeddings, masks, collection), expected, rtol=1e-4, atol=1e-5
  )
  labels = [o.label for o in collection.compatibility]
  assert retrieval.compatibility_auc(embeddings, masks, collection) == pytest.approx(
    metrics.roc_auc_score(labels, np.round(expected, 6))
  )


def test_empty_and_short_tests(data):
  collection, embeddings, masks = data
  none = collection._replace(questions=(), compatibility=())
  assert retrieval.fill_in_the_blank(embeddings, masks, none).size == 0
  assert np.isnan(retrieval.compatibility_auc(embeddings, masks, none))
  one = collection._replace(
    compatibility=(Compatibility(np.array([1]), 1), *collection.compatibility),
    questions=(Question(np.array([0]), np.array([1, 2]), 0),),
  )
  assert np.isnan(retrieval.compatibility_scores(embeddings, masks, one)[0])
  assert np.isfinite(retrieval.compatibility_auc(embeddings, masks, one))
  assert retrieval.fill_in_the_blank(embeddings, masks, one).shape == (1,)


def test_auc_with_ties(rng):
  scores, labels = rng.integers(0, 5, 200), rng.integers(0, 2, 200)
  assert retrieval.roc_auc(scores, labels) == pytest.approx(metrics.roc_auc_score(labels, scores))
  assert np.isnan(retrieval.roc_auc(scores, np.ones(200)))


def test_recall_and_same_label_auc(rng):
  labels = np.array([0, 0, 1, 1, 1, 2, *rng.integers(3, 9, 60)])
  embeddings = rng.normal(size=(66, 4)) + labels[:, None] * np.array([0.3, 0, 0, 0])
  unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
  scores = unit @ unit.T
  for k, found in retrieval.recall_at_k(embeddings, labels, (1, 3, 100)).items():
    hits = []
    for i in range(66):
      others = [j for j in np.argsort(-scores[i], kind="stable") if j != i][:k]
      if (labels == labels[i]).sum() > 1:
        hits.append(any(labels[j] == labels[i] for j in others))
    assert found == pytest.approx(np.mean(hits)), k
  i, j = np.triu_indices(66, 1)
  assert retrieval.same_label_auc(embeddings, labels) == pytest.approx(
    metrics.roc_auc_score(labels[i] == labels[j], np.round(scores[i, j], 6))
  )
