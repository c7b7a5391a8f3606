"""Traces of training steps."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from mempi_jax.runtime.profiler import Profiler, parse_steps


def test_steps():
  assert parse_steps('') is None
  assert parse_steps('10:13') == range(10, 13)
  assert parse_steps('0:1') == range(0, 1)


@pytest.mark.parametrize('text', ['10', '10:', ':3', '13:10', '3:3', '-1:3', '1:9:2', 'a:b', ' '])
def test_steps_that_are_none(text):
  with pytest.raises(ValueError, match=r"profile.steps is '.*', expected '' or first:end with first < end, as in '10:13'"):
    parse_steps(text)


@jax.jit
def slow_update(x):
  return jax.lax.fori_loop(0, 30, lambda _, y: jnp.tanh(y @ y), x)


def loop(folder, steps, first, stop):
  profiler, x = Profiler(folder, steps), jnp.eye(400)
  for step in range(first, stop):
    with profiler.step(step):
      x = slow_update(x)
  profiler.close()


def traces(folder):
  """Of each trace the events of its host: name -> [(begin, end in ns, statistics)]."""
  found = []
  for path in sorted(folder.glob('profile/plugins/profile/*/*.xplane.pb')):
    events = {}
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
      for line in plane.lines:
        for event in line.events:
          events.setdefault(event.name, []).append((event.start_ns, event.end_ns, dict(event.stats)))
    found.append(events)
  return found


def test_the_steps_asked_for_are_traced_to_their_end(tmp_path):
  slow_update(jnp.eye(400)).block_until_ready()
  loop(tmp_path, range(2, 4), 0, 6)
  (events,) = traces(tmp_path)
  assert [statistics['step_num'] for _, _, statistics in events['train']] == [2, 3]
  assert 'PjitFunction(slow_update)' in events
  loops = [event for name in events if name.startswith('while') for event in events[name]]
  assert [statistics['hlo_module'] for _, _, statistics in loops] == ['jit_slow_update'] * 2
  # The last one went on after its step had ended on the host.
  assert max(end for _, end, _ in loops) > max(end for _, end, _ in events['train'])
  # The same for Perfetto.
  (path,) = tmp_path.glob('profile/plugins/profile/*/*.trace.json.gz')
  names = {event.get('name') for event in json.loads(gzip.decompress(path.read_bytes()))['traceEvents']}
  assert 'PjitFunction(slow_update)' in names


def test_a_resumed_loop_traces_the_rest(tmp_path):
  loop(tmp_path, range(2, 5), 4, 6)
  (events,) = traces(tmp_path)
  assert [statistics['step_num'] for _, _, statistics in events['train']] == [4]


def test_a_loop_that_breaks_leaves_the_trace_and_the_profiler_free(tmp_path):
  profiler = Profiler(tmp_path, range(0, 5))
  with pytest.raises(RuntimeError, match='broken'), profiler.step(0):
    slow_update(jnp.eye(400))
    raise RuntimeError('broken')
  profiler.close()
  assert len(traces(tmp_path)) == 1
  loop(tmp_path / 'next', range(0, 1), 0, 1)
  assert len(traces(tmp_path / 'next')) == 1


def test_no_steps_no_trace(tmp_path, caplog):
  loop(tmp_path, None, 0, 2)
  assert not list(tmp_path.iterdir()) and not caplog.records
  loop(tmp_path, range(7, 9), 0, 2)
  assert not list(tmp_path.iterdir())
  assert 'profile.steps 7:9: no such step was trained' in caplog.text
