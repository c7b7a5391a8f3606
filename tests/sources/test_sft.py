"""Stage 1's batches: every entry once an epoch, abstain targets only where the agent succeeded alone."""

import jax
import numpy as np
import pytest

from mempi_jax.experience.bank import BankEntry
from mempi_jax.models.decoder import init_params
from mempi_jax.models.presets import preset
from mempi_jax.policy.policy import GuidancePolicy
from mempi_jax.policy.tokenizer import train_tokenizer
from mempi_jax.sources.sft import SftSource

GUIDANCE = 'the mug is usually in the drawer.'


@pytest.fixture(scope='module')
def policy():
  texts = ['put a mug in shelf', 'you see a drawer 1, a shelf 1.', GUIDANCE] * 30
  tokenizer = train_tokenizer(texts, 320, 4)
  config = preset('dummy', tokenizer.vocab_size)
  return GuidancePolicy(config, init_params(config, jax.random.key(0)), tokenizer, max_prompt=64, max_content=16)


def entries(count: int) -> list[BankEntry]:
  return [
    BankEntry('alfworld', f'g{i}', 'train', i, f'put a mug in shelf {i}', 'you see a drawer 1.', GUIDANCE, ('e',), i % 2 == 0)
    for i in range(count)
  ]


def prompts_of(batch) -> list[tuple[int, ...]]:
  return [tuple(batch.tokens[r][batch.branch[r] == 0]) for r in range(len(batch.tokens)) if batch.valid[r]]


def test_an_epoch_sees_every_entry_once(policy):
  source = SftSource(entries(20), policy, batch_size=4, abstain_share=0.0, validation=0.2, seed=0)
  assert source.num_examples == 16
  seen = [prompt for step in range(4) for prompt in prompts_of(source.next(step, None)[0])]
  assert sorted(seen) == sorted(tuple(policy.prompt(e.context)) for e in entries(20)[:16])
  held = [prompt for batch in source.validation_batches() for prompt in prompts_of(batch)]
  assert sorted(held) == sorted(tuple(policy.prompt(e.context)) for e in entries(20)[16:])


def test_a_step_depends_on_nothing_but_itself(policy):
  one = SftSource(entries(20), policy, batch_size=4, abstain_share=0.5, validation=0.0, seed=3)
  for step in range(7):
    one.next(step, None)
  other = SftSource(entries(20), policy, batch_size=4, abstain_share=0.5, validation=0.0, seed=3)
  np.testing.assert_array_equal(one.next(7, None)[0].tokens, other.next(7, None)[0].tokens)
  different = SftSource(entries(20), policy, batch_size=4, abstain_share=0.5, validation=0.0, seed=4)
  assert (different.next(7, None)[0].tokens != one.next(7, None)[0].tokens).any()


def test_abstain_targets(policy):
  source = SftSource(entries(200), policy, batch_size=10, abstain_share=0.5, validation=0.0, seed=0)
  solved = {tuple(policy.prompt(e.context)): e.solved_alone for e in entries(200)}
  abstaining = 0
  for step in range(20):
    batch, _ = source.next(step, None)
    for row, prompt in enumerate(prompts_of(batch)):
      if batch.decision_target[row] == 0.0:
        abstaining += 1
        assert solved[prompt] and not batch.content_mask[row].any()
      else:
        content = [t for t, m in zip(batch.targets[row], batch.content_mask[row]) if m]
        assert content[-1] == policy.tokenizer.eos and policy.tokenizer.decode(content[:-1]).strip() == GUIDANCE
  assert 35 <= abstaining <= 65  # half of the hundred solved ones


def test_a_bank_too_small_and_guidance_too_long(policy):
  with pytest.raises(ValueError, match='3 training entries cannot fill a batch of 4'):
    SftSource(entries(3), policy, batch_size=4, abstain_share=0.0, validation=0.0, seed=0)
  long = [e.__class__(**{f: getattr(e, f) for f in e.__dataclass_fields__} | {'guidance': 'word ' * 60}) for e in entries(4)]
  with pytest.raises(ValueError, match="bank entry 'g0' has .* tokens, at most 16"):
    SftSource(long, policy, batch_size=4, abstain_share=0.0, validation=0.0, seed=0)
