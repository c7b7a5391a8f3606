"""Each distinct episode is played once; groups keep their branches in order beside the cached abstain branch."""

import pytest

from mempi_jax.rollout.group import run_groups
from mempi_jax.rollout.runner import Runner
from mempi_jax.types import Context, Decision, EnvStep, Guidance, Status, Task

SILENT = Guidance(Decision.ABSTAIN)


class Env:
  """Solved by the action 'win'."""

  def reset(self, task):
    return Context(task, 'goal', f'start of {task.task_id}')

  def step(self, action):
    won = action == 'win'
    return EnvStep(f'after {action}', float(won), won, won)

  def close(self):
    pass


class Agent:
  """Wins at once when its guidance says so; counts the rows that it was given."""

  def __init__(self):
    self.rows = []

  def begin(self, contexts, guidances, seeds):
    self.rows.append(len(contexts))
    actions = ['win' if 'win' in g.text and g.decision is Decision.GENERATE else f'wait {seed}' for g, seed in zip(guidances, seeds, strict=True)]

    class Session:
      def act(self, observations):
        return [None if o is None else a for o, a in zip(observations, actions, strict=True)]

    return Session()


def say(text):
  return Guidance(Decision.GENERATE, text, (1, 2))


def task(name, seed=0):
  return Task('fake', name, 'train', seed)


def test_equal_episodes_run_once_and_keep_their_own_guidance():
  agent = Agent()
  runner = Runner(Env, agent, lambda task: 2, batch_size=8)
  guidances = [say('win'), say('win'), say('no'), SILENT, Guidance(Decision.ABSTAIN, 'win')]
  episodes = runner.run([task('a')] * 5, guidances)
  assert [e.success for e in episodes] == [True, True, False, False, False]
  assert [e.guidance for e in episodes] == guidances
  assert agent.rows == [3] and runner.episodes_run == 3  # win, no, silence (an abstained text is never read)
  assert runner.steps_run == 1 + 2 + 2


def test_seed_and_task_tell_episodes_apart_and_batches_are_cut():
  agent = Agent()
  runner = Runner(Env, agent, lambda task: 1, batch_size=2)
  episodes = runner.run([task('a'), task('a', 1), task('b')], [SILENT] * 3)
  assert agent.rows == [2, 1]
  assert [e.steps[0].action for e in episodes] == ['wait 0', 'wait 1', 'wait 0']
  assert [e.context.observation for e in episodes] == ['start of a', 'start of a', 'start of b']


@pytest.mark.parametrize('remember, runs', [(True, [1]), (False, [1, 1])])
def test_remembering(remember, runs):
  agent = Agent()
  runner = Runner(Env, agent, lambda task: 1, batch_size=2, remember=remember)
  first, second = runner.run([task('a')], [say('x')]), runner.run([task('a')], [say('x')])
  assert first == second and agent.rows == runs


def test_groups():
  runner = Runner(Env, Agent(), lambda task: 1, batch_size=8)
  tasks = [task('a', 3), task('b', 4)]
  quiet = runner.run(tasks, [SILENT] * 2)
  groups = run_groups(runner, tasks, [[say('win'), say('no')], [say('no'), say('win')]], [[3, 3], [7, 8]], quiet)
  assert [[e.success for e in group.episodes] for group in groups] == [[False, True, False], [False, False, True]]
  assert [e.context.task.seed for e in groups[0].episodes] == [3, 3, 3]
  assert [e.context.task.seed for e in groups[1].episodes] == [4, 7, 8]
  assert all(group.episodes[0].status is Status.TRUNCATED for group in groups)
  with pytest.raises(ValueError, match='must generate'):
    run_groups(runner, tasks, [[SILENT], [SILENT]], [[3], [4]], quiet)
