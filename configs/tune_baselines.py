"""Settings of the baselines, tried on a household that no table uses: twelve each for RAG, Mem0 and MemRL.

    python -m mempi_jax.sweep --config=configs/tune_baselines.py --workdir=runs/tune_baselines --jobs=2

Nothing of Mem-π is trained here; runs/tune_baselines/runs.csv has a line for each.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mempi_jax.config import load_config

KEYS = ('goal', 'goal_and_observation')


def get_config() -> ConfigDict:
  """configs/alfworld.py on household dev-0, without training and with the first split alone."""
  config = load_config(Path(__file__).with_name('alfworld.py'))
  config.world.household = 'dev-0'
  config.stage1.duration = '0 steps'
  config.stage2.updates = 0
  config.eval.memories = ('none',)
  config.eval.games.heldout_goals = 0
  config.eval.games.long_horizon = 0
  config.eval.difficulty_runs = 0
  config.eval.replay_episodes = 0
  config.compile_ahead = False
  return config


def sweep() -> Iterator[dict[str, Any]]:
  """The overrides of each run: one memory with one setting."""
  for index, key, k in itertools.product(('bm25', 'wordllama'), KEYS, (1, 2, 3)):
    yield {'eval.memories': ('rag',), 'baselines.rag.index': index, 'baselines.rag.key': key, 'baselines.rag.k': k}
  for replace, key, k in itertools.product((True, False), KEYS, (1, 2, 3)):
    yield {'eval.memories': ('mem0',), 'baselines.mem0.replace': replace, 'baselines.mem0.key': key, 'baselines.mem0.k': k}
  for k1, k2, weight in itertools.product((5, 20), (1, 3), (0.3, 0.5, 0.8)):
    yield {'eval.memories': ('memrl',), 'baselines.memrl.k1': k1, 'baselines.memrl.k2': k2, 'baselines.memrl.weight': weight}
