"""Members of zip and tar archives, read one by one and never extracted to disk."""

import bz2
import contextlib
import gzip
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sane_jax.runs import files

_ZIP = ".zip"
SUFFIXES = (_ZIP, ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

_MAX_RATIO, _SMALL = 100, 1 << 24  # of size to compressed size, for what is larger than _SMALL
_MAX_HEADER = 1 << 20  # bytes of a tar between two files; a name takes some hundred
_PACKED: Mapping[bytes, Callable[..., Any]] = {
  b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open
}  # fmt: skip


class Member(NamedTuple):
  name: str
  size: int  # bytes, inflated
  problem: str  # why it must not be read; '' where it may


def members(path: Path) -> Iterator[Member]:
  """The files in an archive; a packed tar is inflated for it.

  Raises:
    ValueError: it is cut short, no archive, or would inflate beyond any measure.
  """
  entries = _zip_members if path.name.lower().endswith(_ZIP) else _tar_members
  seen: set[str] = set()
  try:
    for name, size, problem in entries(path):
      pure = PurePosixPath(name)
      if not problem and name in seen:
        problem = "a second one of that name"  # the first is read, which is the one looked at
      seen.add(name)
      if not problem and size < 0:
        problem = f"its size is given as {size}"
      if not problem and (not name or pure.is_absolute() or ".." in pure.parts or "\\" in name):
        problem = "leads out of the archive"
      if not problem and not files.is_text(name):
        problem = "its name is no text"
      yield Member(name, size, problem)
  except Exception as error:  # on damaged archives these libraries raise nearly anything
    raise _damaged(path, error) from error


def _zip_members(path: Path) -> Iterator[tuple[str, int, str]]:
  whole = path.stat().st_size
  with zipfile.ZipFile(path) as archive:
    for info in archive.infolist():
      if info.filename.endswith("/"):  # is_dir() fails on an empty name
        continue
      problem = ""
      if stat.S_ISLNK(info.external_attr >> 16):
        problem = "a link"
      elif info.flag_bits & 1:
        problem = "encrypted"
      elif info.file_size > max(_SMALL, _MAX_RATIO * min(info.compress_size, whole)):
        problem = f"would inflate {info.compress_size} bytes to {info.file_size}"
      yield info.filename, info.file_size, problem


def _tar_members(path: Path) -> Iterator[tuple[str, int, str]]:
  total, limit = 0, max(1 << 30, _MAX_RATIO * path.stat().st_size)
  with _open_tar(path) as (archive, metered):
    for info in archive:
      metered.left = _MAX_HEADER
      total += info.size
      if total > limit:  # to go on would mean to inflate it
        raise tarfile.TarError(f"it would inflate to more than {limit} bytes")
      if not info.isdir():
        yield info.name, info.size, "" if _is_plain(info) else "a link, device or sparse file"


class _Metered:
  """A tar's bytes, so many at a time: tarfile reads whatever a header claims to be a name."""

  def __init__(self, file: Any):
    self._file, self.left = file, _MAX_HEADER
    self.seek, self.tell = file.seek, file.tell

  def read(self, size: int) -> bytes:
    if not 0 <= size <= self.left:
      raise tarfile.ReadError(f"a header of more than {_MAX_HEADER} bytes")
    self.left -= size
    return self._file.read(size)


@contextlib.contextmanager
def _open_tar(path: Path) -> Iterator[tuple[tarfile.TarFile, _Metered]]:
  with open(path, "rb") as file:
    start = file.read(6)
  unpack = next((unpack for magic, unpack in _PACKED.items() if start.startswith(magic)), open)
  with unpack(path, "rb") as file:
    metered: Any = _Metered(file)
    with tarfile.open(fileobj=metered, mode="r:") as archive:
      yield archive, metered


def _is_plain(info: tarfile.TarInfo) -> bool:
  return info.isreg() and not info.issparse()


def read_members(path: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes, str]]:
  """(name, data, problem) of members: of a zip in the order given, of a tar in its own, in one go.

  Raises:
    ValueError: a tar is cut short. A member of a zip that is damaged comes with a problem.
  """
  if path.name.lower().endswith(_ZIP):
    with zipfile.ZipFile(path) as archive:
      # Of members with one name the first, which is the one that was looked at.
      infos = {info.filename: info for info in reversed(archive.infolist())}
      for name in names:
        try:
          # Stops at the size that the listing gave, whatever the data says.
          data, problem = archive.read(infos[name]), ""
        except Exception as error:
          data, problem = b"", f"can't be read ({error})"
        yield name, data, problem
    return
  wanted = set(names)
  try:
    with _open_tar(path) as (archive, metered):
      for info in archive:
        metered.left = _MAX_HEADER
        if info.name in wanted and _is_plain(info) and (file := archive.extractfile(info)):
          wanted.remove(info.name)
          metered.left += info.size
          yield info.name, file.read(), ""
        if not wanted:
          return
  except Exception as error:
    raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
  what = str(error) or type(error).__name__
  return ValueError(f"{path}: no whole archive ({what}); copy or download it again")
