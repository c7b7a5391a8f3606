"""Fine-tuning runs, alone and beside PyTorch, and does the work it says; how fast anything is, is not tested."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from mempi_jax.bench import __main__ as command
from mempi_jax.bench import models, sft, turns
from mempi_jax.bench.__main__ import main
from mempi_jax.models.decoder import count_params, init_params
from mempi_jax.models.hf import save_model


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
  assert main([*arguments, *options]) == 0
  result = json.loads((tmp_path / 'b.json').read_text())
  config = models.named_model('dummy')
  assert result['parameters'] == count_params(init_params(config, jax.random.key(0)))
  assert result['flops_per_token'] == models.flops_per_token(config, result['parameters'], 8)
  assert len(result['warmup_losses']['mempi_jax']) == sft.WARMUP_STEPS
  # Random weights know nothing: the first loss is that of a uniform guess.
  assert result['warmup_losses']['mempi_jax'][0] == pytest.approx(np.log(config.vocab_size), rel=0.02)
  assert {'load_average', 'cpus', 'python', 'versions', 'device', 'peak_flops'} <= set(result)
  figure = result['figures']['mempi_jax']
  assert 0 < figure['min'] <= figure['median'] <= figure['max']
  assert ('utilisation' in result['figures']) == (result['peak_flops'] is not None)
  assert 'tokens/s' in capsys.readouterr().out


FAKE = """
import sys
sys.path.insert(0, {scripts!r})
from protocol import serve
serve({{
  'load': lambda folder, threads: {{'versions': {{'torch': '0'}}}},
  'optimize': lambda compiled, **settings: {{}},
  'train': lambda seed, shape: {{'seconds': float(1 + seed[-1]), 'losses': [{loss}] * shape[0]}},
}})
"""


class OurTraining:
  """Our side without the work: always 4 seconds, always the same loss."""

  def __init__(self, config, params):
    pass

  def train(self, seed, shape):
    return 4.0, [2.0] * shape[0]


def test_sft_beside_a_peer(monkeypatch, capsys, tmp_path):
  scripts = turns.SCRIPTS
  monkeypatch.setattr(turns, 'SCRIPTS', tmp_path)
  monkeypatch.setattr(turns, 'PEERS', {'torch': ()})
  monkeypatch.setattr(sft, 'JaxTraining', OurTraining)
  monkeypatch.setattr(command, 'keep_freed_memory', lambda: True)
  small = ['sft', '--vs', 'torch', '--model', 'dummy', '--batch-size', '2', '--length', '8', '--steps', '3', '--repeats', '2', '--compile']
  (tmp_path / 'torch_peer.py').write_text(FAKE.format(scripts=str(scripts), loss=2.0))
  assert main([*small, '--output', str(tmp_path / 'b.json')]) == 0
  result = json.loads((tmp_path / 'b.json').read_text())
  figures, peers = result['figures'], ['torch', 'torch, memory kept', 'torch, compiled', 'torch, compiled, memory kept']
  assert set(figures) == {'mempi_jax', *peers, *(f'ratio to {name}' for name in peers)}
  assert figures['torch'] == {'median': 20.0, 'min': 16.0, 'max': 24.0}  # 48 tokens in 2 s, then in 3 s
  assert figures['ratio to torch, memory kept'] == {'median': 0.625, 'min': 0.5, 'max': 0.75}
  assert result['versions']['torch'] == '0' and result['memory_kept'] is True
  assert 'ratio to torch, compiled' in capsys.readouterr().out
  (tmp_path / 'torch_peer.py').write_text(FAKE.format(scripts=str(scripts), loss=2.1))
  with pytest.raises(SystemExit):
    main(small)
  assert 'the two sides do not do the same work' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize('kept', [False, True])
def test_sft_beside_torch_does_the_same_work(kept, monkeypatch, tmp_path):
  pytest.importorskip('torch')
  monkeypatch.setattr(command, 'keep_freed_memory', lambda: kept)
  # A folder, grouped heads and biases too; the command itself fails where the losses differ.
  config = dataclasses.replace(models.named_model(models.QWEN2_5M), vocab_size=64, embed_dim=32, num_layers=2, head_dim=16, mlp_dim=48)
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
  assert main([*arguments, '--output', str(tmp_path / 'b.json')]) == 0
  result = json.loads((tmp_path / 'b.json').read_text())
  np.testing.assert_allclose(result['warmup_losses']['mempi_jax'], result['warmup_losses']['torch'], rtol=1e-4)
  figures = result['figures']
  assert [name for name in figures if name.startswith('torch')] == (['torch', 'torch, memory kept'] if kept else ['torch'])
  assert figures['ratio to torch']['median'] == pytest.approx(figures['mempi_jax']['median'] / figures['torch']['median'])


def test_sides_that_differ_are_found():
  sft.check_same_work([5.0, 4.0], [5.0002, 4.03])
  with pytest.raises(ValueError, match='first step'):
    sft.check_same_work([5.0, 4.0], [5.01, 4.0])
  with pytest.raises(ValueError, match='last warm-up step'):
    sft.check_same_work([5.0, 4.0], [5.0, 4.1])
  with pytest.raises(ValueError, match='first step'):
    sft.check_same_work([float('nan'), 4.0], [5.0, 4.0])


def test_bad_sft_arguments(monkeypatch, capsys, tmp_path):
  small = ['sft', '--model', 'dummy', '--batch-size', '1', '--length', '8']

  def error_of(arguments):
    with pytest.raises(SystemExit) as error:
      main(arguments)
    assert error.value.code == 2
    return capsys.readouterr().err

  assert 'qwen2-5m' in error_of(['sft', '--model', 'nothing'])
  assert '--length at least 2' in error_of(['sft', '--length', '1'])
  assert 'float32' in error_of([*small, '--vs', 'torch', '--dtype', 'bfloat16'])
  assert 'splash' in error_of([*small, '--attention', 'splash'])
  assert "unknown peer 'tensorflow': expected some of torch" in error_of([*small, '--vs', 'torch,tensorflow'])
  monkeypatch.setattr(turns.importlib.util, 'find_spec', lambda name: None)
  message = error_of([*small, '--vs', 'torch', '--peers', str(tmp_path)])
  assert f'bash mempi_jax/bench/peers/install.sh {tmp_path} torch' in message and "pip install 'mempi_jax[torch]'" in message


def test_sft_on_an_accelerator_has_no_peers(monkeypatch, capsys):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  with pytest.raises(SystemExit):
    main(['sft', '--model', 'dummy', '--vs', 'torch'])
  assert 'float32 on a CPU, found JAX on gpu' in capsys.readouterr().err
