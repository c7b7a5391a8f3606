"""Batches of Memory-R1's GRPO: a manager's operations on a store of facts, rewarded by what the frozen agent then achieves (memory/memory_r1.py).

An update draws G facts and samples K operations for each from the current manager. Each is applied to a copy of the store; the agent plays a
train game about the same thing, with what the edited store has to say there; success is the reward [P]. All branches of a group share game
and seed, and the advantage is (r − mean) / (std + epsilon) over the whole completion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import FrozenConfigDict

from mempi_jax.experience.bank import BankEntry
from mempi_jax.memory.mem0 import FactMemory
from mempi_jax.memory.memory_r1 import manager_context, read_operation
from mempi_jax.memory.operations import FactStore
from mempi_jax.policy.policy import GuidancePolicy
from mempi_jax.policy.score import make_scorer
from mempi_jax.rollout.assemble import PackedRow, pack
from mempi_jax.rollout.runner import Runner
from mempi_jax.runtime.rng import host_seed
from mempi_jax.runtime.stopwatch import Stopwatch
from mempi_jax.types import Status, Task, TrainBatch


class ManagerSource:
  """Yields batches of groups.

  Args:
    runner: plays episodes with the frozen agent.
    policy: the manager after SFT; its parameters are the reference, and every step's own parameters go in by `next`.
    entries: whose guidance are the facts to be managed.
    store: what it is managed into; every branch edits a copy.
    memory: how an edited store speaks to the agent.
    tasks: train games to play.
    config: the baselines.memory_r1.grpo group.
    seed: of everything that is drawn.
    subject: what a goal is about: a fact is tried in games about the thing that it was learned of.
  """

  def __init__(
    self,
    runner: Runner,
    policy: GuidancePolicy,
    entries: Sequence[BankEntry],
    store: FactStore,
    memory: FactMemory,
    tasks: Sequence[Task],
    config: FrozenConfigDict,
    *,
    seed: int,
    subject: Callable[[str], str],
  ):
    self.clock = Stopwatch()
    self.runner, self.policy, self.ref_params, self.subject = runner, policy, policy.params, subject
    self.entries, self.store, self.memory, self.config, self.seed = list(entries), store, memory, config, seed
    if config.groups > len(self.entries):
      raise ValueError(f'{config.groups} groups a step cannot be drawn from {len(self.entries)} facts')
    self.places = [store.nearest(entry.guidance, store.shown) for entry in self.entries]
    self.contexts = [
      manager_context(entry.guidance, [store.facts[i] for i in places]) for entry, places in zip(self.entries, self.places, strict=True)
    ]
    games: dict[str, list[Any]] = {}
    for context in runner.contexts(tasks):
      games.setdefault(subject(context.goal), []).append(context)
    self.games = [self._about(games, entry) for entry in self.entries]

  def next(self, step: int, params: Any) -> tuple[TrainBatch, dict[str, float]]:
    """The batch of a step, with metrics of its rollout."""
    config, policy = self.config, self.policy.with_trained(params)
    self.policy = policy
    rng = np.random.default_rng(host_seed(self.seed, 'facts', step))
    chosen = np.sort(rng.permutation(len(self.entries))[: config.groups])
    seeds = [host_seed(self.seed, 'operation', step, int(i)) for i in chosen]
    with self.clock('contents'):
      written = policy.contents([self.contexts[i] for i in chosen], seeds, branches=config.branches, temperature=config.temperature)
    tasks, guidances, readable, changed = [], [], [], []
    for i, group in zip(chosen, written, strict=True):
      game = self.games[i][int(rng.integers(len(self.games[i])))]
      for guidance in group:
        events = read_operation(guidance.text)
        edited = self.store.copy()
        applied = edited.apply(events, self.places[i], self.entries[i].sources)
        tasks.append(game.task)
        guidances.append(self.memory.recall(edited, game))
        readable.append(bool(applied))
        changed.append(edited.facts != self.store.facts)
    with self.clock('rollout'):
      episodes = self.runner.run(tasks, guidances)
    shape = len(chosen), config.branches
    success = np.array([float(episode.success) for episode in episodes]).reshape(shape)
    failed = np.array([episode.status is Status.ENV_ERROR for episode in episodes]).reshape(shape).any(axis=1)
    advantages = (success - success.mean(axis=1, keepdims=True)) / (success.std(axis=1, keepdims=True) + config.epsilon)
    rows = [
      PackedRow(
        policy.prompt(self.contexts[i]),
        [list(guidance.tokens) for guidance in group],
        [float(value) for value in advantage],
        [[float(logp) for logp in guidance.logps] for guidance in group],
      )
      for i, group, advantage in zip(chosen, written, advantages, strict=True)
    ]
    batch = self._pack(rows)
    batch.valid[: len(rows)] = ~failed
    batch.content_mask[~batch.valid] = 0.0
    score = make_scorer(policy.config, policy.generate_id, policy.abstain_id)
    with self.clock('scores'):
      batch.ref_logps[:] = np.asarray(score(self.ref_params, batch))
    metrics = {
      'rollout/success': float(success.mean()),
      'rollout/readable': float(np.mean(readable)),
      'rollout/changed': float(np.mean(changed)),
      'rollout/content_signal': float(np.mean(np.abs(advantages) > 1e-6)),
    }
    return batch, metrics

  def examples(self) -> list[TrainBatch]:
    """An empty batch of the one shape that `next` gives."""
    return [self._pack([])]

  def state(self) -> dict[str, Any]:
    """Nothing: a step's batch depends on the step and the parameters alone."""
    return {}

  def restore(self, state: dict[str, Any]) -> None:
    """Nothing to restore."""

  def _about(self, games: dict[str, list[Any]], entry: BankEntry) -> list[Any]:
    """Contexts of games about the entry's thing, its own one left out where there are others."""
    same = games.get(self.subject(entry.goal), []) or [context for group in games.values() for context in group]
    return [context for context in same if context.task.task_id != entry.task_id] or same

  def _pack(self, rows: Sequence[PackedRow]) -> TrainBatch:
    policy, branches = self.policy, self.config.branches
    return pack(
      rows,
      policy.tokenizer,
      num_rows=self.config.groups,
      row_tokens=policy.max_prompt + branches * (policy.max_content + 2),
      branches=branches,
      max_content=policy.max_content,
    )
