"""Prepared data sets: TFDS builders that write records in a known order, and who reads them.

A data set is prepared once, into a folder named by its source's fingerprint. TFDS writes aside and
renames at the end, so a folder that is there is whole.
"""

import abc
import contextlib
import io
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, overload

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from sane_jax.datasets import images as images_lib
from sane_jax.datasets import mirror, sources
from sane_jax.runs import files

Progress = Callable[[int, int], None]  # images done, images in all

_MAX_PIXELS = 100_000_000
_SPLIT_WORDS = {"train": "train", "valid": "valid", "val": "valid", "test": "test"}
_BATCH = 64  # images held at a time
_BATCH_BYTES = 1 << 26
_SHARD_BYTES = 1 << 28


class Tables(tfds.core.Metadata):
  """What is known beside the records: a JSON file 'table_NAME.json' for each entry."""

  def save_metadata(self, data_dir: str | os.PathLike[str]) -> None:
    for name, table in self.items():
      _table_path(data_dir, name).write_text(json.dumps(table, separators=(",", ":")))

  def load_metadata(self, data_dir: str | os.PathLike[str]) -> None:
    """Nothing: `read_table` reads the one that is needed."""


def _batch(reads: Iterator[sources.Read]) -> list[sources.Read]:
  """The next 64, or fewer where they are large."""
  batch, size = [], 0
  for read in itertools.islice(reads, _BATCH):
    batch.append(read)
    if (size := size + len(read.data)) > _BATCH_BYTES:
      break
  return batch


def _table_path(directory: str | os.PathLike[str], name: str) -> Path:
  return Path(directory) / f"table_{name}.json"


def read_table(directory: Path, name: str) -> dict[str, Any]:
  """An entry of the prepared set's Tables."""
  return json.loads(_table_path(directory, name).read_bytes())


class OrderedBuilder(tfds.core.GeneratorBasedBuilder):
  """A builder whose records stand in the order of its generators.

  TFDS's own writer sorts a split larger than 1 GB by temporary files that take TensorFlow to write,
  and holds it in memory where shuffling is off. Here records go straight to their shards.

  Attributes:
    source: where to read; TFDS's manual directory otherwise.
    on_progress: called as images are done.
    examples_per_shard: at most.
  """

  source: sources.Source | None = None
  on_progress: Progress | None = None
  examples_per_shard: int = 1 << 14

  @abc.abstractmethod
  def _tables(self) -> dict[str, Any]:
    """The Tables, once all records are written."""

  def _download_and_prepare(
    self, dl_manager: tfds.download.DownloadManager, download_config: tfds.download.DownloadConfig
  ) -> None:
    generators = self._split_generators(dl_manager)
    # The builder's data_dir is the temporary one by now; that of its info still the final one.
    info = tfds.core.DatasetInfo(
      builder=self, features=self.info.features, disable_shuffling=True, metadata=Tables()
    )
    writer = tfds.core.SequentialWriter(info, self.examples_per_shard, file_format="array_record")
    writer.initialize_splits(list(generators))
    for split, generator in generators.items():
      examples = itertools.islice(generator, download_config.max_examples_per_split)
      while batch := [example for _, example in itertools.islice(examples, _BATCH)]:
        writer.add_examples({split: batch})
    writer.close_all()
    if self.info.file_format != info.file_format:
      self.info.set_file_format("array_record", override=True)
    self.info.set_splits(info.splits)
    assert self.info.metadata is not None
    self.info.metadata.update(self._tables())

  def _name_labels(self, feature: str, names: Iterable[str]) -> None:
    """The values of a ClassLabel, which are only known once the source is read."""
    features: Any = self.info.features
    features[feature].names = list(names)

  def _checked_images(self, names: Sequence[str]) -> Iterator[sources.Read]:
    """The images' bytes as they are, in the source's order; a problem where one doesn't decode."""
    assert self.source is not None
    with ThreadPoolExecutor(os.cpu_count()) as pool:
      reads = sources.stream(self.source, names)
      while batch := _batch(reads):
        problems = pool.map(lambda read: read.problem or image_problem(read.data), batch)
        for read, problem in zip(batch, problems, strict=True):
          yield sources.Read(read.name, b"" if problem else read.data, problem)

  def _log_download_bytes(self) -> None:
    """Nothing to say: nothing is downloaded."""

  def _log_download_done(self) -> None:
    """Nothing to say."""


def shard_length(source: sources.Source) -> int:
  """How many of its images make a shard."""
  sizes = [entry.size for entry in source.files.values() if entry.kind == "image"]
  return max(1, int(_SHARD_BYTES / max(1.0, float(np.mean(sizes or [1])))))


def image_problem(data: bytes) -> str:
  """Why the bytes are no image that can be decoded; '' if they are one."""
  if not data:
    return "an empty file"
  try:
    Image.init()
    formats = [kind for kind in images_lib.FORMATS if kind in Image.OPEN]
    with Image.open(io.BytesIO(data), formats=formats) as image:
      if not 0 < image.width * image.height <= _MAX_PIXELS:
        return f"{image.width} x {image.height} pixels; at most {_MAX_PIXELS} are read"
      # A JPEG's bytes are all gone through, but fewer pixels are made of them.
      image.draft(None, (image.width // 8, image.height // 8))
      image.load()
  except Image.UnidentifiedImageError:
    return "no image of a format known here"
  except Exception as error:  # on broken files Pillow raises errors of nearly every built-in type
    return f"broken or cut short ({str(error) or type(error).__name__})"
  return ""


# --- preparing ------------------------------------------------------------------------------------


def prepare(make: Callable[[Path], OrderedBuilder], layout: sources.Layout,
            manual_dir: str | os.PathLike[str], prepared_dir: str | os.PathLike[str],
            on_progress: Progress | None) -> Path:  # fmt: skip
  """The folder of the prepared set, made if need be.

  Several processes may ask at once: one prepares, the others wait. Sets of an earlier state of the
  source stay, each in its own folder of `prepared_dir`; delete them as you like.

  Args:
    make: the builder, given the folder for its `data_dir`.
    layout: of the data set.
    manual_dir: see `sources.find`.
    prepared_dir: any folder that can be written.
    on_progress: called as images are done.

  Raises:
    ValueError: something is wrong with the files.
    OSError: prepared_dir can't be written.
  """
  parts = sources.find(manual_dir, layout)
  kept = files.at(prepared_dir).expanduser() / sources.fingerprint(parts, layout)[:16]
  folder = kept
  if files.is_remote(kept):  # array_record reads no bucket
    folder = files.cache_folder() / "prepared" / kept.name
  try:
    folder.mkdir(parents=True, exist_ok=True)
    directory = Path(make(folder).data_dir)
    place = kept / directory.relative_to(folder).as_posix()
    if _is_whole(directory):
      _keep(directory, place)
      return directory
    with _lock(folder / f".lock-{layout.folder}") as alone:
      if _is_whole(directory):
        return directory
      if alone:  # left by processes that were killed
        for left in [directory, *directory.parent.glob("incomplete.*")]:
          shutil.rmtree(left, ignore_errors=True)
      if files.is_remote(place) and mirror.fetch(place, directory):
        return directory
      builder = make(folder)
      builder.source = sources.open_source(parts, layout)
      builder.on_progress = on_progress
      try:
        builder.download_and_prepare()
      except OSError:
        if alone or not _is_whole(directory):  # else another process was first
          raise
      finally:
        shutil.rmtree(folder / "downloads", ignore_errors=True)  # TFDS makes it; nothing is in it
    _keep(directory, place)
  except OSError as error:
    if files.is_remote(kept) and error.strerror is None:  # it says what it is of
      raise
    raise OSError(
      f"can't write to {folder}: {error.strerror or error}; free it, or give another folder with"
      " --config.data.prepared=FOLDER"
    ) from error
  return directory


def _keep(directory: Path, place: Path) -> None:
  """Where a bucket is to keep the prepared set: puts it there."""
  if files.is_remote(place):
    mirror.keep(directory, place)


def _is_whole(directory: Path) -> bool:
  """Whether all files of the prepared set are there."""
  if not (directory / "dataset_info.json").is_file():
    return False
  try:
    splits = tfds.builder_from_directory(directory).info.splits
    shards = [Path(path) for split in splits.values() for path in split.filepaths]
  except Exception:  # of a damaged description, TFDS raises what it meets
    return False
  return any(directory.glob("table_*.json")) and all(shard.is_file() for shard in shards)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
  """Waits until this process alone holds the file; False where the system can't tell."""
  with path.open("a") as file:
    try:
      import fcntl  # here: not on Windows

      fcntl.flock(file, fcntl.LOCK_EX)  # gone with the process, however it ends
    except (ImportError, OSError):
      yield False
    else:
      yield True


# --- reading --------------------------------------------------------------------------------------


class Images(Sequence[bytes]):
  """Encoded images of a prepared set, read as they are asked for, from any thread.

  Args:
    directory: of the prepared set.
    splits: whose records, one after the other.
    rows: which of these, in order; all by default.
  """

  def __init__(self, directory: Path, splits: Iterable[str], rows: np.ndarray | None = None):
    self._directory, self._splits, self._rows = directory, tuple(splits), rows
    builder: Any = tfds.builder_from_directory(directory)
    filled = [name for name in self._splits if builder.info.splits[name].num_examples]
    self._records: Any = ()
    if filled:
      self._records = builder.as_data_source(
        "+".join(filled), decoders={"image": tfds.decode.SkipDecoding()}
      )

  def __len__(self) -> int:
    return len(self._records) if self._rows is None else len(self._rows)

  @overload
  def __getitem__(self, index: int) -> bytes: ...
  @overload
  def __getitem__(self, index: slice) -> list[bytes]: ...
  def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    position = range(len(self))[index]  # IndexError beyond the end, and from the end
    return self._records[position if self._rows is None else int(self._rows[position])]["image"]

  def __reduce__(self) -> tuple:
    return Images, (self._directory, self._splits, self._rows)


# --- pieces of tables -----------------------------------------------------------------------------


def rows_of(lists: Iterable[Sequence[int] | np.ndarray]) -> tuple[np.ndarray, ...]:
  """Each list as int32."""
  return tuple(np.array(rows, np.int32) for rows in lists)


def parse_pairs(data: bytes) -> tuple[list[tuple[str, str, int]], int]:
  """Lines `query reference label`, label 1 or 0; and how many other lines there are.

  Names lose their folder and the suffix of a photo.
  """
  pairs, bad = [], 0
  for line in sources.parse_lines(data):
    fields = line.replace(",", " ").split()
    if len(fields) == 3 and fields[2] in ("0", "1"):
      pairs.append((stem(fields[0]), stem(fields[1]), int(fields[2])))
    elif line and not line.startswith("#"):
      bad += 1
  return pairs, bad


def stem(name: str) -> str:
  """'JPEGImages/mole/mole_10001.jpg' -> 'mole_10001'."""
  name = name.rpartition("/")[2]
  base, dot, suffix = name.rpartition(".")
  return base if dot and suffix.lower() in ("jpg", "jpeg", "png", "webp") else name


def split_in_name(name: str) -> str:
  """'train', 'valid' or 'test' where the file's name says so, such as 'pairs_test.txt'; else ''."""
  words = re.split(r"[^a-z]+", name.rpartition("/")[2].lower())
  found = {split for word, split in _SPLIT_WORDS.items() if word in words}
  return found.pop() if len(found) == 1 else ""
