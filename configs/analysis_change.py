"""A changed world: half of a household's habits move after two periods of use. How far does each memory fall, and what brings it back?

    python -m mempi_jax.evaluate --config=configs/analysis_change.py --workdir=runs/analysis_change

trains and evaluates what is missing, plays the deployment (`mempi_jax.deploy` says what it is), and pools the runs into WORKDIR/pooled/. Needs
the extra `embeddings`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mempi_jax.config import load_config


def get_config() -> ConfigDict:
  """configs/table_main.py with the memories that can learn as they go, and eight periods."""
  config = load_config(Path(__file__).with_name('table_main.py'))
  config.eval.memories = ('none', 'oracle', 'rag', 'mem0', 'memrl', 'mempi')
  config.eval.games.heldout_games, config.eval.games.heldout_goals, config.eval.games.long_horizon = 200, 100, 60
  config.eval.difficulty_runs = 2
  config.deploy.moved = (0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5)
  config.deploy.memories = ('none', 'oracle', 'rag', 'mem0', 'memrl', 'mempi')
  config.deploy.online = ('rag', 'mem0', 'memrl', 'mempi')
  return config


def sweep() -> Iterator[dict[str, Any]]:
  """The overrides of each run."""
  for household in ('maple', 'cedar'):
    for seed in (0, 1):
      yield {'world.household': household, 'seed': seed}
