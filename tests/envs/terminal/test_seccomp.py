"""The filter of system calls, run here by a small interpreter: what it refuses, on both architectures."""

import errno
import struct

import pytest

from mempi_jax.envs.terminal.seccomp import REFUSED, filter_program

ALLOW, ERROR, KILL = 0x7FFF0000, 0x00050000, 0x80000000
X86, ARM = 0xC000003E, 0xC00000B7


def decide(program, architecture, number, *arguments):
  """What the kernel would do: classic BPF over struct seccomp_data."""
  data = struct.pack('<iIQ6Q', number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
  lines = [struct.unpack_from('=HBBI', program, place) for place in range(0, len(program), 8)]
  place = accumulator = 0
  while True:
    code, if_true, if_false, value = lines[place]
    place += 1
    if code == 0x20:
      accumulator = struct.unpack_from('<I', data, value)[0]
    elif code == 0x06:
      return value
    else:
      holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: accumulator & value != 0}[code]
      place += if_true if holds else if_false


@pytest.mark.parametrize('machine, architecture, column', [('x86_64', X86, 0), ('aarch64', ARM, 1)])
def test_what_is_listed_is_refused_and_nothing_else(machine, architecture, column):
  program = filter_program(machine)
  assert len(program) // 8 <= 4096
  refused = {numbers[column] for numbers in REFUSED.values()} - {None}
  special = {'x86_64': {56, 16, 41, 53}, 'aarch64': {220, 29, 198, 199}}[machine]
  for number in set(range(424)) - special:
    assert decide(program, architecture, number) == (ERROR | errno.EPERM if number in refused else ALLOW), number


@pytest.mark.parametrize('machine, architecture, clone, ioctl, socket', [('x86_64', X86, 56, 16, 41), ('aarch64', ARM, 220, 29, 198)])
def test_calls_that_depend_on_an_argument(machine, architecture, clone, ioctl, socket):
  program = filter_program(machine)
  refused = ERROR | errno.EPERM
  assert decide(program, architecture, clone, 0x01200011) == ALLOW  # fork
  assert decide(program, architecture, clone, 0x003D0F00) == ALLOW  # a thread
  for bit in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000, 0x80):
    assert decide(program, architecture, clone, bit | 17) == refused, hex(bit)
  assert decide(program, architecture, ioctl, 0, 0x5401) == ALLOW  # TCGETS
  assert decide(program, architecture, ioctl, 0, 0x5412) == refused
  assert decide(program, architecture, ioctl, 0, 0xABCD00005412) == refused  # the kernel looks at the lower half alone
  assert {family for family in range(50) if decide(program, architecture, socket, family) == ALLOW} == {1, 2, 10, 16}


def test_new_and_foreign_calls():
  program = filter_program('x86_64')
  unknown = ERROR | errno.ENOSYS
  assert decide(program, X86, 435) == unknown  # clone3: the C library then uses clone, whose flags can be seen
  assert [decide(program, X86, number) for number in (425, 428, 434, 437, 451, 600)] == [unknown, unknown, ALLOW, ALLOW, unknown, unknown]
  assert decide(program, X86, 0x40000000 | 39) == unknown  # x32
  assert decide(program, 0x40000003, 20) == KILL  # i386
  assert decide(program, ARM, 20) == KILL


def test_other_machines_have_none():
  with pytest.raises(OSError, match='riscv64'):
    filter_program('riscv64')
