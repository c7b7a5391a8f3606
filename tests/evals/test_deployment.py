"""A deployment's figures by hand: the fall at the change, what came back, and what is compared over which periods."""

import pytest

from mempi_jax.evals import plots, tables
from mempi_jax.evals.deployment import read_deployment, read_updates, summarise_deployment
from mempi_jax.evals.success import EpisodesError
from mempi_jax.runtime import files

MOVED = (0.0, 0.0, 0.5, 0.5)
# memory -> wins of four games, period by period
WINS = {
  'none': (1, 1, 1, 1),
  'mempi': (3, 4, 1, 2),
  'mempi_online': (3, 4, 1, 4),
  'rag_online': (2, 2, 2, 3),
}


def records(wins=WINS, moved=MOVED):
  return [
    {
      'memory': memory,
      'period': period,
      'moved': moved[period],
      'split': 'deployment',
      'task_id': f'{period}-{game}',
      'seed': 0,
      'decision': '[GENERATE]',
      'p_generate': None,
      'guidance_tokens': 5,
      'success': game < won,
      'status': 'success' if game < won else 'truncated',
      'agent_steps': 3,
    }
    for memory, row in wins.items()
    for period, won in enumerate(row)
    for game in range(4)
  ]


def test_falls_and_recoveries():
  found = summarise_deployment(records())
  assert found['change'] == 2
  falls = {row['memory']: row for row in found['falls']}
  mine = falls['mempi']
  assert (mine['before'], mine['after'], mine['last']) == (7 / 8, 0.25, 0.5)
  assert (mine['fall'], mine['recovered']) == (-0.625, 0.25)
  assert falls['mempi_online']['recovered'] == 0.75
  assert falls['none']['fall'] == 0.0
  assert mine['fall_ci95'][0] < -0.625 < mine['fall_ci95'][1] < 0.0


def test_rows_are_by_period():
  rows = {(row['memory'], row['period']): row['success_rate'] for row in summarise_deployment(records())['rows']}
  assert rows == {(memory, period): won / 4 for memory, row in WINS.items() for period, won in enumerate(row)}


def test_learning_is_compared_after_the_period_of_the_change():
  comparisons = {(row['a'], row['b']): row['diff'] for row in summarise_deployment(records())['comparisons']}
  assert comparisons == {('mempi_online', 'mempi'): 0.5, ('mempi_online', 'rag_online'): 0.25}


def test_ten_periods_keep_their_order():
  found = summarise_deployment(records({'none': (1,) * 12}, moved=(0.0,) * 12))
  assert [row['period'] for row in found['rows']] == list(range(12))
  assert found['change'] is None and found['falls'] == [] and found['comparisons'] == []


def test_what_no_table_can_be_made_from():
  with pytest.raises(EpisodesError, match='no episodes of a deployment'):
    summarise_deployment([])
  with pytest.raises(EpisodesError, match='mempi lacks 1 of 16'):
    summarise_deployment([record for record in records() if (record['memory'], record['task_id']) != ('mempi', '3-3')])
  other = [{**record, 'moved': 0.25} if record['memory'] == 'mempi' else record for record in records()]
  with pytest.raises(EpisodesError, match='period 0 has moved'):
    summarise_deployment(other)


def test_reading_and_showing(tmp_path):
  for memory in WINS:
    files.write_text(tmp_path / 'deploy' / f'{memory}.jsonl', '')
    with files.JsonlLog(tmp_path / 'deploy' / f'{memory}.jsonl') as log:
      for record in records():
        if record['memory'] == memory:
          log.append(record)
  (tmp_path / 'deploy' / 'updates' / '01').mkdir(parents=True)
  (tmp_path / 'deploy' / 'updates' / '02').mkdir()  # has not been checked yet
  files.mark_done(tmp_path / 'deploy' / 'updates' / '01', {'lessons': 3, 'accepted': False, 'difference': -0.1, 'ci95': [-0.2, 0.0], 'pairs': 8})
  found = summarise_deployment(read_deployment(tmp_path))
  assert found == summarise_deployment(records())
  (update,) = read_updates(tmp_path)
  assert update['period'] == 1
  text = tables.to_markdown(tables.updates_table([update]))
  assert 'after period 2' in text and 'rolled back' in text
  assert 'Mem-π, learning' in tables.to_markdown(tables.periods_table(found))
  assert '−0.625' in tables.to_markdown(tables.falls_table(found))
  assert 'Mem-π, learning − Mem-π' in tables.to_markdown(tables.learning_table(found['comparisons']))
  assert set(plots.draw(plots.deployment, found)) == {'light.png', 'light.svg', 'dark.png', 'dark.svg'}
  assert read_deployment(tmp_path / 'nowhere') == [] and read_updates(tmp_path / 'nowhere') == []
