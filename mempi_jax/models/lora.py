"""LoRA (arXiv 2106.09685): a low-rank adapter beside frozen weights, as a pure transformation of the parameter tree.

An adapter is a tree of its own: {'layer_0': {'q_proj': {'a': f32[in, r], 'b': f32[r, out]}, ...}, ...}, with the names that the modules
have in Hugging Face checkpoints. `apply_lora` gives a parameter tree in which the adapted matrices are `LoraWeight`s: the decoder
multiplies by them as by any other, so nothing full-size is made, in training or in sampling. `merge_lora` adds the product for good.
Rows of the embedding (and of the head) can be trained beside the matrices, under 'tokens': the decisions' rows start equal, so the decision
cannot be learned with both frozen. In the scanned layout the layers' parts are stacked under 'layers', a first axis [L] everywhere.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mempi_jax.runtime import files, hosts

ALL_MATRICES = r'.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)'
ADAPTER, ADAPTER_CONFIG = 'adapter_model.safetensors', 'adapter_config.json'

Adapter = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoraWeight:
  """A frozen matrix [in, out] and what is added to it: a [in, r] @ b [r, out], the scale already in b."""

  base: jax.Array  # first among the leaves: Flax compares its shape with the parameter's
  a: jax.Array
  b: jax.Array

  @property
  def shape(self) -> tuple[int, ...]:
    """The matrix's shape."""
    return self.base.shape

  def multiply(self, x: jax.Array) -> jax.Array:
    """x [..., in] @ the sum, in x's dtype."""
    return x @ self.base.astype(x.dtype) + (x @ self.a.astype(x.dtype)) @ self.b.astype(x.dtype)


class Weight(Protocol):
  """What may stand in a matrix's place: this module's `LoraWeight`, quantize.py's `QuantizedWeight`."""

  def multiply(self, x: jax.Array) -> jax.Array:
    """x [..., in] @ the matrix [in, out] that it stands for, in x's dtype."""


def matmul(x: jax.Array, weight: jax.Array | Weight) -> jax.Array:
  """x [..., in] @ weight [in, out] in x's dtype."""
  return weight.multiply(x) if hasattr(weight, 'multiply') else x @ weight.astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """An adapter's shape. `targets` is a regular expression that a module's Hugging Face name must match in full, as in PEFT.

  `tokens`: ids whose rows of the embedding (and of an untied head) are trained too.
  """

  rank: int
  alpha: float
  targets: str = ALL_MATRICES
  tokens: tuple[int, ...] = ()

  def __post_init__(self):
    if self.rank < 1:
      raise ValueError(f'a LoRA adapter needs a rank of at least 1, found {self.rank}')
    try:
      re.compile(self.targets)
    except re.error as error:
      raise ValueError(f'LoRA targets {self.targets!r} are no regular expression: {error}') from None

  @property
  def scale(self) -> float:
    """What the product a @ b is multiplied by."""
    return self.alpha / self.rank


def modules_of(config: Any) -> dict[str, tuple[tuple[str, int, int], ...]]:
  """Each fused matrix of a layer and its parts: name, input and output width. `config` is a DecoderConfig."""
  q, kv, d, m = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim, config.embed_dim, config.mlp_dim
  return {
    'qkv': (('q_proj', d, q), ('k_proj', d, kv), ('v_proj', d, kv)),
    'out': (('o_proj', q, d),),
    'gate_up': (('gate_proj', d, m), ('up_proj', d, m)),
    'down': (('down_proj', m, d),),
  }


def module_path(layer: int, module: str) -> str:
  """A module's name in a Hugging Face checkpoint."""
  block = 'self_attn' if module in ('q_proj', 'k_proj', 'v_proj', 'o_proj') else 'mlp'
  return f'model.layers.{layer}.{block}.{module}'


def adapted_modules(config: Any, lora: LoraConfig) -> Iterator[tuple[int, str, int, int]]:
  """Layer, name, input and output width of each module that the targets match.

  Raises ValueError, naming the modules there are, when none does.
  """
  none = True
  for layer in range(config.num_layers):
    for parts in modules_of(config).values():
      for name, width_in, width_out in parts:
        if re.fullmatch(lora.targets, module_path(layer, name)):
          none = False
          yield layer, name, width_in, width_out
  if none:
    names = [module_path(0, name) for parts in modules_of(config).values() for name, _, _ in parts]
    raise ValueError(f'LoRA targets {lora.targets!r} match no module: expected some of {", ".join(names)} (any layer)')


def init_lora(config: Any, lora: LoraConfig, params: Any, key: jax.Array) -> Adapter:
  """A new adapter for a decoder, float32: a is uniform as in PEFT (Kaiming, a = √5), b is zero, the rows of tokens are `params`' own.

  So nothing changes yet. Raises ValueError when the targets match no module.
  """
  adapter: Adapter = {}
  for number, (layer, name, width_in, width_out) in enumerate(adapted_modules(config, lora)):
    bound = width_in**-0.5
    a = jax.random.uniform(jax.random.fold_in(key, number), (width_in, lora.rank), minval=-bound, maxval=bound)
    adapter.setdefault(f'layer_{layer}', {})[name] = {'a': a, 'b': jnp.zeros((lora.rank, width_out))}
  if lora.tokens:
    rows = jnp.array(lora.tokens)
    adapter['tokens'] = {name: params[name][rows].astype(jnp.float32) for name in ('embedding', 'head') if name in params}
  return adapter


def apply_lora(config: Any, lora: LoraConfig, params: Any, adapter: Adapter) -> Any:
  """The parameter tree with the adapted matrices as `LoraWeight`s; no product is computed, the small factors are joined alone."""
  changed = dict(params)
  for layer, modules in adapter.items():
    if layer == 'tokens':
      rows = jnp.array(lora.tokens)
      changed |= {name: params[name].at[rows].set(part.astype(params[name].dtype)) for name, part in modules.items()}
      continue
    changed[layer] = dict(params[layer])
    for fused, parts in modules_of(config).items():
      if any(name in modules for name, _, _ in parts):
        a, b = _join([(modules.get(name), width_out) for name, _, width_out in parts], lora.scale)
        changed[layer][fused] = LoraWeight(params[layer][fused], a, b)
  return changed


def _join(parts: list[tuple[dict[str, jax.Array] | None, int]], scale: float) -> tuple[jax.Array, jax.Array]:
  """Factors of a fused matrix from those of its parts: a side by side, b block-diagonal."""
  a = jnp.concatenate([part['a'] for part, _ in parts if part is not None], axis=-1)
  rows, left, total = [], 0, sum(width for _, width in parts)
  for part, width in parts:
    if part is not None:
      b = part['b'] * scale
      rows.append(jnp.pad(b, [(0, 0)] * (b.ndim - 1) + [(left, total - left - width)]))
    left += width
  return a, jnp.concatenate(rows, axis=-2)


def merge_lora(params: Any) -> Any:
  """A tree from `apply_lora` with every product added to its matrix, in float32, then in the matrix's dtype."""

  def merge(leaf: Any) -> Any:
    if not isinstance(leaf, LoraWeight):
      return leaf
    product = jnp.matmul(leaf.a.astype(jnp.float32), leaf.b.astype(jnp.float32), precision='highest')
    return (leaf.base.astype(jnp.float32) + product).astype(leaf.base.dtype)

  return jax.tree.map(merge, params, is_leaf=lambda leaf: isinstance(leaf, LoraWeight))


# In PEFT's format.


def save_peft(folder: str | Path, lora: LoraConfig, adapter: Adapter, base: str) -> None:
  """Writes an adapter (unrolled layout) as `peft` reads it: adapter_model.safetensors, adapter_config.json.

  `base` is the folder or hub id of the frozen model.
  """
  folder = Path(folder)
  tensors = {}
  for layer, modules in adapter.items():
    if layer == 'tokens':
      for name, part in modules.items():
        tensors[f'base_model.model.{_TOKEN_MODULES[name]}.token_adapter.trainable_tokens_delta'] = np.asarray(part, np.float32)
      continue
    for name, part in modules.items():
      path = f'base_model.model.{module_path(int(layer.removeprefix("layer_")), name)}'
      tensors[f'{path}.lora_A.weight'] = np.ascontiguousarray(np.asarray(part['a'], np.float32).T)
      tensors[f'{path}.lora_B.weight'] = np.ascontiguousarray(np.asarray(part['b'], np.float32).T)
  fields = {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': base,
    'r': lora.rank,
    'lora_alpha': lora.alpha,
    'lora_dropout': 0.0,
    'target_modules': lora.targets,
    'bias': 'none',
    'fan_in_fan_out': False,
    'inference_mode': True,
    'init_lora_weights': True,
  }
  if 'tokens' in adapter:
    # A tied head follows the embedding.
    fields['trainable_token_indices'] = {_TOKEN_MODULES[name].split('.')[-1]: list(lora.tokens) for name in adapter['tokens']}
  if not hosts.is_first():
    return
  folder.mkdir(parents=True, exist_ok=True)
  temporary = folder / f'.{ADAPTER}.tmp'
  save_file(tensors, temporary, metadata={'format': 'pt'})
  files.commit(temporary, folder / ADAPTER)
  files.write_json(folder / ADAPTER_CONFIG, fields)


_TOKEN_MODULES = {'embedding': 'model.embed_tokens', 'head': 'lm_head'}


def read_peft_config(folder: str | Path) -> tuple[LoraConfig, str]:
  """An adapter's shape, and the folder or hub id of its base. Raises FileNotFoundError or ValueError that name the file."""
  path = Path(folder) / ADAPTER_CONFIG
  if not path.is_file():
    raise FileNotFoundError(f'no LoRA adapter at {folder}: {ADAPTER_CONFIG} is missing')
  fields = files.read_json(path)
  try:
    if fields['peft_type'] != 'LORA' or fields.get('use_dora') or fields.get('use_rslora') or fields.get('bias', 'none') != 'none':
      raise ValueError(f'expected a plain LoRA adapter without biases, found {fields["peft_type"]}')
    targets = fields['target_modules']
    if not isinstance(targets, str):
      targets = rf'.*\.({"|".join(sorted(targets))})'
    indices = fields.get('trainable_token_indices') or {}
    indices = indices.get('embed_tokens', []) if isinstance(indices, dict) else indices
    return LoraConfig(fields['r'], float(fields['lora_alpha']), targets, tuple(indices)), fields['base_model_name_or_path']
  except KeyError as error:
    raise ValueError(f'{path}: the field {error.args[0]} is missing') from None
  except (TypeError, ValueError) as error:
    raise ValueError(f'{path}: {error}') from None


def load_peft(folder: str | Path, config: Any) -> tuple[LoraConfig, Adapter]:
  """An adapter for a decoder of shape `config` from a folder in PEFT's format.

  Raises FileNotFoundError for a missing file, ValueError for a broken one or one whose tensors do not fit (the first is named).
  """
  lora, _ = read_peft_config(folder)
  path = Path(folder) / ADAPTER
  if not path.is_file():
    raise FileNotFoundError(f'no LoRA adapter at {folder}: {ADAPTER} is missing')
  try:
    tensors = load_file(path)
  except SafetensorError as error:
    raise ValueError(f'{path}: not a safetensors file, or a damaged one: {error}') from None

  def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
    found = tensors.pop(name, None)
    if found is None or found.shape != shape:
      raise ValueError(f'{path}: tensor {name!r} has shape {None if found is None else found.shape}, expected {shape}')
    return found.astype(np.float32)

  adapter: Adapter = {}
  for layer, name, width_in, width_out in adapted_modules(config, lora):
    module = f'base_model.model.{module_path(layer, name)}'
    a, b = take(f'{module}.lora_A.weight', (lora.rank, width_in)), take(f'{module}.lora_B.weight', (width_out, lora.rank))
    adapter.setdefault(f'layer_{layer}', {})[name] = {'a': jnp.asarray(a.T), 'b': jnp.asarray(b.T)}
  if lora.tokens:
    names = ('embedding',) if config.tie_embeddings else ('embedding', 'head')
    shape = (len(lora.tokens), config.embed_dim)
    tables = {n: take(f'base_model.model.{_TOKEN_MODULES[n]}.token_adapter.trainable_tokens_delta', shape) for n in names}
    adapter['tokens'] = {name: jnp.asarray(rows) for name, rows in tables.items()}
  if tensors:
    raise ValueError(f'{path}: tensor {min(tensors)!r} is not part of the adapter that {ADAPTER_CONFIG} describes')
  return lora, adapter
