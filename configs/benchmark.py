"""What explanations cost: masked images a second against the bare encoder, and all that follows.

  python -m sane_jax.main --config=configs/benchmark.py

Writes WORKDIR/benchmark/benchmark.jsonl, benchmark.md and scaling.png, and prints the tables. Cases
are timed in turn, round after round; ratios are taken within a round. About seven minutes on two
CPU cores; one part alone with --config.parts='("kernel",)'.
On a GPU: --config.chunk_sizes='(256,1024)' --config.images=4096 and
--config.dtypes='("float32","bfloat16")'. Beside other libraries: benchmarks/peers/compare.py.
Figures: docs/benchmarks.md.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.job = "benchmark"  # job that runs
  config.workdir = "runs/benchmark"  # folder of the results; or gs://... or s3://...

  config.model = "efficientnet_lite0"  # a name, or module:function
  # Parts that are timed.
  config.parts = ("kernel", "metrics", "compiling", "pairs", "scaling", "index")
  config.image_sizes = (112,)  # sides in pixels of what the model sees
  config.dtypes = ("float32",)  # precisions of the model: float32, bfloat16
  config.device_counts = ()  # numbers of devices that share a chunk; all of them by default
  config.chunk_sizes = (16, 64)  # masked images at a time; on a GPU try (256, 1024)
  # Generators timed against the bare encoder: names or name:field=value,...
  config.generators = ("hadamard:num_masks=512", "rise:num_masks=512", "lime:num_masks=512")
  config.images = 512  # images a turn for the bare encoder
  config.host = True  # whether the same model is timed as a callable on the host, too
  config.repeats = 7  # rounds, after one that compiles
  config.index_images = 10_000  # images of the index that is queried
  return config
