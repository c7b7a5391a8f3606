"""Files that survive a kill: atomic writes, append-only JSONL logs, DONE markers, hashes.

A reader sees an old file or a new one, never half of one. A log that was cut in the middle of a line loses that line alone. A stage's
folder is complete when it holds DONE.json, which is written last. Of several hosts (runtime/hosts.py) the first one writes: on the others the
functions that write do nothing, and what says how far a run has come (`read_done`, `read_started`) is what the first one reads.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mempi_jax.runtime import hosts

DONE = 'DONE.json'

_logger = logging.getLogger(__name__)


# Whole files, written atomically.


def write_bytes(path: str | Path, data: bytes) -> None:
  """Writes a file so that a kill or a power cut leaves the old content or the new, never a part; parent folders are made."""
  if not hosts.is_first():
    return
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  # A rename is atomic only within one file system, hence the same folder.
  descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.', suffix='.tmp')
  try:
    with os.fdopen(descriptor, 'wb') as file:
      file.write(data)
    commit(temporary, path)
  except BaseException:
    Path(temporary).unlink(missing_ok=True)
    raise


def commit(temporary: str | Path, path: str | Path) -> None:
  """Gives a finished file its name, once all of it is on the disk; it replaces what had the name. Both in one folder."""
  with open(temporary, 'rb') as file:
    os.fsync(file.fileno())
  os.chmod(temporary, 0o666 & ~_umask())  # temporary files are often such that only their owner can read them
  os.replace(temporary, path)
  sync_folder(Path(path).parent)


def write_text(path: str | Path, text: str) -> None:
  """Writes UTF-8 text atomically."""
  write_bytes(path, text.encode('utf-8'))


def write_json(path: str | Path, value: Any) -> None:
  """Writes indented JSON with sorted names atomically, so that equal values give equal files.

  Raises:
    ValueError, TypeError: the value holds NaN, an infinity or something that is not JSON; nothing is written.
  """
  write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + '\n')


def read_json(path: str | Path) -> Any:
  """Reads a JSON file. Raises FileNotFoundError, or ValueError that names the file and line of the mistake."""
  text = Path(path).read_text(encoding='utf-8')
  try:
    return json.loads(text)
  except json.JSONDecodeError as error:
    raise ValueError(f'{path}:{error.lineno}: not JSON: {error.msg}') from None


def sync_folder(folder: Path) -> None:
  """Makes renames inside `folder` durable, not just atomic."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask


# Logs, one JSON object a line.


class JsonlLog:
  """An append-only JSONL file. A record is in the file, whole, once `append` returns; a half-written last line is cut off on opening.

  Use it as a context manager, or call `close`.
  """

  def __init__(self, path: str | Path):
    self.path = Path(path)
    self._file = None
    if not hosts.is_first():
      return
    self.path.parent.mkdir(parents=True, exist_ok=True)
    cut_half_line(self.path)
    # Unbuffered: one write call per record, so that a kill between two appends loses nothing.
    self._file = open(self.path, 'ab', buffering=0)

  def append(self, record: dict[str, Any]) -> None:
    """Appends one record. Raises ValueError (NaN or infinity) or TypeError (not JSON) with nothing written."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode('utf-8') + b'\n'
    remaining = memoryview(line if self._file else b'')
    while remaining:
      remaining = remaining[self._file.write(remaining) :]

  def close(self) -> None:
    """Makes the log durable and closes it."""
    if self._file and not self._file.closed:
      os.fsync(self._file.fileno())
      self._file.close()

  def __enter__(self) -> JsonlLog:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()


def cut_half_line(path: str | Path) -> None:
  """Cuts off a last line that has no newline: what a kill in the middle of a write leaves. Warns if there was one."""
  path = Path(path)
  if not path.exists() or not hosts.is_first():
    return
  with open(path, 'rb+') as file:
    size = file.seek(0, os.SEEK_END)
    end, tail = size, b''
    # From the end in blocks: logs grow long, lines are short.
    while end > 0 and b'\n' not in tail:
      start = max(0, end - 65536)
      file.seek(start)
      tail = file.read(end - start) + tail
      end = start
    keep = end + tail.rfind(b'\n') + 1
    if keep < size:
      _logger.warning('%s: the last line was half written (%d bytes); it is cut off', path, size - keep)
      file.truncate(keep)


def read_jsonl(path: str | Path, *, growing: bool = False) -> Iterator[dict[str, Any]]:
  """Yields the records of a JSONL file; where it is `growing`, because another host writes it, a half-written last line is left out.

  Raises:
    FileNotFoundError: no such file.
    ValueError: a line is not a JSON object, or the last one is half written; the message starts with file:line.
  """
  with open(path, encoding='utf-8') as file:
    for number, line in enumerate(file, start=1):
      if not line.endswith('\n'):
        if growing:
          return
        raise ValueError(f'{path}:{number}: the last line is half written (no newline at its end)')
      try:
        record = json.loads(line)
      except json.JSONDecodeError as error:
        raise ValueError(f'{path}:{number}: not JSON: {error.msg} (column {error.colno})') from None
      if not isinstance(record, dict):
        raise ValueError(f'{path}:{number}: expected a JSON object, found {type(record).__name__}')
      yield record


def read_started(path: str | Path, expected: Sequence[Any], key: Callable[[dict[str, Any]], Any]) -> list[dict[str, Any]]:
  """The records of a log that may have been begun by a run that was killed; a half-written last line is cut off, see `cut_half_line`.

  Args:
    path: the log; none yet is an empty one.
    expected: what `key` gives for every record of the finished log, in order.
    key: of a record.

  Raises ValueError when the log holds other records than the first ones of `expected`: it belongs to another run.
  """

  def read() -> list[dict[str, Any]]:
    cut_half_line(path)
    return list(read_jsonl(path)) if Path(path).exists() else []

  records = hosts.broadcast(read)
  for number, record in enumerate(records):
    if number >= len(expected) or key(record) != expected[number]:
      wanted = expected[number] if number < len(expected) else 'its end'
      raise ValueError(f'{path}:{number + 1}: found {key(record)}, expected {wanted}: it belongs to another run; use another --workdir')
  return records


# Folders.


def ensure_writable(workdir: str | Path) -> Path:
  """Makes the folder if there is none and proves that files can be written in it, before anything expensive starts.

  Raises:
    OSError: names the folder and the reason.
  """
  workdir = Path(workdir)
  if not hosts.is_first():
    return workdir
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir) as file:
      file.write(b'writable')
      file.flush()
  except OSError as error:
    raise OSError(f'cannot write in the working folder {workdir}: {error.strerror or error}; choose another --workdir') from error
  return workdir


def mark_done(folder: str | Path, summary: dict[str, Any]) -> None:
  """Declares a stage's folder complete: writes DONE.json with `summary` (what a resumed run wants to know). Call it last, on all hosts."""
  write_json(Path(folder) / DONE, summary)
  hosts.barrier()


def read_done(folder: str | Path) -> dict[str, Any] | None:
  """The summary of a complete folder, or None if the folder is missing or unfinished."""
  path = Path(folder) / DONE
  return hosts.broadcast(lambda: read_json(path) if path.exists() else None)


# Hashes.


def hash_bytes(data: bytes) -> str:
  """sha256, as 64 hexadecimal digits."""
  return hashlib.sha256(data).hexdigest()


def hash_json(value: Any) -> str:
  """sha256 of a JSON-able value, whatever the order of its names."""
  return hash_bytes(json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(',', ':')).encode('utf-8'))


def hash_file(path: str | Path) -> str:
  """sha256 of a file's content."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def hash_folder(folder: str | Path) -> str:
  """sha256 over the relative names and contents of all files under `folder`. Raises FileNotFoundError if it is no folder."""
  folder = Path(folder)
  if not folder.is_dir():
    raise FileNotFoundError(f'no folder {folder}')
  paths = sorted(path for path in folder.rglob('*') if path.is_file())
  return hash_json({path.relative_to(folder).as_posix(): hash_file(path) for path in paths})
