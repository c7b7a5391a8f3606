"""The update gives the same on any mesh and in any number of parts, and says what is wrong with a gradient."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mempi_jax.config import ConfigError, load_config, resolve
from mempi_jax.train import check_run
from mempi_jax.training.update import Update
from tests.layouts import layout
from tests.small_run import CONFIG
from tests.training.updates import FLAGS, assert_same, batch, make_update, three_updates
from tests.two_hosts import REPOSITORY

# One process for all meshes: the devices must be asked for before JAX starts.
PROGRAM = """
import jax
from tests.layouts import layout
from tests.training.updates import assert_same, make_update, three_updates

meshes = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8)]
for stage in ('sft', 'rl'):
  one = three_updates(layout(1, 1, 1, jax.devices()[:1]), stage)
  for mesh in meshes:
    assert_same(three_updates(layout(*mesh), stage), one, 1e-5)
    print(stage, mesh, flush=True)
  if stage == 'rl':
    assert_same(three_updates(layout(2, 2, 2), stage, micro_batches=2), one, 1e-5)
    print(stage, 'in two parts', flush=True)
one = three_updates(layout(1, 1, 1, jax.devices()[:1]), 'rl', scan=True, lora=True)
assert_same(three_updates(layout(2, 2, 2), 'rl', scan=True, lora=True), one, 1e-5)
print('rl, scanned layers, an adapter', flush=True)

# No device holds more than its part of what is trained.
update, state, _ = make_update(layout(1, 8, 1), 'sft')
for leaf in (state['params']['layer_0']['gate_up'], state['params']['embedding'], *jax.tree.leaves(state['opt_state'])):
  if leaf.ndim == 2:
    assert leaf.addressable_shards[0].data.size * 8 == leaf.size, leaf.shape
print('fine')
"""


def test_every_mesh_gives_what_one_device_does():
  flags = f'--xla_force_host_platform_device_count=8 {FLAGS}'
  environment = os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(REPOSITORY)}
  done = subprocess.run([sys.executable, '-c', PROGRAM], env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
  assert done.stdout.splitlines()[-1:] == ['fine'], done.stdout + done.stderr[-3000:]


@pytest.fixture(scope='module')
def one():
  return layout(1, 1, 1, jax.devices()[:1])


@pytest.fixture(scope='module')
def whole(one):
  return {stage: three_updates(one, stage) for stage in ('sft', 'rl')}


@pytest.mark.parametrize(('stage', 'parts'), [('sft', 8), ('rl', 2), ('rl', 8)])
def test_parts_are_the_whole_batch(one, whole, stage, parts):
  """Of eight parts one has no row that counts (rows 5 and 13)."""
  empty = [part for part in range(parts) if not batch(0).valid[part::parts].any()]
  assert empty == ([5] if parts == 8 else [])
  assert_same(three_updates(one, stage, micro_batches=parts), whole[stage], 1e-6)


def test_rows_that_do_not_count_change_nothing(one, whole):
  """What stands in them is anything but a number."""
  update, state, frozen = make_update(one, 'rl')
  for step in range(3):
    rows = batch(step)
    for array in (rows.content_adv, rows.decision_adv, rows.old_logps):
      array[~rows.valid] = 1e6
    state, scalars = update(state, frozen, update.put(rows))
    for name, value in update.read(scalars, f'step {step}').items():
      assert value == pytest.approx(whole['rl'][0][step][name], rel=1e-5, abs=1e-5), name


def test_the_state_is_donated_and_what_it_was_made_of_is_not(one):
  update = toy(one)
  params = {'w': jnp.arange(1.0, 4.0)}
  state = update.init(params)
  donated = state['params']['w']
  state, _ = update(state, {}, update.put(batch(0)))
  assert donated.is_deleted() and not params['w'].is_deleted()


def toy(where, loss=lambda w: jnp.sum(w['w'] ** 2), **options):
  """An update of something that compiles in no time."""
  compute = lambda trained, frozen, arrays, num_rows, num_tokens: (loss(trained), {'loss/part': jnp.float32(1.0)})
  return Update(where, compute, optax.sgd(0.1), **options)


def test_a_gradient_that_is_not_finite_names_step_and_leaves(one):
  root = lambda w: jnp.sum(w['ok']) + jnp.sum(jnp.sqrt(w['layer_1']['out'])) + jnp.sum(jnp.sqrt(w['layer_1']['qkv']))
  update = toy(one, root)
  state = update.init({'ok': jnp.ones(3), 'layer_1': {'out': jnp.ones((2, 2)), 'qkv': jnp.array([1.0, 0.0])}})
  state, scalars = update(state, {}, update.put(batch(0)))
  with pytest.raises(FloatingPointError) as error:
    update.read(scalars, 'stage 2, step 12')
  assert str(error.value) == 'stage 2, step 12: the gradient of layer_1/qkv is not finite (loss 8); the last checkpoint is whole'
  # The step after it: everything that it touched.
  state, scalars = update(state, {}, update.put(batch(0)))
  with pytest.raises(FloatingPointError, match='layer_1/qkv is not finite .loss nan.'):
    update.read(scalars, 'stage 2, step 13')


def test_many_broken_leaves_are_counted(one):
  update = toy(one, lambda w: sum(jnp.sum(jnp.sqrt(leaf)) for leaf in w.values()))
  state = update.init({f'w{i}': jnp.zeros(1) for i in range(6)})
  _, scalars = update(state, {}, update.put(batch(0)))
  with pytest.raises(FloatingPointError, match='the gradient of w0, w1, w2, w3 and 2 more is not finite'):
    update.read(scalars, 'step 0')


def test_the_metrics_of_a_step(one):
  update = toy(one)
  state, scalars = update(update.init({'w': jnp.array([3.0, 4.0])}), {}, update.put(batch(0)))
  assert update.read(scalars, 'step 0') == {'train/loss': 25.0, 'train/gradient_norm': 10.0, 'loss/part': 1.0}
  np.testing.assert_allclose(state['params']['w'], [2.4, 3.2], rtol=1e-6)


@pytest.mark.parametrize(('parts', 'message'), [(3, 'use a multiple of 3'), (32, 'use a multiple of 32'), (0, 'into 0 micro-batches')])
def test_rows_that_cannot_be_split(one, parts, message):
  with pytest.raises(ValueError, match=f'a batch of 16 rows cannot be split .*{message}'):
    toy(one, micro_batches=parts).put(batch(0))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'stage1.micro_batches': 5}, 'stage1.batch_size: a batch of 32 rows cannot be split into 5 micro-batches over 1 devices'),
    ({'stage2.micro_batches': 7}, 'stage2.groups: a batch of 48 rows cannot be split into 7 micro-batches over 1 devices .mesh.rules.rows.: use a multiple of 7'),
    ({'mesh.tensor': 3}, 'mesh.fsdp 1 x mesh.tensor 3 does not divide the 1 devices found'),
    ({'mesh.data': 2}, r'mesh.data, mesh.fsdp, mesh.tensor \(2, 1, 1\) are 2 devices, found 1'),
    ({'mesh.slices': 2}, 'mesh.slices 2 does not divide mesh.data 1'),
    ({'mesh.rules.rows': 'data,fsp'}, "mesh.rules.rows is 'data,fsp': 'fsp' is no axis of the mesh.*did you mean fsdp"),
  ],
)
def test_what_cannot_be_split_is_found_before_anything_is_played(fields, message):
  with pytest.raises(ConfigError, match=message):
    check_run(resolve(load_config(CONFIG, fields)))
