"""Runs every experiment of a config's `sweep()`: training, evaluation and report, each in a folder named after its overrides.

    python -m mempi_jax.sweep --config=configs/alfworld_sweep.py --workdir=runs/alfworld_sweep --jobs=1
    python -m mempi_jax.sweep --config=configs/ablations.py --workdir=runs/ablations --tables        # runs nothing: tables of what is finished

`launch/sweep.py` does the same, and more: grids, studies, Slurm. Finished runs are skipped and killed ones go on (see `mempi_jax.runs`). What a run has
in common with one that is finished, such as bank and stage 1 in an ablation of stage 2, is taken over from it (see `mempi_jax.siblings`).

At the end WORKDIR/table.md and table.csv have a line for each run, plot.png shows them (see `mempi_jax.sweep_report`), and runs.csv has a line for each run,
split and memory. Runs that differ in household and seed alone are one variant; `sweep()` may give it a name under the key 'variant'. One variant
is pooled into WORKDIR/pooled/ (see `mempi_jax.report`); several are pooled one by one, and compared with the first, in WORKDIR/variants/ (see
`mempi_jax.variants_report`). On several machines that share WORKDIR, start one process each with `--shard=I/N`: machine I takes every N-th run; who
finishes last makes the tables.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mempi_jax.config import VARIANT, ConfigError, load_sweep
from mempi_jax.runs import (
  ELSEWHERE,
  FAILED,
  POOLED,
  POOLED_FOLDER,
  RESULTS,
  RUNS,
  STOPPED,
  VARIANTS_FOLDER,
  Plan,
  Run,
  folder_name,
  is_finished,
  make_plans,
  run_all,
  variant_of,
  variants_of,
)
from mempi_jax.runtime.files import ensure_writable, read_json, write_text
from mempi_jax.runtime.workdir import COMPILED, report_errors, share_compilations

_MOST_NAMED = 6  # runs in a printed line


# Running.


def take_shard(runs: Sequence[Any], shard: str) -> list[Any]:
  """Every N-th run from the I-th on, for shard 'I/N'. Raises ConfigError for another form."""
  match = re.fullmatch(r'(\d+)/(\d+)', shard)
  if not match or not int(match[1]) < int(match[2]):
    raise ConfigError(f'shard {shard!r}: expected I/N with I from 0 to N - 1')
  return list(runs[int(match[1]) :: int(match[2])])


def run_sweep(config: str, workdir: Path, *, jobs: int, shard: str = '0/1', runs: Sequence[Run] | None = None) -> list[Path]:
  """All runs of a config's `sweep()`, or those of a shard, `jobs` at a time; then the tables, once all are finished.

  Args:
    config: path of the config file.
    workdir: the runs' folders are made in it.
    jobs: runs at a time.
    shard: 'I/N': every N-th run from the I-th on, see `take_shard`.
    runs: overrides of each run, such as those of a grid; None: the config's `sweep()`.

  Returns the folders. Raises ConfigError where there is nothing to run, and what `make_plans` raises, before anything starts; SystemExit where
  a run failed or another process still runs one, the others are finished all the same; and what `write_tables` raises.
  """
  runs = load_sweep(config) if runs is None else runs
  if not runs:
    raise ConfigError(f'{config}: sweep() has no runs')
  if jobs < 1:
    raise ConfigError(f'jobs is {jobs}, expected 1 or more')
  ensure_writable(workdir)
  everything = make_plans(config, workdir, runs)
  share_compilations(workdir / COMPILED)
  plans = take_shard(everything, shard)
  open_plans = [plan for plan in plans if not is_finished(plan.folder)]
  ended = run_all(config, open_plans, jobs=jobs, total=len(plans), finished=len(plans) - len(open_plans), siblings=everything)
  finish(workdir, everything)
  problems = {kind: [plan.name for plan, state in ended if state.kind == kind] for kind in (FAILED, STOPPED, ELSEWHERE)}
  for kind, names in problems.items():
    if names:
      print(f'{kind}: {len(names)} of {len(plans)} runs: {_named(names)}')
  if any(problems.values()):
    raise SystemExit(1)
  return [plan.folder for plan in plans]


def finish(workdir: Path, plans: Sequence[Plan]) -> None:
  """The table and plot of what is finished, and `write_tables` once that is all; again where another process finished runs meanwhile.

  Raises what `write_tables` raises.
  """
  from mempi_jax import sweep_report

  runs, before = [plan.run for plan in plans], -1
  while before != (now := sum((plan.folder / RESULTS).exists() for plan in plans)):
    before = now
    if now:
      print(sweep_report.write_table(workdir, runs))
      print(sweep_report.write_plot(workdir, runs))
    if now == len(plans):
      write_tables(workdir, runs)


# Tables.


def write_tables(workdir: Path, runs: Sequence[Run]) -> None:
  """WORKDIR/runs.csv of finished runs; of several variants WORKDIR/variants/, of several runs of one WORKDIR/pooled/.

  Raises:
    EpisodesError, ManifestError: variants that cannot be compared, see `mempi_jax.evals.variants`.
  """
  variants = variants_of(runs)
  _write_runs(workdir, runs, variants)
  _compare_or_pool(workdir, variants)


def write_finished(workdir: Path, runs: Sequence[Run]) -> None:
  """As `write_tables`, of a sweep that may still be in progress; prints what the tables leave out.

  All variants of a table need the same households and seeds. Of those that the reference (the first variant) has finished, it takes
  the ones over which the complete variants have most runs: all variants on the first seed, say, or fewer of them on both.

  Raises:
    ConfigError: no run is finished, or none of the reference, or of no other variant one of the same household and seed. What
      `write_tables` raises.
  """
  variants = variants_of(runs)
  finished = [run for run in runs if (workdir / folder_name(run) / RESULTS).exists()]
  if not finished:
    raise ConfigError(f'{workdir}: no run of this sweep is finished, so there is nothing to make tables of')
  chosen = _most_comparable(workdir, variants, finished) if len(variants) > 1 else {variant_of(finished[0]): finished}
  unfinished = [folder_name(run) for run in runs if run not in finished]
  unused = [folder_name(run) for run in finished if not any(run in own for own in chosen.values())]
  for names, why in ((unfinished, 'not finished'), (unused, 'finished, but the others of the table lack its household and seed')):
    if names:
      print(f'left out, {why}: {len(names)} of {len(runs)} runs: {_named(names)}')
  _write_runs(workdir, finished, variants)
  _compare_or_pool(workdir, chosen)


def write_table(workdir: Path, runs: Sequence[Run], folders: Sequence[Path]) -> None:
  """WORKDIR/runs.csv: one line a run, split and memory, with the fields that the runs differ in."""
  from mempi_jax.evals.tables import Table, to_csv

  names = list(dict.fromkeys(name for run in runs for name in run))
  measures = ('n', 'success_rate', 'abstain_rate', 'guidance_tokens', 'agent_steps')
  records = [
    {'run': folder.name, **{name: run.get(name) for name in names}, **{name: row[name] for name in ('split', 'memory', *measures)}}
    for run, folder in zip(runs, folders, strict=True)
    for row in read_json(folder / RESULTS)['rows']
  ]
  head = ('run', *names, 'split', 'memory', *measures)
  write_text(workdir / RUNS, to_csv(Table('runs', 'Every run.', head, (), tuple(records))))


def _write_runs(workdir: Path, runs: Sequence[Run], variants: Mapping[str, Any]) -> None:
  """`write_table`, with a column for the variants where there are several."""
  named = [{VARIANT: variant_of(run), **run} for run in runs] if len(variants) > 1 else runs
  write_table(workdir, named, [workdir / folder_name(run) for run in runs])


def _compare_or_pool(workdir: Path, variants: Mapping[str, Sequence[Run]]) -> None:
  folders = {variant: [workdir / folder_name(run) for run in own] for variant, own in variants.items()}
  if len(folders) > 1:
    from mempi_jax.variants_report import write_variants

    path = write_variants(folders, workdir / VARIANTS_FOLDER)
    print(path.with_name('table.md').read_text(encoding='utf-8'))
    print(path)
  elif len(own := next(iter(folders.values()))) > 1:
    pooled = ['mempi_jax.report', '--workdirs', *map(str, own), '--out', str(workdir / POOLED_FOLDER)]
    subprocess.run([sys.executable, '-m', *pooled], check=True)


def _most_comparable(workdir: Path, variants: Mapping[str, Sequence[Run]], finished: Sequence[Run]) -> dict[str, list[Run]]:
  """Variant -> the finished runs that one table can hold: the same households and seeds for all; see `write_finished`."""
  cell = lambda run: tuple(run.get(name) for name in POOLED)
  done = {variant: {cell(run): run for run in own if run in finished} for variant, own in variants.items()}
  reference = next(iter(done))
  if not done[reference]:
    raise ConfigError(f'{workdir}: no run of {reference!r} is finished, the variant that the others are compared with')
  shared = [done[reference].keys() & own.keys() for variant, own in done.items() if variant != reference]
  shared = [cells for cells in shared if cells]
  if not shared:
    raise ConfigError(
      f'{workdir}: no variant but {reference!r} is finished on a household and seed that it has, so nothing can be compared'
    )
  complete = lambda cells: [variant for variant, own in done.items() if cells <= own.keys()]
  options = [cells for cells in (*shared, set.intersection(*map(set, shared))) if cells]
  best = max(options, key=lambda cells: (len(complete(cells)) * len(cells), len(complete(cells))))
  return {variant: [run for place, run in done[variant].items() if place in best] for variant in complete(best)}


def _named(names: Sequence[str]) -> str:
  return ', '.join(names[:_MOST_NAMED]) + (', ...' if len(names) > _MOST_NAMED else '')


@report_errors
def main(arguments: Sequence[str]) -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--config', required=True, metavar='FILE', help='config file with a sweep()')
  parser.add_argument('--workdir', required=True, type=Path, metavar='FOLDER', help='one folder a run is made in it')
  parser.add_argument('--jobs', type=int, default=1, help='runs at a time')
  parser.add_argument('--shard', default='0/1', metavar='I/N', help='take every N-th run from the I-th on')
  parser.add_argument('--tables', action='store_true', help='run nothing; write the tables of the runs that are finished')
  options = parser.parse_args(arguments)
  if options.tables:
    if options.shard != '0/1':
      parser.error('--tables takes all runs, not a shard')
    write_finished(options.workdir, load_sweep(options.config))
    return
  run_sweep(options.config, options.workdir, jobs=options.jobs, shard=options.shard)


if __name__ == '__main__':
  main(sys.argv[1:])
