"""Pickles and what else holds arrays: instructions that act, shapes and sizes that lie."""

import contextlib
import io
import json
import pathlib
import pickle
import struct
import zipfile

import numpy as np
import safetensors.numpy
from fuzz import mutate

from sane_jax.datasets.polyvore_outfits import formats
from sane_jax.models import torch_file, weights
from sane_jax.report import AttributeView, PairView
from sane_jax.report import saved as saved_views
from sane_jax.runs import npz

_FLOATS = np.arange(12, dtype="<f4").tobytes()


def _text(value: str) -> bytes:
  data = value.encode()
  return b"X" + struct.pack("<I", len(data)) + data


def _tuple(*values: int) -> bytes:
  return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"


def tensor(shape: tuple[int, ...] = (3, 4), strides: tuple[int, ...] = (4, 1), offset: int = 0):
  """The instructions that make a tensor."""
  storage = (
    b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu") + b"K\x0ctQ"
  )
  return (
    b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K" + bytes([offset]) + _tuple(*shape)
    + _tuple(*strides) + b"\x89ccollections\nOrderedDict\n)RtR"
  )  # fmt: skip


def tree(*items: bytes) -> bytes:
  """A pickled dict of these values."""
  pairs = b"".join(_text(f"layer{i}.weight") + item for i, item in enumerate(items))
  return b"\x80\x02}(" + pairs + b"u."


def torch_zip(pickled: bytes, storage: bytes = _FLOATS) -> bytes:
  out = io.BytesIO()
  with zipfile.ZipFile(out, "w") as archive:
    archive.writestr("a/data.pkl", pickled)
    archive.writestr("a/byteorder", "little")
    archive.writestr("a/data/0", storage)
  return out.getvalue()


DEEP = b"K\x01" + b"2\x86" * 60  # a tuple of two of a tuple of two of ...: 2 to the 60 numbers
SNIPPETS = (
  b"cos\nsystem\n(S'touch pwned'\ntR", b"cposix\nsystem\n", b"cbuiltins\neval\n(S'1'\ntR",
  b"csubprocess\nPopen\n", b"(S'touch pwned'\nios\nsystem\n", b"cbuiltins\ngetattr\n", b"\x82\x01",
  b"ctorch\nload\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\ndtype\n(S'O'\ntR",
  b"cnumpy\ndtype\n(S'f4'\ntR", DEEP, DEEP + b"Q", b"}" + DEEP + b"Ns", b"\x8f(" + DEEP + b"\x90",
  b"(" + DEEP + b"\x91", b"cbuiltins\nset\n(](" + DEEP + b"etR", b"r\xff\xff\xff\xff",
  b"B\xff\xff\xff\x7fabc", b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
  b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
  b"I99999999999999999999\n", b"\x8b\xff\xff\xff\x7f", b"G\x7f\xf0\0\0\0\0\0\0", b"Pstorage\n",
  b"0", b"1",
  b"2", b"(", b"t", b"l", b"d", b"R", b"b", b"\x81", b"e", b"u", b"a", b"s", b"N", b"\x93",
  b"\x92", b"]",
  tensor((10**6, 10**6), (0, 0)), tensor((2,), (1,), 255), tensor((-1,), (1,)),
  tensor((0, 2**31 - 1), (1, 1)),
)  # fmt: skip


def _hostile_pickle(rng: np.random.Generator, data: bytes) -> bytes:
  out = bytearray(data)
  for _ in range(rng.integers(1, 4)):
    at = int(rng.integers(2, len(out)))
    out[at:at] = SNIPPETS[int(rng.integers(len(SNIPPETS)))]
  return bytes(out)


def prepare_torch(rng: np.random.Generator, folder: pathlib.Path) -> pathlib.Path:
  data = tree(tensor(), tensor((12,), (1,)), b"K\x05", b"](K\x01K\x02e")
  way = rng.random()
  if way < 0.5:
    data = _hostile_pickle(rng, data)
  elif way < 0.7:
    data = mutate.damage(rng, data, [data])
  if rng.random() < 0.2:  # the older stream
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    keys = pickle.dumps(["0"], 2) if rng.random() < 0.7 else b"\x80\x02](" + DEEP + DEEP + b"e."
    data = magic + pickle.dumps({"little_endian": True}, 2) + data + keys
    data += struct.pack("<q", int(rng.choice([12, -1, 1 << 60]))) + _FLOATS
  else:
    data = torch_zip(data, _FLOATS[: int(rng.choice([48, 48, 48, 5]))])
  if way > 0.7:
    data = mutate.damage(rng, data, [data])
  path = folder / "model.pth"
  path.write_bytes(data)
  return path


def valid_torch(folder: pathlib.Path) -> list[pathlib.Path]:
  path = folder / "seed.pth"
  path.write_bytes(torch_zip(tree(tensor())))
  return [path]


def read_torch(path: pathlib.Path) -> None:
  torch_file.read_torch_file(path)
  with contextlib.suppress(ValueError):  # few are networks
    weights.convert(path)


# --- type spaces ----------------------------------------------------------------------------------


def prepare_typespaces(rng: np.random.Generator, folder: pathlib.Path) -> pathlib.Path:
  pairs = [("tops", "shoes"), ("bags", "tops")]
  data = pickle.dumps(pairs, protocol=int(rng.integers(0, 6)))
  change = _hostile_pickle(rng, data) if rng.random() < 0.6 else mutate.damage(rng, data, [data])
  path = folder / "typespaces.p"
  path.write_bytes(change)
  return path


def valid_typespaces(folder: pathlib.Path) -> list[pathlib.Path]:
  path = folder / "seed.p"
  path.write_bytes(pickle.dumps([("tops", "shoes")], 2))
  return [path]


def read_typespaces(path: pathlib.Path) -> None:
  pairs = formats.parse_typespaces(path.read_bytes(), "typespaces.p")
  assert all(isinstance(name, str) for pair in pairs for name in pair)


# --- model files ----------------------------------------------------------------------------------

_DESCRIPTION = {
  "version": 1, "kind": "resnet", "stage_sizes": [1], "block": "basic", "width": 4, "stem": "small",
  "num_classes": 0, "dtype": "float32",
}  # fmt: skip
_LIES = (
  None, -1, 0, 1, 10**12, 1e308, "x", [], [10**9], [1] * 5000, [-3], {}, [[0]], True, "resnet",
  "similarity", "attribute", "bfloat16", [None], [1e9],
)  # fmt: skip


def _model_file(description: dict) -> bytes:
  model = weights.make_model(_DESCRIPTION)
  flat = weights._flatten(weights.init_variables(model, 0))
  return safetensors.numpy.save(flat, metadata={"sane_jax": json.dumps(description)})


def prepare_weights(rng: np.random.Generator, folder: pathlib.Path) -> pathlib.Path:
  description = dict(_DESCRIPTION)
  if rng.random() < 0.6:
    fields = [*description, "embedding_size", "conditions", "type_names", "attribute_names"]
    fields += ["feature_size", "num_conditions", "text_size"]
    for _ in range(rng.integers(1, 4)):
      description[str(rng.choice(fields))] = _LIES[int(rng.integers(len(_LIES)))]
    data = _model_file(description)
  else:
    data = _model_file(description)
    (size,) = struct.unpack("<Q", data[:8])
    header, rest = data[8 : 8 + size], data[8 + size :]
    if rng.random() < 0.7:  # the header's length is right, and what it says is not
      header = mutate.damage(rng, header, [header])
      for word in (b"F32", b"params", b"shape", b"data_offsets"):
        if rng.random() < 0.2:
          header = header.replace(word, bytes(rng.choice([b"F8_E4M3", b"I64", b"x", b""])), 1)
      data = struct.pack("<Q", len(header)) + header + rest
    else:
      data = mutate.damage(rng, data, [data])
  path = folder / "model.safetensors"
  path.write_bytes(data)
  return path


def valid_weights(folder: pathlib.Path) -> list[pathlib.Path]:
  path = folder / "seed.safetensors"
  path.write_bytes(_model_file(_DESCRIPTION))
  return [path]


def read_weights(path: pathlib.Path) -> None:
  weights.read_model_file(path)


# --- arrays and views -----------------------------------------------------------------------------


def _view() -> PairView:
  image = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
  field = np.linspace(-1, 1, 48, dtype=np.float32).reshape(6, 8)
  attribute = AttributeView("striped", 1.0, {"prior": 0.5}, {"prior": 1.0}, np.abs(field))
  return PairView(
    "q", "r", image, image, 0.5, field, np.abs(field), None, None, None, None, None, 10, None,
    {"a": 1.0}, {"b": 2}, "python", (), attributes=[attribute],
  )  # fmt: skip


def prepare_arrays(rng: np.random.Generator, folder: pathlib.Path) -> pathlib.Path:
  path = folder / "view.npz"
  saved_views.save_view(path, _view())
  way = rng.random()
  if way < 0.5:  # members are damaged and the zip around them is not
    with zipfile.ZipFile(path) as archive:
      members = {name: archive.read(name) for name in archive.namelist()}
    for name in rng.choice([*members], rng.integers(1, 4), replace=False):
      if name == "_text.npy" and rng.random() < 0.7:
        text = np.lib.format.read_array(io.BytesIO(members[name])).tobytes()
        array = np.frombuffer(mutate.damage(rng, text, [text]), np.uint8)
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, array)
        members[name] = buffer.getvalue()
      else:
        members[name] = mutate.damage(rng, members[name], [*members.values()])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
      for name, data in members.items():
        archive.writestr(name, data)
  elif way < 0.6:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr("query.npy", buffer.getvalue())
  else:
    path.write_bytes(mutate.damage(rng, path.read_bytes(), [path.read_bytes()]))
  return path


def valid_arrays(folder: pathlib.Path) -> list[pathlib.Path]:
  path = folder / "seed.npz"
  saved_views.save_view(path, _view())
  return [path]


def read_arrays(path: pathlib.Path) -> None:
  """None of them raises: what is damaged is measured again."""
  try:
    npz.read_arrays(path)
    saved_views.load_view(path)
  except Exception as error:
    raise AssertionError(f"{type(error).__name__}: {error}") from error


KINDS = {
  "torch": (prepare_torch, read_torch, valid_torch),
  "typespaces": (prepare_typespaces, read_typespaces, valid_typespaces),
  "weights": (prepare_weights, read_weights, valid_weights),
  "arrays": (prepare_arrays, read_arrays, valid_arrays),
}
