"""Whether explanations depend on what they claim to explain (Adebayo et al., NeurIPS 2018)."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from sane_jax.ops import statistics


def randomized(
  variables: Any, layers: Sequence[str], *, seed: int = 0
) -> Iterator[tuple[str, Any]]:
  """Variables with more and more layers destroyed: the values of each array in random places.

  That keeps the scale of every layer and nothing else of it.

  Args:
    variables: a tree of dicts by collection ('params', 'batch_stats').
    layers: from the output towards the input, such as 'dense' or 'trunk/layer3': parts of the path
      within a collection, which name all that is below or goes on with an underscore.
    seed: of the permutations.

  Yields:
    The layer that was destroyed last, and the variables.

  Raises:
    ValueError: a name fits no parameter.
  """
  rng = np.random.default_rng(seed)
  for layer in layers:
    found = False

    def destroy(path: Any, array: Any, layer: str = layer) -> Any:
      nonlocal found
      name = "/".join(str(getattr(key, "key", key)) for key in path[1:])
      if name != layer and not name.startswith((f"{layer}/", f"{layer}_")):
        return array
      found = True
      values = np.asarray(array)
      return rng.permutation(values.ravel()).reshape(values.shape)

    variables = jax.tree_util.tree_map_with_path(destroy, variables)
    if not found:
      known = {
        "/".join(str(getattr(key, "key", key)) for key in path[1:3])
        for path, _ in jax.tree_util.tree_leaves_with_path(variables)
      }
      raise ValueError(
        f"the model has no layer {layer!r}; it has {', '.join(sorted(known)[:20])}. Give"
        " --config.evaluation.layers from the output towards the input"
      )
    yield layer, variables


def rank_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Spearman's correlation [p] of maps [p h w] with maps [p h w]; 0 where one is constant."""
  found = [statistics.rank_correlation(x, y) for x, y in zip(a, b, strict=True)]
  return np.nan_to_num(np.array(found))
