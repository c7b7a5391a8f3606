"""The objects that flow through Mem-π, and the protocols between its rooms (method section 1).

    Task -> Context -> Guidance -> Episode -> RolloutGroup -> TrainBatch -> metrics

Host side only: numpy and the standard library, never jax, so that simulator processes start fast and stay off the accelerator.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np


class Decision(enum.StrEnum):
  """What the guidance policy decides first, d in y = d ⊕ m [P]; the value is the control token's text."""

  GENERATE = '[GENERATE]'
  ABSTAIN = '[ABSTAIN]'


class Status(enum.StrEnum):
  """How an episode ended. ENV_ERROR is a fault of the simulator, or of the machinery behind the agent: never a zero reward, always masked out
  of training."""

  SUCCESS = 'success'
  FAILURE = 'failure'  # the environment said that the task is over, and not solved
  TRUNCATED = 'truncated'  # out of steps, or out of context
  ENV_ERROR = 'env_error'


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
  """One game to play. `seed` decides everything random in the environment and in the agent: branches of a group share it."""

  env: str
  task_id: str
  split: str
  seed: int


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
  """One turn: what the agent saw, what it did, what that earned."""

  observation: str
  action: str
  reward: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
  """x = (q, o) [P]: the instruction `goal` and the current `observation`; `history` is what came before, if anything did."""

  task: Task
  goal: str
  observation: str
  history: tuple[Step, ...] = ()
  image: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Guidance:
  """What a memory gives the agent: y = d ⊕ m [P].

  `text` is empty after ABSTAIN. `tokens` i32[T] are the content's tokens in the vocabulary of whoever wrote it (empty where no LM
  did), without decision and end-of-sequence; `logps` f32[T + 1] are the log-probs of content and end-of-sequence under the sampling
  policy; `p_generate` is P(GENERATE | x), NaN where there is no such thing; `source` names the memory.

  `retrieved` names the episodes (task_id@seed) whose experience is quoted, if any is; `read_tokens` and `written_tokens` are what the
  memory's own language model read and wrote for this guidance, decision and end-of-sequence included. `extra_steps` are actions beyond
  the task's cap that the agent may take: what the control without memory is given in place of tokens.
  """

  decision: Decision
  text: str = ''
  tokens: tuple[int, ...] = ()
  logps: tuple[float, ...] = ()
  p_generate: float = float('nan')
  source: str = 'none'
  retrieved: tuple[str, ...] = ()
  read_tokens: int = 0
  written_tokens: int = 0
  extra_steps: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class EnvStep:
  """What an environment answers to one action."""

  observation: str
  reward: float
  done: bool
  success: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Episode:
  """One finished run of the agent. `reward` is the base reward (1.0 for success), before any length term.

  `steps[i].observation` is what the agent saw before its action; `last_observation` is what the last action brought.
  """

  context: Context
  guidance: Guidance
  steps: tuple[Step, ...]
  reward: float
  success: bool
  status: Status
  last_observation: str = ''


@dataclasses.dataclass(frozen=True, slots=True)
class RolloutGroup:
  """A counterfactual group [P]: `episodes[0]` abstains, the others generate; all share the task and its seed [O]."""

  context: Context
  episodes: tuple[Episode, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class AgentFault:
  """In the place of an action: what the agent runs on failed, which says nothing of its guidance. The episode is over, with ENV_ERROR."""

  reason: str


class Env(Protocol):
  """A simulator that plays one task at a time."""

  def reset(self, task: Task) -> Context: ...

  def step(self, action: str) -> EnvStep: ...

  def close(self) -> None: ...


class AgentSession(Protocol):
  """Running episodes of one agent, each under a key of the caller's. What the agent has read is owed an action; actions come as they are
  ready, in any order, so that an episode whose environment is slow holds up no other."""

  def start(self, key: int, context: Context, guidance: Guidance, seed: int) -> None:
    """A new episode: the agent reads its context, its guidance if that generates, and samples with `seed`."""

  def observe(self, key: int, observation: str) -> None:
    """What the episode's last action brought."""

  def act(self) -> list[tuple[int, str | None | AgentFault]]:
    """Some of the actions that are owed, once there are some or after a while; None: the episode ran out of context, and is over, as after a fault."""

  def end(self, key: int) -> None:
    """The episode is over, or never started."""


class Agent(Protocol):
  """The frozen actor."""

  def begin(self) -> AgentSession: ...


class Memory(Protocol):
  """Anything that offers guidance. `learns`: `observe` changes what it says; the others ignore it."""

  name: str
  learns: bool

  def guide(self, contexts: Sequence[Context], seed: int) -> list[Guidance]: ...

  def observe(self, episodes: Sequence[Episode]) -> None: ...


@dataclasses.dataclass(frozen=True)
class TrainBatch:
  """Packed rows: one row holds one context's prompt and then its completions (branches), side by side.

  A branch attends to the prompt and to itself, never to another branch, so that a group's prompt is computed once. B rows of T
  tokens; branch 0 is the prompt, branches 1..K are completions; padding has branch -1.
  """

  tokens: np.ndarray  # i32[B, T]
  branch: np.ndarray  # i32[B, T]
  positions: np.ndarray  # i32[B, T]  rotary positions: a branch continues where the prompt ended
  decision_index: np.ndarray  # i32[B]  index of the last prompt token: its logits decide
  score_index: np.ndarray  # i32[B, C]  where in the row the logits of the c-th scored token stand
  targets: np.ndarray  # i32[B, C]  the scored tokens: content and end-of-sequence of every branch
  content_mask: np.ndarray  # f32[B, C]  1 where `targets` counts
  content_adv: np.ndarray  # f32[B, C]  A_con of the token's branch (RL)
  old_logps: np.ndarray  # f32[B, C]  under the sampling policy (RL)
  ref_logps: np.ndarray  # f32[B, C]  under the stage-1 policy (RL)
  decision_target: np.ndarray  # f32[B]  SFT: 1 GENERATE, 0 ABSTAIN
  decision_adv: np.ndarray  # f32[B]  RL: A_dec([GENERATE]), that of ABSTAIN is its negative
  ref_logit: np.ndarray  # f32[B]  RL: l_ref, the stage-1 logit difference at the decision
  old_logit: np.ndarray  # f32[B]  RL: l under the sampling policy
  valid: np.ndarray  # bool[B]  rows that count


class Source(Protocol):
  """Where the trainer's batches come from. `state` is everything that resume needs, as a JSON-able tree.

  `clock` adds up the seconds that `next` spends in episodes and in compiled programs; the rest of its time is the host's own work.
  """

  clock: Any  # runtime/stopwatch.py

  def next(self, step: int, params: Any) -> tuple[TrainBatch, dict[str, float]]: ...

  def examples(self) -> list[TrainBatch]:
    """An empty batch of every shape that `next` may give."""

  def state(self) -> dict[str, Any]: ...

  def restore(self, state: dict[str, Any]) -> None: ...
