"""Runs a model over rendered images: on all devices inside one jitted loop, or on the host.

The engine is where images enter the encoder, so it is also where passes are counted.
"""

import dataclasses
import functools
import threading
import time
import uuid
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sane_jax.models import model as model_lib
from sane_jax.models import outputs as outputs_lib
from sane_jax.models.fingerprint import embed_jitted
from sane_jax.ops import effects, numerics

# One call into the jitted loop lasts about this long: progress is shown, Ctrl-C heard, in between.
SECONDS_PER_CALL = 1.0


@dataclasses.dataclass
class Engine:
  """A model with the devices and the chunk that it is run in.

  Attributes:
    model: what is run.
    chunk: images a step.
    mesh: devices that share a chunk; None for one device and for host models.
    params: the model's parameters, on those devices.
    passes: images that went through the encoder so far.
    embedding_size: d; for a host model None until it has been run once.
    on_progress: called with (images done, images in all) now and then.
    name: that no other engine has.
  """

  model: model_lib.Model
  chunk: int
  mesh: Mesh | None
  params: Any
  passes: int = 0
  embedding_size: int | None = None
  on_progress: Callable[[int, int], None] | None = None
  name: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
  lock: Any = dataclasses.field(default_factory=threading.Lock, repr=False)
  here: Any = dataclasses.field(default_factory=threading.local, repr=False)


def add_passes(engine: Engine, images: int) -> None:
  """Counts images that went through the encoder: of all threads, and of this one's explanations."""
  with engine.lock:
    engine.passes += images
  engine.here.passes = spent(engine) + images


def spent(engine: Engine) -> int:
  """Passes that this thread has spent on explanations: those of others are none of its own."""
  return getattr(engine.here, "passes", 0)


def make_engine(
  model: model_lib.Model, *, chunk: int | str | None = None, devices: Sequence[Any] | None = None
) -> Engine:
  """An engine on `devices` (all local ones by default), `chunk` images a step.

  Default chunk: 8 a device on a CPU, where larger ones leave the caches (EfficientNet-Lite0 at 112
  pixels: 576 images/s with 8 a device, 463 with 32), 512 a device on an accelerator, 64 for host
  models. 'fastest' tries several, which takes some seconds, and more where each is compiled.
  """
  devices = list(devices) if devices is not None else jax.local_devices()
  if chunk == "fastest":
    chunk = fastest_chunk(model, devices)
  if isinstance(chunk, str):
    raise ValueError(f"the chunk is a number of images or 'fastest'; given {chunk!r}")
  if chunk is None:
    each = 8 if devices[0].platform == "cpu" else 512
    chunk = 64 if model.on_host else each * len(devices)
  if chunk < 1:
    raise ValueError(f"the chunk is how many masked images exist at once, 1 or more; given {chunk}")
  if model.on_host:
    return Engine(model, chunk, None, None)
  if len(devices) == 1:
    return Engine(model, chunk, None, jax.device_put(model.params, devices[0]))
  mesh = Mesh(np.asarray(devices), ("masks",))
  return Engine(
    model, chunk, mesh, jax.device_put(model.params, NamedSharding(mesh, PartitionSpec()))
  )


def require_embeddings(model: model_lib.Model, what: str) -> None:
  """Raises ValueError where a model gives nothing but scores; `what` is what takes embeddings."""
  if model.embed is None:
    raise ValueError(
      f"{what} takes embeddings, and {model.name} gives nothing but scores; bring the model in with"
      " sane_jax.from_numpy, from_torch, from_onnx or from_jax"
    )


@numerics.ours()
def fastest_chunk(model: model_lib.Model, devices: Sequence[Any], *, seconds: float = 0.5) -> int:
  """The chunk with the most images a second, found by running the model with several in turn.

  Sizes grow by two from 4 a device (64 on an accelerator) for as long as the rate does not fall
  below 0.9 of the best so far and the memory holds them; each is timed for about `seconds`.
  """
  if model.embed is None:
    raise ValueError("a model of scores alone takes its chunk as a number, not 'fastest'")
  shares = 1 if model.on_host else len(devices)
  size = (4 if model.on_host or devices[0].platform == "cpu" else 64) * shares
  image, best = jnp.zeros((*model.image_size, 3)), (0.0, size)
  while True:
    engine = make_engine(model, chunk=size, devices=devices)
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # a chunk that is halved is no news here
      run(engine, _show, _add, image, jnp.zeros(()), size)  # compiles
      count, took = size, 0.0
      while took < seconds:
        count *= 1 if not took else max(2, min(64, round(1.2 * seconds / took)))
        began = time.monotonic()
        run(engine, _show, _add, image, jnp.zeros(()), count)
        took = time.monotonic() - began
    if engine.chunk < size or count / took < 0.9 * best[0]:
      return best[1] if best[0] else engine.chunk
    best, size = max(best, (count / took, size)), 2 * size


def _show(image, indices):
  # Each image another: the compiler takes what never changes out of the loop.
  return image + 1e-3 * (indices % 512)[:, None, None, None], None


def _add(_, total, outputs, __, ___):
  return total + outputs.sum()


@numerics.ours()
def run(
  engine: Engine,
  render: Callable[..., Any],
  update: Callable[..., Any],
  args: Any,
  total: Any,
  count: int,
  *,
  first: int = 0,
  score: Callable[[np.ndarray, Any], Any] | None = None,
) -> tuple[Any, int]:
  """Renders images first .. first + count − 1, runs the model on them and reduces what it gives.

  Args:
    engine: counts the passes.
    render: (args, indices [n]) -> (images [n h w 3], features); pure, hashable.
    update: (args, total, outputs [n k], features, indices) -> total; pure, hashable. Outputs are
      unit embeddings, or scores where `score` is given.
    args: pytree of arrays for both.
    total: initial value of what is reduced.
    count: how many images. Exactly as many enter the encoder: no padding.
    first: index of the first.
    score: (images, features) -> scores [n k], on the host, in place of the embedding.

  Returns:
    The total, and how many outputs had no direction (zero norm, taken as a cosine of 0).

  A chunk that does not fit the device's memory is halved, said so, and the run begun again.

  Raises:
    ModelError: a NaN or an infinity in the outputs; a host model's output of a wrong shape.
    JaxRuntimeError: not even one image at a time fits.
  """
  return halving(engine, lambda: _run(engine, render, update, args, total, count, first, score))


def halving(engine: Engine, work: Callable[[], Any]) -> Any:
  """What `work` gives, tried again with half the chunk for as long as memory runs out."""
  while True:
    try:
      return work()
    except (jax.errors.JaxRuntimeError, outputs_lib.OutOfMemory) as error:
      if engine.chunk == 1 or not outputs_lib.is_out_of_memory(error):
        raise
      if isinstance(error, outputs_lib.OutOfMemory) and error.images == 1:
        raise
      engine.chunk //= 2
      warnings.warn(
        f"{2 * engine.chunk} images at a time do not fit the memory; going on with {engine.chunk}."
        f" Give chunk_size={engine.chunk} to begin there",
        stacklevel=2,
      )


def _run(engine, render, update, args, total, count, first, score) -> tuple[Any, int]:
  state = effects.start_reduction(jax.tree.map(jnp.copy, total))  # the copy is given away
  if engine.mesh is not None:  # sums that are gone on with come from one device
    state = jax.device_put(state, NamedSharding(engine.mesh, PartitionSpec()))
  done = 0
  started = time.monotonic()
  batch = min(engine.chunk, count)
  calls = 1  # chunks a call, grown until a call takes about a second
  mesh, params = engine.mesh, engine.params
  while done < count:
    size = min(batch, count - done)
    chunks = min(calls, (count - done) // size)
    began = time.monotonic()
    if engine.model.on_host or score is not None:
      chunks = max(1, (count - done) // size)
      state = _run_on_host(engine, render, update, args, state, first + done, chunks, size, score)
    else:
      if mesh is not None and size % mesh.size:  # no even share for each device: one does the rest
        params, state = on_one_device(engine), jax.device_put(state, _first_device(engine))
        mesh = None
      state = effects.stream(
        engine.model.embed, params, render, update, args, state,
        jnp.int32(first + done), jnp.int32(chunks), chunk=size, mesh=mesh,
      )  # fmt: skip
      jax.block_until_ready(state.passes)
    done += chunks * size
    calls = max(1, round(calls * min(4, SECONDS_PER_CALL / max(time.monotonic() - began, 1e-3))))
    if engine.on_progress is not None and time.monotonic() - started > 0.5:
      engine.on_progress(done, count)
  if score is None:
    add_passes(engine, int(state.passes))  # a score function counts its own
  if int(state.not_finite):
    raise model_lib.ModelError(
      f"{engine.model.name} gave NaN or infinity for {int(state.not_finite)} of {count} images;"
      f" {_why_not_finite(engine)}"
    )
  total = state.total
  if engine.mesh is not None:  # results meet later: keep all on one device
    total = jax.device_put(total, _first_device(engine))
  return total, int(state.without_direction)


def _why_not_finite(engine: Engine) -> str:
  """What to look at where a whole image has an embedding and a masked one has none."""
  if engine.model.embed is not None:
    grey = np.full((1, *engine.model.image_size, 3), 0.5, np.float32)
    if not np.isfinite(_raw(engine, grey)).all():
      return ONE_COLOUR
  return "check its weights and the range it expects (images come in [0, 1])"


ONE_COLOUR = (
  "it gives none for an image of one colour either, which is what a mask that hides all leaves: add"
  " a small number to the deviation of the image that it divides by, or take fill='blur'"
)


def split(engine: Engine, tree: Any, size: int) -> tuple[Any, Any]:
  """(parameters, arrays): arrays of leading length `size` shared by the devices if they can be."""
  if engine.mesh is None or size % engine.mesh.size:
    return on_one_device(engine), tree
  whole = NamedSharding(engine.mesh, PartitionSpec())
  first = NamedSharding(engine.mesh, PartitionSpec(engine.mesh.axis_names[0]))
  placed = jax.tree.map(
    lambda a: jax.device_put(a, first if a.ndim and a.shape[0] == size else whole), tree
  )
  return engine.params, placed


def on_one_device(engine: Engine) -> Any:
  """The parameters on the first device, whatever mesh they are on."""
  if engine.mesh is None:
    return engine.params
  # A replica is there already: nothing is copied.
  return jax.tree.map(lambda leaf: leaf.addressable_data(0), engine.params)


def _first_device(engine: Engine) -> Any:
  return engine.mesh.devices.ravel()[0]  # pyright: ignore[reportOptionalMemberAccess]


_render = jax.jit(lambda render, args, indices: render(args, indices), static_argnums=0)
_reduce = jax.jit(
  effects.reduce_outputs, static_argnums=0, static_argnames="unit", donate_argnums=2
)


def _run_on_host(engine, render, update, args, state, start, chunks, size, score):
  """The same loop around a host model; the next batch is rendered while the model works."""
  ahead = _render(render, args, start + jnp.arange(size))
  for step in range(chunks):
    (images, features), indices = ahead, start + step * size + jnp.arange(size)
    batch = np.asarray(images)
    if step + 1 < chunks:
      ahead = _render(render, args, indices + size)
    if score is not None:
      outputs = score(batch, features)
    else:
      outputs = model_lib.call_on_host(engine.model, batch)
    state = _reduce(
      update, args, state, jnp.asarray(outputs), features, indices, unit=score is None
    )
    if engine.on_progress is not None:
      engine.on_progress((step + 1) * size, chunks * size)
  return state


# --- whole images ---------------------------------------------------------------------------------


_embed = embed_jitted


def _raw(engine: Engine, batch: np.ndarray) -> np.ndarray:
  """What the model gives for a batch in one piece; counted by the caller."""
  if engine.model.on_host:
    return model_lib.call_on_host(engine.model, batch)
  return np.asarray(_embed(engine.model.embed, on_one_device(engine), batch), np.float32)


@numerics.ours()
def embed_images(
  engine: Engine, images: np.ndarray, *, names: Sequence[str] | None = None
) -> np.ndarray:
  """Unit embeddings [n d] of whole images [n h w 3]; one pass each.

  [n k d] of a model of k conditions: a unit embedding in each.

  Raises:
    ModelError: an embedding with NaN, infinity, or zero norm, which has no cosine.
  """
  model, out, done = engine.model, [], 0

  def embed(first: int) -> np.ndarray:
    # Singly, or in full chunks: two batch sizes to compile, whatever the number of images.
    size = engine.chunk if len(images) - first >= engine.chunk else 1
    return _raw(engine, np.array(images[first : first + size], np.float32))

  while done < len(images):
    raw = halving(engine, functools.partial(embed, done))
    size = len(raw)
    add_passes(engine, size)
    engine.embedding_size = raw.shape[-1]
    norms = np.linalg.norm(raw, axis=-1, keepdims=True)
    for bad, what in ((~np.isfinite(norms), "NaN or infinity in"), (norms == 0, "zero norm for")):
      if bad.any():
        raise model_lib.ModelError(
          f"{model.name}: {what} the embedding of {int(bad.sum())} of {size} whole images"
          f"{_named(bad, names, done)}, which has no cosine with anything; check its weights and"
          " the range it expects (images come in [0, 1])"
        )
    out.append(raw / norms)
    done += size
  return np.concatenate(out)


def _named(bad: np.ndarray, names: Sequence[str] | None, first: int) -> str:
  """Which photos are meant, by name where they have one, or by place."""
  rows = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))[:5] + first
  named = [(names[i] if names else "") or f"number {i + 1}" for i in map(int, rows)]
  return f" ({', '.join(named)})"


# --- models that give an image now this answer, now that ------------------------------------------


# What was found of each model, '' where nothing was: it is tried once, by whichever explainer.
_NOTES: weakref.WeakKeyDictionary[model_lib.Model, str] = weakref.WeakKeyDictionary()


@numerics.ours()
def steadiness_note(
  engine: Engine, image: np.ndarray, alone: np.ndarray, reference: np.ndarray | None = None
) -> str:
  """A warning where the model gives an image another answer beside another image, or each time.

  Costs 2 passes once a model, and one more where there is something to say. They are counted for
  the engine and for no explanation.

  Args:
    image: [h w 3].
    alone: its unit embedding [d]; with a reference [h w 3] its score [1].
  """
  model = engine.model
  if model.steady:
    return ""
  if model in _NOTES:
    return _NOTES[model]

  def again(images: np.ndarray) -> np.ndarray:
    with engine.lock:
      engine.passes += len(images)
    if reference is not None:
      return model_lib.call_on_host(model, images, reference)[0]
    first = _raw(engine, images)[0]
    return first / np.maximum(np.linalg.norm(first, axis=-1, keepdims=True), effects.SMALLEST_NORM)

  def differs(other: np.ndarray) -> bool:
    scale = max(float(np.linalg.norm(alone)), 2e-3)
    return not np.linalg.norm(other - alone) <= rounding * scale

  rounding, single = _rounding(model), image[None].astype(np.float32)
  # A model that is given single images may take no others.
  batch = single if engine.chunk == 1 else np.concatenate([single, 1 - single[:, ::-1]])
  try:
    note = ""
    if differs(again(batch)):
      note = RANDOM if engine.chunk == 1 or differs(again(single)) else BATCH_DEPENDENT
      note = f"{model.name} {note}"
  except (jax.errors.JaxRuntimeError, outputs_lib.OutOfMemory) as error:
    if not outputs_lib.is_out_of_memory(error):
      raise
    return ""
  return _NOTES.setdefault(model, note)


RANDOM = (
  "gives the same image another answer each time, as by dropout that is always on: maps of a random"
  " model say nothing; make it give one answer"
)
BATCH_DEPENDENT = (
  "gives an image another answer beside another image than alone, as by normalising over the batch:"
  " maps of a batch-dependent model say nothing; make it take each image by itself, or give"
  " chunk_size=1"
)


def _rounding(model: model_lib.Model) -> float:
  """How far unit embeddings may be apart that are the same: products of other shapes round."""
  types = [getattr(leaf, "dtype", None) for leaf in jax.tree.leaves(model.params)]
  halves = any(t is not None and "float" in str(t) and t.itemsize < 4 for t in types)
  return 5e-2 if halves or getattr(model.embed, "halves", False) else 5e-3
