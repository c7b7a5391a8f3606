"""Mem-π as a memory: the guidance policy decides, and writes (method section 4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mempi_jax.policy.policy import GuidancePolicy
from mempi_jax.types import Context, Decision, Episode, Guidance


class MempiMemory:
  """A trained guidance policy, asked once at the episode's start.

  Args:
    policy: after stage 1 or stage 2.
    name: as the tables call it.
    threshold: τ, generate where P(GENERATE | x) >= τ.
    temperature: of the content; 0.0 decodes greedily.
  """

  learns = False

  def __init__(self, policy: GuidancePolicy, name: str, *, threshold: float, temperature: float):
    self.policy, self.name, self.threshold, self.temperature = policy, name, threshold, temperature

  def guide(self, contexts: Sequence[Context], seed: int) -> list[Guidance]:
    """The policy's own decision and content for every context."""
    answers = self.policy.answer(contexts, threshold=self.threshold, temperature=self.temperature, seed=seed)
    return [self._with_cost(context, answer) for context, answer in zip(contexts, answers, strict=True)]

  def observe(self, episodes: Sequence[Episode]) -> None:
    """Learns nothing at run time."""

  def _with_cost(self, context: Context, answer: Guidance) -> Guidance:
    written = 1 if answer.decision is Decision.ABSTAIN else len(answer.tokens) + 2  # decision, and end-of-sequence
    return dataclasses.replace(answer, source=self.name, read_tokens=len(self.policy.prompt(context)), written_tokens=written)
