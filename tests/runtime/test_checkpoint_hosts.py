"""Checkpoints of two hosts (two processes of four devices each), and across meshes and numbers of hosts."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mempi_jax.runtime import checkpoint, files
from mempi_jax.runtime.checkpoint import Checkpointer, CheckpointError

# Saved by one process on one device and read by two hosts; saved by them, twice, and read by one again.
PROGRAM = """
import os, resource, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from mempi_jax.runtime import hosts
from mempi_jax.runtime.checkpoint import Checkpointer, CheckpointError

me, coordinator, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
hosts.connect('2', me, coordinator, dead_after=30.0, timeout=60.0)
assert (hosts.count(), jax.device_count(), jax.local_device_count()) == (2, 8, 4)
axes = {'axis_types': (AxisType.Auto, AxisType.Auto)}
tall, wide = jax.make_mesh((8, 1), ('data', 'fsdp'), **axes), jax.make_mesh((2, 4), ('data', 'fsdp'), **axes)

def template(mesh, spec):
  def leaf(shape, dtype, spec):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
  return {'w': leaf((16, 8), jnp.float32, spec), 'b': leaf((8,), jnp.bfloat16, P()), 'key': leaf((), jax.random.key(0).dtype, P()), 'n': np.int64(0)}

whole = np.arange(128, dtype=np.float32).reshape(16, 8)

def check(tree, factor):
  for shard in tree['w'].addressable_shards:
    np.testing.assert_array_equal(np.asarray(shard.data), factor * whole[shard.index])
  assert np.asarray(tree['b'].addressable_shards[0].data).tobytes() == np.asarray(jnp.full(8, 1 / 3, jnp.bfloat16)).tobytes()
  assert np.all(np.asarray(jax.random.key_data(tree['key']).addressable_shards[0].data) == np.asarray(jax.random.key_data(jax.random.key(5))))
  assert tree['n'] == 7 and isinstance(tree['n'], np.ndarray)

# 1. What one process saved.
with Checkpointer(folder + '/one') as one:
  step = one.latest()
  assert step == 3
  tree, extra = one.restore(step, template(tall, P('data')))
assert extra == {'from': 'one'}
assert {shard.data.shape for shard in tree['w'].addressable_shards} == {(2, 8)}
check(tree, 1)

# 2. Updates that donate and use the other host's devices run while saves are under way.
total = jax.jit(lambda x: x.sum())
with Checkpointer(folder + '/two', keep=1, best=1, metric='loss') as two:
  update = jax.jit(lambda w: w * 2, donate_argnums=0)
  for step in range(1, 5):
    two.save(step, tree | {'local': jnp.float32(step)}, {'host': 'both'}, {'loss': 5.0 if step == 2 else 9.0})
    tree['w'] = update(tree['w'])
    for _ in range(20):
      assert float(total(tree['w'])) == 2.0 ** step * whole.sum()
  assert (two.latest(), two.best_step()) == (4, 2)
  found, extra = two.restore(2, template(wide, P('fsdp', 'data')) | {'local': jnp.float32(0)})
  assert {shard.data.shape for shard in found['w'].addressable_shards} == {(4, 4)}
  check(found, 2)
  assert float(found['local']) == 2.0

  # 3. The second host's disk is full: both learn why, and nothing is lost.
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  if me == 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
  two.save(5, tree | {'local': jnp.float32(step)}, {})
  try:
    two.wait()
  except CheckpointError as error:
    assert 'step 5 could not be written' in str(error) and 'host 1 of 2: File too large' in str(error), error
  else:
    raise AssertionError('the write did not fail')
  resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert two.latest() == 4

  # 4. Another model, and a step that is not there: the same error on both.
  for step, other, message in ((4, {'v': np.zeros(3)}, 'is of another model'), (7, {}, 'no checkpoint of step 7')):
    try:
      two.restore(step, other)
    except CheckpointError as error:
      assert message in str(error), error
    else:
      raise AssertionError(message)
hosts.disconnect()
print('fine')
"""


def make_tree():
  return {
    'w': jnp.arange(128, dtype=jnp.float32).reshape(16, 8),
    'b': jnp.full(8, 1 / 3, jnp.bfloat16),
    'key': jax.random.key(5),
    'n': np.int64(7),
  }


def run_hosts(tmp_path):
  """Two processes of PROGRAM; their output."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    coordinator = f'127.0.0.1:{free.getsockname()[1]}'
  environment = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=4', 'JAX_PLATFORMS': 'cpu'}
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', PROGRAM, str(host), coordinator, str(tmp_path)],
      env=environment,
      cwd=Path(__file__).parents[2],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for host in (0, 1)
  ]
  try:
    return [process.communicate(timeout=120) for process in processes]
  finally:
    for process in processes:
      process.kill()


def test_two_hosts_and_one(tmp_path):
  with Checkpointer(tmp_path / 'one') as one:
    one.save(3, make_tree(), {'from': 'one'})
  for out, err in run_hosts(tmp_path):
    assert out.strip().endswith('fine'), err

  two = Checkpointer(tmp_path / 'two', keep=1, best=1, metric='loss')
  assert sorted(os.listdir(two.folder)) == ['00000002', '00000004']
  assert (two.latest(), two.best_step()) == (4, 2)
  tree, extra = two.restore(4, make_tree() | {'local': jnp.float32(0)})
  assert extra == {'host': 'both'}
  np.testing.assert_array_equal(tree['w'], 8 * np.arange(128).reshape(16, 8))
  assert tree['b'].dtype == jnp.bfloat16 and np.all(tree['b'] == jnp.full(8, 1 / 3, jnp.bfloat16))
  assert tree['key'] == jax.random.key(5)
  assert tree['n'] == 7 and tree['local'] == 4
  # Both hosts wrote arrays: each its own half of w.
  names = files.read_json(two.folder / '00000004' / 'checkpoint.json')['files']
  assert {name.split('/')[0] for name in names if name.startswith('ocdbt.process')} == {'ocdbt.process_0', 'ocdbt.process_1'}


def test_hosts_that_do_not_share_the_folder(tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint, '_IN_SIGHT', 0.2)
  monkeypatch.setattr(Checkpointer, '_prepare', lambda self, step: 'made_elsewhere')
  with pytest.raises(CheckpointError, match='does not see .*made_elsewhere.*the hosts must share the working folder'):
    Checkpointer(tmp_path).save(1, {'x': jnp.arange(3)}, {})
