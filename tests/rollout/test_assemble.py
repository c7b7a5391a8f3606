"""Packing prompts and branches into the rows of a batch."""

import numpy as np
import pytest

from mempi_jax.rollout.assemble import PackedRow, pack

SHAPES = dict(num_rows=2, row_tokens=12, branches=2, max_content=3)


def test_a_row_by_hand(tokenizer):
  generate, eos = tokenizer.generate, tokenizer.eos
  row = PackedRow(
    prompt=[11, 12, 13],
    contents=[[21, 22], [31]],
    content_adv=[0.5, -0.25],
    old_logps=[[-1.0, -2.0, -3.0], [-4.0, -5.0]],
    decision_target=0.0,
    decision_adv=0.75,
    ref_logit=1.5,
    old_logit=-1.5,
  )
  batch = pack([row], tokenizer, **SHAPES)
  assert batch.tokens.tolist() == [[11, 12, 13, generate, 21, 22, eos, generate, 31, eos, 0, 0], [0] * 12]
  assert batch.branch.tolist() == [[0, 0, 0, 1, 1, 1, 1, 2, 2, 2, -1, -1], [-1] * 12]
  assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 0, 0], [0] * 12]
  assert batch.decision_index.tolist() == [2, 0]
  # Two branches of three content tokens at most and the end-of-sequence: eight scored places a row.
  assert batch.score_index.tolist() == [[3, 4, 5, 0, 7, 8, 0, 0], [0] * 8]
  assert batch.targets.tolist() == [[21, 22, eos, 0, 31, eos, 0, 0], [0] * 8]
  assert batch.content_mask.tolist() == [[1, 1, 1, 0, 1, 1, 0, 0], [0] * 8]
  assert batch.content_adv.tolist() == [[0.5, 0.5, 0.5, 0, -0.25, -0.25, 0, 0], [0] * 8]
  assert batch.old_logps.tolist() == [[-1, -2, -3, 0, -4, -5, 0, 0], [0] * 8]
  assert not batch.ref_logps.any()
  assert batch.decision_target.tolist() == [0, 0] and batch.decision_adv.tolist() == [0.75, 0]
  assert batch.ref_logit.tolist() == [1.5, 0] and batch.old_logit.tolist() == [-1.5, 0]
  assert batch.valid.tolist() == [True, False]
  # What is scored is the token after the one whose logits are read.
  scored = batch.content_mask[0] == 1
  np.testing.assert_array_equal(batch.tokens[0, batch.score_index[0, scored] + 1], batch.targets[0, scored])


def test_dtypes_and_shapes_do_not_depend_on_the_rows(tokenizer):
  one = pack([PackedRow([11])], tokenizer, **SHAPES)
  two = pack([PackedRow([11, 12], [[21, 22, 23]]), PackedRow([13] * 12)], tokenizer, **SHAPES)
  describe = lambda batch: {name: (getattr(batch, name).dtype, getattr(batch, name).shape) for name in batch.__dataclass_fields__}
  assert describe(one) == describe(two)
  assert {str(dtype) for dtype, _ in describe(one).values()} == {'int32', 'float32', 'bool'}


def test_empty_content_still_scores_its_end(tokenizer):
  batch = pack([PackedRow([11], [[]])], tokenizer, **SHAPES)
  assert batch.tokens[0, :3].tolist() == [11, tokenizer.generate, tokenizer.eos]
  assert batch.content_mask[0].sum() == 1 and batch.targets[0, 0] == tokenizer.eos and batch.score_index[0, 0] == 1


@pytest.mark.parametrize(
  'rows, message',
  [
    ([PackedRow([1])] * 3, '3 rows do not fit a batch of 2'),
    ([PackedRow([1]), PackedRow([1] * 13)], 'row 1: 0 branches and 13 tokens do not fit 2 branches and 12 tokens'),
    ([PackedRow([1] * 8, [[2], [3]])], 'row 0: 2 branches and 14 tokens'),
    ([PackedRow([1], [[2], [3], [4]])], 'row 0: 3 branches and 10 tokens do not fit 2 branches'),
    ([PackedRow([1], [[2, 3, 4, 5]])], 'row 0, branch 0: content of 4 tokens, at most 3 expected'),
    ([PackedRow([])], 'row 0: the prompt is empty'),
    ([PackedRow([1], [[2], [3]], content_adv=[1.0])], 'row 0: 1 values of content_adv for 2 branches'),
    ([PackedRow([1], [[2]], old_logps=[[-1.0], [-1.0]])], 'row 0: 2 values of old_logps for 1 branches'),
    ([PackedRow([1], [[2]], old_logps=[[-1.0]])], r'row 0, branch 0: 1 old_logps, expected 2 \(content and end-of-sequence\)'),
  ],
)
def test_what_does_not_fit_is_named(tokenizer, rows, message):
  with pytest.raises(ValueError, match=message):
    pack(rows, tokenizer, **SHAPES)


def test_a_row_may_be_exactly_full(tokenizer):
  batch = pack([PackedRow([11] * 5, [[21, 22], [31]])], tokenizer, **SHAPES)
  assert (batch.branch[0] >= 0).all() and batch.tokens[0, -1] == tokenizer.eos
