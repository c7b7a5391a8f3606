"""The engine with an int8 cache beside the one in the model's dtype: the same requests, nearly the same log-probs, fewer bytes."""

import numpy as np
import pytest

from mempi_jax.agents.lm import load_agent
from mempi_jax.inference.cache import cache_bytes
from mempi_jax.inference.engine import Engine
from mempi_jax.inference.requests import Request
from mempi_jax.policy.template import action_tokens, agent_prompt, agent_turn
from mempi_jax.types import Context, Decision, Guidance, Task
from mempi_jax.world import shipped_agent

CONTEXT = Context(
  Task('alfworld', '0', 'train', 0),
  'put a mug in shelf.',
  'You are in the middle of a room. Looking quickly around you, you see a cabinet 1, a drawer 1, and a shelf 1.',
)
ACTIONS = ('go to cabinet 1', 'take mug 1 from cabinet 1', 'go to shelf 1', 'open drawer 1')
OBSERVATIONS = ('You arrive at cabinet 1. On the cabinet 1, you see a mug 1.', 'You pick up the mug 1 from the cabinet 1.')
SLOTS, LENGTH = 4, 256


@pytest.fixture(scope='module')
def agent():
  return load_agent(shipped_agent(), context_length=LENGTH, max_action_tokens=12, temperature=0.5)


def play(agent, kind):
  """Three turns of four sessions, each with an action of its own that is forced, then four greedy tokens; the results, and the engine."""
  engine, tokenizer = Engine(agent.config, agent.params, slots=SLOTS, max_length=LENGTH, cache_kind=kind), agent.tokenizer
  transcripts, results = [agent_prompt(tokenizer, CONTEXT, Guidance(Decision.ABSTAIN)) for _ in range(SLOTS)], []
  for observation in (*OBSERVATIONS, ''):
    requests = []
    for row, transcript in enumerate(transcripts):
      forced = tuple(action_tokens(tokenizer, ACTIONS[row]))
      requests.append(Request(list(transcript), 4, seed=row, temperature=0.0, forced=forced, session=row))
      transcript += [*forced, *agent_turn(tokenizer, observation)]
    results += zip(requests, engine.generate(requests), strict=True)
  return results, engine


def test_int8_beside_the_models_dtype(agent):
  exact, model = play(agent, 'model')
  rounded, small = play(agent, 'int8')
  differences = []
  for (request, a), (_, b) in zip(exact, rounded, strict=True):
    forced = len(request.forced)
    assert len(a.tokens) == len(b.tokens) == forced + 4 and a.tokens[:forced] == b.tokens[:forced] == request.forced
    differences.append(np.abs(np.array(a.model_logps[:forced]) - b.model_logps[:forced]))
  differences = np.concatenate(differences)
  assert 1e-4 < differences.max() < 0.3 and differences.mean() < 0.02
  assert small.counters.prefilled == model.counters.prefilled < small.counters.prompt_tokens
  assert 0 < small.cache_bytes == cache_bytes(agent.config, SLOTS, LENGTH, 'int8') < 0.3 * model.cache_bytes
