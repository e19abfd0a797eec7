"""A split of a data set by the data set's name."""

import importlib
import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tqdm

from sane_jax.datasets.collection import Collection, Pair
from sane_jax.runs import files, settings

DATASETS = ("polyvore_outfits", "awa2")  # packages with a function `load`


def check_data(data: Mapping[str, Any]) -> None:
  """Raises ValueError for a data set or a setting of one that there is not; reads nothing."""
  settings.check_choice("data.name", data["name"], DATASETS)
  if "setting" in data:
    settings.check_choice("data.setting", data["setting"], ("nondisjoint", "disjoint"))


def load_split(data: Mapping[str, Any], workdir: str | os.PathLike[str], split: str) -> Collection:
  """One split, prepared on the way if need be, with a bar.

  Args:
    data: `name`: one of DATASETS ('awa2' reads any folder in that layout); `folder`: what was
      downloaded; `prepared`: where the checked records are kept, '' for a folder in `workdir`; the
      rest are options of the data set's own `load`, but for `attributes_from`: a folder that
      discover_attributes wrote, whose attributes take the place of the data set's.
    workdir: of the run.
    split: 'train', 'valid' or 'test'.

  Raises:
    ValueError: no such data set; whatever is wrong with its files.
  """
  options = dict(data)
  name, folder, prepared = (options.pop(field) for field in ("name", "folder", "prepared"))
  others = options.pop("attributes_from", "")
  check_data(data)
  with tqdm.tqdm(desc=f"preparing {name}", unit="image", disable=None, leave=False) as bar:

    def show(done: int, total: int) -> None:
      bar.total = total
      bar.update(done - bar.n)

    collection = importlib.import_module(f"sane_jax.datasets.{name}").load(
      split, manual_dir=folder, prepared_dir=prepared or os.path.join(workdir, "prepared"),
      on_progress=show, **options,
    )  # fmt: skip
  for line in collection.left_out:
    print(f"{collection.name}: left out: {files.printable(line)}")
  return replace_attributes(collection, others, split) if others else collection


def replace_attributes(
  collection: Collection, folder: str | os.PathLike[str], split: str
) -> Collection:
  """The collection with the attributes that discover_attributes found in place of its own.

  Its pairs are those that were there then: they were measured, and a new draw would take others,
  for it asks which images have an attribute.

  Raises:
    ValueError: there are none in `folder`, or they are of other images.
  """
  path = files.at(folder) / "labels.npz"
  try:
    with np.load(io.BytesIO(files.read_bytes(path)), allow_pickle=False) as arrays:
      names, ids = arrays["names"], arrays[f"{split}_ids"]
      labels = arrays[f"{split}_labels"]
      pairs = arrays.get(f"{split}_pairs", ())
  except Exception as error:  # on damaged files zipfile and NumPy raise nearly anything
    raise ValueError(
      f"--config.data.attributes_from={folder} holds no attributes that were discovered ({error});"
      " run --config.job=discover_attributes first"
    ) from error
  if tuple(ids) != collection.ids:
    raise ValueError(
      f"the attributes in {folder} are of {len(ids)} other images than {collection.name}'s"
      f" {len(collection.ids)}: discover them on it with --config.job=discover_attributes"
    )
  return collection._replace(
    attribute_names=tuple(map(str, names)),
    attributes=tuple(np.flatnonzero(row).astype(np.int32) for row in labels),
    pairs=tuple(Pair(*map(int, pair)) for pair in pairs) or collection.pairs,
  )
