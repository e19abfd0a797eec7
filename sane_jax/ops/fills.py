"""What is shown where a mask hides the image."""

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import ndimage


def _constant(value: float):
  return lambda image: np.full_like(image, value)


def _mean(image):
  return np.broadcast_to(image.mean(axis=(0, 1)), image.shape).astype(np.float32)


def _blur(image):
  # Wide enough that nothing of an 8 x 8 cell survives but its mean colour.
  sigma = min(image.shape[:2]) / 16
  return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest").astype(np.float32)


FILLS = {
  "mean": _mean,  # the image's own mean colour
  "black": _constant(0.0),
  "grey": _constant(127 / 255),
  "white": _constant(1.0),
  "blur": _blur,
}


def fill_image(fill: Any, image: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
  """The image [h w 3] in [0, 1] that stands behind a masked `image`.

  Args:
    fill: 'mean', 'black', 'grey', 'white', 'blur', a colour (r, g, b) in [0, 1], or an image
      [h w 3] in [0, 1].

  Raises:
    ValueError: another name, shape or range.
  """
  if isinstance(fill, str):
    if fill not in FILLS:
      raise ValueError(
        f"no fill {fill!r}; there is {', '.join(FILLS)}, a colour, or an image: an array, or a"
        " pathlib.Path"
      )
    return FILLS[fill](np.asarray(image, np.float32))
  array = np.asarray(fill, np.float32)
  if array.shape not in ((3,), image.shape) or not ((array >= 0) & (array <= 1)).all():
    given = f"values from {array.min():g} to {array.max():g}" if array.size else "no values"
    raise ValueError(
      f"a fill is a colour (r, g, b) or an image of shape {image.shape}, in [0, 1]; given shape"
      f" {array.shape} with {given}"
    )
  return np.broadcast_to(array, image.shape)


def fill_images(fill: Any, image: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "f h w 3"]:
  """One or several such images: names joined by +, as in 'mean+blur', take turns.

  Raises:
    ValueError: as `fill_image`.
  """
  names = fill.split("+") if isinstance(fill, str) else [fill]
  return np.stack([fill_image(name.strip() if len(names) > 1 else name, image) for name in names])


def check_fill(fill: Any) -> None:
  """Raises ValueError as `fill_images` does, before there is an image."""
  fill_images(fill, np.zeros((16, 16, 3), np.float32))


def num_fills(fill: Any) -> int:
  """How many images `fill_images` makes of it."""
  return fill.count("+") + 1 if isinstance(fill, str) else 1


def median_blur(image: Float[np.ndarray, "h w 3"], pixels: int) -> Float[np.ndarray, "h w 3"]:
  """Each channel's median over squares of `pixels` a side."""
  return ndimage.median_filter(image, (pixels, pixels, 1), mode="nearest").astype(np.float32)
