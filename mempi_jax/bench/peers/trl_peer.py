"""TRL's GRPOTrainer on the CPU: whole steps of reinforcement learning, sampling included."""

from __future__ import annotations

import time

import datasets
import torch
import transformers
import trl
from protocol import Requests, draw_tokens, reward
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


def number_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
  """A tokenizer whose words are the numbers of the tokens; its end and padding lie beyond what the model can say."""
  tokenizer = Tokenizer(models.WordLevel({str(i): i for i in range(vocab_size)} | {'<end>': vocab_size}, unk_token='<end>'))
  tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token='<end>', pad_token='<end>', padding_side='left')


class Turns(TrainerCallback):
  """Lets the trainer run as many steps as a request asks for, and then wait for the next one."""

  def __init__(self, requests: Requests, model: torch.nn.Module):
    self.requests, self.model, self.left, self.running, self.started = requests, model, 0, False, 0.0
    self.first = [parameter.detach().clone() for parameter in model.parameters()]
    self.lengths: list[int] = []  # of the completions of this turn

  def moved(self) -> float:
    """How far any parameter is from where it began, at most."""
    return max(float((now.detach() - first).abs().max()) for now, first in zip(self.model.parameters(), self.first, strict=True))

  def on_step_begin(self, args, state, control, **kwargs):
    if self.left == 0:
      if self.running:  # what a step does at its end, the fetching of the next batch included, is over
        self.requests.reply({'seconds': time.perf_counter() - self.started, 'completions': self.lengths, 'moved': self.moved()})
      request = self.requests.next()
      if request is None:
        raise SystemExit(0)
      self.left, self.running, self.lengths = request['steps'], True, []
      self.started = time.perf_counter()
    self.left -= 1


def main() -> None:
  """Answers `load` and `learn`, which come once, and then requests `step` until there are no more."""
  requests = Requests()
  load = requests.next()
  if load is None:
    return
  torch.set_num_threads(load['threads'])
  model = AutoModelForCausalLM.from_pretrained(load['folder'], dtype=torch.float32, attn_implementation='sdpa')
  requests.reply({'versions': {'trl': trl.__version__, 'torch': torch.__version__, 'transformers': transformers.__version__}})
  settings = requests.next()
  if settings is None:
    return
  prompts = draw_tokens(settings['seed'], (settings['prompts'], settings['length']), model.config.vocab_size)
  turns = Turns(requests, model)

  def score(completion_ids, **kwargs):
    turns.lengths += [len(ids) for ids in completion_ids]
    return [reward(ids) for ids in completion_ids]

  config = GRPOConfig(
    output_dir=settings['output'],
    use_cpu=True,
    bf16=False,
    per_device_train_batch_size=settings['prompts'] * settings['branches'],
    num_generations=settings['branches'],
    max_completion_length=settings['new'],
    cache_implementation='static',  # faster here than a cache that grows
    temperature=1.0,
    top_p=1.0,
    top_k=0,
    num_iterations=1,
    steps_per_generation=1,
    gradient_accumulation_steps=1,
    beta=0.0,
    epsilon=settings['clip'],
    loss_type='grpo',
    gradient_checkpointing=False,
    optim='adamw_torch_fused',
    learning_rate=settings['learning_rate'],
    lr_scheduler_type='constant',
    weight_decay=settings['weight_decay'],
    max_grad_norm=settings['clip_norm'],
    max_steps=10**6,
    logging_steps=10**6,
    save_strategy='no',
    report_to='none',
    disable_tqdm=True,
    dataloader_pin_memory=False,
  )
  trainer = GRPOTrainer(
    model=model,
    args=config,
    processing_class=number_tokenizer(model.config.vocab_size),
    reward_funcs=score,
    train_dataset=datasets.Dataset.from_list([{'prompt': ' '.join(map(str, row))} for row in prompts.tolist()]),
    callbacks=[turns],
  )
  requests.reply({})
  trainer.train()


if __name__ == '__main__':
  main()
