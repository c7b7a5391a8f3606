"""What runs of a sweep share: a run that takes parts over ends with the bytes that it would have come to by itself."""

import json
from pathlib import Path

import pytest

from mempi_jax import evaluate as evaluate_lib
from mempi_jax import train as train_lib
from mempi_jax.config import load_config
from mempi_jax.runtime import files
from mempi_jax.siblings import PARTS, take_over
from tests.small_run import CONFIG, SMALL, arguments

ALFWORLD = Path(__file__).parents[1] / 'configs' / 'alfworld.py'

FROM_ALL_GAMES = {'bank', 'bank/episodes.jsonl', 'stage1', 'untrained', 'mem0', 'memory_r1', 'memrl', 'reasoning_bank', 'awm'}


def config(**overrides):
  return load_config(ALFWORLD, {name.replace('__', '.'): value for name, value in overrides.items()})


def finish(folder, parts=PARTS):
  """Every part of a run, each file with its own text."""
  for part in parts:
    for path in part.paths:
      if not (folder / path).suffix:
        files.write_text(folder / path / 'file.txt', f'{folder.name} {path}')
      else:
        files.write_text(folder / path, f'{folder.name} {path}')
  for part in parts:
    files.mark_done(folder / part.done, {})


@pytest.mark.parametrize(
  ('overrides', 'absent'),
  [
    ({}, set()),
    ({'stage2__content_gate': 'delta', 'eval__threshold': 0.6, 'compile_ahead': False}, set()),
    ({'stage1__duration': '0 steps'}, {'stage1', 'untrained'}),
    ({'stage2__abstain_outcomes': 1}, {'stage2/abstained.jsonl'}),
    ({'stage2__probe_games': 30}, {'stage2/probes.jsonl'}),
    ({'bank__corruption': 0.3}, {'bank', 'stage1', 'untrained', 'mem0', 'memory_r1', 'memrl'}),
    ({'bank__games': 400}, FROM_ALL_GAMES),
    ({'bank__games': 1000}, FROM_ALL_GAMES | {'stage2/probes.jsonl'}),
    ({'baselines__awm__examples': 9}, {'awm'}),
    ({'baselines__manager__model': 'm'}, {'mem0', 'awm', 'reasoning_bank'}),
    ({'baselines__memrl__k1': 9}, {'memrl'}),
    ({'baselines__mem0__k': 2, 'baselines__memory_r1__k': 2}, {'mem0', 'memory_r1'}),
    ({'eval__difficulty_runs': 1}, {'eval/base_runs.jsonl'}),
    ({'seed': 1}, {path for part in PARTS for path in part.paths}),
    ({'world__household': 'cedar'}, {path for part in PARTS for path in part.paths}),
    ({'agent__temperature': 0.6}, {path for part in PARTS for path in part.paths}),
  ],
)
def test_only_what_does_not_depend_on_the_difference_is_taken_over(tmp_path, overrides, absent):
  finish(tmp_path / 'first')
  mine = tmp_path / 'mine'
  take_over(config(**overrides), mine, [(config(), tmp_path / 'first'), (config(**overrides), mine)])
  for path in {path for part in PARTS for path in part.paths}:
    part = mine / path if (mine / path).suffix else mine / path / 'file.txt'
    assert part.exists() == (path not in absent), path
    assert (mine / 'bank' / 'DONE.json').exists() == ('bank' not in absent)


def test_nothing_is_taken_from_an_unfinished_run_and_nothing_is_overwritten(tmp_path):
  finish(tmp_path / 'first')
  (tmp_path / 'first' / 'stage1' / 'DONE.json').unlink()
  files.write_text(tmp_path / 'mine' / 'bank' / 'episodes.jsonl', 'half')
  taken = take_over(config(), tmp_path / 'mine', [(config(), tmp_path / 'first'), (config(), tmp_path / 'nowhere')])
  assert 'stage1' not in taken and not (tmp_path / 'mine' / 'stage1').exists()
  assert 'bank' not in taken and (tmp_path / 'mine' / 'bank' / 'episodes.jsonl').read_text() == 'half'
  assert 'memrl' in taken and (tmp_path / 'mine' / 'memrl' / 'DONE.json').exists()
  assert take_over(config(), tmp_path / 'mine', [(config(), tmp_path / 'first')]) == []
  assert not list((tmp_path / 'mine').rglob('.*.taking'))


@pytest.mark.slow  # three runs; what may be taken over is asserted above
def test_a_run_that_takes_over_ends_like_one_that_does_not(tmp_path):
  fields = [{'stage2__content_gate': 'open'}, {'stage2__content_gate': 'effect'}]
  first, taker, alone = (tmp_path / name for name in ('first', 'taker', 'alone'))
  for folder, overrides in ((first, fields[0]), (alone, fields[1])):
    train_lib.main(arguments(folder, **overrides))
    evaluate_lib.main(arguments(folder, **overrides))
  one, two = (load_config(CONFIG, {**SMALL, 'stage2.content_gate': gate}) for gate in ('open', 'effect'))
  taken = take_over(two, taker, [(one, first)])
  assert taken == ['bank', 'stage1', 'stage2/abstained.jsonl', 'stage2/probes.jsonl', 'eval/base_runs.jsonl']
  train_lib.main(arguments(taker, **fields[1]))
  evaluate_lib.main(arguments(taker, **fields[1]))
  for path in ('stage1/policy/model.safetensors', 'stage2/policy/model.safetensors', 'stage2/metrics.jsonl', 'eval/episodes.jsonl'):
    assert (taker / path).read_bytes() == (alone / path).read_bytes(), path
  results = [json.loads((folder / 'results.json').read_text())['rows'] for folder in (taker, alone)]
  assert results[0] == results[1]
