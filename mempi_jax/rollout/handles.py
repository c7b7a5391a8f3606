"""The pool's side of its processes: the keeper that starts workers, and a worker with the pipe to it, its deadlines and how it ended (see worker.py)."""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import math
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from mempi_jax.rollout import worker as process

_logger = logging.getLogger(__name__)

FLAGS = ('-P',)  # the folder of worker.py is no place to import from
REPORT_SECONDS = 3.0  # until a guard that does not say how its worker ended is killed as well
_SHOWN = 600  # characters of what was printed last, in errors


class Fault(enum.StrEnum):
  """What went wrong with a worker."""

  START = 'start'  # the environment could not be made
  RAISED = 'raised'  # reset or step raised
  DIED = 'died'  # the process ended
  HUNG = 'hung'  # no answer in time
  LEAKED = 'leaked'  # over the memory limit
  GARBLED = 'garbled'  # an answer that cannot be read, or is too big
  ABORTED = 'aborted'  # the caller wanted no answer any more


class WorkerError(RuntimeError):
  """A reset or step that failed. The environment is gone; the next reset gets a fresh one."""

  def __init__(self, fault: Fault, text: str):
    super().__init__(text)
    self.fault = fault


class Keeper:
  """The process that starts workers, seen from outside. Not for several threads at once."""

  def __init__(self, settings: dict[str, Any], environment: Mapping[str, str]):
    self._settings, self._environment = settings, environment
    self._process: subprocess.Popen | None = None
    self._commands: socket.socket | None = None
    self._words: Any = None

  def start_worker(self, data: socket.socket, control: socket.socket) -> None:
    """Starts a worker that has these ends of two pairs."""
    for last in (False, True):
      if self._process is None:
        self._start()
      try:
        socket.send_fds(self._commands, [b'w'], [data.fileno(), control.fileno()])
        return
      except OSError:
        if last:
          raise
        _logger.warning('the process that starts workers ended (%s); a new one is started', self.last_words())
        self.close()

  def last_words(self) -> str:
    """How the process ended, if it did, and what it printed last."""
    if self._process is None:
      return ''
    with contextlib.suppress(subprocess.TimeoutExpired):
      self._process.wait(0.2)
    size = os.fstat(self._words.fileno()).st_size
    text = os.pread(self._words.fileno(), 4096, max(0, size - 4096)).decode('utf-8', 'replace')
    code = self._process.returncode
    return f'{"still running" if code is None else _end_of(code)}{_said(text)}'

  def close(self, deadline: float | None = None) -> None:
    """Ends the process; with a deadline, waits until workers have ended and kills those that have not by then. Without one they go on."""
    if self._process is None:
      return
    while deadline is not None and (left := process.descendants(self._process.pid)):
      if time.monotonic() > deadline:
        for pid in left:
          with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
        break
      time.sleep(0.005)
    with contextlib.suppress(OSError):
      self._commands.shutdown(socket.SHUT_RDWR)  # the end is seen even where a forked process holds the socket too
    self._commands.close()
    try:
      self._process.wait(1.0)
    except subprocess.TimeoutExpired:  # it is still importing
      self._process.kill()
      self._process.wait()
    self._words.close()
    self._process = self._commands = self._words = None

  def _start(self) -> None:
    self._words = tempfile.TemporaryFile()
    self._commands, theirs = socket.socketpair()
    with theirs, tempfile.TemporaryFile() as file:
      pickle.dump(self._settings, file)
      file.flush()
      self._process = subprocess.Popen(
        [sys.executable, *FLAGS, process.__file__, str(theirs.fileno()), str(file.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=self._words,
        stderr=self._words,
        env=self._environment,
        pass_fds=[theirs.fileno(), file.fileno()],
        start_new_session=True,  # an interrupt from the keyboard is for the caller alone
      )


class Worker:
  """A guard and its worker, seen from outside. For one thread at a time, but for `kill`."""

  def __init__(self, keeper: Keeper, message_bytes: int, memory_limit: int | None):
    self._keeper, self._limit, self._memory_limit = keeper, message_bytes, memory_limit
    with contextlib.ExitStack() as stack:
      ours, theirs = zip(*(socket.socketpair() for _ in range(2)), strict=True)
      stack.callback(lambda: [end.close() for end in ours])
      with theirs[0], theirs[1]:
        keeper.start_worker(*theirs)
      stack.pop_all()
    self._data, self._control = ours
    self._data.setblocking(False)
    self._control.setblocking(False)
    self.begun = time.monotonic()
    self.high = False  # it takes much memory
    self._ready = False
    self._start_error: WorkerError | None = None
    self._guard: int | None = None  # process id
    self._report: dict[str, Any] | None = None
    self._gone = False  # the guard is
    self._lines = b''
    self._buffer = bytearray()
    self._poll = select.poll()
    self._poll.register(self._data, select.POLLIN)
    self._poll.register(self._control, select.POLLIN)
    self._open = True

  @property
  def ready(self) -> bool:
    """Its environment is made; never waits."""
    if not self._ready and self.alive() and self._data.fileno() in dict(self._poll.poll(0)):
      with contextlib.suppress(WorkerError):
        self.wait_ready(time.monotonic() + 1.0)  # it is there, in one piece
    return self._ready

  def alive(self) -> bool:
    """Whether it could still answer; never waits."""
    if self._open:
      self._listen()
    return self._open and not self._gone and self._report is None

  def wait_ready(self, deadline: float) -> None:
    """Until the environment is made. Raises WorkerError with what its making raised."""
    if self._ready:
      return
    if self._start_error is None:
      try:
        message, _ = self._receive(deadline, 'making the environment')
        if 'error' not in message:
          self._ready = True
          return
        said = self._said() if self.wait_ended(time.monotonic() + REPORT_SECONDS) else ''
        self._start_error = WorkerError(Fault.START, f'{printable(str(message["error"]))}{said}')
        self._start_error.add_note(printable(str(message.get('trace', ''))))
      except WorkerError as error:
        self._start_error = WorkerError(Fault.START, str(error))
    raise self._start_error

  def ask(self, request: dict[str, Any], seconds: float, what: str) -> tuple[dict[str, Any], bytearray]:
    """One request and its answer. Raises WorkerError."""
    deadline = time.monotonic() + seconds
    try:
      frame = process.encode(request, limit=self._limit)
    except ValueError as error:
      raise WorkerError(Fault.GARBLED, f'{what}: {error}') from None
    self._write(frame, deadline, what, seconds)
    return self._receive(deadline, what, seconds)

  def kill(self) -> None:
    """Ends it at once; whoever waits for an answer hears that it died."""
    with contextlib.suppress(OSError):
      self._control.send(process.KILL)

  def interrupt(self) -> None:
    """From any thread: ends it, so that whoever waits for it need not any longer."""
    self.kill()

  def finish(self) -> None:
    """Asks it to close its environment and end. Does not wait."""
    with contextlib.suppress(OSError):
      self._control.send(process.FINISH)

  def ended(self) -> bool:
    """Whether nothing is left of it; never waits."""
    if not self._open:
      return True
    self._listen()
    if self._gone:
      self.drop()
    return self._gone

  def wait_ended(self, deadline: float) -> bool:
    """Waits until nothing is left of it; after the deadline it is killed. Whether its guard said how it ended."""
    while self._open and not self._gone:
      self._listen()
      if self._gone:
        break
      left = deadline - time.monotonic()
      if left <= 0:
        self._end_by_force()
        break
      control = select.poll()
      control.register(self._control, select.POLLIN)
      control.poll(math.ceil(left * 1000))
    if self._open:
      self.drop()
    return self._report is not None

  def drop(self) -> None:
    """Closes the sockets."""
    self._open = False
    self._data.close()
    self._control.close()

  def why_ended(self) -> Fault:
    """As far as its guard knows."""
    return Fault.LEAKED if self._report is not None and self._report['ended'] == 'memory' else Fault.DIED

  def describe_end(self) -> str:
    """How it ended, from its guard's report."""
    if self._report is None:
      said = self._keeper.last_words()
      return f'its processes ended without a word{f" (what starts workers: {said})" if said else ""}'
    if self.why_ended() is Fault.LEAKED:
      limit = f', at most {self._memory_limit / 2**20:,.0f} MiB are allowed' if self._memory_limit else ''
      return f'it took {self._report["used"] / 2**20:,.0f} MiB of memory{limit}{self._said()}'
    left = self._report['left']
    return f'{_end_of(self._report["code"])}{f"; processes that cannot be killed: {left}" if left else ""}{self._said()}'

  def _said(self) -> str:
    return _said(str(self._report['tail']), int(self._report['printed'])) if self._report else ''

  def _write(self, frame: bytes, deadline: float, what: str, seconds: float) -> None:
    view = memoryview(frame)
    while view:
      try:
        view = view[self._data.send(view) :]
      except BlockingIOError:
        poll = select.poll()
        poll.register(self._data, select.POLLOUT)
        poll.register(self._control, select.POLLIN)
        left = deadline - time.monotonic()
        if left <= 0:
          raise self._failed(Fault.HUNG, what, seconds) from None
        poll.poll(math.ceil(left * 1000))
        if not self.alive():
          raise self._failed(Fault.DIED, what) from None
      except OSError:
        raise self._failed(Fault.DIED, what) from None

  def _receive(self, deadline: float, what: str, seconds: float | None = None) -> tuple[dict[str, Any], bytearray]:
    """The next message."""
    buffer = self._buffer
    sizes: tuple[int, int] | None = None
    total = process.HEADER.size
    end_of_data = False
    while True:
      if sizes is None and len(buffer) >= total:
        try:
          sizes = process.message_size(bytes(buffer[:total]), self._limit)
        except ValueError as error:
          raise self._failed(Fault.GARBLED, what, note=str(error)) from None
        total += sum(sizes)
      if sizes is not None and len(buffer) >= total:
        head = process.HEADER.size
        text, pixels = bytes(buffer[head : head + sizes[0]]), buffer[head + sizes[0] : total]
        del buffer[:total]
        try:
          return process.decode(text), pixels
        except ValueError as error:
          raise self._failed(Fault.GARBLED, what, note=str(error)) from None
      left = deadline - time.monotonic()
      events = dict(self._poll.poll(max(0, math.ceil(left * 1000))))
      if self._data.fileno() in events and not end_of_data:
        try:
          part = self._data.recv(min(max(total - len(buffer), 1 << 16), 1 << 20))
        except BlockingIOError:
          continue
        except OSError:
          part = b''
        if part:
          buffer += part
          continue
        end_of_data = True
        self._poll.unregister(self._data)
        deadline = min(deadline, time.monotonic() + REPORT_SECONDS)
      elif self._control.fileno() in events:
        if not self.alive():
          raise self._failed(Fault.DIED, what)
      elif left <= 0:
        raise self._failed(Fault.DIED if end_of_data else Fault.HUNG, what, seconds)

  def _failed(self, fault: Fault, what: str, seconds: float | None = None, note: str = '') -> WorkerError:
    """Ends the worker; the error that says what happened."""
    self.kill()
    self.wait_ended(time.monotonic() + REPORT_SECONDS)
    if self.why_ended() is Fault.LEAKED:
      fault = Fault.LEAKED
    if fault is Fault.HUNG:
      within = f' within {seconds:g} s' if seconds is not None else ' in time'
      said = f' before it began; what starts workers: {self._keeper.last_words()}' if self._guard is None else self._said()
      return WorkerError(fault, f'{what}: no answer{within}; the worker was killed{said}')
    if fault is Fault.GARBLED:
      return WorkerError(fault, f'{what}: {note}; the worker was killed{self._said()}')
    how = 'was killed' if fault is Fault.LEAKED else 'died'
    return WorkerError(fault, f'{what}: the worker {how}: {self.describe_end()}')

  def _listen(self) -> None:
    """Takes in what the guard said."""
    while True:
      try:
        part = self._control.recv(1 << 16)
      except BlockingIOError:
        return
      except OSError:
        part = b''
      if not part:
        self._gone = True
        return
      *lines, self._lines = (self._lines + part).split(b'\n')
      for line in lines:
        message = json.loads(line)
        self._guard = message.get('guard', self._guard)
        self.high |= 'high' in message
        if 'ended' in message:
          self._report = message

  def _end_by_force(self) -> None:
    """The guard does not answer: it is stopped, or its processes cannot be killed."""
    if self._guard is None:
      return
    with contextlib.suppress(ProcessLookupError, PermissionError):
      for pid in (*process.descendants(self._guard), self._guard):
        os.kill(pid, signal.SIGKILL)


def _end_of(code: int | None) -> str:
  """An exit code in words."""
  if code is None:
    return 'its end is unknown'
  if code >= 0:
    return f'exit status {code}'
  try:
    return f'killed by {signal.Signals(-code).name}'
  except ValueError:
    return f'killed by signal {-code}'


def _said(text: str, printed: int | None = None) -> str:
  """The end of what was printed, for an error."""
  text = printable(text).strip()
  if not text:
    return ''
  cut = '...' if len(text) > _SHOWN or (printed or 0) > len(text) + 2 else ''
  return f'; the last that it printed: {cut}{text[-_SHOWN:]}'


def printable(text: str) -> str:
  """Without what a terminal would obey."""
  return ''.join(character if character.isprintable() or character in '\n\t' else '�' for character in text)
