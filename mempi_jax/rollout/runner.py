"""Runs any number of episodes, a fixed number side by side, and runs each distinct one once.

An episode is a function of its task, its seed and its guidance's text: the agent samples with the task's seed and sees nothing else. So
branches that say the same share one run, and a run may be remembered. On several hosts each plays a share, and all get all episodes; all
episodes of a task, and so of a group, are played by one host.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

from mempi_jax.rollout.episode import read_contexts, stream_episodes
from mempi_jax.runtime import hosts
from mempi_jax.types import Agent, Context, Decision, Env, Episode, Guidance, Status, Task

Key = tuple[str, int, str, int]

BATCHES = 4  # that a host plays between exchanges with the others


class Runner:
  """Plays tasks with one frozen agent.

  Args:
    make_env: makes one environment.
    agent: the frozen agent.
    max_steps: most actions an episode of a task may take.
    batch_size: episodes that run side by side.
    workers: threads for the environments, see `stream_episodes`.
    remember: keep every finished episode, and answer a repeated one from memory (evaluation, where memories often say the same). One whose
      environment failed is not finished.
    retries: how often an episode whose environment failed is played again, see `stream_episodes`.
  """

  def __init__(
    self,
    make_env: Callable[[], Env],
    agent: Agent,
    max_steps: Callable[[Task], int],
    batch_size: int,
    *,
    workers: int = 0,
    remember: bool = False,
    retries: int = 0,
  ):
    self.make_env, self.agent, self.max_steps = make_env, agent, max_steps
    self.batch_size, self.workers, self.retries = batch_size, workers, retries
    self._memory: dict[Key, Episode] | None = {} if remember else None
    self.episodes_run = 0  # distinct episodes that were really played
    self.steps_run = 0  # their actions

  def contexts(self, tasks: Sequence[Task]) -> list[Context]:
    """The first contexts of tasks, see `read_contexts`."""
    read = lambda part: read_contexts(self.make_env, part, workers=self.workers, retries=self.retries)
    return hosts.spread(read, tasks)

  def run(self, tasks: Sequence[Task], guidances: Sequence[Guidance]) -> list[Episode]:
    """One episode for each task with its guidance, in order; repeated (task, seed, text, extra steps) are played once."""
    return list(self.stream(tasks, guidances))

  def stream(self, tasks: Sequence[Task], guidances: Sequence[Guidance]) -> Iterator[Episode]:
    """The episodes of `run`, in order, each as soon as it and those before it have ended."""
    keys = [
      (task.task_id, task.seed, spoken_text(guidance), guidance.extra_steps) for task, guidance in zip(tasks, guidances, strict=True)
    ]
    played: dict[Key, Episode] = {}
    first: dict[Key, int] = {}  # where each distinct episode stands that is to be played
    for i, key in enumerate(keys):
      if self._memory is not None and key in self._memory:
        played[key] = self._memory[key]
      elif key not in first:
        first[key] = i
    todo = list(first.values())
    chosen, spoken = [tasks[i] for i in todo], [guidances[i] for i in todo]
    caps = [self.max_steps(task) + guidance.extra_steps for task, guidance in zip(chosen, spoken, strict=True)]
    episodes = self._play(chosen, spoken, caps)
    with contextlib.closing(episodes):
      for key, guidance in zip(keys, guidances, strict=True):
        while key not in played:
          number, episode = next(episodes)
          played[keys[todo[number]]] = episode
          self.episodes_run += 1
          self.steps_run += len(episode.steps)
          if self._memory is not None and episode.status is not Status.ENV_ERROR:
            self._memory[keys[todo[number]]] = episode
        yield dataclasses.replace(played[key], guidance=guidance)


  def _play(self, tasks: Sequence[Task], guidances: Sequence[Guidance], caps: Sequence[int]) -> Iterator[tuple[int, Episode]]:
    """`stream_episodes`, shared out where there are several hosts: some batches' worth at a time."""

    def play(part: Sequence[tuple[Task, Guidance, int]]) -> Iterator[tuple[int, Episode]]:
      return stream_episodes(
        self.make_env, self.agent, *(list(column) for column in zip(*part, strict=True)),
        side_by_side=self.batch_size, workers=self.workers, retries=self.retries,
      )  # fmt: skip

    work, task_of = list(zip(tasks, guidances, caps, strict=True)), lambda item: item[0].task_id
    if hosts.count() == 1 or not work:
      yield from play(work) if work else ()
      return
    in_order = lambda part: [episode for _, episode in sorted(play(part), key=lambda pair: pair[0])]
    for start, end in hosts.stretches(work, -(-len(work) // (BATCHES * self.batch_size * hosts.count())), task_of):
      if start < end:
        yield from enumerate(hosts.spread(in_order, work[start:end], same=task_of), start)


def spoken_text(guidance: Guidance) -> str:
  """What of the guidance reaches the agent's prompt: nothing after ABSTAIN."""
  return guidance.text if guidance.decision is Decision.GENERATE else ''
