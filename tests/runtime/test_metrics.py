"""Metric files and progress bars."""

import jax.numpy as jnp
import numpy as np
import pytest

from mempi_jax.runtime.metrics import METRICS_FILE, MetricWriter, progress, read_metrics


def test_write_and_read(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer.write(0, {'train/loss': jnp.float32(0.5), 'rollout/success': 1})
    writer.write(1, {'train/loss': np.float64(0.25)})
  assert read_metrics(tmp_path) == [{'step': 0, 'train/loss': 0.5, 'rollout/success': 1.0}, {'step': 1, 'train/loss': 0.25}]
  assert list((tmp_path / 'tensorboard').glob('events*'))
  assert read_metrics(tmp_path / 'nothing') == []


def test_resume_gives_the_file_of_a_run_that_never_stopped(tmp_path):
  def run(folder, start, stop):
    with MetricWriter(folder, resume_step=start) as writer:
      for step in range(start, stop):
        writer.write(step, {'train/loss': 1 / (step + 3)})

  run(tmp_path / 'whole', 0, 10)
  run(tmp_path / 'cut', 0, 7)
  with open(tmp_path / 'cut' / METRICS_FILE, 'a') as file:
    file.write('{"step": 7, "train')  # killed in the middle of a line
  run(tmp_path / 'cut', 4, 10)  # the last checkpoint was that of step 4
  assert (tmp_path / 'cut' / METRICS_FILE).read_bytes() == (tmp_path / 'whole' / METRICS_FILE).read_bytes()


@pytest.mark.parametrize('value', [float('nan'), float('inf'), jnp.float32('nan')])
def test_a_broken_value_stops_the_run(tmp_path, value):
  with MetricWriter(tmp_path) as writer:
    with pytest.raises(FloatingPointError, match=r'step 3: train/loss is (nan|inf)'):
      writer.write(3, {'train/kl': 0.0, 'train/loss': value})
  assert read_metrics(tmp_path) == []


@pytest.mark.parametrize('name', ['loss', 'Train/loss', 'train/', '/loss', 'train loss/x'])
def test_names(tmp_path, name):
  with MetricWriter(tmp_path) as writer, pytest.raises(ValueError, match='expected room/thing'):
    writer.write(0, {name: 1.0})


def test_steps_do_not_go_back(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer.write(5, {'train/loss': 1.0})
    writer.write(5, {'eval/success': 1.0})
    with pytest.raises(ValueError, match='step 4 come after those of step 5'):
      writer.write(4, {'train/loss': 1.0})


def test_progress_goes_to_stderr(capsys):
  with progress(total=4, description='stage 1', initial=2) as bar:
    bar.update()
    bar.update()
  captured = capsys.readouterr()
  assert captured.out == '' and 'stage 1: 100%' in captured.err and '4/4' in captured.err
