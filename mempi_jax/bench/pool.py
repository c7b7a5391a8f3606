"""The pool of worker processes under faults: the same episodes without faults and with them, in turns, and what the faults cost.

In `rate` of all resets and steps the worker is killed, hangs, leaks, prints 100 MB or raises. Which one it is, is a function of the seed, the task, the
try and the turn. The workers may be those of a local Ray cluster, or each kind in turn.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import hashlib
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tqdm

from mempi_jax.bench.turns import format_figure, summary
from mempi_jax.rollout.episode import abstained, stream_episodes
from mempi_jax.rollout.lending import Counters
from mempi_jax.rollout.pool import Pool
from mempi_jax.rollout.ray_pool import RayPool
from mempi_jax.types import Context, Env, EnvStep, Episode, Guidance, Status, Task

KINDS = ('kill', 'hang', 'leak', 'print', 'raise')
HARMLESS = ('print',)
PRINTED = 100 << 20  # bytes
LEAKED = 16 << 20  # bytes a time
LEAKED_AT_MOST = 1 << 30  # where nothing stops it

SHORTEST, LONGEST = 2, 6  # steps of an episode

BACKENDS = ('process', 'ray')


def fault_at(seed: int, rate: float, task_id: str, attempt: int, turn: int) -> str | None:
  """What goes wrong, if anything; turn 0 is the reset."""
  rng = random.Random(f'fault {seed} {task_id} {attempt} {turn}')
  return rng.choice(KINDS) if rng.random() < rate else None


def length_of(task: Task) -> int:
  """The steps of an episode."""
  return random.Random(f'length {task.task_id}').randint(SHORTEST, LONGEST)


def digest(*parts: object) -> str:
  """A short hash."""
  return hashlib.sha256('\n'.join(map(str, parts)).encode()).hexdigest()[:16]


class FaultyEnv:
  """Waits `seconds` a step; what it says depends on all that was done. Tries are counted by files in `folder`, since no process lives through them."""

  def __init__(self, folder: str, seed: int, rate: float, seconds: float):
    self._folder, self._seed, self._rate, self._seconds = folder, seed, rate, seconds
    self._leak: list[bytearray] = []

  def reset(self, task: Task) -> Context:
    """Starts a try of the task: the first one, or the next that nobody has begun."""
    self._task, self._turn, self._attempt = task, 0, 0
    while self._rate:
      try:
        os.close(os.open(f'{self._folder}/{task.task_id}.{self._attempt}', os.O_CREAT | os.O_EXCL))
        break
      except FileExistsError:
        self._attempt += 1
    self._state = digest(task.task_id, task.seed)
    self._work()
    return Context(task, f'undo {task.task_id}', self._state)

  def step(self, action: str) -> EnvStep:
    self._turn += 1
    self._state = digest(self._state, action)
    self._work()
    done = self._turn == length_of(self._task)
    return EnvStep(self._state, float(done), done, done and int(self._state, 16) % 2 == 0)

  def close(self) -> None:
    pass

  def _work(self) -> None:
    time.sleep(self._seconds)
    fault = fault_at(self._seed, self._rate, self._task.task_id, self._attempt, self._turn)
    if fault == 'kill':
      os.kill(os.getpid(), signal.SIGKILL)
    elif fault == 'hang':
      time.sleep(3600)
    elif fault == 'leak':
      while len(self._leak) * LEAKED < LEAKED_AT_MOST:
        self._leak.append(bytearray(b'x') * LEAKED)
        time.sleep(0.002)
      time.sleep(3600)
    elif fault == 'print':
      line = 'x' * (1 << 20)
      for _ in range(PRINTED >> 20):
        sys.stdout.write(line)
      sys.stdout.flush()
    elif fault == 'raise':
      raise RuntimeError(f'fault of try {self._attempt}, turn {self._turn}')


class HashAgent:
  """Acts by a hash of its seed and of all that it has read in this episode."""

  def begin(self) -> HashAgent:
    self._read: dict[int, str] = {}
    self._owed: list[int] = []
    return self

  def start(self, key: int, context: Context, guidance: Guidance, seed: int) -> None:
    self._read[key] = digest(seed, context.goal, context.observation)
    self._owed.append(key)

  def observe(self, key: int, observation: str) -> None:
    self._read[key] = digest(self._read[key], observation)
    self._owed.append(key)

  def act(self) -> list[tuple[int, str]]:
    owed, self._owed = self._owed, []
    return [(key, self._read[key]) for key in owed]

  def end(self, key: int) -> None:
    self._read.pop(key, None)
    self._owed = [other for other in self._owed if other != key]


def make_tasks(count: int, seed: int) -> list[Task]:
  """Tasks of the environment above."""
  return [Task('faulty', f'task{i}', 'train', seed * 1_000_003 + i) for i in range(count)]


@dataclasses.dataclass
class Played:
  """A run: its episodes by number, how often each number came, the pool's counters and the seconds from the first reset to the last answer."""

  episodes: dict[int, Episode]
  times: collections.Counter[int]
  counters: Counters
  seconds: float


def play(tasks: Sequence[Task], pool: Pool | RayPool, retries: int, *, side_by_side: int = 256, progress: Any = None) -> Played:
  """Plays all tasks in a pool."""
  episodes, times = {}, collections.Counter()
  start = time.perf_counter()
  stream = stream_episodes(
    pool.make_env, HashAgent(), tasks, abstained(len(tasks)), [LONGEST] * len(tasks), side_by_side=side_by_side, workers=pool.workers,
    retries=retries,
  )  # fmt: skip
  for i, episode in stream:
    episodes[i] = episode
    times[i] += 1
    if progress is not None:
      progress.update()
  return Played(episodes, times, dataclasses.replace(pool.counters), time.perf_counter() - start)


def check_run(tasks: Sequence[Task], faultless: Played, faulty: Played) -> int:
  """How many episodes ended with ENV_ERROR. Raises ValueError unless every episode came once, and all others are as they were without faults."""
  for name, played in (('faultless', faultless), ('faulty', faulty)):
    if played.times != collections.Counter(range(len(tasks))):
      raise ValueError(f'the {name} run gave {sum(played.times.values())} episodes, expected each of {len(tasks)} once')
  if any(episode.status is Status.ENV_ERROR for episode in faultless.episodes.values()):
    raise ValueError(f'an environment failed without a fault (counters: {faultless.counters})')
  errors = 0
  for i, episode in faulty.episodes.items():
    if episode.status is Status.ENV_ERROR:
      errors += 1
    elif episode != faultless.episodes[i]:
      raise ValueError(f'{tasks[i].task_id} went otherwise after a fault')
  return errors


def open_pool(backend: str, make_env: Callable[[], Env], arguments: argparse.Namespace) -> Pool | RayPool:
  """The workers of a backend, with their limits."""
  limits = dict(
    reset_timeout=arguments.deadline, step_timeout=arguments.deadline, memory_limit=arguments.memory_mb << 20, memory_interval=0.1
  )  # fmt: skip
  if backend == 'ray':
    return RayPool(make_env, arguments.workers, address='local', **limits)
  return Pool(make_env, arguments.workers, spares=arguments.spares, **limits)


def bench_pool(arguments: argparse.Namespace) -> dict[str, object]:
  """Runs the benchmark and returns its figures, by backend."""
  tasks = make_tasks(arguments.episodes, arguments.seed)
  turns = sum(length_of(task) + 1 for task in tasks)
  repeats, counters = {name: [] for name in arguments.backend}, {name: [] for name in arguments.backend}
  with tqdm.tqdm(total=2 * arguments.repeats * len(arguments.backend) * len(tasks), unit='episode', disable=None) as bar:
    for repeat in range(arguments.repeats):
      first = None  # backend's faultless run
      for backend in arguments.backend:
        runs = {}
        for rate in (0.0, arguments.rate):
          with tempfile.TemporaryDirectory() as folder:
            make_env = functools.partial(FaultyEnv, str(Path(folder)), arguments.seed + repeat, rate, arguments.step_ms / 1000)
            with open_pool(backend, make_env, arguments) as pool:
              runs[rate] = play(tasks, pool, arguments.retries, progress=bar)
        faultless, faulty = runs[0.0], runs[arguments.rate]
        first = first or faultless
        errors = check_run(tasks, faultless, faulty)
        done = faulty.counters.resets + faulty.counters.steps
        repeats[backend].append(
          {
            'faultless episodes/s': len(tasks) / faultless.seconds,
            'faulty episodes/s': len(tasks) / faulty.seconds,
            'faultless steps/s, resets included': turns / faultless.seconds,
            'faulty steps/s, resets included': done / faulty.seconds,
            'ratio of episodes/s': faultless.seconds / faulty.seconds,
            'ratio of steps/s': done / turns * faultless.seconds / faulty.seconds,
            f'faultless steps/s, to {arguments.backend[0]}': first.seconds / faultless.seconds,
            'steps played again, share': done / turns - 1,
            'episodes that ended with env_error': float(errors),
          }
        )
        counters[backend].append(dataclasses.asdict(faulty.counters))
  names = ('episodes', 'workers', 'spares', 'step_ms', 'deadline', 'rate', 'retries', 'memory_mb', 'repeats')
  described = {name: getattr(arguments, name) for name in names} | {'python': platform.python_version(), 'cpus': os.cpu_count()}
  figures = {name: summary(rows) for name, rows in repeats.items()}
  return {'benchmark': 'pool', **described, 'load_average': os.getloadavg()[0], 'counters': counters, 'figures': figures}


def print_pool(result: dict[str, Any]) -> None:
  """The figures as a table for each backend."""
  print(
    f'{result["episodes"]} episodes of {SHORTEST}-{LONGEST} steps, {result["step_ms"]:g} ms each; {result["workers"]} workers, {result["spares"]} '
    f'spares; faults in {result["rate"]:.0%} of resets and steps, deadline {result["deadline"]:g} s, {result["retries"]} retries; '
    f'{result["repeats"]} repeats; median [min, max]; load average {result["load_average"]:.1f}'
  )
  for backend, figures in result['figures'].items():
    print(f'backend {backend}')
    for name, figure in figures.items():
      print(f'  {name:40} {format_figure(figure, 2)}')
    for counters in result['counters'][backend]:
      print('  ' + ', '.join(f'{name} {count}' for name, count in counters.items() if count))
