"""The LM agent: its transcript is the template's, its cache changes nothing, and it stops when its context is full."""

import dataclasses

import numpy as np
import pytest

from mempi_jax.agents import lm
from mempi_jax.agents.lm import LMAgent, checkpoint_hash, load_agent
from mempi_jax.inference.engine import Rows
from mempi_jax.models.hf import save_model
from mempi_jax.policy.template import agent_prompt, agent_turn
from mempi_jax.rollout.episode import abstained, run_episodes
from mempi_jax.types import Context, Decision, EnvStep, Guidance, Status, Task

LIMITS = dict(context_length=128, max_action_tokens=5, temperature=1.0)


@pytest.fixture(scope='module', autouse=True)
def small_batches():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(lm, 'BATCH_BUCKETS', (2, 4, 8))
    yield


@pytest.fixture(scope='module')
def agent(dummy_model, tokenizer):
  return LMAgent(*dummy_model, tokenizer, **LIMITS)


def context(i):
  thing = ('mug', 'apple', 'pen', 'lamp')[i % 4]
  return Context(Task('toy', str(i), 'train', 10 + i), f'put a {thing} in shelf', f'You see a drawer {i}.')


class Talker:
  """An environment that answers each action with a sentence of its own, until `turns` are over."""

  def __init__(self, turns, mugs):
    self.turns, self.mugs = turns, mugs

  def reset(self, task):
    self.task, self.taken, self.actions = task, 0, []
    return context(int(task.task_id))

  def step(self, action):
    self.taken += 1
    done = self.taken >= self.turns(self.task)
    return EnvStep(f'You arrive at shelf {self.taken}.' + ' mug' * self.mugs(self.task), float(done), done, done)

  def close(self):
    pass


def tasks(*numbers):
  return [context(i).task for i in numbers]


def play(agent, numbers, guidances=None, turns=lambda task: 4, mugs=lambda task: task.seed % 3, max_steps=10):
  return run_episodes(lambda: Talker(turns, mugs), agent, tasks(*numbers), guidances or abstained(len(numbers)), [max_steps] * len(numbers))


def actions(episodes):
  return [[step.action for step in episode.steps] for episode in episodes]


def test_actions_are_those_of_the_whole_transcript_read_anew(agent, tokenizer):
  """Plays without a cache: at every turn the whole transcript, written down token by token, is the prompt of a new row."""
  guidances = [Guidance(Decision.GENERATE, 'the mug is usually in the drawer.'), Guidance(Decision.ABSTAIN)]
  episodes = play(agent, [1, 2], guidances)
  (newline,) = tokenizer.encode('\n')
  for episode, guidance in zip(episodes, guidances, strict=True):
    transcript = agent_prompt(tokenizer, episode.context, guidance)
    observations = [step.observation for step in episode.steps[1:]] + [episode.last_observation]
    for step, observation in zip(episode.steps, observations, strict=True):
      rows = Rows(agent.config, agent.params, 2, 128)
      out = rows.generate([transcript, []], [episode.context.task.seed, 0], max_new=5, stop=newline, temperature=1.0)
      assert ' '.join(tokenizer.decode(out.tokens[0]).split()) == step.action
      transcript += out.tokens[0] + ([] if out.tokens[0][-1] == newline else [newline])
      transcript += agent_turn(tokenizer, observation)
  assert len({action for episode in actions(episodes) for action in episode}) > 4


def test_an_episode_does_not_depend_on_the_others_or_on_compaction(agent):
  turns = lambda task: 1 + (task.seed * 5) % 7  # from one to seven turns: the batch shrinks on the way
  together = play(agent, range(8), turns=turns)
  assert sorted({len(episode.steps) for episode in together}) == [1, 2, 3, 4, 5, 6, 7]
  alone = [play(agent, [i], turns=turns)[0] for i in (7, 2, 4)]
  assert actions(alone) == [actions(together)[i] for i in (7, 2, 4)]
  order = [5, 2, 7, 0, 3, 6, 1, 4]
  shuffled = play(agent, order, turns=turns)
  assert actions(shuffled) == [actions(together)[i] for i in order]


def test_the_batch_shrinks_when_half_of_it_is_idle(agent):
  session = agent.begin([context(i) for i in range(8)], abstained(8), range(8))
  session.act(['x'] * 8)
  sizes = []
  for alive in (5, 4, 3, 2, 1):
    answers = session.act(['You see a mug 1.'] * alive + [None] * (8 - alive))
    assert [answer is not None for answer in answers] == [True] * alive + [False] * (8 - alive)
    sizes.append(len(session.slots))
  assert sizes == [8, 4, 4, 2, 2]


def test_the_seed_decides_and_guidance_matters(agent):
  base = actions(play(agent, [1]))
  assert base == actions(play(agent, [1]))
  guided = actions(play(agent, [1], [Guidance(Decision.GENERATE, 'the mug is usually in the drawer.')]))
  assert guided != base
  assert actions(play(agent, [1], [Guidance(Decision.ABSTAIN, 'the mug is usually in the drawer.')])) == base
  session = [agent.begin([context(1)], abstained(1), [seed]).act(['x'])[0] for seed in range(8)]
  assert len(set(session)) > 3


def test_an_episode_out_of_context_is_truncated_and_the_others_go_on(dummy_model, tokenizer):
  agent = LMAgent(*dummy_model, tokenizer, **{**LIMITS, 'context_length': 64})
  # What task 1 sees is ten tokens longer a turn than what task 2 sees, so it runs out first; 30 turns never fit.
  turns = lambda task: 30 if task.task_id in '12' else 2
  episodes = play(agent, [1, 2, 3], turns=turns, mugs=lambda task: 10 * (task.task_id == '1'), max_steps=30)
  assert [episode.status for episode in episodes] == [Status.TRUNCATED, Status.TRUNCATED, Status.SUCCESS]
  lengths = [len(episode.steps) for episode in episodes]
  assert 1 <= lengths[0] < lengths[1] < 30
  assert [episode.reward for episode in episodes] == [0.0, 0.0, 1.0]


def test_a_first_observation_longer_than_the_context(dummy_model, tokenizer):
  agent = LMAgent(*dummy_model, tokenizer, **{**LIMITS, 'context_length': 64})
  long = Context(context(0).task, 'put a mug in shelf', 'a very long story ' * 30)
  session = agent.begin([long, context(1)], abstained(2), [0, 1])
  first = session.act([long.observation, context(1).observation])
  assert first[0] is None and isinstance(first[1], str)
  assert session.act([None, 'You see a mug 1.'])[0] is None


def test_actions_are_plain_text(agent, tokenizer):
  # Whatever ids the model draws, an action is one line without control tokens.
  for episode in play(agent, range(4)):
    for step in episode.steps:
      assert step.action == ' '.join(step.action.split())
      assert not any(token in step.action for token in ('[ABSTAIN]', '[GENERATE]', '[EOS]', '[BOS]', '[PAD]'))


def test_fingerprint(agent, dummy_model, tokenizer):
  config, params = dummy_model
  nudged = params | {'final_norm': params['final_norm'].at[0].add(1e-6)}
  variants = [
    LMAgent(config, params, tokenizer, **LIMITS),
    LMAgent(config, nudged, tokenizer, **LIMITS),
    LMAgent(config, params, tokenizer, **{**LIMITS, 'temperature': 0.5}),
    LMAgent(config, params, tokenizer, **{**LIMITS, 'context_length': 127}),
  ]
  assert variants[0].fingerprint() == agent.fingerprint()
  assert len({variant.fingerprint() for variant in variants}) == 4


def test_folders(agent, dummy_model, tokenizer, tmp_path):
  save_model(tmp_path, *dummy_model)
  with pytest.raises(FileNotFoundError, match='no tokenizer'):
    load_agent(tmp_path, **LIMITS)
  tokenizer.save(tmp_path)
  loaded = load_agent(tmp_path, **LIMITS)
  assert loaded.fingerprint() == agent.fingerprint()
  before = checkpoint_hash(tmp_path)
  config, params = dummy_model
  save_model(tmp_path, config, params | {'final_norm': np.asarray(params['final_norm']) * 2})
  assert checkpoint_hash(tmp_path) != before
  with pytest.raises(FileNotFoundError, match='no checkpoint at .*config.json is missing'):
    load_agent(tmp_path / 'nowhere', **LIMITS)


def test_a_tokenizer_of_another_model(dummy_model, tokenizer):
  config, params = dummy_model
  with pytest.raises(ValueError, match='the model only 50'):
    LMAgent(dataclasses.replace(config, vocab_size=50), params, tokenizer, **LIMITS)
