"""Batches of stage 1, experience distillation (method section 2): the bank's pairs (context, guidance), shuffled once an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mempi_jax.experience.bank import BankEntry
from mempi_jax.policy.policy import GuidancePolicy
from mempi_jax.policy.template import content_tokens
from mempi_jax.rollout.assemble import PackedRow, pack
from mempi_jax.runtime.rng import host_seed
from mempi_jax.runtime.stopwatch import Stopwatch
from mempi_jax.types import TrainBatch


class SftSource:
  """Yields batches of the bank; which rows a step sees is a function of (seed, step) alone.

  Args:
    entries: the bank. The last `validation` of them (a share) are never trained on.
    policy: gives tokenizer, prompt and limits.
    batch_size: rows a step.
    abstain_share: share of the contexts that the agent solved alone whose target is ABSTAIN, so that the decision keeps mass on both
      sides (method section 2 [O]). Entries without guidance have that target always.
    validation: share of the entries kept for validation.
    seed: of the shuffles and of which contexts abstain.

  Raises ValueError when an entry does not fit the policy's limits, naming it.
  """

  def __init__(
    self, entries: Sequence[BankEntry], policy: GuidancePolicy, *, batch_size: int, abstain_share: float, validation: float, seed: int
  ):
    self.policy, self.batch_size, self.seed, self.clock = policy, batch_size, seed, Stopwatch()
    rows = [self._row(entry, abstain_share) for entry in entries]
    held = round(validation * len(rows))
    self.rows, self.validation_rows = rows[: len(rows) - held], rows[len(rows) - held :]
    if len(self.rows) < batch_size:
      raise ValueError(f'a bank of {len(self.rows)} training entries cannot fill a batch of {batch_size} rows')

  @property
  def num_examples(self) -> int:
    """Training entries, for durations in epochs."""
    return len(self.rows)

  def next(self, step: int, params: Any) -> tuple[TrainBatch, dict[str, float]]:
    """The batch of a step: `batch_size` consecutive places in the endless sequence of shuffled epochs."""
    first = step * self.batch_size
    chosen = []
    for place in range(first, first + self.batch_size):
      epoch, offset = divmod(place, len(self.rows))
      chosen.append(self.rows[self._order(epoch)[offset]])
    return self._pack(chosen), {'train/epoch': first / len(self.rows)}

  def examples(self) -> list[TrainBatch]:
    """An empty batch of the one shape that `next` gives."""
    return [self._pack([])]

  def validation_batches(self) -> list[TrainBatch]:
    """The validation entries in batches of the training shape; the last one is padded with rows that do not count."""
    return [self._pack(self.validation_rows[i : i + self.batch_size]) for i in range(0, len(self.validation_rows), self.batch_size)]

  def state(self) -> dict[str, Any]:
    """Nothing: a step's batch depends on the step alone."""
    return {}

  def restore(self, state: dict[str, Any]) -> None:
    """Nothing to restore."""

  def _order(self, epoch: int) -> np.ndarray:
    if getattr(self, '_shuffled', (None, None))[0] != epoch:
      self._shuffled = (epoch, np.random.default_rng(host_seed(self.seed, 'sft', epoch)).permutation(len(self.rows)))
    return self._shuffled[1]

  def _row(self, entry: BankEntry, abstain_share: float) -> PackedRow:
    prompt = self.policy.prompt(entry.context)
    draw = host_seed(self.seed, 'abstain target', entry.task_id, entry.seed) / 2**31
    if not entry.guidance or (entry.solved_alone and draw < abstain_share):
      return PackedRow(prompt, decision_target=0.0)
    content = content_tokens(self.policy.tokenizer, entry.guidance, self.policy.template)
    if len(content) > self.policy.max_content:
      raise ValueError(f'the guidance of bank entry {entry.task_id!r} has {len(content)} tokens, at most {self.policy.max_content} fit')
    return PackedRow(prompt, [content])

  def _pack(self, rows: Sequence[PackedRow]) -> TrainBatch:
    policy = self.policy
    return pack(
      rows,
      policy.tokenizer,
      num_rows=self.batch_size,
      row_tokens=policy.max_prompt + policy.max_content + 2,
      branches=1,
      max_content=policy.max_content,
    )
