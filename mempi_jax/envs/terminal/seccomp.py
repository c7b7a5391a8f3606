"""The system calls that nothing in a sandbox needs, as a seccomp program for bubblewrap's `--seccomp`.

A list of what is refused: what loads code into the kernel, makes namespaces or mounts, looks into other processes, has a long history of
holes, or hides memory from whoever counts it. Every call that is newer than the list is refused as unknown, save a few harmless ones.
Linux on x86-64 and on ARM64; the numbers are the kernel's (`asm/unistd.h`).
"""

from __future__ import annotations

import errno
import platform
import struct

# Offsets in struct seccomp_data.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000

_AUDIT_ARCHITECTURE = {'x86_64': 0xC000003E, 'aarch64': 0xC00000B7}

# name -> (x86-64, ARM64); None where the architecture has no such call.
REFUSED: dict[str, tuple[int | None, int | None]] = {
  # namespaces, mounts, roots
  'unshare': (272, 97), 'setns': (308, 268), 'mount': (165, 40), 'umount2': (166, 39), 'pivot_root': (155, 41),
  'name_to_handle_at': (303, 264), 'open_by_handle_at': (304, 265), 'nfsservctl': (180, 42),
  'quotactl': (179, 60), 'swapon': (167, 224), 'swapoff': (168, 225), 'fanotify_init': (300, 262),
  # other processes
  'ptrace': (101, 117), 'process_vm_readv': (310, 270), 'process_vm_writev': (311, 271), 'kcmp': (312, 272),
  # the kernel itself
  'init_module': (175, 105), 'finit_module': (313, 273), 'delete_module': (176, 106), 'kexec_load': (246, 104),
  'kexec_file_load': (320, 294), 'reboot': (169, 142), 'syslog': (103, 116), 'acct': (163, 89), 'iopl': (172, None),
  'ioperm': (173, None), 'bpf': (321, 280), 'perf_event_open': (298, 241), 'userfaultfd': (323, 282), 'modify_ldt': (154, None),
  'lookup_dcookie': (212, 18), 'uselib': (134, None), 'personality': (135, 92), 'vhangup': (153, 58),
  # keys
  'add_key': (248, 217), 'request_key': (249, 218), 'keyctl': (250, 219),
  # the clock and the name of the machine
  'settimeofday': (164, 170), 'clock_settime': (227, 112), 'adjtimex': (159, 171), 'clock_adjtime': (305, 266),
  'sethostname': (170, 161), 'setdomainname': (171, 162),
  # memory that belongs to no process
  'memfd_create': (319, 279), 'shmget': (29, 194), 'msgget': (68, 186), 'semget': (64, 190), 'mq_open': (240, 180),
  'io_setup': (206, 0), 'mbind': (237, 235), 'set_mempolicy': (238, 237), 'migrate_pages': (256, 238), 'move_pages': (279, 239),
}  # fmt: skip

_CLONE, _IOCTL, _SOCKET, _SOCKETPAIR = (56, 220), (16, 29), (41, 198), (53, 199)
_NEW_NAMESPACES = 0x7E020080  # the CLONE_NEW* bits: time, mount, cgroup, uts, ipc, user, pid, net
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
_SOCKET_FAMILIES = (1, 2, 10, 16)  # unix, IPv4, IPv6, netlink: of a network without any device but its loopback

# From here on the numbers are the same on both architectures: pidfd_open, close_range, openat2, faccessat2, epoll_pwait2, futex_waitv, fchmodat2.
_NEWER = 424
_NEWER_ALLOWED = (424, 434, 436, 437, 439, 441, 449, 452)  # 424: pidfd_send_signal


def filter_program(machine: str | None = None) -> bytes:
  """The filter as an array of struct sock_filter. A refused call fails with EPERM, an unknown one with ENOSYS.

  Raises:
    OSError: a machine (as platform.machine() names it) for which no filter is written.
  """
  machine = machine or platform.machine()
  if machine not in _AUDIT_ARCHITECTURE:
    raise OSError(errno.ENOSYS, f'no filter of system calls for {machine}: expected one of {", ".join(_AUDIT_ARCHITECTURE)}')
  column = list(_AUDIT_ARCHITECTURE).index(machine)
  refused, unknown = _ERROR | errno.EPERM, _ERROR | errno.ENOSYS
  program = [_load(_ARCHITECTURE), _jump(_JUMP_EQUAL, _AUDIT_ARCHITECTURE[machine], 1, 0), _return(_KILL), _load(_NUMBER)]
  program += [_jump(_JUMP_EQUAL, number, len(_NEWER_ALLOWED) - i, 0) for i, number in enumerate(_NEWER_ALLOWED)]
  program += [_jump(_JUMP_AT_LEAST, _NEWER, 1, 2), _return(_ALLOW), _return(unknown)]
  for numbers in REFUSED.values():
    if numbers[column] is not None:
      program += [_jump(_JUMP_EQUAL, numbers[column], 0, 1), _return(refused)]
  program += _on_argument(_CLONE[column], 0, [_jump(_JUMP_ANY_BIT, _NEW_NAMESPACES, 0, 1), _return(refused)])
  program += _on_argument(_IOCTL[column], 1, [line for code in _TERMINAL_INPUT for line in (_jump(_JUMP_EQUAL, code, 0, 1), _return(refused))])
  for call in (_SOCKET, _SOCKETPAIR):
    families = [_jump(_JUMP_EQUAL, family, len(_SOCKET_FAMILIES) - i, 0) for i, family in enumerate(_SOCKET_FAMILIES)]
    program += _on_argument(call[column], 0, [*families, _return(refused)])
  return b''.join([*program, _return(_ALLOW)])


def _on_argument(number: int, argument: int, lines: list[bytes]) -> list[bytes]:
  """`lines` see the lower half of that argument of that call; the call is allowed where they come to no end."""
  # little-endian: the lower half comes first
  lines = [_load(_ARGUMENTS + 8 * argument), *lines, _return(_ALLOW)]
  return [_jump(_JUMP_EQUAL, number, 0, len(lines)), *lines]


def _load(offset: int) -> bytes:
  return struct.pack('=HBBI', _LOAD, 0, 0, offset)


def _jump(code: int, value: int, if_true: int, if_false: int) -> bytes:
  return struct.pack('=HBBI', code, if_true, if_false, value)


def _return(value: int) -> bytes:
  return struct.pack('=HBBI', _RETURN, 0, 0, value)
