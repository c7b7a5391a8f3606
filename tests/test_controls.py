"""The control experiments of configs/, with two seeds each: what must hold holds, and the foil fails."""

from pathlib import Path

import pytest

from mempi_jax import train as train_lib
from mempi_jax.runtime import files

CONFIGS = Path(__file__).parents[1] / 'configs'


def passes(name: str, workdir: Path) -> bool:
  arguments = [f'--config={CONFIGS / name}.py', f'--workdir={workdir}', '--config.control.seeds=0,1']
  try:
    train_lib.main(arguments)
  except SystemExit as stopped:
    assert stopped.code == 1
  verdict = files.read_json(workdir / 'control.json')
  assert len(verdict['rows']) == 2 and verdict['passed'] == (not verdict['failures'])
  return verdict['passed']


@pytest.mark.slow
@pytest.mark.parametrize('name', ['control_null', 'control_mixed', 'control_oracle'])
def test_the_decision_update_passes_its_controls(name, tmp_path):
  assert passes(name, tmp_path)


@pytest.mark.slow
def test_a_sign_style_signal_fails_the_null_control(tmp_path):
  assert not passes('control_null_sign', tmp_path)
