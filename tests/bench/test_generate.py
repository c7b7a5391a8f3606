"""Generation and steps of reinforcement learning run, alone and beside peers, and do the work they say; how fast, is not tested."""

import json

import jax
import pytest

from mempi_jax.bench import __main__ as command
from mempi_jax.bench import generate, models, turns
from mempi_jax.bench.peers.protocol import reward
from mempi_jax.bench.update import LEARNING_RATE
from mempi_jax.models.decoder import init_params
from mempi_jax.models.hf import save_model

SMALL = [
  'generate',
  '--model',
  'dummy',
  '--rows',
  '2',
  '--length',
  '5',
  '--new',
  '3',
  '--prompts',
  '2',
  '--branches',
  '2',
  '--repeats',
  '2',
]

# Peers that say what they are told to: no work, a duration that grows with each answer.
FAKE = """
import sys
sys.path.insert(0, {scripts!r})
from protocol import serve
turn = 0
def tick():
  global turn
  turn += 1
  return float(turn)
def step(steps):
  return {{'seconds': steps * tick(), 'completions': [3] * (4 * steps), 'moved': {moved}}}
serve({{
  'load': lambda folder, threads: {{'versions': {{'fake': '1'}}}},
  'warm_up': lambda shape, new: {{'way': 'by hand'}},
  'generate': lambda seed, shape, new: {{'seconds': tick(), 'new_tokens': shape[0] * new - {missing}}},
  'learn': lambda **settings: {{}},
  'step': step,
}})
"""


@pytest.fixture
def fake_peers(monkeypatch, tmp_path):
  """Puts such scripts in the place of the peers' own."""

  def write(missing=0, moved=2e-5):
    for name in ('torch', 'trl', 'tunix'):
      script = FAKE.format(scripts=str(scripts), missing=missing if name == 'torch' else 0, moved=moved if name == 'trl' else 2e-5)
      (tmp_path / f'{name}_peer.py').write_text(script)

  scripts = turns.SCRIPTS
  monkeypatch.setattr(turns, 'SCRIPTS', tmp_path)
  monkeypatch.setattr(turns, 'PEERS', {name: () for name in turns.PEERS})
  monkeypatch.setattr(command, 'keep_freed_memory', lambda: False)
  monkeypatch.setattr(generate, 'JaxGeneration', OurGeneration)
  monkeypatch.setattr(generate, 'JaxSteps', OurSteps)
  return write


class OurGeneration:
  """Our side of generation, without the work: always 3 seconds."""

  def __init__(self, config, params):
    pass

  def warm_up(self, shape, new):
    return ''

  def generate(self, seed, shape, new):
    return 3.0, shape[0] * new


class OurSteps:
  """Our side of reinforcement learning, without the work: always 2 seconds a step."""

  def __init__(self, config, params, step):
    self.step = step

  def run(self, steps):
    return generate.Stepped(2.0 * steps, [self.step.new] * (steps * self.step.prompts * self.step.branches), 2e-5)


@pytest.mark.slow
def test_alone(tmp_path, capsys):
  assert command.main([*SMALL, '--steps', '1', '--output', str(tmp_path / 'b.json')]) == 0
  result = json.loads((tmp_path / 'b.json').read_text())
  assert set(result['new_tokens_per_second']) == {'2'}
  for part in (result['new_tokens_per_second']['2'], result['seconds_per_step']):
    assert set(part['figures']) == {'mempi_jax'}
    figure = part['figures']['mempi_jax']
    assert 0 < figure['min'] <= figure['median'] <= figure['max']
  # Adam's first updates move a parameter by one learning rate each, where the gradient keeps its sign.
  steps = generate.WARMUP_STEPS
  assert result['seconds_per_step']['moved']['mempi_jax'] == pytest.approx(steps * LEARNING_RATE, rel=0.2)
  out = capsys.readouterr().out
  assert '2 prompts of 5 tokens, 3 new tokens each' in out and '4 completions of 3 tokens, 2 a prompt' in out


def test_beside_peers(fake_peers, tmp_path, capsys):
  fake_peers()
  assert command.main([*SMALL, '--vs', 'torch,trl,tunix', '--steps', '2', '--output', str(tmp_path / 'b.json')]) == 0
  result = json.loads((tmp_path / 'b.json').read_text())
  generation, steps = result['new_tokens_per_second']['2'], result['seconds_per_step']
  assert set(generation['figures']) == {'mempi_jax', 'torch', 'tunix', 'ratio'}
  assert generation['figures']['torch'] == {'median': 4.5, 'min': 3.0, 'max': 6.0}  # 6 tokens in 1 s, then in 2 s
  assert generation['ways'] == {'torch': 'by hand', 'tunix': 'by hand'}
  assert set(steps['figures']) == {'mempi_jax', 'trl', 'tunix', 'ratio'}
  assert steps['figures']['trl'] == {'median': 3.5, 'min': 3.0, 'max': 4.0}  # after two warm-up steps
  assert generation['figures']['ratio'] == {'median': 0.5, 'min': 1 / 3, 'max': 2 / 3}
  assert steps['figures']['ratio'] == {'median': 1.75, 'min': 1.5, 'max': 2.0} and result['versions']['fake'] == '1'
  assert '(by hand)' in capsys.readouterr().out


def test_peers_that_do_other_work_are_found(fake_peers, capsys):
  def error_of(*arguments):
    with pytest.raises(SystemExit) as error:
      command.main([*SMALL, *arguments])
    assert error.value.code == 2
    return capsys.readouterr().err

  fake_peers(missing=1, moved=1e-3)
  assert 'torch had 5 new tokens, expected 6' in error_of('--vs', 'torch', '--steps', '0')
  assert 'parameters moved by' in error_of('--vs', 'trl', '--steps', '1')
  fake_peers(moved='float("nan")')
  assert 'the parameters of trl are not finite' in error_of('--vs', 'trl', '--steps', '1')


def test_steps_of_another_size_are_found():
  step = generate.Step(seed=(0,), prompts=1, length=4, branches=2, new=3)
  generate.check_steps('x', generate.Stepped(1.0, [3, 3, 3, 3], 0.1), step, 2)
  with pytest.raises(ValueError, match=r'x learnt from 2 completions of lengths \[2, 3\], expected 4 of 3'):
    generate.check_steps('x', generate.Stepped(1.0, [3, 2], 0.1), step, 2)


def test_the_reward_is_the_share_of_even_tokens():
  assert reward([2, 3, 4, 8]) == 0.75 and reward([]) == 0.0


def test_bad_arguments(monkeypatch, capsys, tmp_path):
  def error_of(*arguments):
    with pytest.raises(SystemExit) as error:
      command.main([*SMALL, *arguments])
    assert error.value.code == 2
    return capsys.readouterr().err

  assert '--branches must be at least 2, found 1' in error_of('--branches', '1')
  assert 'at least 1' in error_of('--rows', '0')
  assert "unknown peer 'jetstream': expected some of torch, trl, tunix" in error_of('--vs', 'trl,jetstream')
  monkeypatch.setattr(turns.importlib.util, 'find_spec', lambda name: None)
  assert f'bash mempi_jax/bench/peers/install.sh {tmp_path} tunix' in error_of('--vs', 'tunix', '--peers', str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['torch', 'trl', 'tunix'])
def test_beside_a_real_peer(name, tmp_path):
  pytest.importorskip(name)
  config = models.named_model(models.QWEN2_5M)
  save_model(tmp_path / 'model', config, init_params(config, jax.random.key(0)))
  arguments = [*SMALL, '--model', str(tmp_path / 'model'), '--vs', name, '--steps', '1', '--output', str(tmp_path / 'b.json')]
  assert command.main(arguments) == 0  # the command itself fails where the work differs
  result = json.loads((tmp_path / 'b.json').read_text())
  assert (name in result['new_tokens_per_second']['2']['figures']) == (name in generate.GENERATION_PEERS)
  assert (name in result['seconds_per_step']['figures']) == (name in generate.STEP_PEERS)
