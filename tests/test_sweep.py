"""Names of folders, shards, and a sweep whose runs fail with a log to read."""

import pytest

from mempi_jax import sweep as sweep_lib
from mempi_jax.config import ConfigError
from mempi_jax.runtime import files
from mempi_jax.sweep import folder_name, take_shard


def test_folder_names_are_paths_of_one_part():
  assert folder_name({'world.household': 'maple', 'seed': 1}) == 'household=maple,seed=1'
  assert folder_name({'agent.path': '../../etc'}) == 'path=.._.._etc'
  assert folder_name({}) == 'base'


def test_shards_cover_every_run_once():
  runs = list(range(7))
  assert sorted(run for i in range(3) for run in take_shard(runs, f'{i}/3')) == runs
  for wrong in ('3/3', '1', 'a/b'):
    with pytest.raises(ConfigError, match='expected I/N'):
      take_shard(runs, wrong)


def test_a_failing_run_is_named_and_its_log_kept(tmp_path, capsys):
  config = tmp_path / 'broken.py'
  config.write_text(
    'from ml_collections import ConfigDict\n'
    'def get_config():\n  return ConfigDict({"seed": 0})\n'
    'def sweep():\n  yield {"seed": 1}\n'
  )
  with pytest.raises(SystemExit) as stopped:
    sweep_lib.main([f'--config={config}', f'--workdir={tmp_path / "runs"}'])
  assert stopped.value.code == 1
  assert 'seed=1: failed with status' in capsys.readouterr().out
  assert (tmp_path / 'runs' / 'seed=1' / 'log.txt').read_text()


def test_the_table_of_runs_has_what_they_differ_in(tmp_path):
  runs = [{'seed': 0}, {'seed': 1, 'stage2.branches': 2}]
  row = {'split': 'heldout_games', 'memory': 'rag', 'n': 4, 'success_rate': 0.5, 'abstain_rate': 0.0, 'guidance_tokens': 5.0, 'agent_steps': 9.25}
  for name in ('a', 'b'):
    files.write_json(tmp_path / name / 'results.json', {'rows': [row]})
  sweep_lib.write_table(tmp_path, runs, [tmp_path / 'a', tmp_path / 'b'])
  assert (tmp_path / 'runs.csv').read_text().splitlines() == [
    'run,seed,stage2.branches,split,memory,n,success_rate,abstain_rate,guidance_tokens,agent_steps',
    'a,0,,heldout_games,rag,4,0.5,0.0,5.0,9.25',
    'b,1,2,heldout_games,rag,4,0.5,0.0,5.0,9.25',
  ]
