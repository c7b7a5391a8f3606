"""The simulator's rules and texts; the texts are the real engine's own (test_engine.py compares them)."""

import pytest

from mempi_jax.envs.alfworld.games import load_games
from mempi_jax.envs.alfworld.problem import parse_problem
from mempi_jax.envs.alfworld.simulator import HELP, NOTHING, Simulator


@pytest.fixture
def start(room):
  def begin(*args, **kwargs):
    simulator = Simulator(parse_problem(room(*args, **kwargs)), 'put a mug in cabinet.')
    simulator.reset()
    return simulator

  return begin


def play(simulator, *commands):
  return [simulator.step(command)[0] for command in commands]


def test_first_text(room):
  assert Simulator(parse_problem(room()), 'put a mug in cabinet.').reset() == (
    '-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, you see a cabinet 2, a cabinet 1, '
    'a countertop 1, a fridge 1, a microwave 1, a sidetable 1, a sinkbasin 1, and a toaster 1.\n\nYour task is to: put a mug in cabinet.'
  )


def test_walk_wins(start, small_game):
  simulator = start()
  for command in small_game().walk[:-1]:
    assert simulator.step(command)[1] is False
  assert simulator.step(small_game().walk[-1]) == ('You move the mug 1 to the cabinet 1.', True)
  assert simulator.step('take mug 1 from cabinet 1')[1] is False


def test_reset_starts_anew(start):
  simulator = start()
  first, commands = simulator.first_look(), simulator.admissible_commands()
  play(simulator, 'go to countertop 1', 'take apple 1 from countertop 1', 'go to fridge 1', 'close fridge 1', 'cool apple 1 with fridge 1')
  simulator.reset()
  assert simulator.first_look() == first and simulator.admissible_commands() == commands
  assert simulator.step('go to countertop 1')[0] == 'You arrive at countertop 1. On the countertop 1, you see a apple 1, a bowl 1, a knife 1, a mug 2, and a pen 1.'


def test_simulators_share_a_problem_without_meeting(room):
  problem = parse_problem(room())
  one, two = (Simulator(problem, 'x.') for _ in range(2))
  one.reset()
  two.reset()
  play(one, 'go to fridge 1', 'take mug 3 from fridge 1', 'close fridge 1')
  assert play(two, 'go to fridge 1') == ['You arrive at fridge 1. The fridge 1 is open. In it, you see a mug 3.']


def test_doors(start):
  simulator = start()
  assert play(simulator, 'go to cabinet 2', 'close cabinet 2', 'open cabinet 2', 'open cabinet 2', 'examine cabinet 2', 'close cabinet 2') == [
    'You arrive at cabinet 2. The cabinet 2 is closed.',
    NOTHING,
    'You open the cabinet 2. The cabinet 2 is open. In it, you see nothing.',
    NOTHING,
    'The cabinet 2 is open. In it, you see nothing.',
    'You close the cabinet 2.',
  ]
  assert play(simulator, 'open cabinet 1', 'examine cabinet 1') == [NOTHING, NOTHING]


def test_one_thing_in_the_hand(start):
  simulator = start()
  assert play(simulator, 'inventory', 'go to countertop 1', 'take apple 1 from countertop 1', 'take knife 1 from countertop 1', 'inventory') == [
    'You are not carrying anything.',
    'You arrive at countertop 1. On the countertop 1, you see a apple 1, a bowl 1, a knife 1, a mug 2, and a pen 1.',
    'You pick up the apple 1 from the countertop 1.',
    NOTHING,
    'You are carrying: a apple 1.',
  ]
  assert play(simulator, 'move apple 1 to toaster 1', 'move apple 1 to countertop 1') == [NOTHING, 'You move the apple 1 to the countertop 1.']


def test_clean_heat_cool_slice_and_what_examine_says(start):
  simulator = start()
  play(simulator, 'go to countertop 1', 'take knife 1 from countertop 1')
  assert play(simulator, 'slice apple 1 with knife 1', 'slice mug 2 with knife 1') == ['You sliced the apple 1 with the knife 1.', NOTHING]
  play(simulator, 'move knife 1 to countertop 1', 'take apple 1 from countertop 1')
  assert play(simulator, 'examine apple 1', 'heat apple 1 with microwave 1') == ['This is a sliced apple 1.', NOTHING]
  assert play(simulator, 'go to microwave 1', 'heat apple 1 with microwave 1', 'examine apple 1')[1:] == [
    'You heat the apple 1 using the microwave 1.',
    'This is a hot sliced apple 1.',
  ]
  play(simulator, 'go to sinkbasin 1', 'clean apple 1 with sinkbasin 1')
  assert play(simulator, 'examine apple 1') == ['This is a hot and clean sliced apple 1.']
  assert play(simulator, 'go to fridge 1', 'cool apple 1 with fridge 1', 'examine apple 1')[1:] == [
    'You cool the apple 1 using the fridge 1.',
    'This is a cool and clean sliced apple 1.',
  ]
  play(simulator, 'move apple 1 to fridge 1', 'take mug 3 from fridge 1')
  assert play(simulator, 'examine mug 3') == ['This is a cold mug 3.']


def test_lamp_look_and_help(start):
  simulator = start()
  assert play(simulator, 'use desklamp 1', 'go to sidetable 1', 'use desklamp 1', 'use desklamp 1', 'use mug 1')[2:] == [
    'You turn on the desklamp 1.',
    'You turn on the desklamp 1.',
    NOTHING,
  ]
  assert play(simulator, 'help', 'look') == [HELP, 'You are facing the sidetable 1. Next to it, you see nothing.']


def test_object_in_two_receptacles_at_once(start):
  simulator = start()
  play(simulator, 'go to toaster 1', 'take mug 2 from toaster 1', 'move mug 2 to countertop 1')
  assert play(simulator, 'look') == ['You are facing the countertop 1, and toaster 1. Next to it, you see a mug 2.']
  play(simulator, 'take mug 2 from countertop 1', 'move mug 2 to toaster 1')
  assert play(simulator, 'examine countertop 1') == ['On the countertop 1, you see a apple 1, a bowl 1, a knife 1, and a pen 1.']


@pytest.mark.parametrize('command', ['', 'go', 'go to', 'go to countertop', 'go to countertop 1 ', 'Go to countertop 1', 'go  to countertop 1', 'xyzzy 1 2 3', 'go to mug 1', 'take mug 1 from', 'open loc 1', 'examine mugtype'])
def test_invalid_commands(start, command):
  simulator = start()
  play(simulator, 'go to countertop 1')
  before = simulator.admissible_commands()
  assert simulator.step(command) == (NOTHING, False)
  assert simulator.admissible_commands() == before


def test_admissible_commands_are_those_that_do_something(start, every_rule):
  simulator = start()
  names = simulator.problem.names
  for command in every_rule:
    admissible = set(simulator.admissible_commands())
    assert (simulator.step(command)[0] != NOTHING) == (command.strip() in admissible), command
  assert {f'go to {names[r]}' for r in simulator.problem.receptacles} - set(simulator.admissible_commands()) == {'go to cabinet 1'}


def test_every_rule_reaches_every_verb(start, every_rule):
  simulator = start()
  done = {command.split()[0] for command in every_rule if simulator.step(command)[0] != NOTHING}
  assert done == {'look', 'inventory', 'help', 'examine', 'go', 'take', 'move', 'slice', 'clean', 'heat', 'cool', 'open', 'close', 'use'}


def test_goal_with_two_objects_holds_only_for_two(start):
  simulator = start(
    '(exists (?r - receptacle) (exists (?a - object) (and (objectType ?a MugType) (receptacleType ?r CabinetType) (inReceptacle ?a ?r)'
    ' (exists (?b - object) (and (not (= ?a ?b)) (objectType ?b MugType) (inReceptacle ?b ?r))))))'
  )
  play(simulator, 'go to sidetable 1', 'take mug 1 from sidetable 1', 'go to cabinet 1')
  assert simulator.step('move mug 1 to cabinet 1')[1] is False
  play(simulator, 'go to fridge 1', 'take mug 3 from fridge 1', 'go to cabinet 2', 'open cabinet 2')
  assert simulator.step('move mug 3 to cabinet 2')[1] is False
  play(simulator, 'take mug 3 from cabinet 2', 'go to cabinet 1')
  assert simulator.step('move mug 3 to cabinet 1')[1] is True


def test_goal_of_looking_under_a_lamp(start):
  simulator = start(
    '(exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and (objectType ?ot DeskLampType) (toggleable ?ot) (isToggled ?ot)'
    ' (receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?ot ?r))) (exists (?o - object ?a - agent) (and (objectType ?o MugType) (holds ?a ?o)))'
  )
  play(simulator, 'go to fridge 1', 'take mug 3 from fridge 1', 'go to sidetable 1')
  assert simulator.won is False
  assert simulator.step('use desklamp 1')[1] is True
  assert simulator.step('go to fridge 1')[1] is False
  assert simulator.step('go to sidetable 1')[1] is True
  assert simulator.step('move mug 3 to sidetable 1')[1] is False


@pytest.mark.parametrize('goal', ['(exists (?o - object) (objectType ?o PenType))', '(exists (?o - object) (not (isClean ?o)))', '(not (opened Microwave_bar_1))'])
def test_goal_that_holds_at_the_start(start, goal):
  assert start(goal).won is True


def test_goal_about_a_type_that_is_not_there_cannot_be_met(start):
  assert start('(exists (?o - object) (objectType ?o Mug))').won is False


def test_step_before_reset(room):
  with pytest.raises(RuntimeError, match='reset'):
    Simulator(parse_problem(room()), 'x.').step('look')


def test_walks_of_official_games_win_at_their_last_step(official_games):
  games = load_games(official_games, count=150)
  for game in games:
    simulator = Simulator(parse_problem(game.problem), game.goal)
    simulator.reset()
    answers = [simulator.step(command) for command in game.walk]
    assert [won for _, won in answers] == [False] * (len(answers) - 1) + [True], game.game_id
    assert all(feedback != NOTHING for feedback, _ in answers), game.game_id
