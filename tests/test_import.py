"""A program that imports sane_jax keeps its JAX as it was, and waits for nothing else."""

import pathlib
import re
import subprocess
import sys

import pytest

import sane_jax

ROOT = pathlib.Path(__file__).parents[1]


def run(code):
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr
  return done.stdout.strip()


@pytest.mark.parametrize("use", ["", "sane_jax.Explainer", "sane_jax.load_model"])
def test_jax_stays_as_the_program_has_it(use):
  """Its settings, its devices and its caches; the back end is not even started."""
  code = f"""
import os, jax
from jax._src import xla_bridge
before, environment = dict(jax.config.values), dict(os.environ)
import sane_jax
{use}
changed = {{k for k, v in jax.config.values.items() if k in before and before[k] != v}}
print(changed, xla_bridge.backends_are_initialized(), environment == dict(os.environ))
"""
  assert run(code) == "set() False True"


@pytest.mark.parametrize("use", ["", "sane_jax.Explainer"])
def test_what_an_explanation_does_not_need_is_not_imported(use):
  slow = "orbax tensorflow_datasets tensorflow tensorstore clu grain"
  code = f"import sys, sane_jax\n{use}\nprint([n for n in {slow.split()} if n in sys.modules])"
  assert run(code) == "[]"


def test_the_bare_import_does_not_import_jax():
  code = "import sys, sane_jax; print([n for n in ('jax', 'flax') if n in sys.modules])"
  assert run(code) == "[]"


def test_the_page_of_the_python_names_has_all_of_them():
  shown = re.findall(r"^::: sane_jax\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
  assert sorted(shown) == sorted(sane_jax.__all__)
