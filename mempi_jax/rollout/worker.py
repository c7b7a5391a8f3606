"""What runs in the processes of a pool (pool.py): a keeper, and for each worker a guard beside it.

    the caller's process ── keeper ─┬─ guard ── worker ── whatever the environment starts, such as a browser
                                    └─ guard ── worker ── ...

The keeper is a fresh interpreter: nothing of the caller's threads or of jax is in it. It imports what the environment needs, once, and forks from
then on, so that a new worker takes milliseconds. The guard, which imports nothing more, is why nothing is left behind: orphans of its worker
become its own children, whatever sessions they made, and it ends once the last of them is gone. It also takes in all that is printed and keeps
the end of it, and looks at the memory of all of them together. It acts when the worker ends, when the pool says so, and when the pool's process is gone,
which it learns from the kernel. The worker's temporary files are in a folder that goes with it. The worker makes one environment and answers one request after the other.

Answers are JSON, and pixels beside it, never pickles: what an environment says is data for the process that holds the model.

This file runs as a script, before there is a `sys.path` to speak of: the standard library alone is imported at its top.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import json
import math
import os
import pickle
import resource
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

HEADER = struct.Struct('>4sII')  # MAGIC, bytes of JSON, bytes of pixels
MAGIC = b'MPI1'
# What the pool tells a guard.
KILL, FINISH = b'K', b'F'

_ERROR_CHARACTERS = 2000  # of an exception's text
_TRACE_CHARACTERS = 6000
_PIPE_BYTES = 1 << 20
_LAST_RESORT = 10.0  # seconds until processes that do not die are given up

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36
_F_SETPIPE_SZ = 1031


# Messages.


def encode(message: dict[str, Any], pixels: bytes = b'', *, limit: int) -> bytes:
  """One message. Raises ValueError when it is larger than `limit` bytes."""
  text = json.dumps(message, ensure_ascii=False).encode('utf-8', 'surrogatepass')
  if len(text) + len(pixels) > limit:
    raise ValueError(f'the message has {len(text) + len(pixels):,} bytes, at most {limit:,} are allowed')
  return HEADER.pack(MAGIC, len(text), len(pixels)) + text + pixels


def message_size(head: bytes, limit: int) -> tuple[int, int]:
  """Bytes of JSON and of pixels that follow a header. Raises ValueError: no header, or more than `limit`."""
  magic, text, pixels = HEADER.unpack(head)
  if magic != MAGIC:
    raise ValueError(f'found {bytes(head[:4])!r} where a message should begin')
  if text + pixels > limit:
    raise ValueError(f'a message of {text + pixels:,} bytes was announced, at most {limit:,} are allowed')
  return text, pixels


def decode(text: bytes) -> dict[str, Any]:
  """The JSON of a message. Raises ValueError."""
  message = json.loads(text.decode('utf-8', 'surrogatepass'))
  if not isinstance(message, dict):
    raise ValueError(f'expected a JSON object, found {type(message).__name__}')
  return message


# Processes.


def prctl(option: int, value: int | bytes) -> None:
  """Linux's prctl with one argument. Raises OSError."""
  libc = ctypes.CDLL(None, use_errno=True)
  zero = ctypes.c_ulong(0)
  if libc.prctl(option, value if isinstance(value, bytes) else ctypes.c_ulong(value), zero, zero, zero) != 0:
    raise OSError(ctypes.get_errno(), f'prctl({option}) failed')


def descendants(pid: int) -> list[int]:
  """The processes that a process has started, and those that they have, as of now."""
  found, queue = [], [pid]
  children = None if os.path.exists(f'/proc/self/task/{os.getpid()}/children') else _children_by_parent()
  while queue:
    parent = queue.pop()
    for child in _children(parent) if children is None else children.get(parent, ()):
      found.append(child)
      queue.append(child)
  return found


def _children(pid: int) -> Iterator[int]:
  try:
    threads = os.listdir(f'/proc/{pid}/task')
  except OSError:
    return
  for thread in threads:
    try:
      with open(f'/proc/{pid}/task/{thread}/children', 'rb') as file:
        yield from map(int, file.read().split())
    except OSError:
      continue


def _children_by_parent() -> dict[int, list[int]]:
  """Of all processes of the machine, for kernels that do not list children."""
  children: dict[int, list[int]] = {}
  for name in os.listdir('/proc'):
    if name.isdigit():
      try:
        with open(f'/proc/{name}/stat', 'rb') as file:
          parent = int(file.read().rpartition(b')')[2].split()[1])
      except OSError:
        continue
      children.setdefault(parent, []).append(int(name))
  return children


def memory_of(pids: list[int], limit: float) -> int:
  """Bytes of memory that processes take together: those that they share count once where it matters.

  The sum of their resident sizes, which counts shared pages again and again, is exact enough while it is below `limit`, and cheap; above it,
  each process's proportional share is asked for.
  """
  resident = [_resident(pid) for pid in pids]
  if sum(resident) <= limit:
    return sum(resident)
  return sum(_proportional(pid, size) for pid, size in zip(pids, resident, strict=True))


def _resident(pid: int) -> int:
  try:
    with open(f'/proc/{pid}/statm', 'rb') as file:
      return int(file.read().split()[1]) * resource.getpagesize()
  except (OSError, IndexError):
    return 0


def _proportional(pid: int, otherwise: int) -> int:
  try:
    with open(f'/proc/{pid}/smaps_rollup', 'rb') as file:
      for line in file:
        if line.startswith(b'Pss:'):
          return int(line.split()[1]) << 10
  except OSError:
    pass
  return otherwise


def watch_process(pid: int) -> int | None:
  """A descriptor that can be read from once the process is gone, None where the kernel has no such thing. Raises ProcessLookupError."""
  try:
    return os.pidfd_open(pid)
  except ProcessLookupError:
    raise
  except (OSError, AttributeError):
    return None


def _watch_children() -> int:
  """A descriptor that can be read from after a child's end."""
  reading, writing = os.pipe()
  os.set_blocking(reading, False)
  os.set_blocking(writing, False)
  signal.signal(signal.SIGCHLD, lambda *_: None)
  signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
  return reading


def _forget_children() -> None:
  """A forked process starts with the signals of any other."""
  signal.set_wakeup_fd(-1)
  signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _reap() -> Iterator[tuple[int, int]]:
  """Children that ended: their ids and wait statuses. Ends with ChildProcessError once there is none left."""
  while True:
    pid, status = os.waitpid(-1, os.WNOHANG)
    if not pid:
      return
    yield pid, status


def _read_all(descriptor: int) -> None:
  try:
    while os.read(descriptor, 4096):
      pass
  except BlockingIOError:
    pass


# The keeper.


def keep(commands: socket.socket, settings_file: int, settings: dict[str, Any], preload: bool) -> None:
  """Forks a guard, and that a worker, for each pair of sockets (data, control) that comes over `commands`, until that is closed."""
  prctl(_PR_SET_NAME, b'pool-keeper')
  prctl(_PR_SET_CHILD_SUBREAPER, 1)  # of guards that were killed
  owner = watch_process(settings['owner'])
  make = lambda: load_maker(settings)
  if preload:
    try:
      found = make()
      make = lambda: found
    except BaseException:  # noqa: BLE001  every worker will meet it again, and say so
      pass
    if len(os.listdir('/proc/self/task')) > 1:
      # A fork copies no threads, but the locks that they hold. So begin again, and let every worker import for itself.
      os.execv(sys.executable, [sys.executable, *settings['flags'], __file__, str(commands.fileno()), str(settings_file), 'bare'])
  for descriptor in (commands.fileno(), settings_file):
    os.set_inheritable(descriptor, False)
  os.close(settings_file)
  null = os.open(os.devnull, os.O_RDWR)
  for stream in (sys.stdout, sys.stderr):
    stream.flush()
  os.dup2(null, 1)
  os.dup2(null, 2)
  os.close(null)
  gc.collect()
  gc.freeze()  # so that collecting garbage does not copy what is shared with forks
  folder = tempfile.mkdtemp(prefix='mempi-pool-')  # the temporary files of all workers, each in a folder of its guard's number
  ended = _watch_children()
  guards: set[int] = set()
  poll = select.poll()
  for descriptor in (commands.fileno(), ended, *([owner] if owner is not None else [])):
    poll.register(descriptor, select.POLLIN)
  while True:
    ready = {descriptor for descriptor, _ in poll.poll()}
    if ended in ready:
      _read_all(ended)
    _end_orphans(guards, folder)
    if owner in ready:
      break
    if commands.fileno() in ready:
      word, descriptors, _, _ = socket.recv_fds(commands, 1, 2, socket.MSG_CMSG_CLOEXEC)
      if not word:
        break
      data, control = descriptors
      guard_pid = os.fork()
      if not guard_pid:
        _forget_children()
        for descriptor in (commands.fileno(), ended):
          os.close(descriptor)
        guard(socket.socket(fileno=data), socket.socket(fileno=control), owner, folder, settings, make)
      guards.add(guard_pid)
      os.close(data)
      os.close(control)
  # The guards learn of it as well. What they leave is empty.
  commands.close()
  deadline = time.monotonic() + settings['close_seconds'] + _LAST_RESORT
  while guards and time.monotonic() < deadline:
    time.sleep(0.01)
    _end_orphans(guards, folder)
  _remove_empty(folder)


def _end_orphans(guards: set[int], folder: str) -> None:
  """Forgets the guards that ended. A guard that was killed has left its worker's processes to the keeper: they are the children that are no guards."""
  killed = []

  def reap() -> bool:
    """Whether there are children left."""
    try:
      for pid, status in _reap():
        if pid in guards and os.WIFSIGNALED(status):
          killed.append(pid)
        guards.discard(pid)
    except ChildProcessError:
      return False
    return True

  reap()
  deadline = time.monotonic() + _LAST_RESORT
  while killed and time.monotonic() < deadline:
    ours = set(descendants(os.getpid())) - guards - {pid for other in guards for pid in descendants(other)}
    if not ours:
      break
    for pid in ours:
      _kill(pid)
    time.sleep(0.005)
    if not reap():
      break
  for pid in killed:
    _remove(os.path.join(folder, str(pid)))


def _kill(pid: int) -> None:
  try:
    os.kill(pid, signal.SIGKILL)
  except (ProcessLookupError, PermissionError):
    pass


def load_maker(settings: dict[str, Any]) -> Callable[[], Any]:
  """Imports what the environment needs; gives what makes it."""
  import mempi_jax.types  # noqa: F401  here, so that it is shared

  return pickle.loads(settings['make_env'])


# The guard.


class _Tail:
  """What is printed: how much, and the end of it."""

  def __init__(self, keep_bytes: int):
    self.total, self._keep, self._end = 0, keep_bytes, b''

  def take(self, descriptor: int) -> bool:
    """Takes in what there is; False: there will be no more."""
    for _ in range(16):  # and no more, for one that never stops printing
      try:
        data = os.read(descriptor, _PIPE_BYTES)
      except BlockingIOError:
        return True
      if not data:
        return False
      self.total += len(data)
      self._end = (self._end + data[-self._keep :])[-self._keep :]
    return True

  def text(self) -> str:
    return self._end.decode('utf-8', 'replace')


def guard(
  data: socket.socket, control: socket.socket, owner: int | None, folder: str, settings: dict[str, Any], make: Callable[[], Callable]
) -> NoReturn:
  """Starts the worker and sees to its end; reports it as a line of JSON on `control`."""
  code = 1
  try:
    os.setsid()
    prctl(_PR_SET_NAME, b'pool-guard')
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _tell(control, {'guard': os.getpid()})
    _guard(data, control, owner, folder, settings, make)
    code = 0
  finally:
    os._exit(code)


def _guard(
  data: socket.socket, control: socket.socket, owner: int | None, folder: str, settings: dict[str, Any], make: Callable[[], Callable]
) -> None:
  output, writing = os.pipe()
  try:
    fcntl.fcntl(writing, _F_SETPIPE_SZ, _PIPE_BYTES)
  except OSError:
    pass  # a smaller one will do
  ended = _watch_children()
  me = os.getpid()
  keeper, mine = os.getppid(), os.path.join(folder, str(me))
  os.mkdir(mine, 0o700)
  worker = os.fork()
  if not worker:
    try:
      _forget_children()
      for descriptor in (output, ended, control.fileno(), *([owner] if owner is not None else [])):
        os.close(descriptor)
      work(data, writing, me, mine, settings, make)
    except BaseException:  # noqa: BLE001  these are last words, and the process is a copy
      traceback.print_exc()
    finally:
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(1)
  os.close(writing)
  os.set_blocking(output, False)
  tail = _Tail(settings['tail_bytes'])
  poll = select.poll()
  for descriptor in (output, ended, control.fileno(), *([owner] if owner is not None else [])):
    poll.register(descriptor, select.POLLIN)

  limit, interval = settings['memory_bytes'], settings['memory_interval']
  look = time.monotonic()  # when memory is looked at next
  stop = math.inf  # when the worker is killed
  status: int | None = None
  reason, used, warned = 'ended', 0, False
  while status is None:
    now = time.monotonic()
    if now >= stop:
      reason = 'killed'
      break
    if limit is not None and now >= look:
      used = memory_of(descendants(me), settings['memory_warning'])
      if used > limit:
        reason = 'memory'
        break
      if used > settings['memory_warning'] and not warned:
        warned = True
        _tell(control, {'high': used})
      look = time.monotonic() + interval
    wait = min(stop, look if limit is not None else math.inf) - time.monotonic()
    for descriptor, _ in poll.poll(None if wait == math.inf else max(0, math.ceil(wait * 1000))):
      if descriptor == output:
        if not tail.take(output):
          poll.unregister(output)
      elif descriptor == ended:
        _read_all(ended)
      elif descriptor == owner:
        poll.unregister(owner)
        stop = min(stop, _no_more_requests(data, settings['close_seconds']))
      else:
        word = _hear(control)
        if not word:
          poll.unregister(control)
        stop = min(stop, time.monotonic() if KILL in word else _no_more_requests(data, settings['close_seconds']))
    try:
      for pid, how in _reap():
        if pid == worker:
          status = how
    except ChildProcessError:
      pass
  status, left = _end_all(worker, status, lambda: tail.take(output))
  tail.take(output)
  _remove(mine)
  if os.getppid() != keeper:  # it was killed
    _remove_empty(folder)
  code = None if status is None else os.waitstatus_to_exitcode(status)
  _tell(control, {'ended': reason, 'code': code, 'used': used, 'printed': tail.total, 'tail': tail.text(), 'left': left})


def _remove(folder: str) -> None:
  """Removes the worker's temporary files, unless something is mounted among them that may be somebody else's."""
  try:
    with open('/proc/self/mountinfo', encoding='utf-8', errors='replace') as file:
      if any(line.split()[4].startswith(folder) for line in file):
        return
  except OSError:
    return
  shutil.rmtree(folder, ignore_errors=True)


def _remove_empty(folder: str) -> None:
  """Removes the folder of the workers' folders, if it is empty."""
  try:
    os.rmdir(folder)
  except OSError:
    pass


def _no_more_requests(data: socket.socket, seconds: float) -> float:
  """Lets the worker know; the time by which it must have closed its environment."""
  try:
    data.shutdown(socket.SHUT_RDWR)  # whoever else has this end, or the other one
  except OSError:
    pass
  return time.monotonic() + seconds


def _end_all(worker: int, status: int | None, drain: Callable[[], object]) -> tuple[int | None, list[int]]:
  """Kills every process below this one until there is none; the worker's wait status, and what could not be killed."""
  deadline = time.monotonic() + _LAST_RESORT
  pause = 0.0005
  while True:
    for pid in descendants(os.getpid()):
      _kill(pid)
    try:
      for pid, how in _reap():
        if pid == worker:
          status = how
    except ChildProcessError:
      return status, []
    if time.monotonic() > deadline:
      return status, descendants(os.getpid())
    drain()
    time.sleep(pause)
    pause = min(2 * pause, 0.05)


def _tell(control: socket.socket, message: dict[str, Any]) -> None:
  """One line for the pool, if it is still there."""
  control.settimeout(1.0)
  try:
    control.sendall(json.dumps(message).encode() + b'\n')
  except OSError:
    pass


def _hear(control: socket.socket) -> bytes:
  """What the pool says; nothing once it is gone."""
  try:
    return control.recv(64, socket.MSG_DONTWAIT)
  except OSError:
    return b''


# The worker.


def work(
  data: socket.socket, output: int, guard_pid: int, folder: str, settings: dict[str, Any], make: Callable[[], Callable]
) -> NoReturn:
  """Makes the environment and answers requests until there are no more."""
  prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  if os.getppid() != guard_pid:
    os._exit(1)
  os.setsid()  # what it does to its process group is done to no one else
  prctl(_PR_SET_NAME, b'pool-worker')
  null = os.open(os.devnull, os.O_RDONLY)
  for descriptor, target in ((null, 0), (output, 1), (output, 2)):
    os.dup2(descriptor, target)
  os.close(null)
  os.close(output)
  for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(line_buffering=True)
  os.environ['TMPDIR'], tempfile.tempdir = folder, None
  _limit(settings)
  serve(data, make, settings['message_bytes'])
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(0)


def _limit(settings: dict[str, Any]) -> None:
  try:
    with open('/proc/self/oom_score_adj', 'w') as file:
      file.write('800')  # when the machine runs out of memory, a worker goes before the trainer
  except OSError:
    pass
  resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
  if settings['data_bytes'] is not None:
    resource.setrlimit(resource.RLIMIT_DATA, (settings['data_bytes'], settings['data_bytes']))


def serve(data: socket.socket, make: Callable[[], Callable], limit: int) -> None:
  """One environment behind a socket: {'reset': [a Task's fields]} and {'step': action} are answered, its end is the end."""
  try:
    env = make()()
  except BaseException as error:  # noqa: BLE001  whatever it is, the pool is told
    _send(data, _describe(error), b'', limit)
    return
  _send(data, {'ready': True}, b'', limit)
  while (request := _receive(data, limit)) is not None:
    try:
      answer = _answer(env, request)
    except BaseException as error:  # noqa: BLE001
      answer = _describe(error), b''
    _send(data, *answer, limit)
  try:
    env.close()
  except BaseException:  # noqa: BLE001  nobody is there to hear it
    traceback.print_exc()


def _answer(env: Any, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
  from mempi_jax.types import Context, EnvStep, Task

  if 'reset' in request:
    context = env.reset(Task(*request['reset']))
    if not isinstance(context, Context):
      raise TypeError(f'reset returned {type(context).__name__}, expected mempi_jax.types.Context')
    return pack_context(context)
  step = env.step(request['step'])
  if not isinstance(step, EnvStep):
    raise TypeError(f'step returned {type(step).__name__}, expected mempi_jax.types.EnvStep')
  return {'step': [_text(step.observation), float(step.reward), bool(step.done), bool(step.success)]}, b''


def pack_context(context: Any) -> tuple[dict[str, Any], bytes]:
  """A `types.Context` as JSON and pixels."""
  task = context.task
  image, pixels = None, b''
  if context.image is not None:
    if context.image.dtype.kind not in 'buif':
      raise TypeError(f'the image is of dtype {context.image.dtype}, expected numbers')
    image, pixels = [context.image.dtype.str, list(context.image.shape)], context.image.tobytes()
  history = [[_text(step.observation), _text(step.action), float(step.reward)] for step in context.history]
  fields = {
    'task': [_text(task.env), _text(task.task_id), _text(task.split), int(task.seed)],
    'goal': _text(context.goal),
    'observation': _text(context.observation),
    'history': history,
    'image': image,
  }
  return {'context': fields}, pixels


def _text(value: Any) -> str:
  if not isinstance(value, str):
    raise TypeError(f'expected text, found {type(value).__name__}')
  return value


def _describe(error: BaseException) -> dict[str, Any]:
  """An exception as a message."""
  try:
    text = str(error)[:_ERROR_CHARACTERS]
  except Exception:  # noqa: BLE001  it cannot even say what it is
    text = '(no text)'
  kind = type(error).__name__
  return {'error': f'{kind}: {text}' if text else kind, 'trace': ''.join(traceback.format_exception(error))[-_TRACE_CHARACTERS:]}


def _send(data: socket.socket, message: dict[str, Any], pixels: bytes, limit: int) -> None:
  try:
    frame = encode(message, pixels, limit=limit)
  except ValueError as error:
    frame = encode({'error': f'MessageTooBig: {error}', 'trace': ''}, limit=limit)
  try:
    data.sendall(frame)
  except OSError:
    pass  # nobody waits for it; the next request will not come


def _receive(data: socket.socket, limit: int) -> dict[str, Any] | None:
  """The next request, None when there are no more."""
  head = _read_exactly(data, HEADER.size)
  text = head and _read_exactly(data, sum(message_size(head, limit)))
  return decode(text) if text else None


def _read_exactly(data: socket.socket, count: int) -> bytes | None:
  parts = bytearray()
  while len(parts) < count:
    try:
      part = data.recv(min(count - len(parts), 1 << 20))
    except OSError:
      return None
    if not part:
      return None
    parts += part
  return bytes(parts)


def main(arguments: list[str]) -> None:
  """`worker.py COMMANDS SETTINGS [bare]`: the descriptors of a socket and of a file with pickled settings."""
  # A cluster sends SIGTERM to every process of a job, and the trainer still has to save: workers end when it says so. A handler, not SIG_IGN:
  # what an environment starts has the signals of any other process.
  signal.signal(signal.SIGTERM, lambda *_: None)
  commands, settings_file = int(arguments[0]), int(arguments[1])
  os.lseek(settings_file, 0, os.SEEK_SET)
  with os.fdopen(os.dup(settings_file), 'rb') as file:
    settings = pickle.load(file)
  sys.path[:] = settings['path']
  keep(socket.socket(fileno=commands), settings_file, settings, preload=settings['preload'] and 'bare' not in arguments)


if __name__ == '__main__':
  main(sys.argv[1:])
