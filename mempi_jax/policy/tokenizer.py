"""The tokenizer of the small language models: byte-level BPE with whole phrases of the world as tokens, in Hugging Face format.

Text from outside (environments, users, models) is always encoded as plain text: the control tokens below have ids that no text can
produce, whatever it contains.
"""

from __future__ import annotations

import collections
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers

from mempi_jax.runtime import files

PAD, BOS, EOS, GENERATE, ABSTAIN = CONTROL_TOKENS = ('[PAD]', '[BOS]', '[EOS]', '[GENERATE]', '[ABSTAIN]')
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
  """Text to ids and back. `encode` treats everything, control tokens included, as plain text."""

  def __init__(self, backend: tokenizers.Tokenizer):
    backend.encode_special_tokens = True  # "[ABSTAIN]" in a text is nine characters, never a decision
    self.backend = backend
    self.vocab_size = backend.get_vocab_size()
    ids = [backend.token_to_id(token) for token in CONTROL_TOKENS]
    missing = [token for token, i in zip(CONTROL_TOKENS, ids, strict=True) if i is None]
    if missing:
      raise ValueError(f'the tokenizer lacks the control tokens {missing}: expected all of {list(CONTROL_TOKENS)}')
    self.pad, self.bos, self.eos, self.generate, self.abstain = ids
    self._cache: dict[str, tuple[int, ...]] = {}

  @classmethod
  def load(cls, folder: str | Path) -> Tokenizer:
    """Reads `tokenizer.json` in a folder; a FileNotFoundError names it when it is absent, a ValueError when it is broken."""
    path = Path(folder) / 'tokenizer.json'
    if not path.is_file():
      raise FileNotFoundError(f'no tokenizer at {path}: expected a tokenizer.json in Hugging Face format')
    try:
      backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001  the library raises nothing narrower
      raise ValueError(f'{path}: not a tokenizer in Hugging Face format: {error}') from None
    return cls(backend)

  def save(self, folder: str | Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`, which transformers' AutoTokenizer reads."""
    config = {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'pad_token': PAD,
      'bos_token': BOS,
      'eos_token': EOS,
      'split_special_tokens': True,  # there too, "[ABSTAIN]" in a text is plain text
      'clean_up_tokenization_spaces': False,
    }
    files.write_text(Path(folder) / 'tokenizer.json', self.backend.to_str(pretty=True) + '\n')
    files.write_json(Path(folder) / 'tokenizer_config.json', config)

  def encode(self, text: str) -> tuple[int, ...]:
    """Ids of a text, never a control token's. Repeated texts (observations repeat a lot) are looked up.

    Lone surrogates, which are no characters, become question marks; any other text comes back from `decode` as it was.
    """
    if text not in self._cache:
      if len(self._cache) >= 100_000:
        self._cache.clear()
      self._cache[text] = tuple(self.backend.encode(_without_surrogates(text), add_special_tokens=False).ids)
    return self._cache[text]

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids; control tokens are left out, so that generated text cannot spell one by its id."""
    return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

  def fingerprint(self) -> str:
    """A hash of everything that the tokenizer does."""
    return hashlib.sha256(self.backend.to_str().encode()).hexdigest()[:16]
