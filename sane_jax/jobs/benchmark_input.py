"""Job: whether the input pipeline keeps up with training, as a ratio in one run."""

import json
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sane_jax.datasets import load, pipeline
from sane_jax.runs import files
from sane_jax.runs import folder as run_folder
from sane_jax.runs.settings import check_range
from sane_jax.training import sharding, similarity


def check(config: Any) -> None:
  """Raises ValueError for settings that can't be; reads no data and writes nothing."""
  load.check_data(config.data)
  similarity.check(config.similarity)
  check_range("benchmark_steps", config.benchmark_steps, 1)
  check_range("benchmark_repeats", config.benchmark_repeats, 1)


def run(config: Any) -> None:
  """Times steps of train_similarity on batches that are in memory, and on those of the pipeline.

  Two pipelines: one that decodes every image anew (a first epoch), one whose images were decoded
  before (every further epoch). Turns are interleaved, for machines whose speed drifts.
  """
  settings = config.similarity
  folder = run_folder.writable_folder(files.at(config.workdir) / "benchmark_input")
  mesh = sharding.batch_mesh()
  train = load.load_split(config.data, config.workdir, "train")
  begun = similarity.start(settings, config.seed, train, mesh)

  def pipe(max_bytes: float) -> Any:
    images = pipeline.DecodedImages(train, settings.image_size, max_bytes)
    if max_bytes:
      images.stack(range(len(train.ids)))
    batches = similarity.read_batches(
      settings, config.seed, train, images, titles=begun.titles, num_threads=config.num_threads
    )
    return sharding.DeviceBatches(mesh, batches)

  decoding, decoded = pipe(0), pipe(config.cache_gib * 2**30)
  held = [next(decoded) for _ in range(4)]
  state = begun.state
  turn = 0

  def steps(batch: Callable[[int], Any]) -> float:
    nonlocal state, turn
    began = time.perf_counter()
    for step in range(config.benchmark_steps):
      state = begun.update(state, batch(step), np.int32(turn))
      turn += 1
    jax.block_until_ready(state)
    return config.benchmark_steps / (time.perf_counter() - began)

  cases: dict[str, Callable[[int], Any]] = {
    "batches in memory": lambda step: held[step % len(held)],
    "pipeline, images decoded before": lambda step: next(decoded),
    "pipeline, decoding": lambda step: next(decoding),
  }
  rates = {name: [] for name in cases}
  for repeat in range(config.benchmark_repeats + 1):  # the first round compiles
    for name, batch in cases.items():
      rate = steps(batch)
      if repeat:
        rates[name].append(rate)
  floor = np.asarray(rates["batches in memory"])
  device = jax.devices()[0]
  size = settings.groups_per_batch * settings.images_per_group
  rows = [
    {
      "case": name,
      "images_per_second": float(np.median(values)) * size,
      "ratio_to_memory": float(np.median(np.asarray(values) / floor)),
    }
    for name, values in rates.items()
  ]
  about = {
    "device": f"{jax.device_count()} x {device.device_kind or device.platform}",
    "image_size": settings.image_size, "batch": size, "stage_sizes": list(settings.stage_sizes),
    "width": settings.width, "date": time.strftime("%Y-%m-%d"),
  }  # fmt: skip
  lines = "".join(json.dumps({**about, **row}) + "\n" for row in rows)
  files.write_bytes(folder / "benchmark.jsonl", lines.encode())
  for row in rows:
    print(
      f"benchmark_input: {row['case']}: {row['images_per_second']:.0f} images/s,"
      f" {row['ratio_to_memory']:.3f} of memory's"
    )
