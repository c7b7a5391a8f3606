"""What both ends of a benchmark share: requests and replies as JSON lines, and the random tokens that every side draws alike.

A script reads one request a line from standard input, {"do": NAME, ...arguments}, and answers each with one line, a JSON object. An
exception ends the script: its traceback is on standard error, where the other end finds it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def draw_tokens(seed: Sequence[int], shape: Sequence[int], vocab_size: int) -> np.ndarray:
  """Random tokens i32[shape], the same for the same seed in every process."""
  return np.random.default_rng(list(seed)).integers(0, vocab_size, tuple(shape), dtype=np.int32)


def reward(completion: Sequence[int]) -> float:
  """What reinforcement learning is given to climb: the share of even tokens."""
  return sum(token % 2 == 0 for token in completion) / max(len(completion), 1)


def advantages_of(completions: np.ndarray) -> np.ndarray:
  """Rewards of completions [B, K, N], less their group's mean, over its standard deviation: f32[B, K]."""
  rewards = np.array([[reward(tokens) for tokens in group] for group in completions])
  return ((rewards - rewards.mean(axis=1, keepdims=True)) / (rewards.std(axis=1, keepdims=True) + 1e-4)).astype(np.float32)


class Requests:
  """A script's end: `next` request, `reply`, and so on. There is one a process."""

  def __init__(self):
    # Replies have standard output for themselves; whatever a library prints, from C too, goes to standard error.
    self._replies = os.fdopen(os.dup(1), 'w', encoding='utf-8')
    os.dup2(2, 1)
    sys.stdout = sys.stderr

  def next(self) -> dict[str, Any] | None:
    """The next request; None when there will be no more."""
    line = sys.stdin.readline()
    return json.loads(line) if line else None

  def reply(self, result: dict[str, Any]) -> None:
    """Answers the last request."""
    print(json.dumps(result), file=self._replies, flush=True)


def serve(handlers: dict[str, Callable[..., dict[str, Any]]]) -> None:
  """Answers requests by the handler of their name until standard input ends."""
  requests = Requests()
  while (request := requests.next()) is not None:
    requests.reply(handlers[request.pop('do')](**request))
