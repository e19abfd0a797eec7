"""Settings on the command line: of wrong types, out of range, unknown, with blanks and quotes."""

import contextlib
import importlib
import io
import pathlib
import runpy
import sys
from typing import Any

import numpy as np
from absl import flags
from fuzz import mutate
from ml_collections import config_flags
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]
MODEL = """
import jax.numpy as jnp
import sane_jax

def make(image_size):
  def embed(params, images):
    return jnp.concatenate([images.mean((1, 2)), jnp.full((len(images), 1), 0.5)], axis=1)
  return sane_jax.from_jax(embed, None, image_size=image_size, name="tiny")
"""
_VALUES = (
  "", "nan", "inf", "-inf", "-1", "0", "1e400", "1.5", "None", "True", "()", "(0,0)", "(-1,2)",
  "(1,)", "(8,8,8)", "('a',)", "(nan,nan)", "(0.5,0.5,0.5,-0.5)", "[1]", "{}", "x", "rise", "lime",
  "both", "blur", "no such thing", "hadamard:x=1", "../..", "/dev/zero", "os:system", "a.b:c", ":",
  "int8", "float64", "3", "7",
)  # fmt: skip


def _folder(folder: pathlib.Path) -> None:
  if (folder / "fuzz_tiny_model.py").exists():
    return
  (folder / "fuzz_tiny_model.py").write_text(MODEL)
  for name in ("a b.png", 'c"d.png'):
    colours = np.random.default_rng(len(name)).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(colours).save(folder / name)
  sys.path.insert(0, str(folder))


def _base(folder: pathlib.Path) -> dict[str, Any]:
  return {
    "model": "fuzz_tiny_model:make", "image_size": 16, "num_masks": 32, "metrics": False,
    "grid": "(4,4)", "query": folder / "a b.png", "reference": folder / 'c"d.png',
    "workdir": folder / "w d",
  }  # fmt: skip


def prepare(rng: np.random.Generator, folder: pathlib.Path) -> list[str]:
  _folder(folder)
  chosen = _base(folder)
  config = runpy.run_path(str(ROOT / "configs/photos.py"))["get_config"]()
  fields = [f for f in config if f not in ("job", "workdir", "photos")] + [
    "no_such_field",
    "grid.x",
  ]
  for _ in range(rng.integers(1, 3)):
    value = mutate.text(rng) if rng.random() < 0.3 else str(rng.choice(_VALUES))
    chosen[str(rng.choice(fields))] = value
  return [f"--config.{name}={value}" for name, value in chosen.items()]


def valid(folder: pathlib.Path) -> list[list[str]]:
  _folder(folder)
  return [[f"--config.{name}={value}" for name, value in _base(folder).items()]]


def read(arguments: list[str]) -> None:
  """As main does it: errors of flags are sentences there, and so are these of jobs."""
  values = flags.FlagValues()
  config = runpy.run_path(str(ROOT / "configs/photos.py"))["get_config"]()
  whole = ["main", *arguments]
  try:
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=whole)
    values(whole)
  except Exception as error:  # main._parse takes all of them
    raise ValueError(f"config: {error.args}") from error
  quiet = io.StringIO()
  try:
    with contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet):
      importlib.import_module("sane_jax.jobs.explain").run(values.config)
  except TypeError as error:  # main takes these, too
    raise ValueError(str(error)) from error
