"""What a sweep came to: files of WORKDIR, one line a run; written by `mempi_jax.sweep` and `mempi_jax.studies`, of the runs that are finished.

    table.csv, table.md     overrides of each run, every memory's success on the main split with its interval, and what Mem-π costs
    plot.png, plot.svg      success against the field that the runs differ in, or run by run
    study.png, study.svg    of an Optuna study: the objective trial by trial, and against each parameter
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mempi_jax.config import VARIANT
from mempi_jax.evals import plots, success, sweep_plots, tables
from mempi_jax.evals.success import Record
from mempi_jax.runs import PLOT_FILES, POOLED, RESULTS, STUDY_FILES, TABLE_FILES, Run, folder_name, variant_of
from mempi_jax.runtime import files
from mempi_jax.runtime.workdir import CONFIG

_MOST_PANELS = 9
_COSTS = ('abstain_rate', 'guidance_tokens', 'agent_steps')


@dataclasses.dataclass(frozen=True)
class Result:
  """A finished run: its overrides, its folder, the values of all fields that the sweep's runs differ in, and the rows of the main split."""

  run: Run
  folder: Path
  values: Mapping[str, Any]
  rows: Sequence[Record]


def write_table(workdir: Path, runs: Sequence[Run]) -> str:
  """Writes the table of those runs that are finished, and returns it in Markdown. Raises EpisodesError where none is."""
  results, split = read_results(workdir, runs)
  table = results_table(results, split, missing=len(runs) - len(results))
  text = f'{tables.to_markdown(table)}\n{tables.markdown_text(table.caption)}\n'
  files.write_text(workdir / TABLE_FILES[0], tables.to_csv(table))
  files.write_text(workdir / TABLE_FILES[1], text)
  return text


def write_plot(workdir: Path, runs: Sequence[Run]) -> Path:
  """Writes the plot of those runs that are finished, and returns the PNG's path.

  Raises:
    EpisodesError, ManifestError: none is finished, or runs of one variant cannot be pooled, see `success.pool`.
  """
  _write_images(workdir, PLOT_FILES, draw_results(*read_results(workdir, runs)))
  return workdir / PLOT_FILES[0]


def write_study(
  workdir: Path, trials: Sequence[Record], logarithmic: Collection[str], importances: Mapping[str, float], objective: tuple[str, str, str, str]
) -> Path:
  """Writes the picture of a study, see `sweep_plots.study`, and returns the PNG's path."""
  _, memory, measure, _ = objective
  words = f'{plots.label(memory)}: {measure.replace("_", " ")}'
  _write_images(workdir, STUDY_FILES, plots.draw(sweep_plots.study, trials, logarithmic, importances, objective, words, themes=('light',)))
  return workdir / STUDY_FILES[0]


def read_results(workdir: Path, runs: Sequence[Run]) -> tuple[list[Result], str]:
  """The finished runs, and the main split of what they played. Raises EpisodesError where none is finished."""
  found = [(run, workdir / folder_name(run)) for run in runs if (workdir / folder_name(run) / RESULTS).exists()]
  if not found:
    raise success.EpisodesError(f'{workdir}: no run of this sweep is finished')
  names = [name for name in dict.fromkeys(name for run, _ in found for name in run) if name != VARIANT]
  rows = {folder: files.read_json(folder / RESULTS)['rows'] for _, folder in found}
  split = success.main_of(row['split'] for own in rows.values() for row in own)
  return [
    Result(run, folder, {name: _value(run, folder, name) for name in names}, [row for row in rows[folder] if row['split'] == split])
    for run, folder in found
  ], split


def results_table(results: Sequence[Result], split: str, missing: int = 0) -> tables.Table:
  """One line a run: its overrides, every memory's success with its interval, and what the main memory costs; all on `split`."""
  named = any(VARIANT in result.run for result in results)
  fields = list(results[0].values)
  memories = success.memories_of([row for result in results for row in result.rows])
  main = 'mempi' if 'mempi' in memories else memories[-1]
  body, records = [], []
  for result in results:
    rows = {row['memory']: row for row in result.rows}
    own = rows.get(main, {})
    success_cells = [
      tables.Cell(f'{row["success_rate"]:.3f}', '[{:.3f}, {:.3f}]'.format(*row['ci95'])) if (row := rows.get(memory)) else tables.Cell('–')
      for memory in memories
    ]
    values = [tables.Cell(sweep_plots.format_value(result.values[name])) for name in fields]
    variant = [tables.Cell(variant_of(result.run))] if named else []
    body.append((*variant, *values, *success_cells, *(tables.number(own.get(name)) for name in _COSTS)))
    record: Record = {'run': result.folder.name, **({VARIANT: variant_of(result.run)} if named else {}), **result.values, 'split': split}
    for memory in memories:
      row = rows.get(memory, {})
      low, high = row.get('ci95', (None, None))
      record |= {f'{memory}_n': row.get('n'), f'{memory}_success_rate': row.get('success_rate'), f'{memory}_ci95_low': low, f'{memory}_ci95_high': high}
      record |= {f'{memory}_{name}': row.get(name) for name in _COSTS}
    records.append(record)
  sizes = sorted({row['n'] for result in results for row in result.rows})
  caption = (
    f'Success rate on {plots.split_label(split)} with 95% interval over games, {"–".join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))} episodes '
    f'a run. Last three columns: {plots.label(main)}.'
  )
  if missing:
    caption += f' Not finished, and not in this table: {missing} of {missing + len(results)} runs.'
  head = (*([VARIANT] if named else []), *_short(fields), *map(plots.short_label, memories), 'abstains', 'guidance tokens', 'agent steps')
  return tables.Table('runs', caption, head, tuple(body), tuple(records), names=len(fields) + named)


def draw_results(results: Sequence[Result], split: str) -> dict[str, bytes]:
  """The plot that fits: lines over a numeric field where the runs are a grid with one, else a group of points a variant, or a run."""
  groups: dict[str, list[Result]] = {}
  for result in results:
    groups.setdefault(variant_of(result.run), []).append(result)
  axis = _numeric_axis(results)
  if axis:
    others = [name for name in results[0].values if name not in (axis, *POOLED) and _differs(results, name)]
    points = []
    for group in groups.values():
      values = group[0].values
      panel = ', '.join(f'{short} = {sweep_plots.format_value(values[name])}' for name, short in zip(others, _short(others), strict=True))
      points += [{'x': values[axis], 'panel': panel, **row} for row in _pool(group)]
    if len({point['panel'] for point in points}) <= _MOST_PANELS:
      return plots.draw(sweep_plots.over_field, points, axis, split, themes=('light',))
  if len(groups) > 1:
    rows = [{'name': name, **row} for name, group in groups.items() for row in _pool(group)]
  else:
    rows = [{'name': tables.plain(result.folder.name), 'singles': (), **row} for result in results for row in result.rows]
    rows += [{'name': f'all {len(results)} runs', **row} for row in _pool(results)] if len(results) > 1 else []
  return plots.draw(sweep_plots.by_run, [row | {'name': tables.plain(row['name'])} for row in rows], split, themes=('light',))


# Internals.


def _value(run: Run, folder: Path, name: str) -> Any:
  """A field's value in a run: that of its override, or else of its config."""
  if name in run:
    return run[name]
  value = files.read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
  for part in name.split('.'):
    value = value.get(part) if isinstance(value, dict) else None
  return value


def _differs(results: Sequence[Result], name: str) -> bool:
  return any(result.values[name] != results[0].values[name] for result in results)


def _numeric_axis(results: Sequence[Result]) -> str | None:
  """The numeric field with most values, among those that the runs of a grid differ in; None where runs have names, or no such field."""
  if any(VARIANT in result.run for result in results):
    return None
  counts = {}
  for name in results[0].values:
    values = [result.values[name] for result in results]
    if name not in POOLED and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values) and len(set(values)) > 1:
      counts[name] = len(set(values))
  return max(counts, key=counts.__getitem__) if counts else None


def _pool(group: Sequence[Result]) -> list[Record]:
  """The rows of the main split over the runs of a variant, each with the single runs' rates under 'singles'."""
  if len(group) == 1:
    return [{**row, 'singles': ()} for row in group[0].rows]
  split = group[0].rows[0]['split']
  pooled = success.summarise([episode for episode in success.pool([success.run_of(result.folder) for result in group]) if episode['split'] == split])
  singles = lambda memory: tuple(row['success_rate'] for result in group for row in result.rows if row['memory'] == memory)
  return [{**row, 'singles': singles(row['memory'])} for row in pooled]


def _short(names: Sequence[str]) -> list[str]:
  """The fields' last names, or whole ones where two would be alike."""
  last = [name.rpartition('.')[2] for name in names]
  return [name if last.count(short) > 1 else short for name, short in zip(names, last, strict=True)]


def _write_images(workdir: Path, names: Sequence[str], images: Mapping[str, bytes]) -> None:
  for name in names:
    files.write_bytes(workdir / name, images[f'light.{name.rpartition(".")[2]}'])
