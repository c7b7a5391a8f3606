"""What each host of tests/test_hosts_run.py does, in one process: python hosts_run_program.py WORKDIR HOST COORDINATOR.

First three updates on two meshes, beside those of one device; then training and evaluation of the small run, as the commands do it.
"""

import argparse
import sys

import jax

from mempi_jax.config import parse_command_line
from mempi_jax.evaluate import evaluate
from mempi_jax.runtime import hosts
from mempi_jax.runtime.sharding import local_layout
from mempi_jax.runtime.workdir import join_hosts
from mempi_jax.train import train
from mempi_jax.world import open_world
from tests.layouts import layout
from tests.small_run import arguments
from tests.training.updates import assert_same, three_updates

workdir, host, coordinator = sys.argv[1:]
command = [*arguments(workdir, compile_ahead=False), '--hosts=2', f'--host={host}', f'--coordinator={coordinator}']
parsed, config = parse_command_line(argparse.ArgumentParser(), command)
join_hosts(parsed, config)
assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 2, 1)

for stage in ('sft', 'rl'):
  both = [three_updates(layout(*mesh), stage) for mesh in ((2, 1, 1), (1, 2, 1))]
  if hosts.is_first():
    one = three_updates(local_layout(layout(2, 1, 1)), stage)
    for found in both:
      assert_same(found, one, 1e-5)
print('meshes: fine', flush=True)

train(config, parsed.workdir)
with open_world(config, parsed.workdir, remember=True) as world:
  evaluate(world)
hosts.disconnect()
print('run: fine', flush=True)
