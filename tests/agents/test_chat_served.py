"""The chat agent on a real language model: the package's own frozen agent, served by transformers, acts as it does in this process."""

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from mempi_jax.agents.chat import ChatPrompt, make_chat_agent
from mempi_jax.envs.alfworld.env import AlfworldEnv
from mempi_jax.envs.alfworld.generator import generate_games
from mempi_jax.rollout.episode import run_episodes
from mempi_jax.types import Decision, Guidance, Task

NEEDED = ('torch', 'fastapi', 'uvicorn', 'openai')  # of transformers[serving]
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
PLAIN = ChatPrompt('', goal='Goal: ', observation='', guidance='Guidance: ')  # what the agent was trained on, as messages
TEMPLATE = "[BOS]{% for m in messages %}{{ m['content'] + '\\n>' if m['role'] == 'user' else ' ' + m['content'] + '\\n' }}{% endfor %}"


@contextlib.contextmanager
def serving(folder, log):
  """`transformers serve` on a folder; gives the base address once it answers. Fails with its last words if it does not."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  code = 'from transformers.cli.transformers import main\nmain()'
  command = [sys.executable, '-c', code, 'serve', str(folder), '--host', '127.0.0.1', '--port', str(port), '--device', 'cpu', '--dtype', 'float32']
  environment = {**os.environ, 'HF_HUB_OFFLINE': '1', 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'}
  with open(log, 'w') as file, subprocess.Popen(command, stdout=file, stderr=file, env=environment) as process:
    try:
      deadline = time.monotonic() + 240
      opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
      while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), opener.open(f'http://127.0.0.1:{port}/health', timeout=5):
          break
        time.sleep(0.5)
      else:
        pytest.fail(f'transformers serve did not start:\n{log.read_text()[-2000:]}')
      yield f'http://127.0.0.1:{port}/v1'
    finally:
      process.terminate()


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"transformers' server needs {', '.join(MISSING)}: pip install 'transformers[serving]'")
def test_a_served_model_plays_as_it_does_in_process(tmp_path, monkeypatch):
  from mempi_jax.agents.lm import load_agent
  from mempi_jax.world import shipped_agent

  monkeypatch.setenv('no_proxy', '127.0.0.1')
  folder = tmp_path / 'agent'
  shutil.copytree(shipped_agent(), folder)
  settings = json.loads((folder / 'tokenizer_config.json').read_text())
  # The template writes [BOS] as text.
  (folder / 'tokenizer_config.json').write_text(json.dumps({**settings, 'chat_template': TEMPLATE, 'split_special_tokens': False}))
  (folder / 'generation_config.json').write_text('{"do_sample": true}')  # or this server takes no notice of temperatures
  games = {game.game_id: game for game in generate_games('maple', 'train', 2, 0, small_fraction=1.0)}
  tasks = [Task('alfworld', game_id, 'train', i) for i, game_id in enumerate(games)]
  guidances = [Guidance(Decision.ABSTAIN), Guidance(Decision.GENERATE, games[tasks[1].task_id].hidden['guidance'])]

  def play(agent, max_steps=8):
    episodes = run_episodes(lambda: AlfworldEnv(games), agent, tasks, guidances, [max_steps] * 2)
    return [[step.action for step in episode.steps] for episode in episodes]

  local = play(load_agent(shipped_agent(), context_length=512, max_action_tokens=16, temperature=0.0, batch_size=2))
  answers = tmp_path / 'answers.jsonl'
  fields = dict(prompt=PLAIN, temperature=0.0, max_action_tokens=16, extra={'stop': ['\n']}, answers=answers)
  with serving(folder, tmp_path / 'log') as url, contextlib.closing(make_chat_agent(url, str(folder), **fields)) as agent:
    assert play(agent) == local
    turns = sum(map(len, local))
    assert (agent.endpoint.traffic.answers, agent.endpoint.traffic.without_usage) == (turns, 0)
    sampled = {**fields, 'temperature': 1.5, 'answers': None, 'concurrency': 1}  # this server's seeds are good for one request at a time
    with contextlib.closing(make_chat_agent(url, str(folder), **sampled)) as other:
      assert play(other, 3) == play(other, 3) != [actions[:3] for actions in local]
  with contextlib.closing(make_chat_agent('http://127.0.0.1:9/v1', str(folder), **fields)) as agent:  # the server is gone, the answers are not
    assert play(agent) == local
