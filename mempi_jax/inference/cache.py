"""The key-value cache of the engine's slots: allocated once, read by windows, written where new tokens belong.

One entry a layer, keys [slots, K, H, S] and values [slots, K, S, H] (K key-value heads of dim H, S tokens), so that both products of
attention read it as it lies. With `int8` each vector of a key or a value is stored as whole numbers with a scale of its own, and widened
where a window is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from mempi_jax.models.decoder import Cache, DecoderConfig

CACHE_DTYPES = ('model', 'int8')  # 'model': that of the decoder's activations

Store = list[dict[str, jax.Array]]  # per layer: k, v and, for int8, k_scale, v_scale


def cache_shapes(config: DecoderConfig, slots: int, length: int, kind: str = 'model') -> list[dict[str, jax.ShapeDtypeStruct]]:
  """What `init_store` allocates, without allocating it."""
  heads, dim = config.num_kv_heads, config.head_dim
  shapes = {'k': (slots, heads, dim, length), 'v': (slots, heads, length, dim)}
  if kind == 'model':
    layer = {name: jax.ShapeDtypeStruct(shape, jnp.dtype(config.dtype)) for name, shape in shapes.items()}
  elif kind == 'int8':
    layer = {name: jax.ShapeDtypeStruct(shape, jnp.int8) for name, shape in shapes.items()}
    layer |= {'k_scale': jax.ShapeDtypeStruct((slots, heads, 1, length), jnp.float32)}
    layer |= {'v_scale': jax.ShapeDtypeStruct((slots, heads, length, 1), jnp.float32)}
  else:
    raise ValueError(f'cache {kind!r}: expected one of {", ".join(CACHE_DTYPES)}')
  return [dict(layer) for _ in range(config.num_layers)]


def cache_bytes(config: DecoderConfig, slots: int, length: int, kind: str = 'model') -> int:
  """Bytes of the cache of `slots` rows of `length` tokens."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache_shapes(config, slots, length, kind)))


def init_store(config: DecoderConfig, slots: int, length: int, kind: str = 'model') -> Store:
  """An empty cache."""
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), cache_shapes(config, slots, length, kind))


def place(store: Store, params: Any, slots: int) -> Store:
  """The cache on the parameters' mesh, its slots spread over the devices where they divide them."""
  sharding = jax.tree.leaves(params)[0].sharding if isinstance(jax.tree.leaves(params)[0], jax.Array) else None
  if not isinstance(sharding, NamedSharding) or sharding.mesh.size == 1:
    return store
  mesh = sharding.mesh
  spec = PartitionSpec(mesh.axis_names) if slots % mesh.size == 0 else PartitionSpec()
  return jax.device_put(store, NamedSharding(mesh, spec))


def check_memory(needed: int, slots: int, length: int) -> None:
  """Raises MemoryError where the devices have less free memory than the cache needs."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'bytes_limit' in stats:
    free = (stats['bytes_limit'] - stats.get('bytes_in_use', 0)) * jax.local_device_count()
  else:
    free = free_host_memory()
  if free is not None and needed > free:
    raise MemoryError(
      f'the cache of {slots} slots of {length} tokens needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free: '
      f'{int(slots * free / needed)} slots of that length would fit; an int8 cache needs a half to a quarter of the bytes'
    )


def free_host_memory() -> int | None:
  """Bytes that the system can still give; None where it does not say."""
  try:
    lines = Path('/proc/meminfo').read_text().splitlines()
  except OSError:
    return None
  return next((int(line.split()[1]) * 1024 for line in lines if line.startswith('MemAvailable')), None)


def take(store: Store, rows: jax.Array | None, window: int) -> Store:
  """The first `window` tokens of the slots `rows` i32[b] (None: of all), as they are stored."""

  def part(leaf: jax.Array, axis: int) -> jax.Array:
    leaf = jax.lax.slice_in_dim(leaf, 0, window, axis=axis)
    return leaf if rows is None else jnp.take(leaf, rows, axis=0, mode='clip')

  return [{name: part(leaf, 3 if name.startswith('k') else 2) for name, leaf in entry.items()} for entry in store]


def widen(part: Store, dtype: DTypeLike) -> Cache:
  """What `take` gave, as the decoder wants it."""

  def layer(entry: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    keys, values = entry['k'], entry['v']
    if 'k_scale' in entry:
      keys, values = keys * entry['k_scale'], values * entry['v_scale']
    return keys.astype(dtype), values.astype(dtype)

  return [layer(entry) for entry in part]


def write(store: Store, rows: jax.Array, lengths: jax.Array, counts: jax.Array, new: Cache) -> Store:
  """Puts the first counts[i] of T new tokens behind the lengths[i] tokens of slot rows[i]; a row beyond the last slot is dropped.

  rows, lengths, counts i32[b]; new per layer keys [b, K, H, T], values [b, K, T, H].
  """
  length, time = store[0]['k'].shape[3], new[0][0].shape[3]
  offsets = jnp.arange(time)
  places = jnp.where(offsets < counts[:, None], lengths[:, None] + offsets, length)  # beyond the end: dropped
  rows = rows[:, None]

  def layer(entry: dict[str, jax.Array], keys: jax.Array, values: jax.Array) -> dict[str, jax.Array]:
    parts = {'k': keys, 'v': values}
    if 'k_scale' in entry:
      (parts['k'], parts['k_scale']), (parts['v'], parts['v_scale']) = _quantise(keys, 2), _quantise(values, 3)
    put = {}
    for name, leaf in entry.items():
      part = parts[name].astype(leaf.dtype)
      if name.startswith('k'):
        put[name] = leaf.at[rows, :, :, places].set(part.transpose(0, 3, 1, 2), mode='drop')
      else:
        put[name] = leaf.at[rows, :, places].set(part.transpose(0, 2, 1, 3), mode='drop')
    return put

  return [layer(entry, keys, values) for entry, (keys, values) in zip(store, new, strict=True)]


def put(store: Store, targets: jax.Array, part: Store) -> Store:
  """Puts the first tokens of slots, as `take` gave them, into slots `targets` i32[b]; a target beyond the last slot is dropped."""

  def place(leaf: jax.Array, part: jax.Array, axis: int) -> jax.Array:
    window = part.shape[axis]
    return leaf.at[targets, :, :, :window].set(part, mode='drop') if axis == 3 else leaf.at[targets, :, :window].set(part, mode='drop')

  return [
    {name: place(leaf, new[name], 3 if name.startswith('k') else 2) for name, leaf in entry.items()}
    for entry, new in zip(store, part, strict=True)
  ]


def recent_cache(config: DecoderConfig, rows: int, steps: int) -> Cache:
  """Room for the tokens of a run of decode steps.

  On a processor rows and heads are one axis, as attention's products want them: XLA would otherwise copy all of it three times a step.
  Elsewhere they may be sharded over different axes of a mesh, and stay two.
  """
  heads, dim, dtype = config.num_kv_heads, config.head_dim, config.dtype
  first = (rows * heads,) if jax.default_backend() == 'cpu' else (rows, heads)
  return [(jnp.zeros((*first, dim, steps), dtype), jnp.zeros((*first, steps, dim), dtype)) for _ in range(config.num_layers)]


def by_row(recent: Cache, rows: int) -> Cache:
  """What `recent_cache` made and decode steps filled, rows and heads apart."""
  return jax.tree.map(lambda leaf: leaf.reshape(rows, -1, *leaf.shape[-2:]), recent)


def _quantise(x: jax.Array, axis: int) -> tuple[jax.Array, Any]:
  """int8 whole numbers and their scale, one for each vector along `axis`."""
  scale = jnp.max(jnp.abs(x.astype(jnp.float32)), axis=axis, keepdims=True) / 127.0
  return jnp.round(x / jnp.maximum(scale, 1e-30)).astype(jnp.int8), scale
