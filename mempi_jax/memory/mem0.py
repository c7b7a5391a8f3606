"""Mem0 (arXiv 2504.19413), its ADD / UPDATE / DELETE / NONE form: facts that a language model keeps in order, retrieved by likeness.

Each fact of the bank is shown to the manager with the memories most like it (5 in the paper), and one call returns an event for each
(method section 6). The manager is a chat model behind an endpoint (memory/chat.py), or, without one, the rules of `RuleManager`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from mempi_jax.experience.bank import BankEntry
from mempi_jax.memory.operations import FactStore, Manager
from mempi_jax.memory.rag import query_text
from mempi_jax.types import Context, Episode, Guidance


class FactMemory:
  """Facts most like the context, joined by spaces.

  Args:
    name: as the tables call it: mem0, or memory_r1.
    store: the facts, see `build_facts`.
    tokenize: counts guidance tokens as the guidance policy would.
    k: facts to inject.
    key: what of the context is compared with the facts: 'goal' or 'goal_and_observation'.
    threshold: the least cosine of a fact to be used; where none reaches it the memory abstains.
  """

  learns = False

  def __init__(self, name: str, store: FactStore, tokenize: Callable[[str], tuple[int, ...]], *, k: int, key: str, threshold: float):
    if k < 1:
      raise ValueError(f'k = {k}: expected at least 1')
    self.name, self.store, self.tokenize, self.k, self.key, self.threshold = name, store, tokenize, k, key, threshold

  def guide(self, contexts: Sequence[Context], seed: int) -> list[Guidance]:
    """Facts for every context."""
    return [self.recall(self.store, context) for context in contexts]

  def recall(self, store: FactStore, context: Context) -> Guidance:
    """What some store would say in a context."""
    return store.recall(query_text(context.goal, context.observation, self.key), self.k, self.threshold, self.tokenize, self.name)

  def observe(self, episodes: Sequence[Episode]) -> None:
    """Learns nothing at run time: its facts come from the bank, as every memory's."""


def build_facts(entries: Iterable[BankEntry], store: FactStore, manager: Manager) -> dict[str, int]:
  """Feeds a bank's guidance to the store, entry by entry; returns how often each operation was applied."""
  counts: dict[str, int] = {}
  for entry in entries:
    for event in store.learn(entry.guidance, entry.sources, manager):
      counts[event.operation.value] = counts.get(event.operation.value, 0) + 1
  return counts
