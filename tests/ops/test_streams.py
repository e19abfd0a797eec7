"""Named streams are NumPy's of the same numbers, and coincide where the module says so."""

import numpy as np

from sane_jax.ops import streams


def draws(rng):
  return rng.integers(1 << 60, size=4).tolist()


def test_a_stream_is_numpy_s():
  numbers = (streams.STUDY_EXCHANGES, 1, np.int64(3))
  assert draws(streams.rng(5, *numbers)) == draws(np.random.default_rng((5, 1, 1, 3)))
  large = int("f" * 40, 16)  # a fingerprint
  assert draws(streams.rng(large, 2)) == draws(np.random.default_rng((large, 2)))


def test_streams_of_one_group_differ_and_the_named_ones_coincide():
  data_set = (streams.PAIRS, streams.RANDOM_ATTRIBUTES, streams.SALIENCY_PAIRS, streams.EXPLAINED)
  assert data_set == (1, 2, 3, 4), "a number is part of every result"
  first = [draws(streams.rng(7, number)) for number in (streams.STUDY_ITEMS, *data_set)]
  assert len(set(map(tuple, first))) == 5
  assert first[0] == draws(streams.rng(7))
  assert first[1] == draws(streams.rng(7, streams.STUDY_EXCHANGES, 0, 0))
