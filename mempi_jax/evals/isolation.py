"""Leakage guard: no test game may be part of what a memory learns or quotes from (method section 5) [O].

What a test split of a household shares with train on purpose, and what it must not share (see envs/alfworld/generator.py):

    heldout_games   shares the household's habits, the kinds of rooms, every goal and every form of sentence; no game, under whatever id
    heldout_goals   shares the habits, kinds of rooms, task types, targets and destinations, each by itself, and the forms of sentences;
                    no game, and no combination of task type, target and destination, in whatever room and however it is phrased
    long_horizon    as heldout_games; its task types are those of many steps

Kinds of leak:

    task      the id of a test game among what must be train
    game      another id, but the same problem as a test game: layout, goal and the names of its locations (`content_hash`)
    goal      a goal combination of a split in GOAL_SPLITS
    split     a task that says itself that it is of another split than train
    unknown   the id of no train game: nobody can tell what it is
    twin      another problem that no player could tell from a test game (`appearance_hash`); looked for with `twins` alone

Twins come about by chance: a small room of few receptacles and a common goal are sometimes drawn twice. Of the 2,400 held-out games of
maple and cedar, seeds 0 to 2 (configs/alfworld_sweep.py), 4 have a twin in train, none of the other splits' games. Where that is too
much, `twins=True` refuses them.

`check_splits` is for the games as they are made, `check_experience` for what becomes of them.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

from mempi_jax.envs.alfworld.game import Game
from mempi_jax.envs.alfworld.generator import TEMPLATES
from mempi_jax.envs.alfworld.problem import FLUENT, STATIC
from mempi_jax.experience.bank import TRAIN_SPLIT, BankEntry
from mempi_jax.types import Episode, Task

GOAL_SPLITS = ('heldout_goals',)  # whose goals train must not have
KINDS = ('task', 'game', 'goal', 'split', 'unknown', 'twin')

_SHOWN = 5  # leaks of a kind that a message names
_COMMENT = re.compile(r';[^\n]*')
_FACT = re.compile(r'\(([^()]+)\)')
_TOKEN = re.compile(r'[()]|[^\s()]+')
_LOCATED = ('receptacleatlocation', 'objectatlocation', 'atlocation')  # facts whose last argument is a location

Combination = tuple[str, str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Leak:
  """`found` is what was looked at (a game, an entry's source), `test` the test game that it gives away (empty where there is none)."""

  kind: str  # of KINDS
  found: str
  test: str
  reason: str


class IsolationError(ValueError):
  """What was to stay apart does not; `leaks` holds every leak, the message up to five of a kind."""

  def __init__(self, what: str, leaks: Sequence[Leak]):
    self.leaks = tuple(leaks)
    parts = []
    for kind in KINDS:
      found = [leak for leak in self.leaks if leak.kind == kind]
      if found:
        more = f', and {len(found) - _SHOWN} more' if len(found) > _SHOWN else ''
        parts.append(f'{len(found)} of kind {kind}: ' + ', '.join(f'{leak.found} {leak.reason}' for leak in found[:_SHOWN]) + more)
    super().__init__(f'{what}: leaks of test games: ' + '; '.join(parts))


# What a game is.


def content_hash(game: Game) -> str:
  """A hash of a game's problem: receptacles and their locations, what is in them and in what state, and the goal condition.

  It does not see the game's id, the problem's name, how the goal is phrased, or the order of facts. Raises ValueError for a problem
  without :init or :goal.
  """
  return _hash_facts(*_facts_and_goal(game))


def appearance_hash(game: Game) -> str:
  """As `content_hash`, and blind to the names of locations as well, which no player is ever told: games with the same hash look and
  behave the same."""
  facts, goal = _facts_and_goal(game)
  standing: dict[str, list[str]] = collections.defaultdict(list)
  for predicate, *arguments in facts:
    if predicate == 'receptacleatlocation':
      standing[arguments[1]].append(arguments[0])
  called = lambda fact: (*fact[:-1], '+'.join(standing.get(fact[-1], ()))) if fact[0] in _LOCATED else fact
  return _hash_facts([called(fact) for fact in facts], goal)


def _facts_and_goal(game: Game) -> tuple[list[tuple[str, ...]], str]:
  """The facts of the start that a rule of the game reads, sorted, and the goal condition; all in lower case."""
  text = _COMMENT.sub('', game.problem).lower()
  _, found, rest = text.partition('(:init')
  init, also, goal = rest.partition('(:goal')
  if not found or not also:
    raise ValueError(f'game {game.game_id!r}: the problem has no (:init ...) before a (:goal ...)')
  facts = {tuple(fact.split()) for fact in _FACT.findall(init)}
  return sorted(fact for fact in facts if fact and (fact[0] in STATIC or fact[0] in FLUENT)), ' '.join(_TOKEN.findall(goal))


def _hash_facts(facts: Iterable[tuple[str, ...]], goal: str) -> str:
  lines = sorted(' '.join(fact) for fact in facts)
  return hashlib.sha256('\n'.join([*lines, goal]).encode()).hexdigest()[:16]


def goal_combination(game: Game) -> Combination:
  """(task type, target, destination), what the held-out goals of a household are held out by; the last two as the text names them.

  From the game's fields, or else from its goal sentence (see `parse_goal`).
  """
  if game.target is None or game.destination is None:
    return parse_goal(game.goal)
  return game.task_type, game.target, game.destination


def parse_goal(sentence: str) -> Combination:
  """(task type, target, destination) of a goal sentence, whichever of its type's two forms it has: "put a hot mug in shelf." and "heat some
  mug and put it in shelf." are both ('pick_heat_then_place_in_recep', 'mug', 'shelf').

  Raises ValueError for a sentence of another form.
  """
  text = sentence.strip().rstrip('.').lower()
  for task_type, patterns in _PATTERNS.items():
    for pattern in patterns:
      match = pattern.fullmatch(text)
      if match:
        return task_type, match['obj'], match['recep']
  raise ValueError(f'not a goal sentence of ALFWorld: {sentence!r}')


def _pattern(template: str) -> re.Pattern[str]:
  escaped = re.escape(template.rstrip('.')).replace(r'\{obj\}', '(?P<obj>[a-z]+)').replace(r'\{recep\}', '(?P<recep>[a-z]+)')
  return re.compile(re.sub(r'(?<=put\\ )a(?=\\ )', 'an?', escaped))


_PATTERNS = {task_type: tuple(_pattern(template) for template in templates) for task_type, templates in TEMPLATES.items()}


# Games of splits.


def check_isolation(
  train: Sequence[Game], test: Sequence[Game], *, goal_splits: Sequence[str] = GOAL_SPLITS, twins: bool = False
) -> None:
  """Task, game and goal isolation of `test` from `train`.

  Args:
    train: every game that anything may be learned from.
    test: games of any other splits, told apart by `Game.split`.
    goal_splits: splits whose goal combinations must not be in train at all; games of other splits may have train's goals.
    twins: refuse twins too.

  Raises:
    IsolationError: naming the games on both sides. ValueError: a broken problem, or a goal sentence that cannot be read.
  """
  guard = _Guard(test, goal_splits, twins)
  leaks = [leak for game in train for leak in guard.leaks_of_game(game)]
  if leaks:
    raise IsolationError('games of the train split', leaks)


def check_splits(splits: Mapping[str, Sequence[Game]], *, goal_splits: Sequence[str] = GOAL_SPLITS, twins: bool = False) -> None:
  """`check_isolation` of train from all other splits; each game says the split that it is in, and is in no other test split.

  Raises:
    IsolationError: as `check_isolation`. ValueError: a game with another split's name, or an id that comes twice; named.
  """
  seen: dict[str, str] = {}
  for split, games in splits.items():
    for game in games:
      if game.split != split:
        raise ValueError(f'game {game.game_id!r} stands in split {split!r} and says {game.split!r}')
      if seen.get(game.game_id) == split:
        raise ValueError(f'game {game.game_id!r} comes twice in split {split!r}')
      if split != TRAIN_SPLIT and seen.get(game.game_id, TRAIN_SPLIT) != TRAIN_SPLIT:
        raise ValueError(f'game {game.game_id!r} is in both {seen[game.game_id]!r} and {split!r}')
      seen[game.game_id] = split
  test = [game for split, games in splits.items() if split != TRAIN_SPLIT for game in games]
  check_isolation(splits.get(TRAIN_SPLIT, ()), test, goal_splits=goal_splits, twins=twins)


# What becomes of games.


def check_experience(
  what: str,
  things: Iterable[Episode | BankEntry | Task | str],
  train: Sequence[Game],
  test: Sequence[Game],
  *,
  goal_splits: Sequence[str] = GOAL_SPLITS,
  twins: bool = False,
) -> None:
  """For a bank when it is built, a memory before it is asked, tasks before they train: all of it comes from train games that are no test games.

  Args:
    what: the bank, the memory or the tasks, for the message.
    things: episodes before distillation; entries after it, with all their sources; tasks, of whatever seeds; or sources 'task_id@seed', where
      a memory keeps texts of its own (`Guidance.retrieved` is such a list).
    train, test, goal_splits, twins: as of `check_isolation`.

  Raises:
    IsolationError: naming every source (task_id@seed) and the test game that it gives away. ValueError: a source of another form.
  """
  guard, known = _Guard(test, goal_splits, twins), {game.game_id: game for game in train}
  origins = dict.fromkeys(origin for thing in things for origin in _origins(thing))
  of_game: dict[str, list[Leak]] = {}  # task id -> leaks of its game
  leaks: dict[Leak, None] = {}
  for origin in origins:
    found = []
    if origin.task_id in guard.ids:
      found.append(Leak('task', origin.name, origin.task_id, f'is of a game of {guard.ids[origin.task_id].split}'))
    elif origin.task_id not in known:
      found.append(Leak('unknown', origin.name, '', 'is of no game of the train split'))
    else:
      if origin.task_id not in of_game:
        of_game[origin.task_id] = guard.leaks_of_game(known[origin.task_id])
      found += [dataclasses.replace(leak, found=origin.name) for leak in of_game[origin.task_id]]
    if origin.split != TRAIN_SPLIT:
      found.append(Leak('split', origin.name, '', f'says that it is of {origin.split}'))
    if origin.goal:
      found += guard.leaks_of_goal(origin.name, parse_goal(origin.goal))
    leaks |= dict.fromkeys(found)
  if leaks:
    raise IsolationError(what, list(leaks))


# Internals.


class _Guard:
  """What must stay out, by id, content, appearance and goal combination; each gives a test game."""

  def __init__(self, test: Sequence[Game], goal_splits: Sequence[str], twins: bool):
    self.ids = {game.game_id: game for game in test}
    self.contents = {content_hash(game): game for game in test}
    self.appearances = {appearance_hash(game): game for game in test} if twins else {}
    self.goals = {goal_combination(game): game for game in test if game.split in goal_splits}

  def leaks_of_game(self, game: Game) -> list[Leak]:
    """Why a game is no train game; empty if it may be one."""
    name, leaks = game.game_id, []
    if name in self.ids:
      return [Leak('task', name, name, f'is a game of {self.ids[name].split}')]
    copied = self.contents.get(content_hash(game))
    twin = self.appearances.get(appearance_hash(game)) if self.appearances else None
    if copied is not None:
      leaks.append(Leak('game', name, copied.game_id, f'has layout and goal of {copied.game_id} of {copied.split}'))
    elif twin is not None:
      leaks.append(Leak('twin', name, twin.game_id, f'looks like {twin.game_id} of {twin.split}'))
    return leaks + self.leaks_of_goal(name, goal_combination(game))

  def leaks_of_goal(self, name: str, combination: Combination) -> list[Leak]:
    """Whether a goal is held out."""
    held = self.goals.get(combination)
    if held is None:
      return []
    return [Leak('goal', name, held.game_id, f'has the goal {" / ".join(combination)} of {held.game_id} of {held.split}')]


@dataclasses.dataclass(frozen=True, slots=True)
class _Origin:
  """A game that something was learned from: `name` is task_id@seed, `goal` what was said there, if that is known."""

  name: str
  task_id: str
  split: str
  goal: str


def _origins(thing: Episode | BankEntry | Task | str) -> list[_Origin]:
  """Where a piece of experience comes from; an entry may have several sources."""
  if isinstance(thing, str):
    task_id, found, _ = thing.rpartition('@')
    if not found:
      raise ValueError(f'source {thing!r}: expected task_id@seed')
    return [_Origin(thing, task_id, TRAIN_SPLIT, '')]
  if isinstance(thing, Task):
    return [_Origin(f'{thing.task_id}@{thing.seed}', thing.task_id, thing.split, '')]
  if isinstance(thing, Episode):
    (origin,) = _origins(thing.context.task)
    return [dataclasses.replace(origin, goal=thing.context.goal)]
  own = _Origin(f'{thing.task_id}@{thing.seed}', thing.task_id, thing.split, thing.goal)
  return [own, *(origin for source in thing.sources if source != own.name for origin in _origins(source))]
