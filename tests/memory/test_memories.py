"""Every memory answers in the same form; retrieval finds the nearest entry."""

import pytest

from mempi_jax.experience.bank import BankEntry
from mempi_jax.memory.none import NoMemory
from mempi_jax.memory.oracle import OracleMemory
from mempi_jax.memory.rag import RagMemory
from mempi_jax.types import Context, Decision, Task


def context(goal: str, observation: str = 'you see a drawer 1, a shelf 1.') -> Context:
  return Context(Task('alfworld', goal, 'heldout_games', 0), goal, observation)


def entry(goal: str, guidance: str, observation: str = 'you see a drawer 1, a shelf 1.') -> BankEntry:
  return BankEntry('alfworld', goal, 'train', 0, goal, observation, guidance, ('e',), False)


def tokenize(text: str) -> tuple[int, ...]:
  return tuple(range(len(text.split())))


BANK = [
  entry('put a mug in shelf', 'the mug is usually in the cabinet.'),
  entry('put a pen in drawer', 'the pen is usually in the shelf.'),
  entry('put a mug in shelf', 'the mug is seldom in the bed.', 'you see a bed 1, a desk 1.'),
]


def test_none_abstains():
  guidance = NoMemory().guide([context('a'), context('b')], seed=0)
  assert [(g.decision, g.text, g.tokens) for g in guidance] == [(Decision.ABSTAIN, '', ())] * 2


def test_oracle_speaks_the_truth_of_the_game():
  memory = OracleMemory({'a': 'the mug is usually in the bed.'}.__getitem__, tokenize)
  (guidance,) = memory.guide([context('a')], seed=0)
  assert (guidance.decision, guidance.text, len(guidance.tokens)) == (Decision.GENERATE, 'the mug is usually in the bed.', 7)


def test_rag_retrieves_by_goal_and_observation():
  memory = RagMemory(BANK, tokenize, k=1, key='goal_and_observation')
  texts = [
    g.text
    for g in memory.guide(
      [context('put a pen in drawer'), context('put a mug in shelf'), context('put a mug in shelf', 'you see a bed 1, a desk 2.')], seed=0
    )
  ]
  assert texts == ['the pen is usually in the shelf.', 'the mug is usually in the cabinet.', 'the mug is seldom in the bed.']


def test_rag_joins_k_entries_and_breaks_ties_by_place():
  memory = RagMemory(BANK, tokenize, k=2, key='goal')
  (guidance,) = memory.guide([context('put a mug in shelf')], seed=0)
  assert guidance.text == 'the mug is usually in the cabinet. the mug is seldom in the bed.'
  assert len(guidance.tokens) == 14


@pytest.mark.parametrize('arguments', [{'k': 0, 'key': 'goal'}, {'k': 4, 'key': 'goal'}, {'k': 1, 'key': 'gaol'}])
def test_rag_refuses_what_it_cannot_do(arguments):
  with pytest.raises(ValueError, match='expected'):
    RagMemory(BANK, tokenize, **arguments)
