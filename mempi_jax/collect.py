"""Runs the frozen agent over the train games of an environment and distils the experience bank.

    python -m mempi_jax.collect --config=configs/quickstart.py --workdir=runs/quickstart
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mempi_jax.config import ConfigError, parse_command_line
from mempi_jax.experience.bank import BankEntry
from mempi_jax.experience.collecting import collect_bank
from mempi_jax.experience.llm_distill import make_distiller
from mempi_jax.policy.template import content_tokens
from mempi_jax.runtime.workdir import join_hosts, report_errors
from mempi_jax.world import TRAIN_SPLIT, World, open_world


def collect(world: World) -> list[BankEntry]:
  """The bank of the world's working folder, made if it is not there yet."""
  train = world.splits[TRAIN_SPLIT][: world.config.bank.games]
  config, folder = world.config.bank, world.workdir / 'bank'
  fits = lambda text: len(content_tokens(world.tokenizer, text)) <= world.config.policy.max_content
  try:
    distiller = make_distiller(config.distill, world.suite.distill, folder, contrast=world.suite.contrast, fits=fits, seed=world.config.seed)
  except ValueError as error:
    raise ConfigError(f'bank.distill: {error}') from None
  entries = collect_bank(
    world.runner, world.tasks(train, 'bank'), folder, {game.task_id for game in world.test_games},
    distill=distiller, silent=config.silent, dedup=config.dedup, corruption=config.corruption, pattern=world.suite.hint_place, seed=world.config.seed,
  )  # fmt: skip
  world.check_experience('the experience bank', entries)
  return entries


@report_errors
def main(arguments: Sequence[str]) -> None:
  """The command."""
  parsed, config = parse_command_line(argparse.ArgumentParser(description=__doc__), arguments)
  join_hosts(parsed, config)
  with open_world(config, parsed.workdir, allow=parsed.allow) as world:
    entries = collect(world)
  print(f'{world.workdir / "bank"}: {len(entries)} entries, {sum(entry.solved_alone for entry in entries)} of games that the agent solved alone')


if __name__ == '__main__':
  main(sys.argv[1:])
