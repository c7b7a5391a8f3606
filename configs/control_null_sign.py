"""The null control's foil: a sign-style decision signal on the paper's plain group (one abstain outcome). It must FAIL (exit status 1).

    python -m mempi_jax.train --config=configs/control_null_sign.py

sign(Δ) is biased wherever the two branches have unequally many outcomes: with one abstain outcome against K it pushes easy contexts to
abstain and hard ones to generate although guidance does nothing. That it fails proves that the control can see.

Commit 15605dc, five seeds: FAILED as it must, each of them; easy contexts fell by 0.13 to 0.54, the gap grew by 0.375 ± 0.238.
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
