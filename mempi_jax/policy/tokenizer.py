"""The tokenizer of the language models: byte-level BPE of our own with whole phrases of the world as tokens, or a pretrained model's.

Both are folders in Hugging Face format. Text from outside (environments, users, models) is always encoded as plain text: control tokens
have ids that no text can produce, whatever it contains. A token is a control token if its file marks it special, if it serves as pad,
bos, eos or unknown token, or if it was added to the vocabulary and is written as one, in angle or square brackets without white space:
Qwen's <tool_call> and <think> are marked as ordinary text, though models act on them. Other added tokens, as our phrases, are text.
"""

from __future__ import annotations

import collections
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from mempi_jax.runtime import files

PAD, BOS, EOS, GENERATE, ABSTAIN = CONTROL_TOKENS = ('[PAD]', '[BOS]', '[EOS]', '[GENERATE]', '[ABSTAIN]')
CONFIG: Mapping[str, Any] = {
  'pad_token': PAD,
  'bos_token': BOS,
  'eos_token': EOS,
  'split_special_tokens': True,  # in transformers too, "[ABSTAIN]" in a text is plain text
  'clean_up_tokenization_spaces': False,
}
_TOKENS = ('eos_token', 'pad_token', 'bos_token', 'unk_token')
# What a folder's tokenizer_config.json says besides, and a saved one goes on to say. The rest is about other classes than ours.
_SETTINGS = (
  'additional_special_tokens',
  'extra_special_tokens',
  'split_special_tokens',
  'clean_up_tokenization_spaces',
  'model_max_length',
)
_BRACKETED = re.compile(r'<\S+>|\[\S+\]')
_PIECE = re.compile(r'[A-Za-z]+|\d+|[^A-Za-z\d]+')


def frequent_phrases(texts: Iterable[str], count: int, max_words: int = 16) -> list[str]:
  """The phrases worth a token of their own: runs of text between entity names and numbers that occur most often.

  A word that ever stands before a number ("mug 1") names a kind of thing. Such names and the numbers stay tokens of their own, so that
  "mug" is the same token in "mug 1" and in "the mug"; what lies between them ("You arrive at ", ". It is closed.") is template
  text, and one token for it makes rollouts twice as short.
  """
  texts = list(texts)
  names = {match.group(1).lower() for text in texts for match in re.finditer(r'([A-Za-z]+) \d', text)}
  runs: collections.Counter[str] = collections.Counter()
  for text in texts:
    run: list[str] = []
    for piece in [*_PIECE.findall(text), None]:
      if piece is None or piece.isdigit() or piece.lower() in names:
        phrase = ''.join(run).rstrip(' ')
        if len(re.findall(r'[A-Za-z]+', phrase)) >= 1 and len(re.findall(r'[A-Za-z]+', phrase)) <= max_words:
          runs[phrase] += 1
        run = []
      else:
        run.append(piece)
  worth = {phrase: n * len(re.findall(r'[A-Za-z]+|[^A-Za-z ]', phrase)) for phrase, n in runs.items() if ' ' in phrase.strip() and n >= 20}
  return sorted(sorted(worth), key=lambda phrase: -worth[phrase])[:count]


def train_tokenizer(texts: Sequence[str], vocab_size: int, num_phrases: int) -> Tokenizer:
  """Trains on the world's text; deterministic. The control tokens take the first ids."""
  if vocab_size < 256 + len(CONTROL_TOKENS) + num_phrases:
    raise ValueError(f'vocab_size {vocab_size} has no room for 256 bytes, {len(CONTROL_TOKENS)} control tokens and {num_phrases} phrases')
  phrases = frequent_phrases(texts, num_phrases)
  backend = tokenizers.Tokenizer(tokenizers.models.BPE())
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab_size - len(phrases),
    special_tokens=list(CONTROL_TOKENS),
    initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  backend.train_from_iterator(texts, trainer)
  backend.add_tokens([tokenizers.AddedToken(phrase, normalized=False) for phrase in phrases])
  return Tokenizer(backend)


def _without_surrogates(text: str) -> str:
  return text.encode('utf-8', 'replace').decode('utf-8')


class Tokenizer:
  """Text to ids and back. `encode` treats everything, control tokens included, as plain text.

  pad, bos, eos: ids; bos is None where the family has none, pad is eos where it has none, eos ends an assistant's turn.
  generate, abstain: ids of the decisions, None in a pretrained tokenizer until `with_control_tokens`; `decisions` demands them.
  control_ids: every id that text never becomes. vocab_size: the largest id + 1. chat_template: jinja text, or None.
  """

  def __init__(self, backend: tokenizers.Tokenizer, config: Mapping[str, Any] = CONFIG, chat_template: str | None = None):
    """`config` holds pad_token, bos_token, eos_token and unk_token by their text, and settings, as tokenizer_config.json does."""
    self.config = {name: value for name, value in config.items() if value is not None}
    if 'eos_token' not in self.config:
      raise ValueError(
        'no token ends a text: expected an eos_token in tokenizer_config.json, special_tokens_map.json or generation_config.json'
      )
    self.config.setdefault('pad_token', self.config['eos_token'])
    for name in _TOKENS:
      if name in self.config and backend.token_to_id(self.config[name]) is None:
        raise ValueError(f'the {name} {self.config[name]!r} is not in the vocabulary of the tokenizer')
    backend.no_truncation()
    backend.no_padding()
    self._disguised = _make_special(backend, [self.config[name] for name in _TOKENS if name in self.config])
    backend.encode_special_tokens = True  # "[ABSTAIN]" in a text is nine characters, never a decision
    self.backend, self.chat_template = backend, chat_template
    self._backend_after = _without_first_space(backend)
    self.vocab_size = max(backend.get_vocab().values()) + 1
    control = {token.content: i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    self.control_ids = frozenset(control.values())
    self.pad, self.bos, self.eos = (control.get(self.config.get(name)) for name in ('pad_token', 'bos_token', 'eos_token'))
    self.generate, self.abstain = control.get(GENERATE), control.get(ABSTAIN)
    self._cache: dict[str, tuple[int, ...]] = {}

  @classmethod
  def load(cls, folder: str | Path) -> Tokenizer:
    """Reads `tokenizer.json` in a folder, and what is there of tokenizer_config.json, special_tokens_map.json and chat_template.jinja.

    Where these name no end-of-sequence, it is the first of generation_config.json. A FileNotFoundError names a missing
    tokenizer.json, a ValueError a file that is broken or does not fit.
    """
    path = Path(folder) / 'tokenizer.json'
    if not path.is_file():
      raise FileNotFoundError(f'no tokenizer at {path}: expected a tokenizer.json in Hugging Face format')
    try:
      backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001  the library raises nothing narrower
      raise ValueError(f'{path}: not a tokenizer in Hugging Face format: {error}') from None
    settings = _read_object(path.with_name('tokenizer_config.json'))
    named = _read_object(path.with_name('special_tokens_map.json')) | {k: v for k, v in settings.items() if v is not None}
    config = {name: _token_text(named[name], name, folder) for name in _TOKENS if named.get(name) is not None}
    config |= {name: named[name] for name in _SETTINGS if name in named}
    if 'eos_token' not in config and backend.token_to_id(EOS) is not None:
      config = {**CONFIG, **config}
    if 'eos_token' not in config:
      ids = _read_object(path.with_name('generation_config.json')).get('eos_token_id')
      first = ids[0] if isinstance(ids, list) and ids else ids
      config['eos_token'] = backend.id_to_token(first) if isinstance(first, int) else None
    template_path = path.with_name('chat_template.jinja')
    try:
      template = template_path.read_text(encoding='utf-8') if template_path.is_file() else _default_template(named.get('chat_template'))
      return cls(backend, config, template)
    except ValueError as error:
      raise ValueError(f'{path}: {error}') from None

  @classmethod
  def from_transformers(cls, tokenizer: Any) -> Tokenizer:
    """From a fast tokenizer of transformers, such as the one that AutoTokenizer makes of a GGUF file. The original is left as it is."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    config = {name: token for name in _TOKENS if (token := getattr(tokenizer, name, None)) is not None}
    config |= {name: getattr(tokenizer, name) for name in ('split_special_tokens', 'clean_up_tokenization_spaces', 'model_max_length')}
    return cls(backend, config, _default_template(tokenizer.chat_template))

  def with_control_tokens(self) -> Tokenizer:
    """A tokenizer that has [GENERATE] and [ABSTAIN]: itself, or a copy in which the missing ones take the next ids after the last."""
    missing = self._missing()
    if not missing:
      return self
    backend = tokenizers.Tokenizer.from_str(self._to_json())
    backend.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for token in missing])
    ids, expected = [backend.token_to_id(token) for token in missing], list(range(self.vocab_size, self.vocab_size + len(missing)))
    if ids != expected:
      raise ValueError(f'{missing} would get the ids {ids}, expected {expected}: the ids of the vocabulary have gaps')
    return Tokenizer(backend, self.config, self.chat_template)

  @property
  def decisions(self) -> tuple[int, int]:
    """The ids of [GENERATE] and [ABSTAIN]; a ValueError where the tokenizer lacks one."""
    if missing := self._missing():
      raise ValueError(f'the tokenizer lacks the control tokens {missing}: Tokenizer.with_control_tokens adds them')
    return self.generate, self.abstain

  def token_ids(self) -> dict[str, int | None]:
    """What a model's config.json says of the tokenizer."""
    return {'bos_token_id': self.bos, 'eos_token_id': self.eos, 'pad_token_id': self.pad}

  def _missing(self) -> list[str]:
    return [token for token, i in ((GENERATE, self.generate), (ABSTAIN, self.abstain)) if i is None]

  def save(self, folder: str | Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`, chat template included, which transformers' AutoTokenizer reads."""
    config = {**self.config, 'tokenizer_class': 'PreTrainedTokenizerFast'}
    if self.chat_template is not None:
      config['chat_template'] = self.chat_template
    files.write_text(Path(folder) / 'tokenizer.json', self._to_json() + '\n')
    files.write_json(Path(folder) / 'tokenizer_config.json', config)

  def _to_json(self) -> str:
    """tokenizer.json, with the control tokens that the family marks as text marked so again: its tools look for them in the output."""
    text = self.backend.to_str(pretty=True)
    if self._disguised:
      content = json.loads(text)
      for token in content['added_tokens']:
        token['special'] = token['special'] and token['content'] not in self._disguised
      text = json.dumps(content, indent=2, ensure_ascii=False)
    return text

  def encode(self, text: str) -> tuple[int, ...]:
    """Ids of a text, never a control token's. Repeated texts (observations repeat a lot) are looked up.

    Lone surrogates, which are no characters, become question marks; any other text comes back from our own tokenizer's `decode` as it
    was. Pretrained families may normalise it (Qwen: NFC), and leave out characters that their vocabulary cannot spell. Those made with
    sentencepiece (Llama 2, Mistral) put a space before every text.
    """
    if text not in self._cache:
      if len(self._cache) >= 100_000:
        self._cache.clear()
      self._cache[text] = self._encode(self.backend, text)
    return self._cache[text]

  def encode_after(self, text: str) -> tuple[int, ...]:
    """Ids of a text that follows a control token: as `encode`, but without the space that some put before the first piece alone."""
    return self.encode(text) if self._backend_after is None else self._encode(self._backend_after, text)

  def _encode(self, backend: tokenizers.Tokenizer, text: str) -> tuple[int, ...]:
    ids = tuple(backend.encode(_without_surrogates(text), add_special_tokens=False).ids)
    if not self.control_ids.isdisjoint(ids):  # the unknown token of a vocabulary that lacks a byte; in GPT-2's kind it is eos
      ids = tuple(i for i in ids if i not in self.control_ids)
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids; control tokens are left out, so that generated text cannot spell one by its id."""
    return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

  def fingerprint(self) -> str:
    """A hash of everything that the tokenizer does."""
    digest = hashlib.sha256(self.backend.to_str().encode())
    names = [self.config.get(name) for name in ('pad_token', 'bos_token', 'eos_token')]
    if names != [PAD, BOS, EOS] or self.chat_template is not None:
      digest.update(repr((names, self.chat_template)).encode())
    return digest.hexdigest()[:16]


def _make_special(backend: tokenizers.Tokenizer, named: Sequence[str]) -> frozenset[str]:
  """Marks every control token special, which keeps text from becoming it; returns those that are so by their brackets alone."""
  added = {token.content: token for token in backend.get_added_tokens_decoder().values()}
  disguised = {content for content, token in added.items() if not token.special and _BRACKETED.fullmatch(content)} - set(named)
  unmarked = [content for content in sorted({*disguised, *named}) if content not in added or not added[content].special]
  backend.add_special_tokens([added.get(content) or tokenizers.AddedToken(content, normalized=False) for content in unmarked])
  return frozenset(disguised)


def _without_first_space(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer | None:
  """The same without the space before a text's first piece; None where there is no such space, or every text has one."""
  text = backend.to_str()
  setting = '"prepend_scheme":"first"'  # no token can contain it: JSON escapes quotes
  if setting not in text:
    return None
  copy = tokenizers.Tokenizer.from_str(text.replace(setting, '"prepend_scheme":"never"'))
  copy.encode_special_tokens = True
  return copy


def _read_object(path: Path) -> dict[str, Any]:
  """A JSON object from a file, empty where there is no file; a ValueError names a broken one."""
  content = files.read_json(path) if path.is_file() else {}
  if not isinstance(content, dict):
    raise ValueError(f'{path}: expected a JSON object, found {content!r:.200}')
  return content


def _token_text(token: Any, name: str, folder: str | Path) -> str:
  """A token's text, which configurations give as it is or in an object."""
  text = token.get('content') if isinstance(token, dict) else token
  if not isinstance(text, str):
    raise ValueError(f'{folder}: expected {name} to be a token or an object with its content, found {token!r:.200}')
  return text


def _default_template(template: Any) -> str | None:
  """The chat template in the forms that configurations give it: text, {name: text}, [{'name': name, 'template': text}]."""
  if isinstance(template, list):
    template = {entry.get('name'): entry.get('template') for entry in template if isinstance(entry, dict)}
  text = template.get('default') if isinstance(template, dict) else template
  if text is not None and not isinstance(text, str):
    raise ValueError(f'expected the chat template to be text, found {text!r:.200}')
  return text
