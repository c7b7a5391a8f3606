"""The exploring expert: it understands every goal template, follows guidance, recovers from wrong guidance, and solves the games."""

import json
import lzma
from pathlib import Path

import pytest

from mempi_jax.envs.alfworld.env import AlfworldEnv
from mempi_jax.envs.alfworld.expert import ExploringExpert, ParsedGoal, parse_goal
from mempi_jax.envs.alfworld.game import Game
from mempi_jax.envs.alfworld.generator import SPLITS, generate_games, usually
from mempi_jax.types import Task

OFFICIAL = Path(__file__).parents[4] / 'shared' / 'data' / 'alfworld_train_1200.jsonl.xz'
ROOM = 'You are in the middle of a room. Looking quickly around you, you see a bed 1, a desk 2, a desk 1, a drawer 2, and a drawer 1.'


def play(game, guidance, max_steps, seed=0):
  """The actions that the expert needs, or None."""
  env = AlfworldEnv({game.game_id: game})
  context = env.reset(Task('alfworld', game.game_id, game.split, seed))
  expert = ExploringExpert(seed)
  expert.begin(context.goal, context.observation, guidance)
  observation, actions = context.observation, []
  for _ in range(max_steps):
    actions.append(expert.act(observation))
    result = env.step(actions[-1])
    observation = result.observation
    if result.done:
      return actions
  return None


@pytest.mark.parametrize(
  ('sentence', 'parsed'),
  [
    ('put a mug in shelf.', ParsedGoal('mug', 'shelf', None, None, 1)),
    ('put some mug on shelf', ParsedGoal('mug', 'shelf', None, None, 1)),
    ('put a clean mug in shelf.', ParsedGoal('mug', 'shelf', None, 'clean', 1)),
    ('clean some mug and put it in shelf.', ParsedGoal('mug', 'shelf', None, 'clean', 1)),
    ('put a hot mug in shelf.', ParsedGoal('mug', 'shelf', None, 'heat', 1)),
    ('heat some mug and put it in shelf.', ParsedGoal('mug', 'shelf', None, 'heat', 1)),
    ('put a cool mug in shelf.', ParsedGoal('mug', 'shelf', None, 'cool', 1)),
    ('cool some mug and put it in shelf.', ParsedGoal('mug', 'shelf', None, 'cool', 1)),
    ('put two mug in shelf.', ParsedGoal('mug', 'shelf', None, None, 2)),
    ('find two mug and put them in shelf.', ParsedGoal('mug', 'shelf', None, None, 2)),
    ('look at mug under the desklamp.', ParsedGoal('mug', None, 'desklamp', None, 1)),
    ('examine the mug with the desklamp.', ParsedGoal('mug', None, 'desklamp', None, 1)),
  ],
)
def test_parse_goal(sentence, parsed):
  assert parse_goal(sentence) == parsed


def test_unknown_goal_and_empty_room():
  with pytest.raises(ValueError, match='sing a song'):
    parse_goal('sing a song.')
  with pytest.raises(ValueError, match='lists no receptacles'):
    ExploringExpert(0).begin('put a mug in shelf.', 'You see nothing.', '')


def test_guidance_decides_what_comes_first_and_last():
  for seed in range(20):
    expert = ExploringExpert(seed)
    expert.begin('examine the book with the desklamp.', ROOM, 'the book is usually in the drawer.')
    assert expert.order[:2] == ['drawer 2', 'drawer 1']
    expert.begin('examine the book with the desklamp.', ROOM, 'the book is seldom in the desk.')
    assert sorted(expert.order[-2:]) == ['desk 1', 'desk 2']
  firsts = set()
  for seed in range(40):
    expert = ExploringExpert(seed)
    expert.begin('examine the book with the desklamp.', ROOM, 'the pen is usually in the drawer.')  # another object: says nothing
    firsts.add(expert.act(ROOM))
  assert firsts == {f'go to {name}' for name in ('bed 1', 'desk 1', 'desk 2', 'drawer 1', 'drawer 2')}


def test_searches_down_the_list_from_where_guidance_points():
  expert = ExploringExpert(0)
  expert.begin('examine the book with the desklamp.', ROOM, 'the book is usually in the desk.')
  assert expert.order == ['desk 2', 'desk 1', 'drawer 2', 'drawer 1', 'bed 1']


def test_takes_what_it_saw_and_remembers():
  expert = ExploringExpert(0)
  expert.begin('put a book in bed.', ROOM, 'the book is usually in the drawer.')
  assert expert.act(ROOM) == 'go to drawer 2'
  assert expert.act('You arrive at drawer 2. The drawer 2 is closed.') == 'open drawer 2'
  expert.overruled('go to desk 2')
  assert expert.act('You arrive at desk 2. On the desk 2, you see a book 3, and a pen 1.') == 'take book 3 from desk 2'
  expert.overruled('take pen 1 from desk 2')
  assert expert.act('You pick up the pen 1 from the desk 2.') == 'move pen 1 to desk 2'
  assert expert.act('You move the pen 1 to the desk 2.') == 'take book 3 from desk 2'
  assert expert.act('You pick up the book 3 from the desk 2.') == 'go to bed 1'
  assert expert.act('You arrive at bed 1. On the bed 1, you see nothing.') == 'move book 3 to bed 1'


def test_place_that_needs_no_walk():
  """In official games several receptacles are reached from one spot, and going to another one there does nothing."""
  expert = ExploringExpert(0)
  expert.begin('put a book in bed.', ROOM, 'the book is usually in the drawer.')
  assert expert.act(ROOM) == 'go to drawer 2'
  assert expert.act('Nothing happens.') == 'examine drawer 2'
  assert expert.act('The drawer 2 is closed.') == 'open drawer 2'


@pytest.mark.parametrize('split', SPLITS)
def test_solves_generated_games(split):
  games = generate_games('test-expert', split, 150, 0, small_fraction=0.4)
  lengths = [play(game, '', 60, seed) for seed, game in enumerate(games)]
  assert sum(length is not None for length in lengths) >= 0.99 * len(games)


def test_guidance_helps_and_wrong_guidance_is_survived():
  games = generate_games('test-expert', 'train', 150, 1, small_fraction=0.0)
  alone = [len(play(game, '', 60) or range(99)) for game in games]
  told = [len(play(game, game.hidden['guidance'], 60) or range(99)) for game in games]
  assert sum(told) / len(told) < sum(alone) / len(alone) - 2.0
  for game in games:
    wrong = next(place for place in game.hidden['receptacle_types'] if place != game.hidden['location_type'])
    assert play(game, usually(game.target, wrong), 60) is not None


@pytest.mark.skipif(not OFFICIAL.exists(), reason='the official games are not there')
def test_solves_most_official_games():
  solved = []
  with lzma.open(OFFICIAL, 'rt', encoding='utf-8') as file:
    for _ in range(50):
      line = json.loads(next(file))
      solved.append(play(Game(line['trial'], line['type'], line['goal'], line['problem']), '', 100) is not None)
  assert sum(solved) >= 40
