"""Results on disk: whole or not at all, and found again by the run that made them."""

import io
import math
import pathlib
import zipfile

import numpy as np

from sane_jax.runs import files

# Of what a file of arrays inflates to: this many bytes, or so many times its own.
_MAX_INFLATED, _MAX_RATIO = 1 << 30, 100


def write_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """The same for named arrays, as a compressed .npz."""
  if objects := [name for name, array in arrays.items() if np.asarray(array).dtype.hasobject]:
    raise TypeError(f"{path}: {', '.join(objects)} would have to be pickled; give numbers or texts")
  buffer = io.BytesIO()
  # Older NumPy takes allow_pickle for the name of an array.
  np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
  files.write_bytes(path, buffer.getvalue())


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray] | None:
  """What `write_arrays` wrote; None where there is none, or nothing that can be read."""
  try:
    data = files.read_bytes(path)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
      members = archive.infolist()
      inflated = sum(member.file_size for member in members)
      if inflated > max(_MAX_INFLATED, _MAX_RATIO * len(data)):
        return None
      return {m.filename.removesuffix(".npy"): _read_array(archive, m) for m in members}
  except Exception:  # on damaged files zipfile and NumPy raise nearly anything
    return None


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
  """A member, unless it claims more than it has: NumPy allocates first and reads then."""
  with archive.open(member) as file:
    version = np.lib.format.read_magic(file)
    read = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, _, dtype = read[version](file)
    if math.prod(shape) * dtype.itemsize > member.file_size:
      raise ValueError(f"{member.filename} claims the shape {shape}")
  with archive.open(member) as file:
    return np.lib.format.read_array(file, allow_pickle=False)
