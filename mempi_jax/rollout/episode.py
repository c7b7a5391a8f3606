"""Episodes: environments on the host, one agent for all of them, each going on as soon as it can.

An episode waits for its environment or for the agent, and holds up no other: what the agent owes is generated for those that are ready,
while environments with workers step beside it. Environments may live in the processes of a pool (pool.py): then no more episodes are under way
than it has workers. One whose environment failed can be played again from its start: an episode is a function of task, seed and guidance.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mempi_jax.rollout.lending import Abortable, NoEnvFree
from mempi_jax.runtime import preemption
from mempi_jax.types import Agent, AgentFault, Context, Decision, Env, Episode, Guidance, Status, Step, Task

_logger = logging.getLogger(__name__)

_PATIENCE = 1.0  # seconds: for what environments are at when nobody wants it any more; between looks at whether anybody does


@dataclasses.dataclass
class _Running:
  """An episode that has begun."""

  env: Env
  context: Context
  last: str = ''
  action: str = ''
  steps: list[Step] = dataclasses.field(default_factory=list)


class _Inline(concurrent.futures.Executor):
  """Runs each call at once, in the caller's thread: for simulators that take microseconds."""

  def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> concurrent.futures.Future:
    future: concurrent.futures.Future = concurrent.futures.Future()
    try:
      future.set_result(fn(*args, **kwargs))
    except Exception as error:  # noqa: BLE001  the future carries it, as an executor's would
      future.set_exception(error)
    return future


def run_episodes(
  make_env: Callable[[], Env],
  agent: Agent,
  tasks: Sequence[Task],
  guidances: Sequence[Guidance],
  max_steps: Sequence[int],
  *,
  side_by_side: int = 256,
  workers: int = 0,
  retries: int = 0,
) -> list[Episode]:
  """All of `stream_episodes`, in the order of the tasks."""
  episodes = dict(stream_episodes(make_env, agent, tasks, guidances, max_steps, side_by_side=side_by_side, workers=workers, retries=retries))
  return [episodes[i] for i in range(len(tasks))]


def stream_episodes(
  make_env: Callable[[], Env],
  agent: Agent,
  tasks: Sequence[Task],
  guidances: Sequence[Guidance],
  max_steps: Sequence[int],
  *,
  side_by_side: int = 256,
  workers: int = 0,
  retries: int = 0,
) -> Iterator[tuple[int, Episode]]:
  """Plays each task with its guidance, at most max_steps[i] actions each; yields (number of the task, episode) as they end.

  A simulator's exception, at reset or at a step, is logged and leaves the other episodes alone. The episode is played again from its start, in
  another environment, the agent anew as well; after `retries` of that it ends with status ENV_ERROR. An agent's fault ends its episode so at once.
  An episode whose reset failed has a context without goal and observation. What `make_env` or the agent raises is passed on. A run that is
  asked to end (runtime/preemption.py) ends here, and its episodes that are under way are lost: they are played again.

  Args:
    make_env: makes one environment; it is reused for later tasks. Where it raises `pool.NoEnvFree` the next task begins when one is free.
    agent: the frozen agent.
    tasks, guidances, max_steps: one of each an episode.
    side_by_side: most episodes that run at a time; the next task begins when one ends.
    workers: threads in which environments step (simulators that wait for a process of their own); 0: in this thread, one after the other,
      and then the order of events depends on nothing but the episodes themselves. For a pool's environments: as many as the pool has.
    retries: how often an episode is played again after a fault of its environment.

  Raises ValueError when the numbers of tasks, guidances and step caps differ, or nothing may run.
  """
  if not len(tasks) == len(guidances) == len(max_steps):
    raise ValueError(f'{len(tasks)} tasks, {len(guidances)} guidances and {len(max_steps)} step caps: expected as many of each')
  if side_by_side < 1:
    raise ValueError(f'side_by_side is {side_by_side}: expected at least one episode at a time')
  if retries < 0:
    raise ValueError(f'retries is {retries}: expected a number of further tries, 0 for none')
  session = agent.begin()
  executor = concurrent.futures.ThreadPoolExecutor(workers) if workers else _Inline()
  begin = collections.deque(range(len(tasks)))
  free: list[Env] = []
  running: dict[int, _Running] = {}
  pending: dict[concurrent.futures.Future, int] = {}  # what environments are at
  failed: collections.Counter[int] = collections.Counter()  # tries of an episode
  owed = 0  # actions

  def finish(i: int, status: Status) -> tuple[int, Episode]:
    """An episode that is over leaves, and its environment is free, or closed."""
    run = running[i]
    session.end(i)
    del running[i]
    if status is Status.ENV_ERROR:
      run.env.close()  # nobody knows what state it is in
    else:
      free.append(run.env)
    reward = sum(step.reward for step in run.steps)
    return i, Episode(run.context, guidances[i], tuple(run.steps), reward, status is Status.SUCCESS, status, run.last)

  def again(i: int) -> bool:
    """Whether an episode whose environment failed is played again; then it is the next to begin."""
    failed[i] += 1
    if failed[i] > retries:
      return False
    session.end(i)
    running.pop(i).env.close()
    begin.appendleft(i)
    return True

  def take(i: int, future: concurrent.futures.Future) -> Status | None:
    """What an environment answered goes to the agent; the status where the episode is over."""
    run = running[i]
    try:
      answer = future.result()
    except Exception as error:  # noqa: BLE001  whatever a simulator throws is the simulator's fault, not the episode's
      tried = f' (try {failed[i] + 1} of {retries + 1})' if retries else ''
      _logger.warning('task %s: the environment failed after %d steps%s: %r', tasks[i].task_id, len(run.steps), tried, error)
      return Status.ENV_ERROR
    if isinstance(answer, Context):
      run.context, run.last = answer, answer.observation
      if max_steps[i] < 1:
        return Status.TRUNCATED
      session.start(i, run.context, guidances[i], tasks[i].seed)
      return None
    run.steps.append(Step(run.last, run.action, answer.reward))
    run.last = answer.observation
    if answer.done:
      return Status.SUCCESS if answer.success else Status.FAILURE
    if len(run.steps) >= max_steps[i]:
      return Status.TRUNCATED
    session.observe(i, run.last)
    return None

  try:
    while begin or running:
      while begin and len(running) < side_by_side:
        try:
          env = free.pop() if free else make_env()
        except NoEnvFree:
          if not running:
            raise  # somebody else has them, and may be waiting for these episodes
          break
        i = begin.popleft()
        running[i] = _Running(env, Context(tasks[i], '', ''))
        pending[executor.submit(running[i].env.reset, tasks[i])] = i
      preemption.check()
      # With nothing to generate, wait for an environment; else take what is there.
      wait = concurrent.futures.wait(pending, timeout=0 if owed else _PATIENCE, return_when=concurrent.futures.FIRST_COMPLETED)
      for future in [future for future in pending if future in wait.done]:  # in the order in which they were asked
        i = pending.pop(future)
        status = take(i, future)
        if status is None:
          owed += 1
        elif status is not Status.ENV_ERROR or not again(i):
          yield finish(i, status)
      if owed:
        for i, action in session.act():
          owed -= 1
          if action is None:  # the agent ran out of context
            yield finish(i, Status.TRUNCATED)
          elif isinstance(action, AgentFault):
            _logger.warning('task %s: the agent failed after %d steps: %s', tasks[i].task_id, len(running[i].steps), action.reason)
            yield finish(i, Status.ENV_ERROR)
          else:
            running[i].action = action
            pending[executor.submit(running[i].env.step, action)] = i
  finally:
    executor.shutdown(wait=False, cancel_futures=True)
    under_way = [future for future in pending if not future.cancelled()]
    if concurrent.futures.wait(under_way, timeout=_PATIENCE).not_done:  # a step may take its whole deadline
      for run in running.values():
        if isinstance(run.env, Abortable):
          run.env.abort()
    executor.shutdown(wait=True)
    for env in (*free, *(run.env for run in running.values())):
      env.close()
    for i in running:  # where the caller, or the agent, stopped halfway
      session.end(i)


def abstained(count: int) -> list[Guidance]:
  """No guidance, `count` times."""
  return [Guidance(Decision.ABSTAIN)] * count


def read_contexts(make_env: Callable[[], Env], tasks: Sequence[Task], *, workers: int = 0, retries: int = 0) -> list[Context]:
  """The first contexts of tasks, without playing them. What a reset raises is passed on: there is nothing to go on with.

  `workers` threads, with an environment each, share the tasks; 0: this one alone. A reset that fails is tried again `retries` times, each time in
  another environment.
  """
  contexts: list[Context | None] = [None] * len(tasks)
  numbers = iter(range(len(tasks)))  # for all threads

  def read() -> None:
    """One thread's part: the next task that nobody reads, until there is none."""
    env = make_env()
    try:
      for i in numbers:
        for left in reversed(range(retries + 1)):
          try:
            contexts[i] = env.reset(tasks[i])
            break
          except Exception as error:  # noqa: BLE001  as in `stream_episodes`
            if not left:
              raise
            _logger.warning('task %s: the environment failed at its reset, which is tried again: %r', tasks[i].task_id, error)
            env.close()
            env = make_env()
    except BaseException:
      collections.deque(numbers, maxlen=0)  # the others need not go on
      raise
    finally:
      env.close()

  if not workers:
    read()
  else:
    with concurrent.futures.ThreadPoolExecutor(workers) as executor:
      for future in [executor.submit(read) for _ in range(min(workers, len(tasks)))]:
        future.result()
  return contexts
