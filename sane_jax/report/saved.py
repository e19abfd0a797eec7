"""Explained pairs and comparisons on disk: saved once, shown again without measuring."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from sane_jax.report.comparison import ComparisonView, RegionMatch, render_comparisons
from sane_jax.report.page import AttributeView, PairView, check_pair
from sane_jax.runs import npz

_ACTIVATION_MAP = "_activation_map_"


def _plain(value: Any) -> Any:
  """What JSON can hold, of numpy's numbers, mappings and sequences."""
  if isinstance(value, np.generic):
    return value.item()
  return dict(value) if isinstance(value, Mapping) else list(value)


def _write(path: pathlib.Path, fields: Mapping[str, Any]) -> None:
  """Arrays as they are, everything else as text."""
  arrays = {k: v for k, v in fields.items() if isinstance(v, np.ndarray)}
  text = json.dumps({k: v for k, v in fields.items() if k not in arrays}, default=_plain)
  npz.write_arrays(path, {**arrays, "_text": np.frombuffer(text.encode(), np.uint8)})


def _read(path: pathlib.Path) -> dict[str, Any]:
  """What `_write` wrote; an exception of some kind where there is none."""
  arrays = npz.read_arrays(path) or {}
  return {**json.loads(arrays.pop("_text").tobytes()), **arrays}


def save_view(path: pathlib.Path, view: PairView) -> None:
  """Saves an explained pair."""
  attributes = [a._replace(activation_map=None)._asdict() for a in view.attributes]
  maps = {
    f"{_ACTIVATION_MAP}{number}": np.asarray(attribute.activation_map)
    for number, attribute in enumerate(view.attributes)
  }
  _write(path, {**view._asdict(), "attributes": attributes, **maps})


def load_view(path: pathlib.Path) -> PairView | None:
  """A pair that was explained before; None where there is none, or none that can be shown."""
  try:
    fields = _read(path)
    fields["attributes"] = [
      AttributeView(**{**values, "activation_map": fields.pop(f"{_ACTIVATION_MAP}{number}")})
      for number, values in enumerate(fields.get("attributes", ()))
    ]
    view = PairView(**fields)
    check_pair(view)
    return view
  except Exception:
    return None


def save_comparison(path: pathlib.Path, view: ComparisonView) -> None:
  """Saves a comparison of two models on a pair."""
  _write(path, view._asdict())


def load_comparison(path: pathlib.Path) -> ComparisonView | None:
  """A comparison made before; None where there is none, or none that can be shown."""
  try:
    fields = _read(path)
    view = ComparisonView(**{**fields, "matches": [RegionMatch(*m) for m in fields["matches"]]})
    render_comparisons([view], title="")  # whatever is wrong with it shows here
    return view
  except Exception:
    return None
