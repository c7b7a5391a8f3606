"""Updates of reinforcement learning run, alone and beside peers, and do the work they say; how fast anything is, is not tested."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mempi_jax.bench import __main__ as command
from mempi_jax.bench import models, turns, update
from mempi_jax.bench.peers.protocol import advantages_of, draw_tokens
from mempi_jax.models.decoder import Decoder, DecoderConfig, count_params, init_params
from mempi_jax.models.hf import save_model
from mempi_jax.policy.score import score_rows

SIZES = ['--prompts', '2', '--length', '5', '--branches', '3', '--new', '4', '--steps', '2', '--repeats', '2']
SMALL = ['update', '--model', 'dummy', *SIZES]
STEP = update.Step(seed=(0, 0), prompts=2, length=5, branches=3, new=4)

# A peer that says what it is told to: no work, a duration that grows with each answer.
FAKE = """
import sys
sys.path.insert(0, {scripts!r})
import numpy as np
from protocol import serve
turn = 0
def learn(old_logps, **settings):
  assert np.load(old_logps).shape == (2, 3, 4) and settings['clip'] == 0.2
  return {{}}
def step(steps):
  global turn
  turn += 1
  seconds = steps * {slower} * float(turn)
  return {{'seconds': seconds, 'losses': [{loss}] * steps, 'completions': [], 'tokens': {tokens} * steps, 'moved': {moved}}}
serve({{'load': lambda folder, threads: {{'versions': {{{name!r}: '1'}}}}, 'learn': learn, 'step': step}})
"""


class OurUpdates:
  """Our side without the work: always 3 seconds an update."""

  def __init__(self, config, params, step, batch, micro_batches):
    assert batch.old_logps.shape == (2, 12)

  def run(self, updates):
    return update.Updated(3.0 * updates, [0.5] * updates, 24 * updates)

  def moved(self):
    return 3e-5


@pytest.fixture
def fake_peers(monkeypatch, tmp_path):
  """Puts such scripts in the place of the peers' own; Tunix's takes twice as long."""

  def write(loss=0.5, tokens=24, moved=3e-5):
    for name, slower in (('trl', 1), ('tunix', 2)):
      script = FAKE.format(scripts=str(scripts), name=name, slower=slower, loss=loss, tokens=tokens, moved=moved)
      (tmp_path / f'{name}_peer.py').write_text(script)

  scripts = turns.SCRIPTS
  monkeypatch.setattr(turns, 'SCRIPTS', tmp_path)
  monkeypatch.setattr(turns, 'PEERS', {name: () for name in update.PEERS})
  monkeypatch.setattr(update, 'JaxUpdates', OurUpdates)
  monkeypatch.setattr(command, 'keep_freed_memory', lambda: True)
  return write


def test_packed_completions_are_scored_as_each_by_itself():
  config = DecoderConfig(vocab_size=11, embed_dim=8, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=12)
  params = jax.tree.map(lambda leaf: leaf * 8.0 if leaf.ndim == 2 else leaf, init_params(config, jax.random.key(0)))
  prompts, completions = draw_tokens((0,), (2, 4), 11), draw_tokens((1,), (2, 3, 5), 11)
  advantages = np.arange(6, dtype=np.float32).reshape(2, 3)
  logps = np.arange(30, dtype=np.float32).reshape(2, 3, 5)
  batch = update.pack_completions(prompts, completions, advantages, logps)
  arrays = batch.tokens, batch.branch, batch.positions, batch.decision_index, batch.score_index, batch.targets
  _, scored = jax.jit(lambda params: score_rows(config, params, 0, 1, *arrays))(params)

  @jax.jit
  def alone(params):
    """f32[6, 5]: each completion behind its prompt, in a row of its own."""
    flat = completions.reshape(6, 5)
    tokens = np.concatenate([np.repeat(prompts, 3, axis=0), flat], axis=1)
    hidden = Decoder(config).apply({'params': params}, tokens, np.broadcast_to(np.arange(9, dtype=np.int32), (6, 9)), None)
    logps = jax.nn.log_softmax(Decoder(config).apply({'params': params}, hidden, method='logits'))
    return jnp.take_along_axis(logps[:, 3:8], flat[..., None], axis=-1)[..., 0]

  np.testing.assert_allclose(scored.reshape(6, 5), alone(params), atol=1e-5)
  np.testing.assert_array_equal(batch.content_adv[1], np.repeat([3.0, 4.0, 5.0], 5))
  np.testing.assert_array_equal(batch.old_logps[0], np.arange(15))
  assert batch.content_mask.all() and batch.tokens.dtype == batch.positions.dtype == batch.score_index.dtype == np.int32


@pytest.mark.slow
@pytest.mark.parametrize('options', [[], ['--scan-layers', '--remat', 'full', '--dtype', 'bfloat16']])
def test_alone(options, tmp_path, capsys):
  assert command.main([*SMALL, *options, '--output', str(tmp_path / 'b.json')]) == 0
  result = json.loads((tmp_path / 'b.json').read_text())
  config = models.named_model('dummy')
  assert result['parameters'] == count_params(init_params(config, jax.random.key(0)))
  assert result['flops_per_update'] == 2 * models.packed_flops(config, result['parameters'], 5, 3, 4)
  losses = result['warmup_losses']['mempi_jax']
  assert len(losses) == update.WARMUP_UPDATES and losses[-1] < losses[0]  # it learns
  # Adam's first updates move a parameter by one learning rate each, where the gradient keeps its sign.
  assert result['moved']['mempi_jax'] == pytest.approx(update.WARMUP_UPDATES * update.LEARNING_RATE, rel=0.2)
  assert set(result['seconds_per_update']) == set(result['tokens_per_second']) == {'mempi_jax'}
  seconds, tokens = result['seconds_per_update']['mempi_jax'], result['tokens_per_second']['mempi_jax']
  assert 0 < seconds['min'] <= seconds['median'] and tokens['max'] == pytest.approx(24 / seconds['min'])
  assert (result['utilisation'] == {}) == (result['peak_flops'] is None)
  assert '3 completions of 4 tokens for each of 2 prompts of 5' in capsys.readouterr().out


def test_utilisation_is_of_the_peak(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(update, 'peak_flops', lambda kind: 1e12)
  assert command.main([*SMALL, '--output', str(tmp_path / 'b.json')]) == 0
  result = json.loads((tmp_path / 'b.json').read_text())
  found, seconds = result['utilisation']['mempi_jax'], result['seconds_per_update']['mempi_jax']
  assert found['max'] == pytest.approx(result['flops_per_update'] / 1e12 / seconds['min'])
  assert '% of peak' in capsys.readouterr().out


def test_given_batch():
  config = models.named_model('dummy')
  params = init_params(config, jax.random.key(0))
  batch = update.given_batch(dataclasses.replace(config, scan_layers=True, remat='full'), params, STEP)
  completions = draw_tokens((0, 0, 1), (2, 3, 4), config.vocab_size)
  np.testing.assert_array_equal(batch.targets, completions.reshape(2, 12))
  # Peers compute the advantages themselves.
  np.testing.assert_allclose(update.group_advantages(completions), advantages_of(completions), atol=1e-6)
  np.testing.assert_allclose(batch.content_adv.reshape(2, 3, 4)[..., 0], advantages_of(completions), atol=1e-6)
  arrays = batch.tokens, batch.branch, batch.positions, batch.decision_index, batch.score_index, batch.targets
  _, logps = score_rows(config, params, 0, 1, *arrays)
  np.testing.assert_allclose(batch.ref_logps, logps, atol=1e-5)
  noise = batch.old_logps - batch.ref_logps
  assert 0.1 < noise.std() < 0.3 and abs(noise.mean()) < 0.15


def test_an_update_by_hand():
  config = models.named_model('dummy')
  params = init_params(config, jax.random.key(0))
  batch = update.given_batch(config, params, STEP)
  updated = update.JaxUpdates(config, params, STEP, batch, micro_batches=1).run(2)
  ratio = np.exp(batch.ref_logps - batch.old_logps)
  surrogate = np.minimum(ratio * batch.content_adv, np.clip(ratio, 0.8, 1.2) * batch.content_adv)
  assert updated.losses[0] == pytest.approx(-surrogate.mean(), abs=1e-5)
  assert updated.losses[1] < updated.losses[0] and updated.tokens == 48
  in_parts = update.JaxUpdates(config, params, STEP, batch, micro_batches=2).run(2)
  assert in_parts.losses == pytest.approx(updated.losses, abs=1e-6) and in_parts.tokens == 48


def test_beside_peers(fake_peers, tmp_path, capsys):
  fake_peers()
  assert command.main([*SMALL, '--vs', 'trl,tunix', '--output', str(tmp_path / 'b.json')]) == 0
  result = json.loads((tmp_path / 'b.json').read_text())
  seconds = result['seconds_per_update']
  sides = {'mempi_jax', 'trl', 'trl, memory kept', 'tunix', 'tunix, memory kept'}
  assert set(seconds) == {*sides, 'ratio'} and set(result['tokens_per_second']) == sides
  assert seconds['trl'] == {'median': 2.5, 'min': 2.0, 'max': 3.0}  # after the warm-up
  assert seconds['tunix, memory kept'] == {'median': 5.0, 'min': 4.0, 'max': 6.0}
  assert result['tokens_per_second']['trl']['max'] == 12.0
  assert seconds['ratio'] == {'median': pytest.approx(5 / 6), 'min': pytest.approx(2 / 3), 'max': 1.0}
  assert result['versions']['tunix'] == '1' and 'ratio to the best peer' in capsys.readouterr().out


def test_peers_that_do_other_work_are_found(fake_peers, capsys):
  def error():
    with pytest.raises(SystemExit) as error:
      command.main([*SMALL, '--vs', 'trl'])
    assert error.value.code == 2
    return capsys.readouterr().err

  fake_peers(loss=0.51)
  assert 'loss of the first step 0.500000 here, 0.510000 in trl' in error()
  fake_peers(tokens=23)
  assert 'trl had 69 tokens to learn from, expected 72' in error()
  fake_peers(moved=1e-3)
  assert 'parameters moved by 3e-05 here, by 0.001 in trl' in error()


def test_bad_arguments(monkeypatch, capsys, tmp_path):
  def error_of(*arguments):
    with pytest.raises(SystemExit) as error:
      command.main([*SMALL, *arguments])
    assert error.value.code == 2
    return capsys.readouterr().err

  assert '--branches must be at least 2, found 1' in error_of('--branches', '1')
  assert 'at least 1' in error_of('--prompts', '0')
  assert '--micro-batches 3 must divide --prompts 2' in error_of('--micro-batches', '3')
  assert 'float32' in error_of('--vs', 'trl', '--dtype', 'bfloat16')
  assert 'qwen2-5m' in error_of('--model', 'nothing')
  assert "unknown peer 'torch': expected some of trl, tunix" in error_of('--vs', 'torch')
  monkeypatch.setattr(turns.importlib.util, 'find_spec', lambda name: None)
  assert f'bash mempi_jax/bench/peers/install.sh {tmp_path} tunix' in error_of('--vs', 'tunix', '--peers', str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['trl', 'tunix'])
def test_beside_a_real_peer(name, tmp_path):
  pytest.importorskip(name)
  config = dataclasses.replace(models.named_model(models.QWEN2_5M), vocab_size=64, embed_dim=32, num_layers=2, head_dim=16, mlp_dim=48)
  save_model(tmp_path / 'model', config, init_params(config, jax.random.key(0)))
  arguments = ['update', '--model', str(tmp_path / 'model'), *SIZES, '--vs', name, '--output', str(tmp_path / 'b.json')]
  assert command.main(arguments) == 0  # the command itself fails where the work differs
  result = json.loads((tmp_path / 'b.json').read_text())
  np.testing.assert_allclose(result['warmup_losses']['mempi_jax'], result['warmup_losses'][name], rtol=1e-3)
