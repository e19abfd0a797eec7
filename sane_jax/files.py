"""Files that are whole or not there."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator


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
