"""The control worlds: what of the guidance reaches the agent."""

import pytest

from mempi_jax.agents.altered import alter_agent, guidance_acts
from mempi_jax.types import Context, Decision, Guidance, Task


class Agent:
  """Notes how its one session was called."""

  def __init__(self):
    self.calls = []

  def fingerprint(self):
    return 'f'

  def begin(self):
    return self

  def start(self, key, context, guidance, seed):
    self.calls.append(('start', key, context, guidance, seed))

  def observe(self, key, observation):
    self.calls.append(('observe', key, observation))

  def act(self):
    return [(4, 'look'), (7, None)]

  def end(self, key):
    self.calls.append(('end', key))


ROOMS = {'k': 'kitchen', 'b': 'bedroom'}
CONTEXTS = [Context(Task('alfworld', name, 'train', 0), 'goal', 'observation') for name in ROOMS]
SPOKEN = Guidance(Decision.GENERATE, 'something')


def heard(effect, guidance=SPOKEN):
  inner = Agent()
  session = alter_agent(inner, effect, lambda name: (ROOMS[name], f'truth of {name}')).begin()
  for i, context in enumerate(CONTEXTS):
    session.start(10 + i, context, guidance, 20 + i)
  assert [(name, key, context, seed) for name, key, context, _, seed in inner.calls] == [
    ('start', 10, CONTEXTS[0], 20),
    ('start', 11, CONTEXTS[1], 21),
  ]
  return [(g.decision, g.text) for _, _, _, g, _ in inner.calls]


def test_what_the_agent_hears():
  silence = (Decision.ABSTAIN, '')
  assert heard('real') == [(Decision.GENERATE, 'something')] * 2
  assert heard('null') == [silence] * 2
  assert heard('oracle') == [(Decision.GENERATE, 'truth of k'), (Decision.GENERATE, 'truth of b')]
  assert heard('mixed') == [(Decision.GENERATE, 'truth of k'), silence]
  assert [guidance_acts('mixed', room) for room in ROOMS.values()] == [True, False]


@pytest.mark.parametrize('effect', ['real', 'null', 'oracle', 'mixed'])
def test_abstaining_is_never_altered(effect):
  assert heard(effect, Guidance(Decision.ABSTAIN)) == [(Decision.ABSTAIN, '')] * 2


@pytest.mark.parametrize('effect', ['real', 'null', 'oracle', 'mixed'])
def test_the_rest_of_a_session_is_the_inner_agents(effect):
  inner = Agent()
  session = alter_agent(inner, effect, lambda name: (ROOMS[name], '')).begin()
  session.observe(4, 'You see a mug 1.')
  assert session.act() == [(4, 'look'), (7, None)]
  session.end(7)
  assert inner.calls == [('observe', 4, 'You see a mug 1.'), ('end', 7)]


def test_fingerprints_differ_and_unknown_effects_are_refused():
  assert alter_agent(Agent(), 'null', None).fingerprint() == 'f-null'
  with pytest.raises(ValueError, match='expected one of real, null, oracle, mixed'):
    alter_agent(Agent(), 'nul', None)
