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


# What the decision is worth, and what guidance costs.

FOUND = {  # as calibration.summarise returns it
  'contexts': 8,
  'bins': [
    {'low': 0.0, 'high': 0.5, 'contexts': 4, 'p_generate': 0.1675, 'helped': 0.25, 'helped_ci95': [0.0, 0.75], 'benefit': -0.25,
     'benefit_ci95': [-0.5, -0.125]},
    {'low': 0.5, 'high': 1.0, 'contexts': 4, 'p_generate': 0.7925, 'helped': 0.5, 'helped_ci95': [0.25, 0.75], 'benefit': 0.25,
     'benefit_ci95': [-0.5, 1.0]},
  ],
  'ece': 0.1875,
  'ece_if_calibrated': 0.1234,
  'bins_decisive': [
    {'low': 0.5, 'high': 1.0, 'contexts': 3, 'p_generate': 0.75, 'helped': 0.666667, 'helped_ci95': [0.0, 1.0], 'benefit': 0.333333,
     'benefit_ci95': [0.125, 1.0]},
  ],
  'ece_decisive': 0.083333,
  'ece_if_calibrated_decisive': 0.2,
  'coverage': {
    'areas': {'routed': 0.617188, 'random': 0.5625, 'oracle': 0.773438}, 'advantage': 0.054688, 'advantage_ci95': [-0.1, 0.2],
    'share_of_oracle': 0.259259,
  },
  'routing': {
    'contexts': 8, 'spoke': 0.5, 'spoke_wrongly': 0.125, 'spoke_wrongly_ci95': [0.0, 0.375], 'silent_wrongly': 0.25,
    'silent_wrongly_ci95': [0.0, 0.5], 'spoke_in_vain': 0.125, 'spoke_in_vain_ci95': [0.0, 0.25], 'cost_spoke': 0.0625,
    'cost_spoke_ci95': [0.0, 0.2], 'cost_silent': 0.2, 'cost_silent_ci95': [0.1, 0.3], 'success': 0.625, 'success_ci95': [0.25, 0.875],
    'oracle': 0.8875,
  },
}  # fmt: skip


def shown(table):
  return [[str(cell) for cell in row] for row in table.body]


def test_calibration_beside_what_luck_makes_of_it():
  table = tables.calibration_table(FOUND)
  assert shown(table) == [['all', '8', '0.188', '0.123'], ['where guidance made a difference', '3', '0.083', '0.200']]
  assert read_csv(tables.to_csv(table))[0] == {'contexts': 'all', 'n': '8', 'ece': '0.1875', 'ece_if_calibrated': '0.1234'}
  check_latex(tables.to_latex(table), 4)
  # Guidance that made no difference anywhere.
  nothing = {**FOUND, 'bins_decisive': [], 'ece_decisive': None, 'ece_if_calibrated_decisive': None}
  assert shown(tables.calibration_table(nothing))[1][1:] == ['0', '–', '–']
  assert len(tables.reliability_table(nothing).body) == 2


def test_bins_of_all_contexts_and_of_the_decisive_ones():
  table = tables.reliability_table(FOUND)
  assert shown(table)[0] == ['all', '0.0 to 0.5', '4', '0.168', '0.250 [0.000, 0.750]', '−0.250 [−0.500, −0.125]']
  assert [row[5].tone for row in table.body] == ['bad', '', 'good'] and table.groups == (2,)
  record = read_csv(tables.to_csv(table))[2]
  assert record['of'] == 'where guidance made a difference' and record['contexts'] == '3'
  assert (record['helped_ci95_high'], record['benefit_ci95_low'], record['helped']) == ('1.0', '0.125', '0.666667')
  check_latex(tables.to_latex(table), 6)


def test_orders_of_the_contexts():
  table = tables.coverage_table(FOUND)
  assert shown(table) == [
    ['by P(GENERATE)', '0.617', '+0.055 [−0.100, +0.200]', '0.26'],
    ['random', '0.562', '–', '–'],
    ['oracle routing (upper bound)', '0.773', '–', '–'],
  ]
  assert read_csv(tables.to_csv(table))[0]['ci95_low'] == '-0.1' and read_csv(tables.to_csv(table))[2]['above_random'] == ''
  check_latex(tables.to_latex(table), 4)


def test_errors_of_routing_and_what_they_cost():
  table = tables.routing_table(FOUND)
  assert shown(table) == [
    ['spoke where silence would have won', '0.125 [0.000, 0.375]', '0.062 [0.000, 0.200]'],
    ['silent where guidance would have won', '0.250 [0.000, 0.500]', '0.200 [0.100, 0.300]'],
    ['spoke where it made no difference', '0.125 [0.000, 0.250]', '–'],
  ]
  records = read_csv(tables.to_csv(table))
  assert [record['success_lost_ci95_high'] for record in records] == ['0.2', '0.3', '']
  check_latex(tables.to_latex(table), 3)


def point(threshold, rate, abstains, cost, pareto):
  row = {'threshold': threshold, 'abstain_rate': abstains, 'inserted_tokens': 2.5, 'read_tokens': 51.5, 'written_tokens': 4.0, 'cost': cost}
  row |= {'success_rate': rate, 'success_rate_ci95': [rate - 0.125, rate + 0.125], 'over_alone': 0.25, 'over_alone_ci95': [0.125, 0.375]}
  return row | {'over_always': -0.25, 'over_always_ci95': [-0.5, 0.0], 'pareto': pareto}


def test_thresholds_and_the_chosen_one():
  rows = [
    point(None, 0.5, 1.0, 0.0, True), point(0.0, 0.75, 0.0, 63.5, False), point(0.35, 0.875, 0.25, 58.06, True),
    point(0.98765, 0.625, 0.75, 54.0, False), point(1.0000000000000002, 0.5, 1.0, 52.5, False),
  ]  # fmt: skip
  table = tables.thresholds_table(rows, 0.35)
  assert [str(row[0]) for row in table.body] == ['agent alone', '0.0 (always speaks)', '0.35 (chosen)', '0.9877', '> 1 (never speaks)']
  assert [row[0].memory for row in table.body] == ['none', '', 'mempi', '', '']
  assert shown(table)[2][1:] == ['0.875 [0.750, 1.000]', '+0.250 [+0.125, +0.375]', '0.25', '2.5', '51.5', '4.0', '58.1', 'yes']
  assert shown(table)[0][2] == '–' and [row[-1] for row in shown(table)] == ['yes', '', 'yes', '', '']
  records = read_csv(tables.to_csv(table))
  assert [record['chosen'] for record in records] == ['False', 'False', 'True', 'False', 'False'] and records[0]['threshold'] == ''
  assert (records[3]['threshold'], records[3]['over_always_ci95_low'], records[3]['cost']) == ('0.98765', '-0.5', '54.0')
  latex = tables.to_latex(table)
  check_latex(latex, 9)
  assert r'threshold $\tau$ &' in latex and r'P(GENERATE) $\ge$ $\tau$' in latex
  # No threshold is known: none is marked, and the agent alone is not the chosen one.
  assert [str(row[0]) for row in tables.thresholds_table(rows).body][2] == '0.35'
  assert {record['chosen'] for record in tables.thresholds_table(rows).records} == {False}


def test_tokens_of_every_memory():
  row = {'memory': 'rag', 'n': 8, 'success_rate': 0.5, 'ci95': [0.25, 0.75]}
  row |= {'inserted_tokens': 5.0, 'read_tokens': 0.0, 'written_tokens': 1.25, 'cost': 6.25}
  table = tables.costs_table([row])
  assert shown(table) == [['RAG', '0.500 [0.250, 0.750]', '5.0', '0.0', '1.2', '6.2']] and table.body[0][0].memory == 'rag'
  assert read_csv(tables.to_csv(table))[0]['written_tokens'] == '1.25'
  check_latex(tables.to_latex(table), 6)


def test_many_memories_fit_in_smaller_type():
  memories = [f'memory_{i}' for i in range(13)]
  runs = [{'household': 'maple', 'seed': 1, 'n': 9, 'success': dict.fromkeys(memories, 0.5)}]
  latex = tables.to_latex(tables.runs_table(runs, memories, 'heldout_games'))
  check_latex(latex, 16)
  assert r'\scriptsize' in latex and r'\small' not in latex
  head = tables.runs_table(runs, ['none', 'token_matched', 'rag', 'mempi_stage1', 'mempi'], 'heldout_games').head
  assert head[3:] == ('alone', 'more steps', 'RAG', 'stage 1', 'Mem-π')


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
