"""When does a memory speak? Abstention against the difficulty of games, and what its guidance did (method sections 3 and 5).

A game's difficulty is how rarely the agent alone solves it, measured by runs of its own (WORKDIR/eval/base_runs.jsonl) under other seeds
than the evaluation's. A gap between easy and hard games is learned abstention only beside null runs, where the decision has nothing to
learn and yet drifts, and only as far as it grew since stage 1, whose abstain targets plant such a gap themselves [O].
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from mempi_jax.evals import stats
from mempi_jax.evals.success import EpisodesError, Record, key_of, paired, task_of

FIFTHS = 5
SPLIT = 'heldout_games'


def difficulty_fifths(base_runs: Sequence[Record], *, split: str = SPLIT) -> dict[tuple[str, str], int]:
  """(household, task_id) -> bucket 1 (easiest) to 5 (hardest), as equal in size as can be.

  Games are ordered by their mean base success, highest first; then by mean agent steps, fewest first; then by household and task_id.

  Raises:
    EpisodesError: fewer than five games with base runs on that split.
  """
  runs: dict[tuple[str, str], list[Record]] = collections.defaultdict(list)
  for run in base_runs:
    if run['split'] == split:
      runs[task_of(run)].append(run)
  if len(runs) < FIFTHS:
    raise EpisodesError(f'difficulty needs base runs of at least {FIFTHS} games of {split}, found {len(runs)}')

  def difficulty(task: tuple[str, str]) -> tuple[float, float, tuple[str, str]]:
    return -float(np.mean([run['success'] for run in runs[task]])), float(np.mean([run['agent_steps'] for run in runs[task]])), task

  parts = np.array_split(np.arange(len(runs)), FIFTHS)
  ordered = sorted(runs, key=difficulty)
  return {ordered[index]: bucket for bucket, part in enumerate(parts, start=1) for index in part}


def by_difficulty(
  episodes: Sequence[Record], base_runs: Sequence[Record], *, memory: str = 'mempi', split: str = SPLIT
) -> list[Record]:
  """`abstention_by_difficulty` of results.json: {bucket, n, base_success, abstain_rate}, from the easiest fifth (1) to the hardest (5).

  `n` counts the memory's episodes, `base_success` is the mean over the base runs that made the buckets (so the outer buckets look more
  extreme than they are; `details` has the agent alone under the evaluation's seeds).

  Raises:
    EpisodesError: too few games, or a game of the memory's episodes without base runs.
  """
  keys = ('bucket', 'n', 'base_success', 'abstain_rate')
  return [{key: row[key] for key in keys} for row in details(episodes, base_runs, memory=memory, split=split)]


def details(episodes: Sequence[Record], base_runs: Sequence[Record], *, memory: str, split: str = SPLIT) -> list[Record]:
  """`by_difficulty` with more: `ci95` of the abstain rate, `p_generate` (mean, None where the memory has none), `success_rate` of the
  memory, and `none_success`, the agent alone in the evaluation's own episodes (None without them)."""
  buckets = difficulty_fifths(base_runs, split=split)
  mine, alone = ([e for e in episodes if e['split'] == split and e['memory'] == name] for name in (memory, 'none'))
  if not mine:
    raise EpisodesError(f'no episodes of memory {memory} on {split}')
  unknown = sorted({task_of(episode) for episode in mine} - buckets.keys())
  if unknown:
    raise EpisodesError(f'{len(unknown)} games of {split} have no base runs, the first is {unknown[0][1]}')
  rows = []
  for bucket in range(1, FIFTHS + 1):
    cell = [episode for episode in mine if buckets[task_of(episode)] == bucket]
    if not cell:
      continue
    abstained = _abstain(cell)
    chances = [episode['p_generate'] for episode in cell if episode['p_generate'] is not None]
    rows.append(
      {
        'bucket': bucket,
        'n': len(cell),
        'base_success': _mean([run['success'] for run in base_runs if run['split'] == split and buckets[task_of(run)] == bucket]),
        'abstain_rate': round(abstained.value, 6),
        'ci95': [round(abstained.low, 6), round(abstained.high, 6)],
        'p_generate': _mean(chances),
        'success_rate': _mean([episode['success'] for episode in cell if episode['status'] != 'env_error']),
        'none_success': _mean([e['success'] for e in alone if e['status'] != 'env_error' and buckets.get(task_of(e)) == bucket]),
      }
    )
  return rows


def gap(episodes: Sequence[Record], base_runs: Sequence[Record], *, memory: str = 'mempi', split: str = SPLIT) -> stats.Estimate:
  """Abstain rate on the easiest fifth minus that on the hardest, with its 95% interval over games."""
  easiest, hardest = _outer_fifths(episodes, base_runs, memory, split)
  return stats.independent_difference(_abstain(easiest), _abstain(hardest))


def gap_growth(
  episodes: Sequence[Record], base_runs: Sequence[Record], *, memory: str = 'mempi', since: str = 'mempi_stage1', split: str = SPLIT
) -> stats.Estimate:
  """How much wider `gap` is for `memory` than for `since`, paired over games, with its 95% interval."""
  ends = []
  for new, old in zip(_outer_fifths(episodes, base_runs, memory, split), _outer_fifths(episodes, base_runs, since, split)):
    before = {key_of(episode): episode['decision'] == '[ABSTAIN]' for episode in old}
    changes = [float(episode['decision'] == '[ABSTAIN]') - before[key_of(episode)] for episode in new]
    ends.append(stats.mean_interval(changes, [task_of(episode) for episode in new], bounds=(-1.0, 1.0)))
  return stats.independent_difference(*ends)


def routing(episodes: Sequence[Record], *, memory: str = 'mempi', split: str = SPLIT) -> dict[str, Any]:
  """What the memory's decisions did, against the agent alone in the same episode.

  Returns:
    counts: `generated` = `helped` (only with guidance solved) + `hurt` (only without) + `both` (solved either way) + `neither`;
    `abstained` = `abstained_solved` + `abstained_failed`, and `abstained_changed`, how many of the abstained ones ended otherwise than
    the agent alone: 0 where prompt, seed and agent are the same, as they must be after ABSTAIN [P].
  """
  counts = collections.Counter()
  for mine, alone in paired(episodes, split, memory, 'none'):
    if mine['decision'] == '[ABSTAIN]':
      counts['abstained'] += 1
      counts['abstained_solved' if mine['success'] else 'abstained_failed'] += 1
      counts['abstained_changed'] += mine['success'] != alone['success']
    else:
      counts['generated'] += 1
      counts[{(1, 0): 'helped', (0, 1): 'hurt', (1, 1): 'both', (0, 0): 'neither'}[mine['success'], alone['success']]] += 1
  names = ('generated', 'helped', 'hurt', 'both', 'neither', 'abstained', 'abstained_solved', 'abstained_failed', 'abstained_changed')
  return {name: counts[name] for name in names}


def _abstain(episodes: Sequence[Record]) -> stats.Estimate:
  return stats.rate([episode['decision'] == '[ABSTAIN]' for episode in episodes], [task_of(episode) for episode in episodes])


def _outer_fifths(episodes: Sequence[Record], base_runs: Sequence[Record], memory: str, split: str) -> tuple[list[Record], list[Record]]:
  buckets = difficulty_fifths(base_runs, split=split)
  mine = [episode for episode in episodes if episode['split'] == split and episode['memory'] == memory]
  outer = tuple([episode for episode in mine if buckets.get(task_of(episode)) == bucket] for bucket in (1, FIFTHS))
  if not all(outer):
    raise EpisodesError(f'no episodes of memory {memory} in the easiest or in the hardest fifth of {split}')
  return outer


def _mean(values: Sequence[float]) -> float | None:
  return round(float(np.mean(values)), 6) if len(values) else None
