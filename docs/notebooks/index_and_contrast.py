# %% [markdown]
# # An index and a contrast
#
# A collection is measured once. After that any two of its images are explained by a product of
# small matrices; the network does not run. Here the collection is seven cuts of photos that
# scikit-image carries.

# %%
import dataclasses
import tempfile

import matplotlib.pyplot as plt
import numpy as np
from skimage import data

import sane_jax
from sane_jax import report

right, left, _ = data.stereo_motorcycle()
cat = data.chelsea()
images = {
  "motorcycle, right": right,
  "motorcycle, left": left,
  "cat": cat[:, 25:365],
  "cat, mirrored": cat[30:290, 80:450][:, ::-1],
  "coffee": data.coffee(),
  "rocket": data.rocket(),
  "cat and coffee": np.concatenate([cat[:, 130:280], data.coffee()[50:350, 250:400]], axis=1),
}
model = sane_jax.load_model("efficientnet_lite0", image_size=112)
explainer = sane_jax.Explainer(dataclasses.replace(model, fit="pad"))
folder = tempfile.mkdtemp()
index = sane_jax.ExplanationIndex.build(folder, explainer, images)
print(len(index), "images,", explainer.encoder_passes, "passes, once")

# %%
for name in ("cat", "motorcycle, right"):
  nearest = index.nearest(name, 2)
  scores = index.scores(name, nearest)
  print(name, "->", *(f"{other} ({s:.2f})" for other, s in zip(nearest, scores, strict=True)))

# %% [markdown]
# ## One query, all its matches at once
#
# Maps of one image against all others: one product.

# %%
query = "cat and coffee"
others = [name for name in index.ids if name != query]
before = explainer.encoder_passes
maps = index.maps(query, others)
print(maps.shape, "maps for", explainer.encoder_passes - before, "passes")


def show(maps, titles):
  """The query under each map."""
  photo = report.mute(explainer.photo(images[query]).uint8)
  figure, axes = plt.subplots(1, len(maps), figsize=(2.4 * len(maps), 2.6))
  for axis, cells, title in zip(axes, maps, titles, strict=True):
    pixels = np.kron(cells, np.ones((14, 14)))
    axis.imshow(report.overlay(photo, pixels, limit=np.abs(maps).max()))
    axis.set_title(title, fontsize=9)
    axis.axis("off")
  figure.tight_layout()


show(
  maps[[others.index(n) for n in ("cat", "cat, mirrored", "coffee", "rocket")]],
  ["against the cat", "the mirrored cat", "the coffee", "the rocket"],
)

# %% [markdown]
# Against the cat the half with the cat raises the score; against the coffee the other half.
#
# ## Why this one rather than that one
#
# A contrast is the map of the difference of two scores: what speaks for the one *and against the
# other*.

# %%
contrast = index.contrast(query, "cat", "coffee")
show(np.stack([contrast, -contrast]), ["rather the cat than the coffee", "rather the coffee"])
scores = index.scores(query, ["cat", "coffee"])
print(f"score with the cat {scores[0]:.2f}, with the coffee {scores[1]:.2f}")
left, right = contrast[:, :4].mean(), contrast[:, 4:].mean()
print(f"mean effect on the difference: left half {left:+.4f}, right half {right:+.4f}")

# %% [markdown]
# New images are appended to the same folder; those that are there cost nothing:

# %%
images["moon"] = data.moon()
before = explainer.encoder_passes
index = sane_jax.ExplanationIndex.build(folder, explainer, images)
print(len(index), "images,", explainer.encoder_passes - before, "further passes")
