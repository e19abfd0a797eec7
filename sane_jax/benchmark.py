"""Job: how fast masked images are scored, as a ratio to the bare encoder in the same run."""

import functools
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import NamedSharding, PartitionSpec

from sane_jax import checkpoint, files
from sane_jax import engine as engine_lib
from sane_jax.compare_generators import parse_generator
from sane_jax.datasets import photos as photos_lib
from sane_jax.explainer import Explainer
from sane_jax.models import model as model_lib


def run(config: Any) -> None:
  """Times every case once a round, round after round, and reports medians and their ratios.

  Interleaving is what makes the ratios hold on a machine whose speed drifts.
  """
  folder = checkpoint.writable_folder(pathlib.Path(config.workdir) / "benchmark")
  model = model_lib.load_model(config.model, image_size=config.image_size)
  photo = photos_lib.sample_pairs()[1][1]
  models = {"traced by JAX": model}
  if config.host:
    models["on the host"] = _on_host(model)
  cases: list[tuple[dict[str, Any], Callable[[], int]]] = []
  for kind, m in models.items():
    for chunk in config.chunk_sizes:
      base = {"model": kind, "chunk": chunk}
      images = -(-config.images // chunk) * chunk
      cases.append(({**base, "case": "bare encoder"}, _bare(m, chunk, images)))
      for spec in config.generators:
        name, options = parse_generator(spec)
        explainer = Explainer(m, design=name, chunk_size=chunk, **options)
        cases.append(
          ({**base, "case": spec}, functools.partial(_masked, explainer, explainer.photo(photo)))
        )
  seconds: list[list[float]] = [[] for _ in cases]
  counts = [0] * len(cases)
  total = (config.repeats + 1) * len(cases)
  with tqdm.tqdm(total=total, unit="case", desc="timing", disable=None) as bar:
    for repeat in range(config.repeats + 1):  # the first round compiles
      for index, (_, case) in enumerate(cases):
        began = time.perf_counter()
        counts[index] = case()
        if repeat:
          seconds[index].append(time.perf_counter() - began)
        bar.update()
  rows, bare = [], np.ones(config.repeats)
  for (row, _), times, count in zip(cases, seconds, counts, strict=True):
    rates = count / np.asarray(times)
    rows.append({**row, "images": count, "images_per_second": float(np.median(rates))})
    if row["case"] == "bare encoder":
      bare = rates
    # Ratio round by round, then the median: drift between rounds drops out.
    rows[-1]["ratio_to_bare"] = float(np.median(rates / bare))
  device = jax.devices()[0]
  about = {
    "device": f"{jax.local_device_count()} x {device.device_kind or device.platform}",
    "jax": jax.__version__,
    "model": config.model,
    "image_size": config.image_size,
    "repeats": config.repeats,
    "date": time.strftime("%Y-%m-%d"),
  }
  lines = [json.dumps({**about, **row, "model": f"{config.model}, {row['model']}"}) for row in rows]
  files.write_bytes(folder / "benchmark.jsonl", ("\n".join(lines) + "\n").encode())
  text = _table(about, rows)
  files.write_bytes(folder / "benchmark.md", text.encode())
  print(text)


def _on_host(model: model_lib.Model) -> model_lib.Model:
  """The same model as a Python callable from arrays to arrays."""
  embed = jax.jit(lambda params, images: model.embed(params, images))  # pyright: ignore[reportOptionalCall]
  params = jax.device_put(model.params, jax.local_devices()[0])
  return model_lib.from_numpy(
    lambda images: np.asarray(embed(params, images)),
    image_size=model.image_size,
    name=f"{model.name} on the host",
    crop_fraction=model.crop_fraction,
    interpolation=model.interpolation,
  )


def _bare(model: model_lib.Model, chunk: int, images: int) -> Callable[[], int]:
  """The encoder alone, on batches of the same size that are there already."""
  batch = np.random.default_rng(0).uniform(size=(chunk, *model.image_size, 3)).astype(np.float32)
  if model.on_host:

    def on_host() -> int:
      for _ in range(images // chunk):
        model.embed(None, batch)  # pyright: ignore[reportOptionalCall]
      return images

    return on_host
  engine = engine_lib.make_engine(model, chunk=chunk)
  params, device_batch = engine.params, jnp.asarray(batch)
  if engine.mesh is not None and chunk % engine.mesh.size == 0:
    sharding = NamedSharding(engine.mesh, PartitionSpec(engine.mesh.axis_names[0]))
    device_batch = jax.device_put(batch, sharding)
  elif engine.mesh is not None:
    params = engine_lib.on_one_device(engine)
  embed = jax.jit(model.embed)  # pyright: ignore[reportArgumentType]

  def on_device() -> int:
    out = None
    for _ in range(images // chunk):
      out = embed(params, device_batch)
    jax.block_until_ready(out)
    return images

  return on_device


def _masked(explainer: Explainer, photo: Any) -> int:
  """All that the masks of one image cost: rendering, blending, embedding, summing."""
  before = explainer.encoder_passes
  jax.block_until_ready(explainer.effects(photo).moments)
  return explainer.encoder_passes - before


def _table(about: dict[str, Any], rows: list[dict[str, Any]]) -> str:
  lines = [
    f"{about['model']} at {about['image_size']} pixels on {about['device']}, jax {about['jax']},"
    f" {about['date']}; medians of {about['repeats']} interleaved rounds.\n",
    "| model | chunk | case | images/s | to bare |",
    "| --- | ---: | --- | ---: | ---: |",
  ]
  for row in rows:
    lines.append(
      f"| {row['model']} | {row['chunk']} | {row['case']} | {row['images_per_second']:,.0f}"
      f" | {row['ratio_to_bare']:.2f} |"
    )
  return "\n".join(lines) + "\n"
