"""One HTML page of a run's results, or one table of several runs (method section 5).

    python -m mempi_jax.report --workdir W                  W/report/index.html and its pictures
    python -m mempi_jax.report --workdirs A B C --out DIR   several households and seeds pooled: DIR/index.html, table.md, results.json

The page needs no network and runs no script. Text of games, agents and policies comes from outside: the template escapes all of it, and
characters that could hide or reorder text are shown by their code. What a workdir does not have yet is left out of its page.
"""

from __future__ import annotations

import argparse
import importlib.resources
import struct
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from mempi_jax.evals import abstention, plots, stats, success
from mempi_jax.evals.success import Record
from mempi_jax.runtime import files
from mempi_jax.runtime.manifest import ManifestError
from mempi_jax.runtime.metrics import read_metrics

MARGIN = 0.03  # of non-inferiority: a loss that would be too much for the guidance saved
MAIN_SPLIT = 'heldout_games'
LEARNED = ('mempi', 'mempi_stage1')
STAGES = (('stage 1 (SFT)', 'stage1'), ('stage 2 (RL)', 'stage2'))

_EXAMPLES_A_KIND = 2


def write_report(workdir: str | Path) -> Path:
  """Writes WORKDIR/report/index.html with its pictures and returns its path.

  Reads what is there of eval/, stage1/, stage2/, results.json, manifest.json and real_engine_replay.json. Tables are those of
  results.json; without one they are computed from the episodes.

  Raises:
    FileNotFoundError: the workdir does not exist, or has neither episodes nor metrics. ValueError (EpisodesError among them): a file
      that is broken; the message names it.
  """
  workdir = Path(workdir)
  if not workdir.is_dir():
    raise FileNotFoundError(f'no folder {workdir}')
  curves = {folder: records for _, folder in STAGES if (records := read_metrics(workdir / folder))}
  has_episodes = (workdir / success.EPISODES_FILE).exists()
  if not has_episodes and not curves:
    raise FileNotFoundError(f'nothing to report in {workdir}: no {success.EPISODES_FILE}, no stage1/metrics.jsonl, no stage2/metrics.jsonl')
  episodes = success.read_episodes(workdir) if has_episodes else []
  base_runs = success.read_base_runs(workdir)
  results = _read_json(workdir / 'results.json') or {}
  rows = results.get('rows') or success.summarise(episodes)
  comparisons = results.get('comparisons') or success.compare(episodes, success.present_pairs(episodes))
  manifest = _read_json(workdir / 'manifest.json') or results.get('manifest') or {}
  replay = _read_json(workdir / 'real_engine_replay.json') or results.get('real_engine_replay')
  page = _evaluation(rows, comparisons, episodes, base_runs)
  page |= {
    'title': 'Mem-π: when to speak, and what to say',
    'subtitle': _subtitle(rows, manifest),
    'curves': [(name, f'training_{folder}') for name, folder in STAGES if folder in curves],
    'replay': None if replay is None else {'reason': 'No reason was recorded.', **replay},
    'manifest': _flatten(manifest),
    'wall_times': [(name, _duration(seconds)) for name, seconds in _flatten(results.get('wall_time_s') or {})],
  }
  if has_episodes and replay is None:
    page['replay'] = {'episodes': 0, 'agree': 0, 'reason': 'The run has not reached it yet.'}
  images = _images(page, {f'training_{folder}': (plots.training, records) for folder, records in curves.items()})
  return _write_page(workdir / 'report', page, images)


def write_pooled_report(workdirs: Sequence[str | Path], out: str | Path) -> Path:
  """Pools runs of several households and seeds into OUT/index.html, OUT/table.md and OUT/results.json; returns the page's path.

  Household and seed of a run are those of its manifest or config.json.

  Raises:
    EpisodesError, FileNotFoundError, ManifestError: as `success.pool` and `success.run_of` do.
  """
  out = Path(out)
  runs = [success.run_of(workdir) for workdir in workdirs]
  episodes, base_runs = success.pool(runs), success.pool_base_runs(runs)
  rows, comparisons = success.summarise(episodes), success.compare(episodes, success.present_pairs(episodes))
  page = _evaluation(rows, comparisons, episodes, base_runs)
  households = len({household for household, _, _ in runs})
  page |= {
    'title': f'Mem-π: {len(runs)} runs on {households} household{"s" if households > 1 else ""}',
    'subtitle': _subtitle(rows, {}),
    'runs': _run_table(runs, episodes),
    'manifest': _flatten(files.read_json(runs[0][2] / 'manifest.json')),
  }
  path = _write_page(out, page, _images(page, {}))
  files.write_text(out / 'table.md', markdown(page))
  pooled = {'rows': rows, 'comparisons': comparisons, 'runs': page['runs']}
  if 'mempi' in page['abstention']:
    pooled['abstention_by_difficulty'] = abstention.by_difficulty(episodes, base_runs)
  files.write_json(out / 'results.json', pooled)
  return path


# What the numbers say.


def headlines(
  rows: Sequence[Record], comparisons: Sequence[Record], gaps: Mapping[str, stats.Estimate], growth: stats.Estimate | None
) -> list[str]:
  """Sentences about the held-out games that claim no more than the intervals support; empty without results of the agent alone."""
  cells = {row['memory']: row for row in rows if row['split'] == MAIN_SPLIT}
  pairs = {(row['a'], row['b']): row for row in comparisons if row['split'] == MAIN_SPLIT}
  memory = next((name for name in LEARNED if name in cells), None)
  if memory is None or (memory, 'none') not in pairs:
    return []
  mine, alone, name = cells[memory], cells['none'], plots.label(memory)
  sentences = [
    f'Over {mine["n"]} episodes of held-out games the agent alone succeeds in {_percent(alone)}, with {name} in {_percent(mine)}: '
    + _verdict(pairs[memory, 'none'])
  ]
  if (memory, 'rag') in pairs:
    sentences.append(f'Against RAG over the same bank, {_percent(cells["rag"])}: ' + _verdict(pairs[memory, 'rag']))
  if (memory, 'mempi_stage1') in pairs:
    before, pair = cells['mempi_stage1'], pairs[memory, 'mempi_stage1']
    share = f', {mine["guidance_tokens"] / before["guidance_tokens"]:.0%} of stage 1\'s' if before['guidance_tokens'] else ''
    if stats.is_non_inferior(pair['ci95'], MARGIN):
      bound = f'a loss of {100 * MARGIN:.0f} points or more is excluded.'
    else:
      bound = f'a loss of {100 * MARGIN:.0f} points or more is not excluded.'
    sentences.append(
      f'It writes {mine["guidance_tokens"]:.1f} guidance tokens an episode{share} ({before["guidance_tokens"]:.1f}), '
      f'with a difference in success of {_points(pair)}: {bound}'
    )
  if memory in gaps:
    gap = gaps[memory]
    since = f', a change of {_points(growth)} since stage 1' if growth is not None else ''
    sentences.append(
      f'Its abstain rate on the easiest fifth of the games minus that on the hardest is {_points(gap)}{since}. '
      'Whether that is learned or drift can only be told beside the null controls.'
    )
  if ('oracle', 'none') in pairs and 'oracle' in cells:
    sentences.append(f'Truthful guidance (an upper bound) reaches {_percent(cells["oracle"])}.')
  return sentences


def markdown(page: Mapping[str, Any]) -> str:
  """The tables of a pooled page as Markdown: success and cost, comparisons, runs."""
  cells, splits = page['cells'], page['splits']
  lines = ['| memory | ' + ' | '.join(plots.split_label(split) for split in splits) + ' | abstains | guidance tokens | agent steps |']
  lines.append('|---|' + '---|' * len(splits) + '---|---|---|')
  for memory in page['memories']:
    texts = []
    for split in splits:
      row = cells.get((memory, split))
      texts.append(f'{row["success_rate"]:.3f} [{row["ci95"][0]:.3f}, {row["ci95"][1]:.3f}]' if row else '–')
    row = cells.get((memory, page['main_split']))
    texts += [f'{row["abstain_rate"]:.2f}', f'{row["guidance_tokens"]:.2f}', f'{row["agent_steps"]:.2f}'] if row else ['–'] * 3
    lines.append(f'| {_cell(plots.label(memory))} | ' + ' | '.join(texts) + ' |')
  sizes = ', '.join(f'{plots.split_label(split)} {max(row["n"] for row in page["rows"] if row["split"] == split)}' for split in splits)
  lines += ['', f'Episodes: {sizes}. Last three columns: {plots.split_label(page["main_split"])}.', '']
  lines += ['| split | comparison | difference | 95% interval | p | p (Holm) | MDE |', '|---|---|---|---|---|---|---|']
  for row in page['comparisons']:
    effect = row['minimum_detectable_effect']
    lines.append(
      f'| {_cell(plots.split_label(row["split"]))} | {_cell(plots.label(row["a"]))} − {_cell(plots.label(row["b"]))} | {row["diff"]:+.3f} '
      f'| [{row["ci95"][0]:+.3f}, {row["ci95"][1]:+.3f}] | {_p_value(row["mcnemar_p"])} | {_p_value(row["holm_p"])} '
      f'| {"–" if effect is None else f"{effect:.3f}"} |'
    )
  for memory, gap in page['gaps'].items():
    interval = f'{gap.value:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]'
    lines += ['', f'{plots.label(memory)}: abstain rate on the easiest fifth minus that on the hardest {interval}.']
  if page['growth'] is not None:
    growth = page['growth']
    lines += ['', f'Growth of that gap since stage 1: {growth.value:+.2f} [{growth.low:+.2f}, {growth.high:+.2f}].']
  lines += ['', '| household | seed | episodes | ' + ' | '.join(_cell(plots.label(memory)) for memory in page['memories']) + ' |']
  lines.append('|---|---|---|' + '---|' * len(page['memories']))
  for run in page['runs']:
    values = [f'{run["success"][memory]:.3f}' if memory in run['success'] else '–' for memory in page['memories']]
    lines.append(f'| {_cell(run["household"])} | {run["seed"]} | {run["n"]} | ' + ' | '.join(values) + ' |')
  return '\n'.join(lines) + '\n'


# The parts of a page.


def _evaluation(
  rows: Sequence[Record], comparisons: Sequence[Record], episodes: Sequence[Record], base_runs: Sequence[Record]
) -> dict[str, Any]:
  """Everything on a page that comes from an evaluation; what cannot be computed yet is empty."""
  learned = [memory for memory in LEARNED if any(e['memory'] == memory and e['split'] == MAIN_SPLIT for e in episodes)]
  has_none = any(e['memory'] == 'none' and e['split'] == MAIN_SPLIT for e in episodes)
  fifths = learned if any(run['split'] == MAIN_SPLIT for run in base_runs) else []
  gaps = {memory: abstention.gap(episodes, base_runs, memory=memory) for memory in fifths}
  growth = abstention.gap_growth(episodes, base_runs) if len(fifths) == 2 else None
  adjusted = stats.holm([row['mcnemar_p'] for row in comparisons])
  speakers = [m for m in success.memories_of(episodes) if m not in ('none', 'oracle')] if has_none else []
  example_memory, examples = (learned[0], _examples(episodes, learned[0])) if learned and has_none else ('', [])
  return {
    'rows': _mark_first(rows),
    'comparisons': _mark_first([{**row, 'holm_p': p} for row, p in zip(comparisons, adjusted)]),
    'memories': success.memories_of(rows),
    'splits': success.splits_of(rows),
    'cells': {(row['memory'], row['split']): row for row in rows},
    'abstention': {memory: abstention.details(episodes, base_runs, memory=memory) for memory in fifths},
    'gaps': gaps,
    'growth': growth,
    'routing': {memory: abstention.routing(episodes, memory=memory) for memory in speakers},
    'headlines': headlines(rows, comparisons, gaps, growth),
    'examples': examples,
    'example_memory': example_memory,
    'env_errors': [
      f'{plots.label(memory)}, {plots.split_label(split)}: {number} episodes'
      for memory, splits in success.count_env_errors(episodes).items()
      for split, number in splits.items()
    ],
    'warnings': [] if 'mempi' in learned or not rows else ['Stage 2 has not been evaluated yet: this page shows what came before it.'],
    'main_split': MAIN_SPLIT,
    'curves': [],
    'runs': [],
    'replay': None,
    'manifest': [],
    'wall_times': [],
  }


def _examples(episodes: Sequence[Record], memory: str) -> list[dict[str, Any]]:
  """A few whole episodes of each kind, the first by key."""
  kinds: dict[str, list[tuple[Record, Record]]] = {
    'Guidance helped': [],
    'Guidance hurt': [],
    'It abstained, and the agent succeeded': [],
    'It abstained, and the agent failed': [],
  }
  for mine, alone in success.paired(episodes, MAIN_SPLIT, memory, 'none'):
    if mine['decision'] == '[ABSTAIN]':
      kinds[f'It abstained, and the agent {"succeeded" if mine["success"] else "failed"}'].append((mine, alone))
    elif mine['success'] != alone['success']:
      kinds['Guidance helped' if mine['success'] else 'Guidance hurt'].append((mine, alone))
  numbers = {title: 1 if title.startswith('It') else _EXAMPLES_A_KIND for title in kinds}
  return [
    {'title': title, 'mine': _readable(mine), 'alone': _readable(alone)}
    for title, found in kinds.items()
    for mine, alone in found[: numbers[title]]
  ]


def _readable(episode: Record) -> Record:
  """An episode whose texts are there, if empty, and whose steps are pairs."""
  steps = [(str(step[0]), str(step[1])) for step in episode.get('steps', []) if isinstance(step, (list, tuple)) and len(step) == 2]
  texts = {name: str(episode.get(name) or '') for name in ('goal', 'observation', 'guidance')}
  return {**episode, **texts, 'steps': steps}


def _run_table(runs: Sequence[tuple[str, int, Path]], episodes: Sequence[Record]) -> list[dict[str, Any]]:
  table = []
  for household, seed, _ in runs:
    outcomes: dict[str, list[bool]] = {}
    for episode in episodes:
      is_own = (episode['household'], episode['run_seed'], episode['split']) == (household, seed, MAIN_SPLIT)
      if is_own and episode['status'] != 'env_error':
        outcomes.setdefault(episode['memory'], []).append(episode['success'])
    rates = {memory: round(sum(solved) / len(solved), 6) for memory, solved in outcomes.items()}
    table.append({'household': household, 'seed': seed, 'n': max(map(len, outcomes.values()), default=0), 'success': rates})
  return table


def _images(page: Mapping[str, Any], more: Mapping[str, tuple[Callable[..., Any], Any]]) -> dict[str, dict[str, bytes]]:
  """Picture name -> theme -> PNG."""
  drawings: dict[str, tuple[Callable[..., Any], Any]] = {}
  if page['rows']:
    drawings |= {'success': (plots.success, page['rows']), 'tokens': (plots.tokens, page['rows'])}
  if page['comparisons']:
    drawings['differences'] = (plots.differences, page['comparisons'])
  if page['abstention']:
    drawings['abstention'] = (plots.abstention, page['abstention'])
  drawings |= more
  return {name: plots.draw(figure, data) for name, (figure, data) in drawings.items()}


def _write_page(folder: Path, page: dict[str, Any], images: Mapping[str, Mapping[str, bytes]]) -> Path:
  """Writes the pictures and then the page that shows them."""
  pictures = {}
  for name, themes in images.items():
    for theme, image in themes.items():
      files.write_bytes(folder / f'{name}_{theme}.png', image)
    width, height = struct.unpack('>II', themes['light'][16:24])
    pictures[name] = {'light': f'{name}_light.png', 'dark': f'{name}_dark.png', 'width': width // 2, 'height': height // 2}
  environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, finalize=_finalize, trim_blocks=True)
  template = importlib.resources.files('mempi_jax').joinpath('assets', 'report.html').read_text(encoding='utf-8')
  html = environment.from_string(template).render(
    **page, pictures=pictures, label=plots.label, split_label=plots.split_label, colour=plots.colour, p_value=_p_value, number=_number
  )
  path = folder / 'index.html'
  files.write_text(path, html)
  return path


# Text.


def plain(text: str) -> str:
  """Text without characters that hide or reorder what a reader sees: those are shown by their code, as in \\u202e."""
  return ''.join(c if c in '\n\t' or unicodedata.category(c) not in ('Cc', 'Cf', 'Cs', 'Co', 'Cn') else f'\\u{ord(c):04x}' for c in text)


def _finalize(value: Any) -> Any:
  """Applied to everything that the template prints, before it is escaped."""
  return plain(value) if type(value) is str else value  # markup of macros is a subclass, and was made from escaped text


def _cell(text: str) -> str:
  """Text inside a Markdown table."""
  return plain(text).replace('|', '\\|').replace('\n', ' ')


def _subtitle(rows: Sequence[Record], manifest: Mapping[str, Any]) -> str:
  sizes = {split: max(row['n'] for row in rows if row['split'] == split) for split in success.splits_of(rows)}
  parts = [f'{number} episodes of {plots.split_label(split)}' for split, number in sizes.items()]
  parts += [f'{name} {manifest[name]}' for name in ('household', 'seed') if isinstance(manifest.get(name), (str, int))]
  return ' · '.join(parts)


def _verdict(pair: Record) -> str:
  low, high = pair['ci95']
  if low > 0.0 or high < 0.0:
    return f'{_points(pair)}, paired over games.'
  effect = pair['minimum_detectable_effect']
  power = '' if effect is None else f' (it would have found one of {100 * effect:.1f} points four times in five)'
  return f'{_points(pair)}, paired over games; the interval holds 0, so this evaluation shows no difference{power}.'


def _points(difference: Record | stats.Estimate) -> str:
  if isinstance(difference, stats.Estimate):
    value, low, high = difference.value, difference.low, difference.high
  else:
    value, (low, high) = difference['diff'], difference['ci95']
  return f'{100 * value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]'


def _percent(row: Record) -> str:
  return f'{100 * row["success_rate"]:.1f}% [{100 * row["ci95"][0]:.1f}, {100 * row["ci95"][1]:.1f}]'


def _p_value(p: float) -> str:
  return f'{p:.3f}' if p >= 0.001 else f'{p:.0e}' if p > 0.0 else '0'


def _number(value: float | None) -> str:
  return '–' if value is None else f'{value:.2f}'


def _duration(seconds: Any) -> str:
  if not isinstance(seconds, (int, float)):
    return str(seconds)
  return f'{seconds:.1f} s' if seconds < 60 else f'{int(seconds // 60)} min {seconds % 60:02.0f} s'


def _mark_first(rows: Sequence[Record]) -> list[Record]:
  """Rows with a mark where a new split begins."""
  return [{**row, 'first': index > 0 and row['split'] != rows[index - 1]['split']} for index, row in enumerate(rows)]


def _flatten(tree: Any, prefix: str = '') -> list[tuple[str, Any]]:
  """Nested JSON as (dotted name, value) pairs."""
  if not isinstance(tree, Mapping):
    return [(prefix, tree if isinstance(tree, (int, float)) else str(tree))]
  return [pair for name, value in tree.items() for pair in _flatten(value, f'{prefix}.{name}' if prefix else str(name))]


def _read_json(path: Path) -> Any:
  return files.read_json(path) if path.exists() else None


def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog='python -m mempi_jax.report', description='The report of a run, or one table of several runs.')
  which = parser.add_mutually_exclusive_group(required=True)
  which.add_argument('--workdir', type=Path, metavar='FOLDER', help='a run; the page is FOLDER/report/index.html')
  which.add_argument('--workdirs', type=Path, nargs='+', metavar='FOLDER', help='runs to pool; needs --out')
  parser.add_argument('--out', type=Path, metavar='FOLDER', help='where the pooled page and tables go')
  options = parser.parse_args(arguments)
  if (options.workdirs is None) != (options.out is None):
    parser.error('--workdirs and --out go together')
  try:
    path = write_report(options.workdir) if options.workdir else write_pooled_report(options.workdirs, options.out)
  except (ManifestError, ValueError, OSError) as error:
    raise SystemExit(f'report: {error}') from None
  print(path)


if __name__ == '__main__':
  main()
