"""From outcomes to rewards and advantages (method section 3): length reward, content advantages, the paper's decision advantages.

Host side: numpy only. The effect estimates that replace the paper's decision advantages live in rollout/effects.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def _none(success: np.ndarray, length: np.ndarray, weight: float, max_length: int) -> np.ndarray:
  return success + 0.0 * length


def _additive(success: np.ndarray, length: np.ndarray, weight: float, max_length: int) -> np.ndarray:
  return success - weight * length / max_length


def _outcome_gated(success: np.ndarray, length: np.ndarray, weight: float, max_length: int) -> np.ndarray:
  return success * (1.0 - weight * length / max_length)


# outcome_gated ranks successful branches alone: r = success · (1 − λ · len / L_max) [O]; additive charges failures too.
LENGTH_REWARDS: dict[str, Callable[[np.ndarray, np.ndarray, float, int], np.ndarray]] = {
  'outcome_gated': _outcome_gated,
  'none': _none,
  'additive': _additive,
}


def shape_rewards(success: np.ndarray, length: np.ndarray, *, form: str, weight: float, max_length: int) -> np.ndarray:
  """Rewards with a length term, f32 of the shape of `success`.

  Args:
    success: f[...] base rewards.
    length: i[...] content tokens of the branch; 0 where it abstained, which costs nothing.
    form: a name in LENGTH_REWARDS.
    weight: λ, largest price of a content.
    max_length: L_max, tokens.

  Raises:
    ValueError: unknown form, shapes that differ, lengths outside 0..max_length.
  """
  if form not in LENGTH_REWARDS:
    raise ValueError(f'unknown length reward {form!r}: expected one of {", ".join(LENGTH_REWARDS)}')
  success, length = np.asarray(success, np.float64), np.asarray(length, np.float64)
  if success.shape != length.shape:
    raise ValueError(f'expected one length a reward, found shapes {success.shape} and {length.shape}')
  if max_length < 1 or (length < 0).any() or (length > max_length).any():
    raise ValueError(f'expected lengths between 0 and max_length >= 1, found {length.tolist()} and max_length {max_length}')
  return LENGTH_REWARDS[form](success, length, weight, max_length).astype(np.float32)


# How a group's advantages are scaled: the paper's c and s are not public. 'raw' is unbiased over difficulty; 'std' is not (branch_std).
SCALES = ('raw', 'std')


def content_advantages(
  rewards: np.ndarray,
  abstain: np.ndarray,
  *,
  scale: str,
  epsilon: float,
  gate: str,
  effect: np.ndarray | None = None,
  negative: float = 1.0,
) -> np.ndarray:
  """A_con,j = 1[gate] · (r_j − mean_i r_i) · c, f32[G, K] [P]; where that is negative, times `negative` [O].

  Args:
    rewards: f[G, K] of the generate branches.
    abstain: f[G] mean reward of the context's abstain outcomes.
    scale: c = 1 ('raw') or 1 / (standard deviation of the generate branches + epsilon) ('std').
    epsilon: see scale.
    gate: 'delta', Δ = mean r − abstain > 0 [P]; 'effect', the estimate `effect` > 0 [O]; 'open', always.
    effect: f[G] of rollout/effects.py, for gate 'effect'.
    negative: weight of negative advantages, 1 in the paper. What a small policy is pushed away from it may replace with anything, in
      other contexts too; what it is pulled towards has at least worked once.

  Raises:
    ValueError: unknown scale or gate, shapes that do not fit, no effect for gate 'effect'.
  """
  if scale not in SCALES:
    raise ValueError(f'unknown content scale {scale!r}: expected one of {", ".join(SCALES)}')
  if gate not in ('delta', 'effect', 'open'):
    raise ValueError(f'unknown content gate {gate!r}: expected one of delta, effect, open')
  rewards, abstain = _groups(rewards, abstain)
  mean = rewards.mean(axis=1)
  if gate == 'delta':
    passes = mean > abstain
  elif gate == 'effect':
    if effect is None or np.shape(effect) != abstain.shape:
      raise ValueError(f'gate effect needs one effect a group, found {None if effect is None else np.shape(effect)} for {abstain.shape}')
    passes = np.asarray(effect) > 0
  else:
    passes = np.ones(len(abstain), bool)
  centred = rewards - mean[:, None]
  if scale == 'std':
    centred = centred / (rewards.std(axis=1, keepdims=True) + epsilon)
  centred = np.where(centred < 0, negative * centred, centred)
  return (centred * passes[:, None]).astype(np.float32)


def decision_advantages(rewards: np.ndarray, abstain: np.ndarray, *, scale: str, epsilon: float) -> np.ndarray:
  """The paper's plain A_dec([GENERATE]) = Δ · s, Δ = mean_j r_j − r_0, f32[G]; that of ABSTAIN is its negative [P].

  scale: s = 1 ('raw') or 1 / (standard deviation of the group {r_0, r_1..r_K} + epsilon) ('std'). Shapes as in `content_advantages`.
  """
  if scale not in SCALES:
    raise ValueError(f'unknown decision scale {scale!r}: expected one of {", ".join(SCALES)}')
  rewards, abstain = _groups(rewards, abstain)
  delta = rewards.mean(axis=1) - abstain
  if scale == 'std':
    delta = delta / (np.concatenate([abstain[:, None], rewards], axis=1).std(axis=1) + epsilon)
  return delta.astype(np.float32)


def vanilla_advantages(
  rewards: np.ndarray, generated: np.ndarray, p_generate: np.ndarray, *, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
  """Plain GRPO over whole completions, an ablation: A_j = (r_j − mean r) / (std r + epsilon), the same for the decision and the content.

  The decisions are samples of the policy, so the decision's gradient is that of mean_j A_j log π(d_j), which is
  c = mean_j A_j (1[d_j = GENERATE] − p) times that of l.

  Args:
    rewards: f[G, K] of the sampled branches, whichever way they decided.
    generated: bool[G, K], whether a branch generated.
    p_generate: f[G] of the sampling policy.
    epsilon: added to the standard deviation.

  Returns content advantages f32[G, K], 0 where a branch abstained, and decision advantages f32[G], scaled so that
  `decision_policy_gradient_loss`, whose gradient in l is 2 p (1 − p) adv, has the gradient c.
  """
  rewards, p_generate = _groups(rewards, p_generate)
  generated, p = np.asarray(generated, bool), np.clip(p_generate, 1e-3, 1 - 1e-3)
  advantages = (rewards - rewards.mean(axis=1, keepdims=True)) / (rewards.std(axis=1, keepdims=True) + epsilon)
  slope = np.mean(advantages * (generated - p[:, None]), axis=1)
  return np.where(generated, advantages, 0.0).astype(np.float32), (slope / (2 * p * (1 - p))).astype(np.float32)


def _groups(rewards: np.ndarray, abstain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  rewards, abstain = np.asarray(rewards, np.float64), np.asarray(abstain, np.float64)
  if rewards.ndim != 2 or not rewards.shape[1] or abstain.shape != rewards.shape[:1]:
    raise ValueError(f'expected rewards [G, K] and abstain [G], found shapes {rewards.shape} and {abstain.shape}')
  return rewards, abstain
