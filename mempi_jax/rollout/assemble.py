"""Where token lists become arrays: packs prompts and their branches into the rows of a `TrainBatch`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mempi_jax.policy.tokenizer import Tokenizer
from mempi_jax.types import TrainBatch


@dataclasses.dataclass(frozen=True)
class PackedRow:
  """One context's prompt and the contents of its generate branches (ids without decision and end-of-sequence)."""

  prompt: Sequence[int]
  contents: Sequence[Sequence[int]] = ()
  content_adv: Sequence[float] = ()  # one a branch
  old_logps: Sequence[Sequence[float]] = ()  # one a token: content and end-of-sequence
  ref_logps: Sequence[Sequence[float]] = ()  # as old_logps
  decision_target: float = 1.0
  decision_adv: float = 0.0
  ref_logit: float = 0.0
  old_logit: float = 0.0


def pack(rows: Sequence[PackedRow], tokenizer: Tokenizer, *, num_rows: int, row_tokens: int, branches: int, max_content: int) -> TrainBatch:
  """Packs rows into fixed shapes: T = row_tokens, C = branches · (max_content + 1); missing rows are invalid and masked.

  Raises ValueError, naming the row and both sizes, when something does not fit or is missing.
  """
  width = max_content + 1
  if len(rows) > num_rows:
    raise ValueError(f'{len(rows)} rows do not fit a batch of {num_rows}')
  i32 = lambda *shape: np.zeros(shape, np.int32)
  f32 = lambda *shape: np.zeros(shape, np.float32)
  b, t, c = num_rows, row_tokens, branches * width
  batch = TrainBatch(
    tokens=i32(b, t),
    branch=np.full((b, t), -1, np.int32),
    positions=i32(b, t),
    decision_index=i32(b),
    score_index=i32(b, c),
    targets=i32(b, c),
    content_mask=f32(b, c),
    content_adv=f32(b, c),
    old_logps=f32(b, c),
    ref_logps=f32(b, c),
    decision_target=f32(b),
    decision_adv=f32(b),
    ref_logit=f32(b),
    old_logit=f32(b),
    valid=np.zeros(b, bool),
  )
  for i, row in enumerate(rows):
    if not len(row.prompt):
      raise ValueError(f'row {i}: the prompt is empty, expected at least one token')
    for name in ('content_adv', 'old_logps', 'ref_logps'):
      values = getattr(row, name)
      if len(values) not in (0, len(row.contents)):
        raise ValueError(f'row {i}: {len(values)} values of {name} for {len(row.contents)} branches, expected none or one a branch')
    needed = len(row.prompt) + sum(len(content) + 2 for content in row.contents)
    if needed > t or len(row.contents) > branches:
      raise ValueError(f'row {i}: {len(row.contents)} branches and {needed} tokens do not fit {branches} branches and {t} tokens')
    n = len(row.prompt)
    batch.tokens[i, :n] = row.prompt
    batch.branch[i, :n] = 0
    batch.positions[i, :n] = np.arange(n)
    batch.decision_index[i] = n - 1
    batch.decision_target[i], batch.decision_adv[i] = row.decision_target, row.decision_adv
    batch.ref_logit[i], batch.old_logit[i], batch.valid[i] = row.ref_logit, row.old_logit, True
    start = n
    for k, content in enumerate(row.contents):
      if len(content) > max_content:
        raise ValueError(f'row {i}, branch {k}: content of {len(content)} tokens, at most {max_content} expected')
      completion = [tokenizer.generate, *content, tokenizer.eos]
      stop = start + len(completion)
      batch.tokens[i, start:stop] = completion
      batch.branch[i, start:stop] = k + 1
      batch.positions[i, start:stop] = n + np.arange(len(completion))
      scored = slice(k * width, k * width + len(content) + 1)
      batch.score_index[i, scored] = np.arange(start, stop - 1)
      batch.targets[i, scored] = completion[1:]
      batch.content_mask[i, scored] = 1.0
      if len(row.content_adv):
        batch.content_adv[i, scored] = row.content_adv[k]
      for name in ('old_logps', 'ref_logps'):
        logps = getattr(row, name)
        if not len(logps):
          continue
        if len(logps[k]) != len(content) + 1:
          found = len(logps[k])
          raise ValueError(f'row {i}, branch {k}: {found} {name}, expected {len(content) + 1} (content and end-of-sequence)')
        getattr(batch, name)[i, scored] = logps[k]
      start = stop
  return batch
