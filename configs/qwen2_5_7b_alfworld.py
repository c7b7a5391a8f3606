"""Mem-π on an ALFWorld household with the paper's guidance policy, Qwen2.5-7B-Instruct, and a LoRA adapter.

    python -m mempi_jax.train --config=configs/qwen2_5_7b_alfworld.py:mesh=gpu-8 --workdir=runs/qwen2_5_7b
    python -m mempi_jax.evaluate --config=configs/qwen2_5_7b_alfworld.py:mesh=gpu-8 --workdir=runs/qwen2_5_7b

Meshes: gpu-8 (eight of 80 GB), v5e-16, v5p-8, v5p-16. The frozen weights are split over all devices, bfloat16: 15.2 GB in all; the adapter, float32,
is what training changes and what checkpoints hold. Weights: the hub's, or a folder: --config.policy.init=FOLDER.
Not yet run. Its shapes are checked by tests/test_pretrained.py, and its plan (commit e366384, stage 2, GB a device, with the sampler's copy, the reference and
the cache): 13.7 on v5p-16 and 11.6 on v5e-16 by the TPU's own compiler, 18.8 on eight devices by the processor's; every parameter on v5p-16 39.7.

    python -m mempi_jax.bench memory --config=configs/qwen2_5_7b_alfworld.py:mesh=v5p-16 --topology=v5p:2x2x2 --device-gb=95      # needs libtpu
"""

from pathlib import Path

from ml_collections import ConfigDict

from mempi_jax.config import ConfigError, load_config

DEVICES = {'gpu-8': 8, 'v5e-16': 16, 'v5p-8': 4, 'v5p-16': 8}  # a v5p is named by its cores, two a device


def get_config(mesh: str = 'gpu-8', full: bool = False) -> ConfigDict:
  """configs/alfworld.py with the 7B chat model. `full` trains every parameter instead of an adapter, with float32 master weights."""
  if mesh not in DEVICES:
    raise ConfigError(f'mesh {mesh!r} of configs/qwen2_5_7b_alfworld.py: expected one of {", ".join(DEVICES)}')
  config = load_config(Path(__file__).with_name('alfworld.py'))
  config.policy.init = 'Qwen/Qwen2.5-7B-Instruct'
  config.policy.model = 'qwen2_5_7b'
  config.policy.template = 'chat'
  config.policy.max_prompt = 448
  config.policy.max_content = 24
  config.policy.param_dtype = 'float32' if full else 'bfloat16'
  config.policy.dtype = 'bfloat16'
  config.policy.remat = 'full'
  config.policy.scan_layers = True
  config.policy.lora.rank = 0 if full else 16
  config.stage1.optimizer.learning_rate = 1e-5 if full else 2e-4
  config.stage2.optimizer.learning_rate = 1e-6 if full else 2e-5
  config.mesh.fsdp = DEVICES[mesh]
  return config
