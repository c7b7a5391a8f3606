"""SIGTERM: a machine that is about to be taken away asks its run to end; the run saves where it is, and the same command goes on from there.

The signal only raises a flag. What may take long looks at it between two of its parts (`check`), at moments when nothing is half done.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

STATUS = 128 + signal.SIGTERM  # what a shell says of a process that SIGTERM ended
ECHO = 5.0  # seconds: launchers, shells and schedulers each pass the same request on

_asked = threading.Event()
_heard: list[float] = []  # when SIGTERM came


class Preempted(SystemExit):
  """The run ends here because it was asked to. No error: nothing but the outermost `with` sees it, and the process ends with STATUS."""

  def __init__(self, status: int = STATUS):
    super().__init__(status)


def listen() -> None:
  """From now on SIGTERM raises the flag, and another one, ECHO seconds later or more, ends the process at once; outside the main thread nothing
  happens. A flag that is up stays up: of several runs in one process the next one ends."""
  if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGTERM, _handle)


def ignore() -> None:
  """SIGTERM ends the process again, as it does by itself."""
  if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is _handle:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def obeyed() -> None:
  """Takes the flag down: what was asked to end has ended."""
  _asked.clear()
  _heard.clear()


def request() -> None:
  """Raises the flag, as SIGTERM does: another host was asked to end."""
  _asked.set()


def requested() -> bool:
  """Whether the run was asked to end."""
  return _asked.is_set()


def check() -> None:
  """Raises Preempted where the run was asked to end."""
  if _asked.is_set():
    raise Preempted


def _handle(number: int, frame: Any) -> None:
  _asked.set()
  _heard.append(time.monotonic())
  if _heard[-1] - _heard[0] >= ECHO:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
