"""Reading database tasks: every kind of file, and what is said of broken ones."""

import copy
import json

import pytest

from mempi_jax.envs.terminal.tasks import Column, Table, load_tasks

RECORD = {
  'sample_index': 7,
  'instruction': 'How many boats are red?',
  'table_info': {
    'name': 'boats',
    'column_info_list': [{'name': 'id', 'type': 'INT'}, {'name': 'color', 'type': 'VARCHAR(20)'}],
    'row_list': [[1, 'red'], [2, 'blue']],
  },
  'answer_info': {'direct': [[1]], 'md5': None, 'sql': "SELECT COUNT(*) FROM boats WHERE color = 'red';"},
  'skill_list': ['select'],
}


def write(path, content):
  path.write_text(content if isinstance(content, str) else json.dumps(content))
  return path


def check(task, task_id='7'):
  assert task.task_id == task_id and task.asks and task.expected_rows == ((1,),) and task.expected_md5 is None
  assert task.table == Table('boats', (Column('id', 'INT'), Column('color', 'VARCHAR(20)')), ((1, 'red'), (2, 'blue')))
  assert [column.storage for column in task.table.columns] == ['INTEGER', 'TEXT']
  assert task.skills == ('select',) and task.split == 'test'


def test_list_object_and_lines(tmp_path):
  check(load_tasks(write(tmp_path / 'list.json', [RECORD]), split='test')['7'])
  unnamed = {name: value for name, value in RECORD.items() if name != 'sample_index'}
  check(load_tasks(write(tmp_path / 'object.json', {'12': unnamed}), split='test')['12'], '12')
  lines = write(tmp_path / 'lines.jsonl', json.dumps(RECORD) + '\n' + json.dumps({**RECORD, 'sample_index': 8}) + '\n')
  assert list(load_tasks(lines)) == ['7', '8']
  assert list(load_tasks(lines, count=1)) == ['7']


def test_nested_fields_may_be_text(tmp_path):
  """As in the data set on the hub: the text of Python literals."""
  record = {**RECORD, **{name: repr(RECORD[name]) for name in ('table_info', 'answer_info', 'skill_list')}}
  check(load_tasks(write(tmp_path / 'text.json', [record]), split='test')['7'])


def test_parquet(tmp_path):
  parquet = pytest.importorskip('pyarrow.parquet', reason='parquet needs pyarrow: pip install mempi_jax[terminal]')
  import pyarrow

  record = {**RECORD, **{name: repr(RECORD[name]) for name in ('table_info', 'answer_info', 'skill_list')}}
  parquet.write_table(pyarrow.Table.from_pylist([record]), tmp_path / 'tasks.parquet')
  check(load_tasks(tmp_path / 'tasks.parquet', split='test')['7'])
  (tmp_path / 'broken.parquet').write_bytes(b'PAR1 no')
  with pytest.raises(ValueError, match='broken.parquet: not a parquet file'):
    load_tasks(tmp_path / 'broken.parquet')


@pytest.mark.parametrize(
  'where, value, message',
  [
    (('instruction',), '', 'row 0: instruction: expected text'),
    (('table_info',), [1], 'row 0: table_info: expected an object, found \\[1\\]'),
    (('table_info',), '{1', 'row 0: table_info: expected JSON or a Python literal'),
    (('table_info', 'name'), None, 'table_info.name: expected text, found nothing'),
    (('table_info', 'column_info_list'), [], 'column_info_list: expected a list of columns'),
    (('table_info', 'column_info_list', 1, 'type'), 'BLOB', "column_info_list\\[1\\].type: unknown column type 'BLOB'; expected one of INT"),
    (('table_info', 'column_info_list', 1, 'name'), 'ID', 'a column is there twice'),
    (('table_info', 'row_list', 1), [1], 'row_list\\[1\\]: expected 2 values, one a column, found 1'),
    (('table_info', 'row_list', 1, 0), 'two', "row_list\\[1\\]\\[0\\]: column id has type INT, found 'two'"),
    (('table_info', 'row_list', 0, 1), {'a': 1}, 'row_list\\[0\\]\\[1\\]: expected a number, text or null'),
    (('table_info', 'row_list', 0, 0), True, 'row_list\\[0\\]\\[0\\]: expected a number, text or null, found True'),
    (('answer_info', 'md5'), '0' * 32, 'answer_info: expected direct .* or md5 .*, found both'),
    (('answer_info', 'direct'), None, 'found neither'),
    (('answer_info', 'direct'), [3], 'answer_info.direct\\[0\\]: expected a list of values, found 3'),
    (('answer_info', 'sql'), 'DELETE FROM boats', 'expected md5, found direct'),
    (('skill_list',), ['select', 3], 'skill_list\\[1\\]: expected text, found 3'),
    (('sample_index',), None, 'sample_index: expected a number or a name'),
  ],
)
def test_broken_records(tmp_path, where, value, message):
  record = copy.deepcopy(RECORD)
  inner = record
  for name in where[:-1]:
    inner = inner[name]
  inner[where[-1]] = value
  path = write(tmp_path / 'tasks.json', [record])
  with pytest.raises(ValueError, match=message) as error:
    load_tasks(path)
  assert str(path) in str(error.value)


def test_broken_files(tmp_path):
  with pytest.raises(FileNotFoundError, match='no file'):
    load_tasks(tmp_path / 'nothing.json')
  with pytest.raises(ValueError, match='no tasks in it'):
    load_tasks(write(tmp_path / 'empty.json', []))
  with pytest.raises(ValueError, match='expected a list of tasks, or an object of them, found int'):
    load_tasks(write(tmp_path / 'number.json', 3))
  with pytest.raises(ValueError, match='row 0: expected an object, found 3'):
    load_tasks(write(tmp_path / 'numbers.json', [3]))
  with pytest.raises(ValueError, match='lines.jsonl:2: not JSON'):
    load_tasks(write(tmp_path / 'lines.jsonl', json.dumps(RECORD) + '\n{\n'))
  with pytest.raises(ValueError, match='row 1: sample_index 7 is there twice'):
    load_tasks(write(tmp_path / 'twice.json', [RECORD, RECORD]))
  with pytest.raises(ValueError, match='unknown kind of file'):
    load_tasks(write(tmp_path / 'tasks.csv', 'a'))
