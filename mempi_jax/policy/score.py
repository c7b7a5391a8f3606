"""Scoring of packed rows: the decision's logit and the log-probs of given completions, in one forward pass a row.

A row holds a prompt and its branches side by side (`types.TrainBatch`); the prompt is computed once for all of them, and only the
scored tokens are projected onto the vocabulary, so [B, T, V] logits never exist.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from mempi_jax.models.decoder import Decoder, DecoderConfig, output_matrix
from mempi_jax.types import Context, TrainBatch

if TYPE_CHECKING:
  from mempi_jax.policy.policy import GuidancePolicy


MAX_LOGITS = 2**28  # 1 GiB of float32


def branch_mask(branch: jax.Array) -> jax.Array:
  """branch i32[B, T] (0 prompt, 1..K completions, -1 padding) -> bool[B, T, T]: causal, own branch and the prompt only."""
  time = branch.shape[1]
  causal = jnp.tril(jnp.ones((time, time), bool))
  visible = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
  return causal[None] & visible


def decision_logit(params: Any, hidden: jax.Array, generate_id: int, abstain_id: int) -> jax.Array:
  """l = logit[GENERATE] − logit[ABSTAIN] f32[B] from the hidden states [B, D] where the policy decides."""
  pair = output_matrix(params)[jnp.array([generate_id, abstain_id])].astype(hidden.dtype)
  decision = jnp.matmul(hidden, pair.T, preferred_element_type=jnp.float32)
  return decision[:, 0] - decision[:, 1]


def score_rows(
  config: DecoderConfig,
  params: Any,
  generate_id: int,
  abstain_id: int,
  tokens: jax.Array,
  branch: jax.Array,
  positions: jax.Array,
  decision_index: jax.Array,
  score_index: jax.Array,
  targets: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Arrays as in `types.TrainBatch`. Returns the decision logit l = logit[GENERATE] − logit[ABSTAIN] f32[B] and logps f32[B, C]."""
  model = Decoder(config)
  hidden = model.apply({'params': params}, tokens, positions, branch_mask(branch))
  # Row by row, so that on a mesh each device takes from its own rows.
  take = lambda index: jnp.take_along_axis(hidden, index[..., None], axis=1)
  decision = decision_logit(params, take(decision_index[:, None])[:, 0], generate_id, abstain_id)
  return decision, token_logps(config, params, take(score_index), targets)


def token_logps(config: DecoderConfig, params: Any, hidden: jax.Array, targets: jax.Array, max_logits: int = MAX_LOGITS) -> jax.Array:
  """Log-probs f32[B, C] of targets i32[B, C] after hidden states [B, C, D].

  Where more than `max_logits` logits would exist at once, the tokens are projected chunk by chunk, and again in the backward pass.
  """

  def project(part: tuple[jax.Array, jax.Array]) -> jax.Array:
    logits = Decoder(config).apply({'params': params}, part[0], method='logits')
    chosen = jnp.take_along_axis(logits, part[1][..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)

  batch, count = targets.shape
  width = max(1, min(count, max_logits // (batch * config.vocab_size)))
  if width == count:
    return project((hidden, targets))
  chunks = -(-count // width)
  pad = lambda array: jnp.pad(array, [(0, 0), (0, chunks * width - count)] + [(0, 0)] * (array.ndim - 2))
  split = lambda array: jnp.moveaxis(pad(array).reshape(batch, chunks, width, *array.shape[2:]), 1, 0)
  logps = jax.lax.map(jax.checkpoint(project), (split(hidden), split(targets)))
  return jnp.moveaxis(logps, 0, 1).reshape(batch, chunks * width)[:, :count]


@functools.partial(jax.jit, static_argnames='config')
def _last_states(config: DecoderConfig, params: Any, tokens: jax.Array, last: jax.Array) -> jax.Array:
  time = tokens.shape[1]
  positions = jnp.broadcast_to(jnp.arange(time), tokens.shape)
  hidden = Decoder(config).apply({'params': params}, tokens, positions, None)
  return hidden[jnp.arange(tokens.shape[0]), last]


def decision_states(policy: GuidancePolicy, contexts: Sequence[Context], batch_size: int = 64) -> tuple[np.ndarray, np.ndarray]:
  """What the policy knows where it decides: the logit l f32[N] and the hidden state at the prompt's last token f32[N, D]."""
  states = []
  for start in range(0, len(contexts), batch_size):
    prompts = [policy.prompt(context) for context in contexts[start : start + batch_size]]
    tokens = np.zeros((batch_size, policy.max_prompt), np.int32)
    for row, ids in enumerate(prompts):
      tokens[row, : len(ids)] = ids
    last = np.array([len(ids) - 1 for ids in prompts] + [0] * (batch_size - len(prompts)), np.int32)
    states.append(np.asarray(_last_states(policy.config, policy.params, tokens, last), np.float32)[: len(prompts)])
  hidden = np.concatenate(states)
  matrix = np.asarray(output_matrix(policy.params)[jnp.array([policy.generate_id, policy.abstain_id])], np.float32)
  return hidden @ (matrix[0] - matrix[1]), hidden


@functools.lru_cache
def make_scorer(config: DecoderConfig, generate_id: int, abstain_id: int) -> Callable[[Any, TrainBatch], jax.Array]:
  """(params, batch) -> log-probs of its targets, f32[B, C], compiled once."""

  @jax.jit
  def logps(params: Any, tokens: Any, branch: Any, positions: Any, decision_index: Any, score_index: Any, targets: Any) -> Any:
    return score_rows(config, params, generate_id, abstain_id, tokens, branch, positions, decision_index, score_index, targets)[1]

  return lambda params, batch: logps(
    params, batch.tokens, batch.branch, batch.positions, batch.decision_index, batch.score_index, batch.targets
  )
