"""Runs the agent over train games and distils what happened into the bank; resumable, in chunks of games (method section 1)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from mempi_jax.experience.bank import (
  BANK,
  EPISODES,
  BankEntry,
  check_bank,
  distill_entries,
  episode_record,
  keep_image,
  read_bank,
  read_episodes,
)
from mempi_jax.experience.card import write_with_card
from mempi_jax.experience.corrupt import corrupt
from mempi_jax.experience.dedup import DEDUP, deduplicate
from mempi_jax.experience.distiller import Distill, Distiller, distiller_of
from mempi_jax.rollout.episode import abstained
from mempi_jax.rollout.runner import Runner
from mempi_jax.runtime import files, hosts
from mempi_jax.runtime.metrics import progress
from mempi_jax.types import Task


def play_to_log(runner: Runner, tasks: Sequence[Task], path: Path, description: str) -> None:
  """Plays tasks without guidance and appends their episodes to a JSONL log, going on where the log ends; screenshots go beside it.

  Raises ValueError when the log holds other tasks than these.
  """
  expected = [(task.task_id, task.seed) for task in tasks]
  done = files.read_started(path, expected, lambda record: (record['task_id'], record['seed']))
  with files.JsonlLog(path) as log, progress(len(tasks), description, initial=len(done)) as bar:
    left = tasks[len(done) :]
    for episode in runner.stream(left, abstained(len(left))):
      log.append(keep_image(episode_record(episode), episode, path.parent))
      bar.update()
  hosts.barrier()  # all may read it now


def collect_bank(
  runner: Runner,
  tasks: Sequence[Task],
  folder: Path,
  test_games: Collection[str],
  *,
  distill: Distill | Distiller,
  corruption: float = 0.0,
  pattern: re.Pattern[str] | None = None,
  silent: bool = False,
  dedup: str = 'none',
  kind: Callable[[Task], str] | None = None,
  seed: int = 0,
) -> list[BankEntry]:
  """Plays `tasks` once each without guidance and writes the bank; a finished bank is read back.

  Args:
    runner: plays.
    tasks: of the train split.
    folder: where the bank lives.
    test_games: ids that must not be in it.
    distill: what turns an episode into guidance: `Suite.distill`, or a `Distiller`, such as a chat model.
    corruption: the share of hints that are made wrong, see `corrupt`.
    pattern: what is wrong in a wrong hint, see there.
    silent: see `distill_entries`.
    dedup: of DEDUP, see `deduplicate`.
    kind: of a task (`TaskSpec.kind`), for the entries; None: they say none.
    seed: decides which hints.

  Raises BankError when a task is a test game, ValueError for an unknown `dedup`, and what the distiller raises.
  """
  if dedup not in DEDUP:
    raise ValueError(f'unknown deduplication {dedup!r}: expected one of {", ".join(DEDUP)}')
  if files.read_done(folder) is None:
    play_to_log(runner, tasks, folder / EPISODES, 'collect')

    def write() -> dict[str, Any]:
      distiller = distiller_of(distill)
      entries = distill_entries(read_episodes(folder / EPISODES), distiller, silent=silent)
      entries = deduplicate(_described(entries, folder / EPISODES, kind), dedup)
      entries = corrupt(entries, corruption, seed, pattern=pattern)
      check_bank(entries, test_games)
      made = {'by': 'collect', 'episodes': len(tasks), 'seed': seed, 'corruption': corruption, 'dedup': dedup, 'distillation': distiller.report()}
      write_with_card(folder, entries, made)
      solved = sum(entry.solved_alone for entry in entries)
      return {'episodes': len(tasks), 'entries': len(entries), 'solved_alone': solved, 'bank': files.hash_file(folder / BANK)}

    files.mark_done(folder, hosts.broadcast(write))  # one host writes: a model that distils says other things to each
  return read_bank(folder, test_games)


def _described(entries: Sequence[BankEntry], log: Path, kind: Callable[[Task], str] | None) -> list[BankEntry]:
  """The entries with the kinds of their tasks and the names of their screenshots."""
  images = {(record['task_id'], record['seed']): record['image'] for record in files.read_jsonl(log) if 'image' in record}
  return [
    dataclasses.replace(
      entry, kind=kind(entry.context.task) if kind is not None else '', image=images.get((entry.task_id, entry.seed), '')
    )
    for entry in entries
  ]
