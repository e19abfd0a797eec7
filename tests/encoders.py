"""Small encoders, each once for JAX and once, independently, in float64 NumPy."""

import jax.numpy as jnp
import numpy as np

import sane_jax

SIZE = 28


def nonlinear_params(seed=0, hidden=24, d=6):
  rng = np.random.default_rng(seed)
  return {
    "w1": rng.normal(size=(7 * 7 * 3, hidden)) / 2,
    "w2": rng.normal(size=(hidden, d)),
    "b": 0.2 * rng.normal(size=d),
  }


def nonlinear(params, images):
  """Mean-pooled 4 x 4 patches, a tanh layer, a linear one. JAX."""
  pooled = images.reshape(images.shape[0], 7, 4, 7, 4, 3).mean((2, 4)).reshape(images.shape[0], -1)
  params = {k: jnp.asarray(v, jnp.float32) for k, v in params.items()}
  return jnp.tanh(pooled @ params["w1"]) @ params["w2"] + params["b"]


def nonlinear_unit_float64(params, images):
  """The same, normalised to unit length, in float64."""
  out = []
  for image in np.asarray(images, np.float64):
    patches = [
      image[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].reshape(16, 3).mean(0)
      for i in range(7)
      for j in range(7)
    ]
    e = np.tanh(np.concatenate(patches) @ params["w1"]) @ params["w2"] + params["b"]
    out.append(e / np.sqrt((e**2).sum()))
  return np.array(out)


def linear(weights, images):
  """Unit embeddings whose first axis is Σ weights · image, scaled to stay under 1. JAX."""
  s = jnp.einsum("bhwc,hwc->b", images, weights, precision="highest")
  return jnp.stack([s, jnp.sqrt(1 - s**2)], axis=1)


def one_region(region, images):
  """Sees the mean colour of one region (rows, columns) and nothing else. JAX."""
  (top, bottom), (left, right) = region
  colour = images[:, top:bottom, left:right].mean(axis=(1, 2))
  return jnp.concatenate([colour, 0.3 * jnp.ones((images.shape[0], 1))], axis=1)


def small_model(image_size):
  """For the command line: tests.encoders:small_model."""
  return sane_jax.from_jax(nonlinear, nonlinear_params(0), image_size=image_size, name="small")


def other_model(image_size):
  return sane_jax.from_jax(nonlinear, nonlinear_params(1), image_size=image_size, name="other")
