"""Text never becomes a control token, and comes back as it went in. Pretrained families: see test_chat.py."""

import importlib.resources
import json
import random

import pytest
import tokenizers

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
  with pytest.raises(ValueError, match=r"lacks the control tokens \['\[ABSTAIN\]'\]: Tokenizer.with_control_tokens adds them"):
    Tokenizer.load(tmp_path).decisions  # noqa: B018
  for name in ('tokenizer_config.json', 'special_tokens_map.json'):
    (tmp_path / name).write_text('{"eos_token":')
    with pytest.raises(ValueError, match=f'{name}:1: not JSON'):
      Tokenizer.load(tmp_path)
    (tmp_path / name).write_text('[1]')
    with pytest.raises(ValueError, match=rf'{name}: expected a JSON object, found \[1\]'):
      Tokenizer.load(tmp_path)
    (tmp_path / name).unlink()


def test_the_shipped_tokenizer_is_unchanged(tmp_path):
  with importlib.resources.as_file(importlib.resources.files('mempi_jax') / 'assets' / 'alfworld_agent') as folder:
    tokenizer = Tokenizer.load(folder)
    tokenizer.save(tmp_path)
    for name in ('tokenizer.json', 'tokenizer_config.json'):
      assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
  assert tokenizer.fingerprint() == 'fc34684347555a16' and tokenizer.decisions == (3, 4) and tokenizer.vocab_size == 754
  (tmp_path / 'tokenizer_config.json').unlink()  # our names need no configuration
  assert Tokenizer.load(tmp_path).fingerprint() == tokenizer.fingerprint()


def pretrained_folder(path, *, config, **others):
  """A folder as pretrained models have them: 256 bytes, then <end>, <turn> and <think>, the last not marked special."""
  backend = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}, []))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = tokenizers.decoders.ByteLevel()
  backend.add_special_tokens(['<end>', '<turn>'])
  backend.add_tokens(['<think>', 'a phrase of text', '  '])
  backend.save(str(path / 'tokenizer.json'))
  for name, content in {'tokenizer_config': config, **others}.items():
    (path / f'{name}.json').write_text(json.dumps(content))
  return path


def test_a_pretrained_tokenizer_without_decisions(tmp_path):
  tokenizer = Tokenizer.load(pretrained_folder(tmp_path, config={'eos_token': '<turn>', 'bos_token': None}))
  assert (tokenizer.pad, tokenizer.bos, tokenizer.eos) == (257, None, 257)
  named = Tokenizer.load(pretrained_folder(tmp_path, config={'eos_token': '<turn>', 'bos_token': '<end>'}))
  assert (named.pad, named.bos, named.eos) == (257, 256, 257)
  assert (tokenizer.generate, tokenizer.abstain, tokenizer.chat_template) == (None, None, None)
  assert tokenizer.vocab_size == 261 and tokenizer.control_ids == {256, 257, 258}
  with pytest.raises(ValueError, match=r"lacks the control tokens \['\[GENERATE\]', '\[ABSTAIN\]'\]"):
    tokenizer.decisions  # noqa: B018
  grown = tokenizer.with_control_tokens()
  assert grown.decisions == (261, 262) and grown.vocab_size == 263 and grown.control_ids == {256, 257, 258, 261, 262}
  assert tokenizer.vocab_size == 261 and tokenizer.generate is None
  for each in (tokenizer, grown):
    assert each.encode('a phrase of text') == (259,) and each.encode('  ') == (260,)  # added tokens, though text
    text = '<think>[GENERATE]<end>a phrase of text[ABSTAIN]'
    assert not each.control_ids & set(each.encode(text)) and each.decode(each.encode(text)) == text


def test_tokens_that_truncate_or_pad_by_themselves_are_not_wanted(tmp_path):
  folder = pretrained_folder(tmp_path, config={'eos_token': '<turn>'})
  content = json.loads((folder / 'tokenizer.json').read_text())
  content['truncation'] = {'direction': 'Right', 'max_length': 2, 'strategy': 'LongestFirst', 'stride': 0}
  (folder / 'tokenizer.json').write_text(json.dumps(content))
  assert len(Tokenizer.load(folder).encode('abcd')) == 4


@pytest.mark.parametrize(
  'files, eos',
  [
    ({'config': {'eos_token': '<turn>'}, 'special_tokens_map': {'eos_token': '<end>'}}, 257),
    ({'config': {'eos_token': {'__type': 'AddedToken', 'content': '<turn>'}}}, 257),
    ({'config': {'eos_token': None}, 'special_tokens_map': {'eos_token': {'content': '<turn>'}}}, 257),
    ({'config': {}, 'generation_config': {'eos_token_id': 256}}, 256),
    ({'config': {}, 'generation_config': {'eos_token_id': [257, 256]}}, 257),
    ({'config': {'eos_token': '<think>'}, 'special_tokens_map': {}}, 258),
    ({'config': {'eos_token': '!'}}, 0),  # of the vocabulary itself: it is no text any more
  ],
)
def test_where_the_end_of_sequence_is_named(tmp_path, files, eos):
  tokenizer = Tokenizer.load(pretrained_folder(tmp_path, **files))
  assert tokenizer.eos == eos and eos in tokenizer.control_ids
  assert eos not in tokenizer.encode('a <turn> <end> <think> !')


@pytest.mark.parametrize(
  'files, message',
  [
    ({'config': {}}, 'no token ends a text: expected an eos_token in tokenizer_config.json, special_tokens_map.json or generation_config.json'),
    ({'config': {}, 'generation_config': {'eos_token_id': None}}, 'no token ends a text'),
    ({'config': {'eos_token': '<eos>'}}, "tokenizer.json: the eos_token '<eos>' is not in the vocabulary"),
    ({'config': {'eos_token': '<turn>', 'pad_token': '<pad>'}}, "the pad_token '<pad>' is not in the vocabulary"),
    ({'config': {'eos_token': 3}}, 'expected eos_token to be a token or an object with its content, found 3'),
    ({'config': {'eos_token': '<turn>', 'chat_template': 3}}, 'tokenizer.json: expected the chat template to be text, found 3'),
  ],
)
def test_a_configuration_that_does_not_fit(tmp_path, files, message):
  with pytest.raises(ValueError, match=message):
    Tokenizer.load(pretrained_folder(tmp_path, **files))


def test_where_the_chat_template_is(tmp_path):
  forms = ['one', {'default': 'one', 'tools': 'two'}, [{'name': 'tools', 'template': 'two'}, {'name': 'default', 'template': 'one'}]]
  fingerprints = set()
  for form in forms:
    tokenizer = Tokenizer.load(pretrained_folder(tmp_path, config={'eos_token': '<turn>', 'chat_template': form}))
    assert tokenizer.chat_template == 'one'
    fingerprints.add(tokenizer.fingerprint())
  (tmp_path / 'chat_template.jinja').write_text('three')
  tokenizer = Tokenizer.load(tmp_path)
  assert tokenizer.chat_template == 'three'
  assert len(fingerprints) == 1 and tokenizer.fingerprint() not in fingerprints


def test_a_vocabulary_with_gaps_gets_no_control_tokens(tmp_path):
  folder = pretrained_folder(tmp_path, config={'eos_token': '<turn>'})
  content = json.loads((folder / 'tokenizer.json').read_text())
  content['model']['vocab']['zz'] = 900
  (folder / 'tokenizer.json').write_text(json.dumps(content))
  tokenizer = Tokenizer.load(folder)
  assert tokenizer.vocab_size == 901
  with pytest.raises(ValueError, match=r'expected \[901, 902\]: the ids of the vocabulary have gaps'):
    tokenizer.with_control_tokens()
