"""Supervised fine-tuning of a decoder with random weights on random tokens, alone or beside other libraries.

Whole training steps are measured (forward, next-token loss over all tokens, backward, clipping, AdamW) on one device, in tokens a second.
PyTorch trains in a plain loop, TRL by its SFTTrainer, Tunix by its PeftTrainer; each the same model, from the same files, on the same
tokens with the same optimizer, in a process of its own. All must compute the same losses of as many tokens before anything is measured.
Each runs twice, once as it comes and once with a C library that keeps freed memory, as ours does; with `--compile` PyTorch both times
also with torch.compile. The last ratio is to the best of them in each repeat.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib.metadata
import itertools
import os
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mempi_jax.bench.models import chosen_model, flops_per_token, make_adamw, peak_flops
from mempi_jax.bench.peers.protocol import draw_tokens
from mempi_jax.bench.turns import (
  KEPT,
  OURS,
  Peer,
  check_count,
  check_same_losses,
  describe_run,
  format_figure,
  num_cpus,
  print_run,
  start_peer,
  summary,
  take_turns,
  turns_bar,
)
from mempi_jax.losses.next_token import next_token_loss
from mempi_jax.models.decoder import Decoder, DecoderConfig, count_params, init_params, output_matrix, stack_layers
from mempi_jax.models.hf import save_model

PEERS = ('torch', 'trl', 'tunix')
COMPILES = 'torch'  # the peer that may be compiled or not
COMPILED, TO_BEST = ', compiled', 'ratio to the best'
WARMUP_STEPS = 3  # the first one compiles
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-3, 0.01, 1.0


def model_loss(config: DecoderConfig, params: Any, tokens: jax.Array) -> jax.Array:
  """The next-token loss f32[] of every token but the first of each row; tokens i32[B, T], rows causal and without padding."""
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
  hidden = Decoder(config).apply({'params': params}, tokens, positions, None)
  return next_token_loss(output_matrix(params), hidden, tokens, jnp.ones(tokens.shape))


@dataclasses.dataclass(frozen=True)
class Trained:
  """What some steps came to: the time of all, the loss of each, and how many tokens had one."""

  seconds: float
  losses: list[float]
  tokens: int


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

  def train(self, seed: Sequence[int], shape: Sequence[int]) -> Trained:
    """One step for each of the batches [steps, rows, length] that the seed draws."""
    batches = draw_tokens(seed, shape, self.config.vocab_size)
    losses, start = [], time.perf_counter()
    for tokens in batches:
      self.state, loss = self.update(self.state, tokens)
      losses.append(loss)
    jax.block_until_ready(self.state)
    seconds = time.perf_counter() - start
    return Trained(seconds, [float(loss) for loss in losses], batches[..., 1:].size)


class PeerTraining:
  """Their side: `JaxTraining.train` in a child process, from the same model's folder."""

  def __init__(self, peer: Peer, folder: str, compiled: bool):
    self.peer = peer
    self.versions = peer.ask('load', folder=folder, threads=num_cpus())['versions']
    how = {'compiled': compiled} if peer.name == COMPILES else {}
    peer.ask('optimize', learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY, clip_norm=CLIP_NORM, **how)

  def train(self, seed: Sequence[int], shape: Sequence[int]) -> Trained:
    """As `JaxTraining.train`."""
    reply = self.peer.ask('train', seed=list(seed), shape=list(shape))
    return Trained(reply['seconds'], reply['losses'], reply['tokens'])


def bench_sft(arguments: argparse.Namespace, memory_kept: bool) -> dict[str, Any]:
  """Runs the benchmark and returns its figures (tokens a second); `memory_kept` says what this process's C library does."""
  load_average = os.getloadavg()[0]
  config = chosen_model(arguments)
  params = init_params(dataclasses.replace(config, scan_layers=False, remat='none'), jax.random.key(arguments.seed))
  num_params = count_params(params)
  shape = (arguments.batch_size, arguments.length)
  versions = {name: importlib.metadata.version(name) for name in ('jax', 'flax', 'optax')}
  flops, peak = flops_per_token(config, num_params, arguments.length), peak_flops(jax.devices()[0].device_kind)

  with contextlib.ExitStack() as stack:
    sides: dict[str, JaxTraining | PeerTraining] = {OURS: JaxTraining(config, params)}
    if arguments.vs:
      folder = stack.enter_context(tempfile.TemporaryDirectory())
      save_model(folder, config, params)
    for name in arguments.vs:
      compilations = (False, True) if arguments.compile and name == COMPILES else (False,)
      for compiled, keep in itertools.product(compilations, (False, True) if memory_kept else (False,)):
        peer = stack.enter_context(start_peer(name, arguments.peers, keep))
        side = sides[name + COMPILED * compiled + KEPT * keep] = PeerTraining(peer, folder, compiled)
        versions |= side.versions
    warm = {name: side.train((arguments.seed, 0), (WARMUP_STEPS, *shape)) for name, side in sides.items()}
    if not np.isfinite(warm[OURS].losses).all():
      raise ValueError(f'the loss is not finite: {warm[OURS].losses}')
    for name, trained in warm.items():
      check_count(name, 'tokens with a loss', trained.tokens, warm[OURS].tokens)
      check_same_losses(name, warm[OURS].losses, trained.losses)

    def speed(side: JaxTraining | PeerTraining, repeat: int) -> float:
      trained = side.train((arguments.seed, 1 + repeat), (arguments.steps, *shape))
      return arguments.steps * arguments.batch_size * arguments.length / trained.seconds

    with turns_bar(arguments.repeats * len(sides)) as bar:
      turns = {name: functools.partial(speed, side) for name, side in sides.items()}
      repeats = take_turns(turns, arguments.repeats, progress=bar.update)
  for row in repeats:
    peers = [name for name in row if name != OURS]
    row |= {f'ratio to {name}': row[OURS] / row[name] for name in peers}
    if peers:
      row[TO_BEST] = row[OURS] / max(row[name] for name in peers)
    if peak:
      row['utilisation'] = row[OURS] * flops / peak
  names = ('model', 'batch_size', 'length', 'steps', 'repeats', 'seed', 'dtype', 'remat', 'attention', 'scan_layers')
  return {
    'benchmark': 'sft',
    **{name: getattr(arguments, name) for name in names},
    'parameters': num_params,
    'flops_per_token': flops,
    'peak_flops': peak,
    'warmup_losses': {name: trained.losses for name, trained in warm.items()},
    **describe_run(versions, load_average, memory_kept),
    'figures': summary(repeats),
  }


def print_sft(result: dict[str, Any]) -> None:
  """The fine-tuning's figures as a table."""
  print(
    f'{result["model"]}: {result["parameters"]:,} parameters, {result["batch_size"]} rows of {result["length"]} tokens, {result["dtype"]}'
  )
  print_run(result)
  print(f'{result["repeats"]} repeats of {result["steps"]} steps, median [min, max]')
  for name, figure in result['figures'].items():
    ratio = name.startswith('ratio')
    unit, factor, digits = ('x', 1, 2) if ratio else ('% of peak', 100, 1) if name == 'utilisation' else ('tokens/s', 1, 0)
    print(f'{name:38} {format_figure(figure, digits, factor)} {unit}')
