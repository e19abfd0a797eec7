"""Results on disk: whole or not at all, and found again by the run that made them."""

import io
import json
import os
import pathlib
import tempfile
import zipfile
from typing import Any

import numpy as np

from sane_jax.report import PairView


def writable_folder(path: pathlib.Path) -> pathlib.Path:
  """The folder, made if need be.

  Raises:
    OSError: it can't be made or written; says where, and what to give instead.
  """
  try:
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
      pass
  except OSError as error:
    raise OSError(
      f"can't write to {path}: {error.strerror}; give a folder that can be written with"
      " --config.workdir=FOLDER"
    ) from error
  return path


def write_bytes(path: pathlib.Path, data: bytes) -> None:
  """Writes a file so that whoever looks finds the old one or the new one, never half of it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(handle, "wb") as file:
      file.write(data)
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


def write_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """The same for named arrays, as a compressed .npz."""
  buffer = io.BytesIO()
  np.savez_compressed(buffer, allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]
  write_bytes(path, buffer.getvalue())


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray] | None:
  """What `write_arrays` wrote; None where there is none, or nothing that can be read."""
  try:
    with np.load(path, allow_pickle=False) as file:
      return {name: file[name] for name in file.files}
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    return None


def save_view(path: pathlib.Path, view: PairView) -> None:
  """Keeps an explained pair."""
  fields = view._asdict()
  arrays = {k: v for k, v in fields.items() if isinstance(v, np.ndarray)}
  rest = {k: v for k, v in fields.items() if k not in arrays}
  text = json.dumps(rest, default=list).encode()
  write_arrays(path, {**arrays, "_text": np.frombuffer(text, np.uint8)})


def load_view(path: pathlib.Path) -> PairView | None:
  """A pair that was explained before, or None."""
  arrays = read_arrays(path)
  if arrays is None or "_text" not in arrays:
    return None
  fields: dict[str, Any] = {**json.loads(arrays.pop("_text").tobytes()), **arrays}
  return PairView(**fields)
