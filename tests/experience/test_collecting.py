"""The log of played episodes: written as they end, in order, and taken up where it stops."""

import pytest

from mempi_jax.experience.collecting import play_to_log
from mempi_jax.rollout.runner import Runner
from mempi_jax.runtime import files
from mempi_jax.types import Context, EnvStep, Status, Task


class Env:
  """Over after `task.seed` actions."""

  def reset(self, task):
    self.left = task.seed
    return Context(task, 'goal', f'{self.left} left')

  def step(self, action):
    self.left -= 1
    return EnvStep(f'{self.left} left', float(self.left == 0), self.left == 0, self.left == 0)

  def close(self):
    pass


class Agent:
  """Waits; breaks down at an episode of the task `breaks_at`."""

  def __init__(self, breaks_at=''):
    self.breaks_at, self.started = breaks_at, []

  def begin(self):
    self.owed = []
    return self

  def start(self, key, context, guidance, seed):
    self.started.append(context.task.task_id)
    if context.task.task_id == self.breaks_at:
      raise KeyboardInterrupt
    self.owed.append(key)

  def observe(self, key, observation):
    self.owed.append(key)

  def act(self):
    owed, self.owed = self.owed, []
    return [(key, 'wait') for key in owed]

  def end(self, key):
    pass


TASKS = [Task('fake', name, 'train', seed) for name, seed in (('a', 5), ('b', 1), ('c', 3), ('d', 2), ('e', 4), ('f', 1))]


def play(path, agent, tasks=TASKS, batch_size=2):
  play_to_log(Runner(Env, agent, lambda task: 4, batch_size), tasks, path, 'test')


def names(path):
  return [record['task_id'] for record in files.read_jsonl(path)]


@pytest.mark.parametrize('batch_size', [1, 2, 6])
def test_episodes_stand_in_the_order_of_their_tasks(tmp_path, batch_size):
  play(tmp_path / 'log.jsonl', Agent(), batch_size=batch_size)
  records = list(files.read_jsonl(tmp_path / 'log.jsonl'))
  assert [(record['task_id'], record['agent_steps']) for record in records] == [('a', 4), ('b', 1), ('c', 3), ('d', 2), ('e', 4), ('f', 1)]
  assert [record['status'] for record in records] == [Status.TRUNCATED, *[Status.SUCCESS] * 5]


def test_a_broken_off_log_is_taken_up_where_it_stops(tmp_path):
  play(tmp_path / 'whole.jsonl', Agent())
  log = tmp_path / 'log.jsonl'
  with pytest.raises(KeyboardInterrupt):
    play(log, Agent(breaks_at='e'))
  done = names(log)
  assert done == [task.task_id for task in TASKS[: len(done)]] and 0 < len(done) < 5  # each was written when it had ended
  with open(log, 'a') as file:
    file.write('{"task_id": "half')
  agent = Agent()
  play(log, agent)
  assert agent.started == [task.task_id for task in TASKS[len(done) :]]
  assert log.read_bytes() == (tmp_path / 'whole.jsonl').read_bytes()
  again = Agent()
  play(log, again)
  assert again.started == [] and log.read_bytes() == (tmp_path / 'whole.jsonl').read_bytes()


def test_a_log_of_other_tasks_is_refused(tmp_path):
  play(tmp_path / 'log.jsonl', Agent(), TASKS[:2])
  with pytest.raises(ValueError, match='log.jsonl:1: found .* it belongs to another run'):
    play(tmp_path / 'log.jsonl', Agent(), TASKS[1:])
