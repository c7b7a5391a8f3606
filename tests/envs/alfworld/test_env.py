"""The environment protocol over the simulator."""

import pytest

from mempi_jax.envs.alfworld import env as env_module
from mempi_jax.envs.alfworld.env import AlfworldEnv, make_env, shared_problem
from mempi_jax.types import EnvStep, Task


def task(game_id='small'):
  return Task('alfworld', game_id, 'train', 7)


def test_episode(small_game):
  game = small_game()
  env = AlfworldEnv({'small': game})
  context = env.reset(task())
  assert context.task == task()
  assert context.goal == 'put a mug in cabinet'
  assert context.history == ()
  assert context.observation == (
    'You are in the middle of a room. Looking quickly around you, you see a cabinet 2, a cabinet 1, a countertop 1, a fridge 1, '
    'a microwave 1, a sidetable 1, a sinkbasin 1, and a toaster 1.'
  )
  steps = [env.step(command) for command in game.walk]
  assert [step.reward for step in steps] == [0.0, 0.0, 0.0, 1.0]
  assert steps[-1] == EnvStep('You move the mug 1 to the cabinet 1.', 1.0, True, True)
  assert not any(step.done or step.success for step in steps[:-1])


def test_reset_changes_the_game(small_game):
  games = {'a': small_game('a'), 'b': small_game('b', goal='put some mug on cabinet.')}
  env = AlfworldEnv(games)
  env.reset(task('a'))
  env.step('go to fridge 1')
  assert env.reset(task('b')).goal == 'put some mug on cabinet'
  assert 'go to fridge 1' in env.admissible_commands()


def test_many_environments_parse_a_game_once(small_game, monkeypatch):
  game = small_game(problem=small_game().problem + '; a text of its own')
  before = shared_problem.cache_info().misses
  envs = [AlfworldEnv({'small': game}) for _ in range(20)]
  for env in envs:
    env.reset(task())
  assert shared_problem.cache_info().misses == before + 1
  envs[0].step('go to fridge 1')
  assert 'go to fridge 1' in envs[1].admissible_commands() and 'go to fridge 1' not in envs[0].admissible_commands()


def test_unknown_game_names_near_ones(small_game):
  env = AlfworldEnv({'kitchen-12': small_game(), 'bathroom-3': small_game()})
  with pytest.raises(KeyError, match='kitchen-12'):
    env.reset(task('kitchen-13'))


def test_broken_problem_names_the_game(small_game):
  env = AlfworldEnv({'small': small_game(problem='(define (problem x))')})
  with pytest.raises(ValueError, match="game 'small'"):
    env.reset(task())


def test_order_of_calls(small_game):
  env = AlfworldEnv({'small': small_game()})
  for call in (lambda: env.step('look'), env.admissible_commands):
    with pytest.raises(RuntimeError, match='reset'):
      call()
  env.reset(task())
  env.close()
  with pytest.raises(RuntimeError, match='reset'):
    env.step('look')


def test_make_env(small_game):
  assert isinstance(make_env('simulator', {'small': small_game()}), AlfworldEnv)
  with pytest.raises(ValueError, match='simulator, engine'):
    make_env('simulater', {})


def test_the_simulator_imports_neither_jax_nor_the_engine():
  import subprocess
  import sys

  code = 'import sys, mempi_jax.envs.alfworld.env, mempi_jax.envs.alfworld.games, mempi_jax.envs.alfworld.engine;'
  code += 'print([name for name in ("jax", "textworld", "alfworld", "fast_downward") if name in sys.modules])'
  assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
  assert env_module.BACKENDS == ('simulator', 'engine')
