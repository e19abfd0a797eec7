"""Draws one product picture of a garment on white, with the exact pixels of each attribute."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from sane_jax.datasets.outfits_drawn import patterns

SIZE = 300
_FINE = 2  # outlines are drawn so many times as large, and reduced

COLOURS: dict[str, tuple[int, int, int]] = {
  "black": (35, 34, 38),
  "white": (233, 233, 231),
  "red": (200, 32, 42),
  "navy": (28, 40, 88),
  "green": (46, 128, 70),
  "pink": (240, 150, 180),
  "beige": (216, 194, 160),
  "grey": (142, 144, 150),
  "blue": (52, 106, 200),
  "brown": (118, 74, 44),
  "purple": (118, 62, 150),
  "orange": (238, 126, 36),
  "turquoise": (50, 186, 186),
  "burgundy": (110, 22, 46),
  "khaki": (138, 132, 82),
  "golden": (214, 166, 52),
}

KINDS: dict[str, tuple[str, ...]] = {
  "tops": ("tee", "blouse", "sweater", "tank"),
  "bottoms": ("trousers", "shorts", "skirt"),
  "all-body": ("dress", "jumpsuit"),
  "outerwear": ("coat", "jacket", "hoodie"),
  "shoes": ("boot", "pump", "sneaker"),
  "bags": ("tote", "clutch"),
  "hats": ("beanie", "sunhat"),
  "scarves": ("scarf",),
  "sunglasses": ("shades",),
  "jewellery": ("necklace",),
  "accessories": ("belt",),
}

_CLOTH = (
  "denim",
  "knitted",
  "quilted",
  "leather",
  "lace",
  "sequin",
  "ribbed",
  "mesh",
  "crochet",
  "suede",
  "",
)
_PRINTS = (*patterns.PATTERNS, "")
_SMALL_PRINTS = (*(p for p in patterns.PATTERNS if p not in ("graphic", "colorblock")), "")
_TOP = {
  "pattern": _PRINTS,
  "material": _CLOTH,
  "hem": ("cropped", "ruffled", "frayed", "peplum", "asymmetric", ""),
  "detail": ("pocketed", "logo", "embroidered", "studded", "pearlembelished", ""),
}
_SLOTS: dict[str, dict[str, tuple[str, ...]]] = {
  "tee": {**_TOP, "sleeve": ("shortsleeve", "longsleeve"), "collar": ("cutout", "")},
  "blouse": {
    **_TOP,
    "sleeve": ("shortsleeve", "longsleeve"),
    "collar": ("collared", ""),
    "closure": ("buttoned", "bowdetailed"),
  },
  "sweater": {
    **_TOP,
    "sleeve": ("longsleeve",),
    "material": ("knitted", "ribbed", "crochet", "sequin"),
    "closure": ("buttoned", "zipped", ""),
  },
  "tank": {**_TOP, "sleeve": ("sleeveless",), "closure": ("bowdetailed", "")},
  "trousers": {
    "pattern": _SMALL_PRINTS,
    "material": _CLOTH,
    "cut": ("wide", "skinny", "straightleg"),
    "hem": ("cuffed", "frayed", ""),
    "closure": ("belted", "waistbanded", ""),
    "detail": ("pocketed", "studded", "embroidered", "zipped", ""),
  },
  "shorts": {
    "pattern": _SMALL_PRINTS,
    "material": _CLOTH,
    "hem": ("cuffed", "frayed", "ruffled", ""),
    "closure": ("belted", "waistbanded", ""),
    "detail": ("pocketed", "studded", "embroidered", ""),
  },
  "skirt": {
    "pattern": _SMALL_PRINTS,
    "material": _CLOTH,
    "length": ("mini", "midi", "maxi"),
    "hem": ("ruffled", "pleated", "layered", "asymmetric", ""),
    "closure": ("belted", "waistbanded", "buttoned", ""),
  },
  "dress": {
    "pattern": _PRINTS,
    "material": _CLOTH,
    "sleeve": ("sleeveless", "shortsleeve", "longsleeve"),
    "length": ("mini", "midi", "maxi"),
    "collar": ("collared", "cutout", ""),
    "hem": ("ruffled", "pleated", "layered", "asymmetric", ""),
    "closure": ("belted", "bowdetailed", "buttoned", ""),
  },
  "jumpsuit": {
    "pattern": _SMALL_PRINTS,
    "material": _CLOTH,
    "sleeve": ("sleeveless", "shortsleeve"),
    "cut": ("wide", "skinny", "straightleg"),
    "closure": ("belted", "zipped", "buttoned", ""),
    "collar": ("collared", ""),
  },
  "coat": {
    "pattern": _SMALL_PRINTS,
    "material": _CLOTH,
    "sleeve": ("longsleeve",),
    "collar": ("collared", "hooded"),
    "closure": ("buttoned", "zipped", "belted"),
    "detail": ("pocketed", "embroidered", "studded", ""),
  },
  "jacket": {
    "pattern": _SMALL_PRINTS,
    "material": ("denim", "leather", "quilted", "suede", "sequin"),
    "sleeve": ("longsleeve",),
    "collar": ("collared", ""),
    "closure": ("buttoned", "zipped"),
    "detail": ("pocketed", "studded", "embroidered", "chained", ""),
  },
  "hoodie": {
    "pattern": _PRINTS,
    "material": ("ribbed", "mesh", "quilted", ""),
    "sleeve": ("longsleeve",),
    "collar": ("hooded",),
    "closure": ("zipped", ""),
    "detail": ("logo", "pocketed"),
  },
  "boot": {
    "pattern": _SMALL_PRINTS,
    "material": ("leather", "suede", "quilted", "knitted"),
    "shaft": ("ankle", "kneehigh"),
    "sole": ("heel", "platform", "flat"),
    "toe": ("pointy", "round"),
    "detail": ("zipped", "studded", "tasseled", "chained", ""),
  },
  "pump": {
    "pattern": _SMALL_PRINTS,
    "material": ("leather", "suede", "sequin", "lace", "denim", ""),
    "sole": ("heel", "platform"),
    "toe": ("pointy", "round"),
    "detail": ("bowdetailed", "strappy", "studded", "pearlembelished", "embroidered", ""),
  },
  "sneaker": {
    "pattern": _SMALL_PRINTS,
    "material": ("mesh", "leather", "denim", "knitted", ""),
    "sole": ("platform", "flat"),
    "detail": ("logo", "studded", "embroidered", ""),
  },
  "tote": {
    "pattern": _PRINTS,
    "material": ("leather", "denim", "crochet", "quilted", "suede", "sequin", ""),
    "detail": ("logo", "pocketed", "tasseled", "studded", "bowdetailed", "embroidered", "frayed"),
  },
  "clutch": {
    "pattern": _SMALL_PRINTS,
    "material": ("leather", "sequin", "quilted", "suede", "lace", "denim"),
    "detail": (
      "chained",
      "zipped",
      "tasseled",
      "pearlembelished",
      "embossed",
      "studded",
      "bowdetailed",
      "embroidered",
      "logo",
    ),
  },
  "beanie": {
    "pattern": _SMALL_PRINTS,
    "material": ("knitted", "ribbed", "crochet", "mesh", "sequin", "denim"),
    "detail": ("logo", "tasseled", "cuffed", "embroidered", "studded", "pearlembelished", ""),
  },
  "sunhat": {
    "pattern": _SMALL_PRINTS,
    "material": ("crochet", "suede", "denim", "leather", "lace", "quilted"),
    "detail": ("bowdetailed", "belted", "frayed", "tasseled", "chained", "embroidered", "studded"),
  },
  "scarf": {
    "pattern": _SMALL_PRINTS,
    "material": ("knitted", "lace", "ribbed", "crochet", "sequin", "quilted", "suede", "mesh"),
    "hem": ("tasseled", "frayed", "ruffled", ""),
    "detail": ("logo", "embroidered", "studded", ""),
  },
  "shades": {
    "pattern": (
      "striped",
      "leopardprint",
      "snakeprint",
      "checkered",
      "dotted",
      "geometricprint",
      "starry",
      "floral",
      "plaid",
      "gingham",
      "",
    ),
    "shape": ("round", "pointy"),
    "detail": ("studded", "pearlembelished", "chained", "logo", ""),
  },
  "necklace": {
    "pattern": (
      "striped",
      "dotted",
      "checkered",
      "geometricprint",
      "leopardprint",
      "snakeprint",
      "floral",
      "starry",
      "plaid",
      "gingham",
      "",
    ),
    "detail": ("chained", "pearlembelished", "studded"),
    "end": ("tasseled", "round", "embossed"),
  },
  "belt": {
    "pattern": _SMALL_PRINTS,
    "material": ("leather", "suede", "denim", "crochet", "sequin", "lace"),
    "detail": (
      "studded",
      "embossed",
      "chained",
      "tasseled",
      "bowdetailed",
      "embroidered",
      "pearlembelished",
      "logo",
    ),
  },
}


# Kinds with pieces in the second colour, where no pattern shows it.
TRIMMED = (
  "tee",
  "blouse",
  "sweater",
  "coat",
  "jacket",
  "hoodie",
  "pump",
  "sneaker",
  "tote",
  "clutch",
  "beanie",
  "necklace",
  "belt",
)


class Item(NamedTuple):
  """What is drawn.

  Attributes:
    kind: of garment, see KINDS.
    attributes: names of what it shows: colours, and at most one name of each slot of `options`.
    colours: one or two of COLOURS.
    seed: of pose, size, cut and shading.
  """

  kind: str
  attributes: tuple[str, ...]
  colours: tuple[str, ...]
  seed: int


def options(kind: str) -> dict[str, tuple[str, ...]]:
  """Slots of a kind of garment, and the attributes that may fill each; '' for none."""
  return _SLOTS[kind]


def draw(item: Item) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """The picture, uint8 [300 300 3], and where each of the item's attributes is, bool [300 300].

  A colour is where it shows, a pattern or a material the whole cloth that has it, anything else the
  part of that name: sleeves, collar, placket, hem band, sole.
  """
  canvas = _Canvas(item)
  _DRAWERS[item.kind](canvas)
  return canvas.finish()


# --- the canvas -----------------------------------------------------------------------------------

Points = Sequence[tuple[float, float]]


def _smooth(points: Points, times: int = 2) -> np.ndarray:
  """Corners cut off (Chaikin), twice by default."""
  p = np.asarray(points, float)
  for _ in range(times):
    q = np.roll(p, -1, axis=0)
    p = np.stack([0.75 * p + 0.25 * q, 0.25 * p + 0.75 * q], axis=1).reshape(-1, 2)
  return p


def _mirror(points: Points) -> list[tuple[float, float]]:
  """A closed outline from its right half, from top to bottom."""
  return [*points, *((-x, y) for x, y in reversed(points))]


def _box(alpha: np.ndarray) -> tuple[slice, slice]:
  """The rows and columns in which anything is covered."""
  rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
  if not len(rows):
    return slice(0), slice(0)
  return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


class _Canvas:
  """A picture in the making. Garments are drawn in units: x to the right, y down, about ±1."""

  def __init__(self, item: Item):
    self.item = item
    self.rng = rng = np.random.default_rng(item.seed)
    self.has = frozenset(item.attributes).__contains__
    angle = np.deg2rad(rng.uniform(-6, 6))
    hooded = self.has("hooded")
    scale = rng.uniform(112, 134) * (0.85 if hooded else 1)
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
    self.trimming = lit(self.second) if len(names) > 1 else lit(self.first)

  def alpha(self, points: Points) -> np.ndarray:
    """How much of each pixel an outline covers [h w]."""
    image = Image.new("L", (SIZE * _FINE, SIZE * _FINE))
    ImageDraw.Draw(image).polygon(self._pixels(points), fill=255)
    return np.asarray(image.reduce(_FINE), np.float32) / 255

  def line(self, points: Points, width: float, closed: bool = False) -> np.ndarray:
    """How much of each pixel a line covers [h w]; width in pixels."""
    image = Image.new("L", (SIZE * _FINE, SIZE * _FINE))
    pixels = self._pixels(points)
    ImageDraw.Draw(image).line(
      pixels + pixels[:2] if closed else pixels, fill=255, width=round(width * _FINE), joint="curve"
    )
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
    self, points: Points, *names: str, trim: bool = False, smooth: int = 2, plain: bool = False
  ) -> np.ndarray:
    """A piece of cloth: of the pattern, or of the second colour where it trims.

    Args:
      names: attributes whose pixels these are.
      plain: without pattern and material, as soles and buckles are.
    """
    points = _smooth(points, smooth) if smooth else np.asarray(points, float)
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

  def ink(
    self, alpha: np.ndarray, colour: Sequence[float], *names: str, strength: float = 1.0
  ) -> None:
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

  def dots(self, places: Points, radius: float, colour: Sequence[float], *names: str) -> None:
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


# --- details that many garments share -------------------------------------------------------------

METAL = (176, 172, 160)
GOLD = (212, 172, 84)
PEARL = (240, 236, 228)


def _bow(c: _Canvas, x: float, y: float, size: float) -> None:
  if not c.has("bowdetailed"):
    return
  colour = c.contrast()
  for side in (-1, 1):
    loop = [(x, y), (x + side * size, y - 0.55 * size), (x + side * size, y + 0.55 * size)]
    tail = [
      (x, y),
      (x + side * 0.55 * size, y + 1.3 * size),
      (x + side * 0.2 * size, y + 1.35 * size),
    ]
    for points in (tail, loop):
      alpha = c.alpha(_smooth(points, 1))
      c.ink(alpha, colour, "bowdetailed")
      c.ink(c.line(_smooth(points, 1), 1.3, closed=True), colour * 0.6, strength=0.7)
  c.dots([(x, y)], 0.2 * size, colour * 0.85, "bowdetailed")


def _placket(c: _Canvas, top: float, bottom: float, x: float = 0.0) -> None:
  if c.has("buttoned"):
    strip = c.alpha([(x - 0.07, top), (x + 0.07, top), (x + 0.07, bottom), (x - 0.07, bottom)])
    c.part("buttoned", strip)
    for side in (-0.07, 0.07):
      c.ink(c.line([(x + side, top), (x + side, bottom)], 1.2), c.first * 0.5, strength=0.55)
    count = max(3, round((bottom - top) / 0.22))
    c.dots(
      [(x, v) for v in np.linspace(top + 0.08, bottom - 0.08, count)],
      0.045,
      c.contrast(),
      "buttoned",
    )
  if c.has("zipped"):
    zip_ = c.line([(x, top), (x, bottom)], 7)
    c.ink(zip_, np.asarray(METAL) * 0.55, "zipped")
    teeth = Image.new("L", (SIZE * _FINE, SIZE * _FINE))
    for k, v in enumerate(np.arange(top, bottom, 0.03)):
      side = 0.018 if k % 2 else -0.018
      ImageDraw.Draw(teeth).line(
        c._pixels([(x + side - 0.02, v), (x + side + 0.02, v)]), fill=255, width=4
      )
    c.ink(np.asarray(teeth.reduce(_FINE), np.float32) / 255, (225, 222, 214))
    c.dots([(x, top + 0.05)], 0.04, METAL, "zipped")


def _belt(c: _Canvas, width: float, y: float, name: str = "belted") -> None:
  if not c.has(name):
    return
  half = 0.06 if name == "belted" else 0.075
  band = [(-width, y - half), (width, y - half), (width, y + half), (-width, y + half)]
  alpha = c.alpha(band)
  colour = c.contrast() if name == "belted" else c.first * 0.72
  c.ink(alpha, colour, name)
  c.ink(c.line(band, 1.4, closed=True), colour * 0.55, strength=0.8)
  if name == "belted":
    ring = [(-0.09, y - 0.085), (0.09, y - 0.085), (0.09, y + 0.085), (-0.09, y + 0.085)]
    c.ink(c.line(ring, 4, closed=True), GOLD, name)
  else:
    for x in np.linspace(-width, width, 15):
      c.ink(c.line([(x, y - half), (x, y + half)], 1.2), colour * 0.6, strength=0.7)


def _details(c: _Canvas, x: float, y: float, width: float, pockets: Points = ()) -> None:
  """What may sit on a garment around (x, y), within ±width."""
  if c.has("pocketed"):
    for px, py in pockets or ((x, y),):
      s = 0.15
      patch = [
        (px - s, py - s),
        (px + s, py - s),
        (px + s, py + 0.75 * s),
        (px, py + 1.2 * s),
        (px - s, py + 0.75 * s),
      ]
      c.sew(patch, "pocketed", smooth=0)
      c.ink(
        c.line([(px - s, py - 0.6 * s), (px + s, py - 0.6 * s)], 2.2), c.first * 0.45, strength=0.8
      )
  if c.has("logo"):
    colour = c.contrast()
    s = min(0.2, width)
    badge = _smooth(
      [
        (x - s, y - s),
        (x + s, y - s),
        (x + s, y + 0.5 * s),
        (x, y + 1.2 * s),
        (x - s, y + 0.5 * s),
      ],
      1,
    )
    c.ink(c.alpha(badge), colour, "logo")
    c.ink(
      c.line([(x - 0.5 * s, y - 0.5 * s), (x, y + 0.6 * s), (x + 0.5 * s, y - 0.5 * s)], 4),
      c.first,
      "logo",
    )
  if c.has("studded"):
    spots = [
      (x + a * width, y + b * 0.5 * width)
      for b in (-0.6, 0, 0.6)
      for a in np.linspace(-0.9, 0.9, 5)
    ]
    c.dots(spots, 0.034, METAL, "studded")
  if c.has("pearlembelished"):
    spots = [
      (x + width * np.sin(a), y + 0.7 * width * np.cos(a)) for a in np.linspace(-1.5, 1.5, 9)
    ]
    c.dots(spots, 0.045, PEARL, "pearlembelished")
  if c.has("embroidered"):
    colour = c.contrast()
    stem = [(x + t * width * 0.9, y + 0.05 * np.sin(5 * t)) for t in np.linspace(-1, 1, 14)]
    c.ink(c.line(stem, 3), colour, "embroidered")
    for t in (-0.75, -0.25, 0.25, 0.75):
      px, py = x + t * width * 0.9, y + 0.05 * np.sin(5 * t)
      petals = [
        (
          px + (0.05 + 0.045 * np.cos(5 * a)) * np.cos(a) * 1.3,
          py + (0.05 + 0.045 * np.cos(5 * a)) * np.sin(a) * 1.3,
        )
        for a in np.linspace(0, 6.28, 26)
      ]
      c.ink(c.alpha(petals), colour, "embroidered")
  if c.has("embossed"):
    for radius in (0.16, 0.1):
      ring = [(x + radius * np.cos(a), y + radius * np.sin(a)) for a in np.linspace(0, 6.28, 24)]
      c.ink(c.line(ring, 4, closed=True), c.first * 0.55, strength=0.85)
    c.part(
      "embossed",
      c.alpha([(x + 0.2 * np.cos(a), y + 0.2 * np.sin(a)) for a in np.linspace(0, 6.28, 24)]),
    )
  if c.has("chained"):
    _chain(c, [(x + t * width, y + 0.25 * width * (1 - t * t)) for t in np.linspace(-1, 1, 20)])
  if c.has("tasseled"):
    _tassel(c, x, y)


def _chain(c: _Canvas, points: Points) -> None:
  p = np.asarray(points, float)
  lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(p, axis=0), axis=1))])
  along = np.arange(0, lengths[-1], 0.075)
  places = np.stack([np.interp(along, lengths, p[:, k]) for k in (0, 1)], axis=1)
  c.part("chained", c.line(p.tolist(), 9))
  for px, py in places:
    ring = [(px + 0.042 * np.cos(a), py + 0.036 * np.sin(a)) for a in np.linspace(0, 6.28, 12)]
    c.ink(c.line(ring, 2.4, closed=True), np.asarray(GOLD) * 0.82)


def _tassel(c: _Canvas, x: float, y: float, size: float = 0.3) -> None:
  colour = c.contrast()
  c.part(
    "tasseled", c.alpha([(x - 0.09, y), (x + 0.09, y), (x + 0.13, y + size), (x - 0.13, y + size)])
  )
  for t in np.linspace(-1, 1, 9):
    c.ink(
      c.line([(x + 0.04 * t, y), (x + 0.12 * t, y + size)], 2.4), colour * (0.85 + 0.1 * (t > 0))
    )
  c.dots([(x, y)], 0.06, colour, "tasseled")


def _band(
  c: _Canvas, left: float, right: float, y: float, height: float, seed_wave: float = 0.0
) -> None:
  """What may edge a garment below, from left to right at y."""
  width = right - left
  if c.has("ruffled") or c.has("peplum"):
    name = "ruffled" if c.has("ruffled") else "peplum"
    flare = 0.06 if name == "ruffled" else 0.14
    waves = max(4, round(width / 0.13))
    lower = [
      (left - flare + (width + 2 * flare) * t, y + height + 0.035 * np.cos(2 * np.pi * waves * t))
      for t in np.linspace(0, 1, 6 * waves + 1)
    ]
    c.sew([(left, y), (right, y), *reversed(lower)], name, trim=True, smooth=0)
    for t in np.linspace(0.04, 0.96, waves):
      c.ink(
        c.line(
          [(left + width * t, y + 0.01), (left - flare + (width + 2 * flare) * t, y + height)], 1.6
        ),
        c.first * 0.45,
        strength=0.45,
      )
  if c.has("frayed"):
    c.part(
      "frayed",
      c.alpha(
        [(left, y - 0.03), (right, y - 0.03), (right, y + 0.6 * height), (left, y + 0.6 * height)]
      ),
    )
    rng = c.rng
    image = Image.new("L", (SIZE * _FINE, SIZE * _FINE))
    for t in np.linspace(0.01, 0.99, max(12, round(width * 30))):
      x = left + width * t
      end = (x + rng.uniform(-0.03, 0.03), y + height * rng.uniform(0.3, 0.8))
      ImageDraw.Draw(image).line(c._pixels([(x, y - 0.02), end]), fill=255, width=3)
    c.ink(np.asarray(image.reduce(_FINE), np.float32) / 255, c.first + 0.35 * (255 - c.first))
  if c.has("cuffed"):
    c.sew(
      [
        (left - 0.02, y - height),
        (right + 0.02, y - height),
        (right + 0.02, y + 0.02),
        (left - 0.02, y + 0.02),
      ],
      "cuffed",
      trim=True,
      smooth=0,
    )
  if c.has("tasseled"):
    for x in np.linspace(left + 0.06, right - 0.06, max(2, round(width / 0.18))):
      _tassel(c, x, y, 1.3 * height)


def _collar(c: _Canvas, y: float, width: float) -> None:
  if c.has("collared"):
    for side in (-1, 1):
      flap = [
        (0, y + 0.17),
        (side * 0.02, y + 0.02),
        (side * width, y - 0.07),
        (side * (width + 0.13), y + 0.2),
        (side * 0.14, y + 0.34),
      ]
      c.sew(flap, "collared", trim=True, smooth=0)
  if c.has("cutout"):
    hole = [(0.15 * np.cos(a), y + 0.36 + 0.11 * np.sin(a)) for a in np.linspace(0, 6.28, 24)]
    alpha = c.alpha(hole)
    c.ink(alpha, (252, 251, 250), "cutout")
    c.ink(c.line(hole, 3, closed=True), c.first * 0.5, "cutout", strength=0.9)


def _hood(c: _Canvas, y: float, width: float) -> None:
  if c.has("hooded"):
    outer = [
      (width + 0.1, y + 0.12),
      (width + 0.12, y - 0.2),
      (0.5 * width, y - 0.42),
      (0, y - 0.46),
    ]
    c.sew(_mirror(outer[::-1]), "hooded")
    inner = [(0, y - 0.3), (0.6 * width, y - 0.22), (0.72 * width, y), (0.2, y + 0.14)]
    c.ink(c.alpha(_smooth(_mirror(inner), 2)), c.first * 0.42, "hooded", strength=0.9)


def _sleeves(c: _Canvas, shoulder: float, y: float, pit: float, spread: float) -> None:
  """Both sleeves, from the shoulder (±shoulder, y) to the armpit (±·, pit)."""
  if c.has("sleeveless"):
    for side in (-1, 1):
      edge = [
        (side * (shoulder - 0.14), y - 0.04),
        (side * (shoulder + 0.03), y - 0.02),
        (side * (shoulder + 0.03), pit),
        (side * (shoulder - 0.12), pit - 0.05),
      ]
      c.part("sleeveless", c.alpha(edge))
    return
  name = "longsleeve" if c.has("longsleeve") else "shortsleeve"
  length = c.rng.uniform(0.92, 1.05) if name == "longsleeve" else c.rng.uniform(0.3, 0.4)
  wide = 0.13 if name == "longsleeve" else 0.17
  for side in (-1, 1):
    direction = np.array([side * np.sin(spread), np.cos(spread)])
    across = np.array([direction[1], -direction[0]]) * side
    top = np.array([side * shoulder, y])
    end = top + length * direction
    points = [
      (side * (shoulder - 0.12), y - 0.03),
      tuple(top + 0.03 * across),
      tuple(end + wide * across),
      tuple(end - 0.09 * across),
      (side * (shoulder - 0.03), pit + 0.02),
      (side * (shoulder - 0.16), pit - 0.1),
    ]
    c.sew(points, name, smooth=1)
    if len(c.item.colours) > 1:
      near = end - 0.1 * direction
      cuff = [
        tuple(near + wide * across),
        tuple(end + wide * across),
        tuple(end - 0.09 * across),
        tuple(near - 0.1 * across),
      ]
      c.sew(cuff, name, trim=True, smooth=0)


# --- garments -------------------------------------------------------------------------------------


def _bodice(
  c: _Canvas, bottom: float, *, boxy: float = 0.0, neck: float = 0.2
) -> tuple[float, float]:
  """Torso with sleeves, from y = −0.85 to `bottom`; returns its half widths at waist and bottom."""
  rng = c.rng
  shoulder = rng.uniform(0.42, 0.5) + boxy
  waist = rng.uniform(0.34, 0.42) + boxy
  hem = waist + rng.uniform(0.0, 0.08)
  if c.has("sleeveless"):
    shoulder -= 0.1
  _hood(c, -0.82, neck)
  _sleeves(c, shoulder, -0.74, -0.3, rng.uniform(0.25, 0.55))
  depth = rng.uniform(0.06, 0.2)
  half = [
    (0.0, -0.85 + depth),
    (0.6 * neck, -0.85 + 0.7 * depth),
    (neck, -0.88),
    (shoulder, -0.76),
    (shoulder - 0.01, -0.3),
    (waist, 0.5 * (bottom - 0.3)),
    (hem, bottom),
  ]
  points = _mirror(half)
  if c.has("asymmetric"):
    points[6], points[7] = (hem, bottom - 0.22), (-hem, bottom + 0.12)
  body = c.sew(points, smooth=1)
  if c.has("asymmetric"):
    band = c.alpha(
      [
        (-hem - 0.1, bottom - 0.1),
        (hem + 0.1, bottom - 0.42),
        (hem + 0.1, bottom + 0.2),
        (-hem - 0.1, bottom + 0.2),
      ]
    )
    c.part("asymmetric", np.minimum(band, body))
  c.ink(
    c.line(
      [
        (x * 1.02, y)
        for x, y in [
          (-neck, -0.88),
          (-0.6 * neck, -0.85 + 0.7 * depth),
          (0, -0.85 + depth),
          (0.6 * neck, -0.85 + 0.7 * depth),
          (neck, -0.88),
        ]
      ],
      4,
    ),
    c.contrast() if len(c.item.colours) > 1 and not c.pattern else c.first * 0.6,
    strength=0.8,
  )
  return waist, hem


def _top(c: _Canvas, boxy: float = 0.0) -> None:
  bottom = c.rng.uniform(0.12, 0.24) if c.has("cropped") else c.rng.uniform(0.62, 0.78)
  _, hem = _bodice(c, bottom, boxy=boxy)
  if c.has("cropped"):
    c.part(
      "cropped",
      c.alpha([(-hem, bottom - 0.16), (hem, bottom - 0.16), (hem, bottom), (-hem, bottom)]),
    )
  _band(c, -hem, hem, bottom, 0.17)
  _collar(c, -0.8, 0.2)
  _placket(c, -0.6, bottom - 0.02)
  _bow(c, 0, -0.58, 0.2)
  _details(c, 0, -0.15, 0.26, [(0.2, -0.25)])


def _legs(c: _Canvas, top: float, bottom: float, hip: float) -> None:
  rng = c.rng
  if c.has("wide"):
    outer, inner = hip + 0.16, 0.04
  elif c.has("skinny"):
    outer, inner = 0.62 * hip, 0.17
  else:
    outer, inner = hip - 0.01, 0.08
  lean = rng.uniform(0.0, 0.05)
  for side in (-1, 1):
    leg = [
      (side * -0.02, top),
      (side * hip * 0.86, top),
      (side * hip, top + 0.35),
      (side * (outer + lean), bottom),
      (side * (inner + lean), bottom),
      (side * 0.0, top + 0.55),
    ]
    alpha = c.sew(leg, smooth=0)
    for name in ("wide", "skinny", "straightleg"):
      low = c.alpha([(-1.2, top + 0.6), (1.2, top + 0.6), (1.2, 1.5), (-1.2, 1.5)])
      c.part(name, np.minimum(alpha, low))
    left, right = sorted((side * (inner + lean), side * (outer + lean)))
    _band(c, left, right, bottom, 0.12)
  c.ink(c.line([(0, top), (0, top + 0.55)], 1.8), c.first * 0.5, strength=0.7)


def _trousers(c: _Canvas) -> None:
  hip = c.rng.uniform(0.38, 0.46)
  _legs(c, -0.9, 0.95, hip)
  for name in ("waistbanded", "belted"):
    _belt(c, 0.9 * hip, -0.86, name)
  if c.has("zipped"):
    _placket(c, -0.78, -0.4)
  _details(c, 0, -0.55, 0.3, [(-0.22, -0.5), (0.22, -0.5)])


def _shorts(c: _Canvas) -> None:
  hip = c.rng.uniform(0.5, 0.6)
  for side in (-1, 1):
    leg = [
      (0, -0.55),
      (side * hip * 0.88, -0.55),
      (side * (hip + 0.1), 0.4),
      (side * 0.07, 0.46),
      (0, 0.1),
    ]
    c.sew(leg, smooth=0)
    left, right = sorted((side * 0.07, side * (hip + 0.1)))
    _band(c, left, right, 0.43, 0.13)
  for name in ("waistbanded", "belted"):
    _belt(c, 0.9 * hip, -0.51, name)
  _details(c, 0, -0.2, 0.34, [(-0.3, -0.15), (0.3, -0.15)])


_LENGTHS = {"mini": 0.05, "midi": 0.5, "maxi": 0.95}


def _skirt_part(
  c: _Canvas, top: float, waist: float, flare: float, length: str, bottom: float
) -> None:
  hem = waist + flare * (bottom - top)
  points = [
    (waist, top),
    (waist + 0.55 * flare * (bottom - top), 0.5 * (top + bottom)),
    (hem, bottom),
  ]
  outline = _mirror(points)
  if c.has("asymmetric"):
    outline[2], outline[3] = (hem, bottom - 0.3), (-hem, bottom + 0.05)
  alpha = c.sew(outline, length, smooth=0)
  if c.has("asymmetric"):
    low = c.alpha(
      [(-1.3, bottom - 0.12), (1.3, bottom - 0.5), (1.3, bottom + 0.2), (-1.3, bottom + 0.2)]
    )
    c.part("asymmetric", np.minimum(alpha, low))
  if c.has("pleated"):
    c.part("pleated", alpha)
    for t in np.linspace(-0.86, 0.86, 9):
      c.ink(c.line([(t * waist, top + 0.05), (t * hem, bottom)], 2.6), c.first * 0.45, strength=0.6)
  if c.has("layered"):
    for level in (0.35, 0.68):
      y = top + level * (bottom - top)
      half = waist + flare * (y - top) + 0.03
      waves = 9
      edge = [
        (half * s, y + 0.03 * np.cos(2 * np.pi * waves * s / 2)) for s in np.linspace(-1, 1, 60)
      ]
      shade = c.line(edge, 5)
      c.ink(shade, c.first * 0.4, strength=0.75)
    c.part("layered", alpha)
  if c.has("ruffled"):
    _band(c, -hem, hem, bottom - 0.1, 0.2)


def _skirt(c: _Canvas) -> None:
  length = next((n for n in _LENGTHS if c.has(n)), "midi")
  waist = c.rng.uniform(0.3, 0.38)
  top = {"mini": -0.5, "midi": -0.75, "maxi": -0.95}[length]
  bottom = {"mini": 0.4, "midi": 0.75, "maxi": 0.98}[length]
  _skirt_part(c, top, waist, c.rng.uniform(0.16, 0.42), length, bottom)
  for name in ("waistbanded", "belted"):
    _belt(c, waist + 0.02, top + 0.05, name)
  _placket(c, top + 0.12, bottom - 0.06)


def _dress(c: _Canvas) -> None:
  length = next((n for n in _LENGTHS if c.has(n)), "midi")
  bottom = {"mini": 0.35, "midi": 0.72, "maxi": 1.02}[length]
  _skirt_part(c, -0.15, 0.33, c.rng.uniform(0.2, 0.42), length, bottom)
  waist, hem = _bodice(c, -0.1)
  _belt(c, max(waist, hem) + 0.01, -0.12)
  _collar(c, -0.8, 0.2)
  _placket(c, -0.6, bottom - 0.1)
  _bow(c, 0, -0.12, 0.22)


def _jumpsuit(c: _Canvas) -> None:
  _legs(c, -0.15, 1.0, 0.4)
  waist, _ = _bodice(c, -0.08)
  _belt(c, waist + 0.04, -0.12)
  _collar(c, -0.8, 0.2)
  _placket(c, -0.6, 0.2)


def _outer(c: _Canvas, bottom: float) -> None:
  _, hem = _bodice(c, bottom, boxy=0.07, neck=0.22)
  c.ink(c.line([(0, -0.7), (0, bottom)], 2.2), c.first * 0.4, strength=0.8)
  _placket(c, -0.62, bottom - 0.04)
  _collar(c, -0.8, 0.24)
  _belt(c, hem + 0.02, 0.05)
  low = 0.35 if bottom > 0.7 else 0.1
  _details(c, 0.27, -0.28, 0.17, [(-0.28, low), (0.28, low)])


def _hoodie(c: _Canvas) -> None:
  bottom = 0.62
  _, hem = _bodice(c, bottom, boxy=0.07)
  if c.has("pocketed"):
    pouch = [(-0.2, 0.12), (0.2, 0.12), (0.34, 0.48), (-0.34, 0.48)]
    c.sew(pouch, "pocketed", smooth=0)
  c.sew(
    [(-hem, bottom - 0.08), (hem, bottom - 0.08), (hem, bottom + 0.03), (-hem, bottom + 0.03)],
    trim=True,
    smooth=0,
  )
  _placket(c, -0.6, bottom)
  if c.has("logo"):
    _details(c, 0, -0.2, 0.24)
  for side in (-0.06, 0.06):
    c.ink(c.line([(side, -0.66), (side * 1.6, -0.34)], 3), c.contrast(), strength=0.9)


def _sole(c: _Canvas, left: float, right: float, y: float, lift: float) -> None:
  """A shoe's sole under [left, right]; the toe points to the left."""
  if c.has("heel"):
    heel = [
      (right - 0.2, y - 0.12 - lift),
      (right, y - 0.1 - lift),
      (right - 0.06, y + 0.12),
      (right - 0.16, y + 0.12),
    ]
    c.sew(heel, "heel", trim=True, smooth=0, plain=True)
    c.sew(
      [(left, y + 0.06), (left + 0.5, y + 0.06), (left + 0.5, y + 0.12), (left, y + 0.12)],
      trim=True,
      smooth=0,
      plain=True,
    )
  else:
    thick = 0.24 if c.has("platform") else 0.1
    sole = [(left, y), (right, y), (right - 0.02, y + thick), (left + 0.03, y + thick)]
    c.sew(sole, "platform" if c.has("platform") else "flat", trim=True, smooth=1, plain=True)


def _toe(c: _Canvas, left: float, y: float) -> None:
  for name in ("pointy", "round"):
    c.part(
      name,
      c.alpha(
        [
          (left - 0.1, y - 0.3),
          (left + 0.34, y - 0.3),
          (left + 0.34, y + 0.1),
          (left - 0.1, y + 0.1),
        ]
      ),
    )


def _boot(c: _Canvas) -> None:
  tall = c.has("kneehigh")
  top = -0.95 if tall else -0.35
  lift = 0.2 if c.has("heel") else 0.0
  y = 0.6
  tip = (
    [(-0.92, y - 0.02), (-0.6, y - 0.2)]
    if c.has("pointy")
    else [(-0.78, y), (-0.82, y - 0.14), (-0.62, y - 0.26)]
  )
  _sole(c, -0.8, 0.4, y - 0.02, lift)
  points = [
    (-0.12, top),
    (0.34, top),
    (0.36, y - 0.35 - lift),
    (0.4, y - lift),
    (0.1, y - 0.3 * lift),
    (-0.4, y + 0.02),
    *tip,
    (-0.2, y - 0.42),
  ]
  alpha = c.sew(points, smooth=1)
  shaft = c.alpha([(-0.4, top - 0.1), (0.6, top - 0.1), (0.6, y - 0.35), (-0.4, y - 0.35)])
  c.part("kneehigh" if tall else "ankle", np.minimum(alpha, shaft))
  _toe(c, -0.88, y)
  if c.has("zipped"):
    _placket(c, top + 0.06, y - 0.4, 0.12)
  for name in ("studded", "chained"):
    if c.has(name):
      _details(c, 0.1, top + 0.25, 0.18)
      break
  if c.has("tasseled"):
    _tassel(c, 0.0, top + 0.12, 0.36)


def _pump(c: _Canvas) -> None:
  lift = 0.36 if c.has("heel") else 0.1
  y = 0.3
  tip = (
    [(-0.98, y), (-0.7, y - 0.14)]
    if c.has("pointy")
    else [(-0.84, y + 0.02), (-0.88, y - 0.12), (-0.68, y - 0.2)]
  )
  _sole(c, -0.84, 0.72, y, lift - 0.02)
  c.sew(
    [
      (0.72, y - 0.05 - lift),
      (0.66, y - 0.36 - lift),
      (0.5, y - 0.32 - lift),
      (0.1, y - 0.12),
      (-0.35, y - 0.22),
      *reversed(tip),
      (-0.3, y + 0.04),
      (0.3, y - 0.3 * lift),
    ],
    smooth=1,
  )
  _toe(c, -0.92, y)
  if c.has("strappy"):
    for px in (0.36, 0.52):
      strap = [(px, y - 0.2 - 0.6 * lift), (px + 0.06, y - 0.62 - 0.4 * lift)]
      c.ink(c.line(strap, 9), c.first * 0.8, "strappy")
  _bow(c, -0.5, y - 0.22, 0.2)
  _details(c, -0.5, y - 0.1, 0.2)


def _sneaker(c: _Canvas) -> None:
  y = 0.25
  _sole(c, -0.92, 0.88, y - 0.02, 0)
  c.sew(
    [
      (0.86, y),
      (0.84, y - 0.5),
      (0.6, y - 0.52),
      (0.42, y - 0.42),
      (0.1, y - 0.5),
      (-0.3, y - 0.24),
      (-0.78, y - 0.16),
      (-0.92, y),
    ],
    smooth=1,
  )
  c.sew([(-0.9, y), (-0.88, y - 0.12), (-0.66, y - 0.18), (-0.6, y)], trim=True, smooth=1)
  for t in np.linspace(0, 1, 4):
    px, py = -0.2 + 0.32 * t, y - 0.28 - 0.2 * t
    c.ink(
      c.line([(px - 0.05, py - 0.03), (px + 0.14, py + 0.1)], 5), (250, 250, 250), strength=0.95
    )
  _details(c, 0.42, y - 0.2, 0.18)


def _tote(c: _Canvas) -> None:
  half = c.rng.uniform(0.58, 0.72)
  for side in (-1, 1):
    arc = [
      (side * 0.1 + 0.3 * np.cos(a), -0.35 - 0.5 * np.sin(a)) for a in np.linspace(0, np.pi, 20)
    ]
    c.ink(c.line(arc, 9), (c.second if len(c.item.colours) > 1 else c.first * 0.75), strength=0.95)
  c.sew(_mirror([(half * 0.9, -0.4), (half, 0.75)]), smooth=0)
  c.sew(
    [(-half * 0.9, -0.4), (half * 0.9, -0.4), (half * 0.92, -0.26), (-half * 0.92, -0.26)],
    trim=True,
    smooth=0,
  )
  _band(c, -half, half, 0.74, 0.16)
  if not c.has("tasseled"):
    _details(c, 0, 0.15, 0.3)
  _bow(c, 0, -0.25, 0.24)


def _clutch(c: _Canvas) -> None:
  if c.has("chained"):
    _chain(c, [(0.75 * np.cos(a), -0.3 - 0.55 * np.sin(a)) for a in np.linspace(0, np.pi, 40)])
  c.sew([(-0.85, -0.4), (0.85, -0.4), (0.85, 0.5), (-0.85, 0.5)], smooth=1)
  c.sew([(-0.83, -0.38), (0.83, -0.38), (0.5, 0.05), (0, 0.16), (-0.5, 0.05)], trim=True, smooth=0)
  if c.has("zipped"):
    line = [(-0.78, -0.3), (0.78, -0.3)]
    c.ink(c.line(line, 8), np.asarray(METAL) * 0.55, "zipped")
    c.dots([(x, -0.3) for x in np.linspace(-0.75, 0.75, 32)], 0.02, (225, 222, 214), "zipped")
  if not c.has("chained"):
    _details(c, 0, 0.28, 0.3)
  else:
    c.dots([(0, 0.1)], 0.06, GOLD)
  _bow(c, 0, 0.1, 0.24)


def _beanie(c: _Canvas) -> None:
  if c.has("tasseled"):
    _tassel(c, 0, -0.8, 0.34)
  c.sew(_mirror([(0.0, -0.62), (0.35, -0.55), (0.62, -0.2), (0.66, 0.4)]), smooth=2)
  brim = [(-0.7, 0.18), (0.7, 0.18), (0.7, 0.56), (-0.7, 0.56)]
  c.sew(brim, "cuffed", trim=True, smooth=1)
  _details(c, 0, 0.36, 0.2) if not c.has("tasseled") else None


def _sunhat(c: _Canvas) -> None:
  c.sew([(1.0 * np.cos(a), 0.3 + 0.34 * np.sin(a)) for a in np.linspace(0, 6.28, 30)], smooth=1)
  if c.has("frayed"):
    _band(c, -0.8, 0.8, 0.52, 0.2)
  c.sew(_mirror([(0.0, -0.58), (0.4, -0.52), (0.5, 0.2), (0.3, 0.32)]), smooth=1)
  band = [(-0.49, 0.02), (0.49, 0.02), (0.5, 0.2), (-0.5, 0.2)]
  if c.has("belted"):
    _belt(c, 0.5, 0.12)
  else:
    c.ink(c.alpha(band), c.second if len(c.item.colours) > 1 else c.first * 0.6, strength=0.95)
  _bow(c, 0.3, 0.12, 0.22)
  _details(c, 0, -0.2, 0.28) if not c.has("tasseled") else _tassel(c, 0.4, 0.12, 0.36)


def _scarf(c: _Canvas) -> None:
  for side, bottom in ((-1, c.rng.uniform(0.55, 0.8)), (1, c.rng.uniform(0.7, 0.9))):
    c.sew(
      [
        (side * 0.08, -0.3),
        (side * 0.42, -0.4),
        (side * 0.46, bottom - 0.14),
        (side * 0.08, bottom - 0.14),
      ],
      smooth=0,
    )
    left, right = sorted((side * 0.08, side * 0.46))
    _band(c, left, right, bottom - 0.14, 0.16)
  c.sew([(0.52 * np.cos(a), -0.5 + 0.3 * np.sin(a)) for a in np.linspace(0, 6.28, 24)], smooth=1)
  c.ink(
    c.alpha([(0.26 * np.cos(a), -0.56 + 0.12 * np.sin(a)) for a in np.linspace(0, 6.28, 20)]),
    c.first * 0.4,
    strength=0.9,
  )
  if not c.has("tasseled"):
    _details(c, 0.27, 0.2, 0.16)


def _shades(c: _Canvas) -> None:
  for side in (-1, 1):
    if c.has("pointy"):
      outline = [
        (side * 0.1, -0.14),
        (side * 0.98, -0.42),
        (side * 0.86, 0.2),
        (side * 0.5, 0.34),
        (side * 0.16, 0.22),
      ]
    else:
      outline = [
        (side * 0.52 + 0.42 * np.cos(a), 0.38 * np.sin(a)) for a in np.linspace(0, 6.28, 24)
      ]
    p = _smooth(outline, 2)
    frame = c.sew(p, smooth=0)
    inner = p.mean(axis=0) + 0.72 * (p - p.mean(axis=0))
    c.ink(c.alpha(inner), (58, 58, 66))
    glint = p.mean(axis=0) + np.array([-0.12, -0.1]) + 0.2 * (p - p.mean(axis=0))
    c.ink(c.alpha(glint), (150, 152, 165), strength=0.7)
    for name in ("pointy", "round"):
      c.part(name, frame)
    _details(c, side * 0.86, -0.12, 0.07) if not c.has("chained") else None
  c.sew([(-0.14, -0.12), (0.14, -0.12), (0.14, 0.0), (-0.14, 0.0)], smooth=1)
  if c.has("chained"):
    _chain(c, [(0.95 * np.cos(a), 0.2 + 0.55 * np.sin(a)) for a in np.linspace(0, np.pi, 40)])
  c.cloth &= c.owner >= 0


def _necklace(c: _Canvas) -> None:
  wide = c.rng.uniform(0.55, 0.75)
  curve = [
    (wide * np.sin(t), -0.85 + 1.25 * (1 - np.cos(t)) / 2) for t in np.linspace(-np.pi, np.pi, 60)
  ]
  curve = [
    (wide * np.sin(t), 0.35 - 1.15 * np.cos(t / 2) ** 0 * (1 - np.cos(t)) / 2)
    for t in np.linspace(-2.6, 2.6, 60)
  ]
  if c.has("chained"):
    _chain(c, curve)
  elif c.has("pearlembelished"):
    c.dots(curve[::2], 0.06, PEARL, "pearlembelished")
  else:
    c.ink(c.line(curve, 7), c.first * 0.6)
    c.dots(curve[::4], 0.05, METAL, "studded")
  pendant = [(0.26 * np.cos(a), 0.6 + 0.28 * np.sin(a)) for a in np.linspace(0, 6.28, 20)]
  alpha = c.sew(pendant, "round", smooth=0)
  if c.has("embossed"):
    c.part("embossed", alpha)
    c.ink(
      c.line(
        [(0.14 * np.cos(a), 0.6 + 0.15 * np.sin(a)) for a in np.linspace(0, 6.28, 20)],
        5,
        closed=True,
      ),
      c.first * 0.5,
    )
  if len(c.item.colours) > 1:
    c.sew(
      [(0.1 * np.cos(a), 0.6 + 0.1 * np.sin(a)) for a in np.linspace(0, 6.28, 14)],
      trim=True,
      smooth=0,
    )
  if c.has("tasseled"):
    _tassel(c, 0, 0.84, 0.34)


def _belt_item(c: _Canvas) -> None:
  sag = c.rng.uniform(0.1, 0.3)
  half = c.rng.uniform(0.13, 0.18)
  upper = [(x, sag * x * x - half) for x in np.linspace(-0.98, 0.98, 24)]
  lower = [(x, sag * x * x + half) for x in np.linspace(0.98, -0.98, 24)]
  c.sew([*upper, *lower], smooth=0)
  if len(c.item.colours) > 1:
    for shift in (-0.75 * half, 0.75 * half):
      line = c.line([(x, sag * x * x + shift) for x in np.linspace(-0.96, 0.96, 24)], 6)
      c.ink(line, c.second)
      c.owner[line > 0.5] = 1
  ring = [(-0.2, -1.5 * half), (0.2, -1.5 * half), (0.2, 1.5 * half), (-0.2, 1.5 * half)]
  c.ink(c.line(ring, 9, closed=True), GOLD)
  c.ink(c.line([(0, -1.0 * half), (0, 0.9 * half)], 5), np.asarray(GOLD) * 0.85)
  _bow(c, 0, 0, 0.3)
  for side in (-0.62, 0.62):
    _details(c, side, sag * side * side, 0.22)


_DRAWERS: dict[str, Callable[[_Canvas], None]] = {
  "tee": _top,
  "blouse": _top,
  "sweater": functools.partial(_top, boxy=0.05),
  "tank": _top,
  "trousers": _trousers,
  "shorts": _shorts,
  "skirt": _skirt,
  "dress": _dress,
  "jumpsuit": _jumpsuit,
  "coat": functools.partial(_outer, bottom=0.95),
  "jacket": functools.partial(_outer, bottom=0.45),
  "hoodie": _hoodie,
  "boot": _boot,
  "pump": _pump,
  "sneaker": _sneaker,
  "tote": _tote,
  "clutch": _clutch,
  "beanie": _beanie,
  "sunhat": _sunhat,
  "scarf": _scarf,
  "shades": _shades,
  "necklace": _necklace,
  "belt": _belt_item,
}
