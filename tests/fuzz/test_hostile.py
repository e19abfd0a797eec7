"""What damaged inputs found, one by one; each with its known answer."""

import gzip
import io
import json
import os
import pickle
import tarfile
import time
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from fuzz import checkpoints, guard
from fuzz.images import png

from sane_jax.attributes import table as attribute_table
from sane_jax.datasets import archives, images, photos, records, sources
from sane_jax.datasets.awa2 import formats as awa2
from sane_jax.datasets.polyvore_outfits import formats as polyvore
from sane_jax.models import torch_file, weights
from sane_jax.report import saved as saved_views
from sane_jax.runs import files, npz

# --- archives -------------------------------------------------------------------------------------


def test_of_members_with_one_name_the_one_that_was_looked_at_is_read(tmp_path):
  """The second would inflate a thousandfold, and zipfile gives it for the name."""
  path = tmp_path / "a.zip"
  with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    warnings.simplefilter("ignore")
    archive.writestr("images/1.jpg", b"small")
    archive.writestr("images/1.jpg", bytes(1 << 25))
  first, second = archives.members(path)
  assert (first.problem, first.size) == ("", 5)
  assert "would inflate" in second.problem
  assert list(archives.read_members(path, ["images/1.jpg"])) == [("images/1.jpg", b"small", "")]


@pytest.mark.parametrize("kind", [".zip", ".tar"])
def test_behind_a_link_of_the_same_name_nothing_is_read(tmp_path, kind):
  """The reader of the archive may give the link's bytes, or the file's, for the name."""
  path = tmp_path / f"a{kind}"
  if kind == ".zip":
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
      warnings.simplefilter("ignore")
      link = zipfile.ZipInfo("1.jpg")
      link.external_attr = 0o120777 << 16
      archive.writestr(link, bytes(300_000))
      archive.writestr("1.jpg", b"small")
  else:
    with tarfile.open(path, "w") as archive:
      link = tarfile.TarInfo("1.jpg")
      link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
      archive.addfile(link)
      archive.addfile(tarfile.TarInfo("1.jpg"))
  assert [m.problem for m in archives.members(path)][1] == "a second one of that name"


def test_a_tar_with_a_size_below_nothing(tmp_path):
  path = tmp_path / "a.tar"
  info = tarfile.TarInfo("1.jpg")
  header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
  header[124:136] = b"\xff" * 12  # base 256: -1
  header[148:156] = b" " * 8
  header[148:156] = b"%06o\0 " % sum(header)
  path.write_bytes(header + bytes(1024))
  assert [(m.name, m.problem) for m in archives.members(path)] == [
    ("1.jpg", "its size is given as -1")
  ]


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_tar_whose_header_claims_a_name_of_gigabytes(tmp_path, kind):
  """tarfile would read all of it into memory: 4 MB here stand for any size."""
  path = tmp_path / "a.tar.gz"
  info = tarfile.TarInfo("x")
  info.type, info.size = kind, 1 << 22
  with gzip.open(path, "wb") as file:
    file.write(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 22) + bytes(1024))
  with pytest.raises(ValueError, match="a header of more than"):
    list(archives.members(path))


@pytest.mark.parametrize("kind", [".zip", ".tar"])
def test_names_that_are_no_text_cost_no_other(tmp_path, kind):
  path = tmp_path / f"a{kind}"
  if kind == ".tar":
    with tarfile.open(path, "w") as archive:
      for name in ("caf\udce9.jpg", "good.jpg"):
        archive.addfile(tarfile.TarInfo(name))
    problems = {name: problem for name, _, problem in archives.members(path)}
    assert problems == {"caf\udce9.jpg": "its name is no text", "good.jpg": ""}
  else:
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr("é.jpg", b"")
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xff"))
    with pytest.raises(ValueError, match=r"a\.zip: no whole archive"):
      list(archives.members(path))


def test_a_damaged_xz_is_named(tmp_path):
  path = tmp_path / "a.tar.xz"
  with tarfile.open(path, "w:xz") as archive:
    info = tarfile.TarInfo("x")
    info.size = 100_000
    archive.addfile(info, io.BytesIO(os.urandom(100_000)))
  data = bytearray(path.read_bytes())
  data[1000:1100] = bytes(100)
  path.write_bytes(data)
  with pytest.raises(ValueError, match="no whole archive"):
    list(archives.members(path))


def test_images_are_held_by_their_size_not_by_their_number():
  reads = iter([sources.Read(str(i), bytes(1 << 25), "") for i in range(6)])
  assert [len(records._batch(reads)) for _ in range(3)] == [3, 3, 0]


# --- pickles --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "hostile",
  [
    b"}" + checkpoints.DEEP + b"Ns",  # a key that takes 2**60 steps to hash
    b"\x8f(" + checkpoints.DEEP + b"\x90",
    b"(" + checkpoints.DEEP + b"\x91",
    b"cbuiltins\nset\n(](" + checkpoints.DEEP + b"etR",
    b"ccollections\nOrderedDict\n(](" + checkpoints.DEEP + b"N\x86etR",
    checkpoints.DEEP + b"Q",  # a storage record that takes as many to print
    b"cnumpy\ndtype\n(" + checkpoints.DEEP + b"tR",
  ],
)
def test_a_few_bytes_of_shared_tuples_take_no_time(tmp_path, hostile):
  path = tmp_path / "a.pth"
  path.write_bytes(checkpoints.torch_zip(b"\x80\x02" + hostile + b"."))
  began = time.monotonic()
  with pytest.raises(ValueError, match="cannot be read"):
    torch_file.read_torch_file(path)
  assert time.monotonic() - began < 20  # it would be years


def test_lists_of_storages_of_shared_tuples_are_not_compared(tmp_path):
  path = tmp_path / "a.pth"
  head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
  head += pickle.dumps({"little_endian": True}, 2) + checkpoints.tree(checkpoints.tensor())
  path.write_bytes(head + b"\x80\x02](" + checkpoints.DEEP + checkpoints.DEEP + b"e.")
  with pytest.raises(ValueError, match="its list of storages is"):
    torch_file.read_torch_file(path)


def test_a_view_of_stride_0_is_no_more_than_the_file_can_hold(tmp_path):
  path = tmp_path / "a.pth"
  huge = checkpoints.tensor((10**6, 10**6), (0, 0))
  path.write_bytes(checkpoints.torch_zip(checkpoints.tree(huge)))
  with pytest.raises(ValueError, match="its tensors have 4000000000000 bytes"):
    torch_file.read_torch_file(path)
  path.write_bytes(checkpoints.torch_zip(checkpoints.tree(checkpoints.tensor((5, 4), (0, 1)))))
  assert torch_file.read_torch_file(path)["layer0.weight"].shape == (5, 4)


def test_members_that_overlap_are_refused(tmp_path):
  path = tmp_path / "a.pth"
  data = bytearray(checkpoints.torch_zip(checkpoints.tree(checkpoints.tensor())))
  entry = data.rindex(b"PK\x01\x02")  # that of the storage: 48 bytes, which it says are more
  data[entry + 20 : entry + 28] = (1 << 20).to_bytes(4, "little") * 2
  path.write_bytes(data)
  with pytest.raises(ValueError, match="overlap"):
    torch_file.read_torch_file(path)


def test_a_description_of_a_billion_blocks_is_refused_before_it_is_traced(tmp_path):
  path = tmp_path / "a.safetensors"
  description = {**checkpoints._DESCRIPTION, "stage_sizes": [10**9]}
  path.write_bytes(checkpoints._model_file(description))
  with pytest.raises(ValueError, match="describes 1000000000 blocks and has"):
    weights.read_model_file(path)


# --- arrays ---------------------------------------------------------------------------------------


def _npz(path, **members):
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, data in members.items():
      archive.writestr(f"{name}.npy", data)
  return path


def test_arrays_that_claim_more_than_they_have_allocate_nothing(tmp_path):
  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    header, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)}
  )
  assert npz.read_arrays(_npz(tmp_path / "a.npz", a=header.getvalue() + bytes(100))) is None


def test_what_is_no_file_of_arrays_is_nothing(tmp_path):
  np.save(tmp_path / "a.npy", np.zeros(3))
  assert npz.read_arrays(tmp_path / "a.npy") is None
  os.mkfifo(tmp_path / "pipe")
  assert npz.read_arrays(tmp_path / "pipe") is None


def test_arrays_of_any_type_come_back(tmp_path):
  arrays = {
    "a": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.array(["ü", "xyz"]),
    "c": np.zeros((0, 4), bool), "d": np.asfortranarray(np.eye(3)), "e": np.array(5),
  }  # fmt: skip
  npz.write_arrays(tmp_path / "a.npz", arrays)
  back = npz.read_arrays(tmp_path / "a.npz")
  assert back is not None
  assert [*back] == [*arrays]
  for name, array in arrays.items():
    np.testing.assert_array_equal(array, back[name])
    assert array.dtype == back[name].dtype


@pytest.mark.parametrize(
  "change", [{"score": "x"}, {"query_name": 5}, {"settings": None}, {"no": 1}]
)
def test_a_view_that_cannot_be_shown_is_measured_again(tmp_path, change):
  path = tmp_path / "a.npz"
  saved_views.save_view(path, checkpoints._view())
  assert saved_views.load_view(path) is not None
  arrays = npz.read_arrays(path)
  assert arrays is not None
  text = {**json.loads(arrays["_text"].tobytes()), **change}
  arrays["_text"] = np.frombuffer(json.dumps(text).encode(), np.uint8)
  npz.write_arrays(path, arrays)
  assert saved_views.load_view(path) is None


# --- tables and lists -----------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
  for name in ("a.jpg", "b.jpg", "c.jpg"):
    (tmp_path / name).touch()
  return tmp_path / "table.csv"


def test_a_quote_left_open_costs_one_row(table):
  table.write_text('file,"long\nsleeves"\na.jpg,1\n"b.jpg,0\nc.jpg,0\n')
  read = attribute_table.read_table(table)
  assert [path.name for path in read.paths] == ["a.jpg", "c.jpg"]
  assert read.names == ("long\nsleeves",)
  assert read.labels.tolist() == [[True], [False]]
  assert [problem.partition(":")[0] for problem in read.problems] == ["table.csv, line 4"]


def test_names_of_any_length_cost_one_row(table):
  table.write_text(f"file,red\n{'x' * 5000},1\na\0b.jpg,1\n{'y' * 200_000},0\na.jpg,1\n")
  read = attribute_table.read_table(table)
  assert [path.name for path in read.paths] == ["a.jpg"]
  assert len(read.problems) == 3
  assert max(map(len, read.problems)) < 500


def test_a_hundred_thousand_rows_are_read_in_a_moment(table):
  rows = "".join(f"no{i}.jpg,1\n" for i in range(100_000))
  table.write_text(f"file,red\na.jpg,1\n{rows}")
  read = attribute_table.read_table(table)
  assert (len(read.paths), len(read.problems)) == (1, 100_000)


def test_pipes_and_devices_are_refused(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  os.symlink("/dev/zero", tmp_path / "zero")
  for name in ("pipe", "zero"):
    path = tmp_path / name
    for read in (
      attribute_table.read_table, photos.read_pairs, torch_file.read_torch_file,
      weights.read_model_file, weights.convert, files.read_bytes, images.read_image,
    ):  # fmt: skip
      with pytest.raises((ValueError, OSError), match=r"pipe or (a )?device"):
        read(path)


def test_lines_that_no_csv_reader_takes_cost_no_other():
  data = b'1,dress,tops\n"' + b"x" * 200_000 + b"\n2,shoe,shoes\n"
  assert [*polyvore.parse_categories(data, "x")] == ["1", "2"]
  with pytest.raises(ValueError, match=r"x: field larger .*, after line 1"):
    awa2.parse_items(b"file,a\n" + b"x" * 200_000 + b",1", "x")


def test_indices_that_are_no_numbers_cost_no_other():
  good = {"items": [{"item_id": "1", "index": 1}], "set_id": "7"}
  bad = [{"items": [{"item_id": "1", "index": float("inf")}], "set_id": "8"},
         {"items": [{"item_id": "\ud800", "index": 1}], "set_id": "9"}]  # fmt: skip
  notes = polyvore.Notes()
  outfits = polyvore.parse_outfits(json.dumps([good, *bad]).encode(), "x", notes)
  assert [outfit.set_id for outfit in outfits] == ["7"]
  assert len(notes.lines()) == 2


def test_a_matrix_takes_no_memory_before_its_rows_are_there():
  with pytest.raises(ValueError, match="1 numbers, but"):
    awa2.parse_matrix(b"1\n" * 100_000, "x", (100_000, 10**9))


# --- text for people ------------------------------------------------------------------------------


def test_what_a_terminal_would_obey_is_not_printed():
  assert files.printable("a\x1b[2Jb\x9bc\td\ne\udce9") == "a?[2Jb?c\td\ne?"


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.skipif("SANE_JAX_FUZZ" not in os.environ, reason="takes gigabytes: with SANE_JAX_FUZZ")
def test_the_largest_image_that_is_read_takes_24_bytes_a_pixel(tmp_path):
  path = tmp_path / "a.png"
  side = 10_000
  rows = zlib.compress(bytes(side * (1 + 4 * side)), 1)
  path.write_bytes(png(side, side, 8, 6, [(b"IDAT", rows)]))
  seen = guard.Guard(120).watch(lambda: images.read_image(path))
  assert (seen.verdict, seen.acts) == ("read", ())
  assert seen.peak_bytes < 24 * side**2
