"""The working folder of a run: one config, one manifest, a copy of the frozen agent.

    WORKDIR/config.json, manifest.json, agent/, bank/, stage1/, stage2/, eval/, results.json, report/

A second run in the same folder goes on with it; one with another config is refused, and told where the two differ, unless it allows that by
name. Settings of MACHINE say how a run is computed, not what: they may differ freely, so that a run can move to another machine.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import platform
import secrets
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from mempi_jax.config import ConfigError, flatten_tree, near, to_json
from mempi_jax.runtime import files, hosts, preemption
from mempi_jax.runtime.manifest import CONDITIONS, MACHINE, PACKAGES, package_version

CONFIG, MANIFEST, AGENT, WALL_TIME, CHANGES = 'config.json', 'manifest.json', 'agent', 'wall_time.json', 'changes.jsonl'
COMPILED, CACHE_VARIABLE = 'compiled', 'JAX_COMPILATION_CACHE_DIR'
IN_SIGHT = 10.0  # seconds until a host sees in a shared folder what another one made


def join_hosts(parsed: argparse.Namespace, config: FrozenConfigDict) -> None:
  """Makes this process one of several hosts, where the command line says so; before JAX is used.

  Raises HostsError where they do not find each other, or run different commands, configs or versions.
  """
  hosts.connect(parsed.hosts, parsed.host, parsed.coordinator, dead_after=config.hosts.dead_after, timeout=config.hosts.timeout)
  check_hosts_alike(parsed, config)


def check_hosts_alike(parsed: argparse.Namespace, config: FrozenConfigDict) -> None:
  """Raises HostsError, on all hosts, where they run different commands, configs or versions; it names what differs."""
  command = {'command': Path(sys.argv[0]).stem, 'allow': sorted(parsed.allow)}
  hosts.check_alike('commands', command, differing_fields)
  hosts.check_alike('configs', json.loads(to_json(config)), differing_fields)
  versions = {name: package_version(name) for name in PACKAGES} | {'python': platform.python_version()}
  hosts.check_alike('versions', versions, differing_fields)


def open_workdir(workdir: str | Path, config: ConfigDict, agent_folder: Path | None, allow: Collection[str] = ()) -> Path:
  """Makes the folder ready for a run of `config`, and puts a copy of the agent in it, where it is a folder; turns on the compilation cache.

  Args:
    workdir: on several hosts all see the same one.
    config: resolved.
    agent_folder: of the frozen agent; None: it has none.
    allow: fields in which the run may differ from the one that the folder holds; what changed is added to changes.jsonl.

  Raises:
    OSError: the folder cannot be written. ConfigError: it belongs to a run of another config, or not all hosts see it; FileNotFoundError: no
      agent there.
  """
  workdir = files.ensure_writable(workdir)
  hosts.broadcast(lambda: _claim(workdir, to_json(config), agent_folder, allow))
  _check_shared(workdir)
  hosts.open_log(workdir)
  _cache_compilations(workdir / COMPILED)
  return workdir


def _check_shared(workdir: Path) -> None:
  """Raises ConfigError on all hosts where one does not see the folder of the first, but none, or one of its own with the same name."""
  if hosts.count() == 1:
    return
  mark = workdir / hosts.broadcast(lambda: _mark(workdir))
  started = time.monotonic()
  while not mark.exists() and time.monotonic() - started < IN_SIGHT:
    time.sleep(0.1)
  blind = [other for other, sees in enumerate(hosts.gather(mark.exists())) if not sees]
  if hosts.is_first():
    mark.unlink(missing_ok=True)
  if blind:
    raise ConfigError(f'host {blind[0]} does not see the working folder {workdir.resolve()} of host 0: it must be on a file system that they share')


def _mark(workdir: Path) -> str:
  """Makes a file in the folder and gives its name, which no host has ever looked for: network file systems remember what was not there."""
  name = f'.{secrets.token_hex(8)}.shared'
  (workdir / name).touch()
  return name


def _claim(workdir: Path, text: str, agent_folder: Path | None, allow: Collection[str]) -> None:
  path, here = workdir / CONFIG, json.loads(text)
  there = json.loads(path.read_text(encoding='utf-8')) if path.exists() else here
  known = flatten_tree(there) | flatten_tree(here)
  unknown = [name for name in allow if name not in known]
  if unknown:
    raise ConfigError(f'--allow names {unknown[0]}, which is no field{near(unknown[0], known)}')
  if not path.exists():
    if agent_folder is not None:
      _copy_agent(agent_folder, workdir / AGENT)
    files.write_text(path, text)
    return
  found = changed_fields(there, here)
  refused = [(name, there, here) for name, there, here in found if name.partition('.')[0] not in MACHINE and name not in allow]
  if refused:
    shown = '; '.join(f'{name} is {there!r} there, {here!r} here' for name, there, here in refused)
    raise ConfigError(
      f'{workdir} belongs to a run of another config: {shown}. Use another --workdir, or allow it: --allow={",".join(name for name, *_ in refused)}'
    )
  if found:
    with files.JsonlLog(workdir / CHANGES) as log:
      for name, there, here in found:
        print(f'{name} was {there!r}, is {here!r} from now on')
        log.append({'field': name, 'was': there, 'is': here})
    files.write_text(path, text)


def differing_fields(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
  """What differs between two configs read from JSON, one text a field: 'name is x there, y here'."""
  return [f'{name} is {there!r} there, {here!r} here' for name, there, here in changed_fields(found, expected)]


def changed_fields(found: dict[str, Any], expected: dict[str, Any]) -> list[tuple[str, Any, Any]]:
  """What differs between two configs read from JSON: (name, value there, value here), 'absent' where a side has no such field."""
  there, here = flatten_tree(found), flatten_tree(expected)
  pairs = [(name, there.get(name, 'absent'), here.get(name, 'absent')) for name in sorted(there.keys() | here.keys())]
  return [(name, a, b) for name, a, b in pairs if a != b]


def write_manifest(workdir: Path, manifest: dict[str, Any], allow: Collection[str] = ()) -> None:
  """Writes the manifest, or checks it against the one that is there; with fields that may differ (see `open_workdir`) so may all in it that a config
  decides.

  Raises ValueError naming the differences: other versions or another agent than those the run began with.
  """
  hosts.broadcast(lambda: _check_manifest(workdir / MANIFEST, json.loads(json.dumps(manifest)), bool(allow)))


def _check_manifest(path: Path, manifest: dict[str, Any], changed: bool) -> None:
  found = changed_fields(files.read_json(path), manifest) if path.exists() else []
  refused = [f'{name} is {there!r} there, {here!r} here' for name, there, here in found if not changed or name.partition('.')[0] in CONDITIONS]
  if refused:
    raise ValueError(f'{path.parent} was begun under other conditions: {"; ".join(refused)}. Use another --workdir')
  if found or not path.exists():
    files.write_json(path, manifest)


@contextlib.contextmanager
def timed(workdir: Path, name: str) -> Iterator[None]:
  """Adds the seconds spent inside to `name` in WORKDIR/wall_time.json; what a killed process spent is not counted."""
  started = time.perf_counter()
  yield
  if not hosts.is_first():
    return
  path = workdir / WALL_TIME
  times = files.read_json(path) if path.exists() else {}
  times[name] = round(times.get(name, 0.0) + time.perf_counter() - started, 2)
  files.write_json(path, times)


def report_errors(main: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str]], None]:
  """Turns what a user can mend (settings, files, banks, checkpoints) into one line and exit status 2; bugs keep their traceback."""

  @functools.wraps(main)
  def wrapped(arguments: Sequence[str]) -> None:
    try:
      main(arguments)
      hosts.disconnect()
    except preemption.Preempted:
      print('asked to end: everything up to here is saved, the same command goes on from here', file=sys.stderr)
      hosts.disconnect()
      preemption.obeyed()
      raise
    except Exception as error:
      known = isinstance(error, (ValueError, OSError, FloatingPointError, MemoryError)) and '--debug' not in sys.argv
      if known:
        print(f'error: {error}', file=sys.stderr)
      elif hosts.count() > 1:
        traceback.print_exc()
      hosts.fail(error)  # of several hosts, the process ends here
      if known:
        raise SystemExit(2) from error
      raise

  return wrapped


def _copy_agent(source: Path, target: Path) -> None:
  """Copies an agent's folder; the last step is a rename, so that a kill leaves a whole copy or none."""
  if target.exists():
    return
  if not (source / 'model.safetensors').is_file():
    raise FileNotFoundError(f'no agent checkpoint at {source}: model.safetensors is missing; make one with python -m mempi_jax.clone')
  partial = target.with_name(f'.{target.name}.partial')
  shutil.rmtree(partial, ignore_errors=True)
  try:
    shutil.copytree(source, partial)
  except shutil.Error as error:  # it lists what failed, file by file
    raise OSError(f'the agent cannot be copied to {target}: {error.args[0][0][2]}') from None
  partial.rename(target)


def share_compilations(folder: Path) -> None:
  """All runs of this process and its children keep their compiled programs in one folder, unless the environment names another."""
  os.environ.setdefault(CACHE_VARIABLE, str(folder.resolve()))


def _cache_compilations(folder: Path) -> None:
  """Compiled programs are kept in the working folder, or where the environment says: the commands of one run share them."""
  import jax
  from jax.experimental.compilation_cache import compilation_cache

  compilation_cache.reset_cache()  # what was compiled in this process before, for another run or for none, had settled the place
  jax.config.update('jax_compilation_cache_dir', os.environ.get(CACHE_VARIABLE) or str(folder))
  # XLA's own caches would put their path into every program's key: a folder that was moved, or copied, would compile again.
  jax.config.update('jax_persistent_cache_enable_xla_caches', 'none')
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
