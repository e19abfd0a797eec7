# %% [markdown]
# # Your own model, step by step
#
# The safest way to trust an explainer is to give it a model whose reason you know. This one looks
# at the mean colour of one region, and at nothing else.

# %%
import matplotlib.pyplot as plt
import numpy as np
from skimage import data

import sane_jax
from sane_jax import report


def colour_of_one_region(images):
  """[b 64 64 3] -> [b 4]: rows 16 to 32, columns 32 to 56."""
  colour = images[:, 16:32, 32:56].mean(axis=(1, 2))
  return np.concatenate([colour, 0.3 * np.ones((len(images), 1))], axis=1)


model = sane_jax.from_numpy(colour_of_one_region, image_size=64)
explainer = sane_jax.Explainer(model, fill="black")
cat = data.chelsea()[:, 25:325]
e = explainer.explain(cat, cat)

# %%
figure, axes = plt.subplots(1, 2, figsize=(6, 3))
photo = e.query.uint8
axes[0].imshow(photo)
axes[0].add_patch(plt.Rectangle((32, 16), 24, 16, fill=False, color="#1a5fb4", linewidth=2))
axes[0].set_title("what the model looks at", fontsize=9)
axes[1].imshow(report.overlay(report.mute(photo), e.saliency_map))
axes[1].set_title("what the map says", fontsize=9)
for axis in axes:
  axis.axis("off")
inside = np.zeros((64, 64), bool)
inside[16:32, 32:56] = True
share = np.clip(e.saliency_map, 0, None)[inside].sum() / np.clip(e.saliency_map, 0, None).sum()
print(f"{share:.0%} of the map's positive mass lies inside")

# %% [markdown]
# What lies outside comes from two things: the smoothing over neighbouring cells, which the
# default has because real maps are noisy, and the draw of masks. Without the first, the second
# falls as masks are added:

# %%
for count in (256, 1024, 4096):
  sharp = sane_jax.Explainer(model, fill="black", smoothing=0.0, num_masks=count).explain(cat, cat)
  outside = np.abs(sharp.saliency_map[~inside]).mean() / sharp.saliency_map[inside].mean()
  print(f"{count:5d} masks: mean effect outside is {outside:.1%} of that inside")

# %% [markdown]
# ## The same model, known by its scores alone
#
# `from_score` sees no embedding. The map is the same.


# %%
def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def score(queries, reference):
  return unit(colour_of_one_region(queries)) @ unit(colour_of_one_region(reference[None]))[0]


black_box = sane_jax.from_score(score, image_size=64)
blind = sane_jax.Explainer(black_box, fill="black").explain(cat, cat)
print(f"largest difference of the maps: {np.abs(blind.saliency_map - e.saliency_map).max():.1e}")

# %% [markdown]
# ## What is refused, and how
#
# A model that gives what is no embedding says so before it costs anything:

# %%
broken = sane_jax.from_numpy(lambda images: images.mean(axis=(1, 2, 3)), image_size=64)
try:
  sane_jax.Explainer(broken).explain(cat, cat)
except sane_jax.ModelError as error:
  print(error)
