"""Runs a batch of episodes: environments on the host, one agent for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mempi_jax.types import Agent, Context, Decision, Env, Episode, Guidance, Status, Step, Task


def run_episodes(
  make_env: Callable[[], Env],
  agent: Agent,
  tasks: Sequence[Task],
  guidances: Sequence[Guidance],
  max_steps: Sequence[int],
) -> list[Episode]:
  """Plays each task with its guidance, at most max_steps[i] actions each; all episodes run side by side.

  A simulator's exception ends its episode with status ENV_ERROR and leaves the others alone.
  """
  envs = [make_env() for _ in tasks]
  contexts = [env.reset(task) for env, task in zip(envs, tasks, strict=True)]
  session = agent.begin(contexts, guidances, [task.seed for task in tasks])
  observations: list[str | None] = [context.observation for context in contexts]
  steps: list[list[Step]] = [[] for _ in tasks]
  rewards = [0.0] * len(tasks)
  last = [context.observation for context in contexts]
  statuses: list[Status] = [Status.TRUNCATED] * len(tasks)
  while any(observation is not None for observation in observations):
    actions = session.act(observations)
    for i, (observation, action) in enumerate(zip(list(observations), actions, strict=True)):
      if observation is None:
        continue
      if action is None:  # the agent ran out of context
        observations[i] = None
        continue
      try:
        result = envs[i].step(action)
      except Exception:  # noqa: BLE001  whatever a simulator throws is the simulator's fault, not the episode's
        statuses[i], observations[i] = Status.ENV_ERROR, None
        continue
      steps[i].append(Step(observation, action, result.reward))
      rewards[i] += result.reward
      observations[i] = last[i] = result.observation
      if result.done:
        statuses[i] = Status.SUCCESS if result.success else Status.FAILURE
        observations[i] = None
      elif len(steps[i]) >= max_steps[i]:
        observations[i] = None
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
  """The first contexts of tasks, without playing them."""
  env = make_env()
  contexts = [env.reset(task) for task in tasks]
  env.close()
  return contexts
