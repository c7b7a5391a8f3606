"""Statistics against cases done by hand, against scipy, and by simulation."""

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from mempi_jax.evals import stats


def pairs(wins, losses, ties):
  """a and b with so many pairs that a wins, that b wins and that agree, each in a cluster of its own."""
  a = [True] * wins + [False] * losses + [True] * ties
  b = [False] * wins + [True] * losses + [True] * ties
  return a, b, [f'task{i:04d}' for i in range(len(a))]


# Intervals.


def test_interval_of_a_proportion_is_the_binomial_one():
  # One episode a cluster, 40 of 100: the bootstrap distribution is binomial(100, 0.4) / 100.
  outcomes = [True] * 40 + [False] * 60
  found = stats.rate(outcomes, range(100))
  expected = scipy_stats.binom.ppf([0.025, 0.975], 100, 0.4) / 100
  assert found.value == 0.4 and (found.episodes, found.clusters) == (100, 100)
  np.testing.assert_allclose([found.low, found.high], expected, atol=0.0101)


def test_interval_of_clusters_is_wider_than_that_of_their_episodes():
  # 20 tasks of 10 equal outcomes: as much information as 20 episodes, not 200.
  outcomes = np.repeat([True] * 8 + [False] * 12, 10)
  clustered = stats.rate(outcomes, np.repeat(np.arange(20), 10).tolist())
  separate = stats.rate(outcomes, range(200))
  alone = stats.rate(outcomes[::10], range(20))
  assert clustered.value == separate.value == 0.4 and clustered.clusters == 20
  assert (clustered.low, clustered.high) == (alone.low, alone.high)
  assert 2.5 < (clustered.high - clustered.low) / (separate.high - separate.low) < 4.0  # sqrt(10) = 3.2


def test_unequal_clusters_are_weighted_by_their_episodes():
  found = stats.rate([True, True, True, False], ['a', 'a', 'a', 'b'])
  assert found.value == 0.75 and (found.low, found.high) == (0.0, 1.0)  # a resample can be all a or all b


def test_paired_difference_by_hand_and_against_scipy():
  a, b, clusters = pairs(wins=30, losses=10, ties=60)
  found = stats.paired_difference(a, b, clusters)
  assert found.value == pytest.approx(0.2)
  difference = np.array(a, float) - np.array(b, float)
  reference = scipy_stats.bootstrap((difference,), np.mean, n_resamples=10_000, method='percentile', rng=1).confidence_interval
  np.testing.assert_allclose([found.low, found.high], [reference.low, reference.high], atol=0.0101)


def test_result_does_not_depend_on_the_order_of_episodes_and_is_seeded():
  rng = np.random.default_rng(3)
  a, b, clusters = rng.random(90) < 0.6, rng.random(90) < 0.5, np.repeat(np.arange(30), 3)
  order = rng.permutation(90)
  found = stats.paired_difference(a, b, clusters.tolist())
  assert found == stats.paired_difference(a[order], b[order], clusters[order].tolist())
  # Away from round numbers of episodes, another seed gives other quantiles, a little.
  other = stats.paired_difference(a, b, clusters.tolist(), seed=1, resamples=999)
  assert other != found and abs(other.low - found.low) < 0.05


@pytest.mark.parametrize('value, low, high', [(1.0, 0.025 ** (1 / 40), 1.0), (0.0, 0.0, 1 - 0.025 ** (1 / 40))])
def test_equal_outcomes_still_have_an_interval(value, low, high):
  found = stats.rate([bool(value)] * 40, range(40))
  assert found.value == value
  np.testing.assert_allclose([found.low, found.high], [low, high])
  # It is Clopper and Pearson's.
  reference = scipy_stats.binomtest(int(40 * value), 40).proportion_ci()
  np.testing.assert_allclose([found.low, found.high], [reference.low, reference.high])


def test_no_discordant_pair_still_has_an_interval():
  a, b, clusters = pairs(0, 0, 400)
  found = stats.paired_difference(a, b, clusters)
  assert found.value == 0.0 and found.low == -found.high and 0.009 < found.high < 0.0093


def test_coverage_of_the_interval():
  """95% intervals over 60 tasks of 2 seeds, whose outcomes depend on the task, hold the true difference about 95 times in 100."""
  rng = np.random.default_rng(0)
  tasks, seeds, trials, covered, too_narrow = 60, 2, 400, 0, 0
  clusters = np.repeat(np.arange(tasks), seeds)
  for trial in range(trials):
    skill, effect = rng.normal(0.0, 1.5, tasks)[clusters], rng.normal(0.8, 1.2, tasks)[clusters]
    noise = rng.logistic(size=tasks * seeds)  # shared: the branches of a task and seed go alike
    a, b = skill + effect + noise > 0, skill + noise > 0
    found = stats.paired_difference(a, b, clusters.tolist(), seed=trial, resamples=500)
    ignored = stats.paired_difference(a, b, range(tasks * seeds), seed=trial, resamples=500)
    covered += found.low <= TRUTH <= found.high
    too_narrow += ignored.low <= TRUTH <= ignored.high
  assert 0.92 <= covered / trials <= 0.98
  assert too_narrow < covered  # the same without clusters covers less: the simulation can see the difference


def _true_difference():
  rng = np.random.default_rng(1)
  size = 4_000_000
  skill, effect, noise = rng.normal(0.0, 1.5, size), rng.normal(0.8, 1.2, size), rng.logistic(size=size)
  return np.mean(skill + effect + noise > 0) - np.mean(skill + noise > 0)


TRUTH = _true_difference()


def coverage(games, seeds, wins, losses, likeness, *, trials, resamples):
  """The share of 95% intervals that hold the true difference, wins - losses.

  Each of `games` has chances of its own for a win, a loss and a tie, Dirichlet around (wins, losses, the rest), and `seeds` pairs with just
  those: the correlation of two pairs of a game is 1 / (1 + likeness).
  """
  rng, covered = np.random.default_rng(games * 10 + seeds), 0
  clusters = np.repeat(np.arange(games), seeds).tolist()
  for trial in range(trials):
    chances = rng.dirichlet(likeness * np.array([wins, losses, 1 - wins - losses]), games)
    draws = rng.random((games, seeds))
    won = draws < chances[:, :1]
    lost = draws > 1 - chances[:, 1:2]
    tie = rng.random((games, seeds)) < 0.5  # both succeed, or neither
    a, b = won | (tie & ~lost), lost | (tie & ~won)
    found = stats.paired_difference(a.ravel(), b.ravel(), clusters, seed=trial, resamples=resamples)
    covered += found.low - 1e-12 <= wins - losses <= found.high + 1e-12
  return covered / trials


@pytest.mark.parametrize('seeds, wins, losses', [(1, 0.08, 0.04), (3, 0.08, 0.04), (1, 0.55, 0.05), (3, 0.55, 0.05)])
def test_coverage_of_paired_differences_over_100_games(seeds, wins, losses):
  assert 0.93 <= coverage(100, seeds, wins, losses, 1.0, trials=1500, resamples=400) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize('games', [100, 200, 400])
@pytest.mark.parametrize('seeds, likeness', [(1, 1.0), (3, 1.0), (3, 8.0)])
@pytest.mark.parametrize('wins, losses', [(0.05, 0.05), (0.08, 0.04), (0.3, 0.1), (0.55, 0.05)])
def test_coverage_of_paired_differences(games, seeds, likeness, wins, losses):
  found = coverage(games, seeds, wins, losses, likeness, trials=2000, resamples=1000)
  print(f'coverage: {games} games, {seeds} seeds, likeness {likeness}, wins {wins}, losses {losses}: {found:.4f}')
  assert 0.93 <= found <= 0.97


def test_independent_difference_by_hand():
  x, y = stats.Estimate(0.7, 0.6, 0.8, 50, 50), stats.Estimate(0.0, 0.0, 0.07, 50, 50)
  found = stats.independent_difference(x, y)
  assert found.value == 0.7 and (found.episodes, found.clusters) == (100, 100)
  np.testing.assert_allclose([found.low, found.high], [0.7 - np.hypot(0.1, 0.07), 0.8])


def test_non_inferiority():
  assert stats.is_non_inferior(stats.Estimate(0.01, -0.029, 0.05, 400, 400), 0.03)
  assert not stats.is_non_inferior((-0.03, 0.05), 0.03)
  with pytest.raises(ValueError, match='margin'):
    stats.is_non_inferior((0.0, 0.1), -0.03)


# Tests.


@pytest.mark.parametrize('wins, losses', [(10, 2), (2, 10), (5, 5), (6, 5), (1, 0), (60, 20), (6, 0)])
def test_mcnemar_is_the_exact_binomial_test(wins, losses):
  expected = scipy_stats.binomtest(wins, wins + losses, 0.5).pvalue
  assert stats.mcnemar_exact(*pairs(wins, losses, 37)) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_is_scipys_to_the_last_digits_on_many_tables():
  rng = np.random.default_rng(6)
  for _ in range(400):
    wins, losses, ties = rng.integers(0, 10 ** rng.integers(1, 4), 3)
    expected = scipy_stats.binomtest(int(wins), int(wins + losses), 0.5).pvalue if wins + losses else 1.0
    found = stats.mcnemar_exact(*pairs(wins, losses, ties + 1))
    assert abs(found - expected) <= 1e-12 and found == pytest.approx(expected, rel=1e-9)


def test_mcnemar_by_hand():
  assert stats.mcnemar_exact(*pairs(6, 0, 10)) == pytest.approx(2 / 64)
  assert stats.mcnemar_exact(*pairs(0, 0, 10)) == 1.0


def test_mcnemar_of_several_seeds_is_the_sign_flip_test_over_tasks():
  rng = np.random.default_rng(5)
  clusters = np.repeat(np.arange(9), 3)
  a, b = rng.random(27) < 0.8, rng.random(27) < 0.4
  net = [int(a[clusters == task].sum()) - int(b[clusters == task].sum()) for task in range(9)]
  assert len({abs(n) for n in net} - {0}) > 1
  flips = [abs(sum(sign * n for sign, n in zip(signs, net))) >= abs(sum(net)) for signs in itertools.product((-1, 1), repeat=9)]
  assert stats.mcnemar_exact(a, b, clusters.tolist()) == pytest.approx(np.mean(flips))


def test_copies_of_an_outcome_are_no_evidence():
  a, b, _ = pairs(4, 1, 0)
  once = stats.mcnemar_exact(a, b, range(5))
  copied = stats.mcnemar_exact(np.repeat(a, 10), np.repeat(b, 10), np.repeat(np.arange(5), 10).tolist())
  assert copied == pytest.approx(once) == pytest.approx(0.375)
  assert stats.mcnemar_exact(np.repeat(a, 10), np.repeat(b, 10), range(50)) < 0.001


def test_mcnemar_stays_within_its_level_under_the_null():
  rng = np.random.default_rng(2)
  clusters = np.repeat(np.arange(40), 3)
  rejected = 0
  for _ in range(500):
    tilt = rng.normal(0.0, 2.0, 40)[clusters]  # tasks have effects of either sign, 0 on average
    a, b = tilt + rng.logistic(size=120) > 0, -tilt + rng.logistic(size=120) > 0
    rejected += stats.mcnemar_exact(a, b, clusters.tolist()) <= 0.05
  assert 5 <= rejected <= 40  # 25 expected at most; 40 is 3 standard deviations above


def test_minimum_detectable_effect_solves_its_formula():
  effect = stats.minimum_detectable_effect(*pairs(70, 50, 280))
  psi = 120 / 400
  assert 400 * effect**2 == pytest.approx((1.959964 * psi**0.5 + 0.841621 * (psi - effect**2) ** 0.5) ** 2, rel=1e-5)
  assert 0.07 < effect < 0.08


def test_minimum_detectable_effect_is_detected_with_its_power():
  effect, psi, size = stats.minimum_detectable_effect(*pairs(60, 60, 280)), 0.3, 400
  rng = np.random.default_rng(4)
  found = 0
  for _ in range(1000):
    discordant = rng.binomial(size, psi)
    wins = rng.binomial(discordant, (1 + effect / psi) / 2)
    found += scipy_stats.binomtest(wins, discordant, 0.5).pvalue <= 0.05
  assert 0.74 <= found / 1000 <= 0.84  # the exact test is a little weaker than the formula's


def test_minimum_detectable_effect_of_clusters_and_of_edges():
  a, b, _ = pairs(70, 50, 280)
  copied = stats.minimum_detectable_effect(np.repeat(a, 4), np.repeat(b, 4), np.repeat(np.arange(400), 4).tolist())
  assert copied == pytest.approx(stats.minimum_detectable_effect(a, b, range(400)))
  assert stats.minimum_detectable_effect(*pairs(0, 0, 400)) == 6 / 400  # six discordant pairs to reject at all
  assert stats.minimum_detectable_effect(*pairs(1, 1, 3)) is None
  assert stats.minimum_detectable_effect(*pairs(6, 0, 0)) == 1.0


def test_holm_by_hand():
  assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
  assert stats.holm([0.6, 0.9]) == [1.0, 1.0]
  assert stats.holm([]) == []
  with pytest.raises(ValueError, match='p-values'):
    stats.holm([0.5, 1.5])


@pytest.mark.parametrize(
  'values, clusters, message',
  [([], [], 'no episodes'), ([0.5], ['a', 'b'], '2 clusters'), ([1.5], ['a'], 'between 0.0 and 1.0'), ([float('nan')], ['a'], 'between')],
)
def test_bad_values(values, clusters, message):
  with pytest.raises(ValueError, match=message):
    stats.mean_interval(values, clusters, bounds=(0.0, 1.0))


def test_pairs_of_unequal_length():
  with pytest.raises(ValueError, match='same length'):
    stats.paired_difference([True], [True, False], ['a', 'b'])
