"""Config files, overrides, checks and durations."""

import argparse
import json

import pytest

from mempi_jax import config as config_lib
from mempi_jax.config import ConfigError, check_fields, count_steps, load_config, load_sweep, override, parse_command_line, resolve, to_json

BASE = """
from ml_collections import ConfigDict, config_dict

def get_config(world: str = 'real', households: int = 1):
  config = ConfigDict()
  config.seed = 0
  config.world = world
  config.households = tuple(range(households))
  config.games = config_dict.required_placeholder(str)
  config.teacher = config_dict.placeholder(str)
  config.rl = ConfigDict()
  config.rl.num_updates = 60
  config.rl.learning_rate = 1e-3
  config.rl.gate = True
  config.rl.splits = ('train', 'test')
  return config

def sweep():
  for seed in (0, 1):
    yield {'seed': seed, 'rl.learning_rate': 1}
"""


@pytest.fixture
def base(tmp_path):
  path = tmp_path / 'base.py'
  path.write_text(BASE)
  return path


def test_load_overrides_and_casts(base):
  config = load_config(base, {'seed': 3, 'rl.learning_rate': 1, 'rl.splits': ['a']})
  assert config.seed == 3 and config.rl.num_updates == 60
  assert config.rl.learning_rate == 1.0 and type(config.rl.learning_rate) is float
  assert config.rl.splits == ('a',)


@pytest.mark.parametrize(
  'overrides, message',
  [
    ({'sead': 1}, 'unknown field sead; did you mean seed'),
    ({'rl.num_update': 1}, 'unknown field rl.num_update; did you mean rl.num_updates'),
    ({'num_updates': 1}, 'did you mean rl.num_updates'),
    ({'r.gate': 1}, 'unknown field r.gate; did you mean rl.gate'),
    ({'seed.value': 1}, 'unknown field seed.value'),
    ({'rl': 1}, 'rl is a group of fields and takes no value; it holds rl.gate, '),
    ({'seed': '3'}, r"field seed is int, found '3' \(str\)"),
    ({'seed': 3.0}, r'field seed is int, found 3.0 \(float\)'),
    ({'seed': True}, r'field seed is int, found True \(bool\)'),
    ({'rl.learning_rate': False}, r'field rl.learning_rate is float, found False \(bool\)'),
    ({'rl.gate': 1}, r'field rl.gate is bool, found 1 \(int\)'),
    ({'games': 3}, r'field games is str, found 3 \(int\)'),
  ],
)
def test_wrong_overrides(base, overrides, message):
  with pytest.raises(ConfigError, match=message):
    load_config(base, overrides)


def test_misspelt_attribute_names_the_near_one(base):
  config = load_config(base, {'games': 'g'})
  for each in (config, resolve(config)):
    with pytest.raises(AttributeError, match='Did you mean "num_updates"'):
      each.rl.num_update  # noqa: B018
  with pytest.raises((AttributeError, KeyError), match='Did you mean "num_updates"'):
    config.rl.num_update = 3


def test_required_placeholders(base):
  with pytest.raises(ConfigError, match=r'games \(set it with --config.games=VALUE\)'):
    resolve(load_config(base))
  frozen = resolve(load_config(base, {'games': 'g'}))
  assert frozen.games == 'g' and frozen.teacher is None
  with pytest.raises(AttributeError):
    frozen.seed = 1


def test_arguments_of_get_config(base):
  config = load_config(f'{base}:world=null,households=3')
  assert config.world == 'null' and config.households == (0, 1, 2)
  with pytest.raises(ConfigError, match='takes no argument wrld; did you mean world'):
    load_config(f'{base}:wrld=null')
  with pytest.raises(ConfigError, match='field households is int'):
    load_config(f'{base}:households=many')


def test_broken_files(tmp_path, base):
  with pytest.raises(ConfigError, match='no config file .*bse.py; .* has base.py'):
    load_config(tmp_path / 'bse.py')
  (tmp_path / 'empty.py').write_text('')
  with pytest.raises(ConfigError, match=r'empty.py has no function get_config\(\)'):
    load_config(tmp_path / 'empty.py')
  (tmp_path / 'dict.py').write_text('def get_config():\n  return {}\n')
  with pytest.raises(ConfigError, match='returned dict, expected an ml_collections.ConfigDict'):
    load_config(tmp_path / 'dict.py')


def test_sweep(base, tmp_path):
  assert load_sweep(base) == [{'seed': 0, 'rl.learning_rate': 1}, {'seed': 1, 'rl.learning_rate': 1}]
  (tmp_path / 'bad.py').write_text(BASE.replace("yield {'seed'", "yield {'sead'"))
  with pytest.raises(ConfigError, match=r'run 0 of sweep\(\): unknown field sead; did you mean seed'):
    load_sweep(tmp_path / 'bad.py')


def test_the_name_of_a_variant_is_no_field_of_the_config(tmp_path):
  path = tmp_path / 'named.py'
  path.write_text(BASE.replace("yield {'seed'", "yield {'variant': 'low', 'seed'"))
  assert load_sweep(path)[1] == {'variant': 'low', 'seed': 1, 'rl.learning_rate': 1}
  for wrong, shown in (('3', r"3 \(int\)"), ("' '", r"' ' \(str\)"), ('None', r'None \(NoneType\)')):
    path.write_text(BASE.replace("yield {'seed'", f"yield {{'variant': {wrong}, 'seed'"))
    with pytest.raises(ConfigError, match=rf'run 0 of sweep\(\): variant is {shown}, expected a name, text that is not empty'):
      load_sweep(path)


def test_a_derived_config_can_only_change_what_exists(base, tmp_path):
  derived = tmp_path / 'derived.py'
  source = (
    'from pathlib import Path\nfrom mempi_jax.config import load_config\n'
    "def get_config():\n  config = load_config(Path(__file__).with_name('base.py'))\n  config.rl.{} = False\n  return config\n"
  )
  derived.write_text(source.format('gate'))
  assert load_config(derived).rl.gate is False
  derived.write_text(source.format('gates'))
  with pytest.raises((AttributeError, KeyError), match='Did you mean "gate"'):
    load_config(derived)


def test_check_fields(base):
  template = load_config(base)
  check_fields(load_config(base, {'games': 'g', 'teacher': 't'}), template)
  check_fields(resolve(load_config(base, {'games': 'g'})), template)
  config = load_config(base, {'games': 'g'})
  with config.unlocked():
    config.rl.gaet = config.rl.gate
    del config.rl.gate
    del config.rl.num_updates
    config.rl.num_updates = 60.0
  with pytest.raises(ConfigError) as error:
    check_fields(config, template)
  message = str(error.value)
  assert 'unknown field rl.gaet; did you mean rl.gate' in message
  assert 'missing field rl.gate' in message
  assert 'rl.num_updates is float, expected int' in message


def test_to_json_is_deterministic_and_complete(base):
  config = resolve(load_config(base, {'games': 'g'}))
  text = to_json(config)
  assert text == to_json(resolve(load_config(base, {'games': 'g'})))
  plain = json.loads(text)
  assert plain['rl'] == {'num_updates': 60, 'learning_rate': 1e-3, 'gate': True, 'splits': ['train', 'test']}
  assert list(plain) == sorted(plain)
  with pytest.raises(ConfigError, match='field rl.learning_rate is nan'):
    to_json(load_config(base, {'rl.learning_rate': float('nan'), 'games': 'g'}))


def parse(arguments):
  parser = argparse.ArgumentParser()
  parser.add_argument('--eval_only', action='store_true')
  return parse_command_line(parser, arguments)


def test_command_line(base):
  arguments, config = parse(
    [
      f'--config={base}:world=null',
      '--workdir=/w',
      '--eval_only',
      '--config.games=a=b,c',
      '--config.seed=-3',
      '--config.rl.gate=false',
      '--config.rl.learning_rate=2',
      '--config.rl.splits=x,y',
      '--config.households=7',
    ]
  )
  assert arguments.eval_only and str(arguments.workdir) == '/w'
  assert (config.world, config.games, config.seed, config.rl.gate) == ('null', 'a=b,c', -3, False)
  assert config.rl.learning_rate == 2.0 and config.rl.splits == ('x', 'y') and config.households == (7,)


@pytest.mark.parametrize(
  'argument, message',
  [
    ('--config.sead=1', 'unknown field sead; did you mean seed?'),
    ('--config.seed=three', "field seed is int, found 'three'"),
    ('--config.seed', '--config.seed has no value'),
    ('--config.rl.gate=yes', "field rl.gate is bool, found 'yes'; expected true or false"),
    ('--workdri=x', 'unrecognized arguments: --workdri=x'),
  ],
)
def test_wrong_command_lines_end_with_status_2(base, argument, message, capsys):
  with pytest.raises(SystemExit) as end:
    parse([f'--config={base}', '--workdir=w', '--config.games=g', argument])
  assert end.value.code == 2
  assert message in capsys.readouterr().err


def test_override_keeps_what_it_does_not_name(base):
  config = override(load_config(base), {'rl.gate': False})
  assert config.rl.num_updates == 60 and config.rl.gate is False


@pytest.mark.parametrize(
  'duration, steps', [('120 steps', 120), ('2.5 epochs', 125), ('5 percent', 10), ('0 steps', 0), ('100 percent', 200)]
)
def test_durations(duration, steps):
  assert count_steps(duration, total_steps=200, num_examples=800, batch_size=16) == steps


@pytest.mark.parametrize('duration', ['120', 'steps', '-1 steps', 'nan steps', '3 weeks', 'ten steps', '1  steps', 'inf epochs'])
def test_wrong_durations(duration):
  with pytest.raises(ConfigError, match='expected a number and a unit'):
    count_steps(duration, total_steps=200, num_examples=800, batch_size=16)


def test_durations_without_their_quantities():
  with pytest.raises(ConfigError, match='epochs have no meaning here'):
    count_steps('1 epochs', total_steps=10)
  with pytest.raises(ConfigError, match='percent has no meaning here'):
    count_steps('1 percent', num_examples=10, batch_size=1)


def test_loading_a_config_leaves_no_module_behind(base):
  import sys

  before = set(sys.modules)
  load_config(base)
  assert not [name for name in set(sys.modules) - before if 'config' in name]
  assert config_lib.PREFIX == '--config.'


def test_workdir_is_named_after_the_config(base):
  arguments, _ = parse([f'--config={base}:world=null', '--config.games=g'])
  assert str(arguments.workdir) == 'runs/base'
