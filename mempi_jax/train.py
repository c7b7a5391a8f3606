"""Trains a guidance policy: stage 1, experience distillation (SFT), then stage 2, adaptation distillation (RL). Read it top to bottom.

    python -m mempi_jax.train --config=configs/quickstart.py --workdir=runs/quickstart

Makes what is missing in the working folder, in this order: the agent's copy, the experience bank (as `mempi_jax.collect` does), stage1/,
stage2/, and what the memories need that it is compared with (`eval.memories`). A finished stage is skipped, a killed one goes on from its last checkpoint and ends with the same numbers. Both stages are one
loop, `fit`: batch = source.next(step, params); state = update(state, batch); they differ in source and loss alone.

A config with `control.seeds` is a control experiment (method section 3): one run a seed, then a verdict.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from mempi_jax.agents.altered import guidance_acts
from mempi_jax.collect import collect
from mempi_jax.config import ConfigError, count_steps, flatten, override, parse_command_line, resolve
from mempi_jax.evals.control import Verdict, format_verdict, judge
from mempi_jax.evals.probes import Probes
from mempi_jax.experience.bank import BankEntry, read_episodes
from mempi_jax.experience.collecting import play_to_log
from mempi_jax.losses.policy_gradient import content_policy_gradient_loss
from mempi_jax.memories import OPERATIONS, check_memories, fact_memory, make_rag, prepare, write_facts
from mempi_jax.memory.mem0 import build_facts
from mempi_jax.memory.memory_r1 import PolicyManager, demonstrations
from mempi_jax.memory.operations import FactStore, RuleManager
from mempi_jax.models.decoder import init_params, stack_layers, unstack_layers
from mempi_jax.models.lora import LoraConfig, init_lora
from mempi_jax.models.partition import shardings
from mempi_jax.models.presets import differences, preset
from mempi_jax.policy.policy import Adaptation, GuidancePolicy
from mempi_jax.policy.pretrained import load_pretrained, read_pretrained_config
from mempi_jax.runtime import files, hosts, preemption
from mempi_jax.runtime.checkpoint import Checkpointer
from mempi_jax.runtime.host import has_accelerator, keep_freed_memory
from mempi_jax.runtime.metrics import MetricWriter, progress, read_metrics
from mempi_jax.runtime.optim import evaluation_params, make_optimizer
from mempi_jax.runtime.preemption import Preempted
from mempi_jax.runtime.profiler import Profiler, parse_steps
from mempi_jax.runtime.rng import step_key
from mempi_jax.runtime.sharding import check_rows, local_layout, make_layout, to_host
from mempi_jax.runtime.stopwatch import TIMING, Stopwatch
from mempi_jax.runtime.trackers import check_tracker, open_trackers
from mempi_jax.runtime.workdir import COMPILED, join_hosts, report_errors, share_compilations, timed
from mempi_jax.sources.manager import ManagerSource
from mempi_jax.sources.rollout import RolloutSource, make_tasks
from mempi_jax.sources.sft import SftSource
from mempi_jax.training.objectives import imitation_loss, stage2_loss
from mempi_jax.training.update import Loss, Update, arrays_of, forward_loss
from mempi_jax.types import Context, Guidance, Source, TrainBatch
from mempi_jax.world import TRAIN_SPLIT, World, agent_lm, check_policy, open_world

STRETCH = 20  # facts
DECISION_LOSSES = ('regression', 'policy_gradient', 'ratio')


def train(config: FrozenConfigDict, workdir: Path, allow: Collection[str] = ()) -> GuidancePolicy:
  """Both stages; returns the policy after the last one that the config asks for. `allow` as in `open_world`."""
  check_memories(config)
  check_policy(config)
  check_run(config)
  with open_world(config, workdir, allow=allow) as world:
    if config.stage2.updates and world.suite.start == 'none':
      raise ConfigError(f'{world.suite.name} cannot promise branches of a group the same start, which stage 2 compares them by: set stage2.updates to 0, or let it be restored')
    with timed(workdir, 'collect'):
      entries = collect(world)
    with timed(workdir, 'stage1'):
      first = policy = train_stage1(world, entries)
    if config.stage2.updates:
      with timed(workdir, 'stage2'):
        policy = train_stage2(world, first)
    with timed(workdir, 'baselines'):
      prepare(world)
      if 'rag_abstain' in config.eval.memories:
        train_rag_abstain(world, first)
      if 'memory_r1' in config.eval.memories:
        train_memory_r1(world, entries)
  return policy


def check_run(config: FrozenConfigDict) -> None:
  """Raises ConfigError for what would only be found in the middle of a training: a tracker, a profile, a batch that the mesh cannot split."""
  try:
    if hosts.is_first():
      check_tracker(config.tracker)
    parse_steps(config.profile.steps)
    layout = make_layout(config.mesh)
  except (ValueError, ImportError) as error:
    raise ConfigError(str(error)) from None
  for name, rows, parts in (
    ('stage1.batch_size', config.stage1.batch_size, config.stage1.micro_batches),
    ('stage2.groups', config.stage2.groups, config.stage2.micro_batches),
  ):
    try:
      check_rows(layout, rows, parts)
    except ValueError as error:
      raise ConfigError(f'{name}: {error}') from None


# Stage 1.


def train_stage1(world: World, entries: Sequence[BankEntry]) -> GuidancePolicy:
  """SFT on the bank (method section 2). Returns the trained policy; `stage1/policy` holds it."""
  folder, config = world.workdir / 'stage1', world.config.stage1
  if files.read_done(folder) is not None:
    return world.load_policy(folder / 'policy')
  policy = initial_policy(world)
  if 'untrained' in world.config.eval.memories:
    policy.save(world.workdir / 'untrained' / 'policy', dtype=world.config.policy.param_dtype)
  source = SftSource(
    entries,
    policy,
    batch_size=config.batch_size,
    abstain_share=config.abstain_share,
    validation=config.validation,
    seed=world.config.seed,
  )
  num_steps = count_steps(config.duration, num_examples=source.num_examples, batch_size=config.batch_size)
  validate = validation(policy, imitation_loss, source.validation_batches())
  if num_steps:
    policy = fit(world, folder, 'stage 1', policy, source, imitation_loss, config, num_steps, inner_epochs=1, evaluate=validate)
  else:  # the ablation without stage 1
    policy.save(folder / 'policy', dtype=world.config.policy.param_dtype)
  p_generate = policy.p_generate([entry.context for entry in entries])
  alone = np.array([entry.solved_alone for entry in entries])
  summary = {
    'steps': num_steps,
    # The decision must keep mass on both sides, or stage 2 cannot move it [O].
    'p_generate': float(p_generate.mean()),
    'p_generate_solved_alone': float(p_generate[alone].mean()) if alone.any() else None,
    'p_generate_failed_alone': float(p_generate[~alone].mean()) if (~alone).any() else None,
  }
  files.mark_done(folder, summary)
  return policy


def fine_tune(
  world: World, folder: Path, description: str, policy: GuidancePolicy, entries: Sequence[BankEntry], config: FrozenConfigDict
) -> GuidancePolicy:
  """SFT of any policy on some entries for `config.duration`; contexts that were solved alone have ABSTAIN as their target."""
  source = SftSource(entries, policy, batch_size=config.batch_size, abstain_share=1.0, validation=0.0, seed=world.config.seed)
  nothing = lambda trained: {}
  num_steps = count_steps(config.duration, num_examples=source.num_examples, batch_size=config.batch_size)
  return fit(world, folder, description, policy, source, imitation_loss, config, num_steps, inner_epochs=1, evaluate=nothing)


def initial_policy(world: World) -> GuidancePolicy:
  """The policy before stage 1: the agent's weights (a language model that knows the world's text), random ones, or a pretrained model's."""
  config = world.config.policy
  key, grown = step_key(world.config.seed, 0, 'policy init'), 0
  match config.init:
    case 'agent':
      lm = agent_lm(world)
      shape, params, tokenizer = lm.config, lm.params, lm.tokenizer
    case 'random':
      shape, tokenizer = preset(config.model, world.tokenizer.vocab_size), world.tokenizer
      params = init_params(shape, key, config.param_dtype)
    case path:
      found = read_pretrained_config(path)
      if config.model and (problems := differences(found, preset(config.model, found.vocab_size))):
        raise ConfigError(f"policy.init {path} is not the policy.model {config.model}: {problems}; policy.model '' takes any shape")
      shape, params, tokenizer, grown = load_pretrained(path, dtype=config.param_dtype, place=world.place)
  shape = dataclasses.replace(shape, dtype=config.dtype, attention=config.attention)
  adaptation = None
  if config.lora.rank:
    if config.init in ('agent', 'random'):
      raise ConfigError(f'policy.lora needs a pretrained model that its adapter can name, found policy.init {config.init!r}')
    lora = LoraConfig(config.lora.rank, config.lora.alpha, config.lora.targets, tokens=tokenizer.decisions)
    adaptation = Adaptation(lora, init_lora(shape, lora, params, key), config.init)
  return GuidancePolicy(
    shape,
    params,
    tokenizer,
    max_prompt=config.max_prompt,
    max_content=config.max_content,
    template=config.template,
    adaptation=adaptation,
    grown=grown,
    batch_size=config.batch_size,
  )


def validation(policy: GuidancePolicy, loss: Loss, batches: Sequence[TrainBatch]) -> Callable[[Any], dict[str, float]]:
  """A function trained -> mean metrics over batches, named val/..."""
  forward = jax.jit(forward_loss(policy.config, policy.tokenizer.decisions, loss, policy.assemble))

  def evaluate(trained: Any) -> dict[str, float]:
    sums: dict[str, float] = {}
    for batch in batches:
      value, metrics = forward(trained, policy.frozen, arrays_of(batch))
      for name, part in {'val/loss': value, **{f'val/{name.replace("/", "_")}': part for name, part in metrics.items()}}.items():
        sums[name] = sums.get(name, 0.0) + float(part) * float(batch.valid.sum())
    total = sum(float(batch.valid.sum()) for batch in batches)
    return {name: part / total for name, part in sums.items()}

  return evaluate


# Stage 2.


def train_stage2(world: World, policy: GuidancePolicy) -> GuidancePolicy:
  """RL on counterfactual groups (method section 3), from the policy of stage 1. Returns the policy; `stage2/policy` holds it."""
  return _reinforce(world, policy, world.workdir / 'stage2', world.config.stage2, 'stage 2')


def train_rag_abstain(world: World, policy: GuidancePolicy) -> GuidancePolicy:
  """The same RL, of the decision alone: what is said in every branch is what RAG retrieves (method section 5, a control [D, O]).

  The branches of a group say the same, so each has an agent seed of its own.
  """
  config = ConfigDict(world.config.stage2)
  config.branch_seeds, config.content_weight = 'independent', 0.0
  rag = make_rag(world)
  retrieve = lambda contexts: rag.guide(contexts, world.config.seed)
  return _reinforce(world, policy, world.workdir / 'rag_abstain', FrozenConfigDict(config), 'RAG with abstention', retrieve)


def _reinforce(
  world: World,
  policy: GuidancePolicy,
  folder: Path,
  config: FrozenConfigDict,
  description: str,
  retrieve: Callable[[Sequence[Context]], list[Guidance]] | None = None,
) -> GuidancePolicy:
  """Stage 2 with some settings, in a folder of its own; `retrieve` as in `RolloutSource`."""
  if files.read_done(folder) is not None:
    return world.load_policy(folder / 'policy')
  if config.decision_loss not in DECISION_LOSSES:
    raise ConfigError(f'stage2.decision_loss is {config.decision_loss!r}, expected one of {", ".join(DECISION_LOSSES)}')
  if config.decision_loss == 'ratio' and config.replay:
    raise ConfigError(f'stage2.replay is {config.replay}, expected 0: ratios of decision_loss ratio are those of branches just sampled')
  if not config.structured and (config.decision_loss, config.replay) != ('policy_gradient', 0):
    raise ConfigError(
      f'stage2.structured is False: expected decision_loss policy_gradient and replay 0, found {config.decision_loss} and {config.replay}'
    )
  train_games = world.splits[TRAIN_SPLIT]
  runs = [world.tasks(train_games[: config.games], 'stage2', run) for run in range(config.abstain_outcomes)]
  world.check_experience('the training tasks', [task for run in runs for task in run])
  alone = world.workdir / 'stage2'  # episodes of the agent alone are the same for every policy: played once
  source = RolloutSource(world.runner, make_tasks(runs), policy, config, seed=world.config.seed, folder=alone, retrieve=retrieve, engine=world.engine)
  print(f'policy: {policy.engine.describe()}')
  if world.config.compile_ahead:
    source.warm_up()
  probes = make_probes(world, policy, alone)
  num_steps = config.updates * (1 + config.replay)

  loss = functools.partial(stage2_loss, config)
  policy = fit(world, folder, description, policy, source, loss, config, num_steps, inner_epochs=config.inner_epochs, evaluate=probes)
  files.mark_done(folder, {'updates': config.updates} | probes(policy.trained))
  return policy


def make_probes(world: World, policy: GuidancePolicy, folder: Path) -> Probes:
  """Probes on the last train games, which no update sees, with episodes of their own for their difficulty."""
  config = world.config.stage2
  games = world.splits[TRAIN_SPLIT][-config.probe_games :]
  tasks = [task for run in range(config.probe_runs) for task in world.tasks(games, 'probe', run)]
  play_to_log(world.runner, tasks, folder / 'probes.jsonl', 'probes')
  episodes = list(read_episodes(folder / 'probes.jsonl'))
  runs = [episodes[start : start + len(games)] for start in range(0, len(episodes), len(games))]
  effect = world.config.world.guidance_effect
  acts = np.array([guidance_acts(effect, game.kind) for game in games])
  return Probes(lambda trained, contexts: policy.with_trained(trained).p_generate(contexts), runs, acts)


# A baseline with a model of its own.


def train_memory_r1(world: World, entries: Sequence[BankEntry]) -> None:
  """Memory-R1: its manager learns the operations' format from the rules, then by GRPO what they are worth; then it reads the bank.

  memory_r1/sft and memory_r1/grpo hold the manager, memory_r1/facts.jsonl what it made of the bank.
  """
  folder, config = world.workdir / 'memory_r1', world.config.baselines.memory_r1
  if files.read_done(folder) is not None:
    return
  entries = [entry for entry in entries if entry.guidance]
  empty = lambda: FactStore(config.encoder, config.shown)
  policy, rules = initial_policy(world), RuleManager(config.replace)
  # The whole bank into one store, and short stretches of it into empty ones: a manager meets stores of every size.
  stretches = [entries, *(entries[start : start + STRETCH] for start in range(0, len(entries), STRETCH))]
  shown = [example for stretch in stretches for example in demonstrations(stretch, empty(), rules)]
  sft = SftSource(
    shown, policy, batch_size=config.sft.batch_size, abstain_share=0.0, validation=world.config.stage1.validation, seed=world.config.seed
  )

  def improve(
    logit: jax.Array, logps: jax.Array, batch: TrainBatch, num_rows: jax.Array | None, num_tokens: jax.Array | None
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    return content_policy_gradient_loss(
      logps, batch.old_logps, batch.ref_logps, batch.content_adv, batch.content_mask,
      clip_low=config.grpo.clip, clip_high=config.grpo.clip, kl=config.grpo.kl, num_tokens=num_tokens,
    )  # fmt: skip

  validate = validation(policy, imitation_loss, sft.validation_batches())
  policy = fit(
    world, folder / 'sft', 'manager SFT', policy, sft, imitation_loss, config.sft, config.sft.steps, inner_epochs=1, evaluate=validate
  )
  # The first half of the bank is what the store knows already; the manager learns on the facts of the second half.
  store, half = empty(), len(entries) // 2
  demonstrations(entries[:half], store, rules)
  tasks = world.tasks(world.splits[TRAIN_SPLIT][: world.config.bank.games], 'memory_r1')
  memory = fact_memory('memory_r1', store, world)
  source = ManagerSource(
    world.runner, policy, entries[half:], store, memory, tasks, config.grpo, seed=world.config.seed, subject=world.suite.subject
  )
  nothing = lambda trained: {}
  policy = fit(
    world, folder / 'grpo', 'manager GRPO', policy, source, improve, config.grpo, config.grpo.updates, inner_epochs=1, evaluate=nothing
  )
  managed, manager = empty(), PolicyManager(world.load_policy(folder / 'grpo' / 'policy', batch_size=1))
  write_facts(folder, managed, build_facts(entries, managed, manager, folder / OPERATIONS))


# The loop that both stages share.


def fit(
  world: World,
  folder: Path,
  description: str,
  policy: GuidancePolicy,
  source: Source,
  loss: Loss,
  config: FrozenConfigDict,
  num_steps: int,
  *,
  inner_epochs: int,
  evaluate: Callable[[Any], dict[str, float]],
) -> GuidancePolicy:
  """The training loop. Order of resume: the newest whole checkpoint, the source's state in it, then the metrics from that step on.

  The state holds what is trained, and nothing else: the parameters, or a LoRA adapter, on the mesh of all devices, with policy.scan_layers
  in the scanned layout. The source, the probes and the policy's folder get it unrolled, on this host's own devices. Asked to end (SIGTERM),
  it saves the last whole step and ends; a step that was being played is played again.
  """
  layout, run = world.layout, world.config
  own, scan = local_layout(layout), run.policy.scan_layers
  to_training, unrolled = (stack_layers, jax.jit(unstack_layers)) if scan else (lambda tree: tree, lambda tree: tree)
  optimizer = make_optimizer(config.optimizer, num_steps * inner_epochs)
  decoder = dataclasses.replace(policy.config, scan_layers=scan, remat=run.policy.remat)
  compute = forward_loss(decoder, policy.tokenizer.decisions, loss, policy.assemble)
  update = Update(layout, compute, optimizer, micro_batches=config.micro_batches)
  state, frozen = update.init(to_training(policy.trained)), update.place(to_training(policy.frozen) if policy.frozen else {})

  def to_policy(params: Any) -> Any:
    with hosts.watch(f'{description}, giving every host the parameters'):
      return jax.block_until_ready(unrolled(to_host(params, layout, shardings(own, params))))

  def averaged() -> Any:
    """What is evaluated and saved: for some optimizers not the parameters at which gradients are taken."""
    return to_policy(evaluation_params(config.optimizer, state['opt_state'], state['params']))

  if run.compile_ahead:
    for batch in source.examples():
      update.compiled(state, frozen, update.put(batch))
  checkpoints = Checkpointer(folder / 'checkpoints', **run.checkpoint)
  first = checkpoints.latest() or 0
  if first:
    state, extra = checkpoints.restore(first, state)
    source.restore(extra['source'])
  trackers = open_trackers(
    check_tracker(run.tracker) if hosts.is_first() else (), folder=folder, name=f'{world.workdir.name} {description}',
    config=flatten(run), resume_step=first,
  )  # fmt: skip
  clock, saved = Stopwatch(), first
  with (
    checkpoints,
    contextlib.closing(Profiler(folder, parse_steps(run.profile.steps))) as profiler,
    MetricWriter(folder, first + 1 if first else 0, trackers) as writer,
    progress(num_steps, description, initial=first) as bar,
  ):
    if not first:
      writer.write(0, evaluate(averaged()))
    clock.start()
    source.clock.start()
    for step in range(first, num_steps):
      with profiler.step(step):
        try:
          with clock('source'):
            batch, metrics = source.next(step, to_policy(state['params']))
        except Preempted:  # before the source took anything in
          if step > saved:
            checkpoints.save(step, state, {'source': source.state()})
            checkpoints.wait()  # an error of it is worth more than the word that all is saved
          raise
        arrays = update.put(batch)
        with clock('compile'):
          update.compiled(state, frozen, arrays)
        with clock('update'), hosts.watch(f'{description}, step {step}'):
          for _ in range(inner_epochs):
            state, scalars = update(state, frozen, arrays)
          metrics |= update.read(scalars, f'{description}, step {step}')
      last = step + 1 == num_steps
      if last or (step + 1) % config.evaluate_every == 0:
        with clock('evaluate'):
          metrics |= evaluate(averaged())
      writer.write(step + 1, metrics)
      bar.set_postfix({'loss': f'{metrics["train/loss"]:.3f}'}, refresh=False)
      bar.update()
      ending = any(hosts.gather(preemption.requested()))
      if last or ending or (step + 1) % config.checkpoint_every == 0:
        with clock('checkpoint'):
          # All that resume needs: keys and seeds are functions of the step, episodes that were being played are played again.
          checkpoints.save(step + 1, state, {'source': source.state()}, metrics)
          saved = step + 1
      if ending and not last:
        checkpoints.wait()
        raise Preempted
    checkpoints.wait()
  if first < num_steps:
    clock.write(folder / TIMING, {'steps': num_steps - first, 'within_source': source.clock.parts})
  trained = policy.with_trained(averaged())
  trained.save(folder / 'policy', dtype=run.policy.param_dtype)
  hosts.barrier()
  return trained


# Control experiments.


def run_control(config: FrozenConfigDict, workdir: Path) -> Verdict:
  """One run a seed of `control.seeds`, each in a folder of its own, then the verdict: printed, and written to control.json."""
  seeds, before, after = list(config.control.seeds), [], []
  for seed in seeds:
    folder = workdir / f'seed_{seed}'
    train(resolve(override(ConfigDict(config.to_dict()), {'seed': seed, 'control.seeds': ()})), folder)
    lines = [line for line in read_metrics(folder / 'stage2') if 'probe/p_generate' in line]
    before.append({name: value for name, value in lines[0].items() if name.startswith('probe/p_generate')})
    after.append({name: value for name, value in lines[-1].items() if name in before[-1]})
  verdict = judge(config.control.kind, seeds, before, after)
  files.write_json(workdir / 'control.json', dataclasses.asdict(verdict) | {'passed': verdict.passed})
  print(format_verdict(verdict))
  return verdict


@report_errors
def main(arguments: Sequence[str]) -> None:
  """The command."""
  parsed, config = parse_command_line(argparse.ArgumentParser(description=__doc__.split('\n')[0]), arguments)
  if not has_accelerator() and not config.stage2.updates:
    keep_freed_memory()  # before JAX starts; fine-tuning is faster so, rollouts are slower
  join_hosts(parsed, config)
  if not config.control.seeds:
    train(config, parsed.workdir, parsed.allow)
    print(f'trained: {parsed.workdir}')
    return
  share_compilations(parsed.workdir / COMPILED)
  if not run_control(config, parsed.workdir).passed:
    raise SystemExit(1)


if __name__ == '__main__':
  main(sys.argv[1:])
