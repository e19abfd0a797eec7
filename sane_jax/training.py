"""What the training loops share: checkpoints, metrics on disk, progress, and a tidy end."""

import concurrent.futures
import contextlib
import hashlib
import json
import math
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import tqdm
from flax import serialization

from sane_jax import checkpoint, effect_index, files, processes
from sane_jax.datasets.collection import Collection

_ITEMS = ("state", "meta")
_OBJECT = ".msgpack"  # a checkpoint that is one object
# Settings that change no result.
_OF_NO_ACCOUNT = ("log_every_steps", "save_every_steps", "save_every_epochs", "folder", "prepared")


def due(step: int, every: int, last: int) -> bool:
  """Whether something is done after this step: each `every` steps, and at the end whatever."""
  return step == last or (every > 0 and step % every == 0)


# --- a run's folder -------------------------------------------------------------------------------


def claim_folder(folder: pathlib.Path, settings: Mapping[str, Any]) -> pathlib.Path:
  """The folder of a run with these settings, new or begun earlier.

  A run that knows nothing of a setting that is off here goes on: it is older than the setting.

  Raises:
    ValueError: it holds a run with other settings; names each, there and here.
    OSError: it can't be written.
  """
  folder = checkpoint.writable_folder(folder)
  path = folder / "settings.json"
  ours = json.loads(json.dumps(settings, default=list))
  if path.exists():
    theirs = read_json(path)
    differing = [
      f"{name} is {theirs.get(name)!r} there and {ours.get(name)!r} here"
      for name in sorted({*ours, *theirs})
      if theirs.get(name, False if ours.get(name) is False else None) != ours.get(name)
    ]
    if differing:
      raise ValueError(
        f"{folder} holds a run with other settings: {'; '.join(differing)}. Go on with those, give"
        f" this run a place of its own with --config.workdir=FOLDER, or remove {folder}"
      )
  elif jax.process_index() == 0:
    files.write_bytes(path, (json.dumps(ours, indent=1) + "\n").encode())
  return folder


def identity(collection: Collection, **sections: Any) -> dict[str, Any]:
  """All that fixes a run's result, one name a setting: the sections of its settings and its data.

  How often something is logged or saved does not count, nor where the data lies.
  """
  settings = {
    f"{section}.{name}".rstrip("."): value
    for section, values in sections.items()
    for name, value in (values.items() if hasattr(values, "items") else [("", values)])
    if name
    not in ("log_every_steps", "save_every_steps", "save_every_epochs", "folder", "prepared")
  }
  return {
    **settings,
    "images": len(collection.ids),
    "groups": len(collection.groups),
    "content": hash_content(collection),
  }


def hash_content(collection: Collection) -> str:
  """Changes with the images' ids, the groups, the titles or the attributes."""
  lists = [[rows.tolist() for rows in part] for part in (collection.groups, collection.attributes)]
  text = repr((collection.ids, collection.titles, lists))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_images(collection: Collection) -> str:
  """Changes with the images' ids and the groups: what maps depend on, whatever is known of them."""
  text = repr((collection.ids, [rows.tolist() for rows in collection.groups]))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_json(path: pathlib.Path) -> Any:
  """A JSON file of ours.

  Raises:
    ValueError: it is damaged; says what to do.
  """
  try:
    return json.loads(files.read_bytes(path))
  except (OSError, ValueError, RecursionError) as error:
    raise ValueError(f"{path} can't be read ({error}); remove its folder and run again") from error


def is_finished(folder: pathlib.Path) -> bool:
  """Whether the job that owns this folder ran to its end."""
  return (folder / "finished.json").exists()


def up_to_date(folder: pathlib.Path, job: str) -> bool:
  """Whether the job that owns this folder ran to its end, and says so; alike on all processes."""
  done = processes.agree(is_finished(folder), f"{job}: begin")
  if done:
    tell(f"{job}: up to date in {folder}")
  return done


def tell(text: str) -> None:
  """Prints a line of a job's result, on the first process alone."""
  if jax.process_index() == 0:
    print(text)


def finish(folder: pathlib.Path, results: Mapping[str, Any]) -> None:
  """Marks a job as run to its end, with what came out of it."""
  if jax.process_index() == 0:
    text = json.dumps(dict(results), indent=1, default=float) + "\n"
    files.write_bytes(folder / "finished.json", text.encode())


def read_finished(folder: pathlib.Path, job: str) -> Any:
  """What a job that ran to its end left in its folder.

  Raises:
    ValueError: it did not; says what to run.
  """
  if not is_finished(folder):
    raise ValueError(f"{folder} is not finished; run --config.job={job} first")
  return read_json(folder / "finished.json")


def hash_finished(folder: pathlib.Path, job: str) -> str:
  """SHA-256 of what a job found, by which a later job knows that its input is still the same.

  How many passes it took is left out: after an interruption they are fewer.

  Raises:
    ValueError: it did not run to its end; says what to run.
  """
  found = {k: v for k, v in read_finished(folder, job).items() if k != "passes_of_this_run"}
  return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def hash_file(path: pathlib.Path) -> str:
  """SHA-256 of a file."""
  with files.local_copy(path).open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


# --- state ----------------------------------------------------------------------------------------


def start_state(
  variables: Mapping[str, Any], optimizer: optax.GradientTransformation, metrics: Any
) -> Any:
  """What an update takes and gives, before the first.

  Parameters, batch statistics, the optimiser's state, the metrics since the last line of the log
  (an empty collection of clu's), and the first step whose loss was no number.
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


# --- checkpoints ----------------------------------------------------------------------------------


def open_checkpoints(folder: pathlib.Path) -> "Checkpoints | ObjectCheckpoints":
  """The checkpoints of a run: orbax's wherever orbax can write."""
  # On the way to the arrays orbax knows disks and gs:// alone.
  whole = files.is_remote(folder) and not str(folder).startswith("gs://")
  return ObjectCheckpoints(folder) if whole else Checkpoints(folder)


class Checkpoints:
  """The last two states of a run, each with the position in its data; whole or not there.

  Restores onto any number of devices and processes: the state is replicated, and the position is
  in batches of the whole run. Damaged ones are not possible by a kill: a step's folder gets its
  name when everything is in it.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder / "checkpoints"
    self._manager = ocp.CheckpointManager(
      files.resolve(self.folder),
      options=ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True),
      item_names=_ITEMS,
    )
    # JAX finds the place where all stop by the numbers that it is asked with: those of
    # `processes.must_stop` alone, not the steps that orbax would ask with while it saves.
    self._manager.reached_preemption = lambda step: False

  def restore(self, state: Any) -> tuple[int, Any, dict[str, Any]]:
    """(step, state, meta) of the last checkpoint, placed as `state` is; (0, state, {}) if none.

    Raises:
      ValueError: the checkpoint is of another model; says what differs.
    """
    step = self._manager.latest_step()
    if step is None:
      return 0, state, {}
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    try:
      out = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()
        ),
      )
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(
        f"the checkpoint of step {step} in {self.folder} is of another model or damaged"
        f" ({str(error)[:300]}); remove {self.folder} to start again"
      ) from error
    return step, out["state"], out["meta"]

  def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
    """Saves in the background; JSON values in `meta`. A step that is there already is kept.

    Raises:
      OSError: this or the last one could not be written; the one before is there.
    """
    if step == self._manager.latest_step():
      return
    with _naming_failures(self.folder):
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(dict(meta))
        ),
      )

  def close(self) -> None:
    """Returns when all is saved.

    Raises:
      OSError: the last one could not be written; the one before is there.
    """
    with _naming_failures(self.folder):
      self._manager.close()


class ObjectCheckpoints:
  """The same in a bucket that orbax has no driver for: a state is one object, whole or not there.

  Restores onto any number of devices and processes. The first process writes.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder / "checkpoints"
    self._pool = concurrent.futures.ThreadPoolExecutor(1)
    self._writing: concurrent.futures.Future[None] | None = None
    self._steps = processes.agree(self._find_steps(), "checkpoints")

  def _find_steps(self) -> list[int]:
    try:
      names = [entry.name for entry in files.scandir(self.folder)]
    except FileNotFoundError:
      return []
    return sorted(int(name[: -len(_OBJECT)]) for name in names if name.endswith(_OBJECT))

  def _path(self, step: int) -> pathlib.Path:
    return self.folder / f"{step:09d}{_OBJECT}"

  def restore(self, state: Any) -> tuple[int, Any, dict[str, Any]]:
    """As `Checkpoints.restore`."""
    if not self._steps:
      return 0, state, {}
    step = self._steps[-1]
    data = files.read_bytes(self._path(step))
    try:
      stored = cast(dict[str, Any], serialization.msgpack_restore(data))
      found = serialization.from_state_dict(state, stored["state"])
      placed = jax.tree.map(_placed_like, state, found)
      return step, placed, json.loads(stored["meta"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise ValueError(
        f"the checkpoint of step {step} in {self.folder} is of another model or damaged"
        f" ({str(error)[:300]}); remove {self.folder} to start again"
      ) from error

  def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
    """As `Checkpoints.save`."""
    if self._steps and step == self._steps[-1]:
      return
    self._wait()
    self._steps.append(step)
    if jax.process_index() == 0:
      host = serialization.to_state_dict(jax.device_get(state))  # now: the loop goes on with it
      self._writing = self._pool.submit(self._write, step, host, json.dumps(dict(meta)))

  def _write(self, step: int, host: Any, meta: str) -> None:
    data = serialization.msgpack_serialize({"state": host, "meta": meta})
    files.write_bytes(self._path(step), data)
    for old in self._steps[:-2]:
      files.remove(self._path(old))
    del self._steps[:-2]

  def _wait(self) -> None:
    if self._writing is not None:
      writing, self._writing = self._writing, None
      try:
        writing.result()
      except OSError:
        self._steps.pop()  # it is not there: it may be saved again
        raise

  def close(self) -> None:
    """As `Checkpoints.close`."""
    try:
      self._wait()
    finally:
      self._pool.shutdown()


def _placed_like(ours: Any, stored: Any) -> jax.Array:
  """What was stored, on the devices of what takes its place.

  Raises:
    ValueError: it has another shape or type.
  """
  if stored.shape != ours.shape or stored.dtype != ours.dtype:
    raise ValueError(
      f"{stored.dtype}{list(stored.shape)} is there, {ours.dtype}{list(ours.shape)} is expected"
    )
  return jax.make_array_from_callback(ours.shape, ours.sharding, lambda index: stored[index])


@contextlib.contextmanager
def _naming_failures(folder: pathlib.Path) -> Iterator[None]:
  """Turns what orbax says of a full disk or a folder it may not write into an OSError of ours."""
  with effect_index.naming_failures(f"a checkpoint in {folder}"), files.naming_failures(folder):
    yield


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
  checkpoints = open_checkpoints(folder)
  first, state, meta = checkpoints.restore(state)
  if first:
    batches.set_state(meta["data"])
  best, last = meta.get("best"), cadence.num_steps
  writer = MetricWriter(folder, first_step=first, tensorboard=tensorboard)
  with termination() as stop, progress(name, first, last) as bar:
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


def progress(name: str, first_step: int, num_steps: int) -> tqdm.tqdm:
  """A bar with rate and time left, on the first process and on a terminal alone."""
  hidden = None if jax.process_index() == 0 else True
  return tqdm.tqdm(
    total=num_steps, initial=first_step, desc=name, unit="step", disable=hidden,
    dynamic_ncols=True,
  )  # fmt: skip


def check_finite(first_bad_step: Any, field: str) -> None:
  """Raises ValueError that names the first step whose loss was no number, if there was one."""
  step = int(np.asarray(first_bad_step))
  if step >= 0:
    raise ValueError(
      f"the loss of step {step} is NaN or infinite; nothing after the last checkpoint before it is"
      f" kept. Lower --config.{field}.learning_rate, or look at that batch"
    )
