"""The decoder language model of the Llama and Qwen families: one implementation for every model of the project.

RMSNorm, rotary positions, grouped-query attention, SwiGLU; with or without tied embeddings, biases, normalised queries and keys, a sliding
window. Three entry points share every weight, so that sampler and trainer compute the same numbers: `Decoder.__call__` runs whole rows
under any attention mask (training and scoring), `Decoder.extend` a chunk of tokens behind a key-value cache (prefill), `Decoder.step` one
token a row (decode).
Parameters come in two layouts, see `stack_layers`. Axes: B rows, T tokens, S cache, V vocab, D embed, N heads, K key-value heads, H head dim.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mempi_jax.models.attention import IMPLEMENTATIONS, attention, choose, two_stretch_attention
from mempi_jax.models.lora import Weight, matmul
from mempi_jax.models.rope import RopeScaling, rope_angles, rotate
from mempi_jax.runtime.sharding import constrain

FAMILIES = ('llama', 'mistral', 'qwen2', 'qwen3')
DTYPES = ('float32', 'bfloat16', 'float16')
# What a layer keeps for its backward pass; the rest is computed again.
REMAT = {
  'none': None,
  'full': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

Angles = tuple[jax.Array, jax.Array]
Cache = list[tuple[jax.Array, jax.Array]]  # per layer: keys [B, K, H, S], values [B, K, S, H]


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Shape of a decoder (what a checkpoint fixes), and how it is computed (what a run may choose)."""

  vocab_size: int
  embed_dim: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  family: str = 'llama'  # as which it is exported
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | None = None
  max_positions: int = 2048  # what the model was made for; read by dynamic rope scaling alone
  norm_eps: float = 1e-6
  tie_embeddings: bool = True
  qkv_bias: bool = False
  out_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False  # RMSNorm over each head of queries and keys
  sliding_window: int = 0  # tokens that a query sees in the layers of `sliding_layers`, itself included
  sliding_layers: tuple[int, ...] = ()
  # How it is computed.
  dtype: str = 'float32'  # of activations and cache; norms, softmax and logits are float32
  attention: str = 'auto'  # see models/attention.py
  scan_layers: bool = False  # one compiled layer, scanned; for training alone
  remat: str = 'none'

  def __post_init__(self):
    for name in ('vocab_size', 'embed_dim', 'num_layers', 'num_heads', 'num_kv_heads', 'head_dim', 'mlp_dim'):
      if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
        raise ValueError(f'{name} of a decoder must be a positive whole number, found {getattr(self, name)!r}')
    if self.num_heads % self.num_kv_heads:
      raise ValueError(f'num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}')
    if self.head_dim % 2:
      raise ValueError(f'head_dim must be even for rotary positions, found {self.head_dim}')
    for name, known in (('family', FAMILIES), ('dtype', DTYPES), ('attention', IMPLEMENTATIONS), ('remat', tuple(REMAT))):
      if getattr(self, name) not in known:
        raise ValueError(f'{name} {getattr(self, name)!r} of a decoder: expected one of {", ".join(known)}')
    if self.sliding_layers and self.sliding_window < 1:
      raise ValueError(f'sliding layers need a window of at least one token, found {self.sliding_window}')


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
  """x [..., D] normalised by its root mean square, times scale [D]; computed in float32, returned in x's dtype."""
  wide = x.astype(jnp.float32)
  variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
  return (wide * jax.lax.rsqrt(variance + eps) * scale).astype(x.dtype)


def linear(x: jax.Array, weight: jax.Array | Weight, bias: jax.Array | None) -> jax.Array:
  """x [N, in] @ weight [in, out] + bias [out] in x's dtype."""
  product = matmul(x, weight)
  return product if bias is None else product + bias.astype(x.dtype)


class Layer(nn.Module):
  """One transformer block."""

  config: DecoderConfig

  def setup(self):
    """Parameters of attention and feed-forward, heads side by side in 2-D matrices."""
    c = self.config
    init, zeros, ones = nn.initializers.normal(0.02), nn.initializers.zeros, nn.initializers.ones
    # Residual branches start small (GPT-2's rule), so that depth does not change the scale of the stream.
    out_init = nn.initializers.normal(0.02 / (2 * c.num_layers) ** 0.5)
    qkv_dim = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
    self.attention_norm = self.param('attention_norm', ones, (c.embed_dim,))
    self.qkv = self.param('qkv', init, (c.embed_dim, qkv_dim))
    self.out = self.param('out', out_init, (c.num_heads * c.head_dim, c.embed_dim))
    self.mlp_norm = self.param('mlp_norm', ones, (c.embed_dim,))
    self.gate_up = self.param('gate_up', init, (c.embed_dim, 2 * c.mlp_dim))
    self.down = self.param('down', out_init, (c.mlp_dim, c.embed_dim))
    bias = lambda name, size, present: self.param(name, zeros, (size,)) if present else None
    self.qkv_bias = bias('qkv_bias', qkv_dim, c.qkv_bias)
    self.out_bias = bias('out_bias', c.embed_dim, c.out_bias)
    self.gate_up_bias = bias('gate_up_bias', 2 * c.mlp_dim, c.mlp_bias)
    self.down_bias = bias('down_bias', c.embed_dim, c.mlp_bias)
    if c.qk_norm:
      self.q_norm = self.param('q_norm', ones, (c.head_dim,))
      self.k_norm = self.param('k_norm', ones, (c.head_dim,))

  def project(self, x: jax.Array, angles: Angles) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Stream x [B, T, D] -> rotated q [B, T, N, H], rotated k and plain v [B, T, K, H]."""
    c = self.config
    batch, time, _ = x.shape
    # Matmuls in two dimensions: XLA on CPU is twice as fast as with three.
    flat = linear(rms_norm(x, self.attention_norm, c.norm_eps).reshape(batch * time, c.embed_dim), self.qkv, self.qkv_bias)
    q, k, v = jnp.split(flat, [c.num_heads * c.head_dim, (c.num_heads + c.num_kv_heads) * c.head_dim], axis=-1)
    q = q.reshape(batch, time, c.num_heads, c.head_dim)
    k = k.reshape(batch, time, c.num_kv_heads, c.head_dim)
    if c.qk_norm:
      q, k = rms_norm(q, self.q_norm, c.norm_eps), rms_norm(k, self.k_norm, c.norm_eps)
    return rotate(q, angles), rotate(k, angles), v.reshape(batch, time, c.num_kv_heads, c.head_dim)

  def finish(self, x: jax.Array, attended: jax.Array) -> jax.Array:
    """Adds the attention's output [B, T, N, H] and the MLP's to the stream x [B, T, D]."""
    c = self.config
    shape = x.shape
    x = x.reshape(-1, c.embed_dim)
    x = x + linear(attended.reshape(x.shape[0], -1), self.out, self.out_bias)
    gate, up = jnp.split(linear(rms_norm(x, self.mlp_norm, c.norm_eps), self.gate_up, self.gate_up_bias), 2, axis=-1)
    return (x + linear(jax.nn.silu(gate) * up, self.down, self.down_bias)).reshape(shape)

  def __call__(self, x: jax.Array, angles: Angles, mask: jax.Array | None) -> jax.Array:
    """Stream x [B, T, D] through the block; mask as in `attention`."""
    q, k, v = self.project(x, angles)
    x = self.finish(x, attention(q, k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3), mask, self.config.attention))
    return constrain(x, 'rows', None, None)


class ScannedLayer(Layer):
  """A block as `nn.scan` wants it: the layer's own mask is chosen by a scanned flag."""

  def __call__(self, x: jax.Array, slides: jax.Array, angles: Angles, mask: jax.Array | None, window: jax.Array | None) -> tuple[jax.Array, None]:
    """`slides` bool[], `window` bool[B, T, T] what a sliding layer may see (None: there is none)."""
    return super().__call__(x, angles, mask if window is None else mask & (window | ~slides)), None


class Decoder(nn.Module):
  """The language model. Hidden states come out; `logits` projects the ones that are asked for, so [B, T, V] need never exist."""

  config: DecoderConfig

  def setup(self):
    """Embedding, head where it is not tied, final norm, and the layers in the layout that the config says."""
    c = self.config
    init, policy = nn.initializers.normal(0.02), REMAT[c.remat]
    self.embedding = self.param('embedding', init, (c.vocab_size, c.embed_dim))
    if not c.tie_embeddings:
      self.head = self.param('head', init, (c.vocab_size, c.embed_dim))
    self.final_norm = self.param('final_norm', nn.initializers.ones, (c.embed_dim,))
    if c.scan_layers:
      block = ScannedLayer if policy is None else nn.remat(ScannedLayer, policy=policy, prevent_cse=False)
      scanned = nn.scan(
        block, variable_axes={'params': 0}, split_rngs={'params': True}, length=c.num_layers, in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast)
      )
      self.layers = scanned(c)
    else:
      block = Layer if policy is None else nn.remat(Layer, policy=policy)
      self.layers = [block(c, name=f'layer_{i}') for i in range(c.num_layers)]

  def __call__(self, tokens: jax.Array, positions: jax.Array, mask: jax.Array | None) -> jax.Array:
    """tokens i32[B, T], positions i32[B, T], mask bool[B, T, T] (None: causal) -> normalised hidden states [B, T, D]."""
    c = self.config
    x = constrain(constrain(self.embedding, 'vocab', None)[tokens].astype(c.dtype), 'rows', None, None)
    angles = self._angles(positions)
    window = None
    if c.sliding_layers:
      window = positions[:, :, None] - positions[:, None, :] < c.sliding_window
      mask = jnp.broadcast_to(jnp.tril(jnp.ones(window.shape[1:], bool)), window.shape) if mask is None else mask
    if c.scan_layers:
      slides = jnp.array([i in c.sliding_layers for i in range(c.num_layers)])
      x, _ = self.layers(x, slides, angles, mask, window)
    else:
      for i, layer in enumerate(self.layers):
        x = layer(x, angles, mask & window if i in c.sliding_layers else mask)
    return rms_norm(x, self.final_norm, c.norm_eps)

  def extend(self, tokens: jax.Array, lengths: jax.Array, past: Cache | None) -> tuple[jax.Array, Cache]:
    """A chunk of tokens i32[B, T] for rows that hold `lengths` i32[B] tokens each; `past` is their cache (None: there is nothing yet).

    Right padding is harmless: no earlier token sees it. Returns hidden states [B, T, D] and the chunk's own keys and values, which the
    caller puts where it keeps them. Needs the unrolled layout.
    """
    c = self.config
    batch, time = tokens.shape
    positions = lengths[:, None] + jnp.arange(time, dtype=jnp.int32)
    size = past[0][0].shape[3] if past else 0
    mask = None if past is None else jnp.concatenate(
      [
        jnp.broadcast_to((jnp.arange(size) < lengths[:, None])[:, None], (batch, time, size)),
        jnp.broadcast_to(jnp.tril(jnp.ones((time, time), bool)), (batch, time, time)),
      ],
      axis=-1,
    )  # fmt: skip
    near = None
    if c.sliding_layers:
      places = jnp.concatenate([jnp.broadcast_to(jnp.arange(size), (batch, size)), positions], axis=1)
      near = positions[:, :, None] - places[:, None] < c.sliding_window
      mask = jnp.broadcast_to(jnp.tril(jnp.ones((time, time), bool)), near.shape) if mask is None else mask
    x = self.embedding[tokens].astype(c.dtype)
    angles = self._angles(positions)
    new = []
    for i, layer in enumerate(self.layers):
      q, k, v = layer.project(x, angles)
      keys, values = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
      new.append((keys, values))
      seen = mask & near if i in c.sliding_layers else mask
      if past is None:
        attended = attention(q, keys, values, seen, c.attention)
      elif choose(c.attention, q, seen) == 'xla':
        attended = two_stretch_attention(q, past[i], (keys, values), seen)
      else:
        keys, values = jnp.concatenate([past[i][0], keys], axis=3), jnp.concatenate([past[i][1], values], axis=2)
        attended = attention(q, keys, values, seen, c.attention)
      x = layer.finish(x, attended)
    return rms_norm(x, self.final_norm, c.norm_eps), new

  def step(self, token: jax.Array, lengths: jax.Array, past: Cache, recent: Cache, index: jax.Array) -> tuple[jax.Array, Cache]:
    """One token i32[B] a row: the `index`-th (i32[]) after the `lengths` i32[B] tokens of `past`.

    `recent` holds keys and values of those between (as `past`, of its own length; rows and heads may be one axis); the token's own are
    written at `index`. What a run of steps writes is thus small and lies at one place for all rows, while `past` is only read. Returns
    hidden states [B, D] and `recent`.
    """
    c = self.config
    position = (lengths + index)[:, None]
    size, room = past[0][0].shape[3], recent[0][0].shape[-1]
    seen = jnp.concatenate(
      [jnp.arange(size) < lengths[:, None], jnp.broadcast_to(jnp.arange(room) <= index, (len(token), room))], axis=-1
    )
    near = None
    if c.sliding_layers:
      places = jnp.concatenate([jnp.broadcast_to(jnp.arange(size), (len(token), size)), lengths[:, None] + jnp.arange(room)], axis=1)
      near = position - places < c.sliding_window
    x = self.embedding[token][:, None].astype(c.dtype)
    angles = self._angles(position)
    new = []
    for i, (layer, (keys, values)) in enumerate(zip(self.layers, recent, strict=True)):
      q, k, v = layer.project(x, angles)
      keys = jax.lax.dynamic_update_slice_in_dim(keys, k.reshape(*keys.shape[:-1], 1), index, axis=-1)
      values = jax.lax.dynamic_update_slice_in_dim(values, v.reshape(*values.shape[:-2], 1, c.head_dim), index, axis=-2)
      new.append((keys, values))
      latest = jax.tree.map(lambda leaf: leaf.reshape(len(token), c.num_kv_heads, *leaf.shape[-2:]), (keys, values))
      x = layer.finish(x, two_stretch_attention(q, past[i], latest, (seen & near if i in c.sliding_layers else seen)[:, None]))
    return rms_norm(x, self.final_norm, c.norm_eps)[:, 0], new

  def logits(self, hidden: jax.Array) -> jax.Array:
    """hidden [..., D] -> logits f32[..., V] through the output matrix."""
    matrix = self.embedding if self.config.tie_embeddings else self.head
    flat = jnp.matmul(hidden.reshape(-1, self.config.embed_dim), matrix.astype(hidden.dtype).T, preferred_element_type=jnp.float32)
    return flat.reshape(*hidden.shape[:-1], self.config.vocab_size)

  def _angles(self, positions: jax.Array) -> Angles:
    c = self.config
    return rope_angles(positions, c.head_dim, c.rope_theta, c.rope_scaling, c.max_positions)


def output_matrix(params: Any) -> jax.Array:
  """The output projection [V, D]: a matrix of its own, or the embedding where the two are tied."""
  return params.get('head', params['embedding'])


@functools.partial(jax.jit, static_argnames=('config', 'dtype'))
def init_params(config: DecoderConfig, key: jax.Array, dtype: DTypeLike = 'float32') -> Any:
  """Random parameters of a decoder."""
  tokens = jnp.zeros((1, 2), jnp.int32)
  params = Decoder(config).init(key, tokens, tokens, jnp.ones((1, 2, 2), bool))['params']
  return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def stack_layers(params: Any) -> Any:
  """From the unrolled layout (layer_0, layer_1, ...; generation, checkpoints) to the scanned one (layers: every leaf [L, ...]; training).

  Also of an adapter, or of any tree with that form.
  """
  names = sorted((name for name in params if name.startswith('layer_')), key=lambda name: int(name.removeprefix('layer_')))
  rest = {name: part for name, part in params.items() if name not in names}
  return rest | {'layers': jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[name] for name in names))}


def unstack_layers(params: Any) -> Any:
  """The inverse of `stack_layers`."""
  stacked = params['layers']
  rest = {name: part for name, part in params.items() if name != 'layers'}
  count = jax.tree.leaves(stacked)[0].shape[0]
  return rest | {f'layer_{i}': jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(count)}


def count_params(params: Any) -> int:
  """Number of parameters in a tree."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
