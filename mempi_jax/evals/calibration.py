"""Does P(GENERATE) say where guidance helps? Calibration of the decision, and of what it is worth to follow it (method sections 3, 5) [O].

The benefit of guiding in a context is measured: success with the memory's guidance forced upon the agent (`always`) minus success of the
agent alone (`none`), paired over (task, seed). A context is a game of a run; over several seeds its benefit is a mean, and better known.

Nothing in training makes P(GENERATE) a probability that guidance helps: the decision update moves the decision's logit by what guiding
earns, from where stage 1 left it. So its calibration error is a fact about how it may be read, not a fault; whether the contexts are in
the right *order* (`risk_coverage`) and on the right side of the threshold (`routing_errors`) is what following it costs.

One seed a context makes every measured benefit -1, 0 or 1, much of it luck of the agent's. Means over contexts are unbiased all the
same; the share of contexts with any benefit, the oracle and the errors of routing are not: they take luck for benefit, the less so the
more seeds there are. Compare them between memories on the same episodes alone.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from mempi_jax.evals import stats
from mempi_jax.evals.success import EpisodesError, Record, check_same_episodes, key_of, memories_of, task_of

SPLIT = 'heldout_games'
BINS = 10

_DIGITS = 6


@dataclasses.dataclass(frozen=True)
class Contexts:
  """What guiding does in N contexts, in the order of their names.

  `games` are the clusters of every interval: a game that several runs played is several contexts and one cluster.
  """

  games: tuple[tuple[str, str], ...]  # (household, task_id) of each context
  seeds: np.ndarray  # i64[N]  (task, seed) pairs that each context was played with
  p_generate: np.ndarray  # f64[N]  P(GENERATE | x)
  spoke: np.ndarray  # f64[N]  share of the pairs in which the memory itself generated: 0 or 1 where its decision follows from the context
  guided: np.ndarray  # f64[N]  success with guidance forced
  alone: np.ndarray  # f64[N]  success without

  @property
  def benefit(self) -> np.ndarray:
    """f64[N] in [-1, 1]: success with guidance minus success without."""
    return self.guided - self.alone


@dataclasses.dataclass(frozen=True, slots=True)
class Bin:
  """Contexts with low <= P(GENERATE) < high (the last bin holds high as well)."""

  low: float
  high: float
  contexts: int
  p_generate: float  # mean
  helped: stats.Estimate  # share of the contexts with benefit > 0
  benefit: stats.Estimate  # mean


@dataclasses.dataclass(frozen=True)
class RiskCoverage:
  """Success when the share c of the contexts with the highest P(GENERATE) is guided, and the others are left alone.

  `areas` are those under the curves of success over c in [0, 1] (trapezoids): the mean success over all budgets of guidance. `advantage`
  is the area of the routed curve above that of random routing.
  """

  coverage: np.ndarray  # f64[N + 1], 0, 1/N, ..., 1
  routed: np.ndarray  # f64[N + 1]  by P(GENERATE), equal ones in no order
  random: np.ndarray  # f64[N + 1]  any c of the contexts: the straight line from alone to guided
  oracle: np.ndarray  # f64[N + 1]  by the measured benefit itself: an upper bound that nobody can reach
  areas: dict[str, float]  # of routed, random, oracle
  advantage: stats.Estimate

  @property
  def share_of_oracle(self) -> float | None:
    """`advantage` over the oracle's, 1 at best, 0 for random routing; None where no order is better than another."""
    possible = self.areas['oracle'] - self.areas['random']
    return self.advantage.value / possible if possible > 0.0 else None


@dataclasses.dataclass(frozen=True, slots=True)
class RoutingErrors:
  """Where the memory's own decision lost success. The rule: GENERATE is wrong where the benefit is below 0, ABSTAIN where it is above 0;
  where it is 0 neither is, and GENERATE only wrote in vain.

  Shares are of all contexts. Costs are success lost, as a mean over all contexts: with both paid back, the memory would be the oracle:
  success + cost_spoke + cost_silent = oracle.
  """

  contexts: int
  spoke: float  # share in which it generated
  spoke_wrongly: stats.Estimate  # share: generated where silence would have won
  silent_wrongly: stats.Estimate  # share: abstained where guidance would have won
  spoke_in_vain: stats.Estimate  # share: generated where it made no difference
  cost_spoke: stats.Estimate  # success lost by the first
  cost_silent: stats.Estimate  # success lost by the second
  success: stats.Estimate  # of following its decisions
  oracle: float  # success of the better side of each context


# From records.


def contexts_of(
  episodes: Sequence[Record], *, memory: str = 'mempi', always: str = 'always', none: str = 'none', split: str = SPLIT
) -> Contexts:
  """The contexts of a split, from records as in WORKDIR/eval/episodes.jsonl.

  Args:
    episodes: records of one run, or of several (`success.pool`).
    memory: whose P(GENERATE) and decisions are looked at.
    always: the same memory made to generate everywhere.
    none: the agent alone.
    split: whose episodes count.

  A (task, seed) where any of the three ended in an environment error is left out.

  Raises:
    EpisodesError: no episodes of a memory on the split, memories that did not play the same ones, no P(GENERATE) in a record of `memory`,
      or `always` abstained or `none` spoke; the message names the memory.
  """
  names = dict.fromkeys((memory, always, none))
  mine = [episode for episode in episodes if episode['split'] == split and episode['memory'] in names]
  for name in names:
    if not any(episode['memory'] == name for episode in mine):
      present = ', '.join(memories_of([e for e in episodes if e['split'] == split])) or 'none at all'
      raise EpisodesError(f'calibration needs episodes of memory {name} on {split}; there are some of {present}')
  check_same_episodes(mine)
  records: dict[str, dict[tuple, Record]] = {name: {} for name in names}
  for episode in mine:
    records[episode['memory']][key_of(episode)] = episode
  for key, record in records[memory].items():
    if record['p_generate'] is None:
      raise EpisodesError(f'memory {memory} gives no p_generate (task {key[3]}, seed {key[4]}): its decision has no calibration')
  for name, decision in ((always, '[GENERATE]'), (none, '[ABSTAIN]')):
    for key, record in records[name].items():
      if record['decision'] != decision:
        raise EpisodesError(f'memory {name} decided {record["decision"]} (task {key[3]}, seed {key[4]}), expected {decision} everywhere')
  groups: dict[tuple, list[tuple[Record, Record, Record]]] = collections.defaultdict(list)
  for key in sorted(records[memory]):
    trio = records[memory][key], records[always][key], records[none][key]
    if not any(record['status'] == 'env_error' for record in trio):
      groups[key[:4]].append(trio)
  if not groups:
    raise EpisodesError(f'every episode of {split} ended in an environment error')
  mean = lambda place, field: np.array([np.mean([float(field(trio[place])) for trio in group]) for group in groups.values()])
  return Contexts(
    games=tuple(task_of(group[0][0]) for group in groups.values()),
    seeds=np.array([len(group) for group in groups.values()]),
    p_generate=mean(0, lambda record: record['p_generate']),
    spoke=mean(0, lambda record: record['decision'] == '[GENERATE]'),
    guided=mean(1, lambda record: record['success']),
    alone=mean(2, lambda record: record['success']),
  )


# Reading P(GENERATE) as a probability.


def reliability(contexts: Contexts, *, bins: int = BINS, decisive: bool = False) -> list[Bin]:
  """The reliability diagram: P(GENERATE) against the share of contexts where guiding helped, in bins of equal width, without empty ones.

  Args:
    contexts: N of them.
    bins: how many.
    decisive: only contexts with a benefit other than 0: among those where the decision mattered, how often was guiding right? Without it
      a context where guidance made no difference counts as one where it did not help.

  Raises EpisodesError when no context is left.
  """
  rows = _rows(contexts, decisive)
  return [
    Bin(
      low=number / bins,
      high=(number + 1) / bins,
      contexts=len(part),
      p_generate=float(contexts.p_generate[part].mean()),
      helped=stats.rate(contexts.benefit[part] > 0.0, [contexts.games[i] for i in part]),
      benefit=stats.mean_interval(contexts.benefit[part], [contexts.games[i] for i in part], bounds=(-1.0, 1.0)),
    )
    for number, part in _binned(contexts.p_generate, rows, bins)
  ]


def expected_calibration_error(contexts: Contexts, *, bins: int = BINS, decisive: bool = False) -> float:
  """ECE of P(GENERATE) as the probability that guiding helps (Naeini et al. 2015), in [0, 1]:

      sum over bins b of n_b / N * | mean P(GENERATE) in b − share of the contexts in b where guiding helped |

  over bins of equal width, all contexts alike whatever their number of seeds. See `reliability` for the arguments and what it raises, and
  `calibrated_error` for what a perfect policy would get.
  """
  rows = _rows(contexts, decisive)
  helped = (contexts.benefit > 0.0).astype(np.float64)
  binned = _binned(contexts.p_generate, rows, bins)
  return sum(abs(float(np.sum(contexts.p_generate[part] - helped[part]))) for _, part in binned) / len(rows)


def calibrated_error(contexts: Contexts, *, bins: int = BINS, decisive: bool = False, draws: int = 1000, seed: int = 0) -> float:
  """The mean ECE of as many contexts with the same P(GENERATE), had guiding helped with just that probability: what an ECE is never far
  below, for it is a mean of absolute values, and must be compared with.

  Args:
    contexts, bins, decisive: as of `expected_calibration_error`.
    draws, seed: of the simulation.
  """
  rows = _rows(contexts, decisive)
  rng, total = np.random.default_rng(seed), 0.0
  for _, part in _binned(contexts.p_generate, rows, bins):
    p = contexts.p_generate[part]
    total += float(np.abs((rng.random((draws, len(p))) < p).sum(axis=1) - p.sum()).mean())
  return total / len(rows)


# Following it.


def risk_coverage(contexts: Contexts, *, seed: int = 0, resamples: int = stats.RESAMPLES) -> RiskCoverage:
  """Success as a function of the share of contexts that is guided, by falling P(GENERATE), against random and oracle routing.

  The interval of `advantage` is over games and counts the uncertainty of the order itself: the area is a mean over pairs of contexts,
  and each context's part in it, as the one that is guided and as the one that the others are ordered against, is resampled, with `seed`
  and `resamples` as of `stats.mean_interval`.
  """
  count, benefit, p = len(contexts.games), contexts.benefit, contexts.p_generate
  coverage = np.arange(count + 1) / count
  alone = contexts.alone.mean()
  routed = alone + _gains(p, benefit) / count
  oracle = alone + _gains(benefit, benefit) / count
  random = alone + coverage * benefit.mean()
  areas = {name: float(np.trapezoid(curve, coverage)) for name, curve in (('routed', routed), ('random', random), ('oracle', oracle))}
  # Advantage = mean over pairs (i, j) of benefit_i * (1 if p_i > p_j, 1/2 if equal, else 0; minus 1/2).
  above = 0.5 * (np.searchsorted(np.sort(p), p, 'left') + np.searchsorted(np.sort(p), p, 'right')) / count - 0.5  # of i, over all j
  order = np.argsort(p, kind='stable')
  sums = np.concatenate([[0.0], np.cumsum(benefit[order])])
  below_or_half = 0.5 * (sums[np.searchsorted(p[order], p, 'left')] + sums[np.searchsorted(p[order], p, 'right')])
  against = (sums[-1] - below_or_half) / count - 0.5 * benefit.mean()  # of j, over all i
  advantage = float(np.mean(benefit * above))
  parts = benefit * above + against - advantage  # their mean is the advantage, their spread its uncertainty
  interval = stats.mean_interval(parts, contexts.games, bounds=(-1.25, 1.25), seed=seed, resamples=resamples)
  return RiskCoverage(coverage, routed, random, oracle, areas, interval)


def routing_errors(contexts: Contexts) -> RoutingErrors:
  """What the memory's own decisions cost, by the rule of `RoutingErrors`."""
  benefit, spoke = contexts.benefit, contexts.spoke
  share = lambda values: stats.mean_interval(values, contexts.games, bounds=(0.0, 1.0))
  return RoutingErrors(
    contexts=len(contexts.games),
    spoke=float(spoke.mean()),
    spoke_wrongly=share(spoke * (benefit < 0.0)),
    silent_wrongly=share((1.0 - spoke) * (benefit > 0.0)),
    spoke_in_vain=share(spoke * (benefit == 0.0)),
    cost_spoke=share(spoke * np.maximum(-benefit, 0.0)),
    cost_silent=share((1.0 - spoke) * np.maximum(benefit, 0.0)),
    success=share(contexts.alone + spoke * benefit),
    oracle=float(np.maximum(contexts.guided, contexts.alone).mean()),
  )


# As JSON.


def summarise(contexts: Contexts, *, bins: int = BINS) -> Record:
  """Everything above but the curves, for results.json; numbers are rounded to 6 places.

  Returns:
    `contexts`; `bins` and `bins_decisive`, lists of {low, high, contexts, p_generate, helped, helped_ci95, benefit, benefit_ci95};
    `ece`, `ece_if_calibrated` and the same with `_decisive` (None and empty bins where guidance made no difference anywhere); `coverage`,
    {areas, advantage, advantage_ci95, share_of_oracle}; `routing`, the fields of `RoutingErrors` and `..._ci95` of those with an interval.
  """
  found: Record = {'contexts': len(contexts.games)}
  for suffix, decisive in (('', False), ('_decisive', True)):
    any_left = not decisive or bool(np.any(contexts.benefit != 0.0))
    options = {'bins': bins, 'decisive': decisive}
    found[f'bins{suffix}'] = [_flat(part) for part in reliability(contexts, **options)] if any_left else []
    found[f'ece{suffix}'] = round(expected_calibration_error(contexts, **options), _DIGITS) if any_left else None
    found[f'ece_if_calibrated{suffix}'] = round(calibrated_error(contexts, **options), _DIGITS) if any_left else None
  routed = risk_coverage(contexts)
  share = routed.share_of_oracle
  found['coverage'] = {
    'areas': {name: round(area, _DIGITS) for name, area in routed.areas.items()},
    'advantage': round(routed.advantage.value, _DIGITS),
    'advantage_ci95': [round(routed.advantage.low, _DIGITS), round(routed.advantage.high, _DIGITS)],
    'share_of_oracle': None if share is None else round(share, _DIGITS),
  }
  found['routing'] = _flat(routing_errors(contexts))
  return found


# Internals.


def _flat(row: Bin | RoutingErrors) -> Record:
  """A dataclass as JSON: an Estimate becomes its value and, under a second name, its interval."""
  flat: Record = {}
  for field in dataclasses.fields(row):
    value = getattr(row, field.name)
    if isinstance(value, stats.Estimate):
      flat[f'{field.name}_ci95'] = [round(value.low, _DIGITS), round(value.high, _DIGITS)]
      value = value.value
    flat[field.name] = round(value, _DIGITS)
  return flat


def _rows(contexts: Contexts, decisive: bool) -> np.ndarray:
  """Places of the contexts that count, i64[<= N]."""
  rows = np.flatnonzero(contexts.benefit != 0.0) if decisive else np.arange(len(contexts.games))
  if not len(rows):
    raise EpisodesError(f'guidance made no difference in any of the {len(contexts.games)} contexts: none is left to calibrate on')
  return rows


def _binned(p: np.ndarray, rows: np.ndarray, bins: int) -> list[tuple[int, np.ndarray]]:
  """(number of the bin, places in it) of bins of equal width over [0, 1], without empty ones."""
  number = np.minimum((p[rows] * bins).astype(int), bins - 1)
  return [(int(i), rows[number == i]) for i in np.unique(number)]


def _gains(score: np.ndarray, benefit: np.ndarray) -> np.ndarray:
  """Sum of the benefits of the k contexts with the highest scores, f64[N + 1] for k = 0..N; contexts of equal score share theirs evenly."""
  order = np.argsort(-score, kind='stable')
  _, group, sizes = np.unique(-score[order], return_inverse=True, return_counts=True)
  even = (np.bincount(group, weights=benefit[order]) / sizes)[group]
  return np.concatenate([[0.0], np.cumsum(even)])
