"""Asks a trained guidance policy for guidance (method section 4); prints one JSON object.

    python -m mempi_jax.guide --policy runs/quickstart/stage2/policy --goal "put a mug in shelf." --observation "You are in ..."

    {"decision": "[GENERATE]", "p_generate": 0.93, "guidance": "the mug is usually in the drawer.", "tokens": 9}

`tokens` is the length of the guidance in the policy's tokens, 0 after [ABSTAIN]. The content is decoded greedily.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from mempi_jax import load_policy
from mempi_jax.runtime.workdir import report_errors
from mempi_jax.types import Guidance


def as_record(guidance: Guidance) -> dict[str, Any]:
  """Guidance as the JSON object that the command prints."""
  return {
    'decision': guidance.decision.value,
    'p_generate': guidance.p_generate,
    'guidance': guidance.text,
    'tokens': len(guidance.tokens),
  }


def make_parser() -> argparse.ArgumentParser:
  """The command's arguments."""
  parser = argparse.ArgumentParser(prog='python -m mempi_jax.guide', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.error = lambda message: parser.exit(2, f'error: {message} (--help explains)\n')  # one line, as every other error
  parser.add_argument('--policy', required=True, metavar='FOLDER', help="a policy's folder, or a working folder: its stage 2, or else stage 1")
  parser.add_argument('--goal', required=True, metavar='TEXT', help='the task instruction')
  parser.add_argument('--observation', required=True, metavar='TEXT', help='what the agent sees')
  parser.add_argument('--threshold', type=float, default=0.5, metavar='P', help='generate where P(GENERATE) >= P, 0.5 if not given')
  return parser


@report_errors
def main(arguments: Sequence[str]) -> None:
  """The command."""
  parsed = make_parser().parse_args(arguments)
  if not 0.0 <= parsed.threshold <= 1.0:
    raise ValueError(f'--threshold {parsed.threshold}: expected a probability between 0 and 1')
  policy = load_policy(parsed.policy)
  guidance = policy.guide(goal=parsed.goal, observation=parsed.observation, threshold=parsed.threshold)
  print(json.dumps(as_record(guidance), ensure_ascii=False))


if __name__ == '__main__':
  main(sys.argv[1:])
