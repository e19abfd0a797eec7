"""A picture in the making: cloth cut to outlines, hardware in ink, and the pixels of each part."""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from sane_jax.datasets.outfits_drawn import patterns
from sane_jax.datasets.outfits_drawn.wardrobe import COLOURS, SIZE, Item

Points = Sequence[tuple[float, float]] | np.ndarray  # [n 2]
Colour = Sequence[float] | np.ndarray  # in 0..255
_FINE = 2  # outlines are drawn so many times as large, and reduced


def smooth(points: Points, times: int = 2, most: float = np.inf) -> np.ndarray:
  """Corners cut off (Chaikin), twice by default; no further along a side than `most`, in units."""
  p = np.asarray(points, float)
  for _ in range(times):
    q = np.roll(p, -1, axis=0)
    length = np.maximum(np.linalg.norm(q - p, axis=1, keepdims=True), 1e-9)
    cut = np.minimum(0.25, most / length)
    p = np.stack([p + cut * (q - p), q - cut * (q - p)], axis=1).reshape(-1, 2)
  return p


def mirror(points: Points) -> list[tuple[float, float]]:
  """A closed outline from its right half, from top to bottom."""
  return [*points, *((-x, y) for x, y in reversed(points))]


def _box(alpha: np.ndarray) -> tuple[slice, slice]:
  """The rows and columns in which anything is covered."""
  rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
  if not len(rows):
    return slice(0), slice(0)
  return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


class Canvas:
  """A picture in the making. Garments are drawn in units: x to the right, y down, about ±1."""

  def __init__(self, item: Item):
    self.item = item
    self.rng = rng = np.random.default_rng(item.seed)
    self.has = frozenset(item.attributes).__contains__
    angle = np.deg2rad(rng.uniform(-6, 6))
    hooded = self.has("hooded")
    low = item.kind == "necklace" and self.has("tasseled")  # the tassel hangs below
    scale = rng.uniform(112, 134) * (0.85 if hooded or low else 1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    self.matrix = scale * turn @ np.diag([rng.choice([-1, 1]), 1])
    self.centre = SIZE / 2 + rng.uniform(-5, 5, size=2) + (0, 14 * hooded)  # room for the hood
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    x, y = x - self.centre[0], y - self.centre[1]
    self.x = (np.cos(angle) * x + np.sin(angle) * y).astype(np.float32)
    self.y = (-np.sin(angle) * x + np.cos(angle) * y).astype(np.float32)
    self.rgb = np.full((SIZE, SIZE, 3), 255, np.float32)
    self.owner = np.full((SIZE, SIZE), -1, np.int8)  # colour that shows: 0 first, 1 second
    self.cloth = np.zeros((SIZE, SIZE), bool)  # that bears pattern and material
    self.support = np.zeros((SIZE, SIZE), bool)  # where anything is drawn
    self.parts: dict[str, np.ndarray] = {}
    self._make_fabric()

  def _make_fabric(self) -> None:
    """All cloth of the item, as large as the picture: pieces are cut out of it."""
    names = self.item.colours
    self.first = np.asarray(COLOURS[names[0]], np.float32)
    self.second = np.asarray(COLOURS[names[-1]], np.float32)
    self.pattern = next((n for n in patterns.PATTERNS if self.has(n)), None)
    self.material = next((n for n in patterns.MATERIALS if self.has(n)), None)
    self.share = np.zeros((SIZE, SIZE), np.float32)
    if self.pattern is not None:
      self.share = patterns.pattern(self.pattern, self.x, self.y, self.rng).astype(np.float32)
    factor, white = 1.0, 0.0
    if self.material is not None:
      factor, white = patterns.MATERIALS[self.material](self.x, self.y, self.rng)
    phase = self.rng.uniform(0, 6.28)
    light = 1.0 - 0.0005 * self.y + 0.035 * np.sin(self.x / 17 + phase + 0.02 * self.y)
    light = np.minimum(light, 1.06)  # white cloth stays off the white behind it
    factor, white = (factor * light)[..., None], np.asarray(white, np.float32)[..., None]

    def lit(colour: np.ndarray) -> np.ndarray:
      colour = np.clip(colour * factor, 0, 255)
      return (colour + white * (250 - colour)).astype(np.float32)

    self.fabric = lit(self.first + self.share[..., None] * (self.second - self.first))
    self.trimming = lit(self.second) if len(names) > 1 else self.fabric

  def alpha(self, points: Points) -> np.ndarray:
    """How much of each pixel an outline covers [h w]."""
    image = Image.new("L", (SIZE * _FINE, SIZE * _FINE))
    ImageDraw.Draw(image).polygon(self._pixels(points), fill=255)
    return np.asarray(image.reduce(_FINE), np.float32) / 255

  def line(self, points: Points, width: float, closed: bool = False) -> np.ndarray:
    """How much of each pixel a line covers [h w]; width in pixels."""
    points = np.asarray(points, float)
    return self.lines([np.concatenate([points, points[:2]]) if closed else points], width)

  def lines(self, each: Iterable[Points], width: float) -> np.ndarray:
    """The same of several lines at once."""
    image = Image.new("L", (SIZE * _FINE, SIZE * _FINE))
    pen = ImageDraw.Draw(image)
    for points in each:
      pen.line(self._pixels(points), fill=255, width=round(width * _FINE), joint="curve")
    return np.asarray(image.reduce(_FINE), np.float32) / 255

  def _pixels(self, points: Points) -> list[tuple[float, float]]:
    out = (np.asarray(points, float) @ self.matrix.T + self.centre) * _FINE
    return [tuple(p) for p in out.tolist()]

  def _lay(self, alpha: np.ndarray, colour: np.ndarray) -> None:
    where = _box(alpha)
    self.support[where] |= alpha[where] > 0.2
    colour = colour[where] if colour.ndim == 3 else colour
    self.rgb[where] += alpha[where][..., None] * (colour - self.rgb[where])

  def part(self, name: str, alpha: np.ndarray) -> None:
    """Adds what `alpha` covers to the pixels of an attribute, if the item has it."""
    if self.has(name):
      self.parts[name] = self.parts.get(name, np.zeros_like(self.cloth)) | (alpha > 0.5)

  def sew(
    self,
    points: Points,
    *names: str,
    trim: bool = False,
    rounds: int = 2,
    most: float = np.inf,
    plain: bool = False,
  ) -> np.ndarray:
    """A piece of cloth: of the pattern, or of the second colour where it trims.

    Args:
      names: attributes whose pixels these are.
      rounds: of cutting off the corners.
      most: of a side that a corner may lose.
      plain: without pattern and material, as soles and buckles are.
    """
    points = smooth(points, rounds, most) if rounds else np.asarray(points, float)
    alpha = self.alpha(points)
    inside = alpha > 0.5
    second = trim and len(self.item.colours) > 1
    colour = self.trimming if trim else self.fabric
    if plain:
      colour = self.second if second else self.first
    self._lay(alpha, colour)
    self._lay(0.75 * self.line(points, 1.6, closed=True), colour * np.float32(0.55))
    if trim or plain:
      self.owner[inside] = int(second)
    else:
      self.owner[inside] = self.share[inside] >= 0.5
    if not trim and not plain:
      self.cloth |= inside
    else:
      self.cloth &= ~inside
    for name in names:
      self.part(name, alpha)
    return alpha

  def ink(self, alpha: np.ndarray, colour: Colour, *names: str, strength: float = 1.0) -> None:
    """Hardware, seams and shadows: in a colour of its own."""
    self._lay(strength * alpha, np.asarray(colour, np.float32))
    if strength > 0.9:
      self.owner[alpha > 0.5] = -1
    for name in names:
      self.part(name, alpha)

  def contrast(self) -> np.ndarray:
    """A colour that shows on the cloth."""
    if len(self.item.colours) > 1 and not self.pattern:
      return self.second
    dark = self.first.mean() < 110
    return np.asarray((235, 232, 226) if dark else (48, 44, 46), np.float32)

  def dots(self, places: Points, radius: float, colour: Colour, *names: str) -> None:
    """Small discs with a glint, as buttons, studs and pearls are; radius in units."""
    circle = np.stack([np.cos(np.arange(10) * 0.628), np.sin(np.arange(10) * 0.628)], axis=1)
    discs, glints = (Image.new("L", (SIZE * _FINE, SIZE * _FINE)) for _ in range(2))
    for x, y in places:
      centre = np.array([x, y])
      ImageDraw.Draw(discs).polygon(self._pixels(centre + radius * circle), fill=255)
      glint = centre - 0.3 * radius + 0.35 * radius * circle
      ImageDraw.Draw(glints).polygon(self._pixels(glint), fill=255)
    disc = np.asarray(discs.reduce(_FINE), np.float32) / 255
    self.ink(disc, colour, *names)
    self.ink(np.asarray(glints.reduce(_FINE), np.float32) / 255, (255, 255, 255), strength=0.6)

  def finish(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The picture and its masks; a part that something else hides altogether keeps its outline."""
    for name in (self.pattern, self.material):
      if name is not None:
        self.parts[name] = self.parts.get(name, np.zeros_like(self.cloth)) | self.cloth
    for index, name in enumerate(self.item.colours):
      self.parts[name] = self.owner == index
    pixels = np.clip(self.rgb, 0, 255).astype(np.uint8)
    return pixels, {
      n: self.parts[n] & self.support for n in self.item.attributes if n in self.parts
    }
