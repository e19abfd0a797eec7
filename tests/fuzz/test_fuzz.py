"""Damaged and hostile inputs: read or refused with a message, and nothing is run.

Some 300 by default. SANE_JAX_FUZZ=12000 reads as many; SANE_JAX_FUZZ_SEED chooses others.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

TESTS = pathlib.Path(__file__).parents[1]
COUNT = int(os.environ.get("SANE_JAX_FUZZ", "300"))
SEED = os.environ.get("SANE_JAX_FUZZ_SEED", "0")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures memory by Linux's /proc")
@pytest.mark.timeout(300 + COUNT)
def test_hostile_input_is_refused_with_a_message(tmp_path):
  out = tmp_path / "report.json"
  environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
  done = subprocess.run(
    [sys.executable, "-m", "fuzz.run", f"--count={COUNT}", f"--seed={SEED}", f"--out={out}"],
    cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-3000:]
  report = json.loads(out.read_text())
  assert report.pop("pwned") == []
  assert {name: kind["bad"] for name, kind in report.items() if kind["bad"]} == {}
  assert sum(kind["inputs"] for kind in report.values()) >= 0.98 * COUNT
  assert max(kind["peak_bytes"] for kind in report.values()) < 3 << 30
