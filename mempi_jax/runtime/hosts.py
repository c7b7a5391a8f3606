"""Several hosts: processes, one a machine, that run the same command on the same config and share one working folder.

    python -m mempi_jax.train ... --hosts=2 --host=0 --coordinator=10.0.0.1:1234        # and --host=1 on the other machine
    python -m mempi_jax.train ... --hosts=auto                                          # a TPU pod says by itself who is who

All hosts do the same in the same order. What costs time is shared out: each plays its own episodes and holds its own part of the arrays
(runtime/sharding.py). What decides how the run goes on is computed by one host and given to all, so that they never part ways:

    spread(function, items)   each host does its share, every host gets all results, in order
    gather(value)             every host gets every host's value
    broadcast(function)       the first host does it, every host gets what came of it, an exception too
    barrier()                 nobody goes on before all are here

The first host alone writes (runtime/files.py). These exchanges go through the coordinator's key-value store, not through the devices, so
they have time-outs, and may run while the devices compute. Each says where in the program its host is: hosts that are at different places, which
would mistake each other's values, end with an error. A thread gives a sign of life every second, another one looks for those of the others: where one
is missing for `dead_after` seconds, or where a host says that it failed, this process ends with a message that names the host. So
does a wait that takes longer than `timeout` seconds, and a step of the devices inside `watch`. On one host all of this is nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import pickle
import re
import signal
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mempi_jax.runtime import preemption

FAILED = 75  # exit status where another host is the reason (EX_TEMPFAIL: starting all of them again goes on)
BEAT = 1.0  # seconds between signs of life
GRACE = 5.0  # seconds that a failing run's other hosts have to find the same error themselves
PART = 2**22  # bytes of a value that travel in one message: signs of life go between

T = TypeVar('T')
R = TypeVar('R')


class HostsError(ValueError):
  """Hosts that cannot work together; the message says what differs, or who is missing."""


@dataclasses.dataclass
class _Link:
  """This process among the hosts."""

  client: Any  # of JAX's coordination service
  index: int
  count: int
  coordinator: str  # its address
  dead_after: float
  timeout: float
  log: Any = None  # this host's own file
  streams: tuple[Any, Any] = (None, None)  # where stdout and stderr went before there was one
  exchanges: int = 0  # all hosts count alike
  doing: tuple[str, float] | None = None  # what the devices are at, and since when
  answered: float = 0.0  # when the coordinator did last
  heard: dict[int, tuple[str, float]] = dataclasses.field(default_factory=dict)  # each other host's last sign of life, and when it came
  failed: str = ''  # what another host ended with, and says
  failing: bool = False  # this one is about to end with an error of its own
  closed: bool = False


_link: _Link | None = None  # None: there is one host
_on_abort: Any = None  # C holds no reference to it


def connect(hosts: str, host: int | None, coordinator: str | None, *, dead_after: float, timeout: float) -> None:
  """Makes this process one of several hosts; call it before JAX is used. Nothing happens for hosts ''.

  Args:
    hosts: how many there are, or 'auto' where the cluster says it (TPU pods, GKE).
    host: which one this is, from 0.
    coordinator: ADDRESS:PORT of the first one.
    dead_after, timeout: seconds, see the top of this file.

  Raises HostsError: impossible numbers, or a port that is taken. Where the others do not come within `timeout` seconds, ten minutes at most, the
  process ends.
  """
  global _link
  if not hosts:
    if host is not None or coordinator is not None:
      raise HostsError('--host and --coordinator say which of several hosts this is: --hosts is missing')
    return
  if _link is not None:
    raise HostsError('this process is one of several hosts already')
  if dead_after < 3 * BEAT:
    raise HostsError(f'hosts.dead_after is {dead_after:g} s: expected at least {3 * BEAT:g}, there is a sign of life every {BEAT:g} s')
  arguments: dict[str, Any] = {}
  if hosts != 'auto':
    if not re.fullmatch(r'[1-9]\d*', hosts):
      raise HostsError(f"--hosts={hosts}: expected a number of hosts, or 'auto'")
    if host is None or coordinator is None or not 0 <= host < int(hosts):
      raise HostsError(f'--hosts={hosts} needs --host from 0 to {int(hosts) - 1}, found {host}, and --coordinator=ADDRESS:PORT, found {coordinator}')
    arguments = {'coordinator_address': coordinator, 'num_processes': int(hosts), 'process_id': host}
    # Under Slurm JAX takes one process a GPU for granted, and would hide the others of this machine.
    arguments['cluster_detection_method'] = 'deactivate'
    if host == 0:
      _check_port(coordinator)
  import jax

  # It would take SIGTERM for itself (runtime/preemption.py).
  jax.config.update('jax_enable_preemption_service', False)
  patience, here = min(timeout, 600.0), f'--hosts={hosts}, --host={host}, --coordinator={coordinator}'
  _explain_abort(lambda: f'the hosts did not find each other within {patience:g} s ({here}): was each of them started, and can it reach the first?')
  try:
    # JAX's own heartbeat ends the process without a word of ours: it must be the slower one.
    jax.distributed.initialize(
      **arguments, initialization_timeout=int(patience), heartbeat_timeout_seconds=int(10 * dead_after + 60), shutdown_timeout_seconds=30
    )
  except (RuntimeError, ValueError) as error:
    raise HostsError(f'the hosts did not find each other ({here}): {error}') from None
  from jax._src import distributed  # the client has no public name

  state, now = distributed.global_state, time.monotonic()
  link = _Link(state.client, jax.process_index(), jax.process_count(), state.coordinator_address, dead_after, timeout, answered=now)
  link.heard = {other: ('', now) for other in range(link.count) if other != link.index}
  _explain_abort(lambda: _why_aborted(link))
  if link.count > 1:
    _link = link
    for task in (_beat, _look):
      threading.Thread(target=task, args=(link,), name='hosts', daemon=True).start()


def disconnect() -> None:
  """The end of a run: waits for the others, then this process is alone again."""
  global _link
  if _link is not None:
    barrier()
    _link.closed = True
    if _link.log:
      sys.stdout, sys.stderr = _link.streams
      with contextlib.suppress(OSError):  # a full disk
        _link.log.close()
    _link = None


def count() -> int:
  """How many hosts there are."""
  return _link.count if _link else 1


def index() -> int:
  """Which one this is, from 0."""
  return _link.index if _link else 0


def is_first() -> bool:
  """Whether this is the one that writes."""
  return index() == 0


def name(number: int | None = None) -> str:
  """'host 1 of 2', for people."""
  return f'host {index() if number is None else number} of {count()}'


# Exchanges.


def gather(value: T) -> list[T]:
  """Every host's value (anything that can be pickled), in the order of the hosts, on every host.

  Raises HostsError where the hosts are at different places of the program.
  """
  if _link is None:
    return [value]
  link = _link
  link.exchanges += 1
  number, place = link.exchanges, _place()
  data = zlib.compress(pickle.dumps((place, value), pickle.HIGHEST_PROTOCOL), 1)
  parts = [data[start : start + PART] for start in range(0, len(data), PART)]
  for i, part in enumerate(parts):
    link.client.key_value_set_bytes(f'mempi/gather/{number}/{link.index}/{i}', len(parts).to_bytes(4, 'big') + part)
  found = []
  for other in range(link.count):
    found.append((place, value) if other == link.index else pickle.loads(zlib.decompress(_wait_for(link, number, other))))
  if number > 1:  # who is here has read what came before
    link.client.key_value_delete(f'mempi/gather/{number - 1}/{link.index}')
  if len({there for there, _ in found}) > 1:
    shown = ', '.join(f'host {other} at {there}' for other, (there, _) in enumerate(found))
    raise HostsError(f'the hosts have parted ways, which is a mistake in the program: {shown}')
  return [value for _, value in found]


def broadcast(function: Callable[[], T]) -> T:
  """The first host calls the function; every host gets its value, or raises what it raised there (ValueError, OSError, Preempted).

  No exchange may stand inside the function.
  """
  if _link is None:
    return function()
  found: tuple[bool, Any] = (True, None)
  if is_first():
    try:
      found = True, function()
    except (ValueError, OSError, preemption.Preempted) as error:
      found = False, error
  fine, value = gather(found)[0]
  if not fine:
    raise value
  return value


def barrier() -> None:
  """Waits until all hosts are here."""
  gather(None)


def spread(function: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T], *, same: Callable[[T], Any] | None = None) -> list[R]:
  """`function` of all items, each host doing a stretch of them: gives one result an item, which does not depend on the other items.

  `same`: neighbours for which it gives the same are done by one host. Raises HostsError where the hosts have other numbers of items.
  """
  if _link is None:
    return list(function(items))
  stretch = items[slice(*stretches(items, count(), same)[index()])]
  try:
    done = list(function(stretch)) if len(stretch) else []
  except preemption.Preempted:
    done = None
  counts, parts = zip(*gather((len(items), done)), strict=True)
  if len(set(counts)) > 1:
    raise HostsError(f'the hosts have parted ways, which is a mistake in the program: they share out {", ".join(map(str, counts))} things')
  if any(part is None for part in parts):  # all end at the same place
    raise preemption.Preempted
  return [result for part in parts for result in part]


def stretches(items: Sequence[T], parts: int, same: Callable[[T], Any] | None = None) -> list[tuple[int, int]]:
  """Where each of `parts` stretches of the items begins and ends: about equally long, and never cut between neighbours that are the `same`."""
  cuts = [0]
  for part in range(1, parts):
    cut = max(cuts[-1], part * len(items) // parts)
    while same is not None and 0 < cut < len(items) and same(items[cut - 1]) == same(items[cut]):
      cut += 1
    cuts.append(cut)
  return list(zip(cuts, [*cuts[1:], len(items)], strict=True))


def check_preempted() -> None:
  """Raises Preempted, on all hosts, where one of them was asked to end: for work that all do alike, between two parts of it."""
  if any(gather(preemption.requested())):
    raise preemption.Preempted


def tell(name: str, text: str) -> None:
  """Says something under a name that is used once. With `hear` for threads, which have no part in the order of the exchanges."""
  if _link is not None:
    _link.client.key_value_set(f'mempi/said/{name}', f'>{text}')  # a value must not be empty


def hear(name: str) -> str:
  """What another host says under `name`, as soon as it does; where it died this process ends. Raises HostsError after `timeout` seconds."""
  link, started = _link, time.monotonic()
  while link is not None and time.monotonic() - started < link.timeout:
    try:
      return link.client.blocking_key_value_get(f'mempi/said/{name}', int(1000 * BEAT))[1:]
    except Exception as error:  # noqa: BLE001  a time-out, or the coordinator is gone; the threads find out which
      if 'DEADLINE_EXCEEDED' not in str(error):
        time.sleep(BEAT)
  raise HostsError(f'no word of it within {link.timeout:g} s' if link else 'there is no other host')


def check_alike(what: str, value: T, differences: Callable[[T, T], list[str]]) -> None:
  """Raises HostsError, on all hosts, where one of them has another `value` than the first; `differences` (the first's, its own) says which."""
  first = gather(value)[0]
  for other, found in enumerate(gather(differences(first, value))):
    if found:
      raise HostsError(f'host 0 and host {other} have different {what}: {"; ".join(found)}')


def _wait_for(link: _Link, number: int, other: int) -> bytes:
  """What another host hands over in an exchange."""
  parts: list[bytes] = []
  count, started = 1, time.monotonic()
  while len(parts) < count:
    try:
      part = link.client.blocking_key_value_get_bytes(f'mempi/gather/{number}/{other}/{len(parts)}', int(1000 * BEAT))
    except Exception as error:  # noqa: BLE001  a time-out, or the coordinator is gone; the threads find out which
      if 'DEADLINE_EXCEEDED' not in str(error):
        time.sleep(BEAT)
      if time.monotonic() - started > link.timeout:
        _end(link, f'host {other} did not come to exchange {number} within {link.timeout:g} s, though it is alive')
      continue
    count, started = int.from_bytes(part[:4], 'big'), time.monotonic()
    parts.append(part[4:])
  return b''.join(parts)


def _place() -> str:
  """Where in the program an exchange was asked for."""
  frame = sys._getframe(1)
  while frame.f_globals['__name__'] == __name__:
    frame = frame.f_back
  return f'{Path(frame.f_code.co_filename).name}:{frame.f_lineno}'


# The watchdog.


@contextlib.contextmanager
def watch(what: str) -> Iterator[None]:
  """Inside, this process waits for devices that wait for those of other hosts: a time-out, and an error of theirs, ends the process."""
  if _link is None:
    yield
    return
  link = _link
  link.doing = (what, time.monotonic())
  try:
    yield
  except Exception as error:
    if not _is_broken_connection(error):
      raise
    time.sleep(link.dead_after + 5 * BEAT)  # the threads will say which host died
    _end(link, f'{what} failed, though all hosts are alive: {error}')
  finally:
    link.doing = None


def fail(error: Exception) -> None:
  """Tells the other hosts that this one ends with an error, and ends it: nobody waits for who will not come."""
  if _link is None:
    return
  link = _link
  if _is_broken_connection(error):
    time.sleep(link.dead_after + 5 * BEAT)  # a host that died is the reason: the threads will say which
  link.failing = True
  with contextlib.suppress(Exception):
    link.client.key_value_set(f'mempi/failed/{link.index}', str(error)[:2000] or type(error).__name__, allow_overwrite=True)
  time.sleep(GRACE + 2 * BEAT)  # the coordinator lives in the first host: the others must hear of it
  os._exit(2)


def _is_broken_connection(error: Exception) -> bool:
  """Whether devices failed because their connection to those of another host broke: the first sign of one that died."""
  kind = isinstance(error, RuntimeError) or type(error) is ValueError  # JAX's own have been both
  return kind and bool(re.search(r'gloo|nccl|collective|connection|unavailable|aborted|peer', str(error), re.IGNORECASE))


def _beat(link: _Link) -> None:
  """Gives signs of life and takes note of those of the others, until the process ends. A call may hang where the coordinator is gone."""
  number = 0
  while not link.closed:
    number += 1
    with contextlib.suppress(Exception):  # whatever a client raises whose service is gone: `_look` sees that nothing comes
      link.client.key_value_set(f'mempi/alive/{link.index}', str(number), allow_overwrite=True)
      alive = dict(link.client.key_value_dir_get('mempi/alive/'))
      if preemption.requested():
        link.client.key_value_set(f'mempi/stop/{link.index}', 'asked', allow_overwrite=True)
      elif link.client.key_value_dir_get('mempi/stop/'):
        preemption.request()
      failed = dict(link.client.key_value_dir_get('mempi/failed/'))
      link.answered = time.monotonic()
      for other, (last, _) in list(link.heard.items()):
        beat = alive.get(f'mempi/alive/{other}', '')
        if beat != last:
          link.heard[other] = beat, link.answered
      link.failed = next((f'host {other} failed: {failed[path]}' for other in link.heard if (path := f'mempi/failed/{other}') in failed), '')
    time.sleep(BEAT)


def _look(link: _Link) -> None:
  """Ends the process where another host failed or died, or where the devices take too long. It asks nobody, so nothing can hold it up."""
  answered, silence = link.answered, 0.0
  while not link.closed:
    time.sleep(BEAT)
    doing = link.doing
    # Counted, not measured: where this process was held up, `_beat` was as well.
    answered, silence = link.answered, silence + BEAT if link.answered == answered else 0.0
    if link.closed or link.failing:
      continue
    if link.failed:
      time.sleep(GRACE)
      if not link.failing:
        _end(link, link.failed)
    if silence > link.dead_after:
      _end(link, f'host 0, the coordinator, has not answered for {link.dead_after:g} s')
    for other, (_, since) in list(link.heard.items()):
      if link.answered - since > link.dead_after:
        _end(link, f'host {other} has given no sign of life for {link.dead_after:g} s')
    if doing and time.monotonic() - doing[1] > link.timeout:
      _end(link, f'{doing[0]} has taken longer than {link.timeout:g} s: a host is stuck, or hosts.timeout is too short')


def _explain_abort(why: Callable[[], str]) -> None:
  """JAX's client aborts the process the moment that the coordinator is gone, or does not come. From now on this process says `why` and ends as it does
  otherwise; where that is '', the abort goes on.

  Python's own handlers would not run any more, hence one of C's.
  """
  global _on_abort

  def handle(number: int) -> None:
    if _link is not None and _link.failing:
      os._exit(2)
    if reason := why():
      _end(_link, reason)

  _on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
  ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)


def _why_aborted(link: _Link) -> str:
  if not link.index or link.closed or _answers(link.coordinator):
    return ''
  return link.failed or 'host 0, the coordinator, is gone'


def _check_port(coordinator: str) -> None:
  """Raises HostsError where this host cannot listen at the coordinator's port: JAX would crash."""
  port = coordinator.rpartition(':')[2]
  try:
    if socket.has_dualstack_ipv6():
      socket.create_server(('', int(port)), family=socket.AF_INET6, dualstack_ipv6=True).close()
    else:
      socket.create_server(('', int(port))).close()
  except (OSError, ValueError, OverflowError) as error:
    raise HostsError(f'the first host cannot listen at --coordinator={coordinator}: {error}') from None


def _answers(address: str) -> bool:
  """Whether somebody listens at ADDRESS:PORT."""
  host, _, port = address.rpartition(':')
  try:
    socket.create_connection((host.strip('[]'), int(port)), timeout=2.0).close()
  except OSError:
    return False
  return True


def _end(link: _Link | None, reason: str) -> None:
  """Ends the process: what waits for devices in C++ cannot be made to raise."""
  doing = link.doing if link else None
  here = f' (this was host {link.index}{f", in {doing[0]}" if doing else ""})' if link else ''
  stop = '' if reason.endswith('?') else '.'
  try:
    if is_first():
      print(file=sys.stderr)  # a progress bar may stand there
    print(f'error: {reason}{here}{stop} What was saved is whole: start all hosts again, and the run goes on', file=sys.stderr, flush=True)
    if link and not link.index:  # the others lose the coordinator: they must hear why
      link.client.key_value_set('mempi/failed/0', reason, allow_overwrite=True)
      time.sleep(2 * BEAT)
  finally:
    os._exit(FAILED)


# What a host says.


def open_log(workdir: Path) -> None:
  """From now on what this host prints goes to WORKDIR/hosts/I.log; the first host prints as well where it always does."""
  if _link is None or _link.log:
    return
  folder = workdir / 'hosts'
  folder.mkdir(parents=True, exist_ok=True)
  _link.log = open(folder / f'{_link.index}.log', 'a', encoding='utf-8', buffering=1)
  print(f'--- {name()}, {socket.gethostname()}, process {os.getpid()}, {time.strftime("%Y-%m-%d %H:%M:%S")}', file=_link.log)
  _link.streams = sys.stdout, sys.stderr
  sys.stdout = _Both(sys.stdout, _link.log) if is_first() else _link.log
  sys.stderr = _Both(sys.stderr, _link.log) if is_first() else _Both(sys.stderr, _link.log, quiet=True)


class _Both:
  """A stream and a log: what is printed goes to both, or, where it is `quiet`, errors alone go to the stream."""

  def __init__(self, stream: Any, log: Any, quiet: bool = False):
    self.stream, self.log, self.quiet = stream, log, quiet

  def write(self, text: str) -> int:
    """Progress bars, which begin with a carriage return, do not go to the log."""
    if not text.startswith('\r') and not self.log.closed:
      with contextlib.suppress(OSError):  # the disk may be full: then that is what must be said
        self.log.write(text)
    if not self.quiet:
      self.stream.write(text)
    elif text.startswith(('error', 'Traceback')):
      self.stream.write(text.rstrip('\n') + '\n')
    return len(text)

  def __getattr__(self, attribute: str) -> Any:
    return getattr(self.stream, attribute)
