"""Feeds damaged and hostile input to everything that reads from outside, and watches.

  PYTHONPATH=. python tests/fuzz.py --inputs 12000 --seed 0

Each kind begins with valid files (and some that are hostile by design: pickles that call functions,
archives that climb out of their folder, bombs), damages them at random, and reads them as the
package does. A reader may raise ValueError or OSError with a message; anything else is a crash.
An audit hook sees whether code was run, a process started or a file written. Each input has
SECONDS; the process has a limit on its memory. Prints a table; ends with 1 if anything was wrong.
"""

import argparse
import collections
import contextlib
import io
import json
import os
import pathlib
import pickle
import resource
import signal
import struct
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from typing import NamedTuple

import numpy as np
from PIL import Image

import sane_jax
from sane_jax import checkpoint, photo_attributes, training
from sane_jax import main as entry
from sane_jax.datasets import archives, images, photos
from sane_jax.datasets.awa2 import formats as awa2
from sane_jax.datasets.polyvore_outfits import formats as polyvore
from sane_jax.models import torch_file, weights

ROOT = pathlib.Path(__file__).parents[1]

SECONDS = 10  # for one input
GROWTH = 2 << 30  # bytes that the process may grow by while it reads
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
WORDS = (
  b"\x00", b"\r\n", b'"', b"'", b",", b"\t", b"\xff\xfe", b"\xef\xbb\xbf", b"NaN", b"-Infinity",
  b"1e999", b"null", b"{}", b"[]", b"[" * 3000, b"../../", b"/etc/passwd", b"<script>", b"%s%n",
  b"\xe2\x80\xae", b"=cmd()", b"9" * 5000, b"-1", b"\xf0\x9f\x92\xa9", b"true",
)  # fmt: skip


class Kind(NamedTuple):
  """Files to begin with, by name, and what reads one of them."""

  seeds: dict[str, bytes]
  read: object  # path -> anything


# --- damage ---------------------------------------------------------------------------------------


def damage(rng, data: bytes, others: list[bytes]) -> bytes:
  """The data with one to four faults."""
  out = bytearray(data)
  for _ in range(rng.integers(1, 5)):
    size, fault = len(out), rng.integers(8)
    at = int(rng.integers(size + 1))
    if fault == 0 and size:
      out[min(at, size - 1)] ^= 1 << rng.integers(8)
    elif fault == 1:
      del out[at:]
    elif fault == 2:
      del out[at : at + int(rng.integers(1, 64))]
    elif fault == 3:
      out[at:at] = WORDS[rng.integers(len(WORDS))]
    elif fault == 4:
      value = INTERESTING[rng.integers(len(INTERESTING))]
      code = ("B", "<H", ">H", "<I", ">I", "<Q", ">Q")[rng.integers(7)]
      packed = struct.pack(code, value & ((1 << (8 * struct.calcsize(code))) - 1))
      out[at : at + len(packed)] = packed
    elif fault == 5:
      part = out[at : at + int(rng.integers(1, 200))]
      out[at:at] = part * int(rng.integers(1, 20))
    elif fault == 6:
      other = others[rng.integers(len(others))]
      begin = int(rng.integers(len(other) + 1))
      out[at:] = other[begin:]
    else:
      out[at : at + 16] = rng.bytes(16)
  return bytes(out[: 1 << 22])


# --- kinds ----------------------------------------------------------------------------------------


class Call:
  """A pickle that calls a function when it is read."""

  def __init__(self, function, *args):
    self.called = function, args

  def __reduce__(self):
    return self.called


def hostile_pickles(mark: pathlib.Path) -> dict[str, bytes]:
  touch = f"touch {mark}"
  out = {}
  for protocol in (0, 2, 4):
    for name, call in {
      "system": Call(os.system, touch), "open": Call(open, str(mark), "w"),
      "eval": Call(eval, f"open({str(mark)!r}, 'w')"), "getattr": Call(getattr, os, "system"),
    }.items():  # fmt: skip
      with contextlib.suppress(Exception):
        out[f"{name}{protocol}"] = pickle.dumps({"state_dict": call}, protocol=protocol)
  out["bomb"] = b"\x80\x02" + b"]" + b"(" * 1000 + b"e" * 1000 + b"."
  out["long"] = b"\x80\x02\x8b\xff\xff\xff\x7f"
  return out


def zipped(files: dict[str, bytes], compression=zipfile.ZIP_STORED) -> bytes:
  buffer = io.BytesIO()
  with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as archive:
    warnings.simplefilter("ignore")  # names twice
    for name, data in files.items():
      archive.writestr(name, data)
  return buffer.getvalue()


def tarred(members: list[tuple[str, bytes, bytes, str]], mode="w") -> bytes:
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode=mode) as archive:
    for name, data, kind, link in members:
      info = tarfile.TarInfo(name)
      info.size, info.type, info.linkname = len(data), kind, link
      archive.addfile(info, io.BytesIO(data))
  return buffer.getvalue()


def pictures() -> dict[str, bytes]:
  rng, out = np.random.default_rng(0), {}
  pixels = rng.integers(0, 255, (24, 20, 3), dtype=np.uint8)
  plain = Image.fromarray(pixels)
  for suffix, mode in (
    ("png", "RGB"), ("jpg", "RGB"), ("jpg", "CMYK"), ("gif", "P"), ("webp", "RGBA"),
    ("bmp", "RGB"), ("tif", "RGB"), ("png", "LA"), ("png", "I;16"), ("png", "1"), ("png", "P"),
    ("tif", "F"), ("tif", "CMYK"),
  ):  # fmt: skip
    buffer = io.BytesIO()
    picture = Image.fromarray(np.uint16(pixels[..., 0]) * 257) if mode == "I;16" else plain
    picture = picture if mode == "I;16" else picture.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if suffix in ("jpg", "webp") else {}
    picture.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()), **options)
    out[f"{mode.replace(';', '')}.{suffix}"] = buffer.getvalue()
  buffer = io.BytesIO()
  plain.save(buffer, "GIF", save_all=True, append_images=[plain.rotate(90)] * 3)
  out["moving.gif"] = buffer.getvalue()
  buffer = io.BytesIO()
  Image.new("1", (60_000, 60_000)).save(buffer, "PNG")  # 3.6 billion pixels in 430 kB
  out["bomb.png"] = buffer.getvalue()
  out["empty.jpg"] = b""
  return out


def read_archive(path):
  names = [member.name for member in archives.members(path)][:20]
  for _, data, _ in archives.read_members(path, names):
    len(data)


def kinds(folder: pathlib.Path, mark: pathlib.Path) -> dict[str, Kind]:
  """Everything that is read, with files to begin with; `mark` is what hostile code would write."""
  picture = pictures()
  plain, bomb = tarfile.REGTYPE, bytes(1 << 26)
  zips = {
    "plain.zip": zipped({"a/b.txt": b"text", "a/c.jpg": picture["RGB.jpg"]}),
    "climbs.zip": zipped({"../../up.txt": b"x", "/etc/abs": b"x", "a\\..\\b": b"x"}),
    "bomb.zip": zipped({"bomb": bomb}, zipfile.ZIP_DEFLATED),
  }
  tars = {
    "plain.tar": tarred(
      [("a/b.txt", b"text", plain, ""), ("a/c.jpg", picture["RGB.jpg"], plain, "")]
    ),
    "links.tar.gz": tarred(
      [("a", b"", tarfile.SYMTYPE, "/etc"), ("a/passwd", b"x", plain, ""),
       ("../up", b"x", plain, ""),
       ("dev", b"", tarfile.CHRTYPE, ""), ("hard", b"", tarfile.LNKTYPE, "/etc/passwd")], "w:gz",
    ),
    "bomb.tar.gz": tarred([("bomb", bomb, plain, "")], "w:gz"),
  }  # fmt: skip
  pickles = hostile_pickles(mark)
  storage = np.arange(12, dtype=np.float32).tobytes()
  torch = {
    f"{n}.pth": zipped({"archive/data.pkl": p, "archive/data/0": storage})
    for n, p in pickles.items()
  }
  torch |= {f"{n}.pth.tar": p for n, p in pickles.items()}
  with contextlib.suppress(ImportError):
    import torch as torch_lib

    for new in (True, False):
      buffer = io.BytesIO()
      tensors = {"state_dict": {"conv.weight": torch_lib.zeros(4, 3, 3, 3)}, "epoch": 3}
      torch_lib.save(tensors, buffer, _use_new_zipfile_serialization=new)
      torch[f"real{new}.pth"] = buffer.getvalue()
  description = {
    "kind": "resnet", "stage_sizes": [1], "block": "basic", "width": 8, "stem": "small",
  }  # fmt: skip
  header = json.dumps({"a": {"dtype": "F32", "shape": [2, 6], "data_offsets": [0, 48]}}).encode()
  lies = json.dumps(
    {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
  ).encode()
  tensors = {
    "plain.safetensors": struct.pack("<Q", len(header)) + header + storage,
    "lies.safetensors": struct.pack("<Q", len(lies)) + lies + storage,
    "huge.safetensors": struct.pack("<Q", 1 << 60) + header,
  }
  with contextlib.suppress(Exception):
    net = weights.make_model(description)
    variables = weights.init_variables(net, key=0)
    tensors["model.safetensors"] = weights.to_bytes(variables, description)
  buffer = io.BytesIO()
  np.savez(buffer, a=np.ones(3), _text=np.frombuffer(b"{}", np.uint8))
  objects = io.BytesIO()
  np.savez(objects, a=np.array([Call(os.system, f"touch {mark}")], dtype=object))
  views = {
    "plain.npz": buffer.getvalue(),
    "objects.npz": objects.getvalue(),
    "bomb.npz": zips["bomb.zip"],
  }
  for name in ("one.png", "two words.png", "drei, “vier”.png"):
    (folder / name).write_bytes(picture["RGB.png"])
  pairs = {
    "plain.txt": b"one.png one.png 1\none.png one.png 0\n",
    "comma.csv": 'query,reference\none.png,"two words.png"\n"drei, “vier”.png",one.png\n'.encode(),
    "wide.csv": "one.png,one.png\n".encode("utf-16"),
    "latin.csv": "one.png,gr\u00fc\u00df.png\none.png,one.png\n".encode("latin-1"),
  }
  tables = {
    "plain.csv": b"file,red,round\none.png,1,0\ntwo words.png,0,1\n",
    "twice.csv": b"file,red,red\none.png,1,0\n",
    "ragged.csv": b"file,red\none.png\none.png,1,2,3\n",
    "wide.csv": "file,red\none.png,1\n".encode("utf-16"),
  }  # fmt: skip
  notes = polyvore.Notes if isinstance(polyvore.Notes, type) else collections.Counter
  metadata = json.dumps({"1": {"semantic_category": "tops", "category_id": "2", "url_name": "a"}})
  outfits = json.dumps(
    [{"set_id": "7", "items": [{"item_id": "1", "index": 1}, {"item_id": "2", "index": 2}]}]
  )
  questions = json.dumps([{"question": ["7_1"], "blank_position": 2, "answers": ["7_2", "8_1"]}])
  index = folder / "index"
  model = sane_jax.from_jax(lambda p, x: x.mean((1, 2)) + p, np.float32(0.1), image_size=8)
  explainer = sane_jax.Explainer(model, num_masks=32, grid=(2, 2))
  rng = np.random.default_rng(0)
  sane_jax.ExplanationIndex.build(index, explainer, {n: rng.uniform(size=(8, 8, 3)) for n in "abc"})
  manifest = (index / "index.json").read_bytes()

  def read_index(path):
    (index / "index.json").write_bytes(path.read_bytes())
    found = sane_jax.ExplanationIndex(index)
    if len(found) > 1:
      with contextlib.suppress(KeyError):  # an id that is not there is a KeyError, with a sentence
        found.maps(0, [1])

  def with_text(function, *extra):
    return lambda path: function(path.read_bytes(), "file", *(e() for e in extra))

  def read_view(path):
    checkpoint.read_arrays(path)
    checkpoint.load_view(path)

  flags = {
    f"{i}.flags": text.encode()
    for i, text in enumerate((
      "--config.num_masks=128", "--config.workdir=a b", "--config.key=nan", "--config.nothing=1",
      "--config.photos='x'", "--config.max_pairs=-1", "--config=configs/none.py", "--verbosity=9",
    ))
  }  # fmt: skip
  return {
    "images": Kind(picture, lambda path: images.read_image(path, max_pixels=4_000_000)),
    "zip archives": Kind(zips, read_archive),
    "tar archives": Kind(tars, read_archive),
    "torch checkpoints": Kind(torch, torch_file.read_torch_file),
    "checkpoints to convert": Kind(torch | tensors, weights.convert),
    "model files": Kind(tensors, weights.read_model_file),
    "type space pickles": Kind(
      {f"{n}.p": p for n, p in pickles.items()}
      | {"plain.p": pickle.dumps([("tops", "shoes")], protocol=2)},
      with_text(polyvore.parse_typespaces),
    ),
    "results on disk": Kind(views, read_view),
    "json of ours": Kind({"a.json": b'{"best": {"step": 3}}'}, training.read_json),
    "pair lists": Kind(pairs, lambda path: photos.read_pairs(path, folder=folder)),
    "attribute tables": Kind(tables, lambda path: photo_attributes.read_table(path, folder)),
    "item metadata": Kind({"a.json": metadata.encode()}, with_text(polyvore.parse_metadata, notes)),
    "outfits": Kind({"a.json": outfits.encode()}, with_text(polyvore.parse_outfits, notes)),
    "questions": Kind({"a.json": questions.encode()}, with_text(polyvore.parse_questions, notes)),
    "class lists": Kind(
      {"classes.txt": b"  1\tantelope\n  2\tgrizzly+bear\n"}, with_text(awa2.parse_names)
    ),
    "predicate matrices": Kind(
      {"m.txt": b"0 1 0\n1 0 1\n"},
      lambda path: awa2.parse_matrix(path.read_bytes(), "file", (2, 3)),
    ),
    "index manifests": Kind({"index.json": manifest}, read_index),
    "command lines": Kind(flags, read_flags),
  }  # fmt: skip


def read_flags(path):
  """Parses a command line; a wrong one ends with a sentence."""
  from absl import flags

  words = path.read_bytes().decode("utf-8", "replace").replace("\x00", "").split("\n")
  flags.FLAGS.unparse_flags()
  sink = io.StringIO()
  try:
    with contextlib.redirect_stderr(sink), contextlib.redirect_stdout(sink):
      entry._parse(["main", f"--config={ROOT / 'configs/photos.py'}", *words])
  except SystemExit as error:
    said = f"{error.code if isinstance(error.code, str) else ''}{sink.getvalue()}"
    if "Traceback" in said or (error.code not in (0, None) and not said.strip()):
      raise RuntimeError(f"ended with {said!r}") from error
    raise ValueError(said) from error


# --- watching -------------------------------------------------------------------------------------

FORBIDDEN = (
  "os.system", "os.exec", "os.spawn", "os.posix_spawn", "subprocess.Popen", "socket.connect",
  "os.remove", "os.rename", "os.chmod", "shutil.rmtree", "exec",
)  # fmt: skip


class Watch:
  """What the process did while it was reading; an audit hook can't be taken away again."""

  def __init__(self, folder: pathlib.Path):
    self.reading, self.folder, self.seen = False, str(folder), []
    sys.addaudithook(self)

  def __call__(self, event, args):
    if not self.reading:
      return
    if event in FORBIDDEN or (event == "import" and args[0] in ("ctypes", "subprocess")):
      code = getattr(args[0], "co_filename", "") if args else ""
      # Importing a module of a library runs it; what an input says does not lie in a library.
      if event == "exec" and (code.endswith(".py") or code.startswith("<frozen")):
        return
      self.seen.append(f"{event} {str(args)[:120]}")
    elif event == "open" and isinstance(args[0], str):
      written = isinstance(args[1], str) and any(c in args[1] for c in "wax+")
      if written and not args[0].startswith((self.folder, "/dev/null")):
        self.seen.append(f"open {args[:2]}")


class Outcome(NamedTuple):
  """Of one kind."""

  inputs: int
  accepted: int
  refused: int
  wrong: list[str]
  slowest: float


def try_one(kind: Kind, path: pathlib.Path, watch: Watch) -> tuple[str, str]:
  """('accepted' or 'refused' or 'wrong', what was said)."""

  def stop(*_):
    raise TimeoutError(f"took more than {SECONDS} s")

  signal.signal(signal.SIGALRM, stop)
  signal.setitimer(signal.ITIMER_REAL, SECONDS)
  watch.reading, watch.seen = True, []
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      kind.read(path)
    outcome = "accepted", ""
  except TimeoutError as error:
    outcome = "wrong", str(error)
  except (ValueError, OSError) as error:
    said = str(error)
    outcome = ("refused", said) if len(said) > 10 else ("wrong", f"no message: {error!r}")
  except BaseException as error:
    outcome = "wrong", repr(error)[:300]
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    watch.reading = False
  return ("wrong", "; ".join(watch.seen)) if watch.seen else outcome


def fuzz(inputs: int, seed: int = 0) -> tuple[dict[str, Outcome], float]:
  """About `inputs` inputs over all kinds; outcomes, and megabytes that the process grew by."""
  rng = np.random.default_rng(seed)
  out = {}
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    mark = folder / "code_was_run"
    found = kinds(folder, mark)
    watch = Watch(folder)
    before = _memory("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    for kind in found.values():  # loads what is loaded when it is needed
      for file, data in kind.seeds.items():
        (folder / file).write_bytes(data)
        with contextlib.suppress(Exception, SystemExit):
          kind.read(folder / file)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + GROWTH, hard))
    try:
      for what, kind in found.items():
        names, datas = [*kind.seeds], [*kind.seeds.values()]
        tally, wrong, slowest = collections.Counter(), [], 0.0
        for number in range(max(len(names), inputs // len(found))):
          file = names[number % len(names)]
          data = kind.seeds[file]
          if number >= len(names):  # the seeds themselves come first
            data = damage(rng, data, datas)
          path = folder / file
          path.write_bytes(data)
          began = time.perf_counter()
          result, said = try_one(kind, path, watch)
          slowest = max(slowest, time.perf_counter() - began)
          if mark.exists():
            mark.unlink()
            result, said = "wrong", "code was run"
          tally[result] += 1
          if result == "wrong":
            wrong.append(f"{what}, {file}, input {number}: {said}")
        out[what] = Outcome(tally.total(), tally["accepted"], tally["refused"], wrong, slowest)
    finally:
      resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    grown = _memory("VmHWM") - before
  return out, grown / 1024


def _memory(what: str) -> int:
  """Kilobytes, as the system counts them for this process."""
  return int(pathlib.Path("/proc/self/status").read_text().split(f"{what}:")[1].split()[0])


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--inputs", type=int, default=12_000)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  found, grown = fuzz(args.inputs, args.seed)
  print("| kind | inputs | read | refused with a message | wrong | slowest, s |")
  print("| --- | ---: | ---: | ---: | ---: | ---: |")
  for what, o in found.items():
    figures = f"{o.inputs:,} | {o.accepted:,} | {o.refused:,} | {len(o.wrong)} | {o.slowest:.2f}"
    print(f"| {what} | {figures} |")
  total = sum(o.inputs for o in found.values())
  print(f"\n{total:,} inputs; the process grew by at most {grown:.0f} MB")
  wrong = [text for o in found.values() for text in o.wrong]
  print("\n".join(wrong[:60]))
  sys.exit(bool(wrong))


if __name__ == "__main__":
  main()
