"""The library's arithmetic in a program that has set JAX otherwise; the program's, for its model.

64-bit types, strict promotion of types and refused promotion of ranks are a program's affair: the
same key draws the same masks with each. Its functions are run with what it has set.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

Settings = tuple[bool, str, str]  # jax_enable_x64, and numpy's promotion of types and of ranks
_OURS: Settings = (False, "standard", "allow")
_program = threading.local()


def _now() -> Settings:
  names = "jax_enable_x64", "jax_numpy_dtype_promotion", "jax_numpy_rank_promotion"
  x64, types, ranks = (getattr(jax.config, name) for name in names)
  return x64, types, ranks


@contextlib.contextmanager
def _with(settings: Settings) -> Iterator[None]:
  x64, types, ranks = settings
  with jax.enable_x64(x64), jax.numpy_dtype_promotion(types), jax.numpy_rank_promotion(ranks):
    yield


@contextlib.contextmanager
def ours() -> Iterator[None]:
  """Within, JAX computes as the library is written: a block, or a decorator of a function."""
  found = _now()
  if found == _OURS:
    yield
    return
  before, _program.settings = theirs_are(), found
  try:
    with _with(_OURS):
      yield
  finally:
    _program.settings = before


def theirs_are() -> Settings:
  """What the program around has set."""
  return getattr(_program, "settings", _OURS)


@contextlib.contextmanager
def theirs() -> Iterator[None]:
  """Within `ours`, JAX as the program around has it."""
  settings = theirs_are()
  if settings == _now():
    yield
    return
  with _with(settings):
    yield


def single(outputs: Any) -> Any:
  """Floats of any width as float32; what is none stays."""
  if jnp.issubdtype(outputs.dtype, jnp.floating) and outputs.dtype != jnp.float32:
    return outputs.astype(jnp.float32)
  return outputs
