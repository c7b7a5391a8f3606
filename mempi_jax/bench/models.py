"""The models that the benchmarks run, their optimizer, the arithmetic of a training step, and what devices can do at most."""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path

import optax
from ml_collections import ConfigDict

from mempi_jax.models.decoder import DecoderConfig
from mempi_jax.models.hf import read_config
from mempi_jax.models.presets import PRESETS, preset
from mempi_jax.runtime.optim import make_optimizer, optimizer_fields

QWEN2_5M = 'qwen2-5m'  # 5,050,624 parameters, 2,097,152 of them the embedding's
VOCAB_SIZE = 8192  # of named models; random tokens need no tokenizer

# Largest bfloat16 FLOP/s of one device, without sparsity, by what `device_kind` matches.
PEAK_FLOPS = {
  r'H100(?!.*(PCIe|NVL))': 989e12,
  r'H200': 989e12,
  r'A100': 312e12,
  r'\bL4\b': 121e12,
  r'TPU v4$': 275e12,
  r'TPU v5( lite|e)': 197e12,
  r'TPU v5p?$': 459e12,
  r'TPU v6( lite|e)': 918e12,
}


def named_model(name: str) -> DecoderConfig:
  """The benchmark's own model, a preset, or what the config.json of a folder describes."""
  if name == QWEN2_5M:
    return DecoderConfig(
      vocab_size=VOCAB_SIZE,
      embed_dim=256,
      num_layers=4,
      num_heads=4,
      num_kv_heads=2,
      head_dim=64,
      mlp_dim=704,
      family='qwen2',
      qkv_bias=True,
    )
  if name in PRESETS:
    return preset(name, VOCAB_SIZE)
  if not Path(name).is_dir():
    raise ValueError(f'model {name!r}: expected {QWEN2_5M}, one of the presets {", ".join(PRESETS)}, or a folder with a config.json')
  return read_config(name)


def chosen_model(arguments: argparse.Namespace) -> DecoderConfig:
  """The model that a command line names, computed as it says: dtype, attention, scan_layers, remat."""
  how = {name: getattr(arguments, name) for name in ('dtype', 'attention', 'scan_layers', 'remat')}
  return dataclasses.replace(named_model(arguments.model), **how)


def flops_per_token(config: DecoderConfig, num_params: int, length: int) -> float:
  """Model FLOPs of one training step per token: 6 P + 12 L N H T / 2.

  P counts every parameter but an embedding that is only looked up (a tied one is the output matrix too, and counts); 6 = 2 forward and 4
  backward. The second term is attention's two products over T tokens in L layers of N heads of H, half of it because a token sees only
  those before it. What is computed twice (remat) does not count, nor does a sliding window lessen it.
  """
  looked_up = 0 if config.tie_embeddings else config.vocab_size * config.embed_dim
  return 6 * (num_params - looked_up) + 12 * config.num_layers * config.num_heads * config.head_dim * length / 2


def packed_flops(config: DecoderConfig, num_params: int, length: int, branches: int, new: int) -> float:
  """Model FLOPs of one update on a packed row: a prompt of `length` tokens, and `branches` completions of `new` tokens behind it.

  What such a row needs, not what a row for each completion would: 6 for each parameter of the layers and each of the row's tokens (the
  prompt's once); 6 V D for each token that is scored, and those are the completions' alone; 12 L N H for each pair of a token and one that
  it may see: of the prompt, half of its square; for each completion, the prompt and half of its own square. As in `flops_per_token` what
  is computed twice, or computed and masked, does not count.
  """
  projection = config.vocab_size * config.embed_dim
  layers = num_params - (projection if config.tie_embeddings else 2 * projection)
  scored = branches * new
  pairs = length**2 / 2 + branches * (new * length + new**2 / 2)
  attention = 12 * config.num_layers * config.num_heads * config.head_dim * pairs
  return 6 * layers * (length + scored) + 6 * projection * scored + attention


def peak_flops(device_kind: str) -> float | None:
  """The bfloat16 peak of a device, or None where it is not known."""
  return next((peak for pattern, peak in PEAK_FLOPS.items() if re.search(pattern, device_kind)), None)


def make_adamw(learning_rate: float, weight_decay: float, clip_norm: float) -> optax.GradientTransformation:
  """AdamW as the package makes it, with a constant learning rate."""
  settings = {'name': 'adamw', 'learning_rate': learning_rate, 'weight_decay': weight_decay, 'clip_norm': clip_norm}
  return make_optimizer(ConfigDict(optimizer_fields().to_dict() | settings), num_steps=1)
