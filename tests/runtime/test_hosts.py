"""Hosts exchange what they found, and none waits for one that died, failed, or is stuck. Two processes, which compute nothing."""

import concurrent.futures
import signal
import socket
from pathlib import Path

import pytest

from mempi_jax.runtime import hosts
from tests import two_hosts

PROGRAM = str(Path(__file__).with_name('hosts_program.py'))
RESTART = 'What was saved is whole: start all hosts again, and the run goes on'


def begin(scenario, *more):
  return two_hosts.start_two(lambda host, address: [PROGRAM, scenario, str(host), address, *more])


def strike(number, host):
  """Both are there; then one gets a signal. The other one's end, in seconds from the signal on."""
  processes = begin('wait')
  try:
    for process in processes:
      assert process.stdout.readline() == 'here\n'
    processes[host].send_signal(number)
    (other,) = two_hosts.wait([processes[1 - host]], timeout=60)
    return other
  finally:
    processes[host].kill()
    processes[1 - host].kill()


@pytest.fixture(scope='module')
def ends(tmp_path_factory):
  """Every scenario, all at the same time: their processes hardly do anything but wait."""
  folder = tmp_path_factory.mktemp('hosts')
  for name in ('unlike', 'logs', 'behind'):
    (folder / name).mkdir()
  scenarios = {
    'exchange': lambda: two_hosts.wait(begin('exchange')),
    'unlike': lambda: two_hosts.wait(begin('unlike', str(folder / 'unlike'))),
    'logs': lambda: two_hosts.wait(begin('logs', str(folder / 'logs'))),
    'behind': lambda: two_hosts.wait(begin('behind', str(folder / 'behind'))),
    'abort': lambda: two_hosts.wait([two_hosts.start(['-c', ABORT, two_hosts.free_address()])]),
    'alone 0': lambda: two_hosts.wait([two_hosts.start(['-c', CONNECT, '0', two_hosts.free_address()])]),
    'alone 1': lambda: two_hosts.wait([two_hosts.start(['-c', CONNECT, '1', two_hosts.free_address()])]),
    'fail 0': lambda: two_hosts.wait(begin('fail', '0')),
    'fail 1': lambda: two_hosts.wait(begin('fail', '1')),
    'both fail': lambda: two_hosts.wait(begin('both_fail')),
    'late': lambda: two_hosts.wait(begin('late')),
    'stuck': lambda: two_hosts.wait(begin('stuck')),
    'broken': lambda: two_hosts.wait(begin('broken')),
    'kill 0': lambda: strike(signal.SIGKILL, 0),
    'kill 1': lambda: strike(signal.SIGKILL, 1),
    'stop 0': lambda: strike(signal.SIGSTOP, 0),
    'stop 1': lambda: strike(signal.SIGSTOP, 1),
  }
  with concurrent.futures.ThreadPoolExecutor(len(scenarios)) as threads:
    found = dict(zip(scenarios, threads.map(lambda play: play(), scenarios.values()), strict=True))
  return found | {'folder': folder}


def test_exchanges(ends):
  for end in ends['exchange']:
    assert end.status == 0 and end.out == 'fine\n', end.err


def test_hosts_that_are_not_alike(ends):
  for end in ends['unlike']:
    assert end.status == 0 and end.out == 'fine\n', end.err
  assert not list((ends['folder'] / 'unlike').rglob('*.shared'))


def test_the_first_host_writes_while_others_read(ends):
  for end in ends['behind']:
    assert end.status == 0 and end.out == 'fine\n', end.err


def test_each_host_has_a_log(ends):
  first, second = ends['logs']
  assert first.status == second.status == 0, first.err + second.err
  assert first.out == 'played by 0\nfine\n' and second.out == 'fine\n'  # the last word comes after the log is closed
  assert first.err == 'a warning of 0\n\nhalf wayerror: the disk is full\n'  # a carriage return is read as a line's end
  assert second.err == 'error: the disk is full\n'
  for host in (0, 1):
    lines = (ends['folder'] / 'logs' / 'hosts' / f'{host}.log').read_text().splitlines()
    assert lines[0].startswith(f'--- host {host} of 2, ') and lines[1:] == [f'played by {host}', f'a warning of {host}']


@pytest.mark.parametrize('host', [0, 1])
def test_an_error_of_one_ends_the_other(ends, host):
  own, other = ends[f'fail {host}'][host], ends[f'fail {host}'][1 - host]
  assert own.status == 2
  assert other.status == hosts.FAILED
  assert other.last == f'error: host {host} failed: the disk is full (this was host {1 - host}). {RESTART}'


def test_an_error_that_both_find_is_their_own(ends):
  assert [end.status for end in ends['both fail']] == [2, 2]
  assert not any('failed' in end.err for end in ends['both fail'])


@pytest.mark.parametrize('host', [0, 1])
@pytest.mark.parametrize('how', ['kill', 'stop'])
def test_a_host_that_died_or_hangs_ends_the_other(ends, how, host):
  """The first one is the coordinator, too; one that hangs keeps its connections open."""
  end = ends[f'{how} {host}']
  assert end.status == hosts.FAILED, end.err
  assert end.last.startswith(f'error: host {host}') and end.last.endswith(RESTART)
  why = {'kill 0': 'the coordinator, is gone', 'stop 0': 'the coordinator, has not answered for 3 s'}
  assert why.get(f'{how} {host}', 'has given no sign of life for 3 s') in end.last
  assert end.seconds < 15  # dead_after 3 s, and a machine that is busy


def test_a_host_that_never_comes(ends):
  waiting, absent = ends['late']
  assert waiting.status == absent.status == hosts.FAILED
  assert 'host 1 did not come to exchange 2 within 6 s, though it is alive (this was host 0)' in waiting.err
  assert 'host 0 failed: host 1 did not come to exchange 2' in absent.last


def test_devices_that_never_answer(ends):
  stuck, other = ends['stuck']
  assert stuck.status == other.status == hosts.FAILED
  assert 'stage 2, step 7 has taken longer than 6 s: a host is stuck, or hosts.timeout is too short (this was host 0, in stage 2, step 7)' in stuck.err
  assert 'host 0 failed: stage 2, step 7 has taken longer than 6 s' in other.last


def test_a_broken_connection_is_told_by_who_died(ends):
  end, dead = ends['broken']
  assert dead.status == -signal.SIGKILL
  assert end.status == hosts.FAILED
  assert 'host 1 has given no sign of life for 3 s (this was host 0, in stage 2, step 7)' in end.last


CONNECT = """
import sys
from mempi_jax.runtime import hosts
hosts.connect('2', int(sys.argv[1]), sys.argv[2], dead_after=3.0, timeout=3.0)
"""


ABORT = """
import os, sys
from mempi_jax.runtime import hosts
hosts.connect('1', 0, sys.argv[1], dead_after=3.0, timeout=3.0)
assert hosts.count() == 1
print('here', flush=True)
os.abort()
"""


@pytest.mark.parametrize('host', [0, 1])
def test_a_host_that_was_never_started(ends, host):
  (end,) = ends[f'alone {host}']
  assert end.status == hosts.FAILED
  assert end.last.startswith(f'error: the hosts did not find each other within 3 s (--hosts=2, --host={host}, --coordinator=127.0.0.1:')
  assert end.last.endswith(f'was each of them started, and can it reach the first? {RESTART}')


def test_what_aborts_for_another_reason_does(ends):
  """Alone, and after the hosts have parted."""
  (end,) = ends['abort']
  assert end.status == -signal.SIGABRT and end.out == 'here\n' and 'error' not in end.err


# One host, and arguments.


def test_one_host_is_nothing_special():
  assert (hosts.count(), hosts.index(), hosts.is_first()) == (1, 0, True)
  value = object()
  assert hosts.gather(value) == [value] and hosts.broadcast(lambda: value) is value
  assert hosts.spread(lambda part: [item + 1 for item in part], [1, 2]) == [2, 3]
  with hosts.watch('nothing'):
    hosts.barrier()
  hosts.fail(ValueError('said elsewhere'))
  hosts.check_alike('configs', 1, lambda first, own: ['never asked'] if first != own else [])
  hosts.disconnect()
  with pytest.raises(ZeroDivisionError):
    hosts.broadcast(lambda: 1 / 0)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('', 0, None), '--hosts is missing'),
    (('', None, 'a:1'), '--hosts is missing'),
    (('two', 0, 'a:1'), "--hosts=two: expected a number of hosts, or 'auto'"),
    (('0', 0, 'a:1'), '--hosts=0: expected a number of hosts'),
    (('2', None, 'a:1'), 'needs --host from 0 to 1, found None'),
    (('2', 2, 'a:1'), 'needs --host from 0 to 1, found 2'),
    (('2', 1, None), 'and --coordinator=ADDRESS:PORT, found None'),
  ],
)
def test_impossible_numbers(arguments, message):
  with pytest.raises(hosts.HostsError) as error:
    hosts.connect(*arguments, dead_after=60.0, timeout=60.0)
  assert message in str(error.value)
  assert hosts.count() == 1


def test_a_time_that_no_sign_of_life_can_keep():
  with pytest.raises(hosts.HostsError, match='hosts.dead_after is 1 s: expected at least 3, there is a sign of life every 1 s'):
    hosts.connect('2', 0, '127.0.0.1:1', dead_after=1.0, timeout=60.0)


@pytest.mark.parametrize('address', ['127.0.0.1:{}', '[::1]:{}'])
def test_a_port_that_is_taken(address):
  with socket.create_server(('', 0)) as taken:
    address = address.format(taken.getsockname()[1])
    with pytest.raises(hosts.HostsError, match='the first host cannot listen at --coordinator=.*Address already in use'):
      hosts.connect('2', 0, address, dead_after=60.0, timeout=60.0)
  with pytest.raises(hosts.HostsError, match='cannot listen at --coordinator=nowhere'):
    hosts.connect('2', 0, 'nowhere', dead_after=60.0, timeout=60.0)


@pytest.mark.parametrize('parts', [1, 2, 3, 8])
@pytest.mark.parametrize('items', ['', 'a', 'abcdef', 'aabbbbcc', 'aaaaaaaa', 'abbbbbbbbbbc'])
def test_stretches_cover_all_and_cut_nothing_that_belongs_together(items, parts):
  found = hosts.stretches(items, parts, same=lambda letter: letter)
  assert len(found) == parts and ''.join(items[start:end] for start, end in found) == items
  for letter in set(items):
    assert sum(letter in items[start:end] for start, end in found) == 1
  lengths = [end - start for start, end in hosts.stretches(items, parts)]
  assert sum(lengths) == len(items) and max(lengths) - min(lengths) <= 1
