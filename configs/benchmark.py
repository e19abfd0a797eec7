"""How fast masked images are scored, against the bare jitted encoder at the same batch size.

  python -m sane_jax.main --config=configs/benchmark.py

Writes WORKDIR/benchmark/benchmark.jsonl and benchmark.md, and prints the table. Cases are timed in
turn, round after round; ratios are taken within a round. About two minutes on two CPU cores.
Figures: docs/benchmarks.md.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.job = "benchmark"  # explain compare_generators benchmark
  config.workdir = "runs/benchmark"  # where results go

  config.model = "efficientnet_lite0"  # a name, or module:function
  config.image_size = 112  # side in pixels
  config.chunk_sizes = (16, 64)  # masked images at a time; on a GPU try (256, 1024)
  # What is timed against the bare encoder: names or name:field=value,...
  config.generators = ("hadamard:num_masks=512", "rise:num_masks=512", "lime:num_masks=512")
  config.images = 512  # images a turn for the bare encoder
  config.host = True  # the same model as a callable on the host, too
  config.repeats = 7  # rounds, after one that compiles
  return config
