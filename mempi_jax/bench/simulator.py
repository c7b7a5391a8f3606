"""The ALFWorld simulator beside the real engine: the same commands in both, in turns."""

from __future__ import annotations

import argparse
import os
import platform
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import tqdm

from mempi_jax.bench.turns import summary
from mempi_jax.envs.alfworld.engine import EngineEnv
from mempi_jax.envs.alfworld.game import Game
from mempi_jax.envs.alfworld.games import load_games
from mempi_jax.envs.alfworld.problem import parse_problem
from mempi_jax.envs.alfworld.simulator import Simulator

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
