"""Models that by construction look at one attribute's pixels: is it the attribute that is named?

Outfits are drawn, with the true pixels of all attributes. A planted model's embedding of an image
has one axis that is as large as the share of the attribute's pixels that is shown, and others that
are the image's own. Its maps are measured, its concepts fitted and its attributes ranked as any
model's. The attribute model is an oracle here: it knows what an image has, and where.
"""

import io
import json

import numpy as np
import pytest
from PIL import Image

import sane_jax
from sane_jax.attributes import concepts as concepts_lib
from sane_jax.attributes import quality
from sane_jax.datasets import outfits_drawn
from sane_jax.maps import reasons
from sane_jax.ops import ranking

SIDE = 64
OWN = 12  # axes that are the image's own
ATTRIBUTES = (  # colours, patterns, shapes, small parts
  "red", "navy", "turquoise", "striped", "dotted", "floral", "plaid", "longsleeve", "collared",
  "mini", "buttoned", "logo", "pocketed", "belted", "leather", "snakeprint",
)  # fmt: skip
PAIRS = 8  # of each attribute


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
  """Pixels [n s s 3], labels [n a], masks {row: {attribute: [s s]}} and names of drawn items."""
  folder = tmp_path_factory.mktemp("drawn")
  outfits_drawn.draw_outfits(folder, num_outfits=(120, 4, 4), seed=3, missing=0.0)
  truth = folder / "truth"
  full = json.loads((truth / "attributes.json").read_text())
  root = folder / "polyvore_outfits"
  names = json.loads((root / "polyvore_attributes.json").read_text())["attributes"]
  names = list(names) if isinstance(names, list) else [names[k] for k in names]
  pixels, labels, masks = [], [], []
  for item, has in full.items():
    with Image.open(io.BytesIO((root / "images" / f"{item}.jpg").read_bytes())) as image:
      pixels.append(np.asarray(image.convert("RGB").resize((SIDE, SIDE)), np.float32) / 255)
    labels.append(np.isin(np.arange(len(names)), has))
    found = outfits_drawn.read_truth(truth, item)
    masks.append({a: _small(mask) for a, mask in found.items()})
  return np.stack(pixels), np.stack(labels), masks, tuple(names)


def _small(mask):
  small = Image.fromarray(mask.astype(np.uint8) * 255).resize((SIDE, SIDE), Image.Resampling.BOX)
  return np.asarray(small, np.float32) / 255


def own_axes(row):
  v = np.random.default_rng(row).normal(size=OWN)
  return 0.5 * v / np.linalg.norm(v)


def planted_model(drawn, attribute, rows):
  """Sees of an image which of `rows` it is, and the share of the attribute's pixels shown."""
  pixels, _, masks, _ = drawn

  def embed(images):
    out = []
    for image in images:
      same = [(np.abs(image - pixels[row]) < 0.02).all(-1) for row in rows]
      best = int(np.argmax([s.sum() for s in same]))
      mask = masks[rows[best]].get(attribute)
      share = 0.0 if mask is None else float((mask * same[best]).sum() / mask.sum())
      out.append([share, *own_axes(rows[best])])
    return np.array(out, np.float32)

  return sane_jax.from_numpy(embed, image_size=SIDE, name="planted")


def whole_embeddings(drawn, attribute):
  labels = drawn[1]
  raw = np.array([[has, *own_axes(row)] for row, has in enumerate(labels[:, attribute])])
  return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)


def oracle(drawn, row):
  """What an attribute model that makes no mistake says of an image."""
  _, labels, masks, names = drawn
  confidence = labels[row] / max(labels[row].sum(), 1)
  maps = np.zeros((8, 8, len(names)), np.float32)
  for a, mask in masks[row].items():
    coarse = mask.reshape(8, SIDE // 8, 8, SIDE // 8).mean((1, 3))
    maps[..., a] = coarse / max(coarse.sum(), 1e-9)
  return confidence.astype(np.float32), maps


def concepts_of(drawn, attribute):
  """Prior and directions in the planted model's embeddings; pairs are of images that have it."""
  labels = drawn[1]
  x = whole_embeddings(drawn, attribute)
  have = np.flatnonzero(labels[:, attribute])
  pairs = np.array([(q, r) for q in have for r in have if q != r])
  found = concepts_lib.fit(
    x[:, None], np.zeros(len(x), int), np.zeros((1, 1), int), labels, np.ones(len(x), bool), pairs,
    settings=concepts_lib.Settings(num_random=10, min_images=5),
  )  # fmt: skip
  return found.prior[0], found.vectors[0], found.patterns[0]


def explained(drawn, attribute):
  """Terms [4 p a] of matching pairs that have the attribute, and their saliency maps' aim."""
  masks = drawn[2]
  rng = np.random.default_rng(attribute)
  have = np.flatnonzero([attribute in m and m[attribute].sum() > 8 for m in masks])
  concepts = concepts_of(drawn, attribute)
  terms, aims, regions = [], [], []
  for _ in range(PAIRS):
    query, reference = rng.choice(have, 2, replace=False)
    model = planted_model(drawn, attribute, [query, reference])
    explainer = sane_jax.Explainer(model, design="hadamard", num_masks=128, fill="grey")
    e = explainer.explain(drawn[0][query], drawn[0][reference])
    rank = reasons.make_ranker(
      drawn[3], lambda _, row=query: oracle(drawn, row), concepts[:2], (0.25,) * 4, ranking.RAW,
      patterns=concepts[2],
    )  # fmt: skip
    e.ranker = rank
    each = {a.name: a.terms for a in e.attributes}
    terms.append([[each[name][term] for name in drawn[3]] for term in ranking.TERMS])
    mask = masks[query][attribute][None] > 0.5
    if mask.any():
      aims.append(quality.mass_inside(e.saliency_map[None], mask)[0] / mask.mean())
      column = [a.name for a in e.attributes].index(drawn[3][attribute])
      seen = e.attribute_regions[:, column][e.query_cells]
      regions.append(quality.mass_inside(seen[None], mask)[0] / mask.mean())
  return np.array(terms).swapaxes(0, 1), aims, regions


def named(terms, phi, calibration):
  """The attribute named in each pair; ties at random, so that no order decides."""
  totals = ranking.totals(terms, phi, calibration)
  noise = np.random.default_rng(0).uniform(size=totals.shape) * 1e-9
  return (totals + noise).argmax(axis=1)


def test_the_planted_attribute_is_named(drawn):
  names = drawn[3]
  planted = [names.index(a) for a in ATTRIBUTES if drawn[1][:, names.index(a)].sum() >= 6]
  assert len(planted) >= 12
  found = {a: explained(drawn, a) for a in planted}
  everything = np.concatenate([terms for terms, _, _ in found.values()], axis=1)
  calibration = ranking.calibrate(everything, likely=0.05)
  rates = {}
  for name, phi in {
    "all terms": (0.4, 0.3, 0.0, 0.3),
    "the paper's terms": (0.5, 0.3, 0.2, 0.0),
    "map fit": (0.0, 1.0, 0.0, 0.0),
    "confidence": (1.0, 0.0, 0.0, 0.0),
  }.items():
    hits = [named(terms, phi, calibration) == a for a, (terms, _, _) in found.items()]
    rates[name] = float(np.mean(hits))
  rng = np.random.default_rng(1)
  rates["random"] = float(np.mean([rng.integers(len(names), size=PAIRS) == a for a in planted]))
  print({k: round(v, 3) for k, v in rates.items()}, "of", PAIRS * len(planted), "pairs")
  assert rates["all terms"] >= 0.9
  assert rates["confidence"] < 0.5
  assert rates["random"] < 0.05
  # Of a map's mass on the attribute's pixels, to an even map's: what the score rests on, and where
  # the concept alone says that the model sees the attribute.
  assert np.median([aim for _, each, _ in found.values() for aim in each]) > 2
  assert np.median([aim for _, _, each in found.values() for aim in each]) > 2
