"""Atomic files, JSONL logs, DONE markers, hashes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mempi_jax.runtime import files


def test_write_json_replaces_whole_files_and_leaves_nothing_else(tmp_path):
  path = tmp_path / 'made' / 'results.json'
  files.write_json(path, {'b': 1, 'a': 0.1})
  files.write_json(path, {'b': 2, 'a': [0.1, 'π']})
  assert files.read_json(path) == {'a': [0.1, 'π'], 'b': 2}
  assert path.read_text().index('"a"') < path.read_text().index('"b"')
  assert os.listdir(path.parent) == ['results.json']


@pytest.mark.parametrize('bad', [{'x': float('nan')}, {'x': {1, 2}}])
def test_a_failed_write_keeps_the_old_file(tmp_path, bad):
  path = tmp_path / 'results.json'
  files.write_json(path, {'x': 1})
  with pytest.raises((ValueError, TypeError)):
    files.write_json(path, bad)
  assert files.read_json(path) == {'x': 1}
  assert os.listdir(tmp_path) == ['results.json']


def test_a_failed_rename_leaves_no_temporary_file(tmp_path):
  (tmp_path / 'taken').mkdir()
  with pytest.raises(OSError):
    files.write_text(tmp_path / 'taken', 'x')
  assert os.listdir(tmp_path) == ['taken']


def test_read_json_names_file_and_line(tmp_path):
  path = tmp_path / 'broken.json'
  path.write_text('{\n"a": 1,\n"b": }\n')
  with pytest.raises(ValueError, match=r'broken.json:3: not JSON'):
    files.read_json(path)


def test_log_appends_and_reopens(tmp_path):
  path = tmp_path / 'logs' / 'episodes.jsonl'
  for i in range(2):
    with files.JsonlLog(path) as log:
      log.append({'i': i, 'text': 'two\nlines'})
      assert len(list(files.read_jsonl(path))) == i + 1  # there before closing
  assert [record['i'] for record in files.read_jsonl(path)] == [0, 1]
  with files.JsonlLog(path) as log, pytest.raises(ValueError):
    log.append({'x': float('nan')})
  assert len(list(files.read_jsonl(path))) == 2


@pytest.mark.parametrize('half', ['{"i": 2', 'x' * 200_000, '{"i": 2}'])
def test_a_half_written_last_line_is_cut_off(tmp_path, caplog, half):
  path = tmp_path / 'episodes.jsonl'
  path.write_text('{"i": 0}\n{"i": 1}\n' + half)
  with pytest.raises(ValueError, match=r'episodes.jsonl:3: the last line is half written'):
    list(files.read_jsonl(path))
  with files.JsonlLog(path) as log:
    log.append({'i': 7})
  assert [record['i'] for record in files.read_jsonl(path)] == [0, 1, 7]
  assert 'half written' in caplog.text


def test_a_log_that_is_one_half_line_becomes_empty(tmp_path):
  path = tmp_path / 'episodes.jsonl'
  path.write_text('{"i"')
  files.cut_half_line(path)
  assert path.read_bytes() == b''


def test_a_whole_log_opens_without_a_warning(tmp_path, caplog):
  path = tmp_path / 'episodes.jsonl'
  path.write_text('{"i": 0}\n')
  files.JsonlLog(path).close()
  assert path.read_text() == '{"i": 0}\n' and not caplog.text


@pytest.mark.parametrize('line, message', [('{"a": }', 'not JSON'), ('[1]', 'expected a JSON object, found list'), ('', 'not JSON')])
def test_read_jsonl_names_file_and_line(tmp_path, line, message):
  path = tmp_path / 'bank.jsonl'
  path.write_text('{"i": 0}\n' + line + '\n{"i": 1}\n')
  with pytest.raises(ValueError, match=f'bank.jsonl:2: {message}'):
    list(files.read_jsonl(path))


def test_a_killed_writer_leaves_a_log_that_opens(tmp_path):
  path = tmp_path / 'log.jsonl'
  code = (
    'import sys\nfrom mempi_jax.runtime.files import JsonlLog\nlog = JsonlLog(sys.argv[1])\n'
    'for i in range(10**9):\n  log.append({"i": i, "text": "x" * 5000})\n  i == 20 and print("running", flush=True)\n'
  )
  process = subprocess.Popen([sys.executable, '-c', code, str(path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
  assert process.stdout.readline() == b'running\n'
  process.send_signal(signal.SIGKILL)
  process.communicate()
  files.JsonlLog(path).close()
  numbers = [record['i'] for record in files.read_jsonl(path)]
  assert len(numbers) > 20 and numbers == list(range(len(numbers)))


def test_ensure_writable(tmp_path):
  assert files.ensure_writable(tmp_path / 'a' / 'b').is_dir()
  assert os.listdir(tmp_path / 'a' / 'b') == []
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError, match='cannot write in the working folder .*file.*; choose another --workdir'):
    files.ensure_writable(tmp_path / 'file')
  with pytest.raises(OSError, match='cannot write in the working folder'):
    files.ensure_writable(tmp_path / 'file' / 'below')


def test_ensure_writable_of_a_folder_that_refuses_files(monkeypatch, tmp_path):
  # Not chmod: root may write anywhere, and the tests may run as root.
  def refuse(*args, **kwargs):
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr(files.tempfile, 'TemporaryFile', refuse)
  with pytest.raises(OSError, match='Permission denied; choose another --workdir'):
    files.ensure_writable(tmp_path)


def test_done_marker(tmp_path):
  assert files.read_done(tmp_path / 'stage1') is None
  files.mark_done(tmp_path / 'stage1', {'steps': 120})
  assert files.read_done(tmp_path / 'stage1') == {'steps': 120}


def test_hashes(tmp_path):
  assert files.hash_bytes(b'abc') == 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
  (tmp_path / 'a').write_bytes(b'abc')
  assert files.hash_file(tmp_path / 'a') == files.hash_bytes(b'abc')
  assert files.hash_json({'b': 1, 'a': 2}) == files.hash_json(json.loads('{"a": 2, "b": 1}'))
  before = files.hash_folder(tmp_path)
  (tmp_path / 'a').rename(tmp_path / 'b')
  assert files.hash_folder(tmp_path) != before
  with pytest.raises(FileNotFoundError, match='no folder'):
    files.hash_folder(tmp_path / 'missing')


def test_a_log_that_was_begun_goes_on_and_another_runs_log_is_named(tmp_path):
  path, expected = tmp_path / 'log.jsonl', [('a', 1), ('b', 2), ('c', 3)]
  read = lambda: files.read_started(path, expected, lambda record: (record['task'], record['seed']))
  assert read() == []
  path.write_text('{"task": "a", "seed": 1}\n{"task": "b", "seed": 2}\n{"task": "c", "se')
  assert read() == [{'task': 'a', 'seed': 1}, {'task': 'b', 'seed': 2}]
  assert path.read_text().endswith('"seed": 2}\n')
  path.write_text('{"task": "a", "seed": 1}\n{"task": "b", "seed": 9}\n')
  with pytest.raises(ValueError, match=r"log.jsonl:2: found \('b', 9\), expected \('b', 2\): it belongs to another run"):
    read()
  path.write_text(''.join(f'{{"task": "{task}", "seed": {seed}}}\n' for task, seed in [*expected, ('d', 4)]))
  with pytest.raises(ValueError, match=r"log.jsonl:4: found \('d', 4\), expected its end"):
    read()
