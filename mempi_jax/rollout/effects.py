"""What guidance does in a context: estimates of the effect D(x) of generating, from noisy outcomes (method section 3, decision level).

The paper feeds the decision with one group's Δ = mean of its generate rewards − its abstain reward [P]. Here all outcomes seen so far
count [O]. A signal is a function from those to one number a context; `SIGNALS` lists them by name:

    pooled      evidence shared between contexts, see below; for `decision_regression_loss`
    shrunk      a context's own mean difference, shrunk by one τ² / (τ² + s²); the method's first decision update
    mean        the same, not shrunk
    raw         the latest group's Δ [P]
    sign        its sign, the controls' foil: where guidance does nothing it pushes easy contexts one way and hard ones the other, as
                soon as the two means rest on unequal numbers of outcomes (one against K: easy to abstain; stripped guidance, where
                the K branches are one outcome, against m: easy to generate; equal numbers: no push)
    group_std   Δ over the standard deviation of the whole group, abstain outcomes included
    branch_std  Δ over the standard deviation of the generate branches; biased over difficulty as well, the other way round

**Pooled evidence** [O]. The effect is split in two, D = S + L: S is the effect on success, L ≤ 0 the price of the tokens
(mean of reward − success over generate branches). L is nearly free of noise and is used as it stands. S is the posterior mean of a
Bayesian linear regression over contexts, on the features of the frozen stage-1 policy, averaged over models by their evidence:

    S_i = mean generate success − mean abstain success of context i = z_i·w + noise,   noise ~ N(0, κ v_i),   w ~ N(0, κ σ² Λ)
    v_i = p̄_i (1 − p̄_i) (1/n_i + 1/m_i)     p̄_i: success rate smoothed over contexts, so that weights do not depend on S_i
    n_i: effective generate outcomes (branches with equal text count once), discounted with age;   m_i: abstain outcomes
    z_i = (1, difficulty_i, principal components of the features);   κ: noise scale, integrated out (over-dispersion, shared seeds)
    models: constant + features, with or without difficulty, times prior scales σ and spectra (Λ ∝ eigenvalue^a), equally likely

Why it holds the null: S_i has mean zero there whatever the context's success rate, and a linear smoother keeps that; pooling makes
the rest small and, by the central limit theorem, symmetric, so that gates on the pooled estimate are unbiased where gates on a single
context's Δ are not. There are two gates. The whole is multiplied by the posterior probability of an effect, B / (B + e^evidence), with
B the Bayes factor against S = 0: were the noise model exact, B would be a non-negative martingale in a null world, which ever exceeds
e^evidence with probability at most e^-evidence, however often one looks. And each context is multiplied by max(0, 1 − local / z²), z
being its posterior mean over its standard deviation. While S is not established L alone moves the decision: nothing does where tokens
are free. Difficulty is the leave-one-out prediction of the context's abstain success from the *other* contexts' outcomes: its own
enter S_i, and would regress to the mean. One row a context, so abstain outcomes shared by all its visits are counted once.

Host side: numpy only. Plain float64, deterministic; state and restore are exact.
"""

from __future__ import annotations

import collections
import difflib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def effective_count(texts: Sequence[str]) -> float:
  """Number of independent outcomes among branches that share an agent seed: 1 / Σ share², equal texts having equal outcomes [O].

  `texts` are what the agent saw: where guidance is stripped from its prompt they are all equal, and count as one outcome.
  """
  counts = collections.Counter(texts).values()
  return len(texts) ** 2 / sum(count**2 for count in counts)


class EffectEstimator:
  """Collects outcomes and estimates the effect of guidance in each context.

  register (once a context) and observe (each visit) collect; estimate answers for the contexts of an update; `diagnostics` holds
  figures about the last estimate, named effect/..., for the metrics.
  """

  def __init__(
    self,
    signal: str,
    features: np.ndarray,
    *,
    evidence: float = 3.0,
    local: float = 4.0,
    components: int = 64,
    scales: Sequence[float] = (0.03, 0.1, 0.3),
    spectra: Sequence[float] = (0.0, 1.0),
    half_life: float = float('inf'),
    limit: float = 0.1,
    noise_strength: float = 20.0,
    min_rate: float = 0.05,
    tau_decay: float = 0.9,
    epsilon: float = 0.1,
  ):
    """
    Args:
      signal: a name in SIGNALS.
      features: f32[N, D], the frozen stage-1 policy's features of all contexts (e.g. hidden states at the decision).
      evidence: nats of evidence against "no effect" at which half of the pooled estimate is used (pooled).
      local: variance units of the gate on each context, 0 for none (pooled).
      components: principal components of the features that the regression sees, at most (pooled).
      scales: prior standard deviations σ of the effect, in units of success rate (pooled).
      spectra: exponents a of the prior's spectrum, 0 white, 1 as the features are (pooled).
      half_life: updates after which a generate outcome counts half, as content improves; inf never (pooled, shrunk, mean).
      limit: the effect is bent to limit · tanh(effect / limit), so that clear cases do not pull at the others through the network;
        with a spring β the logit moves by at most 2 limit / β. 0 does not bend (pooled).
      noise_strength: degrees of freedom of the prior κ ~ 1 (pooled).
      min_rate: smoothed success rates are clipped to [min_rate, 1 − min_rate] in the noise variance (pooled).
      tau_decay: of the running mean of τ² (shrunk).
      epsilon: added to standard deviations (group_std, branch_std).

    Raises:
      ValueError: unknown signal, or arguments out of range.
    """
    if signal not in SIGNALS:
      near = difflib.get_close_matches(signal, SIGNALS, n=1)
      hint = f'; did you mean {near[0]}?' if near else ''
      raise ValueError(f'unknown effect signal {signal!r}: expected one of {", ".join(SIGNALS)}{hint}')
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or not len(features) or not np.isfinite(features).all():
      raise ValueError(f'features: expected finite numbers of shape [contexts, features], found shape {features.shape}')
    fits = min(evidence, local, limit) >= 0 and 0 < min_rate < 0.5 and half_life > 0 and noise_strength > 0 and 0 <= tau_decay < 1
    if not fits:
      raise ValueError(
        f'expected evidence, local, limit >= 0, 0 < min_rate < 0.5, half_life > 0, noise_strength > 0, 0 <= tau_decay < 1; found '
        f'{evidence}, {local}, {limit}, {min_rate}, {half_life}, {noise_strength}, {tau_decay}'
      )
    if components < 1 or not scales or min(scales) <= 0 or not spectra:
      raise ValueError(f'expected components >= 1, positive scales, spectra; found {components}, {scales}, {spectra}')
    self.signal = signal
    self.evidence, self.local, self.scales, self.spectra = evidence, local, tuple(scales), tuple(spectra)
    self.half_life, self.limit, self.noise_strength, self.min_rate = half_life, limit, noise_strength, min_rate
    self.tau_decay, self.epsilon = tau_decay, epsilon
    self.basis, self.eigenvalues = principal_components(features, components)
    n = len(features)
    # Sums over outcomes, one entry a context; generate sums are discounted to the update `seen`.
    self.abstain_count, self.abstain_mean = np.zeros(n), np.zeros(n)
    self.count, self.success_sum, self.cost_sum, self.seen = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n, np.int64)
    self.abstain: dict[int, list[float]] = {}  # as registered
    self.latest: dict[int, tuple[list[float], int]] = {}  # rewards of the latest visit
    self.tau_sum = self.tau_weight = 0.0
    self.diagnostics: dict[str, float] = {}

  def register(self, context: int, abstain_outcomes: Sequence[float] | np.ndarray) -> None:
    """The cached rewards f[m] of the agent without guidance, distinct agent seeds. Again for a context: they are replaced."""
    outcomes = np.asarray(abstain_outcomes, np.float64)
    if outcomes.ndim != 1 or not len(outcomes) or not np.isfinite(outcomes).all():
      raise ValueError(f'context {context}: expected one or more finite abstain outcomes, found {abstain_outcomes!r}')
    self._check(context)
    self.abstain[context] = outcomes.tolist()
    self.abstain_count[context], self.abstain_mean[context] = len(outcomes), outcomes.mean()

  def observe(self, context: int, rewards: Sequence[float], successes: Sequence[float], texts: Sequence[str], step: int) -> None:
    """One visit at update `step`: rewards f[K] (length term included) and successes f[K] (base rewards, without it) of the generate
    branches, and the guidance `texts` that the agent saw, by which equal branches are counted once."""
    rewards, successes = np.asarray(rewards, np.float64), np.asarray(successes, np.float64)
    if rewards.ndim != 1 or not len(rewards) or rewards.shape != successes.shape or len(texts) != len(rewards):
      raise ValueError(
        f'context {context}: expected equally many rewards, successes and texts, '
        f'found shapes {rewards.shape}, {successes.shape} and {len(texts)} texts'
      )
    self._check(context)
    if context not in self.abstain:
      raise ValueError(f'context {context} was observed before its abstain outcomes were registered')
    if step < self.seen[context]:
      raise ValueError(f'context {context}: observed at update {step} after update {self.seen[context]}')
    kept, count = 0.5 ** ((step - self.seen[context]) / self.half_life), effective_count(texts)
    self.count[context] = kept * self.count[context] + count
    self.success_sum[context] = kept * self.success_sum[context] + count * successes.mean()
    self.cost_sum[context] = kept * self.cost_sum[context] + count * (successes - rewards).mean()
    self.seen[context] = step
    self.latest[context] = (rewards.tolist(), step)

  def estimate(self, contexts: Sequence[int] | np.ndarray, step: int) -> np.ndarray:
    """The signal in contexts i[G] at update `step`, f32[G]. Fills `diagnostics`.

    Any observed context may be asked for, not the update's own alone: the decision can be trained on more contexts than were played.
    Ask once an update, for all of them: `shrunk` keeps a running mean over calls, and `pooled` fits anew at each.
    """
    contexts = np.asarray(contexts, np.int64)
    missing = [int(c) for c in contexts if c not in self.latest]
    if missing:
      raise ValueError(f'contexts {missing[:5]} have no observed generate outcomes')
    self.diagnostics = {'effect/contexts': float(len(self.latest))}
    effect = SIGNALS[self.signal](self, contexts, step)
    self.diagnostics |= {'effect/mean': float(effect.mean()), 'effect/rms': float(np.sqrt((effect**2).mean()))}
    return effect.astype(np.float32)

  def observed(self) -> np.ndarray:
    """The contexts i64[n] that `estimate` can be asked about: those with a visit, in order."""
    return np.array(sorted(self.latest), np.int64)

  def state(self) -> dict[str, Any]:
    """Everything that was collected, as a JSON-able tree."""
    rows = [
      {
        'context': context,
        'abstain': self.abstain[context],
        'count': float(self.count[context]),
        'success_sum': float(self.success_sum[context]),
        'cost_sum': float(self.cost_sum[context]),
        'seen': int(self.seen[context]),
        'latest': list(self.latest[context]) if context in self.latest else None,
      }
      for context in sorted(self.abstain)
    ]
    return {'signal': self.signal, 'tau_sum': self.tau_sum, 'tau_weight': self.tau_weight, 'contexts': rows}

  def restore(self, state: dict[str, Any]) -> None:
    """Takes a `state()` of an estimator with the same signal and features; what was collected before is dropped."""
    if state['signal'] != self.signal:
      raise ValueError(f'the saved state is of signal {state["signal"]!r}, this estimator has {self.signal!r}')
    for values in (self.abstain_count, self.abstain_mean, self.count, self.success_sum, self.cost_sum, self.seen):
      values[:] = 0
    self.abstain, self.latest = {}, {}
    self.tau_sum, self.tau_weight = state['tau_sum'], state['tau_weight']
    for row in state['contexts']:
      i = row['context']
      self.register(i, row['abstain'])
      self.count[i], self.success_sum[i], self.cost_sum[i], self.seen[i] = row['count'], row['success_sum'], row['cost_sum'], row['seen']
      if row['latest'] is not None:
        self.latest[i] = (list(row['latest'][0]), row['latest'][1])

  def _check(self, context: int) -> None:
    if not 0 <= context < len(self.count):
      raise ValueError(f'context {context}: expected an index into the {len(self.count)} contexts that have features')

  def differences(self, contexts: np.ndarray) -> np.ndarray:
    """Mean generate success − mean abstain success of each context, f64[G]."""
    return self.success_sum[contexts] / self.count[contexts] - self.abstain_mean[contexts]

  def costs(self, contexts: np.ndarray) -> np.ndarray:
    """L: mean of reward − success over a context's generate outcomes, f64[G]; 0 without a length term."""
    return -self.cost_sum[contexts] / self.count[contexts]


# Signals of single groups and single contexts.


def _raw(estimator: EffectEstimator, contexts: np.ndarray, step: int) -> np.ndarray:
  return np.array([np.mean(estimator.latest[i][0]) for i in contexts]) - estimator.abstain_mean[contexts]


def _sign(estimator: EffectEstimator, contexts: np.ndarray, step: int) -> np.ndarray:
  return np.sign(_raw(estimator, contexts, step))


def _group_std(estimator: EffectEstimator, contexts: np.ndarray, step: int) -> np.ndarray:
  spread = np.array([np.std(estimator.latest[i][0] + estimator.abstain[i]) for i in contexts])
  return _raw(estimator, contexts, step) / (spread + estimator.epsilon)


def _branch_std(estimator: EffectEstimator, contexts: np.ndarray, step: int) -> np.ndarray:
  spread = np.array([np.std(estimator.latest[i][0]) for i in contexts])
  return _raw(estimator, contexts, step) / (spread + estimator.epsilon)


def _mean(estimator: EffectEstimator, contexts: np.ndarray, step: int) -> np.ndarray:
  return estimator.differences(contexts) + estimator.costs(contexts)


def _shrunk(estimator: EffectEstimator, contexts: np.ndarray, step: int) -> np.ndarray:
  """D · τ² / (τ² + s²): method section 3, the decision update to start from."""
  difference = _mean(estimator, contexts, step)
  n, m = estimator.count[contexts], estimator.abstain_count[contexts]
  rate = (estimator.success_sum[contexts] + m * estimator.abstain_mean[contexts] + 0.5) / (n + m + 1.0)
  variance = rate * (1 - rate) * (1 / n + 1 / m)
  excess = max(float((difference**2).mean() - variance.mean()), 0.0)
  estimator.tau_sum = estimator.tau_decay * estimator.tau_sum + (1 - estimator.tau_decay) * excess
  estimator.tau_weight = estimator.tau_decay * estimator.tau_weight + (1 - estimator.tau_decay)
  tau2 = estimator.tau_sum / estimator.tau_weight
  estimator.diagnostics['effect/tau'] = float(np.sqrt(tau2))
  return difference * tau2 / (tau2 + variance)


# Pooled evidence.


def principal_components(features: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
  """Centred features f[N, D] -> white components f64[N, r] (unit variance each) and their eigenvalues f64[r], largest first."""
  centred = features - features.mean(axis=0)
  eigenvalues, vectors = np.linalg.eigh(centred.T @ centred / len(features))
  order = np.argsort(eigenvalues)[::-1][:components]
  order = order[eigenvalues[order] > 1e-10 * max(eigenvalues[-1], 1e-300)]  # directions that are only rounding are dropped
  # An eigenvector's sign is arbitrary, and nothing here depends on it.
  return centred @ vectors[:, order] / np.sqrt(eigenvalues[order]), eigenvalues[order]


def _pooled(estimator: EffectEstimator, contexts: np.ndarray, step: int) -> np.ndarray:
  rows = estimator.observed()
  n = estimator.count[rows] * 0.5 ** ((step - estimator.seen[rows]) / estimator.half_life)
  m = estimator.abstain_count[rows]
  basis = estimator.basis[rows]
  abstain, difference = estimator.abstain_mean[rows], estimator.differences(rows)

  # Success rates smoothed over contexts: without the context's own outcomes for the difficulty, with both branches for the noise.
  _, difficulty = smooth(basis, estimator.eigenvalues, abstain, m)
  pooled_rate = (n * (difference + abstain) + m * abstain) / (n + m)
  rate, _ = smooth(basis, estimator.eigenvalues, pooled_rate, n + m)
  rate = np.clip(rate, estimator.min_rate, 1 - estimator.min_rate)
  variance = rate * (1 - rate) * (1 / n + 1 / m)

  spread = difficulty.std()
  difficulty = (difficulty - difficulty.mean()) / spread if spread > 1e-9 else np.zeros_like(difficulty)
  design = np.concatenate([np.ones((len(rows), 1)), difficulty[:, None], basis], axis=1)  # f64[n, 2 + r]
  at = np.searchsorted(rows, contexts)
  priors = _priors(estimator.eigenvalues, estimator.spectra)
  mean, sd, log_bayes, noise_scale = average_models(
    design, difference, variance, design[at], priors, estimator.scales, estimator.noise_strength
  )
  gate = 1.0 / (1.0 + np.exp(np.clip(estimator.evidence - log_bayes, -500, 500)))
  z2 = (mean / np.maximum(sd, 1e-12)) ** 2
  local = np.maximum(0.0, 1.0 - estimator.local / np.maximum(z2, 1e-12))
  costs = estimator.costs(contexts)
  estimator.diagnostics |= {
    'effect/log_bayes_factor': float(log_bayes),
    'effect/gate': float(gate),
    'effect/local_gate': float(local.mean()),
    'effect/success': float(mean.mean()),
    'effect/success_sd': float(sd.mean()),
    'effect/cost': float(costs.mean()),
    'effect/noise_scale': noise_scale,
  }
  effect = gate * local * mean + costs
  return estimator.limit * np.tanh(effect / estimator.limit) if estimator.limit else effect


def smooth(
  basis: np.ndarray, eigenvalues: np.ndarray, values: np.ndarray, counts: np.ndarray, penalties: Sequence[float] = (0.001, 0.01, 0.1)
) -> tuple[np.ndarray, np.ndarray]:
  """Ridge regression of values f[n] (weights counts f[n]) on white components f[n, r]; the penalty is chosen by leave-one-out error.

  Returns the fit f64[n], and the leave-one-out predictions f64[n], in which a row's own value has no part. `penalties` are relative to
  the total weight and the largest eigenvalue.
  """
  scaled = basis * np.sqrt(eigenvalues / max(eigenvalues.max(initial=0.0), 1e-300))
  design = np.concatenate([np.ones((len(values), 1)), scaled], axis=1)
  gram, right = (design.T * counts) @ design, design.T @ (counts * values)
  best = None
  for penalty in penalties:
    ridge = np.full(design.shape[1], penalty * counts.sum())
    ridge[0] = 1e-6 * counts.sum()
    inverse = np.linalg.inv(gram + np.diag(ridge))
    fit = design @ (inverse @ right)
    leverage = counts * ((design @ inverse) * design).sum(axis=1)
    without = values - (values - fit) / np.maximum(1 - leverage, 1e-6)
    error = float((counts * (values - without) ** 2).sum())
    if best is None or error < best[0]:
      best = (error, fit, without)
  return best[1], best[2]


def average_models(
  design: np.ndarray,
  values: np.ndarray,
  variance: np.ndarray,
  queries: np.ndarray,
  priors: Sequence[np.ndarray],
  scales: Sequence[float],
  noise_strength: float,
) -> tuple[np.ndarray, np.ndarray, float, float]:
  """Bayesian linear regressions of values f[n] on design f[n, 2 + r] (constant, difficulty, components), averaged by their evidence.

  A model is one of `priors` f64[2 + r] (variances of the coefficients) times one of `scales` squared.

  Returns, at queries f[G, 2 + r], the posterior mean and standard deviation f64[G] given that there is an effect; the log Bayes
  factor of the average against "no effect"; the posterior mean of the noise scale κ.
  """
  weighted = design / variance[:, None]
  gram, right = design.T @ weighted, weighted.T @ values
  total = float((values**2 / variance).sum())
  shape = (noise_strength + len(values)) / 2
  null = -shape * np.log((noise_strength + total) / 2)
  evidences, means, variances, noises = [], [], [], []
  for prior in priors:
    used = prior > 0
    root = np.sqrt(prior[used])
    # One eigendecomposition serves all scales.
    values_g, vectors = np.linalg.eigh(root[:, None] * gram[np.ix_(used, used)] * root)
    values_g = np.maximum(values_g, 0.0)
    projected = vectors.T @ (root * right[used])
    queried = (queries[:, used] * root) @ vectors
    for scale in scales:
      gain = scale**2 / (1 + scale**2 * values_g)
      noise = (noise_strength + max(total - float((gain * projected**2).sum()), 0.0)) / 2
      evidences.append(-0.5 * np.log1p(scale**2 * values_g).sum() - shape * np.log(noise) - null)
      noises.append(noise / (shape - 1))
      means.append(queried @ (gain * projected))
      variances.append(noises[-1] * (queried**2 @ gain))
  evidences = np.array(evidences)
  top = evidences.max()
  weights = np.exp(evidences - top)
  log_bayes = float(top + np.log(weights.mean()))
  weights /= weights.sum()
  means, variances = np.array(means), np.array(variances)
  mean = weights @ means
  spread = weights @ (variances + (means - mean) ** 2)
  return mean, np.sqrt(spread), log_bayes, float(weights @ np.array(noises))


def _priors(eigenvalues: np.ndarray, spectra: Sequence[float]) -> list[np.ndarray]:
  """Prior variances Λ f64[2 + r] of constant, difficulty and components in each model; a block that is there has variance 1 in all.

  Every model lets the effect vary in any direction of the features, so that a few contexts are no evidence about unlike ones.
  """
  blocks = [eigenvalues**exponent / (eigenvalues**exponent).sum() for exponent in spectra] if len(eigenvalues) else [eigenvalues]
  return [np.concatenate([[1.0, difficulty], block]) for difficulty in (0.0, 1.0) for block in blocks]


SIGNALS: dict[str, Callable[[EffectEstimator, np.ndarray, int], np.ndarray]] = {
  'pooled': _pooled,
  'shrunk': _shrunk,
  'mean': _mean,
  'raw': _raw,
  'sign': _sign,
  'group_std': _group_std,
  'branch_std': _branch_std,
}
