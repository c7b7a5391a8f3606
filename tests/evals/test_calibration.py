"""Calibration of the decision against cases done by hand."""

import json
import math

import numpy as np
import pytest

from mempi_jax.evals import calibration
from mempi_jax.evals.success import EpisodesError


def record(memory, task, solved, *, seed=0, p=None, decision='[GENERATE]', status=None, **more):
  return {
    'memory': memory,
    'split': 'heldout_games',
    'task_id': task,
    'seed': seed,
    'decision': decision,
    'p_generate': p,
    'guidance_tokens': 5 if decision == '[GENERATE]' else 0,
    'success': solved,
    'status': status or ('success' if solved else 'truncated'),
    'agent_steps': 4,
    **more,
  }


def trio(task, p, guided, alone, *, threshold=0.5, **more):
  """The records of one (task, seed): the memory's own, guidance forced, the agent alone."""
  speaks = p >= threshold
  decision = '[GENERATE]' if speaks else '[ABSTAIN]'
  return [
    record('mempi', task, guided if speaks else alone, p=p, decision=decision, **more),
    record('always', task, guided, p=p, **more),
    record('none', task, alone, decision='[ABSTAIN]', **more),
  ]


CASES = [  # P(GENERATE), success guided, success alone
  (0.95, True, False),
  (0.92, True, True),
  (0.75, False, True),
  (0.55, True, False),
  (0.35, True, False),
  (0.15, False, True),
  (0.12, False, False),
  (0.05, True, True),
]


def episodes_of(cases=CASES):
  return [record for i, case in enumerate(cases) for record in trio(f't{i}', *case)]


def contexts(cases=CASES):
  return calibration.contexts_of(episodes_of(cases))


def test_contexts_by_hand():
  found = contexts()
  assert found.games == tuple(('', f't{i}') for i in range(8)) and found.seeds.tolist() == [1] * 8
  assert found.p_generate.tolist() == [case[0] for case in CASES]
  assert found.spoke.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
  assert found.guided.tolist() == [1, 1, 0, 1, 1, 0, 0, 1] and found.alone.tolist() == [0, 1, 1, 0, 0, 1, 0, 1]
  assert found.benefit.tolist() == [1, 0, -1, 1, 1, -1, 0, 0]


def test_seeds_of_a_game_are_one_context_and_runs_are_several():
  records = [r for seed, (guided, alone) in enumerate([(True, False), (True, True), (False, False), (True, False)])
             for r in trio('t', 0.6, guided, alone, seed=seed)]  # fmt: skip
  found = calibration.contexts_of(records)
  assert (found.seeds.tolist(), found.guided.tolist(), found.alone.tolist(), found.benefit.tolist()) == ([4], [0.75], [0.25], [0.5])
  pooled = [{**r, 'household': 'maple', 'run_seed': run} for run in (0, 1) for r in records]
  found = calibration.contexts_of(pooled)
  assert found.games == (('maple', 't'),) * 2 and found.seeds.tolist() == [4, 4]


def test_environment_errors_drop_the_whole_pair():
  records = episodes_of()
  for place, memory in ((0, 'always'), (6, 'none')):
    broken = next(r for r in records if r['task_id'] == f't{place}' and r['memory'] == memory)
    broken.update(status='env_error', success=False)
  assert [task for _, task in calibration.contexts_of(records).games] == ['t1', 't2', 't3', 't4', 't5', 't7']


def test_reliability_by_hand():
  bins = calibration.reliability(contexts(), bins=2)
  assert [(b.low, b.high, b.contexts) for b in bins] == [(0.0, 0.5, 4), (0.5, 1.0, 4)]
  assert [b.p_generate for b in bins] == pytest.approx([0.1675, 0.7925])
  assert [b.helped.value for b in bins] == [0.25, 0.5] and [b.benefit.value for b in bins] == [0.0, 0.25]
  assert all(0.0 <= b.helped.low < b.helped.value < b.helped.high <= 1.0 and b.helped.clusters == 4 for b in bins)
  # Where it mattered: t4 and t5 below, t0, t2 and t3 above.
  bins = calibration.reliability(contexts(), bins=2, decisive=True)
  assert [(b.contexts, b.helped.value) for b in bins] == [(2, 0.5), (3, pytest.approx(2 / 3))]
  # Empty bins are left out; 1.0 is in the last one.
  bins = calibration.reliability(contexts([(1.0, True, False), (0.0, False, False)]), bins=10)
  assert [(b.low, b.high, b.contexts) for b in bins] == [(0.0, 0.1, 1), (0.9, 1.0, 1)]


def test_calibration_error_by_hand():
  # Two bins of four: |0.1675 - 1/4| and |0.7925 - 1/2|.
  assert calibration.expected_calibration_error(contexts(), bins=2) == pytest.approx((0.0825 + 0.2925) / 2)
  # Decisive: bins of 2 and 3 of 5.
  expected = 2 / 5 * abs(0.25 - 1 / 2) + 3 / 5 * abs(0.75 - 2 / 3)
  assert calibration.expected_calibration_error(contexts(), bins=2, decisive=True) == pytest.approx(expected)
  assert calibration.expected_calibration_error(contexts([(1.0, True, False), (0.0, True, True)])) == 0.0
  assert calibration.expected_calibration_error(contexts([(1.0, False, True)])) == 1.0


def test_a_calibrated_policy_gets_the_error_of_chance():
  # One bin, four contexts at P = 1/2: E|k/4 - 1/2| = (2 * 1/2 + 8 * 1/4) / 16.
  four = contexts([(0.5, True, False)] * 4)
  assert calibration.calibrated_error(four, draws=40_000) == pytest.approx(3 / 16, abs=0.003)
  rng = np.random.default_rng(0)
  chances = rng.random(600)
  drawn = contexts([(float(p), bool(rng.random() < p), False) for p in chances])
  assert calibration.expected_calibration_error(drawn) < 1.6 * calibration.calibrated_error(drawn) < 0.1
  shifted = contexts([(float(min(p + 0.3, 1.0)), bool(rng.random() < p), False) for p in chances])
  assert calibration.expected_calibration_error(shifted) > 3 * calibration.calibrated_error(shifted)


def test_risk_coverage_by_hand():
  found = calibration.risk_coverage(contexts())
  # By P the benefits are 1, 0, -1, 1, 1, -1, 0, 0; four succeed alone.
  np.testing.assert_allclose(found.routed * 8, [4, 5, 5, 4, 5, 6, 5, 5, 5])
  np.testing.assert_allclose(found.random * 8, [4, 4.125, 4.25, 4.375, 4.5, 4.625, 4.75, 4.875, 5])
  np.testing.assert_allclose(found.oracle * 8, [4, 5, 6, 7, 7, 7, 7, 6, 5])
  np.testing.assert_allclose(found.coverage, np.arange(9) / 8)
  assert found.areas == pytest.approx({'routed': 39.5 / 64, 'random': 36 / 64, 'oracle': 49.5 / 64})
  assert found.advantage.value == pytest.approx(3.5 / 64) and found.share_of_oracle == pytest.approx(3.5 / 13.5)
  assert found.advantage.low < 3.5 / 64 < found.advantage.high


def test_equal_probabilities_are_random_routing():
  found = calibration.risk_coverage(contexts([(0.7, guided, alone) for _, guided, alone in CASES]))
  np.testing.assert_allclose(found.routed, found.random)
  assert found.advantage.value == pytest.approx(0.0) and found.areas['routed'] == pytest.approx(found.areas['random'])
  # Two levels: within each, evenly.
  found = calibration.risk_coverage(contexts([(0.9, True, False), (0.9, False, False), (0.1, True, False), (0.1, True, False)]))
  np.testing.assert_allclose(found.routed, [0, 0.125, 0.25, 0.5, 0.75])
  assert found.advantage.value == pytest.approx(found.areas['routed'] - found.areas['random'])


def test_advantage_is_the_difference_of_areas():
  rng = np.random.default_rng(1)
  cases = [(round(float(rng.random()), 1), bool(rng.random() < 0.6), bool(rng.random() < 0.4)) for _ in range(150)]
  found = calibration.risk_coverage(contexts(cases))
  assert found.advantage.value == pytest.approx(found.areas['routed'] - found.areas['random'])
  nothing = calibration.risk_coverage(contexts([(0.2, True, True), (0.8, False, False)]))
  assert nothing.share_of_oracle is None and nothing.advantage.value == 0.0


def test_interval_of_the_advantage_covers_it():
  """200 contexts whose benefit is 1 with probability P(GENERATE), else -1. Had the order been taken as fixed, intervals would be others."""
  rng, covered, fixed, trials = np.random.default_rng(2), 0, 0, 500
  truth = 2 / 12  # E[(2p - 1)(p - 1/2)] = 2 Var(p), p uniform
  for trial in range(trials):
    p = rng.random(200)
    wins = rng.random(200) < p
    games = tuple(('', f'{i:03d}') for i in range(200))
    ones = np.ones(200)
    made = calibration.Contexts(games, ones.astype(int), p, ones, wins.astype(float), (~wins).astype(float))
    advantage = calibration.risk_coverage(made, seed=trial, resamples=500).advantage
    covered += advantage.low <= truth <= advantage.high
    above = (np.argsort(np.argsort(p)) + 0.5) / 200 - 0.5
    spread = 1.96 * np.std(made.benefit * above) / 200**0.5
    fixed += abs(advantage.value - truth) <= spread
  assert 0.93 <= covered / trials <= 0.97 < fixed / trials


def test_routing_errors_by_hand():
  found = calibration.routing_errors(contexts())
  assert found.contexts == 8 and found.spoke == 0.5
  # It spoke in t0 to t3: t2 lost, t1 in vain. It was silent in t4 to t7: t4 would have been won.
  values = found.spoke_wrongly.value, found.spoke_in_vain.value, found.silent_wrongly.value, found.cost_spoke.value, found.cost_silent.value
  assert values == (1 / 8, 1 / 8, 1 / 8, 1 / 8, 1 / 8)
  assert found.success.value == 5 / 8 and found.oracle == 7 / 8
  assert found.success.value + found.cost_spoke.value + found.cost_silent.value == found.oracle


def test_costs_of_several_seeds_are_means():
  records = [r for seed, (guided, alone) in enumerate([(True, False), (True, True), (False, True), (False, True)])
             for r in trio('t', 0.8, guided, alone, seed=seed)]  # fmt: skip
  found = calibration.routing_errors(calibration.contexts_of(records))
  assert (found.spoke_wrongly.value, found.cost_spoke.value, found.success.value, found.oracle) == (1.0, 0.25, 0.5, 0.75)


def test_summary_is_json_and_agrees():
  found = calibration.summarise(contexts(), bins=2)
  assert json.loads(json.dumps(found, allow_nan=False)) == found
  assert found['contexts'] == 8 and [b['helped'] for b in found['bins']] == [0.25, 0.5] and len(found['bins'][0]['helped_ci95']) == 2
  assert found['ece'] == pytest.approx(0.1875) and 0.0 < found['ece_if_calibrated'] < 0.3
  assert found['coverage']['share_of_oracle'] == pytest.approx(3.5 / 13.5, abs=1e-6)
  assert found['routing']['cost_silent'] == 0.125 and found['routing']['oracle'] == 0.875
  equal = calibration.summarise(contexts([(0.2, True, True), (0.8, False, False)]))
  assert equal['bins_decisive'] == [] and equal['ece_decisive'] is None and equal['coverage']['share_of_oracle'] is None


def test_what_cannot_be_calibrated_is_named():
  records = episodes_of()
  with pytest.raises(EpisodesError, match='episodes of memory always on heldout_games; there are some of none, mempi'):
    calibration.contexts_of([r for r in records if r['memory'] != 'always'])
  with pytest.raises(EpisodesError, match='none at all'):
    calibration.contexts_of(records, split='long_horizon')
  with pytest.raises(EpisodesError, match='always lacks 1 of 8 episodes: .heldout_games, t2, seed 0.'):
    calibration.contexts_of([r for r in records if (r['memory'], r['task_id']) != ('always', 't2')])
  with pytest.raises(EpisodesError, match='memory always gives no p_generate .task t0, seed 0.'):
    calibration.contexts_of([{**r, 'p_generate': None} if r['memory'] == 'always' else r for r in records], memory='always')
  with pytest.raises(EpisodesError, match=r'memory mempi decided \[ABSTAIN\] \(task t4, seed 0\), expected \[GENERATE\] everywhere'):
    calibration.contexts_of(records, always='mempi')
  with pytest.raises(EpisodesError, match='every episode of heldout_games ended in an environment error'):
    calibration.contexts_of([{**r, 'status': 'env_error', 'success': False} for r in records])
  with pytest.raises(EpisodesError, match='no difference in any of the 1 contexts'):
    calibration.expected_calibration_error(contexts([(0.5, True, True)]), decisive=True)
  assert not math.isnan(calibration.risk_coverage(contexts([(0.5, True, True)])).advantage.value)
