"""Details that many garments share: bows, plackets, belts, pockets, collars, hems, sleeves."""

import numpy as np

from sane_jax.datasets.outfits_drawn.canvas import Canvas, Points, mirror, smooth

METAL = (176, 172, 160)
GOLD = (212, 172, 84)
PEARL = (240, 236, 228)


def bow(c: Canvas, x: float, y: float, size: float) -> None:
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
      alpha = c.alpha(smooth(points, 1))
      c.ink(alpha, colour, "bowdetailed")
      c.ink(c.line(smooth(points, 1), 1.3, closed=True), colour * 0.6, strength=0.7)
  c.dots([(x, y)], 0.2 * size, colour * 0.85, "bowdetailed")


def placket(c: Canvas, top: float, bottom: float, x: float = 0.0) -> None:
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
    sides = [0.018, -0.018]
    teeth = [
      [(x + sides[k % 2] - 0.02, v), (x + sides[k % 2] + 0.02, v)]
      for k, v in enumerate(np.arange(top, bottom, 0.03))
    ]
    c.ink(c.lines(teeth, 2), (225, 222, 214))
    c.dots([(x, top + 0.05)], 0.04, METAL, "zipped")


def belt(c: Canvas, width: float, y: float, name: str = "belted") -> None:
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


def details(
  c: Canvas, x: float, y: float, width: float, pockets: Points = (), *, tassels: bool = True
) -> None:
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
      c.sew(patch, "pocketed", rounds=0)
      c.ink(
        c.line([(px - s, py - 0.6 * s), (px + s, py - 0.6 * s)], 2.2), c.first * 0.45, strength=0.8
      )
  if c.has("logo"):
    colour = c.contrast()
    s = min(0.2, width)
    badge = smooth(
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
    chain(c, [(x + t * width, y + 0.25 * width * (1 - t * t)) for t in np.linspace(-1, 1, 20)])
  if c.has("tasseled") and tassels:
    tassel(c, x, y)


def chain(c: Canvas, points: Points) -> None:
  p = np.asarray(points, float)
  lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(p, axis=0), axis=1))])
  along = np.arange(0, lengths[-1], 0.075)
  places = np.stack([np.interp(along, lengths, p[:, k]) for k in (0, 1)], axis=1)
  c.part("chained", c.line(p.tolist(), 9))
  for px, py in places:
    ring = [(px + 0.042 * np.cos(a), py + 0.036 * np.sin(a)) for a in np.linspace(0, 6.28, 12)]
    c.ink(c.line(ring, 2.4, closed=True), np.asarray(GOLD) * 0.82)


def tassel(c: Canvas, x: float, y: float, size: float = 0.3) -> None:
  colour = c.contrast()
  c.part(
    "tasseled", c.alpha([(x - 0.09, y), (x + 0.09, y), (x + 0.13, y + size), (x - 0.13, y + size)])
  )
  for t in np.linspace(-1, 1, 9):
    c.ink(
      c.line([(x + 0.04 * t, y), (x + 0.12 * t, y + size)], 2.4), colour * (0.85 + 0.1 * (t > 0))
    )
  c.dots([(x, y)], 0.06, colour, "tasseled")


def band(
  c: Canvas, left: float, right: float, y: float, height: float, seed_wave: float = 0.0
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
    c.sew([(left, y), (right, y), *reversed(lower)], name, trim=True, rounds=0)
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
    threads = []
    for t in np.linspace(0.01, 0.99, max(12, round(width * 30))):
      x = left + width * t
      end = (x + c.rng.uniform(-0.03, 0.03), y + height * c.rng.uniform(0.3, 0.8))
      threads.append([(x, y - 0.02), end])
    c.ink(c.lines(threads, 1.5), c.first + 0.35 * (255 - c.first))
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
      rounds=0,
    )
  if c.has("tasseled"):
    for x in np.linspace(left + 0.06, right - 0.06, max(2, round(width / 0.18))):
      tassel(c, x, y, 1.3 * height)


def collar(c: Canvas, y: float, width: float) -> None:
  if c.has("collared"):
    for side in (-1, 1):
      flap = [
        (0, y + 0.17),
        (side * 0.02, y + 0.02),
        (side * width, y - 0.07),
        (side * (width + 0.13), y + 0.2),
        (side * 0.14, y + 0.34),
      ]
      c.sew(flap, "collared", trim=True, rounds=0)
  if c.has("cutout"):
    hole = [(0.15 * np.cos(a), y + 0.36 + 0.11 * np.sin(a)) for a in np.linspace(0, 6.28, 24)]
    alpha = c.alpha(hole)
    c.ink(alpha, (252, 251, 250), "cutout")
    c.ink(c.line(hole, 3, closed=True), c.first * 0.5, "cutout", strength=0.9)


def hood(c: Canvas, y: float, width: float) -> None:
  if c.has("hooded"):
    outer = [
      (width + 0.1, y + 0.12),
      (width + 0.12, y - 0.2),
      (0.5 * width, y - 0.42),
      (0, y - 0.46),
    ]
    c.sew(mirror(outer[::-1]), "hooded")
    inner = [(0, y - 0.3), (0.6 * width, y - 0.22), (0.72 * width, y), (0.2, y + 0.14)]
    c.ink(c.alpha(smooth(mirror(inner), 2)), c.first * 0.42, "hooded", strength=0.9)


def sleeves(c: Canvas, shoulder: float, y: float, pit: float, spread: float) -> None:
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
  room = 1.02 - shoulder - wide * np.cos(spread)  # to the edge of the picture
  length = min(length, room / np.sin(spread))
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
    c.sew(points, name, rounds=1)
    if len(c.item.colours) > 1:
      near = end - 0.1 * direction
      cuff = [
        tuple(near + wide * across),
        tuple(end + wide * across),
        tuple(end - 0.09 * across),
        tuple(near - 0.1 * across),
      ]
      c.sew(cuff, name, trim=True, rounds=0)
