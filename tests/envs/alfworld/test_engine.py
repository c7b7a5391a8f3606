"""The real engine, beside the simulator; what can be tested without the engine is."""

import sys
import time

import pytest

from mempi_jax.envs.alfworld import engine as engine_module
from mempi_jax.envs.alfworld.engine import EngineEnv, EngineError, engine_available
from mempi_jax.envs.alfworld.env import AlfworldEnv, make_env
from mempi_jax.types import Task


def task(game_id='small'):
  return Task('alfworld', game_id, 'train', 0)


def same(ours, theirs, commands):
  """Plays the commands in both and asserts that every answer is equal."""
  for command in commands:
    assert ours.step(command) == theirs.step(command), command
    assert ours.admissible_commands() == theirs.admissible_commands(), command


def test_every_rule_gives_the_same_answer(engine_installed, small_game, room, every_rule):
  goal = """(exists (?o - object ?a - agent) (and (objectType ?o MugType) (holds ?a ?o) (isCool ?o) (isClean ?o))) (not (opened Microwave_bar_1))"""
  games = {
    'small': small_game(),
    'other goal': small_game(problem=room(goal)),
    'start at a receptacle': small_game(problem=room(start='loc_bar_3')),
  }
  ours, theirs = AlfworldEnv(games), EngineEnv(games, memoise=True)
  won = {}
  for name in games:
    assert ours.reset(task(name)) == theirs.reset(task(name))
    assert ours.admissible_commands() == theirs.admissible_commands()
    commands = every_rule if name != 'start at a receptacle' else every_rule[:12]
    for command in commands:
      step = ours.step(command)
      assert step == theirs.step(command), command
      assert ours.admissible_commands() == theirs.admissible_commands(), command
      won.setdefault(name, set()).add(step.success)
  theirs.close()
  assert won == {'small': {False, True}, 'other goal': {False}, 'start at a receptacle': {False}}


def test_memoised_engine_says_what_the_plain_one_says(engine_installed, small_game):
  games = {'small': small_game()}
  plain, memoised = make_env('engine', games), EngineEnv(games, memoise=True)
  assert plain.reset(task()) == memoised.reset(task())
  same(plain, memoised, (*small_game().walk[:2], 'look', 'examine mug 1', *small_game().walk[2:]))
  assert plain.step('look').success
  plain.close()
  memoised.close()


def test_broken_problem_is_an_error_and_the_next_game_plays(engine_installed, small_game):
  env = EngineEnv({'broken': small_game(problem='(define (problem x))'), 'small': small_game()}, memoise=True)
  with pytest.raises(EngineError, match='failed at reset'):
    env.reset(task('broken'))
  assert env.reset(task()).goal == 'put a mug in cabinet'
  with pytest.raises(KeyError, match='small'):
    env.reset(task('smal'))
  env.close()


@pytest.fixture
def stand_in(monkeypatch):
  """stand_in(code): the engine's process runs this Python code instead."""

  def replace(code):
    monkeypatch.setattr(engine_module, 'engine_available', lambda: True)
    monkeypatch.setattr(engine_module, 'alfworld_text', lambda name: 'UNKNOWN GOAL.')
    popen = engine_module.subprocess.Popen
    monkeypatch.setattr(engine_module.subprocess, 'Popen', lambda command, **pipes: popen([sys.executable, '-c', code], **pipes))

  return replace


ANSWER = 'print(\'{"feedback": "a\\\\n\\\\nb\\\\n\\\\nc", "won": false, "admissible": []}\', flush=True)'


def test_engine_that_hangs(stand_in, small_game):
  stand_in('import sys, time\nfor line in sys.stdin:\n  if "step" in line: time.sleep(60)\n  else: ' + ANSWER)
  env = EngineEnv({'small': small_game()}, step_deadline=0.3)
  assert env.reset(task()).observation == 'b'
  start = time.monotonic()
  with pytest.raises(EngineError, match="did not answer 'step' within 0.3 s"):
    env.step('look')
  assert time.monotonic() - start < 30
  with pytest.raises(RuntimeError, match='reset'):
    env.step('look')
  assert env.reset(task()).observation == 'b'  # a new process
  env.close()


def test_engine_that_dies(stand_in, small_game):
  stand_in('import sys\nsys.stdin.readline()\nsys.stderr.write("out of memory\\n")\nsys.exit(3)')
  with pytest.raises(EngineError, match='died.*exit status 3; out of memory'):
    EngineEnv({'small': small_game()}).reset(task())


def test_missing_package_says_what_to_install(monkeypatch, small_game):
  monkeypatch.setattr(engine_module.importlib.util, 'find_spec', lambda name: None)
  assert 'mempi_jax[alfworld]' in engine_available()
  with pytest.raises(ImportError, match=r'pip install .mempi_jax\[alfworld\]'):
    make_env('engine', {'small': small_game()})
