"""The device mesh, and where arrays live on it. The mesh is built here and nowhere else.

Two axes: `data` splits a batch's rows, `fsdp` splits parameters and optimizer moments as well as rows. A laptop has a mesh of one device.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

ROWS = PartitionSpec(('data', 'fsdp'))


def make_mesh(fsdp: int) -> Mesh:
  """A mesh of all devices, [devices / fsdp, fsdp]. Raises ValueError when the number of devices is no multiple of `fsdp`."""
  count = jax.device_count()
  if fsdp < 1 or count % fsdp:
    raise ValueError(f'mesh.fsdp = {fsdp} does not divide the {count} devices found')
  return jax.make_mesh((count // fsdp, fsdp), ('data', 'fsdp'), axis_types=(AxisType.Auto, AxisType.Auto))


def shard_state(mesh: Mesh, tree: Any) -> Any:
  """The sharding of each leaf of parameters or optimizer state: its largest axis that `fsdp` divides is split, small leaves are copied.

  `tree` holds arrays or jax.ShapeDtypeStruct; returns a tree of NamedSharding.
  """
  size = mesh.shape['fsdp']

  def place(leaf: Any) -> NamedSharding:
    axes = [axis for axis in range(len(leaf.shape)) if leaf.shape[axis] % size == 0]
    if size == 1 or len(leaf.shape) < 2 or not axes:
      return NamedSharding(mesh, PartitionSpec())
    largest = max(axes, key=lambda axis: leaf.shape[axis])
    return NamedSharding(mesh, PartitionSpec(*('fsdp' if axis == largest else None for axis in range(len(leaf.shape)))))

  return jax.tree.map(place, tree)


def put_state(mesh: Mesh, tree: Any) -> Any:
  """Arrays placed as `shard_state` says."""
  return jax.device_put(tree, shard_state(mesh, tree))


def put_rows(mesh: Mesh, batch: Any) -> Any:
  """A batch's arrays (a tree, or a dataclass's fields as a dict) with their first axis split over all devices.

  Raises ValueError when the number of rows is no multiple of the number of devices.
  """
  devices = mesh.size
  rows = jax.tree.leaves(batch)[0].shape[0]
  if rows % devices:
    raise ValueError(f'a batch of {rows} rows cannot be split over {devices} devices; use a multiple of {devices}')
  return jax.device_put(batch, NamedSharding(mesh, ROWS))
