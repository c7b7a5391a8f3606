"""The files of a sweep's variants: one line a variant, the same numbers in every form, and no name of a variant that can act in any."""

import csv
import html.parser
import json
import re

import pytest

from mempi_jax import runs as runs_lib
from mempi_jax import sweep as sweep_lib
from mempi_jax.evals import success
from mempi_jax.runtime import files
from mempi_jax.variants_report import findings, main_memory, write_variants

MANIFEST = {'agent_hash': '79ad', 'step_cap': 16, 'packages': {'jax': '0.10.2'}}
SPLITS = ('heldout_games', 'long_horizon')
FULL = [True] * 10 + [False] * 2
WORSE = [True] + [False] * 11
HOSTILE = '=cmd|"/c" & <script>alert(1)</script> \\input{x}%$#_{}[1]\u202e'


def write_run(folder, solved, *, seed=0, memory='mempi', tokens=4):
  """A finished run: the agent alone, and a memory that solves the games that `solved` says."""
  episodes = [
    {
      'memory': name, 'split': split, 'task_id': f's{seed}-{i:03d}', 'seed': 7, 'decision': '[ABSTAIN]' if silent else '[GENERATE]',
      'p_generate': None, 'guidance_tokens': 0 if silent else tokens, 'success': won, 'status': 'success' if won else 'truncated', 'agent_steps': 5,
    }
    for split in SPLITS
    for name, row in (('none', [False] * len(solved)), (memory, solved))
    for i, won in enumerate(row)
    for silent in (name == 'none' or i % 2 == 0,)
  ]  # fmt: skip
  files.write_text(folder / success.EPISODES_FILE, ''.join(json.dumps(one) + '\n' for one in episodes))
  files.write_json(folder / 'manifest.json', MANIFEST | {'household': 'maple', 'seed': seed, 'games': {'heldout_games': f'of {seed}'}})
  files.write_json(folder / 'results.json', {'rows': success.summarise(episodes)})
  return folder


class Page(html.parser.HTMLParser):
  """Elements, attributes and text; complains about elements that are not closed."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.attributes, self.visible, self.open = [], [], [], []
    self.feed(text)
    self.close()
    assert not self.open
    self.text = re.sub(r'\s+', ' ', ''.join(self.visible))

  def handle_starttag(self, tag, attrs):
    self.elements.append(tag)
    self.attributes += attrs
    if tag not in ('meta', 'img', 'source'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open[-1:] != ['style']:
      self.visible.append(data)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """A report of three variants, one of which has a hostile name; two seeds each."""
  folder = tmp_path_factory.mktemp('variants')
  outcomes = {'full': FULL, HOSTILE: WORSE, 'same': FULL}
  workdirs = {name: [write_run(folder / f'{i}{seed}', row, seed=seed) for seed in (0, 1)] for i, (name, row) in enumerate(outcomes.items())}
  page = write_variants(workdirs, folder / 'out')
  assert page == folder / 'out' / 'index.html'
  return page.parent


def test_every_form_is_there(written):
  assert sorted(path.name for path in written.iterdir()) == [
    'comparisons.csv', 'index.html', 'table.md', 'variants.csv', 'variants.png', 'variants.svg', 'variants.tex',
  ]  # fmt: skip
  assert (written / 'variants.png').read_bytes().startswith(b'\x89PNG') and b'<svg' in (written / 'variants.svg').read_bytes()


def test_one_line_a_variant(written):
  lines = (written / 'table.md').read_text(encoding='utf-8').splitlines()
  assert lines[0] == '| variant | Mem-π | abstains | guidance tokens | difference | p (Holm) |'
  assert lines[2].startswith('| full | 0.833 [') and lines[2].endswith('] | 0.50 | 2.00 | reference |  |')
  assert '| −0.750 [' in lines[3] and lines[4].startswith('| same |') and '| +0.000 [' in lines[4] and lines[4].endswith('| 1.000 |')
  caption = ' '.join(lines[5:])
  assert 'Success rate on held-out games' in caption and '24 episodes of 2 runs a variant' in caption and 'The agent alone: 0.000' in caption
  assert 'worse (p by Holm ≤ 0.05): =cmd' in caption and 'no difference shown (p by Holm > 0.05): same +0.000.' in caption


def test_csv_holds_every_split_in_full(written):
  rows = list(csv.DictReader((written / 'variants.csv').open(encoding='utf-8')))
  assert list(rows[0])[:3] == ['variant', 'split', 'memory'] and len(rows) == 3 * 2 * 2 and {row['runs'] for row in rows} == {'2'}
  pairs = list(csv.DictReader((written / 'comparisons.csv').open(encoding='utf-8')))
  assert [(row['split'], row['variant']) for row in pairs] == [(split, name) for split in SPLITS for name in (shown_in_csv(), 'same')]
  assert float(pairs[0]['diff']) == -0.75 and float(pairs[0]['ci95_low']) < -0.75 and pairs[0]['reference'] == 'full'


def shown_in_csv():
  return "'" + HOSTILE.replace('\u202e', '\\u202e')


def test_a_hostile_name_acts_nowhere(written):
  text = (written / 'index.html').read_text(encoding='utf-8')
  page = Page(text)
  assert 'script' not in page.elements and not [name for name, _ in page.attributes if name.startswith('on')]
  assert HOSTILE.replace('\u202e', '\\u202e') in page.text
  latex = (written / 'variants.tex').read_text(encoding='utf-8')
  assert r'=cmd\textbar{}"/c" \& \textless{}script' in latex and r'\textbackslash{}input\{x\}\%\$\#\_\{\}{[}1{]}' in latex
  markdown = (written / 'table.md').read_text(encoding='utf-8')
  assert '<script' not in markdown and '=cmd\\|"/c" &amp; &lt;script>' in markdown
  assert not [path.name for path in written.iterdir() if '\u202e'.encode() in path.read_bytes()]


def test_the_page_needs_no_network(written):
  page = Page((written / 'index.html').read_text(encoding='utf-8'))
  sources = [value for name, value in page.attributes if name in ('src', 'srcset')]
  assert len(sources) == 2 and all(value.startswith('data:image/svg+xml;base64,') for value in sources)
  links = [value for name, value in page.attributes if name == 'href']
  assert links and all((written / link).is_file() for link in links)
  policy = next(value for name, value in page.attributes if name == 'content' and 'default-src' in value)
  assert "default-src 'none'" in policy and 'script-src' not in policy
  assert ('media', 'screen and (prefers-color-scheme: dark)') in page.attributes


def test_variants_without_a_memory_in_common(tmp_path):
  """Nothing to compare: the numbers are there all the same."""
  workdirs = {memory: [write_run(tmp_path / memory, FULL, memory=memory)] for memory in ('rag', 'mem0')}
  out = write_variants(workdirs, tmp_path / 'out').parent
  assert (out / 'table.md').read_text(encoding='utf-8').splitlines()[0] == '| variant | RAG | Mem0 |'
  assert not (out / 'variants.png').exists() and len((out / 'comparisons.csv').read_text().splitlines()) == 1
  assert 'img' not in Page((out / 'index.html').read_text(encoding='utf-8')).elements


def test_an_agent_alone_that_played_otherwise_is_a_warning(tmp_path):
  workdirs = {'full': [write_run(tmp_path / 'a', FULL)], 'odd': [write_run(tmp_path / 'b', FULL)]}
  path = workdirs['odd'][0] / success.EPISODES_FILE
  files.write_text(path, path.read_text().replace('"agent_steps": 5', '"agent_steps": 6', 3))
  out = write_variants(workdirs, tmp_path / 'out').parent
  for name in ('index.html', 'table.md'):
    assert '3 episodes of the agent alone ended otherwise in odd than in full' in (out / name).read_text(encoding='utf-8')


def test_findings_claim_what_the_corrected_tests_say():
  row = {'split': 'heldout_games', 'memory': 'mempi', 'reference': 'full'}
  rows = [{**row, 'variant': v, 'diff': d, 'holm_p': p} for v, d, p in (('a', -0.1, 0.01), ('b', 0.2, 0.05), ('c', -0.3, 0.051), ('d', -0.4, 0.0))]
  start = 'Mem-π on held-out games, against full, '
  assert findings(rows, 'mempi', 'heldout_games') == [
    f'{start}worse (p by Holm ≤ 0.05): a −0.100, d −0.400.',
    f'{start}better (p by Holm ≤ 0.05): b +0.200.',
    f'{start}no difference shown (p by Holm > 0.05): c −0.300.',
  ]
  assert main_memory(rows, 'heldout_games') == 'mempi' and main_memory([], 'heldout_games') is None
  assert main_memory([{**row, 'memory': 'rag'}, {**row, 'memory': 'zeta'}], 'heldout_games') == 'zeta'


# The command.

CONFIG = '''
from ml_collections import ConfigDict
def get_config():
  return ConfigDict({'seed': 0, 'gate': True})
def sweep():
  for seed in SEEDS:
    for name, gate in VARIANTS.items():
      yield {'variant': name, 'gate': gate, 'seed': seed}
'''


@pytest.fixture
def half(tmp_path):
  """A sweep of three variants and two seeds: (its config, its folder, finish(name, seed))."""
  config = tmp_path / 'half.py'
  config.write_text("SEEDS, VARIANTS = (0, 1), {'full': True, 'a b': False, 'c': False}\n" + CONFIG)

  def finish(name, seed, solved=FULL):
    write_run(tmp_path / 'runs' / f'{name},seed={seed}', solved, seed=seed)

  return [f'--config={config}', f'--workdir={tmp_path / "runs"}', '--tables'], tmp_path / 'runs', finish


def lines_of(folder):
  return [line.split(' | ')[0].strip('| ') for line in (folder / 'variants' / 'table.md').read_text().splitlines()[2:] if line.startswith('|')]


def test_tables_of_a_sweep_in_progress_all_variants_on_one_seed(half, capsys):
  arguments, folder, finish = half
  for name in ('full', 'a_b', 'c'):
    finish(name, 0)
  finish('full', 1)
  sweep_lib.main(arguments)
  assert lines_of(folder) == ['full', 'a b', 'c'] and '12 episodes of 1 run a variant' in (folder / 'variants' / 'table.md').read_text()
  out = capsys.readouterr().out
  assert 'left out, not finished: 2 of 6 runs: a_b,seed=1, c,seed=1\n' in out
  assert 'left out, finished, but the others of the table lack its household and seed: 1 of 6 runs: full,seed=1\n' in out
  assert out.endswith(f'{folder / "variants" / "index.html"}\n')
  runs = list(csv.DictReader((folder / 'runs.csv').open()))
  assert list(runs[0])[:5] == ['run', 'variant', 'gate', 'seed', 'split'] and {row['run'] for row in runs} >= {'full,seed=1', 'a_b,seed=0'}


def test_tables_of_a_sweep_in_progress_fewer_variants_on_both_seeds(half, capsys):
  arguments, folder, finish = half
  for name, seed in (('full', 0), ('a_b', 0), ('full', 1), ('a_b', 1), ('c', 0)):
    finish(name, seed)
  sweep_lib.main(arguments)
  assert lines_of(folder) == ['full', 'a b'] and '24 episodes of 2 runs a variant' in (folder / 'variants' / 'table.md').read_text()
  assert '1 of 6 runs: c,seed=1' in (out := capsys.readouterr().out) and '1 of 6 runs: c,seed=0' in out
  finish('c', 1)
  sweep_lib.main(arguments)
  assert lines_of(folder) == ['full', 'a b', 'c'] and 'left out' not in capsys.readouterr().out


def test_tables_need_the_reference_and_another(half, capsys):
  arguments, folder, finish = half

  def refused():
    with pytest.raises(SystemExit) as stopped:
      sweep_lib.main(arguments)
    assert stopped.value.code == 2 and not (folder / 'variants').exists()
    return capsys.readouterr().err

  assert 'no run of this sweep is finished' in refused()
  finish('a_b', 1)
  assert "no run of 'full' is finished, the variant that the others are compared with" in refused()
  finish('full', 0)
  assert "no variant but 'full' is finished on a household and seed that it has" in refused()
  arguments.append('--shard=0/2')
  assert '--tables takes all runs, not a shard' in refused()


def test_a_sweep_of_finished_runs_ends_with_the_table(half, monkeypatch, capsys):
  arguments, folder, finish = half
  for name in ('full', 'a_b', 'c'):
    for seed in (0, 1):
      finish(name, seed, WORSE if name == 'c' else FULL)
  commands = []

  def run_nothing(self, command, log, lock):
    commands.append(command)
    return 0

  monkeypatch.setattr(runs_lib.Processes, 'run', run_nothing)
  sweep_lib.main(arguments[:-1])
  assert len(commands) == 3 * 6 and not any('variant=' in part for command in commands for part in command)
  assert '--config.gate=False' in commands[3] or '--config.gate=False' in commands[6]
  assert lines_of(folder) == ['full', 'a b', 'c'] and '| c | 0.083' in capsys.readouterr().out
