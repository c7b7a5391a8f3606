"""Tunix on the CPU: its sampler, its trainer, and its GRPO learner: whole steps, sampling included, or updates on given completions."""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from protocol import Requests, advantages_of, draw_tokens, reward
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.qwen2.model import ModelConfig
from tunix.models.qwen2.params import create_model_from_safe_tensors
from tunix.rl.common import TrainExample
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

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


def make_adamw(learning_rate: float, weight_decay: float, clip_norm: float) -> optax.GradientTransformation:
  """AdamW after clipping, in which matrices decay, norms and biases do not."""

  def decays(params: Any) -> Any:
    matrix = lambda path: not any(kind in jax.tree_util.keystr(path) for kind in ('norm', 'bias'))
    return jax.tree_util.tree_map_with_path(lambda path, _: matrix(path), params)

  return optax.chain(
    optax.clip_by_global_norm(clip_norm), optax.adamw(learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay, mask=decays)
  )


def record_losses(trainer: PeftTrainer) -> list[Any]:
  """A list that gets the loss of every step of the trainer."""
  losses, post_process = [], trainer._post_process_train_step

  def record(aux: Any) -> None:
    post_process(aux)
    losses.append(trainer._buffered_train_metrics.losses[-1])

  trainer._post_process_train_step = record
  return losses


def model_input(tokens: jax.Array) -> dict[str, jax.Array]:
  """What the trainer's own loss takes, of whole rows i32[B, T]."""
  mask = jnp.ones(tokens.shape, bool)
  return {
    'input_tokens': tokens,
    'input_mask': mask,
    'positions': build_positions_from_mask(mask),
    'attention_mask': make_causal_attn_mask(mask),
  }


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

  def parameters(self) -> list[np.ndarray]:
    """All parameters, on the host."""
    return jax.device_get(jax.tree.leaves(nnx.state(self.model, nnx.Param)))

  def wait(self) -> None:
    """Until all that was asked of the parameters is done."""
    jax.block_until_ready(jax.tree.leaves(nnx.state(self.model, nnx.Param)))

  def moved(self) -> float:
    """How far any parameter is from where it began, at most."""
    return max(float(np.abs(now - start).max()) for now, start in zip(self.parameters(), self.first, strict=True))

  def optimize(self, learning_rate: float, weight_decay: float, clip_norm: float) -> dict[str, Any]:
    """Makes ready for fine-tuning."""
    optimizer = make_adamw(learning_rate, weight_decay, clip_norm)
    self.trainer = PeftTrainer(self.model, optimizer, TrainingConfig(eval_every_n_steps=10**9)).with_gen_model_input_fn(model_input)
    self.trainer.is_managed_externally = True  # it may be called again
    self.losses = record_losses(self.trainer)
    return {}

  def train(self, seed: list[int], shape: list[int]) -> dict[str, Any]:
    """One step for each of the batches [steps, rows, length] that the seed draws; the seconds of all, the loss of each, tokens with one."""
    self.losses.clear()
    batches = draw_tokens(seed, shape, self.config.vocab_size)
    start = time.perf_counter()
    with self.mesh:
      self.trainer.train(batches)
    self.wait()
    seconds = time.perf_counter() - start
    return {'seconds': seconds, 'losses': [float(loss) for loss in self.losses], 'tokens': len(self.losses) * batches[0, :, 1:].size}

  def make_cluster(self, prompts: int, length: int, new: int, optimizer: optax.GradientTransformation) -> RLCluster:
    """A cluster of this process alone, whose actor is the model."""
    return RLCluster(
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

  def learn(
    self,
    requests: Requests,
    seed: list[int],
    prompts: int,
    length: int,
    branches: int,
    new: int,
    learning_rate: float,
    weight_decay: float,
    clip_norm: float,
    clip: float,
    old_logps: str | None = None,
  ) -> None:
    """Answers requests for so many `steps`: each samples completions of the same prompts, and learns from them.

    With `old_logps`, a file of f32[B, K, N], nothing is sampled: it learns from completions that the seed draws.
    """
    ids = draw_tokens(seed, (prompts, length), self.config.vocab_size)
    texts = np.array([' '.join(map(str, row)) for row in ids.tolist()])
    lengths: list[int] = []

    def score(prompts, completions, **kwargs):
      rows = [[int(word) for word in completion.split()] for completion in completions]
      lengths.extend(len(row) for row in rows)
      return [reward(row) for row in rows]

    self.cluster = self.make_cluster(prompts, length, new, make_adamw(learning_rate, weight_decay, clip_norm))
    self.model = self.cluster.actor_trainer.model
    algorithm = GRPOConfig(num_generations=branches, num_iterations=1, beta=0.0, epsilon=clip)
    learner = GRPOLearner(self.cluster, algorithm, reward_fns=score)
    losses, self.first = record_losses(self.cluster.actor_trainer), self.parameters()
    requests.reply({})

    def report(start: float, tokens: int) -> dict[str, Any]:
      self.wait()
      seconds = time.perf_counter() - start
      numbers = [float(loss) for loss in losses]
      return {'seconds': seconds, 'losses': numbers, 'completions': list(lengths), 'tokens': tokens, 'moved': self.moved()}

    def batches() -> Iterator[dict[str, np.ndarray]]:
      """Hands a batch to the learner, which asks for the next one when it is done with this one."""
      while (request := requests.next()) is not None:
        lengths.clear()
        losses.clear()
        start = time.perf_counter()
        for _ in range(request['steps']):
          yield {'prompts': texts}
        requests.reply(report(start, sum(lengths)))

    if old_logps is None:
      learner.train(batches())
      return
    completions = draw_tokens([*seed, 1], (prompts, branches, new), self.config.vocab_size)
    flat = lambda array: array.reshape(prompts * branches, -1)
    example = TrainExample(
      prompt_ids=flat(np.repeat(ids, branches, axis=0)),
      prompt_mask=np.ones((prompts * branches, length), bool),
      completion_ids=flat(completions),
      completion_mask=np.ones((prompts * branches, new), bool),
      advantages=advantages_of(completions).reshape(-1),
      ref_per_token_logps=None,
      old_per_token_logps=flat(np.load(old_logps)),
    )
    while (request := requests.next()) is not None:
      losses.clear()
      start = time.perf_counter()
      self.cluster.update_actor([example] * request['steps'], None)
      requests.reply(report(start, request['steps'] * int(example.completion_mask.sum())))


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
      case 'optimize':
        requests.reply(peer.optimize(**request))
      case 'train':
        requests.reply(peer.train(**request))
      case 'learn':
        peer.learn(requests, **request)


if __name__ == '__main__':
  main()
