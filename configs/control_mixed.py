"""Mixed control: guidance acts in kitchens and bathrooms alone. There the policy must learn; elsewhere the decision must stay put.

    python -m mempi_jax.train --config=configs/control_mixed.py

Commit 15605dc, five seeds: passed; acting: easy 0.65 to 0.80 rose to 0.92 to 0.98, hard to 0.97 to 1.00; silent: no mean moved by more than
0.041, the gap grew by 0.008 to 0.059 (mean +0.023).
"""

from pathlib import Path

from ml_collections import ConfigDict

from mempi_jax.config import load_config


def get_config() -> ConfigDict:
  """The null control's training in a world where guidance acts in half of the contexts, and is truthful there."""
  config = load_config(Path(__file__).with_name('control_null.py'))
  config.control.kind = 'mixed'
  config.world.guidance_effect = 'mixed'
  return config
