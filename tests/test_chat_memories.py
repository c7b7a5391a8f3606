"""Mem0, ReasoningBank and AWM of a run are made by a chat model behind a real server; what was answered is not asked again."""

import importlib.util
import json

import pytest

from mempi_jax import evaluate as evaluate_lib
from mempi_jax import train as train_lib
from mempi_jax.runtime import files
from tests.small_run import arguments

pytestmark = pytest.mark.skipif(importlib.util.find_spec('wordllama') is None, reason="wordllama is not installed: pip install 'mempi_jax[embeddings]'")

SETTINGS = {
  'eval__memories': "('none', 'mem0', 'reasoning_bank', 'awm')",
  'bank__games': 24,
  'stage2__updates': 0,
  'eval__difficulty_runs': 0,
  'baselines__manager__model': 'scholar',
  'baselines__awm__examples': 4,
  'baselines__awm__k': 1,
}


def test_memories_of_a_chat_model(tmp_path, server, no_key):
  url = server.url()
  fields = {**SETTINGS, 'baselines__manager__url': url}
  train_lib.main(arguments(tmp_path, **fields))
  asked = server.stats(url)['answered']
  evaluate_lib.main(arguments(tmp_path, **fields))
  assert server.stats(url)['answered'] == asked  # evaluating asks nothing
  bank = {f'{r["task_id"]}@{r["seed"]}': r for r in files.read_jsonl(tmp_path / 'bank' / 'episodes.jsonl')}
  records = {name: [] for name in ('mem0', 'reasoning_bank', 'awm')}
  for record in files.read_jsonl(tmp_path / 'eval' / 'episodes.jsonl'):
    if record['memory'] in records:
      records[record['memory']].append(record)
  assert {len(found) for found in records.values()} == {24}
  for record in records['reasoning_bank']:
    (source,) = record['retrieved']
    assert record['guidance'] == f'{"worked" if bank[source]["success"] else "failed"}: {bank[source]["goal"]}'
  for record in records['awm']:
    assert record['guidance'].startswith('As in: ') and '2. take {thing}' in record['guidance']
    assert all(bank[source]['success'] for source in record['retrieved'])
  assert all(record['guidance'] for record in records['mem0'])
  rows = json.loads((tmp_path / 'results.json').read_text())['rows']
  assert {row['memory'] for row in rows} == {'none', *records}
