"""Embeddings in one space and in several, and the attribute model: closed forms and loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sane_jax.models import attribute, embedding, resnet, weights

TRUNK = resnet.ResNet((1, 1), width=8, stem="small")
TYPED = embedding.SimilarityModel(TRUNK, 6, num_conditions=4, text_size=10)
PLAIN = embedding.SimilarityModel(TRUNK, 6)


@pytest.fixture
def images(rng):
  return rng.uniform(size=(3, 16, 16, 3)).astype(np.float32)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_in_condition_by_hand():
  x = jnp.array([[3.0, 4.0, 12.0]])
  np.testing.assert_allclose(embedding.in_condition(x), [[3 / 13, 4 / 13, 12 / 13]], rtol=1e-6)
  masked = embedding.in_condition(x, jnp.array([[1.0, 0.75, -2.0]]))  # the third axis is off
  np.testing.assert_allclose(masked, [[0.5**0.5, 0.5**0.5, 0]], rtol=1e-6)


def test_in_condition_has_finite_gradients_at_zero():
  zero = jnp.zeros((1, 3))
  np.testing.assert_array_equal(embedding.in_condition(zero), zero)
  for masks in (None, jnp.ones((1, 3)), -jnp.ones((1, 3))):
    grad = jax.grad(lambda x, m=masks: embedding.in_condition(x, m).sum())(zero)
    assert np.isfinite(grad).all()


def test_all_conditions_are_those_one_by_one(images):
  variables = weights.init_variables(TYPED, 0)
  masks = variables["params"]["type_masks"]
  raw = np.asarray(TYPED.apply(variables, images))
  assert raw.shape == (3, 6)
  assert not np.allclose(np.linalg.norm(raw, axis=1), 1, atol=0.05)
  every = TYPED.apply(variables, images, np.array([2, 0, 3, 3]), method="all_conditions")
  assert every.shape == (3, 4, 6)
  for i in range(3):
    for j, c in enumerate([2, 0, 3, 3]):
      np.testing.assert_allclose(every[i, j], unit(raw[i] * np.maximum(masks[c], 0)), atol=1e-5)
  each = TYPED.apply(variables, images, np.array([2, 0, 3]), method="unit")
  np.testing.assert_allclose(each, np.stack([every[0, 0], every[1, 1], every[2, 2]]), atol=1e-6)
  one = TYPED.apply(variables, images, 3, method="unit")
  np.testing.assert_allclose(one, every[:, 2], atol=1e-6)
  general = TYPED.apply(variables, images, method="unit")
  np.testing.assert_allclose(general, unit(raw), atol=1e-5)


def test_one_space_has_no_masks(images):
  variables = weights.init_variables(PLAIN, 0)
  assert set(variables["params"]) == {"trunk", "dense"}
  raw = np.asarray(PLAIN.apply(variables, images))
  every = PLAIN.apply(variables, images, np.zeros(2, int), method="all_conditions")
  np.testing.assert_allclose(every, np.repeat(unit(raw)[:, None], 2, 1), atol=1e-5)


def test_it_is_the_pooled_trunk_and_a_dense_layer(images):
  variables = weights.init_variables(PLAIN, 0)
  trunk = {c: variables[c]["trunk"] for c in variables}
  maps = np.asarray(TRUNK.apply(trunk, images))
  layer = variables["params"]["dense"]
  expected = maps.mean((1, 2)) @ layer["kernel"] + layer["bias"]
  np.testing.assert_allclose(PLAIN.apply(variables, images), expected, atol=1e-5)


def test_text_head(rng):
  variables = weights.init_variables(TYPED, 0)
  words = rng.poisson(1.0, (2, 10)).astype(np.float32)
  layer = variables["params"]["text_dense"]
  out = TYPED.apply(variables, words, method="text")
  np.testing.assert_allclose(out, words @ layer["kernel"] + layer["bias"], atol=1e-5)


def test_training_moves_the_statistics(images):
  variables = weights.init_variables(TYPED, 0)
  _, moved = TYPED.apply(variables, images, True, mutable=["batch_stats"])
  before, after = variables["batch_stats"]["trunk"], moved["batch_stats"]["trunk"]
  assert jax.tree.structure(before) == jax.tree.structure(after)
  assert not np.allclose(before["bn1"]["mean"], after["bn1"]["mean"])


# Attributes.


def test_activation_maps_and_scores(rng):
  maps = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
  shares = np.asarray(attribute.activation_maps(maps))
  for i in range(2):
    for a in range(5):
      e = np.exp(maps[i, :, :, a])
      np.testing.assert_allclose(shares[i, :, :, a], e / e.sum(), rtol=1e-5)
  scores = attribute.attribute_scores(maps)
  np.testing.assert_allclose(scores, maps.reshape(2, 12, 5).mean(1), rtol=1e-4, atol=1e-6)


def test_a_convolution_over_features(rng):
  net = attribute.AttributeModel(None, 2, feature_size=3)
  variables = weights.init_variables(net, 0, (1, 4, 5, 3))
  kernel = variables["params"]["activation"]["kernel"]
  features = rng.normal(size=(1, 4, 5, 3)).astype(np.float32)
  padded = np.pad(features, ((0, 0), (1, 1), (1, 1), (0, 0)))
  out = np.asarray(net.apply(variables, features))
  for p in range(4):
    for q in range(5):
      window = padded[0, p : p + 3, q : q + 3]
      np.testing.assert_allclose(out[0, p, q], np.einsum("ijc,ijca->a", window, kernel), atol=1e-5)


def test_attributes_of_images(images):
  net = attribute.AttributeModel(TRUNK, 4)
  variables = weights.init_variables(net, 0)
  assert net.apply(variables, images).shape == (3, 4, 4, 4)


@pytest.mark.parametrize(("trunk", "size"), [(None, 0), (TRUNK, 3)])
def test_attribute_models_that_are_none(trunk, size):
  with pytest.raises(ValueError, match="has a trunk or takes feature maps"):
    attribute.AttributeModel(trunk, 4, feature_size=size)


@pytest.mark.full  # each operation by itself, so that both are equal to the last bit
def test_features_of_lite0_are_what_it_pools():
  from sane_jax.models import efficientnet_lite0

  embed, params = efficientnet_lite0.load_efficientnet_lite0()
  images = np.random.default_rng(0).uniform(size=(2, 64, 64, 3)).astype(np.float32)
  maps = embed(params, images, method="features")
  assert maps.shape == (2, 2, 2, 1280)
  np.testing.assert_array_equal(maps.mean((1, 2)), embed(params, images))
