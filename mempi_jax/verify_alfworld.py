"""Plays the same commands in the simulator and in the real ALFWorld engine, and compares every answer exactly.

    python -m mempi_jax.verify_alfworld --games PATH --episodes N --seed S

PATH is a folder of game.tw-pddl files, a .jsonl or .jsonl.xz file of games, or generated:HOUSEHOLD. After the reset and after each command,
feedback, `won` and the list of admissible commands must be equal, character for character. Prints each mismatch and `N passed, M failed`.
Exit status: 0, all passed; 1, a mismatch (or the engine failed); 2, bad arguments, or no engine.

An episode mixes a plan (the game's optimal walk, or the exploring expert's steps) with random admissible commands, small errands (fetch the
knife, slice what can be sliced) and invalid commands. Episodes differ in which comes first: a plan that is played through shows `won`; random
commands first leave the plan to stumble.
"""

from __future__ import annotations

import argparse
import dataclasses
import queue
import random
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import tqdm

from mempi_jax.envs.alfworld.engine import EngineEnv, EngineError, engine_available
from mempi_jax.envs.alfworld.env import shared_problem
from mempi_jax.envs.alfworld.expert import ExploringExpert
from mempi_jax.envs.alfworld.game import Game
from mempi_jax.envs.alfworld.games import load_games
from mempi_jax.envs.alfworld.simulator import NOTHING, Simulator

KINDS = ('walk', 'expert', 'random')
EXPERT_STEPS = 40
DEADLINE = 900.0  # seconds for the engine's answer: long, since a slow machine is no mismatch


@dataclasses.dataclass(frozen=True)
class Report:
  """What comparing one episode gave. `mismatches` is empty if it passed; `commands` counts the verbs that did something, and 'invalid'."""

  game_id: str
  kind: str
  steps: int
  won: bool
  commands: Counter
  mismatches: tuple[str, ...]


def commands_of(simulator: Simulator, game: Game, kind: str, rng: random.Random, random_steps: int) -> Iterator[str]:
  """The commands of one episode. Each depends on the simulator's state, so carry one out before asking for the next.

  Args:
    kind: 'walk': the optimal plan with harmless commands between its steps, then random ones; 'expert': the exploring expert, now and then
      interrupted by a random command, then random ones; 'random': random ones, then the plan in whatever state they left.
  """
  if kind == 'random':
    yield from _random_commands(simulator, rng, random_steps)
  if kind == 'expert':
    yield from _expert_commands(simulator, game, rng)
  else:
    for command in game.walk:
      if rng.random() < 0.3:
        yield rng.choice(['look', 'inventory', 'help', 'examine ' + rng.choice(simulator.problem.names), invalid_command(simulator, rng)])
      yield command
  if kind != 'random':
    yield from _random_commands(simulator, rng, random_steps)


def _random_commands(simulator: Simulator, rng: random.Random, count: int) -> Iterator[str]:
  errand: Iterator[str] = iter(())
  for _ in range(count):
    draw = rng.random()
    if draw < 0.15:
      yield invalid_command(simulator, rng)
      continue
    if draw < 0.22:
      errand = _errand(simulator, rng)
    command = next(errand, None)
    if command is not None:
      yield command
      continue
    by_verb: dict[str, list[str]] = {}
    for command in simulator.admissible_commands():
      by_verb.setdefault(command.split(' ', 1)[0], []).append(command)
    # Travel and deeds more often than the verbs that only tell.
    verbs = sorted(by_verb)
    weights = [0.3 if verb in ('help', 'inventory', 'look') else 2.0 if verb == 'go' else 1.0 for verb in verbs]
    yield rng.choice(by_verb[rng.choices(verbs, weights)[0]])


def _errand(simulator: Simulator, rng: random.Random) -> Iterator[str]:
  """Fetches a thing and does one of the rarer deeds with it: random commands alone would hardly ever slice, clean, heat or cool."""
  problem = simulator.problem
  verb = rng.choice(['slice', 'clean', 'heat', 'cool', 'use', 'move'])
  able = {'slice': problem.knives, 'clean': problem.cleanable, 'heat': problem.heatable, 'cool': problem.coolable, 'use': problem.toggleable}
  wanted = able.get(verb, problem.pickupable)
  source = {o: r for r, inner in simulator.contents.items() for o in sorted(inner) if o in wanted}
  if simulator.held in wanted:
    thing = simulator.held
  elif source:
    thing = rng.choice(sorted(source))
    if simulator.held is not None:  # empty the hand, wherever that works
      yield from (c for c in simulator.admissible_commands() if c.startswith('move '))
    origin = problem.names[source[thing]]
    yield from (f'go to {origin}', f'open {origin}', f'take {problem.names[thing]} from {origin}')
  else:
    return
  name = problem.names[thing]
  if verb == 'use':
    yield from (f'use {name}', f'examine {name}')
  elif verb == 'slice':
    for other in sorted(problem.sliceable):
      places = sorted(simulator.object_locations.get(other, ()))
      if places and problem.at.get(places[0]):
        yield f'go to {problem.names[problem.at[places[0]][0]]}'
        yield f'slice {problem.names[other]} with {name}'
  else:
    types = {'clean': 'sinkbasintype', 'heat': 'microwavetype', 'cool': 'fridgetype'}
    tools = [r for r in problem.receptacles if verb == 'move' or problem.receptacle_type[r] == types[verb]]
    if tools:
      tool = problem.names[rng.choice(tools)]
      yield from (f'go to {tool}', f'{verb} {name} {"to" if verb == "move" else "with"} {tool}', f'examine {name}', 'look')


def _expert_commands(simulator: Simulator, game: Game, rng: random.Random) -> Iterator[str]:
  expert = ExploringExpert(rng.randrange(2**31))
  observation = simulator.first_look()
  expert.begin(game.goal, observation, '')
  for _ in range(EXPERT_STEPS):
    advice = expert.act(observation)
    command = advice if rng.random() < 0.85 else rng.choice(simulator.admissible_commands())
    yield command
    observation = simulator.feedback
    if simulator.won:
      return


def invalid_command(simulator: Simulator, rng: random.Random) -> str:
  """A command that the engine should not understand, or not now; some of these happen to be admissible."""
  problem = simulator.problem
  things = [problem.names[i] for i in (*problem.receptacles, *problem.objects)] or ['mug 1']
  a, b = rng.choice(things), rng.choice(things)
  here = problem.at.get(simulator.location, ())
  valid = rng.choice(simulator.admissible_commands())
  return rng.choice(
    [
      '',
      'xyzzy',
      'go to',
      f'go to {a}',
      f'go to {problem.names[rng.choice(here)]}' if here else 'go to nowhere 1',
      f'open {a}',
      f'close {a}',
      f'use {a}',
      f'examine {a}',
      f'take {a} from {b}',
      f'move {a} to {b}',
      f'put {a} in {b}',
      f'heat {a} with {b}',
      f'clean {a} with {b}',
      f'cool {a} with {b}',
      f'slice {a} with {b}',
      valid.upper(),
      valid + ' now',
      valid.replace(' ', '  ', 1),
      f'  {valid}\n',
      valid.rpartition(' ')[0],
      f'take the {a} from the {b}',
    ]
  )


def compare_episode(engine: EngineEnv, game: Game, kind: str, rng: random.Random, random_steps: int) -> Report:
  """Plays one episode in both and compares; stops at the first command whose answers differ."""
  simulator = Recording(shared_problem(game.problem), game.goal)
  mismatches: list[str] = []
  commands: Counter = Counter()
  steps, won = 0, False

  def compare(command: str | None, pairs: Sequence[tuple[str, object, object]]) -> None:
    for what, ours, theirs in pairs:
      if ours != theirs:
        if isinstance(ours, list):
          ours, theirs = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
          what += ' (only in one of them)'
        where = 'reset' if command is None else f'step {steps}, {command!r}'
        mismatches.append(f'{game.game_id} [{kind}] {where}: {what}\n  simulator: {ours!r}\n  engine:    {theirs!r}')

  try:
    compare(None, [('feedback', simulator.reset(), engine.start(game))])
    compare(None, [('admissible commands', simulator.admissible_commands(), engine.admissible_commands())])
    for command in commands_of(simulator, game, kind, rng, random_steps):
      if mismatches:
        break
      steps += 1
      feedback, now = simulator.step(command)
      answer = engine.step(command)
      compare(
        command,
        [
          ('feedback', feedback, answer.observation),
          ('won', now, answer.success),
          ('admissible commands', simulator.admissible_commands(), engine.admissible_commands()),
        ],
      )
      won = won or now
      commands['invalid' if feedback == NOTHING else command.split()[0]] += 1
  except (EngineError, ValueError) as error:
    mismatches.append(f'{game.game_id} [{kind}] step {steps}: {error}')
  return Report(game.game_id, kind, steps, won, commands, tuple(mismatches))


class Recording(Simulator):
  """A simulator that keeps its last feedback, for the expert to read."""

  feedback = ''

  def step(self, command: str) -> tuple[str, bool]:
    self.feedback, won = super().step(command)
    return self.feedback, won


def choose_games(games: Sequence[Game], episodes: int, seed: int) -> list[Game]:
  """`episodes` of the games, each at most once more often than any other."""
  order = list(games)
  random.Random(f'verify {seed}').shuffle(order)
  return [order[i % len(order)] for i in range(episodes)]


def verify(games: Sequence[Game], seed: int, *, workers: int, random_steps: int, memoise: bool) -> Iterator[Report]:
  """Compares one episode for each game, on `workers` engines; yields the reports as they come."""
  todo: queue.SimpleQueue[tuple[int, Game]] = queue.SimpleQueue()
  done: queue.SimpleQueue[Report | BaseException] = queue.SimpleQueue()
  for item in enumerate(games):
    todo.put(item)

  def work() -> None:
    """Plays games, each in both, until none is left."""
    engine = EngineEnv({}, memoise=memoise, reset_deadline=DEADLINE, step_deadline=DEADLINE)
    try:
      while True:
        try:
          i, game = todo.get_nowait()
        except queue.Empty:
          return
        kind = KINDS[i % len(KINDS)]
        rng = random.Random(f'{seed} {i} {game.game_id}')
        done.put(compare_episode(engine, game, kind, rng, random_steps))
    except BaseException as error:  # noqa: BLE001  raised again by the caller's thread
      done.put(error)
    finally:
      engine.close()

  threads = [threading.Thread(target=work, daemon=True) for _ in range(max(1, min(workers, len(games))))]
  for thread in threads:
    thread.start()
  for _ in games:
    report = done.get()
    if isinstance(report, BaseException):
      raise report
    yield report
  for thread in threads:
    thread.join()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog='python -m mempi_jax.verify_alfworld', description='Compares the simulator with the real ALFWorld engine.')
  parser.add_argument('--games', required=True, help='a folder of game.tw-pddl files, a .jsonl or .jsonl.xz file, or generated:HOUSEHOLD')
  parser.add_argument('--episodes', type=int, default=20, help='how many episodes, one game each (default 20)')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--split', default='train', help='of generated games (default train)')
  parser.add_argument('--random-steps', type=int, default=30, help='random commands in an episode, beside the plan (default 30)')
  parser.add_argument('--workers', type=int, default=1, help='engines side by side, a process each (default 1)')
  parser.add_argument('--plain-engine', action='store_true', help='do not keep repeated results inside the engine: ten times slower')
  arguments = parser.parse_args(argv)
  for name in ('episodes', 'workers'):
    if getattr(arguments, name) < 1:
      parser.error(f'--{name} must be at least 1, found {getattr(arguments, name)}')
  if arguments.random_steps < 0:
    parser.error(f'--random-steps must not be negative, found {arguments.random_steps}')
  available = engine_available()
  if available is not True:
    parser.error(f'the real ALFWorld engine is not available: {available}')
  try:
    generated = arguments.games.startswith('generated:')
    count = arguments.episodes if generated else None
    arguments.loaded = load_games(arguments.games if generated else Path(arguments.games), count=count, seed=arguments.seed, split=arguments.split)
  except (OSError, ValueError) as error:
    parser.error(str(error))
  return arguments


def main(argv: Sequence[str] | None = None) -> int:
  """The command; returns its exit status."""
  arguments = _arguments(argv)
  games = choose_games(arguments.loaded, arguments.episodes, arguments.seed)
  reports = []
  settings = dict(workers=arguments.workers, random_steps=arguments.random_steps, memoise=not arguments.plain_engine)
  with tqdm.tqdm(total=len(games), unit='episode', disable=None) as bar:
    for report in verify(games, arguments.seed, **settings):
      reports.append(report)
      for mismatch in report.mismatches:
        bar.write(f'MISMATCH {mismatch}', file=sys.stdout)
        sys.stdout.flush()
      bar.update()
      bar.set_postfix(failed=sum(bool(r.mismatches) for r in reports))
  failed = sum(bool(report.mismatches) for report in reports)
  commands = sum((report.commands for report in reports), Counter())
  print(f'{sum(r.steps for r in reports)} steps compared, won in {sum(r.won for r in reports)} episodes; ', end='')
  print(', '.join(f'{verb} {count}' for verb, count in sorted(commands.items())))
  print(f'{len(reports) - failed} passed, {failed} failed')
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main())
