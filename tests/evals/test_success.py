"""Tables against cases done by hand; records that no table can be made from are refused by name."""

import json

import pytest
from scipy import stats as scipy_stats

from mempi_jax.evals import success
from mempi_jax.runtime import files
from mempi_jax.runtime.manifest import ManifestError


def episode(memory, task, solved, *, split='heldout_games', seed=0, decision='[GENERATE]', tokens=4, steps=5, status=None):
  if memory == 'none':
    decision, tokens = '[ABSTAIN]', 0
  return {
    'memory': memory,
    'split': split,
    'task_id': task,
    'seed': seed,
    'goal': 'g',
    'observation': 'o',
    'decision': decision,
    'p_generate': None,
    'guidance': '',
    'guidance_tokens': tokens,
    'success': solved,
    'status': status or ('success' if solved else 'truncated'),
    'agent_steps': steps,
    'steps': [['look', 'a room']],
  }


def evaluation(outcomes, **kwargs):
  """outcomes: memory -> list of bool, one a task."""
  return [episode(memory, f't{i:03d}', solved, **kwargs) for memory, row in outcomes.items() for i, solved in enumerate(row)]


TWELVE = {'mempi': [True] * 10 + [False] * 2, 'none': [True] * 2 + [False] * 8 + [True, False]}


def test_summarise_by_hand():
  episodes = [
    episode('mempi', 'a', True, tokens=6, steps=3),
    episode('mempi', 'b', True, decision='[ABSTAIN]', tokens=0, steps=4),
    episode('mempi', 'c', False, tokens=3, steps=10),
    episode('mempi', 'd', False, decision='[ABSTAIN]', tokens=9, steps=10),  # whatever it wrote, an abstained episode costs nothing
  ]
  (row,) = success.summarise(episodes)
  assert list(row) == ['memory', 'split', 'n', 'success_rate', 'ci95', 'abstain_rate', 'guidance_tokens', 'agent_steps']
  assert (row['memory'], row['split'], row['n']) == ('mempi', 'heldout_games', 4)
  assert (row['success_rate'], row['abstain_rate'], row['guidance_tokens'], row['agent_steps']) == (0.5, 0.5, 2.25, 6.75)
  assert row['ci95'] == [0.0, 1.0]


def test_rows_come_in_the_order_of_splits_and_memories():
  episodes = [episode(m, 'a', True, split=s) for s in ('long_horizon', 'heldout_games') for m in ('zeta', 'mempi', 'none', 'oracle')]
  rows = [(row['split'], row['memory']) for row in success.summarise(episodes)]
  assert rows == [(s, m) for s in ('heldout_games', 'long_horizon') for m in ('none', 'oracle', 'mempi', 'zeta')]


def test_compare_by_hand():
  (found,) = success.compare(evaluation(TWELVE), [('mempi', 'none')])
  assert list(found) == ['split', 'a', 'b', 'diff', 'ci95', 'mcnemar_p', 'holm_p', 'minimum_detectable_effect']
  # 8 tasks that mempi alone solves, 1 that the agent alone solves, 3 alike.
  assert found['diff'] == pytest.approx(7 / 12, abs=1e-6)
  assert found['mcnemar_p'] == pytest.approx(scipy_stats.binomtest(8, 9, 0.5).pvalue)
  assert found['ci95'][0] < 7 / 12 < found['ci95'][1] and 0.5 <= found['minimum_detectable_effect'] <= 0.75
  (other,) = success.compare(evaluation(TWELVE), [('none', 'mempi')])
  assert other['diff'] == -found['diff'] and other['mcnemar_p'] == found['mcnemar_p'] == found['holm_p']


def test_holm_corrects_over_the_comparisons_of_a_split():
  # Six games that mempi alone solves, rag but five of them: p = 1/32, 1/16 and 1.
  easy = {'mempi': [True] * 6 + [False] * 4, 'rag': [True] * 5 + [False] * 5, 'none': [False] * 10}
  hard = {**easy, 'mempi': [True] * 9 + [False]}
  pairs = [('mempi', 'rag'), ('mempi', 'none'), ('rag', 'none')]
  found = success.compare(evaluation(easy) + evaluation(hard, split='long_horizon'), pairs)
  assert [row['split'] for row in found] == ['heldout_games'] * 3 + ['long_horizon'] * 3
  assert [row['mcnemar_p'] for row in found] == [1.0, 1 / 32, 1 / 16, 1 / 8, 1 / 256, 1 / 16]
  assert [row['holm_p'] for row in found] == pytest.approx([1.0, 3 / 32, 2 / 16, 2 / 16, 3 / 256, 2 / 16], rel=1e-5)
  # Each split is a family of its own, and a pair that is not asked for is in none.
  assert success.compare(evaluation(easy), pairs) == found[:3]
  (alone,) = success.compare(evaluation(easy), pairs[1:2])
  assert alone['holm_p'] == alone['mcnemar_p'] == 1 / 32


def test_tables_are_json_and_do_not_depend_on_the_order_of_records():
  episodes = evaluation(TWELVE)
  tables = [success.summarise(e) + success.compare(e, [('mempi', 'none')]) for e in (episodes, episodes[::-1])]
  assert tables[0] == tables[1]
  assert json.loads(json.dumps(tables[0], allow_nan=False)) == tables[0]


def test_too_few_pairs_have_no_detectable_effect():
  (found,) = success.compare(evaluation({'mempi': [True, False], 'none': [False, False]}), [('mempi', 'none')])
  assert found['minimum_detectable_effect'] is None and found['mcnemar_p'] == 1.0


def test_environment_errors_are_dropped_pairwise_and_counted():
  episodes = evaluation(TWELVE)
  broken = [e for e in episodes if (e['memory'], e['task_id']) in (('mempi', 't011'), ('none', 't000'))]
  for e in broken:
    e.update(success=False, status='env_error')
  assert success.count_env_errors(episodes) == {'mempi': {'heldout_games': 1}, 'none': {'heldout_games': 1}}
  rows = {row['memory']: row for row in success.summarise(episodes)}
  assert rows['mempi']['n'] == rows['none']['n'] == 11
  assert rows['mempi']['success_rate'] == pytest.approx(10 / 11, abs=1e-6)
  (found,) = success.compare(episodes, [('mempi', 'none')])
  assert found['diff'] == pytest.approx(7 / 10, abs=1e-6)  # both lost a pair that agreed
  assert len(success.paired(episodes, 'heldout_games', 'mempi', 'none')) == 10


def test_several_seeds_a_task_are_one_cluster():
  once = evaluation({'mempi': [True] * 5 + [False], 'none': [False] * 6})
  copies = [dict(e, seed=seed) for seed in range(5) for e in once]
  (a,), (b,) = success.compare(once, [('mempi', 'none')]), success.compare(copies, [('mempi', 'none')])
  assert a == b
  assert success.summarise(copies)[1]['ci95'] == success.summarise(once)[1]['ci95']


def test_missing_episodes_are_named():
  episodes = evaluation(TWELVE)[:-1]
  for function in (success.summarise, lambda e: success.compare(e, [('mempi', 'none')])):
    with pytest.raises(success.EpisodesError, match=r'none lacks 1 of 12 episodes: \(heldout_games, t011, seed 0\)'):
      function(episodes)
  with pytest.raises(success.EpisodesError, match='t000, seed 0.*twice'):
    success.summarise(episodes + [episodes[0]])


def test_absent_memory_is_named_and_its_pairs_are_not_offered():
  episodes = evaluation({**TWELVE, 'rag': TWELVE['none']})
  with pytest.raises(success.EpisodesError, match='oracle.*none, rag, mempi'):
    success.compare(episodes, [('oracle', 'none')])
  assert success.present_pairs(episodes) == [('rag', 'none'), ('mempi', 'none'), ('mempi', 'rag')]


# Files.


def write(workdir, episodes, manifest=None, base_runs=None):
  text = ''.join(json.dumps(e) + '\n' for e in episodes)
  files.write_text(workdir / success.EPISODES_FILE, text)
  if manifest is not None:
    files.write_json(workdir / 'manifest.json', manifest)
  if base_runs is not None:
    files.write_text(workdir / success.BASE_RUNS_FILE, ''.join(json.dumps(e) + '\n' for e in base_runs))
  return workdir


def test_read_round_trip(tmp_path):
  episodes = evaluation(TWELVE)
  assert success.read_episodes(write(tmp_path, episodes)) == episodes
  assert success.read_base_runs(tmp_path) == []


@pytest.mark.parametrize(
  'change, message',
  [
    ({'seed': '0'}, "episodes.jsonl:2: field 'seed' is '0', expected int"),
    ({'seed': True}, "field 'seed' is True, expected int"),
    ({'success': 1}, "field 'success' is 1, expected bool"),
    ({'decision': 'GENERATE'}, 'expected one of .GENERATE., .ABSTAIN.'),
    ({'status': 'lost'}, 'expected one of success, failure, truncated, env_error'),
    ({'status': 'success', 'success': False}, "success is False, but status is 'success'"),
  ],
)
def test_wrong_fields_are_named(tmp_path, change, message):
  write(tmp_path, [episode('none', 'a', True), {**episode('none', 'b', False), **change}])
  with pytest.raises(success.EpisodesError, match=message):
    success.read_episodes(tmp_path)


def test_missing_field_and_missing_file(tmp_path):
  with pytest.raises(FileNotFoundError):
    success.read_episodes(tmp_path)
  record = episode('none', 'a', True)
  del record['agent_steps']
  write(tmp_path, [record])
  with pytest.raises(success.EpisodesError, match="episodes.jsonl:1: no field 'agent_steps'"):
    success.read_episodes(tmp_path)


MANIFEST = {'agent_hash': 'x', 'step_cap': 10, 'sampler': {'greedy': True}, 'household': 1, 'seed': 0}


def manifest_of(household, seed):
  """As a run writes it: the games follow from household and seed."""
  return {**MANIFEST, 'household': household, 'seed': seed, 'games': {'heldout_games': f'hash of {household} {seed}'}}


def test_pool_clusters_games_over_seeds_and_separates_households(tmp_path):
  runs = [(h, s, write(tmp_path / f'{h}{s}', evaluation(TWELVE), manifest_of(h, s))) for h in 'ab' for s in (0, 1)]
  pooled = success.pool(runs)
  rows = success.summarise(pooled)
  assert [row['n'] for row in rows] == [48, 48]
  # Seeds repeat the games, households bring new ones: 24 clusters.
  games = {success.task_of(e) for e in pooled}
  assert len(games) == 24
  (found,) = success.compare(pooled, [('mempi', 'none')])
  assert found['mcnemar_p'] == pytest.approx(scipy_stats.binomtest(16, 18, 0.5).pvalue, rel=1e-5)
  assert [success.run_of(workdir) for _, _, workdir in runs] == runs


def test_pool_refuses_runs_that_are_not_comparable(tmp_path):
  a = write(tmp_path / 'a', evaluation(TWELVE), MANIFEST)
  b = write(tmp_path / 'b', evaluation(TWELVE), {**MANIFEST, 'seed': 1, 'step_cap': 50})
  with pytest.raises(ManifestError, match='step_cap: 10 against 50') as error:
    success.pool([('1', 0, a), ('1', 1, b)])
  assert str(a) in str(error.value) and str(b) in str(error.value)
  with pytest.raises(success.EpisodesError, match='household 1 with seed 0 comes 2 times'):
    success.pool([('1', 0, a), ('1', 0, a)])
  with pytest.raises(success.EpisodesError, match='no runs'):
    success.pool([])


WHOLE_MANIFEST = {  # as runtime/manifest.py and world.py make it
  'agent_hash': '79ad1a0d2042cc5b',
  'backend': 'simulator',
  'config_hash': '1e8c',
  'context_length': 512,
  'games': {'heldout_games': 'a49e', 'train': '6ba0'},
  'history_length': 16,
  'household': 'maple',
  'packages': {'jax': '0.10.2', 'numpy': '2.4.6'},
  'platform': 'Linux x86_64',
  'prompt_template_hash': '74dc6d492598f7c6',
  'python': '3.11.7',
  'sampler': {'agent_temperature': 0.5, 'policy_temperature': 0.0, 'threshold': 0.5},
  'seed': 0,
  'split_sizes': {'heldout_games': 12, 'train': 920},
  'step_cap': 16,
}
MAY_DIFFER = ('config_hash', 'games', 'household', 'seed')


def changed(tree, *path):
  """A copy of a manifest with another value at a path."""
  name, *rest = path
  return {**tree, name: changed(tree[name], *rest) if rest else f'other than {tree[name]}'}


def paths(tree):
  return [(name, *rest) for name, value in tree.items() for rest in (paths(value) if isinstance(value, dict) else [()])]


@pytest.mark.parametrize('path', paths(WHOLE_MANIFEST), ids='.'.join)
def test_a_row_is_refused_beside_one_whose_manifest_differs(tmp_path, path):
  a = write(tmp_path / 'a', evaluation(TWELVE), WHOLE_MANIFEST)
  b = write(tmp_path / 'b', evaluation(TWELVE), changed(WHOLE_MANIFEST, *path))
  runs = [('maple', 0, a), ('maple', 1, b)]
  if path[0] in MAY_DIFFER:
    assert len(success.pool(runs)) == 48
    return
  for function in (success.pool, success.pool_base_runs):
    with pytest.raises(ManifestError) as error:
      function(runs)
    value = WHOLE_MANIFEST[path[0]][path[1]] if path[1:] else WHOLE_MANIFEST[path[0]]
    assert str(error.value) == (
      f'{a} and {b}: these runs cannot be compared, their manifests differ in {".".join(path)}: {value} against other than {value}'
    )


def test_every_field_that_differs_is_named_and_so_is_one_that_is_absent(tmp_path):
  a = write(tmp_path / 'a', evaluation(TWELVE), WHOLE_MANIFEST)
  other = changed(changed(WHOLE_MANIFEST, 'step_cap'), 'sampler', 'threshold')
  del other['agent_hash']
  b, c = write(tmp_path / 'b', evaluation(TWELVE), WHOLE_MANIFEST), write(tmp_path / 'c', evaluation(TWELVE), other)
  fields = 'agent_hash: 79ad1a0d2042cc5b against absent; sampler.threshold: 0.5 .*; step_cap: 16 against'
  with pytest.raises(ManifestError, match=fields) as error:
    success.pool([('maple', 0, a), ('maple', 1, b), ('maple', 2, c)])
  assert str(error.value).startswith(f'{a} and {c}: ')


def test_pool_needs_two_runs(tmp_path):
  a = write(tmp_path / 'a', evaluation(TWELVE), MANIFEST)
  for function in (success.pool, success.pool_base_runs):
    with pytest.raises(success.EpisodesError, match=r'a \(household maple, seed 0\) is the only run: pooling needs at least 2'):
      function([('maple', 0, a)])


def test_pool_refuses_an_empty_split(tmp_path):
  both = evaluation(TWELVE) + evaluation(TWELVE, split='long_horizon')
  a = write(tmp_path / 'a', both, MANIFEST)
  b = write(tmp_path / 'b', evaluation(TWELVE), {**MANIFEST, 'seed': 1})
  with pytest.raises(success.EpisodesError, match=f'no valid episodes to pool on long_horizon in {b}$'):
    success.pool([('1', 0, a), ('1', 1, b)])
  # A split that broke down is as empty.
  broken = [{**e, 'status': 'env_error', 'success': False} if e['split'] == 'long_horizon' else e for e in both]
  write(b, broken)
  with pytest.raises(success.EpisodesError, match=f'no valid episodes to pool on long_horizon in {b}$'):
    success.pool([('1', 0, a), ('1', 1, b)])
  # So is one that only the manifests know of; train is none that is evaluated.
  sizes = {'split_sizes': {'train': 90, 'heldout_games': 12, 'heldout_goals': 4}}
  write(a, evaluation(TWELVE), {**MANIFEST, **sizes})
  write(b, evaluation(TWELVE), {**MANIFEST, 'seed': 1, **sizes})
  with pytest.raises(success.EpisodesError, match=f'on heldout_goals in {a}; heldout_goals in {b}$'):
    success.pool([('1', 0, a), ('1', 1, b)])
  for workdir in (a, b):
    write(workdir, [], {**MANIFEST})
  with pytest.raises(success.EpisodesError, match='no valid episodes to pool$'):
    success.pool([('1', 0, a), ('1', 1, b)])


def test_pool_refuses_runs_with_other_games(tmp_path):
  a = write(tmp_path / 'a', evaluation(TWELVE), MANIFEST)
  b = write(tmp_path / 'b', evaluation({'none': [True]}), {**MANIFEST, 'seed': 1})
  with pytest.raises(success.EpisodesError, match='mempi lacks 1 of 13 episodes: .household 1, run seed 1'):
    success.summarise(success.pool([('1', 0, a), ('1', 1, b)]))


def test_run_of_reads_the_config_where_the_manifest_is_silent(tmp_path):
  files.write_json(tmp_path / 'manifest.json', {'step_cap': 10})
  with pytest.raises(success.EpisodesError, match="'household'"):
    success.run_of(tmp_path)
  files.write_json(tmp_path / 'config.json', {'seed': 3, 'world': {'household': 17, 'seed': 9}})
  assert success.run_of(tmp_path) == ('17', 3, tmp_path)
