"""A sweep as one array job of Slurm: one task a run, each started as this command with the run's index.

Resources come from whoever submits, as options of sbatch; settings of the experiment stay in its config. A task that is preempted is queued again, and
goes on where the run stopped; what its run prints is in the run's folder.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mempi_jax.config import ConfigError
from mempi_jax.runs import SLURM_FOLDER
from mempi_jax.runtime import files

SCRIPT = 'sweep.sbatch'
_WARNING = 120  # seconds before the time limit, at which a task is told to save and exit


def array_of(indices: Sequence[int], jobs: int | None = None) -> str:
  """Indices as sbatch takes them: '0-2,5', with '%2' behind where at most two are to run at a time."""
  spans: list[list[int]] = []
  for index in sorted(indices):
    if spans and index == spans[-1][1] + 1:
      spans[-1][1] = index
    else:
      spans.append([index, index])
  text = ','.join(f'{first}-{last}' if last > first else str(first) for first, last in spans)
  return f'{text}%{jobs}' if jobs else text


def make_script(command: Sequence[str], workdir: Path, array: str, options: str) -> str:
  """The job's script.

  Args:
    command: what a task runs; the index of its run is put behind, as --run=INDEX.
    workdir: of the sweep; what tasks print is in its slurm/.
    array: see `array_of`.
    options: of sbatch, as one text: '--gres=gpu:1 --time=04:00:00'. They come last, so that they win over those given here.
  """
  own = [
    f'--job-name={workdir.name}',
    f'--array={array}',
    f'--output={(workdir / SLURM_FOLDER).resolve() / "%A_%a.txt"}',
    '--open-mode=append',
    '--requeue',
    f'--signal=B:TERM@{_WARNING}',
  ]
  lines = [f'#SBATCH {option}' for option in [*map(shlex.quote, own), *_options(options)]]
  start = f'{shlex.join([sys.executable, *command])} --run="$SLURM_ARRAY_TASK_ID"'
  return '\n'.join(['#!/bin/bash', *lines, 'set -euo pipefail', f'cd {shlex.quote(str(Path.cwd()))}', f'exec {start}', ''])


def submit(script: str, workdir: Path) -> str:
  """Writes the script into WORKDIR/slurm and submits it; returns the job's id.

  Raises:
    ConfigError: there is no sbatch here, or it refused; with its words.
  """
  if shutil.which('sbatch') is None:
    raise ConfigError('there is no sbatch on the PATH: submit from a machine of the cluster, or look at the script with --dry_run')
  folder = files.ensure_writable(workdir / SLURM_FOLDER)
  files.write_text(folder / SCRIPT, script)
  done = subprocess.run(submit_command(workdir), capture_output=True, text=True, check=False)
  if done.returncode:
    raise ConfigError(f'sbatch refused {folder / SCRIPT}: {done.stderr.strip() or f"status {done.returncode}"}')
  return done.stdout.strip().partition(';')[0]


def submit_command(workdir: Path) -> list[str]:
  """The command that submits the script."""
  return ['sbatch', '--parsable', str(workdir / SLURM_FOLDER / SCRIPT)]


def _options(text: str) -> list[str]:
  """"--time=1:00 -p 'a b'" -> ['--time=1:00', "-p 'a b'"]: an option with its value is one line."""
  options: list[list[str]] = []
  for word in shlex.split(text):
    if word.startswith('-'):
      options.append([word])
    elif options:
      options[-1].append(word)
    else:
      raise ConfigError(f'sbatch options {text!r}: expected options, each beginning with -')
  return [shlex.join(option) for option in options]
