"""What a run of a sweep takes over from another run of it: the parts that depend on nothing in which the two differ.

Runs of an ablation differ in a field of stage 2, say: bank and stage 1 are then the same, and so are the episodes of the agent alone. A part is
taken from a run that has finished it, as a copy, before the run starts; the run finds it there and goes on, as one does that was
killed. Its numbers are those that it would have come to by itself.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mempi_jax.config import flatten
from mempi_jax.runtime import files

PLAY = ('world', 'seed', 'agent')  # what decides a game, and how the agent plays it
TRAIN_GAMES = 'train_games'  # how many there are, which follows from three fields


@dataclasses.dataclass(frozen=True)
class Part:
  """`paths` of a working folder, finished once DONE.json is in `done`; equal in runs whose `fields` (or whole groups) are equal."""

  done: str
  paths: tuple[str, ...]
  fields: tuple[str, ...]


PARTS = (
  Part('bank', ('bank',), (*PLAY, 'bank')),
  Part('bank', ('bank/episodes.jsonl',), (*PLAY, 'bank.games')),  # where the banks differ in what was made of their episodes
  Part('stage1', ('stage1', 'untrained'), (*PLAY, 'bank', 'policy', 'stage1', 'mesh', 'eval.memories')),
  Part('stage2', ('stage2/abstained.jsonl',), (*PLAY, 'stage2.games', 'stage2.abstain_outcomes')),
  Part('stage2', ('stage2/probes.jsonl',), (*PLAY, TRAIN_GAMES, 'stage2.probe_games', 'stage2.probe_runs')),
  Part('mem0', ('mem0',), (*PLAY, 'bank', 'baselines.mem0', 'baselines.manager')),
  Part('memory_r1', ('memory_r1',), (*PLAY, 'bank', 'policy', 'mesh', 'baselines.memory_r1')),
  Part('memrl', ('memrl',), (*PLAY, 'bank', 'baselines.memrl')),
  Part('reasoning_bank', ('reasoning_bank',), (*PLAY, 'bank.games', 'baselines.manager')),
  Part('awm', ('awm',), (*PLAY, 'bank.games', 'baselines.awm.examples', 'baselines.manager')),
  Part('eval', ('eval/base_runs.jsonl',), (*PLAY, 'eval.games.heldout_games', 'eval.difficulty_runs')),
)


def take_over(config: ConfigDict, workdir: Path, others: Sequence[tuple[ConfigDict, Path]]) -> list[str]:
  """Copies into `workdir` what it lacks and one of the others has finished; returns the paths.

  Args:
    config: of the run.
    workdir: its folder; what is there already stays.
    others: configs and folders of the sweep's other runs, finished or not.
  """
  mine, taken = _fields(config), []
  theirs = [(_fields(other), folder) for other, folder in others if folder != workdir]
  for part in PARTS:
    if (workdir / part.paths[0]).exists():
      continue
    for fields, folder in theirs:
      if _chosen(mine, part.fields) == _chosen(fields, part.fields) and files.read_done(folder / part.done) is not None:
        present = [path for path in part.paths if (folder / path).exists()]
        for path in reversed(present):  # the first one last: it stands for the part
          _copy(folder / path, workdir / path)
        taken += present
        break
  return taken


def _fields(config: ConfigDict) -> dict[str, Any]:
  fields = flatten(config)
  bank, stage2, probes = (fields.get(name, 0) for name in ('bank.games', 'stage2.games', 'stage2.probe_games'))
  return {**fields, TRAIN_GAMES: max(bank, stage2) + probes}  # see world.make_splits


def _chosen(fields: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
  """The fields of these names, or in groups of these names."""
  return {field: value for field, value in fields.items() if any(field == name or field.startswith(f'{name}.') for name in names)}


def _copy(source: Path, target: Path) -> None:
  """A file or a folder, whole or not at all."""
  temporary = target.with_name(f'.{target.name}.taking')
  if temporary.is_dir():
    shutil.rmtree(temporary)
  target.parent.mkdir(parents=True, exist_ok=True)
  if source.is_dir():
    shutil.copytree(source, temporary)
  else:
    shutil.copy2(source, temporary)
  os.replace(temporary, target)
