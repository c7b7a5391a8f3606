"""Sizes of the decoder that the configs name."""

from __future__ import annotations

from mempi_jax.models.decoder import DecoderConfig

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
