"""A split of a data set by the data set's name."""

import importlib
import os
from collections.abc import Mapping
from typing import Any

import tqdm

from sane_jax.datasets.collection import Collection

DATASETS = ("polyvore_outfits", "awa2")  # packages with a function `load`


def load_split(data: Mapping[str, Any], workdir: str | os.PathLike[str], split: str) -> Collection:
  """One split, prepared on the way if need be, with a bar.

  Args:
    data: `name`: one of DATASETS ('awa2' reads any folder in that layout); `folder`: what was
      downloaded; `prepared`: where the checked records are kept, '' for a folder in `workdir`; the
      rest are options of the data set's own `load`.
    workdir: of the run.
    split: 'train', 'valid' or 'test'.

  Raises:
    ValueError: no such data set; whatever is wrong with its files.
  """
  options = dict(data)
  name, folder, prepared = (options.pop(field) for field in ("name", "folder", "prepared"))
  if name not in DATASETS:
    raise ValueError(f"no data set {name!r}; there is {', '.join(DATASETS)}")
  with tqdm.tqdm(desc=f"preparing {name}", unit="image", disable=None, leave=False) as bar:

    def show(done: int, total: int) -> None:
      bar.total = total
      bar.update(done - bar.n)

    collection = importlib.import_module(f"sane_jax.datasets.{name}").load(
      split, manual_dir=folder, prepared_dir=prepared or os.path.join(workdir, "prepared"),
      on_progress=show, **options,
    )  # fmt: skip
  for line in collection.left_out:
    print(f"{collection.name}: left out: {line}")
  return collection
