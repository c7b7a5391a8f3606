"""How memories fare while the world changes: success by period, the fall at the change, and what learning as one goes brings back [O].

Input are the records of WORKDIR/deploy/*.jsonl (see mempi_jax/deploy.py): as those of an evaluation, with the `period` (from 0) and the share of
habits that has `moved` by then. The change is the first period whose share differs from that of the first one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mempi_jax.evals import stats
from mempi_jax.evals.success import ONLINE, EpisodesError, Record, check_same_episodes, compare, memories_of, summarise, task_of, trained
from mempi_jax.runtime import files

FOLDER, UPDATES = 'deploy', 'updates'
AFTER = 'after the change'

_DIGITS = 6


def read_deployment(workdir: str | Path) -> list[Record]:
  """The records of every memory's deployment, in the order of the files' names; empty where there was none."""
  return [record for path in sorted((Path(workdir) / FOLDER).glob('*.jsonl')) for record in files.read_jsonl(path)]


def read_updates(workdir: str | Path) -> list[Record]:
  """The verdicts on the updates, {period, lessons, pairs, difference, ci95, accepted, ...} each, in their order."""
  folders = sorted(path for path in (Path(workdir) / FOLDER / UPDATES).glob('*') if path.name.isdigit())
  return [{'period': int(folder.name), **done} for folder in folders if (done := files.read_done(folder)) is not None]


def summarise_deployment(records: Sequence[Record]) -> dict[str, Any]:
  """Everything that a report shows of a deployment.

  Returns:
    periods: {period, moved} each. change: the first period after the change, None where nothing ever moved.
    rows: as results.json's, with `period` in the place of `split`.
    falls: {memory, before, after, fall, ci95, last, fall_ci95, recovered_ci95} each: success over all periods before the change, in the first one
      after it and in the last; `fall` = after - before and `recovered` = last - after with 95% intervals over games (other games: not paired).
    comparisons: as results.json's, over the periods after that of the change, when there was something to learn from: each memory that
      learns against itself as it was trained, and Mem-π that is updated against every other that learns.

  Raises:
    EpisodesError: no records, memories that did not play the same episodes, or a period in which the share of moved habits is not one number.
  """
  if not records:
    raise EpisodesError('no episodes of a deployment')
  check_same_episodes(records)
  shares: dict[int, float] = {}
  for record in records:
    if shares.setdefault(record['period'], record['moved']) != record['moved']:
      raise EpisodesError(f'period {record["period"]} has moved {shares[record["period"]]} and {record["moved"]} of the habits')
  periods = sorted(shares)
  change = next((period for period in periods if shares[period] != shares[periods[0]]), None)
  width = len(str(len(periods)))
  rows = [
    {**row, 'period': int(row['split'])} for row in summarise([{**record, 'split': f'{record["period"]:0{width}d}'} for record in records])
  ]
  return {
    'periods': [{'period': period, 'moved': shares[period]} for period in periods],
    'change': change,
    'rows': [{name: value for name, value in row.items() if name != 'split'} for row in rows],
    'falls': [] if change is None else [_fall(memory, records, change, periods[-1]) for memory in memories_of(records)],
    'comparisons': [] if change is None else _compare(records, change),
  }


def _fall(memory: str, records: Sequence[Record], change: int, last: int) -> Record:
  """How far a memory falls when the world changes, and how much of that has come back in the end."""
  mine = [record for record in records if record['memory'] == memory and record['status'] != 'env_error']

  def rate(first: int, end: int) -> stats.Estimate:
    chosen = [record for record in mine if first <= record['period'] < end]
    if not chosen:
      raise EpisodesError(f'{memory} has no valid episode in periods {first} to {end - 1}')
    return stats.rate([record['success'] for record in chosen], [task_of(record) for record in chosen])

  before, after, finally_ = rate(0, change), rate(change, change + 1), rate(last, last + 1)
  fall, recovered = stats.independent_difference(after, before), stats.independent_difference(finally_, after)
  return {
    'memory': memory,
    'before': round(before.value, _DIGITS),
    'after': round(after.value, _DIGITS),
    'last': round(finally_.value, _DIGITS),
    'fall': round(fall.value, _DIGITS),
    'fall_ci95': [round(fall.low, _DIGITS), round(fall.high, _DIGITS)],
    'recovered': round(recovered.value, _DIGITS),
    'recovered_ci95': [round(recovered.low, _DIGITS), round(recovered.high, _DIGITS)],
  }


def _compare(records: Sequence[Record], change: int) -> list[Record]:
  later = [{**record, 'split': AFTER} for record in records if record['period'] > change]
  present = memories_of(later)
  learning = [memory for memory in present if memory.endswith(ONLINE)]
  pairs = [(memory, trained(memory)) for memory in learning if trained(memory) in present]
  mine = 'mempi' + ONLINE
  pairs += [(mine, other) for other in learning if mine in learning and other != mine]
  return compare(later, pairs) if pairs else []
