"""Drawing tokens: one uniform number a token, from its row's own seed and position, so that a sample depends on nothing else."""

from __future__ import annotations

import jax
import jax.numpy as jnp

NEVER = -1e30  # the logit of a token that top-k or top-p leaves out
BLOCK = 128  # tokens whose probabilities are summed before those of one of them are looked at


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
  """Numbers in [0, 1), one for each of the positions i32[B] or i32[B, T] of a row's transcript, from the rows' seeds u32[B]."""
  number = lambda seed, position: jax.random.uniform(jax.random.fold_in(jax.random.key(seed), position))
  row = lambda seed, positions: jax.vmap(number, (None, 0))(seed, positions) if positions.ndim else number(seed, positions)
  return jax.vmap(row)(seeds, positions)


def draw(scaled: jax.Array, uniform: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Inverse transform sampling: token i32[B] and its log-prob f32[B], of scaled logits f32[B, V] and uniform numbers f32[B] in [0, 1).

  Token i is drawn where cumulative[i - 1] <= uniform < cumulative[i], so a token whose probability is 0 never is. The sum is taken in two
  levels, over blocks and within the block that is drawn: a long running sum is slow everywhere.
  """
  (rows, size), at = scaled.shape, jnp.arange(len(scaled))
  largest = jnp.max(scaled, axis=-1, keepdims=True)
  weights = jnp.pad(jnp.exp(scaled - largest), ((0, 0), (0, -size % BLOCK))).reshape(rows, -1, BLOCK)
  ends = jnp.cumsum(jnp.sum(weights, axis=-1), axis=-1)
  target = uniform * ends[:, -1]
  block = jnp.sum(ends <= target[:, None], axis=-1)  # the product is less than the last end, so there is such a block
  before = jnp.where(block > 0, ends[at, block - 1], 0.0)
  inside = weights[at, block]
  index = jnp.sum(jnp.cumsum(inside, axis=-1) <= (target - before)[:, None], axis=-1)
  last = jnp.max(jnp.where(inside > 0, jnp.arange(BLOCK), 0), axis=-1)  # the two sums of a block may differ in their last bits
  token = (block * BLOCK + jnp.minimum(index, last)).astype(jnp.int32)
  return token, scaled[at, token] - largest[:, 0] - jnp.log(ends[:, -1])


def sample(
  logits: jax.Array,
  uniform: jax.Array,
  temperature: jax.Array,
  top_k: jax.Array | None = None,
  top_p: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """One token a row, i32[B], and its log-prob f32[B] under the distribution that it was drawn from (0 where it was greedy).

  Args:
    logits: f32[B, V].
    uniform: f32[B] of `uniforms`.
    temperature: f32[B]; 0: greedy.
    top_k, top_p: see `keep_top`; None: all tokens.
  """
  greedy = temperature <= 0
  drawn = lambda: draw(_scaled(logits, temperature, top_k, top_p), uniform)
  best = lambda: (jnp.argmax(logits, axis=-1).astype(jnp.int32), jnp.zeros(len(logits)))

  def both() -> tuple[jax.Array, jax.Array]:
    return jax.tree.map(lambda a, b: jnp.where(greedy, a, b), best(), drawn())

  # Most batches are all of one kind, and the other is not computed.
  return jax.lax.cond(jnp.any(greedy), lambda: jax.lax.cond(jnp.all(greedy), best, both), drawn)


def _scaled(logits: jax.Array, temperature: jax.Array, top_k: jax.Array | None, top_p: jax.Array | None) -> jax.Array:
  scaled = logits / jnp.maximum(temperature, 1e-6)[:, None]
  return scaled if top_k is None or top_p is None else keep_top(scaled, top_k, top_p)
