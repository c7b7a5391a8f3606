"""Tables as CSV, LaTeX and Markdown: the numbers are all there, and no text can act in any of them."""

import csv
import io
import re

import pytest

from mempi_jax.evals import tables

ROWS = [
  {
    'memory': memory,
    'split': split,
    'n': 40,
    'success_rate': rate,
    'ci95': [rate - 0.05, rate + 0.05],
    'abstain_rate': 0.25,
    'guidance_tokens': 3.456,
    'agent_steps': 11.0,
  }
  for split, rates in (('heldout_games', (0.4, 0.6)), ('long_horizon', (0.3, 0.5)))
  for memory, rate in zip(('none', 'mempi'), rates)
]
PAIR = {'split': 'heldout_games', 'a': 'mempi', 'b': 'none', 'diff': -0.2, 'ci95': [-0.3, -0.1], 'mcnemar_p': 0.0004}
PAIR |= {'minimum_detectable_effect': None}


def read_csv(text):
  return list(csv.DictReader(io.StringIO(text)))


def check_latex(text, columns):
  """Its environments and braces are closed, and every line of the table has as many cells as the table has columns."""
  stack = []
  for what, name in re.findall(r'\\(begin|end)\{(\w+)\}', text):
    stack.append(name) if what == 'begin' else stack.remove(name)
  bare = re.sub(r'\\[\\&%$#_{}]', '', text)
  assert not stack and bare.count('{') == bare.count('}') and bare.count('$') % 2 == 0
  lines = [line for line in text.splitlines() if line.endswith(r' \\')]
  assert all(len(re.findall(r'(?<!\\)&', line)) == columns - 1 for line in lines)
  assert '\n%' not in text and not re.search(r'(?<!\\)[#%]', text.partition('\n')[2])
  return lines


def test_success_in_every_form():
  table = tables.success_table(ROWS, 'heldout_games')
  records = read_csv(tables.to_csv(table))
  assert [record['memory'] for record in records] == ['none', 'mempi']
  mempi = {name: float(value) for name, value in records[1].items() if name != 'memory'}
  assert (
    mempi['heldout_games_success_rate'] == 0.6
    and mempi['long_horizon_ci95_low'] == 0.45
    and mempi['heldout_games_guidance_tokens'] == 3.456
  )
  lines = check_latex(tables.to_latex(table), 6)
  assert lines[2].split(' & ')[:2] == [r'    Mem-$\pi$', r'0.600 {\footnotesize {[}0.550, 0.650{]}}'] and '3.46' in lines[2]
  markdown = tables.to_markdown(table).splitlines()
  assert markdown[1] == '| --- | ---: | ---: | ---: | ---: | ---: |'
  assert markdown[3] == '| Mem-π | 0.600 [0.550, 0.650] | 0.500 [0.450, 0.550] | 0.25 | 3.46 | 11.00 |'


def test_a_cell_that_is_missing():
  table = tables.success_table(ROWS[:3], 'long_horizon')
  assert [str(cell) for cell in table.body[1]] == ['Mem-π', '0.600 [0.550, 0.650]', '–', '–', '–', '–']
  assert read_csv(tables.to_csv(table))[1]['long_horizon_agent_steps'] == ''


def test_cells_equal_rows():
  table = tables.cells_table([{**row, 'read_tokens': 7} for row in ROWS])
  records = read_csv(tables.to_csv(table))
  assert len(records) == 4 and list(records[0])[:3] == ['split', 'memory', 'n']
  for record, row in zip(records, ROWS):
    low, high = row['ci95']
    expected = {name: value for name, value in row.items() if name != 'ci95'} | {'ci95_low': low, 'ci95_high': high, 'read_tokens': 7}
    assert record == {name: str(value) for name, value in expected.items()}
  assert table.groups == (2,) and tables.to_latex(table).count(r'\midrule') == 2
  check_latex(tables.to_latex(table), 7)


def test_comparisons_show_holm_where_it_is_known():
  without = tables.comparisons_table([PAIR])
  assert 'p (Holm)' not in without.head and [str(cell) for cell in without.body[0]][2:] == ['−0.200 [−0.300, −0.100]', '4e-04', '–']
  assert without.body[0][2].tone == 'bad'
  both = tables.comparisons_table([PAIR, {**PAIR, 'diff': 0.2, 'ci95': [-0.1, 0.3], 'holm_p': 0.25}])
  assert both.head[3:5] == ('p', 'p (Holm)') and [str(row[4]) for row in both.body] == ['–', '0.250'] and both.body[1][2].tone == ''
  assert [record['holm_p'] for record in read_csv(tables.to_csv(both))] == ['', '0.25']
  check_latex(tables.to_latex(both), 6)
  assert '$-$0.200' in tables.to_latex(both)


def test_runs_and_other_tables():
  runs = [{'household': 'a|b', 'seed': 1, 'n': 9, 'success': {'none': 0.5}}]
  table = tables.runs_table(runs, ['none', 'mempi'], 'heldout_games')
  assert tables.to_markdown(table).splitlines()[2] == '| a\\|b | 1 | 9 | 0.500 | – |'
  assert read_csv(tables.to_csv(table)) == [{'household': 'a|b', 'seed': '1', 'n': '9', 'success_none': '0.5'}]
  times = tables.wall_time_table([('stage1', 31.25), ('stage2', 125.0)])
  assert [str(cell) for _, cell in times.body] == ['31.2 s', '2 min 05 s'] and read_csv(tables.to_csv(times))[1]['seconds'] == '125.0'
  counts = dict.fromkeys(('generated', 'helped', 'hurt', 'both', 'neither', 'abstained', 'abstained_solved', 'abstained_failed'), 3)
  effects = tables.effects_table({'mempi': {**counts, 'helped': 2}})
  assert [str(cell) for cell in effects.body[0]][:3] == ['Mem-π', '3', '2'] and effects.body[0][0].memory == 'mempi'


def test_fifths_of_several_memories():
  row = {
    'n': 8,
    'base_success': 0.5,
    'none_success': None,
    'success_rate': 0.75,
    'abstain_rate': 0.9,
    'ci95': [0.8, 1.0],
    'p_generate': 0.1,
  }
  table = tables.abstention_table({m: [{'bucket': 1, **row}, {'bucket': 2, **row}] for m in ('mempi', 'mempi_stage1')})
  assert [str(cell) for cell in table.body[0]] == ['Mem-π', '1 (easiest)', '8', '0.50', '–', '0.75', '0.90 [0.80, 1.00]', '0.10']
  assert table.groups == (2,) and str(table.body[1][1]) == '2'
  check_latex(tables.to_latex(table), 8)


HOSTILE = '=cmd|"/c" & <b>\\input{x}%$#_{}~^--[1]\u202e\x1b\nπ'


def test_no_text_acts_in_any_form():
  table = tables.manifest_table([('household', HOSTILE), ('digest', 'f' * 64)])
  record = read_csv(tables.to_csv(table))[0]
  assert record['value'] == "'" + HOSTILE.replace('\u202e', '\\u202e').replace('\x1b', '\\u001b')
  latex = tables.to_latex(table)
  lines = check_latex(latex, 2)
  assert lines[1] == (
    r'    household & =cmd\textbar{}"/c" \& \textless{}b\textgreater{}\textbackslash{}input\{x\}\%\$\#\_\{\}\textasciitilde{}'
    r'\textasciicircum{}-{}-{[}1{]}\textbackslash{}u202e\textbackslash{}u001b $\pi$ \\'
  )
  assert lines[2].count(r'\allowbreak{}') == 3
  assert tables.to_markdown(table).splitlines()[2].startswith('| household | =cmd\\|"/c" &amp; &lt;b>')
  assert not {'\u202e', '\x1b'} & set(latex + tables.to_markdown(table) + tables.to_csv(table))


@pytest.mark.parametrize(
  'text, shown', [('a\tb\n', 'a\tb\n'), ('é 漢 π', 'é 漢 π'), ('\u200bx\u2066\x7f\ud800', '\\u200bx\\u2066\\u007f\\ud800')]
)
def test_plain(text, shown):
  assert tables.plain(text) == shown
