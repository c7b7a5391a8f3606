"""Shapes of the decoder that the configs name: the project's small models, and published ones whose weights `models/hf.py` loads."""

from __future__ import annotations

import dataclasses

from mempi_jax.models.decoder import DecoderConfig
from mempi_jax.models.rope import RopeScaling

# Small models have the vocabulary of their tokenizer, published ones their own.
PRESETS = {
  # The quick start's language model: 0.5 M parameters besides the embedding's 0.13 M.
  'tiny': dict(embed_dim=128, num_layers=3, num_heads=4, num_kv_heads=1, head_dim=32, mlp_dim=352, max_positions=512),
  # For tests.
  'dummy': dict(embed_dim=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=64),
  'smollm2_135m': dict(
    vocab_size=49152, embed_dim=576, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64, mlp_dim=1536,
    rope_theta=1e5, max_positions=8192, norm_eps=1e-5,
  ),
  'llama3_2_1b': dict(
    vocab_size=128256, embed_dim=2048, num_layers=16, num_heads=32, num_kv_heads=8, head_dim=64, mlp_dim=8192,
    rope_theta=5e5, rope_scaling=RopeScaling('llama3', 32.0, 8192), max_positions=131072, norm_eps=1e-5,
  ),
  'qwen2_5_0_5b': dict(
    vocab_size=151936, embed_dim=896, num_layers=24, num_heads=14, num_kv_heads=2, head_dim=64, mlp_dim=4864,
    family='qwen2', qkv_bias=True, rope_theta=1e6, max_positions=32768,
  ),
  'qwen2_5_1_5b': dict(
    vocab_size=151936, embed_dim=1536, num_layers=28, num_heads=12, num_kv_heads=2, head_dim=128, mlp_dim=8960,
    family='qwen2', qkv_bias=True, rope_theta=1e6, max_positions=32768,
  ),
  'qwen2_5_7b': dict(
    vocab_size=152064, embed_dim=3584, num_layers=28, num_heads=28, num_kv_heads=4, head_dim=128, mlp_dim=18944,
    family='qwen2', qkv_bias=True, rope_theta=1e6, max_positions=32768, tie_embeddings=False,
  ),
  'qwen3_0_6b': dict(
    vocab_size=151936, embed_dim=1024, num_layers=28, num_heads=16, num_kv_heads=8, head_dim=128, mlp_dim=3072,
    family='qwen3', qk_norm=True, rope_theta=1e6, max_positions=40960,
  ),
}  # fmt: skip


def preset(name: str, vocab_size: int | None = None) -> DecoderConfig:
  """A named shape; `vocab_size` is for those that have no vocabulary of their own. An unknown name lists the known ones."""
  if name not in PRESETS:
    raise ValueError(f'unknown model preset {name!r}: expected one of {", ".join(sorted(PRESETS))}')
  fields = {'vocab_size': vocab_size} | PRESETS[name]
  return DecoderConfig(**fields)


def differences(found: DecoderConfig, expected: DecoderConfig) -> str:
  """Where two shapes differ, in words ('' where they do not); how they are computed is not compared."""
  settings = ('dtype', 'attention', 'scan_layers', 'remat')
  names = [field.name for field in dataclasses.fields(DecoderConfig) if field.name not in settings]
  return ', '.join(f'{n} {getattr(found, n)} (expected {getattr(expected, n)})' for n in names if getattr(found, n) != getattr(expected, n))
