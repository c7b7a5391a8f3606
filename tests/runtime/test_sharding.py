"""Sharding on eight fake devices, in a process of its own: the flag must be set before jax starts."""

import os
import subprocess
import sys

PROGRAM = """
import jax, numpy as np
from jax.sharding import PartitionSpec as P
from mempi_jax.runtime.sharding import make_mesh, put_rows, put_state, shard_state
mesh = make_mesh(4)
assert dict(mesh.shape) == {'data': 2, 'fsdp': 4}
state = {'wide': np.arange(3 * 16, dtype=np.float32).reshape(3, 16), 'norm': np.ones(16, np.float32), 'odd': np.ones((3, 5), np.float32)}
specs = jax.tree.map(lambda s: s.spec, shard_state(mesh, state))
assert specs == {'wide': P(None, 'fsdp'), 'norm': P(), 'odd': P()}, specs
batch = put_rows(mesh, {'x': np.arange(16 * 3, dtype=np.float32).reshape(16, 3)})
assert {shard.data.shape for shard in batch['x'].addressable_shards} == {(2, 3)}
placed = put_state(mesh, state)
out = jax.jit(lambda w, x: x @ w)(placed['wide'], batch['x'])
np.testing.assert_allclose(np.asarray(out), np.asarray(batch['x']) @ state['wide'], rtol=1e-6)
for bad, word in ((lambda: make_mesh(3), 'mesh.fsdp = 3'), (lambda: put_rows(mesh, {'x': np.ones((12, 2))}), '12 rows')):
  try:
    bad()
  except ValueError as error:
    assert word in str(error), error
  else:
    raise AssertionError(word)
print('fine')
"""


def test_rows_and_parameters_on_eight_devices():
  environment = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=8', 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run([sys.executable, '-c', PROGRAM], env=environment, capture_output=True, text=True, check=False)
  assert done.stdout.strip() == 'fine', done.stderr
