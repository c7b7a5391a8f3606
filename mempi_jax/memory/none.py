"""No memory: the agent alone."""

from __future__ import annotations

from collections.abc import Sequence

from mempi_jax.types import Context, Decision, Episode, Guidance


class NoMemory:
  """Always abstains."""

  name = 'none'

  def guide(self, contexts: Sequence[Context], seed: int) -> list[Guidance]:
    """ABSTAIN for every context."""
    return [Guidance(Decision.ABSTAIN, source=self.name)] * len(contexts)

  def observe(self, episodes: Sequence[Episode]) -> None:
    """Learns nothing."""
