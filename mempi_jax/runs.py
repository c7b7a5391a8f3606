"""The runs of a sweep: how each is called, how far it is, its commands, and all of them, N at a time.

A run lives in a folder named after its overrides. Beside what its commands write there (see `mempi_jax.runtime.workdir`) a sweep keeps

    log.txt     what the commands print, attempt after attempt
    run.json    how the last attempt ended
    lock        who runs it now; see `hold`

A run whose last attempt ended well is finished, and never started again; any other one goes on where it stopped, as each command does by itself.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import datetime
import errno
import fcntl
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import FrozenConfigDict
from tqdm import tqdm

from mempi_jax.config import PREFIX, VARIANT, ConfigError, load_config, resolve, to_json
from mempi_jax.runtime import files, preemption
from mempi_jax.runtime.manifest import MACHINE
from mempi_jax.runtime.workdir import COMPILED, CONFIG, changed_fields
from mempi_jax.siblings import take_over

POOLED = ('world.household', 'seed')  # fields that runs of one variant may differ in
RESULTS = 'results.json'  # what a finished run has
RECORD, LOG, LOCK = 'run.json', 'log.txt', 'lock'
# What a sweep writes beside its runs.
RUNS, POOLED_FOLDER, VARIANTS_FOLDER, SLURM_FOLDER, STUDY = 'runs.csv', 'pooled', 'variants', 'slurm', 'study.jsonl'
TABLE_FILES, PLOT_FILES, STUDY_FILES = ('table.csv', 'table.md'), ('plot.png', 'plot.svg'), ('study.png', 'study.svg')
FINISHED, FAILED, ELSEWHERE, STOPPED, BEGUN, NEW = 'finished', 'failed', 'run elsewhere', 'stopped', 'begun', 'new'

Run = Mapping[str, Any]  # overrides, and under 'variant' the name that sweep() gave

_PARTS = ('bank', 'stage1', 'stage2', 'eval')  # folders of a run that are complete once DONE.json is in them
_LONGEST = 200  # letters of a folder's name
_LOG_LINES = 12  # of a failed run, that are printed
_REFRESH = 2.0  # seconds between two drawings of the bar
_GRACE = 60.0  # seconds that a command has to save and exit
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


# Names.


def variant_of(run: Run) -> str:
  """The name that `sweep()` gave, or else the overrides but household and seed: 'corruption=0.1', 'base' where there are none."""
  return run.get(VARIANT) or ','.join(_parts({name: value for name, value in run.items() if name not in POOLED})) or 'base'


def folder_name(run: Run) -> str:
  """'household=maple,seed=1', or 'no_gate,seed=1' for a named variant: every character that a path could misread is replaced, and a hash stands
  for the end of a name that is too long."""
  parts = [run[VARIANT], *_parts({name: run[name] for name in run if name in POOLED})] if VARIANT in run else _parts(run)
  name = re.sub(r'^\.|[^A-Za-z0-9=,._-]', '_', ','.join(parts)) or 'base'
  return name if len(name) <= _LONGEST else f'{name[: _LONGEST - 9]}_{files.hash_bytes(name.encode())[:8]}'


def variants_of(runs: Sequence[Run]) -> dict[str, list[Run]]:
  """Variant -> its runs, in the order in which the variants first come.

  Raises:
    ConfigError: runs of one variant differ in more than household and seed, or two runs would share a folder, or one take that of
      the sweep's own files; names the variant and fields, or the folder.
  """
  variants: dict[str, list[Run]] = {}
  taken = {RUNS, POOLED_FOLDER, VARIANTS_FOLDER, SLURM_FOLDER, STUDY, LOCK, COMPILED, *TABLE_FILES, *PLOT_FILES, *STUDY_FILES}
  for run in runs:
    own = variants.setdefault(variant_of(run), [])
    own.append(run)
    differ = [name for name in dict.fromkeys((*own[0], *run)) if name not in POOLED and own[0].get(name, ...) != run.get(name, ...)]
    if differ:
      raise ConfigError(f'runs of the variant {variant_of(run)!r} differ in {", ".join(differ)}: only household and seed may')
    if folder_name(run) in taken:
      raise ConfigError(f'the folder {folder_name(run)} of a run of the variant {variant_of(run)!r} is taken: its name must be another')
    taken.add(folder_name(run))
  return variants


def overrides_of(run: Run) -> dict[str, Any]:
  """The run's fields, without the name of its variant."""
  return {name: value for name, value in run.items() if name != VARIANT}


def _parts(overrides: Run) -> list[str]:
  return [f'{name.rpartition(".")[2]}={value}' for name, value in overrides.items()]


# Plans, and how far they are.


@dataclasses.dataclass(frozen=True)
class Plan:
  """One run: its overrides, what it comes to, and where it lives."""

  run: Run
  config: FrozenConfigDict
  folder: Path

  @property
  def name(self) -> str:
    return self.folder.name


@dataclasses.dataclass(frozen=True)
class State:
  """How far a run is: FINISHED, FAILED (in its last attempt), ELSEWHERE (being run by another process), BEGUN, STOPPED or NEW; and a note."""

  kind: str
  note: str = ''

  def __str__(self) -> str:
    return f'{self.kind} {self.note}'.rstrip()


def make_plans(config: str, workdir: Path, runs: Sequence[Run]) -> list[Plan]:
  """The plans of runs, checked before anything starts.

  Args:
    config: path of a config file, with arguments where it takes any.
    workdir: of the sweep.
    runs: overrides of each run.

  Raises:
    ConfigError: two runs that would share a folder (see `variants_of`), an override that does not fit, a field without a value, or a folder that
      holds a run of another config; names the run, and what differs.
  """
  variants_of(runs)
  plans = []
  for run in runs:
    folder = workdir / folder_name(run)
    try:
      plans.append(Plan(run, resolve(load_config(config, overrides_of(run))), folder))
    except ConfigError as error:
      raise ConfigError(f'{config}: run {folder.name}: {error}') from None
  changed = [(plan, found) for plan in plans if (found := _changed(plan))]
  if changed:
    plan, found = changed[0]
    more = f' (and {len(changed) - 1} more runs)' if len(changed) > 1 else ''
    shown, names = '; '.join(f'{name} is {there!r} there, {here!r} here' for name, there, here in found), ','.join(name for name, *_ in found)
    raise ConfigError(
      f'{plan.folder} belongs to a run of another config{more}: {shown}. Use another --workdir, or allow it once in its commands (--print): --allow={names}'
    )
  return plans


def state_of(folder: Path) -> State:
  """How far the run in a folder is; writes nothing."""
  if is_finished(folder):
    return State(FINISHED)
  if holder := _holder(folder):
    return State(ELSEWHERE, f'({holder})')
  record = folder / RECORD
  if record.exists() and (status := files.read_json(record)['status']):
    return State(FAILED, f'with status {status}, see {folder / LOG}')
  done = [part for part in _PARTS if files.read_done(folder / part) is not None]
  if done:
    return State(BEGUN, f'({", ".join(done)} finished)')
  return State(BEGUN if (folder / CONFIG).exists() else NEW)


def is_finished(folder: Path) -> bool:
  """Whether all commands of the run in a folder ended well, and what they wrote is still there."""
  record = folder / RECORD
  return record.exists() and files.read_json(record)['status'] == 0 and (folder / RESULTS).exists()


def _changed(plan: Plan) -> list[tuple[str, Any, Any]]:
  """(field, value there, value here) where the folder's run is another one; see `runtime.workdir.open_workdir`."""
  path = plan.folder / CONFIG
  found = changed_fields(files.read_json(path), json.loads(to_json(plan.config))) if path.exists() else []
  return [(name, there, here) for name, there, here in found if name.partition('.')[0] not in MACHINE]


# Locks.


class HeldError(Exception):
  """Another process runs this run; the message says which. `orphaned`: a command that a sweep on this machine left behind when it was killed."""

  def __init__(self, message: str, orphaned: bool = False):
    super().__init__(message)
    self.orphaned = orphaned


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[int]:
  """Holds the lock of a run's folder inside the block; yields its file descriptor, for the processes that do the work.

  The lock is the operating system's, on FOLDER/lock, and lasts as long as any process has the descriptor open. So nobody has to tidy up after a
  kill: the lock of a sweep that was killed is free, unless a command that it started is still at work. The file's text says who had it last.

  Raises:
    HeldError: another process has it.
  """
  descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
  try:
    if not _lock(descriptor, fcntl.LOCK_EX):
      raise HeldError(_describe_holder(folder), _is_orphaned(folder))
    holder = json.dumps({'host': socket.gethostname(), 'pid': os.getpid(), 'since': _now()}).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, holder, 0)
    yield descriptor
  finally:
    os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
  for attempt in range(3):  # who looks whether it is free holds it for a moment
    try:
      fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
      return True
    except BlockingIOError:
      time.sleep(0.05 * attempt)
    except OSError as error:
      if error.errno in _NO_LOCKS:  # a network's file system without locks: each run is then started by one machine alone, as --slurm does
        return True
      raise
  return False


def _holder(folder: Path) -> str:
  """Who holds the folder's lock; '' if nobody."""
  try:
    descriptor = os.open(folder / LOCK, os.O_RDONLY)
  except FileNotFoundError:
    return ''
  try:
    return '' if _lock(descriptor, fcntl.LOCK_SH) else _describe_holder(folder)
  finally:
    os.close(descriptor)


def _describe_holder(folder: Path) -> str:
  holder = _read_holder(folder)
  return f'started by process {holder["pid"]} on {holder["host"]}, {holder["since"]}' if holder else 'by another process'


def _is_orphaned(folder: Path) -> bool:
  holder = _read_holder(folder)
  if not holder or holder['host'] != socket.gethostname():
    return False
  try:
    os.kill(holder['pid'], 0)
  except ProcessLookupError:
    return True
  except PermissionError:  # of another user
    pass
  return False


def _read_holder(folder: Path) -> dict[str, Any]:
  try:
    return json.loads((folder / LOCK).read_text(encoding='utf-8'))
  except ValueError:  # it is being written
    return {}


def _now() -> str:
  return datetime.datetime.now().astimezone().isoformat(timespec='seconds')


# Commands.


def commands_of(config: str, plan: Plan) -> list[list[str]]:
  """Training, evaluation and report of a run, each as a list of arguments."""
  # A config with a sweep() and no field set would be taken for the whole sweep by `evaluate`.
  overrides = overrides_of(plan.run) or {'seed': plan.config.seed}
  fields = [f'{PREFIX}{name}={value}' for name, value in overrides.items()]
  python = [sys.executable, '-m']
  return [
    [*python, 'mempi_jax.train', f'--config={config}', f'--workdir={plan.folder}', *fields],
    [*python, 'mempi_jax.evaluate', f'--config={config}', f'--workdir={plan.folder}', *fields],
    [*python, 'mempi_jax.report', f'--workdir={plan.folder}'],
  ]


def command_line(config: str, plan: Plan) -> str:
  """The commands of a run as one line for a shell."""
  return ' && '.join(map(shlex.join, commands_of(config, plan)))


class Processes:
  """The commands that this process has started and that still run; told to stop all at once. For several threads."""

  def __init__(self):
    self.stopped = False
    self._running: set[subprocess.Popen] = set()
    self._guard = threading.Lock()

  def run(self, command: Sequence[str], log: Any, lock: int) -> int:
    """Runs a command to its end, its output in `log`; it keeps the lock `lock` as long as it lives. Returns its status."""
    with self._guard:
      if self.stopped:
        return -signal.SIGTERM
      # A group of its own: a Ctrl-C, or a signal to this process's group, reaches it through `stop` alone, once; a second one would not let it save.
      options = {'stdin': subprocess.DEVNULL, 'stdout': log, 'stderr': subprocess.STDOUT, 'process_group': 0}
      process = subprocess.Popen(command, pass_fds=(lock,), **options)
      self._running.add(process)
    try:
      return process.wait()
    finally:
      with self._guard:
        self._running.discard(process)

  def stop(self) -> None:
    """Asks every command to save and exit, and waits; those that do not within a minute are killed."""
    with self._guard:
      self.stopped = True
      running = list(self._running)
    for process in running:
      process.terminate()
    deadline = time.monotonic() + _GRACE
    for process in running:
      try:
        process.wait(max(0.0, deadline - time.monotonic()))
      except subprocess.TimeoutExpired:
        process.kill()


def run_one(config: str, plan: Plan, siblings: Sequence[Plan], processes: Processes, say: Callable[[str], None] = print) -> State:
  """Trains, evaluates and reports one run, unless it is finished, or another process runs it.

  Args:
    config: path of the config file.
    plan: of the run.
    siblings: of other runs, from which it takes over what it has in common with them.
    processes: where its commands are listed.
    say: prints a line.

  Returns:
    FINISHED; FAILED, with the end of the log; ELSEWHERE, with who runs it; or STOPPED, where `processes` were.
  """
  try:
    files.ensure_writable(plan.folder)
    with _hold_after_orphans(plan, processes, say) as lock:
      if is_finished(plan.folder):
        return State(FINISHED)
      if taken := take_over(plan.config, plan.folder, [(other.config, other.folder) for other in siblings]):
        say(f'{plan.name}: takes over {", ".join(taken)}')
      return _attempt(config, plan, lock, processes)
  except HeldError as error:
    return State(ELSEWHERE, f'({error})')
  except OSError as error:  # a full disk, say: the other runs may have more luck
    return State(FAILED, f'({error})')


@contextlib.contextmanager
def _hold_after_orphans(plan: Plan, processes: Processes, say: Callable[[str], None]) -> Iterator[int]:
  """As `hold`, but waits for a command that a killed sweep left behind: it still does this run's work, and takes the room of a run."""
  with contextlib.ExitStack() as stack:
    told = False
    while True:
      try:
        lock = stack.enter_context(hold(plan.folder))
        break
      except HeldError as error:
        if not error.orphaned or processes.stopped:
          raise
        if not told:
          say(f'{plan.name}: waits for a command that is still at work ({error}, which was killed)')
        told = True
        time.sleep(1.0)
    yield lock


def _attempt(config: str, plan: Plan, lock: int, processes: Processes) -> State:
  started, status = time.monotonic(), 0
  (plan.folder / RECORD).unlink(missing_ok=True)  # it is of an earlier attempt
  with open(plan.folder / LOG, 'ab') as log:
    begin = log.tell()
    for command in commands_of(config, plan):
      log.write(f'[{_now()}] {shlex.join(command)}\n'.encode())
      log.flush()
      status = processes.run(command, log, lock)
      if processes.stopped or status in (preemption.STATUS, -signal.SIGTERM):
        return State(STOPPED, 'when it was asked to end')
      if status:
        break
  ended = {'status': status, 'seconds': round(time.monotonic() - started, 1), 'host': socket.gethostname(), 'ended': _now()}
  files.write_json(plan.folder / RECORD, ended)
  if status:
    return State(FAILED, f'with status {status}; the end of {plan.folder / LOG}:\n{_end_of(plan.folder / LOG, begin)}')
  return State(FINISHED)


def _end_of(log: Path, begin: int) -> str:
  """The last lines of a log from byte `begin` on, indented; of a progress bar its last state alone."""
  with open(log, 'rb') as file:
    file.seek(begin)
    text = file.read().decode('utf-8', 'replace')
  lines = [line.rpartition('\r')[2].rstrip() for line in text.split('\n')]
  return '\n'.join(f'    {line}' for line in [line for line in lines if line][-_LOG_LINES:])


# All of them.


def run_all(
  config: str,
  plans: Iterable[Plan],
  *,
  jobs: int,
  total: int,
  finished: int,
  siblings: Sequence[Plan],
  after: Callable[[Plan, State], None] = lambda plan, state: None,
) -> list[tuple[Plan, State]]:
  """Runs plans, `jobs` at a time, with a progress bar; one that fails stops no other.

  Args:
    config: path of the config file.
    plans: taken one by one, the next when there is room for it, so that it may depend on how earlier ones ended.
    jobs: runs at a time.
    total: runs of the sweep, and `finished` those of them that are finished already: for the bar.
    siblings: see `run_one`; may grow while runs are in progress.
    after: called, in this thread, whenever a run has ended, before the next one is taken.

  Returns:
    Every plan and how it ended, in that order.

  Raises:
    SystemExit, KeyboardInterrupt: this process was told to stop (SIGTERM, SIGHUP, Ctrl-C); the commands have been told too, and have ended.
  """
  ended, processes = [], Processes()
  with _bar(total, finished) as bar, _stopped_by_signals():
    pool = concurrent.futures.ThreadPoolExecutor(max_workers=jobs)
    try:
      for plan, state in _each(plans, lambda plan: run_one(config, plan, siblings, processes, bar.write), pool, jobs, bar):
        bar.write(f'{plan.name}: {state}')
        bar.update(state.kind == FINISHED)
        ended.append((plan, state))
        after(plan, state)
    finally:
      processes.stop()  # nothing is left to stop unless this process was stopped itself
      pool.shutdown(cancel_futures=True)
  return ended


def _bar(total: int, finished: int) -> tqdm:
  """A progress bar on stderr with rate and time left; as `runtime.metrics.progress`, whose module brings more than a process needs that only waits."""
  interval = 0.1 if sys.stderr.isatty() else 10.0  # in a log file a bar is one line per refresh
  return tqdm(total=total, desc='sweep', initial=finished, unit='run', file=sys.stderr, mininterval=interval, dynamic_ncols=True)


def _each(
  plans: Iterable[Plan], play: Callable[[Plan], State], pool: concurrent.futures.Executor, jobs: int, bar: tqdm
) -> Iterator[tuple[Plan, State]]:
  """Plans and how they ended, as they end."""
  plans, waiting = iter(plans), {}
  while True:
    while len(waiting) < jobs and (plan := next(plans, None)) is not None:
      waiting[pool.submit(play, plan)] = plan
    if not waiting:
      return
    bar.set_postfix_str(', '.join(plan.name for plan in waiting.values())[:80], refresh=sys.stderr.isatty())
    done, _ = concurrent.futures.wait(waiting, _REFRESH, concurrent.futures.FIRST_COMPLETED)
    for future in done:
      yield waiting.pop(future), future.result()


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
  """SIGTERM and SIGHUP end the block as Ctrl-C does, so that what runs can be told; of the main thread alone."""

  def stop(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)

  if threading.current_thread() is not threading.main_thread():
    yield
    return
  numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]  # as under nohup
  before = {number: signal.signal(number, stop) for number in numbers}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
