"""Mixed control: guidance acts in kitchens and bathrooms alone. There the policy must learn; elsewhere the decision must stay put.

    python -m mempi_jax.train --config=configs/control_mixed.py
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
