"""The launcher of sweeps: grids, what it prints, Slurm's script and array tasks; and (slow) real sweeps, killed and gone on with."""

import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mempi_jax import runs, slurm
from mempi_jax.config import ConfigError, expand_grid
from mempi_jax.runs import folder_name
from tests import sweep_runs
from tests.small_run import CONFIG, SMALL

LAUNCHER = Path(__file__).parents[2] / 'launch' / 'sweep.py'
SBATCH = '''#!/usr/bin/env python3
"""In place of Slurm's: runs the tasks of the array one after the other, here."""
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
assert sys.argv[1] == '--parsable' and script.startswith('#!/bin/bash')
options = dict(re.findall(r"^#SBATCH '?--([a-z-]+)[= ]?([^'\\n]*)", script, re.M))
log = os.environ['SBATCH_LOG']
first = 0
for span in options['array'].partition('%')[0].split(','):
  low, _, high = span.partition('-')
  for index in range(int(low), int(high or low) + 1):
    with open(options['output'].replace('%A', '17').replace('%a', str(index)), 'ab') as output:
      status = subprocess.run(['bash', sys.argv[-1]], env={**os.environ, 'SLURM_ARRAY_TASK_ID': str(index)}, stdout=output, stderr=output).returncode
    with open(log, 'a') as file:
      file.write(f'{index} {status}\\n')
print('17;cluster')
'''


@pytest.fixture(scope='module')
def launcher():
  spec = importlib.util.spec_from_file_location('launch_sweep', LAUNCHER)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture
def config(tmp_path, monkeypatch):
  """A config of runs that cost nothing."""
  monkeypatch.setattr(runs, 'commands_of', sweep_runs.commands_of)
  path = tmp_path / 'config.py'
  path.write_text(sweep_runs.CONFIG)
  return path


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
  """A fake sbatch on the PATH; returns the file in which it notes index and status of every task."""
  program = tmp_path / 'bin' / 'sbatch'
  program.parent.mkdir()
  program.write_text(SBATCH)
  program.chmod(0o755)
  monkeypatch.setenv('PATH', str(program.parent), prepend=os.pathsep)
  monkeypatch.setenv('SBATCH_LOG', str(tmp_path / 'sbatch.log'))
  return tmp_path / 'sbatch.log'


# Grids.


def test_a_grid_is_parsed_by_the_type_of_each_field(config):
  assert expand_grid(config, ['rate=1,2e-1', 'seed=0,1']) == [
    {'rate': 1.0, 'seed': 0}, {'rate': 1.0, 'seed': 1}, {'rate': 0.2, 'seed': 0}, {'rate': 0.2, 'seed': 1},
  ]  # fmt: skip
  assert expand_grid(config, ["parts=('x','y'),('z',)", 'kind=a,b'])[:2] == [{'parts': ('x', 'y'), 'kind': 'a'}, {'parts': ('x', 'y'), 'kind': 'b'}]
  assert all(isinstance(run['rate'], float) for run in expand_grid(config, ['rate=1']))


@pytest.mark.parametrize(
  ('axes', 'message'),
  [
    (['rate'], r"grid 'rate': expected FIELD=VALUE,VALUE,\.\.\."),
    (['rate='], "grid 'rate='"),
    (['rat=1'], 'unknown field rat; did you mean rate'),
    (['seed=1,a'], "field seed is int, found 'a'"),
    (['seed=1', 'seed=2'], 'seed has an axis already'),
    (['rate=1,1.0'], r'the value 1.0 comes twice'),
  ],
)
def test_grids_that_cannot_be_used(config, axes, message):
  with pytest.raises(ConfigError, match=message):
    expand_grid(config, axes)


def test_a_name_that_no_file_system_takes_is_cut_and_stays_its_own():
  many = {f'group.field_number_{i}': 1.5 for i in range(20)}
  one, other = folder_name(many), folder_name({**many, 'group.field_number_19': 2.5})
  assert len(one) <= 200 and one != other and one[:150] == other[:150]


# What it prints.


def test_it_runs_a_grid_and_ends_with_table_and_plot(launcher, config, tmp_path, capsys):
  arguments = [f'--config={config}', f'--workdir={tmp_path / "work"}', '--grid', 'rate=0.1,0.4', '--jobs=2']
  launcher.main([*arguments, '--dry_run'])
  assert [line.split() for line in capsys.readouterr().out.splitlines()] == [['0', 'rate=0.1', 'new'], ['1', 'rate=0.4', 'new']]
  assert not (tmp_path / 'work').exists()
  launcher.main([*arguments, '--run=1'])
  assert 'Not finished, and not in this table: 1 of 2 runs' in capsys.readouterr().out
  launcher.main([*arguments, '--dry_run'])
  assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ['new', 'finished']
  with pytest.raises(SystemExit):  # runs that cost nothing have no episodes, which the comparison of variants wants
    launcher.main(arguments)
  printed = capsys.readouterr().out
  assert '| 0.1 | 0.050 [0.000, 0.100] | 0.100 [0.050, 0.150] |' in printed and str(tmp_path / 'work' / 'plot.png') in printed
  assert (tmp_path / 'work' / 'rate=0.4' / 'started').read_text() == 'x'
  with pytest.raises(SystemExit):
    launcher.main([*arguments[:-1], '--run=2'])
  assert 'run is 2, expected 0 to 1' in capsys.readouterr().err


def test_printed_commands_are_quoted(launcher, tmp_path, capsys):
  config = tmp_path / 'a b.py'
  config.write_text(sweep_runs.CONFIG)
  launcher.main([f'--config={config}', f'--workdir={tmp_path / "work"}', '--grid', 'kind=x y,$HOME', '--print'])
  lines = capsys.readouterr().out.splitlines()
  words = [shlex.split(line) for line in lines]
  assert len(lines) == 2 and words[0].count('&&') == 2
  assert words[1][:6] == [
    sys.executable, '-m', 'mempi_jax.train', f'--config={config}', f'--workdir={tmp_path / "work" / "kind=_HOME"}', '--config.kind=$HOME',
  ]  # fmt: skip
  assert words[0][5] == '--config.kind=x y'


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--grid', 'seed=0', '--trials=2'], '--grid and --trials exclude each other'),
    (['--trials=2', '--print'], 'are not known before'),
    (['--slurm', '--tables'], 'exclude each other'),
    (['--sbatch_options=--time=1'], '--sbatch_options goes with --slurm'),
    (['--jobs=0'], '--jobs is 0, expected 1 or more'),
    (['--config.seed=1'], 'unrecognized arguments: --config.seed=1'),
  ],
)
def test_options_that_do_not_go_together(launcher, config, capsys, arguments, message):
  with pytest.raises(SystemExit) as stopped:
    launcher.main([f'--config={config}', *arguments])
  assert stopped.value.code == 2 and message in capsys.readouterr().err


# Slurm.


def test_arrays():
  assert slurm.array_of([0, 1, 2, 5, 7, 8]) == '0-2,5,7-8' and slurm.array_of([3], jobs=2) == '3%2'


def test_the_script_of_a_slurm_job(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  script = slurm.make_script(['launch/sweep.py', '--grid=kind=a b'], Path('my work'), '0-3', "--gres=gpu:1 -p main --comment='x y'")
  lines = script.splitlines()
  assert lines[0] == '#!/bin/bash' and "#SBATCH '--job-name=my work'" in lines
  assert f"#SBATCH '--output={tmp_path}/my work/slurm/%A_%a.txt'" in lines and '#SBATCH --requeue' in lines
  assert lines[-6:-3] == ['#SBATCH --gres=gpu:1', '#SBATCH -p main', "#SBATCH '--comment=x y'"]  # last: they win
  assert lines[-1] == f'exec {sys.executable} launch/sweep.py \'--grid=kind=a b\' --run="$SLURM_ARRAY_TASK_ID"'
  assert subprocess.run(['bash', '-n'], input=script, text=True, check=False).returncode == 0
  with pytest.raises(ConfigError, match='each beginning with -'):
    slurm.make_script(['x'], Path('w'), '0', 'main')


def test_an_array_job_has_a_task_for_every_run_that_is_not_finished(launcher, config, tmp_path, sbatch, capsys):
  arguments = [f'--config={config}', f'--workdir={tmp_path / "work"}', '--slurm', '--jobs=3', '--sbatch_options=--time=10']
  plans = runs.make_plans(str(config), tmp_path / 'work', [{'rate': 0.1, 'seed': 1}])
  runs.run_all(str(config), plans, jobs=1, total=1, finished=0, siblings=plans)
  capsys.readouterr()
  launcher.main([*arguments, '--dry_run'])
  printed = capsys.readouterr().out
  assert '#SBATCH --array=0,2-3%3\n' in printed and '#SBATCH --time=10\n' in printed
  assert printed.endswith(f'\nsbatch --parsable {tmp_path / "work" / "slurm" / "sweep.sbatch"}\n') and not (tmp_path / 'work' / 'slurm').exists()
  (tmp_path / 'bin' / 'sbatch').write_text('#!/bin/sh\necho "unknown partition" >&2\nexit 1\n')
  with pytest.raises(SystemExit):
    launcher.main(arguments)
  assert 'sbatch refused' in (error := capsys.readouterr().err) and 'unknown partition' in error
  (tmp_path / 'bin' / 'sbatch').write_text('#!/bin/sh\ncat "$2" > "$SBATCH_LOG"\necho "42;cluster"\n')
  launcher.main(arguments)
  assert 'submitted as job 42: 3 tasks' in capsys.readouterr().out and '--run="$SLURM_ARRAY_TASK_ID"' in sbatch.read_text()


def test_a_machine_without_slurm_says_so(launcher, config, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('PATH', str(tmp_path))
  with pytest.raises(SystemExit):
    launcher.main([f'--config={config}', f'--workdir={tmp_path / "work"}', '--slurm'])
  assert 'there is no sbatch on the PATH' in capsys.readouterr().err


# Real ones.


@pytest.fixture
def small(tmp_path):
  """The quick start on few games, with a sweep of two learning rates and a study of them."""
  path = tmp_path / 'small.py'
  path.write_text(
    'from mempi_jax.config import load_config\n'
    f'def get_config():\n  return load_config({str(CONFIG)!r}, {SMALL!r})\n'
    'def sweep():\n  for rate in (1e-4, 1e-3):\n    yield {"stage2.optimizer.learning_rate": rate}\n'
    'OBJECTIVE = ("heldout_games", "mempi", "success_rate", "maximize")\n'
    'def study(trial):\n  return {"stage2.optimizer.learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-3, log=True)}\n'
  )
  return path


def results_of(folder):
  return {path.parent.name: (path.parent / 'eval' / 'episodes.jsonl').read_bytes() for path in sorted(folder.glob('*/results.json'))}


@pytest.mark.slow
def test_a_sweep_that_is_killed_ends_like_one_that_is_not_and_like_one_on_slurm(small, tmp_path, sbatch):
  command = [sys.executable, str(LAUNCHER), f'--config={small}']
  whole, killed, array = (tmp_path / name for name in ('whole', 'killed', 'array'))
  subprocess.run([*command, f'--workdir={whole}'], check=True)
  assert len(results_of(whole)) == 2 and (whole / 'plot.png').exists() and (whole / 'variants' / 'index.html').exists()

  for number, when in ((signal.SIGKILL, 'stage1/checkpoints'), (signal.SIGTERM, 'stage2/abstained.jsonl'), (signal.SIGKILL, 'eval/episodes.jsonl')):
    process = subprocess.Popen([*command, f'--workdir={killed}'])
    deadline = time.monotonic() + 600
    while not list(killed.glob(f'*/{when}')):
      assert process.poll() is None and time.monotonic() < deadline
      time.sleep(0.1)
    process.send_signal(number)
    process.wait()
  subprocess.run([*command, f'--workdir={killed}', '--jobs=2'], check=True)
  assert results_of(killed) == results_of(whole)

  subprocess.run([*command, f'--workdir={array}', '--slurm'], check=True)
  assert sbatch.read_text() == '0 0\n1 0\n' and results_of(array) == results_of(whole)
  assert (array / 'table.csv').read_text() == (whole / 'table.csv').read_text()


@pytest.mark.slow
def test_a_study_on_slurm_goes_on(small, tmp_path, sbatch):
  pytest.importorskip('optuna')
  command = [sys.executable, str(LAUNCHER), f'--config={small}', f'--workdir={tmp_path / "study"}']
  subprocess.run([*command, '--trials=2', '--slurm'], check=True)
  assert sbatch.read_text() == '0 0\n1 0\n'
  subprocess.run([*command, '--trials=3'], check=True)
  lines = (tmp_path / 'study' / 'table.csv').read_text().splitlines()
  assert [line.split(',')[0] for line in lines[1:]] == ['trial_0', 'trial_1', 'trial_2'] and (tmp_path / 'study' / 'study.png').exists()
