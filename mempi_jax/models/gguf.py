"""Models in GGUF format, llama.cpp's single file of weights, shape and tokenizer, read through the `gguf` package (an extra).

Quantised weights become ordinary arrays. As in hf.py, what can be wrong with a file is found from its header before an array is allocated,
and each parameter then goes straight to where it lives: at no time does the host hold more than one of them besides what stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mempi_jax.models.decoder import DecoderConfig
from mempi_jax.models.hf import Place, Tensor, check_dtype, compare_tensors, place_params, tensors_of
from mempi_jax.models.rope import RopeScaling, scaled_frequencies

ARCHITECTURES = ('llama', 'qwen2', 'qwen3')  # Mistral's files say llama
# Tensors by their names in Hugging Face checkpoints, and in GGUF.
NAMES = {
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  'lm_head': 'output',
  'input_layernorm': 'attn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'self_attn.q_norm': 'attn_q_norm',
  'self_attn.k_norm': 'attn_k_norm',
  'post_attention_layernorm': 'ffn_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
}
ROPE_FACTORS = 'rope_freqs.weight'  # what each pair's frequency is divided by
BLOCK_BYTES = 16 * 2**20  # of float32, dequantised at a time


@dataclasses.dataclass(frozen=True)
class Stored:
  """Where a tensor lies in the file. Only whole rows can be dequantised; a vector is one row."""

  shape: tuple[int, ...]
  kind: Any  # gguf.GGMLQuantizationType
  offset: int
  row_bytes: int


def read_gguf_config(path: str | Path) -> DecoderConfig:
  """The decoder that a file's header describes. Errors as in `load_gguf`."""
  return _read_header(Path(path))[0]


def load_gguf(path: str | Path, *, dtype: str = 'float32', place: Place | None = None) -> tuple[DecoderConfig, Any]:
  """A model from a GGUF file: its config, and its parameters in the unrolled layout.

  Args:
    path: the file.
    dtype: of the parameters, whatever the file holds.
    place: gives the sharding of each parameter, as in `hf.load_model`; None: one device.

  Raises:
    FileNotFoundError: there is no such file.
    ImportError: the gguf package is not installed.
    ValueError: no GGUF file or a truncated one, an unsupported architecture or quantisation, a tensor that is missing, unknown or of
      another shape (named, with what was found and expected), a dtype that is not supported here.
  """
  path = Path(path)
  check_dtype(dtype)
  config, layout, stored = _read_header(path)
  # Only files of the llama architecture hold the rows of queries and keys in the order of llama.cpp's rotary kernel.
  permuted = {'attn_q': config.num_heads, 'attn_k': config.num_kv_heads} if config.family == 'llama' else {}
  read = lambda name, shape, index: _read(path, name, layout[name], stored, permuted, shape, index)
  return config, place_params(config, dtype, place, read)


# The header.


def _read_header(path: Path) -> tuple[DecoderConfig, dict[tuple[str, ...], tuple[Tensor, ...]], dict[str, Stored]]:
  """The config, each parameter's tensors as in `hf.tensors_of` under their GGUF names, and where the file has them; all checked."""
  reader = _open(path)
  fields = _fields(reader, lambda name: not name.startswith('tokenizer.'))
  stored = {}
  for tensor in reader.tensors:
    shape = tuple(int(size) for size in reversed(tensor.shape))
    rows = shape[0] if len(shape) > 1 else 1
    stored[tensor.name] = Stored(shape, tensor.tensor_type, int(tensor.data_offset), int(tensor.n_bytes) // max(rows, 1))
  try:
    _check_architecture(fields)
    _check_quantisation(stored)
    config = _config(fields, stored, _rope_factors(path, stored))
    layout = {name: tuple(Tensor(_gguf_name(t.name), t.shape) for t in parts) for name, parts in tensors_of(config).items()}
    compare_tensors(layout, {name: tensor.shape for name, tensor in stored.items() if name != ROPE_FACTORS})
  except KeyError as error:
    raise ValueError(f'{path}: the field {error.args[0]} is missing') from None
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from None
  return config, layout, stored


def _open(path: Path) -> Any:
  """The package's reader of a file, its header and extents read. Errors as in `load_gguf`."""
  try:
    import gguf
  except ImportError:
    raise ImportError("reading a GGUF file needs the gguf package: pip install 'mempi_jax[gguf]'") from None
  if not path.is_file():
    raise FileNotFoundError(f'no GGUF file at {path}')
  with open(path, 'rb') as file:
    start = file.read(4)
  if start != b'GGUF':
    raise ValueError(f'{path}: not a GGUF file: expected b"GGUF" at its start, found {start!r}')
  try:
    reader = gguf.GGUFReader(path)
  except OSError:
    raise
  except Exception as error:  # noqa: BLE001  the reader has no errors of its own: whatever its arithmetic stumbles over
    raise ValueError(f'{path}: a truncated or damaged GGUF file: {type(error).__name__}: {error}') from None
  if reader.byte_order != 'I':
    raise ValueError(f'{path}: GGUF in the byte order of another machine is not supported')
  return reader


def _fields(reader: Any, wanted: Any) -> dict[str, Any]:
  """Metadata by name, of the names that `wanted` accepts."""
  fields = {name: field.contents() for name, field in reader.fields.items() if wanted(name)}
  # 32-bit floats by their shortest spelling: 1e-5 was stored as 9.999999747378752e-06.
  return {name: float(str(np.float32(value))) if isinstance(value, float) else value for name, value in fields.items()}


def _check_architecture(fields: dict[str, Any]) -> None:
  architecture = fields['general.architecture']
  if architecture not in ARCHITECTURES:
    raise ValueError(f'the architecture {architecture!r} is not supported: expected one of {", ".join(ARCHITECTURES)}')
  if fields.get('split.count', 0) > 1:
    raise ValueError(f'one part of a model in {fields["split.count"]} files: join them with llama-gguf-split --merge')
  if fields.get(f'{architecture}.expert_count', 0):
    raise ValueError(f'a mixture of {fields[f"{architecture}.expert_count"]} experts is not supported')
  if fields.get(f'{architecture}.attention.sliding_window', 0):
    raise ValueError(f'a sliding window in a GGUF file of architecture {architecture} is not supported')


def _check_quantisation(stored: dict[str, Stored]) -> None:
  from gguf.quants import dequantize

  tried = set()
  for name, tensor in stored.items():
    if tensor.kind in tried:
      continue
    tried.add(tensor.kind)
    try:
      dequantize(np.zeros((1, tensor.row_bytes), np.uint8), tensor.kind)
    except NotImplementedError:
      raise ValueError(f'tensor {name!r} is stored as {tensor.kind.name}, which the gguf package does not dequantise') from None


def _config(fields: dict[str, Any], stored: dict[str, Stored], rope_factors: np.ndarray | None) -> DecoderConfig:
  """The decoder that the metadata describe. Raises KeyError for a missing field, ValueError for what the decoder does not do."""
  family = fields['general.architecture']

  def number(name: str, default: Any = None) -> Any:
    full = f'{family}.{name}'
    value = fields[full] if default is None else fields.get(full, default)
    if isinstance(value, list):
      if len(set(value)) != 1:
        raise ValueError(f'{full} differs from layer to layer, which is not supported: found {value[:8]}')
      value = value[0]
    return value

  if 'token_embd.weight' not in stored:
    raise ValueError("tensor 'token_embd.weight' is missing")
  embed_dim, heads = number('embedding_length'), number('attention.head_count')
  if not heads:
    raise ValueError(f'{family}.attention.head_count is {heads}')
  head_dim = number('attention.key_length', embed_dim // heads)
  for name in ('attention.value_length', 'rope.dimension_count'):
    if number(name, head_dim) != head_dim:
      raise ValueError(f'{family}.{name} {number(name)} is not supported: expected the head_dim {head_dim}')
  theta = float(number('rope.freq_base', 10_000.0))
  scaling = _rope_scaling(number)
  if rope_factors is not None:
    if scaling is not None:
      raise ValueError(f'{ROPE_FACTORS} beside a rope scaling of kind {scaling.kind} is not supported')
    scaling = _llama3_scaling(rope_factors, head_dim, theta)
  return DecoderConfig(
    vocab_size=stored['token_embd.weight'].shape[0],
    embed_dim=embed_dim,
    num_layers=number('block_count'),
    num_heads=heads,
    num_kv_heads=number('attention.head_count_kv', heads),
    head_dim=head_dim,
    mlp_dim=number('feed_forward_length'),
    family=family,
    rope_theta=theta,
    rope_scaling=scaling,
    max_positions=number('context_length', 2048),
    norm_eps=number('attention.layer_norm_rms_epsilon'),
    tie_embeddings='output.weight' not in stored,
    qkv_bias='blk.0.attn_q.bias' in stored,
    out_bias='blk.0.attn_output.bias' in stored,
    mlp_bias='blk.0.ffn_gate.bias' in stored,
    qk_norm=family == 'qwen3',
  )


def _rope_scaling(number: Any) -> RopeScaling | None:
  kind = number('rope.scaling.type', 'none')
  if kind == 'none':
    factor = number('rope.scale_linear', 1.0)  # of the first GGUF files
    return None if factor == 1.0 else RopeScaling('linear', float(factor))
  if kind not in ('linear', 'yarn'):
    raise ValueError(f'rope scaling {kind!r} is not supported: expected one of none, linear, yarn')
  factor = float(number('rope.scaling.factor'))
  if kind == 'linear':
    return RopeScaling('linear', factor)
  for name in ('attn_factor', 'yarn_attn_factor', 'yarn_ext_factor', 'yarn_log_multiplier'):
    if (found := number(f'rope.scaling.{name}', 1.0)) != 1.0:
      raise ValueError(f'rope.scaling.{name} {found} is not supported: expected 1')
  betas = {'beta_fast': number('rope.scaling.yarn_beta_fast', 32.0), 'beta_slow': number('rope.scaling.yarn_beta_slow', 1.0)}
  return RopeScaling('yarn', factor, number('rope.scaling.original_context_length'), **betas)


def _rope_factors(path: Path, stored: dict[str, Stored]) -> np.ndarray | None:
  """The divisors f32[head_dim / 2] of the rotary frequencies, where the file has them."""
  if ROPE_FACTORS not in stored:
    return None
  with open(path, 'rb') as file:
    return next(_blocks(file, stored[ROPE_FACTORS]))[1]


def _llama3_scaling(factors: np.ndarray, head_dim: int, theta: float) -> RopeScaling | None:
  """The llama3 scaling that divides the frequencies by these factors; the file has no other trace of it.

  Raises ValueError when it is not one with the low and high frequency factors 1 and 4 that all Llama models have.
  """
  if factors.shape != (head_dim // 2,):
    raise ValueError(f'tensor {ROPE_FACTORS!r} has shape {factors.shape}, expected {(head_dim // 2,)}')
  factors = factors.astype(np.float64)
  if np.all(factors == 1.0):
    return None
  factor, low, high = float(factors.max()), 1.0, 4.0
  frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
  turns = frequencies / (2 * np.pi)  # of each pair over one position
  # A pair is divided by 1 where it turns more than `high` times over the original length, by `factor` below `low`, else blended.
  blended = (factors > 1.0 + 1e-6) & (factors < factor * (1.0 - 1e-6))
  if blended.any():
    share = (1.0 / factors[blended] - 1.0 / factor) / (1.0 - 1.0 / factor)
    original = round(float(np.median((low + share * (high - low)) / turns[blended])))
  elif (factors < factor).any():
    original = int(np.ceil(high / turns[factors < factor].min()))
  else:
    original = int(low / turns.max())
  scaling = RopeScaling('llama3', factor, max(original, 1), low, high)
  if not np.allclose(frequencies / scaled_frequencies(head_dim, theta, scaling)[0], factors, rtol=1e-5, atol=0.0):
    raise ValueError(f'the divisors in {ROPE_FACTORS!r} are those of no llama3 scaling with low and high frequency factors 1 and 4')
  return scaling


def _gguf_name(name: str) -> str:
  """A tensor's GGUF name from its Hugging Face name."""
  module, _, kind = name.rpartition('.')
  if module.startswith('model.layers.'):
    _, _, layer, module = module.split('.', 3)
    return f'blk.{layer}.{NAMES[module]}.{kind}'
  return f'{NAMES[module]}.{kind}'


# The weights.


def _read(
  path: Path, name: tuple[str, ...], parts: tuple[Tensor, ...], stored: dict[str, Stored], permuted: dict[str, int], shape: Any, index: Any
) -> np.ndarray:
  """The part of a parameter that `index` (slices, in the parameter's own axes) asks for, from the tensors that it is made of.

  `permuted` gives the number of heads of the tensors whose rows are permuted.
  """
  bounds = [slice(*part.indices(size)) for part, size in zip(index, shape, strict=True)]
  out = np.empty([bound.stop - bound.start for bound in bounds], np.float32)
  # Rows first, as in the file: those of the embedding and the head are rows of the parameter, all others its columns.
  as_stored = name[-1] in ('embedding', 'head')
  target, rows = (out, bounds[0]) if as_stored else (out.T, bounds[-1])
  columns = bounds[1] if as_stored else bounds[0]
  left = 0
  with open(path, 'rb') as file:
    for part in parts:
      height = part.shape[0]
      first, last = max(rows.start - left, 0), min(rows.stop - left, height)
      if first < last:
        places = _places(part.name, height, permuted)
        needed = np.flatnonzero((places >= first) & (places < last))
        for start, block in _blocks(file, stored[part.name], int(needed[0]), int(needed[-1]) + 1):
          chosen = places[start : start + len(block)]
          keep = (chosen >= first) & (chosen < last)
          target[chosen[keep] + left - rows.start] = block[keep][:, columns] if block.ndim > 1 else block[keep]
      left += height
  return out


def _places(name: str, rows: int, permuted: dict[str, int]) -> np.ndarray:
  """Where each stored row of a tensor belongs: llama.cpp interleaves the two halves of a head's queries and keys."""
  heads = permuted.get(name.split('.')[-2])
  if not heads:
    return np.arange(rows)
  return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def _blocks(file: Any, tensor: Stored, first: int = 0, last: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
  """Rows `first` to `last` of a tensor in blocks: the number of a block's first row, and the rows as float32. A vector is one block."""
  from gguf.quants import dequantize

  is_vector = len(tensor.shape) == 1
  if is_vector:
    first, last, step = 0, 1, 1
  else:
    last = tensor.shape[0] if last is None else last
    step = max(BLOCK_BYTES // (4 * tensor.shape[1]), 1)
  # Read, not mapped: pages of a mapped file would count as memory of this process for as long as it is open.
  for start in range(first, last, step):
    count = min(step, last - start)
    file.seek(tensor.offset + start * tensor.row_bytes)
    data = np.fromfile(file, np.uint8, count * tensor.row_bytes).reshape(count, tensor.row_bytes)
    block = dequantize(data, tensor.kind)
    yield start, block.reshape(-1) if is_vector else block


# The tokenizer.

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
# How text is cut before its bytes are merged, by the names that the files of these architectures give it. None: GPT-2's way.
SPLITS = {
  'gpt-2': None,
  'smollm': r'\p{N}',  # each digit alone, then GPT-2's way
  'llama-bpe': rf'{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}',
  'qwen2': rf'{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}',
  'tekken': (
    r'[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+'
    r'|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*'
    r'|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+'
  ),
}
SPLIT_ALIASES = {'llama3': 'llama-bpe', 'llama-v3': 'llama-bpe', 'deepseek-r1-qwen': 'qwen2'}
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # token types
SPACE = '\u2581'  # how SentencePiece writes a space


def load_gguf_tokenizer(path: str | Path) -> Any:
  """The tokenizer in a GGUF file as a transformers fast tokenizer, chat template included. Needs no torch, unlike transformers' own way.

  Raises FileNotFoundError, ImportError or ValueError as `load_gguf` does; ValueError also for a kind of tokenizer that is not supported.
  """
  from tokenizers import AddedToken
  from tokenizers.processors import TemplateProcessing
  from transformers import PreTrainedTokenizerFast

  path = Path(path)
  reader = _open(path)
  prefix = 'tokenizer.'
  fields = {name.removeprefix(prefix): value for name, value in _fields(reader, lambda name: name.startswith(prefix)).items()}
  context = _fields(reader, lambda name: name.endswith('.context_length'))
  del reader
  try:
    kind = fields['ggml.model']
    if kind not in ('gpt2', 'llama'):
      raise ValueError(f'the tokenizer {kind!r} is not supported: expected one of gpt2, llama')
    tokens = fields['ggml.tokens']
    types = fields.get('ggml.token_type') or [NORMAL] * len(tokens)
    split = SPLIT_ALIASES.get(fields.get('ggml.pre'), fields.get('ggml.pre'))
    backend = _byte_level(fields, tokens, split) if kind == 'gpt2' else _sentencepiece(fields, tokens, types)
  except KeyError as error:
    raise ValueError(f'{path}: the field {prefix}{error.args[0]} is missing') from None
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from None
  backend.add_special_tokens([AddedToken(token, normalized=False) for token, type_ in zip(tokens, types) if type_ == CONTROL])
  backend.add_tokens([AddedToken(token, normalized=False) for token, type_ in zip(tokens, types) if type_ == USER_DEFINED])
  names = {'bos_token': 'bos', 'eos_token': 'eos', 'unk_token': 'unknown', 'pad_token': 'padding'}
  special = {ours: tokens[fields[f'ggml.{name}_token_id']] for ours, name in names.items() if f'ggml.{name}_token_id' in fields}
  # Where the file does not say, llama.cpp begins texts of these two kinds with the first token.
  begins = fields.get('ggml.add_bos_token', kind == 'llama' or split == 'llama-bpe') and 'bos_token' in special
  ends = fields.get('ggml.add_eos_token', False) and 'eos_token' in special
  if begins or ends:
    before, after = [special['bos_token']] * bool(begins), [special['eos_token']] * bool(ends)
    pair = [f'{piece}:1' for piece in (*before, '$B', *after)]
    backend.post_processor = TemplateProcessing(
      single=[*before, '$A', *after],
      pair=[*before, '$A', *after, *pair],
      special_tokens=[(token, tokens.index(token)) for token in {*before, *after}],
    )
  length = {'model_max_length': next(iter(context.values()))} if context else {}
  template = {'chat_template': fields['chat_template']} if 'chat_template' in fields else {}
  return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special, **template, **length)


def _byte_level(fields: dict[str, Any], tokens: list[str], split: str | None) -> Any:
  """Byte-level BPE, as of GPT-2, Llama 3, Qwen."""
  from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

  if split not in SPLITS:
    known = ', '.join([*SPLITS, *SPLIT_ALIASES])
    raise ValueError(f'tokenizer.ggml.pre {split!r}, how text is cut before merging, is not supported: expected one of {known}')
  merges = [tuple(merge.split(' ', 1)) for merge in fields['ggml.merges']]
  vocab = {token: i for i, token in enumerate(tokens)}
  # These vocabularies have whole words that no merges lead to.
  backend = Tokenizer(models.BPE(vocab, merges, ignore_merges=split in ('llama-bpe', 'tekken')))
  own_way = split in ('gpt-2', 'smollm')
  bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own_way)
  cut = SPLITS[split]
  backend.pre_tokenizer = bytes_ if cut is None else pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(cut), 'isolated'), bytes_])
  if split == 'qwen2':
    backend.normalizer = normalizers.NFC()
  backend.decoder = decoders.ByteLevel()
  return backend


def _sentencepiece(fields: dict[str, Any], tokens: list[str], types: list[int]) -> Any:
  """SentencePiece's BPE, as of Llama 2 and Mistral: spaces are letters, unknown letters fall back to bytes."""
  from tokenizers import Tokenizer, decoders, models, normalizers

  vocab = {token: i for i, token in enumerate(tokens)}
  merges = _merges_from_scores(tokens, fields['ggml.scores'], types, vocab)
  unknown = tokens[fields.get('ggml.unknown_token_id', 0)]
  backend = Tokenizer(models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
  prefix = fields.get('ggml.add_space_prefix', True)
  replace = normalizers.Replace(' ', SPACE)
  backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace]) if prefix else replace
  steps = [decoders.Replace(SPACE, ' '), decoders.ByteFallback(), decoders.Fuse()]
  backend.decoder = decoders.Sequence([*steps, decoders.Strip(' ', 1, 0)] if prefix else steps)
  return backend


def _merges_from_scores(tokens: list[str], scores: list[float], types: list[int], vocab: dict[str, int]) -> list[tuple[str, str]]:
  """The merges that SentencePiece does, best first: of any two pieces whose union is a piece, by that piece's score."""
  found = []
  for token, score, type_ in zip(tokens, scores, types):
    if type_ == NORMAL:
      pairs = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in vocab and token[i:] in vocab]
      found += [(-score, -len(left), -len(right), vocab[left], vocab[right], left, right) for left, right in pairs]
  return [(left, right) for *_, left, right in sorted(found)]
