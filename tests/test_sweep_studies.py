"""Studies: the same suggestions whether killed or not, trials that go on, and objectives that no run can have."""

import json
from pathlib import Path

import pytest

from mempi_jax import runs, studies, sweep_report
from mempi_jax.config import ConfigError, load_study
from mempi_jax.runs import hold
from mempi_jax.studies import check_objective, run_study
from tests import sweep_runs

optuna = pytest.importorskip('optuna')

OBJECTIVE = ('heldout_games', 'mempi', 'success_rate', 'maximize')


@pytest.fixture
def config(tmp_path, monkeypatch, request):
  """A config of runs that cost nothing; pictures are drawn in the first test alone."""
  if 'ends_with_the_best' not in request.node.name:
    monkeypatch.setattr(sweep_report.plots, 'draw', lambda *arguments, themes: {'light.png': b'', 'light.svg': b''})
  monkeypatch.setattr(runs, 'commands_of', sweep_runs.commands_of)
  path = tmp_path / 'config.py'
  path.write_text(sweep_runs.CONFIG)
  return str(path)


def trials_of(workdir):
  return studies.open_study(workdir, OBJECTIVE).get_trials(deepcopy=False)


def test_a_study_tells_its_trials_and_ends_with_the_best(config, tmp_path, capsys):
  run_study(config, tmp_path / 'a', trials=4, jobs=1)
  found = trials_of(tmp_path / 'a')
  assert [trial.state.name for trial in found] == ['COMPLETE'] * 4
  assert all(trial.value == trial.params['rate'] and 0.1 <= trial.value <= 0.9 for trial in found)
  assert len({trial.value for trial in found}) == 4
  best = max(found, key=lambda trial: trial.value)
  printed = capsys.readouterr().out
  assert f"best of 4 trials: trial_{best.number}, success_rate {best.value:.4f}: --config.rate={best.params['rate']} --config.parts=" in printed
  header, *lines = (tmp_path / 'a' / 'table.csv').read_text().splitlines()
  assert header.startswith('run,variant,rate,parts,split,none_n,') and len(lines) == 4
  assert (tmp_path / 'a' / 'study.png').read_bytes().startswith(b'\x89PNG') and not (tmp_path / 'a' / 'plot.png').exists()
  # Asked for as many as there are, it runs nothing; for more, it goes on.
  run_study(config, tmp_path / 'a', trials=4, jobs=1)
  run_study(config, tmp_path / 'a', trials=5, jobs=2)
  assert len(trials_of(tmp_path / 'a')) == 5
  assert all((tmp_path / 'a' / f'trial_{number}' / 'started').read_text() == 'x' for number in range(5))


def test_a_study_that_was_interrupted_suggests_what_it_would_have(config, tmp_path, monkeypatch):
  run_study(config, tmp_path / 'whole', trials=4, jobs=1)

  # Killed when a run is finished and its trial not told; when a trial is asked for and has no overrides; when a line is half written.
  def killed(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(studies, '_value_of', killed)
    with pytest.raises(KeyboardInterrupt):
      run_study(config, tmp_path / 'parts', trials=4, jobs=1)
  assert [trial.state.name for trial in trials_of(tmp_path / 'parts')] == ['RUNNING']
  with open(tmp_path / 'parts' / 'study.jsonl', 'a') as journal:
    journal.write('{"op_code": 4, "wor')
  run_study(config, tmp_path / 'parts', trials=2, jobs=1)
  run_study(config, tmp_path / 'parts', trials=4, jobs=1)
  whole, parts = ([trial.params['rate'] for trial in trials_of(tmp_path / name)] for name in ('whole', 'parts'))
  assert whole == parts and (tmp_path / 'parts' / 'trial_0' / 'started').read_text() == 'x'
  studies.open_study(tmp_path / 'parts', OBJECTIVE).ask()
  run_study(config, tmp_path / 'parts', trials=5, jobs=1)
  assert [trial.state.name for trial in trials_of(tmp_path / 'parts')] == ['COMPLETE'] * 4 + ['FAIL', 'COMPLETE']


def test_a_failed_trial_is_tried_again_and_stops_no_other(config, tmp_path, capsys):
  work = tmp_path / 'work'
  work.mkdir()
  (work / 'fail trial_1').touch()
  with pytest.raises(SystemExit):
    run_study(config, work, trials=3, jobs=1)
  assert [trial.state.name for trial in trials_of(work)] == ['COMPLETE', 'RUNNING', 'COMPLETE']
  assert 'no luck with trial_1' in capsys.readouterr().out
  (work / 'fail trial_1').unlink()
  run_study(config, work, trials=3, jobs=1)
  assert [trial.state.name for trial in trials_of(work)] == ['COMPLETE'] * 3
  assert (work / 'trial_1' / 'started').read_text() == 'xx'


def test_processes_that_share_a_study_run_one_trial_each(config, tmp_path):
  work = tmp_path / 'work'
  with pytest.raises(SystemExit):
    (work / 'trial_0').mkdir(parents=True)
    (work / 'fail trial_0').touch()
    run_study(config, work, trials=3, jobs=1, most=1)
  (work / 'fail trial_0').unlink()
  with hold(work / 'trial_0'):  # somebody runs it now
    run_study(config, work, trials=3, jobs=1, most=1)
    assert [trial.state.name for trial in trials_of(work)] == ['RUNNING', 'COMPLETE']
  run_study(config, work, trials=3, jobs=1, most=1)
  run_study(config, work, trials=3, jobs=1, most=1)
  run_study(config, work, trials=3, jobs=1, most=1)
  assert [trial.state.name for trial in trials_of(work)] == ['COMPLETE'] * 3
  assert studies.unfinished_trials(config, work, 5) == 2


@pytest.mark.parametrize(
  ('objective', 'message'),
  [
    (('heldout_games', 'mempy', 'success_rate', 'maximize'), r"the memory 'mempy'; did you mean mempi\?; expected one of none, mempi"),
    (('other', 'mempi', 'success_rate', 'maximize'), "the split 'other'; expected one of heldout_games"),
    (('heldout_games', 'mempi', 'success', 'maximize'), "the measure 'success'"),
    (('heldout_games', 'mempi', 'success_rate', 'up'), "the direction 'up'; expected one of maximize, minimize"),
  ],
)
def test_objectives_that_no_run_has(config, objective, message):
  with pytest.raises(ConfigError, match=message):
    check_objective(config, objective)


def test_config_files_without_a_study(config, tmp_path):
  path = tmp_path / 'other.py'
  path.write_text(sweep_runs.CONFIG.replace('def study(', 'def no_study('))
  with pytest.raises(ConfigError, match=r'has no function study\(\)'):
    load_study(path)
  path.write_text(sweep_runs.CONFIG.replace("OBJECTIVE = ('heldout_games', ", 'OBJECTIVE = ('))
  with pytest.raises(ConfigError, match=r"OBJECTIVE is \('mempi', 'success_rate', 'maximize'\), expected \(split, memory"):
    load_study(path)


def test_what_a_study_suggests_is_checked_like_any_override(config, tmp_path):
  Path(config).write_text(sweep_runs.CONFIG.replace("return {'rate'", "return {'rat'"))
  with pytest.raises(ConfigError, match='run trial_0: unknown field rat; did you mean rate'):
    run_study(config, tmp_path / 'work', trials=2, jobs=1)
  assert not (tmp_path / 'work' / 'trial_0').exists()


def test_a_folder_with_another_objective_is_refused(config, tmp_path):
  run_study(config, tmp_path / 'work', trials=1, jobs=1)
  Path(config).write_text(sweep_runs.CONFIG.replace("'mempi', 'success_rate'", "'none', 'success_rate'"))
  with pytest.raises(ConfigError, match="is a study of .*'mempi'.* found OBJECTIVE .*'none'"):
    run_study(config, tmp_path / 'work', trials=2, jobs=1)


def test_a_dry_run_writes_nothing(config, tmp_path):
  work = tmp_path / 'work'
  assert studies.describe_study(config, work, 3) == ['3 trials would be asked for'] and not work.exists()
  run_study(config, work, trials=1, jobs=1)
  before = {path: path.stat().st_mtime_ns for path in work.rglob('*') if path.is_file()}
  first, last = studies.describe_study(config, work, 3)
  rate = json.loads((work / 'trial_0' / 'results.json').read_text())['rows'][1]['success_rate']
  assert first == f"trial_0    finished  rate={rate}, parts=['x', 'y']" and last == '2 more trials would be asked for'
  assert {path: path.stat().st_mtime_ns for path in work.rglob('*') if path.is_file()} == before
