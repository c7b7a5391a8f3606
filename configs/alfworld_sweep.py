"""The README's table: two households that nothing was tuned on, three seeds each.

    python -m mempi_jax.sweep --config=configs/alfworld_sweep.py --workdir=runs/alfworld_sweep --jobs=2

Commit 15605dc, 2,400 held-out games: agent alone 0.423, oracle 0.840, RAG 0.611, stage 1 0.672, stage 2 0.673 with 64.5% of stage 1's
guidance tokens; stage 2 over RAG +0.062 [+0.044, +0.081], over stage 1 +0.001 [-0.013, +0.014]. Six runs, two side by side,
took 21 minutes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mempi_jax.config import load_config


def get_config() -> ConfigDict:
  """configs/alfworld.py; the runs differ in household and seed."""
  return load_config(Path(__file__).with_name('alfworld.py'))


def sweep() -> Iterator[dict[str, Any]]:
  """The overrides of each run."""
  for household in ('maple', 'cedar'):
    for seed in (0, 1, 2):
      yield {'world.household': household, 'seed': seed}
