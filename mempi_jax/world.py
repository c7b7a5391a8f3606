"""The world of an experiment, put together from its config: games of one household, environments, the frozen agent, the runner.

The entry points (collect, train, evaluate) open the same world and see the same games: which games a split holds is a function of the
household, the split and the seed alone.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import FrozenConfigDict

from mempi_jax.agents.altered import alter_agent
from mempi_jax.agents.lm import LMAgent, check_kinds, checkpoint_hash, load_agent
from mempi_jax.config import ConfigError
from mempi_jax.envs.alfworld.env import make_env
from mempi_jax.envs.alfworld.game import Game
from mempi_jax.envs.alfworld.generator import generate_games
from mempi_jax.evals.isolation import check_splits
from mempi_jax.experience.bank import TRAIN_SPLIT
from mempi_jax.models.hf import Place
from mempi_jax.policy.policy import GuidancePolicy, load_policy
from mempi_jax.policy.template import template_hash
from mempi_jax.policy.tokenizer import Tokenizer
from mempi_jax.rollout.runner import Runner
from mempi_jax.runtime.manifest import make_manifest
from mempi_jax.runtime.rng import host_seed
from mempi_jax.runtime.sharding import make_mesh, shard_state
from mempi_jax.runtime.workdir import AGENT, open_workdir, write_manifest
from mempi_jax.types import Agent, Task

EVAL_SPLITS = ('heldout_games', 'heldout_goals', 'long_horizon')


@dataclasses.dataclass
class World:
  """Games by split and by id, the frozen agent, its tokenizer, and a runner that plays them together."""

  config: FrozenConfigDict
  workdir: Path
  splits: dict[str, list[Game]]
  games: dict[str, Game]
  tokenizer: Tokenizer
  agent: Agent
  runner: Runner

  def tasks(self, games: Sequence[Game], purpose: str, run: int = 0) -> list[Task]:
    """One task a game; the agent's seed is a function of the config's seed, the purpose, the game and `run`."""
    return [Task('alfworld', game.game_id, game.split, host_seed(self.config.seed, purpose, game.game_id, run)) for game in games]

  def load_policy(self, folder: Path, *, batch_size: int | None = None) -> GuidancePolicy:
    """A guidance policy of this run, computed as the config says; `batch_size` where it is asked for other numbers at a time."""
    config = self.config.policy
    size = batch_size or config.batch_size
    return load_policy(
      folder, param_dtype=config.param_dtype, dtype=config.dtype, attention=config.attention, batch_size=size, place=self.place
    )

  @property
  def place(self) -> Place | None:
    """Where a policy's parameters live; None: on one device, until training puts them on the mesh."""
    fsdp = self.config.mesh.fsdp
    return functools.partial(shard_state, make_mesh(fsdp)) if fsdp > 1 else None

  @property
  def trained(self) -> Path:
    """The working folder whose bank, policies and other memories are evaluated: this run's, or that of another one."""
    return Path(self.config.eval.trained_in) if self.config.eval.trained_in else self.workdir

  @property
  def test_games(self) -> list[Game]:
    """The games of every split but train: what no experience may come from."""
    return [game for split, games in self.splits.items() if split != TRAIN_SPLIT for game in games]

  def max_steps(self, task: Task) -> int:
    """Most actions an episode of this task may take."""
    world = self.config.world
    return world.max_steps_long if task.split == 'long_horizon' else world.max_steps


def shipped_agent() -> Path:
  """The folder of the frozen agent that comes with the package (made by configs/alfworld_agent.py)."""
  return Path(str(importlib.resources.files('mempi_jax'))) / 'assets' / 'alfworld_agent'


def make_splits(config: FrozenConfigDict) -> dict[str, list[Game]]:
  """The games of every split; train holds enough for the bank, for stage 2 and for its probes."""
  world = config.world
  num_train = max(config.bank.games, config.stage2.games) + config.stage2.probe_games
  counts = {TRAIN_SPLIT: num_train, **{split: config.eval.games[split] for split in EVAL_SPLITS}}
  return {
    split: generate_games(world.household, split, count, config.seed, small_fraction=world.small_fraction)
    for split, count in counts.items()
    if count
  }


def open_world(config: FrozenConfigDict, workdir: Path, *, remember: bool = False) -> World:
  """Opens the working folder, generates the games and loads the agent; writes the manifest, or checks it.

  Args:
    config: the resolved config of an experiment.
    workdir: where the run lives.
    remember: see `Runner`.

  Raises:
    ConfigError: a field has no such value. IsolationError: a test game, or its goal, is among the train games. FileNotFoundError: no agent checkpoint where the config says. ValueError: the folder holds
      another run. OSError: it cannot be written.
  """
  try:
    check_kinds(config.agent.weights, config.agent.cache)
  except ValueError as error:
    raise ConfigError(str(error)) from None
  workdir = open_workdir(workdir, config, Path(config.agent.path) if config.agent.path else shipped_agent())
  splits = make_splits(config)
  check_splits(splits)
  games = {game.game_id: game for part in splits.values() for game in part}
  lm = _load_lm(config, workdir, config.agent.weights)
  try:
    agent = alter_agent(lm, config.world.guidance_effect, lambda task_id: (games[task_id].room or '', games[task_id].hidden['guidance']))
    new_env = functools.partial(make_env, config.world.backend, games)
  except ValueError as error:
    raise ConfigError(str(error)) from None
  print(f'agent: {lm.engine.describe()}')  # or MemoryError, before anything is played
  world = World(config, workdir, splits, games, lm.tokenizer, agent, None)
  write_manifest(workdir, _manifest(world))
  # A real engine is a process that is waited for; the simulator answers at once.
  workers = config.agent.batch_size if config.world.backend == 'engine' else 0
  world.runner = Runner(new_env, agent, world.max_steps, config.agent.batch_size, workers=workers, remember=remember)
  return world


def agent_lm(world: World) -> LMAgent:
  """The language model itself, behind whatever the control worlds put before it, with weights that a policy can start from: not int8."""
  if world.config.agent.weights == 'int8':
    return _load_lm(world.config, world.workdir, 'float32')
  return getattr(world.agent, 'agent', world.agent)


def _load_lm(config: FrozenConfigDict, workdir: Path, weights: str) -> LMAgent:
  """The agent in the working folder."""
  return load_agent(
    workdir / AGENT,
    context_length=config.agent.context_length,
    max_action_tokens=config.agent.max_action_tokens,
    temperature=config.agent.temperature,
    batch_size=config.agent.batch_size,
    weights=weights,
    cache_kind=config.agent.cache,
  )


def _manifest(world: World) -> dict[str, Any]:
  config = world.config
  manifest = make_manifest(
    config,
    prompt_template_hash=template_hash(config.policy.template),
    agent_hash=checkpoint_hash(world.workdir / AGENT),
    history_length=config.world.max_steps,
    context_length=config.agent.context_length,
    step_cap=config.world.max_steps,
    split_sizes={split: len(games) for split, games in world.splits.items()},
    sampler={
      'agent_temperature': config.agent.temperature,
      'agent_weights': config.agent.weights,
      'agent_cache': config.agent.cache,
      'policy_temperature': config.eval.temperature,
      'threshold': config.eval.threshold,
    },
  )
  games = {split: games_hash(part) for split, part in world.splits.items()}
  return manifest | {'household': config.world.household, 'seed': config.seed, 'games': games, 'backend': config.world.backend}


def games_hash(games: Sequence[Game]) -> str:
  """A hash of the games' ids and problems: two runs on the same hash played the same games."""
  digest = hashlib.sha256()
  for game in games:
    digest.update(f'{game.game_id}\n{game.goal}\n{game.problem}\n'.encode())
  return digest.hexdigest()[:16]
