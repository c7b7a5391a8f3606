"""The frozen agent as an in-process language model: it acts by generating text, many episodes at once, its cache kept over turns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mempi_jax.inference.engine import Rows
from mempi_jax.models.decoder import DecoderConfig
from mempi_jax.models.hf import load_model
from mempi_jax.models.vocabulary import check_vocabulary
from mempi_jax.policy.template import NEWLINE, TURN, agent_prompt, agent_turn
from mempi_jax.policy.tokenizer import Tokenizer
from mempi_jax.types import Context, Guidance

BATCH_BUCKETS = (8, 16, 32, 64, 128, 256, 512, 1024)


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
  ):
    check_vocabulary(config.vocab_size, tokenizer.vocab_size)
    self.config, self.params, self.tokenizer = config, params, tokenizer
    self.context_length, self.max_action_tokens, self.temperature = context_length, max_action_tokens, temperature

  def fingerprint(self) -> str:
    """Hash of everything that decides what this agent does: part of the abstain cache's key and of the manifest."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(self.params):
      digest.update(np.asarray(leaf).tobytes())
    limits = (self.context_length, self.max_action_tokens, self.temperature)
    digest.update(repr((self.config, self.tokenizer.fingerprint(), *limits)).encode())
    return digest.hexdigest()[:16]

  def begin(self, contexts: Sequence[Context], guidances: Sequence[Guidance], seeds: Sequence[int]) -> LMAgentSession:
    """Starts one row an episode."""
    prompts = [agent_prompt(self.tokenizer, c, g) for c, g in zip(contexts, guidances, strict=True)]
    return LMAgentSession(self, prompts, seeds)


class LMAgentSession:
  """A batch of running episodes of an `LMAgent`. Finished rows leave the batch when half of it is idle."""

  def __init__(self, agent: LMAgent, prompts: list[list[int]], seeds: Sequence[int]):
    self.agent = agent
    self.waiting: list[list[int] | None] = [list(prompt) for prompt in prompts]
    self.seeds = [int(seed) for seed in seeds]
    self.newline = agent.tokenizer.encode(NEWLINE)[-1]
    self.turn = agent.tokenizer.encode(TURN)
    self.slots = list(range(len(prompts)))  # slots[i]: the episode that row i of the cache runs
    size = next((b for b in BATCH_BUCKETS if b >= len(prompts)), len(prompts))
    self.rows = Rows(agent.config, agent.params, size, agent.context_length)
    self.slots += [-1] * (size - len(prompts))
    self.last: list[list[int]] = [[] for _ in prompts]

  def act(self, observations: Sequence[str | None]) -> list[str | None]:
    """One action a row. On the first call the observations are already part of the prompts and only say which rows are alive."""
    agent = self.agent
    chunks: list[list[int]] = []
    for episode, observation in enumerate(observations):
      if observation is None:
        chunks.append([])
      elif self.waiting[episode] is not None:
        chunks.append(self.waiting[episode])
        self.waiting[episode] = None
      else:
        end = self.last[episode][-1:]
        chunks.append([*end, *([] if end == [self.newline] else [self.newline]), *agent_turn(agent.tokenizer, observation)])
    self._compact([episode for episode, chunk in enumerate(chunks) if chunk])
    per_slot: list[list[int]] = []
    for row, episode in enumerate(self.slots):
      chunk = chunks[episode] if episode >= 0 else []
      fits = self.rows.lengths[row] + len(chunk) + agent.max_action_tokens <= agent.context_length
      per_slot.append(chunk if fits else [])
    actions: list[str | None] = [None] * len(observations)
    if any(per_slot):
      seeds = [self.seeds[episode] if episode >= 0 else 0 for episode in self.slots]
      out = self.rows.generate(per_slot, seeds, max_new=agent.max_action_tokens, stop=self.newline, temperature=agent.temperature)
      for row, episode in enumerate(self.slots):
        if per_slot[row]:
          self.last[episode] = out.tokens[row]
          actions[episode] = ' '.join(agent.tokenizer.decode(out.tokens[row]).split())
    return actions

  def _compact(self, alive: list[int]) -> None:
    """Halves the batch as long as half of its rows are idle."""
    size = len(self.slots)
    while size > BATCH_BUCKETS[0] and len(alive) <= size // 2:
      size //= 2
    if size < len(self.slots):
      running = set(alive)
      keep = [row for row, episode in enumerate(self.slots) if episode in running]
      spare = [row for row, episode in enumerate(self.slots) if episode not in running][: size - len(keep)]
      self.rows.select(keep + spare)
      self.slots = [self.slots[row] for row in keep] + [-1] * len(spare)


def load_agent(folder: str | Path, *, context_length: int, max_action_tokens: int, temperature: float) -> LMAgent:
  """An agent from a folder with config.json, model.safetensors and tokenizer.json. Errors: see `load_model`."""
  config, params = load_model(folder)
  return LMAgent(
    config,
    params,
    Tokenizer.load(folder),
    context_length=context_length,
    max_action_tokens=max_action_tokens,
    temperature=temperature,
  )


def checkpoint_hash(folder: str | Path) -> str:
  """SHA-256 of an agent's weights file and configuration, as the manifest records it."""
  digest = hashlib.sha256()
  for name in ('config.json', 'model.safetensors', 'tokenizer.json'):
    digest.update(json.dumps(name).encode() + (Path(folder) / name).read_bytes())
  return digest.hexdigest()[:16]
