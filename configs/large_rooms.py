"""A world of large rooms alone and little experience: what stage 2 does for the content shows best here.

    python -m mempi_jax.sweep --config=configs/large_rooms.py --workdir=runs/large_rooms

Commit 15605dc, seed 0, 400 held-out games each: maple: agent alone 0.125, oracle 0.715, RAG 0.395, stage 1 0.375, stage 2 0.490; cedar: 0.182,
0.752, 0.455, 0.522, 0.595. Pooled, stage 2 over stage 1 +0.094 [+0.069, +0.120], over RAG +0.117 [+0.081, +0.152].
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mempi_jax.config import load_config


def get_config() -> ConfigDict:
  """configs/alfworld.py without small rooms, from a bank of 200 games instead of 800."""
  config = load_config(Path(__file__).with_name('alfworld.py'))
  config.world.small_fraction = 0.0
  config.bank.games = 200
  config.stage1.duration = '60 steps'  # more would learn so small a bank by heart
  config.stage2.updates = 60
  config.eval.games.heldout_goals = 0
  config.eval.games.long_horizon = 0
  return config


def sweep() -> Iterator[dict[str, Any]]:
  """The overrides of each run."""
  for household in ('maple', 'cedar'):
    yield {'world.household': household, 'seed': 0}
