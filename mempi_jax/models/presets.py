"""Folders with a small model (config.json, model.safetensors), and the sizes that the configs name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from mempi_jax.models.decoder import DecoderConfig, init_params
from mempi_jax.runtime import files

PRESETS = {
  # The quick start's language model: 0.5 M parameters besides the embedding's 0.13 M.
  'tiny': dict(embed_dim=128, num_layers=3, num_heads=4, num_kv_heads=1, head_dim=32, mlp_dim=352),
  # For tests.
  'dummy': dict(embed_dim=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=64),
}


def preset(name: str, vocab_size: int) -> DecoderConfig:
  """A named size for a vocabulary; an unknown name lists the known ones."""
  if name not in PRESETS:
    raise ValueError(f'unknown model preset {name!r}: expected one of {sorted(PRESETS)}')
  return DecoderConfig(vocab_size=vocab_size, **PRESETS[name])


def save_model(folder: str | Path, config: DecoderConfig, params: Any, dtype: str = 'float32') -> None:
  """Writes config.json and model.safetensors, each atomically; `dtype` float16 halves the file (weights are read back as float32)."""
  folder = Path(folder)
  flat = {'/'.join(path): np.ascontiguousarray(np.asarray(leaf, dtype)) for path, leaf in flatten_dict(params).items()}
  files.write_bytes(folder / 'model.safetensors', save(flat))
  files.write_json(folder / 'config.json', dataclasses.asdict(config))


def load_model(folder: str | Path) -> tuple[DecoderConfig, Any]:
  """Reads what `save_model` wrote, as float32.

  Raises FileNotFoundError naming the missing file, ValueError naming a broken file, or a tensor that is missing, unknown or of
  another shape.
  """
  folder = Path(folder)
  for name in ('config.json', 'model.safetensors'):
    if not (folder / name).is_file():
      raise FileNotFoundError(f'no checkpoint at {folder}: {name} is missing')
  fields = files.read_json(folder / 'config.json')
  names = [field.name for field in dataclasses.fields(DecoderConfig)]
  if not isinstance(fields, dict) or sorted(fields) != sorted(names):
    raise ValueError(f'{folder}/config.json: expected the fields {", ".join(names)}, found {", ".join(fields)}')
  config = DecoderConfig(**fields)
  try:
    flat = load_file(folder / 'model.safetensors')
  except SafetensorError as error:
    raise ValueError(f'{folder}/model.safetensors: not a safetensors file, or a damaged one: {error}') from None
  expected = {'/'.join(path): leaf.shape for path, leaf in flatten_dict(jax.eval_shape(lambda: init_params(config, jax.random.key(0)))).items()}
  for name in sorted(set(expected) | set(flat)):
    found = flat[name].shape if name in flat else None
    if found != expected.get(name):
      raise ValueError(f'{folder}/model.safetensors: tensor {name!r} has shape {found}, expected {expected.get(name)}')
  return config, unflatten_dict({tuple(name.split('/')): jnp.asarray(leaf, jnp.float32) for name, leaf in flat.items()})
