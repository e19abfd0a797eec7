"""Makes the pictures of docs/tour.md and docs/reading_maps.md: python docs/make_guide_pictures.py

Or some of them, by the names of their functions: python docs/make_guide_pictures.py draw_fills
Photos are those that scikit-image carries. What the pages say in numbers is printed.
"""

import dataclasses
import pathlib
import sys

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import spearmanr
from skimage import data

import sane_jax
from sane_jax import report
from sane_jax.datasets import photos

FOLDER = pathlib.Path(__file__).parent
SIDE = 336  # pixels of a photo as it is drawn; the model sees 112
FILLS = ("mean", "blur", "black", "white")


def square(pixels: np.ndarray) -> np.ndarray:
  """The middle square [s s 3] of a photo."""
  side = min(pixels.shape[:2])
  top, left = ((n - side) // 2 for n in pixels.shape[:2])
  image = Image.fromarray(pixels[top : top + side, left : left + side])
  return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def collage(left: np.ndarray, right: np.ndarray) -> np.ndarray:
  """Two photos side by side, half a square each, on the other half's mean grey."""
  both = np.concatenate([square(left), square(right)], axis=1)
  both = np.asarray(Image.fromarray(both).resize((SIDE, SIDE // 2), Image.Resampling.LANCZOS))
  canvas = np.full((SIDE, SIDE, 3), 118, np.uint8)
  canvas[SIDE // 4 : SIDE // 4 + SIDE // 2] = both
  return canvas


def draw(name: str, panels, *, shared: bool = True) -> None:
  """Photos in a row, each under its map or bare: (title, pixels, map or None)."""
  largest = max(np.abs(m).max() for _, _, m in panels if m is not None)
  figure = Figure(figsize=(2.35 * len(panels), 2.62), dpi=110)
  FigureCanvasAgg(figure)
  axes = figure.subplots(1, len(panels))
  figure.subplots_adjust(0.005, 0.01, 0.995, 0.86, wspace=0.04)
  for axis, (title, pixels, map_) in zip(axes, panels, strict=True):
    if map_ is not None:
      large = np.kron(map_, np.ones([SIDE // n for n in map_.shape]))
      large = np.asarray(Image.fromarray(large).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
      limit = largest if shared else np.abs(map_).max()
      pixels = report.overlay(report.mute(pixels), large, limit=float(limit) or 1.0)
    axis.imshow(pixels)
    axis.set_title(title, fontsize=8.5, loc="left")
    axis.axis("off")
  figure.savefig(FOLDER / name, pil_kwargs={"quality": 86})
  print("docs/" + name)


def grid(e: sane_jax.Explanation) -> np.ndarray:
  """The map's cells [rows columns]."""
  return e.saliency.cells.reshape(e.grid)


def cat_pair() -> tuple[np.ndarray, np.ndarray]:
  """A cat, and a mirrored, closer cut of the same photo."""
  _, (_, far, _, near) = photos.sample_pairs()
  return far, near


def draw_contrast(model: sane_jax.Model) -> None:
  """Why the cat rather than the cup."""
  cup, cat = data.coffee(), data.chelsea()
  query = collage(cat, cup)
  # At 224 pixels: each half of the collage is then what the others see of a whole photo.
  sharp = sane_jax.Explainer(sane_jax.load_model("efficientnet_lite0"), num_masks=512)
  effects = sharp.effects(query)
  maps = [grid(sharp.explain(effects, r)) for r in (square(cat), square(cup))]
  contrast = sharp.contrast(effects, square(cat), square(cup))
  for title, map_ in zip(("cat", "cup", "cat - cup"), (*maps, grid(contrast)), strict=True):
    print(f"{title}: left half {map_[:, :4].mean():+.4f}, right half {map_[:, 4:].mean():+.4f}")
  draw(
    "contrast.jpg",
    [
      ("query", query, None),
      ("against the cat", query, maps[0]),
      ("against the cup", query, maps[1]),
      ("the cat rather than the cup", query, grid(contrast)),
    ],
  )


def draw_fills(model: sane_jax.Model) -> None:
  """One pair behind four fills."""
  far, near = cat_pair()
  maps = {
    fill: sane_jax.Explainer(model, num_masks=512, fill=fill).explain(far, near) for fill in FILLS
  }
  panels = [("query", square(far), None)]
  for fill, e in maps.items():
    agreement = spearmanr(e.saliency.cells, maps["mean"].saliency.cells)[0]
    print(
      f"{fill}: rank correlation with mean {agreement:.2f}, largest {np.abs(grid(e)).max():.3f}"
    )
    panels.append((f"{fill}: {agreement:.2f}", square(far), grid(e)))
  draw("fills.jpg", panels, shared=False)


def draw_redundancy(model: sane_jax.Model) -> None:
  """What another region can stand in for."""
  cup, cat = data.coffee(), data.chelsea()
  panels = []
  for name, query in (("one cat", collage(cat, cup)), ("two cats", collage(cat, cat))):
    e = sane_jax.Explainer(model, design="sliding_window", fill="grey").explain(query, square(cat))
    map_ = e.saliency.cells.reshape(e.grid)
    left, right = map_[:, :12].max(), map_[:, 13:].max()
    print(f"{name}: score {e.score:.3f}, largest effect left {left:.3f}, right {right:.3f}")
    panels += [(f"{name}, score {e.score:.2f}", query, None)]
    pixels = e.saliency_map  # [112 112]
    panels += [(f"hiding: left {left:.2f}, right {right:.2f}", query, pixels)]
  draw("redundancy.jpg", panels)


def draw_random_weights(model: sane_jax.Model) -> None:
  """A network whose weights are in random places."""
  far, near = cat_pair()
  rng = np.random.default_rng(0)
  shuffled = jax.tree.map(lambda x: rng.permutation(np.ravel(x)).reshape(np.shape(x)), model.params)
  broken = dataclasses.replace(model, params=shuffled, name="weights in random places")
  panels = [("query", square(far), None)]
  for name, network in (("ImageNet's weights", model), ("in random places", broken)):
    e = sane_jax.Explainer(network, num_masks=512).explain(far, near)
    size, error = np.abs(grid(e)).max(), e.saliency.cell_errors.mean()
    print(f"{name}: score {e.score:.3f}, largest {size:.2g}, standard error {error:.2g}")
    panels.append((f"{name}: ±{size:.1g}", square(far), grid(e)))
  panels.append(
    ("noise", square(far), grid(sane_jax.Explainer(model, design="random").explain(far, near)))
  )
  draw("random_weights.jpg", panels, shared=False)


def draw_both(model: sane_jax.Model) -> None:
  """One region decides, and both images are masked."""
  far, _ = cat_pair()

  def region(images):
    colour = images[:, 28:56, 28:56].mean(axis=(1, 2))
    return np.concatenate([colour, 0.3 * np.ones((len(images), 1))], axis=1)

  looks = sane_jax.from_numpy(region, image_size=112)
  panels = [("query, and what decides", _framed(square(far)), None)]
  for mode in ("fixed", "both"):
    e = sane_jax.Explainer(
      looks,
      mode=mode,
      fill="black",
      num_masks=2048,
      smoothing=0.0,
      num_reference_masks=512,
      grid=(4, 4),
    ).explain(far, far)
    inside = grid(e)[1, 1]
    print(
      f"{mode}: mean effect inside {inside:.4f}, standard error {e.saliency.cell_errors.mean():.4f}"
    )
    panels.append((f"mode={mode}: {inside:.3f} inside", square(far), grid(e)))
  draw("both.jpg", panels)


def main(names: list[str]) -> None:
  model = sane_jax.load_model("efficientnet_lite0", image_size=112)
  for make in (draw_contrast, draw_fills, draw_redundancy, draw_random_weights, draw_both):
    if not names or make.__name__ in names:
      make(model)


def _framed(pixels: np.ndarray) -> np.ndarray:
  """The photo with a frame around what decides: rows and columns 28 to 56 of 112."""
  out, scale = pixels.copy(), SIDE // 112
  rows = columns = slice(28 * scale, 56 * scale)
  inner = out[rows, columns][4:-4, 4:-4].copy()
  out[rows, columns] = (26, 95, 180)
  out[rows, columns][4:-4, 4:-4] = inner
  return out


if __name__ == "__main__":
  main(sys.argv[1:])
