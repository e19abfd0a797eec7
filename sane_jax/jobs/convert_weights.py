"""Job: turns a torch checkpoint of a ResNet or of the paper's models into a model file."""

from typing import Any

import jax

from sane_jax.models import weights
from sane_jax.runs import files
from sane_jax.runs.settings import check_choice


def check(config: Any) -> None:
  """Raises ValueError for settings that can't be; reads no data and writes nothing."""
  source, target = config.convert.source, config.convert.target
  if not source or not target:
    raise ValueError(
      "give the checkpoint with --config.convert.source=FILE.pth (or .pth.tar, .safetensors) and"
      " the file to write with --config.convert.target=FILE.safetensors"
    )
  if not target.endswith(".safetensors"):
    raise ValueError(
      f"--config.convert.target={target}: a name that ends in .safetensors is needed"
    )
  check_choice("convert.kind", config.convert.kind, weights.CONVERSIONS)


def run(config: Any) -> None:
  """Reads `convert.source` and writes `convert.target`, whole or not at all.

  Every tensor is accounted for: used, or known and not needed with the reason; anything else, on
  either side, is an error that lists it all.
  """
  check(config)
  source, target = config.convert.source, config.convert.target
  path = files.at(target)
  if path.exists() and files.same_file(path, files.at(source)):
    raise ValueError(f"--config.convert.target={target} is the source itself; give another name")
  conversion = weights.convert(source, config.convert.kind)
  data = weights.to_bytes(conversion.variables, conversion.description)
  if jax.process_index() == 0:
    files.write_bytes(path, data)
    print(f"{weights.summary(source, conversion)}\nWrote {path} ({len(data) / 1e6:.1f} MB)")
