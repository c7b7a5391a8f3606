"""Checkpoints: bit-exact, atomic, and clear about what is wrong."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mempi_jax.runtime.checkpoint import Checkpointer, CheckpointError


def make_tree(seed=0):
  params = {'layer_0': {'qkv': jax.random.normal(jax.random.key(seed), (16, 24))}, 'norm': jnp.ones((16,))}
  return {
    'params': params,
    'optimizer': optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)).init(params),
    'step': jnp.int32(7),
    'visits': np.arange(6, dtype=np.int64).reshape(2, 3),
    'mean': np.float64(0.1),
    'half': jnp.asarray([1 / 3], jnp.bfloat16),
  }


def assert_same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    assert a.dtype == b.dtype
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_round_trip_is_bit_exact(tmp_path):
  tree, extra = make_tree(), {'seen': [3, 1], 'tau': 0.1 + 0.2, 'name': 'π', 'none': None}
  Checkpointer(tmp_path).save(12, tree, extra)
  fresh = Checkpointer(tmp_path)
  assert fresh.latest() == 12
  found, found_extra = fresh.restore(12, make_tree(seed=1))
  assert_same(found, tree)
  assert found_extra == extra
  abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
  assert_same(fresh.restore(12, abstract)[0], tree)


def test_the_newest_are_kept(tmp_path):
  checkpointer = Checkpointer(tmp_path, keep=2)
  assert checkpointer.latest() is None
  for step in (2, 10, 100):
    checkpointer.save(step, {'x': jnp.full(3, step)}, {})
  assert sorted(os.listdir(tmp_path)) == ['00000010', '00000100']
  np.testing.assert_array_equal(checkpointer.restore(10, {'x': jnp.zeros(3, jnp.int32)})[0]['x'], [10, 10, 10])


def test_saving_a_step_again_replaces_it(tmp_path):
  checkpointer = Checkpointer(tmp_path)
  checkpointer.save(1, {'x': jnp.zeros(2)}, {'n': 1})
  checkpointer.save(1, {'x': jnp.ones(2)}, {'n': 2})
  found, extra = checkpointer.restore(1, {'x': jnp.zeros(2)})
  np.testing.assert_array_equal(found['x'], [1, 1])
  assert extra == {'n': 2}


def corrupt_data(folder):
  largest = max((path for path in (folder / 'state').rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 0xFF
  largest.write_bytes(data)


def truncate_data(folder):
  largest = max((path for path in (folder / 'state').rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)
  largest.write_bytes(largest.read_bytes()[:100])


def remove_data(folder):
  next(path for path in (folder / 'state').rglob('*') if path.is_file()).unlink()


def break_description(folder):
  (folder / 'checkpoint.json').write_text('{"step": 3')


def remove_description(folder):
  (folder / 'checkpoint.json').unlink()


@pytest.mark.parametrize('damage', [corrupt_data, truncate_data, remove_data, break_description, remove_description])
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, caplog, damage):
  checkpointer = Checkpointer(tmp_path)
  template = {'x': jnp.zeros(1000)}
  for step in (1, 2, 3):
    checkpointer.save(step, {'x': jax.random.normal(jax.random.key(step), (1000,))}, {'step': step})
  damage(tmp_path / '00000003')
  assert checkpointer.latest() == 2
  assert '00000003 is damaged' in caplog.text and 'the one before it is used' in caplog.text
  assert checkpointer.restore(2, template)[1] == {'step': 2}
  with pytest.raises(CheckpointError, match='00000003 is damaged'):
    checkpointer.restore(3, template)
  # The run goes on from step 2: the damaged one must not count among those that are kept.
  checkpointer.save(2, template, {})
  assert sorted(os.listdir(tmp_path)) == ['00000002']


def test_a_missing_checkpoint_names_the_folder(tmp_path):
  with pytest.raises(CheckpointError, match=f'no checkpoint of step 5 in {tmp_path}/stage1 .steps there: none'):
    Checkpointer(tmp_path / 'stage1').restore(5, {'x': jnp.zeros(1)})


def test_another_shape_names_leaf_found_and_expected(tmp_path):
  checkpointer = Checkpointer(tmp_path)
  checkpointer.save(1, {'params': {'out': jnp.zeros((4, 8)), 'norm': jnp.zeros(4), 'old': jnp.zeros(1)}}, {})
  with pytest.raises(CheckpointError) as error:
    checkpointer.restore(1, {'params': {'out': jnp.zeros((4, 9)), 'norm': jnp.zeros(4, jnp.int32), 'new': jnp.zeros(2)}})
  message = str(error.value)
  assert 'params/out is float32[4, 8], expected float32[4, 9]' in message
  assert 'params/norm is float32[4], expected int32[4]' in message
  assert 'params/new is missing, expected float32[2]' in message
  assert 'params/old float32[1] is not expected' in message


SAVE_LOOP = """
import sys
import jax.numpy as jnp
from mempi_jax.runtime.checkpoint import Checkpointer
checkpointer = Checkpointer(sys.argv[1])
for step in range(10**9):
  checkpointer.save(step, {'x': jnp.full((100_000,), step, jnp.int32)}, {'step': step})
  print(step, flush=True)
"""


def test_sigkill_in_a_save_loop(tmp_path):
  """Killed at five different moments of a save; each time the newest checkpoint is whole, and at least the last one reported."""
  for delay in (0.0, 0.01, 0.03, 0.06, 0.1):
    folder = tmp_path / str(delay)
    process = subprocess.Popen(
      [sys.executable, '-c', SAVE_LOOP, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2]
    )
    for _ in range(3):
      reported = int(process.stdout.readline())
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    rest = process.communicate()[0].split()
    reported = int(rest[-1]) if rest else reported
    checkpointer = Checkpointer(folder)
    step = checkpointer.latest()
    assert step >= reported
    tree, extra = checkpointer.restore(step, {'x': jnp.zeros(100_000, jnp.int32)})
    assert extra == {'step': step} and np.all(np.asarray(tree['x']) == step)
    checkpointer.save(step + 1, tree, {})  # clears what the kill left
    assert not list(folder.glob('.*'))
