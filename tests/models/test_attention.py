"""Attention implementations: which one is chosen, what one cannot do, and that they agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mempi_jax.models.attention import _splash, attention, choose


def arrays(time, heads=4, kv_heads=2, dim=8, dtype=np.float32):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  return draw(2, time, heads, dim), draw(2, kv_heads, dim, time), draw(2, kv_heads, time, dim)


def test_no_mask_means_causal():
  q, k, v = arrays(6)
  mask = jnp.broadcast_to(jnp.tril(jnp.ones((6, 6), bool)), (2, 6, 6))
  np.testing.assert_array_equal(attention(q, k, v, None), attention(q, k, v, mask))


def test_half_precision_stays_near_full_precision():
  q, k, v = arrays(6)
  half = attention(*(x.astype(jnp.bfloat16) for x in (q, k, v)), None)
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(half, np.float32), attention(q, k, v, None), atol=0.05)


def test_the_choice_on_a_processor_and_what_an_implementation_cannot_do():
  q, mask = arrays(6)[0], jnp.ones((2, 6, 6), bool)
  assert jax.default_backend() == 'cpu' and choose('auto', q, mask) == 'xla'
  for name, message in (
    ('cudnn', 'attention cudnn needs a GPU, found cpu; use auto or xla'),
    ('splash', 'attention splash knows plain causal rows alone'),
    ('flash', "attention 'flash': expected one of auto, xla, cudnn, splash"),
  ):
    with pytest.raises(ValueError, match=message):
      choose(name, q, mask)
  with pytest.raises(ValueError, match='multiples of 128, found 6 tokens and head_dim 8'):
    choose('splash', q, None)


def test_the_tpu_kernel_agrees_interpreted():
  """The kernel itself, grouped heads included; only its speed needs a TPU."""
  q, k, v = arrays(128, heads=4, kv_heads=2, dim=128)
  np.testing.assert_allclose(_splash(q, k, v), attention(q, k, v, None), atol=2e-3)
