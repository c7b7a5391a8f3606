"""Metrics of a run: a JSONL file that survives kills, TensorBoard beside it, trackers where asked for, and progress bars.

One line a write: {"step": int, "room/thing": float, ...}. A resumed run drops what an earlier process wrote at or after the step it
resumes from, so that the file is the same as that of a run that was never stopped.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tensorboardX import SummaryWriter
from tqdm import tqdm

from mempi_jax.runtime import files, hosts

METRICS_FILE = 'metrics.jsonl'

_NAME = re.compile(r'[a-z][a-z0-9_]*(/[a-z0-9_.@]+)+')


class Tracker(Protocol):
  """Something else that wants the records: a tracking service, see runtime/trackers.py."""

  def write(self, step: int, record: Mapping[str, float]) -> None:
    """Takes one record. Must return at once and never raise."""

  def close(self, failed: bool = False) -> None:
    """Ends the run there; `failed` where training raised an error. Must never raise."""


class MetricWriter:
  """Writes `folder/metrics.jsonl` and TensorBoard events to `folder/tensorboard`, and passes each record on to trackers.

  A context manager; or call `close`.
  """

  def __init__(self, folder: str | Path, resume_step: int = 0, trackers: Sequence[Tracker] = ()):
    """Opens the files; lines of an earlier process with step >= `resume_step` are dropped. `trackers` are closed with them."""
    folder = Path(folder)
    path = folder / METRICS_FILE
    _drop_from(path, resume_step)
    self._log = files.JsonlLog(path)
    # TensorBoard hides earlier events from the purge step on.
    self._tensorboard = SummaryWriter(
      str(folder / 'tensorboard'), purge_step=resume_step, flush_secs=10, write_to_disk=hosts.is_first()
    )
    self._trackers = tuple(trackers)
    self._last_step = resume_step

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Writes one line. Values are floats, or scalars of numpy or jax.

    Raises:
      ValueError: a name is not `room/thing`, or the step is smaller than the last one.
      FloatingPointError: a value is NaN or infinite; names the metric and the step. Nothing is written.
    """
    if step < self._last_step:
      raise ValueError(f'metrics of step {step} come after those of step {self._last_step}')
    record: dict[str, float] = {}
    for name, value in metrics.items():
      if not _NAME.fullmatch(name):
        raise ValueError(f"metric name {name!r}: expected room/thing in lower case, as in 'train/loss'")
      record[name] = float(value)
    broken = [f'{name} is {value}' for name, value in record.items() if not math.isfinite(value)]
    if broken:
      raise FloatingPointError(f'step {step}: {", ".join(broken)}')
    self._log.append({'step': step, **record})
    for name, value in record.items():
      self._tensorboard.add_scalar(name, value, step)
    for tracker in self._trackers:
      tracker.write(step, record)
    self._last_step = step

  def close(self, failed: bool = False) -> None:
    """Flushes and closes both files, then the trackers; `failed` where training raised an error."""
    self._log.close()
    self._tensorboard.close()
    for tracker in self._trackers:
      tracker.close(failed)

  def __enter__(self) -> MetricWriter:
    return self

  def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
    self.close(failed=kind is not None and not issubclass(kind, SystemExit))  # who was asked to end did not fail


def read_metrics(folder: str | Path) -> list[dict[str, float]]:
  """The lines of `folder/metrics.jsonl`; an empty list if there is no such file."""
  path = Path(folder) / METRICS_FILE
  return list(files.read_jsonl(path)) if path.exists() else []


def progress(total: int, description: str, initial: int = 0) -> tqdm:
  """A progress bar on stderr with rate and time left; call `.update()` after each step. `initial` is where a resumed run starts. Of several
  hosts the first one shows it."""
  # In a log file a bar is one line per refresh: keep those rare.
  interval = 0.1 if sys.stderr.isatty() else 10.0
  return tqdm(
    total=total, desc=description, initial=initial, file=sys.stderr, mininterval=interval, dynamic_ncols=True, disable=not hosts.is_first()
  )


def _drop_from(path: Path, step: int) -> None:
  """Keeps the lines before `step`. Other hosts than the first leave the file alone: that one is cutting it, and appending to it."""
  if not path.exists() or not hosts.is_first():
    return
  files.cut_half_line(path)
  records = list(files.read_jsonl(path))
  kept = [record for record in records if record['step'] < step]
  if len(kept) < len(records):
    files.write_text(path, ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in kept))
