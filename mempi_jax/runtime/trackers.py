"""Weights & Biases and MLflow, beside the metrics.jsonl and the TensorBoard events that every run writes.

`config.tracker` names them: '', 'wandb', 'mlflow', or 'wandb,mlflow'. Where they log to, and as whom, is a setting of theirs and none of an
experiment's: `wandb login`, WANDB_API_KEY, WANDB_ENTITY, WANDB_PROJECT, WANDB_MODE; MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME. A stage is
one run there; its config goes with it, and nothing of the environment.

- A service never stops training, nor slows it: a thread of its own speaks to it. Where it is away, one warning says so, and it is tried
  again until the stage ends. metrics.jsonl has everything in any case.
- A resumed stage goes on in the same run, whose key is kept in the stage's folder. Neither service can take back what it was sent, so steps
  that it has are not sent again: the run shows what the earlier process measured there (a resumed run computes the same, but for timings).
  Steps that it lacks, lost in a kill or while it was away, are sent from metrics.jsonl. So every step is there once, and in order.
- Weights & Biases cannot go on in a run offline. There each process leaves a run of its own, which has everything from the first step on:
  `wandb sync FOLDER/trackers/wandb/latest-run` uploads the last one, and no other is needed.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mempi_jax.config import ConfigError, near
from mempi_jax.runtime import files
from mempi_jax.runtime.metrics import METRICS_FILE, Tracker

FOLDER = 'trackers'  # of a stage: keys of its runs, and what the packages write for themselves
PROJECT = 'mempi_jax'  # the project or experiment, where the service's own setting names none

WAITING = 20_000  # records that wait for a service; further ones are dropped
PAUSES = (1.0, 60.0)  # seconds, the shortest and the longest, between tries
CLOSE_SECONDS = 10.0  # that the end of a stage waits for a service
FINISH_SECONDS = 8.0  # of these, that Weights & Biases may upload

_logger = logging.getLogger(__name__)


# What is called before anything runs, and at the start of a stage.


def check_tracker(text: str) -> tuple[str, ...]:
  """The trackers that `config.tracker` names, each once, after a check that they can be used. Nothing is logged yet.

  Raises:
    ConfigError: an unknown name; no key for Weights & Biases; an MLFLOW_TRACKING_URI that cannot be used.
    ImportError: a package is not installed; names the extra that brings it.
  """
  names = tuple(dict.fromkeys(filter(None, (part.strip() for part in text.split(',')))))
  for name in names:
    if name not in _SERVICES:
      expected = ', '.join(_SERVICES)
      raise ConfigError(f"tracker {text!r} names {name!r}{near(name, _SERVICES)}; expected '', or one or more of {expected}, with commas")
  for name in names:
    found = importlib.util.find_spec(name)
    # A folder of that name in the current one, such as the services' packages make, is found too; it has no origin.
    if found is None or found.origin is None:
      raise _missing_package(name)
    _SERVICES[name].check()
  return names


def open_trackers(names: Sequence[str], *, folder: Path, name: str, config: Mapping[str, Any], resume_step: int) -> list[Tracker]:
  """The trackers of a stage. Returns at once: what the services need time for is done in threads.

  Args:
    names: as `check_tracker` returned them.
    folder: of the stage; its metrics.jsonl has the records before `resume_step`.
    name: of the run, for readers; it need not be unique.
    config: dotted name -> value of every setting.
    resume_step: the first step that this process writes; 0 for a new stage.
  """
  return [BackgroundTracker(_SERVICES[service](Path(folder) / FOLDER, name, config), Path(folder), resume_step) for service in names]


# A thread that speaks to a service.


class Record(NamedTuple):
  """One line of metrics.jsonl on its way to a service."""

  step: int
  seconds: float  # since the epoch
  metrics: Mapping[str, float]


class Service(Protocol):
  """One run at a tracking service. Calls come from one thread; where one raises, whatever it may be, it is made again later."""

  name: str

  @staticmethod
  def check() -> None:
    """Raises ConfigError or ImportError where the service's settings are such that no call can succeed."""

  def open(self) -> int:
    """Begins the run, or goes on in it. Returns the first step that the service has nothing of."""

  def send(self, records: Sequence[Record]) -> int:
    """Sends some of the first records, one at least, all or nothing of them; returns how many."""

  def close(self, failed: bool) -> None:
    """Ends an opened run; `failed` where training raised an error."""


class BackgroundTracker:
  """A tracker whose service is spoken to by a thread."""

  def __init__(self, service: Service, folder: Path, resume_step: int):
    self._service, self._folder, self._resume_step, self._start = service, folder, resume_step, time.time()
    self._waiting: list[Record] = []
    self._dropped = 0
    self._first = 0  # step that the service lacks; known once the run is open
    self._lock = threading.Lock()  # of the three above
    self._wake, self._closing = threading.Event(), threading.Event()
    self._failed = self._warned = False
    # A daemon: a service that does not answer must not keep the process from ending.
    self._thread = threading.Thread(target=self._work, name=f'tracker {service.name}', daemon=True)
    self._thread.start()

  def write(self, step: int, record: Mapping[str, float]) -> None:
    """Takes a record and returns at once."""
    with self._lock:
      if step < self._first:
        return
      if len(self._waiting) < WAITING:
        self._waiting.append(Record(step, time.time(), dict(record)))
      else:
        self._dropped += 1
    self._wake.set()

  def close(self, failed: bool = False) -> None:
    """Sends what waits and ends the run; waits for at most CLOSE_SECONDS and then says how much was not delivered."""
    self._failed = failed
    self._closing.set()
    self._wake.set()
    self._thread.join(CLOSE_SECONDS)
    with self._lock:
      left = len(self._waiting) + self._dropped
    if left:
      _logger.warning('tracker %s: %d records were not delivered; %s has them', self._service.name, left, self._folder / METRICS_FILE)
    elif self._thread.is_alive():
      _logger.warning('tracker %s: no answer within %.0f seconds at the end of the run', self._service.name, CLOSE_SECONDS)

  def _work(self) -> None:
    """The thread: opens the run, sends until the stage ends, and closes."""
    opened, pause = False, PAUSES[0]
    while True:
      last_try = self._closing.is_set()  # asked before looking for records: none comes after it was set
      self._wake.clear()
      try:
        if not opened:
          self._catch_up(self._service.open())
          opened = True
        while self._waiting:
          self._send_some()
      except Exception as error:  # packages and services fail in ways that no list has
        self._warn(error)
        if last_try:
          break
        self._closing.wait(pause)
        pause = min(2 * pause, PAUSES[1])
        continue
      if last_try:
        break
      pause = PAUSES[0]
      self._wake.wait()
    if opened:
      try:
        self._service.close(self._failed)
      except Exception as error:
        self._warn(error)

  def _catch_up(self, first: int) -> None:
    """Puts records in front that the service lacks, and forgets those that it has."""
    missing = [Record(step, self._start, record) for step, record in _written(self._folder / METRICS_FILE, first, self._resume_step)]
    with self._lock:
      self._first = first
      self._waiting[:] = missing + [record for record in self._waiting if record.step >= first]

  def _send_some(self) -> None:
    with self._lock:
      records = self._waiting[:100]
    count = self._service.send(records)
    with self._lock:
      del self._waiting[:count]

  def _warn(self, error: Exception) -> None:
    if not self._warned:
      _logger.warning(
        'tracker %s: %s: %s; training goes on, %s has everything, and the service is tried again',
        self._service.name, type(error).__name__, _public(error), METRICS_FILE,
      )  # fmt: skip
    self._warned = True


def _written(path: Path, first: int, end: int) -> Iterator[tuple[int, dict[str, float]]]:
  """Step and metrics of the lines of a metrics file with first <= step < end."""
  if first >= end or not path.exists():
    return
  # Steps rise, and lines from `end` on may be being written at this moment: they are not read.
  for line in itertools.takewhile(lambda line: line['step'] < end, files.read_jsonl(path)):
    if line['step'] >= first:
      yield line.pop('step'), line


# The services.


class WandbService:
  """A run of Weights & Biases, whose steps are ours."""

  name = 'wandb'

  ONLINE = ('online', 'shared', 'run')  # modes

  def __init__(self, folder: Path, name: str, config: Mapping[str, Any]):
    self._folder, self._name, self._config = folder, name, dict(config)

  @staticmethod
  def check() -> None:
    """Raises ConfigError where no key is known and the mode is not offline; asks for none at the terminal."""
    import wandb

    if wandb.setup().settings.mode not in WandbService.ONLINE:
      return
    try:
      known = wandb.login(prompt=False, verify=False)
    except Exception as error:
      raise ConfigError(f'tracker wandb: {_public(error)}') from error
    if not known:
      raise ConfigError('tracker wandb: no key is known; run `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline')

  def open(self) -> int:
    """Where the service does not answer, or takes no run, the run is kept offline."""
    import wandb

    self._folder.mkdir(parents=True, exist_ok=True)
    online = wandb.setup().settings.mode in self.ONLINE
    try:
      self._run = self._begin(id=run_key(self._folder / 'wandb.json'), resume='allow') if online else self._begin()
    except Exception as error:
      if not online:
        raise
      uploading = f'wandb sync {self._folder / "wandb" / "latest-run"}'
      _logger.warning('tracker wandb: %s; what this process logs is kept offline: %s', _public(error), uploading)
      self._run = self._begin(mode='offline')
    return self._run.step if self._run.resumed else 0

  def _begin(self, **options: str) -> Any:
    import wandb

    settings = wandb.Settings(
      console='off',  # what is printed stays where it is
      save_code=False,
      init_timeout=30.0,
      finish_timeout=FINISH_SECONDS,
      max_end_of_run_history_metrics=0,  # no curves at the terminal
      max_end_of_run_summary_metrics=0,
    )
    return wandb.init(
      project=os.environ.get('WANDB_PROJECT', PROJECT),
      name=self._name,
      config=self._config,
      dir=self._folder,
      allow_val_change=True,
      reinit='create_new',  # stages follow each other in one process
      settings=settings,
      **options,
    )

  def send(self, records: Sequence[Record]) -> int:
    """One record; the package has a queue of its own."""
    self._run.log(dict(records[0].metrics), step=records[0].step)
    return 1

  def close(self, failed: bool) -> None:
    """Uploads the rest, for at most FINISH_SECONDS; `wandb sync` can upload what is left then."""
    self._run.finish(exit_code=int(failed))


class MlflowService:
  """A run of MLflow. The service takes any step any number of times, so the last one that it has is kept in a tag of the run."""

  name = 'mlflow'

  KEY = 'mempi_key'
  STEP = 'mempi_step'
  PARAMS, METRICS = 100, 1000  # that one call takes
  LENGTH = 6000  # of a parameter

  def __init__(self, folder: Path, name: str, config: Mapping[str, Any]):
    self._folder, self._name, self._config = folder, name, config

  @staticmethod
  def check() -> None:
    """Raises ConfigError for an address that no client can be made for. A server is not asked anything yet."""
    try:
      from mlflow import MlflowClient

      MlflowClient()
    except ImportError as error:
      raise _missing_package('mlflow') from error
    except Exception as error:
      raise ConfigError(f'tracker mlflow: {_public(error)}') from error

  def open(self) -> int:
    """The run is found by a key that was written down before it was made, so that a kill in between leaves no second one."""
    from mlflow import MlflowClient
    from mlflow.entities import Param

    # The thread tries again by itself, and says so; the package's own tries take minutes in silence.
    os.environ.setdefault('MLFLOW_HTTP_REQUEST_MAX_RETRIES', '1')
    os.environ.setdefault('MLFLOW_HTTP_REQUEST_TIMEOUT', '30')
    self._client, key = MlflowClient(), run_key(self._folder / 'mlflow.json')
    title = os.environ.get('MLFLOW_EXPERIMENT_NAME', PROJECT)
    experiment = self._client.get_experiment_by_name(title)
    identity = experiment.experiment_id if experiment else self._client.create_experiment(title)
    runs = self._client.search_runs([identity], f"tags.{self.KEY} = '{key}'")
    run = runs[0] if runs else self._client.create_run(identity, run_name=self._name, tags={self.KEY: key})
    self._run_id = run.info.run_id
    # Parameters cannot be changed there: where a run goes on with another config, the first values stay.
    new = [Param(name, str(value)[: self.LENGTH]) for name, value in self._config.items() if name not in run.data.params]
    for start in range(0, len(new), self.PARAMS):
      self._client.log_batch(self._run_id, params=new[start : start + self.PARAMS])
    self._client.update_run(self._run_id, status='RUNNING')
    return int(run.data.tags.get(self.STEP, -1)) + 1

  def send(self, records: Sequence[Record]) -> int:
    """As many records as one call takes."""
    from mlflow.entities import Metric, RunTag

    metrics: list[Any] = []
    count = 0
    for record in records:
      if count and len(metrics) + len(record.metrics) > self.METRICS:
        break
      # '@' is no letter of a name there.
      metrics += [Metric(name.replace('@', '-'), value, int(1000 * record.seconds), record.step) for name, value in record.metrics.items()]
      count += 1
    self._client.log_batch(self._run_id, metrics=metrics, tags=[RunTag(self.STEP, str(records[count - 1].step))])
    return count

  def close(self, failed: bool) -> None:
    """Sets the run's status."""
    self._client.set_terminated(self._run_id, 'FAILED' if failed else 'FINISHED')


_SERVICES = {service.name: service for service in (WandbService, MlflowService)}


def run_key(path: Path) -> str:
  """What a stage's run is found by at a service: 16 hexadecimal digits that are drawn once and then kept in a file."""
  if not path.exists():
    files.write_json(path, {'key': secrets.token_hex(8)})
  return files.read_json(path)['key']


def _public(error: Exception) -> str:
  """An error's message without the name and password that an address in it may have."""
  return re.sub(r'//[^/@\s]+@', '//', str(error))


def _missing_package(name: str) -> ImportError:
  return ImportError(f"the tracker {name} needs packages that are not installed: pip install 'mempi_jax[{name}]'")
