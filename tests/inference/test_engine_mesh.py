"""The engine on the training mesh: eight fake devices, in a process of its own, since the flag must be set before jax starts."""

import os
import subprocess
import sys

# The last two: what is compiled runs once, so compiling it fast is all that counts.
FLAGS = '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'

PROGRAM = """
import jax, numpy as np
from mempi_jax.inference.engine import Engine
from mempi_jax.inference.requests import Request
from mempi_jax.models.decoder import init_params
from mempi_jax.models.presets import preset
from mempi_jax.models.partition import shardings
from tests.layouts import layout
config = preset('dummy', 24)
params = jax.tree.map(lambda leaf: leaf * 8.0 if leaf.ndim == 2 else leaf, init_params(config, jax.random.key(3)))
rng = np.random.default_rng(0)
requests = [Request(rng.integers(3, 24, rng.integers(2, 60)).tolist(), 10, seed=i, stop=((2,),), session=i % 13) for i in range(24)]
one = Engine(config, params, slots=8, max_length=80).generate(requests)
sharded = jax.device_put(params, shardings(layout(2, 4, 1), params))
engine = Engine(config, sharded, slots=8, max_length=80)
leaf = engine.store[0]['k']
assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {1}, leaf.sharding  # a slot a device
assert engine.params is sharded
many = engine.generate(requests)
assert [a.tokens for a in one] == [b.tokens for b in many]
for a, b in zip(one, many):
  np.testing.assert_allclose(a.model_logps, b.model_logps, atol=1e-4)
assert {shard.data.shape[0] for shard in engine.store[0]['k'].addressable_shards} == {1}, engine.store[0]['k'].sharding
print('fine')
"""


def test_the_same_tokens_on_eight_devices_with_the_cache_spread_over_them():
  environment = os.environ | {'XLA_FLAGS': FLAGS, 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run([sys.executable, '-c', PROGRAM], env=environment, capture_output=True, text=True, check=False)
  assert done.stdout.strip() == 'fine', done.stderr
