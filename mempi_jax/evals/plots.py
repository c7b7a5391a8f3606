"""Pictures of the report, one function each; matplotlib without a display. Every function returns a Figure, drawn in the current theme.

Each memory has one colour (Okabe and Ito's palette, told apart by the colour-blind) and one marker everywhere. `draw` renders a figure in
the light and in the dark theme, as PNG and as SVG.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mempi_jax.evals.success import trained

COLOURS = {
  'none': '#8c8c8c',
  'token_matched': '#5f7080',
  'oracle': '#cc79a7',
  'rag': '#e69f00',
  'mem0': '#d55e00',
  'memory_r1': '#d98a8a',
  'memrl': '#8f6bb3',
  'reasoning_bank': '#7a8c2e',
  'awm': '#3f8f8f',
  'rag_abstain': '#a07b1e',
  'untrained': '#b5a694',
  'always': '#0072b2',
  'mempi_stage1': '#56b4e9',
  'mempi': '#009e73',
}
MARKERS = {
  'none': 'o',
  'token_matched': 'H',
  'oracle': '^',
  'rag': 's',
  'mem0': 'v',
  'memory_r1': 'p',
  'memrl': '>',
  'reasoning_bank': 'h',
  'awm': '*',
  'rag_abstain': 'd',
  'untrained': 'X',
  'always': '<',
  'mempi_stage1': 'D',
  'mempi': 'P',
}
LABELS = {
  'none': 'agent alone',
  'token_matched': 'agent alone, more steps',
  'oracle': 'oracle (upper bound)',
  'rag': 'RAG',
  'mem0': 'Mem0',
  'memory_r1': 'Memory-R1',
  'memrl': 'MemRL',
  'reasoning_bank': 'ReasoningBank',
  'awm': 'AWM',
  'rag_abstain': 'RAG, learned abstention',
  'untrained': 'Mem-π, untrained',
  'always': 'Mem-π, always speaks',
  'mempi_stage1': 'Mem-π, stage 1',
  'mempi': 'Mem-π',
}
SPLIT_LABELS = {'heldout_games': 'held-out games', 'heldout_goals': 'held-out goals', 'long_horizon': 'long horizon'}

_THEMES = {
  'light': {'background': '#ffffff', 'ink': '#1d2125', 'faint': '#d9dde1', 'quiet': '#5c6670'},
  'dark': {'background': '#171b20', 'ink': '#e6e9ec', 'faint': '#343b43', 'quiet': '#9aa5b0'},
}
# The markers as SVG paths in a box of 10 by 10, for pages.
_MARKER_PATHS = {
  'o': 'M1 5a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z',
  'H': 'M.5 5L2.8 1H7.2L9.5 5L7.2 9H2.8Z',
  'h': 'M5 .5L9 2.8V7.2L5 9.5L1 7.2V2.8Z',
  '*': 'M5 .5L6.3 3.7L9.6 3.9L7 6L7.9 9.3L5 7.5L2.1 9.3L3 6L.4 3.9L3.7 3.7Z',
  's': 'M1.5 1.5h7v7h-7Z',
  'D': 'M5 .5L9.5 5L5 9.5L.5 5Z',
  'd': 'M5 .5L8 5L5 9.5L2 5Z',
  'P': 'M3.5 .5h3v3h3v3h-3v3h-3v-3h-3v-3h3Z',
  'X': 'M2.5 .5L5 3L7.5 .5L9.5 2.5L7 5L9.5 7.5L7.5 9.5L5 7L2.5 9.5L.5 7.5L3 5L.5 2.5Z',
  'p': 'M5 .5L9.5 3.8L7.8 9H2.2L.5 3.8Z',
  '^': 'M5 1L9.5 9H.5Z',
  'v': 'M.5 1H9.5L5 9Z',
  '<': 'M9 .5V9.5L1 5Z',
  '>': 'M1 .5L9 5L1 9.5Z',
}
_LINES = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#8c8c8c')
_DOTS_PER_INCH = 150
_MOST_PANELS = 30


def label(memory: str) -> str:
  """A memory's name for readers."""
  base = trained(memory)
  return LABELS.get(memory, memory) if base == memory else f'{label(base)}, learning'


def short_label(memory: str) -> str:
  """A memory's name where there is little room."""
  short = {'none': 'alone', 'oracle': 'oracle', 'token_matched': 'more steps', 'rag_abstain': 'RAG, abstaining'}
  short |= {'untrained': 'untrained', 'always': 'always', 'mempi_stage1': 'stage 1'}
  return short.get(memory, label(memory))


def split_label(split: str) -> str:
  """A split's name for readers."""
  return SPLIT_LABELS.get(split, split)


def colour(memory: str) -> str:
  """A memory's colour, '#rrggbb'."""
  return COLOURS.get(trained(memory), '#5c7ea8')


def marker_path(memory: str) -> str:
  """A memory's marker as an SVG path in a box of 10 by 10."""
  return _MARKER_PATHS[MARKERS.get(trained(memory), 'o')]


def draw(figure: Callable[..., Figure], *arguments: Any, themes: Sequence[str] = ('light', 'dark')) -> dict[str, bytes]:
  """`figure(*arguments)` as 'light.png', 'light.svg', 'dark.png' and 'dark.svg'. The same arguments give the same bytes."""
  images = {}
  for theme in themes:
    with _theme(theme):
      drawn = figure(*arguments)
      images[f'{theme}.png'] = _save(drawn, format='png', dpi=_DOTS_PER_INCH, metadata={'Software': None})
      drawn.set_layout_engine('none')  # everything stays where it is; to lay it out again would take as long as the rest
      images[f'{theme}.svg'] = _save(drawn, format='svg', metadata={'Date': None, 'Creator': None})
  return images


# Pictures.


def success(rows: Sequence[Mapping[str, Any]]) -> Figure:
  """Success with 95% intervals: one group of lines a split, one line a memory. `rows` as in results.json."""
  splits = list(dict.fromkeys(row['split'] for row in rows))
  figure = new_figure(7.2, 0.9 + 0.36 * (len(rows) + 0.9 * len(splits)))
  axes = figure.add_subplot()
  y, ticks, names = 0.0, [], []
  for split in splits:
    group = [row for row in rows if row['split'] == split]
    n = sorted({row['n'] for row in group})
    axes.text(0.0, y, f'{split_label(split)}  (n = {"–".join(map(str, (n[0], n[-1]) if len(n) > 1 else n))})', weight='bold', va='center')
    y += 0.9
    for row in group:
      rate, (low, high) = row['success_rate'], row['ci95']
      draw_point(axes, row['memory'], rate, y, x_interval=(low, high))
      axes.text(1.015, y, f'{rate:.2f}', va='center', ha='left', fontsize=10)
      ticks.append(y)
      names.append(label(row['memory']))
      y += 1.0
    y += 0.35
  axes.set_yticks(ticks, names)
  axes.set_ylim(y - 0.5, -0.7)
  axes.set_xlim(0.0, 1.0)
  axes.grid(axis='y', visible=False)
  axes.set_xlabel('success rate, with 95% interval over games')
  return figure


def differences(comparisons: Sequence[Mapping[str, Any]]) -> Figure:
  """Paired differences with 95% intervals, one line a comparison. `comparisons` as in results.json."""
  splits = list(dict.fromkeys(row['split'] for row in comparisons))
  figure = new_figure(7.2, 0.9 + 0.36 * (len(comparisons) + 0.9 * len(splits)))
  axes = figure.add_subplot()
  left, right = _tenths(comparisons)
  y, ticks, names = 0.0, [], []
  for split in splits:
    axes.text(left, y, split_label(split), weight='bold', va='center')
    y += 0.9
    for row in (row for row in comparisons if row['split'] == split):
      draw_point(axes, row['a'], row['diff'], y, x_interval=row['ci95'])
      axes.text(right + 0.015 * (right - left), y, f'{row["diff"]:+.2f}'.replace('-', '−'), va='center', ha='left', fontsize=10)
      ticks.append(y)
      names.append(f'{short_label(row["a"])} − {short_label(row["b"])}')
      y += 1.0
    y += 0.35
  axes.axvline(0.0, color=ink('quiet'), lw=1.2)
  axes.set_yticks(ticks, names)
  axes.set_ylim(y - 0.5, -0.7)
  axes.set_xlim(left, right)
  axes.grid(axis='y', visible=False)
  axes.set_xlabel('difference of success rates, with 95% interval over games')
  return figure


def variants(comparisons: Sequence[Mapping[str, Any]]) -> Figure:
  """Each variant minus the reference, with 95% intervals: one group of lines a variant, one line a memory. Of one split, as
  variants.compare returns them."""
  names = list(dict.fromkeys(row['variant'] for row in comparisons))
  present = {row['memory'] for row in comparisons}
  memories = [memory for memory in COLOURS if memory in present] + sorted(present - COLOURS.keys())
  groups = [(name, [row for memory in memories for row in comparisons if (row['variant'], row['memory']) == (name, memory)]) for name in names]
  figure = new_figure(7.2, 1.5 + 0.24 * len(comparisons) + 0.16 * len(groups) + 0.22 * math.ceil(len(memories) / 3))
  axes = figure.add_subplot()
  left, right = _tenths(comparisons)
  y, ticks = 0.0, []
  for number, (_, group) in enumerate(groups):
    if number:
      axes.axhline(y - 0.85, color=ink('faint'), lw=0.7)
    ticks.append(y + (len(group) - 1) / 2)
    for row in group:
      draw_point(axes, row['memory'], row['diff'], y, x_interval=row['ci95'])
      axes.text(right + 0.015 * (right - left), y, f'{row["diff"]:+.3f}'.replace('-', '−'), va='center', ha='left', fontsize=9)
      y += 1.0
    y += 0.7
  axes.axvline(0.0, color=ink('quiet'), lw=1.2)
  axes.set_yticks(ticks, [shorten(name) for name, _ in groups])
  axes.tick_params(axis='y', length=0)
  axes.set_ylim(y - 0.85, -0.85)
  axes.set_xlim(left, right)
  axes.grid(axis='y', visible=False)
  axes.set_xlabel(f'success minus that of {shorten(comparisons[0]["reference"])}, with 95% interval over games')
  draw_legend(figure, memories)
  return figure


def tokens(rows: Sequence[Mapping[str, Any]]) -> Figure:
  """Success against mean guidance tokens an episode, one panel a split. `rows` as in results.json."""
  splits = list(dict.fromkeys(row['split'] for row in rows))
  memories = list(dict.fromkeys(row['memory'] for row in rows))
  figure = new_figure(max(5.2, 3.0 * len(splits) + 0.6), 3.5 + 0.22 * math.ceil(len(memories) / 3))
  panels = figure.subplots(1, len(splits), sharex=True, sharey=True, squeeze=False)[0]
  widest = max(row['guidance_tokens'] for row in rows)
  for axes, split in zip(panels, splits):
    group = [row for row in rows if row['split'] == split]
    for row, shift in zip(group, _side_by_side([row['guidance_tokens'] for row in group], 0.035 * max(widest, 1.0))):
      draw_point(axes, row['memory'], row['guidance_tokens'] + shift, row['success_rate'], y_interval=row['ci95'])
    axes.set_title(split_label(split), loc='left')
    axes.set_xlim(-0.08 * max(widest, 1.0), 1.12 * max(widest, 1.0))
  panels[0].set_ylabel('success rate')
  figure.supxlabel('guidance tokens per episode (0 where it abstains)', fontsize=11, color=ink('ink'))
  draw_legend(figure, memories)
  return figure


def abstention(details: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
  """Abstain rate of each memory, and the agent's own success, against difficulty fifths. memory -> rows of abstention.details."""
  figure = new_figure(7.2, 4.0)
  axes = figure.add_subplot()
  first = next(iter(details.values()))
  buckets = [row['bucket'] for row in first]
  fresh = [row['none_success'] for row in first]
  alone = [row['base_success'] if value is None else value for row, value in zip(first, fresh)]
  what = 'agent alone: success' + ('' if None in fresh else ' (in the evaluated episodes)')
  axes.bar(buckets, alone, width=0.72, color=ink('faint'), zorder=1, label=what)
  for shift, (memory, rows) in zip(np.linspace(-0.06, 0.06, len(details)), reversed(list(details.items()))):
    x = [row['bucket'] + shift for row in rows]
    y = [row['abstain_rate'] for row in rows]
    errors = np.abs(np.array([row['ci95'] for row in rows]).T - y)
    name = f'{label(memory)}: abstains'
    axes.errorbar(x, y, errors, color=colour(memory), marker=MARKERS.get(memory, 'o'), ms=8, lw=2, capsize=3, zorder=3, label=name)
  axes.set_xticks(buckets, [{1: '1\neasiest', 5: '5\nhardest'}.get(bucket, str(bucket)) for bucket in buckets])
  axes.set_ylim(-0.04, 1.04)
  axes.grid(axis='x', visible=False)
  axes.set_xlabel('fifth of the held-out games, by difficulty')
  axes.set_ylabel('share of episodes')
  figure.legend(loc='outside upper center', ncols=2, frameon=False, fontsize=10)
  return figure


def dynamics(runs: Sequence[Sequence[Mapping[str, float]]]) -> Figure:
  """P(GENERATE) of the probe's easy and hard contexts over the updates of stage 2: a thin line a run, and their mean.

  `runs` are the lines of each run's metrics.jsonl; runs without probes are left out.
  """
  figure = new_figure(7.2, 3.4)
  axes = figure.add_subplot()
  for name, line_colour, marker in (('easy', _LINES[0], 'o'), ('hard', _LINES[1], 's')):
    field = f'probe/p_generate_{name}'
    curves = [{record['step']: record[field] for record in run if field in record} for run in runs]
    curves = [curve for curve in curves if curve]
    if len(curves) > 1:
      for curve in curves:
        axes.plot(*zip(*sorted(curve.items())), color=line_colour, lw=0.9, alpha=0.45)
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    mean = [np.mean([curve[step] for curve in curves]) for step in steps]
    of = f', mean of {len(curves)} runs' if len(curves) > 1 else ''
    axes.plot(steps, mean, color=line_colour, marker=marker, ms=6, lw=2.2, label=f'{name} contexts{of}')
  axes.set_ylim(-0.04, 1.04)
  axes.set_xlabel('update of stage 2')
  axes.set_ylabel('mean P(GENERATE)')
  figure.legend(loc='outside upper center', ncols=2, frameon=False, fontsize=10)
  return figure


def deployment(found: Mapping[str, Any]) -> Figure:
  """Success by period: memories as they were trained, and those that learn as they go. `found` as summarise_deployment returns it."""
  figure = new_figure(9.0, 4.2)
  memories = list(dict.fromkeys(row['memory'] for row in found['rows']))
  frozen, learning = [m for m in memories if trained(m) == m], [m for m in memories if trained(m) != m]
  panels = [('as they were trained', frozen), ('learning as they go', [m for m in frozen if m in ('none', 'oracle')] + learning)]
  axes = figure.subplots(1, 2, sharey=True)
  shares = {period['period']: period['moved'] for period in found['periods']}
  for panel, (title, shown) in zip(axes, panels, strict=True):
    for period, moved in shares.items():
      if moved:
        panel.axvspan(period + 0.5, period + 1.5, color=ink('faint'), alpha=0.25 + 0.5 * moved, lw=0, zorder=0)
    for shift, memory in zip(np.linspace(-0.12, 0.12, max(len(shown), 2)), shown):
      rows = [row for row in found['rows'] if row['memory'] == memory]
      x, y = [row['period'] + 1 + shift for row in rows], [row['success_rate'] for row in rows]
      errors = np.abs(np.array([row['ci95'] for row in rows]).T - y)
      base = trained(memory)
      filled = matplotlib.rcParams['axes.facecolor'] if base == 'oracle' else colour(base)
      panel.errorbar(x, y, errors, color=colour(base), marker=MARKERS.get(base, 'o'), mfc=filled, ms=7, lw=1.6, elinewidth=1.0, capsize=2, zorder=3)
    panel.set_xticks([period + 1 for period in shares])
    panel.grid(axis='x', visible=False)
    panel.set_title(title)
    panel.set_xlabel('period (shaded: habits have moved)')
  axes[0].set_ylabel('success rate')
  draw_legend(figure, frozen)
  return figure


def reliability(found: Mapping[str, Any]) -> Figure:
  """P(GENERATE) against what guiding did, in bins: the share of the contexts that it helped, the mean benefit, and how many there are.

  `found` as calibration.summarise returns it.
  """
  figure = new_figure(7.2, 7.0)
  helped, benefit, counts = figure.subplots(3, 1, sharex=True, height_ratios=(5, 3, 1.6))
  parts = (('', 'all contexts', colour('mempi'), 'P', -0.006), ('_decisive', 'where guidance made a difference', _LINES[1], 'D', 0.006))
  helped.plot([0.0, 1.0], [0.0, 1.0], color=ink('quiet'), lw=1.2, ls='--', zorder=2, label='perfectly calibrated')
  benefit.axhline(0.0, color=ink('quiet'), lw=1.2, zorder=2)
  for suffix, name, part_colour, marker, shift in parts:
    bins = found[f'bins{suffix}']
    if not bins:
      continue
    error, chance = found[f'ece{suffix}'], found[f'ece_if_calibrated{suffix}']
    style = {'color': part_colour, 'marker': marker, 'ms': 8, 'lw': 0, 'elinewidth': 2.0, 'capsize': 3, 'zorder': 3}
    for axes, field in ((helped, 'helped'), (benefit, 'benefit')):
      if axes is benefit and suffix:
        continue  # the contexts that it leaves out have a benefit of 0: the sign is the same
      x, y = ([part[key] for part in bins] for key in ('p_generate', field))
      errors = np.abs(np.array([part[f'{field}_ci95'] for part in bins]).T - y)
      axes.errorbar(np.add(x, shift), y, errors, label=f'{name}: ECE {error:.3f} ({chance:.3f} if calibrated)', **style)
    widths = [(part['high'] - part['low']) * (0.45 if suffix else 0.9) for part in bins]
    counts.bar(
      [(part['low'] + part['high']) / 2 for part in bins], [part['contexts'] for part in bins], widths, color=part_colour, zorder=3
    )
  most = max(part['contexts'] for part in found['bins'])
  for part in found['bins']:
    counts.text(
      (part['low'] + part['high']) / 2, part['contexts'] + 0.06 * most, str(part['contexts']), ha='center', va='bottom', fontsize=9
    )
  helped.set_ylim(-0.04, 1.04)
  helped.set_ylabel('share that guiding helped')
  benefit.set_ylabel('mean benefit')
  counts.set_ylim(0.0, 1.5 * most)
  counts.set_yticks([])
  counts.grid(visible=False)
  counts.set_ylabel('contexts')
  counts.set_xlim(0.0, 1.0)
  counts.set_xticks(np.linspace(0.0, 1.0, 11))
  counts.set_xlabel('P(GENERATE), in bins of a tenth')
  figure.align_ylabels()
  figure.legend(*helped.get_legend_handles_labels(), loc='outside upper center', ncols=1, frameon=False, fontsize=10)
  return figure


def risk_coverage(curves: Any, routing: Mapping[str, Any]) -> Figure:
  """Success against the share of contexts that is guided: by P(GENERATE), at random, and as an oracle would.

  `curves` is a calibration.RiskCoverage; `routing`, as calibration.summarise returns it, says where the memory's own decisions are.
  """
  figure = new_figure(7.2, 4.4)
  axes = figure.add_subplot()
  axes.plot(curves.coverage, curves.oracle, color=ink('ink'), lw=1.8, ls=':', label='oracle routing (upper bound)')
  axes.plot(curves.coverage, curves.routed, color=colour('mempi'), lw=2.4, label='highest P(GENERATE) first')
  axes.plot(curves.coverage[[0, -1]], curves.random[[0, -1]], color=ink('quiet'), lw=1.6, ls='--', label='at random')
  axes.fill_between(curves.coverage, curves.random, curves.routed, color=colour('mempi'), alpha=0.16, lw=0)
  draw_point(axes, 'none', 0.0, curves.routed[0])
  draw_point(axes, 'always', 1.0, curves.routed[-1])
  draw_point(axes, 'mempi', routing['spoke'], routing['success'], y_interval=routing['success_ci95'])
  axes.set_xlim(-0.03, 1.03)
  axes.set_xlabel('share of the contexts that is guided')
  axes.set_ylabel('success rate')
  handles, _ = axes.get_legend_handles_labels()
  points = _handles(('none', 'always', 'mempi'))
  points[-1].set_label('Mem-π, its own decisions')
  # By column: curves, then points.
  figure.legend(handles=[*handles, *points], loc='outside upper center', ncols=2, frameon=False, fontsize=10)
  return figure


def cost(points: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], chosen: float | None) -> Figure:
  """Success against all tokens: above every memory, beside the curve over τ; below the curve alone, with its Pareto set and the run's τ.

  `points` as cost.rows_of returns them, `rows` as tables.costs_table takes them.
  """
  memories = [row['memory'] for row in rows]
  figure = new_figure(7.2, 6.9 + 0.22 * math.ceil((len(memories) + 2) / 3))
  whole, near = figure.subplots(2, 1)
  moved = [point for point in points if point['threshold'] is not None]
  line = sorted(moved, key=lambda point: point['cost'])
  x, y = ([point[field] for point in line] for field in ('cost', 'success_rate'))
  low, high = np.array([point['success_rate_ci95'] for point in line]).T
  for axes in (whole, near):
    axes.plot(x, y, color=colour('mempi'), lw=1.8, zorder=2)
    axes.set_ylabel('success rate')
  widest = max(1.0, *x, *(row['cost'] for row in rows))
  for row, shift in zip(rows, _side_by_side([row['cost'] for row in rows], 0.016 * widest)):
    draw_point(whole, row['memory'], row['cost'] + shift, row['success_rate'], y_interval=row['ci95'])
  near.fill_between(x, low, high, color=colour('mempi'), alpha=0.14, lw=0)
  near.plot(x, y, color=colour('mempi'), lw=0, marker='.', ms=8, zorder=2)
  best = [[point[field] for point in line if point['pareto']] for field in ('cost', 'success_rate')]
  near.plot(*best, lw=0, marker='o', ms=13, mfc='none', mec=ink('ink'), mew=1.1, zorder=4)
  own = next((point for point in line if point['threshold'] == chosen), None)
  if own:
    draw_point(near, 'mempi', own['cost'], own['success_rate'], y_interval=own['success_rate_ci95'])
  # Names of a few thresholds: the ends of the curve and some between above it, the run's own below.
  named = {round(place) for place in np.linspace(0, len(line) - 1, min(7, len(line)))}
  for place, point in enumerate(line):
    text = _threshold(point['threshold'])
    style = {'textcoords': 'offset points', 'zorder': 5}
    if point is own:
      near.annotate(text, (point['cost'], point['success_rate_ci95'][0]), (0, -15), fontsize=10, weight='bold', ha='center', **style)
    elif place in named:
      near.annotate(text, (point['cost'], point['success_rate']), (-5, 8), fontsize=9, ha='right', **style)
  whole.set_title('every memory', loc='left')
  near.set_title('Mem-π as τ moves', loc='left')
  whole.set_xlim(-0.05 * widest, 1.06 * widest)
  near.margins(x=0.09, y=0.14)
  near.set_xlabel('tokens per episode: inserted + read + written')
  curve = Line2D([], [], color=colour('mempi'), lw=1.8, label='Mem-π over τ')
  ring = Line2D([], [], lw=0, marker='o', ms=12, mfc='none', mec=ink('ink'), mew=1.2, label='Pareto set (below)')
  figure.legend(
    handles=[*_handles(memories), curve, ring], loc='outside upper center', ncols=3, frameon=False, fontsize=10, handletextpad=0.4
  )
  return figure


def training(records: Sequence[Mapping[str, float]]) -> Figure:
  """Training curves, one panel for each family of metrics of a room: `decision/p_generate` and `decision/p_generate_hard` share one.

  `records` are lines of metrics.jsonl: {'step', 'room/thing', ...}.
  """
  panels = curve_families(records)
  shown = list(panels.items())[:_MOST_PANELS]
  columns = min(3, len(shown))
  lines = math.ceil(len(shown) / columns)
  figure = new_figure(3.4 * columns, 2.5 * lines + 0.4)
  grid = figure.subplots(lines, columns, squeeze=False, sharex=True).ravel()
  for axes in grid[len(shown) :]:
    axes.set_visible(False)
  for index, (axes, (title, names)) in enumerate(zip(grid, shown)):
    for line_colour, name in zip(_LINES * len(names), names):
      points = [(record['step'], record[name]) for record in records if name in record]
      steps, values = np.array(points, float).T
      few = len(points) < 25
      if len(points) > 50:
        axes.plot(steps, values, color=line_colour, lw=0.8, alpha=0.3)
        values = _smooth(values, max(5, len(points) // 20))
      # With one curve the title names it.
      short = name.removeprefix(title).strip('_ ') or name.rsplit('/', 1)[-1]
      axes.plot(steps, values, color=line_colour, lw=1.8, marker='o' if few else None, ms=3.5, label=short)
    axes.set_title(title if len(names) > 1 else names[0], loc='left', fontsize=10, pad=20 if len(names) > 1 else 6)
    if len(names) > 1:
      axes.legend(frameon=False, fontsize=8, ncols=4, handlelength=1.0, columnspacing=0.9, loc='lower left', bbox_to_anchor=(-0.03, 0.98))
    if index >= len(shown) - columns:
      axes.set_xlabel('step')
      axes.tick_params(labelbottom=True)
  return figure


def curve_families(records: Sequence[Mapping[str, float]]) -> dict[str, list[str]]:
  """Panel title -> names of metrics: those that share a room and the first words of their name, and are of one magnitude.

  Rooms come in the order of first appearance, so that a later run of the same code gives the same picture.
  """
  names = list(dict.fromkeys(name for record in records for name in record if name != 'step'))
  largest = {name: max(abs(record[name]) for record in records if name in record) for name in names}
  families: dict[str, list[str]] = {}
  rooms = list(dict.fromkeys(name.rsplit('/', 1)[0] for name in names))
  for name in sorted(names, key=lambda name: (rooms.index(name.rsplit('/', 1)[0]), name)):
    for title, members in families.items():
      common = _common_words(title, name)
      near = all(largest[a] <= 10 * max(largest[b], 1e-9) for m in members for a, b in ((m, name), (name, m)))
      if common and near and len(members) < len(_LINES):
        families = {(common if key == title else key): value for key, value in families.items()}
        families[common].append(name)
        break
    else:
      families[name] = [name]
  return families


# What pictures share.


def new_figure(width: float, height: float) -> Figure:
  """An empty figure, in inches; matplotlib places what is in it."""
  figure = Figure(figsize=(width, height), layout='constrained')
  FigureCanvasAgg(figure)
  return figure


def ink(name: str) -> str:
  """A colour of the current theme, found by its background."""
  background = matplotlib.rcParams['figure.facecolor']
  return next((theme[name] for theme in _THEMES.values() if theme['background'] == background), _THEMES['light'][name])


def draw_point(axes: Any, memory: str, x: float, y: float, *, x_interval: Any = None, y_interval: Any = None) -> None:
  """A memory's marker with its interval. What is an upper bound, and no competitor, is drawn hollow."""
  hollow = memory == 'oracle'
  axes.errorbar(
    x,
    y,
    xerr=None if x_interval is None else [[max(0.0, x - x_interval[0])], [max(0.0, x_interval[1] - x)]],
    yerr=None if y_interval is None else [[max(0.0, y - y_interval[0])], [max(0.0, y_interval[1] - y)]],
    color=colour(memory),
    marker=MARKERS.get(memory, 'o'),
    ms=9,
    mew=1.8,
    mfc=matplotlib.rcParams['axes.facecolor'] if hollow else colour(memory),
    lw=2.2,
    capsize=3,
    zorder=3,
  )


def draw_legend(figure: Figure, memories: Sequence[str]) -> None:
  """The memories' markers and names above the figure."""
  figure.legend(handles=_handles(memories), loc='outside upper center', ncols=3, frameon=False, fontsize=10, handletextpad=0.2)


def shorten(text: str, most: int = 36) -> str:
  """A name on one line, its end left out where it is long."""
  text = ' '.join(text.split())
  return text if len(text) <= most else f'{text[: most - 1]}…'


# Internals.


@contextlib.contextmanager
def _theme(name: str) -> Iterator[None]:
  """matplotlib's settings for a theme, inside the block alone."""
  theme = _THEMES[name]
  settings = {
    'figure.facecolor': theme['background'],
    'savefig.facecolor': theme['background'],
    'axes.facecolor': theme['background'],
    'axes.edgecolor': theme['faint'],
    'axes.labelcolor': theme['ink'],
    'axes.titlecolor': theme['ink'],
    'axes.grid': True,
    'axes.axisbelow': True,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'grid.color': theme['faint'],
    'grid.linewidth': 0.7,
    'text.color': theme['ink'],
    'xtick.color': theme['quiet'],
    'ytick.color': theme['quiet'],
    'xtick.labelcolor': theme['ink'],
    'ytick.labelcolor': theme['ink'],
    'legend.labelcolor': theme['ink'],
    'lines.solid_capstyle': 'round',
    'hatch.color': theme['quiet'],
    'font.size': 11.0,
    'axes.titlesize': 11.5,
    'axes.titleweight': 'bold',
    'font.family': ['DejaVu Sans'],
    'svg.fonttype': 'path',  # looks the same where the font is missing
    'svg.hashsalt': 'mempi_jax',  # names inside the file do not change from one drawing to the next
    'text.parse_math': False,  # names come from outside: a '$' is a dollar
  }
  with matplotlib.rc_context({**matplotlib.rcParamsDefault, 'backend': 'agg', **settings}):
    yield


def _save(figure: Figure, **options: Any) -> bytes:
  buffer = io.BytesIO()
  figure.savefig(buffer, **options)
  return buffer.getvalue()


def _tenths(comparisons: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
  """Tenths that hold every interval, and 0."""
  left = math.floor(min(0.0, *(row['ci95'][0] - 0.02 for row in comparisons)) * 10) / 10
  right = math.ceil(max(0.0, *(row['ci95'][1] + 0.02 for row in comparisons)) * 10) / 10
  return max(-1.0, left), min(1.0, right)


def _side_by_side(values: Sequence[float], step: float) -> list[float]:
  """What to add to each value so that those that are all but equal stand side by side, `step` apart."""
  order, groups = sorted(range(len(values)), key=lambda i: values[i]), []
  for i in order:
    if groups and values[i] - values[groups[-1][-1]] < 0.5 * step:
      groups[-1].append(i)
    else:
      groups.append([i])
  shifts = [0.0] * len(values)
  for group in groups:
    for place, i in enumerate(sorted(group)):
      shifts[i] = (place - (len(group) - 1) / 2) * step
  return shifts


def _threshold(threshold: float) -> str:
  digits = 2 if 0.01 <= threshold < 0.99 else 4  # more where they crowd
  return 'τ > 1' if threshold > 1.0 else 'τ = 0' if threshold == 0.0 else f'τ = {threshold:.{digits}f}'


def _handles(memories: Sequence[str]) -> list[Line2D]:
  """Entries of a legend, one a memory."""
  return [
    Line2D(
      [],
      [],
      color=colour(memory),
      marker=MARKERS.get(memory, 'o'),
      ms=8,
      lw=0,
      mfc=matplotlib.rcParams['axes.facecolor'] if memory == 'oracle' else colour(memory),
      label=label(memory),
    )
    for memory in memories
  ]


def _common_words(a: str, b: str) -> str:
  """'decision/p_generate' for 'decision/p_generate_easy' and 'decision/p_generate_hard'; '' where they share no word after the room."""
  (room_a, _, thing_a), (room_b, _, thing_b) = a.rpartition('/'), b.rpartition('/')
  words = []
  for x, y in zip(thing_a.split('_'), thing_b.split('_')):
    if x != y:
      break
    words.append(x)
  return f'{room_a}/{"_".join(words)}' if room_a == room_b and words else ''


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
  """Mean over a centred window that shrinks at the ends."""
  half = width // 2
  sums = np.concatenate([[0.0], np.cumsum(values)])
  low, high = np.maximum(0, np.arange(len(values)) - half), np.minimum(len(values), np.arange(len(values)) + half + 1)
  return (sums[high] - sums[low]) / (high - low)
