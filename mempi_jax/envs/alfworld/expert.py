"""A scripted player that explores: it knows what a visitor knows, reads the text alone, and never sees the simulator's state [O].

It does not know this household's habits: it goes down the list of receptacles from a random one, unless guidance names a kind. It shows the agent how to play (cloning), recovery from wrong guidance and odd moments included.
"""

from __future__ import annotations

import dataclasses
import random
import re

_GOALS = (  # the templates of official ALFWorld goals, most special first
  (re.compile(r'put a (?P<state>clean|hot|cool) (?P<target>\w+) in (?P<destination>\w+)'), 1),
  (re.compile(r'(?P<state>clean|heat|cool) some (?P<target>\w+) and put it in (?P<destination>\w+)'), 1),
  (re.compile(r'put two (?P<target>\w+) in (?P<destination>\w+)'), 2),
  (re.compile(r'find two (?P<target>\w+) and put them in (?P<destination>\w+)'), 2),
  (re.compile(r'look at (?P<target>\w+) under the (?P<lamp>\w+)'), 1),
  (re.compile(r'examine the (?P<target>\w+) with the (?P<lamp>\w+)'), 1),
  (re.compile(r'put (?:a|some) (?P<target>\w+) (?:in|on) (?P<destination>\w+)'), 1),
)
_VERBS = {'clean': 'clean', 'hot': 'heat', 'heat': 'heat', 'cool': 'cool'}
_TOOLS = {'clean': 'sinkbasin', 'heat': 'microwave', 'cool': 'fridge'}
_LAMP_PLACES = ('desk', 'sidetable', 'dresser', 'shelf')  # where desk lamps stand, likeliest first

_NAME = r'[a-z]+ \d+'
_ARRIVED = re.compile(rf'You arrive at ({_NAME})\.')
_CLOSED = re.compile(rf'The ({_NAME}) is closed\.')
_SHUT = re.compile(rf'You close the ({_NAME})\.')
_LISTED = re.compile(rf'(?:On the ({_NAME})|The ({_NAME}) is open\. In it), you see ([^.]*)\.')
_TAKEN = re.compile(rf'You pick up the ({_NAME}) from the ({_NAME})\.')
_PUT = re.compile(rf'You move the ({_NAME}) to the ({_NAME})\.')
_TREATED = re.compile(rf'You (clean|heat|cool) the ({_NAME}) using the ({_NAME})\.')


@dataclasses.dataclass(frozen=True)
class ParsedGoal:
  """A goal sentence, taken apart. `verb` is clean, heat, cool or None; `lamp` is set for "look at ... under the ..." alone."""

  target: str
  destination: str | None
  lamp: str | None
  verb: str | None
  count: int


def parse_goal(goal: str) -> ParsedGoal:
  """Understands every template of official ALFWorld goals; a ValueError shows a sentence that fits none."""
  sentence = goal.strip().rstrip('.').lower()
  for pattern, count in _GOALS:
    if match := pattern.fullmatch(sentence):
      parts = match.groupdict()
      return ParsedGoal(parts['target'], parts.get('destination'), parts.get('lamp'), _VERBS.get(parts.get('state')), count)
  raise ValueError(f"goal {goal!r} fits no template of ALFWorld's goals, such as 'put a clean mug in shelf.'")


def kind_of(name: str) -> str:
  """The kind of "drawer 2": "drawer"."""
  return name.rpartition(' ')[0]


class ExploringExpert:
  """Plays one game at a time: `begin`, then `act` with each new observation (the first one included)."""

  def __init__(self, seed: int):
    """`seed` decides the order of the search."""
    self._rng = random.Random(seed)

  def begin(self, goal: str, observation: str, guidance: str) -> None:
    """Starts a game. `observation` lists the receptacles; `guidance` may say that the target is usually or seldom in some kind."""
    self.goal = parse_goal(goal)
    listed = observation.partition('you see ')[2].partition('.')[0]
    self.receptacles = list(dict.fromkeys(re.findall(_NAME, listed)))  # in the order of the text
    if not self.receptacles:
      raise ValueError(f'the first observation lists no receptacles: {observation!r}')
    self.last = ''  # the last action
    self.place: str | None = None
    self.holding: str | None = None
    self.origin: str | None = None  # where the held object was taken from
    self.contents: dict[str, list[str]] = {}  # what was seen in each receptacle that was looked into
    self.closed: set[str] = set()
    self.treated: set[str] = set()
    self.home: str | None = None  # the destination in use: both objects of a pair go there
    self.order = self._search_order(guidance)

  def act(self, observation: str) -> str:
    """The next command, given what the last one brought."""
    self._read(observation)
    self.last = self._decide()
    return self.last

  def overruled(self, action: str) -> None:
    """Another action than the last advice was taken."""
    self.last = action

  def _decide(self) -> str:
    if self.holding is None:
      found = self._known_target()
      return self._take(*found) if found else self._explore(self.order)
    if kind_of(self.holding) != self.goal.target:
      return self._deliver(self.origin)
    if self.goal.lamp:
      return self._use_lamp()
    if self.goal.verb and self.holding not in self.treated:
      tool = self._first(_TOOLS[self.goal.verb])
      return self._go(tool) or f'{self.goal.verb} {self.holding} with {tool}' if tool else 'look'
    self.home = self.home or self._first(self.goal.destination)
    return self._deliver(self.home) if self.home else 'look'

  # What the text says.

  def _read(self, observation: str) -> None:
    if match := _ARRIVED.search(observation):
      self.place = match[1]
    elif observation == 'Nothing happens.' and self.last.removeprefix('go to ') in self.receptacles:
      self.place = self.last.removeprefix('go to ')  # it can be reached from where the player stands
    if match := _SHUT.search(observation):
      self.closed.add(match[1])
    for match in _CLOSED.finditer(observation):
      self.closed.add(match[1])
    for match in _LISTED.finditer(observation):
      receptacle = match[1] or match[2]
      self.closed.discard(receptacle)
      self.contents[receptacle] = re.findall(_NAME, match[3])
    if match := _TAKEN.search(observation):
      self.holding, self.origin = match[1], match[2]
      if match[1] in self.contents.get(match[2], []):
        self.contents[match[2]].remove(match[1])
    if match := _PUT.search(observation):
      self.holding = self.origin = None
      self.contents.setdefault(match[2], []).append(match[1])
    if match := _TREATED.search(observation):
      verb, thing, _ = match.groups()
      if verb == self.goal.verb:
        self.treated.add(thing)
      elif {verb, self.goal.verb} == {'heat', 'cool'}:
        self.treated.discard(thing)

  # What to do about it.

  def _search_order(self, guidance: str) -> list[str]:
    """All receptacles as they are listed, round and round from a random one: from the first of the kind where guidance says that the
    target usually is, and with those of a kind where it seldom is at the end.

    A search that goes down the list is one that a small language model learns to copy.
    """
    text = guidance.lower()
    usual = re.findall(rf'the {self.goal.target} is usually in the (\w+)', text)
    seldom = re.findall(rf'the {self.goal.target} is seldom in the (\w+)', text)
    start = self._rng.randrange(len(self.receptacles))
    start = next((i for i, name in enumerate(self.receptacles) if kind_of(name) in usual), start)
    order = self.receptacles[start:] + self.receptacles[:start]
    return sorted(order, key=lambda name: kind_of(name) in seldom)  # a stable sort: the rest keeps its order

  def _known_target(self) -> tuple[str, str] | None:
    """(object, receptacle) of a target that still has to be fetched, the nearest in the search order."""
    for receptacle in sorted(self.contents, key=lambda name: (name != self.place, self.order.index(name) if name in self.order else 0)):
      for thing in self.contents[receptacle]:
        if kind_of(thing) == self.goal.target and not self._is_delivered(thing, receptacle):
          return thing, receptacle
    return None

  def _is_delivered(self, thing: str, receptacle: str) -> bool:
    if self.goal.lamp or kind_of(receptacle) != self.goal.destination or (self.goal.verb and thing not in self.treated):
      return False
    self.home = self.home or receptacle  # an object that lies there already counts, and its partner has to join it
    return receptacle == self.home

  def _explore(self, order: list[str]) -> str:
    """Looks into the first receptacle of `order` that has not been looked into; if there is none left, starts over."""
    unseen = [name for name in order if name not in self.contents]
    if not unseen:
      self.contents.clear()
      unseen = order
    target = unseen[0]
    return self._go(target) or (f'open {target}' if target in self.closed else f'examine {target}')

  def _take(self, thing: str, receptacle: str) -> str:
    return self._go(receptacle) or (f'open {receptacle}' if receptacle in self.closed else f'take {thing} from {receptacle}')

  def _deliver(self, receptacle: str) -> str:
    return self._go(receptacle) or (f'open {receptacle}' if receptacle in self.closed else f'move {self.holding} to {receptacle}')

  def _use_lamp(self) -> str:
    for receptacle, things in self.contents.items():
      for thing in things:
        if kind_of(thing) == self.goal.lamp:
          return self._go(receptacle) or f'use {thing}'
    places = sorted(self.order, key=lambda name: _LAMP_PLACES.index(kind_of(name)) if kind_of(name) in _LAMP_PLACES else len(_LAMP_PLACES))
    return self._explore(places)

  def _go(self, receptacle: str) -> str | None:
    """The command that goes there; None where the player stands there already."""
    return None if self.place == receptacle else f'go to {receptacle}'

  def _first(self, kind: str) -> str | None:
    """The first receptacle of a kind; None where the room has none."""
    return next((name for name in self.receptacles if kind_of(name) == kind), None)
