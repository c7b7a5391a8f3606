"""An episode as text for a chat model that is asked what it teaches."""

from __future__ import annotations

from mempi_jax.types import Episode

MOST_STEPS, MOST_CHARACTERS = 60, 400  # of an episode; of one observation


def transcript(episode: Episode) -> str:
  """Goal, first observation, and every action with what it brought; long observations are cut, and the middle of long episodes left out.

  All of it comes from an environment and an agent: it belongs into a user's message, never into a system's.
  """
  brought = [*(step.observation for step in episode.steps[1:]), episode.last_observation]
  turns = [f'> {_line(step.action)}\n{_cut(seen)}' for step, seen in zip(episode.steps, brought, strict=False)]
  if len(turns) > MOST_STEPS:
    half = MOST_STEPS // 2
    turns = [*turns[:half], f'({len(turns) - 2 * half} actions left out)', *turns[-half:]]
  return '\n'.join([f'Task: {_line(episode.context.goal)}', _cut(episode.context.observation), *turns])


def _line(text: str) -> str:
  return ' '.join(text.split())


def _cut(text: str) -> str:
  line = _line(text)
  return line if len(line) <= MOST_CHARACTERS else f'{line[:MOST_CHARACTERS]} ...'
