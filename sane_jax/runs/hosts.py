"""Sets JAX up on this host, before its back end starts."""

import functools
import glob
import importlib.util
import os
from collections.abc import Mapping

import jax

# A process that sends no sign of life for so many seconds is taken for dead, and the job ends.
# Threads of JAX's own send them: a process that computes or waits for a disk is alive.
HEARTBEAT = 30


def use_all_cores() -> None:
  """Gives the CPU back end one device a core, so that a batch split over them uses every core.

  One jitted program on one CPU device keeps about 1.35 of two cores busy; a batch sharded over
  two devices keeps both. Accelerators are not concerned. Does nothing where the number is set
  already (`JAX_NUM_CPU_DEVICES`, `jax.config`, `XLA_FLAGS`) or the back end has started.
  """
  if jax.config.values["jax_num_cpu_devices"] > 0 or "host_platform_device_count" in os.environ.get(
    "XLA_FLAGS", ""
  ):
    return
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  # Eight are plenty for one chunk; more only make the pieces small.
  try:
    jax.config.update("jax_num_cpu_devices", max(1, min(cores or 1, 8)))
  except RuntimeError:  # JAX is running: its devices are what they are
    return


def cache_compilations(folder: str | os.PathLike[str] | None = None) -> None:
  """Keeps compiled programs on disk, so that a second run starts at once.

  In `folder`, `$JAX_COMPILATION_CACHE_DIR`, or the user's cache folder.
  """
  if jax.config.values["jax_compilation_cache_dir"] is None:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    jax.config.update(
      "jax_compilation_cache_dir", os.fspath(folder or os.path.join(home, "sane_jax", "jax"))
    )
  # Small programs too: there are a hundred of them, and each is read faster than it is compiled.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def join_processes(coordinator: str = "", num_processes: int = 1, process_id: int = 0) -> None:
  """Makes this process one of several that run the same job; nothing for a single one.

  Without arguments they find one another on a TPU slice, under Slurm's srun, and under Open MPI.
  A process that vanishes ends the others after HEARTBEAT seconds.

  Args:
    coordinator: 'host:port' of the first process.
    num_processes: how many there are.
    process_id: which of them this is, from 0.

  Raises:
    ValueError: one of the three is missing or out of range.
  """
  join = functools.partial(
    jax.distributed.initialize,
    heartbeat_timeout_seconds=HEARTBEAT,
  )
  if num_processes == 1 and not coordinator:
    if on_cluster(os.environ):
      join()
  elif not coordinator or num_processes < 2 or not 0 <= process_id < num_processes:
    raise ValueError(
      "several processes are started with --coordinator=HOST:PORT --num_processes=N"
      f" --process_id=0..N-1, N at least 2; given {coordinator!r}, {num_processes}, {process_id}"
    )
  else:
    join(coordinator, num_processes, process_id)


def on_cluster(environment: Mapping[str, str]) -> bool:
  """Whether this is one of several processes that JAX can find by itself.

  Slurm: within a step of several tasks (a batch script's own shell, or an interactive one, is a
  step of one task, whatever the job has). Open MPI: started by mpirun with several. TPU: wherever
  libtpu is installed and chips are there; a single host then is a slice of one process.
  """
  slurm = "SLURM_PROCID" in environment and int(environment.get("SLURM_STEP_NUM_TASKS") or 1) > 1
  mpi = int(environment.get("OMPI_COMM_WORLD_SIZE") or 1) > 1
  return slurm or mpi or _has_tpu()


def _has_tpu() -> bool:
  chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
  return bool(chips) and importlib.util.find_spec("libtpu") is not None


def speaker() -> str:
  """'[2 of 4] ' on one of several processes, nothing on a single one: who says what follows."""
  count = jax.process_count()
  return f"[{jax.process_index() + 1} of {count}] " if count > 1 else ""
