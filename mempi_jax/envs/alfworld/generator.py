"""ALFWorld games of our own: households with hidden habits, written as PDDL problems that the real engine loads and plays [O].

A household decides, per room and kind of object, where such objects are usually kept, and how far that can be relied upon. All of it
follows from the household's name; a game draws one room of the household and a goal in it. In a small room searching is cheap and
guidance buys little; in a large one the agent runs out of steps unless it is told where to look.

Splits, by construction:
    train, heldout_games   the same goals, other games
    heldout_goals          (task type, object, destination) combinations that the other splits never use
    long_horizon           large rooms, tasks of many steps
    deployment             the same goals, other games: what comes after training, where habits may have moved
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import random

from mempi_jax.envs.alfworld import tables
from mempi_jax.envs.alfworld.game import Game
from mempi_jax.envs.alfworld.tables import text_name

SPLITS = ('train', 'heldout_games', 'heldout_goals', 'long_horizon', 'deployment')
HELDOUT_SHARE = 0.15  # of the goal combinations
RELIABLE_SHARE = 0.7  # of the (room, object type) pairs
RELIABILITY = 0.9  # how often a reliable kind is where it usually is; an unreliable one is anywhere
USUAL_PRESENT = {'small': 0.6, 'large': 0.95}  # how often a room has the receptacle type of the household's rule
ROOM_WEIGHTS = {'kitchen': 0.4, 'bedroom': 0.2, 'bathroom': 0.15, 'livingroom': 0.25}
TASK_WEIGHTS = {
  'pick_and_place_simple': 0.3,
  'look_at_obj_in_light': 0.2,
  'pick_clean_then_place_in_recep': 0.16,
  'pick_heat_then_place_in_recep': 0.14,
  'pick_cool_then_place_in_recep': 0.14,
  'pick_two_obj_and_place': 0.06,
}
LONG_TASK_WEIGHTS = {
  'pick_clean_then_place_in_recep': 0.25,
  'pick_heat_then_place_in_recep': 0.2,
  'pick_cool_then_place_in_recep': 0.2,
  'pick_two_obj_and_place': 0.35,
}
TEMPLATES = {
  'pick_and_place_simple': ('put a {obj} in {recep}.', 'put some {obj} on {recep}.'),
  'look_at_obj_in_light': ('look at {obj} under the {recep}.', 'examine the {obj} with the {recep}.'),
  'pick_clean_then_place_in_recep': ('put a clean {obj} in {recep}.', 'clean some {obj} and put it in {recep}.'),
  'pick_heat_then_place_in_recep': ('put a hot {obj} in {recep}.', 'heat some {obj} and put it in {recep}.'),
  'pick_cool_then_place_in_recep': ('put a cool {obj} in {recep}.', 'cool some {obj} and put it in {recep}.'),
  'pick_two_obj_and_place': ('put two {obj} in {recep}.', 'find two {obj} and put them in {recep}.'),
}


@dataclasses.dataclass(frozen=True)
class Habit:
  """Where a household keeps a kind of object in a room (PDDL names)."""

  usual: str
  reliable: bool


@dataclasses.dataclass(frozen=True, order=True)
class Goal:
  """What a game may ask for; `destination` is a receptacle type, or the lamp (PDDL names)."""

  task_type: str
  room: str
  target: str
  destination: str

  @property
  def combination(self) -> tuple[str, str, str]:
    """What the held-out goals are held out by: task type, object, destination, in whatever room."""
    return self.task_type, self.target, self.destination


@functools.cache
def household_habits(household: str, moved: float = 0.0) -> dict[tuple[str, str], Habit]:
  """(room, object type) -> habit; a function of the household's name, and of the share of its habits that has moved.

  A kind of object whose habit moved is usually in another place, and as reliably as before. What has moved at some share has moved, and to the
  same place, at every larger one.
  """
  rng, change = random.Random(f'habits of {household}'), random.Random(f'moved habits of {household}')
  habits = {}
  for room, receptacles in tables.ROOMS.items():
    for target in tables.TARGETS[room]:
      places = [receptacle for receptacle in receptacles if tables.can_hold(receptacle, target)]
      habit = Habit(rng.choice(places), rng.random() < RELIABLE_SHARE)
      others = [place for place in places if place != habit.usual]
      draw, place = change.random(), change.random()
      if draw < moved and others:
        habit = Habit(others[int(place * len(others))], habit.reliable)
      habits[room, target] = habit
  return habits


@functools.cache
def household_goals(household: str, moved: float = 0.0) -> tuple[tuple[Goal, ...], tuple[Goal, ...]]:
  """(goals of train, held-out goals) of a household. Nobody is asked to put a thing where it usually is already."""
  habits = household_habits(household, moved)
  common, heldout = [], []
  for room, receptacles in tables.ROOMS.items():
    for target in tables.TARGETS[room]:
      usual = habits[room, target].usual
      for task_type in TASK_WEIGHTS:
        if task_type == 'look_at_obj_in_light':
          goals = [Goal(task_type, room, target, tables.LAMP)] if room in tables.LAMP_PLACE else []
        else:
          kinds, tool = tables.TOOLS.get(task_type, ({target}, None))
          possible = target in kinds and (tool is None or tool in receptacles)
          places = [place for place in receptacles if possible and tables.can_hold(place, target) and place != tool]
          goals = [Goal(task_type, room, target, place) for place in places]
        for goal in goals:
          if usual not in _busy(goal):
            (heldout if _is_heldout(household, goal) else common).append(goal)
  return tuple(common), tuple(heldout)


def _is_heldout(household: str, goal: Goal) -> bool:
  digest = hashlib.sha256('|'.join((household, *goal.combination)).encode()).digest()
  return int.from_bytes(digest[:4], 'big') < HELDOUT_SHARE * 2**32


def _busy(goal: Goal) -> tuple[str, ...]:
  """Receptacle types that play a part in the goal: the target does not start there."""
  if goal.task_type == 'look_at_obj_in_light':
    return (tables.LAMP_PLACE[goal.room],)
  if goal.task_type in tables.TOOLS:
    return (goal.destination, tables.TOOLS[goal.task_type][1])
  return (goal.destination,)


def generate_games(household: str, split: str, count: int, seed: int, *, small_fraction: float, moved: float = 0.0) -> list[Game]:
  """`count` games of a household; deterministic in the arguments, and game i does not depend on `count`.

  Args:
    household: its name decides its habits and which goals are held out.
    split: one of SPLITS; see the top of this file.
    count: how many.
    seed: other games of the same household.
    small_fraction: share of games in small rooms (3 to 5 receptacles); long_horizon games have large rooms only.
    moved: share of the household's habits that has moved, see `household_habits`.

  Returns:
    Games with ids unique per (household, split, seed, index). `hidden` has receptacle_types (types here that could hold the target),
    location_type (where it, for pick_two the first of it, is), usual_type and reliable (the household's habit), guidance (truthful for
    this game) and size ('small' or 'large').

  Raises:
    ValueError: an unknown split, or a fraction or share outside [0, 1].
  """
  if split not in SPLITS:
    raise ValueError(f'unknown split {split!r}: expected one of {", ".join(SPLITS)}')
  if not 0.0 <= small_fraction <= 1.0:
    raise ValueError(f'small_fraction {small_fraction}: expected a number between 0 and 1')
  if not 0.0 <= moved <= 1.0:
    raise ValueError(f'moved {moved}: expected a share of the habits, between 0 and 1')
  return [_generate_game(household, split, seed, index, small_fraction, moved) for index in range(count)]


def _generate_game(household: str, split: str, seed: int, index: int, small_fraction: float, moved: float) -> Game:
  rng = random.Random(f'game {household}|{split}|{seed}|{index}')
  goals = household_goals(household, moved)[split == 'heldout_goals']
  goal = _draw_goal(goals, LONG_TASK_WEIGHTS if split == 'long_horizon' else TASK_WEIGHTS, rng)
  size = 'small' if rng.random() < small_fraction and split != 'long_horizon' else 'large'
  habits = household_habits(household, moved)
  habit = habits[goal.room, goal.target]
  counts, candidates = _furnish(goal, habit.usual, size, rng)
  receptacles = [(kind, number) for kind in sorted(counts) for number in range(1, counts[kind] + 1)]

  def place(allowed: list[str], habit: Habit) -> tuple[str, int]:
    kind = habit.usual
    if kind not in allowed or not habit.reliable or rng.random() >= RELIABILITY:
      kind = rng.choice(allowed)
    number = 1
    while number < counts[kind] and rng.random() < 0.4:  # the first drawer is more used than the third
      number += 1
    return kind, number

  contents: list[tuple[str, tuple[str, int]]] = [(goal.target, place(candidates, habit))]
  if goal.task_type == 'pick_two_obj_and_place':
    contents.append((goal.target, contents[0][1] if rng.random() < 0.6 else place(candidates, habit)))
  if goal.task_type == 'look_at_obj_in_light':
    contents.append((tables.LAMP, (tables.LAMP_PLACE[goal.room], 1)))
  others = [kind for kind in tables.TARGETS[goal.room] if kind != goal.target]
  for kind in rng.sample(others, min(len(others), rng.randint(1, 2) if size == 'small' else rng.randint(3, 6))):
    allowed = [receptacle for receptacle in sorted(counts) if tables.can_hold(receptacle, kind)]
    if allowed:
      contents.append((kind, place(allowed, habits[goal.room, kind])))

  location = contents[0][1][0]
  target, place_name = text_name(goal.target), text_name(location)
  sentence = rng.choice(TEMPLATES[goal.task_type]).format(obj=target, recep=text_name(goal.destination))
  game_id = f'{household}-{split}-s{seed}-{index:05d}'
  return Game(
    game_id=game_id,
    task_type=goal.task_type,
    goal=sentence,
    problem=_problem(game_id, goal, receptacles, contents, rng),
    split=split,
    household=household,
    room=goal.room,
    target=target,
    destination=text_name(goal.destination),
    walk=_plan(goal, contents),
    hidden={
      'receptacle_types': [text_name(kind) for kind in candidates],
      'location_type': place_name,
      'usual_type': text_name(habit.usual),
      'reliable': habit.reliable,
      'guidance': usually(target, place_name),
      'size': size,
    },
  )


def usually(target: str, place: str) -> str:
  """The one form of a positive hint: "the mug is usually in the drawer."."""
  return f'the {target} is usually in the {place}.'


def seldom(target: str, place: str) -> str:
  """The one form of a pitfall: "the mug is seldom in the drawer."."""
  return f'the {target} is seldom in the {place}.'


def _draw_goal(goals: tuple[Goal, ...], task_weights: dict[str, float], rng: random.Random) -> Goal:
  """Room by weight, then a task type that the room offers by weight, then the object and the destination evenly."""
  goals = tuple(goal for goal in goals if goal.task_type in task_weights)
  rooms = [room for room in ROOM_WEIGHTS if any(goal.room == room for goal in goals)]
  room = rng.choices(rooms, [ROOM_WEIGHTS[room] for room in rooms])[0]
  here = [goal for goal in goals if goal.room == room]
  types = [task_type for task_type in task_weights if any(goal.task_type == task_type for goal in here)]
  task_type = rng.choices(types, [task_weights[task_type] for task_type in types])[0]
  here = [goal for goal in here if goal.task_type == task_type]
  target = rng.choice(sorted({goal.target for goal in here}))
  return rng.choice([goal for goal in here if goal.target == target])


def _furnish(goal: Goal, usual: str, size: str, rng: random.Random) -> tuple[dict[str, int], list[str]]:
  """The room's receptacle types with their numbers, and the types (sorted) in which the target may be."""
  most = tables.ROOMS[goal.room]
  needed = list(_busy(goal))
  able = [kind for kind in most if kind not in needed and tables.can_hold(kind, goal.target)]
  if rng.random() < USUAL_PRESENT[size]:
    chosen = [usual]
  else:
    chosen = []
  spare = [kind for kind in able if kind != usual]
  rng.shuffle(spare)
  num_candidates = min(rng.randint(2, 3) if size == 'small' else rng.randint(5, 6), len(able))
  if size == 'small':
    num_candidates = min(num_candidates, 5 - len(needed))
  chosen += spare[: num_candidates - len(chosen)]
  if len(chosen) < num_candidates:
    chosen.append(usual)
  kinds = needed + chosen
  counts = dict.fromkeys(kinds, 1)
  if size == 'large':
    fillers = [kind for kind in most if kind not in counts]
    rng.shuffle(fillers)
    counts |= dict.fromkeys(fillers[: max(0, 8 - len(counts))], 1)
    several = [kind for kind in counts if most[kind] > 1]
    wanted = rng.randint(13, 16)
    while sum(counts.values()) < wanted and several:
      kind = rng.choice(several)
      counts[kind] += 1
      if counts[kind] == most[kind]:
        several.remove(kind)
  return counts, sorted(chosen)


def _plan(goal: Goal, contents: list[tuple[str, tuple[str, int]]]) -> tuple[str, ...]:
  """Commands that solve the game, from the privileged state: fetch, treat, deliver, one object after the other."""

  def visit(place: tuple[str, int]) -> list[str]:
    steps = [f'go to {name(place)}']
    if place[0] in tables.OPENABLE and place not in opened:
      opened.add(place)
      steps.append(f'open {name(place)}')
    return steps

  def name(place: tuple[str, int]) -> str:
    return f'{text_name(place[0])} {place[1]}'

  opened: set[tuple[str, int]] = set()
  targets = [place for kind, place in contents if kind == goal.target]
  walk: list[str] = []
  for number, place in enumerate(targets, start=1):
    thing = f'{text_name(goal.target)} {number}'
    walk += [*visit(place), f'take {thing} from {name(place)}']
    if goal.task_type == 'look_at_obj_in_light':
      return (*walk, f'go to {name((tables.LAMP_PLACE[goal.room], 1))}', f'use {text_name(tables.LAMP)} 1')
    if goal.task_type in tables.TOOLS:
      verb = goal.task_type.split('_')[1]
      tool = name((tables.TOOLS[goal.task_type][1], 1))
      walk += [f'go to {tool}', f'{verb} {thing} with {tool}']
    walk += [*visit((goal.destination, 1)), f'move {thing} to {name((goal.destination, 1))}']
  return tuple(walk)


# The problem as PDDL.

_ALWAYS_TYPES = ('SinkBasinType', 'MicrowaveType', 'FridgeType')  # the domain's actions name these, present or not
_ALWAYS_KINDS = ('KnifeType', 'ButterKnifeType')

_STATES = {'pick_clean_then_place_in_recep': 'Clean', 'pick_heat_then_place_in_recep': 'Hot', 'pick_cool_then_place_in_recep': 'Cool'}
_ABLE = {'Clean': 'cleanable', 'Hot': 'heatable', 'Cool': 'coolable'}


def _identifier(kind: str, number: int, count: int) -> str:
  """The PDDL id of the thing that the text calls "kind number": the engine numbers ids from the last in sorted order to the first."""
  rank = count + 1 - number
  if kind.endswith('Basin'):  # "Sink|1|SinkBasin": the engine names it by the first part plus "basin"
    return f'{kind.removesuffix("Basin")}_bar_{rank:02d}_bar_{kind}'
  return f'{kind}_bar_{rank:02d}'


def _problem(
  game_id: str, goal: Goal, receptacles: list[tuple[str, int]], contents: list[tuple[str, tuple[str, int]]], rng: random.Random
) -> str:
  """PDDL problem text. Object number n of a kind is its n-th in `contents`; every receptacle has a location of its own."""
  num_receptacles = {kind: sum(other == kind for other, _ in receptacles) for kind, _ in receptacles}
  places = {place: _identifier(*place, num_receptacles[place[0]]) for place in receptacles}
  spots = list(range(1, len(receptacles) + 1))
  rng.shuffle(spots)
  locations = {place: f'loc_bar_{spot:02d}' for place, spot in zip(receptacles, spots, strict=True)}
  totals = {kind: sum(other == kind for other, _ in contents) for kind, _ in contents}
  seen = dict.fromkeys(totals, 0)
  things: list[tuple[str, str, tuple[str, int]]] = []
  for kind, place in contents:
    seen[kind] += 1
    things.append((_identifier(kind, seen[kind], totals[kind]), kind, place))

  kinds, types = sorted(totals), sorted(num_receptacles)
  objects = ['agent1 - agent']
  objects += [f'{thing} - object' for thing, _, _ in things]
  objects += [f'{name} - otype' for name in dict.fromkeys([*_ALWAYS_KINDS, *(f'{kind}Type' for kind in kinds)])]
  objects += [f'{name} - rtype' for name in dict.fromkeys([*_ALWAYS_TYPES, *(f'{kind}Type' for kind in types)])]
  objects += [f'{places[place]} - receptacle' for place in receptacles]
  objects += [f'loc_bar_{spot:02d} - location' for spot in range(len(receptacles) + 1)]

  facts = [f'receptacleType {places[place]} {place[0]}Type' for place in receptacles]
  facts += [f'objectType {thing} {kind}Type' for thing, kind, _ in things]
  facts += [f'canContain {receptacle}Type {kind}Type' for receptacle in types for kind in kinds if tables.can_hold(receptacle, kind)]
  for predicate, able in (
    ('isReceptacleObject', tables.CONTAINERS),
    ('cleanable', tables.CLEANABLE),
    ('heatable', tables.HEATABLE),
    ('coolable', tables.COOLABLE),
    ('sliceable', tables.SLICEABLE),
    ('toggleable', {tables.LAMP}),
  ):
    facts += [f'{predicate} {thing}' for thing, kind, _ in things if kind in able]
  facts += [f'pickupable {thing}' for thing, kind, _ in things if kind != tables.LAMP]
  facts += [f'openable {places[place]}' for place in receptacles if place[0] in tables.OPENABLE]
  facts += ['atLocation agent1 loc_bar_00']
  facts += [f'inReceptacle {thing} {places[place]}' for thing, _, place in things]
  facts += [f'receptacleAtLocation {places[place]} {locations[place]}' for place in receptacles]
  facts += [f'objectAtLocation {thing} {locations[place]}' for thing, _, place in things]
  return '\n'.join(
    [
      f'(define (problem {game_id.replace("-", "_")})',
      '(:domain alfred)',
      '(:objects',
      *(f'  {line}' for line in objects),
      ')',
      '(:init',
      *(f'  ({line})' for line in facts),
      ')',
      _goal_pddl(goal),
      ')',
      '',
    ]
  )


def _goal_pddl(goal: Goal) -> str:
  if goal.task_type == 'look_at_obj_in_light':
    return (
      '(:goal (and\n'
      '  (exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and\n'
      f'    (objectType ?ot {goal.destination}Type) (toggleable ?ot) (isToggled ?ot)\n'
      '    (receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?ot ?r)))\n'
      '  (exists (?o - object ?a - agent) (and\n'
      f'    (objectType ?o {goal.target}Type) (holds ?a ?o)))))'
    )
  if goal.task_type == 'pick_two_obj_and_place':
    return (
      '(:goal (and\n'
      '  (exists (?r - receptacle) (exists (?o1 - object) (and\n'
      f'    (objectType ?o1 {goal.target}Type) (receptacleType ?r {goal.destination}Type) (inReceptacle ?o1 ?r)\n'
      '    (exists (?o2 - object) (and (not (= ?o1 ?o2))\n'
      f'      (objectType ?o2 {goal.target}Type) (receptacleType ?r {goal.destination}Type) (inReceptacle ?o2 ?r))))))))'
    )
  state = _STATES.get(goal.task_type)
  before = f'({_ABLE[state]} ?o) ' if state else ''
  after = f'(is{state} ?o) ' if state else ''
  return (
    '(:goal (and\n'
    '  (exists (?r - receptacle) (exists (?o - object) (and\n'
    f'    {before}(objectType ?o {goal.target}Type) (receptacleType ?r {goal.destination}Type)\n'
    f'    {after}(inReceptacle ?o ?r))))))'
  )
