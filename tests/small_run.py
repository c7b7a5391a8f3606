"""The quick start on few games: what tests run the real commands with."""

from pathlib import Path

CONFIG = Path(__file__).parents[1] / 'configs' / 'quickstart.py'
SMALL = {
  'world.household': 'test-0',
  'agent.batch_size': 32,
  'bank.games': 48,
  'stage1.duration': '6 steps',
  'stage1.batch_size': 8,
  'stage1.evaluate_every': 3,
  'stage1.checkpoint_every': 3,
  'stage1.optimizer.warmup': '1 steps',
  'stage2.updates': 3,
  'stage2.replay': 1,
  'stage2.games': 16,
  'stage2.groups': 8,
  'stage2.branches': 2,
  'stage2.abstain_outcomes': 2,
  'stage2.probe_games': 9,
  'stage2.probe_runs': 1,
  'stage2.evaluate_every': 2,
  'stage2.checkpoint_every': 1,
  'stage2.optimizer.warmup': '0 steps',
  'eval.games.heldout_games': 16,
  'eval.games.heldout_goals': 4,
  'eval.games.long_horizon': 4,
  'eval.difficulty_runs': 1,
  'eval.replay_episodes': 0,
}


def arguments(workdir: Path, **overrides) -> list[str]:
  fields = SMALL | {name.replace('__', '.'): value for name, value in overrides.items()}
  return [f'--config={CONFIG}', f'--workdir={workdir}', *(f'--config.{name}={value}' for name, value in fields.items())]
