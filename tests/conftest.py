"""What tests of several rooms share: a tokenizer of a toy world, and a guidance policy and an agent's model of a few thousand parameters."""

import os
import tempfile

import pytest

from mempi_jax.runtime.workdir import CACHE_VARIABLE

WORLD_TEXTS = [
  f'You arrive at {place} {i}. On the {place} {i}, you see a {thing} {i}, and a {other} {i + 1}.\n> take {thing} {i} from {place} {i}\n'
  f'Goal: put a {thing} in {place}.\nGuidance: the {thing} is usually in the {place}.\n'
  for i in range(1, 13)
  for place, thing, other in (('drawer', 'mug', 'apple'), ('shelf', 'soap bar', 'towel'), ('desk', 'pen', 'lamp'))
]


def pytest_configure(config):
  """What one test has compiled is there for the others, in whichever process they are: before JAX is imported, and gone at the end."""
  if CACHE_VARIABLE not in os.environ:
    folder = tempfile.TemporaryDirectory(prefix='mempi_jax_compiled_', ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    os.environ[CACHE_VARIABLE] = folder.name
    os.environ['JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES'] = 'none'
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'
    os.environ['JAX_COMPILATION_CACHE_MAX_SIZE'] = str(2**33)  # bytes; with a limit it is locked: nobody reads what is still being written


@pytest.fixture(scope='session')
def tokenizer():
  """A tokenizer trained on 36 short texts: 400 tokens, 12 of them phrases."""
  from mempi_jax.policy.tokenizer import train_tokenizer

  return train_tokenizer(WORLD_TEXTS, vocab_size=400, num_phrases=12)


@pytest.fixture(scope='session')
def dummy_model(tokenizer):
  """(config, params) of a dummy decoder for that tokenizer, its weights enlarged so that choices are clear."""
  import jax

  from mempi_jax.models.decoder import init_params
  from mempi_jax.models.presets import preset

  config = preset('dummy', tokenizer.vocab_size)
  params = init_params(config, jax.random.key(5))
  return config, jax.tree.map(lambda leaf: leaf * 6.0 if leaf.ndim == 2 else leaf, params)


@pytest.fixture(scope='session')
def finished(tmp_path_factory):
  """The working folder of a small run by the real commands, trained and evaluated in this process. Nobody may change it."""
  from mempi_jax import evaluate, train
  from tests.small_run import arguments

  workdir = tmp_path_factory.mktemp('finished')
  train.main(arguments(workdir))
  evaluate.main(arguments(workdir))
  return workdir


@pytest.fixture(scope='module')
def server():
  """A chat server in a process of its own (tests/chat_server.py)."""
  from tests import chat_server

  with chat_server.running() as running:
    yield running


@pytest.fixture
def no_key(monkeypatch):
  """No key of a chat endpoint in the environment, and no proxy before the server."""
  monkeypatch.delenv('OPENAI_API_KEY', raising=False)
  monkeypatch.setenv('no_proxy', '127.0.0.1')
