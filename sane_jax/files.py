"""Files that are whole or not there."""

import os
import pathlib
import tempfile


def write_bytes(path: pathlib.Path, data: bytes, *, flush: bool = True) -> None:
  """Writes a file so that whoever looks finds the old one or the new one, never half of it.

  Args:
    flush: waits until it is on the disk; without that a power cut may lose it, a kill does not.
  """
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
    os.unlink(name)
    raise


def _umask() -> int:
  current = os.umask(0)
  os.umask(current)
  return current
