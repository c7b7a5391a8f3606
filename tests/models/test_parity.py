"""The decoder computes what transformers computes: random tiny models of every family, through their own checkpoint format.

With torch installed both are run side by side. Without it (as on Python 3.12 and 3.13 in continuous integration) the golden files stand
in, which `python tests/models/test_parity.py` writes from transformers. Weights come from a frozen random stream, so they need no file.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from mempi_jax.inference import cache
from mempi_jax.models.decoder import Decoder
from mempi_jax.models.hf import load_model, read_config, tensors_of

GOLDEN = Path(__file__).parent / 'golden'
BATCH, TIME, VOCAB = 3, 14, 61

LLAMA = {
  'model_type': 'llama', 'vocab_size': VOCAB, 'hidden_size': 24, 'intermediate_size': 40, 'num_hidden_layers': 2, 'num_attention_heads': 3,
  'num_key_value_heads': 3, 'max_position_embeddings': 64, 'rms_norm_eps': 1e-5, 'rope_theta': 10000.0, 'tie_word_embeddings': False,
}  # fmt: skip
QWEN2 = LLAMA | {'model_type': 'qwen2', 'num_attention_heads': 6, 'num_key_value_heads': 2, 'hidden_size': 48, 'rope_theta': 1e6, 'rms_norm_eps': 1e-6}
QWEN3 = QWEN2 | {'model_type': 'qwen3', 'head_dim': 16, 'num_attention_heads': 4, 'num_key_value_heads': 2, 'hidden_size': 40}
MISTRAL = LLAMA | {'model_type': 'mistral', 'num_attention_heads': 4, 'num_key_value_heads': 2, 'hidden_size': 32, 'sliding_window': None}
LLAMA3 = {'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0, 'original_max_position_embeddings': 16}
YARN = {'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 16}

CASES = {
  'llama2': LLAMA,
  'llama_one_kv_head': LLAMA | {'num_attention_heads': 5, 'num_key_value_heads': 1, 'hidden_size': 40, 'tie_word_embeddings': True},
  'llama_biases': LLAMA | {'attention_bias': True, 'mlp_bias': True, 'num_attention_heads': 6, 'num_key_value_heads': 2, 'hidden_size': 48},
  'llama_head_dim': LLAMA | {'head_dim': 12, 'num_hidden_layers': 3},
  'smollm2': LLAMA | {'num_attention_heads': 9, 'num_key_value_heads': 3, 'hidden_size': 72, 'rope_theta': 1e5, 'tie_word_embeddings': True},
  'llama_linear': LLAMA | {'rope_scaling': {'type': 'linear', 'factor': 2.5}},
  'llama_dynamic_short': LLAMA | {'rope_scaling': {'rope_type': 'dynamic', 'factor': 2.0}},
  'llama_dynamic_long': LLAMA | {'rope_scaling': {'rope_type': 'dynamic', 'factor': 2.0}, 'max_position_embeddings': 8},
  'llama3': LLAMA | {'rope_scaling': LLAMA3, 'num_attention_heads': 6, 'num_key_value_heads': 3, 'hidden_size': 48, 'rope_theta': 5e5},
  'llama3_new_fields': {name: value for name, value in LLAMA.items() if name != 'rope_theta'} | {'rope_parameters': LLAMA3 | {'rope_theta': 5e5}},
  'llama_yarn': LLAMA | {'rope_scaling': YARN},
  'qwen2': QWEN2,
  'qwen2_tied': QWEN2 | {'tie_word_embeddings': True, 'num_attention_heads': 7, 'num_key_value_heads': 1, 'hidden_size': 56},
  'qwen2_yarn': QWEN2 | {'rope_scaling': YARN | {'beta_fast': 16.0, 'beta_slow': 2.0, 'attention_factor': 1.3}},
  'qwen2_sliding': QWEN2 | {'use_sliding_window': True, 'sliding_window': 4, 'max_window_layers': 1, 'num_hidden_layers': 3},
  'qwen3': QWEN3,
  'qwen3_tied_bias': QWEN3 | {'tie_word_embeddings': True, 'attention_bias': True, 'num_attention_heads': 3, 'num_key_value_heads': 3},
  'qwen3_yarn': QWEN3 | {'rope_scaling': YARN | {'mscale': 0.7, 'mscale_all_dim': 1.0, 'truncate': False}},
  'qwen3_sliding': QWEN3 | {'use_sliding_window': True, 'sliding_window': 5, 'layer_types': ['sliding_attention', 'full_attention']},
  'mistral': MISTRAL,
  'mistral_sliding': MISTRAL | {'sliding_window': 5, 'num_hidden_layers': 3, 'head_dim': 10},
}


def paddings(case):
  """How rows are padded; the gradient is that of the last one. Under dynamic scaling beyond the model's length, transformers turns every row
  by the angles of the batch's longest one, and the decoder by its own: rows of one length alone can be compared."""
  return ('none',) if case == 'llama_dynamic_long' else ('none', 'left', 'right')


def write_folder(folder, case):
  """A checkpoint of a case: its config.json as it stands, random weights."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(CASES[case]))
  stream = np.random.RandomState(sorted(CASES).index(case))
  tensors = {}
  for tensor in sorted((t for parts in tensors_of(read_config(folder)).values() for t in parts), key=lambda t: t.name):
    values = stream.standard_normal(tensor.shape) * (0.3 if len(tensor.shape) == 2 else 0.2)
    tensors[tensor.name] = (values + (1.0 if 'norm' in tensor.name else 0.0)).astype(np.float32)
  save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
  return folder


def inputs(padding):
  """Tokens i32[B, T] and which are real, bool[B, T]; the rows have 14, 9 and 5 real tokens where there is padding."""
  tokens = np.random.RandomState(7).randint(0, VOCAB, (BATCH, TIME)).astype(np.int32)
  lengths = np.array([TIME] * BATCH if padding == 'none' else [TIME, 9, 5])
  right = np.arange(TIME) < lengths[:, None]
  return tokens, right[:, ::-1].copy() if padding == 'left' else right


def targets(real):
  """Which predictions the loss counts, bool[B, T - 1]: of a real token from a real one, past the third."""
  return real[:, 1:] & real[:, :-1] & (np.arange(TIME - 1) >= 3)


# Ours.


def our_logits(config, params, tokens, real):
  """Logits f32[B, T, V] of padded rows."""
  positions = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)
  mask = jnp.tril(jnp.ones((TIME, TIME), bool)) & real[:, None, :]
  hidden = Decoder(config).apply({'params': params}, tokens, positions, mask)
  return Decoder(config).apply({'params': params}, hidden, method='logits')


def our_loss(config, params, tokens, real):
  logps = jax.nn.log_softmax(our_logits(config, params, tokens, real)[:, :-1])
  chosen = jnp.take_along_axis(logps, tokens[:, 1:, None], axis=-1)[..., 0]
  counted = targets(real)
  return -jnp.where(counted, chosen, 0.0).sum() / counted.sum()


def our_figures(case, config, params):
  """What `their_figures` gives, from the decoder."""
  forward = jax.jit(lambda params, tokens, real: our_logits(config, params, tokens, real))
  logits = {padding: np.asarray(forward(params, *inputs(padding))) for padding in paddings(case)}
  gradients = jax.jit(lambda params, tokens, real: jax.grad(our_loss, argnums=1)(config, params, tokens, real))(params, *inputs(paddings(case)[-1]))
  found = {}
  for path, parts in tensors_of(config).items():
    leaf = gradients[path[0]] if len(path) == 1 else gradients[path[0]][path[1]]
    widths = [tensor.shape[0] for tensor in parts]
    pieces = [leaf] if path[-1] in ('embedding', 'head') else np.split(np.asarray(leaf), np.cumsum(widths)[:-1], axis=-1)
    for tensor, piece in zip(parts, pieces, strict=True):
      transposed = len(tensor.shape) == 2 and path[-1] not in ('embedding', 'head')
      found[tensor.name] = np.asarray(piece).T if transposed else np.asarray(piece)
  return logits, found


def decoded_logits(config, params, tokens):
  """Logits f32[B, T, V] by way of the key-value cache: a chunk of five tokens, then one by one, in runs of four that are written behind it."""
  extend, step = (
    jax.jit(lambda *arguments, method=method: Decoder(config).apply({'params': params}, *arguments, method=method))
    for method in ('extend', 'step')
  )
  rows, full = np.arange(BATCH), lambda number: np.full(BATCH, number, np.int32)
  hidden, new = extend(tokens[:, :5], full(0), None)
  store = cache.write(cache.init_store(config, BATCH, TIME), rows, full(0), full(5), new)
  parts, done = [hidden], 5
  while done < TIME:
    count, past, recent = min(4, TIME - done), cache.widen(store, config.dtype), cache.recent_cache(config, BATCH, 4)
    for index in range(count):
      hidden, recent = step(tokens[:, done + index], full(done), past, recent, np.int32(index))
      parts.append(hidden[:, None])
    store = cache.write(store, rows, full(done), full(count), cache.by_row(recent, BATCH))
    done += count
  return Decoder(config).apply({'params': params}, jnp.concatenate(parts, axis=1), method='logits')


# Theirs.


def their_figures(case, folder):
  """Logits by padding and the gradient of the loss by tensor name, from transformers."""
  import torch
  from transformers import AutoModelForCausalLM

  model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation='eager')
  logits = {}
  for padding in paddings(case):
    tokens, real = inputs(padding)
    positions = np.maximum(np.cumsum(real, axis=1) - 1, 0)
    with torch.no_grad():
      out = model(
        input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(real).long(), position_ids=torch.tensor(positions).long()
      )
    logits[padding] = out.logits.numpy()
  tokens, real = inputs(paddings(case)[-1])
  labels = np.where(np.concatenate([np.zeros((BATCH, 1), bool), targets(real)], axis=1), tokens, -100)
  model(input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(real).long(), labels=torch.tensor(labels).long()).loss.backward()
  return logits, {name: parameter.grad.numpy() for name, parameter in model.named_parameters() if parameter.grad is not None}


def probes(name, gradient):
  """Five numbers that stand for a gradient: its norm and its products with four random arrays."""
  stream = np.random.RandomState(sum(map(ord, name)))
  return np.array([np.linalg.norm(gradient)] + [float((stream.standard_normal(gradient.shape) * gradient).sum()) for _ in range(4)])


# Tests.


def relative(found, expected):
  return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.fixture(scope='module', params=sorted(CASES))
def model(request, tmp_path_factory):
  folder = write_folder(tmp_path_factory.mktemp('parity') / request.param, request.param)
  config, params = load_model(folder)
  return request.param, folder, config, params, our_figures(request.param, config, params)


def test_golden_logits_and_gradients(model):
  case, _, _, _, (logits, gradients) = model
  with np.load(GOLDEN / f'{case}.npz') as golden:
    for padding in paddings(case):
      np.testing.assert_allclose(logits[padding][inputs(padding)[1]], golden[f'logits_{padding}'], atol=1e-4)
    assert {name for name in golden if not name.startswith('logits_')} == set(gradients)
    for name, gradient in gradients.items():
      norm = golden[name][0]
      assert abs(np.linalg.norm(gradient) - norm) < 1e-3 * norm, name
      np.testing.assert_allclose(probes(name, gradient), golden[name], atol=1e-3 * norm)


def test_logits_and_gradients_beside_transformers(model):
  pytest.importorskip('torch', reason='torch is not installed: the golden files stand in')
  case, folder, _, _, (logits, gradients) = model
  their_logits, their_gradients = their_figures(case, folder)
  for padding in paddings(case):
    assert np.abs(logits[padding] - their_logits[padding])[inputs(padding)[1]].max() < 1e-4, padding
  assert set(gradients) == set(their_gradients)
  for name, gradient in gradients.items():
    assert relative(gradient, their_gradients[name]) < 1e-3, name


def test_decoding_with_the_cache_equals_the_whole_row(model):
  case, _, config, params, (logits, _) = model
  if case == 'llama_dynamic_long':
    pytest.skip('beyond max_position_embeddings dynamic scaling turns a whole row by other angles than the row had while it grew')
  np.testing.assert_allclose(decoded_logits(config, params, inputs('none')[0]), logits['none'], atol=1e-4)
  assert np.abs(logits['none']).max() > 1.0  # not a comparison of zeros


def write_golden():
  """Writes the golden files of every case, with transformers."""
  import tempfile

  GOLDEN.mkdir(exist_ok=True)
  for case in sorted(CASES):
    with tempfile.TemporaryDirectory() as temporary:
      logits, gradients = their_figures(case, write_folder(Path(temporary) / case, case))
    arrays = {f'logits_{padding}': logits[padding][inputs(padding)[1]].astype(np.float32) for padding in paddings(case)}
    np.savez_compressed(GOLDEN / f'{case}.npz', **arrays, **{name: probes(name, gradient) for name, gradient in gradients.items()})


if __name__ == '__main__':
  write_golden()
