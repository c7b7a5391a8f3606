"""The device mesh, and where arrays live on it. The mesh is built here and nowhere else.

Three axes, any of them 1: `data` splits a batch's rows; `fsdp` splits rows, and parameters and optimizer moments too; `tensor` splits the
products of each layer. Models name the logical axes of what they hold (models/partition.py), the config's `mesh.rules` say over which
axes of the mesh each is split. A laptop has a mesh of one device; the same code runs on it, on eight GPUs and on a pod.

On several hosts there are two layouts: that of the update, over all devices, and each host's own (`local_layout`), on which it samples.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mempi_jax.config import near

AXES = ('data', 'fsdp', 'tensor')


@dataclasses.dataclass(frozen=True)
class Layout:
  """A mesh, and over which of its axes each logical axis is split."""

  mesh: Mesh
  rules: Mapping[str, tuple[str, ...]]

  @property
  def rows(self) -> NamedSharding:
    """The sharding of an array whose first axis is a batch's rows."""
    return NamedSharding(self.mesh, PartitionSpec(self.rules['rows'] or None))

  @property
  def replicated(self) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(self.mesh, PartitionSpec())

  @property
  def row_parts(self) -> int:
    """Over how many parts rows are split."""
    return math.prod(self.mesh.shape[axis] for axis in self.rules['rows'])

  def sharding(self, names: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
    """The sharding of an array of parameters: each axis as the rule of its name says, where that divides it.

    Where it does not, the parts go to the largest axis that they do divide. Vectors are small, and every device holds them whole.
    """
    if len(shape) != len(names):
      raise ValueError(f'an array of shape {tuple(shape)} has {len(shape)} axes, found {len(names)} names: {names}')
    spec: list[tuple[str, ...] | None] = [None] * len(shape)
    if sum(name is not None for name in names) >= 2:
      for i, name in enumerate(names):
        axes = tuple(axis for axis in self.rules[name] if self.mesh.shape[axis] > 1) if name else ()
        if not axes or any(axis in part for part in spec if part for axis in axes):
          continue
        size = math.prod(self.mesh.shape[axis] for axis in axes)
        open_to = [j for j in (i, *np.argsort(shape)[::-1]) if spec[j] is None and shape[j] % size == 0 and names[j] is not None]
        # Another axis is taken only where its own rule leaves it whole.
        open_to = [j for j in open_to if j == i or not any(self.mesh.shape[axis] > 1 for axis in self.rules[names[j]])]
        if open_to:
          spec[open_to[0]] = axes
    return NamedSharding(self.mesh, PartitionSpec(*spec))

  @contextlib.contextmanager
  def use(self) -> Iterator[None]:
    """What is traced inside knows the mesh and the rules: `constrain` and `split_over` work."""
    with jax.set_mesh(self.mesh), nn.logical_axis_rules(tuple(self.rules.items())):
      yield


def make_layout(config: Any, devices: Sequence[jax.Device] | None = None) -> Layout:
  """The layout for a config's `mesh` group, over `devices`: all of them, of all hosts, unless some are named.

  Raises ValueError: axes whose product is not the number of devices, slices that do not divide, a rule that names no axis of the mesh.
  """
  count = jax.device_count() if devices is None else len(devices)
  shape = {axis: config[axis] for axis in AXES}
  if min(shape['fsdp'], shape['tensor']) < 1 or shape['data'] < 0:
    raise ValueError(f'mesh.data, mesh.fsdp, mesh.tensor are {tuple(shape.values())}: expected 1 or more of each; data 0 is what the others leave')
  rest = shape['fsdp'] * shape['tensor']
  if count % rest:
    raise ValueError(f'mesh.fsdp {shape["fsdp"]} x mesh.tensor {shape["tensor"]} does not divide the {count} devices found')
  shape['data'] = shape['data'] or count // rest
  if math.prod(shape.values()) != count:
    raise ValueError(f'mesh.data, mesh.fsdp, mesh.tensor {tuple(shape.values())} are {math.prod(shape.values())} devices, found {count}')
  if config.slices < 1 or shape['data'] % config.slices:
    raise ValueError(f'mesh.slices {config.slices} does not divide mesh.data {shape["data"]}: only data goes over the network between slices')
  rules = {}
  for name, text in config.rules.items():
    rules[name] = tuple(axis.strip() for axis in text.split(',') if axis.strip())
    for axis in rules[name]:
      if axis not in AXES:
        raise ValueError(f'mesh.rules.{name} is {text!r}: {axis!r} is no axis of the mesh ({", ".join(AXES)}){near(axis, AXES)}')
  return Layout(_mesh(tuple(shape.values()), config.slices, devices), rules)


def local_layout(layout: Layout) -> Layout:
  """The same rules on this host's devices alone, `data` split no further; on one host the layout as it is."""
  return host_layout(layout, jax.process_index())


def host_layout(layout: Layout, host: int = 0) -> Layout:
  """The same rules on the devices of one of the hosts alone; where there is one host, the layout as it is."""
  devices = sorted(layout.mesh.devices.flat, key=lambda device: device.id)
  own = [device for device in devices if device.process_index == host]
  return layout if len(own) == len(devices) else Layout(_local_mesh(layout, own), layout.rules)


def platform() -> str:
  """'cpu', 'gpu' or 'tpu': for what is traced now, the devices of the layout in use, else those that JAX found."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """x, split as the rules say of its axes' names; as it is where no layout is in use (`Layout.use`)."""
  if jax.sharding.get_abstract_mesh().size <= 1:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*(split_over(name, x.shape[i]) for i, name in enumerate(names))))


def split_over(name: str | None, size: int) -> tuple[str, ...] | None:
  """The axes of the mesh in use over which a logical axis of `size` is split; None: it is not."""
  rules, mesh = dict(nn.get_logical_axis_rules()), jax.sharding.get_abstract_mesh()
  axes = tuple(axis for axis in rules.get(name) or () if mesh.shape[axis] > 1) if name else ()
  return axes if axes and size % math.prod(mesh.shape[axis] for axis in axes) == 0 else None


# Placing.


def put(tree: Any, shardings: Any) -> Any:
  """Arrays (numpy's, or this host's), the same on all hosts, at their places: a device gets its part, and nothing else moves."""

  if jax.process_count() == 1:
    return jax.device_put(tree, shardings)

  def place(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
      return jax.device_put(leaf, sharding)
    return jax.make_array_from_callback(np.shape(leaf), sharding, lambda index: np.asarray(leaf[index]), dtype=leaf.dtype)

  return jax.tree.map(place, tree, shardings)


def check_rows(layout: Layout, rows: int, micro_batches: int = 1) -> None:
  """Raises ValueError when a batch of so many rows cannot be split over the devices, and into micro-batches."""
  parts = layout.row_parts
  if micro_batches < 1 or rows % (parts * micro_batches):
    raise ValueError(
      f'a batch of {rows} rows cannot be split into {micro_batches} micro-batches over {parts} devices (mesh.rules.rows): '
      f'use a multiple of {parts * max(micro_batches, 1)}'
    )


def to_host(tree: Any, layout: Layout, shardings: Any) -> Any:
  """Global arrays as arrays of this host's devices, in the `shardings` of its `local_layout`; no device ever holds more than its part.

  All hosts call this together. On one host the arrays stay as they are.
  """
  if jax.process_count() == 1:
    return tree
  # Over all devices, host by host: split within each as the local sharding says, the same on every host.
  by_host = [host_layout(layout, host).mesh.devices for host in range(jax.process_count())]
  everywhere = Mesh(np.stack(by_host), ('hosts', *AXES), axis_types=(AxisType.Auto,) * 4)
  spread = jax.tree.map(lambda sharding: NamedSharding(everywhere, sharding.spec), shardings)
  copied = jax.device_put(tree, spread)

  def own(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_single_device_arrays(array.shape, sharding, [shard.data for shard in array.addressable_shards])

  return jax.tree.map(own, copied, shardings)


def _local_mesh(layout: Layout, devices: Sequence[jax.Device]) -> Mesh:
  tensor = math.gcd(layout.mesh.shape['tensor'], len(devices))
  return Mesh(np.array(devices).reshape(1, -1, tensor), AXES, axis_types=(AxisType.Auto,) * 3)


def _mesh(shape: tuple[int, int, int], slices: int, devices: Sequence[jax.Device] | None) -> Mesh:
  """Neighbours on the network are neighbours on the mesh; whole slices follow each other along `data`."""
  if slices > 1:
    within, across = (shape[0] // slices, *shape[1:]), (slices, 1, 1)
    try:
      arranged = mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
    except (ValueError, AttributeError) as error:
      raise ValueError(f'mesh.slices is {slices}, which is not how these devices are arranged: {error}') from None
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * 3)
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
