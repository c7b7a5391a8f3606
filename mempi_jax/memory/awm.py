"""Agent Workflow Memory (arXiv 2409.07429): routines that a chat model finds in successful episodes, with places for what varies.

Successful episodes are grouped (the paper: by website; here by environment), those of the same abstract action sequence are taken once, and
one call for every `examples` of them asks for the workflows that they have in common. The paper injects a group's workflows whole; with `k`
above 0 it is the k most like the task [O], for agents of little context.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mempi_jax.experience.transcript import transcript
from mempi_jax.memory.chat import Complete, json_object
from mempi_jax.memory.store import CosineIndex, load_encoder
from mempi_jax.runtime import files
from mempi_jax.runtime.metrics import progress
from mempi_jax.types import Context, Decision, Episode, Guidance

SYSTEM = (
  'You get tasks that an agent solved, each with its actions. Find routines of several actions that come back in different tasks and write each one '
  'down as a workflow: what it is for, and its steps in order, with a name in braces, such as {object}, for everything that differs from task to '
  'task. A workflow has at least two steps, and no two workflows do the same. Answer with JSON alone: '
  '{"workflows": [{"description": "one sentence", "steps": ["first action", "second action"]}]}'
)


@dataclasses.dataclass(frozen=True, slots=True)
class Workflow:
  """A routine, and the episodes (task_id@seed) in whose batch it was found."""

  description: str
  steps: tuple[str, ...]
  sources: tuple[str, ...]

  @property
  def text(self) -> str:
    """As it is injected."""
    return f'{self.description} ' + '; '.join(f'{number}. {step}' for number, step in enumerate(self.steps, start=1))


class AwmMemory:
  """Workflows for a task.

  Args:
    workflows: of one environment.
    tokenize: counts guidance tokens as the guidance policy would.
    encoder: of memory/store.py.
    k: workflows to inject, those whose descriptions are most like the goal; 0: all.
  """

  name, learns = 'awm', False

  def __init__(self, workflows: Sequence[Workflow], tokenize: Callable[[str], tuple[int, ...]], *, encoder: str, k: int):
    if k < 0:
      raise ValueError(f'k = {k}: expected 0 for all, or a number of workflows')
    self.workflows, self.tokenize, self.k = list(workflows), tokenize, k
    self.index = CosineIndex([workflow.description for workflow in self.workflows], load_encoder(encoder))

  def guide(self, contexts: Sequence[Context], seed: int) -> list[Guidance]:
    """Workflows for every context; ABSTAIN while there is none at all."""
    return [self._recall(context) for context in contexts]

  def observe(self, episodes: Sequence[Episode]) -> None:
    """Learns nothing at run time: its workflows come from the bank's episodes, as every memory's."""

  def _recall(self, context: Context) -> Guidance:
    if not self.workflows:
      return Guidance(Decision.ABSTAIN, source=self.name)
    chosen = self.workflows
    if self.k:
      chosen = [self.workflows[i] for i in np.argsort(-self.index.scores(context.goal), kind='stable')[: self.k]]
    text = ' '.join(workflow.text for workflow in chosen)
    sources = tuple(dict.fromkeys(source for workflow in chosen for source in workflow.sources))
    return Guidance(Decision.GENERATE, text, self.tokenize(text), source=self.name, retrieved=sources)


def induce_workflows(episodes: Sequence[Episode], complete: Complete, path: Path, *, examples: int) -> list[Workflow]:
  """Asks for the workflows of every batch of successful episodes and appends the answers to a JSONL log; what it holds is not asked again.

  The first of two workflows with the same steps stays. Raises ValueError when the log is about other episodes, or `examples` is below 2; and
  what `complete` raises.
  """
  if examples < 2:
    raise ValueError(f'{examples} examples: expected at least 2, for a routine comes back in several')
  kept = list({abstract_actions(episode): episode for episode in reversed(episodes) if episode.success}.values())[::-1]
  batches = [kept[start : start + examples] for start in range(0, len(kept), examples)]
  names = [[f'{episode.context.task.task_id}@{episode.context.task.seed}' for episode in batch] for batch in batches]
  done = files.read_started(path, names, lambda record: record['sources'])
  workflows: dict[tuple[str, ...], Workflow] = {}
  with files.JsonlLog(path) as log, progress(len(batches), 'workflows', initial=len(done)) as bar:
    for i, (sources, batch) in enumerate(zip(names, batches, strict=True)):
      if i < len(done):
        answer = done[i]['answer']
      else:
        answer = complete(SYSTEM, '\n\n'.join(transcript(episode) for episode in batch))
        log.append({'sources': sources, 'answer': answer})
        bar.update()
      for workflow in read_workflows(answer, tuple(sources)):
        workflows.setdefault(workflow.steps, workflow)
  return list(workflows.values())


def abstract_actions(episode: Episode) -> tuple[str, ...]:
  """The first word of every action: what episodes are told apart by."""
  return tuple(step.action.split(maxsplit=1)[0] if step.action.strip() else '' for step in episode.steps)


def read_workflows(answer: str, sources: tuple[str, ...]) -> list[Workflow]:
  """The workflows of an answer that have a description and two steps or more; none where there is no JSON of that form."""
  found = json_object(answer).get('workflows')
  workflows = []
  for item in found if isinstance(found, list) else ():
    steps = item.get('steps') if isinstance(item, dict) else None
    if isinstance(steps, list) and isinstance(item.get('description'), str):
      lines = tuple(' '.join(step.split()) for step in steps if isinstance(step, str) and step.strip())
      if item['description'].strip() and len(lines) >= 2:
        workflows.append(Workflow(' '.join(item['description'].split()), lines, sources))
  return workflows
