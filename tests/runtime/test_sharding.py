"""Sharding on eight fake devices, in a process of its own: the flag must be set before jax starts."""

import os
import subprocess
import sys

PROGRAM = """
import jax, numpy as np
from jax.sharding import PartitionSpec as P
from mempi_jax.models.partition import shardings
from mempi_jax.runtime.sharding import check_rows, local_layout, make_layout, put, to_host
from mempi_jax.config import load_config
from tests.layouts import layout
from tests.small_run import CONFIG
eight = layout(0, 2, 2)
assert dict(eight.mesh.shape) == {'data': 2, 'fsdp': 2, 'tensor': 2} and local_layout(eight) is eight
shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, np.float32)
state = {
  'embedding': shape(100, 16), 'layer_0': {'qkv': shape(16, 24), 'out': shape(16, 16), 'qkv_bias': shape(24), 'attention_norm': shape(16)},
  'layers': {'gate_up': shape(3, 16, 64), 'q_proj': {'a': shape(3, 16, 4), 'b': shape(3, 4, 16)}}, 'odd': {'down': shape(64, 15)}, 'count': shape(),
  'narrow': {'down': shape(3, 16)}, 'tokens': {'embedding': shape(2, 16)},
}
specs = jax.tree.map(lambda s: s.spec, shardings(eight, state))
split = lambda *axes: P(*((axis,) if axis else None for axis in axes))
assert specs['embedding'] == split('tensor', 'fsdp') and specs['layer_0']['qkv'] == split('fsdp', 'tensor'), specs
assert specs['layer_0']['out'] == split('tensor', 'fsdp')
assert specs['layer_0']['qkv_bias'] == specs['layer_0']['attention_norm'] == specs['count'] == P()
assert specs['layers']['gate_up'] == split(None, 'fsdp', 'tensor')
assert specs['layers']['q_proj'] == {'a': split(None, 'fsdp', None), 'b': split(None, None, 'tensor')}
assert specs['odd']['down'] == split('tensor', None), specs['odd']  # 15 cannot be split
assert specs['narrow']['down'] == split(None, 'fsdp'), specs['narrow']
wide = layout(1, 8, 1)  # what the width cannot be split over goes to the other axis, which its own rule leaves whole
assert shardings(wide, {'qkv': shape(12, 24)})['qkv'].spec == split(None, 'fsdp')
assert eight.sharding(('embed', 'heads'), (16, 24)).shard_shape((16, 24)) == (8, 12)
rows = put({'x': np.arange(16 * 3, dtype=np.float32).reshape(16, 3)}, {'x': eight.rows})
assert {shard.data.shape for shard in rows['x'].addressable_shards} == {(4, 3)}
matrix = np.arange(3 * 16, dtype=np.float32).reshape(3, 16)
placed = put({'qkv': matrix}, shardings(eight, {'qkv': matrix}))
np.testing.assert_allclose(np.asarray(jax.jit(lambda w, x: x @ w)(placed['qkv'], rows['x'])), np.asarray(rows['x']) @ matrix, rtol=1e-6)
assert to_host(placed, eight, None) is placed

def mesh(**fields):
  config = load_config(CONFIG, {f'mesh.{name}': value for name, value in fields.items()}).mesh
  return lambda: make_layout(config)

for bad, words in (
  (mesh(fsdp=3), 'mesh.fsdp 3 x mesh.tensor 1 does not divide the 8 devices'), (mesh(data=3, fsdp=2), '6 devices, found 8'),
  (mesh(fsdp=0), 'expected 1 or more'), (mesh(slices=3), 'mesh.slices 3 does not divide mesh.data 8'),
  (lambda: check_rows(eight, 6), '6 rows'), (lambda: check_rows(eight, 16, micro_batches=8), '8 micro-batches over 4 devices'),
):
  try:
    bad()
  except ValueError as error:
    assert words in str(error), error
  else:
    raise AssertionError(words)
config = load_config(CONFIG)
config.mesh.rules.embed = 'fdsp'
try:
  make_layout(config.mesh)
except ValueError as error:
  assert "'fdsp' is no axis of the mesh" in str(error) and 'did you mean fsdp' in str(error)
else:
  raise AssertionError('a misspelt axis')
print('fine')
"""


def test_rows_and_parameters_on_eight_devices():
  environment = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=8', 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run([sys.executable, '-c', PROGRAM], env=environment, capture_output=True, text=True, check=False)
  assert done.stdout.strip() == 'fine', done.stderr
