"""Memory-R1 (arXiv 2508.19828): the manager of a store of facts is itself trained, by GRPO, on the frozen agent's success (method section 6).

The manager is a language model like the guidance policy. It reads a new fact and the memories most like it, and writes one operation:

    [BOS]Goal: {fact}⏎Memories: 0: {memory} 1: {memory} ...⏎Guidance:[GENERATE] ADD {text} | UPDATE {number} {text} | DELETE {number} | NOOP [EOS]

The published one is an instruction-tuned model, which knows the format before it is trained; a small one learns it by SFT on what the rules
of memory/operations.py would do [O], and goes its own way from there. Training: sources/manager.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mempi_jax.experience.bank import TRAIN_SPLIT, BankEntry
from mempi_jax.memory.operations import Event, FactStore, Manager, Operation
from mempi_jax.policy.policy import GuidancePolicy
from mempi_jax.types import Context, Task

NOOP = 'NOOP'
_WRITTEN = re.compile(r'(?:(ADD) (.+)|(UPDATE) (\d) (.+)|(DELETE) (\d)|(NOOP))')


class PolicyManager:
  """Asks a trained manager, greedily. A completion that is no operation changes nothing."""

  def __init__(self, policy: GuidancePolicy):
    self.policy = policy

  def manage(self, fact: str, memories: Sequence[str]) -> list[Event]:
    """At most one event."""
    ((guidance,),) = self.policy.contents([manager_context(fact, memories)], [0], branches=1, temperature=0.0)
    return read_operation(guidance.text)


def manager_context(fact: str, memories: Sequence[str]) -> Context:
  """What the manager reads."""
  shown = ' '.join(f'{i}: {memory}' for i, memory in enumerate(memories)) or '(none)'
  return Context(Task('memory_r1', fact, TRAIN_SPLIT, 0), fact, f'Memories: {shown}')


def write_operation(event: Event) -> str:
  """An event as the manager writes it."""
  match event.operation:
    case Operation.ADD:
      return f'ADD {event.text}'
    case Operation.UPDATE:
      return f'UPDATE {event.place} {event.text}'
    case Operation.DELETE:
      return f'DELETE {event.place}'
    case Operation.NONE:
      return NOOP


def read_operation(text: str) -> list[Event]:
  """The event that a completion means; none where it is no operation."""
  match = _WRITTEN.fullmatch(text.strip())
  if match is None:
    return []
  add, added, update, updated, text, delete, deleted, _ = match.groups()
  if add:
    return [Event(Operation.ADD, added)]
  if update:
    return [Event(Operation.UPDATE, text, int(updated))]
  return [Event(Operation.DELETE, place=int(deleted))] if delete else [Event(Operation.NONE)]


def demonstrations(entries: Iterable[BankEntry], store: FactStore, rules: Manager) -> list[BankEntry]:
  """Feeds a bank to `store` by the rules; what they did is a bank of its own: context and completion of the manager, one a fact."""
  shown: list[BankEntry] = []
  for entry in entries:
    places = store.nearest(entry.guidance, store.shown)
    memories = [store.facts[i] for i in places]
    events = rules.manage(entry.guidance, memories)
    context = manager_context(entry.guidance, memories)
    for event in events:
      written = write_operation(event)
      shown.append(BankEntry(context.task.env, entry.task_id, entry.split, entry.seed, context.goal, context.observation, written, entry.sources, False))
    store.apply(events, places, entry.sources)
  return shown
