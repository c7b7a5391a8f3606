"""Checkpoint folders: what is written is read back, in whatever shards and onto whatever mesh; what is broken is named."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mempi_jax.models.decoder import FAMILIES, DecoderConfig, init_params
from mempi_jax.models.hf import config_from_fields, config_to_fields, find_checkpoint, load_model, read_config, save_model
from mempi_jax.models.presets import preset
from mempi_jax.models.rope import RopeScaling

CONFIG = preset('dummy', 30)
UNTIED = dataclasses.replace(CONFIG, tie_embeddings=False, family='qwen2', qkv_bias=True)


def assert_same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.fixture
def folder(tmp_path):
  save_model(tmp_path / 'model', CONFIG, init_params(CONFIG, jax.random.key(1)))
  return tmp_path / 'model'


def test_round_trip_is_exact(folder):
  config, params = load_model(folder)
  assert config == CONFIG
  assert_same(params, init_params(CONFIG, jax.random.key(1)))
  assert sorted(path.name for path in folder.iterdir()) == ['config.json', 'model.safetensors']


def test_shards_are_planned_named_and_read(tmp_path):
  params = init_params(UNTIED, jax.random.key(2))
  save_model(tmp_path, UNTIED, params)  # one file, which the shards then replace
  save_model(tmp_path, UNTIED, params, max_shard_bytes=20_000)
  names = sorted(path.name for path in tmp_path.glob('*.safetensors'))
  assert len(names) > 3 and names[0] == f'model-00001-of-{len(names):05}.safetensors'
  assert set(json.loads((tmp_path / 'model.safetensors.index.json').read_text())['weight_map'].values()) == set(names)
  config, read = load_model(tmp_path)
  assert config == UNTIED
  assert_same(read, params)
  (tmp_path / names[1]).unlink()
  with pytest.raises(FileNotFoundError, match=f'incomplete: {names[1]} of {len(names)} shards missing'):
    load_model(tmp_path)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_half_precision_halves_the_file_and_reads_as_float32(folder, tmp_path, dtype):
  params = init_params(CONFIG, jax.random.key(1))
  save_model(tmp_path / 'half', CONFIG, params, dtype=dtype)
  full, half = (path / 'model.safetensors' for path in (folder, tmp_path / 'half'))
  assert half.stat().st_size < 0.6 * full.stat().st_size
  _, read = load_model(tmp_path / 'half')
  assert read['embedding'].dtype == np.float32
  np.testing.assert_allclose(read['embedding'], params['embedding'], atol=1e-3)
  _, kept = load_model(tmp_path / 'half', dtype=dtype)
  assert kept['embedding'].dtype == jnp.dtype(dtype)


def test_weights_go_straight_onto_a_mesh(folder):
  code = f"""
import functools, jax, numpy as np
from mempi_jax.models.hf import load_model
from mempi_jax.models.partition import shardings
from tests.layouts import layout
mesh = layout(2, 4, 1)
_, params = load_model({str(folder)!r}, place=functools.partial(shardings, mesh))
qkv = params['layer_1']['qkv']
assert {{shard.data.shape for shard in qkv.addressable_shards}} == {{(8, 64)}}, qkv.sharding
_, whole = load_model({str(folder)!r})
jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), params, whole)
"""
  environment = {'XLA_FLAGS': '--xla_force_host_platform_device_count=8', 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run([sys.executable, '-c', code], env=os.environ | environment, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr


# What is wrong with a folder.


def test_missing_files_are_named(folder):
  (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')
  with pytest.raises(FileNotFoundError, match='expected model.safetensors or model.safetensors.index.json; found pytorch_model.bin'):
    load_model(folder)
  (folder / 'config.json').unlink()
  with pytest.raises(FileNotFoundError, match='config.json is missing'):
    load_model(folder)


def test_damaged_weights(folder):
  data = (folder / 'model.safetensors').read_bytes()
  (folder / 'model.safetensors').write_bytes(data[: len(data) // 2])
  with pytest.raises(ValueError, match='model.safetensors: not a safetensors file, or a damaged one'):
    load_model(folder)


def test_an_index_that_points_elsewhere(folder):
  (folder / 'model.safetensors').rename(folder / 'a.safetensors')
  (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': {'x': '../a.safetensors'}}))
  with pytest.raises(ValueError, match="plain file names, found '../a.safetensors'"):
    load_model(folder)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'model_type': 'gpt2'}, "model_type 'gpt2' is not supported: expected one of llama, mistral, qwen2, qwen3"),
    ({'hidden_act': 'gelu'}, "hidden_act 'gelu' is not supported"),
    ({'rope_scaling': {'type': 'longrope', 'factor': 2.0}}, "rope scaling 'longrope' is not supported: expected one of linear"),
    ({'rope_parameters': {'full_attention': {'rope_theta': 1.0}}}, 'differ from layer to layer'),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor'),
    ({'intermediate_size': '64'}, "config.json: mlp_dim of a decoder must be a positive whole number, found '64'"),
  ],
)
def test_unsupported_configurations(folder, change, message):
  fields = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps(fields | change))
  with pytest.raises(ValueError, match=message):
    load_model(folder)


def test_broken_configurations(folder):
  (folder / 'config.json').write_text('{')
  with pytest.raises(ValueError, match='config.json:1: not JSON'):
    load_model(folder)
  (folder / 'config.json').write_text('{"model_type": "llama"}')
  with pytest.raises(ValueError, match='config.json: the field num_attention_heads is missing'):
    load_model(folder)


def test_tensors_that_do_not_fit_are_named(folder):
  flat = load_file(folder / 'model.safetensors')
  name = 'model.layers.1.self_attn.o_proj.weight'
  save_file({key: leaf for key, leaf in flat.items() if key != name}, folder / 'model.safetensors')
  with pytest.raises(ValueError, match=rf"tensor '{name}' is missing, expected shape \(32, 32\)"):
    load_model(folder)
  save_file(flat | {'extra': np.zeros(2, np.float32)}, folder / 'model.safetensors')
  with pytest.raises(ValueError, match="tensor 'extra' in model.safetensors is not part of the model"):
    load_model(folder)
  inv_freq = {'model.layers.0.self_attn.rotary_emb.inv_freq': np.zeros(8, np.float32)}
  save_file(flat | inv_freq | {'lm_head.weight': np.zeros(2, np.float32)}, folder / 'model.safetensors')
  load_model(folder)  # neither a tied model's copy of its embedding nor what older checkpoints carry is read
  fields = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps(fields | {'vocab_size': 31}))
  with pytest.raises(ValueError, match=r"'model.embed_tokens.weight' in model.safetensors has shape \(30, 32\), expected \(31, 32\)"):
    load_model(folder)


def test_a_dtype_that_is_not_supported(folder):
  with pytest.raises(ValueError, match="dtype 'float64': expected one of float32, bfloat16, float16"):
    load_model(folder, dtype='float64')


def test_neither_a_folder_nor_a_model_of_the_hub(tmp_path):
  assert find_checkpoint(tmp_path) == tmp_path
  with pytest.raises(FileNotFoundError, match='no such folder, and it is no hub id'):
    find_checkpoint('/nowhere/at/all')


# config.json.


@pytest.mark.parametrize('family', FAMILIES)
def test_configurations_survive_the_way_there_and_back(family):
  scaling = {
    'llama': RopeScaling('llama3', 8.0, 8192, 1.0, 4.0),
    'mistral': None,
    'qwen2': RopeScaling('yarn', 4.0, 32768),
    'qwen3': RopeScaling('linear', 2.0),
  }[family]
  sliding = {'llama': (), 'mistral': (0, 1), 'qwen2': (1,), 'qwen3': ()}[family]
  config = dataclasses.replace(
    CONFIG,
    family=family,
    rope_scaling=scaling,
    qkv_bias=family == 'qwen2',
    qk_norm=family == 'qwen3',
    sliding_layers=sliding,
    sliding_window=7 if sliding else 0,
    tie_embeddings=False,
  )
  assert config_from_fields(config_to_fields(config)) == config


def test_a_shape_that_the_family_cannot_express():
  with pytest.raises(ValueError, match='a llama checkpoint cannot have normalised queries and keys'):
    config_to_fields(dataclasses.replace(CONFIG, qk_norm=True))
  with pytest.raises(ValueError, match='a qwen2 checkpoint cannot have no biases of q, k, v'):
    config_to_fields(dataclasses.replace(CONFIG, family='qwen2'))


def test_the_paper_s_model_is_read_from_its_published_fields(tmp_path):
  fields = {
    'model_type': 'qwen2', 'hidden_act': 'silu', 'hidden_size': 3584, 'intermediate_size': 18944, 'max_position_embeddings': 32768,
    'max_window_layers': 28, 'num_attention_heads': 28, 'num_hidden_layers': 28, 'num_key_value_heads': 4, 'rms_norm_eps': 1e-6,
    'rope_theta': 1000000.0, 'sliding_window': 131072, 'tie_word_embeddings': False, 'use_sliding_window': False, 'vocab_size': 152064,
  }  # fmt: skip
  (tmp_path / 'config.json').write_text(json.dumps(fields))
  config = read_config(tmp_path)
  assert config == DecoderConfig(
    152064, 3584, 28, 28, 4, 128, 18944, family='qwen2', rope_theta=1e6, max_positions=32768, tie_embeddings=False, qkv_bias=True
  )
  shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0), 'bfloat16'))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 7_615_616_512  # as published


def test_unknown_preset_lists_the_known_ones():
  with pytest.raises(ValueError, match="unknown model preset 'tinny'.*dummy.*tiny"):
    preset('tinny', 10)
