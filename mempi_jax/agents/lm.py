"""The frozen agent as an in-process language model: it acts by generating text, many episodes at once, its cache kept over turns."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mempi_jax.inference.cache import CACHE_DTYPES
from mempi_jax.inference.engine import Engine
from mempi_jax.inference.requests import Finish, Request, Ticket
from mempi_jax.models.decoder import DecoderConfig
from mempi_jax.models.hf import load_model
from mempi_jax.models.quantize import quantize_params
from mempi_jax.models.vocabulary import check_vocabulary
from mempi_jax.policy.template import NEWLINE, agent_prompt, agent_turn
from mempi_jax.policy.tokenizer import Tokenizer
from mempi_jax.types import Context, Guidance

WEIGHTS = ('float32', 'int8')  # as the checkpoint is read, or its matrices rounded: models/quantize.py


class LMAgent:
  """An agent that writes its next action as text, after `>`, up to the end of the line."""

  def __init__(
    self,
    config: DecoderConfig,
    params: Any,
    tokenizer: Tokenizer,
    *,
    context_length: int,
    max_action_tokens: int,
    temperature: float,
    batch_size: int = 256,
    weights: str = 'float32',
    cache_kind: str = 'model',
  ):
    """Of `params` (unrolled layout) it keeps what it generates with: `weights`, of `WEIGHTS`, says how; `cache_kind`: see `Engine`.

    `batch_size` episodes have a place in the cache side by side; more may run, and wait for one.
    """
    check_kinds(weights, cache_kind)
    check_vocabulary(config.vocab_size, tokenizer.vocab_size)
    self.config, self.tokenizer, self.batch_size = config, tokenizer, batch_size
    self.params = quantize_params(params) if weights == 'int8' else params
    self.context_length, self.max_action_tokens, self.temperature = context_length, max_action_tokens, temperature
    self.weights, self.cache_kind = weights, cache_kind

  @functools.cached_property
  def engine(self) -> Engine:
    """What it generates with: made when it is first needed, and kept."""
    return Engine(self.config, self.params, slots=self.batch_size, max_length=self.context_length, cache_kind=self.cache_kind)

  def fingerprint(self) -> str:
    """Hash of everything that decides what this agent does: part of the abstain cache's key and of the manifest."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(self.params):
      digest.update(np.asarray(leaf).tobytes())
    settings = (self.context_length, self.max_action_tokens, self.temperature, self.weights, self.cache_kind)
    digest.update(repr((self.config, self.tokenizer.fingerprint(), *settings)).encode())
    return digest.hexdigest()[:16]

  def begin(self) -> LMAgentSession:
    """A session without episodes. What earlier ones left in the cache is forgotten: its actions are a function of its episodes alone."""
    self.engine.forget()
    return LMAgentSession(self)


class LMAgentSession:
  """Running episodes of an `LMAgent`: each one's transcript goes on in its slot of the engine, token in, token out."""

  def __init__(self, agent: LMAgent):
    self.agent = agent
    self.newline = agent.tokenizer.encode(NEWLINE)[-1]
    self.transcripts: dict[int, list[int]] = {}
    self.seeds: dict[int, int] = {}
    self.tickets: dict[int, Ticket] = {}  # of the actions that are owed
    self.full: list[int] = []  # episodes out of context that nobody was told of yet

  def start(self, key: int, context: Context, guidance: Guidance, seed: int) -> None:
    """See `types.AgentSession`."""
    self.transcripts[key], self.seeds[key] = agent_prompt(self.agent.tokenizer, context, guidance), int(seed)
    self._ask(key)

  def observe(self, key: int, observation: str) -> None:
    """See `types.AgentSession`."""
    transcript = self.transcripts[key]
    if transcript[-1] != self.newline:
      transcript.append(self.newline)
    transcript += agent_turn(self.agent.tokenizer, observation)
    self._ask(key)

  def act(self) -> list[tuple[int, str | None]]:
    """See `types.AgentSession`."""
    actions: list[tuple[int, str | None]] = [(key, None) for key in self.full]
    self.full = []
    while not actions and self.tickets:
      self.agent.engine.step()
      for key, ticket in [(key, ticket) for key, ticket in self.tickets.items() if ticket.result is not None]:
        del self.tickets[key]
        if ticket.result.finish is Finish.ERROR:
          raise FloatingPointError(ticket.result.error)
        self.transcripts[key] += ticket.result.tokens
        actions.append((key, ' '.join(self.agent.tokenizer.decode(list(ticket.result.tokens)).split())))
    return actions

  def end(self, key: int) -> None:
    """See `types.AgentSession`."""
    self.agent.engine.close_session((id(self), key))
    for part in (self.transcripts, self.seeds):
      part.pop(key, None)
    self.full = [other for other in self.full if other != key]
    if ticket := self.tickets.pop(key, None):
      ticket.cancel()

  def _ask(self, key: int) -> None:
    """Queues the next action, if it fits into the context."""
    agent, transcript = self.agent, self.transcripts[key]
    if len(transcript) + agent.max_action_tokens > agent.context_length:
      self.full.append(key)
      return
    request = Request(
      list(transcript),
      agent.max_action_tokens,
      seed=self.seeds[key],
      temperature=agent.temperature,
      stop=((self.newline,),),
      session=(id(self), key),
    )
    self.tickets[key] = agent.engine.submit(request)


def check_kinds(weights: str, cache_kind: str) -> None:
  """Raises ValueError for a kind of weights or of cache that there is not, naming those there are."""
  for name, kind, known in (('weights', weights, WEIGHTS), ('cache', cache_kind, CACHE_DTYPES)):
    if kind not in known:
      raise ValueError(f"the agent's {name} {kind!r}: expected one of {', '.join(known)}")


def load_agent(
  folder: str | Path,
  *,
  context_length: int,
  max_action_tokens: int,
  temperature: float,
  batch_size: int = 256,
  weights: str = 'float32',
  cache_kind: str = 'model',
) -> LMAgent:
  """An agent from a folder with config.json, model.safetensors and tokenizer.json. Errors: see `load_model`, `check_kinds`."""
  check_kinds(weights, cache_kind)
  config, params = load_model(folder)
  return LMAgent(
    config,
    params,
    Tokenizer.load(folder),
    context_length=context_length,
    max_action_tokens=max_action_tokens,
    temperature=temperature,
    batch_size=batch_size,
    weights=weights,
    cache_kind=cache_kind,
  )


def checkpoint_hash(folder: str | Path) -> str:
  """SHA-256 of an agent's weights file and configuration, as the manifest records it."""
  digest = hashlib.sha256()
  for name in ('config.json', 'model.safetensors', 'tokenizer.json'):
    digest.update(json.dumps(name).encode() + (Path(folder) / name).read_bytes())
  return digest.hexdigest()[:16]
