"""Job: draws a data set of outfits whose attributes and reasons to match are known to the pixel."""

from typing import Any

import tqdm

from sane_jax.datasets import outfits_drawn
from sane_jax.runs import processes
from sane_jax.runs.settings import check_range


def check(config: Any) -> None:
  """Raises ValueError for settings that can't be; reads no data and writes nothing."""
  settings = config.outfits
  outfits_drawn.check_numbers(settings.num_outfits, settings.seed, settings.missing)
  check_range("outfits.processes", settings.processes or 1, 1)


def run(config: Any) -> None:
  """Writes a data set in Polyvore Outfits' format, and the truth beside it; see the config.

  The first process alone does.
  """
  settings = config.outfits
  if not processes.is_first():
    return
  with tqdm.tqdm(desc="drawing", unit="item", disable=None) as bar:

    def show(done: int, total: int) -> None:
      bar.total = total
      bar.update(done - bar.n)

    drawn = outfits_drawn.draw_outfits(
      settings.folder, num_outfits=tuple(settings.num_outfits), seed=settings.seed,
      missing=settings.missing, processes=settings.processes, on_progress=show,
    )  # fmt: skip
  print(f"draw_outfits: {'written to' if drawn else 'up to date in'} {settings.folder}")
