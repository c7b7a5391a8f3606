"""Benchmarks: `python -m mempi_jax.bench NAME`.

    python -m mempi_jax.bench simulator --games PATH

plays the same commands in the real ALFWorld engine, as it is installed, and in the simulator, in turns and in one run, and prints the steps per
second of both, resets included, and their ratio: median and range over the repeats.

    python -m mempi_jax.bench sft [--vs torch]

measures supervised fine-tuning of a decoder with random weights on random tokens: whole training steps (forward, next-token loss over all
tokens, backward, clipping, AdamW) on one device, in tokens per second. With `--vs torch` the same model (from the same files), tokens and
optimizer run in PyTorch and transformers as well, in turns, after a check that both compute the same losses.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import functools
import importlib.metadata
import importlib.util
import os
import platform
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from ml_collections import ConfigDict

from mempi_jax.envs.alfworld.engine import EngineEnv, engine_available
from mempi_jax.envs.alfworld.game import Game
from mempi_jax.envs.alfworld.games import load_games
from mempi_jax.envs.alfworld.problem import parse_problem
from mempi_jax.envs.alfworld.simulator import Simulator
from mempi_jax.losses.next_token import next_token_loss
from mempi_jax.models.attention import IMPLEMENTATIONS
from mempi_jax.models.decoder import REMAT, Decoder, DecoderConfig, count_params, init_params, output_matrix, stack_layers
from mempi_jax.models.hf import read_config, save_model
from mempi_jax.models.presets import PRESETS, preset
from mempi_jax.runtime import files
from mempi_jax.runtime.optim import make_optimizer, optimizer_fields

# The simulator.


Script = tuple[Game, tuple[str, ...]]  # a game and the commands to play in it


def record_scripts(games: Sequence[Game], random_steps: int, seed: int) -> list[Script]:
  """For each game, its optimal walk and then `random_steps` random admissible commands."""
  scripts = []
  for game in games:
    rng = random.Random(f'bench {seed} {game.game_id}')
    simulator = Simulator(parse_problem(game.problem), game.goal)
    simulator.reset()
    commands = list(game.walk)
    for command in commands:
      simulator.step(command)
    for _ in range(random_steps):
      commands.append(rng.choice(simulator.admissible_commands()))
      simulator.step(commands[-1])
    scripts.append((game, tuple(commands)))
  return scripts


def time_simulator(scripts: Sequence[Script], passes: int) -> dict[str, float]:
  """Seconds for parsing the problems, and for resets and for steps, each as a mean over `passes` times through the scripts."""
  start = time.perf_counter()
  problems = [parse_problem(game.problem) for game, _ in scripts]
  seconds = {'parse': time.perf_counter() - start, 'reset': 0.0, 'steps': 0.0}
  for _ in range(passes):
    for (game, commands), problem in zip(scripts, problems, strict=True):
      start = time.perf_counter()
      simulator = Simulator(problem, game.goal)
      simulator.reset()
      middle = time.perf_counter()
      for command in commands:
        simulator.step(command)
        simulator.admissible_commands()  # the engine lists them at every step
      seconds['reset'] += (middle - start) / passes
      seconds['steps'] += (time.perf_counter() - middle) / passes
  return seconds


def time_engine(engine: EngineEnv, scripts: Sequence[Script], progress: Callable[[], object]) -> dict[str, float]:
  """Seconds for resets (with loading the game) and for steps, once through the scripts."""
  seconds = {'reset': 0.0, 'steps': 0.0}
  for game, commands in scripts:
    start = time.perf_counter()
    engine.start(game)
    middle = time.perf_counter()
    for command in commands:
      engine.step(command)
    seconds['reset'] += middle - start
    seconds['steps'] += time.perf_counter() - middle
    progress()
  return seconds


def bench_simulator(arguments: argparse.Namespace) -> dict[str, object]:
  """Runs the simulator's benchmark and returns its figures (steps a second)."""
  scripts = record_scripts(load_games(arguments.games, count=arguments.count, seed=arguments.seed), arguments.random_steps, arguments.seed)
  steps = sum(len(commands) for _, commands in scripts)
  engine = EngineEnv({})
  engine.start(scripts[0][0])  # starting the process and its imports are not measured
  repeats = []
  with tqdm.tqdm(total=arguments.repeats * len(scripts), unit='game', disable=None) as bar:
    for _ in range(arguments.repeats):
      ours, theirs = time_simulator(scripts, passes=20), time_engine(engine, scripts, bar.update)
      whole, shared, real = (steps / sum(seconds) for seconds in (ours.values(), (ours['reset'], ours['steps']), theirs.values()))
      repeats.append(
        {
          'engine, resets included': real,
          'engine, steps alone': steps / theirs['steps'],
          'simulator, parsing and resets included': whole,
          'simulator, resets included, problems parsed before': shared,
          'simulator, steps alone': steps / ours['steps'],
          'ratio, parsing and resets included': whole / real,
          'ratio, resets included, problems parsed before': shared / real,
        }
      )
  engine.close()
  settings = {
    'games': len(scripts),
    'steps': steps,
    'repeats': arguments.repeats,
    'python': platform.python_version(),
    'cpus': os.cpu_count(),
  }
  return {'benchmark': 'simulator', **settings, 'load_average': os.getloadavg()[0], 'figures': summary(repeats)}


def print_simulator(result: dict[str, Any]) -> None:
  """The simulator's figures as a table."""
  print(
    f'{result["games"]} games, {result["steps"]} steps, {result["repeats"]} repeats; median [min, max]; load average {result["load_average"]:.1f}'
  )
  for name, figure in result['figures'].items():
    unit = 'x' if name.startswith('ratio') else 'steps/s'
    print(f'{name:52} {figure["median"]:12,.1f} [{figure["min"]:,.1f}, {figure["max"]:,.1f}] {unit}')


# Supervised fine-tuning.


QWEN2_5M = 'qwen2-5m'  # 5,050,624 parameters, 2,097,152 of them the embedding's
VOCAB_SIZE = 8192  # of named models; random tokens need no tokenizer
WARMUP_STEPS = 3  # the first one compiles
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-3, 0.01, 1.0

# Largest bfloat16 FLOP/s of one device, without sparsity, by what `device_kind` matches.
PEAK_FLOPS = {
  r'H100(?!.*(PCIe|NVL))': 989e12,
  r'H200': 989e12,
  r'A100': 312e12,
  r'\bL4\b': 121e12,
  r'TPU v4$': 275e12,
  r'TPU v5( lite|e)': 197e12,
  r'TPU v5p?$': 459e12,
  r'TPU v6( lite|e)': 918e12,
}


def named_model(name: str) -> DecoderConfig:
  """The benchmark's own model, a preset, or what the config.json of a folder describes."""
  if name == QWEN2_5M:
    return DecoderConfig(
      vocab_size=VOCAB_SIZE,
      embed_dim=256,
      num_layers=4,
      num_heads=4,
      num_kv_heads=2,
      head_dim=64,
      mlp_dim=704,
      family='qwen2',
      qkv_bias=True,
    )
  if name in PRESETS:
    return preset(name, VOCAB_SIZE)
  if not Path(name).is_dir():
    raise ValueError(f'model {name!r}: expected {QWEN2_5M}, one of the presets {", ".join(PRESETS)}, or a folder with a config.json')
  return read_config(name)


def flops_per_token(config: DecoderConfig, num_params: int, length: int) -> float:
  """Model FLOPs of one training step per token: 6 P + 12 L N H T / 2.

  P counts every parameter but an embedding that is only looked up (a tied one is the output matrix too, and counts); 6 = 2 forward and 4
  backward. The second term is attention's two products over T tokens in L layers of N heads of H, half of it because a token sees only
  those before it. What is computed twice (remat) does not count, nor does a sliding window lessen it.
  """
  looked_up = 0 if config.tie_embeddings else config.vocab_size * config.embed_dim
  return 6 * (num_params - looked_up) + 12 * config.num_layers * config.num_heads * config.head_dim * length / 2


def peak_flops(device_kind: str) -> float | None:
  """The bfloat16 peak of a device, or None where it is not known."""
  return next((peak for pattern, peak in PEAK_FLOPS.items() if re.search(pattern, device_kind)), None)


def model_loss(config: DecoderConfig, params: Any, tokens: jax.Array) -> jax.Array:
  """The next-token loss f32[] of every token but the first of each row; tokens i32[B, T], rows causal and without padding."""
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
  hidden = Decoder(config).apply({'params': params}, tokens, positions, None)
  return next_token_loss(output_matrix(params), hidden, tokens, jnp.ones(tokens.shape))


def keep_memory() -> None:
  """From now on the C library keeps what this process frees instead of giving it back to the system; glibc alone, elsewhere an OSError.

  A step on a CPU allocates some 300 MB and frees them; given back and asked for again, every page of it costs a page fault in every step.
  Call it before JAX starts its threads. The price is a larger process.
  """
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if sys.platform == 'linux' else None
  # M_ARENA_MAX 1, M_MMAP_MAX 0, M_TRIM_THRESHOLD as large as it gets
  if mallopt is None or not all(mallopt(parameter, value) for parameter, value in ((-8, 1), (-4, 0), (-1, 2**31 - 1))):
    raise OSError('the C library here cannot be told to keep freed memory: leave --keep-memory out')


class JaxTraining:
  """Our side: training with this package's decoder and optimizer."""

  def __init__(self, config: DecoderConfig, params: Any):
    """`params` in the unrolled layout; they stay as they are."""
    settings = {'name': 'adamw', 'learning_rate': LEARNING_RATE, 'weight_decay': WEIGHT_DECAY, 'clip_norm': CLIP_NORM}
    optimizer = make_optimizer(ConfigDict(optimizer_fields().to_dict() | settings), num_steps=1)
    params = stack_layers(params) if config.scan_layers else params
    params = jax.tree.map(jnp.array, params)  # a copy: the update donates its input
    self.state = (params, optimizer.init(params))

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state: tuple[Any, Any], tokens: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
      params, optimizer_state = state
      loss, gradients = jax.value_and_grad(lambda params: model_loss(config, params, tokens))(params)
      updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
      return (optax.apply_updates(params, updates), optimizer_state), loss

    self.update = update

  def run(self, batches: Sequence[np.ndarray]) -> tuple[float, list[float]]:
    """One step a batch; the seconds of all, and the loss of each."""
    losses, start = [], time.perf_counter()
    for tokens in batches:
      self.state, loss = self.update(self.state, tokens)
      losses.append(loss)
    jax.block_until_ready(self.state)
    return time.perf_counter() - start, [float(loss) for loss in losses]


class TorchTraining:
  """Their side: the same model from a folder, in PyTorch and transformers on the CPU, as fast as their own switches make it."""

  def __init__(self, folder: str):
    import torch
    from transformers import AutoModelForCausalLM

    self.torch = torch
    torch.set_num_threads(num_cpus())
    self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation='sdpa').train()
    # As `make_optimizer` does it: matrices decay, norms and biases do not.
    parameters = list(self.model.parameters())
    groups = [
      {'params': [parameter for parameter in parameters if parameter.ndim >= 2], 'weight_decay': WEIGHT_DECAY},
      {'params': [parameter for parameter in parameters if parameter.ndim < 2], 'weight_decay': 0.0},
    ]
    self.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8, fused=True)

  def run(self, batches: Sequence[np.ndarray]) -> tuple[float, list[float]]:
    """As `JaxTraining.run`."""
    losses, start = [], time.perf_counter()
    for batch in batches:
      tokens = self.torch.from_numpy(batch.astype(np.int64))
      loss = self.model(input_ids=tokens, labels=tokens, use_cache=False).loss
      self.optimizer.zero_grad(set_to_none=True)
      loss.backward()
      self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
      self.optimizer.step()
      losses.append(loss.detach())
    return time.perf_counter() - start, [float(loss) for loss in losses]


def check_same_work(ours: Sequence[float], theirs: Sequence[float]) -> None:
  """Raises ValueError unless two runs of warm-up steps began with the same loss and went the same way."""
  for which, index, tolerance in (('first', 0, 1e-4), ('last warm-up', -1, 1e-2)):
    if not abs(ours[index] - theirs[index]) <= tolerance * abs(theirs[index]):
      raise ValueError(f'the two sides do not do the same work: loss of the {which} step {ours[index]:.6f} here, {theirs[index]:.6f} there')


def bench_sft(arguments: argparse.Namespace) -> dict[str, Any]:
  """Runs the fine-tuning benchmark and returns its figures (tokens a second)."""
  load_average = os.getloadavg()[0]
  config = dataclasses.replace(
    named_model(arguments.model),
    dtype=arguments.dtype, attention=arguments.attention, scan_layers=arguments.scan_layers, remat=arguments.remat,
  )  # fmt: skip
  params = init_params(config if not config.scan_layers else dataclasses.replace(config, scan_layers=False), jax.random.key(arguments.seed))
  num_params = count_params(params)
  rng = np.random.default_rng(arguments.seed)
  shape = (arguments.batch_size, arguments.length)
  draw = lambda count: [rng.integers(0, config.vocab_size, shape, dtype=np.int32) for _ in range(count)]

  sides: dict[str, JaxTraining | TorchTraining] = {'mempi_jax': JaxTraining(config, params)}
  if arguments.vs:
    with tempfile.TemporaryDirectory() as folder:
      save_model(folder, config, params)
      sides['torch'] = TorchTraining(folder)
  warmup = draw(WARMUP_STEPS)
  losses = {name: side.run(warmup)[1] for name, side in sides.items()}
  if not np.isfinite(losses['mempi_jax']).all():
    raise ValueError(f'the loss is not finite: {losses["mempi_jax"]}')
  if arguments.vs:
    check_same_work(losses['mempi_jax'], losses['torch'])

  device = jax.devices()[0]
  flops, peak = flops_per_token(config, num_params, arguments.length), peak_flops(device.device_kind)
  repeats = []
  with tqdm.tqdm(total=arguments.repeats * len(sides), unit='turn', disable=None) as bar:
    for _ in range(arguments.repeats):
      batches, row = draw(arguments.steps), {}
      for name, side in sides.items():
        row[name] = len(batches) * batches[0].size / side.run(batches)[0]
        bar.update()
      if arguments.vs:
        row['ratio'] = row['mempi_jax'] / row['torch']
      if peak:
        row['utilisation'] = row['mempi_jax'] * flops / peak
      repeats.append(row)
  packages = ['jax', 'flax', 'optax', *(('torch', 'transformers') if arguments.vs else ())]
  return {
    'benchmark': 'sft',
    **{
      name: getattr(arguments, name)
      for name in ('model', 'batch_size', 'length', 'steps', 'repeats', 'seed', 'dtype', 'remat', 'attention')
    },
    'scan_layers': config.scan_layers,
    'keep_memory': arguments.keep_memory,
    'parameters': num_params,
    'flops_per_token': flops,
    'device': device.device_kind,
    'peak_flops': peak,
    'warmup_losses': losses,
    'python': platform.python_version(),
    'cpus': num_cpus(),
    'versions': {name: importlib.metadata.version(name) for name in packages},
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
  print(f'{result["repeats"]} repeats of {result["steps"]} steps; median [min, max]')
  units = {'ratio': ('x', 1, 2), 'utilisation': ('% of peak', 100, 1)}
  for name, figure in result['figures'].items():
    unit, factor, digits = units.get(name, ('tokens/s', 1, 0))
    median, low, high = (f'{figure[part] * factor:,.{digits}f}' for part in ('median', 'min', 'max'))
    print(f'{name:12} {median:>12} [{low}, {high}] {unit}')


# The command.


def num_cpus() -> int:
  """The CPUs that this process may use (under `taskset`, fewer than the machine has)."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def summary(repeats: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
  """Median and range of each figure over the repeats."""
  return {
    name: {
      'median': statistics.median(row[name] for row in repeats),
      'min': min(row[name] for row in repeats),
      'max': max(row[name] for row in repeats),
    }
    for name in repeats[0]
  }


def main(argv: Sequence[str] | None = None) -> int:
  """The command; returns its exit status."""
  parser = argparse.ArgumentParser(prog='python -m mempi_jax.bench', description='Benchmarks.')
  commands = parser.add_subparsers(dest='benchmark', required=True)
  simulator = commands.add_parser('simulator', help='the ALFWorld simulator beside the real engine')
  simulator.add_argument(
    '--games', required=True, help='a folder of game.tw-pddl files, a .jsonl or .jsonl.xz file, or generated:HOUSEHOLD'
  )
  simulator.add_argument('--count', type=int, default=4, help='how many games (default 4)')
  simulator.add_argument('--random-steps', type=int, default=20, help='random commands after the walk (default 20)')
  sft = commands.add_parser('sft', help='supervised fine-tuning, alone or beside PyTorch')
  sft.add_argument('--vs', choices=('torch',), help='also measure PyTorch and transformers, on a CPU in float32')
  sft.add_argument('--model', default=QWEN2_5M, help=f'{QWEN2_5M} (default), {", ".join(PRESETS)}, or a folder whose config.json is read')
  sft.add_argument('--batch-size', type=int, default=8, help='rows a step (default 8)')
  sft.add_argument('--length', type=int, default=256, help='tokens a row (default 256)')
  sft.add_argument('--steps', type=int, default=5, help='steps a turn (default 5)')
  sft.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32', help='of activations; weights and moments are float32')
  sft.add_argument('--remat', choices=tuple(REMAT), default='none', help='what is computed again in the backward pass (default none)')
  sft.add_argument('--scan-layers', action='store_true', help='one compiled layer, scanned')
  sft.add_argument('--attention', choices=IMPLEMENTATIONS, default='auto')
  sft.add_argument('--keep-memory', action='store_true', help='on a CPU: the C library keeps freed memory (for both sides)')
  for command in (simulator, sft):
    command.add_argument('--repeats', type=int, default=5)
    command.add_argument('--seed', type=int, default=0)
    command.add_argument('--output', help='also write the figures to this JSON file')
  arguments = parser.parse_args(argv)
  if arguments.benchmark == 'simulator':
    run, show = bench_simulator, print_simulator
    if arguments.count < 1 or arguments.repeats < 1 or arguments.random_steps < 0:
      parser.error('--count and --repeats must be at least 1, --random-steps must not be negative')
    available = engine_available()
    if available is not True:
      parser.error(f'the real ALFWorld engine is not available: {available}')
  else:
    run, show = bench_sft, print_sft
    if min(arguments.batch_size, arguments.steps, arguments.repeats) < 1 or arguments.length < 2:
      parser.error('--batch-size, --steps and --repeats must be at least 1, --length at least 2')
    try:
      if arguments.keep_memory:
        keep_memory()  # before the next line starts JAX
    except OSError as error:
      parser.error(str(error))
    if arguments.vs and (arguments.dtype != 'float32' or jax.default_backend() != 'cpu'):
      parser.error(f'--vs torch compares float32 on a CPU, found {arguments.dtype} on {jax.default_backend()}')
    if arguments.vs and importlib.util.find_spec('torch') is None:
      parser.error("--vs torch needs PyTorch: pip install 'mempi_jax[torch]'")
  try:
    result = run(arguments)
  except (OSError, ValueError) as error:
    parser.error(str(error))
  show(result)
  if arguments.output:
    files.write_json(arguments.output, result)
  return 0


if __name__ == '__main__':
  sys.exit(main())
