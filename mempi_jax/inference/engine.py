"""Batched generation with a key-value cache that lives over turns: only what is new is ever computed (prefill and decode).

A `Rows` object holds B running transcripts. Each call appends a chunk of tokens a row, then samples up to a stop token. A sample
depends on its row's seed and position alone, not on which rows share the batch. Shapes are bucketed, so that a run compiles a
handful of programs and no more.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mempi_jax.models.decoder import Cache, Decoder, DecoderConfig, init_cache

CACHE_BUCKET = 256  # a cache grows in steps of this many tokens: each length is a program of its own, and costs more to compile than to pad
TAIL_SHARE, MIN_TAIL_ROWS = 8, 8  # at most B / 8 rows (or 8) have the tails of their chunks computed apart
CHUNK_BUCKETS = (1, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


def bucket(size: int, buckets: Sequence[int]) -> int:
  """The smallest bucket that holds `size`; beyond the largest, the next multiple of it."""
  for candidate in buckets:
    if size <= candidate:
      return candidate
  return -(-size // buckets[-1]) * buckets[-1]


@dataclasses.dataclass(frozen=True)
class Generated:
  """What one call sampled, a row: the tokens (with the stop token, if it came) and their log-probs under the model.

  `stop_logps` are the log-probs of the stop token where the row's last token was drawn: what closing the row there would have cost.
  """

  tokens: list[list[int]]
  logps: list[list[float]]
  stop_logps: list[float]


def sample(logits: jax.Array, seeds: jax.Array, positions: jax.Array, temperature: jax.Array) -> jax.Array:
  """One token a row: logits f32[B, V], seeds u32[B], positions i32[B], temperature f32[] (0: greedy) -> i32[B].

  Inverse transform sampling: one uniform number in [0, 1) a row, from the row's own seed and position. Token i is drawn where
  cumulative[i - 1] <= uniform < cumulative[i], so a token whose probability is 0 never is.
  """
  uniform = jax.vmap(lambda seed, position: jax.random.uniform(jax.random.fold_in(jax.random.key(seed), position)))(seeds, positions)
  scaled = logits / jnp.maximum(temperature, 1e-6)
  cumulative = jnp.cumsum(jax.nn.softmax(scaled, axis=-1), axis=-1)
  drawn = jnp.sum(cumulative <= uniform[:, None] * cumulative[:, -1:], axis=-1)
  drawn = jnp.minimum(drawn, logits.shape[-1] - 1)
  return jnp.where(temperature > 0, drawn, jnp.argmax(logits, axis=-1)).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=('config',), donate_argnames=('cache',))
def _prefill(config, params, cache, lengths, chunk, counts):
  """Appends chunk i32[B, T], of which counts i32[B] tokens are real; logits f32[B, V] after each row's last real token."""
  model = Decoder(config)
  hidden, cache = model.apply({'params': params}, chunk, lengths, cache, method='extend')
  last = hidden[jnp.arange(chunk.shape[0]), jnp.maximum(counts - 1, 0)]
  return model.apply({'params': params}, last, method='logits'), cache


@functools.partial(jax.jit, static_argnames=('config',), donate_argnames=('cache', 'logits'))
def _prefill_some(config, params, cache, logits, rows, lengths, chunk, counts):
  """`_prefill` of the rows i32[b] alone (all different); the other arrays have b rows too. Updates logits f32[B, V] where counts > 0."""
  some = jax.tree.map(lambda leaf: leaf[rows], cache)
  new, some = _prefill(config, params, some, lengths, chunk, counts)
  cache = jax.tree.map(lambda leaf, part: leaf.at[rows].set(part), cache, some)
  return logits.at[rows].set(jnp.where(counts[:, None] > 0, new, logits[rows])), cache


@functools.partial(jax.jit, static_argnames=('config', 'max_new'), donate_argnames=('cache',))
def _decode(config, params, cache, lengths, logits, active, seeds, temperature, stop, limit, *, max_new):
  """Samples up to `limit` <= max_new tokens a row until `stop`. Every sampled token but a row's last enters the cache."""
  model = Decoder(config)
  batch = lengths.shape[0]

  def draw(i, done, lengths, logits, record):
    """Samples the i-th token of every row that is not done, and records it."""
    tokens, logps, stop_logps, counts = record
    token = sample(logits, seeds, lengths, temperature)
    all_logps = jax.nn.log_softmax(logits, axis=-1)
    logp = all_logps[jnp.arange(batch), token]
    record = (
      tokens.at[:, i].set(jnp.where(done, 0, token)),
      logps.at[:, i].set(jnp.where(done, 0.0, logp)),
      jnp.where(done, stop_logps, all_logps[:, stop]),
      counts + ~done,
    )
    return token, done | (token == stop) | (i + 1 >= limit), record

  def keep_going(state):
    return ~jnp.all(state[1])

  def step(state):
    i, done, token, cache, lengths, record = state
    # A finished row's write lands one past its end, where its next chunk overwrites it.
    hidden, cache = model.apply({'params': params}, token[:, None], lengths, cache, method='extend')
    lengths = lengths + ~done
    token, done, record = draw(i, done, lengths, model.apply({'params': params}, hidden[:, 0], method='logits'), record)
    return i + 1, done, token, cache, lengths, record

  record = (jnp.zeros((batch, max_new), jnp.int32), jnp.zeros((batch, max_new)), jnp.zeros(batch), jnp.zeros(batch, jnp.int32))
  token, done, record = draw(0, ~active, lengths, logits, record)
  _, _, _, cache, lengths, record = jax.lax.while_loop(keep_going, step, (1, done, token, cache, lengths, record))
  return cache, lengths, *record


@functools.partial(jax.jit, static_argnames=('length',))
def _lengthen(cache, *, length):
  """The cache with room for `length` tokens a row."""

  def pad(leaf, axis):
    return jnp.pad(leaf, [(0, length - leaf.shape[axis] if i == axis else 0) for i in range(leaf.ndim)])

  return [(pad(keys, 3), pad(values, 2)) for keys, values in cache]


class Rows:
  """B running transcripts of one decoder, with their cache. Not thread-safe; one owner."""

  def __init__(self, config: DecoderConfig, params: Any, batch: int, max_length: int):
    self.config, self.params, self.max_length = config, params, max_length
    self.cache: Cache = init_cache(config, batch, min(CACHE_BUCKET, max_length))  # as long as its rows need, see `_make_room`
    self.lengths = np.zeros(batch, np.int32)  # tokens of each row that are in the cache

  def prefill(self, chunks: Sequence[Sequence[int]], headroom: int = 0) -> jax.Array:
    """Appends one chunk a row (empty: the row rests). Returns logits f32[B, V] after each chunk.

    `headroom` tokens must fit behind it. Raises ValueError, naming the row, when they do not.
    """
    counts = np.array([len(chunk) for chunk in chunks], np.int32)
    # A row that rests needs no room: it may be as full as it likes.
    over = np.flatnonzero((counts > 0) & (self.lengths + counts + headroom > self.max_length))
    if over.size:
      row = int(over[0])
      raise ValueError(
        f'row {row} needs {self.lengths[row]} + {counts[row]} + {headroom} tokens, more than the context length of {self.max_length}'
      )
    self._make_room(int(np.max(self.lengths + counts + headroom, where=counts > 0, initial=1)))
    chunk = np.zeros((len(chunks), bucket(int(counts.max()), CHUNK_BUCKETS)), np.int32)
    for row, ids in enumerate(chunks):
      chunk[row, : len(ids)] = ids
    # Where a few rows have much longer chunks than the rest, their tails are computed apart, so that the others are not padded to them.
    few = max(MIN_TAIL_ROWS, len(chunks) // TAIL_SHARE)
    widths = [width for width in CHUNK_BUCKETS if 1 < width < chunk.shape[1] and np.sum(counts > width) <= few < len(chunks)]
    width = widths[0] if widths else chunk.shape[1]
    heads = np.minimum(counts, width)
    logits, self.cache = _prefill(self.config, self.params, self.cache, self.lengths.copy(), chunk[:, :width], heads)
    self.lengths = self.lengths + heads
    tails = counts - heads
    if tails.any():
      rows = np.argsort(-tails, kind='stable')[:few].astype(np.int32)
      logits, self.cache = _prefill_some(
        self.config,
        self.params,
        self.cache,
        logits,
        rows,
        self.lengths[rows],
        np.ascontiguousarray(chunk[rows, width : width + bucket(int(tails.max()), CHUNK_BUCKETS)]),
        tails[rows],
      )
      self.lengths = self.lengths + tails
    return logits

  def generate(
    self, chunks: Sequence[Sequence[int]], seeds: Sequence[int], *, max_new: int, stop: int, temperature: float
  ) -> Generated:
    """Appends one chunk a row, then samples up to `max_new` tokens until `stop`; rows with an empty chunk rest.

    The last sampled token of a row is not in its cache yet: the caller's next chunk begins with it.
    """
    active = np.array([len(chunk) > 0 for chunk in chunks])
    logits = self.prefill(chunks, headroom=max_new)
    self.cache, lengths, tokens, logps, stop_logps, counts = _decode(
      self.config,
      self.params,
      self.cache,
      self.lengths.copy(),
      logits,
      active,
      np.asarray(seeds, np.uint32),
      np.float32(temperature),
      np.int32(stop),
      np.int32(max_new),
      max_new=max_new,
    )
    self.lengths = np.array(lengths)
    tokens, logps, counts = np.asarray(tokens), np.asarray(logps), np.asarray(counts)
    if not np.isfinite(logps).all():
      row = int(np.argwhere(~np.isfinite(logps))[0][0])
      raise FloatingPointError(f'the model gave non-finite log-probs for row {row}: its parameters are broken')
    return Generated(
      tokens=[tokens[row, : counts[row]].tolist() for row in range(len(chunks))],
      logps=[logps[row, : counts[row]].tolist() for row in range(len(chunks))],
      stop_logps=np.asarray(stop_logps).tolist(),
    )

  def select(self, rows: Sequence[int]) -> None:
    """Keeps only these rows, in this order (a row may be named more than once: a prompt fanned out to its branches)."""
    index = np.asarray(rows, np.int32)
    self.cache = jax.tree.map(lambda leaf: jnp.take(leaf, index, axis=0), self.cache)
    self.lengths = self.lengths[index]

  def _make_room(self, needed: int) -> None:
    """Grows the cache to the bucket that holds `needed` tokens a row; it never shrinks."""
    length = min(self.max_length, -(-needed // CACHE_BUCKET) * CACHE_BUCKET)
    if length > self.cache[0][0].shape[3]:
      self.cache = _lengthen(self.cache, length=length)
