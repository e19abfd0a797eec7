"""A small collection to view, its model, and the application on it."""

import contextlib
import socket
import threading
import time

import encoders
import numpy as np
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image

import sane_jax
from sane_jax.maps.index import ExplanationIndex
from sane_jax.viewer import app as app_lib
from sane_jax.viewer.collection import Collection
from sane_jax.viewer.measuring import Measuring

GRID = (4, 4)
NAMES = [
  "plain.png", "<script>window.pwned=1<script>.png", "\"'><img src=x onerror=window.pwned=1>.png",
  "\u202eevil\u2066gnp.txt.png", "n" * 220 + ".png", "a & b;%2e%2e\\.png", "ü ẞ ア.png", "07.png",
  "08.png", "09.png", "10.png", "11.png",
]  # fmt: skip


def model(seed=0):
  return sane_jax.from_jax(
    encoders.nonlinear, encoders.nonlinear_params(seed), image_size=encoders.SIZE, name="small"
  )


def explainer(design="hadamard", seed=0, **options):
  made = {
    "hadamard": sane_jax.Hadamard(num_masks=128, grid=GRID),
    "rise": sane_jax.Rise(num_masks=60, grid=(7, 7)),
    "sliding_window": sane_jax.SlidingWindow(grid=(20, 20)),
  }[design]
  return sane_jax.Explainer(model(seed), design=made, fill="grey", **options)


def draw_photos(folder, rng):
  """Smooth noise under names that pages must not take for markup."""
  paths = []
  for name in NAMES:
    pixels = rng.integers(0, 255, (5, 5, 3), dtype=np.uint8)
    path = folder / name
    Image.fromarray(pixels).resize((40, 32), Image.Resampling.BILINEAR).save(path)
    paths.append(path)
  return paths


class Viewer:
  """An application and how to ask it."""

  def __init__(self, indexes, *, uploads=True, limits=(), **options):
    self.collection = Collection(indexes)
    self.model = model()
    self.measuring = Measuring(self.model, self.collection) if uploads else None
    rankers = options.pop("rankers", None)
    self.app = app_lib.make_app(
      self.collection, model=self.model, measuring=self.measuring, rankers=rankers,
      options=app_lib.Options(**options),
    )  # fmt: skip
    self.guarded = app_lib.guard_app(
      self.app, limits=limits, max_upload=options.get("max_upload", 1 << 20)
    )
    self.keys = {name: key for key, name in self.collection.ids.items()}

  def key(self, number):
    return self.collection.keys[number]

  def client(self):
    return TestClient(self.guarded, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)

  @contextlib.contextmanager
  def serve(self):
    """A real server in a thread; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
      server = uvicorn.Server(
        uvicorn.Config(self.guarded, log_level="error", ws="none", lifespan="on")
      )
      thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
      thread.start()
      while not server.started:
        time.sleep(0.01)
      try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
      finally:
        server.should_exit = True
        thread.join(20)


def token_of(client):
  """What a page sends along with what changes something."""
  text = client.get("/").text
  return text.split('name="form-token" content="')[1].split('"')[0]


def send(client, data, **parameters):
  headers = {"x-form-token": token_of(client), "content-type": "application/octet-stream"}
  return client.post("/api/uploads", params=parameters, content=data, headers=headers)


def wait(client, task, states=("done",), seconds=120):
  began = time.monotonic()
  while time.monotonic() - began < seconds:
    now = client.get(f"/api/tasks/{task}").json()
    if now["state"] in states:
      return now
    assert now["state"] in ("waiting", "measuring"), now
    time.sleep(0.02)
  raise AssertionError(f"still {now} after {seconds} s")


def build(folder, paths, design="hadamard", **options):
  return ExplanationIndex.build(folder, explainer(design, **options), paths)


def load(image_size):
  """The model as the job loads it: --config.model=web.viewer_tools:load."""
  return model()
