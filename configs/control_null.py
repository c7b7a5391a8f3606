"""Null control: guidance is stripped from the agent's prompt, so it provably cannot act; the decision must stay where stage 1 left it.

    python -m mempi_jax.train --config=configs/control_null.py

The agent samples, every branch with a seed of its own, so outcomes vary and Δ is noise. There is no length term: it would be an effect.
The control can see: its foil, configs/control_null_sign.py, must fail.

Commit 9c430aa, five seeds: passed; no mean P(GENERATE) moved by more than 0.026, the gap grew by at most 0.005 (mean -0.001).
"""

from pathlib import Path

from ml_collections import ConfigDict

from mempi_jax.config import load_config


def get_config() -> ConfigDict:
  """The training of configs/alfworld.py in a world where guidance does nothing, over five seeds."""
  config = load_config(Path(__file__).with_name('alfworld.py'))
  config.control.kind = 'null'
  config.control.seeds = (0, 1, 2, 3, 4)
  config.world.guidance_effect = 'null'
  config.bank.games = 400
  config.stage2.branch_seeds = 'independent'
  config.stage2.length_weight = 0.0
  config.stage2.content_weight = 0.0  # contents cannot matter here
  return config
