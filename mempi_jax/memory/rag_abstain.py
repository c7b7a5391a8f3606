"""RAG with learned abstention, a control: what to say is retrieved, when to speak is learned by the same stage 2 (method section 5 [D, O])."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mempi_jax.memory.rag import RagMemory
from mempi_jax.policy.policy import GuidancePolicy
from mempi_jax.types import Context, Decision, Episode, Guidance


class RagAbstainMemory:
  """Speaks RAG's guidance where P(GENERATE | x) >= threshold under a policy whose decision was trained on the outcomes of that guidance."""

  name, learns = 'rag_abstain', False

  def __init__(self, policy: GuidancePolicy, rag: RagMemory, *, threshold: float):
    self.policy, self.rag, self.threshold = policy, rag, threshold

  def guide(self, contexts: Sequence[Context], seed: int) -> list[Guidance]:
    """The policy's decision, with the retrieved text."""
    answers = []
    for context, retrieved, p in zip(contexts, self.rag.guide(contexts, seed), self.policy.p_generate(contexts), strict=True):
      cost = {'p_generate': float(p), 'source': self.name, 'read_tokens': len(self.policy.prompt(context)), 'written_tokens': 1}
      spoken = retrieved if p >= self.threshold else Guidance(Decision.ABSTAIN)
      answers.append(dataclasses.replace(spoken, **cost))
    return answers

  def observe(self, episodes: Sequence[Episode]) -> None:
    """Learns nothing at run time."""
