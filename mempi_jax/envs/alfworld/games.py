"""Reading and writing ALFWorld games: folders of `game.tw-pddl`, JSON lines, and `generated:HOUSEHOLD`.

What a file says is checked before it is used; a broken one gives an error that names the file and the line. The PDDL domain and the text
grammar that a `game.tw-pddl` needs come with the `alfworld` package, which is found, not imported, here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import lzma
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mempi_jax.envs.alfworld.game import TASK_TYPES, Game
from mempi_jax.envs.alfworld.problem import parse_problem
from mempi_jax.runtime import files

GENERATED = 'generated:'
GAME_FILE = 'game.tw-pddl'
_FIELDS = ('split', 'task', 'trial', 'type', 'goal', 'problem', 'walk')
_OURS = ('game_id', 'task_type', 'split', 'household', 'room', 'target', 'destination')
_ENGINE_SYMBOLS = re.compile(r'[#{}\[\]|"\\\x00-\x1f]')
_TASK_SENTENCE = re.compile(r'Your task is to: (.*?)"')


def load_games(
  source: str | Path, *, count: int | None = None, seed: int = 0, split: str = 'train', small_fraction: float = 0.4
) -> list[Game]:
  """The games of a source, at most `count` of them: the first ones, in the order of the file or of the folder's sorted paths.

  `source` is a folder of game.tw-pddl files at any depth; a .jsonl or .jsonl.xz file; or `generated:HOUSEHOLD`, which makes `count` games
  (200 if None) of `split` with `seed` and `small_fraction` (which say nothing of files).

  Raises:
    FileNotFoundError: no such file or folder.
    ValueError: a broken file (file:line, what is missing), an empty folder, another kind of file.
  """
  if str(source).startswith(GENERATED):
    from mempi_jax.envs.alfworld.generator import generate_games

    household = str(source).removeprefix(GENERATED)
    if not household:
      raise ValueError(f'{str(source)!r} names no household; expected {GENERATED}HOUSEHOLD')
    return generate_games(household, split, 200 if count is None else count, seed, small_fraction=small_fraction)
  path = Path(source)
  if path.is_dir():
    return read_folder(path, count)
  if not path.exists():
    raise FileNotFoundError(f'no file or folder {path}; expected a folder of {GAME_FILE} files, a .jsonl or .jsonl.xz file, or {GENERATED}HOUSEHOLD')
  if path.name.endswith(('.jsonl', '.jsonl.xz')):
    return read_jsonl(path, count)
  raise ValueError(f'{path}: unknown kind of file; expected a folder of {GAME_FILE} files, a .jsonl or .jsonl.xz file, or {GENERATED}HOUSEHOLD')


def read_jsonl(path: str | Path, count: int | None = None) -> list[Game]:
  """Games of a JSON-lines file, plain or xz; a line has the fields split, task (TYPE-OBJECT-MRECEP-PARENT-SCENE), trial, type, goal,
  problem and walk. The game's id is TASK/TRIAL.

  Raises:
    ValueError: file:line and what is wrong with it.
  """
  path = Path(path)
  games: list[Game] = []
  seen: dict[str, int] = {}
  for number, line in _lines(path):
    if count is not None and len(games) >= count:
      break
    where = f'{path}:{number}'
    try:
      row = json.loads(line)
    except json.JSONDecodeError as error:
      raise ValueError(f'{where}: not JSON: {error.msg} (column {error.colno})') from None
    if not isinstance(row, dict):
      raise ValueError(f'{where}: expected a JSON object, found {type(row).__name__}')
    missing = [name for name in _FIELDS if name not in row]
    if missing:
      raise ValueError(f'{where}: missing {", ".join(missing)}; expected the fields {", ".join(_FIELDS)}')
    for name in _FIELDS[:-1]:
      if not isinstance(row[name], str) or not row[name].strip():
        raise ValueError(f'{where}: {name} must be a non-empty string, found {str(row[name])[:60]!r}')
    game_id = f'{row["task"]}/{row["trial"]}'
    if game_id in seen:
      raise ValueError(f'{where}: game {game_id!r} is there twice, first in line {seen[game_id]}')
    seen[game_id] = number
    games.append(
      Game(
        game_id=game_id,
        task_type=_task_type(row['type'], where),
        goal=_sentence(row['goal']),
        problem=_problem_text(row['problem'], where),
        split=row['split'],
        walk=_walk(row['walk'], where),
        **_from_folder_name(row['task']),
      )
    )
  if not games and count != 0:
    raise ValueError(f'{path}: no games in it')
  return games


def _lines(path: Path) -> Iterator[tuple[int, str]]:
  opener = lzma.open if path.name.endswith('.xz') else open
  number = 0
  try:
    with opener(path, 'rt', encoding='utf-8') as file:
      for number, line in enumerate(file, start=1):
        if line.strip():
          yield number, line
  except (lzma.LZMAError, EOFError) as error:
    raise ValueError(f'{path}:{number + 1}: the xz file is broken or cut off: {error}') from error
  except UnicodeDecodeError as error:
    raise ValueError(f'{path}:{number + 1}: not UTF-8 text') from error


def read_folder(folder: str | Path, count: int | None = None) -> list[Game]:
  """Games of all game.tw-pddl files under a folder: the official ones and those of `write_games`. The id of an official game is its folder
  relative to `folder`.

  Raises:
    ValueError: the file and what is wrong with it; or no such file under the folder.
  """
  folder = Path(folder)
  paths = sorted(folder.rglob(GAME_FILE))
  if not paths:
    raise ValueError(f'no {GAME_FILE} under {folder}')
  return [read_game(path, path.parent.relative_to(folder).as_posix()) for path in paths[:count]]


def read_game(path: str | Path, game_id: str) -> Game:
  """One game.tw-pddl file. Raises ValueError (file:line where it can be told, and what is wrong)."""
  row = files.read_json(path)
  if not isinstance(row, dict):
    raise ValueError(f'{path}:1: expected a JSON object, found {type(row).__name__}')
  for name in ('pddl_problem', 'grammar'):
    if not isinstance(row.get(name), str):
      raise ValueError(f'{path}:1: {name} is missing; expected the fields pddl_domain, grammar, pddl_problem, solvable, walkthrough')
  sentence = _TASK_SENTENCE.search(row['grammar'])
  if sentence is None:
    raise ValueError(f'{path}:1: the grammar says no "Your task is to: ..."')
  goal, problem = _sentence(sentence.group(1)), _problem_text(row['pddl_problem'], str(path))
  walk = _walk(row.get('walkthrough') or [], f'{path}:1')
  ours = row.get('mempi_jax')
  if isinstance(ours, dict):
    wrong = [name for name in _OURS if not isinstance(ours.get(name), str | None)] + [name for name in _OURS[:3] if not ours.get(name)]
    if wrong:
      raise ValueError(f'{path}:1: mempi_jax.{wrong[0]} must be a string, found {ours.get(wrong[0])!r}')
    known = {name: ours.get(name) for name in _OURS}
    _task_type(known['task_type'], f'{path}:1')
    return Game(goal=goal, problem=problem, walk=walk, **known)
  official = next((part for part in reversed(game_id.split('/')) if part.split('-', 1)[0] in TASK_TYPES), None)
  task_type = official.split('-', 1)[0] if official else _type_of_goal(problem, path)
  return Game(game_id, task_type, goal, problem, walk=walk, **(_from_folder_name(official) if official else {}))


def write_games(games: Iterable[Game], folder: str | Path) -> list[Path]:
  """Writes FOLDER/NAME/game.tw-pddl for each game, playable with the real engine, and returns the paths. What is `hidden` is not written.

  NAME is made from the game's id, which may come from outside: it stays inside the folder, whatever the id says.

  Raises:
    ImportError: the `alfworld` package is not installed.
    ValueError: a goal sentence that the engine's grammar cannot carry.
  """
  domain, grammar = alfworld_text('alfred.pddl'), alfworld_text('alfred.twl2')
  paths = []
  for game in games:
    path = Path(folder) / folder_name(game.game_id) / GAME_FILE
    files.write_json(path, {**game_data(game, domain, grammar), 'mempi_jax': {name: getattr(game, name) for name in _OURS}})
    paths.append(path)
  return paths


def game_data(game: Game, domain: str, grammar: str) -> dict[str, Any]:
  """The content of a game.tw-pddl file. Raises ValueError if the goal has characters that mean something in the engine's grammar."""
  found = _ENGINE_SYMBOLS.search(game.goal)
  if found:
    raise ValueError(f'game {game.game_id!r}: the goal {game.goal!r} has {found.group()!r}, which the engine takes for a rule of its grammar')
  return {
    'pddl_domain': domain,
    'grammar': grammar.replace('UNKNOWN GOAL.', game.goal),
    'pddl_problem': game.problem,
    'solvable': True,
    'walkthrough': list(game.walk),
  }


def folder_name(game_id: str) -> str:
  """A name for a folder that no id can lead astray: letters, digits, `-`, `_` and dots inside, and a hash if anything was changed."""
  name = re.sub(r'[^A-Za-z0-9._-]+', '_', game_id).strip('.')[:150]
  return name if name and name == game_id else f'{name or "game"}-{hashlib.sha256(game_id.encode("utf-8", "surrogatepass")).hexdigest()[:8]}'


def alfworld_text(name: str) -> str:
  """A data file of the `alfworld` package: 'alfred.pddl' (the rules), 'alfred.twl2' (the text grammar).

  Raises:
    ImportError: the package is not installed.
  """
  found = importlib.util.find_spec('alfworld')
  if found is None or not found.submodule_search_locations:
    raise ImportError("the real engine's rules need the alfworld package: pip install 'mempi_jax[alfworld]' (needs a C++ compiler)")
  return (Path(found.submodule_search_locations[0]) / 'data' / name).read_text(encoding='utf-8')


# Checks.


def _task_type(value: str, where: str) -> str:
  if value not in TASK_TYPES:
    raise ValueError(f'{where}: unknown task type {value!r}; expected one of {", ".join(TASK_TYPES)}')
  return value


def _sentence(text: str) -> str:
  return text.strip().rstrip('.') + '.'


def _problem_text(text: str, where: str) -> str:
  """Cheap checks that find a text that was cut off; the whole is parsed when the game is first played."""
  for part in ('(define', '(:objects', '(:init', '(:goal'):
    if part not in text:
      raise ValueError(f'{where}: the PDDL problem has no {part} ...)')
  if text.count('(') != text.count(')'):
    raise ValueError(f'{where}: the PDDL problem has {text.count("(")} opening and {text.count(")")} closing parentheses')
  return text


def _walk(value: Any, where: str) -> tuple[str, ...]:
  if not isinstance(value, list) or not all(isinstance(step, str) for step in value):
    raise ValueError(f'{where}: walk must be a list of commands, found {str(value)[:60]!r}')
  return tuple(value)


def _from_folder_name(name: str) -> dict[str, str | None]:
  """Target, destination and room of an official folder name TYPE-OBJECT-MRECEP-PARENT-SCENE; nothing if it is none."""
  parts = name.split('-')
  if len(parts) != 5 or not parts[4].isdigit():
    return {}
  scene = int(parts[4])
  rooms = {0: 'kitchen', 2: 'livingroom', 3: 'bedroom', 4: 'bathroom'}
  return {'target': parts[1].lower(), 'destination': parts[3].lower(), 'room': rooms.get(scene // 100)}


def _type_of_goal(text: str, path: str | Path) -> str:
  """The task type that a goal condition amounts to."""
  try:
    goal = parse_problem(text).goal
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error
  predicates = [literal.predicate for literal in goal.literals]
  for predicate, task_type in (('istoggled', 1), ('isclean', 2), ('ishot', 3), ('iscool', 4)):
    if predicate in predicates:
      return TASK_TYPES[task_type]
  return TASK_TYPES[5 if predicates.count('inreceptacle') > 1 else 0]
