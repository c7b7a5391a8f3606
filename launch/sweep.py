"""Runs a sweep: the runs of a config's `sweep()`, of a grid, or of an Optuna study; here, on Slurm, or printed.

    python launch/sweep.py --config=configs/sweep_example.py --workdir=runs/sweep --jobs=2
    python launch/sweep.py --config=configs/quickstart.py --workdir=runs/grid --grid stage2.optimizer.learning_rate=2e-4,5e-4 --grid seed=0,1
    python launch/sweep.py --config=configs/sweep_example.py --workdir=runs/study --trials=20
    python launch/sweep.py --config=configs/ablations.py --workdir=runs/ablations --slurm --sbatch_options='--gres=gpu:1 --time=04:00:00'

Started again in the same folder it goes on: finished runs are skipped, killed and failed ones continue, and a run that another process runs is left to it.
`--dry_run` says how far each run is; `--print` prints its commands. At the end, or with `--tables` at any time, WORKDIR/table.md, table.csv and plot.png hold
what the finished runs came to (study.png for a study). Settings are in configs, and in the fields of a grid; there are none here.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from mempi_jax import slurm, studies, sweep
from mempi_jax.config import ConfigError, expand_grid, load_sweep
from mempi_jax.runs import ELSEWHERE, FINISHED, Run, command_line, make_plans, state_of
from mempi_jax.runtime.workdir import report_errors


def parse(arguments: Sequence[str]) -> argparse.Namespace:
  """The command line. Exits with status 2 where options do not go together."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0], allow_abbrev=False)
  parser.add_argument('--config', required=True, metavar='FILE', help='config file; its sweep() is run unless --grid or --trials say otherwise')
  parser.add_argument('--workdir', type=Path, metavar='FOLDER', help='one folder a run is made in it; default runs/NAME')
  parser.add_argument('--grid', action='append', metavar='FIELD=VALUE,VALUE', help='an axis of a grid; may be given several times')
  parser.add_argument('--trials', type=int, metavar='N', help="as many trials of the config's study(trial), with Optuna")
  parser.add_argument('--jobs', type=int, metavar='N', help='runs at a time; default 1, on Slurm no limit')
  parser.add_argument('--slurm', action='store_true', help='submit one array job, with one task a run')
  parser.add_argument('--sbatch_options', default='', metavar='TEXT', help="of sbatch, as in --sbatch_options='--gres=gpu:1 --time=04:00:00'")
  parser.add_argument('--run', type=int, metavar='INDEX', help='only the run with this index; of a study: one trial')
  parser.add_argument('--print', action='store_true', help='only print the commands of every run, one run a line')
  parser.add_argument('--dry_run', action='store_true', help='only say what would be run; with --slurm, show the script and the command')
  parser.add_argument('--tables', action='store_true', help='run nothing; table and plot of the runs that are finished')
  options = parser.parse_args(arguments)
  options.workdir = options.workdir or Path('runs') / Path(options.config.partition(':')[0]).stem
  if options.grid and options.trials is not None:
    parser.error('--grid and --trials exclude each other')
  if options.trials is not None and options.print:
    parser.error('--print: the runs of a study are not known before the earlier ones have ended')
  if sum((options.slurm, options.run is not None, options.print, options.tables)) > 1:
    parser.error('--slurm, --run, --print and --tables exclude each other')
  if options.sbatch_options and not options.slurm:
    parser.error('--sbatch_options goes with --slurm')
  if options.jobs is not None and options.jobs < 1:
    parser.error(f'--jobs is {options.jobs}, expected 1 or more')
  return options


@report_errors
def main(arguments: Sequence[str]) -> None:
  """The command."""
  options = parse(arguments)
  if options.trials is not None:
    launch_study(options)
  else:
    launch_runs(options, expand_grid(options.config, options.grid) if options.grid else load_sweep(options.config))


def launch_runs(options: argparse.Namespace, runs: Sequence[Run]) -> None:
  """Runs whose overrides are known."""
  plans = make_plans(options.config, options.workdir, runs)
  if options.tables:
    sweep.finish(options.workdir, plans)
    return
  if options.print:
    print('\n'.join(command_line(options.config, plan) for plan in plans))
    return
  states = [state_of(plan.folder) for plan in plans]
  if options.slurm:
    to_run = [index for index, state in enumerate(states) if state.kind not in (FINISHED, ELSEWHERE)]
    submit(options, to_run)
  elif options.dry_run:
    for index, (plan, state) in enumerate(zip(plans, states, strict=True)):
      print(f'{index:3} {plan.name:50} {state}')
  elif options.run is None:
    sweep.run_sweep(options.config, options.workdir, jobs=options.jobs or 1, runs=runs)
  elif 0 <= options.run < len(runs):
    sweep.run_sweep(options.config, options.workdir, jobs=1, shard=f'{options.run}/{len(runs)}', runs=runs)
  else:
    raise ConfigError(f'run is {options.run}, expected 0 to {len(runs) - 1}')


def launch_study(options: argparse.Namespace) -> None:
  """Runs that a study suggests."""
  if options.tables:
    studies.report_study(options.config, options.workdir)
  elif options.slurm:
    submit(options, range(studies.unfinished_trials(options.config, options.workdir, options.trials)))
  elif options.dry_run:
    print('\n'.join(studies.describe_study(options.config, options.workdir, options.trials)))
  else:
    most = None if options.run is None else 1
    studies.run_study(options.config, options.workdir, trials=options.trials, jobs=options.jobs or 1, most=most)


def submit(options: argparse.Namespace, indices: Sequence[int]) -> None:
  """Submits an array job with these tasks, or shows it."""
  if not indices:
    print('nothing to submit: every run is finished, or being run')
    return
  command = [str(Path(__file__).resolve()), f'--config={options.config}', f'--workdir={options.workdir}']
  command += [f'--grid={axis}' for axis in options.grid or ()]
  command += [] if options.trials is None else [f'--trials={options.trials}']
  script = slurm.make_script(command, options.workdir, slurm.array_of(indices, options.jobs), options.sbatch_options)
  if options.dry_run:
    print(f'{script}\n{shlex.join(slurm.submit_command(options.workdir))}')
    return
  print(f'submitted as job {slurm.submit(script, options.workdir)}: {len(indices)} tasks; the last one to end writes {options.workdir / "table.md"}')


if __name__ == '__main__':
  main(sys.argv[1:])
