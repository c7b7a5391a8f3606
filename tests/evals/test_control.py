"""The verdict of a control experiment passes what holds and fails what drifts."""

import numpy as np
import pytest

from mempi_jax.evals.control import format_verdict, judge
from mempi_jax.evals.probes import Probes
from mempi_jax.types import Context, Decision, Episode, Guidance, Status, Step, Task

NAMES = ('probe/p_generate', 'probe/p_generate_easy', 'probe/p_generate_hard')


def metrics(p: float, easy: float, hard: float) -> dict[str, float]:
  return dict(zip(NAMES, (p, easy, hard), strict=True))


def test_null_passes_when_nothing_moves():
  before = [metrics(0.7, 0.6, 0.8)] * 3
  after = [metrics(0.7, 0.58, 0.8), metrics(0.71, 0.63, 0.81), metrics(0.7, 0.6, 0.79)]
  verdict = judge('null', [0, 1, 2], before, after)
  assert verdict.passed
  assert [round(row['gap_growth'], 3) for row in verdict.rows] == [0.02, -0.02, -0.01]
  assert 'control null: passed' in format_verdict(verdict)


def test_null_fails_on_one_seed_that_moved():
  verdict = judge('null', [0, 1], [metrics(0.7, 0.6, 0.8)] * 2, [metrics(0.7, 0.6, 0.8), metrics(0.7, 0.45, 0.8)])
  assert len(verdict.failures) == 1 and 'seed 1: probe/p_generate_easy moved from 0.600 to 0.450' in verdict.failures[0]


def test_null_fails_on_a_small_gap_that_always_widens():
  before, after = [metrics(0.7, 0.6, 0.8)] * 5, [metrics(0.7, 0.55, 0.8 + 0.002 * i) for i in range(5)]
  verdict = judge('null', range(5), before, after)
  assert len(verdict.failures) == 1 and 'widens' in verdict.failures[0]


def test_oracle_must_learn_to_speak():
  assert judge('oracle', [0], [metrics(0.7, 0.6, 0.8)], [metrics(0.97, 0.95, 0.99)]).passed
  assert not judge('oracle', [0], [metrics(0.7, 0.6, 0.8)], [metrics(0.9, 0.85, 0.99)]).passed


def test_mixed_judges_the_two_halves_apart():
  def mixed(easy_silent, hard_silent, hard_acts):
    names = ('easy_silent', 'hard_silent', 'easy_acts', 'hard_acts')
    values = (easy_silent, hard_silent, 0.9, hard_acts)
    return metrics(0.8, 0.8, 0.8) | {f'probe/p_generate_{n}': v for n, v in zip(names, values, strict=True)}

  before = [mixed(0.6, 0.8, 0.8)]
  assert judge('mixed', [0], before, [mixed(0.62, 0.81, 0.99)]).passed
  assert 'silent moved' in judge('mixed', [0], before, [mixed(0.75, 0.81, 0.99)]).failures[0]
  assert 'hard_acts is 0.900' in judge('mixed', [0], before, [mixed(0.62, 0.81, 0.9)]).failures[0]


def test_unknown_control():
  with pytest.raises(ValueError, match='expected one of null, mixed, oracle'):
    judge('nul', [], [], [])


def test_probes_order_by_success_then_steps():
  def episode(i: int, success: bool, steps: int) -> Episode:
    context = Context(Task('alfworld', f'g{i}', 'train', 0), 'goal', 'observation')
    status = Status.SUCCESS if success else Status.TRUNCATED
    return Episode(context, Guidance(Decision.ABSTAIN), (Step('o', 'a'),) * steps, float(success), success, status)

  runs = [
    [episode(0, False, 9), episode(1, True, 3), episode(2, True, 5), episode(3, True, 8), episode(4, False, 9), episode(5, False, 8)],
    [episode(0, False, 9), episode(1, True, 3), episode(2, True, 5), episode(3, False, 8), episode(4, True, 9), episode(5, False, 9)],
  ]
  p = np.array([0.9, 0.1, 0.3, 0.5, 0.6, 0.8])
  probes = Probes(lambda params, contexts: p + params, runs, np.array([True, True, False, True, True, False]))
  found = probes(0.0)
  assert found['probe/p_generate_easy'] == pytest.approx(0.2)  # games 1 and 2
  assert found['probe/p_generate_hard'] == pytest.approx(0.85)  # games 5 and 0
  assert found['probe/p_generate_easy_acts'] == pytest.approx(0.1)
  assert found['probe/p_generate_hard_silent'] == pytest.approx(0.8)
  assert probes(0.05)['probe/p_generate'] == pytest.approx(p.mean() + 0.05)
