"""Tests of explained pairs on disk."""

import types

import numpy as np
import pytest

from sane_jax.report import AttributeView, PairView, render_page
from sane_jax.report import saved as saved_views
from sane_jax.runs import npz


def make_pair(**changes):
  """A pair with everything on it; each array is another one."""
  rng = np.random.default_rng(0)
  image = rng.integers(0, 255, size=(6, 8, 3), dtype=np.uint8)
  fields = {
    "query_name": "q “é”.png",
    "reference_name": "r.png",
    "query": image,
    "reference": image[::-1].copy(),
    "score": 0.25,
    "saliency_map": rng.normal(size=(6, 8)).astype(np.float32),
    "standard_error": rng.uniform(size=(6, 8)),
    "reference_saliency_map": None,
    "reference_standard_error": None,
    "query_cells": np.arange(48).reshape(6, 8),
    "reference_cells": None,
    "correspondence": None,
    "encoder_passes": 10,
    "seconds": None,
    "metrics": {"insertion AUC": np.float32(0.5)},
    "settings": {"grid": (8, 8)},
    "command": "python",
    "warnings": ("a", "b"),
  }
  return PairView(**{**fields, **changes})


def make_attribute(name, total, seed):
  activation_map = np.random.default_rng(seed).uniform(size=(6, 8)).astype(np.float16)
  terms = types.MappingProxyType({"confidence": np.float32(0.25), "prior": float("nan")})
  return AttributeView(name, total, terms, {"confidence": total, "prior": 0}, activation_map)


def test_a_pair_and_its_attributes_come_back_as_they_were(tmp_path):
  attributes = [make_attribute(f"a{i}", 2.0 - i, i) for i in range(12)]
  pair = make_pair(
    attributes=attributes, attribute_margin=np.float32(1.0), sentence="Why “x”.", kind="tops"
  )
  path = tmp_path / "pair.npz"
  saved_views.save_view(path, pair)
  back = saved_views.load_view(path)
  assert back is not None
  assert len(back.attributes) == 12
  for one, other in zip(attributes, back.attributes, strict=True):
    assert isinstance(other, AttributeView)
    assert (one.name, one.total, one.shares) == (other.name, other.total, other.shares)
    assert repr({k: float(v) for k, v in one.terms.items()}) == repr(other.terms)
    assert other.activation_map.dtype == np.float16
    np.testing.assert_array_equal(one.activation_map, other.activation_map)
  assert back.attribute_margin == 1.0
  assert (back.sentence, back.kind, back.query_name) == ("Why “x”.", "tops", "q “é”.png")
  assert back.metrics == {"insertion AUC": 0.5}
  for name in ("query", "reference", "saliency_map", "standard_error", "query_cells"):
    np.testing.assert_array_equal(getattr(pair, name), getattr(back, name))
    assert getattr(pair, name).dtype == getattr(back, name).dtype
  assert render_page([back], title="") == render_page([pair], title="").replace("(8, 8)", "[8, 8]")


def test_a_pair_without_attributes_comes_back_without(tmp_path):
  path = tmp_path / "pair.npz"
  saved_views.save_view(path, make_pair())
  back = saved_views.load_view(path)
  assert back is not None
  assert not back.attributes
  assert (back.attribute_margin, back.sentence, back.kind) == (None, "", "")


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 half a file"])
def test_what_cannot_be_read_is_no_pair(tmp_path, content):
  path = tmp_path / "pair.npz"
  if content is not None:
    path.write_bytes(content)
  assert saved_views.load_view(path) is None


def test_what_would_be_pickled_is_refused_and_nothing_else_is_stored(tmp_path):
  path = tmp_path / "a.npz"
  with pytest.raises(TypeError, match=r"a\.npz: some would have to be pickled"):
    npz.write_arrays(path, {"x": np.zeros(2), "some": np.array([{}], object)})
  assert not path.exists()
  npz.write_arrays(path, {"x": np.zeros(2)})
  assert npz.read_arrays(path).keys() == {"x"}
