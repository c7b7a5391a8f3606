"""Pictures of a sweep's results: success against a field that its runs differ in, run by run, and the trials of a study.

Each returns a Figure, to be rendered by `plots.draw`. Every memory has the colour and the marker that it has in a report.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from mempi_jax.evals.plots import MARKERS, colour, draw_legend, draw_point, ink, new_figure, shorten, split_label
from mempi_jax.evals.success import memories_of

Record = Mapping[str, Any]

_MOST_TICKS = 8  # values of a field that are all named on its axis
_COLUMNS = 3  # of panels


def over_field(points: Sequence[Record], field: str, split: str) -> Figure:
  """Success with 95% intervals against a numeric field: one line a memory, one panel for each setting of the other fields.

  Args:
    points: {x, panel, memory, n, success_rate, ci95, singles}, one a value of the field, panel and memory; `singles` are the rates of the
      single runs that were pooled, empty where there was one.
    field: dotted name; its axis is logarithmic where the values, all positive, span a decade or more.
    split: what was played.
  """
  panels, memories = list(dict.fromkeys(point['panel'] for point in points)), memories_of(points)
  values = sorted({point['x'] for point in points})
  columns = min(_COLUMNS, len(panels))
  lines = math.ceil(len(panels) / columns)
  figure = new_figure(max(6.4, 3.4 * columns), 3.3 * lines + 0.5 + 0.22 * math.ceil(len(memories) / 3))
  grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
  logarithmic = spans_decades(values)
  place = np.log10 if logarithmic else np.asarray
  span = float(place(values[-1]) - place(values[0])) or 1.0
  # Side by side, so that intervals do not hide each other, and yet nearer to their value than to the next one.
  gap = min(np.diff(place(values)), default=span)
  shifts = np.linspace(-0.5, 0.5, max(len(memories), 2)) * min(0.4 * gap, 0.12 * span)
  for axes, panel in zip(grid, panels, strict=False):
    for memory, shift in zip(memories, shifts, strict=False):
      own = sorted((point for point in points if (point['panel'], point['memory']) == (panel, memory)), key=lambda point: point['x'])
      moved = lambda x, shift=shift: float(10 ** (np.log10(x) + shift) if logarithmic else x + shift)
      axes.plot([moved(point['x']) for point in own], [point['success_rate'] for point in own], color=colour(memory), lw=1.6, zorder=2)
      for point in own:
        draw_point(axes, memory, moved(point['x']), point['success_rate'], y_interval=point['ci95'])
        for rate in point['singles']:
          axes.plot(moved(point['x']), rate, color=colour(memory), marker=MARKERS.get(memory, 'o'), ms=4, alpha=0.45, lw=0, zorder=2)
    if panel:
      axes.set_title(shorten(panel, 44), loc='left')
    if logarithmic:
      _make_logarithmic(axes)
    _name_values(axes, values)
    margin = 0.08 * span + float(shifts[-1])
    ends = float(place(values[0])) - margin, float(place(values[-1])) + margin
    axes.set_xlim(*(10**end for end in ends) if logarithmic else ends)
    axes.grid(axis='x', visible=False)
  for axes in grid[len(panels) :]:
    axes.set_visible(False)
  for index in range(len(panels)):
    grid[index].tick_params(labelbottom=index >= len(panels) - columns)
  _limit_rates(grid[0], points)
  n = sorted({point['n'] for point in points})
  episodes = '–'.join(map(str, dict.fromkeys((n[0], n[-1]))))
  pooled = any(point['singles'] for point in points)
  seeds = '; small: each run alone' if pooled else ''
  what = f'{field}{" (log scale)" if logarithmic else ""}\n{episodes} episodes a point, with 95% interval over games{seeds}'
  figure.supylabel(f'success rate on {split_label(split)}', fontsize=11, color=ink('ink'))
  figure.supxlabel(what, fontsize=11, color=ink('ink'))
  draw_legend(figure, memories)
  return figure


def by_run(rows: Sequence[Record], split: str) -> Figure:
  """Success with 95% intervals, one group of lines a run or variant, one line a memory.

  Args:
    rows: {name, memory, n, success_rate, ci95, singles}; see `over_field`.
    split: what was played.
  """
  names, memories = list(dict.fromkeys(row['name'] for row in rows)), memories_of(rows)
  # Where there are many lines, those that differ from run to run least are the first to be spared room.
  step = 0.24 if len(rows) <= 80 else 0.15
  figure = new_figure(7.2, 1.5 + step * (len(rows) + 0.7 * len(names)) + 0.22 * math.ceil(len(memories) / 3))
  axes = figure.add_subplot()
  y, ticks = 0.0, []
  for number, name in enumerate(names):
    group = sorted((row for row in rows if row['name'] == name), key=lambda row: memories.index(row['memory']))
    if number:
      axes.axhline(y - 0.85, color=ink('faint'), lw=0.7)
    ticks.append(y + (len(group) - 1) / 2)
    for row in group:
      draw_point(axes, row['memory'], row['success_rate'], y, x_interval=row['ci95'])
      for rate in row['singles']:
        axes.plot(rate, y, color=colour(row['memory']), marker=MARKERS.get(row['memory'], 'o'), ms=4, alpha=0.45, lw=0, zorder=2)
      axes.text(1.015, y, f'{row["success_rate"]:.3f}', va='center', ha='left', fontsize=9, transform=axes.get_yaxis_transform())
      y += 1.0
    y += 0.7
  axes.set_yticks(ticks, [shorten(name) for name in names])
  axes.tick_params(axis='y', length=0)
  axes.set_ylim(y - 0.85, -0.85)
  low = max(0.0, math.floor(min(row['ci95'][0] for row in rows) * 10 - 0.2) / 10)
  axes.set_xlim(low, min(1.0, math.ceil(max(row['ci95'][1] for row in rows) * 10 + 0.2) / 10))
  axes.grid(axis='y', visible=False)
  seeds = '; small: each run alone' if any(row['singles'] for row in rows) else ''
  axes.set_xlabel(f'success rate on {split_label(split)}\nwith 95% interval over games{seeds}')
  draw_legend(figure, memories)
  return figure


def study(
  trials: Sequence[Record], logarithmic: Collection[str], importances: Mapping[str, float], objective: tuple[str, str, str, str], words: str
) -> Figure:
  """The objective trial by trial with the best so far, and against each parameter.

  Args:
    trials: {number, value, ci95 (None where there is none), params: name -> value}, finished ones in order.
    logarithmic: the parameters whose axes are.
    importances: parameter -> its share, of those that have one.
    objective: (split, memory, measure, direction).
    words: the objective in words, for the axis.
  """
  split, memory, measure, direction = objective
  best_of = max if direction == 'maximize' else min
  best = best_of(trials, key=lambda trial: trial['value'])
  names = sorted({name for trial in trials for name in trial['params']}, key=lambda name: (-importances.get(name, 0.0), name))
  columns = min(_COLUMNS, max(1, len(names)))
  lines = math.ceil(len(names) / columns)
  figure = new_figure(max(7.2, 3.2 * columns), 3.2 + 2.7 * lines)
  layout = figure.add_gridspec(1 + lines, columns, height_ratios=[1.15, *[1.0] * lines])
  history = figure.add_subplot(layout[0, :])
  numbers = [trial['number'] for trial in trials]
  so_far = [best_of(trial['value'] for trial in trials[: i + 1]) for i in range(len(trials))]
  history.step(numbers, so_far, where='post', color=ink('quiet'), lw=1.4, zorder=2, label='best so far')
  panels = [(history, lambda trial: trial['number'])]
  for index, name in enumerate(names):
    axes = figure.add_subplot(layout[1 + index // columns, index % columns], sharey=history)
    panels.append((axes, lambda trial, name=name: trial['params'].get(name)))
    share = f' (importance {importances[name]:.2f})' if name in importances else ''
    axes.set_xlabel(shorten(name, 34) + share)
    if index % columns == 0:
      axes.set_ylabel(words)
    else:
      axes.tick_params(labelleft=False)
    _scale(axes, [trial['params'][name] for trial in trials if name in trial['params']], name in logarithmic)
  for axes, x_of in panels:
    for trial in trials:
      x = x_of(trial)
      if x is None and axes is not history:
        continue  # a parameter that this trial had no use for
      x = x if isinstance(x, (int, float)) and not isinstance(x, bool) else str(x)
      error = None if trial['ci95'] is None else [[max(0.0, trial['value'] - trial['ci95'][0])], [max(0.0, trial['ci95'][1] - trial['value'])]]
      axes.errorbar(x, trial['value'], error, color=colour(memory), marker=MARKERS.get(memory, 'o'), ms=7, lw=1.4, capsize=2, alpha=0.75, zorder=3)
      if trial is best:
        axes.plot(x, trial['value'], marker='o', ms=15, mfc='none', mec=ink('ink'), mew=1.2, lw=0, zorder=4, label='best')
  history.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
  history.set_xlim(numbers[0] - 0.5, numbers[-1] + 0.5)
  history.set_xlabel('trial')
  history.set_ylabel(words)
  intervals = ', 95% intervals over games' if any(trial['ci95'] for trial in trials) else ''
  history.set_title(f'{split_label(split)}{intervals}; best: trial {best["number"]}, {best["value"]:.3f}', loc='left')
  figure.legend(*history.get_legend_handles_labels(), loc='outside upper right', ncols=2, frameon=False, fontsize=10)
  return figure


def spans_decades(values: Sequence[float]) -> bool:
  """Whether positive values differ by a factor of ten or more."""
  return min(values) > 0 and max(values) >= 10 * min(values) * (1 - 1e-9)


# Internals.


def _scale(axes: Any, values: Sequence[Any], logarithmic: bool) -> None:
  """The axis of a parameter: names in order, or numbers, which are named where they are few."""
  if any(isinstance(value, (bool, str)) or value is None for value in values):
    names = sorted({str(value) for value in values})
    for name in names:  # so that they come in order
      axes.plot(name, np.nan, alpha=0.0)
    axes.margins(x=0.2)
    axes.grid(axis='x', visible=False)
    return
  place = np.log10 if logarithmic else np.asarray
  if logarithmic:
    _make_logarithmic(axes)
  else:
    axes.xaxis.set_major_locator(MaxNLocator(4))
  low, high = float(place(min(values))), float(place(max(values)))
  margin = 0.12 * (high - low) or 0.5  # where there is one value alone
  ends = low - margin, high + margin
  axes.set_xlim(*(10**end for end in ends) if logarithmic else ends)
  distinct = sorted(set(values))
  if len(distinct) <= 3 and all(np.diff(place(distinct)) > 0.3 * (high - low)):
    _name_values(axes, distinct)


def _make_logarithmic(axes: Any) -> None:
  axes.set_xscale('log')
  axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=5))
  axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: format_value(value)))  # the usual one writes mathematics, which is switched off
  axes.xaxis.set_minor_locator(NullLocator())


def _name_values(axes: Any, values: Sequence[float]) -> None:
  """Ticks at the values themselves, where they are few."""
  if len(values) > _MOST_TICKS:
    return
  axes.set_xticks(values, [format_value(value) for value in values], rotation=0 if len(values) <= 5 else 30)
  axes.xaxis.set_minor_locator(NullLocator())
  axes.xaxis.set_minor_formatter(NullFormatter())


def format_value(value: Any) -> str:
  """A field's value as one writes it: 0.0005 as 5e-4, 16 as 16."""
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return str(value)
  text = f'{value:.4g}'
  if value and (abs(value) < 1e-2 or abs(value) >= 1e5):
    digits, _, exponent = f'{value:.3e}'.partition('e')
    text = f'{digits.rstrip("0").rstrip(".")}e{int(exponent)}'
  return text


def _limit_rates(axes: Any, points: Sequence[Record]) -> None:
  low, high = min(point['ci95'][0] for point in points), max(point['ci95'][1] for point in points)
  axes.set_ylim(max(-0.02, low - 0.05), min(1.02, high + 0.05))
