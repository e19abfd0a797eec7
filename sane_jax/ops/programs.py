"""Programs compiled for a function that someone brings, and dropped when others have come since."""

import functools
import threading
from collections.abc import Callable, Hashable
from typing import Any

import cachetools
import jax

from sane_jax.ops import numerics

KEPT = 8  # functions: each may hold tens of megabytes of compiled code


class _Theirs:
  """A function of the program around: run with what that has set, and float32 comes out."""

  def __init__(self, function: Callable[..., Any]):
    self.function = function

  def __call__(self, *args: Any) -> Any:
    with numerics.theirs():
      return numerics.single(self.function(*args))


class _Itself:
  """Stands for a function that has no hash."""

  def __init__(self, function: Any):
    self.function = function

  def __hash__(self) -> int:
    return id(self.function)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _Itself) and other.function is self.function


def jit_for_each(work: Callable[..., Any], **options: Any) -> Callable[..., Any]:
  """`jax.jit(work, static_argnums=0, **options)` that forgets.

  The first argument is a function, such as a model's; equal ones share a program. Those of the last
  8 functions are kept, so that a service that makes a function for each request does not grow.
  It is traced with what the program around has set of JAX, and gives float32.
  """
  kept: cachetools.LRUCache[Hashable, Any] = cachetools.LRUCache(KEPT)
  lock = threading.Lock()

  @functools.wraps(work)
  def call(function: Callable[..., Any], *args: Any, **named: Any) -> Any:
    try:
      hash(function)
      key: Hashable = function
    except TypeError:
      key = _Itself(function)
    key = (key, numerics.theirs_are())
    with lock:
      if (program := kept.get(key)) is None:
        program = kept[key] = jax.jit(functools.partial(work, _Theirs(function)), **options)
    return program(*args, **named)

  return call
