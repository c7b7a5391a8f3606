"""Reading operating-system tasks: the benchmark's shape, and what is said of broken records."""

import copy
import json

import pytest

from mempi_jax.envs.terminal.os_tasks import load_os_tasks

RECORD = {
  'sample_index': 7,
  'instruction': 'Make a file. ',
  'initialization_command_item': {'command_name': 'bash', 'script': ''},
  'evaluation_info': {
    'evaluation_command_item': {'command_name': 'bash', 'script': 'test -f /a'},
    'ground_truth_command_item': {'command_name': 'bash', 'script': 'touch /a'},
  },
  'skill_list': ['touch'],
}


def changed(**fields):
  record = copy.deepcopy(RECORD)
  for path, value in fields.items():
    target = record
    *parents, name = path.split('__')
    for parent in parents:
      target = target[parent]
    target[name] = value
  return record


def test_a_list_and_lines_and_nested_text(tmp_path):
  (tmp_path / 'a.json').write_text(json.dumps([RECORD, changed(sample_index=8)]))
  tasks = load_os_tasks(tmp_path / 'a.json')
  assert list(tasks) == ['7', '8']
  task = tasks['7']
  assert (task.instruction, task.prepare, task.check, task.solution, task.skills) == ('Make a file.', '', 'test -f /a', 'touch /a', ('touch',))
  nested = changed(evaluation_info=repr(RECORD['evaluation_info']), skill_list='["touch"]')
  (tmp_path / 'a.jsonl').write_text(json.dumps(nested) + '\n' + json.dumps(changed(sample_index='x')) + '\n')
  assert load_os_tasks(tmp_path / 'a.jsonl')['7'] == task
  assert list(load_os_tasks(tmp_path / 'a.jsonl', count=1)) == ['7']


@pytest.mark.parametrize(
  'record, message',
  [
    ([], r'row 0: expected an object'),
    (changed(instruction=''), r'row 0: instruction: expected text'),
    (changed(sample_index=True), r'row 0: sample_index'),
    (changed(initialization_command_item=None), r'row 0: initialization_command_item: expected an object, found nothing'),
    (changed(initialization_command_item__command_name='python'), r"initialization_command_item.command_name: expected bash, found 'python'"),
    (changed(initialization_command_item__script=3), r'initialization_command_item.script: expected text, found 3'),
    (changed(evaluation_info__evaluation_command_item__script=' '), r'evaluation_info: evaluation_command_item.script: expected text'),
    (changed(evaluation_info__ground_truth_command_item__script='a\0'), r'ground_truth_command_item.script: expected no NUL'),
    (changed(evaluation_info='{'), r'row 0: evaluation_info: expected JSON'),
    (changed(skill_list=[3]), r'skill_list\[0\]'),
  ],
)
def test_broken_records_are_named(tmp_path, record, message):
  path = tmp_path / 'a.json'
  path.write_text(json.dumps([record]))
  with pytest.raises(ValueError, match=message) as caught:
    load_os_tasks(path)
  assert str(path) in str(caught.value)


def test_broken_files(tmp_path):
  with pytest.raises(FileNotFoundError):
    load_os_tasks(tmp_path / 'none.json')
  (tmp_path / 'a.json').write_text('[]')
  with pytest.raises(ValueError, match='no tasks'):
    load_os_tasks(tmp_path / 'a.json')
  (tmp_path / 'a.json').write_text(json.dumps([RECORD, RECORD]))
  with pytest.raises(ValueError, match='row 1: sample_index 7 is there twice'):
    load_os_tasks(tmp_path / 'a.json')
