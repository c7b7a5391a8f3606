"""Drawing tokens: one uniform number a token, from its row's own seed and position, so that a sample depends on nothing else."""

from __future__ import annotations

import jax
import jax.numpy as jnp

NEVER = -1e30  # the logit of a token that top-k or top-p leaves out


def keep_top(logits: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
  """logits f32[B, V] with those outside the `top_k` largest (i32[B], 0: all) and outside the nucleus of `top_p` (f32[B]) at `NEVER`.

  The nucleus is the smallest set of most likely tokens whose probability reaches `top_p`; the most likely token always stays. Both are
  taken of the given logits, so of the distribution at the request's temperature. Ties with the last one kept stay too.
  """
  ordered = -jnp.sort(-logits, axis=-1)
  size = logits.shape[-1]
  kth = jnp.take_along_axis(ordered, (jnp.where(top_k > 0, jnp.minimum(top_k, size), size) - 1)[:, None], axis=-1)
  probabilities = jax.nn.softmax(jnp.where(ordered >= kth, ordered, NEVER), axis=-1)
  before = jnp.cumsum(probabilities, axis=-1) - probabilities
  count = jnp.maximum(jnp.sum(before < top_p[:, None], axis=-1), 1)
  last = jnp.take_along_axis(ordered, (count - 1)[:, None], axis=-1)
  return jnp.where(logits >= jnp.maximum(kth, jnp.where(top_p < 1.0, last[:, 0], -jnp.inf)[:, None]), logits, NEVER)


def uniforms(seeds: jax.Array, positions: jax.Array) -> jax.Array:
  """One number in [0, 1) a row, f32[B], from seeds u32[B] and positions i32[B]."""
  return jax.vmap(lambda seed, position: jax.random.uniform(jax.random.fold_in(jax.random.key(seed), position)))(seeds, positions)


def draw(scaled: jax.Array, uniform: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Inverse transform sampling: token i32[B] and its log-prob f32[B], of scaled logits f32[B, V] and uniform numbers f32[B] in [0, 1).

  Token i is drawn where cumulative[i - 1] <= uniform < cumulative[i], so a token whose probability is 0 never is.
  """
  probabilities = jax.nn.softmax(scaled, axis=-1)
  cumulative = jnp.cumsum(probabilities, axis=-1)
  token = jnp.minimum(jnp.sum(cumulative <= uniform[:, None] * cumulative[:, -1:], axis=-1), scaled.shape[-1] - 1)
  return token.astype(jnp.int32), jnp.log(jnp.take_along_axis(probabilities, token[:, None], axis=-1)[:, 0])


def sample(
  logits: jax.Array,
  seeds: jax.Array,
  positions: jax.Array,
  temperature: jax.Array,
  top_k: jax.Array | None = None,
  top_p: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """One token a row, i32[B], and its log-prob f32[B] under the distribution that it was drawn from (0 where it was greedy).

  Args:
    logits: f32[B, V].
    seeds: u32[B].
    positions: i32[B] of the token to draw, counted from the row's beginning.
    temperature: f32[B]; 0: greedy.
    top_k, top_p: see `keep_top`; None: all tokens.
  """
  greedy = temperature <= 0
  drawn = lambda: draw(_scaled(logits, temperature, top_k, top_p), uniforms(seeds, positions))
  best = lambda: (jnp.argmax(logits, axis=-1).astype(jnp.int32), jnp.zeros(len(logits)))

  def both() -> tuple[jax.Array, jax.Array]:
    return jax.tree.map(lambda a, b: jnp.where(greedy, a, b), best(), drawn())

  # Most batches are all of one kind, and the other is not computed.
  return jax.lax.cond(jnp.any(greedy), lambda: jax.lax.cond(jnp.all(greedy), best, both), drawn)


def _scaled(logits: jax.Array, temperature: jax.Array, top_k: jax.Array | None, top_p: jax.Array | None) -> jax.Array:
  scaled = logits / jnp.maximum(temperature, 1e-6)[:, None]
  return scaled if top_k is None or top_p is None else keep_top(scaled, top_k, top_p)
