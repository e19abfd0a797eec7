"""One mesh over all devices of all processes; batches are split over it, parameters are not."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sane_jax.datasets import pipeline

AXIS = "batch"


def batch_mesh() -> Mesh:
  """All devices of all processes along one axis."""
  return Mesh(np.asarray(jax.devices()), (AXIS,), axis_types=(AxisType.Auto,))


def whole(mesh: Mesh) -> NamedSharding:
  """The sharding of what every device has a copy of."""
  return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
  """The sharding of arrays whose first axis is shared out."""
  return NamedSharding(mesh, PartitionSpec(AXIS))


def replicate(mesh: Mesh, tree: Any) -> Any:
  """The same arrays on every device; each process gives equal ones."""

  # By callback, since device_put of what other processes own compares all of it over the network.
  def place(array):
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, whole(mesh), lambda index: host[index])

  return jax.tree.map(place, tree)


def shard(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
  """A global batch from this process's part of it: rows in the order of the processes."""
  return {
    name: jax.make_array_from_process_local_data(split(mesh), np.asarray(part))
    for name, part in batch.items()
  }


def check_batch(mesh: Mesh, size: int, field: str) -> None:
  """Raises ValueError unless the devices can share a batch of `size` images evenly."""
  if size < 1 or size % mesh.size:
    least = max(mesh.size, -(-size // mesh.size) * mesh.size)
    raise ValueError(
      f"--config.{field} makes batches of {size} images, which {mesh.size} devices can't share"
      f" evenly; {least} would do"
    )


class DeviceBatches:
  """An iterator of this process's parts of batches, as one of global batches on the devices."""

  def __init__(self, mesh: Mesh, batches: Any):
    self._mesh, self._batches = mesh, batches

  def __iter__(self) -> "DeviceBatches":
    return self

  def __next__(self) -> dict[str, jax.Array]:
    return shard(self._mesh, next(self._batches))

  def get_state(self) -> Any:
    """The position in the data, JSON."""
    return self._batches.get_state()

  def set_state(self, state: Any) -> None:
    """Goes to a position that `get_state` gave, on however many processes."""
    self._batches.set_state(state)


def map_images(
  mesh: Mesh, function: Callable[..., Any], variables: Any, images: pipeline.DecodedImages,
  rows: np.ndarray, each: int, num_threads: int,
) -> Any:  # fmt: skip
  """function(variables, images [b s s 3]) of all rows, in order, by all devices of all processes.

  Args:
    function: jitted, with out_shardings=whole(mesh).
    each: images a device at a time.

  Returns:
    The function's tree with NumPy arrays [n ...], on every process.
  """
  batches = pipeline.in_order(
    images, rows, batch_size=each * mesh.size, process=jax.process_index(),
    processes=jax.process_count(), num_threads=num_threads,
  )  # fmt: skip
  parts = [
    jax.device_get(function(variables, shard(mesh, {"images": pixels})["images"]))
    for pixels, _ in batches
  ]
  return jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(rows)], *parts)
