"""Fine-tuning runs, alone and beside peers, and does the work it says; how fast anything is, is not tested."""

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
  'load': lambda folder, threads: {{'versions': {{{name!r}: '0'}}}},
  'optimize': lambda {settings}: {{}},
  'train': lambda seed, shape: {{
    'seconds': {slower} * float(1 + seed[-1]), 'losses': [{loss}] * shape[0], 'tokens': shape[0] * shape[1] * (shape[2] - 1) - {missing}}},
}})
"""


@pytest.fixture
def fake_peers(monkeypatch, tmp_path):
  """Puts such scripts in the place of the peers' own; TRL's takes twice as long, and only PyTorch's may be compiled."""

  def write(loss=2.0, missing=0):
    for name in sft.PEERS:
      settings = ('compiled, ' if name == 'torch' else '') + 'learning_rate, weight_decay, clip_norm'
      slower = 2 if name == 'trl' else 1
      script = FAKE.format(scripts=str(scripts), name=name, settings=settings, slower=slower, loss=loss, missing=missing)
      (tmp_path / f'{name}_peer.py').write_text(script)

  scripts = turns.SCRIPTS
  monkeypatch.setattr(turns, 'SCRIPTS', tmp_path)
  monkeypatch.setattr(turns, 'PEERS', {name: () for name in sft.PEERS})
  monkeypatch.setattr(sft, 'JaxTraining', OurTraining)
  monkeypatch.setattr(command, 'keep_freed_memory', lambda: True)
  return write


class OurTraining:
  """Our side without the work: always 4 seconds, always the same loss."""

  def __init__(self, config, params):
    pass

  def train(self, seed, shape):
    return sft.Trained(4.0, [2.0] * shape[0], shape[0] * shape[1] * (shape[2] - 1))


BESIDE = ['sft', '--vs', 'torch', '--model', 'dummy', '--batch-size', '2', '--length', '8', '--steps', '3', '--repeats', '2']


def test_sft_beside_a_peer(fake_peers, capsys, tmp_path):
  fake_peers()
  assert main([*BESIDE, '--compile', '--output', str(tmp_path / 'b.json')]) == 0
  result = json.loads((tmp_path / 'b.json').read_text())
  figures, peers = result['figures'], ['torch', 'torch, memory kept', 'torch, compiled', 'torch, compiled, memory kept']
  assert set(figures) == {'mempi_jax', *peers, *(f'ratio to {name}' for name in peers), 'ratio to the best'}
  assert figures['torch'] == {'median': 20.0, 'min': 16.0, 'max': 24.0}  # 48 tokens in 2 s, then in 3 s
  assert figures['ratio to torch, memory kept'] == {'median': 0.625, 'min': 0.5, 'max': 0.75}
  assert result['versions']['torch'] == '0' and result['memory_kept'] is True
  assert 'ratio to torch, compiled' in capsys.readouterr().out


def test_sft_beside_several_peers(fake_peers, tmp_path):
  fake_peers()
  assert main([*BESIDE, '--vs', 'torch,trl,tunix', '--output', str(tmp_path / 'b.json')]) == 0
  result = json.loads((tmp_path / 'b.json').read_text())
  figures = result['figures']
  assert set(result['warmup_losses']) == {'mempi_jax', *(name + kept for name in sft.PEERS for kept in ('', turns.KEPT))}
  assert figures['tunix'] == {'median': 20.0, 'min': 16.0, 'max': 24.0} and figures['trl'] == {'median': 10.0, 'min': 8.0, 'max': 12.0}
  assert figures['ratio to trl']['median'] == 1.25 and figures['ratio to the best']['median'] == 0.625
  assert {'torch', 'trl', 'tunix'} <= set(result['versions'])


def test_peers_that_do_other_work_are_found(fake_peers, capsys):
  fake_peers(loss=2.1)
  with pytest.raises(SystemExit):
    main(BESIDE)
  assert 'the two sides do not do the same work: loss of the first step 2.000000 here, 2.100000 in torch' in capsys.readouterr().err
  fake_peers(missing=2)
  with pytest.raises(SystemExit):
    main(BESIDE)
  assert 'torch had 40 tokens with a loss, expected 42' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'kept'), [('torch', False), ('torch', True), ('trl', True), ('tunix', True)])
def test_sft_beside_a_real_peer_does_the_same_work(name, kept, monkeypatch, tmp_path):
  pytest.importorskip(name)
  monkeypatch.setattr(command, 'keep_freed_memory', lambda: kept)
  # A folder, grouped heads and biases too; the command itself fails where the losses differ.
  config = dataclasses.replace(models.named_model(models.QWEN2_5M), vocab_size=64, embed_dim=32, num_layers=2, head_dim=16, mlp_dim=48)
  save_model(tmp_path / 'model', config, init_params(config, jax.random.key(0)))
  small = ['sft', '--vs', name, '--model', str(tmp_path / 'model'), '--batch-size', '2', '--length', '16', '--steps', '1', '--repeats', '1']
  assert main([*small, '--output', str(tmp_path / 'b.json')]) == 0
  result = json.loads((tmp_path / 'b.json').read_text())
  np.testing.assert_allclose(result['warmup_losses']['mempi_jax'], result['warmup_losses'][name], rtol=1e-4)
  figures = result['figures']
  assert [found for found in figures if found.startswith(name)] == ([name, f'{name}, memory kept'] if kept else [name])
  assert figures[f'ratio to {name}']['median'] == pytest.approx(figures['mempi_jax']['median'] / figures[name]['median'])


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
  assert "unknown peer 'tensorflow': expected some of torch, trl, tunix" in error_of([*small, '--vs', 'torch,tensorflow'])
  monkeypatch.setattr(turns.importlib.util, 'find_spec', lambda name: None)
  message = error_of([*small, '--vs', 'torch', '--peers', str(tmp_path)])
  assert f'bash mempi_jax/bench/peers/install.sh {tmp_path} torch' in message and "pip install 'mempi_jax[torch]'" in message


def test_sft_on_an_accelerator_has_no_peers(monkeypatch, capsys):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  with pytest.raises(SystemExit):
    main(['sft', '--model', 'dummy', '--vs', 'torch'])
  assert 'float32 on a CPU, found JAX on gpu' in capsys.readouterr().err
