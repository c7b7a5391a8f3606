"""A scripted player of `generate.py`'s tasks: it reads the text alone, believes the guidance, and guesses what that does not say [O]."""

from __future__ import annotations

import random
import re

from mempi_jax.envs.terminal.generate import GUIDANCE, KINDS, SKILLS, Kind, options, write_sql

_OWN = {'zone': r'(?P<zone>\d+)', 'name': r'(?P<name>[a-z]+)', 'number': r'(?P<number>\d+)'}


class ConventionsExpert:
  """Plays one task at a time: `begin`, then `act` with each new observation (the first one included)."""

  def __init__(self, seed: int):
    """`seed` decides what it guesses."""
    self._rng = random.Random(seed)

  def begin(self, goal: str, observation: str, guidance: str) -> None:
    """Starts a task. `guidance` may hold sentences of `generate.guidance`. Raises ValueError for a goal that fits no skill."""
    self._sql = _read_goal(goal, guidance, self._rng)
    self._asked = False

  def act(self, observation: str) -> str:
    """The statement, and then its rows as the answer."""
    if not self._asked:
      self._asked = True
      return f'Action: Operation\n```sql\n{self._sql}\n```'
    return f'Action: Answer\nFinal Answer: {observation}'


def _read_goal(goal: str, guidance: str, rng: random.Random) -> str:
  """The statement that a goal asks for."""
  sentence, _, rest = goal.partition(' Table ')
  kind = KINDS.get(rest.partition(',')[0])
  if kind is None:
    raise ValueError(f'goal {goal!r} names none of the tables {", ".join(KINDS)}')
  for skill in SKILLS.values():
    if match := re.fullmatch(_pattern(skill.sentence, kind, **_OWN), sentence):
      known = {concept: _told(kind, concept, guidance) or rng.choice(options(kind, concept)) for concept in skill.needs}
      return write_sql(skill, kind, known, match.groupdict())
  raise ValueError(f'goal {goal!r} fits no skill, such as {next(iter(SKILLS.values())).sentence!r}')


def _told(kind: Kind, concept: str, guidance: str) -> str | None:
  """What the guidance says of a convention, if it is something that the convention may be."""
  match = re.search(_pattern(GUIDANCE[concept], kind, value='(?P<value>[a-z0-9]+)'), guidance.lower())
  return match['value'] if match and match['value'] in options(kind, concept) else None


def _pattern(template: str, kind: Kind, **fields: str) -> str:
  """A template as a regular expression: the kind's words as they are, `fields` as patterns."""
  words = {name: re.escape(str(getattr(kind, name))) for name in ('table', 'who', 'amount', 'state', 'mark', 'measure', 'unit')}
  return re.sub(r'\\\{(\w+)\\\}', lambda match: {**words, **fields}[match[1]], re.escape(template))
