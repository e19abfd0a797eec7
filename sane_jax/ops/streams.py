"""The NumPy random streams of a run by name: what is drawn with one seed, and by which number.

A number is part of every result that was drawn by it, so none may change. Numbers of one group
below are different streams; these pairs coincide, as they always have:

- `rng(seed)` is `rng(seed, 0)`: zeros at the end count for nothing. So `STUDY_ITEMS` is what
  functions draw that take a bare seed, and the exchange `rng(seed, STUDY_EXCHANGES, 0, 0)` is
  `PAIRS`.
- The matches of row k of a collection are drawn by `rng(seed, k)`: for rows 1 to 4 those are
  `PAIRS` to `EXPLAINED`. The synthetic outfits of split k, too, are drawn by `rng(seed, k)`.
- The groups start at the same numbers: with one seed `STUDY_EXPORT` is `RANDOM_ATTRIBUTES`.
"""

import numpy as np

# Of a data set.
PAIRS = 1  # that match, and that do not
RANDOM_ATTRIBUTES = 2  # evaluate's ways to rank that draw an attribute
SALIENCY_PAIRS = 3  # pairs on which evaluate compares saliency maps
EXPLAINED = 4  # pairs that explain_matches shows

# Of a simulated study.
STUDY_ITEMS = 0
STUDY_EXCHANGES = 1  # followed by half and number
STUDY_EXPORT = 2  # which items people are asked
STUDY_NAMES = 3  # names, letters and orders of the export

# Of a study's server, whose seed is the fingerprint of the export.
SERVER_ITEMS = 0
SERVER_GROUPS = 1  # followed by the block
SERVER_ORDER = 2  # followed by the participant
SERVER_CHECKS = 3


# Of synthetic outfits.
OUTFIT_TYPESPACES = 7
OUTFIT_TABLES = 99


def rng(seed: int | np.integer, *stream: int | np.integer) -> np.random.Generator:
  """The generator of a stream: `numpy.random.default_rng((seed, *stream))`."""
  return np.random.default_rng([int(seed), *map(int, stream)])
