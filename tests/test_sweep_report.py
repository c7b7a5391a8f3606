"""What a sweep came to: its table line by line, the plot that fits its runs, and what the pictures show."""

import csv

import pytest

from mempi_jax import sweep_report
from mempi_jax.evals import success, sweep_plots
from mempi_jax.runtime import files
from mempi_jax.sweep_report import read_results, results_table, write_plot, write_table
from tests.sweep_runs import write_run

GRID = [{'stage2.learning_rate': rate, 'seed': seed} for rate in (1e-4, 1e-3) for seed in (0, 1)]
SOLVED = (4, 6, 10, 14)  # of 20 games


@pytest.fixture(scope='module')
def grid(tmp_path_factory):
  """A grid of two learning rates and two seeds, finished."""
  folder = tmp_path_factory.mktemp('grid')
  for run, solved in zip(GRID, SOLVED, strict=True):
    write_run(folder / f'learning_rate={run["stage2.learning_rate"]},seed={run["seed"]}', solved, seed=run['seed'])
  return folder


def draw_what(monkeypatch, workdir, runs):
  """The function and the arguments that the plot would be drawn with."""
  drawn = []
  monkeypatch.setattr(sweep_report.plots, 'draw', lambda *arguments, themes: drawn.append(arguments) or {'light.png': b'', 'light.svg': b''})
  write_plot(workdir, runs)
  return drawn[0]


def test_the_table_has_a_line_a_run(grid):
  text = write_table(grid, GRID)
  assert text.splitlines()[0] == '| learning_rate | seed | alone | Mem-π | abstains | guidance tokens | agent steps |'
  assert text.splitlines()[4].startswith('| 1e-3 | 0 | 0.000 [0.000, 0.168] | 0.500 [0.')
  assert '20 episodes a run. Last three columns: Mem-π.' in text and 'Not finished' not in text
  lines = list(csv.DictReader((grid / 'table.csv').open()))
  assert [float(line['mempi_success_rate']) for line in lines] == [0.2, 0.3, 0.5, 0.7]
  assert lines[3]['run'] == 'learning_rate=0.001,seed=1' and lines[3]['stage2.learning_rate'] == '0.001' and lines[3]['mempi_n'] == '20'
  assert all(float(line['mempi_ci95_low']) < float(line['mempi_success_rate']) < float(line['mempi_ci95_high']) for line in lines)
  assert (grid / 'table.md').read_text() == text
  assert write_plot(grid, GRID) == grid / 'plot.png'
  assert (grid / 'plot.png').read_bytes().startswith(b'\x89PNG') and b'<svg' in (grid / 'plot.svg').read_bytes()


def test_runs_that_are_not_finished_are_counted(grid):
  assert 'Not finished, and not in this table: 1 of 5 runs.' in write_table(grid, [*GRID, {'stage2.learning_rate': 0.1, 'seed': 0}])
  with pytest.raises(success.EpisodesError, match='no run of this sweep is finished'):
    read_results(grid, [{'seed': 7}])


def test_fields_of_one_last_name_are_named_in_full(tmp_path):
  runs = [{'stage1.learning_rate': 0.1, 'stage2.learning_rate': 0.2}]
  write_run(tmp_path / 'learning_rate=0.1,learning_rate=0.2', 4)
  assert results_table(*read_results(tmp_path, runs)).head[:2] == ('stage1.learning_rate', 'stage2.learning_rate')


def test_a_field_that_a_run_does_not_set_is_that_of_its_config(tmp_path):
  runs = [{'seed': 0}, {'stage2.branches': 8, 'seed': 0}]
  for name in ('seed=0', 'branches=8,seed=0'):
    files.write_json(write_run(tmp_path / name, 4) or tmp_path / name / 'config.json', {'seed': 0, 'stage2': {'branches': 4}})
  assert [result.values['stage2.branches'] for result in read_results(tmp_path, runs)[0]] == [4, 8]


def test_a_grid_over_a_number_is_drawn_over_it_with_its_seeds_pooled(grid, monkeypatch):
  figure, points, field, split = draw_what(monkeypatch, grid, GRID)
  assert figure is sweep_plots.over_field and field == 'stage2.learning_rate' and split == 'heldout_games'
  own = {point['x']: point for point in points if point['memory'] == 'mempi'}
  assert own[1e-4]['success_rate'] == 0.25 and own[1e-4]['singles'] == (0.2, 0.3) and own[1e-4]['n'] == 40
  assert own[1e-3]['success_rate'] == 0.6 and own[1e-3]['panel'] == ''
  axes = figure(points, field, split).axes[0]
  assert axes.get_xscale() == 'log' and [label.get_text() for label in axes.get_xticklabels()] == ['1e-4', '1e-3']


def test_other_fields_of_a_grid_are_panels(tmp_path, monkeypatch):
  runs = [{'stage2.branches': branches, 'policy.init': init} for branches in (2, 4, 8) for init in ('agent', 'random')]
  for run in runs:
    write_run(tmp_path / f'branches={run["stage2.branches"]},init={run["policy.init"]}', 2 * run['stage2.branches'])
  figure, points, field, split = draw_what(monkeypatch, tmp_path, runs)
  assert field == 'stage2.branches' and [point['panel'] for point in points[:4:2]] == ['init = agent', 'init = random']
  drawn = figure(points, field, split)
  assert [axes.get_title(loc='left') for axes in drawn.axes] == ['init = agent', 'init = random']
  assert drawn.axes[0].get_xscale() == 'linear' and drawn.axes[0].get_ylabel() == ''


@pytest.mark.parametrize(
  ('runs', 'folders', 'names'),
  [
    ([{'seed': 0}, {'seed': 1}], ('seed=0', 'seed=1'), ['seed=0', 'seed=1', 'all 2 runs']),
    ([{'variant': 'a', 'k': 1}, {'variant': 'b', 'k': 2}], ('a', 'b'), ['a', 'b']),
    ([{'kind': 'x'}, {'kind': 'y'}], ('kind=x', 'kind=y'), ['kind=x', 'kind=y']),
    ([{'gate': True}, {'gate': False}], ('gate=True', 'gate=False'), ['gate=True', 'gate=False']),
  ],
)
def test_runs_without_a_number_are_drawn_one_by_one(tmp_path, monkeypatch, runs, folders, names):
  for seed, folder in enumerate(folders):
    write_run(tmp_path / folder, 5, seed=seed)
  figure, rows, split = draw_what(monkeypatch, tmp_path, runs)
  assert figure is sweep_plots.by_run and list(dict.fromkeys(row['name'] for row in rows)) == names
  assert [label.get_text() for label in figure(rows, split).axes[0].get_yticklabels()] == names


def test_the_picture_of_a_study_shows_the_best_so_far():
  values = [0.2, 0.5, 0.4]
  trials = [
    {'number': i, 'value': value, 'ci95': [value - 0.1, value + 0.1], 'params': {'rate': 10.0 ** (i - 3), 'kind': 'ab'[i % 2]}}
    for i, value in enumerate(values)
  ]
  figure = sweep_plots.study(trials, {'rate'}, {'rate': 0.8, 'kind': 0.2}, ('heldout_games', 'mempi', 'success_rate', 'maximize'), 'Mem-π: success rate')
  history, rate, kind = figure.axes
  assert list(history.lines[0].get_ydata()) == [0.2, 0.5, 0.5] and 'best: trial 1, 0.500' in history.get_title(loc='left')
  assert rate.get_xlabel() == 'rate (importance 0.80)' and rate.get_xscale() == 'log' and kind.get_xlabel() == 'kind (importance 0.20)'
  lowest = sweep_plots.study(trials, (), {}, ('heldout_games', 'mempi', 'agent_steps', 'minimize'), 'steps').axes[0]
  assert list(lowest.lines[0].get_ydata()) == [0.2, 0.2, 0.2]


def test_the_picture_of_a_study_with_one_trial_shows_it():
  trials = [{'number': 0, 'value': 0.2, 'ci95': [0.1, 0.3], 'params': {'rate': 1e-3, 'k': 4}}]
  for axes, value in zip(sweep_plots.study(trials, {'rate'}, {}, ('s', 'mempi', 'success_rate', 'maximize'), 'success').axes, (0, 4, 1e-3), strict=True):
    low, high = axes.get_xlim()
    assert low < value < high


@pytest.mark.parametrize(
  ('value', 'text'), [(5e-4, '5e-4'), (0.00025, '2.5e-4'), (0.15, '0.15'), (16, '16'), (0.0, '0'), (250000, '2.5e5'), (True, 'True'), (None, 'None')]
)
def test_values_are_written_as_one_writes_them(value, text):
  assert sweep_plots.format_value(value) == text


def test_axes_are_logarithmic_where_values_span_a_decade():
  assert sweep_plots.spans_decades([1e-4, 3e-4, 1e-3]) and not sweep_plots.spans_decades([2e-4, 1e-3])
  assert not sweep_plots.spans_decades([0.0, 1.0, 10.0])
