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
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mempi_jax.bench.models import named_model
from mempi_jax.bench.peers.protocol import draw_tokens
from mempi_jax.bench.turns import (
  KEPT,
  OURS,
  Peer,
  add_ratio,
  check_count,
  check_same_distance,
  describe_run,
  format_figure,
  num_cpus,
  print_run,
  start_peer,
  summary,
  take_turns,
  turns_bar,
)
from mempi_jax.bench.update import JaxLearner, Step, group_advantages, pack_completions
from mempi_jax.inference.engine import Engine
from mempi_jax.inference.requests import Request
from mempi_jax.models.decoder import DecoderConfig, count_params, init_params
from mempi_jax.models.hf import save_model
from mempi_jax.types import TrainBatch

GENERATION_PEERS, STEP_PEERS = ('torch', 'tunix'), ('trl', 'tunix')
PEERS = ('torch', 'trl', 'tunix')
WARMUP_CALLS, WARMUP_STEPS = 2, 2  # the first one compiles


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
class Stepped:
  """What some steps came to: the time, the lengths of all completions, how far any parameter has moved from the first ones at most."""

  seconds: float
  completions: list[int]
  moved: float


class JaxSteps:
  """Our side of reinforcement learning: the engine samples, one compiled update learns from packed rows, the engine takes the parameters."""

  def __init__(self, config: DecoderConfig, params: Any, step: Step):
    """`params` stay as they are."""
    self.step, self.learner = step, JaxLearner(config, params, step)
    self.prompts = draw_tokens(step.seed, (step.prompts, step.length), config.vocab_size)
    self.engine = Engine(config, params, slots=step.prompts * step.branches, max_length=step.length + step.new)
    self.count = 0

  def run(self, steps: int) -> Stepped:
    """So many steps, each with new completions of the same prompts."""
    lengths, losses, start = [], [], time.perf_counter()
    for _ in range(steps):
      batch, counts = self.sample()
      lengths += counts
      losses.append(self.learner.learn(batch))
      self.engine.params = self.learner.params
    jax.block_until_ready(self.learner.state)
    seconds = time.perf_counter() - start
    if not np.isfinite(losses).all():
      raise ValueError(f'the loss is not finite: {[float(loss) for loss in losses]}')
    return Stepped(seconds, lengths, self.learner.moved())

  def sample(self) -> tuple[TrainBatch, list[int]]:
    """The next step's batch, and how long its completions are."""
    s = self.step
    prompts = np.repeat(self.prompts, s.branches, axis=0)  # the engine reads each prompt once
    requests = [sampling_request(prompt, s.new, seed=self.count + i) for i, prompt in enumerate(prompts)]
    self.count += len(requests)
    results = self.engine.generate(requests)
    shape = (s.prompts, s.branches)
    completions = np.array([result.tokens for result in results], np.int32).reshape(*shape, s.new)
    logps = np.array([result.logps for result in results], np.float32).reshape(*shape, s.new)
    return pack_completions(self.prompts, completions, group_advantages(completions), logps), [len(result.tokens) for result in results]


class PeerSteps:
  """Their side: `JaxSteps` in a child process."""

  def __init__(self, peer: Peer, folder: str, step: Step):
    self.peer = peer
    self.versions = peer.ask('load', folder=folder, threads=num_cpus())['versions']
    peer.ask('learn', **dataclasses.asdict(step))

  def run(self, steps: int) -> Stepped:
    """As `JaxSteps.run`."""
    reply = self.peer.ask('step', steps=steps)
    return Stepped(reply['seconds'], reply['completions'], reply['moved'])


def check_steps(name: str, stepped: Stepped, step: Step, steps: int) -> None:
  """Raises ValueError unless these steps had all their completions, each as long as it must be, and finite parameters came out."""
  expected = [step.new] * (steps * step.prompts * step.branches)
  if stepped.completions != expected:
    raise ValueError(
      f'{name} learnt from {len(stepped.completions)} completions of lengths {sorted(set(stepped.completions))}, expected {len(expected)} of {step.new}'
    )
  if not np.isfinite(stepped.moved):
    raise ValueError(f'the parameters of {name} are not finite after {steps} steps')


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
    'parameters': count_params(params),
    **describe_run(versions, load_average, memory_kept),
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
        check_count(name, 'new tokens', new_tokens, expected)
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
        peer = stack.enter_context(start_peer(name, arguments.peers, keep))
        side = sides[name + KEPT * keep] = PeerSteps(peer, folder, step)
        versions |= side.versions
    moved = {}
    for name, side in sides.items():
      for _ in range(WARMUP_STEPS):
        stepped = side.run(1)
        check_steps(name, stepped, step, 1)
      moved[name] = stepped.moved
      check_same_distance(name, moved[OURS], moved[name])

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
  print(f'{result["model"]}: {result["parameters"]:,} parameters, float32')
  print_run(result)
  print(f'{result["repeats"]} repeats, median [min, max]; ratios are of speeds, {OURS} to the best peer')
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
