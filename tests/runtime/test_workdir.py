"""A working folder belongs to one config, holds a whole agent, and adds up its wall times."""

import os
import resource
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from mempi_jax.config import ConfigError
from mempi_jax.runtime import files, preemption
from mempi_jax.runtime.workdir import (
  CACHE_VARIABLE,
  differing_fields,
  open_workdir,
  report_errors,
  share_compilations,
  timed,
  write_manifest,
)


@pytest.fixture
def agent(tmp_path):
  folder = tmp_path / 'checkpoint'
  folder.mkdir()
  (folder / 'model.safetensors').write_bytes(b'weights')
  return folder


def test_a_second_run_goes_on_and_another_config_is_refused(tmp_path, agent):
  config = ConfigDict({'seed': 1, 'stage2': {'updates': 3}})
  workdir = open_workdir(tmp_path / 'run', config, agent)
  assert (workdir / 'agent' / 'model.safetensors').read_bytes() == b'weights'
  assert open_workdir(workdir, config, agent) == workdir
  with pytest.raises(ConfigError, match='stage2.updates is 3 there, 4 here'):
    open_workdir(workdir, ConfigDict({'seed': 1, 'stage2': {'updates': 4}}), agent)


# What may differ.


def made(seed=1, updates=3, **more):
  return ConfigDict({'seed': seed, 'stage2': {'updates': updates, 'replay': 1}, 'mesh': {'data': 0, 'rules': {'mlp': 'tensor'}}, **more})


def test_how_a_run_is_computed_may_differ_freely(tmp_path):
  workdir = open_workdir(tmp_path, made(checkpoint={'keep': 2}, compile_ahead=True), None)
  moved = made(checkpoint={'keep': 5}, compile_ahead=False)
  moved.mesh.data, moved.mesh.rules.mlp = 4, ''
  open_workdir(workdir, moved, None)
  assert files.read_json(workdir / 'config.json')['mesh'] == {'data': 4, 'rules': {'mlp': ''}}
  assert {change['field'] for change in files.read_jsonl(workdir / 'changes.jsonl')} == {
    'checkpoint.keep', 'compile_ahead', 'mesh.data', 'mesh.rules.mlp'
  }  # fmt: skip


def test_what_is_computed_must_be_allowed_by_name(tmp_path, capsys):
  workdir = open_workdir(tmp_path, made(), None)
  other = made(seed=2, updates=9)
  with pytest.raises(ConfigError) as refused:
    open_workdir(workdir, other, None)
  assert 'seed is 1 there, 2 here; stage2.updates is 3 there, 9 here' in str(refused.value)
  assert str(refused.value).endswith('--allow=seed,stage2.updates')
  with pytest.raises(ConfigError, match='allow it: --allow=seed$'):
    open_workdir(workdir, other, None, allow=['stage2.updates'])
  assert files.read_json(workdir / 'config.json')['seed'] == 1 and not (workdir / 'changes.jsonl').exists()
  open_workdir(workdir, other, None, allow=['seed', 'stage2.updates', 'stage2.replay'])  # the last one does not differ
  assert list(files.read_jsonl(workdir / 'changes.jsonl')) == [
    {'field': 'seed', 'was': 1, 'is': 2},
    {'field': 'stage2.updates', 'was': 3, 'is': 9},
  ]
  assert 'stage2.updates was 3, is 9 from now on' in capsys.readouterr().out
  open_workdir(workdir, other, None)  # it is the folder's config now
  with pytest.raises(ConfigError, match='seed is 2 there, 1 here'):
    open_workdir(workdir, made(updates=9), None)


def test_an_allowed_name_that_is_no_field(tmp_path):
  for allow in (['stage2.update'], ['stage2']):  # before there is a config, and in a folder that has one
    with pytest.raises(ConfigError, match=f'--allow names {allow[0]}, which is no field'):
      open_workdir(tmp_path, made(), None, allow=allow)
    open_workdir(tmp_path, made(), None)
  with pytest.raises(ConfigError, match='did you mean stage2.updates'):
    open_workdir(tmp_path, made(updates=4), None, allow=['stage2.update'])


def test_a_field_that_only_the_folder_knows_can_be_allowed(tmp_path):
  """A version that no longer has it must be able to go on, as its own message says."""
  workdir = open_workdir(tmp_path, made(old=1), None)
  with pytest.raises(ConfigError, match="old is 1 there, 'absent' here.*--allow=old"):
    open_workdir(workdir, made(), None)
  open_workdir(workdir, made(), None, allow=['old'])
  assert 'old' not in files.read_json(workdir / 'config.json')


def test_compiled_programs_stay_with_the_run_or_are_shared(tmp_path, agent, monkeypatch):
  import jax

  monkeypatch.setenv(CACHE_VARIABLE, '')  # undone at the end, whatever share_compilations sets
  open_workdir(tmp_path / 'alone', ConfigDict({'seed': 1}), agent)
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'alone' / 'compiled')
  monkeypatch.delenv(CACHE_VARIABLE)
  share_compilations(tmp_path / 'shared')
  share_compilations(tmp_path / 'later')  # the first one to say so decides
  open_workdir(tmp_path / 'run', ConfigDict({'seed': 1}), agent)
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'shared')


def test_each_run_of_a_process_keeps_its_own_compiled_programs(tmp_path, agent, monkeypatch):
  import jax

  monkeypatch.delenv(CACHE_VARIABLE, raising=False)
  jax.jit(lambda x: x * 7)(1.0)  # something was compiled before there was a run
  for name in ('one', 'two'):
    open_workdir(tmp_path / name, ConfigDict({'seed': 1}), agent)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    jax.jit(lambda x: x * 11)(1.0)
    assert list((tmp_path / name / 'compiled').iterdir())
  open_workdir(tmp_path / 'one', ConfigDict({'seed': 1}), agent)  # small programs are not kept again
  assert jax.config.jax_persistent_cache_min_compile_time_secs > 0


def test_no_agent_is_an_error_and_leaves_no_config(tmp_path):
  with pytest.raises(FileNotFoundError, match='model.safetensors is missing'):
    open_workdir(tmp_path / 'run', ConfigDict({'seed': 1}), tmp_path / 'nowhere')
  assert not (tmp_path / 'run' / 'config.json').exists()


def test_an_agent_that_does_not_fit_on_the_disk(tmp_path, agent):
  (agent / 'model.safetensors').write_bytes(bytes(5000))
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
  try:
    with pytest.raises(OSError, match=r'^the agent cannot be copied to .*/run/agent: \[Errno 27\] File too large'):
      open_workdir(tmp_path / 'run', ConfigDict({'seed': 1}), agent)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert not (tmp_path / 'run' / 'agent').exists()
  open_workdir(tmp_path / 'run', ConfigDict({'seed': 1}), agent)
  assert (tmp_path / 'run' / 'agent' / 'model.safetensors').stat().st_size == 5000


def test_a_workdir_that_cannot_be_written(tmp_path, agent):
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError, match='cannot write in the working folder'):
    open_workdir(tmp_path / 'file', ConfigDict({'seed': 1}), agent)


def test_manifest_is_checked(tmp_path):
  write_manifest(tmp_path, {'agent_hash': 'a', 'packages': {'jax': '1'}})
  write_manifest(tmp_path, {'agent_hash': 'a', 'packages': {'jax': '1'}})
  with pytest.raises(ValueError, match="packages.jax is '1' there, '2' here"):
    write_manifest(tmp_path, {'agent_hash': 'a', 'packages': {'jax': '2'}})


def test_a_manifest_follows_what_was_allowed(tmp_path):
  before = {'config_hash': 'a', 'sampler': {'threshold': 0.5}, 'split_sizes': {'train': 3}, 'packages': {'jax': '1'}}
  after = before | {'config_hash': 'b', 'sampler': {'threshold': 0.7}, 'split_sizes': {'train': 4}}
  write_manifest(tmp_path, before)
  with pytest.raises(ValueError, match='config_hash .*sampler.threshold is 0.5 there, 0.7 here; split_sizes.train'):
    write_manifest(tmp_path, after)
  write_manifest(tmp_path, after, allow=['eval.threshold', 'bank.games'])
  assert files.read_json(tmp_path / 'manifest.json') == after
  with pytest.raises(ValueError, match="begun under other conditions: packages.jax is '1' there, '2' here. Use"):
    write_manifest(tmp_path, before | {'packages': {'jax': '2'}}, allow=['eval.threshold'])


def test_differing_fields_names_absent_ones():
  assert differing_fields({'a': 1, 'b': {'c': 2}}, {'a': 1, 'b': {'d': 2}}) == [
    "b.c is 2 there, 'absent' here",
    "b.d is 'absent' there, 2 here",
  ]


def test_wall_times_add_up(tmp_path):
  for _ in range(2):
    with timed(tmp_path, 'stage1'):
      pass
  assert list(files.read_json(tmp_path / 'wall_time.json')) == ['stage1']


def test_errors_become_one_line(capsys):
  @report_errors
  def main(arguments):
    raise ValueError(f'found {arguments[0]}')

  with pytest.raises(SystemExit) as stopped:
    main(['x'])
  assert stopped.value.code == 2
  assert capsys.readouterr().err == 'error: found x\n'


@pytest.mark.parametrize('error', [OSError('no space'), FloatingPointError('step 3'), MemoryError('too large')])
def test_what_a_user_can_mend_is_one_line_unless_asked(error, capsys, monkeypatch):
  @report_errors
  def main(arguments):
    raise error

  with pytest.raises(SystemExit):
    main([])
  assert capsys.readouterr().err == f'error: {error}\n'
  monkeypatch.setattr(sys, 'argv', ['train', '--debug'])
  with pytest.raises(type(error)):
    main([])


def test_a_bug_keeps_its_traceback_and_a_run_that_was_asked_to_end_its_status(capsys):
  @report_errors
  def main(arguments):
    raise arguments

  with pytest.raises(KeyError):
    main(KeyError('x'))
  with pytest.raises(SystemExit) as stopped:
    main(preemption.Preempted())
  assert stopped.value.code == 143
  assert capsys.readouterr().err == 'asked to end: everything up to here is saved, the same command goes on from here\n'


READ_ONLY = """
import sys
from ml_collections import ConfigDict
from mempi_jax.runtime.workdir import open_workdir, report_errors
report_errors(lambda arguments: open_workdir(arguments[0], ConfigDict({'seed': 1}), None))(sys.argv[1:])
"""


@pytest.mark.parametrize('inside', ['', 'run'])
def test_a_read_only_file_system(tmp_path, inside):
  """Not only permissions: who may do anything cannot write there either."""
  mount = f'mount -t tmpfs -o ro none {tmp_path} && exec "$0" "$@"'
  command = ['unshare', '--mount', 'sh', '-c', mount]
  if subprocess.run([*command, 'true'], capture_output=True, check=False).returncode:
    pytest.skip('needs the right to mount a file system')
  program = [sys.executable, '-c', READ_ONLY, str(tmp_path / inside)]
  done = subprocess.run(['unshare', '--mount', 'sh', '-c', mount, *program], capture_output=True, text=True, env=os.environ, check=False)
  assert done.returncode == 2
  assert done.stderr == f'error: cannot write in the working folder {tmp_path / inside}: Read-only file system; choose another --workdir\n'
