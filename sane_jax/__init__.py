"""sane_jax: why do these two images match?

import sane_jax
model = sane_jax.load_model("efficientnet_lite0")
e = sane_jax.Explainer(model, design="hadamard").explain("a.jpg", "b.jpg")
e.to_html("why.html")
"""

from sane_jax.runs import hosts as _hosts

_hosts.use_all_cores()  # before anything starts JAX's back end

from sane_jax.attributes.trained import load_attributes  # noqa: E402
from sane_jax.datasets.images import ImageError  # noqa: E402
from sane_jax.maps.comparison import (
  Comparison,
  compare,  # noqa: E402
)
from sane_jax.maps.curves import insertion_deletion  # noqa: E402
from sane_jax.maps.explainer import Explainer  # noqa: E402
from sane_jax.maps.explanation import (
  Effects,
  Embedding,
  Explanation,  # noqa: E402
)
from sane_jax.maps.index import ExplanationIndex  # noqa: E402
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
from sane_jax.ops.insertion_deletion import bootstrap_interval  # noqa: E402
from sane_jax.ops.learned_mask import LearnedMask  # noqa: E402

__version__ = "0.1.0"

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
]
