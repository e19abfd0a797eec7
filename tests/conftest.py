"""Shapes are checked here and nowhere else; small encoders whose answers are known."""

import fcntl
import os
import pathlib
import signal
from collections.abc import Callable

import hypothesis
import jax
import jaxtyping

# A busy machine takes its time; what takes too long is stopped by pytest's own limit.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")
jax.config.update("jax_num_cpu_devices", 2)
# Array shapes and types in ops' annotations are enforced in tests alone.
jaxtyping.install_import_hook(["sane_jax.ops"], "beartype.beartype")

import jax.numpy as jnp  # noqa: E402
import many  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import tiny_run  # noqa: E402

from sane_jax.runs import hosts  # noqa: E402

# A shell's background job ignores Ctrl-C, and so would the commands that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

hosts.cache_compilations()  # the processes that tests start keep theirs there, too

SIZE = 28


# A process may have 65,530 memory maps, and each compiled program holds some.
MOST_MAPS = 45_000


@pytest.fixture(autouse=True, scope="module")
def _drop_compiled_programs_where_they_are_too_many():
  yield
  maps = pathlib.Path("/proc/self/maps")
  if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
    jax.clear_caches()


# Each worker takes a file: the longest first, so that none works alone at the end, and what waits
# for another's run of the pipeline later.
LONGEST = (
  "test_explainer", "test_whole_pipeline", "test_train_jobs", "test_main", "test_remote",
  "test_many_processes", "test_designs", "test_documented_commands", "test_processes",
)  # fmt: skip


def pytest_collection_modifyitems(items):
  place = {name: i for i, name in enumerate(LONGEST)}
  items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


def once(tmp_path_factory, name: str, make: Callable[[pathlib.Path], object]) -> pathlib.Path:
  """A folder that whichever worker asks first has filled by `make`, and the others share.

  SANE_JAX_SHARED_RUNS=FOLDER keeps it there, for test sessions to come.
  """
  base = tmp_path_factory.getbasetemp()
  base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
  base = pathlib.Path(os.environ.get("SANE_JAX_SHARED_RUNS", base))
  base.mkdir(parents=True, exist_ok=True)
  with (base / f"{name}.lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    folder = base / name
    if not (folder / "made").exists():
      folder.mkdir()  # fails where another worker's attempt did
      make(folder)
      (folder / "made").touch()
  return folder


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
  """All jobs of configs/synthetic.py, small, in `runs/synthetic`: one process, one device.

  Tests may add to the folder, and change nothing.
  """
  return once(tmp_path_factory, "whole", lambda folder: many.run(folder, many.SMALL))


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
  """A work folder of `tiny_run` in which both models were trained and the index was built."""
  return once(
    tmp_path_factory, "trained", lambda f: many.finish([tiny_run.start(f, tiny_run.TRAIN)])
  )


@pytest.fixture
def rng():
  return np.random.default_rng(0)


@pytest.fixture
def photo(rng):
  """Smooth random image [28 28 3] float32 in [0, 1]."""
  coarse = rng.uniform(size=(4, 4, 3))
  image = jax.image.resize(jnp.asarray(coarse), (SIZE, SIZE, 3), "linear")
  return np.asarray(image + 0.1 * rng.uniform(size=image.shape), np.float32).clip(0, 1)


@pytest.fixture
def photos(rng):
  return rng.uniform(size=(5, SIZE, SIZE, 3)).astype(np.float32)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
  """With SANE_JAX_MAY_NOT_SKIP a skipped test has failed: its needs were to be there."""
  report = (yield).get_result()
  if os.environ.get("SANE_JAX_MAY_NOT_SKIP") and report.skipped and not hasattr(report, "wasxfail"):
    report.outcome = "failed"


def pytest_runtest_logfinish(nodeid):
  """SANE_JAX_TEST_TIMES=FILE keeps the processor's seconds up to the end of each test."""
  if path := os.environ.get("SANE_JAX_TEST_TIMES"):
    seconds = sum(os.times()[:4])  # of this process, and of those it started and waited for
    with open(f"{path}.{os.getpid()}", "a") as file:
      file.write(f"{seconds:.2f} {nodeid}\n")
