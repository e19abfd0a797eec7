"""docs/scale.md says what benchmarks/scale.py counts."""

import importlib.util
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]


def load():
  spec = importlib.util.spec_from_file_location("scale", ROOT / "benchmarks/scale.py")
  module = importlib.util.module_from_spec(spec)
  sys.modules["scale"] = module
  spec.loader.exec_module(module)
  return module


def test_the_page_is_what_the_script_writes():
  scale = load()
  page = (ROOT / "docs/scale.md").read_text()
  assert scale.fill(page, scale.tables()) == page, "run python benchmarks/scale.py"


def test_the_counts_by_hand():
  """ResNet-50 at 224 pixels takes 4.1 billion multiplications and additions, two FLOPs each."""
  scale = load()
  assert abs(scale.flops("ResNet-50, 224 px") / 8.2e9 - 1) < 0.08
  assert scale.index_bytes(64, effects=2) == 64 * 64 * 2 + 4 * 64 + 2 * 32 * 64
  assert scale.index_bytes(64, effects=1) == 64 * 64 + 64 * 4 + 4 * 64 + 2 * 32 * 64
  assert scale.scaled(1234567) == "1.23 M"
