"""An ALFWorld game's PDDL problem as an immutable `Problem`: what is where, what can be done with it, and the goal.

Everything is numbered once, so that the simulator works on small integers: the entities are the ids that occur in the initial facts, in the
order of their ids as strings, which is the order in which the real engine lists things; `Problem.names` are the names that a player sees
("drawer 2"). The engine numbers the things of one kind downwards along that order: the first id of five drawers is "drawer 5".

A goal is a conjunction of literals under `exists`, which covers the six official task types; whatever else is found gives an error.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

# Facts that no action changes, and facts that some action may change, by the number of their arguments.
STATIC = {
  'objecttype': 2,
  'receptacletype': 2,
  'receptacleatlocation': 2,
  'cancontain': 2,
  'inreceptacleobject': 2,
  'isreceptacleobject': 1,
  'openable': 1,
  'pickupable': 1,
  'cleanable': 1,
  'heatable': 1,
  'coolable': 1,
  'toggleable': 1,
  'sliceable': 1,
}
FLUENT = {
  'atlocation': 2,
  'inreceptacle': 2,
  'objectatlocation': 2,
  'holds': 2,
  'holdsany': 1,
  'opened': 1,
  'isclean': 1,
  'ishot': 1,
  'iscool': 1,
  'issliced': 1,
  'istoggled': 1,
  'ison': 1,
}
# Declared in the domain, used by no rule, text or goal of ALFWorld.
_IGNORED = {'moveable', 'wasinreceptacle', 'checked', 'examined', 'full', 'isreceptacleobjectfull', 'holdsanyreceptacleobject'}
_TYPES = ('agent', 'location', 'receptacle', 'object', 'rtype', 'otype')
_TOKEN = re.compile(r'[()]|[^\s()]+')
_COMMENT = re.compile(r';[^\n]*')


@dataclasses.dataclass(frozen=True, slots=True)
class Literal:
  """`predicate(arguments)`, or its negation. An argument below zero is the variable -1 - argument, else an entity."""

  predicate: str  # a name of STATIC or FLUENT, or '='
  arguments: tuple[int, ...]
  positive: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
  """One level of the search for values of the goal's variables: give `variable` a value, then all of `checks` must be true.

  If there is a `source`, the state says which values make that literal true, and of those only `candidates` count; else each candidate is
  tried. The choice that has no variable has one candidate, and checks what is said of entities alone.
  """

  variable: int | None
  candidates: tuple[int, ...] | frozenset[int]
  source: Literal | None
  checks: tuple[Literal, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Goal:
  """The conjunction of `literals`, whose variables exist. `candidates[v]` are the entities that variable v may be: static facts about v
  alone are already in them, and in no literal."""

  literals: tuple[Literal, ...]
  candidates: tuple[frozenset[int], ...]
  plan: tuple[Choice, ...]  # the order in which to look for values


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
  """A parsed problem; never changed, so that any number of simulators share it. Entities are integers: positions in `ids` and `names`."""

  ids: tuple[str, ...]  # lower case, sorted
  names: tuple[str, ...]  # what a player reads
  entity: Mapping[str, int]  # name -> entity
  agent: int
  start: int  # the agent's location
  receptacles: tuple[int, ...]  # those with a location, in the engine's order
  location: Mapping[int, int]  # receptacle -> its location
  at: Mapping[int, tuple[int, ...]]  # location -> the receptacles there
  objects: tuple[int, ...]
  object_type: Mapping[int, str]  # 'mugtype'
  receptacle_type: Mapping[int, str]
  can_contain: frozenset[tuple[str, str]]  # (receptacle type, object type)
  openable: frozenset[int]
  pickupable: frozenset[int]
  cleanable: frozenset[int]
  heatable: frozenset[int]
  coolable: frozenset[int]
  toggleable: frozenset[int]
  sliceable: frozenset[int]
  receptacle_objects: frozenset[int]  # bowls, pots: things that hold other things
  inside: Mapping[int, tuple[int, ...]]  # receptacle object -> what is in it, for ever
  knives: frozenset[int]
  # The start, of what may change.
  opened: frozenset[int]
  contents: Mapping[int, frozenset[int]]  # receptacle -> objects; an object may be in several of them
  object_locations: Mapping[int, frozenset[int]]
  states: Mapping[str, frozenset[int]]  # isclean, ishot, iscool, issliced, istoggled, ison -> objects
  goal: Goal


def parse_problem(text: str) -> Problem:
  """Parses the text of an ALFRED-domain PDDL problem. Names of PDDL are not case sensitive.

  Raises:
    ValueError: says what was found and what was expected.
  """
  sections = _sections(_read(text))
  types = _declared(sections['objects'])
  facts = _facts(sections['init'], types)

  ids = sorted({argument for rows in facts.values() for row in rows for argument in row})
  index = {name: i for i, name in enumerate(ids)}
  names = _names(ids)
  entity = dict(zip(names, range(len(names)), strict=True))

  def pairs(predicate: str) -> list[tuple[int, int]]:
    return [(index[a], index[b]) for a, b in facts.get(predicate, ())]

  def members(predicate: str) -> frozenset[int]:
    return frozenset(index[a] for (a,) in facts.get(predicate, ()))

  if facts.get('holds') or facts.get('holdsany'):
    raise ValueError('the problem starts with an object in hand (holds, holdsAny); expected empty hands')
  starts = facts.get('atlocation', [])
  if len(starts) != 1:
    raise ValueError(f'expected one (atLocation AGENT LOCATION) in :init, found {len(starts)}')
  agent, start = (index[argument] for argument in starts[0])

  location = _function('receptacleAtLocation', sorted(pairs('receptacleatlocation')), ids)
  at: dict[int, list[int]] = {}
  for receptacle, place in location.items():
    at.setdefault(place, []).append(receptacle)
  object_type = {o: ids[t] for o, t in _function('objectType', pairs('objecttype'), ids).items()}
  receptacle_type = {r: ids[t] for r, t in _function('receptacleType', pairs('receptacletype'), ids).items()}
  contents: dict[int, set[int]] = {receptacle: set() for receptacle in location}
  for inner, receptacle in pairs('inreceptacle'):
    contents.setdefault(receptacle, set()).add(inner)
  object_locations: dict[int, set[int]] = {}
  for thing, place in pairs('objectatlocation'):
    object_locations.setdefault(thing, set()).add(place)
  inside: dict[int, list[int]] = {}
  for inner, outer in sorted(pairs('inreceptacleobject')):
    inside.setdefault(outer, []).append(inner)

  return Problem(
    ids=tuple(ids),
    names=names,
    entity=entity,
    agent=agent,
    start=start,
    receptacles=tuple(location),
    location=location,
    at={place: tuple(there) for place, there in at.items()},
    objects=tuple(i for i, name in enumerate(ids) if types[name] == 'object'),
    object_type=object_type,
    receptacle_type=receptacle_type,
    can_contain=frozenset(facts.get('cancontain', ())),
    **{
      predicate: members(predicate)
      for predicate in ('openable', 'pickupable', 'cleanable', 'heatable', 'coolable', 'toggleable', 'sliceable', 'opened')
    },
    receptacle_objects=members('isreceptacleobject'),
    inside={outer: tuple(inner) for outer, inner in inside.items()},
    knives=frozenset(o for o, kind in object_type.items() if kind in ('knifetype', 'butterknifetype')),
    contents={receptacle: frozenset(inner) for receptacle, inner in contents.items()},
    object_locations={thing: frozenset(places) for thing, places in object_locations.items()},
    states={predicate: members(predicate) for predicate in ('isclean', 'ishot', 'iscool', 'issliced', 'istoggled', 'ison')},
    goal=_goal(sections['goal'], types, index, facts),
  )


# Text to nested lists.


def _read(text: str) -> list[Any]:
  """The one nested list of a PDDL text."""
  stack: list[list[Any]] = []
  current: list[Any] = []
  for token in _TOKEN.findall(_COMMENT.sub('', text).lower()):
    if token == '(':
      stack.append(current)
      current = []
    elif token == ')':
      if not stack:
        raise ValueError('a closing parenthesis too many; expected a PDDL problem (define (problem NAME) ...)')
      stack[-1].append(current)
      current = stack.pop()
    else:
      current.append(token)
  if stack:
    raise ValueError(f'{len(stack)} parentheses are not closed; the text of the problem is cut off')
  if len(current) != 1 or not isinstance(current[0], list) or current[0][:1] != ['define']:
    raise ValueError(f'expected a PDDL problem (define (problem NAME) ...), found {text.strip()[:60]!r}')
  return current[0]


def _sections(problem: list[Any]) -> dict[str, list[Any]]:
  sections: dict[str, list[Any]] = {}
  for part in problem[1:]:
    if not isinstance(part, list) or not part or not isinstance(part[0], str):
      raise ValueError(f'expected (:objects ...), (:init ...) or (:goal ...) in the problem, found {_show(part)}')
    sections[part[0].removeprefix(':')] = part[1:]
  for name in ('problem', 'domain', 'objects', 'init', 'goal'):
    if name not in sections:
      raise ValueError(f'the problem has no ({":" if name != "problem" else ""}{name} ...); found {sorted(sections)}')
  if sections['domain'] != ['alfred']:
    raise ValueError(f'expected (:domain alfred), found {_show(sections["domain"])}')
  if len(sections['goal']) != 1:
    raise ValueError(f'expected one condition in :goal, found {len(sections["goal"])}')
  return sections


def _show(part: Any) -> str:
  text = '(' + ' '.join(_show(item) for item in part) + ')' if isinstance(part, list) else str(part)
  return text if len(text) <= 120 else text[:117] + '...'


def _typed(tokens: list[Any], where: str) -> list[tuple[str, str]]:
  """`a b - object c - receptacle` -> [(a, object), (b, object), (c, receptacle)]."""
  typed: list[tuple[str, str]] = []
  waiting: list[str] = []
  position = 0
  while position < len(tokens):
    token = tokens[position]
    if not isinstance(token, str):
      raise ValueError(f'expected NAME - TYPE in {where}, found {_show(token)}')
    if token == '-':
      kind = tokens[position + 1] if position + 1 < len(tokens) else 'nothing'
      if kind not in _TYPES:
        raise ValueError(f'unknown type {_show(kind)} in {where}; expected one of {", ".join(_TYPES)}')
      if not waiting:
        raise ValueError(f'no name before "- {kind}" in {where}')
      typed += [(name, kind) for name in waiting]
      waiting = []
      position += 2
    else:
      waiting.append(token)
      position += 1
  if waiting:
    raise ValueError(f'{waiting[0]!r} has no type in {where}; expected NAME - TYPE')
  return typed


def _declared(tokens: list[Any]) -> dict[str, str]:
  types: dict[str, str] = {}
  for name, kind in _typed(tokens, ':objects'):
    if types.setdefault(name, kind) != kind:
      raise ValueError(f'{name!r} is declared both as {types[name]} and as {kind}')
  return types


_ARGUMENT_TYPES = {
  'objecttype': ('object', 'otype'),
  'receptacletype': ('receptacle', 'rtype'),
  'receptacleatlocation': ('receptacle', 'location'),
  'cancontain': ('rtype', 'otype'),
  'inreceptacleobject': ('object', 'object'),
  'openable': ('receptacle',),
  'opened': ('receptacle',),
  'atlocation': ('agent', 'location'),
  'inreceptacle': ('object', 'receptacle'),
  'objectatlocation': ('object', 'location'),
  'holds': ('agent', 'object'),
  'holdsany': ('agent',),
}  # of all others: one object


def _facts(init: list[Any], types: Mapping[str, str]) -> dict[str, list[tuple[str, ...]]]:
  facts: dict[str, set[tuple[str, ...]]] = {}
  for fact in init:
    if not isinstance(fact, list) or not fact:
      raise ValueError(f'expected a fact in :init, found {_show(fact)}')
    predicate = fact[0]
    if predicate == '=' or predicate in _IGNORED:  # (= (total-cost) 0), (= (distance a b) 3)
      continue
    arity = STATIC.get(predicate) or FLUENT.get(predicate)
    if arity is None:
      raise ValueError(f'unknown fact {_show(fact)} in :init')
    if len(fact) != arity + 1:
      raise ValueError(f'{_show(fact)} in :init: expected {arity} arguments')
    facts.setdefault(predicate, set()).add(tuple(fact[1:]))
  for predicate, rows in facts.items():
    expected = _ARGUMENT_TYPES.get(predicate, ('object',))
    for row in rows:
      for argument, kind in zip(row, expected, strict=True):
        if types.get(argument) != kind:
          found = types.get(argument, 'not declared in :objects')
          raise ValueError(f'({predicate} {" ".join(row)}) in :init: expected {argument!r} to be of type {kind}, it is {found}')
  return {predicate: sorted(rows) for predicate, rows in facts.items()}


def _function(predicate: str, pairs: list[tuple[int, int]], ids: list[str]) -> dict[int, int]:
  """A relation that gives each thing one value."""
  values: dict[int, int] = {}
  for thing, value in pairs:
    if values.setdefault(thing, value) != value:
      raise ValueError(f'{ids[thing]!r} has two {predicate} facts; expected one')
  return values


def _names(ids: list[str]) -> tuple[str, ...]:
  """What the engine calls the entities: the kind before `_bar_` ("basin" after a sink's or bathtub's), and a number for each of a kind,
  given out downwards along the sorted ids. Ids without `_bar_` (types, the agent) are never shown and keep their id."""
  kinds = [name.split('_bar_', 1)[0] + ('basin' if 'basin' in name else '') if '_bar_' in name else None for name in ids]
  left = Counter(kinds)
  names = []
  for name, kind in zip(ids, kinds, strict=True):
    if kind is None:
      names.append(name)
    else:
      names.append(f'{kind} {left[kind]}')
      left[kind] -= 1
  return tuple(names)


# The goal.


def _goal(section: list[Any], types: Mapping[str, str], index: Mapping[str, int], facts: Mapping[str, list[tuple[str, ...]]]) -> Goal:
  variables: list[set[int]] = []  # candidates of each
  literals: list[Literal] = []

  def literal(part: list[Any], scope: Mapping[str, int], positive: bool) -> None:
    """Appends one condition, or its negation; `scope` maps variables to their numbers."""
    predicate = part[0]
    arity = 2 if predicate == '=' else STATIC.get(predicate) or FLUENT.get(predicate)
    if arity is None:
      raise ValueError(f'unknown condition {_show(part)} in :goal; expected and, exists, not, = or a fact of the ALFRED domain')
    if len(part) != arity + 1 or not all(isinstance(argument, str) for argument in part[1:]):
      raise ValueError(f'{_show(part)} in :goal: expected {arity} arguments')
    arguments = []
    for argument in part[1:]:
      if argument.startswith('?'):
        if argument not in scope:
          raise ValueError(f'variable {argument} in {_show(part)} of :goal is not introduced by an exists')
        arguments.append(scope[argument])
      elif argument in index:
        arguments.append(index[argument])
      elif argument in types and positive and predicate != '=':
        # Declared, but in no fact: nothing of that type is in the room, so the goal cannot be met.
        arguments.append(len(index))
      else:
        raise ValueError(f'{argument!r} in {_show(part)} of :goal is not declared in :objects')
    literals.append(Literal(predicate, tuple(arguments), positive))

  def walk(part: Any, scope: Mapping[str, int]) -> None:
    """Appends the literals of a formula of and, exists and not."""
    if not isinstance(part, list) or not part:
      raise ValueError(f'expected a condition in :goal, found {_show(part)}')
    head = part[0]
    if head == 'and':
      for child in part[1:]:
        walk(child, scope)
    elif head == 'exists':
      if len(part) != 3 or not isinstance(part[1], list):
        raise ValueError(f'expected (exists (VARIABLES) CONDITION) in :goal, found {_show(part)}')
      inner = dict(scope)
      for name, kind in _typed([token.rstrip(',') if isinstance(token, str) else token for token in part[1]], ':goal'):
        inner[name] = -1 - len(variables)
        variables.append({index[entity] for entity, its_kind in types.items() if its_kind == kind and entity in index})
      walk(part[2], inner)
    elif head == 'not':
      if len(part) != 2 or not isinstance(part[1], list) or not part[1] or part[1][0] in ('and', 'exists', 'not', 'or', 'forall'):
        raise ValueError(f'expected (not FACT) in :goal, found {_show(part)}')
      literal(part[1], scope, positive=False)
    elif isinstance(head, str):
      literal(part, scope, positive=True)
    else:
      raise ValueError(f'expected a condition in :goal, found {_show(part)}')

  walk(section[0], {})

  # A static fact about one variable only narrows what that variable may be.
  rows = {predicate: {tuple(index[a] for a in row) for row in facts.get(predicate, ())} for predicate in {x.predicate for x in literals} & set(STATIC)}
  kept = []
  for item in literals:
    bound = {argument for argument in item.arguments if argument < 0}
    if item.predicate in STATIC and len(bound) == 1:
      variable = -1 - bound.pop()
      variables[variable] = {
        value
        for value in variables[variable]
        if (tuple(value if argument < 0 else argument for argument in item.arguments) in rows[item.predicate]) == item.positive
      }
    else:
      kept.append(item)
  candidates = tuple(frozenset(values) for values in variables)
  return Goal(tuple(kept), candidates, _plan(kept, candidates))


def _plan(literals: list[Literal], candidates: tuple[frozenset[int], ...]) -> tuple[Choice, ...]:
  """Small candidate sets first; a variable whose value the state tells (what is this object in? what is held?) comes at once."""

  def decided(literal: Literal, known: set[int]) -> bool:
    return all(argument >= 0 or -1 - argument in known for argument in literal.arguments)

  known: set[int] = set()
  left = [literal for literal in literals if not decided(literal, known)]
  plan = [Choice(None, (-1,), None, tuple(literal for literal in literals if decided(literal, known)))]
  while len(known) < len(candidates):
    source, variable = None, None
    for literal in left:
      last = -1 - literal.arguments[-1]
      told = literal.predicate in ('holds', 'atlocation', 'inreceptacle') and decided(
        dataclasses.replace(literal, arguments=literal.arguments[:-1] if literal.predicate == 'inreceptacle' else ()), known
      )
      if literal.positive and told and last >= 0 and last not in known:
        source, variable = literal, last
        break
    if variable is None:
      variable = min(set(range(len(candidates))) - known, key=lambda v: (len(candidates[v]), v))
    known.add(variable)
    checks = tuple(literal for literal in left if decided(literal, known))
    left = [literal for literal in left if not decided(literal, known)]
    plan.append(Choice(variable, candidates[variable] if source else tuple(sorted(candidates[variable])), source, checks))
  return tuple(plan)
