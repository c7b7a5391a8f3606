"""What wrong hints do: the bank with none, a tenth, three tenths and half of its hints wrong, two seeds each.

    python -m mempi_jax.evaluate --config=configs/analysis_corruption.py --workdir=runs/analysis_corruption

The table is in runs/analysis_corruption/variants/, each share paired with the bank that has none; runs.csv has a line for each run and memory.

Commit 3b7c8ed, seed 0 alone, 400 held-out games, with 0, 10, 30 and 50% wrong: RAG 0.595, 0.595, 0.578, 0.550; MemRL 0.613 to 0.618;
stage 1 0.637, 0.593, 0.537, 0.490; Mem-π 0.625, 0.598, 0.573, 0.545.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mempi_jax.config import load_config


def get_config() -> ConfigDict:
  """configs/table_main.py with the memories that quote the bank, and those that are trained on it."""
  config = load_config(Path(__file__).with_name('table_main.py'))
  config.eval.memories = ('none', 'rag', 'mem0', 'memrl', 'mempi_stage1', 'mempi')
  return config


def sweep() -> Iterator[dict[str, Any]]:
  """The overrides of each run."""
  for share in (0.0, 0.1, 0.3, 0.5):
    for seed in (0, 1):
      yield {'variant': f'{share:.0%} wrong', 'bank.corruption': share, 'seed': seed}
