"""Runs every experiment of a config's `sweep()`: training, evaluation and report, each in a folder named after its overrides.

    python -m mempi_jax.sweep --config=configs/alfworld_sweep.py --workdir=runs/alfworld_sweep --jobs=1

Finished runs are skipped and killed ones go on, as each command does by itself. At the end WORKDIR/runs.csv has a line for each run and
memory; runs that differ in household and seed alone are pooled into WORKDIR/pooled/ (see `mempi_jax.report`). On a cluster, start one process a machine with `--shard=I/N`: machine I takes every N-th run.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import io
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mempi_jax.config import ConfigError, load_sweep
from mempi_jax.runtime.files import ensure_writable, read_json, write_text
from mempi_jax.runtime.workdir import COMPILED, report_errors, share_compilations

RUNS = 'runs.csv'
POOLED = {'world.household', 'seed'}  # fields that pooled runs may differ in


def folder_name(overrides: Mapping[str, Any]) -> str:
  """'household=maple,seed=1': last names of the fields, with every character that a path could misread replaced."""
  text = ','.join(f'{name.rpartition(".")[2]}={value}' for name, value in overrides.items())
  return re.sub(r'[^A-Za-z0-9=,._-]', '_', text) or 'base'


def run_one(config: str, workdir: Path, overrides: Mapping[str, Any]) -> int:
  """Trains, evaluates and reports one run; what it prints goes to WORKDIR/log.txt. Returns the first exit status that is not 0."""
  ensure_writable(workdir)
  fields = [f'--config.{name}={value}' for name, value in overrides.items()]
  commands = [
    ['mempi_jax.train', f'--config={config}', f'--workdir={workdir}', *fields],
    ['mempi_jax.evaluate', f'--config={config}', f'--workdir={workdir}', *fields],
    ['mempi_jax.report', f'--workdir={workdir}'],
  ]
  with open(workdir / 'log.txt', 'ab') as log:
    for command in commands:
      status = subprocess.run([sys.executable, '-m', *command], stdout=log, stderr=subprocess.STDOUT, check=False).returncode
      if status:
        return status
  return 0


def take_shard(runs: Sequence[Any], shard: str) -> list[Any]:
  """Every N-th run from the I-th on, for shard 'I/N'. Raises ConfigError for another form."""
  match = re.fullmatch(r'(\d+)/(\d+)', shard)
  if not match or not int(match[1]) < int(match[2]):
    raise ConfigError(f'shard {shard!r}: expected I/N with I from 0 to N - 1')
  return list(runs[int(match[1]) :: int(match[2])])


def run_sweep(config: str, workdir: Path, *, jobs: int, shard: str = '0/1') -> list[Path]:
  """All runs of a config's `sweep()`, or those of a shard, `jobs` at a time; then the pooled report, if these are all of several.

  Returns the folders. Raises ConfigError where there is nothing to run, SystemExit where a run failed; the others are finished all the same.
  """
  runs = take_shard(load_sweep(config), shard)
  share_compilations(workdir / COMPILED)
  folders = [workdir / folder_name(overrides) for overrides in runs]
  failed = []
  with concurrent.futures.ThreadPoolExecutor(max_workers=jobs) as pool:
    waiting = {pool.submit(run_one, config, folder, overrides): folder for folder, overrides in zip(folders, runs, strict=True)}
    for done in concurrent.futures.as_completed(waiting):
      folder, status = waiting[done], done.result()
      outcome = f'failed with status {status}, see {folder / "log.txt"}' if status else 'finished'
      print(f'{folder.name}: {outcome}', flush=True)
      if status:
        failed.append(folder)
  if failed:
    raise SystemExit(1)
  if shard == '0/1':
    write_table(workdir, runs, folders)
    if len(folders) > 1 and all(set(overrides) <= POOLED for overrides in runs):
      pooled = ['mempi_jax.report', '--workdirs', *map(str, folders), '--out', str(workdir / 'pooled')]
      subprocess.run([sys.executable, '-m', *pooled], check=True)
  return folders


def write_table(workdir: Path, runs: Sequence[Mapping[str, Any]], folders: Sequence[Path]) -> None:
  """WORKDIR/runs.csv: one line a run, split and memory, with the fields that the runs differ in."""
  names = list(dict.fromkeys(name for overrides in runs for name in overrides))
  measures = ('n', 'success_rate', 'abstain_rate', 'guidance_tokens', 'agent_steps')
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(['run', *names, 'split', 'memory', *measures])
  for overrides, folder in zip(runs, folders, strict=True):
    for row in read_json(folder / 'results.json')['rows']:
      writer.writerow([folder.name, *(overrides.get(name, '') for name in names), row['split'], row['memory'], *(row[m] for m in measures)])
  write_text(workdir / RUNS, text.getvalue())


@report_errors
def main(arguments: Sequence[str]) -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--config', required=True, metavar='FILE', help='config file with a sweep()')
  parser.add_argument('--workdir', required=True, type=Path, metavar='FOLDER', help='one folder a run is made in it')
  parser.add_argument('--jobs', type=int, default=1, help='runs at a time')
  parser.add_argument('--shard', default='0/1', metavar='I/N', help='take every N-th run from the I-th on')
  options = parser.parse_args(arguments)
  run_sweep(options.config, options.workdir, jobs=options.jobs, shard=options.shard)


if __name__ == '__main__':
  main(sys.argv[1:])
