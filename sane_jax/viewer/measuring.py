"""Measuring while the server runs: uploads, and other designs and fills.

One thread owns the model: images are measured one by one, each reports its place in the queue, and
any of them can be cancelled. Results are cached in memory (`collection.Cache`).
"""

import collections
import dataclasses
import logging
import queue
import secrets
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sane_jax.maps import engine as engine_lib
from sane_jax.maps import explainer as explainer_lib
from sane_jax.maps import generators, index_build
from sane_jax.maps import index as index_lib
from sane_jax.maps.explanation import Photo
from sane_jax.models.model import Model
from sane_jax.ops import effects
from sane_jax.viewer.collection import Collection, Measured, View
from sane_jax.web.guard import Refusal

FILLS = ("mean", "blur", "mean+blur", "black", "grey", "white")
DESIGNS = ("hadamard", "rise", "kernel_shap", "sliding_window")
WAITING = 16  # images, at most
_REMEMBERED = 256  # tasks that ended
_LOG = logging.getLogger("sane_jax.web")

_ENDED = ("done", "failed", "cancelled")


class Cancelled(Exception):
  """A task that is no longer wanted."""


@dataclasses.dataclass
class Task:
  """An image to measure, and how far that is.

  Attributes:
    name: unguessable, by which its state is asked for.
    image: the image's key.
    view: design and fill.
    state: 'waiting', 'measuring', 'done', 'failed' or 'cancelled'.
    done, total: encoder passes so far, and in all.
    error: why it failed.
  """

  name: str
  image: str
  view: View
  state: str = "waiting"
  done: int = 0
  total: int = 0
  error: str = ""
  cancelled: bool = False


class Status(NamedTuple):
  """A task as clients see it; `place` is 0 unless it waits: 1 is next."""

  task: str
  image: str
  view: str
  state: str
  place: int
  done: int
  total: int
  error: str


class Measuring:
  """The model and the thread that has it.

  Args:
    model: what made the indexes of the collection.
    collection: what is served.
    designs, fills: what is offered beside the indexes'.
    chunk_size: of the explainer.

  Attributes:
    views: by key, those of the collection and those that are measured on demand.

  Raises:
    ValueError: an index is of another model, or of other weights (see `ExplanationIndex`).
  """

  def __init__(
    self, model: Model, collection: Collection, *, designs: tuple[str, ...] = DESIGNS,
    fills: tuple[str, ...] = FILLS, chunk_size: Any = None,
  ):  # fmt: skip
    self._model, self._collection, self._chunk = model, collection, chunk_size
    self._explainers: dict[str, explainer_lib.Explainer] = {}
    self.views: dict[str, View] = dict(collection.views)
    first = collection.first
    for view in collection.views.values():
      assert view.stored is not None
      index_lib.check_same(view.stored, self._explainer(view))
    for design in designs:
      made = generators.make_design(design)
      for fill in fills:
        key = f"{design}~{fill}"
        passes = int(made.num_masks) + 1
        live = View(key, design, fill, None, ("fixed",), passes, {"key": first.settings["key"]})
        self.views.setdefault(key, live)
    self._tasks: collections.OrderedDict[str, Task] = collections.OrderedDict()
    self._lock = threading.Lock()
    self._queue: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
    self._thread: threading.Thread | None = None

  # --- what is asked ------------------------------------------------------------------------------

  def submit(self, image: str, view: View) -> Status:
    """Asks for an image to be measured; it may be under way or done already.

    Raises:
      Refusal: 503, too many wait.
    """
    with self._lock:
      for task in reversed(self._tasks.values()):
        if (task.image, task.view.key) == (image, view.key) and task.state not in _ENDED:
          return self._status(task)
      task = Task(secrets.token_urlsafe(18), image, view)
      task.total = self.passes(view)
      if self._collection.measured(image, view) is not None:
        task.state, task.done = "done", task.total
      else:
        waiting = sum(other.state == "waiting" for other in self._tasks.values())
        if waiting >= WAITING:
          raise Refusal(
            503, f"{waiting} images wait to be measured, and no more can; try again in a minute.",
            {"retry-after": "60"},
          )  # fmt: skip
        self._queue.put(task)
        if self._thread is None or not self._thread.is_alive():
          self._thread = threading.Thread(target=self._work, daemon=True, name="measuring")
          self._thread.start()
      self._tasks[task.name] = task
      ended = [name for name, other in self._tasks.items() if other.state in _ENDED]
      for name in ended[: max(0, len(ended) - _REMEMBERED)]:
        del self._tasks[name]
      return self._status(task)

  def status(self, name: str) -> Status:
    """How far a task is.

    Raises:
      Refusal: 404, there is none.
    """
    with self._lock:
      return self._status(self._find(name))

  def cancel(self, name: str) -> Status:
    """Gives a task up: one that waits never begins, one that is measured stops within a second."""
    with self._lock:
      task = self._find(name)
      if task.state not in _ENDED:
        task.cancelled = True
        if task.state == "waiting":
          task.state = "cancelled"
      return self._status(task)

  def busy(self) -> int:
    """How many images wait or are measured."""
    with self._lock:
      return sum(task.state not in _ENDED for task in self._tasks.values())

  def passes(self, view: View) -> int:
    """Encoder passes that an image takes in a view."""
    return self._explainer(view).design.num_masks + 1 + self._reference_passes(view)

  def _reference_passes(self, view: View) -> int:
    """Of its masked versions as a reference, and their whole, where a view has mode 'both'."""
    if "both" not in view.modes:
      return 0
    return self._explainer(view).design.reference_masks()[2] + 1

  def close(self) -> None:
    """Ends the thread; what is measured is given up."""
    with self._lock:
      for task in self._tasks.values():
        task.cancelled = True
    self._queue.put(None)
    if self._thread is not None:
      self._thread.join(timeout=10)

  def _find(self, name: str) -> Task:
    task = self._tasks.get(name)
    if task is None:
      raise Refusal(404, "There is no such task, or it ended long ago.")
    return task

  def _status(self, task: Task) -> Status:
    place = 0
    if task.state == "waiting":
      waiting = [t.name for t in self._tasks.values() if t.state == "waiting"]
      place = waiting.index(task.name) + 1 if task.name in waiting else len(waiting) + 1
    return Status(
      task.name, task.image, task.view.key, task.state, place, task.done, task.total, task.error
    )

  # --- the thread ---------------------------------------------------------------------------------

  def _work(self) -> None:
    while (task := self._queue.get()) is not None:
      with self._lock:
        if task.cancelled:
          task.state = "cancelled"
          continue
        task.state = "measuring"
      state, error = "done", ""
      try:
        self._measure(task)
      except Cancelled:
        state = "cancelled"
      except Refusal as refusal:
        state, error = "failed", refusal.message
      except Exception as problem:  # it costs this image alone
        known = isinstance(problem, ValueError | OSError)
        state = "failed"
        error = str(problem) if known else "Something went wrong here; it is in the log."
        _LOG.error("%s could not be measured", task.image[:8], exc_info=problem)
      with self._lock:
        task.state, task.error = state, error

  def _measure(self, task: Task) -> None:
    state = self._collection.state(task.image, task.view.stored)
    pixels = self._collection.pixels(task.image)
    if self._collection.state(task.image, task.view.stored) != state:
      raise Refusal(409, "That photo changes while it is read; try again.")
    photo = Photo("", np.asarray(pixels, np.float32) / (255 if pixels.dtype == np.uint8 else 1))
    explainer, view = self._explainer(task.view), task.view
    masks = explainer.design.num_masks

    def show(done: int, count: int) -> None:
      task.done = min(done, count) if count == masks else masks + min(done, count)
      if task.cancelled:
        raise Cancelled

    before, began, masked = engine_lib.spent(explainer.engine), time.monotonic(), None
    with explainer.progress(show):
      measured = explainer.effects(photo)
      if task.cancelled:
        raise Cancelled
      if "both" in view.modes:
        masked = explainer.masked_embeddings(photo).mean(axis=0)
    blocks = effects.num_blocks(explainer.design) - (explainer.design.num_fixed > 0)
    factor = index_build.error_factor(measured, index_build.SPREAD) if blocks > 1 else None
    found = Measured(
      np.asarray(measured.matrix), measured.whole, masked, factor, explainer.design.grid,
      engine_lib.spent(explainer.engine) - before,
    )  # fmt: skip
    self._collection.keep(task.image, view, state, found)
    task.done = task.total
    _LOG.info(
      "measured %s in %.1f s with %d passes", view.key, time.monotonic() - began, found.passes
    )

  def _explainer(self, view: View) -> explainer_lib.Explainer:
    if view.key not in self._explainers:
      self._explainers[view.key] = explainer_of(self._model, view, self._chunk)
    return self._explainers[view.key]


def explainer_of(model: Model, view: View, chunk_size: Any = None) -> explainer_lib.Explainer:
  """What measures images as a view shows them: the same masks, by the same key.

  Raises:
    ValueError: the view's fill is an image, of which an index keeps the hash alone.
  """
  settings: Mapping[str, Any] = view.settings
  cls = generators.DESIGNS.get(view.design)
  if cls is None or view.fill.startswith("image with SHA"):
    raise ValueError(
      f"the index has the design {view.design} and the fill {view.fill}: photos can't be measured"
      " like that; serve it with --config.serve.uploads=False"
    )
  fields = {f.name: settings[f.name] for f in dataclasses.fields(cls) if f.name in settings}
  fill = settings.get("fill", view.fill)
  key = jax.random.wrap_key_data(jnp.asarray(settings["key"], jnp.uint32))
  mode = "both" if "both" in view.modes else "fixed"
  return explainer_lib.Explainer(
    model, design=generators.make_design(view.design, **fields), fill=fill, key=key, mode=mode,
    chunk_size=chunk_size,
  )  # fmt: skip
