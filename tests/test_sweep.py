"""Names of folders and variants, shards, and a sweep whose runs fail with a log to read."""

from pathlib import Path

import pytest

from mempi_jax import sweep as sweep_lib
from mempi_jax.config import ConfigError, load_sweep
from mempi_jax.runtime import files
from mempi_jax.sweep import folder_name, take_shard, variant_of, variants_of


def test_folder_names_are_paths_of_one_part():
  assert folder_name({'world.household': 'maple', 'seed': 1}) == 'household=maple,seed=1'
  assert folder_name({'agent.path': '../../etc'}) == 'path=.._.._etc'
  assert folder_name({}) == 'base'


def test_folders_of_named_variants():
  assert folder_name({'variant': 'no_gate', 'stage2.content_gate': 'open', 'seed': 0}) == 'no_gate,seed=0'
  assert folder_name({'variant': '10% wrong', 'world.household': 'maple', 'seed': 1}) == '10__wrong,household=maple,seed=1'
  assert folder_name({'variant': '../../etc/x'}) == '_._.._etc_x'
  assert folder_name({'variant': '..'}) == '_.' and folder_name({'variant': '.'}) == '_'


def test_variants_have_a_name_or_are_called_by_their_overrides():
  assert variant_of({'variant': 'no_gate', 'stage2.content_gate': 'open', 'seed': 0}) == 'no_gate'
  assert variant_of({'bank.corruption': 0.1, 'bank.games': 8, 'world.household': 'maple', 'seed': 0}) == 'corruption=0.1,games=8'
  assert variant_of({'seed': 0}) == 'base'
  runs = [{**overrides, 'seed': seed} for seed in (0, 1) for overrides in ({}, {'bank.corruption': 0.1})]
  assert variants_of(runs) == {'base': [runs[0], runs[2]], 'corruption=0.1': [runs[1], runs[3]]}


@pytest.mark.parametrize(
  'runs, message',
  [
    ([{'variant': 'a', 'x.y': 1, 'seed': 0}, {'variant': 'a', 'x.y': 2, 'x.z': 0, 'seed': 1}], "variant 'a' differ in x.y, x.z: only household"),
    ([{'variant': 'a', 'seed': 0}, {'variant': 'a', 'x.y': None, 'seed': 1}], "variant 'a' differ in x.y"),
    ([{'x.y': 1}, {'z.y': 1}], "variant 'y=1' differ in x.y, z.y"),
    ([{'variant': 'a b', 'seed': 0}, {'variant': 'a_b', 'x': 1, 'seed': 0}], "the folder a_b,seed=0 of a run of the variant 'a_b' is taken"),
    ([{'variant': 'a', 'seed': 0}, {'variant': 'a', 'seed': 0}], 'the folder a,seed=0'),
    ([{'variant': 'pooled'}], "the folder pooled of a run of the variant 'pooled' is taken"),
  ],
)
def test_runs_that_no_variant_or_folder_can_hold(runs, message):
  with pytest.raises(ConfigError, match=message):
    variants_of(runs)


def test_the_sweeps_of_this_repository():
  configs = Path(__file__).parents[1] / 'configs'
  found = {path.stem: variants_of(load_sweep(path)) for path in configs.glob('*.py') if '\ndef sweep(' in path.read_text()}
  assert len(found['table_main']) == len(found['alfworld_sweep']) == len(found['large_rooms']) == 1
  assert list(found['ablations'])[0] == 'full' and all(len(runs) == 2 for runs in found['ablations'].values())
  assert list(found['analysis_corruption']) == ['0% wrong', '10% wrong', '30% wrong', '50% wrong']
  assert list(found['analysis_samples']) == [
    '800 games', '100 games', '200 games', '400 games', '240 games of stage 2', '480 games of stage 2',
  ]  # fmt: skip


def test_a_sweep_without_runs_is_refused(tmp_path, capsys):
  config = tmp_path / 'empty.py'
  config.write_text('from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({"seed": 0})\ndef sweep():\n  return []\n')
  with pytest.raises(SystemExit):
    sweep_lib.main([f'--config={config}', f'--workdir={tmp_path / "runs"}'])
  assert 'sweep() has no runs' in capsys.readouterr().err


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
