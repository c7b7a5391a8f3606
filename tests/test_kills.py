"""A run survives everything: killed at any moment, asked to end, a host lost, a disk that is full, it goes on and ends with the same files.

What was measured (seconds until a process ended, where kills hit) is printed: -s shows it.
"""

import collections
import json
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest

from mempi_jax.runtime import files, hosts
from mempi_jax.runtime.metrics import read_metrics
from mempi_jax.runtime.workdir import CACHE_VARIABLE
from tests import two_hosts
from tests.small_run import arguments

pytestmark = pytest.mark.slow

DEAD_AFTER = 10.0  # seconds: two hosts on a machine that may be busy
EVERY_STEP = {'stage1__checkpoint_every': 1, 'stage2__checkpoint_every': 1, 'stage2__updates': 5, 'hosts__dead_after': DEAD_AFTER}
SAME = (
  'bank/episodes.jsonl', 'bank/bank.jsonl', 'bank/DONE.json', 'stage1/metrics.jsonl', 'stage1/DONE.json', 'stage1/policy/model.safetensors',
  'stage2/abstained.jsonl', 'stage2/probes.jsonl', 'stage2/metrics.jsonl', 'stage2/DONE.json', 'stage2/policy/model.safetensors',
  'config.json', 'manifest.json',
)  # fmt: skip
EVALUATED = ('eval/episodes.jsonl', 'eval/base_runs.jsonl')
STEPS = 10  # of stage 2: five updates, a replay after each


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  """Compiled programs that all runs share: a start takes seconds."""
  return {CACHE_VARIABLE: str(tmp_path_factory.mktemp('compiled')), 'JAX_COMPILATION_CACHE_MAX_SIZE': '-1'}  # as users have it


@pytest.fixture(scope='module')
def collected(tmp_path_factory, cache):
  """A working folder with a bank."""
  workdir = tmp_path_factory.mktemp('collected')
  finish('collect', workdir, cache)
  return workdir


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory, collected, cache):
  """The run that nothing happened to, evaluated."""
  workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
  shutil.copytree(collected, workdir)
  finish('train', workdir, cache)
  finish('evaluate', workdir, cache)
  return workdir


@pytest.fixture(scope='module')
def undisturbed_hosts(tmp_path_factory, collected, cache):
  """The run of two hosts that nothing happened to."""
  workdir = tmp_path_factory.mktemp('undisturbed_hosts') / 'run'
  shutil.copytree(collected, workdir)
  for end in two_hosts.wait(two_hosts.start_main('train', arguments(workdir, **EVERY_STEP), **cache), 600):
    assert end.status == 0, end.err[-3000:]
  return workdir


def start(name, workdir, cache, *more):
  return two_hosts.start(['-m', f'mempi_jax.{name}', *arguments(workdir, **EVERY_STEP), *more], **cache)


def finish(name, workdir, cache, *more):
  (end,) = two_hosts.wait([start(name, workdir, cache, *more)], timeout=600)
  assert end.status == 0, end.err[-3000:]


def expect_same(found, expected, names=SAME):
  for name in names:
    assert (found / name).read_bytes() == (expected / name).read_bytes(), name
  for stage in ('stage1', 'stage2'):  # and what resume would need: the same cursor, estimates, groups to replay
    last = sorted((expected / stage / 'checkpoints').glob('[0-9]*'))[-1].relative_to(expected)
    mine, other = (files.read_json(folder / last / 'checkpoint.json') for folder in (found, expected))
    assert mine['extra'] == other['extra'] and mine['metrics'] == other['metrics']


def steps_of(workdir, stage):
  """Steps whose metrics are written."""
  return len(read_metrics(workdir / stage)) - 1 if (workdir / stage / 'metrics.jsonl').exists() else -1


def wait_until(process, condition, timeout=300.0):
  """Waits for a condition; False where the processes ended before it came."""
  processes = process if isinstance(process, list) else [process]
  began = time.monotonic()
  while not condition():
    if any(one.poll() is not None for one in processes):
      return False
    assert time.monotonic() - began < timeout, 'it never came'
    time.sleep(0.005)
  return True


def reached(workdir, stage, steps):
  """Whether a stage has made so many steps. A line may be half there when it is read."""
  try:
    return steps_of(workdir, stage) >= steps
  except ValueError:
    return False


def report(text):
  print(f'\n{text}', file=sys.__stdout__, flush=True)


# SIGKILL.


def place_of(workdir):
  """Where a run was when it was killed."""
  saving = any(path for stage in ('stage1', 'stage2') for path in (workdir / stage / 'checkpoints').glob('.*.tmp'))
  if not (workdir / 'stage1' / 'DONE.json').exists():
    where = f'stage 1, step {steps_of_killed(workdir, "stage1")}'
  elif not (workdir / 'stage2' / 'metrics.jsonl').exists():
    where = 'before stage 2'
  elif not (workdir / 'stage2' / 'DONE.json').exists():
    where = f'stage 2, step {steps_of_killed(workdir, "stage2")}'
  else:
    where = 'after stage 2'
  return f'{where}{", in a save" if saving else ""}'


def steps_of_killed(workdir, stage):
  path = workdir / stage / 'metrics.jsonl'
  return max(path.read_bytes().count(b'\n') - 1, 0) if path.exists() else 0


def test_killed_at_twenty_moments(tmp_path, collected, undisturbed, cache):
  """Four runs, each killed twice in stage 1 and three times in stage 2: after a step by chance, and a while by chance."""
  chance, kills = random.Random(7), []
  lengths = {stage: files.read_json(undisturbed / stage / 'timing.json') for stage in ('stage1', 'stage2')}
  for number in range(4):
    workdir = tmp_path / f'run_{number}'
    shutil.copytree(collected, workdir)
    moments = [('stage1', step) for step in sorted(chance.sample(range(6), 2))]
    moments += [('stage2', step) for step in sorted(chance.sample(range(STEPS), 3))]
    for stage, step in moments:
      process = start('train', workdir, cache)
      assert wait_until(process, lambda workdir=workdir, stage=stage, step=step: reached(workdir, stage, step)), process.communicate()[1][-3000:]
      time.sleep(chance.uniform(0.0, 2.0) * lengths[stage]['total'] / lengths[stage]['steps'])
      process.kill()
      process.communicate()
      kills.append(place_of(workdir))
    finish('train', workdir, cache)
    expect_same(workdir, undisturbed)
  report(f'SIGKILL at {len(kills)} moments: {"; ".join(kills)}')
  assert len(kills) == 20
  assert sum('stage 1' in place for place in kills) >= 4 and sum('stage 2, ' in place for place in kills) >= 8


@pytest.mark.parametrize('stage', ['stage1', 'stage2'])
def test_killed_while_a_checkpoint_is_written(tmp_path, collected, undisturbed, cache, stage):
  workdir, kills = tmp_path / 'run', []
  shutil.copytree(collected, workdir)
  for step in (1, 2, 4):
    process = start('train', workdir, cache)
    folder = workdir / stage / 'checkpoints'
    assert wait_until(process, lambda folder=folder, step=step: any(int(path.name[1:9]) >= step for path in folder.glob('.*.tmp')))
    process.kill()
    process.communicate()
    if any(folder.glob('.*.tmp')):  # else it was renamed in between
      kills.append(place_of(workdir))
  finish('train', workdir, cache)
  report(f'SIGKILL while a checkpoint was written: {"; ".join(kills)}')
  assert len(kills) >= 2
  expect_same(workdir, undisturbed)
  assert not any((workdir / stage / 'checkpoints').glob('.*'))  # what the killed ones left is removed


def test_killed_while_it_evaluates(tmp_path, undisturbed, cache):
  workdir = tmp_path / 'run'
  shutil.copytree(undisturbed, workdir, ignore=shutil.ignore_patterns('eval', 'results.json', 'compiled'))
  path = workdir / 'eval' / 'episodes.jsonl'
  for size in (1, 30_000, 90_000):
    process = start('evaluate', workdir, cache)
    assert wait_until(process, lambda size=size: path.exists() and path.stat().st_size > size)
    process.kill()
    process.communicate()
  finish('evaluate', workdir, cache)
  expect_same(workdir, undisturbed, EVALUATED)
  results = [json.loads((folder / 'results.json').read_text()) | {'wall_time_s': 0} for folder in (workdir, undisturbed)]
  assert results[0] == results[1]


# SIGTERM.

# Environments that take their time: an action is 50 ms.
SLOW = """
import sys, time
from mempi_jax import train
from mempi_jax.envs.alfworld.env import AlfworldEnv

step = AlfworldEnv.step

def slowly(self, action):
  time.sleep(0.05)
  return step(self, action)

AlfworldEnv.step = slowly
sys.argv[0] = 'train.py'
train.main(sys.argv[1:])
"""


def terminate(process, what):
  """SIGTERM; the process must have ended within 30 seconds, with its own status."""
  process.send_signal(signal.SIGTERM)
  (end,) = two_hosts.wait([process], timeout=60)
  report(f'SIGTERM during {what}: ended after {end.seconds:.1f} s')
  assert end.status == 143, end.err[-3000:]
  assert end.seconds < 30
  assert end.last == 'asked to end: everything up to here is saved, the same command goes on from here'
  return end


def checkpoints_of(workdir, stage):
  return sorted(int(path.name) for path in (workdir / stage / 'checkpoints').glob('[0-9]*'))


def test_asked_to_end_during_everything(tmp_path, undisturbed, cache):
  """One run: while it collects, in stage 1, while it plays for stage 2 with slow environments, between its updates, while it evaluates."""
  workdir = tmp_path / 'run'
  episodes = workdir / 'bank' / 'episodes.jsonl'

  process = start('train', workdir, cache)
  assert wait_until(process, lambda: episodes.exists() and episodes.stat().st_size > 2000)
  terminate(process, 'collect')
  whole = episodes.read_bytes()
  assert whole.endswith(b'\n') and not (workdir / 'bank' / 'DONE.json').exists()

  process = start('train', workdir, cache)
  assert wait_until(process, lambda: reached(workdir, 'stage1', 2))
  assert episodes.read_bytes().startswith(whole)  # nothing was played again
  terminate(process, 'stage 1')
  assert checkpoints_of(workdir, 'stage1')[-1] == steps_of(workdir, 'stage1')

  process = two_hosts.start(['-c', SLOW, *arguments(workdir, **EVERY_STEP)], **cache)
  assert wait_until(process, lambda: reached(workdir, 'stage2', 2))  # a replay is done: it plays
  time.sleep(1.0)
  terminate(process, 'a rollout of stage 2 with slow environments')
  assert checkpoints_of(workdir, 'stage2')[-1] == steps_of(workdir, 'stage2') == 2

  process = start('train', workdir, cache)
  assert wait_until(process, lambda: reached(workdir, 'stage2', 5))
  terminate(process, 'stage 2')
  assert checkpoints_of(workdir, 'stage2')[-1] == steps_of(workdir, 'stage2') < STEPS

  finish('train', workdir, cache)
  expect_same(workdir, undisturbed)

  process = start('evaluate', workdir, cache)
  played = workdir / 'eval' / 'episodes.jsonl'
  assert wait_until(process, lambda: played.exists() and played.stat().st_size > 2000)
  terminate(process, 'evaluate')
  finish('evaluate', workdir, cache)
  expect_same(workdir, undisturbed, EVALUATED)


def test_saves_what_no_checkpoint_holds_yet(tmp_path, collected, undisturbed, cache):
  """Checkpoints are far apart, environments live in processes: asked to end while it plays, it saves the last whole step."""
  workdir = tmp_path / 'run'
  shutil.copytree(collected, workdir)
  rare = ('--config.stage2.checkpoint_every=100', '--config.pool.workers=2', '--allow=stage2.checkpoint_every')
  process = start('train', workdir, cache, *rare)
  assert wait_until(process, lambda: reached(workdir, 'stage2', 3))
  assert checkpoints_of(workdir, 'stage2') == []
  terminate(process, 'stage 2, no checkpoint yet, with a pool')
  assert checkpoints_of(workdir, 'stage2') == [steps_of(workdir, 'stage2')]
  finish('train', workdir, cache, '--allow=stage2.checkpoint_every')
  assert {change['field'] for change in files.read_jsonl(workdir / 'changes.jsonl')} == {'stage2.checkpoint_every', 'pool.workers'}
  expect_same(workdir, undisturbed)


# Two hosts.


def start_hosts(workdir, cache):
  return two_hosts.start_main('train', arguments(workdir, **EVERY_STEP), **cache)


def test_a_host_is_lost_and_another_asked_to_end(tmp_path, collected, undisturbed_hosts, cache):
  """Each of the hosts is killed once in stage 2, then one of them is asked to end; the run of both is the undisturbed one."""
  workdir = tmp_path / 'run'
  shutil.copytree(collected, workdir)
  for host, steps in ((1, 1), (0, 3)):
    processes = start_hosts(workdir, cache)
    assert wait_until(processes, lambda steps=steps: reached(workdir, 'stage2', steps))
    processes[host].kill()
    (other,) = two_hosts.wait([processes[1 - host]], timeout=120)
    processes[host].communicate()
    report(f'SIGKILL of host {host} in stage 2: host {1 - host} ended after {other.seconds:.1f} s: {other.last}')
    assert other.status == hosts.FAILED, other.err[-3000:]
    assert re.match(f'error: host {host}(, the coordinator,)? (has given no sign of life for 10 s|is gone|has not answered)', other.last)
    assert other.seconds < DEAD_AFTER + 10
    assert other.last in (workdir / 'hosts' / f'{1 - host}.log').read_text()

  processes = start_hosts(workdir, cache)
  assert wait_until(processes, lambda: reached(workdir, 'stage2', 5))
  processes[1].send_signal(signal.SIGTERM)
  ends = two_hosts.wait(processes, timeout=60)
  report(f'SIGTERM to host 1 alone: both ended after {ends[0].seconds:.1f} and {ends[1].seconds:.1f} s')
  assert [end.status for end in ends] == [143, 143], ends[0].err[-2000:] + ends[1].err[-2000:]
  assert max(end.seconds for end in ends) < 30
  assert checkpoints_of(workdir, 'stage2')[-1] == steps_of(workdir, 'stage2') < STEPS
  shutil.copytree(workdir, tmp_path / 'moved')

  for end in two_hosts.wait(start_hosts(workdir, cache), 600):
    assert end.status == 0, end.err[-3000:]
  expect_same(workdir, undisturbed_hosts)

  # What two hosts saved goes on on one, and what one saved on two.
  moved = tmp_path / 'moved'
  process = start('train', moved, cache)
  reached_by_two = steps_of(moved, 'stage2')
  assert wait_until(process, lambda: reached(moved, 'stage2', reached_by_two + 2))
  terminate(process, 'stage 2 on one host, begun by two')
  for end in two_hosts.wait(start_hosts(moved, cache), 600):
    assert end.status == 0, end.err[-3000:]
  for name in ('bank/bank.jsonl', 'stage2/abstained.jsonl', 'stage2/probes.jsonl'):
    assert (moved / name).read_bytes() == (undisturbed_hosts / name).read_bytes(), name
  lines, expected = read_metrics(moved / 'stage2'), read_metrics(undisturbed_hosts / 'stage2')
  assert [line['step'] for line in lines] == [line['step'] for line in expected] == list(range(STEPS + 1))
  assert lines[: reached_by_two + 1] == expected[: reached_by_two + 1]
  for name in ('train/loss', 'train/gradient_norm', 'decision/p_generate'):
    assert [line[name] for line in lines[1:]] == pytest.approx([line[name] for line in expected[1:]], rel=1e-3, abs=1e-4)


def limited(name, workdir, size, *more):
  """A command that may write no file larger than `size` bytes."""
  program = (
    f'import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY)); sys.argv[0] = {name + ".py"!r}; '
    f'from mempi_jax.{name} import main; main(sys.argv[1:])'
  )
  return ['-c', program, *arguments(workdir, **EVERY_STEP), *more]


def test_the_disk_of_one_host_is_full(tmp_path, collected, undisturbed_hosts, cache):
  """It holds a part of a checkpoint: both hosts end, and say why."""
  workdir = tmp_path / 'run'
  shutil.copytree(collected, workdir)

  def command(host, address):
    more = '--hosts=2', f'--host={host}', f'--coordinator={address}'
    return limited('train', workdir, 500_000 if host else resource.RLIM_INFINITY, *more)

  ends = two_hosts.wait(two_hosts.start_two(command, [cache, cache]), 300)
  for end in ends:
    assert end.status == 2, end.err[-3000:]
    assert re.match(r'error: the checkpoint of step 1 could not be written in .*/stage1/checkpoints: host 1 of 2: .*; those before it are whole', end.last)
  for end in two_hosts.wait(start_hosts(workdir, cache), 600):
    assert end.status == 0, end.err[-3000:]
  expect_same(workdir, undisturbed_hosts)


# Bad disks, other models.


def test_a_full_disk_during_a_checkpoint(tmp_path, collected, undisturbed, cache):
  workdir = tmp_path / 'run'
  shutil.copytree(collected, workdir)
  process = start('train', workdir, cache)
  assert wait_until(process, lambda: reached(workdir, 'stage1', 2))
  terminate(process, 'stage 1')
  saved = checkpoints_of(workdir, 'stage1')

  (end,) = two_hosts.wait([two_hosts.start(limited('train', workdir, 500_000), **cache)])
  assert end.status == 2
  assert end.last == (
    f'error: the checkpoint of step {saved[-1] + 1} could not be written in {workdir}/stage1/checkpoints: File too large; those before it are whole'
  )
  assert checkpoints_of(workdir, 'stage1') == saved
  assert 'Traceback' not in end.err and end.err.count('File too large') == 1

  # Not even a line of a log.
  (end,) = two_hosts.wait([two_hosts.start(limited('train', workdir, 300), **cache)])
  assert end.status == 2 and end.last.startswith('error: ') and 'File too large' in end.last and 'Traceback' not in end.err
  finish('train', workdir, cache)
  expect_same(workdir, undisturbed)


def test_a_working_folder_that_cannot_be_written(tmp_path, collected, cache):
  mount = f'mount --bind {collected} {tmp_path} && mount -o remount,ro,bind {tmp_path} && exec "$0" "$@"'
  unshare = ['unshare', '--mount', 'sh', '-c', mount]
  if subprocess.run([*unshare, 'true'], capture_output=True, check=False).returncode:
    pytest.skip('needs the right to mount a file system')
  command = [*unshare, sys.executable, '-m', 'mempi_jax.train', *arguments(tmp_path, **EVERY_STEP)]
  done = subprocess.run(command, capture_output=True, text=True, cwd=two_hosts.REPOSITORY, check=False)
  assert done.returncode == 2
  assert done.stderr.splitlines()[-1] == f'error: cannot write in the working folder {tmp_path}: Read-only file system; choose another --workdir'


def test_a_checkpoint_of_another_model(tmp_path, collected, undisturbed, cache):
  workdir = tmp_path / 'run'
  shutil.copytree(collected, workdir)
  process = start('train', workdir, cache)
  assert wait_until(process, lambda: reached(workdir, 'stage1', 2))
  terminate(process, 'stage 1')
  other = ('--config.policy.init=random', '--config.policy.model=dummy')
  (end,) = two_hosts.wait([start('train', workdir, cache, *other)])
  assert end.status == 2 and "policy.init is 'agent' there, 'random' here" in end.last and '--allow=policy.init,policy.model' in end.last
  (end,) = two_hosts.wait([start('train', workdir, cache, *other, '--allow=policy.init,policy.model')])
  assert end.status == 2
  assert re.match(r'error: checkpoint .*/stage1/checkpoints/0000000\d is of another model: opt_state/.*layer_2/\w+ float32.* is not expected; .*and \d+ more$', end.last), end.last
  finish('train', workdir, cache, '--allow=policy.init,policy.model')
  changed = collections.Counter(change['field'] for change in files.read_jsonl(workdir / 'changes.jsonl'))
  assert changed == {'policy.init': 2, 'policy.model': 2}
  expect_same(workdir, undisturbed)
