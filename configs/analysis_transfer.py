"""Cross-agent transfer: the memories of a finished run before an agent that their training never saw.

    python -m mempi_jax.clone --config=configs/alfworld_agent.py --workdir=runs/other_agent --config.seed=1
    python -m mempi_jax.evaluate --config=configs/analysis_transfer.py --config.agent.path=runs/other_agent --config.eval.trained_in=runs/alfworld

The bank was made with the first agent's episodes, and stage 2's rewards were its successes. Making the other agent takes 11 to 13 minutes.

Commit 3b7c8ed, maple, seed 0, 400 held-out games: agent alone 0.487, oracle 0.880, RAG 0.680, stage 1 0.730, Mem-π 0.740 (first agent:
0.383, 0.825, 0.575, 0.637, 0.625).
"""

from pathlib import Path

from ml_collections import ConfigDict, config_dict

from mempi_jax.config import load_config


def get_config() -> ConfigDict:
  """configs/alfworld.py, with another agent and another run's memories."""
  config = load_config(Path(__file__).with_name('alfworld.py'))
  config.unlock()
  config.agent.path = config_dict.required_placeholder(str)
  config.eval.trained_in = config_dict.required_placeholder(str)
  return config
