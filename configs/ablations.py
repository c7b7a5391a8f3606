"""Ablations of stage 2 on one household: each run differs from configs/alfworld.py in what its name says.

    python -m mempi_jax.sweep --config=configs/ablations.py --workdir=runs/ablations --jobs=2

The table is in runs/ablations/variants/, each ablation paired with the full method; `--tables` makes it from what is finished so far.

One alone: `python -m mempi_jax.train --config=configs/ablations.py:ablation=paper_gate --workdir=runs/paper_gate`. No stage 2 is the
row `mempi_stage1` of every run. Runs take over from the full one what they have in common with it.

Commit b94aae5, household maple, 800 held-out games, against the full one (0.640): no stage 1 -0.217 and sign signal -0.024 are worse (p by
Holm <= 0.05), the paper's gate -0.021 just so (p 0.050); for the others no difference is shown. The README has the table.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mempi_jax.config import ConfigError, load_config, override

PLAIN = {'stage2.decision_loss': 'policy_gradient', 'stage2.replay': 0, 'stage2.updates': 90}  # as many steps as with two replays
ABLATIONS = {
  'full': {},
  'no_structured_group': {'stage2.structured': False, **PLAIN},
  'paper_gate': {'stage2.content_gate': 'delta'},  # ours is open
  'effect_gate': {'stage2.content_gate': 'effect'},
  'coupled_advantages': {'stage2.coupled': True},
  'sign_signal': {'stage2.signal': 'sign'},
  'std_signal': {'stage2.signal': 'group_std'},
  'raw_signal': {'stage2.signal': 'raw'},  # the paper's
  'ungated_length': {'stage2.length_form': 'additive'},
  'no_length': {'stage2.length_weight': 0.0},
  'no_stage1': {'stage1.duration': '0 steps'},
  'one_abstain_outcome': {'stage2.abstain_outcomes': 1},
  'branches_2': {'stage2.branches': 2},
  'branches_8': {'stage2.branches': 8},
}


def get_config(ablation: str = 'full') -> ConfigDict:
  """configs/alfworld.py with one ablation of `ABLATIONS`."""
  if ablation not in ABLATIONS:
    raise ConfigError(f'unknown ablation {ablation!r}: expected one of {", ".join(ABLATIONS)}')
  config = load_config(Path(__file__).with_name('alfworld.py'))
  config.eval.memories, config.eval.difficulty_runs = ('none', 'mempi_stage1', 'mempi'), 2
  return override(config, ABLATIONS[ablation])


def sweep() -> Iterator[dict[str, Any]]:
  """The overrides of each run, two seeds an ablation."""
  for name, overrides in ABLATIONS.items():  # the full one first: the others take over what they have in common with it
    for seed in (0, 1):
      yield {'variant': name, **overrides, 'seed': seed}
