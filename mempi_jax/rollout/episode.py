"""Runs a batch of episodes: environments on the host, one agent for all of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from mempi_jax.types import Agent, Context, Decision, Env, Episode, Guidance, Status, Step, Task

_logger = logging.getLogger(__name__)


def run_episodes(
  make_env: Callable[[], Env],
  agent: Agent,
  tasks: Sequence[Task],
  guidances: Sequence[Guidance],
  max_steps: Sequence[int],
) -> list[Episode]:
  """Plays each task with its guidance, at most max_steps[i] actions each; all episodes run side by side.

  A simulator's exception, at reset or at a step, ends its episode with status ENV_ERROR, leaves the others alone and is logged. An
  episode whose reset failed has a context without goal and observation. What `make_env` or the agent raises is passed on.

  Raises ValueError when the numbers of tasks, guidances and step caps differ.
  """
  if not len(tasks) == len(guidances) == len(max_steps):
    raise ValueError(f'{len(tasks)} tasks, {len(guidances)} guidances and {len(max_steps)} step caps: expected as many of each')
  envs = [make_env() for _ in tasks]
  contexts = [Context(task, '', '') for task in tasks]
  observations: list[str | None] = [None] * len(tasks)
  steps: list[list[Step]] = [[] for _ in tasks]
  rewards = [0.0] * len(tasks)
  last = [''] * len(tasks)
  statuses: list[Status] = [Status.TRUNCATED] * len(tasks)

  def fail(i: int, error: Exception) -> None:
    _logger.warning('task %s: the environment failed after %d steps: %r', tasks[i].task_id, len(steps[i]), error)
    statuses[i], observations[i] = Status.ENV_ERROR, None

  try:
    for i, (env, task) in enumerate(zip(envs, tasks, strict=True)):
      try:
        contexts[i] = env.reset(task)
      except Exception as error:  # noqa: BLE001  whatever a simulator throws is the simulator's fault, not the episode's
        fail(i, error)
      else:
        last[i] = contexts[i].observation
        observations[i] = last[i] if max_steps[i] > 0 else None
    # The agent sees the episodes that began, and no others.
    begun = [i for i, observation in enumerate(observations) if observation is not None]
    session = agent.begin([contexts[i] for i in begun], [guidances[i] for i in begun], [tasks[i].seed for i in begun])
    while any(observation is not None for observation in observations):
      seen = [observations[i] for i in begun]
      for i, observation, action in zip(begun, seen, session.act(seen), strict=True):
        if observation is None:
          continue
        if action is None:  # the agent ran out of context
          observations[i] = None
          continue
        try:
          result = envs[i].step(action)
        except Exception as error:  # noqa: BLE001  as above
          fail(i, error)
          continue
        steps[i].append(Step(observation, action, result.reward))
        rewards[i] += result.reward
        observations[i] = last[i] = result.observation
        if result.done:
          statuses[i] = Status.SUCCESS if result.success else Status.FAILURE
          observations[i] = None
        elif len(steps[i]) >= max_steps[i]:
          observations[i] = None
  finally:
    for env in envs:
      env.close()
  return [
    Episode(context, guidance, tuple(taken), reward, status is Status.SUCCESS, status, seen)
    for context, guidance, taken, reward, status, seen in zip(contexts, guidances, steps, rewards, statuses, last, strict=True)
  ]


def abstained(count: int) -> list[Guidance]:
  """No guidance, `count` times."""
  return [Guidance(Decision.ABSTAIN)] * count


def read_contexts(make_env: Callable[[], Env], tasks: Sequence[Task]) -> list[Context]:
  """The first contexts of tasks, without playing them. What a reset raises is passed on: there is nothing to go on with."""
  env = make_env()
  try:
    return [env.reset(task) for task in tasks]
  finally:
    env.close()
