"""Explained pairs on disk: saved once, shown again without measuring."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from sane_jax.report.page import AttributeView, PairView, check_pair
from sane_jax.runs import npz

_ACTIVATION_MAP = "_activation_map_"


def _plain(value: Any) -> Any:
  """What JSON can hold, of numpy's numbers, mappings and sequences."""
  if isinstance(value, np.generic):
    return value.item()
  return dict(value) if isinstance(value, Mapping) else list(value)


def save_view(path: pathlib.Path, view: PairView) -> None:
  """Saves an explained pair: its arrays as they are, everything else as text."""
  fields = view._asdict()
  arrays = {k: v for k, v in fields.items() if isinstance(v, np.ndarray)}
  rest = {k: v for k, v in fields.items() if k not in arrays}
  rest["attributes"] = []
  for number, attribute in enumerate(view.attributes):
    arrays[f"{_ACTIVATION_MAP}{number}"] = np.asarray(attribute.activation_map)
    rest["attributes"].append(attribute._replace(activation_map=None)._asdict())
  text = json.dumps(rest, default=_plain).encode()
  npz.write_arrays(path, {**arrays, "_text": np.frombuffer(text, np.uint8)})


def load_view(path: pathlib.Path) -> PairView | None:
  """A pair that was explained before; None where there is none, or none that can be shown."""
  arrays = npz.read_arrays(path)
  if arrays is None or "_text" not in arrays:
    return None
  try:
    fields: dict[str, Any] = json.loads(arrays.pop("_text").tobytes())
    fields["attributes"] = [
      AttributeView(**{**values, "activation_map": arrays.pop(f"{_ACTIVATION_MAP}{number}")})
      for number, values in enumerate(fields.get("attributes", ()))
    ]
    fields.update(arrays)
    view = PairView(**fields)
    check_pair(view)
    return view
  except Exception:
    return None
