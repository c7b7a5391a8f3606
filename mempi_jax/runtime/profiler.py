"""Traces of some training steps: what the devices and the host do when.

`config.profile.steps` is a slice of steps, '10:13' for 10, 11 and 12, counted from 0 in each stage; '' for none. A stage's traces are in
STAGE/profile/plugins/profile/TIME/: HOST.xplane.pb for TensorBoard (`pip install tensorboard-plugin-profile`, then `tensorboard --logdir
STAGE/profile`), HOST.trace.json.gz for https://ui.perfetto.dev. The first steps compile; trace later ones, and few: a trace grows with its
steps.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import jax

from mempi_jax.config import ConfigError

FOLDER = 'profile'  # of a stage

_logger = logging.getLogger(__name__)


def parse_steps(text: str) -> range | None:
  """'10:13' -> range(10, 13), '' -> None.

  Raises:
    ConfigError, a ValueError: other text, or a slice that holds no step.
  """
  if not text:
    return None
  found = re.fullmatch(r'(\d+):(\d+)', text)
  steps = range(int(found[1]), int(found[2])) if found else range(0)
  if not steps:
    raise ConfigError(f"profile.steps is {text!r}, expected '' or first:end with first < end, as in '10:13' for steps 10, 11 and 12")
  return steps


class Profiler:
  """Traces the steps of a training loop that are asked for; call `close` after the loop, however it ended.

      profiler = Profiler(folder, parse_steps(config.profile.steps))
      for step in range(first, num_steps):
        with profiler.step(step):
          ...
      profiler.close()
  """

  def __init__(self, folder: str | Path, steps: range | None):
    """`folder` is the stage's; nothing is written without steps."""
    self._folder, self._steps = Path(folder) / FOLDER, steps
    self._running = self._traced = False

  @contextlib.contextmanager
  def step(self, step: int) -> Iterator[None]:
    """The body of a step. A resumed loop may begin among the steps to trace: then the rest of them is traced."""
    if self._steps is None or step not in self._steps:
      yield
      return
    if not self._running:
      _wait()  # for the steps before
      options = jax.profiler.ProfileOptions()
      # Every call of a Python function, as the default has it, would fill the trace with the environments' steps.
      options.python_tracer_level = 0
      jax.profiler.start_trace(self._folder, profiler_options=options)
      self._running = self._traced = True
    with jax.profiler.StepTraceAnnotation('train', step_num=step):
      yield
    if step + 1 == self._steps.stop:
      self._stop()

  def close(self) -> None:
    """Ends a trace under way; warns if none of the steps came."""
    if self._running:
      self._stop()
    elif self._steps is not None and not self._traced:
      _logger.warning('profile.steps %d:%d: no such step was trained; nothing is traced', self._steps.start, self._steps.stop)

  def _stop(self) -> None:
    """Waits for what the steps began, and writes the trace. A trace that cannot be written is no reason to lose the training."""
    self._running = False
    try:
      _wait()
    finally:
      try:
        jax.profiler.stop_trace()
      except Exception as error:
        _logger.warning('the trace of steps %d:%d cannot be written: %s', self._steps.start, self._steps.stop, error)


def _wait() -> None:
  """Until the devices are done: calls return before. What is being computed is an array that lives, or has an effect."""
  jax.block_until_ready(jax.live_arrays())
  jax.effects_barrier()
