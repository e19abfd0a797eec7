"""A small export of simulate_study, and a server's parts on it."""

import contextlib
import socket
import threading
import time

import numpy as np
import uvicorn

from sane_jax.study import export as export_lib
from sane_jax.study import proxy
from sane_jax.study.server import app as app_lib
from sane_jax.study.server import questions as questions_lib
from sane_jax.study.server import store as store_lib

WAYS = ("random", "predicted", "sane")
NAMES = ("red", "striped", "naïve <b>$x_1$</b> 青")


def make_material(pairs, size=48, seed=0):
  """Images of noise; whatever is shown is noise, too."""
  rng = np.random.default_rng(seed)
  small = rng.integers(0, 256, (2 * pairs, 4, 4, 3)).astype(np.uint8)
  return proxy.Material(
    images=small.repeat(size // 4, 1).repeat(size // 4, 2),
    queries=np.arange(pairs),
    references=pairs + np.arange(pairs),
    scores=rng.normal(size=pairs),
    saliency=rng.normal(size=(pairs, 8, 8)).astype(np.float32),
    attributes={way: rng.integers(len(NAMES), size=pairs) for way in WAYS},
    activations={way: rng.random((pairs, 4, 4)).astype(np.float16) for way in WAYS},
    attribute_names=NAMES,
  )


def make_items(material, pairs):
  pairs = np.asarray(pairs).reshape(-1, 2)
  answers = (material.scores[pairs[:, 1]] > material.scores[pairs[:, 0]]).astype(int)
  return proxy.Items(pairs, answers, answers * 0, answers * 0, 0.01)


def export(folder, *, items=10, practice=5, checks=2, key=3, size=48):
  """Writes it; pairs are used once each."""
  count = 2 * (items + practice + checks) + 1
  material = make_material(count, size)
  numbers = np.arange(count)
  cut = 2 * items, 2 * (items + practice), 2 * (items + practice + checks)
  questions = export_lib.Questions(
    items=make_items(material, numbers[: cut[0]]),
    practice=make_items(material, numbers[cut[0] : cut[1]]),
    checks=numbers[cut[1] : cut[2]].reshape(-1, 2),
    check_answers=np.arange(checks) % 2,
    example=int(numbers[-1]),
  )
  export_lib.export_study(folder, material, questions, key=key, num_subjects=5)
  return folder


def serve(folder, export_folder, *, token="", hosts=None, limits=(), **settings):
  """The guarded application, its store and its questions; close the store in the end."""
  folder.mkdir(parents=True, exist_ok=True)
  questions = questions_lib.read_export(export_folder)
  how = app_lib.Settings(**settings)
  facts = {
    "fingerprint": questions.fingerprint, "design_of_subjects": how.design,
    "items_per_subject": str(questions_lib.count_items(questions, how.items_per_subject)),
  }  # fmt: skip
  store = store_lib.Store(folder / "answers.sqlite", facts)
  secret = app_lib.read_secret(folder / "secret")
  app = app_lib.make_app(questions, store, secret, how, token=token, hosts=hosts, limits=limits)
  return app, store, questions


@contextlib.contextmanager
def listening(app):
  """A server of the application in a thread; gives its address."""
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
      while not server.started and thread.is_alive():
        time.sleep(0.02)
      yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
      server.should_exit = True
      thread.join(20)
