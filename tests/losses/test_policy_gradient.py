"""The stage-2 losses: values by hand, gradients in closed form and by finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mempi_jax.losses import policy_gradient as pg

L = jnp.array([0.3, -1.2, 2.0, 0.7])
REF = jnp.array([0.6, -1.0, 0.5, 0.0])
OLD = jnp.array([0.2, -1.1, 1.9, 0.4])
ADV = jnp.array([0.4, -0.3, 0.1, 9.0])
VALID = jnp.array([True, True, True, False])


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def differences(function, x, step=1e-2):
  """Central finite differences f[n] of a scalar function of x f[n]."""
  eye = np.eye(len(x))
  return np.array([(float(function(x + step * e)) - float(function(x - step * e))) / (2 * step) for e in eye])


def test_regression_value_gradient_and_optimum():
  loss, metrics = pg.decision_regression_loss(L, REF, ADV, VALID, 0.05)
  l, ref, adv = (np.asarray(a, np.float64)[:3] for a in (L, REF, ADV))
  np.testing.assert_allclose(loss, 0.25 * np.mean(-2 * adv * l + 0.025 * (l - ref) ** 2), rtol=1e-5)
  gradient = jax.grad(lambda l: pg.decision_regression_loss(l, REF, ADV, VALID, 0.05)[0])(L)
  np.testing.assert_allclose(gradient, np.append(0.25 * (-2 * adv + 0.05 * (l - ref)) / 3, 0.0), rtol=1e-5)
  best = REF + 2 * ADV / 0.05
  at_best, metrics = jax.grad(lambda l: pg.decision_regression_loss(l, REF, ADV, VALID, 0.05), has_aux=True)(best)
  np.testing.assert_allclose(at_best, 0.0, atol=1e-6)
  np.testing.assert_allclose(metrics['decision/target_error'], 0.0, atol=1e-5)


def test_policy_gradient_is_exact():
  gradient = jax.grad(lambda l: pg.decision_policy_gradient_loss(l, REF, ADV, VALID, 0.2)[0])(L)
  p = sigmoid(L)
  # d/dl Σ_d π(d) A(d) = 2 A p (1 − p);  d/dl KL = p (1 − p) (l − l_ref)
  expected = (-2 * ADV * p * (1 - p) + 0.2 * p * (1 - p) * (L - REF)) / 3
  np.testing.assert_allclose(gradient, jnp.where(VALID, expected, 0.0), rtol=1e-5)


def test_bernoulli_kl():
  p, q = sigmoid(L), sigmoid(REF)
  np.testing.assert_allclose(pg.bernoulli_kl(L, REF), p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)), rtol=1e-4)
  np.testing.assert_allclose(pg.bernoulli_kl(jnp.array([60.0]), jnp.array([0.0])), np.log(2), rtol=1e-6)  # no overflow far out


RATIO = {'num_generate': 4, 'clip_low': 0.2, 'clip_high': 0.3, 'kl': 0.1}


def test_ratio_form_by_hand():
  loss, metrics = pg.decision_ratio_loss(L, OLD, REF, ADV, VALID, **RATIO)
  total, clipped = 0.0, 0.0
  for l, old, ref, adv in np.asarray([L, OLD, REF, ADV], np.float64).T[:3]:
    for sign, weight in ((1, 0.8), (-1, 0.2)):
      ratio = sigmoid(sign * l) / sigmoid(sign * old)
      reference = sigmoid(sign * ref) / sigmoid(sign * l)
      surrogate = min(ratio * sign * adv, np.clip(ratio, 0.8, 1.3) * sign * adv)
      total += weight * (0.1 * (reference - 1 - np.log(reference)) - surrogate) / 3
      clipped += weight * (surrogate < ratio * sign * adv) / 3
  np.testing.assert_allclose(loss, total, rtol=1e-5)
  np.testing.assert_allclose(metrics['decision/clipped'], clipped, atol=1e-6)
  gradient = jax.grad(lambda l: pg.decision_ratio_loss(l, OLD, REF, ADV, VALID, **RATIO)[0])(L)
  measured = differences(lambda l: pg.decision_ratio_loss(l, OLD, REF, ADV, VALID, **RATIO)[0], L)
  np.testing.assert_allclose(gradient, measured, atol=2e-4)
  assert float(jnp.abs(gradient[:3]).min()) > 1e-3


def test_ratio_form_clips_each_branch_with_its_own_ratio():
  loss = lambda l: pg.decision_ratio_loss(l, jnp.zeros(1), jnp.zeros(1), jnp.ones(1), jnp.ones(1, bool), **RATIO | {'kl': 0.0})[0]
  # l = 1: ρ(GENERATE) = 1.46 > 1.3 is clipped; ρ(ABSTAIN) = 0.54 < 0.8, A = −1: clipped too. No gradient is left.
  np.testing.assert_allclose(jax.grad(loss)(jnp.ones(1)), 0.0, atol=1e-7)
  # l = −1: both would move back, and do: −0.8 ρ'(GENERATE) + 0.2 ρ'(ABSTAIN), each ρ' = ± p (1 − p) / 0.5.
  slope = sigmoid(1) * sigmoid(-1) / 0.5
  np.testing.assert_allclose(jax.grad(loss)(-jnp.ones(1)), -slope, rtol=1e-5)


def content_case():
  rng = np.random.default_rng(0)
  logps, old, ref = (jnp.asarray(-rng.uniform(0.2, 2.0, (3, 5)), jnp.float32) for _ in range(3))
  adv = jnp.asarray(rng.normal(size=(3, 1)) * np.ones((3, 5)), jnp.float32)
  mask = jnp.asarray([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], jnp.float32)
  return logps, old, ref, adv, mask


def test_content_loss_by_hand():
  logps, old, ref, adv, mask = content_case()
  loss, metrics = pg.content_policy_gradient_loss(logps, old, ref, adv, mask, 0.2, 0.3, 0.05)
  total, divergence = 0.0, 0.0
  for i, j in np.argwhere(np.asarray(mask) > 0):
    ratio = np.exp(float(logps[i, j] - old[i, j]))
    total -= min(ratio * float(adv[i, j]), float(np.clip(ratio, 0.8, 1.3)) * float(adv[i, j])) / 8
    reference = np.exp(float(ref[i, j] - logps[i, j]))
    divergence += (reference - 1 - np.log(reference)) / 8
  np.testing.assert_allclose(loss, total + 0.05 * divergence, rtol=1e-5)
  np.testing.assert_allclose(metrics['content/kl'], divergence, rtol=1e-5)


def test_content_gradient():
  logps, old, ref, adv, mask = content_case()
  loss = lambda logps: pg.content_policy_gradient_loss(logps.reshape(3, 5), old, ref, adv, mask, 0.2, 0.3, 0.05)[0]
  gradient = jax.grad(loss)(logps.reshape(-1))
  np.testing.assert_allclose(gradient, differences(loss, logps.reshape(-1), 1e-3), atol=5e-4)
  assert not np.asarray(gradient).reshape(3, 5)[np.asarray(mask) == 0].any()
  # On policy, without KL, it is the plain policy gradient: −A / Σ mask.
  on_policy = jax.grad(lambda p: pg.content_policy_gradient_loss(p, logps, ref, adv, mask, 0.2, 0.3, 0.0)[0])(logps)
  np.testing.assert_allclose(on_policy, -adv * mask / 8, rtol=1e-5)


def test_k3_is_zero_at_the_reference_and_positive_elsewhere():
  np.testing.assert_allclose(pg.k3(jnp.array([-1.0]), jnp.array([-1.0])), 0.0)
  assert (np.asarray(pg.k3(jnp.array([-1.0, -1.0]), jnp.array([-2.0, -0.5]))) > 0).all()


@pytest.mark.parametrize('name', ['regression', 'policy_gradient', 'ratio', 'content'])
def test_rows_that_do_not_count_may_be_nan(name):
  losses = {
    'regression': lambda l: pg.decision_regression_loss(l, REF, ADV, VALID, 0.05)[0],
    'policy_gradient': lambda l: pg.decision_policy_gradient_loss(l, REF, ADV, VALID, 0.1)[0],
    'ratio': lambda l: pg.decision_ratio_loss(l, OLD, REF, ADV, VALID, **RATIO)[0],
    'content': lambda l: pg.content_policy_gradient_loss(l, OLD, REF, ADV, VALID.astype(jnp.float32), 0.2, 0.2, 0.1)[0],
  }
  value, gradient = jax.value_and_grad(losses[name])(L.at[3].set(jnp.nan))
  np.testing.assert_allclose(value, losses[name](L), rtol=1e-6)
  assert np.isfinite(np.asarray(gradient)).all() and float(gradient[3]) == 0.0
