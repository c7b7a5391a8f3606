"""What all pools of environments have in common: so many environments are lent at a time, each of which holds a worker from its first reset on.

A worker is whatever plays one environment somewhere else: a process (handles.py), or an actor of a Ray cluster (ray_pool.py). One that fails is lost, and the
pool starts another; the episode gets a WorkerError. `Lender` is the pool's side of it, `LentEnv` the environment's; what tells the pools apart are the workers.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import pickle
import threading
from collections.abc import Callable
from typing import Any, Generic, Protocol, Self, TypeVar, runtime_checkable

import numpy as np

from mempi_jax.rollout.handles import Fault, WorkerError, printable
from mempi_jax.types import Context, Env, EnvStep, Step, Task

_logger = logging.getLogger(__name__)


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


class Held(Protocol):
  """A worker, as the environment that holds it knows it. For one thread at a time, but for `interrupt`."""

  def alive(self) -> bool:
    """Whether it can be asked, as far as is known; never waits."""

  def why_ended(self) -> Fault:
    """Once it is not alive."""

  def ask(self, request: dict[str, Any], seconds: float, what: str) -> tuple[dict[str, Any], bytearray]:
    """One request and its answer. Raises WorkerError: there is none, and the worker is no good any more."""

  def interrupt(self) -> None:
    """From any thread: whoever waits for it need not any longer."""


H = TypeVar('H', bound=Held)


class Lender(Generic[H]):
  """A pool's books. Use a pool in a `with`, or call `close`. For any number of threads.

  Args:
    workers: how many environments may be in use at a time.
    patience: workers that may fail to start one after the other before the pool gives up.
  """

  def __init__(self, workers: int, patience: int):
    self.workers, self._patience = workers, patience
    self.counters = Counters()
    self._lock = threading.RLock()
    self._waiting: list[H] = []  # free ones, and those that are still starting
    self._held: set[H] = set()  # what environments have
    self._leased = 0  # environments
    self._failed_in_a_row = 0
    self._last_failure = ''
    self._closed = False

  def make_env(self) -> LentEnv[H]:
    """An environment that takes a worker at its first reset and gives it back when it is closed.

    Raises:
      NoEnvFree: `workers` of them are in use. PoolError: the pool is closed, or no worker can be started any more.
    """
    with self._lock:
      if self._closed:
        raise PoolError('the pool is closed')
      if self._failed_in_a_row > self._patience:
        raise PoolError(f'the last {self._failed_in_a_row} workers could not be started; the last one: {self._last_failure}')
      if self._leased >= self.workers:
        raise NoEnvFree(f'all {self.workers} workers are in use: close an environment first')
      self._leased += 1
    return self._lend()

  def close(self) -> None:
    """Closes every environment and ends every worker. An episode that is under way fails."""
    raise NotImplementedError

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  # For environments.

  def choose(self) -> H:
    """A worker that is ready, or the one that has been starting for longest: `await_start` follows. Never waits. Raises WorkerError, PoolError."""
    raise NotImplementedError

  def await_start(self, worker: H) -> None:
    """Until a worker that was chosen is ready. Raises WorkerError, with the worker lost."""
    raise NotImplementedError

  def lose(self, worker: H, fault: Fault | None) -> None:
    """A worker that was taken is no good any more."""
    raise NotImplementedError

  def give_back(self, worker: H) -> None:
    """A worker that was taken is free."""
    raise NotImplementedError

  def release(self) -> None:
    """An environment was closed."""
    with self._lock:
      self._leased -= 1

  def count(self, name: str) -> None:
    """One more of resets, steps or retired."""
    with self._lock:
      setattr(self.counters, name, getattr(self.counters, name) + 1)

  # Inside.

  def _lend(self) -> LentEnv[H]:
    raise NotImplementedError

  def _start_failed(self, text: str) -> None:
    self._failed_in_a_row += 1
    self._last_failure = text
    _logger.warning('a worker could not be started: %s', text)


class LentEnv(Generic[H]):
  """An environment in a worker of a pool. For one thread at a time, but for `abort`. Implements `RemoteEnv`."""

  def __init__(self, pool: Lender[H], reset_seconds: float, step_seconds: float):
    self._pool, self._reset_seconds, self._step_seconds = pool, reset_seconds, step_seconds
    self._worker: H | None = None
    self._playing = False
    self._closed = False
    self._aborted = False

  def reset(self, task: Task) -> Context:
    """Raises WorkerError; PoolError when the pool or this environment is closed."""
    if self._closed:
      raise PoolError('this environment is closed')
    self._playing = False
    if self._worker is not None:
      self._look_at(self._worker)
    if self._worker is None:
      self._worker = self._pool.choose()
      if self._aborted:
        self._worker.interrupt()
      try:
        self._pool.await_start(self._worker)
      except BaseException:
        self._worker = None
        raise
    self._pool.count('resets')
    message, pixels = self._ask({'reset': [task.env, task.task_id, task.split, task.seed]}, self._reset_seconds, f'reset({task.task_id!r})')
    context = self._read(lambda: unpack_context(message['context'], pixels), 'reset')
    self._playing = True
    return context

  def step(self, action: str) -> EnvStep:
    """Raises WorkerError; RuntimeError before `reset`, and after a fault."""
    if not self._playing or self._worker is None:
      raise RuntimeError('call reset(task) before step(action)')
    self._pool.count('steps')
    message, _ = self._ask({'step': action}, self._step_seconds, 'step')
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
      worker.interrupt()

  def _look_at(self, worker: H) -> None:
    """Before another episode: loses a worker that is no good for it."""
    if not worker.alive():  # nobody was playing
      self._lose(worker.why_ended())

  def _ask(self, request: dict[str, Any], seconds: float, what: str) -> tuple[dict[str, Any], bytearray]:
    try:
      message, pixels = self._worker.ask(request, seconds, what)
    except WorkerError as error:
      if self._aborted:
        error.fault = Fault.ABORTED
      self._lose(error.fault)
      raise
    except BaseException:  # an interrupt: the answer that will come belongs to nobody
      self._lose(None)
      raise
    self._check(message, what)
    return message, pixels

  def _check(self, message: dict[str, Any], what: str) -> None:
    """Raises WorkerError where the answer is that the environment failed."""
    raise NotImplementedError

  def _read(self, read: Callable[[], Any], what: str) -> Any:
    try:
      return read()
    except (KeyError, IndexError, TypeError, ValueError) as error:
      self._lose(Fault.GARBLED)
      raise WorkerError(Fault.GARBLED, f'{what}: the answer cannot be read: {error!r}') from None

  def _lose(self, fault: Fault | None) -> None:
    worker, self._worker, self._playing = self._worker, None, False
    self._pool.lose(worker, fault)


def failed(fault: Fault, text: str, trace: str) -> WorkerError:
  """The error for what a worker says of its environment, whose words are not to be trusted."""
  error = WorkerError(fault, printable(text))
  error.add_note(printable(trace))
  return error


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
