"""Rotary position embedding, with every scaling that the Llama and Qwen families' configurations use: linear, dynamic, llama3, yarn.

A scaling changes the frequencies of the pairs (and, for yarn, the length of the rotated vectors), nothing else.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

KINDS = ('linear', 'dynamic', 'llama3', 'yarn')


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How a model's frequencies are stretched beyond the length that it was first trained on. A kind ignores the fields of the others."""

  kind: str
  factor: float
  original_positions: int = 0  # llama3, yarn: the length of the first training
  low_frequency_factor: float = 1.0  # llama3
  high_frequency_factor: float = 4.0  # llama3
  beta_fast: float = 32.0  # yarn: pairs that turn more often than this over the original length are left alone
  beta_slow: float = 1.0  # yarn: pairs that turn less often are stretched in full
  attention_factor: float | None = None  # yarn: None follows the paper, 0.1 ln(factor) + 1
  mscale: float | None = None  # yarn, together with the next: DeepSeek's form of the attention factor
  mscale_all_dim: float | None = None
  truncate: bool = True  # yarn: whole pairs as the bounds of the ramp

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(f'rope scaling {self.kind!r} is not supported: expected one of {", ".join(KINDS)}')
    if not self.factor > 0:
      raise ValueError(f'rope scaling {self.kind} needs a positive factor, found {self.factor}')
    if self.kind in ('llama3', 'yarn') and self.original_positions < 1:
      raise ValueError(f'rope scaling {self.kind} needs original_max_position_embeddings, found {self.original_positions}')


def rope_angles(
  positions: jax.Array, head_dim: int, theta: float, scaling: RopeScaling | None, max_positions: int
) -> tuple[jax.Array, jax.Array]:
  """Sine and cosine, f32[B, T, 1, head_dim / 2] each, of what each pair turns by at positions i32[B, T].

  `max_positions` is read by dynamic scaling alone: there the frequencies of a row follow its largest position.
  """
  half, length = head_dim // 2, 1.0
  if scaling is None:
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  elif scaling.kind == 'dynamic':
    longest = jnp.maximum(jnp.max(positions, axis=1) + 1, max_positions).astype(jnp.float32)
    stretch = scaling.factor * longest / max_positions - (scaling.factor - 1.0)
    base = theta * stretch ** (head_dim / (head_dim - 2))
    frequencies = base[:, None, None, None] ** (-jnp.arange(half, dtype=jnp.float32) / half)
  else:
    scaled, length = scaled_frequencies(head_dim, theta, scaling)
    frequencies = jnp.asarray(scaled)
  angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
  sin, cos = jnp.sin(angles), jnp.cos(angles)
  return (sin, cos) if length == 1.0 else (sin * length, cos * length)


def scaled_frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> tuple[np.ndarray, float]:
  """Frequencies f32[head_dim / 2] under a scaling that does not depend on the row, and the factor of sine and cosine."""
  frequencies = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
  match scaling.kind:
    case 'linear':
      return (frequencies / scaling.factor).astype(np.float32), 1.0
    case 'llama3':
      return _llama3(frequencies, scaling).astype(np.float32), 1.0
    case 'yarn':
      return _yarn(frequencies, head_dim, theta, scaling).astype(np.float32), yarn_length(scaling)
  raise ValueError(f'the frequencies of rope scaling {scaling.kind} depend on the row')


def _llama3(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
  """Fast pairs stay, slow ones are divided by the factor, those in between are blended."""
  turns = scaling.original_positions * frequencies / (2 * np.pi)  # over the original length
  low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
  blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
  return (1 - blend) * frequencies / scaling.factor + blend * frequencies


def _yarn(frequencies: np.ndarray, head_dim: int, theta: float, scaling: RopeScaling) -> np.ndarray:
  """YaRN (arXiv 2309.00071): a ramp over the pairs, from those that keep their frequency to those divided by the factor."""

  def pair_with(turns: float) -> float:
    return head_dim * math.log(scaling.original_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

  low, high = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
  if scaling.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, head_dim - 1)
  stretched = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)
  return stretched * frequencies / scaling.factor + (1 - stretched) * frequencies


def yarn_length(scaling: RopeScaling) -> float:
  """What yarn multiplies sine and cosine by."""

  def grow(mscale: float) -> float:
    return 1.0 if scaling.factor <= 1 else 0.1 * mscale * math.log(scaling.factor) + 1.0

  if scaling.attention_factor is not None:
    return scaling.attention_factor
  if scaling.mscale and scaling.mscale_all_dim:
    return grow(scaling.mscale) / grow(scaling.mscale_all_dim)
  return grow(1.0)


def rotate(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
  """x [B, T, heads, H] turned by `rope_angles`; pairs are (i, i + H/2), as in Llama. Computed in float32, returned in x's dtype."""
  sin, cos = angles
  half = x.shape[-1] // 2
  first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
