"""Manifests: deterministic, and strict about what can be compared."""

import json

import pytest
from ml_collections import ConfigDict

from mempi_jax.runtime.manifest import ManifestError, check_comparable, differences, make_manifest, package_version

FACTS = {
  'prompt_template_hash': 'a' * 64,
  'agent_hash': 'b' * 64,
  'history_length': 10,
  'context_length': 512,
  'step_cap': 10,
  'split_sizes': {'train': 800, 'heldout_games': 400},
  'sampler': {'temperature': 1.0, 'greedy': False},
}


def test_manifest_is_deterministic_and_json():
  config = ConfigDict({'seed': 0})
  manifest = make_manifest(config, **FACTS)
  reordered = {**FACTS, 'split_sizes': dict(reversed(FACTS['split_sizes'].items()))}
  assert json.dumps(manifest) == json.dumps(make_manifest(config, **reordered))
  assert json.loads(json.dumps(manifest)) == manifest
  assert manifest['packages']['jax'] == __import__('jax').__version__
  assert manifest['split_sizes']['heldout_games'] == 400


def test_package_version_of_what_is_not_there():
  assert package_version('a_package_that_nobody_has') == 'not installed'


def test_configs_may_differ():
  a, b = (make_manifest(ConfigDict({'seed': seed}), **FACTS) for seed in (0, 1))
  assert a['config_hash'] != b['config_hash']
  check_comparable(a, b)


@pytest.mark.parametrize(
  'name, value, message',
  [
    ('prompt_template_hash', 'c', f'prompt_template_hash: {"a" * 64} against c'),
    ('history_length', 9, 'history_length: 10 against 9'),
    ('step_cap', 50, 'step_cap: 10 against 50'),
    ('split_sizes', {'train': 800}, 'split_sizes.heldout_games: 400 against absent'),
    ('sampler', {'temperature': 0.5, 'greedy': False}, 'sampler.temperature: 1.0 against 0.5'),
    ('agent_hash', 'x', 'agent_hash'),
  ],
)
def test_other_differences_are_refused(name, value, message):
  config = ConfigDict({'seed': 0})
  a, b = make_manifest(config, **FACTS), make_manifest(config, **{**FACTS, name: value})
  with pytest.raises(ManifestError, match='cannot be compared') as error:
    check_comparable(a, b)
  assert message in str(error.value)
  assert len(differences(a, b)) == 1


def test_another_library_version_is_refused():
  a = make_manifest(ConfigDict({'seed': 0}), **FACTS)
  b = {**a, 'packages': {**a['packages'], 'alfworld': '0.3.0'}}
  assert len(differences(a, b)) == 1 and differences(a, b)[0].startswith('packages.alfworld: ')
