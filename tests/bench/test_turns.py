"""Peers as child processes, and turns: with scripts that stand in for peers."""

import pytest

from mempi_jax.bench import turns
from mempi_jax.bench.peers import protocol

GOOD = """
import os, sys
sys.path.insert(0, {scripts!r})
from protocol import draw_tokens, serve
def echo(**arguments):
  print('a library talks')  # to standard error: replies are alone on standard output
  os.system('echo so does C')
  return arguments
serve({{'echo': echo, 'draw': lambda seed: {{'tokens': draw_tokens(seed, (2, 3), 50).tolist()}},
        'environ': lambda: {{'environ': dict(os.environ)}}}})
"""


@pytest.fixture
def start(tmp_path):
  """Starts a peer with a script of the given text."""

  def start(text, **settings):
    script = tmp_path / 'peer.py'
    script.write_text(text)
    return turns.Peer('fake', turns.sys.executable, script, **settings)

  return start


def test_a_peer_answers(start):
  with start(GOOD.format(scripts=str(turns.SCRIPTS))) as peer:
    assert peer.ask('echo', a=1, b=[2]) == {'a': 1, 'b': [2]}
    assert peer.ask('draw', seed=[1, 2])['tokens'] == protocol.draw_tokens((1, 2), (2, 3), 50).tolist()
    assert peer.ask('draw', seed=[1, 3])['tokens'] != protocol.draw_tokens((1, 2), (2, 3), 50).tolist()
    process = peer._process
  assert process.returncode is not None


@pytest.mark.parametrize('keep', [False, True])
def test_what_a_peer_sees_of_the_environment(start, keep, monkeypatch):
  monkeypatch.setenv('PYTHONPATH', '/somewhere')
  monkeypatch.setenv('MALLOC_ARENA_MAX', '7')
  with start(GOOD.format(scripts=str(turns.SCRIPTS)), keep_memory=keep) as peer:
    found = peer.ask('environ')['environ']
  assert 'PYTHONPATH' not in found and found['CUDA_VISIBLE_DEVICES'] == ''
  assert found.get('MALLOC_ARENA_MAX') == ('1' if keep else None)
  assert ('MALLOC_MMAP_MAX_' in found) == keep


@pytest.mark.parametrize(
  ('script', 'message'),
  [
    ('import sys; input(); sys.exit("no such model")', "died at 'load' with exit status 1; the end of its standard error:\nno such model"),
    ('raise ImportError("no torch here")', r"died at 'load' with exit status 1; .*no torch here"),
    ('import os, signal; input(); os.kill(os.getpid(), signal.SIGKILL)', "died at 'load' with exit status -9; its standard error is empty"),
    ('input(); print("hello"); input()', "answered 'load' with 'hello', expected a JSON object"),
    ('input(); print("3"); input()', "answered 'load' with '3', expected a JSON object"),
    ('import sys; print("thinking", file=sys.stderr, flush=True); input(); input()', r"did not answer 'load' within 1 s; .*thinking"),
  ],
)
def test_a_peer_that_fails_says_how(start, script, message):
  with start(script) as peer:
    with pytest.raises(turns.PeerError, match=f'(?s)the peer fake {message}'):
      peer.ask('load', timeout=1.0 if 'thinking' in script else 60.0)
    assert peer._process.returncode is not None


def test_a_peer_that_is_dead_is_not_asked_again(start):
  with start('input()') as peer:
    for _ in range(2):
      with pytest.raises(turns.PeerError, match="died at 'load' with exit status 0"):
        peer.ask('load')


def test_a_python_that_cannot_be_started():
  with pytest.raises(turns.PeerError, match='the peer fake could not be started'):
    turns.Peer('fake', '/nowhere/python', 'peer.py')


def test_peers_are_named():
  assert turns.parse_peers('torch', ('torch', 'trl')) == ('torch',)
  assert turns.parse_peers('trl, torch,trl', ('torch', 'trl')) == ('trl', 'torch')
  with pytest.raises(ValueError, match="unknown peer 'jax': expected some of torch, trl"):
    turns.parse_peers('torch,jax', ('torch', 'trl'))


def test_where_the_python_of_a_peer_is(tmp_path, monkeypatch):
  python = tmp_path / 'tunix' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  python.touch()
  monkeypatch.setattr(turns.importlib.util, 'find_spec', lambda name: name == 'trl')
  assert turns.find_python('tunix', str(tmp_path)) == str(python)
  assert turns.find_python('trl', str(tmp_path)) == turns.find_python('trl', None) == turns.sys.executable
  with pytest.raises(turns.PeerError, match=f'peers/install.sh {tmp_path} torch'):
    turns.find_python('torch', str(tmp_path))  # transformers is missing here too
  with pytest.raises(turns.PeerError, match='peers/install.sh DIR tunix, then --peers DIR'):
    turns.find_python('tunix', None)


def test_sides_take_turns():
  log = []

  def side(name):
    def run(repeat):
      log.append((name, repeat))
      return float(len(log))

    return run

  rows = turns.take_turns({name: side(name) for name in 'ab'}, 3, rest=0.0)
  assert log == [('a', 0), ('b', 0), ('b', 1), ('a', 1), ('a', 2), ('b', 2)]
  assert rows == [{'a': 1.0, 'b': 2.0}, {'a': 4.0, 'b': 3.0}, {'a': 5.0, 'b': 6.0}]
  assert turns.summary(rows)['a'] == {'median': 4.0, 'min': 1.0, 'max': 5.0}
  assert turns.format_figure({'median': 0.5, 'min': 0.25, 'max': 12.0}, digits=1, factor=100) == '50.0 [25.0, 1,200.0]'


def test_ratios_are_of_speeds_to_the_best_peer():
  speeds = [{'mempi_jax': 6.0, 'torch': 3.0, 'tunix': 4.0}, {'mempi_jax': 6.0, 'torch': 8.0, 'tunix': 4.0}]
  turns.add_ratio(speeds, max)
  assert [row['ratio'] for row in speeds] == [1.5, 0.75]
  durations = [{'mempi_jax': 2.0, 'trl': 3.0, 'tunix': 4.0}, {'mempi_jax': 2.0}]
  turns.add_ratio(durations, min)
  assert durations[0]['ratio'] == 1.5 and 'ratio' not in durations[1]


def test_sides_that_differ_are_found():
  turns.check_same_losses('x', [5.0, 4.0], [5.0002, 4.03])
  with pytest.raises(ValueError, match='first step 5.010000 here, 5.000000 in x'):
    turns.check_same_losses('x', [5.01, 4.0], [5.0, 4.0])
  with pytest.raises(ValueError, match='last warm-up step'):
    turns.check_same_losses('x', [5.0, 4.0], [5.0, 4.1])
  with pytest.raises(ValueError, match='first step'):
    turns.check_same_losses('x', [float('nan'), 4.0], [5.0, 4.0])
  turns.check_count('x', 'tokens', 3, 3)
  with pytest.raises(ValueError, match='x had 2 tokens, expected 3'):
    turns.check_count('x', 'tokens', 2, 3)
  turns.check_same_distance('x', 1.0, 1.9)
  with pytest.raises(ValueError, match='parameters moved by 1 here, by 2.1 in x'):
    turns.check_same_distance('x', 1.0, 2.1)


def test_a_run_says_where_it_ran(capsys):
  run = turns.describe_run({'jax': '1'}, 0.5, False)
  assert run['device'] == 'cpu' and run['cpus'] >= 1 and run['versions'] == {'jax': '1'}
  turns.print_run(run)
  out = capsys.readouterr().out
  assert 'load average before 0.5' in out and 'jax 1' in out and 'gives freed memory back' in out
