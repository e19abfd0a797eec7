"""Pictures that hide parts of others, by the hash that settings have in their place."""

import hashlib
from typing import Any

import cachetools
import numpy as np
from jaxtyping import Float

_HASH = "image with SHA-256 "

# The last few that this program has used: an explanation's settings then say what it was made with.
_KEPT: cachetools.LRUCache[str, np.ndarray] = cachetools.LRUCache(8)


def name(pixels: Float[np.ndarray, "h w 3"]) -> str:
  """What settings call it."""
  return f"{_HASH}{hashlib.sha256(np.asarray(pixels, np.float32).tobytes()).hexdigest()}"


def is_name(fill: Any) -> bool:
  """Whether it names a picture."""
  return isinstance(fill, str) and fill.startswith(_HASH)


def keep(pixels: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
  """The picture itself, from now on found by its name."""
  _KEPT[name(pixels)] = pixels
  return pixels


def find(fill: str) -> Any:
  """The picture of that name; other names of fills as they are.

  Raises:
    ValueError: a picture that this program does not have.
  """
  if not is_name(fill):
    return fill
  if (pixels := _KEPT.get(fill)) is None:
    raise ValueError(
      f"the fill is the {fill}, and this program has no such picture: give the picture itself,"
      " fill=array [h w 3]"
    )
  return pixels
