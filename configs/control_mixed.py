"""Mixed control: guidance acts in kitchens and bathrooms alone. There the policy must learn; elsewhere the decision must stay put.

    python -m mempi_jax.train --config=configs/control_mixed.py

Seeds 0, 1 (commit 5d2e979, but 24 updates): passed; acting: easy 0.747 to 0.977 and 0.801 to 0.953, hard 0.948 to 0.998 and 0.939 to 0.995;
silent: easy 0.759 to 0.753 and 0.680 to 0.622, hard 0.939 to 0.956 and 0.905 to 0.875.
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
