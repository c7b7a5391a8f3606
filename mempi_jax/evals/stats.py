"""Statistics of paired comparisons over games (method section 5). numpy and scipy, never jax.

The unit that varies is the game: the outcomes of one game under several seeds are not independent. So every function takes a cluster
for each episode (its game), intervals resample whole clusters, and the exact test flips the sign of whole clusters. With one episode a
game, all of it is the textbook method.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Sequence

import numpy as np
from scipy import optimize, stats

RESAMPLES = 10_000
LEVEL = 0.05  # two-sided: 95% intervals, 5% tests
POWER = 0.8

_CHUNK = 2_000_000  # resampled clusters held in memory at once


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
  """A mean over episodes with its 95% interval; `episodes` values in `clusters` clusters."""

  value: float
  low: float
  high: float
  episodes: int
  clusters: int


# Intervals.


def mean_interval(
  values: Sequence[float], clusters: Sequence[Hashable], *, bounds: tuple[float, float], seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
  """The mean of `values` with a percentile interval from a bootstrap over clusters.

  In simulations of paired differences (100 to 400 clusters of 1 or 3 episodes, effects from 0 to 0.5; tests/evals/test_stats.py, slow) it
  held the true one in 93.7% to 96.8%. It needs ten clusters or so that are not 0: with nine of 100, of 3 episodes each, it was 93.4%, of 1
  to 3 episodes 92.5%. BCa and bootstrap-t fell further there, the t interval with single episodes; the exact test needs no such number.

  A bootstrap of equal values has no width, though the next game may differ. Where all clusters have the same mean the interval is
  instead the exact one for 'no other cluster in C draws': up to u = 1 - 0.025^(1/C) of all clusters may be anything within `bounds` [O].

  Args:
    values: f64[N], one an episode.
    clusters: N hashable, sortable names; episodes of the same cluster are resampled together.
    bounds: smallest and largest possible value, (0, 1) for a rate and (-1, 1) for a difference of two.
    seed: of the resampling. The result depends on the set of (cluster, value) alone, not on the order of the episodes.

  Raises:
    ValueError: no values, another number of clusters than values, or a value that is not finite or outside `bounds`.
  """
  sums, counts = _by_cluster(values, clusters, bounds)
  value = float(sums.sum() / counts.sum())
  means = sums / counts
  if np.ptp(means) == 0.0:
    other = 1.0 - (LEVEL / 2) ** (1.0 / len(sums))
    low, high = value - other * (value - bounds[0]), value + other * (bounds[1] - value)
  else:
    low, high = np.quantile(_resampled_means(sums, counts, seed, resamples), [LEVEL / 2, 1 - LEVEL / 2])
  return Estimate(value, float(low), float(high), int(counts.sum()), len(sums))


def rate(outcomes: Sequence[bool], clusters: Sequence[Hashable], *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
  """The share of true outcomes with its 95% interval; see `mean_interval`."""
  return mean_interval(np.asarray(outcomes, np.float64), clusters, bounds=(0.0, 1.0), seed=seed, resamples=resamples)


def paired_difference(
  a: Sequence[bool], b: Sequence[bool], clusters: Sequence[Hashable], *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
  """Mean of a - b with its 95% interval; entry i of `a` and of `b` is the same (task, seed). See `mean_interval`."""
  return mean_interval(_differences(a, b), clusters, bounds=(-1.0, 1.0), seed=seed, resamples=resamples)


def independent_difference(x: Estimate, y: Estimate) -> Estimate:
  """x - y for two estimates over different clusters, by square-and-add of their own intervals (Newcombe 1998, method 10).

  Unlike a joint bootstrap it keeps the uncertainty of a rate that is 0 or 1 in the sample.
  """
  value = x.value - y.value
  low = value - math.hypot(x.value - x.low, y.high - y.value)
  high = value + math.hypot(x.high - x.value, y.value - y.low)
  return Estimate(value, low, high, x.episodes + y.episodes, x.clusters + y.clusters)


def is_non_inferior(difference: Estimate | Sequence[float], margin: float) -> bool:
  """Whether the interval of a - b lies above -margin, so that a is not worse than b by `margin` or more.

  Args:
    difference: an Estimate, or its interval (low, high).
    margin: > 0, in the unit of the difference.
  """
  if not margin > 0.0:
    raise ValueError(f'margin {margin}: expected a number above 0')
  low = difference.low if isinstance(difference, Estimate) else difference[0]
  return low > -margin


# Tests.


def mcnemar_exact(a: Sequence[bool], b: Sequence[bool], clusters: Sequence[Hashable]) -> float:
  """Two-sided exact p-value of 'a and b succeed equally often'.

  With one episode a cluster this is McNemar's exact test: of the discordant pairs, the number that a wins is binomial(1/2). With
  several it is its generalisation [O]: under the null each cluster's net wins (a's minus b's) are as likely with the other sign, so the
  p-value is the share of all sign assignments whose total is at least as far from 0 as the observed one, computed exactly.
  """
  sums, _ = _by_cluster(_differences(a, b), clusters, (-1.0, 1.0))
  net = np.abs(sums[sums != 0.0]).astype(int)
  if not len(net):
    return 1.0
  # Distribution of the total over all signs: a convolution of one scaled binomial for each size of net win.
  distribution = np.ones(1)
  for size, number in zip(*np.unique(net, return_counts=True)):
    scaled = np.zeros(2 * size * number + 1)
    scaled[:: 2 * size] = stats.binom.pmf(np.arange(number + 1), number, 0.5)
    distribution = np.convolve(distribution, scaled)
  total = np.arange(len(distribution)) - net.sum()
  return float(min(1.0, distribution[np.abs(total) >= abs(round(sums.sum()))].sum()))


def minimum_detectable_effect(
  a: Sequence[bool], b: Sequence[bool], clusters: Sequence[Hashable], *, power: float = POWER, level: float = LEVEL
) -> float | None:
  """Smallest true difference that this comparison would find with probability `power` at two-sided `level`.

  From the share psi of discordant pairs that was observed, by the sample-size formula of the paired comparison (Miettinen 1968; Connor
  1987): n d^2 = (z_level sqrt(psi) + z_power sqrt(psi - d^2))^2. Several episodes a cluster count as n over the design effect of the
  clusters. Never below what the exact test needs to reject at all: six discordant pairs of n at 5%. A difference cannot exceed the
  discordance, so where the formula has no answer at psi, psi is taken as large as it must be.

  Returns:
    The effect in (0, 1], or None where no effect at all could be found (fewer than six pairs at 5%).
  """
  differences = _differences(a, b)
  sums, counts = _by_cluster(differences, clusters, (-1.0, 1.0))
  episodes, mean = len(differences), differences.mean()
  discordance = float(np.mean(differences != 0.0))
  # Variance of the mean with whole clusters as units, against that of independent episodes.
  clustered = float(np.sum((sums - counts * mean) ** 2)) / episodes**2
  independent = (discordance - mean**2) / episodes
  if clustered > 0.0:
    size = float(np.clip(independent / clustered * episodes, 1.0, episodes))
  else:
    size = float(len(sums))
  fewest = math.ceil(math.log2(2.0 / level))  # 2 * 0.5^k <= level
  if size < fewest:
    return None
  z_level, z_power = stats.norm.isf(level / 2), stats.norm.isf(1.0 - power)
  discordance = max(discordance, z_level**2 / size)

  def surplus(effect: float) -> float:
    return size * effect**2 - (z_level * math.sqrt(discordance) + z_power * math.sqrt(max(discordance - effect**2, 0.0))) ** 2

  highest = min(discordance, 1.0)
  effect = optimize.brentq(surplus, 0.0, highest) if surplus(highest) > 0.0 else highest
  return float(min(1.0, max(effect, fewest / size)))


def holm(p_values: Sequence[float]) -> list[float]:
  """p-values adjusted by Holm's step-down method, in the given order: they hold for the whole family at once."""
  p = np.asarray(p_values, np.float64)
  if p.size and not (np.all(p >= 0.0) and np.all(p <= 1.0)):
    raise ValueError(f'p-values must lie in [0, 1], found {list(p_values)}')
  order = np.argsort(p, kind='stable')
  stepped = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
  adjusted = np.empty_like(p)
  adjusted[order] = stepped
  return [float(value) for value in adjusted]


# Internals.


def _differences(a: Sequence[bool], b: Sequence[bool]) -> np.ndarray:
  """f64[N] of -1, 0, 1."""
  a, b = np.asarray(a), np.asarray(b)
  if a.shape != b.shape or a.ndim != 1:
    raise ValueError(f'a paired comparison needs two lists of the same length, found shapes {a.shape} and {b.shape}')
  differences = a.astype(np.float64) - b.astype(np.float64)
  if not np.all(np.isin(differences, (-1.0, 0.0, 1.0))):
    raise ValueError('a paired comparison of successes needs true and false (or 1 and 0)')
  return differences


def _by_cluster(values: Sequence[float], clusters: Sequence[Hashable], bounds: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
  """Sums f64[C] and counts f64[C] of the clusters, in the order of their names."""
  values = np.asarray(values, np.float64)
  if values.ndim != 1 or len(values) != len(clusters):
    raise ValueError(f'expected one cluster a value, found {len(clusters)} clusters for values of shape {values.shape}')
  if not len(values):
    raise ValueError('no episodes to compute a statistic from')
  if not np.all((values >= bounds[0]) & (values <= bounds[1])):
    raise ValueError(f'expected values between {bounds[0]} and {bounds[1]}, found {values.min()} to {values.max()}')
  index = {cluster: i for i, cluster in enumerate(sorted(set(clusters)))}
  rows = np.array([index[cluster] for cluster in clusters])
  return np.bincount(rows, weights=values), np.bincount(rows).astype(np.float64)


def _resampled_means(sums: np.ndarray, counts: np.ndarray, seed: int, resamples: int) -> np.ndarray:
  """Means f64[R] over C clusters drawn with replacement; how often each is drawn is multinomial."""
  rng, size = np.random.default_rng(seed), len(sums)
  columns = np.stack([sums, counts], axis=1)
  means, chunk = [], max(1, _CHUNK // size)
  for start in range(0, resamples, chunk):
    rows = min(chunk, resamples - start)
    drawn = rng.integers(0, size, (rows, size)) + np.arange(rows)[:, None] * size
    weights = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)
    totals = weights @ columns
    means.append(totals[:, 0] / totals[:, 1])
  return np.concatenate(means)
