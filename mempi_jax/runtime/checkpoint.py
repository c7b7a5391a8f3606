"""Checkpoints of a training state: Orbax writes the arrays, an atomic rename commits, hashes find damage.

    FOLDER/00000120/state/           the arrays, by Orbax
    FOLDER/00000120/checkpoint.json  step, extra, shape and dtype of every leaf, sha256 of every file under state/

A checkpoint is written under a temporary name and renamed when it is complete, so a kill at any moment leaves the earlier ones
untouched. One process writes. Restoring goes onto the shardings of the template that is given, whatever the saving run had.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mempi_jax.runtime import files

_DESCRIPTION = 'checkpoint.json'
_STATE = 'state'
_STEP_FOLDER = re.compile(r'\d{8,}')

_logger = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
  """A checkpoint that is missing, damaged or of another shape; the message says which and where."""


class Checkpointer:
  """Saves and restores trees of arrays in `folder`; the newest `keep` are kept."""

  def __init__(self, folder: str | Path, keep: int = 2):
    if keep < 1:
      raise ValueError(f'keep must be at least 1, found {keep}')
    self.folder = Path(folder).absolute()  # Orbax asks for absolute paths
    self.keep = keep
    self._orbax = ocp.Checkpointer(ocp.StandardCheckpointHandler())

  def save(self, step: int, tree: Any, extra: dict[str, Any]) -> None:
    """Writes a checkpoint and returns once it is committed; older ones beyond `keep` are removed, and any later than `step`.

    Args:
      step: number of finished steps.
      tree: any pytree of jax or numpy arrays.
      extra: JSON-able values (the state of a data source, for example). Floats come back bit for bit.
    """
    if step < 0:
      raise ValueError(f'step must not be negative, found {step}')
    # Numpy scalars become 0-d arrays, the form that Orbax stores.
    tree = jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf), tree)
    self.folder.mkdir(parents=True, exist_ok=True)
    self._remove_leftovers()
    temporary = self.folder / f'.{_folder_name(step)}.tmp'
    self._orbax.save(temporary / _STATE, args=ocp.args.StandardSave(tree))
    description = {'step': step, 'extra': extra, 'leaves': _describe(tree), 'files': _hash_files(temporary / _STATE)}
    files.write_json(temporary / _DESCRIPTION, description)
    final = self.folder / _folder_name(step)
    self._discard(final)
    os.replace(temporary, final)
    files.sync_folder(self.folder)
    # A later checkpoint than the one just saved is one that `latest` found damaged, or belongs to a run that was given up.
    steps = self._steps()
    for other in [s for s in steps if s > step] + [s for s in steps if s <= step][: -self.keep]:
      self._discard(self.folder / _folder_name(other))

  def latest(self) -> int | None:
    """The step of the newest whole checkpoint, None if there is none. Damaged ones are passed over with a warning."""
    for step in reversed(self._steps()):
      try:
        self._read_description(step)
        return step
      except CheckpointError as error:
        _logger.warning('%s; the one before it is used', error)
    return None

  def restore(self, step: int, template: Any) -> tuple[Any, dict[str, Any]]:
    """Reads the checkpoint of `step`.

    Args:
      step: as saved; see `latest`.
      template: a tree of the saved structure; its leaves (arrays or jax.ShapeDtypeStruct) give shape, dtype and sharding. Numpy leaves
        come back as numpy arrays.

    Returns:
      (tree, extra), bit for bit what was saved.

    Raises:
      CheckpointError: no such checkpoint, a damaged one, or one whose leaves differ from the template's (all are named).
    """
    description = self._read_description(step)
    folder = self.folder / _folder_name(step)
    template = jax.tree.map(lambda leaf: np.asarray(leaf) if np.isscalar(leaf) else leaf, template)
    found, expected = description['leaves'], _describe(template)
    problems = [f'{name} is missing, expected {expected[name]}' for name in expected if name not in found]
    problems += [f'{name} {found[name]} is not expected' for name in found if name not in expected]
    problems += [f'{n} is {found[n]}, expected {expected[n]}' for n in found if n in expected and found[n] != expected[n]]
    if problems:
      raise CheckpointError(f'checkpoint {folder} has another shape: {"; ".join(problems)}')
    return self._orbax.restore(folder / _STATE, args=ocp.args.StandardRestore(template)), description['extra']

  def _steps(self) -> list[int]:
    """Steps of all committed checkpoints, damaged or not, in increasing order."""
    if not self.folder.is_dir():
      return []
    return sorted(int(path.name) for path in self.folder.iterdir() if _STEP_FOLDER.fullmatch(path.name))

  def _read_description(self, step: int) -> dict[str, Any]:
    """The description of a checkpoint whose files are all as they were written; raises CheckpointError otherwise."""
    folder = self.folder / _folder_name(step)
    if not folder.is_dir():
      there = ', '.join(map(str, self._steps())) or 'none'
      raise CheckpointError(f'no checkpoint of step {step} in {self.folder} (steps there: {there})')
    try:
      description = files.read_json(folder / _DESCRIPTION)
    except (OSError, ValueError) as error:
      raise CheckpointError(f'checkpoint {folder} is damaged: {error}') from None
    found = _hash_files(folder / _STATE)
    damaged = sorted(name for name in description['files'] if found.get(name) != description['files'][name])
    if damaged:
      raise CheckpointError(f'checkpoint {folder} is damaged: {", ".join(damaged)} changed or missing')
    return description

  def _discard(self, path: Path) -> None:
    """Removes a checkpoint; the rename first, so that a kill in between leaves no half of it under its name."""
    if path.exists():
      doomed = path.with_name(f'.{path.name}.removed.tmp')
      shutil.rmtree(doomed, ignore_errors=True)
      os.replace(path, doomed)
      shutil.rmtree(doomed)

  def _remove_leftovers(self) -> None:
    """Removes what a killed process left unfinished."""
    for path in self.folder.glob('.*.tmp*'):
      shutil.rmtree(path)


def _folder_name(step: int) -> str:
  return f'{step:08d}'


def _describe(tree: Any) -> dict[str, str]:
  """Leaf name -> 'float32[128, 64]'."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): f'{leaf.dtype}{list(leaf.shape)}' for path, leaf in leaves}


def _hash_files(folder: Path) -> dict[str, str]:
  """Relative name -> sha256 of every file under `folder`; empty if there is no such folder."""
  return {path.relative_to(folder).as_posix(): files.hash_file(path) for path in sorted(folder.rglob('*')) if path.is_file()}
