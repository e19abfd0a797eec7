"""Results on disk: whole or not at all, and found again by the run that made them."""

import io
import json
import math
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from sane_jax import files
from sane_jax.report import AttributeView, PairView, render_page

_ACTIVATION_MAP = "_activation_map_"
# Of what a file of arrays inflates to: this many bytes, or so many times its own.
_MAX_INFLATED, _MAX_RATIO = 1 << 30, 100


def writable_folder(path: pathlib.Path) -> pathlib.Path:
  """The folder, made if need be.

  Raises:
    OSError: it can't be made or written; says where, and what to give instead.
  """
  try:
    files.check_writable(path)
  except OSError as error:
    raise OSError(
      f"can't write to {path}: {error.strerror or error}; give a folder that can be written with"
      " --config.workdir=FOLDER"
    ) from error
  return path


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


def _plain(value: Any) -> Any:
  """What JSON can hold, of numpy's numbers, mappings and sequences."""
  if isinstance(value, np.generic):
    return value.item()
  return dict(value) if isinstance(value, Mapping) else list(value)


def save_view(path: pathlib.Path, view: PairView) -> None:
  """Keeps an explained pair: its arrays as they are, everything else as text."""
  fields = view._asdict()
  arrays = {k: v for k, v in fields.items() if isinstance(v, np.ndarray)}
  rest = {k: v for k, v in fields.items() if k not in arrays}
  rest["attributes"] = []
  for number, attribute in enumerate(view.attributes):
    arrays[f"{_ACTIVATION_MAP}{number}"] = np.asarray(attribute.activation_map)
    rest["attributes"].append(attribute._replace(activation_map=None)._asdict())
  text = json.dumps(rest, default=_plain).encode()
  write_arrays(path, {**arrays, "_text": np.frombuffer(text, np.uint8)})


def load_view(path: pathlib.Path) -> PairView | None:
  """A pair that was explained before; None where there is none, or none that can be shown."""
  arrays = read_arrays(path)
  if arrays is None or "_text" not in arrays:
    return None
  try:
    fields: dict[str, Any] = json.loads(arrays.pop("_text").tobytes())
    fields["attributes"] = [
      AttributeView(**{**values, "activation_map": arrays.pop(f"{_ACTIVATION_MAP}{number}")})
      for number, values in enumerate(fields.get("attributes", ()))
    ]
    fields.update(arrays)
    view = PairView(**fields)
    render_page([view], title="")  # whatever is wrong with it shows here
    return view
  except Exception:
    return None
