"""Scoring packed rows equals scoring every branch alone."""

import functools

import jax
import numpy as np
import pytest

from mempi_jax.models.decoder import Decoder
from mempi_jax.policy.score import branch_mask, score_rows, token_logps
from mempi_jax.rollout.assemble import PackedRow, pack

score = jax.jit(score_rows, static_argnums=(0, 2, 3))
SHAPES = dict(num_rows=3, row_tokens=48, branches=3, max_content=6)


@pytest.fixture(scope='module')
def packed(tokenizer):
  rng = np.random.default_rng(0)
  random = lambda size: rng.integers(5, tokenizer.vocab_size, size).tolist()
  return [
    PackedRow(random(9), [random(4), random(6), []]),
    PackedRow(random(5), [random(1)]),
    PackedRow(random(14)),
  ]


def score_batch(model, tokenizer, rows, **changes):
  config, params = model
  batch = pack(rows, tokenizer, **{**SHAPES, **changes})
  arrays = (batch.tokens, batch.branch, batch.positions, batch.decision_index, batch.score_index, batch.targets)
  decision, logps = score(config, params, tokenizer.generate, tokenizer.abstain, *arrays)
  return batch, np.asarray(decision), np.asarray(logps)


@functools.partial(jax.jit, static_argnums=0)
def all_logits(config, params, tokens, positions, mask):
  hidden = Decoder(config).apply({'params': params}, tokens, positions, mask)
  return Decoder(config).apply({'params': params}, hidden, method='logits')


def score_alone(model, tokens):
  """The logits f32[T, V] after every token of one plain causal row; padded, so that all rows share one program."""
  row = np.zeros((1, 48), np.int32)
  row[0, : len(tokens)] = tokens
  return np.asarray(all_logits(*model, row, np.arange(48)[None], np.tril(np.ones((1, 48, 48), bool))))[0]


def test_packed_branches_score_as_each_alone(dummy_model, tokenizer, packed):
  batch, decision, logps = score_batch(dummy_model, tokenizer, packed)
  scored = 0
  for i, row in enumerate(packed):
    logits = score_alone(dummy_model, row.prompt)[len(row.prompt) - 1]
    np.testing.assert_allclose(decision[i], logits[tokenizer.generate] - logits[tokenizer.abstain], atol=1e-4)
    for k, content in enumerate(row.contents):
      completion = [tokenizer.generate, *content, tokenizer.eos]
      alone = jax.nn.log_softmax(score_alone(dummy_model, [*row.prompt, *completion]), axis=-1)
      start = len(row.prompt)
      expected = [alone[start + j, token] for j, token in enumerate(completion[1:])]
      found = logps[i].reshape(3, 7)[k, : len(expected)]
      np.testing.assert_allclose(found, expected, atol=1e-4)
      scored += len(expected)
  assert scored == batch.content_mask.sum() == 5 + 7 + 1 + 2
  assert np.abs(decision).min() > 1e-3 and np.ptp(logps[0]) > 0.5


def test_the_other_branches_of_a_row_do_not_matter(dummy_model, tokenizer, packed):
  _, decision, logps = score_batch(dummy_model, tokenizer, packed)
  row = packed[0]
  changed = PackedRow(row.prompt, [row.contents[0], [5, 6, 7, 8, 9, 10], [11]])
  _, decision_changed, logps_changed = score_batch(dummy_model, tokenizer, [changed, *packed[1:]])
  np.testing.assert_allclose(logps_changed[0, :5], logps[0, :5], atol=1e-5)
  np.testing.assert_allclose(decision_changed, decision, atol=1e-5)
  assert np.abs(logps_changed[0, 7:13] - logps[0, 7:13]).max() > 1e-3


def test_wider_rows_and_more_of_them_change_nothing(dummy_model, tokenizer, packed):
  _, decision, logps = score_batch(dummy_model, tokenizer, packed)
  _, decision_wide, logps_wide = score_batch(dummy_model, tokenizer, packed, num_rows=20, row_tokens=60)
  np.testing.assert_allclose(decision_wide[:3], decision, atol=1e-4)
  mask = pack(packed, tokenizer, **SHAPES).content_mask
  np.testing.assert_allclose(logps_wide[:3] * mask, logps * mask, atol=1e-4)
  assert np.isfinite(logps_wide).all()  # padded rows and padded tokens too: a mask times NaN is NaN


def test_branch_mask_by_hand():
  mask = np.asarray(branch_mask(np.array([[0, 0, 1, 1, 2, -1]])))[0].astype(int)
  assert mask.tolist() == [
    [1, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0],
    [1, 1, 1, 0, 0, 0],
    [1, 1, 1, 1, 0, 0],
    [1, 1, 0, 0, 1, 0],
    [1, 1, 0, 0, 0, 1],
  ]


@pytest.mark.parametrize('count', [5, 7])
def test_logits_made_chunk_by_chunk_give_the_same_log_probs_and_gradients(dummy_model, count):
  config, params = dummy_model
  rng = np.random.default_rng(1)
  hidden = rng.normal(size=(3, count, config.embed_dim)).astype(np.float32)
  targets = rng.integers(0, config.vocab_size, (3, count)).astype(np.int32)
  few = 3 * config.vocab_size * 2  # two tokens a row at a time, so the last chunk is padded

  def total(hidden, max_logits):
    logps = token_logps(config, params, hidden, targets, max_logits)
    return (logps * np.arange(count)).sum(), logps

  for expected, found in zip(*(jax.tree.leaves(jax.value_and_grad(total, has_aux=True)(hidden, limit)) for limit in (2**28, few)), strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
