"""Job: what explanations cost: the kernel against the bare encoder, pairs, growth, the index."""

import contextlib
import functools
import itertools
import json
import pathlib
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import NamedSharding, PartitionSpec

from sane_jax.datasets import photos as photos_lib
from sane_jax.maps import engine as engine_lib
from sane_jax.maps import index_arrays
from sane_jax.maps.curves import insertion_deletion
from sane_jax.maps.explainer import Explainer
from sane_jax.maps.generators import parse_generator
from sane_jax.maps.index import ExplanationIndex
from sane_jax.maps.tasks import check_generator
from sane_jax.models import model as model_lib
from sane_jax.runs import files
from sane_jax.runs import folder as run_folder
from sane_jax.runs.settings import check_choice, check_range


def check(config: Any) -> None:
  """Raises ValueError for settings that can't be; reads no data and writes nothing."""
  for part in config.parts:
    check_choice("parts", part, tuple(PARTS))
  for spec in config.generators:
    check_generator(spec)
  for name in ("images", "repeats", "index_images"):
    check_range(name, config[name], 1)


def run(config: Any) -> None:
  """Times the parts that `config.parts` names; see PARTS.

  Writes WORKDIR/benchmark: benchmark.jsonl (a line a case), benchmark.md, scaling.png. Every case
  of a part is timed once a round, round after round, and medians and ratios within rounds are
  given: that holds on a machine whose speed drifts.

  Raises:
    ValueError: no such part.
  """
  check(config)
  folder = run_folder.writable_folder(files.at(config.workdir) / "benchmark")
  device = jax.devices()[0]
  about = {
    "device": f"{jax.local_device_count()} x {device.device_kind or device.platform}",
    "jax": jax.__version__,
    "model": config.model,
    "date": time.strftime("%Y-%m-%d"),
  }
  lines, text = (
    [],
    [
      f"{about['model']} on {about['device']}, jax {about['jax']}, {about['date']}; medians of"
      f" {config.repeats} interleaved rounds."
    ],
  )
  for part in config.parts:
    _forget_peak()
    rows = PARTS[part](config, folder)
    peak = _peak_megabytes()
    lines += [json.dumps({"part": part, **about, **row, **peak}) for row in rows]
    memory = ", ".join(f"{name.replace('_', ' ')} {value:,.0f}" for name, value in peak.items())
    text.append(f"\n## {part}\n\n{_table(rows)}\n\nOf this part: {memory}.")
    files.write_bytes(folder / "benchmark.jsonl", ("\n".join(lines) + "\n").encode())
    files.write_bytes(folder / "benchmark.md", ("\n".join(text) + "\n").encode())
  print("\n".join(text))


Case = Callable[[], int]  # does its work once and says of how much


def _timed(cases: Sequence[Case], repeats: int, what: str) -> tuple[np.ndarray, list[int]]:
  """Seconds [cases repeats] of cases in turn, and what each said; a round more warms up."""
  seconds, counts = np.zeros((len(cases), repeats)), [0] * len(cases)
  with tqdm.tqdm(total=(repeats + 1) * len(cases), unit="case", desc=what, disable=None) as bar:
    for repeat in range(repeats + 1):
      for index, case in enumerate(cases):
        began = time.perf_counter()
        counts[index] = case()
        if repeat:
          seconds[index, repeat - 1] = time.perf_counter() - began
        bar.update()
  return seconds, counts


def _forget_peak() -> None:
  """Begins to look for the peak of this process's memory anew, where the system can."""
  with contextlib.suppress(OSError):  # Linux
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def _peak_megabytes() -> dict[str, float]:
  """Most memory that was in use: by the process, since `_forget_peak`, and of each device, ever."""
  try:
    status = pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1]
    out = {"peak_megabytes": int(status.split()[0]) / 1024}
  except (OSError, IndexError, ValueError):
    out = {"peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  if peaks := [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]:
    out["device_peak_megabytes"] = max(peaks) / 2**20
  return out


# --- the kernel -----------------------------------------------------------------------------------


def _kernel(config: Any, folder: pathlib.Path) -> list[dict[str, Any]]:
  """Masked scores a second against the bare encoder, over sizes, precisions, devices and chunks."""
  photo = photos_lib.sample_pairs()[1][1]
  rows: list[dict[str, Any]] = []
  cases: list[Case] = []
  for size, dtype, count in itertools.product(
    config.image_sizes, config.dtypes, config.device_counts or (jax.local_device_count(),)
  ):
    traced = model_lib.load_model(config.model, image_size=size)
    models = {"traced by JAX": model_lib.at_precision(traced, dtype)}
    if config.host and dtype == "float32":
      models["on the host"] = _on_host(traced)
    devices = jax.local_devices()[:count]
    for (kind, model), chunk in ((m, c) for m in models.items() for c in config.chunk_sizes):
      base = {
        "model": kind, "image_size": size, "dtype": dtype, "devices": count, "chunk": chunk,
      }  # fmt: skip
      images = -(-config.images // chunk) * chunk
      rows.append({**base, "case": "bare encoder"})
      cases.append(_bare(model, chunk, images, devices))
      for spec in config.generators:
        name, options = parse_generator(spec)
        explainer = Explainer(model, design=name, chunk_size=chunk, devices=devices, **options)
        rows.append({**base, "case": spec})
        cases.append(functools.partial(_masked, explainer, explainer.photo(photo)))
  seconds, counts = _timed(cases, config.repeats, "kernel")
  bare = np.ones(config.repeats)
  for row, times, count in zip(rows, seconds, counts, strict=True):
    rates = count / times
    bare = rates if row["case"] == "bare encoder" else bare
    row["images"] = count
    row["images_per_second"] = float(np.median(rates))
    # Ratio round by round, then the median: drift between rounds drops out.
    row["ratio_to_bare"] = float(np.median(rates / bare))
  return rows


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


def _bare(
  model: model_lib.Model, chunk: int, images: int, devices: Sequence[Any]
) -> Callable[[], int]:
  """The encoder alone, on batches of the same size that are there already."""
  batch = np.random.default_rng(0).uniform(size=(chunk, *model.image_size, 3)).astype(np.float32)
  if model.on_host:

    def on_host() -> int:
      for _ in range(images // chunk):
        model.embed(None, batch)  # pyright: ignore[reportOptionalCall]
      return images

    return on_host
  engine = engine_lib.make_engine(model, chunk=chunk, devices=devices)
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


# --- insertion and deletion, learned masks --------------------------------------------------------


def _metrics(config: Any, folder: pathlib.Path) -> list[dict[str, Any]]:
  """Images a second of the metric, and of learned masks' steps, against the bare encoder.

  Learned masks are compared with the gradient of the bare encoder by its images.
  """
  size, photo = config.image_sizes[0], photos_lib.sample_pairs()[1][1]
  model = model_lib.load_model(config.model, image_size=size)
  explainer = Explainer(model, num_masks=128)
  chunk, devices = explainer.engine.chunk, jax.local_devices()
  pairs = [(np.roll(photo, 10 * i, axis=0), photo) for i in range(16)]
  explained = explainer.explain_pairs(pairs)
  for e in explained:
    _ = e.saliency_map
  rows = [{"case": "bare encoder", "pairs": 0}]
  cases: list[Case] = [_bare(model, chunk, 64 * chunk, devices)]
  for count in (1, 16):
    rows.append({"case": "insertion and deletion", "pairs": count})
    cases.append(functools.partial(_inserted, explainer, explained[:count]))
  learner = Explainer(model, design="learned_mask", num_steps=30)
  rows.append({"case": "bare gradient", "pairs": 0})
  cases.append(_bare_gradient(model, chunk, 30))
  for count in (1, chunk):
    rows.append({"case": "learned masks", "pairs": count})
    some = (pairs * chunk)[:count]
    cases.append(functools.partial(_passes_of, learner, learner.explain_pairs, some))
  seconds, counts = _timed(cases, min(config.repeats, 5), "metrics")
  bare = np.ones(seconds.shape[1])
  for row, times, count in zip(rows, seconds, counts, strict=True):
    rates = count / times
    bare = rates if row["case"].startswith("bare") else bare
    row["images"] = count
    row["images_per_second"] = float(np.median(rates))
    row["ratio_to_bare"] = float(np.median(rates / bare))
  return rows


def _passes_of(explainer: Explainer, function: Callable[..., Any], *args: Any) -> int:
  before = explainer.encoder_passes
  function(*args)
  return explainer.encoder_passes - before


def _inserted(explainer: Explainer, explained: Sequence[Any]) -> int:
  return _passes_of(explainer, insertion_deletion, explainer, explained)


def _bare_gradient(model: model_lib.Model, chunk: int, steps: int) -> Callable[[], int]:
  """The gradient of the encoder by a batch that is there already, in a jitted loop of steps."""
  engine = engine_lib.make_engine(model, chunk=chunk)
  batch = np.random.default_rng(0).uniform(size=(chunk, *model.image_size, 3)).astype(np.float32)
  params, images = engine_lib.split(engine, jnp.asarray(batch), chunk)

  @jax.jit
  def descend(params, images):
    def step(_, images):
      embed = model.embed
      return images - 1e-6 * jax.grad(lambda x: embed(params, x).sum())(images)  # pyright: ignore[reportOptionalCall]

    return jax.lax.fori_loop(0, steps, step, images)

  def run() -> int:
    jax.block_until_ready(descend(params, images))
    return chunk * steps

  return run


# --- compiling ------------------------------------------------------------------------------------


def _compiling(config: Any, folder: pathlib.Path) -> list[dict[str, Any]]:
  """Seconds from nothing to the first explanation, and of the next: traced, compiled, run."""
  rows, photo = [], photos_lib.sample_pairs()[1][1]
  for size in config.image_sizes:
    model = model_lib.load_model(config.model, image_size=size)
    chunk = engine_lib.make_engine(model).chunk
    images = jax.ShapeDtypeStruct((chunk, size, size, 3), np.float32)
    kept = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
      began = time.perf_counter()
      lowered = jax.jit(model.embed).lower(model.params, images)  # pyright: ignore[reportArgumentType]
      traced = time.perf_counter()
      lowered.compile()
      compiled = time.perf_counter()
    finally:
      jax.config.update("jax_enable_compilation_cache", kept)
    row = {"image_size": size, "chunk": chunk}
    row |= {"encoder_trace": traced - began, "encoder_compile": compiled - traced}
    explainer = Explainer(model, design="hadamard", num_masks=128)
    for name in ("first", "warm"):
      began = time.perf_counter()
      _ = explainer.explain(photo, photo[:, ::-1]).saliency_map
      row[f"{name}_explanation"] = time.perf_counter() - began
    rows.append(row)
  return rows


# --- explained pairs ------------------------------------------------------------------------------


def _pairs(config: Any, folder: pathlib.Path) -> list[dict[str, Any]]:
  """Passes and seconds of a query against one reference and against twenty, both modes."""
  photo = photos_lib.sample_pairs()[1][1]
  references = [np.roll(photo, 10 * shift, axis=1) for shift in range(20)]
  rows, cases = [], []
  for size, spec, mode, count in itertools.product(
    config.image_sizes, config.generators, ("fixed", "both"), (1, 20)
  ):
    if mode == "both" and count > 1:
      continue
    name, options = parse_generator(spec)
    model = model_lib.load_model(config.model, image_size=size)
    explainer = Explainer(model, design=name, mode=mode, **options)
    rows.append({
      "image_size": size, "design": spec, "perturbed": {"fixed": "query"}.get(mode, mode),
      "references": count,
    })  # fmt: skip
    cases.append(functools.partial(_explained, explainer, photo, references[:count]))
  seconds, passes = _timed(cases, min(config.repeats, 3), "pairs")
  for row, times, count in zip(rows, seconds, passes, strict=True):
    row["passes"] = count
    row["seconds"] = float(np.median(times))
    row["milliseconds_a_pair"] = 1000 * row["seconds"] / row["references"]
  return rows


def _explained(explainer: Explainer, query: Any, references: Sequence[Any]) -> int:
  """Encoder passes of explaining a query against references."""
  before = explainer.encoder_passes
  for e in explainer.explain_many(query, references):
    _ = e.saliency_map
  return explainer.encoder_passes - before


# --- what grows with what -------------------------------------------------------------------------

SCALING = {
  "masks": (128, 256, 512, 1024),
  "images": (1, 2, 4, 8),
  "references": (1, 10, 100, 1000),
}


def _scaling(config: Any, folder: pathlib.Path) -> list[dict[str, Any]]:
  """Seconds over masks, images and references; drawn in scaling.png."""
  size = config.image_sizes[0]
  model = model_lib.load_model(config.model, image_size=size)
  photo = photos_lib.sample_pairs()[1][1]
  explainers = {
    n: Explainer(model, design="hadamard", num_masks=n) for n in (*SCALING["masks"], 128)
  }
  small = explainers[128]
  measured = small.effects(photo)
  others = small.embed([np.roll(photo, s, axis=0) for s in range(50)])
  directions = np.concatenate([others] * 20)
  matrix = np.asarray(measured.matrix)

  def masks(n: int) -> int:
    return _masked(explainers[n], small.photo(photo))

  def images(n: int) -> int:
    return sum(_masked(small, small.photo(np.roll(photo, i, axis=1))) for i in range(n))

  def references(n: int) -> int:
    """All that further references cost once their embeddings are known."""
    _masked(small, small.photo(photo))
    return (directions[:n] @ matrix.T).shape[0]

  rows, cases = [], []
  for name, function in (("masks", masks), ("images", images), ("references", references)):
    for n in SCALING[name]:
      rows.append({"over": name, "count": n})
      cases.append(functools.partial(function, n))
  seconds, _ = _timed(cases, min(config.repeats, 5), "scaling")
  for row, times in zip(rows, seconds, strict=True):
    row["seconds"] = float(np.median(times))
  _draw_scaling(rows, folder / "scaling.png")
  return rows


def _draw_scaling(rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
  """Seconds over each count, with the line through the first point that linear growth would be."""
  from matplotlib import ticker
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9, 3), layout="constrained")
  for axes, name in zip(figure.subplots(1, 3), SCALING, strict=True):
    x, y = np.array([(r["count"], r["seconds"]) for r in rows if r["over"] == name]).T
    axes.plot(x, y, "o-", color="#2e7d6b", label="measured")
    if name != "references":
      axes.plot(x, y[-1] * x / x[-1], "--", color="#999999", label="in proportion")
    axes.set(xscale="log", yscale="log", xlabel=name, title=f"over {name}")
    axes.set_xticks(x, [f"{int(n):,}" for n in x])
    axes.yaxis.set_major_locator(ticker.LogLocator(base=2))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    if name == "references":
      axes.set_ylim(y.min() / 4, y.max() * 4)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
  figure.axes[0].set_ylabel("seconds")
  figure.savefig(path, dpi=130)


# --- the index ------------------------------------------------------------------------------------


def _index(config: Any, folder: pathlib.Path) -> list[dict[str, Any]]:
  """Maps a second from an index at the paper's size (64 cells, 64 axes), and its bytes an image.

  What is in it is random: reading and multiplying does not mind. A call explains one query against
  its 1,000 references; queries are drawn from the whole index.
  """
  rows = []
  for dtype in ("float16", "int8"):
    with tempfile.TemporaryDirectory() as name:
      place = pathlib.Path(name)
      count = config.index_images
      index = index_arrays.open_index(
        place, queries=np.arange(count), types=np.zeros(count, int), num_types=1, grid=(8, 8),
        embedding_size=64, dtype=dtype,
      )  # fmt: skip
      rng = np.random.default_rng(0)
      for part, shape in (("embeddings", (1, 64)), ("effects", (1, 64, 64))):
        for shard in index_arrays.missing_shards(index, part):
          where = index_arrays.shard_slice(shard, count)
          values = rng.normal(size=(where.stop - where.start, *shape)).astype(np.float32)
          if part == "embeddings":
            values /= np.linalg.norm(values, axis=-1, keepdims=True)
          index_arrays.write_shard(index, part, shard, values)
      index_arrays.describe(
        place, index, ids=[str(i) for i in range(count)], settings={}, left_out={}
      )
      size = sum(p.stat().st_size for p in place.rglob("*") if p.is_file())
      opened = ExplanationIndex(place)
      queries = rng.integers(count, size=min(200, count)).tolist()
      references = rng.integers(count, size=1000).tolist()

      def explain(opened=opened, queries=queries, references=references) -> int:
        return sum(len(opened.maps(query, references)) for query in queries)

      seconds, maps = _timed([explain], config.repeats, f"index, {dtype}")
    rows.append({
      "dtype": dtype, "images": count, "kilobytes_an_image": size / count / 1000,
      "references_a_call": len(references),
      "milliseconds_a_call": 1000 * float(np.median(seconds)) / len(queries),
      "maps_per_second": maps[0] / float(np.median(seconds)),
    })  # fmt: skip
  return rows


def _table(rows: Sequence[dict[str, Any]]) -> str:
  """Markdown of rows that have the same columns."""

  def cell(value: Any) -> str:
    if isinstance(value, float):
      return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)

  columns = list(rows[0])
  numeric = [isinstance(rows[0][c], int | float) for c in columns]
  lines = [
    f"| {' | '.join(c.replace('_', ' ') for c in columns)} |",
    f"| {' | '.join('---:' if n else '---' for n in numeric)} |",
  ]
  lines += [f"| {' | '.join(cell(row[c]) for c in columns)} |" for row in rows]
  return "\n".join(lines)


PARTS = {
  "kernel": _kernel,
  "metrics": _metrics,
  "compiling": _compiling,
  "pairs": _pairs,
  "scaling": _scaling,
  "index": _index,
}
