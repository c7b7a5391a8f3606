"""Exports a guidance policy in the format of Hugging Face: for transformers, vLLM, SGLang, and llama.cpp's converter.

    python -m mempi_jax.export --policy runs/quickstart/stage2/policy --out /tmp/policy
    python -m mempi_jax.export --policy runs/qwen2_5_7b --out /tmp/adapter                  the LoRA adapter, in PEFT's format
    python -m mempi_jax.export --policy runs/qwen2_5_7b --out /tmp/policy --merge_lora      adapter and frozen model as one

The folder holds the tokenizer, with its chat template, and policy.json: `mempi_jax.load_policy` reads it too. Prints one line a file, and
says which tokens were added and whether the embedding grew for them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mempi_jax import load_policy
from mempi_jax.runtime.workdir import report_errors

if TYPE_CHECKING:
  from mempi_jax.policy.policy import GuidancePolicy


def make_parser() -> argparse.ArgumentParser:
  """The command's arguments."""
  parser = argparse.ArgumentParser(prog='python -m mempi_jax.export', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--policy', required=True, metavar='FOLDER', help="a policy's folder, or a working folder: its stage 2, or else stage 1")
  parser.add_argument('--out', required=True, metavar='FOLDER', help='a new or empty folder')
  parser.add_argument('--merge_lora', action='store_true', help='write an adapted policy as a whole model')
  parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16', 'float16'), help='of the weights, float32 if not given')
  return parser


def vocabulary_notes(policy: GuidancePolicy) -> list[str]:
  """What a user of the exported model must know of its tokens."""
  tokenizer, config = policy.tokenizer, policy.config
  notes = [f'[GENERATE] is token {policy.generate_id}, [ABSTAIN] is token {policy.abstain_id}']
  if policy.grown:
    notes.append(f'the embedding grew by {policy.grown} rows, to {config.vocab_size}: the base model had none to spare')
  elif config.vocab_size > tokenizer.vocab_size:
    notes.append(f'the embedding has {config.vocab_size} rows for {tokenizer.vocab_size} tokens')
  return notes


@report_errors
def main(arguments: Sequence[str]) -> None:
  """The command."""
  parsed = make_parser().parse_args(arguments)
  out = Path(parsed.out)
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise ValueError(f'--out {out} is there and not empty: an export goes to a new folder')
  policy = load_policy(parsed.policy)
  if parsed.merge_lora and policy.adaptation is None:
    raise ValueError(f'--merge_lora: the policy at {parsed.policy} has no LoRA adapter')
  policy.save(out, merge=parsed.merge_lora, dtype=parsed.dtype)
  for path in sorted(out.iterdir()):
    print(f'{path.stat().st_size:>15,} bytes  {path.name}')
  for note in vocabulary_notes(policy):
    print(note)
  print(f'exported: {out}')


if __name__ == '__main__':
  main(sys.argv[1:])
