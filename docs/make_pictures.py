"""Makes the README's pictures: python docs/make_pictures.py

Photos are those that scikit-image carries; outfits are drawn.
"""

import pathlib

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle

import sane_jax
from sane_jax import report
from sane_jax.datasets import photos
from sane_jax.datasets.outfits_drawn import garments, release
from sane_jax.datasets.outfits_drawn.composition import STYLES, Outfit

MATCHES = 5
COLORS = ("#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def strongest_matches(e: sane_jax.Explanation) -> list[tuple[int, int]]:
  """Cells that match one another, those that matter most to the score first."""
  pairs = [(i, j) for i, j, _ in e.matches]
  return sorted(pairs, key=lambda pair: -e.saliency.cells[pair[0]])[:MATCHES]


def draw_row(figure: Figure, axes, e: sane_jax.Explanation) -> None:
  """Query, its map, the reference's map; lines join regions that match."""
  left, middle, right = axes
  limit = float(max(np.abs(e.saliency_map).max(), np.abs(e.reference_saliency_map).max()))
  left.imshow(e.query.uint8)
  # Under the colours of the map the photo is nearly grey: a red tank is no evidence.
  middle.imshow(report.overlay(report.mute(e.query.uint8), e.saliency_map, limit=limit))
  muted = report.mute(e.reference.uint8)
  right.imshow(report.overlay(muted, e.reference_saliency_map, limit=limit))
  left.set_title(f"query: {e.query.name}", fontsize=9, loc="left")
  middle.set_title(f"why it matches, score {e.score:.2f}", fontsize=9, loc="left")
  right.set_title(f"reference: {e.reference.name}", fontsize=9, loc="left")
  size = e.query.pixels.shape[0] / e.grid[0]
  for color, (i, j) in zip(COLORS, strongest_matches(e), strict=False):
    ends = []
    for axis, cell in ((middle, i), (right, j)):
      row, column = divmod(cell, e.grid[1])
      corner = (column * size, row * size)
      axis.add_patch(Rectangle(corner, size, size, fill=False, edgecolor=color, linewidth=2))
      ends.append((corner[0] + size / 2, corner[1] + size / 2))
    line = ConnectionPatch(
      ends[0], ends[1], "data", "data", axesA=middle, axesB=right, color=color, linewidth=1.5
    )
    figure.add_artist(line)
  for axis in axes:
    axis.axis("off")


def draw_outfits(seed: int = 5, rows: int = 4, columns: int = 7) -> Figure:
  """Some outfits, each with why it matches, and where that is on its last item."""
  made = release.compose((300, 4, 4), seed)
  picked: list[Outfit] = []
  for kind in ("palette", "pattern", "style", "pattern"):
    picked.append(
      next(
        o
        for o in made.outfits["train"]
        if o.rule.kind == kind
        and len(o.items) == columns - 1
        and o.rule not in [p.rule for p in picked]
      )
    )
  figure = Figure(figsize=(9.6, 1.52 * rows), dpi=110)
  FigureCanvasAgg(figure)
  axes = figure.subplots(rows, columns)
  figure.subplots_adjust(0.01, 0.0, 0.99, 0.95, wspace=0.02, hspace=0.16)
  for line, outfit in zip(axes, picked, strict=True):
    for axis in line:
      axis.axis("off")
    drawn = [garments.draw(made.items[i]) for i in outfit.items]
    for axis, (pixels, _) in zip(line, drawn, strict=False):
      axis.imshow(pixels)
    reason = outfit.rule.attributes[0]
    if outfit.rule.kind == "style":
      reason = next(n for n, v in STYLES.items() if (*v[0], *v[1]) == outfit.rule.attributes)
    line[0].set_title(f"{outfit.rule.kind}: {reason}", fontsize=9, loc="left", pad=2)
    pixels, masks = drawn[-1]
    name = next(n for n in made.items[outfit.items[-1]].attributes if n in outfit.rule.attributes)
    light = 255 - (255 - pixels.astype(float)) * np.where(masks[name], 1.0, 0.15)[..., None]
    line[-1].imshow(light.astype(np.uint8))
    line[-1].set_title(f"where it is {name}", fontsize=9, loc="left", pad=2)
  return figure


def main() -> None:
  model = sane_jax.load_model("efficientnet_lite0")
  explainer = sane_jax.Explainer(model, design="hadamard", num_masks=1024)
  figure = Figure(figsize=(9.6, 6.6), dpi=110)
  FigureCanvasAgg(figure)
  axes = figure.subplots(2, 3)
  figure.subplots_adjust(0.01, 0.01, 0.99, 0.96, wspace=0.04, hspace=0.1)
  for row, (query, a, reference, b) in zip(axes, photos.sample_pairs(), strict=True):
    e = explainer.explain(explainer.photo(a, query), explainer.photo(b, reference))
    draw_row(figure, row, e)
  folder = pathlib.Path(__file__).parent
  figure.savefig(folder / "why.jpg", pil_kwargs={"quality": 88})
  draw_outfits().savefig(folder / "outfits.jpg", pil_kwargs={"quality": 88})


if __name__ == "__main__":
  main()
