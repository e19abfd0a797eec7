"""One mesh over all devices of all processes; batches are split over it, parameters are not."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

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
