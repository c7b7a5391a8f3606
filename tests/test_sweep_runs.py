"""Runs of a sweep: locks that a kill frees, states, runs that fail beside others, and a sweep that goes on after a kill at any time."""

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from mempi_jax import runs
from mempi_jax.config import ConfigError
from mempi_jax.runs import HeldError, Processes, hold, make_plans, run_all, run_one, state_of
from mempi_jax.runtime import files
from tests import sweep_runs

RUNS = [{'rate': 0.1, 'seed': 0}, {'rate': 0.2, 'seed': 0}, {'rate': 0.3, 'seed': 0}]

# A sweep in a process of its own, to be killed.
SWEEP = '''
import sys
from pathlib import Path
from mempi_jax import runs
from tests import sweep_runs
runs.commands_of = sweep_runs.commands_of
plans = runs.make_plans(sys.argv[1], Path(sys.argv[2]), [{'rate': 0.1}, {'rate': 0.2}])
runs.run_all(sys.argv[1], plans, jobs=2, total=2, finished=0, siblings=plans)
'''


@pytest.fixture
def sweep(tmp_path, monkeypatch):
  """(config, workdir) of runs that cost nothing."""
  monkeypatch.setattr(runs, 'commands_of', sweep_runs.commands_of)
  config = tmp_path / 'config.py'
  config.write_text(sweep_runs.CONFIG)
  yield str(config), tmp_path / 'work'
  (tmp_path / 'work' / 'wait').unlink(missing_ok=True)  # commands of a test that failed


def wait_for(condition, seconds=50.0):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def started(folder):
  """How many times the command of a run was started."""
  return len((folder / 'started').read_text()) if (folder / 'started').exists() else 0


def play(config, plans, jobs=1):
  return run_all(config, plans, jobs=jobs, total=len(plans), finished=0, siblings=plans)


# Locks.


def test_a_lock_is_held_once_and_says_by_whom(tmp_path):
  with hold(tmp_path), pytest.raises(HeldError, match=rf'started by process {os.getpid()} on {re.escape(socket.gethostname())}') as held:
    with hold(tmp_path):
      pass
  assert not held.value.orphaned
  with hold(tmp_path):
    pass


def test_a_lock_lasts_as_long_as_the_command_that_was_given_it(tmp_path):
  code = (
    'import os, subprocess, sys\nfrom pathlib import Path\nfrom mempi_jax.runs import hold\n'
    'with hold(Path(sys.argv[1])) as lock:\n'
    '  print(subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, pass_fds=(lock,)).pid, flush=True)\n'
    '  sys.stdin.read()\n'
  )
  holder = subprocess.Popen([sys.executable, '-c', code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
  command = int(holder.stdout.readline())
  with pytest.raises(HeldError) as held, hold(tmp_path):
    pass
  assert not held.value.orphaned
  holder.kill()
  holder.wait()
  with pytest.raises(HeldError) as held, hold(tmp_path):
    pass
  assert held.value.orphaned and f'process {holder.pid} ' in str(held.value)
  os.kill(command, signal.SIGKILL)

  def free():
    try:
      with hold(tmp_path):
        return True
    except HeldError:
      return False

  wait_for(free)
  holder.stdin.close()
  holder.stdout.close()


# States and plans.


def test_states(sweep):
  config, workdir = sweep
  plan = make_plans(config, workdir, RUNS)[0]
  folder = plan.folder
  assert str(state_of(folder)) == 'new' and not workdir.exists()
  files.write_text(folder / 'config.json', '{}')
  assert str(state_of(folder)) == 'begun'
  files.mark_done(folder / 'bank', {})
  files.mark_done(folder / 'stage1', {})
  assert str(state_of(folder)) == 'begun (bank, stage1 finished)'
  files.write_json(folder / 'run.json', {'status': 2})
  assert str(state_of(folder)) == f'failed with status 2, see {folder / "log.txt"}'
  with hold(folder):
    assert str(state_of(folder)).startswith(f'run elsewhere (started by process {os.getpid()} on ')
  files.write_json(folder / 'run.json', {'status': 0})
  assert str(state_of(folder)) == 'begun (bank, stage1 finished)'  # its results are not there
  files.write_json(folder / 'results.json', {})
  assert str(state_of(folder)) == 'finished'


def test_a_folder_of_another_config_is_refused_before_anything_starts(sweep):
  config, workdir = sweep
  files.write_json(workdir / 'rate=0.2,seed=0' / 'config.json', {'seed': 0, 'rate': 0.2, 'kind': 'b', 'parts': ['x']})
  with pytest.raises(ConfigError, match=r"rate=0.2,seed=0 belongs to a run of another config: .*kind is 'b' there, 'a' here"):
    make_plans(config, workdir, RUNS)
  with pytest.raises(ConfigError, match='run rat=1: unknown field rat; did you mean rate'):
    make_plans(config, workdir, [{'rat': 1}])


def test_a_run_without_overrides_is_not_taken_for_the_sweep(tmp_path):
  (tmp_path / 'config.py').write_text(sweep_runs.CONFIG)
  plan = make_plans(str(tmp_path / 'config.py'), tmp_path, [{'variant': 'full'}])[0]
  train, evaluate, report = runs.commands_of('c.py', plan)
  assert evaluate[1:] == ['-m', 'mempi_jax.evaluate', '--config=c.py', f'--workdir={tmp_path / "full"}', '--config.seed=0']
  assert train[2] == 'mempi_jax.train' and report[1:] == ['-m', 'mempi_jax.report', f'--workdir={tmp_path / "full"}']


# Running.


def test_a_run_that_fails_stops_no_other_and_goes_on_next_time(sweep, capsys):
  config, workdir = sweep
  plans = make_plans(config, workdir, RUNS)
  workdir.mkdir()
  (workdir / 'fail rate=0.2,seed=0').touch()
  assert [state.kind for _, state in play(config, plans)] == ['finished', 'failed', 'finished']
  printed = capsys.readouterr().out
  assert 'rate=0.2,seed=0: failed with status 1; the end of' in printed and '\n    no luck with rate=0.2,seed=0\n' in printed
  assert json.loads((plans[1].folder / 'run.json').read_text())['status'] == 1
  (workdir / 'fail rate=0.2,seed=0').unlink()
  assert [state.kind for _, state in play(config, plans, jobs=3)] == ['finished'] * 3
  assert [started(plan.folder) for plan in plans] == [1, 2, 1]
  assert (plans[1].folder / 'log.txt').read_text().count('\nno luck with rate=0.2') == 1


def test_a_run_of_another_process_is_left_to_it(sweep, capsys):
  config, workdir = sweep
  plans = make_plans(config, workdir, RUNS[:2])
  plans[0].folder.mkdir(parents=True)
  with hold(plans[0].folder):
    assert [state.kind for _, state in play(config, plans)] == ['run elsewhere', 'finished']
  assert started(plans[0].folder) == 0 and 'rate=0.1,seed=0: run elsewhere (started by process' in capsys.readouterr().out


def test_a_disk_that_fails_one_run_fails_that_one(sweep, monkeypatch):
  config, workdir = sweep
  plans = make_plans(config, workdir, RUNS[:2])

  def take_over(config, folder, others):
    if folder == plans[0].folder:
      raise OSError(28, 'No space left on device')
    return []

  monkeypatch.setattr(runs, 'take_over', take_over)
  states = [str(state) for _, state in play(config, plans)]
  assert 'No space left' in states[0] and states[0].startswith('failed') and states[1] == 'finished'


def test_the_next_run_is_taken_when_there_is_room_and_the_last_one_is_known(sweep):
  config, workdir = sweep
  plans, seen = make_plans(config, workdir, RUNS), []

  def one_by_one():
    for plan in plans:
      seen.append(f'take {plan.config.rate}')
      yield plan

  after = lambda plan, state: seen.append(f'{state} {plan.config.rate}')
  run_all(config, one_by_one(), jobs=1, total=3, finished=0, siblings=plans, after=after)
  assert seen == ['take 0.1', 'finished 0.1', 'take 0.2', 'finished 0.2', 'take 0.3', 'finished 0.3']


def test_the_end_of_a_log_shows_a_bar_once(tmp_path):
  (tmp_path / 'log').write_bytes(b'before\nold\n' + b'\rbar 1\rbar 2\rbar 3\n\nError: x\n')
  assert runs._end_of(tmp_path / 'log', len(b'before\n')) == '    old\n    bar 3\n    Error: x'


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_that_is_killed_goes_on(sweep, number):
  config, workdir = sweep
  workdir.mkdir()
  (workdir / 'wait').touch()
  plans = make_plans(config, workdir, [{'rate': 0.1}, {'rate': 0.2}])
  files.write_json(plans[0].folder / 'run.json', {'status': 1})  # of an earlier attempt
  process = subprocess.Popen([sys.executable, '-c', SWEEP, config, workdir], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
  wait_for(lambda: all(started(plan.folder) for plan in plans))
  process.send_signal(number)
  status = process.wait(50)
  assert status == (128 + signal.SIGTERM if number == signal.SIGTERM else -signal.SIGKILL)
  assert not (plans[0].folder / 'run.json').exists()  # it was stopped, and did not fail
  if number == signal.SIGTERM:
    (workdir / 'wait').unlink()
    assert state_of(plans[0].folder).kind == 'new' and run_one(config, plans[0], [], Processes()).kind == 'finished'
    assert started(plans[0].folder) == 2
    return
  assert state_of(plans[0].folder).kind == 'run elsewhere'  # its commands are still at work
  lines, processes = [], Processes()

  def say(line):
    lines.append(line)
    (workdir / 'wait').unlink()  # the command may end

  assert run_one(config, plans[0], [], processes, say).kind == 'finished'
  assert lines == [f'{plans[0].name}: waits for a command that is still at work ({runs._describe_holder(plans[1].folder)}, which was killed)']
  wait_for(lambda: (plans[1].folder / 'results.json').exists())


def test_a_file_system_without_locks_runs_all_the_same(tmp_path, monkeypatch):
  def no_locks(descriptor, kind):
    raise OSError(38, 'Function not implemented')

  monkeypatch.setattr(fcntl, 'flock', no_locks)
  with hold(tmp_path) as lock:
    assert lock > 0
