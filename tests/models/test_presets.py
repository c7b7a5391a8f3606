"""Model folders: what is written is read back; what is broken is named."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mempi_jax.models.decoder import init_params
from mempi_jax.models.presets import load_model, preset, save_model

CONFIG = preset('dummy', 30)


@pytest.fixture
def folder(tmp_path):
  save_model(tmp_path / 'model', CONFIG, init_params(CONFIG, jax.random.key(1)))
  return tmp_path / 'model'


def test_round_trip_is_exact(folder):
  config, params = load_model(folder)
  assert config == CONFIG
  expected = init_params(CONFIG, jax.random.key(1))
  assert jax.tree.structure(params) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, params, expected)
  assert sorted(path.name for path in folder.iterdir()) == ['config.json', 'model.safetensors']


def test_half_precision_halves_the_file_and_reads_as_float32(folder, tmp_path):
  params = init_params(CONFIG, jax.random.key(1))
  save_model(tmp_path / 'half', CONFIG, params, dtype='float16')
  full, half = (path / 'model.safetensors' for path in (folder, tmp_path / 'half'))
  assert half.stat().st_size < 0.6 * full.stat().st_size
  _, read = load_model(tmp_path / 'half')
  assert read['embedding'].dtype == np.float32
  np.testing.assert_allclose(read['embedding'], params['embedding'], atol=1e-4)


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
def test_missing_file_is_named(folder, name):
  (folder / name).unlink()
  with pytest.raises(FileNotFoundError, match=f'{name} is missing'):
    load_model(folder)


def test_damaged_weights(folder):
  data = (folder / 'model.safetensors').read_bytes()
  (folder / 'model.safetensors').write_bytes(data[: len(data) // 2])
  with pytest.raises(ValueError, match='model.safetensors: not a safetensors file, or a damaged one'):
    load_model(folder)


@pytest.mark.parametrize('text, message', [('{', 'config.json:1: not JSON'), ('{"vocab": 3}', 'expected the fields vocab_size, .*found vocab')])
def test_broken_configuration(folder, text, message):
  (folder / 'config.json').write_text(text)
  with pytest.raises(ValueError, match=message):
    load_model(folder)


def test_tensors_that_do_not_fit_are_named(folder):
  flat = load_file(folder / 'model.safetensors')
  save_file({name: leaf for name, leaf in flat.items() if name != 'layer_1/out'}, folder / 'model.safetensors')
  with pytest.raises(ValueError, match="'layer_1/out' has shape None"):
    load_model(folder)
  save_file(flat | {'extra': np.zeros(2, np.float32)}, folder / 'model.safetensors')
  with pytest.raises(ValueError, match=r"'extra' has shape \(2,\), expected None"):
    load_model(folder)
  save_file(flat, folder / 'model.safetensors')
  fields = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps(fields | {'vocab_size': 31}))
  with pytest.raises(ValueError, match=r"'embedding' has shape \(30, 32\), expected \(31, 32\)"):
    load_model(folder)


def test_unknown_preset_lists_the_known_ones():
  with pytest.raises(ValueError, match="unknown model preset 'tinny'.*dummy.*tiny"):
    preset('tinny', 10)
