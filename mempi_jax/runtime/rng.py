"""Random numbers: device keys by step, then by purpose; host seeds that are a function of what they are for.

Neither needs stored state, so a resumed run draws what an uninterrupted one would. Simulator processes use `host_seed`, hence no jax
import at the top of this file.
"""

from __future__ import annotations

import hashlib
import json
import operator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  import jax


def host_seed(seed: int, *parts: int | str) -> int:
  """A 31-bit seed for one use: `host_seed(config.seed, 'rollout', step, group)`.

  The same on every machine, Python version and process. All branches of a rollout group use the seed of their group, so that guidance
  alone tells them apart [O].

  Args:
    seed: the run's seed.
    *parts: integers (numpy's too) and strings that name the use; (1, '2') and ('1', 2) give different seeds.

  Raises:
    TypeError: a part is neither an integer nor a string.
  """
  plain = [operator.index(part) if not isinstance(part, str) else part for part in (seed, *parts)]
  digest = hashlib.sha256(json.dumps(plain).encode('ascii')).digest()
  return int.from_bytes(digest[:4], 'big') >> 1


def step_key(seed: int, step: int | jax.Array, purpose: str) -> jax.Array:
  """The PRNG key (typed, shape []) of one purpose at one step: fold_in(fold_in(key(seed), step), purpose).

  `step` may be traced. Different purposes ('dropout', 'sample', ...) at the same step get independent keys.
  """
  import jax

  return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), host_seed(0, purpose))
