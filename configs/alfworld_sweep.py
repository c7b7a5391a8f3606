"""The README's table: two households that nothing was tuned on, three seeds each.

    python -m mempi_jax.sweep --config=configs/alfworld_sweep.py --workdir=runs/alfworld_sweep
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mempi_jax.config import load_config


def get_config() -> ConfigDict:
  """The quick start's config; the runs differ in household and seed."""
  return load_config(Path(__file__).with_name('quickstart.py'))


def sweep() -> Iterator[dict[str, Any]]:
  """The overrides of each run."""
  for household in ('maple', 'cedar'):
    for seed in (0, 1, 2):
      yield {'world.household': household, 'seed': seed}
