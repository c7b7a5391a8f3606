"""A changed world: half of a household's habits move after two periods of use. How far does each memory fall, and what brings it back?

    python -m mempi_jax.evaluate --config=configs/analysis_change.py --workdir=runs/analysis_change

trains and evaluates what is missing, plays the deployment (`mempi_jax.deploy` says what it is), and pools the runs into WORKDIR/pooled/. Needs
the extra `embeddings`.

Commit 3b7c8ed, 1,024 games a period: Mem-π falls from 0.661 to 0.580 and comes back to 0.654 where it is updated, RAG 0.575, 0.532, 0.618
where it learns, MemRL 0.615, 0.559, 0.616, Mem0 0.452, 0.471, 0.456. Of 32 updates of the policy 6 passed their check. Some 35 minutes,
two runs at a time on two busy cores.
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
