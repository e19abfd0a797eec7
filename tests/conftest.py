"""Shapes are checked here and nowhere else; small encoders whose answers are known."""

import os
import signal

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
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from sane_jax.runs import hosts  # noqa: E402

# A shell's background job ignores Ctrl-C, and so would the commands that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

hosts.cache_compilations(os.environ.get("SANE_JAX_TEST_CACHE"))

SIZE = 28


@pytest.fixture(autouse=True, scope="module")
def _drop_compiled_programs():
  """Each holds memory maps, of which a process may have 65,530: hundreds of tests used them up."""
  yield
  jax.clear_caches()


# Two workers take a file each: the longest first, so that none works alone at the end.
LONGEST = (
  "test_documented_commands", "test_explainer", "test_train_jobs", "test_whole_pipeline",
  "test_many_processes", "test_main", "test_processes", "test_designs", "test_remote",
)  # fmt: skip


def pytest_collection_modifyitems(items):
  place = {name: i for i, name in enumerate(LONGEST)}
  items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


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
