"""No memory: the agent alone, and the agent alone with as many tokens more as a memory costs."""

from __future__ import annotations

from collections.abc import Sequence

from mempi_jax.types import Context, Decision, Episode, Guidance


class NoMemory:
  """Always abstains.

  Args:
    name: as the tables call it.
    extra_steps: actions that the agent may take beyond the cap of its task: what a memory's tokens would buy it instead (the control
      `token_matched`, method section 5).
  """

  learns = False

  def __init__(self, name: str = 'none', extra_steps: int = 0):
    self.name, self.extra_steps = name, extra_steps

  def guide(self, contexts: Sequence[Context], seed: int) -> list[Guidance]:
    """ABSTAIN for every context."""
    return [Guidance(Decision.ABSTAIN, source=self.name, extra_steps=self.extra_steps)] * len(contexts)

  def observe(self, episodes: Sequence[Episode]) -> None:
    """Learns nothing."""
