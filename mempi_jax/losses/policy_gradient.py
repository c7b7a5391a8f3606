"""Stage 2, adaptation distillation (method section 3): losses of the decision and of the content, small and pure.

The decision's argument is l = logit[GENERATE] − logit[ABSTAIN] f32[B], with π(GENERATE) = sigmoid(l). All losses divide by the number
of rows or tokens that count; rows that do not count may hold anything, NaN included, and get no gradient. A batch that is computed in
parts gives `num_rows` and `num_tokens` f32[], those of the whole: losses and metrics of the parts then add up to those of the whole. Each
returns the loss f32[] and metrics. Three forms of the decision update, by what they are fed:

    decision_regression_loss       effect estimates D̂ (rollout/effects.py), the default [O]
    decision_policy_gradient_loss  advantages, both decisions weighted exactly [O]
    decision_ratio_loss            advantages, clipped ratio per forced branch, the paper's plain form [P]
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def decision_regression_loss(
  l: jax.Array, l_ref: jax.Array, effect: jax.Array, valid: jax.Array, beta: float, num_rows: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """L_dec = ¼ · mean_x [ −2 · D̂ · l + (β/2) · (l − l_ref)² ], least at l = l_ref + 2 D̂ / β [O].

  l, l_ref, effect f32[B], valid bool[B]; beta > 0 in reward per logit.
  """
  l, l_ref, effect = _masked(valid, l, l_ref, effect)
  shift = l - l_ref
  loss = 0.25 * _mean(-2.0 * effect * l + 0.5 * beta * shift**2, valid, num_rows)
  error = jnp.abs(shift - 2.0 * effect / beta)
  return loss, _decision_metrics(l, l_ref, valid, num_rows) | {'decision/target_error': _mean(error, valid, num_rows)}


def decision_policy_gradient_loss(
  l: jax.Array, l_ref: jax.Array, adv: jax.Array, valid: jax.Array, kl: float, num_rows: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """− Σ_d π(d) A(d) + kl · KL(π ‖ π_ref), with A(GENERATE) = adv, A(ABSTAIN) = −adv; both exact over the two decisions [O].

  l, l_ref, adv f32[B], valid bool[B].
  """
  l, l_ref, adv = _masked(valid, l, l_ref, adv)
  value = (jax.nn.sigmoid(l) - jax.nn.sigmoid(-l)) * adv
  divergence = bernoulli_kl(l, l_ref)
  loss = _mean(kl * divergence - value, valid, num_rows)
  return loss, _decision_metrics(l, l_ref, valid, num_rows)


def decision_ratio_loss(
  l: jax.Array,
  old_logit: jax.Array,
  l_ref: jax.Array,
  adv: jax.Array,
  valid: jax.Array,
  *,
  num_generate: int,
  clip_low: float,
  clip_high: float,
  kl: float,
  num_rows: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The plain form: each branch's forced decision token with its own clipped ratio to the sampling policy [P].

  − mean over the 1 + K branches of min(ρ A, clip(ρ, 1 − clip_low, 1 + clip_high) A) + kl · k3, where ρ = π(d) / π_old(d), A = adv for
  the K generate branches and −adv for the one that abstains; k3 estimates KL to stage 1 at the branch's decision. Forced decisions are
  no samples of π_old, so K generate branches weigh K times the abstaining one: kept as a switch, for comparison.

  l, old_logit, l_ref, adv f32[B], valid bool[B]; num_generate K.
  """
  l, old_logit, l_ref, adv = _masked(valid, l, old_logit, l_ref, adv)
  loss = jnp.zeros(())
  clipped = jnp.zeros(())
  for sign, weight in ((1.0, num_generate / (1.0 + num_generate)), (-1.0, 1.0 / (1.0 + num_generate))):
    logp = jax.nn.log_sigmoid(sign * l)
    ratio = jnp.exp(logp - jax.nn.log_sigmoid(sign * old_logit))
    surrogate = _clipped_surrogate(ratio, sign * adv, clip_low, clip_high)
    divergence = k3(logp, jax.nn.log_sigmoid(sign * l_ref))
    loss = loss + weight * _mean(kl * divergence - surrogate, valid, num_rows)
    clipped = clipped + weight * _mean((surrogate < ratio * sign * adv).astype(jnp.float32), valid, num_rows)
  return loss, _decision_metrics(l, l_ref, valid, num_rows) | {'decision/clipped': clipped}


def content_policy_gradient_loss(
  logps: jax.Array,
  old_logps: jax.Array,
  ref_logps: jax.Array,
  adv: jax.Array,
  mask: jax.Array,
  clip_low: float,
  clip_high: float,
  kl: float,
  num_tokens: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """− Σ mask · min(ρ A, clip(ρ, 1 − clip_low, 1 + clip_high) A) / Σ mask + kl · Σ mask · k3 / Σ mask, a token at a time [P].

  logps, old_logps (sampling policy), ref_logps (stage 1), adv (of the token's branch), mask f32[B, C].
  """
  counts = mask > 0
  logps, old_logps, ref_logps, adv = _masked(counts, logps, old_logps, ref_logps, adv)
  ratio = jnp.exp(logps - old_logps)
  surrogate = _clipped_surrogate(ratio, adv, clip_low, clip_high)
  divergence = k3(logps, ref_logps)
  total = jnp.maximum(mask.sum() if num_tokens is None else num_tokens, 1.0)
  mean = lambda values: (mask * values).sum() / total
  loss = mean(kl * divergence - surrogate)
  metrics = {
    'content/kl': mean(divergence),
    'content/clipped': mean((surrogate < ratio * adv).astype(jnp.float32)),
    'content/ratio': mean(ratio),
  }
  return loss, metrics


def bernoulli_kl(l: jax.Array, l_ref: jax.Array) -> jax.Array:
  """KL(Bernoulli(sigmoid(l)) ‖ Bernoulli(sigmoid(l_ref))), nats, exact; f32 of any shape."""
  generate = jax.nn.sigmoid(l) * (jax.nn.log_sigmoid(l) - jax.nn.log_sigmoid(l_ref))
  abstain = jax.nn.sigmoid(-l) * (jax.nn.log_sigmoid(-l) - jax.nn.log_sigmoid(-l_ref))
  return generate + abstain


def k3(logps: jax.Array, ref_logps: jax.Array) -> jax.Array:
  """The k3 estimate of KL(π ‖ π_ref) at samples of π: r − 1 − log r with r = π_ref / π; never negative [P]."""
  log_ratio = ref_logps - logps
  return jnp.expm1(log_ratio) - log_ratio


def _clipped_surrogate(ratio: jax.Array, adv: jax.Array, clip_low: float, clip_high: float) -> jax.Array:
  return jnp.minimum(ratio * adv, jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high) * adv)


def _masked(counts: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
  # Zeroed before any arithmetic: a NaN times 0 is NaN, and so would be its gradient.
  return tuple(jnp.where(counts, array, 0.0) for array in arrays)


def _mean(values: jax.Array, valid: jax.Array, num_rows: jax.Array | None) -> jax.Array:
  rows = valid.astype(jnp.float32)
  return (rows * values).sum() / jnp.maximum(rows.sum() if num_rows is None else num_rows, 1.0)


def _decision_metrics(l: jax.Array, l_ref: jax.Array, valid: jax.Array, num_rows: jax.Array | None) -> dict[str, jax.Array]:
  return {
    'decision/p_generate': _mean(jax.nn.sigmoid(l), valid, num_rows),
    'decision/shift': _mean(l - l_ref, valid, num_rows),
    'decision/kl': _mean(bernoulli_kl(l, l_ref), valid, num_rows),
  }
