"""The null control's foil: a sign-style decision signal on the paper's plain group (one abstain outcome). It must FAIL (exit status 1).

    python -m mempi_jax.train --config=configs/control_null_sign.py

sign(Δ) is biased wherever the two branches have unequally many outcomes: with one abstain outcome against K it pushes easy contexts to
abstain and hard ones to generate although guidance does nothing. That it fails proves that the control can see.

Seed 0 (commit 6668515): FAILED as it must; easy contexts 0.754 to 0.358, hard ones 0.943 to 0.845.
"""

from pathlib import Path

from ml_collections import ConfigDict

from mempi_jax.config import load_config


def get_config() -> ConfigDict:
  """The null control with the signal that must fail it."""
  config = load_config(Path(__file__).with_name('control_null.py'))
  config.stage2.signal = 'sign'
  config.stage2.abstain_outcomes = 1
  return config
