"""The world of an experiment, put together from its config: the tasks of an environment, the frozen agent, and a runner that plays them.

The entry points (collect, train, evaluate, play) open the same world and see the same tasks: which ones a split holds is decided by the
config alone. What is named in a config, `world.env`, `agent.kind` and each of `eval.memories`, may be a module of the user's own.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.resources
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import FrozenConfigDict

from mempi_jax.agents.altered import alter_agent
from mempi_jax.agents.chat import make_chat_agent
from mempi_jax.agents.formats import FORMATS, make_format_agent
from mempi_jax.agents.lm import LMAgent, check_kinds, checkpoint_hash, load_agent
from mempi_jax.agents.scripted import ScriptedAgent
from mempi_jax.config import ConfigError, near
from mempi_jax.envs.suite import Suite, TaskSpec, find_function, find_suite
from mempi_jax.evals.isolation import check_experience, check_splits
from mempi_jax.evals.success import main_of
from mempi_jax.experience.bank import TRAIN_SPLIT, BankEntry
from mempi_jax.inference.engine import Engine
from mempi_jax.models.hf import Place
from mempi_jax.models.partition import shardings
from mempi_jax.policy.policy import GuidancePolicy, load_policy
from mempi_jax.policy.pretrained import load_tokenizer
from mempi_jax.policy.template import template_hash
from mempi_jax.policy.tokenizer import Tokenizer
from mempi_jax.rollout.lending import PoolError, RemoteEnvs
from mempi_jax.rollout.pool import Pool
from mempi_jax.rollout.ray_pool import RayPool
from mempi_jax.rollout.runner import Runner
from mempi_jax.runtime import preemption
from mempi_jax.runtime.host import one_thread_for_numpy
from mempi_jax.runtime.manifest import make_manifest
from mempi_jax.runtime.rng import host_seed
from mempi_jax.runtime.sharding import Layout, local_layout, make_layout
from mempi_jax.runtime.workdir import AGENT, open_workdir, write_manifest
from mempi_jax.types import Agent, Episode, Task

AGENTS = ('lm', 'chat', 'scripted')
BACKENDS = ('process', 'ray')  # of the pool
SHIPPED = ('alfworld', 'company')  # agents that come with the package
ANSWERS = 'agent_answers.jsonl'


@dataclasses.dataclass
class World:
  """Tasks by split and by id, the frozen agent, the tokenizer of what is counted in tokens, and a runner that plays episodes together."""

  config: FrozenConfigDict
  workdir: Path
  suite: Suite
  games: dict[str, TaskSpec]
  tokenizer: Tokenizer
  agent: Agent
  runner: Runner | None = None
  envs: RemoteEnvs | None = None  # worker processes, where the environments do not live in this one

  def __enter__(self) -> World:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def close(self) -> None:
    """Ends the worker processes, if there are some, and lets go of the agent's endpoint."""
    preemption.ignore()
    if self.envs is not None:
      self.envs.close()
    close_agent(self.agent)

  @property
  def splits(self) -> dict[str, list[TaskSpec]]:
    """The suite's tasks by split; train comes first."""
    return self.suite.splits

  def tasks(self, games: Sequence[TaskSpec], purpose: str, run: int = 0) -> list[Task]:
    """Each game as a task to play; the agent's seed is a function of the config's seed, the purpose, the game and `run`."""
    return [Task(self.suite.name, game.task_id, game.split, host_seed(self.config.seed, purpose, game.task_id, run)) for game in games]

  def check_experience(self, what: str, things: Iterable[Episode | BankEntry | Task | str]) -> None:
    """Raises IsolationError where `things` give a test game away, see `evals.isolation.check_experience`."""
    suite = self.suite
    check_experience(what, things, self.splits[TRAIN_SPLIT], self.test_games, goal_splits=suite.goal_splits, read_goal=suite.read_goal)

  def load_policy(self, folder: Path, *, batch_size: int | None = None) -> GuidancePolicy:
    """A guidance policy of this run, computed as the config says; `batch_size` where it is asked for other numbers at a time."""
    config = self.config.policy
    size = batch_size or config.batch_size
    return load_policy(
      folder, param_dtype=config.param_dtype, dtype=config.dtype, attention=config.attention, batch_size=size, place=self.place
    )

  @functools.cached_property
  def layout(self) -> Layout:
    """The mesh of all devices, of all hosts."""
    return make_layout(self.config.mesh)

  @property
  def place(self) -> Place | None:
    """Where a policy's parameters live on this host; None: on one device, until training puts them on the mesh."""
    own = local_layout(self.layout)
    return functools.partial(shardings, own) if own.mesh.shape['fsdp'] * own.mesh.shape['tensor'] > 1 else None

  @property
  def trained(self) -> Path:
    """The working folder whose bank, policies and other memories are evaluated: this run's, or that of another one."""
    return Path(self.config.eval.trained_in) if self.config.eval.trained_in else self.workdir

  @property
  def main_split(self) -> str:
    """The split that the report dwells on: heldout_games, or else the first one that is not train."""
    return main_of(self.splits)

  @property
  def test_games(self) -> list[TaskSpec]:
    """The games of every split but train: what no experience may come from."""
    return [game for split, games in self.splits.items() if split != TRAIN_SPLIT for game in games]

  @property
  def engine(self) -> Engine | None:
    """What the agent generates with, where it is a language model of this process."""
    return _inner(self.agent).engine if isinstance(_inner(self.agent), LMAgent) else None


def shipped_agent(name: str = 'alfworld') -> Path:
  """The folder of a frozen agent that comes with the package, made by configs/NAME_agent.py."""
  return Path(str(importlib.resources.files('mempi_jax'))) / 'assets' / f'{name}_agent'


def make_suite(config: FrozenConfigDict) -> Suite:
  """The environment of a config with the tasks of every split; train holds enough for the bank, for stage 2 and for its probes.

  Raises ConfigError: an unknown environment, a field that has no such value, or something that it needs and that is missing.
  """
  num_train = max(config.bank.games, config.stage2.games) + config.stage2.probe_games
  counts = {TRAIN_SPLIT: num_train, **dict(config.eval.games.items())}
  try:
    return find_suite(config.world.env)(config.world, counts, config.seed)
  except (ValueError, ImportError) as error:
    raise ConfigError(str(error)) from error


def open_world(config: FrozenConfigDict, workdir: Path, *, allow: Collection[str] = (), remember: bool = False) -> World:
  """Opens the working folder, makes the tasks and the agent; writes the manifest, or checks it.

  Args:
    config: the resolved config of an experiment.
    workdir: where the run lives.
    allow: fields that may differ from those of the run that lives there.
    remember: see `Runner`.

  Raises:
    ConfigError: a field has no such value, or what the environment or the agent needs is missing. IsolationError: a test game, or its goal,
      is among the train games. FileNotFoundError: no agent checkpoint where the config says. ValueError: the folder holds another run.
      OSError: it cannot be written.
  """
  one_thread_for_numpy()
  check_agent(config)
  check_pool(config)
  suite = make_suite(config)
  check_splits(suite.splits, goal_splits=suite.goal_splits)
  workdir = open_workdir(workdir, config, agent_folder(config), allow)
  games = {game.task_id: game for part in suite.splits.values() for game in part}
  try:
    agent = make_agent(config, suite, workdir / AGENT, workdir / ANSWERS)
    tokenizer = agent.tokenizer if isinstance(agent, LMAgent) else load_tokenizer(_tokenizer_source(config))
    agent = alter_agent(agent, config.world.guidance_effect, lambda task_id: (games[task_id].kind, games[task_id].truth))
  except (ValueError, ImportError) as error:
    raise ConfigError(str(error)) from error
  world = World(config, workdir, suite, games, tokenizer, agent)
  print(f'agent: {describe_agent(agent)}')  # or MemoryError, before anything is played
  write_manifest(workdir, _manifest(world), allow)
  world.envs = make_pool(config, suite)
  world.runner = make_runner(config, suite, agent, world.envs, remember=remember)
  preemption.listen()
  return world


def make_runner(config: FrozenConfigDict, suite: Suite, agent: Agent, envs: RemoteEnvs | None, *, remember: bool = False) -> Runner:
  """Plays the suite's tasks with the agent, in the worker processes `envs` if there are some."""
  # What answers at once is stepped in this thread; what waits (for an engine's process, a sandbox, a browser) in threads of its own.
  size = config.agent.batch_size
  workers = envs.workers if envs else size if suite.waits else 0
  make_env = envs.make_env if envs else suite.make_env
  return Runner(make_env, agent, suite.max_steps, min(size, workers or size), workers=workers, remember=remember, retries=config.pool.retries)


def make_pool(config: FrozenConfigDict, suite: Suite) -> RemoteEnvs | None:
  """The workers that `pool.workers` asks for, on this machine or on a Ray cluster; None: environments live in this process. Raises ConfigError where
  they cannot be made."""
  check_pool(config)
  pool = config.pool
  if not pool.workers:
    return None
  limits = {'reset_timeout': pool.reset_timeout, 'step_timeout': pool.step_timeout, 'memory_limit': int(pool.memory_limit * 2**20) or None}
  try:
    if pool.backend == 'ray':
      return RayPool(suite.make_env, pool.workers, address=pool.address, **limits)
    return Pool(suite.make_env, pool.workers, **limits)
  except (ValueError, PoolError) as error:
    raise ConfigError(f'pool: {error}') from error


def check_pool(config: FrozenConfigDict) -> None:
  """Raises ConfigError for settings of worker processes that do not fit together, before anything expensive."""
  pool = config.pool
  if pool.backend not in BACKENDS:
    raise ConfigError(f'pool.backend is {pool.backend!r}: expected one of {", ".join(BACKENDS)}{near(pool.backend, BACKENDS)}')
  if pool.backend != 'ray' and pool.address:
    raise ConfigError(f'pool.address is {pool.address!r}, of a Ray cluster, and pool.backend is {pool.backend!r}: expected ray')
  if pool.backend == 'ray' and not pool.workers:
    raise ConfigError('pool.backend is ray and pool.workers 0: expected how many environments may run at a time')


# The agent.


def check_agent(config: FrozenConfigDict) -> None:
  """Raises ConfigError for an agent that there is not, before anything expensive."""
  agent = config.agent
  try:
    if agent.kind == 'lm':
      check_kinds(agent.weights, agent.cache)
    elif agent.kind not in AGENTS:
      _find_agent(agent.kind)
  except (ValueError, ImportError) as error:
    raise ConfigError(str(error)) from None
  if agent.kind == 'chat' and not (agent.chat.url and agent.chat.model):
    raise ConfigError('agent.kind chat needs agent.chat.url, an OpenAI-compatible endpoint, and agent.chat.model, the name of a model there')


def check_policy(config: FrozenConfigDict) -> None:
  """Raises ConfigError for a guidance policy that cannot be started."""
  if config.agent.kind != 'lm' and config.policy.init == 'agent':
    raise ConfigError(
      f"policy.init agent starts from the weights of the agent, and agent.kind {config.agent.kind} has none: expected random, or a pretrained model"
    )


def make_agent(config: FrozenConfigDict, suite: Suite, folder: Path, answers: Path | None = None) -> Agent:
  """The frozen agent that `agent.kind` names: a language model of this process, from `folder`; a chat model behind an endpoint, whose answers are kept
  in the file `answers`; the suite's scripted player; or a module of the user's own, by its function make_agent(config.agent, suite)."""
  agent = config.agent
  match agent.kind:
    case 'lm':
      return _load_lm(config, folder, agent.weights)
    case 'chat':
      fields = {name: value for name, value in agent.chat.items() if name not in ('url', 'model')}
      make = make_format_agent if agent.chat.prompt in FORMATS else make_chat_agent
      return make(
        agent.chat.url, agent.chat.model, temperature=agent.temperature, max_action_tokens=agent.max_action_tokens, answers=answers, **fields
      )  # fmt: skip
    case 'scripted':
      return ScriptedAgent(suite.player)
  return _find_agent(agent.kind)(agent, suite)


def _find_agent(name: str) -> Callable[[Any, Suite], Agent]:
  return find_function(name, dict.fromkeys(AGENTS, ''), 'make_agent', 'agent')


def close_agent(agent: Agent) -> None:
  """Lets go of what the agent holds: an endpoint, the file of its answers."""
  if hasattr(_inner(agent), 'close'):
    _inner(agent).close()


def describe_agent(agent: Agent) -> str:
  """One line for people."""
  inner = _inner(agent)
  return inner.engine.describe() if isinstance(inner, LMAgent) else inner.describe()


def agent_lm(world: World) -> LMAgent:
  """The language model itself, behind whatever the control worlds put before it, with weights that a policy can start from: not int8."""
  if world.config.agent.weights == 'int8':
    return _load_lm(world.config, world.workdir / AGENT, 'float32')
  return _inner(world.agent)


def _inner(agent: Agent) -> Agent:
  """The agent behind what the control worlds put before it."""
  return getattr(agent, 'agent', agent)


def agent_folder(config: FrozenConfigDict) -> Path | None:
  """Where the agent's checkpoint comes from; None: it has none."""
  if config.agent.kind != 'lm':
    return None
  return shipped_agent(config.agent.path) if config.agent.path in SHIPPED else Path(config.agent.path)


def _tokenizer_source(config: FrozenConfigDict) -> str:
  """Whose tokens guidance is counted in where the agent's are not known: the policy's, else those of the shipped agent."""
  return str(shipped_agent()) if config.policy.init in ('agent', 'random') else config.policy.init


def _load_lm(config: FrozenConfigDict, folder: Path, weights: str) -> LMAgent:
  """The language model in a folder, as the config wants it."""
  return load_agent(
    folder,
    context_length=config.agent.context_length,
    max_action_tokens=config.agent.max_action_tokens,
    temperature=config.agent.temperature,
    batch_size=config.agent.batch_size,
    weights=weights,
    cache_kind=config.agent.cache,
  )


# The manifest.


def _manifest(world: World) -> dict[str, Any]:
  config, inner = world.config, _inner(world.agent)
  manifest = make_manifest(
    config,
    prompt_template_hash=template_hash(config.policy.template),
    agent_hash=checkpoint_hash(world.workdir / AGENT) if isinstance(inner, LMAgent) else inner.fingerprint(),
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
  return manifest | {'env': world.suite.name, 'seed': config.seed, 'games': games, **world.suite.facts()}


def games_hash(games: Sequence[TaskSpec]) -> str:
  """A hash of the games' ids and contents: two runs on the same hash played the same games."""
  digest = hashlib.sha256()
  for game in games:
    digest.update(f'{game.task_id}\n{game.content}\n'.encode())
  return digest.hexdigest()[:16]
