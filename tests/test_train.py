"""The real commands, end to end, on few games: training, resuming after a kill, evaluation, results that repeat."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from mempi_jax import collect as collect_lib
from mempi_jax import evaluate as evaluate_lib
from mempi_jax import train as train_lib
from mempi_jax.runtime import files
from mempi_jax.runtime.metrics import read_metrics
from mempi_jax.sources.rollout import RolloutSource
from tests.small_run import arguments


def outcome(workdir: Path) -> dict:
  """Everything that must not depend on when a run was stopped: results without wall times, metrics of both stages, the bank."""
  results = json.loads((workdir / 'results.json').read_text())
  results.pop('wall_time_s')
  return {
    'results': results,
    'stage1': read_metrics(workdir / 'stage1'),
    'stage2': read_metrics(workdir / 'stage2'),
    'bank': files.hash_file(workdir / 'bank' / 'bank.jsonl'),
    'episodes': files.hash_file(workdir / 'eval' / 'episodes.jsonl'),
  }


def test_workdir_and_results(finished):
  for name in ('agent', 'bank', 'stage1/policy', 'stage2/policy', 'eval', 'config.json', 'manifest.json'):
    assert (finished / name).exists(), name
  results = json.loads((finished / 'results.json').read_text())
  assert {(row['split'], row['memory']) for row in results['rows']} == {
    (split, memory)
    for split in ('heldout_games', 'heldout_goals', 'long_horizon')
    for memory in ('none', 'oracle', 'rag', 'mempi_stage1', 'mempi')
  }
  assert [row['n'] for row in results['rows'] if row['split'] == 'heldout_games'] == [16] * 5
  none = next(row for row in results['rows'] if row['memory'] == 'none')
  assert none['abstain_rate'] == 1.0 and none['guidance_tokens'] == 0.0
  assert results['real_engine_replay'] == {'episodes': 0, 'agree': 0, 'reason': 'eval.replay_episodes is 0'}
  assert sum(bucket['n'] for bucket in results['abstention_by_difficulty']) == 16


def test_metrics_of_both_stages(finished):
  stage1, stage2 = read_metrics(finished / 'stage1'), read_metrics(finished / 'stage2')
  assert [line['step'] for line in stage1] == list(range(7)) and [line['step'] for line in stage2] == list(range(7))
  assert stage1[-1]['val/loss'] < stage1[0]['val/loss']
  played, replayed = stage2[1::2], stage2[2::2]
  assert all('rollout/reward_generate' in line for line in played) and not any('rollout/reward_generate' in line for line in replayed)
  assert all(line['content/kl'] >= 0 for line in played + replayed)  # replayed groups train contents too
  assert {'rollout/success_generate', 'rollout/success_abstain', 'probe/p_generate_easy', 'train/loss'} <= stage2[-1].keys() | stage2[-2].keys()


@pytest.fixture
def compilations():
  """An entry for every program that is compiled (or read from the compilation cache)."""
  seen = []
  listener = lambda name, seconds, **details: seen.append(name) if name.startswith('/jax/core/compile/backend_compile') else None
  jax.monitoring.register_event_duration_secs_listener(listener)
  yield seen
  jax.monitoring.unregister_event_duration_listener(listener)


def test_no_compilation_after_the_first_update(tmp_path, monkeypatch, compilations):
  played = []
  real = RolloutSource.next

  def next_batch(self, step, params):
    played.append(len(compilations))
    return real(self, step, params)

  monkeypatch.setattr(RolloutSource, 'next', next_batch)
  train_lib.main(arguments(tmp_path, compile_ahead=True, stage2__updates=6, stage2__evaluate_every=1))
  assert len(played) == 2 * 6
  # One update: its rollout, the update, the probes, the checkpoint; and one replay.
  assert played[2] > 0 and len(compilations) == played[2], compilations[played[2] :]
  lines = [line for line in read_metrics(tmp_path / 'stage2') if 'rollout/logp_gap' in line]
  assert len(lines) == 6 and all(0 <= line['rollout/logp_gap'] < 1e-4 for line in lines)


def test_a_second_run_changes_nothing(finished, capsys):
  before = {path: path.stat().st_mtime_ns for path in finished.rglob('*.jsonl')}
  train_lib.main(arguments(finished))
  evaluate_lib.main(arguments(finished))
  assert {path: path.stat().st_mtime_ns for path in before if 'tensorboard' not in str(path)} == before


def test_another_config_in_the_same_workdir_is_refused(finished, capsys):
  with pytest.raises(SystemExit):
    train_lib.main(arguments(finished, seed=1))
  assert 'seed is 0 there, 1 here' in capsys.readouterr().err


def test_a_bank_with_test_games_is_refused(finished, tmp_path, capsys):
  collect_lib.main(arguments(tmp_path))
  path = tmp_path / 'bank' / 'bank.jsonl'
  path.write_text(path.read_text().replace('"split": "train"', '"split": "heldout_games"', 1))
  with pytest.raises(SystemExit):
    train_lib.main(arguments(tmp_path))
  assert 'outside the train split' in capsys.readouterr().err


def test_misspelt_field_and_missing_agent(tmp_path, capsys):
  with pytest.raises(SystemExit):
    train_lib.main([*arguments(tmp_path), '--config.stage2.lenght_weight=0.1'])
  assert 'did you mean stage2.length_weight' in capsys.readouterr().err
  with pytest.raises(SystemExit):
    train_lib.main(arguments(tmp_path, agent__path=str(tmp_path / 'nowhere')))
  assert 'no agent checkpoint' in capsys.readouterr().err
  assert not (tmp_path / 'config.json').exists()


@pytest.mark.slow
@pytest.mark.parametrize(
  'command, landmark',
  [
    ('train', 'bank/episodes.jsonl'),
    ('train', 'stage1/checkpoints/00000003'),
    ('train', 'stage2/abstained.jsonl'),
    ('train', 'stage2/checkpoints/00000001'),
    ('evaluate', 'eval/episodes.jsonl'),
  ],
)
def test_killed_and_started_again(finished, tmp_path, command, landmark):
  """SIGKILL as soon as a landmark appears; the second run must end with the numbers of one that was never killed."""
  if command == 'evaluate':
    run('train', tmp_path)
  process = subprocess.Popen([sys.executable, '-m', f'mempi_jax.{command}', *arguments(tmp_path)], stderr=subprocess.DEVNULL)
  path = tmp_path / landmark
  while process.poll() is None and not (path.is_dir() or (path.exists() and path.stat().st_size > 2000)):
    time.sleep(0.02)
  assert process.poll() is None, 'the run was over before it could be killed'
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (tmp_path / 'results.json').exists()
  run('train', tmp_path)
  run('evaluate', tmp_path)
  found, expected = outcome(tmp_path), outcome(finished)
  # The configs' hashes agree as well: nothing in a manifest depends on the folder.
  assert found == expected


def run(command: str, workdir: Path) -> None:
  done = subprocess.run(
    [sys.executable, '-m', f'mempi_jax.{command}', *arguments(workdir)], env=os.environ, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr[-2000:]
