"""What explanations of a million and of a billion images cost; writes the tables of docs/scale.md.

  python benchmarks/scale.py

Every assumption is a constant here. FLOPs are counted by XLA for one image; peak rates are the
vendors' (dense bfloat16); how much of the peak is reached was measured on no accelerator yet, so a
range is given. Passes, and bytes on disk, are exact.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp

import sane_jax
from sane_jax.models import resnet

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "scale.md"
MASKS = 256  # the default's; one more pass sees the image whole
CELLS = 64
SPREAD = 32  # columns of the standard error's factor
MASKED_REFERENCES = 30  # of the mode that perturbs both images
IMAGES = {"a million": 10**6, "a billion": 10**9}
PEAKS = {"H100 SXM": 989, "A100": 312, "TPU v6e": 918, "TPU v5e": 197}  # TFLOP/s a chip
UTILISATION = {"low": 0.05, "high": 0.4}  # of the peak: depthwise networks low, ResNets high
JPEG = 50_000  # bytes of a photo that is read
DECODED = 300  # photos a second that a core decodes and fits
CPU_RATE = 550  # masked images a second on two CPU cores: Lite0 at 112 pixels (benchmarks.md)


def trunk(stages, size, **options):
  """FLOPs of a residual network for one image."""
  net = stages(**options)
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  variables = jax.eval_shape(functools.partial(net.init, train=False), jax.random.key(0), image)
  return jax.jit(functools.partial(net.apply, train=False)).lower(variables, image)


def lite0(size):
  model = sane_jax.load_model("efficientnet_lite0", image_size=size)
  return jax.jit(model.embed).lower(
    model.params, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  )


# name -> (one image's program, axes of the embedding)
ENCODERS = {
  "ResNet-18 less a stage, 112 px (the paper's)": (
    lambda: trunk(functools.partial(resnet.ResNet, (2, 2, 2)), 112), 64,
  ),
  "EfficientNet-Lite0, 112 px": (lambda: lite0(112), 1280),
  "EfficientNet-Lite0, 224 px": (lambda: lite0(224), 1280),
  "ResNet-50, 224 px": (lambda: trunk(resnet.ResNet50, 224), 2048),
}  # fmt: skip


def flops(encoder):
  return ENCODERS[encoder][0]().cost_analysis()["flops"]


def scaled(value):
  """Three digits and a unit: k M G T P E Z."""
  for power, unit in zip((21, 18, 15, 12, 9, 6, 3), "ZEPTGMk", strict=True):
    if value >= 10**power:
      return f"{value / 10**power:.3g} {unit}"
  return f"{value:.3g} "


def hours(value):
  return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def index_bytes(axes, *, effects=2, both=False):
  """An image's: effects and a scale a cell for int8, embedding, factor of the standard error."""
  size = CELLS * axes * effects + (CELLS * 4 if effects == 1 else 0)
  return size + 4 * axes * (2 if both else 1) + 2 * SPREAD * axes


def table(head, rows):
  lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
  return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def tables():
  """{name: Markdown}: what stands between the page's marks."""
  cost = {name: flops(name) for name in ENCODERS}
  passes = MASKS + 1
  work = [
    [f"{name}, {encoder}", scaled(count * passes), scaled(count * passes * cost[encoder]),
     *(f"{hours(count * passes * cost[encoder] / (peak * 1e12 * UTILISATION['high']) / 3600)} – "
       f"{hours(count * passes * cost[encoder] / (peak * 1e12 * UTILISATION['low']) / 3600)}"
       for peak in PEAKS.values())]
    for encoder in ENCODERS for name, count in IMAGES.items()
  ]  # fmt: skip
  disk = [
    [encoder, f"{ENCODERS[encoder][1]:,}",
     *(scaled(index_bytes(ENCODERS[encoder][1], effects=kind) * n) + "B"
       for kind in (2, 1) for n in (1, *IMAGES.values()))]
    for encoder in ENCODERS if "224" not in encoder or "50" in encoder
  ]  # fmt: skip
  reading = [
    [name, scaled(count * JPEG) + "B", f"{hours(count / DECODED / 3600)}",
     f"{hours(count * passes / CPU_RATE / 3600)}"]
    for name, count in IMAGES.items()
  ]  # fmt: skip
  return {
    "work": table(["images, encoder", "passes", "FLOP", *(f"{p}, hours" for p in PEAKS)], work),
    "disk": table(
      ["encoder", "axes", "float16, an image", *IMAGES, "int8, an image", *IMAGES], disk
    ),
    "reading": table(
      [
        "images",
        "bytes of JPEG",
        "hours of one core to decode",
        "hours of two CPU cores, Lite0 112",
      ],
      reading,
    ),
  }


def fill(text, parts):
  """The page with its tables."""
  for name, part in parts.items():
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    head, _, rest = text.partition(begin)
    text = f"{head}{begin}\n{part}\n{end}{rest.partition(end)[2]}"
  return text


if __name__ == "__main__":
  PAGE.write_text(fill(PAGE.read_text(), tables()))
