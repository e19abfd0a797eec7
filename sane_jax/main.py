"""Runs one job from a config file: `python -m sane_jax.main --config=configs/photos.py`."""

import contextlib
import importlib
import logging as python_logging
import os
import pathlib
import re
import runpy
import sys
from collections.abc import Sequence
from typing import Any

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from sane_jax.runs import files, folder, hosts, processes, settings

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

_USAGE = """Why do two images match? Explains a similarity model's scores.

  sane_jax explain A.jpg B.jpg             why A matches B: a page
  sane_jax explain A.jpg B.jpg C.jpg       why B rather than C
  sane_jax serve FOLDER                    measures a folder of photos, and shows it in a browser
  sane_jax JOB --config=configs/X.py       runs a job; `all` runs those of the config, in order
  sane_jax --help --config=configs/X.py    the settings of a config

--out=FOLDER is where results go; --config.NAME=VALUE sets a field of the config. `python -m
sane_jax` is the same command, and `python -m sane_jax.main --config=configs/X.py` runs the job
that the config names. --verbosity=1 shows where an error arose.
"""
_PHOTOS = "configs/photos.py"

_COORDINATOR = flags.DEFINE_string("coordinator", "", "host:port of the first of N processes.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 1, "How many processes run this job.")
_PROCESS_ID = flags.DEFINE_integer("process_id", 0, "Which of them this is, from 0.")


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"what is {argv[1]!r}? Settings are given as --config.name=value")
  config: Any = flags.FLAGS["config"].value
  job = config.get("job") or ""
  jobs = tuple(config.get("jobs", ())) if job == "all" else tuple(job.split(","))
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
    # All are checked before the first begins: a wrong setting of the last costs no training.
    runs = {}
    for job in jobs:
      module = importlib.import_module(f"sane_jax.jobs.{job}")
      module.check(config)
      runs[job] = module.run
    for job, start in runs.items():
      with processes.job(job), _one_writer(job, config):
        start(config)
        processes.wait_for_all(f"{job}: written")
  except (ValueError, TypeError, OSError) as error:
    if flags.FLAGS.verbosity > 0:
      raise  # --verbosity=1 shows where
    sys.exit(f"{job}: {files.printable(str(error))}")
  except KeyboardInterrupt:
    sys.exit(f"{job}: interrupted; the same command goes on from here")


# Jobs that write what their workdir has one of; of all others several may run at a time.
_WRITERS = (
  "train_similarity", "build_index", "train_attributes", "discover_attributes", "fit_concepts",
  "tune_ranking", "evaluate", "explain_matches", "simulate_study", "explain", "compare_models",
  "compare_generators",
)  # fmt: skip


def _one_writer(job: str, config: Any) -> contextlib.AbstractContextManager[None]:
  """Within, no other run writes into this one's work folder; of several processes, the first asks.

  Raises:
    OSError: another one does, which is named.
  """
  if job not in _WRITERS or not processes.is_first():
    return contextlib.nullcontext()
  return files.one_writer(folder.writable_folder(files.at(config.workdir)))


# --- the command line -----------------------------------------------------------------------------


def _expand(argv: Sequence[str]) -> list[str]:
  """`explain A B`, `serve FOLDER`, `JOB` and --out as settings of a config.

  Raises:
    ValueError: anything else; says what would do.
  """
  program, *rest = argv
  text = "\0".join(rest)
  text = re.sub(r"(?<![^\0])(--?(?:config|out))\0(?!-)", r"\1=", text)  # --out FOLDER
  rest = re.sub(r"(?<![^\0])--?out=", "--config.workdir=", text).split("\0")
  if rest[0].startswith("-") or not rest[0]:
    return [program, *filter(None, rest)]
  command, *rest = rest
  if command not in (*JOBS, "all"):
    raise ValueError(
      f"no command {command!r}; there is explain PHOTO PHOTO, serve FOLDER, and each of"
      f" {', '.join(JOBS)}, all with --config=FILE"
    )
  # A word after --config.name is its value, but for those the user gave the other way round.
  words = [a for before, a in zip([command, *rest], rest, strict=False)
           if not a.startswith("-") and not re.fullmatch(r"--?config\.[\w.]+", before)]  # fmt: skip
  options = [arg for arg in rest if arg not in words]
  has_config = any(re.match("--?config=", arg) for arg in options)
  given: list[str] = []
  if command == "explain" and len(words) in (2, 3):
    names = ("query", "reference", "contrast")
    given = [f"--config.{name}={path}" for name, path in zip(names, words, strict=False)]
  elif command == "serve" and len(words) == 1:
    # Each folder has an index of its own; build_index appends what is new there.
    home = re.sub(r"\W+", "_", os.path.abspath(words[0])).strip("_")
    given = [f"--config.photos={words[0]}", f"--config.workdir=runs/{home}"]
    command = "build_index,serve"
  elif words or not has_config:
    usage = {
      "explain": "explain takes two photos, or three: sane_jax explain A.jpg B.jpg [C.jpg]",
      "serve": "serve takes one folder of photos: sane_jax serve FOLDER",
    }
    raise ValueError(
      usage.get(command, f"{command} takes a config: sane_jax {command} --config=configs/X.py")
    )
  config = [] if has_config else [f"--config={_PHOTOS}"]
  return [program, *config, f"--config.job={command}", *given, *options]


def _help(argv: Sequence[str]) -> str:
  """Usage and jobs; with a config its fields, too."""
  lines = [_USAGE, "Jobs:"]
  says = settings.first_sentences(pathlib.Path(__file__).with_name("jobs"), JOBS)
  lines += [f"  {job:20} {text}" for job, text in says.items()]
  for arg in argv:
    if path := re.fullmatch("--?config=(.*)", arg):
      lines.append(f"\nSettings of {path[1]}, each with its default:")
      found = settings.find_config(path[1])
      comments, values = settings.read_comments(found), dict(settings.list_fields(_load(found)))
      for field in {**{name: 0 for name in comments if name in values}, **values}:
        shown = "" if values[field] is None else f"={values[field]!r}"
        lines.append(f"  --config.{field}{shown}\n      {comments.get(field, '')}")
  return "\n".join(lines)


def rename_fields(config: Any) -> None:
  """Gives fields of a config their present names, in place; says on stderr what was renamed."""
  for old, new in settings.RENAMED.items():
    section, _, field = old.rpartition(".")
    holder = config.get(section) if section else config
    if field not in (holder or ()) or hasattr(holder[field], "items"):
      continue
    print(f"config: the file sets {old}, which is called {new} now", file=sys.stderr)
    section, _, name = new.rpartition(".")
    with config.unlocked():
      if section and section not in config:
        config[section] = {}
      target = config[section] if section else config
      # A value goes where others may refer to; a new name takes what others refer to along.
      target[name] = holder[field] if name in target else holder.get_ref(field)
      del holder[field]


def _load(path: pathlib.Path) -> ml_collections.ConfigDict:
  """The config of a file, with the present names of fields."""
  found = runpy.run_path(str(path))
  if "get_config" not in found:
    raise ValueError(f"{path} has no function get_config() that gives a ConfigDict")
  config = found["get_config"]()
  rename_fields(config)
  return config


def _parse(argv: Sequence[str]) -> Sequence[str]:
  """Flags; a wrong setting or a missing config file is a sentence, not a stack trace."""
  try:
    argv = settings.rename_flags(_expand(argv))
    chosen = [arg for arg in argv if re.match("--?config=", arg)]
    if not chosen:
      raise ValueError("give a config: --config=configs/photos.py; --help lists jobs and settings")
    config = _load(settings.find_config(chosen[-1].partition("=")[2]))
    argv = [arg for arg in argv if arg not in chosen]
    config_flags.DEFINE_config_dict("config", config, sys_argv=list(argv))
    return flags.FLAGS(argv)
  except Exception as error:
    # ml_collections raises what the config file raised, and KeyError, AttributeError, IOError.
    text = " ".join(str(part) for part in error.args if part).replace("\n", " ")
    sys.exit(f"config: {files.printable(text)}")


def run() -> None:
  """Entry point."""
  try:
    if {"--help", "-help", "-h"} & set(sys.argv):
      print(_help(sys.argv))
      return
    app.run(main, flags_parser=_parse)
  except KeyboardInterrupt:
    sys.exit(130)


if __name__ == "__main__":
  run()
