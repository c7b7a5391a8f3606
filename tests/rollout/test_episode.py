"""Episodes: how they end, what they earn, and that a broken simulator breaks its own episode alone."""

import logging

import pytest

from mempi_jax.rollout.episode import abstained, read_contexts, run_episodes
from mempi_jax.types import Context, Decision, EnvStep, Guidance, Status, Step, Task


class Countdown:
  """Answers `task.seed` actions, the last with done. Task ids say what goes wrong: 'reset', 'step 2', 'lose'."""

  open = 0

  def __init__(self):
    Countdown.open += 1

  def reset(self, task):
    if task.task_id == 'reset':
      raise OSError('no such game')
    self.task, self.left, self.taken = task, task.seed, 0
    return Context(task, f'count {task.seed}', f'{task.seed} left')

  def step(self, action):
    self.taken += 1
    if self.task.task_id == f'step {self.taken}':
      raise RuntimeError('the simulator died')
    self.left -= 1
    return EnvStep(f'{self.left} left', 0.25, self.left == 0, self.left == 0 and self.task.task_id != 'lose')

  def close(self):
    Countdown.open -= 1


class Echo:
  """An agent that repeats what it sees, and notes how it was called. Rows whose goal is 'count 7' run out of context at their third turn."""

  def begin(self, contexts, guidances, seeds):
    self.contexts, self.guidances, self.seeds, self.calls = list(contexts), list(guidances), list(seeds), []
    return self

  def act(self, observations):
    self.calls.append(list(observations))
    return [
      None if o is None or (context.goal == 'count 7' and len(self.calls) == 3) else f'say {o}'
      for o, context in zip(observations, self.contexts, strict=True)
    ]


def play(names_and_lengths, max_steps=10, agent=None):
  tasks = [Task('countdown', name, 'train', length) for name, length in names_and_lengths]
  Countdown.open = 0
  caps = max_steps if isinstance(max_steps, list) else [max_steps] * len(tasks)
  episodes = run_episodes(Countdown, agent or Echo(), tasks, abstained(len(tasks)), caps)
  assert Countdown.open == 0
  return episodes


def test_one_episode_by_hand():
  agent = Echo()
  guidance = Guidance(Decision.GENERATE, 'count down')
  task = Task('countdown', 'a', 'train', 2)
  (episode,) = run_episodes(Countdown, agent, [task], [guidance], [5])
  assert episode.context == Context(task, 'count 2', '2 left')
  assert episode.guidance is guidance and agent.guidances == [guidance] and agent.seeds == [2]
  assert episode.steps == (Step('2 left', 'say 2 left', 0.25), Step('1 left', 'say 1 left', 0.25))
  assert episode.last_observation == '0 left'
  assert (episode.reward, episode.success, episode.status) == (0.5, True, Status.SUCCESS)


def test_every_ending_side_by_side():
  agent = Echo()
  episodes = play([('a', 1), ('lose', 2), ('a', 4), ('step 2', 4), ('a', 7), ('reset', 3), ('a', 3)], [9, 9, 3, 9, 9, 9, 9], agent)
  statuses = [episode.status for episode in episodes]
  error, truncated = Status.ENV_ERROR, Status.TRUNCATED
  assert statuses == [Status.SUCCESS, Status.FAILURE, truncated, error, truncated, error, Status.SUCCESS]
  assert [len(episode.steps) for episode in episodes] == [1, 2, 3, 1, 2, 0, 3]
  assert [episode.reward for episode in episodes] == [0.25, 0.5, 0.75, 0.25, 0.5, 0.0, 0.75]
  assert [episode.success for episode in episodes] == [True, False, False, False, False, False, True]
  assert [episode.context.task.task_id for episode in episodes] == ['a', 'lose', 'a', 'step 2', 'a', 'reset', 'a']
  # The agent never sees the game that did not begin, and sees None from an episode's end on.
  assert [context.goal for context in agent.contexts] == ['count 1', 'count 2', 'count 4', 'count 4', 'count 7', 'count 3']
  assert agent.calls == [
    ['1 left', '2 left', '4 left', '4 left', '7 left', '3 left'],
    [None, '1 left', '3 left', '3 left', '6 left', '2 left'],
    [None, None, '2 left', None, '5 left', '1 left'],
  ]


def test_errors_are_logged_with_their_task(caplog):
  with caplog.at_level(logging.WARNING):
    play([('reset', 1), ('step 2', 3)])
  text = caplog.text
  assert 'task reset: the environment failed after 0 steps' in text and 'no such game' in text
  assert 'task step 2: the environment failed after 1 steps' in text and 'the simulator died' in text


def test_when_every_reset_fails():
  (first, second) = play([('reset', 1), ('reset', 2)])
  assert first.status is second.status is Status.ENV_ERROR
  assert first.context == Context(Task('countdown', 'reset', 'train', 1), '', '') and first.last_observation == ''


def test_the_last_allowed_action_may_still_win():
  (won, cut) = play([('a', 3), ('a', 4)], max_steps=3)
  assert (won.status, cut.status) == (Status.SUCCESS, Status.TRUNCATED)
  assert cut.last_observation == '1 left'


def test_no_steps_allowed():
  agent = Echo()
  (episode,) = play([('a', 3)], max_steps=0, agent=agent)
  assert (episode.status, episode.steps, episode.last_observation, agent.contexts) == (Status.TRUNCATED, (), '3 left', [])


def test_an_agents_exception_is_not_the_environments_fault():
  class Broken(Echo):
    def act(self, observations):
      raise FloatingPointError('NaN')

  Countdown.open = 0
  with pytest.raises(FloatingPointError, match='NaN'):
    run_episodes(Countdown, Broken(), [Task('countdown', 'a', 'train', 2)], abstained(1), [5])
  assert Countdown.open == 0


def test_as_many_guidances_and_caps_as_tasks():
  with pytest.raises(ValueError, match='1 tasks, 2 guidances and 1 step caps'):
    run_episodes(Countdown, Echo(), [Task('countdown', 'a', 'train', 2)], abstained(2), [5])


def test_no_tasks():
  assert play([]) == []


def test_read_contexts():
  Countdown.open = 0
  contexts = read_contexts(Countdown, [Task('countdown', 'a', 'train', n) for n in (2, 5)])
  assert [context.observation for context in contexts] == ['2 left', '5 left']
  with pytest.raises(OSError, match='no such game'):
    read_contexts(Countdown, [Task('countdown', 'reset', 'train', 1)])
  assert Countdown.open == 0
