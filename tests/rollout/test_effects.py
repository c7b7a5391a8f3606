"""Effect estimates: by hand, against closed forms, resumed exactly, and in small worlds where guidance does nothing or something."""

import json

import numpy as np
import pytest

from mempi_jax.rollout import effects
from mempi_jax.rollout.effects import SIGNALS, EffectEstimator, effective_count

FEATURES = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
TEXTS = ['a', 'b', 'c', 'd']


def two_contexts(signal, **settings):
  """Context 0: abstain 1 of 4, generate 3 of 4, lengths cost 0.1 a success. Context 5: abstain 2 of 4, generate 2 of 4, free."""
  estimator = EffectEstimator(signal, FEATURES, **settings)
  estimator.register(0, [1, 0, 0, 0])
  estimator.register(5, [1, 1, 0, 0])
  estimator.observe(0, [0.9, 0.9, 0.9, 0.0], [1, 1, 1, 0], TEXTS, 0)
  estimator.observe(5, [1, 0, 1, 0], [1, 0, 1, 0], TEXTS, 0)
  return estimator


def test_effective_count():
  assert effective_count(['x'] * 4) == 1.0
  assert effective_count(['x', 'y', 'z', 'w']) == 4.0
  assert effective_count(['x', 'x', 'x', 'y']) == pytest.approx(1 / (0.75**2 + 0.25**2))


def test_single_context_signals_by_hand():
  for signal, expected in {
    'raw': [0.675 - 0.25, 0.0],
    'sign': [1.0, 0.0],
    'mean': [0.675 - 0.25, 0.0],
    'branch_std': [0.425 / (np.std([0.9, 0.9, 0.9, 0.0]) + 0.1), 0.0],
    'group_std': [0.425 / (np.std([0.9, 0.9, 0.9, 0.0, 1, 0, 0, 0]) + 0.1), 0.0],
  }.items():
    value = two_contexts(signal).estimate([0, 5], 0)
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-7, err_msg=signal)


def test_shrunk_by_hand():
  estimator = two_contexts('shrunk')
  rate = np.array([4.5, 4.5]) / 9
  variance = rate * (1 - rate) * 0.5
  excess = max(0.425**2 / 2 - variance.mean(), 0.0)
  assert excess == 0.0
  np.testing.assert_allclose(estimator.estimate([0, 5], 0), [0, 0])
  estimator.observe(0, [1, 1, 1, 1], [1, 1, 1, 1], TEXTS, 1)  # now 7 of 8, three of them at 0.9
  difference = (0.675 + 1) / 2 - 0.25
  rate = 8.5 / 13
  s2 = rate * (1 - rate) * (1 / 8 + 1 / 4)
  excess = difference**2 - s2
  tau2 = 0.1 * excess / (1 - 0.9**2)  # bias-corrected running mean of 0 and this
  np.testing.assert_allclose(estimator.estimate([0], 1), [difference * tau2 / (tau2 + s2)], rtol=1e-6)


def test_visits_average_by_effective_count_and_age():
  estimator = EffectEstimator('mean', FEATURES, half_life=10.0)
  estimator.register(2, [0.0])
  estimator.observe(2, [1, 1, 1, 1], [1, 1, 1, 1], TEXTS, 0)  # 4 outcomes
  estimator.observe(2, [0, 0, 0, 0], [0, 0, 0, 0], [''] * 4, 10)  # 1 outcome; the first visit counts half now
  np.testing.assert_allclose(estimator.estimate([2], 10), [2 / 3], rtol=1e-6)


def test_posterior_is_the_textbook_one():
  rng = np.random.default_rng(1)
  n, r = 40, 3
  design, values = rng.normal(size=(n, r)), rng.normal(size=n)
  variance, prior = rng.uniform(0.5, 2.0, n), np.array([1.0, 0.5, 0.25])
  mean, sd, log_bayes, noise = effects.average_models(design, values, variance, design[:5], [prior], (0.7,), 1e6)
  covariance = np.diag(variance) + 0.49 * (design * prior) @ design.T
  cross = 0.49 * (design[:5] * prior) @ design.T
  np.testing.assert_allclose(mean, cross @ np.linalg.solve(covariance, values), rtol=1e-9)
  prior_variance = 0.49 * ((design[:5] ** 2) @ prior)
  np.testing.assert_allclose(sd**2 / noise, prior_variance - np.diag(cross @ np.linalg.solve(covariance, cross.T)), rtol=1e-9)
  # With a noise scale that is known to be 1 it is the ratio of two Gaussian densities.
  gauss = lambda c: -0.5 * (np.linalg.slogdet(c)[1] + values @ np.linalg.solve(c, values))
  assert noise == pytest.approx(1.0, abs=1e-3)
  assert log_bayes == pytest.approx(gauss(covariance) - gauss(np.diag(variance)), abs=1e-2)


def test_difficulty_is_predicted_without_the_context_itself():
  rng = np.random.default_rng(2)
  basis, eigenvalues = effects.principal_components(rng.normal(size=(50, 4)), 4)
  values, counts = rng.random(50), rng.integers(1, 6, 50).astype(float)
  _, without = effects.smooth(basis, eigenvalues, values, counts, penalties=(0.1,))
  changed = values.copy()
  changed[7] += 5.0
  fit, again = effects.smooth(basis, eigenvalues, changed, counts, penalties=(0.1,))
  assert again[7] == pytest.approx(without[7], abs=1e-9)
  assert abs(again[8] - without[8]) > 1e-4
  assert fit[7] > without[7]


def collect(estimator, rng, base, effect, *, price=0.0, abstain=4, first=0, updates=30, group=32):
  """Plays visits of a world with success rates base f[N] and base + effect; a success costs `price`. Returns mean estimates."""
  estimates = {}
  for step in range(first, first + updates):
    contexts = rng.choice(len(base), group, replace=False)
    for i in contexts.tolist():
      if i not in estimator.abstain:
        estimator.register(i, (rng.random(abstain) < base[i]).astype(float))
      successes = (rng.random(4) < base[i] + effect[i]).astype(float)
      estimator.observe(i, successes * (1 - price), successes, TEXTS, step)
    for i, value in zip(contexts, estimator.estimate(contexts, step), strict=True):
      estimates.setdefault(int(i), []).append(value)
  return np.array([np.mean(estimates.get(i, [0.0])) for i in range(len(base))])


def world(rng, n=300):
  features = rng.normal(size=(n, 8))
  return features, 0.5 + 0.45 * np.tanh(features[:, 0] + 0.3 * features[:, 2])


@pytest.mark.parametrize('signal', ['pooled', 'sign'])
def test_null_world_pushes_nobody_and_sign_is_seen_to_fail(signal):
  """Where guidance does nothing, the mean push on easy and on hard contexts; a spring of 0.05 moves a logit by 40 times the push."""
  pushes = []
  for seed in range(4):
    rng = np.random.default_rng(seed)
    features, base = world(rng)
    estimates = collect(EffectEstimator(signal, features), rng, base, 0 * base, abstain=1, updates=20)
    pushes.append([estimates[base > 0.7].mean(), estimates[base < 0.3].mean()])
  pushes = np.array(pushes)
  if signal == 'pooled':
    assert np.abs(pushes).max() < 0.01
  else:
    assert (pushes[:, 0] < -0.05).all() and (pushes[:, 1] > 0.05).all()


def test_mixed_world_finds_the_half_that_has_an_effect():
  rng = np.random.default_rng(3)
  features, base = world(rng)
  features[:, 1] = np.sign(features[:, 1])
  base = np.minimum(base, 0.65)
  effect = np.where(features[:, 1] > 0, 0.3, 0.0)
  estimator = EffectEstimator('pooled', features)
  collect(estimator, rng, base, effect, updates=40)
  seen = estimator.observed()
  final = estimator.estimate(seen, 40)
  assert final[effect[seen] > 0].mean() > 0.06
  assert abs(final[effect[seen] == 0].mean()) < 0.01
  assert estimator.diagnostics['effect/gate'] > 0.99  # there is an effect somewhere, and yet the other half is left alone


def test_price_is_kept_where_success_does_not_change():
  rng = np.random.default_rng(4)
  features, base = world(rng)
  estimator = EffectEstimator('pooled', features, limit=0.0)
  collect(estimator, rng, base, 0 * base, price=0.1, updates=20)
  seen = estimator.observed()
  # Nearly free of noise: L = −price · success rate, so that easy contexts are dear and hard ones cost nothing.
  final = estimator.estimate(seen, 20)
  np.testing.assert_allclose(final[base[seen] > 0.9].mean(), -0.1 * base[base > 0.9].mean(), atol=0.01)
  np.testing.assert_allclose(final[base[seen] < 0.1].mean(), 0.0, atol=0.015)


@pytest.mark.parametrize('signal', SIGNALS)
def test_resume_is_exact(signal):
  rng = np.random.default_rng(5)
  features, base = world(rng, n=80)
  one = EffectEstimator(signal, features, half_life=7.0)
  collect(one, np.random.default_rng(6), base, 0 * base + 0.03, price=0.1, updates=6, group=16)
  two = EffectEstimator(signal, features, half_life=7.0)
  two.register(3, [1.0])  # what was there is dropped
  two.restore(json.loads(json.dumps(one.state())))
  assert two.state() == one.state()
  for estimator in (one, two):
    estimator.last = collect(estimator, np.random.default_rng(7), base, 0 * base + 0.03, price=0.1, first=6, updates=3, group=16)
  np.testing.assert_array_equal(one.last, two.last)
  assert two.state() == one.state() and one.diagnostics == two.diagnostics


def test_features_without_information():
  """Equal features leave a constant effect to learn; a single visited context is no error."""
  estimator = EffectEstimator('pooled', np.ones((5, 4)))
  estimator.register(1, [0, 0, 0, 0])
  estimator.observe(1, [1, 1, 1, 1], [1, 1, 1, 1], TEXTS, 0)
  assert np.isfinite(estimator.estimate([1], 0)).all()


def test_bad_input_is_named():
  with pytest.raises(ValueError, match="unknown effect signal 'poled'.*pooled, shrunk.*did you mean pooled"):
    EffectEstimator('poled', FEATURES)
  with pytest.raises(ValueError, match='finite numbers of shape'):
    EffectEstimator('pooled', np.full((3, 2), np.nan))
  with pytest.raises(ValueError, match='half_life > 0'):
    EffectEstimator('pooled', FEATURES, half_life=0.0)
  estimator = EffectEstimator('raw', FEATURES)
  with pytest.raises(ValueError, match='before its abstain outcomes'):
    estimator.observe(0, [1.0], [1.0], ['a'], 0)
  with pytest.raises(ValueError, match='8 contexts that have features'):
    estimator.register(8, [1.0])
  estimator.register(0, [1.0])
  with pytest.raises(ValueError, match='equally many rewards'):
    estimator.observe(0, [1.0, 0.0], [1.0], ['a'], 0)
  with pytest.raises(ValueError, match=r'contexts \[0\] have no observed'):
    estimator.estimate([0], 0)
  with pytest.raises(ValueError, match="saved state is of signal 'sign'"):
    estimator.restore(EffectEstimator('sign', FEATURES).state())
