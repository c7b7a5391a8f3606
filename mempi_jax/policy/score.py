"""Scoring of packed rows: the decision's logit and the log-probs of given completions, in one forward pass a row.

A row holds a prompt and its branches side by side (`types.TrainBatch`); the prompt is computed once for all of them, and only the
scored tokens are projected onto the vocabulary, so [B, T, V] logits never exist.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mempi_jax.models.decoder import Decoder, DecoderConfig


def branch_mask(branch: jax.Array) -> jax.Array:
  """branch i32[B, T] (0 prompt, 1..K completions, -1 padding) -> bool[B, T, T]: causal, own branch and the prompt only."""
  time = branch.shape[1]
  causal = jnp.tril(jnp.ones((time, time), bool))
  visible = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
  return causal[None] & visible


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
  rows = jnp.arange(tokens.shape[0])
  pair = params['embedding'][jnp.array([generate_id, abstain_id])]  # the tied embedding is the output projection
  decision = hidden[rows, decision_index] @ pair.T
  logits = model.apply({'params': params}, hidden[rows[:, None], score_index], method='logits')
  chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return decision[:, 0] - decision[:, 1], chosen - jax.nn.logsumexp(logits, axis=-1)
