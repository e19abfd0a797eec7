"""Batches of decoded images, in an order that a seed fixes, from any position on.

What is in batch i of a run depends on the seed and i alone, not on how many processes and threads
read it: each of P processes reads the p-th of P equal parts of every batch. So the position in the
data is one number, and means the same on another number of machines.
"""

import io
import re
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sane_jax.datasets import images as images_lib
from sane_jax.datasets.collection import Collection

GONE = 8  # images together that can't be read: more than a few that are broken
WORDS = 1024  # numbers that a title is hashed to
_ORIENTATION = 0x0112  # the EXIF tag


def decode(data: bytes, size: int, *, fast: bool = False) -> np.ndarray:
  """The encoded image's middle square at `size` pixels, antialiased: uint8 [size size 3].

  It is what shortening the shorter side to `size` and cutting out the middle gives.

  Args:
    data: the image as on disk.
    size: pixels a side.
    fast: whether a colour JPEG's decoder may halve it first, up to three times, as long as it stays
      at least `size`: about twice as fast, and two or three grey levels off on average.

  Raises:
    ImageError: it can't be read.
  """
  try:
    Image.init()  # open() takes only the names of formats that are registered by now
    formats = [kind for kind in images_lib.FORMATS if kind in Image.OPEN]
    with Image.open(io.BytesIO(data), formats=formats) as image:
      upright = image.getexif().get(_ORIENTATION, 1) == 1
      if image.mode == "RGB" and upright and not image.has_transparency_data:
        if fast:
          image.draft(None, (size, size))
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
      pixels = images_lib.read_image(image)
  except images_lib.ImageError:
    raise
  except Exception as error:  # on broken files Pillow raises errors of nearly every built-in type
    raise images_lib.ImageError(f"broken or cut short ({error})") from error
  return np.rint(images_lib.fit_image(pixels, (size, size)) * 255).astype(np.uint8)


def hash_words(title: str) -> np.ndarray:
  """Counts of the title's words [WORDS], each at its hash's place, of length 1; zeros if none."""
  out = np.zeros(WORDS, np.float32)
  for word in re.findall(r"\w+", title.lower()):
    out[zlib.crc32(word.encode()) % WORDS] += 1
  return out / max(float(np.linalg.norm(out)), 1.0)


class DecodedImages:
  """A collection's images decoded, the first ones up to `max_bytes` kept in memory.

  Images that can't be read come as None and are listed in `broken`. Threads may share it.
  `fast` is `decode`'s.
  """

  def __init__(
    self, collection: Collection, size: int, max_bytes: float = 0, *, fast: bool = False
  ):
    self._images, self._ids, self.size = collection.images, collection.ids, size
    self._fast = fast
    self._kept: dict[int, np.ndarray] = {}
    self._room = int(max_bytes) // (size * size * 3)
    self._lock = threading.Lock()
    self.broken: dict[str, str] = {}

  def __getitem__(self, row: int) -> np.ndarray | None:
    row = int(row)
    kept = self._kept.get(row)
    if kept is not None:
      return kept
    try:
      image = decode(self._images[row], self.size, fast=self._fast)
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: of a damaged record
      with self._lock:
        self.broken[self._ids[row]] = str(error)
      return None
    with self._lock:
      if len(self._kept) < self._room:
        self._kept[row] = image
    return image

  def stack(self, rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images [b s s 3] uint8, black where one can't be read, and which could [b].

    Raises:
      OSError: none of `GONE` images or more can be read: what they are read from is gone.
    """
    out = np.zeros((len(rows), self.size, self.size, 3), np.uint8)
    valid = np.zeros(len(rows), bool)
    for index, row in enumerate(rows):
      image = self[row]
      if image is not None:
        out[index], valid[index] = image, True
    if not valid.any() and len(np.unique(rows)) >= GONE:
      name = self._ids[int(rows[0])]
      raise OSError(
        f"none of {len(rows)} images can be read, {name} among them ({self.broken[name]}): is the"
        " folder of the data still there? What was written is kept; the same command goes on"
      )
    return out, valid


def _share(count: int, processes: int, process: int, what: str) -> slice:
  if count % processes:
    raise ValueError(f"{processes} processes can't share {count} {what} evenly")
  size = count // processes
  return slice(process * size, (process + 1) * size)


def _iterate(dataset: Any, num_threads: int) -> Any:
  import grain  # here: its start is slow, and few need it

  options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(2, num_threads))
  return iter(dataset.to_iter_dataset(options))


def group_batches(
  collection: Collection,
  images: DecodedImages,
  *,
  groups_per_batch: int,
  images_per_group: int,
  seed: int,
  titles: bool = False,
  process: int = 0,
  processes: int = 1,
  num_threads: int = 2,
) -> Any:
  """Endless batches of some members of some groups, for the triplet loss.

  Every epoch shows each group once, in a new order, with members drawn anew.

  Returns:
    An iterator with get_state and set_state over dicts: `images` uint8 [b s s 3], `types`, `rows`
    and `groups` int32 [b] (group −1 where a group has too few members, or an image can't be read),
    with `titles` also `words` float32 [b WORDS]. b = images_per_group · groups_per_batch /
    processes.

  Raises:
    ValueError: there is no group; the processes can't share a batch.
  """
  mine = _share(groups_per_batch, processes, process, "groups a batch")
  if not collection.groups:
    raise ValueError(f"{collection.name} has no groups, so that nothing in it matches")

  def draw(group: int, rng: np.random.Generator) -> np.ndarray:
    members = collection.groups[group]
    chosen = rng.permutation(members)[:images_per_group]
    rows = np.full(images_per_group, -1 - chosen[0])  # of padding: any image, marked
    rows[: len(chosen)] = chosen
    return np.stack([rows, np.full(images_per_group, group)]).astype(np.int32)

  def read(drawn: np.ndarray) -> dict[str, np.ndarray]:
    rows, groups = drawn[mine].swapaxes(0, 1).reshape(2, -1)
    padding = rows < 0
    rows = np.where(padding, -1 - rows, rows)
    pixels, valid = images.stack(rows)
    batch = {
      "images": pixels,
      "types": collection.types[rows].astype(np.int32),
      "rows": rows.astype(np.int32),
      "groups": np.where(padding | ~valid, -1, groups).astype(np.int32),
    }
    if titles:
      batch["words"] = np.stack([hash_words(collection.titles[row]) for row in rows])
    return batch

  import grain

  dataset = grain.MapDataset.range(len(collection.groups)).seed(seed).shuffle().repeat(None)
  dataset = dataset.random_map(draw).batch(groups_per_batch, drop_remainder=True).map(read)
  return _iterate(dataset, num_threads)


def image_batches(
  images: DecodedImages,
  rows: np.ndarray,
  *,
  batch_size: int,
  seed: int,
  extra: Callable[[np.ndarray], dict[str, np.ndarray]],
  process: int = 0,
  processes: int = 1,
  num_threads: int = 2,
) -> Any:
  """Endless batches of `rows`, each epoch in a new order.

  Returns:
    An iterator with get_state and set_state over dicts: `images` uint8 [b s s 3], `valid` bool [b],
    and what `extra` gives for the rows [b]. b = batch_size / processes.

  Raises:
    ValueError: there is no row; the processes can't share a batch.
  """
  mine = _share(batch_size, processes, process, "images a batch")
  source: Any = np.asarray(rows)
  if not len(source):
    raise ValueError("image_batches was given no rows of images; give at least one")

  def read(chosen: np.ndarray) -> dict[str, np.ndarray]:
    pixels, valid = images.stack(chosen[mine])
    return {"images": pixels, "valid": valid, **extra(chosen[mine])}

  import grain

  dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat(None)
  return _iterate(dataset.batch(batch_size, drop_remainder=True).map(read), num_threads)


def in_order(
  images: DecodedImages,
  rows: np.ndarray,
  *,
  batch_size: int,
  process: int = 0,
  processes: int = 1,
  num_threads: int = 2,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """The rows once, in order: batches of images and of which are valid, the last one padded."""
  mine = _share(batch_size, processes, process, "images a batch")
  count = -(-len(rows) // batch_size)

  def read(index: int) -> tuple[np.ndarray, np.ndarray]:
    part = np.full(batch_size, -1)
    chosen = rows[index * batch_size : (index + 1) * batch_size]
    part[: len(chosen)] = chosen
    pixels, valid = images.stack(np.maximum(part[mine], 0))
    return pixels, valid & (part[mine] >= 0)

  import grain

  return _iterate(grain.MapDataset.range(count).map(read), num_threads)
