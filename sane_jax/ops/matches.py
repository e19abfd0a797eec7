"""Which entries of a correspondence are matches, and which are what any two images have."""

import numpy as np
from jaxtyping import Float
from scipy import special

# Cosine of two regions' effects from which they match. Those of unrelated photos stay below it,
# those of one thing in two photos lie at 0.6 to 0.9: benchmarks/correspondence_null.py.
LEAST_MATCH = 0.35


def match_threshold(cells_q: int, cells_r: int, d: int) -> float:
  """The cosine from which two regions match rather than happen to be alike.

  `LEAST_MATCH`; more where embeddings have so few axes that the largest of c_q c_r cosines between
  random directions is above it in more than 5 % of pairs. With u of such a cosine in d dimensions,
  u √((d − 1) / (1 − u²)) is Student's t with d − 1 degrees of freedom.
  """
  t = special.stdtrit(max(d - 1, 1), 1 - 0.05 / (cells_q * cells_r))
  return float(max(LEAST_MATCH, t / np.sqrt(max(d - 1, 1) + t**2)))


def mutual_matches(table: Float[np.ndarray, "cq cr"], least: float) -> list[tuple[int, int, float]]:
  """Regions that are each other's best match, surest first: (query's, reference's, cosine).

  In any two images a quarter to a half of the regions are; those with a cosine below `least` are
  left out, and those that are no number.
  """
  table = np.where(np.isfinite(table), table, -np.inf)
  forth, back = table.argmax(axis=1), table.argmax(axis=0)
  found = [(i, int(j), float(table[i, j])) for i, j in enumerate(forth) if back[j] == i]
  return sorted((m for m in found if m[2] >= least), key=lambda m: -m[2])
