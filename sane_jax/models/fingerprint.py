"""What a model does, by which it is known again: its name and its file's name say little.

A retrained model has the same name, function and file as before. What tells it apart are its
parameters, and what it gives for a few test pictures that are always the same. Its embeddings
differ in the last bits between devices, so they are compared within a tolerance, and never hashed.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from sane_jax.models import model as model_lib
from sane_jax.models.model import Model
from sane_jax.ops import numerics, programs
from sane_jax.runs import files

# How far the unit embedding of a test picture may move: by rounding on other devices, and where the
# parameters are known to be the same, by other precisions of products (TF32) as well.
TOLERANCE, SAME_PARAMETERS = 1e-4, 1e-3
NOISE = 3.0  # times the difference of two calls: what a model that is never twice the same may move
_EMPTY = np.zeros((0, 0), np.float32)


class Fingerprint(NamedTuple):
  """What a model does.

  Attributes:
    name: of the model.
    digest: SHA-256 of its parameters or its file; '' where neither is to be had.
    given: [k d] unit embeddings of the k test pictures, [k k] of a model of scores their scores; of
      no size where it gives none.
  """

  name: str
  digest: str
  given: np.ndarray

  @property
  def short(self) -> str:
    """Eight letters, to tell two models of one name apart on a page."""
    text = self.digest or np.round(self.given, 3).tobytes().hex()
    return hashlib.sha256(text.encode()).hexdigest()[:8]

  def to_json(self) -> dict[str, Any]:
    """What `from_json` reads."""
    return {"name": self.name, "digest": self.digest, "given": self.given.tolist()}


def from_json(found: Mapping[str, Any]) -> Fingerprint:
  """What `Fingerprint.to_json` gave."""
  given = np.asarray(found["given"], np.float32)
  return Fingerprint(found["name"], found["digest"], given if given.size else _EMPTY)


# --- making ---------------------------------------------------------------------------------------


def test_pictures(size: tuple[int, int]) -> np.ndarray:
  """The pictures [3 h w 3] float32 in [0, 1]: waves, coarse coloured squares, fine noise."""
  h, w = size
  y, x = np.mgrid[:h, :w].astype(np.float32)
  waves = [np.sin(6.3 * (a * x / w + b * y / h)) for a, b in ((3, 1), (1, 4), (5, 5))]
  rng = np.random.default_rng(0)
  squares = rng.random((5, 5, 3), np.float32)
  squares = squares[np.arange(h)[:, None] * 5 // h, np.arange(w) * 5 // w]
  noise = rng.random((h, w, 3), np.float32)
  return np.stack([0.5 + 0.5 * np.stack(waves, axis=-1), squares, noise]).astype(np.float32)


# Its like in the engine is the same compilation: a single image.
embed_jitted = programs.jit_for_each(lambda embed, params, images: embed(params, images))


def fingerprint(model: Model, params: Any = None) -> Fingerprint:
  """What a model does; three passes, which no explanation counts, and a hash of its parameters.

  Args:
    model: of any kind.
    params: those of a model of JAX, where they are on a device already.
  """
  params = model.params if params is None else params
  own = getattr(model.embed, "digest", None)  # of an encoder that keeps its weights itself
  digest = own() if own is not None else digest_of(params)
  return Fingerprint(model.name, digest, what_it_gives(model, params))


@numerics.ours()
def what_it_gives(model: Model, params: Any = None) -> np.ndarray:
  """`Fingerprint.given`; of no size where the model fails: whoever runs it next hears why."""
  pictures = test_pictures(model.image_size)
  params = model.params if params is None else params
  try:
    if model.embed is None:
      return np.stack([model_lib.call_on_host(model, pictures, p)[:, 0] for p in pictures])
    each = []
    for picture in pictures:
      if model.on_host:
        raw = model_lib.call_on_host(model, picture[None])
      else:
        raw = np.asarray(embed_jitted(model.embed, params, picture[None]), np.float32)
      with np.errstate(all="ignore"):
        each.append((raw / np.linalg.norm(raw, axis=-1, keepdims=True)).ravel())
    return np.stack(each)
  except (ValueError, RuntimeError):
    return _EMPTY


def digest_of(params: Any) -> str:
  """SHA-256 of a pytree's arrays and of where in it they are; '' where there are none."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  total = hashlib.sha256()
  for path, leaf in leaves:
    array = np.ascontiguousarray(np.asarray(leaf))
    total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
    total.update(array.tobytes())
  return total.hexdigest() if leaves else ""


# --- comparing ------------------------------------------------------------------------------------


def distance(one: np.ndarray, other: np.ndarray) -> float:
  """How far the test pictures' embeddings moved, at most; infinite where they don't compare."""
  if one.shape != other.shape:
    return float("inf")
  with np.errstate(all="ignore"):
    moved = np.linalg.norm(one - other, axis=-1)
  alike = np.isnan(one) & np.isnan(other)  # a model that has no direction for a picture
  moved = np.where(alike.any(axis=-1), np.where(alike.all(axis=-1), 0, np.inf), moved)
  return float(np.nan_to_num(moved, nan=np.inf).max(initial=0))


def same(one: Fingerprint, other: Fingerprint) -> bool:
  """Whether two are of one model: the parameters are equal, as far as known, and what it does."""
  if one.digest and other.digest:
    if one.digest != other.digest:
      return False
    return distance(one.given, other.given) <= SAME_PARAMETERS
  return distance(one.given, other.given) <= TOLERANCE


def difference(one: Fingerprint, other: Fingerprint, model: Model) -> str:
  """In what `model`, of the second fingerprint, is not that of the first; '' where it is.

  A model on the host that never gives the same twice may move as far as it does between two calls.
  """
  if same(one, other):
    return ""
  moved = distance(one.given, other.given)
  known = one.digest and other.digest and one.digest != other.digest
  if model.on_host and not known and np.isfinite(moved):
    noise = distance(what_it_gives(model), what_it_gives(model))
    if moved <= NOISE * noise:
      return ""
  if one.name != other.name:
    return f"the one is {one.name}, the other {other.name}"
  how = f"its embedding of a test picture moved by {moved:.2g}"
  if not np.isfinite(moved):
    how = "its embedding of a test picture is another"
  return f"it has the name {other.name} but other weights ({one.short}, {other.short}): {how}"


def recognise(folder: pathlib.Path, found: Fingerprint) -> str:
  """By what results of a model in `folder` are named: the same text for the same model, always.

  The fingerprints of models that were met before are in `folder`/models, a file each.
  """
  known = folder / "models"
  if known.exists():
    for path in sorted(known.glob("*.json")):
      try:
        before = from_json(json.loads(files.read_bytes(path)))
      except (OSError, ValueError, KeyError, TypeError):
        continue  # of a model that is met anew
      if same(before, found):
        return path.stem
  text = json.dumps(found.to_json())
  name = hashlib.sha256(text.encode()).hexdigest()[:32]
  files.write_bytes(known / f"{name}.json", f"{text}\n".encode())
  return name
