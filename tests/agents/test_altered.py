"""The control worlds: what of the guidance reaches the agent."""

import pytest

from mempi_jax.agents.altered import alter_agent, guidance_acts
from mempi_jax.types import Context, Decision, Guidance, Task


class Agent:
  def fingerprint(self):
    return 'f'

  def begin(self, contexts, guidances, seeds):
    return list(guidances)


ROOMS = {'k': 'kitchen', 'b': 'bedroom'}
CONTEXTS = [Context(Task('alfworld', name, 'train', 0), 'goal', 'observation') for name in ROOMS]
SPOKEN = Guidance(Decision.GENERATE, 'something')


def heard(effect, guidance=SPOKEN):
  agent = alter_agent(Agent(), effect, lambda name: (ROOMS[name], f'truth of {name}'))
  return [(g.decision, g.text) for g in agent.begin(CONTEXTS, [guidance] * 2, [0, 0])]


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


def test_fingerprints_differ_and_unknown_effects_are_refused():
  assert alter_agent(Agent(), 'null', None).fingerprint() == 'f-null'
  with pytest.raises(ValueError, match='expected one of real, null, oracle, mixed'):
    alter_agent(Agent(), 'nul', None)
