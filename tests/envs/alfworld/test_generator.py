"""Generated games: habits hold as often as promised, splits are disjoint, every game can be played and is solved by its plan."""

import collections

import pytest

from mempi_jax.envs.alfworld import tables
from mempi_jax.envs.alfworld.env import AlfworldEnv
from mempi_jax.envs.alfworld.game import TASK_TYPES
from mempi_jax.envs.alfworld.generator import SPLITS, generate_games, household_goals, household_habits
from mempi_jax.types import Task


@pytest.fixture(scope='module')
def games():
  return {split: generate_games('test-household', split, 200, 7, small_fraction=0.4) for split in SPLITS}


def test_deterministic_and_independent_of_count():
  few = generate_games('test-household', 'train', 5, 7, small_fraction=0.4)
  assert few == generate_games('test-household', 'train', 9, 7, small_fraction=0.4)[:5]
  other_seed = generate_games('test-household', 'train', 5, 8, small_fraction=0.4)
  assert [game.problem for game in few] != [game.problem for game in other_seed]


def test_ids_are_unique(games):
  ids = [game.game_id for part in games.values() for game in part]
  ids += [game.game_id for game in generate_games('test-household', 'train', 50, 8, small_fraction=0.4)]
  ids += [game.game_id for game in generate_games('test-household-2', 'train', 50, 7, small_fraction=0.4)]
  assert len(set(ids)) == len(ids) == 1100


def test_all_task_types_and_rooms(games):
  assert {game.task_type for game in games['train']} == set(TASK_TYPES)
  assert {game.room for game in games['train']} == set(tables.ROOMS)
  assert {game.task_type for game in games['long_horizon']} == set(TASK_TYPES) - {'pick_and_place_simple', 'look_at_obj_in_light'}


def test_heldout_goals_never_occur_elsewhere(games):
  def combinations(split):
    return {(game.task_type, game.target, game.destination) for game in games[split]}

  assert len(combinations('heldout_goals')) > 20
  for split in ('train', 'heldout_games', 'long_horizon'):
    assert not combinations('heldout_goals') & combinations(split)
  common, heldout = household_goals('test-household')
  assert not {goal.combination for goal in common} & {goal.combination for goal in heldout}
  assert 0.08 < len(heldout) / (len(common) + len(heldout)) < 0.25


def test_games_of_the_splits_differ(games):
  problems = {split: {game.problem.split('\n', 1)[1] for game in part} for split, part in games.items()}
  assert not problems['train'] & problems['heldout_games']


def test_habits_are_the_households_own_and_hold(games):
  habits = household_habits('test-household')
  assert habits != household_habits('test-household-2')
  assert 0.5 < sum(habit.reliable for habit in habits.values()) / len(habits) < 0.9
  hits = collections.defaultdict(list)
  for split in ('train', 'heldout_games'):
    for game in games[split]:
      hidden = game.hidden
      assert hidden['location_type'] in hidden['receptacle_types']
      if hidden['usual_type'] in hidden['receptacle_types'] and hidden['size'] == 'large':
        hits[hidden['reliable']].append(hidden['location_type'] == hidden['usual_type'])
  reliable, unreliable = (sum(hits[kind]) / len(hits[kind]) for kind in (True, False))
  assert reliable > 0.8
  assert unreliable < 0.5


def test_room_sizes(games):
  for part in games.values():
    for game in part:
      number = game.problem.count('- receptacle\n')
      assert (3 <= number <= 5) if game.hidden['size'] == 'small' else (10 <= number <= 18)
  sizes = collections.Counter(game.hidden['size'] for game in games['train'])
  assert 50 < sizes['small'] < 110
  assert {game.hidden['size'] for game in games['long_horizon']} == {'large'}
  assert {game.hidden['size'] for game in generate_games('test-household', 'train', 20, 0, small_fraction=1.0)} == {'small'}


def test_hidden_guidance_is_true(games):
  for game in games['train']:
    assert game.hidden['guidance'] == f'the {game.target} is usually in the {game.hidden["location_type"]}.'
    assert f'from {game.hidden["location_type"]} ' in next(step for step in game.walk if step.startswith('take '))


def test_plans_solve_every_game_and_nothing_is_solved_at_the_start(games):
  by_id = {game.game_id: game for part in games.values() for game in part}
  env = AlfworldEnv(by_id)
  for game in by_id.values():
    context = env.reset(Task('alfworld', game.game_id, game.split, 0))
    assert context.goal + '.' == game.goal
    assert not env.step('look').success
    results = [env.step(action) for action in game.walk]
    assert [result.success for result in results] == [False] * (len(results) - 1) + [True], game.game_id
    assert not any('Nothing happens' in result.observation for result in results)


def test_objects_lie_where_they_may():
  names = {kind.lower(): kind for kind in (*tables.HOLDS, *(kind for kinds in tables.TARGETS.values() for kind in kinds))}
  for game in generate_games('test-household', 'train', 50, 3, small_fraction=0.4):
    for place in game.hidden['receptacle_types']:
      assert tables.can_hold(names[place], names[game.target])


def test_bad_arguments():
  with pytest.raises(ValueError, match="unknown split 'test'"):
    generate_games('test-household', 'test', 1, 0, small_fraction=0.4)
  with pytest.raises(ValueError, match='small_fraction 1.5'):
    generate_games('test-household', 'train', 1, 0, small_fraction=1.5)


def test_habits_move_and_stay_where_they_moved():
  still, half, all_ = (household_habits('test-household', moved) for moved in (0.0, 0.5, 1.0))
  assert still == household_habits('test-household')
  moved = {key for key in still if half[key] != still[key]}
  assert 0.3 < len(moved) / len(still) < 0.7
  assert all(half[key] == all_[key] for key in moved)
  assert all(half[key].reliable == still[key].reliable for key in still)
  alone = {key for key in still if all_[key] == still[key]}  # what only one kind of place can hold
  assert len(alone) < 0.1 * len(still)


def test_games_of_a_changed_household_follow_its_new_habits():
  still, moved = household_habits('test-household'), household_habits('test-household', 1.0)
  games = generate_games('test-household', 'deployment', 150, 7, small_fraction=0.0, moved=1.0)
  assert games == generate_games('test-household', 'deployment', 150, 7, small_fraction=0.0, moved=1.0)
  names = lambda habits: {(room, tables.text_name(kind)): tables.text_name(habit.usual) for (room, kind), habit in habits.items()}
  hits = [game.hidden['location_type'] == names(moved)[game.room, game.target] for game in games if game.hidden['reliable']]
  old = [game.hidden['location_type'] == names(still)[game.room, game.target] for game in games if game.hidden['reliable']]
  assert sum(hits) / len(hits) > 0.75 and sum(old) / len(old) < 0.25
  with pytest.raises(ValueError, match='share of the habits'):
    generate_games('test-household', 'deployment', 1, 0, small_fraction=0.4, moved=1.5)
