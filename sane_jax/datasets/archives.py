"""Members of zip and tar archives, read one by one and never extracted to disk."""

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

_ZIP = ".zip"
SUFFIXES = (_ZIP, ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

_MAX_RATIO, _SMALL = 100, 1 << 24  # of size to compressed size, for what is larger than _SMALL
# What a damaged archive, or a file that can't be read, raises.
# RuntimeError: encrypted, though its table of contents says otherwise; packed in an unknown way.
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, RuntimeError)


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
  try:
    for name, size, problem in entries(path):
      pure = PurePosixPath(name)
      if not problem and (not name or pure.is_absolute() or ".." in pure.parts or "\\" in name):
        problem = "leads out of the archive"
      yield Member(name, size, problem)
  except DAMAGE as error:
    raise _damaged(path, error) from error


def _zip_members(path: Path) -> Iterator[tuple[str, int, str]]:
  with zipfile.ZipFile(path) as archive:
    for info in archive.infolist():
      if info.filename.endswith("/"):  # is_dir() fails on an empty name
        continue
      problem = ""
      if stat.S_ISLNK(info.external_attr >> 16):
        problem = "a link"
      elif info.flag_bits & 1:
        problem = "encrypted"
      elif info.file_size > max(_SMALL, _MAX_RATIO * info.compress_size):
        problem = f"would inflate {info.compress_size} bytes to {info.file_size}"
      yield info.filename, info.file_size, problem


def _tar_members(path: Path) -> Iterator[tuple[str, int, str]]:
  total, limit = 0, max(1 << 30, _MAX_RATIO * path.stat().st_size)
  with tarfile.open(path, "r:*") as archive:
    for info in archive:
      total += info.size
      if total > limit:  # to go on would mean to inflate it
        raise tarfile.TarError(f"it would inflate to more than {limit} bytes")
      if not info.isdir():
        yield info.name, info.size, "" if _is_plain(info) else "a link, device or sparse file"


def _is_plain(info: tarfile.TarInfo) -> bool:
  return info.isreg() and not info.issparse()


def read_members(path: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes, str]]:
  """(name, data, problem) of members: of a zip in the order given, of a tar in its own, in one go.

  Raises:
    ValueError: a tar is cut short. A member of a zip that is damaged comes with a problem.
  """
  if path.name.lower().endswith(_ZIP):
    with zipfile.ZipFile(path) as archive:
      for name in names:
        try:
          # Stops at the size that the listing gave, whatever the data says.
          data, problem = archive.read(name), ""
        except DAMAGE as error:
          data, problem = b"", f"can't be read ({error})"
        yield name, data, problem
    return
  wanted = set(names)
  try:
    with tarfile.open(path, "r:*") as archive:
      for info in archive:
        if info.name in wanted and _is_plain(info) and (file := archive.extractfile(info)):
          wanted.remove(info.name)
          yield info.name, file.read(), ""
        if not wanted:
          return
  except DAMAGE as error:
    raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
  return ValueError(f"{path}: no whole archive ({error}); copy or download it again")
