"""The real ALFWorld engine (`alfworld` 0.4.2 on TextWorld) behind the same protocol as the simulator, for verification and replay.

TextWorld's and Fast Downward's state is global, and Fast Downward overwrites sys.argv, so each engine lives in a process of its own
(`python -m mempi_jax.envs.alfworld.engine`, which speaks JSON lines over its pipes). Every request has a deadline: an engine that hangs or
dies gives an EngineError, and the next reset starts a new process. Only that process imports `alfworld` and `textworld`.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from mempi_jax.envs.alfworld.game import Game
from mempi_jax.envs.alfworld.games import alfworld_text, game_data
from mempi_jax.envs.lookup import find
from mempi_jax.types import Context, EnvStep, Task

INSTALL = "pip install 'mempi_jax[alfworld]' (it builds from source and needs a C++ compiler)"


class EngineError(RuntimeError):
  """The real engine failed: it raised, died, or did not answer in time."""


def engine_available() -> bool | str:
  """True if the real engine can be started, else the reason why not."""
  for package in ('alfworld', 'textworld', 'fast_downward'):
    try:
      if importlib.util.find_spec(package) is None:
        return f'the package {package} is not installed: {INSTALL}'
    except (ImportError, ValueError) as error:
      return f'the package {package} cannot be found ({error}): {INSTALL}'
  return True


class EngineEnv:
  """Plays the games of `games` (game id -> game) with the real engine. Implements `types.Env`.

  With `memoise`, functions of TextWorld that only compute the same result again (translating one game's PDDL up to four times, parsing the
  same line of grammar at every step) keep their results: about ten times faster, same text. Deadlines are in seconds.
  """

  def __init__(self, games: Mapping[str, Game], *, memoise: bool = False, reset_deadline: float = 180.0, step_deadline: float = 60.0):
    reason = engine_available()
    if reason is not True:
      raise ImportError(f'the real ALFWorld engine is not available: {reason}')
    self._games = games
    self._memoise = memoise
    self._reset_deadline, self._step_deadline = reset_deadline, step_deadline
    self._worker: _Worker | None = None
    self._admissible: list[str] | None = None

  def reset(self, task: Task) -> Context:
    """Starts the game `task.task_id`. Raises KeyError (no such game) or EngineError."""
    game = find(self._games, task.task_id, 'game')
    feedback = self.start(game)
    # banner, room, task
    return Context(task, game.goal.removesuffix('.'), feedback.split('\n\n')[1])

  def start(self, game: Game) -> str:
    """Starts a game and returns the engine's whole first text. Raises EngineError."""
    if self._worker is None:
      self._worker = _Worker(self._memoise)
      self._ask({'command': 'hello'}, self._reset_deadline)  # importing the engine takes seconds
    data = game_data(game, alfworld_text('alfred.pddl'), alfworld_text('alfred.twl2'))
    return self._ask({'command': 'reset', 'data': data}, self._reset_deadline)['feedback']

  def step(self, action: str) -> EnvStep:
    """Carries out one command; reward 1.0 and done once the goal holds. Raises RuntimeError before `reset`, or EngineError."""
    if self._admissible is None:
      raise RuntimeError('call reset(task) before step(action)')
    state = self._ask({'command': 'step', 'action': action}, self._step_deadline)
    return EnvStep(state['feedback'], float(state['won']), state['won'], state['won'])

  def admissible_commands(self) -> list[str]:
    """Every command that does something now, sorted."""
    if self._admissible is None:
      raise RuntimeError('call reset(task) before admissible_commands()')
    return self._admissible

  def close(self) -> None:
    """Ends the engine's process."""
    if self._worker is not None:
      self._worker.stop()
    self._worker, self._admissible = None, None

  def _ask(self, request: dict[str, Any], deadline: float) -> dict[str, Any]:
    try:
      answer = self._worker.ask(request, deadline)
    except EngineError:
      self.close()
      raise
    if 'error' in answer:
      self.close()
      raise EngineError(f'the real engine failed at {request["command"]}: {answer["error"]}')
    self._admissible = answer.get('admissible')
    return answer


class _Worker:
  """The engine's process, seen from outside."""

  def __init__(self, memoise: bool):
    self._errors = tempfile.TemporaryFile()
    arguments = ['--memoise'] if memoise else []
    self._process = subprocess.Popen(
      [sys.executable, '-m', 'mempi_jax.envs.alfworld.engine', *arguments],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
    )
    self._buffer = b''

  def ask(self, request: dict[str, Any], deadline: float) -> dict[str, Any]:
    """Sends one request and waits for its answer, `deadline` seconds at most."""
    try:
      self._process.stdin.write(json.dumps(request).encode('ascii') + b'\n')
      self._process.stdin.flush()
    except (BrokenPipeError, OSError):
      raise EngineError(f'the engine process is dead: {self._last_words()}') from None
    end = time.monotonic() + deadline
    output = self._process.stdout.fileno()
    with selectors.DefaultSelector() as selector:
      selector.register(output, selectors.EVENT_READ)
      while b'\n' not in self._buffer:
        left = end - time.monotonic()
        if left <= 0 or not selector.select(left):
          if time.monotonic() >= end:
            raise EngineError(f'the engine did not answer {request["command"]!r} within {deadline:g} s')
          continue
        data = os.read(output, 1 << 20)
        if not data:
          raise EngineError(f'the engine process died at {request["command"]!r}: {self._last_words()}')
        self._buffer += data
    line, _, self._buffer = self._buffer.partition(b'\n')
    return json.loads(line)

  def stop(self) -> None:
    self._process.kill()
    self._process.wait()
    self._process.stdin.close()
    self._process.stdout.close()
    self._errors.close()

  def _last_words(self) -> str:
    self._process.kill()
    code = self._process.wait()
    self._errors.seek(0)
    lines = self._errors.read().decode('utf-8', 'replace').strip().splitlines()
    return f'exit status {code}; {lines[-1] if lines else "nothing on its standard error"}'


# Inside the engine's process.


def main(arguments: list[str]) -> None:
  """Answers requests until standard input ends."""
  answers = os.fdopen(os.dup(1), 'w', buffering=1, encoding='ascii')
  os.dup2(2, 1)  # whatever the engine prints is no answer
  env = None
  for line in sys.stdin:
    request = json.loads(line)
    try:
      if request['command'] == 'hello':
        if '--memoise' in arguments:
          _memoise()
        env = _make_engine()
        answer: dict[str, Any] = {}
      else:
        if request['command'] == 'reset':
          env.load(request['data'])
          state = env.reset()
        else:
          state, _, _ = env.step(request['action'])
        answer = {'feedback': state['feedback'], 'won': bool(state['won']), 'admissible': list(state['admissible_commands'])}
    except Exception as error:  # noqa: BLE001  the caller gets it as an EngineError
      answer = {'error': f'{type(error).__name__}: {error}'}
    answers.write(json.dumps(answer) + '\n')


def _make_engine() -> Any:
  import textworld
  from alfworld.agents.environment.alfred_tw_env import AlfredDemangler, AlfredInfos
  from textworld.envs.pddl import PddlEnv

  infos = textworld.EnvInfos(won=True, admissible_commands=True, feedback=True)
  return AlfredInfos(AlfredDemangler(PddlEnv(infos), shuffle=False))


def _memoise() -> None:
  """Keeps the results of pure functions of TextWorld; nothing that decides about text, commands or goal is replaced."""
  import copy

  import fast_downward
  from textworld.envs.pddl import logic, textgen
  from textworld.logic import Rule

  translate = functools.lru_cache(maxsize=2)(fast_downward.pddl2sas)
  # The second, optimised translation serves the planner alone, which is not asked here.
  fast_downward.pddl2sas = lambda domain, problem, verbose=False, optimize=False: translate(domain, problem)
  parse_symbols = functools.lru_cache(maxsize=None)(textgen._parse_and_convert)
  textgen._parse_and_convert = lambda *args, **kwargs: copy.deepcopy(parse_symbols(*args, **kwargs))
  Rule.parse_conjunctive_query = functools.lru_cache(maxsize=None)(Rule.parse_conjunctive_query)
  # Contexts are copied before they are changed; the entities in them never change, so that a copy of the two dicts will do.
  textgen.copy_context = lambda context: {**context, 'variables': dict(context['variables']), 'mapping': dict(context['mapping'])}
  assert logic.fast_downward is fast_downward


if __name__ == '__main__':
  main(sys.argv[1:])
