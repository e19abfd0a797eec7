"""Checkpoints of a training run: whole or not there, restored onto any number of devices."""

import concurrent.futures
import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import jax
import orbax.checkpoint as ocp
from flax import serialization

from sane_jax.runs import files, processes

_ITEMS = ("state", "meta")
_OBJECT = ".msgpack"  # a checkpoint that is one object


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
  with files.naming_store_failures(f"a checkpoint in {folder}"), files.naming_failures(folder):
    yield
