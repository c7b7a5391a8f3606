"""Trackers: what reaches a service, and what happens to training when it is away."""

import importlib.util
import json
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from mempi_jax.config import ConfigError
from mempi_jax.runtime import trackers
from mempi_jax.runtime.metrics import MetricWriter, read_metrics
from mempi_jax.runtime.trackers import BackgroundTracker, check_tracker, open_trackers, run_key
from tests.wandb_server import WandbServer

needs_mlflow = pytest.mark.skipif(
  not all(map(importlib.util.find_spec, ('mlflow', 'sqlalchemy', 'alembic'))), reason='needs mlflow-skinny, sqlalchemy and alembic'
)


def closed_port():
  """A port at which nothing listens."""
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    return taken.getsockname()[1]


# Names and packages.


def test_no_tracker():
  assert check_tracker('') == ()


@pytest.mark.parametrize(
  'text, message',
  [
    ('wanbd', "names 'wanbd'; did you mean wandb\\?; expected '', or one or more of wandb, mlflow, with commas"),
    ('mlflow,tensorboard', "names 'tensorboard'; expected ''"),
    ('wandb mlflow', "names 'wandb mlflow'"),
  ],
)
def test_unknown_names(text, message):
  with pytest.raises(ConfigError, match=message):
    check_tracker(text)


@pytest.mark.parametrize('name', ['wandb', 'mlflow'])
@pytest.mark.parametrize('spec', [None, ModuleSpec('wandb', None)])  # nothing of that name; a folder that is no package
def test_a_package_that_is_not_installed(monkeypatch, name, spec):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: spec)
  with pytest.raises(ImportError, match=rf"tracker {name} needs packages .*: pip install 'mempi_jax\[{name}\]'"):
    check_tracker(name)


# The thread, with a service that is a list.


class ListService:
  """Keeps what it is sent; `fail` says whether a call raises, and `wait` how long one takes."""

  name = 'list'

  def __init__(self, has=(), fail=lambda call: False, wait=0.0):
    self.records, self.calls, self.ended = list(has), 0, None
    self.fail, self.wait = fail, wait

  def _call(self):
    self.calls += 1
    time.sleep(self.wait)
    if self.fail(self.calls):
      raise ConnectionError('nobody at http://someone:password@host/path')

  def open(self):
    self._call()
    return max([step for step, _ in self.records], default=-1) + 1

  def send(self, records):
    self._call()
    records = records[:3]
    self.records += [(record.step, dict(record.metrics)) for record in records]
    return len(records)

  def close(self, failed):
    self._call()
    self.ended = 'failed' if failed else 'finished'


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
  monkeypatch.setattr(trackers, 'PAUSES', (0.01, 0.05))


def train(folder, start, stop, *services, scale=1.0, close=True):
  """What a stage does with its metrics."""
  writer = MetricWriter(folder, start, [BackgroundTracker(service, folder, start) for service in services])
  for step in range(start, stop):
    writer.write(step, {'train/loss': scale / (step + 3)})
  if close:
    writer.close()
  return writer


def lines(folder):
  return [(line.pop('step'), line) for line in read_metrics(folder)]


def test_every_record_arrives_once_and_in_order(tmp_path):
  service = ListService()
  train(tmp_path, 0, 50, service)
  assert service.records == lines(tmp_path) and len(service.records) == 50
  assert service.ended == 'finished'


def test_a_resumed_run_sends_what_the_service_lacks_and_nothing_twice(tmp_path):
  first = ListService()
  train(tmp_path, 0, 10, first)
  # The service missed the first process's last steps before the checkpoint of step 6 ...
  behind = ListService(first.records[:4])
  train(tmp_path, 6, 12, behind)
  assert behind.records == lines(tmp_path) and len(behind.records) == 12
  # ... or has steps after it: they stay as they were measured first.
  ahead = ListService(first.records)
  train(tmp_path, 6, 12, ahead, scale=2.0)
  assert [step for step, _ in ahead.records] == list(range(12))
  assert ahead.records[:10] == first.records and ahead.records[10:] == lines(tmp_path)[10:]


def test_a_service_that_comes_back_gets_everything_and_one_warning_is_enough(tmp_path, caplog):
  service = ListService(fail=lambda call: call < 8 or call == 10)
  train(tmp_path, 0, 40, service, close=False)
  deadline = time.monotonic() + 20
  while len(service.records) < 40 and time.monotonic() < deadline:
    time.sleep(0.01)
  assert service.records == lines(tmp_path)
  (warning,) = [record.getMessage() for record in caplog.records]
  assert 'tracker list: ConnectionError: nobody at http://host/path' in warning and 'training goes on' in warning


def test_a_service_that_stays_away_stops_nothing(tmp_path, caplog):
  service = ListService(fail=lambda call: True)
  start = time.monotonic()
  train(tmp_path, 0, 20, service)
  assert time.monotonic() - start < trackers.CLOSE_SECONDS / 2
  assert len(lines(tmp_path)) == 20 and service.ended is None
  assert '20 records were not delivered' in caplog.records[-1].getMessage() and 'metrics.jsonl has them' in caplog.records[-1].getMessage()


def test_a_service_that_does_not_answer_stops_nothing(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(trackers, 'CLOSE_SECONDS', 0.2)
  start = time.monotonic()
  train(tmp_path, 0, 20, ListService(wait=60.0))
  assert time.monotonic() - start < 20
  assert '20 records were not delivered' in caplog.records[-1].getMessage()


def test_what_waits_is_bounded(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(trackers, 'WAITING', 5)
  back = threading.Event()
  service = ListService(fail=lambda call: not back.is_set())
  writer = train(tmp_path, 0, 20, service, close=False)
  back.set()
  writer.close()
  assert service.records == lines(tmp_path)[:5] and len(lines(tmp_path)) == 20
  assert '15 records were not delivered' in caplog.records[-1].getMessage()


def test_an_error_in_training_is_told_to_the_service(tmp_path):
  service = ListService()
  with pytest.raises(RuntimeError), MetricWriter(tmp_path, 0, [BackgroundTracker(service, tmp_path, 0)]) as writer:
    writer.write(0, {'train/loss': 1.0})
    raise RuntimeError
  assert service.ended == 'failed' and service.records == [(0, {'train/loss': 1.0})]


def test_the_key_of_a_run_is_drawn_once(tmp_path):
  key = run_key(tmp_path / 'trackers' / 'wandb.json')
  assert len(key) == 16 and run_key(tmp_path / 'trackers' / 'wandb.json') == key
  assert run_key(tmp_path / 'other' / 'wandb.json') != key


# The services themselves.

CONFIG = {'seed': 3, 'stage1.optimizer.name': 'adam', 'eval.memories': ['none', 'rag'], 'policy.lora.targets': 'x' * 7000}
SECRET, KEY = 'swordfish-in-the-environment', 'k' * 40


def write(folder, names, start, stop, close=True):
  opened = open_trackers(names, folder=folder, name='a run, stage 1', config=CONFIG, resume_step=start)
  writer = MetricWriter(folder, start, opened)
  for step in range(start, stop):
    writer.write(step, {'train/loss': 1 / (step + 3), 'probe/p_generate@easy': 0.5})
  if close:
    writer.close()
  return opened


@pytest.fixture
def wandb_offline(tmp_path, monkeypatch):
  wandb = pytest.importorskip('wandb')
  for name in ('WANDB_API_KEY', 'WANDB_PROJECT', 'WANDB_BASE_URL', 'WANDB_RUN_ID'):
    monkeypatch.delenv(name, raising=False)
  for name in ('WANDB_CACHE_DIR', 'WANDB_CONFIG_DIR', 'WANDB_DATA_DIR', 'HOME'):
    monkeypatch.setenv(name, str(tmp_path / 'home'))
  monkeypatch.setenv('NETRC', str(tmp_path / 'home' / 'netrc'))
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('WANDB_SILENT', 'true')
  monkeypatch.setenv('A_KEY_OF_SOMETHING', SECRET)
  wandb.teardown()  # settings are read from the environment once
  yield wandb
  wandb.teardown()


def wandb_records(path):
  """The records of a .wandb file: a log of blocks, each record whole or in parts (a header of 7 bytes: checksum, length, kind)."""
  from wandb.proto import wandb_internal_pb2

  data, position, parts = path.read_bytes(), 7, b''
  while position + 7 <= len(data):
    if (left := 32768 - position % 32768) < 7:
      position += left
      continue
    length, kind = struct.unpack('<HB', data[position + 4 : position + 7])
    parts += data[position + 7 : position + 7 + length]
    position += 7 + length
    if kind in (1, 4):  # whole, or the last part
      record = wandb_internal_pb2.Record()
      record.ParseFromString(parts)
      parts = b''
      yield record


def last_folder(folder):
  (path,) = (folder / 'trackers' / 'wandb' / 'latest-run').glob('*.wandb')
  return path


def wandb_history(path):
  rows = [{item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
          for record in wandb_records(path) if record.HasField('history')]  # fmt: skip
  return [(row['_step'], {name: value for name, value in row.items() if not name.startswith('_')}) for row in rows]


@pytest.fixture
def wandb_online(monkeypatch, wandb_offline):
  with WandbServer() as server:
    monkeypatch.setenv('WANDB_MODE', 'online')
    monkeypatch.setenv('WANDB_API_KEY', KEY)
    monkeypatch.setenv('WANDB_BASE_URL', server.url)
    wandb_offline.teardown()
    yield server
    wandb_offline.teardown()


def test_wandb_offline_keeps_the_whole_run_in_the_last_folder(tmp_path, wandb_offline):
  assert check_tracker('wandb') == ('wandb',)
  folder = tmp_path / 'stage1'
  write(folder, [], 0, 8)
  write(folder, ['wandb'], 5, 12)
  wandb_offline.teardown()  # what happens at the end of a process
  path = last_folder(folder)
  assert wandb_history(path) == lines(folder) and len(lines(folder)) == 12
  (run,) = [record.run for record in wandb_records(path) if record.HasField('run')]
  assert (run.project, run.display_name) == ('mempi_jax', 'a run, stage 1')
  config = {item.key: json.loads(item.value_json) for item in run.config.update}
  assert {name: config[name] for name in CONFIG} == CONFIG
  for file in (folder / 'trackers').rglob('*'):
    assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


def test_wandb_goes_on_in_the_same_run(tmp_path, wandb_online):
  assert check_tracker('wandb') == ('wandb',)
  write(tmp_path, ['wandb'], 0, 8)
  write(tmp_path, ['wandb'], 5, 12)
  key = run_key(tmp_path / 'trackers' / 'wandb.json')
  assert list(wandb_online.history) == [key]
  assert wandb_online.rows(key) == lines(tmp_path) and len(lines(tmp_path)) == 12
  assert json.loads(wandb_online.configs[key])['stage1.optimizer.name'] == {'value': 'adam'}
  for secret in (SECRET, KEY):
    assert not [body for body in wandb_online.bodies if secret.encode() in body]


KILLED = """
import sys, time
from pathlib import Path
from mempi_jax.runtime.metrics import MetricWriter
from mempi_jax.runtime.trackers import open_trackers
folder = Path(sys.argv[1])
writer = MetricWriter(folder, 0, open_trackers(['wandb'], folder=folder, name='killed', config={}, resume_step=0))
for step in range(1000):
  writer.write(step, {'train/loss': 1 / (step + 3), 'probe/p_generate@easy': 0.5})
  time.sleep(0.1)
"""


@pytest.mark.slow
def test_wandb_after_a_kill(tmp_path, wandb_online):
  process = subprocess.Popen([sys.executable, '-c', KILLED, str(tmp_path)])
  deadline = time.monotonic() + 90
  while not any(len(rows) > 20 for rows in wandb_online.history.values()) and time.monotonic() < deadline:
    time.sleep(0.2)
  process.kill()
  process.wait()
  time.sleep(1)
  key = run_key(tmp_path / 'trackers' / 'wandb.json')
  arrived, written = len(wandb_online.history[key]), len(lines(tmp_path))
  assert 20 < arrived < written  # some were on their way
  write(tmp_path, ['wandb'], written - 2, written + 10)
  assert wandb_online.rows(key) == lines(tmp_path) and len(lines(tmp_path)) == written + 10


@pytest.mark.slow
def test_wandb_offline_then_sync(tmp_path, monkeypatch, wandb_online):
  monkeypatch.setenv('WANDB_MODE', 'offline')
  import wandb

  for start, stop in ((0, 8), (5, 12)):
    wandb.teardown()
    write(tmp_path, ['wandb'], start, stop)
  wandb.teardown()

  def sync(*folders):
    command = [Path(sys.executable).with_name('wandb'), 'sync', *folders]
    subprocess.run(command, check=True, timeout=120, env=os.environ | {'WANDB_MODE': 'online'})

  sync(tmp_path / 'trackers' / 'wandb' / 'latest-run')
  ((key, _),) = wandb_online.history.items()
  assert wandb_online.rows(key) == lines(tmp_path) and len(lines(tmp_path)) == 12
  # Whoever uploads the other one too gets a second run, and the first as it was.
  sync(*(tmp_path / 'trackers' / 'wandb').glob('offline-run-*'))
  assert len(wandb_online.history) == 2 and wandb_online.rows(key) == lines(tmp_path)


def test_wandb_without_a_key(monkeypatch, wandb_offline):
  monkeypatch.setenv('WANDB_MODE', 'online')
  wandb_offline.teardown()
  with pytest.raises(ConfigError, match='no key is known; run `wandb login`'):
    check_tracker('wandb')


@pytest.mark.slow
def test_wandb_away_is_kept_offline(tmp_path, monkeypatch, wandb_offline, caplog):
  monkeypatch.setenv('WANDB_MODE', 'online')
  monkeypatch.setenv('WANDB_API_KEY', KEY)
  monkeypatch.setenv('WANDB_BASE_URL', f'http://127.0.0.1:{closed_port()}')
  wandb_offline.teardown()
  monkeypatch.setattr(trackers, 'CLOSE_SECONDS', 100.0)
  write(tmp_path, ['wandb'], 0, 5)
  wandb_offline.teardown()
  assert 'what this process logs is kept offline: wandb sync' in caplog.text
  assert wandb_history(last_folder(tmp_path)) == lines(tmp_path)


@pytest.fixture
def mlflow_settings(monkeypatch):
  monkeypatch.setenv('MLFLOW_DISABLE_TELEMETRY', 'true')
  monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
  monkeypatch.setenv('A_KEY_OF_SOMETHING', SECRET)
  monkeypatch.delenv('MLFLOW_EXPERIMENT_NAME', raising=False)


def mlflow_history(client, run, name):
  return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]


@needs_mlflow
@pytest.mark.parametrize('address', ['file://{}/mlruns', pytest.param('sqlite:///{}/mlflow.db', marks=pytest.mark.slow)])
def test_mlflow_goes_on_in_the_same_run(tmp_path, mlflow_settings, monkeypatch, address):
  monkeypatch.setenv('MLFLOW_TRACKING_URI', address.format(tmp_path))
  assert check_tracker('mlflow') == ('mlflow',)
  from mlflow import MlflowClient

  client = MlflowClient()
  folder = tmp_path / 'stage1'
  (killed,) = write(folder, ['mlflow'], 0, 8, close=False)
  deadline = time.monotonic() + 20
  while killed._waiting and time.monotonic() < deadline:
    time.sleep(0.02)
  experiment = client.get_experiment_by_name('mempi_jax').experiment_id
  (run,) = client.search_runs([experiment])
  assert run.info.status == 'RUNNING'
  write(folder, ['mlflow'], 5, 12)
  (run,) = client.search_runs([experiment])
  assert (run.info.status, run.info.run_name) == ('FINISHED', 'a run, stage 1')
  losses = [(step, metrics['train/loss']) for step, metrics in lines(folder)]
  assert mlflow_history(client, run, 'train/loss') == losses and len(losses) == 12
  assert mlflow_history(client, run, 'probe/p_generate-easy') == [(step, 0.5) for step in range(12)]
  assert run.data.params == {name: str(value)[:6000] for name, value in CONFIG.items()}
  assert SECRET not in str(run.to_dictionary())
  # A run that was deleted there is made anew, with all its steps.
  client.delete_run(run.info.run_id)
  write(folder, ['mlflow'], 12, 13)
  (again,) = client.search_runs([experiment])
  assert again.info.run_id != run.info.run_id
  assert [step for step, _ in mlflow_history(client, again, 'train/loss')] == list(range(13))


@needs_mlflow
def test_mlflow_away(tmp_path, mlflow_settings, monkeypatch, caplog):
  monkeypatch.setenv('MLFLOW_TRACKING_URI', f'http://user:{SECRET}@127.0.0.1:{closed_port()}')
  monkeypatch.setenv('MLFLOW_HTTP_REQUEST_MAX_RETRIES', '0')
  assert check_tracker('mlflow') == ('mlflow',)
  caplog.set_level(logging.WARNING, logger=trackers.__name__)
  start = time.monotonic()
  write(tmp_path, ['mlflow'], 0, 5)
  assert time.monotonic() - start < trackers.CLOSE_SECONDS
  messages = [record.getMessage() for record in caplog.records if record.name == trackers.__name__]
  assert len(messages) == 2 and 'training goes on' in messages[0] and '5 records were not delivered' in messages[1]
  assert SECRET not in messages[0]
  assert len(lines(tmp_path)) == 5


@needs_mlflow
def test_mlflow_address_that_cannot_be_used(monkeypatch):
  monkeypatch.setenv('MLFLOW_TRACKING_URI', 'gopher://somewhere')
  with pytest.raises(ConfigError, match='tracker mlflow: .*gopher'):
    check_tracker('mlflow')
