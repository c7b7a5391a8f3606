"""Checkpoints of a training state: Orbax writes the arrays while training goes on, an atomic rename commits, hashes find damage.

    FOLDER/00000120/state/           the arrays, by Orbax
    FOLDER/00000120/checkpoint.json  step, extra, metrics, shape and dtype of every leaf, sha256 of every file under state/ and of this one

`save` copies the arrays off the devices and returns; a thread writes them. A checkpoint is written under a temporary name and renamed when
it is complete and on the disk, so a kill or a full disk at any moment leaves the earlier ones untouched. Restoring goes onto the shardings
of the template that is given, whatever mesh and however many hosts the saving run had: each host reads its own parts.

Several hosts share the folder. Each writes its own parts of the arrays; the first one commits when all have reported that theirs are
written, and it alone renames and removes. The thread exchanges these reports through the coordinator's key-value store and never uses the
devices together with other hosts: a collective of its own would meet the training's in another order elsewhere.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import json
import logging
import math
import os
import re
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath  # what Orbax takes for paths

from mempi_jax.runtime import files, hosts

_DESCRIPTION = 'checkpoint.json'
_STATE = 'state'
_STEP_FOLDER = re.compile(r'\d{8,}')
_CHUNK = 2**26  # bytes; what a host reads of an array at a time if it was saved in larger parts than it wants
_IN_SIGHT = 30.0  # seconds until a host sees in a shared folder what another one made
_NAMED = 12  # leaves that an error lists

_logger = logging.getLogger(__name__)


class CheckpointError(OSError):
  """A checkpoint that is missing, damaged, of another shape or could not be written; the message says which, where and why."""


class _DamagedError(CheckpointError):
  """Its files are not what was written: `latest` passes it over."""


class Checkpointer:
  """Saves and restores trees of arrays in `folder`. Every host of a run calls the same methods in the same order, from one thread.

  Close it, or use it as a context manager: the interpreter does not wait for a save that is under way when a program ends.
  """

  def __init__(self, folder: str | Path, *, keep: int = 2, best: int = 0, metric: str = '', mode: str = 'min'):
    """Nothing is made or written yet.

    Args:
      folder: of the checkpoints; on several hosts all see the same one.
      keep: how many of the newest are kept.
      best: how many are kept besides, the best ones by a metric.
      metric: its name in the `metrics` that `save` is given.
      mode: 'min' if smaller is better, 'max' if larger is.
    """
    if keep < 1:
      raise ValueError(f'keep must be at least 1, found {keep}')
    if best < 0:
      raise ValueError(f'best must not be negative, found {best}')
    if best and not metric:
      raise ValueError(f'best = {best} needs the name of a metric')
    if mode not in ('min', 'max'):
      raise ValueError(f"mode must be 'min' or 'max', found {mode!r}")
    self.folder = Path(folder).absolute()  # Orbax asks for absolute paths
    self.keep, self.best, self.metric, self.mode = keep, best, metric, mode
    self._orbax = ocp.StandardCheckpointHandler()
    self._thread: threading.Thread | None = None  # writes what was saved last
    self._error: CheckpointError | None = None  # why it could not
    self._damaged: set[int] = set()  # steps that `latest` passed over

  # Saving.

  def save(self, step: int, tree: Any, extra: dict[str, Any], metrics: Mapping[str, float] | None = None) -> None:
    """Saves a checkpoint, and returns as soon as the arrays are copied: they may be donated or overwritten at once.

    Once it is committed, older ones are removed (see `keep` and `best`), and any later than `step`: these were found damaged, or belong to
    a run that was given up. Only one is written at a time: a save waits for the one before.

    Args:
      step: number of finished steps.
      tree: any pytree of jax or numpy arrays. On several hosts an array that lives on one host's devices alone is taken to be the same on all.
      extra: JSON-able values (the state of a data source, for example), as they are now. Floats come back bit for bit.
      metrics: what `best` is chosen by; without a finite value of the metric this checkpoint is none of the best.

    Raises:
      CheckpointError: the folder cannot be written, and nothing was done; or the save before this one failed, and this one was not begun.
      TypeError, ValueError: `extra` is not JSON, `step` is negative; nothing was done.
    """
    if step < 0:
      raise ValueError(f'step must not be negative, found {step}')
    values = {name: float(value) for name, value in (metrics or {}).items() if math.isfinite(value)}
    _hush()
    description = {'step': step, 'extra': json.loads(json.dumps(extra, allow_nan=False)), 'metrics': values, 'leaves': _describe(tree)}
    self.wait()
    temporary = self.folder / hosts.broadcast(lambda: self._prepare(step))
    _expect_folder(temporary)
    try:
      tree = jax.tree.map(_own, tree)
      chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK), tree)
      writing = _run(self._orbax.async_save(epath.Path(temporary / _STATE), args=ocp.args.StandardSave(tree, chunks)))
    except BaseException:
      if hosts.is_first():
        shutil.rmtree(temporary, ignore_errors=True)
      raise
    self._thread = threading.Thread(target=self._finish, args=(step, temporary, description, writing), name='checkpoint')
    self._thread.start()

  def wait(self) -> None:
    """Returns once the last save is committed.

    Raises:
      CheckpointError: it could not be written; says which step, the folder and the reason. The checkpoints before it are whole.
    """
    self._join()
    error, self._error = self._error, None
    if error:
      raise error

  def close(self) -> None:
    """Waits as `wait` does, and raises what it raises."""
    try:
      self.wait()
    finally:
      self._orbax.close()

  def __enter__(self) -> Checkpointer:
    return self

  def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
    try:
      self.close()
    except CheckpointError as failed:
      if kind is None:
        raise
      _logger.error('%s', failed)  # what ended the program is the more important error

  def _prepare(self, step: int) -> str:
    """Makes the folder that a checkpoint is written in and gives its name, which is never used again. For the first host."""
    try:
      files.ensure_writable(self.folder)
      for path in self.folder.glob('.*.tmp*'):  # what a killed process left unfinished
        shutil.rmtree(path)
      temporary = self.folder / f'.{_folder_name(step)}.{secrets.token_hex(4)}.tmp'
      (temporary / _STATE).mkdir(parents=True)
    except OSError as error:
      raise CheckpointError(f'the checkpoint of step {step} was not written: {error}') from None
    return temporary.name

  def _finish(self, step: int, temporary: Path, description: dict[str, Any], writing: Sequence[Any]) -> None:
    """Waits until all hosts have written their arrays; the first one commits. Runs in the thread."""
    problem = _problem(lambda: [future.result() for future in writing])
    if hosts.is_first():
      problems = {0: problem} | {other: _heard(f'{temporary}/{other}') for other in range(1, hosts.count())}
      problem = '; '.join(f'{hosts.name(i)}: {text}' if hosts.count() > 1 else text for i, text in problems.items() if text)
      problem = problem or _problem(lambda: self._commit(step, temporary, description))
      if problem:
        shutil.rmtree(temporary, ignore_errors=True)
      problem = _problem(lambda: hosts.tell(f'{temporary}/committed', problem)) or problem
      if not problem:
        self._remove_older(step)
    else:
      problem = _problem(lambda: hosts.tell(f'{temporary}/{hosts.index()}', problem)) or _heard(f'{temporary}/committed')
    if problem:
      self._error = CheckpointError(
        f'the checkpoint of step {step} could not be written in {self.folder}: {problem}; those before it are whole'
      )

  def _commit(self, step: int, temporary: Path, description: dict[str, Any]) -> None:
    """Gives a checkpoint whose arrays are written its name."""
    self._orbax.finalize(epath.Path(temporary / _STATE))
    for path in (temporary / _STATE, *(temporary / _STATE).rglob('*')):
      files.sync_folder(path)  # or a file
    description = description | {'files': _hash_files(temporary / _STATE)}
    files.write_json(temporary / _DESCRIPTION, description | {'sha256': files.hash_json(description)})
    final = self.folder / _folder_name(step)
    self._discard(final)
    os.replace(temporary, final)
    files.sync_folder(self.folder)

  def _remove_older(self, step: int) -> None:
    """Removes what need not be kept now that `step` is committed. What cannot be removed is no reason to stop."""
    self._damaged.discard(step)
    try:
      steps = [other for other in self._steps() if other <= step and other not in self._damaged]
      kept = {*steps[-self.keep :], *self._ranked(steps)[: self.best]}
      for other in self._steps():
        if other not in kept:
          self._discard(self.folder / _folder_name(other))
    except OSError as error:
      _logger.warning('older checkpoints in %s cannot be removed: %s', self.folder, error)

  def _discard(self, path: Path) -> None:
    """Removes a checkpoint; the rename first, so that a kill in between leaves no half of it under its name."""
    if path.exists():
      doomed = path.with_name(f'.{path.name}.removed.tmp')
      shutil.rmtree(doomed, ignore_errors=True)
      os.replace(path, doomed)
      shutil.rmtree(doomed)

  def _join(self) -> None:
    if self._thread:
      self._thread.join()
      self._thread = None

  # Restoring.

  def latest(self) -> int | None:
    """The step of the newest whole checkpoint, None if there is none; a save under way is waited for.

    Damaged ones are passed over with a warning, and removed once another one is committed. Raises CheckpointError where one may not be read.
    """
    self._join()
    return hosts.broadcast(lambda: self._first_whole(self._steps()[::-1], 'the one before it is used'))

  def best_step(self) -> int | None:
    """The step of the best whole checkpoint by the metric, the earlier one of equals; None if none has a value. Otherwise as `latest`."""
    self._join()
    return hosts.broadcast(lambda: self._first_whole(self._ranked(self._steps()), 'the next best is used'))

  def restore(self, step: int, template: Any) -> tuple[Any, dict[str, Any]]:
    """Reads the checkpoint of `step`; a save under way is waited for.

    Args:
      step: as saved; see `latest`.
      template: a tree of the saved structure; its leaves (arrays or jax.ShapeDtypeStruct) give shape, dtype and sharding. Numpy leaves, and
        a jax.ShapeDtypeStruct without sharding, come back as numpy arrays.

    Returns:
      (tree, extra), bit for bit what was saved.

    Raises:
      CheckpointError: no such checkpoint, a damaged one, or one whose leaves differ from the template's (they are named).
    """
    self._join()
    description = hosts.broadcast(lambda: self._read_description(step))
    folder = self.folder / _folder_name(step)
    template = jax.tree.map(_target, template)
    found, expected = description['leaves'], _describe(template)
    problems = [f'{name} is missing, expected {expected[name]}' for name in expected if name not in found]
    problems += [f'{name} {found[name]} is not expected' for name in found if name not in expected]
    problems += [f'{n} is {found[n]}, expected {expected[n]}' for n in found if n in expected and found[n] != expected[n]]
    if problems:
      more = f'; and {len(problems) - _NAMED} more' if len(problems) > _NAMED else ''
      raise CheckpointError(f'checkpoint {folder} is of another model: {"; ".join(problems[:_NAMED])}{more}')
    try:
      return self._orbax.restore(epath.Path(folder / _STATE), args=ocp.args.StandardRestore(template)), description['extra']
    except Exception as error:
      raise CheckpointError(f'checkpoint {folder} cannot be read: {_reason(error)}') from error

  def _steps(self) -> list[int]:
    """Steps of all committed checkpoints, damaged or not, in increasing order."""
    if not self.folder.is_dir():
      return []
    return sorted(int(path.name) for path in self.folder.iterdir() if _STEP_FOLDER.fullmatch(path.name))

  def _first_whole(self, steps: Sequence[int], instead: str) -> int | None:
    for step in steps:
      try:
        self._read_description(step)
        return step
      except _DamagedError as error:
        self._damaged.add(step)
        _logger.warning('%s; %s', error, instead if step != steps[-1] else 'no other is left')
    return None

  def _ranked(self, steps: Sequence[int]) -> list[int]:
    """Those of `steps` that have a value of the metric, the best one first."""
    values = {}
    for step in steps:
      try:
        values[step] = float(files.read_json(self.folder / _folder_name(step) / _DESCRIPTION)['metrics'][self.metric])
      except (OSError, ValueError, KeyError, TypeError):  # damaged, or saved without it
        continue
    sign = 1 if self.mode == 'min' else -1
    return sorted(values, key=lambda step: (sign * values[step], step))

  def _read_description(self, step: int) -> dict[str, Any]:
    """The description of a checkpoint whose files are all as they were written; raises CheckpointError otherwise."""
    folder = self.folder / _folder_name(step)
    if not folder.is_dir():
      there = ', '.join(map(str, self._steps())) or 'none'
      raise CheckpointError(f'no checkpoint of step {step} in {self.folder} (steps there: {there})')
    try:
      description = files.read_json(folder / _DESCRIPTION)
      signature = description.pop('sha256', None)  # checkpoints of earlier versions have none
      changed = [_DESCRIPTION] if signature not in (None, files.hash_json(description)) else []
      found = _hash_files(folder / _STATE)
      changed += sorted(name for name in description['files'] if found.get(name) != description['files'][name])
    except PermissionError as error:
      raise CheckpointError(f'checkpoint {folder} cannot be read: {error}') from None
    except (OSError, ValueError) as error:
      raise _DamagedError(f'checkpoint {folder} is damaged: {error}') from None
    except (KeyError, TypeError, AttributeError):
      raise _DamagedError(f'checkpoint {folder} is damaged: {_DESCRIPTION} is none') from None
    if changed:
      raise _DamagedError(f'checkpoint {folder} is damaged: {", ".join(changed)} changed or missing')
    return description


# Arrays.


def _own(leaf: Any) -> Any:
  """A leaf that nobody else writes to, or that Orbax copies to the host before `save` returns."""
  if not isinstance(leaf, jax.Array) or hosts.count() > 1 and leaf.is_fully_addressable:
    return np.array(leaf)  # numpy scalars become 0-d arrays, the form that Orbax stores
  # On a CPU a transfer to the host copies nothing: Orbax would read from the very buffer that a donation gives away.
  return jnp.copy(leaf) if next(iter(leaf.sharding.device_set)).platform == 'cpu' else leaf


def _target(leaf: Any) -> Any:
  """A leaf of the template as Orbax takes it."""
  if np.isscalar(leaf):
    return np.asarray(leaf)
  if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is None:
    return np.empty(leaf.shape, leaf.dtype)  # Orbax would look for the devices of the run that saved
  return leaf


def _describe(tree: Any) -> dict[str, str]:
  """Leaf name -> 'float32[128, 64]'."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(jax.tree.map(lambda leaf: np.asarray(leaf) if np.isscalar(leaf) else leaf, tree))
  return {jax.tree_util.keystr(path, simple=True, separator='/'): f'{leaf.dtype}{list(leaf.shape)}' for path, leaf in leaves}


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
  """What a coroutine returns. It runs in a thread: in a notebook this one has an event loop already."""
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    return pool.submit(_run_in_new_loop, coroutine).result()


def _run_in_new_loop(coroutine: Coroutine[Any, Any, Any]) -> Any:
  # Not asyncio.run: its end goes through the tasks of all loops, and Orbax's threads are making some.
  loop = asyncio.new_event_loop()
  try:
    return loop.run_until_complete(coroutine)
  finally:
    loop.close()


# Files.


def _folder_name(step: int) -> str:
  return f'{step:08d}'


def _hash_files(folder: Path) -> dict[str, str]:
  """Relative name -> sha256 of every file under `folder`; empty if there is no such folder."""
  return {path.relative_to(folder).as_posix(): files.hash_file(path) for path in sorted(folder.rglob('*')) if path.is_file()}


# Errors.


def _problem(function: Callable[[], Any]) -> str:
  """Calls a function; why it failed, or '' if it did not."""
  try:
    function()
  except Exception as error:  # noqa: BLE001  Orbax and TensorStore raise many kinds
    return _reason(error)
  return ''


def _hush() -> None:
  """Where a write fails, Orbax and TensorStore print hundreds of lines from threads of theirs; CheckpointError says it in one."""
  for name in ('absl', 'asyncio'):
    logging.getLogger(name).addFilter(_is_news)  # once, however often it is added
  if getattr(sys.unraisablehook, 'func', None) is not _show:
    sys.unraisablehook = functools.partial(_show, sys.unraisablehook)


def _is_news(record: logging.LogRecord) -> bool:
  """Whether a line of the log says more than that a write failed."""
  text = record.getMessage()
  return '_SignalingThread.run() raised' not in text and not ('exception was never retrieved' in text and 'OCDBT' in text)


def _show(show: Callable[[Any], None], unraisable: Any) -> None:
  """What is printed of an exception that nobody can catch: nothing where a write ends whose save had failed before."""
  if not (unraisable.object is None and str(unraisable.exc_value) == 'Event loop is closed'):
    show(unraisable)


def _reason(error: Exception) -> str:
  """What an error says, on one line. TensorStore's name every file and layer that an error of the system came through."""
  text = str(error).strip() or type(error).__name__
  code = re.search(r"\[os_error_code='(\d+)'\]", text)
  if code:
    return os.strerror(int(code[1]))
  return text.splitlines()[0]


# Hosts.


def _expect_folder(folder: Path) -> None:
  """Raises CheckpointError on a host that does not see the folder which the first one has made."""
  started = time.monotonic()
  while not folder.is_dir():
    if time.monotonic() - started > _IN_SIGHT:
      raise CheckpointError(f'{hosts.name()} does not see {folder}, which host 0 has made: the hosts must share the working folder')
    time.sleep(0.1)


def _heard(name: str) -> str:
  """What another host's thread says went wrong, '' where nothing did."""
  try:
    return hosts.hear(name)
  except hosts.HostsError as error:
    return str(error)
