"""The next-token loss: projected chunk by chunk, it is the plain one, and so is its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mempi_jax.losses.next_token import next_token_loss, projected_nll


def assert_same_value_and_gradients(ours, plain, *arguments):
  expected, expected_gradients = jax.value_and_grad(lambda *a: 2 * plain(*a), (0, 1))(*arguments)
  found, gradients = jax.value_and_grad(lambda *a: 2 * ours(*a), (0, 1))(*arguments)
  assert found == pytest.approx(float(expected), rel=1e-5)
  for a, b in zip(gradients, expected_gradients, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('chunk', [3, 8, 14])
def test_projected_nll_is_the_plain_one_with_its_gradients(chunk):
  keys = jax.random.split(jax.random.key(0), 3)
  matrix, hidden = jax.random.normal(keys[0], (9, 4)), jax.random.normal(keys[1], (14, 4))
  targets, weights = jax.random.randint(keys[2], (14,), 0, 9), jnp.arange(14.0) % 3

  def plain(matrix, hidden):
    logps = jax.nn.log_softmax(hidden @ matrix.T)
    return -jnp.sum(weights * logps[jnp.arange(14), targets])

  assert_same_value_and_gradients(lambda *a: projected_nll(*a, targets, weights, chunk), plain, matrix, hidden)


def test_every_token_is_predicted_from_the_state_before_it():
  keys = jax.random.split(jax.random.key(1), 3)
  matrix, hidden = jax.random.normal(keys[0], (9, 4)), jax.random.normal(keys[1], (2, 5, 4))
  tokens = jax.random.randint(keys[2], (2, 5), 0, 9)
  weights = jnp.array([[7.0, 1.0, 0.0, 0.5, 1.0], [0.0, 0.0, 2.0, 1.0, 0.0]])  # the first token's 7 cannot count

  def plain(matrix, hidden):
    total = 0.0
    for row in range(2):
      for i in range(1, 5):
        total -= weights[row, i] * jax.nn.log_softmax(matrix @ hidden[row, i - 1])[tokens[row, i]]
    return total / weights[:, 1:].sum()

  assert_same_value_and_gradients(lambda *a: next_token_loss(*a, tokens, weights), plain, matrix, hidden)


def test_without_a_counted_token_the_loss_is_zero():
  assert next_token_loss(jnp.ones((3, 2)), jnp.ones((1, 4, 2)), jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 4))) == 0.0
