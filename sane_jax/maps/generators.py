"""Generators by name: mask designs and learned masks, with the fields that a config may set."""

import dataclasses
import json
import re
from typing import Any

import numpy as np

from sane_jax.ops import designs, learned_mask

DESIGNS = {**designs.DESIGNS, "learned_mask": learned_mask.LearnedMask}
SMOOTH = ("rise", "sliding_window", "learned_mask")  # maps are interpolated between cells
# With a tolerance, at most this many times the design's own number of masks.
MOST = 8


def make_design(design: Any, num_masks: int | None = None, **options: Any) -> Any:
  """The design of that name, or that design, with `num_masks` and other fields set.

  Raises:
    ValueError: unknown name or field, a number of masks that the design can't have.
  """
  made: Any = DESIGNS[design]() if isinstance(design, str) and design in DESIGNS else design
  if type(made) not in DESIGNS.values():
    raise ValueError(
      f"no design {design!r}; there is {', '.join(DESIGNS)}, or an object such as sane_jax.Rise()"
    )
  name, known = name_of(made), [field.name for field in dataclasses.fields(made)]
  if num_masks is not None:
    options["num_masks"] = num_masks
  for field, value in options.items():
    if field not in known:
      raise ValueError(f"{name} has no {field!r}; it has {', '.join(known)}. Leave {field} out")
    if isinstance(value, list):
      options[field] = tuple(value)
  _check_grid(options.get("grid"))
  try:
    return dataclasses.replace(made, **options)
  except (TypeError, OverflowError) as error:  # a comparison of what can't be compared
    raise ValueError(f"{name} can't have {options}: {error}") from error


def _check_grid(grid: Any) -> None:
  """Raises ValueError unless it is rows and columns, or None."""
  if grid is None:
    return
  two = isinstance(grid, tuple) and len(grid) == 2
  if not two or not all(isinstance(n, int | np.integer) and 1 <= n <= 255 for n in grid):
    raise ValueError(f"grid is rows and columns, each from 1 to 255, as (8, 8); given {grid!r}")


def name_of(design: Any) -> str:
  """What `make_design` calls it."""
  return next(name for name, cls in DESIGNS.items() if cls is type(design))


def stoppable(design: Any, tolerance: float, num_masks: int | None, num_fills: int = 1) -> Any:
  """A design that may stop after any of its replicates.

  Where whole replicates take turns between `num_fills` fills, it has as many of each.

  Raises:
    ValueError: a tolerance out of range, or a design that has no replicates.
  """
  if not tolerance > 0:
    raise ValueError(
      f"tolerance is a share of the map's largest value, such as 0.1; given {tolerance}"
    )
  if not hasattr(design, "replicate_size") or design.num_fixed == design.num_masks:
    raise ValueError(
      f"{name_of(design)} draws no masks, so it has no standard error to stop by; leave tolerance"
      " out, or take design='hadamard' or 'rise'"
    )
  if num_masks is None:
    design = dataclasses.replace(
      design, num_masks=design.num_fixed + MOST * (design.num_masks - design.num_fixed)
    )
  if design.num_masks < design.num_fixed + 2 * design.replicate_size:
    raise ValueError(
      f"tolerance needs two replicates or more, of {design.replicate_size} masks each; given"
      f" num_masks={design.num_masks}"
    )
  if num_fills > 1 and isinstance(design, designs.Hadamard):
    turn = num_fills * design.replicate_size
    if design.num_masks >= 2 * turn:
      design = dataclasses.replace(design, num_masks=design.num_masks // turn * turn)
  return design


def parse_generator(spec: str) -> tuple[str, dict[str, Any]]:
  """'hadamard:num_masks=128,smoothing=0.0' as a name and fields."""
  name, _, fields = spec.partition(":")
  options: dict[str, Any] = {}
  for field in filter(None, re.split(r",(?=\w+=)", fields)):  # commas within [4,4] stay
    key, _, value = field.partition("=")
    try:
      options[key] = json.loads(value.replace("True", "true").replace("False", "false"))
    except json.JSONDecodeError:
      if re.fullmatch(r"[a-z_]+(\+[a-z_]+)*", value):  # a name, as in fill=mean+blur
        options[key] = value
        continue
      raise ValueError(
        f"{field!r} in {spec!r} is no field=value; as in rise:num_masks=500"
      ) from None
  return name, options
