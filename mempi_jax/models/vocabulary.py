"""Rows of the embedding (and of the head) for tokens that a checkpoint was not trained with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mempi_jax.models.decoder import DecoderConfig


def add_tokens(config: DecoderConfig, params: Any, known: int, ids: Sequence[int]) -> tuple[DecoderConfig, Any]:
  """Gives the tokens `ids` the mean of the rows of the first `known` tokens, which are the tokenizer's own.

  Where the checkpoint has padding rows behind them (Qwen), these are taken; else the tables grow. Returns the config and the parameters.

  Raises ValueError when the tokenizer has more tokens than the embedding has rows.
  """
  check_vocabulary(config.vocab_size, known)
  size = max(config.vocab_size, max(ids) + 1)

  @jax.jit
  def extended(table: jax.Array) -> jax.Array:
    mean = jnp.mean(table[:known].astype(jnp.float32), axis=0).astype(table.dtype)
    grown = jnp.concatenate([table, jnp.broadcast_to(mean, (size - table.shape[0], table.shape[1]))]) if size > table.shape[0] else table
    return grown.at[jnp.array(ids)].set(mean)

  tables = {name: extended(params[name]) for name in ('embedding', 'head') if name in params}
  return dataclasses.replace(config, vocab_size=size), dict(params) | tables


def check_vocabulary(rows: int, known: int) -> None:
  """Raises ValueError when a tokenizer of `known` tokens does not fit an embedding of `rows` rows."""
  if known > rows:
    raise ValueError(f'the tokenizer has {known} tokens, the model only {rows}: they do not belong together')
