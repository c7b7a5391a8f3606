"""P(GENERATE) on games that no update sees, over training, by how often the agent solves them alone (method section 3, controls [O])."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mempi_jax.types import Context, Episode


class Probes:
  """Called with parameters, gives the mean P(GENERATE) of all probes, of the easiest third and of the hardest third.

  Difficulty comes from outcomes of its own, never from those that enter an advantage: those would regress to the mean.

  Args:
    p_generate: (params, contexts) -> P(GENERATE | x) f64[N].
    runs: `runs[j][i]` is the agent's j-th episode alone in probe i.
    acts: bool[N], where guidance can act at all; in a mixed world the two halves are reported apart.
  """

  def __init__(self, p_generate: Callable[[Any, Sequence[Context]], np.ndarray], runs: Sequence[Sequence[Episode]], acts: np.ndarray):
    self.p_generate = p_generate
    self.contexts = [episode.context for episode in runs[0]]
    solved = np.mean([[episode.success for episode in run] for run in runs], axis=0)
    steps = np.mean([[len(episode.steps) for episode in run] for run in runs], axis=0)
    count = len(self.contexts)
    order = np.lexsort((np.arange(count), steps, -solved))  # easiest first; ties by the agent's steps
    self.base_success = solved
    self.easy, self.hard = order[: count // 3], order[count - count // 3 :]
    self.acts = np.asarray(acts, bool)

  def __call__(self, params: Any) -> dict[str, float]:
    """Metrics probe/p_generate, ..._easy, ..._hard, and in a mixed world ..._easy_acts, ..._easy_silent and so on."""
    p = self.p_generate(params, self.contexts)
    groups = {'': np.arange(len(p)), '_easy': self.easy, '_hard': self.hard}
    if self.acts.any() and not self.acts.all():
      thirds = {'_easy': self.easy, '_hard': self.hard}
      groups |= {f'{name}_acts': rows[self.acts[rows]] for name, rows in thirds.items()}
      groups |= {f'{name}_silent': rows[~self.acts[rows]] for name, rows in thirds.items()}
    return {f'probe/p_generate{name}': float(p[rows].mean()) for name, rows in groups.items() if len(rows)}
