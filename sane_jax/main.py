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
  "config", None, "Config file, such as configs/photos.py.", lock_config=True
)
flags.mark_flag_as_required("config")


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


def run() -> None:
  """Entry point; a wrong setting is a sentence, not a stack trace."""
  try:
    app.run(main, flags_parser=_parse)
  except KeyboardInterrupt:
    sys.exit(130)


def _parse(argv: Sequence[str]) -> Sequence[str]:
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError, TypeError, ValueError, FileNotFoundError) as error:
    text = str(error).strip('"')
    sys.exit(
      f"config: {text}\nThe fields of a config are listed, each with a comment, in its file."
    )


if __name__ == "__main__":
  run()
