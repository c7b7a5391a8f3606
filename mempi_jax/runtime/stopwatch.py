"""Where the seconds of a training loop go: `STAGE/timing.json`. Not among the metrics, which are the same in every run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mempi_jax.runtime import files

TIMING = 'timing.json'


class Stopwatch:
  """Adds up the seconds spent in named parts of what is timed.

  with clock('update'): ...
  """

  def __init__(self):
    self.seconds: dict[str, float] = {}
    self._started = time.perf_counter()

  @contextlib.contextmanager
  def __call__(self, name: str) -> Iterator[None]:
    """Times what is inside."""
    started = time.perf_counter()
    try:
      yield
    finally:
      self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

  def start(self) -> None:
    """Counts from now on: of everything, and of each part."""
    self.seconds, self._started = {}, time.perf_counter()

  @property
  def parts(self) -> dict[str, float]:
    """Seconds of each part."""
    return {name: round(value, 4) for name, value in self.seconds.items()}

  def write(self, path: Path, more: Mapping[str, Any]) -> None:
    """Writes {'total': seconds since the start, 'parts': {name: seconds}} with `more`."""
    files.write_json(path, {'total': round(time.perf_counter() - self._started, 4), 'parts': self.parts, **more})
