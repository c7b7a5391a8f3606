"""Worker processes for environments that may hang, die, leak, or print without end (method section 3: the episodes of a group must come back).

    with Pool(suite.make_env, workers=8, step_timeout=30.0, memory_limit=2 << 30) as pool:
      runner = Runner(pool.make_env, agent, suite.max_steps, batch_size, workers=pool.workers, retries=2)

A worker holds one environment and answers resets and steps, each within its deadline. One that does not answer in time, dies, takes too much
memory or raises is ended with all that it started, and replaced by one that was started ahead: the episode gets a WorkerError, and can be played
again from its start (`retries` of `stream_episodes`), since an episode is a function of task, seed and guidance. An environment is used for one
episode after the other, each of which begins with a reset: how that gives the same start is the suite's promise (`Suite.start`).

A worker is ended with every process below it. What is none, such as a container of a daemon or a session on a server, is the environment's to
tie to its own life: `close` is not called where a worker dies or hangs.

The processes themselves are in worker.py, what the pool holds of them in handles.py. `RemoteEnvs` is the seam to other backends: ray_pool.py has workers
on other machines.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from mempi_jax.rollout.handles import FLAGS, REPORT_SECONDS, Fault, Keeper, Worker, WorkerError
from mempi_jax.rollout.lending import Lender, LentEnv, PoolError, check_settings, failed, pickle_maker
from mempi_jax.types import Env

_logger = logging.getLogger(__name__)

# What a worker's libraries see. Sets have the same order in all workers and runs; nothing starts threads or takes the accelerator.
ENVIRONMENT = {
  'PYTHONHASHSEED': '0',
  'CUDA_VISIBLE_DEVICES': '',
  'OMP_NUM_THREADS': '1',
  'OPENBLAS_NUM_THREADS': '1',
  'MKL_NUM_THREADS': '1',
  'TOKENIZERS_PARALLELISM': 'false',
}

_WARNING = 0.8  # share of the memory limit above which a worker is replaced before its next episode


class Pool(Lender[Worker]):
  """Environments in worker processes. Use it in a `with`, or call `close`. For any number of threads.

  Args:
    make_env: makes one environment; it is pickled (a function or a bound method of a module that can be imported), and called in every worker.
    workers: how many environments may be in use at a time.
    reset_timeout, step_timeout: seconds for one reset, and for one step.
    start_timeout: seconds in which a worker must have imported and made its environment.
    close_timeout: seconds an environment has to close; also when the caller's process is gone.
    memory_limit: bytes that a worker may take together with all that it started, None for no limit. Looked at every `memory_interval` seconds. A
      worker that has taken 80% of it is replaced before its next episode.
    data_limit: bytes of private memory that any one process of a worker may have, enforced by the kernel (RLIMIT_DATA), None for no limit: an
      allocation beyond it fails at once. For simulators in Python; browsers reserve more than they use.
    spares: workers that are started ahead, for those that fail.
    message_bytes: the largest action or answer.
    preload: import once and fork workers from there: what importing opens is shared by all. Where it starts threads every worker imports for
      itself anyway.
    environment: variables for the workers, over those of this process and ENVIRONMENT.

  Raises:
    ValueError: a setting that makes no sense, or a `make_env` that cannot be pickled.
    PoolError: the environment cannot be made; with what it raised, and what was printed.
  """

  def __init__(
    self,
    make_env: Callable[[], Env],
    workers: int,
    *,
    reset_timeout: float = 120.0,
    step_timeout: float = 60.0,
    start_timeout: float = 300.0,
    close_timeout: float = 5.0,
    memory_limit: int | None = None,
    memory_interval: float = 0.5,
    data_limit: int | None = None,
    spares: int = 1,
    message_bytes: int = 64 << 20,
    tail_bytes: int = 8192,
    preload: bool = True,
    environment: Mapping[str, str] | None = None,
  ):
    if sys.platform != 'linux':
      raise PoolError(f'the pool needs Linux (/proc, prctl), this is {sys.platform}; play with workers=0, in this process')
    check_settings(workers, spares, reset_timeout, step_timeout, start_timeout)
    super().__init__(workers, patience=2 * (workers + spares))
    self.spares = spares
    self.reset_timeout, self.step_timeout, self.start_timeout, self.close_timeout = reset_timeout, step_timeout, start_timeout, close_timeout
    self.message_bytes = message_bytes
    settings = {
      'path': list(sys.path),
      'flags': FLAGS,
      'owner': os.getpid(),
      'make_env': pickle_maker(make_env),
      'preload': preload,
      'memory_bytes': memory_limit,
      'memory_warning': math.inf if memory_limit is None else _WARNING * memory_limit,
      'memory_interval': memory_interval,
      'data_bytes': data_limit,
      'close_seconds': close_timeout,
      'message_bytes': message_bytes,
      'tail_bytes': tail_bytes,
    }
    self._memory_limit = memory_limit
    self._keeper = Keeper(settings, {**os.environ, **ENVIRONMENT, **(environment or {})})
    self._ending: list[Worker] = []
    try:
      with self._lock:
        self._fill()
        first = self._waiting[:workers]
        if len(first) < workers:
          raise PoolError(f'no worker process can be started: {self._last_failure}')
      deadline = time.monotonic() + start_timeout
      for worker in first:
        worker.wait_ready(deadline)
    except WorkerError as error:
      self.close()
      raise PoolError(f'the environment cannot be made in a worker process: {error}') from error
    except BaseException:
      self.close()
      raise

  def close(self) -> None:
    """Closes every environment and ends every process. An episode that is under way fails."""
    with self._lock:
      if self._closed:
        return
      self._closed = True
      waiting, self._waiting = self._waiting, []
      for worker in waiting:
        self._finish(worker)
      ending = list(self._ending)
      for worker in self._held:
        worker.finish()  # whoever plays hears of it, and loses the worker
    deadline = time.monotonic() + self.close_timeout + REPORT_SECONDS
    for worker in ending:
      worker.wait_ended(deadline)
    self._keeper.close(deadline)

  # For environments.

  def choose(self) -> Worker:
    """A worker that is ready, or the one that has been starting for longest: `await_start` follows. Never waits. Raises WorkerError, PoolError."""
    with self._lock:
      if self._closed:
        raise PoolError('the pool is closed')
      for worker in [worker for worker in self._waiting if not worker.alive()]:
        self._waiting.remove(worker)
        try:
          worker.wait_ready(time.monotonic())
        except WorkerError as error:
          self._start_failed(str(error))
        else:
          self.counters.count_fault(worker.why_ended())
          _logger.warning('a worker that was waiting ended: %s', worker.describe_end())
        worker.drop()
      self._fill()
      if not self._waiting:
        raise WorkerError(Fault.START, f'no worker can be started: {self._last_failure}')
      worker = next((worker for worker in self._waiting if worker.ready), self._waiting[0])
      self._waiting.remove(worker)
      self._held.add(worker)
    return worker

  def await_start(self, worker: Worker) -> None:
    """Until a worker that was chosen is ready. Raises WorkerError, with the worker lost."""
    try:
      worker.wait_ready(worker.begun + self.start_timeout)
    except BaseException as error:
      with self._lock:
        if isinstance(error, WorkerError):
          self._start_failed(str(error))
        self.lose(worker, None)
      raise
    with self._lock:
      self._failed_in_a_row = 0

  def lose(self, worker: Worker, fault: Fault | None) -> None:
    """A worker that was taken is no good any more."""
    with self._lock:
      self._held.discard(worker)
      self.counters.count_fault(fault)
      self._finish(worker)
      self._fill()

  def give_back(self, worker: Worker) -> None:
    """A worker that was taken is free."""
    with self._lock:
      self._held.discard(worker)
      if self._closed:
        self._finish(worker)
        worker.wait_ended(time.monotonic() + self.close_timeout + REPORT_SECONDS)
      else:
        self._waiting.insert(0, worker)

  # Inside.

  def _lend(self) -> PooledEnv:
    return PooledEnv(self, self.reset_timeout, self.step_timeout)

  # With the lock held.

  def _fill(self) -> None:
    """Starts workers until there are as many as there should be."""
    if self._closed:
      return
    self._ending = [worker for worker in self._ending if not worker.ended()]
    while len(self._waiting) + len(self._held) < self.workers + self.spares:
      try:
        self._waiting.append(Worker(self._keeper, self.message_bytes, self._memory_limit))
      except OSError as error:  # too many files or processes
        self._start_failed(str(error))
        break
      self.counters.started += 1

  def _start_failed(self, text: str) -> None:
    self.counters.failed_starts += 1
    super()._start_failed(text)

  def _finish(self, worker: Worker) -> None:
    """Asks a worker to close its environment and end."""
    if not worker.ended():
      worker.finish()
      self._ending.append(worker)


class PooledEnv(LentEnv[Worker]):
  """An environment in a worker process."""

  def _look_at(self, worker: Worker) -> None:
    super()._look_at(worker)
    if self._worker is not None and worker.high:
      self._pool.count('retired')
      _logger.warning('a worker was about to reach its memory limit, and was replaced before its next episode')
      self._lose(None)

  def _check(self, message: dict[str, Any], what: str) -> None:
    if 'error' in message:
      self._lose(Fault.RAISED)
      raise failed(Fault.RAISED, f'{what} raised {message["error"]}', str(message.get('trace', '')))
