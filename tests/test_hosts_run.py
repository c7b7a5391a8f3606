"""Two hosts train and evaluate as one does."""

import json
from pathlib import Path

import numpy as np
import pytest

from mempi_jax.policy.policy import load_policy
from mempi_jax.runtime import files
from mempi_jax.runtime.metrics import read_metrics
from tests import two_hosts
from tests.small_run import arguments

PROGRAM = str(Path(__file__).with_name('hosts_run_program.py'))


@pytest.fixture(scope='module')
def both(tmp_path_factory):
  """The working folder of two hosts, and how they ended."""
  workdir = tmp_path_factory.mktemp('two_hosts')
  ends = two_hosts.wait(two_hosts.start_two(lambda host, address: [PROGRAM, str(workdir), str(host), address]), timeout=600)
  return workdir, ends


def test_updates_on_two_hosts_are_those_of_one_device(both):
  for end in both[1]:
    assert 'meshes: fine' in end.out, end.err[-3000:]


def test_the_run_ends_on_both(both):
  workdir, ends = both
  for end in ends:
    assert end.status == 0 and end.out.endswith('run: fine\n'), end.err[-3000:]
  first, second = ((workdir / 'hosts' / f'{i}.log').read_text() for i in (0, 1))
  assert first.startswith('--- host 0 of 2, ') and second.startswith('--- host 1 of 2, ')
  assert 'policy: ' in first and 'policy: ' in second  # each engine says what it holds
  assert 'policy: ' in ends[0].out and 'policy: ' not in ends[1].out  # the first one alone speaks to people


def test_what_was_played_is_the_same_to_the_byte(both, finished):
  for name in ('bank/episodes.jsonl', 'bank/bank.jsonl', 'stage2/abstained.jsonl', 'stage2/probes.jsonl', 'eval/base_runs.jsonl'):
    assert (both[0] / name).read_bytes() == (finished / name).read_bytes(), name


@pytest.mark.parametrize('stage', ['stage1', 'stage2'])
def test_metrics_and_parameters_agree_to_rounding(both, finished, stage):
  two, one = read_metrics(both[0] / stage), read_metrics(finished / stage)
  assert [line.keys() for line in two] == [line.keys() for line in one]
  for a, b in zip(two, one, strict=True):
    for name in a.keys() - {'rollout/prefilled'}:  # of one host's engine
      assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-4), (a['step'], name)
  trained, expected = (load_policy(folder / stage / 'policy').params for folder in (both[0], finished))
  for name in ('embedding', 'final_norm'):
    np.testing.assert_allclose(np.asarray(trained[name]), np.asarray(expected[name]), atol=2e-4)


def test_the_evaluation_is_the_same(both, finished):
  def rates(workdir):
    results = json.loads((workdir / 'results.json').read_text())
    return {(row['split'], row['memory']): (row['success_rate'], row['n'], row['abstain_rate']) for row in results['rows']}

  assert rates(both[0]) == rates(finished) and len(rates(finished)) == 15
  assert files.read_json(both[0] / 'manifest.json') == files.read_json(finished / 'manifest.json')
  played = [[(r['memory'], r['task_id'], r['seed'], r['steps']) for r in files.read_jsonl(w / 'eval' / 'episodes.jsonl')] for w in (both[0], finished)]
  assert played[0] == played[1]


@pytest.mark.slow  # the quick one is in runtime/test_hosts.py
def test_different_configs_are_found_before_anything_is_opened(tmp_path):
  more = (), ('--config.stage2.updates=4',)
  for end in two_hosts.wait(two_hosts.start_main('train', arguments(tmp_path), *more)):
    assert end.status == 2
    assert end.last == 'error: host 0 and host 1 have different configs: stage2.updates is 3 there, 4 here'
  assert not any(tmp_path.iterdir())
