"""The decoder: cached generation and whole rows compute the same numbers; attention sees what it may, and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mempi_jax.models.attention import attention
from mempi_jax.models.decoder import Decoder, DecoderConfig, count_params, init_cache, init_params, rms_norm
from mempi_jax.models.presets import preset
from mempi_jax.models.rope import rope_angles, rotate

CONFIG = dataclasses.replace(preset('dummy', 40), num_heads=4, num_kv_heads=2, head_dim=8)


@pytest.fixture(scope='module')
def params():
  # Weights ten times as large as at the start, so that a wrong mask or position shows in the third digit, not in the sixth.
  return jax.tree.map(lambda leaf: leaf * 10.0 if leaf.ndim == 2 else leaf, init_params(CONFIG, jax.random.key(0)))


@jax.jit
def rows(params, tokens, positions, mask):
  return Decoder(CONFIG).apply({'params': params}, tokens, positions, mask)


def whole(params, tokens):
  """Hidden states of whole causal rows."""
  batch, time = tokens.shape
  positions = np.broadcast_to(np.arange(time), (batch, time))
  mask = np.broadcast_to(np.tril(np.ones((time, time), bool)), (batch, time, time))
  return np.asarray(rows(params, tokens, positions, mask))


@jax.jit
def extend(params, tokens, lengths, cache):
  return Decoder(CONFIG).apply({'params': params}, tokens, lengths, cache, method='extend')


def random_tokens(batch, time, seed=0):
  return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (batch, time)).astype(np.int32)


@pytest.mark.parametrize('chunks', [[12], [1] * 12, [5, 7], [1, 5, 5, 1]])
def test_extending_a_cache_equals_the_whole_row(params, chunks):
  tokens = random_tokens(3, 12)
  expected = whole(params, tokens)
  cache, parts, done = init_cache(CONFIG, 3, 16), [], 0
  for size in chunks:
    hidden, cache = extend(params, tokens[:, done : done + size], np.full(3, done, np.int32), cache)
    parts.append(np.asarray(hidden))
    done += size
  np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, atol=1e-4)
  assert np.abs(expected).max() > 0.5  # not a comparison of zeros


def test_rows_of_different_lengths_and_padding_do_not_disturb_each_other(params):
  tokens = random_tokens(2, 10)
  expected = whole(params, tokens)
  # Row 0 takes 3 real tokens and row 1 takes 6; the rest of the chunk is junk. Then both go on where they are.
  first = np.full((2, 8), 39, np.int32)
  first[0, :3], first[1, :6] = tokens[0, :3], tokens[1, :6]
  hidden_a, cache = extend(params, first, np.array([0, 0], np.int32), init_cache(CONFIG, 2, 10))
  second = np.stack([tokens[0, 3:7], tokens[1, 6:10]])
  hidden_b, _ = extend(params, second, np.array([3, 6], np.int32), cache)
  np.testing.assert_allclose(hidden_a[0, :3], expected[0, :3], atol=1e-4)
  np.testing.assert_allclose(hidden_a[1, :6], expected[1, :6], atol=1e-4)
  np.testing.assert_allclose(hidden_b[0], expected[0, 3:7], atol=1e-4)
  np.testing.assert_allclose(hidden_b[1], expected[1, 6:10], atol=1e-4)


def test_padding_beyond_the_end_of_the_cache_is_dropped(params):
  tokens = random_tokens(1, 8)
  _, cache = extend(params, tokens[:, :6], np.array([0], np.int32), init_cache(CONFIG, 1, 8))
  chunk = np.concatenate([tokens[:, 6:], np.full((1, 14), 7, np.int32)], axis=1)
  hidden, _ = extend(params, chunk, np.array([6], np.int32), cache)
  np.testing.assert_allclose(hidden[0, :2], whole(params, tokens)[0, 6:], atol=1e-4)


def test_a_later_token_does_not_change_the_past(params):
  tokens = random_tokens(2, 9)
  changed = tokens.copy()
  changed[:, 5] = (changed[:, 5] + 1) % CONFIG.vocab_size
  before, after = whole(params, tokens), whole(params, changed)
  np.testing.assert_array_equal(before[:, :5], after[:, :5])
  assert (np.abs(before[:, 5:] - after[:, 5:]).max(axis=(0, 2)) > 1e-3).all()  # itself and everything after it do change


def test_only_distances_between_positions_matter(params):
  tokens, mask = random_tokens(1, 4, seed=1), np.ones((1, 4, 4), bool)
  run = lambda positions: np.asarray(rows(params, tokens, np.array([positions], np.int32), mask))
  np.testing.assert_allclose(run([0, 1, 2, 3]), run([7, 8, 9, 10]), atol=1e-4)
  assert np.abs(run([0, 1, 2, 3]) - run([3, 1, 0, 2])).max() > 1e-3


@pytest.mark.parametrize('heads, kv_heads, batch', [(4, 1, 3), (4, 2, 3), (4, 4, 17), (6, 2, 33)])
def test_grouped_heads_equal_a_loop_over_heads(heads, kv_heads, batch):
  rng = np.random.default_rng(1)
  time, space, dim = 5, 7, 8
  q = rng.normal(size=(batch, time, heads, dim)).astype(np.float32)
  k = rng.normal(size=(batch, kv_heads, dim, space)).astype(np.float32)
  v = rng.normal(size=(batch, kv_heads, space, dim)).astype(np.float32)
  mask = rng.random((batch, time, space)) < 0.5
  mask[..., 0] = True
  expected = np.zeros((batch, time, heads, dim))
  for head in range(heads):
    kv = head // (heads // kv_heads)
    scores = np.einsum('bth,bhs->bts', q[:, :, head].astype(np.float64), k[:, kv]) / np.sqrt(dim)
    weights = np.where(mask, np.exp(scores), 0.0)
    expected[:, :, head] = np.einsum('bts,bsh->bth', weights / weights.sum(-1, keepdims=True), v[:, kv])
  np.testing.assert_allclose(attention(q, k, v, mask), expected, atol=1e-5)


def test_small_parts_by_hand():
  np.testing.assert_allclose(rms_norm(jnp.array([3.0, 4.0]), jnp.array([1.0, 2.0]), 0.0), np.array([3, 8]) / np.sqrt(12.5), rtol=1e-6)
  # One pair turned by its position in radians, as theta ** 0 = 1.
  turned = rotate(jnp.array([[[[1.0, 0.0]]]]), rope_angles(jnp.array([[2]]), 2, 10_000.0, None, 16))
  np.testing.assert_allclose(turned[0, 0, 0], [np.cos(2), np.sin(2)], rtol=1e-6)


def test_logits_are_the_hidden_states_times_the_embedding(params):
  hidden = jnp.ones((2, 3, CONFIG.embed_dim))
  logits = jax.jit(lambda params: Decoder(CONFIG).apply({'params': params}, hidden, method='logits'))(params)
  np.testing.assert_allclose(logits, np.broadcast_to(np.asarray(params['embedding']).sum(1), (2, 3, 40)), atol=1e-4)


def test_a_fully_masked_query_gives_finite_gradients():
  arrays = [jnp.ones(shape) for shape in ((1, 3, 2, 4), (1, 1, 4, 3), (1, 1, 3, 4))]
  mask = jnp.zeros((1, 3, 3), bool).at[0, 0, 0].set(True)
  gradients = jax.grad(lambda arrays: attention(*arrays, mask).sum())(arrays)
  assert all(np.isfinite(leaf).all() for leaf in gradients)


def test_count_of_parameters():
  # Embedding 40·32, final norm 32; a layer: qkv 32·(4+2·2)·8, out 32·32, gate_up 32·128, down 64·32, two norms.
  shapes = jax.eval_shape(lambda: init_params(CONFIG, jax.random.key(0)))
  assert count_params(shapes) == 40 * 32 + 32 + 2 * (32 * 64 + 32 * 32 + 32 * 128 + 64 * 32 + 64)


@pytest.mark.parametrize('change, message', [({'num_kv_heads': 3}, 'multiple of num_kv_heads 3'), ({'head_dim': 7}, 'even.*found 7')])
def test_impossible_shapes(change, message):
  fields = dataclasses.asdict(CONFIG) | change
  with pytest.raises(ValueError, match=message):
    DecoderConfig(**fields)
