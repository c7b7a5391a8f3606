"""The cost-quality curve against a case done by hand; what is missing is named."""

import json

import numpy as np
import pytest

from mempi_jax.evals import cost
from mempi_jax.evals.success import EpisodesError

PROMPT = 50
CASES = [  # P(GENERATE), success guided, success alone, guidance tokens
  (0.9, True, False, 4),
  (0.7, True, False, 6),
  (0.4, False, True, 5),
  (0.2, True, True, 5),
]


def record(memory, task, solved, *, decision, p=None, tokens=0, seed=0, **more):
  return {
    'memory': memory, 'split': 'heldout_games', 'task_id': task, 'seed': seed, 'decision': decision, 'p_generate': p,
    'guidance_tokens': tokens, 'success': solved, 'status': 'success' if solved else 'truncated', 'agent_steps': 4, **more,
  }  # fmt: skip


def episodes_of(cases=CASES, threshold=0.5):
  records = []
  for i, (p, guided, alone, tokens) in enumerate(cases):
    task, speaks = f't{i:03d}', p >= threshold
    read = {'read_tokens': PROMPT + i}
    silence, speech = {**read, 'written_tokens': 1}, {**read, 'written_tokens': tokens + 2}
    records += [
      record('always', task, guided, decision='[GENERATE]', p=p, tokens=tokens, **speech),
      record('none', task, alone, decision='[ABSTAIN]', read_tokens=0, written_tokens=0),
      record('mempi', task, guided, decision='[GENERATE]', p=p, tokens=tokens, **speech)
      if speaks
      else record('mempi', task, alone, decision='[ABSTAIN]', p=p, **silence),
    ]
  return records


def test_curve_by_hand():
  points = cost.curve(cost.choices_of(episodes_of()), [0.0, 0.3, 0.5, 0.7, 0.8, 1.1])
  assert [point.threshold for point in points] == [None, 0.0, 0.3, 0.5, 0.7, 0.8, 1.1]
  assert [point.success.value for point in points] == [0.5, 0.75, 0.75, 1.0, 1.0, 0.75, 0.5]
  assert [point.abstain_rate for point in points] == [1.0, 0.0, 0.25, 0.5, 0.5, 0.75, 1.0]
  assert [point.inserted_tokens for point in points] == [0, 5, 3.75, 2.5, 2.5, 1, 0]
  assert [point.read_tokens for point in points] == [0, *[51.5] * 6]  # 50, 51, 52, 53, whatever is decided
  # Written: the content, the decision and end-of-sequence; or the decision alone.
  assert [point.written_tokens for point in points] == [0, 7, (28 - 6) / 4, (28 - 12) / 4, 4, (28 - 12 - 7) / 4, 1]
  assert [point.cost for point in points] == [0, 63.5, 60.75, 58, 58, 54.75, 52.5]
  assert [point.over_alone.value for point in points] == [0, 0.25, 0.25, 0.5, 0.5, 0.25, 0]
  assert [point.over_always.value for point in points] == [-0.25, 0, 0, 0.25, 0.25, 0, -0.25]


def test_the_curve_goes_through_what_was_measured():
  """At the memory's own threshold it has the memory's own success, abstain rate and tokens."""
  rng = np.random.default_rng(0)
  cases = [(float(rng.random()), bool(rng.random() < 0.7), bool(rng.random() < 0.5), int(rng.integers(1, 9))) for _ in range(90)]
  episodes = episodes_of(cases, threshold=0.35)
  (_, point) = cost.curve(cost.choices_of(episodes), [0.35])
  mine = [episode for episode in episodes if episode['memory'] == 'mempi']
  assert point.success.value == pytest.approx(np.mean([episode['success'] for episode in mine]))
  assert point.abstain_rate == pytest.approx(np.mean([episode['decision'] == '[ABSTAIN]' for episode in mine]))
  tokens = {'guidance_tokens': point.inserted_tokens, 'read_tokens': point.read_tokens, 'written_tokens': point.written_tokens}
  for field, value in tokens.items():
    assert value == pytest.approx(np.mean([episode[field] for episode in mine]))


def test_prices_and_paired_intervals():
  choices = cost.choices_of(episodes_of(CASES * 20))
  (_, point) = cost.curve(choices, [0.5], prices=cost.Prices(read=0.1, written=1.0, inserted=2.0))
  assert point.cost == pytest.approx(0.1 * np.mean(50 + np.arange(80)) + 4.0 + 5.0)
  assert point.over_alone.value == 0.5 and 0.3 < point.over_alone.low < 0.5 < point.over_alone.high < 0.7
  assert point.over_alone.clusters == 80
  # The interval is paired: half of the games have no difference at all.
  assert point.over_always.low > 0.1


def test_a_gate_before_another_memory_pays_for_its_decision():
  episodes = episodes_of()
  for episode in episodes:
    if episode['memory'] == 'always':  # RAG: no model of its own
      episode.update(memory='rag', p_generate=None, read_tokens=0, written_tokens=0)
  points = cost.curve(cost.choices_of(episodes, always='rag'), [0.0, 0.5, 1.1])
  assert [(point.read_tokens, point.written_tokens) for point in points] == [(0, 0)] + [(51.5, 1)] * 3
  assert [point.inserted_tokens for point in points] == [0, 5, 2.5, 0]


def test_default_thresholds_go_from_everywhere_to_nowhere():
  choices = cost.choices_of(episodes_of([(0.9 + i / 1000, True, False, 5) for i in range(100)]))
  thresholds = cost.thresholds_of(choices)
  assert len(thresholds) == 21 and thresholds[0] == 0.0 and thresholds[-1] > 1.0
  rates = [point.abstain_rate for point in cost.curve(choices, resamples=50)]
  assert rates == pytest.approx([1.0, *np.linspace(0, 1, 21)])
  same = cost.choices_of(episodes_of([(1.0, True, False, 5)] * 3))
  assert [point.abstain_rate for point in cost.curve(same)] == [1.0, 0.0, 0.0, 1.0]
  with pytest.raises(ValueError, match='finite'):
    cost.curve(choices, [float('inf')])


def test_pareto_set_by_hand():
  points = cost.curve(cost.choices_of(episodes_of()), [0.0, 0.3, 0.5, 0.7, 0.8, 1.1])
  # Alone costs nothing; 0.8 gains; 0.5 is the best, as 0.7, which comes second; what speaks more costs more and wins less.
  assert [point.threshold for point in cost.pareto(points)] == [None, 0.8, 0.5]
  assert cost.pareto(points[::-1])[-1].threshold == 0.7  # the first of equals
  rows = cost.rows_of(points)
  assert [row['threshold'] for row in rows if row['pareto']] == [None, 0.5, 0.8]
  assert json.loads(json.dumps(rows, allow_nan=False)) == rows and rows[3]['success_rate'] == 1.0 and len(rows[3]['over_alone_ci95']) == 2


@pytest.mark.parametrize(
  'memory, field',
  [('mempi', 'p_generate'), ('mempi', 'read_tokens'), ('always', 'written_tokens'), ('always', 'guidance_tokens')],
)
def test_missing_fields_are_named(memory, field):
  episodes = episodes_of()
  place = [i for i, episode in enumerate(episodes) if episode['memory'] == memory][2]
  without = {name: value for name, value in episodes[place].items() if name != field}
  for broken in (without, {**without, field: None}):
    with pytest.raises(EpisodesError, match=f"no field '{field}' in a record of memory {memory} .task t002, seed 0."):
      cost.choices_of([*episodes[:place], broken, *episodes[place + 1 :]])
  with pytest.raises(EpisodesError, match=f"field '{field}' is 'five' in a record of memory {memory}"):
    cost.choices_of([*episodes[:place], {**without, field: 'five'}, *episodes[place + 1 :]])


def test_what_else_makes_no_curve_is_named():
  episodes = episodes_of()
  with pytest.raises(EpisodesError, match='episodes of memory always on heldout_games; there are some of none, mempi'):
    cost.choices_of([episode for episode in episodes if episode['memory'] != 'always'])
  with pytest.raises(EpisodesError, match='none lacks 1 of 4 episodes'):
    cost.choices_of([episode for episode in episodes if (episode['memory'], episode['task_id']) != ('none', 't001')])
  with pytest.raises(EpisodesError, match='memory mempi abstained .task t002, seed 0.'):
    cost.choices_of(episodes, always='mempi')
  broken = [{**episode, 'status': 'env_error', 'success': False} if episode['memory'] == 'none' else episode for episode in episodes]
  with pytest.raises(EpisodesError, match='every episode of heldout_games ended'):
    cost.choices_of(broken)
