"""Mem-π on an ALFWorld household with SmolLM2-135M-Instruct as the guidance policy, for one GPU.

    python -m mempi_jax.train --config=configs/smollm2_135m_alfworld.py --workdir=runs/smollm2
    python -m mempi_jax.evaluate --config=configs/smollm2_135m_alfworld.py --workdir=runs/smollm2

Weights: the hub's, or a folder: --config.policy.init=FOLDER. Not yet run to its end; its shapes are checked by tests/test_pretrained.py.
"""

from pathlib import Path

from ml_collections import ConfigDict

from mempi_jax.config import load_config


def get_config() -> ConfigDict:
  """configs/alfworld.py with a pretrained chat model, all of whose parameters are trained."""
  config = load_config(Path(__file__).with_name('alfworld.py'))
  config.policy.init = 'HuggingFaceTB/SmolLM2-135M-Instruct'
  config.policy.model = 'smollm2_135m'
  config.policy.template = 'chat'
  config.policy.max_prompt = 448
  config.policy.max_content = 24
  config.policy.dtype = 'bfloat16'  # float32 master weights
  config.policy.remat = 'dots'
  config.stage1.optimizer.learning_rate = 1e-4
  config.stage2.optimizer.learning_rate = 2e-5
  return config
