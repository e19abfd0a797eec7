"""The harness that kills sees what is torn, lost or different; a few kills, of those it can do.

`python tests/kills.py` does hundreds; tests/test_whole_pipeline.py kills in every run.
"""

import json

import kills
import numpy as np


def test_what_is_torn_is_seen(tmp_path):
  (tmp_path / "a.json").write_text('{"a": 1}')
  np.savez(tmp_path / "b.npz", x=np.arange(5))
  assert not kills.torn(tmp_path)
  (tmp_path / "a.json").write_text('{"a": ')
  (tmp_path / "b.npz").write_bytes((tmp_path / "b.npz").read_bytes()[:60])
  (tmp_path / "c.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
  (tmp_path / ".d.json.x").write_text("{")  # what a kill leaves aside has no name of its own
  assert {line.split(":")[0].rsplit("/")[-1] for line in kills.torn(tmp_path)} == {
    "a.json", "b.npz", "c.safetensors",
  }  # fmt: skip


def test_what_is_lost_is_seen(tmp_path):
  (tmp_path / "similarity").mkdir()
  path = tmp_path / "similarity/finished.json"
  path.write_text("{}")
  before = kills.kept(tmp_path)
  assert kills.kept(tmp_path) == before
  path.write_text('{"a": 1}')
  assert kills.kept(tmp_path) != before


def test_what_a_run_took_is_no_difference():
  one = {"a": [{"seconds": 1.0, "score": 0.5}], "passes_of_this_run": 3}
  two = json.loads(json.dumps(one).replace("1.0", "2.0").replace(": 3", ": 0"))
  assert kills._untimed(one) == kills._untimed(two)
  two["a"][0]["score"] = 0.6
  assert kills._untimed(one) != kills._untimed(two)
