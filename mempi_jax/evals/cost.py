"""Cost against quality over the threshold τ, without playing anything again (method sections 4 and 5) [O].

Whatever τ is, an episode goes as with the memory's guidance or as the agent alone: both were played (`always` and `none`), and P(GENERATE)
says which of them a τ takes. What a τ costs is counted in tokens, of three kinds:

    read       what the memory's own language model reads: its prompt, whether it then speaks or not (prefill)
    written    what it writes: the decision, and if it speaks the content and end-of-sequence (decode)
    inserted   guidance in the agent's prompt, which the agent reads

A τ that is picked from such a curve looks better on the games that it was picked on than on others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mempi_jax.evals import stats
from mempi_jax.evals.success import EpisodesError, Record, check_same_episodes, key_of, memories_of, task_of

SPLIT = 'heldout_games'
RESAMPLES = 2_000
WRITTEN_TO_DECIDE = 1  # the decision itself, all that silence writes

_DIGITS = 6

_NEEDED = {'memory': ('p_generate', 'read_tokens'), 'always': ('written_tokens', 'guidance_tokens'), 'none': ()}


@dataclasses.dataclass(frozen=True, slots=True)
class Prices:
  """What a token costs, in a unit of one's own; by default every token counts one."""

  read: float = 1.0
  written: float = 1.0
  inserted: float = 1.0


@dataclasses.dataclass(frozen=True)
class Choices:
  """Both sides of N decisions, one a (task, seed), in the order of their keys."""

  games: tuple[tuple[str, str], ...]  # (household, task_id): the clusters of every interval
  p_generate: np.ndarray  # f64[N]
  guided: np.ndarray  # bool[N]  success with guidance
  alone: np.ndarray  # bool[N]  success without
  inserted: np.ndarray  # i64[N]  guidance tokens, where it speaks
  read: np.ndarray  # i64[N]  tokens read to decide, either way
  written: np.ndarray  # i64[N]  tokens written, where it speaks


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
  """One threshold: the memory speaks where P(GENERATE) >= threshold. None: the agent alone, no memory is asked.

  Tokens and `cost` are means over episodes. The two differences are paired, over games.
  """

  threshold: float | None
  success: stats.Estimate
  abstain_rate: float
  inserted_tokens: float
  read_tokens: float
  written_tokens: float
  cost: float  # by the prices
  over_alone: stats.Estimate  # success minus that of the agent alone
  over_always: stats.Estimate  # success minus that with guidance everywhere


def choices_of(
  episodes: Sequence[Record], *, memory: str = 'mempi', always: str = 'always', none: str = 'none', split: str = SPLIT
) -> Choices:
  """The decisions of a split, from records as in WORKDIR/eval/episodes.jsonl.

  Args:
    episodes: records of one run, or of several (`success.pool`).
    memory: whose P(GENERATE) decides, and whose `read_tokens` are read, whatever it decides.
    always: the same memory made to generate everywhere: its outcomes, `guidance_tokens` and `written_tokens`. For RAG whose abstention is
      learned that is RAG, which writes nothing itself; then the decision alone is counted.
    none: the agent alone: its outcomes.
    split: whose episodes count.

  A (task, seed) where any of the three ended in an environment error is left out.

  Raises:
    EpisodesError: no episodes of a memory on the split, memories that did not play the same ones, a record without a field that is needed
      (both named), a field that is no number of tokens, or `always` abstained.
  """
  roles = {'memory': memory, 'always': always, 'none': none}
  records: dict[str, dict[tuple, Record]] = {}
  for role, name in roles.items():
    mine = [episode for episode in episodes if episode['split'] == split and episode['memory'] == name]
    if not mine:
      present = ', '.join(memories_of([e for e in episodes if e['split'] == split])) or 'none at all'
      raise EpisodesError(f'the cost curve needs episodes of memory {name} on {split}; there are some of {present}')
    for episode in mine:
      for field in _NEEDED[role]:
        _check_field(episode, field)
    records[role] = {key_of(episode): episode for episode in mine}
  check_same_episodes([e for e in episodes if e['split'] == split and e['memory'] in roles.values()])
  for key, record in records['always'].items():
    if record['decision'] != '[GENERATE]':
      raise EpisodesError(f'memory {always} abstained (task {key[3]}, seed {key[4]}), expected [GENERATE] everywhere')
  keys = [key for key in sorted(records['memory']) if not any(part[key]['status'] == 'env_error' for part in records.values())]
  if not keys:
    raise EpisodesError(f'every episode of {split} ended in an environment error')
  column = lambda role, field: np.array([records[role][key][field] for key in keys])
  return Choices(
    games=tuple(task_of(records['memory'][key]) for key in keys),
    p_generate=column('memory', 'p_generate').astype(np.float64),
    guided=column('always', 'success'),
    alone=column('none', 'success'),
    inserted=column('always', 'guidance_tokens'),
    read=column('memory', 'read_tokens'),
    written=np.maximum(column('always', 'written_tokens'), WRITTEN_TO_DECIDE),
  )


def thresholds_of(choices: Choices, count: int = 21) -> list[float]:
  """Up to `count` thresholds, rising from 0 (speaks everywhere) to one above every P(GENERATE) (speaks nowhere), so that the abstain rate
  rises in steps as even as equal values of P(GENERATE) let it."""
  ordered = np.sort(choices.p_generate)
  silent = np.linspace(0, len(ordered), count)[1:-1].round().astype(int)  # episodes to abstain in
  between = [float(ordered[number]) for number in silent if 0 < number < len(ordered)]
  above = float(np.nextafter(max(1.0, ordered[-1]), 2.0))
  return sorted({0.0, *between, above})


def curve(
  choices: Choices,
  thresholds: Sequence[float] | None = None,
  *,
  prices: Prices = Prices(),
  seed: int = 0,
  resamples: int = RESAMPLES,
) -> list[Point]:
  """The cost-quality curve: the agent alone, then a point a threshold, rising.

  Args:
    choices: see there.
    thresholds: None for `thresholds_of(choices)`.
    prices: what tokens cost.
    seed, resamples: of the bootstrap over games.

  Raises:
    ValueError: a threshold that is no finite number.
  """
  thresholds = sorted(thresholds_of(choices) if thresholds is None else thresholds)
  if not np.all(np.isfinite(thresholds)):
    raise ValueError(f'thresholds {thresholds}: expected finite numbers')
  points = [_point(choices, None, prices, seed, resamples)]
  return points + [_point(choices, threshold, prices, seed, resamples) for threshold in thresholds]


def pareto(points: Sequence[Point]) -> list[Point]:
  """The points that no other one beats, from the cheapest to the most expensive: none costs as little or less and succeeds as often or
  more, one of them strictly. Of points with equal cost and success the first is kept. Measured means alone count, not their intervals."""
  kept: list[Point] = []
  for point in sorted(points, key=lambda point: (point.cost, -point.success.value)):
    if not kept or point.success.value > kept[-1].success.value:
      kept.append(point)
  return kept


def rows_of(points: Sequence[Point]) -> list[Record]:
  """Points for results.json, numbers rounded to 6 places: `success_rate`, `over_alone` and `over_always` each with an interval under
  `..._ci95`, the other fields as they are, and `pareto`, whether the point is in the Pareto set."""
  best, rows = pareto(points), []
  for point in points:
    row: Record = {'threshold': point.threshold}
    for name in ('abstain_rate', 'inserted_tokens', 'read_tokens', 'written_tokens', 'cost'):
      row[name] = round(getattr(point, name), _DIGITS)
    for name, estimate in (('success_rate', point.success), ('over_alone', point.over_alone), ('over_always', point.over_always)):
      row[name] = round(estimate.value, _DIGITS)
      row[f'{name}_ci95'] = [round(estimate.low, _DIGITS), round(estimate.high, _DIGITS)]
    rows.append(row | {'pareto': any(point is other for other in best)})
  return rows


# Internals.


def _point(choices: Choices, threshold: float | None, prices: Prices, seed: int, resamples: int) -> Point:
  if threshold is None:
    speaks = np.zeros(len(choices.games), bool)
    read = written = np.zeros(len(choices.games))
  else:
    speaks = choices.p_generate >= threshold
    read, written = choices.read, np.where(speaks, choices.written, WRITTEN_TO_DECIDE)
  success = np.where(speaks, choices.guided, choices.alone)
  inserted = np.where(speaks, choices.inserted, 0)
  options = {'seed': seed, 'resamples': resamples}
  return Point(
    threshold=threshold,
    success=stats.rate(success, choices.games, **options),
    abstain_rate=float(1.0 - speaks.mean()),
    inserted_tokens=float(inserted.mean()),
    read_tokens=float(read.mean()),
    written_tokens=float(written.mean()),
    cost=float((prices.read * read + prices.written * written + prices.inserted * inserted).mean()),
    over_alone=stats.paired_difference(success, choices.alone, choices.games, **options),
    over_always=stats.paired_difference(success, choices.guided, choices.games, **options),
  )


def _check_field(episode: Record, field: str) -> None:
  """Raises EpisodesError, naming field and memory, if a record lacks it or holds something else."""
  where = f'memory {episode["memory"]} (task {episode["task_id"]}, seed {episode["seed"]})'
  value = episode.get(field)
  if value is None:
    raise EpisodesError(f'no field {field!r} in a record of {where}: the cost curve needs it')
  good = isinstance(value, (int, float)) and not isinstance(value, bool)
  if field != 'p_generate':
    good = isinstance(value, int) and good and value >= 0
  if not good:
    expected = 'a number' if field == 'p_generate' else 'a number of tokens'
    raise EpisodesError(f'field {field!r} is {value!r} in a record of {where}, expected {expected}')
