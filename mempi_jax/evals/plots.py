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

COLOURS = {
  'none': '#8c8c8c',
  'token_matched': '#5f7080',
  'oracle': '#cc79a7',
  'rag': '#e69f00',
  'mem0': '#d55e00',
  'memory_r1': '#d98a8a',
  'memrl': '#8f6bb3',
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
  'rag': 'RAG, k = 1',
  'mem0': 'Mem0',
  'memory_r1': 'Memory-R1',
  'memrl': 'MemRL',
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
  return LABELS.get(memory, memory)


def split_label(split: str) -> str:
  """A split's name for readers."""
  return SPLIT_LABELS.get(split, split)


def colour(memory: str) -> str:
  """A memory's colour, '#rrggbb'."""
  return COLOURS.get(memory, '#5c7ea8')


def marker_path(memory: str) -> str:
  """A memory's marker as an SVG path in a box of 10 by 10."""
  return _MARKER_PATHS[MARKERS.get(memory, 'o')]


def draw(figure: Callable[..., Figure], *arguments: Any) -> dict[str, bytes]:
  """`figure(*arguments)` as 'light.png', 'light.svg', 'dark.png' and 'dark.svg'. The same arguments give the same bytes."""
  images = {}
  for theme in _THEMES:
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
  figure = _figure(7.2, 0.9 + 0.36 * (len(rows) + 0.9 * len(splits)))
  axes = figure.add_subplot()
  y, ticks, names = 0.0, [], []
  for split in splits:
    group = [row for row in rows if row['split'] == split]
    n = sorted({row['n'] for row in group})
    axes.text(0.0, y, f'{split_label(split)}  (n = {"–".join(map(str, (n[0], n[-1]) if len(n) > 1 else n))})', weight='bold', va='center')
    y += 0.9
    for row in group:
      rate, (low, high) = row['success_rate'], row['ci95']
      _point(axes, row['memory'], rate, y, x_interval=(low, high))
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
  figure = _figure(7.2, 0.9 + 0.36 * (len(comparisons) + 0.9 * len(splits)))
  axes = figure.add_subplot()
  # Tenths that hold every interval, and 0.
  left = max(-1.0, math.floor(min(0.0, *(row['ci95'][0] - 0.02 for row in comparisons)) * 10) / 10)
  right = min(1.0, math.ceil(max(0.0, *(row['ci95'][1] + 0.02 for row in comparisons)) * 10) / 10)
  y, ticks, names = 0.0, [], []
  for split in splits:
    axes.text(left, y, split_label(split), weight='bold', va='center')
    y += 0.9
    for row in (row for row in comparisons if row['split'] == split):
      _point(axes, row['a'], row['diff'], y, x_interval=row['ci95'])
      axes.text(right + 0.015 * (right - left), y, f'{row["diff"]:+.2f}'.replace('-', '−'), va='center', ha='left', fontsize=10)
      ticks.append(y)
      names.append(f'{_short(row["a"])} − {_short(row["b"])}')
      y += 1.0
    y += 0.35
  axes.axvline(0.0, color=_ink('quiet'), lw=1.2)
  axes.set_yticks(ticks, names)
  axes.set_ylim(y - 0.5, -0.7)
  axes.set_xlim(left, right)
  axes.grid(axis='y', visible=False)
  axes.set_xlabel('difference of success rates, with 95% interval over games')
  return figure


def tokens(rows: Sequence[Mapping[str, Any]]) -> Figure:
  """Success against mean guidance tokens an episode, one panel a split. `rows` as in results.json."""
  splits = list(dict.fromkeys(row['split'] for row in rows))
  memories = list(dict.fromkeys(row['memory'] for row in rows))
  figure = _figure(max(5.2, 3.0 * len(splits) + 0.6), 3.5 + 0.22 * math.ceil(len(memories) / 3))
  panels = figure.subplots(1, len(splits), sharex=True, sharey=True, squeeze=False)[0]
  widest = max(row['guidance_tokens'] for row in rows)
  for axes, split in zip(panels, splits):
    for row in (row for row in rows if row['split'] == split):
      _point(axes, row['memory'], row['guidance_tokens'], row['success_rate'], y_interval=row['ci95'])
    axes.set_title(split_label(split), loc='left')
    axes.set_xlim(-0.08 * max(widest, 1.0), 1.12 * max(widest, 1.0))
  panels[0].set_ylabel('success rate')
  figure.supxlabel('guidance tokens per episode (0 where it abstains)', fontsize=11, color=_ink('ink'))
  _legend(figure, memories)
  return figure


def abstention(details: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
  """Abstain rate of each memory, and the agent's own success, against difficulty fifths. memory -> rows of abstention.details."""
  figure = _figure(7.2, 4.0)
  axes = figure.add_subplot()
  first = next(iter(details.values()))
  buckets = [row['bucket'] for row in first]
  fresh = [row['none_success'] for row in first]
  alone = [row['base_success'] if value is None else value for row, value in zip(first, fresh)]
  what = 'agent alone: success' + ('' if None in fresh else ' (in the evaluated episodes)')
  axes.bar(buckets, alone, width=0.72, color=_ink('faint'), zorder=1, label=what)
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


def training(records: Sequence[Mapping[str, float]]) -> Figure:
  """Training curves, one panel for each family of metrics of a room: `decision/p_generate` and `decision/p_generate_hard` share one.

  `records` are lines of metrics.jsonl: {'step', 'room/thing', ...}.
  """
  panels = curve_families(records)
  shown = list(panels.items())[:_MOST_PANELS]
  columns = min(3, len(shown))
  lines = math.ceil(len(shown) / columns)
  figure = _figure(3.4 * columns, 2.5 * lines + 0.4)
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


def _ink(name: str) -> str:
  """A colour of the current theme, found by its background."""
  background = matplotlib.rcParams['figure.facecolor']
  return next((theme[name] for theme in _THEMES.values() if theme['background'] == background), _THEMES['light'][name])


def _save(figure: Figure, **options: Any) -> bytes:
  buffer = io.BytesIO()
  figure.savefig(buffer, **options)
  return buffer.getvalue()


def _figure(width: float, height: float) -> Figure:
  figure = Figure(figsize=(width, height), layout='constrained')
  FigureCanvasAgg(figure)
  return figure


def _point(axes: Any, memory: str, x: float, y: float, *, x_interval: Any = None, y_interval: Any = None) -> None:
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


def _legend(figure: Figure, memories: Sequence[str]) -> None:
  handles = [
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
  figure.legend(handles=handles, loc='outside upper center', ncols=3, frameon=False, fontsize=10, handletextpad=0.2)


def _short(memory: str) -> str:
  short = {'oracle': 'oracle', 'rag': 'RAG', 'none': 'alone', 'token_matched': 'more steps', 'rag_abstain': 'RAG, abstaining'}
  short |= {'untrained': 'untrained', 'always': 'always', 'mempi_stage1': 'stage 1'}
  return short.get(memory, label(memory))


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
