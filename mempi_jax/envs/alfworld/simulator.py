"""A fast simulator of ALFWorld games in pure Python: the ALFRED rules and the text grammar of `alfworld` 0.4.2.

It reproduces the real engine exactly, step by step: same feedback, same admissible commands, same `won`
(`python -m mempi_jax.verify_alfworld` compares them). Nothing had to be put into an order of our own: TextWorld 1.7 sorts the facts that it
lists by their PDDL ids, and so does the simulator; hence a room is read out as "a drawer 2, a drawer 1", since the engine numbers downwards.

What the engine does that one would not guess, and that is kept:
- `go to` the place where you stand (or another receptacle at the same spot), and whatever is not in the list of admissible commands, letter
  for letter, answers "Nothing happens.".
- `look` before going anywhere sees nothing; only the first text lists the room.
- An object may stand in several receptacles at once; taking it from one leaves it in the others.
- `look` lists, "next to" the receptacles in front of you, each object of this spot once for every receptacle here that it was taken from.
- `slice` works on whatever was put down at this spot, inside closed receptacles too, and heating does not need an open microwave.
- Only the object in the hand can be examined, beside receptacles: the rule for other objects names a type that does not exist.
- A lamp can only ever be turned on.
"""

from __future__ import annotations

from collections.abc import Iterable

from mempi_jax.envs.alfworld.problem import Literal, Problem

NOTHING = 'Nothing happens.'
BANNER = '-= Welcome to TextWorld, ALFRED! =-'
HELP = """Available commands:
  look:                             look around your current location
  inventory:                        check your current inventory
  go to (receptacle):               move to a receptacle
  open (receptacle):                open a receptacle
  close (receptacle):               close a receptacle
  take (object) from (receptacle):  take an object from a receptacle
  move (object) to (receptacle):  place an object in or on a receptacle
  examine (something):              examine a receptacle or an object
  use (object):                     use an object
  heat (object) with (receptacle):  heat an object using a receptacle
  clean (object) with (receptacle): clean an object using a receptacle
  cool (object) with (receptacle):  cool an object using a receptacle
  slice (object) with (object):     slice an object using a sharp object
"""


class Simulator:
  """One running game. Call `reset` first; a new `reset` starts the same game again. `problem` is only read, so games share it.

  `goal_sentence` is what the first text ends with, "Your task is to: {goal_sentence}".
  """

  def __init__(self, problem: Problem, goal_sentence: str):
    self.problem = problem
    self.goal_sentence = goal_sentence
    self._started = False

  def reset(self) -> str:
    """Puts everything back and returns the first text: banner, room, task."""
    problem = self.problem
    self.location = problem.start
    self.held: int | None = None
    self.opened = set(problem.opened)
    self.contents = {receptacle: set(inner) for receptacle, inner in problem.contents.items()}
    self.object_locations = {thing: set(places) for thing, places in problem.object_locations.items()}
    self.states = {predicate: set(objects) for predicate, objects in problem.states.items()}
    self.removed: dict[int, set[int]] = {}  # receptacle -> objects that were taken out of it
    self.won = self._goal_holds()
    self._started = True
    return f'{BANNER}\n\n{self.first_look()}\n\nYour task is to: {self.goal_sentence}'

  def first_look(self) -> str:
    """The part of the first text that describes the room (of the current state; meant for right after `reset`)."""
    problem = self.problem
    if problem.at.get(self.location):
      return self._look()
    return f'You are in the middle of a room. Looking quickly around you, you see {self._listing(problem.receptacles)}.'

  def step(self, command: str) -> tuple[str, bool]:
    """Carries out one command. Returns the feedback and whether the goal holds now.

    Raises:
      RuntimeError: before `reset`.
    """
    if not self._started:
      raise RuntimeError('call reset() before step()')
    words = command.strip().split(' ')
    handler = _COMMANDS.get((words[0], len(words)))
    feedback = handler(self, words) if handler else None
    return (NOTHING if feedback is None else feedback), self.won

  def admissible_commands(self) -> list[str]:
    """All commands that do something now, sorted as strings."""
    problem, names, here = self.problem, self.problem.names, self.location
    commands = ['help', 'inventory', 'look']
    commands += [f'go to {names[r]}' for r, place in problem.location.items() if place != here]
    held = self.held
    kind = None if held is None else problem.object_type.get(held)
    for r in problem.at.get(here, ()):
      name = names[r]
      commands.append(f'examine {name}')
      reachable = True
      if r in problem.openable:
        reachable = r in self.opened
        commands.append(f'{"close" if reachable else "open"} {name}')
      inner = self.contents[r]
      commands += [f'use {names[o]}' for o in inner & problem.toggleable]
      if reachable:
        if held is None:
          commands += [f'take {names[o]} from {name}' for o in inner & problem.pickupable]
        elif kind and (problem.receptacle_type.get(r), kind) in problem.can_contain:
          commands.append(f'move {names[held]} to {name}')
      if held is not None:
        for verb, _, receptacle_type, able, _, _ in _TREATMENTS:
          if problem.receptacle_type.get(r) == receptacle_type and held in getattr(problem, able):
            commands.append(f'{verb} {names[held]} with {name}')
    if held is not None:
      commands.append(f'examine {names[held]}')
    if held in problem.knives:
      commands += [f'slice {names[o]} with {names[held]}' for o in problem.sliceable if here in self.object_locations.get(o, ())]
    return sorted(set(commands))

  # Commands: each returns the feedback, or None where the engine has no such action now. The words are split at single blanks.

  def _go(self, words: list[str]) -> str | None:
    r = self.problem.entity.get(f'{words[2]} {words[3]}')
    place = self.problem.location.get(r)
    if words[1] != 'to' or place is None or place == self.location:
      return None
    self.location = place
    self._update()
    return f'You arrive at {self.problem.names[r]}. {self._describe(r)}'

  def _open(self, words: list[str]) -> str | None:
    r = self._receptacle_here(f'{words[1]} {words[2]}')
    if r is None or r not in self.problem.openable or r in self.opened:
      return None
    self.opened.add(r)
    self._update()
    return f'You open the {self.problem.names[r]}. {self._describe(r)}'

  def _close(self, words: list[str]) -> str | None:
    r = self._receptacle_here(f'{words[1]} {words[2]}')
    if r is None or r not in self.problem.openable or r not in self.opened:
      return None
    self.opened.discard(r)
    self._update()
    return f'You close the {self.problem.names[r]}.'

  def _take(self, words: list[str]) -> str | None:
    problem = self.problem
    o, r = problem.entity.get(f'{words[1]} {words[2]}'), self._receptacle_here(f'{words[4]} {words[5]}')
    if words[3] != 'from' or r is None or self.held is not None or not self._reachable(r):
      return None
    if o not in problem.pickupable or o not in self.contents[r]:
      return None
    self.contents[r].discard(o)
    self.removed.setdefault(r, set()).add(o)
    self.held = o
    if o in self.object_locations:
      self.object_locations[o].discard(self.location)
    self._update()
    return f'You pick up the {problem.names[o]} from the {problem.names[r]}.'

  def _move(self, words: list[str]) -> str | None:
    problem = self.problem
    o, r = problem.entity.get(f'{words[1]} {words[2]}'), self._receptacle_here(f'{words[4]} {words[5]}')
    if words[3] != 'to' or o is None or o != self.held or r is None or not self._reachable(r):
      return None
    if (problem.receptacle_type.get(r), problem.object_type.get(o)) not in problem.can_contain:
      return None
    self.contents[r].add(o)
    if r in self.removed:
      self.removed[r].discard(o)
    self.object_locations.setdefault(o, set()).add(self.location)
    self.held = None
    self._update()
    return f'You move the {problem.names[o]} to the {problem.names[r]}.'

  def _treat(self, words: list[str]) -> str | None:
    """clean, heat, cool: what is in the hand, with a sink, a microwave, a fridge."""
    problem = self.problem
    o, r = problem.entity.get(f'{words[1]} {words[2]}'), self._receptacle_here(f'{words[4]} {words[5]}')
    verb, phrase, receptacle_type, able, gained, lost = _TREATMENT[words[0]]
    if words[3] != 'with' or o is None or o != self.held or o not in getattr(problem, able):
      return None
    if r is None or problem.receptacle_type.get(r) != receptacle_type:
      return None
    self.states[gained].add(o)
    if lost:
      self.states[lost].discard(o)
    self._update()
    return f'You {phrase} the {problem.names[o]} using the {problem.names[r]}.'

  def _use(self, words: list[str]) -> str | None:
    problem = self.problem
    o = problem.entity.get(f'{words[1]} {words[2]}')
    if o not in problem.toggleable or not any(o in self.contents[r] for r in problem.at.get(self.location, ())):
      return None
    self.states['ison'] ^= {o}
    self.states['istoggled'].add(o)
    self._update()
    return f'You turn on the {problem.names[o]}.'

  def _slice(self, words: list[str]) -> str | None:
    problem = self.problem
    o, knife = problem.entity.get(f'{words[1]} {words[2]}'), problem.entity.get(f'{words[4]} {words[5]}')
    if words[3] != 'with' or knife is None or knife != self.held or knife not in problem.knives:
      return None
    if o not in problem.sliceable or self.location not in self.object_locations.get(o, ()):
      return None
    self.states['issliced'].add(o)
    self._update()
    return f'You sliced the {problem.names[o]} with the {problem.names[knife]}.'

  def _examine(self, words: list[str]) -> str | None:
    problem = self.problem
    thing = problem.entity.get(f'{words[1]} {words[2]}')
    if thing is None:
      return None
    if thing in problem.at.get(self.location, ()):
      return self._describe(thing)
    if thing != self.held:
      return None
    name, states = problem.names[thing], self.states
    if thing in problem.receptacle_objects:
      return f'This is a normal {name}. In it, you see {self._listing(problem.inside.get(thing, ()))}.'
    clean, hot, cool = thing in states['isclean'], thing in states['ishot'], thing in states['iscool']
    if thing in states['issliced'] and (clean or hot or cool):
      words = ('hot and clean' if hot else 'cool and clean' if cool else 'clean') if clean else 'hot' if hot else 'cool'
      return f'This is a {words} sliced {name}.'
    if clean or hot or cool:
      words = ('hot and clean' if hot else 'cool and clean' if cool else 'clean') if clean else 'hot' if hot else 'cold'
      return f'This is a {words} {name}.'
    if thing in problem.toggleable and thing in states['istoggled']:
      return f'This {name} is on.'
    if thing in problem.sliceable and thing in states['issliced']:
      return f'This is a sliced {name}.'
    return f"There's nothing special about {name}."

  def _inventory(self, words: list[str]) -> str:
    return 'You are not carrying anything.' if self.held is None else f'You are carrying: a {self.problem.names[self.held]}.'

  def _look(self, words: list[str] | None = None) -> str:
    problem = self.problem
    here = problem.at.get(self.location)
    if not here:
      return 'You are in the middle of a room. Looking quickly around you, you see nothing.'
    beside = sorted(
      (o, r) for r in here for o in self.removed.get(r, ()) if self.location in self.object_locations.get(o, ())
    )
    facing = _join([problem.names[r] for r in here])
    return f'You are facing the {facing}. Next to it, you see {self._listing(o for o, _ in beside)}.'

  def _help(self, words: list[str]) -> str:
    return HELP

  # Parts of the above.

  def _receptacle_here(self, name: str) -> int | None:
    r = self.problem.entity.get(name)
    return r if self.problem.location.get(r) == self.location else None

  def _reachable(self, r: int) -> bool:
    return r not in self.problem.openable or r in self.opened

  def _describe(self, r: int) -> str:
    name = self.problem.names[r]
    if r not in self.problem.openable:
      return f'On the {name}, you see {self._listing(sorted(self.contents[r]))}.'
    if r in self.opened:
      return f'The {name} is open. In it, you see {self._listing(sorted(self.contents[r]))}.'
    return f'The {name} is closed.'

  def _listing(self, things: Iterable[int]) -> str:
    names = self.problem.names
    return _join([f'a {names[thing]}' for thing in things]) or 'nothing'

  # The goal.

  def _update(self) -> None:
    self.won = self._goal_holds()

  def _goal_holds(self) -> bool:
    plan = self.problem.goal.plan
    values = [-1] * len(self.problem.goal.candidates)

    def search(depth: int) -> bool:
      """Can the variables from `depth` of the plan on be chosen so that every literal holds?"""
      choice = plan[depth]
      found = choice.candidates
      if choice.source is not None:
        found = [value for value in self._values(choice.source, values) if value in found]
      for value in found:
        if choice.variable is not None:
          values[choice.variable] = value
        if all(self._true(literal, values) for literal in choice.checks) and (depth + 1 == len(plan) or search(depth + 1)):
          return True
      return False

    return search(0)

  def _values(self, literal: Literal, values: list[int]) -> Iterable[int]:
    """All values of the last open argument for which the literal holds: `in what?`, `holds what?`, `where?`."""
    if literal.predicate == 'inreceptacle':
      o = _value(literal.arguments[0], values)
      return [r for r, inner in self.contents.items() if o in inner]
    if literal.predicate == 'holds':
      return () if self.held is None else (self.held,)
    return (self.location,)  # atlocation

  def _true(self, literal: Literal, values: list[int]) -> bool:
    predicate = literal.predicate
    arguments = [_value(argument, values) for argument in literal.arguments]
    first, last = arguments[0], arguments[-1]
    problem = self.problem
    if predicate == 'inreceptacle':
      true = first in self.contents.get(last, ())
    elif predicate in self.states:
      true = first in self.states[predicate]
    elif predicate == '=':
      true = first == last
    elif predicate == 'receptacleatlocation':
      true = problem.location.get(first) == last
    elif predicate == 'atlocation':
      true = self.location == last
    elif predicate == 'holds':
      true = self.held == last
    elif predicate == 'holdsany':
      true = self.held is not None
    elif predicate == 'opened':
      true = first in self.opened
    elif predicate == 'objectatlocation':
      true = last in self.object_locations.get(first, ())
    elif predicate == 'inreceptacleobject':
      true = first in problem.inside.get(last, ())
    elif predicate == 'isreceptacleobject':
      true = first in problem.receptacle_objects
    elif predicate in ('objecttype', 'receptacletype', 'cancontain'):
      kinds = {'objecttype': problem.object_type, 'receptacletype': problem.receptacle_type}.get(predicate)
      kind = problem.ids[last] if last < len(problem.ids) else None
      true = kinds.get(first) == kind if kinds else (problem.ids[first], kind) in problem.can_contain
    else:  # openable, pickupable, cleanable, ...
      true = first in getattr(problem, predicate)
    return true == literal.positive


# (verb, phrase, type of the receptacle, what the object must be, what it becomes, what it ceases to be)
_TREATMENTS = (
  ('clean', 'clean', 'sinkbasintype', 'cleanable', 'isclean', None),
  ('heat', 'heat', 'microwavetype', 'heatable', 'ishot', 'iscool'),
  ('cool', 'cool', 'fridgetype', 'coolable', 'iscool', 'ishot'),
)
_TREATMENT = {row[0]: row for row in _TREATMENTS}
_COMMANDS = {
  ('go', 4): Simulator._go,
  ('open', 3): Simulator._open,
  ('close', 3): Simulator._close,
  ('take', 6): Simulator._take,
  ('move', 6): Simulator._move,
  ('clean', 6): Simulator._treat,
  ('heat', 6): Simulator._treat,
  ('cool', 6): Simulator._treat,
  ('use', 3): Simulator._use,
  ('slice', 6): Simulator._slice,
  ('examine', 3): Simulator._examine,
  ('inventory', 1): Simulator._inventory,
  ('look', 1): Simulator._look,
  ('help', 1): Simulator._help,
}


def _value(argument: int, values: list[int]) -> int:
  return values[-1 - argument] if argument < 0 else argument


def _join(items: list[str]) -> str:
  """`a, b, and c`, as the grammar lists things (with the comma before "and" even for two)."""
  return ', '.join(items[:-1]) + ', and ' + items[-1] if len(items) > 1 else ''.join(items)
