"""Batches of stage 2, adaptation distillation (method section 3): counterfactual groups, played and turned into advantages.

An update draws G contexts, samples K contents each from the current policy after a forced `[GENERATE]`, plays them beside the cached
abstain outcomes of the same games, estimates the effect of guiding, and packs one row a group: the prompt once, its branches beside it.
`replay` steps may follow it, on the latest groups of contexts that were played before [O]: their decisions with the effects as they are
estimated now, and their contents, whose clipped ratios let a content that was pushed aside by others come back to what its outcome earned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import FrozenConfigDict

from mempi_jax.experience.bank import read_episodes
from mempi_jax.experience.collecting import play_to_log
from mempi_jax.inference.engine import Engine
from mempi_jax.losses.advantages import content_advantages, shape_rewards, vanilla_advantages
from mempi_jax.policy.policy import GuidancePolicy
from mempi_jax.policy.score import decision_states, make_scorer
from mempi_jax.rollout.assemble import PackedRow, pack
from mempi_jax.rollout.effects import EffectEstimator
from mempi_jax.rollout.group import run_groups
from mempi_jax.rollout.runner import Runner
from mempi_jax.runtime.rng import host_seed
from mempi_jax.runtime.stopwatch import Stopwatch
from mempi_jax.types import Context, Episode, Guidance, RolloutGroup, Status, Task, TrainBatch

ABSTAINED = 'abstained.jsonl'


class RolloutSource:
  """Yields batches of counterfactual groups: at every (1 + replay)-th step new ones, in between some that were played before.

  Args:
    runner: plays episodes with the frozen agent.
    tasks: `tasks[i][j]` is context i with the j-th agent seed; j runs over the m cached abstain outcomes.
    policy: of stage 1; its parameters are the reference π_ref, and every step's own parameters go in by `next`.
    config: the stage2 group of the experiment.
    seed: of the order of contexts and of the sampled contents.
    folder: where the cache of abstain outcomes lives.
    retrieve: gives the guidance of every context in the policy's place, and the decision alone is learned (RAG with learned abstention).
    engine: what the agent generates with, where it is a language model of this process: for metrics, and to compile its programs ahead.
  """

  def __init__(
    self,
    runner: Runner,
    tasks: Sequence[Sequence[Task]],
    policy: GuidancePolicy,
    config: FrozenConfigDict,
    *,
    seed: int,
    folder: Path,
    retrieve: Callable[[Sequence[Context]], list[Guidance]] | None = None,
    engine: Engine | None = None,
  ):
    self.engine, self.clock = engine, Stopwatch()
    self.runner, self.tasks, self.config, self.seed, self.retrieve = runner, tasks, config, seed, retrieve
    self.policy, self.ref_params = policy, policy.params
    if config.groups > len(tasks):
      raise ValueError(f'{config.groups} groups a step cannot be drawn from {len(tasks)} contexts')
    flat = [task for runs in tasks for task in runs]
    play_to_log(runner, flat, folder / ABSTAINED, 'abstain cache')
    episodes = iter(read_episodes(folder / ABSTAINED))
    self.abstained: list[list[Episode]] = [[next(episodes) for _ in runs] for runs in tasks]
    self.contexts = [runs[0].context for runs in self.abstained]
    longest = max(len(self.policy.prompt(context)) for context in self.contexts)
    self.prompt_tokens = -(-longest // 8) * 8  # rounded, so that runs share compiled programs
    self.ref_logits, features = decision_states(self.policy, self.contexts)
    self.estimator = EffectEstimator(config.signal, features, **config.estimator)
    for i, runs in enumerate(self.abstained):
      outcomes = [float(episode.success) for episode in runs if episode.status is not Status.ENV_ERROR]
      self.estimator.register(i, outcomes or [0.0])
    self.playable = [any(episode.status is not Status.ENV_ERROR for episode in runs) for runs in self.abstained]
    self.visits = [0] * len(tasks)
    self.rows: dict[int, PackedRow] = {}  # the latest group of each context

  def next(self, step: int, params: Any) -> tuple[TrainBatch, dict[str, float]]:
    """The batch of a step, with metrics of its rollout or of its effects."""
    update, phase = divmod(step, 1 + self.config.replay)
    return self._replayed(update, phase) if phase else self._played(update, params)

  def _played(self, step: int, params: Any) -> tuple[TrainBatch, dict[str, float]]:
    """Plays the groups of update `step`."""
    config = self.config
    chosen = self._contexts_of(step)
    self.policy = self.policy.with_trained(params)
    contexts = [self.contexts[i] for i in chosen]
    # Agent seeds go round the cached ones, so that every group holds the abstain branch of its own seed [O].
    runs = [self.visits[i] % len(self.tasks[i]) for i in chosen]
    tasks = [self.tasks[i][run] for i, run in zip(chosen, runs, strict=True)]
    branch_seeds = [self._branch_seeds(task, step) for task in tasks]
    quiet = [self.abstained[i][run] for i, run in zip(chosen, runs, strict=True)]
    counters = self.engine.counters if self.engine else None
    before = (counters.prefilled, counters.prompt_tokens) if counters else (0, 0)
    content_seeds = [host_seed(self.seed, 'content', step, i) for i in chosen]
    with self.clock('rollout'):
      old_logits = self.policy.decision_logits(contexts)
      if self.retrieve is None:
        contents = self.policy.contents(contexts, content_seeds, branches=config.branches, temperature=config.temperature)
      else:
        contents = [[guidance] * config.branches for guidance in self.retrieve(contexts)]
      groups = run_groups(self.runner, tasks, contents, branch_seeds, quiet)
    for i in chosen:
      self.visits[i] += 1
    valid = [self.playable[i] and not any(e.status is Status.ENV_ERROR for e in group.episodes) for i, group in zip(chosen, groups, strict=True)]
    successes = np.array([[float(e.success) for e in group.episodes[1:]] for group in groups])
    lengths = np.array([[len(e.guidance.tokens) for e in group.episodes[1:]] for group in groups])
    rewards = shape_rewards(
      successes, lengths, form=config.length_form, weight=config.length_weight, max_length=self.policy.max_content
    )
    for i, group, seeds, won, earned, ok in zip(chosen, groups, branch_seeds, successes, rewards, valid, strict=True):
      if ok:
        said = [f'{seed}:{episode.guidance.text}' for seed, episode in zip(seeds, group.episodes[1:], strict=True)]
        self.estimator.observe(i, earned, won, said, step)
    known = [i for i, ok in zip(chosen, valid, strict=True) if ok]
    effects = np.zeros(len(chosen), np.float32)
    if known:
      effects[np.array(valid)] = self.estimator.estimate(known, step)
    abstain_rewards = np.array([float(group.episodes[0].success) for group in groups])
    if config.structured:
      content_adv = content_advantages(
        rewards,
        abstain_rewards,
        scale=config.content_scale,
        epsilon=config.content_epsilon,
        gate=config.content_gate,
        effect=effects,
        negative=config.content_negative,
      )
      if config.coupled:
        content_adv = content_adv + effects[:, None].astype(np.float32)
    else:
      p_generate = 1.0 / (1.0 + np.exp(-old_logits.astype(np.float64)))
      generated = self._decisions(step, chosen, p_generate)
      rewards = np.where(generated, rewards, abstain_rewards[:, None])
      content_adv, effects = vanilla_advantages(rewards, generated, p_generate, epsilon=config.content_epsilon)
    rows = [self._row(i, group, *parts) for i, group, *parts in zip(chosen, groups, content_adv, effects, old_logits, strict=True)]
    batch = self._pack(rows, valid)
    score = make_scorer(self.policy.config, self.policy.generate_id, self.policy.abstain_id)
    with self.clock('scores'):
      batch.ref_logps[:] = np.asarray(score(self.ref_params, batch))
      # The sampler's log-probs beside those that training computes from the same parameters.
      gap = np.abs(np.asarray(score(self.policy.params, batch)) - batch.old_logps)
    sampled = (batch.content_mask > 0) & (self.retrieve is None)
    logp_gap = float(np.max(gap, where=sampled, initial=0.0))
    rows = [dataclasses.replace(row, ref_logps=_unpack(values, row)) for row, values in zip(rows, batch.ref_logps, strict=True)]
    self.rows |= {int(i): row for i, row, ok in zip(chosen, rows, valid, strict=True) if ok}
    metrics = {**self._metrics(groups, successes, rewards, content_adv, valid), 'rollout/logp_gap': logp_gap}
    if counters:  # share of the agent's prompts, turn by turn, that was computed and not found in the cache
      metrics['rollout/prefilled'] = (counters.prefilled - before[0]) / max(counters.prompt_tokens - before[1], 1)
    return batch, metrics

  def _replayed(self, step: int, phase: int) -> tuple[TrainBatch, dict[str, float]]:
    """The latest groups of up to G contexts that were played up to update `step`."""
    seen = np.array(sorted(self.rows), np.int64)
    rng = np.random.default_rng(host_seed(self.seed, 'replay', step, phase))
    chosen = np.sort(rng.permutation(seen)[: self.config.groups])
    effects = self.estimator.estimate(chosen, step) if len(chosen) else np.zeros(0, np.float32)
    rows = [dataclasses.replace(self.rows[int(i)], decision_adv=float(effect)) for i, effect in zip(chosen, effects, strict=True)]
    return self._pack(rows, [True] * len(rows)), {}

  def state(self) -> dict[str, Any]:
    """What was observed and the groups that can be replayed; contexts, seeds and contents are functions of the step."""
    rows = {str(i): dataclasses.asdict(row) for i, row in sorted(self.rows.items())}
    return {'estimator': self.estimator.state(), 'visits': list(self.visits), 'rows': rows}

  def restore(self, state: dict[str, Any]) -> None:
    """Takes what `state` gave."""
    self.estimator.restore(state['estimator'])
    self.visits = list(state['visits'])
    self.rows = {int(i): PackedRow(**row) for i, row in state['rows'].items()}

  def _contexts_of(self, step: int) -> np.ndarray:
    """G contexts, i64[G]: consecutive places in the endless sequence of shuffled epochs, none twice in a step."""
    count, groups = len(self.tasks), self.config.groups
    per_epoch = count // groups
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng(host_seed(self.seed, 'contexts', epoch)).permutation(count)
    return np.sort(order[place * groups : (place + 1) * groups])

  def _decisions(self, step: int, chosen: np.ndarray, p_generate: np.ndarray) -> np.ndarray:
    """Whether each of K branches generates, bool[G, K], drawn from the policy: for the ablation without structured groups."""
    numbers = [np.random.default_rng(host_seed(self.seed, 'decision', step, int(i))).random(self.config.branches) for i in chosen]
    return np.stack(numbers) < p_generate[:, None]

  def _branch_seeds(self, task: Task, step: int) -> list[int]:
    if self.config.branch_seeds == 'shared':
      return [task.seed] * self.config.branches
    return [host_seed(self.seed, 'branch', step, task.task_id, k) for k in range(self.config.branches)]

  def _row(self, context: int, group: RolloutGroup, content_adv: np.ndarray, effect: float, old_logit: float) -> PackedRow:
    said = [episode.guidance for episode in group.episodes[1:]]
    written = self.retrieve is None  # what was retrieved is nobody's sample: a row has its end-of-sequence alone, without advantage
    return PackedRow(
      self.policy.prompt(group.context),
      [list(guidance.tokens) if written else [] for guidance in said],
      [float(advantage) if written else 0.0 for advantage in content_adv],
      [[float(logp) for logp in guidance.logps] if written else [0.0] for guidance in said],
      decision_adv=float(effect),
      ref_logit=float(self.ref_logits[context]),
      old_logit=float(old_logit),
    )

  @property
  def _content_sizes(self) -> tuple[int, int]:
    """A batch has room for short contents, or for any: two shapes, so that most are not padded to the longest."""
    return -(-self.policy.max_content // 2), self.policy.max_content

  def examples(self) -> list[TrainBatch]:
    """An empty batch of every shape that `next` gives."""
    return [self._pack_to([], [], size) for size in self._content_sizes]

  def warm_up(self) -> None:
    """Compiles all that `next` runs, so that nothing is compiled later."""
    if self.engine:
      self.engine.warm_up()
    self.policy.engine.warm_up()
    score = make_scorer(self.policy.config, self.policy.generate_id, self.policy.abstain_id)
    for batch in self.examples():
      score(self.ref_params, batch)

  def _pack(self, rows: Sequence[PackedRow], valid: Sequence[bool]) -> TrainBatch:
    """Rows of the smallest shape that holds them; what is not valid has no part in the loss."""
    longest = max((len(content) for row in rows for content in row.contents), default=0)
    return self._pack_to(rows, valid, next(size for size in self._content_sizes if longest <= size))

  def _pack_to(self, rows: Sequence[PackedRow], valid: Sequence[bool], max_content: int) -> TrainBatch:
    branches = self.config.branches
    batch = pack(
      rows,
      self.policy.tokenizer,
      num_rows=self.config.groups,
      row_tokens=self.prompt_tokens + branches * (max_content + 2),
      branches=branches,
      max_content=max_content,
    )
    batch.valid[: len(rows)] = valid
    batch.content_mask[~batch.valid] = 0.0
    return batch

  def _metrics(
    self,
    groups: Sequence[RolloutGroup],
    successes: np.ndarray,
    rewards: np.ndarray,
    content_adv: np.ndarray,
    valid: Sequence[bool],
  ) -> dict[str, float]:
    texts = [[episode.guidance.text for episode in group.episodes[1:]] for group in groups]
    return {
      'rollout/success_abstain': float(np.mean([group.episodes[0].success for group in groups])),
      'rollout/success_generate': float(successes.mean()),
      'rollout/reward_generate': float(rewards.mean()),
      'rollout/guidance_tokens': float(np.mean([len(e.guidance.tokens) for group in groups for e in group.episodes[1:]])),
      'rollout/distinct_contents': float(np.mean([len(set(said)) for said in texts])),
      'rollout/content_signal': float(np.mean(np.abs(content_adv) > 1e-6)),
      'rollout/env_error_rate': float(1 - np.mean(valid)),
      **self.estimator.diagnostics,
    }


def make_tasks(contexts_tasks: Sequence[Sequence[Task]]) -> list[list[Task]]:
  """Transposes runs over contexts into contexts over runs: `tasks[i][j]` is context i under its j-th agent seed."""
  return [list(runs) for runs in zip(*contexts_tasks, strict=True)]


def _unpack(values: np.ndarray, row: PackedRow) -> list[list[float]]:
  """Values of one row of a batch, f32[C], as lists, one a branch: the tokens of its content and end-of-sequence."""
  width = len(values) // max(len(row.contents), 1)
  return [values[k * width : k * width + len(content) + 1].tolist() for k, content in enumerate(row.contents)]
