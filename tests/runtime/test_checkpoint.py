"""Checkpoints: bit-exact, asynchronous, atomic, and clear about what is wrong. On several hosts: test_checkpoint_hosts.py."""

import asyncio
import contextlib
import ctypes
import errno
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mempi_jax.runtime import files
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
  with Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(12, tree, extra)
  fresh = Checkpointer(tmp_path)
  assert fresh.latest() == 12
  found, found_extra = fresh.restore(12, make_tree(seed=1))
  assert_same(found, tree)
  assert found_extra == extra
  assert isinstance(found['step'], jax.Array) and isinstance(found['mean'], np.ndarray)
  abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
  found = fresh.restore(12, abstract)[0]
  assert_same(found, tree)
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found))  # no sharding was asked for


def test_random_keys(tmp_path):
  checkpointer = Checkpointer(tmp_path)
  checkpointer.save(1, {'key': jax.random.key(3), 'keys': jax.random.split(jax.random.key(4), 6).reshape(2, 3)}, {})
  found, _ = checkpointer.restore(1, {'key': jax.random.key(0), 'keys': jax.random.split(jax.random.key(0), 6).reshape(2, 3)})
  assert found['key'] == jax.random.key(3)
  assert jnp.all(found['keys'].reshape(-1) == jax.random.split(jax.random.key(4), 6))


# What is kept.


def test_the_newest_are_kept(tmp_path):
  checkpointer = Checkpointer(tmp_path, keep=2)
  assert checkpointer.latest() is None
  for step in (2, 10, 100):
    checkpointer.save(step, {'x': jnp.full(3, step)}, {})
  checkpointer.wait()
  assert sorted(os.listdir(tmp_path)) == ['00000010', '00000100']
  np.testing.assert_array_equal(checkpointer.restore(10, {'x': jnp.zeros(3, jnp.int32)})[0]['x'], [10, 10, 10])


VALUES = {1: 0.5, 2: 0.25, 3: 0.25, 4: None, 5: float('nan'), 6: 0.75, 7: 0.5, 8: 0.9}


@pytest.mark.parametrize(
  ('mode', 'best', 'kept', 'first'),
  [('min', 1, [2, 7, 8], 2), ('min', 2, [2, 3, 7, 8], 2), ('max', 1, [7, 8], 8), ('max', 2, [6, 7, 8], 8), ('max', 3, [1, 6, 7, 8], 8)],
)
def test_the_best_are_kept_besides(tmp_path, mode, best, kept, first):
  with Checkpointer(tmp_path, keep=2, best=best, metric='val/loss', mode=mode) as checkpointer:
    assert checkpointer.best_step() is None
    for step, value in VALUES.items():
      checkpointer.save(step, {'x': jnp.full(3, step)}, {}, {'other': 0.0} if value is None else {'val/loss': value, 'other': -value})
    assert checkpointer.best_step() == first
  assert sorted(os.listdir(tmp_path)) == [f'{step:08d}' for step in kept]
  assert files.read_json(tmp_path / '00000007' / 'checkpoint.json')['metrics'] == {'val/loss': 0.5, 'other': -0.5}
  # Another process ranks them by what is written.
  again = Checkpointer(tmp_path, keep=2, best=best, metric='val/loss', mode=mode)
  assert (again.best_step(), again.latest()) == (first, 8)


def test_a_run_that_goes_back_forgets_what_came_later(tmp_path):
  with Checkpointer(tmp_path, keep=1, best=1, metric='loss') as checkpointer:
    for step, value in ((1, 3.0), (2, 2.0), (3, 1.0), (2, 4.0)):
      checkpointer.save(step, {'x': jnp.full(3, value)}, {}, {'loss': value})
    assert (checkpointer.latest(), checkpointer.best_step()) == (2, 2)  # step 1 was gone when the run went back
  assert os.listdir(tmp_path) == ['00000002']


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'keep': 0}, 'keep must be at least 1, found 0'),
    ({'best': -1}, 'best must not be negative, found -1'),
    ({'best': 2}, 'best = 2 needs the name of a metric'),
    ({'mode': 'lowest'}, "mode must be 'min' or 'max', found 'lowest'"),
  ],
)
def test_impossible_settings(tmp_path, arguments, message):
  with pytest.raises(ValueError, match=message):
    Checkpointer(tmp_path, **arguments)


def test_saving_a_step_again_replaces_it(tmp_path):
  checkpointer = Checkpointer(tmp_path)
  checkpointer.save(1, {'x': jnp.zeros(2)}, {'n': 1})
  checkpointer.save(1, {'x': jnp.ones(2)}, {'n': 2})
  found, extra = checkpointer.restore(1, {'x': jnp.zeros(2)})
  np.testing.assert_array_equal(found['x'], [1, 1])
  assert extra == {'n': 2}


# Saving while training goes on.


class Gate:
  """Lets the thread commit when it is opened."""

  def __init__(self, monkeypatch):
    self.opened, commit = threading.Event(), Checkpointer._commit

    def wait(*arguments):
      self.opened.wait(60)
      commit(*arguments)

    monkeypatch.setattr(Checkpointer, '_commit', wait)


def test_save_returns_before_it_is_written(tmp_path, monkeypatch):
  gate, checkpointer = Gate(monkeypatch), Checkpointer(tmp_path)
  checkpointer.save(1, {'x': jnp.arange(3)}, {'n': 1})
  assert not (tmp_path / '00000001').exists() and Checkpointer(tmp_path).latest() is None
  gate.opened.set()
  assert checkpointer.latest() == 1  # waits


def test_what_is_saved_is_what_was_there_at_the_save(tmp_path):
  """The caller's arrays are donated, and the memory they were in is overwritten, while the thread writes."""
  update = jax.jit(lambda tree: jax.tree.map(lambda x: x * 3 + 1, tree), donate_argnums=0)
  state = {'x': jax.random.normal(jax.random.key(0), (1_000_000,)), 'i': jnp.arange(1_000_000)}
  checkpointer = Checkpointer(tmp_path, keep=4)
  copies = {}
  for step in (1, 2, 3):
    copies[step] = jax.tree.map(np.array, state)
    old = state
    checkpointer.save(step, state, {})
    state = update(state)
    assert old['x'].is_deleted()  # it was donated: nobody holds a view of it
  host, extra = np.arange(1_000_000), {'seen': [1]}
  copies[4] = jax.tree.map(np.array, state) | {'host': host.copy()}
  checkpointer.save(4, state | {'host': host}, extra)
  for leaf in jax.tree.leaves(state):
    ctypes.memset(leaf.unsafe_buffer_pointer(), 0xA5, leaf.nbytes)
  host[:] = -1
  extra['seen'].append(2)
  assert np.asarray(state['i'])[0] == np.frombuffer(b'\xa5' * 4, np.int32)[0]
  for step, expected in copies.items():
    found, found_extra = checkpointer.restore(step, jax.tree.map(np.zeros_like, expected))
    assert_same(found, expected)
  assert found_extra == {'seen': [1]}


def test_saving_inside_an_event_loop(tmp_path):
  """As in a notebook."""

  async def cell():
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, {'x': jnp.arange(3)}, {})
    return checkpointer.restore(1, {'x': np.zeros(3, np.int32)})[0]['x']

  np.testing.assert_array_equal(asyncio.run(cell()), [0, 1, 2])


def test_a_program_that_fails_inside_keeps_its_last_save(tmp_path):
  with pytest.raises(FloatingPointError), Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(5, {'x': jnp.arange(3)}, {})
    raise FloatingPointError('loss is NaN')
  assert Checkpointer(tmp_path).latest() == 5


# Damage.


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


def change_description(folder):
  text = (folder / 'checkpoint.json').read_text()
  assert text.count('"step": 3') == 2
  (folder / 'checkpoint.json').write_text(text.replace('"step": 3', '"step": 9', 1))


def empty_description(folder):
  (folder / 'checkpoint.json').write_text('[]')


def remove_description(folder):
  (folder / 'checkpoint.json').unlink()


@pytest.mark.parametrize(
  'damage', [corrupt_data, truncate_data, remove_data, break_description, change_description, empty_description, remove_description]
)
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, caplog, damage):
  checkpointer = Checkpointer(tmp_path)
  template = {'x': jnp.zeros(1000)}
  for step in (1, 2, 3):
    checkpointer.save(step, {'x': jax.random.normal(jax.random.key(step), (1000,))}, {'step': step})
  checkpointer.wait()
  damage(tmp_path / '00000003')
  assert checkpointer.latest() == 2
  assert '00000003 is damaged' in caplog.text and 'the one before it is used' in caplog.text
  assert checkpointer.restore(2, template)[1] == {'step': 2}
  with pytest.raises(CheckpointError, match='00000003 is damaged'):
    checkpointer.restore(3, template)
  # The run goes on from step 2: the damaged one must not count among those that are kept.
  checkpointer.save(4, template, {})
  checkpointer.wait()
  assert sorted(os.listdir(tmp_path)) == ['00000002', '00000004']


def test_a_damaged_best_one_is_passed_over(tmp_path, caplog):
  checkpointer = Checkpointer(tmp_path, keep=3, best=1, metric='loss')
  for step in (1, 2, 3):
    checkpointer.save(step, {'x': jnp.full(3, step)}, {}, {'loss': float(step)})
  checkpointer.wait()
  corrupt_data(tmp_path / '00000001')
  assert checkpointer.best_step() == 2
  assert '00000001 is damaged' in caplog.text and 'the next best is used' in caplog.text
  for step in (2, 3):
    corrupt_data(tmp_path / f'0000000{step}')
  assert checkpointer.latest() is None and '00000001 is damaged: ' in caplog.text.splitlines()[-1] and 'no other is left' in caplog.text


def test_checkpoints_from_before_there_were_metrics(tmp_path):
  """Their description has neither metrics nor a hash of its own."""
  checkpointer = Checkpointer(tmp_path, best=1, metric='loss')
  checkpointer.save(1, {'x': jnp.arange(3)}, {'n': 1})
  checkpointer.wait()
  path = tmp_path / '00000001' / 'checkpoint.json'
  files.write_json(path, {name: value for name, value in files.read_json(path).items() if name not in ('metrics', 'sha256')})
  assert checkpointer.latest() == 1 and checkpointer.best_step() is None
  assert checkpointer.restore(1, {'x': np.zeros(3, np.int32)})[1] == {'n': 1}


def test_a_missing_checkpoint_names_the_folder(tmp_path):
  with pytest.raises(CheckpointError, match=f'no checkpoint of step 5 in {tmp_path}/stage1 .steps there: none'):
    Checkpointer(tmp_path / 'stage1').restore(5, {'x': jnp.zeros(1)})


def test_another_shape_names_leaf_found_and_expected(tmp_path):
  checkpointer = Checkpointer(tmp_path)
  checkpointer.save(1, {'params': {'out': jnp.zeros((4, 8)), 'norm': jnp.zeros(4), 'old': jnp.zeros(1)}}, {})
  with pytest.raises(CheckpointError) as error:
    checkpointer.restore(1, {'params': {'out': jnp.zeros((4, 9)), 'norm': jnp.zeros(4, jnp.int32), 'new': jnp.zeros(2)}})
  message = str(error.value)
  assert f'checkpoint {tmp_path}/00000001 is of another model' in message
  assert 'params/out is float32[4, 8], expected float32[4, 9]' in message
  assert 'params/norm is float32[4], expected int32[4]' in message
  assert 'params/new is missing, expected float32[2]' in message
  assert 'params/old float32[1] is not expected' in message


def test_a_wholly_different_model_is_not_listed_to_the_end(tmp_path):
  checkpointer = Checkpointer(tmp_path)
  checkpointer.save(1, {f'a{i}': jnp.zeros(1) for i in range(20)}, {})
  with pytest.raises(CheckpointError, match='a0 float32.1. is not expected.*; and 9 more$'):
    checkpointer.restore(1, {'b': jnp.zeros(1)})
  assert checkpointer.latest() == 1


# Folders that cannot be written.


@contextlib.contextmanager
def full_disk():
  """The description cannot be written, as if its last bytes did not fit."""

  def write_json(path, value):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(files, 'write_json', write_json)
    yield errno.ENOSPC


@contextlib.contextmanager
def small_files():
  """TensorStore cannot write the arrays: no file of this process may grow beyond 100 kB."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
  try:
    yield errno.EFBIG
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def noise(step):
  return {'x': jax.random.normal(jax.random.key(step), (100_000,)), 'visits': np.full(7, step)}


@pytest.mark.parametrize('failing', [full_disk, small_files])
def test_a_write_that_fails_loses_nothing(tmp_path, failing):
  checkpointer = Checkpointer(tmp_path)
  checkpointer.save(1, noise(1), {})
  checkpointer.save(2, noise(2), {'n': 2})
  checkpointer.wait()
  with failing() as number:
    checkpointer.save(3, noise(3), {})
    message = f'the checkpoint of step 3 could not be written in {tmp_path}: .*{os.strerror(number)}.*; those before it are whole'
    with pytest.raises(CheckpointError, match=message) as error:
      checkpointer.save(4, noise(4), {})  # not begun: the run has to end, or to make room
  assert len(str(error.value)) < 300
  assert sorted(os.listdir(tmp_path)) == ['00000001', '00000002']  # what was half written is gone
  checkpointer.wait()  # it is said once
  assert checkpointer.latest() == 2
  found, extra = checkpointer.restore(2, noise(0))
  assert_same(found, noise(2))
  assert extra == {'n': 2}
  checkpointer.save(4, noise(4), {})
  checkpointer.wait()
  assert sorted(os.listdir(tmp_path)) == ['00000002', '00000004']


def test_closing_says_that_the_last_write_failed(tmp_path, caplog):
  with full_disk(), pytest.raises(CheckpointError, match='step 1 could not be written'), Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(1, noise(1), {})
  with full_disk(), pytest.raises(FloatingPointError, match='loss is NaN'), Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(1, noise(1), {})
    raise FloatingPointError('loss is NaN')
  assert 'step 1 could not be written' in caplog.text and os.listdir(tmp_path) == []


@pytest.fixture
def read_only_folder():
  """A folder that this process may read, and not write: root, for whom there is no such thing, becomes somebody else."""
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    with Checkpointer(folder) as checkpointer:
      checkpointer.save(1, {'x': jnp.arange(3)}, {})
    folder.chmod(0o555)
    user = os.geteuid()
    try:
      if user == 0:
        os.seteuid(65534)
      yield folder
    finally:
      os.seteuid(user)
      folder.chmod(0o755)


def test_a_folder_that_may_not_be_written(read_only_folder, monkeypatch):
  monkeypatch.setattr('mempi_jax.runtime.checkpoint._own', None)  # no array is copied
  checkpointer = Checkpointer(read_only_folder)
  with pytest.raises(CheckpointError, match=f'the checkpoint of step 2 was not written: .*{read_only_folder}.*: Permission denied'):
    checkpointer.save(2, {'x': jnp.arange(3)}, {})
  assert checkpointer.latest() == 1
  np.testing.assert_array_equal(checkpointer.restore(1, {'x': np.zeros(3, np.int32)})[0]['x'], [0, 1, 2])


def test_a_checkpoint_that_may_not_be_read_is_not_a_damaged_one(read_only_folder):
  """Were it passed over, the run would begin anew, and remove it."""
  user = os.geteuid()
  if user != os.getuid():
    os.seteuid(os.getuid())
  (read_only_folder / '00000001' / 'checkpoint.json').chmod(0)
  os.seteuid(user)
  with pytest.raises(CheckpointError, match='00000001 cannot be read: .*Permission denied'):
    Checkpointer(read_only_folder).latest()


@pytest.mark.parametrize('extra', [{'loss': float('nan')}, {'state': object()}])
def test_what_is_not_json_is_refused_before_any_work(tmp_path, extra):
  with pytest.raises((ValueError, TypeError)):
    Checkpointer(tmp_path / 'new').save(1, {'x': jnp.arange(3)}, extra)
  assert not (tmp_path / 'new').exists()


# Kills.


SAVE_LOOP = """
import sys
import jax, jax.numpy as jnp
from mempi_jax.runtime.checkpoint import Checkpointer
checkpointer = Checkpointer(sys.argv[1], keep=2, best=1, metric='loss')
first = checkpointer.latest() or 0
for step in range(first + 1, 10**9):
  checkpointer.save(step, {'x': jnp.full((300_000,), step), 'noise': jax.random.normal(jax.random.key(step), (300_000,))}, {'step': step}, {'loss': -step})
  print(step - 1, flush=True)  # a save begins when the one before it is committed
"""


def kill_savers(folder, times):
  """Saves in a loop, killed at random moments, each going on from where the one before was killed."""
  chance = random.Random(times)
  checkpointer = Checkpointer(folder)
  for _ in range(times):
    process = subprocess.Popen(
      [sys.executable, '-c', SAVE_LOOP, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2]
    )
    reported = int(process.stdout.readline())
    time.sleep(chance.uniform(0.0, 0.6))
    process.send_signal(signal.SIGKILL)
    rest = process.communicate()[0].split()
    reported = int(rest[-1]) if rest else reported
    step = checkpointer.latest() or 0
    assert step >= reported
    if step:
      tree, extra = checkpointer.restore(step, {'x': np.zeros(300_000, np.int32), 'noise': np.zeros(300_000, np.float32)})
      assert extra == {'step': step} and np.all(tree['x'] == step)
      assert_same(tree['noise'], jax.random.normal(jax.random.key(step), (300_000,)))
  checkpointer.save(step + 1, tree, {})  # clears what the kills left
  checkpointer.wait()
  assert sorted(os.listdir(folder)) == [f'{step:08d}', f'{step + 1:08d}']


def test_kills_while_saves_are_under_way(tmp_path, caplog):
  kill_savers(tmp_path, times=4)
  assert 'damaged' not in caplog.text


@pytest.mark.slow
def test_twenty_kills_while_saves_are_under_way(tmp_path, caplog):
  kill_savers(tmp_path, times=20)
  assert 'damaged' not in caplog.text
