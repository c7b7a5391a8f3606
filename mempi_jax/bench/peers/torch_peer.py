"""PyTorch and transformers on the CPU, as fast as their own switches make them: training, and generation."""

from __future__ import annotations

import time
import traceback
from typing import Any

import numpy as np
import torch
import transformers
from protocol import draw_tokens, serve
from transformers import AutoModelForCausalLM, GenerationConfig

WARMUP_CALLS = 3

loaded: dict[Any, Any] = {}


def load(folder: str, threads: int) -> dict[str, Any]:
  """A model in Hugging Face format, in float32; returns the versions."""
  torch.set_num_threads(threads)
  loaded['model'] = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation='sdpa')
  loaded['plain'] = loaded['model'].forward
  loaded['compiled'] = torch.compile(loaded['plain'], dynamic=False)  # a program for each shape
  return {'versions': {'torch': torch.__version__, 'transformers': transformers.__version__}}


def optimize(compiled: bool, learning_rate: float, weight_decay: float, clip_norm: float) -> dict[str, Any]:
  """Makes ready for training: AdamW in which matrices decay, norms and biases do not."""
  model = loaded['model'].train()
  model.forward = loaded['compiled'] if compiled else loaded['plain']
  parameters = list(model.parameters())
  groups = [
    {'params': [parameter for parameter in parameters if parameter.ndim >= 2], 'weight_decay': weight_decay},
    {'params': [parameter for parameter in parameters if parameter.ndim < 2], 'weight_decay': 0.0},
  ]
  loaded['optimizer'] = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)
  loaded['clip_norm'] = clip_norm
  return {}


def train(seed: list[int], shape: list[int]) -> dict[str, Any]:
  """One training step for each of the batches [steps, rows, length] that the seed draws; the seconds of all, the loss of each, how many tokens had one."""
  model, optimizer = loaded['model'], loaded['optimizer']
  batches = draw_tokens(seed, shape, model.config.vocab_size)
  losses, targets, start = [], 0, time.perf_counter()
  for batch in batches:
    tokens = torch.from_numpy(batch.astype(np.int64))
    loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), loaded['clip_norm'])
    optimizer.step()
    losses.append(loss.detach())
    targets += tokens[:, 1:].numel()
  return {'seconds': time.perf_counter() - start, 'losses': [float(loss) for loss in losses], 'tokens': targets}


# How transformers may generate: settings of its cache, and whether the model is compiled. None is the fastest for every number of rows.
WAYS = {
  'dynamic cache': ({}, False),
  'static cache': ({'cache_implementation': 'static', 'disable_compile': True}, False),
  'static cache, compiled': ({'cache_implementation': 'static', 'disable_compile': True}, True),
}


def warm_up(shape: list[int], new: int) -> dict[str, Any]:
  """Tries the ways for prompts [rows, length], and keeps the fastest one for `generate`."""
  seconds = {}
  for way in WAYS:
    try:
      seconds[way] = min(generate([0, call], shape, new, way)['seconds'] for call in range(WARMUP_CALLS))
    except Exception:  # no compiler, for example
      if way == next(iter(WAYS)):
        raise
      traceback.print_exc()
  loaded['way', *shape] = min(seconds, key=seconds.get)
  return {'way': loaded['way', *shape], 'seconds': seconds}


def generate(seed: list[int], shape: list[int], new: int, way: str = '') -> dict[str, Any]:
  """Samples `new` tokens after each of the prompts [rows, length] that the seed draws; the seconds, and how many tokens came out."""
  cache, compiled = WAYS[way or loaded['way', *shape]]
  model = loaded['model'].eval()
  model.forward = loaded['compiled'] if compiled else loaded['plain']
  prompts = torch.from_numpy(draw_tokens(seed, shape, model.config.vocab_size).astype(np.int64))
  # No end-of-sequence token: every row is sampled to its end, and nothing has to be forbidden for it.
  config = GenerationConfig(
    max_new_tokens=new, do_sample=True, temperature=1.0, top_p=1.0, top_k=0, eos_token_id=None, pad_token_id=0, **cache
  )
  torch.manual_seed(seed[-1])
  start = time.perf_counter()
  with torch.inference_mode():
    rows = model.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts), generation_config=config)
  seconds = time.perf_counter() - start
  return {'seconds': seconds, 'new_tokens': (rows.shape[1] - prompts.shape[1]) * rows.shape[0]}


if __name__ == '__main__':
  serve({'load': load, 'optimize': optimize, 'train': train, 'warm_up': warm_up, 'generate': generate})
