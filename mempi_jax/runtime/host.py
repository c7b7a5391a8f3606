"""The machine under JAX: does it have an accelerator, what does its C library do with freed memory, how many threads do host libraries take?"""

from __future__ import annotations

import ctypes
import glob
import sys

# NVIDIA GPUs; TPUs of older and of newer virtual machines.
ACCELERATORS = ('/dev/nvidia[0-9]*', '/dev/accel*', '/dev/vfio/[0-9]*')

# glibc's mallopt: one arena, no mappings of its own for large blocks, and a heap that is never trimmed.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
KEEP = ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1))


def has_accelerator() -> bool:
  """Whether this machine shows a GPU or a TPU, by its device files: JAX is neither asked nor imported."""
  return any(glob.glob(pattern) for pattern in ACCELERATORS)


def one_thread_for_numpy() -> None:
  """From now on numpy's linear algebra, here of small matrices, runs on one thread: its threads and XLA's wait for each other, ten times as long
  as the work takes. It also rounds alike on machines with other numbers of cores."""
  from threadpoolctl import threadpool_limits

  threadpool_limits(1, user_api='blas')


def keep_freed_memory() -> bool:
  """From now on the C library keeps what this process frees, instead of giving it back to the system; False where it cannot (not glibc).

  A training step on a CPU allocates a few hundred megabytes and frees them again. Given back and asked for anew, every page of them costs
  a page fault in every step. Call it before JAX starts its threads, which otherwise have arenas of their own already. The price: the
  process stays as large as it has ever been, and threads share one arena: fine-tuning gains a sixth on two cores, rollouts lose as much.
  """
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if sys.platform == 'linux' else None
  return mallopt is not None and all(mallopt(parameter, value) for parameter, value in KEEP)
