"""Variants of an experiment, each pooled over its households and seeds and compared with the first one, memory by memory.

A variant is what runs of a sweep share that differ in household and seed alone: an ablation, a size of the bank. All variants play the same
games with the same agent and the same seeds, so a memory of one is paired with the same memory of another as two memories of one run are
(`success.compare`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mempi_jax.evals import success
from mempi_jax.evals.success import EpisodesError, Record
from mempi_jax.runtime import files, manifest

FIXED = ('none', 'oracle', 'token_matched')  # nothing that a variant changes reaches them: the same in every variant

_SAME = (
  'agent_hash', 'prompt_template_hash', 'step_cap', 'history_length', 'context_length', 'backend', 'packages', 'python', 'platform',
)  # fmt: skip
_KEPT = (
  'memory', 'household', 'run_seed', 'split', 'task_id', 'seed', 'decision', 'guidance_tokens', 'success', 'status', 'agent_steps',
)  # fmt: skip

Variants = dict[str, list[Record]]  # name -> pooled records, the reference first


def read_variants(workdirs: Mapping[str, Sequence[str | Path]]) -> Variants:
  """The episodes of every variant, pooled as `success.pool` does; of each record what tables need.

  Args:
    workdirs: variant -> the folders of its runs; the first variant is the reference.

  Raises:
    EpisodesError: fewer than two variants, a variant that lacks a run, or episodes that another one has; names them. ManifestError: runs of
      a variant that are not comparable, or a run whose agent, prompts, limits, versions or test games are not those of the reference's run
      of the same household and seed; names both folders and every field. What `success.read_episodes` and `success.run_of` raise.
  """
  if len(workdirs) < 2:
    raise EpisodesError(f'expected two variants or more to compare, found {", ".join(map(repr, workdirs)) or "none"}')
  runs = {variant: [success.run_of(workdir) for workdir in folders] for variant, folders in workdirs.items()}
  _check_runs(runs)
  _check_manifests(runs)
  variants = {}
  for variant, own in runs.items():
    try:
      episodes = success.pool(own) if len(own) > 1 else _read_one(*own[0])
      success.check_same_episodes(episodes)
    except EpisodesError as error:
      raise EpisodesError(f'variant {variant!r}: {error}') from None
    variants[variant] = [{name: episode[name] for name in _KEPT} for episode in episodes]
  _check_episodes(variants)
  return variants


def summarise(variants: Variants, *, seed: int = 0) -> list[Record]:
  """The rows of every variant, split by split: {variant, split, memory, n, success_rate, ci95, abstain_rate, guidance_tokens, agent_steps,
  runs}; see `success.summarise`."""
  rows = [
    {'variant': variant, 'split': row['split'], 'memory': row['memory'], **row, 'runs': len(_runs_in(episodes))}
    for variant, episodes in variants.items()
    for row in success.summarise(episodes, seed=seed)
  ]
  splits = success.splits_of(rows)
  return sorted(rows, key=lambda row: splits.index(row['split']))


def compare(variants: Variants, *, seed: int = 0) -> list[Record]:
  """Every variant minus the reference, split by split and memory by memory: {split, memory, variant, reference, diff, ci95, mcnemar_p, holm_p,
  minimum_detectable_effect}.

  Paired over household, seed of the run, split, task and its seed, with games as clusters. Holm's correction is over all comparisons of
  the same split and memory; see `success.compare`. Memories that the reference lacks and those of `FIXED` are left out, and a variant that
  lacks a memory is left out of the memory's comparisons.
  """
  reference, *others = variants
  comparisons = []
  for memory in success.memories_of(variants[reference]):
    if memory in FIXED:
      continue
    mine = {variant: [e for e in episodes if e['memory'] == memory] for variant, episodes in variants.items()}
    pairs = [(variant, reference) for variant in others if mine[variant]]
    players = [{**episode, 'memory': variant} for variant, episodes in mine.items() for episode in episodes]
    for row in success.compare(players, pairs, seed=seed):
      names = {'split': row.pop('split'), 'memory': memory, 'variant': row.pop('a'), 'reference': row.pop('b')}
      comparisons.append(names | row)
  splits = success.splits_of(comparisons)
  return sorted(comparisons, key=lambda row: splits.index(row['split']))


def changed_alone(variants: Variants) -> dict[str, int]:
  """Variant -> episodes that the agent alone ended otherwise than in the reference; only those that are not 0.

  Nothing that a variant may change reaches the agent alone: any such episode says that more differs than the variants' names tell.
  """
  outcomes = {
    variant: {success.key_of(e): (e['success'], e['agent_steps']) for e in episodes if e['memory'] == 'none' and e['status'] != 'env_error'}
    for variant, episodes in variants.items()
  }
  first = next(iter(outcomes.values()))
  counts = {variant: sum(first.get(key, value) != value for key, value in found.items()) for variant, found in outcomes.items()}
  return {variant: count for variant, count in counts.items() if count}


# Internals.


def _read_one(household: str, seed: int, workdir: Path) -> list[Record]:
  """As `success.pool`, for a variant of one run."""
  return [{**record, 'household': household, 'run_seed': seed} for record in success.read_episodes(workdir)]


def _runs_in(episodes: Sequence[Record]) -> set[tuple[str, int]]:
  return {(episode['household'], episode['run_seed']) for episode in episodes}


def _check_runs(runs: Mapping[str, Sequence[tuple[str, int, Path]]]) -> None:
  """Raises EpisodesError, naming them, if a variant lacks the household and seed of another one's run."""
  cells = {variant: {(household, seed) for household, seed, _ in own} for variant, own in runs.items()}
  everything = set().union(*cells.values())
  lacking = [
    f'{variant!r} lacks ' + ' and '.join(f'household {household}, seed {seed}' for household, seed in sorted(everything - own))
    for variant, own in cells.items()
    if everything - own
  ]
  if lacking:
    raise EpisodesError('variants can only be compared over the same runs, but ' + '; '.join(lacking))


def _check_manifests(runs: Mapping[str, Sequence[tuple[str, int, Path]]]) -> None:
  """Raises ManifestError if a run played under other conditions than the reference's run of the same household and seed."""
  reference = {(household, seed): workdir for household, seed, workdir in next(iter(runs.values()))}
  for household, seed, workdir in itertools.chain.from_iterable(list(runs.values())[1:]):
    first = reference[household, seed]
    try:
      manifest.check_comparable(_conditions(first), _conditions(workdir))
    except manifest.ManifestError as error:
      raise manifest.ManifestError(f'{first} and {workdir}: {error}') from None


def _conditions(workdir: Path) -> dict[str, Any]:
  """What must be equal in the manifests of two variants: that which the agent's episodes depend on, whatever the memory."""
  tree = files.read_json(workdir / 'manifest.json')
  sampler, games = tree.get('sampler') or {}, tree.get('games') or {}
  return {
    **{name: tree[name] for name in _SAME if name in tree},
    'sampler': {name: value for name, value in sampler.items() if name.startswith('agent_')},
    'games': {split: value for split, value in games.items() if split != 'train'},
  }


def _check_episodes(variants: Variants) -> None:
  """Raises EpisodesError, naming some of them, if a variant lacks episodes that another one has."""
  keys = {variant: {success.key_of(episode) for episode in episodes} for variant, episodes in variants.items()}
  everything = set().union(*keys.values())
  problems = []
  for variant, own in keys.items():
    missing = sorted(everything - own)
    if missing:
      shown = ', '.join(map(_describe, missing[:3])) + (', ...' if len(missing) > 3 else '')
      problems.append(f'{variant!r} lacks {len(missing)} of {len(everything)} episodes: {shown}')
  if problems:
    raise EpisodesError('variants can only be compared on the same episodes, but ' + '; '.join(problems))


def _describe(key: tuple[str, int, str, str, int]) -> str:
  household, run_seed, split, task_id, seed = key
  return f'(household {household}, run seed {run_seed}, {split}, {task_id}, seed {seed})'
