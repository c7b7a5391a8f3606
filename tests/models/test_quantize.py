"""Weight-only int8: how far a rounded matrix, a product and the shipped agent's predictions are off; what it refuses; how it is chosen."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mempi_jax.agents.lm import LMAgent, load_agent
from mempi_jax.config import ConfigError, load_config, resolve
from mempi_jax.models.decoder import Decoder, init_params, stack_layers
from mempi_jax.models.hf import load_model
from mempi_jax.models.lora import LoraConfig, LoraWeight, apply_lora, init_lora, matmul
from mempi_jax.models.presets import preset
from mempi_jax.models.quantize import MATRICES, QuantizedWeight, dequantize, quantize, quantize_params, quantized_bytes
from mempi_jax.policy.template import action_tokens, agent_prompt, agent_turn
from mempi_jax.policy.tokenizer import Tokenizer
from mempi_jax.types import Context, Decision, Guidance, Task
from mempi_jax.world import agent_lm, open_world, shipped_agent

CONFIGS = Path(__file__).parents[2] / 'configs'
CONFIG = dataclasses.replace(preset('dummy', 40), qkv_bias=True, tie_embeddings=False)
CONTEXT = Context(
  Task('alfworld', '0', 'train', 0),
  'put a mug in shelf.',
  'You are in the middle of a room. Looking quickly around you, you see a cabinet 1, a drawer 1, and a shelf 1.',
)
TURNS = (
  ('go to cabinet 1', 'You arrive at cabinet 1. On the cabinet 1, you see a mug 1.'),
  ('take mug 1 from cabinet 1', 'You pick up the mug 1 from the cabinet 1.'),
)


@pytest.fixture(scope='module')
def matrix():
  """Channels of very different sizes, one of them all zero."""
  sizes = np.concatenate([[0.0], np.geomspace(1e-4, 1e3, 23)])
  return jnp.asarray(np.random.default_rng(0).normal(size=(32, 24)) * sizes, jnp.float32)


def test_rounding_is_within_half_a_step_of_each_channel(matrix):
  weight = quantize(matrix)
  assert weight.values.dtype == jnp.int8 and weight.scale.dtype == jnp.float32 and weight.shape == (32, 24)
  error, largest = np.abs(np.asarray(dequantize(weight) - matrix)), np.abs(matrix).max(0)
  np.testing.assert_allclose(weight.scale, largest / 127, rtol=1e-6)
  assert (error <= largest / 254 * (1 + 1e-5)).all() and (error.max(0)[1:] > largest[1:] / 400).all()
  assert (np.abs(weight.values).max(0) == [0, *[127] * 23]).all()
  again = quantize(dequantize(weight))
  np.testing.assert_array_equal(again.values, weight.values)


@pytest.mark.parametrize('dtype, relative', [('float32', 1e-6), ('bfloat16', 2**-7), ('float16', 2**-10)])
def test_products_are_within_the_bound_that_the_rounding_gives(matrix, dtype, relative):
  x = jax.random.normal(jax.random.key(1), (5, 3, 32), dtype)
  product, expected = matmul(x, quantize(matrix)), x.astype(jnp.float32) @ matrix
  assert product.dtype == dtype and product.shape == (5, 3, 24)
  bound = jnp.abs(x.astype(jnp.float32)).sum(-1, keepdims=True) * jnp.abs(matrix).max(0) / 254
  within = bound + (jnp.abs(expected) + bound) * relative + 1e-7  # the rest: rounding to x's dtype
  assert (jnp.abs(product.astype(jnp.float32) - expected) <= within).all()


def test_float16_does_not_overflow_on_the_way():
  """The sum of whole numbers, 127 * 2 * 4096, is far above what float16 holds."""
  x, matrix = jnp.full((1, 4096), 2.0, 'float16'), jnp.full((4096, 2), 1.0)
  np.testing.assert_array_equal(matmul(x, quantize(matrix)), [[8192.0, 8192.0]])


def test_a_tree_has_its_matrices_rounded_and_shares_the_rest():
  params = init_params(CONFIG, jax.random.key(0))
  quantized = quantize_params(params)
  for layer in ('layer_0', 'layer_1'):
    for name, leaf in quantized[layer].items():
      assert isinstance(leaf, QuantizedWeight) if name in MATRICES else leaf is params[layer][name]
  assert all(quantized[name] is params[name] for name in ('embedding', 'head', 'final_norm'))
  assert isinstance(params['layer_0']['qkv'], jax.Array)
  actual = sum(leaf.nbytes for leaf in jax.tree.leaves(quantized))
  assert quantized_bytes(params) == quantized_bytes(jax.eval_shape(lambda: params)) == actual
  rounded = sum(params[layer][name].size for layer in ('layer_0', 'layer_1') for name in MATRICES)
  channels = sum(params[layer][name].shape[1] for layer in ('layer_0', 'layer_1') for name in MATRICES)
  assert actual == sum(leaf.nbytes for leaf in jax.tree.leaves(params)) - 3 * rounded + 4 * channels


def test_what_it_refuses():
  params = init_params(CONFIG, jax.random.key(0))
  with pytest.raises(ValueError, match='need the unrolled layout .*found the scanned one'):
    quantize_params(stack_layers(params))
  lora = LoraConfig(2, 2.0, r'model\.layers\.1\.mlp\.down_proj')
  adapted = apply_lora(CONFIG, lora, params, init_lora(CONFIG, lora, params, jax.random.key(1)))
  assert isinstance(adapted['layer_1']['down'], LoraWeight)
  with pytest.raises(ValueError, match='layer_1/down is a LoraWeight'):
    quantize_params(adapted)
  with pytest.raises(ValueError, match='layer_0/qkv is a QuantizedWeight'):
    quantize_params(quantize_params(params))


def test_the_shipped_agent_predicts_nearly_the_same():
  config, params = load_model(shipped_agent())
  tokenizer = Tokenizer.load(shipped_agent())
  ids = agent_prompt(tokenizer, CONTEXT, Guidance(Decision.ABSTAIN))
  for action, observation in TURNS:
    ids += [*action_tokens(tokenizer, action), *agent_turn(tokenizer, observation)]
  tokens, positions = jnp.array([ids]), jnp.arange(len(ids))[None]

  def logps(params):
    hidden = Decoder(config).apply({'params': params}, tokens, positions, None)
    return jax.nn.log_softmax(Decoder(config).apply({'params': params}, hidden, method='logits'))[0]

  exact, rounded = logps(params), logps(quantize_params(params))
  divergence = np.asarray((jnp.exp(exact) * (exact - rounded)).sum(-1))
  assert 0 < divergence.mean() < 1e-3 and divergence.max() < 0.02
  assert (exact.argmax(-1) == rounded.argmax(-1)).mean() > 0.95


def test_an_agent_of_either_kind(dummy_model, tokenizer):
  limits = dict(context_length=64, max_action_tokens=5, temperature=1.0)
  plain = LMAgent(*dummy_model, tokenizer, **limits)
  rounded = LMAgent(*dummy_model, tokenizer, **limits, weights='int8')
  small_cache = LMAgent(*dummy_model, tokenizer, **limits, cache_kind='int8', batch_size=2)
  assert plain.params is dummy_model[1] and isinstance(rounded.params['layer_0']['qkv'], QuantizedWeight)
  assert len({agent.fingerprint() for agent in (plain, rounded, small_cache)}) == 3
  assert small_cache.engine.cache_kind == 'int8'


def test_unknown_kinds_are_refused_before_anything_is_read(tmp_path):
  limits = dict(context_length=64, max_action_tokens=5, temperature=1.0)
  with pytest.raises(ValueError, match="weights 'int4': expected one of float32, int8"):
    load_agent(tmp_path / 'nowhere', **limits, weights='int4')
  with pytest.raises(ValueError, match="cache 'fp8': expected one of model, int8"):
    load_agent(tmp_path / 'nowhere', **limits, cache_kind='fp8')
  config = resolve(load_config(CONFIGS / 'quickstart.py', {'agent.weights': 'int4'}))
  with pytest.raises(ConfigError, match="the agent's weights 'int4'"):
    open_world(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_world_with_an_int8_agent(tmp_path):
  """The manifest says so; a policy still starts from the checkpoint's own weights."""
  games = {f'eval.games.{split}': 1 for split in ('heldout_games', 'heldout_goals', 'long_horizon')}
  few = {'bank.games': 1, 'stage2.games': 1, 'stage2.probe_games': 1, **games}
  config = resolve(load_config(CONFIGS / 'quickstart.py', {'agent.weights': 'int8', 'agent.cache': 'int8', **few}))
  world = open_world(config, tmp_path)
  assert isinstance(world.agent.params['layer_0']['qkv'], QuantizedWeight) and world.agent.cache_kind == 'int8'
  manifest = (tmp_path / 'manifest.json').read_text()
  assert '"agent_weights": "int8"' in manifest and '"agent_cache": "int8"' in manifest
  assert isinstance(agent_lm(world).params['layer_0']['qkv'], jax.Array)
