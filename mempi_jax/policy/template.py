"""The prompts: how a context, guidance and a transcript become tokens, for the guidance policy and for the agent (method section 1).

Both read the same opening; an abstained episode's agent prompt is exactly the prompt without memory [P]:

    policy  [BOS]Goal: {goal}⏎{observation}⏎Guidance:            then d ⊕ m ⊕ [EOS]
    agent   [BOS]Goal: {goal}⏎{observation}⏎Guidance: {text}⏎>   then an action up to ⏎
    agent   [BOS]Goal: {goal}⏎{observation}⏎>                    without guidance
    each further turn of the agent:  {observation}⏎>

Pieces are encoded one by one and joined as ids: token in, token out. A tokenizer without [BOS] starts with the goal.

That is the template 'plain'. A guidance policy made of a chat model has 'chat': SYSTEM as the system's message, and as the user's

    Goal: {goal}⏎Observation: {step.observation}⏎Action: {step.action}⏎ ... Observation: {observation}

with the steps of the history, if there is one, and with SYSTEM in front where the format has no system message; the assistant's answer
is d ⊕ m ⊕ eos.
"""

from __future__ import annotations

import hashlib

from mempi_jax.policy.chat import encode_chat, takes_system
from mempi_jax.policy.tokenizer import Tokenizer
from mempi_jax.types import Context, Decision, Guidance

GOAL, GUIDANCE, TURN, NEWLINE = 'Goal:', 'Guidance:', '>', '\n'
# The decisions are described, not spelt: what renders this text elsewhere may take "[ABSTAIN]" for the token.
SYSTEM = (
  'You are the guidance policy of an agent: you know from experience what helps in this environment. The user message is what the agent '
  'sees before it acts. Decide first whether to speak. Generate where experience helps, and write one short hint for the agent. Abstain '
  'where the agent manages alone, and write nothing.'
)


def plain(text: str) -> str:
  """One line of text: runs of white space become one space, so that no text can fake a turn."""
  return ' '.join(text.split())


def observation_line(text: str) -> str:
  """An observation as a line of its own; one that begins as a turn or as guidance does is moved by a space, so that it is neither."""
  line = plain(text)
  return ' ' + line if line.startswith((TURN, GUIDANCE)) else line


def opening(tokenizer: Tokenizer, context: Context) -> list[int]:
  """The shared beginning of both prompts: the goal and the observation."""
  start = [] if tokenizer.bos is None else [tokenizer.bos]
  newline = tokenizer.encode(NEWLINE)
  goal = tokenizer.encode(GOAL) + tokenizer.encode(' ' + plain(context.goal))
  return [*start, *goal, *newline, *tokenizer.encode(observation_line(context.observation)), *newline]


def policy_prompt(tokenizer: Tokenizer, context: Context, template: str = 'plain') -> list[int]:
  """The prompt of π_mem: what follows it is the decision. An unknown template is a ValueError."""
  if _is_chat(template):
    return chat_prompt(tokenizer, context)
  return [*opening(tokenizer, context), *tokenizer.encode(GUIDANCE)]


def content_tokens(tokenizer: Tokenizer, text: str, template: str = 'plain') -> tuple[int, ...]:
  """The content m as ids, without decision and end-of-sequence."""
  return tokenizer.encode_after(plain(text)) if _is_chat(template) else tokenizer.encode(' ' + plain(text))


def chat_prompt(tokenizer: Tokenizer, context: Context) -> list[int]:
  """The prompt of π_mem in the chat format of its tokenizer. Every line begins with its name, so that no text can fake one."""
  lines = [f'{GOAL} {plain(context.goal)}']
  for step in context.history:
    lines += [f'Observation: {plain(step.observation)}', f'Action: {plain(step.action)}']
  user = '\n'.join([*lines, f'Observation: {plain(context.observation)}'])
  if takes_system(tokenizer):
    return encode_chat(tokenizer, [{'role': 'system', 'content': SYSTEM}, {'role': 'user', 'content': user}])
  return encode_chat(tokenizer, [{'role': 'user', 'content': f'{SYSTEM}\n\n{user}'}])


def _is_chat(template: str) -> bool:
  if template not in ('plain', 'chat'):
    raise ValueError(f"unknown template {template!r}: expected 'plain' or 'chat'")
  return template == 'chat'


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


def template_hash(template: str = 'plain') -> str:
  """Changes when a prompt template does: part of every run's manifest. The chat format itself is part of the tokenizer's fingerprint."""
  import inspect

  functions = [plain, observation_line, opening, policy_prompt, content_tokens, agent_prompt, agent_turn, action_tokens]
  texts = [GOAL, GUIDANCE, TURN, NEWLINE]
  if _is_chat(template):
    functions += [chat_prompt, encode_chat]
    texts.append(SYSTEM)
  source = ''.join(inspect.getsource(f) for f in functions)
  return hashlib.sha256((source + repr(tuple(texts))).encode()).hexdigest()[:16]
