"""LoRA: the adapted decoder equals the merged one; the adapter goes through PEFT's format; the scanned layout changes nothing."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mempi_jax.models.decoder import Decoder, init_params, stack_layers, unstack_layers
from mempi_jax.models.hf import save_model
from mempi_jax.models.lora import LoraConfig, LoraWeight, apply_lora, init_lora, load_peft, merge_lora, save_peft
from mempi_jax.models.presets import preset

CONFIG = dataclasses.replace(preset('dummy', 40), num_heads=4, num_kv_heads=2, head_dim=8, tie_embeddings=False, family='qwen2', qkv_bias=True)
TOKENS = np.random.default_rng(0).integers(0, 40, (2, 9)).astype(np.int32)


@pytest.fixture(scope='module')
def params():
  return jax.tree.map(lambda leaf: leaf * 8.0 if leaf.ndim == 2 else leaf, init_params(CONFIG, jax.random.key(0)))


def random_adapter(lora, params):
  """An adapter whose b is not zero any more."""
  adapter = init_lora(CONFIG, lora, params, jax.random.key(1))
  return jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), adapter)


def logits(params, config=CONFIG):
  model = Decoder(config)
  positions = jnp.broadcast_to(jnp.arange(9), (2, 9))
  return model.apply({'params': params}, model.apply({'params': params}, TOKENS, positions, None), method='logits')


LORAS = [
  LoraConfig(3, 6.0),
  LoraConfig(2, 8.0, r'.*\.(q_proj|v_proj)', tokens=(38, 39)),
  LoraConfig(4, 4.0, r'model\.layers\.1\.mlp\.up_proj'),
]


@pytest.mark.parametrize('lora', LORAS)
def test_a_new_adapter_changes_nothing_and_a_trained_one_equals_its_merged_weights(params, lora):
  fresh = apply_lora(CONFIG, lora, params, init_lora(CONFIG, lora, params, jax.random.key(1)))
  np.testing.assert_allclose(logits(fresh), logits(params), atol=1e-5)
  adapted = apply_lora(CONFIG, lora, params, random_adapter(lora, params))
  assert np.abs(logits(adapted) - logits(params)).max() > 0.1
  merged = merge_lora(adapted)
  assert jax.tree.structure(merged) == jax.tree.structure(params)
  np.testing.assert_allclose(logits(adapted), logits(merged), atol=1e-3)


def test_targets_choose_what_is_adapted(params):
  adapter = init_lora(CONFIG, LORAS[1], params, jax.random.key(0))
  assert sorted(adapter) == ['layer_0', 'layer_1', 'tokens'] and sorted(adapter['layer_0']) == ['q_proj', 'v_proj']
  adapted = apply_lora(CONFIG, LORAS[1], params, random_adapter(LORAS[1], params))
  merged = merge_lora(adapted)
  changed = np.abs(merged['layer_0']['qkv'] - params['layer_0']['qkv']).max(0) > 0
  assert changed[:32].all() and not changed[32:48].any() and changed[48:].all()  # q, not k, v
  assert not isinstance(adapted['layer_0']['out'], LoraWeight)
  rows = np.abs(merged['head'] - params['head']).max(1) > 0
  assert rows.tolist() == [False] * 38 + [True] * 2
  with pytest.raises(ValueError, match='match no module: expected some of model.layers.0.self_attn.q_proj'):
    init_lora(CONFIG, LoraConfig(2, 2.0, 'q_proj'), params, jax.random.key(0))


def test_by_hand():
  """One module: W + (alpha / r) a b."""
  lora = LORAS[2]
  base = init_params(CONFIG, jax.random.key(2))
  adapter = random_adapter(lora, base)
  part = adapter['layer_1']['up_proj']
  expected = np.array(base['layer_1']['gate_up'])
  expected[:, CONFIG.mlp_dim :] += 4.0 / 4 * np.asarray(part['a']) @ np.asarray(part['b'])
  np.testing.assert_allclose(merge_lora(apply_lora(CONFIG, lora, base, adapter))['layer_1']['gate_up'], expected, atol=1e-5)


@pytest.mark.parametrize('remat', ['none', 'dots', 'full'])
def test_the_scanned_layout_gives_the_same_numbers_and_gradients(params, remat):
  lora = LORAS[1]
  adapter = random_adapter(lora, params)
  scanned = dataclasses.replace(CONFIG, scan_layers=True, remat=remat)
  jax.tree.map(np.testing.assert_array_equal, unstack_layers(stack_layers(params)), params)

  def loss(config, frozen, adapter):
    return (logits(apply_lora(config, lora, frozen, adapter), config) ** 2).mean()

  value, gradient = jax.jit(jax.value_and_grad(loss, argnums=2), static_argnums=0)(CONFIG, params, adapter)
  other, stacked = jax.jit(jax.value_and_grad(loss, argnums=2), static_argnums=0)(scanned, stack_layers(params), stack_layers(adapter))
  np.testing.assert_allclose(value, other, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradient, unstack_layers(stacked))


@pytest.mark.parametrize('lora', LORAS)
def test_there_and_back_in_peft_s_format(params, lora, tmp_path):
  adapter = random_adapter(lora, params)
  save_peft(tmp_path, lora, adapter, 'somewhere/base')
  read, back = load_peft(tmp_path, CONFIG)
  assert read == lora
  jax.tree.map(np.testing.assert_array_equal, back, adapter)
  fields = json.loads((tmp_path / 'adapter_config.json').read_text())
  (tmp_path / 'adapter_config.json').write_text(json.dumps(fields | {'r': lora.rank + 1}))
  with pytest.raises(ValueError, match='lora_A.weight.* has shape .* expected'):
    load_peft(tmp_path, CONFIG)


@pytest.mark.parametrize('lora', LORAS)
@pytest.mark.parametrize('tied', [False, True])
def test_peft_reads_it_and_computes_the_same(lora, tied, tmp_path):
  torch = pytest.importorskip('torch')
  peft = pytest.importorskip('peft')
  from transformers import AutoModelForCausalLM

  config = dataclasses.replace(CONFIG, tie_embeddings=tied)
  params = jax.tree.map(lambda leaf: leaf * 8.0 if leaf.ndim == 2 else leaf, init_params(config, jax.random.key(0)))
  adapter = random_adapter(lora, params)
  save_model(tmp_path / 'base', config, params)
  save_peft(tmp_path / 'adapter', lora, adapter, str(tmp_path / 'base'))
  base = AutoModelForCausalLM.from_pretrained(tmp_path / 'base', dtype=torch.float32)
  model = peft.PeftModel.from_pretrained(base, str(tmp_path / 'adapter')).eval()
  with torch.no_grad():
    theirs = model(input_ids=torch.tensor(TOKENS).long()).logits.numpy()
  ours = np.asarray(logits(apply_lora(config, lora, params, adapter), config))
  assert np.abs(ours - logits(params, config)).max() > 0.1
  np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
