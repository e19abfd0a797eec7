# %% [markdown]
# # An explained pair
#
# A cat, and a mirrored, closer cut of the same photo. Why does a network find them alike? Each
# cell of this page was run when the page was made.

# %%
from scipy.stats import spearmanr

import sane_jax
from sane_jax.datasets import photos
from sane_jax.ops.insertion_deletion import areas

_, (_, cat, _, mirrored) = photos.sample_pairs()
model = sane_jax.load_model("efficientnet_lite0", image_size=112)
explainer = sane_jax.Explainer(model)
e = explainer.explain(explainer.photo(cat, "cat"), explainer.photo(mirrored, "mirrored"))
e  # noqa: B018 (a notebook shows it)

# %% [markdown]
# The figure shows the query, its map, the reference and its map. Warm regions raise the score,
# cool ones lower it. Its numbers:

# %%
print(f"score {e.score:.3f}, {e.encoder_passes} images went through the network")
cells = e.saliency.cells.reshape(e.grid)
print("effect of each cell on the score, in thousandths:")
print((1000 * cells).round().astype(int))

# %% [markdown]
# How sure is it? The standard error is how far the map would move with other masks. Effects that
# are not several times as large as it are not to be told apart from each other.

# %%
errors = e.saliency.cell_errors
print(f"largest effect {abs(cells).max():.3f}, standard error {errors.mean():.3f}")
clear = (abs(cells.ravel()) > 2 * errors).sum()
print(f"{clear} of {cells.size} cells are more than two standard errors from zero")

# %% [markdown]
# The same seed gives the same map, another one another draw of masks. Four times the masks halve
# the error.

# %%
again = explainer.explain(cat, mirrored)
other = sane_jax.Explainer(model, key=1).explain(cat, mirrored)
more = sane_jax.Explainer(model, num_masks=1024).explain(cat, mirrored)
print("same seed, same map:", (again.saliency_map == e.saliency_map).all())
agreement = spearmanr(cells.ravel(), other.saliency.cells)[0]
print(f"rank correlation with another seed's: {agreement:.2f}")
print(f"standard error with 1,024 masks: {more.saliency.cell_errors.mean():.4f}")

# %% [markdown]
# ## Which region matches which
#
# Nothing told the network of the mirror. The cells that are surest to match, with the cosine of
# what hiding them does; unrelated photos have no match at all:

# %%
for query_cell, reference_cell, cosine in more.matches[:3]:
  (row, column), (i, j) = divmod(query_cell, 8), divmod(reference_cell, 8)
  print(f"row {row + 1}, column {column + 1} matches row {i + 1}, column {j + 1}: {cosine:.2f}")

# %% [markdown]
# ## Is the map any good?
#
# Pixels are deleted in the order of the map, then in a random order; the score should fall faster
# by the map. AUC of the curves × 100.

# %%
noise = sane_jax.Explainer(model, design="random").explain(cat, mirrored)
for name, explained in (("map", more), ("random", noise)):
  curves = sane_jax.insertion_deletion(explainer, [explained])
  print(name, {kind: round(float(area[0]), 1) for kind, area in areas(curves).items()})
