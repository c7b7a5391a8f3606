"""Mem0's operations on cases done by hand: by rules, and by a chat model that may answer anything."""

import numpy as np
import pytest

from mempi_jax.experience.bank import BankEntry
from mempi_jax.memory import operations
from mempi_jax.memory.chat import ChatManager, parse_events
from mempi_jax.memory.mem0 import FactMemory, build_facts
from mempi_jax.memory.operations import Event, FactStore, Operation, RuleManager
from mempi_jax.types import Context, Decision, Task

WORDS = ('mug', 'pen', 'desk', 'shelf', 'bed', 'usually', 'seldom')


def bag(texts):
  counts = np.array([[text.count(word) for word in WORDS] for text in texts], np.float32)
  return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-12)


@pytest.fixture(autouse=True)
def small_encoder(monkeypatch):
  monkeypatch.setattr(operations, 'load_encoder', lambda name: bag)


def entry(guidance, number):
  return BankEntry('alfworld', f't{number}', 'train', 0, 'put a mug in shelf', '', guidance, (f'e{number}',), False)


FACTS = [
  'the mug is usually in the desk.',
  'the mug is usually in the desk.',  # known: NONE
  'the mug is seldom in the desk.',  # contradicts: UPDATE
  'the pen is usually in the shelf.',  # new: ADD
  'the pen is usually in the bed.',  # newer: UPDATE, or ADD
]


BANK = [entry(fact, i) for i, fact in enumerate(FACTS)]


def test_rules_keep_the_facts_in_order(tmp_path):
  store = FactStore('bag')
  counts = build_facts(BANK, store, RuleManager(replace=True), tmp_path / 'a.jsonl')
  assert counts == {'ADD': 2, 'NONE': 1, 'UPDATE': 2, 'unreadable': 0}
  assert store.facts == ['the mug is seldom in the desk.', 'the pen is usually in the bed.']
  assert store.sources == [('e0', 'e2'), ('e3', 'e4')]
  store = FactStore('bag')
  counts = build_facts(BANK, store, RuleManager(replace=False), tmp_path / 'b.jsonl')
  assert counts == {'ADD': 3, 'NONE': 1, 'UPDATE': 1, 'unreadable': 0}
  assert store.facts[1:] == FACTS[3:]
  np.testing.assert_allclose(store.index.vectors, bag(store.facts))


def test_every_operation_touches_the_memory_that_was_shown():
  """The manager sees the nearest memories first; its numbers are places in that list, not in the store."""

  class Scripted:
    def __init__(self, events):
      self.events, self.shown = events, None

    def manage(self, fact, memories):
      self.shown = memories
      return self.events

  store = FactStore('bag', shown=2)
  for fact in ('the pen is usually in the bed.', 'the mug is usually in the desk.', 'the mug is usually in the shelf.'):
    store.learn(fact, ('a',), Scripted([Event(Operation.ADD, fact)]))
  manager = Scripted([Event(Operation.UPDATE, 'the mug is usually in the bed.', 1), Event(Operation.DELETE, '', 0), Event(Operation.DELETE, '', 7)])
  applied = store.learn('the mug is usually in the desk.', ('b',), manager)
  assert manager.shown == ['the mug is usually in the desk.', 'the mug is usually in the shelf.']
  assert [event.operation for event in applied] == [Operation.UPDATE, Operation.DELETE]  # place 7 was never shown
  assert store.facts == ['the pen is usually in the bed.', 'the mug is usually in the bed.']
  assert store.sources == [('a',), ('a', 'b')]
  restored = FactStore('bag')
  restored.restore(store.state())
  assert (restored.facts, restored.sources) == (store.facts, store.sources)


@pytest.mark.parametrize('kept', [0, 2, 5])
def test_a_manager_is_asked_once_about_each_fact(tmp_path, kept):
  """A killed run does again what the log says, and asks about the rest alone."""
  path, whole, again = tmp_path / 'operations.jsonl', FactStore('bag'), FactStore('bag')
  build_facts(BANK, whole, RuleManager(replace=True), path)
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(''.join(lines[:kept]) + ('{"fact": "the' if kept else ''))
  asked = []

  class Asked(RuleManager):
    def manage(self, fact, memories):
      asked.append(fact)
      return super().manage(fact, memories)

  counts = build_facts(BANK, again, Asked(replace=True), path)
  assert asked == FACTS[kept:]
  assert (again.state(), counts['UPDATE'], path.read_text()) == (whole.state(), 2, ''.join(lines))
  with pytest.raises(ValueError, match='belongs to another run'):
    build_facts(BANK[1:], FactStore('bag'), RuleManager(replace=True), path)


def test_facts_are_recalled_by_likeness(tmp_path):
  store = FactStore('bag')
  facts = FACTS[3:] + FACTS[:1]
  build_facts([entry(fact, i) for i, fact in enumerate(facts)], store, RuleManager(replace=False), tmp_path / 'operations.jsonl')
  memory = FactMemory('mem0', store, lambda text: tuple(text.split()), k=2, key='goal', threshold=0.1)
  contexts = [Context(Task('alfworld', 'x', 'heldout_games', 0), goal, 'a bed.') for goal in ('find the pen', 'put it away')]
  spoken, silent = memory.guide(contexts, 0)
  assert spoken.text == 'the pen is usually in the shelf. the pen is usually in the bed.'
  assert spoken.retrieved == ('e0', 'e1')
  assert silent.decision is Decision.ABSTAIN


@pytest.mark.parametrize(
  ('answer', 'expected'),
  [
    ('{"events": [{"operation": "ADD", "memory": null, "text": "x"}]}', [Event(Operation.ADD, 'x')]),
    ('Sure!\n```json\n{"events": [{"operation": "DELETE", "memory": 1}]}\n```', [Event(Operation.DELETE, '', 1)]),
    ('{"events": [{"operation": "DROP TABLE"}, {"operation": "NONE"}, 3]}', [Event(Operation.NONE)]),
    ('{"events": [{"operation": "UPDATE", "memory": true, "text": "x"}]}', [Event(Operation.UPDATE, 'x')]),
    ('{"events": []}', []),
    ('{"events": [', []),
    ('no', []),
    ('[1]', []),
  ],
)
def test_answers_of_a_model(answer, expected):
  assert parse_events(answer) == expected


def test_an_unreadable_answer_changes_nothing():
  asked = []
  manager = ChatManager(lambda system, user: asked.append(user) or 'I would rather not.')
  store = FactStore('bag')
  store._add('the pen is\nusually in the bed.', ())
  assert store.learn('the mug is usually in the desk.', (), manager) == []
  assert len(store.facts) == 1
  assert asked == ['Memories:\n0: the pen is usually in the bed.\n\nNew fact: the mug is usually in the desk.']
