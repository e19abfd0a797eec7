"""What evaluate measures again: once a model is loaded, it is neither read nor traced anew."""

import functools
import pathlib
import sys

import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tiny_data

from sane_jax.attributes import concepts, pairs
from sane_jax.jobs import evaluate
from sane_jax.maps.explainer import Explainer
from sane_jax.models.model import Model
from sane_jax.ops import ranking

SIDE, LAYERS = 32, ("dense", "stem")


@pytest.fixture(scope="module")
def measured():
  """An evaluation of six pairs of three couples of types."""
  test = tiny_data.collection("test")
  rows = [np.flatnonzero(test.types == kind)[:3] for kind in range(3)]
  queries = np.concatenate([rows[0][:2], rows[1][:2], rows[0][1:3]])
  references = np.concatenate([rows[1][:2], rows[2][:2], rows[1][1:3]])
  queries, references = queries[[0, 2, 1, 4, 3, 5]], references[[0, 2, 1, 4, 3, 5]]
  z, p, n = np.zeros, len(queries), len(test.ids)
  terms = pairs.PairTerms(
    queries, references, z(p, int), np.ones(p), z(p, int), z(p), z((p, 8, 8)),
    ranking.Terms(*z((4, p, 8))), z((1, 2, 2, 8)), z((n, 8)), z((n, 1, 4)), z(n, int),
    concepts.Concepts(z((1, 8)), z((1, 8, 4))),
  )  # fmt: skip
  return evaluate.Evaluation(test, terms, None, z((n, 8), bool), {})  # pyright: ignore


class Counted:
  """A model with variables and a space, and how often its function is traced."""

  def __init__(self):
    rng = np.random.default_rng(0)
    kernels = {
      "stem": {"kernel": rng.normal(size=(3, 6)).astype(np.float32)},
      "dense": {"kernel": rng.normal(size=(6 * 16, 4)).astype(np.float32)},
    }
    self.variables, self.traced = {"params": kernels}, 0

  def embed(self, params, images):
    self.traced += 1
    variables, space = params
    small = images.reshape(len(images), 4, SIDE // 4, 4, SIDE // 4, 3).mean((2, 4))
    seen = jnp.tanh(small @ variables["params"]["stem"]["kernel"])
    return seen.reshape(len(images), -1) @ variables["params"]["dense"]["kernel"] + 0.1 * space

  def of(self, query, reference):
    space = np.float32(query + 3 * reference)
    return Model("counted", (SIDE, SIDE), self.embed, (self.variables, space))


def test_destroyed_layers_are_measured_without_another_trace(measured):
  model, made = Counted(), []

  def make(model):
    made.append(model.params)
    return Explainer(model, design="hadamard", num_masks=128, fill="grey", key=0)

  where = np.arange(6)
  variables = evaluate.destroyed_variables(measured, where, model.of, LAYERS)
  assert list(variables) == ["", *LAYERS]
  measure = functools.partial(evaluate.measure_maps, measured, where, model.of, make)
  first = measure(variables[""])
  traced = model.traced
  assert traced > 0
  found = [measure(variables[layer]) for layer in LAYERS]
  assert model.traced == traced
  assert len(made) == 2 * (1 + len(LAYERS))  # one a couple of types
  assert first["maps"].shape == (6, 8, 8)
  assert all(np.abs(other["maps"] - first["maps"]).max() > 1e-3 for other in found)


def test_maps_are_those_of_each_pair_alone(measured):
  model = Counted()
  make = functools.partial(Explainer, design="hadamard", num_masks=128, fill="grey", key=0)
  found = evaluate.measure_maps(measured, np.arange(6), model.of, make, model.variables)
  for pair in range(6):
    alone = evaluate.measure_maps(measured, np.array([pair]), model.of, make, model.variables)
    for name, values in alone.items():
      np.testing.assert_allclose(found[name][pair], values[0], atol=1e-6)


def test_no_pair_destroys_nothing(measured):
  assert evaluate.destroyed_variables(measured, np.zeros(0, int), Counted().of, ("head",)) == {}
  with pytest.raises(ValueError, match="no layer 'head'"):
    evaluate.destroyed_variables(measured, np.arange(6), Counted().of, ("head",))


def test_random_maps_are_of_one_mode():
  case = evaluate.Case("hadamard:num_masks=128", "both")
  assert case.file == "hadamard_num_masks_128_both.npz"
  assert not case.is_random
  assert evaluate.Case("random:grid=[4,4]", "fixed").is_random


def test_ceilings_are_what_a_ranking_could_name_at_best(measured):
  """The true reason is worth more than what confidence names, the best of all more than either."""
  rng = np.random.default_rng(0)
  n, p = len(measured.test.ids), len(measured.terms.queries)
  present = rng.random((n, 8)) < 0.5
  present[measured.terms.queries] = True
  embeddings = np.zeros((n, 1, 4), np.float32)
  embeddings[:, 0, 0] = 0.1 + 0.8 * present[:, 0]  # the first attribute is all that scores
  embeddings[measured.terms.references, 0] = [1, 0, 0, 0]
  terms = measured.terms._replace(embeddings=embeddings, scores=np.full(p, 0.9), labels=np.ones(p))
  named = {"confidence": np.full(p, 7), "all terms": np.full(p, 2)}
  e = measured._replace(terms=terms, present=present, named=named)
  table = evaluate.ceilings_table(e, np.arange(p), [{0}] * p, 3)
  worth = {row[0]: (row[1].value + row[2].value) / 2 for row in table.rows}
  assert list(worth) == [
    "confidence", "all terms", "the true reason", "the best of those that the query has"
  ]  # fmt: skip
  assert worth["the best of those that the query has"] == max(worth.values())
  assert worth["the true reason"] > worth["confidence"] + 20
  halved = evaluate.ceilings_table(e, np.arange(p), [{0, 7}] * p, 3).rows[2]  # their mean
  assert (halved[1].value + halved[2].value) / 2 < worth["the true reason"]
