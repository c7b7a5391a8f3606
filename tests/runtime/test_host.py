"""What is asked of the machine before JAX starts."""

import subprocess
import sys

from mempi_jax.runtime import host


def test_an_accelerator_is_found_by_its_device_files(monkeypatch, tmp_path):
  monkeypatch.setattr(host, 'ACCELERATORS', (str(tmp_path / 'nvidia[0-9]*'), str(tmp_path / 'accel*')))
  (tmp_path / 'nvidiactl').touch()  # the driver alone
  assert not host.has_accelerator()
  (tmp_path / 'nvidia0').touch()
  assert host.has_accelerator()


def test_freed_memory_is_not_kept_where_it_cannot_be(monkeypatch):
  class Musl:
    pass

  monkeypatch.setattr(host.ctypes, 'CDLL', lambda name: Musl())
  assert host.keep_freed_memory() is False
  monkeypatch.setattr(host.sys, 'platform', 'darwin')
  assert host.keep_freed_memory() is False


MEASURE = """
import ctypes, resource
from mempi_jax.runtime.host import keep_freed_memory
kept = keep_freed_memory() if {keep} else None
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def allocate():
  block = c.malloc(50_000_000)
  ctypes.memset(block, 1, 50_000_000)
  c.free(block)
allocate()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
allocate()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_kept_memory_costs_no_page_faults_again():
  def measure(keep):
    done = subprocess.run([sys.executable, '-c', MEASURE.format(keep=keep)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    kept, faults = done.stdout.split()
    return kept, int(faults)

  kept, faults = measure(True)
  if kept == 'True':
    assert faults < 100 < measure(False)[1]


def test_numpy_has_one_thread():
  code = (
    'import numpy, threadpoolctl\nfrom mempi_jax.runtime.host import one_thread_for_numpy\none_thread_for_numpy()\n'
    "print({pool['num_threads'] for pool in threadpoolctl.threadpool_info() if pool['user_api'] == 'blas'})"
  )
  assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '{1}'
