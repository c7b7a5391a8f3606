"""Settings of the baselines, tried on a household that no table uses: twelve each for RAG, Mem0 and MemRL.

    python -m mempi_jax.sweep --config=configs/tune_baselines.py --workdir=runs/tune_baselines --jobs=2

Nothing of Mem-π is trained here; runs/tune_baselines/runs.csv has a line for each.

Household dev-0, 400 held-out games each (before 33ab30f; standard error 0.025). RAG: 0.465 to 0.588, best wordllama, goal, k = 1 (BM25 over goal
and observation 0.580; k = 2 and 3 are worse everywhere). Mem0: 0.363 to 0.485, best goal, k = 1, replace. MemRL: k2 = 1 0.638 to 0.653, k2 = 3 0.573
to 0.583; best k1 = 20, λ = 0.3. Ten of MemRL's twelve were run: k1 = 20, k2 = 3 with λ = 0.5 and 0.8 were not.
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
