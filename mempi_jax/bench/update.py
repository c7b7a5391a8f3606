"""Updates of reinforcement learning on fixed completions, alone or beside other libraries.

K completions for each of a few prompts are given, with their advantages (GRPO's, of a cheap reward) and the log-probs of the policy that
is said to have sampled them: the first one's with noise, so that ratios differ from 1 and some are clipped. An update is the trainer's
own (training/update.py): one forward and backward pass with the clipped surrogate, without a reference model, clipping of the gradient,
AdamW. This package's rows hold a prompt once for all of its completions; the other libraries repeat it for each.

All sides have the same random weights, from one folder, and learn from the same completions over and over; after the warm-up their losses
must agree, and their parameters must have moved equally far. Each peer runs twice: as it comes, and with a C library that keeps freed
memory, as ours does. The ratio is that of speeds, ours to the best peer of each repeat: above 1 ours is faster.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib.metadata
import os
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mempi_jax.bench.models import chosen_model, make_adamw, packed_flops, peak_flops
from mempi_jax.bench.peers.protocol import draw_tokens, reward
from mempi_jax.bench.turns import (
  KEPT,
  OURS,
  Peer,
  add_ratio,
  check_count,
  check_same_distance,
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
from mempi_jax.losses.advantages import content_advantages
from mempi_jax.losses.policy_gradient import content_policy_gradient_loss
from mempi_jax.models.decoder import DecoderConfig, count_params, init_params, stack_layers
from mempi_jax.models.hf import save_model
from mempi_jax.policy.score import make_scorer
from mempi_jax.runtime.sharding import make_layout
from mempi_jax.training.update import Compute, Update, forward_loss
from mempi_jax.types import TrainBatch

PEERS = ('trl', 'tunix')
WARMUP_UPDATES = 3  # the first one compiles
NOISE = 0.2  # standard deviation of what is added to the first policy's log-probs
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM, CLIP = 1e-5, 0.01, 1.0, 0.2

LOGICAL_AXES = ('rows', 'embed', 'heads', 'mlp', 'vocab', 'rank')  # of a mesh's rules; on one device none is split


@dataclasses.dataclass(frozen=True)
class Step:
  """What one step of reinforcement learning does, on every side."""

  seed: tuple[int, ...]
  prompts: int
  length: int
  branches: int
  new: int
  learning_rate: float = LEARNING_RATE
  weight_decay: float = WEIGHT_DECAY
  clip_norm: float = CLIP_NORM
  clip: float = CLIP  # of the ratio


@dataclasses.dataclass(frozen=True)
class Updated:
  """What some updates came to: the time of all, the loss of each, and how many tokens were learnt from."""

  seconds: float
  losses: list[float]
  tokens: int


def pack_completions(prompts: np.ndarray, completions: np.ndarray, advantages: np.ndarray, logps: np.ndarray) -> TrainBatch:
  """One row a prompt, its completions side by side behind it; nothing else is scored, and the decision does not count.

  prompts i32[B, P], completions i32[B, K, N], advantages f32[B, K], logps f32[B, K, N] of the sampling policy. The first token of every
  completion is scored where the prompt ends, the others where the one before them stands.
  """
  (rows, length), (_, branches, new) = prompts.shape, completions.shape
  tiled = lambda values: np.broadcast_to(values, (rows, *values.shape)).copy()
  starts = length + new * np.arange(branches)[:, None]
  steps = np.arange(new)
  zeros = np.zeros(rows, np.float32)
  flat = lambda values, dtype: np.ascontiguousarray(values.reshape(rows, branches * new), dtype)
  return TrainBatch(
    tokens=np.concatenate([prompts, completions.reshape(rows, -1)], axis=1).astype(np.int32),
    branch=tiled(np.concatenate([np.zeros(length, np.int32), np.repeat(np.arange(1, branches + 1, dtype=np.int32), new)])),
    positions=tiled(np.concatenate([np.arange(length), np.tile(length + steps, branches)]).astype(np.int32)),
    decision_index=np.full(rows, length - 1, np.int32),
    score_index=tiled(np.where(steps == 0, length - 1, starts + steps - 1).reshape(-1).astype(np.int32)),
    targets=flat(completions, np.int32),
    content_mask=np.ones((rows, branches * new), np.float32),
    content_adv=flat(np.repeat(advantages[..., None], new, axis=2), np.float32),
    old_logps=flat(logps, np.float32),
    ref_logps=flat(logps, np.float32),
    decision_target=zeros,
    decision_adv=zeros,
    ref_logit=zeros,
    old_logit=zeros,
    valid=np.ones(rows, bool),
  )


def group_advantages(completions: np.ndarray) -> np.ndarray:
  """Advantages f32[B, K] of completions i32[B, K, N]: rewards normalised in their group."""
  rewards = np.array([[reward(tokens) for tokens in group] for group in completions], np.float32)
  return content_advantages(rewards, np.zeros(len(rewards)), scale='std', epsilon=1e-4, gate='open')


def given_batch(config: DecoderConfig, params: Any, step: Step) -> TrainBatch:
  """The rows that a step's seed draws: prompts, completions, and log-probs of the policy `params` (unrolled layout) with noise."""
  prompts = draw_tokens(step.seed, (step.prompts, step.length), config.vocab_size)
  shape = (step.prompts, step.branches, step.new)
  completions = draw_tokens((*step.seed, 1), shape, config.vocab_size)
  batch = pack_completions(prompts, completions, group_advantages(completions), np.zeros(shape, np.float32))
  unrolled = dataclasses.replace(config, scan_layers=False, remat='none')
  logps = np.asarray(make_scorer(unrolled, 0, 1)(params, batch))
  noise = np.random.default_rng([*step.seed, 2]).normal(0.0, NOISE, logps.shape).astype(np.float32)
  return dataclasses.replace(batch, old_logps=logps + noise, ref_logps=logps)


def surrogate_loss(config: DecoderConfig, clip: float) -> Compute:
  """The loss of packed rows: the contents' clipped surrogate alone, scored as the trainer scores them."""
  return forward_loss(
    config,
    (0, 1),
    lambda _, logps, batch, num_rows, num_tokens: content_policy_gradient_loss(
      logps, batch.old_logps, batch.ref_logps, batch.content_adv, batch.content_mask,
      clip_low=clip, clip_high=clip, kl=0.0, num_tokens=num_tokens,
    ),
  )  # fmt: skip


class JaxLearner:
  """Our side of learning: the trainer's own update, on one device."""

  def __init__(self, config: DecoderConfig, params: Any, step: Step, micro_batches: int = 1):
    """`params` in the unrolled layout; they stay as they are. `micro_batches`: parts that an update's rows are computed in."""
    mesh = ConfigDict({'data': 1, 'fsdp': 1, 'tensor': 1, 'slices': 1, 'rules': dict.fromkeys(LOGICAL_AXES, '')})
    optimizer = make_adamw(step.learning_rate, step.weight_decay, step.clip_norm)
    layout = make_layout(mesh, jax.devices()[:1])
    self.update = Update(layout, surrogate_loss(config, step.clip), optimizer, micro_batches=micro_batches)
    params = stack_layers(params) if config.scan_layers else params
    self.first, self.state = jax.device_get(params), self.update.init(params)

  @property
  def params(self) -> Any:
    """The parameters as they are now; the next update takes their memory."""
    return self.state['params']

  def learn(self, batch: TrainBatch) -> jax.Array:
    """One update; its loss f32[], which may not be there yet."""
    self.state, scalars = self.update(self.state, {}, self.update.put(batch))
    return scalars['train/loss']

  def moved(self) -> float:
    """How far any parameter is from where it began, at most."""
    far = jax.tree.map(lambda now, first: float(np.abs(np.asarray(now) - first).max()), self.params, self.first)
    return max(jax.tree.leaves(far))


class JaxUpdates:
  """Our side: updates on one batch of packed rows."""

  def __init__(self, config: DecoderConfig, params: Any, step: Step, batch: TrainBatch, micro_batches: int):
    """As `JaxLearner`."""
    self.learner, self.batch = JaxLearner(config, params, step, micro_batches), batch

  def run(self, updates: int) -> Updated:
    """So many updates."""
    losses, start = [], perf_counter()
    for _ in range(updates):
      losses.append(self.learner.learn(self.batch))
    jax.block_until_ready(self.learner.state)
    seconds = perf_counter() - start
    return Updated(seconds, [float(loss) for loss in losses], updates * int(self.batch.content_mask.sum()))

  def moved(self) -> float:
    """How far any parameter is from where it began, at most."""
    return self.learner.moved()


class PeerUpdates:
  """Their side: `JaxUpdates` in a child process, from the same model's folder; `old_logps` is a file of f32[B, K, N]."""

  def __init__(self, peer: Peer, folder: str, step: Step, old_logps: str):
    self.peer = peer
    self.versions = peer.ask('load', folder=folder, threads=num_cpus())['versions']
    peer.ask('learn', **dataclasses.asdict(step), old_logps=old_logps)

  def run(self, updates: int) -> Updated:
    """As `JaxUpdates.run`."""
    self.reply = self.peer.ask('step', steps=updates)
    return Updated(*(self.reply[name] for name in ('seconds', 'losses', 'tokens')))

  def moved(self) -> float:
    """As `JaxUpdates.moved`, after the last run."""
    return self.reply['moved']


def bench_update(arguments: argparse.Namespace, memory_kept: bool) -> dict[str, Any]:
  """Runs the benchmark and returns its figures (seconds an update); `memory_kept` says what this process's C library does."""
  load_average = os.getloadavg()[0]
  config = chosen_model(arguments)
  params = init_params(dataclasses.replace(config, scan_layers=False, remat='none'), jax.random.key(arguments.seed))
  num_params = count_params(params)
  step = Step((arguments.seed, 0), arguments.prompts, arguments.length, arguments.branches, arguments.new)
  versions = {name: importlib.metadata.version(name) for name in ('jax', 'flax', 'optax')}
  flops = step.prompts * packed_flops(config, num_params, step.length, step.branches, step.new)
  peak = peak_flops(jax.devices()[0].device_kind)

  with contextlib.ExitStack() as stack:
    batch = given_batch(config, params, step)
    sides: dict[str, JaxUpdates | PeerUpdates] = {OURS: JaxUpdates(config, params, step, batch, arguments.micro_batches)}
    if arguments.vs:
      folder = stack.enter_context(tempfile.TemporaryDirectory())
      save_model(folder, config, params)
      old_logps = str(Path(folder) / 'old_logps.npy')
      np.save(old_logps, batch.old_logps.reshape(step.prompts, step.branches, step.new))
    del params  # on an accelerator they would lie beside the learner's
    for name in arguments.vs:
      for keep in (False, True) if memory_kept else (False,):
        side = PeerUpdates(stack.enter_context(start_peer(name, arguments.peers, keep)), folder, step, old_logps)
        sides[name + KEPT * keep] = side
        versions |= side.versions
    warm = {name: side.run(WARMUP_UPDATES) for name, side in sides.items()}
    moved = {name: side.moved() for name, side in sides.items()}
    if not np.isfinite([*warm[OURS].losses, moved[OURS]]).all():
      raise ValueError(f'the updates are not finite: losses {warm[OURS].losses}, parameters moved by {moved[OURS]}')
    for name, updated in warm.items():
      check_count(name, 'tokens to learn from', updated.tokens, warm[OURS].tokens)
      check_same_losses(name, warm[OURS].losses, updated.losses)
      check_same_distance(name, moved[OURS], moved[name])

    def duration(side: JaxUpdates | PeerUpdates, repeat: int) -> float:
      return side.run(arguments.steps).seconds / arguments.steps

    with turns_bar(arguments.repeats * len(sides)) as bar:
      turns = {name: functools.partial(duration, side) for name, side in sides.items()}
      repeats = take_turns(turns, arguments.repeats, progress=bar.update)
  add_ratio(repeats, min)
  tokens = step.prompts * step.branches * step.new
  sizes = ('model', 'prompts', 'length', 'branches', 'new', 'steps', 'repeats', 'seed', 'micro_batches')
  names = (*sizes, 'dtype', 'remat', 'attention', 'scan_layers')
  return {
    'benchmark': 'update',
    **{name: getattr(arguments, name) for name in names},
    'parameters': num_params,
    'flops_per_update': flops,
    'peak_flops': peak,
    'warmup_losses': {name: updated.losses for name, updated in warm.items()},
    'moved': moved,
    **describe_run(versions, load_average, memory_kept),
    'seconds_per_update': summary(repeats),
    'tokens_per_second': summary([{name: tokens / row[name] for name in sides} for row in repeats]),
    'utilisation': summary([{OURS: flops / peak / row[OURS]} for row in repeats]) if peak else {},
  }


def print_update(result: dict[str, Any]) -> None:
  """The figures as a table."""
  completions = f'{result["branches"]} completions of {result["new"]} tokens for each of {result["prompts"]} prompts of {result["length"]}'
  print(f'{result["model"]}: {result["parameters"]:,} parameters, {completions}, {result["dtype"]}')
  print_run(result)
  print(f'{result["repeats"]} repeats of {result["steps"]} updates, median [min, max]; tokens are those of completions')
  for name, figure in result['tokens_per_second'].items():
    print(f'{name:24} {format_figure(result["seconds_per_update"][name], 4)} s  {format_figure(figure, 0)} tokens/s')
  if 'ratio' in result['seconds_per_update']:
    print(f'{"ratio to the best peer":24} {format_figure(result["seconds_per_update"]["ratio"], 2)} x')
  for figure in result['utilisation'].values():
    print(f'{"utilisation":24} {format_figure(figure, 1, 100)} % of peak')
