"""What the hosts of tests/runtime/test_hosts.py do: python hosts_program.py SCENARIO HOST COORDINATOR. It computes nothing."""

import argparse
import os
import resource
import signal
import sys
import time
from pathlib import Path

from ml_collections import ConfigDict

from mempi_jax.config import ConfigError
from mempi_jax.runtime import files, hosts, preemption, workdir

scenario, me, coordinator = sys.argv[1], int(sys.argv[2]), sys.argv[3]
config = ConfigDict({'seed': 1, 'stage2': {'updates': 3}})
parsed = argparse.Namespace(allow=())


def raised(function, kind):
  """The message of what a function raises."""
  try:
    function()
  except kind as error:
    return str(error)
  raise AssertionError('nothing was raised')


def exchange():
  assert (hosts.count(), hosts.index(), hosts.is_first(), hosts.name()) == (2, me, me == 0, f'host {me} of 2')
  assert hosts.gather({'host': me}) == [{'host': 0}, {'host': 1}]

  # One does it, all get it; what cannot be pickled stays on its host.
  assert hosts.broadcast(lambda: [os.getpid()]) == hosts.gather([os.getpid()])[0]
  called = []
  assert hosts.broadcast(lambda: called.append(1)) is None and len(called) == (me == 0)

  def refuse(error):
    raise error

  assert raised(lambda: hosts.broadcast(lambda: refuse(ValueError('no such game'))), ValueError) == 'no such game'
  assert raised(lambda: hosts.broadcast(lambda: refuse(FileNotFoundError(2, 'gone', 'bank'))), FileNotFoundError) == "[Errno 2] gone: 'bank'"
  assert raised(lambda: hosts.broadcast(lambda: refuse(preemption.Preempted())), preemption.Preempted) == '143'

  # Shares: all results in order, nothing twice; neighbours that belong together on one host; fewer items than hosts.
  shares = []
  double = lambda part: shares.append(list(part)) or [2 * item for item in part]
  assert hosts.spread(double, range(7)) == [0, 2, 4, 6, 8, 10, 12]
  assert shares == [[0, 1, 2]] if me == 0 else [[3, 4, 5, 6]]
  host_of = lambda part: [me for _ in part]
  assert hosts.spread(host_of, 'aaaaabb', same=lambda letter: letter) == [0, 0, 0, 0, 0, 1, 1]
  assert hosts.spread(host_of, [5]) == [1] and hosts.spread(host_of, []) == []

  # One is asked to end: all end at the same place, and can go on exchanging.
  def play(part):
    if me == 1:
      raise preemption.Preempted
    return part

  raised(lambda: hosts.spread(play, range(4)), preemption.Preempted)

  # What differs is an error on both.
  differ = lambda first, own: [f'seed is {first} there, {own} here'] if first != own else []
  hosts.check_alike('seeds', 3, differ)
  assert raised(lambda: hosts.check_alike('seeds', me, differ), hosts.HostsError) == 'host 0 and host 1 have different seeds: seed is 0 there, 1 here'

  # Many megabytes, which signs of life go between.
  for value, size in zip(hosts.gather(os.urandom(15_000_000 + me)), (15_000_000, 15_000_001), strict=True):
    assert len(value) == size

  # Hosts at different places do not take each other's values.
  here = lambda: hosts.gather(1)
  there = lambda: hosts.gather(2)
  message = raised(here if me == 0 else there, hosts.HostsError)
  assert 'the hosts have parted ways' in message and f'host {me} at hosts_program.py:' in message

  assert 'they share out 3, 4 things' in raised(lambda: hosts.spread(double, range(3 + me)), hosts.HostsError)

  # What was read is removed: a run of weeks does not fill the coordinator's memory.
  hosts.barrier()
  left = hosts._link.client.key_value_dir_get_bytes('mempi/gather/')
  assert len(left) <= 4, [name for name, _ in left]

  # SIGTERM to one of them is known to the other within two signs of life.
  preemption.listen()
  hosts.barrier()
  if me == 1:
    os.kill(os.getpid(), signal.SIGTERM)
  for _ in range(100):
    if preemption.requested():
      break
    time.sleep(0.1)
  assert preemption.requested()


def unlike():
  """What the hosts run differs, or the folder that they run it in."""
  workdir.check_hosts_alike(parsed, config)
  check = lambda: raised(lambda: workdir.check_hosts_alike(parsed, config), hosts.HostsError)

  other = ConfigDict({'seed': 1, 'stage2': {'updates': 3 + me}})
  message = raised(lambda: workdir.check_hosts_alike(parsed, other), hosts.HostsError)
  assert message == 'host 0 and host 1 have different configs: stage2.updates is 3 there, 4 here', message

  version = workdir.package_version
  workdir.package_version = lambda name: f'0.3.{me}' if name == 'optax' else version(name)
  assert check() == "host 0 and host 1 have different versions: optax is '0.3.0' there, '0.3.1' here"
  workdir.package_version = version

  sys.argv[0] = ('train.py', 'collect.py')[me]
  assert check() == "host 0 and host 1 have different commands: command is 'train' there, 'collect' here"
  sys.argv[0] = 'train.py'
  parsed.allow = ('seed',) * me
  assert check() == "host 0 and host 1 have different commands: allow is [] there, ['seed'] here"

  # The other host has a folder of its own by that name, with the same config in it: a disk of each machine.
  shared, own = Path(sys.argv[4]) / 'shared', Path(sys.argv[4]) / f'disk_{me}'
  workdir.IN_SIGHT = 1.0
  assert workdir.open_workdir(shared, config, None) == shared
  own.mkdir()
  (own / 'config.json').write_text((shared / 'config.json').read_text())
  message = raised(lambda: workdir.open_workdir(own, config, None), ConfigError)
  assert message == f'host 1 does not see the working folder {own} of host 0: it must be on a file system that they share', message

  # Refused on the first host, refused on all.
  message = raised(lambda: workdir.open_workdir(shared, ConfigDict({'seed': 2}), None), ConfigError)
  assert 'seed is 1 there, 2 here' in message


def logs():
  """What each host prints, after its log is open."""
  hosts.open_log(Path(sys.argv[4]))
  print(f'played by {me}')
  print(f'a warning of {me}', file=sys.stderr)
  print('\rhalf way', end='', file=sys.stderr)
  hosts.barrier()
  # The log's disk is full: what is said still reaches people.
  resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
  print('error: the disk is full', file=sys.stderr)


def behind():
  """The first host writes a log while the other one opens it, and reads what is there."""
  from mempi_jax.runtime.metrics import MetricWriter

  log, metrics = Path(sys.argv[4]) / 'answers.jsonl', Path(sys.argv[4]) / 'metrics.jsonl'
  if me == 0:
    log.write_text('{"key": 1}\n{"key"')
    metrics.write_text('{"step": 0}\n{"step": 1}\n{"st')
  hosts.barrier()
  if me == 1:
    assert list(files.read_jsonl(log, growing=True)) == [{'key': 1}]
    MetricWriter(Path(sys.argv[4]), 1).close()
    assert metrics.read_text().endswith('{"st')  # not its to cut
  hosts.barrier()
  with MetricWriter(Path(sys.argv[4]), 1) as writer:
    writer.write(1, {'train/loss': 2.0})
  hosts.barrier()
  assert list(files.read_jsonl(metrics)) == [{'step': 0}, {'step': 1, 'train/loss': 2.0}]

  # What the first one reads of a log that was begun is what all go on from.
  expected = [1, 2]
  started = files.read_started(log, expected, lambda record: record['key'])
  assert started == [{'key': 1}]
  with files.JsonlLog(log) as file:
    file.append({'key': 2})
  files.write_json(log.with_name('other.json'), {'by': me})
  files.mark_done(log.parent, {'by': 0})
  assert list(files.read_jsonl(log)) == [{'key': 1}, {'key': 2}] and files.read_json(log.with_name('other.json')) == {'by': 0}
  assert files.read_done(log.parent) == {'by': 0}


def fail():
  """One of them has an error of its own."""
  if me == int(sys.argv[4]):
    hosts.fail(OSError('the disk is full'))
  hosts.gather(me)


def both_fail():
  """Both find the same error, and neither is the other's reason."""
  hosts.fail(ValueError('no such game'))


def wait():
  """Says that it is there, for one to be killed."""
  print('here', flush=True)
  time.sleep(60)


def late():
  """One of them never comes."""
  if me == 1:
    time.sleep(60)
  hosts.gather(me)


def stuck():
  """One of them has devices that never answer."""
  with hosts.watch('stage 2, step 7'):
    time.sleep(60 if me == 0 else 0)
  time.sleep(60)


def broken():
  """The devices of one of them lose their connection, and then the other turns out to be dead."""
  if me == 1:
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
  with hosts.watch('stage 2, step 7'):
    time.sleep(1)
    raise ValueError('UNKNOWN: Gloo all-reduce failed: Connection closed by peer')


# A machine that is busy may be silent for seconds: a short time only where a host is to be found dead.
dead_after = 3.0 if scenario in ('wait', 'broken', 'fail') else 60.0
hosts.connect('2', me, coordinator, dead_after=dead_after, timeout=6.0 if scenario in ('late', 'stuck') else 90.0)
hosts.barrier()
globals()[scenario]()
hosts.disconnect()
assert hosts.count() == 1 and hosts.gather(5) == [5]
print('fine')
