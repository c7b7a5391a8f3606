"""Sample efficiency: banks of 100 to 800 games, and stage 2 on a quarter, half and all of its games, two seeds each.

    python -m mempi_jax.evaluate --config=configs/analysis_samples.py --workdir=runs/analysis_samples

The table is in runs/analysis_samples/variants/, each paired with the whole bank and all games; runs.csv has a line for each run and memory.

Commit 3b7c8ed, seed 0 and two of the variants alone, 400 held-out games, with banks of 800 and of 100 games: RAG 0.595 and 0.560, MemRL
0.613 and 0.560, stage 1 0.637 and 0.517, Mem-π 0.625 and 0.542.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mempi_jax.config import load_config


def get_config() -> ConfigDict:
  """configs/analysis_corruption.py, whose bank is as it was collected."""
  return load_config(Path(__file__).with_name('analysis_corruption.py'))


def sweep() -> Iterator[dict[str, Any]]:
  """The overrides of each run."""
  for games in (800, 100, 200, 400):
    for seed in (0, 1):
      yield {'variant': f'{games} games', 'bank.games': games, 'seed': seed}
  for games in (240, 480):
    for seed in (0, 1):
      yield {'variant': f'{games} games of stage 2', 'stage2.games': games, 'seed': seed}
