"""The planner of shapes: every size has one, and little of it is padding."""

import pytest

from mempi_jax.inference.plan import make_plan


@pytest.mark.parametrize('platform', ['cpu', 'gpu', 'tpu'])
@pytest.mark.parametrize(('slots', 'length'), [(1, 2), (1, 300), (8, 96), (64, 192), (256, 512), (200, 4096), (64, 32768)])
def test_every_size_has_a_shape(platform, slots, length):
  plan = make_plan(slots, length, platform)
  assert plan.windows[-1] == length and plan.window(0) == 0
  for tokens in {1, 2, length // 3 or 1, length // 2, length - 1, length}:
    assert tokens <= plan.window(tokens) <= max(2 * tokens, 128, 128 + tokens)
    left, steps = tokens, 0
    while left > 0:
      width = plan.width(left)
      assert width in plan.widths and 1 <= plan.rows_of(width) <= slots
      left, steps = left - width, steps + 1
    assert steps <= tokens / plan.widths[-1] + 8
    assert tokens <= plan.padded(tokens) <= max(2 * tokens + 16, plan.widths[0])
  for rows in {1, slots // 2 or 1, slots}:
    assert min(rows, plan.decode_rows[-1]) <= plan.decode(rows) <= slots
  assert list(plan.windows) == sorted(set(plan.windows)) and list(plan.decode_rows) == sorted(set(plan.decode_rows))
  shapes = len(plan.widths) * (len(plan.windows) + 1) + len(plan.decode_rows) * len(plan.windows)
  assert shapes <= 90  # what a warm-up compiles


def test_a_chunk_is_cut_where_half_of_it_would_be_padding():
  plan = make_plan(256, 1024, 'cpu')
  assert plan.widths == (16, 64, 256)
  assert [plan.width(tokens) for tokens in (1, 16, 17, 32, 33, 64, 65, 128, 129, 256, 400)] == [16, 16, 16, 16, 64, 64, 64, 64, 256, 256, 256]


def test_impossible_engines():
  for slots, length in ((0, 8), (4, 1)):
    with pytest.raises(ValueError, match='at least one slot of two tokens'):
      make_plan(slots, length, 'cpu')
