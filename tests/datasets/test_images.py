"""Reading images: known pixels through every format; broken files never pass for images."""

import io
import resource
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, features

from sane_jax.datasets import images
from sane_jax.datasets.images import ImageError, fit_image, read_image

# [3 5 3]: no symmetry, both ends of the range.
RGB = np.arange(45, dtype=np.uint8).reshape(3, 5, 3) * 5
RGB[0, 0], RGB[2, 4] = 0, 255
GREY = RGB[..., 1]
ALPHA = np.linspace(0, 255, 15).astype(np.uint8).reshape(3, 5)
GREY16 = (GREY.astype(np.uint16) << 8) + 77


def unit(array, top=255):
  """As read_image returns it, for grey and colour without alpha."""
  array = np.asarray(array, np.float64) / top
  return array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=-1)


def over_white(colours, alpha, top=255):
  share = np.asarray(alpha, np.float64)[..., None] / top
  return unit(colours, top) * share + (1 - share)


def saved(path, image, **options):
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  image.save(path, **options)
  return path


def encoded(image, kind, **options):
  stream = io.BytesIO()
  image.save(stream, kind, **options)
  return stream.getvalue()


def assert_image(got, want, atol=1e-6):
  assert got.dtype == np.float32
  assert got.shape == want.shape
  assert got.min() >= 0
  assert got.max() <= 1
  assert got.flags.c_contiguous
  assert got.flags.writeable
  np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def png(rows, bits, colour, size, *extra):
  """A PNG written out by hand; rows are bytes or arrays, extra are chunks."""

  def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  packer = zlib.compressobj(9)
  data = b"".join(packer.compress(b"\0" + bytes(row)) for row in rows) + packer.flush()
  header = struct.pack(">IIBBBBB", size[1], size[0], bits, colour, 0, 0, 0)
  chunks = [(b"IHDR", header), *extra, (b"IDAT", data), (b"IEND", b"")]
  return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks)


def tiff16(array, order):
  """An uncompressed 16-bit grey TIFF written out by hand; order is '<' or '>'."""
  h, w = array.shape
  data = array.astype(order + "u2").tobytes()

  def short(tag, value):
    return struct.pack(order + "HHIHH", tag, 3, 1, value, 0)

  def long(tag, value):
    return struct.pack(order + "HHII", tag, 4, 1, value)

  tags = [long(256, w), long(257, h), short(258, 16), short(259, 1), short(262, 1)]
  tags += [long(273, 8), long(278, h), long(279, len(data))]
  start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data))
  return start + data + struct.pack(order + "H", len(tags)) + b"".join(tags) + b"\0\0\0\0"


# --- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("array", "want"),
  [
    (RGB, unit(RGB)),
    (GREY, unit(GREY)),
    (GREY[..., None], unit(GREY)),
    (np.dstack([GREY, ALPHA]), over_white(GREY, ALPHA)),
    (np.dstack([RGB, ALPHA]), over_white(RGB, ALPHA)),
    (GREY16, unit(GREY16, 65535)),
    (GREY16.astype(">u2"), unit(GREY16, 65535)),
    (np.dstack([GREY16, GREY16.T.reshape(3, 5)]), None),
    (GREY > 99, unit(GREY > 99, 1)),
    (RGB / 255, unit(RGB)),
    ((RGB / 255).astype(np.float32), unit(RGB)),
    ((RGB[..., ::-1] / 255)[..., ::-1], unit(RGB)),
    (jnp.asarray(RGB), unit(RGB)),
    (jnp.asarray(RGB / 255, jnp.float32), unit(RGB)),
    (jnp.asarray([[0.0, 0.5], [0.25, 1.0]], jnp.bfloat16), unit([[0, 0.5], [0.25, 1]], 1)),
    (np.array([[0, 0.5]], np.float16), unit([[0, 0.5]], 1)),
    (np.asfortranarray(RGB), unit(RGB)),
    ([[0.0, 1.0], [0.5, 0.25]], unit([[0, 1], [0.5, 0.25]], 1)),
    (np.full((1, 1), 51, np.uint8), unit([[51]])),
  ],
)
def test_arrays(array, want):
  if want is None:
    want = over_white(array[..., 0], array[..., 1], 65535)
  assert_image(read_image(array), want)


def test_a_float_image_comes_back_bit_for_bit_and_is_no_view(rng):
  array = rng.uniform(size=(4, 6, 3)).astype(np.float32)
  got = read_image(array)
  assert np.array_equal(got, array)
  assert not np.shares_memory(got, array)
  opaque = read_image(np.dstack([array, np.ones((4, 6), np.float32)]))
  assert np.array_equal(opaque, array)
  assert np.array_equal(read_image(got), got)


def test_eight_bits_survive_the_way_there_and_back():
  ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
  np.testing.assert_array_equal(np.round(read_image(ramp)[..., 0] * 255).astype(np.uint8), ramp)


def test_floats_within_rounding_are_clipped_and_beyond_refused():
  array = np.full((2, 2, 3), 0.5)
  array[0, 0, 0], array[1, 1, 2] = -5e-7, 1 + 5e-7
  got = read_image(array)
  assert got[0, 0, 0] == 0
  assert got[1, 1, 2] == 1
  array[0, 0, 0] = -5e-6
  with pytest.raises(ImageError, match="not in"):
    read_image(array)


@pytest.mark.parametrize(
  ("array", "says"),
  [
    (RGB.astype(np.float32), r"0 to 255, .*looks like 0..255: divide by 255"),
    (GREY16.astype(float), r"looks like 0..65535"),
    (RGB / 127.5 - 1, r"-1 to 1, .*looks like -1..1"),
    (RGB / 50.0 - 2, r"normalisation"),
    (np.full((2, 2, 3), np.nan), r"12 of 12 values are NaN"),
    (np.where(RGB == 255, np.inf, 0.5), r"3 of 45 values are NaN or infinite"),
    (np.full((2, 2), 1e300), r"normalisation"),
    (RGB.astype(np.int32), r"type int32 .*uint8"),
    (RGB.astype(np.int8), r"type int8"),
    (jnp.asarray(RGB, jnp.uint32), r"type uint32"),
    (RGB.astype(complex), r"type complex128"),
    (np.array([["a", "b"]]), r"type <U1"),
    (np.zeros((2, 2, 3), object), r"type object"),
    (np.zeros((1, 8, 8, 3)), r"\(1, 8, 8, 3\).*batch.*images\[0\]"),
    (np.zeros((3, 8, 8)), r"channels first.*moveaxis"),
    (np.zeros((8, 8, 5)), r"has not the shape"),
    (np.zeros(9), r"\(9,\).*has not the shape"),
    (np.zeros((2, 2, 2, 2, 2)), r"has not the shape"),
    (np.float32(0.5), r"has not the shape"),
    (np.zeros((0, 4, 3)), r"has no pixels"),
    (np.zeros((4, 0), np.uint8), r"has no pixels"),
    (None, r"NoneType.*has not the shape"),
    (b"\xff\xd8\xff", r"bytes"),
    ({"image": 1}, r"dict"),
    (io.BytesIO(b""), r"BytesIO"),
    ([[0.0, 1.0], [0.5]], r"list given as an image is no array"),
  ],
)
def test_wrong_arrays_say_what_is_wrong(array, says):
  with pytest.raises(ImageError, match=says):
    read_image(array)


def test_inside_jit_is_an_image_error():
  with pytest.raises(ImageError, match="no array"):
    jax.jit(lambda x: jnp.asarray(read_image(x)))(jnp.zeros((2, 2, 3)))


# --- PIL images -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("image", "want"),
  [
    (Image.fromarray(RGB), unit(RGB)),
    (Image.fromarray(GREY), unit(GREY)),
    (Image.fromarray(np.dstack([GREY, ALPHA])), over_white(GREY, ALPHA)),
    (Image.fromarray(np.dstack([RGB, ALPHA])), over_white(RGB, ALPHA)),
    (Image.fromarray(GREY > 99), unit(GREY > 99, 1)),
    (Image.fromarray(GREY16), unit(GREY16, 65535)),
    (Image.fromarray(GREY16.astype(">u2")), unit(GREY16, 65535)),
    (Image.fromarray(GREY16.astype(np.int32)), unit(GREY16, 65535)),
    (Image.fromarray((GREY / 255).astype(np.float32)), unit(GREY)),
    # Ink: 0 is paper. Cyan and yellow at full give green.
    (Image.new("CMYK", (2, 2), (255, 0, 255, 0)), np.tile([0.0, 1, 0], (2, 2, 1))),
    (Image.new("CMYK", (2, 2), (0, 0, 0, 204)), np.full((2, 2, 3), 0.2)),
    (Image.new("HSV", (2, 2), (0, 255, 255)), np.tile([1.0, 0, 0], (2, 2, 1))),
    (Image.new("RGBX", (1, 2), (10, 20, 30, 0)), np.tile([10, 20, 30], (2, 1, 1)) / 255),
    # Premultiplied: half of 100 is 50.
    (Image.new("RGBA", (1, 1), (100, 0, 0, 51)).convert("RGBa"), None),
    (Image.new("LA", (1, 1), (100, 51)).convert("La"), over_white([[100]], [[51]])),
  ],
  ids=lambda v: v.mode if isinstance(v, Image.Image) else "",
)
def test_pil_modes(image, want):
  want = over_white([[[100, 0, 0]]], [[51]]) if want is None else want
  assert_image(read_image(image), want, atol=1e-6 if image.mode not in ("RGBa", "La") else 0.01)


def test_a_pil_image_is_left_as_it_was():
  image = Image.fromarray(np.dstack([RGB, ALPHA]))
  image.info["transparency"] = 3
  before = image.tobytes()
  read_image(image)
  assert (image.mode, image.info, image.tobytes()) == ("RGBA", {"transparency": 3}, before)


@pytest.mark.parametrize(
  ("image", "says"),
  [
    (Image.new("RGB", (0, 3)), "mode RGB and size 0 x 3: has no pixels"),
    (Image.new("I", (3, 0)), "mode I and size 3 x 0: has no pixels"),
    (Image.fromarray(np.full((2, 2), 70_000, np.int32)), "32-bit integers from 70000 to 70000"),
    (Image.fromarray(np.full((2, 2), -1, np.int32)), "32-bit integers from -1"),
    (Image.fromarray(np.full((2, 2), 200, np.float32)), "looks like 0..255"),
  ],
)
def test_wrong_pil_images_say_what_is_wrong(image, says):
  with pytest.raises(ImageError, match=says):
    read_image(image)


def test_a_closed_pil_image(tmp_path):
  image = Image.open(saved(tmp_path / "a.png", RGB))
  image.close()
  with pytest.raises(ImageError):
    read_image(image)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("a.png", {}),
    ("a.PNG", {}),
    ("a.bmp", {}),
    ("a.ppm", {}),
    ("a.tif", {}),
    ("a.tiff", {"compression": "tiff_lzw"}),
    ("b.tiff", {"compression": "tiff_deflate"}),
    ("a.webp", {"lossless": True}),
    ("a.jp2", {}),
    ("with blank and ü.png", {}),
    ("profile.png", {"icc_profile": b"no profile at all"}),
  ],
)
@pytest.mark.parametrize("as_text", [True, False])
def test_lossless_colour_files(tmp_path, name, options, as_text):
  path = saved(tmp_path / name, RGB, **options)
  assert_image(read_image(str(path) if as_text else path), unit(RGB))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_alpha_files_are_over_white(tmp_path, name):
  options = {"lossless": True, "exact": True} if name.endswith("webp") else {}
  path = saved(tmp_path / name, np.dstack([RGB, ALPHA]), **options)
  assert_image(read_image(path), over_white(RGB, ALPHA))


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.pgm", "a.tif"])
def test_grey_files(tmp_path, name):
  assert_image(read_image(saved(tmp_path / name, GREY)), unit(GREY))


@pytest.mark.parametrize("name", ["a.png", "a.pbm", "a.tif", "a.bmp"])
def test_black_and_white_files(tmp_path, name):
  assert_image(read_image(saved(tmp_path / name, GREY > 99)), unit(GREY > 99, 1))


def test_grey_alpha_png(tmp_path):
  path = saved(tmp_path / "a.png", np.dstack([GREY, ALPHA]))
  assert_image(read_image(path), over_white(GREY, ALPHA))


def test_palettes(tmp_path):
  image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
  image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255] + [0] * 759)
  want = np.eye(3)[None]
  assert_image(read_image(image), want)
  assert_image(read_image(saved(tmp_path / "a.png", image)), want)
  assert_image(read_image(saved(tmp_path / "a.gif", image)), want)
  assert_image(read_image(saved(tmp_path / "a.bmp", image)), want)
  # One entry seen through (GIF), or an alpha for each (PNG).
  want[0, 1] = 1
  assert_image(read_image(saved(tmp_path / "b.gif", image, transparency=1)), want)
  assert_image(read_image(saved(tmp_path / "b.png", image, transparency=1)), want)
  partly = read_image(saved(tmp_path / "c.png", image, transparency=bytes([255, 51, 0])))
  assert_image(partly, np.array([[[1, 0, 0], [0.8, 1, 0.8], [1, 1, 1]]]))


def test_a_transparent_colour_without_alpha(tmp_path):
  want = unit(RGB)
  want[1, 2] = 1
  path = saved(tmp_path / "a.png", RGB, transparency=tuple(int(v) for v in RGB[1, 2]))
  assert_image(read_image(path), want)
  key = struct.pack(">H", int(GREY16[1, 2]))
  data = png(GREY16.astype(">u2"), 16, 0, (3, 5), (b"tRNS", key))
  (tmp_path / "16.png").write_bytes(data)
  want = unit(GREY16, 65535)
  want[1, 2] = 1
  assert_image(read_image(tmp_path / "16.png"), want)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
  stored = GREY16.astype(">u2")
  (tmp_path / "a.png").write_bytes(png(stored, 16, 0, (3, 5)))
  (tmp_path / "little.tif").write_bytes(tiff16(GREY16, "<"))
  (tmp_path / "big.tif").write_bytes(tiff16(GREY16, ">"))
  (tmp_path / "a.pgm").write_bytes(b"P5 5 3 65535\n" + stored.tobytes())
  for name in ("a.png", "little.tif", "big.tif", "a.pgm"):
    assert_image(read_image(tmp_path / name), unit(GREY16, 65535))
  colour = np.stack([GREY16] * 3, axis=-1)
  colour[..., 1] //= 2
  (tmp_path / "rgb.png").write_bytes(png(colour.astype(">u2"), 16, 2, (3, 5)))
  assert_image(read_image(tmp_path / "rgb.png"), unit(colour, 65535), atol=1 / 255)  # Pillow's 8
  # 12 of 16 bits: a range of its own, known from the header.
  (tmp_path / "12.pgm").write_bytes(b"P5 2 1 4095\n" + struct.pack(">HH", 4095, 819))
  assert_image(read_image(tmp_path / "12.pgm"), unit([[1, 0.2]], 1), atol=1e-4)


def test_float_tiff(tmp_path):
  image = Image.fromarray((GREY / 255).astype(np.float32))
  assert_image(read_image(saved(tmp_path / "a.tif", image)), unit(GREY))
  path = saved(tmp_path / "b.tif", Image.fromarray(GREY.astype(np.float32)))
  with pytest.raises(ImageError, match=r"b\.tif.*looks like 0\.\.255"):
    read_image(path)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", *["a.avif"] * features.check("avif")])
@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 0, 255), (250, 240, 30), (128, 128, 128)])
def test_lossy_files(tmp_path, name, colour):
  path = saved(tmp_path / name, Image.new("RGB", (16, 16), colour), quality=95)
  assert_image(read_image(path), np.tile(np.array(colour) / 255, (16, 16, 1)), atol=6 / 255)


@pytest.mark.parametrize(
  ("ink", "colour"),
  [
    ((0, 0, 0, 0), (1, 1, 1)),
    ((255, 0, 0, 0), (0, 1, 1)),
    ((0, 255, 255, 0), (1, 0, 0)),
    ((0, 0, 0, 255), (0, 0, 0)),
  ],
)
def test_cmyk_files(tmp_path, ink, colour):
  image = Image.new("CMYK", (16, 16), ink)
  want = np.tile(np.array(colour, float), (16, 16, 1))
  jpeg = saved(tmp_path / "a.jpg", image, quality=98)
  assert b"Adobe" in jpeg.read_bytes()  # whose inks are stored inverted: 255 is none
  assert_image(read_image(jpeg), want, atol=0.02)
  assert_image(read_image(saved(tmp_path / "a.tif", image)), want)


def test_jpegs_are_decoded_in_full(tmp_path):
  """No draft mode: the pixels are Pillow's own at full size."""
  ramp = np.add.outer(np.arange(200), np.arange(300)).astype(np.uint8)
  path = saved(tmp_path / "a.jpg", np.stack([ramp, ramp.T.reshape(200, 300), ramp], axis=-1))
  with Image.open(path) as image:
    assert_image(read_image(path), unit(np.asarray(image)))
  grey = saved(tmp_path / "grey.jpg", ramp)
  with Image.open(grey) as image:
    assert_image(read_image(grey), unit(np.asarray(image)))


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_the_first_frame_or_page_is_read(tmp_path, name):
  frames = [Image.new("RGB", (16, 16), c) for c in [(255, 0, 0), (0, 255, 0), (0, 0, 255)]]
  path = saved(tmp_path / name, frames[0], save_all=True, append_images=frames[1:])
  with Image.open(path) as image:
    assert image.n_frames == 3
    assert_image(read_image(path), np.tile([1.0, 0, 0], (16, 16, 1)), atol=0.02)
    image.seek(2)  # of a PIL image: where it stands
    assert_image(read_image(image), np.tile([0, 0, 1.0], (16, 16, 1)), atol=0.02)


def test_a_stereo_jpeg_is_its_first_picture(tmp_path):
  first, second = (Image.new("RGB", (16, 16), c) for c in [(255, 0, 0), (0, 255, 0)])
  path = saved(tmp_path / "a.mpo", first, save_all=True, append_images=[second])
  assert_image(read_image(path), np.tile([1.0, 0, 0], (16, 16, 1)), atol=0.02)


# Where row 0 and column 0 of the stored pixels are on the upright picture (EXIF 2.3, tag 274).
SIDES = {
  1: ("top", "left"),
  2: ("top", "right"),
  3: ("bottom", "right"),
  4: ("bottom", "left"),
  5: ("left", "top"),
  6: ("right", "top"),
  7: ("right", "bottom"),
  8: ("left", "bottom"),
}


def upright(stored, orientation):
  rows, columns = stored.shape[:2]
  row_side, column_side = SIDES[orientation]
  turned = row_side in ("left", "right")
  out = np.empty((columns, rows, 3) if turned else (rows, columns, 3), stored.dtype)
  for r in range(rows):
    for c in range(columns):
      place = r if row_side in ("top", "left") else rows - 1 - r
      other = c if column_side in ("top", "left") else columns - 1 - c
      out[(other, place) if turned else (place, other)] = stored[r, c]
  return out


@pytest.mark.parametrize("orientation", SIDES)
@pytest.mark.parametrize("kind", ["png", "tif", "webp", "jpg"])
def test_exif_orientation(tmp_path, orientation, kind):
  exif = Image.Exif()
  exif[0x0112] = orientation
  stored = np.kron(RGB, np.ones((8, 8, 1), np.uint8)) if kind == "jpg" else RGB
  options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(kind, {})
  path = saved(tmp_path / f"a.{kind}", stored, exif=exif, **options)
  want = unit(upright(stored, orientation))
  assert_image(read_image(path), want, atol=0.02 if kind == "jpg" else 1e-6)
  with Image.open(path) as image:
    image.load()
    again = read_image(image)
  assert_image(again, want, atol=0.02 if kind == "jpg" else 1e-6)


def test_exif_turns_palettes_alpha_and_sixteen_bits_too(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  palette = Image.fromarray(RGB).quantize(15)
  stored = np.asarray(palette.convert("RGB"))
  path = saved(tmp_path / "p.png", palette, exif=exif)
  assert_image(read_image(path), unit(upright(stored, 6)))
  path = saved(tmp_path / "a.png", np.dstack([RGB, ALPHA]), exif=exif)
  assert_image(read_image(path), upright(over_white(RGB, ALPHA), 6))
  path = saved(tmp_path / "i.png", Image.fromarray(GREY16), exif=exif)
  assert_image(read_image(path), upright(unit(GREY16, 65535), 6))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("value", [0, 9, 77, 65535, 2.5, "left"])
def test_a_senseless_orientation_costs_nothing(tmp_path, monkeypatch, value):
  monkeypatch.setattr(Image.Image, "getexif", lambda self: {0x0112: value})
  assert_image(read_image(saved(tmp_path / "a.png", RGB)), unit(RGB))


@pytest.mark.filterwarnings("ignore")
def test_a_broken_exif_block_costs_nothing(tmp_path, monkeypatch):
  path = saved(tmp_path / "a.png", RGB, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
  assert_image(read_image(path), unit(RGB))

  def getexif(self):
    raise SyntaxError("not a TIFF file")

  monkeypatch.setattr(Image.Image, "getexif", getexif)
  assert_image(read_image(path), unit(RGB))


def test_the_first_image_of_a_process_may_be_of_any_format(tmp_path):
  """Pillow registers most of its formats late, and takes no name that is not registered."""
  path = saved(tmp_path / "a.tif", RGB)
  code = f"from sane_jax.datasets import images; print(images.read_image({str(path)!r}).sum())"
  root = Path(images.__file__).parents[2]
  run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  assert float(run.stdout) == pytest.approx(unit(RGB).sum())


def test_what_is_no_file(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for given_, says in [
    ("cat.jpg", r"'cat.jpg': no such file \(looked in .*\); give the path"),
    (tmp_path / "cat.jpg", r"cat.jpg': no such file; give"),
    ("", r"'': no such file"),
    (tmp_path, r"a folder; give one of the images"),
    ("https://example.org/cat.jpg", r"a web address; download"),
    ("a\0b.jpg", r"null byte.*give the path"),
    ("x" * 5000, r"too long"),
    ("/dev/null", r"a pipe or device"),
  ]:
    with pytest.raises(ImageError, match=says):
      read_image(given_)


@pytest.mark.parametrize(
  ("content", "says"),
  [
    (b"", r"an empty file \(0 bytes\)"),
    (b"GIF", r"no image of a format known here \(AVIF, .*convert it to JPEG or PNG"),
    (b"not an image at all\n" * 9, r"no image of a format"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", r"no image of a format"),
    (b"%PDF-1.7\n", r"no image of a format"),
    # Known to Pillow, but it would run an interpreter on it.
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", r"no image of a format"),
    (png([], 8, 2, (4, 4)), r"broken or cut short"),
  ],
)
def test_files_that_are_no_image(tmp_path, content, says):
  path = tmp_path / "a.jpg"
  path.write_bytes(content)
  with pytest.raises(ImageError, match=says) as caught:
    read_image(path)
  assert str(path) in str(caught.value)


# --- broken files ---------------------------------------------------------------------------------


def photo_like(side=40):
  x = np.linspace(0, 6, side)
  waves = np.stack([np.sin(np.add.outer(x, k * x)) for k in (1, 2, 3)], axis=-1)
  return Image.fromarray(np.uint8(127 + 120 * waves))


ENCODINGS = {
  "jpeg": ("JPEG", {}),
  "progressive": ("JPEG", {"progressive": True}),
  "png": ("PNG", {}),
  "gif": ("GIF", {}),
  "bmp": ("BMP", {}),
  "ppm": ("PPM", {}),
  "webp": ("WEBP", {}),
  "webp-lossless": ("WEBP", {"lossless": True}),
  "tiff": ("TIFF", {}),
  "tiff-lzw": ("TIFF", {"compression": "tiff_lzw"}),
  "tiff-deflate": ("TIFF", {"compression": "tiff_deflate"}),
  "tiff-jpeg": ("TIFF", {"compression": "jpeg"}),
  "jpeg2000": ("JPEG2000", {}),
}
if features.check("avif"):  # since Pillow 11.3
  ENCODINGS["avif"] = ("AVIF", {})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_truncated_file_is_an_error_or_whole(tmp_path, encoding):
  kind, options = ENCODINGS[encoding]
  data = encoded(photo_like(), kind, **options)
  path = tmp_path / "a"
  path.write_bytes(data)
  whole = read_image(path)
  lengths = {int(n) for n in np.linspace(1, len(data) - 1, 60)}
  refused = 0
  for length in sorted(lengths | set(range(len(data) - 30, len(data)))):
    path.write_bytes(data[:length])
    try:
      # The last bytes may hold no pixels; then all of them must be there.
      np.testing.assert_array_equal(read_image(path), whole, err_msg=f"cut to {length} bytes")
    except ImageError:
      refused += 1
  assert refused > 40


def assert_image_or_error(data):
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "a")
    path.write_bytes(data)
    try:
      got = read_image(path, max_pixels=200_000)
    except ImageError:
      return
  assert got.dtype == np.float32
  assert got.ndim == 3
  assert got.shape[2] == 3
  assert got.size > 0
  assert got.min() >= 0
  assert got.max() <= 1


FUZZ = settings(
  max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
STARTS = [b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"MM\0*"]
STARTS += [b"P6 ", b"P5 3 3 255\n", b"RIFF\0\1\0\0WEBPVP8 ", b"\0\0\0 ftypavif", b"Pf 2 2 -1\n"]


@pytest.mark.filterwarnings("ignore")
@FUZZ
@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=300))
def test_random_bytes(start, rest):
  assert_image_or_error(start + rest)


ORIGINALS = {
  name: encoded(photo_like(24), *ENCODINGS[name][:1], **ENCODINGS[name][1]) for name in ENCODINGS
}


@pytest.mark.filterwarnings("ignore")
@settings(FUZZ, max_examples=500)
@given(
  name=st.sampled_from(["jpeg", "png", *ENCODINGS]),
  changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6),
  cut=st.integers(0, 40),
)
def test_mutated_files(name, changes, cut):
  data = bytearray(ORIGINALS[name])
  for place, value in changes:
    # Half of them in the header, where they matter most.
    data[place % (len(data) if place % 2 else min(len(data), 64))] = value
  assert_image_or_error(bytes(data[: len(data) - cut]))


# --- large files ----------------------------------------------------------------------------------


@pytest.fixture
def no_decoding(monkeypatch):
  def load(self):
    raise AssertionError("decoded")

  monkeypatch.setattr(ImageFile.ImageFile, "load", load)


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path):
  """20,000 x 20,000 black pixels: 400 MB of memory in a file of 50 kB."""
  path = tmp_path / "bomb.png"
  path.write_bytes(png((bytes(2500) for _ in range(20_000)), 1, 0, (20_000, 20_000)))
  assert path.stat().st_size < 100_000
  scale = 1 if sys.platform == "darwin" else 1024
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  start = time.monotonic()
  with pytest.raises(ImageError, match=r"bomb\.png: too large .*400000000"):
    read_image(path)
  with pytest.raises(ImageError, match="too large"):
    read_image(path, max_pixels=10**9)  # Pillow's own limit stays
  assert time.monotonic() - start < 1
  grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  assert grown * scale < 30e6


@pytest.mark.usefixtures("no_decoding")
def test_max_pixels_holds_before_decoding(tmp_path):
  path = saved(tmp_path / "a.png", RGB)
  for source in (path, Image.open(path)):
    with pytest.raises(ImageError, match=r"15 pixels, at most 14 are read.*raise max_pixels"):
      read_image(source, max_pixels=14)
  with pytest.raises(ImageError, match="15 pixels, at most 14"):
    read_image(RGB, max_pixels=14)


def test_max_pixels_may_be_reached(tmp_path):
  path = saved(tmp_path / "a.png", RGB)
  for source in (path, Image.open(path), RGB):
    assert_image(read_image(source, max_pixels=15), unit(RGB))


@pytest.mark.usefixtures("no_decoding")
@pytest.mark.parametrize(
  ("kind", "place", "size"),
  [
    ("GIF", 6, struct.pack("<HH", 65535, 65535)),
    ("BMP", 18, struct.pack("<ii", 60_000, 60_000)),
    ("JPEG", None, struct.pack(">HH", 60_000, 60_000)),
    ("PNG", 16, struct.pack(">II", 60_000, 60_000)),
    ("PPM", 0, b"P6 60000 60000 255\n"),
    ("GIF", 6, struct.pack("<HH", 12_000, 9_000)),  # Pillow's limit would let it pass
  ],
)
def test_headers_that_claim_a_large_image(tmp_path, kind, place, size):
  data = encoded(photo_like(16), kind)
  if place is None:
    place = data.index(b"\xff\xc0") + 5
  data = bytearray(data)
  if kind == "PNG":
    data[16:24] = size
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
  else:
    data[place : place + len(size)] = size
  path = tmp_path / "a"
  path.write_bytes(data)
  with pytest.raises(ImageError, match=r"too large|at most 100,000,000"):
    read_image(path)


def test_pillows_warning_of_bombs_is_not_shown_below_max_pixels(tmp_path, monkeypatch):
  path = saved(tmp_path / "a.png", RGB)
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # 15 pixels: Pillow warns
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert_image(read_image(path), unit(RGB))
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7)  # more than twice: it refuses
  with pytest.raises(ImageError, match="too large"):
    read_image(path)


def test_threads_leave_the_warning_filters_alone(tmp_path):
  path = saved(tmp_path / "a.png", RGB)
  before = list(warnings.filters)
  got = []
  work = lambda: got.extend(read_image(path) for _ in range(30))  # noqa: E731
  threads = [threading.Thread(target=work) for _ in range(6)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert list(warnings.filters) == before
  assert len(got) == 180
  for image in got:
    assert_image(image, unit(RGB))


# --- fit_image ------------------------------------------------------------------------------------


@pytest.fixture
def large(rng):
  return rng.uniform(size=(60, 91, 3)).astype(np.float32)


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
def test_an_image_of_the_right_size_comes_back_bit_for_bit(photo, fit):
  got = fit_image(photo, photo.shape[:2], fit=fit, crop_fraction=0.5, interpolation="bicubic")
  assert np.array_equal(got, photo)
  assert not np.shares_memory(got, photo)


def resized(image, size, interpolation="bilinear"):
  """Each channel by Pillow's float mode, whole."""
  resample = getattr(Image.Resampling, interpolation.upper())
  channels = [
    np.asarray(Image.fromarray(image[..., c].copy()).resize(size[::-1], resample)) for c in range(3)
  ]
  return np.stack(channels, axis=-1).clip(0, 1)


@pytest.mark.parametrize("shape", [(60, 91), (91, 60), (60, 60), (33, 32), (32, 33), (20, 27)])
@pytest.mark.parametrize("fraction", [1.0, 0.875, 0.9])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_is_resize_shorter_side_then_centre_crop(rng, shape, fraction, interpolation):
  """torchvision's two steps: Resize(s), longer side rounded down; CenterCrop(32)."""
  image = rng.uniform(size=(*shape, 3)).astype(np.float32)
  s = int(32 / fraction)
  h, w = shape
  full = (s, int(s * w / h)) if h <= w else (int(s * h / w), s)
  whole = resized(image, full, interpolation)
  top, left = round((full[0] - 32) / 2), round((full[1] - 32) / 2)
  want = whole[top : top + 32, left : left + 32]
  got = fit_image(image, (32, 32), crop_fraction=fraction, interpolation=interpolation)
  assert_image(got, want, atol=2e-5)


def test_crop_without_zoom_takes_pixels_as_they_are(large):
  got = fit_image(large, (60, 50))
  np.testing.assert_allclose(got, large[:, 20:70], atol=1e-6)


@pytest.mark.parametrize("size", [(20, 40), (40, 20), (21, 33), (16, 16)])
@pytest.mark.parametrize("fraction", [1.0, 0.8])
def test_crop_keeps_the_middle_and_the_aspect(size, fraction):
  """On a ramp each output pixel tells where it was taken."""
  h, w = 120, 180
  y, x = np.mgrid[:h, :w] + 0.5
  image = np.stack([y / h, x / w, np.zeros_like(x)], axis=-1).astype(np.float32)
  got = fit_image(image, size, crop_fraction=fraction)
  zoom = min(h / size[0], w / size[1]) * fraction
  rows = (np.arange(size[0]) + 0.5 - size[0] / 2) * zoom + h / 2
  columns = (np.arange(size[1]) + 0.5 - size[1] / 2) * zoom + w / 2
  inner = slice(2, -2)  # at the rim the filter has half its support
  # A pixel of the output may be lost to the rounding of the resized image.
  np.testing.assert_allclose(got[inner, 5, 0] * h, rows[inner], atol=zoom)
  np.testing.assert_allclose(got[5, inner, 1] * w, columns[inner], atol=zoom)


def triangle_weights(old, new):
  """Antialiased bilinear: a tent as wide as an output pixel's share, at least of one pixel."""
  scale = old / new
  centres = (np.arange(new) + 0.5) * scale
  distance = np.abs(np.arange(old) + 0.5 - centres[:, None]) / max(scale, 1)
  weights = np.maximum(1 - distance, 0)
  return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("size", [(20, 30), (17, 91), (100, 120), (1, 1)])
def test_stretch_against_the_filter_written_out(large, size):
  rows, columns = triangle_weights(60, size[0]), triangle_weights(91, size[1])
  want = np.einsum("yh,xw,hwc->yxc", rows, columns, large)
  assert_image(fit_image(large, size, fit="stretch"), want, atol=2e-6)


def test_pad_shows_the_whole_image_on_white(large):
  got = fit_image(large, (40, 40), fit="pad")
  inner = round(60 * 40 / 91)
  top = (40 - inner) // 2
  assert (got[:top] == 1).all()
  assert (got[top + inner :] == 1).all()
  inside = fit_image(large, (inner, 40), fit="stretch")
  assert np.array_equal(got[top : top + inner], inside)
  tall = fit_image(large.swapaxes(0, 1), (40, 40), fit="pad")
  np.testing.assert_allclose(tall, got.swapaxes(0, 1), atol=1e-6)
  line = fit_image(np.zeros((1, 900, 3), np.float32), (10, 10), fit="pad")
  assert (line == 0).any()
  assert line.shape == (10, 10, 3)


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (7, 3), (3, 2)])
@pytest.mark.parametrize("size", [(8, 8), (1, 1), (3, 9), (224, 1)])
def test_thin_and_tiny_images(fit, shape, size):
  image = np.full((*shape, 3), 0.25, np.float32)
  for interpolation in ("bilinear", "bicubic"):
    got = fit_image(image, size, fit=fit, crop_fraction=0.7, interpolation=interpolation)
    assert got.shape == (*size, 3)
    assert got.dtype == np.float32
    shown = got if fit != "pad" else got[got < 0.99]
    np.testing.assert_allclose(shown, 0.25, atol=1e-5)


def test_bicubic_overshoot_is_clipped():
  edge = np.zeros((8, 8, 3), np.float32)
  edge[:, 4:] = 1
  got = fit_image(edge, (32, 32), interpolation="bicubic")
  assert got.min() == 0
  assert got.max() == 1
  assert np.abs(got - fit_image(edge, (32, 32))).max() > 0.02  # it is another filter


def test_fit_is_deterministic_and_leaves_the_image_alone(large):
  before = large.copy()
  first, second = (fit_image(large, (28, 28)) for _ in range(2))
  assert np.array_equal(first, second)
  assert np.array_equal(large, before)


@pytest.mark.parametrize(
  ("change", "says"),
  [
    ({"image": np.zeros((4, 4))}, r"\(4, 4\)"),
    ({"image": np.zeros((4, 4, 3))}, "float64"),
    ({"image": np.zeros((0, 4, 3), np.float32)}, "read_image returns"),
    ({"size": (0, 4)}, "at least 1"),
    ({"size": (4, 4, 3)}, "height and width"),
    ({"size": (4.5, 4)}, "in pixels"),
    ({"fit": "squash"}, "'crop', 'stretch' or 'pad'; given 'squash'"),
    ({"crop_fraction": 0}, r"\(0, 1\]; given 0"),
    ({"crop_fraction": 1.1}, "given 1.1"),
    ({"crop_fraction": float("nan")}, "given nan"),
    ({"interpolation": "nearest"}, "'bilinear' or 'bicubic'; given 'nearest'"),
  ],
)
def test_wrong_options_are_named(change, says):
  options = {"image": np.zeros((4, 4, 3), np.float32), "size": (2, 2)} | change
  with pytest.raises(ValueError, match=says):
    fit_image(**options)


def test_image_error_is_a_value_error():
  assert issubclass(images.ImageError, ValueError)
