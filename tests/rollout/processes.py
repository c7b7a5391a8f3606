"""Looks at processes: what tests of both pools share."""

import time
from pathlib import Path


def exists(pid):
  """Whether a process is there and no zombie."""
  try:
    return Path(f'/proc/{pid}/stat').read_bytes().rpartition(b')')[2].split()[0] != b'Z'
  except OSError:
    return False


def wait_until(condition, seconds=30.0):
  """Whether the condition came true in time."""
  deadline = time.monotonic() + seconds
  while not condition() and time.monotonic() < deadline:
    time.sleep(0.02)
  return condition()
