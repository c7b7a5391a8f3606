"""The pool of pool.py on a Ray cluster: worker processes for environments on as many machines as there are.

    with RayPool(suite.make_env, 64, address='head:6379', step_timeout=30.0, memory_limit=2 << 30) as pool:
      runner = Runner(pool.make_env, agent, suite.max_steps, batch_size, workers=pool.workers, retries=2)

    driver ── Ray ─┬─ actor ── a Pool of one worker: keeper ── guard ── worker ── whatever the environment starts
                   └─ actor ── ...                                              (on any node)

An actor holds a `Pool` of one worker on its node. So deadlines, memory limits and the end of all that an environment has started are that pool's,
and a worker that hangs, dies, leaks or raises is replaced beside its actor, in milliseconds. Ray brings what is left: which node an actor lives on,
and the way there. An actor that is lost, with its node or alone, is a WorkerError for the episode under way, and another one is started wherever
there is room. Nothing outlives an actor's process for longer than `close_timeout` and a few seconds, and no actor outlives the driver. (Where a driver
was killed that had started a cluster of its own, two of Ray's own processes take a minute to see it.)

What an environment says crosses as in pool.py, as bytes of JSON and of pixels: Ray hands bytes on as they are, and nothing is unpickled.

An actor counts as one CPU of Ray's books; `ray start --num-cpus=N` says how many a node has, whatever the hardware. A machine that should hold the
model and no environments joins with 0. Every node needs Linux, this package at the same state, and what the environment needs: packages, programs, data,
variables. Workers have the environment variables of their node's `ray start`. A cluster that wants a token gets it where RAY_AUTH_MODE=token is set.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import logging
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mempi_jax.rollout import worker as process
from mempi_jax.rollout.handles import REPORT_SECONDS, Fault, WorkerError, printable
from mempi_jax.rollout.lending import Counters, Lender, LentEnv, PoolError, check_settings, failed, pickle_maker
from mempi_jax.rollout.pool import Pool
from mempi_jax.types import Env, Task

_logger = logging.getLogger(__name__)

INSTALL = "pip install 'mempi_jax[ray]'"
GRACE = 15.0  # seconds beyond a worker's own deadline for its report and the way back
_CONNECT_SECONDS = 10.0  # for the first packet to a cluster
_ENVELOPE_BYTES = 1 << 16  # what an actor adds to a worker's message
_OBJECT_STORE_BYTES = 200 << 20  # of a cluster that is started here: for screenshots on their way
_CONCURRENCY = 4  # calls of an actor at a time: its watch, its start, a request, and its end


# In an actor.


class EnvActor:
  """A pool of one worker, and its environment. All answers are messages of worker.py: what is not one is a fault of the actor itself."""

  def __init__(self, make_env: bytes, path: Sequence[str], message_bytes: int, settings: Mapping[str, Any]):
    sys.path[:] = _search_path(path)
    self._make_env, self._message_bytes, self._settings = make_env, message_bytes, settings
    self._over = threading.Event()
    self._pool: Pool | None = None
    self._reported = Counters()  # what the driver knows already

  def start(self) -> bytes:
    """Makes the environment."""
    try:
      self._pool = Pool(_Pickled(self._make_env), 1, spares=0, message_bytes=self._message_bytes, **self._settings)
    except PoolError as error:
      return self._pack({'fault': Fault.START, 'error': str(error), 'trace': _notes(error.__cause__)}, b'')
    self._env = self._pool.make_env()
    if self._over.is_set():
      self._pool.close()
    return self._pack({'node': _node(), 'code': code_hash()}, b'')

  def answer(self, request: bytes) -> bytes:
    """A reset or a step: requests and answers of worker.py."""
    message, _ = _open_frame(request, self._message_bytes)
    try:
      if 'reset' in message:
        return self._pack(*process.pack_context(self._env.reset(Task(*message['reset']))))
      step = self._env.step(message['step'])
      return self._pack({'step': [step.observation, step.reward, step.done, step.success]}, b'')
    except WorkerError as error:
      return self._pack({'fault': error.fault, 'error': str(error), 'trace': _notes(error)}, b'')

  def watch(self) -> None:
    """Returns at the end; the driver hears at once when there is no actor any more to return."""
    self._over.wait()

  def close(self) -> None:
    """Closes the environment and ends every process."""
    self._over.set()
    if self._pool is not None:
      self._pool.close()

  def _pack(self, message: dict[str, Any], pixels: bytes) -> bytes:
    """With what the pool has counted since the last message."""
    if self._pool is not None:
      counters = dataclasses.replace(self._pool.counters)
      counts = {name: count - getattr(self._reported, name) for name, count in dataclasses.asdict(counters).items()}
      message['counts'] = {name: count for name, count in counts.items() if count and name not in ('resets', 'steps')}
      self._reported = counters
    return process.encode(message, pixels, limit=self._message_bytes + _ENVELOPE_BYTES)


class _Pickled:
  """What was pickled by `pickle_maker`, to be pickled once more: no one but the worker loads it."""

  def __init__(self, data: bytes):
    self._data = data

  def __reduce__(self) -> tuple[Callable, tuple[bytes]]:
    return pickle.loads, (self._data,)


def _search_path(path: Sequence[str]) -> list[str]:
  """Where a worker looks for modules: where the driver does, then where its node does; what Ray has put there comes last."""
  import ray

  folder = os.path.dirname(ray.__file__) + os.sep
  return sorted([*path, *(entry for entry in sys.path if entry not in path)], key=lambda entry: entry.startswith(folder))


def _node() -> str:
  """The address of the node."""
  import ray

  return ray.util.get_node_ip_address()


def code_hash() -> str:
  """A hash of the modules of this package that play an episode: nodes that differ in it would play different ones."""
  package = Path(__file__).parents[1]
  digest = hashlib.sha256()
  for path in sorted([package / 'types.py', *package.glob('envs/**/*.py'), *package.glob('rollout/*.py')]):
    digest.update(f'{path.relative_to(package)}\n'.encode() + path.read_bytes())
  return digest.hexdigest()[:16]


def _notes(error: BaseException | None) -> str:
  return '\n'.join(getattr(error, '__notes__', ()))


def _open_frame(frame: bytes, limit: int) -> tuple[dict[str, Any], bytearray]:
  """The JSON and the pixels of a whole message. Raises ValueError."""
  head = process.HEADER.size
  if len(frame) < head:
    raise ValueError(f'found {len(frame)} bytes, expected a message')
  text, pixels = process.message_size(frame[:head], limit)
  if len(frame) != head + text + pixels:
    raise ValueError(f'a message of {head + text + pixels:,} bytes was announced, {len(frame):,} came')
  return process.decode(frame[head : head + text]), bytearray(frame[head + text :])


# In the driver.


class Actor:
  """An actor, seen from the driver. For one thread at a time, but for `stop`."""

  def __init__(self, handle: Any, message_bytes: int):
    self.handle, self.begun, self.node = handle, time.monotonic(), 'a node that is not known yet'
    self._message_bytes = message_bytes
    self._stopped: concurrent.futures.Future = concurrent.futures.Future()
    self._start = handle.start.remote().future()
    self._watch = handle.watch.remote().future()
    self._ready = False

  @property
  def started(self) -> bool:
    """Whether its start has ended, well or not; never waits."""
    return self._start.done()

  def alive(self) -> bool:
    """Whether there is an actor, as far as Ray knows; never waits."""
    return not self._watch.done()

  def why_ended(self) -> Fault:
    """Nothing ends an actor that is not asked to."""
    return Fault.DIED

  def wait_ready(self, deadline: float) -> dict[str, Any]:
    """Until its environment is made; what it says of itself, the first time. Raises WorkerError."""
    if self._ready:
      return {}
    message, _ = self._wait(self._start, deadline - time.monotonic(), 'starting')
    if 'fault' not in message:
      self.node, self._ready = str(message['node']), True
    return message

  def ask(self, request: dict[str, Any], seconds: float, what: str) -> tuple[dict[str, Any], bytearray]:
    """One request and its answer. Raises WorkerError: there is none, and the actor is no good any more."""
    from ray.exceptions import RayError

    try:
      future = self.handle.answer.remote(process.encode(request, limit=self._message_bytes)).future()
    except ValueError as error:
      raise WorkerError(Fault.GARBLED, f'{what}: {error}') from None
    except RayError as error:
      raise self._died(error, what) from None
    return self._wait(future, seconds + GRACE, what)

  def interrupt(self) -> None:
    """From any thread: whoever waits for it need not any longer."""
    with contextlib.suppress(concurrent.futures.InvalidStateError):
      self._stopped.set_result(None)

  def close(self) -> concurrent.futures.Future:
    """Asks it to close its environment and to end every process; the future is done when it has, or is lost."""
    return self.handle.close.remote().future()

  def kill(self) -> None:
    """Ends its process at once; what it has started follows by itself."""
    import ray

    self.interrupt()
    with contextlib.suppress(Exception):  # it is gone already, or Ray is
      ray.kill(self.handle)

  def _wait(self, future: concurrent.futures.Future, seconds: float, what: str) -> tuple[dict[str, Any], bytearray]:
    from ray.exceptions import RayError

    concurrent.futures.wait([future, self._stopped], timeout=max(0.0, seconds), return_when=concurrent.futures.FIRST_COMPLETED)
    if not future.done():
      if self._stopped.done():
        raise WorkerError(Fault.ABORTED, f'{what}: the worker was ended')
      raise WorkerError(Fault.HUNG, f'{what}: nothing came from {self.node} within {seconds:.0f} s; the actor was killed')
    try:
      return _open_frame(future.result(), self._message_bytes + _ENVELOPE_BYTES)
    except RayError as error:
      raise self._died(error, what) from None
    except ValueError as error:
      raise WorkerError(Fault.GARBLED, f'{what}: {error}; the actor was killed') from None

  def _died(self, error: Exception, what: str) -> WorkerError:
    said = printable(str(error)).strip()
    died = WorkerError(Fault.DIED, f'{what}: the actor on {self.node} was lost: {said.splitlines()[-1] if said else type(error).__name__}')
    died.add_note(said)
    return died


class RayPool(Lender[Actor]):
  """Environments in actors of a Ray cluster. Use it in a `with`, or call `close`. For any number of threads.

  A process has one connection to Ray: where it is there already it is used, and outlives the pool.

  Args:
    make_env: makes one environment; it is pickled (a function or a bound method of a module that can be imported on every node).
    workers: how many environments may be in use at a time, and so how many actors there are.
    address: HOST:PORT of the cluster, which this machine has joined (`ray start --address=HOST:PORT`). '': $RAY_ADDRESS, else the cluster that this
      machine belongs to, else one of its own that is started here and ends with the pool; 'local': always that.
    reset_timeout, step_timeout: seconds for one reset, and for one step, counted on the node; the way there and back may take GRACE more.
    start_timeout: seconds in which an actor must have found room and made its environment.
    close_timeout: seconds an environment has to close; also when its actor or the driver is gone.
    memory_limit, memory_interval, data_limit, message_bytes, environment: of each worker, see `Pool`.

  Raises:
    ValueError: a setting that makes no sense, or a `make_env` that cannot be pickled.
    PoolError: no ray; no cluster there; too little room; a node with other code; or the environment cannot be made.
  """

  def __init__(
    self,
    make_env: Callable[[], Env],
    workers: int,
    *,
    address: str = '',
    reset_timeout: float = 120.0,
    step_timeout: float = 60.0,
    start_timeout: float = 300.0,
    close_timeout: float = 5.0,
    memory_limit: int | None = None,
    memory_interval: float = 0.5,
    data_limit: int | None = None,
    message_bytes: int = 64 << 20,
    environment: Mapping[str, str] | None = None,
  ):
    check_settings(workers, 0, reset_timeout, step_timeout, start_timeout)
    pickled, path = pickle_maker(make_env), list(sys.path)
    ray = _import_ray()
    super().__init__(workers, patience=2 * workers)
    self.reset_timeout, self.step_timeout, self.start_timeout, self.close_timeout = reset_timeout, step_timeout, start_timeout, close_timeout
    self.message_bytes = message_bytes
    settings = {
      'reset_timeout': reset_timeout,
      'step_timeout': step_timeout,
      'start_timeout': start_timeout,
      'close_timeout': close_timeout,
      'memory_limit': memory_limit,
      'memory_interval': memory_interval,
      'data_limit': data_limit,
      'environment': dict(environment or {}),
    }
    self._code = code_hash()
    self._connected = connect(address, workers)
    try:
      make = ray.remote(EnvActor).options(num_cpus=1, max_concurrency=_CONCURRENCY, scheduling_strategy='SPREAD')
      self._make = lambda: make.remote(pickled, path, message_bytes, settings)
      room = ray.cluster_resources().get('CPU', 0.0)
      if room < workers:
        _logger.warning('%s; waiting for more, up to %g s', self._room(), start_timeout)
      with self._lock:
        self._fill()
        first = list(self._waiting)
      for actor in first:
        self._begin(actor)
    except WorkerError as error:
      self.close()
      raise PoolError(str(error)) from error
    except BaseException:
      self.close()
      raise

  def close(self) -> None:
    """Closes every environment and ends every process; then the connection to Ray, if the pool has made it. An episode that is under way fails."""
    import ray

    with self._lock:
      if self._closed:
        return
      self._closed = True
      actors = [*self._waiting, *self._held]
      self._waiting = []
    ending = [actor.close() for actor in actors if actor.started and actor.alive()]
    concurrent.futures.wait(ending, timeout=self.close_timeout + REPORT_SECONDS + GRACE)
    for actor in actors:
      actor.kill()
    if self._connected:
      ray.shutdown(wait_for_processes=True)

  # For environments.

  def choose(self) -> Actor:
    """An actor that has started, or the one that has been starting for longest: `await_start` follows. Never waits. Raises PoolError."""
    with self._lock:
      if self._closed:
        raise PoolError('the pool is closed')
      for actor in [actor for actor in self._waiting if not actor.alive()]:
        self._waiting.remove(actor)
        self.lose(actor, Fault.DIED)
        _logger.warning('an actor that was waiting on %s was lost', actor.node)
      self._fill()
      actor = next((actor for actor in self._waiting if actor.started), self._waiting[0])
      self._waiting.remove(actor)
      self._held.add(actor)
    return actor

  def await_start(self, actor: Actor) -> None:
    """Until an actor that was chosen is ready. Raises WorkerError, with the actor lost."""
    try:
      self._begin(actor)
    except BaseException:
      self.lose(actor, None)
      raise

  def lose(self, actor: Actor, fault: Fault | None) -> None:
    """An actor that was taken is no good any more."""
    with self._lock:
      self._held.discard(actor)
      self.counters.count_fault(fault)
      if not self._closed:
        actor.kill()
        self._fill()

  def give_back(self, actor: Actor) -> None:
    """An actor that was taken is free."""
    with self._lock:
      self._held.discard(actor)
      if not self._closed:
        self._waiting.insert(0, actor)

  def take_in(self, message: Mapping[str, Any]) -> None:
    """What happened in an actor's own pool, as its answer says."""
    with self._lock:
      for name, count in message.get('counts', {}).items():
        setattr(self.counters, name, getattr(self.counters, name) + int(count))
      if message.get('fault') == Fault.START:
        self._start_failed(str(message['error']))
      else:
        self._failed_in_a_row = 0

  # Inside.

  def _lend(self) -> RayEnv:
    # After a fault the actor makes another environment first.
    return RayEnv(self, self.start_timeout + self.reset_timeout, self.step_timeout)

  def _begin(self, actor: Actor) -> None:
    """Waits for an actor's start. Raises WorkerError."""
    try:
      message = actor.wait_ready(actor.begun + self.start_timeout + GRACE)
      if 'fault' in message:
        raise failed(Fault.START, str(message['error']), str(message['trace']))
      if message and message['code'] != self._code:
        raise WorkerError(Fault.START, f'the node {actor.node} has mempi_jax in another state than this machine: expected the same on every node')
    except WorkerError as error:
      if error.fault is Fault.HUNG:
        error = WorkerError(Fault.START, f'a worker could not be started within {self.start_timeout:g} s: {self._room()}')
      if error.fault is not Fault.ABORTED:
        with self._lock:
          self.counters.failed_starts += 1
          self._start_failed(str(error))
      raise error from None
    self.take_in(message)

  def _fill(self) -> None:
    """Asks for actors until there are as many as there should be."""
    while not self._closed and len(self._waiting) + len(self._held) < self.workers:
      self._waiting.append(Actor(self._make(), self.message_bytes))

  def _room(self) -> str:
    """What the cluster has, beside what is asked of it."""
    import ray

    nodes = sum(node['Alive'] for node in ray.nodes())
    total, free = ray.cluster_resources().get('CPU', 0.0), ray.available_resources().get('CPU', 0.0)
    started = sum(actor.started for actor in [*self._waiting, *self._held])
    hint = '' if total >= self.workers else '; `ray start --num-cpus=N` says how many a node has'
    return (
      f'{started} of {self.workers} workers have started; each needs one CPU of the Ray cluster, which has {total:g} (nodes: {nodes}), '
      f'{free:g} of them free{hint}'
    )


class RayEnv(LentEnv[Actor]):
  """An environment in an actor."""

  _pool: RayPool

  def _check(self, message: dict[str, Any], what: str) -> None:
    self._pool.take_in(message)
    if 'fault' in message:  # the worker's; its actor has another one
      self._playing = False
      raise failed(Fault(message['fault']), f'{message["error"]} (on {self._worker.node})', str(message['trace']))


# The cluster.


def _import_ray() -> Any:
  """Raises PoolError where it is not installed."""
  try:
    with _own_sigterm():
      import ray
  except ImportError as error:
    raise PoolError(f'the package ray cannot be imported ({error}): {INSTALL}') from error
  return ray


def connect(address: str, workers: int) -> bool:
  """Connects this process to a cluster, see `RayPool`; False: it was connected already. Raises ValueError, PoolError."""
  import ray

  if address.startswith('ray://'):
    raise ValueError(f'{address} is the address of a Ray client server: expected HOST:PORT of the cluster itself, which this machine has joined')
  if ray.is_initialized():
    return False
  address = address or os.environ.get('RAY_ADDRESS', '')
  quiet = {'log_to_driver': False, 'logging_level': logging.ERROR}
  with _own_sigterm():
    if address in ('', 'local'):
      try:
        ray.init(
          address or None, num_cpus=workers, num_gpus=0, include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, **quiet
        )  # fmt: skip
        return True
      except ValueError as error:
        if 'existing cluster' not in str(error):  # whose resources are not ours to set: nothing was started
          raise
      except Exception as error:
        ray.shutdown()
        raise PoolError(f'a Ray cluster cannot be started on this machine: {_chain(error)}') from error
    try:
      _check_reachable(address)
      with _one_attempt():
        ray.init(address or None, **quiet)
    except Exception as error:
      ray.shutdown()
      where = f'at {address}' if address else 'that this machine belongs to'
      raise PoolError(
        f'the Ray cluster {where} cannot be reached: {_chain(error)}; expected HOST:PORT of a running cluster that this machine has joined '
        "(`ray start --address=HOST:PORT`), or 'local' for one of this process's own"
      ) from error
  return True


def _chain(error: BaseException) -> str:
  """The last lines of an exception and of what caused it."""
  texts = []
  while error is not None:
    lines = str(error).strip().splitlines()
    texts.append(lines[-1] if lines else type(error).__name__)
    error = error.__cause__
  return ': '.join(dict.fromkeys(texts))


def _check_reachable(address: str) -> None:
  """Raises OSError where nothing listens: Ray itself would try for a quarter of an hour."""
  host, _, port = address.rpartition(':')
  if host and port.isdigit():
    socket.create_connection((host.strip('[]'), int(port)), timeout=_CONNECT_SECONDS).close()


@contextlib.contextmanager
def _one_attempt() -> Iterator[None]:
  """Lets Ray try once to connect, which takes up to 45 s, instead of twenty times."""
  name = 'RAY_gcs_server_port_wait_time_s'
  if name in os.environ:
    yield
    return
  os.environ[name] = '1'
  try:
    yield
  finally:
    del os.environ[name]


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
  """Ray puts a handler of its own for SIGTERM; what a run does at its end is not Ray's to say."""
  main = threading.current_thread() is threading.main_thread()
  before = signal.getsignal(signal.SIGTERM) if main else None
  try:
    yield
  finally:
    if before is not None:
      signal.signal(signal.SIGTERM, before)
