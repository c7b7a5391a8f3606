"""Benchmarks: `python -m mempi_jax.bench NAME`.

    python -m mempi_jax.bench simulator --games PATH

plays the same commands in the real ALFWorld engine, as it is installed, and in the simulator, in turns and in one run, and prints the steps per
second of both, resets included, and their ratio: median and range over the repeats.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import tqdm

from mempi_jax.envs.alfworld.engine import EngineEnv, engine_available
from mempi_jax.envs.alfworld.game import Game
from mempi_jax.envs.alfworld.games import load_games
from mempi_jax.envs.alfworld.problem import parse_problem
from mempi_jax.envs.alfworld.simulator import Simulator
from mempi_jax.runtime import files

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
  figures = {
    name: {'median': statistics.median(row[name] for row in repeats), 'min': min(row[name] for row in repeats), 'max': max(row[name] for row in repeats)}
    for name in repeats[0]
  }
  settings = {'games': len(scripts), 'steps': steps, 'repeats': arguments.repeats, 'python': platform.python_version(), 'cpus': os.cpu_count()}
  return {'benchmark': 'simulator', **settings, 'load_average': os.getloadavg()[0], 'figures': figures}


def main(argv: Sequence[str] | None = None) -> int:
  """The command; returns its exit status."""
  parser = argparse.ArgumentParser(prog='python -m mempi_jax.bench', description='Benchmarks.')
  commands = parser.add_subparsers(dest='benchmark', required=True)
  simulator = commands.add_parser('simulator', help='the ALFWorld simulator beside the real engine')
  simulator.add_argument('--games', required=True, help='a folder of game.tw-pddl files, a .jsonl or .jsonl.xz file, or generated:HOUSEHOLD')
  simulator.add_argument('--count', type=int, default=4, help='how many games (default 4)')
  simulator.add_argument('--random-steps', type=int, default=20, help='random commands after the walk (default 20)')
  simulator.add_argument('--repeats', type=int, default=5)
  simulator.add_argument('--seed', type=int, default=0)
  simulator.add_argument('--output', help='also write the figures to this JSON file')
  arguments = parser.parse_args(argv)
  if arguments.count < 1 or arguments.repeats < 1 or arguments.random_steps < 0:
    parser.error('--count and --repeats must be at least 1, --random-steps must not be negative')
  available = engine_available()
  if available is not True:
    parser.error(f'the real ALFWorld engine is not available: {available}')
  try:
    result = bench_simulator(arguments)
  except (OSError, ValueError) as error:
    parser.error(str(error))
  print(f'{result["games"]} games, {result["steps"]} steps, {result["repeats"]} repeats; median [min, max]; load average {result["load_average"]:.1f}')
  for name, figure in result['figures'].items():
    unit = 'x' if name.startswith('ratio') else 'steps/s'
    print(f'{name:52} {figure["median"]:12,.1f} [{figure["min"]:,.1f}, {figure["max"]:,.1f}] {unit}')
  if arguments.output:
    files.write_json(arguments.output, result)
  return 0


if __name__ == '__main__':
  sys.exit(main())
