"""LifelongAgentBench's database tasks (arXiv 2505.11942) as an `Env`, on SQLite in memory with MySQL's rules.

An agent runs SQL statements, one a step, and sees their rows or an error; the episode is over when it answers. A question is solved by the
right rows in the answer, a change by what the table then holds. Unlike in the benchmark a reply without an action does not end the episode:
it costs a step, and the answer says what form is expected [O].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mempi_jax.envs.lookup import find
from mempi_jax.envs.terminal import answers
from mempi_jax.envs.terminal.database import Database
from mempi_jax.envs.terminal.sql import SqlError
from mempi_jax.envs.terminal.tasks import DatabaseTask, Row
from mempi_jax.types import Context, EnvStep, Task

OPENING = answers.FORMAT
SHORT_OPENING = 'write one SQL statement, or "final answer:" and the rows.'  # for small models
MAX_OBSERVATION = 4_000


class DbEnv:
  """Plays `tasks` (id -> task). Implements `types.Env`.

  `Task.seed` changes nothing: a task is the same whenever it is played. `malformed_actions` counts the replies of the running episode in which
  no action was found, `failed_statements` those whose SQL could or might not be run; `verdict` is that of the answer, None before.
  """

  def __init__(
    self, tasks: Mapping[str, DatabaseTask], *, success: str = 'stated', opening: str = OPENING, max_observation: int = MAX_OBSERVATION
  ):
    """
    Args:
      tasks: id -> task.
      success: which of `answers.VERDICTS` decides: 'exact' (the benchmark's), 'stated' (the order of rows counts where the ground truth has an
        ORDER BY) or 'any_order'.
      opening: the context's observation: how to act.
      max_observation: characters of an observation.

    Raises ValueError for another verdict, or a limit below 100.
    """
    if success not in answers.VERDICTS:
      raise ValueError(f'unknown verdict {success!r}; expected one of {", ".join(answers.VERDICTS)}')
    if max_observation < 100:
      raise ValueError(f'max_observation {max_observation}: expected at least 100 characters')
    self._tasks = tasks
    self._is_success = answers.VERDICTS[success]
    self._opening, self._max_observation = opening, max_observation
    self._task: DatabaseTask | None = None
    self._database: Database | None = None
    self._start_counting()

  def _start_counting(self) -> None:
    self.malformed_actions = 0
    self.failed_statements = 0
    self.verdict: answers.Verdict | None = None

  def reset(self, task: Task) -> Context:
    """Starts the task `task.task_id` on a fresh table.

    Raises:
      KeyError: no such task; names the nearest ids.
      ValueError: its table cannot be made; names the task.
    """
    self.close()
    self._start_counting()
    found = find(self._tasks, task.task_id, 'task')
    try:
      self._database = Database(found.table)
    except ValueError as error:
      raise ValueError(f'task {found.task_id!r}: {error}') from error
    self._task = found
    return Context(task, goal_text(found), self._opening)

  def step(self, action: str) -> EnvStep:
    """Carries out one action; done at the answer, with reward 1.0 if it is right. Raises RuntimeError before `reset`, or after the answer."""
    if self._database is None:
      raise RuntimeError('call reset(task) before step(action)')
    if self.verdict is not None:
      raise RuntimeError('the task has been answered; call reset(task) before step(action)')
    parsed = answers.parse_action(action)
    if isinstance(parsed, answers.Malformed):
      self.malformed_actions += 1
      return self._seen(f'No action: {parsed.reason}.\n{answers.FORMAT}')
    if isinstance(parsed, answers.Operation):
      return self._seen(self._run(parsed.sql))
    return self._judge(parsed.text)

  def _run(self, sql: str) -> str:
    try:
      return rows_text(self._database.execute(sql), self._max_observation)
    except SqlError as error:
      self.failed_statements += 1
      return f'Error: {error}'

  def _judge(self, answer: str) -> EnvStep:
    if self._task.asks:
      self.verdict = answers.judge_rows(self._task, answer)
    else:
      self.verdict = answers.judge_table(self._task, self._database.fingerprint())
    success = self._is_success(self.verdict)
    return EnvStep('Answered.', float(success), True, success)

  def _seen(self, observation: str) -> EnvStep:
    if len(observation) > self._max_observation:
      observation = observation[: self._max_observation - 4] + ' ...'
    return EnvStep(observation, 0.0, False, False)

  def close(self) -> None:
    if self._database is not None:
      self._database.close()
    self._task = self._database = None


def goal_text(task: DatabaseTask) -> str:
  """The instruction, and what the table and its columns are called."""
  columns = ', '.join(column.name for column in task.table.columns)
  return f'{task.instruction} Table {task.table.name}, columns {columns}.'


def rows_text(rows: Sequence[Row], limit: int) -> str:
  """Rows as MySQL's Python client prints them, `[(1, 'a'), (2, 'b')]`, but decimals as plain numbers. What goes over `limit` characters is left
  out, and how many rows these are is said."""
  text = repr(list(rows))
  if len(text) <= limit:
    return text
  shown, length = [], 0
  for row in rows:
    length += len(repr(row)) + 2
    if length > limit - 60:
      break
    shown.append(repr(row))
  return f'[{", ".join([*shown, "..."])}] ({len(rows) - len(shown)} of {len(rows)} rows left out)'
