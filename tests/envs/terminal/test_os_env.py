"""Operating-system tasks as an environment: what a reply means, what is seen, when it is solved; and the benchmark's own ground truths."""

from pathlib import Path

import pytest

from mempi_jax.envs.terminal.os_env import Command, Finish, Malformed, OsEnv, bash_action, parse_action
from mempi_jax.envs.terminal.os_tasks import OsTask, load_os_tasks
from mempi_jax.envs.terminal.sandbox import Limits, SandboxError
from mempi_jax.types import Task

SHARED = Path(__file__).parents[3].parent / 'shared/data/lifelong_os_380.json'
TASKS = {
  'file': OsTask('file', 'Make the file /a.', 'mkdir /b; false', 'test -f /a && test -d /b', 'touch /a'),
  'stuck': OsTask('stuck', 'Nothing.', 'sleep 600', 'true', 'true'),
  'group': OsTask('group', 'Make the group staff2.', '', 'getent group staff2', 'addgroup staff2'),
}


@pytest.mark.parametrize(
  'text, action',
  [
    ('Act: bash\n\n```bash\nls\n```', Command('ls')),
    ('Think: I list.\nact : BASH\n```\nls\ncd /\n```\nmore', Command('ls\ncd /')),
    ('**Act:** bash\n```sh\nls\n```', Command('ls')),
    ('**Act: bash**\n\n```bash\nls\n```', Command('ls')),
    ('Action: bash\r\n```bash\r\nls\r\n```', Command('ls')),
    ('Act: bash\n```bash\nls', Command('ls')),
    ('Act: bash\nls -l', Command('ls -l')),
    ('Act: bash `ls`', Command('ls')),
    ('```bash\nls\n```', Command('ls')),
    ('Act: bash\n```bash\nls\n```\nAct: finish', Command('ls')),
    ('Act: finish', Finish()),
    ('All is done.\nAct: **finish**.', Finish()),
    ('> Act: Finish\n```bash\nls\n```', Finish()),
    ('finish', Finish()),
    ('Act: bash\n```bash\n  if x; then\n    echo "```"\n  fi\n```', Command('  if x; then\n    echo "```"\n  fi')),
  ],
)
def test_replies(text, action):
  assert parse_action(text) == action


@pytest.mark.parametrize('text', ['', 'ls', 'Act: python\nprint()', 'Act: bash', 'Act: bash\n```bash\n\n```', 'Act: bash\nAct: finish', '```\na\n```\n```\nb\n```', '\0' * 9])
def test_replies_without_an_action(text):
  assert isinstance(parse_action(text), Malformed)


@pytest.fixture(scope='module')
def env(rootfs):
  env = OsEnv(TASKS, rootfs, Limits(seconds=3.0, output_bytes=200, processes=40))
  yield env
  env.close()


def task(name):
  return Task('os', name, 'train', 0)


def test_an_episode(env):
  context = env.reset(task('file'))
  assert context.goal == 'Make the file /a.' and 'Act: finish' in context.observation
  assert env.step(bash_action('cd /b; x=1')).observation == '(no output)'
  answer = env.step(bash_action('echo $x; pwd; false'))
  assert (answer.observation, answer.reward, answer.done, answer.success) == ('1\n/b\n(exit status 1)', 0.0, False, False)
  answer = env.step('I touch it: touch /a')
  assert '"Act: bash" or "Act: finish" is missing' in answer.observation and '```bash' in answer.observation and not answer.done
  env.step(bash_action('touch /a'))
  answer = env.step('Act: finish')
  assert (answer.reward, answer.done, answer.success) == (1.0, True, True)
  assert (env.malformed_actions, env.failed_commands) == (1, 1)
  with pytest.raises(RuntimeError, match='over'):
    env.step('Act: finish')
  env.reset(task('file'))
  assert env.malformed_actions == 0
  answer = env.step('Act: finish')
  assert (answer.reward, answer.done, answer.success) == (0.0, True, False)


def test_what_goes_wrong_is_an_observation(env):
  env.reset(task('file'))
  assert env.step(bash_action('echo a; sleep 60')).observation == (
    'a\n(stopped after 3 seconds) (the next command runs in a new shell; files are as they were)'
  )
  assert 'bytes left out' in env.step(bash_action('seq 1000')).observation
  assert len(env.step(bash_action('seq 100000')).observation) < 300
  assert 'the shell ended with status 3' in env.step(bash_action('exit 3')).observation
  assert 'Nothing was run: the command has' in env.step(bash_action('x' * 40_000)).observation
  assert 'NUL' in env.step(bash_action('echo \0')).observation
  assert 'all processes were ended' in env.step(bash_action('for i in $(seq 200); do sleep 60 & done; sleep 2.9')).observation
  assert 'syntax error' in env.step(bash_action('if')).observation
  env.step(bash_action('touch /a'))
  assert env.step('Act: finish').success


@pytest.mark.parametrize(
  'cheat',
  [
    'cp /usr/bin/true /usr/bin/getent',
    'mkdir -p /usr/local/bin; printf "#!/bin/sh\\nexit 0\\n" > /usr/local/bin/getent; chmod +x /usr/local/bin/getent; hash -r',
    'getent() { true; }; export -f getent; exit() { builtin exit 0; }; trap "exit 0" EXIT',
    'echo "exit 0" > /root/.bashrc; cp /root/.bashrc /etc/bash.bashrc; cp /root/.bashrc /etc/profile; export BASH_ENV=/etc/profile',
    'echo "int getgrnam" > /tmp/x.so; echo /tmp/x.so > /etc/ld.so.preload',
    'mv /usr/bin /usr/was; mkdir /usr/bin; for f in /usr/was/*; do ln -s $f /usr/bin/; done; ln -sf /usr/was/true /usr/bin/getent',
  ],
)
def test_cheating_the_check_does_not_pay(env, cheat):
  env.reset(task('group'))
  env.step(bash_action(cheat))
  assert not env.step('Act: finish').success


def test_errors(env, rootfs, tmp_path):
  with pytest.raises(KeyError, match="near names: file"):
    env.reset(task('fiel'))
  with pytest.raises(RuntimeError, match='reset'):
    OsEnv(TASKS, rootfs).step('Act: finish')
  with pytest.raises(SandboxError, match='rootfs'):
    OsEnv(TASKS, tmp_path)


def test_a_preparation_that_does_not_end_is_an_error(env, monkeypatch):
  monkeypatch.setattr('mempi_jax.envs.terminal.os_env.PREPARE_SECONDS', 0.5)
  with pytest.raises(SandboxError, match="task 'stuck': its preparation ended with timeout"):
    env.reset(task('stuck'))
  env.reset(task('file'))


# The benchmark.


def play_ground_truths(rootfs, chosen):
  """(ids whose check passes before anything is done, ids whose ground truth does not pass)."""
  tasks = load_os_tasks(SHARED)
  env = OsEnv(tasks, rootfs)
  early, failed = [], []
  for name in list(tasks)[chosen]:
    env.reset(task(name))
    if env.step('Act: finish').success:
      early.append(name)
    env.reset(task(name))
    env.step(bash_action(tasks[name].solution))
    if not env.step('Act: finish').success:
      failed.append(name)
    assert env.changed_programs == []
  env.close()
  return early, failed


@pytest.fixture
def shared_tasks():
  if not SHARED.exists():
    pytest.skip(f'{SHARED.name} of the shared data is not here: expected at {SHARED}')


def test_a_sample_of_the_ground_truths_passes(rootfs, shared_tasks):
  assert play_ground_truths(rootfs, slice(0, None, 60)) == ([], [])


@pytest.mark.slow
def test_the_ground_truths_pass(rootfs, shared_tasks):
  early, failed = play_ground_truths(rootfs, slice(None))
  assert early == []
  assert len(failed) <= 7, failed  # 98% of 380
