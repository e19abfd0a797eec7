"""Files that are whole or not there."""

import contextlib
import errno
import os
import pathlib
import re
import stat
import tempfile
from collections.abc import Iterator


def is_text(name: str) -> bool:
  """Whether a name can be written; bytes that are no UTF-8 stand in it as lone surrogates."""
  try:
    name.encode()
  except UnicodeEncodeError:
    return False
  return True


def printable(text: str) -> str:
  """Text for a terminal, which obeys control characters: names of files may hold any."""
  text = text.encode("utf-8", "replace").decode()
  return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "?", text)


def check_regular(path: str | os.PathLike[str]) -> None:
  """Raises OSError where there is no file, or a folder, a pipe or a device: these never end."""
  mode = os.stat(path).st_mode
  if stat.S_ISDIR(mode):
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
  if not stat.S_ISREG(mode):
    raise OSError(errno.EINVAL, "a pipe or a device; give a file", os.fspath(path))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
  """A file's content.

  Raises:
    OSError: it can't be read, or is a folder, a pipe or a device.
  """
  check_regular(path)
  return pathlib.Path(path).read_bytes()


def write_bytes(path: pathlib.Path, data: bytes, *, flush: bool = True) -> None:
  """Writes a file so that whoever looks finds the old one or the new one, never half of it.

  Args:
    flush: waits until it is on the disk; without that a power cut may lose it, a kill does not.

  Raises:
    OSError: the disk is full, or the folder can't be written; says how to go on.
  """
  with naming_failures(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
      with os.fdopen(handle, "wb") as file:
        file.write(data)
        if flush:
          file.flush()
          os.fsync(file.fileno())
      os.chmod(name, 0o666 & ~_umask())
      os.replace(name, path)
    except BaseException:
      with contextlib.suppress(OSError):
        os.unlink(name)
      raise


@contextlib.contextmanager
def naming_failures(path: pathlib.Path) -> Iterator[None]:
  """Says of an OSError within what could not be written, and how to go on."""
  try:
    yield
  except OSError as error:
    raise OSError(
      f"{path} could not be written: {error.strerror or error}. What was written before is kept;"
      " make room, or mend the folder, and run the same again"
    ) from error


def _umask() -> int:
  current = os.umask(0)
  os.umask(current)
  return current
