"""Every memory of the main table, trained and evaluated by the real commands on few games."""

import importlib.util
import json
import shutil

import pytest

from mempi_jax import evaluate as evaluate_lib
from mempi_jax import train as train_lib
from mempi_jax.config import load_config
from mempi_jax.memories import MEMORIES
from mempi_jax.runtime import files
from mempi_jax.runtime.metrics import read_metrics
from tests.small_run import CONFIG, arguments

pytestmark = pytest.mark.skipif(importlib.util.find_spec('wordllama') is None, reason="wordllama is not installed: pip install 'mempi_jax[embeddings]'")

SETTINGS = {
  'eval__memories': str(MEMORIES),
  'baselines__memrl__epochs': 2,
  'baselines__memrl__batch_size': 16,
  'baselines__memory_r1__sft__steps': 2,
  'baselines__memory_r1__sft__batch_size': 8,
  'baselines__memory_r1__sft__optimizer__warmup': '0 steps',
  'baselines__memory_r1__grpo__updates': 1,
  'baselines__memory_r1__grpo__groups': 4,
  'baselines__memory_r1__grpo__branches': 2,
  'baselines__memory_r1__grpo__optimizer__warmup': '0 steps',
}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('memories')
  train_lib.main(arguments(workdir, **SETTINGS))
  evaluate_lib.main(arguments(workdir, **SETTINGS))
  return workdir


def test_the_table_has_every_memory(finished):
  rows = {row['memory']: row for row in json.loads((finished / 'results.json').read_text())['rows'] if row['split'] == 'heldout_games'}
  assert set(rows) == set(MEMORIES)
  assert {row['n'] for row in rows.values()} == {16}
  assert rows['token_matched']['success_rate'] >= rows['none']['success_rate']  # the same episodes, some of them longer
  assert rows['token_matched']['agent_steps'] > rows['none']['agent_steps']
  assert rows['always']['abstain_rate'] == 0.0
  for memory in ('rag', 'mem0', 'memrl', 'always'):
    assert rows[memory]['guidance_tokens'] > 0


def test_records_say_what_was_retrieved_and_what_it_cost(finished):
  records = list(files.read_jsonl(finished / 'eval' / 'episodes.jsonl'))
  bank = {entry['sources'][0]: entry['guidance'] for entry in files.read_jsonl(finished / 'bank' / 'bank.jsonl')}
  for record in records:
    assert len(record['nearest']) == 3 and all(': ' in line for line in record['nearest'])
    if record['memory'] == 'rag':
      (source,) = record['retrieved']
      assert bank[source] == record['guidance']
      assert record['nearest'][0] == f'{source}: {record["guidance"]}'
    if record['memory'] in ('mempi', 'always', 'untrained', 'mempi_stage1', 'rag_abstain'):
      assert record['read_tokens'] > 10 and record['written_tokens'] >= 1
    else:
      assert (record['read_tokens'], record['written_tokens']) == (0, 0)


def test_rag_with_abstention_learned_its_decision_alone(finished):
  lines = [line for line in read_metrics(finished / 'rag_abstain') if 'rollout/logp_gap' in line]
  assert len(lines) == 3 and all(line['rollout/logp_gap'] == 0 for line in lines)
  assert all(line['rollout/content_signal'] >= 0 and line['train/gradient_norm'] > 0 for line in lines)


@pytest.mark.parametrize('kept', [pytest.param(0.3, marks=pytest.mark.slow), 0.62])
def test_an_evaluation_goes_on_with_what_its_memories_had_learned(finished, tmp_path, kept):
  """MemRL's utilities change between batches: a resumed run must come back to them."""
  workdir = tmp_path / 'run'
  shutil.copytree(finished, workdir)
  path = workdir / 'eval' / 'episodes.jsonl'
  whole = path.read_bytes()
  path.write_bytes(whole[: int(len(whole) * kept)])
  (workdir / 'results.json').unlink()
  evaluate_lib.main(arguments(workdir, **SETTINGS))
  assert path.read_bytes() == whole


def test_another_agent_is_helped_by_memories_that_it_never_trained(finished, tmp_path):
  """The memories of a finished run, in a folder of its own, before an agent that samples differently."""
  memories = ('none', 'rag', 'mempi')
  fields = SETTINGS | {'eval__memories': str(memories), 'eval__trained_in': str(finished), 'agent__temperature': 1.0}
  evaluate_lib.main(arguments(tmp_path, **fields))
  assert not (tmp_path / 'stage2').exists() and not (tmp_path / 'bank').exists()
  here, there = ({(r['memory'], r['task_id']): r for r in files.read_jsonl(f / 'eval' / 'episodes.jsonl')} for f in (tmp_path, finished))
  assert {memory for memory, _ in here} == set(memories)
  for key, record in here.items():
    assert (record['guidance'], record['p_generate']) == (there[key]['guidance'], there[key]['p_generate'])
  assert any(record['steps'] != there[key]['steps'] for key, record in here.items())


@pytest.mark.parametrize(
  ('memory', 'message'),
  [
    ('memrll', 'did you mean memrl'),
    ('reasoning_bank', 'set baselines.manager.url'),
    ('awm', 'made by a chat model'),
  ],
)
def test_what_cannot_be_evaluated_is_refused_first(tmp_path, capsys, memory, message):
  for command in (train_lib, evaluate_lib):
    with pytest.raises(SystemExit):
      command.main(arguments(tmp_path, eval__memories=f"('none', '{memory}')"))
    assert message in capsys.readouterr().err
  assert not (tmp_path / 'config.json').exists()


def test_a_missing_encoder_names_its_extra(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(SystemExit):
    train_lib.main(arguments(tmp_path, eval__memories="('memrl',)"))
  assert 'mempi_jax[embeddings]' in capsys.readouterr().err


def test_ablations_and_tables_resolve():
  configs = CONFIG.parent
  assert load_config(f'{configs}/ablations.py:ablation=no_structured_group').stage2.structured is False
  assert load_config(configs / 'table_main.py').eval.memories == MEMORIES
