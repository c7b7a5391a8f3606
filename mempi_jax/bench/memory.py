"""Memory of an update, from the compiled program, before anything is allocated; and, where it is measured, what it really took.

    python -m mempi_jax.bench memory --config=configs/qwen2_5_7b_alfworld.py:mesh=gpu-8 --devices=8 --device-gb=80
    python -m mempi_jax.bench memory --config=configs/qwen2_5_7b_alfworld.py:mesh=v5p-16 --topology=v5p:2x2x2 --device-gb=95

The program of the config's stage is compiled for its mesh with shapes alone. Without --topology it is compiled for the devices found, or for so
many processors (--devices); with one for TPUs that need not be there: the compiler that comes with `pip install libtpu` (the version that
the installed JAX names) plans for them, and refuses what does not fit. What a device holds besides the update is added up from shapes: the
copy that the policy is sampled with, the one that is the reference of stage 2, and the key-value cache.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from mempi_jax.config import ConfigError, load_config, override_from_text, resolve
from mempi_jax.inference.cache import cache_bytes
from mempi_jax.models.decoder import DecoderConfig, count_params, init_params, stack_layers
from mempi_jax.models.lora import LoraConfig, apply_lora, init_lora
from mempi_jax.models.partition import shardings
from mempi_jax.models.presets import PRESETS, preset
from mempi_jax.runtime.optim import make_optimizer
from mempi_jax.runtime.sharding import Layout, host_layout, make_layout
from mempi_jax.training.objectives import imitation_loss, stage2_loss
from mempi_jax.training.update import Update, forward_loss
from mempi_jax.types import TrainBatch

STAGES = ('stage1', 'stage2')
GB = 1e9
SMALL_VOCAB = 2048  # of the shapes that have none of their own: about that of the tokenizers that are trained here


@dataclasses.dataclass
class Program:
  """An update of a config's stage, with the shapes of all that goes into it."""

  update: Update
  config: DecoderConfig  # as it is sampled: unrolled
  lora: LoraConfig | None
  trained: Any  # trees of jax.ShapeDtypeStruct, in training's layout
  frozen: Any
  batch: dict[str, Any]


def batch_shapes(config: FrozenConfigDict, stage: str, prompt_tokens: int) -> dict[str, jax.ShapeDtypeStruct]:
  """The arrays of a batch of a stage, as its source packs them, prompts of the longest kind."""
  content = config.policy.max_content
  rows, branches = (config.stage1.batch_size, 1) if stage == 'stage1' else (config.stage2.groups, config.stage2.branches)
  time, width = prompt_tokens + branches * (content + 2), branches * (content + 1)
  shapes = {}
  for field in dataclasses.fields(TrainBatch):
    match field.name:
      case 'tokens' | 'branch' | 'positions':
        shape, dtype = (rows, time), jnp.int32
      case 'score_index' | 'targets':
        shape, dtype = (rows, width), jnp.int32
      case 'content_mask' | 'content_adv' | 'old_logps' | 'ref_logps':
        shape, dtype = (rows, width), jnp.float32
      case 'decision_index':
        shape, dtype = (rows,), jnp.int32
      case 'valid':
        shape, dtype = (rows,), jnp.bool_
      case _:
        shape, dtype = (rows,), jnp.float32
    shapes[field.name] = jax.ShapeDtypeStruct(shape, dtype)
  return shapes


def make_program(config: FrozenConfigDict, stage: str, layout: Layout) -> Program:
  """The update that `train` would run, from the config alone. Raises ConfigError for a model whose shape is not known without its files."""
  settings = config.policy
  if settings.model not in PRESETS:
    raise ConfigError(f'policy.model is {settings.model!r}: the plan needs one of {", ".join(PRESETS)}')
  shape = preset(settings.model, SMALL_VOCAB)
  sampled = dataclasses.replace(shape, dtype=settings.dtype, attention=settings.attention)
  trainer = dataclasses.replace(sampled, scan_layers=settings.scan_layers, remat=settings.remat)
  decisions = shape.vocab_size - 2, shape.vocab_size - 1
  trained, frozen, lora = jax.eval_shape(lambda: init_params(shape, jax.random.key(0), settings.param_dtype)), {}, None
  if settings.lora.rank:
    lora = LoraConfig(settings.lora.rank, settings.lora.alpha, settings.lora.targets, tokens=decisions)
    frozen, trained = trained, jax.eval_shape(lambda params: init_lora(shape, lora, params, jax.random.key(0)), trained)
  if settings.scan_layers:
    trained = jax.eval_shape(stack_layers, trained)
    frozen = jax.eval_shape(stack_layers, frozen) if frozen else {}
  loss = imitation_loss if stage == 'stage1' else functools.partial(stage2_loss, config.stage2)

  assemble = lambda frozen, trained: apply_lora(trainer, lora, frozen, trained) if lora else trained
  compute = forward_loss(trainer, decisions, loss, assemble)
  update = Update(layout, compute, make_optimizer(config[stage].optimizer, 1000), micro_batches=config[stage].micro_batches)
  return Program(update, sampled, lora, trained, frozen, batch_shapes(config, stage, settings.max_prompt))


def compile_program(program: Program) -> Any:
  """The compiled update, with shapes alone."""
  layout = program.update.layout
  placed = lambda tree, where: jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), tree, where)
  state = {'params': program.trained, 'opt_state': jax.eval_shape(program.update.optimizer.init, program.trained)}
  state = placed(state, program.update.shardings(program.trained))
  frozen = placed(program.frozen, shardings(layout, program.frozen))
  batch = placed(program.batch, dict.fromkeys(program.batch, layout.rows))
  return program.update.compiled(state, frozen, batch)


def plan(program: Program, config: FrozenConfigDict, stage: str) -> dict[str, float]:
  """Bytes on each device, by what takes them; `update` is what an update takes at its peak, `total` with what stays besides."""
  layout = program.update.layout
  found = compile_program(program).memory_analysis()
  params, frozen = bytes_each(layout, program.trained), bytes_each(layout, program.frozen)
  arguments = found.argument_size_in_bytes
  update = arguments + found.output_size_in_bytes + found.temp_size_in_bytes - found.alias_size_in_bytes
  # Sampling wants the unrolled layout, a copy of what is scanned, and on several hosts one on each; the reference of stage 2 shares what is frozen.
  own = host_layout(layout)
  several = own.mesh.size < layout.mesh.size
  copies = bytes_each(own, program.trained) + bytes_each(own, program.frozen) if config.policy.scan_layers or several else 0
  reference = bytes_each(own, program.trained) if stage == 'stage2' else 0
  slots, length = config.policy.batch_size, config.policy.max_prompt + config.policy.max_content + 2
  cache = cache_bytes(program.config, slots, length) / own.mesh.size if stage == 'stage2' else 0
  return {
    'parameters trained': params,
    'parameters frozen': frozen,
    'optimizer and batch': arguments - params - frozen,
    'gradients, activations and other temporaries': update - arguments,
    'update': update,
    'copy to sample with': copies,
    'reference of stage 2': reference,
    'key-value cache': cache,
    'total': update + copies + reference + cache,
    'number of parameters trained': count_params(program.trained),
    'number of parameters': count_params(program.frozen) or count_params(program.trained),
  }


def bytes_each(layout: Layout, tree: Any) -> int:
  """Bytes of a tree of shapes on each device."""
  return sum(
    int(np.prod(sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
    for leaf, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings(layout, tree)), strict=True)
  )


def measure(program: Program, steps: int = 2) -> float:
  """Bytes that an update really takes at its peak on the first device: the process's own on a processor, what the allocator says elsewhere."""
  compile_program(program)  # nothing is left to compile
  device, before = jax.local_devices()[0], _resident()
  fill = lambda tree: jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), tree)
  state, frozen = program.update.init(fill(program.trained)), program.update.place(fill(program.frozen))
  arrays = {name: np.ones(leaf.shape, leaf.dtype) for name, leaf in program.batch.items()}
  arrays = program.update.put(TrainBatch(**arrays))
  jax.block_until_ready((state, frozen, arrays))
  _reset_peak()
  for step in range(steps):
    state, scalars = program.update(state, frozen, arrays)
    program.update.read(scalars, f'step {step}')
  stats = device.memory_stats() or {}
  return stats['peak_bytes_in_use'] if 'peak_bytes_in_use' in stats else _peak() - before


def _resident() -> int:
  return _status('VmRSS')


def _peak() -> int:
  return _status('VmHWM')


def _reset_peak() -> None:
  if os.path.exists('/proc/self/clear_refs'):
    Path('/proc/self/clear_refs').write_text('5')


def _status(name: str) -> int:
  for line in Path('/proc/self/status').read_text().splitlines():
    if line.startswith(name + ':'):
      return int(line.split()[1]) * 1024
  raise ValueError(f'/proc/self/status has no {name}')


def find_devices(topology: str, count: int) -> Sequence[jax.Device]:
  """The devices to plan for: of a TPU topology ('v5p:2x2x2'), so many processors, or those found."""
  if topology:
    from jax.experimental import topologies

    # The compiler asks a cloud for its machine otherwise.
    os.environ |= {'TPU_SKIP_MDS_QUERY': '1', 'TPU_ACCELERATOR_TYPE': 'v5p-8', 'TPU_WORKER_HOSTNAMES': 'localhost'}
    try:
      return topologies.get_topology_desc(platform='tpu', topology_name=topology).devices
    except Exception as error:  # noqa: BLE001  a missing library, or a name that it does not know
      raise ValueError(f"--topology={topology} needs libtpu and a name that it knows, as in v5p:2x2x2: {error}") from None
  if count and jax.device_count() < count:
    raise ValueError(f'--devices={count}, found {jax.device_count()}')
  return jax.devices()[: count or None]


def bench_memory(arguments: argparse.Namespace, fields: dict[str, str]) -> dict[str, Any]:
  """The plan of each stage asked for, and with --measure what an update took."""
  config = resolve(override_from_text(load_config(arguments.config), fields))
  devices = find_devices(arguments.topology, arguments.devices)
  layout = make_layout(config.mesh, devices)
  result: dict[str, Any] = {
    'benchmark': 'memory', 'config': arguments.config, 'mesh': dict(layout.mesh.shape), 'device': devices[0].device_kind,
    'device_gb': arguments.device_gb, 'stages': {},
  }  # fmt: skip
  for stage in arguments.stages.split(','):
    if stage not in STAGES:
      raise ValueError(f'--stages={arguments.stages}: expected some of {", ".join(STAGES)}')
    program = make_program(config, stage, layout)
    found = plan(program, config, stage)
    if arguments.measure:
      found['measured'] = measure(program)
    result['stages'][stage] = found
  return result


def print_memory(result: dict[str, Any]) -> None:
  """The plan as a table, in gigabytes (1e9 bytes) a device."""
  mesh = ', '.join(f'{axis} {size}' for axis, size in result['mesh'].items())
  print(f'{result["config"]}: mesh {mesh}, on {result["device"]}; GB a device')
  for stage, found in result['stages'].items():
    print(f'{stage}: {found["number of parameters trained"]:,} of {found["number of parameters"]:,} parameters are trained')
    for name, value in found.items():
      if not name.startswith('number') and value:
        print(f'  {name:46} {value / GB:10.3f}')
    if 'measured' in found:
      print(f'  {"predicted / measured":46} {found["update"] / found["measured"]:10.3f}')
    if result['device_gb']:
      verdict = 'fits' if found['total'] <= result['device_gb'] * GB else 'DOES NOT FIT'
      print(f'  {verdict} in {result["device_gb"]:g} GB: {100 * found["total"] / result["device_gb"] / GB:.0f}%')
