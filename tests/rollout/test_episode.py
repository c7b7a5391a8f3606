"""Episodes: how they end, what they earn, that none waits for another, and that a broken simulator breaks its own episode alone."""

import logging
import threading

import pytest

from mempi_jax.rollout.episode import abstained, read_contexts, run_episodes, stream_episodes
from mempi_jax.rollout.lending import NoEnvFree
from mempi_jax.types import AgentFault, Context, Decision, EnvStep, Guidance, Status, Step, Task


class Countdown:
  """Answers `task.seed` actions, the last with done. Task ids say what goes wrong: 'reset', 'step 2', 'lose'."""

  open = made = 0

  def __init__(self):
    Countdown.open += 1
    Countdown.made += 1

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
  """An agent that repeats what it sees, `at_a_time` actions a call (0: all that are owed), the last asked first; it notes how it was called.

  An episode whose goal is 'count 7' runs out of context at its third turn.
  """

  def __init__(self, at_a_time=0):
    self.at_a_time = at_a_time
    self.started, self.seen, self.owed, self.rounds, self.ended, self.most = {}, {}, [], [], [], 0

  def begin(self):
    assert not self.started
    return self

  def start(self, key, context, guidance, seed):
    assert key not in self.started
    self.started[key], self.seen[key] = (context, guidance, seed), []
    self.most = max(self.most, len(self.started.keys() - set(self.ended)))
    self.observe(key, context.observation)

  def observe(self, key, observation):
    assert key not in self.owed and key not in self.ended
    self.seen[key].append(observation)
    self.owed.append(key)

  def act(self):
    assert self.owed  # nobody asks for nothing
    now = self.owed[::-1][: self.at_a_time or None]
    self.owed = [key for key in self.owed if key not in now]
    self.rounds.append(sorted(now))
    return [(key, self._action(key)) for key in now]

  def end(self, key):
    assert key not in self.ended
    self.owed = [other for other in self.owed if other != key]
    self.ended.append(key)

  def _action(self, key):
    full = self.started[key][0].goal == 'count 7' and len(self.seen[key]) == 3
    return None if full else f'say {self.seen[key][-1]}'


@pytest.fixture(autouse=True)
def every_environment_is_closed():
  Countdown.open = Countdown.made = 0
  yield
  assert Countdown.open == 0


def tasks_of(names_and_lengths):
  return [Task('countdown', name, 'train', length) for name, length in names_and_lengths]


def stream(names_and_lengths, agent=None, max_steps=10, make_env=Countdown, **settings):
  tasks = tasks_of(names_and_lengths)
  caps = max_steps if isinstance(max_steps, list) else [max_steps] * len(tasks)
  return stream_episodes(make_env, agent or Echo(), tasks, abstained(len(tasks)), caps, **settings)


def play(names_and_lengths, max_steps=10, agent=None, **settings):
  agent = agent or Echo()
  tasks = tasks_of(names_and_lengths)
  caps = max_steps if isinstance(max_steps, list) else [max_steps] * len(tasks)
  episodes = run_episodes(Countdown, agent, tasks, abstained(len(tasks)), caps, **settings)
  assert agent.started.keys() <= set(agent.ended) and not agent.owed
  return episodes


def test_one_episode_by_hand():
  agent = Echo()
  guidance = Guidance(Decision.GENERATE, 'count down')
  task = Task('countdown', 'a', 'train', 2)
  (episode,) = run_episodes(Countdown, agent, [task], [guidance], [5])
  assert episode.context == Context(task, 'count 2', '2 left')
  assert episode.guidance is guidance and agent.started == {0: (episode.context, guidance, 2)} and agent.ended == [0]
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
  # The agent never sees the game that did not begin, and nothing of an episode from its end on.
  assert [agent.started[key][0].goal for key in sorted(agent.started)] == ['count 1', 'count 2', 'count 4', 'count 4', 'count 7', 'count 3']
  assert agent.seen == {
    0: ['1 left'],
    1: ['2 left', '1 left'],
    2: ['4 left', '3 left', '2 left'],
    3: ['4 left', '3 left'],
    4: ['7 left', '6 left', '5 left'],
    6: ['3 left', '2 left', '1 left'],
  }
  assert agent.rounds == [[0, 1, 2, 3, 4, 6], [1, 2, 3, 4, 6], [2, 4, 6]]


MANY = [('a', 1), ('lose', 2), ('a', 4), ('step 2', 4), ('a', 7), ('reset', 3), ('a', 3), ('a', 9), ('step 1', 1), ('a', 5)]


@pytest.mark.parametrize('workers', [0, 3])
@pytest.mark.parametrize('side_by_side', [1, 2, 3, 10])
@pytest.mark.parametrize('at_a_time', [0, 1])
def test_episodes_do_not_depend_on_how_many_run_or_when_the_agent_answers(workers, side_by_side, at_a_time):
  expected = play(MANY)
  agent = Echo(at_a_time)
  assert play(MANY, agent=agent, side_by_side=side_by_side, workers=workers) == expected
  assert agent.most <= side_by_side


def test_environments_are_used_again():
  play([('a', length) for length in (3, 1, 2, 4, 1, 2, 3)], side_by_side=3)
  assert Countdown.made == 3
  Countdown.made = 0
  play([('a', 1), ('step 1', 2), ('reset', 2), ('a', 2)], side_by_side=1)
  assert Countdown.made == 3  # one that failed is not asked again


def test_episodes_come_as_they_end_and_results_in_order():
  lengths = [4, 1, 3, 1, 2]
  ended = list(stream([('a', length) for length in lengths]))
  assert [i for i, _ in ended] == [3, 1, 4, 2, 0]  # the agent answers the last one first
  # With two at a time the next one begins when one has ended; and the order is the same every time.
  ended = [[i for i, _ in stream([('a', length) for length in lengths], side_by_side=2)] for _ in range(3)]
  assert ended[0] == ended[1] == ended[2] and ended[0][0] == 1
  episodes = play([('a', length) for length in lengths], side_by_side=2)
  assert [len(episode.steps) for episode in episodes] == lengths
  assert [episode.context.goal for episode in episodes] == [f'count {length}' for length in lengths]


class Slow(Countdown):
  """Waits at 'slow reset' and 'slow step' tasks until `go` is set."""

  go = threading.Event()

  def reset(self, task):
    if task.task_id == 'slow reset':
      self.wait()
    return super().reset(task)

  def step(self, action):
    if self.task.task_id == 'slow step':
      self.wait()
    return super().step(action)

  def wait(self):
    if not Slow.go.wait(timeout=60):
      raise TimeoutError('the others did not go on')


@pytest.mark.parametrize('where', ['slow reset', 'slow step'])
@pytest.mark.parametrize('side_by_side', [2, 6])
def test_a_slow_environment_holds_up_no_other(where, side_by_side):
  Slow.go.clear()
  names = [(where, 2), ('a', 3), ('a', 1), ('a', 2), ('lose', 2), ('a', 4)]
  ended = []
  for i, episode in stream(names, make_env=Slow, side_by_side=side_by_side, workers=2):
    ended.append((i, episode.status))
    if len(ended) == len(names) - 1:
      Slow.go.set()
  assert ended[-1] == (0, Status.SUCCESS)
  assert sorted(ended[:-1]) == [(i, Status.FAILURE if i == 4 else Status.SUCCESS) for i in range(1, 6)]


@pytest.mark.parametrize('workers', [0, 2])
def test_a_consumer_that_stops_early(workers):
  agent = Echo()
  episodes = stream([('a', 1), ('a', 5), ('a', 5), ('step 1', 5), ('a', 2)], agent, side_by_side=4, workers=workers)
  next(episodes)
  assert Countdown.open > 0
  episodes.close()
  assert Countdown.open == 0 and Countdown.made <= 5
  assert agent.started.keys() <= set(agent.ended)


class Flaky(Countdown):
  """The task 'flaky N' fails N times, at its reset and at its second step by turns; `tries` has the environments that played it."""

  tries: dict[str, list] = {}

  def reset(self, task):
    self.fails = None
    if task.task_id.startswith('flaky'):
      tries = Flaky.tries.setdefault(task.task_id, [])
      if len(tries) < int(task.task_id.split()[1]):
        self.fails = 'reset' if len(tries) % 2 == 0 else 'step'
      tries.append(self)
      if self.fails == 'reset':
        raise OSError('no connection')
    return super().reset(task)

  def step(self, action):
    if self.fails and self.taken == 1:
      raise OSError('connection lost')
    return super().step(action)


class Again(Echo):
  """An Echo that may start an episode that it has ended."""

  def start(self, key, context, guidance, seed):
    if key in self.started:
      self.ended.remove(key)  # it was there
      del self.started[key]
    super().start(key, context, guidance, seed)

  def end(self, key):
    if key in self.started and key not in self.ended:  # else it never started, as far as this try goes
      super().end(key)


@pytest.mark.parametrize('workers', [0, 2])
def test_an_episode_is_played_again_after_a_fault(workers, caplog):
  names = [('a', 3), ('flaky 1', 3), ('flaky 2', 4), ('flaky 3', 3), ('flaky 4', 2), ('a', 2)]
  Flaky.tries = {}
  agent = Again()
  with caplog.at_level(logging.WARNING):
    ended = list(stream(names, agent, make_env=Flaky, side_by_side=2, workers=workers, retries=2))
  assert sorted(i for i, _ in ended) == list(range(6))  # each once
  episodes = dict(ended)
  expected = play([('a', length) for _, length in names])
  for i in (0, 1, 2, 5):
    assert (episodes[i].steps, episodes[i].status, episodes[i].reward) == (expected[i].steps, expected[i].status, expected[i].reward)
  # Three tries and no more; what is told is the last one.
  assert [episodes[i].status for i in (3, 4)] == [Status.ENV_ERROR] * 2
  assert [len(Flaky.tries[f'flaky {n}']) for n in (1, 2, 3, 4)] == [2, 3, 3, 3]
  assert episodes[3].steps == () and episodes[3].context.goal == ''
  for tries in Flaky.tries.values():
    assert len({id(env) for env in tries}) == len(tries)  # each time a fresh environment
  assert sorted(agent.ended) == sorted(agent.started) == list(range(6)) and not agent.owed
  assert caplog.text.count('task flaky 2: the environment failed') == 2
  assert 'after 1 steps (try 2 of 3)' in caplog.text and 'connection lost' in caplog.text


def test_a_failed_episode_is_the_next_to_begin():
  ended = [i for i, _ in stream([('step 1', 2), ('a', 1), ('a', 1)], Again(), side_by_side=1, retries=3)]
  assert ended == [0, 1, 2] and Countdown.made == 5


@pytest.mark.parametrize('workers', [0, 2])
def test_a_fault_of_the_agent_is_not_retried(workers):
  class Broken(Again):
    def act(self):
      return [(key, AgentFault('no answer')) for key, _ in super().act()]

  agent = Broken()
  episodes = dict(stream([('a', 2), ('a', 3)], agent, workers=workers, retries=5))
  assert [episodes[i].status for i in (0, 1)] == [Status.ENV_ERROR] * 2
  assert sorted(agent.ended) == [0, 1] and Countdown.made == 2


def test_retries_must_not_be_negative():
  with pytest.raises(ValueError, match='retries is -1'):
    list(stream([('a', 1)], retries=-1))


class Few:
  """Makes at most two environments at a time, as a pool does."""

  def __init__(self, spare=2):
    self.spare, self.most = spare, 0

  def __call__(self):
    if not self.spare:
      raise NoEnvFree('all are in use')
    self.spare -= 1
    self.most = max(self.most, 2 - self.spare)
    env = Countdown()
    env.close = lambda: (setattr(self, 'spare', self.spare + 1), Countdown.close(env))
    return env


@pytest.mark.parametrize('workers', [0, 2])
def test_no_more_episodes_than_environments(workers):
  few, agent = Few(), Again()
  episodes = dict(stream(MANY, agent, make_env=few, workers=workers, retries=1))
  assert [episodes[i] for i in range(len(MANY))] == play(MANY)
  assert few.most == agent.most == 2 and few.spare == 2
  with pytest.raises(NoEnvFree):
    list(stream(MANY, make_env=Few(0)))


class Stoppable(Slow):
  """Hears that nobody waits any longer."""

  def abort(self):
    Slow.go.set()


def test_a_consumer_that_stops_ends_what_hangs():
  Slow.go.clear()
  episodes = stream([('a', 1), ('slow reset', 2), ('slow step', 2), ('a', 3)], make_env=Stoppable, workers=3)
  assert next(episodes)[1].status is Status.SUCCESS
  episodes.close()
  assert Slow.go.is_set() and Countdown.open == 0


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
  assert (episode.status, episode.steps, episode.last_observation, agent.started) == (Status.TRUNCATED, (), '3 left', {})


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('method', ['start', 'observe', 'act'])
def test_an_agents_exception_is_not_the_environments_fault(method, workers):
  def fail(*arguments):
    raise FloatingPointError('NaN')

  agent = Echo()
  # The first observation is part of `start`.
  failing = {'observe': lambda key, seen: Echo.observe(agent, key, seen) if seen == '2 left' else fail()}
  setattr(agent, method, failing.get(method, fail))
  with pytest.raises(FloatingPointError, match='NaN'):
    list(stream([('a', 2)] * 3, agent, workers=workers))
  assert Countdown.made == 3 and Countdown.open == 0
  assert sorted(agent.ended) == [0, 1, 2]


def test_an_environment_that_cannot_be_made():
  def make_env():
    if Countdown.made == 2:
      raise OSError('no more processes')
    return Countdown()

  with pytest.raises(OSError, match='no more processes'):
    list(stream([('a', 2)] * 3, make_env=make_env))
  assert Countdown.made == 2 and Countdown.open == 0


def test_as_many_guidances_and_caps_as_tasks():
  with pytest.raises(ValueError, match='1 tasks, 2 guidances and 1 step caps'):
    run_episodes(Countdown, Echo(), [Task('countdown', 'a', 'train', 2)], abstained(2), [5])


def test_no_tasks():
  assert play([]) == []


def test_read_contexts():
  contexts = read_contexts(Countdown, [Task('countdown', 'a', 'train', n) for n in (2, 5)])
  assert [context.observation for context in contexts] == ['2 left', '5 left']
  with pytest.raises(OSError, match='no such game'):
    read_contexts(Countdown, [Task('countdown', 'reset', 'train', 1)])


@pytest.mark.parametrize('workers', [0, 3])
def test_read_contexts_side_by_side_and_again(workers):
  Flaky.tries = {}
  tasks = [Task('countdown', 'a', 'train', n) for n in range(1, 20)]
  contexts = read_contexts(Flaky, [*tasks, Task('countdown', 'flaky 1', 'train', 9)], workers=workers, retries=1)
  assert [context.observation for context in contexts] == [f'{n} left' for n in [*range(1, 20), 9]]
  assert 2 <= Countdown.made <= 4 and len(Flaky.tries['flaky 1']) == 2
  with pytest.raises(OSError, match='no such game'):
    read_contexts(Countdown, [*tasks, Task('countdown', 'reset', 'train', 1), *tasks], workers=workers, retries=2)
  assert read_contexts(Countdown, [], workers=workers) == []
