"""The simulator's benchmark runs, and measures what it says; how fast anything is, is not tested."""

import json

import pytest

from mempi_jax.bench import __main__ as command
from mempi_jax.bench import simulator as bench
from mempi_jax.envs.alfworld.generator import generate_games
from mempi_jax.envs.alfworld.problem import parse_problem
from mempi_jax.envs.alfworld.simulator import NOTHING, Simulator


class CountingEngine:
  """Stands in for the real engine and counts what it is asked."""

  asked: list

  def __init__(self, games):
    CountingEngine.asked = []

  def start(self, game):
    self.asked.append(('start', game.game_id))

  def step(self, command):
    self.asked.append(('step', command))

  def close(self):
    self.asked.append(('close',))


def test_scripts_are_walks_and_then_valid_random_commands():
  games = generate_games('willow', 'train', 3, 0, small_fraction=0.4)
  scripts = bench.record_scripts(games, 7, seed=1)
  assert scripts == bench.record_scripts(games, 7, seed=1) != bench.record_scripts(games, 7, seed=2)
  for game, commands in scripts:
    assert commands[: len(game.walk)] == game.walk and len(commands) == len(game.walk) + 7
    simulator = Simulator(parse_problem(game.problem), game.goal)
    simulator.reset()
    assert NOTHING not in [simulator.step(command)[0] for command in commands]


def test_simulator_benchmark(monkeypatch, capsys, tmp_path):
  monkeypatch.setattr(bench, 'EngineEnv', CountingEngine)
  monkeypatch.setattr(command, 'engine_available', lambda: True)
  arguments = [
    'simulator',
    '--games',
    'generated:willow',
    '--count',
    '2',
    '--repeats',
    '3',
    '--random-steps',
    '4',
    '--output',
    str(tmp_path / 'b.json'),
  ]
  assert command.main(arguments) == 0
  scripts = bench.record_scripts(generate_games('willow', 'train', 2, 0, small_fraction=0.4), 4, 0)
  once = [asked for game, commands in scripts for asked in [('start', game.game_id), *(('step', command) for command in commands)]]
  assert CountingEngine.asked == [('start', scripts[0][0].game_id), *once * 3, ('close',)]  # one start to warm up
  result = json.loads((tmp_path / 'b.json').read_text())
  assert result['steps'] == sum(len(commands) for _, commands in scripts)
  for figure in result['figures'].values():
    assert 0 < figure['min'] <= figure['median'] <= figure['max']
  assert 'ratio, parsing and resets included' in capsys.readouterr().out


def test_bad_arguments(monkeypatch, capsys):
  monkeypatch.setattr(command, 'engine_available', lambda: True)
  for arguments in (['simulator', '--games', '/nowhere'], ['simulator', '--games', 'generated:x', '--count', '0'], ['simulatr']):
    with pytest.raises(SystemExit) as error:
      command.main(arguments)
    assert error.value.code == 2
  monkeypatch.setattr(command, 'engine_available', lambda: 'it is not installed')
  with pytest.raises(SystemExit):
    command.main(['simulator', '--games', 'generated:x'])
  assert 'it is not installed' in capsys.readouterr().err
