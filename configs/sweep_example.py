"""A sweep to try the launcher on: stage 2 with two learning rates, two seeds each, on few games. Nothing here is a result.

    python launch/sweep.py --config=configs/sweep_example.py --workdir=runs/sweep_example --jobs=2
    python launch/sweep.py --config=configs/sweep_example.py --workdir=runs/study_example --trials=4 --jobs=2      # needs the extra `sweeps`

Before be278d0, 128 held-out games a run, two runs a learning rate: agent alone 0.391, RAG 0.547, stage 1 0.516; Mem-π 0.488 at 2e-4 and 0.508 at 2e-3, a
difference of +0.020 [-0.027, +0.066] that shows nothing.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mempi_jax.config import load_config

OBJECTIVE = ('heldout_games', 'mempi', 'success_rate', 'maximize')  # of study(): split, memory, measure of results.json, direction


def get_config() -> ConfigDict:
  """configs/quickstart.py with less of everything."""
  config = load_config(Path(__file__).with_name('quickstart.py'))
  config.bank.games = 200
  config.stage1.duration = '40 steps'
  config.stage1.evaluate_every = 20
  config.stage1.checkpoint_every = 20
  config.stage2.updates = 6
  config.stage2.games = 96
  config.stage2.groups = 24
  config.stage2.abstain_outcomes = 2
  config.stage2.evaluate_every = 9
  config.stage2.checkpoint_every = 3
  config.stage2.probe_games = 30
  config.stage2.probe_runs = 2
  config.eval.memories = ('none', 'rag', 'mempi_stage1', 'mempi')
  config.eval.games.heldout_games = 128
  config.eval.games.heldout_goals = 32
  config.eval.games.long_horizon = 16
  config.eval.difficulty_runs = 1
  config.eval.replay_episodes = 0
  return config


def sweep() -> Iterator[dict[str, Any]]:
  """The overrides of each run; the second learning rate's runs take bank and stage 1 over from the first one's."""
  for learning_rate in (2e-4, 2e-3):
    for seed in (0, 1):
      yield {'stage2.optimizer.learning_rate': learning_rate, 'seed': seed}


def study(trial: Any) -> dict[str, Any]:
  """The overrides of an optuna.Trial."""
  return {
    'stage2.optimizer.learning_rate': trial.suggest_float('learning_rate', 1e-4, 2e-3, log=True),
    'stage2.length_weight': trial.suggest_float('length_weight', 0.0, 0.3),
  }
