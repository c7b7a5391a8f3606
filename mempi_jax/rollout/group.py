"""Counterfactual groups: one abstain branch and K generate branches of the same task (method section 3, "Structured counterfactual group")."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mempi_jax.rollout.runner import Runner
from mempi_jax.types import Decision, Episode, Guidance, RolloutGroup, Task


def run_groups(
  runner: Runner,
  tasks: Sequence[Task],
  contents: Sequence[Sequence[Guidance]],
  branch_seeds: Sequence[Sequence[int]],
  abstained: Sequence[Episode],
) -> list[RolloutGroup]:
  """Plays the generate branches of each task and puts them beside its abstain branch.

  Args:
    runner: plays them.
    tasks: one a group.
    contents: K guidances a group, all GENERATE.
    branch_seeds: K agent seeds a group. All equal to the task's in a real group [O]: what differs is the guidance alone. A world where
      guidance cannot act needs different ones, or every branch of a group would be the same episode.
    abstained: the abstain branch of each group: the agent is frozen, so it was played before and is taken from a cache.
  """
  flat_tasks = [
    dataclasses.replace(task, seed=seed) for task, seeds, group in zip(tasks, branch_seeds, contents, strict=True) for seed in seeds[: len(group)]
  ]
  flat = [guidance for group in contents for guidance in group]
  if any(guidance.decision is not Decision.GENERATE for guidance in flat):
    raise ValueError('every branch of `contents` must generate; the abstain branch comes from `abstained`')
  episodes = iter(runner.run(flat_tasks, flat))
  return [
    RolloutGroup(quiet.context, (quiet, *(next(episodes) for _ in group))) for group, quiet in zip(contents, abstained, strict=True)
  ]
