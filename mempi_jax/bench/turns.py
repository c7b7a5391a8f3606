"""Several sides of one benchmark: peers as child processes, turns of which only one runs at a time, and their figures."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import tqdm

SCRIPTS = Path(__file__).parent / 'peers'
INSTALL = 'bash mempi_jax/bench/peers/install.sh'
# A peer's name -> the packages that its Python must have.
PEERS = {'torch': ('torch', 'transformers'), 'trl': ('trl',), 'tunix': ('tunix',)}

OURS, KEPT = 'mempi_jax', ', memory kept'  # names of sides, and what is added where a peer's C library keeps freed memory

REST = 0.3  # seconds between turns, for thread pools that spin before they sleep
TIMEOUT = 600.0  # seconds until a peer that does not answer is given up
TAIL = 20  # lines of a peer's standard error in messages

# What a peer sees of the environment: no accelerator, no network, nothing of this process's own packages.
ENVIRONMENT = {
  'CUDA_VISIBLE_DEVICES': '',
  'JAX_PLATFORMS': 'cpu',
  'HF_HUB_OFFLINE': '1',
  'TOKENIZERS_PARALLELISM': 'false',
}
# glibc's settings for keeping freed memory, as `keep_freed_memory` makes them from inside.
KEEP_MEMORY = {'MALLOC_ARENA_MAX': '1', 'MALLOC_MMAP_MAX_': '0', 'MALLOC_TRIM_THRESHOLD_': '2147483647'}


class PeerError(OSError):
  """A peer that cannot be started, died, answers nonsense, or does not answer."""


def parse_peers(text: str, known: Sequence[str]) -> tuple[str, ...]:
  """'torch,trl' -> ('torch', 'trl'); raises ValueError for a name that is not known here."""
  names = tuple(dict.fromkeys(name.strip() for name in text.split(',')))
  for name in names:
    if name not in known:
      raise ValueError(f'unknown peer {name!r}: expected some of {", ".join(known)}')
  return names


def find_python(name: str, folder: str | None) -> str:
  """The Python of a peer: FOLDER/NAME's, else this one if it has the peer's packages.

  Raises:
    PeerError: neither; says how to install it.
  """
  if folder is not None and (python := Path(folder) / name / 'bin' / 'python').exists():
    return str(python)
  if all(importlib.util.find_spec(package) for package in PEERS[name]):
    return sys.executable
  here = " (or pip install 'mempi_jax[torch]')" if name == 'torch' else ''
  wanted, option = (folder, '') if folder is not None else ('DIR', ', then --peers DIR')
  raise PeerError(f'no Python with the peer {name} was found; make one: {INSTALL} {wanted} {name}{option}{here}')


class Peer:
  """A peer's script in a child process, asked in JSON lines (peers/protocol.py). Use it in a `with`: leaving it ends the process."""

  def __init__(self, name: str, python: str, script: str | Path, *, keep_memory: bool = False):
    self.name = name
    ours = {'PYTHONPATH', 'PYTHONHOME', *KEEP_MEMORY}
    environment = {key: value for key, value in os.environ.items() if key not in ours}
    environment |= ENVIRONMENT | (KEEP_MEMORY if keep_memory else {})
    self._errors = tempfile.TemporaryFile()
    try:
      self._process = subprocess.Popen(
        [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment, text=True,
        encoding='utf-8', errors='replace',
      )  # fmt: skip
    except OSError as error:
      self._errors.close()
      raise PeerError(f'the peer {name} could not be started: {error}') from error
    self._lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=self._read, daemon=True).start()

  def _read(self) -> None:
    for line in self._process.stdout:
      self._lines.put(line)
    self._lines.put('')  # the end

  def ask(self, do: str, *, timeout: float = TIMEOUT, **arguments: Any) -> dict[str, Any]:
    """One request and its reply.

    Raises:
      PeerError: the peer died, answered something else than a JSON object, or not within `timeout` seconds; with the end of what it
        wrote to standard error.
    """
    try:
      self._process.stdin.write(json.dumps({'do': do} | arguments) + '\n')
      self._process.stdin.flush()
      line = self._lines.get(timeout=timeout)
    except OSError:
      line = ''  # its standard input is closed: it is dead
    except queue.Empty:
      raise self._error(f'did not answer {do!r} within {timeout:g} s') from None
    if not line:
      self._process.wait(10)
      raise self._error(f'died at {do!r} with exit status {self._process.returncode}')
    try:
      reply = json.loads(line)
    except json.JSONDecodeError:
      reply = None
    if not isinstance(reply, dict):
      raise self._error(f'answered {do!r} with {line.rstrip()[:200]!r}, expected a JSON object')
    return reply

  def _error(self, what: str) -> PeerError:
    self._process.kill()  # so that nothing is written any more
    self._process.wait()
    self._errors.seek(0)
    lines = self._errors.read().decode('utf-8', errors='replace').rstrip().splitlines()
    said = '\n'.join(['; the end of its standard error:', *lines[-TAIL:]]) if lines else '; its standard error is empty'
    return PeerError(f'the peer {self.name} {what}{said}')

  def __enter__(self) -> Peer:
    return self

  def __exit__(self, *_: object) -> None:
    self._process.kill()
    self._process.wait()
    for stream in (self._process.stdin, self._process.stdout, self._errors):
      try:
        stream.close()
      except OSError:
        pass  # what it never read


def start_peer(name: str, folder: str | None, keep_memory: bool = False) -> Peer:
  """The script of a peer in the Python that `find_python` finds for it."""
  return Peer(name, find_python(name, folder), SCRIPTS / f'{name}_peer.py', keep_memory=keep_memory)


def take_turns(
  sides: dict[str, Callable[[int], float]], repeats: int, *, rest: float = REST, progress: Callable[[], object] = lambda: None
) -> list[dict[str, float]]:
  """Each side's figure for each repeat: side(repeat), one after the other, never two at once.

  Every repeat begins with another side, so that none always runs in the same one's wake.
  """
  names, rows = list(sides), []
  for repeat in range(repeats):
    row = {}
    for i in range(len(names)):
      name = names[(repeat + i) % len(names)]
      time.sleep(rest)
      row[name] = sides[name](repeat)
      progress()
    rows.append({name: row[name] for name in names})
  return rows


def turns_bar(total: int) -> tqdm.tqdm:
  """A progress bar of turns; silent where there is no terminal."""
  return tqdm.tqdm(total=total, unit='turn', disable=None)


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


def add_ratio(repeats: Sequence[dict[str, float]], better: Callable[[Sequence[float]], float]) -> None:
  """To every repeat with peers, the ratio of speeds of ours to the best peer's; better is max for speeds, min for durations."""
  for row in repeats:
    theirs = [figure for name, figure in row.items() if name != OURS]
    if theirs:
      best = better(theirs)
      row['ratio'] = row[OURS] / best if better is max else best / row[OURS]


def check_count(name: str, what: str, found: int, expected: int) -> None:
  """Raises ValueError where a side did more or less than it was asked for."""
  if found != expected:
    raise ValueError(f'{name} had {found} {what}, expected {expected}')


def check_same_losses(name: str, ours: Sequence[float], theirs: Sequence[float]) -> None:
  """Raises ValueError unless two runs of warm-up steps began with the same loss and went the same way."""
  for which, index, tolerance in (('first', 0, 1e-4), ('last warm-up', -1, 1e-2)):
    if not abs(ours[index] - theirs[index]) <= tolerance * abs(theirs[index]):
      raise ValueError(
        f'the two sides do not do the same work: loss of the {which} step {ours[index]:.6f} here, {theirs[index]:.6f} in {name}'
      )


def check_same_distance(name: str, ours: float, theirs: float) -> None:
  """Raises ValueError where the same number of updates moved the parameters of one side much further than those of the other."""
  if not 0.5 * theirs <= ours <= 2.0 * theirs:
    raise ValueError(f'the two sides do not do the same work: parameters moved by {ours:.3g} here, by {theirs:.3g} in {name}')


def describe_run(versions: dict[str, str], load_average: float, memory_kept: bool) -> dict[str, Any]:
  """What figures depend on besides the work: the machine, versions, how busy it was before, whether this process keeps freed memory."""
  return {
    'device': jax.devices()[0].device_kind,
    'python': platform.python_version(),
    'cpus': num_cpus(),
    'versions': versions,
    'load_average': load_average,
    'memory_kept': memory_kept,
  }


def print_run(result: dict[str, Any]) -> None:
  """What `describe_run` found, in two lines."""
  versions = ', '.join(f'{name} {version}' for name, version in result['versions'].items())
  print(
    f'{result["device"]}, {result["cpus"]} CPUs, load average before {result["load_average"]:.1f}; Python {result["python"]}, {versions}'
  )
  print(f'{OURS} {"keeps freed memory" if result["memory_kept"] else "gives freed memory back"}')


def print_sides(sides: dict[str, dict[str, dict[str, float]]]) -> None:
  """`summary` of each side, a line a figure."""
  for side, figures in sides.items():
    for name, figure in figures.items():
      print(f'{side:24} {name:28} {format_figure(figure, 2)}')


def format_figure(figure: dict[str, float], digits: int, factor: float = 1.0) -> str:
  """'median [min, max]' of one of the figures of `summary`."""
  median, low, high = (f'{figure[part] * factor:,.{digits}f}' for part in ('median', 'min', 'max'))
  return f'{median} [{low}, {high}]'
