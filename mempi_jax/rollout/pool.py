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

import dataclasses
import logging
import math
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mempi_jax.rollout.handles import FLAGS, REPORT_SECONDS, Fault, Keeper, Worker, WorkerError, printable
from mempi_jax.types import Context, Env, EnvStep, Step, Task

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


class PoolError(RuntimeError):
  """The pool cannot work: its environment cannot be made at all, or it is closed."""


class NoEnvFree(PoolError):
  """Every worker is in use."""


class RemoteEnv(Env, Protocol):
  """An environment that is played somewhere else."""

  def abort(self) -> None:
    """From any thread: the reset or step that is under way raises now."""


@runtime_checkable
class Abortable(Protocol):
  """What can be told, from another thread, not to wait any longer."""

  def abort(self) -> None: ...


class RemoteEnvs(Protocol):
  """A backend that plays environments somewhere else: `workers` at a time."""

  workers: int

  def make_env(self) -> RemoteEnv:
    """Never waits; raises NoEnvFree while all are in use. `close` gives it back."""

  def close(self) -> None: ...


@dataclasses.dataclass
class Counters:
  """What happened in a pool."""

  started: int = 0  # workers, the first ones included
  resets: int = 0
  steps: int = 0
  failed_starts: int = 0
  raised: int = 0
  deaths: int = 0
  hangs: int = 0
  leaks: int = 0
  garbled: int = 0
  retired: int = 0  # replaced between episodes, because they were about to take too much memory

  @property
  def faults(self) -> int:
    """Resets and steps that failed, and workers that died unasked."""
    return self.failed_starts + self.raised + self.deaths + self.hangs + self.leaks + self.garbled

  def count_fault(self, fault: Fault | None) -> None:
    """One more of a fault; what the caller asked for is none."""
    if fault in _COUNTED:
      setattr(self, _COUNTED[fault], getattr(self, _COUNTED[fault]) + 1)


_COUNTED = {
  Fault.RAISED: 'raised',
  Fault.DIED: 'deaths',
  Fault.HUNG: 'hangs',
  Fault.LEAKED: 'leaks',
  Fault.GARBLED: 'garbled',
}


class Pool:
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
    self.workers, self.spares = workers, spares
    self.reset_timeout, self.step_timeout, self.start_timeout, self.close_timeout = reset_timeout, step_timeout, start_timeout, close_timeout
    self.message_bytes = message_bytes
    self.counters = Counters()
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
    self._lock = threading.RLock()
    self._keeper = Keeper(settings, {**os.environ, **ENVIRONMENT, **(environment or {})})
    self._waiting: list[Worker] = []  # free ones, and those that are still starting
    self._ending: list[Worker] = []
    self._held: set[Worker] = set()  # what environments have
    self._leased = 0  # environments
    self._failed_in_a_row = 0
    self._last_failure = ''
    self._closed = False
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

  def make_env(self) -> PooledEnv:
    """An environment that takes a worker at its first reset and gives it back when it is closed.

    Raises:
      NoEnvFree: `workers` of them are in use. PoolError: the pool is closed, or no worker can be started any more.
    """
    with self._lock:
      if self._closed:
        raise PoolError('the pool is closed')
      if self._failed_in_a_row > 2 * (self.workers + self.spares):
        raise PoolError(f'the last {self._failed_in_a_row} workers could not be started; the last one: {self._last_failure}')
      if self._leased >= self.workers:
        raise NoEnvFree(f'all {self.workers} workers are in use: close an environment first')
      self._leased += 1
    return PooledEnv(self)

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

  def __enter__(self) -> Pool:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

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
          self._start_failed(error)
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
          self._start_failed(error)
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

  def release(self) -> None:
    """An environment was closed."""
    with self._lock:
      self._leased -= 1

  def count(self, name: str) -> None:
    """One more of resets, steps or retired."""
    with self._lock:
      setattr(self.counters, name, getattr(self.counters, name) + 1)

  # Inside, with the lock held.

  def _fill(self) -> None:
    """Starts workers until there are as many as there should be."""
    if self._closed:
      return
    self._ending = [worker for worker in self._ending if not worker.ended()]
    while len(self._waiting) + len(self._held) < self.workers + self.spares:
      try:
        self._waiting.append(Worker(self._keeper, self.message_bytes, self._memory_limit))
      except OSError as error:  # too many files or processes
        self._start_failed(error)
        break
      self.counters.started += 1

  def _start_failed(self, error: Exception) -> None:
    self.counters.failed_starts += 1
    self._failed_in_a_row += 1
    self._last_failure = str(error)
    _logger.warning('a worker could not be started: %s', error)

  def _finish(self, worker: Worker) -> None:
    """Asks a worker to close its environment and end."""
    if not worker.ended():
      worker.finish()
      self._ending.append(worker)


class PooledEnv:
  """An environment in a worker of a pool. For one thread at a time, but for `abort`. Implements `types.Env`."""

  def __init__(self, pool: Pool):
    self._pool = pool
    self._worker: Worker | None = None
    self._playing = False
    self._closed = False
    self._aborted = False

  def reset(self, task: Task) -> Context:
    """Raises WorkerError; PoolError when the pool or this environment is closed."""
    if self._closed:
      raise PoolError('this environment is closed')
    self._playing = False
    if self._worker is not None and not self._worker.alive():  # nobody was playing
      self._lose(self._worker.why_ended())
    if self._worker is not None and self._worker.high:
      self._pool.count('retired')
      _logger.warning('a worker was about to reach its memory limit, and was replaced before its next episode')
      self._lose(None)
    if self._worker is None:
      self._worker = self._pool.choose()
      if self._aborted:
        self._worker.kill()
      try:
        self._pool.await_start(self._worker)
      except BaseException:
        self._worker = None
        raise
    self._pool.count('resets')
    message, pixels = self._ask({'reset': [task.env, task.task_id, task.split, task.seed]}, self._pool.reset_timeout, f'reset({task.task_id!r})')
    context = self._read(lambda: unpack_context(message['context'], pixels), 'reset')
    self._playing = True
    return context

  def step(self, action: str) -> EnvStep:
    """Raises WorkerError; RuntimeError before `reset`, and after a fault."""
    if not self._playing or self._worker is None:
      raise RuntimeError('call reset(task) before step(action)')
    self._pool.count('steps')
    message, _ = self._ask({'step': action}, self._pool.step_timeout, 'step')
    return self._read(lambda: unpack_step(message['step']), 'step')

  def close(self) -> None:
    """Gives the worker back."""
    if self._closed:
      return
    self._closed = True
    if self._worker is not None:
      if self._worker.alive() and not self._aborted:
        self._pool.give_back(self._worker)
        self._worker = None
      else:
        self._lose(None)
    self._pool.release()

  def abort(self) -> None:
    """See `RemoteEnv`."""
    self._aborted = True
    worker = self._worker
    if worker is not None:
      worker.kill()

  def _ask(self, request: dict[str, Any], seconds: float, what: str) -> tuple[dict[str, Any], bytearray]:
    worker = self._worker
    try:
      message, pixels = worker.ask(request, seconds, what)
    except WorkerError as error:
      if self._aborted:
        error.fault = Fault.ABORTED
      self._lose(error.fault)
      raise
    except BaseException:  # an interrupt: the answer that will come belongs to nobody
      self._lose(None)
      raise
    if 'error' in message:
      self._lose(Fault.RAISED)
      error = WorkerError(Fault.RAISED, f'{what} raised {printable(str(message["error"]))}')
      error.add_note(printable(str(message.get('trace', ''))))
      raise error
    return message, pixels

  def _read(self, read: Callable[[], Any], what: str) -> Any:
    try:
      return read()
    except (KeyError, IndexError, TypeError, ValueError) as error:
      self._lose(Fault.GARBLED)
      raise WorkerError(Fault.GARBLED, f'{what}: the answer cannot be read: {error!r}') from None

  def _lose(self, fault: Fault | None) -> None:
    worker, self._worker, self._playing = self._worker, None, False
    self._pool.lose(worker, fault)


def check_settings(workers: int, spares: int, reset_timeout: float, step_timeout: float, start_timeout: float) -> None:
  """Raises ValueError for a setting of a pool that makes no sense."""
  if workers < 1 or spares < 0:
    raise ValueError(f'{workers} workers and {spares} spares: expected at least one worker, and no negative number')
  for name, seconds in (('reset', reset_timeout), ('step', step_timeout), ('start', start_timeout)):
    if not 0 < seconds < math.inf:
      raise ValueError(f'{name}_timeout is {seconds}: expected a number of seconds above 0')


def pickle_maker(make_env: Callable[[], Env]) -> bytes:
  """What makes an environment, for another process. Raises ValueError where that could not import it."""
  try:
    pickled = pickle.dumps(make_env)
  except Exception as error:
    raise ValueError(f'make_env ({make_env!r}) cannot be pickled for the worker processes: {error}; expected a function of a module') from error
  if b'__main__' in pickled and getattr(make_env, '__module__', '') == '__main__':
    raise ValueError(f'make_env ({make_env!r}) is defined in the script that runs; worker processes need it in a module that they can import')
  return pickled


def unpack_context(fields: dict[str, Any], pixels: bytearray) -> Context:
  """What worker.pack_context packed. Raises KeyError, IndexError, TypeError or ValueError where it is something else."""
  image = None
  if fields['image'] is not None:
    name, shape = fields['image']
    dtype = np.dtype(str(name))
    if dtype.kind not in 'buif':
      raise TypeError(f'an image of dtype {dtype}')
    image = np.frombuffer(pixels, dtype).reshape([int(size) for size in shape])
  env, task_id, split, seed = fields['task']
  history = tuple(Step(_text(observation), _text(action), float(reward)) for observation, action, reward in fields['history'])
  task = Task(_text(env), _text(task_id), _text(split), int(seed))
  return Context(task, _text(fields['goal']), _text(fields['observation']), history, image)


def unpack_step(fields: list[Any]) -> EnvStep:
  """As `unpack_context`, of a step's four fields."""
  observation, reward, done, success = fields
  return EnvStep(_text(observation), float(reward), bool(done), bool(success))


def _text(value: Any) -> str:
  if not isinstance(value, str):
    raise TypeError(f'expected text, found {type(value).__name__}')
  return value
