"""Collections of small pictures whose groups share a colour: enough to train on in seconds."""

import io
from typing import Any

import numpy as np
from PIL import Image

from sane_jax.datasets.collection import Collection, Compatibility, Question

COLOURS = ((200, 30, 30), (30, 160, 60), (40, 60, 200), (220, 180, 40))


def picture(colour: int, corner: int, rng: np.random.Generator) -> bytes:
  """A disc of a colour in one of four corners, on noise, 40 pixels wide."""
  pixels = rng.integers(200, 256, size=(40, 40, 3))
  y, x = np.mgrid[:40, :40]
  disc = (y - (10 + 20 * (corner // 2))) ** 2 + (x - (10 + 20 * (corner % 2))) ** 2 < 64
  pixels[disc] = np.asarray(COLOURS[colour]) + rng.integers(-20, 20, size=3)
  buffer = io.BytesIO()
  Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
  return buffer.getvalue()


def collection(name: str, *, groups: int = 12, seed: int = 0, **fields: Any) -> Collection:
  """Outfits of three types, one colour each; attributes are the colour and the corner."""
  rng = np.random.default_rng(seed)
  images, types, attributes, members, colours = [], [], [], [], []
  for _ in range(groups):
    colour = int(rng.integers(len(COLOURS)))
    rows = []
    for kind in rng.permutation(3)[: rng.integers(2, 4)]:
      corner = int(rng.integers(4))
      rows.append(len(images))
      images.append(picture(colour, corner, rng))
      types.append(kind)
      attributes.append(np.array([colour, 4 + corner], np.int32))
      colours.append(colour)
    members.append(np.asarray(rows, np.int32))
  types = np.asarray(types, np.int32)
  questions, outfits = [], []
  for rows in members:
    right = rows[0]
    wrong = [
      r for r in range(len(images)) if types[r] == types[right] and colours[r] != colours[right]
    ]
    if len(wrong) >= 3:
      answers = np.array([*rng.choice(wrong, 3, replace=False), right], np.int32)
      questions.append(Question(rows[1:], answers, 3))
    outfits.append(Compatibility(rows, 1))
    outfits.append(Compatibility(rng.choice(len(images), 3, replace=False), 0))
  made = Collection(
    name=name,
    images=tuple(images),
    ids=tuple(f"{name}_{i}" for i in range(len(images))),
    types=types,
    type_names=("hats", "shoes", "tops"),
    conditions=np.array([[0, 1, 2], [1, 3, 4], [2, 4, 5]], np.int32),
    groups=tuple(members),
    group_names=tuple(f"outfit {i}" for i in range(groups)),
    attribute_names=("red", "green", "blue", "golden", "nw", "ne", "sw", "se"),
    attributes=tuple(attributes),
    titles=tuple(f"a thing of colour {c}" for c in colours),
    questions=tuple(questions),
    compatibility=tuple(outfits),
    pairs=(),
    left_out=(),
  )
  return made._replace(**fields)
