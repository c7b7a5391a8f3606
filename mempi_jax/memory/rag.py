"""Retrieval over the same bank: BM25 over the entries' contexts, top k, injected verbatim (method section 6, RAG).

The light, lexical form of the baseline; a sentence encoder takes BM25's place where one is installed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import bm25s
import numpy as np

from mempi_jax.experience.bank import BankEntry
from mempi_jax.types import Context, Decision, Episode, Guidance

_WORD = re.compile(r'[a-z]+')
KEYS = ('goal', 'goal_and_observation')


class RagMemory:
  """The guidance of the k most similar entries, joined by spaces.

  Args:
    entries: the bank.
    tokenize: counts guidance tokens as the guidance policy would.
    k: entries to retrieve, at least 1.
    key: what is compared: 'goal' or 'goal_and_observation'. Words are lower-case runs of letters: room numbers carry no meaning.
  """

  name = 'rag'

  def __init__(self, entries: Sequence[BankEntry], tokenize: Callable[[str], tuple[int, ...]], *, k: int, key: str):
    if key not in KEYS:
      raise ValueError(f'unknown retrieval key {key!r}: expected one of {", ".join(KEYS)}')
    if not 1 <= k <= len(entries):
      raise ValueError(f'k = {k}: expected a number between 1 and the size of the bank, {len(entries)}')
    self.entries, self.tokenize, self.k, self.key = list(entries), tokenize, k, key
    self.index = bm25s.BM25()
    self.index.index([self._words(entry.goal, entry.observation) for entry in self.entries], show_progress=False)

  def guide(self, contexts: Sequence[Context], seed: int) -> list[Guidance]:
    """Retrieved guidance for every context. Equal scores are ordered by the entries' place in the bank."""
    guidances = []
    for context in contexts:
      scores = self.index.get_scores(self._words(context.goal, context.observation))
      best = np.argsort(-scores, kind='stable')[: self.k]
      text = ' '.join(self.entries[i].guidance for i in best)
      guidances.append(Guidance(Decision.GENERATE, text, self.tokenize(text), source=self.name))
    return guidances

  def observe(self, episodes: Sequence[Episode]) -> None:
    """Learns nothing: the bank is frozen."""

  def _words(self, goal: str, observation: str) -> list[str]:
    text = goal if self.key == 'goal' else f'{goal} {observation}'
    return _WORD.findall(text.lower())
