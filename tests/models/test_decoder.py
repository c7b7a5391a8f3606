"""The decoder: cached generation and whole rows compute the same numbers; attention sees what it may, and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mempi_jax.inference import cache
from mempi_jax.models import decoder
from mempi_jax.models.attention import attention
from mempi_jax.models.decoder import Decoder, DecoderConfig, count_params, init_params, rms_norm
from mempi_jax.models.presets import preset
from mempi_jax.models.rope import rope_angles, rotate

CONFIG = dataclasses.replace(preset('dummy', 40), num_heads=4, num_kv_heads=2, head_dim=8)
SLIDING = dataclasses.replace(CONFIG, sliding_window=4, sliding_layers=(1,))


@pytest.fixture(scope='module')
def params():
  # Weights ten times as large as at the start, so that a wrong mask or position shows in the third digit, not in the sixth.
  return jax.tree.map(lambda leaf: leaf * 10.0 if leaf.ndim == 2 else leaf, init_params(CONFIG, jax.random.key(0)))


@pytest.fixture(params=[CONFIG, SLIDING], ids=['full', 'sliding'])
def config(request):
  return request.param


@jax.jit(static_argnames='config')
def rows(params, tokens, positions, mask, config=CONFIG):
  return Decoder(config).apply({'params': params}, tokens, positions, mask)


def whole(params, tokens, config=CONFIG):
  """Hidden states of whole causal rows."""
  batch, time = tokens.shape
  positions = np.broadcast_to(np.arange(time), (batch, time))
  mask = np.broadcast_to(np.tril(np.ones((time, time), bool)), (batch, time, time))
  return np.asarray(rows(params, tokens, positions, mask, config))


@jax.jit(static_argnames='config')
def extend(config, params, tokens, lengths, past):
  return Decoder(config).apply({'params': params}, tokens, lengths, past, method='extend')


@jax.jit(static_argnames='config')
def step(config, params, token, lengths, past, recent, index):
  return Decoder(config).apply({'params': params}, token, lengths, past, recent, index, method='step')


write = jax.jit(cache.write)


def junk(arrays):
  """Arrays of the same form, of numbers that would be seen if anything read them."""
  return jax.tree.map(lambda leaf: jnp.full(leaf.shape, 50.0, leaf.dtype), arrays)


class Kept:
  """Rows whose keys and values are kept in a store, which is full of junk where nothing was written."""

  def __init__(self, config, params, batch, room):
    self.config, self.params = config, params
    self.store, self.lengths = junk(cache.init_store(config, batch, room)), np.zeros(batch, np.int32)

  def extend(self, tokens, counts=None, nothing_yet=False):
    """Hidden states of a chunk of which `counts` tokens a row are kept (None: all)."""
    counts = np.full(len(tokens), tokens.shape[1], np.int32) if counts is None else np.array(counts, np.int32)
    past = None if nothing_yet else cache.widen(self.store, 'float32')
    hidden, new = extend(self.config, self.params, tokens, self.lengths, past)
    self._keep(counts, new)
    return np.asarray(hidden)

  def steps(self, tokens, room, counts=None):
    """Hidden states of as many steps as there are tokens a row; the first `counts` of them are kept (None: all)."""
    past, recent = cache.widen(self.store, 'float32'), junk(cache.recent_cache(self.config, len(tokens), room))
    parts = []
    for index in range(tokens.shape[1]):
      hidden, recent = step(self.config, self.params, tokens[:, index], self.lengths, past, recent, np.int32(index))
      parts.append(np.asarray(hidden))
    counts = np.full(len(tokens), tokens.shape[1], np.int32) if counts is None else np.array(counts, np.int32)
    self._keep(counts, cache.by_row(recent, len(tokens)))
    return np.stack(parts, axis=1)

  def _keep(self, counts, new):
    self.store = write(self.store, np.arange(len(counts)), self.lengths, counts, new)
    self.lengths = self.lengths + counts


def random_tokens(batch, time, seed=0):
  return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (batch, time)).astype(np.int32)


@pytest.mark.parametrize('nothing_yet', [True, False])
@pytest.mark.parametrize('chunks', [[12], [1] * 12, [5, 7], [1, 5, 5, 1]])
def test_extending_by_chunks_equals_the_whole_row(params, config, chunks, nothing_yet):
  tokens = random_tokens(3, 12)
  expected = whole(params, tokens, config)
  kept, parts, done = Kept(config, params, 3, 16), [], 0
  for size in chunks:
    # The first chunk stands behind no cache, or behind one that holds nothing.
    parts.append(kept.extend(tokens[:, done : done + size], nothing_yet=nothing_yet and done == 0))
    done += size
  np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, atol=1e-4)
  assert np.abs(expected).max() > 0.5  # not a comparison of zeros


@pytest.mark.parametrize('runs', [[1] * 7, [7], [3, 4], [5, 1, 1]])
def test_stepping_behind_a_chunk_equals_the_whole_row(params, config, runs):
  tokens = random_tokens(3, 12)
  kept = Kept(config, params, 3, 16)
  parts, done = [kept.extend(tokens[:, :5], nothing_yet=True)], 5
  for size in runs:  # each run is written behind the last one
    parts.append(kept.steps(tokens[:, done : done + size], room=7))
    done += size
  np.testing.assert_allclose(np.concatenate(parts, axis=1), whole(params, tokens, config), atol=1e-4)


def test_the_window_matters_here(params):
  tokens = random_tokens(3, 12)
  full, sliding = whole(params, tokens), whole(params, tokens, SLIDING)
  np.testing.assert_allclose(full[:, :4], sliding[:, :4], atol=1e-4)  # as many tokens as the window holds
  assert (np.abs(full - sliding)[:, 4:].max(axis=-1) > 1e-3).all()


def test_without_a_past_a_chunk_is_a_causal_row(params, config):
  tokens = random_tokens(2, 9)
  hidden, new = extend(config, params, tokens, np.zeros(2, np.int32), None)
  positions = np.broadcast_to(np.arange(9), (2, 9))
  np.testing.assert_allclose(hidden, rows(params, tokens, positions, None, config), atol=1e-5)
  assert [(keys.shape, values.shape) for keys, values in new] == [((2, 2, 8, 9), (2, 2, 9, 8))] * config.num_layers


def test_rows_of_different_lengths_and_padding_do_not_disturb_each_other(params, config):
  tokens = random_tokens(2, 10)
  expected = whole(params, tokens, config)
  # Row 0 takes 3 real tokens and row 1 takes 6; the rest of the chunk is junk. Then both go on where they are.
  first = np.full((2, 8), 39, np.int32)
  first[0, :3], first[1, :6] = tokens[0, :3], tokens[1, :6]
  for nothing_yet in (True, False):
    kept = Kept(config, params, 2, 10)
    hidden_a = kept.extend(first, [3, 6], nothing_yet)
    hidden_b = kept.extend(np.stack([tokens[0, 3:7], tokens[1, 6:10]]))
    np.testing.assert_allclose(hidden_a[0, :3], expected[0, :3], atol=1e-4)
    np.testing.assert_allclose(hidden_a[1, :6], expected[1, :6], atol=1e-4)
    np.testing.assert_allclose(hidden_b[0], expected[0, 3:7], atol=1e-4)
    np.testing.assert_allclose(hidden_b[1], expected[1, 6:10], atol=1e-4)


def test_steps_of_rows_of_different_lengths(params, config):
  """Rows with 0, 3 and 7 tokens go on together; one stops early, and what it was given after its end leaves no trace."""
  tokens = random_tokens(3, 12, seed=2)
  expected = whole(params, tokens, config)
  at = lambda starts, count: np.stack([tokens[row, start : start + count] for row, start in enumerate(starts)])
  kept = Kept(config, params, 3, 12)
  kept.extend(tokens[:, :8], [0, 3, 7], nothing_yet=True)
  first = kept.steps(at([0, 3, 7], 4), room=6, counts=[4, 2, 4])
  assert kept.lengths.tolist() == [4, 5, 11]
  second = kept.steps(at([4, 5, 11], 1), room=6)
  third = kept.extend(np.stack([tokens[0, 5:9], tokens[1, 6:10], [9, 9, 9, 9]]), [4, 4, 0])
  for row, start in enumerate([0, 3, 7]):
    count = [4, 2, 4][row]
    np.testing.assert_allclose(first[row, :count], expected[row, start : start + count], atol=1e-4)
    np.testing.assert_allclose(second[row, 0], expected[row, start + count], atol=1e-4)
  np.testing.assert_allclose(third[0], expected[0, 5:9], atol=1e-4)
  np.testing.assert_allclose(third[1], expected[1, 6:10], atol=1e-4)


def test_the_two_stretches_joined_are_the_same(params, config, monkeypatch):
  """Where another implementation than XLA's attends, `extend` joins the cache and the chunk."""
  tokens, lengths = random_tokens(2, 10), np.array([3, 6], np.int32)
  kept = Kept(config, params, 2, 8)
  kept.extend(tokens[:, :6], [3, 6], nothing_yet=True)
  past = cache.widen(kept.store, 'float32')
  chunk = np.stack([tokens[0, 3:7], tokens[1, 6:10]])
  apart = extend(config, params, chunk, lengths, past)
  monkeypatch.setattr(decoder, 'choose', lambda *arguments: 'another')
  joined = jax.jit(lambda past: Decoder(config).apply({'params': params}, chunk, lengths, past, method='extend'))(past)
  for one, other in zip(jax.tree.leaves(apart), jax.tree.leaves(joined), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_padding_beyond_the_end_of_the_cache_is_dropped(params, config):
  tokens = random_tokens(2, 8)
  kept = Kept(config, params, 2, 8)
  kept.extend(tokens[:, :6], [6, 5], nothing_yet=True)
  before = kept.store
  chunk = np.full((2, 16), 7, np.int32)
  chunk[0, :2], chunk[1, :3] = tokens[0, 6:], tokens[1, 5:]
  hidden = kept.extend(chunk, [16, 16])
  np.testing.assert_allclose(hidden[0, :2], whole(params, tokens, config)[0, 6:], atol=1e-4)
  np.testing.assert_allclose(hidden[1, :3], whole(params, tokens, config)[1, 5:], atol=1e-4)
  # The cache holds the eight tokens of each row, as if they had been read at once.
  at_once = Kept(config, params, 2, 8)
  at_once.extend(tokens, nothing_yet=True)
  for old, new, expected in zip(before, kept.store, at_once.store, strict=True):
    np.testing.assert_array_equal(old['k'][0, :, :, :6], new['k'][0, :, :, :6])
    np.testing.assert_array_equal(old['v'][1, :, :5], new['v'][1, :, :5])
    for name in ('k', 'v'):
      np.testing.assert_allclose(new[name], expected[name], atol=1e-4)


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
