"""TRL on the CPU: its SFTTrainer, and its GRPOTrainer: whole steps, sampling included, or updates on completions that it is given."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import datasets
import numpy as np
import torch
import transformers
import trl
from protocol import Requests, advantages_of, draw_tokens, reward
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer


def number_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
  """A tokenizer whose words are the numbers of the tokens; its end and padding lie beyond what the model can say."""
  tokenizer = Tokenizer(models.WordLevel({str(i): i for i in range(vocab_size)} | {'<end>': vocab_size}, unk_token='<end>'))
  tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token='<end>', pad_token='<end>', padding_side='left')


class Turns:
  """Stands where a trainer has its data loader: the trainer runs as many steps as a request asks for, and then waits for the next one.

  `batches_of` makes a request's batches, one a step. `losses`, `completions` (their lengths) and `tokens` (how many had a loss) are what
  the steps of this turn report.
  """

  def __init__(self, requests: Requests, model: torch.nn.Module, batches_of: Callable[..., Iterable[Any]]):
    self.requests, self.model, self.batches_of = requests, model, batches_of
    self.first = [parameter.detach().clone() for parameter in model.parameters()]
    self.losses: list[torch.Tensor] = []
    self.completions: list[int] = []
    self.tokens = 0

  def __iter__(self) -> Iterator[Any]:
    while (request := self.requests.next()) is not None:
      request.pop('do')
      self.losses, self.completions, self.tokens = [], [], 0
      start = time.perf_counter()
      yield from self.batches_of(**request)
      seconds = time.perf_counter() - start  # the trainer comes for the next batch: all of the last step is over
      self.requests.reply(
        {
          'seconds': seconds,
          'losses': [float(loss) for loss in self.losses],
          'completions': self.completions,
          'tokens': self.tokens,
          'moved': self.moved(),
        }
      )
    raise SystemExit(0)

  def moved(self) -> float:
    """How far any parameter is from where it began, at most."""
    return max(float((now.detach() - first).abs().max()) for now, first in zip(self.model.parameters(), self.first, strict=True))


def settings_of(folder: str, learning_rate: float, weight_decay: float, clip_norm: float) -> dict[str, Any]:
  """What both trainers are told: one device, the optimizer, and nothing done besides training."""
  return {
    'output_dir': os.path.join(folder, 'trl'),
    'use_cpu': True,
    'bf16': False,
    'gradient_accumulation_steps': 1,
    'gradient_checkpointing': False,
    'optim': 'adamw_torch_fused',
    'learning_rate': learning_rate,
    'lr_scheduler_type': 'constant',
    'weight_decay': weight_decay,
    'max_grad_norm': clip_norm,
    'max_steps': 10**6,
    'logging_steps': 10**6,
    'save_strategy': 'no',
    'report_to': 'none',
    'disable_tqdm': True,
    'dataloader_pin_memory': False,
  }


def fine_tune(requests: Requests, folder: str, model: torch.nn.Module, learning_rate: float, weight_decay: float, clip_norm: float) -> None:
  """Answers requests `train`: one step for each of the batches [steps, rows, length] that a seed draws."""

  def batches_of(seed: list[int], shape: list[int]) -> Iterator[dict[str, torch.Tensor]]:
    for rows in draw_tokens(seed, shape, model.config.vocab_size).astype(np.int64):
      batch = trainer.data_collator([{'input_ids': row} for row in rows])
      turns.tokens += int((batch['labels'][:, 1:] != -100).sum())
      yield batch

  turns = Turns(requests, model, batches_of)

  class Trainer(SFTTrainer):
    def get_train_dataloader(self):
      return turns

    def training_step(self, *arguments, **keywords):
      loss = super().training_step(*arguments, **keywords)
      turns.losses.append(loss)
      return loss

  trainer = Trainer(
    model=model,
    args=SFTConfig(max_length=None, **settings_of(folder, learning_rate, weight_decay, clip_norm)),
    processing_class=number_tokenizer(model.config.vocab_size),
    train_dataset=datasets.Dataset.from_list([{'input_ids': [0, 1]}]),  # never read
  )
  requests.reply({})
  trainer.train()


def reinforce(
  requests: Requests,
  folder: str,
  model: torch.nn.Module,
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
  vocab_size = model.config.vocab_size
  ids = draw_tokens(seed, (prompts, length), vocab_size)
  rows = [{'prompt': ' '.join(map(str, row))} for row in ids.tolist()]
  turns = Turns(requests, model, lambda steps: [[row for row in rows for _ in range(branches)]] * steps)

  def score(completion_ids, **keywords):
    turns.completions += [len(tokens) for tokens in completion_ids]
    turns.tokens += sum(len(tokens) for tokens in completion_ids)
    return [reward(tokens) for tokens in completion_ids]

  class Trainer(GRPOTrainer):
    def get_train_dataloader(self):
      return turns

    def training_step(self, model, inputs, num_items_in_batch):
      loss = super().training_step(model, inputs, num_items_in_batch)
      turns.losses.append(loss)
      return loss

  class TrainerOfGiven(Trainer):
    def _generate_and_score_completions(self, inputs):
      turns.tokens += prompts * branches * new
      return dict(given)

  if old_logps is not None:
    completions = draw_tokens([*seed, 1], (prompts, branches, new), vocab_size)
    flat = lambda array: torch.from_numpy(array.reshape(prompts * branches, -1))
    given = {
      'prompt_ids': flat(np.repeat(ids, branches, axis=0).astype(np.int64)),
      'prompt_mask': torch.ones(prompts * branches, length, dtype=torch.int64),
      'completion_ids': flat(completions.astype(np.int64)),
      'completion_mask': torch.ones(prompts * branches, new, dtype=torch.int64),
      'advantages': torch.from_numpy(advantages_of(completions).reshape(-1)),
      'old_per_token_logps': flat(np.load(old_logps)),
      'num_items_in_batch': torch.tensor(prompts * branches * new),
    }
  config = GRPOConfig(
    per_device_train_batch_size=prompts * branches,
    num_generations=branches,
    max_completion_length=new,
    cache_implementation='static',  # faster here than a cache that grows
    temperature=1.0,
    top_p=1.0,
    top_k=0,
    num_iterations=1,
    steps_per_generation=1,
    beta=0.0,
    epsilon=clip,
    loss_type='grpo',
    **settings_of(folder, learning_rate, weight_decay, clip_norm),
  )
  trainer = (Trainer if old_logps is None else TrainerOfGiven)(
    model=model,
    args=config,
    processing_class=number_tokenizer(vocab_size),
    reward_funcs=score,
    train_dataset=datasets.Dataset.from_list(rows),
  )
  requests.reply({})
  trainer.train()


def main() -> None:
  """Answers `load`, and then `optimize` (fine-tuning) or `learn` (reinforcement learning), which take what comes after them."""
  requests = Requests()
  if (load := requests.next()) is None:
    return
  folder = load['folder']
  torch.set_num_threads(load['threads'])
  model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation='sdpa')
  requests.reply({'versions': {'trl': trl.__version__, 'torch': torch.__version__, 'transformers': transformers.__version__}})
  if (request := requests.next()) is None:
    return
  run = {'optimize': fine_tune, 'learn': reinforce}[request.pop('do')]
  run(requests, folder, model, **request)


if __name__ == '__main__':
  main()
