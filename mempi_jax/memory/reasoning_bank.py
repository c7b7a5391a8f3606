"""ReasoningBank (arXiv 2509.25140): what a chat model reasons out of successes and of failures, retrieved by the likeness of tasks.

One call an episode: why did it succeed, or fail, and what follows for other tasks. An answer holds up to three items with title, description
and content. For a new task the items of the most similar earlier tasks are injected (k = 1 task in the paper). The paper lets a model judge
whether an episode succeeded; here the environment's own verdict is taken [O].
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
from mempi_jax.types import Context, Decision, Episode, Guidance, Status

MOST_ITEMS = 3
ASKED = {
  True: 'The agent solved the task. First reason why it did, then name what made the difference.',
  False: 'The agent did not solve the task. First reason what went wrong, then name what would have prevented it.',
}
SYSTEM = (
  'You study what an agent did and write down what helps with other tasks of the same kind. {asked} Give at most {most} items; each one must hold '
  'beyond this task, so name no object or number that only this task has. Items must not say the same. Answer with JSON alone: '
  '{{"items": [{{"title": "a few words", "description": "one sentence", "content": "one to three sentences"}}]}}'
)


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
  """One piece of reasoning, and the episode (task_id@seed) that it came from."""

  title: str
  content: str
  source: str


class ReasoningBankMemory:
  """The items of the k earlier tasks that are most like the context's.

  Args:
    goals: of the episodes that gave items.
    items: of each of them, one or more.
    tokenize: counts guidance tokens as the guidance policy would.
    encoder: of memory/store.py.
    k: tasks whose items are injected.
  """

  name, learns = 'reasoning_bank', False

  def __init__(
    self, goals: Sequence[str], items: Sequence[Sequence[Item]], tokenize: Callable[[str], tuple[int, ...]], *, encoder: str, k: int
  ):
    if k < 1:
      raise ValueError(f'k = {k}: expected at least 1')
    self.items, self.tokenize, self.k = list(items), tokenize, k
    self.index = CosineIndex(list(goals), load_encoder(encoder))

  def guide(self, contexts: Sequence[Context], seed: int) -> list[Guidance]:
    """Items for every context; ABSTAIN while there is none at all."""
    return [self._recall(context) for context in contexts]

  def observe(self, episodes: Sequence[Episode]) -> None:
    """Learns nothing at run time: its items come from the bank's episodes, as every memory's."""

  def _recall(self, context: Context) -> Guidance:
    if not self.items:
      return Guidance(Decision.ABSTAIN, source=self.name)
    order = np.argsort(-self.index.scores(context.goal), kind='stable')[: self.k]
    chosen = [item for i in order for item in self.items[i]]
    text = ' '.join(dict.fromkeys(f'{item.title}: {item.content}' for item in chosen))
    sources = tuple(dict.fromkeys(item.source for item in chosen))
    return Guidance(Decision.GENERATE, text, self.tokenize(text), source=self.name, retrieved=sources)


def extract_items(episodes: Sequence[Episode], complete: Complete, path: Path) -> tuple[list[str], list[list[Item]]]:
  """Asks for the items of every episode and appends the answers to a JSONL log; what the log holds is not asked again.

  Returns goals and items of the episodes that gave some; one whose simulator failed is not asked about, and an answer that cannot be read gives
  none. Raises ValueError when the log is about other episodes, and what `complete` raises.
  """
  episodes = [episode for episode in episodes if episode.status is not Status.ENV_ERROR]
  names = [f'{episode.context.task.task_id}@{episode.context.task.seed}' for episode in episodes]
  done = files.read_started(path, names, lambda record: record['source'])
  goals, items = [], []
  with files.JsonlLog(path) as log, progress(len(episodes), 'reasoning bank', initial=len(done)) as bar:
    for i, (name, episode) in enumerate(zip(names, episodes, strict=True)):
      if i < len(done):
        answer = done[i]['answer']
      else:
        answer = complete(SYSTEM.format(asked=ASKED[episode.success], most=MOST_ITEMS), transcript(episode))
        log.append({'source': name, 'answer': answer})
        bar.update()
      if found := read_items(answer, name):
        goals.append(episode.context.goal)
        items.append(found)
  return goals, items


def read_items(answer: str, source: str) -> list[Item]:
  """The items of an answer, at most three, each on one line; none where there is no JSON of that form."""
  found = json_object(answer).get('items')
  if not isinstance(found, list):
    return []
  items = [
    Item(_line(item['title']), _line(item['content']), source)
    for item in found
    if isinstance(item, dict) and all(isinstance(item.get(field), str) and item[field].strip() for field in ('title', 'content'))
  ]
  return items[:MOST_ITEMS]


def _line(text: str) -> str:
  return ' '.join(text.split())
