"""The main table: every memory on two households that nothing was tuned on, three seeds each.

    python -m mempi_jax.evaluate --config=configs/table_main.py --workdir=runs/table_main

trains what is missing, evaluates, and pools the six runs into WORKDIR/pooled/. Needs the extra `embeddings`. The baselines' settings are the
best of configs/tune_baselines.py.

Commit 33ab30f, 50 minutes on two cores from nothing, 2,400 held-out games: agent alone 0.423, with more steps 0.521, oracle 0.840, RAG 0.605,
Mem0 0.480, Memory-R1 0.456, MemRL 0.638, RAG with learned abstention 0.599, untrained 0.292, stage 1 0.672, Mem-π that always speaks 0.693,
Mem-π 0.672 with 64% of the tokens.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mempi_jax.config import load_config


def get_config() -> ConfigDict:
  """configs/alfworld.py with every memory."""
  config = load_config(Path(__file__).with_name('alfworld.py'))
  config.eval.memories = (
    'none', 'token_matched', 'oracle', 'rag', 'mem0', 'memory_r1', 'memrl', 'rag_abstain', 'untrained', 'always', 'mempi_stage1', 'mempi',
  )  # fmt: skip
  # The best of configs/tune_baselines.py on household dev-0, 400 games each: RAG 0.588, Mem0 0.485, MemRL 0.653.
  config.baselines.rag.index, config.baselines.rag.key, config.baselines.rag.k = 'wordllama', 'goal', 1
  config.baselines.mem0.key, config.baselines.mem0.k, config.baselines.mem0.replace = 'goal', 1, True
  config.baselines.memrl.k1, config.baselines.memrl.k2, config.baselines.memrl.weight = 20, 1, 0.3
  return config


def sweep() -> Iterator[dict[str, Any]]:
  """The overrides of each run."""
  for household in ('maple', 'cedar'):
    for seed in (0, 1, 2):
      yield {'world.household': household, 'seed': seed}
