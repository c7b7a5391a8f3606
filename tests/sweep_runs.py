"""Runs of a sweep that cost nothing: a config of three fields, and a command that writes what a finished run has."""

import json
import sys

from mempi_jax.evals import success
from mempi_jax.runtime import files

CONFIG = '''
from ml_collections import ConfigDict
OBJECTIVE = ('heldout_games', 'mempi', 'success_rate', 'maximize')
def get_config():
  return ConfigDict({'seed': 0, 'rate': 0.5, 'kind': 'a', 'parts': ('x',), 'eval': {'memories': ('none', 'mempi'), 'games': {'heldout_games': 4, 'other': 0}}})
def sweep():
  for rate in (0.1, 0.2):
    for seed in (0, 1):
      yield {'rate': rate, 'seed': seed}
def study(trial):
  return {'rate': trial.suggest_float('rate', 0.1, 0.9), 'parts': ('x', 'y')}
'''

# Fails where a file `fail` is beside the run's folder, waits where there is one `wait`.
COMMAND = '''
import json, pathlib, sys, time
folder, rate = pathlib.Path(sys.argv[1]), float(sys.argv[2])
with open(folder / 'started', 'a') as file:
  file.write('x')
deadline = time.monotonic() + 60
while (folder.parent / 'wait').exists() and time.monotonic() < deadline:
  time.sleep(0.02)
if (folder.parent / f'fail {folder.name}').exists():
  sys.exit(f'no luck with {folder.name}')
row = lambda memory, value: {
  'split': 'heldout_games', 'memory': memory, 'n': 40, 'success_rate': value, 'ci95': [value - 0.05, value + 0.05],
  'abstain_rate': 0.25, 'guidance_tokens': 4.0, 'agent_steps': 9.0,
}
(folder / 'results.json').write_text(json.dumps({'rows': [row('none', 0.05), row('mempi', rate)]}))
'''


def commands_of(config, plan):
  """In place of `runs.commands_of`."""
  return [[sys.executable, '-S', '-c', COMMAND, str(plan.folder), str(plan.config.rate)]]


def write_run(folder, solved, *, seed=0):
  """A finished run of 20 games: the agent alone solves none, Mem-π the first `solved`."""
  episodes = [
    {
      'memory': memory, 'split': 'heldout_games', 'task_id': f's{seed}-{i}', 'seed': 7, 'decision': '[GENERATE]', 'p_generate': None,
      'guidance_tokens': 4, 'success': i < count, 'status': 'success' if i < count else 'failure', 'agent_steps': 5,
    }
    for memory, count in (('none', 0), ('mempi', solved))
    for i in range(20)
  ]  # fmt: skip
  files.write_text(folder / success.EPISODES_FILE, ''.join(f'{json.dumps(one)}\n' for one in episodes))
  files.write_json(folder / 'manifest.json', {'agent_hash': '79ad', 'household': 'maple', 'seed': seed, 'games': {'heldout_games': f'of {seed}'}})
  files.write_json(folder / 'results.json', {'rows': success.summarise(episodes)})
