"""The verdict of a control experiment over its seeds (method section 3): can the decision update tell an effect from noise?

    null    guidance cannot act: P(GENERATE) of easy and of hard contexts each stay within 0.1 of stage 1, and their gap does not widen
    mixed   it acts in half of the contexts: the other half holds as in null, and where it acts the policy learns to generate
    oracle  it always helps: the policy learns to generate nearly always
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

TOLERANCE = 0.1  # most that a mean P(GENERATE) may move where guidance cannot act
LEARNED = 0.95  # least mean P(GENERATE) where it always helps
KINDS = ('null', 'mixed', 'oracle')


@dataclasses.dataclass(frozen=True)
class Verdict:
  """`rows`: one a seed, all numbers that were judged; `failures`: what did not hold, in words (empty: passed)."""

  kind: str
  rows: tuple[dict[str, float], ...]
  failures: tuple[str, ...]

  @property
  def passed(self) -> bool:
    """Whether everything held."""
    return not self.failures


def judge(kind: str, seeds: Sequence[int], before: Sequence[Mapping[str, float]], after: Sequence[Mapping[str, float]]) -> Verdict:
  """Judges one control: probe metrics of every seed after stage 1 (`before`) and after stage 2 (`after`), see `Probes`.

  The gap P(GENERATE | hard) − P(GENERATE | easy) widens systematically when the 95% t-interval of its growth over the seeds lies
  above 0 and its mean growth is more than 0.02. Raises ValueError for an unknown kind.
  """
  if kind not in KINDS:
    raise ValueError(f'unknown control {kind!r}: expected one of {", ".join(KINDS)}')
  suffix = {'null': '', 'mixed': '_silent', 'oracle': ''}[kind]
  rows, failures = [], []
  for seed, b, a in zip(seeds, before, after, strict=True):
    names = [name for name in a if name in b]
    row = {'seed': float(seed)} | {f'{name}_before': b[name] for name in names} | {f'{name}_after': a[name] for name in names}
    easy, hard = f'probe/p_generate_easy{suffix}', f'probe/p_generate_hard{suffix}'
    row['gap_growth'] = (a[hard] - a[easy]) - (b[hard] - b[easy])
    rows.append(row)
    if kind in ('null', 'mixed'):
      failures += [
        f'seed {seed}: {name} moved from {b[name]:.3f} to {a[name]:.3f}, more than {TOLERANCE}'
        for name in (easy, hard)
        if abs(a[name] - b[name]) > TOLERANCE
      ]
    learned = {'oracle': ('probe/p_generate',), 'mixed': ('probe/p_generate_hard_acts',), 'null': ()}[kind]
    failures += [f'seed {seed}: {name} is {a[name]:.3f}, expected at least {LEARNED}' for name in learned if a[name] < LEARNED]
  growth = np.array([row['gap_growth'] for row in rows])
  if kind in ('null', 'mixed') and len(growth) > 1:
    half = stats.t.ppf(0.975, len(growth) - 1) * growth.std(ddof=1) / len(growth) ** 0.5
    if growth.mean() - half > 0 and growth.mean() > 0.02:
      failures.append(f'the gap between hard and easy widens: mean growth {growth.mean():.3f} ± {half:.3f} over {len(growth)} seeds')
  return Verdict(kind, tuple(rows), tuple(failures))


def format_verdict(verdict: Verdict) -> str:
  """The verdict as a table of text, one line a seed, then what failed."""
  suffix = '_silent' if verdict.kind == 'mixed' else ''
  names = ['probe/p_generate', f'probe/p_generate_easy{suffix}', f'probe/p_generate_hard{suffix}']
  if verdict.kind == 'mixed':
    names += ['probe/p_generate_easy_acts', 'probe/p_generate_hard_acts']
  header = ['seed', *(name.removeprefix('probe/') for name in names), 'gap growth']
  lines = ['  '.join(f'{cell:>24}' for cell in header)]
  for row in verdict.rows:
    moves = [f'{row[name + "_before"]:.3f} -> {row[name + "_after"]:.3f}' for name in names]
    lines.append('  '.join(f'{cell:>24}' for cell in (f'{row["seed"]:.0f}', *moves, f'{row["gap_growth"]:+.3f}')))
  return '\n'.join([*lines, *verdict.failures, f'control {verdict.kind}: {"passed" if verdict.passed else "FAILED"}'])
