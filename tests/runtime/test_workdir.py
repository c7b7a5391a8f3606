"""A working folder belongs to one config, holds a whole agent, and adds up its wall times."""

import pytest
from ml_collections import ConfigDict

from mempi_jax.config import ConfigError
from mempi_jax.runtime import files
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


def test_no_agent_is_an_error_and_leaves_no_config(tmp_path):
  with pytest.raises(FileNotFoundError, match='model.safetensors is missing'):
    open_workdir(tmp_path / 'run', ConfigDict({'seed': 1}), tmp_path / 'nowhere')
  assert not (tmp_path / 'run' / 'config.json').exists()


def test_a_workdir_that_cannot_be_written(tmp_path, agent):
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError, match='cannot write in the working folder'):
    open_workdir(tmp_path / 'file', ConfigDict({'seed': 1}), agent)


def test_manifest_is_checked(tmp_path):
  write_manifest(tmp_path, {'agent_hash': 'a', 'packages': {'jax': '1'}})
  write_manifest(tmp_path, {'agent_hash': 'a', 'packages': {'jax': '1'}})
  with pytest.raises(ValueError, match="packages.jax is '1' there, '2' here"):
    write_manifest(tmp_path, {'agent_hash': 'a', 'packages': {'jax': '2'}})


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
