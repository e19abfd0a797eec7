"""Photos in, arrays out: reading any image as [h w 3] in [0, 1], and fitting it to a model."""

import io
import os
import stat
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sane_jax.ops import arrays
from sane_jax.runs import files

# Formats of photos, and no others: some of Pillow's (EPS) start an interpreter on the file.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

_BLOCK = 1 << 22  # pixels that are turned into floats at a time

# Floats this far outside [0, 1] are rounding, and are clipped; further out they are an error.
TOLERANCE = 1e-6

INTERPOLATIONS = {
  "bilinear": Image.Resampling.BILINEAR,
  "bicubic": Image.Resampling.BICUBIC,
}

_ORIENTATION = 0x0112  # the EXIF tag

# What turns the stored pixels upright, by the value of the EXIF tag.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
  2: lambda a: a[:, ::-1],
  3: lambda a: a[::-1, ::-1],
  4: lambda a: a[::-1],
  5: lambda a: a.swapaxes(0, 1),
  6: lambda a: a.swapaxes(0, 1)[:, ::-1],
  7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
  8: lambda a: a.swapaxes(0, 1)[::-1],
}

# Python's warning filters belong to the process: two threads must not swap them at once.
_FILTERS = threading.Lock()


class ImageError(ValueError):
  """An image can't be read; says what was given, what is wrong and what would do."""


def read_image(source: Any, *, max_pixels: int = 100_000_000) -> np.ndarray:
  """An image of any kind as float32 RGB.

  Transparent pixels are shown over white. EXIF orientation is applied, colour profiles are ignored.
  Of an animation or a document of several pages, the first is read (of a PIL image, the current).

  Args:
    source: a path; a PIL image; or an array [h w], [h w 1], [h w 2] (grey, alpha), [h w 3] or
      [h w 4] (colour, alpha), as uint8 in 0..255, uint16 in 0..65535, bool, or float in [0, 1].
      Whatever numpy can take, JAX arrays too. PIL's integer modes (I, I;16) are in 0..65535.
    max_pixels: larger images are refused; a file by its header, before it is decoded.

  Returns:
    [h w 3] float32 in [0, 1], the caller's own.

  Raises:
    ImageError: it can't be read, or its values have another range.
  """
  if isinstance(source, str | os.PathLike):
    name = os.fspath(source)
    name = name if isinstance(name, str) else os.fsdecode(name)
    return _to_rgb(_read_file(name, max_pixels), name)
  if isinstance(source, Image.Image):
    name = f"the PIL image of mode {source.mode} and size {source.width} x {source.height}"
    return _to_rgb(_decode(source, name, max_pixels), name)
  try:
    array = arrays.to_numpy(source)
  except Exception as error:  # ragged lists, arrays on a device, JAX tracers: each its own type
    raise ImageError(
      f"the {type(source).__name__} given as an image is no array ({_text(error)}); give a path, a"
      " PIL image or an array [h w 3]"
    ) from error
  name = f"the {type(source).__name__} of shape {array.shape} and type {array.dtype}"
  if array.ndim in (2, 3) and array.shape[0] * array.shape[1] > max_pixels:
    raise _too_large(name, array.shape[0] * array.shape[1], max_pixels)
  return _to_rgb(array, name)


def read_bytes(data: bytes, name: str, *, max_pixels: int = 100_000_000) -> np.ndarray:
  """The same of a file's bytes; `name` is what errors call it.

  Raises:
    ImageError: as `read_image`.
  """
  return _to_rgb(_read_data(data, name, max_pixels), name)


def fit_image(
  image: np.ndarray,
  size: tuple[int, int],
  *,
  fit: str = "crop",
  crop_fraction: float = 1.0,
  interpolation: str = "bilinear",
) -> np.ndarray:
  """The image at a model's input size, antialiased.

  An image that has this size already comes back as it is, bit for bit, and is not cropped either:
  what was fitted once is never fitted again.

  Args:
    image: [h w 3] float32 in [0, 1].
    size: height and width wanted.
    fit: 'crop' keeps the middle: of the largest centred window of the wanted shape, the share
      `crop_fraction`. It is torchvision's Resize(floor(s / crop_fraction)) and CenterCrop(s),
      without the rounding to 8 bits between them. 'stretch' ignores the aspect. 'pad' shows the
      whole image, centred on white.
    crop_fraction: in (0, 1], of each side; for 'crop' only.
    interpolation: 'bilinear' or 'bicubic'.

  Returns:
    [*size 3] float32 in [0, 1], the caller's own.

  Raises:
    ValueError: an option out of its range, or no such image.
  """
  image = np.asarray(image)
  if image.ndim != 3 or image.shape[2] != 3 or not image.size or image.dtype != np.float32:
    raise ValueError(
      "fit_image takes [h w 3] float32, as read_image returns it; given shape"
      f" {image.shape} and type {image.dtype}"
    )
  if len(size) != 2 or any(side != int(side) or side < 1 for side in size):
    raise ValueError(f"size is height and width in pixels, each at least 1; given {size!r}")
  if fit not in ("crop", "stretch", "pad"):
    raise ValueError(f"fit is 'crop', 'stretch' or 'pad'; given {fit!r}")
  if not 0 < crop_fraction <= 1:
    raise ValueError(f"crop_fraction lies in (0, 1]; given {crop_fraction!r}")
  if interpolation not in INTERPOLATIONS:
    raise ValueError(
      f"interpolation is {' or '.join(map(repr, INTERPOLATIONS))}; given {interpolation!r}"
    )
  shape = image.shape[:2]
  size = (int(size[0]), int(size[1]))
  if shape == size:
    return image.copy()
  resample = INTERPOLATIONS[interpolation]
  if fit == "crop":
    return _resize(image, size, resample, _centre_window(shape, size, crop_fraction))
  if fit == "stretch":
    return _resize(image, size, resample, (0, 0, *shape))
  scale = min(size[0] / shape[0], size[1] / shape[1])
  inner = [min(max(round(side * scale), 1), most) for side, most in zip(shape, size, strict=True)]
  top, left = ((most - side) // 2 for side, most in zip(inner, size, strict=True))
  out = np.ones((*size, 3), np.float32)
  inside = _resize(image, (inner[0], inner[1]), resample, (0, 0, *shape))
  out[top : top + inner[0], left : left + inner[1]] = inside
  return out


# --- files and PIL images -------------------------------------------------------------------------


def _read_file(name: str, max_pixels: int) -> np.ndarray:
  """The file's upright pixels, as _decode gives them."""
  if files.is_remote(name):
    return _read_remote(name, max_pixels)
  try:
    status = os.stat(name)
  except (OSError, ValueError) as error:  # ValueError: a null byte in the name
    if "://" in name:
      raise ImageError(f"{name}: a web address; download it and give the file's path") from error
    if not name or isinstance(error, FileNotFoundError):
      where = f" (looked in {Path.cwd()})" if not os.path.isabs(name) else ""
      raise ImageError(f"{name!r}: no such file{where}; give the path of an image") from error
    raise ImageError(f"{name!r}: {_text(error)}; give the path of an image") from error
  if stat.S_ISDIR(status.st_mode):
    raise ImageError(f"{name}: a folder; give one of the images in it")
  if not stat.S_ISREG(status.st_mode):  # a pipe would block, a device never end
    raise ImageError(f"{name}: a pipe or device; give the path of an image file")
  if not status.st_size:
    raise ImageError(f"{name}: an empty file (0 bytes); copy or download it again")
  try:
    image = _open(name)
  except Image.UnidentifiedImageError as error:
    raise ImageError(
      f"{name}: no image of a format known here ({', '.join(FORMATS)}), or its header is broken;"
      " convert it to JPEG or PNG"
    ) from error
  except Image.DecompressionBombError as error:
    raise ImageError(f"{name}: too large ({_text(error)}); make it smaller first") from error
  except PermissionError as error:
    raise ImageError(f"{name}: not allowed to read it; change its permissions") from error
  except Exception as error:  # on broken files Pillow raises errors of nearly every built-in type
    raise _broken(name, error) from error
  with image:
    return _decode(image, name, max_pixels)


def _read_remote(name: str, max_pixels: int) -> np.ndarray:
  """The same of an object in a bucket."""
  try:
    data = files.read_bytes(files.at(name))
  except OSError as error:
    raise ImageError(str(error)) from error
  return _read_data(data, name, max_pixels)


def _read_data(data: bytes, name: str, max_pixels: int) -> np.ndarray:
  if not data:
    raise ImageError(f"{name}: an empty file (0 bytes); copy or download it again")
  try:
    image = _open(io.BytesIO(data))
  except Image.UnidentifiedImageError as error:  # its text is of a buffer in memory
    raise ImageError(
      f"{name}: no image of a format known here ({', '.join(FORMATS)}), or its header is broken;"
      " convert it to JPEG or PNG"
    ) from error
  except Exception as error:  # on broken files Pillow raises errors of nearly every built-in type
    raise _broken(name, error) from error
  with image:
    return _decode(image, name, max_pixels)


def _open(name: str | io.BytesIO) -> Image.Image:
  with _FILTERS, warnings.catch_warnings():
    # max_pixels is checked instead.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    Image.init()  # open() takes only the names of formats that are registered by now
    return Image.open(name, formats=[kind for kind in FORMATS if kind in Image.OPEN])


def _decode(image: Image.Image, name: str, max_pixels: int) -> np.ndarray:
  """Upright pixels of one of the kinds of array that read_image takes."""
  pixels = image.width * image.height
  if pixels > max_pixels:
    raise _too_large(name, pixels, max_pixels)
  if not pixels:
    raise ImageError(f"{name}: has no pixels; give an image of at least 1 x 1")
  try:
    image.load()
    array = _pixels(image)
  except ImageError as error:
    raise ImageError(f"{name}: {error}") from error
  except Exception as error:  # as above
    raise _broken(name, error) from error
  try:
    # Last: a TIFF is turned when it is loaded, a PNG may keep the tag after its pixels.
    orientation = image.getexif().get(_ORIENTATION, 1)
  except Exception:
    orientation = 1  # a broken EXIF block does not cost the picture
  turn = _UPRIGHT.get(orientation)
  return array if turn is None else turn(array)


def _pixels(image: Image.Image) -> np.ndarray:
  if image.mode.startswith("I;16"):
    array = np.asarray(image)
    key = image.info.get("transparency")  # the one grey that is transparent
    if isinstance(key, int):
      array = np.stack([array, np.where(array == key, 0, 65535).astype(array.dtype)], axis=-1)
    return array
  if image.mode == "I":
    array = np.asarray(image)
    if array.min() < 0 or array.max() > 65535:
      raise ImageError(
        f"32-bit integers from {array.min()} to {array.max()}; 16 bits (0 to 65535) are read, so"
        " scale it to those"
      )
    return array.astype(np.uint16)
  if image.mode == "F":
    return np.asarray(image)
  if image.mode in ("La", "RGBa"):  # colours already multiplied by alpha
    image = image.convert("LA" if image.mode == "La" else "RGBA")
  if image.has_transparency_data:
    return np.asarray(image.convert("RGBA"))
  return np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))


def _too_large(name: str, pixels: int, max_pixels: int) -> ImageError:
  return ImageError(
    f"{name}: {pixels:,} pixels, at most {max_pixels:,} are read; make it smaller, or raise"
    " max_pixels"
  )


def _broken(name: str, error: Exception) -> ImageError:
  return ImageError(
    f"{name}: broken or cut short ({_text(error)}); copy or download it again, or save it anew as"
    " PNG"
  )


def _text(error: Exception) -> str:
  """The first line of an error's text; some have none, some pages."""
  lines = str(error).strip().splitlines()
  return lines[0][:200] if lines else type(error).__name__


# --- arrays ---------------------------------------------------------------------------------------


def _to_rgb(array: np.ndarray, name: str) -> np.ndarray:
  """Grey or colour, with or without alpha, of any type that read_image takes, to its result."""
  _check_shape(array, name)
  array = array if array.ndim == 3 else array[..., None]
  _check_range(array, name)
  out = np.empty((*array.shape[:2], 3), np.float32)
  rows = max(1, _BLOCK // array.shape[1])
  for begin in range(0, len(array), rows):  # bounds the memory
    part, values = out[begin : begin + rows], _to_unit(array[begin : begin + rows])
    part[:] = values[..., :3] if values.shape[2] > 2 else values[..., :1]
    if values.shape[2] in (2, 4):
      alpha = values[..., -1:]
      # Where alpha is 1 this changes no bit: x * 1 + 0.
      part *= alpha
      part += 1 - alpha
      np.clip(part, 0, 1, out=part)  # rounding of the sum
  return out


def _check_shape(array: np.ndarray, name: str) -> None:
  shape = array.shape
  wanted = "give [h w 3] in RGB, [h w 4] in RGBA, or [h w] in grey"
  if array.ndim == 4:
    raise ImageError(f"{name}: looks like a batch; give one image at a time, images[0]")
  if array.ndim == 3 and shape[2] not in (1, 2, 3, 4) and shape[0] in (1, 3, 4):
    raise ImageError(f"{name}: looks like channels first; {wanted}: np.moveaxis(image, 0, -1)")
  if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 2, 3, 4)):
    raise ImageError(f"{name}: has not the shape of an image; {wanted}, a path or a PIL image")
  if not array.size:
    raise ImageError(f"{name}: has no pixels; give an image of at least 1 x 1")


def _to_unit(array: np.ndarray) -> np.ndarray:
  """Values in [0, 1] as float32, shape kept."""
  if array.dtype.type in (np.uint8, np.uint16):  # of either byte order
    return np.divide(array, np.iinfo(array.dtype).max, dtype=np.float32)
  return np.clip(array.astype(np.float32), 0, 1)


def _check_range(array: np.ndarray, name: str) -> None:
  """Raises ImageError unless the values are of a type and in a range that `_to_unit` takes."""
  if array.dtype == bool or array.dtype.type in (np.uint8, np.uint16):
    return
  if not np.issubdtype(array.dtype, np.floating):
    raise ImageError(
      f"{name}: type {array.dtype} has no known range; give uint8 in 0..255, uint16 in 0..65535,"
      " bool, or float in [0, 1]: image.astype('uint8') where the values are 0..255"
    )
  low, high = array.min(), array.max()  # NaN where any value is NaN
  if not np.isfinite(low) or not np.isfinite(high):
    bad = array.size - np.isfinite(array).sum()
    raise ImageError(
      f"{name}: {bad} of {array.size} values are NaN or infinite; give floats in [0, 1]"
    )
  if low < -TOLERANCE or high > 1 + TOLERANCE:
    raise ImageError(
      f"{name}: floats from {low:g} to {high:g}, not in [0, 1]; {_range_advice(low, high)}"
    )


def _range_advice(low: float, high: float) -> str:
  if low >= -TOLERANCE and high <= 255 + TOLERANCE:
    return "looks like 0..255: divide by 255, or give uint8"
  if low >= -TOLERANCE and high <= 65535 + TOLERANCE:
    return "looks like 0..65535: divide by 65535, or give uint16"
  if low >= -1 - TOLERANCE and high <= 1 + TOLERANCE:
    return "looks like -1..1: give (image + 1) / 2"
  return "undo its normalisation; models here do their own"


# --- sizes ----------------------------------------------------------------------------------------


def seen_frame(
  shape: tuple[int, int], size: tuple[int, int], *, fit: str, crop_fraction: float = 1.0
) -> tuple[float, float, float, float]:
  """Top, left, bottom and right of a model's input in pixels of the photo that `fit_image` took.

  With 'pad' they lie beyond the photo: its margins are of the input and not of the photo.
  """
  if shape == size or fit == "stretch":
    return 0.0, 0.0, float(shape[0]), float(shape[1])
  if fit == "crop":
    return _centre_window(shape, size, crop_fraction)
  scale = min(size[0] / shape[0], size[1] / shape[1])
  inner = [min(max(round(side * scale), 1), most) for side, most in zip(shape, size, strict=True)]
  zoom = [side / n for side, n in zip(shape, inner, strict=True)]
  starts = [-((most - n) // 2) * z for n, most, z in zip(inner, size, zoom, strict=True)]
  top, left = starts
  return top, left, top + size[0] * zoom[0], left + size[1] * zoom[1]


def _centre_window(
  shape: tuple[int, int], size: tuple[int, int], fraction: float
) -> tuple[float, float, float, float]:
  """Top, left, bottom and right of what 'crop' keeps, in pixels of the image.

  The whole image would be resized to `full`, and the middle cut out at a whole pixel there; so the
  window is where torchvision's is, to the rounding of its steps.
  """
  # The side that limits the window comes to `shorter` exactly; 1e-6 guards floor(256.0 - rounding).
  axis = 0 if size[0] * shape[1] >= size[1] * shape[0] else 1
  shorter = max(int(size[axis] / fraction + 1e-6), size[axis])
  longer = max(shorter * shape[1 - axis] // shape[axis], size[1 - axis])
  full = (shorter, longer) if axis == 0 else (longer, shorter)
  starts = [round((f - s) / 2) for f, s in zip(full, size, strict=True)]
  zoom = [side / f for side, f in zip(shape, full, strict=True)]
  return (  # 161 * (27 / 161) is more than 27, and Pillow takes no window beyond the image
    starts[0] * zoom[0],
    starts[1] * zoom[1],
    min((starts[0] + size[0]) * zoom[0], shape[0]),
    min((starts[1] + size[1]) * zoom[1], shape[1]),
  )


def _resize(
  image: np.ndarray,
  size: tuple[int, int],
  resample: Image.Resampling,
  window: tuple[float, float, float, float],
) -> np.ndarray:
  """The window (top, left, bottom, right) at the size, antialiased, in float throughout."""
  top, left, bottom, right = window
  channels = [
    Image.fromarray(np.ascontiguousarray(image[..., c])).resize(
      (size[1], size[0]), resample, box=(left, top, right, bottom)
    )
    for c in range(3)
  ]
  # Bicubic overshoots at edges.
  return np.stack([np.asarray(c) for c in channels], axis=-1).clip(0, 1)
