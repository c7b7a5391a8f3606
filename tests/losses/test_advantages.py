"""Rewards and advantages on cases done by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mempi_jax.losses.advantages import content_advantages, decision_advantages, shape_rewards, vanilla_advantages
from mempi_jax.losses.policy_gradient import decision_policy_gradient_loss


def test_length_rewards_by_hand():
  success, length = np.array([1.0, 1.0, 0.0]), np.array([0, 5, 10])
  shaped = lambda form: shape_rewards(success, length, form=form, weight=0.2, max_length=10)
  np.testing.assert_allclose(shaped('outcome_gated'), [1.0, 0.9, 0.0], atol=1e-7)
  np.testing.assert_allclose(shaped('additive'), [1.0, 0.9, -0.2], atol=1e-7)
  np.testing.assert_allclose(shaped('none'), [1.0, 1.0, 0.0])
  assert shaped('outcome_gated').dtype == np.float32


def test_bad_rewards_are_named():
  with pytest.raises(ValueError, match='unknown length reward .*outcome_gated, none, additive'):
    shape_rewards(np.ones(2), np.ones(2), form='gated', weight=0.2, max_length=10)
  with pytest.raises(ValueError, match='between 0 and max_length'):
    shape_rewards(np.ones(1), np.array([11]), form='none', weight=0.2, max_length=10)
  with pytest.raises(ValueError, match='shapes'):
    shape_rewards(np.ones(2), np.ones(3), form='none', weight=0.2, max_length=10)


REWARDS = np.array([[1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
ABSTAIN = np.array([0.25, 0.75, 0.0])


def test_content_advantages_by_hand():
  gated = content_advantages(REWARDS, ABSTAIN, scale='raw', epsilon=0.1, gate='delta')
  np.testing.assert_allclose(gated, [[0.5, -0.5, 0.5, -0.5], [0] * 4, [0] * 4])
  open_gate = content_advantages(REWARDS, ABSTAIN, scale='raw', epsilon=0.1, gate='open')
  np.testing.assert_allclose(open_gate[1], [0.75, -0.25, -0.25, -0.25])
  scaled = content_advantages(REWARDS, ABSTAIN, scale='std', epsilon=0.1, gate='delta')
  np.testing.assert_allclose(scaled[0], np.array([1, -1, 1, -1]) * 0.5 / 0.6, rtol=1e-6)


def test_content_gate_on_the_estimate():
  adv = content_advantages(REWARDS, ABSTAIN, scale='raw', epsilon=0.1, gate='effect', effect=np.array([-0.1, 0.1, 0.1]))
  np.testing.assert_allclose(adv[:2], [[0] * 4, [0.75, -0.25, -0.25, -0.25]])
  with pytest.raises(ValueError, match='one effect a group'):
    content_advantages(REWARDS, ABSTAIN, scale='raw', epsilon=0.1, gate='effect')


def test_unknown_scale_and_gate():
  with pytest.raises(ValueError, match='raw, std'):
    content_advantages(REWARDS, ABSTAIN, scale='sigma', epsilon=0.1, gate='delta')
  with pytest.raises(ValueError, match='delta, effect, open'):
    content_advantages(REWARDS, ABSTAIN, scale='raw', epsilon=0.1, gate='Delta')
  with pytest.raises(ValueError, match='shapes'):
    decision_advantages(REWARDS, ABSTAIN[:2], scale='raw', epsilon=0.1)


def test_decision_advantages_by_hand():
  np.testing.assert_allclose(decision_advantages(REWARDS, ABSTAIN, scale='raw', epsilon=0.1), [0.25, -0.5, 0.0])
  std = np.std([0.25, 1, 0, 1, 0])
  np.testing.assert_allclose(decision_advantages(REWARDS, ABSTAIN, scale='std', epsilon=0.1)[0], 0.25 / (std + 0.1), rtol=1e-6)


def test_negative_content_advantages_can_weigh_less():
  rewards = np.array([[1.0, 0.0, 0.0, 0.0]])
  plain = content_advantages(rewards, np.zeros(1), scale='raw', epsilon=0.1, gate='open')
  np.testing.assert_allclose(plain, [[0.75, -0.25, -0.25, -0.25]])
  tilted = content_advantages(rewards, np.zeros(1), scale='raw', epsilon=0.1, gate='open', negative=0.2)
  np.testing.assert_allclose(tilted, [[0.75, -0.05, -0.05, -0.05]])


def test_vanilla_advantages_by_hand():
  """Rewards 1, 0 of two branches that generated and abstained: A = 1, -1; c = (1 (1 - p) + 1 p) / 2 = 1/2 for any p."""
  content, decision = vanilla_advantages(np.array([[1.0, 0.0]]), np.array([[True, False]]), np.array([0.25]), epsilon=0.0)
  np.testing.assert_allclose(content, [[1.0, 0.0]])
  np.testing.assert_allclose(decision, [0.5 / (2 * 0.25 * 0.75)])


def test_vanilla_advantages_give_the_gradient_of_sampled_decisions():
  rng = np.random.default_rng(0)
  rewards, generated, logits = rng.random((3, 8)), rng.random((3, 8)) < 0.6, jnp.array([-1.0, 0.3, 2.0])
  p = np.asarray(jax.nn.sigmoid(logits))
  _, decision = vanilla_advantages(rewards, generated, p, epsilon=0.1)
  advantages = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, keepdims=True) + 0.1)

  def sampled(l):
    return -jnp.mean(jnp.mean(advantages * jnp.where(generated, jax.nn.log_sigmoid(l)[:, None], jax.nn.log_sigmoid(-l)[:, None]), axis=1))

  used = lambda l: decision_policy_gradient_loss(l, logits, decision, jnp.ones(3, bool), kl=0.0)[0]
  np.testing.assert_allclose(jax.grad(used)(logits), jax.grad(sampled)(logits), rtol=1e-4)
