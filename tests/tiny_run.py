"""Jobs of configs/synthetic.py on tiny_data: `python tests/tiny_run.py WORKDIR JOBS FIELD=VALUE`.

Fields are those of the config, such as similarity.num_steps=10.
"""

import ast
import os
import pathlib
import runpy
import subprocess
import sys
from unittest import mock

ROOT = pathlib.Path(__file__).parents[1]
TRAIN = ("train_similarity", "build_index", "train_attributes")


def tiny_config(workdir, **fields):
  """The synthetic config for pictures of 32 pixels and networks of 8 channels."""
  config = runpy.run_path(str(ROOT / "configs/synthetic.py"))["get_config"]()
  config.workdir = str(workdir)
  config.cache_gib = 0.01
  small = {"image_size": 32, "width": 8, "log_every_steps": 5}
  for section in (config.similarity, config.attributes):
    section.update(small)
  config.similarity.update(
    groups_per_batch=8, num_steps=30, warmup_steps=3, eval_every_steps=10, save_every_steps=10
  )
  config.index.update(num_masks=128, max_queries=70)
  config.pairs.update(num_valid=12, num_test=12)
  config.attributes.update(batch_size=16, num_epochs=3, truth="")
  for name, value in fields.items():
    section, _, field = name.replace("__", ".").rpartition(".")
    (config[section] if section else config)[field] = value
  return config


def tiny_split(data, workdir, split):
  """Stands in for `load.load_split`."""
  import tiny_data

  return tiny_data.collection(split, groups=60, seed=("train", "valid", "test").index(split))


def run_jobs(config, *jobs):
  """Runs jobs on tiny data."""
  import importlib

  from sane_jax.datasets import load
  from sane_jax.runs import processes

  with mock.patch.object(load, "load_split", tiny_split):
    for job in jobs:
      with processes.job(job):
        importlib.import_module(f"sane_jax.jobs.{job}").run(config)


def start(workdir, jobs, *fields, devices=2):
  """A process that runs the jobs; what it prints is in its stdout."""
  environment = {
    **os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT),
    "PYTHONFAULTHANDLER": "1",
  }  # fmt: skip
  return subprocess.Popen(
    [sys.executable, str(ROOT / "tests/tiny_run.py"), str(workdir), ",".join(jobs), *fields],
    env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
  )  # fmt: skip


if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))
  sys.path.insert(0, str(ROOT / "tests"))
  from sane_jax.runs import hosts, processes

  processes.hear_interruptions()
  workdir, jobs, *rest = sys.argv[1:]
  settings = dict(item.split("=", 1) for item in rest)
  if "coordinator" in settings:
    hosts.join_processes(
      settings.pop("coordinator"), int(settings.pop("processes")), int(settings.pop("process"))
    )
  hosts.cache_compilations()
  values = {name: ast.literal_eval(value) for name, value in settings.items()}
  run_jobs(tiny_config(workdir, **values), *jobs.split(","))
