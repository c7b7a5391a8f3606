"""The arithmetic of a training step, peaks of devices, and named models."""

import dataclasses

import jax
import pytest

from mempi_jax.bench import models as bench
from mempi_jax.models.decoder import DecoderConfig, count_params, init_params


def test_flops_per_token_by_hand():
  config = DecoderConfig(vocab_size=10, embed_dim=4, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=2, mlp_dim=5)
  # A layer: norms 2 x 4, qkv 4 x (4 + 2 + 2), output 4 x 4, gate and up 4 x 10, down 5 x 4. Besides: final norm 4, embedding 10 x 4.
  params = 3 * (8 + 32 + 16 + 40 + 20) + 4 + 40
  assert params == count_params(init_params(config, jax.random.key(0)))
  attention = 3 * (12 * 2 * 2 * 6 / 2)  # 3 layers, 2 heads of 2, 6 tokens
  assert bench.flops_per_token(config, params, length=6) == 6 * params + attention
  untied = dataclasses.replace(config, tie_embeddings=False)
  assert bench.flops_per_token(untied, params + 40, length=6) == 6 * params + attention  # the lookup costs nothing, the head what it did


def test_packed_flops_by_hand():
  config = DecoderConfig(vocab_size=10, embed_dim=4, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=2, mlp_dim=5)
  layers = 3 * (8 + 32 + 16 + 40 + 20) + 4
  pairs = 6**2 / 2 + 2 * (3 * 6 + 3**2 / 2)  # a prompt of 6, two completions of 3
  expected = 6 * layers * 12 + 6 * 40 * 6 + 12 * 3 * 2 * 2 * pairs
  assert bench.packed_flops(config, layers + 40, length=6, branches=2, new=3) == expected
  untied = dataclasses.replace(config, tie_embeddings=False)
  assert bench.packed_flops(untied, layers + 80, length=6, branches=2, new=3) == expected
  # One completion is a plain row whose prompt is not projected.
  alone = bench.packed_flops(config, layers + 40, length=6, branches=1, new=3)
  assert alone == 9 * bench.flops_per_token(config, layers + 40, length=9) - 6 * 40 * 6


@pytest.mark.parametrize(
  ('kind', 'peak'),
  [
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('NVIDIA H100 PCIe', None),
    ('NVIDIA A100-SXM4-80GB', 312e12),
    ('NVIDIA L4', 121e12),
    ('NVIDIA L40S', None),
    ('TPU v4', 275e12),
    ('TPU v5 lite', 197e12),
    ('TPU v5p', 459e12),
    ('TPU v6 lite', 918e12),
    ('cpu', None),
  ],
)
def test_peak_flops(kind, peak):
  assert bench.peak_flops(kind) == peak


def test_qwen2_5m_has_five_million_parameters():
  shapes = jax.eval_shape(lambda: init_params(bench.named_model(bench.QWEN2_5M), jax.random.key(0)))
  assert count_params(shapes) == 5_050_624
