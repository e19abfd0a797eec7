"""An ONNX file as an encoder of NumPy images, run by ONNX Runtime."""

import hashlib
import os
from typing import Any

import numpy as np

from sane_jax.models.outputs import ModelError
from sane_jax.runs import files

_FLOATS = {
  "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64,
}  # fmt: skip
_PIXELS = "tensor(uint8)"


class OnnxEncoder:
  """(parameters, images [b h w 3] float32 in [0, 1]) -> outputs of the file, as they are.

  Attributes:
    path: the file; opened again where the encoder was carried to another process.
    sides: (height, width) as the file has them, a name or None where it leaves one open.

  Raises:
    ModelError: see `from_onnx`.
  """

  def __init__(
    self, path: str, statistics: Any, output: str | None, channels_first: bool | None,
    size: tuple[int, int] | None,
  ):  # fmt: skip
    self.path, self.statistics = path, statistics
    self._session, self._digest = _open(path)
    inputs = self._session.get_inputs()
    given = ", ".join(f"{i.name}{i.shape} {i.type}" for i in inputs)
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
      raise ModelError(f"{path!r} takes {given}; one input [b 3 h w] or [b h w 3] is expected")
    self._feed, self._type, shape = inputs[0].name, inputs[0].type, inputs[0].shape
    if self._type not in (*_FLOATS, _PIXELS):
      raise ModelError(
        f"{path!r} takes {given}; images are given as {', '.join(_FLOATS)} or {_PIXELS}: export it"
        " with one of these"
      )
    if self._type == _PIXELS and statistics is not None:
      raise ModelError(
        f"{path!r} takes pixels of 0..255 as they are ({given}), so it normalises by itself: leave"
        " mean and std out"
      )
    self._fixed_batch = shape[0] if isinstance(shape[0], int) else None
    self._wanted = [_output(path, self._session.get_outputs(), output)]
    could = [
      first
      for first in (True, False)
      if channels_first in (None, first) and _may_be_channels(shape[1 if first else 3])
    ]
    could = _by_name(could, shape) or could
    if len(could) > 1:
      could = [first for first in could if self._runs(first, size or (64, 64))]
    if not could:
      raise ModelError(f"{path!r} takes {given}; one input [b 3 h w] or [b h w 3] is expected")
    if len(could) > 1:
      raise ModelError(
        f"{path!r} takes {given}, which does not say where the colours are; give"
        " channels_first=True for [b 3 h w] or channels_first=False for [b h w 3]"
      )
    self.channels_first = could[0]
    self.sides = shape[2:] if self.channels_first else shape[1:3]

  def __call__(self, _: Any, images: np.ndarray) -> Any:
    if self.statistics is not None:
      images = (images - self.statistics[0]) / self.statistics[1]
    if self._type == _PIXELS:
      images = np.round(images * 255).astype(np.uint8)
    else:
      images = images.astype(_FLOATS[self._type], copy=False)
    if self.channels_first:
      images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if self._fixed_batch in (None, len(images)):
      return self._run(images)
    if self._fixed_batch != 1:
      raise ModelError(
        f"{self.path!r} takes batches of {self._fixed_batch} alone; export it with a dynamic batch"
        " axis"
      )
    return np.concatenate([np.asarray(self._run(image[None])) for image in images])

  def _runs(self, channels_first: bool, size: tuple[int, int]) -> bool:
    """Whether the file takes a grey image in that layout; it says nothing else about it."""
    image = np.full((1, 3, *size) if channels_first else (1, *size, 3), 0.5)
    try:
      self._run(image.astype(_FLOATS.get(self._type, np.uint8)))
    except Exception:  # ONNX Runtime's own
      return False
    return True

  def _run(self, images: np.ndarray) -> Any:
    return self._session.run(self._wanted, {self._feed: images})[0]

  def __getstate__(self) -> dict[str, Any]:
    return {k: v for k, v in self.__dict__.items() if k not in ("_session", "_digest")}

  def __setstate__(self, state: dict[str, Any]) -> None:
    session, digest = _open(state["path"])
    self.__dict__.update(state, _session=session, _digest=digest)

  def digest(self) -> str:
    """SHA-256 of the file."""
    return self._digest


def _open(path: str) -> tuple[Any, str]:
  """A session of the file, and the file's SHA-256."""
  import onnxruntime  # an extra

  try:
    local = os.fspath(files.local_copy(path))
  except (OSError, ValueError) as error:
    raise ModelError(f"no ONNX file at {path!r}: {error}") from error
  if not os.path.isfile(local):
    raise ModelError(f"no ONNX file at {path!r}; give the path of a .onnx file")
  try:
    session = onnxruntime.InferenceSession(local, providers=onnxruntime.get_available_providers())
    with open(local, "rb") as file:
      return session, hashlib.file_digest(file, "sha256").hexdigest()
  except Exception as error:
    raise ModelError(f"ONNX Runtime can't load {path!r}: {error}") from error


def _may_be_channels(side: Any) -> bool:
  return side == 3 or not isinstance(side, int)  # a name, or None, where the file leaves it open


def _by_name(could: list[bool], shape: list[Any]) -> list[bool]:
  """Those layouts in which the axis of the colours has 3 elements, or is called channels."""
  axes = {first: shape[1 if first else 3] for first in could}
  return [first for first, side in axes.items() if side == 3] or [
    first
    for first, side in axes.items()
    if "channel" in str(side).lower() or str(side).lower() in ("c", "rgb")
  ]


def _output(path: str, outputs: list[Any], asked: str | None) -> str:
  """Name of the output with the embeddings: the one asked for, or the first that is [b d]."""
  names = [o.name for o in outputs]
  if asked is not None:
    if asked not in names:
      raise ModelError(f"{path!r} has no output {asked!r}; it has {', '.join(names)}")
    return asked
  flat = [o.name for o in outputs if o.shape is not None and len(o.shape) == 2]
  if not flat or names[0] in flat:  # shapes may be left open: the first then shows its own
    return names[0]
  if len(flat) > 1:
    raise ModelError(
      f"{path!r} has several outputs that could be embeddings: give output= one of"
      f" {', '.join(flat)}"
    )
  return flat[0]
