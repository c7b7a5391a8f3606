"""The engine's compiled programs. Pure functions of arrays; shapes are `plan.py`'s.

Reading the cache, computing and writing it are programs of their own: in one program XLA keeps what is read apart from what is written by
copying the whole cache.

b rows of a call (a row beyond the last slot is padding), V vocab, M stop sequences of L tokens, F forced tokens, N decode steps.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mempi_jax.inference import cache
from mempi_jax.inference.cache import Store
from mempi_jax.inference.sampling import sample, uniforms
from mempi_jax.models.decoder import Cache, Decoder, DecoderConfig


class Sampling(NamedTuple):
  """How each row of a call draws its tokens."""

  seeds: jax.Array  # u32[b]
  temperature: jax.Array  # f32[b]; 0: greedy
  top_k: jax.Array  # i32[b]; 0: all
  top_p: jax.Array  # f32[b]
  forced: jax.Array  # i32[b, F] what the first tokens must be
  num_forced: jax.Array  # i32[b]
  stops: jax.Array  # i32[b, M, L] stop sequences, right-aligned; -1 fills them up, and a whole row of -1 is none


class Drawn(NamedTuple):
  """One token a row, and what it cost."""

  token: jax.Array  # i32[b]
  logp: jax.Array  # f32[b] under the distribution it was drawn from; 0 where it was forced or greedy
  model_logp: jax.Array  # f32[b] under the model
  stop_logp: jax.Array  # f32[b] of the first stop sequence's last token in its place, under the model


def choose(logits: jax.Array, uniform: jax.Array, produced: jax.Array, how: Sampling, filtered: bool) -> Drawn:
  """Draws the `produced`-th token i32[b] of each row from logits f32[b, V], by numbers f32[b] of `uniforms`."""
  rows = jnp.arange(len(logits))
  top = (how.top_k, how.top_p) if filtered else ()
  token, logp = sample(logits, uniform, how.temperature, *top)
  forced = produced < how.num_forced
  token = jnp.where(forced, how.forced[rows, jnp.minimum(produced, how.forced.shape[1] - 1)], token)
  norm = jax.nn.logsumexp(logits, axis=-1)
  stop = jnp.maximum(how.stops[:, 0, -1], 0)
  return Drawn(token, jnp.where(forced, 0.0, logp), logits[rows, token] - norm, logits[rows, stop] - norm)


def stopped(recent: jax.Array, stops: jax.Array) -> jax.Array:
  """Whether the last tokens i32[b, L] of a row end in one of its stop sequences i32[b, M, L]; bool[b]."""
  fits = jnp.all((stops == recent[:, None]) | (stops < 0), axis=-1)
  return jnp.any(fits & (stops[:, :, -1] >= 0), axis=-1)


@functools.partial(jax.jit, static_argnames=('window',))
def take(store: Store, rows: jax.Array | None, *, window: int) -> Store:
  """See `cache.take`."""
  return cache.take(store, rows, window)


@functools.partial(jax.jit, donate_argnames=('store',))
def put(store: Store, targets: jax.Array, part: Store) -> Store:
  """See `cache.put`."""
  return cache.put(store, targets, part)


@functools.partial(jax.jit, donate_argnames=('store',))
def write(store: Store, rows: jax.Array, lengths: jax.Array, counts: jax.Array, new: Cache) -> Store:
  """See `cache.write`."""
  return cache.write(store, rows, lengths, counts, new)


@functools.partial(jax.jit, static_argnames=('config',))
def prefill(
  config: DecoderConfig, params: Any, past: Store | None, lengths: jax.Array, chunk: jax.Array, counts: jax.Array
) -> tuple[jax.Array, Cache]:
  """A chunk i32[b, T], of which counts i32[b] tokens are real, behind the lengths i32[b] tokens of `past`, as `take` gave it.

  Returns logits f32[b, V] after each row's last real token, and the chunk's keys and values.
  """
  model = Decoder(config)
  cached = None if past is None else cache.widen(past, config.dtype)
  hidden, new = model.apply({'params': params}, chunk, lengths, cached, method='extend')
  last = hidden[jnp.arange(len(chunk)), jnp.maximum(counts - 1, 0)]
  return model.apply({'params': params}, last, method='logits'), new


@functools.partial(jax.jit, static_argnames=('filtered',))
def first(logits: jax.Array, index: jax.Array, positions: jax.Array, how: Sampling, *, filtered: bool) -> Drawn:
  """The first token of b requests, at positions i32[b] of their transcripts, each from the row index i32[b] of logits f32[., V]."""
  return choose(logits[index], uniforms(how.seeds, positions), jnp.zeros_like(positions), how, filtered)


@functools.partial(jax.jit, static_argnames=('config', 'steps', 'filtered'))
def decode(
  config: DecoderConfig,
  params: Any,
  past: Store,
  active: jax.Array,
  lengths: jax.Array,
  token: jax.Array,
  produced: jax.Array,
  limit: jax.Array,
  recent_tokens: jax.Array,
  how: Sampling,
  enough: jax.Array,
  *,
  steps: int,
  filtered: bool,
) -> tuple[jax.Array, Drawn, Cache]:
  """Up to `steps` tokens a row, until `enough` rows are done or all of them.

  Args:
    past: what the rows hold, as `take` gave it, or the whole cache; it is only read.
    active: bool[b]; the others are padding.
    lengths: i32[b] tokens in the cache.
    token: i32[b] the last token of each row, which is not in the cache yet.
    produced: i32[b] tokens that the request has so far, `token` included.
    limit: i32[b] how many it may have.
    recent_tokens: i32[b, L] its last tokens, -2 where there are none.
    enough: i32[].

  Returns counts i32[b] of tokens produced; what they were, `Drawn` of [b, N] but for its stop_logp [b], that of the last token; and the
  keys and values to write: those of as many tokens, `token` first.
  """
  model = Decoder(config)
  batch = len(active)
  cached = cache.widen(past, config.dtype)
  numbers = uniforms(how.seeds, lengths[:, None] + 1 + jnp.arange(steps))

  def going(state: tuple) -> jax.Array:
    step, done = state[0], state[2]
    return (step < steps) & (jnp.sum(done & active) < enough) & ~jnp.all(done)

  def body(state: tuple) -> tuple:
    step, token, done, recent, tail, counts, record = state
    hidden, recent = model.apply({'params': params}, token, lengths, cached, recent, step, method='step')
    logits = model.apply({'params': params}, hidden, method='logits')
    drawn = choose(logits, numbers[:, step], produced + step, how, filtered)
    tail = jnp.concatenate([tail[:, 1:], drawn.token[:, None]], axis=1)
    stops = stopped(tail, how.stops) & (produced + step >= how.num_forced)
    put_at = lambda all_steps, value: all_steps.at[:, step].set(jnp.where(done, 0, value))
    record = Drawn(
      put_at(record.token, drawn.token),
      put_at(record.logp, drawn.logp),
      put_at(record.model_logp, drawn.model_logp),
      jnp.where(done, record.stop_logp, drawn.stop_logp),
    )
    return step + 1, drawn.token, done | stops | (produced + step + 1 >= limit), recent, tail, counts + ~done, record

  record = Drawn(jnp.zeros((batch, steps), jnp.int32), jnp.zeros((batch, steps)), jnp.zeros((batch, steps)), jnp.zeros(batch))
  state = (jnp.int32(0), token, ~active, cache.recent_cache(config, batch, steps), recent_tokens, jnp.zeros(batch, jnp.int32), record)
  _, _, _, recent, _, counts, record = jax.lax.while_loop(going, body, state)
  return counts, record, cache.by_row(recent, batch)


def compiled() -> int:
  """How many programs were compiled so far, for all engines of this process."""
  return sum(program._cache_size() for program in (take, put, write, prefill, first, decode))
