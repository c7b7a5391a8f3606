"""The LM agent: its transcript is the template's, its cache and its slots change nothing, and it stops when its context is full."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mempi_jax.agents.lm import LMAgent, checkpoint_hash, load_agent
from mempi_jax.inference.engine import Engine
from mempi_jax.inference.requests import Request
from mempi_jax.models.hf import save_model
from mempi_jax.policy.template import agent_prompt, agent_turn
from mempi_jax.rollout.episode import abstained, run_episodes, stream_episodes
from mempi_jax.types import Context, Decision, EnvStep, Guidance, Status, Task

LIMITS = dict(context_length=128, max_action_tokens=5, temperature=1.0, batch_size=8)
SILENT = Guidance(Decision.ABSTAIN)


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


def act_of(session, count):
  """So many actions of a session, by key."""
  found = {}
  while len(found) < count:
    answers = session.act()
    assert answers and not set(dict(answers)) & set(found)
    found |= dict(answers)
  return found


def test_actions_are_those_of_the_whole_transcript_read_anew(agent, tokenizer):
  """Plays without a cache: at every turn the whole transcript, written down token by token, is the prompt of a new engine."""
  guidances = [Guidance(Decision.GENERATE, 'the mug is usually in the drawer.'), SILENT]
  episodes = play(agent, [1, 2], guidances)
  (newline,) = tokenizer.encode('\n')
  for episode, guidance in zip(episodes, guidances, strict=True):
    transcript = agent_prompt(tokenizer, episode.context, guidance)
    observations = [step.observation for step in episode.steps[1:]] + [episode.last_observation]
    for step, observation in zip(episode.steps, observations, strict=True):
      engine = Engine(agent.config, agent.params, slots=8, max_length=128)
      (out,) = engine.generate([Request(list(transcript), 5, seed=episode.context.task.seed, temperature=1.0, stop=((newline,),))])
      assert ' '.join(tokenizer.decode(list(out.tokens)).split()) == step.action
      transcript += [*out.tokens, *([] if out.tokens[-1] == newline else [newline])]
      transcript += agent_turn(tokenizer, observation)
  assert len({action for episode in actions(episodes) for action in episode}) > 4


def test_an_episode_does_not_depend_on_the_others_or_on_the_slots(dummy_model, tokenizer):
  turns = lambda task: 1 + (task.seed * 5) % 7  # from one to seven turns
  with_slots = lambda count: LMAgent(*dummy_model, tokenizer, **{**LIMITS, 'batch_size': count})
  agent = with_slots(8)
  together = play(agent, range(8), turns=turns)
  assert agent.engine.counters.evictions == 0
  assert sorted({len(episode.steps) for episode in together}) == [1, 2, 3, 4, 5, 6, 7]
  alone = [play(agent, [i], turns=turns)[0] for i in (7, 2, 4)]
  assert actions(alone) == [actions(together)[i] for i in (7, 2, 4)]
  order = [5, 2, 7, 0, 3, 6, 1, 4]
  shuffled = play(agent, order, turns=turns)
  assert actions(shuffled) == [actions(together)[i] for i in order]
  # More episodes than slots: some lose theirs between two turns, and are read anew.
  for count in (3, 1):
    crowded = with_slots(count)
    assert actions(play(crowded, range(8), turns=turns)) == actions(together)
    assert crowded.engine.counters.evictions > 0
    assert crowded.engine.running == 0 and not crowded.engine.slot_of  # all of them ended


def test_a_transcript_is_read_once(dummy_model, tokenizer, monkeypatch):
  """Over turns, only what the environment said is new."""
  agent, tickets = LMAgent(*dummy_model, tokenizer, **LIMITS), []
  submit = agent.engine.submit

  def noted(request):
    tickets.append(submit(request))
    return tickets[-1]

  monkeypatch.setattr(agent.engine, 'submit', noted)
  play(agent, range(8), turns=lambda task: 5)
  counters, prompts = agent.engine.counters, [tuple(ticket.request.prompt) for ticket in tickets]
  assert len(prompts) == counters.requests == 8 * 5
  distinct = len({prompt[:size] for prompt in prompts for size in range(1, len(prompt) + 1)})
  assert counters.prefilled <= 1.1 * distinct
  assert counters.prompt_tokens == sum(map(len, prompts)) > 2 * distinct  # what reading every turn from its beginning would take
  # Stricter: what an action added is in the cache already, but for its last token.
  unread, last = 0, {}
  for ticket, prompt in zip(tickets, prompts, strict=True):
    before = last.get(ticket.request.session)
    unread += len(prompt) - (len(before.prompt) + len(before.result.tokens) - 1 if before else 0)
    last[ticket.request.session] = ticket
  assert counters.prefilled <= unread


def test_the_seed_decides_and_guidance_matters(agent):
  base = actions(play(agent, [1]))
  assert base == actions(play(agent, [1]))
  guided = actions(play(agent, [1], [Guidance(Decision.GENERATE, 'the mug is usually in the drawer.')]))
  assert guided != base
  assert actions(play(agent, [1], [Guidance(Decision.ABSTAIN, 'the mug is usually in the drawer.')])) == base
  session = agent.begin()
  for seed in range(8):
    session.start(seed, context(1), SILENT, seed)
  assert len(set(act_of(session, 8).values())) > 3
  for seed in range(8):
    session.end(seed)


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
  session = agent.begin()
  session.start(0, long, SILENT, 0)
  session.start(1, context(1), SILENT, 1)
  first = act_of(session, 2)
  assert first[0] is None and isinstance(first[1], str)
  session.end(0)
  session.observe(1, 'You see a mug 1.')
  assert isinstance(act_of(session, 1)[1], str)
  session.end(1)


def test_a_session_answers_what_it_owes(agent):
  session = agent.begin()
  assert session.act() == []  # it has read nothing
  for key in (70, 3, 1000):  # any numbers
    session.start(key, context(1), SILENT, key)
  session.end(3)  # before it has answered: nobody asks any more
  first = act_of(session, 2)
  assert set(first) == {70, 1000} and session.act() == []
  # One goes on, the other waits for its environment.
  session.observe(1000, 'You see a mug 1.')
  assert list(act_of(session, 1)) == [1000] and session.act() == []
  session.observe(70, 'You see a mug 1.')
  assert list(act_of(session, 1)) == [70]
  # An ended key may be used again, for an episode of its own.
  session.end(70)
  session.start(70, context(1), SILENT, 1000)
  assert act_of(session, 1) == {70: first[1000]}
  session.end(70)
  session.end(1000)
  assert agent.engine.running == 0 and not agent.engine.slot_of


def test_sessions_side_by_side_do_not_mix(agent):
  sessions = [agent.begin(), agent.begin()]
  for i, session in enumerate(sessions):
    session.start(0, context(i), SILENT, context(i).task.seed)
  answers = [act_of(session, 1)[0] for session in sessions]
  assert answers == [episode[0] for episode in actions(play(agent, [0, 1], turns=lambda task: 1))]
  for session in sessions:
    session.end(0)


def test_a_play_that_was_broken_off(dummy_model, tokenizer):
  """The agent's engine outlives its sessions: what a broken-off one left there changes nothing."""
  agent = LMAgent(*dummy_model, tokenizer, **{**LIMITS, 'batch_size': 3})
  expected = actions(play(agent, range(6)))
  stream = stream_episodes(lambda: Talker(lambda task: 4, lambda task: task.seed % 3), agent, tasks(*range(6)), abstained(6), [10] * 6)
  next(stream)
  stream.close()
  assert actions(play(agent, range(6))) == expected


def test_a_broken_model_says_so(dummy_model, tokenizer):
  config, params = dummy_model
  broken = LMAgent(config, jax.tree.map(lambda leaf: leaf * jnp.nan, params), tokenizer, **LIMITS)
  with pytest.raises(FloatingPointError, match='non-finite logits'):
    play(broken, [1])


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
  assert LMAgent(config, params, tokenizer, **{**LIMITS, 'batch_size': 3}).fingerprint() == agent.fingerprint()  # changes nothing
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
