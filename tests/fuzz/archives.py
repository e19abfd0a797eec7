"""Archives: hostile members, listings that lie, and damage to either."""

import bz2
import gzip
import io
import lzma
import pathlib
import tarfile
import warnings
import zipfile

import numpy as np
from fuzz import mutate

from sane_jax.datasets import archives

NAMES = (
  "images/1.jpg", "./images/2.jpg", "../out.jpg", "/etc/passwd", "a/../../b", "C:\\x", "a\\b",
  "x" * 300,
  "caf\udce9.jpg", "new\nline.jpg", "images/1.jpg", "con", "", "é.jpg", "d/",
)  # fmt: skip


def make_zip(rng: np.random.Generator) -> bytes:
  out = io.BytesIO()
  with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as archive:
    warnings.simplefilter("ignore")  # of names that stand twice
    for _ in range(rng.integers(1, 6)):
      name = str(rng.choice(NAMES)).encode("utf-8", "replace").decode()
      info = zipfile.ZipInfo(name or "x")
      info.compress_type = int(rng.choice([0, 8, 12, 14]))
      info.external_attr = int(rng.choice([0o100644, 0o120777, 0o60644, 0o10644])) << 16
      size = int(rng.choice([0, 10, 5000, 300_000, 20_000_000 if rng.random() < 0.05 else 10]))
      archive.writestr(info, bytes(size) if rng.random() < 0.5 else rng.bytes(min(size, 5000)))
  return out.getvalue()


def make_tar(rng: np.random.Generator) -> bytes:
  out = io.BytesIO()
  form = int(rng.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
  with tarfile.open(fileobj=out, mode="w", format=form, errors="surrogateescape") as archive:
    for _ in range(rng.integers(1, 6)):
      info = tarfile.TarInfo(str(rng.choice(NAMES)) or "x")
      info.type = [b"0", b"0", b"0", b"1", b"2", b"3", b"4", b"6", b"S", b"L", b"x", b"g", b"K"][
        int(rng.integers(13))
      ]
      info.linkname = str(rng.choice(NAMES))
      info.size = int(rng.choice([0, 10, 5000]))
      if form == tarfile.PAX_FORMAT and rng.random() < 0.3:
        key = str(
          rng.choice(["GNU.sparse.map", "GNU.sparse.major", "GNU.sparse.size", "size", "path"])
        )
        info.pax_headers = {key: str(rng.choice(["1", "0,5,9,1", "-1", "99999999999999", "x"]))}
      try:
        archive.addfile(info, io.BytesIO(rng.bytes(info.size)))
      except (ValueError, UnicodeError):  # a name that this form can't hold
        continue
  return out.getvalue()


def prepare(rng: np.random.Generator, folder: pathlib.Path) -> pathlib.Path:
  kind = str(rng.choice([".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz"]))
  data = make_zip(rng) if kind == ".zip" else make_tar(rng)
  inner = rng.random() < 0.5  # of a packed tar: before it is packed
  if inner and rng.random() < 0.8:
    data = mutate.damage(rng, data, [make_zip(rng), make_tar(rng)])
  pack = {".tar.gz": gzip.compress, ".tar.bz2": bz2.compress, ".tar.xz": lzma.compress}
  data = pack[kind](data) if kind in pack else data
  if not inner:
    data = mutate.damage(rng, data, [data])
  path = folder / f"data{kind}"
  path.write_bytes(data)
  return path


def valid(folder: pathlib.Path) -> list[pathlib.Path]:
  rng = np.random.default_rng(0)
  out = []
  for kind in (".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz"):
    pack = {".tar.gz": gzip.compress, ".tar.bz2": bz2.compress, ".tar.xz": lzma.compress}
    data = make_zip(rng) if kind == ".zip" else make_tar(rng)
    out.append(folder / f"seed{kind}")
    out[-1].write_bytes(pack[kind](data) if kind in pack else data)
  return out


def read(path: pathlib.Path) -> None:
  sizes: dict[str, int] = {}
  for member in archives.members(path):
    if not member.problem:
      sizes.setdefault(member.name, member.size)
  wanted = [name for name, size in sizes.items() if size <= 1 << 26]
  for name in wanted:
    assert not name.startswith("/")
    assert ".." not in name.split("/")
    name.encode()
  for name, data, problem in archives.read_members(path, wanted):
    assert problem or len(data) <= sizes[name]
