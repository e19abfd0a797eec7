"""A short turn of tests/fuzz.py: damaged and hostile input ends in a sentence, and runs no code."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def test_damaged_and_hostile_input_is_refused():
  """SANE_JAX_FUZZ sets how many inputs there are."""
  inputs = os.environ.get("SANE_JAX_FUZZ", "700")
  done = subprocess.run(
    [sys.executable, str(ROOT / "tests/fuzz.py"), "--inputs", inputs], capture_output=True,
    text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
  )  # fmt: skip
  assert done.returncode == 0, done.stdout + done.stderr
  assert "code was run" not in done.stdout
