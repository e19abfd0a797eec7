"""Saliency maps against planted truth: models that look at one attribute's pixels, by construction.

  python benchmarks/planted_maps.py

Outfits are drawn, with the true pixels of all attributes. A planted model's embedding has one axis
that is the share of the attribute's pixels that still look as they did, and others that are the
image's own. So the map's evidence belongs on those pixels and nowhere else. Prints a Markdown
table: the pointing game (how often the largest value lies on them), the share of the positive
evidence on them, and the same with the map cut to a fifth of the pixels.
"""

import argparse
import io
import json
import pathlib
import tempfile

import jax.numpy as jnp
import numpy as np
from PIL import Image

import sane_jax
from sane_jax.attributes import quality
from sane_jax.datasets import outfits_drawn
from sane_jax.maps.generators import parse_generator

SIDE = 64
OWN = 12  # axes that are the image's own
ATTRIBUTES = (  # colours, patterns, shapes, small parts
  "red", "navy", "turquoise", "striped", "dotted", "floral", "plaid", "longsleeve", "collared",
  "mini", "buttoned", "logo", "pocketed", "belted", "leather", "snakeprint",
)  # fmt: skip
GENERATORS = (
  "random", "rise", "sliding_window", "lime", "kernel_shap", "hadamard",
  "hadamard:num_masks=128", 'hadamard:num_masks=128,fill="mean"',
  'hadamard:num_masks=128,fill="mean",smoothing=0', "hadamard:num_masks=64,grid=[5,5]",
)  # fmt: skip


def draw(folder):
  """Pixels [n s s 3] in [0, 1] and each image's {attribute: mask [s s]}, and the names."""
  outfits_drawn.draw_outfits(folder, num_outfits=(120, 4, 4), seed=3, missing=0.0)
  root, truth = folder / "polyvore_outfits", folder / "truth"
  names = json.loads((root / "polyvore_attributes.json").read_text())["attributes"]
  names = list(names) if isinstance(names, list) else [names[k] for k in names]
  pixels, masks = [], []
  for item in json.loads((truth / "attributes.json").read_text()):
    with Image.open(io.BytesIO((root / "images" / f"{item}.jpg").read_bytes())) as image:
      pixels.append(np.asarray(image.convert("RGB").resize((SIDE, SIDE)), np.float32) / 255)
    found = outfits_drawn.read_truth(truth, item)
    masks.append({names[a]: shrink(mask) for a, mask in found.items()})
  return np.stack(pixels), masks


def shrink(mask):
  small = Image.fromarray(mask.astype(np.uint8) * 255).resize((SIDE, SIDE), Image.Resampling.BOX)
  return np.asarray(small, np.float32) / 255


def embed(params, images):
  """[b 1 + OWN]: how much of the attribute is left to see, and which of the two images it is."""
  pixels, masks, own = params
  off = jnp.abs(images[:, None] - pixels).max(axis=-1)  # [b 2 s s]
  left = jnp.clip(1 - off / 0.2, 0, 1)
  which = left.sum(axis=(2, 3)).argmax(axis=1)
  shares = (left * masks).sum(axis=(2, 3)) / masks.sum(axis=(1, 2))
  share = jnp.take_along_axis(shares, which[:, None], axis=1)
  return jnp.concatenate([share, own[which]], axis=1)


def planted_model(pixels, masks):
  own = np.random.default_rng(0).normal(size=(2, OWN))
  own = 0.5 * own / np.linalg.norm(own, axis=1, keepdims=True)
  params = tuple(jnp.asarray(a, jnp.float32) for a in (pixels, masks, own))
  return sane_jax.from_jax(embed, params, image_size=SIDE, name="planted")


def measure(pixels, masks, num_pairs):
  """{generator: [pairs, (passes, pointing, mass, mass of the top fifth)]}."""
  out = {spec: [] for spec in GENERATORS}
  for number, attribute in enumerate(ATTRIBUTES):
    rng = np.random.default_rng(number)
    have = np.flatnonzero([attribute in m and m[attribute].sum() > 8 for m in masks])
    for _ in range(num_pairs if len(have) > 1 else 0):
      pair = rng.choice(have, 2, replace=False)
      truth = np.stack([masks[row][attribute] for row in pair])
      model = planted_model(pixels[pair], truth)
      for spec in GENERATORS:
        name, options = parse_generator(spec)
        e = sane_jax.Explainer(model, design=name, **options).explain(*pixels[pair])
        shown, true = np.asarray(e.saliency_map), truth[0] > 0.2
        top = np.where(shown >= np.quantile(shown, 0.8), shown, 0)
        out[spec].append((
          e.encoder_passes, quality.pointing_game(shown[None], true[None])[0],
          *quality.mass_inside(np.stack([shown, top]), np.stack([true, true])),
        ))  # fmt: skip
  return {spec: np.asarray(rows, float) for spec, rows in out.items()}


def cell(values):
  low, high = sane_jax.bootstrap_interval(100 * values)
  return f"{100 * values.mean():.0f} [{low:.0f}, {high:.0f}]"


if __name__ == "__main__":
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--pairs", type=int, default=8, help="of each attribute")
  with tempfile.TemporaryDirectory() as name:
    found = measure(*draw(pathlib.Path(name)), parser.parse_args().pairs)
  print("| generator | passes | pointing game, % | mass inside, % | of the top fifth, % |")
  print("| --- | ---: | --- | --- | --- |")
  for spec, rows in found.items():
    print(f"| {spec} | {rows[:, 0].mean():,.0f} | {' | '.join(map(cell, rows.T[1:]))} |")
