"""A chat model behind an OpenAI-compatible endpoint as the manager of a store of facts (Mem0's update step, arXiv 2504.19413).

What the model answers is untrusted: only the four operations, on the memories that it was shown, come out of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from mempi_jax.memory.operations import Event, Operation
from mempi_jax.runtime import hosts
from mempi_jax.runtime.endpoint import Endpoint

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
  found = json_object(answer).get('events')
  return [event for item in found if (event := _event(item)) is not None] if isinstance(found, list) else []


def json_object(answer: str) -> dict[str, Any]:
  """The JSON object in an answer, whatever stands around it; an empty one where there is none that can be read."""
  match = re.search(r'\{.*\}', answer, re.DOTALL)
  try:
    found = json.loads(match.group()) if match else None
  except (ValueError, RecursionError):
    found = None
  return found if isinstance(found, dict) else {}


def connect(url: str, model: str, *, timeout: float, retries: int, max_tokens: int) -> Complete:
  """Calls of a model at an endpoint, greedy. The key comes from OPENAI_API_KEY; a local server needs none.

  Of several hosts the first one asks, and all get its answer: a model does not say the same twice. Raises ValueError for an address that is
  none; a call raises EndpointError when it failed for good, and Preempted where the run was asked to end.
  """
  endpoint = Endpoint(url, model, {'temperature': 0.0, 'max_tokens': max_tokens}, timeout=timeout, retries=retries)
  ask = lambda system, user: endpoint.complete([{'role': 'system', 'content': system}, {'role': 'user', 'content': user}]).text
  return lambda system, user: hosts.broadcast(lambda: ask(system, user))


def _event(item: Any) -> Event | None:
  if not isinstance(item, dict) or item.get('operation') not in list(Operation):
    return None
  place = item.get('memory')
  return Event(Operation(item['operation']), str(item.get('text') or ''), place if isinstance(place, int) and not isinstance(place, bool) else -1)


def _line(text: str) -> str:
  return ' '.join(text.split())
