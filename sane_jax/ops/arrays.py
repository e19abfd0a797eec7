"""Arrays of other libraries, and of types that NumPy does not have."""

from typing import Any

import numpy as np


def to_numpy(value: Any) -> np.ndarray:
  """Any array as NumPy's: JAX's, a torch tensor on any device, with or without gradients, lists.

  Floats that NumPy does not know, such as bfloat16, become float32; other types stay.

  Raises:
    Exception: whatever the library raises whose array it is, where it is none after all.
  """
  if hasattr(value, "detach"):  # a tensor that carries gradients is no array to NumPy
    value = value.detach().cpu()
    try:
      return value.numpy()
    except TypeError:  # bfloat16 and narrower
      return value.float().numpy()
  array = np.asarray(value)
  if array.dtype.kind == "V" and array.dtype.names is None:  # how ml_dtypes' floats look
    array = array.astype(np.float32)
  return array
