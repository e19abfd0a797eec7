"""What a training step computes on each device, and what devices send each other, from the HLO.

  python benchmarks/collectives.py [--config=configs/synthetic.py] [--devices=1,2,4,8]

Compiles the step of train_similarity for each number of devices and counts the operands of its
collectives; nothing is run. Prints a table in Markdown.
"""

import argparse
import collections
import pathlib
import re
import runpy
import sys

import jax
import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "u8": 1, "f64": 8, "s64": 8}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")


def collectives(hlo: str) -> tuple[collections.Counter[str], collections.Counter[str]]:
  """Bytes of the results, and number, of each kind of collective in a compiled program's text."""
  sizes, counts = collections.Counter(), collections.Counter()
  for line in hlo.splitlines():
    found = re.search(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(", line)
    if found is None:
      continue
    counts[found[2]] += 1
    for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", found[1]):
      sizes[found[2]] += BYTES.get(kind, 0) * int(np.prod([int(d) for d in dims.split(",") if d]))
  return sizes, counts


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--config", default="configs/synthetic.py")
  parser.add_argument("--devices", default="1,2,4,8")
  options = parser.parse_args()
  counts = [int(n) for n in options.devices.split(",")]
  jax.config.update("jax_num_cpu_devices", max(counts))
  sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
  import tiny_data

  from sane_jax.training import sharding, similarity

  config = runpy.run_path(str(ROOT / options.config))["get_config"]()
  train, settings = tiny_data.collection("train"), config.similarity
  batch = settings.groups_per_batch * settings.images_per_group
  print("| devices | images a device | GFLOP a device | of 1 / devices | gradients | all-reduces |"
        " sent, MB | all-gathers | sent, MB |")  # fmt: skip
  print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
  first = None
  for count in counts:
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:count]), (sharding.AXIS,))
    begun = similarity.start(settings, config.key, train, mesh)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(begun.variables["params"]))
    shapes = {
      "images": ((batch, settings.image_size, settings.image_size, 3), np.uint8),
      **{name: ((batch,), np.int32) for name in ("types", "rows", "groups")},
    }  # fmt: skip
    if begun.titles:
      shapes["words"] = ((batch, 1024), np.float32)
    arrays = {
      name: jax.ShapeDtypeStruct(shape, kind, sharding=sharding.split(mesh))
      for name, (shape, kind) in shapes.items()
    }
    compiled = begun.update.lower(begun.state, arrays, np.int32(1)).compile()
    costs = compiled.cost_analysis()
    flops = (costs[0] if isinstance(costs, list) else costs)["flops"]
    first = first or flops * count
    sizes, numbers = collectives(compiled.as_text())
    print(
      f"| {count} | {batch // count} | {flops / 1e9:.3f} | {first / count / flops:.3f}"
      f" | {size / 1e6:.3f} MB | {numbers['all-reduce']} | {sizes['all-reduce'] / 1e6:.3f}"
      f" | {numbers['all-gather']} | {sizes['all-gather'] / 1e6:.3f} |"
    )
    others = {k: f"{sizes[k] / 1e6:.3f} MB" for k in KINDS[2:] if numbers[k]}
    if others:
      print(f"  beside: {others}", file=sys.stderr)


if __name__ == "__main__":
  main()
