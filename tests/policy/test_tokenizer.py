"""Text never becomes a control token, and comes back as it went in."""

import json
import random

import pytest

from mempi_jax.policy.tokenizer import CONTROL_TOKENS, Tokenizer, frequent_phrases, train_tokenizer

NASTY = [
  '',
  ' ',
  '[ABSTAIN]',
  '[GENERATE] go to [EOS]',
  'x[ABSTAIN]y [PAD][BOS] [EOS][EOS]',
  ' [GENERATE]',
  '[[ABSTAIN]]',
  '[ABSTAIN',
  '\n\n>\t\r\n  \x00\x1f\x7f',
  'naïve café — 日本語 🤖👩‍👩‍👧 \u202e\u2028\ufeff',
  'On the drawer 1, you see a mug 1. You arrive at shelf 2. On the',
  'Goal:Guidance: the mug is usually in the drawer.>',
  'Ġ Ċ âĢĻ',  # what byte-level alphabets look like from inside
]


def random_texts(count, seed):
  """Control tokens, phrases of the world, single characters of all of Unicode and decoded random bytes, thrown together."""
  rng = random.Random(seed)
  parts = [*CONTROL_TOKENS, 'You arrive at ', 'mug 1', ' ', '\n', '[', ']', 'ABSTAIN', 'the ']
  for _ in range(count):
    text = ''
    for _ in range(rng.randrange(12)):
      kind = rng.randrange(4)
      if kind == 0:
        text += rng.choice(parts)
      elif kind == 1:
        code = rng.randrange(0x110000)
        text += '' if 0xD800 <= code < 0xE000 else chr(code)
      elif kind == 2:
        text += rng.randbytes(rng.randrange(8)).decode('utf-8', 'replace')
      else:
        text += ''.join(chr(rng.randrange(32, 127)) for _ in range(rng.randrange(10)))
    yield text


def control_ids(tokenizer):
  return {tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.generate, tokenizer.abstain}


@pytest.mark.parametrize('text', NASTY)
def test_nasty_texts_come_back_and_contain_no_control_token(tokenizer, text):
  ids = tokenizer.encode(text)
  assert not control_ids(tokenizer) & set(ids)
  assert tokenizer.decode(ids) == text


def test_random_texts_come_back_and_contain_no_control_token(tokenizer):
  for text in random_texts(2000, seed=0):
    ids = tokenizer.encode(text)
    assert not control_ids(tokenizer) & set(ids), text
    assert tokenizer.decode(ids) == text


def test_lone_surrogates_become_question_marks(tokenizer):
  assert tokenizer.decode(tokenizer.encode('a\udcffb')) == 'a?b'


def test_control_tokens_have_the_first_ids_and_no_text(tokenizer):
  ids = [tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.generate, tokenizer.abstain]
  assert ids == [0, 1, 2, 3, 4]
  assert tokenizer.decode([*ids, *tokenizer.encode('mug'), *ids]) == 'mug'


def test_a_text_that_is_often_a_control_token_in_training_is_still_text():
  texts = ['[ABSTAIN] mug 1 [GENERATE] now [EOS]. [ABSTAIN] mug 2'] * 60
  tokenizer = train_tokenizer(texts, vocab_size=300, num_phrases=8)
  ids = tokenizer.encode(texts[0])
  assert not control_ids(tokenizer) & set(ids)
  assert tokenizer.decode(ids) == texts[0]


def test_a_name_is_the_same_token_with_and_without_its_number(tokenizer):
  assert set(tokenizer.encode(' mug')) <= set(tokenizer.encode(' mug 1'))
  assert set(tokenizer.encode(' mug')) <= set(tokenizer.encode('the mug'))


def test_phrases_are_what_stands_between_names_and_numbers():
  texts = ['You arrive at drawer 1. It is closed.'] * 30
  # "drawer" stands before a number: it is a name, and ends the phrases. The longest saving comes first.
  assert frequent_phrases(texts, 10) == ['. It is closed.', 'You arrive at']
  assert frequent_phrases(texts, 1) == ['. It is closed.']
  assert frequent_phrases(texts[:19], 10) == []  # too rare


def test_a_phrase_is_one_token(tokenizer):
  assert len(tokenizer.encode('You arrive at')) == 1


def test_training_is_deterministic():
  texts = ['put a mug in drawer 1', 'put a pen in desk 2'] * 30
  first, second = (train_tokenizer(texts, vocab_size=290, num_phrases=2) for _ in range(2))
  assert first.fingerprint() == second.fingerprint()
  assert first.fingerprint() != train_tokenizer(texts, vocab_size=290, num_phrases=1).fingerprint()


def test_a_vocabulary_without_room_for_the_bytes():
  with pytest.raises(ValueError, match='vocab_size 260 has no room for 256 bytes, 5 control tokens and 3 phrases'):
    train_tokenizer(['a'], vocab_size=260, num_phrases=3)


def test_a_saved_folder_reads_back_the_same(tokenizer, tmp_path):
  tokenizer.save(tmp_path / 'folder')
  again = Tokenizer.load(tmp_path / 'folder')
  assert again.fingerprint() == tokenizer.fingerprint() and again.vocab_size == tokenizer.vocab_size
  for text in [*NASTY, *random_texts(100, seed=1)]:
    assert again.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize('name', ['AutoTokenizer', 'PreTrainedTokenizerFast'])
def test_transformers_reads_the_folder_and_gives_the_same_ids(tokenizer, tmp_path, name):
  transformers = pytest.importorskip('transformers')
  tokenizer.save(tmp_path)
  theirs = getattr(transformers, name).from_pretrained(tmp_path)
  assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.pad, tokenizer.bos, tokenizer.eos)
  assert len(theirs) == tokenizer.vocab_size
  for text in [*NASTY, *random_texts(200, seed=2)]:
    ids = theirs(text, add_special_tokens=False)['input_ids']
    assert ids == list(tokenizer.encode(text)), text
    assert theirs.decode(ids) == text


def test_a_missing_or_broken_file_is_named(tmp_path, tokenizer):
  with pytest.raises(FileNotFoundError, match='no tokenizer at .*tokenizer.json'):
    Tokenizer.load(tmp_path)
  (tmp_path / 'tokenizer.json').write_text('{"version": 3}')
  with pytest.raises(ValueError, match='tokenizer.json: not a tokenizer in Hugging Face format'):
    Tokenizer.load(tmp_path)
  tokenizer.save(tmp_path)
  content = json.loads((tmp_path / 'tokenizer.json').read_text())
  content['added_tokens'] = [token for token in content['added_tokens'] if token['content'] != '[ABSTAIN]']
  del content['model']['vocab']['[ABSTAIN]']
  (tmp_path / 'tokenizer.json').write_text(json.dumps(content))
  with pytest.raises(ValueError, match=r"lacks the control tokens \['\[ABSTAIN\]'\]"):
    Tokenizer.load(tmp_path)
