"""Optimizers and schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mempi_jax.config import ConfigError
from mempi_jax.models.decoder import stack_layers, unstack_layers
from mempi_jax.runtime.optim import NAMES, evaluation_params, make_optimizer, make_schedule, optimizer_fields


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
  schedule = 'constant' if name == 'schedule_free' else 'cosine'
  first, last, params = learn(fields(name=name, learning_rate=rate, schedule=schedule, warmup='5 percent', momentum=0.9))
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


def run(optimizer, params, gradients, final=lambda state, params: params):
  """The parameters after each step, as `final` gives them, and the last state; one gradient a step."""
  state, history = jax.jit(optimizer.init)(params), []

  @jax.jit
  def step(gradient, state, params):
    updates, state = optimizer.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    return params, state, final(state, params)

  for gradient in gradients:
    params, state, seen = step(gradient, state, params)
    history.append(seen)
  return history, state


def random_tree(shapes, seed, dtype='float32'):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda shape: jnp.asarray(rng.normal(size=shape), dtype), shapes, is_leaf=lambda shapes: isinstance(shapes, tuple))


WIDE = {'embedding': (160, 128), 'hidden': (128, 136), 'norm': (128,)}  # matrices long enough for adafactor to factor


def is_matrix(params):
  return jax.tree.map(lambda leaf: leaf.ndim == 2, params)


RATE = optax.join_schedules([optax.linear_schedule(0.1 / 3, 0.1, 2), optax.constant_schedule(0.1)], [2])
DIRECT = {
  'adam': lambda: optax.adam(RATE, 0.8, 0.95, 1e-6),
  'adamw': lambda: optax.adamw(RATE, 0.8, 0.95, 1e-6, weight_decay=0.01, mask=is_matrix),
  'sgd': lambda: optax.sgd(RATE, momentum=0.9),
  'muon': lambda: optax.contrib.muon(
    RATE, beta=0.9, eps=1e-6, weight_decay=0.01, adam_b1=0.8, adam_b2=0.95, consistent_rms=0.2,
    muon_weight_dimension_numbers={'embedding': None, 'hidden': optax.contrib.MuonDimensionNumbers(0, 1), 'norm': None},
  ),
  'adafactor': lambda: optax.adafactor(RATE, multiply_by_parameter_scale=False),
  'schedule_free': lambda: optax.contrib.schedule_free_adamw(0.1, b1=0.8, b2=0.95, eps=1e-6),
}  # fmt: skip


@pytest.mark.parametrize('name', NAMES)
def test_first_steps_are_those_of_optax(name):
  decay = 0.01 if name in ('adamw', 'muon') else 0.0
  warmup = '0 steps' if name == 'schedule_free' else '2 steps'  # optax's own begins with a rate of zero
  config = fields(name=name, learning_rate=0.1, warmup=warmup, beta1=0.8, beta2=0.95, epsilon=1e-6, momentum=0.9, weight_decay=decay)
  params, gradients = random_tree(WIDE, 0), [random_tree(WIDE, seed) for seed in range(1, 5)]
  found, _ = run(make_optimizer(config, 10), params, gradients)
  expected, _ = run(optax.chain(optax.clip_by_global_norm(1.0), DIRECT[name]()), params, gradients)
  jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6), found, expected)


@pytest.mark.parametrize('name', ['adamw', 'muon', 'adafactor', 'schedule_free'])  # those that look at a leaf's shape
def test_stacked_layers_learn_what_layers_of_their_own_do(name):
  config = fields(name=name, learning_rate=0.1, weight_decay=0.1)
  shapes = {'embedding': (130, 128), **dict.fromkeys(('layer_0', 'layer_1', 'layer_2'), {'up': (128, 130), 'norm': (130,)})}
  params, gradients = random_tree(shapes, 0), [random_tree(shapes, seed) for seed in (1, 2)]
  for gradient in gradients:  # a size of its own, which a clip of the whole leaf would show
    gradient['layer_1'] = jax.tree.map(lambda leaf: 10 * leaf, gradient['layer_1'])
  final = lambda state, params: evaluation_params(config, state, params)
  unrolled, _ = run(make_optimizer(config, 10), params, gradients, final)
  scanned, _ = run(make_optimizer(config, 10), stack_layers(params), [stack_layers(gradient) for gradient in gradients], final)
  for one, other in zip(unrolled, map(unstack_layers, scanned), strict=True):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), one, other)


def test_adafactor_factors_matrices_and_not_the_axis_of_the_layers():
  config = fields(name='adafactor', learning_rate=0.1, clip_norm=0.0)
  shapes = {'layers': {'up': (140, 128, 130)}}  # more layers than a matrix has rows or columns
  params, gradients = random_tree(shapes, 0), [random_tree(shapes, seed) for seed in (1, 2)]
  scanned, state = run(make_optimizer(config, 10), params, gradients)
  sizes = {leaf.shape for leaf in jax.tree.leaves(state)}
  assert {(140, 128), (140, 130)} <= sizes and (140, 128, 130) not in sizes
  last = lambda tree: {'up': tree['layers']['up'][-1]}
  alone, _ = run(make_optimizer(config, 10), last(params), [last(gradient) for gradient in gradients])
  for one, other in zip(alone, map(last, scanned), strict=True):
    np.testing.assert_allclose(one['up'], other['up'], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize('name', NAMES)
def test_moments_are_float32_and_the_state_is_arrays(name):
  config = fields(name=name, learning_rate=0.1)
  params, gradients = random_tree(WIDE, 0, 'bfloat16'), [random_tree(WIDE, seed, 'bfloat16') for seed in (1, 2)]
  optimizer = make_optimizer(config, 10)
  _, state = run(optimizer, params, gradients)
  floats = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
  assert floats and {leaf.dtype for leaf in floats} == {jnp.dtype('float32')}
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
  if name == 'adafactor':  # two vectors a matrix; a vector has its own size
    assert sum(leaf.size for leaf in floats) < 2 * (160 + 128 + 128 + 136) + 128
  # What a checkpoint does: leaves to the host and back, into the structure of a new state.
  leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
  restored = jax.tree.unflatten(jax.tree.structure(jax.eval_shape(optimizer.init, params)), leaves)
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_evaluation_params_of_schedule_free_by_hand():
  beta1, beta2, rate, epsilon = 0.9, 0.99, 0.5, 1e-8
  config = fields(name='schedule_free', learning_rate=rate, beta1=beta1, beta2=beta2, epsilon=epsilon, clip_norm=1.0)
  optimizer = make_optimizer(config, 10)
  params = {'w': jnp.array([2.0])}
  state = optimizer.init(params)
  x = z = y = 2.0
  second, evaluate = 0.0, jax.jit(lambda state, params: evaluation_params(config, state, params))
  for step in range(1, 6):
    gradient = 0.3 * y  # of 0.15 y², small enough not to be clipped
    updates, state = optimizer.update({'w': jnp.array([gradient])}, state, params)
    params = optax.apply_updates(params, updates)
    second = beta2 * second + (1 - beta2) * gradient**2
    z -= rate * gradient / ((second / (1 - beta2**step)) ** 0.5 + epsilon)
    x += (z - x) / step  # the mean of all z so far
    y = (1 - beta1) * z + beta1 * x
    np.testing.assert_allclose(params['w'], y, rtol=1e-5)
    np.testing.assert_allclose(evaluate(state, params)['w'], x, rtol=1e-5)
  assert abs(x - y) > 0.01


@pytest.mark.parametrize('clip_norm', [0.0, 1.0])
def test_evaluation_params(clip_norm):
  params = random_tree({'w': (4, 4)}, 0, 'bfloat16')
  for name in NAMES:
    config = fields(name=name, learning_rate=0.1, clip_norm=clip_norm)
    state = make_optimizer(config, 10).init(params)
    found = evaluation_params(config, state, params)
    assert (found is params) == (name != 'schedule_free')
    # Before the first step all three sequences are in one place.
    np.testing.assert_allclose(found['w'].astype('float32'), params['w'].astype('float32'), rtol=1e-2)
    assert found['w'].dtype == jnp.bfloat16


def test_the_norm_that_clips_is_computed_in_float32():
  # 65,536 squares of 2^-8 add up to 1; in bfloat16 such a sum stays where one more changes nothing.
  gradient = {'w': jnp.full((256, 256), 2.0**-8, jnp.bfloat16)}
  updates = update(fields(name='sgd', learning_rate=1.0, momentum=0.0, clip_norm=0.5), {'w': jnp.zeros((256, 256), jnp.bfloat16)}, gradient)
  assert updates['w'].dtype == jnp.float32
  np.testing.assert_allclose(updates['w'], -(2.0**-9), rtol=1e-5)
  # And squares too small for float16 count.
  tiny = {'w': jnp.full((4, 4), 2.0**-14, jnp.float16)}
  updates = update(fields(name='sgd', learning_rate=1.0, momentum=0.0, clip_norm=2.0**-13), {'w': jnp.zeros((4, 4), jnp.float16)}, tiny)
  np.testing.assert_allclose(updates['w'], -(2.0**-15), rtol=1e-5)


@pytest.mark.parametrize(
  'values, message',
  [
    ({'name': 'adan'}, "name 'adan': expected one of adam, adamw, sgd, muon"),
    ({'schedule': 'step'}, "schedule 'step': expected one of constant, cosine, linear"),
    ({'weight_decay': 0.1}, 'adam has no weight decay'),
    ({'learning_rate': -1.0}, 'learning_rate -1.0'),
    ({'end_factor': 2.0}, 'end_factor 2.0'),
    ({'name': 'schedule_free', 'schedule': 'cosine'}, "schedule 'cosine': schedule_free averages instead of decaying, expected constant"),
    ({'name': 'schedule_free', 'beta1': 0.0}, 'beta1 0.0: schedule_free expects a number above 0'),
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
