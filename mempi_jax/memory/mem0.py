"""Mem0 (arXiv 2504.19413), its ADD / UPDATE / DELETE / NONE form: facts that a language model keeps in order, retrieved by likeness.

Each fact of the bank is shown to the manager with the memories most like it (5 in the paper), and one call returns an event for each
(method section 6). The manager is a chat model behind an endpoint (memory/chat.py), or, without one, the rules of `RuleManager`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from mempi_jax.experience.bank import BankEntry, lessons
from mempi_jax.experience.distiller import Distill, Distiller
from mempi_jax.memory.operations import Event, FactStore, Manager, Operation
from mempi_jax.memory.rag import query_text
from mempi_jax.runtime import files, hosts
from mempi_jax.runtime.metrics import progress
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
    manager: what keeps the store in order as episodes bring new facts; None: nothing is learned at run time.
    distill: what turns episodes into facts; a manager needs it.
  """

  def __init__(
    self,
    name: str,
    store: FactStore,
    tokenize: Callable[[str], tuple[int, ...]],
    *,
    k: int,
    key: str,
    threshold: float,
    manager: Manager | None = None,
    distill: Distill | Distiller | None = None,
  ):
    if k < 1:
      raise ValueError(f'k = {k}: expected at least 1')
    if (manager is None) != (distill is None):
      raise ValueError('a memory that learns needs a manager and what distils facts for it: expected both or none')
    self.manager, self.distill, self.learns = manager, distill, manager is not None
    self.name, self.store, self.tokenize, self.k, self.key, self.threshold = name, store, tokenize, k, key, threshold

  def guide(self, contexts: Sequence[Context], seed: int) -> list[Guidance]:
    """Facts for every context."""
    return [self.recall(self.store, context) for context in contexts]

  def recall(self, store: FactStore, context: Context) -> Guidance:
    """What some store would say in a context."""
    return store.recall(query_text(context.goal, context.observation, self.key), self.k, self.threshold, self.tokenize, self.name)

  def observe(self, episodes: Sequence[Episode]) -> None:
    """Gives the manager what the episodes taught, one fact after the other, if there is a manager."""
    if self.manager is not None:
      for entry in lessons(episodes, self.distill):
        self.store.learn(entry.guidance, entry.sources, self.manager)


def build_facts(entries: Sequence[BankEntry], store: FactStore, manager: Manager, path: Path) -> dict[str, int]:
  """Feeds a bank's guidance, where there is some, to the store, entry by entry, and appends what the manager said of each to a JSONL log.

  What the log holds is done again, and not asked again. Returns how often each operation was applied, and how many facts were `unreadable`:
  the manager said nothing that could be read of them. Raises ValueError when the log is about other facts.
  """
  entries = [entry for entry in entries if entry.guidance]
  done = files.read_started(path, [entry.guidance for entry in entries], lambda record: record['fact'])
  counts = {'unreadable': 0}
  with files.JsonlLog(path) as log, progress(len(entries), path.parent.name, initial=len(done)) as bar:
    for i, entry in enumerate(entries):
      places = store.nearest(entry.guidance, store.shown)
      if i < len(done):
        events = [Event(Operation(event['operation']), event['text'], event['place']) for event in done[i]['events']]
      else:
        hosts.check_preempted()
        events = manager.manage(entry.guidance, [store.facts[place] for place in places])
        log.append({'fact': entry.guidance, 'events': [dataclasses.asdict(event) for event in events]})
        bar.update()
      counts['unreadable'] += not events
      for event in store.apply(events, places, entry.sources):
        counts[event.operation.value] = counts.get(event.operation.value, 0) + 1
  return counts
