"""Supervised fine-tuning of a decoder with random weights on random tokens, alone or beside PyTorch.

Whole training steps are measured (forward, next-token loss over all tokens, backward, clipping, AdamW) on one device, in tokens a second.
PyTorch trains the same model, from the same files, on the same tokens with the same optimizer, in a process of its own; both must compute
the same losses before anything is measured. It runs twice, once as it comes and once with a C library that keeps freed memory, as ours does;
with `--compile` both also with torch.compile.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib.metadata
import itertools
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mempi_jax.bench.models import flops_per_token, make_adamw, named_model, peak_flops
from mempi_jax.bench.peers.protocol import draw_tokens
from mempi_jax.bench.turns import KEPT, OURS, Peer, format_figure, num_cpus, start_peer, summary, take_turns, turns_bar
from mempi_jax.losses.next_token import next_token_loss
from mempi_jax.models.decoder import Decoder, DecoderConfig, count_params, init_params, output_matrix, stack_layers
from mempi_jax.models.hf import save_model

PEERS = ('torch',)
COMPILED = ', compiled'
WARMUP_STEPS = 3  # the first one compiles
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-3, 0.01, 1.0


def model_loss(config: DecoderConfig, params: Any, tokens: jax.Array) -> jax.Array:
  """The next-token loss f32[] of every token but the first of each row; tokens i32[B, T], rows causal and without padding."""
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
  hidden = Decoder(config).apply({'params': params}, tokens, positions, None)
  return next_token_loss(output_matrix(params), hidden, tokens, jnp.ones(tokens.shape))


class JaxTraining:
  """Our side: training with this package's decoder and optimizer."""

  def __init__(self, config: DecoderConfig, params: Any):
    """`params` in the unrolled layout; they stay as they are."""
    optimizer = make_adamw(LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM)
    params = stack_layers(params) if config.scan_layers else params
    params = jax.tree.map(jnp.array, params)  # a copy: the update donates its input
    self.config, self.state = config, (params, optimizer.init(params))

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state: tuple[Any, Any], tokens: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
      params, optimizer_state = state
      loss, gradients = jax.value_and_grad(lambda params: model_loss(config, params, tokens))(params)
      updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
      return (optax.apply_updates(params, updates), optimizer_state), loss

    self.update = update

  def train(self, seed: Sequence[int], shape: Sequence[int]) -> tuple[float, list[float]]:
    """One step for each of the batches [steps, rows, length] that the seed draws; the seconds of all, and the loss of each."""
    batches = draw_tokens(seed, shape, self.config.vocab_size)
    losses, start = [], time.perf_counter()
    for tokens in batches:
      self.state, loss = self.update(self.state, tokens)
      losses.append(loss)
    jax.block_until_ready(self.state)
    return time.perf_counter() - start, [float(loss) for loss in losses]


class PeerTraining:
  """Their side: `JaxTraining.train` in a child process, from the same model's folder."""

  def __init__(self, peer: Peer, folder: str, compiled: bool):
    self.peer = peer
    self.versions = peer.ask('load', folder=folder, threads=num_cpus())['versions']
    peer.ask('optimize', compiled=compiled, learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY, clip_norm=CLIP_NORM)

  def train(self, seed: Sequence[int], shape: Sequence[int]) -> tuple[float, list[float]]:
    """As `JaxTraining.train`."""
    reply = self.peer.ask('train', seed=list(seed), shape=list(shape))
    return reply['seconds'], reply['losses']


def check_same_work(ours: Sequence[float], theirs: Sequence[float]) -> None:
  """Raises ValueError unless two runs of warm-up steps began with the same loss and went the same way."""
  for which, index, tolerance in (('first', 0, 1e-4), ('last warm-up', -1, 1e-2)):
    if not abs(ours[index] - theirs[index]) <= tolerance * abs(theirs[index]):
      raise ValueError(f'the two sides do not do the same work: loss of the {which} step {ours[index]:.6f} here, {theirs[index]:.6f} there')


def bench_sft(arguments: argparse.Namespace, memory_kept: bool) -> dict[str, Any]:
  """Runs the benchmark and returns its figures (tokens a second); `memory_kept` says what this process's C library does."""
  load_average = os.getloadavg()[0]
  config = dataclasses.replace(
    named_model(arguments.model),
    dtype=arguments.dtype, attention=arguments.attention, scan_layers=arguments.scan_layers, remat=arguments.remat,
  )  # fmt: skip
  params = init_params(config if not config.scan_layers else dataclasses.replace(config, scan_layers=False), jax.random.key(arguments.seed))
  num_params = count_params(params)
  shape = (arguments.batch_size, arguments.length)
  versions = {name: importlib.metadata.version(name) for name in ('jax', 'flax', 'optax')}
  device = jax.devices()[0]
  flops, peak = flops_per_token(config, num_params, arguments.length), peak_flops(device.device_kind)

  with contextlib.ExitStack() as stack:
    sides: dict[str, JaxTraining | PeerTraining] = {OURS: JaxTraining(config, params)}
    if arguments.vs:
      folder = stack.enter_context(tempfile.TemporaryDirectory())
      save_model(folder, config, params)
    for name in arguments.vs:
      for compiled, keep in itertools.product((False, True) if arguments.compile else (False,), (False, True) if memory_kept else (False,)):
        peer = stack.enter_context(start_peer(name, arguments.peers, keep))
        side = sides[name + COMPILED * compiled + KEPT * keep] = PeerTraining(peer, folder, compiled)
        versions |= side.versions
    losses = {name: side.train((arguments.seed, 0), (WARMUP_STEPS, *shape))[1] for name, side in sides.items()}
    if not np.isfinite(losses[OURS]).all():
      raise ValueError(f'the loss is not finite: {losses[OURS]}')
    for name in sides:
      check_same_work(losses[OURS], losses[name])

    def speed(side: JaxTraining | PeerTraining, repeat: int) -> float:
      seconds, _ = side.train((arguments.seed, 1 + repeat), (arguments.steps, *shape))
      return arguments.steps * arguments.batch_size * arguments.length / seconds

    with turns_bar(arguments.repeats * len(sides)) as bar:
      turns = {name: functools.partial(speed, side) for name, side in sides.items()}
      repeats = take_turns(turns, arguments.repeats, progress=bar.update)
  for row in repeats:
    for name in [name for name in row if name != OURS]:
      row[f'ratio to {name}'] = row[OURS] / row[name]
    if peak:
      row['utilisation'] = row[OURS] * flops / peak
  return {
    'benchmark': 'sft',
    **{
      name: getattr(arguments, name)
      for name in ('model', 'batch_size', 'length', 'steps', 'repeats', 'seed', 'dtype', 'remat', 'attention')
    },
    'scan_layers': config.scan_layers,
    'memory_kept': memory_kept,
    'parameters': num_params,
    'flops_per_token': flops,
    'device': device.device_kind,
    'peak_flops': peak,
    'warmup_losses': losses,
    'python': platform.python_version(),
    'cpus': num_cpus(),
    'versions': versions,
    'load_average': load_average,
    'figures': summary(repeats),
  }


def print_sft(result: dict[str, Any]) -> None:
  """The fine-tuning's figures as a table."""
  versions = ', '.join(f'{name} {version}' for name, version in result['versions'].items())
  print(
    f'{result["model"]}: {result["parameters"]:,} parameters, {result["batch_size"]} rows of {result["length"]} tokens, {result["dtype"]}'
  )
  print(
    f'{result["device"]}, {result["cpus"]} CPUs, load average before {result["load_average"]:.1f}; Python {result["python"]}, {versions}'
  )
  kept = 'keeps freed memory' if result['memory_kept'] else 'gives freed memory back'
  print(f'{result["repeats"]} repeats of {result["steps"]} steps, median [min, max]; {OURS} {kept}')
  for name, figure in result['figures'].items():
    ratio = name.startswith('ratio')
    unit, factor, digits = ('x', 1, 2) if ratio else ('% of peak', 100, 1) if name == 'utilisation' else ('tokens/s', 1, 0)
    print(f'{name:38} {format_figure(figure, digits, factor)} {unit}')
