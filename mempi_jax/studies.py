"""Studies: a sweep whose runs Optuna suggests one after the other, each from how the earlier ones ended.

A config file names what is suggested, and what is to become better:

    OBJECTIVE = ('heldout_games', 'mempi', 'success_rate', 'maximize')      # split, memory, measure of results.json, direction

    def study(trial):
      return {'stage2.optimizer.learning_rate': trial.suggest_float('learning_rate', 1e-4, 1e-3, log=True)}

Each trial is a run in WORKDIR/trial_N. The study is WORKDIR/study.jsonl, Optuna's journal: a trial that was killed, or failed, is gone on with before
another one is asked for. What is suggested for trial N depends on the config's seed, on N, and on the trials that have ended by then; so a study that runs
one trial at a time suggests the same whether it is killed or not. Several processes may work on one study.

Needs the extra `sweeps`.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mempi_jax.config import VARIANT, ConfigError, load_config, load_study, near
from mempi_jax.runs import ELSEWHERE, FINISHED, RESULTS, STUDY, HeldError, Plan, State, hold, make_plans, run_all, state_of
from mempi_jax.runtime import files
from mempi_jax.runtime.workdir import COMPILED, share_compilations

MEASURES = ('success_rate', 'abstain_rate', 'guidance_tokens', 'agent_steps')
DIRECTIONS = ('maximize', 'minimize')

Objective = tuple[str, str, str, str]

_NAME = 'study'  # in the journal
_OVERRIDES, _OBJECTIVE = 'overrides', 'objective'  # attributes of a trial, of the study
_LEAST_TRIALS = 8  # of which importances are more than noise


def check_objective(config: str, objective: Objective) -> None:
  """Raises ConfigError where a run of the config has no such number, or the direction is none; says what was expected."""
  split, memory, measure, direction = objective
  fields = load_config(config)
  splits = [name for name, games in fields.eval.games.items() if games]
  for what, found, known in (
    ('split', split, splits),
    ('memory', memory, fields.eval.memories),
    ('measure', measure, MEASURES),
    ('direction', direction, DIRECTIONS),
  ):
    if found not in known:
      raise ConfigError(f'{config}: OBJECTIVE has the {what} {found!r}{near(found, known)}; expected one of {", ".join(known)}')


def run_study(config: str, workdir: Path, *, trials: int, jobs: int, most: int | None = None) -> None:
  """Goes on with a study, `jobs` trials at a time, until it has `trials` of them that are finished; then its table and picture.

  Args:
    config: path of the config file.
    workdir: of the study.
    trials: of the whole study, those that are there included.
    jobs: at a time.
    most: trials that this process runs; None: all.

  Raises:
    ConfigError: Optuna is not installed, `study` or `OBJECTIVE` cannot be used, or the folder holds a study of another objective. SystemExit: a
      trial failed, or another process still runs one, the others are finished all the same. What `make_plans` raises.
  """
  if min(trials, jobs) < 1:
    raise ConfigError(f'trials is {trials} and jobs {jobs}, expected 1 or more of each')
  suggest, objective = load_study(config)
  check_objective(config, objective)
  files.ensure_writable(workdir)
  share_compilations(workdir / COMPILED)
  with _alone(workdir):
    study = open_study(workdir, objective)
  plans: list[Plan] = []  # of this process, and those of finished trials: what is taken over may come from any
  plans += [plan for plan, _ in _plans(config, workdir, study, finished=True)]
  count = {'run': 0, 'failed': 0, 'elsewhere': 0}

  def ended(plan: Plan, state: State) -> None:
    if state.kind == FINISHED:
      study.tell(_number(plan), _value_of(plan.folder, objective), skip_if_finished=True)
    count['run'] += state.kind != ELSEWHERE
    count['failed'] += state.kind not in (FINISHED, ELSEWHERE)
    count['elsewhere'] += state.kind == ELSEWHERE

  def waiting() -> Iterator[Plan]:
    for plan, state in _plans(config, workdir, study, finished=False):
      if most is not None and count['run'] >= most:
        return
      if most is not None and state.kind == ELSEWHERE:
        continue
      plans.append(plan)
      yield plan
    while most is None or count['run'] < most:
      with _alone(workdir):
        if _count(study) >= trials:
          return
        plan = _ask(config, workdir, study, suggest)
      plans.append(plan)
      yield plan

  finished = _count(study, complete=True)
  total = trials if most is None else min(trials, finished + most)
  run_all(config, waiting(), jobs=jobs, total=total, finished=finished, siblings=plans, after=ended)
  report_study(config, workdir)
  if count['failed']:
    print(f'failed: {count["failed"]} trials; they are tried again when the study is started again')
  if count['failed'] or (count['elsewhere'] and most is None):
    raise SystemExit(1)


def report_study(config: str, workdir: Path) -> None:
  """Writes the table and the picture of a study's finished trials, and prints the table and the best one. Nothing where there is none."""
  from mempi_jax.sweep_report import write_study, write_table

  _, objective = load_study(config)
  study = open_study(workdir, objective)
  found = [plan for plan, _ in _plans(config, workdir, study, finished=True)]
  if not found:
    return
  ended = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
  records = [
    {'number': _number(plan), 'value': ended[_number(plan)].value, 'ci95': _interval(plan.folder, objective), 'params': ended[_number(plan)].params}
    for plan in found
  ]
  print(write_table(workdir, [plan.run for plan in found]))
  logarithmic = {name for plan in found for name, range_of in ended[_number(plan)].distributions.items() if getattr(range_of, 'log', False)}
  picture = write_study(workdir, records, logarithmic, _importances(study, records), objective)
  best = next(plan for plan in found if _number(plan) == study.best_trial.number)
  overrides = ' '.join(f'--config.{name}={value}' for name, value in best.run.items() if name != VARIANT)
  print(f'best of {len(found)} trials: {best.name}, {objective[2]} {study.best_value:.4f}: {overrides}')
  print(picture)


def open_study(workdir: Path, objective: Objective) -> Any:
  """The optuna.Study of a folder; made where there is none.

  Raises ConfigError: Optuna is not installed, or the study there has another objective.
  """
  try:
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
  except ImportError:
    raise ConfigError('trials need Optuna, which is not installed: pip install -e ".[sweeps]"') from None
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  path = workdir / STUDY
  lock = JournalFileOpenLock(str(path))
  if path.exists():
    lock.acquire()  # nobody is in the middle of a line now
    try:
      files.cut_half_line(path)
    finally:
      lock.release()
  storage = JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
  try:
    study = optuna.load_study(study_name=_NAME, storage=storage)
  except KeyError:
    study = optuna.create_study(study_name=_NAME, storage=storage, direction=objective[3])
  before = study.user_attrs.get(_OBJECTIVE)
  if before is None:
    study.set_user_attr(_OBJECTIVE, list(objective))
  elif before != list(objective):
    raise ConfigError(f'{path} is a study of {before}, found OBJECTIVE {list(objective)}. Use another --workdir')
  return study


def describe_study(config: str, workdir: Path, trials: int) -> list[str]:
  """A line for each trial that is there, and one for those that would be asked for; writes nothing."""
  _, objective = load_study(config)
  check_objective(config, objective)
  if not (workdir / STUDY).exists():
    return [f'{trials} trials would be asked for']
  study = open_study(workdir, objective)
  lines = [f'{plan.name:10} {state}  {_text(plan)}' for flag in (True, False) for plan, state in _plans(config, workdir, study, finished=flag)]
  return [*lines, f'{max(0, trials - _count(study))} more trials would be asked for']


def unfinished_trials(config: str, workdir: Path, trials: int) -> int:
  """How many of a study's trials are still to be run, or to be asked for."""
  _, objective = load_study(config)
  check_objective(config, objective)
  return trials - (_count(open_study(workdir, objective), complete=True) if (workdir / STUDY).exists() else 0)


# Internals.


@contextlib.contextmanager
def _alone(workdir: Path) -> Iterator[None]:
  """No other process asks for a trial inside the block."""
  with contextlib.ExitStack() as stack:
    while True:
      try:
        stack.enter_context(hold(workdir))
        break
      except HeldError:
        time.sleep(0.1)
    yield


def _ask(config: str, workdir: Path, study: Any, suggest: Any) -> Plan:
  """A new trial's plan. A trial without overrides was left by a process that was killed right here: it is told to have failed."""
  import optuna

  for trial in study.get_trials(deepcopy=False):
    if trial.state == optuna.trial.TrialState.RUNNING and _OVERRIDES not in trial.user_attrs:
      study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
  number = len(study.get_trials(deepcopy=False))
  study.sampler = optuna.samplers.TPESampler(seed=int(np.random.SeedSequence([load_config(config).seed, number]).generate_state(1)[0]))
  trial = study.ask()
  try:
    overrides = suggest(trial)
    if not isinstance(overrides, Mapping):
      raise ConfigError(f'{config}: study() returned {overrides!r}, expected a dict of overrides')
    plan = _plan(config, workdir, trial.number, overrides)
  except Exception:
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    raise
  trial.set_user_attr(_OVERRIDES, json.loads(json.dumps(dict(overrides))))
  return plan


def _plans(config: str, workdir: Path, study: Any, *, finished: bool) -> list[tuple[Plan, State]]:
  """Plans of the trials that have ended well, or else of those that have not, and their states."""
  import optuna

  state = optuna.trial.TrialState.COMPLETE if finished else optuna.trial.TrialState.RUNNING
  found = [trial for trial in study.get_trials(deepcopy=False) if trial.state == state and _OVERRIDES in trial.user_attrs]
  plans = [_plan(config, workdir, trial.number, trial.user_attrs[_OVERRIDES]) for trial in found]
  return [(plan, state_of(plan.folder)) for plan in plans]


def _plan(config: str, workdir: Path, number: int, overrides: Mapping[str, Any]) -> Plan:
  return make_plans(config, workdir, [{VARIANT: f'trial_{number}', **overrides}])[0]


def _number(plan: Plan) -> int:
  return int(plan.run[VARIANT].removeprefix('trial_'))


def _count(study: Any, *, complete: bool = False) -> int:
  """Trials that are finished or to be gone on with; or only the finished ones."""
  import optuna

  trials = study.get_trials(deepcopy=False)
  done = sum(trial.state == optuna.trial.TrialState.COMPLETE for trial in trials)
  return done if complete else done + sum(trial.state == optuna.trial.TrialState.RUNNING and _OVERRIDES in trial.user_attrs for trial in trials)


def _row(folder: Path, objective: Objective) -> Mapping[str, Any]:
  split, memory, *_ = objective
  for row in files.read_json(folder / RESULTS)['rows']:
    if (row['split'], row['memory']) == (split, memory):
      return row
  raise ConfigError(f'{folder / RESULTS} has no row of {memory} on {split}, the OBJECTIVE')


def _value_of(folder: Path, objective: Objective) -> float:
  return float(_row(folder, objective)[objective[2]])


def _interval(folder: Path, objective: Objective) -> Sequence[float] | None:
  """The measure's interval, where it has one."""
  return _row(folder, objective)['ci95'] if objective[2] == 'success_rate' else None


def _importances(study: Any, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  import optuna

  if len(records) < _LEAST_TRIALS or len({record['value'] for record in records}) < 2:
    return {}
  return dict(optuna.importance.get_param_importances(study))


def _text(plan: Plan) -> str:
  return ', '.join(f'{name}={value}' for name, value in plan.run.items() if name != VARIANT)
