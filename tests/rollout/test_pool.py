"""Worker processes that are killed, hang, leak, print and raise: what the caller hears of it, and that nothing is left behind."""

import collections
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mempi_jax.bench.pool import HARMLESS, FaultyEnv, check_run, fault_at, length_of, make_tasks, play
from mempi_jax.rollout import worker as process
from mempi_jax.rollout.episode import abstained, read_contexts, run_episodes, stream_episodes
from mempi_jax.rollout.handles import Fault, WorkerError
from mempi_jax.rollout.lending import Abortable, NoEnvFree, PoolError
from mempi_jax.rollout.pool import Pool
from mempi_jax.rollout.runner import Runner
from mempi_jax.types import EnvStep, Status, Task
from tests.rollout.pool_worlds import Maker, Seeing, Unloadable, World, breaks_later, dies, no_browser, sleeps
from tests.rollout.processes import exists, wait_until

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='the pool needs Linux: /proc, prctl')

TASK = Task('world', 'a', 'train', 7)


@pytest.fixture
def pool(request, tmp_path):
  """A pool of two Worlds; nothing of it is left after the test."""
  settings = dict(step_timeout=60.0, spares=1) | getattr(request, 'param', {})
  with Pool(functools.partial(World, str(tmp_path)), 2, **settings) as pool:
    keeper = pool._keeper._process.pid
    yield pool
  assert not exists(keeper) and not process.descendants(keeper)


@pytest.fixture(scope='module')
def lasting_pool():
  """The same for several tests: it outlives the faults of each."""
  with Pool(World, 2) as pool:
    yield pool


def processes_of(pool):
  return process.descendants(pool._keeper._process.pid)


def pids_in(folder):
  return [pid for path in Path(folder).glob('*.pids') for pid in json.loads(path.read_text())]


# What goes right.


def test_answers_are_those_of_the_environment_in_this_process():
  with Pool(Seeing, 1) as pool:
    there, here = pool.make_env(), Seeing()
    for name in ('words', 'picture'):
      task = Task('seeing', name, 'train', 1 << 80)
      got, expected = there.reset(task), here.reset(task)
      assert (got.task, got.goal, got.observation, got.history) == (task, expected.goal, expected.observation, expected.history)
    np.testing.assert_array_equal(got.image, expected.image)
    assert got.image.dtype == np.uint8 and got.image.flags.writeable
    got = there.step('abc ☃')
    assert got == EnvStep('☃ cba', 0.25, True, False)
    assert type(got.reward) is float and type(got.done) is bool and type(got.success) is bool


def test_an_environment_is_used_again_and_must_be_reset(lasting_pool):
  pool = lasting_pool
  env = pool.make_env()
  with pytest.raises(RuntimeError, match='call reset'):
    env.step('say hello')
  assert env.reset(TASK).observation == 'reset 1'
  assert env.step('say hello').observation == '1 hello'
  pid = env.step('pid').observation.split()[1]
  assert env.reset(TASK).observation == 'reset 2'
  env.close()
  env.close()
  with pytest.raises(PoolError, match='closed'):
    env.reset(TASK)
  other = pool.make_env()
  other.reset(TASK)
  with pytest.raises(WorkerError):
    other.step('raise x')
  with pytest.raises(RuntimeError, match='call reset'):
    other.step('say hello')  # not the episode of a fresh environment
  assert other.reset(TASK).observation == 'reset 1'
  assert other.step('pid').observation.split()[1] != pid
  other.close()


def test_a_worker_is_a_fresh_interpreter_without_threads_and_input(lasting_pool):
  pool = lasting_pool
  env = pool.make_env()
  env.reset(TASK)
  loaded = json.loads(env.step('modules').observation.partition(' ')[2])
  assert 'mempi_jax' in loaded and not {'jax', 'jaxlib', 'torch'} & set(loaded)
  assert env.step('threads').observation == '2 1'
  assert env.step('stdin').observation == "3 ''"
  env.close()


def test_sets_have_the_same_order_in_every_worker_and_pool():
  seen = set()
  for _ in range(2):
    with Pool(World, 2, spares=0) as pool:
      envs = [pool.make_env(), pool.make_env()]
      for env in envs:
        env.reset(TASK)
        seen.add(env.step('hash abc').observation)
  assert len(seen) == 1


def test_no_more_environments_than_workers(pool):
  first, _ = pool.make_env(), pool.make_env()
  with pytest.raises(NoEnvFree, match='all 2 workers are in use'):
    pool.make_env()
  first.close()
  pool.make_env().reset(TASK)
  assert isinstance(first, Abortable)


def test_each_environment_imports_for_itself_without_preload():
  with Pool(World, 1, preload=False, spares=0) as pool:
    env = pool.make_env()
    env.reset(TASK)
    assert env.step('say hello').observation == '1 hello'


def test_threads_that_importing_starts_do_not_matter(tmp_path, monkeypatch):
  (tmp_path / 'threaded_world.py').write_text(
    'import threading, time\nthreading.Thread(target=time.sleep, args=(3600,), daemon=True).start()\n'
    'from mempi_jax.types import *\nclass World:\n  def reset(self, task):\n    return Context(task, "", str(threading.active_count()))\n'
    '  def close(self): pass\n'
  )
  monkeypatch.syspath_prepend(tmp_path)
  import threaded_world

  with Pool(threaded_world.World, 2) as pool:
    envs = [pool.make_env(), pool.make_env()]
    # It was imported in each worker: a forked one would have lost the thread.
    assert [env.reset(TASK).observation for env in envs] == ['2', '2']


# What goes wrong in one reset or step.


@pytest.mark.parametrize(
  'action, fault, text',
  [
    ('raise no such thing', Fault.RAISED, r"KeyError: 'no such thing'"),
    ('quit', Fault.RAISED, 'SystemExit: leaving'),
    ('nonsense', Fault.RAISED, "AttributeError: 'World' object has no attribute 'do_nonsense'"),
    ('kill 9', Fault.DIED, 'killed by SIGKILL'),
    ('kill 11', Fault.DIED, 'killed by SIGSEGV'),
    ('exit 3', Fault.DIED, 'exit status 3; the last that it printed: made\nmy last words �'),
    ('forge', Fault.GARBLED, 'a message of 4,294,967,296 bytes was announced, at most 67,108,864 are allowed'),
  ],
)
@pytest.mark.parametrize('where', ['reset', 'step'])
def test_faults(lasting_pool, action, fault, text, where):
  pool = lasting_pool
  before = dataclasses.replace(pool.counters)
  env, other = pool.make_env(), pool.make_env()
  other.reset(TASK)
  with pytest.raises(WorkerError) as caught:
    if where == 'reset':
      env.reset(Task('world', action, 'train', 1))
    else:
      env.reset(TASK)
      env.step(action)
  assert caught.value.fault is fault and text in str(caught.value) and where in str(caught.value)
  if fault is Fault.RAISED:
    assert 'Traceback' in caught.value.__notes__[0] and f'do_{action.split()[0]}' in caught.value.__notes__[0]
  assert '\x1b' not in str(caught.value)
  assert env.reset(TASK).observation == 'reset 1'  # a fresh one
  assert other.step('say still here').observation == '1 still here'
  name = {'raised': 'raised', 'died': 'deaths', 'garbled': 'garbled'}[fault]
  assert pool.counters.faults == before.faults + 1 and getattr(pool.counters, name) == getattr(before, name) + 1
  env.close()
  other.close()


@pytest.mark.parametrize('pool', [dict(step_timeout=0.4, reset_timeout=0.4)], indirect=True)
@pytest.mark.parametrize('action', ['hang', 'stop'])
def test_hangs(pool, action):
  env = pool.make_env()
  env.reset(TASK)
  with pytest.raises(WorkerError, match=r'step: no answer within 0.4 s') as caught:
    env.step(action)
  assert caught.value.fault is Fault.HUNG
  with pytest.raises(WorkerError, match=r"reset\('hang'\): no answer within 0.4 s"):
    env.reset(Task('world', 'hang', 'train', 1))
  assert pool.counters.hangs == 2


@pytest.mark.parametrize('pool', [dict(memory_limit=300 << 20, memory_interval=0.05)], indirect=True)
@pytest.mark.parametrize('action', ['grow 400', 'grandchild 400'])
def test_leaks(pool, action):
  env = pool.make_env()
  env.reset(TASK)
  with pytest.raises(WorkerError, match=r'it took \d+ MiB of memory, at most 300 MiB are allowed') as caught:
    env.step(action)
    env.step('hang')
  assert caught.value.fault is Fault.LEAKED and pool.counters.leaks == 1
  assert env.reset(TASK).observation == 'reset 1'
  assert env.step('grow 50').observation == '1 1'


@pytest.mark.parametrize('pool', [dict(memory_limit=300 << 20, memory_interval=0.02)], indirect=True)
def test_a_worker_that_grew_is_replaced_between_episodes(pool):
  env = pool.make_env()
  env.reset(TASK)
  assert env.step('grow 255').observation == '1 1'
  assert wait_until(lambda: env._worker.alive() and env._worker.high)
  assert env.step('say hello').observation == '2 hello'  # its episode goes on
  assert env.reset(TASK).observation == 'reset 1'
  assert (pool.counters.retired, pool.counters.faults) == (1, 0)


@pytest.mark.parametrize('pool', [dict(memory_limit=300 << 20, memory_interval=0.02)], indirect=True)
def test_a_worker_that_leaks_while_nobody_waits_for_it(pool, tmp_path):
  env, other = pool.make_env(), pool.make_env()
  for one in (env, other):
    one.reset(TASK)
    one.step('later 400')
  waiting = other._worker
  other.close()
  assert wait_until(lambda: not env._worker.alive() and not waiting.alive())
  other = pool.make_env()
  assert env.reset(TASK).observation == other.reset(TASK).observation == 'reset 1'
  assert (pool.counters.leaks, pool.counters.faults) == (2, 2)


@pytest.mark.parametrize('pool', [dict(data_limit=400 << 20)], indirect=True)
def test_the_kernels_limit(pool):
  env = pool.make_env()
  env.reset(TASK)
  with pytest.raises(WorkerError, match='MemoryError'):
    env.step('grow 1000')


@pytest.mark.parametrize('pool', [dict(memory_limit=500 << 20, memory_interval=0.05)], indirect=True)
def test_printing_100_mb_on_each_stream_is_no_fault(pool):
  env = pool.make_env()
  env.reset(TASK)
  assert env.step('print 100').observation == '1 None'
  with pytest.raises(WorkerError) as caught:
    env.step('exit 4')
  assert 'my last words' in str(caught.value) and len(str(caught.value)) < 2000
  guard_memory = [process.memory_of([pid], 1 << 40) for pid in processes_of(pool)]
  assert max(guard_memory) < 100 << 20


@pytest.mark.parametrize('pool', [dict(message_bytes=10_000)], indirect=True)
def test_messages_that_are_too_big(pool):
  env = pool.make_env()
  env.reset(TASK)
  assert len(env.step('big 9000').observation) == 9000
  with pytest.raises(WorkerError, match='MessageTooBig: the message has 20,0.. bytes, at most 10,000 are allowed'):
    env.step('big 20000')
  env.reset(TASK)
  with pytest.raises(WorkerError, match='step: the message has 20,0.. bytes, at most 10,000'):
    env.step('say ' + 'x' * 20_000)
  assert env.reset(TASK).observation == 'reset 1'


def test_an_answer_of_another_kind(lasting_pool):
  pool = lasting_pool
  env = pool.make_env()
  env.reset(TASK)
  with pytest.raises(WorkerError, match='TypeError: expected text, found NoneType'):
    env.step('none')
  env.close()


def test_a_worker_that_dies_between_episodes_costs_none(pool, caplog):
  env, other = pool.make_env(), pool.make_env()
  env.reset(TASK), other.reset(TASK)
  pids = [int(e.step('pid').observation.split()[1]) for e in (env, other)]
  other.close()
  for pid in pids:
    os.kill(pid, signal.SIGKILL)
  assert wait_until(lambda: not env._worker.alive())
  assert wait_until(lambda: not any(worker.alive() and worker._guard is None for worker in pool._waiting))
  other = pool.make_env()
  time.sleep(0.3)  # the guard of the other one tells of it as well
  assert env.reset(TASK).observation == other.reset(TASK).observation == 'reset 1'
  assert pool.counters.deaths == 2


@pytest.mark.parametrize('whom', ['guard', 'keeper'])
def test_the_pools_own_processes_may_be_killed(pool, whom, tmp_path):
  env = pool.make_env()
  env.reset(TASK)
  env.step('fork')
  worker, guard, *children = pids_in(tmp_path)
  assert all(map(exists, children))
  os.kill(guard if whom == 'guard' else pool._keeper._process.pid, signal.SIGKILL)
  if whom == 'guard':
    with pytest.raises(WorkerError) as caught:
      env.step('hang')
    assert caught.value.fault is Fault.DIED
    assert wait_until(lambda: not any(map(exists, [worker, *children])))
  else:
    assert env.step('say hello').observation == '2 hello'
  for _ in range(4):  # and new workers can be had
    env.reset(TASK)
    with pytest.raises(WorkerError, match='KeyError'):
      env.step('raise x')
  assert env.reset(TASK).observation == 'reset 1'


def test_abort_from_another_thread(pool):
  env = pool.make_env()
  env.reset(TASK)
  threading.Timer(0.2, env.abort).start()
  with pytest.raises(WorkerError) as caught:
    env.step('hang')
  assert caught.value.fault is Fault.ABORTED and pool.counters.faults == 0
  env.close()
  assert pool.make_env().reset(TASK).observation == 'reset 1'


# Starts that fail.


def test_a_start_that_fails_is_raised_before_anything_is_played():
  with pytest.raises(PoolError, match='OSError: no chromium here: apt-get install chromium; the last that it printed: looking for a browser') as caught:
    Pool(no_browser, 2)
  assert 'in no_browser' in caught.value.__cause__.__notes__[0]
  with pytest.raises(PoolError, match='killed by SIGABRT; the last that it printed: about to die'):
    Pool(dies, 2)
  with pytest.raises(PoolError, match='making the environment: no answer in time'):
    Pool(sleeps, 1, start_timeout=0.5, close_timeout=0.1)
  with pytest.raises(PoolError, match="ModuleNotFoundError: No module named 'mempi_jax.no_such_module'"):
    Pool(Unloadable(), 1)


def test_what_cannot_be_sent_to_a_worker(monkeypatch):
  with pytest.raises(ValueError, match='cannot be pickled for the worker processes'):
    Pool(lambda: World(), 1)
  def in_script():
    raise AssertionError

  in_script.__module__, in_script.__qualname__ = '__main__', 'in_script'
  monkeypatch.setattr(sys.modules['__main__'], 'in_script', in_script, raising=False)
  with pytest.raises(ValueError, match='is defined in the script that runs'):
    Pool(in_script, 1)
  for settings in (dict(workers=0), dict(workers=1, spares=-1), dict(workers=1, step_timeout=0.0), dict(workers=1, reset_timeout=float('inf'))):
    with pytest.raises(ValueError, match='expected'):
      Pool(World, **settings)


def test_a_pool_whose_workers_cannot_be_started_any_more(tmp_path):
  with Pool(functools.partial(breaks_later, str(tmp_path)), 1, spares=0) as pool:
    tasks = [Task('world', f'say {i}', 'train', i) for i in range(50)] + [Task('world', 'kill 9', 'train', 1)] * 2 + [TASK] * 20
    ended = []
    with pytest.raises(PoolError, match='workers could not be started; the last one: .*no more licences'):
      for i, episode in stream_episodes(pool.make_env, None_(), tasks, abstained(len(tasks)), [0] * len(tasks), workers=1):
        ended.append((i, episode.status))
    assert ended[:50] == [(i, Status.TRUNCATED) for i in range(50)]
    assert {status for _, status in ended[50:]} == {Status.ENV_ERROR}


class None_:
  """An agent that is asked for nothing."""

  def begin(self):
    return self

  def end(self, key):
    pass


# Nothing is left behind.


def test_closing_leaves_nothing(tmp_path):
  with Pool(functools.partial(World, str(tmp_path)), 2, spares=1) as pool:
    env = pool.make_env()
    env.reset(TASK)
    env.step('fork')
    folder = Path(env.step('file').observation.split()[1]).parent.parent
    pids = [pool._keeper._process.pid, *processes_of(pool)]
    assert len(pids) >= 1 + 2 * 3 + 3 and all(map(exists, pids_in(tmp_path)))
    env.close()
  assert not any(map(exists, [*pids, *pids_in(tmp_path)])) and not folder.exists()
  assert len(list(tmp_path.glob('*.closed'))) == 3  # each environment was closed
  with pytest.raises(PoolError, match='closed'):
    pool.make_env()


@pytest.mark.parametrize('how', ['kill 9', 'raise x', 'close', 'kill the guard'])
def test_temporary_files_go_with_the_worker(pool, how):
  env = pool.make_env()
  env.reset(TASK)
  path = Path(env.step('file').observation.split()[1])
  assert path.exists() and path.parent.parent.name.startswith('mempi-pool-')
  if how == 'close':
    env.close()
    pool.close()
    assert not path.parent.parent.exists()
  elif how == 'kill the guard':
    os.kill(int(path.parent.name), signal.SIGKILL)
  else:
    with pytest.raises(WorkerError):
      env.step(how)
  assert wait_until(lambda: not path.parent.exists())


@pytest.mark.parametrize('pool', [dict(step_timeout=0.5)], indirect=True)
@pytest.mark.parametrize('how', ['hang', 'kill 9', 'raise x', 'exit 1'])
def test_a_fault_leaves_no_child_behind(pool, tmp_path, how):
  env = pool.make_env()
  env.reset(TASK)
  env.step('fork')
  with pytest.raises(WorkerError):
    env.step(how)
  assert wait_until(lambda: not any(map(exists, pids_in(tmp_path))))
  assert (len(list(tmp_path.glob('*.closed'))) == 1) == (how == 'raise x')  # it could still close


SCRIPT = """
import functools, sys, time, os, signal
from {module} import World
from mempi_jax.rollout.pool import Pool
from mempi_jax.types import Task
signal.signal(signal.SIGINT, signal.default_int_handler)  # what was started in the background of a shell ignores it
pool = Pool(functools.partial(World, {folder!r}), 2, spares=1, close_timeout=1.0)
envs = [pool.make_env() for _ in range(2)]
for env in envs:
  env.reset(Task('world', 'a', 'train', 1))
  env.step('fork')
files = [os.path.dirname(os.path.dirname(env.step('file').observation.split()[1])) for env in envs]
open({folder!r} + '/files', 'w').write(__import__('json').dumps(sorted(set(files))))
child = os.fork()
if not child:  # it keeps the ends of all sockets open
  time.sleep(3600)
os.write(1, f'{{child}} {{pool._keeper._process.pid}}\\n'.encode())
with pool:
  envs[0].step('hang')
"""


@pytest.mark.parametrize('how', ['SIGTERM', 'SIGINT', 'SIGKILL'])
def test_nothing_outlives_the_caller(tmp_path, how):
  root = Path(__file__).parents[2]
  script = SCRIPT.format(module=World.__module__, folder=str(tmp_path))
  environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(root), *sys.path])}
  with subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment) as caller:
    child, keeper = map(int, caller.stdout.readline().split())
    try:
      pids = {keeper, *process.descendants(keeper), *pids_in(tmp_path)}
      assert len(pids) >= 1 + 3 * 2 + 2 * 3 and all(map(exists, pids))
      caller.send_signal(getattr(signal, how))
      assert wait_until(lambda: not any(map(exists, pids)))
    finally:
      os.kill(child, signal.SIGKILL)
      caller.kill()
  # The one that was not hanging could close, and there are no files.
  (files,) = map(Path, json.loads((tmp_path / 'files').read_text()))
  assert wait_until(lambda: not files.exists())
  assert len(list(tmp_path.glob('*.closed'))) >= 1


# Episodes.


def test_back_pressure(pool):
  most, now = 0, set()

  class Watching(None_):
    def start(self, key, context, guidance, seed):
      nonlocal most
      now.add(key)
      most = max(most, len(now))

    def observe(self, key, observation):
      pass

    def act(self):
      return [(key, 'say hello') for key in sorted(now - asked.keys()) if not asked.update({key: 1})] or [(min(now), None)]

    def end(self, key):
      now.discard(key)

  asked = {}
  tasks = [Task('world', 'a', 'train', i) for i in range(9)]
  episodes = run_episodes(pool.make_env, Watching(), tasks, abstained(9), [1] * 9, side_by_side=64, workers=pool.workers)
  assert [episode.context.task for episode in episodes] == tasks and 1 <= most <= 2
  assert {episode.status for episode in episodes} == {Status.TRUNCATED} and pool.counters.resets == 9
  assert pool.counters.started == 3


def test_a_pool_that_others_use_is_an_error_and_no_deadlock(pool):
  held = [pool.make_env(), pool.make_env()]
  with pytest.raises(NoEnvFree):
    run_episodes(pool.make_env, None_(), [TASK], abstained(1), [0], workers=2)
  held[0].close()
  assert len(run_episodes(pool.make_env, None_(), [TASK] * 3, abstained(3), [0] * 3, workers=2)) == 3
  held[0] = pool.make_env()
  with pytest.raises(NoEnvFree):
    read_contexts(pool.make_env, [TASK] * 3, workers=2)


def test_contexts_of_a_runner(pool, tmp_path):
  runner = Runner(pool.make_env, None_(), lambda task: 1, 8, workers=pool.workers, retries=1)
  tasks = [Task('world', 'a', 'train', i) for i in range(7)]
  assert [context.task for context in runner.contexts(tasks)] == tasks
  with pytest.raises(WorkerError, match='KeyError'):
    runner.contexts([TASK, Task('world', 'raise x', 'train', 1), TASK])
  assert pool.counters.raised == 2  # it was tried twice
  assert len(runner.contexts(tasks)) == 7


def test_a_consumer_that_stops_does_not_wait_for_a_hanging_step(pool):
  tasks = [TASK, Task('world', 'hang', 'train', 1)]  # the reset of the second one hangs
  episodes = stream_episodes(pool.make_env, None_(), tasks, abstained(2), [0, 0], workers=2)
  assert next(episodes)[0] == 0
  episodes.close()
  assert pool.counters.hangs == 0
  assert len(read_contexts(pool.make_env, [TASK] * 2, workers=2)) == 2


def play_with_and_without_faults(folder, count, *, rate, workers, retries, deadline, seed=0):
  """The tasks, both runs, and for each task the faults of the tries that were made, as they were planned ('' for a try without)."""
  tasks = make_tasks(count, seed)
  runs = []
  for used in (0.0, rate):
    make_env = functools.partial(FaultyEnv, str(folder), seed, used, 0.001)
    # Without faults nobody is in a hurry.
    seconds = deadline if used else 300.0
    with Pool(make_env, workers, reset_timeout=seconds, step_timeout=seconds, memory_limit=200 << 20, memory_interval=0.05, spares=2) as pool:
      keeper = pool._keeper._process.pid
      runs.append(play(tasks, pool, retries))
    assert not exists(keeper)
  made = collections.Counter(path.name.partition('.')[0] for path in folder.iterdir())
  planned = [[harmful_fault(task, seed, rate, attempt) for attempt in range(made[task.task_id])] for task in tasks]
  return tasks, *runs, planned


def harmful_fault(task, seed, rate, attempt):
  """The fault that ends a try."""
  faults = [fault_at(seed, rate, task.task_id, attempt, turn) for turn in range(length_of(task) + 1)]
  return next((fault for fault in faults if fault and fault not in HARMLESS), '')


def check_plan(tasks, faultless, faulty, planned, retries):
  """Every episode is accounted for, once, and so is every try; those that did not end with ENV_ERROR are those of the faultless run."""
  errors = check_run(tasks, faultless, faulty)
  counters = faulty.counters
  assert faultless.counters.faults == faultless.counters.retired == counters.garbled == counters.failed_starts == 0
  assert faultless.counters.resets == len(tasks)
  # A try fails or ends its episode.
  assert counters.resets == len(tasks) - errors + counters.faults
  # On a machine that is busy beyond measure a try without a fault may hang, and one with a leak may hang before it has leaked.
  kinds = collections.Counter(fault for faults in planned for fault in faults if fault)
  hung = counters.faults - sum(kinds.values())
  assert 0 <= hung <= counters.hangs
  for i, faults in enumerate(planned):
    well = faulty.episodes[i].status is not Status.ENV_ERROR
    assert len(faults) <= retries + 1 and (not faults[-1] if well else hung or all(faults) and len(faults) == retries + 1)
    assert hung or all(faults[:-1])
  if not hung:
    assert (counters.deaths, counters.raised) == (kinds['kill'], kinds['raise'])
    assert counters.hangs + counters.leaks == kinds['hang'] + kinds['leak'] and counters.leaks <= kinds['leak']
  assert min(counters.deaths, counters.raised, counters.hangs) > 0
  return errors


def test_episodes_under_faults(tmp_path, caplog):
  played = play_with_and_without_faults(tmp_path, 120, rate=0.05, workers=8, retries=2, deadline=3.0, seed=3)
  errors = check_plan(*played, retries=2)
  # Without a second try more episodes would have been lost.
  assert sum(bool(faults[0]) for faults in played[-1]) > errors


def test_episodes_that_fail_every_time(tmp_path):
  tasks, faultless, faulty, planned = play_with_and_without_faults(tmp_path, 8, rate=0.5, workers=4, retries=1, deadline=1.5, seed=5)
  assert check_plan(tasks, faultless, faulty, planned, retries=1) > 0
  assert not any(episode.success for episode in faulty.episodes.values() if episode.status is Status.ENV_ERROR)


@pytest.mark.slow
def test_two_thousand_episodes_under_faults(tmp_path):
  assert check_plan(*play_with_and_without_faults(tmp_path, 2000, rate=0.05, workers=8, retries=2, deadline=5.0), retries=2) > 0


# Pieces.


def test_messages():
  frame = process.encode({'a': '☃\ud800'}, b'pixels', limit=100)
  text, pixels = process.message_size(frame[: process.HEADER.size], 100)
  assert pixels == 6 and process.decode(frame[process.HEADER.size :][:text]) == {'a': '☃\ud800'} and frame.endswith(b'pixels')
  with pytest.raises(ValueError, match='at most 10 are allowed'):
    process.encode({'a': 'x' * 10}, limit=10)
  with pytest.raises(ValueError, match=r"found b'HTTP' where a message should begin"):
    process.message_size(b'HTTP/1.1 200', 100)
  for broken in (b'[1]', b'{"a"', b'\xff'):
    with pytest.raises(ValueError):
      process.decode(broken)


def test_memory_that_is_shared_counts_once():
  code = (
    'import os, sys, time\nx = bytearray(b"x") * (64 << 20)\n'
    'for _ in range(3):\n  if os.fork() == 0:\n    time.sleep(3600)\nprint("there", flush=True)\ntime.sleep(3600)'
  )
  parent = subprocess.Popen([sys.executable, '-S', '-c', code], stdout=subprocess.PIPE, text=True)
  try:
    assert parent.stdout.readline() == 'there\n'
    pids = [parent.pid, *process.descendants(parent.pid)]
    assert len(pids) == 4
    assert process.memory_of(pids, 1 << 40) > 4 * (64 << 20)  # cheap, where nothing depends on it
    assert 64 << 20 < process.memory_of(pids, 100 << 20) < 130 << 20
  finally:
    for pid in [*process.descendants(parent.pid), parent.pid]:
      os.kill(pid, signal.SIGKILL)
    parent.communicate()


def test_descendants_on_kernels_that_do_not_list_children():
  parent = subprocess.Popen(['sh', '-c', 'sleep 3600 & setsid sleep 3600 & wait'])
  try:
    assert wait_until(lambda: len(process.descendants(parent.pid)) == 2)
    assert sorted(process.descendants(parent.pid)) == sorted(process._children_by_parent()[parent.pid])
  finally:
    for pid in [*process.descendants(parent.pid), parent.pid]:
      os.kill(pid, signal.SIGKILL)
    parent.wait()


def test_a_bound_method_makes_the_environment(tmp_path):
  with Pool(Maker(str(tmp_path)).make_env, 1, spares=0) as pool:
    pool.make_env().reset(TASK)
  assert len(list(tmp_path.glob('*.closed'))) == 1  # it was still held


def test_closing_while_somebody_plays(tmp_path):
  pool = Pool(functools.partial(World, str(tmp_path)), 2, step_timeout=60.0, close_timeout=0.5)
  env, idle = pool.make_env(), pool.make_env()
  idle.reset(TASK)
  env.reset(TASK)
  keeper = pool._keeper._process.pid
  threading.Timer(0.3, pool.close).start()
  with pytest.raises(WorkerError, match='the worker died'):
    env.step('hang')
  assert wait_until(lambda: not exists(keeper))
  for one in (env, idle):
    one.close()
  with pytest.raises(PoolError, match='closed'):
    pool.make_env()
