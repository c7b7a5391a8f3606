"""Three updates of a small policy, of SFT or of RL, on any mesh: what the tests of meshes and of several hosts compare."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import optax

from mempi_jax.config import load_config
from mempi_jax.models.decoder import DecoderConfig, init_params, stack_layers
from mempi_jax.models.lora import LoraConfig, apply_lora, init_lora
from mempi_jax.runtime.optim import make_optimizer, optimizer_fields
from mempi_jax.runtime.sharding import Layout
from mempi_jax.training.objectives import imitation_loss, stage2_loss
from mempi_jax.training.update import Update, forward_loss
from mempi_jax.types import TrainBatch
from tests.small_run import CONFIG

MODEL = DecoderConfig(vocab_size=96, embed_dim=32, num_layers=1, num_heads=8, num_kv_heads=2, head_dim=8, mlp_dim=64, qkv_bias=True)
FLAGS = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'  # XLA's: compiles faster what runs for milliseconds
ROWS, BRANCHES, PROMPT, CONTENT = 16, 3, 10, 5


def batch(seed: int) -> TrainBatch:
  """Groups of three branches of different lengths; two rows do not count, a quarter is silent in SFT's target."""
  rng = np.random.default_rng(seed)
  width, total = CONTENT + 1, PROMPT + BRANCHES * (CONTENT + 2)
  branch = np.full((ROWS, total), -1, np.int32)
  positions, score_index = np.zeros((ROWS, total), np.int32), np.zeros((ROWS, BRANCHES * width), np.int32)
  mask = np.zeros((ROWS, BRANCHES * width), np.float32)
  decision_target = (np.arange(ROWS) % 4 > 0).astype(np.float32)
  valid = np.arange(ROWS) % 8 != 5
  for row in range(ROWS):
    prompt = int(rng.integers(4, PROMPT + 1))
    branch[row, :prompt], positions[row, :prompt] = 0, np.arange(prompt)
    start = PROMPT
    for k in range(BRANCHES):
      length = int(rng.integers(1, CONTENT + 1))
      branch[row, start : start + length + 1] = k + 1
      positions[row, start : start + length + 1] = prompt + np.arange(length + 1)
      score_index[row, k * width : k * width + length + 1] = start + np.arange(length + 1)
      mask[row, k * width : k * width + length + 1] = 1.0
      start += CONTENT + 2
  mask *= (valid & (decision_target > 0))[:, None]
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return TrainBatch(
    tokens=rng.integers(0, MODEL.vocab_size, (ROWS, total)).astype(np.int32), branch=branch, positions=positions,
    decision_index=np.full(ROWS, 3, np.int32), score_index=score_index,
    targets=rng.integers(0, MODEL.vocab_size, mask.shape).astype(np.int32), content_mask=mask,
    content_adv=normal(*mask.shape), old_logps=-4.5 + 0.1 * normal(*mask.shape), ref_logps=-4.5 + 0.1 * normal(*mask.shape),
    decision_target=decision_target, decision_adv=normal(ROWS), ref_logit=normal(ROWS), old_logit=normal(ROWS), valid=valid,
  )  # fmt: skip


def make_update(
  where: Layout, stage: str, *, micro_batches: int = 1, scan: bool = False, lora: bool = False, optimizer: str = 'adam', dtype: str = 'float32'
) -> tuple[Update, dict[str, Any], Any]:
  """An update, its first state, and what is frozen. Of what is scanned there are two layers."""
  unrolled = dataclasses.replace(MODEL, num_layers=2 if scan else MODEL.num_layers)
  config = dataclasses.replace(unrolled, scan_layers=scan, remat='full' if scan else 'none', dtype=dtype)
  params = jax.tree.map(lambda leaf: leaf * 4.0 if leaf.ndim == 2 else leaf, init_params(unrolled, jax.random.key(0)))
  adapter = LoraConfig(4, 8.0, tokens=(5, 7))
  fields = optimizer_fields()
  fields.name, fields.learning_rate, fields.epsilon = optimizer, 1e-3, 1e-5
  loss = imitation_loss if stage == 'sft' else functools.partial(stage2_loss, load_config(CONFIG).stage2)

  compute = forward_loss(config, (5, 7), loss, lambda frozen, trained: apply_lora(config, adapter, frozen, trained) if lora else trained)
  ready = stack_layers if scan else lambda tree: tree
  trained, frozen = (init_lora(unrolled, adapter, params, jax.random.key(1)), params) if lora else (params, {})
  update = Update(where, compute, make_optimizer(fields, 100), micro_batches=micro_batches)
  return update, update.init(ready(trained)), update.place(ready(frozen) if lora else {})


def three_updates(where: Layout, stage: str, **options: Any) -> tuple[list[dict[str, float]], Any, Any]:
  """The metrics of each, the gradient of the first (as Adam's first moment has it: clipped), and the parameters after them, on the host."""
  from jax.experimental import multihost_utils

  whole = lambda leaf: np.asarray(leaf) if leaf.is_fully_addressable else multihost_utils.process_allgather(leaf, tiled=True)
  update, state, frozen = make_update(where, stage, **options)
  metrics, gradient = [], None
  for step in range(3):
    state, scalars = update(state, frozen, update.put(batch(step)))
    metrics.append(update.read(scalars, f'step {step}'))
    if step == 0:
      gradient = jax.tree.map(lambda mean: 10.0 * whole(mean), optax.tree_utils.tree_get(state['opt_state'], 'mu'))
  return metrics, gradient, jax.tree.map(whole, state['params'])


def assert_same(found: Any, expected: Any, tolerance: float) -> None:
  """What `three_updates` gave twice: metrics within the tolerance of their size, gradients and parameters within it."""
  for step, (one, other) in enumerate(zip(found[0], expected[0], strict=True)):
    assert one.keys() == other.keys()
    for name in one:
      assert abs(one[name] - other[name]) <= tolerance * max(1.0, abs(other[name])), (step, name, one[name], other[name])
  for what, one, other in (('gradient', found[1], expected[1]), ('parameters', found[2], expected[2])):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(one)[0], jax.tree.leaves(other), strict=True):
      assert a.shape == b.shape and a.dtype == b.dtype == np.float32
      assert np.abs(a - b).max() <= tolerance, (what, jax.tree_util.keystr(path), float(np.abs(a - b).max()))
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[1])) > 0.05  # there is something to compare
