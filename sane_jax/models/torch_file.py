"""Reads checkpoints of `torch.save` without torch and without running code from them."""

import collections
import io
import math
import os
import pickle
import re
import reprlib
import struct
import zipfile
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np

from sane_jax.runs import files

_ZIP_START = b"PK\x03\x04"
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_DTYPES = {
  "DoubleStorage": np.dtype("<f8"),
  "FloatStorage": np.dtype("<f4"),
  "HalfStorage": np.dtype("<f2"),
  "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "LongStorage": np.dtype("<i8"),
  "IntStorage": np.dtype("<i4"),
  "ShortStorage": np.dtype("<i2"),
  "CharStorage": np.dtype("i1"),
  "ByteStorage": np.dtype("u1"),
  "BoolStorage": np.dtype("?"),
}
_MAX_EXPANDED = 1 << 26  # bytes of tensors beyond their storages, or 8 times the file
_show = reprlib.repr  # a few bytes of shared tuples may have a text without end
_NUMPY_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|c8|c16")


# Named tuples have no attributes that a pickle's BUILD instruction could overwrite.
class _Storage(NamedTuple):
  key: str
  kind: str  # a key of _DTYPES
  size: int  # in elements


class _Tensor(NamedTuple):
  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]  # in elements, as torch counts


class _Token(NamedTuple):
  """A global that is only ever an argument, such as numpy.ndarray."""

  name: str


# What NumPy's pickles build in two steps, REDUCE and BUILD. With __setstate__, BUILD sets no
# attribute: it calls this, which looks at everything it is given.
class _Dtype:
  """numpy.dtype(name, align, copy) and its state, of plain numbers alone."""

  def __init__(self, name: Any, align: Any = False, copy: Any = False):
    if not isinstance(name, str) or not _NUMPY_DTYPE.fullmatch(name):
      raise ValueError(
        f"a NumPy array or scalar of type {_show(name)}, which is not of plain numbers"
      )
    self.dtype = np.dtype(name)

  def __setstate__(self, state: Any) -> None:
    match state:
      case (int(), "<" | ">" | "|" | "=" as order, None, None, None, *_):
        self.dtype = self.dtype.newbyteorder(order)
      case _:
        raise ValueError(f"the state {_show(state)} of a NumPy type is not of plain numbers")


class _Array:
  """A NumPy array or scalar: the bytes come with the arguments, or afterwards as the state."""

  def __init__(self):
    self.value: Any = None

  def fill(self, dtype: Any, data: Any, shape: Any, order: Literal["C", "F"]) -> "_Array":
    data = data.encode("latin1") if isinstance(data, str) else data  # as Python 2 wrote it
    if not (
      isinstance(dtype, _Dtype)
      and isinstance(data, bytes)
      and isinstance(shape, tuple)
      and all(type(n) is int and n >= 0 for n in shape)
      and math.prod(shape) * dtype.dtype.itemsize == len(data)
    ):
      raise ValueError(f"a NumPy array of shape {_show(shape)} does not have the bytes for it")
    self.value = np.frombuffer(data, dtype.dtype).reshape(shape, order=order)
    return self

  def __setstate__(self, state: Any) -> None:
    match state:
      case (int(), shape, dtype, bool() | int() as fortran, data):
        self.fill(dtype, data, shape, "F" if fortran else "C")
      case _:
        raise ValueError(f"the state {_show(state)} of a NumPy array is not one that NumPy writes")


def _numpy_array(kind: Any, shape: Any, code: Any) -> _Array:
  return _Array()


def _numpy_scalar(dtype: Any, data: Any) -> _Array:
  array = _Array().fill(dtype, data, (), "C")
  array.value = array.value[()]
  return array


def _encode(text: Any, encoding: Any) -> bytes:
  """How Python 3 writes bytes for readers of Python 2."""
  if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
    raise ValueError(f"bytes in the encoding {_show(encoding)}; latin1 is what pickles have")
  return text.encode("latin1")


def _with_plain_keys(load: Callable[[Any], None], keys: slice) -> Callable[[Any], None]:
  """The instruction, for keys that are numbers and strings: others may take forever to hash."""

  def run(unpickler: Any) -> None:
    for key in unpickler.stack[keys]:
      _leaf(key)
    load(unpickler)

  return run


def _plain_items(items: Any) -> Any:
  """Keys, or pairs of key and value, of which the keys are plain."""
  if not isinstance(items, list | tuple):
    raise ValueError(f"a set or dict of a {type(items).__name__}")
  for item in items:
    _leaf(item[0] if isinstance(item, list | tuple) and len(item) == 2 else item)
  return items


_KEYS = {
  pickle.SETITEM: slice(-2, -1), pickle.SETITEMS: slice(None, None, 2),
  pickle.DICT: slice(None, None, 2), pickle.ADDITEMS: slice(None), pickle.FROZENSET: slice(None),
}  # fmt: skip


# The unpickler in Python: the one in C allocates gigabytes for a damaged memo index.
class _RestrictedUnpickler(pickle._Unpickler):
  """Knows the globals that tensors in plain containers need, and refuses every other one."""

  dispatch = pickle._Unpickler.dispatch | {
    code[0]: _with_plain_keys(pickle._Unpickler.dispatch[code[0]], keys)
    for code, keys in _KEYS.items()
  }

  def __init__(self, file: io.BytesIO):
    # Strings of Python 2 were bytes, and NumPy's numbers in them are; latin1 keeps each byte.
    super().__init__(file, encoding="latin1")
    self.storages: dict[str, _Storage] = {}

    # New functions for each file: what a pickle sets on them is gone with the file.
    def rebuild_tensor(storage, offset, shape, strides, requires_grad, hooks, metadata=None):
      if metadata:
        raise ValueError(f"a tensor with metadata {_show(metadata)} (conjugate or negative bit)")
      return _Tensor(storage, offset, shape, strides)

    def rebuild_old_tensor(storage, offset, shape, strides):  # of torch < 0.4
      return _Tensor(storage, offset, shape, strides)

    def rebuild_parameter(data, requires_grad, hooks):
      return data

    self._allowed = {f"torch.{kind}": kind for kind in _DTYPES} | {
      "collections.OrderedDict": lambda items=(): collections.OrderedDict(_plain_items(items)),
      "torch._utils._rebuild_tensor_v2": rebuild_tensor,
      "torch._utils._rebuild_tensor": rebuild_old_tensor,
      "torch._utils._rebuild_parameter": rebuild_parameter,
      "_codecs.encode": lambda text, encoding: _encode(text, encoding),
      "numpy.dtype": lambda *args: _Dtype(*args),
      "numpy.ndarray": _Token("numpy.ndarray"),
    }
    for core in ("numpy.core", "numpy._core"):  # before NumPy 2, and since
      self._allowed[f"{core}.multiarray.scalar"] = lambda *args: _numpy_scalar(*args)
      self._allowed[f"{core}.multiarray._reconstruct"] = lambda *args: _numpy_array(*args)
    for builtins in ("builtins", "__builtin__"):
      self._allowed[f"{builtins}.set"] = lambda items=(): set(_plain_items(items))
      self._allowed[f"{builtins}.bytes"] = lambda: b""

  def find_class(self, module: str, name: str) -> Any:
    if f"{module}.{name}" not in self._allowed:
      raise ValueError(
        f"its pickle asks for the global {module}.{name}, which is refused; no code was run. "
        "Where the file is trusted, torch.save(model.state_dict(), path) writes one without it"
      )
    return self._allowed[f"{module}.{name}"]

  def persistent_load(self, pid: Any) -> _Storage:
    match pid:
      case ("storage", str(kind), str(key), _, int(size), *view) if kind in _DTYPES:
        storage = _Storage(key, kind, size)
      case _:
        raise ValueError(f"the storage record {_show(pid)} is not one that torch.save writes")
    if view not in ([], [None]):
      raise ValueError(f"storage {key!r} is a view of another one; save it again with torch")
    if size < 0 or self.storages.setdefault(key, storage) != storage:
      raise ValueError(f"storage {key!r} has a negative size or two descriptions")
    return storage


def _load_zip(data: bytes) -> tuple[Any, dict[_Storage, bytes]]:
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    names = archive.namelist()
    pickles = [name for name in names if name.endswith("/data.pkl")]
    # torch stores without compression; a small file that inflates is none of its files.
    if len(pickles) != 1 or any(i.compress_type != zipfile.ZIP_STORED for i in archive.infolist()):
      raise ValueError("torch.save writes a zip of one data.pkl and no compression, not this one")
    if sum(info.file_size for info in archive.infolist()) > len(data):
      raise ValueError("its members overlap; no file of torch's")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in names:
      _check_little_endian(archive.read(f"{root}byteorder") == b"little")
    unpickler = _RestrictedUnpickler(io.BytesIO(archive.read(pickles[0])))
    tree = unpickler.load()
    if missing := [key for key in unpickler.storages if f"{root}data/{key}" not in names]:
      raise ValueError(f"its storages {missing} are missing; copy or download it again")
    storages = {s: archive.read(f"{root}data/{s.key}") for s in unpickler.storages.values()}
  return tree, storages


def _load_legacy(data: bytes) -> tuple[Any, dict[_Storage, bytes]]:
  file = io.BytesIO(data)
  if (head := [_RestrictedUnpickler(file).load()]) != [_LEGACY_MAGIC]:
    raise ValueError(f"it starts with {_show(head[0])}, not with torch's magic number")
  if (protocol := _RestrictedUnpickler(file).load()) != _LEGACY_PROTOCOL:
    raise ValueError(f"its protocol {_show(protocol)} is not {_LEGACY_PROTOCOL}; save it again")
  _check_little_endian(_RestrictedUnpickler(file).load()["little_endian"])
  unpickler = _RestrictedUnpickler(file)
  tree = unpickler.load()
  keys = _RestrictedUnpickler(file).load()
  if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
    raise ValueError(f"its list of storages is {_show(keys)}")
  if sorted(keys) != sorted(unpickler.storages):
    raise ValueError(f"it lists the storages {keys}, its tensors use {[*unpickler.storages]}")
  storages = {}
  for storage in map(unpickler.storages.__getitem__, keys):
    (size,) = struct.unpack("<q", file.read(8))
    storages[storage] = file.read(size * _DTYPES[storage.kind].itemsize)
  return tree, storages


def _check_little_endian(little: bool) -> None:
  if not little:
    raise ValueError("written on a big-endian machine; save it again on a little-endian one")


def _to_array(tensor: _Tensor, flat: dict[_Storage, np.ndarray]) -> np.ndarray:
  storage, offset, shape, strides = tensor
  if not (
    isinstance(storage, _Storage)
    and isinstance(shape, tuple)
    and isinstance(strides, tuple)
    and len(shape) == len(strides)
    and all(type(n) is int and n >= 0 for n in (offset, *shape, *strides))
  ):
    raise ValueError(f"{_show(tuple(tensor))} has no valid storage, offset, shape or strides")
  if 0 in shape:
    return np.empty(shape, flat[storage].dtype)
  last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
  if last >= storage.size:
    raise ValueError(f"{_show(tuple(tensor))} reaches element {last}, outside its storage")
  values = flat[storage][offset:]
  return np.lib.stride_tricks.as_strided(values, shape, [s * values.itemsize for s in strides])


def _to_arrays(node: Any, flat: dict[_Storage, np.ndarray], done: dict[int, Any]) -> Any:
  """Copies the containers with arrays in place of tensors; `done` keeps shared nodes shared."""
  if id(node) in done:
    return done[id(node)]
  if isinstance(node, _Tensor):
    out = _to_array(node, flat)
  elif isinstance(node, dict):
    # dict.items, since a pickle can shadow an OrderedDict's own methods.
    out = {_leaf(key): _to_arrays(value, flat, done) for key, value in dict.items(node)}
  elif isinstance(node, _Array):
    if (out := node.value) is None:
      raise ValueError("it holds a NumPy array whose bytes are missing")
  elif type(node) is set:
    out = {_leaf(value) for value in node}
  elif type(node) in (list, tuple):
    out = type(node)(_to_arrays(value, flat, done) for value in node)
  else:
    out = _leaf(node)
  done[id(node)] = out
  return out


def _leaf(node: Any) -> Any:
  if node is not None and type(node) not in (bool, int, float, complex, str, bytes):
    raise ValueError(f"it holds a {type(node).__name__}, neither a plain value nor a container")
  return node


def read_torch_file(path: str | os.PathLike[str]) -> Any:
  """What `torch.save` wrote to `path`, each tensor a numpy array.

  Reads the zip format of torch >= 1.6 and the older stream. The pickle inside may use the few
  globals that tensors, parameters and NumPy's numbers need; nothing else is looked up, imported or
  called.

  Args:
    path: a checkpoint, e.g. of `torch.save(model.state_dict(), path)`.

  Returns:
    The containers saved (dicts in their order) with a read-only array for each tensor, bit for
    bit and of any strides; bfloat16 becomes `ml_dtypes.bfloat16`. NumPy's scalars and arrays of
    numbers come back as they were.

  Raises:
    ValueError: the file is truncated, not torch's, or holds anything but tensors, numbers and
      strings in dicts, lists, tuples and sets. The message names the first thing refused.
    OSError: the file cannot be opened.
  """
  data = files.read_bytes(files.at(path))
  try:
    tree, storages = (_load_zip if data.startswith(_ZIP_START) else _load_legacy)(data)
    for storage, raw in storages.items():
      if len(raw) != storage.size * _DTYPES[storage.kind].itemsize:
        raise ValueError(f"{storage} has {len(raw)} bytes; copy or download the file again")
    flat = {storage: np.frombuffer(raw, _DTYPES[storage.kind]) for storage, raw in storages.items()}
    done: dict[int, Any] = {}
    out = _to_arrays(tree, flat, done)
    # A view of stride 0 is larger than its storage, and whoever copies it finds out.
    size = sum(array.nbytes for array in done.values() if isinstance(array, np.ndarray))
    if size > max(_MAX_EXPANDED, 8 * len(data)):
      raise ValueError(f"its tensors have {size} bytes, its storages fewer than {len(data)}")
    return out
  # A damaged pickle or zip raises nearly anything: EOFError, struct.error, RecursionError, ...
  except Exception as error:
    raise ValueError(
      f"{os.fspath(path)} ({len(data)} bytes) cannot be read: {type(error).__name__}: {error}. "
      "A complete file of torch.save(model.state_dict(), path) is expected: copy or download it "
      "again, or save it again from torch"
    ) from error
