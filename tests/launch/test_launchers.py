"""The launchers: what they would run, and what they do where gcloud, srun and kubectl are stand-ins that run everything on this machine."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / 'launch'

# An argument that every level of quoting must leave as it is.
HARD = """--config.name=it's "two  words" $HOME $(date) $$ \\n `x` ; & | * # ~ ${NAME}"""
COMMAND = ['python', '-m', 'mempi_jax.train', '--config=configs/alfworld.py', '--workdir=/mnt/share/runs/a', '--config.mesh.fsdp=8', HARD]
POD = ['--name=my-run', '--zone=us-east5-a', '--accelerator=v5p-16']
JOBSET = ['--name=my-run', '--image=registry.example/mempi:1', '--claim=runs']
SLURM = {'SLURM_JOB_ID': '123456', 'SLURM_NNODES': '2', 'SLURM_JOB_NODELIST': 'gpu-a,gpu-b'}


def launch(script, *arguments, check=True, environment=None):
  """Runs a launcher to its end; returns what it printed, or, without `check`, the finished process."""
  done = subprocess.run(['bash', str(script), *arguments], env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=120)
  if not check:
    return done
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


def executable(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)


def wait_for(path, lines=1):
  """Until a file has as many lines."""
  for _ in range(400):
    if path.exists() and len(path.read_text().splitlines()) >= lines:
      return
    time.sleep(0.05)
  raise AssertionError(f'{path} has not come to {lines} lines')


# --- Cloud TPU


# The Python of a machine's environment: it tells where it is, and writes down what pip installs.
PYTHON = """#!/usr/bin/env bash
case "$*" in
  *sys.prefix*) echo "$VIRTUAL_ENV" ;;
  *sys.version_info* | '-m pip --version') ;;
  '-m pip install'*) echo "$*" >> "$FAKE/installed"; [[ ! -e "$FAKE/no_packages" ]] ;;
  *) exit 9 ;;
esac
"""


class Cloud:
  """A gcloud whose machines are folders (fake_gcloud.sh), and a repository of nothing but the launchers to be copied to them."""

  def __init__(self, folder):
    self.folder = folder
    self.root = folder / 'repository'
    shutil.copytree(LAUNCH, self.root / 'launch')
    (self.root / 'setup.py').write_text('')
    executable(folder / 'bin' / 'gcloud', Path(__file__).with_name('fake_gcloud.sh').read_text())
    executable(folder / 'python', PYTHON)
    self.environment = {**os.environ, 'FAKE': str(folder), 'PATH': f'{folder / "bin"}:{os.environ["PATH"]}'}

  def job(self, text):
    """A command for the machines: writes a line with its machine and arguments to `started`, then does as the text says.

    The text may use $again, which is 1 where the file `again` was there before, and `all_started N`, which waits for N lines.
    """
    before = '[[ -e "$FAKE/again" ]] && again=1\nall_started() { until [[ "$(wc -l < "$FAKE/started")" -ge "$1" ]]; do sleep 0.05; done; }'
    executable(self.folder / 'job', f'#!/usr/bin/env bash\n{before}\necho "$MACHINE $*" >> "$FAKE/started"\n{text}\n')
    return str(self.folder / 'job')

  def command(self, *arguments):
    return ['bash', str(self.root / 'launch' / 'tpu_pod.sh'), '--poll=0', *arguments]

  def run(self, *arguments):
    return subprocess.run(self.command(*arguments), env=self.environment, capture_output=True, text=True, timeout=120)

  def lines(self, name):
    path = self.folder / name
    return path.read_text().splitlines() if path.exists() else []

  def calls(self):
    """What was asked of gcloud, without the question whether machines answer: verbs, and for ssh what tpu_worker.sh was to do."""
    result = []
    for line in self.lines('calls'):
      arguments = shlex.split(line)
      verb = arguments[3]
      if verb == 'ssh':
        command = next(argument for argument in arguments if argument.startswith('--command='))
        if command == '--command=true':
          continue
        verb = re.search(r'tpu_worker.sh (\w+)', command)[1]
      result.append(verb)
    return result


@pytest.fixture
def cloud(tmp_path):
  return Cloud(tmp_path)


def dry_run(text):
  """The commands of a dry run, each as its arguments."""
  return [shlex.split(line) for line in text.splitlines() if not line.startswith('#')]


def sent(call):
  """What an ssh call lets a machine run, as the machine's shell reads it."""
  return shlex.split(next(argument for argument in call if argument.startswith('--command=')).removeprefix('--command='))


def test_pod_prints_every_command(cloud):
  text = cloud.run(*POD, '--project=mine', '--spot', '--share=10.0.0.2:/vol', '--delete', '--dry_run', '--', *COMMAND).stdout
  calls = dry_run(text)
  assert not cloud.lines('calls')  # none was run
  place = ['--zone=us-east5-a', '--project=mine']
  request = ['gcloud', 'compute', 'tpus', 'queued-resources']
  assert calls[0] == [*request, 'create', 'my-run', *place, '--node-id=my-run', '--accelerator-type=v5p-16', '--runtime-version=v2-alpha-tpuv5', '--spot']
  assert calls[1] == [*request, 'list', *place, '--filter=name~/my-run$', '--format=value(state.state)']
  assert calls[-1] == calls[-3] == [*request, 'delete', 'my-run', *place, '--force', '--quiet']
  ssh = [call for call in calls if call[4:5] == ['ssh']]
  for call in ssh:
    assert call[:6] == ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', 'my-run'] and call[6:8] == place
  tar, copy = (next(call for call in calls if word in call) for word in ('tar', 'scp'))
  assert copy == ['gcloud', 'compute', 'tpus', 'tpu-vm', 'scp', tar[2], 'my-run:mempi_jax.tar.gz', *place, '--worker=all']
  assert calls.index(tar) < calls.index(copy) < calls.index(ssh[1])
  done = [sent(call) for call in ssh]
  worker = ['bash', 'mempi_jax/launch/tpu_worker.sh']
  assert done[0] == ['true']
  assert done[1][-4:] == [*worker, 'setup', '10.0.0.2:/vol']
  assert done[2] == [*worker, 'start', 'my-run-0', *COMMAND, '--hosts=auto']
  assert [command[2:] for command in done[3:]] == [['follow', 'my-run-0'], ['running', 'my-run-0'], ['result', 'my-run-0'], ['stop']]
  assert [next(argument for argument in call if argument.startswith('--worker=')) for call in ssh] == [
    f'--worker={worker}' for worker in ('all', 'all', 'all', '0', '0', 'all', 'all')
  ]


def test_pod_of_several_slices():
  calls = dry_run(launch(LAUNCH / 'tpu_pod.sh', *POD, '--slices=2', '--dry_run', '--', *COMMAND))
  assert {'--node-count=2', '--node-prefix=my-run'} < set(calls[0]) and '--spot' not in calls[0]
  started = [call[5] for call in calls if call[4] == 'ssh' and 'start' in sent(call)]
  assert started == ['my-run-0', 'my-run-1']
  assert sum('delete' in call for call in calls) == 1  # of a preempted one: the end was not asked to delete anything


@pytest.mark.parametrize(
  ('accelerator', 'runtime'), [('v4-8', 'tpu-ubuntu2204-base'), ('v5litepod-16', 'v2-alpha-tpuv5-lite'), ('v6e-16', 'v2-alpha-tpuv6e'), ('v9-8', 'mine')]
)
def test_pod_runtime(accelerator, runtime):
  given = ['--runtime=mine'] if runtime == 'mine' else []
  text = launch(LAUNCH / 'tpu_pod.sh', '--name=a', '--zone=z', f'--accelerator={accelerator}', *given, '--dry_run', '--', *COMMAND)
  assert f'--runtime-version={runtime}' in dry_run(text)[0]


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([*POD, '--spott', '--', 'x'], 'unknown option --spott; expected: launch/tpu_pod.sh --name=NAME'),
    ([*POD], 'there is no command'),
    ([*POD, '--'], 'there is no command'),
    ([*POD[1:], '--', 'x'], '--name is missing'),
    ([POD[0], POD[2], '--', 'x'], '--zone is missing'),
    ([*POD[:2], '--', 'x'], '--accelerator is missing'),
    ([*POD[:2], '--accelerator=v9-8', '--', 'x'], '--accelerator=v9-8: expected v2-N'),
    ([*POD, '--name=My_run', '--', 'x'], '--name=My_run: expected lower-case'),
    ([*POD, '--slices=0', '--', 'x'], '--slices=0: expected at least 1'),
    ([*POD, '--max_restarts=many', '--', 'x'], '--max_restarts=many: expected a number'),
    ([*POD, '--share=/mnt', '--', 'x'], '--share=/mnt: expected SERVER:/EXPORT'),
    ([*POD, '--', 'x', '--hosts=2'], '--hosts=2 is in the command'),
    ([*POD, '--', 'x', '--workdir=runs/a'], '--workdir=runs/a: every machine would have its own'),
  ],
)
def test_pod_bad_options(arguments, message):
  done = launch(LAUNCH / 'tpu_pod.sh', *arguments, check=False)
  assert done.returncode == 1 and message in done.stderr, done.stderr


def test_pod_without_gcloud(tmp_path):
  for tool in ('bash', 'dirname'):
    (tmp_path / tool).symlink_to(shutil.which(tool))
  done = launch(LAUNCH / 'tpu_pod.sh', *POD, '--', 'x', check=False, environment={'PATH': str(tmp_path)})
  assert done.returncode == 1 and 'gcloud is not installed' in done.stderr


def test_pod_runs_a_command(cloud):
  job = cloud.job('echo "from $MACHINE"')
  done = cloud.run(*POD, '--setup=echo own >> "$FAKE/own"', '--', job, HARD)
  assert done.returncode == 0, done.stdout + done.stderr
  assert cloud.calls() == ['list', 'create', 'list', 'scp', 'setup', 'start', 'follow']
  assert sorted(cloud.lines('started')) == [f'my-run-{worker} {HARD} --hosts=auto' for worker in (0, 1)]
  assert 'from my-run-0' in done.stdout and 'from my-run-1' not in done.stdout  # one log is shown
  # Once on each machine: the package, then JAX for TPUs.
  assert [line.split()[-1] for line in sorted(cloud.lines('installed'))].count('jax[tpu]') == 2
  assert sum('--editable' in line for line in cloud.lines('installed')) == 2
  assert cloud.lines('own') == ['own'] * 2
  # The machines are kept: another command finds them installed, and does not ask for new ones.
  assert cloud.run(*POD, '--delete', '--', job).returncode == 0
  assert cloud.calls()[7:] == ['list', 'scp', 'setup', 'start', 'follow', 'delete']
  assert sum('--editable' in line for line in cloud.lines('installed')) == 2


def test_pod_goes_on_after_a_preemption(cloud):
  """The TPU is taken away under the first run, and refuses all connections."""
  job = cloud.job('[[ -n "${again:-}" ]] && exit 0\nall_started 4; touch "$FAKE/again"; echo SUSPENDED > "$FAKE/state"; exit 143')
  done = cloud.run(*POD, '--slices=2', '--', job)
  assert done.returncode == 0, done.stdout + done.stderr
  calls = cloud.calls()
  first = ['list', 'create', 'list', 'scp', 'scp', 'setup', 'setup', 'start', 'start', 'follow']
  again = ['list', 'delete', *first]
  assert calls[: len(first)] == first and calls[-len(again) :] == again, calls
  assert set(calls[len(first) : -len(again)]) <= {'running', 'result'}
  started = sorted(cloud.lines('started'))
  assert started == sorted(2 * [f'my-run-{node}-{worker} --hosts=auto' for node in (0, 1) for worker in (0, 1)])
  assert 'machines were lost (restart 1 of at most 100)' in done.stdout


def test_pod_takes_up_machines_that_answer_again(cloud):
  """Both hosts missed another one (75): the run starts again, on the machines that are there."""
  job = cloud.job('[[ -e "$FAKE/once-$MACHINE" ]] && exit 0\ntouch "$FAKE/once-$MACHINE"; exit 75')
  done = cloud.run(*POD, '--', job)
  assert done.returncode == 0, done.stdout + done.stderr
  assert [call for call in cloud.calls() if call in ('create', 'delete', 'start')] == ['create', 'start', 'start']
  assert len(cloud.lines('started')) == 4 and sum('--editable' in line for line in cloud.lines('installed')) == 2


def test_pod_replaces_machines_that_do_not_answer(cloud):
  """The request still counts as active."""
  job = cloud.job('[[ -n "${again:-}" ]] && exit 0\nall_started 2; touch "$FAKE/again" "$FAKE/no_answer"; exit 143')
  done = cloud.run(*POD, '--', job)
  assert done.returncode == 0, done.stdout + done.stderr
  assert [call for call in cloud.calls() if call in ('create', 'delete', 'start')] == ['create', 'start', 'delete', 'create', 'start']


def test_pod_gives_up_after_the_last_restart(cloud):
  done = cloud.run(*POD, '--max_restarts=1', '--', cloud.job('exit 75'))
  assert done.returncode == 1 and 'machines were lost 2 times (--max_restarts=1)' in done.stderr
  assert len(cloud.lines('started')) == 4


def test_pod_ends_with_the_status_of_a_command_that_fails(cloud):
  """One host fails by itself; the other says that it missed it. Starting them again would fail again."""
  job = cloud.job('echo "message of $MACHINE"; [[ "$MACHINE" == my-run-1 ]] && exit 3; exit 75')
  done = cloud.run(*POD, '--delete', '--', job)
  assert done.returncode == 3, done.stdout + done.stderr
  assert len(cloud.lines('started')) == 2 and cloud.calls()[-1] == 'delete'
  assert 'message of my-run-0' in done.stdout and 'the command failed with status 3' in done.stdout


def test_pod_stops_where_machines_cannot_be_set_up(cloud):
  (cloud.folder / 'no_packages').touch()
  done = cloud.run(*POD, '--', cloud.job(''))
  assert done.returncode == 1 and 'the set-up failed' in done.stderr and not cloud.lines('started')


def test_pod_request_refused(cloud):
  (cloud.folder / 'refused').touch()
  done = cloud.run(*POD, '--', cloud.job(''))
  assert done.returncode == 1 and 'ERROR: quota' in done.stderr and 'the request was refused' in done.stderr


def test_pod_signal_reaches_every_machine_once(cloud):
  job = cloud.job(
    'trap \'echo "$MACHINE" >> "$FAKE/signals"; asked=1\' TERM\necho >> "$FAKE/waiting"\n'
    'for _ in $(seq 300); do sleep 0.1; [[ -n "${asked:-}" ]] && sleep 1 && echo saved >> "$FAKE/saved" && exit 143; done'
  )
  process = subprocess.Popen(cloud.command(*POD, '--', job), env=cloud.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  wait_for(cloud.folder / 'waiting', lines=2)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=30)
  assert process.returncode == 143, output
  assert sorted(cloud.lines('signals')) == ['my-run-0', 'my-run-1'] and cloud.lines('saved') == ['saved'] * 2
  assert cloud.calls()[-1] == 'stop' and (cloud.folder / 'state').exists()


def test_worker_commands_may_be_repeated(cloud, tmp_path):
  """gcloud repeats what it sent when the connection breaks: it must not start a second process."""
  job = cloud.job('until [[ -e "$FAKE/go" ]]; do sleep 0.05; done; echo end; exit 4')
  worker = [str(cloud.root / 'launch' / 'tpu_worker.sh')]
  environment = {'FAKE': str(tmp_path), 'HOME': str(tmp_path), 'VIRTUAL_ENV': str(tmp_path / 'environment'), 'MACHINE': 'here'}
  for _ in range(2):
    launch(*worker, 'start', 'one', job, 'a b', environment=environment)
  launch(*worker, 'running', 'one', environment=environment)
  (tmp_path / 'go').touch()
  for _ in range(2):
    followed = launch(*worker, 'follow', 'one', check=False, environment=environment)
    assert followed.returncode == 4 and followed.stdout == 'end\n'
    assert launch(*worker, 'result', 'one', environment=environment).endswith(' ended with status 4\n')
  assert cloud.lines('started') == ['here a b']
  assert launch(*worker, 'running', 'one', check=False, environment=environment).returncode == 1
  lost = launch(*worker, 'result', 'another', check=False, environment=environment)
  assert lost.returncode == 1 and 'knows no end of the run another' in lost.stderr


def test_worker_ends_the_run_before(cloud, tmp_path):
  """The script was started again from another terminal: two runs would share a working folder."""
  waits = cloud.job('trap "exit 143" TERM\necho >> "$FAKE/waiting"\nwhile true; do sleep 0.1; done')
  worker = [str(cloud.root / 'launch' / 'tpu_worker.sh')]
  environment = {'FAKE': str(tmp_path), 'HOME': str(tmp_path), 'VIRTUAL_ENV': str(tmp_path / 'environment'), 'MACHINE': 'here'}
  launch(*worker, 'start', 'one', waits, environment=environment)
  wait_for(tmp_path / 'waiting')
  launch(*worker, 'start', 'two', 'true', environment=environment)
  assert launch(*worker, 'result', 'one', environment=environment).endswith(' ended with status 143\n')
  assert launch(*worker, 'result', 'two', environment=environment).endswith(' ended with status 0\n')


# --- Slurm


@pytest.fixture
def slurm(tmp_path):
  """Stand-ins for Slurm's commands; the environment of a job on two nodes."""
  executable(
    tmp_path / 'bin' / 'srun',
    """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$FAKE/srun"
while [[ "$1" == --* ]]; do shift; done
for SLURM_NODEID in 0 1; do
  SLURM_NODEID=$SLURM_NODEID SLURM_LOCALID=0 "$@" &
  echo $! >> "$FAKE/tasks"
done
status=0
for task in $(cat "$FAKE/tasks"); do
  wait "$task" || status=$?
done
exit $status
""",
  )
  executable(tmp_path / 'bin' / 'scancel', '#!/usr/bin/env bash\necho "$*" >> "$FAKE/scancel"\nkill -TERM $(cat "$FAKE/tasks")\n')
  executable(tmp_path / 'bin' / 'scontrol', '#!/usr/bin/env bash\necho "$*" >> "$FAKE/scontrol"\n[[ "$1" != show ]] || printf "%s\\n" node-07 node-08\n')
  return {**SLURM, 'FAKE': str(tmp_path), 'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}'}


TASK = r"""
import os, signal, sys, time
from pathlib import Path
fake, asked = Path(os.environ['FAKE']), []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
host = next(argument for argument in sys.argv if argument.startswith('--host='))
with open(fake / 'started', 'a') as file:
  file.write(f"{host} {os.environ.get('SLURM_LOCALID')}\n")
end = time.time() + float(sys.argv[1])
while time.time() < end and not asked:
  time.sleep(0.02)
time.sleep(0.3)
with open(fake / 'ended', 'a') as file:
  file.write(f'{host} {len(asked)}\n')
sys.exit(143 if asked else int(sys.argv[2]))
"""


def task(seconds, status=0):
  """A command that ends after some time with a status, or with 143 after SIGTERM."""
  return [sys.executable, '-c', TASK, str(seconds), str(status)]


def test_sbatch_prints_its_command():
  [call] = dry_run(launch(LAUNCH / 'gpu.sbatch', '--dry_run', '--', *COMMAND, environment=SLURM))
  assert call[0] == 'srun' and call[1] == '--ntasks-per-node=1'
  script = call.index('bash')
  assert call[script + 1] == '-c' and '--host="$SLURM_NODEID"' in call[script + 2]
  assert call[script + 4 :] == [*COMMAND, '--hosts=2', '--coordinator=gpu-a:18456']


def test_sbatch_coordinator_is_the_first_of_the_list(slurm):
  [call] = dry_run(launch(LAUNCH / 'gpu.sbatch', '--dry_run', '--', 'x', environment={**slurm, 'SLURM_JOB_NODELIST': 'node-[07-08]'}))
  assert call[-1] == '--coordinator=node-07:18456'


def test_sbatch_containers():
  [call] = dry_run(launch(LAUNCH / 'gpu.sbatch', '--container=images/a b.sif', '--mounts=/data:/mnt/share', '--dry_run', '--', 'x', environment=SLURM))
  inside = call.index('apptainer')
  assert call[inside : inside + 7] == ['apptainer', 'exec', '--nv', '--bind', '/data:/mnt/share', 'images/a b.sif', 'bash']
  [call] = dry_run(launch(LAUNCH / 'gpu.sbatch', '--container=registry#mempi:1', '--mounts=/data:/mnt/share', '--dry_run', '--', 'x', environment=SLURM))
  assert {'--container-image=registry#mempi:1', '--container-mounts=/data:/mnt/share'} < set(call[: call.index('bash')])


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--contaner=x', '--', 'x'], 'unknown option --contaner=x; expected: sbatch launch/gpu.sbatch'),
    (['python', '-m', 'x'], 'unknown option python'),
    ([], 'there is no command'),
    (['--', 'x', '--host=0'], '--host=0 is in the command'),
    (['--mounts=/a:/b', '--', 'x'], '--mounts=/a:/b is for a container'),
    (['--venv=/nowhere', '--', 'x'], '--venv=/nowhere has no bin/python'),
  ],
)
def test_sbatch_bad_options(arguments, message):
  done = launch(LAUNCH / 'gpu.sbatch', *arguments, check=False, environment=SLURM)
  assert done.returncode == 1 and message in done.stderr, done.stderr


def test_sbatch_outside_slurm():
  done = launch(LAUNCH / 'gpu.sbatch', '--', 'x', check=False, environment=dict.fromkeys(SLURM, ''))
  assert done.returncode == 1 and 'SLURM_JOB_ID is not set' in done.stderr


@pytest.mark.parametrize('status', [0, 3])
def test_sbatch_runs_one_process_a_node(slurm, tmp_path, status):
  done = launch(LAUNCH / 'gpu.sbatch', '--', *task(0, status), check=False, environment=slurm)
  assert done.returncode == status, done.stderr
  # JAX must not see SLURM_LOCALID: it would take the first GPU alone.
  assert sorted((tmp_path / 'started').read_text().splitlines()) == ['--host=0 None', '--host=1 None']
  assert not (tmp_path / 'scontrol').exists()


def batch(slurm, tmp_path, number, seconds):
  """Starts a job of so many seconds, sends its script a signal once both processes run, and waits for the end; returns the status."""
  process = subprocess.Popen(['bash', str(LAUNCH / 'gpu.sbatch'), '--', *task(seconds)], env={**os.environ, **slurm})
  wait_for(tmp_path / 'started', lines=2)
  process.send_signal(number)
  return process.wait(timeout=30)


@pytest.mark.parametrize(('array', 'job'), [({}, '123456'), ({'SLURM_ARRAY_JOB_ID': '123450', 'SLURM_ARRAY_TASK_ID': '6'}, '123450_6')])
def test_sbatch_saves_and_queues_again_before_the_time_limit(slurm, tmp_path, array, job):
  assert batch({**slurm, **array}, tmp_path, signal.SIGUSR1, seconds=25) == 0
  assert sorted((tmp_path / 'ended').read_text().splitlines()) == ['--host=0 1', '--host=1 1']  # one SIGTERM each: a second would not let it save
  assert (tmp_path / 'scancel').read_text() == f'--signal=TERM {job}\n'
  assert (tmp_path / 'scontrol').read_text() == f'requeue {job}\n'


def test_sbatch_cancelled_job_does_not_come_back(slurm, tmp_path):
  """scancel sends SIGTERM to the processes too: the script waits for them and adds nothing."""
  assert batch(slurm, tmp_path, signal.SIGTERM, seconds=1.5) == 0
  assert sorted((tmp_path / 'ended').read_text().splitlines()) == ['--host=0 0', '--host=1 0']
  assert not (tmp_path / 'scancel').exists() and not (tmp_path / 'scontrol').exists()


def test_sbatch_header():
  text = (LAUNCH / 'gpu.sbatch').read_text()
  header = re.findall(r'^#SBATCH (.+)$', text, re.MULTILINE)
  assert {'--ntasks-per-node=1', '--signal=B:USR1@120', '--requeue', '--open-mode=append'} < set(header)
  assert text.index('set -euo') > text.rindex('#SBATCH')  # sbatch reads no options after the first command


# --- Kubernetes


def manifest(*arguments):
  """The manifest of a dry run, and the command that it is for."""
  command, _, rest = launch(LAUNCH / 'k8s' / 'submit.sh', *arguments, '--dry_run', '--', *COMMAND).partition('\n')
  assert rest.endswith('\nMANIFEST\n') and '${NAME}' in rest  # of the argument; nothing else is left to fill in
  assert re.findall(r'\$\{\w+\}', rest) == ['${NAME}']
  return yaml.safe_load(rest.removesuffix('MANIFEST\n')), shlex.split(command)


def as_started(arguments, variables):
  """The arguments as Kubernetes gives them to a container: $(NAME) is a variable, $$ is $."""
  return [re.sub(r'\$(\$|\((\w+)\))', lambda found: '$' if found[1] == '$' else variables[found[2]], argument) for argument in arguments]


def pods(job_set):
  """(job, pod, container) of a JobSet with one replicated job."""
  [replicated] = job_set['spec']['replicatedJobs']
  job = replicated['template']['spec']
  [container] = job['template']['spec']['containers']
  return job, job['template']['spec'], container


def test_templates_are_yaml():
  for path in (LAUNCH / 'k8s').glob('*.yaml'):
    document = yaml.safe_load(path.read_text())
    assert (document['apiVersion'], document['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')


@pytest.mark.parametrize('device', [['--device=tpu'], ['--device=gpu', '--hosts=2']])
def test_jobset_starts_again_and_lets_runs_save(device):
  job_set, command = manifest(*device, *JOBSET, '--namespace=team', '--max_restarts=4')
  assert command == ['kubectl', 'create', '--namespace=team', '--filename=-', '<<', 'MANIFEST']
  assert job_set['metadata']['name'] == 'my-run' and job_set['metadata']['namespace'] == 'team'
  policy = job_set['spec']['failurePolicy']
  assert policy['maxRestarts'] == 4
  assert policy['rules'] == [{'name': 'disrupted', 'action': 'RestartJobSetAndIgnoreMaxRestarts', 'onJobFailureReasons': ['PodFailurePolicy']}]
  job, pod, container = pods(job_set)
  assert job['backoffLimit'] == 0 and job['completionMode'] == 'Indexed' and job['parallelism'] == job['completions'] == 2
  assert job['podFailurePolicy']['rules'] == [{'action': 'FailJob', 'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}]}]
  assert pod['restartPolicy'] == 'Never' and pod['terminationGracePeriodSeconds'] == 60
  assert container['image'] == 'registry.example/mempi:1'
  assert {'name': 'share', 'persistentVolumeClaim': {'claimName': 'runs'}} in pod['volumes']
  assert {'name': 'share', 'mountPath': '/mnt/share'} in container['volumeMounts']
  assert container['resources']['requests'] == container['resources']['limits']


def test_jobset_of_tpu_slices():
  job_set, _ = manifest('--device=tpu', *JOBSET, '--topology=2x2x4', '--slices=3')
  assert job_set['metadata']['annotations'] == {'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'}
  job, pod, container = pods(job_set)
  assert job_set['spec']['replicatedJobs'][0]['replicas'] == 3
  assert job['parallelism'] == 4  # 16 chips, four a machine
  assert pod['nodeSelector'] == {'cloud.google.com/gke-tpu-accelerator': 'tpu-v5p-slice', 'cloud.google.com/gke-tpu-topology': '2x2x4'}
  assert container['resources']['limits'] == {'google.com/tpu': 4}
  assert as_started(container['command'], {}) == [*COMMAND, '--hosts=auto']


def test_jobset_of_gpu_nodes():
  job_set, _ = manifest('--device=gpu', *JOBSET, '--hosts=3')
  job, pod, container = pods(job_set)
  [replicated] = job_set['spec']['replicatedJobs']
  assert job['parallelism'] == 3 and container['resources']['limits'] == {'nvidia.com/gpu': 8}
  assert job_set['spec']['network'] == {'enableDNSHostnames': True, 'publishNotReadyAddresses': True}
  # The index of a pod is its host number, and the first pod's name is that of JobSet: NAME-REPLICATED_JOB-JOB-POD.SUBDOMAIN.
  [variable] = container['env']
  assert variable['valueFrom'] == {'fieldRef': {'fieldPath': "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
  port = container['ports'][0]['containerPort']
  added = ['--hosts=3', '--host=2', f'--coordinator=my-run-{replicated["name"]}-0-0.my-run:{port}']
  assert as_started(container['command'], {variable['name']: '2'}) == [*COMMAND, *added]
  assert {'name': 'memory', 'emptyDir': {'medium': 'Memory'}} in pod['volumes']


def test_submit_gives_the_manifest_to_kubectl(tmp_path):
  executable(tmp_path / 'bin' / 'kubectl', '#!/usr/bin/env bash\necho "$*" > "$FAKE/arguments"\ncat > "$FAKE/manifest"\n[[ ! -e "$FAKE/refused" ]]\n')
  environment = {'FAKE': str(tmp_path), 'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}'}
  arguments = ['--device=gpu', '--hosts=2', *JOBSET, '--', *COMMAND]
  output = launch(LAUNCH / 'k8s' / 'submit.sh', *arguments, environment=environment)
  assert (tmp_path / 'arguments').read_text() == 'create --namespace=default --filename=-\n'
  assert yaml.safe_load((tmp_path / 'manifest').read_text()) == manifest('--device=gpu', '--hosts=2', *JOBSET)[0]
  assert 'jobset-name=my-run' in output
  (tmp_path / 'refused').touch()
  assert launch(LAUNCH / 'k8s' / 'submit.sh', *arguments, check=False, environment=environment).returncode == 1


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--device=tpu', *JOBSET, '--topolgy=2x2x2', '--', 'x'], 'unknown option --topolgy=2x2x2; expected: launch/k8s/submit.sh'),
    (['--device=tpu', *JOBSET], 'there is no command'),
    ([*JOBSET, '--', 'x'], '--device is missing'),
    (['--device=tpu', *JOBSET[:2], '--', 'x'], '--claim is missing'),
    (['--device=cpu', *JOBSET, '--', 'x'], '--device=cpu: expected tpu or gpu'),
    (['--device=gpu', *JOBSET, '--', 'x'], '--hosts=: expected a number'),
    (['--device=gpu', *JOBSET, '--hosts=2', '--slices=2', '--', 'x'], '--slices=2 is for --device=tpu'),
    (['--device=tpu', *JOBSET, '--hosts=2', '--', 'x'], '--hosts=2 is for --device=gpu'),
    (['--device=tpu', *JOBSET, '--topology=2x3', '--', 'x'], '--topology=2x3 has 6 chips: expected a multiple of 4'),
    (['--device=tpu', *JOBSET, '--topology=eight', '--', 'x'], '--topology=eight: expected AxB or AxBxC'),
    (['--device=tpu', *JOBSET, '--name=My_run', '--', 'x'], '--name=My_run: expected at most 40'),
    (['--device=tpu', *JOBSET, '--image=a b', '--', 'x'], '--image=a b is no name of an image'),
    (['--device=tpu', *JOBSET, '--', 'x', '--workdir=runs/a'], '--workdir=runs/a: every pod would have its own'),
    (['--device=tpu', *JOBSET, '--', 'x', 'a\nb'], 'has a line break'),
  ],
)
def test_submit_bad_options(arguments, message):
  done = launch(LAUNCH / 'k8s' / 'submit.sh', *arguments, check=False)
  assert done.returncode == 1 and message in done.stderr, done.stderr


# --- All


def test_shell_is_checked():
  if not shutil.which('shellcheck'):
    pytest.skip('shellcheck is not installed (apt-get install shellcheck)')
  scripts = sorted([*LAUNCH.glob('*.sh'), *LAUNCH.glob('*.sbatch'), *LAUNCH.glob('*/*.sh'), Path(__file__).with_name('fake_gcloud.sh')])
  assert len(scripts) >= 7
  done = subprocess.run(['shellcheck', '--shell=bash', '--external-sources', *map(str, scripts)], cwd=LAUNCH, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout
