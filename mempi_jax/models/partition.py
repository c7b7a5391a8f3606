"""Which logical axis each axis of a parameter is, by the parameter's name: what `mesh.rules` splits (runtime/sharding.py).

    embed   the width of the stream       heads   queries, keys and values, heads side by side
    mlp     the width inside the MLP      vocab   tokens        rank   of a LoRA adapter
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from mempi_jax.runtime.sharding import Layout

MATRICES = {
  'embedding': ('vocab', 'embed'),
  'head': ('vocab', 'embed'),
  'qkv': ('embed', 'heads'),
  'out': ('heads', 'embed'),
  'gate_up': ('embed', 'mlp'),
  'down': ('mlp', 'embed'),
  # What a LoRA adapter's factors stand beside.
  'q_proj': ('embed', 'heads'),
  'k_proj': ('embed', 'heads'),
  'v_proj': ('embed', 'heads'),
  'o_proj': ('heads', 'embed'),
  'gate_proj': ('embed', 'mlp'),
  'up_proj': ('embed', 'mlp'),
  'down_proj': ('mlp', 'embed'),
}


def logical_axes(names: tuple[str, ...], ndim: int) -> tuple[str | None, ...] | None:
  """The logical axes of a parameter, of its gradient or of its moments, by the names on its path; None: it is no matrix, and not split.

  A first axis more than the name says is that of the layers (the scanned layout), which is not split.
  """
  for i, name in enumerate(names):
    if name in MATRICES:
      wide, long = MATRICES[name]
      axes = {'a': (wide, 'rank'), 'b': ('rank', long)}.get(names[i + 1] if i + 1 < len(names) else '', (wide, long))
      if 'tokens' in names:  # some rows of a table
        axes = (None, 'embed')
      return (None,) * (ndim - 2) + axes if ndim >= 2 else None
  return None


def shardings(layout: Layout, tree: Any) -> Any:
  """The sharding of each leaf of parameters, of an adapter, or of an optimizer's state over them.

  `tree` holds arrays or jax.ShapeDtypeStruct; returns a tree of NamedSharding.
  """

  def place(path: Any, leaf: Any) -> NamedSharding:
    names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
    axes = logical_axes(names, np.ndim(leaf) if np.isscalar(leaf) else len(leaf.shape))
    return layout.sharding(axes, leaf.shape) if axes else layout.replicated

  return jax.tree_util.tree_map_with_path(place, tree)
