"""Episodes for readers: the data of the report's episode browser, and one episode in the terminal beside the same game without guidance.

Text of games, agents and policies comes from outside: characters that could hide or reorder it, or steer a terminal, appear by their code.
"""

from __future__ import annotations

import base64
import collections
import difflib
import gzip
import itertools
import json
import textwrap
from collections.abc import Sequence
from typing import Any

from mempi_jax.evals import plots, success
from mempi_jax.evals.success import Record
from mempi_jax.evals.tables import plain
from mempi_jax.types import Status

_LONGEST_TEXT = 4000  # characters of one text in the page; longer ones are cut there, and say so


def readable(episode: Record) -> Record:
  """An episode whose texts are there, if empty, and whose steps are pairs. Evaluations of older versions recorded less."""
  steps = [(str(step[0]), str(step[1])) for step in episode.get('steps', []) if isinstance(step, (list, tuple)) and len(step) == 2]
  texts = {name: str(episode.get(name) or '') for name in ('goal', 'observation', 'guidance')}
  lists = {name: [str(entry) for entry in episode.get(name) or []] for name in ('nearest', 'retrieved')}
  counts = {name: episode.get(name) for name in ('read_tokens', 'written_tokens')}
  return {**episode, **texts, **lists, **counts, 'steps': steps}


# The episode browser's data.


def browser_data(episodes: Sequence[Record]) -> dict[str, Any]:
  """Episodes as columns, small enough for a page.

  Returns:
    `strings`: every text once, plain and cut at 4,000 characters. `memories` {name, label, colour, marker}, `splits` {name, label},
    `runs` and `statuses` name the codes of the columns. The columns, one value an episode: `memory`, `split`, `run`, `status`; `game`,
    equal where household, run, split, task and seed are; `decision` (1: generates); `p_generate` (or None), `guidance_tokens`,
    `agent_steps`, `seed`; `read_tokens` and `written_tokens` of the memory's own language model (or None); `task`, `goal`, `observation`,
    `guidance`: places in `strings`; `steps`: places, action and what it brought in turn; `nearest`: places of the bank's nearest entries;
    `retrieved`: places of the names of episodes that the guidance quotes.
  """
  strings: dict[str, int] = {}
  place = lambda text: strings.setdefault(text, len(strings))
  memories, splits = success.memories_of(episodes), success.splits_of(episodes)
  runs: dict[str, int] = {}
  games: dict[tuple, int] = {}
  statuses = [status.value for status in Status]
  columns: dict[str, list] = collections.defaultdict(list)
  for episode in map(readable, episodes):
    p = episode['p_generate']
    values = {
      'memory': memories.index(episode['memory']),
      'split': splits.index(episode['split']),
      'run': runs.setdefault(_run_name(episode), len(runs)),
      'status': statuses.index(episode['status']),
      'game': games.setdefault(success.key_of(episode), len(games)),
      'decision': int(episode['decision'] == '[GENERATE]'),
      'p_generate': None if p is None else round(p, 6),
      **{name: episode[name] for name in ('guidance_tokens', 'agent_steps', 'seed', 'read_tokens', 'written_tokens')},
      'task': place(episode['task_id']),
      **{name: place(episode[name]) for name in ('goal', 'observation', 'guidance')},
      'steps': [place(text) for step in episode['steps'] for text in step],
      **{name: [place(entry) for entry in episode[name]] for name in ('nearest', 'retrieved')},
    }
    for name, value in values.items():
      columns[name].append(value)
  return {
    'strings': [_cut(plain(text)) for text in strings],
    'memories': [
      {'name': plain(m), 'label': plain(plots.label(m)), 'colour': plots.colour(m), 'marker': plots.marker_path(m)} for m in memories
    ],
    'splits': [{'name': plain(split), 'label': plain(plots.split_label(split))} for split in splits],
    'runs': [plain(run) for run in runs],
    'statuses': statuses,
    **columns,
  }


def pack(tree: Any) -> str:
  """JSON, gzipped, in base64: compact, and nothing in it can end the element that holds it. Equal values give equal text."""
  text = json.dumps(tree, ensure_ascii=False, allow_nan=False, separators=(',', ':'))
  return base64.b64encode(gzip.compress(text.encode('utf-8'), mtime=0)).decode('ascii')


def _run_name(episode: Record) -> str:
  return f'{episode["household"]}, seed {episode["run_seed"]}' if 'household' in episode else ''


def _cut(text: str) -> str:
  if len(text) <= _LONGEST_TEXT:
    return text
  return f'{text[:_LONGEST_TEXT]} … ({len(text) - _LONGEST_TEXT} more characters; --episode shows them)'


# One episode in the terminal.


class EpisodeError(ValueError):
  """No such episode, or more than one; the message names those it could be."""


def episode_id(episode: Record) -> str:
  """memory/task_id@seed."""
  return f'{episode["memory"]}/{episode["task_id"]}@{episode["seed"]}'


def find_episode(episodes: Sequence[Record], name: str) -> Record:
  """The episode of that ID, memory/task_id@seed, as recorded or as the page shows it; the seed may be left out where there is one alone.

  Raises:
    EpisodeError: no such episode, or several.
  """
  found = [e for e in episodes if name in (episode_id(e), f'{e["memory"]}/{e["task_id"]}', plain(episode_id(e)))]
  if len(found) == 1:
    return found[0]
  if found:
    ids = list(dict.fromkeys(map(episode_id, found)))
    hint = 'give the seed' if len(ids) > 1 else f'it is in the splits {", ".join(success.splits_of(found))}, which an ID cannot tell apart'
    raise EpisodeError(f'{len(found)} episodes are called {name!r}: {_some(ids)}; {hint}')
  # An ID of another memory differs in its first letters alone, so those of the same one come first.
  ids = list(map(episode_id, episodes))
  candidates = [i for i in ids if i.startswith(name.partition('/')[0] + '/')] or ids
  near = [i for i in candidates if i.startswith(name)] or difflib.get_close_matches(name, candidates, n=3, cutoff=0.3)
  if near:
    raise EpisodeError(f'no episode {name!r}; near ones: {_some(near)}')
  example = f', as in {_some([episode_id(episodes[0])])}' if episodes else ''
  raise EpisodeError(f'no episode {name!r}; expected memory/task_id@seed{example}')


def describe_episode(episodes: Sequence[Record], episode: Record, width: int) -> str:
  """An episode beside the same game without guidance, as text of `width` columns; characters that steer a terminal appear by their code."""
  alone = next((e for e in episodes if e['memory'] == 'none' and success.key_of(e) == success.key_of(episode)), None)
  mine, memory = readable(episode), plots.label(episode['memory'])
  lines = [plain(episode_id(mine)), '']
  for name, value in _facts(mine).items():
    lines += _wrap(value, width, f'{name:<12} ')
  lines.append('')
  if mine['memory'] == 'none' or alone is None:
    if alone is None:
      lines += ['There is no episode of this game without guidance.', '']
    return '\n'.join([*lines, f'{memory}: {_outcome(mine)}', *(line for step in mine['steps'] for line in _step_lines(step, width))])
  # A page of two columns, an action beside an action.
  alone, half = readable(alone), (width - 3) // 2
  beside = lambda left, right: [f'{a:<{half}} │ {b}'.rstrip() for a, b in itertools.zip_longest(left, right, fillvalue='')]
  lines += beside(['agent alone'], [f'with {memory}'])
  lines.append(f'{"─" * (half + 1)}┼{"─" * (half + 1)}')
  fork = next((n for n, (a, b) in enumerate(zip(alone['steps'], mine['steps'])) if a != b), min(len(alone['steps']), len(mine['steps'])))
  for n, (a, b) in enumerate(itertools.zip_longest(alone['steps'], mine['steps'])):
    if n == fork and n > 0:
      lines.append(f'{" from here they differ ":─^{width}}')
    lines += beside(*(_step_lines(step, half) if step else [] for step in (a, b)))
  lines.append(f'{"─" * (half + 1)}┼{"─" * (half + 1)}')
  lines += beside(_wrap(_outcome(alone), half), _wrap(_outcome(mine), half))
  if 'env_error' not in (alone['status'], mine['status']):
    verdict = {1: 'The memory helped.', 0: 'No difference in success.', -1: 'The memory hurt.'}[mine['success'] - alone['success']]
    lines += ['', verdict]
  return '\n'.join(lines)


def _facts(episode: Record) -> dict[str, str]:
  """What is known before the first action, by name."""
  facts = {'split': plots.split_label(episode['split']), 'goal': episode['goal'], 'sees first': episode['observation']}
  facts['decision'] = episode['decision']
  if episode['p_generate'] is not None:
    facts['P(GENERATE)'] = f'{episode["p_generate"]:.4f}'
  if episode['decision'] == '[GENERATE]':
    facts['guidance'] = f'{episode["guidance"]} ({_count(episode["guidance_tokens"], "token")})'
  if episode['retrieved']:
    facts['quotes'] = ', '.join(episode['retrieved'])
  if episode['read_tokens'] or episode['written_tokens']:
    facts['its model'] = f'read {episode["read_tokens"]} tokens, wrote {episode["written_tokens"]}'
  return facts | {f'nearest {place}': entry for place, entry in enumerate(episode['nearest'], start=1)}


def _outcome(episode: Record) -> str:
  return f'{episode["status"]} after {_count(episode["agent_steps"], "action")}'


def _count(number: int, what: str) -> str:
  return f'{number} {what}{"" if number == 1 else "s"}'


def _step_lines(step: tuple[str, str], width: int) -> list[str]:
  return _wrap(step[0], width, '> ') + _wrap(step[1], width, '  ')


def _wrap(text: str, width: int, first: str = '') -> list[str]:
  """Plain lines of at most `width` columns; `first` stands before the first one, and as much space before the others."""
  indent, room = ' ' * len(first), max(20, width - len(first))
  lines = [part for line in plain(text).expandtabs(4).split('\n') for part in textwrap.wrap(line, room, break_on_hyphens=False) or ['']]
  return [(first if n == 0 else indent) + line for n, line in enumerate(lines)]


def _some(ids: Sequence[str]) -> str:
  return plain(', '.join(ids[:3]) + (', ...' if len(ids) > 3 else ''))
