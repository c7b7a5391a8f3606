"""The update of a policy: forward, backward and optimizer as one compiled program over all devices (method sections 2 and 3).

    update = Update(layout, compute, optimizer, micro_batches=4)
    state, frozen = update.init(params), update.place(frozen)
    state, scalars = update(state, frozen, update.put(batch))
    metrics = update.read(scalars, 'stage 2, step 12')

Shardings go in and out explicitly, the state is donated: no step holds two of it. What is trained, and the optimizer's moments, are split as
the layout's rules say. With micro-batches the rows are computed in parts, one after the other; a row is a whole group with its advantages,
and losses are divided by the totals of the whole batch, so that no part has statistics of its own and the sum is that of one batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mempi_jax.models.decoder import DecoderConfig
from mempi_jax.models.partition import shardings
from mempi_jax.policy.score import score_rows
from mempi_jax.runtime.sharding import Layout, check_rows, put
from mempi_jax.types import TrainBatch

# logit f32[B], logps f32[B, C], batch, and where the batch is a part of one: that one's num_rows and num_tokens f32[] -> loss, metrics.
Loss = Callable[[jax.Array, jax.Array, TrainBatch, jax.Array | None, jax.Array | None], tuple[jax.Array, dict[str, jax.Array]]]
# (trained, frozen, a batch's arrays, num_rows, num_tokens) -> loss, metrics
Compute = Callable[[Any, Any, dict[str, jax.Array], jax.Array | None, jax.Array | None], tuple[jax.Array, dict[str, jax.Array]]]
State = dict[str, Any]  # params and opt_state


def forward_loss(
  config: DecoderConfig, decisions: tuple[int, int], loss: Loss, assemble: Callable[[Any, Any], Any] = lambda _, trained: trained
) -> Compute:
  """Loss and metrics of a batch: one forward pass scores decision and contents of every row.

  Args:
    config: says how training computes the decoder; trained and frozen parameters have its layout.
    decisions: the tokens of [GENERATE] and [ABSTAIN].
    loss: of the scores.
    assemble: (frozen, trained) -> the decoder's parameters, see `GuidancePolicy.assemble`; by itself all of them are trained.
  """

  def compute(
    trained: Any, frozen: Any, arrays: dict[str, jax.Array], num_rows: jax.Array | None = None, num_tokens: jax.Array | None = None
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """See `Compute`."""
    batch = TrainBatch(**arrays)
    logit, logps = score_rows(
      config, assemble(frozen, trained), *decisions, batch.tokens, batch.branch, batch.positions, batch.decision_index, batch.score_index,
      batch.targets,
    )  # fmt: skip
    return loss(logit, logps, batch, num_rows, num_tokens)

  return compute


def arrays_of(batch: TrainBatch) -> dict[str, np.ndarray]:
  """A batch's arrays by their names."""
  return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}


class Update:
  """One step of training on a mesh.

  Args:
    layout: of all devices.
    compute: loss and metrics; metrics of parts add up, as losses do.
    optimizer: its state is a tree of arrays.
    micro_batches: parts that the rows are computed in.
  """

  def __init__(self, layout: Layout, compute: Compute, optimizer: optax.GradientTransformation, *, micro_batches: int = 1):
    self.layout, self.compute, self.optimizer, self.micro_batches = layout, compute, optimizer, micro_batches
    self._programs: dict[tuple[int, ...], Any] = {}  # by the shape of a batch's tokens
    self._names: list[str] = []  # of the leaves that are trained

  def init(self, params: Any) -> State:
    """The state of a training that begins with `params` (arrays, the same on all hosts; they are not used up)."""
    # A copy: the update donates its input, and who gave the parameters may still need them.
    params = put(jax.tree.map(jnp.array, params), shardings(self.layout, params))
    opt_state = jax.jit(self.optimizer.init, out_shardings=self.shardings(params)['opt_state'])(params)
    return {'params': params, 'opt_state': opt_state}

  def place(self, frozen: Any) -> Any:
    """What is not trained, at its places; arrays that are there already are not copied."""
    return put(frozen, shardings(self.layout, frozen))

  def put(self, batch: TrainBatch) -> dict[str, jax.Array]:
    """A batch, the same on all hosts, its rows split over the devices. Raises ValueError for rows that cannot be split, see `check_rows`."""
    arrays = arrays_of(batch)
    check_rows(self.layout, len(batch.tokens), self.micro_batches)
    return put(arrays, dict.fromkeys(arrays, self.layout.rows))

  def shardings(self, params: Any) -> State:
    """Of each leaf of the state, for parameters (arrays or shapes) that are trained."""
    return shardings(self.layout, {'params': params, 'opt_state': jax.eval_shape(self.optimizer.init, params)})

  def compiled(self, state: State, frozen: Any, arrays: dict[str, Any]) -> Any:
    """The program for these shapes (arrays, or jax.ShapeDtypeStruct with their shardings), compiled once."""
    shape = arrays['tokens'].shape
    if shape not in self._programs:
      where = self.shardings(state['params']), shardings(self.layout, frozen), dict.fromkeys(arrays, self.layout.rows)
      program = jax.jit(self._step, in_shardings=where, out_shardings=(where[0], self.layout.replicated), donate_argnums=0)
      with self.layout.use():
        self._programs[shape] = program.lower(state, frozen, arrays).compile()
    return self._programs[shape]

  def __call__(self, state: State, frozen: Any, arrays: dict[str, jax.Array]) -> tuple[State, dict[str, jax.Array]]:
    """The next state, and what `read` reads; `state` is used up."""
    return self.compiled(state, frozen, arrays)(state, frozen, arrays)

  def read(self, scalars: dict[str, jax.Array], what: str) -> dict[str, float]:
    """The metrics of a step; waits for it.

    Raises FloatingPointError where a gradient is not finite: names `what` and the leaves. The state after such a step is of no use.
    """
    values = jax.device_get(scalars)
    squares = values.pop('squares')
    metrics = {name: float(value) for name, value in values.items()}
    broken = [self._names[i] for i in np.flatnonzero(~np.isfinite(squares))]
    if broken:
      shown = ', '.join(broken[:4]) + (f' and {len(broken) - 4} more' if len(broken) > 4 else '')
      raise FloatingPointError(f'{what}: the gradient of {shown} is not finite (loss {metrics["train/loss"]:g}); the last checkpoint is whole')
    return metrics

  def _step(self, state: State, frozen: Any, arrays: dict[str, jax.Array]) -> tuple[State, dict[str, jax.Array]]:
    params = state['params']
    gradient = jax.value_and_grad(self.compute, has_aux=True)
    if self.micro_batches == 1:
      (loss, metrics), gradients = gradient(params, frozen, arrays, None, None)
    else:
      loss, metrics, gradients = self._accumulate(gradient, params, frozen, arrays)
    # Split as the parameters are: summed over rows and scattered in one go.
    gradients = jax.lax.with_sharding_constraint(gradients, shardings(self.layout, params))
    leaves = jax.tree_util.tree_flatten_with_path(gradients)[0]
    self._names = [jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in leaves]
    squares = jnp.stack([jnp.sum(jnp.square(leaf.astype(jnp.float32))) for _, leaf in leaves])
    updates, opt_state = self.optimizer.update(gradients, state['opt_state'], params)
    metrics |= {'train/loss': loss, 'train/gradient_norm': jnp.sqrt(jnp.sum(squares)), 'squares': squares}
    return {'params': optax.apply_updates(params, updates), 'opt_state': opt_state}, metrics

  def _accumulate(self, gradient: Callable, params: Any, frozen: Any, arrays: dict[str, jax.Array]) -> tuple[Any, dict[str, Any], Any]:
    """Loss, metrics and gradient of the whole batch, part by part; gradients are summed in float32."""
    num_rows = arrays['valid'].sum(dtype=jnp.float32)
    num_tokens = jnp.sum(arrays['content_mask'] * arrays['valid'][:, None])
    # Every device keeps its rows: a part has some of each device.
    split = lambda array: jnp.swapaxes(array.reshape(-1, self.micro_batches, *array.shape[1:]), 0, 1)
    parts = jax.tree.map(split, arrays)
    where = shardings(self.layout, params)

    def one(part: dict[str, jax.Array]) -> tuple[tuple[Any, dict[str, Any]], Any]:
      found, gradients = gradient(params, frozen, part, num_rows, num_tokens)
      return found, jax.lax.with_sharding_constraint(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gradients), where)

    def add(total: Any, part: dict[str, jax.Array]) -> tuple[Any, None]:
      return jax.tree.map(jnp.add, total, one(part)), None

    shapes = jax.eval_shape(one, jax.tree.map(lambda array: array[0], parts))
    (found, gradients), _ = jax.lax.scan(add, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes), parts)
    return *found, gradients
