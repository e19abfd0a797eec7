"""What the training loops share: checkpoints, metrics on disk, progress, and a tidy end."""

import contextlib
import json
import math
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sane_jax.runs import files, processes
from sane_jax.runs import folder as run_folder
from sane_jax.training import checkpoints as checkpoints_lib


def due(step: int, every: int, last: int) -> bool:
  """Whether something is done after this step: each `every` steps, and at the end whatever."""
  return step == last or (every > 0 and step % every == 0)


# --- state ----------------------------------------------------------------------------------------


def start_state(
  variables: Mapping[str, Any], optimizer: optax.GradientTransformation, metrics: Any
) -> Any:
  """What an update takes and gives, before the first.

  Parameters, batch statistics, the optimiser's state, the metrics since the last line of the log
  (see `metrics.means`), and the first step whose loss was no number.
  """
  variables = dict(variables)
  params = variables.pop("params")
  return {
    "params": params,
    "statistics": variables,
    "optimizer": optimizer.init(params),
    "seen": metrics,
    "first_bad_step": jnp.int32(-1),
  }


def variables_of(state: Any) -> dict[str, Any]:
  """The model's variables in a state."""
  return {"params": state["params"], **state["statistics"]}


def next_state(
  state: Any, grads: Any, statistics: Any, optimizer: optax.GradientTransformation, step: Any,
  **outputs: Any,
) -> Any:  # fmt: skip
  """The state after a step with these gradients, whose `outputs` (`loss` and others) are logged."""
  changes, optimizer_state = optimizer.update(grads, state["optimizer"], state["params"])
  bad = state["first_bad_step"]
  return {
    "params": optax.apply_updates(state["params"], changes),
    "statistics": statistics,
    "optimizer": optimizer_state,
    "seen": state["seen"].merge(type(state["seen"]).single_from_model_output(**outputs)),
    "first_bad_step": jnp.where((bad < 0) & ~jnp.isfinite(outputs["loss"]), step, bad),
  }


def accumulate(
  optimizer: optax.GradientTransformation, batches: int
) -> optax.GradientTransformation:
  """The optimiser fed with the mean gradient of `batches` batches at a time."""
  if batches < 1:
    raise ValueError(f"batches_per_update is 1 or more; given {batches}")
  if batches == 1:
    return optimizer
  return optax.MultiSteps(optimizer, batches).gradient_transformation()


def flip_some(images: Any, key: Any) -> tuple[Any, Any]:
  """Half of the images [b h w 3] mirrored, and which [b]."""
  flipped = jax.random.bernoulli(key, shape=images.shape[:1])
  return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images), flipped


def write_model(path: pathlib.Path, data: bytes) -> None:
  """Writes a model's file, by the first process alone."""
  if jax.process_index() == 0:
    files.write_bytes(path, data)


@contextlib.contextmanager
def termination() -> Iterator[threading.Event]:
  """Sets the event at SIGTERM instead of dying by it, so that the loop can save first."""
  stop = threading.Event()
  if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
    yield stop  # JAX's own watcher of preemption hears the signal
    return
  before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
  try:
    yield stop
  finally:
    signal.signal(signal.SIGTERM, before)


# --- the loop -------------------------------------------------------------------------------------


class Cadence(NamedTuple):
  """How many steps there are, and after how many something is done; 0: at the end alone."""

  num_steps: int
  log: int
  evaluate: int
  save: int


def fit(
  *,
  name: str,
  folder: pathlib.Path,
  state: Any,
  batches: Any,
  update: Callable[..., Any],
  evaluate: Callable[[Any], dict[str, float]],
  export: Callable[[Any, dict[str, Any]], None],
  learning_rate: Callable[[int], Any],
  cadence: Cadence,
  tensorboard: bool = False,
) -> dict[str, Any]:
  """Trains to the end from wherever an earlier call in this folder stopped.

  The same numbers come out as without the stop, bit for bit on a CPU: the state, the position in
  the data and the best so far are in the checkpoint, and randomness comes from the step's number.

  Args:
    name: of the config's section, for messages.
    state: as `start_state` makes it, on its devices.
    batches: iterator of global batches on the devices, with get_state and set_state.
    update: (state, batch, step) -> state; may donate the old one.
    evaluate: variables -> figures on the validation split; the first, higher is better, decides.
    export: (variables, best) writes the model that is best so far.
    learning_rate: of a step, to be logged.

  Returns:
    The best: its step, the figure that decided, and its value.

  Raises:
    ValueError: a loss that is no number (names the step); a checkpoint of another model.
    InterruptedError: SIGTERM came; the state is saved.
  """
  checkpoints = checkpoints_lib.open_checkpoints(folder)
  first, state, meta = checkpoints.restore(state)
  if first:
    batches.set_state(meta["data"])
  best, last = meta.get("best"), cadence.num_steps
  writer = MetricWriter(folder, first_step=first, tensorboard=tensorboard)
  with termination() as stop, run_folder.progress(name, first, last) as bar:
    for step in range(first + 1, last + 1):
      state = update(state, next(batches), np.int32(step))
      bar.update()
      stopping = stop.is_set() or processes.must_stop()
      logs, evaluates, saves = (due(step, every, last) for every in cadence[1:])
      if stopping or logs or evaluates or saves:
        check_finite(state["first_bad_step"], name)
      if logs:
        seen = jax.device_get(state["seen"])
        means = {f"train/{k}": float(v) for k, v in seen.compute().items()}
        writer.write_scalars(step, {**means, "learning_rate": learning_rate(step)})
        bar.set_postfix(loss=means["train/loss"])
        state["seen"] = jax.tree.map(jnp.zeros_like, state["seen"])
      if evaluates:
        variables = variables_of(state)
        figures = evaluate(variables)
        writer.write_scalars(step, {f"valid/{k}": v for k, v in figures.items()})
        figure, value = next(iter(figures.items()))
        if math.isfinite(value) and (best is None or value > best["value"]):
          best = {"step": step, "figure": figure, "value": value}
          export(variables, best)
      if stopping or saves:
        writer.flush()
        checkpoints.save(step, state, {"data": batches.get_state(), "best": best})
      if stopping:
        checkpoints.close()
        raise InterruptedError(f"stopped after step {step}; the same command goes on from there")
  checkpoints.close()
  writer.close()
  if best is None:
    raise ValueError(f"no step gave a validation figure that is a number: look at {folder}")
  return best


# --- metrics and progress -------------------------------------------------------------------------


class MetricWriter:
  """Scalars as JSON lines, and as TensorBoard events where tensorboardX is installed.

  A run that goes on from step s forgets what an interrupted one wrote after s. Only the first
  process writes.
  """

  def __init__(self, folder: pathlib.Path, *, first_step: int, tensorboard: bool = False):
    self._path = folder / "metrics.jsonl" if jax.process_index() == 0 else None
    self._events = None
    if self._path is None:
      return
    kept = [r for r in read_metrics(folder) if r["step"] <= first_step]
    self._lines = files.Lines(self._path, map(json.dumps, kept))
    if tensorboard:
      try:
        import tensorboardX  # an extra
      except ImportError as error:
        raise ValueError(
          "--config.tensorboard=True needs tensorboardX: python -m pip install"
          " 'sane_jax[tensorboard]'"
        ) from error
      self._events = tensorboardX.SummaryWriter(
        str(folder / "tensorboard"), purge_step=first_step + 1
      )

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """One line: the step and its numbers."""
    if self._path is None:
      return
    row = {"step": step, **{name: float(value) for name, value in scalars.items()}}
    self._lines.append(json.dumps(row))
    if self._events is not None:
      for name, value in scalars.items():
        self._events.add_scalar(name, float(value), step)

  def flush(self) -> None:
    """Returns when all lines are where they are kept: a checkpoint goes on after them."""
    if self._path is not None:
      self._lines.flush()

  def close(self) -> None:
    self.flush()
    if self._events is not None:
      self._events.close()


def read_metrics(folder: pathlib.Path) -> list[dict[str, float]]:
  """The lines that a run wrote; a line that a kill cut short is left out."""
  path = folder / "metrics.jsonl"
  rows = []
  for line in files.read_bytes(path).decode().splitlines() if path.exists() else []:
    with contextlib.suppress(ValueError):
      row = json.loads(line)
      if isinstance(row, dict) and "step" in row:
        rows.append(row)
  return rows


def check_finite(first_bad_step: Any, field: str) -> None:
  """Raises ValueError that names the first step whose loss was no number, if there was one."""
  step = int(np.asarray(first_bad_step))
  if step >= 0:
    raise ValueError(
      f"the loss of step {step} is NaN or infinite; nothing after the last checkpoint before it is"
      f" kept. Lower --config.{field}.learning_rate, or look at that batch"
    )
