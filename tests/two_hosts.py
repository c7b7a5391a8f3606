"""Two processes of this machine as the two hosts of a run: what tests of several hosts start and wait for."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
_given: set[str] = set()


@dataclasses.dataclass
class Ended:
  """How a process ended: its status, what it wrote, and how long it took after the last `wait` began."""

  status: int
  out: str
  err: str
  seconds: float

  @property
  def last(self) -> str:
    """The last line of what it complained of."""
    return self.err.strip().splitlines()[-1] if self.err.strip() else ''


def free_address() -> str:
  """127.0.0.1 with a port that nobody has, and nobody else is given."""
  while True:
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      address = f'127.0.0.1:{free.getsockname()[1]}'
    if address not in _given:
      _given.add(address)
      return address


def start(command: Sequence[str], **environment: str) -> subprocess.Popen[str]:
  """Starts python with these arguments, in the repository, where tests can be imported."""
  variables = os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(REPOSITORY)} | environment
  return subprocess.Popen(
    [sys.executable, *command], env=variables, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )


def start_two(command_of: Callable[[int, str], Sequence[str]], environments: Sequence[Mapping[str, str]] = ({}, {})) -> list[subprocess.Popen[str]]:
  """Both hosts; `command_of` gives the arguments of host I for a coordinator's address."""
  address = free_address()
  return [start(command_of(host, address), **environments[host]) for host in (0, 1)]


def start_main(name: str, arguments: Sequence[str], *more: Sequence[str], **environment: str) -> list[subprocess.Popen[str]]:
  """A command of the package on both hosts; `more`: further arguments of each."""
  extra = more or ((), ())
  command = lambda host, address: ['-m', f'mempi_jax.{name}', *arguments, '--hosts=2', f'--host={host}', f'--coordinator={address}', *extra[host]]
  return start_two(command, [environment] * 2)


def wait(processes: Sequence[subprocess.Popen[str]], timeout: float = 180.0) -> list[Ended]:
  """Waits until all have ended, and kills those that have not within `timeout` seconds."""
  began = time.monotonic()

  def end_of(process):
    out, err = process.communicate(timeout=timeout)
    return Ended(process.returncode, out, err, time.monotonic() - began)

  with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:  # all are read at once: a full pipe would stop one, and so the others
    try:
      return list(pool.map(end_of, processes))
    finally:
      for process in processes:
        process.kill()
