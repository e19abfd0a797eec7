"""docs/examples/remote_service.py: a model behind HTTP is explained as if it were here."""

import itertools
import pathlib
import runpy
import threading

import encoders
import jax.numpy as jnp
import numpy as np
import pytest

import sane_jax

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLE = runpy.run_path(str(ROOT / "docs/examples/remote_service.py"))


@pytest.fixture
def embed():
  params = encoders.nonlinear_params()
  return lambda images: np.asarray(encoders.nonlinear(params, jnp.asarray(images)))


@pytest.fixture
def service():
  """Starts services, and ends them."""
  servers = []

  def start(embed):
    servers.append(EXAMPLE["serve"](embed))
    return f"http://127.0.0.1:{servers[-1].server_port}/embed"

  yield start
  for server in servers:
    server.shutdown()
    server.server_close()


def explain(model, photos):
  return sane_jax.Explainer(model, chunk_size=32, num_masks=128).explain(photos[0], photos[1])


def test_the_map_is_that_of_the_model_itself(service, embed, photos):
  sizes, lock = [], threading.Lock()

  def counted(images):
    with lock:
      sizes.append(len(images))
    return embed(images)

  remote = EXAMPLE["remote_model"](service(counted), encoders.SIZE)
  there = explain(remote, photos)
  here = explain(sane_jax.from_numpy(embed, image_size=encoders.SIZE), photos)
  np.testing.assert_allclose(there.saliency_map, here.saliency_map, atol=1e-6)
  np.testing.assert_allclose(there.standard_error, here.standard_error, atol=1e-6)
  assert there.encoder_passes == 130
  assert sum(sizes) == 130 + 2  # once a model: does it give an image one answer?
  assert max(sizes) == EXAMPLE["BATCH"]


def test_a_service_that_is_busy_and_breaks_off_costs_nothing_but_time(service, embed, photos):
  """Every third request is answered 503, every seventh not at all."""
  turn, lock = itertools.count(1), threading.Lock()
  failed = []

  def moody(images):
    with lock:
      n = next(turn)
    if n % 7 == 0:
      failed.append(n)
      raise ConnectionError  # the handler dies, and the connection with it
    if n % 3 == 0:
      failed.append(n)
      raise RuntimeError("busy")
    return embed(images)

  url = service(moody)
  remote = EXAMPLE["remote_model"](url, encoders.SIZE, wait=1e-3)
  here = explain(sane_jax.from_numpy(embed, image_size=encoders.SIZE), photos)
  np.testing.assert_allclose(explain(remote, photos).saliency_map, here.saliency_map, atol=1e-6)
  assert len(failed) >= 3


def test_what_will_not_pass_is_said_at_once(service, photos):
  calls = []

  def refuse(images):
    calls.append(len(images))
    raise ValueError("no images of that size here")

  url = service(refuse)
  with pytest.raises(ValueError, match=r"refused .*400 no images of that size"):
    EXAMPLE["ask"](url, photos)
  assert len(calls) == 1


def test_nobody_there_is_said_after_some_tries():
  with pytest.raises(OSError, match="did not answer in 6 tries"):
    EXAMPLE["ask"]("http://127.0.0.1:9/embed", np.zeros((1, 8, 8, 3), np.float32), wait=1e-3)
