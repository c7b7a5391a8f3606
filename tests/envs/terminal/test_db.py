"""Episodes of database tasks: the protocol, what is read generously, what is right."""

import pytest

from mempi_jax.envs.terminal import answers
from mempi_jax.envs.terminal.answers import Answer, Malformed, Operation, parse_action, parse_rows
from mempi_jax.envs.terminal.database import fingerprint
from mempi_jax.envs.terminal.db import DbEnv, rows_text
from mempi_jax.envs.terminal.tasks import Column, DatabaseTask, Table
from mempi_jax.types import Task

TABLE = Table('boats', (Column('id', 'INT'), Column('name', 'TEXT')), ((1, 'Wave'), (2, 'Gull'), (3, 'Tern, the old')))
LIST = DatabaseTask('list', 'List the names.', TABLE, 'SELECT name FROM boats', (('Wave',), ('Gull',), ('Tern, the old',)))
SORT = DatabaseTask('sort', 'Sort them.', TABLE, 'SELECT id FROM boats ORDER BY id DESC', ((3,), (2,), (1,)))
NONE = DatabaseTask('none', 'Which is the tenth?', TABLE, 'SELECT name FROM boats WHERE id = 10', ())
DROP = DatabaseTask('drop', 'Delete boat 2.', TABLE, 'DELETE FROM boats WHERE id = 2', None, fingerprint([TABLE.rows[0], TABLE.rows[2]]))
TASKS = {task.task_id: task for task in (LIST, SORT, NONE, DROP)}
OPERATION = 'Action: Operation\n```sql\n{}\n```'
ANSWER = 'Action: Answer\nFinal Answer: {}'


def start(task_id, **settings):
  env = DbEnv(TASKS, **settings)
  env.reset(Task('db', task_id, 'train', 0))
  return env


def test_context():
  context = DbEnv(TASKS).reset(Task('db', 'list', 'train', 0))
  assert context.goal == 'List the names. Table boats, columns id, name.'
  assert 'Action: Operation' in context.observation and 'Final Answer:' in context.observation
  assert 'SELECT name' not in context.goal + context.observation


def test_a_question():
  env = start('list')
  step = env.step(OPERATION.format('SELECT name FROM boats'))
  assert (step.observation, step.reward, step.done, step.success) == ("[('Wave',), ('Gull',), ('Tern, the old',)]", 0.0, False, False)
  step = env.step(ANSWER.format(step.observation))
  assert (step.reward, step.done, step.success) == (1.0, True, True)
  with pytest.raises(RuntimeError, match='has been answered'):
    env.step('x')


def test_a_change():
  env = start('drop')
  assert not start('drop').step(ANSWER.format('done')).success
  assert env.step(OPERATION.format('DELETE FROM boats WHERE id = 2;')).observation == '[]'
  assert env.step(ANSWER.format('done')).success
  env.reset(Task('db', 'drop', 'train', 0))  # a fresh table
  assert env.step(OPERATION.format('SELECT COUNT(*) FROM boats')).observation == '[(3,)]'


def test_an_empty_answer():
  """[] is right where no rows are expected; no answer at all is not."""
  assert start('none').step(ANSWER.format('[]')).success
  assert start('none').step(ANSWER.format('[ ]')).success
  assert not start('none').step(ANSWER.format('')).success
  assert not start('none').step(ANSWER.format('nothing')).success
  for task_id in ('list', 'sort', 'drop'):
    assert not start(task_id).step(ANSWER.format('[]')).success


@pytest.mark.parametrize('success, solved', [('exact', False), ('stated', True), ('any_order', True)])
def test_order_where_none_is_stated(success, solved):
  env = start('list', success=success)
  assert env.step(ANSWER.format("[('Gull',), ('Wave',), ('Tern, the old',)]")).success == solved
  assert env.verdict == answers.Verdict(exact=False, any_order=True, stated=True)


@pytest.mark.parametrize('success, solved', [('exact', False), ('stated', False), ('any_order', True)])
def test_order_where_one_is_stated(success, solved):
  assert start('sort', success=success).step(ANSWER.format('[(1,), (2,), (3,)]')).success == solved
  assert start('sort', success=success).step(ANSWER.format('[(3,), (2,), (1,)]')).success
  assert not start('sort', success=success).step(ANSWER.format('[(3,), (3,), (1,)]')).success
  assert not start('sort', success=success).step(ANSWER.format('[(3,), (2,)]')).success


def test_errors_are_observations():
  env = start('list')
  assert env.step(OPERATION.format('SELECT nme FROM boats')).observation == 'Error: no such column: nme'
  assert 'one SQL statement at a time, found 2' in env.step(OPERATION.format('SELECT 1; SELECT 2')).observation
  assert 'ATTACH is not allowed' in env.step(OPERATION.format("ATTACH 'x' AS y")).observation
  assert env.failed_statements == 3 and env.malformed_actions == 0
  step = env.step('I wonder what to do.')
  assert not step.done and 'Action: Operation' in step.observation and env.malformed_actions == 1
  env.reset(Task('db', 'list', 'train', 0))
  assert env.failed_statements == env.malformed_actions == 0 and env.verdict is None


def test_wrong_use():
  with pytest.raises(RuntimeError, match='call reset'):
    DbEnv(TASKS).step('x')
  with pytest.raises(KeyError, match="no task 'lst' among 4 tasks; near names: list"):
    DbEnv(TASKS).reset(Task('db', 'lst', 'train', 0))
  with pytest.raises(ValueError, match="unknown verdict 'order'; expected one of exact, stated, any_order"):
    DbEnv(TASKS, success='order')


@pytest.mark.parametrize(
  'text, action',
  [
    ('Let me see.\nAction: Operation\n```sql\nSELECT 1;\n```\nThat is all.', Operation('SELECT 1;')),
    ('action: operation\n```\nSELECT 1\n```', Operation('SELECT 1')),
    ('**Action**: Operation\n```SQL\nSELECT 1', Operation('SELECT 1')),
    ('Action: Operation\nSELECT 1', Operation('SELECT 1')),
    ('Action: Operation\n```sql\nSELECT 1\n```\nAction: Answer\nFinal Answer: 1', Operation('SELECT 1')),
    ('```sql\nSELECT 1\n```', Operation('SELECT 1')),
    ('select 1', Operation('select 1')),
    ('Action: Answer\nFinal Answer: [(1,)]', Answer('[(1,)]')),
    ('Action: Answer\n**Final Answer:** [(1,)]\nI am sure (quite).', Answer('[(1,)]')),
    ('Action: Answer\nFinal Answer:\n[(1,),\n (2,)]', Answer('[(1,),\n (2,)]')),
    ('final answer: done', Answer('done')),
    ('Action: Answer\nFinal Answer:', Answer('')),
    ('Action: Answer\n[(1,)]', Malformed('there is no "Final Answer:" after "Action: Answer"')),
    ('Action: Operation', Malformed('there is no SQL statement after "Action: Operation"')),
    ('', Malformed('there is no "Action: Operation" or "Action: Answer"')),
    ('hello', Malformed('there is no "Action: Operation" or "Action: Answer"')),
  ],
)
def test_actions(text, action):
  assert parse_action(text) == action


@pytest.mark.parametrize(
  'text, rows',
  [
    ("[(1, 'a'), (2, 'b')]", [('1', 'a'), ('2', 'b')]),
    ('[[1, "a"], [2, "b"]]', [('1', 'a'), ('2', 'b')]),
    ("(1, 'a')", [('1', 'a')]),
    ("1, 'a'", [('1', 'a')]),
    ('[5]', [('5',)]),
    ("[(Decimal('12.50'), Decimal(3))]", [('12.50', '3')]),
    ("[('a, b (c)', \"it's\", 'it\\'s')]", [('a, b (c)', "it's", "it's")]),
    ("[(O'Neil, 3)]", [("O'Neil", '3')]),
    ('[(1,), (2,)]', [('1',), ('2',)]),
    ('[]', []),
    ('', None),
    ('[(1, 2', None),
    ('1)', None),
    ('(' * 30_000, None),
  ],
)
def test_rows(text, rows):
  assert parse_rows(text) == rows


@pytest.mark.parametrize(
  'answer, right',
  [("[('66.6667', 'Ab')]", True), ("[(66.66670001, 'Ab')]", True), ("[(66.667, 'Ab')]", False), ("[(66.6667, 'ab')]", False),
   ("[('Ab', 66.6667)]", False), ("[(66.6667, 'Ab', 1)]", False), ("[(nan, 'Ab')]", False)],
)  # fmt: skip
def test_values(answer, right):
  task = DatabaseTask('mean', 'x', TABLE, 'SELECT 1', ((66.6667, 'Ab'),))
  assert answers.judge_rows(task, answer).exact == right


def test_long_results_are_cut():
  rows = [(n, 'x' * 10) for n in range(100)]
  text = rows_text(rows, 500)
  assert len(text) <= 500 and text.endswith('rows left out)') and text.startswith("[(0, 'xxxxxxxxxx'), ")
  assert rows_text(rows[:3], 500) == repr(rows[:3])
  env = start('list', max_observation=200)
  env.step(OPERATION.format(f"SELECT '{'y' * 3000}'"))
  assert len(env.step(OPERATION.format(f'SELECT {"y" * 3000}')).observation) <= 200
