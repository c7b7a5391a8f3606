"""What the engine is asked and what it answers: requests, tickets, results. Plain data, the same for whoever serves them."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Hashable, Sequence

import numpy as np


class Finish(enum.StrEnum):
  """Why a request ended."""

  STOP = 'stop'
  LENGTH = 'length'
  CANCELLED = 'cancelled'
  ERROR = 'error'


class QueueFull(RuntimeError):
  """The engine holds as many waiting requests as it may."""


@dataclasses.dataclass(frozen=True)
class Request:
  """What to go on from, and how.

  Args:
    prompt: the whole transcript, in tokens.
    max_new: most tokens to sample, `forced` ones not counted; 0 ends at once.
    seed: u32; with the position in the transcript it decides every draw.
    temperature: 0: greedy.
    top_k: sample among so many most likely tokens; 0: all.
    top_p: sample from the nucleus of this probability.
    stop: sequences of tokens; the request ends with the first one that it produces, which is part of its result.
    forced: what its first tokens must be.
    session: requests of one session go on from each other: the slot is kept for the next one as long as none else needs it.
  """

  prompt: Sequence[int]
  max_new: int
  seed: int = 0
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  stop: tuple[tuple[int, ...], ...] = ()
  forced: tuple[int, ...] = ()
  session: Hashable | None = None


@dataclasses.dataclass(frozen=True)
class Result:
  """What a request produced: forced tokens, sampled ones, and the stop sequence where it came.

  `logps` are under the distribution that each token was drawn from (0 for forced and greedy ones), `model_logps` under the model itself.
  `stop_logp` is that of the first stop sequence's last token where the last token was drawn, under the model: what stopping there would
  have cost (NaN without a token). `error` says what went wrong where `finish` is ERROR.
  """

  tokens: tuple[int, ...]
  logps: tuple[float, ...]
  model_logps: tuple[float, ...]
  stop_logp: float
  finish: Finish
  error: str = ''


@dataclasses.dataclass(eq=False)
class Ticket:
  """A submitted request; `result` is there once it is done."""

  request: Request
  number: int
  result: Result | None = None
  prompt: np.ndarray = dataclasses.field(repr=False, default_factory=lambda: np.zeros(0, np.int32))
  slot: int = -1
  tokens: list[int] = dataclasses.field(default_factory=list)
  logps: list[float] = dataclasses.field(default_factory=list)
  model_logps: list[float] = dataclasses.field(default_factory=list)
  stop_logp: float = float('nan')
  cancelled: bool = False

  def cancel(self) -> None:
    """Asks the engine to drop the request at its next step; a finished one stays as it is."""
    self.cancelled = True
