"""The generation engine: what it samples, that requests do not disturb each other, what it computes twice (nothing), and how it refuses."""

import functools

import jax
import numpy as np
import pytest

from mempi_jax.inference import cache, programs
from mempi_jax.inference.engine import Engine
from mempi_jax.inference.requests import Finish, QueueFull, Request, Result
from mempi_jax.models.decoder import Decoder, init_params
from mempi_jax.models.presets import preset

CONFIG = preset('dummy', 24)
STOP = 2
LENGTH = 96


@pytest.fixture(scope='module')
def params():
  # A spread-out distribution whose greedy choice is clear.
  return jax.tree.map(lambda leaf: leaf * 8.0 if leaf.ndim == 2 else leaf, init_params(CONFIG, jax.random.key(3)))


def make(params, slots=8, **options):
  return Engine(CONFIG, params, slots=slots, max_length=LENGTH, **options)


@functools.partial(jax.jit)
def all_logps(params, tokens):
  """tokens i32[B, T] -> f32[B, T, V], the log-probs of what follows each token, by whole rows."""
  positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
  hidden = Decoder(CONFIG).apply({'params': params}, tokens, positions, None)
  return jax.nn.log_softmax(Decoder(CONFIG).apply({'params': params}, hidden, method='logits'), axis=-1)


def score(params, prompt, new):
  """The scorer's log-probs f32[T, V] where each of the new tokens was drawn."""
  tokens = np.zeros((1, LENGTH), np.int32)
  ids = [*prompt, *new]
  tokens[0, : len(ids)] = ids
  return np.asarray(all_logps(params, tokens))[0, len(prompt) - 1 : len(ids) - 1]


def prompts(count, seed=0, shortest=2, longest=40):
  rng = np.random.default_rng(seed)
  return [rng.integers(3, CONFIG.vocab_size, rng.integers(shortest, longest)).tolist() for _ in range(count)]


def requests(count, seed=0, **options):
  return [Request(prompt, 12, seed=100 + i, **{'stop': ((STOP,),), **options}) for i, prompt in enumerate(prompts(count, seed))]


def check(params, request, result):
  """Every log-prob of a result is the scorer's."""
  expected = score(params, request.prompt, result.tokens)
  taken = expected[np.arange(len(result.tokens)), list(result.tokens)]
  np.testing.assert_allclose(result.model_logps, taken, atol=1e-4)
  if request.stop:
    np.testing.assert_allclose(result.stop_logp, expected[-1, request.stop[0][-1]], atol=1e-4)
  if request.temperature and not (request.top_k or request.top_p < 1):
    scaled = np.asarray(jax.nn.log_softmax(expected / request.temperature, axis=-1))
    sampled = scaled[np.arange(len(result.tokens)), list(result.tokens)]
    sampled[: len(request.forced)] = 0.0
    np.testing.assert_allclose(result.logps, sampled, atol=1e-4)
  elif not request.temperature:
    assert set(result.logps) == {0.0}


@pytest.mark.parametrize('temperature', [0.0, 0.7, 1.0])
def test_logps_are_the_scorers_for_any_mix_of_requests(params, temperature):
  asked = requests(20, temperature=temperature)
  engine = make(params, slots=8)  # fewer slots than requests: some wait, lengths differ, buckets change
  results = engine.generate(asked)
  for request, result in zip(asked, results, strict=True):
    check(params, request, result)
  assert sum(len(result.tokens) for result in results) > 60


def test_greedy_takes_the_most_likely_token(params):
  for request, result in zip(asked := requests(6, temperature=0.0), make(params).generate(asked), strict=True):
    assert list(result.tokens) == score(params, request.prompt, result.tokens).argmax(-1).tolist()


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_a_result_depends_neither_on_the_others_nor_on_slots(params, temperature):
  asked = requests(12, temperature=temperature)
  together = make(params, slots=8).generate(asked)
  order = np.random.default_rng(1).permutation(12)
  shuffled = make(params, slots=5).generate([asked[i] for i in order])
  assert [shuffled[list(order).index(i)].tokens for i in range(12)] == [result.tokens for result in together]
  for i in (0, 5, 11):
    (alone,) = make(params, slots=1).generate([asked[i]])
    assert alone.tokens == together[i].tokens
    np.testing.assert_allclose(alone.logps, together[i].logps, atol=1e-4)
  if temperature:  # they are not all the same, and the seed matters
    reseeded = make(params).generate([Request(r.prompt, 12, seed=r.seed + 50, stop=r.stop) for r in asked])
    assert len({result.tokens for result in together}) > 8
    assert [result.tokens for result in reseeded] != [result.tokens for result in together]


def test_requests_of_every_kind_share_a_batch(params):
  """Each keeps its own temperature, cut, stops and forced tokens."""
  kinds = [
    {'temperature': 0.0},
    {'temperature': 0.5},
    {'top_k': 3},
    {'top_p': 0.6},
    {'forced': (7, 8)},
    {'stop': ((5, 6), (9,))},
    {'stop': ()},
    {'temperature': 2.0, 'top_k': 5, 'top_p': 0.9},
  ]
  asked = [
    Request(**{'prompt': prompt, 'max_new': 12, 'seed': i, 'stop': ((STOP,),), **kind})
    for i, (prompt, kind) in enumerate(zip(prompts(8), kinds, strict=True))
  ]
  together = make(params).generate(asked)
  for request, result in zip(asked, together, strict=True):
    check(params, request, result)
    assert make(params).generate([request])[0].tokens == result.tokens
  assert together[4].tokens[:2] == (7, 8) and together[4].logps[:2] == (0.0, 0.0) and len(together[4].tokens) <= 14


def test_only_the_most_likely_tokens_are_drawn_with_top_k_and_top_p(params):
  prompt = prompts(1, seed=4)[0]
  logps = score(params, prompt, [0])[0]
  order = np.argsort(-logps)
  nucleus = order[: int(np.sum(np.cumsum(np.exp(logps[order])) - np.exp(logps[order]) < 0.6))]
  first = lambda **kind: {result.tokens[0] for result in make(params, slots=32).generate([Request(prompt, 1, seed=i, **kind) for i in range(96)])}
  assert first(top_k=3) == set(order[:3].tolist())
  assert first(top_p=0.6) == set(nucleus.tolist())
  assert len(first()) > 6


def test_forced_tokens_come_first_and_are_scored(params):
  (result,) = make(params).generate([Request(prompts(1)[0], 3, seed=1, forced=(4, STOP, 9), stop=((STOP,),))])
  assert result.tokens[:3] == (4, STOP, 9)  # a forced stop token stops nothing
  assert 4 <= len(result.tokens) <= 6
  check(params, Request(prompts(1)[0], 3, seed=1, forced=(4, STOP, 9), stop=((STOP,),)), result)


def test_stop_sequences_of_several_tokens(params):
  free = make(params).generate([Request(prompt, 30, seed=i) for i, prompt in enumerate(prompts(8))])
  for i, result in enumerate(free):
    pair = result.tokens[6:8]
    (stopped,) = make(params).generate([Request(prompts(8)[i], 30, seed=i, stop=((1, 1, 1, 1), pair))])
    where = next(k for k in range(29) if result.tokens[k : k + 2] == pair)
    assert stopped.tokens == result.tokens[: where + 2] and stopped.finish is Finish.STOP


def test_endings(params):
  results = make(params).generate(requests(16, seed=5, temperature=3.0))
  for result in results:
    assert STOP not in result.tokens[:-1]
    assert (result.finish is Finish.STOP) == (result.tokens[-1] == STOP)
    assert result.finish is Finish.STOP or len(result.tokens) == 12
  assert {result.finish for result in results} == {Finish.STOP, Finish.LENGTH}


def test_long_prompts_go_in_pieces_and_a_transcript_fills_its_slot_to_the_end(params):
  prompt = prompts(1, shortest=80, longest=81)[0]  # longer than the widest prefill
  request = Request(prompt, LENGTH - 80, seed=3)
  engine = make(params, slots=2)
  assert engine.plan.widths[-1] < 80
  (result,) = engine.generate([request])
  assert len(result.tokens) == LENGTH - 80
  check(params, request, result)


# What is computed once.


def distinct(transcripts):
  """Tokens of the tree that the transcripts make."""
  return len({tuple(ids[: i + 1]) for ids in transcripts for i in range(len(ids))})


def test_turns_compute_new_tokens_alone(params):
  engine = make(params, slots=8)
  transcripts = prompts(8, shortest=20)
  drawn = 0
  for turn in range(5):
    asked = [Request(list(ids), 4, seed=i, stop=((STOP,),), session=i) for i, ids in enumerate(transcripts)]
    results = engine.generate(asked)
    for i, (request, result) in enumerate(zip(asked, results, strict=True)):
      check(params, request, result)
      drawn += len(result.tokens)
      transcripts[i] = [*transcripts[i], *result.tokens, 3 + turn, 4]
  read = distinct(transcripts) - 2 * 8 - drawn  # what the last turn appended was never read; what was drawn was not prefilled
  assert engine.counters.prompt_tokens > 3 * read
  # The last token that is drawn in a turn enters the cache with the next turn's.
  assert read <= engine.counters.prefilled <= read + 5 * 8


def test_a_lost_slot_is_read_anew_and_changes_nothing(params):
  def play(slots):
    engine, transcripts = make(params, slots=slots), prompts(6)
    for turn in range(4):
      results = engine.generate([Request(list(ids), 4, seed=i, session=i) for i, ids in enumerate(transcripts)])
      transcripts = [[*ids, *result.tokens, 3 + turn] for ids, result in zip(transcripts, results, strict=True)]
    return transcripts, engine.counters

  (roomy, kept), (tight, lost) = play(6), play(2)
  assert roomy == tight
  assert kept.evictions == 0 and lost.evictions > 10 and lost.prefilled > 2 * kept.prefilled


def test_a_prompt_is_computed_once_for_all_its_branches(params):
  prompt = prompts(1, shortest=39)[0]
  engine = make(params, slots=8)
  results = engine.generate([Request(prompt, 8, seed=k, forced=(5,)) for k in range(8)])
  assert engine.counters.prefilled == len(prompt) and engine.counters.copied == 7 * len(prompt)
  for k, result in enumerate(results):
    check(params, Request(prompt, 8, seed=k, forced=(5,)), result)
    assert make(params).generate([Request(prompt, 8, seed=k, forced=(5,))])[0].tokens == result.tokens
  assert len({result.tokens for result in results}) > 4


def test_a_common_beginning_is_computed_once(params):
  common = prompts(1, shortest=39)[0]
  asked = [Request([*common, *tail], 6, seed=i) for i, tail in enumerate(prompts(8, seed=2, longest=10))]
  engine = make(params, slots=8)
  results = engine.generate(asked)
  assert engine.counters.prefilled == distinct(request.prompt for request in asked) < sum(len(request.prompt) for request in asked) / 3
  for request, result in zip(asked, results, strict=True):
    check(params, request, result)
  # And again later, from what finished requests left behind.
  before = engine.counters.prefilled
  later = Request([*common, 9, 9, 9], 6, seed=1)
  check(params, later, engine.generate([later])[0])
  assert engine.counters.prefilled - before <= 3


def test_new_parameters_forget_what_old_ones_computed(params):
  engine, asked = make(params), requests(3)
  engine.generate(asked)
  engine.params = other = jax.tree.map(lambda leaf: leaf * 1.1, params)
  for request, result in zip(asked, engine.generate(asked), strict=True):
    check(other, request, result)
  ticket = engine.submit(asked[0])
  with pytest.raises(RuntimeError, match='1 requests are running'):
    engine.params = params
  while ticket.result is None:
    engine.step()


def test_programs_are_compiled_ahead_and_never_again(params):
  engine = make(params, slots=24)
  assert engine.warm_up() == engine.counters.compilations > 8
  before = programs.compiled()
  for seed in range(4):
    engine.generate(requests(40, seed=seed, temperature=float(seed % 2)))
    engine.generate([Request(prompt, 5, seed=1, session=i) for i, prompt in enumerate(prompts(9, seed=seed, longest=80))])
    engine.generate([Request(prompts(1, seed=seed, shortest=39)[0], 5, seed=k) for k in range(5)])
  assert programs.compiled() == before
  engine.generate(requests(2, top_k=3))
  assert programs.compiled() > before  # the counter does count


def test_warming_up_leaves_the_cache_as_it_is(params):
  engine = make(params)
  (first,) = engine.generate([Request(prompts(1)[0], 6, seed=1, session='a')])
  engine.warm_up()
  transcript = [*prompts(1)[0], *first.tokens, 5]
  before = engine.counters.prefilled
  request = Request(transcript, 6, seed=1, session='a')
  check(params, request, engine.generate([request])[0])
  assert engine.counters.prefilled - before == 2


# What cannot be served.


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'prompt': []}, 'an empty prompt'),
    ({'prompt': [3] * 90}, '90 prompt tokens and 12 new ones are 102, more than the max_length of 96'),
    ({'max_new': -1}, 'max_new -1'),
    ({'temperature': -0.5}, 'temperature -0.5'),
    ({'temperature': float('nan')}, 'temperature nan'),
    ({'top_p': 0.0}, 'top_p 0.0'),
    ({'top_k': -2}, 'top_k -2'),
    ({'prompt': [3, 24]}, 'token ids from 2 to 24: expected 0 to 23'),
    ({'forced': (-1,)}, 'token ids from -1'),
    ({'forced': (3,) * 9}, '9 forced tokens: expected at most 8'),
    ({'stop': ((),)}, r'stop sequences of \[0\] tokens'),
    ({'stop': ((1,),) * 5}, 'expected at most 4'),
  ],
)
def test_bad_requests_are_refused_and_harm_nobody(params, change, message):
  engine, good = make(params), requests(3)
  tickets = [engine.submit(request) for request in good]
  engine.step()
  with pytest.raises(ValueError, match=message):
    engine.submit(Request(**{'prompt': [3, 4], 'max_new': 12, 'stop': ((STOP,),), **change}))
  while any(ticket.result is None for ticket in tickets):
    engine.step()
  assert [ticket.result for ticket in tickets] == make(params).generate(good)


def test_no_new_tokens(params):
  engine = make(params)
  (result,) = engine.generate([Request([3, 4], 0)])
  assert (result.tokens, result.finish) == ((), Finish.LENGTH) and np.isnan(result.stop_logp)
  assert engine.counters.prefilled == 0
  (forced,) = engine.generate([Request([3, 4], 0, forced=(5,))])
  assert forced.tokens == (5,)
  check(params, Request([3, 4], 0, forced=(5,)), forced)


def test_cancelled_requests_leave_the_others_alone(params):
  asked = requests(12, stop=())
  expected = make(params).generate(asked)
  engine = make(params, slots=4)
  tickets = [engine.submit(request) for request in asked]
  tickets[11].cancel()  # waiting
  engine.step()
  tickets[1].cancel()  # running
  ended = engine.step()
  assert tickets[1] in ended and tickets[1].result.finish is Finish.CANCELLED
  while any(ticket.result is None for ticket in tickets):
    engine.step()
  for i, ticket in enumerate(tickets):
    if i not in (1, 11):
      assert ticket.result.tokens == expected[i].tokens
  assert tickets[11].result == Result((), (), (), tickets[11].result.stop_logp, Finish.CANCELLED)
  tickets[0].cancel()  # done: stays as it is
  engine.step()
  assert tickets[0].result.finish is Finish.LENGTH and engine.running == 0


def test_cancelling_the_one_that_others_wait_for(params):
  """A prompt that is read for all its branches, and is called off before it is read to its end."""
  prompt = prompts(1, shortest=39)[0] * 2
  asked = [Request([*prompt, 3 + i], 6, seed=i) for i in range(3)] + [Request(prompt, 6, seed=9)] * 2
  expected = make(params).generate(asked)
  engine = make(params)
  tickets = [engine.submit(request) for request in asked]
  engine._admit()  # all have a slot, nothing is read yet
  assert sum(entry.after is not None for entry in engine.unread) >= 3
  for first in (0, 3):
    tickets[first].cancel()
  for _ in range(50):
    engine.step()
  assert [ticket.result.tokens for ticket in tickets] == [() if i in (0, 3) else expected[i].tokens for i in range(5)]
  # What was not read is not offered to later requests as if it had been.
  later = Request([*prompt, 3, 4], 6, seed=5)
  check(params, later, engine.generate([later])[0])


def test_a_full_queue(params):
  engine = make(params, slots=2, max_queue=3)
  tickets = [engine.submit(request) for request in requests(3)]
  with pytest.raises(QueueFull, match='3 requests are waiting'):
    engine.submit(requests(4)[3])
  engine.step()  # two of them found a slot
  tickets.append(engine.submit(requests(4)[3]))
  while any(ticket.result is None for ticket in tickets):
    engine.step()
  assert [ticket.result.tokens for ticket in tickets] == [result.tokens for result in make(params).generate(requests(4))]


def test_a_request_whose_logits_are_not_finite_is_named_and_fails_alone(params):
  # One embedding row is broken, so only those that meet this token are.
  broken = params | {'embedding': params['embedding'].at[23].set(np.nan)}
  untied = Engine(CONFIG, broken, slots=4, max_length=LENGTH)
  asked = [Request([5, 6, 7], 4, seed=1), Request([5, 23, 7], 4, seed=1)]
  tickets = [untied.submit(request) for request in asked]
  while any(ticket.result is None for ticket in tickets):
    untied.step()
  # The embedding is the output matrix too: here everything breaks, and every request says so.
  assert all(ticket.result.finish is Finish.ERROR for ticket in tickets)
  assert tickets[1].result.error == 'request 1: the model gave non-finite logits at its token 0'
  with pytest.raises(FloatingPointError, match='request 2: the model gave non-finite logits at its token 0'):
    untied.generate([asked[0]])


def test_one_broken_request_among_good_ones(params, monkeypatch):
  good = requests(4)
  expected = make(params).generate(good)
  engine = make(params)
  tickets = [engine.submit(request) for request in good]
  real = programs.decode

  def decode(*arguments, **options):
    counts, drawn, new = real(*arguments, **options)
    broken = np.asarray(drawn.model_logp).copy()
    if tickets[2].result is None:
      row = [slot for slot, owner in enumerate(engine.owner) if owner is not None].index(tickets[2].slot)
      broken[row, 1] = np.nan
    return counts, drawn._replace(model_logp=broken), new

  decode._cache_size = real._cache_size
  monkeypatch.setattr(programs, 'decode', decode)
  monkeypatch.setattr(engine.plan.__class__, 'decode', lambda self, rows: self.decode_rows[-1])
  while any(ticket.result is None for ticket in tickets):
    engine.step()
  assert tickets[2].result.finish is Finish.ERROR and 'request 2: the model gave non-finite logits at its token 2' in tickets[2].result.error
  assert [tickets[i].result.tokens for i in (0, 1, 3)] == [expected[i].tokens for i in (0, 1, 3)]


def test_a_cache_that_cannot_fit_says_what_would(params, monkeypatch):
  monkeypatch.setattr(cache, 'free_host_memory', lambda: 100_000)
  with pytest.raises(MemoryError, match=r'8 slots of 96 tokens needs 0\.00 GB, 0\.00 GB are free: 4 slots of that length would fit'):
    make(params)
  with pytest.raises(ValueError, match='at least one slot'):
    make(params, slots=0)


def test_the_cache_is_as_large_as_predicted(params):
  engine = make(params, slots=8)
  size = lambda: sum(leaf.nbytes for leaf in jax.tree.leaves(engine.store))
  assert engine.cache_bytes == size() == 2 * 2 * 8 * LENGTH * 16 * 4  # layers, keys and values, slots, tokens, one head of 16, float32
  engine.generate(requests(20))
  assert size() == engine.cache_bytes
  assert '8 slots of 96 tokens, a cache of 0.2 MB' in engine.describe()
