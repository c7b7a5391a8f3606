"""Attention implementations: which one is chosen, what one cannot do, and that they agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mempi_jax.models import attention as attention_module
from mempi_jax.models.attention import _splash, attention, choose, two_stretch_attention


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


@pytest.mark.parametrize('rows_at_a_time', [None, 2, 0], ids=['at once', 'two rows at a time', 'row by row'])
@pytest.mark.parametrize('heads, kv_heads, time', [(4, 1, 1), (6, 2, 1), (4, 4, 5), (6, 2, 5)])
def test_two_stretches_are_one_row_of_keys(heads, kv_heads, time, rows_at_a_time, monkeypatch):
  rng = np.random.default_rng(3)
  batch, before, after, dim = 5, 7, 6, 8
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  q = draw(batch, time, heads, dim)
  old, new = ((draw(batch, kv_heads, dim, size), draw(batch, kv_heads, size, dim)) for size in (before, after))
  seen = rng.random((batch, time, before + after)) < 0.5
  seen[..., before] = True
  seen[..., [before - 1, -1]] = False
  seen[0, :, :before] = False  # a row that sees nothing of the old stretch
  seen[1, :, 0], seen[1, :, before:] = True, False  # and one that sees nothing of the new one
  expected = jax.jit(attention)(q, np.concatenate([old[0], new[0]], axis=3), np.concatenate([old[1], new[1]], axis=2), seen)
  if rows_at_a_time is not None:
    monkeypatch.setattr(attention_module, 'CPU_SCORES', rows_at_a_time * 4 * heads * time * (before + after))
  run = jax.jit(lambda *arguments: two_stretch_attention(*arguments))  # not one that was traced before
  assert ('scan[' in str(run.trace(q, old, new, seen).jaxpr)) == (rows_at_a_time is not None)  # the branch that was meant
  found = run(q, old, new, seen)
  assert found.shape == (batch, time, heads, dim)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  # What no query sees does not count, however large.
  for keys, values in (old, new):
    keys[..., -1], values[:, :, -1] = 1e3, 1e3
  np.testing.assert_array_equal(run(q, old, new, seen), found)


def test_two_stretches_in_half_precision():
  q, k, v = arrays(6)
  mask = jnp.broadcast_to(jnp.tril(jnp.ones((6, 6), bool)), (2, 6, 6))
  half = [x.astype(jnp.bfloat16) for x in (q, k, v)]
  found = jax.jit(two_stretch_attention)(half[0], (half[1][..., :4], half[2][:, :, :4]), (half[1][..., 4:], half[2][:, :, 4:]), mask)
  assert found.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(found, np.float32), attention(q, k, v, None), atol=0.05)


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
