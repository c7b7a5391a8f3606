"""GGUF files: the same model as a safetensors folder gives, whatever the quantisation; what is broken is named before anything is allocated."""

import json
import os
import subprocess
import sys
import unicodedata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from mempi_jax.models.gguf import load_gguf, load_gguf_tokenizer
from mempi_jax.models.hf import config_from_fields, load_model, tensors_of
from mempi_jax.models.rope import scaled_frequencies
from mempi_jax.runtime import files

gguf = pytest.importorskip('gguf', reason="the gguf package is not installed: pip install 'mempi_jax[gguf]'")
KINDS = gguf.GGMLQuantizationType

LLAMA = {
  'model_type': 'llama', 'vocab_size': 37, 'hidden_size': 64, 'intermediate_size': 96, 'num_hidden_layers': 2, 'num_attention_heads': 4,
  'num_key_value_heads': 2, 'head_dim': 16, 'max_position_embeddings': 64, 'rms_norm_eps': 1e-5, 'rope_theta': 50000.0, 'tie_word_embeddings': True,
}  # fmt: skip
QWEN2 = LLAMA | {'model_type': 'qwen2', 'rms_norm_eps': 1e-6, 'rope_theta': 1e6, 'num_attention_heads': 4}
LLAMA3 = {'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0, 'original_max_position_embeddings': 40}
YARN = {'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 32}
CASES = {
  'llama': (LLAMA, KINDS.F16),
  'llama_untied_biased': (LLAMA | {'attention_bias': True, 'mlp_bias': True, 'tie_word_embeddings': False}, KINDS.F32),
  'llama_one_kv_head': (LLAMA | {'num_key_value_heads': 1, 'num_attention_heads': 6}, KINDS.Q8_0),
  'llama_linear': (LLAMA | {'rope_scaling': {'rope_type': 'linear', 'factor': 2.5}}, KINDS.BF16),
  'llama3': (LLAMA | {'rope_scaling': LLAMA3, 'head_dim': 32}, KINDS.F32),
  'qwen2': (QWEN2, KINDS.Q8_0),
  'qwen2_yarn': (QWEN2 | {'rope_scaling': YARN, 'tie_word_embeddings': False}, KINDS.Q4_1),
  'qwen3': (QWEN2 | {'model_type': 'qwen3', 'head_dim': 32}, KINDS.F16),
}
GGUF_NAMES = {
  'model.embed_tokens': 'token_embd', 'model.norm': 'output_norm', 'lm_head': 'output', 'input_layernorm': 'attn_norm', 'q_proj': 'attn_q',
  'k_proj': 'attn_k', 'v_proj': 'attn_v', 'o_proj': 'attn_output', 'q_norm': 'attn_q_norm', 'k_norm': 'attn_k_norm',
  'post_attention_layernorm': 'ffn_norm', 'gate_proj': 'ffn_gate', 'up_proj': 'ffn_up', 'down_proj': 'ffn_down',
}  # fmt: skip


def gguf_name(name):
  module, kind = name.rsplit('.', 1)
  layer = f'blk.{module.split(".")[2]}.' if module.startswith('model.layers.') else ''
  return f'{layer}{GGUF_NAMES[module.split(".")[-1] if layer else module]}.{kind}'


def random_weights(fields):
  """Weights of a case by their Hugging Face names."""
  stream = np.random.RandomState(3)
  weights = {}
  for tensor in [t for parts in tensors_of(config_from_fields(fields)).values() for t in parts]:
    weights[tensor.name] = (stream.standard_normal(tensor.shape) * 0.3 + (1.0 if 'norm' in tensor.name else 0.0)).astype(np.float32)
  return weights


def permute(array, heads):
  """As llama.cpp's converter does it."""
  return array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def llama3_factors(scaling, head_dim, theta):
  """As llama.cpp's converter writes them."""
  factors = []
  for frequency in 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim):
    wavelength, old = 2 * np.pi / frequency, scaling['original_max_position_embeddings']
    low, high, factor = scaling['low_freq_factor'], scaling['high_freq_factor'], scaling['factor']
    smooth = (old / wavelength - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors.append(1.0 if wavelength < old / high else factor if wavelength > old / low else between)
  return np.array(factors, np.float32)


def write_gguf(path, fields, weights, kind, change=lambda writer: None, tensors=lambda tensors: tensors, raw=None):
  """A GGUF file as llama.cpp's converter writes it. `change` may add metadata, `tensors` may change the tensors, `raw` are quantised ones."""
  family, heads, kv_heads = fields['model_type'], fields['num_attention_heads'], fields['num_key_value_heads']
  writer = gguf.GGUFWriter(path, family)
  writer.add_block_count(fields['num_hidden_layers'])
  writer.add_embedding_length(fields['hidden_size'])
  writer.add_feed_forward_length(fields['intermediate_size'])
  writer.add_head_count(heads)
  writer.add_head_count_kv(kv_heads)
  writer.add_key_length(fields['head_dim'])
  writer.add_value_length(fields['head_dim'])
  writer.add_rope_dimension_count(fields['head_dim'])
  writer.add_rope_freq_base(fields['rope_theta'])
  writer.add_layer_norm_rms_eps(fields['rms_norm_eps'])
  writer.add_context_length(fields['max_position_embeddings'])
  scaling = fields.get('rope_scaling', {})
  extra = {}
  if scaling.get('rope_type') == 'llama3':
    extra['rope_freqs.weight'] = llama3_factors(scaling, fields['head_dim'], fields['rope_theta'])
  elif scaling:
    writer.add_string(f'{family}.rope.scaling.type', scaling['rope_type'])
    writer.add_rope_scaling_factor(scaling['factor'])
    if scaling['rope_type'] == 'yarn':
      writer.add_rope_scaling_orig_ctx_len(scaling['original_max_position_embeddings'])
  change(writer)
  stored = {}
  for name, array in weights.items():
    if family == 'llama' and ('q_proj' in name or 'k_proj' in name):
      array = permute(array, heads if 'q_proj' in name else kv_heads)
    stored[gguf_name(name)] = array
  for name, array in tensors(extra | stored).items():
    if array.ndim == 1:
      writer.add_tensor(name, array)
    elif array.dtype != np.float32:
      writer.add_tensor(name, array, raw_dtype=(raw or {}).get(name))
    else:
      writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def write_folder(folder, fields, weights, kind):
  """The same model as config.json and safetensors, its matrices rounded as the quantisation rounds them."""
  folder.mkdir()
  files.write_json(folder / 'config.json', fields)
  rounded = {n: gguf.quants.dequantize(gguf.quants.quantize(a, kind), kind) if a.ndim == 2 else a for n, a in weights.items()}
  save_file({name: np.ascontiguousarray(array, np.float32) for name, array in rounded.items()}, folder / 'model.safetensors')
  return folder


def assert_same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.fixture
def path(tmp_path):
  return write_gguf(tmp_path / 'model.gguf', LLAMA, random_weights(LLAMA), KINDS.F32)


# The model.


@pytest.mark.parametrize('case', sorted(CASES))
def test_a_file_and_a_folder_give_the_same_model(tmp_path, case):
  fields, kind = CASES[case]
  weights = random_weights(fields)
  expected_config, expected = load_model(write_folder(tmp_path / 'folder', fields, weights, kind))
  config, params = load_gguf(write_gguf(tmp_path / 'model.gguf', fields, weights, kind))
  assert config == expected_config
  assert_same(params, expected)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('float32')}


def test_other_dtypes(path, tmp_path):
  folder = write_folder(tmp_path / 'folder', LLAMA, random_weights(LLAMA), KINDS.F32)
  for dtype in ('bfloat16', 'float16'):
    _, params = load_gguf(path, dtype=dtype)
    assert_same(params, load_model(folder, dtype=dtype)[1])
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
  with pytest.raises(ValueError, match="dtype 'int8': expected one of"):
    load_gguf(path, dtype='int8')


def test_every_quantisation_that_the_package_reads(tmp_path):
  """Random bytes are a valid tensor of any kind: one layer's gate matrix each. Blocks of the file are smaller than the tensors."""
  shape, kinds = (8, 256), []
  for kind in KINDS:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    try:
      gguf.quants.dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError:
      continue
    kinds.append(kind)
  assert {KINDS.Q4_K, KINDS.Q6_K, KINDS.Q4_0, KINDS.IQ4_XS, KINDS.BF16} <= set(kinds)
  fields = LLAMA | {'hidden_size': 256, 'intermediate_size': 8, 'num_hidden_layers': len(kinds)}
  weights, stream, raw, data = random_weights(fields), np.random.RandomState(0), {}, {}
  for i, kind in enumerate(kinds):
    block, size = gguf.GGML_QUANT_SIZES[kind]
    # Bytes below 0x78: no 16-bit float among them is infinite or NaN.
    data[i] = stream.randint(0, 0x78, (shape[0], shape[1] // block * size)).astype(np.uint8)
    raw[f'blk.{i}.ffn_gate.weight'] = kind
  replace = lambda tensors: tensors | {f'blk.{i}.ffn_gate.weight': data[i] for i in data}
  config, params = load_gguf(write_gguf(tmp_path / 'model.gguf', fields, weights, KINDS.F32, tensors=replace, raw=raw))
  for i, kind in enumerate(kinds):
    expected = gguf.quants.dequantize(data[i], kind)
    assert np.abs(expected).max() > 0, kind
    np.testing.assert_array_equal(params[f'layer_{i}']['gate_up'][:, : config.mlp_dim], expected.T, err_msg=kind.name)


def test_small_blocks_change_nothing(path, monkeypatch):
  _, expected = load_gguf(path)
  monkeypatch.setattr('mempi_jax.models.gguf.BLOCK_BYTES', 1000)  # three rows of 64 columns
  assert_same(load_gguf(path)[1], expected)


def test_weights_go_straight_onto_a_mesh(path):
  code = f"""
import functools, jax, numpy as np
from mempi_jax.models.gguf import load_gguf
from mempi_jax.models.partition import shardings
from tests.layouts import layout
mesh = layout(2, 4, 1)
_, params = load_gguf({str(path)!r}, place=functools.partial(shardings, mesh))
qkv = params['layer_1']['qkv']
assert {{shard.data.shape for shard in qkv.addressable_shards}} == {{(16, 128)}}, qkv.sharding
_, whole = load_gguf({str(path)!r})
jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), params, whole)
"""
  environment = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=8', 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr


# Rotary scaling.


@pytest.mark.parametrize(
  'head_dim, theta, factor, original',
  [(128, 5e5, 8.0, 8192), (64, 5e5, 32.0, 8192), (16, 1e4, 8.0, 64), (8, 1e4, 4.0, 8), (8, 1e4, 4.0, 5)],  # Llama 3.1, Llama 3.2, tiny ones
)
def test_llama3_scaling_is_recognised(tmp_path, head_dim, theta, factor, original):
  scaling = LLAMA3 | {'factor': factor, 'original_max_position_embeddings': original}
  fields = LLAMA | {'head_dim': head_dim, 'rope_theta': theta, 'rope_scaling': scaling}
  config, _ = load_gguf(write_gguf(tmp_path / 'model.gguf', fields, random_weights(fields), KINDS.F32))
  expected = config_from_fields(fields).rope_scaling
  if head_dim >= 64:
    assert config.rope_scaling == expected
  found = scaled_frequencies(head_dim, theta, config.rope_scaling)[0]
  np.testing.assert_allclose(found, scaled_frequencies(head_dim, theta, expected)[0], rtol=1e-5)


def test_rope_factors_of_ones_are_no_scaling_and_strange_ones_are_refused(tmp_path):
  weights = random_weights(LLAMA)
  write = lambda factors, change=lambda writer: None: write_gguf(
    tmp_path / 'model.gguf',
    LLAMA,
    weights,
    KINDS.F32,
    change,
    lambda tensors: tensors | {'rope_freqs.weight': np.array(factors, np.float32)},
  )
  assert load_gguf(write([1.0] * 8))[0].rope_scaling is None
  with pytest.raises(ValueError, match="'rope_freqs.weight' are those of no llama3 scaling"):
    load_gguf(write([1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0]))
  with pytest.raises(ValueError, match=r"'rope_freqs.weight' has shape \(7,\), expected \(8,\)"):
    load_gguf(write([1.0] * 7))
  with pytest.raises(ValueError, match='beside a rope scaling of kind linear'):
    load_gguf(
      write([2.0] * 8, lambda writer: (writer.add_string('llama.rope.scaling.type', 'linear'), writer.add_rope_scaling_factor(2.0)))
    )


# What is wrong with a file.


@pytest.fixture
def nothing_allocated(monkeypatch):
  def fail(*args, **kwargs):
    raise AssertionError('an array was allocated before the file was checked')

  monkeypatch.setattr(jax, 'make_array_from_callback', fail)


def test_the_package_is_asked_for(path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'gguf', None)
  for load in (load_gguf, load_gguf_tokenizer):
    with pytest.raises(ImportError, match=r"pip install 'mempi_jax\[gguf\]'"):
      load(path)


@pytest.mark.usefixtures('nothing_allocated')
def test_other_files(tmp_path):
  with pytest.raises(FileNotFoundError, match='no GGUF file at'):
    load_gguf(tmp_path / 'absent.gguf')
  for content in (b'', b'GG', b'PK\x03\x04 a zip file'):
    (tmp_path / 'other.gguf').write_bytes(content)
    with pytest.raises(ValueError, match='other.gguf: not a GGUF file: expected b"GGUF" at its start'):
      load_gguf(tmp_path / 'other.gguf')


@pytest.mark.usefixtures('nothing_allocated')
def test_truncated_files(path):
  data = path.read_bytes()
  for size in [*range(4, 64), *range(64, 4000, 97), *range(4000, len(data), len(data) // 9), len(data) - 64]:
    path.write_bytes(data[:size])
    with pytest.raises(ValueError, match='model.gguf: a truncated or damaged GGUF file'):
      load_gguf(path)


@pytest.mark.usefixtures('nothing_allocated')
@pytest.mark.parametrize(
  'change, message',
  [
    (lambda w: w.add_uint32('llama.expert_count', 8), 'a mixture of 8 experts is not supported'),
    (lambda w: w.add_uint32('llama.attention.sliding_window', 32), 'a sliding window'),
    (lambda w: w.add_uint16('split.count', 3), 'one part of a model in 3 files: join them'),
    (
      lambda w: w.add_string('llama.rope.scaling.type', 'longrope'),
      "rope scaling 'longrope' is not supported: expected one of none, linear, yarn",
    ),
    (lambda w: w.add_string('llama.rope.scaling.type', 'linear'), 'the field llama.rope.scaling.factor is missing'),
    (
      lambda w: replace_field(w, 'llama.rope.dimension_count', 8),
      'llama.rope.dimension_count 8 is not supported: expected the head_dim 16',
    ),
    (lambda w: replace_field(w, 'llama.attention.head_count_kv', [2, 1]), 'head_count_kv differs from layer to layer'),
    (lambda w: replace_field(w, 'llama.attention.head_count', 3), 'num_heads 3 must be a multiple of num_kv_heads 2'),
    (lambda w: replace_field(w, 'llama.block_count', None), 'the field llama.block_count is missing'),
    (lambda w: replace_field(w, 'llama.block_count', 3), r"'blk.2.attn_norm.weight' is missing, expected shape \(64,\).*and 5 more"),
    (lambda w: replace_field(w, 'llama.block_count', 1), "'blk.1.attn_norm.weight' is not part of the model"),
    (lambda w: replace_field(w, 'llama.feed_forward_length', 80), r"'blk.0.ffn_gate.weight' has shape \(96, 64\), expected \(80, 64\)"),
    (
      lambda w: replace_field(w, 'general.architecture', 'gemma3'),
      "architecture 'gemma3' is not supported: expected one of llama, qwen2, qwen3",
    ),
    (lambda w: replace_field(w, 'general.architecture', 'qwen3'), 'the field qwen3.embedding_length is missing'),
  ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
  with pytest.raises(ValueError, match=f'model.gguf: .*{message}'):
    load_gguf(write_gguf(tmp_path / 'model.gguf', LLAMA, random_weights(LLAMA), KINDS.F32, change))


def replace_field(writer, name, value):
  """Another value for a field that the writer has (None: no such field any more)."""
  del writer.kv_data[0][name]
  if isinstance(value, str):
    writer.add_string(name, value)
  elif isinstance(value, list):
    writer.add_array(name, value)
  elif value is not None:
    writer.add_uint32(name, value)


@pytest.mark.usefixtures('nothing_allocated')
@pytest.mark.parametrize(
  'change, message',
  [
    (lambda t: {name: array for name, array in t.items() if name != 'token_embd.weight'}, "'token_embd.weight' is missing"),
    (
      lambda t: {name: array for name, array in t.items() if name != 'blk.1.attn_k.weight'},
      r"'blk.1.attn_k.weight' is missing.*\(32, 64\)",
    ),
    (lambda t: t | {'blk.0.attn_q_norm.weight': np.ones(16, np.float32)}, "'blk.0.attn_q_norm.weight' is not part of the model"),
    (lambda t: t | {'output_norm.weight': np.ones(63, np.float32)}, r"'output_norm.weight' has shape \(63,\), expected \(64,\)"),
    (lambda t: t | {'token_embd.weight': np.ones((37, 63), np.float32)}, r"'token_embd.weight' has shape \(37, 63\), expected \(37, 64\)"),
    (lambda t: t | {'blk.0.attn_v.weight': np.ones((32, 64), np.int32)}, "'blk.0.attn_v.weight' is stored as I32, which .* not dequantise"),
  ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
  with pytest.raises(ValueError, match=f'model.gguf: .*{message}'):
    load_gguf(write_gguf(tmp_path / 'model.gguf', LLAMA, random_weights(LLAMA), KINDS.F32, tensors=change))


# The tokenizer.

TEMPLATE = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>a\n{% endif %}"
TEXTS = [
  "It's 12345  apples,\n\n and DON'T\tstop 7.",
  'Ünïcödé e\u0301 你好 🙂',
  ' lead and trail  ',
  '<|start|>user\nhi <think>no</think><|end|>',
]


def byte_level_vocab():
  """A small byte-level vocabulary with merges, trained on a few texts, and what the file marks."""
  import tokenizers

  backend = tokenizers.Tokenizer(tokenizers.models.BPE())
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
  backend.train_from_iterator(['apples and 12345 12 345 stop it apples, user trail lead\n\n and   DON DONT 123 234'] * 3, trainer)
  model = json.loads(backend.to_str())['model']
  tokens = [token for token, _ in sorted(model['vocab'].items(), key=lambda item: item[1])]
  merges = [merge if isinstance(merge, str) else ' '.join(merge) for merge in model['merges']]
  return [*tokens, 'zqzq'], merges  # a word that no merges lead to


def write_tokenizer(path, model, tokens, types, change):
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_context_length(77)
  writer.add_tokenizer_model(model)
  writer.add_token_list(tokens)
  writer.add_token_types(types)
  writer.add_chat_template(TEMPLATE)
  change(writer)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def write_byte_level(path, split, change=lambda writer: None):
  tokens, merges = byte_level_vocab()
  special, plain = ['<|start|>', '<|end|>'], ['<think>', '</think>']

  def add(writer):
    writer.add_token_merges(merges)
    if split:
      writer.add_tokenizer_pre(split)
    writer.add_bos_token_id(len(tokens))
    writer.add_eos_token_id(len(tokens) + 1)
    change(writer)

  types = [1] * len(tokens) + [3, 3, 4, 4]
  return write_tokenizer(path, 'gpt2', tokens + special + plain, types, add), tokens + special + plain, merges


def ids(tokenizer, text):
  return tokenizer(text)['input_ids']


@pytest.mark.parametrize('split', ['gpt-2', 'smollm', 'qwen2', 'llama-bpe', 'tekken'])
def test_byte_level_tokenizers(tmp_path, split):
  path, tokens, _ = write_byte_level(tmp_path / 'model.gguf', split, lambda writer: writer.add_add_bos_token(False))
  tokenizer = load_gguf_tokenizer(path)
  assert tokenizer.is_fast and len(tokenizer) == len(tokens) and tokenizer.model_max_length == 77
  for text in TEXTS:
    expected = unicodedata.normalize('NFC', text) if split == 'qwen2' else text
    assert tokenizer.decode(ids(tokenizer, text)) == expected
  start, end, think = (tokens.index(token) for token in ('<|start|>', '<|end|>', '<think>'))
  marked = ids(tokenizer, TEXTS[-1])
  assert marked[0] == start and marked[-1] == end and think in marked
  assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (start, end, None)
  assert tokenizer.decode(marked, skip_special_tokens=True) == 'user\nhi <think>no</think>'
  # Within which digits may be merged: GPT-2 takes all that stand together, Llama 3 up to three, the others one.
  cut = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str('12345 12')]
  assert cut == {'gpt-2': ['12345', 'Ġ12'], 'llama-bpe': ['123', '45', 'Ġ', '12']}.get(split, list('12345Ġ12'))
  assert tokenizer.tokenize('zqzq') == (['zqzq'] if split in ('llama-bpe', 'tekken') else list('zqzq'))
  messages = [{'role': 'user', 'content': 'hi'}]
  text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
  assert text == '<|start|>user\nhi<|end|><|start|>a\n'


def test_qwen2_splits_as_transformers_does(tmp_path):
  from transformers import Qwen2Tokenizer

  path, tokens, merges = write_byte_level(tmp_path / 'model.gguf', 'qwen2')
  vocab = {token: i for i, token in enumerate(tokens[:-4])}
  theirs = Qwen2Tokenizer(vocab=vocab, merges=[tuple(merge.split(' ')) for merge in merges])
  ours = load_gguf_tokenizer(path)
  for text in TEXTS[:-1]:
    assert ids(ours, text) == ids(theirs, text), text


def test_the_first_token_is_added_where_the_file_or_the_kind_says_so(tmp_path):
  start = load_gguf_tokenizer(write_byte_level(tmp_path / 'a.gguf', 'qwen2')[0]).bos_token_id
  cases = [('qwen2', None, False), ('qwen2', True, True), ('llama-bpe', None, True), ('llama-bpe', False, False)]
  for split, says, expected in cases:
    change = (lambda writer: None) if says is None else lambda writer, says=says: writer.add_add_bos_token(says)
    tokenizer = load_gguf_tokenizer(write_byte_level(tmp_path / 'model.gguf', split, change)[0])
    assert (ids(tokenizer, 'apples')[0] == start) is expected, (split, says)
    assert start not in tokenizer('apples', add_special_tokens=False)['input_ids']


def test_a_sentencepiece_tokenizer(tmp_path):
  pieces = ['\u2581', 'a', 'b', 'c', 'ab', 'bc', 'abc', '\u2581abc', '\u2581a']
  tokens = ['<unk>', '<s>', '</s>', *(f'<0x{byte:02X}>' for byte in range(256)), *pieces]
  # Merged by score: bc before ab, ab before abc, and a word's first letter with its space last.
  scores = [0.0] * 259 + [-20.0, -21.0, -22.0, -23.0, -2.0, -1.0, -3.0, -5.0, -4.0]

  def add(writer):
    writer.add_token_scores(scores)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

  path = write_tokenizer(tmp_path / 'model.gguf', 'llama', tokens, [2, 3, 3] + [6] * 256 + [1] * len(pieces), add)
  tokenizer = load_gguf_tokenizer(path)
  assert tokenizer.tokenize('bcab') == ['\u2581', 'bc', 'ab']
  assert tokenizer.tokenize('abc') == ['\u2581abc'] and tokenizer.tokenize('abb ac') == ['\u2581', 'ab', 'b', '\u2581a', 'c']
  assert ids(tokenizer, 'abc') == [1, tokens.index('\u2581abc')]  # of these files, all begin texts with <s>
  assert tokenizer.tokenize('cé') == ['\u2581', 'c', '<0xC3>', '<0xA9>']
  for text in ('abc', 'abb c', 'cé🙂 a'):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)['input_ids']) == text


def test_a_saved_tokenizer_is_the_same_one(tmp_path):
  from transformers import AutoTokenizer

  tokenizer = load_gguf_tokenizer(write_byte_level(tmp_path / 'model.gguf', 'llama-bpe')[0])
  tokenizer.save_pretrained(tmp_path / 'saved')
  again = AutoTokenizer.from_pretrained(tmp_path / 'saved')
  for text in TEXTS:
    assert ids(again, text) == ids(tokenizer, text)
  assert again.chat_template == TEMPLATE and again.eos_token == '<|end|>'


def test_tokenizers_that_are_not_supported(tmp_path, path):
  with pytest.raises(ValueError, match='model.gguf: the field tokenizer.ggml.model is missing'):
    load_gguf_tokenizer(path)
  with pytest.raises(ValueError, match="tokenizer.ggml.pre 'poro', how text is cut .* expected one of gpt-2, smollm"):
    load_gguf_tokenizer(write_byte_level(tmp_path / 'a.gguf', 'poro')[0])
  with pytest.raises(ValueError, match='tokenizer.ggml.pre None'):
    load_gguf_tokenizer(write_byte_level(tmp_path / 'b.gguf', None)[0])
  with pytest.raises(ValueError, match="tokenizer 'bert' is not supported: expected one of gpt2, llama"):
    load_gguf_tokenizer(write_tokenizer(tmp_path / 'c.gguf', 'bert', ['a'], [1], lambda writer: None))
