"""Pictures of a collection for browsers: re-encoded, small, and cached.

An upload is decoded, fitted to the model and encoded again: whatever else its file held (where it
was taken, a script, a second document) is gone.
"""

import hashlib
import io
import threading
import time
from typing import NamedTuple

import numpy as np
from PIL import Image

from sane_jax.datasets import images as images_lib
from sane_jax.viewer.collection import Cache, Collection
from sane_jax.web.guard import Refusal

THUMBNAIL = 144  # pixels of the longer side
READERS = 2  # files decoded at a time
_RETRY = 60.0  # seconds after which a file that could not be read is tried again
_MOST_MISSING = 10_000


class Picture(NamedTuple):
  """An encoded image."""

  data: bytes
  kind: str
  tag: str


class Pictures:
  """Encoded pictures of a collection, the least recently used dropped.

  Args:
    collection: whose images are read.
    cache_bytes: of the pictures cached at a time.
  """

  def __init__(self, collection: Collection, cache_bytes: int = 128 << 20):
    self._collection = collection
    self._encoded = Cache(cache_bytes, lambda picture: len(picture.data))
    self._readers = threading.BoundedSemaphore(READERS)
    self._missing = Cache(_MOST_MISSING, lambda _: 1)  # key: when, why

  def get(self, key: str, *, thumbnail: bool) -> Picture:
    """The picture of an image, as the model sees it or smaller.

    Raises:
      Refusal: 404, there is no such image; 410, it can't be read: its file may be gone.
    """
    state = self._collection.state(key)
    found = self._encoded.get((key, state, thumbnail))
    if found is not None:
      return found
    since, why = self._missing.get(key) or (0.0, "")
    if why and time.monotonic() - since < _RETRY:
      raise Refusal(410, why)
    with self._readers:
      found = self._encoded.get((key, state, thumbnail))  # another may just have made it
      if found is not None:
        return found
      name = self._collection.name_of(key)
      try:
        pixels = self._collection.picture(key)
      except (OSError, ValueError) as error:
        why = f"The picture of {name} can't be read: its file may be gone. Its maps are still here."
        self._missing.put(key, (time.monotonic(), why))
        raise Refusal(410, why) from error
      small, large = encode(pixels, thumbnail=True), encode(pixels, thumbnail=False)
    self._encoded.put((key, state, True), small)
    self._encoded.put((key, state, False), large)
    return small if thumbnail else large

  def is_missing(self, key: str) -> bool:
    """Whether the picture could not be read when it was last asked for."""
    return self._missing.get(key) is not None and key in self._collection.ids


def encode(pixels: np.ndarray, *, thumbnail: bool) -> Picture:
  """An image [h w 3] uint8 as JPEG; drawings, which are smaller so, as PNG."""
  image = Image.fromarray(np.ascontiguousarray(pixels))
  if thumbnail:
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS, reducing_gap=2.0)
  buffer = io.BytesIO()
  image.save(buffer, "JPEG", quality=82 if thumbnail else 92, subsampling=0)
  data, kind = buffer.getvalue(), "image/jpeg"
  if len(image.getcolors(4096) or ()) > 0:  # few colours: a drawing
    png = io.BytesIO()
    image.save(png, "PNG")
    if len(png.getvalue()) < len(data):
      data, kind = png.getvalue(), "image/png"
  return Picture(data, kind, hashlib.sha256(data).hexdigest()[:16])


def read_upload(data: bytes, max_pixels: int) -> np.ndarray:
  """A photo that was sent, [h w 3] float32 in [0, 1].

  Raises:
    ImageError: it is no photo of a known format, is broken, or has too many pixels.
  """
  return images_lib.read_bytes(data, "The photo", max_pixels=max_pixels)
