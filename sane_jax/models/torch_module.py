"""A torch module as an encoder of NumPy images that leaves the module as it was."""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from sane_jax.models import outputs
from sane_jax.models.outputs import ModelError

# One call of a module at a time: another thread's would end its evaluation mode.
_LOCKS: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
_NEW_LOCK = threading.Lock()


@dataclasses.dataclass(eq=False)
class TorchEncoder:
  """(parameters, images [b h w 3] float32 in [0, 1]) -> embeddings [b d] float32.

  The modules are in evaluation mode during the call and, each submodule, in its own mode after it.

  Attributes:
    function: takes [b 3 h w] in the precision and on the device of most parameters.
    modules: what it computes with.
    statistics: what is taken from the channels [3] and what they are divided by then, or None.
    device: of a function without parameters.
    output: which of several outputs, see `outputs.pick`.
    name: for errors.
  """

  function: Callable[..., Any]
  modules: Sequence[Any]
  statistics: tuple[np.ndarray, np.ndarray] | None
  device: Any
  output: str | int | None
  name: str

  def __call__(self, _: Any, images: np.ndarray) -> np.ndarray:
    import torch  # an extra: only users of torch models have it

    with _evaluation(self.modules), torch.no_grad():
      place, dtype = self._takes()
      # NHWC memory seen as NCHW is torch's channels_last, its faster layout: nothing is copied.
      batch = torch.from_numpy(np.require(images, requirements="W")).to(place).permute(0, 3, 1, 2)
      if self.statistics is not None:
        shift, scale = (torch.tensor(s, device=place).view(1, 3, 1, 1) for s in self.statistics)
        batch = (batch - shift) / scale
      found = outputs.pick(
        self.function(batch.to(dtype)), len(images), self.name, output=self.output
      )
      # Here: what a compiled module gave may be overwritten by its next call.
      size = (images.shape[1], images.shape[2])
      return np.array(outputs.embeddings_of(found, len(images), self.name, size))

  def digest(self) -> str:
    """SHA-256 of the parameters and buffers as they are now; '' where none are known."""
    import torch

    total, count = hashlib.sha256(), 0
    for module in self.modules:
      for key, value in module.state_dict().items():
        total.update(key.encode())
        if isinstance(value, torch.Tensor):
          flat = value.detach().cpu().contiguous().flatten()
          value = flat.view(torch.uint8).numpy().tobytes()
        total.update(value if isinstance(value, bytes) else repr(value).encode())
        count += 1
    return total.hexdigest() if count else ""

  def _takes(self) -> tuple[Any, Any]:
    """Device and precision of most numbers in the parameters, or else in the buffers."""
    import torch

    known = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for tensors in (
      [p for module in self.modules for p in module.parameters()],
      [b for module in self.modules for b in module.buffers()],
    ):
      sizes = Counter()
      for tensor in tensors:
        if tensor.dtype in known:
          sizes[tensor.dtype] += tensor.numel()
      if tensors:
        return tensors[0].device, max(sizes, key=lambda d: sizes[d], default=torch.float32)
    return torch.device(self.device or "cpu"), torch.float32

  @property
  def halves(self) -> bool:
    """Whether it computes in 16 bits."""
    return self._takes()[1].itemsize < 4


def make(
  module: Any, *, statistics: Any, device: Any, output: str | int | None, name: str
) -> TorchEncoder:
  """An encoder of a module, a method or function of some, an exported program, or a script.

  Raises:
    ModelError: it can't be called.
  """
  import torch

  if isinstance(module, torch.export.ExportedProgram):
    name, module = name or "ExportedProgram", module.module()
  if not callable(module):
    raise ModelError(
      "from_torch takes a torch module, or a function that gives embeddings by one, such as"
      f" model.encode_image; given {type(module).__name__}"
    )
  modules = _modules_of(module)
  if device is not None:
    for each in modules:
      each.to(device)
  is_function = inspect.isroutine(module)
  name = name or getattr(module if is_function else type(module), "__name__", "torch model")
  return TorchEncoder(module, modules, statistics, device, output, name)


def _modules_of(function: Any) -> list[Any]:
  """The torch modules that a callable computes with, as far as can be seen from outside."""
  import torch

  def of(value: Any, deep: bool) -> Iterator[Any]:
    if isinstance(value, torch.nn.Module):
      yield value
    elif isinstance(value, functools.partial):
      for part in (value.func, *value.args, *value.keywords.values()):
        yield from of(part, deep)
    elif inspect.ismethod(value):
      yield from of(value.__self__, deep)
    elif deep and inspect.isfunction(value):
      seen = inspect.getclosurevars(value)
      for part in (*seen.nonlocals.values(), *seen.globals.values()):
        yield from of(part, False)

  return list(dict.fromkeys(of(function, True)))


def _lock(module: Any) -> Any:
  with _NEW_LOCK:
    return _LOCKS.setdefault(module, threading.RLock())


@contextlib.contextmanager
def _evaluation(modules: Sequence[Any]) -> Iterator[None]:
  """Within, all are in evaluation mode; after it, every submodule is in its own mode again."""
  with contextlib.ExitStack() as stack:
    for module in sorted(modules, key=id):  # in one order: two threads never wait for one another
      stack.enter_context(_lock(module))
    # A frozen script has no mode at all.
    modes = [(m, m.training) for top in modules for m in top.modules() if hasattr(m, "training")]
    wholes = [(top, getattr(top, "training", False)) for top in modules]
    training = any(mode for _, mode in modes)
    try:
      for top in modules if training else ():
        with contextlib.suppress(NotImplementedError):  # an exported program has one mode
          top.eval()
      yield
    finally:
      for top, mode in wholes if training else ():
        if mode:
          with contextlib.suppress(NotImplementedError):
            top.train()
      for module, mode in modes:
        if module.training != mode:
          module.training = mode
