"""Stage 1, experience distillation (method section 2): maximum likelihood of the bank's decision and content."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def sft_loss(
  decision_logit: jax.Array,
  logps: jax.Array,
  content_mask: jax.Array,
  decision_target: jax.Array,
  valid: jax.Array,
  num_rows: jax.Array | None = None,
  num_tokens: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """− log P(decision) − mean log P(content and end-of-sequence), content only where the target is GENERATE.

  The paper's sum over the completion's tokens [P]; the two parts are divided by their own mask's sum, so that a batch's decisions
  weigh the same whatever its contents' lengths [O].

  Args:
    decision_logit: f32[B] l = logit[GENERATE] − logit[ABSTAIN]; P(GENERATE) = sigmoid(l).
    logps: f32[B, C] log-probs of the scored content tokens.
    content_mask: f32[B, C] 1 where they count.
    decision_target: f32[B] P(GENERATE) to be learned: 1 GENERATE, 0 ABSTAIN.
    valid: bool[B].
    num_rows, num_tokens: f32[] of the whole batch, where it is computed in parts whose losses add up.

  Returns the loss f32[] and metrics loss/decision, loss/content, decision/p_generate (nats, nats per token, a probability).
  """
  rows = valid.astype(jnp.float32)
  num_rows = jnp.maximum(rows.sum() if num_rows is None else num_rows, 1.0)
  log_generate, log_abstain = jax.nn.log_sigmoid(decision_logit), jax.nn.log_sigmoid(-decision_logit)
  decision = -(rows * (decision_target * log_generate + (1.0 - decision_target) * log_abstain)).sum() / num_rows
  mask = content_mask * (rows * (decision_target > 0.5))[:, None]
  content = -jnp.where(mask > 0, mask * logps, 0.0).sum() / jnp.maximum(mask.sum() if num_tokens is None else num_tokens, 1.0)
  metrics = {
    'loss/decision': decision,
    'loss/content': content,
    'decision/p_generate': (rows * jax.nn.sigmoid(decision_logit)).sum() / num_rows,
  }
  return decision + content, metrics
