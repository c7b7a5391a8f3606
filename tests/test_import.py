"""The fences of the house: rooms that must not import jax, imports that go downward only, and a package that imports fast."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import mempi_jax

PACKAGE = Path(mempi_jax.__file__).parent

# Simulator processes and host-side tools: they start fast and never touch the accelerator.
HOST_SIDE = ('types', 'envs', 'experience', 'evals.stats', 'rollout.episode', 'rollout.pool', 'rollout.lending', 'rollout.ray_pool', 'rollout.handles', 'rollout.worker', 'rollout.rewards', 'rollout.effects')
JAX = ('jax', 'jaxlib', 'flax', 'optax', 'orbax', 'chex')
# Package -> where it may be imported.
SIMULATORS = {
  **dict.fromkeys(('alfworld', 'fast_downward'), ('envs.alfworld',)),
  'textworld': ('envs.alfworld', 'envs.textworld'),
  **dict.fromkeys(('scienceworld', 'py4j'), ('envs.scienceworld',)),
  **dict.fromkeys(('playwright', 'browsergym', 'miniwob', 'trac'), ('envs.browser',)),
  'pymysql': ('envs.terminal',),
  'ray': ('rollout.ray_pool',),
}

# From the bottom up; a module imports its own room and rooms of lower floors. Rooms on one floor do not know each other.
FLOORS = [
  {'types', 'config'},
  {'runtime'},
  {'losses', 'envs', 'models'},
  {'inference'},
  {'policy'},
  {'agents'},
  {'rollout'},
  {'experience'},  # the bank: memories retrieve from it, sources learn from it
  {'memory', 'evals'},
  {'sources'},
  {'training'},
  {'bench'},
]


def module_name(path):
  """mempi_jax/rollout/episode.py -> 'rollout.episode'."""
  parts = path.relative_to(PACKAGE).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def modules():
  return {module_name(path): path for path in sorted(PACKAGE.rglob('*.py'))}


def host_modules():
  return [name for name in modules() if any(name == room or name.startswith(room + '.') for room in HOST_SIDE)]


def loaded_after(statement):
  """Top-level packages that a fresh Python has loaded after a statement."""
  code = f'{statement}\nimport json, sys\nprint(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))'
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr
  return set(json.loads(done.stdout.splitlines()[-1]))


def imports_at_top(path):
  """Modules that a file imports when it is imported itself: not those inside functions, nor those for type checkers alone."""
  found = []

  def visit(node):
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
      return
    if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test):
      for child in node.orelse:
        visit(child)
      return
    if isinstance(node, ast.Import):
      found.extend(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      found.append(node.module)
      # `from mempi_jax.runtime import files` imports a module, `from mempi_jax.types import Task` a name.
      found.extend(f'{node.module}.{alias.name}' for alias in node.names)
    for child in ast.iter_child_nodes(node):
      visit(child)

  visit(ast.parse(path.read_text(encoding='utf-8')))
  return found


def rooms_imported(path):
  """Rooms of this package that a file imports at its top."""
  return {name.split('.')[1] for name in imports_at_top(path) if name.startswith('mempi_jax.')}


def test_importing_the_package_loads_next_to_nothing():
  loaded = loaded_after('import mempi_jax')
  assert not loaded & {*JAX, *SIMULATORS, 'numpy', 'tokenizers', 'transformers', 'matplotlib', 'ml_collections'}


def test_host_side_rooms_do_not_load_jax():
  names = host_modules()
  assert {'types', 'envs.alfworld.game', 'rollout.episode'} <= set(names)
  loaded = loaded_after(''.join(f'import mempi_jax.{name}\n' for name in names))
  assert not loaded & set(JAX)
  # A simulator is loaded when its environment is asked for, not before.
  assert not loaded & set(SIMULATORS)
  assert 'jax' in loaded_after('import mempi_jax.policy.policy')  # this test can see it


def test_host_side_rooms_do_not_import_jax_inside_functions_either():
  for name in host_modules():
    tree = ast.parse(modules()[name].read_text(encoding='utf-8'))
    for node in ast.walk(tree):
      names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
      assert not [n for n in names if n and n.partition('.')[0] in JAX], f'{name} imports {names}'


def test_loading_a_policy_is_what_loads_jax():
  code = 'import mempi_jax\ntry:\n  mempi_jax.load_policy("/nowhere")\nexcept FileNotFoundError:\n  pass'
  assert 'jax' in loaded_after(code)


@pytest.mark.parametrize('name', sorted(name for name in modules() if '.' in name))
def test_imports_go_downward(name):
  floor_of = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
  room = name.partition('.')[0]
  assert room in floor_of, f'the room {room} is on no floor: add it to FLOORS'
  for other in rooms_imported(modules()[name]) - {room}:
    assert other in floor_of and floor_of[other] < floor_of[room], f'{name} imports {other}, which is not below it'


def test_nothing_imports_the_commands_but_commands():
  rooms = set().union(*FLOORS)
  top = {name for name in modules() if name and '.' not in name and name not in rooms}
  assert 'guide' in top
  for name in sorted(modules()):
    if name.partition('.')[0] in rooms:
      assert not rooms_imported(modules()[name]) & top, f'{name} imports a command'


def test_importing_the_commands_touches_no_device():
  code = 'import mempi_jax.train, mempi_jax.evaluate, mempi_jax.bench.__main__\nfrom jax._src import xla_bridge\nassert not xla_bridge._backends'
  assert 'jax' in loaded_after(code)


def test_simulators_are_imported_by_their_environments_alone():
  for name, path in modules().items():
    text = path.read_text(encoding='utf-8')
    for node in ast.walk(ast.parse(text)):
      found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
      for package in {n.partition('.')[0] for n in found if n} & set(SIMULATORS):
        assert name.startswith(SIMULATORS[package]), f'{name} imports {found}'
