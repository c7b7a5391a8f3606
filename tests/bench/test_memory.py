"""The plan of an update's memory, and where the seconds of a training went."""

import argparse
import importlib.util

import jax
import pytest

from mempi_jax.bench.memory import bench_memory, print_memory
from mempi_jax.bench.overhead import bench_overhead, figures, print_overhead
from mempi_jax.config import ConfigError
from mempi_jax.models.decoder import count_params, init_params
from mempi_jax.models.presets import preset
from mempi_jax.runtime import files
from tests.small_run import CONFIG

FIELDS = {'stage2.groups': '8', 'policy.batch_size': '16', 'policy.model': 'dummy'}


def options(**changes):
  return argparse.Namespace(
    **{'config': str(CONFIG), 'devices': 0, 'topology': '', 'device_gb': 0.0, 'stages': 'stage2', 'measure': False} | changes
  )


def test_what_an_update_takes(capsys):
  result = bench_memory(options(device_gb=1.0, measure=True), FIELDS)
  found = result['stages']['stage2']
  count = count_params(jax.eval_shape(lambda: init_params(preset('dummy', 2048), jax.random.key(0))))
  assert found['number of parameters trained'] == count and found['parameters trained'] == found['reference of stage 2'] == 4 * count
  assert found['optimizer and batch'] >= 2 * 4 * count  # two moments
  parts = ('parameters trained', 'parameters frozen', 'optimizer and batch', 'gradients, activations and other temporaries')
  assert found['update'] == sum(found[name] for name in parts)
  assert found['total'] == found['update'] + found['copy to sample with'] + found['reference of stage 2'] + found['key-value cache']
  assert found['measured'] > 0
  print_memory(result)
  assert 'fits in 1 GB' in capsys.readouterr().out
  found['total'] = 2e9
  print_memory(result)
  assert 'DOES NOT FIT in 1 GB: 200%' in capsys.readouterr().out


@pytest.mark.slow
def test_micro_batches_and_lora_take_less():
  temporaries = lambda **fields: bench_memory(options(), FIELDS | fields)['stages']['stage2']['gradients, activations and other temporaries']
  assert temporaries(**{'stage2.micro_batches': '4'}) < 0.6 * temporaries()
  found = bench_memory(options(), FIELDS | {'policy.lora.rank': '2', 'policy.scan_layers': 'True'})['stages']['stage2']
  assert 0 < found['parameters trained'] < 0.5 * found['parameters frozen']
  assert found['copy to sample with'] >= found['parameters frozen']  # sampling has the unrolled layout


def test_what_cannot_be_planned():
  with pytest.raises(ConfigError, match='policy.model'):
    bench_memory(options(), {'policy.model': ''})
  with pytest.raises(ValueError, match='expected some of stage1, stage2'):
    bench_memory(options(stages='stage3'), FIELDS)
  with pytest.raises(ValueError, match='found 1'):
    bench_memory(options(devices=64), FIELDS)
  if importlib.util.find_spec('libtpu') is None:
    with pytest.raises(ValueError, match='needs libtpu'):
      bench_memory(options(topology='v5p:2x2x2'), FIELDS)


def test_overheads(tmp_path, capsys):
  timing = {
    'total': 12.0, 'steps': 10, 'within_source': {'rollout': 3.0, 'scores': 1.0},
    'parts': {'compile': 1.0, 'evaluate': 1.0, 'source': 4.2, 'update': 5.0, 'checkpoint': 0.1},
  }  # fmt: skip
  found = figures(timing)
  assert found['step'] == pytest.approx(1.0) and found['update'] == pytest.approx(0.5) and found['episodes and scores'] == pytest.approx(0.4)
  assert found['host'] == pytest.approx(0.1) and found['host share'] == pytest.approx(0.1)
  assert found['of it batches'] == pytest.approx(0.02) and found['of it checkpoints'] == pytest.approx(0.01)
  with pytest.raises(FileNotFoundError, match='no timing.json'):
    bench_overhead(tmp_path)
  files.write_json(tmp_path / 'stage2' / 'timing.json', timing)
  print_overhead(bench_overhead(tmp_path))
  assert 'stage2: 10 steps' in capsys.readouterr().out
