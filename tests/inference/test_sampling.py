"""Sampling: frequencies, the ends of the unit interval, independence of positions, top-k and top-p."""

import jax.numpy as jnp
import numpy as np
import pytest

from mempi_jax.inference.sampling import NEVER, keep_top, sample, uniforms


def draw(probabilities, count, temperature=1.0, **cut):
  logits = jnp.broadcast_to(jnp.log(jnp.asarray(probabilities, jnp.float32)), (count, len(probabilities)))
  seeds, positions = jnp.arange(count, dtype=jnp.uint32), jnp.full(count, 7, jnp.int32)
  cut = {name: jnp.full(count, value) for name, value in cut.items()}
  token, logp = sample(logits, uniforms(seeds, positions), jnp.full(count, temperature), **cut)
  return np.asarray(token), np.asarray(logp)


def test_frequencies_follow_the_distribution_and_the_temperature():
  probabilities = np.array([0.5, 0.0, 0.3, 0.15, 0.05])
  for temperature in (1.0, 0.5, 2.0):
    expected = np.where(probabilities > 0, probabilities ** (1 / temperature), 0.0)
    expected /= expected.sum()
    token, logp = draw(probabilities, 20_000, temperature)
    np.testing.assert_allclose(np.bincount(token, minlength=5) / 20_000, expected, atol=0.015)
    np.testing.assert_allclose(np.exp(logp), expected[token], atol=1e-5)
  token, logp = draw(probabilities, 50, 0.0)
  assert set(token) == {0} and set(logp) == {0.0}


def test_greedy_and_sampled_rows_side_by_side():
  logits = jnp.broadcast_to(jnp.log(jnp.array([0.2, 0.5, 0.3])), (400, 3))
  temperature = jnp.where(jnp.arange(400) % 2 == 0, 0.0, 1.0)
  seeds, positions = jnp.arange(400, dtype=jnp.uint32), jnp.zeros(400, jnp.int32)
  numbers = uniforms(seeds, positions)
  token, logp = map(np.asarray, sample(logits, numbers, temperature))
  assert set(token[::2]) == {1} and set(logp[::2]) == {0.0}
  all_sampled, _ = sample(logits, numbers, jnp.ones(400))
  np.testing.assert_array_equal(token[1::2], np.asarray(all_sampled)[1::2])


@pytest.mark.parametrize('uniform', [0.0, 1.0 - 2.0**-24, 1.0 - 2.0**-23])
def test_the_ends_of_the_unit_interval_draw_possible_tokens(uniform):
  # Impossible tokens at both ends; many equal ones between them, whose float32 sum is not exactly 1.
  logits = jnp.where((jnp.arange(1000) > 2) & (jnp.arange(1000) < 990), 0.0, -jnp.inf)[None]
  token, _ = sample(logits, jnp.full(1, uniform, jnp.float32), jnp.ones(1))
  assert 2 < int(token[0]) < 990


def test_each_position_draws_anew():
  logits = jnp.zeros((64, 50))
  seeds = jnp.arange(64, dtype=jnp.uint32)
  at = lambda position: np.asarray(sample(logits, uniforms(seeds, jnp.full(64, position)), jnp.ones(64))[0])
  along = uniforms(seeds, jnp.broadcast_to(jnp.arange(5), (64, 5)))
  np.testing.assert_array_equal(along[:, 3], uniforms(seeds, jnp.full(64, 3)))
  assert (at(3) == at(3)).all()
  assert (at(3) != at(4)).sum() > 50


@pytest.mark.parametrize(
  ('top_k', 'top_p', 'kept'),
  [(0, 1.0, [0, 1, 2, 3]), (2, 1.0, [0, 2]), (9, 1.0, [0, 1, 2, 3]), (0, 0.5, [0]), (0, 0.51, [0, 2]), (0, 1e-6, [0]), (3, 0.8, [0, 2]), (3, 0.95, [0, 2, 3])],
)
def test_what_top_k_and_top_p_keep(top_k, top_p, kept):
  # 0.5, 0.05, 0.3, 0.15; among the three most likely ones 0.53, 0.32 and 0.16.
  logits = jnp.log(jnp.array([[0.5, 0.05, 0.3, 0.15]]))
  left = keep_top(logits, jnp.array([top_k]), jnp.array([top_p]))
  assert np.flatnonzero(np.asarray(left[0]) > NEVER).tolist() == kept
  np.testing.assert_array_equal(left[0, jnp.array(kept)], logits[0, jnp.array(kept)])


def test_the_logp_is_that_of_the_cut_distribution():
  token, logp = draw([0.5, 0.05, 0.3, 0.15], 2000, top_k=2, top_p=1.0)
  assert set(token) == {0, 2}
  np.testing.assert_allclose(np.exp(logp), np.where(token == 0, 0.625, 0.375), atol=1e-5)


@pytest.mark.parametrize('size', [1, 127, 128, 129, 700])
def test_two_levels_draw_what_one_long_sum_draws(size):
  rng = np.random.default_rng(size)
  logits = rng.normal(size=(2000, size)).astype(np.float32) * 3
  logits[:, rng.random(size) < 0.3] = -np.inf
  logits[:, rng.integers(size)] = 0.0
  uniform = rng.random(2000).astype(np.float32)
  token, logp = map(np.asarray, sample(jnp.array(logits), jnp.array(uniform), jnp.ones(2000)))
  weights = np.exp(logits.astype(np.float64))
  ends = np.cumsum(weights, axis=1) / weights.sum(axis=1, keepdims=True)
  expected = (ends <= uniform[:, None]).sum(axis=1)
  rows = np.arange(2000)
  np.testing.assert_allclose(logp, np.log(weights[rows, token] / weights.sum(axis=1)), atol=1e-4)
  # Numbers so close to a token's end that float32 cannot tell may draw its neighbour.
  sure = np.abs(ends - uniform[:, None]).min(axis=1) > 1e-5
  assert sure.mean() > 0.8
  np.testing.assert_array_equal(token[sure], expected[sure])
