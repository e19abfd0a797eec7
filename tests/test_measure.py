"""The measurement that the explainer, the index builder and the viewer share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sane_jax
from sane_jax.maps import engine as engine_lib
from sane_jax.maps.measure import measure
from sane_jax.models import model as model_lib

SIZE = 16
DESIGN: Any = sane_jax.Hadamard(num_masks=64, grid=(2, 2))


def _engine(*weights):
  """Of a model of one space a weight: [n d], or [n t d] where there are several."""

  def embed(params, images):
    pooled = images.reshape(len(images), -1)[:, ::37]
    each = [jnp.tanh(pooled @ w) for w in params]
    return each[0] if len(each) == 1 else jnp.stack(each, axis=1)

  return engine_lib.make_engine(
    model_lib.Model("spaces", (SIZE, SIZE), embed, params=list(weights)), chunk=8
  )


@pytest.fixture
def drawn():
  rng = np.random.default_rng(0)
  pixels = rng.random((SIZE, SIZE, 3), np.float32)
  width = len(range(0, SIZE * SIZE * 3, 37))
  return pixels, [rng.normal(size=(width, 5)).astype(np.float32) for _ in range(2)]


def test_several_spaces_are_measured_in_the_passes_of_one(drawn):
  pixels, weights = drawn
  together, key = _engine(*weights), jax.random.key(3)
  whole = engine_lib.embed_images(together, pixels[None])[0]
  assert whole.shape == (2, 5)
  both = measure(together, DESIGN, key, pixels, "mean+blur", whole)
  assert together.passes == DESIGN.num_masks + 1
  for space, weight in enumerate(weights):
    one = measure(_engine(weight), DESIGN, key, pixels, "mean+blur", whole[space])
    part = both.moments.response[..., 5 * space : 5 * (space + 1)]
    np.testing.assert_allclose(part, one.moments.response, atol=1e-5)


def test_with_a_tolerance_the_design_comes_back_as_stopped(drawn):
  pixels, weights = drawn
  engine = _engine(weights[0])
  whole = engine_lib.embed_images(engine, pixels[None])[0]
  found = measure(
    engine,
    DESIGN,
    jax.random.key(0),
    pixels,
    "black",
    whole,
    tolerance=1e9,
    directions=[whole[None]],
  )
  assert found.design.num_masks == 4 * DESIGN.replicate_size == engine.passes - 1  # four at least
  assert found.reached is not None
  assert 0 < found.reached < 1e9
  assert len(found.moments.gram) == 4
  again = measure(engine, found.design, jax.random.key(0), pixels, "black", whole)
  assert again.reached is None
  np.testing.assert_allclose(again.moments.response, found.moments.response, atol=1e-6)
