"""Variants pooled and paired by hand; those that did not play the same episodes, or under the same conditions, are refused by name."""

import json
import subprocess
import sys

import pytest
from scipy import stats as scipy_stats

from mempi_jax.evals import success, variants
from mempi_jax.runtime import files
from mempi_jax.runtime.manifest import ManifestError

MANIFEST = {
  'agent_hash': '79ad',
  'backend': 'simulator',
  'config_hash': '1e8c',
  'context_length': 512,
  'games': {'heldout_games': 'a49e', 'train': '6ba0'},
  'history_length': 16,
  'packages': {'jax': '0.10.2'},
  'platform': 'Linux x86_64',
  'prompt_template_hash': '74dc',
  'python': '3.11.7',
  'sampler': {'agent_temperature': 0.5, 'threshold': 0.5},
  'split_sizes': {'heldout_games': 12, 'train': 920},
  'step_cap': 16,
}
ALONE = [False] * 6 + [True] * 6


def episode(memory, task, solved, *, split='heldout_games', seed=7, decision='[GENERATE]', tokens=4):
  if memory == 'none':
    decision, tokens = '[ABSTAIN]', 0
  return {
    'memory': memory, 'split': split, 'task_id': task, 'seed': seed, 'decision': decision, 'p_generate': 0.5, 'guidance_tokens': tokens,
    'success': solved, 'status': 'success' if solved else 'truncated', 'agent_steps': 5, 'steps': [['look', 'a room']],
  }  # fmt: skip


def write_run(folder, outcomes, *, household='maple', seed=0, change=None, splits=('heldout_games',)):
  """A run's folder; outcomes: memory -> list of bool, one a game. Games are named by the run's seed: other seeds play other games."""
  episodes = [
    episode(memory, f's{seed}-{i:03d}', solved, split=split)
    for split in splits
    for memory, row in outcomes.items()
    for i, solved in enumerate(row)
  ]
  for one in episodes if change else ():
    change(one)
  files.write_text(folder / success.EPISODES_FILE, ''.join(json.dumps(one) + '\n' for one in episodes))
  manifest = MANIFEST | {'household': household, 'seed': seed, 'games': {'heldout_games': f'{household} {seed}', 'train': 'x'}}
  files.write_json(folder / 'manifest.json', manifest)
  return folder


def change_manifest(folder, **fields):
  files.write_json(folder / 'manifest.json', files.read_json(folder / 'manifest.json') | fields)


def write_variants(tmp_path, outcomes, seeds=(0, 1), **options):
  """outcomes: variant -> list of bool of mempi; every variant's agent alone plays alike."""
  return {
    variant: [write_run(tmp_path / f'{variant}{seed}', {'none': ALONE, 'mempi': row}, seed=seed, **options) for seed in seeds]
    for variant, row in outcomes.items()
  }


# 9 games that full alone solves, 1 that no_gate alone solves, 2 alike: a run has twelve.
FULL = [True] * 10 + [False] * 2
NO_GATE = [True] + [False] * 9 + [True, False]
OUTCOMES = {'full': FULL, 'no_gate': NO_GATE, 'same': FULL}


def test_pairing_by_hand(tmp_path):
  found = variants.read_variants(write_variants(tmp_path, OUTCOMES))
  assert list(found) == ['full', 'no_gate', 'same'] and all(len(episodes) == 48 for episodes in found.values())
  rows = variants.summarise(found)
  assert list(rows[0])[:4] == ['variant', 'split', 'memory', 'n'] and rows[0]['runs'] == 2
  assert [(row['variant'], row['memory'], row['n']) for row in rows] == [(v, m, 24) for v in OUTCOMES for m in ('none', 'mempi')]
  assert [row['success_rate'] for row in rows[1::2]] == pytest.approx([20 / 24, 4 / 24, 20 / 24], abs=1e-6)
  no_gate, same = variants.compare(found)
  assert list(no_gate) == ['split', 'memory', 'variant', 'reference', 'diff', 'ci95', 'mcnemar_p', 'holm_p', 'minimum_detectable_effect']
  assert (no_gate['memory'], no_gate['variant'], no_gate['reference']) == ('mempi', 'no_gate', 'full')
  assert no_gate['diff'] == pytest.approx(-16 / 24, abs=1e-6) and no_gate['ci95'][0] < -16 / 24 < no_gate['ci95'][1] < 0
  assert no_gate['mcnemar_p'] == pytest.approx(scipy_stats.binomtest(2, 20, 0.5).pvalue, rel=1e-5)
  assert no_gate['holm_p'] == pytest.approx(2 * no_gate['mcnemar_p'], rel=1e-5)
  assert same['diff'] == 0.0 and same['mcnemar_p'] == same['holm_p'] == 1.0
  assert variants.changed_alone(found) == {}


def test_it_is_the_comparison_of_two_memories(tmp_path):
  """The same outcomes as two memories of one evaluation give the same numbers."""
  (found, _) = variants.compare(variants.read_variants(write_variants(tmp_path, OUTCOMES, seeds=(0,))))
  run = write_run(tmp_path / 'run', {'rag': FULL, 'mempi': NO_GATE})
  (expected,) = success.compare(success.read_episodes(run), [('mempi', 'rag')])
  for name in ('diff', 'ci95', 'mcnemar_p', 'minimum_detectable_effect'):
    assert found[name] == expected[name]


def test_several_seeds_of_a_game_are_one_cluster(tmp_path):
  def run(folder, outcomes, copies):
    records = [episode('mempi', f't{i}', solved, seed=copy) for copy in range(copies) for i, solved in enumerate(outcomes)]
    files.write_text(folder / success.EPISODES_FILE, ''.join(json.dumps(one) + '\n' for one in records))
    files.write_json(folder / 'manifest.json', MANIFEST | {'household': 'maple', 'seed': 0})
    return folder

  found = []
  for copies in (1, 5):
    runs = {name: [run(tmp_path / f'{name}{copies}', OUTCOMES[name], copies)] for name in ('full', 'no_gate')}
    found.append(variants.compare(variants.read_variants(runs)))
  assert found[0] == found[1]


def test_holm_is_over_the_variants_of_a_split_and_memory(tmp_path):
  # Of ten games the reference solves none; a six alone, b five: p = 1/32 and 1/16.
  outcomes = {'full': [False] * 10, 'a': [True] * 6 + [False] * 4, 'b': [True] * 5 + [False] * 5}
  workdirs = {
    variant: [write_run(tmp_path / variant, {'mempi_stage1': [True] * 10, 'mempi': row}, splits=('long_horizon', 'heldout_games'))]
    for variant, row in outcomes.items()
  }
  found = variants.compare(variants.read_variants(workdirs))
  assert [(row['split'], row['memory'], row['variant']) for row in found] == [
    (split, memory, variant) for split in ('heldout_games', 'long_horizon') for memory in ('mempi_stage1', 'mempi') for variant in 'ab'
  ]
  assert [row['mcnemar_p'] for row in found] == [1.0, 1.0, 1 / 32, 1 / 16] * 2
  assert [row['holm_p'] for row in found] == [1.0, 1.0, 1 / 16, 1 / 16] * 2


def test_environment_errors_leave_the_pair_out(tmp_path):
  workdirs = write_variants(tmp_path, OUTCOMES, seeds=(0,))

  def break_one(one):
    if (one['memory'], one['task_id']) == ('mempi', 's0-000'):  # both solve it
      one.update(success=False, status='env_error')

  write_run(workdirs['no_gate'][0], {'none': ALONE, 'mempi': NO_GATE}, change=break_one)
  found = variants.read_variants(workdirs)
  assert [row['n'] for row in variants.summarise(found) if row['memory'] == 'mempi'] == [12, 11, 12]
  no_gate, same = variants.compare(found)
  assert no_gate['diff'] == pytest.approx(-8 / 11, abs=1e-6) and same['diff'] == 0.0


def test_memories_that_are_fixed_or_absent_are_not_compared(tmp_path):
  fixed = dict.fromkeys(variants.FIXED, FULL)
  workdirs = {
    'full': [write_run(tmp_path / 'a', {**fixed, 'rag': FULL, 'mempi': FULL})],
    'no_bank': [write_run(tmp_path / 'b', {**fixed, 'mempi': FULL, 'mem0': FULL})],
    'other': [write_run(tmp_path / 'c', {**fixed, 'rag': FULL, 'mempi': FULL})],
  }
  found = variants.read_variants(workdirs)
  assert [(row['memory'], row['variant']) for row in variants.compare(found)] == [('rag', 'other'), ('mempi', 'no_bank'), ('mempi', 'other')]
  assert ('no_bank', 'mem0') in {(row['variant'], row['memory']) for row in variants.summarise(found)}


def test_an_agent_alone_that_played_otherwise_is_counted(tmp_path):
  workdirs = write_variants(tmp_path, OUTCOMES, seeds=(0,))
  write_run(workdirs['same'][0], {'none': [not solved for solved in ALONE[:2]] + ALONE[2:], 'mempi': FULL})
  assert variants.changed_alone(variants.read_variants(workdirs)) == {'same': 2}


# Refusals.


def test_a_variant_that_lacks_a_run_is_refused(tmp_path):
  workdirs = write_variants(tmp_path, OUTCOMES)
  workdirs['no_gate'].pop()
  with pytest.raises(success.EpisodesError, match=r"same runs, but 'no_gate' lacks household maple, seed 1$"):
    variants.read_variants(workdirs)
  with pytest.raises(success.EpisodesError, match="two variants or more to compare, found 'full'"):
    variants.read_variants({'full': workdirs['full']})


def test_other_games_and_seeds_are_refused(tmp_path):
  workdirs = write_variants(tmp_path, OUTCOMES, seeds=(0,))
  write_run(workdirs['no_gate'][0], {'none': ALONE, 'mempi': NO_GATE}, change=lambda one: one.update(seed=8))
  with pytest.raises(success.EpisodesError, match=r"'no_gate' lacks 12 of 24 episodes: \(household maple, run seed 0, heldout_games, s0-000, seed 7\)"):
    variants.read_variants(workdirs)
  write_run(workdirs['no_gate'][0], {'none': ALONE[:-1], 'mempi': NO_GATE[:-1]})
  with pytest.raises(success.EpisodesError, match=r"episodes, but 'no_gate' lacks 1 of 12 episodes: .*s0-011"):
    variants.read_variants(workdirs)


def test_memories_of_a_variant_that_differ_in_episodes_are_refused(tmp_path):
  workdirs = write_variants(tmp_path, OUTCOMES, seeds=(0,))
  write_run(workdirs['no_gate'][0], {'none': ALONE, 'mempi': NO_GATE[:-1]})
  with pytest.raises(success.EpisodesError, match="variant 'no_gate': memories can only be compared .* mempi lacks 1 of 12"):
    variants.read_variants(workdirs)


@pytest.mark.parametrize(
  'fields, named',
  [
    ({'agent_hash': 'other'}, 'agent_hash: 79ad against other'),
    ({'prompt_template_hash': 'other'}, 'prompt_template_hash'),
    ({'step_cap': 50}, 'step_cap: 16 against 50'),
    ({'history_length': 1}, 'history_length'),
    ({'context_length': 1}, 'context_length'),
    ({'packages': {'jax': '0.1'}}, 'packages.jax: 0.10.2 against 0.1'),
    ({'sampler': {'agent_temperature': 1.0, 'threshold': 0.5}}, 'sampler.agent_temperature: 0.5 against 1.0'),
    ({'games': {'heldout_games': 'other', 'train': 'x'}}, 'games.heldout_games: maple 0 against other'),
    ({'sampler': {'agent_temperature': 0.5, 'threshold': 0.9}}, None),
    ({'games': {'heldout_games': 'maple 0', 'train': 'other'}}, None),
    ({'split_sizes': {'heldout_games': 12, 'train': 1}, 'config_hash': 'other'}, None),
  ],
)
def test_conditions_that_make_variants_incomparable(tmp_path, fields, named):
  workdirs = write_variants(tmp_path, OUTCOMES, seeds=(0,))
  change_manifest(workdirs['same'][0], **fields)
  if named is None:
    assert len(variants.read_variants(workdirs)) == 3
    return
  with pytest.raises(ManifestError, match=named) as error:
    variants.read_variants(workdirs)
  assert str(error.value).startswith(f'{workdirs["full"][0]} and {workdirs["same"][0]}: ')


def test_runs_of_a_variant_must_be_comparable_in_full(tmp_path):
  workdirs = write_variants(tmp_path, OUTCOMES)
  change_manifest(workdirs['same'][1], sampler={'agent_temperature': 0.5, 'threshold': 0.9})
  with pytest.raises(ManifestError, match='sampler.threshold: 0.5 against 0.9'):
    variants.read_variants(workdirs)


def test_it_needs_no_jax():
  code = 'import mempi_jax.variants_report, mempi_jax.sweep, sys; sys.exit("jax" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code], timeout=120).returncode == 0
