"""The parser of PDDL problems."""

import pytest

from mempi_jax.envs.alfworld.games import load_games
from mempi_jax.envs.alfworld.problem import Literal, parse_problem


def names(problem, entities):
  return {problem.names[i] for i in entities}


def test_room_is_understood(room):
  problem = parse_problem(room())
  assert names(problem, problem.receptacles) == {
    'cabinet 1', 'cabinet 2', 'countertop 1', 'fridge 1', 'microwave 1', 'sidetable 1', 'sinkbasin 1', 'toaster 1',
  }  # fmt: skip
  assert problem.ids[problem.start] == 'loc_bar_0'
  assert names(problem, problem.opened) == {'fridge 1'}
  assert names(problem, problem.contents[problem.entity['countertop 1']]) == {'apple 1', 'bowl 1', 'knife 1', 'mug 2', 'pen 1'}
  assert names(problem, problem.knives) == {'knife 1'}
  assert problem.object_type[problem.entity['mug 3']] == 'mugtype'
  assert names(problem, problem.at[problem.location[problem.entity['toaster 1']]]) == {'toaster 1', 'countertop 1'}


def test_numbers_run_downwards_along_the_sorted_ids(room):
  problem = parse_problem(room())
  found = {problem.ids[problem.entity[f'mug {n}']]: n for n in (1, 2, 3)}
  assert found == {'mug_bar__minus_3': 3, 'mug_bar__plus_1': 2, 'mug_bar__plus_2': 1}
  assert problem.ids[problem.entity['sinkbasin 1']] == 'sink_bar_1_bar_sinkbasin'
  assert problem.ids[problem.entity['sink 1']] == 'sink_bar_1'


def test_goal_keeps_what_can_change_and_narrows_the_variables(room):
  problem = parse_problem(room())
  assert problem.goal.literals == (Literal('inreceptacle', (-2, -1)),)
  assert [names(problem, candidates) for candidates in problem.goal.candidates] == [{'cabinet 1', 'cabinet 2'}, {'mug 1', 'mug 2', 'mug 3'}]


def test_two_distinct_objects_and_negation(room):
  goal = '(exists (?r - receptacle ?a ?b - object) (and (not (= ?a ?b)) (inReceptacle ?a ?r) (inReceptacle ?b ?r) (not (opened ?r))))'
  problem = parse_problem(room(goal))
  assert Literal('=', (-2, -3), False) in problem.goal.literals
  assert Literal('opened', (-1,), False) in problem.goal.literals


def test_variables_of_the_same_name_in_two_exists_are_different(room):
  problem = parse_problem(room('(exists (?o - object) (isHot ?o)) (exists (?o - object) (isCool ?o))'))
  assert problem.goal.literals == (Literal('ishot', (-1,)), Literal('iscool', (-2,)))


def test_official_games_parse(official_games):
  games = load_games(official_games, count=60)
  assert len({game.task_type for game in games}) == 6
  for game in games:
    problem = parse_problem(game.problem)
    assert len(problem.receptacles) > 4
    assert problem.goal.literals and all(problem.goal.candidates)


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda text: text[:-2], 'not closed'),
    (lambda text: text + ')', 'too many'),
    (lambda text: '', r'expected a PDDL problem \(define'),
    (lambda text: text.replace('(:domain alfred)', '(:domain blocks)'), 'blocks'),
    (lambda text: text.replace('(:goal', '(:aim'), 'no .:goal'),
    (lambda text: text.replace('(atLocation agent1 loc_bar_0)', ''), 'atLocation'),
    (lambda text: text.replace('(sliceable Apple_bar_1)', '(sliceable Pear_bar_1)'), 'pear_bar_1.*not declared'),
    (lambda text: text.replace('(sliceable Apple_bar_1)', '(sliceable)'), 'expected 1 arguments'),
    (lambda text: text.replace('(sliceable Apple_bar_1)', '(edible Apple_bar_1)'), 'edible'),
    (lambda text: text.replace('(sliceable Apple_bar_1)', '(sliceable Fridge_bar_1)'), 'type object, it is receptacle'),
    (lambda text: text.replace('(sliceable Apple_bar_1)', '(holds agent1 Apple_bar_1)'), 'empty hands'),
    (lambda text: text.replace('- location)\n', '- place)\n'), "unknown type place"),
    (lambda text: text.replace('(inReceptacle ?o ?r)', '(or (inReceptacle ?o ?r))'), 'unknown condition'),
    (lambda text: text.replace('(inReceptacle ?o ?r)', '(inReceptacle ?x ?r)'), r'\?x'),
    (lambda text: text.replace('receptacle) (exists', 'receptacle (exists'), 'goal|closed'),
  ],
)  # fmt: skip
def test_broken_text_says_what_is_wrong(room, change, message):
  with pytest.raises(ValueError, match=message):
    parse_problem(change(room()))
