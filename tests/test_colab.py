"""The notebooks of colab/ are clean, re-implement nothing, and run from top to bottom on a tiny budget."""

import ast
import json
import os
import re
import sys
from pathlib import Path

import pytest

from mempi_jax.config import load_config, resolve
from mempi_jax.evals.success import BASE_RUNS_FILE, EPISODES_FILE
from mempi_jax.experience.bank import episode_record
from mempi_jax.runtime import files
from mempi_jax.runtime.metrics import MetricWriter
from mempi_jax.runtime.workdir import CACHE_VARIABLE
from mempi_jax.types import Context, Decision, Episode, Guidance, Status, Step, Task
from tests.small_run import SMALL

nbformat = pytest.importorskip('nbformat', reason='notebooks are read with nbformat: pip install -e ".[test]"')

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / 'colab').glob('*.ipynb'))
MOST_DEFINITIONS = 0  # functions, classes and lambdas of a notebook: the package has them
MOST_LINES = 20  # of a cell

# What stands in for the cell of the parameters: a budget of seconds, in the folder where the notebook runs.
TINY_SETTINGS = SMALL | {
  'stage2.updates': 2,
  'eval.memories': ('none', 'untrained', 'mempi_stage1', 'mempi'),
  'eval.games.heldout_games': 12,
  'eval.games.heldout_goals': 0,
  'eval.games.long_horizon': 0,
}
TINY = f'SETTINGS = {TINY_SETTINGS!r}'


def read(name):
  return nbformat.read(ROOT / 'colab' / name, as_version=nbformat.NO_CONVERT)


def parameters_of(notebook):
  (cell,) = [cell for cell in notebook.cells if 'parameters' in cell.metadata.get('tags', ())]
  return cell


def names_assigned(source):
  return {target.id for node in ast.parse(source).body for target in node.targets}


def test_there_are_three():
  assert [path.name for path in NOTEBOOKS] == ['01_guidance.ipynb', '02_train.ipynb', '03_read_a_run.ipynb']


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_clean(path):
  notebook = read(path.name)
  nbformat.validate(notebook)
  assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
  assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
  assert 'colab-badge.svg' in notebook.cells[0].source
  # The badge opens this file of the repository that the first cell of code installs.
  code = [cell for cell in notebook.cells if cell.cell_type == 'code']
  (address,) = re.findall(r"^REPOSITORY = 'https://github\.com/(.+?)'", code[0].source, re.MULTILINE)
  assert f'https://colab.research.google.com/github/{address}/blob/main/colab/{path.name})' in notebook.cells[0].source
  for before, cell in zip(notebook.cells, notebook.cells[1:]):
    assert cell.cell_type == 'markdown' or before.cell_type == 'markdown', f'{cell.id}: no words before it'
  for cell in code:
    assert cell.outputs == [] and cell.execution_count is None, f'{cell.id}: has outputs'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_short_and_without_an_implementation_of_its_own(path):
  code = {cell.id: cell.source for cell in read(path.name).cells if cell.cell_type == 'code'}
  kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
  nodes = [node for source in code.values() for node in ast.walk(ast.parse(source))]
  assert sum(isinstance(node, kinds) for node in nodes) <= MOST_DEFINITIONS
  imported = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
  imported += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
  assert {name.partition('.')[0] for name in imported} - sys.stdlib_module_names <= {'mempi_jax', 'IPython'}
  assert [name for name, source in code.items() if source.count('\n') >= MOST_LINES] == []


ABSOLUTE_PATH = re.compile(r'(?<![\w.:/<)])/\w|[A-Z]:\\|~/')


@pytest.mark.parametrize('text', ["Path('/data/run')", 'in /tmp/x', r"'C:\run'", '~/runs'])
def test_an_absolute_path_is_seen(text):
  assert ABSOLUTE_PATH.search(text)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_no_absolute_path(path):
  found = [(cell.id, match[0]) for cell in read(path.name).cells for match in ABSOLUTE_PATH.finditer(cell.source)]
  assert found == []


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_settings_are_fields_of_the_config(path):
  """Executing a notebook with other parameters would not show it."""
  names = {'ROOT': ROOT}
  exec(parameters_of(read(path.name)).source, names)
  config = resolve(load_config(ROOT / 'configs' / 'quickstart.py', names['SETTINGS']))
  assert config.bank.games == names['SETTINGS']['bank.games']


# Executing them.


@pytest.fixture(scope='module')
def compiled(tmp_path_factory):
  """Compiled programs, which the notebooks share."""
  return tmp_path_factory.mktemp('compiled')


@pytest.fixture
def execute(tmp_path, monkeypatch, compiled):
  """(notebook, its parameters) -> its cells by id, executed in a folder that starts empty."""
  nbclient = pytest.importorskip('nbclient', reason='notebooks are executed with nbclient: pip install -e ".[test]"')
  pytest.importorskip('ipykernel', reason='notebooks are executed with ipykernel: pip install -e ".[test]"')
  monkeypatch.setenv('PYTHONPATH', str(ROOT), prepend=os.pathsep)  # never a reason to install anything
  monkeypatch.setenv(CACHE_VARIABLE, str(compiled))
  for variable in ('IPYTHONDIR', 'JUPYTER_RUNTIME_DIR'):
    monkeypatch.setenv(variable, str(tmp_path / variable.lower()))

  def run(name, parameters):
    notebook = read(name)
    cell = parameters_of(notebook)
    assert names_assigned(parameters) == names_assigned(cell.source)
    cell.source = parameters
    nbclient.NotebookClient(notebook, timeout=1800, resources={'metadata': {'path': str(tmp_path)}}).execute()
    return {cell.id: cell for cell in notebook.cells}

  return run


def printed(cell):
  return ''.join(output.text for output in cell.outputs if output.output_type == 'stream' and output.name == 'stdout')


def shown(cell, kind):
  return [output.data[kind] for output in cell.outputs if kind in output.get('data', {})]


def played(i, memory, solved, spoke):
  """An episode of game i."""
  guidance = Guidance(Decision.GENERATE, f'the mug is usually in the drawer {i}.', (1, 2, 3)) if spoke else Guidance(Decision.ABSTAIN)
  context = Context(Task('alfworld', f'game-{i}', 'heldout_games', 7), 'put a mug in shelf', 'You are in the middle of a room.')
  status = Status.SUCCESS if solved else Status.TRUNCATED
  step = Step(context.observation, f'go to drawer {i}', float(solved))
  episode = Episode(context, guidance, (step,), float(solved), solved, status, 'You arrive at drawer.')
  return {'memory': memory, **episode_record(episode)}


def make_run(folder):
  """Ten games. Alone the agent solves four; Mem-π speaks in seven, helps in three of them and hurts in one."""
  alone = [played(i, 'none', i < 4, False) for i in range(10)]
  stage1 = [played(i, 'mempi_stage1', i < 5, True) for i in range(10)]
  mempi = [played(i, 'mempi', i < 7 and i != 3, i >= 3) for i in range(10)]
  for path, records in ((EPISODES_FILE, alone + stage1 + mempi), (BASE_RUNS_FILE, alone)):
    files.write_text(folder / path, ''.join(json.dumps(record) + '\n' for record in records))
  for stage in ('stage1', 'stage2'):
    with MetricWriter(folder / stage) as writer:
      for step in range(5):
        writer.write(step, {'train/loss': 1 / (1 + step)})


def test_read_a_run(execute, tmp_path):
  make_run(tmp_path / 'run')
  cells = execute('03_read_a_run.ipynb', "WORKDIR = Path('run').resolve()\nEXAMPLES = 1\nSETTINGS = {}")
  assert printed(cells['make']) == ''
  (table,) = shown(cells['success'], 'text/markdown')
  assert [re.search(r'\d\.\d{3}', line)[0] for line in table.splitlines()[2:]] == ['0.400', '0.500', '0.600']
  (table,) = shown(cells['comparisons'], 'text/markdown')
  assert '| Mem-π − agent alone | +0.200' in table
  (table,) = shown(cells['effects'], 'text/markdown')
  assert '| Mem-π | 7 | 3 | 1 | 0 | 3 | 3 | 3 | 0 |' in table
  pictures = [len(shown(cells[name], 'image/png')) for name in ('success', 'tokens', 'comparisons', 'abstention', 'curves')]
  assert pictures == [1, 1, 1, 1, 2]
  assert printed(cells['helped']).startswith('3 of 10 games') and 'mempi/game-4@7' in printed(cells['helped'])
  assert printed(cells['hurt']).startswith('1 of 10 games') and 'mempi/game-3@7' in printed(cells['hurt'])


@pytest.mark.slow
def test_train_and_then_the_others(execute, tmp_path):
  cells = execute('02_train.ipynb', "WORKDIR = Path('run').resolve()\n" + TINY)
  assert re.match(r'\d+ entries, \d+ of games that the agent solved alone\n', printed(cells['bank']))
  (table,) = shown(cells['success'], 'text/markdown')
  assert [line.split(' | ')[0] for line in table.splitlines()[2:]] == ['| agent alone', '| Mem-π, untrained', '| Mem-π, stage 1', '| Mem-π']
  assert [len(shown(cells[name], 'image/png')) for name in ('curves1', 'curves2', 'success')] == [1, 1, 1]
  written = (tmp_path / 'run' / 'results.json').stat().st_mtime_ns

  cells = execute('01_guidance.ipynb', f"POLICY = Path('run')\nWORKDIR = Path('play')\nGAMES = 6\nTHRESHOLD = 0.0\n{TINY}")
  assert printed(cells['load']) == ''
  assert len(printed(cells['contexts']).splitlines()) == 7 and '(abstains)' not in printed(cells['contexts'])  # and the agent's line
  assert 'with Mem-π' in printed(cells['transcripts'])

  cells = execute('03_read_a_run.ipynb', f"WORKDIR = Path('run').resolve()\nEXAMPLES = 1\n{TINY}")
  assert printed(cells['make']) == ''
  assert len(shown(cells['curves'], 'image/png')) == 2
  assert (tmp_path / 'run' / 'results.json').stat().st_mtime_ns == written


@pytest.mark.slow
def test_guidance_without_a_policy(execute, tmp_path):
  cells = execute('01_guidance.ipynb', f"POLICY = Path('absent')\nWORKDIR = Path('small')\nGAMES = 6\nTHRESHOLD = 1.1\n{TINY}")
  assert printed(cells['load']).startswith('There is no absent. A small policy is trained now')
  assert (tmp_path / 'small' / 'stage2' / 'policy').is_dir()
  assert printed(cells['contexts']).count('(abstains)') == 6
  (table,) = shown(cells['table'], 'text/markdown')
  alone, mempi = table.splitlines()[2:]
  assert alone.split('|')[2:] == mempi.split('|')[2:]  # a memory that never speaks changes nothing
  assert 'No difference in success.' in printed(cells['transcripts'])


@pytest.mark.slow
def test_read_a_run_that_is_not_there(execute, tmp_path):
  cells = execute('03_read_a_run.ipynb', f"WORKDIR = Path('absent').resolve()\nEXAMPLES = 1\n{TINY}")
  assert 'A small run is made now' in printed(cells['make'])
  assert (tmp_path / 'notebook_run' / 'results.json').is_file() and not (tmp_path / 'absent').exists()
  assert printed(cells['episodes']).startswith('48 episodes of none, untrained, mempi_stage1, mempi')
