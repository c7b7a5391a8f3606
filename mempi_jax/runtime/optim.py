"""Optimizers and learning-rate schedules by name, built from a config group.

The group has the fields of `optimizer_fields()`, whichever optimizer is chosen, so that `--config.stage1.optimizer.name=sgd` is enough to change it:

    name           adam | adamw | sgd | muon | adafactor | schedule_free
    learning_rate  float, the peak
    schedule       constant | cosine | linear; from the peak, after the warmup, to end_factor * learning_rate at the last step;
                   must be constant for schedule_free, whose average takes the decay's place
    warmup         a duration: '20 steps' or '5 percent'; the rate rises linearly from 0
    end_factor     float in [0, 1]; not read by constant
    clip_norm      float, largest global norm of the gradient, computed in float32; 0.0 does not clip
    weight_decay   float, decoupled, on matrices alone (muon: hidden ones); must be 0.0 for adam and sgd, which have none
    beta1, beta2, epsilon   Adam's; muon uses them for what is not a hidden matrix; of schedule_free, beta1 is the share of the average in
                   the point where gradients are taken
    momentum       sgd's and muon's

adafactor (arXiv 1804.04235) keeps a mean of squared gradients for every row and column of a matrix, instead of one for every entry: next to no
memory. There is no momentum, the rate is not scaled by the parameters' size, the mean's decay at step t is 1 - t^-0.8, and a leaf's update is
clipped to a root mean square of 1.0 before the learning rate: optax's defaults, but for the scale. A matrix with a side below 128 is not
factored. In the scanned layout each layer's part of a leaf is factored and clipped by itself.

schedule_free (arXiv 2405.15682) is AdamW without its first moment; gradients are taken at y, which lies between the fast iterate z and the
average x of all z so far. The training loop holds y; what is evaluated and saved is x: `evaluation_params`. x is computed from y and z, so
parameters should be stored in float32: in bfloat16 the average loses what rounding takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from mempi_jax.config import ConfigError, check_fields, count_steps

NAMES = ('adam', 'adamw', 'sgd', 'muon', 'adafactor', 'schedule_free')
SCHEDULES = ('constant', 'cosine', 'linear')
DECAYING = ('adamw', 'muon', 'adafactor', 'schedule_free')  # with weight decay


def optimizer_fields() -> ConfigDict:
  """A new optimizer group with every field and plain values: `config.stage1.optimizer = optimizer_fields()`, then assign."""
  return ConfigDict(
    {
      'name': 'adam',
      'learning_rate': 1e-3,
      'schedule': 'constant',
      'warmup': '0 steps',
      'end_factor': 0.0,
      'clip_norm': 1.0,
      'weight_decay': 0.0,
      'beta1': 0.9,
      'beta2': 0.999,
      'epsilon': 1e-8,
      'momentum': 0.95,
    }
  ).lock()


def make_schedule(config: ConfigDict, num_steps: int) -> optax.Schedule:
  """The learning rate as a function of the number of finished steps.

  Args:
    config: an optimizer group, see the top of this file.
    num_steps: length of the whole training; the schedule ends there.

  Raises:
    ConfigError: a field that is missing, unknown or out of range.
  """
  _check(config)
  if num_steps < 1:
    raise ConfigError(f'an optimizer needs at least 1 step, found num_steps {num_steps}')
  warmup_steps = count_steps(config.warmup, total_steps=num_steps)
  if warmup_steps >= num_steps:
    raise ConfigError(f'warmup {config.warmup!r} is {warmup_steps} steps, as long as the training or longer ({num_steps} steps)')
  peak, rest = config.learning_rate, num_steps - warmup_steps
  match config.schedule:
    case 'constant':
      after = optax.constant_schedule(peak)
    case 'cosine':
      after = optax.cosine_decay_schedule(peak, rest, alpha=config.end_factor)
    case 'linear':
      after = optax.linear_schedule(peak, config.end_factor * peak, rest)
  if warmup_steps == 0:
    return after
  # The first step already moves: the rate at step s is (s + 1) / (warmup_steps + 1) of the peak.
  rise = optax.linear_schedule(peak / (warmup_steps + 1), peak, warmup_steps)
  return optax.join_schedules([rise, after], [warmup_steps])


def make_optimizer(config: ConfigDict, num_steps: int) -> optax.GradientTransformation:
  """The optimizer of a config group (see the top of this file) for a training of `num_steps` steps: clip, then update.

  Its state is a pytree of arrays, so that checkpoints hold all of it. Moments and updates are float32 whatever the parameters are.

  Raises:
    ConfigError: a field that is missing, unknown or out of range.
  """
  schedule = make_schedule(config, num_steps)
  adam = {'b1': config.beta1, 'b2': config.beta2, 'eps': config.epsilon}
  match config.name:
    case 'adam':
      update = optax.adam(schedule, **adam)
    case 'adamw':
      update = optax.adamw(schedule, **adam, weight_decay=config.weight_decay, mask=_is_matrix)
    case 'sgd':
      update = optax.sgd(schedule, momentum=config.momentum)
    case 'muon':
      update = optax.contrib.muon(
        schedule,
        beta=config.momentum,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        adam_b1=config.beta1,
        adam_b2=config.beta2,
        muon_weight_dimension_numbers=_muon_dimensions,
        # Updates as large as Adam's, so that one learning rate serves the matrices and the rest (arXiv 2502.16982).
        consistent_rms=0.2,
      )
    case 'adafactor':
      update = optax.chain(
        _per_layer(optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))),
        optax.add_decayed_weights(config.weight_decay, mask=_is_matrix),
        optax.scale_by_learning_rate(schedule),
      )
    case 'schedule_free':
      fast = optax.chain(
        optax.scale_by_rms(config.beta2, config.epsilon, eps_in_sqrt=False, bias_correction=True),  # Adam without first moment
        optax.add_decayed_weights(config.weight_decay, mask=_is_matrix),
        optax.scale_by_learning_rate(schedule),
      )
      update = optax.contrib.schedule_free(fast, schedule, b1=config.beta1)
  return _in_float32(optax.chain(optax.clip_by_global_norm(config.clip_norm), update) if config.clip_norm else update)


def evaluation_params(config: ConfigDict, opt_state: Any, params: Any) -> Any:
  """The parameters to evaluate and to save; pure, and may be compiled.

  Args:
    config: the optimizer group that `make_optimizer` took.
    opt_state: its state after some steps.
    params: what the training loop holds after these steps.

  Returns:
    The average x of schedule_free, with the structure and dtypes of `params`; `params` themselves with every other optimizer.
  """
  if config.name != 'schedule_free':
    return params
  state = opt_state[-1] if config.clip_norm else opt_state  # clipping comes first in the chain
  average = optax.contrib.schedule_free_eval_params(state, _wide(params))
  return jax.tree.map(lambda leaf, param: leaf.astype(param.dtype), average, params)


def _in_float32(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
  """The optimizer with float32 gradients and parameters, so that its moments are; its updates are rounded when they are applied."""

  def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    return optimizer.update(_wide(gradients), state, None if params is None else _wide(params))

  return optax.GradientTransformation(lambda params: optimizer.init(_wide(params)), update)


def _wide(tree: Any) -> Any:
  return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def _per_layer(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
  """The optimizer with each layer's part of a leaf [L, ...] as a leaf of its own: the scanned layout learns what the unrolled one does.

  For optimizers that look at a leaf as a whole: which of its axes are longest, its root mean square.
  """

  def init(params: Any) -> Any:
    rest, stacked = _split(params)
    return {'rest': optimizer.init(rest), 'stacked': jax.vmap(optimizer.init)(stacked) if stacked else {}}

  def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    (rest, stacked), (rest_params, stacked_params) = _split(gradients), _split(params)
    rest, rest_state = optimizer.update(rest, state['rest'], rest_params)
    if not stacked:
      return rest, {'rest': rest_state, 'stacked': {}}
    stacked, stacked_state = jax.vmap(optimizer.update)(stacked, state['stacked'], stacked_params)
    return rest | stacked, {'rest': rest_state, 'stacked': stacked_state}

  return optax.GradientTransformation(init, update)


def _split(tree: Any) -> tuple[Any, Any]:
  """What has no axis for layers, and what has."""
  if not isinstance(tree, Mapping) or 'layers' not in tree:
    return tree, {}
  return {name: part for name, part in tree.items() if name != 'layers'}, {'layers': tree['layers']}


def _is_matrix(params: Any) -> Any:
  return jax.tree_util.tree_map_with_path(lambda path, leaf: _ndim(path, leaf) >= 2, params)


def _ndim(path: Any, leaf: jax.Array) -> int:
  """A parameter's own number of axes: in the scanned layout every leaf under `layers` has a first one for the layers."""
  return leaf.ndim - (_name(path).split('/')[0] == 'layers')


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _muon_dimensions(params: Any) -> Any:
  """Which leaves Muon orthogonalises: hidden matrices. Token embeddings and output heads are tables of rows, and stay with Adam."""

  def dimensions(path: Any, leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
    hidden_matrix = _ndim(path, leaf) == 2 and not any(table in _name(path) for table in ('embed', 'head'))
    return optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1) if hidden_matrix else None

  return jax.tree_util.tree_map_with_path(dimensions, params)


def _check(config: ConfigDict) -> None:
  check_fields(config, optimizer_fields())
  if config.name not in NAMES:
    raise ConfigError(f'optimizer name {config.name!r}: expected one of {", ".join(NAMES)}')
  if config.schedule not in SCHEDULES:
    raise ConfigError(f'optimizer schedule {config.schedule!r}: expected one of {", ".join(SCHEDULES)}')
  if not 0.0 <= config.end_factor <= 1.0:
    raise ConfigError(f'optimizer end_factor {config.end_factor}: expected a number between 0 and 1')
  for name in ('learning_rate', 'clip_norm', 'weight_decay', 'epsilon'):
    if not config[name] >= 0.0:
      raise ConfigError(f'optimizer {name} {config[name]}: expected a number that is not negative')
  if config.weight_decay and config.name not in DECAYING:
    raise ConfigError(f'optimizer {config.name} has no weight decay, found weight_decay {config.weight_decay}; use adamw')
  if config.name == 'schedule_free':
    if config.schedule != 'constant':
      raise ConfigError(
        f'optimizer schedule {config.schedule!r}: schedule_free averages instead of decaying, expected constant; a warmup may precede it'
      )
    if not 0.0 < config.beta1 < 1.0:
      raise ConfigError(f'optimizer beta1 {config.beta1}: schedule_free expects a number above 0 and below 1')
