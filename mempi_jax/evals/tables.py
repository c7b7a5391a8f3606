"""Tables of an evaluation, each defined once, and their forms: CSV and LaTeX here, Markdown too; the page's template draws the same cells.

A `Table` has two faces. `records` are the numbers in full, for CSV; `body` is what a reader sees, rounded. Text of games, agents and
configurations comes from outside: every form escapes it, and characters that hide or reorder text are shown by their code (`plain`).
"""

from __future__ import annotations

import csv
import dataclasses
import io
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from mempi_jax.evals.plots import label, short_label, split_label
from mempi_jax.evals.success import Record, memories_of, splits_of
from mempi_jax.evals.variants import FIXED

WIDE = 10  # more columns than this are set in smaller type
_NOTHING = '–'  # where there is no value


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
  """What a reader sees in one cell.

  `interval` stands after the text, less prominent; `tone` is 'good' or 'bad' where the sign of a difference is certain; `memory` is the
  memory that the row is about, whose marker stands before the text.
  """

  text: str
  interval: str = ''
  tone: str = ''
  memory: str = ''

  def __str__(self) -> str:
    return f'{self.text} {self.interval}' if self.interval else self.text


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
  """One table. `name` is the stem of its files; the first `names` columns hold names, the others numbers; `groups` are the lines of the
  body where a new group begins; in `wrapped` tables the last column holds long text."""

  name: str
  caption: str
  head: tuple[str, ...]
  body: tuple[tuple[Cell, ...], ...]
  records: tuple[Record, ...]
  names: int = 1
  groups: tuple[int, ...] = ()
  wrapped: bool = False


# The tables.


def success_table(rows: Sequence[Record], main_split: str) -> Table:
  """One line a memory: success on every split; what it costs, on the main split. `rows` as in results.json."""
  cells = {(row['memory'], row['split']): row for row in rows}
  splits, costs = splits_of(rows), ('abstain_rate', 'guidance_tokens', 'agent_steps')
  body, records = [], []
  for memory in memories_of(rows):
    line, record = [_memory(memory)], {'memory': memory}
    for split in splits:
      if row := cells.get((memory, split)):
        line.append(Cell(f'{row["success_rate"]:.3f}', _interval(row['ci95'])))
        record |= {f'{split}_success_rate': row['success_rate'], f'{split}_ci95_low': row['ci95'][0], f'{split}_ci95_high': row['ci95'][1]}
      else:
        line.append(Cell(_NOTHING))
    row = cells.get((memory, main_split), {})
    body.append((*line, *(number(row.get(field)) for field in costs)))
    records.append(record | {f'{main_split}_{field}': row.get(field) for field in costs})
  sizes = ', '.join(f'{split_label(split)} {max(row["n"] for row in rows if row["split"] == split)}' for split in splits)
  caption = f'Success rate with 95% interval over games. Episodes: {sizes}. Last three columns: {split_label(main_split)}.'
  head = ('memory', *(split_label(split) for split in splits), 'abstains', 'guidance tokens', 'agent steps')
  return Table('success', caption, head, tuple(body), tuple(records))


def cells_table(rows: Sequence[Record]) -> Table:
  """One line a split and memory, with all that was measured. `rows` as in results.json."""
  body = tuple(
    (
      Cell(split_label(row['split'])),
      _memory(row['memory']),
      Cell(str(row['n'])),
      Cell(f'{row["success_rate"]:.3f}', _interval(row['ci95'])),
      number(row['abstain_rate']),
      number(row['guidance_tokens']),
      number(row['agent_steps']),
    )
    for row in rows
  )
  head = ('split', 'memory', 'episodes', 'success', 'abstains', 'guidance tokens', 'agent steps')
  caption = 'Every memory on every split: success rate with 95% interval over games, and means per episode.'
  return Table('cells', caption, head, body, _flat(rows), names=2, groups=_groups(rows, 'split'))


def comparisons_table(comparisons: Sequence[Record]) -> Table:
  """One line a paired comparison. `comparisons` as in results.json; the column p (Holm) is there where a record has `holm_p`."""
  has_holm = any('holm_p' in row for row in comparisons)
  body = []
  for row in comparisons:
    effect = row['minimum_detectable_effect']
    body.append(
      (
        Cell(split_label(row['split'])),
        Cell(f'{label(row["a"])} − {label(row["b"])}'),
        _difference(row['diff'], row['ci95']),
        Cell(p_value(row['mcnemar_p'])),
        *([Cell(_NOTHING if row.get('holm_p') is None else p_value(row['holm_p']))] if has_holm else []),
        Cell(_NOTHING if effect is None else f'{effect:.3f}'),
      )
    )
  head = ('split', 'comparison', 'difference', 'p', *(['p (Holm)'] if has_holm else []), 'MDE')
  caption = 'Differences of success rates, paired over game and seed, with 95% interval; MDE: minimum detectable effect.'
  return Table('comparisons', caption, head, tuple(body), _flat(comparisons), names=2, groups=_groups(comparisons, 'split'))


def runs_table(runs: Sequence[Record], memories: Sequence[str], main_split: str) -> Table:
  """One line a pooled run {household, seed, n, success: memory -> rate}."""
  body = tuple(
    (
      Cell(run['household']),
      Cell(str(run['seed'])),
      Cell(str(run['n'])),
      *(Cell(f'{run["success"][memory]:.3f}' if memory in run['success'] else _NOTHING) for memory in memories),
    )
    for run in runs
  )
  head = ('household', 'seed', 'episodes', *map(short_label, memories))
  return Table('runs', f'Success on {split_label(main_split)}, run by run.', head, body, _flat(runs))


def variants_table(rows: Sequence[Record], comparisons: Sequence[Record], memory: str | None, main_split: str) -> Table:
  """One line a variant, the reference first: success of every memory that a variant may change, and what `memory` costs and gains.

  Of the main split. `rows` and `comparisons` as variants.summarise and variants.compare return them; without a `memory` nothing is compared.
  """
  here = [row for row in rows if row['split'] == main_split]
  cells = {(row['variant'], row['memory']): row for row in here}
  pairs = {row['variant']: row for row in comparisons if (row['split'], row['memory']) == (main_split, memory)}
  names = list(dict.fromkeys(row['variant'] for row in here))
  shown = [name for name in memories_of(here) if name not in FIXED]
  body, records = [], []
  for variant in names:
    found = [cells.get((variant, name)) for name in shown]
    line = [Cell(f'{row["success_rate"]:.3f}', _interval(row['ci95'])) if row else Cell(_NOTHING) for row in found]
    own, pair = cells.get((variant, memory), {}), pairs.get(variant)
    if pair:
      difference = [_difference(pair['diff'], pair['ci95']), Cell(p_value(pair['holm_p']))]
    else:
      difference = [Cell('reference' if variant == names[0] else _NOTHING), Cell('' if variant == names[0] else _NOTHING)]
    costs = {field: own.get(field) for field in ('abstain_rate', 'guidance_tokens')}
    body.append((Cell(variant), *line, *([*map(number, costs.values()), *difference] if memory else [])))
    record: Record = {'variant': variant}
    for name, row in zip(shown, found):
      low, high = row['ci95'] if row else (None, None)
      record |= {f'{name}_success_rate': row and row['success_rate'], f'{name}_ci95_low': low, f'{name}_ci95_high': high}
    low, high = pair['ci95'] if pair else (None, None)
    record |= costs | {'diff': pair and pair['diff'], 'diff_ci95_low': low, 'diff_ci95_high': high, 'holm_p': pair and pair['holm_p']}
    records.append(record)
  sizes = sorted({row['n'] for row in here})
  number_of_runs = here[0]['runs']
  caption = (
    f'Success rate on {split_label(main_split)} with 95% interval over games, {"–".join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))} '
    f'episodes of {number_of_runs} run{"s" if number_of_runs > 1 else ""} a variant.'
  )
  if memory:
    caption += (
      f' Abstention, guidance tokens and difference: {label(memory)}, the variant minus {names[0]}, paired over game and seed, with 95% '
      "interval; p: exact McNemar test after Holm's correction over the variants."
    )
  if alone := cells.get((names[0], 'none')):
    caption += f' The agent alone: {alone["success_rate"]:.3f} {_interval(alone["ci95"])}.'
  head = ('variant', *map(short_label, shown), *(('abstains', 'guidance tokens', 'difference', 'p (Holm)') if memory else ()))
  return Table('variants', caption, head, tuple(body), tuple(records))


def variant_cells_table(rows: Sequence[Record]) -> Table:
  """One line a split, variant and memory, with all that was measured. `rows` as variants.summarise returns them."""
  body = tuple(
    (
      Cell(split_label(row['split'])),
      Cell(row['variant']),
      _memory(row['memory']),
      Cell(str(row['n'])),
      Cell(f'{row["success_rate"]:.3f}', _interval(row['ci95'])),
      number(row['abstain_rate']),
      number(row['guidance_tokens']),
      number(row['agent_steps']),
    )
    for row in rows
  )
  head = ('split', 'variant', 'memory', 'episodes', 'success', 'abstains', 'guidance tokens', 'agent steps')
  caption = 'Every memory of every variant on every split: success rate with 95% interval over games, and means per episode.'
  return Table('variant_cells', caption, head, body, _flat(rows), names=3, groups=_groups(rows, 'split', 'variant'))


def variant_comparisons_table(comparisons: Sequence[Record]) -> Table:
  """One line a split, memory and variant that is compared with the reference. `comparisons` as variants.compare returns them."""
  body = []
  for row in comparisons:
    effect = row['minimum_detectable_effect']
    body.append(
      (
        Cell(split_label(row['split'])),
        _memory(row['memory']),
        Cell(f'{row["variant"]} − {row["reference"]}'),
        _difference(row['diff'], row['ci95']),
        Cell(p_value(row['mcnemar_p'])),
        Cell(p_value(row['holm_p'])),
        Cell(_NOTHING if effect is None else f'{effect:.3f}'),
      )
    )
  head = ('split', 'memory', 'comparison', 'difference', 'p', 'p (Holm)', 'MDE')
  caption = 'Differences of success rates between variants, paired over game and seed, with 95% interval; MDE: minimum detectable effect.'
  groups = _groups(comparisons, 'split', 'memory')
  return Table('variant_comparisons', caption, head, tuple(body), _flat(comparisons), names=3, groups=groups)


def abstention_table(details: Mapping[str, Sequence[Record]]) -> Table:
  """One line a memory and fifth of the games. memory -> rows of abstention.details."""
  rows = [{'memory': memory, **row} for memory, found in details.items() for row in found]
  body = tuple(
    (
      _memory(row['memory']),
      Cell({1: '1 (easiest)', 5: '5 (hardest)'}.get(row['bucket'], str(row['bucket']))),
      Cell(str(row['n'])),
      number(row['base_success']),
      number(row['none_success']),
      number(row['success_rate']),
      Cell(f'{row["abstain_rate"]:.2f}', _interval(row['ci95'], 2)),
      number(row['p_generate']),
    )
    for row in rows
  )
  head = ('memory', 'fifth', 'episodes', 'base success', 'alone, same episodes', 'success', 'abstains', 'mean P(GENERATE)')
  caption = 'When the memory speaks: held-out games in fifths by how often the agent alone solves them under other seeds.'
  return Table('abstention', caption, head, body, _flat(rows), names=2, groups=_groups(rows, 'memory'))


def effects_table(routing: Mapping[str, Record]) -> Table:
  """One line a memory: what its guidance did, against the agent alone in the same episode. memory -> counts of abstention.routing."""
  fields = {
    'generated': 'spoke',
    'helped': 'helped',
    'hurt': 'hurt',
    'both': 'solved either way',
    'neither': 'failed either way',
    'abstained': 'abstained',
    'abstained_solved': '… solved',
    'abstained_failed': '… failed',
  }
  body = tuple((_memory(memory), *(Cell(str(counts[field])) for field in fields)) for memory, counts in routing.items())
  caption = 'What guidance did, against the agent alone in the same episode.'
  return Table('effects', caption, ('memory', *fields.values()), body, _flat([{'memory': m, **c} for m, c in routing.items()]))


def calibration_table(found: Record) -> Table:
  """P(GENERATE) read as a probability, over all contexts and over those where guidance made a difference.

  `found` is what `calibration.summarise` returns, here and below.
  """
  rows = [
    {
      'contexts': name,
      'n': sum(part['contexts'] for part in found[f'bins{suffix}']),
      'ece': found[f'ece{suffix}'],
      'ece_if_calibrated': found[f'ece_if_calibrated{suffix}'],
    }
    for suffix, name in _CONTEXTS.items()
  ]
  body = tuple((Cell(row['contexts']), Cell(str(row['n'])), *(_digits(row[name]) for name in ('ece', 'ece_if_calibrated'))) for row in rows)
  head = ('contexts', 'number', 'ECE', 'ECE if calibrated')
  caption = 'Expected calibration error of P(GENERATE) as the probability that guiding helps, beside that of a perfectly calibrated policy.'
  return Table('calibration', caption, head, body, tuple(rows))


def reliability_table(found: Record) -> Table:
  """One line a bin of P(GENERATE), over all contexts and over those where guidance made a difference."""
  rows = [{'of': name, **part} for suffix, name in _CONTEXTS.items() for part in found[f'bins{suffix}']]
  body = tuple(
    (
      Cell(row['of']),
      Cell(f'{row["low"]:.1f} to {row["high"]:.1f}'),
      Cell(str(row['contexts'])),
      _digits(row['p_generate']),
      Cell(f'{row["helped"]:.3f}', _interval(row['helped_ci95'])),
      _difference(row['benefit'], row['benefit_ci95']),
    )
    for row in rows
  )
  head = ('contexts', 'P(GENERATE)', 'number', 'mean P(GENERATE)', 'share that guiding helped', 'benefit')
  caption = 'P(GENERATE) against what guiding did: share of the contexts that it helped, and mean benefit, with 95% intervals over games.'
  return Table('reliability', caption, head, body, _flat(rows), names=2, groups=_groups(rows, 'of'))


def coverage_table(found: Record) -> Table:
  """One line an order of the contexts: success over all budgets of guidance."""
  coverage = found['coverage']
  advantage = {'above_random': coverage['advantage'], 'ci95': coverage['advantage_ci95'], 'share_of_oracle': coverage['share_of_oracle']}
  names = {'routed': 'by P(GENERATE)', 'random': 'random', 'oracle': 'oracle routing (upper bound)'}
  rows = [
    {'order': name, 'mean_success': coverage['areas'][order], **(advantage if order == 'routed' else {})} for order, name in names.items()
  ]
  body = tuple(
    (
      Cell(row['order']),
      _digits(row['mean_success']),
      _difference(row['above_random'], row['ci95']) if 'ci95' in row else Cell(_NOTHING),
      number(row.get('share_of_oracle')),
    )
    for row in rows
  )
  head = ('order of the contexts', 'success, mean over all budgets', 'above random', "share of oracle routing's")
  caption = 'Success when the first contexts of an order are guided and the others left alone, as a mean over how many are guided.'
  return Table('coverage', caption, head, body, _flat(rows))


def routing_table(found: Record) -> Table:
  """One line a kind of routing error."""
  rows = []
  for name, share, lost in (
    ('spoke where silence would have won', 'spoke_wrongly', 'cost_spoke'),
    ('silent where guidance would have won', 'silent_wrongly', 'cost_silent'),
    ('spoke where it made no difference', 'spoke_in_vain', None),
  ):
    fields = {'share': share, 'success_lost': lost} if lost else {'share': share}
    numbers = {f'{field}{suffix}': found['routing'][f'{source}{suffix}'] for field, source in fields.items() for suffix in ('', '_ci95')}
    rows.append({'decision': name, **numbers})
  shown = lambda row, field: Cell(f'{row[field]:.3f}', _interval(row[f'{field}_ci95'])) if field in row else Cell(_NOTHING)
  body = tuple((Cell(row['decision']), shown(row, 'share'), shown(row, 'success_lost')) for row in rows)
  caption = 'Errors of routing: shares are of all contexts, success lost is a mean over all contexts; 95% intervals over games.'
  return Table('routing', caption, ('decision', 'share of contexts', 'success lost'), body, _flat(rows))


def costs_table(rows: Sequence[Record]) -> Table:
  """One line a memory: its success and its tokens. Rows {memory, n, success_rate, ci95, inserted_tokens, read_tokens, written_tokens,
  cost}."""
  fields = ('inserted_tokens', 'read_tokens', 'written_tokens', 'cost')
  body = tuple(
    (_memory(row['memory']), Cell(f'{row["success_rate"]:.3f}', _interval(row['ci95'])), *(_tokens(row[field]) for field in fields))
    for row in rows
  )
  caption = 'Success and tokens of every memory: means per episode; success with 95% interval over games.'
  return Table('costs', caption, ('memory', 'success', *_TOKENS), body, _flat(rows))


def thresholds_table(rows: Sequence[Record], chosen: float | None = None) -> Table:
  """One line a threshold, from the agent alone on. `rows` as `cost.rows_of` returns them; `chosen` is the threshold of the run."""
  body = []
  for row in rows:
    difference = _difference(row['over_alone'], row['over_alone_ci95'])
    body.append(
      (
        _threshold(row, chosen),
        Cell(f'{row["success_rate"]:.3f}', _interval(row['success_rate_ci95'])),
        difference if row['threshold'] is not None else Cell(_NOTHING),
        number(row['abstain_rate']),
        *(_tokens(row[field]) for field in ('inserted_tokens', 'read_tokens', 'written_tokens', 'cost')),
        Cell('yes' if row['pareto'] else ''),
      )
    )
  records = [{**row, 'chosen': chosen is not None and row['threshold'] == chosen} for row in rows]
  head = ('threshold τ', 'success', 'over the agent alone', 'abstains', *_TOKENS, 'Pareto')
  caption = 'Success and tokens per episode as the threshold τ moves: it speaks where P(GENERATE) ≥ τ. Intervals are over games.'
  return Table('thresholds', caption, head, tuple(body), _flat(records))


def wall_time_table(seconds: Sequence[tuple[str, Any]]) -> Table:
  """One line a part of the run. (name, seconds) pairs."""
  body = tuple((Cell(what), Cell(duration(value))) for what, value in seconds)
  return Table('wall_time', 'Wall time.', ('part', 'time'), body, tuple({'part': what, 'seconds': value} for what, value in seconds))


def manifest_table(values: Sequence[tuple[str, Any]]) -> Table:
  """One line a field of the manifest. (dotted name, value) pairs."""
  body = tuple((Cell(what), Cell(str(value))) for what, value in values)
  records = tuple({'field': what, 'value': value} for what, value in values)
  return Table('manifest', 'Manifest: runs are comparable only where all of it is equal.', ('field', 'value'), body, records, wrapped=True)


# Their forms.


def periods_table(found: Mapping[str, Any]) -> Table:
  """One line a memory, one column a period of a deployment. `found` as summarise_deployment returns it."""
  cells = {(row['memory'], row['period']): row for row in found['rows']}
  memories = list(dict.fromkeys(row['memory'] for row in found['rows']))
  body = []
  for memory in memories:
    line = [_memory(memory)]
    for period in found['periods']:
      row = cells.get((memory, period['period']))
      line.append(Cell(_NOTHING) if row is None else Cell(f'{row["success_rate"]:.3f}', _interval(row['ci95'])))
    body.append(tuple(line))
  head = ('memory', *(f'{period["period"] + 1} ({period["moved"]:.0%} moved)' for period in found['periods']))
  caption = 'Success by period of a deployment, with the share of habits that has moved by then; 95% interval over games.'
  return Table('periods', caption, head, tuple(body), _flat(found['rows']))


def falls_table(found: Mapping[str, Any]) -> Table:
  """One line a memory: what the change of the world cost it, and what came back. `found` as summarise_deployment returns it."""
  body = tuple(
    (
      _memory(row['memory']),
      *(Cell(f'{row[name]:.3f}') for name in ('before', 'after', 'last')),
      _difference(row['fall'], row['fall_ci95']),
      _difference(row['recovered'], row['recovered_ci95']),
    )
    for row in found['falls']
  )
  head = ('memory', 'before', 'first period after', 'last period', 'fall', 'recovered')
  caption = 'Success before and after the change; fall and recovery are between different games, with 95% interval.'
  return Table('falls', caption, head, body, _flat(found['falls']))


def learning_table(comparisons: Sequence[Record]) -> Table:
  """One line a paired comparison over the periods after that of the change. `comparisons` as summarise_deployment returns them."""
  table = comparisons_table(comparisons)
  caption = 'What learning as one goes is worth: ' + table.caption[0].lower() + table.caption[1:] + ' Periods after that of the change.'
  body = tuple(row[1:] for row in table.body)
  return Table('learning', caption, table.head[1:], body, table.records)


def updates_table(updates: Sequence[Record]) -> Table:
  """One line an update of the policy in a deployment: what its check found, and the verdict."""
  named = any('household' in update for update in updates)
  body = []
  for update in updates:
    found = Cell(_NOTHING) if update.get('difference') is None else _difference(update['difference'], update['ci95'])
    verdict = 'stays' if update['accepted'] else 'rolled back'
    run = [Cell(f'{update["household"]}, seed {update["run_seed"]}')] if named else []
    body.append(
      (
        *run,
        Cell(f'after period {update["period"] + 1}'),
        Cell(verdict),
        Cell(str(update['lessons'])),
        Cell(str(update.get('pairs', 0))),
        found,
      )
    )
  head = (*(['run'] if named else []), 'update', 'verdict', 'lessons', 'pairs', 'updated − current')
  caption = 'Updates of Mem-π in the deployment, each checked on games that it did not learn from, with 95% interval over games.'
  return Table('updates', caption, head, tuple(body), _flat(updates), names=3 if named else 2)


def to_csv(table: Table) -> str:
  """The table's records in full; None is an empty field. Text that a spreadsheet would take for a formula starts with an apostrophe."""
  columns = list(dict.fromkeys(name for record in table.records for name in record)) or list(table.head)
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator='\n')
  writer.writerow(map(_csv_field, columns))
  writer.writerows([_csv_field(record.get(name)) for name in columns] for record in table.records)
  return buffer.getvalue()


def to_latex(table: Table) -> str:
  """The table as a reader sees it, a `table` environment in booktabs' style."""
  columns = 'l' * table.names + 'r' * (len(table.head) - table.names)
  is_wide = len(table.head) > WIDE
  if table.wrapped:
    columns = columns[:-1] + r'p{0.6\linewidth}'
  lines = [
    r'% needs \usepackage{booktabs}',
    r'\begin{table}',
    r'  \centering\scriptsize\setlength{\tabcolsep}{3pt}' if is_wide else r'  \centering\small',
    rf'  \caption{{{latex_text(table.caption)}}}',
    rf'  \label{{tab:{table.name}}}',
    rf'  \begin{{tabular}}{{{columns}}}',
    r'    \toprule',
    '    ' + ' & '.join(map(latex_text, table.head)) + r' \\',
    r'    \midrule',
  ]
  for index, row in enumerate(table.body):
    if index in table.groups:
      lines.append(r'    \midrule')
    lines.append('    ' + ' & '.join(_latex_cell(cell, 'tiny' if is_wide else 'footnotesize') for cell in row) + r' \\')
  return '\n'.join([*lines, r'    \bottomrule', r'  \end{tabular}', r'\end{table}', ''])


def to_markdown(table: Table) -> str:
  """The table as a reader sees it, in Markdown."""
  lines = [table.head, ['---'] * table.names + ['---:'] * (len(table.head) - table.names), *table.body]
  return ''.join('| ' + ' | '.join(markdown_text(str(cell)) for cell in line) + ' |\n' for line in lines)


# Text.


def plain(text: str) -> str:
  """Text without characters that hide or reorder what a reader sees: those are shown by their code, as in \\u202e."""
  if text.isprintable():
    return text
  return ''.join(c if c in '\n\t' or unicodedata.category(c) not in ('Cc', 'Cf', 'Cs', 'Co', 'Cn') else f'\\u{ord(c):04x}' for c in text)


def latex_text(text: str) -> str:
  """Text that LaTeX prints as it is."""
  return ' '.join(map(_latex_word, plain(text).split()))


def markdown_text(text: str) -> str:
  """Text on one line that Markdown takes neither for HTML nor for the end of a cell."""
  return plain(text).replace('&', '&amp;').replace('<', '&lt;').replace('|', '\\|').replace('\n', ' ')


def number(value: float | None) -> Cell:
  """A mean, with two digits."""
  return Cell(_NOTHING if value is None else f'{value:.2f}')


def signed(value: float, digits: int = 3) -> str:
  """A difference, with its sign."""
  return f'{value:+.{digits}f}'.replace('-', '−')


def threshold_text(threshold: float) -> str:
  """A threshold on a probability; above 1 all are alike."""
  return '> 1' if threshold > 1.0 else f'{threshold:.4f}'.rstrip('0').ljust(3, '0')


def p_value(p: float) -> str:
  """A p-value: three digits, or its magnitude where it is smaller."""
  return f'{p:.3f}' if p >= 0.001 else f'{p:.0e}' if p > 0.0 else '0'


def duration(seconds: Any) -> str:
  """Seconds as a reader likes them; what is no number stays as it is."""
  if not isinstance(seconds, (int, float)):
    return str(seconds)
  return f'{seconds:.1f} s' if seconds < 60 else f'{int(seconds // 60)} min {seconds % 60:02.0f} s'


# Internals.

_CONTEXTS = {'': 'all', '_decisive': 'where guidance made a difference'}  # suffix of calibration.summarise's fields -> which contexts
_TOKENS = ('inserted', 'read', 'written', 'all tokens')
_FIRST = ('variant', 'split', 'memory', 'bucket', 'a', 'b', 'household', 'seed', 'n')
_LATEX = {
  '\\': r'\textbackslash{}',
  '~': r'\textasciitilde{}',
  '^': r'\textasciicircum{}',
  '<': r'\textless{}',
  '>': r'\textgreater{}',
  '|': r'\textbar{}',
  'π': r'$\pi$',
  'τ': r'$\tau$',
  '≥': r'$\ge$',
  '−': '$-$',
  '–': r'\textendash{}',
  '…': r'\ldots{}',
  '·': r'\textperiodcentered{}',
  # After a line's end, a bracket would be taken for an argument.
  '[': '{[}',
  ']': '{]}',
  **{c: f'\\{c}' for c in '&%$#_{}'},
}


def _memory(memory: str) -> Cell:
  return Cell(label(memory), memory=memory)


def _digits(value: float | None) -> Cell:
  """A share or an error, with three digits."""
  return Cell(_NOTHING if value is None else f'{value:.3f}')


def _tokens(value: float) -> Cell:
  return Cell(f'{value:.1f}')


def _difference(value: float, bounds: Sequence[float]) -> Cell:
  """A difference and its interval; coloured where its sign is certain."""
  low, high = bounds
  return Cell(signed(value), f'[{signed(low)}, {signed(high)}]', 'good' if low > 0 else 'bad' if high < 0 else '')


def _threshold(row: Record, chosen: float | None) -> Cell:
  if row['threshold'] is None:
    return _memory('none')
  is_chosen = row['threshold'] == chosen
  note = 'chosen' if is_chosen else {0.0: 'always speaks', 1.0: 'never speaks'}.get(row['abstain_rate'], '')
  return Cell(threshold_text(row['threshold']) + (f' ({note})' if note else ''), memory='mempi' if is_chosen else '')


def _interval(bounds: Sequence[float], digits: int = 3) -> str:
  return f'[{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]'


def _groups(rows: Sequence[Record], *fields: str) -> tuple[int, ...]:
  return tuple(i for i in range(1, len(rows)) if any(rows[i][field] != rows[i - 1][field] for field in fields))


def _flat(rows: Sequence[Mapping[str, Any]]) -> tuple[Record, ...]:
  """Rows with plain values, what they are about first: an interval `ci95` becomes `ci95_low` and `ci95_high`, an inner mapping one field a
  name."""
  flat = []
  for row in rows:
    record: Record = {name: row[name] for name in _FIRST if name in row}
    for name, value in row.items():
      if name.endswith('ci95'):
        record |= {f'{name}_low': value[0], f'{name}_high': value[1]}
      elif isinstance(value, Mapping):
        record |= {f'{name}_{inner}': item for inner, item in value.items()}
      else:
        record[name] = value
    flat.append(record)
  return tuple(flat)


def _csv_field(value: Any) -> Any:
  if not isinstance(value, str):
    return value
  text = plain(value)
  return f"'{text}" if text[:1] in ('=', '+', '-', '@', '\t') else text


def _latex_word(word: str) -> str:
  # A digest has no place to break by itself.
  parts = [word[i : i + 16] for i in range(0, len(word), 16)] if len(word) >= 40 else [word]
  # Two hyphens would become a dash.
  return r'\allowbreak{}'.join(''.join(_LATEX.get(c, c) for c in part) for part in parts).replace('--', '-{}-')


def _latex_cell(cell: Cell, size: str) -> str:
  return latex_text(cell.text) + (rf' {{\{size} {latex_text(cell.interval)}}}' if cell.interval else '')
