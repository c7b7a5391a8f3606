"""Next-token loss over whole rows: what the agent is cloned with, and what `python -m mempi_jax.bench sft` measures.

The vocabulary projection and the loss are one step, chunk by chunk, so that the logits [tokens, V], the largest array of a training step,
never exist.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

# Tokens projected at a time. On a processor the logits of 512 tokens still fit its cache; an accelerator wants larger products.
CPU_CHUNK, CHUNK = 512, 4096


def next_token_loss(matrix: jax.Array, hidden: jax.Array, tokens: jax.Array, weights: jax.Array) -> jax.Array:
  """Mean negative log-likelihood f32[] (nats per token) of the weighted tokens, each predicted from the hidden state before it.

  Args:
    matrix: [V, D] the output matrix.
    hidden: [B, T, D] hidden states after each token.
    tokens: i32[B, T].
    weights: f32[B, T] of each token as a target; a row's first token has none before it, and does not count.
  """
  # The last token of a row predicts nothing: weight 0 costs less than cutting it out of every row.
  targets, weights = jnp.roll(tokens, -1, axis=1), jnp.roll(weights, -1, axis=1).at[:, -1].set(0.0)
  chunk = min(CPU_CHUNK if jax.default_backend() == 'cpu' else CHUNK, tokens.size)
  total = projected_nll(matrix, hidden.reshape(tokens.size, -1), targets.reshape(-1), weights.reshape(-1), chunk)
  return total / jnp.maximum(jnp.sum(weights), 1.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def projected_nll(matrix: jax.Array, hidden: jax.Array, targets: jax.Array, weights: jax.Array, chunk: int) -> jax.Array:
  """Weighted sum f32[] of the negative log-likelihoods of tokens, projected onto the vocabulary `chunk` tokens at a time.

  The gradient is made in the same pass, so no chunk's logits are kept or computed twice, and [N, V] never exists.

  Args:
    matrix: f32[V, D] the output matrix.
    hidden: [N, D]; a product with `matrix` is taken in its dtype and summed in float32.
    targets: i32[N].
    weights: f32[N]; no gradient flows to them.
    chunk: a whole number of tokens.
  """
  projection = matrix.astype(hidden.dtype)

  def add(total: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
    nll, _ = _chunk_nll(projection, *part)
    return total + nll, None

  return jax.lax.scan(add, jnp.float32(0.0), _chunks(hidden, targets, weights, chunk))[0]


def _chunks(hidden: jax.Array, targets: jax.Array, weights: jax.Array, chunk: int) -> tuple[jax.Array, ...]:
  """Each array [N, ...] as [N / chunk, chunk, ...], filled up with tokens of weight 0."""
  missing = -len(targets) % chunk
  return tuple(
    jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)).reshape(-1, chunk, *array.shape[1:])
    for array in (hidden, targets, weights)
  )


def _chunk_nll(projection: jax.Array, hidden: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The sum of one chunk, and its gradient with respect to the logits f32[chunk, V]."""
  logits = jnp.matmul(hidden, projection.T, preferred_element_type=jnp.float32)
  largest = jnp.max(logits, axis=-1, keepdims=True)
  exponentials = jnp.exp(logits - largest)
  total = jnp.sum(exponentials, axis=-1, keepdims=True)
  chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)
  nll = jnp.sum((largest + jnp.log(total) - chosen)[:, 0] * weights)
  gradient = exponentials * (weights[:, None] / total)
  return nll, gradient.at[jnp.arange(len(targets)), targets].add(-weights)


def _projected_nll_forward(
  matrix: jax.Array, hidden: jax.Array, targets: jax.Array, weights: jax.Array, chunk: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  projection = matrix.astype(hidden.dtype)

  def add(carry: tuple[jax.Array, jax.Array], part: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    nll, by_logits = _chunk_nll(projection, *part)
    by_logits = by_logits.astype(hidden.dtype)
    # The small matrix is transposed before the product, not within it, which is a third faster on XLA:CPU.
    by_matrix = jnp.matmul(jax.lax.optimization_barrier(part[0].T), by_logits, preferred_element_type=jnp.float32)
    return (carry[0] + nll, carry[1] + by_matrix), by_logits @ projection

  start = (jnp.float32(0.0), jnp.zeros(matrix.shape[::-1], jnp.float32))  # [D, V]
  (nll, by_matrix), by_hidden = jax.lax.scan(add, start, _chunks(hidden, targets, weights, chunk))
  return nll, (by_matrix.T.astype(matrix.dtype), by_hidden.reshape(-1, hidden.shape[1])[: len(hidden)])


def _projected_nll_backward(chunk: int, saved: tuple[jax.Array, jax.Array], factor: jax.Array) -> tuple[jax.Array | None, ...]:
  by_matrix, by_hidden = saved
  return by_matrix * factor.astype(by_matrix.dtype), by_hidden * factor.astype(by_hidden.dtype), None, None


projected_nll.defvjp(_projected_nll_forward, _projected_nll_backward)
