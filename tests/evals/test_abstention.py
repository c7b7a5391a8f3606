"""Difficulty, abstention and routing against cases done by hand."""

import pytest

from mempi_jax.evals import abstention
from mempi_jax.evals.success import EpisodesError

GAMES = [f'g{i}' for i in range(10)]


def base_runs(successes=range(10, 0, -1)):
  """Game i is solved in successes[i] of 10 runs."""
  return [
    {'split': 'heldout_games', 'task_id': game, 'seed': seed, 'success': seed < solved, 'agent_steps': 5}
    for game, solved in zip(GAMES, successes)
    for seed in range(10)
  ]


def episode(memory, game, *, generate, solved=True, p=None, status=None):
  return {
    'memory': memory,
    'split': 'heldout_games',
    'task_id': game,
    'seed': 0,
    'decision': '[GENERATE]' if generate else '[ABSTAIN]',
    'p_generate': p,
    'guidance_tokens': 3 if generate else 0,
    'success': solved,
    'status': status or ('success' if solved else 'failure'),
    'agent_steps': 4,
  }


def test_fifths_go_from_easy_to_hard():
  buckets = abstention.difficulty_fifths(base_runs())
  assert [buckets['', game] for game in GAMES] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
  reverse = abstention.difficulty_fifths(base_runs(range(1, 11))[::-1])
  assert [reverse['', game] for game in GAMES] == [5, 5, 4, 4, 3, 3, 2, 2, 1, 1]


def test_ties_go_by_steps_and_then_by_name():
  runs = base_runs([5] * 10)
  for run in runs:
    run['agent_steps'] = 9 if run['task_id'] == 'g0' else 5
  buckets = abstention.difficulty_fifths(runs)
  assert [buckets['', game] for game in GAMES] == [5, 1, 1, 2, 2, 3, 3, 4, 4, 5]


def test_sizes_differ_by_one_at_most_and_other_splits_do_not_count():
  runs = base_runs()[:70] + [{**run, 'split': 'long_horizon'} for run in base_runs()]
  buckets = list(abstention.difficulty_fifths(runs).values())
  assert sorted(buckets.count(bucket) for bucket in range(1, 6)) == [1, 1, 1, 2, 2]
  with pytest.raises(EpisodesError, match='at least 5 games of heldout_goals, found 0'):
    abstention.difficulty_fifths(runs, split='heldout_goals')


def test_by_difficulty_by_hand():
  episodes = [episode('mempi', game, generate=i >= 5, p=i / 10) for i, game in enumerate(GAMES)]
  rows = abstention.by_difficulty(episodes, base_runs())
  assert [list(row) for row in rows] == [['bucket', 'n', 'base_success', 'abstain_rate']] * 5
  assert [row['bucket'] for row in rows] == [1, 2, 3, 4, 5] and [row['n'] for row in rows] == [2] * 5
  assert [row['base_success'] for row in rows] == pytest.approx([0.95, 0.75, 0.55, 0.35, 0.15])
  assert [row['abstain_rate'] for row in rows] == [1.0, 1.0, 0.5, 0.0, 0.0]
  episodes += [episode('none', game, generate=False, solved=i < 2) for i, game in enumerate(GAMES)]
  more = abstention.details(episodes, base_runs(), memory='mempi')
  assert [row['p_generate'] for row in more] == pytest.approx([0.05, 0.25, 0.45, 0.65, 0.85])
  assert [row['none_success'] for row in more] == [1.0, 0.0, 0.0, 0.0, 0.0]
  assert abstention.details(episodes, base_runs(), memory='none')[0]['p_generate'] is None


def test_gap_and_its_growth_by_hand():
  episodes = [episode('mempi', game, generate=i >= 2) for i, game in enumerate(GAMES)]
  episodes += [episode('mempi_stage1', game, generate=i >= 1) for i, game in enumerate(GAMES)]
  gap = abstention.gap(episodes, base_runs())
  assert gap.value == 1.0 and gap.high == pytest.approx(1.0)
  # Two games in each fifth, all alike: up to 1 - 0.025^(1/2) = 0.84 of each may be otherwise.
  assert gap.low == pytest.approx(1 - 0.8419 * 2**0.5, abs=1e-3)
  assert abstention.gap(episodes, base_runs(), memory='mempi_stage1').value == 0.5
  growth = abstention.gap_growth(episodes, base_runs())
  assert growth.value == 0.5 and growth.low <= 0.0 < growth.high


def test_growth_is_paired():
  # Every game changes alike: no growth, however the rates look.
  games = [f'g{i:03d}' for i in range(200)]
  runs = [{'split': 'heldout_games', 'task_id': g, 'seed': 0, 'success': i < 100, 'agent_steps': i} for i, g in enumerate(games)]
  episodes = [episode(memory, game, generate=i % 2 == 0) for memory in ('mempi', 'mempi_stage1') for i, game in enumerate(games)]
  growth = abstention.gap_growth(episodes, runs)
  assert growth.value == 0.0 and -0.15 < growth.low < 0.0 < growth.high < 0.15


def test_games_without_base_runs_are_named():
  episodes = [episode('mempi', 'elsewhere', generate=True)]
  with pytest.raises(EpisodesError, match='1 games of heldout_games have no base runs, the first is elsewhere'):
    abstention.by_difficulty(episodes, base_runs())
  with pytest.raises(EpisodesError, match='no episodes of memory mempi'):
    abstention.by_difficulty([], base_runs())


def test_routing_by_hand():
  cases = [  # generate, solved with memory, solved alone
    (True, True, False),
    (True, True, False),
    (True, False, True),
    (True, True, True),
    (True, False, False),
    (False, True, True),
    (False, False, False),
    (False, True, False),  # must not happen, and is seen when it does
  ]
  episodes = []
  for i, (generate, mine, alone) in enumerate(cases):
    episodes += [episode('mempi', f'g{i}', generate=generate, solved=mine), episode('none', f'g{i}', generate=False, solved=alone)]
  episodes += [episode('mempi', 'x', generate=True, solved=False, status='env_error'), episode('none', 'x', generate=False)]
  assert abstention.routing(episodes) == {
    'generated': 5,
    'helped': 2,
    'hurt': 1,
    'both': 1,
    'neither': 1,
    'abstained': 3,
    'abstained_solved': 2,
    'abstained_failed': 1,
    'abstained_changed': 1,
  }
