"""Draws one product picture of a garment on white, with the exact pixels of each attribute."""

import functools
from collections.abc import Callable

import numpy as np

from sane_jax.datasets.outfits_drawn import details
from sane_jax.datasets.outfits_drawn.canvas import Canvas, mirror, smooth
from sane_jax.datasets.outfits_drawn.wardrobe import Item


def draw(item: Item) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """The picture, uint8 [300 300 3], and where each of the item's attributes is, bool [300 300].

  A colour is where it shows, a pattern or a material the whole cloth that has it, anything else the
  part of that name: sleeves, collar, placket, hem band, sole.
  """
  canvas = Canvas(item)
  _DRAWERS[item.kind](canvas)
  return canvas.finish()


def _bodice(
  c: Canvas, bottom: float, *, boxy: float = 0.0, neck: float = 0.2
) -> tuple[float, float]:
  """Torso with sleeves, from y = −0.85 to `bottom`; returns its half widths at waist and bottom."""
  rng = c.rng
  shoulder = rng.uniform(0.42, 0.5) + boxy
  waist = rng.uniform(0.34, 0.42) + boxy
  hem = waist + rng.uniform(0.0, 0.08)
  if c.has("sleeveless"):
    shoulder -= 0.1
  details.hood(c, -0.82, neck)
  details.sleeves(c, shoulder, -0.74, -0.3, rng.uniform(0.25, 0.55))
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
  points = mirror(half)
  if c.has("asymmetric"):
    points[6], points[7] = (hem, bottom - 0.22), (-hem, bottom + 0.12)
  body = c.sew(points, rounds=2, most=0.05)
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


def _top(c: Canvas, boxy: float = 0.0) -> None:
  bottom = c.rng.uniform(0.12, 0.24) if c.has("cropped") else c.rng.uniform(0.62, 0.78)
  _, hem = _bodice(c, bottom, boxy=boxy)
  if c.has("cropped"):
    c.part(
      "cropped",
      c.alpha([(-hem, bottom - 0.16), (hem, bottom - 0.16), (hem, bottom), (-hem, bottom)]),
    )
  details.band(c, -hem, hem, bottom, 0.17)
  details.collar(c, -0.8, 0.2)
  details.placket(c, -0.6, bottom - 0.02)
  details.bow(c, 0, -0.58, 0.2)
  details.details(c, 0, -0.15, 0.26, [(0.2, -0.25)])


def _legs(c: Canvas, top: float, bottom: float, hip: float) -> None:
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
    alpha = c.sew(leg, rounds=0)
    for name in ("wide", "skinny", "straightleg"):
      low = c.alpha([(-1.2, top + 0.6), (1.2, top + 0.6), (1.2, 1.5), (-1.2, 1.5)])
      c.part(name, np.minimum(alpha, low))
    left, right = sorted((side * (inner + lean), side * (outer + lean)))
    details.band(c, left, right, bottom, 0.12)
  c.ink(c.line([(0, top), (0, top + 0.55)], 1.8), c.first * 0.5, strength=0.7)


def _trousers(c: Canvas) -> None:
  hip = c.rng.uniform(0.38, 0.46)
  _legs(c, -0.9, 0.95, hip)
  for name in ("waistbanded", "belted"):
    details.belt(c, 0.9 * hip, -0.86, name)
  if c.has("zipped"):
    details.placket(c, -0.78, -0.4)
  details.details(c, 0, -0.55, 0.3, [(-0.22, -0.5), (0.22, -0.5)])


def _shorts(c: Canvas) -> None:
  hip = c.rng.uniform(0.5, 0.6)
  for side in (-1, 1):
    leg = [
      (0, -0.55),
      (side * hip * 0.88, -0.55),
      (side * (hip + 0.1), 0.4),
      (side * 0.07, 0.46),
      (0, 0.1),
    ]
    c.sew(leg, rounds=0)
    left, right = sorted((side * 0.07, side * (hip + 0.1)))
    details.band(c, left, right, 0.43, 0.13)
  for name in ("waistbanded", "belted"):
    details.belt(c, 0.9 * hip, -0.51, name)
  details.details(c, 0, -0.2, 0.34, [(-0.3, -0.15), (0.3, -0.15)])


_LENGTHS = {"mini": 0.05, "midi": 0.5, "maxi": 0.95}


def _skirt_part(
  c: Canvas, top: float, waist: float, flare: float, length: str, bottom: float
) -> None:
  if c.has("ruffled"):
    bottom -= 0.12  # room for the ruffles
  hem = waist + flare * (bottom - top)
  points = [
    (waist, top),
    (waist + 0.55 * flare * (bottom - top), 0.5 * (top + bottom)),
    (hem, bottom),
  ]
  outline = mirror(points)
  if c.has("asymmetric"):
    outline[2], outline[3] = (hem, bottom - 0.3), (-hem, bottom + 0.05)
  alpha = c.sew(outline, length, rounds=0)
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
    details.band(c, -hem, hem, bottom - 0.1, 0.2)


def _skirt(c: Canvas) -> None:
  length = next((n for n in _LENGTHS if c.has(n)), "midi")
  waist = c.rng.uniform(0.3, 0.38)
  top = {"mini": -0.5, "midi": -0.75, "maxi": -0.95}[length]
  bottom = {"mini": 0.4, "midi": 0.75, "maxi": 0.98}[length]
  flare = min(c.rng.uniform(0.16, 0.42), (0.85 - waist) / (bottom - top))  # inside the picture
  _skirt_part(c, top, waist, flare, length, bottom)
  for name in ("waistbanded", "belted"):
    details.belt(c, waist + 0.02, top + 0.05, name)
  details.placket(c, top + 0.12, bottom - 0.06)


def _dress(c: Canvas) -> None:
  length = next((n for n in _LENGTHS if c.has(n)), "midi")
  bottom = {"mini": 0.35, "midi": 0.72, "maxi": 1.02}[length]
  _skirt_part(c, -0.15, 0.33, c.rng.uniform(0.2, 0.42), length, bottom)
  waist, hem = _bodice(c, -0.1)
  details.belt(c, max(waist, hem) + 0.01, -0.12)
  details.collar(c, -0.8, 0.2)
  details.placket(c, -0.6, bottom - 0.1)
  details.bow(c, 0, -0.12, 0.22)


def _jumpsuit(c: Canvas) -> None:
  _legs(c, -0.15, 1.0, 0.4)
  waist, _ = _bodice(c, -0.08)
  details.belt(c, waist + 0.04, -0.12)
  details.collar(c, -0.8, 0.2)
  details.placket(c, -0.6, 0.2)


def _outer(c: Canvas, bottom: float) -> None:
  _, hem = _bodice(c, bottom, boxy=0.07, neck=0.22)
  c.ink(c.line([(0, -0.7), (0, bottom)], 2.2), c.first * 0.4, strength=0.8)
  details.placket(c, -0.62, bottom - 0.04)
  details.collar(c, -0.8, 0.24)
  details.belt(c, hem + 0.02, 0.05)
  low = 0.35 if bottom > 0.7 else 0.1
  details.details(c, 0.27, -0.28, 0.17, [(-0.28, low), (0.28, low)])


def _hoodie(c: Canvas) -> None:
  bottom = 0.62
  _, hem = _bodice(c, bottom, boxy=0.07)
  if c.has("pocketed"):
    pouch = [(-0.2, 0.12), (0.2, 0.12), (0.34, 0.48), (-0.34, 0.48)]
    c.sew(pouch, "pocketed", rounds=0)
  c.sew(
    [(-hem, bottom - 0.08), (hem, bottom - 0.08), (hem, bottom + 0.03), (-hem, bottom + 0.03)],
    trim=True,
    rounds=0,
  )
  details.placket(c, -0.6, bottom)
  if c.has("logo"):
    details.details(c, 0, -0.2, 0.24)
  for side in (-0.06, 0.06):
    c.ink(c.line([(side, -0.66), (side * 1.6, -0.34)], 3), c.contrast(), strength=0.9)


def _sole(c: Canvas, left: float, right: float, y: float, lift: float) -> None:
  """A shoe's sole under [left, right]; the toe points to the left."""
  if c.has("heel"):
    heel = [
      (right - 0.24, y - 0.06 - 0.7 * lift),
      (right - 0.01, y - 0.1 - lift),
      (right - 0.05, y + 0.08),
      (right - 0.15, y + 0.08),
    ]
    c.sew(heel, "heel", trim=True, rounds=0, plain=True)
    c.sew(
      [(left - 0.04, y), (left + 0.6, y), (left + 0.56, y + 0.08), (left, y + 0.08)],
      trim=True,
      rounds=2,
      most=0.03,
      plain=True,
    )
  else:
    thick = 0.24 if c.has("platform") else 0.1
    sole = [(left, y), (right, y), (right - 0.02, y + thick), (left + 0.03, y + thick)]
    name = "platform" if c.has("platform") else "flat"
    c.sew(sole, name, trim=True, rounds=2, most=0.04, plain=True)


def _toe(c: Canvas, left: float, y: float) -> None:
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


def _boot(c: Canvas) -> None:
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
    (0.1, y - 0.4 * lift),
    (-0.3, y + 0.02),
    *tip,
    (-0.2, y - 0.42),
  ]
  alpha = c.sew(points, rounds=2, most=0.07)
  shaft = c.alpha([(-0.4, top - 0.1), (0.6, top - 0.1), (0.6, y - 0.35), (-0.4, y - 0.35)])
  c.part("kneehigh" if tall else "ankle", np.minimum(alpha, shaft))
  _toe(c, -0.88, y)
  if c.has("zipped"):
    details.placket(c, top + 0.06, y - 0.4, 0.12)
  for name in ("studded", "chained"):
    if c.has(name):
      details.details(c, 0.1, top + 0.25, 0.18)
      break
  if c.has("tasseled"):
    details.tassel(c, 0.0, top + 0.12, 0.36)


def _pump(c: Canvas) -> None:
  lift = 0.36 if c.has("heel") else 0.0
  y = 0.3
  tip = (
    [(-0.98, y), (-0.7, y - 0.14)]
    if c.has("pointy")
    else [(-0.84, y + 0.02), (-0.88, y - 0.12), (-0.68, y - 0.2)]
  )
  _sole(c, -0.84, 0.72, y - 0.02, max(lift - 0.04, 0.0))
  c.sew(
    [
      (0.72, y - lift),
      (0.66, y - 0.36 - lift),
      (0.5, y - 0.32 - lift),
      (0.1, y - 0.12),
      (-0.35, y - 0.22),
      *reversed(tip),
      (-0.3, y + 0.02),
      (0.3, y - 0.5 * lift),
    ],
    rounds=2,
    most=0.08,
  )
  _toe(c, -0.92, y)
  if c.has("strappy"):
    for px in (0.36, 0.52):
      strap = [(px, y - 0.2 - 0.6 * lift), (px + 0.06, y - 0.62 - 0.4 * lift)]
      c.ink(c.line(strap, 9), c.first * 0.8, "strappy")
  details.bow(c, -0.5, y - 0.22, 0.2)
  details.details(c, -0.5, y - 0.1, 0.2)


def _sneaker(c: Canvas) -> None:
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
    rounds=2,
    most=0.06,
  )
  c.sew(
    [(-0.9, y), (-0.88, y - 0.12), (-0.66, y - 0.18), (-0.6, y)], trim=True, rounds=2, most=0.04
  )
  for t in np.linspace(0, 1, 4):
    px, py = -0.2 + 0.32 * t, y - 0.28 - 0.2 * t
    c.ink(
      c.line([(px - 0.05, py - 0.03), (px + 0.14, py + 0.1)], 5), (250, 250, 250), strength=0.95
    )
  details.details(c, 0.42, y - 0.2, 0.18)


def _tote(c: Canvas) -> None:
  half = c.rng.uniform(0.58, 0.72)
  for side in (-1, 1):
    arc = [
      (side * 0.1 + 0.3 * np.cos(a), -0.35 - 0.5 * np.sin(a)) for a in np.linspace(0, np.pi, 20)
    ]
    c.ink(c.line(arc, 9), (c.second if len(c.item.colours) > 1 else c.first * 0.75), strength=0.95)
  c.sew(mirror([(half * 0.9, -0.4), (half, 0.75)]), rounds=0)
  c.sew(
    [(-half * 0.9, -0.4), (half * 0.9, -0.4), (half * 0.92, -0.26), (-half * 0.92, -0.26)],
    trim=True,
    rounds=0,
  )
  details.band(c, -half, half, 0.74, 0.16)
  if not c.has("tasseled"):
    details.details(c, 0, 0.15, 0.3)
  details.bow(c, 0, -0.25, 0.24)


def _clutch(c: Canvas) -> None:
  if c.has("chained"):
    arc = np.linspace(0, np.pi, 40)
    details.chain(c, np.stack([0.75 * np.cos(arc), -0.3 - 0.55 * np.sin(arc)], axis=1))
  c.sew([(-0.85, -0.4), (0.85, -0.4), (0.85, 0.5), (-0.85, 0.5)], rounds=2, most=0.05)
  c.sew([(-0.83, -0.38), (0.83, -0.38), (0.5, 0.05), (0, 0.16), (-0.5, 0.05)], trim=True, rounds=0)
  if c.has("zipped"):
    line = [(-0.78, -0.3), (0.78, -0.3)]
    c.ink(c.line(line, 8), np.asarray(details.METAL) * 0.55, "zipped")
    c.dots([(x, -0.3) for x in np.linspace(-0.75, 0.75, 32)], 0.02, (225, 222, 214), "zipped")
  if not c.has("chained"):
    details.details(c, 0, 0.28, 0.3)
  else:
    c.dots([(0, 0.1)], 0.06, details.GOLD)
  details.bow(c, 0, 0.1, 0.24)


def _beanie(c: Canvas) -> None:
  if c.has("tasseled"):
    details.tassel(c, 0, -0.8, 0.34)
  c.sew(mirror([(0.0, -0.62), (0.35, -0.55), (0.62, -0.2), (0.66, 0.4)]), rounds=2)
  brim = [(-0.7, 0.18), (0.7, 0.18), (0.7, 0.56), (-0.7, 0.56)]
  c.sew(brim, "cuffed", trim=True, rounds=1)
  details.details(c, 0, 0.36, 0.2) if not c.has("tasseled") else None


def _sunhat(c: Canvas) -> None:
  c.sew([(1.0 * np.cos(a), 0.3 + 0.34 * np.sin(a)) for a in np.linspace(0, 6.28, 30)], rounds=1)
  if c.has("frayed"):
    details.band(c, -0.8, 0.8, 0.52, 0.2)
  c.sew(mirror([(0.0, -0.58), (0.4, -0.52), (0.5, 0.2), (0.3, 0.32)]), rounds=1)
  band = [(-0.49, 0.02), (0.49, 0.02), (0.5, 0.2), (-0.5, 0.2)]
  if c.has("belted"):
    details.belt(c, 0.5, 0.12)
  else:
    c.ink(c.alpha(band), c.second if len(c.item.colours) > 1 else c.first * 0.6, strength=0.95)
  details.bow(c, 0.3, 0.12, 0.22)
  details.details(c, 0, -0.2, 0.28) if not c.has("tasseled") else details.tassel(c, 0.4, 0.12, 0.36)


def _scarf(c: Canvas) -> None:
  for side, bottom in ((-1, c.rng.uniform(0.55, 0.8)), (1, c.rng.uniform(0.7, 0.9))):
    c.sew(
      [
        (side * 0.08, -0.3),
        (side * 0.42, -0.4),
        (side * 0.46, bottom - 0.14),
        (side * 0.08, bottom - 0.14),
      ],
      rounds=0,
    )
    left, right = sorted((side * 0.08, side * 0.46))
    details.band(c, left, right, bottom - 0.14, 0.16)
  c.sew([(0.52 * np.cos(a), -0.5 + 0.3 * np.sin(a)) for a in np.linspace(0, 6.28, 24)], rounds=1)
  c.ink(
    c.alpha([(0.26 * np.cos(a), -0.56 + 0.12 * np.sin(a)) for a in np.linspace(0, 6.28, 20)]),
    c.first * 0.4,
    strength=0.9,
  )
  details.details(c, 0.27, 0.2, 0.16, tassels=False)


def _shades(c: Canvas) -> None:
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
    p = smooth(outline, 2)
    frame = c.sew(p, rounds=0)
    inner = p.mean(axis=0) + 0.72 * (p - p.mean(axis=0))
    c.ink(c.alpha(inner), (58, 58, 66))
    glint = p.mean(axis=0) + np.array([-0.12, -0.1]) + 0.2 * (p - p.mean(axis=0))
    c.ink(c.alpha(glint), (150, 152, 165), strength=0.7)
    for name in ("pointy", "round"):
      c.part(name, frame)
    details.details(c, side * 0.86, -0.12, 0.07) if not c.has("chained") else None
  c.sew([(-0.14, -0.12), (0.14, -0.12), (0.14, 0.0), (-0.14, 0.0)], rounds=1)
  if c.has("chained"):
    arc = np.linspace(0, np.pi, 40)
    details.chain(c, np.stack([0.95 * np.cos(arc), 0.2 + 0.55 * np.sin(arc)], axis=1))
  c.cloth &= c.owner >= 0


def _necklace(c: Canvas) -> None:
  wide = c.rng.uniform(0.55, 0.75)
  curve = [
    (wide * np.sin(t), 0.35 - 1.15 * (1 - np.cos(t)) / 2) for t in np.linspace(-2.6, 2.6, 60)
  ]
  if c.has("chained"):
    details.chain(c, curve)
  elif c.has("pearlembelished"):
    c.dots(curve[::2], 0.06, details.PEARL, "pearlembelished")
  else:
    c.ink(c.line(curve, 7), c.first * 0.6)
    c.dots(curve[::4], 0.05, details.METAL, "studded")
  pendant = [(0.26 * np.cos(a), 0.6 + 0.28 * np.sin(a)) for a in np.linspace(0, 6.28, 20)]
  alpha = c.sew(pendant, "round", rounds=0)
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
      rounds=0,
    )
  if c.has("tasseled"):
    details.tassel(c, 0, 0.84, 0.34)


def _belt_item(c: Canvas) -> None:
  sag = c.rng.uniform(0.1, 0.3)
  half = c.rng.uniform(0.13, 0.18)
  upper = [(x, sag * x * x - half) for x in np.linspace(-0.98, 0.98, 24)]
  lower = [(x, sag * x * x + half) for x in np.linspace(0.98, -0.98, 24)]
  c.sew([*upper, *lower], rounds=0)
  if len(c.item.colours) > 1:
    for shift in (-0.75 * half, 0.75 * half):
      line = c.line([(x, sag * x * x + shift) for x in np.linspace(-0.96, 0.96, 24)], 6)
      c.ink(line, c.second)
      c.owner[line > 0.5] = 1
  ring = [(-0.2, -1.5 * half), (0.2, -1.5 * half), (0.2, 1.5 * half), (-0.2, 1.5 * half)]
  c.ink(c.line(ring, 9, closed=True), details.GOLD)
  c.ink(c.line([(0, -1.0 * half), (0, 0.9 * half)], 5), np.asarray(details.GOLD) * 0.85)
  details.bow(c, 0, 0, 0.3)
  for side in (-0.62, 0.62):
    details.details(c, side, sag * side * side, 0.22)


_DRAWERS: dict[str, Callable[[Canvas], None]] = {
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
