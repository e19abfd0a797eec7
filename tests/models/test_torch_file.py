"""The torch reader: equal to torch where torch wrote the file, and refusing everything else."""

import collections
import io
import pickle
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from sane_jax.models import torch_file

MAGIC = 0x1950A86A20F9469CFC6C
FORMATS = ("zip", "legacy")
NOT_OF_TORCH = b"\x80\x02}q\x00."  # the pickle of {}


def pickled(tree, *, legacy=False):
  """Pickle of `tree`, where `Global`, `Call` and `Storage` stand for objects of torch."""

  class Pickler(pickle._Pickler):  # the Python version lets us write any global
    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def persistent_id(self, obj):
      if isinstance(obj, Storage):  # legacy records end with the view of another storage: None
        return (*obj, None) if legacy else tuple(obj)
      return None

    def save_global_name(self, obj):
      self.write(b"c" + obj.module.encode() + b"\n" + obj.name.encode() + b"\n")

    def save_call(self, obj):
      self.save(obj.function)
      self.save(obj.args)
      self.write(pickle.REDUCE)

  Pickler.dispatch[Global] = Pickler.save_global_name
  Pickler.dispatch[Call] = Pickler.save_call
  file = io.BytesIO()
  Pickler(file, protocol=2).dump(tree)
  return file.getvalue()


class Global(collections.namedtuple("Global", "module name")):
  pass


class Call(collections.namedtuple("Call", "function args")):
  pass


class Storage(collections.namedtuple("Storage", "tag kind key location size")):
  pass


def storage(key="0", size=6, kind="FloatStorage"):
  return Storage("storage", Global("torch", kind), key, "cpu", size)


def tensor(shape=(2, 3), strides=(3, 1), offset=0, store=None, **kwargs):
  args = (store or storage(**kwargs), offset, shape, strides, False, None)
  return Call(Global("torch._utils", "_rebuild_tensor_v2"), args)


def write(path, tree, storages, file_format):
  """A checkpoint as torch writes it, from the pickled tree and {key: array}."""
  if file_format == "zip":
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr("archive/data.pkl", pickled(tree))
      archive.writestr("archive/byteorder", "little")
      for key, array in storages.items():
        archive.writestr(f"archive/data/{key}", array.tobytes())
      archive.writestr("archive/version", "3\n")
  else:
    head = [MAGIC, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    data = b"".join(pickled(part, legacy=True) for part in (*head, tree, list(storages)))
    for array in storages.values():
      data += struct.pack("<q", array.size) + array.tobytes()
    path.write_bytes(data)
  return path


VALUES = np.arange(6, dtype="<f4") - 2.5


@pytest.fixture(params=FORMATS)
def checkpoint(request, tmp_path):
  """Writes a tree to a checkpoint of either format."""

  def write_checkpoint(tree, storages=None):
    storages = {"0": VALUES} if storages is None else storages
    return write(tmp_path / "weights.pth", tree, storages, request.param)

  return write_checkpoint


# Hand-made files: no torch needed.


def test_reads_tensors_in_nested_containers(checkpoint):
  tree = {"a": tensor(), "b": [tensor((3,), (2,), 1), ("text", 1.5, None, True)], 3: {}}
  out = torch_file.read_torch_file(checkpoint(tree))
  assert list(out) == ["a", "b", 3]
  np.testing.assert_array_equal(out["a"], [[-2.5, -1.5, -0.5], [0.5, 1.5, 2.5]])
  np.testing.assert_array_equal(out["b"][0], [-1.5, 0.5, 2.5])
  assert out["a"].dtype == np.float32
  assert out["b"][1] == ("text", 1.5, None, True)
  assert out[3] == {}


@pytest.mark.parametrize(
  ("shape", "strides", "offset", "expected"),
  [
    ((3, 2), (1, 3), 0, [[-2.5, 0.5], [-1.5, 1.5], [-0.5, 2.5]]),  # transposed
    ((2, 2), (0, 1), 4, [[1.5, 2.5], [1.5, 2.5]]),  # expanded
    ((2, 2), (1, 1), 1, [[-1.5, -0.5], [-0.5, 0.5]]),  # overlapping
    ((), (), 5, 2.5),
    ((0, 4), (4, 1), 0, np.zeros((0, 4))),
    ((1, 2), (1000, 1), 4, [[1.5, 2.5]]),  # the stride of a single row leads nowhere
  ],
)
def test_views(checkpoint, shape, strides, offset, expected):
  out = torch_file.read_torch_file(checkpoint({"v": tensor(shape, strides, offset)}))["v"]
  assert out.shape == shape
  np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
  ("shape", "strides", "offset"),
  [
    ((2, 3), (3, 1), 1),  # one past the end
    ((7,), (1,), 0),
    ((2, 3), (4, 1), 0),
    ((1,), (1,), 6),
    ((), (), 6),
    ((2,), (2**62,), 0),
    ((2**62,), (1,), 0),
    ((2,), (-1,), 1),
    ((2,), (1,), -1),
    ((-1,), (1,), 0),
    ((2, 3), (1,), 0),
    ((2.0,), (1,), 0),
    ("ab", (1, 1), 0),
    ([2], [1], 0),
    (None, None, 0),
  ],
)
def test_views_outside_the_storage_are_refused(checkpoint, shape, strides, offset):
  path = checkpoint({"v": tensor(shape, strides, offset)})
  with pytest.raises(ValueError, match=r"outside its storage|no valid storage"):
    torch_file.read_torch_file(path)


@pytest.mark.parametrize(
  ("kind", "dtype"),
  [
    ("DoubleStorage", "<f8"),
    ("HalfStorage", "<f2"),
    ("BFloat16Storage", ml_dtypes.bfloat16),
    ("LongStorage", "<i8"),
    ("IntStorage", "<i4"),
    ("ShortStorage", "<i2"),
    ("CharStorage", "i1"),
    ("ByteStorage", "u1"),
    ("BoolStorage", "?"),
  ],
)
def test_types(checkpoint, kind, dtype):
  values = np.array([0, 1, 1, 0, 1, 0]).astype(dtype)
  out = torch_file.read_torch_file(checkpoint({"v": tensor(kind=kind)}, {"0": values}))["v"]
  assert out.dtype == values.dtype
  np.testing.assert_array_equal(out, values.reshape(2, 3))


def test_arrays_are_read_only_and_shared_nodes_stay_shared(checkpoint):
  shared = [tensor()]
  out = torch_file.read_torch_file(checkpoint({"a": shared, "b": shared}))
  assert out["a"] is out["b"]
  with pytest.raises(ValueError, match="read-only"):
    out["a"][0][0, 0] = 1


def run_code(path):
  """An object whose pickle creates the file `path` when an ordinary unpickler loads it."""
  return Call(Global("builtins", "open"), (str(path), "w"))


@pytest.mark.parametrize(
  ("module", "name"),
  [
    ("os", "system"),
    ("builtins", "eval"),
    ("builtins", "getattr"),
    ("torch", "load"),
    ("torch", "FloatStorage.from_file"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("torch._utils", "_rebuild_tensor_v3"),
    ("collections", "OrderedDict.__init__"),
    ("collections", "defaultdict"),
    ("numpy", "ndarray.__new__"),
    ("numpy", "fromfile"),
    ("numpy.core.multiarray", "frombuffer"),
    ("numpy._core.multiarray", "scalar.__self__"),
    ("_codecs", "decode"),
    ("builtins", "frozenset"),
    ("__main__", "Net"),
  ],
)
def test_other_globals_are_refused_by_name(checkpoint, module, name):
  with pytest.raises(ValueError, match=f"{module}.{name}.*refused; no code was run"):
    torch_file.read_torch_file(checkpoint({"v": tensor(), "bad": Global(module, name)}))


def test_code_in_a_pickle_is_not_run(checkpoint, tmp_path):
  mark = tmp_path / "mark"
  with open(tmp_path / "plain.pkl", "wb") as file:
    file.write(pickled(run_code(mark)))
  with open(tmp_path / "plain.pkl", "rb") as file:
    pickle.load(file).close()
  assert mark.exists()  # so the attack works on an ordinary unpickler
  mark.unlink()
  for path in (checkpoint({"v": tensor(), "bad": run_code(mark)}), tmp_path / "plain.pkl"):
    with pytest.raises(ValueError, match=r"builtins\.open.*refused; no code was run"):
      torch_file.read_torch_file(path)
  assert not mark.exists()


def test_attributes_set_by_a_pickle_stay_in_that_file(checkpoint):
  # BUILD with a pair calls setattr for the second: here on the rebuilding function itself.
  function = Global("torch._utils", "_rebuild_tensor_v2")
  stream = pickled(function)[:-1] + pickled((None, {"__defaults__": (1, 2, 3)}))[2:-1] + b"b."
  unpickler = torch_file._RestrictedUnpickler(io.BytesIO(stream))
  assert unpickler.load().__defaults__ == (1, 2, 3)
  out = torch_file.read_torch_file(checkpoint({"v": tensor()}))["v"]
  np.testing.assert_array_equal(out.ravel(), VALUES)


def test_shadowed_methods_of_a_dict_are_not_called(tmp_path):
  # BUILD gives the OrderedDict attributes that hide its methods.
  empty = pickled(Call(Global("collections", "OrderedDict"), ()))[:-1]
  stream = empty + pickled({"items": 1, "keys": 2})[2:-1] + b"b."
  path = tmp_path / "weights.pth"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", stream)
  assert torch_file.read_torch_file(path) == {}


@pytest.mark.parametrize(
  ("tree", "match"),
  [
    (tensor(store=storage()._replace(tag="module")), "storage record"),
    (tensor(store=storage()._replace(kind="FloatTensor")), "storage record"),
    (tensor(store=storage()._replace(size="6")), "storage record"),
    (tensor(store=storage()._replace(size=-6)), "negative size"),
    ([tensor(), tensor(store=("0", "FloatStorage", 6))], "no valid storage"),
    ([tensor(), tensor(size=5, shape=(5,), strides=(1,))], "two descriptions"),
    ([tensor(), tensor(kind="IntStorage")], "two descriptions"),
    (storage(), "holds a _Storage"),
    (Call(Global("torch", "FloatStorage"), ()), "TypeError"),
    (Call(Global("torch._utils", "_rebuild_tensor_v2"), (storage(),)), "TypeError"),
    ({(1, 2): tensor()}, "holds a tuple"),
  ],
)
def test_malformed_records_are_refused(checkpoint, tree, match):
  with pytest.raises(ValueError, match=rf"weights\.pth .*cannot be read: .*{match}"):
    torch_file.read_torch_file(checkpoint({"v": tree}))


def test_views_of_storages_are_refused():
  unpickler = torch_file._RestrictedUnpickler(io.BytesIO())
  record = ("storage", "FloatStorage", "0", "cpu", 6)
  assert unpickler.persistent_load(record) == unpickler.persistent_load((*record, None))
  with pytest.raises(ValueError, match="view of another one"):
    unpickler.persistent_load((*record, ("1", 0, 6)))


@pytest.mark.parametrize(
  ("head", "match"),
  [
    ((MAGIC + 1, 1001, {"little_endian": True}), "magic number"),
    ((MAGIC, 1000, {"little_endian": True}), "protocol 1000 is not 1001"),
    ((MAGIC, 1001, {"little_endian": False}), "big-endian"),
    ((MAGIC, 1001, {}), "cannot be read"),
  ],
)
def test_heads_of_the_older_format(tmp_path, head, match):
  path = tmp_path / "weights.pth"
  path.write_bytes(b"".join(map(pickled, (*head, {}, []))))
  with pytest.raises(ValueError, match=match):
    torch_file.read_torch_file(path)


def test_negative_and_conjugate_views_are_refused(checkpoint):
  # Their bytes are not their values.
  view = tensor()
  view = view._replace(args=(*view.args, {"neg": True}))
  with pytest.raises(ValueError, match="conjugate or negative"):
    torch_file.read_torch_file(checkpoint({"v": view}))


def test_missing_storage(checkpoint):
  with pytest.raises(ValueError, match=r"storages \['0'\] are missing|lists the storages \[\]"):
    torch_file.read_torch_file(checkpoint({"v": tensor()}, {}))


@pytest.mark.parametrize("size", [0, 5, 7])
def test_storage_of_another_size(checkpoint, size):
  path = checkpoint({"v": tensor(shape=(1,), strides=(1,))}, {"0": np.zeros(size, "<f4")})
  with pytest.raises(ValueError, match=r"has \d+ bytes"):
    torch_file.read_torch_file(path)


def test_deep_and_cyclic_containers_are_refused(checkpoint):
  deep = []
  for _ in range(300):
    deep = [deep]
  assert torch_file.read_torch_file(checkpoint({"v": deep}, {})) == {"v": deep}
  stream = b"\x80\x02]q\x00h\x00a."  # l = []; l.append(l)
  path = checkpoint({}, {})
  if zipfile.is_zipfile(path):
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr("archive/data.pkl", stream)
  else:
    path.write_bytes(path.read_bytes().replace(NOT_OF_TORCH, stream))
  with pytest.raises(ValueError, match="RecursionError"):
    torch_file.read_torch_file(path)


@pytest.mark.parametrize("what", ["compressed", "two pickles", "no pickle", "big-endian"])
def test_zip_files_of_others_are_refused(tmp_path, what):
  path = tmp_path / "weights.pth"
  compression = zipfile.ZIP_DEFLATED if what == "compressed" else zipfile.ZIP_STORED
  with zipfile.ZipFile(path, "w", compression) as archive:
    if what != "no pickle":
      archive.writestr("archive/data.pkl", NOT_OF_TORCH)
    if what == "two pickles":
      archive.writestr("other/data.pkl", NOT_OF_TORCH)
    archive.writestr("archive/byteorder", "big" if what == "big-endian" else "little")
  match = "big-endian" if what == "big-endian" else r"one data\.pkl and no compression"
  with pytest.raises(ValueError, match=match):
    torch_file.read_torch_file(path)


@pytest.mark.parametrize(
  "data", [b"", b"\x89PNG\r\n", b"PK\x03\x04", NOT_OF_TORCH, b"N.", b"\0" * 99]
)
def test_other_files_are_refused(tmp_path, data):
  path = tmp_path / "weights.pth"
  path.write_bytes(data)
  with pytest.raises(ValueError, match=rf"weights\.pth \({len(data)} bytes\) cannot be read"):
    torch_file.read_torch_file(path)


def test_a_damaged_memo_index_allocates_nothing(tmp_path):
  path = tmp_path / "weights.pth"
  path.write_bytes(b"\x80\x02Nr\xff\xff\xff\x00.")  # LONG_BINPUT 2**24 - 1
  tracemalloc.start()
  with pytest.raises(ValueError, match="starts with None"):
    torch_file.read_torch_file(path)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 1e7


def test_no_file(tmp_path):
  with pytest.raises(FileNotFoundError):
    torch_file.read_torch_file(tmp_path / "none.pth")


def test_truncated_at_every_length(checkpoint):
  path = checkpoint({"a": tensor(), "b": [tensor((3,), (2,), 1)]})
  data = path.read_bytes()
  torch_file.read_torch_file(path)
  for length in range(len(data)):
    path.write_bytes(data[:length])
    with pytest.raises(ValueError, match="cannot be read"):
      torch_file.read_torch_file(path)


def test_damaged_bytes_raise_value_errors_only(checkpoint):
  path = checkpoint({"a": tensor(), "b": [tensor((3,), (2,), 1)]})
  data = path.read_bytes()
  rng = np.random.default_rng(0)
  refused = 0
  for position in rng.integers(len(data), size=500):
    path.write_bytes(data[:position] + rng.bytes(1) + data[position + 1 :])
    try:
      torch_file.read_torch_file(path)
    except ValueError:
      refused += 1
  assert 100 < refused < 500


# NumPy's numbers and arrays: written by NumPy's own pickling, in protocol 2 as torch.save has it.


NUMPY = {
  "float": np.float64(0.875),
  "half": np.float16(-2.5),
  "int": np.int64(-7),
  "bool": np.bool_(True),
  "complex": np.complex64(1 + 2j),
  "big": np.array(3.25, ">f8")[()],
  "array": np.arange(12, dtype=np.int16).reshape(3, 4),
  "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
  "big array": np.arange(3, dtype=">i4"),
  "empty": np.zeros((0, 3), np.float32),
  "bytes": b"\x00\xff text",
  "no bytes": b"",
  "set": {1, "two"},
}


def test_numbers_and_arrays_of_numpy(checkpoint):
  # The same array twice is pickled once, with its type: shared nodes stay shared.
  out = torch_file.read_torch_file(checkpoint({**NUMPY, "again": NUMPY["array"]}, {}))
  assert list(out) == [*NUMPY, "again"]
  for name, value in NUMPY.items():
    np.testing.assert_array_equal(out[name], value)
    assert type(out[name]) is type(value)
    assert getattr(out[name], "dtype", None) == getattr(value, "dtype", None)
  assert out["again"] is out["array"]


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_numpy_of_either_layout(tmp_path, core):
  ours = np.float64.__reduce__(np.float64(1))[0].__module__.encode()
  stream = pickled({"a": np.float64(0.875), "b": np.arange(3.0)}).replace(
    ours, f"{core}.multiarray".encode()
  )
  assert core.encode() in stream
  path = tmp_path / "weights.pth"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", stream)
  out = torch_file.read_torch_file(path)
  assert out["a"] == 0.875
  np.testing.assert_array_equal(out["b"], [0, 1, 2])


def test_numbers_as_python_2_wrote_them(tmp_path):
  # Strings there are bytes: SHORT_BINSTRING (U), here with bytes that are no UTF-8.
  def text(data):
    return b"U" + bytes([len(data)]) + data

  dtype = b"cnumpy\ndtype\n(" + text(b"f8") + b"K\x00K\x01tR"
  dtype += b"(K\x03" + text(b"<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
  scalar = b"cnumpy.core.multiarray\nscalar\n(" + dtype + text(struct.pack("<d", -0.1)) + b"tR"
  stream = b"\x80\x02}(" + text(b"best_acc") + scalar + b"u."
  assert pickle.loads(stream, encoding="latin1") == {"best_acc": -0.1}
  path = tmp_path / "weights.pth"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", stream)
  assert torch_file.read_torch_file(path) == {"best_acc": -0.1}


def dtype_of(name="f8"):
  return Call(Global("numpy", "dtype"), (name, False, True))


def scalar_of(dtype, data):
  return Call(Global("numpy.core.multiarray", "scalar"), (dtype, data))


EMPTY = Call(
  Global("numpy.core.multiarray", "_reconstruct"), (Global("numpy", "ndarray"), (0,), b"b")
)


@pytest.mark.parametrize(
  ("tree", "match"),
  [
    (scalar_of(dtype_of("O"), b"12345678"), "not of plain numbers"),
    (scalar_of(dtype_of("V8"), b"12345678"), "not of plain numbers"),
    (scalar_of(dtype_of("f8,f8"), b"1234567812345678"), "not of plain numbers"),
    (scalar_of(dtype_of(["f8"]), b"12345678"), "not of plain numbers"),
    (scalar_of(dtype_of(), b"1234567"), "does not have the bytes"),
    (scalar_of(dtype_of(), 8), "does not have the bytes"),
    (scalar_of("f8", b"12345678"), "does not have the bytes"),
    (EMPTY, "bytes are missing"),
    (Global("numpy", "ndarray"), "holds a _Token"),
    (dtype_of(), "holds a _Dtype"),
    (Call(Global("__builtin__", "bytes"), (10**12,)), "TypeError"),
    (Call(Global("_codecs", "encode"), ("zz", "hex")), "latin1"),
  ],
)
def test_malformed_numpy_is_refused(checkpoint, tree, match):
  with pytest.raises(ValueError, match=rf"cannot be read: .*{match}"):
    torch_file.read_torch_file(checkpoint({"v": tree}, {}))


@pytest.mark.parametrize(
  "state",
  [
    (1, (3,), dtype_of("f4"), False, b"1234"),
    (1, (-1, -1), dtype_of("f4"), False, b"1234"),
    (1, (2**40,), dtype_of("f4"), False, b""),
    (1, [1], dtype_of("f4"), False, b"1234"),
    (1, (1,), "f4", False, b"1234"),
    {"value": 1},
    (None, {"fill": 1}),
  ],
)
def test_malformed_states_of_arrays_are_refused(tmp_path, state):
  stream = pickled(EMPTY)[:-1] + pickled(state)[2:-1] + b"b."
  path = tmp_path / "weights.pth"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", stream)
  with pytest.raises(ValueError, match=r"does not have the bytes|not one that NumPy writes"):
    torch_file.read_torch_file(path)


def test_tensors_of_the_first_torch(checkpoint):
  old = Call(Global("torch._utils", "_rebuild_tensor"), (storage(), 1, (2, 2), (3, 1)))
  out = torch_file.read_torch_file(checkpoint({"v": old}))["v"]
  np.testing.assert_array_equal(out, [[-1.5, -0.5], [1.5, 2.5]])


# Files written by torch.


@pytest.fixture
def torch():
  return pytest.importorskip("torch")


@pytest.fixture(params=FORMATS)
def saved(request, torch, tmp_path):
  """Writes by torch itself, in either format."""

  def save(tree):
    path = tmp_path / "weights.pth"
    torch.save(tree, path, _use_new_zipfile_serialization=request.param == "zip")
    return path

  return save


def assert_same(torch, ours, theirs):
  if isinstance(theirs, torch.Tensor):
    assert ours.shape == tuple(theirs.shape)
    if theirs.dtype == torch.bfloat16:
      assert ours.dtype == ml_dtypes.bfloat16
      ours, theirs = ours.astype(np.float32), theirs.float()
    theirs = theirs.detach().numpy()
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)
  elif isinstance(theirs, dict):
    assert list(ours) == list(theirs)
    for key in theirs:
      assert_same(torch, ours[key], theirs[key])
  elif isinstance(theirs, (list, tuple)):
    assert type(ours) is type(theirs)
    for one, other in zip(ours, theirs, strict=True):
      assert_same(torch, one, other)
  elif isinstance(theirs, np.ndarray | np.generic):
    assert type(ours) is type(theirs)
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)
  else:
    assert ours == theirs


@pytest.mark.torch
def test_torch_all_types_and_views(torch, saved):
  base = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
  tree = {
    str(dtype): (base * 10).to(dtype)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64)
  } | {
    str(dtype): (base * 10).abs().to(dtype)
    for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
  }
  tree |= {
    "transposed": base.permute(2, 0, 1),
    "slice": base[1:3, ::2, 3],
    "expanded": base[:, :1].expand(4, 7, 6),
    "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 3),
    "parameter": torch.nn.Parameter(base[0]),
    "plain": [1, "two", (3.0, None, True)],
  }
  assert_same(torch, torch_file.read_torch_file(saved(tree)), tree)


@pytest.mark.torch
def test_torch_training_checkpoint(torch, saved):
  net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
  optimizer = torch.optim.AdamW(net.parameters())
  net(torch.randn(2, 3, 5, 5)).sum().backward()
  optimizer.step()
  tree = {"epoch": 3, "model": net.state_dict(), "optimizer": optimizer.state_dict()}
  assert_same(torch, torch_file.read_torch_file(saved(tree)), tree)


@pytest.mark.torch
def test_torch_numpy_beside_the_weights(torch, saved):
  tree = {"state_dict": {"w": torch.ones(2)}, **{k: v for k, v in NUMPY.items() if k != "set"}}
  assert_same(torch, torch_file.read_torch_file(saved(tree)), tree)


@pytest.mark.torch
def test_torch_whole_module_is_refused(torch, saved):
  with pytest.raises(ValueError, match=r"torch\.nn\.modules.*refused|storage record"):
    torch_file.read_torch_file(saved(torch.nn.Linear(2, 3)))


@pytest.mark.torch
def test_torch_negative_view_is_refused(torch, saved):
  with pytest.raises(ValueError, match="conjugate or negative"):
    torch_file.read_torch_file(saved({"v": torch._neg_view(torch.ones(3))}))


@pytest.mark.torch
def test_torch_truncated(torch, saved):
  path = saved({"a": torch.arange(50.0), "b": torch.ones(2, 3)})
  data = path.read_bytes()
  for length in np.linspace(0, len(data) - 1, 100).astype(int):
    path.write_bytes(data[:length])
    with pytest.raises(ValueError, match="cannot be read"):
      torch_file.read_torch_file(path)
