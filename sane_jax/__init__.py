"""sane_jax: why do these two images match?

import sane_jax
model = sane_jax.load_model("efficientnet_lite0")
e = sane_jax.Explainer(model, design="hadamard").explain("a.jpg", "b.jpg")
e.to_html("why.html")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from sane_jax.attributes.trained import load_attributes
  from sane_jax.datasets.images import ImageError
  from sane_jax.maps.comparison import Comparison, compare
  from sane_jax.maps.curves import insertion_deletion
  from sane_jax.maps.explainer import Explainer
  from sane_jax.maps.explanation import Effects, Embedding, Explanation
  from sane_jax.maps.index import ExplanationIndex
  from sane_jax.models.model import (
    Model,
    ModelError,
    from_jax,
    from_numpy,
    from_onnx,
    from_score,
    from_torch,
    load_model,
  )
  from sane_jax.ops.designs import Hadamard, KernelShap, Lime, Random, Rise, SlidingWindow
  from sane_jax.ops.learned_mask import LearnedMask
  from sane_jax.ops.statistics import bootstrap_interval
  from sane_jax.runs.hosts import use_all_cores

__version__ = "0.1.0"

# Imported at their first use: `import sane_jax` costs nothing and changes nothing of the program
# around it.
_HOME = {
  "attributes.trained": ("load_attributes",),
  "datasets.images": ("ImageError",),
  "maps.comparison": ("Comparison", "compare"),
  "maps.curves": ("insertion_deletion",),
  "maps.explainer": ("Explainer",),
  "maps.explanation": ("Effects", "Embedding", "Explanation"),
  "maps.index": ("ExplanationIndex",),
  "models.model": (
    "Model", "ModelError", "from_jax", "from_numpy", "from_onnx", "from_score", "from_torch",
    "load_model",
  ),
  "ops.designs": ("Hadamard", "KernelShap", "Lime", "Random", "Rise", "SlidingWindow"),
  "ops.learned_mask": ("LearnedMask",),
  "ops.statistics": ("bootstrap_interval",),
  "runs.hosts": ("use_all_cores",),
}  # fmt: skip
_MODULES = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
  "Comparison",
  "Effects",
  "Embedding",
  "Explainer",
  "Explanation",
  "ExplanationIndex",
  "Hadamard",
  "ImageError",
  "KernelShap",
  "LearnedMask",
  "Lime",
  "Model",
  "ModelError",
  "Random",
  "Rise",
  "SlidingWindow",
  "bootstrap_interval",
  "compare",
  "from_jax",
  "from_numpy",
  "from_onnx",
  "from_score",
  "from_torch",
  "insertion_deletion",
  "load_attributes",
  "load_model",
  "use_all_cores",
]


def __getattr__(name: str) -> Any:
  if name not in _MODULES:
    raise AttributeError(
      f"module 'sane_jax' has no attribute {name!r}; it has {', '.join(__all__)}"
    )
  value = getattr(importlib.import_module(f"sane_jax.{_MODULES[name]}"), name)
  globals()[name] = value  # found at once from now on
  return value


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
