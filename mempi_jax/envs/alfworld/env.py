"""ALFWorld as an `Env`: the text world that the guidance policy and the agent live in, played by the fast simulator.

`make_env` chooses the backend, 'simulator' or 'engine'; both give the same text. The context's observation is the first look at the room
alone: no banner, and the task is in the context's goal.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from mempi_jax.envs.alfworld.game import Game
from mempi_jax.envs.alfworld.problem import parse_problem
from mempi_jax.envs.alfworld.simulator import Simulator
from mempi_jax.envs.lookup import find
from mempi_jax.types import Context, Env, EnvStep, Task

BACKENDS = ('simulator', 'engine')

# Parsed problems by their text (25 to 80 KB each), so that the many environments of a rollout share them.
shared_problem = functools.lru_cache(maxsize=2048)(parse_problem)


class AlfworldEnv:
  """Plays the games of `games` (game id -> game) with the fast simulator. Implements `types.Env`.

  `Task.seed` changes nothing: ALFWorld is deterministic.
  """

  def __init__(self, games: Mapping[str, Game]):
    self._games = games
    self._simulator: Simulator | None = None

  def reset(self, task: Task) -> Context:
    """Starts the game `task.task_id`.

    Raises:
      KeyError: no such game; names the nearest ids.
      ValueError: the game's problem text is broken; names the game.
    """
    game = find(self._games, task.task_id, 'game')
    try:
      problem = shared_problem(game.problem)
    except ValueError as error:
      raise ValueError(f'game {game.game_id!r}: {error}') from error
    self._simulator = Simulator(problem, game.goal)
    self._simulator.reset()
    return Context(task, game.goal.removesuffix('.'), self._simulator.first_look())

  def step(self, action: str) -> EnvStep:
    """Carries out one command; reward 1.0 and done once the goal holds. Raises RuntimeError before `reset`."""
    if self._simulator is None:
      raise RuntimeError('call reset(task) before step(action)')
    feedback, won = self._simulator.step(action)
    return EnvStep(feedback, float(won), won, won)

  def admissible_commands(self) -> list[str]:
    """Every command that does something now, sorted; for scripted play and verification, never shown to an agent."""
    if self._simulator is None:
      raise RuntimeError('call reset(task) before admissible_commands()')
    return self._simulator.admissible_commands()

  def close(self) -> None:
    self._simulator = None


def make_env(backend: str, games: Mapping[str, Game]) -> Env:
  """An environment over `games`: backend 'simulator' (fast) or 'engine' (the real ALFWorld, in a process of its own).

  Raises:
    ValueError: another backend.
    ImportError: 'engine' without the `alfworld` package.
  """
  if backend == 'simulator':
    return AlfworldEnv(games)
  if backend == 'engine':
    from mempi_jax.envs.alfworld.engine import EngineEnv

    return EngineEnv(games)
  raise ValueError(f'unknown backend {backend!r}; expected one of {", ".join(BACKENDS)}')
