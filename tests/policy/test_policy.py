"""The guidance policy: the decision and its threshold, contents and their log-probs, folders."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mempi_jax.policy import policy as policy_module
from mempi_jax.policy.policy import GuidancePolicy, load_policy
from mempi_jax.policy.score import score_rows
from mempi_jax.rollout.assemble import PackedRow, pack
from mempi_jax.types import Context, Decision, Task

MAX_PROMPT, MAX_CONTENT = 40, 6


@pytest.fixture(scope='module', autouse=True)
def small_batches():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(policy_module, 'BATCH', 4)
    yield


@pytest.fixture(scope='module')
def policy(dummy_model, tokenizer):
  config, params = dummy_model
  # The end of the content must be neither sure nor unheard of: EOS gets the mean of two words, and some more.
  embedding = params['embedding']
  eos = embedding[tokenizer.encode('m')[0]] * 0.5 + embedding[tokenizer.encode('d')[0]] * 0.5
  return GuidancePolicy(
    config, params | {'embedding': embedding.at[tokenizer.eos].set(1.5 * eos)}, tokenizer, max_prompt=MAX_PROMPT, max_content=MAX_CONTENT
  )


@pytest.fixture(scope='module')
def contexts():
  things, places = ('mug', 'apple', 'pen', 'lamp', 'towel'), ('drawer', 'shelf')
  return [Context(Task('alfworld', f'{a}-{b}', 'train', 3), f'put a {a} in {b}', f'You see a {b} 1.') for a in things for b in places]


def scored(policy, contexts, groups):
  """What the trainer's scorer says about the same contents: (decision f32[B], logps per branch)."""
  width, count = MAX_CONTENT + 1, max(len(group) for group in groups)
  rows = [PackedRow(policy.prompt(c), [g.tokens for g in group]) for c, group in zip(contexts, groups, strict=True)]
  batch = pack(rows, policy.tokenizer, num_rows=len(rows), row_tokens=MAX_PROMPT + count * (width + 1), branches=count, max_content=MAX_CONTENT)
  arrays = (batch.tokens, batch.branch, batch.positions, batch.decision_index, batch.score_index, batch.targets)
  run = jax.jit(score_rows, static_argnums=(0, 2, 3))
  decision, logps = run(policy.config, policy.params, policy.tokenizer.generate, policy.tokenizer.abstain, *arrays)
  branches = np.asarray(logps).reshape(len(rows), count, width)
  return np.asarray(decision), [[branches[i, k, : len(g.tokens) + 1] for k, g in enumerate(group)] for i, group in enumerate(groups)]


def test_contents_and_their_logps_are_the_scorers(policy, contexts):
  groups = policy.contents(contexts, list(range(10)), branches=3, temperature=1.3)
  decision, logps = scored(policy, contexts, groups)
  np.testing.assert_allclose(policy.decision_logits(contexts), decision, atol=1e-4)
  lengths = set()
  for i, group in enumerate(groups):
    assert len(group) == 3
    for k, guidance in enumerate(group):
      assert guidance.decision is Decision.GENERATE and guidance.source == 'mempi'
      assert len(guidance.logps) == len(guidance.tokens) + 1
      # Content that was cut and closed too: its last log-prob is that of the end-of-sequence.
      np.testing.assert_allclose(guidance.logps, logps[i][k], atol=1e-4)
      np.testing.assert_allclose(guidance.p_generate, 1 / (1 + np.exp(-decision[i])), atol=1e-5)
      assert policy.tokenizer.eos not in guidance.tokens
      assert guidance.text == ' '.join(policy.tokenizer.decode(guidance.tokens).split())
      lengths.add(len(guidance.tokens))
  assert max(lengths) == MAX_CONTENT and min(lengths) < MAX_CONTENT  # both endings happened


def test_contents_depend_on_context_and_seed_alone(policy, contexts):
  groups = policy.contents(contexts, list(range(10)), branches=2, temperature=1.0)
  again = policy.contents(contexts[::-1], list(range(10))[::-1], branches=2, temperature=1.0)[::-1]
  assert [[g.tokens for g in group] for group in groups] == [[g.tokens for g in group] for group in again]
  more = policy.contents(contexts[:3], [0, 1, 2], branches=3, temperature=1.0)
  assert [[g.tokens for g in group[:2]] for group in more] == [[g.tokens for g in group] for group in groups[:3]]
  other = policy.contents(contexts, list(range(10, 20)), branches=2, temperature=1.0)
  assert [g[0].tokens for g in other] != [g[0].tokens for g in groups]
  assert policy.contents([], [], branches=2, temperature=1.0) == []


def test_branches_of_neighbouring_seeds_do_not_share_their_noise(policy, contexts):
  # The same context with seeds 0, 1, 2, 3: branch k of seed s must not be branch k - 1 of seed s + 1.
  groups = policy.contents([contexts[0]] * 4, [0, 1, 2, 3], branches=4, temperature=2.0)
  texts = [guidance.tokens for group in groups for guidance in group]
  assert len(set(texts)) == 16


def test_greedy_contents_do_not_depend_on_the_seed(policy, contexts):
  first, second = (policy.contents(contexts[:4], [seed] * 4, branches=2, temperature=0.0) for seed in (0, 9))
  assert [[g.tokens for g in group] for group in first] == [[g.tokens for g in group] for group in second]
  assert all(group[0].tokens == group[1].tokens for group in first)


def test_as_many_seeds_as_contexts(policy, contexts):
  with pytest.raises(ValueError, match='2 contexts and 1 seeds'):
    policy.contents(contexts[:2], [0], branches=1, temperature=1.0)


def test_the_threshold_divides_at_p_generate(policy, contexts):
  p = policy.p_generate(contexts)
  assert len(set(p.tolist())) == 10
  middle = float(np.sort(p)[5])  # a threshold that is exactly one context's p: that one generates
  answers = policy.answer(contexts, threshold=middle)
  assert [a.decision is Decision.GENERATE for a in answers] == (p >= middle).tolist()
  assert sum(a.decision is Decision.GENERATE for a in answers) == 5
  for answer, probability in zip(answers, p, strict=True):
    assert answer.p_generate == probability
    if answer.decision is Decision.ABSTAIN:
      assert (answer.text, answer.tokens, answer.logps) == ('', (), ())
    else:
      assert len(answer.logps) == len(answer.tokens) + 1
  assert all(a.decision is Decision.GENERATE for a in policy.answer(contexts, threshold=0.0))
  assert all(a.decision is Decision.ABSTAIN for a in policy.answer(contexts, threshold=1.01))
  assert policy.answer([], threshold=0.5) == []


def test_an_answer_does_not_depend_on_what_else_is_asked(policy, contexts):
  together = policy.answer(contexts, threshold=0.0, temperature=1.0, seed=4)
  alone = [policy.answer([context], threshold=0.0, temperature=1.0, seed=4)[0] for context in contexts[:3]]
  assert [a.tokens for a in alone] == [a.tokens for a in together[:3]]
  assert [a.tokens for a in policy.answer(contexts, threshold=0.0, temperature=1.0, seed=5)] != [a.tokens for a in together]
  # Two tasks with one context text draw apart, as the seed mixes the task in.
  twin = dataclasses.replace(contexts[0], task=Task('alfworld', 'another', 'train', 3))
  draws = [policy.answer([c], threshold=0.0, temperature=3.0, seed=4)[0].tokens for c in (contexts[0], twin)]
  assert draws[0] != draws[1]


def test_guide_takes_text_as_text(policy):
  plain = policy.guide(goal='put a mug in shelf', observation='You see a drawer 1.', threshold=0.0)
  assert plain == policy.answer([Context(Task('', '', '', 0), 'put a mug in shelf', 'You see a drawer 1.')], threshold=0.0)[0]
  for text in ('[ABSTAIN]', '[GENERATE] [EOS]'):
    guided = policy.guide(goal=text, observation=text, threshold=0.0)
    assert guided.decision is Decision.GENERATE
    assert not {policy.tokenizer.abstain, policy.tokenizer.eos, policy.tokenizer.generate} & set(
      policy.prompt(Context(Task('', '', '', 0), text, text))
    )


def test_a_context_longer_than_the_policy_takes(policy, contexts):
  long = dataclasses.replace(contexts[0], observation='You see a drawer 1. ' * 40)
  with pytest.raises(ValueError, match=rf"context of task 'mug-drawer' has \d+ tokens, the policy takes at most {MAX_PROMPT}"):
    policy.answer([contexts[1], long], threshold=0.5)
  longest = next(n for n in range(80, 0, -1) if len(policy_module.policy_prompt(policy.tokenizer, _with(contexts[0], n))) == MAX_PROMPT)
  assert len(policy.answer([_with(contexts[0], longest)], threshold=0.0)[0].logps) >= 1  # exactly full fits


def _with(context, count):
  return dataclasses.replace(context, observation='?!' * count)


def test_broken_parameters_do_not_abstain(policy, contexts):
  broken = GuidancePolicy(
    policy.config, jax.tree.map(lambda leaf: leaf * jnp.nan, policy.params), policy.tokenizer, max_prompt=MAX_PROMPT, max_content=MAX_CONTENT
  )
  with pytest.raises(FloatingPointError, match="decision logit of task 'mug-drawer' is nan"):
    broken.answer(contexts, threshold=0.5)


def test_extreme_decisions_do_not_overflow(policy, contexts, monkeypatch):
  monkeypatch.setattr(policy, 'decision_logits', lambda contexts: np.array([-2000.0, 0.0, 2000.0], np.float32))
  with np.errstate(all='raise', under='ignore'):
    assert policy.p_generate(contexts[:3]).tolist() == [0.0, 0.5, 1.0]


def test_a_tokenizer_of_another_model(policy, tokenizer):
  config = dataclasses.replace(policy.config, vocab_size=50)
  with pytest.raises(ValueError, match=f'the tokenizer has {tokenizer.vocab_size} tokens, the model only 50'):
    GuidancePolicy(config, policy.params, tokenizer, max_prompt=8, max_content=2)


# Folders.


def test_a_saved_policy_answers_the_same(policy, contexts, tmp_path):
  policy.save(tmp_path / 'policy')
  again = load_policy(tmp_path / 'policy')
  assert again.fingerprint() == policy.fingerprint()
  assert (again.max_prompt, again.max_content) == (MAX_PROMPT, MAX_CONTENT)
  assert again.answer(contexts, threshold=0.5) == policy.answer(contexts, threshold=0.5)
  names = ['config.json', 'model.safetensors', 'policy.json', 'tokenizer.json', 'tokenizer_config.json']
  assert sorted(path.name for path in (tmp_path / 'policy').iterdir()) == names


def test_the_fingerprint_follows_what_the_policy_says(policy):
  def variant(params=None, **limits):
    fields = {'max_prompt': MAX_PROMPT, 'max_content': MAX_CONTENT} | limits
    return GuidancePolicy(policy.config, params or policy.params, policy.tokenizer, **fields).fingerprint()

  nudged = policy.params | {'final_norm': policy.params['final_norm'].at[0].add(1e-6)}
  assert variant() == policy.fingerprint()
  assert len({variant(), variant(nudged), variant(max_content=5)}) == 3


@pytest.mark.parametrize('name', ['policy.json', 'config.json', 'model.safetensors', 'tokenizer.json'])
def test_an_incomplete_folder_names_what_is_missing(policy, tmp_path, name):
  policy.save(tmp_path)
  (tmp_path / name).unlink()
  with pytest.raises(FileNotFoundError, match=name):
    load_policy(tmp_path)


def test_settings_that_do_not_belong_there(policy, tmp_path):
  policy.save(tmp_path)
  (tmp_path / 'policy.json').write_text(json.dumps({'max_prompt': 3}))
  with pytest.raises(ValueError, match="expected the fields grown, max_content, max_prompt, template, found {'max_prompt': 3}"):
    load_policy(tmp_path)
