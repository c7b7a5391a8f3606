"""The generation engine: what it samples, that rows do not disturb each other, and that it compiles a handful of programs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mempi_jax.inference import engine
from mempi_jax.inference.engine import Generated, Rows, bucket, sample
from mempi_jax.models.decoder import Decoder, init_params
from mempi_jax.models.presets import preset

CONFIG = preset('dummy', 24)
STOP = 2
ROW_LENGTH = 40


@pytest.fixture(scope='module')
def params():
  # A spread-out distribution whose greedy choice is clear.
  return jax.tree.map(lambda leaf: leaf * 8.0 if leaf.ndim == 2 else leaf, init_params(CONFIG, jax.random.key(3)))


@functools.partial(jax.jit)
def all_logps(params, tokens):
  """tokens i32[B, T] -> f32[B, T, V], the log-probs of what follows each token, by whole rows."""
  batch, time = tokens.shape
  positions = jnp.broadcast_to(jnp.arange(time), (batch, time))
  mask = jnp.broadcast_to(jnp.tril(jnp.ones((time, time), bool)), (batch, time, time))
  hidden = Decoder(CONFIG).apply({'params': params}, tokens, positions, mask)
  return jax.nn.log_softmax(Decoder(CONFIG).apply({'params': params}, hidden, method='logits'), axis=-1)


def score(params, transcripts):
  """The log-prob of every token but the first of each transcript."""
  tokens = np.zeros((8, ROW_LENGTH), np.int32)
  for row, ids in enumerate(transcripts):
    tokens[row, : len(ids)] = ids
  logps = np.asarray(all_logps(params, tokens))
  return [logps[row, np.arange(len(ids) - 1), ids[1:]] for row, ids in enumerate(transcripts)], logps


def prompts(count, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.integers(3, CONFIG.vocab_size, rng.integers(2, 9)).tolist() for _ in range(count)]


def generate(params, chunks, seeds, *, batch=8, max_new=6, temperature=1.0, rows=None):
  """One turn with rows padded to a batch of 8, so that all tests share the compiled programs."""
  rows = rows or Rows(CONFIG, params, batch, ROW_LENGTH)
  spare = batch - len(chunks)
  out = rows.generate([*chunks, *[[]] * spare], [*seeds, *[0] * spare], max_new=max_new, stop=STOP, temperature=temperature)
  asked = len(chunks)
  assert out.tokens[asked:] == [[]] * spare
  return rows, Generated(out.tokens[:asked], out.logps[:asked], out.stop_logps[:asked])


@pytest.mark.parametrize('temperature', [0.0, 0.7, 1.0])
def test_logps_are_the_scorers_on_every_token_over_turns(params, temperature):
  transcripts = prompts(6)
  counted = 0
  rows, pending = None, transcripts
  transcripts = [[] for _ in transcripts]
  for turn in range(3):
    rows, out = generate(params, pending, range(6), temperature=temperature, rows=rows)
    scored_from = []
    for row, chunk in enumerate(pending):
      # The first chunk is new; later ones begin with the last sampled token, which the transcript already holds.
      transcripts[row] += chunk if turn == 0 else chunk[1:]
      scored_from.append(len(transcripts[row]))
      transcripts[row] += out.tokens[row]
    expected, logps = score(params, transcripts)
    for row, ids in enumerate(out.tokens):
      counted += len(ids)
      np.testing.assert_allclose(out.logps[row], expected[row][scored_from[row] - 1 :], atol=1e-4)
      np.testing.assert_allclose(out.stop_logps[row], logps[row, len(transcripts[row]) - 2, STOP], atol=1e-4)
    pending = [[ids[-1], 5 + turn, 7] for ids in out.tokens]
  assert counted > 40


def test_greedy_takes_the_most_likely_token(params):
  _, out = generate(params, prompts(4), range(4), temperature=0.0)
  _, logps = score(params, [prompt + ids for prompt, ids in zip(prompts(4), out.tokens, strict=True)])
  for row, (prompt, ids) in enumerate(zip(prompts(4), out.tokens, strict=True)):
    best = logps[row, len(prompt) - 1 : len(prompt) + len(ids) - 1].argmax(-1)
    assert ids == best.tolist()


def test_generation_ends_at_the_stop_token_or_at_the_limit(params):
  _, out = generate(params, prompts(8, seed=5), range(100, 108), temperature=3.0)
  lengths = [len(ids) for ids in out.tokens]
  for ids in out.tokens:
    assert STOP not in ids[:-1]
    assert ids[-1] == STOP or len(ids) == 6
  assert min(lengths) < 6 and max(lengths) == 6  # both endings happen


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_output_depends_neither_on_the_other_rows_nor_on_the_slot(params, temperature):
  chunks, seeds = prompts(8), list(range(50, 58))
  _, together = generate(params, chunks, seeds, temperature=temperature)
  order = [3, 7, 0, 5, 1, 6, 2, 4]
  _, shuffled = generate(params, [chunks[i] for i in order], [seeds[i] for i in order], temperature=temperature)
  assert [shuffled.tokens[order.index(i)] for i in range(8)] == together.tokens
  for i in range(8):
    _, alone = generate(params, [chunks[i]], [seeds[i]], temperature=temperature)
    assert alone.tokens[0] == together.tokens[i]
    np.testing.assert_allclose(alone.logps[0], together.logps[i], atol=1e-4)
  if temperature:  # the rows are not all the same, and the seed matters
    _, reseeded = generate(params, chunks, [seed + 1 for seed in seeds], temperature=temperature)
    assert len({tuple(ids) for ids in together.tokens}) > 4
    assert reseeded.tokens != together.tokens


def test_selected_rows_go_on_as_if_nothing_had_happened(params):
  chunks = prompts(8)
  rows, first = generate(params, chunks, range(8))
  follow = [[ids[-1], 9, 4] for ids in first.tokens]
  lengths = rows.lengths.copy()
  _, expected = generate(params, follow, range(8), rows=rows)
  again, second = generate(params, chunks, range(8))
  assert second.tokens == first.tokens
  keep = [6, 1, 1, 4]  # fewer rows, another order, one of them twice
  again.select(keep + [0] * 4)
  np.testing.assert_array_equal(again.lengths[:4], lengths[keep])
  _, out = generate(params, [follow[i] for i in keep], keep, rows=again)
  assert out.tokens == [expected.tokens[i] for i in keep]
  for row, i in enumerate(keep):
    np.testing.assert_allclose(out.logps[row], expected.logps[i], atol=1e-4)


def test_a_resting_row_is_left_alone(params):
  chunks = prompts(8)
  rows, first = generate(params, chunks, range(8))
  _, expected = generate(params, [[ids[-1], 9] for ids in first.tokens], range(8), rows=rows)
  rows, first = generate(params, chunks, range(8))
  even = [[ids[-1], 9] if row % 2 == 0 else [] for row, ids in enumerate(first.tokens)]
  odd = [[ids[-1], 9] if row % 2 else [] for row, ids in enumerate(first.tokens)]
  _, out_even = generate(params, even, range(8), rows=rows)
  _, out_odd = generate(params, odd, range(8), rows=rows)
  assert all(out_even.tokens[row] == [] and out_even.logps[row] == [] for row in range(1, 8, 2))
  assert [(out_odd if row % 2 else out_even).tokens[row] for row in range(8)] == expected.tokens


def test_a_full_row_may_rest_while_others_go_on(params):
  rows = Rows(CONFIG, params, 8, ROW_LENGTH)
  rows.prefill([[3] * ROW_LENGTH, [4] * 3, *[[]] * 6])
  rest = [[], [5, 6], *[[]] * 6]
  out = rows.generate(rest, [0] * 8, max_new=6, stop=STOP, temperature=0.0)
  _, expected = generate(params, [[4, 4, 4, 5, 6]], [0], temperature=0.0)
  assert out.tokens[1] == expected.tokens[0] and out.tokens[0] == []
  assert rows.lengths[0] == ROW_LENGTH


def test_a_row_out_of_context_is_named_before_anything_changes(params):
  rows, first = generate(params, prompts(8), range(8))
  lengths = rows.lengths.copy()
  chunks = [[1, 2], [1] * 33, *[[]] * 6]
  with pytest.raises(ValueError, match=rf'row 1 needs {lengths[1]} \+ 33 \+ 6 tokens, more than the context length of 40'):
    rows.generate(chunks, [0] * 8, max_new=6, stop=STOP, temperature=0.0)
  np.testing.assert_array_equal(rows.lengths, lengths)
  _, out = generate(params, [[ids[-1], 9] for ids in first.tokens], range(8), rows=rows)
  assert all(out.tokens)


def test_a_context_can_be_filled_to_its_last_token(params):
  chunks = [[3, 5] * 17]  # 34 tokens and 6 new ones in a context of 40
  _, out = generate(params, chunks, [1], temperature=0.0)
  expected, _ = score(params, [chunks[0] + out.tokens[0]])
  np.testing.assert_allclose(out.logps[0], expected[0][33:], atol=1e-4)


def test_long_tails_computed_apart_change_nothing(params):
  """A few rows with longer chunks than the others go on after them; every row ends as if it were alone."""
  chunks = [*prompts(14, seed=5), list(range(3, 23)), list(range(22, 3, -1))]
  rows = Rows(CONFIG, params, 16, ROW_LENGTH)
  before = engine._prefill_some._cache_size()
  logits = rows.prefill(chunks)
  assert engine._prefill_some._cache_size() == before + 1
  assert rows.lengths.tolist() == [len(ids) for ids in chunks]
  _, expected = score(params, chunks[8:])
  for row in range(8, 16):
    np.testing.assert_allclose(jax.nn.log_softmax(logits[row]), expected[row - 8, len(chunks[row]) - 1], atol=1e-4)
  out = rows.generate([[7]] * 16, range(16), max_new=4, stop=STOP, temperature=0.0)  # the cache is right, too
  expected, _ = score(params, [chunks[row] + [7] + out.tokens[row] for row in range(8, 16)])
  for row in range(8, 16):
    np.testing.assert_allclose(out.logps[row], expected[row - 8][len(chunks[row]) :], atol=1e-4)


def test_broken_parameters_are_an_error(params):
  broken = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
  with pytest.raises(FloatingPointError, match='non-finite log-probs for row 0'):
    generate(broken, prompts(8), range(8))


def test_fixed_shapes_compile_once(params):
  compiled = lambda: engine._prefill._cache_size() + engine._decode._cache_size()
  turn = lambda seed: generate(params, prompts(8, seed), range(seed, seed + 8), temperature=0.5)
  rows, out = turn(0)
  generate(params, [[ids[-1], 9] for ids in out.tokens], range(8), rows=rows)
  warm = compiled()
  assert warm > 0
  for seed in range(1, 6):  # other texts, lengths, seeds and temperatures, a second turn: the same programs
    rows, out = turn(seed)
    generate(params, [[ids[-1], 9] for ids in out.tokens], range(8), rows=rows, temperature=0.0)
  assert compiled() == warm
  generate(params, prompts(4), range(4), batch=4)
  assert compiled() > warm  # the counter does count


# Sampling.


def draw(probabilities, count, temperature=1.0):
  logits = jnp.broadcast_to(jnp.log(jnp.asarray(probabilities, jnp.float32)), (count, len(probabilities)))
  seeds, positions = jnp.arange(count, dtype=jnp.uint32), jnp.full(count, 7, jnp.int32)
  return np.asarray(sample(logits, seeds, positions, jnp.float32(temperature)))


def test_frequencies_follow_the_distribution_and_the_temperature():
  probabilities = np.array([0.5, 0.0, 0.3, 0.15, 0.05])
  for temperature in (1.0, 0.5, 2.0):
    expected = np.where(probabilities > 0, probabilities ** (1 / temperature), 0.0)
    found = np.bincount(draw(probabilities, 20_000, temperature), minlength=5) / 20_000
    np.testing.assert_allclose(found, expected / expected.sum(), atol=0.015)
  assert set(draw(probabilities, 50, 0.0)) == {0}


@pytest.mark.parametrize('uniform', [0.0, 1.0 - 2.0**-24, 1.0 - 2.0**-23])
def test_the_ends_of_the_unit_interval_draw_possible_tokens(monkeypatch, uniform):
  monkeypatch.setattr(jax.random, 'uniform', lambda key: jnp.float32(uniform))
  # Impossible tokens at both ends; many equal ones between them, whose float32 sum is not exactly 1.
  logits = jnp.where((jnp.arange(1000) > 2) & (jnp.arange(1000) < 990), 0.0, -jnp.inf)[None]
  drawn = int(sample(logits, jnp.zeros(1, jnp.uint32), jnp.zeros(1, jnp.int32), jnp.float32(1.0))[0])
  assert 2 < drawn < 990


def test_each_position_draws_anew():
  logits = jnp.zeros((64, 50))
  at = lambda position: np.asarray(sample(logits, jnp.arange(64, dtype=jnp.uint32), jnp.full(64, position, jnp.int32), jnp.float32(1.0)))
  assert (at(3) == at(3)).all()
  assert (at(3) != at(4)).sum() > 50


def test_buckets():
  assert [bucket(size, (1, 16, 32)) for size in (0, 1, 2, 16, 17, 33, 64, 65)] == [1, 1, 16, 16, 32, 64, 64, 96]
