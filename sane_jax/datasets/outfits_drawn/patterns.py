"""Fabrics: where a pattern shows the second colour, and how a material changes the light."""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

Field = np.ndarray  # [h w] float32


def _stripes(phase: Field, duty: float) -> Field:
  """1 in the share `duty` of each period, 0 elsewhere, with an edge of about a pixel."""
  distance = np.abs(phase - np.round(phase))
  return np.clip((duty / 2 - distance) * 14 + 0.5, 0, 1)


def _cells(x: Field, y: Field, shift: bool = True) -> tuple[Field, Field, Field]:
  """Position within cells of side 1, every other row shifted by half, and the cells' numbers."""
  row = np.floor(y)
  x = x + 0.5 * (row % 2) if shift else x
  column = np.floor(x)
  return x - column - 0.5, y - row - 0.5, column * 7.13 + row * 3.77


def _noise(shape: tuple[int, int], scale: float, rng: np.random.Generator) -> Field:
  """Smooth noise of standard deviation 1, features `scale` pixels wide."""
  small = [max(2, int(n / scale) + 2) for n in shape]
  coarse = rng.standard_normal(small).astype(np.float32)
  zoom = [n / s for n, s in zip(shape, small, strict=True)]
  fine = np.asarray(ndimage.zoom(coarse, zoom, order=1, grid_mode=True, mode="nearest"))
  return fine[: shape[0], : shape[1]]


def _star(x: Field, y: Field, points: int, inner: float) -> Field:
  """A radius of 1 times how far out a star-like outline is in that direction."""
  angle = np.arctan2(y, x)
  wave = 0.5 + 0.5 * np.cos(points * angle)
  return np.hypot(x, y) / (inner + (1 - inner) * wave)


def pattern(name: str, x: Field, y: Field, rng: np.random.Generator) -> Field:
  """Share of the second colour [h w] in [0, 1]; x and y are pixels along the cloth."""
  size = rng.uniform(0.85, 1.2)
  if name == "striped":
    along = x if rng.uniform() < 0.4 else y
    return _stripes(along / (22 * size), 0.5)
  if name == "dotted":
    u, v, _ = _cells(x / (26 * size), y / (26 * size))
    return np.clip((0.3 - np.hypot(u, v)) * 20 + 0.5, 0, 1)
  if name == "checkered":
    a, b = np.floor(x / (24 * size)), np.floor(y / (24 * size))
    return ((a + b) % 2).astype(np.float32)
  if name == "gingham":
    return 0.5 * _stripes(x / (26 * size), 0.5) + 0.5 * _stripes(y / (26 * size), 0.5)
  if name == "plaid":
    period = 48 * size
    wide = 0.45 * (_stripes(x / period, 0.42) + _stripes(y / period, 0.42))
    thin = _stripes(x / period + 0.5, 0.07) + _stripes(y / period + 0.5, 0.07)
    return np.clip(wide + 0.9 * thin, 0, 1)
  if name == "floral":
    u, v, number = _cells(x / (44 * size), y / (44 * size))
    turn = number * 1.7
    p, q = u * np.cos(turn) - v * np.sin(turn), u * np.sin(turn) + v * np.cos(turn)
    petals = np.clip((0.36 - _star(p, q, 5, 0.35) * 0.9) * 14, 0, 1)
    return np.where(np.hypot(u, v) < 0.09, 0.0, petals).astype(np.float32)
  if name == "leopardprint":
    u, v, number = _cells(x / (24 * size), y / (22 * size))
    wobble = 0.3 + 0.1 * np.sin(3 * np.arctan2(v, u) + number * 2.1)
    ring = np.abs(np.hypot(u, v) - wobble)
    gap = np.cos(np.arctan2(v, u) + number * 5.3) > 0.75
    return np.where(gap, 0.0, np.clip((0.13 - ring) * 16, 0, 1)).astype(np.float32)
  if name == "snakeprint":
    a, b = (x + y) / (22 * size), (x - y) / (22 * size)
    number = np.floor(a) * 12.9 + np.floor(b) * 78.2
    dark = np.modf(np.abs(np.sin(number)) * 437.5)[0] > 0.45
    edge = np.minimum(np.abs(a - np.round(a)), np.abs(b - np.round(b)))
    return np.where(dark, np.clip((edge - 0.06) * 12, 0, 1), 0.0).astype(np.float32)
  if name == "geometricprint":
    a, b = x / (40 * size), y / (34 * size)
    u, v = a - np.floor(a), b - np.floor(b)
    triangle = np.abs(u - 0.5) * 2 < v
    return (triangle ^ (np.floor(b) % 2 == 1)).astype(np.float32)
  if name == "colorblock":
    edge = rng.uniform(-25, 25)
    return np.clip((y - edge) * 0.8 + 0.5, 0, 1)
  if name == "starry":
    u, v, number = _cells(x / (40 * size), y / (40 * size))
    turn = number
    p, q = u * np.cos(turn) - v * np.sin(turn), u * np.sin(turn) + v * np.cos(turn)
    return np.clip((0.4 - _star(p, q, 5, 0.22)) * 14, 0, 1)
  if name == "graphic":
    disc = np.hypot(x, y + 5) < 38 * size
    bars = _stripes(y / 15 + 0.3, 0.42) > 0.5
    return (disc & (bars | (np.hypot(x, y + 5) > 31 * size))).astype(np.float32)
  raise ValueError(f"no pattern {name!r}")


PATTERNS = (
  "striped", "dotted", "checkered", "gingham", "plaid", "floral", "leopardprint", "snakeprint",
  "geometricprint", "colorblock", "starry", "graphic",
)  # fmt: skip


def _denim(x, y, rng):
  weave = 0.05 * np.sin((x + y) * 0.9)
  return 1 + weave + 0.06 * _noise(x.shape, 3, rng) + 0.05 * _noise(x.shape, 40, rng), 0.0


def _knitted(x, y, rng):
  rib = np.abs((x / 16) % 1 - 0.5) * 2
  chevron = (y / 11 + 0.7 * rib) % 1
  return 0.86 + 0.24 * np.clip(1.6 * chevron, 0, 1) - 0.12 * (rib > 0.9), 0.0


def _quilted(x, y, rng):
  a, b = ((x + y) / 42) % 1, ((x - y) / 42) % 1
  edge = np.minimum(np.minimum(a, 1 - a), np.minimum(b, 1 - b))
  return 0.72 + 0.36 * np.clip(edge * 4, 0, 1), 0.0


def _leather(x, y, rng):
  gloss = np.exp(-(((x * 0.5 + y * 0.3) % 90 - 30) ** 2) / 90)
  return 0.85 + 0.04 * _noise(x.shape, 2, rng), 0.4 * gloss


def _lace(x, y, rng):
  u, v, _ = _cells(x / 20, y / 20)
  radius = np.hypot(u, v)
  holes = np.clip((0.33 - radius) * 14, 0, 1) * (np.abs(np.sin(3 * np.arctan2(v, u))) > 0.35)
  return np.ones_like(x), 0.8 * holes


def _sequin(x, y, rng):
  u, v, number = _cells(x / 10, y / 10)
  spark = np.modf(np.abs(np.sin(number * 12.9)) * 437.5)[0]
  disc = np.clip((0.46 - np.hypot(u, v)) * 8, 0, 1)
  return 0.7 + 0.35 * disc * spark, 0.55 * disc * (spark > 0.72)


def _ribbed(x, y, rng):
  return 0.9 + 0.14 * np.sin(x * 2 * np.pi / 11), 0.0


def _mesh(x, y, rng):
  u, v, _ = _cells(x / 11, y / 11)
  return np.full_like(x, 0.95), 0.6 * np.clip((0.3 - np.maximum(np.abs(u), np.abs(v))) * 12, 0, 1)


def _crochet(x, y, rng):
  u, v, _ = _cells(x / 30, y / 30, shift=False)
  radius = np.hypot(u, v)
  rings = 0.8 + 0.25 * np.cos(radius * 40)
  return rings, 0.75 * np.clip((0.14 - np.abs(radius - 0.3)) * 14, 0, 1) * (
    np.abs(np.sin(4 * np.arctan2(v, u))) > 0.5
  )


def _suede(x, y, rng):
  return 0.93 + 0.1 * _noise(x.shape, 9, rng) + 0.05 * _noise(x.shape, 2, rng), 0.0


Material = Callable[[Field, Field, np.random.Generator], tuple[Field, Field | float]]
# (x, y, rng) -> factor of the colour, and how much of white shows instead.
MATERIALS: dict[str, Material] = {
  "denim": _denim, "knitted": _knitted, "quilted": _quilted, "leather": _leather, "lace": _lace,
  "sequin": _sequin, "ribbed": _ribbed, "mesh": _mesh, "crochet": _crochet, "suede": _suede,
}  # fmt: skip
