"""Grouped-query attention, by implementation: `xla` (anywhere), `cudnn` (GPU, half precision), `splash` (TPU, plain causal rows).

Axes: B rows, T queries, S keys, N heads, K key-value heads, H head dim.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mempi_jax.runtime.sharding import platform, split_over

IMPLEMENTATIONS = ('auto', 'xla', 'cudnn', 'splash')
SPLASH_BLOCK = 128
CPU_SCORES = 2**23  # bytes of scores at a time that a processor's cache holds


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, implementation: str = 'xla') -> jax.Array:
  """Attention of q [B, T, N, H] over k [B, K, H, S] and v [B, K, S, H]; returns [B, T, N, H] in q's dtype, softmax in float32.

  Args:
    mask: bool[B, T, S], True where a query may attend; None: causal, and T = S.
    implementation: see `choose`.

  Raises ValueError when an implementation was asked for that cannot do this, saying why.
  """
  rows, heads = split_over('rows', q.shape[0]), split_over('heads', q.shape[2])
  if not rows and not heads:
    return _attention(q, k, v, mask, implementation)
  # On a mesh each device attends within its own rows and heads: no kernel is left to be split by the compiler.
  if heads:
    parts = math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in heads)
    if parts % k.shape[1] == 0:  # with fewer key-value heads than parts some parts hold the same one
      k, v = (jnp.repeat(array, parts // k.shape[1], axis=1) for array in (k, v))
    elif k.shape[1] % parts:
      heads = None
  queries, keys = PartitionSpec(rows, None, heads), PartitionSpec(rows, heads)
  arrays, specs = (q, k, v), (queries, keys, keys)
  if mask is not None:
    arrays, specs = (*arrays, mask), (*specs, PartitionSpec(rows))

  def own(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    return _attention(q, k, v, mask, implementation)

  return jax.shard_map(own, in_specs=specs, out_specs=queries, check_vma=False)(*arrays)


def _attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, implementation: str) -> jax.Array:
  match choose(implementation, q, mask):
    case 'cudnn':
      # cuDNN wants keys and values as [B, S, K, H].
      keys, values = k.transpose(0, 3, 1, 2), v.transpose(0, 2, 1, 3)
      if mask is None:
        return jax.nn.dot_product_attention(q, keys, values, is_causal=True, implementation='cudnn')
      return jax.nn.dot_product_attention(q, keys, values, mask=mask[:, None], implementation='cudnn')
    case 'splash':
      return _splash(q, k, v)
  if mask is None:
    time = q.shape[1]
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((time, time), bool)), (q.shape[0], time, time))
  return _xla(q, k, v, mask)


def choose(implementation: str, q: jax.Array, mask: jax.Array | None) -> str:
  """The implementation that `auto` stands for here, or the one asked for after a check that it can do this."""
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f'attention {implementation!r}: expected one of {", ".join(IMPLEMENTATIONS)}')
  if implementation == 'xla':
    return 'xla'
  problems = {'cudnn': _cudnn_problem(q), 'splash': _splash_problem(q, mask)}
  if implementation == 'auto':
    wanted = {'gpu': 'cudnn', 'tpu': 'splash'}.get(platform(), 'xla')
    return wanted if not problems.get(wanted) else 'xla'
  if problems[implementation]:
    raise ValueError(f'attention {implementation} {problems[implementation]}; use auto or xla')
  return implementation


def _cudnn_problem(q: jax.Array) -> str:
  if platform() != 'gpu':
    return f'needs a GPU, found {platform()}'
  if q.dtype not in (jnp.bfloat16, jnp.float16):
    return f'needs bfloat16 or float16, found {q.dtype}'
  if q.shape[-1] % 8 or q.shape[-1] > 128:
    return f'needs a head_dim that is a multiple of 8 up to 128, found {q.shape[-1]}'
  return ''


def _splash_problem(q: jax.Array, mask: jax.Array | None) -> str:
  if mask is not None:
    return 'knows plain causal rows alone, found another mask'
  if q.shape[1] % SPLASH_BLOCK or q.shape[-1] % SPLASH_BLOCK:
    return f'needs rows and a head_dim that are multiples of {SPLASH_BLOCK}, found {q.shape[1]} tokens and head_dim {q.shape[-1]}'
  return ''


def _xla(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
  batch, time, heads, dim = q.shape
  kv_heads = k.shape[1]
  group = heads // kv_heads
  q = (q * dim**-0.5).reshape(batch, time, kv_heads, group, dim).transpose(0, 2, 3, 1, 4)  # [B, K, G, T, H]

  def one_row(q, k, v, mask):
    scores = jnp.einsum('kqh,khs->kqs', q.reshape(kv_heads, group * time, dim), k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores.reshape(kv_heads, group, time, -1), -1e30)
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1)
    mixed = jnp.einsum('kqs,ksh->kqh', weights.reshape(kv_heads, group * time, -1).astype(v.dtype), v, preferred_element_type=jnp.float32)
    return mixed.reshape(kv_heads, group, time, dim) / total[..., None]

  if platform() == 'cpu' and time > 1:
    # Blocks of rows that stay in the processor's cache: 3 to 8 times as fast as one batched einsum on XLA:CPU.
    out = jax.lax.map(lambda row: one_row(*row), (q, k, v, mask), batch_size=min(16, batch))
  else:
    out = jax.vmap(one_row)(q, k, v, mask)
  return out.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, dim).astype(q.dtype)


def two_stretch_attention(
  q: jax.Array, old: tuple[jax.Array, jax.Array], new: tuple[jax.Array, jax.Array], seen: jax.Array
) -> jax.Array:
  """Attention of q [B, T, N, H] over two stretches of keys and values that stay where they are; returns [B, T, N, H] in q's dtype.

  Args:
    old, new: keys [B, K, H, S] and values [B, K, S, H] of each, S1 and S2 tokens.
    seen: bool[B, T, S1 + S2], True where a query may attend.

  Softmax in float32, in XLA: for decode, which memory bounds, and for prefill on a processor.
  """
  batch, time, heads, dim = q.shape
  kv_heads, size = old[0].shape[1], old[0].shape[3]
  group = heads // kv_heads
  q = (q * dim**-0.5).reshape(batch, time, kv_heads, group, dim).transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, group * time, dim)

  def rows(q: jax.Array, old: tuple, new: tuple, seen: jax.Array) -> jax.Array:
    split = lambda scores: scores.reshape(*scores.shape[:2], group, time, -1)
    score = lambda keys: split(jnp.einsum('bkqh,bkhs->bkqs', q, keys, preferred_element_type=jnp.float32))
    join = lambda weights: weights.reshape(*weights.shape[:2], group * time, -1)
    mix = lambda weights, values: jnp.einsum(
      'bkqs,bksh->bkqh', join(weights).astype(values.dtype), values, preferred_element_type=jnp.float32
    )
    seen = seen[:, None, None]
    before, after = jnp.where(seen[..., :size], score(old[0]), -1e30), jnp.where(seen[..., size:], score(new[0]), -1e30)
    largest = jnp.maximum(jnp.max(before, axis=-1), jnp.max(after, axis=-1))[..., None]
    before, after = jnp.exp(before - largest), jnp.exp(after - largest)
    total = jnp.sum(before, axis=-1, keepdims=True) + jnp.sum(after, axis=-1, keepdims=True)
    return (mix(before, old[1]) + mix(after, new[1])) / join(total)

  scores = 4 * heads * time * seen.shape[-1]  # bytes, a row
  if platform() == 'cpu' and batch * scores > CPU_SCORES:
    one = lambda part: rows(*jax.tree.map(lambda leaf: leaf[None], part))[0]
    out = jax.lax.map(one, (q, old, new, seen), batch_size=max(1, CPU_SCORES // scores))
  else:
    out = rows(q, old, new, seen)
  return out.reshape(batch, kv_heads, group, time, dim).transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, dim).astype(q.dtype)


def _splash(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """The TPU's block-sparse kernel; elsewhere it runs interpreted, which is for tests."""
  kernel = _splash_kernel(q.shape[2], q.shape[1], platform() != 'tpu')
  heads = q.transpose(0, 2, 1, 3) * q.shape[-1] ** -0.5
  out = jax.vmap(kernel)(heads, k.transpose(0, 1, 3, 2), v)
  return out.transpose(0, 2, 1, 3).astype(q.dtype)


@functools.lru_cache
def _splash_kernel(num_heads: int, time: int, interpret: bool):
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

  mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((time, time))] * num_heads)
  with jax.ensure_compile_time_eval():
    return splash_attention_kernel.make_splash_mha_single_device(mask, interpret=interpret)
