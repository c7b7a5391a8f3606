"""Mem-π in JAX: memory for LLM agents that is generated instead of retrieved (arXiv 2605.21463).

    import mempi_jax
    policy = mempi_jax.load_policy('runs/quickstart/stage2/policy')
    policy.guide(goal='put a mug in shelf.', observation='You are in the middle of a room. ...')
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from pathlib import Path

  from mempi_jax.policy.policy import GuidancePolicy


def load_policy(path: str | Path) -> GuidancePolicy:
  """A trained guidance policy; ask it with `.guide(goal=..., observation=...)`.

  Args:
    path: a policy's folder, or a working folder: then the policy of its stage 2, or of stage 1 where there is no stage 2 yet.

  Raises:
    FileNotFoundError: no policy there; names what is missing. ValueError: one of its files is broken.
  """
  # Imported here: whoever wants the types or an environment alone must not wait for jax.
  from mempi_jax.policy import policy

  return policy.load_policy(policy.find_policy(path))
