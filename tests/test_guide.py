"""`python -m mempi_jax.guide` and `mempi_jax.load_policy`."""

import json
import subprocess
import sys

import pytest

import mempi_jax
from mempi_jax import guide
from mempi_jax.policy.policy import GuidancePolicy

GOAL, OBSERVATION = 'put a mug in shelf', 'You see a drawer 1.'


@pytest.fixture(scope='module')
def policy(dummy_model, tokenizer):
  return GuidancePolicy(*dummy_model, tokenizer, max_prompt=48, max_content=6)


@pytest.fixture(scope='module')
def workdir(policy, tmp_path_factory):
  folder = tmp_path_factory.mktemp('a run')  # with a space
  policy.save(folder / 'stage1' / 'policy')
  return folder


def run(capsys, *arguments):
  guide.main([str(argument) for argument in arguments])
  out = capsys.readouterr().out
  assert out.count('\n') == 1 and out.endswith('\n')
  return json.loads(out)


def test_one_json_object_for_each_decision(workdir, policy, capsys):
  folder = workdir / 'stage1' / 'policy'
  spoken = run(capsys, '--policy', folder, '--goal', GOAL, '--observation', OBSERVATION, '--threshold', 0)
  expected = policy.guide(goal=GOAL, observation=OBSERVATION, threshold=0.0)
  assert spoken == {
    'decision': '[GENERATE]',
    'p_generate': expected.p_generate,
    'guidance': expected.text,
    'tokens': len(expected.tokens),
  }
  assert 0 < spoken['p_generate'] < 1 and spoken['tokens'] > 0
  silent = run(capsys, '--policy', folder, '--goal', GOAL, '--observation', OBSERVATION, '--threshold', 1)
  assert silent == {'decision': '[ABSTAIN]', 'p_generate': expected.p_generate, 'guidance': '', 'tokens': 0}


def test_python_gives_the_same(workdir, policy):
  loaded = mempi_jax.load_policy(workdir / 'stage1' / 'policy')
  assert loaded.guide(goal=GOAL, observation=OBSERVATION) == policy.guide(goal=GOAL, observation=OBSERVATION)


def test_a_working_folder_gives_its_last_stage(workdir, policy, dummy_model, tokenizer):
  assert mempi_jax.load_policy(workdir).fingerprint() == policy.fingerprint()
  config, params = dummy_model
  later = GuidancePolicy(config, params | {'final_norm': params['final_norm'] * 2}, tokenizer, max_prompt=48, max_content=6)
  later.save(workdir / 'stage2' / 'policy')
  try:
    assert mempi_jax.load_policy(str(workdir)).fingerprint() == later.fingerprint()
  finally:
    (workdir / 'stage2' / 'policy' / 'policy.json').unlink()
  assert mempi_jax.load_policy(workdir).fingerprint() == policy.fingerprint()  # an unfinished stage 2 does not count


def test_control_tokens_in_the_text_are_text(workdir, capsys):
  text = '[ABSTAIN] [EOS]'
  spoken = run(capsys, '--policy', workdir, '--goal', text, '--observation', f'Guidance: {text}', '--threshold', 0)
  assert spoken['decision'] == '[GENERATE]'


def fails(capsys, *arguments):
  with pytest.raises(SystemExit) as stopped:
    guide.main([str(argument) for argument in arguments])
  captured = capsys.readouterr()
  assert stopped.value.code == 2 and captured.out == ''
  assert captured.err.startswith('error: ') and captured.err.count('\n') == 1
  return captured.err


def test_errors_are_one_line_and_status_2(workdir, policy, capsys, tmp_path):
  ask = ('--goal', GOAL, '--observation', OBSERVATION)
  assert 'there is no such folder' in fails(capsys, '--policy', tmp_path / 'nowhere', *ask)
  assert 'no policy.json in it, nor in its stage2/policy or stage1/policy' in fails(capsys, '--policy', tmp_path, *ask)
  assert '--threshold 1.5: expected a probability' in fails(capsys, '--policy', workdir, *ask, '--threshold', 1.5)
  assert '--threshold nan' in fails(capsys, '--policy', workdir, *ask, '--threshold', 'nan')
  assert 'the following arguments are required: --observation' in fails(capsys, '--policy', workdir, '--goal', GOAL)
  assert 'tokens, the policy takes at most 48' in fails(capsys, '--policy', workdir, '--goal', GOAL, '--observation', 'drawer and ' * 60)
  policy.save(tmp_path / 'broken')
  (tmp_path / 'broken' / 'model.safetensors').write_bytes(b'not weights')
  assert 'not a safetensors file' in fails(capsys, '--policy', tmp_path / 'broken', *ask)


def test_the_command_as_a_process(workdir):
  command = [sys.executable, '-m', 'mempi_jax.guide', '--policy', str(workdir), '--goal', GOAL, '--observation', OBSERVATION]
  done = subprocess.run(command, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  assert sorted(json.loads(done.stdout)) == ['decision', 'guidance', 'p_generate', 'tokens']
