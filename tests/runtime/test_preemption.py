"""SIGTERM raises a flag that the run looks at; what launchers repeat is heard once, and who insists ends the process."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import pytest

from mempi_jax.runtime import preemption
from mempi_jax.runtime.preemption import Preempted
from tests.two_hosts import start


@pytest.fixture(autouse=True)
def own_handler():
  before = signal.getsignal(signal.SIGTERM)
  yield
  signal.signal(signal.SIGTERM, before)
  preemption.obeyed()


def terminate():
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(0.01)  # Python runs its handlers between two of its own steps


def test_the_flag_is_raised_and_found():
  preemption.listen()
  preemption.check()
  assert not preemption.requested()
  terminate()
  assert preemption.requested()
  with pytest.raises(Preempted) as ended:
    preemption.check()
  assert ended.value.code == 143 and not isinstance(ended.value, Exception)
  preemption.ignore()
  preemption.listen()  # the next run of a process that has several: it must end as well
  assert preemption.requested()
  preemption.obeyed()
  assert not preemption.requested()


def test_another_host_may_raise_it():
  preemption.listen()
  preemption.request()
  assert preemption.requested()
  assert pickle.loads(pickle.dumps(Preempted())).code == 143  # as it travels between hosts


def test_what_is_sent_twice_is_heard_once():
  """`timeout` sends to the process and to its group, a batch system to the job and to each of its steps."""
  preemption.listen()
  for _ in range(3):
    terminate()
  assert preemption.requested()  # and this process lives


def test_outside_the_main_thread_nothing_happens():
  before = signal.getsignal(signal.SIGTERM)
  thread = threading.Thread(target=preemption.listen)
  thread.start()
  thread.join()
  assert signal.getsignal(signal.SIGTERM) is before


def test_after_the_run_it_ends_the_process_as_ever():
  preemption.listen()
  preemption.request()
  preemption.ignore()
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  preemption.ignore()  # somebody else's handler stays
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


PROGRAM = """
import time
from mempi_jax.runtime import preemption
from mempi_jax.runtime.workdir import report_errors

preemption.ECHO = 0.5
preemption.listen()
print('here', flush=True)

@report_errors
def main(arguments):
  for _ in range(200):
    time.sleep(0.1)
    if preemption.requested() and {check}:
      preemption.check()
    if preemption.requested():
      print('asked', flush=True)

main([])
"""


def test_a_run_that_is_asked_says_so_and_has_the_status_of_the_signal():
  process = start(['-c', PROGRAM.format(check=True)])
  assert process.stdout.readline() == 'here\n'
  process.terminate()
  _, err = process.communicate(timeout=60)
  assert process.returncode == 143
  assert err == 'asked to end: everything up to here is saved, the same command goes on from here\n'


def test_who_insists_ends_it_at_once():
  process = start(['-c', PROGRAM.format(check=False)])
  assert process.stdout.readline() == 'here\n'
  process.terminate()
  assert process.stdout.readline() == 'asked\n'
  time.sleep(0.6)
  process.terminate()
  process.communicate(timeout=10)
  assert process.returncode == -signal.SIGTERM


@pytest.mark.skipif(sys.platform != 'linux', reason='timeout is of the GNU tools')
def test_timeout_of_the_shell_asks_twice():
  command = ['timeout', '3', sys.executable, '-c', PROGRAM.format(check=True)]
  done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
  assert done.returncode == 124 and done.stderr.startswith('asked to end')
