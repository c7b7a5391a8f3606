"""A memory that learns from its own episodes: batch after batch, each guided by what those before it taught."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mempi_jax.experience.bank import episode_of, episode_record
from mempi_jax.rollout.runner import Runner
from mempi_jax.runtime import files, hosts
from mempi_jax.runtime.metrics import progress
from mempi_jax.types import Memory, Task


def learn_online(
  memory: Memory,
  runner: Runner,
  batches: Sequence[Sequence[Task]],
  path: Path,
  *,
  seed: int,
  notes: Sequence[Mapping[str, Any]] | None = None,
) -> None:
  """Plays batches of tasks with the memory's guidance, lets it observe them, and appends the episodes to a JSONL log.

  What the log holds is observed again, and not played again: that is how a memory comes back to what it had learned. `notes` are fields that
  the records of each batch get besides.

  Raises ValueError when the log holds other episodes than these.
  """
  expected = [(task.task_id, task.seed) for batch in batches for task in batch]
  done = files.read_started(path, expected, lambda record: (record['task_id'], record['seed']))
  with files.JsonlLog(path) as log, progress(len(expected), memory.name, initial=len(done)) as bar:
    start = 0
    for batch, note in zip(batches, notes or [{}] * len(batches), strict=True):
      guidances = memory.guide(runner.contexts(batch), seed)
      recorded = done[start : start + len(batch)]
      start += len(batch)
      if len(recorded) == len(batch):
        memory.observe([episode_of(record) for record in recorded])
        continue
      episodes = runner.run(batch, guidances)
      for episode in episodes[len(recorded) :]:  # a batch that was half written is played again as a whole: the same numbers either way
        log.append({**note, **episode_record(episode)})
      bar.update(len(batch) - len(recorded))
      memory.observe(episodes)
  hosts.barrier()  # all may read it now
