"""Plays every memory on every split with the same agent and the same seeds, and writes the tables (method section 5).

    python -m mempi_jax.evaluate --config=configs/quickstart.py --workdir=runs/quickstart

One loop: guidance = memory.guide(contexts); episodes = run(contexts, guidance, agent); memory.observe(episodes). Writes
eval/episodes.jsonl, eval/base_runs.jsonl (the agent alone under further seeds, for difficulty), real_engine_replay.json and
results.json; with `deploy.moved`, deploy/ as well: how the memories fare while the world changes (see `mempi_jax.deploy`). A second run goes
on where a killed one stopped.

With a config that has a `sweep()`, such as configs/table_main.py, and no field set on the command line, all its runs are trained where they
are not yet, evaluated, and put into one table (as by `mempi_jax.sweep`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mempi_jax.config import PREFIX, has_sweep, parse_command_line
from mempi_jax.deploy import deploy
from mempi_jax.evals.abstention import by_difficulty
from mempi_jax.evals.deployment import read_deployment, read_updates, summarise_deployment
from mempi_jax.evals.success import BASE_RUNS_FILE, EPISODES_FILE, compare, present_pairs, read_base_runs, read_episodes, summarise
from mempi_jax.experience.bank import episode_of, episode_record
from mempi_jax.experience.collecting import play_to_log
from mempi_jax.memories import check_memories, make_memory, make_rag
from mempi_jax.runtime import files, hosts, preemption
from mempi_jax.runtime.host import has_accelerator
from mempi_jax.runtime.metrics import progress
from mempi_jax.runtime.workdir import MANIFEST, WALL_TIME, join_hosts, report_errors, timed
from mempi_jax.sweep import RUNS, run_sweep
from mempi_jax.types import Memory, Task
from mempi_jax.world import TRAIN_SPLIT, World, open_world

REPLAY_FILE, RESULTS_FILE = 'real_engine_replay.json', 'results.json'
NEAREST = 3  # bank entries that are kept with every episode, for who reads it later


def evaluate(world: World) -> dict[str, Any]:
  """Everything of this file; returns results.json's content."""
  config, folder = world.config.eval, world.workdir / 'eval'
  memories = [make_memory(name, world) for name in config.memories]
  with timed(world.workdir, 'evaluate'):
    play_memories(world, memories, world.workdir / EPISODES_FILE)
    games = world.splits[world.main_split]
    base = [task for run in range(config.difficulty_runs) for task in world.tasks(games, 'difficulty', run)]
    play_to_log(world.runner, base, world.workdir / BASE_RUNS_FILE, 'difficulty')
  if world.config.deploy.moved:
    with timed(world.workdir, 'deployment'):
      deploy(world)
  with timed(world.workdir, 'real_engine_replay'):
    replay = hosts.broadcast(lambda: replay_on_engine(world, world.workdir / REPLAY_FILE))
  episodes = read_episodes(world.workdir)
  played = read_deployment(world.workdir) if world.config.deploy.moved else []
  deployment = {**summarise_deployment(played), 'updates': read_updates(world.workdir)} if played else None
  base_runs = read_base_runs(world.workdir)
  results = {
    'manifest': files.read_json(world.workdir / MANIFEST),
    'rows': summarise(episodes),
    'comparisons': compare(episodes, present_pairs(episodes)),
    'abstention_by_difficulty': by_difficulty(episodes, base_runs, split=world.main_split) if 'mempi' in config.memories and base_runs else [],
    'real_engine_replay': replay,
    'deployment': deployment,
    'wall_time_s': hosts.broadcast(lambda: files.read_json(world.workdir / WALL_TIME)),
  }
  files.write_json(world.workdir / RESULTS_FILE, results)
  files.mark_done(folder, {'episodes': len(episodes)})
  return results


def play_memories(world: World, memories: Sequence[Memory], path: Path) -> None:
  """Plays split after split, memory after memory, in batches of games; appends records to `path`, going on where it ends.

  Raises ValueError when the file holds other episodes than these.
  """
  plan = [
    (split, memory, world.tasks(games, 'eval')) for split, games in world.splits.items() if split != TRAIN_SPLIT for memory in memories
  ]
  expected = [(split, memory.name, task.task_id, task.seed) for split, memory, tasks in plan for task in tasks]
  done = files.read_started(path, expected, lambda r: (r['split'], r['memory'], r['task_id'], r['seed']))
  experience, nearest = make_rag(world), {}
  first = 0  # of a batch's episodes among all
  with files.JsonlLog(path) as log, progress(len(expected), 'evaluate', initial=len(done)) as bar:
    for _, memory, tasks in plan:
      for start in range(0, len(tasks), world.runner.batch_size):
        part = tasks[start : start + world.runner.batch_size]
        recorded = done[first : first + len(part)]
        first += len(part)
        if len(recorded) == len(part) and not memory.learns:
          continue
        guidances = memory.guide(world.runner.contexts(part), world.config.seed)
        if len(recorded) == len(part):
          memory.observe([episode_of(record) for record in recorded])
          continue
        episodes = world.runner.run(part, guidances)
        memory.observe(episodes)
        # A batch that was half written is played again as a whole, and its missing half appended: the same numbers either way.
        for episode in episodes[len(recorded) :]:
          context = episode.context
          if context.task not in nearest:
            nearest[context.task] = [f'{" ".join(entry.sources)}: {entry.guidance}' for entry in experience.nearest(context, NEAREST)]
          log.append({'memory': memory.name, **episode_record(episode), 'nearest': nearest[context.task]})
        bar.update(len(part) - len(recorded))
  hosts.barrier()  # all may read it now


def replay_on_engine(world: World, path: Path) -> dict[str, Any]:
  """Plays a sample of evaluation episodes again, action by action, on the reference environment (ALFWorld's real engine), and counts those with the same outcome.

  The sample is spread evenly over eval/episodes.jsonl. Without one the result says why nothing was replayed.
  """
  count = world.config.eval.replay_episodes
  if path.exists():
    return files.read_json(path)
  env = world.suite.reference_env() if count else 'eval.replay_episodes is 0'
  if isinstance(env, str):
    result: dict[str, Any] = {'episodes': 0, 'agree': 0, 'reason': env}
  else:
    records = list(files.read_jsonl(world.workdir / EPISODES_FILE))
    # Sample evenly among episodes with different actions.
    distinct = list({(r['task_id'], tuple(action for action, _ in r['steps'])): r for r in records}.values())
    chosen = [distinct[i * len(distinct) // count] for i in range(min(count, len(distinct)))]
    disagreements = []
    with contextlib.closing(env), progress(len(chosen), 'real engine replay') as bar:
      for record in chosen:
        preemption.check()
        env.reset(Task(record['env'], record['task_id'], record['split'], record['seed']))
        results = [(action, brought, env.step(action)) for action, brought in record['steps']]
        won = bool(results) and results[-1][2].success
        if won != record['success'] or any(step.observation != brought for _, brought, step in results):
          disagreements.append(record['task_id'])
        bar.update()
    result = {'episodes': len(chosen), 'agree': len(chosen) - len(disagreements), 'disagreements': disagreements}
  files.write_json(path, result)
  return result


@report_errors
def main(arguments: Sequence[str]) -> None:
  """The command."""
  parsed, config = parse_command_line(argparse.ArgumentParser(description=__doc__.split('\n')[0]), arguments)
  check_memories(config)
  if has_sweep(parsed.config) and not any(argument.startswith(PREFIX) for argument in arguments):
    run_sweep(parsed.config, parsed.workdir, jobs=1 if has_accelerator() else os.cpu_count() or 1)
    pooled = parsed.workdir / 'pooled' / 'table.md'
    print(pooled.read_text(encoding='utf-8') if pooled.exists() else parsed.workdir / RUNS)
    return
  join_hosts(parsed, config)
  with open_world(config, parsed.workdir, allow=parsed.allow, remember=True) as world:
    results = evaluate(world)
  for row in results['rows']:
    low, high = row['ci95']
    print(
      f'{row["split"]:14} {row["memory"]:13} success {row["success_rate"]:.3f} [{low:.3f}, {high:.3f}]  abstain {row["abstain_rate"]:.2f}'
      f'  guidance tokens {row["guidance_tokens"]:.2f}  n {row["n"]}'
    )
  print(f'{parsed.workdir / RESULTS_FILE}')


if __name__ == '__main__':
  main(sys.argv[1:])
