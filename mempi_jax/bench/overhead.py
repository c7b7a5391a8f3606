"""Where the seconds of a finished training went, loop by loop: compiled programs, episodes, and the host's own work.

A step's time is that of the loop without evaluations and compilations. The host's own work is what is left of it without the update, the
episodes and the scoring of batches: packing, moving arrays, effects, metrics, and the part of checkpoints that training waits for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mempi_jax.runtime import files
from mempi_jax.runtime.stopwatch import TIMING


def bench_overhead(workdir: str | Path) -> dict[str, Any]:
  """The figures of each training loop of a working folder, in seconds a step. Raises FileNotFoundError where there is none."""
  paths = sorted(Path(workdir).glob(f'**/{TIMING}'))
  if not paths:
    raise FileNotFoundError(f'{workdir}: no {TIMING} of a training that was finished in one go')
  return {'benchmark': 'overhead', 'loops': {path.parent.relative_to(workdir).as_posix(): figures(files.read_json(path)) for path in paths}}


def figures(timing: dict[str, Any]) -> dict[str, float]:
  """Of one loop, from what `Stopwatch.write` wrote."""
  parts, steps = timing['parts'], timing['steps']
  step = timing['total'] - parts.get('evaluate', 0.0) - parts.get('compile', 0.0)
  source = sum(timing['within_source'].values())
  host = step - parts['update'] - source
  return {
    'steps': steps,
    'step': step / steps,
    'update': parts['update'] / steps,
    'episodes and scores': source / steps,
    'host': host / steps,
    'of it batches': (parts['source'] - source) / steps,
    'of it checkpoints': parts.get('checkpoint', 0.0) / steps,
    'host share': host / step,
  }


def print_overhead(result: dict[str, Any]) -> None:
  """A line a figure: milliseconds a step, and the share."""
  for loop, found in result['loops'].items():
    print(f'{loop}: {found["steps"]} steps')
    for name, value in found.items():
      if name != 'steps':
        print(f'  {name:24} {100 * value:8.2f} %' if name == 'host share' else f'  {name:24} {1000 * value:8.1f} ms')
