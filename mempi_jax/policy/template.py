"""The prompts: how a context, guidance and a transcript become tokens, for the guidance policy and for the agent (method section 1).

Both read the same opening; an abstained episode's agent prompt is exactly the prompt without memory [P]:

    policy  [BOS]Goal: {goal}⏎{observation}⏎Guidance:            then d ⊕ m ⊕ [EOS]
    agent   [BOS]Goal: {goal}⏎{observation}⏎Guidance: {text}⏎>   then an action up to ⏎
    agent   [BOS]Goal: {goal}⏎{observation}⏎>                    without guidance
    each further turn of the agent:  {observation}⏎>

Pieces are encoded one by one and joined as ids: token in, token out.
"""

from __future__ import annotations

import hashlib

from mempi_jax.policy.tokenizer import Tokenizer
from mempi_jax.types import Context, Decision, Guidance

GOAL, GUIDANCE, TURN, NEWLINE = 'Goal:', 'Guidance:', '>', '\n'


def plain(text: str) -> str:
  """One line of text: runs of white space become one space, so that no text can fake a turn."""
  return ' '.join(text.split())


def observation_line(text: str) -> str:
  """An observation as a line of its own; one that begins as a turn or as guidance does is moved by a space, so that it is neither."""
  line = plain(text)
  return ' ' + line if line.startswith((TURN, GUIDANCE)) else line


def opening(tokenizer: Tokenizer, context: Context) -> list[int]:
  """The shared beginning of both prompts: the goal and the observation."""
  newline = tokenizer.encode(NEWLINE)
  goal = tokenizer.encode(GOAL) + tokenizer.encode(' ' + plain(context.goal))
  return [tokenizer.bos, *goal, *newline, *tokenizer.encode(observation_line(context.observation)), *newline]


def policy_prompt(tokenizer: Tokenizer, context: Context) -> list[int]:
  """The prompt of π_mem: what follows it is the decision."""
  return [*opening(tokenizer, context), *tokenizer.encode(GUIDANCE)]


def content_tokens(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
  """The content m as ids, without decision and end-of-sequence."""
  return tokenizer.encode(' ' + plain(text))


def agent_prompt(tokenizer: Tokenizer, context: Context, guidance: Guidance) -> list[int]:
  """The agent's prompt up to its first action."""
  ids = opening(tokenizer, context)
  if guidance.decision is Decision.GENERATE and guidance.text.strip():
    ids += [*tokenizer.encode(GUIDANCE), *content_tokens(tokenizer, guidance.text), *tokenizer.encode(NEWLINE)]
  return [*ids, *tokenizer.encode(TURN)]


def agent_turn(tokenizer: Tokenizer, observation: str) -> list[int]:
  """What the environment's answer adds to the agent's transcript, up to its next action."""
  return [*tokenizer.encode(observation_line(observation)), *tokenizer.encode(NEWLINE), *tokenizer.encode(TURN)]


def action_tokens(tokenizer: Tokenizer, action: str) -> list[int]:
  """An action as the agent writes it, with the newline that ends it."""
  return [*tokenizer.encode(' ' + plain(action)), *tokenizer.encode(NEWLINE)]


def template_hash() -> str:
  """Changes when a prompt template does: part of every run's manifest."""
  import inspect

  functions = (plain, observation_line, opening, policy_prompt, content_tokens, agent_prompt, agent_turn, action_tokens)
  source = ''.join(inspect.getsource(f) for f in functions)
  return hashlib.sha256((source + repr((GOAL, GUIDANCE, TURN, NEWLINE))).encode()).hexdigest()[:16]
