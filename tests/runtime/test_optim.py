"""Optimizers and schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mempi_jax.config import ConfigError
from mempi_jax.runtime.optim import NAMES, make_optimizer, make_schedule, optimizer_fields


def fields(**values):
  config = optimizer_fields()
  for name, value in values.items():
    config[name] = value
  return config


def rates(config, num_steps):
  schedule = make_schedule(config, num_steps)
  return [float(schedule(step)) for step in range(num_steps + 1)]


def test_schedules():
  np.testing.assert_allclose(rates(fields(learning_rate=2.0), 3), [2, 2, 2, 2])
  np.testing.assert_allclose(rates(fields(learning_rate=2.0, schedule='linear', end_factor=0.5), 4), [2, 1.75, 1.5, 1.25, 1])
  np.testing.assert_allclose(rates(fields(learning_rate=2.0, schedule='cosine'), 4), [2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5, 0], atol=1e-6)


@pytest.mark.parametrize('warmup', ['4 steps', '40 percent'])
def test_warmup(warmup):
  found = rates(fields(learning_rate=1.0, schedule='linear', warmup=warmup), 10)
  np.testing.assert_allclose(found[:5], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)
  assert found[-1] == 0 and found[7] == pytest.approx(0.5)


def learn(config, num_steps=60):
  """Fits y = x W with a wrong start; returns (first loss, last loss, parameters)."""
  x = jax.random.normal(jax.random.key(0), (64, 8))
  target = x @ jax.random.normal(jax.random.key(1), (8, 4)) + 1.0
  params = {'embedding': jnp.eye(8), 'out': jnp.zeros((8, 4)), 'bias': jnp.zeros(4)}
  optimizer = make_optimizer(config, num_steps)
  state = optimizer.init(params)

  def loss(params):
    return jnp.mean((x @ params['embedding'] @ params['out'] + params['bias'] - target) ** 2)

  @jax.jit
  def step(params, state):
    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradient, state, params)
    return value, optax.apply_updates(params, updates), state

  losses = []
  for _ in range(num_steps):
    value, params, state = step(params, state)
    losses.append(float(value))
  return losses[0], losses[-1], params


@pytest.mark.parametrize('name', NAMES)
def test_every_optimizer_learns(name):
  rate = 0.02 if name == 'sgd' else 0.1
  first, last, params = learn(fields(name=name, learning_rate=rate, schedule='cosine', warmup='5 percent', momentum=0.9))
  assert last < 0.05 * first
  assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(params))


def update(config, params, gradient):
  optimizer = make_optimizer(config, 10)
  return optimizer.update(gradient, optimizer.init(params), params)[0]


def test_clipping():
  params, gradient = {'w': jnp.zeros((2, 2))}, {'w': jnp.full((2, 2), 100.0)}
  clipped = update(fields(name='sgd', learning_rate=1.0, clip_norm=1.0), params, gradient)
  np.testing.assert_allclose(clipped['w'], -0.5, rtol=1e-6)
  plain = update(fields(name='sgd', learning_rate=1.0, clip_norm=0.0), params, gradient)
  np.testing.assert_allclose(plain['w'], -100.0)


def test_weight_decay_is_on_matrices_alone():
  params = {'out': jnp.ones((2, 2)), 'norm': jnp.ones(2)}
  gradient = jax.tree.map(jnp.zeros_like, params)
  updates = update(fields(name='adamw', learning_rate=0.5, weight_decay=0.1), params, gradient)
  np.testing.assert_allclose(updates['out'], -0.05, rtol=1e-6)
  np.testing.assert_array_equal(updates['norm'], 0.0)


def test_muon_orthogonalises_hidden_matrices_and_leaves_tables_to_adam():
  params = {'out': jnp.zeros((6, 4)), 'embedding': jnp.zeros((6, 4)), 'bias': jnp.zeros(4)}
  gradient = {'out': jax.random.normal(jax.random.key(0), (6, 4)), 'embedding': jnp.ones((6, 4)), 'bias': jnp.ones(4)}
  updates = update(fields(name='muon', learning_rate=1.0, clip_norm=0.0), params, gradient)
  singular = np.linalg.svd(updates['out'] / 0.2 / 6**0.5, compute_uv=False)
  assert np.all((singular > 0.6) & (singular < 1.3))
  for name in ('embedding', 'bias'):  # the first step of Adam is the sign of the gradient
    np.testing.assert_allclose(updates[name], updates['bias'][0], rtol=1e-5)
  assert float(updates['bias'][0]) < -0.9


@pytest.mark.parametrize(
  'values, message',
  [
    ({'name': 'adan'}, "name 'adan': expected one of adam, adamw, sgd, muon"),
    ({'schedule': 'step'}, "schedule 'step': expected one of constant, cosine, linear"),
    ({'weight_decay': 0.1}, 'adam has no weight decay'),
    ({'learning_rate': -1.0}, 'learning_rate -1.0'),
    ({'end_factor': 2.0}, 'end_factor 2.0'),
    ({'warmup': '10 steps'}, "warmup '10 steps' is 10 steps, as long as the training or longer"),
  ],
)
def test_wrong_fields(values, message):
  with pytest.raises(ConfigError, match=message):
    make_optimizer(fields(**values), 10)


def test_missing_and_unknown_fields():
  config = optimizer_fields()
  with config.unlocked():
    config.beta3 = config.beta2
    del config.beta2
  with pytest.raises(ConfigError, match='unknown field beta3; did you mean .*; missing field beta2'):
    make_optimizer(config, 10)
