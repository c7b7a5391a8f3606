"""Runs any number of episodes in batches of one size, and runs each distinct one once.

An episode is a function of its task, its seed and its guidance's text: the agent samples with the task's seed and sees nothing else. So
branches that say the same share one run, and a run may be remembered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from mempi_jax.rollout.episode import run_episodes
from mempi_jax.types import Agent, Decision, Env, Episode, Guidance, Task


class Runner:
  """Plays tasks with one frozen agent.

  Args:
    make_env: makes one environment; called once a row of a batch.
    agent: the frozen agent.
    max_steps: most actions an episode of a task may take.
    batch_size: episodes that run side by side.
    remember: keep every finished episode, and answer a repeated one from memory (evaluation, where memories often say the same).
  """

  def __init__(
    self, make_env: Callable[[], Env], agent: Agent, max_steps: Callable[[Task], int], batch_size: int, *, remember: bool = False
  ):
    self.make_env, self.agent, self.max_steps, self.batch_size = make_env, agent, max_steps, batch_size
    self._memory: dict[tuple[str, int, str], Episode] | None = {} if remember else None
    self.episodes_run = 0  # distinct episodes that were really played
    self.steps_run = 0  # their actions

  def run(self, tasks: Sequence[Task], guidances: Sequence[Guidance]) -> list[Episode]:
    """One episode for each task with its guidance, in order; repeated (task, seed, text) are played once."""
    keys = [(task.task_id, task.seed, spoken_text(guidance)) for task, guidance in zip(tasks, guidances, strict=True)]
    played: dict[tuple[str, int, str], Episode] = {}
    waiting: dict[tuple[str, int, str], int] = {}
    for i, key in enumerate(keys):
      if self._memory is not None and key in self._memory:
        played[key] = self._memory[key]
      elif key not in waiting:
        waiting[key] = i
    todo = list(waiting.values())
    for start in range(0, len(todo), self.batch_size):
      part = todo[start : start + self.batch_size]
      chosen = [tasks[i] for i in part]
      episodes = run_episodes(self.make_env, self.agent, chosen, [guidances[i] for i in part], [self.max_steps(task) for task in chosen])
      played.update({keys[i]: episode for i, episode in zip(part, episodes, strict=True)})
      self.episodes_run += len(part)
      self.steps_run += sum(len(episode.steps) for episode in episodes)
    if self._memory is not None:
      self._memory.update(played)
    return [dataclasses.replace(played[key], guidance=guidance) for key, guidance in zip(keys, guidances, strict=True)]


def spoken_text(guidance: Guidance) -> str:
  """What of the guidance reaches the agent's prompt: nothing after ABSTAIN."""
  return guidance.text if guidance.decision is Decision.GENERATE else ''
