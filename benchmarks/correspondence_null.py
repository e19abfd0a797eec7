"""Which region matches which, on photos of unlike things: how much of it is chance?

  python benchmarks/correspondence_null.py clothing/ animals/ [--classes 10] [--seed 0]

Each folder has a folder a class, of which one photo is measured, once. Pairs of two folders show
nothing in common; two classes of one folder may (both garments may hang on a white wall). Each
photo against its own mirror is a pair of which the answer is known. Prints a Markdown table.
"""

import argparse
import pathlib

import numpy as np
from PIL import Image

import sane_jax
from sane_jax.ops import effects, matches


def measure(folders, count, seed, model):
  """Kinds [n], and effect matrices of photos and of their mirrors [2 n c d]."""
  rng = np.random.default_rng(seed)
  explainer = sane_jax.Explainer(model)
  kinds, matrices = [], []
  for kind, folder in enumerate(folders):
    classes = sorted(f for f in folder.iterdir() if f.is_dir())
    for place in np.sort(rng.permutation(len(classes))[:count]):
      with Image.open(rng.choice(sorted(classes[place].iterdir()))) as image:
        photo = np.asarray(image.convert("RGB"))
      kinds.append(kind)
      matrices.append([np.asarray(explainer.effects(p).matrix) for p in (photo, photo[:, ::-1])])
  return np.asarray(kinds), np.moveaxis(np.asarray(matrices, np.float32), 1, 0)


def correspondences(kinds, matrices):
  """{name of a kind of pair: its tables [c c]}."""
  plain, mirrored = matrices
  i, j = np.triu_indices(len(plain), 1)
  across = kinds[i] != kinds[j]
  places = {
    "two folders": (i[across], j[across]), "two classes of one folder": (i[~across], j[~across])
  }  # fmt: skip
  found = {
    name: [
      np.asarray(effects.correspondence(plain[a], plain[b])) for a, b in zip(*pairs, strict=True)
    ]
    for name, pairs in places.items()
  }
  found["a photo and its mirror"] = [
    np.asarray(effects.correspondence(a, b)) for a, b in zip(plain, mirrored, strict=True)
  ]
  return found


def row(name, tables):
  """A row of the table that is printed."""
  every = [matches.mutual_matches(table, -1.0) for table in tables]
  kept = [matches.mutual_matches(table, matches.LEAST_MATCH) for table in tables]
  any_region = np.mean([(table >= matches.LEAST_MATCH).any() for table in tables])
  largest = np.quantile([table.max() for table in tables], [0.5, 0.95, 1])
  counts = [np.median([len(m) for m in found]) for found in (every, kept)]
  right = "–"
  if "mirror" in name:
    columns = round(len(tables[0]) ** 0.5)
    off = [
      max(abs(i // columns - j // columns), abs(columns - 1 - i % columns - j % columns))
      for found in kept for i, j, _ in found
    ]  # fmt: skip
    right = f"{100 * np.mean(np.array(off) <= 1):.0f} %"
  return (
    f"| {name} | {len(tables)} | {counts[0]:.0f} | {' / '.join(f'{x:.2f}' for x in largest)} |"
    f" {100 * any_region:.1f} % | {counts[1]:.0f} | {right} |"
  )


if __name__ == "__main__":
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("folders", type=pathlib.Path, nargs="+")
  parser.add_argument("--model", default="efficientnet_lite0")
  parser.add_argument("--image-size", type=int, default=112)
  parser.add_argument("--classes", type=int, default=10, help="of each folder")
  parser.add_argument("--seed", type=int, default=0)
  given = parser.parse_args()
  model = sane_jax.load_model(given.model, image_size=given.image_size)
  measured = measure(given.folders, given.classes, given.seed, model)
  print(
    "| pairs | number | mutual best matches, median | largest cosine: median / 95 % / all | pairs"
    f" with any cosine of {matches.LEAST_MATCH} | matches, median | within a region of the truth |"
  )
  print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
  for name, tables in correspondences(*measured).items():
    print(row(name, tables))
