"""Runs one job from a config file: `python -m sane_jax.main --config=configs/photos.py`."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from sane_jax import benchmark, evaluate, explain, hosts

JOBS: dict[str, Callable[[Any], None]] = {
  "explain": explain.run,
  "evaluate": evaluate.run,
  "benchmark": benchmark.run,
}

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "Config file, such as configs/photos.py; --config.name=value sets its fields.",
  lock_config=True,
)


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"what is {argv[1]!r}? Settings are given as --config.name=value")
  config = _CONFIG.value
  if config.get("job") not in JOBS:
    raise app.UsageError(f"no job {config.get('job')!r}; there is {', '.join(JOBS)}")
  logging.set_verbosity(logging.WARNING)
  hosts.cache_compilations()
  try:
    JOBS[config.job](config)
  except (ValueError, TypeError, OSError) as error:
    if flags.FLAGS.verbosity > 0:
      raise  # --verbosity=1 shows where
    sys.exit(f"{config.job}: {error}")
  except KeyboardInterrupt:
    sys.exit(f"{config.job}: interrupted; the same command goes on from here")


def _parse(argv: Sequence[str]) -> Sequence[str]:
  """Flags; a wrong setting or a missing config file is a sentence, not a stack trace."""
  try:
    rest = flags.FLAGS(argv)
    if _CONFIG.value is None:
      raise ValueError("give a config: --config=configs/photos.py")
    _CONFIG.value.get("job")  # a file that did not load says so at the first use
  except Exception as error:
    # ml_collections raises what the config file raised, and KeyError, AttributeError, IOError.
    text = " ".join(str(part) for part in error.args if part).replace("\n", " ")
    sys.exit(f"config: {text}")
  return rest


def run() -> None:
  """Entry point."""
  try:
    app.run(main, flags_parser=_parse)
  except KeyboardInterrupt:
    sys.exit(130)


if __name__ == "__main__":
  run()
