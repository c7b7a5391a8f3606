"""The stage-1 loss on a case done by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from mempi_jax.losses.sft import sft_loss

LOGIT = jnp.array([0.0, np.log(3.0), 5.0])  # P(GENERATE) = 1/2, 3/4, ~1
LOGPS = jnp.log(jnp.array([[0.5, 0.25, 0.9], [0.1, 0.1, 0.1], [0.2, 0.2, 0.2]]))
MASK = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
TARGET = jnp.array([1.0, 0.0, 1.0])
VALID = jnp.array([True, True, False])


def test_value_by_hand():
  loss, metrics = sft_loss(LOGIT, LOGPS, MASK, TARGET, VALID)
  np.testing.assert_allclose(metrics['loss/decision'], (np.log(2) + np.log(4)) / 2, rtol=1e-6)  # the abstain row: P(ABSTAIN) = 1/4
  np.testing.assert_allclose(metrics['loss/content'], (np.log(2) + np.log(4)) / 2, rtol=1e-6)  # the generate row's two tokens
  np.testing.assert_allclose(loss, metrics['loss/decision'] + metrics['loss/content'], rtol=1e-6)
  np.testing.assert_allclose(metrics['decision/p_generate'], 0.625, rtol=1e-6)


def test_gradients_in_closed_form():
  by_logit, by_logps = jax.grad(lambda l, p: sft_loss(l, p, MASK, TARGET, VALID)[0], argnums=(0, 1))(LOGIT, LOGPS)
  np.testing.assert_allclose(by_logit, [(0.5 - 1) / 2, 0.75 / 2, 0.0], rtol=1e-6)
  np.testing.assert_allclose(by_logps, [[-0.5, -0.5, 0], [0, 0, 0], [0, 0, 0]], rtol=1e-6)


def test_an_empty_batch_is_zero_and_padding_may_be_nan():
  loss, _ = sft_loss(LOGIT, LOGPS, MASK, TARGET, jnp.zeros(3, bool))
  assert float(loss) == 0.0
  padded = LOGPS.at[2].set(jnp.nan)
  np.testing.assert_allclose(sft_loss(LOGIT, padded, MASK, TARGET, VALID)[0], sft_loss(LOGIT, LOGPS, MASK, TARGET, VALID)[0])
