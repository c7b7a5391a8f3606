"""The comparison of simulator and engine: that it plays what it should, and that it sees what it should."""

import random

import pytest

from mempi_jax import verify_alfworld
from mempi_jax.envs.alfworld.env import AlfworldEnv
from mempi_jax.envs.alfworld.generator import generate_games
from mempi_jax.envs.alfworld.problem import parse_problem
from mempi_jax.envs.alfworld.simulator import NOTHING
from mempi_jax.types import EnvStep, Task


class SimulatedEngine:
  """Answers as the engine does, by the simulator; `spoil(command, step)` may change an answer."""

  spoil = staticmethod(lambda command, step: step)

  def __init__(self, games=None, memoise=False, reset_deadline=0.0, step_deadline=0.0):
    pass

  def start(self, game):
    self.env = AlfworldEnv({'x': game})
    self.env.reset(Task('alfworld', 'x', 'train', 0))
    return self.env._simulator.reset()

  def step(self, command):
    return self.spoil(command, self.env.step(command))

  def admissible_commands(self):
    return self.env.admissible_commands()

  def close(self):
    pass


@pytest.fixture
def fake(monkeypatch):
  monkeypatch.setattr(verify_alfworld, 'EngineEnv', SimulatedEngine)
  monkeypatch.setattr(verify_alfworld, 'engine_available', lambda: True)
  return monkeypatch


ARGUMENTS = ['--games', 'generated:willow', '--episodes', '6', '--random-steps', '15', '--seed', '2']


def test_equal_engines_pass(fake, capsys):
  assert verify_alfworld.main(ARGUMENTS) == 0
  assert capsys.readouterr().out.endswith('6 passed, 0 failed\n')


@pytest.mark.parametrize(
  'spoil, what',
  [
    (lambda command, step: EnvStep(step.observation.replace('You arrive', 'You come'), *(step.reward, step.done, step.success)), 'feedback'),
    (lambda command, step: EnvStep(step.observation, step.reward, step.done, not step.success), 'won'),
  ],
)
def test_a_difference_is_seen(fake, capsys, spoil, what):
  fake.setattr(SimulatedEngine, 'spoil', staticmethod(spoil))
  assert verify_alfworld.main(ARGUMENTS) == 1
  out = capsys.readouterr().out
  assert out.endswith('0 passed, 6 failed\n')
  assert out.count(f': {what}\n  simulator: ') >= 6


def test_a_difference_in_the_admissible_commands_is_seen(fake, capsys):
  fake.setattr(SimulatedEngine, 'admissible_commands', lambda self: self.env.admissible_commands()[1:])
  assert verify_alfworld.main([*ARGUMENTS, '--workers', '2']) == 1
  assert "admissible commands (only in one of them)\n  simulator: ['go to" in capsys.readouterr().out


def test_episodes_meet_the_rare_commands_too():
  verbs, invalid = set(), 0
  for i, game in enumerate(generate_games('willow', 'train', 200, 0, small_fraction=0.4)):
    simulator = verify_alfworld.Recording(parse_problem(game.problem), game.goal)
    simulator.reset()
    for command in verify_alfworld.commands_of(simulator, game, verify_alfworld.KINDS[i % 3], random.Random(i), 30):
      if simulator.step(command)[0] == NOTHING:
        invalid += 1
      else:
        verbs.add(command.split()[0])
  assert verbs >= {'look', 'inventory', 'help', 'examine', 'go', 'take', 'move', 'clean', 'heat', 'cool', 'open', 'close', 'use', 'slice'}
  assert invalid > 100


def test_the_walk_wins_in_episodes_of_that_kind(fake):
  games = generate_games('willow', 'train', 9, 0, small_fraction=0.4)
  reports = {r.game_id: r for r in verify_alfworld.verify(games, 0, workers=1, random_steps=0, memoise=True)}
  assert [r.kind for r in (reports[game.game_id] for game in games)] == ['walk', 'expert', 'random'] * 3
  assert all(r.won for r in reports.values() if r.kind != 'expert')


def test_bad_arguments(fake, capsys):
  for arguments in (['--games', '/nowhere'], ['--games', 'generated:x', '--episodes', '0'], ['--games', 'generated:x', '--split', 'tests']):
    with pytest.raises(SystemExit) as error:
      verify_alfworld.main(arguments)
    assert error.value.code == 2
  assert 'no file or folder /nowhere' in capsys.readouterr().err


def test_no_engine_no_verification(monkeypatch, capsys):
  monkeypatch.setattr(verify_alfworld, 'engine_available', lambda: 'it is not installed')
  with pytest.raises(SystemExit) as error:
    verify_alfworld.main(ARGUMENTS)
  assert error.value.code == 2 and 'it is not installed' in capsys.readouterr().err
