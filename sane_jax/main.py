"""Runs one job from a config file: `python -m sane_jax.main --config=configs/photos.py`."""

import importlib
import logging as python_logging
import sys
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from sane_jax.runs import files, hosts, processes

# Each is a module with run(config), imported when it is asked for: one job does not wait for the
# libraries of another.
JOBS = (
  "draw_outfits",
  "convert_weights",
  "train_similarity",
  "build_index",
  "train_attributes",
  "discover_attributes",
  "fit_concepts",
  "tune_ranking",
  "explain",
  "explain_matches",
  "compare_models",
  "serve",
  "compare_generators",
  "evaluate",
  "simulate_study",
  "study",
  "plan_study",
  "study_results",
  "benchmark",
  "benchmark_input",
)

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "Config file, such as configs/photos.py; --config.name=value sets its fields.",
  lock_config=True,
)
_COORDINATOR = flags.DEFINE_string("coordinator", "", "host:port of the first of N processes.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 1, "How many processes run this job.")
_PROCESS_ID = flags.DEFINE_integer("process_id", 0, "Which of them this is, from 0.")


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"what is {argv[1]!r}? Settings are given as --config.name=value")
  config = _CONFIG.value
  jobs = tuple(config.get("jobs", ())) if config.get("job") == "all" else (config.get("job"),)
  for name in jobs or (None,):
    if name not in JOBS:
      known = [*JOBS, *(["all"] if "jobs" in config else [])]
      raise app.UsageError(f"no job {name!r}; there is {', '.join(known)}")
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)
  job = "main"
  processes.hear_interruptions()
  hosts.use_all_cores()  # before anything starts JAX's back end
  try:
    hosts.join_processes(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    hosts.cache_compilations()
    if who := hosts.speaker():
      form = python_logging.Formatter(f"{who}%(levelname)s %(name)s: %(message)s")
      logging.get_absl_handler().setFormatter(form)
    for job in jobs:
      with processes.job(job):
        importlib.import_module(f"sane_jax.jobs.{job}").run(config)
  except (ValueError, TypeError, OSError) as error:
    if flags.FLAGS.verbosity > 0:
      raise  # --verbosity=1 shows where
    sys.exit(f"{job}: {files.printable(str(error))}")
  except KeyboardInterrupt:
    sys.exit(f"{job}: interrupted; the same command goes on from here")


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
    sys.exit(f"config: {files.printable(text)}")
  return rest


def run() -> None:
  """Entry point."""
  try:
    app.run(main, flags_parser=_parse)
  except KeyboardInterrupt:
    sys.exit(130)


if __name__ == "__main__":
  run()
