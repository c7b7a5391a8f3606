"""Experiment settings: config files, command-line overrides, checks and durations.

An experiment is a file `configs/NAME.py` with `get_config() -> ConfigDict`, and optionally `sweep()` that yields dicts of overrides, or `study(trial)`
that returns one with values that an Optuna trial suggests.
A config holds every setting: nothing in the package reads one with a default, so a misspelt field is an error that names the near
ones. A file that varies another one starts from `load_config(Path(__file__).with_name('base.py'))` and assigns fields that exist.

    python -m mempi_jax.train --config=configs/quickstart.py --workdir=/tmp/run --config.seed=3 --config.stage2.updates=10

`get_config` may take arguments, given after a colon: `--config=configs/control.py:world=null,seed=2`.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib.util
import inspect
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict, FieldReference, FrozenConfigDict, config_dict

PREFIX = '--config.'
VARIANT = 'variant'  # of a run in sweep(): no field, but the name of what the run tries


class ConfigError(ValueError):
  """A config that cannot be used; the message says what was found and what was expected."""


# Reading configs.


def load_config(path_with_args: str | Path, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
  """Runs the `get_config` of a config file and applies typed overrides to its result.

  Args:
    path_with_args: the file, with arguments of its `get_config` if it takes any: `configs/x.py:name=value,name=value`.
    overrides: dotted field name -> value of the field's type (an int is accepted for a float, and cast).

  Returns:
    The config, locked: existing fields can be assigned, new ones cannot be added. Required placeholders may still be unset.

  Raises:
    ConfigError: no such file, no `get_config`, a wrong argument, an unknown field (near names are given) or a value of another type.
  """
  path, _, arguments = str(path_with_args).partition(':')
  get_config = _function(_run_file(Path(path)), path, 'get_config')
  config = get_config(**_parse_arguments(get_config, path, arguments))
  if not isinstance(config, ConfigDict) or isinstance(config, FrozenConfigDict):
    raise ConfigError(f'{path}: get_config() returned {type(config).__name__}, expected an ml_collections.ConfigDict')
  _lock(config)
  return override(config, overrides or {})


def load_sweep(path_with_args: str | Path) -> list[dict[str, Any]]:
  """The overrides of every run of a config file's `sweep()`, each one checked against its config.

  The key 'variant' is reserved: no field, but the name of what the run tries, which runs of other households and seeds share. It is kept.

  Raises:
    ConfigError: the file has no `sweep`, or a run overrides an unknown field, gives a value of another type, or a variant that is no name.
  """
  path = str(path_with_args).partition(':')[0]
  module = _run_file(Path(path))
  runs = [dict(overrides) for overrides in _function(module, path, 'sweep')()]
  for index, overrides in enumerate(runs):
    try:
      variant = overrides.get(VARIANT, 'base')
      if not isinstance(variant, str) or not variant.strip():
        raise ConfigError(f'{VARIANT} is {variant!r} ({type(variant).__name__}), expected a name, text that is not empty')
      load_config(path_with_args, {name: value for name, value in overrides.items() if name != VARIANT})
    except ConfigError as error:
      raise ConfigError(f'{path}: run {index} of sweep(): {error}') from None
  return runs


def expand_grid(path_with_args: str | Path, axes: Sequence[str]) -> list[dict[str, Any]]:
  """The overrides of every run of a grid, the last axis fastest.

  Args:
    path_with_args: a config file, with arguments where it takes any.
    axes: 'field=value,value', each value parsed by the field's type; commas inside brackets and quotation marks separate nothing.

  Raises:
    ConfigError: an axis of another form, a field that comes twice, a value that comes twice, or what `load_config` raises.
  """
  values: dict[str, list[Any]] = {}
  for axis in axes:
    name, equals, texts = axis.partition('=')
    if not equals or not texts:
      raise ConfigError(f'grid {axis!r}: expected FIELD=VALUE,VALUE,...')
    if name in values:
      raise ConfigError(f'grid {axis!r}: {name} has an axis already; give all of its values there')
    values[name] = []
    for text in _split(texts):
      config = override_from_text(load_config(path_with_args), {name: text})
      parent, leaf = _locate(config, name)
      if parent[leaf] in values[name]:
        raise ConfigError(f'grid {axis!r}: the value {text} comes twice')
      values[name].append(parent[leaf])
  return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


def load_study(path_with_args: str | Path) -> tuple[Any, tuple[str, str, str, str]]:
  """The function `study(trial)` of a config file, and its `OBJECTIVE`: (split, memory, measure, direction).

  Raises:
    ConfigError: the file has no `study`, or no `OBJECTIVE` of four names.
  """
  path = str(path_with_args).partition(':')[0]
  module = _run_file(Path(path))
  study, objective = _function(module, path, 'study'), getattr(module, 'OBJECTIVE', None)
  if not isinstance(objective, tuple) or len(objective) != 4 or not all(isinstance(part, str) for part in objective):
    example = "('heldout_games', 'mempi', 'success_rate', 'maximize')"
    raise ConfigError(f'{path}: OBJECTIVE is {objective!r}, expected (split, memory, measure, direction), as in {example}')
  return study, objective


def has_sweep(path_with_args: str | Path) -> bool:
  """Whether a config file has a `sweep()`."""
  return hasattr(_run_file(Path(str(path_with_args).partition(':')[0])), 'sweep')


def override(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
  """Assigns typed values to dotted fields of `config`, in place, and returns it. Raises ConfigError as `load_config` does."""
  for name, value in overrides.items():
    parent, leaf = _locate(config, name)
    parent[leaf] = _cast(name, value, _field_type(parent, leaf))
  return config


def override_from_text(config: ConfigDict, texts: Mapping[str, str]) -> ConfigDict:
  """Assigns values written as text (a command line) to dotted fields of `config`, in place, parsed by each field's type."""
  return override(config, {name: _parse(name, text, _field_type(*_locate(config, name))) for name, text in texts.items()})


def parse_command_line(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[argparse.Namespace, FrozenConfigDict]:
  """Adds `--config`, `--workdir`, and what says which of several hosts this is, to `parser`, reads the command line, and resolves the config with
  its `--config.name=value`.

  Returns the other arguments and the resolved config; without `--workdir` a run lives in runs/NAME, NAME that of the config file. A wrong config ends the process with status 2 and a one-line message, as any
  other wrong argument does.
  """
  parser.add_argument('--config', required=True, metavar='FILE', help='config file; --config.NAME=VALUE overrides one of its fields')
  parser.add_argument('--workdir', metavar='FOLDER', type=Path, help='where everything that the run makes is written; default runs/NAME')
  parser.add_argument('--allow', metavar='FIELD,...', type=lambda text: tuple(filter(None, text.split(','))), default=(), help='fields that may differ from the run that the working folder holds')
  parser.add_argument('--hosts', metavar='N', default='', help='how many hosts run this command together, or auto: the cluster says it')
  parser.add_argument('--host', metavar='I', type=int, help='which of them this is, from 0')
  parser.add_argument('--coordinator', metavar='ADDRESS:PORT', help='of the first host')
  rest, texts = [], {}
  try:
    for argument in arguments:
      if not argument.startswith(PREFIX):
        rest.append(argument)
        continue
      name, equals, text = argument.removeprefix(PREFIX).partition('=')
      if not equals:
        raise ConfigError(f'{argument} has no value; expected {PREFIX}{name}=VALUE')
      texts[name] = text
    parsed = parser.parse_args(rest)
    parsed.workdir = parsed.workdir or Path('runs') / Path(parsed.config.partition(':')[0]).stem
    return parsed, resolve(override_from_text(load_config(parsed.config), texts))
  except ConfigError as error:
    parser.error(str(error))


# Checking and freezing.


def resolve(config: ConfigDict) -> FrozenConfigDict:
  """The config as runs read it: references resolved, locked and immutable (lists become tuples).

  Raises:
    ConfigError: required placeholders are unset (all of them are named).
  """
  unset = [name for name, parent, leaf in _leaves(config) if not _is_set(parent, leaf)]
  if unset:
    raise ConfigError('these fields have no value yet: ' + ', '.join(f'{name} (set it with {PREFIX}{name}=VALUE)' for name in unset))
  return FrozenConfigDict(config.copy_and_resolve_references())


def check_fields(config: ConfigDict, template: ConfigDict) -> None:
  """Refuses a config that has other fields, or fields of other types, than the experiment's base config.

  Fields that are None on either side fit any type.

  Raises:
    ConfigError: lists every unknown field (with near names), missing field and type that differs.
  """
  found, expected = _flatten(config), _flatten(template)
  problems = [f'unknown field {name}{near(name, expected)}' for name in found if name not in expected]
  problems += [f'missing field {name}' for name in expected if name not in found]
  for name in found:
    if name in expected and None not in (found[name], expected[name]) and found[name] is not expected[name]:
      problems.append(f'field {name} is {found[name].__name__}, expected {expected[name].__name__}')
  if problems:
    raise ConfigError('the config does not fit its base config: ' + '; '.join(problems))


def to_json(config: ConfigDict) -> str:
  """The resolved config as JSON text: sorted names, two spaces, a final newline; the same config gives the same text.

  Raises:
    ConfigError: a field is not a bool, int, finite float, string, None or a list of those.
  """
  plain = config.to_dict()
  for name, value in _walk(plain):
    values = value if isinstance(value, (list, tuple)) else (value,)
    for item in values:
      if not (item is None or isinstance(item, (bool, int, str)) or (isinstance(item, float) and math.isfinite(item))):
        raise ConfigError(f'field {name} is {item!r} ({type(item).__name__}), which JSON cannot hold')
  return json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False) + '\n'


# Durations.


def flatten(config: ConfigDict) -> dict[str, Any]:
  """Dotted name -> value of every field, as `to_json` writes it."""
  return flatten_tree(json.loads(to_json(config)))


def flatten_tree(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Dotted name -> value of every leaf of nested mappings."""
  return dict(_walk(tree))


def count_steps(
  duration: str, *, total_steps: int | None = None, num_examples: int | None = None, batch_size: int | None = None
) -> int:
  """A duration such as '120 steps', '2.5 epochs' or '5 percent' as a number of steps, rounded to the nearest.

  Epochs need `num_examples` and `batch_size`; percent needs `total_steps`.

  Raises:
    ConfigError: another unit, a negative or unreadable number, or a unit whose quantities were not given.
  """
  amount_text, _, unit = duration.strip().partition(' ')
  try:
    amount = float(amount_text)
  except ValueError:
    amount = math.nan
  if not (amount >= 0 and math.isfinite(amount)) or unit not in ('steps', 'epochs', 'percent'):
    raise ConfigError(f"duration {duration!r}: expected a number and a unit, as in '120 steps', '2.5 epochs' or '5 percent'")
  if unit == 'steps':
    return round(amount)
  if unit == 'epochs':
    if num_examples is None or batch_size is None:
      raise ConfigError(f'duration {duration!r}: epochs have no meaning here; use steps or percent')
    return round(amount * num_examples / batch_size)
  if total_steps is None:
    raise ConfigError(f'duration {duration!r}: percent has no meaning here; use steps or epochs')
  return round(amount / 100 * total_steps)


# Internals: running config files.


def _run_file(path: Path) -> ModuleType:
  """Runs a config file as a module of its own, so that it needs no package and leaves nothing behind."""
  if not path.is_file():
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob('*.py')], n=3, cutoff=0.5)
    hint = f'; {path.parent} has {", ".join(near)}' if near else ''
    raise ConfigError(f'no config file {path}{hint}')
  spec = importlib.util.spec_from_file_location(f'mempi_config_{path.stem}', path)
  if spec is None or spec.loader is None:
    raise ConfigError(f'config file {path} is not a Python file: its name must end in .py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _function(module: ModuleType, path: str, name: str) -> Any:
  function = getattr(module, name, None)
  if not callable(function):
    raise ConfigError(f'{path} has no function {name}()')
  return function


def _parse_arguments(get_config: Any, path: str, text: str) -> dict[str, Any]:
  """'name=value,...' -> arguments of `get_config`, each parsed by the type of the parameter's default."""
  parameters = inspect.signature(get_config).parameters
  arguments = {}
  for part in filter(None, text.split(',')):
    name, equals, value = part.partition('=')
    if not equals:
      raise ConfigError(f'{path}: argument {part!r} of get_config() has no value; expected name=value')
    if name not in parameters:
      raise ConfigError(f'{path}: get_config() takes no argument {name}{near(name, parameters)}')
    default = parameters[name].default
    arguments[name] = _parse(name, value, str if default is inspect.Parameter.empty else type(default))
  for name, parameter in parameters.items():
    if parameter.default is inspect.Parameter.empty and name not in arguments:
      raise ConfigError(f'{path}: get_config() needs the argument {name}, as in {path}:{name}=VALUE')
  return arguments


# Internals: fields and their types.


def _lock(config: ConfigDict) -> None:
  """Locks a config and its groups, children first."""
  for value in config.values(preserve_field_references=True):
    if isinstance(value, ConfigDict):
      _lock(value)
  try:
    config.lock()
  except config_dict.RequiredValueError:
    pass  # ml_collections locks first and then trips over unset required placeholders while it looks for children


def _locate(config: ConfigDict, name: str) -> tuple[ConfigDict, str]:
  """The ConfigDict that holds the dotted field `name`, and the field's last name."""
  parent, walked = config, []
  *path, leaf = name.split('.')
  for part in path:
    if part not in parent or not isinstance(parent[part], ConfigDict):
      raise ConfigError(f'unknown field {name}{near(name, _flatten(config))}')
    parent = parent[part]
    walked.append(part)
  if leaf not in parent:
    raise ConfigError(f'unknown field {name}{near(name, _flatten(config))}')
  if _field_type(parent, leaf) is ConfigDict:
    fields = ', '.join(sorted(f'{name}.{child}' for child in parent[leaf]))
    raise ConfigError(f'{name} is a group of fields and takes no value; it holds {fields}')
  return parent, leaf


def _field_type(parent: ConfigDict, leaf: str) -> type:
  """The type of a field, known for placeholders too; type(None) where any value fits."""
  # Not `parent.get_type`: it reads the value, which an unset required placeholder refuses.
  field = dict(parent.items(preserve_field_references=True))[leaf]
  return field.get_type() if isinstance(field, FieldReference) else type(field)


def _is_set(parent: ConfigDict, leaf: str) -> bool:
  try:
    parent[leaf]
  except config_dict.RequiredValueError:
    return False
  return True


def _leaves(config: ConfigDict, prefix: str = '') -> Iterator[tuple[str, ConfigDict, str]]:
  """Dotted name, holder and last name of every field that is not a group, in sorted order."""
  for leaf in sorted(config.keys()):
    if _field_type(config, leaf) is ConfigDict or _field_type(config, leaf) is FrozenConfigDict:
      yield from _leaves(config[leaf], f'{prefix}{leaf}.')
    else:
      yield f'{prefix}{leaf}', config, leaf


def _flatten(config: ConfigDict) -> dict[str, type | None]:
  """Dotted name -> type of every field that is not a group (None: any); lists count as tuples, which frozen configs turn them into."""
  types = {name: _field_type(parent, leaf) for name, parent, leaf in _leaves(config)}
  return {name: None if kind is type(None) else tuple if kind is list else kind for name, kind in types.items()}


def _walk(tree: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
  for name, value in tree.items():
    if isinstance(value, Mapping):
      yield from _walk(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', value


def near(name: str, names: Iterable[str]) -> str:
  """'; did you mean a or b?', or nothing where no name is near. A field of the right last name in another group counts as near."""
  names = list(names)
  close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
  last = name.rpartition('.')[2]
  close += [other for other in names if difflib.SequenceMatcher(None, other.rpartition('.')[2], last).ratio() >= 0.8]
  unique = list(dict.fromkeys(close))[:3]
  return f'; did you mean {" or ".join(unique)}?' if unique else ''


def _split(text: str) -> list[str]:
  """'a,b' -> ['a', 'b']; commas inside brackets and quotation marks do not count."""
  parts, depth, quote = [''], 0, ''
  for character in text:
    if quote:
      quote = '' if character == quote else quote
    elif character in '\'"':
      quote = character
    depth += (character in '([') - (character in ')]') if not quote else 0
    if character == ',' and not depth and not quote:
      parts.append('')
    else:
      parts[-1] += character
  return parts


def _cast(name: str, value: Any, kind: type) -> Any:
  """`value` as a field of type `kind`: the same type, an int for a float, a list for a tuple and back, or None."""
  if value is None or kind is type(None):
    return value
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if kind in (tuple, list) and isinstance(value, (tuple, list)):
    return kind(value)
  if isinstance(value, kind) and isinstance(value, bool) == (kind is bool):
    return value
  raise ConfigError(f'field {name} is {kind.__name__}, found {value!r} ({type(value).__name__})')


def _parse(name: str, text: str, kind: type) -> Any:
  """Text of a command line as a value of type `kind`. Strings are taken as they stand; 'none' unsets a field of another type."""
  if kind is str:
    return text
  if text.lower() == 'none':
    return None
  if kind is bool:
    if text.lower() not in ('true', 'false'):
      raise ConfigError(f'field {name} is bool, found {text!r}; expected true or false')
    return text.lower() == 'true'
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    value = text
    if kind in (tuple, list):  # train,test: a list of bare words
      value = tuple(text.split(','))
  if kind in (tuple, list) and not isinstance(value, (tuple, list)):
    value = (value,)
  return _cast(name, value, kind)
