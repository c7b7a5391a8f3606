"""What each stage minimises, as one function of a batch's scores; `num_rows` and `num_tokens` are those of the whole batch where it is computed in parts."""

from __future__ import annotations

import jax
from ml_collections import FrozenConfigDict

from mempi_jax.losses.policy_gradient import (
  content_policy_gradient_loss,
  decision_policy_gradient_loss,
  decision_ratio_loss,
  decision_regression_loss,
)
from mempi_jax.losses.sft import sft_loss
from mempi_jax.types import TrainBatch


def imitation_loss(
  logit: jax.Array, logps: jax.Array, batch: TrainBatch, num_rows: jax.Array | None, num_tokens: jax.Array | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """SFT's loss of a batch (method section 2)."""
  return sft_loss(logit, logps, batch.content_mask, batch.decision_target, batch.valid, num_rows, num_tokens)


def stage2_loss(
  config: FrozenConfigDict,
  logit: jax.Array,
  logps: jax.Array,
  batch: TrainBatch,
  num_rows: jax.Array | None,
  num_tokens: jax.Array | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Decision and content losses with weights of their own (method section 3)."""
  match config.decision_loss:
    case 'regression':
      decision, metrics = decision_regression_loss(
        logit, batch.ref_logit, batch.decision_adv, batch.valid, beta=config.decision_beta, num_rows=num_rows
      )
    case 'policy_gradient':
      decision, metrics = decision_policy_gradient_loss(
        logit, batch.ref_logit, batch.decision_adv, batch.valid, kl=config.decision_kl, num_rows=num_rows
      )
    case 'ratio':
      decision, metrics = decision_ratio_loss(
        logit, batch.old_logit, batch.ref_logit, batch.decision_adv, batch.valid, num_generate=config.branches,
        clip_low=config.decision_clip, clip_high=config.decision_clip, kl=config.decision_kl, num_rows=num_rows,
      )  # fmt: skip
  content, content_metrics = content_policy_gradient_loss(
    logps, batch.old_logps, batch.ref_logps, batch.content_adv, batch.content_mask,
    clip_low=config.clip_low, clip_high=config.clip_high, kl=config.content_kl, num_tokens=num_tokens,
  )  # fmt: skip
  total = config.decision_weight * decision + config.content_weight * content
  return total, {'loss/decision': decision, 'loss/content': content, **metrics, **content_metrics}
