"""A model behind HTTP, explained: in batches, several requests at a time, and again when one fails.

  python docs/examples/remote_service.py                       a small service on this machine
  python docs/examples/remote_service.py URL A.jpg B.jpg [SIZE]    yours

What goes over the wire is this example's own: an array [b h w 3] float32 in [0, 1] as .npy there,
embeddings [b d] as .npy back. A service that wants JPEGs or JSON takes another `ask`, no more.
"""

import concurrent.futures
import http.client
import http.server
import io
import pathlib
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable

import numpy as np

import sane_jax
from sane_jax.datasets import photos

BATCH = 16  # images a request
AT_ONCE = 4  # requests on their way
TRIES = 6  # of each; pauses grow from WAIT seconds to 2^5 times that
WAIT = 0.25
PASSING = {408, 425, 429, 500, 502, 503, 504}  # what may be otherwise a moment later


def pack(array: np.ndarray) -> bytes:
  """An array as the bytes of a .npy file."""
  buffer = io.BytesIO()
  np.save(buffer, array, allow_pickle=False)
  return buffer.getvalue()


def unpack(data: bytes) -> np.ndarray:
  """The array in the bytes of a .npy file."""
  return np.load(io.BytesIO(data), allow_pickle=False)


def ask(url: str, images: np.ndarray, wait: float = WAIT) -> np.ndarray:
  """Embeddings [b d] of images [b h w 3] from the service; again if what went wrong may pass.

  Raises:
    ValueError: the service refuses the images; trying again would not help.
    OSError: it did not answer in TRIES tries.
  """
  body = pack(images)
  for attempt in range(TRIES):
    request = urllib.request.Request(url, body, {"Content-Type": "application/octet-stream"})
    try:
      with urllib.request.urlopen(request, timeout=60) as answer:
        return unpack(answer.read())
    except urllib.error.HTTPError as error:
      if error.code not in PASSING:
        raise ValueError(f"{url} refused {images.shape}: {error.code} {error.reason}") from error
      problem = error
    except (OSError, http.client.HTTPException) as error:  # no connection, or one that broke
      problem = error
    if attempt + 1 < TRIES:
      time.sleep(wait * 2**attempt)
  raise OSError(f"{url} did not answer in {TRIES} tries: {problem}")


def remote_model(url: str, image_size: int, wait: float = WAIT) -> sane_jax.Model:
  """The service as a model: each chunk of masked images goes there as several requests at once."""
  pool = concurrent.futures.ThreadPoolExecutor(AT_ONCE)

  def embed(images: np.ndarray) -> np.ndarray:
    parts = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    return np.concatenate(list(pool.map(lambda part: ask(url, part, wait), parts)))

  return sane_jax.from_numpy(embed, image_size=image_size, name=url)


def serve(embed: Callable[[np.ndarray], np.ndarray]) -> http.server.ThreadingHTTPServer:
  """A service on a free port of this machine; `shutdown()` ends it."""

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      try:
        images = unpack(self.rfile.read(int(self.headers["Content-Length"])))
        answer = pack(embed(images))
      except ValueError as error:
        return self.send_error(400, str(error)[:200])
      except RuntimeError as error:  # such as a device that is out of memory: it may pass
        return self.send_error(503, str(error)[:200])
      self.send_response(200)
      self.send_header("Content-Length", str(len(answer)))
      self.end_headers()
      self.wfile.write(answer)

    def log_message(self, format, *args):
      pass

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  return server


def main(url: str = "", query: str = "", reference: str = "", size: str = "112") -> pathlib.Path:
  pair = (query, reference)
  if not url:
    network = sane_jax.Explainer(sane_jax.load_model("efficientnet_lite0", image_size=int(size)))
    server = serve(lambda images: network.embed(list(images)))
    url = f"http://127.0.0.1:{server.server_port}/embed"
    (_, query_pixels, _, reference_pixels), *_ = photos.sample_pairs()
    pair = (query_pixels, reference_pixels)
  explainer = sane_jax.Explainer(remote_model(url, int(size)), chunk_size=BATCH * AT_ONCE)
  e = explainer.explain(*pair)
  page = e.to_html("runs/remote/why.html")
  print(f"score {e.score:.3f}, {e.encoder_passes} images went to {url}; open {page}")
  return page


if __name__ == "__main__":
  main(*sys.argv[1:5])
