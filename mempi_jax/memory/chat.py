"""A chat model behind an OpenAI-compatible endpoint as the manager of a store of facts (Mem0's update step, arXiv 2504.19413).

What the model answers is untrusted: only the four operations, on the memories that it was shown, come out of it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from mempi_jax.memory.operations import Event, Operation

Complete = Callable[[str, str], str]  # (system, user) -> answer

SYSTEM = (
  'You keep the memory of an agent in order. You get one new fact and the memories most like it, numbered. Decide for the fact what it does: '
  'ADD it if it is new; UPDATE a memory, with its number and the merged text, if the fact says more about the same thing, or newer; DELETE a '
  'memory that the fact contradicts; NONE if the memories say it already. Answer with JSON alone: '
  '{"events": [{"operation": "ADD" | "UPDATE" | "DELETE" | "NONE", "memory": number or null, "text": "..."}]}'
)


class ChatManager:
  """Asks a chat model; `complete` is one call of it. An answer that holds no events changes nothing."""

  def __init__(self, complete: Complete):
    self.complete = complete

  def manage(self, fact: str, memories: Sequence[str]) -> list[Event]:
    """The events of one call, in the model's order."""
    shown = '\n'.join(f'{i}: {_line(memory)}' for i, memory in enumerate(memories)) or '(none)'
    return parse_events(self.complete(SYSTEM, f'Memories:\n{shown}\n\nNew fact: {_line(fact)}'))


def parse_events(answer: str) -> list[Event]:
  """The events of an answer, whatever stands around the JSON; none where there is no JSON object of that form."""
  match = re.search(r'\{.*\}', answer, re.DOTALL)
  try:
    found = json.loads(match.group()) if match else None
  except ValueError:
    return []
  if not isinstance(found, dict) or not isinstance(found.get('events'), list):
    return []
  return [event for item in found['events'] if (event := _event(item)) is not None]


def connect(url: str, model: str, *, timeout: float, retries: int, max_tokens: int) -> Complete:
  """Calls of a model at an endpoint, greedy. The key comes from OPENAI_API_KEY; a local server takes any.

  Raises what `check_client` does; a call raises openai.OpenAIError when it failed for good.
  """
  check_client()
  import openai

  client = openai.OpenAI(base_url=url, api_key=os.environ.get('OPENAI_API_KEY', 'none'), timeout=timeout, max_retries=retries)

  def complete(system: str, user: str) -> str:
    messages: list[Any] = [{'role': 'system', 'content': system}, {'role': 'user', 'content': user}]
    answer = client.chat.completions.create(model=model, messages=messages, temperature=0.0, max_tokens=max_tokens)
    return answer.choices[0].message.content or ''

  return complete


def check_client() -> None:
  """Raises ModuleNotFoundError without the package `openai`, naming the extra."""
  if importlib.util.find_spec('openai') is None:
    raise ModuleNotFoundError("a chat endpoint needs a package that is not installed: pip install 'mempi_jax[chat]'", name='openai')


def _event(item: Any) -> Event | None:
  if not isinstance(item, dict) or item.get('operation') not in list(Operation):
    return None
  place = item.get('memory')
  return Event(Operation(item['operation']), str(item.get('text') or ''), place if isinstance(place, int) and not isinstance(place, bool) else -1)


def _line(text: str) -> str:
  return ' '.join(text.split())
