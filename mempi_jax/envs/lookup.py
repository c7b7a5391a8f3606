"""Tasks of an environment by their ids."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar('T')


def find(things: Mapping[str, T], name: str, kind: str) -> T:
  """The thing of that id; `kind` is what such things are called. Raises KeyError that names the nearest ids."""
  if name in things:
    return things[name]
  near = difflib.get_close_matches(name, list(things)[:20000], n=3, cutoff=0.5)
  hint = f'near names: {", ".join(near)}' if near else f'e.g. {", ".join(list(things)[:3]) or "none at all"}'
  raise KeyError(f'no {kind} {name!r} among {len(things)} {kind}s; {hint}')
