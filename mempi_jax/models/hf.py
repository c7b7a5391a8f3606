"""Models in Hugging Face format: config.json and safetensors, in and out.

    FOLDER/config.json                     the shape, as transformers writes it
    FOLDER/model.safetensors               the weights, or
    FOLDER/model-00001-of-0000N.safetensors, model.safetensors.index.json

Everything that can be wrong with a folder is found from the files' headers, before an array is allocated. Weights then go straight to where
they live: each device's part is read from its place in the file, so a host of a pod reads what its devices hold, and nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mempi_jax.models.decoder import DTYPES, FAMILIES, DecoderConfig, init_params
from mempi_jax.models.rope import KINDS, RopeScaling
from mempi_jax.runtime import files

CONFIG, WEIGHTS, INDEX = 'config.json', 'model.safetensors', 'model.safetensors.index.json'
ARCHITECTURES = {'llama': 'LlamaForCausalLM', 'mistral': 'MistralForCausalLM', 'qwen2': 'Qwen2ForCausalLM', 'qwen3': 'Qwen3ForCausalLM'}
# Tensors that older checkpoints carry and that are computed instead.
IGNORED = re.compile(r'.*rotary_emb\.inv_freq')

Place = Callable[[Any], Any]  # a tree of jax.ShapeDtypeStruct -> a tree of shardings


# The configuration.


def read_config(folder: str | Path) -> DecoderConfig:
  """The decoder that a folder's config.json describes.

  Raises FileNotFoundError when there is none, ValueError, naming field and file, for what the decoder does not do.
  """
  path = Path(folder) / CONFIG
  if not path.is_file():
    raise FileNotFoundError(f'no checkpoint at {folder}: {CONFIG} is missing')
  fields = files.read_json(path)
  if not isinstance(fields, dict):
    raise ValueError(f'{path}: expected an object, found {type(fields).__name__}')
  try:
    return config_from_fields(fields)
  except KeyError as error:
    raise ValueError(f'{path}: the field {error.args[0]} is missing') from None
  except (ValueError, TypeError) as error:
    raise ValueError(f'{path}: {error}') from None


def config_from_fields(fields: dict[str, Any]) -> DecoderConfig:
  """A decoder's shape from the fields of a config.json. Raises KeyError for a missing field, ValueError for what is not supported."""
  family = fields.get('model_type')
  if family not in FAMILIES:
    raise ValueError(f'model_type {family!r} is not supported: expected one of {", ".join(FAMILIES)}')
  if fields.get('hidden_act', 'silu') != 'silu':
    raise ValueError(f'hidden_act {fields["hidden_act"]!r} is not supported: expected silu')
  heads = fields['num_attention_heads']
  biased = bool(fields.get('attention_bias', False)) and family != 'mistral'
  window, sliding_layers = _sliding(fields)
  return DecoderConfig(
    vocab_size=fields['vocab_size'],
    embed_dim=fields['hidden_size'],
    num_layers=fields['num_hidden_layers'],
    num_heads=heads,
    num_kv_heads=fields.get('num_key_value_heads') or heads,
    head_dim=fields.get('head_dim') or (128 if family == 'qwen3' else fields['hidden_size'] // heads),
    mlp_dim=fields['intermediate_size'],
    family=family,
    rope_theta=float(_rope_fields(fields).get('rope_theta') or fields.get('rope_theta') or 10_000.0),
    rope_scaling=_scaling(fields),
    max_positions=fields.get('max_position_embeddings', 2048),
    norm_eps=fields.get('rms_norm_eps', 1e-6),
    tie_embeddings=bool(fields.get('tie_word_embeddings', False)),
    qkv_bias=biased or family == 'qwen2',
    out_bias=biased,
    mlp_bias=bool(fields.get('mlp_bias', False)) and family == 'llama',
    qk_norm=family == 'qwen3',
    sliding_window=window,
    sliding_layers=sliding_layers,
  )


def _rope_fields(fields: dict[str, Any]) -> dict[str, Any]:
  """What a config says of rotary positions, in its present form (rope_parameters) or its older one (rope_scaling)."""
  found = fields.get('rope_parameters') or fields.get('rope_scaling') or {}
  if not isinstance(found, dict) or any(isinstance(part, dict) for part in found.values()):
    raise ValueError(f'rope parameters that differ from layer to layer are not supported, found {found!r:.200}')
  if float(found.get('partial_rotary_factor', fields.get('partial_rotary_factor') or 1.0)) != 1.0:
    raise ValueError('partial_rotary_factor other than 1 is not supported')
  return found


def _scaling(fields: dict[str, Any]) -> RopeScaling | None:
  found = _rope_fields(fields)
  kind = found.get('rope_type', found.get('type', 'default'))
  if kind in ('default', 'mrope', None):
    return None
  if kind not in KINDS:
    raise ValueError(f'rope scaling {kind!r} is not supported: expected one of {", ".join(KINDS)}')
  positions = fields.get('max_position_embeddings', 2048)
  original = fields.get('original_max_position_embeddings') or found.get('original_max_position_embeddings') or positions
  optional = {'low_freq_factor': 'low_frequency_factor', 'high_freq_factor': 'high_frequency_factor'}
  optional |= {name: name for name in ('beta_fast', 'beta_slow', 'attention_factor', 'mscale', 'mscale_all_dim', 'truncate')}
  given = {ours: found[theirs] for theirs, ours in optional.items() if found.get(theirs) is not None}
  return RopeScaling(kind, float(found.get('factor') or positions / original), original if kind in ('llama3', 'yarn') else 0, **given)


def _sliding(fields: dict[str, Any]) -> tuple[int, tuple[int, ...]]:
  """The window, and the layers that have it: all of Mistral's, those behind max_window_layers of Qwen's, or as layer_types says."""
  family, layers = fields['model_type'], fields['num_hidden_layers']
  window = fields.get('sliding_window') or 0
  if family == 'llama' or not window or (family != 'mistral' and not fields.get('use_sliding_window', False)):
    return 0, ()
  if family == 'mistral':
    return window, tuple(range(layers))
  kinds = fields.get('layer_types') or ['sliding_attention' if i >= fields.get('max_window_layers', 28) else '' for i in range(layers)]
  sliding = tuple(i for i, kind in enumerate(kinds) if kind == 'sliding_attention')
  return (window, sliding) if sliding else (0, ())


def config_to_fields(config: DecoderConfig, dtype: str = 'float32') -> dict[str, Any]:
  """The fields of a config.json for transformers, vLLM, SGLang and llama.cpp: `config_from_fields` gives the config back.

  Raises ValueError for a shape that the family's architecture cannot express, saying what.
  """
  c = config
  problems = []
  if c.family in ('llama', 'qwen3') and c.qkv_bias != c.out_bias:
    problems.append('biases of q, k, v and of the output that are not both there or both absent')
  if c.family in ('qwen2', 'mistral') and c.out_bias:
    problems.append('an output bias')
  if c.family != 'llama' and c.mlp_bias:
    problems.append('biases of the MLP')
  if c.qkv_bias != (c.family == 'qwen2') and c.family in ('qwen2', 'mistral'):
    problems.append('biases of q, k, v' if c.qkv_bias else 'no biases of q, k, v')
  if c.qk_norm != (c.family == 'qwen3'):
    problems.append('normalised queries and keys' if c.qk_norm else 'queries and keys that are not normalised')
  if c.sliding_layers and (c.family == 'llama' or (c.family == 'mistral' and c.sliding_layers != tuple(range(c.num_layers)))):
    problems.append(f'a sliding window in the layers {c.sliding_layers}')
  if problems:
    raise ValueError(f'a {c.family} checkpoint cannot have {" or ".join(problems)}')
  fields: dict[str, Any] = {
    'architectures': [ARCHITECTURES[c.family]],
    'model_type': c.family,
    'vocab_size': c.vocab_size,
    'hidden_size': c.embed_dim,
    'intermediate_size': c.mlp_dim,
    'num_hidden_layers': c.num_layers,
    'num_attention_heads': c.num_heads,
    'num_key_value_heads': c.num_kv_heads,
    'head_dim': c.head_dim,
    'hidden_act': 'silu',
    'max_position_embeddings': c.max_positions,
    'rms_norm_eps': c.norm_eps,
    'rope_theta': c.rope_theta,
    'rope_scaling': None if c.rope_scaling is None else _scaling_fields(c.rope_scaling),
    'tie_word_embeddings': c.tie_embeddings,
    'torch_dtype': dtype,
  }
  if c.family in ('llama', 'qwen3'):
    fields['attention_bias'] = c.qkv_bias
  if c.family == 'llama':
    fields['mlp_bias'] = c.mlp_bias
  else:
    fields['sliding_window'] = c.sliding_window or None
  if c.family in ('qwen2', 'qwen3'):
    fields['use_sliding_window'] = bool(c.sliding_layers)
    fields['layer_types'] = ['sliding_attention' if i in c.sliding_layers else 'full_attention' for i in range(c.num_layers)]
    fields['max_window_layers'] = min(c.sliding_layers, default=c.num_layers)
  return fields


def _scaling_fields(scaling: RopeScaling) -> dict[str, Any]:
  fields: dict[str, Any] = {'rope_type': scaling.kind, 'factor': scaling.factor}
  if scaling.kind in ('llama3', 'yarn'):
    fields['original_max_position_embeddings'] = scaling.original_positions
  if scaling.kind == 'llama3':
    fields |= {'low_freq_factor': scaling.low_frequency_factor, 'high_freq_factor': scaling.high_frequency_factor}
  if scaling.kind == 'yarn':
    fields |= {'beta_fast': scaling.beta_fast, 'beta_slow': scaling.beta_slow, 'truncate': scaling.truncate}
    fields |= {n: getattr(scaling, n) for n in ('attention_factor', 'mscale', 'mscale_all_dim') if getattr(scaling, n) is not None}
  return fields


# Which tensors make up which parameter.


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One tensor of a checkpoint."""

  name: str
  shape: tuple[int, ...]


def tensors_of(config: DecoderConfig) -> dict[tuple[str, ...], tuple[Tensor, ...]]:
  """Each parameter of the unrolled layout and the tensors that it is made of, side by side along its last axis.

  Matrices are stored [out, in] and used [in, out]; embedding and head are stored as they are used.
  """
  c = config
  d, m, h = c.embed_dim, c.mlp_dim, c.head_dim
  widths = {'q': c.num_heads * h, 'k': c.num_kv_heads * h, 'v': c.num_kv_heads * h}
  layout = {('embedding',): (Tensor('model.embed_tokens.weight', (c.vocab_size, d)),), ('final_norm',): (Tensor('model.norm.weight', (d,)),)}
  if not c.tie_embeddings:
    layout[('head',)] = (Tensor('lm_head.weight', (c.vocab_size, d)),)
  for i in range(c.num_layers):
    layer, prefix = f'layer_{i}', f'model.layers.{i}'
    attention, mlp = f'{prefix}.self_attn', f'{prefix}.mlp'
    layout |= {
      (layer, 'attention_norm'): (Tensor(f'{prefix}.input_layernorm.weight', (d,)),),
      (layer, 'qkv'): tuple(Tensor(f'{attention}.{part}_proj.weight', (width, d)) for part, width in widths.items()),
      (layer, 'out'): (Tensor(f'{attention}.o_proj.weight', (d, widths['q'])),),
      (layer, 'mlp_norm'): (Tensor(f'{prefix}.post_attention_layernorm.weight', (d,)),),
      (layer, 'gate_up'): tuple(Tensor(f'{mlp}.{part}_proj.weight', (m, d)) for part in ('gate', 'up')),
      (layer, 'down'): (Tensor(f'{mlp}.down_proj.weight', (d, m)),),
    }
    if c.qkv_bias:
      layout[(layer, 'qkv_bias')] = tuple(Tensor(f'{attention}.{part}_proj.bias', (width,)) for part, width in widths.items())
    if c.out_bias:
      layout[(layer, 'out_bias')] = (Tensor(f'{attention}.o_proj.bias', (d,)),)
    if c.mlp_bias:
      layout[(layer, 'gate_up_bias')] = tuple(Tensor(f'{mlp}.{part}_proj.bias', (m,)) for part in ('gate', 'up'))
      layout[(layer, 'down_bias')] = (Tensor(f'{mlp}.down_proj.bias', (d,)),)
    if c.qk_norm:
      layout |= {(layer, f'{part}_norm'): (Tensor(f'{attention}.{part}_norm.weight', (h,)),) for part in ('q', 'k')}
  return layout


def _is_transposed(path: tuple[str, ...], tensor: Tensor) -> bool:
  return len(tensor.shape) == 2 and path[-1] not in ('embedding', 'head')


# Reading.


def load_model(folder: str | Path, *, dtype: str = 'float32', place: Place | None = None) -> tuple[DecoderConfig, Any]:
  """A model from a folder: its config, and its parameters in the unrolled layout.

  Args:
    folder: see the top of this file; `find_checkpoint` gives one for a hub id.
    dtype: of the parameters, whatever the files hold.
    place: gives the sharding of each parameter, e.g. `functools.partial(shard_state, mesh)`; None: one device.

  Raises:
    FileNotFoundError: config, weights, or a shard that the index names is missing.
    ValueError: a broken file, an unsupported architecture, a tensor that is missing, unknown or of another shape (named, with what was
      found and expected), a dtype that is not supported here.
  """
  folder = Path(folder)
  check_dtype(dtype)
  config = read_config(folder)
  where = find_tensors(folder)
  layout = tensors_of(config)
  check_tensors(folder, layout, where)
  read = lambda path, shape, index: _read(folder, where, path, layout[path], shape, index)
  return config, place_params(config, dtype, place, read)


def place_params(config: DecoderConfig, dtype: str, place: Place | None, read: Callable[[Any, tuple[int, ...], Any], np.ndarray]) -> Any:
  """Parameters in the unrolled layout, one after another straight to where they live, so that the host holds one besides what stays.

  `read(path, shape, index)` gives the part of a parameter (its path in the tree, its shape) that `index`, slices in its axes, asks for.
  """
  shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0), dtype))
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  flat = flatten_dict(shapes)
  shardings = flatten_dict(place(shapes)) if place else dict.fromkeys(flat, device)
  params = {}
  for path, leaf in flat.items():
    part = lambda index, path=path, leaf=leaf: read(path, leaf.shape, index).astype(dtype)
    params[path] = jax.make_array_from_callback(leaf.shape, shardings[path], part, dtype=leaf.dtype).block_until_ready()
  return unflatten_dict(params)


def find_tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
  """Tensor name -> (file name, shape), of every weights file of a folder, from their headers. Errors as in `load_model`."""
  if (folder / WEIGHTS).is_file():
    names = [WEIGHTS]
  elif (folder / INDEX).is_file():
    index = files.read_json(folder / INDEX)
    if not isinstance(index, dict) or not isinstance(index.get('weight_map'), dict):
      raise ValueError(f'{folder / INDEX}: expected an object with a weight_map')
    names = sorted(set(index['weight_map'].values()))
    strange = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if strange:
      raise ValueError(f'{folder / INDEX}: expected plain file names, found {strange[0]!r}')
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
      raise FileNotFoundError(f'the checkpoint {folder} is incomplete: {", ".join(missing)} of {len(names)} shards missing')
  else:
    other = [path.name for pattern in ('*.bin', '*.pth', '*.gguf', '*.safetensors') for path in sorted(folder.glob(pattern))]
    found = f'; found {", ".join(other[:4])}' if other else ''
    raise FileNotFoundError(f'no checkpoint at {folder}: expected {WEIGHTS} or {INDEX}{found}')
  where: dict[str, tuple[str, tuple[int, ...]]] = {}
  for name in names:
    with _open(folder / name) as file:
      where |= {tensor: (name, tuple(file.get_slice(tensor).get_shape())) for tensor in file.keys()}
  return where


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
  try:
    with safe_open(path, framework='numpy') as file:
      yield file
  except SafetensorError as error:
    raise ValueError(f'{path}: not a safetensors file, or a damaged one: {error}') from None


def check_tensors(folder: Path, layout: dict[Any, tuple[Tensor, ...]], where: dict[str, tuple[str, tuple[int, ...]]]) -> None:
  """Raises ValueError, naming the first few tensors, unless the files hold exactly what the config asks for."""
  # A tied model's head is its embedding, whether or not a copy was saved.
  found = {name: shape for name, (_, shape) in where.items() if name != 'lm_head.weight' or name in _names(layout)}
  found = {name: shape for name, shape in found.items() if not IGNORED.fullmatch(name)}
  try:
    compare_tensors(layout, found, lambda name: f' in {where[name][0]}')
  except ValueError as error:
    raise ValueError(f'{folder}: {error}') from None


def compare_tensors(
  layout: dict[Any, tuple[Tensor, ...]], found: dict[str, tuple[int, ...]], place: Callable[[str], str] = lambda name: ''
) -> None:
  """Raises ValueError, naming the first few, unless the tensors found (name -> shape) are those of the layout.

  `place` says in the message where a tensor was found.
  """
  expected = _names(layout)
  problems = [f'tensor {name!r} is missing, expected shape {shape}' for name, shape in expected.items() if name not in found]
  for name, shape in found.items():
    if name not in expected:
      problems.append(f'tensor {name!r}{place(name)} is not part of the model that the configuration describes')
    elif shape != expected[name]:
      problems.append(f'tensor {name!r}{place(name)} has shape {shape}, expected {expected[name]}')
  if problems:
    more = f' (and {len(problems) - 4} more)' if len(problems) > 4 else ''
    raise ValueError(f'{"; ".join(problems[:4])}{more}')


def _names(layout: dict[Any, tuple[Tensor, ...]]) -> dict[str, tuple[int, ...]]:
  return {tensor.name: tensor.shape for parts in layout.values() for tensor in parts}


def _read(
  folder: Path, where: dict[str, tuple[str, Any]], path: tuple[str, ...], parts: tuple[Tensor, ...], shape: tuple[int, ...], index: Any
) -> np.ndarray:
  """The part of a parameter that `index` (slices, in the parameter's own axes) asks for, from the tensors that it is made of."""
  bounds = [slice(*part.indices(size)) for part, size in zip(index, shape, strict=True)]
  if path[-1] in ('embedding', 'head'):
    with _open(folder / where[parts[0].name][0]) as file:
      return file.get_slice(parts[0].name)[bounds[0], bounds[1]]
  pieces, left = [], 0
  for tensor in parts:
    width = tensor.shape[0]
    columns = slice(max(bounds[-1].start - left, 0), min(bounds[-1].stop - left, width))
    if columns.start < columns.stop:
      with _open(folder / where[tensor.name][0]) as file:
        stored = file.get_slice(tensor.name)
        pieces.append(stored[columns, bounds[0]].T if _is_transposed(path, tensor) else stored[columns])
    left += width
  return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=-1)


def check_dtype(dtype: str) -> None:
  """Raises ValueError for a dtype that the decoder or this device does not do."""
  if dtype not in DTYPES:
    raise ValueError(f'dtype {dtype!r}: expected one of {", ".join(DTYPES)}')
  if dtype == 'float16' and jax.default_backend() == 'tpu':
    raise ValueError('a TPU does not compute in float16: use bfloat16')


def find_checkpoint(path_or_id: str | Path) -> Path:
  """A local folder as it is; anything of the form owner/name is fetched from the Hugging Face hub (or its local cache).

  Raises FileNotFoundError, with what the hub said, when it is neither.
  """
  folder = Path(path_or_id).expanduser()
  if folder.is_dir():
    return folder
  if not re.fullmatch(r'[\w.-]+/[\w.-]+', str(path_or_id)):
    raise FileNotFoundError(f'no checkpoint at {path_or_id}: there is no such folder, and it is no hub id (owner/name)')
  from huggingface_hub import snapshot_download

  try:
    return Path(snapshot_download(str(path_or_id), allow_patterns=['*.json', '*.safetensors', '*.jinja', '*.txt', '*.model']))
  except Exception as error:  # noqa: BLE001  the hub's client and the network raise many kinds
    raise FileNotFoundError(f'no folder {path_or_id}, and the hub gave no model of that name: {error}') from None


# Writing.


def save_model(
  folder: str | Path,
  config: DecoderConfig,
  params: Any,
  *,
  dtype: str = 'float32',
  extra_fields: dict[str, Any] | None = None,
  max_shard_bytes: int = 5_000_000_000,
) -> None:
  """Writes a folder that `load_model`, transformers, vLLM and SGLang read. A reader sees the whole of each file or none.

  Args:
    folder: where; made when absent.
    config: the shape.
    params: parameters in the unrolled layout, wherever they live; on several hosts every host calls this, the first one writes.
    dtype: of the files.
    extra_fields: for config.json besides the shape's (token ids).
    max_shard_bytes: larger models are split into several files.
  """
  folder, wide = Path(folder), jnp.dtype(dtype)
  fields = config_to_fields(config, dtype) | (extra_fields or {})
  flat = flatten_dict(params)
  layout = tensors_of(config)
  if set(flat) != set(layout):
    raise ValueError(f'parameters {sorted(set(flat) ^ set(layout))[:4]} are missing or not part of the model')
  shards = _plan_shards([tensor for parts in layout.values() for tensor in parts], wide.itemsize, max_shard_bytes)
  writes = jax.process_index() == 0
  if writes:
    folder.mkdir(parents=True, exist_ok=True)
  pieces, weight_map = _pieces(flat, layout, wide), {}
  for number, names in enumerate(shards, 1):
    file = WEIGHTS if len(shards) == 1 else f'model-{number:05}-of-{len(shards):05}.safetensors'
    weight_map |= dict.fromkeys(names, file)
    arrays = {name: np.ascontiguousarray(array) for name, array in (next(pieces) for _ in names)}
    if writes:
      temporary = folder / f'.{file}.tmp'
      save_file(arrays, temporary, metadata={'format': 'pt'})
      files.commit(temporary, folder / file)
  if writes:
    for stale in [path for path in folder.glob('model*.safetensors') if path.name not in weight_map.values()]:
      stale.unlink()
    (folder / INDEX).unlink(missing_ok=True)
    if len(shards) > 1:
      total = sum(int(np.prod(tensor.shape)) for parts in layout.values() for tensor in parts) * wide.itemsize
      files.write_json(folder / INDEX, {'metadata': {'total_size': total}, 'weight_map': weight_map})
    files.write_json(folder / CONFIG, fields)


def _plan_shards(tensors: list[Tensor], itemsize: int, max_bytes: int) -> list[list[str]]:
  shards: list[list[str]] = [[]]
  size = 0
  for tensor in tensors:
    bytes_ = int(np.prod(tensor.shape)) * itemsize
    if shards[-1] and size + bytes_ > max_bytes:
      shards.append([])
      size = 0
    shards[-1].append(tensor.name)
    size += bytes_
  return shards


def _pieces(flat: dict[Any, Any], layout: dict[Any, tuple[Tensor, ...]], dtype: Any) -> Iterator[tuple[str, np.ndarray]]:
  """Every tensor of the layout, in its order, as a numpy array in the checkpoint's form."""
  for path, parts in layout.items():
    leaf = flat[path]
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
      from jax.experimental import multihost_utils

      leaf = multihost_utils.process_allgather(leaf, tiled=True)
    array, left = np.asarray(leaf).astype(dtype), 0
    for tensor in parts:
      width = tensor.shape[0]
      if path[-1] in ('embedding', 'head'):
        yield tensor.name, array
      else:
        piece = array[..., left : left + width]
        yield tensor.name, piece.T if _is_transposed(path, tensor) else piece
      left += width
