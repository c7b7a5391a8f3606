"""The manifest: what must be equal for two runs to be comparable (method section 5).

A published ALFWorld checkpoint moved from 102/274 to 260/274 by one line of prompt template: the manifest is not a formality.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mempi_jax.config import flatten_tree, to_json
from mempi_jax.runtime.files import hash_json

PACKAGES = ('mempi_jax', 'jax', 'jaxlib', 'flax', 'optax', 'numpy', 'tokenizers', 'bm25s', 'alfworld')

# Settings of a config that say where and how it is computed, not what: a run may go on with others, on another machine.
MACHINE = ('mesh', 'hosts', 'checkpoint', 'tracker', 'profile', 'pool', 'compile_ahead')

# What of a manifest no config decides: the same config gives other numbers with another of these.
CONDITIONS = ('prompt_template_hash', 'agent_hash', 'packages', 'python', 'platform')


class ManifestError(ValueError):
  """Two runs that cannot be compared; the message names each difference."""


def make_manifest(
  config: ConfigDict,
  *,
  prompt_template_hash: str,
  agent_hash: str,
  history_length: int,
  context_length: int,
  step_cap: int,
  split_sizes: Mapping[str, int],
  sampler: Mapping[str, Any],
) -> dict[str, Any]:
  """The manifest of a run, JSON-able and deterministic (no time, no host name, no path).

  Args:
    config: the resolved config; the hash of what it computes goes in, without MACHINE.
    prompt_template_hash: sha256 of everything that turns a context and guidance into a prompt.
    agent_hash: sha256 of the frozen agent's checkpoint and tokenizer.
    history_length: turns of history that a prompt can hold.
    context_length: tokens that the agent can read.
    step_cap: most actions in an episode.
    split_sizes: split name -> number of games.
    sampler: how agent and policy decode (temperature, top k, greedy, threshold on P(GENERATE), ...).
  """
  return {
    'config_hash': hash_json({name: value for name, value in json.loads(to_json(config)).items() if name not in MACHINE}),
    'prompt_template_hash': prompt_template_hash,
    'agent_hash': agent_hash,
    'history_length': history_length,
    'context_length': context_length,
    'step_cap': step_cap,
    'split_sizes': dict(sorted(split_sizes.items())),
    'sampler': dict(sorted(sampler.items())),
    'packages': {name: package_version(name) for name in PACKAGES},
    'python': platform.python_version(),
    'platform': f'{platform.system()} {platform.machine()}',
  }


def package_version(name: str) -> str:
  """The installed version of a package, or 'not installed'."""
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return 'not installed'


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
  """What keeps two runs from being comparable, one line each: 'name: x against y'.

  Configs differ between the runs that one wants to compare (another loss, another memory), so `config_hash` is left out.
  """
  flat_a, flat_b = flatten_tree(a), flatten_tree(b)
  names = [name for name in sorted(flat_a.keys() | flat_b.keys()) if name != 'config_hash']
  absent = 'absent'
  pairs = [(name, flat_a.get(name, absent), flat_b.get(name, absent)) for name in names]
  return [f'{name}: {x} against {y}' for name, x, y in pairs if x != y]


def check_comparable(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
  """Raises ManifestError, naming every difference, if two runs with these manifests cannot be compared."""
  found = differences(a, b)
  if found:
    raise ManifestError('these runs cannot be compared, their manifests differ in ' + '; '.join(found))
