"""The process that holds a sandbox's file system and starts its shells; `sandbox.py` starts it, as a script, and talks to it.

It runs as root, beside the caller's process, with the standard library alone. All that it mounts lives in a mount namespace of its own and
every process that it starts hangs from it, so that nothing is left when it goes; and it goes when its caller does, however that ends.

A new file system is an overlay over the root folder, whose upper layer is a tmpfs of limited size. Everything inside runs in one user
namespace, where root is an ordinary user of the machine without any right, and in pid, network, ipc and uts namespaces of the episode,
which bubblewrap makes for the first process (the keeper, pid 1). Each shell is one more call of bubblewrap that joins them.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from typing import Any

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWUTS = 0x20000, 0x10000000, 0x8000000, 0x40000000, 0x4000000
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 16384, 1 << 18, 2
IDS = 65536
START_SECONDS = 60
SPARE = 32  # processes

CAPABILITIES = ('CHOWN', 'FOWNER', 'DAC_OVERRIDE', 'SETUID', 'SETGID', 'FSETID', 'KILL', 'SYS_CHROOT', 'AUDIT_WRITE')
HIDDEN = ('/proc/kcore', '/proc/cmdline')  # the rest of /proc is as for any user of the machine

# Where the programs and libraries are that an evaluation runs.
PROGRAMS = ('usr/bin', 'usr/sbin', 'usr/lib', 'usr/lib32', 'usr/lib64', 'usr/libx32', 'usr/libexec', 'bin', 'sbin', 'lib', 'lib32', 'lib64', 'libx32')
LOADER_FILES = ('etc/ld.so.preload', 'etc/ld.so.cache', 'usr/local/lib')

# Says that bubblewrap is done, and then does nothing but inherit orphans until its input ends.
KEEPER = 'echo ready; exec >/dev/null 2>&1; while read -r line; do :; done'

# Descriptors of a new bubblewrap, beyond those of its shell.
_EXTRA, _ARGUMENTS, _FILTER = 42, 43, 44

_libc = ctypes.CDLL(None, use_errno=True)


class Jail:
  """One file system at a time, and the processes in it."""

  def __init__(self, config: dict[str, Any], caller: int):
    """Enters a mount namespace and makes the user namespace. `caller`: a descriptor that is readable once the caller has ended.
    Raises OSError that says at which step."""
    self.config, self.limits, self.caller = config, config['limits'], caller
    self.folder = config['folder']
    self.keeper: int | None = None  # the first call of bubblewrap
    self.first: int | None = None  # its child, pid 1 of the sandbox
    self.handle = -1  # a pidfd of that
    self.namespaces: dict[str, int] = {}
    self.shells: dict[int, int | None] = {}  # pid -> how it ended, as waitpid says
    self.broken = ''
    _call('unshare', CLONE_NEWNS)
    _call('mount', b'none', b'/', None, MS_REC | MS_PRIVATE, None)
    os.chdir(self.folder)
    self.users = self._user_namespace()
    self.group = make_group(config['cgroups'], f'mempi_jax.{os.getpid()}', self.limits) if config['cgroups'] else None

  # What the caller asks for.

  def start(self) -> None:
    """A fresh file system, and its keeper; what was before is gone."""
    self.stop()
    base = self.config['first_uid']
    options = f'size={self.limits["disk_bytes"]},nr_inodes={self.limits["files"]},mode=0755'
    _call('mount', b'tmpfs', b'work', b'tmpfs', MS_NOSUID | MS_NODEV, options.encode())
    for name in ('upper', 'scratch', 'root'):
      os.mkdir(f'work/{name}', 0o755)
      os.chmod(f'work/{name}', 0o755)
    os.chown('work/upper', base, base)
    _call('mount', b'overlay', b'work/root', b'overlay', MS_NOSUID | MS_NODEV, b'lowerdir=root,upperdir=work/upper,workdir=work/scratch')
    self._keep()

  def shell(self, script: str, environment: dict[str, str], descriptors: list[int]) -> dict[str, Any]:
    """Starts `bash -c script` with those descriptors as 0, 1, 2, 3."""
    if self.broken:
      self._keep()
    # No --die-with-parent: with --pidns the parent may be a process of bubblewrap's own that is about to end. Shells end with pid 1.
    pid = self._spawn(descriptors, ['--pidns', str(_EXTRA)], script, self.namespaces['pid'], join=True, environment=environment)
    self.shells[pid] = None
    return {'pid': pid}

  def end(self, pid: int, grace: float) -> dict[str, Any]:
    """How a shell ended, once it has, `grace` seconds at most; then it is killed with all that hangs from it."""
    deadline = time.monotonic() + grace
    while self.shells[pid] is None and time.monotonic() < deadline:
      self.reap()
      time.sleep(0.0005)
    killed = self.shells[pid] is None
    if killed:
      _kill_all(pid)
      while self.shells[pid] is None:
        self.reap()
        time.sleep(0.0005)
    return {'killed': killed, 'status': os.waitstatus_to_exitcode(self.shells.pop(pid)), 'broken': self.broken}

  def changed(self) -> dict[str, Any]:
    """Programs and libraries of the system that are no more what they were, at most ten."""
    found = []
    for name in changed_files('root', 'work/upper'):
      found.append(name)
      if len(found) >= 10:
        break
    return {'changed': found}

  def stop(self) -> None:
    """Kills every process and drops the file system."""
    self._release()
    self.shells.clear()
    while os.path.ismount('work'):
      _call('umount2', b'work', MNT_DETACH)

  # Processes.

  def _keep(self) -> None:
    """Starts the first process, whose namespaces the others join. Raises OSError with what bubblewrap said."""
    self._release()
    hold, self._keeper_input = os.pipe()
    answers, answers_write = os.pipe()
    errors = os.memfd_create('errors')
    try:
      unshare = ['--unshare-pid', '--unshare-net', '--unshare-ipc', '--unshare-uts', '--unshare-cgroup-try', '--hostname', 'sandbox']
      # bubblewrap writes its JSON and the keeper its line to the same pipe.
      self.keeper = self._spawn([hold, answers_write, errors], [*unshare, '--die-with-parent', '--as-pid-1', '--info-fd', str(_EXTRA)], KEEPER, answers_write)
      os.close(answers_write)
      answers_write = -1
      answer = b''
      while not answer.endswith(b'ready\n') and (data := self._read(answers)):
        answer += data
      described, _, ready = answer.rpartition(b'}')
      if ready.strip() != b'ready':
        os.lseek(errors, 0, os.SEEK_SET)
        raise OSError(f'bubblewrap failed: {os.read(errors, 4096).decode("utf-8", "replace").strip()}')
      self.first = json.loads(described + b'}')['child-pid']
      self.handle = os.pidfd_open(self.first)
      for name in ('pid', 'net', 'ipc', 'uts'):
        self.namespaces[name] = os.open(f'/proc/{self.first}/ns/{name}', os.O_RDONLY)
    finally:
      for descriptor in (hold, errors, answers, answers_write):
        if descriptor >= 0:
          os.close(descriptor)

  def _read(self, descriptor: int) -> bytes:
    """What comes next. Raises OSError when nothing comes for long, SystemExit when the caller ends."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.register(self.caller, select.POLLIN)
    ready = [number for number, _ in poll.poll(START_SECONDS * 1000)]
    if self.caller in ready:
      raise SystemExit
    if not ready:
      raise OSError(f'bubblewrap was not ready within {START_SECONDS} s')
    return os.read(descriptor, 4096)

  def _release(self) -> None:
    """Kills every process."""
    if self.handle >= 0:
      self._kill_first()
      os.close(self.handle)
    if self.keeper is not None:
      os.close(self._keeper_input)
    self.reap(block=True)  # bubblewrap's own processes end with what they hold
    for descriptor in self.namespaces.values():
      os.close(descriptor)
    self.namespaces, self.keeper, self.first, self.handle, self.broken = {}, None, None, -1, ''

  def _spawn(
    self,
    descriptors: list[int],
    arguments: list[str],
    script: str,
    extra: int,
    *,
    join: bool = False,
    environment: dict[str, str] | None = None,
  ) -> int:
    """Forks, enters the namespaces and becomes a bubblewrap that runs `bash -c script`; its pid. `descriptors` become 0, 1, 2, ...,
    `extra` becomes _EXTRA until the script begins; nothing else is open."""
    lines = [*self._bubblewrap(environment or {}), *arguments]
    pid = os.fork()
    if pid:
      return pid
    try:
      os.setsid()
      if self.group:
        _write(f'{self.group}/cgroup.procs', '0')
      _call('setns', self.users, CLONE_NEWUSER)
      os.setgroups([])
      os.setresgid(0, 0, 0)
      os.setresuid(0, 0, 0)
      if join:
        for name, kind in (('net', CLONE_NEWNET), ('ipc', CLONE_NEWIPC), ('uts', CLONE_NEWUTS)):
          _call('setns', self.namespaces[name], kind)
      data = '\0'.join([*lines, '--seccomp', str(_FILTER)]).encode()
      opened = [*descriptors, extra, _memory_file(data), _memory_file(bytes.fromhex(self.config['seccomp']))]
      targets = [*range(len(descriptors)), _EXTRA, _ARGUMENTS, _FILTER]
      for i, descriptor in enumerate(opened):
        os.dup2(descriptor, 100 + i)  # out of each other's way
      for i, target in enumerate(targets):
        os.dup2(100 + i, target)
      os.closerange(_FILTER + 1, 1 << 16)
      os.closerange(len(descriptors), _EXTRA)
      self._limit()
      command = ['/bin/bash', '--noprofile', '--norc', '-c', f'exec {_EXTRA}>&-\n{script}']
      os.execve(self.config['bubblewrap'], ['bwrap', '--args', str(_ARGUMENTS), '--', *command], {})
    except BaseException as error:  # noqa: BLE001  a forked process must not go on as its parent
      os.write(2, f'{type(error).__name__}: {error}\n'.encode())
    finally:
      os._exit(127)

  def _bubblewrap(self, environment: dict[str, str]) -> list[str]:
    lines = ['--new-session', '--clearenv']
    for name, value in environment.items():
      lines += ['--setenv', name, value]
    lines += ['--bind', f'{self.folder}/work/root', '/', '--proc', '/proc', '--dev', '/dev']
    lines += ['--perms', '1777', '--size', str(min(self.limits['disk_bytes'], 16 << 20)), '--tmpfs', '/dev/shm', '--remount-ro', '/dev']
    for path in HIDDEN:
      if os.path.exists(path):
        lines += ['--ro-bind', '/dev/null', path]
    lines += ['--cap-drop', 'ALL']
    for name in CAPABILITIES:
      lines += ['--cap-add', f'CAP_{name}']
    return [*lines, '--chdir', '/']

  def _limit(self) -> None:
    limits = self.limits
    for kind, value in (
      (resource.RLIMIT_AS, limits['memory_bytes']),
      (resource.RLIMIT_CPU, limits['cpu_seconds']),
      (resource.RLIMIT_FSIZE, limits['disk_bytes']),
      (resource.RLIMIT_NOFILE, 256),
      (resource.RLIMIT_NPROC, limits['processes'] + SPARE),  # so that `watch` sees it
      (resource.RLIMIT_CORE, 0),
      (resource.RLIMIT_MEMLOCK, 1 << 16),
      (resource.RLIMIT_MSGQUEUE, 0),
      (resource.RLIMIT_SIGPENDING, 1024),
    ):
      resource.setrlimit(kind, (value, value))

  def reap(self, block: bool = False) -> None:
    """Takes note of what ended; `block`: waits for all."""
    while True:
      try:
        pid, status = os.waitpid(-1, 0 if block else os.WNOHANG)
      except ChildProcessError:
        return
      if pid == 0:
        return
      if pid in self.shells:
        self.shells[pid] = status
      if pid == self.keeper and not block:
        self.broken = self.broken or 'the first process of the sandbox ended'

  def watch(self) -> None:
    """Ends everything that is in the sandbox when it is too much."""
    if self.first is None or self.broken:
      return
    processes, memory = usage(f'/proc/{self.first}/root/proc')
    if memory > self.limits['memory_bytes']:
      self.broken = f'all processes together took {memory >> 20} MiB of memory, {self.limits["memory_bytes"] >> 20} are allowed'
    elif processes > self.limits['processes']:
      self.broken = f'there were {processes} processes, {self.limits["processes"]} are allowed'
    if self.broken:
      self._kill_first()

  def _kill_first(self) -> None:
    with contextlib.suppress(ProcessLookupError):
      signal.pidfd_send_signal(self.handle, signal.SIGKILL)

  def _user_namespace(self) -> int:
    """A descriptor of a user namespace whose ids 0.. are first_uid.. of the machine, and in which there can be no further ones."""
    ready, ready_write = os.pipe()
    mapped, mapped_write = os.pipe()
    pid = os.fork()
    if pid == 0:
      try:
        _call('unshare', CLONE_NEWUSER)
        os.write(ready_write, b'.')
        os.read(mapped, 1)
        _write('/proc/sys/user/max_user_namespaces', '0')
        os.write(ready_write, b'.')
        os.read(mapped, 1)
      except BaseException as error:  # noqa: BLE001  a forked process must not go on as its parent
        os.write(ready_write, f'!{error}'.encode())
      finally:
        os._exit(0)
    try:
      _expect_dot(os.read(ready, 4096))
      for name in ('uid_map', 'gid_map'):
        _write(f'/proc/{pid}/{name}', f'0 {self.config["first_uid"]} {IDS}')
      os.write(mapped_write, b'.')
      _expect_dot(os.read(ready, 4096))
      return os.open(f'/proc/{pid}/ns/user', os.O_RDONLY)
    finally:
      _signal(pid, signal.SIGKILL)
      os.waitpid(pid, 0)
      for descriptor in (ready, ready_write, mapped, mapped_write):
        os.close(descriptor)


# Looking at processes and files.


def usage(proc: str) -> tuple[int, int]:
  """(processes, bytes that they hold) of a pid namespace, by the proc folder mounted in it."""
  processes = memory = 0
  page = resource.getpagesize()
  with contextlib.suppress(OSError):
    for name in os.listdir(proc):
      if name.isdigit():
        processes += 1
        with contextlib.suppress(OSError, IndexError), open(f'{proc}/{name}/statm', 'rb') as file:
          memory += int(file.read().split()[1]) * page
  return processes, memory


def descendants(pid: int) -> Iterator[int]:
  """All processes below that one."""
  children: dict[int, list[int]] = {}
  for name in os.listdir('/proc'):
    if name.isdigit():
      with contextlib.suppress(OSError), open(f'/proc/{name}/stat', 'rb') as file:
        parent = int(file.read().rpartition(b')')[2].split()[1])
        children.setdefault(parent, []).append(int(name))
  found = [pid]
  for process in found:
    found += children.get(process, [])
  yield from found[1:]


def changed_files(lower: str, upper: str) -> Iterator[str]:
  """Files of PROGRAMS that the upper layer of an overlay removes or replaces by others, and files that decide what the loader loads."""
  for name in LOADER_FILES:
    if _differs(lower, upper, name):
      yield name
  for top in PROGRAMS:
    pending = [top]
    while pending:
      name = pending.pop()
      kind = _kind(f'{upper}/{name}')
      original = _kind(f'{lower}/{name}')
      # `usr` may have become a link: then it is no folder of the upper layer, and its parent is reported here.
      parent = name.partition('/')[0]
      if '/' in name and _kind(f'{upper}/{parent}') not in (None, stat.S_IFDIR):
        yield parent
        break
      if kind is None or original is None:
        continue
      if kind == stat.S_IFDIR == original:
        with contextlib.suppress(OSError):
          if os.getxattr(f'{upper}/{name}', 'trusted.overlay.opaque', follow_symlinks=False) == b'y':
            yield name
            continue
        pending += [f'{name}/{entry}' for entry in os.listdir(f'{upper}/{name}')]
      elif _differs(lower, upper, name):
        yield name


def _differs(lower: str, upper: str, name: str) -> bool:
  kind, original = _kind(f'{upper}/{name}'), _kind(f'{lower}/{name}')
  if kind is None or kind == original == stat.S_IFDIR:
    return False
  if kind != original:
    return True
  if kind == stat.S_IFLNK:
    return os.readlink(f'{upper}/{name}') != os.readlink(f'{lower}/{name}')
  if kind != stat.S_IFREG or os.lstat(f'{upper}/{name}').st_size != os.lstat(f'{lower}/{name}').st_size:
    return True
  with open(f'{upper}/{name}', 'rb') as new, open(f'{lower}/{name}', 'rb') as old:
    return new.read() != old.read()


def _kind(path: str) -> int | None:
  try:
    return stat.S_IFMT(os.lstat(path).st_mode)
  except OSError:
    return None


# Control groups.


def make_group(parent: str, name: str, limits: dict[str, int]) -> str:
  """A control group (version 2) with limits on memory and processes; groups of jails that are dead are removed. Raises OSError."""
  remove_dead_groups(parent)
  path = f'{parent}/{name}'
  os.mkdir(path)
  for file, value in (('memory.max', limits['memory_bytes']), ('memory.swap.max', 0), ('pids.max', limits['processes'] + SPARE)):
    if os.path.exists(f'{path}/{file}'):
      _write(f'{path}/{file}', str(value))
  return path


def remove_dead_groups(parent: str) -> None:
  """Removes what a killed jail could not."""
  for name in os.listdir(parent):
    owner = name.removeprefix('mempi_jax.')
    if owner != name and owner.isdigit() and not os.path.exists(f'/proc/{owner}'):
      with contextlib.suppress(OSError):
        os.rmdir(f'{parent}/{name}')


# Helpers.


def _call(name: str, *arguments: Any) -> int:
  """A function of the C library that returns -1 on failure. Raises OSError with its name."""
  result = getattr(_libc, name)(*arguments)
  if result == -1:
    error = ctypes.get_errno()
    raise OSError(error, f'{name}{arguments}: {os.strerror(error)}')
  return result


def _signal(pid: int, number: signal.Signals) -> None:
  with contextlib.suppress(ProcessLookupError):
    os.kill(pid, number)


def _kill_all(pid: int) -> None:
  """Kills a process and all below it: stopped first, parents before their children, so that nothing is forked or goes on meanwhile."""
  stopped: dict[int, None] = {}
  for _ in range(10):
    new = [process for process in [pid, *descendants(pid)] if process not in stopped]
    if not new:
      break
    for process in new:
      stopped[process] = None
      _signal(process, signal.SIGSTOP)
  for process in stopped:
    _signal(process, signal.SIGKILL)


def _write(path: str, text: str) -> None:
  with open(path, 'w') as file:
    file.write(text)


def _memory_file(data: bytes) -> int:
  file = os.memfd_create('mempi_jax')
  os.write(file, data)
  os.lseek(file, 0, os.SEEK_SET)
  return file


def _expect_dot(answer: bytes) -> None:
  if answer != b'.':
    raise OSError(f'no user namespace: {answer.decode("utf-8", "replace").lstrip("!")}')


# The conversation with the caller.


def main(descriptor: int, caller: int) -> None:
  """Answers requests until the caller hangs up or dies."""
  connection = socket.socket(fileno=descriptor)
  ended = os.pidfd_open(caller)
  poll = select.poll()
  poll.register(connection, select.POLLIN)
  poll.register(ended, select.POLLIN)
  jail = None
  try:
    while True:
      events = poll.poll(100)
      if jail:
        jail.reap()
        jail.watch()
      if not events:
        continue
      if any(ready == ended for ready, _ in events):
        return
      data, descriptors, _, _ = socket.recv_fds(connection, 1 << 18, 8)
      if not data:
        return
      request = json.loads(data)
      try:
        name = request.pop('request')
        if name == 'configure':
          jail, answer = Jail(request, ended), {}
        elif name == 'shell':
          answer = jail.shell(descriptors=descriptors, **request)
        else:
          answer = getattr(jail, name)(**request) or {}
      except Exception as error:  # noqa: BLE001  the caller gets it as a SandboxError
        answer = {'error': f'{type(error).__name__}: {error}'}
      finally:
        for number in descriptors:
          os.close(number)
      connection.send(json.dumps(answer).encode())
  finally:
    if jail:
      jail.stop()
      if jail.group:
        for _ in range(100):
          with contextlib.suppress(OSError):
            os.rmdir(jail.group)
            break
          time.sleep(0.01)


if __name__ == '__main__':
  main(int(sys.argv[1]), int(sys.argv[2]))
