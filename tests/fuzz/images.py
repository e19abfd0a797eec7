"""Images: of each format and mode, damaged; PNGs whose header lies and whose checksums fit."""

import contextlib
import functools
import io
import pathlib
import struct
import zlib

import numpy as np
from fuzz import mutate
from PIL import Image

from sane_jax.datasets import images, pipeline, records

_SUFFIX = {"JPEG": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}


@functools.cache
def seeds() -> tuple[bytes, ...]:
  rng = np.random.default_rng(0)
  colour = Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).resize((48, 40))
  exif = Image.Exif()
  exif[0x0112], exif[0x010E] = 6, "nonsense" * 40
  exif.get_ifd(0x8825)[2] = (0.0, 1e9, 1.0)
  alpha = colour.convert("RGBA")
  alpha.putalpha(128)
  palette = colour.convert("P")
  deep = Image.fromarray(rng.integers(0, 65536, (20, 24), dtype=np.uint16))
  frames = {"save_all": True, "append_images": [colour.rotate(90), colour.rotate(180)]}
  wanted = [
    (colour, "JPEG", {"exif": exif}), (colour.convert("L"), "JPEG", {}),
    (colour.convert("CMYK"), "JPEG", {}), (colour, "JPEG", {"progressive": True}),
    (colour, "PNG", {}), (alpha, "PNG", {"exif": exif}), (palette, "PNG", {"transparency": 3}),
    (palette, "PNG", {"transparency": bytes(range(256))}), (deep, "PNG", {}),
    (colour.convert("1"), "PNG", {}), (colour.convert("LA"), "PNG", {}), (colour, "PNG", frames),
    (palette, "GIF", {"transparency": 3}), (colour, "GIF", frames), (colour, "BMP", {}),
    (colour.convert("1"), "BMP", {}), (colour, "WEBP", {"lossless": True}), (alpha, "WEBP", frames),
    (colour, "WEBP", {"exif": exif}), (colour, "TIFF", {}), (deep, "TIFF", {}),
    (colour, "TIFF", {"compression": "tiff_lzw"}), (colour, "TIFF", {"compression": "jpeg"}),
    (colour, "TIFF", {"compression": "tiff_adobe_deflate"}), (colour.convert("CMYK"), "TIFF", {}),
    (colour.convert("L").convert("F").point(lambda v: v * 0.003 + 0), "TIFF", {}),
    (colour.convert("1"), "TIFF",
    {"compression": "group4"}),
    (colour, "TIFF", frames), (colour, "PPM", {}), (deep, "PPM", {}), (colour, "JPEG2000", {}),
    (alpha, "JPEG2000", {}), (colour, "AVIF", {}), (alpha, "AVIF", {}),
  ]  # fmt: skip
  out = []
  for image, kind, options in wanted:
    data = io.BytesIO()
    try:
      image.save(data, kind, **options)
    except (KeyError, OSError):  # this Pillow was built without
      continue
    out.append(data.getvalue())
  return tuple(out)


def png(
  width: int, height: int, depth: int, colour: int, chunks: list[tuple[bytes, bytes]]
) -> bytes:
  """A PNG whose checksums fit, whatever its chunks say."""
  header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
  out = b"\x89PNG\r\n\x1a\n"
  for name, data in [(b"IHDR", header), *chunks, (b"IEND", b"")]:
    out += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
  return out


def _lying_png(rng: np.random.Generator) -> bytes:
  sides = [0, 1, 7, 100, 3000, 20_000, 1 << 20, (1 << 31) - 1, (1 << 32) - 1]
  width, height = (int(rng.choice(sides)) for _ in range(2))
  pixels = zlib.compress(bytes(int(rng.choice([0, 10, 10_000, 3_000_000]))))
  extra = [
    (b"tRNS", rng.bytes(int(rng.integers(0, 300)))), (b"PLTE", rng.bytes(int(rng.integers(0,
    800)))),
    (b"zTXt", b"k\0\0" + zlib.compress(bytes(3_000_000))), (b"iCCP",
    b"k\0\0" + zlib.compress(bytes(3_000_000))),
    (b"eXIf", rng.bytes(60)), (b"acTL", rng.bytes(8)), (b"fcTL", rng.bytes(26)),
  ]  # fmt: skip
  chosen = [extra[i] for i in rng.permutation(len(extra))[: rng.integers(0, 4)]]
  depth, colour = int(rng.choice([1, 2, 4, 8, 16, 3])), int(rng.choice([0, 2, 3, 4, 6, 5]))
  return png(width, height, depth, colour, [*chosen, (b"IDAT", pixels)])


@functools.cache
def bombs() -> tuple[bytes, ...]:
  """Some kilobytes each, and up to 25 million pixels, all there."""
  out = []
  for side, depth, colour, size in ((3000, 8, 2, 3), (4000, 8, 6, 4), (5000, 16, 0, 2)):
    rows = zlib.compress(bytes(side * (1 + side * size)), 1)
    out.append(png(side, side, depth, colour, [(b"IDAT", rows)]))
  return tuple(out)


def prepare(rng: np.random.Generator, folder: pathlib.Path) -> pathlib.Path:
  known = seeds()
  if rng.random() < 0.01:
    data = bombs()[int(rng.integers(len(bombs())))]
  elif rng.random() < 0.1:
    data = _lying_png(rng)
  elif rng.random() < 0.03:
    data = rng.bytes(int(rng.integers(0, 200)))
  else:
    data = mutate.damage(rng, known[int(rng.integers(len(known)))], known)
  path = folder / "photo.jpg"
  path.write_bytes(data)
  return path


def valid(folder: pathlib.Path) -> list[pathlib.Path]:
  out = []
  for number, data in enumerate(seeds()):
    out.append(folder / f"seed{number}.png")
    out[-1].write_bytes(data)
  return out


def read(path: pathlib.Path) -> None:
  data = path.read_bytes()
  assert isinstance(records.image_problem(data), str)
  for size in (8, 32):
    with contextlib.suppress(images.ImageError):
      assert pipeline.decode(data, size, fast=True).shape == (size, size, 3)
  image = images.read_image(path)
  assert image.dtype == np.float32
  assert 0 <= image.min() <= image.max() <= 1
