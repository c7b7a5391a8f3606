"""Workers in actors of a local Ray cluster: the same answers and episodes as without, and what becomes of workers, actors, nodes and drivers that end."""

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

from mempi_jax.agents.scripted import ScriptedAgent
from mempi_jax.bench.pool import LONGEST, FaultyEnv, HashAgent, check_run, make_tasks, play
from mempi_jax.config import ConfigError, load_config, resolve
from mempi_jax.rollout import ray_pool
from mempi_jax.rollout.episode import abstained, run_episodes
from mempi_jax.rollout.handles import Fault, WorkerError
from mempi_jax.rollout.lending import Abortable, NoEnvFree, PoolError
from mempi_jax.rollout.ray_pool import RayPool
from mempi_jax.types import Decision, EnvStep, Guidance, Task
from mempi_jax.world import make_pool, make_runner, make_suite
from tests.rollout.pool_worlds import Seeing, World, no_browser
from tests.rollout.processes import exists, wait_until
from tests.small_run import CONFIG, SMALL

ray = pytest.importorskip('ray', reason="ray is not installed: pip install 'mempi_jax[ray]'")
pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='the pool needs Linux: /proc, prctl')

TASK = Task('world', 'a', 'train', 7)
ROOT = Path(__file__).parents[2]


def pids_in(folder):
  """Of what World.do_fork started: the worker, its guard and three more."""
  return [pid for path in Path(folder).glob('*.pids') for pid in json.loads(path.read_text())]


def family(pid):
  """A worker's actor, keeper, guard and itself, from one of its own answers."""
  found = [pid]
  for _ in range(3):
    found.append(int(Path(f'/proc/{found[-1]}/stat').read_bytes().rpartition(b')')[2].split()[1]))
  return found[::-1]


@pytest.fixture(scope='module')
def cluster():
  """A local Ray cluster of 8 CPUs, which lasts for all tests."""
  handler = lambda *_: None
  before = signal.signal(signal.SIGTERM, handler)
  try:
    assert ray_pool.connect('local', 8)
  except PoolError:  # Ray gives itself 30 s, which may be too few on a machine that is busy with other tests
    assert ray_pool.connect('local', 8)
  assert not ray_pool.connect('local', 8)
  assert signal.getsignal(signal.SIGTERM) is handler  # a run saves where it is on SIGTERM, whatever Ray wants
  signal.signal(signal.SIGTERM, before)
  yield
  ray.shutdown(wait_for_processes=True)


@pytest.fixture(scope='module')
def lasting_pool(cluster, tmp_path_factory):
  """Two Worlds for several tests: their pool outlives the faults of each."""
  folder = tmp_path_factory.mktemp('worlds')
  limits = dict(reset_timeout=5.0, step_timeout=2.0, memory_limit=200 << 20, memory_interval=0.05, message_bytes=20_000, close_timeout=0.5)
  with RayPool(functools.partial(World, str(folder)), 2, **limits) as pool:
    pool.folder = folder
    yield pool


@pytest.fixture
def pool(lasting_pool):
  """The same with the counters of before the test, and no processes of other tests."""
  for path in lasting_pool.folder.iterdir():
    path.unlink()
  lasting_pool.before = dataclasses.replace(lasting_pool.counters)
  return lasting_pool


@pytest.fixture
def env(pool):
  """An environment of the pool."""
  env = pool.make_env()
  yield env
  env.close()


@pytest.fixture
def other(pool):
  """Another one."""
  other = pool.make_env()
  yield other
  other.close()


def counted(pool):
  """What a test has added to the counters."""
  before = dataclasses.asdict(pool.before)
  return {name: count - before[name] for name, count in dataclasses.asdict(pool.counters).items() if count != before[name]}


# What goes right.


def test_answers_are_those_of_the_environment_in_this_process(cluster):
  with RayPool(Seeing, 1) as pool:
    there, here = pool.make_env(), Seeing()
    for name in ('words', 'picture'):
      task = Task('seeing', name, 'train', 1 << 80)
      got, expected = there.reset(task), here.reset(task)
      assert (got.task, got.goal, got.observation, got.history) == (task, expected.goal, expected.observation, expected.history)
    np.testing.assert_array_equal(got.image, expected.image)
    assert got.image.dtype == np.uint8 and got.image.flags.writeable
    got = there.step('abc ☃ \ud800')
    assert got == EnvStep('\ud800 ☃ cba', 0.25, True, False)
    assert type(got.reward) is float and type(got.done) is bool and type(got.success) is bool


def test_an_environment_is_used_again_and_must_be_reset(pool, env, other):
  assert isinstance(env, Abortable)
  with pytest.raises(RuntimeError, match='call reset'):
    env.step('say hello')
  first = int(env.reset(TASK).observation.split()[1])
  assert env.step('say hello').observation == '1 hello'
  assert env.reset(TASK).observation == f'reset {first + 1}'
  with pytest.raises(NoEnvFree, match='all 2 workers are in use'):
    pool.make_env()
  env.close()
  env.close()
  with pytest.raises(PoolError, match='closed'):
    env.reset(TASK)
  assert counted(pool) == {'resets': 2, 'steps': 1}


def test_a_worker_is_a_fresh_interpreter_that_looks_where_the_driver_does(env):
  env.reset(TASK)
  loaded = json.loads(env.step('modules').observation.partition(' ')[2])
  assert 'mempi_jax' in loaded and not {'jax', 'jaxlib', 'torch', 'ray'} & set(loaded)
  added = os.path.dirname(ray.__file__) + '/thirdparty_files'
  assert ray_pool._search_path([added, '/driver', *sys.path])[0] == '/driver'


# What goes wrong with a worker.


@pytest.mark.parametrize(
  'action, fault, text',
  [
    ('raise no such thing', Fault.RAISED, r"raised KeyError: 'no such thing'"),
    ('exit 3', Fault.DIED, 'exit status 3; the last that it printed: made\nmy last words �'),
    ('hang', Fault.HUNG, 'no answer within 2 s; the worker was killed'),
    ('grow 220', Fault.LEAKED, 'MiB of memory, at most 200 MiB are allowed'),
    ('forge', Fault.GARBLED, 'a message of 4,294,967,296 bytes was announced, at most 20,000 are allowed'),
    ('big 30000', Fault.RAISED, 'MessageTooBig'),
    ('say ' + 'x' * 30_000, Fault.GARBLED, 'the message has 30,0'),
  ],
)
def test_faults(pool, env, other, action, fault, text):
  other.reset(TASK)
  env.reset(TASK)
  env.step('fork')
  pids = pids_in(pool.folder)
  assert len(pids) == 5 and all(map(exists, pids))
  with pytest.raises(WorkerError) as caught:
    env.step(action)
    env.step('hang')  # what leaks may have answered
  assert caught.value.fault is fault and text in str(caught.value)
  assert fault is not Fault.RAISED or 'Traceback' in caught.value.__notes__[0] or 'MessageTooBig' in text
  with pytest.raises(RuntimeError, match='call reset'):
    env.step('say hello')
  assert env.reset(TASK).observation == 'reset 1'  # a fresh one
  assert other.step('say still here').observation == '1 still here'
  assert wait_until(lambda: not any(map(exists, pids)))  # and nothing is left of the other one
  name = {'raised': 'raised', 'died': 'deaths', 'hung': 'hangs', 'leaked': 'leaks', 'garbled': 'garbled'}[fault]
  found = counted(pool)
  assert found[name] == 1 and found['started'] == 1 and found.keys() == {name, 'started', 'resets', 'steps'}


def test_a_reset_that_raises(env):
  with pytest.raises(WorkerError, match=r"reset\('raise x'\) raised KeyError: 'x' \(on \d") as caught:
    env.reset(Task('world', 'raise x', 'train', 1))
  assert caught.value.fault is Fault.RAISED
  assert env.reset(TASK).observation == 'reset 1'


# What goes wrong with an actor.


@pytest.mark.parametrize('when', ['at a step', 'between episodes', 'while it is free'])
def test_an_actor_that_is_killed(pool, env, when):
  env.reset(TASK)
  env.step('fork')
  actor, keeper, guard, worker = family(int(env.step('pid').observation.split()[1]))
  pids = {actor, keeper, guard, worker, *pids_in(pool.folder)}
  assert len(pids) == 7 and all(map(exists, pids))
  held = env._worker
  if when == 'while it is free':
    env.close()
  os.kill(actor, signal.SIGKILL)
  if when == 'at a step':
    with pytest.raises(WorkerError, match='step: the actor on .* was lost') as caught:
      env.step('hang')
      env.step('hang')
    assert caught.value.fault is Fault.DIED
  assert wait_until(lambda: not held.alive())
  if when == 'while it is free':
    env = pool.make_env()
  assert env.reset(TASK).goal == 'goal'  # on another actor, at no cost where nobody was playing
  env.close()
  assert wait_until(lambda: not any(map(exists, pids)))
  assert counted(pool)['deaths'] == 1


@pytest.mark.slow
def test_an_actor_that_says_nothing(env, monkeypatch):
  monkeypatch.setattr(ray_pool, 'GRACE', 0.5)
  env.reset(TASK)
  actor, *others = family(int(env.step('pid').observation.split()[1]))
  os.kill(actor, signal.SIGSTOP)
  with pytest.raises(WorkerError, match='step: nothing came from .* within 2 s; the actor was killed') as caught:
    env.step('say hello')
  assert caught.value.fault is Fault.HUNG
  monkeypatch.undo()
  assert env.reset(TASK).goal == 'goal'
  os.kill(actor, signal.SIGCONT)  # now it hears that it was killed
  assert wait_until(lambda: not any(map(exists, [actor, *others])))


def test_abort_from_another_thread(pool, env):
  env.reset(TASK)
  env.step('fork')
  threading.Timer(0.1, env.abort).start()
  start = time.monotonic()
  with pytest.raises(WorkerError) as caught:
    env.step('hang')
  assert caught.value.fault is Fault.ABORTED and time.monotonic() - start < 1.5
  assert wait_until(lambda: not any(map(exists, pids_in(pool.folder))))
  env.close()
  env = pool.make_env()
  assert env.reset(TASK).goal == 'goal'
  env.close()
  assert not {'hangs', 'deaths', 'failed_starts'} & counted(pool).keys()


# Starts and settings.


def test_a_start_that_fails(cluster, monkeypatch):
  with pytest.raises(PoolError, match='OSError: no chromium here: apt-get install chromium; the last that it printed: looking for a browser'):
    RayPool(no_browser, 1)
  monkeypatch.setattr(ray_pool, 'GRACE', 0.0)
  monkeypatch.setattr(ray_pool, 'code_hash', lambda: 'another')
  with pytest.raises(PoolError, match='has mempi_jax in another state than this machine'):
    RayPool(World, 1)


def test_a_cluster_without_room(cluster, monkeypatch, caplog):
  monkeypatch.setattr(ray_pool, 'GRACE', 0.0)
  with pytest.raises(PoolError, match=r'within 0\.2 s: \d of 9 workers have started; each needs one CPU of the Ray cluster, which has 8 \(nodes: 1\)'):
    RayPool(World, 9, start_timeout=0.2)
  assert '0 of 9 workers have started' in caplog.text and 'waiting for more, up to 0.2 s' in caplog.text


def test_what_cannot_be_sent_to_an_actor():
  with pytest.raises(ValueError, match='cannot be pickled'):
    RayPool(lambda: World(), 1)
  with pytest.raises(ValueError, match='expected at least one worker'):
    RayPool(World, 0)


def config(**overrides):
  return resolve(load_config(CONFIG, SMALL | {name.replace('__', '.'): value for name, value in overrides.items()}))


def test_configs_that_cannot_be(monkeypatch):
  suite = make_suite(config())
  for fields, text in (
    (dict(pool__backend='rai'), "pool.backend is 'rai': expected one of process, ray; did you mean ray"),
    (dict(pool__workers=2, pool__address='head:6379'), "pool.address is 'head:6379', of a Ray cluster, and pool.backend is 'process'"),
    (dict(pool__backend='ray'), 'pool.workers 0: expected how many'),
    (dict(pool__backend='ray', pool__workers=2, pool__address='ray://head:10001'), 'Ray client server: expected HOST:PORT'),
    (dict(pool__backend='ray', pool__workers=2, pool__step_timeout=0.0), 'step_timeout is 0.0'),
  ):
    with pytest.raises(ConfigError, match=text):
      make_pool(config(**fields), suite)
  with monkeypatch.context() as patch:
    patch.setitem(sys.modules, 'ray', None)
    with pytest.raises(ConfigError, match=r"the package ray cannot be imported .*: pip install 'mempi_jax\[ray\]'"):
      make_pool(config(pool__backend='ray', pool__workers=2), suite)
  monkeypatch.setattr(ray, 'is_initialized', lambda: False)
  monkeypatch.setattr(ray, 'shutdown', lambda: None)
  start = time.monotonic()
  with pytest.raises(ConfigError, match=r'the Ray cluster at 127.0.0.1:1 cannot be reached: .*refused.*; expected HOST:PORT of a running cluster'):
    make_pool(config(pool__backend='ray', pool__workers=2, pool__address='127.0.0.1:1'), suite)
  assert time.monotonic() - start < 5.0


# Episodes.


def test_episodes_of_a_simulator_are_those_of_this_process(cluster):
  plain = config(agent__kind='scripted')
  remote = config(agent__kind='scripted', pool__backend='ray', pool__workers=2)
  suite = make_suite(plain)
  agent = ScriptedAgent(suite.player)
  specs = suite.splits['heldout_games'][:4]
  tasks = [Task(suite.name, spec.task_id, spec.split, seed) for seed, spec in enumerate(specs)]
  guidances = [Guidance(Decision.GENERATE, spec.truth, source='oracle') for spec in specs]
  expected = make_runner(plain, suite, agent, None).run(tasks, guidances)
  with make_pool(remote, suite) as envs:
    found = make_runner(remote, suite, agent, envs).run(tasks, guidances)
    assert (envs.counters.resets, envs.counters.faults) == (4, 0)
  assert found == expected and sum(len(episode.steps) for episode in found) > 12


def test_episodes_under_faults(cluster, tmp_path):
  # Of their tries one is killed, one hangs, one leaks and one raises.
  tasks, seed = make_tasks(12, 41), 41
  limits = dict(reset_timeout=2.0, step_timeout=2.0, memory_limit=200 << 20, memory_interval=0.05)
  with RayPool(functools.partial(FaultyEnv, str(tmp_path), seed, 0.06, 0.001), 2, **limits) as pool:
    faulty = play(tasks, pool, 3)
  here = functools.partial(FaultyEnv, '', seed, 0.0, 0.0)
  episodes = run_episodes(here, HashAgent(), tasks, abstained(len(tasks)), [LONGEST] * len(tasks))
  faultless = dataclasses.replace(faulty, episodes=dict(enumerate(episodes)))
  assert check_run(tasks, faultless, faulty) == 0  # no episode was lost, and each is as it was here
  counters = faulty.counters
  assert counters.resets == len(tasks) + counters.faults == len(list(tmp_path.iterdir()))
  assert counters.started == 2 + counters.faults + counters.retired
  assert counters.deaths == counters.raised == 1 and counters.hangs + counters.leaks >= 2  # on a busy machine more tries hang


# Ends.


def test_closing_leaves_nothing(cluster, tmp_path):
  with RayPool(functools.partial(World, str(tmp_path)), 2, step_timeout=60.0, close_timeout=0.5) as pool:
    env, idle = pool.make_env(), pool.make_env()
    pids = set()
    for one in (env, idle):
      one.reset(TASK)
      one.step('fork')
      pids |= {*family(int(one.step('pid').observation.split()[1])), *pids_in(tmp_path)}
    assert len(pids) == 14 and all(map(exists, pids))
    threading.Timer(0.2, pool.close).start()
    with pytest.raises(WorkerError):
      env.step('hang')
  assert wait_until(lambda: not any(map(exists, pids)))
  assert len(list(tmp_path.glob('*.closed'))) == 1  # the one that was not hanging could close
  for one in (env, idle):
    one.close()
  with pytest.raises(PoolError, match='closed'):
    pool.make_env()
  assert ray.is_initialized()  # it was connected before


SCRIPT = """
import functools, json, os, sys
from {module} import World
from tests.rollout.test_ray_pool import family
from mempi_jax.rollout import worker
from mempi_jax.rollout.ray_pool import RayPool
from mempi_jax.types import Task
with RayPool(functools.partial(World, {folder!r}), 2, address='local', close_timeout=1.0) as pool:
  envs = [pool.make_env() for _ in range(2)]
  pids = []
  for env in envs:
    env.reset(Task('world', 'a', 'train', 1))
    env.step('fork')
    pids += family(int(env.step('pid').observation.split()[1]))
  print(json.dumps([pids, worker.descendants(os.getpid())]), flush=True)
  if {hang}:
    envs[0].step('hang')
print(worker.descendants(os.getpid()), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize('how', ['close', 'SIGKILL'])
def test_nothing_outlives_the_driver_of_its_own_cluster(tmp_path, how):
  script = SCRIPT.format(module=World.__module__, folder=str(tmp_path), hang=how != 'close')
  environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), *sys.path])}
  with subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE, text=True, env=environment) as driver:
    pids = set()
    try:
      ours, rays = map(set, json.loads(driver.stdout.readline()))
      ours |= set(pids_in(tmp_path))
      pids = ours | rays
      assert len(ours) == 2 * 7 and len(rays - ours) > 3 and all(map(exists, pids))
      if how == 'close':
        assert driver.stdout.readline() == '[]\n' and driver.wait(60) == 0
        assert not any(map(exists, pids))  # at once
      else:
        driver.kill()
        assert wait_until(lambda: not any(map(exists, ours)))
        assert wait_until(lambda: not any(map(exists, rays)), 200)  # those of Ray try for a minute to tell somebody
    finally:
      driver.kill()
      for pid in filter(exists, pids):
        os.kill(pid, signal.SIGKILL)


NODES = """
import functools, json, os, threading
import ray
from ray.cluster_utils import Cluster
from mempi_jax.bench.pool import FaultyEnv, check_run, make_tasks, play
from mempi_jax.rollout.ray_pool import RayPool

def raylets(pool):
  parents = [actor.handle.__ray_call__.remote(lambda self: os.getppid()) for actor in pool._waiting]
  return sorted(set(ray.get(parents)))

cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, include_dashboard=False))
nodes = [cluster.add_node(num_cpus=4) for _ in range(2)]
tasks = make_tasks(120, 1)
with RayPool(functools.partial(FaultyEnv, '', 1, 0.0, 0.02), 4, address=cluster.address) as pool:
  both = raylets(pool)
  faultless = play(tasks, pool, 2)
  threading.Timer(0.5, cluster.remove_node, [nodes[1], False]).start()
  faulty = play(tasks, pool, 2)
  print(json.dumps([both, raylets(pool), check_run(tasks, faultless, faulty), faultless.counters.faults, faulty.counters.deaths]), flush=True)
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_node_that_is_lost():
  environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), *sys.path])}
  done = subprocess.run([sys.executable, '-c', NODES], capture_output=True, text=True, timeout=240, env=environment)
  assert done.returncode == 0, done.stderr
  both, left, errors, before, deaths = json.loads(done.stdout.splitlines()[-1])
  assert len(both) == 2 and len(left) == 1 and set(left) < set(both)
  assert (errors, before) == (0, 0) and 1 <= deaths <= 2  # the workers of one of two nodes
