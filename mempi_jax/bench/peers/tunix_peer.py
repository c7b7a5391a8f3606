"""Tunix on the CPU: its sampler, and whole steps of its GRPO learner, sampling included."""

from __future__ import annotations

import importlib.metadata
import json
import time
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from protocol import Requests, draw_tokens, reward
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.qwen2.model import ModelConfig
from tunix.models.qwen2.params import create_model_from_safe_tensors
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig

WARMUP_CALLS = 2
NEVER = -1  # an id that no token has: nothing is padding, nothing ends a row


class Numbers:
  """A tokenizer whose words are the numbers of the tokens."""

  def encode(self, text: str, **kwargs) -> list[int]:
    return [int(word) for word in text.split()]

  def decode(self, ids: list[int], **kwargs) -> str:
    return ' '.join(map(str, ids))

  def bos_id(self) -> int:
    return 0  # falsy: none is put before a prompt

  def eos_id(self) -> int:
    return NEVER

  def pad_id(self) -> int:
    return NEVER


class TunixPeer:
  """A Qwen2-type model in Tunix, and what was made of it."""

  def __init__(self):
    self.mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ('fsdp', 'tp'))
    self.samplers: dict[int, Sampler] = {}

  def load(self, folder: str, threads: int) -> dict[str, Any]:
    """A model of the Qwen2 family in Hugging Face format, in float32; returns the versions."""
    shape = json.loads((Path(folder) / 'config.json').read_text())
    if shape['model_type'] != 'qwen2':
      raise ValueError(f'expected a qwen2 model, found {shape["model_type"]}')
    self.config = ModelConfig(
      num_layers=shape['num_hidden_layers'],
      vocab_size=shape['vocab_size'],
      embed_dim=shape['hidden_size'],
      hidden_dim=shape['intermediate_size'],
      num_heads=shape['num_attention_heads'],
      head_dim=shape['head_dim'],
      num_kv_heads=shape['num_key_value_heads'],
      rope_theta=shape['rope_theta'],
      norm_eps=shape['rms_norm_eps'],
      use_tied_embedding=shape['tie_word_embeddings'],
    )
    self.model = create_model_from_safe_tensors(folder, self.config, self.mesh, dtype=jnp.float32)
    return {
      'versions': {'google-tunix': importlib.metadata.version('google-tunix'), 'tunix jax': jax.__version__, 'tunix flax': flax.__version__}
    }

  def cache_config(self, size: int) -> CacheConfig:
    return CacheConfig(
      cache_size=size, num_layers=self.config.num_layers, num_kv_heads=self.config.num_kv_heads, head_dim=self.config.head_dim
    )

  def warm_up(self, shape: list[int], new: int) -> dict[str, Any]:
    """Compiles what prompts [rows, length] need; there is nothing to choose."""
    for call in range(WARMUP_CALLS):
      self.generate([0, call], shape, new)
    return {'way': ''}

  def generate(self, seed: list[int], shape: list[int], new: int) -> dict[str, Any]:
    """Samples `new` tokens after each of the prompts [rows, length] that the seed draws; the seconds, and how many tokens came out."""
    size = shape[1] + new
    if size not in self.samplers:
      self.samplers[size] = Sampler(self.model, Numbers(), self.cache_config(size))
    prompts = [' '.join(map(str, row)) for row in draw_tokens(seed, shape, self.config.vocab_size).tolist()]
    start = time.perf_counter()
    with self.mesh:
      output = self.samplers[size](
        prompts, max_generation_steps=new, max_prompt_length=shape[1], temperature=1.0, top_p=1.0, top_k=None, seed=seed[-1]
      )
    return {'seconds': time.perf_counter() - start, 'new_tokens': sum(len(tokens) for tokens in output.tokens)}

  def learn(self, requests: Requests, seed, prompts, length, branches, new, clip, learning_rate, weight_decay, clip_norm, output) -> None:
    """Runs the learner, as many steps at a time as requests `step` ask for."""
    ids = draw_tokens(seed, (prompts, length), self.config.vocab_size)
    texts = np.array([' '.join(map(str, row)) for row in ids.tolist()])
    lengths: list[int] = []

    def score(prompts, completions, **kwargs):
      rows = [[int(word) for word in completion.split()] for completion in completions]
      lengths.extend(len(row) for row in rows)
      return [reward(row) for row in rows]

    parameters = lambda: jax.device_get(jax.tree.leaves(nnx.state(self.cluster.actor_trainer.model, nnx.Param)))

    def moved():
      return max(float(np.abs(now - start).max()) for now, start in zip(parameters(), first, strict=True))

    def batches():
      """Hands a batch to the learner, which asks for the next one when it is done with this one."""
      while (request := requests.next()) is not None:
        lengths.clear()
        start = time.perf_counter()
        for _ in range(request['steps']):
          yield {'prompts': texts}
        jax.block_until_ready(jax.tree.leaves(nnx.state(self.cluster.actor_trainer.model, nnx.Param)))
        seconds = time.perf_counter() - start
        requests.reply({'seconds': seconds, 'completions': list(lengths), 'moved': moved()})

    optimizer = optax.chain(
      optax.clip_by_global_norm(clip_norm), optax.adamw(learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay)
    )
    self.cluster = RLCluster(
      actor=self.model,
      tokenizer=Numbers(),
      cluster_config=ClusterConfig(
        role_to_mesh={Role.ACTOR: self.mesh, Role.REFERENCE: self.mesh, Role.ROLLOUT: self.mesh},
        rollout_engine='vanilla',
        training_config=RLTrainingConfig(
          actor_optimizer=optimizer, eval_every_n_steps=10**9, max_steps=10**9, mini_batch_size=prompts, train_micro_batch_size=prompts
        ),
        rollout_config=RolloutConfig(
          max_tokens_to_generate=new, max_prompt_length=length, kv_cache_size=length + new, temperature=1.0, top_p=1.0, top_k=None
        ),
      ),
    )
    learner = GRPOLearner(
      self.cluster,
      GRPOConfig(num_generations=branches, num_iterations=1, beta=0.0, epsilon=clip),
      reward_fns=score,
    )
    first = parameters()
    requests.reply({})
    learner.train(batches())


def main() -> None:
  """Answers requests; `learn` leads into the learner, which takes the rest."""
  requests, peer = Requests(), TunixPeer()
  while (request := requests.next()) is not None:
    match request.pop('do'):
      case 'load':
        requests.reply(peer.load(**request))
      case 'warm_up':
        requests.reply(peer.warm_up(**request))
      case 'generate':
        requests.reply(peer.generate(**request))
      case 'learn':
        peer.learn(requests, **request)


if __name__ == '__main__':
  main()
