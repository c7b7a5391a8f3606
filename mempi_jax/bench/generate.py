"""Generation, and whole steps of reinforcement learning, alone or beside other libraries.

1. New tokens a second: random prompts, sampling at temperature 1 without a stop token, so that every row of every side gets the same
   number of new tokens. PyTorch chooses in its warm-up, for each number of rows, the fastest of its caches, eager or compiled.
2. Seconds a step: K completions for each of a few prompts, a cheap reward, and one update of GRPO's type: advantages normalised in their
   group, no reference model, one iteration, no pass for the old log-probs. All sides use AdamW; after the warm-up their parameters must
   have moved equally far.

All have the same random weights, from one folder. Each peer runs twice: as it comes, and with a C library that keeps freed memory, as ours
does. The ratio is that of speeds, ours to the best peer of each repeat: above 1 ours is faster.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib.metadata
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mempi_jax.bench.models import make_adamw, named_model
from mempi_jax.bench.peers.protocol import draw_tokens, reward
from mempi_jax.bench.turns import KEPT, OURS, Peer, format_figure, num_cpus, start_peer, summary, take_turns, turns_bar
from mempi_jax.inference.engine import Engine
from mempi_jax.inference.requests import Request
from mempi_jax.losses.advantages import content_advantages
from mempi_jax.losses.policy_gradient import content_policy_gradient_loss
from mempi_jax.models.decoder import DecoderConfig, count_params, init_params
from mempi_jax.models.hf import save_model
from mempi_jax.policy.score import score_rows
from mempi_jax.types import TrainBatch

GENERATION_PEERS, STEP_PEERS = ('torch', 'tunix'), ('trl', 'tunix')
PEERS = ('torch', 'trl', 'tunix')
WARMUP_CALLS, WARMUP_STEPS = 2, 2  # the first one compiles
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM, CLIP = 1e-5, 0.01, 1.0, 0.2


def sampling_request(prompt: Sequence[int], new: int, seed: int) -> Request:
  """Exactly `new` tokens after the prompt, from the whole distribution."""
  return Request(prompt=prompt, max_new=new, seed=seed, temperature=1.0, top_p=1.0, top_k=0)


class JaxGeneration:
  """Our side of generation: one engine for each number of rows."""

  def __init__(self, config: DecoderConfig, params: Any):
    self.config, self.params = config, params
    self.engines: dict[tuple[int, int], Engine] = {}

  def warm_up(self, shape: Sequence[int], new: int) -> str:
    """Compiles what prompts [rows, length] need; returns nothing to tell."""
    rows, length = shape
    self.engines[rows, length + new] = Engine(self.config, self.params, slots=rows, max_length=length + new)
    for call in range(WARMUP_CALLS):
      self.generate((call, 0), shape, new)
    return ''

  def generate(self, seed: Sequence[int], shape: Sequence[int], new: int) -> tuple[float, int]:
    """Samples `new` tokens after each of the prompts [rows, length] that the seed draws; seconds, and the number of new tokens."""
    prompts = draw_tokens(seed, shape, self.config.vocab_size)
    engine = self.engines[shape[0], shape[1] + new]
    start = time.perf_counter()
    results = engine.generate([sampling_request(prompt, new, seed=row) for row, prompt in enumerate(prompts)])
    return time.perf_counter() - start, sum(len(result.tokens) for result in results)


class PeerGeneration:
  """Their side: `JaxGeneration` in a child process."""

  def __init__(self, peer: Peer, folder: str):
    self.peer = peer
    self.versions = peer.ask('load', folder=folder, threads=num_cpus())['versions']

  def warm_up(self, shape: Sequence[int], new: int) -> str:
    """As `JaxGeneration.warm_up`; returns what the peer chose."""
    return self.peer.ask('warm_up', shape=list(shape), new=new)['way']

  def generate(self, seed: Sequence[int], shape: Sequence[int], new: int) -> tuple[float, int]:
    """As `JaxGeneration.generate`."""
    reply = self.peer.ask('generate', seed=list(seed), shape=list(shape), new=new)
    return reply['seconds'], reply['new_tokens']


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
class Stepped:
  """What some steps came to: the time, the lengths of all completions, how far any parameter has moved from the first ones at most."""

  seconds: float
  completions: list[int]
  moved: float


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


class JaxSteps:
  """Our side of reinforcement learning: the engine samples, one compiled update learns from packed rows, the engine takes the parameters."""

  def __init__(self, config: DecoderConfig, params: Any, step: Step):
    """`params` stay as they are."""
    self.config, self.step, self.first = config, step, jax.device_get(params)
    self.prompts = draw_tokens(step.seed, (step.prompts, step.length), config.vocab_size)
    optimizer = make_adamw(step.learning_rate, step.weight_decay, step.clip_norm)
    params = jax.tree.map(jnp.array, params)  # a copy: the update donates its input
    self.state = (params, optimizer.init(params))
    self.engine = Engine(config, params, slots=step.prompts * step.branches, max_length=step.length + step.new)
    self.count = 0

    def loss_of(params: Any, arrays: dict[str, jax.Array]) -> jax.Array:
      batch = TrainBatch(**arrays)
      _, logps = score_rows(
        config, params, 0, 1, batch.tokens, batch.branch, batch.positions, batch.decision_index, batch.score_index, batch.targets
      )
      loss, _ = content_policy_gradient_loss(
        logps, batch.old_logps, batch.ref_logps, batch.content_adv, batch.content_mask, clip_low=step.clip, clip_high=step.clip, kl=0.0
      )
      return loss

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state: tuple[Any, Any], arrays: dict[str, jax.Array]) -> tuple[tuple[Any, Any], jax.Array]:
      params, optimizer_state = state
      loss, gradients = jax.value_and_grad(loss_of)(params, arrays)
      updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
      return (optax.apply_updates(params, updates), optimizer_state), loss

    self.update = update

  def run(self, steps: int) -> Stepped:
    """So many steps, each with new completions of the same prompts."""
    lengths, losses, start = [], [], time.perf_counter()
    for _ in range(steps):
      batch, counts = self.sample()
      lengths += counts
      arrays = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
      self.state, loss = self.update(self.state, arrays)
      losses.append(loss)
      self.engine.params = self.state[0]
    jax.block_until_ready(self.state)
    seconds = time.perf_counter() - start
    if not np.isfinite(losses).all():
      raise ValueError(f'the loss is not finite: {[float(loss) for loss in losses]}')
    far = jax.tree.map(lambda now, first: float(np.abs(np.asarray(now) - first).max()), self.state[0], self.first)
    return Stepped(seconds, lengths, max(jax.tree.leaves(far)))

  def sample(self) -> tuple[TrainBatch, list[int]]:
    """The next step's batch, and how long its completions are."""
    s = self.step
    prompts = np.repeat(self.prompts, s.branches, axis=0)  # the engine reads each prompt once
    requests = [sampling_request(prompt, s.new, seed=self.count + i) for i, prompt in enumerate(prompts)]
    self.count += len(requests)
    results = self.engine.generate(requests)
    shape = (s.prompts, s.branches)
    rewards = np.array([reward(result.tokens) for result in results], np.float32).reshape(shape)
    advantages = content_advantages(rewards, np.zeros(s.prompts), scale='std', epsilon=1e-4, gate='open')
    completions = np.array([result.tokens for result in results], np.int32).reshape(*shape, s.new)
    logps = np.array([result.logps for result in results], np.float32).reshape(*shape, s.new)
    return pack_completions(self.prompts, completions, advantages, logps), [len(result.tokens) for result in results]


class PeerSteps:
  """Their side: `JaxSteps` in a child process."""

  def __init__(self, peer: Peer, folder: str, output: str, step: Step):
    self.peer = peer
    self.versions = peer.ask('load', folder=folder, threads=num_cpus())['versions']
    peer.ask('learn', output=output, **dataclasses.asdict(step))

  def run(self, steps: int) -> Stepped:
    """As `JaxSteps.run`."""
    return Stepped(**self.peer.ask('step', steps=steps))


def check_new_tokens(name: str, found: int, expected: int) -> None:
  """Raises ValueError where a side did not produce what it was asked for."""
  if found != expected:
    raise ValueError(f'{name} produced {found} new tokens, expected {expected}')


def check_steps(name: str, stepped: Stepped, step: Step, steps: int) -> None:
  """Raises ValueError unless these steps had all their completions, each as long as it must be, and finite parameters came out."""
  expected = [step.new] * (steps * step.prompts * step.branches)
  if stepped.completions != expected:
    raise ValueError(
      f'{name} learnt from {len(stepped.completions)} completions of lengths {sorted(set(stepped.completions))}, expected {len(expected)} of {step.new}'
    )
  if not np.isfinite(stepped.moved):
    raise ValueError(f'the parameters of {name} are not finite after {steps} steps')


def check_same_distance(ours: float, theirs: float, name: str) -> None:
  """Raises ValueError where the same number of updates moved the parameters of one side much further than those of the other."""
  if not 0.5 * theirs <= ours <= 2.0 * theirs:
    raise ValueError(f'the two sides do not do the same work: parameters moved by {ours:.3g} here, by {theirs:.3g} in {name}')


def add_ratio(repeats: Sequence[dict[str, float]], better: Callable[[Sequence[float]], float]) -> None:
  """To every repeat with peers, the ratio of speeds of ours to the best peer's; better is max for speeds, min for durations."""
  for row in repeats:
    theirs = [figure for name, figure in row.items() if name != OURS]
    if theirs:
      best = better(theirs)
      row['ratio'] = row[OURS] / best if better is max else best / row[OURS]


def bench_generate(arguments: argparse.Namespace, memory_kept: bool) -> dict[str, Any]:
  """Runs the benchmark and returns its figures; `memory_kept` says what this process's C library does."""
  load_average = os.getloadavg()[0]
  config = named_model(arguments.model)
  params = init_params(config, jax.random.key(arguments.seed))
  versions = {name: importlib.metadata.version(name) for name in ('jax', 'flax', 'optax')}
  kinds = (False, True) if memory_kept else (False,)
  with tempfile.TemporaryDirectory() as folder:
    save_model(folder, config, params)
    generation = generation_figures(arguments, config, params, folder, kinds, versions) if arguments.rows else {}
    steps = step_figures(arguments, config, params, folder, kinds, versions) if arguments.steps else {}
  return {
    'benchmark': 'generate',
    **{name: getattr(arguments, name) for name in ('model', 'length', 'new', 'repeats', 'seed', 'steps', 'prompts', 'branches')},
    'memory_kept': memory_kept,
    'parameters': count_params(params),
    'device': jax.devices()[0].device_kind,
    'python': platform.python_version(),
    'cpus': num_cpus(),
    'versions': versions,
    'load_average': load_average,
    'new_tokens_per_second': generation,
    'seconds_per_step': steps,
  }


def generation_figures(
  arguments: argparse.Namespace, config: DecoderConfig, params: Any, folder: str, kinds: Sequence[bool], versions: dict[str, str]
) -> dict[str, Any]:
  """New tokens a second, {rows: {'figures', 'ways'}}; adds to `versions` what the peers say of theirs."""
  found: dict[str, Any] = {}
  with contextlib.ExitStack() as stack:
    sides: dict[str, JaxGeneration | PeerGeneration] = {OURS: JaxGeneration(config, params)}
    for name in GENERATION_PEERS:
      for keep in kinds if name in arguments.vs else ():
        side = sides[name + KEPT * keep] = PeerGeneration(stack.enter_context(start_peer(name, arguments.peers, keep)), folder)
        versions |= side.versions
    for rows in arguments.rows:
      shape, expected = (rows, arguments.length), rows * arguments.new
      ways = {name: side.warm_up(shape, arguments.new) for name, side in sides.items()}

      def speed(name: str, repeat: int, shape=shape, expected=expected) -> float:
        seconds, new_tokens = sides[name].generate((arguments.seed, 1 + repeat), shape, arguments.new)
        check_new_tokens(name, new_tokens, expected)
        return new_tokens / seconds

      with turns_bar(arguments.repeats * len(sides)) as bar:
        repeats = take_turns({name: functools.partial(speed, name) for name in sides}, arguments.repeats, progress=bar.update)
      add_ratio(repeats, max)
      found[str(rows)] = {'figures': summary(repeats), 'ways': {name: way for name, way in ways.items() if way}}
  return found


def step_figures(
  arguments: argparse.Namespace, config: DecoderConfig, params: Any, folder: str, kinds: Sequence[bool], versions: dict[str, str]
) -> dict[str, Any]:
  """Seconds a step, {'figures', 'moved'}; adds to `versions` what the peers say of theirs."""
  step = Step((arguments.seed, 0), arguments.prompts, arguments.length, arguments.branches, arguments.new)
  with contextlib.ExitStack() as stack:
    sides: dict[str, JaxSteps | PeerSteps] = {OURS: JaxSteps(config, params, step)}
    for name in STEP_PEERS:
      for keep in kinds if name in arguments.vs else ():
        output = stack.enter_context(tempfile.TemporaryDirectory())
        peer = stack.enter_context(start_peer(name, arguments.peers, keep))
        side = sides[name + KEPT * keep] = PeerSteps(peer, folder, output, step)
        versions |= side.versions
    moved = {}
    for name, side in sides.items():
      for _ in range(WARMUP_STEPS):
        stepped = side.run(1)
        check_steps(name, stepped, step, 1)
      moved[name] = stepped.moved
      check_same_distance(moved[OURS], moved[name], name)

    def duration(name: str, repeat: int) -> float:
      stepped = sides[name].run(arguments.steps)
      check_steps(name, stepped, step, arguments.steps)
      return stepped.seconds / arguments.steps

    with turns_bar(arguments.repeats * len(sides)) as bar:
      repeats = take_turns({name: functools.partial(duration, name) for name in sides}, arguments.repeats, progress=bar.update)
  add_ratio(repeats, min)
  return {'figures': summary(repeats), 'moved': moved}


def print_generate(result: dict[str, Any]) -> None:
  """The figures as tables."""
  versions = ', '.join(f'{name} {version}' for name, version in result['versions'].items())
  print(f'{result["model"]}: {result["parameters"]:,} parameters, float32')
  print(
    f'{result["device"]}, {result["cpus"]} CPUs, load average before {result["load_average"]:.1f}; Python {result["python"]}, {versions}'
  )
  kept = 'keeps freed memory' if result['memory_kept'] else 'gives freed memory back'
  print(f'{result["repeats"]} repeats, median [min, max]; ratios are of speeds, {OURS} to the best peer; {OURS} {kept}')
  for rows, part in result['new_tokens_per_second'].items():
    print(f'\n{rows} prompts of {result["length"]} tokens, {result["new"]} new tokens each; new tokens/s')
    print_figures(part['figures'], digits=0, notes=part['ways'])
  if result['seconds_per_step']:
    completions = f'{result["prompts"] * result["branches"]} completions of {result["new"]} tokens, {result["branches"]} a prompt'
    print(f'\na step of reinforcement learning: {completions}, one update; seconds, {result["steps"]} steps a repeat')
    print_figures(result['seconds_per_step']['figures'], digits=2, notes={})


def print_figures(figures: dict[str, dict[str, float]], digits: int, notes: dict[str, str]) -> None:
  """One line a side, and the ratio."""
  for name, figure in figures.items():
    note = f'  ({notes[name]})' if name in notes else ''
    print(f'  {name:20} {format_figure(figure, 2 if name == "ratio" else digits)}{" x" if name == "ratio" else ""}{note}')
