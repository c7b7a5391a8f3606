"""The benchmarks run, and measure what they say; how fast anything is, is not tested."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from mempi_jax import bench
from mempi_jax.envs.alfworld.generator import generate_games
from mempi_jax.envs.alfworld.problem import parse_problem
from mempi_jax.envs.alfworld.simulator import NOTHING, Simulator
from mempi_jax.models.decoder import DecoderConfig, count_params, init_params
from mempi_jax.models.hf import save_model


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
  monkeypatch.setattr(bench, 'engine_available', lambda: True)
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
  assert bench.main(arguments) == 0
  scripts = bench.record_scripts(generate_games('willow', 'train', 2, 0, small_fraction=0.4), 4, 0)
  once = [asked for game, commands in scripts for asked in [('start', game.game_id), *(('step', command) for command in commands)]]
  assert CountingEngine.asked == [('start', scripts[0][0].game_id), *once * 3, ('close',)]  # one start to warm up
  result = json.loads((tmp_path / 'b.json').read_text())
  assert result['steps'] == sum(len(commands) for _, commands in scripts)
  for figure in result['figures'].values():
    assert 0 < figure['min'] <= figure['median'] <= figure['max']
  assert 'ratio, parsing and resets included' in capsys.readouterr().out


def test_bad_arguments(monkeypatch, capsys):
  monkeypatch.setattr(bench, 'engine_available', lambda: True)
  for arguments in (['simulator', '--games', '/nowhere'], ['simulator', '--games', 'generated:x', '--count', '0'], ['simulatr']):
    with pytest.raises(SystemExit) as error:
      bench.main(arguments)
    assert error.value.code == 2
  monkeypatch.setattr(bench, 'engine_available', lambda: 'it is not installed')
  with pytest.raises(SystemExit):
    bench.main(['simulator', '--games', 'generated:x'])
  assert 'it is not installed' in capsys.readouterr().err


def test_flops_per_token_by_hand():
  config = DecoderConfig(vocab_size=10, embed_dim=4, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=2, mlp_dim=5)
  # A layer: norms 2 x 4, qkv 4 x (4 + 2 + 2), output 4 x 4, gate and up 4 x 10, down 5 x 4. Besides: final norm 4, embedding 10 x 4.
  params = 3 * (8 + 32 + 16 + 40 + 20) + 4 + 40
  assert params == count_params(init_params(config, jax.random.key(0)))
  attention = 3 * (12 * 2 * 2 * 6 / 2)  # 3 layers, 2 heads of 2, 6 tokens
  assert bench.flops_per_token(config, params, length=6) == 6 * params + attention
  untied = dataclasses.replace(config, tie_embeddings=False)
  assert bench.flops_per_token(untied, params + 40, length=6) == 6 * params + attention  # the lookup costs nothing, the head what it did


@pytest.mark.parametrize(
  ('kind', 'peak'),
  [
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('NVIDIA H100 PCIe', None),
    ('NVIDIA A100-SXM4-80GB', 312e12),
    ('NVIDIA L4', 121e12),
    ('NVIDIA L40S', None),
    ('TPU v4', 275e12),
    ('TPU v5 lite', 197e12),
    ('TPU v5p', 459e12),
    ('TPU v6 lite', 918e12),
    ('cpu', None),
  ],
)
def test_peak_flops(kind, peak):
  assert bench.peak_flops(kind) == peak


def test_qwen2_5m_has_five_million_parameters():
  shapes = jax.eval_shape(lambda: init_params(bench.named_model(bench.QWEN2_5M), jax.random.key(0)))
  assert count_params(shapes) == 5_050_624


@pytest.mark.parametrize('options', [[], ['--scan-layers', '--remat', 'full', '--dtype', 'bfloat16']])
def test_sft_benchmark(options, capsys, tmp_path):
  arguments = [
    'sft',
    '--model',
    'dummy',
    '--batch-size',
    '2',
    '--length',
    '8',
    '--steps',
    '1',
    '--repeats',
    '2',
    '--output',
    str(tmp_path / 'b.json'),
  ]
  assert bench.main([*arguments, *options]) == 0
  result = json.loads((tmp_path / 'b.json').read_text())
  config = bench.named_model('dummy')
  assert result['parameters'] == count_params(init_params(config, jax.random.key(0)))
  assert result['flops_per_token'] == bench.flops_per_token(config, result['parameters'], 8)
  assert len(result['warmup_losses']['mempi_jax']) == bench.WARMUP_STEPS
  # Random weights know nothing: the first loss is that of a uniform guess.
  assert result['warmup_losses']['mempi_jax'][0] == pytest.approx(np.log(config.vocab_size), rel=0.02)
  assert {'load_average', 'cpus', 'python', 'versions', 'device', 'peak_flops'} <= set(result)
  figure = result['figures']['mempi_jax']
  assert 0 < figure['min'] <= figure['median'] <= figure['max']
  assert ('utilisation' in result['figures']) == (result['peak_flops'] is not None)
  assert 'tokens/s' in capsys.readouterr().out


def test_sft_beside_torch_does_the_same_work(tmp_path):
  pytest.importorskip('torch')
  # A folder, grouped heads and biases too; the command itself fails where the losses differ.
  config = dataclasses.replace(bench.named_model(bench.QWEN2_5M), vocab_size=64, embed_dim=32, num_layers=2, head_dim=16, mlp_dim=48)
  save_model(tmp_path / 'model', config, init_params(config, jax.random.key(0)))
  arguments = [
    'sft',
    '--vs',
    'torch',
    '--model',
    str(tmp_path / 'model'),
    '--batch-size',
    '2',
    '--length',
    '16',
    '--steps',
    '1',
    '--repeats',
    '1',
  ]
  assert bench.main([*arguments, '--output', str(tmp_path / 'b.json')]) == 0
  result = json.loads((tmp_path / 'b.json').read_text())
  np.testing.assert_allclose(result['warmup_losses']['mempi_jax'], result['warmup_losses']['torch'], rtol=1e-4)
  figures = result['figures']
  assert figures['ratio']['median'] == pytest.approx(figures['mempi_jax']['median'] / figures['torch']['median'])


def test_sides_that_differ_are_found():
  bench.check_same_work([5.0, 4.0], [5.0002, 4.03])
  with pytest.raises(ValueError, match='first step'):
    bench.check_same_work([5.0, 4.0], [5.01, 4.0])
  with pytest.raises(ValueError, match='last warm-up step'):
    bench.check_same_work([5.0, 4.0], [5.0, 4.1])
  with pytest.raises(ValueError, match='first step'):
    bench.check_same_work([float('nan'), 4.0], [5.0, 4.0])


def test_bad_sft_arguments(monkeypatch, capsys):
  small = ['sft', '--model', 'dummy', '--batch-size', '1', '--length', '8']
  for arguments, message in (
    (['sft', '--model', 'nothing'], 'qwen2-5m'),
    (['sft', '--length', '1'], '--length at least 2'),
    ([*small, '--vs', 'torch', '--dtype', 'bfloat16'], 'float32'),
    ([*small, '--attention', 'splash'], 'splash'),
  ):
    with pytest.raises(SystemExit) as error:
      bench.main(arguments)
    assert error.value.code == 2 and message in capsys.readouterr().err
  monkeypatch.setattr(bench.sys, 'platform', 'darwin')
  with pytest.raises(SystemExit):
    bench.main([*small, '--keep-memory'])
  assert 'leave --keep-memory out' in capsys.readouterr().err
  monkeypatch.setattr(bench.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(SystemExit):
    bench.main([*small, '--vs', 'torch'])
  assert "pip install 'mempi_jax[torch]'" in capsys.readouterr().err
