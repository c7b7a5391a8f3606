"""ReasoningBank and AWM on answers written by hand: what is asked, what is read of an answer, what is injected, and what a killed run asks again."""

import json

import numpy as np
import pytest

from mempi_jax.experience.transcript import transcript
from mempi_jax.memory import awm, reasoning_bank
from mempi_jax.memory.awm import AwmMemory, Workflow, abstract_actions, induce_workflows, read_workflows
from mempi_jax.memory.reasoning_bank import ReasoningBankMemory, extract_items, read_items
from mempi_jax.runtime import files
from mempi_jax.types import Context, Decision, Episode, Guidance, Status, Step, Task

WORDS = ('mug', 'pen', 'shelf', 'desk', 'clean')
HOSTILE = ('', 'no json', '{"items": 3, "workflows": 3}', '{"items": [1, {"title": "", "content": "x"}], "workflows": [{"steps": ["a", "b"]}]}', '[' * 5000)


def bag(texts):
  counts = np.array([[text.count(word) for word in WORDS] for text in texts], np.float32).reshape(len(texts), len(WORDS))
  return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-12)


@pytest.fixture(autouse=True)
def small_encoder(monkeypatch):
  for module in (awm, reasoning_bank):
    monkeypatch.setattr(module, 'load_encoder', lambda name: bag)


def episode(name, goal, actions, success, status=None):
  task = Task('alfworld', name, 'train', 0)
  steps = tuple(Step(f'seen {i}', action) for i, action in enumerate(actions))
  status = status or (Status.SUCCESS if success else Status.TRUNCATED)
  return Episode(Context(task, goal, 'a room.'), Guidance(Decision.ABSTAIN), steps, float(success), success, status, 'the end')


EPISODES = [
  episode('a', 'put a mug in shelf', ['go to desk 1', 'take mug 1', 'put mug 1'], True),
  episode('b', 'put a pen in desk', ['go to shelf 1', 'look'], False),
  episode('c', 'clean a mug', ['go to desk 1'], False, Status.ENV_ERROR),
  episode('d', 'put a pen in shelf', ['go to desk 2', 'take pen 1', 'put pen 1'], True),
  episode('e', 'clean a mug', ['go to desk 1', 'take mug 1', 'clean mug 1'], True),
]


class Model:
  """Answers with what a function of the user's message says, and remembers what it was asked."""

  def __init__(self, answer):
    self.answer, self.asked = answer, []

  def __call__(self, system, user):
    self.asked.append((system, user))
    return self.answer(user)


def items_of(user):
  goal = user.splitlines()[0].removeprefix('Task: ')
  return 'Well: ' + json.dumps({'items': [{'title': 'Look first', 'description': 'd', 'content': f'learned from\n{goal}.'}] * 4})


def test_reasoning_bank_asks_about_success_and_failure_and_recalls_by_likeness(tmp_path):
  model = Model(items_of)
  goals, items = extract_items(EPISODES, model, tmp_path / 'answers.jsonl')
  assert goals == ['put a mug in shelf', 'put a pen in desk', 'put a pen in shelf', 'clean a mug']  # not the one whose simulator failed
  assert [len(found) for found in items] == [3] * 4  # at most three
  assert ['did not solve' in system for system, _ in model.asked] == [False, True, False, False]
  assert 'Task: put a pen in desk' in model.asked[1][1] and '> look' in model.asked[1][1]
  memory = ReasoningBankMemory(goals, items, lambda text: tuple(range(len(text.split()))), encoder='bag', k=1)
  (guidance,) = memory.guide([Context(Task('alfworld', 't', 'heldout_games', 0), 'put a mug in desk', '')], 0)
  assert guidance.text == 'Look first: learned from put a mug in shelf.'  # said once
  assert (guidance.decision, guidance.retrieved, len(guidance.tokens)) == (Decision.GENERATE, ('a@0',), 9)
  two = ReasoningBankMemory(goals, items, tuple, encoder='bag', k=2).guide([Context(Task('alfworld', 't', 's', 0), 'put a pen in desk', '')], 0)
  assert two[0].retrieved == ('b@0', 'd@0')


def test_awm_asks_about_different_successes_in_batches(tmp_path):
  found = {'workflows': [{'description': 'Fetch a mug', 'steps': ['go to {place}', ' take\n{thing} ', 'put {thing}']}, {'description': 'x', 'steps': ['one']}]}
  model = Model(lambda user: json.dumps(found))
  workflows = induce_workflows(EPISODES, model, tmp_path / 'answers.jsonl', examples=2)
  assert len(model.asked) == 1  # d does what a does
  assert 'put a mug in shelf' in model.asked[0][1] and 'clean a mug' in model.asked[0][1] and 'pen' not in model.asked[0][1]
  assert [workflow.steps for workflow in workflows] == [('go to {place}', 'take {thing}', 'put {thing}')]
  assert set(workflows[0].sources) == {'a@0', 'e@0'}
  more = [*workflows, Workflow('Clean a pen', ('go', 'clean'), ('e@0',))]
  contexts = [Context(Task('alfworld', 't', 's', 0), 'clean a pen', '')]
  (all_,) = AwmMemory(more, tuple, encoder='bag', k=0).guide(contexts, 0)
  assert all_.text == 'Fetch a mug 1. go to {place}; 2. take {thing}; 3. put {thing} Clean a pen 1. go; 2. clean'
  (one,) = AwmMemory(more, tuple, encoder='bag', k=1).guide(contexts, 0)
  assert one.text == 'Clean a pen 1. go; 2. clean' and one.retrieved == ('e@0',)


def test_abstract_actions_are_verbs():
  assert abstract_actions(EPISODES[0]) == abstract_actions(EPISODES[3]) == ('go', 'take', 'put')
  assert abstract_actions(episode('x', 'g', ['', 'look'], True)) == ('', 'look')


@pytest.mark.parametrize('answer', HOSTILE)
def test_an_answer_that_cannot_be_read_gives_nothing(tmp_path, answer):
  assert read_items(answer, 'a@0') == [] and read_workflows(answer, ('a@0',)) == []
  goals, items = extract_items(EPISODES, Model(lambda user: answer), tmp_path / 'r.jsonl')
  assert goals == items == []
  contexts = [Context(Task('alfworld', 't', 's', 0), 'clean a pen', '')]
  for memory in (ReasoningBankMemory([], [], tuple, encoder='bag', k=1), AwmMemory([], tuple, encoder='bag', k=0)):
    assert memory.guide(contexts, 0)[0].decision is Decision.ABSTAIN


@pytest.mark.parametrize('kept', [0, 1, 3, 4])
def test_a_killed_run_asks_the_rest(tmp_path, kept):
  path = tmp_path / 'answers.jsonl'
  whole = extract_items(EPISODES, Model(items_of), path)
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(''.join(lines[:kept]) + '{"half')
  model = Model(items_of)
  assert extract_items(EPISODES, model, path) == whole
  assert len(model.asked) == 4 - kept and len(list(files.read_jsonl(path))) == 4
  with pytest.raises(ValueError, match='another run'):
    extract_items(EPISODES[1:], model, path)


def test_transcripts_are_bounded():
  long = episode('l', 'clean a mug', ['look'] * 500, False)
  text = transcript(long)
  assert '440 actions left out' in text and text.count('> look') == 60
  loud = Episode(Context(EPISODES[0].context.task, 'clean a mug', 'x' * 10_000), Guidance(Decision.ABSTAIN), (), 0.0, False, Status.TRUNCATED)
  assert len(transcript(loud)) < 500


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda path: ReasoningBankMemory([], [], tuple, encoder='bag', k=0), 'k = 0'),
    (lambda path: AwmMemory([], tuple, encoder='bag', k=-1), 'k = -1'),
    (lambda path: induce_workflows(EPISODES, Model(str), path, examples=1), 'at least 2'),
  ],
)
def test_settings_that_cannot_be(tmp_path, make, message):
  with pytest.raises(ValueError, match=message):
    make(tmp_path / 'x.jsonl')
