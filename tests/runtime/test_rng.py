"""Keys and host seeds."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mempi_jax.runtime.rng import host_seed, step_key


def test_host_seed_is_stable():
  # Fixed for good: a change here changes every run.
  assert host_seed(0, 'rollout', 3, 7) == 746217546
  code = "from mempi_jax.runtime.rng import host_seed; import sys; print(host_seed(0, 'rollout', 3, 7), 'jax' in sys.modules)"
  environment = {'PYTHONHASHSEED': '5', 'PATH': ''}
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2])
  assert out.stdout.split() == [str(host_seed(0, 'rollout', 3, 7)), 'False'], out.stderr


def test_host_seed_tells_uses_apart():
  seeds = {host_seed(s, purpose, step) for s in range(10) for purpose in ('agent', 'game') for step in range(50)}
  assert len(seeds) == 1000
  assert all(0 <= seed < 2**31 for seed in seeds)
  assert abs(np.mean(list(seeds)) / 2**30 - 1) < 0.1
  assert len({host_seed(1, '2'), host_seed(1, 2), host_seed(12), host_seed(1, 2, ''), host_seed(1, 'a', 'b'), host_seed(1, 'ab')}) == 6
  assert host_seed(0, np.int64(3)) == host_seed(0, 3)


@pytest.mark.parametrize('part', [1.0, None, (1,)])
def test_host_seed_refuses_other_types(part):
  with pytest.raises(TypeError):
    host_seed(0, part)


def test_step_key():
  keys = [step_key(s, step, purpose) for s in (0, 1) for step in (0, 1, 2) for purpose in ('sample', 'dropout')]
  assert len({jax.random.key_data(key).tobytes() for key in keys}) == 12
  traced = jax.jit(lambda step: jax.random.key_data(step_key(0, step, 'sample')))(2)
  np.testing.assert_array_equal(traced, jax.random.key_data(step_key(0, 2, 'sample')))
